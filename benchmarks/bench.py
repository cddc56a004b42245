"""The table of speeds beside the stock way, in one run: each row one of the scripts here, in turn, ours and stock.

python benchmarks/bench.py                 # what `make bench` does; two cores: under an hour, 10 GB of memory
python benchmarks/bench.py --gpu           # what a GPU is for; part of benchmarks/on_a_gpu.sh
python benchmarks/bench.py --quick         # tiny sizes on data that ship: whether it all runs, not how fast

Every row has its own time limit, and the table is written again after each, so a run that is cut off leaves what it
has: OUT/table.md, OUT/rows.jsonl (all runs) and a log a row. Without --tokens and --counts it takes the data sets
beside the checkout; without those the 700 cells that ship, and made-up cells. The table says which.
"""

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
SHARED = HERE.parents[1] / "shared" / "data"
N_GENES = 25_424
"""Genes of the published V1 vocabulary, which made-up cells are drawn from."""
N_MADE_UP = 300


class Row(NamedTuple):
    """A script with what it is given, and how many seconds it may take."""

    script: str
    arguments: Sequence[str]
    limit: int
    data: str
    """Which cells it works on, for the table."""


class Data(NamedTuple):
    """What the rows work on; with each, what the table calls it."""

    tokens: tuple[str, str]
    """Lists of V1 tokens, most of them as long as a cell may be."""
    long_tokens: tuple[str, str]
    """The same of 4,096 tokens, made up."""
    counts: tuple[list[str], str]
    """Raw counts; none for the cells that ship."""
    cells: tuple[str, str]
    """Real cells of all lengths, tokenised, with labels."""


def cpu_rows(data: Data, label: str) -> list[Row]:
    """Every kind of work, in float32 and bfloat16, on two cores."""
    (tokens, of_tokens), (cells, of_cells) = data.tokens, data.cells
    source = ["--source", *data.counts[0]] if data.counts[0] else []
    tokenised = [*source, "--beside", "11180", "--cells", "11180", "--runs", "3"]
    training = ["--steps", "4", "--runs", "3", "--only-beside"]
    screen = [tokens, "--stock-variants", "64", "--runs", "3"]
    ways = ["--ways", "exact", "exact in bfloat16"]
    return [
        Row("import_time", [cells], 120, of_cells),
        Row("tokenize_cells", tokenised, 300, data.counts[1]),
        Row("pretraining", [tokens, *training], 700, of_tokens),
        Row("pretraining", [tokens, "--bf16", *training], 500, of_tokens),
        Row("pretraining", [cells, *training], 400, of_cells),
        Row("finetuning", [cells, label, "--steps", "4", "--runs", "3"], 400, of_cells),
        Row("perturbation", [*screen, *ways, "first order", "first order in bfloat16"], 400, of_tokens),
        Row("perturbation", [*screen, "--genes", "2048", "--variants", "24", *ways], 400, of_tokens),
        Row("embedding", [cells, "--n-cells", "60", "--batch", "20", "--runs", "3"], 300, of_cells),
        Row("embedding", [tokens, "--n-cells", "24", "--batch", "12", "--runs", "3"], 300, of_tokens),
    ]


def gpu_rows(data: Data) -> list[Row]:
    """What training and screens on one GPU come to; most valuable first, as time may run out."""
    (tokens, of_tokens), (long_tokens, of_long) = data.tokens, data.long_tokens
    training = ["--bf16", "--steps", "12", "--only-beside"]
    screen = ["--device", "cuda", "--runs", "2", "--ways", "exact", "exact in bfloat16", "first order"]
    v2 = ["--size", "V2-104M"]
    return [
        Row("pretraining", [tokens, "--batch", "12", "--runs", "2", *training], 120, of_tokens),
        Row("perturbation", [tokens, "--genes", "2048", "--stock-variants", "200", *screen], 90, of_tokens),
        Row("pretraining", [long_tokens, *v2, "--batch", "6", "--runs", "1", *training], 90, of_long),
        Row("embedding", [tokens, "--n-cells", "300", "--batch", "50", "--runs", "3"], 70, of_tokens),
        Row(
            "perturbation",
            [long_tokens, *v2, "--genes", "4096", "--variants", "256", "--stock-variants", "50", *screen],
            90,
            of_long,
        ),
    ]


def quick(rows: Iterable[Row]) -> list[Row]:
    """One row of each script, with tiny sizes, on whatever device there is."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    small = {
        "import_time": ["--runs", "1"],
        "tokenize_cells": ["--beside", "200", "--cells", "--runs", "1"],
        "pretraining": ["--size", "tiny", "--steps", "3", "--runs", "1", "--batch", "2"],
        "finetuning": ["--size", "tiny", "--steps", "3", "--runs", "1", "--batch", "4"],
        "perturbation": ["--size", "tiny", "--runs", "1", "--genes", "32", "--variants", "8", "--stock-variants", "4"],
        "embedding": ["--size", "tiny", "--n-cells", "8", "--batch", "4", "--runs", "1"],
    }
    small["perturbation"] += ["--device", device]
    first: dict[str, Row] = {}
    for row in rows:
        first.setdefault(row.script, row)
    return [
        row._replace(arguments=[*row.arguments, *small[row.script]], limit=8 * row.limit)  # whether, not how fast
        for row in first.values()
    ]


# Data


def prepared(given: argparse.Namespace, folder: Path) -> Data:
    """Find what was given or is beside the checkout, and make the rest."""
    at_hand = [] if given.quick else [SHARED / "pbmc3k/pbmc3k.h5ad", SHARED / "pretrain_extra/pretrain_extra.h5ad"]
    known = SHARED / "genecorpus_500_tokens/genecorpus_500.parquet"
    counts = given.counts or [str(path) for path in at_hand if path.exists()]
    if given.tokens or (known.exists() and not given.quick):
        tokens = (given.tokens, Path(given.tokens).name) if given.tokens else (str(known), "500 of Genecorpus-30M")
    else:
        tokens = made_up(folder / "made_up.parquet", 64 if given.quick else 2048), "made up"
    long_tokens = made_up(folder / "made_up_long.parquet", 96 if given.quick else 4096), "made up"
    names = ", ".join(Path(path).stem for path in counts) or "700 that ship, repeated"
    cells = tokenised(counts[:1], folder / "cells.tok", given.label, few=given.quick)
    return Data(tokens, long_tokens, (counts, names), (cells, names.split(",")[0]))


def made_up(path: Path, n_tokens: int) -> str:
    """Write cells of random genes, all of one length."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    ids = [(2 + rng.permutation(N_GENES)[:n_tokens]).astype(np.int32) for _ in range(N_MADE_UP)]
    pq.write_table(pa.table({"input_ids": ids, "length": [n_tokens] * N_MADE_UP}), path)
    return str(path)


def tokenised(counts: Sequence[str], out: Path, label: str, *, few: bool) -> str:
    """Tokenise the counts, or the cells that ship, with a label."""
    import geneformer_repro as gf

    source = counts[0] if counts else gf.datasets.pbmc700()[:: 10 if few else 1].copy()
    vocabulary = gf.Vocabulary.fit(source, max_length=2048)
    gf.tokenize(source, vocabulary, obs=[label], out=out, overwrite=True)
    return str(out)


# Rows and table


def measured(row: Row, number: int, out: Path, limit: float) -> list[dict[str, Any]]:
    """Run a script; return its measurements, or one that says why there are none."""
    log, lines = out / f"{number:02d}-{row.script}.log", out / f"{number:02d}-{row.script}.jsonl"
    lines.unlink(missing_ok=True)
    command = [sys.executable, str(HERE / f"{row.script}.py"), *row.arguments, "--json", str(lines)]
    began, why = time.perf_counter(), ""
    with log.open("w") as said:
        print("$", *command[1:], file=said, flush=True)
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            status = process.wait(limit)
            why = f"exit status {status}" if status else ""
        except subprocess.TimeoutExpired:
            why = f"stopped after {limit:.0f} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # with the processes it started
                process.wait()
    found = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    lines.unlink(missing_ok=True)
    if not found or why:
        found.append(
            {"what": f"{row.script} {' '.join(row.arguments)}", "failed": why or "no figures", "log": log.name}
        )
    seconds = round(time.perf_counter() - began, 1)
    return [one | {"data": row.data, "script": row.script, "seconds": seconds} for one in found]


def table_of(rows: Iterable[dict[str, Any]]) -> str:
    """Lay measurements out as a Markdown table."""
    head = ("what", "ours", "stock", "ratio", "share of peak", "peak memory, GB: ours, stock", "cells")
    lines = [head, ("---",) * len(head)]
    for row in rows:
        if "failed" in row:
            lines.append((row["what"], row["failed"], f"see {row['log']}", "", "", "", row["data"]))
            continue
        share = row.get("share_of_peak")
        lines.append(
            (
                row["what"],
                f"{_median(row['ours'])} {row['unit']}",
                _median(row["stock"]),
                ratios(row["ours"], row["stock"]),
                f"{share:.0%}" if share else "–",
                _memory(row),
                row["data"],
            )
        )
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def ratios(ours: Sequence[float], stock: Sequence[float]) -> str:
    """Median, least and most of ours to stock's, run by run."""
    if not stock:
        return "–"
    found = sorted(a / b for a, b in zip(ours, stock, strict=True))
    return f"{statistics.median(found):,.3g} × ({found[0]:,.3g}–{found[-1]:,.3g})"


def _median(rates: Sequence[float]) -> str:
    if not rates:
        return "–"
    median = statistics.median(rates)
    return f"{median:,.0f}" if median >= 100 else f"{median:.3g}"


def _memory(row: dict[str, Any]) -> str:
    if both := row.get("both_memory_gb"):
        return f"{both:.1f} of both"
    return ", ".join(f"{row[name]:.2f}" if row.get(name) else "–" for name in ("memory_gb", "stock_memory_gb"))


def machine() -> str:
    """Hardware and versions, and how fast a large matrix product is."""
    from importlib.metadata import version

    import torch

    from geneformer_repro.training.log import peak_flops

    cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    name = next((line.partition(":")[2].strip() for line in cpu.splitlines() if line.startswith("model name")), "")
    flags = {flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f" {flag}" in cpu}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gpu = [f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}"] if device.type == "cuda" else []
    peaks = [
        f"{peak_flops(device, dtype) / 1e9:,.0f} GFLOP/s in {str(dtype).removeprefix('torch.')}"
        for dtype in (torch.float32, torch.bfloat16)
    ]
    packages = ("torch", "transformers", "numpy", "numba", "datasets")
    return "; ".join(
        [
            *gpu,
            f"{name or platform.processor()} ({platform.machine()}), {len(os.sched_getaffinity(0))} cores, "
            f"{torch.get_num_threads()} threads, {' '.join(sorted(flags)) or 'flags unknown'}",
            f"matrix products {', '.join(peaks)}",
            f"Python {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in packages),
        ]
    )


def main() -> int:
    """Measure row after row; write the table after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", action="store_true", help="the rows for a GPU")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: whether it all runs")
    parser.add_argument("--only", nargs="+", metavar="SCRIPT", help="rows of these scripts, such as pretraining")
    parser.add_argument("--tokens", metavar="FILE", help="Parquet file of V1 token lists (input_ids)")
    parser.add_argument("--counts", nargs="+", metavar="FILE", help=".h5ad with raw counts, the first with labels")
    parser.add_argument("--label", default="cell_type", help="obs column of the first (default %(default)s)")
    parser.add_argument(
        "--minutes", type=float, default=58, help="start no row that may end later (default %(default)s)"
    )
    parser.add_argument("--out", type=Path, default=Path("bench-output"), help="folder (default %(default)s)")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the row at work is ended, too
    began = time.perf_counter()
    given.out.mkdir(parents=True, exist_ok=True)
    data = prepared(given, given.out)
    rows = gpu_rows(data) if given.gpu else cpu_rows(data, given.label)
    rows = [row for row in (quick(rows) if given.quick else rows) if not given.only or row.script in given.only]
    title, found = machine(), []
    for number, row in enumerate(rows, 1):
        left = 60 * given.minutes - (time.perf_counter() - began)
        if left < min(row.limit, 30):
            found.append({"what": f"{row.script} {' '.join(row.arguments)}", "failed": "no time left", "log": "none"})
            found[-1] |= {"data": row.data, "script": row.script}
        else:
            found += measured(row, number, given.out, min(row.limit, left))
        (given.out / "rows.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in found))
        table = f"{title}. Medians of runs in turn; ratios run by run, median (least–most).\n\n{table_of(found)}"
        (given.out / "table.md").write_text(table)
        print(
            f"[{(time.perf_counter() - began) / 60:.1f} min] {row.script}: {found[-1].get('failed', 'done')}",
            flush=True,
        )
    print(f"\n{table}\n{given.out}/table.md, {given.out}/rows.jsonl")
    return int(any("failed" in one for one in found))


if __name__ == "__main__":
    sys.exit(main())
