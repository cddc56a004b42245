"""Long work shows itself: a bar with a rate and an estimate for people, one JSON line at the end for machines."""

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tqdm.auto import tqdm

logger = logging.getLogger(__name__)


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
    """Show a progress bar on stderr; when the block ends, log how much was done and how fast.

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
        What else the log line says.

    Yields
    ------
    The bar; call ``update(n)``.
    """
    began = time.perf_counter()
    with tqdm(disable=quiet, total=total, initial=done, desc=step, unit=f" {unit}", dynamic_ncols=True) as bar:
        yield bar
    if quiet:
        return
    seconds = time.perf_counter() - began
    logger.info(
        json.dumps(
            {
                "event": step,
                unit: bar.n,
                "seconds": round(seconds, 3),
                f"{unit}_per_second": round((bar.n - done) / max(seconds, 1e-9), 1),
                **facts(),
            }
        )
    )
