"""Tables of a page: the first rows as HTML, all rows packed for the page's script, which sorts, searches, downloads.

Twenty thousand rows as HTML are 5 MB and slow; packed column by column, with six significant digits, they are 1 MB
(20,000 genes, nine columns of real numbers) and drawn 25 at a time. The script puts values in as text, so that a gene
called ``<img onerror=…>`` is a name. A table of one column of words says what was done: it is laid out to be read, not
sorted. The ends of an interval stand in the cell of their value, which makes a table of four scores four columns wide
and not twelve; a file that is downloaded has them apart.
"""

import base64
import gzip
import html
import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

MOST_ROWS = 20_000
"""A page packs the first of a longer table, and says so."""
N_PLAIN = 30
"""Rows that a page shows without its script."""
_LONG = 40
"""Letters from which a column of words gets room."""


def packed(content: Any) -> str:
    """Return JSON, compressed, in letters that need no escape in HTML; the same content gives the same letters."""
    told = json.dumps(content, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return base64.b64encode(gzip.compress(told.encode("utf-8"), 9, mtime=0)).decode("ascii")


def values_of(column: pd.Series) -> list[Any]:
    """Return what a page holds of a column: whole numbers, others to six digits, words, None where nothing is known."""
    return [_value(value) for value in column.tolist()]


def _value(value: Any) -> Any:
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return int(value)
    if value is None or value is pd.NaT or value is pd.NA or (isinstance(value, float) and np.isnan(value)):
        return None
    if isinstance(value, float | np.floating):
        return str(value) if np.isinf(value) else _whole(float(f"{value:.6g}"))
    return str(value)


def _whole(value: float) -> float | int:
    return int(value) if value.is_integer() and abs(value) < 1e15 else value


def shown(value: Any, digits: int = 3) -> str:
    """Write a value of `values_of` as a page shows it: whole numbers in full, others to some digits, as 2.61e-5."""
    if value is None:
        return ""
    if isinstance(value, float):
        told = f"{value:.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.{digits}g}"
        return told.replace("e-0", "e-")
    return str(value)


def table_html(
    table: pd.DataFrame, *, title: str, ends: tuple[str, str] | None = None, most_rows: int = MOST_ROWS
) -> str:
    """Write a table.

    Parameters
    ----------
    table
        The index becomes the first columns.
    title
        Of the section, which names the file that is downloaded.
    ends
        What is first, and what is last, where a reader wants to begin at either.
    most_rows
        Of a longer table the first are packed, or with `ends` half of them from each end.
    """
    n_rows = len(table)
    kept = _first_of(n_rows, most_rows, both=ends is not None)
    flat = table.reset_index().iloc[kept]
    names, columns = [str(name) for name in flat], [values_of(column) for _, column in flat.items()]
    if _is_told(columns[table.index.nlevels :]):
        return f'<div class="scroll">{_rows_html(names, columns, range(len(kept)), {}, "facts")}</div>'
    plain = _first_of(len(kept), 2 * N_PLAIN if ends else N_PLAIN, both=ends is not None)
    more = f'<p class="more">{len(plain):,} of {n_rows:,} rows.</p>' if len(plain) < n_rows else ""
    both = f' data-ends="{html.escape("|".join(ends))}"' if ends else ""
    ends_of, digits = _intervals(names), [_digits(column) for column in columns]
    rows = packed({"names": names, "columns": columns, "all": n_rows, "intervals": ends_of, "digits": digits})
    return (
        f'<div class="rows" data-title="{html.escape(title)}"{both} data-rows="{rows}"><div class="scroll">'
        f"{_rows_html(names, columns, plain, ends_of, 'data')}</div>{more}</div>"
    )


def _first_of(n: int, most: int, *, both: bool) -> list[int]:
    """Return the first rows of n, or as many from either end; all, where there are no more than `most`."""
    if n <= most:
        return list(range(n))
    return [*range(most // 2), *range(n - most // 2, n)] if both else list(range(most))


def _is_told(columns: list[list[Any]]) -> bool:
    """Return whether a table is words beside their heading, and no data."""
    return not columns or (len(columns) == 1 and any(isinstance(value, str) for value in columns[0]))


def _digits(column: list[Any]) -> int:
    """Return with how many digits numbers of a column differ: six where all are alike, such as similarities near 1."""
    numbers = [value for value in column if isinstance(value, int | float)]
    if len(numbers) < 2 or len(numbers) < sum(value is not None for value in column):
        return 3
    least, most = min(numbers), max(numbers)
    return 6 if 0 < most - least < 0.005 * max(abs(least), abs(most)) else 3


def _intervals(names: list[str]) -> dict[int, tuple[int, int]]:
    """Return of which columns which two are the interval: ``x_low`` and ``x_high``, or ``low``, ``high`` behind x."""
    found = {}
    for i, name in enumerate(names):
        if {f"{name}_low", f"{name}_high"} <= set(names):
            found[i] = (names.index(f"{name}_low"), names.index(f"{name}_high"))
        elif i and names[i + 1 : i + 3] == ["low", "high"]:
            found[i] = (i + 1, i + 2)
    return found


def _rows_html(
    names: list[str],
    columns: list[list[Any]],
    rows: Iterable[int],
    intervals: dict[int, tuple[int, int]],
    look: str,
) -> str:
    apart = [i for i in range(len(names)) if not any(i in ends for ends in intervals.values())]
    digits = {i: _digits(columns[i]) for i in apart}
    looks = {i: "" if look == "facts" else _look(columns[i], first=not i) for i in apart}
    head = "".join(f"<th{looks[i]}{_told(names, intervals.get(i))}>{_breakable(names[i])}</th>" for i in apart)

    def cell(i: int, row: int) -> str:
        value, ends = (
            html.escape(shown(columns[i][row], digits[i])),
            [columns[end][row] for end in intervals.get(i, ())],
        )
        between = (
            ""
            if not ends or None in ends
            else f' <span class="between">{" to ".join(shown(end, digits[i]) for end in ends)}</span>'
        )
        return f"<td{looks[i]}>{value}{between}</td>"

    body = "".join(f"<tr>{''.join(cell(i, row) for i in apart)}</tr>" for row in rows)
    return f'<table class="{look}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _told(names: list[str], ends: tuple[int, int] | None) -> str:
    """Say at the pointer which columns a heading stands for besides its own."""
    return "" if ends is None else f' title="{html.escape(" to ".join(names[end] for end in ends))} in grey"'


def _breakable(name: str) -> str:
    """Let a heading go on below after an underscore."""
    return html.escape(name).replace("_", "_<wbr>")


def _look(column: list[Any], *, first: bool) -> str:
    longest = max((len(value) for value in column if isinstance(value, str)), default=0)
    classes = ["words"] * (longest > 0 and not first) + ["long"] * (longest > _LONG)
    return f' class="{" ".join(classes)}"' if classes else ""
