"""How the forecast of a network over pairs changes with each gene of the sample and each character of the SMILES.

What stays of a pair is made once: of a sample explained by its genes, the drug's side, convolutions included.

Shapes: S samples, P pairs; G genes, T positions of a SMILES, E length of a character's vector, F columns of other
inputs.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from geneformer_repro.adaptive_integrals import integrate
from geneformer_repro.errors import InputError
from geneformer_repro.pair_networks import PairNetwork, Side
from geneformer_repro.pair_reading import PairSides, cut
from geneformer_repro.reading import evaluating

_DERIVED_AT_ONCE = 256
"""Pairs × genes that derivatives need, 6 MB of 6,000 genes."""


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
    parts = [_derived(network, sides, some) for some in cut(pairs_P2, _DERIVED_AT_ONCE)]
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

    Ways are cut as finely as they need, see `adaptive_integrals`.

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


def gradient_input(
    network: PairNetwork, sides: PairSides, pairs_P2: np.ndarray, *, baseline_SG: np.ndarray | None = None
) -> np.ndarray:
    """Return each gene's derivative times its distance from the baseline, (P, G), as `integrated_gradients`."""
    _require_genes(network)
    return _local(network, pairs_P2, lambda some: _GeneWays.of(network, sides, some, baseline_SG))


def gradient_input_of_characters(
    network: PairNetwork, sides: PairSides, pairs_P2: np.ndarray, baseline_E: np.ndarray
) -> np.ndarray:
    """Return the same of each position of a SMILES, (P, T), as `integrated_gradients_of_characters`."""
    return _local(network, pairs_P2, lambda some: _CharacterWays.of(network, sides, some, baseline_E))


def _local(network: PairNetwork, pairs_P2: np.ndarray, ways_of: Callable[[np.ndarray], "_PairWays"]) -> np.ndarray:
    with evaluating(network):
        parts = cut(pairs_P2, _DERIVED_AT_ONCE)
        return np.concatenate([ways_of(some).derived(np.arange(len(some)), np.ones(len(some)))[1] for some in parts])


def _integrated(
    network: PairNetwork, pairs_P2: np.ndarray, tolerance: float, ways_of: Callable[[np.ndarray], "_PairWays"]
) -> IntegratedGradients:
    found = []
    with evaluating(network):
        for some in cut(pairs_P2, _DERIVED_AT_ONCE):
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
    pooled = None if sides.cells is None else sides.vectors_of(network, samples, device)
    return {
        "values": None if values_SG is None else torch.from_numpy(values_SG[samples]).to(device),
        "pooled": pooled,
        "drugs": torch.from_numpy(sides.drugs[drugs]).to(device),
    }


def forecasts(network: PairNetwork, samples: Side, drugs: Side, pairs: Tensor) -> Tensor:
    """Return forecasts of pairs, (P,), in the unit of the measure, without mean effects."""
    overall = torch.full((len(pairs),), network.target.mean, device=pairs.device)
    return network.target.meaning(network.outputs(samples, drugs, pairs, overall))[:, 0]


def _derived(network: PairNetwork, sides: PairSides, pairs_P2: np.ndarray) -> tuple[np.ndarray, ...]:
    with evaluating(network):
        given = _unpacked(network, sides, pairs_P2)
        values = given["values"].requires_grad_()
        embedded = network.embedded(given["drugs"]).detach().requires_grad_()
        with torch.enable_grad():
            pairs = torch.arange(len(pairs_P2), device=values.device)[:, None].expand(-1, 2)
            of_samples = network.of_samples(values, given["pooled"])
            total = forecasts(network, of_samples, network.of_drugs(given["drugs"], embedded), pairs).sum()
            by_gene, by_drug = torch.autograd.grad(total, [values, embedded])
    return tuple(tensor.detach().float().cpu().numpy() for tensor in (by_gene, by_drug, embedded))


@dataclass(frozen=True, eq=False)
class _PairWays(ABC):
    """Straight ways of some pairs, from a baseline to what is read of their samples, or of their drugs."""

    network: PairNetwork
    start: Tensor
    """(P, …)"""
    share: Tensor
    """What is read less the baseline, (P, …)."""
    other: Side
    """What is made of the side that stays as it is, made once; a row a pair."""
    beside: Tensor | None
    """Of the side that changes, what does not: vectors of the encoder, or ids of characters; a row a pair."""

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
        rows = torch.from_numpy(way_I).to(self.share.device)
        at = torch.from_numpy(at_I).to(self.share).view(-1, *[1] * (self.share.ndim - 1))
        there = (self.start[rows] + at * self.share[rows]).requires_grad_()
        return there, self._forecast(there, None if self.beside is None else self.beside[rows], rows)

    @abstractmethod
    def _forecast(self, there: Tensor, beside: Tensor | None, rows: Tensor) -> Tensor:
        """Return forecasts where what changes has come to, and what goes with it stays."""


class _GeneWays(_PairWays):
    """From a baseline to the expression of samples."""

    @classmethod
    def of(
        cls, network: PairNetwork, sides: PairSides, pairs_P2: np.ndarray, baseline_SG: np.ndarray | None
    ) -> "_GeneWays":
        given = _unpacked(network, sides, pairs_P2)
        values = given["values"]
        start = torch.zeros_like(values)
        if baseline_SG is not None:
            start = torch.from_numpy(baseline_SG[pairs_P2[:, 0]]).to(values)
        return cls(network, start, values - start, network.of_drugs(given["drugs"]), given["pooled"])

    def _forecast(self, there: Tensor, beside: Tensor | None, rows: Tensor) -> Tensor:
        pairs = torch.stack([torch.arange(len(rows), device=rows.device), rows], dim=1)
        return forecasts(self.network, self.network.of_samples(there, beside), self.other, pairs)


class _CharacterWays(_PairWays):
    """From a baseline to the vectors of characters."""

    @classmethod
    def of(
        cls, network: PairNetwork, sides: PairSides, pairs_P2: np.ndarray, baseline_E: np.ndarray
    ) -> "_CharacterWays":
        given = _unpacked(network, sides, pairs_P2)
        embedded = network.embedded(given["drugs"])
        there = (given["drugs"] > 0)[..., None]
        start = torch.where(there, torch.from_numpy(baseline_E).to(embedded), embedded)
        of_samples = network.of_samples(given["values"], given["pooled"])
        return cls(network, start, embedded - start, of_samples, given["drugs"])

    def _forecast(self, there: Tensor, beside: Tensor | None, rows: Tensor) -> Tensor:
        assert beside is not None
        pairs = torch.stack([rows, torch.arange(len(rows), device=rows.device)], dim=1)
        return forecasts(self.network, self.other, self.network.of_drugs(beside, there), pairs)


def _cut_both(way_I: np.ndarray, at_I: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    return list(zip(cut(way_I, _DERIVED_AT_ONCE), cut(at_I, _DERIVED_AT_ONCE), strict=True))
