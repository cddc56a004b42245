"""What both genes of a pair explain of its weight, whatever the pair.

Some genes are attended by all others, some attend to all: of attention with no effect of pairs at all, edges drawn as
curated ones are (prominent genes preferred) are found with an AUROC of 0.63 to 0.69, and of 0.48 to 0.49 once both
genes' effects are out. A fit that takes strong edges for gene effects leaks them into pairs without an edge: with edges
of one nat, 16 % of those have p < 0.05 over donors. So pairs far from the fit are left out and it is made again, twice.
Which pairs are far a donor of 40 cells cannot tell: with masks of its own 8 % remain, with those of all donors together
5 % (`tests/in_silico/test_simulated_networks.py`). It is the average product correction, in logs, with missing pairs
and weights. Each step of the fit is two products of the counts with a vector: 700 × 8,000 pairs take a second or so.
"""

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
    weights: np.ndarray, counts: np.ndarray, *, masked_refits: int = 2, masked: np.ndarray | None = None
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
    >>> from geneformer_repro.in_silico.gene_effects import gene_effects
    >>> source, target = np.array([[0.5], [-0.5], [0.0]]), np.array([1.0, 2.0, 3.0, 2.0])
    >>> weights = source + target
    >>> weights[0, 0] = np.nan
    >>> effects = gene_effects(weights, np.full((3, 4), 20))
    >>> np.allclose(effects.source - effects.source[2], source[:, 0])
    True
    >>> float(np.nanmax(np.abs(effects.residual))) < 1e-12
    True
    """
    _require_pairs(weights, counts)
    if masked is not None:
        _require_pairs(np.where(masked, np.nan, weights), counts)
        masked_refits = 0
    present = ~np.isnan(weights) & (counts > 0)
    weights = np.where(present, weights, 0.0)
    share = np.where(present, counts, 0).astype(np.float64)
    share /= share.sum()
    fitted = present if masked is None else present & ~masked
    for i in range(masked_refits + 1):
        source, target = _fit(weights, np.where(fitted, share, 0.0))
        residual = np.where(present, weights - source[:, None] - target, np.nan)
        far = _far(residual, present)
        if i < masked_refits:
            fitted = present & ~far
    mean, source, target = _centred(source, target, np.where(fitted, share, 0.0))
    total = np.sum(share * (weights - np.sum(share * weights)) ** 2)
    left = np.nansum(share * residual**2)
    return GeneEffects(
        mean=mean,
        source=np.where(fitted.any(1), source, np.nan),
        target=np.where(fitted.any(0), target, np.nan),
        residual=np.where(fitted.any(1)[:, None] & fitted.any(0), residual, np.nan),
        far=far,
        explained=float(1 - left / total) if total > 0 else np.nan,
    )


def _require_pairs(weights: np.ndarray, counts: np.ndarray) -> None:
    if weights.ndim != 2 or weights.shape != counts.shape:
        raise InputError(
            f"Gene effects are fitted to weights and counts of sources × targets, found {weights.shape} and "
            f"{counts.shape}. Give both of the same pairs."
        )
    if np.isinf(weights).any() or np.less(counts, 0).any():
        raise InputError("A weight is infinite or a count negative. Leave a pair without cells NaN.")
    if not np.any(~np.isnan(weights) & (counts > 0)):
        raise InputError(
            "No pair has a weight, so there is nothing to fit. Take more cells, or lower min_cells: a pair is missing "
            "where fewer cells have both genes."
        )


def _fit(weights: np.ndarray, share: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return effects of sources and targets; the mean is in both."""
    of_source, of_target = share.sum(1), share.sum(0)
    summed = share * weights
    sum_source, sum_target = summed.sum(1), summed.sum(0)
    converged = _CONVERGED * (np.abs(weights).max() or 1.0)
    source, target = np.zeros(len(of_source)), np.zeros(len(of_target))
    for _ in range(_MOST_STEPS):
        before = source
        source = _ratio(sum_source - share @ target, of_source)
        target = _ratio(sum_target - share.T @ source, of_target)
        if np.abs(source - before).max() <= converged:
            break
    return source, target


def _ratio(total: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return np.divide(total, weight, out=np.zeros_like(total), where=weight > 0)


def _far(residual: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Return the pairs that are too far from a fit to be in the next, unless they are nearly all of a gene's."""
    of_pairs = residual[present]
    middle = np.median(of_pairs)
    deviation = np.median(np.abs(of_pairs - middle))
    nearest = _ROUNDING * np.abs(of_pairs).max()
    far = present & (np.abs(np.where(present, residual, 0.0)) > max(MASKED_BEYOND * deviation, nearest))
    most_of_source = far.sum(1) > MOST_MASKED * present.sum(1)
    most_of_target = far.sum(0) > MOST_MASKED * present.sum(0)
    far[most_of_source] = False
    far[:, most_of_target] = False
    return far


def _centred(source: np.ndarray, target: np.ndarray, share: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Take the weighted means out of both effects."""
    share = share / share.sum()
    of_source, of_target = float(share.sum(1) @ source), float(share.sum(0) @ target)
    return of_source + of_target, source - of_source, target - of_target
