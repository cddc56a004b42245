"""Attention without a model, whose edges are known (specification, 6.1).

Prominent genes are attended by all, stand in front and are often detected; and as in curated lists, edges are drawn
where both genes are prominent. So attention looks like the edges without any effect of a pair.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logsumexp

N_GENES, N_SOURCES, N_CELLS, N_DONORS, N_EDGES = 200, 30, 240, 6, 360


@dataclass(frozen=True)
class Simulated:
    """Cells of six donors, one head."""

    cells: list[tuple[np.ndarray, np.ndarray]]
    """Of each cell its genes in order, and log attention of queries × keys among them."""
    donor: np.ndarray
    edges: np.ndarray
    """Sources × targets, whether there is an edge; the first 30 genes are the sources."""


def simulated(effect: float, seed: int, *, n_cells: int = N_CELLS) -> Simulated:
    """Draw cells; an edge adds `effect` to the logit of its pair."""
    rng = np.random.default_rng(seed)
    popularity = rng.normal(0, 0.6, N_GENES)
    front = 0.5 * rng.normal(size=N_GENES) - 0.5 * popularity
    detection = expit(0.7 * rng.normal(size=N_GENES) + 0.6 * popularity)
    edges = _edges(popularity, detection, rng)
    of_donors = rng.normal(0, 0.15, (N_DONORS, N_GENES, N_GENES))
    of_edges = np.zeros((N_GENES, N_GENES))
    of_edges[:, :N_SOURCES] = effect * edges.T  # queries × keys
    donor = np.arange(n_cells) % N_DONORS
    cells = []
    for c in range(n_cells):
        genes = np.flatnonzero(rng.random(N_GENES) < detection)
        genes = genes[np.argsort(front[genes] + rng.normal(0, 0.5, len(genes)))]
        place = (np.arange(len(genes)) + 0.5) / len(genes)
        pair = np.ix_(genes, genes)
        logit = popularity[genes] - 2.5 * np.abs(place[:, None] - place) - place
        logit = logit + rng.normal(0, 0.5, logit.shape) + of_edges[pair] + of_donors[donor[c]][pair]
        cells.append((genes, logit - logsumexp(logit, axis=1, keepdims=True)))
    return Simulated(cells, donor, edges)


def _edges(popularity: np.ndarray, detection: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    source = np.exp(1.5 * popularity[:N_SOURCES])
    target = np.exp(1.5 * (popularity + np.log(detection)))
    odds = source[:, None] * target
    odds[np.arange(N_SOURCES), np.arange(N_SOURCES)] = 0
    chosen = rng.choice(odds.size, N_EDGES, replace=False, p=(odds / odds.sum()).ravel())
    edges = np.zeros(odds.size, dtype=bool)
    edges[chosen] = True
    return edges.reshape(odds.shape)


def accumulated(cells: Simulated, *, place_corrected: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Return sums of log lifts and numbers of cells, donors × sources × targets, self-pairs left out."""
    place = _place_part(cells) if place_corrected else np.zeros((N_GENES, N_GENES))
    sums, counts = np.zeros((2, N_DONORS, N_GENES, N_GENES))
    for (genes, log_weight), donor in zip(cells.cells, cells.donor, strict=True):
        bins = np.sqrt(np.arange(len(genes))).astype(int)
        lift = np.log2(len(genes)) + log_weight / np.log(2) - place[np.ix_(bins, bins)]
        sums[donor][np.ix_(genes, genes)] += lift.T
        counts[donor][np.ix_(genes, genes)] += 1
    counts[:, np.arange(N_GENES), np.arange(N_GENES)] = 0
    return sums[:, :N_SOURCES], counts[:, :N_SOURCES]


def _place_part(cells: Simulated) -> np.ndarray:
    """Return the mean log lift by the bins of query and key place."""
    total, n = np.zeros((2, N_GENES, N_GENES))
    for genes, log_weight in cells.cells:
        bins = np.sqrt(np.arange(len(genes))).astype(int)
        pairs = tuple(np.broadcast_arrays(bins[:, None], bins))
        np.add.at(total, pairs, np.log2(len(genes)) + log_weight / np.log(2))
        np.add.at(n, pairs, 1)
    return np.divide(total, n, out=np.zeros_like(total), where=n > 0)


def mean_attention(cells: Simulated) -> np.ndarray:
    """Return the mean attention weight of each pair, sources × targets; NaN where no cell has it."""
    total, n = np.zeros((2, N_GENES, N_GENES))
    for genes, log_weight in cells.cells:
        total[np.ix_(genes, genes)] += np.exp(log_weight).T
        n[np.ix_(genes, genes)] += 1
    return np.divide(total, n, out=np.full_like(total, np.nan), where=n > 0)[:N_SOURCES]
