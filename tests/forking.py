"""Other processes for tests, as forks of the loaded interpreter: a new one costs ten seconds of imports, a fork none.

A fork begins with what the test has made, so that only what is tested is computed. It has one thread (`make test` sets
OMP_NUM_THREADS=1; a pool of threads does not survive a fork).
"""

import os
import random
import signal
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, PartialState


def forked(run: Callable[[], object], log: Path) -> int:
    """Start a process that calls `run` and exits, with 0 or, after an error (whose traceback is in `log`), with 1."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Python and JAX, of forking beside other threads, which the fork leaves
        pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.setpgid(0, 0)
        with log.open("w", buffering=1) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            sys.stdout = sys.stderr = file
            torch.set_num_threads(1)
            try:
                run()
                status = 0
            except SystemExit as error:
                print(error)
                status = error.code if isinstance(error.code, int) else 1
            except BaseException:
                traceback.print_exc()
    finally:
        os._exit(status)


def status_of(pid: int, *, seconds: float = 120) -> int:
    """Wait for a process; return its exit status, negative for a signal. Kill it after so many seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    kill(pid)
    raise TimeoutError(f"process {pid} did not end within {seconds} s")


def free_port() -> int:
    """Return a port to meet at, below those that the system gives to whoever connects meanwhile."""
    for port in random.SystemRandom().sample(range(15_000, 30_000), 100):
        with socket.socket() as free, suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("none of 100 ports is free")


def kill(pid: int) -> None:
    """End a process as a power cut would."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def several(run: Callable[[int], object], folder: Path, *, n: int = 2, expected: int | None = 0) -> list[str]:
    """Call ``run(rank)`` in `n` processes of one run, as torchrun would start them; return what each wrote.

    Raises
    ------
    AssertionError
        A process ended otherwise than with the status `expected`; None accepts any.
    """
    port = free_port()

    def of(rank: int) -> Callable[[], object]:
        def one() -> object:
            os.environ.update(
                RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(n), LOCAL_WORLD_SIZE=str(n),
                MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1",
            )  # fmt: skip
            AcceleratorState._reset_state(reset_partial_state=True)
            PartialState._reset_state()
            return run(rank)

        return one

    logs = [folder / f"process{rank}.log" for rank in range(n)]
    pids = [forked(of(rank), log) for rank, log in enumerate(logs)]
    seconds, statuses = 120.0, []
    try:
        for pid in pids:  # who waits for one that has failed to begin would wait long
            statuses.append(status_of(pid, seconds=seconds))
            seconds = 120.0 if statuses[-1] in (0, expected) else 20.0
    except TimeoutError:
        for pid in pids:
            kill(pid)
        raise
    said = [log.read_text() for log in logs]
    for log in logs:
        log.unlink()
    if expected is not None:
        assert statuses == [expected] * n, "\n".join(said)
    return said
