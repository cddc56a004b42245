"""Do methods agree, more than chance and the places of genes make them?"""

import numpy as np
import pandas as pd
import pytest
from made_explanations import Made, rows
from scipy.stats import spearmanr

import geneformer_repro as gf
from geneformer_repro import InputError
from geneformer_repro.in_silico.explanations.agreement import (
    agreement,
    chance_jaccard,
    compared,
    jaccard_of_tops,
    operator_of,
    spearman,
)
from geneformer_repro.in_silico.explanations.explanation import Explanation

_ = np.nan


def test_ranks_and_tops_are_those_of_the_specification():
    """Golden 5.10; of equal values the first count as larger."""
    a, b = np.array([3, 1, 2, 2, 5, 4, 0, 0]), np.array([2, 1, 3, 0, 4, 5, 0, 1])
    np.testing.assert_allclose(spearman(a, b), 0.774390243902, atol=1e-12)
    assert jaccard_of_tops(a, b, 3) == 0.5


def test_two_that_know_nothing_share_what_chance_gives():
    """5.9: of two top 50 of 1,000 the expected overlap is 2.5 genes."""
    assert chance_jaccard(50, 1000) * (100 - 2.5) == pytest.approx(2.5)
    rng = np.random.default_rng(0)
    drawn = [jaccard_of_tops(*rng.random((2, 1000)), 50) for _ in range(300)]
    np.testing.assert_allclose(np.mean(drawn), chance_jaccard(50, 1000), atol=0.003)


def test_a_constant_method_has_no_correlation():
    assert np.isnan(compared(np.ones(20), np.arange(20.0))["spearman"])


def test_a_top_of_all_genes_says_nothing():
    found = compared(np.arange(30.0), np.arange(30.0), tops=(10, 30))
    assert found["top_10"] == 1
    assert np.isnan([found["top_30"], found["top_30_chance"]]).all()


@pytest.fixture
def two_methods():
    """Of thirty genes in nine cells; signs differ between the methods, sizes hardly."""
    rng = np.random.default_rng(1)
    hide = {f"d{i % 3}.{i}": np.where(rng.random(30) < 0.8, rng.normal(size=30), np.nan) for i in range(9)}
    ig = {cell: -values + rng.normal(0, 0.1, 30) for cell, values in hide.items()}
    return hide, ig


def test_cells_are_compared_one_by_one_and_genes_by_their_means(two_methods):
    hide, ig = two_methods
    why = Made(pd.concat([rows(hide), rows(ig, method="integrated_gradients")]))
    table = agreement(why).set_index(["method_a", "method_b"])
    of_cells = []
    for cell, values in hide.items():
        known = ~np.isnan(values)
        of_cells.append(spearmanr(np.abs(values[known]), np.abs(ig[cell][known])).statistic)
    row = table.loc["hide", "integrated_gradients"]
    np.testing.assert_allclose(row[["lower", "spearman", "upper"]].astype(float), np.percentile(of_cells, [25, 50, 75]))
    means = [np.nanmean(np.abs(list(of.values())), 0) for of in two_methods]
    np.testing.assert_allclose(row["spearman_of_genes"], spearmanr(*means).statistic)
    np.testing.assert_allclose(row["top_10"], jaccard_of_tops(*means, 10))
    assert row["n_cells"] == 9
    assert row["n_genes"] == 30
    assert row["top_10_chance"] == 10 / 50
    assert np.isnan(row["top_50"])


def test_the_place_alone_is_a_method_among_the_others(two_methods):
    hide, _ = two_methods
    in_front = {cell: np.where(np.isnan(values), np.nan, 100 - np.arange(30)) for cell, values in hide.items()}
    table = agreement(Made(rows(in_front)))
    assert table[["method_a", "method_b"]].to_numpy().tolist() == [["hide", "place"]]
    np.testing.assert_allclose(table["spearman"], 1)
    assert not table["same_operator"].any()


def test_characters_of_a_smiles_are_compared_among_themselves(two_methods):
    """Genes whose values are read have no place, characters theirs in the SMILES; the two are not compared."""
    parts = [rows(of, method=name) for of, name in zip(two_methods, ("mask", "integrated_gradients"), strict=True)]
    genes = pd.concat(parts).assign(place=pd.array([pd.NA] * sum(map(len, parts)), dtype="Int32"))
    characters = pd.concat(parts)
    characters = characters.assign(place=characters["gene"].str[1:].astype("Int32"), gene=None)
    table = agreement(Made(pd.concat([genes, characters]), {"family": "pairs"}))
    of_genes, of_characters = "integrated_gradients", "integrated_gradients of characters"
    assert set(zip(table["method_a"], table["method_b"], strict=True)) == {
        ("mask", of_genes),
        ("mask of characters", of_characters),
        ("mask of characters", "place"),
        (of_characters, "place"),
    }
    by_method = table.set_index("method_b")
    among = ["spearman", "spearman_of_genes", "n_genes", "top_10"]
    np.testing.assert_array_equal(*by_method.loc[[of_genes, of_characters], among].to_numpy(float))


def test_methods_of_one_operator_are_marked(two_methods):
    hide, ig = two_methods
    names = ("hide", "first_order", "integrated_gradients", "mask")
    parts = [rows(hide if i < 2 else ig, method=name) for i, name in enumerate(names)]
    marked = agreement(Made(pd.concat(parts))).query("same_operator")
    assert marked[["method_a", "method_b"]].to_numpy().tolist() == [
        ["hide", "first_order"],
        ["integrated_gradients", "mask"],
    ]


def test_a_surrogate_is_of_the_operator_of_its_masks():
    assert operator_of("surrogate", {}) == operator_of("hide", {})
    assert operator_of("surrogate", {"methods": {"surrogate": {"operator": "median_rank"}}}) == operator_of(
        "median_rank", {}
    )


def test_cells_of_few_genes_and_incomplete_ones_are_left_out(two_methods):
    hide, ig = two_methods
    few = {"d0.few": [1.0, 2.0, 3.0] + [_] * 27}
    parts = [rows(hide | few), rows(ig | few, method="integrated_gradients", gap=0.0)]
    parts[1].loc[parts[1]["cell"] == "d0.0", "gap"] = 1.0
    row = agreement(Made(pd.concat(parts))).iloc[0]
    assert row["n_cells"] == 8


@pytest.mark.parametrize("size", [5, 40, 10_000])
def test_blocks_of_any_size_give_the_same_table(two_methods, size):
    hide, ig = two_methods
    table = pd.concat([rows(hide), rows(ig, method="mask")])
    pd.testing.assert_frame_equal(agreement(Made(table, size=size)), agreement(Made(table, size=999)))


def test_cells_of_one_name_are_refused(two_methods):
    table = rows(two_methods[0])
    with pytest.raises(InputError, match="Several cells are called"):
        agreement(Made(pd.concat([table, table]), size=10_000))


def test_states_are_compared_apart(two_methods):
    hide, ig = two_methods
    parts = [rows(of, method=method, state=state) for state in "BT" for of, method in ((hide, "hide"), (ig, "mask"))]
    assert agreement(Made(pd.concat(parts))).groupby("state").size().to_dict() == {"B": 3, "T": 3}


def test_a_surrogate_that_fits_poorly_ranks_nothing(two_methods):
    """Means over cells keep it: it fits worst where few genes matter."""
    hide, ig = two_methods
    fits = rows(ig, method="surrogate", r2=0.9, stability=0.9)
    fits.loc[fits["cell"] == "d0.0", "stability"] = 0.4
    fits.loc[fits["cell"] == "d1.1", "r2"] = 0.2
    why = Made(pd.concat([rows(hide, r2=np.nan, stability=np.nan), fits]))
    assert agreement(why).iloc[0]["n_cells"] == 7
    assert set(why.genes()["n_cells"].groupby(why.genes().index).nunique()) == {1}


def test_one_method_of_what_has_no_place_is_compared_with_nothing(two_methods):
    """As of expression networks, which read values."""
    why = Made(rows(two_methods[0]).assign(place=pd.array([pd.NA] * len(rows(two_methods[0])), dtype="Int32")))
    assert agreement(why).empty
    check = gf.evaluate_explanation(why)
    assert "beyond" in check.genes
    with pytest.raises(InputError, match="of what has no place"):
        gf.plot_explanation(why, kind="agreement")


def test_a_page_of_what_has_no_place_can_be_written(two_methods, tmp_path):
    why = Made(rows(two_methods[0]).assign(place=pd.array([pd.NA] * len(rows(two_methods[0])), dtype="Int32")))
    gf.write_explanation_report(Explanation(why.table, {**why.metadata, "n_cells": 9}), tmp_path / "why.html")
    assert "Strongest genes by hide" in (tmp_path / "why.html").read_text()
