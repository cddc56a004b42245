"""Memory and time of the statistics of a large screen: made-up rows in a file, each method in a process of its own.

Singles: cells of 2,000 of 4,000 genes, 20 donors, 1 million rows a row group, as a screen writes them. Pairs: 60 genes,
each alone and in pairs. Affected genes: 300 genes, each with what it did to all others.

python benchmarks/screen_statistics.py                       # 100 million rows: about 2 GB of disk, 20 minutes
python benchmarks/screen_statistics.py --rows 10_000_000
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa
from _side_by_side import machine

from geneformer_repro.in_silico.shift_table import COLUMNS, SHIFT, SIMILARITY, write_blocks

ROWS_A_GROUP = 1_000_000
GENES = [f"ENSG{i:011d}" for i in range(4000)]
N_DONORS = 20
EACH = {"kind": "Deletion", "genes": "each", "combine": "singly", "anchor": None}
IN_A_PROCESS = """
import sys, time
from pathlib import Path
import geneformer_repro as gf
from geneformer_repro.in_silico.statistics import shift_statistics

def largest():
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**20

shifts, method = gf.ShiftTable.open(sys.argv[1]), sys.argv[2]
before, wall, cpu = largest(), time.perf_counter(), time.process_time()
shift_statistics(shifts, method=method, **({"null": shifts} if method == "vs_null" else {}))
wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
print(f"{wall:.0f} s, {cpu:.0f} s of CPU, peak {largest():.2f} GB, {before:.2f} GB of it before")
"""
"""Memory is what the kernel says was resident at most, read once: to sample it takes as long as the work."""
METHODS = {
    "matched": "singles",
    "matched, cells for donors": "no donors",
    "goal_state": "goal",
    "vs_all": "singles",
    "vs_null": "singles",
    "mixture": "singles",
    "pairs": "pairs",
    "gene_shifts": "affected",
}


def blocks(what: str, n_rows: int) -> Iterator[pa.Table]:
    """Yield row groups of whole cells."""
    perturbed, affected = labels(what)
    a_cell = 2000 if perturbed is None else len(perturbed)
    cells_a_group = max(1, ROWS_A_GROUP // a_cell)
    for start in range(0, n_rows // a_cell, cells_a_group):
        rng = np.random.default_rng(start)
        cell = np.repeat(np.arange(cells_a_group), a_cell)
        if perturbed is None:
            gene = np.concatenate([rng.permutation(len(GENES))[:a_cell] for _ in range(cells_a_group)])
        else:
            gene = np.tile(np.arange(a_cell), cells_a_group)
        n = len(cell)
        columns = {name: pa.nulls(n, kind) for name, kind in COLUMNS.items()}
        columns["cell"] = pa.array([f"cell{start + i}" for i in range(cells_a_group)]).take(cell)
        if what != "no donors":
            columns["donor"] = pa.array([f"donor{i}" for i in range(N_DONORS)]).take((start + cell) % N_DONORS)
        columns["perturbed"] = pa.array(GENES if perturbed is None else perturbed).take(gene)
        if affected is not None:
            columns["affected"] = pa.array(affected).take(gene)
        if what == "goal":
            columns["state"] = pa.array(["b"]).take(np.zeros(n, np.int64))
        columns["rank"] = pa.array(np.tile(np.arange(a_cell), cells_a_group), pa.int32())
        columns["value"] = pa.array(1 - rng.exponential(0.01, n))
        columns["exact"] = pa.array(np.ones(n, bool))
        yield pa.table(columns, pa.schema(list(COLUMNS.items())))


def labels(what: str) -> tuple[list[str] | None, list[str | None] | None]:
    """Return what is perturbed, and affected, in each cell; of singles None."""
    if what == "pairs":
        return [*GENES[:60], *map("+".join, combinations(GENES[:60], 2))], None
    if what == "affected":
        some = GENES[:300]
        return [gene for gene in some for _ in range(301)], [*some, None] * 300
    return None, None


def main() -> None:
    """Write each file, and take the statistics of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000_000)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    arguments = parser.parse_args()
    print(machine("pandas", "pyarrow", "numpy"), flush=True)
    for what in dict.fromkeys(METHODS[method] for method in arguments.methods):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "shifts.parquet"
            how = {**EACH, "combine": "pairs", "genes": GENES[:60]} if what == "pairs" else EACH
            goal = {"obs": "state", "start": "a", "goal": "b", "alternatives": []} if what == "goal" else None
            metadata = {"measure": SHIFT if goal else SIMILARITY, "goal": goal, "target": None, "perturbation": how}
            write_blocks(path, blocks(what, arguments.rows), metadata | {"gene_names": {}, "n_cells": 0})
            for method in arguments.methods:
                if METHODS[method] == what:
                    print(f"{method:26s} {arguments.rows:,} rows:", end=" ", flush=True)
                    subprocess.run([sys.executable, "-c", IN_A_PROCESS, str(path), method.split(",")[0]], check=True)


if __name__ == "__main__":
    main()
