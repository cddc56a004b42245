"""Pictures of what fine-tuning found, each from one table: no model, and nothing is written."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from geneformer_repro.report import BLUE, CATEGORIES, GREY, LIGHT, ORANGE, draw_points, legend_beside, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAIN_SCORES: Mapping[str, str] = {"accuracy": "accuracy", "macro_f1": "macro-F1"}


def methods_figure(
    methods: pd.DataFrame, scores: Mapping[str, str] = MAIN_SCORES, *, tested: str = "cells", says: str | None = None
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
    says
        What points and bars are; default scores on what was tested, with intervals.
    """
    figure, axes = rows_figure(methods, list(methods.index), scores)
    _fit_scores(axes, methods[[f"{name}{end}" for name in scores for end in ("", "_low", "_high")]])
    lacking = methods[list(scores)].isna().all(axis=1)
    for row, missing in enumerate(lacking):
        if missing:
            said = "no score" if lacking.all() else "not run"
            at = axes.text(0.02, row, said, color=GREY, fontsize=9, va="center", transform=axes.get_yaxis_transform())
            at.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1.5})  # a line at 0 may go through it
    axes.set(xlabel=says or f"score on the test {tested} (bar: 95 % interval)")
    return figure


_LINE: Mapping[str, Any] = {"marker": "o", "markersize": 4, "linewidth": 1.6}


def learning_curve_figure(
    curve: pd.DataFrame, *, score: str, looks: Mapping[str, Mapping[str, Any]] | None = None
) -> "Figure":
    """Draw the score of each method against the number of training cells, on a logarithmic axis.

    Parameters
    ----------
    curve
        ``method``, ``n`` (training cells), ``score``, and ``low`` and ``high``, the ends of a band around it.
    score
        What the score is called.
    looks
        How the lines of methods are drawn, in the order of the legend: options of a line. Default a colour each.
    """
    figure, axes = new_axes(7.2, 4.0)
    of_methods = {
        str(name): points for name, points in curve.sort_values("n", kind="stable").groupby("method", sort=False)
    }
    for i, name in enumerate(looks or of_methods):
        points = of_methods[name]
        look = {"color": CATEGORIES[i % len(CATEGORIES)], **_LINE, **(looks or {}).get(name, {})}
        (line,) = axes.plot(points["n"], points["score"], **look, label=name)
        axes.fill_between(points["n"], points["low"], points["high"], color=line.get_color(), alpha=0.13, linewidth=0)
    sizes = np.unique(curve["n"])
    axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{n:,}" for n in sizes])
    axes.set_xticks([], minor=True)
    axes.set(xlabel="training cells", ylabel=score)
    axes.grid(axis="y", color=LIGHT)
    legend_beside(axes)
    return figure


def rows_figure(table: pd.DataFrame, labels: Sequence[str], scores: Mapping[str, str]) -> "tuple[Figure, Axes]":
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
    axes.legend(  # ends with the axes, and grows to the left, where names of rows are
        frameon=False, fontsize=9, loc="lower right", bbox_to_anchor=(1, 1), ncols=4, borderaxespad=0.2
    )
