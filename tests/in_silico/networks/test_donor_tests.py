"""Tests over donors, against published numbers, scipy, and what is drawn under the null hypothesis."""

from itertools import product

import numpy as np
import pytest
from scipy.special import digamma, polygamma
from scipy.stats import chi2, kstest, ttest_1samp

from geneformer_repro.errors import InputError
from geneformer_repro.in_silico.networks.donor_tests import (
    VariancePrior,
    donor_test,
    fit_variance_prior,
    moderate,
    sign_flips,
)

_DIFFERENCES = np.array([[0.3], [0.1], [0.4], [0.2]])
"""Of four donors."""


def _with_effects(rng: np.random.Generator, n_donors: int = 6, n_pairs: int = 4_000) -> np.ndarray:
    """Differences whose variances differ; the first tenth of the pairs has an effect."""
    sd = np.sqrt(1 / chi2.rvs(8, size=n_pairs, random_state=rng) * 8)
    values = rng.normal(0, sd, (n_donors, n_pairs))
    values[:, : n_pairs // 10] += 2
    return values


# One-sample t-tests


def test_t_and_p_are_the_published_ones() -> None:
    tested = donor_test(_DIFFERENCES)
    np.testing.assert_allclose([tested.t[0], tested.p_value[0]], [3.87298334621, 0.0304662916622], rtol=1e-11)


def test_tests_are_scipys_where_donors_lack_pairs() -> None:
    values = np.random.default_rng(0).normal(0.4, 1, (7, 50))
    values[np.random.default_rng(1).random((7, 50)) < 0.3] = np.nan
    tested = donor_test(values)
    several = tested.n_donors >= 3
    expected = ttest_1samp(values[:, several], 0, nan_policy="omit")
    interval = expected.confidence_interval()
    for found, wanted in (
        (tested.t, expected.statistic),
        (tested.p_value, expected.pvalue),
        (tested.low, interval.low),
        (tested.high, interval.high),
    ):
        np.testing.assert_allclose(found[several], np.ma.filled(wanted), rtol=1e-9)


def test_below_three_donors_there_is_an_effect_and_no_test() -> None:
    tested = donor_test(np.array([[0.3, np.nan], [0.1, np.nan], [np.nan, 0.2]]))
    np.testing.assert_allclose(tested.mean, [0.2, 0.2])
    assert tested.n_donors.tolist() == [2, 1]
    for values in (tested.t, tested.p_value, tested.fdr, tested.low, tested.high):
        assert np.isnan(values).all()


def test_values_that_differ_by_rounding_only_have_no_test() -> None:
    assert np.isnan(donor_test(np.full((4, 1), 0.1) * [1 + 1e-15]).p_value).all()


def test_p_values_of_nothing_are_uniform() -> None:
    values = np.random.default_rng(2).normal(0, 1, (6, 5_000))
    assert kstest(donor_test(values).p_value, "uniform").pvalue > 0.01


# Moderated


def test_a_moderated_variance_and_its_test_are_the_published_ones() -> None:
    variance, freedom = moderate(np.array([1 / 60]), np.array([3.0]), VariancePrior(4, 0.01), pooled=np.inf)
    np.testing.assert_allclose([variance[0], freedom[0]], [0.0128571428571, 7], rtol=1e-11)
    from scipy.stats import t

    statistic = 0.25 / np.sqrt(variance[0] / 4)
    np.testing.assert_allclose([statistic, 2 * t.sf(statistic, 7)], [4.40958551844, 0.00312038343433], rtol=1e-10)


@pytest.mark.parametrize("freedom", [2.5, 8.0, 60.0])
def test_the_prior_that_variances_were_drawn_from_is_found(freedom: float) -> None:
    rng = np.random.default_rng(3)
    true = 0.3 * freedom / chi2.rvs(freedom, size=50_000, random_state=rng)
    sampled = true * chi2.rvs(5, size=50_000, random_state=rng) / 5
    prior = fit_variance_prior(sampled, np.full(50_000, 5.0))
    assert prior.freedom == pytest.approx(freedom, rel=0.15)
    assert prior.variance == pytest.approx(0.3, rel=0.03)


def test_the_prior_has_the_moments_of_the_logarithms() -> None:
    """limma's fitFDist: the mean and the variance of log s² are those of the scaled F distribution that is fitted."""
    variance, freedom = np.random.default_rng(4).lognormal(0, 1.3, 200), np.full(200, 3.0)
    prior = fit_variance_prior(variance, freedom)
    logs = np.log(variance)
    spread = polygamma(1, 1.5) + polygamma(1, prior.freedom / 2)
    mean = np.log(prior.variance) + digamma(1.5) - np.log(1.5) - digamma(prior.freedom / 2) + np.log(prior.freedom / 2)
    np.testing.assert_allclose([logs.var(ddof=1), logs.mean()], [spread, mean], rtol=1e-9)


def test_variances_that_differ_by_chance_alone_become_one() -> None:
    """Drawn from one variance and with logs less spread than chance makes them, they say that there is one."""
    variance = np.linspace(0.9, 1.1, 30)
    prior = fit_variance_prior(variance, np.full(30, 4.0))
    assert prior.freedom == np.inf
    moderated, freedom = moderate(variance, np.full(30, 4.0), prior)
    assert set(moderated) == {prior.variance}
    assert set(freedom) == {120.0}


def test_a_moderated_test_has_no_more_freedom_than_all_pairs_together() -> None:
    _, freedom = moderate(np.ones(3), np.full(3, 2.0), VariancePrior(100, 1.0))
    assert set(freedom) == {6.0}


def test_moderation_finds_more_of_few_donors() -> None:
    values = _with_effects(np.random.default_rng(5), n_donors=4)
    found = {moderated: donor_test(values, moderated=moderated).fdr[:400] < 0.05 for moderated in (False, True)}
    assert found[True].mean() > found[False].mean() + 0.1


def test_moderated_p_values_of_nothing_are_uniform() -> None:
    values = _with_effects(np.random.default_rng(6))[:, 400:]
    assert kstest(donor_test(values, moderated=True).p_value, "uniform").pvalue > 0.01


def test_nothing_to_draw_variances_from_is_refused() -> None:
    with pytest.raises(InputError, match="0 pairs have three donors"):
        donor_test(np.zeros((2, 5)), moderated=True)


# Sign flips


def _slow_flips(values: np.ndarray) -> list[int]:
    """Number of strong pairs of every flip, one by one."""
    numbers = []
    for rest in product([1, -1], repeat=len(values) - 1):
        numbers.append(int(np.sum(np.abs(ttest_1samp(values * np.array([1, *rest])[:, None], 0).statistic) > 3)))
    return numbers


def test_flips_count_as_one_by_one() -> None:
    values = _with_effects(np.random.default_rng(7), n_pairs=300)
    tested = sign_flips(values, rng=np.random.default_rng(0))
    numbers = _slow_flips(values)
    assert (tested.n_strong, tested.n_flips) == (numbers[0], 31)
    assert tested.expected == pytest.approx(np.mean(numbers[1:]))
    assert tested.p_value == (np.sum(np.array(numbers[1:]) >= numbers[0]) + 1) / 32 == 1 / 32


def test_flips_of_nothing_are_not_significant() -> None:
    rng = np.random.default_rng(8)
    p_values = [sign_flips(rng.normal(0, 1, (6, 500)), rng=rng).p_value for _ in range(40)]
    assert np.mean(np.array(p_values) <= 0.1) < 0.3
    assert np.mean(p_values) == pytest.approx(0.5, abs=0.15)


def test_what_all_pairs_of_a_donor_share_makes_no_finding() -> None:
    """One donor that differs in every pair makes thousands of them strong together, and a flip does as well."""
    rng = np.random.default_rng(9)
    values = rng.normal(0, 0.1, (6, 2_000)) + np.array([[0.1], [0.2], [0.3], [0.4], [0.5], [-0.1]])
    tested = sign_flips(values, rng=rng)
    assert tested.n_strong > 100
    assert tested.p_value > 0.03  # one in 32


def test_many_donors_get_random_flips() -> None:
    tested = sign_flips(np.random.default_rng(10).normal(0, 1, (13, 20)), rng=np.random.default_rng(0))
    assert (tested.n_flips, tested.exact) == (4_096, False)


def test_two_donors_have_no_flips() -> None:
    tested = sign_flips(np.ones((2, 5)), rng=np.random.default_rng(0))
    assert np.isnan(tested.p_value)
