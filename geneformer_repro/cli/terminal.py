"""What a command prints: lines and tables that fit the terminal, colour where there is one, the command that may come.

Into a pipe or a file every column is written, no line is broken, and nothing is coloured.
"""

import json
import logging
import os
import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from geneformer_repro.errors import listed

if TYPE_CHECKING:
    import pandas as pd

RED, GREEN = "31", "32"
_NONE, _GAP, _LONGEST, _MOST = "–", 2, 40, 20
_LONGEST_LABEL = 36
_DIGEST, _SHORT_DIGEST = re.compile(r"[0-9a-f]{64}"), 12
_PRINTED = "geneformer_repro.finetuning.evaluation"
"""Whose log says what commands print beside the scores."""
_FOR_MACHINES = ("event", "peak_flops", "peak_memory_gb")
_LABEL = re.compile(r" *\S+(?: \S+)* {2,}(?=\S)")


def coloured(text: str, colour: str, stream: TextIO) -> str:
    """Return text in a colour, if the stream is a terminal and NO_COLOR is not set."""
    has_colour = stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return f"\x1b[{colour}m{text}\x1b[0m" if has_colour else text


def is_looked_at() -> bool:
    """Whether somebody looks on, to whom the next command is named; finding it may take a look at the cells."""
    return sys.stderr.isatty() and os.environ.get("RANK", "0") == "0"


class Begun:
    """A word on the terminal while libraries load, which takes seconds; whatever is said next takes its place."""

    _is_shown = False

    @classmethod
    def show(cls) -> None:
        """Say it, where somebody looks on."""
        if is_looked_at() and os.environ.get("TERM") != "dumb":
            cls._is_shown = True
            print("loading …", end="", file=sys.stderr, flush=True)

    @classmethod
    def clear(cls) -> None:
        """Take it away, if it is there."""
        if cls._is_shown:
            cls._is_shown = False
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def say_next(command: Sequence[str] | None) -> None:
    """Name the command that may come next, if one is known, on a terminal."""
    if command and is_looked_at():
        Begun.clear()
        words = ("geneformer-repro", *map(str, command))
        print(f"{coloured('next:', GREEN, sys.stderr)} {folded(words, width_of(sys.stderr), at=6)}", file=sys.stderr)


def width_of(stream: TextIO) -> int | None:
    """Return how many columns a terminal has; None where a stream is none."""
    return shutil.get_terminal_size().columns if stream.isatty() else None


def say(text: object = "", *, stream: TextIO | None = None) -> None:
    """Print lines; on a terminal those that are too long are broken between words."""
    stream = stream or sys.stdout
    Begun.clear()
    print(broken(str(text), width_of(stream)), file=stream)


def broken(text: str, width: int | None) -> str:
    """Break lines that are wider, and go on below what stands behind a label, or a little to the right."""
    if width is None:
        return text
    return "\n".join(_broken(line, width) if len(line) > width else line for line in text.split("\n"))


def _broken(line: str, width: int) -> str:
    label = _LABEL.match(line)
    indent = len(line) - len(line.lstrip()) + _GAP
    hang = len(label[0]) if label and len(label[0]) <= _LONGEST_LABEL else indent
    return textwrap.fill(
        line,
        width,
        subsequent_indent=" " * hang,
        break_long_words=False,
        break_on_hyphens=False,
        replace_whitespace=False,
    )


def folded(words: Sequence[str], width: int | None, *, at: int = 0) -> str:
    """Write a command, which begins at some column, as a shell takes it; lines that go on end with a backslash."""
    quoted = [shlex.quote(word) for word in words]
    if width is None:
        return " ".join(quoted)
    lines, used = [""], at
    for word, following in zip(quoted, [*quoted[1:], ""], strict=True):
        is_option = word.startswith("-") and not following.startswith("-")  # which stays with its value
        needed = len(word) + (1 + len(following) if is_option else 0)
        if lines[-1].strip() and used + needed + 3 > width:
            lines[-1] += "\\"
            lines.append(" " * (at + 2))
            used = at + 2
        lines[-1] += f"{word} "
        used += len(word) + 1
    return "\n".join(lines).rstrip()


class AboveBars(logging.StreamHandler[TextIO]):
    """Writes a line where a bar is on the terminal, and the bar again below it; else the line goes on after the bar."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        from geneformer_repro.progress import Bar

        with Bar.external_write_mode(file=self.stream):
            super().emit(record)


class InWords(logging.Formatter):
    """Writes events, which are lines of JSON for whatever reads a log, in words where a person looks on."""

    @staticmethod
    def is_news(record: logging.LogRecord) -> bool:
        """Whether a record says more than a bar that is on the terminal, or than what commands print themselves."""
        from geneformer_repro.progress import is_news  # here too: settings may load libraries before it did

        is_shown = getattr(record, "is_in_a_bar", False) and sys.stderr.isatty()
        return not is_shown and record.name != _PRINTED and is_news(record)

    def format(self, record: logging.LogRecord) -> str:
        """Return a record's text."""
        Begun.clear()
        text = super().format(record)
        if text.startswith('{"event"') and sys.stderr.isatty():
            told = json.loads(text)
            facts = ((name.replace("_", " "), told[name]) for name in told if name not in _FOR_MACHINES)
            said = (f"{name} {_fact(of)}" for name, of in facts if not isinstance(of, list))
            text = f"{told['event']}: {', '.join(said)}"
        return broken(text, width_of(sys.stderr))


def _fact(value: object) -> str:
    is_large = isinstance(value, (int, float)) and abs(value) >= 1000
    return f"{value:,.0f}" if is_large else _cell(value, None)


def print_table(table: "pd.DataFrame", *, number: str = "{:.4g}", index: bool = False) -> None:
    """Print a table: numbers to the right, text to the left, a dash where there is nothing.

    On a terminal text is cut and the last columns are left out where it is too narrow; a line says which.
    """
    Begun.clear()
    print(in_columns(table, number=number, index=index, width=width_of(sys.stdout)))


def print_first(table: "pd.DataFrame", *, rows: str = "", number: str = "{:.4g}", index: bool = False) -> None:
    """Print the first rows of a table as `print_table` does, and say how many more there are."""
    print_table(table.head(_MOST), number=number, index=index)
    if len(table) > _MOST:
        say(" ".join(filter(None, ("and", f"{len(table) - _MOST:,}", rows, "more"))))


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
        lines.append(broken(f"(for want of room without {listed(left_out)})", width))
    return "\n".join(lines)


def in_rows(facts: Mapping[str, Any], indent: str = "  ") -> list[str]:
    """Write nested facts a line each, those of an innermost level in one; what says nothing is left out."""
    nothing: tuple[Any, ...] = (
        (None, "", []) if all(isinstance(of, Mapping) for of in facts.values()) else (None, "", [], {})
    )
    told = {name: value for name, value in facts.items() if value not in nothing}
    widest = max(map(len, told), default=0)
    lines = []
    for name, value in told.items():
        if isinstance(value, Mapping) and any(isinstance(of, Mapping) and of for of in value.values()):
            lines += [f"{indent}{name}", *in_rows(value, f"{indent}  ")]
        else:
            lines.append(f"{indent}{name:<{widest}}  {_in_a_row(value)}")
    return lines


def _in_a_row(value: Any) -> str:
    if isinstance(value, Mapping):
        told = {name: of for name, of in value.items() if of not in (None, "", [], {})}
        with_bounds = {name for name in told if {f"{name}_low", f"{name}_high"} <= set(told)}
        bounds = {f"{name}_{bound}" for name in with_bounds for bound in ("low", "high")}
        inside = {name: _in_a_row(of) for name, of in told.items()}
        for name in with_bounds:
            inside[name] += f" ({inside[f'{name}_low']} to {inside[f'{name}_high']})"
        return ", ".join(f"{name} {of}" for name, of in inside.items() if name not in bounds) or listed(value) or _NONE
    if isinstance(value, list):
        return listed(map(_in_a_row, value))
    text = _fact(value)
    return f"{text[:_SHORT_DIGEST]}…" if _DIGEST.fullmatch(text) else text


def _column(name: str, values: "pd.Series", number: str, width: int | None) -> list[str]:
    """Return a column's heading and cells, all of one width."""
    from pandas.api.types import is_bool_dtype, is_float_dtype, is_integer_dtype

    is_float = is_float_dtype(values.dtype)
    is_number = is_float or (is_integer_dtype(values.dtype) and not is_bool_dtype(values.dtype))
    if is_float and (name == "n" or name.startswith("n_")) and not (values.dropna() % 1).any():
        number = "{:.0f}"  # counts, of which some are not there
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
