"""Pictures of heads and of differences between networks, each from one table of statistics."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from geneformer_repro.in_silico.figures import ranked_effects_figure, volcano_figure
from geneformer_repro.report import CATEGORIES, GREY, LIGHT, ORANGE, legend_beside, name_points, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIGNIFICANT = 0.05
DIFFERENCE = "difference of attention, bits"
N_DRAWN, N_RINGED = 3_000, 100
"""Edges that are drawn, and those that may get a ring."""
_SHARE_WIDTH = 3.0
"""Inches of the panel beside the tiles."""


def heads_figure(table: pd.DataFrame) -> "Figure":
    """Draw a tile a head, and beside it the share of significant heads with what permuted labels give.

    Parameters
    ----------
    table
        Of `head_statistics`: ``layer``, ``head``, ``difference``, ``fdr``; ``attrs`` with ``share``, and where they are
        there ``null_share`` and ``random_share``. Heads of FDR < 0.05 get a dot.
    """
    tiles = table.pivot(index="layer", columns="head", values="difference")
    n_layers, n_heads = tiles.shape
    tile_width = max(2.4, 0.36 * n_heads + 0.7)
    figure, axes = new_axes(tile_width + _SHARE_WIDTH, max(3.2, 0.34 * n_layers + 1.7))
    grid = figure.add_gridspec(1, 2, width_ratios=[tile_width, _SHARE_WIDTH])
    axes.set_subplotspec(grid[0])
    reach = np.nanmax(np.abs(tiles.to_numpy())) or 1.0
    image = axes.imshow(tiles, cmap="RdBu_r", vmin=-reach, vmax=reach, interpolation="none", aspect="auto")
    found = table[table["fdr"] < SIGNIFICANT]
    axes.plot(found["head"], found["layer"], "o", color="#111827", markersize=4)
    called = [f"layer {layer}, head {head}" for layer, head in zip(table["layer"], table["head"], strict=True)]
    name_points(axes, table["head"].to_numpy(), table["layer"].to_numpy(), called, table[["difference", "fdr"]])
    axes.set(xlabel="head", ylabel="layer (0: next to the input)")
    for axis, n in ((axes.xaxis, n_heads), (axes.yaxis, n_layers)):
        axis.set_ticks(range(0, n, 1 + n // 13))
    bar = figure.colorbar(image, ax=axes, location="bottom", label=DIFFERENCE, shrink=0.9)
    bar.ax.tick_params(labelsize=8)
    bar.ax.locator_params(nbins=4)
    _draw_share(figure.add_subplot(grid[1]), table.attrs)
    return figure


def _draw_share(axes: "Axes", facts: Mapping[Any, Any]) -> None:
    """Draw the share of heads, that of random weights, and the mean and band of what permuted labels give."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    shares = {"model": facts["share"]}
    if "random_share" in facts:
        shares["random weights"] = facts["random_share"]
    if "null_share" in facts:
        shares["permuted labels\n(band: 95 %)"] = facts["null_share"]["mean"]
        axes.axvspan(0, max(facts["null_share"]["q95"], 0.004), color=LIGHT, zorder=0)
    at, colours = range(len(shares)), [ORANGE, *[GREY] * (len(shares) - 1)]
    axes.scatter([*shares.values()], at, color=colours, s=36, zorder=3, clip_on=False)
    axes.set_yticks(at, [*shares], fontsize=8.5)
    axes.set(ylim=(len(shares) - 0.4, -0.6), xlim=(0, min(1.0, max(0.3, 1.25 * max(shares.values())))))
    axes.set_xlabel("share of heads with FDR < 0.05\nand difference above 0", fontsize=8.5)
    axes.tick_params(colors="#374151", labelsize=8.5, left=False)
    axes.locator_params(axis="x", nbins=4)


def place_profile_figure(table: pd.DataFrame) -> "Figure":
    """Draw of each head how much keys are attended by their place, a line a head.

    Parameters
    ----------
    table
        Of `head_statistics`: ``layer``; ``attrs["place_profile"]``, a list of means a head by bin of the root of place.
    """
    figure, axes = new_axes(7.4, 3.8)
    profiles = np.array(table.attrs["place_profile"], dtype=float)
    root = np.arange(profiles.shape[1])
    seen: set[int] = set()
    for layer, profile in zip(table["layer"].tolist(), profiles, strict=True):
        label = None if layer in seen else f"layer {layer}"
        seen.add(layer)
        axes.plot(root, profile, color=CATEGORIES[layer % len(CATEGORIES)], linewidth=1.2, alpha=0.8, label=label)
    axes.axhline(0, color=GREY, linewidth=0.8)
    ticks = np.unique(np.linspace(0, len(root) - 1, min(8, len(root))).astype(int))
    axes.set_xticks(ticks, [f"{tick**2:,}" for tick in ticks])
    axes.set(xlabel="place of the key gene (0 is the first; axis by its root)", ylabel="mean log2 lift of attention")
    axes.grid(axis="y", color=LIGHT)
    axes.set_axisbelow(True)
    legend_beside(axes)
    return figure


def difference_figure(edges: pd.DataFrame, states: tuple[str, str]) -> "Figure":
    """Draw differences of edges against evidence; of the hundred with most, those both of whose genes moved are ringed.

    Parameters
    ----------
    edges
        Of `compare_networks`, in its order, of which the first 3,000 are drawn: ``source_name``, ``target_name``,
        ``difference``, ``p_value``, ``fdr``, ``moved``. Without p-values the largest differences are drawn by size.
    states
        The two states, in their order.
    """
    named = edges["source_name"].astype(str) + " → " + edges["target_name"].astype(str)
    table = edges.assign(gene_name=named, effect=edges["difference"]).head(N_DRAWN)
    effect_name = f"weight in {states[1]} less that in {states[0]}"
    if table["p_value"].isna().all():
        return ranked_effects_figure(
            table[["gene_name", "effect", "n_donors"]], effect_name=f"{effect_name}; no test: too few donors"
        )
    figure = volcano_figure(table, effect_name=effect_name, n_named=8)
    axes = figure.axes[0]
    first = table.dropna(subset=["p_value"]).head(N_RINGED)
    moved = first[first["moved"]]
    if len(moved):
        evidence = -np.log10(moved["p_value"].clip(lower=1e-300))
        label = f"both genes moved ({len(moved)} of the first {len(first)})"
        axes.scatter(
            moved["effect"], evidence, s=38, facecolors="none", edgecolors="#111827", linewidths=0.7, label=label
        )
        axes.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    return figure
