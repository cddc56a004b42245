"""Pairs to a network over pairs and back: batches, forecasts, and how an output changes with each gene and character.

A batch names its pairs by the samples and drugs in it, each of which it holds once; matrices of pairs × genes are made
nowhere but for derivatives, some pairs at a time.

Shapes: S samples, D drugs, P pairs; G genes, T positions of a SMILES, E length of a character's vector, F columns of
other inputs, K outputs.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
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
from geneformer_repro.path_integrals import integrate
from geneformer_repro.reading import MAX_TOKENS, batches_of, evaluating
from geneformer_repro.sample_reading import matrix_inputs, opened_samples
from geneformer_repro.tokenizer.dataset import TokenizedDataset
from geneformer_repro.tokenizer.measures import Values

_SAMPLES_AT_ONCE, _DRUGS_AT_ONCE, _PAIRS_AT_ONCE = 1024, 256, 8192
_DERIVED_AT_ONCE = 256
"""Pairs × genes that derivatives need, 6 MB of 6,000 genes."""


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
            pooled_SW = self._pooled(network, np.arange(len(self.cells)), device).cpu()
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
                [
                    network.of_drugs(torch.from_numpy(self.drugs[some]).to(device))
                    for some in _cut(drugs, _DRUGS_AT_ONCE)
                ]
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
            return _cut(samples, _SAMPLES_AT_ONCE)
        return _cut(samples, max(1, MAX_TOKENS // int(self.cells.lengths[samples].max())))

    def _side_of_samples(self, network: PairNetwork, samples: np.ndarray, device: torch.device) -> Side:
        values = None if self.values_SG is None else torch.from_numpy(self.values_SG[samples]).to(device)
        pooled = None if self.cells is None else self._pooled(network, samples, device)
        return network.of_samples(values, pooled)

    def _pooled(self, network: PairNetwork, samples: np.ndarray, device: torch.device) -> Tensor:
        """Return the encoder's vectors of samples, in batches of a budget of tokens."""
        if self.pooled_SW is not None:
            return self.pooled_SW[torch.from_numpy(samples)].to(device)
        assert self.cells is not None
        pooled = torch.zeros(len(samples), network.bert.config.hidden_size, device=device)
        for batch in batches_of(self.cells, samples, MAX_TOKENS):
            pooled[torch.from_numpy(batch.rows).to(device)] = network.pooled(**batch.to(device).inputs)
        return pooled


def _cut(rows: np.ndarray, at_once: int) -> list[np.ndarray]:
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


# Derivatives, for explanations


class PairGradients(NamedTuple):
    """How the forecast of each pair, in the unit of the measure, changes with what is read."""

    by_gene_PG: np.ndarray
    """By each gene, per standard deviation of it; columns as in ``network.scale``."""
    by_drug: np.ndarray
    """By each number of a character's vector, (P, T, E), or by each column, (P, F)."""
    embedded: np.ndarray
    """These vectors, or columns: gradient × input, summed over E, tells what a character contributes to first order."""


def pair_gradients(network: PairNetwork, sides: PairSides, pairs_P2: np.ndarray) -> PairGradients:
    """Return the derivatives of forecasts by what is read of samples and drugs.

    A network that learns a residual is derived without the mean effects, which neither genes nor characters change.

    Parameters
    ----------
    network
        One that reads expression.
    sides
        Its samples and drugs.
    pairs_P2
        Numbers of sample and drug.

    Raises
    ------
    InputError
        The network reads tokens alone.
    """
    _require_genes(network)
    parts = [_derived(network, sides, some) for some in _cut(pairs_P2, _DERIVED_AT_ONCE)]
    return PairGradients(*(np.concatenate(of) for of in zip(*parts, strict=True)))


class IntegratedGradients(NamedTuple):
    """What each gene contributes to the difference of a forecast from that of a sample of mean expression."""

    by_gene_PG: np.ndarray
    """In the unit of the measure; columns as in ``network.scale``."""
    forecast_P: np.ndarray
    """Of each pair, without mean effects."""
    baseline_P: np.ndarray
    """Of its drug in a sample all of whose genes are at the baseline."""
    gap_P: np.ndarray
    """By how much contributions miss the difference, as a share of it: the test of completeness."""


def integrated_gradients(
    network: PairNetwork,
    sides: PairSides,
    pairs_P2: np.ndarray,
    *,
    baseline_SG: np.ndarray | None = None,
    tolerance: float = 1e-3,
) -> IntegratedGradients:
    """Return how much each gene contributes to a forecast: the mean derivative on the way there from mean expression.

    Ways are cut as finely as they need, see `path_integrals`.

    Parameters
    ----------
    network, sides, pairs_P2
        As for `pair_gradients`.
    baseline_SG
        Where the way of each sample begins, on the network's scale; default at 0, the mean of the training samples.
    tolerance
        Of the sum, relative to the difference, or to a hundredth of the labels' standard deviation where that is more.

    Raises
    ------
    InputError
        The network reads tokens alone.

    References
    ----------
    Sundararajan, Taly & Yan, ICML 2017, "Axiomatic attribution for deep networks".
    """
    _require_genes(network)
    return _integrated(network, pairs_P2, tolerance, lambda some: _GeneWays.of(network, sides, some, baseline_SG))


def integrated_gradients_of_characters(
    network: PairNetwork, sides: PairSides, pairs_P2: np.ndarray, baseline_E: np.ndarray, *, tolerance: float = 1e-3
) -> IntegratedGradients:
    """Return how much each position of a SMILES contributes to a forecast, (P, T); 0 behind the end.

    The way leads from a SMILES of the same length whose characters all have the vector `baseline_E`, (E,), while the
    sample stays as it is.

    Parameters
    ----------
    network
        One that reads characters.
    sides, pairs_P2, tolerance
        As for `integrated_gradients`.
    baseline_E
        A vector in place of each character's.
    """
    return _integrated(network, pairs_P2, tolerance, lambda some: _CharacterWays.of(network, sides, some, baseline_E))


def _integrated(
    network: PairNetwork, pairs_P2: np.ndarray, tolerance: float, ways_of: Callable[[np.ndarray], "_PairWays"]
) -> IntegratedGradients:
    found = []
    with evaluating(network):
        for some in _cut(pairs_P2, _DERIVED_AT_ONCE):
            ways = ways_of(some)
            least = 1e-2 * network.target.sd
            found.append(integrate(ways, len(some), ways.n_units, least=least, tolerance=tolerance))
    return IntegratedGradients(*(np.concatenate(of) for of in zip(*found, strict=True)))


def _require_genes(network: PairNetwork) -> None:
    if not network.shape.reads_expression:
        raise InputError(
            "Derivatives by gene are of networks that read expression, and this one reads tokens alone. Set "
            "network.expression_path, or explain by leaving genes out."
        )


def _unpacked(network: PairNetwork, sides: PairSides, pairs_P2: np.ndarray) -> dict[str, Any]:
    """Return values, vectors of samples and drugs, a row a pair."""
    device = next(network.parameters()).device
    samples, drugs = pairs_P2.T
    values_SG = sides.values_SG
    pooled = None if sides.cells is None else sides._pooled(network, samples, device)
    return {
        "values": None if values_SG is None else torch.from_numpy(values_SG[samples]).to(device),
        "pooled": pooled,
        "drugs": torch.from_numpy(sides.drugs[drugs]).to(device),
    }


def _forecast(
    network: PairNetwork, values: Tensor | None, pooled: Tensor | None, drugs: Tensor, embedded: Tensor | None = None
) -> Tensor:
    """Return the forecast of each row, (P,), in the unit of the measure, without mean effects."""
    pairs = torch.arange(len(drugs), device=drugs.device)[:, None].expand(-1, 2)
    overall = torch.full((len(drugs),), network.target.mean, device=drugs.device)
    outputs_PK = network.outputs(network.of_samples(values, pooled), network.of_drugs(drugs, embedded), pairs, overall)
    return network.target.meaning(outputs_PK)[:, 0]


def _derived(network: PairNetwork, sides: PairSides, pairs_P2: np.ndarray) -> tuple[np.ndarray, ...]:
    with evaluating(network):
        given = _unpacked(network, sides, pairs_P2)
        values = given["values"].requires_grad_()
        embedded = network.embedded(given["drugs"]).detach().requires_grad_()
        with torch.enable_grad():
            total = _forecast(network, values, given["pooled"], given["drugs"], embedded).sum()
            by_gene, by_drug = torch.autograd.grad(total, [values, embedded])
    return tuple(tensor.detach().float().cpu().numpy() for tensor in (by_gene, by_drug, embedded))


@dataclass(frozen=True, eq=False)
class _PairWays:
    """Straight ways of some pairs, from a baseline to what is read of their samples, or of their drugs."""

    network: PairNetwork
    given: dict[str, Any]
    start: Tensor
    """(P, …)"""
    share: Tensor
    """What is read less the baseline, (P, …)."""

    @property
    def n_units(self) -> int:
        """Genes, or positions."""
        return int(self.share.shape[1])

    def values(self, way_I: np.ndarray, at_I: np.ndarray) -> np.ndarray:
        """Return the forecasts of pairs at places on their ways."""
        return np.concatenate([self._at(*some)[1].double().numpy(force=True) for some in _cut_both(way_I, at_I)])

    def derived(self, way_I: np.ndarray, at_I: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return forecasts there, and what each unit adds if its derivative there holds for all of the way."""
        found = []
        for way, at in _cut_both(way_I, at_I):
            with torch.enable_grad():
                there, forecast = self._at(way, at)
                (gradient,) = torch.autograd.grad(forecast.sum(), there)
            added = (gradient * self.share[torch.from_numpy(way)]).reshape(len(way), self.n_units, -1).sum(2)
            found.append((forecast.double().numpy(force=True), added.double().numpy(force=True)))
        value_I, by_unit_IG = (np.concatenate(of) for of in zip(*found, strict=True))
        return value_I, by_unit_IG

    def _at(self, way_I: np.ndarray, at_I: np.ndarray) -> tuple[Tensor, Tensor]:
        rows = torch.from_numpy(way_I)
        at = torch.from_numpy(at_I).to(self.share).view(-1, *[1] * (self.share.ndim - 1))
        there = (self.start[rows] + at * self.share[rows]).requires_grad_()
        return there, self._forecast(there, {name: None if of is None else of[rows] for name, of in self.given.items()})

    def _forecast(self, there: Tensor, given: Mapping[str, Any]) -> Tensor:
        raise NotImplementedError


class _GeneWays(_PairWays):
    """From a baseline to the expression of samples."""

    @classmethod
    def of(
        cls, network: PairNetwork, sides: PairSides, pairs_P2: np.ndarray, baseline_SG: np.ndarray | None
    ) -> "_GeneWays":
        given = _unpacked(network, sides, pairs_P2)
        values = given.pop("values")
        start = torch.zeros_like(values)
        if baseline_SG is not None:
            start = torch.from_numpy(baseline_SG[pairs_P2[:, 0]]).to(values)
        return cls(network, given, start, values - start)

    def _forecast(self, there: Tensor, given: Mapping[str, Any]) -> Tensor:
        return _forecast(self.network, there, given["pooled"], given["drugs"])


class _CharacterWays(_PairWays):
    """From a baseline to the vectors of characters."""

    @classmethod
    def of(
        cls, network: PairNetwork, sides: PairSides, pairs_P2: np.ndarray, baseline_E: np.ndarray
    ) -> "_CharacterWays":
        given = _unpacked(network, sides, pairs_P2)
        embedded = network.embedded(given["drugs"]).detach()
        there = (given["drugs"] > 0)[..., None]
        start = torch.where(there, torch.from_numpy(baseline_E).to(embedded), embedded)
        return cls(network, given, start, embedded - start)

    def _forecast(self, there: Tensor, given: Mapping[str, Any]) -> Tensor:
        return _forecast(self.network, given["values"], given["pooled"], given["drugs"], there)


def _cut_both(way_I: np.ndarray, at_I: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    return list(zip(_cut(way_I, _DERIVED_AT_ONCE), _cut(at_I, _DERIVED_AT_ONCE), strict=True))
