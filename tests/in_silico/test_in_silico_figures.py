"""Pictures of a screen hold what the tables of statistics hold."""

import numpy as np
import pandas as pd
import pytest
from drawing import EveryFigure, named_points, rows, texts

from geneformer_repro.in_silico.figures import (
    dose_figure,
    from_above_to_below,
    pairs_figure,
    ranked_effects_figure,
    strongest,
    volcano_figure,
)

EFFECTS = pd.DataFrame(
    {
        "gene_name": ["sure", "noisy", "unmeasured", "down", "near"],
        "effect": [0.3, 0.9, 1.0, -0.2, -0.1],
        "low": [0.2, -0.5, np.nan, -0.3, -0.12],
        "high": [0.4, 2.3, np.nan, -0.1, -0.08],
        "n_cells": [1200, 3, 1, 40, 40],
        "n_donors": [4, 2, 0, 1, 3],
    }
)
CURVES = pd.DataFrame(
    {
        "gene_name": ["a", "a", "b", "b", "c", "c"],
        "dose": [1.0, 0.0, 0.0, 1.0, 0.0, 1.0],
        "value": [0.1, 0.3, -0.2, 0.0, 0.01, 0.02],
        "low": [0.0, 0.2, -0.4, -0.1, np.nan, np.nan],
        "high": [0.2, 0.4, 0.0, 0.1, np.nan, np.nan],
    }
)
PAIRS = pd.DataFrame(
    {
        "gene_a": ["a", "c", "b", "d"],
        "gene_b": ["b", "a", "c", "a"],
        "interaction": [0.4, -0.1, 0.2, 0.01],
        "fdr": [0.01, 0.2, np.nan, 0.04],
    }
)


def forty_genes():
    """A table of which the first genes are the strongest, in any order."""
    p_value = np.geomspace(1e-12, 1, 40)
    effect = np.linspace(1, 0.01, 40) * np.resize([1, -1], 40)
    columns = {"gene_name": [f"GENE{i}" for i in range(40)], "effect": effect, "p_value": p_value, "fdr": p_value * 2}
    return pd.DataFrame(columns, index=[f"ENSG{i:011d}" for i in range(40)]).sample(frac=1, random_state=0)


@pytest.fixture
def genes():
    return forty_genes()


FIGURES = {
    "volcano": lambda: volcano_figure(forty_genes(), effect_name="shift"),
    "ranked_effects": lambda: ranked_effects_figure(EFFECTS, effect_name="shift"),
    "ranked_long": lambda: ranked_effects_figure(
        EFFECTS.assign(gene_name="ENSG00000000001 + ENSG00000000002", n_cells=10**6), effect_name="long words " * 9
    ),
    "dose": lambda: dose_figure(CURVES, value_name="shift"),
    "pairs": lambda: pairs_figure(PAIRS, value_name="interaction"),
}


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES, scope="class")
class TestEveryFigure(EveryFigure):
    pass


def test_a_volcano_names_the_strongest_genes(genes):
    written = texts(volcano_figure(genes, effect_name="shift", n_named=5))["written"]
    assert sorted(written) == [f"GENE{i}" for i in range(5)]


def test_a_volcano_names_no_gene_where_none_is_asked_for(genes):
    assert texts(volcano_figure(genes, effect_name="shift", n_named=0))["written"] == []


def test_a_volcano_counts_significant_genes_by_direction(genes):
    significant = genes["fdr"] < 0.05
    up, down = (significant & (genes["effect"] > 0)).sum(), (significant & (genes["effect"] <= 0)).sum()
    shown = texts(volcano_figure(genes, effect_name="mean cosine shift"))
    assert shown["legend"] == [
        f"FDR ≥ 0.05 ({(~significant).sum()})",
        f"FDR < 0.05, effect above 0 ({up})",
        f"FDR < 0.05, effect below 0 ({down})",
    ]
    assert shown["axes"][0] == "mean cosine shift"


def test_a_volcano_of_p_values_that_are_zero_stays_finite(genes):
    genes["p_value"] = 0.0
    points = np.concatenate(
        [drawn.get_offsets() for drawn in volcano_figure(genes, effect_name="x").axes[0].collections]
    )
    assert np.isfinite(points).all()


def test_names_of_neighbouring_genes_do_not_overlap():
    n = 10
    columns = {"gene_name": [f"G{i}" for i in range(n)], "effect": 1.0, "p_value": np.full(n, 1e-5), "fdr": 1e-4}
    table = pd.DataFrame(columns, index=range(n))
    table.loc[0, "p_value"] = 1.0
    levels = sorted(text.get_position()[1] for text in volcano_figure(table, effect_name="x").axes[0].texts)
    assert (np.diff(levels) > 0.1).all()


def test_a_volcano_counts_genes_without_a_p_value_and_draws_the_others(genes):
    genes.loc[genes["gene_name"].isin(["GENE0", "GENE39"]), ["p_value", "fdr"]] = np.nan
    figure = volcano_figure(genes, effect_name="x", n_named=1)
    assert sum(len(drawn.get_offsets()) for drawn in figure.axes[0].collections) == 38
    assert texts(figure)["legend"][-1] == "no p-value, not drawn (2)"
    assert texts(figure)["written"] == ["GENE1"]


def test_a_volcano_of_no_p_values_says_so(genes):
    assert texts(volcano_figure(genes.assign(p_value=np.nan), effect_name="x"))["written"] == ["no gene has a p-value"]


def test_genes_with_a_warning_are_named_and_ranked_after_all_others():
    table = EFFECTS.assign(warning=["3 cells", *[""] * (len(EFFECTS) - 1)])
    first = EFFECTS["gene_name"].iloc[0]
    assert first not in strongest(table, 9)["gene_name"].tolist()
    assert first in strongest(table.assign(warning="3 cells"), 9)["gene_name"].tolist()
    tested = table.assign(p_value=[1e-9, *[0.5] * (len(table) - 1)], fdr=0.5)
    written = [text.get_text() for text in volcano_figure(tested, effect_name="x", n_named=2).axes[0].texts]
    assert len(written) == 2
    assert first not in written


def test_the_whole_table_goes_from_what_is_surely_above_0_to_what_is_surely_below():
    assert from_above_to_below(EFFECTS)["gene_name"].tolist() == ["sure", "noisy", "unmeasured", "near", "down"]


def test_points_of_a_volcano_are_named_with_what_is_known_of_them(genes):
    points = named_points(volcano_figure(genes.assign(n_cells=7), effect_name="x"))
    assert points["names"] == genes["gene_name"].tolist()
    assert list(points["said"]) == ["effect", "p_value", "fdr", "n_cells"]


@pytest.mark.parametrize("n", [2, 40])
def test_names_in_a_volcano_stay_within_the_picture(genes, n):
    genes = genes.nsmallest(n, "p_value").assign(p_value=[1e-30, *np.full(n - 1, 0.01)])
    genes["gene_name"] = "ENSG00000000001 → ENSG00000000002"
    figure = volcano_figure(genes, effect_name="what was measured, said at some length, " * 3)
    figure.draw_without_rendering()
    area = figure.axes[0].get_window_extent()
    for text in figure.axes[0].texts:
        shown = text.get_window_extent()
        assert shown.y0 >= area.y0
        assert shown.x0 >= 0
        assert shown.x1 <= figure.bbox.x1


def test_the_strongest_genes_are_those_whose_interval_stays_furthest_from_0():
    assert strongest(EFFECTS, 1)["gene_name"].tolist() == ["sure", "down"]
    assert strongest(EFFECTS, 9)["gene_name"].tolist() == ["noisy", "sure", "near", "down"]


def test_without_intervals_the_strongest_genes_are_those_of_the_largest_effect():
    effects = EFFECTS[["gene_name", "effect"]]
    for table in (effects, effects.assign(low=np.nan, high=np.nan)):
        assert strongest(table, 1)["gene_name"].tolist() == ["unmeasured", "down"]
    assert strongest(effects.set_axis(["E"] * 5), 1)["gene_name"].tolist() == ["unmeasured", "down"]


def test_ranked_effects_have_intervals_and_numbers_of_cells_and_donors():
    axes = ranked_effects_figure(EFFECTS, effect_name="shift", n_shown=1).axes[0]
    assert rows(axes) == ["sure (1,200 cells, 4 donors)", "down (40 cells, 1 donor)"]
    points = np.concatenate([line.get_xydata() for line in axes.get_lines() if line.get_marker() == "o"])
    np.testing.assert_array_equal(points, [[0.3, 0], [-0.2, 1]])
    bars = np.concatenate([bars.get_segments() for bars in axes.collections])
    np.testing.assert_array_equal(bars[:, :, 0], [[0.2, 0.4], [-0.3, -0.1]])
    assert axes.get_xlabel() == "shift (bar: 95 % interval)"


def test_numbers_that_all_genes_share_are_said_once():
    axes = ranked_effects_figure(EFFECTS.assign(n_cells=40, n_donors=8), effect_name="shift", n_shown=1).axes[0]
    assert rows(axes) == ["sure", "down"]
    assert axes.get_xlabel().replace("\n", " ") == "shift (bar: 95 % interval; each of 40 cells, 8 donors)"


def test_ranked_effects_need_neither_intervals_nor_numbers():
    axes = ranked_effects_figure(EFFECTS[["gene_name", "effect"]], effect_name="shift").axes[0]
    assert rows(axes) == ["unmeasured", "noisy", "sure", "near", "down"]
    assert axes.get_xlabel() == "shift"


def test_a_long_name_is_cut_in_the_middle():
    effects = EFFECTS.assign(gene_name="ENSG00000000001 + ENSG00000000002 + ENSG00000000003 → B")
    (name, *_) = rows(ranked_effects_figure(effects[["gene_name", "effect"]], effect_name="x").axes[0])
    assert name == "ENSG00000000001 +…G00000000003 → B"
    assert len(name) == 34


def test_dose_curves_are_in_order_with_a_band_the_first_in_colour():
    axes = dose_figure(CURVES, value_name="shift", n_named=2).axes[0]
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines() if len(line.get_xydata())}
    assert lines["a"] == [[0, 0.3], [1, 0.1]]
    assert lines["b"] == [[0, -0.2], [1, 0]]
    assert [[0, 0.01], [1, 0.02]] in lines.values()
    assert texts(axes.figure)["legend"] == ["a", "b", "1 other"]
    bands = [band.get_paths()[0].vertices for band in axes.collections]
    assert [(at[:, 1].min(), at[:, 1].max()) for at in bands] == [(0.0, 0.4), (-0.4, 0.1)]
    assert texts(axes.figure)["axes"] == ["place in the cell: 0 front … 1 bottom", "shift"]


def test_pairs_are_symmetric_with_0_in_the_middle_and_grey_where_there_is_none():
    axes = pairs_figure(PAIRS, value_name="interaction").axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == [label.get_text() for label in axes.get_xticklabels()]
    shown = pd.DataFrame(axes.images[0].get_array().filled(np.nan), names, names).loc[list("abcd"), list("abcd")]
    none = np.nan
    np.testing.assert_array_equal(
        shown, [[none, 0.4, -0.1, 0.01], [0.4, none, 0.2, none], [-0.1, 0.2, none, none], [0.01, none, none, none]]
    )
    assert axes.images[0].get_clim() == (-0.4, 0.4)
    assert len(axes.get_lines()) == 2 * 2  # both sides of the diagonal


def test_of_many_genes_in_pairs_those_of_the_largest_interactions_are_shown():
    axes = pairs_figure(PAIRS.drop(columns="fdr"), value_name="interaction", n_genes=3).axes[0]
    assert sorted(label.get_text() for label in axes.get_yticklabels()) == ["a", "b", "c"]
    assert not axes.get_lines()


def test_like_genes_lie_together_in_pairs():
    genes = list("adbecf")  # two kinds in turn: abc and def
    kinds = [(a, b, 1.0 if (a in "abc") == (b in "abc") else -1.0) for i, a in enumerate(genes) for b in genes[:i]]
    axes = pairs_figure(pd.DataFrame(kinds, columns=["gene_a", "gene_b", "interaction"]), value_name="x").axes[0]
    order = [label.get_text() for label in axes.get_yticklabels()]
    assert {"".join(sorted(order[:3])), "".join(sorted(order[3:]))} == {"abc", "def"}
