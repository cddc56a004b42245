"""Why a network of patients says what it says of one: what each gene, in all of the patient's cells, adds.

A patient is a bag of cells, and a gene stands in many of them. Occlusions are exact: the gene is hidden (deleted,
masked, moved) in every cell that expresses it, and the bag is read anew. Derivatives go through bag and encoder: the
slope of the patient's output by each cell's vector, and how much each gene adds to the cell's vector along that slope,
summed over cells. Integrated gradients do so all along the way (`patient_ways`), and add up to the difference.

Shapes: N cells of a patient, D length of a vector, U genes (or sets), S numbers explained.
"""

import copy
import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor

import geneformer_repro.processes as processes
from geneformer_repro.attention import Cells
from geneformer_repro.bags import NETWORK_FILE, WEIGHTS_FILE, BagNetwork, Bags
from geneformer_repro.checkpoint import Checkpoint
from geneformer_repro.errors import InputError
from geneformer_repro.files import sha256
from geneformer_repro.heads import pool
from geneformer_repro.in_silico.explanations.answers import Shown, unchanged
from geneformer_repro.in_silico.explanations.cell_methods import CellMethods, Gaps
from geneformer_repro.in_silico.explanations.explained import Explained, drawn
from geneformer_repro.in_silico.explanations.gradients import gradients
from geneformer_repro.in_silico.explanations.how_good import labels_in, of_target, replicates
from geneformer_repro.in_silico.explanations.occlusions import OPERATORS, Alter, ask, first_order
from geneformer_repro.in_silico.explanations.output_answers import OutputAnswer
from geneformer_repro.in_silico.explanations.path_integrals import integrate
from geneformer_repro.in_silico.explanations.patient_ways import OfVectors, PatientWay, slopes_by_vector
from geneformer_repro.in_silico.explanations.request import Request, refuse_seen
from geneformer_repro.in_silico.explanations.unit_rows import Units, unit_rows
from geneformer_repro.in_silico.parted import batch_tokens
from geneformer_repro.network_settings import Pooling
from geneformer_repro.patient_reading import ReadPatients, read_patients, record_of, require_encoder, run_columns
from geneformer_repro.reading import Reader
from geneformer_repro.tokenizer.dataset import TokenizedDataset

_DERIVED = ("first_order", "gradient_input", "integrated_gradients", "attention_gradient")
METHODS = (*OPERATORS, *_DERIVED, "attention")
LAYER = -1
"""Of the encoder, whose vectors `finetune_patients` learns from."""
_POOLING: Pooling = "mean"
_NUMBERS_AT_ONCE = 2**22
"""Of vectors of altered bags: 16 MB."""
_PASSES_OF = {"first_order": 3, "gradient_input": 3, "integrated_gradients": 150, "attention_gradient": 4}


@dataclass(frozen=True)
class VectorOfCell:
    """The vector that a network of bags takes of a cell, number by number."""

    width: int
    pooling: Pooling = _POOLING
    layer: int = LAYER
    first_only: bool = False
    asked: None = None
    masks: bool = False
    described: str = "vector of a cell"

    @property
    def names(self) -> tuple[str, ...]:
        """A name a number."""
        return tuple(map(str, range(self.width)))

    def __call__(self, hidden_TD: Tensor, shown: Shown) -> Tensor:
        """Return vectors, (B, D)."""
        return pool(hidden_TD, shown.weight_T, Cells(shown.lengths), self.pooling)


@dataclass(frozen=True)
class _AlongSlope:
    """How far a cell's vector goes along the slopes of its patient's outputs."""

    slope_DS: Tensor
    names: tuple[str, ...]
    vector: VectorOfCell
    layer: int = LAYER
    first_only: bool = False
    asked: None = None
    masks: bool = False
    described: str = "vector of a cell along the slope of its patient's output"

    def __call__(self, hidden_TD: Tensor, shown: Shown) -> Tensor:
        """Return the products, (B, S)."""
        return self.vector(hidden_TD, shown) @ self.slope_DS


@dataclass(frozen=True, eq=False)
class Patient:
    """One patient, with the vectors of the cells as they are."""

    name: str
    tokens: list[np.ndarray]
    cell_names: np.ndarray
    types_N: np.ndarray
    vector_ND: Tensor

    def bags(self, vectors_BND: Tensor) -> Bags:
        """Return versions of the patient, side by side."""
        n = len(vectors_BND)
        return Bags(vectors_BND.flatten(0, 1), np.full(n, len(self.tokens)), np.tile(self.types_N, n))


class ExplainedPatients(Explained):
    """Patients of a network of bags, to be explained part by part.

    Parameters
    ----------
    request
        What is asked.
    checkpoint
        The encoder whose vectors the network learned.
    cells
        Tokenised cells of the patients.
    run
        Folder that `finetune_patients` wrote.

    Raises
    ------
    InputError
        The run learned other vectors, or a method, target, class or column is unknown.
    """

    rows_are = "patients"

    def __init__(self, request: Request, checkpoint: Checkpoint, cells: TokenizedDataset, run: Path) -> None:
        checkpoint.require_matching(cells)
        self._require_methods(request)
        self._network, record = BagNetwork.open(run), record_of(run)
        columns = run_columns(run, record, dict.fromkeys(("patient", "vectors", "cell_type")))
        if columns["vectors"] is not None:
            raise InputError(
                f"{run}: learned vectors of obsm[{columns['vectors']!r}], and which genes made them is not known. "
                "Explain a run of finetune_patients on tokenised cells, with their checkpoint."
            )
        require_encoder(run, record, checkpoint)
        self._request, self._checkpoint, self._cells = request, checkpoint, cells
        self._network_digest = "".join(sha256(run / name) for name in (NETWORK_FILE, WEIGHTS_FILE))
        self._answer = OutputAnswer.of(
            self._network.targets, request.target, request.states, request.contrast_name, named=str(run)
        )
        for name in request.obs:
            cells.require_obs(name)
        self._columns = columns
        self._read: ReadPatients = read_patients(
            cells.obs, cells.has_gene, self._network, patient=columns["patient"], cell_type=columns["cell_type"]
        )
        rng = np.random.default_rng(request.seed)
        self._patients = drawn(np.arange(len(self._read.patients)), request.max_cells, rng)
        if not request.allow_seen:
            _refuse_learned(run, self._read.patients[self._patients])
        self._reader = self._reader_of(checkpoint)
        self._vector = VectorOfCell(self._reader.hidden_size)
        if self._network.shape.n_inputs != self._reader.hidden_size:
            raise InputError(
                f"{run}: learned vectors of {self._network.shape.n_inputs} numbers, and {checkpoint.name} makes such "
                f"of {self._reader.hidden_size}. Give the checkpoint of the run."
            )
        self._network.to(self._reader.device)
        self._methods = CellMethods(request, cells, self._read.cell_rows)
        self._spread_S = np.zeros(len(self._answer.names))

    @staticmethod
    def _require_methods(request: Request) -> None:
        for method in request.methods:
            if method not in METHODS:
                raise InputError(f"Patients are explained by {', '.join(METHODS)}; found {method!r}.")
        if request.baseline != "mask":
            raise InputError(
                f"Ways of patients' cells begin where all genes are <mask>: baseline='mask', found "
                f"{request.baseline!r}."
            )
        for name in ("goal", "gene", "layer", "pooling", "donor"):
            if getattr(request, name) is not None:
                raise InputError(f"{name}= is not for patients, each of whom is a replicate. Leave it out.")

    # What is explained

    @property
    def names(self) -> np.ndarray:
        """Name of each patient."""
        return self._read.patients[self._patients].astype(str)

    @property
    def network(self) -> BagNetwork:
        """The network of patients."""
        return self._network

    @property
    def answer(self) -> OutputAnswer:
        """What is asked of each patient."""
        return self._answer

    def of_model(self, checkpoint: Checkpoint, network: BagNetwork) -> "ExplainedPatients":
        """Return the same patients and question, of another encoder or network of patients."""
        other = copy.copy(self)
        other._checkpoint, other._network = checkpoint, network.to(self._reader.device)
        other._reader = self._reader_of(checkpoint)
        return other

    def _reader_of(self, checkpoint: Checkpoint) -> Reader:
        device = torch.device(self._request.device) if self._request.device else processes.device()
        room = batch_tokens(self._request.max_tokens, device)
        return Reader.of(checkpoint, layer=LAYER, dtype=self._request.dtype, max_tokens=room, device=device)

    def table_by_itself(self, part: np.ndarray, show: Callable[[int], object]) -> pa.Table:
        """Return the rows of the file for some patients."""
        self._methods.prepare()
        self._learn_spread()
        return self.table(part, show)

    def obs_of_patients(self) -> pd.DataFrame:
        """Return the columns of a cell of each patient: labels are alike in all of them."""
        return self._cells.obs.iloc[[int(self._tokens_of(patient)[0]) for patient in self._patients]]

    def _tokens_of(self, patient: int) -> np.ndarray:
        return self._read.cell_rows[self._read.bags.cells_of(np.array([patient]))]

    def passes(self) -> np.ndarray:
        """Return how often the encoder is run for each patient's cells."""
        return np.array([self._passes_of(patient, {}) for patient in self._patients])

    def _passes_of(self, patient: int, worth: dict[str, int]) -> int:
        lengths = self._cells.lengths[self._tokens_of(patient)]
        n_genes = lengths - 2 * self._cells.vocabulary.has_cls
        each = {method: len(lengths) * worth.get(method, 1) for method in (*_DERIVED, "attention")}
        each |= {method: int(n_genes.sum()) for method in OPERATORS}
        least = 2 + 2 * self._request.integration.first_steps
        each["integrated_gradients"] = len(lengths) * worth.get("integrated_gradients", least)
        return len(lengths) + sum(each[method] for method in self._request.methods)

    def costs(self) -> np.ndarray:
        """Return the tokens that are read for each patient."""
        mean = [self._cells.lengths[self._tokens_of(patient)].mean() for patient in self._patients]
        return np.array(
            [
                int(self._passes_of(patient, _PASSES_OF) * length)
                for patient, length in zip(self._patients, mean, strict=True)
            ]
        )

    def describe(self) -> dict[str, Any]:
        """Return what makes two explanations of patients the same."""
        request = self._request
        digest = hashlib.sha256("\n".join(map(str, self._read.patients[self._patients])).encode())
        return {
            "family": "patients",
            "measure": self._answer.described,
            "target": self._answer.target.name,
            "contrast": request.contrast_name,
            "states": list(self._answer.names),
            "methods": request.settings(),
            "unit": "gene" if request.sets is None else "set",
            **self._methods.describe(),
            "donor": self._columns["patient"],
            "obs": ["n_expressing", *(["of_cell"] if "attention" in request.methods else []), *request.obs],
            "n_cells": len(self._patients),
            "seed": request.seed,
            "dtype": request.dtype,
            "columns": self._columns,
            "checkpoint": self._checkpoint.fingerprint,
            "network": self._network_digest,
            "cells": self._cells.fingerprint,
            "patients": digest.hexdigest(),
        }

    def prepare(self) -> dict[str, Any]:
        """Read places of reference cells, and see how good the network is where patients have labels."""
        self._methods.prepare()
        self._learn_spread()
        how_good = processes.agreed(self._how_good)
        return {"how_good": how_good}

    def _learn_spread(self) -> None:
        """Learn how far the numbers of patients differ, which completeness is compared with."""

        def spread() -> np.ndarray:
            patients = (self.patient(int(number)) for number in self._patients)
            value_PS = np.stack([self.values(patient, patient.vector_ND[None])[0] for patient in patients])
            return np.asarray(value_PS.std(0, ddof=1))

        if "integrated_gradients" in self._request.methods and len(self._patients) > 1:
            self._spread_S = processes.agreed(spread)

    def _how_good(self) -> dict[str, Any] | None:
        labels = labels_in(self._answer.target, self.obs_of_patients())
        if labels is None or not (known := ~np.isnan(labels).any(axis=1)).any():
            return None
        meanings = []
        for patient in self._patients[known]:
            of_patient = self.patient(patient)
            with torch.no_grad():
                outputs_1K = self._network(of_patient.bags(of_patient.vector_ND[None])).outputs_PK.double()
            split = outputs_1K.split([target.n_outputs for target in self._network.targets], dim=-1)
            meanings.append(self._answer.target.meaning(split[self._answer.number]).cpu().numpy())
        unit, what = replicates(None, int(known.sum()))
        scored = of_target(self._answer.target, labels[known], np.concatenate(meanings), unit)
        return scored | {"replicates": "patients" if what == "rows" else what}

    @property
    def n_cells(self) -> np.ndarray:
        """Cells of each patient that is explained."""
        return self._read.bags.lengths[self._patients]

    @property
    def unit_names(self) -> Sequence[str]:
        """Of genes, or sets of them, by number."""
        return self._methods.unit_names

    def patient_of(self, row: int) -> Patient:
        """Return one of the patients that are explained, with the vectors of its cells."""
        return self.patient(int(self._patients[row]))

    def patient(self, number: int, show: Callable[[int], object] = lambda n: None) -> Patient:
        """Return a patient, by its number in the run's reading, with the vectors of its cells."""
        rows = self._tokens_of(number)
        tokens = [self._cells[int(row)] for row in rows]
        views = [unchanged(cell, self._cells.vocabulary, self._vector) for cell in tokens]
        vector_ND = torch.from_numpy(ask(self._reader, self._vector, views, show=show)).to(self._reader.device).float()
        types_N = self._read.bags.types_N[self._read.bags.cells_of(np.array([number]))]
        name = str(self._read.patients[number])
        return Patient(name, tokens, self._cells.cell_names[rows], types_N, vector_ND)

    def values(self, patient: Patient, vectors_BND: Tensor) -> np.ndarray:
        """Return the numbers of versions of a patient, (B, S)."""
        with torch.no_grad():
            values_BS = self._answer(self._network(patient.bags(vectors_BND)).outputs_PK)
        return values_BS.double().cpu().numpy()

    def table(self, part: np.ndarray, show: Callable[[int], object] = lambda n: None) -> pa.Table:
        """Return the rows of some patients: of each its methods, of each of those its genes and states."""
        return pa.concat_tables(
            [table for number in self._patients[part] for table in self._rows_of(int(number), show)]
        ).combine_chunks()

    def _rows_of(self, number: int, show: Callable[[int], object]) -> Iterator[pa.Table]:
        patient = self.patient(number, show)
        before_S = self.values(patient, patient.vector_ND[None])[0]
        further = {"n_expressing": pa.int64()}
        further |= {"of_cell": pa.string()} if "attention" in self._request.methods else {}
        first = int(self._tokens_of(number)[0])
        carried = {name: pa.array(self._cells.obs[name].iloc[[first]])[0] for name in self._request.obs}
        units, n_expressing = self.units(patient)
        names = [self._methods.unit_names[unit] for unit in units]
        for method in self._request.methods:
            gap_S, of_units = None, Units(genes=names, others={"n_expressing": n_expressing.tolist()})
            if method == "attention":
                value_US = self._weights(patient)
                of_units = Units(others={"of_cell": [str(name) for name in patient.cell_names]})
                show(len(patient.tokens))
            elif method in OPERATORS:
                value_US = self._occluded(patient, units, self._methods.operator(method), before_S, show)
            else:
                value_US, gap_S = self._derived(patient, units, method, show)
            yield unit_rows(
                of_units,
                value_US,
                self._answer.names,
                before_S,
                row=patient.name,
                donor=patient.name,
                method=method,
                exact=method in OPERATORS,
                gap_S=gap_S,
                further=further,
                obs=carried,
            )

    def units(self, patient: Patient) -> tuple[np.ndarray, np.ndarray]:
        """Return the genes, or sets, that stand in a patient's cells, and in how many."""
        n_U = np.zeros(len(self._methods.unit_names), dtype=np.int64)
        for places in self._places(patient):
            n_U[list(places)] += 1
        units = np.flatnonzero(n_U)
        return units, n_U[units]

    def _places(self, patient: Patient) -> list[dict[int, np.ndarray]]:
        """Return, of each cell, where the genes of each unit that it has stand; none of a unit that is all it has."""
        return [self._methods.places_of_units(tokens) for tokens in patient.tokens]

    def _occluded(
        self,
        patient: Patient,
        units: np.ndarray,
        operator: Alter,
        before_S: np.ndarray,
        show: Callable[[int], object],
    ) -> np.ndarray:
        """Return what the patient's numbers lose without each unit in all cells, (U, S)."""
        return before_S - self.without(patient, units[:, None], operator, show)

    def without(
        self,
        patient: Patient,
        groups: Sequence[np.ndarray] | np.ndarray,
        operator: Alter,
        show: Callable[[int], object],
    ) -> np.ndarray:
        """Return the patient's numbers without each of some groups of units, in all cells, (groups, S)."""
        places = self._places(patient)
        views = [unchanged(cell, self._cells.vocabulary, self._vector) for cell in patient.tokens]
        at_once = max(1, _NUMBERS_AT_ONCE // patient.vector_ND.numel())
        found = []
        for start in range(0, len(groups), at_once):
            some = groups[start : start + at_once]
            altered = [
                (i, cell, operator(views[cell], of_group))
                for cell, of_cell in enumerate(places)
                for i, group in enumerate(some)
                if len(of_group := _places_of(group, of_cell))
            ]
            vectors_BND = patient.vector_ND.repeat(len(some), 1, 1)
            if altered:
                vectors = ask(self._reader, self._vector, (view for *_, view in altered), show=show)
                rows, cells = (torch.tensor([of[k] for of in altered], device=vectors_BND.device) for k in (0, 1))
                vectors_BND[rows, cells] = torch.from_numpy(vectors).to(vectors_BND)
            found.append(self.values(patient, vectors_BND))
        return np.concatenate(found)

    def slopes(self, patient: Patient) -> Tensor:
        """Return the slope of each number by each cell's vector, (N, D, S)."""
        return slopes_by_vector(self._said_of(patient), patient.vector_ND)

    def _said_of(self, patient: Patient) -> OfVectors:
        """Return the patient's numbers, (S,), as a function of its cells' vectors, (N, D)."""
        return lambda vector_ND: self._answer(self._network(patient.bags(vector_ND[None])).outputs_PK)[0]

    def _derived(
        self, patient: Patient, units: np.ndarray, method: str, show: Callable[[int], object]
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return what each unit adds, summed over cells, (U, S); and by how much integrated gradients miss, (S,)."""
        vocabulary, names, gap_S = self._cells.vocabulary, self._answer.names, None
        if method == "integrated_gradients":
            reader = dataclasses.replace(self._reader, dtype="float32")
            way = PatientWay.of(reader, self._vector, patient.tokens, vocabulary, self._said_of(patient), show)
            [integral] = integrate(way, self._request.integration, spread_S=self._spread_S)
            value_VS, gap_S = integral.value_GS, integral.gap_S
        else:
            value_VS = np.zeros((len(vocabulary.gene_ids), len(names)))
            for tokens, slope_DS in zip(patient.tokens, self.slopes(patient), strict=True):
                answer: Any = _AlongSlope(slope_DS, names, self._vector)
                if method == "first_order":
                    [of_cell] = first_order(self._reader, answer, [tokens], vocabulary)
                else:
                    [of_cell] = gradients(self._reader, answer, [tokens], vocabulary, method)  # type: ignore[arg-type]
                genes = vocabulary.genes_of(tokens)
                value_VS[genes[genes >= 0]] += np.nan_to_num(of_cell.value_GS)
                show(1)
        return value_VS[units], gap_S

    def _weights(self, patient: Patient) -> np.ndarray:
        """Return how much each cell counts in its bag, (N, S): shares without sign, the same for all numbers."""
        with torch.no_grad():
            share_N = self._network(patient.bags(patient.vector_ND[None])).attention_N
        return np.repeat(share_N.double().cpu().numpy()[:, None], len(self._answer.names), axis=1)

    @property
    def columns_for_metadata(self) -> list[str]:
        """Columns that `further` needs."""
        return ["cell", "gene", "method", "gap"]

    def further(self, tables: Iterable[pa.Table]) -> dict[str, Any]:
        """Return names of genes, and how completely integrated gradients add up."""
        gaps = Gaps(self._request.integration.tolerance)
        genes: set[str | None] = set()
        for table in tables:
            genes.update(table["gene"].unique().to_pylist())
            gaps.add(table)
        vocabulary = self._cells.vocabulary
        names, position = vocabulary.gene_names, vocabulary.position
        named = {gene: names[position[gene]] for gene in sorted(g for g in genes if g is not None) if gene in position}
        return {"gene_names": named, **gaps.said()}


def _places_of(group: np.ndarray, of_cell: Mapping[int, np.ndarray]) -> np.ndarray:
    """Return where the units of a group stand in a cell, ascending."""
    there = [of_cell[unit] for unit in group.tolist() if unit in of_cell]
    if len(there) < 2:
        return there[0] if there else np.zeros(0, dtype=np.int64)
    return np.unique(np.concatenate(there))


def _refuse_learned(run: Path, patients: np.ndarray) -> None:
    """Raise if the run learned from some of the patients; of a folder without a table of them nothing is known."""
    table = run / "patients.tsv"
    if not table.exists():
        return
    learned = set(pd.read_csv(table, sep="\t", usecols=["patient"], dtype=str)["patient"])
    refuse_seen(np.array([str(patient) in learned for patient in patients], dtype=bool), patients, "patients", str(run))
