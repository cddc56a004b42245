"""Rows that are patients: bags of cells whose vectors are given, a small network that pools them, and their pseudobulk.

The label is one a patient, so a split is one of patients, and what a patient's cells say is asked of a network that has
seen none of them. Networks are small and trained on all patients of a batch at once, on every process alike: a cohort
has tens to thousands of patients, for which sharing would cost more than it saves.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.sparse import csr_matrix

import geneformer_repro.processes as processes
from geneformer_repro.bags import BagNetwork, Bags, BagShape
from geneformer_repro.errors import InputError
from geneformer_repro.finetuning.baselines import PatientInputs
from geneformer_repro.finetuning.kinds import read_labels
from geneformer_repro.finetuning.networks import SELECTION, scores_by_target, trained_once
from geneformer_repro.finetuning.problems.problem import Problem, as_lines
from geneformer_repro.finetuning.splits import Split
from geneformer_repro.patient_reading import bagged, column_of, patients_of, read_patients, types_of
from geneformer_repro.progress import progress
from geneformer_repro.targets import Target
from geneformer_repro.tokenizer.counts import log_normalise
from geneformer_repro.tokenizer.labels import as_labels
from geneformer_repro.training.log import write_log

logger = logging.getLogger(__name__)

SAID = 3
"""Columns of what a network says of a cell before what it says of its patient: patient, cell, attention."""


@dataclass(frozen=True, eq=False)
class PatientProblem(Problem):
    """Labelled patients, and their cells."""

    patients: np.ndarray
    """Name of each."""
    targets: tuple[Target, ...]
    labels: np.ndarray
    obs: pd.DataFrame
    """Columns that a split asks for, a row a patient."""
    bags: Bags
    """The cells, patient after patient; without vectors until `with_vectors`."""
    cell_rows: np.ndarray
    """Which cell of those that were given each is."""
    cell_names: np.ndarray
    cell_types: tuple[str, ...]
    """What the types of the bags are called; empty where none are given."""
    group: str | None = None
    row = "patient"

    @property
    def names(self) -> np.ndarray:
        """Name of each patient."""
        return self.patients

    @property
    def groups(self) -> np.ndarray | None:
        """Group of each patient, such as the hospital."""
        return None if self.group is None else as_labels(self.obs[self.group]).to_numpy()

    def select(self, rows: np.ndarray) -> PatientProblem:
        """Return the problem of some of the patients."""
        cells = self.bags.cells_of(rows)
        return dataclasses.replace(
            self,
            patients=self.patients[rows],
            labels=self.labels[rows],
            obs=self.obs.iloc[rows],
            bags=self.bags.select(rows),
            cell_rows=self.cell_rows[cells],
            cell_names=self.cell_names[cells],
        )

    def with_vectors(self, vectors: np.ndarray) -> PatientProblem:
        """Return the same with the vectors of the cells, in their order here."""
        vectors_ND = torch.from_numpy(np.ascontiguousarray(vectors, dtype=np.float32))
        return dataclasses.replace(self, bags=dataclasses.replace(self.bags, vectors_ND=vectors_ND))

    def content(self) -> Iterator[bytes]:
        """Yield which cells of which types the patients have, and their groups."""
        yield from map(as_lines, (self.names, self.cell_names, np.array(self.cell_types, dtype=object)))
        if self.groups is not None:
            yield as_lines(self.groups)
        for numbers in (self.bags.lengths, self.bags.types_N):
            yield np.ascontiguousarray(numbers, dtype=np.int64).tobytes()

    def train(
        self, start: Any, config: Any, split: Split, *, pretrained: bool = True, work: Path, step: str
    ) -> tuple[BagNetwork, pd.DataFrame]:
        """Train a network from random weights, as all of these begin, on the vectors as they are."""
        targets = self.head_targets(split.train)
        processes.agreed(lambda: work.mkdir(parents=True, exist_ok=True))

        def network() -> BagNetwork:
            with torch.random.fork_rng():
                torch.manual_seed(config.seed)
                return BagNetwork(self._shape(config), targets)

        def train_here() -> tuple[BagNetwork, pd.DataFrame]:
            with torch.random.fork_rng():  # of dropout
                torch.manual_seed(config.seed)
                return _train(network(), self, config, split, work=work, step=step)

        trained, history = trained_once(work, train_here, like=network)
        with torch.inference_mode():
            outputs_PK = trained.eval()(self.bags.select(split.train).to(trained.mean_D.device)).outputs_PK
            trained.fit_targets(outputs_PK.cpu(), torch.tensor(self.labels[split.train], dtype=torch.float32))
        return trained, history

    def _shape(self, config: Any) -> BagShape:
        return BagShape(
            pooling=config.pooling,
            n_inputs=self.bags.vectors_ND.shape[1],
            hidden=config.network.hidden,
            attention=config.network.attention,
            dropout=config.network.dropout,
            cell_types=self.cell_types if config.pooling == "cell_type" else (),
        )

    def ask(self, network: BagNetwork, rows: np.ndarray) -> np.ndarray:
        """Return, for each cell of some patients, which patient and cell it is, its attention, what its patient is."""
        bags = self.bags.select(rows)
        with torch.inference_mode():
            pooled = network.eval()(bags.to(network.mean_D.device))
            meaning = network.meaning(pooled.outputs_PK).cpu().numpy()
        columns = [np.repeat(rows, bags.lengths), self.bags.cells_of(rows), pooled.attention_N.double().cpu().numpy()]
        return np.column_stack([*columns, np.repeat(meaning, bags.lengths, axis=0)])

    def predictions(self, said: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return what is said of each patient: that of the first of its cells, since all say the same."""
        firsts = np.append(0, np.cumsum(self.bags.lengths[rows])[:-1])
        return said[firsts, SAID:]

    def features(self, start: Any, config: Any, counts: csr_matrix | None) -> PatientInputs:
        """Gather the mean vector, the pseudobulk, which is what `counts` are here, and the shares of cell types."""
        of_patients = np.repeat(np.arange(len(self.patients)), self.bags.lengths)
        known = self.bags.types_N >= 0
        n_of_type = np.zeros((len(self.patients), len(self.cell_types)))
        np.add.at(n_of_type, (of_patients[known], self.bags.types_N[known]), 1)
        shares = n_of_type / np.maximum(n_of_type.sum(axis=1, keepdims=True), 1)
        means = membership(self.bags.lengths) @ self.bags.vectors_ND.numpy() / self.bags.lengths[:, None]
        return PatientInputs(embedding=means, pseudobulk=counts, composition=shares if self.cell_types else None)


def membership(lengths: np.ndarray) -> csr_matrix:
    """Return ones where a cell (column) is a patient's (row), of cells that lie patient after patient."""
    n_cells = int(lengths.sum())
    return csr_matrix((np.ones(n_cells), np.arange(n_cells), np.append(0, np.cumsum(lengths))))


def pseudobulk(expression: csr_matrix, lengths: np.ndarray, *, are_counts: bool) -> csr_matrix:
    """Return one profile a patient: log1p of the summed counts per 10,000; of what is no count the mean.

    Parameters
    ----------
    expression
        Of the cells, patient after patient.
    lengths
        Cells of each patient.
    are_counts
        Whether they may be summed.
    """
    summed = csr_matrix(membership(lengths) @ expression)
    return log_normalise(summed) if are_counts else csr_matrix(summed.multiply(1 / lengths[:, None]))


# Reading


def labelled_patients(obs: pd.DataFrame, cell_names: np.ndarray, usable: np.ndarray, config: Any) -> PatientProblem:
    """Read patients and their labels from the columns of their cells.

    Parameters
    ----------
    obs, cell_names
        Of all cells.
    usable
        Which cells have a vector.
    config
        Has the columns: ``patient``, ``targets``, ``regression``, ``survival``, ``cell_type``, and those of its
        ``follow_up`` and ``split``.

    Raises
    ------
    InputError
        A column is missing, says several things of one patient, has one class only, or no cell of a patient is usable.
    """
    patient_of = patients_of(obs, config.patient)
    of_patients = _OfPatients(obs, patient_of)
    kinds = {"regression": config.regression, "survival": config.survival, "follow_up": config.follow_up}
    read = [read_labels(name, of_patients.__getitem__, **kinds, row="patient") for name in config.targets]
    labels = np.column_stack([values for _, values in read])
    is_labelled = ~np.isnan(labels).all(axis=1)
    if not is_labelled.all():
        logger.info("%s: %d patients have no label; left out.", ", ".join(config.targets), (~is_labelled).sum())
    patients = of_patients.names[is_labelled]
    number_of = pd.Index(patients).get_indexer(patient_of)
    types, type_of = types_of(obs, config.cell_type, (number_of >= 0) & usable)
    bags, order = bagged(patients, number_of, usable, type_of)
    asked = dict.fromkeys([*([config.split.group] if config.split.group else []), *config.split.balance])
    return PatientProblem(
        patients,
        tuple(target for target, _ in read),
        labels[is_labelled],
        pd.DataFrame({name: of_patients[name] for name in asked}, index=of_patients.names).loc[patients],
        bags,
        order,
        cell_names[order],
        types,
        config.split.group,
    )


def new_patients(
    obs: pd.DataFrame,
    cell_names: np.ndarray,
    usable: np.ndarray,
    network: BagNetwork,
    *,
    patient: str,
    cell_type: str | None,
) -> PatientProblem:
    """Return patients without labels, for a network to be asked about.

    Parameters
    ----------
    obs, cell_names, usable
        As for `labelled_patients`.
    network
        Whose targets, and cell types where it tells them apart, these are.
    patient, cell_type
        Columns of `obs`; the second may be None where the network tells no types apart.

    Raises
    ------
    InputError
        A column is missing, or no cell of a patient is usable.
    """
    read, targets = read_patients(obs, usable, network, patient=patient, cell_type=cell_type), network.targets
    labels_PS = np.full((len(read.patients), sum(target.n_labels for target in targets)), np.nan)
    rows, names = pd.DataFrame(index=read.patients), cell_names[read.cell_rows]
    return PatientProblem(read.patients, targets, labels_PS, rows, read.bags, read.cell_rows, names, read.cell_types)


class _OfPatients:
    """Columns of cells that say one thing of each patient."""

    def __init__(self, obs: pd.DataFrame, patient_of: pd.Series) -> None:
        self._obs, self._patient_of = obs, patient_of.to_numpy()
        self.names = np.array(sorted(set(patient_of.dropna())), dtype=object)
        self._rows = np.flatnonzero(~patient_of.isna())

    def __getitem__(self, name: str) -> pd.Series:
        """Return a column, a value a patient; raise if a patient has several."""
        column = column_of(self._obs, name)
        said = as_labels(column).fillna("(none)").iloc[self._rows].groupby(self._patient_of[self._rows])
        several = said.unique()[said.nunique() > 1]
        if len(several):
            values = ", ".join(map(repr, several.iloc[0][:3]))
            raise InputError(
                f"obs column {name!r} says several things of patient {several.index[0]!r} ({values}), one of "
                f"{len(several)} such patients. A label of patients is the same in all of a patient's cells; name "
                "another column, or another column of patients."
            )
        first_rows = pd.Series(self._rows).groupby(self._patient_of[self._rows]).first().loc[self.names]
        return column.iloc[first_rows.to_numpy()].set_axis(self.names)


# Training


def _train(
    network: BagNetwork, problem: PatientProblem, config: Any, split: Split, *, work: Path, step: str
) -> tuple[BagNetwork, pd.DataFrame]:
    """Train on batches of patients; keep the epoch that is best on the validation patients, or the last."""
    training, device = config.training, processes.device()
    n_epochs, n_patients = max(1, round(training.epochs)), len(split.train)
    bags = problem.bags.select(split.train).to(device)
    labels_PS = torch.tensor(problem.labels[split.train], dtype=torch.float32, device=device)
    network.to(device).standardise(bags.vectors_ND)
    optimizer = torch.optim.AdamW(network.parameters(), training.learning_rate, weight_decay=training.weight_decay)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_epochs)
    rng, history, best, of_all = np.random.default_rng(config.seed), [], _Best(), network.losses(labels_PS)
    with progress(step, total=n_epochs, unit="epochs", quiet=not processes.is_first()) as bar:
        for epoch in range(1, n_epochs + 1):
            network.train()
            summed = 0.0
            for rows in _batches(n_patients, training.batch_size, rng):
                is_all = len(rows) == n_patients
                batch = bags if is_all else bags.select(rows)
                loss = (of_all if is_all else network.losses(labels_PS[rows]))(network(batch).outputs_PK)
                optimizer.zero_grad()
                (loss / len(rows)).backward()
                optimizer.step()
                summed += loss.item()
            scheduler.step()
            entry = {"epoch": float(epoch), "loss": summed / n_patients}
            if len(split.validation):
                entry |= {f"eval_{name}": value for name, value in _scores(network, problem, split.validation).items()}
                best.see(network, entry[f"eval_{SELECTION}"])
            history.append(entry)
            bar.update()
    best.restore(network)
    processes.agreed(lambda: write_log(work, history))
    return network.eval(), pd.DataFrame(history)


def _batches(n_patients: int, size: int | None, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Deal patients into batches of at most `size`; None is one batch of all, in their order."""
    if size is None or size >= n_patients:
        yield np.arange(n_patients)
        return
    order = rng.permutation(n_patients)
    yield from (order[start : start + size] for start in range(0, n_patients, size))


def _scores(network: BagNetwork, problem: PatientProblem, rows: np.ndarray) -> dict[str, float]:
    predictions = problem.predictions(problem.ask(network, rows), rows)
    return scores_by_target(network.targets, problem.labels[rows], torch.from_numpy(predictions))


class _Best:
    """The weights of the epoch that is best on the validation patients; the first of equals."""

    def __init__(self) -> None:
        self._score = -np.inf
        self._weights: dict[str, Any] | None = None

    def see(self, network: BagNetwork, score: float) -> None:
        """Keep the weights if the score is higher than any before."""
        if score > self._score:
            self._score, self._weights = score, copy.deepcopy(network.state_dict())

    def restore(self, network: BagNetwork) -> None:
        """Give the network the best weights, if any were seen."""
        if self._weights is not None:
            network.load_state_dict(self._weights)
