"""Non-zero medians by sketch: error, speed, memory and size of ours, against exact ones and crick's t-digests.

Cells are drawn with replacement and their counts anew around the old ones (Poisson), so that digests have much to take
in and no value repeats more than in real cells. An error in rank is the distance of a median's rank from one half; of
sampling it is the exact median's standard error, 0.5 / √values. Genes with 200 values or more; with fewer, ours are
exact. The published package used crick, whose default compression is 100; where it is not installed it is skipped.

python benchmarks/median_sketch.py [FILE.h5ad …] [--cells 100000] [--parts 50] [--runs 5]
    # default: the 700 cells that ship with the package
"""

import argparse
import itertools
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
from _side_by_side import alternate, machine, report
from datasketches import tdigest_double
from scipy.sparse import csc_matrix, csr_matrix

import geneformer_repro as gf
from geneformer_repro.tokenizer.medians import TARGET_SUM, NonzeroMedians

try:
    from crick import TDigest
except ImportError:
    TDigest = None

BLOCK = 4096
FEW = 200


class Crick:
    """A t-digest of crick for each gene that has values, with the methods of ours."""

    def __init__(self, n_genes: int, *, compression: int) -> None:
        self._medians = np.full(n_genes, np.nan)
        self._compression = compression
        self._digests: dict[int, TDigest] = {}

    def _of(self, gene: int) -> "TDigest":
        if gene not in self._digests:
            self._digests[gene] = TDigest(self._compression)
        return self._digests[gene]

    def add(self, normalised: csr_matrix) -> None:
        """Update the digest of each gene in the block."""
        columns = normalised.tocsc()
        for gene, (start, end) in enumerate(itertools.pairwise(columns.indptr.tolist())):
            if end > start:
                self._of(gene).update(columns.data[start:end])

    def merge(self, other: "Crick") -> None:
        """Merge gene by gene."""
        for gene, digest in other._digests.items():
            self._of(gene).merge(digest)

    def medians(self) -> np.ndarray:
        """Ask each digest."""
        for gene, digest in self._digests.items():
            self._medians[gene] = digest.quantile(0.5)
        return self._medians

    def save(self, path: Path) -> None:
        """Write the means and their weights."""
        np.save(path, np.concatenate([digest.centroids() for digest in self._digests.values()]))


class OwnQuantile(NonzeroMedians):
    """Our digests, asked by their library's own get_quantile."""

    def medians(self) -> np.ndarray:
        """Ask each digest."""
        medians = super().medians()
        for gene, digest in enumerate(self._digests):
            if digest:
                medians[gene] = tdigest_double.deserialize(digest).get_quantile(0.5)
        return medians


Make = Callable[[int], Any]


def methods() -> dict[str, Make]:
    ways: dict[str, Make] = {
        "ours": NonzeroMedians,
        "ours, exact": partial(NonzeroMedians, exact=True),
        "ours, get_quantile": OwnQuantile,
    }
    if TDigest is not None:
        ways |= {f"crick {size}": partial(Crick, compression=size) for size in (100, 200, 400)}
    return ways


def drawn(path: Path | None, n_cells: int) -> csr_matrix:
    """Return normalised counts of cells like those of a file."""
    rng = np.random.default_rng(0)
    counts = csr_matrix((gf.datasets.pbmc700() if path is None else ad.read_h5ad(path)).X, dtype=np.float64)
    counts = counts[rng.integers(counts.shape[0], size=n_cells)]
    counts.data = rng.poisson(counts.data).astype(np.float64)
    counts.eliminate_zeros()
    totals = np.asarray(counts.sum(axis=1)).ravel()
    counts.data *= TARGET_SUM / np.repeat(totals, np.diff(counts.indptr))
    return counts


def rising(columns: csc_matrix) -> csr_matrix:
    """Return the same values of each gene, the smallest in the first cells."""
    ordered = columns.sorted_indices()
    for start, end in zip(ordered.indptr, ordered.indptr[1:], strict=False):
        ordered.data[start:end].sort()
    return csr_matrix(ordered)


def collect(cells: csr_matrix, make: Make) -> Any:
    found = make(cells.shape[1])
    for start in range(0, cells.shape[0], BLOCK):
        found.add(cells[start : start + BLOCK])
    return found


def collect_parts(cells: csr_matrix, make: Make, n_parts: int) -> Any:
    if n_parts == 1:
        return collect(cells, make)
    whole = make(cells.shape[1])
    for part in np.array_split(np.arange(cells.shape[0]), n_parts):
        whole.merge(collect(cells[part[0] : part[-1] + 1], make))
    return whole


def three(errors: np.ndarray) -> str:
    return " ".join(f"{100 * x:>7.3f}" for x in (np.median(errors), np.quantile(errors, 0.99), errors.max()))


def errors(medians: np.ndarray, by_gene: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return how far the medians are off, in rank and relative to the value."""
    ranks = []
    for median, values in zip(medians, by_gene, strict=True):
        below, above = (np.searchsorted(values, median, side) / len(values) for side in ("left", "right"))
        ranks.append(max(below - 0.5, 0.5 - above, 0))
    return np.array(ranks), np.abs(medians / np.array([np.median(values) for values in by_gene]) - 1)


def compare(cells: csr_matrix, n_parts: int) -> None:
    columns = cells.tocsc()
    cells_of = {"as drawn": cells, "rising": rising(columns)}
    columns = cells_of["rising"].tocsc()
    n_values = np.diff(columns.indptr)
    genes = np.flatnonzero(n_values >= FEW)
    by_gene = [columns.data[columns.indptr[gene] : columns.indptr[gene + 1]] for gene in genes]
    print(f"  {'%':<35} {'rank: median     p99     max':>31} {'value: median     p99     max':>31}")
    print(f"  {'sampling, one standard error':<43} {three(0.5 / np.sqrt(n_values[genes]))}")
    for name, make in methods().items():
        for order, parts in (("as drawn", 1), ("as drawn", n_parts), ("rising", 1), ("rising", n_parts), ("rising", 2)):
            if name in ("ours, exact", "ours, get_quantile") and (order, parts) != ("as drawn", 1):
                continue
            ranks, values = errors(collect_parts(cells_of[order], make, parts).medians()[genes], by_gene)
            what = f"{name}, {order}, {parts} part{'s' * (parts > 1)}"
            print(f"  {what:<43} {three(ranks)}        {three(values)}", flush=True)


def race(cells: csr_matrix, runs: int) -> None:
    """Time ours and crick's in turn, from blocks to medians."""
    ways = methods()
    for name in ("crick 100", "crick 200"):
        if name in ways:
            seconds = alternate(
                lambda: collect(cells, ways["ours"]).medians(),
                lambda name=name: collect(cells, ways[name]).medians(),  # type: ignore[misc]
                runs=runs,
            )
            report(
                f"blocks of {BLOCK:,} to medians: ours, and {name} as stock", seconds, amount=cells.nnz, unit="values"
            )


def peak_mb() -> float:
    """Return the largest resident memory so far; unlike ru_maxrss, a new process does not inherit its parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1e3


def memory(name: str, n_genes: int, n_blocks: int) -> tuple[float, float, float, int]:
    """Return peak memory above a block (MB), size of the file (MB), seconds to merge, values; in its own process."""
    rng, per_cell = np.random.default_rng(0), 2_000
    genes = np.arange(per_cell, dtype=np.int32) * (n_genes // per_cell)
    genes = genes + rng.integers(n_genes, size=(BLOCK, 1), dtype=np.int32)
    genes %= n_genes
    starts = np.arange(BLOCK + 1, dtype=np.int32) * per_cell
    block = csr_matrix((np.empty(genes.size), genes.ravel(), starts), shape=(BLOCK, n_genes))
    rng.standard_exponential(out=block.data)

    def collected(n_blocks: int) -> Any:
        found = methods()[name](n_genes)
        for _ in range(n_blocks):
            rng.standard_exponential(out=block.data)
            found.add(block)
        return found

    before = peak_mb()
    found = collected(n_blocks)
    peak = peak_mb() - before
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "found.npy"
        found.save(path)
        size = path.stat().st_size / 1e6
    later = collected(8)
    began = time.perf_counter()
    found.merge(later)
    return peak, size, time.perf_counter() - began, n_blocks * block.nnz


def main() -> None:
    """Compare on every file, then measure memory on made-up cells."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--parts", type=int, default=50)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    crick = f"crick {version('crick')}" if TDigest is not None else "crick is not installed: skipped"
    print(f"{machine()}, datasketches {version('datasketches')}, {crick}")
    for path in options.files or [None]:
        cells = drawn(path, options.cells)
        name = "700 blood cells" if path is None else path.stem
        print(f"\n{name}, drawn to {cells.shape[0]:,} cells × {cells.shape[1]:,} genes, {cells.nnz:,} values")
        compare(cells, options.parts)
        race(cells[:20_000], options.runs)
    n_genes, n_blocks = 25_000, 24
    print(f"\n{n_genes:,} genes, {n_blocks * BLOCK:,} made-up cells: peak memory above a block, file, merge of 32,768")
    for name in methods():
        if name != "ours, get_quantile":
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                peak, size, seconds, n_values = pool.submit(memory, name, n_genes, n_blocks).result()
            print(
                f"  {name:<12} {peak:>8,.0f} MB {size:>8,.0f} MB {seconds:>8.2f} s  ({n_values:,} values)", flush=True
            )


if __name__ == "__main__":
    main()
