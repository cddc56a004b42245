"""Tokenising on two cores, .h5ad to saved dataset: speed, memory, nearness to the limit of reading and writing.

Three measurements:

beside the published way
    Cells/s of ours and of a stock version that follows the published `TranscriptomeTokenizer` step by step: the whole
    file read, 512 cells at a time cut out of the AnnData, divided by n_counts, × 10,000, divided by medians (in this
    order), a NumPy `argsort` and two row look-ups a cell, a list of arrays, `Dataset.from_dict`, `map` with `np.insert`
    to crop, wrap and measure, `save_to_disk`; one process, its default. Left out, in favour of stock: reading the
    dictionaries, the test for repeated genes (there are none), progress bars.
memory
    Peak of the whole process tree above what the process had after its imports, each time in a new process. Time is
    taken in others, in which nobody looks; it includes the start of the workers (3 s), not the imports.
limit
    A loop that reads the same stored arrays, 4,096 cells at a time, and writes as many bytes as the dataset's Arrow
    files have, by as many processes; page cache warm, no fsync.

Large files are real cells drawn with replacement, as AnnData would write them. Linux only. A million of the 700 cells
(250 genes each) take 2 GB of disk, of cells with 1,462 genes 12 GB; stock needs 72 kB of memory for each of the latter.

python benchmarks/tokenize_cells.py                                        # the 700 cells that ship with scanpy
python benchmarks/tokenize_cells.py --source a.h5ad b.h5ad --folder big    # any raw counts, large files are kept
"""

import argparse
import contextlib
import hashlib
import io
import os
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import anndata as ad
import datasets
import h5py
import numpy as np
import pandas as pd
from _side_by_side import add_json_option, in_fresh_process, in_turn, keep, machine, rates, ratio
from anndata.io import write_elem
from joblib import Parallel, delayed
from scipy.sparse import csr_matrix

import geneformer_repro as gf

PUBLISHED_CELLS = 11_180
"""Cells of the run in which the published tokenizer did 1,870 cells/s, of 1,462 genes each."""
BLOCK = 4096
"""Cells read, or made, at a time."""
CHUNK = 512
"""Cells that the published tokenizer takes at a time."""
PACKAGES = ("numpy", "scipy", "numba", "h5py", "anndata", "pyarrow", "datasets")


class Cells(NamedTuple):
    """A file of real cells drawn with replacement."""

    path: Path
    n_cells: int
    genes_a_cell: float
    label: str


def read_source(paths: Sequence[Path]) -> ad.AnnData:
    """Real cells with raw counts, of one file or several, with `n_counts` and one categorical column."""
    read = [ad.read_h5ad(path) for path in paths] or [gf.datasets.pbmc700()]
    adata = read[0] if len(read) == 1 else ad.concat(read, join="outer", index_unique="-")
    counts = csr_matrix(adata.X)
    obs = pd.DataFrame({"n_counts": np.asarray(counts.sum(axis=1)).ravel()}, index=adata.obs_names)
    if "n_counts" in adata.obs:
        obs["n_counts"] = adata.obs["n_counts"].fillna(obs["n_counts"])
    label = next((name for name in adata.obs if not pd.api.types.is_numeric_dtype(adata.obs[name])), "part")
    obs[label] = pd.Categorical(adata.obs.get(label, pd.Series("all", obs.index)).astype(str))
    return ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=adata.var_names))


def resample(source: ad.AnnData, folder: Path, n_cells: int, compression: str | None) -> Cells:
    """Write so many cells drawn with replacement, all genes kept, in blocks; a file that is there is used again."""
    counts, label = csr_matrix(source.X), source.obs.columns[1]
    digest = hashlib.sha256(b"".join(array.tobytes() for array in (counts.data, counts.indices, counts.indptr)))
    path = folder / f"{digest.hexdigest()[:8]}-{n_cells}-{compression}.h5ad"
    rows = np.random.default_rng(0).integers(source.n_obs, size=n_cells)
    indptr = np.concatenate([[0], np.cumsum(np.diff(counts.indptr).astype(np.int64)[rows])])
    found = Cells(path, n_cells, float(indptr[-1] / n_cells), label)
    if path.exists():
        return found
    aside = path.with_suffix(".partial")
    with h5py.File(aside, "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        obs = source.obs.iloc[rows]
        write_elem(file, "obs", obs.set_axis(pd.Index([f"{name}-{i}" for i, name in enumerate(obs.index)])))
        write_elem(file, "var", source.var)
        matrix = file.create_group("X")
        matrix.attrs.update(
            {"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": (n_cells, len(source.var))}
        )
        integer = np.int32 if indptr[-1] < 2**31 else np.int64
        like_anndata: dict[str, Any] = {"maxshape": (None,), "compression": compression}
        matrix.create_dataset("indptr", data=indptr.astype(integer), **like_anndata)
        matrix.create_dataset("data", shape=indptr[-1:], dtype=counts.dtype, **like_anndata)
        matrix.create_dataset("indices", shape=indptr[-1:], dtype=integer, **like_anndata)
        for start in range(0, n_cells, BLOCK):
            block, stop = counts[rows[start : start + BLOCK]], min(start + BLOCK, n_cells)
            matrix["data"][indptr[start] : indptr[stop]] = block.data
            matrix["indices"][indptr[start] : indptr[stop]] = block.indices
    aside.rename(path)
    return found


def stock(cells: Cells, vocabulary: gf.Vocabulary, out: Path) -> None:
    """Tokenise as the published package does."""
    assert vocabulary.medians is not None
    adata = ad.read_h5ad(cells.path)
    known = np.flatnonzero([gene in vocabulary.position for gene in adata.var_names])
    genes = np.array([vocabulary.position[gene] for gene in adata.var_names[known]])
    tokens, medians = vocabulary.tokens[genes], vocabulary.medians[genes]
    tokenized: list[np.ndarray] = []
    labels: list[str] = []
    for start in range(0, adata.n_obs, CHUNK):
        chunk = np.arange(start, min(start + CHUNK, adata.n_obs))
        n_counts = adata[chunk].obs["n_counts"].to_numpy()[:, None]
        normalised = csr_matrix(adata[chunk][:, known].X / n_counts * 10_000 / medians)
        tokenized += [rank_genes(normalised[i].data, tokens[normalised[i].indices]) for i in range(normalised.shape[0])]
        labels += adata[chunk].obs[cells.label].tolist()
    dataset = datasets.Dataset.from_dict({"input_ids": tokenized, cells.label: labels})
    finish = partial(
        crop_and_wrap,
        max_length=vocabulary.max_length,
        cls=vocabulary.special_tokens["<cls>"],
        eos=vocabulary.special_tokens["<eos>"],
    )
    dataset.map(finish).save_to_disk(str(out))


def rank_genes(values: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """One cell's tokens, largest value first."""
    return tokens[np.argsort(-values)]


def crop_and_wrap(row: dict[str, Any], *, max_length: int, cls: int, eos: int) -> dict[str, Any]:
    """One cell's row as the published package finishes it."""
    row["input_ids"] = row["input_ids"][0 : max_length - 2]
    row["input_ids"] = np.insert(row["input_ids"], 0, cls)
    row["input_ids"] = np.insert(row["input_ids"], len(row["input_ids"]), eos)
    row["length"] = len(row["input_ids"])
    return row


def ours(cells: Cells, vocabulary: gf.Vocabulary, out: Path, *, workers: int) -> gf.TokenizedDataset:
    """Tokenise with this package; progress bars go nowhere."""
    with contextlib.redirect_stderr(io.StringIO()):
        return gf.tokenize(cells.path, vocabulary, out=out, obs=[cells.label], workers=workers, overwrite=True)


def arrow_bytes(out: Path) -> int:
    """Bytes of a dataset's Arrow files."""
    return sum(file.stat().st_size for file in out.glob("*.arrow"))


def read_and_write(cells: Cells, n_bytes: int, out: Path, *, workers: int) -> None:
    """Read what is stored and write so many bytes, each process its share."""
    out.mkdir(exist_ok=True)
    bounds = np.linspace(0, cells.n_cells, workers + 1).astype(int)
    each = n_bytes // cells.n_cells
    Parallel(n_jobs=workers)(
        delayed(_read_and_write)(cells.path, a, b, each, out / str(a)) for a, b in pairwise(bounds)
    )


def _read_and_write(path: Path, start: int, stop: int, bytes_a_cell: int, out: Path) -> None:
    filler = bytes(bytes_a_cell * BLOCK)
    with h5py.File(path) as file, out.open("wb", buffering=0) as written:
        matrix = file["X"]
        for at in range(start, stop, BLOCK):
            end = min(at + BLOCK, stop)
            indptr = matrix["indptr"][at : end + 1]
            for name in ("data", "indices"):
                matrix[name][indptr[0] : indptr[-1]]
            written.write(filler[: bytes_a_cell * (end - at)])


def compare(cells: Cells, vocabulary: gf.Vocabulary, folder: Path, given: argparse.Namespace) -> None:
    """Time ours, stock and the limit in turn in this process, and print."""
    kept, out = folder / "kept", folder / "out"
    ours(cells, vocabulary, kept, workers=1)
    n_bytes = arrow_bytes(kept)
    works: dict[str, Callable[[], object]]
    works = {f"ours, {n} workers": partial(ours, cells, vocabulary, out, workers=n) for n in given.workers}
    limits = {f"limit, {n} processes": partial(read_and_write, cells, n_bytes, out, workers=n) for n in given.workers}
    beside = {} if given.skip_stock else {"stock": partial(stock, cells, vocabulary, out)}
    seconds = in_turn(works | beside | limits, runs=given.runs, between=partial(shutil.rmtree, out))
    print(f"\n{describe(cells)}; Arrow files {n_bytes / 1e9:.2f} GB; in one process, in turn")
    rates(seconds, amount=cells.n_cells, unit="cells")
    for name, limit in zip(works, limits, strict=True):
        if beside:
            ratio(f"{name} beside stock", seconds["stock"], seconds[name], "stock time / our time")
        ratio(f"{name}, share of the {limit}", seconds[limit], seconds[name], "its time / our time")
    for name in works:
        keep(
            given.json,
            f"tokenising {cells.n_cells:,} cells of {cells.genes_a_cell:,.0f} genes, {name.removeprefix('ours, ')}",
            unit="cells/s",
            ours=[cells.n_cells / one for one in seconds[name]],
            stock=[cells.n_cells / one for one in seconds["stock"]] if beside else [],
        )
    if beside:
        stock(cells, vocabulary, out)
        print(f"  {agreement(kept, out, cells.n_cells)}")
        shutil.rmtree(out)
    shutil.rmtree(kept)


def agreement(kept: Path, other: Path, n_cells: int) -> str:
    """Say for how many cells both have the same genes, and how many of these at the same rank."""
    a, b = gf.TokenizedDataset.open(kept), datasets.load_from_disk(str(other))
    looked_at = range(0, n_cells, 97)
    pairs = [(a[i], np.array(b[i]["input_ids"])) for i in looked_at]
    alike = [x == y for x, y in pairs if set(x) == set(y)]
    share = np.concatenate(alike).mean() if alike else 0
    return (
        f"same genes in {len(alike)} of {len(looked_at)} cells, {share:.1%} of them at the same rank (stock leaves "
        "ties open, at the cut too)"
    )


FRESH_IMPORTS = """
import geneformer_repro as gf
gf.tokenize, gf.Vocabulary
"""
FRESH_WORK = """
path, vocabulary, out, label, workers = sys.argv[1:]
gf.tokenize(path, gf.Vocabulary.load(vocabulary), out=out, obs=[label], workers=int(workers), overwrite=True)
"""


def measure(cells: Cells, folder: Path, given: argparse.Namespace) -> None:
    """Time ours in new processes, beside the limit, and then their memory, and print."""
    workers, out = max(given.workers), folder / "out"
    arguments = [str(cells.path), str(folder / "vocabulary"), str(out), cells.label, str(workers)]
    clean = partial(shutil.rmtree, out)
    seconds: dict[str, list[float]] = {"ours": [], "limit": []}
    memory = []
    for _ in range(given.runs):
        seconds["ours"].append(in_fresh_process(FRESH_IMPORTS, FRESH_WORK, *arguments, sample=False).seconds)
        limit = partial(read_and_write, cells, arrow_bytes(out), out, workers=workers)
        clean()
        seconds["limit"] += in_turn({"limit": limit}, runs=1, between=clean)["limit"]
        memory.append(in_fresh_process(FRESH_IMPORTS, FRESH_WORK, *arguments, sample=True))
        clean()
    print(f"\n{describe(cells)}; {workers} workers, each time in a new process")
    rates(seconds, amount=cells.n_cells, unit="cells")
    ratio("share of the limit", seconds["limit"], seconds["ours"], "its time / our time")
    above = sorted((found.peak - found.baseline) / 1e6 for found in memory)
    print(
        f"  peak memory {above[0]:,.0f} {statistics.median(above):,.0f} {above[-1]:,.0f} MB above the "
        f"{statistics.median(found.baseline for found in memory) / 1e6:,.0f} MB after the imports  (min, median, max)"
    )
    keep(
        given.json,
        f"tokenising {cells.n_cells:,} cells of {cells.genes_a_cell:,.0f} genes, {workers} workers, in a new process",
        unit="cells/s",
        ours=[cells.n_cells / one for one in seconds["ours"]],
        memory_gb=above[-1] / 1e3,
    )


def describe(cells: Cells) -> str:
    """Say what is read."""
    return f"{cells.n_cells:,} cells of {cells.genes_a_cell:,.0f} genes, {cells.path.stat().st_size / 1e9:.2f} GB"


@contextlib.contextmanager
def folder_for(given: Path | None) -> Iterator[Path]:
    """The folder given, made if need be, or a temporary one."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = given or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        yield folder


def main() -> None:
    """Make the files, measure, print as it goes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", nargs="+", type=Path, default=[], help="real cells (.h5ad with raw counts in X)")
    parser.add_argument("--beside", nargs="*", type=int, default=[PUBLISHED_CELLS, 100_000], help="cells beside stock")
    parser.add_argument("--cells", nargs="*", type=int, default=[10_000, 100_000, 1_000_000], help="cells for memory")
    parser.add_argument("--folder", type=Path, help="where large files are kept and found again; default: not kept")
    parser.add_argument("--compression", choices=["none", "lzf", "gzip"], default="none")
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--skip-stock", action="store_true")
    parser.add_argument("--runs", type=int, default=5)
    add_json_option(parser)
    given = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    datasets.disable_progress_bars()
    print(f"{machine(*PACKAGES)}; {len(os.sched_getaffinity(0))} cores; compression {given.compression}")
    with folder_for(given.folder) as folder:
        source = read_source(given.source)
        source.write_h5ad(folder / "source.h5ad")
        with contextlib.redirect_stderr(io.StringIO()):
            vocabulary = gf.Vocabulary.fit(folder / "source.h5ad")
        vocabulary.save(folder / "vocabulary", overwrite=True)
        compression = None if given.compression == "none" else given.compression
        make = partial(resample, source, folder, compression=compression)
        for n_cells in given.beside:
            compare(make(n_cells), vocabulary, folder, given)
        for n_cells in given.cells:
            measure(make(n_cells), folder, given)


if __name__ == "__main__":
    main()
