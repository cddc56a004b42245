"""Pictures of what fine-tuning found hold what the tables hold."""

import numpy as np
import pandas as pd
import pytest
from drawing import EveryFigure, rows, texts

from geneformer_repro.finetuning.figures import learning_curve_figure, methods_figure
from geneformer_repro.finetuning.kinds.classes import confusion_figure, per_class_figure, reliability_figure
from geneformer_repro.finetuning.kinds.numbers import predicted_numbers_figure

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

FIGURES = {
    "confusion": lambda: confusion_figure(CONFUSION),
    "methods": lambda: methods_figure(METHODS),
    "per_class": lambda: per_class_figure(PER_CLASS),
    "reliability": lambda: reliability_figure({"ours": BINS}),
    "predicted_numbers": lambda: predicted_numbers_figure(np.arange(3.0), np.array([0.5, 1, 4])),
    "learning_curve": lambda: learning_curve_figure(CURVE, score="macro-F1"),
}


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES, scope="class")
class TestEveryFigure(EveryFigure):
    pass


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
