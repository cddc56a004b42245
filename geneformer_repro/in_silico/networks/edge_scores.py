"""How well scores of pairs find known edges: arrays in, numbers out, no file and no model.

A score is sorted once; what a set of edges scores follows from where its edges stand, so a thousand rewired references
(`rewiring`) cost a thousand times their edges, not a thousand sorts of all pairs: 732 edges among 314,000 pairs take
0.1 ms. Intervals are over sources (factors), which are what one might have sampled: AUROC over all pairs is a quadratic
form in how often a source was drawn, so resampling needs no sort either.

Ties are never broken by the order of pairs. A constant score has AUROC 0.5, average precision and early precision equal
to the density of edges; the trapezoid under the precision-recall curve would give it (1 + density) / 2.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numba
import numpy as np
from scipy.stats import rankdata

Ties = Literal["expected", "beeline"]
N_RESAMPLES = 2000
"""Draws of sources that an interval is of."""
FEWEST_EDGES = 5
"""Of a source that has an AUROC of its own."""
N_DETECTION, N_PLACE = 20, 4
"""Bins of detection, and of place within each."""
_ENDS = (2.5, 97.5)
_DRAWS_OF_PRECISION, _EDGES_AT_ONCE = 500, 1024
"""Average precision under a draw takes edges × sources products: 14 GFLOP of all of CollecTRI for 500 draws."""
_ROUNDING = 1e-9


class Score(NamedTuple):
    """A number with its 95 % interval over sources."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Pairs:
    """The pairs that are scored: every score, known edge and stratum is an array along them."""

    source: np.ndarray
    """Number of the source of each pair, from 0."""
    target: np.ndarray
    """Number of its target."""
    n_sources: int
    n_targets: int

    @classmethod
    def of(cls, scored: np.ndarray) -> "Pairs":
        """Return the pairs that are true in a matrix, sources × targets, source by source."""
        source, target = np.nonzero(scored)
        return cls(source, target, *scored.shape)

    def __len__(self) -> int:
        return len(self.source)

    @cached_property
    def number(self) -> np.ndarray:
        """Number of each pair in the matrix, sources × targets; -1 for one that is not scored."""
        number = np.full((self.n_sources, self.n_targets), -1, dtype=np.int64)
        number[self.source, self.target] = np.arange(len(self))
        return number

    def restricted(self, targets: np.ndarray) -> np.ndarray:
        """Whether the target of each pair is one of these, given as a mask of all targets."""
        return np.asarray(targets)[self.target]


# Of one set of edges


def auroc(scores: np.ndarray, is_edge: np.ndarray) -> float:
    """Return the chance that an edge scores above another pair, ties counted half; NaN without both.

    Parameters
    ----------
    scores
        Finite, one a pair; higher for an edge.
    is_edge
        Whether each pair is an edge.
    """
    n_edges, n_others = int(is_edge.sum()), int((~is_edge).sum())
    if not n_edges or not n_others:
        return np.nan
    ranks = rankdata(scores)
    return float((ranks[is_edge].sum() - n_edges * (n_edges + 1) / 2) / (n_edges * n_others))


def average_precision(scores: np.ndarray, is_edge: np.ndarray) -> float:
    """Return Σ (R_k − R_{k−1}) P_k over distinct scores; NaN without an edge. The density of edges is chance."""
    ordered = Ordered(scores)
    return float(ordered.average_precision(np.flatnonzero(is_edge)))


def early_precision(scores: np.ndarray, is_edge: np.ndarray, *, k: int | None = None, ties: Ties = "expected") -> float:
    """Return the share of edges among the best `k` pairs.

    Parameters
    ----------
    scores, is_edge
        As of `auroc`.
    k
        Default: as many as there are edges.
    ties
        Of the pairs that share the last score: "expected" counts the edges that a random choice of them brings,
        "beeline" takes them all, so that more than `k` pairs may be chosen.

    References
    ----------
    Pratapa et al., Nature Methods 17, 147 (2020), for the measure.
    """
    k = int(is_edge.sum()) if k is None else k
    if ties == "beeline" and 0 < k <= len(scores):
        return float(is_edge[scores >= _last_of(scores, k)].mean())
    return mean_among_first(scores, is_edge, k)


def mean_among_first(scores: np.ndarray, values: np.ndarray, k: int) -> float:
    """Return the mean of something over the best `k` pairs; of those that share the last score, as if drawn.

    Parameters
    ----------
    scores
        One a pair.
    values
        Of what; NaN is not accepted.
    k
        From 1 to the number of pairs, else NaN is returned.
    """
    if not 0 < k <= len(scores):
        return np.nan
    last = _last_of(scores, k)
    above, tied = scores > last, scores == last
    return float((values[above].sum() + (k - above.sum()) * values[tied].mean()) / k)


def false_omission_rate(scores: np.ndarray, is_edge: np.ndarray) -> float:
    """Return the share of edges among the pairs that are not among the best, as many of these as there are edges.

    References
    ----------
    Chevalley et al., Communications Biology 8, 412 (2025), CausalBench.
    """
    k = int(is_edge.sum())
    if not 0 < k < len(scores):
        return np.nan
    return float((k - k * mean_among_first(scores, is_edge, k)) / (len(scores) - k))


def _last_of(scores: np.ndarray, k: int) -> float:
    return float(np.partition(scores, len(scores) - k)[len(scores) - k])


def direction_auroc(forth: np.ndarray, back: np.ndarray) -> float:
    """Return the chance that an edge scores above its reverse, edges against the reverses of all; 0.5 if undirected.

    Parameters
    ----------
    forth, back
        Score of each edge whose reverse is no edge, and of the reverse.
    """
    difference = forth - back
    rounding = _ROUNDING * max(np.abs(forth).max(initial=0), np.abs(back).max(initial=0))
    difference[np.abs(difference) <= rounding] = 0  # a sum over cells may depend on which gene came first
    is_edge = np.repeat([True, False], len(difference))
    return auroc(np.concatenate([difference, -difference]), is_edge)


# Of many sets of edges


class Ordered:
    """Scores of all pairs in order, once: what any set of edges scores by AUROC and average precision.

    Parameters
    ----------
    scores
        Finite, one a pair; higher for an edge.
    """

    def __init__(self, scores: np.ndarray) -> None:
        self._n = len(scores)
        order = np.argsort(-scores, kind="stable")
        falling = scores[order]
        last = np.flatnonzero(np.append(falling[1:] != falling[:-1], True))
        block = np.searchsorted(last, np.arange(self._n))
        first = np.concatenate([[0], last[:-1] + 1])
        self.n_down_to = np.empty(self._n, dtype=np.int64)
        """How many pairs score as high as each, or higher."""
        self.n_down_to[order] = last[block] + 1
        self._rank = np.empty(self._n)
        self._rank[order] = self._n - (first[block] + last[block]) / 2  # from the lowest, 1, as `rankdata`

    def average_precision(self, edges: np.ndarray) -> float:
        """Return the average precision of a set of edges, given as numbers of pairs."""
        if not len(edges):
            return np.nan
        n_down_to = np.sort(self.n_down_to[edges])
        return float((np.searchsorted(n_down_to, n_down_to, side="right") / n_down_to).mean())

    def auroc(self, edges: np.ndarray) -> float:
        """Return the AUROC of a set of edges."""
        n = len(edges)
        if not n or n == self._n:
            return np.nan
        return float((self._rank[edges].sum() - n * (n + 1) / 2) / (n * (self._n - n)))


class Stratified:
    """Scores ranked within strata, once: the matched AUROC of any set of edges.

    Parameters
    ----------
    scores
        Finite, one a pair; higher for an edge.
    stratum
        Number of the stratum of each pair, from 0; within one, pairs are of one source (`strata_of`).
    source
        Number of the source of each pair.
    n_sources
        How many there are.
    """

    def __init__(self, scores: np.ndarray, stratum: np.ndarray, source: np.ndarray, n_sources: int) -> None:
        self._stratum, self._size = stratum, np.bincount(stratum)
        self._rank, self._n_sources = ranks_within(scores, stratum), n_sources
        self._source_of = np.zeros(len(self._size), dtype=np.int64)
        self._source_of[stratum] = source

    def auroc(self, edges: np.ndarray) -> float:
        """Return Σ w·AUROC / Σ w over strata, with w = edges × other pairs; NaN where no stratum has both."""
        n_edges = np.bincount(self._stratum[edges], minlength=len(self._size))
        weight = (n_edges * (self._size - n_edges)).sum()
        wins = self._rank[edges].sum() - (n_edges * (n_edges + 1)).sum() / 2
        return float(wins / weight) if weight else np.nan

    def of_sources(self, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return Σ w·AUROC and Σ w of each source."""
        return tuple(np.bincount(self._source_of, of, self._n_sources) for of in self._wins(edges))  # type: ignore[return-value]

    def _wins(self, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        stratum = self._stratum[edges]
        n_edges = np.bincount(stratum, minlength=len(self._size))
        ranks = np.bincount(stratum, self._rank[edges], minlength=len(self._size))
        return ranks - n_edges * (n_edges + 1) / 2, n_edges * (self._size - n_edges)


def ranks_within(scores: np.ndarray, stratum: np.ndarray) -> np.ndarray:
    """Return the rank of each score within its stratum, 1 for the lowest, the mean where several are equal."""
    order = np.lexsort((scores, stratum))
    ordered, of = scores[order], stratum[order]
    new = np.append(True, of[1:] != of[:-1])
    starts = np.flatnonzero(new | np.append(True, ordered[1:] != ordered[:-1]))
    ends = np.append(starts[1:], len(order))
    within = np.flatnonzero(new)
    begin = within[np.searchsorted(within, starts, side="right") - 1]
    ranks = np.empty(len(order))
    ranks[order] = np.repeat((starts + ends + 1) / 2 - begin, ends - starts)
    return ranks


def strata_of(pairs: Pairs, bins: np.ndarray) -> np.ndarray:
    """Return the stratum of each pair: its source and the bin of its target, numbered from 0.

    Parameters
    ----------
    pairs
        The pairs.
    bins
        Bin of each target, such as of detection and place (`bins_of`).
    """
    return pairs.source * (int(bins.max(initial=0)) + 1) + bins[pairs.target]


def bins_of(values: np.ndarray, n_bins: int) -> np.ndarray:
    """Deal values into bins of like size by rank, from 0; equal values share a bin, so bins may differ in size."""
    return np.minimum((rankdata(values, method="average") - 0.5) * n_bins // len(values), n_bins - 1).astype(np.int64)


def matched_bins(
    detection: np.ndarray, place: np.ndarray, *, n_detection: int = N_DETECTION, n_place: int = N_PLACE
) -> np.ndarray:
    """Return a bin of each target: of its detection rate, and within that of its mean place.

    Places are binned within a bin of detection: the two go together, and bins of both taken alone would be empty or
    hold everything.

    Parameters
    ----------
    detection, place
        Share of the cells that have a target, and its mean place in them.
    n_detection, n_place
        How many bins of each.
    """
    return bins_within(bins_of(detection, n_detection), place, n_place)


def bins_within(bins: np.ndarray, values: np.ndarray, n_bins: int) -> np.ndarray:
    """Deal the values of each of some bins into bins of like size; number all of these from 0."""
    of_values = np.zeros_like(bins)
    for one in np.unique(bins):
        here = bins == one
        of_values[here] = bins_of(values[here], n_bins)
    return bins * n_bins + of_values


# Over sources


def drawn_sources(n_sources: int, rng: np.random.Generator, n: int | None = None) -> np.ndarray:
    """Return how often each source is drawn when as many are drawn with replacement: draws × sources."""
    n = N_RESAMPLES if n is None else n
    return rng.multinomial(n_sources, np.full(n_sources, 1 / n_sources), size=n)


def of_each_source(scores: np.ndarray, is_edge: np.ndarray, pairs: Pairs) -> np.ndarray:
    """Return the AUROC among the pairs of each source; NaN below `FEWEST_EDGES` edges or without another pair."""
    stratified = Stratified(scores, pairs.source, pairs.source, pairs.n_sources)
    wins, weight = stratified.of_sources(np.flatnonzero(is_edge))
    n_edges = np.bincount(pairs.source[is_edge], minlength=pairs.n_sources)
    known = (weight > 0) & (n_edges >= FEWEST_EDGES)
    return np.divide(wins, weight, out=np.full(pairs.n_sources, np.nan), where=known)


def auroc_over_sources(scores: np.ndarray, is_edge: np.ndarray, pairs: Pairs, draws: np.ndarray) -> Score:
    """Return the AUROC over all pairs, with the interval over sources.

    Edges of a source against other pairs of another, for all two sources: with these wins as a matrix, drawing sources
    is a quadratic form.
    """
    wins, n_edges, n_others = _wins_between(scores, is_edge, pairs)
    above = np.einsum("di,ij,dj->d", draws, wins, draws, optimize=True)
    return _interval(auroc(scores, is_edge), above, (draws @ n_edges) * (draws @ n_others))


def _wins_between(scores: np.ndarray, is_edge: np.ndarray, pairs: Pairs) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    n = pairs.n_sources
    source_of_edges, of_edges = pairs.source[is_edge], scores[is_edge]
    wins = np.zeros((n, n))
    for one, others in _others(scores, is_edge, pairs):
        below = (np.searchsorted(others, of_edges, "left") + np.searchsorted(others, of_edges, "right")) / 2
        wins[:, one] = np.bincount(source_of_edges, below, minlength=n)
    return wins, np.bincount(source_of_edges, minlength=n), np.bincount(pairs.source[~is_edge], minlength=n)


def _others(scores: np.ndarray, is_edge: np.ndarray, pairs: Pairs) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the sorted scores of the pairs of each source that are no edges."""
    order = np.lexsort((scores, pairs.source))
    order = order[~is_edge[order]]
    ends = np.searchsorted(pairs.source[order], np.arange(pairs.n_sources + 1))
    for one in range(pairs.n_sources):
        yield one, scores[order[ends[one] : ends[one + 1]]]


def ap_ratio_over_sources(scores: np.ndarray, is_edge: np.ndarray, pairs: Pairs, draws: np.ndarray) -> Score:
    """Return average precision over the density of edges, with the interval over sources by the first 500 draws.

    How many pairs of each source score as high as each edge, and how many of its edges, is counted once; a draw then
    weights these counts.
    """
    value = average_precision(scores, is_edge) / is_edge.mean() if is_edge.any() else np.nan
    drawn = draws[:_DRAWS_OF_PRECISION].astype(np.float32)
    source_of_edges, of_edges = pairs.source[is_edge], scores[is_edge]
    total = np.zeros(len(drawn))
    for first in range(0, len(of_edges), _EDGES_AT_ONCE):
        some = slice(first, first + _EDGES_AT_ONCE)
        n_down = _n_as_high(scores, pairs.source, pairs.n_sources, of_edges[some]) @ drawn.T
        n_found = _n_as_high(of_edges, source_of_edges, pairs.n_sources, of_edges[some]) @ drawn.T
        times = drawn.T[source_of_edges[some]]
        precision = np.divide(n_found, n_down, out=np.zeros_like(n_found), where=n_down > 0)
        total += np.einsum("ed,ed->d", times, precision)
    n_edges, n_pairs = (np.bincount(of, minlength=pairs.n_sources) for of in (source_of_edges, pairs.source))
    return _interval(value, total * (drawn @ n_pairs), (drawn @ n_edges) ** 2)


def _n_as_high(scores: np.ndarray, source: np.ndarray, n_sources: int, than: np.ndarray) -> np.ndarray:
    """Return how many pairs of each source score as high as some numbers, or higher: numbers × sources, float32."""
    order = np.lexsort((scores, source))
    ends = np.searchsorted(source[order], np.arange(n_sources + 1))
    n = np.empty((len(than), n_sources), dtype=np.float32)
    for one in range(n_sources):
        of_source = scores[order[ends[one] : ends[one + 1]]]
        n[:, one] = len(of_source) - np.searchsorted(of_source, than, side="left")
    return n


def epr_over_sources(
    scores: np.ndarray, is_edge: np.ndarray, pairs: Pairs, draws: np.ndarray, *, ties: Ties = "expected"
) -> Score:
    """Return early precision over the density of edges, with the interval over sources by the first 500 draws."""
    value = early_precision(scores, is_edge, ties=ties) / is_edge.mean() if is_edge.any() else np.nan
    order = np.argsort(-scores, kind="stable")
    drawn = draws[:_DRAWS_OF_PRECISION].astype(np.int64)
    of_draws = _early_precisions(scores[order], is_edge[order], pairs.source[order], drawn, ties == "beeline")
    n_edges, n_pairs = (np.bincount(of, minlength=pairs.n_sources) for of in (pairs.source[is_edge], pairs.source))
    return _interval(value, of_draws * (drawn @ n_pairs), (drawn @ n_edges).astype(np.float64))


@numba.njit(nogil=True, cache=True)
def _early_precisions(falling, is_edge, source, draws, takes_ties):  # type: ignore[no-untyped-def]
    """Walk down the pairs until as many are seen as there are edges, each as often as its source was drawn."""
    found = np.zeros(len(draws))
    for d in range(len(draws)):
        k = 0
        for i in range(len(falling)):
            k += draws[d, source[i]] * is_edge[i]
        above = hits = i = 0
        while above < k:
            tied = tied_hits = 0
            first = i
            while i < len(falling) and falling[i] == falling[first]:
                tied += draws[d, source[i]]
                tied_hits += draws[d, source[i]] * is_edge[i]
                i += 1
            if above + tied >= k:
                if takes_ties:
                    found[d] = (hits + tied_hits) / (above + tied)
                else:
                    found[d] = (hits + (k - above) * tied_hits / tied) / k
                break
            above, hits = above + tied, hits + tied_hits
    return found


def matched_over_sources(stratified: Stratified, edges: np.ndarray, draws: np.ndarray) -> tuple[Score, np.ndarray]:
    """Return the matched AUROC with its interval over sources, and what each draw of sources gives."""
    wins, weight = stratified.of_sources(edges)
    drawn = _ratio(draws @ wins, draws @ weight)
    return Score(stratified.auroc(edges), *_percentiles(drawn)), drawn


def mean_over_sources(of_sources: np.ndarray, draws: np.ndarray) -> Score:
    """Return the mean over the sources that have a value, with its interval."""
    known = np.isfinite(of_sources)
    if not known.any():
        return Score(np.nan, np.nan, np.nan)
    drawn = draws[:, known]
    value = float(of_sources[known].mean())
    return _interval(value, drawn @ of_sources[known], drawn.sum(axis=1))


def difference_interval(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of a difference, of two numbers under the same draws of sources."""
    return _percentiles(ours - theirs)


def _interval(value: float, above: np.ndarray, below: np.ndarray) -> Score:
    return Score(value, *_percentiles(_ratio(above, below)))


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full(len(above), np.nan), where=below > 0)


def _percentiles(drawn: np.ndarray) -> tuple[float, float]:
    """Return the ends of the interval; NaN where fewer than half of the draws have a value."""
    known = drawn[np.isfinite(drawn)]
    if 2 * len(known) < len(drawn) or not len(known):
        return np.nan, np.nan
    low, high = np.percentile(known, _ENDS)
    return float(low), float(high)


def exchanged(
    pairs: Pairs, edges: np.ndarray, bins: np.ndarray, rng: np.random.Generator, *, n: int
) -> Iterator[np.ndarray]:
    """Yield the edges after targets of one bin have changed names among themselves, the same for all sources.

    Parameters
    ----------
    pairs
        The pairs that are scored.
    edges
        Numbers of the pairs that are edges.
    bins
        Bin of each target (`matched_bins`).
    rng
        Randomness.
    n
        How many times.

    Yields
    ------
    Numbers of pairs. An edge that would lead to a pair that is not scored is left out.
    """
    members = [np.flatnonzero(bins == one) for one in np.unique(bins)]
    for _ in range(n):
        renamed = np.arange(pairs.n_targets)
        for here in members:
            renamed[here] = rng.permutation(here)
        number = pairs.number[pairs.source[edges], renamed[pairs.target[edges]]]
        yield number[number >= 0]
