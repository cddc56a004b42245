"""Integrated gradients along the way from a baseline to an input, and the test that they add up to the difference.

How much an input adds is its mean derivative along the way times how far it goes. Derivatives are taken in the middle
of equal pieces; a row whose attributions miss the difference of its ends gets three times as many pieces, whose middles
are new but for every third, so nothing is computed twice: 18, 54, 162, 486.

Of the rules that were tried on fine-tuned networks this takes the fewest passes (benchmarks/RESULTS.md). What a token
adds rises steeply on a short stretch inside the way, where points of Gauss–Legendre and Clenshaw–Curtis, which crowd at
the ends, are thin: with 54 middles all of 150 cells were within 1 %, with 54 points of Gauss–Legendre 92 to 98 %.
Doubling keeps nothing. Halving the pieces that miss most, as `adaptive_integrals` does for networks of few bends,
bounds the error of every piece, which takes twice as many points as the sum needs.

Shapes: R rows (cells, samples), I points on their ways, G inputs of a row (genes), S numbers explained.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor

from geneformer_repro.errors import InputError

Rule: TypeAlias = Literal["midpoint", "gauss_legendre"]
_OF_SPREAD = 0.1
"""A row whose ends hardly differ need not add up more exactly than to a share of how much rows differ."""


@dataclass(frozen=True, kw_only=True)
class Integration:
    """How attributions are summed along a way, and when they are good enough."""

    rule: Rule = "midpoint"
    """Middles of equal pieces, or Gauss–Legendre points, of which none are kept when there are to be more."""
    first_steps: int = 18
    """Points that every row gets."""
    most_steps: int = 512
    """Points that no row gets more of."""
    tolerance: float = 0.01
    """By how much attributions may miss the difference of the ends, as a share of it, or of a tenth of the standard
    deviation over rows where that is more."""

    def __post_init__(self) -> None:
        if self.rule not in get_args(Rule):
            raise InputError(f"rule must be one of {', '.join(map(repr, get_args(Rule)))}, found {self.rule!r}.")
        if not 1 <= self.first_steps <= self.most_steps:
            raise InputError(
                f"first_steps must be at least 1 and at most most_steps, found {self.first_steps} and "
                f"{self.most_steps}."
            )
        if not self.tolerance > 0:
            raise InputError(f"tolerance must be above 0, a share such as 0.01; found {self.tolerance}.")

    def points(self, steps: int) -> tuple[np.ndarray, np.ndarray, float]:
        """Return where on a way it is asked next, 0 to 1, with which weights, and by what earlier sums are multiplied.

        Parameters
        ----------
        steps
            `first_steps`, or three times as many as before.
        """
        if self.rule == "gauss_legendre":
            at_P, weight_P = np.polynomial.legendre.leggauss(steps)
            return (at_P + 1) / 2, weight_P / 2, 0.0
        piece_P = np.arange(steps)
        is_first = steps == self.first_steps
        new_P = piece_P if is_first else piece_P[piece_P % 3 != 1]  # the middle third has the middle of the whole
        return (new_P + 0.5) / steps, np.full(len(new_P), 1 / steps), 0.0 if is_first else 1 / 3


USUAL = Integration()


class Way(Protocol):
    """The ways of rows from their baselines (0) to themselves (1)."""

    def __len__(self) -> int:
        """How many rows."""

    def values(self, row_I: np.ndarray, at_I: np.ndarray) -> np.ndarray:
        """Return the numbers of rows at places on their ways, (I, S)."""

    def slopes(self, row_I: np.ndarray, at_I: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the number of each point, in any order, and what each input adds to the change there, (G, S)."""


class Integral(NamedTuple):
    """Integrated gradients of a row."""

    value_GS: np.ndarray
    start_S: np.ndarray
    """The numbers of its baseline."""
    end_S: np.ndarray
    """Those of the row."""
    gap_S: np.ndarray
    """By how much the values miss the difference, as a share; NaN where rows do not differ at all, infinite where a
    number is not finite."""
    steps: int


def integrate(
    way: Way,
    integration: Integration = USUAL,
    *,
    spread_S: np.ndarray | None = None,
    show: Callable[[int], object] = lambda n: None,
) -> list[Integral]:
    """Return integrated gradients of every row, with as many points as it needs.

    Parameters
    ----------
    way
        What is derived.
    integration
        The rule, and when it is good enough.
    spread_S
        Standard deviation of each number over rows; default over these.
    show
        Called with the number of rows that are done.

    References
    ----------
    Sundararajan, Taly & Yan, ICML 2017, "Axiomatic attribution for deep networks".
    """
    every = np.arange(len(way))
    start_RS, end_RS = (way.values(every, np.full(len(every), at)) for at in (0.0, 1.0))
    if spread_S is None:
        spread_S = end_RS.std(0, ddof=1) if len(every) > 1 else np.zeros(end_RS.shape[1])
    scale_RS = np.maximum(np.abs(end_RS - start_RS), _OF_SPREAD * np.where(np.isfinite(spread_S), spread_S, 0))
    found: dict[int, Integral] = {}
    sums: dict[int, np.ndarray] = {}
    left, steps = every, integration.first_steps
    while len(left):
        _add_points(way, integration, steps, left, sums)
        for row in left.tolist():
            miss_S = np.abs(sums[row].sum(0) - (end_RS[row] - start_RS[row]))
            gap_S = _gaps(miss_S, scale_RS[row])
            if 3 * steps > integration.most_steps or not (gap_S > integration.tolerance).any():
                found[row] = Integral(sums.pop(row), start_RS[row], end_RS[row], gap_S, steps)
        show(len(left) - len(sums))
        left, steps = np.array(sorted(sums), dtype=np.int64), 3 * steps
    return [found[row] for row in every.tolist()]


def _gaps(miss_S: np.ndarray, scale_S: np.ndarray) -> np.ndarray:
    """Return misses as shares of scales; NaN of a scale of 0, infinite where something is not finite."""
    is_finite_S = np.isfinite(miss_S) & np.isfinite(scale_S)
    otherwise_S = np.where(is_finite_S, np.nan, np.inf)
    return np.divide(miss_S, scale_S, out=otherwise_S, where=is_finite_S & (scale_S > 0))


def _add_points(way: Way, integration: Integration, steps: int, rows: np.ndarray, sums: dict[int, np.ndarray]) -> None:
    at_P, weight_P, kept = integration.points(steps)
    for row in sums:
        sums[row] *= kept
    row_I, at_I, weight_I = np.repeat(rows, len(at_P)), np.tile(at_P, len(rows)), np.tile(weight_P, len(rows))
    for i, slope_GS in way.slopes(row_I, at_I):
        sums[int(row_I[i])] = sums.get(int(row_I[i]), 0.0) + weight_I[i] * slope_GS


@dataclass(frozen=True, eq=False)
class StraightWay:
    """Straight ways between two points of any function of numbers.

    Parameters
    ----------
    function
        Takes (I, G) and returns (I, S), differentiable.
    start_RG, end_RG
        Baselines and inputs; one baseline may serve all.
    at_once
        Points that go through the function together.
    """

    function: Callable[[Tensor], Tensor]
    start_RG: Tensor
    end_RG: Tensor
    at_once: int = 256

    def __len__(self) -> int:
        return len(self.end_RG)

    def values(self, row_I: np.ndarray, at_I: np.ndarray) -> np.ndarray:
        """Return the function at places on the ways, (I, S)."""
        with torch.no_grad():
            return np.concatenate(
                [self.function(there).double().numpy(force=True) for there, _ in self._places(row_I, at_I)]
            )

    def slopes(self, row_I: np.ndarray, at_I: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the number of each point, and what each input adds to the change there, (G, S)."""
        number = itertools.count()
        for there, whole in self._places(row_I, at_I):
            with torch.enable_grad():
                totals = self.function(there.requires_grad_()).sum(0).unbind()
                by_state = [
                    torch.autograd.grad(total, there, retain_graph=total is not totals[-1])[0] for total in totals
                ]
            along_IGS = (torch.stack(by_state, dim=-1) * whole[..., None]).double().numpy(force=True)
            yield from zip(itertools.islice(number, len(along_IGS)), along_IGS, strict=True)

    def _places(self, row_I: np.ndarray, at_I: np.ndarray) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield places on ways, some at a time, and how far each input goes on the whole way."""
        start_RG = self.start_RG.expand_as(self.end_RG)
        for rows, at in zip(*(_cut(of, self.at_once) for of in (row_I, at_I)), strict=True):
            whole = self.end_RG[rows] - start_RG[rows]
            yield torch.lerp(start_RG[rows], self.end_RG[rows], torch.from_numpy(at).to(whole)[:, None]), whole


def _cut(of_I: np.ndarray, at_once: int) -> Sequence[np.ndarray]:
    return [of_I[first : first + at_once] for first in range(0, len(of_I), at_once)]
