"""Genes are taken away by what a method says of them; what becomes of the answer tells what that was worth."""

import numpy as np
import pytest

from geneformer_repro.in_silico.explanations.removal import (
    BY_CHANGE,
    BY_PLACE,
    SHARES,
    Judge,
    RankedRow,
    area,
    faithfulness,
    n_taken,
    order_of,
    orders,
)

rng = np.random.default_rng(0)
WORTH = rng.gamma(0.3, 1, 100)
"""What each gene adds to the answer: few matter."""


GENES = [rng.permutation(100)[:80] for _ in range(12)]
"""Of each cell."""


def value_of(altered):
    """The answer of a model that adds up what the genes that are left are worth."""
    return np.array([WORTH[np.delete(GENES[number], places)].sum() for number, places in altered])


@pytest.fixture(scope="module")
def cells():
    made = []
    for i, genes in enumerate(GENES):
        says = {"hide": WORTH[genes], "attention": rng.random(80), "integrated_gradients": WORTH[genes] ** 0.1}
        simple = {BY_PLACE: -np.arange(80.0), BY_CHANGE: -WORTH[genes]}
        made.append(RankedRow(f"c{i}", f"d{i % 4}", np.arange(80), orders(says, simple)))
    return made


def test_the_area_is_that_of_the_specification():
    """Golden 5.10."""
    np.testing.assert_allclose(area([0, 0.25, 0.5, 0.75, 1], np.array([0.95, 0.7, 0.4, 0.3, 0.25])), 0.5, atol=1e-12)


def test_faithfulness_is_one_for_the_best_and_nought_for_random():
    assert [faithfulness(3.0, method, 1.0) for method in (1.0, 2.0, 3.0, 4.0)] == [1, 0.5, 0, -0.5]
    assert np.isnan(faithfulness(3.0, 3.0, 3.0))


def test_genes_without_a_value_go_last():
    assert order_of(np.array([1, np.nan, 3, 3, -2])).tolist() == [2, 3, 0, 4, 1]


def test_shares_are_rounded_to_genes():
    assert n_taken(150, SHARES).tolist() == [0, 2, 3, 8, 15, 30, 75]


def test_unsigned_methods_have_no_opposite_order():
    assert list(orders({"hide": np.ones(2), "rollout": np.ones(2)}, {BY_PLACE: np.ones(2)})) == [
        "hide, largest first",
        "rollout, largest first",
        "hide, smallest first",
        BY_PLACE,
    ]


@pytest.fixture(scope="module")
def removed(cells):
    return Judge("hide", value_of).curves(cells, {}, rng=np.random.default_rng(1))


def test_the_answer_falls_along_a_curve_as_its_genes_go(cells, removed):
    points = removed.points.pivot(index="order", columns="share", values="value")
    whole = np.mean([WORTH[genes].sum() for genes in GENES])
    np.testing.assert_allclose(points[0.0], whole)
    top = [np.sort(WORTH[genes])[::-1][:40].sum() for genes in GENES]
    np.testing.assert_allclose(points.loc["hide, largest first", 0.5], whole - np.mean(top))
    assert points.loc["hide, smallest first", 0.5] > points.loc["random", 0.5] > points.loc["hide, largest first", 0.5]


def test_random_orders_make_a_band_around_what_they_give(removed):
    random = removed.points.query("order == 'random'")
    assert (random["low"] <= random["value"]).all()
    assert (random["value"] <= random["high"] + 1e-9).all()  # which sums of ten are to a digit
    assert random["low"].iloc[-1] < random["high"].iloc[-1]


def test_each_order_stands_between_random_and_the_best(removed):
    areas = removed.areas.set_index("order")
    assert areas.loc["hide, largest first", "faithfulness"] == 1
    assert set(areas["best"]) == {"hide, largest first"}
    assert abs(areas.loc["attention, largest first", "faithfulness"]) < 0.5
    assert areas.loc[BY_CHANGE, "faithfulness"] < -0.1
    assert np.isnan(areas.loc["hide, smallest first", "faithfulness"])


def test_donors_are_the_replicates_of_what_is_better_than_random(removed):
    areas = removed.areas.set_index("order")
    best = areas.loc["hide, largest first"]
    assert best["n_donors"] == 4
    assert 0 < best["low"] < best["better"] < best["high"]
    assert best["p_value"] < 0.01
    assert areas.loc["attention, largest first", "p_value"] > 0.01


def test_without_donors_there_is_no_interval(cells):
    nameless = [cell._replace(donor=None) for cell in cells]
    areas = Judge("hide", value_of).curves(nameless, {}, rng=np.random.default_rng(1)).areas
    assert areas[["low", "high", "p_value"]].isna().all(axis=None)
    assert set(areas["n_donors"]) == {0}


def test_who_is_judged_by_its_own_operator_is_marked(removed, cells):
    assert removed.areas.query("own_operator")["order"].tolist() == ["hide, largest first", "hide, smallest first"]
    by_mask = (
        Judge("mask", value_of).curves(cells, {}, rng=np.random.default_rng(1)).areas.query("own_operator")["order"]
    )
    assert {order.partition(",")[0] for order in by_mask} == {"integrated_gradients"}


def test_insertion_begins_with_no_gene_and_brings_the_first_of_an_order(cells):
    curves = Judge("mask", value_of, inserting=True).curves(cells, {}, rng=np.random.default_rng(1))
    points = curves.points.pivot(index="order", columns="share", values="value")
    np.testing.assert_allclose(points[0.0], 0, atol=1e-12)
    top = [np.sort(WORTH[genes])[::-1][:16].sum() for genes in GENES]
    np.testing.assert_allclose(points.loc["hide, largest first", 0.2], np.mean(top))
    areas = curves.areas.set_index("order")
    assert areas.loc["hide, largest first", "faithfulness"] == 1
    assert areas.loc["hide, largest first", "better"] > 0
    assert areas.loc[BY_CHANGE, "better"] < 0


def test_the_gene_that_is_asked_about_stays():
    seen = []

    def values(altered):
        seen.extend(places for _, places in altered)
        return np.zeros(len(seen))

    free = np.delete(np.arange(20), 3)
    row = RankedRow("c", None, free, {"hide, largest first": -np.arange(20.0)})
    Judge("hide", values, n_random=2).curves([row], {}, rng=np.random.default_rng(0))
    assert all(3 not in places for places in seen)
    assert max(map(len, seen)) == 10


def test_where_nothing_matters_nothing_is_faithful(cells):
    areas = Judge("hide", lambda altered: np.ones(sum(1 for _ in altered))).curves(
        cells, {}, rng=np.random.default_rng(0)
    )
    assert areas.areas["faithfulness"].isna().all()
