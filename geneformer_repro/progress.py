"""Long work shows itself: a bar with a rate and an estimate for people, one JSON line at the end for machines."""

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tqdm.auto import tqdm

logger = logging.getLogger(__name__)


SECONDS_A_LINE = 30


class _Bar(tqdm):
    """A bar that also logs a line of JSON every half minute."""

    def say(self, line: Callable[[], Mapping[str, Any]]) -> None:
        """Log this every half minute from now on."""
        self._line, self._said = line, time.perf_counter()

    def update(self, n: float | None = 1) -> bool | None:
        """Count on."""
        shown = super().update(n)
        if self.disable and n:
            self.n += n  # tqdm does not count where it shows nothing
        if not self.disable and time.perf_counter() - self._said > SECONDS_A_LINE:
            self._said = time.perf_counter()
            with self.external_write_mode():
                logger.info(json.dumps(self._line()))
        return shown


@contextmanager
def progress(
    step: str,
    *,
    total: int | None,
    unit: str,
    done: int = 0,
    quiet: bool = False,
    facts: Callable[[], Mapping[str, Any]] = dict,
) -> Iterator[tqdm]:
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

    with _Bar(disable=quiet, total=total, initial=done, desc=step, unit=f" {unit}", dynamic_ncols=True) as bar:
        bar.say(line)
        yield bar
    if not quiet:
        logger.info(json.dumps(line()))
