"""Pictures of gene sets and drivers, each from one table."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from geneformer_repro.in_silico.figures import LETTER, LONG_NAME
from geneformer_repro.report import BLUE, CATEGORIES, GREY, LIGHT, ORANGE, legend_beside, name_points, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

N_SHOWN = 20
N_NAMED = 8
_SIGNIFICANT = 0.05
_PALE = "#c3c8d0"
_LEAST_P = 1e-300
_CIRCLES_A_LINE = 2
"""Pairs of circles; more become too small to read on a page."""
_LONGEST = LONG_NAME + 10


def sets_figure(table: pd.DataFrame, *, title: str = "", n_shown: int = N_SHOWN, is_matched: bool = True) -> "Figure":
    """Draw the evidence for the first sets: filled against genes like them, hollow without matching.

    Parameters
    ----------
    table
        Of one method and state, the smallest p-value first: index ``set``; ``direction``, ``p_value``, ``fdr``,
        ``plain_p_value``; ``size`` with ``overlap`` and ``fold``, or ``nes``.
    title
        Above the picture.
    n_shown
        How many.
    is_matched
        Whether there are strata; without, both tests are one.
    """
    shown = table.head(n_shown)
    names = [_labelled(str(name), row) for name, row in shown.iterrows()]
    figure, axes = new_axes(5.4 + LETTER * max(map(len, names), default=0), 1.3 + 0.26 * max(2, len(shown)))
    at = np.arange(len(shown))
    matched, plain = (_evidence(shown[name]) for name in ("p_value", "plain_p_value"))
    below, found = (shown["direction"] == "below 0").to_numpy(), (shown["fdr"] < _SIGNIFICANT).to_numpy()
    if is_matched:
        axes.hlines(at, np.minimum(matched, plain), np.maximum(matched, plain), color=_PALE, linewidth=1.2, zorder=1)
        hollow: dict[str, Any] = {"facecolors": "white", "edgecolors": GREY, "linewidths": 1.1}
        axes.scatter(plain, at, s=34, label="not matched", zorder=2, **hollow)
    how = "matched" if is_matched else "not matched"
    for chosen, colour, label in (
        (~found, GREY, f"{how}, FDR ≥ {_SIGNIFICANT}"),
        (found & ~below, ORANGE, f"{how}, FDR < {_SIGNIFICANT}" + (", above 0" if below.any() else "")),
        (found & below, BLUE, f"{how}, FDR < {_SIGNIFICANT}, below 0"),
    ):
        if chosen.any():
            axes.scatter(matched[chosen], at[chosen], s=34, color=colour, linewidths=0, label=label, zorder=3)
    told = [name for name in ("p_value", "fdr", "plain_p_value", "overlap", "size", "fold", "nes") if name in shown]
    name_points(axes, matched, at, shown.index, shown[told])
    axes.set(ylim=(len(shown) - 0.4, -0.6), xlabel="−log₁₀ p")
    most = max(matched.max(initial=1), plain.max(initial=1))
    axes.set_xlim(-0.03 * most, 1.04 * most)
    axes.set_yticks(at, names, fontsize=8)
    axes.grid(axis="x", color=LIGHT)
    axes.set_axisbelow(True)
    if title:
        figure.suptitle(title, fontsize=10, color="#374151")
    axes.legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    return figure


def _evidence(p_value: pd.Series) -> np.ndarray:
    evidence: np.ndarray = -np.log10(p_value.clip(lower=_LEAST_P).to_numpy())
    return evidence


def _entitle(axes: "Axes", title: str) -> None:
    if title:
        axes.set_title(title, fontsize=9.5, color="#374151", loc="left")


def _labelled(name: str, row: "pd.Series[Any]") -> str:
    """Name a set with what is known of it: genes that overlap and fold, or its score, and on which side it is."""
    side = {"above 0": "↑ ", "below 0": "↓ "}.get(str(row["direction"]), "")
    if "nes" in row:
        return f"{side}{_short(name)}  ({int(row['size'])}; NES {row['nes']:.1f})"
    return f"{side}{_short(name)}  ({int(row['overlap'])} of {int(row['size'])}; ×{row['fold']:.1f})"


def _short(name: str, longest: int = _LONGEST) -> str:
    """Write a name of a collection as words, cut at its end, as its beginning says what it is."""
    words = name.replace("_", " ")
    return words if len(words) <= longest else words[: longest - 1] + "…"


def sides_figure(table: pd.DataFrame, names: Sequence[str], *, value: str, title: str = "") -> "Figure":
    """Draw what sets have in one model against what they have in the other.

    Parameters
    ----------
    table
        Result of `compare_enrichment`, or its rows of one direction.
    names
        What the two models are called.
    value
        "nes" or "fold".
    title
        Above the picture.
    """
    figure, axes = new_axes(7.6, 4.8)
    x, y = (table[f"{value} {name}"].to_numpy(dtype=float) for name in names)
    found = table["found"].to_numpy()
    colours = {"": _PALE, "shared": CATEGORIES[2], names[0]: BLUE, names[1]: ORANGE, "opposite": CATEGORIES[3]}
    labels = {"": "in neither", "shared": "in both", "opposite": "in both, on opposite sides"}
    for which, colour in colours.items():
        chosen = found == which
        if chosen.any():
            label = f"{labels.get(which, f'in {which} only')} ({chosen.sum()})"
            axes.scatter(x[chosen], y[chosen], s=16 if which else 9, color=colour, linewidths=0, label=label)
    name_points(axes, x, y, table.index, table[[f"{value} {name}" for name in names]])
    none = 1.0 if value == "fold" else 0.0
    ends = [np.nanmin([x, y], initial=0), np.nanmax([x, y], initial=1)]
    axes.plot(ends, ends, color=GREY, linewidth=0.7, linestyle=":")
    axes.axhline(none, color=LIGHT, zorder=0)
    axes.axvline(none, color=LIGHT, zorder=0)
    strongest = [i for i in np.argsort(-np.fmax(np.abs(x), np.abs(y)), kind="stable") if found[i]][:N_NAMED]
    _name_sets(axes, x, y, [_short(str(table.index[i]), 34) for i in range(len(table))], strongest)
    what = "NES" if value == "nes" else "Fold"
    axes.set(xlabel=f"{what}, {names[0]}", ylabel=f"{what}, {names[1]}")
    axes.margins(0.08)
    _entitle(axes, title)
    legend_beside(axes)
    return figure


def _name_sets(axes: "Axes", x: np.ndarray, y: np.ndarray, names: Sequence[str], chosen: Sequence[int]) -> None:
    """Write names beside points, inwards, each a line away from the last where points lie close."""
    if not len(chosen):
        return
    low, high = axes.get_ylim()
    step, middle, last = (high - low) / 24, np.nanmean(x), np.inf
    for i in sorted(chosen, key=lambda i: -y[i]):
        height = min(y[i], last - step)
        last = height
        left = x[i] > middle
        axes.annotate(
            names[i],
            (x[i], y[i]),
            xytext=(x[i] + (-1 if left else 1) * 0.015 * float(np.ptp(axes.get_xlim())), height),
            fontsize=7.5,
            color="#374151",
            ha="right" if left else "left",
            va="center",
        )


def common_genes_figure(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> "Figure":
    """Draw how many chosen genes two models share, and how many chance would make common.

    Parameters
    ----------
    rows
        ``attrs["genes"]`` of a comparison: ``direction``, ``only_first``, ``common``, ``only_second``, ``expected``,
        ``p_value``.
    names
        What the two models are called.
    """
    from matplotlib.patches import Circle

    n_columns, n_lines = min(len(rows), _CIRCLES_A_LINE), -(-len(rows) // _CIRCLES_A_LINE)
    figure, axes = new_axes(max(4.2, 3.6 * n_columns), 2.9 * n_lines)
    for i, row in enumerate(rows):
        at, down = 3.4 * (i % n_columns), -3.2 * (i // n_columns)
        for shift, colour, n, name in (
            (-0.5, BLUE, row["only_first"], names[0]),
            (0.5, ORANGE, row["only_second"], names[1]),
        ):
            axes.add_patch(
                Circle((at + shift, down), 1.0, facecolor=colour, alpha=0.22, edgecolor=colour, linewidth=1.3)
            )
            axes.text(at + 1.9 * shift, down, f"{n:,}", ha="center", va="center", fontsize=11)
            axes.text(at + 1.6 * shift, down + 1.12, name, ha="center", va="bottom", fontsize=9, color=colour)
        axes.text(at, down, f"{row['common']:,}", ha="center", va="center", fontsize=12, weight="bold")
        others = [str(value) for key, value in row.items() if key in ("method", "state", "drug", "dose")]
        told = ", ".join([*others, str(row["direction"])])
        chance = f"{told}\nby chance {row['expected']:.1f} in common, p = {row['p_value']:.1g}"
        axes.text(at, down - 1.12, chance, ha="center", va="top", fontsize=8.5, color=GREY)
    axes.set(xlim=(-1.8, 3.4 * (n_columns - 1) + 1.8), ylim=(-3.2 * (n_lines - 1) - 1.75, 1.45), aspect="equal")
    axes.axis("off")
    return figure


def drivers_figure(table: pd.DataFrame, *, title: str = "") -> "Figure":
    """Draw the share of drivers among the first k of each score, beside what genes like these would have.

    Parameters
    ----------
    table
        Index ``score`` and ``k``; ``precision``, ``expected``, ``p_value``, ``n_drivers``, ``n_genes``.
    title
        Above the picture.
    """
    scores = list(dict.fromkeys(table.index.get_level_values("score")))
    tops = sorted(set(table.index.get_level_values("k")))
    figure, axes = new_axes(7.6, 3.7)
    width = 0.8 / len(scores)
    for i, name in enumerate(scores):
        of = table.loc[name].reindex(tops)
        at = np.arange(len(tops)) + (i - (len(scores) - 1) / 2) * width
        colour = CATEGORIES[i % len(CATEGORIES)]
        axes.bar(at, of["precision"], width=0.9 * width, color=colour, alpha=0.85, label=_short(str(name), 26))
        axes.hlines(of["expected"], at - width / 2, at + width / 2, color="#111827", linewidth=1.6)
        for x, height in zip(
            at[of["p_value"] < _SIGNIFICANT], of["precision"][of["p_value"] < _SIGNIFICANT], strict=True
        ):
            axes.text(x, height, "*", ha="center", va="bottom", fontsize=11)
    axes.plot([], [], color="#111827", linewidth=1.6, label="expected of genes like them")
    axes.plot([], [], linestyle="none", marker="$*$", color="#111827", label=f"p < {_SIGNIFICANT}, matched")
    axes.set_xticks(range(len(tops)), [f"first {k:,}" for k in tops])
    axes.set_ylabel("share of listed genes")
    axes.grid(axis="y", color=LIGHT)
    axes.set_axisbelow(True)
    axes.margins(y=0.12)
    _entitle(axes, title)
    legend_beside(axes)
    return figure
