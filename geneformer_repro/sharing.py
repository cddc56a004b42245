"""Pieces of work dealt out to processes of this machine, or to Ray.

Processes are joblib's (loky): they need no ``if __name__ == "__main__"`` in the user's script, and a worker that dies
is noticed. A worker costs three seconds to start, once, and ends with the process that started it (see `die_with`).
"""

import os
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from itertools import islice
from typing import Any, TypeVar

from geneformer_repro.errors import InputError, MissingExtraError

Item = TypeVar("Item")
Result = TypeVar("Result")
_LOOKS_AT_PARENT = 0.5
"""Seconds between two looks of a worker at whether its parent still lives."""


@cache
def die_with(parent: int) -> None:
    """Have this process end soon after its parent, which may be killed without a word to its workers."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOKS_AT_PARENT)
        os._exit(1)

    threading.Thread(target=watch, name="watches parent", daemon=True).start()


def usable_threads(processes: int = 1) -> int:
    """Threads for each of so many processes: the processors that these may use, or ``OMP_NUM_THREADS`` if it is less.

    Where the operating system does not say which a process may use, all count.
    """
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, min(processors // processes, int(wanted) if wanted.isdecimal() else processors))


def by_threads(items: Iterable[Item], work: Callable[[Item], Result], at_once: int) -> Iterator[Result]:
    """Do `work` for each item, so many at once in threads, and yield the results in the order of the items.

    For work that lets go of the interpreter lock. As many items again are done ahead of who takes the results.
    """
    left = iter(items)
    pool = ThreadPoolExecutor(at_once)
    try:
        begun = deque(pool.submit(work, item) for item in islice(left, 2 * at_once))
        while begun:
            result = begun.popleft().result()
            begun.extend(pool.submit(work, item) for item in islice(left, 1))
            yield result
    finally:
        pool.shutdown(cancel_futures=True)


def _with_item(work: Callable[[Item], Result], item: Item) -> tuple[Item, Result]:
    return item, work(item)


def by_processes(items: Iterable[Item], work: Callable[[Item], Result], workers: int) -> Iterator[tuple[Item, Result]]:
    """Do `work` for each item in one of so many processes; yield each with its result, as they are finished.

    Raises
    ------
    InputError
        A worker process died.
    """
    from joblib import Parallel, delayed
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    parallel = Parallel(n_jobs=workers, backend="loky", return_as="generator_unordered", pre_dispatch=2 * workers)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"\d+ tasks which were still being processed")  # on purpose
            # Loky replaces a worker that ends as idle just when there is work. Where warnings are errors its thread
            # would die of saying so, and we would wait for ever.
            warnings.filterwarnings("ignore", message="A worker stopped while some jobs", category=UserWarning)
            with _deaf_to_interrupts():
                finished = parallel(delayed(_with_item)(work, item) for item in items)
            yield from finished
    except TerminatedWorkerError as error:
        raise InputError(
            "A worker process was killed, most likely for want of memory. Finished parts are kept: give the same "
            "command again, with fewer workers."
        ) from error


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Start processes that a Ctrl-C, which a terminal sends to all, does not reach; whoever started them ends them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # what is ignored is so in children; loky undoes a mask
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def require_ray() -> None:
    """Refuse work that is to be shared over Ray where that is not installed.

    Raises
    ------
    MissingExtraError
        It is not.
    """
    if find_spec("ray") is None:
        raise MissingExtraError("Ray is not installed. pip install 'geneformer-repro[ray]'")


def on_ray(items: Iterable[Item], work: Callable[[Item], Result], workers: int | None) -> Iterator[tuple[Item, Result]]:
    """Do `work` for each item on Ray, so many at a time (None: as there are processors), as `by_processes` does."""
    import ray

    ours = not ray.is_initialized()
    if ours:
        ray.init(
            num_cpus=None if "RAY_ADDRESS" in os.environ else workers, include_dashboard=False, log_to_driver=False
        )
    try:
        at_a_time = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        task: Any = ray.remote(_with_item)
        left = iter(items)
        pending: list[Any] = []
        while pending := pending + [task.remote(work, item) for item in islice(left, at_a_time - len(pending))]:
            ready, pending = ray.wait(pending)
            yield from ray.get(ready)
    finally:
        if ours:
            ray.shutdown()
