"""Pictures of a screen, each from one table of statistics; `pictures` chooses among them and makes the tables."""

from collections.abc import Sequence
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from geneformer_repro.report import (
    BLUE,
    CATEGORIES,
    GREY,
    LIGHT,
    MANY_COLUMNS,
    MANY_POINTS,
    ORANGE,
    draw_points,
    legend_beside,
    like_beside_like,
    name_points,
    new_axes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LONG_NAME = 34
"""A name with more letters is cut in the middle: a set of genes may be a line long."""
LETTER = 0.065
"""Inches of a letter of a small label, about."""


def volcano_figure(table: pd.DataFrame, *, effect_name: str, n_named: int = 12) -> "Figure":
    """Draw effect against evidence, a point a gene, the strongest genes named.

    Parameters
    ----------
    table
        ``gene_name``, ``effect``, ``p_value``, ``fdr``; on a page a point also tells ``low``, ``high``, ``n_cells``
        and ``n_donors``. A gene without p-value is counted, not drawn.
    effect_name
        Label of the horizontal axis.
    n_named
        How many genes to name, by p-value; those with a ``warning`` last.
    """
    figure, axes = new_axes(7.0, 4.6)
    n_untested = int(table["p_value"].isna().sum())
    table = table.dropna(subset=["effect", "p_value"])
    effect, evidence = table["effect"].to_numpy(), -np.log10(table["p_value"].clip(lower=1e-300).to_numpy())
    significant = (table["fdr"] < 0.05).to_numpy()
    for chosen, colour, label in (
        (~significant, "#c3c8d0", "FDR ≥ 0.05"),
        (significant & (effect > 0), ORANGE, "FDR < 0.05, effect above 0"),
        (significant & (effect <= 0), BLUE, "FDR < 0.05, effect below 0"),
    ):
        if chosen.any():
            label = f"{label} ({chosen.sum()})"
            many = int(chosen.sum()) > MANY_POINTS
            at = effect[chosen], evidence[chosen]
            axes.scatter(*at, s=12, color=colour, linewidths=0, label=label, rasterized=many)
    if n_untested:
        axes.scatter([], [], s=12, facecolors="none", edgecolors=GREY, label=f"no p-value, not drawn ({n_untested})")
    names = [_short(name, LONG_NAME // 2) for name in table["gene_name"]]
    surest = np.argsort(np.where(without_warning(table), -evidence, 0), kind="stable")[:n_named]
    _name_points(axes, effect, evidence, names, surest.tolist())
    said = [name for name in ("effect", "low", "high", "p_value", "fdr", "n_cells", "n_donors") if name in table]
    name_points(axes, effect, evidence, table["gene_name"], table[said])
    if table.empty:
        axes.text(0.5, 0.5, "no gene has a p-value", color=GREY, ha="center", transform=axes.transAxes)
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set(xlabel=fill(effect_name, 60), ylabel="−log₁₀ p")
    axes.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, markerscale=2)
    axes.margins(0.12 + 0.018 * max((len(text.get_text()) for text in axes.texts), default=0), 0.08)
    axes.set_ylim(bottom=-0.03 * max(axes.get_ylim()[1], 0))
    return figure


def strongest(table: pd.DataFrame, n: int) -> pd.DataFrame:
    """Choose the strongest genes of both directions.

    Parameters
    ----------
    table
        ``effect``; where ``low`` and ``high`` are there (an interval around it), the strongest genes are those whose
        interval stays furthest from 0, so that a gene of few cells is not among them for its noise. A gene without
        interval then counts as not measured, unless none has one; so does one with a ``warning``, unless all have.
    n
        How many above 0, and how many below.

    Returns
    -------
    Those rows, the highest effect first.
    """
    surely = _nearest_to_zero(table)
    above, below = table["effect"].to_numpy() > 0, table["effect"].to_numpy() < 0
    measured = surely.notna().to_numpy() & without_warning(table)
    rows = surely.reset_index(drop=True)
    chosen = [*rows[above & measured].nlargest(n).index, *rows[below & measured].nsmallest(n).index]
    return table.iloc[chosen].sort_values("effect", ascending=False, kind="stable")


def without_warning(table: pd.DataFrame) -> np.ndarray:
    """Return which rows have no ``warning``, such as that of few cells; all, where each has one or none is told."""
    if "warning" not in table:
        return np.ones(len(table), dtype=bool)
    free = table["warning"].fillna("").astype(str).eq("").to_numpy()
    return free if free.any() else ~free


def of_one_class(table: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Leave out one of two classes where what one gains the other loses: each row would be told twice.

    Parameters
    ----------
    table
        Genes, pairs, doses or sets of genes, with a ``state``; any other table is returned as it is.

    Returns
    -------
    The rows of the class whose name comes last, without columns about the better of the two, and words that say so; all
    rows and no words where there are not two classes, or one's values are not the other's with their signs turned.
    """
    states = sorted(map(str, table["state"].dropna().unique())) if "state" in table else []
    value = next((name for name in _TURNED if name in table), None)
    if len(states) != 2 or value is None:
        return table, ""
    flat = table.reset_index()
    keys = [name for name in _KEYS if name in flat and (name != "direction" or value == "fold")]
    first, second = (flat[flat["state"].astype(str) == state].set_index(keys)[value].sort_index() for state in states)
    if value == "fold":  # sets above 0 in one class are below 0 in the other
        second = -second.rename(_OTHER_SIDE, level="direction").sort_index()
    rounding = 1e-4 * first.abs().max()
    if not first.index.equals(second.index) or not np.allclose(first, -second, atol=rounding, equal_nan=True):
        return table, ""
    shown = table[(table["state"].astype(str) == states[1]).to_numpy()].drop(columns=_OF_BOTH, errors="ignore")
    return shown, f"{states[1]}; what it gains {states[0]} loses"


_TURNED = ("interaction", "effect", "value", "es", "fold")
_KEYS = ("gene_id", "gene_name", "gene_a", "gene_b", "perturbed", "set", "method", "drug", "dose", "direction")
_OF_BOTH = ["best_class_p_value", "best_class_fdr"]
_OTHER_SIDE = {"above 0": "below 0", "below 0": "above 0"}


def from_above_to_below(table: pd.DataFrame) -> pd.DataFrame:
    """Order genes from the one that is most surely above 0 to the one most surely below, as `strongest` chooses them.

    Parameters
    ----------
    table
        As of `strongest`. Genes that are surely neither stand between, then those of effect 0; those that count as not
        measured are in the middle, too.
    """
    surely, effect = _nearest_to_zero(table), table["effect"].to_numpy()
    measured = surely.notna().to_numpy() & without_warning(table)
    rows = surely.reset_index(drop=True)
    above = rows[(effect > 0) & measured].sort_values(ascending=False, kind="stable").index
    below = rows[(effect < 0) & measured].sort_values(ascending=False, kind="stable").index
    between = rows.index.difference(above).difference(below)
    return table.iloc[[*above, *between, *below]]


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
        ``n_cells`` and ``n_donors``, written beside the name, or once where all genes have the same.
        `strongest` says which are drawn.
    effect_name
        Label of the axis.
    n_shown
        How many genes above 0, and how many below.
    """
    shown = strongest(table, n_shown).rename(columns={"low": "effect_low", "high": "effect_high"})
    intervals = {"effect_low", "effect_high"} <= set(shown)
    shown = shown.reindex(columns=[*{*shown, "effect_low", "effect_high"}])
    numbers = [_numbers(row) for _, row in shown.iterrows()]
    shared = numbers[0] if len(set(numbers)) == 1 else ""
    names = [
        _short(str(name)) + (f" ({of_gene})" if of_gene and not shared else "")
        for name, of_gene in zip(shown["gene_name"], numbers, strict=True)
    ]
    figure, axes = new_axes(max(7.2, 4.4 + LETTER * max(map(len, names), default=0)), 1.1 + 0.24 * max(2, len(shown)))
    rows, above = np.arange(len(shown), dtype=float), (shown["effect"] > 0).to_numpy()
    for chosen, colour in ((above, ORANGE), (~above, BLUE)):
        draw_points(axes, rows[chosen], shown[chosen], "effect", colour=colour, label="", names="gene_name")
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set(ylim=(len(shown) - 0.5, -0.5))
    beside = "; ".join(filter(None, ("bar: 95 % interval" if intervals else "", f"each of {shared}" if shared else "")))
    axes.set_xlabel(fill(effect_name + (f" ({beside})" if beside else ""), 44))
    axes.set_yticks(rows, names, fontsize=8.5)
    axes.grid(axis="x", color=LIGHT)
    axes.set_axisbelow(True)
    axes.locator_params(axis="x", nbins=6)
    return figure


def sampled_effects_figure(table: pd.DataFrame, *, effect_name: str, n_shown: int = 20) -> "Figure":
    """Draw what a sampled screen knows of its strongest genes: unbiased estimates with their intervals of sampling.

    Parameters
    ----------
    table
        ``gene_name``, ``effect`` with ``sampling_low`` and ``sampling_high``, ``effect_shrunken``, by which genes are
        chosen and ordered, ``in_top``, ``n_exact`` and ``n_cells``. Genes without an interval are not drawn.
    effect_name
        Label of the axis.
    n_shown
        How many of the highest, and how many of the lowest.
    """
    table = table.dropna(subset=["sampling_low"]).sort_values("effect_shrunken", ascending=False, kind="stable")
    shown = table if len(table) <= 2 * n_shown else pd.concat([table.head(n_shown), table.tail(n_shown)])
    names = [
        f"{_short(str(row['gene_name']))} ({int(row['n_exact']):,} of {int(row['n_cells']):,})"
        for _, row in shown.iterrows()
    ]
    figure, axes = new_axes(max(7.2, 4.4 + LETTER * max(map(len, names), default=0)), 1.5 + 0.24 * max(2, len(shown)))
    rows, effect = np.arange(len(shown)), shown["effect"].to_numpy()
    maybe = shown["in_top"].str.startswith("maybe").to_numpy(dtype=bool)
    decided = ~maybe & (shown["in_top"] != "").to_numpy()
    labels = ("surely in the top", "in the top or not: undecided", "surely not in the top")
    for chosen, colour, label in zip((decided, maybe, ~decided & ~maybe), (BLUE, ORANGE, GREY), labels, strict=True):
        if chosen.any():
            ends = shown.loc[chosen, ["sampling_low", "sampling_high"]].to_numpy().T
            axes.hlines(rows[chosen], ends[0], ends[1], color=colour, linewidth=1.4, alpha=0.6)
            axes.plot(effect[chosen], rows[chosen], "o", color=colour, markersize=4.5, label=label)
    shrunken = shown["effect_shrunken"].to_numpy()
    axes.plot(shrunken, rows, "|", color="#111827", markersize=9, markeredgewidth=1.6, label="ranked by (shrunken)")
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set(ylim=(len(shown) - 0.5, -0.5))
    axes.set_xlabel(fill(f"{effect_name} (line: 95 % interval of sampling)", 60))
    axes.set_yticks(rows, names, fontsize=8.5)
    axes.grid(axis="x", color=LIGHT)
    axes.set_axisbelow(True)
    axes.locator_params(axis="x", nbins=6)
    axes.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    return figure


def _numbers(row: "pd.Series[Any]") -> str:
    """Say how many cells and donors a gene has."""
    numbers = [(row.get(f"n_{what}"), what) for what in ("cells", "donors")]
    return ", ".join(f"{int(n):,} {what if n != 1 else what[:-1]}" for n, what in numbers if n is not None and n > 0)


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
    figure, axes = new_axes(7.6, 4.2)
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
    legend_beside(axes)
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
    square = _in_order(square, square.index[like_beside_like(square.fillna(0).to_numpy())])
    names = square.index.map(_short)
    side = max(3.2, 0.24 * len(square)) + LETTER * max(map(len, names))
    figure, axes = new_axes(side + 2.2, side + 0.4)
    reach = np.nanmax(np.abs(square.to_numpy())) or 1.0
    axes.set_facecolor(LIGHT)
    image = axes.imshow(square, cmap="RdBu_r", vmin=-reach, vmax=reach, interpolation="none")
    across, down = np.meshgrid(range(len(square)), range(len(square)))
    pairs = [f"{a} + {b}" for a in square.index for b in square.index]
    told = pd.DataFrame({"interaction": square.to_numpy().ravel()})
    name_points(axes, across.ravel(), down.ravel(), pairs, told)
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


def _significant_pairs(table: pd.DataFrame, square: pd.DataFrame) -> np.ndarray:
    """Return row and column of each pair with FDR < 0.05, (n, 2)."""
    if "fdr" not in table:
        return np.empty((0, 2), dtype=int)
    return np.argwhere((_in_order(_square(table, "fdr"), square.index) < 0.05).to_numpy())


def _name_points(axes: "Axes", x: np.ndarray, y: np.ndarray, names: Sequence[str], chosen: Sequence[int]) -> None:
    """Ring points that are above 0, and write their names in a column on either side, each with a line to its ring."""
    if not len(chosen):
        return
    axes.plot(x[chosen], y[chosen], "o", markersize=5, color="#111827", markerfacecolor="none", markeredgewidth=0.8)
    height, beside = (y.max() or 1.0) * 0.05, 0.06 * (np.ptp(x) or 1.0)
    for right in (True, False):
        of_side = sorted((i for i in chosen if bool(x[i] >= 0) == right), key=lambda point: -y[point])
        column = max((abs(x[i]) for i in of_side), default=0.0) + beside
        at, side = (column, "left") if right else (-column, "right")
        for i, level in zip(of_side, _apart(y[of_side], height, 0.0), strict=True):
            line = {"arrowstyle": "-", "color": GREY, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 2.5}
            line["relpos"] = (0 if right else 1, 0.5)  # from the end of the name, not across names above it
            name = axes.annotate(names[i], (x[i], y[i]), xytext=(at, level), ha=side, arrowprops=line)
            name.set(fontsize=8, va="center", in_layout=False)


def _apart(levels: np.ndarray, height: float, floor: float) -> list[float]:
    """Move falling levels apart by `height`: down, and up again from the floor where they went through it."""
    placed: list[float] = []
    for level in levels:
        placed.append(min(level, placed[-1] - height) if placed else level)
    for from_below, level in enumerate(reversed(placed)):
        placed[-1 - from_below] = max(level, floor + from_below * height)
    return placed
