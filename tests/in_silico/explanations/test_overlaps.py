"""Overlaps by chance: published and worked numbers, against scipy, and against drawing."""

import numpy as np
import pytest
from scipy.stats import hypergeom

from geneformer_repro.in_silico.explanations.overlaps import chance_overlap, hypergeometric, odds_ratio

EXACT = {"rtol": 1e-12}


def of_one(members, genes, chosen, overlap):
    found = chance_overlap(np.array([members]), np.array(genes), np.array(chosen), np.array([overlap]))
    return float(found.expected[0]), float(found.p_value[0])


@pytest.mark.parametrize(
    ("members", "genes", "chosen", "overlap", "expected", "p_value"),
    [
        pytest.param([40], [1_000], [50], 6, 2.0, 0.0119790384802, id="among the tested genes"),
        pytest.param([40], [20_000], [50], 6, 0.1, 6.44003471777e-10, id="among a genome"),
        pytest.param([10, 5, 1], [100, 200, 50], [12, 6, 2], 5, 1.39, 0.00579307694887, id="within strata"),
        pytest.param([16], [350], [20], 5, 0.914285714286, 0.00105803411841, id="the same without strata"),
        pytest.param([50], [1_000], [50], 8, 2.5, 0.00235802888823, id="two choices of 50"),
    ],
)
def test_worked_numbers(members, genes, chosen, overlap, expected, p_value):
    np.testing.assert_allclose(
        of_one(members, genes, chosen, overlap), (expected, p_value), rtol=1e-11
    )  # given to 12 digits


def test_odds_ratio_with_and_without_a_half():
    of = [np.array(n) for n in (6, 40, 50, 1_000)]
    np.testing.assert_allclose(odds_ratio(*of, added=0), 3.673796791444, rtol=1e-12)
    np.testing.assert_allclose(odds_ratio(*of), 3.880312652662, rtol=1e-12)
    assert np.isfinite(odds_ratio(np.array(0), np.array(5), np.array(5), np.array(10)))


@pytest.mark.parametrize(("n_genes", "n_chosen"), [(30, 7), (30, 25), (12, 12), (7_000, 150), (5, 0)])
def test_chances_are_those_of_scipy(n_genes, n_chosen):
    members = np.arange(min(n_genes, 60) + 1)
    chance = hypergeometric(n_genes, n_chosen, members)
    at = np.arange(chance.shape[1])
    expected = hypergeom.pmf(at[None], n_genes, members[:, None], n_chosen)
    np.testing.assert_allclose(chance, expected, rtol=1e-9, atol=1e-300)


def test_one_stratum_is_fishers_test_of_every_overlap():
    overlap = np.arange(11)
    found = chance_overlap(np.full((11, 1), 10), np.array([80]), np.array([25]), overlap)
    np.testing.assert_allclose(found.p_value, hypergeom.sf(overlap - 1, 80, 10, 25), rtol=1e-10)


def test_within_strata_is_what_drawing_within_strata_gives():
    rng = np.random.default_rng(0)
    genes, chosen, members = np.array([30, 8, 50, 3]), np.array([5, 6, 4, 0]), np.array([[6, 4, 9, 2]])
    drawn = sum(
        rng.hypergeometric(m, n - m, k, size=200_000) for n, k, m in zip(genes, chosen, members[0], strict=True)
    )
    for overlap in range(1, 9):
        p_value = chance_overlap(members, genes, chosen, np.array([overlap])).p_value[0]
        np.testing.assert_allclose(p_value, (drawn >= overlap).mean(), atol=0.004)


def test_a_set_is_the_same_beside_others():
    """Sets share distributions and are worked off by size, a few hundred at once."""
    rng = np.random.default_rng(1)
    genes, chosen = rng.integers(20, 60, 5), rng.integers(0, 15, 5)
    members = rng.integers(0, 12, (700, 5))
    overlap = np.array([rng.integers(0, np.minimum(of, chosen).sum() + 1) for of in members])
    together = chance_overlap(members, genes, chosen, overlap).p_value
    for i in (0, 13, 301, 699):
        alone = chance_overlap(members[i : i + 1], genes, chosen, overlap[i : i + 1]).p_value[0]
        np.testing.assert_allclose(together[i], alone, **EXACT)


def test_no_overlap_has_p_value_one_and_all_of_it_the_least():
    genes, chosen = np.array([10, 10]), np.array([2, 3])
    members = np.array([[2, 3], [2, 3]])
    found = chance_overlap(members, genes, chosen, np.array([0, 5])).p_value
    assert found[0] == 1.0
    np.testing.assert_allclose(found[1], 1 / (45 * 120), **EXACT)
