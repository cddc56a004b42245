"""Whether one method is better than another: tests of differences between scores of the same groups, or folds.

Two methods that are asked the same groups are right or wrong of many of them together, so their scores are compared
group by group, or fold by fold. Models of two folds share most of their training rows, so that differences of folds
vary less than those of independent experiments would, and a plain t-test finds too much; Nadeau and Bengio's correction
takes that into account. The unpaired test is what Prasse et al.
computed (their text says paired): all 138 of their marks come out so, of 10 + 10 folds as if of 20 experiments.

All are two-sided, and every result says in which direction: who marks gains alone never sees a loss.

References
----------
Nadeau and Bengio, Mach. Learn. 52, 239 (2003). Prasse et al., Cancers 14, 3950 (2022).
"""

from typing import Literal, NamedTuple

import numpy as np
from scipy.stats import t as student

from geneformer_repro.errors import InputError

Direction = Literal["higher", "lower", "no clear difference"]
SIGNIFICANT = 0.05


class DifferenceTest(NamedTuple):
    """Of the scores of one method less those of another."""

    difference: float
    """Mean of the first less mean of the second."""
    t: float
    """NaN where differences do not vary, or are fewer than two."""
    p: float
    """Two-sided, of no difference; NaN with `t`."""
    n: int
    """Groups, or folds, in which both scores are defined; of the unpaired test those of the first."""

    @property
    def direction(self) -> Direction:
        """Where the first is, if p is below 0.05."""
        if not self.p < SIGNIFICANT:
            return "no clear difference"
        return "higher" if self.difference > 0 else "lower"


def paired_test(scores: np.ndarray, others: np.ndarray, *, test_to_train: float = 0.0) -> DifferenceTest:
    """Test whether the mean of the differences of two methods' scores is 0 (null hypothesis), two-sided.

    Parameters
    ----------
    scores, others
        Of the same groups, or folds, in the same order; those where one is NaN are left out.
    test_to_train
        0: Student's paired t-test, for independent groups, such as the samples of one fold. For folds the number of
        test rows by that of training rows (1 / (k - 1) of k folds): Nadeau and Bengio's corrected resampled t-test.
    """
    if len(scores) != len(others):
        raise InputError(f"A paired test takes scores of the same groups; found {len(scores)} and {len(others)}.")
    differences = np.asarray(scores, dtype=np.float64) - np.asarray(others, dtype=np.float64)
    differences = differences[~np.isnan(differences)]
    n = len(differences)
    return _tested(
        differences.mean() if n else np.nan, _variance(differences) * (1 / max(n, 1) + test_to_train), n - 1, n
    )


def unpaired_test(scores: np.ndarray, others: np.ndarray) -> DifferenceTest:
    """Test whether two methods' scores have the same mean (null hypothesis), two-sided, as if of different experiments.

    Student's test with one variance for both (`scipy.stats.ttest_ind`), as in the published code of Prasse et al.;
    over folds of the same rows `paired_test` is the one to believe.

    Parameters
    ----------
    scores, others
        Of folds; NaN is left out.
    """
    first, second = (np.asarray(one, dtype=np.float64)[~np.isnan(one)] for one in (scores, others))
    freedom = len(first) + len(second) - 2
    if min(len(first), len(second)) < 2:
        return _tested(first.mean() - second.mean() if len(first) and len(second) else np.nan, np.nan, 0, len(first))
    pooled = ((len(first) - 1) * _variance(first) + (len(second) - 1) * _variance(second)) / freedom
    squared_error = pooled * (1 / len(first) + 1 / len(second))
    return _tested(first.mean() - second.mean(), squared_error, freedom, len(first))


def _variance(values: np.ndarray) -> float:
    return float(values.var(ddof=1)) if len(values) > 1 else np.nan


def _tested(difference: float, squared_error: float, freedom: int, n: int) -> DifferenceTest:
    if not squared_error > (1e-12 * difference) ** 2:
        return DifferenceTest(float(difference), np.nan, np.nan, n)
    t = float(difference / np.sqrt(squared_error))
    return DifferenceTest(float(difference), t, float(2 * student.sf(abs(t), freedom)), n)
