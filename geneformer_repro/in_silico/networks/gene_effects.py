"""What both genes of a pair explain of its weight, whatever the pair.

Some genes are attended by all others, some attend to all: of attention with no effect of pairs at all, edges drawn as
curated ones are (prominent genes preferred) are found with an AUROC of 0.63 to 0.69, and of 0.48 to 0.49 once both
genes' effects are out. A fit that takes strong edges for gene effects leaks them into pairs without an edge: with edges
of one nat, 16 % of those have p < 0.05 over donors. So pairs far from the fit are left out and it is made again, twice.
Which pairs are far a donor of 40 cells cannot tell: with masks of its own 8 % remain, with those of all donors together
5 % (`tests/in_silico/test_simulated_networks.py`). It is the average product correction, in logs, with missing pairs
and weights. Each step of the fit is two products of the counts with a vector: 700 × 8,000 pairs take a second or so.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from geneformer_repro.errors import InputError

MASKED_BEYOND = 3 * 1.4826
"""Median absolute deviations beyond which a pair is left out of a refit: three standard deviations of normal ones."""
MOST_MASKED = 0.8
"""Share of a gene's pairs that may be left out. A hub's edges may be most of its pairs: at a half one simulated network
in six had 8 % of pairs without edge below 0.05."""
_MOST_STEPS = 10_000
_CONVERGED = 1e-14
"""Largest change in a step, relative to the spread of the weights, below which a fit has ended."""
_ROUNDING = 1e-9
_BINS = 2**16
_PAIRS_AT_ONCE = 2**17
"""Pairs of a block of sources: 5 MB while it is worked on."""


@dataclass(frozen=True)
class GeneEffects:
    """A weight of each pair, taken apart: ``mean + source[a] + target[b] + residual[a, b]``."""

    mean: float
    """Mean over the pairs that were fitted, weighted by their counts."""
    source: np.ndarray
    """Effect of each source, or key gene (alpha): how much more it is attended than others. NaN without a pair."""
    target: np.ndarray
    """Effect of each target, or query gene (beta). Weighted by the counts of their pairs both effects sum to 0."""
    residual: np.ndarray
    """What neither gene explains, sources × targets, float64: the weight of an edge. NaN where there is none."""
    far: np.ndarray
    """Pairs that are far from the last fit, sources × targets; to be left out of the fits of parts of the cells."""
    explained: float
    """Share of the weighted variance that mean and effects explain, at most 1; NaN where weights do not vary."""


def gene_effects(
    weights: np.ndarray,
    counts: np.ndarray,
    *,
    masked_refits: int = 2,
    masked: np.ndarray | None = None,
    overwrite_weights: bool = False,
) -> GeneEffects:
    """Fit an effect of each source and each target to the weights of pairs.

    Parameters
    ----------
    weights
        Sources × targets, for instance mean log lifts in bits. NaN where a pair is missing: too few cells have both
        genes, or they are one gene.
    counts
        Cells of each pair, same shape: how much it counts in the fit. A pair of 0 cells is missing too.
    masked_refits
        How often pairs further than 3 · 1.4826 median absolute deviations from the fit are left out and the fit is made
        again; 0 is the plain fit, into which strong edges leak. Of a gene that would keep less than a fifth of its
        pairs none is left out.
    masked
        Pairs to leave out from the start, same shape, instead of those far from this fit: for a donor `GeneEffects.far`
        of its state, as few cells do not tell which pairs are far.
    overwrite_weights
        What is left may be written into `weights`, which saves its memory.

    Returns
    -------
    The effects, and what is left.

    Raises
    ------
    InputError
        Shapes differ, no pair has a weight, a weight is infinite, or a count is negative.

    Notes
    -----
    Weighted least squares by alternating means. Where pairs fall apart into groups that share no gene, effects are
    determined within each group only; residuals are always.

    References
    ----------
    Dunn et al., Bioinformatics 24, 333 (2008), "average product correction".

    Examples
    --------
    >>> import numpy as np
    >>> from geneformer_repro.in_silico.networks.gene_effects import gene_effects
    >>> source, target = np.array([[0.5], [-0.5], [0.0]]), np.array([1.0, 2.0, 3.0, 2.0])
    >>> weights = source + target
    >>> weights[0, 0] = np.nan
    >>> effects = gene_effects(weights, np.full((3, 4), 20))
    >>> np.allclose(effects.source - effects.source[2], source[:, 0])
    True
    >>> float(np.nanmax(np.abs(effects.residual))) < 1e-12
    True
    """
    _require_pairs(weights, counts, masked)
    fit = _Fit(weights, counts)
    fitted: np.ndarray = fit.present if masked is None else np.greater(fit.present, masked)
    for i in range(n_fits := 1 + (masked_refits if masked is None else 0)):
        raw_source, raw_target = fit.of_pairs(fitted)
        if i == n_fits - 1:
            mean, source, target = fit.centred(raw_source, raw_target, fitted)
            source, target = np.where(fitted.any(1), source, np.nan), np.where(fitted.any(0), target, np.nan)
        far = fit.far(raw_source, raw_target, out=None if fitted is fit.present else fitted)
        if i < n_fits - 1:
            fitted = np.greater(fit.present, far, out=far)
    explained = fit.explained(mean, source, target)
    left = fit.residual(mean, source, target, out=weights if overwrite_weights else None)
    return GeneEffects(mean=mean, source=source, target=target, residual=left, far=far, explained=explained)


def _require_pairs(weights: np.ndarray, counts: np.ndarray, masked: np.ndarray | None) -> None:
    if weights.ndim != 2 or weights.shape != counts.shape:
        raise InputError(
            f"Gene effects are fitted to weights and counts of sources × targets, found {weights.shape} and "
            f"{counts.shape}. Give both of the same pairs."
        )
    # minimum and maximum, since whole arrays of truth values add up
    if max(np.nanmax(weights, initial=0), -np.nanmin(weights, initial=0)) == np.inf or counts.min(initial=0) < 0:
        raise InputError("A weight is infinite or a count negative. Leave a pair without cells NaN.")
    present = _present(weights, counts)
    if masked is not None:
        present[masked] = False
    if not present.any():
        raise InputError(
            "No pair has a weight, so there is nothing to fit. Take more cells, or lower min_cells: a pair is missing "
            "where fewer cells have both genes."
        )


def _present(weights: np.ndarray, counts: np.ndarray) -> np.ndarray:
    present = np.isnan(weights)
    np.logical_not(present, out=present)
    present &= counts > 0
    return present


class _Fit:
    """Pairs that are fitted, a block of sources at a time: of all of them nothing is held twice but truth values."""

    def __init__(self, weights: np.ndarray, counts: np.ndarray) -> None:
        self._weights, self._counts = weights, counts
        self.present = _present(weights, counts)
        step = max(1, _PAIRS_AT_ONCE // max(1, weights.shape[1]))
        self._blocks = [slice(first, first + step) for first in range(0, len(weights), step)]

    def _pairs(self, rows: slice, fitted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return weights and counts of some sources, 0 for pairs that are not fitted."""
        chosen = fitted[rows]
        return np.where(chosen, self._weights[rows], 0.0), np.where(chosen, self._counts[rows], 0).astype(np.float64)

    def of_pairs(self, fitted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return effects of sources and targets; the mean is in both."""
        n_sources, n_targets = fitted.shape
        of_source, sum_source, source = np.zeros((3, n_sources))
        of_target, sum_target, target = np.zeros((3, n_targets))
        largest = 0.0
        for rows in self._blocks:
            weights, counts = self._pairs(rows, fitted)
            of_source[rows], sum_source[rows] = counts.sum(1), (counts * weights).sum(1)
            of_target, sum_target = of_target + counts.sum(0), sum_target + (counts * weights).sum(0)
            largest = max(largest, float(np.abs(weights).max(initial=0.0)))
        for _ in range(_MOST_STEPS):
            before, beside = source.copy(), np.zeros(n_targets)
            for rows in self._blocks:
                _, counts = self._pairs(rows, fitted)
                source[rows] = _ratio(sum_source[rows] - counts @ target, of_source[rows])
                beside += source[rows] @ counts
            target = _ratio(sum_target - beside, of_target)
            if np.abs(source - before).max() <= _CONVERGED * (largest or 1.0):
                break
        return source, target

    def far(self, source: np.ndarray, target: np.ndarray, *, out: np.ndarray | None = None) -> np.ndarray:
        """Return the pairs that are too far from a fit to be in the next, unless they are nearly all of a gene's."""

        def left() -> Iterator[np.ndarray]:
            return (self._left(rows, source, target)[self.present[rows]] for rows in self._blocks)

        middle = median_of(left)
        deviation = median_of(lambda: (np.abs(of_block - middle) for of_block in left()))
        nearest = _ROUNDING * max(float(np.abs(of_block).max(initial=0.0)) for of_block in left())
        beyond, far = max(MASKED_BEYOND * deviation, nearest), np.empty_like(self.present) if out is None else out
        for rows in self._blocks:
            with np.errstate(invalid="ignore"):  # NaN is not far
                far[rows] = self.present[rows] & (np.abs(self._left(rows, source, target)) > beyond)
        far[far.sum(1) > MOST_MASKED * self.present.sum(1)] = False
        far[:, far.sum(0) > MOST_MASKED * self.present.sum(0)] = False
        return far

    def _left(self, rows: slice, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        return self._weights[rows] - source[rows, None] - target

    def centred(
        self, source: np.ndarray, target: np.ndarray, fitted: np.ndarray
    ) -> tuple[float, np.ndarray, np.ndarray]:
        """Take the weighted means out of both effects."""
        of_source, of_target = np.zeros(len(source)), np.zeros(len(target))
        for rows in self._blocks:
            _, counts = self._pairs(rows, fitted)
            of_source[rows], of_target = counts.sum(1), of_target + counts.sum(0)
        mean_source, mean_target = of_source @ source / of_source.sum(), of_target @ target / of_target.sum()
        return float(mean_source + mean_target), source - mean_source, target - mean_target

    def residual(
        self, mean: float, source: np.ndarray, target: np.ndarray, *, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Return what is left of every pair; NaN where there is none, or one of its genes has no effect."""
        left = np.empty(self.present.shape) if out is None else out
        for rows in self._blocks:
            left[rows] = np.where(self.present[rows], self._left(rows, source + mean, target), np.nan)
        return left

    def explained(self, mean: float, source: np.ndarray, target: np.ndarray) -> float:
        """Return the share of the weighted variance that mean and effects explain."""
        n = total = square = left = 0.0
        middle = mean  # sums of squares around it keep their digits
        for rows in self._blocks:
            weights, counts = self._pairs(rows, self.present)
            around = np.where(self.present[rows], weights - middle, 0.0)
            n, total, square = n + counts.sum(), total + np.sum(counts * around), square + np.sum(counts * around**2)
            left += np.nansum(counts * self._left(rows, source + mean, target) ** 2)
        variance = square - total**2 / n
        return float(1 - left / variance) if variance > 0 else np.nan


def _ratio(total: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return np.divide(total, weight, out=np.zeros_like(total), where=weight > 0)


def median_of(blocks: Callable[[], Iterable[np.ndarray]]) -> float:
    """Return the median of values that come block by block, of which a few are in memory at a time.

    Values are counted in 65,536 bins between the least and the largest, and those of the bins with the middle ones are
    looked at, or counted again where they are still many.

    Parameters
    ----------
    blocks
        Gives the values anew each time; at least one of them, all finite.
    """
    ends = [(float(block.min()), float(block.max()), len(block)) for block in blocks() if len(block)]
    low, high = min(least for least, _, _ in ends), max(largest for _, largest, _ in ends)
    n = sum(n_block for _, _, n_block in ends)
    first, last = (n - 1) // 2, n // 2  # of those between low and high, the middle ones
    while low < high:
        counts = np.zeros(_BINS, dtype=np.int64)
        for block in blocks():
            counts += np.bincount(_bins(block, low, high), minlength=_BINS)
        up_to = np.cumsum(counts)
        of_first, of_last = np.searchsorted(up_to, [first, last], side="right")
        if of_first != of_last:
            largest = max(float(of_bin.max()) for of_bin in _in_bin(blocks(), low, high, of_first))
            return (largest + min(float(of_bin.min()) for of_bin in _in_bin(blocks(), low, high, of_last))) / 2
        n_within = counts[of_first]
        first, last = first - (up_to[of_first] - n_within), last - (up_to[of_first] - n_within)
        within = _in_bin(blocks(), low, high, of_first)
        if n_within <= _PAIRS_AT_ONCE:
            return float(np.partition(np.concatenate([*within]), [first, last])[[first, last]].mean())
        ends = [(float(of_bin.min()), float(of_bin.max()), len(of_bin)) for of_bin in within]
        low, high = min(least for least, _, _ in ends), max(largest for _, largest, _ in ends)
    return low


def _bins(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return the bin of each value between two ends; others are left out."""
    inside = values[(values >= low) & (values <= high)]
    return np.minimum((inside - low) * (_BINS / (high - low)), _BINS - 1).astype(np.int64)


def _in_bin(blocks: Iterable[np.ndarray], low: float, high: float, number: int) -> Iterator[np.ndarray]:
    """Yield the values of each block in a bin, if there are any."""
    for block in blocks:
        inside = block[(block >= low) & (block <= high)]
        of_bin = inside[_bins(inside, low, high) == number]
        if len(of_bin):
            yield of_bin
