"""What a cell's gene would do, told from first order and from the passes made so far.

Effects in one cell are a hundred times those in another (a classifier that is sure moves little), so all is measured in
units of the cell: a value is its scale times (a level of the cell + an effect of the gene), plus a slope of the cell
times the first-order estimate. Levels, slopes and effects are drawn to their means as far as they are noisy, with
variances by maximum likelihood (empirical Bayes), so a slope is 0 where first order is worth nothing, and an effect is
0 where a gene was hardly measured. On screens of a small classifier the spread of what this leaves within a gene is a
quarter of that of the values; first order with one slope leaves two thirds (`benchmarks/sampled_screens.py`).

Estimates stay right when this model is wrong (`sampling`): it only decides how many passes they take.

Shapes: P pairs of cell and gene, C cells, G genes.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from scipy.special import digamma

_STEPS = 15
_PRIOR_FREEDOM = 4.0
"""How many measured values the scale that first order tells of a cell is worth."""
_FEWEST_VALUES, _FEWEST_CELLS = 3, 5
"""With fewer measured values a cell's spread is not looked at; with fewer such cells none is."""
_FEWEST_GENES, _SHARE_OF_GENES = 10, 0.1
"""With fewer genes that have two values, the variance of their effects is taken to be a tenth of the noise."""
_LEAST = 1e-9


@dataclass(frozen=True)
class Pairs:
    """Pairs of a cell and a gene it expresses; those of a gene follow each other, by donor and place.

    Parameters
    ----------
    gene_P, cell_P
        Numbers of the gene, ascending, and of the cell.
    estimate_P
        First-order estimates; 0 where there are none.
    weight_P
        Weights of the pairs in the mean of their gene, which add up to 1: of donors alike, of cells in a donor alike.
    n_cells
        Cells of the screen; some may have no pair here.
    """

    gene_P: np.ndarray
    cell_P: np.ndarray
    estimate_P: np.ndarray
    weight_P: np.ndarray
    n_cells: int

    @property
    def n_genes(self) -> int:
        """How many genes there are."""
        return int(self.gene_P[-1]) + 1

    def by_gene(self, values_P: np.ndarray) -> np.ndarray:
        """Add up over the pairs of each gene, (G,)."""
        return np.bincount(self.gene_P, values_P, self.n_genes)

    def means(self, values_P: np.ndarray) -> np.ndarray:
        """Return the mean of each gene, (G,)."""
        return self.by_gene(self.weight_P * values_P)

    def by_cell(self, values_P: np.ndarray) -> np.ndarray:
        """Add up over the pairs of each cell, (C,)."""
        return np.bincount(self.cell_P, values_P, self.n_cells)


class Fitted(NamedTuple):
    """The model, and what it says of every pair."""

    value_P: np.ndarray
    """What is expected of each pair."""
    scale_C: np.ndarray
    """Size of effects in each cell."""
    noise: float
    """Variance of a value around what is expected, in units of the cell's scale squared."""
    gene_variance_G: np.ndarray
    """Variance of what is not known of each gene's effect, likewise."""
    level_C: np.ndarray
    """What is expected in each cell of a gene of which nothing is known, and first order says 0."""
    slope_C: np.ndarray
    """What is expected more for each unit of the first-order estimate."""


def cell_scales(pairs: Pairs, exact_P: np.ndarray, known_P: np.ndarray) -> np.ndarray:
    """Return the size of effects in each cell, (C,): the spread of estimates in it, corrected by measured values.

    The spread of measured values is regressed on that of estimates over cells (logarithms, slope within 0 to 1.5), and
    each cell's own drawn to the line as if that were four values. Without measured values it is that of the estimates.

    Parameters
    ----------
    pairs
        Pairs.
    exact_P
        Values; what is not known is not read.
    known_P
        Which are known.
    """
    n_C = np.maximum(pairs.by_cell(np.ones(len(known_P))), 1)
    from_mean_P = pairs.estimate_P - (pairs.by_cell(pairs.estimate_P) / n_C)[pairs.cell_P]
    scale_C = np.sqrt(pairs.by_cell(from_mean_P**2) / n_C)
    if not scale_C.any():
        scale_C = np.ones(pairs.n_cells)
    scale_C = np.maximum(scale_C, 1e-6 * scale_C.mean())
    log_scale_C = np.log(scale_C) - np.log(scale_C).mean()
    cell_K, value_K = pairs.cell_P[known_P], exact_P[known_P]
    n_C = np.bincount(cell_K, minlength=pairs.n_cells)
    mean_C = np.bincount(cell_K, value_K, pairs.n_cells) / np.maximum(n_C, 1)
    squares_C = np.bincount(cell_K, (value_K - mean_C[cell_K]) ** 2, pairs.n_cells)
    enough_C = (n_C >= _FEWEST_VALUES) & (squares_C > 0)
    if enough_C.sum() < _FEWEST_CELLS:
        return np.asarray(np.exp(log_scale_C))
    freedom = n_C[enough_C] - 1.0
    log_variance = np.log(squares_C[enough_C] / freedom) - digamma(freedom / 2) + np.log(freedom / 2)
    line = _line(2 * log_scale_C[enough_C], log_variance, freedom)
    prior_C = np.exp(line[0] + line[1] * 2 * log_scale_C)
    own_C = _PRIOR_FREEDOM + np.maximum(n_C - 1, 0)
    return np.asarray(np.sqrt((_PRIOR_FREEDOM * prior_C + squares_C) / own_C))


def _line(x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> tuple[float, float]:
    """Return level and slope of a weighted regression, the slope within 0 to 1.5."""
    mean_x, mean_y = np.average(x, weights=weight), np.average(y, weights=weight)
    spread = float(weight @ (x - mean_x) ** 2)
    slope = float(np.clip(weight @ ((x - mean_x) * (y - mean_y)) / spread, 0, 1.5)) if spread > 0 else 0.0
    return float(mean_y - slope * mean_x), slope


def fitted(pairs: Pairs, exact_P: np.ndarray, known_P: np.ndarray, *, with_genes: bool = True) -> Fitted:
    """Fit the model to the values that are known.

    Parameters
    ----------
    pairs, exact_P, known_P
        As of `cell_scales`; at least one is known.
    with_genes
        Whether genes have effects of their own; without, what is said of a gene does not depend on its own values.
    """
    scale_C = cell_scales(pairs, exact_P, known_P)
    gene_K, cell_K = pairs.gene_P[known_P], pairs.cell_P[known_P]
    y_K, x_K = (values_P[known_P] / scale_C[cell_K] for values_P in (exact_P, pairs.estimate_P))
    effect_G, gene_variance_G = np.zeros(pairs.n_genes), np.zeros(pairs.n_genes)
    n_G = np.bincount(gene_K, minlength=pairs.n_genes)
    noise = max(float(y_K.var()), _LEAST * float((y_K**2).mean()), np.finfo(float).tiny)
    spread_of_genes = noise / 2
    cells = _Cells.start(cell_K, x_K, y_K, noise, pairs.n_cells)
    for _ in range(_STEPS):
        cells = cells.updated(y_K - effect_G[gene_K], noise)
        rest_K = y_K - cells.level_C[cell_K] - cells.slope_C[cell_K] * x_K
        n_fitted = cells.n_fitted(noise)
        if with_genes:
            gene_variance_G = 1 / (n_G / noise + 1 / spread_of_genes)
            effect_G = np.bincount(gene_K, rest_K, pairs.n_genes) / noise * gene_variance_G
            n_fitted += float((n_G / noise * gene_variance_G).sum())
            spread_of_genes = max(_spread(effect_G**2 + gene_variance_G, n_G, noise), _LEAST * noise)
        rest_K = rest_K - effect_G[gene_K]
        n_free = max(len(y_K) - n_fitted, 0.2 * len(y_K), 1.0)
        noise = max(float(rest_K @ rest_K) / n_free, np.finfo(float).tiny)
    at_cell, at_gene = pairs.cell_P, pairs.gene_P
    value_P = scale_C[at_cell] * (cells.level_C[at_cell] + effect_G[at_gene])
    value_P = value_P + cells.slope_C[at_cell] * pairs.estimate_P
    return Fitted(value_P, scale_C, noise, gene_variance_G, scale_C * cells.level_C, cells.slope_C)


def _spread(squares_G: np.ndarray, n_G: np.ndarray, noise: float) -> float:
    """Return the variance over genes, from those with two values: one value tells no effect from noise."""
    tells_G = n_G >= 2
    return float(squares_G[tells_G].mean()) if tells_G.sum() >= _FEWEST_GENES else _SHARE_OF_GENES * noise


@dataclass(frozen=True)
class _Cells:
    """Levels and slopes of cells, drawn to their means over cells."""

    cell_K: np.ndarray
    x_K: np.ndarray
    n_C: np.ndarray
    sum_C: np.ndarray
    squares_C: np.ndarray
    level_C: np.ndarray
    slope_C: np.ndarray
    variance_C: tuple[np.ndarray, np.ndarray]
    """What is not known of level and slope."""
    spread: tuple[float, float]
    """Variance over cells of levels and of slopes."""

    @classmethod
    def start(cls, cell_K: np.ndarray, x_K: np.ndarray, y_K: np.ndarray, noise: float, n_cells: int) -> "_Cells":
        sums = [np.bincount(cell_K, of, n_cells) for of in (np.ones(len(x_K)), x_K, x_K**2)]
        square = max(float((x_K**2).mean()), np.finfo(float).tiny ** 0.5)
        slope = float(x_K @ y_K) / (square * len(x_K))
        nothing = (np.zeros(n_cells), np.zeros(n_cells))
        spread = (noise / 2, noise / 2 / square)
        n_C, sum_C, squares_C = sums
        level_C, slope_C = np.zeros(n_cells), np.full(n_cells, slope)
        return cls(cell_K, x_K, n_C, sum_C, squares_C, level_C, slope_C, nothing, spread)

    def updated(self, y_K: np.ndarray, noise: float) -> "_Cells":
        """Fit both again, given what they are to explain."""
        of_level, of_slope = self.spread
        mean_level, mean_slope = float(self.level_C.mean()), float(self.slope_C.mean())
        n_cells = len(self.n_C)
        level_level_C, level_slope_C = self.n_C / noise + 1 / of_level, self.sum_C / noise
        slope_slope_C = self.squares_C / noise + 1 / of_slope
        by_level_C = np.bincount(self.cell_K, y_K, n_cells) / noise + mean_level / of_level
        by_slope_C = np.bincount(self.cell_K, y_K * self.x_K, n_cells) / noise + mean_slope / of_slope
        determinant_C = level_level_C * slope_slope_C - level_slope_C**2
        level_C = (slope_slope_C * by_level_C - level_slope_C * by_slope_C) / determinant_C
        slope_C = (level_level_C * by_slope_C - level_slope_C * by_level_C) / determinant_C
        variance_C = (slope_slope_C / determinant_C, level_level_C / determinant_C)
        spreads = [
            float(((one_C - one_C.mean()) ** 2 + of_C).mean())
            for one_C, of_C in zip((level_C, slope_C), variance_C, strict=True)
        ]
        square = max(float(self.squares_C.sum()) / max(float(self.n_C.sum()), 1), np.finfo(float).tiny ** 0.5)
        spread = (max(spreads[0], _LEAST * noise), max(spreads[1], _LEAST * noise / square))
        return replace(self, level_C=level_C, slope_C=slope_C, variance_C=variance_C, spread=spread)

    def n_fitted(self, noise: float) -> float:
        """Return how many free parameters they are worth."""
        return float((self.n_C * self.variance_C[0] + self.squares_C * self.variance_C[1]).sum()) / noise
