"""Tests over donors, of many values at once.

Cells of a donor are alike, so a donor is one observation. Few donors make a poor variance: with three, a difference
that happens to be even passes any threshold. A difference between states therefore takes its variance partly from all
others, as limma does for genes; and what a table holds as a whole is compared with the same table after the signs of
donors are flipped, which keeps what pairs share.
"""

from itertools import product
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import digamma, polygamma
from scipy.stats import t as student

from geneformer_repro.errors import InputError
from geneformer_repro.in_silico.published_statistics import false_discovery_rate

FEWEST_DONORS = 3
MOST_EXACT_DONORS, RANDOM_FLIPS = 12, 4_096
STRONG = 3.0
"""Absolute t beyond which a pair counts in the global test."""
_AT_ONCE = 2**16
_ROUNDING = 1e-12


class VariancePrior(NamedTuple):
    """What variances are drawn to: ``variance`` as if of so many degrees of ``freedom`` more."""

    freedom: float
    """d₀; infinite where variances differ no more than those of equal ones would."""
    variance: float
    """s₀²."""


class DonorTest(NamedTuple):
    """One-sample t-tests over donors, an entry a pair; NaN where there are too few donors."""

    mean: np.ndarray
    """Over donors."""
    low: np.ndarray
    """Lower end of the 95 % interval of the mean."""
    high: np.ndarray
    t: np.ndarray
    p_value: np.ndarray
    """Two-sided; null hypothesis: over the donors that one might have sampled the mean is 0."""
    fdr: np.ndarray
    """Benjamini and Hochberg over the pairs that have a p-value."""
    n_donors: np.ndarray
    prior: VariancePrior | None
    """Of moderated tests."""


class GlobalTest(NamedTuple):
    """Whether more pairs differ than would if the states of each donor had been swapped at random."""

    n_strong: int
    """Pairs with an absolute t above 3."""
    expected: float
    """Mean of their number over the flips."""
    p_value: float
    """(b + 1) / (m + 1) of m other flips, b with as many strong pairs; NaN below three donors."""
    n_flips: int
    exact: bool
    """All flips were made, not a random choice."""


def donor_test(values: np.ndarray, *, moderated: bool = False) -> DonorTest:
    """Test for each pair whether its values are 0 on average, with donors as replicates.

    Parameters
    ----------
    values
        Donors × pairs; NaN where a donor lacks the pair.
    moderated
        Draw each variance to those of all pairs, s̃² = (d₀s₀² + νs²) / (d₀ + ν), and test with d₀ + ν degrees of
        freedom, though at most those of all pairs together.

    Returns
    -------
    A test of each pair: below three donors its mean alone. Unmoderated also where its values differ by rounding only.

    Raises
    ------
    InputError
        Values are not donors × pairs.

    References
    ----------
    Smyth, Stat. Appl. Genet. Mol. Biol. 3, 3 (2004), for the moderated test.

    Examples
    --------
    >>> import numpy as np
    >>> from geneformer_repro.in_silico.networks.donor_tests import donor_test
    >>> tested = donor_test(np.array([[0.3], [0.1], [0.4], [0.2]]))
    >>> round(float(tested.t[0]), 6), round(float(tested.p_value[0]), 6)
    (3.872983, 0.030466)
    """
    if values.ndim != 2:
        raise InputError(f"Tests over donors take values of donors × pairs, found {values.ndim} dimensions.")
    n_donors, mean, variance = _moments(values)
    freedom = np.where(n_donors >= FEWEST_DONORS, n_donors - 1.0, np.nan)
    prior = None
    if moderated:
        prior = fit_variance_prior(variance, freedom)
        variance, freedom = moderate(variance, freedom, prior)
    else:
        freedom[variance <= (_ROUNDING * mean) ** 2] = np.nan
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.sqrt(variance / n_donors)
        statistic = np.where(np.isnan(freedom), np.nan, mean / error)
    p_value = 2 * student.sf(np.abs(statistic), freedom)
    half = student.ppf(0.975, freedom) * error
    fdr = false_discovery_rate(pd.Series(p_value)).to_numpy()
    return DonorTest(mean, mean - half, mean + half, statistic, p_value, fdr, n_donors, prior)


def _moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return number, mean and variance over the donors that have a value; NaN where too few have."""
    starts = range(0, max(1, values.shape[1]), _AT_ONCE)
    blocks = [_moments_of_some(values[:, start : start + _AT_ONCE]) for start in starts]
    n_donors, mean, variance = (np.concatenate(of_blocks) for of_blocks in zip(*blocks, strict=True))
    return n_donors, mean, variance


def _moments_of_some(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    there = ~np.isnan(values)
    n_donors = there.sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.where(there, values, 0).sum(0) / n_donors
        squares = (np.where(there, values - mean, 0) ** 2).sum(0)
        variance = np.where(n_donors > 1, squares / (n_donors - 1), np.nan)
    return n_donors, mean, variance


def fit_variance_prior(variance: np.ndarray, freedom: np.ndarray) -> VariancePrior:
    """Fit what variances are drawn to, by the moments of their logarithms.

    Parameters
    ----------
    variance
        Sample variances, one a pair.
    freedom
        Degrees of freedom of each; a pair with NaN is left out.

    Returns
    -------
    Degrees of freedom and variance of the prior.

    Raises
    ------
    InputError
        Fewer than two pairs have a variance.

    Notes
    -----
    As limma's `fitFDist`: variances below 10⁻⁵ of their median count as that.
    """
    there = np.isfinite(freedom) & np.isfinite(variance)
    variance, freedom = variance[there], freedom[there]
    if len(variance) < 2 or not (median := np.median(variance)) > 0:
        raise InputError(
            f"A moderated test draws variances to those of other pairs; {len(variance)} pairs have three donors and a "
            "spread. Take states that more donors share, or lower min_cells."
        )
    half = freedom / 2
    logs = np.log(np.maximum(variance, 1e-5 * median)) - digamma(half) + np.log(half)
    mean = logs.mean()
    beyond = logs.var(ddof=1) - polygamma(1, half).mean()
    if beyond <= 0:
        return VariancePrior(np.inf, float(np.exp(mean)))
    half_prior = _inverse_trigamma(float(beyond))
    return VariancePrior(2 * half_prior, float(np.exp(mean + digamma(half_prior) - np.log(half_prior))))


def _inverse_trigamma(value: float) -> float:
    """Return x with trigamma(x) = value, by Newton's method on 1 / trigamma, which is nearly a line."""
    if value > 1e7:
        return value**-0.5
    if value < 1e-6:
        return 1 / value
    x = 0.5 + 1 / value
    for _ in range(50):
        there = float(polygamma(1, x))
        step = there * (1 - there / value) / float(polygamma(2, x))
        x += step
        if -step / x < 1e-12:
            break
    return x


def moderate(
    variance: np.ndarray, freedom: np.ndarray, prior: VariancePrior, *, pooled: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Draw variances to a prior.

    Parameters
    ----------
    variance, freedom
        Sample variances and their degrees of freedom; NaN stays.
    prior
        Of `fit_variance_prior`.
    pooled
        Most degrees of freedom that a test may have; default the sum of `freedom`.

    Returns
    -------
    The moderated variances, and their degrees of freedom.
    """
    pooled = float(np.nansum(freedom)) if pooled is None else pooled
    if np.isinf(prior.freedom):
        return np.where(np.isnan(freedom), np.nan, prior.variance), np.where(np.isnan(freedom), np.nan, pooled)
    total = prior.freedom + freedom
    moderated = (prior.freedom * prior.variance + freedom * variance) / total
    return moderated, np.minimum(total, pooled)


def sign_flips(values: np.ndarray, *, rng: np.random.Generator) -> GlobalTest:
    """Compare the number of strong pairs with that after flips of donors' signs.

    Parameters
    ----------
    values
        Differences, donors × pairs; NaN where a donor lacks the pair.
    rng
        For more than 12 donors, of which 4,096 random flips are made.

    Returns
    -------
    Number, expectation, p.

    Notes
    -----
    A donor's sign is flipped in all pairs at once, so pairs stay as dependent as they are. Both signs of everything
    give the same absolute t, so of D donors 2^(D−1) flips are distinct and p is at least one in so many: with four
    donors 1/8. A sum of squares does not change with signs, so a flip costs one product. t is not moderated: a flip
    spreads the values of an edge that differs, which a variance drawn to others would hide, and with it the finding.
    """
    there = [i for i, of_donor in enumerate(values) if not np.isnan(of_donor).all()]
    if len(there) < FEWEST_DONORS:
        return GlobalTest(0, np.nan, np.nan, 0, exact=True)
    signs, exact = _signs(len(there), rng)
    n_strong = np.zeros(len(signs), dtype=np.int64)
    for start in range(0, values.shape[1], _AT_ONCE):
        some = values[there, start : start + _AT_ONCE]
        n_donors = np.sum(~np.isnan(some), 0)
        enough = n_donors >= FEWEST_DONORS
        n_strong += _n_strong(np.nan_to_num(some[:, enough]), n_donors[enough], signs)
    others = n_strong[1:]
    p_value = (np.sum(others >= n_strong[0]) + 1) / (len(others) + 1)
    return GlobalTest(int(n_strong[0]), float(others.mean()), float(p_value), len(others), exact=exact)


def _signs(n_donors: int, rng: np.random.Generator) -> tuple[np.ndarray, bool]:
    """Return flips × donors, the first without any."""
    if n_donors <= MOST_EXACT_DONORS:
        rest = np.array(list(product([1.0, -1.0], repeat=n_donors - 1)))
        return np.column_stack([np.ones(len(rest)), rest]), True
    drawn = rng.choice([1.0, -1.0], size=(RANDOM_FLIPS, n_donors))
    return np.vstack([np.ones(n_donors), drawn]), False


def _n_strong(values: np.ndarray, n_donors: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """Return of each flip how many pairs have an absolute t above the limit."""
    squares = (values**2).sum(0)
    strong = np.zeros(len(signs), dtype=np.int64)
    for i, flip in enumerate(signs):
        of_mean = (flip @ values) ** 2 / n_donors  # n · mean²
        strong[i] = np.sum(of_mean * (n_donors - 1) > STRONG**2 * (squares - of_mean))
    return strong
