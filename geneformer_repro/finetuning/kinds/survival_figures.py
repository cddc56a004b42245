"""Pictures of survival: how groups by risk fare, whether a predicted share comes true, and one difference a cohort."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from geneformer_repro.finetuning.figures import rows_figure
from geneformer_repro.finetuning.kinds.survival_scores import kaplan_meier, log_rank, risk_groups
from geneformer_repro.report import BLUE, GREY, LIGHT, ORANGE, draw_points, legend_beside, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_THIRDS = {1: ("low", BLUE), 2: ("middle", GREY), 3: ("high", ORANGE)}
_LINE = 13
"""Points from one line of the numbers at risk to the next."""


def risk_groups_figure(
    event_time: np.ndarray, event: np.ndarray, risk: np.ndarray, *, strata: np.ndarray | None = None, unit_of: str = ""
) -> "Figure":
    """Draw Kaplan–Meier curves of thirds by risk, with numbers at risk and the log-rank test of the thirds.

    Parameters
    ----------
    event_time, event
        Of patients that were not learned from, (N,).
    risk
        Predicted for each, (N,); higher is more risk.
    strata
        Stratum of each, such as its cohort or fold, in which thirds are formed and tested.
    unit_of
        The column of the times, which says their unit.
    """
    third_N = risk_groups(risk, strata, n_groups=len(_THIRDS))
    figure, axes = new_axes(7.2, 4.6)
    for third in np.unique(third_N):
        name, colour = _THIRDS[third]
        members = third_N == third
        curve = kaplan_meier(event_time[members], event[members])
        label = f"{name} risk ({members.sum():,}; {int(event[members].sum()):,} events)"
        steps = np.append(0.0, curve.times), np.append(1.0, curve.probability)
        axes.step(*steps, where="post", color=colour, linewidth=1.6, label=label)
    axes.set(xlim=(0, None), ylim=(-0.02, 1.02), ylabel="share without the event")
    axes.set_xlabel(f"time (unit of {unit_of})" if unit_of else "time")
    axes.grid(axis="y", color=LIGHT)
    _write_at_risk(axes, event_time, third_N)
    _, p = log_rank(event_time, event, third_N, strata=strata)
    said = "all risks are equal" if np.isnan(p) else f"log-rank test of the thirds: p = {p:.2g}"
    axes.set_title(said, loc="left", fontsize=9, color=GREY)
    legend_beside(axes)
    return figure


def _write_at_risk(axes: "Axes", event_time: np.ndarray, third_N: np.ndarray) -> None:
    """Write below the axis how many of each third are followed at each of its ticks."""
    ticks = [tick for tick in axes.get_xticks() if tick <= event_time.max()]
    axes.set_xticks(ticks)
    below: Any = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "fontsize": 8.5}
    axes.annotate("at risk", (0, 0), (-16, -48), ha="right", color=GREY, **below)
    for line, third in enumerate(np.unique(third_N), start=1):
        name, colour = _THIRDS[third]
        height = -48 - _LINE * line
        axes.annotate(name, (0, 0), (-16, height), ha="right", color=colour, **below)
        for tick in ticks:
            n = int(np.sum(event_time[third_N == third] >= tick))
            axes.annotate(f"{n:,}", (tick, 0), (0, height), ha="center", color=colour, **below)


def calibration_figure(table: pd.DataFrame) -> "Figure":
    """Draw observed against predicted shares without the event, a point a group, with the line where they agree.

    Parameters
    ----------
    table
        From `survival_scores.calibration`.
    """
    figure, axes = new_axes(4.8, 4.4)
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1)
    draw_points(axes, table["predicted"].to_numpy(), table, "observed", colour=BLUE, label="group", upright=True)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    axes.set(xlabel="predicted share without the event", ylabel="observed (Kaplan–Meier, bar: 95 % interval)")
    axes.grid(color=LIGHT)
    return figure


def forest_figure(table: pd.DataFrame, name: str, label: str) -> "Figure":
    """Draw by how much one method is better than another in each cohort, with intervals.

    Parameters
    ----------
    table
        Indexed by cohort, the first on top: ``n``, ``n_events``, the difference and its ``…_low`` and ``…_high``.
    name
        Column of the difference.
    label
        What it is called.
    """
    sizes = zip(table.index, table["n"], table["n_events"], strict=True)
    rows = [f"{cohort} ({n:,}; {n_events:,} events)" for cohort, n, n_events in sizes]
    figure, axes = rows_figure(table, rows, {name: label})
    if legend := axes.get_legend():  # a single series, which the axis names
        legend.remove()
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set(xlabel=f"{label} (bar: 95 % interval)")
    return figure
