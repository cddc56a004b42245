"""Running sums: the worked example, every set of three, and GSEApy as an oracle."""

from itertools import combinations

import numpy as np
import pytest

from geneformer_repro.in_silico.explanations.running_sums import (
    Members,
    against,
    enriched,
    enrichment_scores,
    leading_edge,
    running_sum,
)

STATS = np.array([5.0, 4, 3, 2, 1, -1, -2, -3, -4, -5])
SET = np.array([0, 2, 5])
EVERY = [np.array(places) for places in combinations(range(10), 3)]


def scores_of(stats, sets, weight=1.0):
    order = np.argsort(-stats, kind="stable")
    return enrichment_scores(order[None], np.abs(stats[order])[None] ** weight, Members.of(sets, len(stats)))[0]


def test_the_running_sum_of_the_worked_example():
    expected = [
        0.555555555556, 0.412698412698, 0.746031746032, 0.603174603175, 0.460317460317, 0.571428571429, 0.428571428571,
        0.285714285714, 0.142857142857, 0,
    ]  # fmt: skip
    np.testing.assert_allclose(running_sum(STATS, np.isin(np.arange(10), SET)), expected, atol=1e-12)


@pytest.mark.parametrize(("weight", "es"), [(1.0, 0.746031746032), (0.0, 0.571428571429)])
def test_its_extreme_weighted_and_not(weight, es):
    np.testing.assert_allclose(scores_of(STATS, [SET], weight), [es], rtol=1e-11)


def test_all_sets_of_three_are_the_null_of_one():
    """120 sets: 65 have a score of 0 or more, as those that go as far up as down have 0."""
    every = scores_of(STATS, EVERY)
    np.testing.assert_allclose((every >= 0).sum(), 65)
    np.testing.assert_allclose(every[every >= 0].mean(), 0.498733061810, rtol=1e-11)
    found = against(scores_of(STATS, [SET])[None], every[:, None])
    np.testing.assert_allclose(found.nes, [1.495853800680], rtol=1e-11)
    np.testing.assert_allclose(found.p_value, [(10 + 1) / (65 + 1)])


def test_every_set_has_the_extreme_of_its_running_sum():
    rng = np.random.default_rng(0)
    stats = rng.normal(size=200)
    sets = [rng.choice(200, size, replace=False) for size in (1, 3, 20, 60, 199)]
    order = np.argsort(-stats)
    for of, score in zip(sets, scores_of(stats, sets), strict=True):
        sums = running_sum(stats[order], np.isin(order, of))
        np.testing.assert_allclose(score, sums[np.argmax(np.abs(sums))], atol=1e-12)


def test_turning_the_ranking_round_turns_the_score_round():
    np.testing.assert_allclose(scores_of(-STATS, EVERY), -scores_of(STATS, EVERY), atol=1e-12)


def test_gseapy_has_the_same_scores():
    gseapy = pytest.importorskip("gseapy", reason="oracle: pip install gseapy")
    import pandas as pd

    rng = np.random.default_rng(0)
    stats = np.sort(rng.normal(size=300))[::-1]
    genes = np.array([f"G{i}" for i in range(300)])
    sets = {f"S{i}": rng.choice(300, 20, replace=False) for i in range(8)}
    ranking = pd.DataFrame({"gene": genes, "stat": stats})
    oracle = gseapy.prerank(
        ranking, {name: genes[of].tolist() for name, of in sets.items()}, min_size=1, permutation_num=2, outdir=None
    ).res2d.set_index("Term")["ES"]
    ours = scores_of(stats, list(sets.values()))
    np.testing.assert_allclose(ours, oracle.loc[list(sets)].astype(float), atol=1e-6)


def test_exchanges_within_strata_see_no_set_in_a_ranking_that_is_the_stratum():
    """Two strata far apart: a set that is all of the upper one stands out among all genes, not among its own."""
    rng = np.random.default_rng(0)
    stratum = np.repeat([0, 1], 150)
    score = np.where(stratum == 1, 3.0, 0.0) + 0.1 * rng.normal(size=300)
    members = Members.of([np.arange(150, 190)], 300)
    matched = enriched(score, members, stratum, n_permutations=200, rng=rng)
    plain = enriched(score, members, np.zeros(300, dtype=np.int64), n_permutations=200, rng=rng)
    assert plain.p_value[0] < 0.01
    assert matched.p_value[0] > 0.05


def test_equal_scores_are_averaged_over_orders_and_their_spread_is_told():
    rng = np.random.default_rng(0)
    tied = np.repeat([2.0, 1.0, -1.0], 20)
    sets = Members.of([np.arange(0, 60, 6)], 60)
    found = enriched(tied, sets, np.zeros(60, dtype=np.int64), n_permutations=20, rng=rng)
    assert found.es_sd[0] > 0
    apart = enriched(np.linspace(1, -1, 60), sets, np.zeros(60, dtype=np.int64), n_permutations=20, rng=rng)
    assert apart.es_sd[0] == 0


def test_the_leading_edge_is_what_stands_before_the_extreme():
    order = np.arange(10)
    np.testing.assert_array_equal(leading_edge(order, np.abs(STATS), SET), [0, 2])
    np.testing.assert_array_equal(leading_edge(order, np.abs(STATS), np.array([3, 8, 9])), [8, 9])
