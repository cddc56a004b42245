"""Pictures that need no display and a page that needs no network."""

import base64
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from geneformer_repro import InputError
from geneformer_repro.errors import MissingExtraError
from geneformer_repro.report import (
    Section,
    confusion_figure,
    dose_figure,
    heatmap_figure,
    learning_curve_figure,
    loss_figure,
    methods_figure,
    pairs_figure,
    per_class_figure,
    predicted_numbers_figure,
    ranked_effects_figure,
    reliability_figure,
    scatter_figure,
    strongest,
    volcano_figure,
    write_report,
)

HISTORY = pd.DataFrame(
    {"epoch": [0, 0.5, 1, 1], "loss": [np.nan, 4.0, 3.0, np.nan], "eval_loss": [5.0, np.nan, np.nan, 3.5]}
)
GUESSES = pd.Series({"gene frequency": 4.5, "gene frequency at the rank": 4.2})
CONFUSION = pd.DataFrame([[8, 2, 0], [0, 5, 0], [0, 0, 0]], index=list("abc"), columns=list("abc"))
METHODS = pd.DataFrame(
    {
        "accuracy": [0.8, np.nan],
        "accuracy_low": [0.7, np.nan],
        "accuracy_high": [0.9, np.nan],
        "macro_f1": [0.6, np.nan],
        "macro_f1_low": [0.5, np.nan],
        "macro_f1_high": [0.7, np.nan],
    },
    index=["fine-tuned", "without counts"],
)
PER_CLASS = pd.DataFrame(
    {
        "n": [12, 0],
        "recall": [0.5, np.nan],
        "recall_low": [0.3, np.nan],
        "recall_high": [0.6, np.nan],
        "precision": [0.9, 0.0],
        "precision_low": [0.8, 0.0],
        "precision_high": [1.0, 0.0],
    },
    index=["B", "T"],
)
BINS = pd.DataFrame(
    {"confidence": [0.6, 0.9], "accuracy": [0.5, 0.9], "accuracy_low": [0.2, 0.7], "accuracy_high": [0.7, 1.0]}
)
CURVE = pd.DataFrame(
    {
        "method": ["ours", "other", "ours", "other"],
        "n": [1000, 1000, 10, 10],
        "score": [0.8, 0.7, 0.3, 0.4],
        "low": [0.7, 0.6, 0.2, 0.3],
        "high": [0.9, 0.8, 0.4, 0.5],
    }
)
HEAT = pd.DataFrame(
    [[1.0, -2.0, 0.5], [0.0, 1.0, np.nan]],
    index=pd.Index(["B", "T"], name="cell_type"),
    columns=pd.Index([7, 3, 5], name="dimension"),
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
    "loss": lambda: loss_figure(HISTORY, GUESSES),
    "scatter": lambda: scatter_figure(np.arange(8.0).reshape(4, 2), ["a", "b", "a", "a"]),
    "confusion": lambda: confusion_figure(CONFUSION),
    "methods": lambda: methods_figure(METHODS),
    "per_class": lambda: per_class_figure(PER_CLASS),
    "reliability": lambda: reliability_figure({"ours": BINS}),
    "predicted_numbers": lambda: predicted_numbers_figure(np.arange(3.0), np.array([0.5, 1, 4])),
    "learning_curve": lambda: learning_curve_figure(CURVE, score="macro-F1"),
    "heatmap": lambda: heatmap_figure(HEAT),
    "volcano": lambda: volcano_figure(forty_genes(), effect_name="shift"),
    "ranked_effects": lambda: ranked_effects_figure(EFFECTS, effect_name="shift"),
    "ranked_long": lambda: ranked_effects_figure(
        EFFECTS.assign(gene_name="ENSG00000000001 + ENSG00000000002", n_cells=10**6), effect_name="long words " * 9
    ),
    "dose": lambda: dose_figure(CURVES, value_name="shift"),
    "pairs": lambda: pairs_figure(PAIRS, value_name="interaction"),
}


def texts(figure):
    """Words that are drawn: of annotations, axes and legends."""
    axes = figure.axes[0]
    legend = axes.get_legend()
    return {
        "written": [text.get_text() for text in axes.texts],
        "axes": [axes.get_xlabel(), axes.get_ylabel()],
        "legend": [text.get_text() for text in legend.get_texts()] if legend else [],
    }


# Figures


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_matplotlibs_own_and_can_be_saved(tmp_path, name):
    from matplotlib.figure import Figure

    figure = FIGURES[name]()
    assert isinstance(figure, Figure)
    figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_figures_need_neither_pyplot_nor_a_display():
    script = (
        "import sys, pandas as pd; from geneformer_repro.report import confusion_figure;"
        "confusion_figure(pd.DataFrame([[1]])).savefig(sys.stdout.buffer, format='svg');"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("name", FIGURES)
def test_without_matplotlib_the_error_names_the_extra_that_brings_it(monkeypatch, name):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"need matplotlib: pip install 'geneformer-repro\[plot\]'"):
        FIGURES[name]()
    assert issubclass(MissingExtraError, InputError)


@pytest.mark.parametrize("name", FIGURES)
def test_no_legend_lies_on_the_data(name):
    figure = FIGURES[name]()
    figure.draw_without_rendering()
    axes = figure.axes[0]
    if axes.get_legend():
        legend, data = axes.get_legend().get_window_extent(), axes.get_window_extent()
        assert legend.y0 >= data.y1 - 1 or legend.x0 >= data.x1 - 1
        assert figure.bbox.x1 >= legend.x1


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_is_cut_off(name):
    figure = FIGURES[name]()
    figure.draw_without_rendering()
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert min(box.x0, box.y0) > -0.02
    assert max(box.x1 - width, box.y1 - height) < 0.02


def test_the_loss_curve_has_training_loss_held_out_loss_and_that_of_each_guess():
    axes = loss_figure(HISTORY, GUESSES).axes[0]
    training, held_out, *guesses = axes.get_lines()
    np.testing.assert_array_equal(training.get_xydata(), [[0.5, 4], [1, 3]])
    np.testing.assert_array_equal(held_out.get_xydata(), [[0, 5], [1, 3.5]])
    assert [set(guess.get_ydata()) for guess in guesses] == [{4.5}, {4.2}]
    assert len({guess.get_linestyle() for guess in guesses}) == 2
    for name, written in zip(GUESSES.index, texts(axes.figure)["legend"][2:], strict=True):
        assert written == f"guess by {name} (no model)"


def test_the_loss_curve_has_no_line_for_a_guess_that_was_not_made():
    assert len(loss_figure(HISTORY, GUESSES.iloc[:0]).axes[0].get_lines()) == 2


def test_a_scatter_names_labels_with_their_numbers_the_commonest_first(pbmc):
    labels = pbmc.obs["cell_type"]
    figure = scatter_figure(np.random.default_rng(0).normal(size=(700, 2)), labels, axis_name="PCA")
    assert texts(figure)["legend"] == [f"{name} ({n})" for name, n in labels.value_counts().items()]
    assert texts(figure)["axes"] == ["PCA 1", "PCA 2"]


def test_a_scatter_puts_every_cell_under_its_label():
    points = np.arange(8.0).reshape(4, 2)
    drawn = scatter_figure(points, ["b", "a", "b", "b"]).axes[0].collections
    np.testing.assert_array_equal(drawn[0].get_offsets(), points[[0, 2, 3]])
    np.testing.assert_array_equal(drawn[1].get_offsets(), points[[1]])


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA], ids=str)
def test_a_scatter_shows_cells_without_a_label(missing):
    assert "(none) (1)" in texts(scatter_figure(np.zeros((3, 2)), ["a", missing, "a"]))["legend"]


def test_a_scatter_takes_numbers_and_categories_as_labels():
    for labels in ([2, 1, 2], pd.Series(["2", "1", "2"], dtype="category")):
        assert texts(scatter_figure(np.zeros((3, 2)), labels))["legend"] == ["2 (2)", "1 (1)"]


def test_a_confusion_matrix_writes_the_numbers_and_colours_the_shares():
    figure = confusion_figure(CONFUSION)
    axes = figure.axes[0]
    assert {text.get_position(): text.get_text() for text in axes.texts} == {(0, 0): "8", (1, 0): "2", (1, 1): "5"}
    np.testing.assert_allclose(axes.images[0].get_array(), [[0.8, 0.2, 0], [0, 1, 0], [0, 0, 0]])
    assert texts(figure)["axes"] == ["predicted", "true"]


def drawn(axes, label):
    """Points of a series, and the ends of its intervals, (n, 2) each."""
    (line,) = (line for line in axes.get_lines() if line.get_label() == label)
    (bars,) = (bars for bars in axes.collections if np.array_equal(bars.get_color()[0][:3], rgb(line.get_color())))
    return line.get_xydata(), np.array(bars.get_segments())


def rgb(colour):
    from matplotlib.colors import to_rgb

    return to_rgb(colour)


def rows(axes):
    """Names of the rows, from the top of the picture down."""
    assert axes.yaxis_inverted()
    return [label.get_text() for label in axes.get_yticklabels()]


def test_methods_are_drawn_from_the_top_with_their_intervals():
    axes = methods_figure(METHODS).axes[0]
    assert rows(axes) == ["fine-tuned", "without counts"]
    assert texts(axes.figure)["legend"] == ["accuracy", "macro-F1"]
    for label, value, ends in (("accuracy", 0.8, [0.7, 0.9]), ("macro-F1", 0.6, [0.5, 0.7])):
        points, bars = drawn(axes, label)
        assert points[:, 0] == [value]
        np.testing.assert_array_equal(bars[:, :, 0], [ends])
        assert np.abs(points[:, 1]) < 0.5  # in the row of the method
    assert axes.get_xlim() == (-0.02, 1.02)


def test_a_method_without_scores_is_said_not_to_have_run():
    axes = methods_figure(METHODS).axes[0]
    assert [(text.get_text(), text.get_position()[1]) for text in axes.texts] == [("not run", 1)]
    assert not methods_figure(METHODS.iloc[:1]).axes[0].texts
    assert len(methods_figure(METHODS.iloc[1:]).axes[0].texts) == 1


def test_scores_below_0_are_in_the_picture_and_0_is_marked():
    columns = {"r2": [0.5, -3.0], "r2_low": [0.4, -4.0], "r2_high": [0.6, -2.0]}
    axes = methods_figure(pd.DataFrame(columns, index=["ridge", "other"]), {"r2": "R²"}).axes[0]
    assert axes.get_xlim() == pytest.approx((-4.1, 1.1))
    assert [0, 0] in [list(line.get_xdata()) for line in axes.get_lines()]
    assert texts(axes.figure)["legend"] == ["R²"]


def test_an_interval_that_does_not_hold_the_value_is_drawn_where_it_is():
    table = pd.DataFrame({"ece": [0.1], "ece_low": [0.12], "ece_high": [0.2]}, index=["ours"])
    points, bars = drawn(methods_figure(table, {"ece": "ECE"}).axes[0], "ECE")
    assert points[0, 0] == 0.1
    np.testing.assert_array_equal(bars[0, :, 0], [0.12, 0.2])


def test_classes_are_drawn_from_the_top_with_their_numbers_of_cells():
    axes = per_class_figure(PER_CLASS).axes[0]
    assert rows(axes) == ["B (12)", "T (0)"]
    recall, precision = (drawn(axes, label) for label in ("recall", "precision"))
    np.testing.assert_array_equal(recall[0][:, 0], [0.5])  # that of T is not defined
    np.testing.assert_array_equal(precision[0][:, 0], [0.9, 0])
    np.testing.assert_array_equal(precision[1][:, :, 0], [[0.8, 1], [0, 0]])


def test_reliability_is_accuracy_by_confidence_beside_the_diagonal():
    axes = reliability_figure({"ours": BINS, "other": BINS.iloc[:1]}).axes[0]
    np.testing.assert_array_equal(axes.get_lines()[0].get_xydata(), [[0, 0], [1, 1]])
    points, bars = drawn(axes, "ours")
    np.testing.assert_array_equal(points, BINS[["confidence", "accuracy"]])
    np.testing.assert_array_equal(bars[:, :, 1], BINS[["accuracy_low", "accuracy_high"]])
    assert len(drawn(axes, "other")[0]) == 1
    assert texts(axes.figure)["legend"] == ["as often right as sure", "ours", "other"]


def test_predicted_numbers_are_drawn_against_true_ones_on_equal_axes():
    axes = predicted_numbers_figure(np.array([0.0, 1, 2]), np.array([0.5, 1, 4])).axes[0]
    np.testing.assert_array_equal(axes.collections[0].get_offsets(), [[0, 0.5], [1, 1], [2, 4]])
    np.testing.assert_array_equal(axes.get_lines()[0].get_xydata(), [[0, 0], [4, 4]])
    assert axes.get_aspect() == 1
    assert texts(axes.figure)["axes"] == ["true", "predicted"]


def test_a_learning_curve_has_a_line_a_method_by_rising_number_of_cells():
    axes = learning_curve_figure(CURVE, score="macro-F1").axes[0]
    assert {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()} == {
        "ours": [[10, 0.3], [1000, 0.8]],
        "other": [[10, 0.4], [1000, 0.7]],
    }
    assert len(axes.collections) == 2
    assert axes.get_xscale() == "log"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["10", "1,000"]
    assert texts(axes.figure)["axes"] == ["training cells", "macro-F1"]


def test_a_heat_map_has_a_row_a_row_and_0_in_the_middle_of_its_colours():
    figure = heatmap_figure(HEAT, value_name="z")
    axes = figure.axes[0]
    np.testing.assert_array_equal(axes.images[0].get_array().filled(np.nan), HEAT)
    assert axes.images[0].get_clim() == (-2, 2)
    assert rows(axes) == ["B", "T"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["7", "3", "5"]
    assert texts(figure)["axes"] == ["dimension", "cell_type"]
    assert figure.axes[1].get_ylabel() == "z"


def test_a_wide_heat_map_names_no_column_and_one_of_zeros_can_be_drawn():
    axes = heatmap_figure(pd.DataFrame(np.zeros((2, 41)))).axes[0]
    assert len(axes.get_xticks()) == 0
    assert axes.images[0].get_clim() == (-1, 1)


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


# The page


class Page(HTMLParser):
    """Tags with their attributes, and the words between them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)

    def of(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report with a picture of each kind, as text."""
    sections = [Section(name, f"shows {name}", "not all", figure=draw()) for name, draw in FIGURES.items()]
    sections.append(Section("Table", "numbers", "names", table=METHODS))
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(path, title="Title", lead="Lead", sections=sections, facts={"seed": 0, "torch": "2.6"})
    return path.read_text(encoding="utf-8")


def test_a_report_loads_nothing_from_anywhere(report):
    page = Page(report)
    assert not {"script", "link", "iframe", "object", "embed", "base", "a"} & {tag for tag, _ in page.tags}
    assert not re.search(r"https?://|url\(|@import|//cdn", report)
    loading = [
        value for _, attrs in page.tags for name, value in attrs.items() if name in ("src", "srcset", "href", "data")
    ]
    assert len(loading) == len(page.of("img")) == len(FIGURES)
    assert all(value.startswith("data:image/svg+xml;base64,") for value in loading)
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]


def test_pictures_in_a_report_load_nothing_either(report):
    for attrs in Page(report).of("img"):
        picture = base64.b64decode(attrs["src"].partition(",")[2], validate=True).decode("utf-8")
        assert "</svg>" in picture
        assert "<script" not in picture
        loaded = re.findall(r'(?:xlink:href|href|src)="([^"]*)"', picture)
        assert all(value.startswith(("#", "data:")) for value in loaded)


def test_a_report_says_of_each_part_what_it_shows_and_what_it_does_not(report):
    words = Page(report).words
    assert words[words.index("Shows:") + 1] == " shows loss"
    assert words.count("Shows:") == words.count("Does not show:") == len(FIGURES) + 1
    assert [attrs["alt"] for attrs in Page(report).of("img")] == list(FIGURES)


def test_a_report_is_a_whole_page_in_utf_8(report):
    page = Page(report)
    assert report.startswith("<!doctype html>")
    assert page.of("html") == [{"lang": "en"}]
    assert {"charset": "utf-8"} in page.of("meta")
    assert page.words.count("Title") == 2  # of the window and of the page
    assert "seed: 0 · torch: 2.6" in page.words


def test_every_tag_of_a_report_is_closed(report):
    opened = [tag for tag, _ in Page(report).tags if tag not in ("meta", "img", "br")]
    assert sorted(opened) == sorted(re.findall(r"</(\w+)>", report))


def test_a_table_shows_three_digits_and_leaves_missing_values_empty(report):
    words = Page(report).words
    assert {"fine-tuned", "0.8", "0.7"} <= set(words)
    assert "nan" not in " ".join(words).lower()


NASTY = "<script>alert(\"x\")</script> & 'quoted'"


def test_text_is_never_taken_for_html(tmp_path):
    table = pd.DataFrame({NASTY: [NASTY]}, index=[NASTY])
    section = Section(NASTY, NASTY, NASTY, figure=confusion_figure(pd.DataFrame([[1]], index=["<b>"])), table=table)
    write_report(tmp_path / "r.html", title=NASTY, lead=NASTY, sections=[section], facts={NASTY: NASTY})
    page = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert not page.of("script")
    assert page.of("img")[0]["alt"] == NASTY
    joined = "".join(page.words)
    assert joined.count(NASTY) == 2 + 1 + 1 + 2 + 3 + 2  # titles, lead, heading, sentences, table, facts


def test_a_section_needs_neither_figure_nor_table(tmp_path):
    write_report(tmp_path / "r.html", title="t", lead="l", sections=[Section("s", "a", "b")], facts={})
    page = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert not page.of("img")
    assert not page.of("table")


def test_a_report_that_exists_is_refused_or_replaced(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("mine")
    page = {"title": "t", "lead": "l", "sections": [], "facts": {}}
    with pytest.raises(FileExistsError, match=r"report\.html already exists.*overwrite=True"):
        write_report(path, **page)
    assert path.read_text() == "mine"
    write_report(path, **page, overwrite=True)
    assert path.read_text().startswith("<!doctype html>")
