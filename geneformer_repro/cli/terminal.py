"""What a command prints: tables that fit the terminal, colour where there is one, the command that may come next.

Into a pipe or a file every column is written, and nothing is coloured.
"""

import json
import logging
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    import pandas as pd

RED, GREEN = "31", "32"
_NONE, _GAP, _LONGEST = "–", 2, 40


def coloured(text: str, colour: str, stream: TextIO) -> str:
    """Return text in a colour, if the stream is a terminal and NO_COLOR is not set."""
    has_colour = stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return f"\x1b[{colour}m{text}\x1b[0m" if has_colour else text


def is_looked_at() -> bool:
    """Whether somebody looks on, to whom the next command is named; finding it may take a look at the cells."""
    return sys.stderr.isatty() and os.environ.get("RANK", "0") == "0"


def say_next(command: Sequence[str]) -> None:
    """Name the command that may come next, on a terminal."""
    if is_looked_at():
        words = shlex.join(("geneformer-repro", *map(str, command)))
        print(f"{coloured('next:', GREEN, sys.stderr)} {words}", file=sys.stderr)


class InWords(logging.Formatter):
    """Writes events, which are lines of JSON for whatever reads a log, in words where a person looks on."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record's text."""
        text = super().format(record)
        if not (text.startswith('{"event"') and sys.stderr.isatty()):
            return text
        told = json.loads(text)
        facts = ((name.replace("_", " "), told[name]) for name in told if name != "event")
        return f"{told['event']}: " + ", ".join(f"{name} {_fact(of)}" for name, of in facts if not isinstance(of, list))


def _fact(value: object) -> str:
    is_large = isinstance(value, (int, float)) and abs(value) >= 1000
    return f"{value:,.0f}" if is_large else _cell(value, None)


def print_table(table: "pd.DataFrame", *, number: str = "{:.4g}", index: bool = False) -> None:
    """Print a table: numbers to the right, text to the left, a dash where there is nothing.

    On a terminal text is cut and the last columns are left out where it is too narrow; a line says which.
    """
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    print(in_columns(table, number=number, index=index, width=width))


def in_columns(table: "pd.DataFrame", *, number: str = "{:.4g}", index: bool = False, width: int | None = None) -> str:
    """Return what `print_table` prints, at most so wide."""
    frame = table.reset_index(names=[name or "" for name in table.index.names]) if index else table
    columns = [_column(str(name), frame.iloc[:, i], number, width) for i, name in enumerate(frame.columns)]
    shown, used = 0, -_GAP
    for column in columns:
        used += _GAP + len(column[0])
        if width is not None and used > width and shown:
            break
        shown += 1
    lines = [(" " * _GAP).join(cells).rstrip() for cells in zip(*columns[:shown], strict=True)]
    if left_out := [str(name) for name in frame.columns[shown:]]:
        lines.append(f"(for want of room without {', '.join(left_out)})")
    return "\n".join(lines)


def _column(name: str, values: "pd.Series", number: str, width: int | None) -> list[str]:
    """Return a column's heading and cells, all of one width."""
    from pandas.api.types import is_bool_dtype, is_float_dtype, is_integer_dtype

    is_float = is_float_dtype(values.dtype)
    is_number = is_float or (is_integer_dtype(values.dtype) and not is_bool_dtype(values.dtype))
    cells = [name, *(_cell(value, number if is_float else None) for value in values)]
    if width is not None and not is_number:
        cells = [cell if len(cell) <= _LONGEST else f"{cell[: _LONGEST - 1]}…" for cell in cells]
    widest = max(map(len, cells))
    return [cell.rjust(widest) if is_number else cell.ljust(widest) for cell in cells]


def _cell(value: Any, number: str | None) -> str:
    if value is None or value != value:
        return _NONE
    if number is not None:
        return number.format(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
