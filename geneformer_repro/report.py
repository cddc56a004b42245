"""One HTML file of results that loads nothing, so it opens anywhere; and what its pictures share.

Knows tables, not models, so every step can draw what it made. A figure lives beside what it shows; here are the axes,
the colours and what figures of several packages draw alike. Figures are matplotlib's own `Figure`, made without
pyplot: nothing here needs a display or changes a global setting.
"""

import base64
import hashlib
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import pdist

from geneformer_repro.errors import MissingExtraError
from geneformer_repro.files import new_file
from geneformer_repro.report_tables import MOST_ROWS, packed, table_html

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
MANY_POINTS = 2_000
"""More are drawn as one image inside a picture: as shapes they would be megabytes."""
_DPI = 200
"""Of such images."""


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
    figure._repr_png_ = partial(_png, figure)  # type: ignore[attr-defined]
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors="#374151", labelsize=9)
    return figure, axes


def _png(figure: "Figure") -> bytes:
    """Draw a figure for a notebook, which shows those of pyplot alone by itself."""
    image = io.BytesIO()
    figure.savefig(image, format="png")
    return image.getvalue()


def draw_points(
    axes: "Axes",
    at: np.ndarray,
    table: pd.DataFrame,
    name: str,
    *,
    colour: str,
    label: str,
    upright: bool = False,
    names: str | None = None,
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
    names
        Column with what each point is called on a page; default the index, and the label.
    """
    there = table[name].notna().to_numpy()
    at, value, low, high = at[there], *(table[f"{name}{end}"].to_numpy()[there] for end in ("", "_low", "_high"))
    (axes.vlines if upright else axes.hlines)(at, low, high, color=colour, linewidth=1.3)
    axes.plot(*((at, value) if upright else (value, at)), "o", color=colour, markersize=5, label=label)
    said = pd.DataFrame({label if names is None else name: value, "from": low, "to": high})
    called = (table.index if names is None else table[names])[there]
    name_points(axes, *((at, value) if upright else (value, at)), called, said)


def name_points(
    axes: "Axes", x: np.ndarray, y: np.ndarray, names: Iterable[Any], said: pd.DataFrame | None = None
) -> None:
    """Say what points of a panel are called, which a page tells at the pointer, and finds; nothing is drawn.

    Parameters
    ----------
    axes
        Where they are drawn.
    x, y
        Where, in its units.
    names
        Of each point.
    said
        A row a point: columns to tell beside the name.
    """
    from geneformer_repro.report_points import NamedPoints

    axes.add_artist(NamedPoints(np.asarray(x), np.asarray(y), [str(name) for name in names], said))


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
    """What it shows, in a sentence; folded away, as "How to read this"."""
    does_not_show: str
    """What it does not, in a sentence; folded away with it."""
    figure: "Figure | None" = None
    table: pd.DataFrame | None = None
    """All rows: the page shows some of a long one at a time. A single column of words is laid out to be read."""
    note: str = ""
    """A sentence below the table."""
    finding: str = ""
    """What was found, in a sentence above all: never folded away."""
    ends: tuple[str, str] | None = None
    """What the first rows of the table are, and the last, where a reader may want to begin at either."""
    most_rows: int = MOST_ROWS
    """Of a longer table the first are on the page, or half of them from each end."""


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
    """Write one self-contained HTML file, which a browser lets load nothing and run nothing but its own script.

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
    style, script = (_asset(name) for name in ("report.css", "report.js"))
    warned = f'<p class="warning"><b>{html.escape(warning)}</b></p>' if warning else ""
    body = "".join(map(_section, sections))
    listed = " · ".join(f"{html.escape(name)}: {html.escape(str(value))}" for name, value in facts.items())
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_policy(script)}">'
        f"<title>{html.escape(title)}</title><style>{style}</style></head><body><main><h1>{html.escape(title)}</h1>"
        f'{warned}<p class="lead">{html.escape(lead)}</p><div id="find"></div>{body}<footer>{listed}</footer></main>'
        f"<script>{script}</script></body></html>\n"
    )
    with new_file(path, overwrite=overwrite) as aside:
        aside.write_text(page, encoding="utf-8", newline="\n")


def _asset(name: str) -> str:
    return (files("geneformer_repro") / "data" / name).read_text(encoding="utf-8")


def _policy(script: str) -> str:
    """Let the page run this script alone, and load nothing but what it holds."""
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def _section(section: Section) -> str:
    finding = f'<p class="finding">{html.escape(section.finding)}</p>' if section.finding else ""
    picture = _picture(section.figure, section.title) if section.figure is not None else ""
    table = "" if section.table is None else _table(section)
    note = f"<p>{html.escape(section.note)}</p>" if section.note else ""
    return (
        f"<section><h2>{html.escape(section.title)}</h2>{finding}{picture}{table}{note}"
        f'<details><summary>How to read this</summary><p class="shows"><b>Shows:</b> {html.escape(section.shows)}</p>'
        f'<p class="not"><b>Does not show:</b> {html.escape(section.does_not_show)}</p></details></section>'
    )


def _table(section: Section) -> str:
    assert section.table is not None
    return table_html(section.table, title=section.title, ends=section.ends, most_rows=section.most_rows)


def _picture(figure: "Figure", title: str) -> str:
    from geneformer_repro.report_points import points_of

    image, points = _data_uri(figure), points_of(figure)
    named = "" if points is None else f' data-points="{packed(points)}"'
    title = html.escape(title)
    return f'<div class="picture" data-title="{title}"{named}><img alt="{title}" src="{image}"></div>'


def _data_uri(figure: "Figure") -> str:
    image = io.BytesIO()
    figure.savefig(image, format="svg", metadata={"Date": None}, dpi=_DPI)
    return "data:image/svg+xml;base64," + base64.b64encode(image.getvalue()).decode("ascii")
