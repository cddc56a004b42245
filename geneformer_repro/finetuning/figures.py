"""Pictures of what fine-tuning found, each from one table: no model, and nothing is written."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from geneformer_repro.report import BLUE, CATEGORIES, GREY, LIGHT, ORANGE, draw_points, legend_beside, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAIN_SCORES: Mapping[str, str] = {"accuracy": "accuracy", "macro_f1": "macro-F1"}


def confusion_figure(confusion: pd.DataFrame) -> "Figure":
    """Draw a confusion matrix: shares of each true class (rows), with the numbers of cells written in.

    Parameters
    ----------
    confusion
        Cells, true class × predicted class.
    """
    side = 2.4 + 0.48 * len(confusion)
    figure, axes = new_axes(side + 1.2, side)
    shares = confusion.div(confusion.sum(axis=1).clip(lower=1), axis=0).to_numpy()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in zip(*np.nonzero(confusion.to_numpy()), strict=True):
        axes.text(
            column,
            row,
            str(confusion.iat[row, column]),
            ha="center",
            va="center",
            fontsize=8,
            color="white" if shares[row, column] > 0.5 else "#111827",
        )
    axes.set(xticks=range(len(confusion)), yticks=range(len(confusion)), xlabel="predicted", ylabel="true")
    axes.set_xticklabels(confusion.columns, rotation=45, ha="right", fontsize=8)
    axes.set_yticklabels(confusion.index, fontsize=8)
    figure.colorbar(image, ax=axes, shrink=0.7, label="share of the true class")
    return figure


def methods_figure(
    methods: pd.DataFrame, scores: Mapping[str, str] = MAIN_SCORES, *, tested: str = "cells"
) -> "Figure":
    """Draw what each method reached on the same test cells, with intervals.

    Parameters
    ----------
    methods
        Indexed by method, the first on top: each score and its ``…_low`` and ``…_high``. A method without any of the
        scores is shown as not run; where none has any, all as without a score.
    scores
        Columns to draw, with what to call them.
    tested
        What was predicted.
    """
    figure, axes = _rows_figure(methods, list(methods.index), scores)
    _fit_scores(axes, methods[[f"{name}{end}" for name in scores for end in ("", "_low", "_high")]])
    lacking = methods[list(scores)].isna().all(axis=1)
    for row, missing in enumerate(lacking):
        if missing:
            said = "no score" if lacking.all() else "not run"
            axes.text(0.02, row, said, color=GREY, fontsize=9, va="center", transform=axes.get_yaxis_transform())
    axes.set(xlabel=f"score on the test {tested} (bar: 95 % interval)")
    return figure


def per_class_figure(per_class: pd.DataFrame, *, tested: str = "cells") -> "Figure":
    """Draw recall and precision of each class, with intervals and the numbers of cells.

    Parameters
    ----------
    per_class
        Indexed by class, the first on top: ``n``, ``recall``, ``precision``, and of both ``…_low`` and ``…_high``. What
        is NaN is not drawn.
    tested
        What was predicted.
    """
    labels = [f"{name} ({n})" for name, n in per_class["n"].items()]
    figure, axes = _rows_figure(per_class, labels, {"recall": "recall", "precision": "precision"})
    axes.set(xlim=(-0.02, 1.02), xlabel=f"share (bar: 95 % interval; in brackets: test {tested})")
    return figure


def reliability_figure(reliabilities: Mapping[str, pd.DataFrame]) -> "Figure":
    """Draw how often methods are right against how sure they are, with intervals.

    Parameters
    ----------
    reliabilities
        By method: ``confidence``, ``accuracy``, ``accuracy_low`` and ``accuracy_high``, a row a bin.
    """
    figure, axes = new_axes(7.6, 4.2)
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="as often right as sure")
    for i, (name, table) in enumerate(reliabilities.items()):
        colour, confidence = CATEGORIES[i % len(CATEGORIES)], table["confidence"].to_numpy()
        axes.plot(confidence, table["accuracy"], color=colour, linewidth=1.2, alpha=0.6)
        draw_points(axes, confidence, table, "accuracy", colour=colour, label=name, upright=True)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.set(xlabel="confidence (probability of the predicted class)", ylabel="accuracy (bar: 95 % interval)")
    legend_beside(axes)
    return figure


def predicted_numbers_figure(true: np.ndarray, predicted: np.ndarray) -> "Figure":
    """Draw predicted against true numbers, a point a cell, with the line of perfect prediction.

    Parameters
    ----------
    true, predicted
        Number of each cell.
    """
    figure, axes = new_axes(4.8, 4.4)
    ends = [min(true.min(), predicted.min()), max(true.max(), predicted.max())]
    axes.plot(ends, ends, color=GREY, linestyle="--", linewidth=1)
    axes.scatter(
        true,
        predicted,
        s=max(3, min(14, 9000 / len(true))),
        color=BLUE,
        alpha=max(0.1, min(0.7, 700 / len(true))),
        linewidths=0,
        rasterized=True,
    )
    axes.set(aspect="equal", xlabel="true", ylabel="predicted")
    return figure


def learning_curve_figure(curve: pd.DataFrame, *, score: str) -> "Figure":
    """Draw the score of each method against the number of training cells, on a logarithmic axis.

    Parameters
    ----------
    curve
        ``method``, ``n`` (training cells), ``score``, and ``low`` and ``high``, the ends of a band around it.
    score
        What the score is called.
    """
    figure, axes = new_axes(7.2, 4.0)
    for i, (name, points) in enumerate(curve.sort_values("n", kind="stable").groupby("method", sort=False)):
        colour = CATEGORIES[i % len(CATEGORIES)]
        axes.plot(points["n"], points["score"], color=colour, marker="o", markersize=4, linewidth=1.6, label=name)
        axes.fill_between(points["n"], points["low"], points["high"], color=colour, alpha=0.13, linewidth=0)
    sizes = np.unique(curve["n"])
    axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{n:,}" for n in sizes])
    axes.set_xticks([], minor=True)
    axes.set(xlabel="training cells", ylabel=score)
    axes.grid(axis="y", color=LIGHT)
    legend_beside(axes)
    return figure


def _rows_figure(table: pd.DataFrame, labels: Sequence[str], scores: Mapping[str, str]) -> "tuple[Figure, Axes]":
    """Draw a row a line of the table, from the top, with points and intervals side by side."""
    figure, axes = new_axes(7.2, 1.2 + max(0.36, 0.2 * len(scores)) * len(table))
    rows = np.arange(len(table), dtype=float)
    shifts = min(0.2, 0.6 / len(scores)) * (np.arange(len(scores)) - (len(scores) - 1) / 2)
    for (name, label), colour, shift in zip(scores.items(), (BLUE, ORANGE, *CATEGORIES[2:]), shifts, strict=False):
        draw_points(axes, rows + shift, table, name, colour=colour, label=label)
    axes.set(ylim=(len(table) - 0.5, -0.5))
    axes.set_yticks(rows, labels, fontsize=9)
    axes.grid(axis="x", color=LIGHT)
    axes.set_axisbelow(True)
    _legend_above(axes)
    return figure, axes


def _fit_scores(axes: "Axes", scores: pd.DataFrame) -> None:
    """Show 0 to 1 and what lies outside, as R² and correlations may."""
    low, high = np.nanmin([0, *scores.min()]), np.nanmax([1, *scores.max()])
    margin = 0.02 * (high - low)
    axes.set(xlim=(low - margin, high + margin))
    if low < 0:
        axes.axvline(0, color=GREY, linewidth=0.8)


def _legend_above(axes: "Axes") -> None:
    axes.legend(frameon=False, fontsize=9, loc="lower left", bbox_to_anchor=(0, 1), ncols=4, borderaxespad=0.2)
