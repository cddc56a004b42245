"""Attention without a model, and edges that were drawn as curated ones are: what a network must find, and must not.

200 genes, 30 of them factors, 240 cells of 6 donors. Prominent genes are
attended, detected and curated alike, so that with no effect of any pair (``beta`` 0) attention still ranks curated
edges first: AUROC 0.63 to 0.69 for its mean. What is left after place and both genes must then be 0.5.
"""

from dataclasses import dataclass

import numpy as np

N_GENES, N_FACTORS, N_CELLS, N_DONORS, N_EDGES = 200, 30, 240, 6, 360
MIN_CELLS = 20


@dataclass(frozen=True)
class Simulated:
    """Sums over cells, sources (all genes) × targets (all genes); the factors are the first genes."""

    edges: np.ndarray
    """Whether a pair is an edge, factors × genes; never of a gene to itself."""
    detection: np.ndarray
    """Share of the cells that have a gene."""
    mean_place: np.ndarray
    """Mean place of a gene in the cells that have it, in genes from the first."""
    attention: np.ndarray
    """Sum of what each target gives each source, donors × genes × genes."""
    residual: np.ndarray
    """Sum of the log lift less what place explains, donors × genes × genes."""
    n_cells: np.ndarray
    """Cells with both genes, donors × genes × genes."""
    detected: np.ndarray
    """Whether a cell has a gene, cells × genes; cell i is of donor i modulo their number."""
    of_lifts: bool = False
    """Whether `residual` holds lifts relative to their places, of whose mean the logarithm is taken."""

    def mean_attention(self) -> np.ndarray:
        """Mean over the cells of all donors with both genes, factors × genes; NaN below 20 cells and for itself."""
        return self._mean(self.attention)

    def without_place(self) -> np.ndarray:
        """Mean log lift less what place explains, of all donors, factors × genes; NaN as above."""
        mean = self._mean(self.residual)
        return np.log2(mean) if self.of_lifts else mean

    def without_place_of(self, donor: int, *, min_cells: int = 5) -> tuple[np.ndarray, np.ndarray]:
        """Mean log lift less what place explains of one donor, and cells, factors × genes."""
        return _means(self.residual[donor], self.n_cells[donor], min_cells), self.n_cells[donor][:N_FACTORS]

    def _mean(self, sums: np.ndarray) -> np.ndarray:
        return _means(sums.sum(axis=0), self.n_cells.sum(axis=0), MIN_CELLS)


def _means(sums: np.ndarray, n_cells: np.ndarray, least: int) -> np.ndarray:
    means = np.where(n_cells >= least, sums / np.maximum(n_cells, 1), np.nan)
    np.fill_diagonal(means, np.nan)
    return means[:N_FACTORS]


def simulate(beta: float, rng: np.random.Generator, *, of_lifts: bool = False) -> Simulated:
    """Draw edges and cells; an edge adds `beta` to the logit that its target attends its source with."""
    popularity = rng.normal(0, 0.6, N_GENES)
    place_score = 0.5 * rng.normal(size=N_GENES) - 0.5 * popularity
    rate = 1 / (1 + np.exp(-(0.7 * rng.normal(size=N_GENES) + 0.6 * popularity)))
    edges = _edges(popularity, rate, rng)
    effect = np.zeros((N_GENES, N_GENES))
    effect[:, :N_FACTORS] = beta * edges.T  # of the query (row) and the key (column)
    of_pair = rng.normal(0, 0.15, (N_DONORS, N_GENES, N_GENES))
    cells, genes, placed, has = [], [], np.zeros((2, N_GENES)), np.zeros((N_CELLS, N_GENES), dtype=bool)
    for cell in range(N_CELLS):
        donor = cell % N_DONORS
        detected = np.flatnonzero(rng.random(N_GENES) < rate)
        order = detected[np.argsort(place_score[detected] + rng.normal(0, 0.5, len(detected)))]
        cells.append(_attention(order, popularity, effect + of_pair[donor], rng))
        genes.append(order)
        has[cell, order] = True
        placed[:, order] += np.arange(len(order)), np.ones(len(order))
    return _summed(cells, genes, edges, placed, has, of_lifts=of_lifts)


def _edges(popularity: np.ndarray, rate: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw pairs as curators do: of factors and genes in proportion to how prominent they are, no pair twice."""
    of_factor, of_gene = np.exp(1.5 * popularity[:N_FACTORS]), np.exp(1.5 * (popularity + np.log(rate)))
    weight = np.outer(of_factor, of_gene)
    weight[np.arange(N_FACTORS), np.arange(N_FACTORS)] = 0
    chosen = rng.choice(weight.size, N_EDGES, replace=False, p=(weight / weight.sum()).ravel())
    edges = np.zeros(weight.size, dtype=bool)
    edges[chosen] = True
    return edges.reshape(weight.shape)


def _attention(order: np.ndarray, popularity: np.ndarray, effect: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    place = np.linspace(0, 1, len(order) + 2)[1:-1]
    logits = popularity[order] - 2.5 * np.abs(place[:, None] - place) - place + rng.normal(0, 0.5, (len(order),) * 2)
    logits += effect[np.ix_(order, order)]
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def _summed(
    cells: list[np.ndarray],
    genes: list[np.ndarray],
    edges: np.ndarray,
    placed: np.ndarray,
    has: np.ndarray,
    *,
    of_lifts: bool,
) -> Simulated:
    bins = [np.sqrt(np.arange(len(order))).astype(int) for order in genes]
    lifts = [len(one) * one if of_lifts else np.log2(len(one) * one) for one in cells]
    n_bins = max(map(max, bins)) + 1
    sums, n = np.zeros((n_bins, n_bins)), np.zeros((n_bins, n_bins))
    for lift, of in zip(lifts, bins, strict=True):
        np.add.at(sums, (of[:, None], of), lift)
        np.add.at(n, (of[:, None], of), 1)
    of_places = sums / np.maximum(n, 1)
    attention, residual, n_cells = (np.zeros((N_DONORS, N_GENES, N_GENES)) for _ in range(3))
    for cell, (weights, lift, order, of) in enumerate(zip(cells, lifts, genes, bins, strict=True)):
        pairs = np.ix_(order, order)
        attention[cell % N_DONORS][pairs] += weights.T  # source (key) × target (query)
        expected = of_places[np.ix_(of, of)]
        residual[cell % N_DONORS][pairs] += (lift / expected if of_lifts else lift - expected).T
        n_cells[cell % N_DONORS][pairs] += 1
    mean_place = placed[0] / np.maximum(placed[1], 1)
    n_cells = n_cells.astype(np.int64)
    return Simulated(edges, placed[1] / N_CELLS, mean_place, attention, residual, n_cells, has, of_lifts)
