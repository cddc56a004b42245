"""How far two rankings of the same genes agree, beside what chance gives."""

import numpy as np
from scipy.stats import rankdata


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Return the correlation of ranks, equal values sharing theirs; NaN where all values of one are equal."""
    if not len(a) or np.ptp(a) == 0 or np.ptp(b) == 0:
        return np.nan
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def jaccard_of_tops(a: np.ndarray, b: np.ndarray, k: int) -> float:
    """Return the share of genes that are among the k largest of both, of those that are of either.

    Of equal values the first count as larger.
    """
    tops = [set(np.argsort(-values, kind="stable")[:k].tolist()) for values in (a, b)]
    return len(tops[0] & tops[1]) / len(tops[0] | tops[1])


def chance_jaccard(k: int, n: int) -> float:
    """Return the Jaccard index of two random choices of k of n genes, about: that of their expected overlap, k² / n."""
    return k / (2 * n - k)
