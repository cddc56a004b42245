"""Pictures of how networks do on known edges, each from the table of `evaluate_network`."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from geneformer_repro.report import (
    BLUE,
    CATEGORIES,
    GREY,
    LIGHT,
    ORANGE,
    draw_points,
    legend_beside,
    name_points,
    new_axes,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NULL, _OTHERS = "#c3c8d0", "#9ca3af"
_CURVES = len(CATEGORIES)


def methods_figure(
    table: pd.DataFrame, *, title: str, of_models: Sequence[str], of_reference: Sequence[str]
) -> "Figure":
    """Draw the matched AUROC of each method with its interval, on the band of its null.

    Parameters
    ----------
    table
        By method, from the top down: ``matched``, ``matched_low``, ``matched_high``, ``matched_null_low`` and
        ``matched_null_high`` (NaN where there is none).
    title
        Of which edges.
    of_models
        Methods that look at a model, in another colour.
    of_reference
        Methods that look at the reference and at no cell, grey.
    """
    figure, axes = new_axes(7.6, 1.5 + 0.3 * len(table))
    rows = np.arange(len(table), dtype=float)
    low, high = (table[f"matched_null_{end}"].to_numpy(float) for end in ("low", "high"))
    axes.barh(rows, high - low, left=low, height=0.62, color=LIGHT, label="rewired references, 95 %")
    of_model, of_edges = (table.index.isin(of) for of in (of_models, of_reference))
    for chosen, colour, label in (
        (of_model, ORANGE, "of a model"),
        (~of_model & ~of_edges, BLUE, "of the cells alone"),
        (of_edges, GREY, "the reference alone"),
    ):
        if chosen.any():
            draw_points(axes, rows[chosen], table[chosen], "matched", colour=colour, label=label)
    axes.axvline(0.5, color=GREY, linewidth=0.8)
    axes.use_sticky_edges = False  # a point at 0 or 1 is drawn whole
    axes.set(ylim=(len(table) - 0.5, -0.5), xlabel="matched AUROC (bar: 95 % interval over sources)")
    axes.set_yticks(rows, list(table.index), fontsize=8.5)
    axes.set_title(title, fontsize=10, loc="left")
    axes.grid(axis="x", color=LIGHT)
    axes.set_axisbelow(True)
    legend_beside(axes)
    return figure


def precision_recall_figure(curves: Mapping[str, Mapping[str, Sequence[float]]], *, density: float) -> "Figure":
    """Draw precision against recall, both in logarithms: what matters is the first of many thousand pairs.

    Parameters
    ----------
    curves
        Of each method ``recall`` and ``precision``; the first are named and coloured.
    density
        Share of edges among the pairs: the precision of chance.
    """
    figure, axes = new_axes(7.6, 4.4)
    for i, (name, curve) in enumerate(curves.items()):
        axes.plot(
            curve["recall"],
            curve["precision"],
            color=CATEGORIES[i % _CURVES],
            linewidth=2.2 if i == 0 else 1.2,
            label=name,
            zorder=3 if i == 0 else 2,
        )
    axes.axhline(density, color=GREY, linewidth=1, linestyle="--", label="chance")
    axes.set(xscale="log", yscale="log", xlabel="recall", ylabel="precision")
    axes.grid(color=LIGHT)
    legend_beside(axes)
    return figure


def sources_figure(of_sources: Mapping[str, np.ndarray], names: Sequence[str], *, n_named: int = 6) -> "Figure":
    """Draw the AUROC of each source, a row of points a method, with the mean.

    Parameters
    ----------
    of_sources
        Of each method the AUROC of each source, NaN for one with too few edges; the first method is the network.
    names
        Of the sources. The best of the first method are named.
    n_named
        How many.
    """
    figure, axes = new_axes(7.6, 1.5 + 0.42 * len(of_sources))
    rng = np.random.default_rng(0)
    best: list[int] = []
    for row, values in enumerate(of_sources.values()):
        known = np.flatnonzero(np.isfinite(values))
        at = row + rng.uniform(-0.16, 0.16, len(known))
        colour = ORANGE if row == 0 else BLUE
        axes.scatter(values[known], at, s=14, color=colour, alpha=0.55, linewidths=0)
        name_points(axes, values[known], at, [names[i] for i in known.tolist()], pd.DataFrame({"AUROC": values[known]}))
        if len(known):
            axes.vlines(values[known].mean(), row - 0.32, row + 0.32, color="#111827", linewidth=1.6)
        if row == 0 and len(known) and np.ptp(values[known]) > 0:
            best = known[np.argsort(-values[known], kind="stable")][:n_named].tolist()
    axes.axvline(0.5, color=GREY, linewidth=0.8)
    named = ", ".join(names[i] for i in best)
    axes.set(ylim=(len(of_sources) - 0.4, -0.6), xlabel="AUROC among the targets of a source (line: mean)")
    if named:
        axes.set_title(f"highest for the network: {named}", fontsize=8.5, color=GREY, loc="left")
    axes.set_yticks(range(len(of_sources)), list(of_sources), fontsize=8.5)
    axes.grid(axis="x", color=LIGHT)
    axes.set_axisbelow(True)
    return figure
