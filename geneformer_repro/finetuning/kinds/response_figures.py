"""Pictures of responses: the scores at each aggregation, what is predicted beyond the mean effects, and each drug."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from geneformer_repro.finetuning.figures import rows_figure
from geneformer_repro.finetuning.kinds.response_scores import NORMALISED, Aggregation
from geneformer_repro.report import BLUE, GREY, LIGHT, MANY_COLUMNS, name_points, new_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SPELLED: dict[Aggregation, str] = {
    "within_sample": "over the drugs of a sample",
    "within_drug": "over the samples of a drug",
    "global": "over all pairs",
}


def aggregations_figure(methods: pd.DataFrame, ours: str, naive: str) -> "Figure":
    """Draw the correlation of one method at each aggregation, with and without the mean effects, beside these.

    Parameters
    ----------
    methods
        Indexed by method: the scores of `evaluate_responses`.
    ours
        The method that is asked about.
    naive
        That of the mean effects; where it was not run, ours stands alone.
    """
    scores, rows = {"ours": "as predicted"}, []
    if naive in methods.index and ours != naive:
        scores |= {"beyond": f"less {naive}", "naive": f"{naive} alone"}
    for aggregation in _SPELLED:
        name = f"pearson_{aggregation}"
        of_series = {"ours": (ours, name), "beyond": (ours, f"{name}{NORMALISED}"), "naive": (naive, name)}
        rows.append(
            {
                f"{series}{end}": methods.loc[method, f"{column}{end}"]
                for series, (method, column) in of_series.items()
                if series in scores
                for end in ("", "_low", "_high")
            }
        )
    figure, axes = rows_figure(pd.DataFrame(rows).astype(float), list(_SPELLED.values()), scores)
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set(xlabel=f"{ours}: correlation with true responses (bar: 95 % interval)")
    return figure


def residuals_figure(true: np.ndarray, predicted: np.ndarray, *, measure: str) -> "Figure":
    """Draw what is predicted beyond the mean effects against what there is, a point a pair, with the fitted line.

    Parameters
    ----------
    true, predicted
        Responses less what the mean effects predict, (rows,).
    measure
        What the responses are.
    """
    figure, axes = new_axes(5.2, 4.4)
    axes.axhline(0, color=LIGHT, linewidth=1)
    axes.axvline(0, color=LIGHT, linewidth=1)
    axes.scatter(
        predicted,
        true,
        s=max(3, min(14, 9000 / len(true))),
        color=BLUE,
        alpha=max(0.1, min(0.7, 700 / len(true))),
        linewidths=0,
        rasterized=True,
    )
    if np.ptp(predicted) > 0:
        slope, level = np.polyfit(predicted, true, 1)
        ends = np.array([predicted.min(), predicted.max()])
        axes.plot(ends, level + slope * ends, color=GREY, linewidth=1.4, label=f"slope {slope:.2f}")
        axes.legend(frameon=False, fontsize=9, loc="upper left")
    axes.set(xlabel=f"predicted {measure} less mean effects", ylabel=f"true {measure} less mean effects")
    return figure


def per_drug_figure(scores: pd.Series) -> "Figure":
    """Draw the correlation over the samples of each drug, the best first; of many drugs without their names.

    Parameters
    ----------
    scores
        Indexed by drug; NaN where there is none.
    """
    there = scores.dropna().sort_values(ascending=False)
    figure, axes = new_axes(max(4.0, min(9.0, 1.2 + 0.24 * len(there))), 3.8)
    axes.bar(np.arange(len(there)), there.to_numpy(), color=BLUE, width=0.75)
    name_points(axes, np.arange(len(there)), there.to_numpy(), there.index, there.to_frame("correlation"))
    axes.axhline(0, color=GREY, linewidth=0.8)
    lacking = len(scores) - len(there)
    said = f"{len(there):,} drugs{f', {lacking:,} more without a score' * (lacking > 0)}"
    if len(there) <= MANY_COLUMNS:
        axes.set_xticks(np.arange(len(there)), [str(name) for name in there.index], rotation=60, ha="right", fontsize=8)
        axes.set(xlabel=said)
    else:
        axes.set_xticks([])
        axes.set(xlabel=f"{said}, the best first")
    axes.set(ylabel="correlation within the drug")
    axes.grid(axis="y", color=LIGHT)
    axes.set_axisbelow(True)
    return figure
