"""Pairs to a network over pairs and back: what is asked, batches, forecasts.

A batch names its pairs by the samples and drugs in it, each of which it holds once; matrices of pairs × genes are made
nowhere but for derivatives (`pair_derivatives`), some pairs at a time.

Shapes: S samples, D drugs, P pairs; G genes, T positions of a SMILES, E length of a character's vector, F columns of
other inputs, K outputs.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from torch import Tensor

from geneformer_repro.batching import end_to_end
from geneformer_repro.checkpoint import Checkpoint
from geneformer_repro.drugs import Drugs
from geneformer_repro.errors import InputError
from geneformer_repro.expression import ExpressionInputs
from geneformer_repro.pair_networks import PairNetwork, Side
from geneformer_repro.reading import MAX_TOKENS, batches_of, evaluating
from geneformer_repro.sample_reading import matrix_inputs, opened_samples
from geneformer_repro.tokenizer.dataset import TokenizedDataset
from geneformer_repro.tokenizer.measures import Values

_SAMPLES_AT_ONCE, _DRUGS_AT_ONCE, _PAIRS_AT_ONCE = 1024, 256, 8192


@dataclass(frozen=True, eq=False)
class PairSides:
    """Samples and drugs as a network reads them, each once.

    Parameters
    ----------
    values_SG
        Scaled expression, float32; None of a network that reads none.
    cells
        Tokens of the samples; None of a network that reads none.
    drugs
        Characters (D, T) int64, or columns (D, F) float32.
    pooled_SW
        The encoder's vectors, where it is frozen and they are the same at every step.
    """

    values_SG: np.ndarray | None
    cells: TokenizedDataset | None
    drugs: np.ndarray
    pooled_SW: Tensor | None = None

    @classmethod
    def of(
        cls,
        network: PairNetwork,
        inputs: ExpressionInputs | None,
        cells: TokenizedDataset | None,
        drugs: Drugs,
        vectors: pd.DataFrame | None = None,
    ) -> "PairSides":
        """Bring samples and drugs to the form of a network.

        Parameters
        ----------
        network
            Whose scales are used.
        inputs, cells
            Expression and tokens of the samples, in one order; what the network does not read may be None.
        drugs, vectors
            The drugs, and their vectors if these are read.

        Raises
        ------
        InputError
            Something that the network reads is not there.
        """
        for is_read, given, what in (
            (network.shape.reads_expression, inputs, "expression of genes"),
            (network.shape.reads_tokens, cells, "tokens"),
        ):
            if is_read and given is None:
                raise InputError(f"The network reads {what} of samples, and there are none. Give what it learned from.")
        values_SG = network.scaled(inputs) if network.shape.reads_expression and inputs is not None else None
        return cls(values_SG, cells if network.shape.reads_tokens else None, network.drugs(drugs, vectors))

    def with_pooled(self, network: PairNetwork) -> "PairSides":
        """Return the same with the encoder's vectors of all samples, which then are not made again."""
        assert self.cells is not None
        with evaluating(network) as device:
            pooled_SW = self.vectors_of(network, np.arange(len(self.cells)), device).cpu()
        return dataclasses.replace(self, pooled_SW=pooled_SW)

    def batch(self, pairs_P2: np.ndarray) -> dict[str, Any]:
        """Return what `PairNetwork.forward` takes of pairs, but for labels: each sample and drug once."""
        samples, sample_P = np.unique(pairs_P2[:, 0], return_inverse=True)
        drugs, drug_P = np.unique(pairs_P2[:, 1], return_inverse=True)
        batch = {"pairs": torch.from_numpy(np.stack([sample_P, drug_P], axis=1)), **self._samples(samples)}
        return batch | {"drugs": torch.from_numpy(self.drugs[drugs])}

    def _samples(self, samples: np.ndarray) -> dict[str, Any]:
        inputs: dict[str, Any] = {}
        if self.values_SG is not None:
            inputs["values"] = torch.from_numpy(self.values_SG[samples])
        if self.pooled_SW is not None:
            return inputs | {"pooled": self.pooled_SW[torch.from_numpy(samples)]}
        if self.cells is not None:
            inputs |= end_to_end([self.cells[i] for i in samples], self.cells.vocabulary).inputs
        return inputs

    def outputs(self, network: PairNetwork, pairs_P2: np.ndarray, naive_P: np.ndarray | None = None) -> Tensor:
        """Return the outputs of pairs, (P, K), on the CPU; each sample and drug goes through the network once.

        Parameters
        ----------
        network
            What is asked.
        pairs_P2
            Numbers of sample and drug.
        naive_P
            As `PairNetwork.outputs` takes it.
        """
        if not len(pairs_P2):
            return torch.zeros(0, network.head.n_outputs)
        samples, sample_P = np.unique(pairs_P2[:, 0], return_inverse=True)
        drugs, drug_P = np.unique(pairs_P2[:, 1], return_inverse=True)
        with evaluating(network) as device:
            of_samples = _joined([self._side_of_samples(network, some, device) for some in self._parts(samples)])
            of_drugs = _joined(
                [network.of_drugs(torch.from_numpy(self.drugs[some]).to(device)) for some in cut(drugs, _DRUGS_AT_ONCE)]
            )
            numbers_P2 = torch.from_numpy(np.stack([sample_P, drug_P], axis=1)).to(device)
            naive = None if naive_P is None else torch.from_numpy(naive_P).to(device, torch.float32)
            blocks = torch.arange(len(pairs_P2), device=device).split(_PAIRS_AT_ONCE)
            outputs = [
                network.outputs(of_samples, of_drugs, numbers_P2[block], None if naive is None else naive[block])
                for block in blocks
            ]
            return torch.cat(outputs).float().cpu()

    def _parts(self, samples: np.ndarray) -> list[np.ndarray]:
        """Cut samples, in their order, into parts that are read at once."""
        if self.cells is None or self.pooled_SW is not None:
            return cut(samples, _SAMPLES_AT_ONCE)
        return cut(samples, max(1, MAX_TOKENS // int(self.cells.lengths[samples].max())))

    def _side_of_samples(self, network: PairNetwork, samples: np.ndarray, device: torch.device) -> Side:
        values = None if self.values_SG is None else torch.from_numpy(self.values_SG[samples]).to(device)
        pooled = None if self.cells is None else self.vectors_of(network, samples, device)
        return network.of_samples(values, pooled)

    def vectors_of(self, network: PairNetwork, samples: np.ndarray, device: torch.device) -> Tensor:
        """Return the encoder's vectors of samples, in batches of a budget of tokens."""
        if self.pooled_SW is not None:
            return self.pooled_SW[torch.from_numpy(samples)].to(device)
        assert self.cells is not None
        pooled = torch.zeros(len(samples), network.bert.config.hidden_size, device=device)
        for batch in batches_of(self.cells, samples, MAX_TOKENS):
            pooled[torch.from_numpy(batch.rows).to(device)] = network.pooled(**batch.to(device).inputs)
        return pooled


def cut(rows: np.ndarray, at_once: int) -> list[np.ndarray]:
    """Cut rows, in their order, into blocks."""
    return [rows[start : start + at_once] for start in range(0, len(rows), at_once)]


def _joined(sides: Sequence[Side]) -> Side:
    """Lay parts of samples, or drugs, one after the other."""

    def many(of: Callable[[Side], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        return tuple(torch.cat(parts) for parts in zip(*map(of, sides), strict=True))

    there = [side.length_D for side in sides if side.length_D is not None]
    vectors = torch.cat([side.vectors for side in sides])
    return Side(vectors, many(lambda s: s.keys), many(lambda s: s.channels), torch.cat(there) if there else None)


class AskedPairs(NamedTuple):
    """Samples and drugs that a network is asked about."""

    names: np.ndarray
    """Of the samples."""
    drugs: Drugs
    sides: PairSides
    """Both, as the network reads them."""


def read_pairs(
    checkpoint: Checkpoint,
    samples: TokenizedDataset | AnnData | pd.DataFrame | str | Path,
    drugs: Drugs | pd.DataFrame | str | Path,
    *,
    values: Values | None = None,
    log2: bool = False,
    expression: AnnData | pd.DataFrame | str | Path | None = None,
    vectors: pd.DataFrame | None = None,
) -> AskedPairs:
    """Read samples and drugs as a network over pairs takes them; options are those of `predict_response`.

    Raises
    ------
    InputError
        The checkpoint is no such network, or what it reads is not given.
    """
    network = checkpoint.pair_network
    drugs = drugs if isinstance(drugs, Drugs) else Drugs.of_table(drugs)
    given = opened_samples(samples)
    cells = given if isinstance(given, TokenizedDataset) else None
    if cells is not None and network.shape.reads_tokens:
        checkpoint.require_matching(cells)
    matrix = (None if expression is None else opened_samples(expression)) if cells is not None else given
    names = None if cells is None else np.asarray(cells.cell_names, dtype=str)
    inputs = None
    if matrix is not None:
        learned = None if network.scale is None else network.scale.measure
        of_matrix, inputs = matrix_inputs(matrix, values or learned, log2)
        if names is None:
            names = of_matrix
        else:
            inputs = inputs.select(_places(of_matrix, names))
    assert names is not None
    return AskedPairs(names, drugs, PairSides.of(network, inputs, cells, drugs, vectors))


def all_pairs(n_samples: int, n_drugs: int) -> np.ndarray:
    """Return the numbers of sample and drug of every pair, sample by sample, (P, 2)."""
    return np.stack(np.divmod(np.arange(n_samples * n_drugs), n_drugs), axis=1)


def _places(there: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    place = {name: i for i, name in enumerate(there)}
    if lacking := [name for name in wanted if name not in place]:
        raise InputError(
            f"{len(lacking)} of {len(wanted)} samples with tokens have no expression (first: {lacking[0]!r}). Give "
            "both of the same samples."
        )
    return np.array([place[name] for name in wanted])
