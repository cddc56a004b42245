"""Long work shows itself: a bar with a rate and an estimate for people, one JSON line at the end for machines."""

import json
import logging
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, TextIO

from tqdm import TqdmWarning
from tqdm.asyncio import tqdm_asyncio

with warnings.catch_warnings():
    if find_spec("ipywidgets") is None:  # then a notebook gets lines, as a log file: nothing to warn of
        warnings.simplefilter("ignore", category=TqdmWarning)
    from tqdm.auto import tqdm

logger = logging.getLogger(__name__)

_NO_NEWS = ("gemm_4bit_forward", "Setting accelerator to CPU")
"""What libraries that transformers and accelerate import greet every user of a CPU with: a kernel that nobody asked for
(bitsandbytes, by way of peft), and that there is no accelerator (DeepSpeed), even where a network is only saved."""


def is_news(record: logging.LogRecord) -> bool:
    """Whether a record says more than libraries greet every user of a CPU with."""
    return not any(text in record.getMessage() for text in _NO_NEWS)


for _library in ("bitsandbytes.backends.cpu.ops", "DeepSpeed"):
    logging.getLogger(_library).addFilter(is_news)


SECONDS_A_LINE = 30
IN_A_BAR = {"is_in_a_bar": True}
"""Of records of a log: a bar says the same, so that a terminal which shows it needs no such line."""

_IN_NOTEBOOK = tqdm is not tqdm_asyncio
"""Where `tqdm.auto` draws a widget."""
_NARROW = "{desc}: {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}]"
"""Of a bar whose name leaves no room for counts and rate."""
_FORM_OF_A_LINE = "{desc}: {percentage:.0f}% {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


def warnings_only() -> bool:
    """Whether this package is asked for warnings alone, by the level of its own logger: then no bar is drawn."""
    return logging.getLogger(__package__).level >= logging.WARNING


class Bar(tqdm):
    """A bar on stderr; without a terminal, as in a log file, a line for each tenth, at most one every half minute."""

    _is_made = False

    def __init__(
        self, step: str, *, total: int | None, unit: str, done: int = 0, quiet: bool = False, **options: Any
    ) -> None:
        quiet = quiet or warnings_only()
        self._line: Callable[[], Mapping[str, Any]] | None = None
        self._in_lines = not (quiet or _IN_NOTEBOOK or sys.stderr.isatty())
        if self._in_lines:
            options |= {
                "file": _Lines(sys.stderr),
                "bar_format": _FORM_OF_A_LINE if total is not None else None,
                "mininterval": SECONDS_A_LINE,
                "maxinterval": math.inf,
                "miniters": max(1, (total or 0) / 10),
            }
        super().__init__(
            disable=quiet, total=total, initial=done, desc=step, unit=f" {unit}", dynamic_ncols=True, **options
        )
        self._is_made = True

    @property
    def format_dict(self) -> Any:
        """What a line is made of; on a terminal without the last facts, where they would be cut."""
        told = super().format_dict
        while told["postfix"] and told["ncols"] and len(self._without_bar(told)) > told["ncols"]:
            told["postfix"] = told["postfix"].rpartition(", ")[0]
        if told["ncols"] and not told["bar_format"] and len(self._without_bar(told)) > told["ncols"]:
            told["bar_format"] = _NARROW if told["total"] else None
        return told

    def _without_bar(self, told: Mapping[str, Any]) -> str:
        return str(self.format_meter(**{**told, "ncols": None, "bar_format": "{l_bar}|{r_bar}"}))

    def display(self, *given: Any, **options: Any) -> Any:
        """Show it as it is now; in lines not before anything was done."""
        return super().display(*given, **options) if self._is_made or not self._in_lines else True

    def say(self, line: Callable[[], Mapping[str, Any]]) -> None:
        """Log this every half minute from now on."""
        self._line, self._logged_at = line, time.perf_counter()

    def update(self, n: float | None = 1) -> bool | None:
        """Count on."""
        shown = super().update(n)
        if self.disable and n:
            self.n += n  # tqdm does not count where it shows nothing
        is_over = self.total is not None and self.n >= self.total  # of which the line at the end speaks
        if self._line and not self.disable and not is_over and time.perf_counter() - self._logged_at > SECONDS_A_LINE:
            self._logged_at = time.perf_counter()
            with self.external_write_mode():
                logger.info(json.dumps(self._line()), extra=IN_A_BAR)
        return shown


class _Lines:
    """A stream for a bar where nothing can be drawn over: each state that is written is a line."""

    _CURSOR_UP = "\x1b[A"

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._last = stream, ""
        self.encoding = stream.encoding

    def write(self, text: str) -> None:
        """Write what is not about the cursor, and new."""
        line = text.replace(self._CURSOR_UP, "").strip()
        if line not in ("", self._last):
            self._last = line
            self._stream.write(f"{line}\n")

    def flush(self) -> None:
        """Pass on what was written."""
        self._stream.flush()


@contextmanager
def progress(
    step: str,
    *,
    total: int | None,
    unit: str,
    done: int = 0,
    quiet: bool = False,
    facts: Callable[[], Mapping[str, Any]] = dict,
) -> Iterator[Bar]:
    """Show a progress bar on stderr; every half minute and when the block ends, log how much was done and how fast.

    Parameters
    ----------
    step
        Word before the bar and ``event`` of the log line.
    total
        How many `unit` there are, if known.
    unit
        What is counted: "cells", "variants".
    done
        How many were done by an earlier run that this one goes on with; not counted in the rate.
    quiet
        Show and log nothing, for what is too little to speak of.
    facts
        What else a log line says.

    Yields
    ------
    The bar; call ``update(n)``.
    """
    began = time.perf_counter()

    def line() -> dict[str, Any]:
        seconds = time.perf_counter() - began
        rate = (bar.n - done) / max(seconds, 1e-9)
        return {
            "event": step,
            unit: bar.n,
            "seconds": round(seconds, 3),
            f"{unit}_per_second": round(rate, 1),
            **facts(),
        }

    with Bar(step, total=total, unit=unit, done=done, quiet=quiet) as bar:
        bar.say(line)
        yield bar
    if not quiet:
        logger.info(json.dumps(line()), extra=IN_A_BAR)
