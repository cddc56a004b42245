"""Who this process is among those of its run: its device, its share, what the first one found, and how all wait.

Nothing else asks accelerate or torch which process this is or where it computes, so that one order of calls holds
everywhere: first a process joins its group, then it knows its device, and only then something moves there. A model that
moves to "cuda" before that sits on the first GPU, whoever holds it.

Processes wait for each other through the group's store, not in a barrier: what one does alone (merging a large screen,
fitting what is fitted once) may take hours, where a barrier ends after the group's time limit and takes the others with
it; and whoever fails can tell the others, who would otherwise compute on and learn of it from that limit.
"""

import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import Tensor

from geneformer_repro.errors import InputError

T = TypeVar("T")
GROUP_SECONDS = 86_400
"""Time limit of a collective operation where nothing else is said; the usual ten minutes are shorter than the time in
which one process writes a large checkpoint to a slow disk."""
_FIRST_NAP, _LONGEST_NAP = 0.001, 0.2
"""Seconds between two looks whether all have come."""
_FAREWELL_SECONDS = 10
"""How long the first process, which may hold the store, stays for others that have not seen yet that all have come."""


class OtherProcessError(InputError):
    """Another process of the run failed; the message says which, and why."""


def join(*, timeout: float | None = None, backend: str | None = None) -> None:
    """Join the processes that torchrun or accelerate started; of several calls the first says how.

    Parameters
    ----------
    timeout
        Seconds after which a collective operation fails; default a day.
    backend
        Of the group, such as "nccl" or "gloo"; default what accelerate takes for the device.

    Raises
    ------
    InputError
        Several processes were launched, but they are no group; or the device does not have the backend.
    """
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true") or not (
        torch.accelerator.is_available() or os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
    )
    n_launched = int(os.environ.get("WORLD_SIZE", "1"))
    options: dict[str, Any] = {"timeout": timedelta(seconds=timeout or GROUP_SECONDS)} if n_launched > 1 else {}
    options |= {"backend": backend} if backend and n_launched > 1 else {}
    try:
        n_counted = PartialState(cpu=on_cpu, **options).num_processes
    except ValueError as error:
        raise InputError(f"trainer.ddp_backend: {error}") from error
    if n_launched != n_counted:
        raise InputError(
            f"{n_launched} processes were launched, but accelerate counts {n_counted}, so each would do all the work. "
            "Start them with accelerate launch or torchrun."
        )


def _state() -> PartialState:
    join()  # again, since TrainingArguments resets what accelerate knows; the group stays
    return PartialState()


def rank() -> int:
    """Return the number of this process, from 0."""
    return int(_state().process_index)


def count() -> int:
    """Return how many processes the run has."""
    return int(_state().num_processes)


def is_first() -> bool:
    """Whether this process writes the outputs: the first of several, or the only one."""
    return rank() == 0


def device() -> torch.device:
    """Return where this process computes: its own accelerator, else the CPU."""
    return torch.device(_state().device)


def share() -> slice:
    """Return what of a list is this process's: every n-th."""
    return slice(rank(), None, count())


def sum_over(values: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes, on each of them, on the CPU."""
    if count() > 1:
        wait()
        values = values.to(device())
        torch.distributed.all_reduce(values)
    return values.cpu()


def agreed(make: Callable[[], T]) -> T:
    """Let the first process look, or do, something; the others wait and believe what it found.

    Parameters
    ----------
    make
        Called on the first process alone. What it returns is sent to the others.

    Raises
    ------
    Exception
        What `make` raises, on every process.
    """
    if count() == 1:
        return make()
    outcome: list[Any] = [None, None]
    if is_first():
        try:
            outcome[0] = make()
        except Exception as error:
            outcome[1] = error
    wait()
    broadcast_object_list(outcome)
    found, failure = outcome
    if failure is not None:
        raise failure
    return found


# Waiting and failing

_entered: list[int] = []
"""Numbers of the blocks of `together` that this process is in."""
_counts = {"blocks": 0, "waits": 0}
"""How many blocks were entered and how often was waited: the same on every process, so they name keys in the store."""


@contextmanager
def together() -> Iterator[None]:
    """Tell the other processes when this one fails within the block; every process of a run enters it.

    The others raise `OtherProcessError` where they next wait, or look (`require_others`).
    """
    if count() == 1:
        yield
        return
    _counts["blocks"] += 1
    _entered.append(_counts["blocks"])
    try:
        yield
    except OtherProcessError:
        raise
    except BaseException as error:
        _tell(_entered[-1], f"process {rank()}: {error or type(error).__name__}")
        raise
    finally:
        _entered.pop()


def _tell(block: int, message: str) -> None:
    with suppress(torch.distributed.DistError):  # another one, which held the store, failed first
        _store().set(_failed(block), message)
        _store().add(f"{_failed(block)}/know", 1)
        if is_first():
            _stay_until(lambda: _store().add(f"{_failed(block)}/know", 0) == count())


def wait() -> None:
    """Wait until every process has come here, however long that takes.

    Raises
    ------
    OtherProcessError
        Another process failed in the block of `together` that this one is in.
    """
    if count() == 1:
        return
    store, n_processes = _store(), count()
    _counts["waits"] += 1
    here = f"geneformer_repro/wait/{_counts['waits']}"
    store.add(here, 1)
    _until(lambda: store.add(here, 0) == n_processes)
    store.add(f"{here}/left", 1)
    if is_first():
        _stay_until(lambda: store.add(f"{here}/left", 0) == n_processes)


def require_others() -> None:
    """Raise `OtherProcessError` if another process has failed in the block of `together` that this one is in."""
    for block in _entered:
        store = _store()
        try:
            has_failed = store.check([_failed(block)])
            message = store.get(_failed(block)).decode() if has_failed else ""
        except torch.distributed.DistError as error:
            raise OtherProcessError("Stopped, since the first process of the run is gone.") from error
        if has_failed:
            store.add(f"{_failed(block)}/know", 1)
            raise OtherProcessError(f"Stopped, since another process of the run failed: {message}")


def _until(all_have_come: Callable[[], bool]) -> None:
    nap = _FIRST_NAP
    while not all_have_come():
        require_others()
        time.sleep(nap)
        nap = min(2 * nap, _LONGEST_NAP)


def _stay_until(all_know: Callable[[], bool]) -> None:
    """Keep the store, which the first process may hold, a little longer."""
    deadline = time.monotonic() + _FAREWELL_SECONDS
    while not all_know() and time.monotonic() < deadline:
        time.sleep(_FIRST_NAP)


def _failed(block: int) -> str:
    return f"geneformer_repro/failed/{block}"


def _store() -> Any:
    """Return the store of the group, of which torch has no public name."""
    return torch.distributed.distributed_c10d._get_default_store()


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute in one thread, as workers do that share the processors: another number changes last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def peak_memory_gb() -> float:
    """Return the most memory so far: of the GPU where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
