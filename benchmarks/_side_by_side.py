"""Time two ways to do one thing in turn, so that a machine whose speed drifts slows both; report ratios.

Memory is that of a process with all its children, and shared pages count once (Pss, Linux): the sum of resident sizes
would count the libraries anew for every worker.
"""

import argparse
import json
import platform
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import pyarrow.parquet as pq
import torch

import geneformer_repro as gf
from geneformer_repro.tokenizer.vocabulary import Vocabulary


def in_turn(
    works: Mapping[str, Callable[[], object]], *, runs: int = 5, between: Callable[[], object] = lambda: None
) -> dict[str, list[float]]:
    """Seconds of each run of all, in turn, after one uncounted run of each; `between` is called untimed after each."""
    for work in works.values():
        work(), between()
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(runs):
        for name, work in works.items():
            began = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - began)
            between()
    return seconds


def alternate(ours: Callable[[], object], stock: Callable[[], object], *, runs: int = 5) -> dict[str, list[float]]:
    """Seconds of each run of both, in turn, after one uncounted run of each."""
    return in_turn({"ours": ours, "stock": stock}, runs=runs)


def rates(seconds: Mapping[str, Sequence[float]], *, amount: float, unit: str) -> None:
    """Print rates (min, median, max)."""
    width = max(map(len, seconds))
    for name, times in seconds.items():
        found = sorted(amount / second for second in times)
        print(
            f"  {name:<{width}} {found[0]:>10,.1f} {statistics.median(found):>10,.1f} {found[-1]:>10,.1f} {unit}/s  "
            f"(min, median, max of {len(times)})"
        )


def ratio(name: str, of: Sequence[float], to: Sequence[float], what: str) -> None:
    """Print `of` divided by `to`, pair by pair (min, median, max)."""
    found = sorted(a / b for a, b in zip(of, to, strict=True))
    print(f"  {name} {found[0]:>10.2f} {statistics.median(found):>10.2f} {found[-1]:>10.2f} ×  ({what}, pair by pair)")


def report(title: str, seconds: dict[str, list[float]], *, amount: float, unit: str) -> None:
    """Print rates (min, median, max) and the ratio pair by pair."""
    print(f"\n{title}")
    rates(seconds, amount=amount, unit=unit)
    ratio("ratio", seconds["stock"], seconds["ours"], "stock time / our time")


class Fresh(NamedTuple):
    """What a process of its own took: seconds, and bytes it had before the work and at most during it."""

    seconds: float
    baseline: int
    peak: int


def in_fresh_process(imports: str, work: str, *arguments: str, sample: bool) -> Fresh:
    """Run `imports`, then `work`, in a new Python; `sys.argv[1:]` are the arguments.

    With `sample`, the memory of the process and its children is read every 10 ms, which slows the work; without,
    `baseline` and `peak` are 0.
    """
    code = (
        f"import sys, time\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n{imports}\n"
        f"print(flush=True); sys.stdin.readline(); began = time.perf_counter()\n{work}\n"
        f"print(time.perf_counter() - began, flush=True); sys.stdin.readline()"
    )
    command = [sys.executable, "-c", code, *arguments]
    with (
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        answer = process.stdout.readline()
        baseline = peak = memory_of_tree(process.pid) if sample else 0
        if answer:
            print(file=process.stdin, flush=True)
            while not select.select([process.stdout], [], [], 0.01 if sample else None)[0]:
                peak = max(peak, memory_of_tree(process.pid))
            answer = process.stdout.readline()
        process.stdin.close()
        if process.wait() or not answer:
            said.seek(0)
            raise RuntimeError(f"The process ended with {process.returncode} before the work was done:\n{said.read()}")
    return Fresh(float(answer), baseline, peak)


def memory_of_tree(pid: int) -> int:
    """Bytes of memory of a process and all its children, pages they share counted once (Linux)."""
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    return sum(_own(process.pid) for process in family)


def _own(pid: int) -> int:
    """Bytes of a process that no file holds, its share of those it shares.

    Pages of files are left out: of libraries that other processes have mapped, too, the share of one grows when another
    ends (by 78 MB within a minute, on a machine with other work).
    """
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):  # it has just ended
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:")))


def chosen_cells(path: str, n_cells: int) -> gf.TokenizedDataset:
    """Return some cells at random; token lists get as many genes as the published V1 vocabulary has."""
    if path.endswith(".parquet"):
        longest = max(map(len, pq.read_table(path, columns=["input_ids"])["input_ids"]))
        tokens = {"<pad>": 0, "<mask>": 1} | {f"ENSG{i:011d}": i for i in range(2, 25_426)}
        cells = gf.TokenizedDataset.open(path, Vocabulary.from_tokens(tokens, max_length=max(2048, longest)))
    else:
        cells = gf.TokenizedDataset.open(path)
    return cells.select(np.random.default_rng(0).permutation(len(cells))[:n_cells])


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Add where `keep` writes."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="also append a JSON line a measurement to this file")


def keep(
    file: Path | None, what: str, *, unit: str, ours: Sequence[float], stock: Sequence[float] = (), **more: object
) -> None:
    """Append a measurement to what ``--json`` names, if anything.

    Parameters
    ----------
    file
        Of ``--json``.
    what
        A row's title.
    unit
        Of `ours` and `stock`, such as "tokens/s".
    ours, stock
        Of each run, made in turn, so that the n-th of one belongs to the n-th of the other; `stock` may be empty.
    **more
        What else is known: `share_of_peak`, `memory_gb` and `stock_memory_gb` (peaks), `both_memory_gb` (of a process
        that did both), `cells` (which).
    """
    if file:
        row = {"what": what, "unit": unit, "ours": list(ours), "stock": list(stock), **more}
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(row) + "\n")


def machine(*packages: str) -> str:
    """One line about hardware and versions."""
    versions = ", ".join(f"{name} {version(name)}" for name in packages or ("torch", "transformers", "numpy"))
    return f"{platform.machine()}, {torch.get_num_threads()} threads, Python {platform.python_version()}, {versions}"
