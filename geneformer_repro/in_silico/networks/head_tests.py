"""Whether heads attend more to some genes than to others like them: tests over genes, of all heads at once.

Transcription factors are fewer, less often detected and further back than other genes, and heads attend by place. So of
tokens pooled over cells a rank-sum test calls 33 to 67 % of heads significant for labels that mean nothing, and 58 to
83 % where labelled genes stand earlier; a permutation of labels among genes of like place and detection calls none
(`benchmarks/network_statistics.py`, five simulations). The same permutation for all heads also tells how many of them
chance makes significant together, which their own p-values do not.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import norm, rankdata

from geneformer_repro.errors import InputError
from geneformer_repro.in_silico.published_statistics import false_discovery_rate

PLACE_BINS, DETECTION_BINS = 10, 2
N_PERMUTATIONS = 1_000
SIGNIFICANT = 0.05
_PERMUTED_AT_ONCE = 64


@dataclass(frozen=True, eq=False)
class HeadTests:
    """Differences between labelled and other genes, an entry a head, and what permuted labels make of them."""

    difference: np.ndarray
    """Mean over labelled genes less that over others of the same strata."""
    null_sd: np.ndarray
    """Standard deviation of the same over permutations."""
    p_value: np.ndarray
    """Two-sided, (b + 1) / (m + 1); null hypothesis: labels do not matter among genes of like place and detection."""
    fdr: np.ndarray
    """Benjamini and Hochberg over heads."""
    share: float
    """Of heads with FDR below 0.05 in which labelled genes are attended more."""
    null_share: np.ndarray
    """The same of each permutation."""
    share_p_value: float
    trend: float
    """Spearman correlation of the difference with the layer; NaN where heads have one layer."""
    trend_p_value: float
    n_labelled: int
    """Labelled genes that have others in their stratum."""


class PooledTest(NamedTuple):
    """The published test, an entry a head."""

    difference: np.ndarray
    """Mean over tokens of labelled genes less that over others."""
    p_value: np.ndarray
    fdr: np.ndarray


def strata_of(place: np.ndarray, detection: np.ndarray) -> np.ndarray:
    """Return a number of the stratum of each gene: 10 bins of the root of its mean place by 2 of its detection.

    Parameters
    ----------
    place
        Mean place in the cells that have the gene, 0 for the first.
    detection
        Share, or number, of these.

    Returns
    -------
    Bins hold equally many genes: ten of place, each halved by detection.
    """
    of_place = _equal_bins(np.sqrt(place), PLACE_BINS)
    strata = np.zeros(len(place), dtype=np.int64)
    for i in range(PLACE_BINS):
        within = of_place == i
        strata[within] = i * DETECTION_BINS + _equal_bins(detection[within], DETECTION_BINS)
    return strata


def _equal_bins(values: np.ndarray, n_bins: int) -> np.ndarray:
    """Return bins of equally many values, ties in one."""
    if not len(values):
        return np.zeros(0, dtype=np.int64)
    share = (rankdata(values) - 0.5) / len(values)
    return np.minimum((share * n_bins).astype(np.int64), n_bins - 1)


def matched_tests(
    attended: np.ndarray,
    labelled: np.ndarray,
    strata: np.ndarray,
    layer: np.ndarray,
    *,
    n_permutations: int = N_PERMUTATIONS,
    rng: np.random.Generator,
) -> HeadTests:
    """Test of each head whether labelled genes are attended otherwise than others of their strata.

    Parameters
    ----------
    attended
        Genes × heads: how much a gene is attended.
    labelled
        Whether a gene is of those that are asked about.
    strata
        Number of each gene's stratum. Labels are permuted within it; a stratum of labelled genes alone, or of none,
        says nothing and is left out.
    layer
        Of each head, for the trend.
    n_permutations
        How often.
    rng
        Draws them.

    Returns
    -------
    The tests; permutations are the same for all heads.

    Raises
    ------
    InputError
        No stratum has both labelled and other genes.
    """
    weights = _Weights.of(labelled, strata)
    observed = weights.difference(labelled[None], attended)
    permuted = [
        weights.difference(_permuted(labelled, strata, n, rng), attended) for n in _portions(n_permutations)
    ]  # fmt: skip
    every = np.concatenate([observed, *permuted])
    p_values = _p_values(np.abs(every))
    fdr = np.apply_along_axis(_fdr, 1, p_values)
    share = np.mean((fdr < SIGNIFICANT) & (every > 0), axis=1)
    trend = _trend(every, layer)
    return HeadTests(
        difference=every[0],
        null_sd=every[1:].std(axis=0),
        p_value=p_values[0],
        fdr=fdr[0],
        share=float(share[0]),
        null_share=share[1:],
        share_p_value=permutation_p(share[0], share[1:]),
        trend=float(trend[0]),
        trend_p_value=permutation_p(abs(trend[0]), np.abs(trend[1:])),
        n_labelled=weights.n_labelled,
    )


class _Weights(NamedTuple):
    """Of each gene, what its value adds to a difference if it is labelled, and if not."""

    if_labelled: np.ndarray
    if_not: np.ndarray
    n_labelled: int

    @classmethod
    def of(cls, labelled: np.ndarray, strata: np.ndarray) -> "_Weights":
        n_strata = int(strata.max(initial=0)) + 1
        n_labelled = np.bincount(strata[labelled], minlength=n_strata)
        n_others = np.bincount(strata[~labelled], minlength=n_strata)
        both = (n_labelled > 0) & (n_others > 0)
        if not both.any():
            raise InputError(
                f"{int(labelled.sum())} of {len(labelled)} genes are labelled, and no other gene has a like place and "
                "detection. Name fewer genes, or take more cells."
            )
        total = int(n_labelled[both].sum())
        of_stratum = np.divide(n_labelled, n_others, out=np.zeros(n_strata), where=both) / total
        return cls(np.where(both, 1 / total, 0.0)[strata], of_stratum[strata], total)

    def difference(self, labels: np.ndarray, attended: np.ndarray) -> np.ndarray:
        """Return labellings × heads."""
        difference: np.ndarray = np.where(labels, self.if_labelled, -self.if_not) @ attended
        return difference


def _portions(n: int) -> list[int]:
    whole, rest = divmod(n, _PERMUTED_AT_ONCE)
    return [_PERMUTED_AT_ONCE] * whole + [rest] * (rest > 0)


def _permuted(labelled: np.ndarray, strata: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Return labellings × genes, in each of which every stratum has as many labelled genes."""
    order = np.argsort(strata, kind="stable")
    drawn = np.argsort(strata[order] + rng.random((n, len(strata))), axis=1)
    permuted = np.empty((n, len(strata)), dtype=bool)
    permuted[:, order] = labelled[order][drawn]
    return permuted


def _p_values(size: np.ndarray) -> np.ndarray:
    """Return, of each statistic in a column, the share of the column that is as large; it is among them itself."""
    n = len(size)
    return (n - rankdata(size, method="min", axis=0) + 1) / n


def _fdr(p_values: np.ndarray) -> np.ndarray:
    return false_discovery_rate(pd.Series(p_values)).to_numpy()


def _trend(difference: np.ndarray, layer: np.ndarray) -> np.ndarray:
    """Return the rank correlation of each row with the layer."""
    if len(set(layer.tolist())) < 2:
        return np.full(len(difference), np.nan)
    rank, of_layer = rankdata(difference, axis=1), rankdata(layer)
    rank, of_layer = rank - rank.mean(1, keepdims=True), of_layer - of_layer.mean()
    with np.errstate(invalid="ignore"):
        trend: np.ndarray = rank @ of_layer / np.sqrt((rank**2).sum(1) * (of_layer**2).sum())
    return trend


def permutation_p(observed: float, drawn: np.ndarray) -> float:
    """Return (b + 1) / (m + 1), b of m drawn statistics being at least as large as the observed one; NaN of NaN."""
    return float((np.sum(drawn >= observed) + 1) / (len(drawn) + 1)) if not np.isnan(observed) else np.nan


def pooled_tests(attended: np.ndarray, labelled: np.ndarray) -> PooledTest:
    """Test as published: two-sided rank sums over tokens pooled from all cells, Benjamini and Hochberg over heads.

    A gene's tokens are taken for independent, and labelled genes are not matched with others: see the module.

    Parameters
    ----------
    attended
        Tokens × heads.
    labelled
        Whether a token is of a labelled gene.
    """
    n, m = int(labelled.sum()), int((~labelled).sum())
    if not n or not m:
        raise InputError(f"A rank-sum test compares two groups; {n} of {n + m} tokens are of labelled genes.")
    z = np.empty(attended.shape[1])
    for head, values in enumerate(attended.T):
        rank = rankdata(values)
        _, ties = np.unique(values, return_counts=True)
        spread = n * m / 12 * (n + m + 1 - (ties**3 - ties).sum() / ((n + m) * (n + m - 1.0)))
        z[head] = (rank[labelled].sum() - n * (n + m + 1) / 2) / np.sqrt(spread) if spread > 0 else np.nan
    p_value = 2 * norm.sf(np.abs(z))
    difference = attended[labelled].mean(axis=0) - attended[~labelled].mean(axis=0)
    return PooledTest(difference, p_value, _fdr(p_value))
