"""What is known of pairs of genes without the model: scores of the same pairs, to set a network beside.

Co-expression in the same cells, products that know no pair at all (detection, mean expression), places, boosted trees,
and what somebody would score who knew only how many known edges each gene has. All are matrices, sources × targets,
from cells that are read once; correlations go by blocks of targets, so that besides the cells themselves (5,000 × 8,000
in single precision: 160 MB) little is in memory.

Boosted trees are GRNBoost2's idea with scikit-learn's histograms: each target is predicted from all sources, a source
scores the gain of the splits on it. arboreto's own settings (rate 0.01, up to 5,000 trees) are 50 times as slow and its
last release does not run on current dask; here trees have 8 leaves, a rate of 0.05 and end after 25 without gain.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numba
import numpy as np
from scipy.sparse import csr_matrix, diags_array
from scipy.stats import rankdata
from sklearn.ensemble import HistGradientBoostingRegressor

from geneformer_repro.in_silico.networks.network_expression import (
    FEWEST_CELLS,
    CellCounts,
    blocks_of,
    correlation,
    standardised,
)

_BOOSTING = {
    "max_iter": 300,
    "learning_rate": 0.05,
    "max_leaf_nodes": 8,
    "max_features": 0.1,
    "early_stopping": True,
    "n_iter_no_change": 25,
}


@dataclass(frozen=True, eq=False)
class Expression:
    """Cells of one state, as methods without a model look at them.

    Parameters
    ----------
    values
        log1p of counts per 10,000, cells × genes of the network.
    donors
        Donor of each cell; None where none was named.
    n_found
        Cells of the state in the file, of which these were drawn.
    """

    values: csr_matrix
    donors: np.ndarray | None
    n_found: int

    @classmethod
    def of(cls, cells: CellCounts) -> "Expression":
        """Look at counts."""
        return cls(cells.logged(), cells.donor, cells.n_found)

    @property
    def n_donors(self) -> int:
        """How many donors there are; 0 where none was named."""
        return 0 if self.donors is None else len(np.unique(self.donors))

    @cached_property
    def detection(self) -> np.ndarray:
        """Share of the cells that have each gene."""
        return self.values.getnnz(axis=0) / self.values.shape[0]

    @cached_property
    def mean(self) -> np.ndarray:
        """Mean of each gene."""
        return np.asarray(self.values.mean(axis=0, dtype=np.float64)).ravel()

    @cached_property
    def places(self) -> csr_matrix:
        """Place of each gene in the cells that have it, 1 for the first: by expression over its non-zero mean."""
        n = np.maximum(self.values.getnnz(axis=0), 1)
        linear = self.values.expm1()
        usual = np.asarray(linear.sum(axis=0)).ravel() / n
        relative = csr_matrix(linear @ diags_array(1 / np.where(usual > 0, usual, 1.0)))
        relative.sort_indices()
        places = relative.copy()
        for start, end in zip(relative.indptr[:-1], relative.indptr[1:], strict=True):
            order = np.argsort(-relative.data[start:end], kind="stable")
            places.data[start + order] = np.arange(1, end - start + 1)
        return places

    @cached_property
    def mean_place(self) -> np.ndarray:
        """Mean place of each gene in the cells that have it, from 0; the end of the longest cell where none has it."""
        n = self.places.getnnz(axis=0)
        last = float(np.diff(self.places.indptr).max(initial=1))
        total = np.asarray(self.places.sum(axis=0)).ravel()
        return np.divide(total, n, out=np.full(len(n), last), where=n > 0) - 1


# Scores of pairs, sources × targets


def correlation_over_donors(cells: Expression, sources: np.ndarray, targets: np.ndarray) -> np.ndarray | None:
    """Return Spearman's correlation within each donor, averaged over donors; None with fewer than two donors.

    A donor in which a gene is alike in all cells says nothing of its pairs; NaN where that is so of all donors.
    """
    if cells.donors is None:
        return None
    rows = [np.flatnonzero(cells.donors == donor) for donor in np.unique(cells.donors)]
    rows = [of for of in rows if len(of) >= FEWEST_CELLS]
    if len(rows) < 2:
        return None
    total, n = np.zeros((2, len(sources), len(targets)))
    for of in rows:
        of_donor = correlation(csr_matrix(cells.values[of]), sources, targets)
        known = ~np.isnan(of_donor)
        total[known] += of_donor[known]
        n += known
    return np.divide(total, n, out=np.full_like(total, np.nan), where=n > 0)


def mutual_rank(correlations: np.ndarray) -> np.ndarray:
    """Return √(r_ab · r_ba) of each pair, with r_ab the rank of b among all that a correlates with, 1 for the highest.

    Parameters
    ----------
    correlations
        Genes × genes, symmetric; a gene with itself is not ranked.

    References
    ----------
    Obayashi and Kinoshita, DNA Research 16, 249 (2009).
    """
    others = correlations.astype(float)
    np.fill_diagonal(others, -np.inf)
    of_row = rankdata(-others, axis=1)
    return np.sqrt(of_row * of_row.T)


def mutual_ranks_of(cells: Expression, sources: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the mutual rank of absolute Spearman correlations, sources × targets; ranks are among all these genes."""
    genes = np.union1d(sources, targets)
    ranked = np.nan_to_num(standardised(cells.values, genes, "spearman").astype(np.float32))
    rows, columns = np.searchsorted(genes, sources), np.searchsorted(genes, targets)
    of_sources = [_ranks_at(ranked, block, columns) for block in blocks_of(rows)]
    of_targets = [_ranks_at(ranked, block, rows) for block in blocks_of(columns)]
    return np.sqrt(np.vstack(of_sources) * np.vstack(of_targets).T)


def _ranks_at(ranked: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return where some columns stand among all that each row correlates with; sorting a row is most of the work."""
    correlations = np.abs(ranked[:, rows].T @ ranked)
    correlations[np.arange(len(rows)), rows] = -np.inf
    ranks = np.empty((len(rows), len(columns)))
    for i, of_row in enumerate(correlations):
        ordered, values = np.sort(of_row), of_row[columns]
        below, up_to = (np.searchsorted(ordered, values, side) for side in ("left", "right"))
        ranks[i] = len(of_row) + 0.5 - (below + up_to) / 2
    return ranks


def rank_proximity(cells: Expression, sources: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return minus the mean distance of both genes' places in the cells that have both; the lowest where none has."""
    number = np.full((2, cells.values.shape[1]), -1)
    number[0, sources], number[1, targets] = np.arange(len(sources)), np.arange(len(targets))
    total, n = np.zeros((len(sources), len(targets))), np.zeros((len(sources), len(targets)), dtype=np.int64)
    places = cells.places
    _add_distances(places.indptr, places.indices, places.data.astype(np.float64), number, total, n)
    mean = np.divide(total, n, out=np.full_like(total, -np.inf), where=n > 0)
    return -np.where(n > 0, mean, mean.max(initial=0.0))


@numba.njit(nogil=True, cache=True)
def _add_distances(
    offsets: np.ndarray, genes: np.ndarray, places: np.ndarray, number: np.ndarray, total: np.ndarray, n: np.ndarray
) -> None:
    for cell in range(len(offsets) - 1):
        for i in range(offsets[cell], offsets[cell + 1]):
            source = number[0, genes[i]]
            if source < 0:
                continue
            for j in range(offsets[cell], offsets[cell + 1]):
                target = number[1, genes[j]]
                if target >= 0:
                    total[source, target] += abs(places[i] - places[j])
                    n[source, target] += 1


def degree_product(known: np.ndarray) -> np.ndarray:
    """Return how many other known edges a source has times how many other known edges a target has.

    What memory of the reference alone gives. Among targets that all have an edge it is biased against edges: an edge is
    taken off its own two numbers, and another pair has none to take off.

    Parameters
    ----------
    known
        Whether each pair is a known edge, sources × targets.
    """
    one = known.astype(np.int64)
    return ((one.sum(axis=1, keepdims=True) - one) * (one.sum(axis=0, keepdims=True) - one)).astype(np.float64)


def boosted_gain(cells: Expression, sources: np.ndarray, targets: np.ndarray, *, seed: int) -> Iterator[np.ndarray]:
    """Yield, target by target, what the splits on each source gain in boosted trees, in variances of the target.

    Parameters
    ----------
    cells
        The cells.
    sources, targets
        Places of the genes. A target is never predicted from itself.
    seed
        Of the columns that a split looks at and the cells that end the boosting.
    """
    of_sources = cells.values[:, sources].toarray()
    for target in targets:
        others = np.flatnonzero(sources != target)
        y = cells.values[:, [target]].toarray().ravel()
        gain = np.zeros(len(sources))
        if y.std() > 0 and len(others):
            trees = HistGradientBoostingRegressor(**_BOOSTING, random_state=seed).fit(of_sources[:, others], y)
            gain[others] = _gains(trees, len(others)) / (len(y) * y.var())
        yield gain


def _gains(trees: HistGradientBoostingRegressor, n_features: int) -> np.ndarray:
    """Sum the gain of the splits on each feature; the trees' nodes have no public name."""
    nodes = [tree.nodes for of_step in trees._predictors for tree in of_step]
    splits = [(one["feature_idx"][one["is_leaf"] == 0], one["gain"][one["is_leaf"] == 0]) for one in nodes]
    features, gains = (np.concatenate(side) if side else np.empty(0) for side in zip(*splits, strict=True))
    return np.bincount(features.astype(np.int64), gains, minlength=n_features)
