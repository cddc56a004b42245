"""One HTML file of results without script, font or link, so it opens anywhere; and what its pictures share.

Knows tables, not models, so every step can draw what it made. A figure lives beside what it shows; here are the axes,
the colours and what figures of several packages draw alike. Figures are matplotlib's own `Figure`, made without
pyplot: nothing here needs a display or changes a global setting.
"""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
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
"""Below 0 or the first series, above 0 or the second, what is said beside the data, and grids."""
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
"""Of labels, methods and genes: told apart on white, taken in turn and again from the first."""
MANY_COLUMNS = 40
"""A heat map with more has no room for their names."""


def new_axes(width: float, height: float) -> "tuple[Figure, Axes]":
    """Return an empty figure of one panel in the style of all, and the panel.

    Parameters
    ----------
    width, height
        Inches, with labels and legends.

    Raises
    ------
    MissingExtraError
        matplotlib is not installed.
    """
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


def draw_points(
    axes: "Axes",
    at: np.ndarray,
    table: pd.DataFrame,
    name: str,
    *,
    colour: str,
    label: str,
    upright: bool = False,
) -> None:
    """Draw values and their intervals, which need not hold the value, so `Axes.errorbar` could not draw them.

    Parameters
    ----------
    axes
        Where to draw.
    at
        Place of each row of `table`: from the top down, or `upright` from left to right.
    table
        Columns `name`, and the same with ``_low`` and ``_high``. A row without value is not drawn.
    name
        Which value.
    colour, label
        Of the points; the label goes into a legend.
    upright
        Draw values upwards, not to the right.
    """
    there = table[name].notna().to_numpy()
    at, value, low, high = at[there], *(table[f"{name}{end}"].to_numpy()[there] for end in ("", "_low", "_high"))
    (axes.vlines if upright else axes.hlines)(at, low, high, color=colour, linewidth=1.3)
    axes.plot(*((at, value) if upright else (value, at)), "o", color=colour, markersize=5, label=label)


def legend_beside(axes: "Axes") -> None:
    """Put the legend to the right of the panel, where it lies on no data."""
    axes.legend(frameon=False, fontsize=8.5, loc="center left", bbox_to_anchor=(1, 0.5))


def like_beside_like(rows: np.ndarray) -> np.ndarray:
    """Return an order of rows, (n_rows,), in which those with similar values are neighbours.

    Parameters
    ----------
    rows
        Values without NaN, (n_rows, n_columns), compared by Euclidean distance; fewer than three keep their order.
    """
    if len(rows) < 3:
        return np.arange(len(rows))
    return leaves_list(linkage(pdist(rows), method="average", optimal_ordering=True))


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
    lines: Sequence[str] = ()
    """Sentences, one below the other, which a table would cut."""


_STYLE = """
body{font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;color:#1f2937;background:#f6f7f9;margin:0}
main{max-width:940px;margin:0 auto;padding:2.5rem 1.5rem}
h1{font-size:1.75rem;margin:0 0 .3rem}h2{font-size:1.15rem;margin:0 0 .6rem}
section{background:#fff;border:1px solid #e5e7eb;border-radius:10px;padding:1.3rem 1.6rem;margin:1.3rem 0}
p{margin:.3rem 0}ul{margin:.6rem 0 0;padding-left:1.2rem}li{margin:.25rem 0}.lead{color:#4b5563}
.warning{border-left:4px solid #d1732a;background:#fff7ed;padding:.6rem .9rem;margin:.6rem 0}
.not{color:#6b7280}.not b,.shows b{font-weight:600}
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
    warning: str = "",
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
    warning
        What a reader must know before anything else; in bold, above the lead.
    overwrite
        Replace a file that is there.

    Raises
    ------
    FileExistsError
        `path` exists.
    """
    warned = f'<p class="warning"><b>{html.escape(warning)}</b></p>' if warning else ""
    body = "".join(map(_section, sections))
    listed = " · ".join(f"{html.escape(name)}: {html.escape(str(value))}" for name, value in facts.items())
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body><main><h1>{html.escape(title)}</h1>"
        f'{warned}<p class="lead">{html.escape(lead)}</p>{body}<footer>{listed}</footer></main></body></html>\n'
    )
    with new_file(path, overwrite=overwrite) as aside:
        aside.write_text(page, encoding="utf-8")


def _section(section: Section) -> str:
    picture = f'<img alt="{html.escape(section.title)}" src="{_data_uri(section.figure)}">' if section.figure else ""
    table = f'<div class="scroll">{_html_table(section.table)}</div>' if section.table is not None else ""
    lines = "".join(f"<li>{html.escape(line)}</li>" for line in section.lines)
    table += f"<ul>{lines}</ul>" if lines else ""
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
