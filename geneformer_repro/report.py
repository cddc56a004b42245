"""Pictures of results, and one HTML file that holds them: no script, no font, no link, so it opens anywhere.

Knows tables, not models, so every step can draw what it made. Figures are matplotlib's own `Figure`, made
without pyplot: nothing here needs a display or changes a global setting.
"""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import pdist

from geneformer_repro.errors import MissingExtraError
from geneformer_repro.files import new_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY, LIGHT = "#2f5d8c", "#d1732a", "#6b7280", "#e5e7eb"
CATEGORIES = (
    "#4e79a7",
    "#f28e2b",
    "#59a14f",
    "#e15759",
    "#76b7b2",
    "#b6992d",
    "#af7aa1",
    "#ff9da7",
    "#9c755f",
    "#79706e",
    "#86bcb6",
    "#d37295",
)
MAIN_SCORES: Mapping[str, str] = {"accuracy": "accuracy", "macro_f1": "macro-F1"}
MANY_COLUMNS = 40
"""A heat map with more has no room for their names."""
LONG_NAME = 34
"""A name with more letters is cut in the middle: a set of genes may be a line long."""
LETTER = 0.065
"""Inches of a letter of a small label, about."""


def _axes(width: float, height: float) -> "tuple[Figure, Axes]":
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("Pictures need matplotlib: pip install 'geneformer-repro[plot]'.") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors="#374151", labelsize=9)
    return figure, axes


def loss_figure(history: pd.DataFrame, guesses: "pd.Series[float]") -> "Figure":
    """Draw training and held-out loss over the passes, against the losses of guesses that need no model.

    Parameters
    ----------
    history
        ``epoch``, ``loss`` and ``eval_loss`` (nats a masked gene); rows may have either.
    guesses
        Held-out loss of each guess, by name.
    """
    figure, axes = _axes(6.4, 3.8)
    history = history.reindex(columns=["epoch", "loss", "eval_loss"])
    training, held_out = history.dropna(subset=["loss"]), history.dropna(subset=["eval_loss"])
    axes.plot(training["epoch"], training["loss"], color=BLUE, alpha=0.45, linewidth=1.2, label="training cells")
    axes.plot(
        held_out["epoch"],
        held_out["eval_loss"],
        color=BLUE,
        marker="o",
        markersize=3.5,
        linewidth=1.8,
        label="held-out cells",
    )
    for (name, loss), style in zip(guesses.items(), ("--", ":"), strict=False):
        axes.axhline(loss, color=ORANGE, linestyle=style, linewidth=1.5, label=f"guess by {name} (no model)")
    axes.set(xlabel="passes over the training cells", ylabel="loss (nats per masked gene)")
    axes.legend(frameon=False, fontsize=9, ncols=2, loc="lower left", bbox_to_anchor=(-0.02, 1.0), borderaxespad=0.2)
    return figure


def scatter_figure(points: np.ndarray, labels: Sequence[str], *, axis_name: str = "UMAP") -> "Figure":
    """Draw cells in two dimensions, coloured by label.

    Parameters
    ----------
    points
        Coordinates, (n_cells, 2).
    labels
        A label of each cell; the commonest come first in the legend.
    axis_name
        What the coordinates are.
    """
    figure, axes = _axes(7.2, 4.4)
    names = pd.Series(list(labels), dtype="string").fillna("(none)")
    for i, (name, n_cells) in enumerate(names.value_counts().items()):
        at = points[(names == name).to_numpy()]
        axes.scatter(
            at[:, 0],
            at[:, 1],
            s=max(3, min(14, 9000 / len(points))),
            color=CATEGORIES[i % len(CATEGORIES)],
            alpha=0.85,
            linewidths=0,
            label=f"{name} ({n_cells})",
        )
    axes.set(xlabel=f"{axis_name} 1", ylabel=f"{axis_name} 2", xticks=[], yticks=[])
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), markerscale=1.6)
    return figure


def confusion_figure(confusion: pd.DataFrame) -> "Figure":
    """Draw a confusion matrix: shares of each true class (rows), with the numbers of cells written in.

    Parameters
    ----------
    confusion
        Cells, true class × predicted class.
    """
    side = 2.4 + 0.48 * len(confusion)
    figure, axes = _axes(side + 1.2, side)
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
        scores is shown as not run.
    scores
        Columns to draw, with what to call them.
    tested
        What was predicted.
    """
    figure, axes = _rows_figure(methods, list(methods.index), scores)
    _fit_scores(axes, methods[[f"{name}{end}" for name in scores for end in ("", "_low", "_high")]])
    for row, missing in enumerate(methods[list(scores)].isna().all(axis=1)):
        if missing:
            axes.text(0.02, row, "not run", color=GREY, fontsize=9, va="center", transform=axes.get_yaxis_transform())
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


def _rows_figure(table: pd.DataFrame, labels: Sequence[str], scores: Mapping[str, str]) -> "tuple[Figure, Axes]":
    """Draw a row a line of the table, from the top, with points and intervals side by side."""
    figure, axes = _axes(7.2, 1.2 + max(0.36, 0.2 * len(scores)) * len(table))
    rows = np.arange(len(table), dtype=float)
    shifts = min(0.2, 0.6 / len(scores)) * (np.arange(len(scores)) - (len(scores) - 1) / 2)
    for (name, label), colour, shift in zip(scores.items(), (BLUE, ORANGE, *CATEGORIES[2:]), shifts, strict=False):
        _points(axes, rows + shift, table, name, colour=colour, label=label)
    axes.set(ylim=(len(table) - 0.5, -0.5))
    axes.set_yticks(rows, labels, fontsize=9)
    axes.grid(axis="x", color=LIGHT)
    axes.set_axisbelow(True)
    _legend_above(axes)
    return figure, axes


def _points(
    axes: "Axes",
    at: np.ndarray,
    table: pd.DataFrame,
    name: str,
    *,
    colour: str,
    label: str,
    upright: bool = False,
) -> None:
    """Draw values and their intervals, which need not hold the value, so `Axes.errorbar` could not draw them."""
    there = table[name].notna().to_numpy()
    at, value, low, high = at[there], *(table[f"{name}{end}"].to_numpy()[there] for end in ("", "_low", "_high"))
    (axes.vlines if upright else axes.hlines)(at, low, high, color=colour, linewidth=1.3)
    axes.plot(*((at, value) if upright else (value, at)), "o", color=colour, markersize=5, label=label)


def _fit_scores(axes: "Axes", scores: pd.DataFrame) -> None:
    """Show 0 to 1 and what lies outside, as R² and correlations may."""
    low, high = np.nanmin([0, *scores.min()]), np.nanmax([1, *scores.max()])
    margin = 0.02 * (high - low)
    axes.set(xlim=(low - margin, high + margin))
    if low < 0:
        axes.axvline(0, color=GREY, linewidth=0.8)


def _legend_above(axes: "Axes") -> None:
    axes.legend(frameon=False, fontsize=9, loc="lower left", bbox_to_anchor=(0, 1), ncols=4, borderaxespad=0.2)


def _legend_beside(axes: "Axes") -> None:
    axes.legend(frameon=False, fontsize=8.5, loc="center left", bbox_to_anchor=(1, 0.5))


def reliability_figure(reliabilities: Mapping[str, pd.DataFrame]) -> "Figure":
    """Draw how often methods are right against how sure they are, with intervals.

    Parameters
    ----------
    reliabilities
        By method: ``confidence``, ``accuracy``, ``accuracy_low`` and ``accuracy_high``, a row a bin.
    """
    figure, axes = _axes(7.6, 4.2)
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="as often right as sure")
    for i, (name, table) in enumerate(reliabilities.items()):
        colour, confidence = CATEGORIES[i % len(CATEGORIES)], table["confidence"].to_numpy()
        axes.plot(confidence, table["accuracy"], color=colour, linewidth=1.2, alpha=0.6)
        _points(axes, confidence, table, "accuracy", colour=colour, label=name, upright=True)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.set(xlabel="confidence (probability of the predicted class)", ylabel="accuracy (bar: 95 % interval)")
    _legend_beside(axes)
    return figure


def predicted_numbers_figure(true: np.ndarray, predicted: np.ndarray) -> "Figure":
    """Draw predicted against true numbers, a point a cell, with the line of perfect prediction.

    Parameters
    ----------
    true, predicted
        Number of each cell.
    """
    figure, axes = _axes(4.8, 4.4)
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
    figure, axes = _axes(7.2, 4.0)
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
    _legend_beside(axes)
    return figure


def heatmap_figure(values: pd.DataFrame, *, value_name: str = "z-score") -> "Figure":
    """Draw a table as colours, blue below 0 and red above.

    Parameters
    ----------
    values
        A row a row, the first on top; the names of the index and of the columns become those of the axes. Columns
        are named one by one where there are at most 40.
    value_name
        What the values are.
    """
    figure, axes = _axes(7.6, 1.6 + 0.26 * len(values))
    reach = np.nanmax(np.abs(values.to_numpy())) or 1.0
    image = axes.imshow(values, cmap="RdBu_r", vmin=-reach, vmax=reach, aspect="auto", interpolation="none")
    axes.set_yticks(range(len(values)), values.index, fontsize=8.5)
    if values.shape[1] <= MANY_COLUMNS:
        axes.set_xticks(range(values.shape[1]), values.columns, fontsize=8, rotation=90)
    else:
        axes.set_xticks([])
    axes.set(xlabel=values.columns.name, ylabel=values.index.name)
    figure.colorbar(image, ax=axes, label=value_name)
    return figure


def volcano_figure(table: pd.DataFrame, *, effect_name: str, n_named: int = 12) -> "Figure":
    """Draw effect against evidence, a point a gene, the strongest genes named.

    Parameters
    ----------
    table
        ``gene_name``, ``effect``, ``p_value``, ``fdr``. A gene without p-value is counted, not drawn.
    effect_name
        Label of the horizontal axis.
    n_named
        How many genes to name, by p-value.
    """
    figure, axes = _axes(7.0, 4.6)
    n_untested = int(table["p_value"].isna().sum())
    table = table.dropna(subset=["effect", "p_value"])
    evidence = -np.log10(table["p_value"].clip(lower=1e-300))
    significant = table["fdr"] < 0.05
    for chosen, colour, label in (
        (~significant, "#c3c8d0", "FDR ≥ 0.05"),
        (significant & (table["effect"] > 0), ORANGE, "FDR < 0.05, effect above 0"),
        (significant & (table["effect"] <= 0), BLUE, "FDR < 0.05, effect below 0"),
    ):
        if chosen.any():
            axes.scatter(
                table["effect"][chosen],
                evidence[chosen],
                s=12,
                color=colour,
                linewidths=0,
                label=f"{label} ({chosen.sum()})",
            )
    if n_untested:
        axes.scatter([], [], s=12, facecolors="none", edgecolors=GREY, label=f"no p-value, not drawn ({n_untested})")
    _name_points(
        axes,
        table["effect"].to_numpy(),
        evidence.to_numpy(),
        [_short(name, LONG_NAME // 2) for name in table["gene_name"]],
        np.argsort(-evidence.to_numpy(), kind="stable")[:n_named].tolist(),
    )
    if table.empty:
        axes.text(0.5, 0.5, "no gene has a p-value", color=GREY, ha="center", transform=axes.transAxes)
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set(xlabel=fill(effect_name, 60), ylabel="−log₁₀ p")
    axes.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    axes.margins(0.06 + 0.018 * max((len(text.get_text()) for text in axes.texts), default=0), 0.08)
    axes.set_ylim(bottom=-0.03 * max(axes.get_ylim()[1], 0))
    return figure


def strongest(table: pd.DataFrame, n: int) -> pd.DataFrame:
    """Choose the strongest genes of both directions.

    Parameters
    ----------
    table
        ``effect``; where ``low`` and ``high`` are there (an interval around it), the strongest genes are those whose
        interval stays furthest from 0, so that a gene of few cells is not among them for its noise. A gene without
        interval then counts as not measured, unless none has one.
    n
        How many above 0, and how many below.

    Returns
    -------
    Those rows, the highest effect first.
    """
    surely = _nearest_to_zero(table)
    above, below = table["effect"].to_numpy() > 0, table["effect"].to_numpy() < 0
    measured = surely.notna().to_numpy()
    rows = surely.reset_index(drop=True)
    chosen = [*rows[above & measured].nlargest(n).index, *rows[below & measured].nsmallest(n).index]
    return table.iloc[chosen].sort_values("effect", ascending=False, kind="stable")


def _nearest_to_zero(table: pd.DataFrame) -> "pd.Series[float]":
    """Return the end of each interval that lies on the side of 0, or the effect where no gene has an interval."""
    if not {"low", "high"} <= set(table) or table["low"].isna().all():
        return table["effect"]
    return table["low"].where(table["effect"] > 0, table["high"])


def ranked_effects_figure(table: pd.DataFrame, *, effect_name: str, n_shown: int = 15) -> "Figure":
    """Draw the strongest genes of both directions from the top down, with their intervals.

    Parameters
    ----------
    table
        ``gene_name`` and ``effect``; where they are there ``low`` and ``high``, the ends of the interval, and
        ``n_cells`` and ``n_donors``, written beside the name. `strongest` says which are drawn.
    effect_name
        Label of the axis.
    n_shown
        How many genes above 0, and how many below.
    """
    shown = strongest(table, n_shown).rename(columns={"low": "effect_low", "high": "effect_high"})
    intervals = {"effect_low", "effect_high"} <= set(shown)
    shown = shown.reindex(columns=[*{*shown, "effect_low", "effect_high"}])
    names = [_with_numbers(row) for _, row in shown.iterrows()]
    figure, axes = _axes(max(7.2, 4.4 + LETTER * max(map(len, names), default=0)), 1.1 + 0.24 * max(2, len(shown)))
    rows, above = np.arange(len(shown), dtype=float), (shown["effect"] > 0).to_numpy()
    for chosen, colour in ((above, ORANGE), (~above, BLUE)):
        _points(axes, rows[chosen], shown[chosen], "effect", colour=colour, label="")
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set(ylim=(len(shown) - 0.5, -0.5))
    axes.set_xlabel(fill(effect_name + (" (bar: 95 % interval)" if intervals else ""), 44))
    axes.set_yticks(rows, names, fontsize=8.5)
    axes.grid(axis="x", color=LIGHT)
    axes.set_axisbelow(True)
    axes.locator_params(axis="x", nbins=6)
    return figure


def _with_numbers(row: "pd.Series[Any]") -> str:
    """Name a gene with its numbers of cells and donors."""
    numbers = [(row.get(f"n_{what}"), what) for what in ("cells", "donors")]
    said = [f"{int(n):,} {what if n != 1 else what[:-1]}" for n, what in numbers if n is not None and n > 0]
    return _short(str(row["gene_name"])) + (f" ({', '.join(said)})" if said else "")


def _short(name: str, longest: int = LONG_NAME) -> str:
    """Cut a long name in the middle: its end may say of which class or dose it is."""
    half = longest // 2
    return name if len(name) <= longest else f"{name[:half]}…{name[half + 1 - longest :]}"


def dose_figure(table: pd.DataFrame, *, value_name: str, n_named: int = 8) -> "Figure":
    """Draw what a gene does against where in the cell it was put.

    Parameters
    ----------
    table
        A row a gene and dose, the genes to name first: ``gene_name``, ``dose`` (0 front … 1 bottom), ``value``, and
        ``low`` and ``high``, the interval around it (NaN where there is none).
    value_name
        What a value is.
    n_named
        How many genes get a colour, a name and their interval; the others are thin lines.
    """
    figure, axes = _axes(7.6, 4.2)
    wide = table.pivot(index="dose", columns="gene_name", values="value")
    names = table["gene_name"].unique().tolist()
    others = names[n_named:]
    axes.plot(wide.index, wide[others], color="#c3c8d0", linewidth=0.6, alpha=0.6)
    for i, name in enumerate(names[:n_named]):
        line = table[table["gene_name"] == name].sort_values("dose")
        colour, label = CATEGORIES[i % len(CATEGORIES)], _short(name)
        axes.fill_between(line["dose"], line["low"], line["high"], color=colour, alpha=0.13, linewidth=0)
        axes.plot(line["dose"], line["value"], color=colour, marker="o", markersize=4, linewidth=1.6, label=label)
    if others:
        axes.plot([], [], color="#c3c8d0", label=f"{len(others):,} other{'s' if len(others) > 1 else ''}")
    axes.set(xlabel="place in the cell: 0 front … 1 bottom", ylabel=fill(value_name, 44))
    axes.grid(axis="y", color=LIGHT)
    _legend_beside(axes)
    return figure


def pairs_figure(table: pd.DataFrame, *, value_name: str, n_genes: int = MANY_COLUMNS) -> "Figure":
    """Draw interactions of genes as a heat map, gene × gene, blue below 0 and red above; like genes lie together.

    Parameters
    ----------
    table
        A row a pair: ``gene_a`` and ``gene_b`` (names, in any order), ``interaction``, and where it is there ``fdr``:
        pairs below 0.05 get a dot. A pair that is not there stays grey.
    value_name
        What an interaction is.
    n_genes
        Of more genes, those with the largest interactions are drawn.
    """
    square = _square(table, "interaction")
    square = _in_order(square, square.abs().max().nlargest(n_genes).index)
    square = _in_order(square, square.index[_like_beside_like(square.fillna(0).to_numpy())])
    names = square.index.map(_short)
    side = max(3.2, 0.24 * len(square)) + LETTER * max(map(len, names))
    figure, axes = _axes(side + 2.2, side + 0.4)
    reach = np.nanmax(np.abs(square.to_numpy())) or 1.0
    axes.set_facecolor(LIGHT)
    image = axes.imshow(square, cmap="RdBu_r", vmin=-reach, vmax=reach, interpolation="none")
    for row, column in _significant_pairs(table, square):
        axes.plot(column, row, "o", color="#111827", markersize=2.5)
    axes.set_xticks(range(len(square)), names, fontsize=8, rotation=90)
    axes.set_yticks(range(len(square)), names, fontsize=8)
    figure.colorbar(image, ax=axes, label=fill(value_name, 42), shrink=0.8)
    return figure


def _square(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return a symmetric matrix, gene × gene, NaN where there is no such pair."""
    both = pd.concat([table, table.rename(columns={"gene_a": "gene_b", "gene_b": "gene_a"})])
    return both.pivot(index="gene_a", columns="gene_b", values=column)


def _in_order(square: pd.DataFrame, names: "pd.Index[str]") -> pd.DataFrame:
    return square.reindex(index=names, columns=names)


def _like_beside_like(rows: np.ndarray) -> np.ndarray:
    """Return an order of rows in which those with similar values are neighbours."""
    return leaves_list(linkage(pdist(rows), method="average", optimal_ordering=True))


def _significant_pairs(table: pd.DataFrame, square: pd.DataFrame) -> np.ndarray:
    """Return row and column of each pair with FDR < 0.05, (n, 2)."""
    if "fdr" not in table:
        return np.empty((0, 2), dtype=int)
    return np.argwhere((_in_order(_square(table, "fdr"), square.index) < 0.05).to_numpy())


def _name_points(axes: "Axes", x: np.ndarray, y: np.ndarray, names: Sequence[str], chosen: Sequence[int]) -> None:
    """Write names beside points that are above 0: left and right ones from the top down, apart from each other."""
    if not len(chosen):
        return
    height = (y.max() or 1.0) * 0.05
    for right in (True, False):
        of_side = sorted((i for i in chosen if bool(x[i] >= 0) == right), key=lambda point: -y[point])
        beside, side = (0.015 if right else -0.015) * (np.ptp(x) or 1.0), "left" if right else "right"
        for i, level in zip(of_side, _apart(y[of_side], height, 0.0), strict=True):
            line = {"arrowstyle": "-", "color": "#9ca3af", "linewidth": 0.5} if abs(level - y[i]) > height / 4 else None
            name = axes.annotate(names[i], (x[i], y[i]), xytext=(x[i] + beside, level), ha=side, arrowprops=line)
            name.set(fontsize=8, va="center", in_layout=False)


def _apart(levels: np.ndarray, height: float, floor: float) -> list[float]:
    """Move falling levels apart by `height`: down, and up again from the floor where they went through it."""
    placed: list[float] = []
    for level in levels:
        placed.append(min(level, placed[-1] - height) if placed else level)
    for from_below, level in enumerate(reversed(placed)):
        placed[-1 - from_below] = max(level, floor + from_below * height)
    return placed


@dataclass(frozen=True)
class Section:
    """A part of a report."""

    title: str
    shows: str
    """What it shows, in a sentence."""
    does_not_show: str
    """What it does not, in a sentence."""
    figure: "Figure | None" = None
    table: pd.DataFrame | None = None
    note: str = ""
    """A sentence below the table."""


_STYLE = """
body{font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;color:#1f2937;background:#f6f7f9;margin:0}
main{max-width:940px;margin:0 auto;padding:2.5rem 1.5rem}
h1{font-size:1.75rem;margin:0 0 .3rem}h2{font-size:1.15rem;margin:0 0 .6rem}
section{background:#fff;border:1px solid #e5e7eb;border-radius:10px;padding:1.3rem 1.6rem;margin:1.3rem 0}
p{margin:.3rem 0}.lead{color:#4b5563}.not{color:#6b7280}.not b,.shows b{font-weight:600}
img{max-width:100%;display:block;margin:.9rem auto 0}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:.88rem;margin-top:.9rem;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:.28rem .7rem;border-bottom:1px solid #e5e7eb;white-space:nowrap}
th{color:#4b5563;font-weight:600}
th:first-child,td:first-child{text-align:left}footer{color:#6b7280;font-size:.82rem}code{font-size:.85em}
"""


def write_report(
    path: str | Path,
    *,
    title: str,
    lead: str,
    sections: Sequence[Section],
    facts: Mapping[str, Any],
    overwrite: bool = False,
) -> None:
    """Write one self-contained HTML file.

    Parameters
    ----------
    path
        The file.
    title, lead
        Heading, and a sentence below it.
    sections
        In order.
    facts
        Shown at the end, such as versions and seeds.
    overwrite
        Replace a file that is there.

    Raises
    ------
    FileExistsError
        `path` exists.
    """
    parts = "".join(map(_section, sections))
    listed = " · ".join(f"{html.escape(name)}: {html.escape(str(value))}" for name, value in facts.items())
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body><main><h1>{html.escape(title)}</h1>"
        f'<p class="lead">{html.escape(lead)}</p>{parts}<footer>{listed}</footer></main></body></html>\n'
    )
    with new_file(path, overwrite=overwrite) as aside:
        aside.write_text(page, encoding="utf-8")


def _section(section: Section) -> str:
    picture = f'<img alt="{html.escape(section.title)}" src="{_data_uri(section.figure)}">' if section.figure else ""
    table = f'<div class="scroll">{_html_table(section.table)}</div>' if section.table is not None else ""
    note = f"<p>{html.escape(section.note)}</p>" if section.note else ""
    return (
        f"<section><h2>{html.escape(section.title)}</h2>"
        f'<p class="shows"><b>Shows:</b> {html.escape(section.shows)}</p>'
        f'<p class="not"><b>Does not show:</b> {html.escape(section.does_not_show)}</p>{picture}{table}{note}</section>'
    )


def _data_uri(figure: "Figure") -> str:
    image = io.BytesIO()
    figure.savefig(image, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(image.getvalue()).decode("ascii")


def _html_table(table: pd.DataFrame) -> str:
    return table.reset_index().to_html(border=0, index=False, float_format=lambda value: f"{value:.3g}", na_rep="")
