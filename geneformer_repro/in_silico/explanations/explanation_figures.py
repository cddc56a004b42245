"""Pictures of an explanation and of its checks, each from one table."""

from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from geneformer_repro.in_silico.figures import LETTER, strongest
from geneformer_repro.report import (
    BLUE,
    CATEGORIES,
    GREY,
    LIGHT,
    MANY_POINTS,
    ORANGE,
    draw_points,
    legend_beside,
    new_axes,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NULL = "#c3c8d0"
_SAME_OPERATOR = "="
"""Written into a tile of two methods that do the same to genes."""


def genes_figure(
    table: pd.DataFrame,
    of_donors: pd.DataFrame | None,
    *,
    effect_name: str,
    rows_are: str = "cells",
    replicates: str = "donors",
    n_shown: int = 15,
) -> "Figure":
    """Draw the strongest genes of both signs from the top down, a dot a donor, with the mean and its interval.

    Parameters
    ----------
    table
        Rows of `gene_table` of one method and state.
    of_donors
        Mean of each donor, donors × genes; None where there are no donors.
    effect_name
        Label of the axis.
    rows_are, replicates
        What is explained, and over what means are taken, in the plural.
    n_shown
        How many genes above 0, and how many below.
    """
    shown = strongest(table, n_shown).rename(columns={"low": "effect_low", "high": "effect_high"})
    counted = zip(shown["gene_name"].astype(str), shown["n_cells"].astype(int), strict=True)
    names = [f"{name} ({n:,} {rows_are.removesuffix('s') if n == 1 else rows_are})" for name, n in counted]
    figure, axes = new_axes(max(7.2, 4.6 + LETTER * max(map(len, names), default=0)), 1.2 + 0.26 * max(2, len(shown)))
    rows, above = np.arange(len(shown), dtype=float), (shown["effect"] > 0).to_numpy()
    many = of_donors is not None and len(of_donors) * len(shown) > MANY_POINTS
    for row, gene in enumerate(shown.index):
        if of_donors is not None and gene in of_donors:
            values = of_donors[gene].dropna()
            label = f"a {replicates.removesuffix('s')}" if row == 0 else "_"
            dots: dict[str, Any] = {"color": _NULL, "markersize": 3.5, "zorder": 1, "label": label, "rasterized": many}
            axes.plot(values, np.full(len(values), row), "o", **dots)
    for chosen, colour, label in ((above, ORANGE, "mean, above 0"), (~above, BLUE, "mean, below 0")):
        if chosen.any():
            draw_points(axes, rows[chosen], shown[chosen], "effect", colour=colour, label=label, names="gene_name")
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set(ylim=(len(shown) - 0.5, -0.5))
    has_interval = bool(shown["effect_low"].notna().any())
    axes.set_xlabel(fill(effect_name + (f" (bar: 95 % interval over {replicates})" if has_interval else ""), 60))
    axes.set_yticks(rows, names, fontsize=8.5)
    axes.grid(axis="x", color=LIGHT)
    axes.set_axisbelow(True)
    axes.locator_params(axis="x", nbins=6)
    if len(shown):
        legend_beside(axes)
    return figure


def agreement_figure(table: pd.DataFrame, *, top: int | None = None, rows_are: str = "cells") -> "Figure":
    """Draw how far methods agree, on a scale on which 0 is chance and 1 a method with itself.

    Above the diagonal the median rank correlation over cells, below it what the strongest genes of two methods share,
    less what chance shares and over what is left.

    Parameters
    ----------
    table
        Rows of `agreement` of one state.
    top
        How many genes are compared below the diagonal; default the most that there are numbers for, up to 50.
    rows_are
        What is explained, in the plural.
    """
    names = list(dict.fromkeys([*table["method_a"], *table["method_b"]]))
    top = _most_compared(table) if top is None else top
    square, notes = np.eye(len(names)), np.full((len(names),) * 2, "", dtype=object)
    for row in table.to_dict("records"):
        a, b = sorted((names.index(row["method_a"]), names.index(row["method_b"])))
        mark = f"{_SAME_OPERATOR}\n" if row["same_operator"] else ""
        square[a, b], notes[a, b] = row["spearman"], f"{mark}{row['spearman']:.2f}"
        share, chance = (row[f"top_{top}{end}"] for end in ("", "_chance"))
        square[b, a] = (share - chance) / (1 - chance)
        notes[b, a] = f"{mark}{share:.2f}\n({chance:.2f})"
    side = 1.0 + 0.78 * len(names)
    figure, axes = new_axes(side + 2.6 + LETTER * max(map(len, names)), side + 0.9)
    axes.set_facecolor(LIGHT)
    image = axes.imshow(square, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="none")
    for (row, column), note in np.ndenumerate(notes):
        colour = "white" if abs(np.nan_to_num(square[row, column])) > 0.6 else "#111827"
        axes.text(column, row, note, ha="center", va="center", fontsize=7.5, color=colour)
    axes.set_xticks(range(len(names)), names, fontsize=8.5, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names, fontsize=8.5)
    axes.spines[["left", "bottom"]].set_visible(False)
    colours = figure.colorbar(image, ax=axes, shrink=0.75, ticks=[-1, -0.5, 0, 0.5, 1])
    colours.ax.set_yticklabels(["−1", "−0.5", "0: chance", "0.5", "1: the same"], fontsize=8)
    one = rows_are.partition(" ")[0].removesuffix("s")
    below = f"below: top {top} shared (by chance)" if top else "below: too few genes"
    apart = ", " if len(names) > 3 else ",\n"  # of two or three methods there is no room for one line
    title = f"above: Spearman in a {one}{apart}{below}\n{_SAME_OPERATOR} same operator"
    axes.set_title(title, fontsize=8.5, loc="left")
    return figure


def _most_compared(table: pd.DataFrame) -> int:
    ends = [str(name).removeprefix("top_") for name in table]
    tops = [int(end) for end in ends if end.isdigit()]
    known = [k for k in tops if k <= 50 and table[f"top_{k}"].notna().any()]
    return max(known, default=min(tops))


def curves_figure(
    points: pd.DataFrame, *, value_name: str, title: str, share_name: str = "genes, % of the cell"
) -> "Figure":
    """Draw what becomes of the answer as genes go, or come, on the band of random orders.

    Parameters
    ----------
    points
        Of `removal.Curves`.
    value_name
        What the answer is.
    title
        Of what is done to genes.
    share_name
        What the shares are of.
    """
    figure, axes = new_axes(7.8, 4.4)
    random = points[points["order"] == "random"]
    at = np.arange(len(random), dtype=float)  # shares are far from even: each has its own step
    axes.fill_between(at, random["low"], random["high"], color=LIGHT, label="random, 95 %")
    axes.plot(at, random["value"], color=GREY, linewidth=1.2, label="random")
    methods = list(dict.fromkeys(order.partition(", ")[0] for order in points["order"] if order != "random"))
    for order, line in points[points["order"] != "random"].groupby("order", sort=False):
        method, _, end = str(order).partition(", ")
        number = methods.index(method)
        dashed = {"smallest first": ":", "largest first": "-"}.get(end, "--")
        colour = CATEGORIES[number % len(CATEGORIES)] if end else ("#111827" if method == "place" else "#9ca3af")
        axes.plot(at, line["value"], dashed, color=colour, linewidth=1.6, marker="o", markersize=3, label=str(order))
    share = 100 * random["share"].to_numpy()
    axes.set_xticks(at, [f"{value:g}" for value in share])
    axes.set(xlabel=share_name, ylabel=fill(value_name, 44))
    axes.set_title(title, fontsize=10, loc="left")
    axes.grid(axis="y", color=LIGHT)
    axes.set_axisbelow(True)
    legend_beside(axes)
    return figure


def gaps_figure(gaps: np.ndarray, *, bound: float, rows_are: str = "cells") -> "Figure":
    """Draw by how much integrated gradients miss completeness, a cell and state each.

    Parameters
    ----------
    gaps
        Shares, 0 or above.
    bound
        Beyond which a cell is left out.
    rows_are
        What is explained, in the plural.
    """
    figure, axes = new_axes(7.0, 3.2)
    logs = np.log10(np.maximum(gaps, 1e-8))
    edges = np.linspace(min(logs.min(initial=-4), -4), max(logs.max(initial=0), 0), 41)
    axes.hist(logs, bins=edges.tolist(), color=BLUE)
    axes.axvline(np.log10(bound), color=ORANGE, linewidth=1.4, linestyle="--")
    beyond = int((gaps > bound).sum())
    rows = rows_are.partition(" ")[0]
    axes.set(xlabel="share by which the sum misses the whole difference (log₁₀)", ylabel=f"{rows} and states")
    axes.locator_params(axis="y", integer=True)
    axes.set_title(f"beyond {bound:.0%} and left out: {beyond:,} of {len(gaps):,}", fontsize=10, loc="left")
    axes.grid(axis="y", color=LIGHT)
    axes.set_axisbelow(True)
    return figure


def surrogate_figure(r2: np.ndarray, stability: np.ndarray, *, least_r2: float, least_stability: float) -> "Figure":
    """Draw how well surrogates fit masks that they were not fitted to, and how alike two halves are, a point a cell.

    Parameters
    ----------
    r2
        Weighted R² on held-out masks.
    stability
        Rank correlation of fits on two halves of the masks.
    least_r2, least_stability
        Below which weights are shown and not ranked.
    """
    figure, axes = new_axes(5.6, 4.2)
    ranked = (r2 >= least_r2) & (stability >= least_stability)
    for chosen, colour, label in ((ranked, BLUE, "ranked"), (~ranked, ORANGE, "shown, not ranked")):
        label = f"{label} ({int(chosen.sum())})"
        axes.scatter(r2[chosen], stability[chosen], s=16, color=colour, alpha=0.7, linewidths=0, label=label)
    axes.axvline(least_r2, color=GREY, linewidth=0.8, linestyle="--")
    axes.axhline(least_stability, color=GREY, linewidth=0.8, linestyle="--")
    axes.set(xlabel="R² on held-out masks", ylabel="Spearman between two halves of the masks")
    axes.set(
        xlim=(min(-0.05, np.nanmin(r2, initial=0)), 1.02), ylim=(min(-0.05, np.nanmin(stability, initial=0)), 1.02)
    )
    axes.grid(color=LIGHT)
    axes.set_axisbelow(True)
    legend_beside(axes)
    return figure


def sanity_figure(table: pd.DataFrame, *, bound: float, rows_are: str = "cells") -> "Figure":
    """Draw how far attributions stay as they are when the model forgets, a line a method.

    Parameters
    ----------
    table
        Rows of `sanity` of one state: ``method``, ``model``, ``spearman``, ``lower``, ``upper``, and ``signed``.
    bound
        Beyond which a map mostly shows the input.
    rows_are
        What is explained, in the plural.
    """
    models = list(dict.fromkeys(table["model"]))
    figure, axes = new_axes(max(6.4, 2.8 + 0.75 * len(models)), 4.2)
    axes.axhspan(-bound, bound, color=LIGHT)
    methods = list(dict.fromkeys(table["method"]))
    for i, (method, of_method) in enumerate(table.groupby("method", sort=False)):
        at = np.array([models.index(model) for model in of_method["model"]]) + 0.07 * (i - (len(methods) - 1) / 2)
        renamed = of_method.rename(columns={"lower": "spearman_low", "upper": "spearman_high"})
        draw_points(
            axes,
            at,
            renamed,
            "spearman",
            colour=CATEGORIES[i % len(CATEGORIES)],
            label=str(method),
            upright=True,
        )
        if "signed" in of_method:
            ring: dict[str, Any] = {"markerfacecolor": "white", "markeredgecolor": CATEGORIES[i % len(CATEGORIES)]}
            axes.plot(
                at,
                of_method["signed"],
                "o",
                markersize=4.5,
                label="with signs" if i == len(methods) - 1 else "_",
                **ring,
            )
    axes.axhline(0, color=GREY, linewidth=0.8)
    over = rows_are.partition(" ")[0]
    axes.set(ylim=(-1.02, 1.02), ylabel=f"Spearman with the model's attributions\n(sizes; bar: quartiles over {over})")
    axes.set_xticks(range(len(models)), [fill(model, 12) for model in models], fontsize=8)
    axes.set_axisbelow(True)
    legend_beside(axes)
    return figure
