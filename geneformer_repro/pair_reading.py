"""Pairs to a network over pairs and back: batches, forecasts, and how an output changes with each gene and character.

A batch names its pairs by the samples and drugs in it, each of which it holds once; matrices of pairs × genes are made
nowhere but for derivatives, some pairs at a time.

Shapes: S samples, D drugs, P pairs; G genes, T positions of a SMILES, E length of a character's vector, F columns of
other inputs, K outputs.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from geneformer_repro.batching import end_to_end
from geneformer_repro.drugs import Drugs
from geneformer_repro.errors import InputError
from geneformer_repro.expression import ExpressionInputs
from geneformer_repro.pair_networks import PairNetwork, Side
from geneformer_repro.reading import MAX_TOKENS, batches_of, evaluating
from geneformer_repro.tokenizer.dataset import TokenizedDataset

_SAMPLES_AT_ONCE, _DRUGS_AT_ONCE, _PAIRS_AT_ONCE = 1024, 256, 8192
_DERIVED_AT_ONCE = 256
"""Pairs × genes that derivatives need, 6 MB of 6,000 genes."""
_FIRST_PIECES, _SHORTEST_PIECE = 8, 2.0**-12
_RESOLUTION = 5e-7
"""Of a forecast in float32."""


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
    """Of its drug in a sample all of whose genes are at the mean of the training samples."""
    gap_P: np.ndarray
    """By how much contributions miss the difference, as a share of it: the test of completeness."""


def integrated_gradients(
    network: PairNetwork, sides: PairSides, pairs_P2: np.ndarray, *, tolerance: float = 1e-3
) -> IntegratedGradients:
    """Return how much each gene contributes to a forecast: the mean derivative on the way there from mean expression.

    The way is cut into 8 pieces, and each again in two until what its middle says of it is the difference of its ends,
    as far as `tolerance` wants: a network of ReLUs has bends, at which rules of evenly spread points are slow (with 512
    of them sums are still off by up to 0.4 %).

    Parameters
    ----------
    network, sides, pairs_P2
        As for `pair_gradients`.
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
    parts = [_integrated(network, sides, some, tolerance) for some in _cut(pairs_P2, _DERIVED_AT_ONCE)]
    return IntegratedGradients(*(np.concatenate(of) for of in zip(*parts, strict=True)))


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
    assert sides.values_SG is not None
    pooled = None if sides.cells is None else sides._pooled(network, samples, device)
    return {
        "values": torch.from_numpy(sides.values_SG[samples]).to(device),
        "pooled": pooled,
        "drugs": torch.from_numpy(sides.drugs[drugs]).to(device),
    }


def _forecast(
    network: PairNetwork, values: Tensor, pooled: Tensor | None, drugs: Tensor, embedded: Tensor | None = None
) -> Tensor:
    """Return the forecast of each row, (P,), in the unit of the measure, without mean effects."""
    pairs = torch.arange(len(values), device=values.device)[:, None].expand(-1, 2)
    overall = torch.full((len(values),), network.target.mean, device=values.device)
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


def _integrated(
    network: PairNetwork, sides: PairSides, pairs_P2: np.ndarray, tolerance: float
) -> tuple[np.ndarray, ...]:
    with evaluating(network):
        way = _Way(network, **_unpacked(network, sides, pairs_P2))
        ends = np.linspace(0, 1, _FIRST_PIECES + 1)
        pair_I = np.repeat(np.arange(len(pairs_P2)), _FIRST_PIECES)
        pieces = _Pieces(pair_I, np.tile(ends[:-1], len(pairs_P2)), np.tile(ends[1:], len(pairs_P2)))
        before_I, after_I = way.forecasts(pieces.pair_I, pieces.low_I), way.forecasts(pieces.pair_I, pieces.high_I)
        baseline_P, forecast_P = before_I[::_FIRST_PIECES], after_I[_FIRST_PIECES - 1 :: _FIRST_PIECES]
        scale_P = np.maximum(np.abs(forecast_P - baseline_P), 1e-2 * network.target.sd)
        by_gene_PG = np.zeros(way.values.shape)
        while len(pieces.pair_I):
            middle_I, by_gene_IG = way.derived(pieces)
            miss_I = np.abs(by_gene_IG.sum(1) - (after_I - before_I))
            miss_I[miss_I < _RESOLUTION * np.abs(middle_I)] = 0  # no more than rounding
            cut_I = pieces.to_be_cut(miss_I, tolerance * scale_P / 2)
            np.add.at(by_gene_PG, pieces.pair_I[~cut_I], by_gene_IG[~cut_I])
            before_I = np.concatenate([before_I[cut_I], middle_I[cut_I]])
            after_I = np.concatenate([middle_I[cut_I], after_I[cut_I]])
            pieces = pieces.halved(cut_I)
    gap_P = np.abs(by_gene_PG.sum(1) - (forecast_P - baseline_P)) / scale_P
    return by_gene_PG.astype(np.float32), forecast_P, baseline_P, gap_P


class _Pieces(NamedTuple):
    """Pieces of the ways from mean expression (0) to samples (1): of which pair, from where to where."""

    pair_I: np.ndarray
    low_I: np.ndarray
    high_I: np.ndarray

    def to_be_cut(self, miss_I: np.ndarray, bound_P: np.ndarray) -> np.ndarray:
        """Say which pieces miss more than their share of what their pair may, if all of its pieces together do."""
        n_P = np.bincount(self.pair_I, minlength=len(bound_P))
        misses_P = np.bincount(self.pair_I, miss_I, minlength=len(bound_P)) > bound_P
        bound_I = bound_P[self.pair_I] / (2 * n_P[self.pair_I])
        return misses_P[self.pair_I] & (miss_I > bound_I) & (self.high_I - self.low_I > _SHORTEST_PIECE)

    def halved(self, rows: np.ndarray) -> "_Pieces":
        """Return some of them, each cut in two: all first halves, then all second ones."""
        pair, low, high = self.pair_I[rows], self.low_I[rows], self.high_I[rows]
        middle = (low + high) / 2
        return _Pieces(np.tile(pair, 2), np.concatenate([low, middle]), np.concatenate([middle, high]))


@dataclass(frozen=True, eq=False)
class _Way:
    """The straight ways from mean expression to the samples of some pairs."""

    network: PairNetwork
    values: Tensor
    pooled: Tensor | None
    drugs: Tensor

    def forecasts(self, pair_I: np.ndarray, at_I: np.ndarray) -> np.ndarray:
        """Return the forecasts of pairs at places on their ways."""
        return np.concatenate([self._at(*some)[1].double().numpy(force=True) for some in _cut_both(pair_I, at_I)])

    def derived(self, pieces: _Pieces) -> tuple[np.ndarray, np.ndarray]:
        """Return the forecast in the middle of each piece, and what each gene adds if its derivative there holds."""
        found = []
        for pair, at in _cut_both(pieces.pair_I, (pieces.low_I + pieces.high_I) / 2):
            with torch.enable_grad():
                there, forecast = self._at(pair, at)
                (gradient,) = torch.autograd.grad(forecast.sum(), there)
            added = gradient * self.values[torch.from_numpy(pair)]
            found.append((forecast.double().numpy(force=True), added.double().numpy(force=True)))
        middle_I, by_gene_IG = (np.concatenate(of) for of in zip(*found, strict=True))
        return middle_I, by_gene_IG * (pieces.high_I - pieces.low_I)[:, None]

    def _at(self, pair_I: np.ndarray, at_I: np.ndarray) -> tuple[Tensor, Tensor]:
        rows = torch.from_numpy(pair_I)
        at = torch.from_numpy(at_I).to(self.values)
        there = (at[:, None] * self.values[rows]).requires_grad_()
        pooled = None if self.pooled is None else self.pooled[rows]
        return there, _forecast(self.network, there, pooled, self.drugs[rows])


def _cut_both(pair_I: np.ndarray, at_I: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    return list(zip(_cut(pair_I, _DERIVED_AT_ONCE), _cut(at_I, _DERIVED_AT_ONCE), strict=True))
