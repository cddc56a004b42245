"""Processes that tests of interruptions end: copies of this one, which has all imported already."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from joblib.externals.loky import reusable_executor
from joblib.externals.loky.backend import resource_tracker


@pytest.fixture
def forked() -> Iterator[Callable[[Callable[[], object]], int]]:
    """Starts a function in a copy of this process, returns its process id; what is left at the end is killed."""
    started = []

    def start(run: Callable[[], object]) -> int:
        child = os.fork()
        if child == 0:
            try:
                reusable_executor._executor = None  # this process's workers are not the copy's
                resource_tracker._resource_tracker = resource_tracker.ResourceTracker()
                run()
            finally:
                os._exit(1)
        started.append(child)
        return child

    yield start
    for child in started:
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


@pytest.fixture
def killed(forked: Callable[[Callable[[], object]], int]) -> Callable[[Callable[[], object]], int]:
    """Runs a function that kills its process, in a copy of this one; returns how that ended."""
    return lambda run: os.waitstatus_to_exitcode(os.waitpid(forked(run), 0)[1])
