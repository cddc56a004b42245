"""Counts, expression or z-scores from where users have them, in blocks of cells, checked, and never written to.

Everything is read by ranges of cells, the cells' names and columns too, so memory does not grow with their number.
`containers` knows where each kind of container has them, `matrices` how a matrix is read by cells.
"""

import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import anndata as ad
import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix, vstack

from geneformer_repro.errors import DataFormatError, InputError, did_you_mean
from geneformer_repro.tokenizer.containers import Content, content_kind, content_of, with_cells_in_memory
from geneformer_repro.tokenizer.features import (
    ensembl_gene_in,
    genomes_of,
    is_ensembl_gene,
    kind_by_name,
    kinds_of,
    texts,
)
from geneformer_repro.tokenizer.matrices import BLOCK_CELLS, ByGene, Matrix, first_not_a_count, select_genes
from geneformer_repro.tokenizer.measures import AS_EXPRESSION, AS_LOG2, AS_ZSCORE, COUNTS, Measure, first_of

_LOCKED = (
    "{}: another program has it open for writing. Wait for it to finish; on a file system without locks set "
    "HDF5_USE_FILE_LOCKING=FALSE."
)
_NAMES_AT_A_TIME = 1 << 18
_NAME_COLUMNS = ("gene_name", "feature_name", "gene_symbols", "gene_names", "gene_symbol", "symbol", "Gene")
_NO_FILTER = re.compile(
    r"required filter|can't open directory .*plugin"
    r"|filter.{0,40}not (registered|available)|unknown ?codec|codec.{0,20}not available",
    re.IGNORECASE,
)
_DAMAGE = (OSError, EOFError, zlib.error)
_LONGEST_CAUSE = 300
_BULK_VALUES = 1 << 22
_SAMPLES, _SAMPLE_CELLS = 8, 32
"""Places of a source, and cells there, that are looked at before the work."""


class Block(NamedTuple):
    """Consecutive cells: index of the first among all, and raw counts (cells × the source's genes)."""

    start: int
    counts: csr_matrix
    """Or linear expression; or z-scores, NaN where one is missing, and where nothing is stored 0."""
    n_below_zero: int = 0
    """Values of log2 expression that were negative, and are 0 here."""


@dataclass(frozen=True)
class CountSource:
    """Raw counts with their cells and genes; made by `open_counts`.

    Parameters
    ----------
    name
        The path, or "AnnData"; for messages.
    n_cells
        Number of cells.
    gene_ids
        Id of each gene, "" where there is none.
    gene_names
        Name of each gene, "" where there is none.
    ids_from
        Column of ``var`` that the ids are from, "index" for its index.
    layer
        Matrix that is read.
    obs_columns
        Names of the columns of ``obs``.
    genomes
        Genome of each gene, "" where the file does not say it.
    no_genes
        A row a feature that is no gene, and so not of the matrix: ``gene`` (its id), ``name``, ``kind``.
    measure
        What the numbers are.
    """

    name: str
    n_cells: int
    gene_ids: tuple[str, ...]
    gene_names: tuple[str, ...]
    ids_from: str
    layer: str
    obs_columns: tuple[str, ...]
    genomes: tuple[str, ...]
    no_genes: pd.DataFrame = field(repr=False)
    measure: Measure
    _content: Content = field(repr=False)
    _matrix: Matrix = field(repr=False)

    @property
    def stored_by_gene(self) -> bool:
        """Whether the matrix must be dealt out to blocks of cells before it can be read; see `deal_out`."""
        return isinstance(self._matrix, ByGene)

    def deal_out(self, folder: Path) -> None:
        """Write a matrix stored by gene into the new folder `folder`, from where the blocks are then read."""
        assert isinstance(self._matrix, ByGene)
        with named_errors(self.name, "the matrix"):
            self._matrix.deal_out(folder)

    def blocks(self, start: int = 0, stop: int | None = None, *, size: int | None = None) -> Iterator[Block]:
        """Read the cells from `start` to `stop` in order, `size` at a time.

        By default ``BLOCK_CELLS``; of bulk samples, nearly all of whose genes have a value, so many as have four
        million: 50 MB, and four times that where a logarithm is undone.

        One block ahead, in a thread: compiled loops and decompression run at the same time.

        Raises
        ------
        DataFormatError
            A value is not what the source is said to hold: as a count negative, fractional or not finite (names the
            first cell and gene, and the layer that does hold counts); or the file is damaged.
        """
        stop, size = self.n_cells if stop is None else stop, size or self.block_cells
        if start >= stop:
            return
        bounds = [(begin, min(begin + size, stop)) for begin in range(start, stop, size)]
        if len(bounds) == 1:
            yield self.block(*bounds[0])
            return
        with ThreadPoolExecutor(1) as reader:
            ahead = reader.submit(self.block, *bounds[0])
            for next_bounds in bounds[1:]:
                block, ahead = ahead.result(), reader.submit(self.block, *next_bounds)
                yield block
            yield ahead.result()

    @property
    def block_cells(self) -> int:
        """Cells of a block, where no other size is asked for."""
        if self.measure.values == "counts":
            return BLOCK_CELLS
        return min(BLOCK_CELLS, max(1, _BULK_VALUES // len(self.gene_ids)))

    def block(self, start: int, stop: int) -> Block:
        """Read the cells from `start` to `stop`, as `blocks`."""
        return self._as_block(start, self._stored(start, stop))

    def as_stored(self, start: int, stop: int) -> csr_matrix:
        """Read the cells from `start` to `stop` as they are: any type of numbers, unchecked, genes in any order."""
        with named_errors(self.name, f"cells {start} to {stop}"):
            return self._matrix.as_stored(start, stop)

    def _stored(self, start: int, stop: int) -> csr_matrix:
        with named_errors(self.name, f"cells {start} to {stop}"):
            return self._matrix.read(start, stop)

    def _as_block(self, start: int, stored: csr_matrix) -> Block:
        if self.measure.values == "counts":
            self._check_counts(stored, start)
        else:
            self.measure.require(stored, self._told, lambda row: self._cell(start + row), self.gene_ids)
        return Block(start, *self.measure.linear(stored))

    def sample(self) -> list[Block]:
        """Read some cells, evenly spread over the source, and look whether their values are what they are said to be.

        Raises
        ------
        DataFormatError
            As for `blocks`; or no value is impossible, but all together are: logarithms where linear expression is
            said or the reverse, ratios where expression is, no negative value among z-scores. Names the option.
        """
        places = sampled_places(self.n_cells)
        stored = [self._stored(*place) for place in places]
        blocks = [self._as_block(start, cells) for (start, _), cells in zip(places, stored, strict=True)]
        if self.measure.values != "counts":
            self.measure.require_likely(csr_matrix(vstack(stored)), self._told)
        return blocks

    def cell_names(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Names of the cells from `start` to `stop`, as text."""
        with named_errors(self.name, "the names of the cells"):
            return self._content.obs_index(start, self.n_cells if stop is None else stop)

    def obs(self, column: str, start: int = 0, stop: int | None = None) -> pd.Series:
        """One column of ``obs``, for the cells from `start` to `stop`.

        Raises
        ------
        InputError
            There is no such column.
        """
        if column not in self.obs_columns:
            raise InputError(f"{self.name}: obs has no column {column!r}. {did_you_mean(column, self.obs_columns)}")
        with named_errors(self.name, f"the obs column {column!r}"):
            return self._content.obs(column, start, self.n_cells if stop is None else stop)

    def holding(self, columns: Iterable[str], start: int, stop: int) -> "CountSource":
        """Return the source of these cells, their names, total counts and these columns of ``obs`` read at once.

        A column costs a millisecond or two however few cells are read of it, and waits for a block that is being read.
        """
        wanted = dict.fromkeys([*columns, *(("n_counts",) if self._has_totals else ())])
        held = {name: self.obs(name, start, stop) for name in wanted}
        return replace(self, _content=with_cells_in_memory(self._content, start, self.cell_names(start, stop), held))

    @property
    def _has_totals(self) -> bool:
        return "n_counts" in self.obs_columns and not len(self.no_genes) and self.measure.values == "counts"

    def total_counts(self, block: Block) -> np.ndarray:
        """Return each cell's total counts: `given_totals`, else the stored sum.

        Raises
        ------
        DataFormatError
            As `require_totals`.
        """
        start, sums = block.start, np.asarray(block.counts.sum(axis=1, dtype=np.float64)).ravel()
        n_counts = self.given_totals(start, start + len(sums))
        if n_counts is None:
            return sums
        self.require_totals(n_counts, sums, start)
        return n_counts

    def given_totals(self, start: int, stop: int) -> np.ndarray | None:
        """Return ``obs['n_counts']`` where there is one, for it remembers genes left out of the file.

        None where the file holds features that are no genes, which `n_counts` may include, or no counts.
        """
        if not self._has_totals:
            return None
        column = self.obs("n_counts", start, stop)
        return column.to_numpy(dtype=np.float64, na_value=np.nan) if pd.api.types.is_numeric_dtype(column) else None

    def require_totals(self, n_counts: np.ndarray, sums: np.ndarray, start: int) -> None:
        """Look at ``obs['n_counts']`` of the cells from `start` on, beside the counts stored for each.

        Raises
        ------
        DataFormatError
            It is less.
        """
        wrong = ~np.isfinite(n_counts) | (n_counts < sums * (1 - 1e-6))
        if wrong.any():
            i = int(np.flatnonzero(wrong)[0])
            raise DataFormatError(
                f"{self.name}: obs['n_counts'] of cell {self._cell(start + i)!r} is {n_counts[i]:g}, less than the "
                f"{sums[i]:g} counts stored for it. "
                "It must be the cell's total raw counts; correct the column, or drop it and the stored counts are "
                "summed."
            )

    def check_cell_names(self) -> None:
        """Read the names once.

        Raises
        ------
        DataFormatError
            A name stands twice, or is not text that can be written (a NUL character).
        """
        seen = np.empty(self.n_cells, dtype=np.uint64)
        for start in range(0, self.n_cells, _NAMES_AT_A_TIME):
            names = self.cell_names(start, min(start + _NAMES_AT_A_TIME, self.n_cells))
            if len(names) != min(_NAMES_AT_A_TIME, self.n_cells - start):
                raise DataFormatError(f"{self.name}: obs has fewer names than the {self.n_cells} cells of the matrix.")
            odd = [name for name in names if "\0" in name]
            if odd:
                raise DataFormatError(f"{self.name}: the cell name {odd[0]!r} has a NUL character; rename the cells.")
            seen[start : start + len(names)] = pd.util.hash_array(names.astype(object), categorize=False)
        if len(np.unique(seen)) == self.n_cells:
            return
        every = pd.Series(self.cell_names())
        repeated = every[every.duplicated()]
        if len(repeated):
            raise DataFormatError(
                f"{self.name}: {len(repeated)} cell names stand more than once (first: {repeated.iloc[0]!r}), so "
                f"results could not be joined back. Call adata.obs_names_make_unique() first."
            )

    @property
    def _told(self) -> str:
        return f"{self.name}: {self.layer}"

    def _cell(self, i: int) -> str:
        return str(self.cell_names(i, i + 1)[0])

    def _check_counts(self, counts: csr_matrix, start: int) -> None:
        first = first_not_a_count(counts.data)
        if first < 0:
            return
        value = counts.data[first]
        kind = "not finite" if not np.isfinite(value) else "negative" if value < 0 else "fractional"
        holding = [name for name in self._content.layers if name != self.layer and self._holds_counts(name)]
        advice = (
            f"{' and '.join(map(repr, holding))} {'hold' if len(holding) > 1 else 'holds'} counts: name it with layer= "
            f"(--layer)."
            if holding
            else "No other layer of it holds counts either; go back to the file before normalisation."
        )
        bulk = f"expression of bulk samples with {AS_EXPRESSION}, if it is log2(x + 1) with {AS_LOG2} too"
        bulk = f"log ratios and z-scores with {AS_ZSCORE}" if value < 0 else bulk
        at = first_of(counts, first, lambda row: self._cell(start + row), self.gene_ids)
        raise DataFormatError(
            f"{self._told} holds {kind} values ({at}). "
            f"Rank encoding needs raw counts. {advice} Other values are ranked as what they are said to be: {bulk}."
        )

    def _holds_counts(self, layer: str) -> bool:
        try:
            matrix = self._content.matrix(layer)
            if isinstance(matrix, ByGene):
                values = next((entries.values for entries in matrix.entries()), np.empty(0))
            else:
                values = matrix.read(0, min(100, self.n_cells)).data
        except Exception:  # a damaged layer holds no counts either
            return False
        return bool((values > 0).any()) and first_not_a_count(values) < 0


def sampled_places(n_cells: int) -> list[tuple[int, int]]:
    """Return the ranges of cells, evenly spread, that are looked at before the work."""
    starts = np.unique(np.linspace(0, max(0, n_cells - _SAMPLE_CELLS), num=_SAMPLES).astype(np.int64)).tolist()
    return [(start, min(start + _SAMPLE_CELLS, n_cells)) for start in starts]


def open_counts(
    source: ad.AnnData | str | Path,
    *,
    layer: str | None = None,
    gene_ids: str | None = None,
    measure: Measure = COUNTS,
    work: Path | None = None,
) -> CountSource:
    """Open raw counts, or other values; nothing of the matrix is read yet.

    Parameters
    ----------
    source
        An AnnData (in memory or backed), or the path of an ``.h5ad``, ``.h5mu`` (its modality "rna"), ``.loom`` or
        10x ``.h5`` file, an AnnData or MuData ``.zarr`` store, a 10x folder (or its ``matrix.mtx``), or a table.
        Opened read-only.
    layer
        Name of the layer that holds the counts, or "raw" for ``.raw``; default ``X``.
    gene_ids
        Column of ``var`` with the gene ids, or "index"; default ``ensembl_id`` where there is one, else the index
        or the first column that holds Ensembl ids for more than half of the genes, else the index.
    measure
        What the values are; default raw counts.
    work
        Folder for a copy in blocks of cells of a matrix stored by gene, if one was made before; default a temporary
        folder, made when the matrix is first read.

    Raises
    ------
    DataFormatError
        The file is missing, damaged, of another kind, or has no cells or genes.
    InputError
        The layer or column does not exist.
    """
    name = "AnnData" if isinstance(source, ad.AnnData) else str(source)
    layer = layer or "X"
    with named_errors(name, content_kind(source)):
        content = content_of(source)
        if layer not in content.layers:
            hint = " X is absent." if layer == "X" else ""
            raise InputError(f"{name}: there is no layer {layer!r}.{hint} {did_you_mean(layer, content.layers)}")
        var, matrix = content.var(layer), content.matrix(layer)
        _require_shape(name, layer, matrix.shape, n_cells=content.n_cells, n_features=len(var))
    features, ids_from = _features_of(name, content, layer, gene_ids)
    is_gene = features["kind"].eq("").to_numpy()
    if not is_gene.any():
        kinds = ", ".join(f"{n:,} {kind}" for kind, n in Counter(features["kind"]).most_common())
        raise DataFormatError(f"{name}: holds no genes; its features are {kinds}.")
    if not is_gene.all():
        matrix = select_genes(matrix, np.flatnonzero(is_gene))
    if isinstance(matrix, ByGene) and work is not None:
        matrix = ByGene(matrix.shape, matrix.entries, work)
    genes = features[is_gene]
    return CountSource(
        name,
        content.n_cells,
        tuple(genes["gene"]),
        tuple(genes["name"]),
        ids_from,
        layer,
        tuple(content.obs_columns),
        tuple(genes["genome"]),
        features.loc[~is_gene, ["gene", "name", "kind"]],
        measure,
        content,
        matrix,
    )


def _require_shape(name: str, layer: str, shape: tuple[int, int], *, n_cells: int, n_features: int) -> None:
    """Raise unless a matrix has a cell and a feature, and as many of both as are named."""
    if shape[0] != n_cells:
        raise DataFormatError(f"{name}: {layer} has {shape[0]} rows, but {n_cells} cells are named.")
    if n_cells == 0:
        raise DataFormatError(f"{name}: holds no cells ({shape[1]} genes).")
    if shape[1] == 0:
        raise DataFormatError(f"{name}: holds no genes ({n_cells} cells).")
    if shape[1] != n_features:
        raise DataFormatError(f"{name}: {layer} has {shape[1]} columns, but {n_features} genes are named.")


def _features_of(name: str, content: Content, layer: str, gene_ids: str | None) -> tuple[pd.DataFrame, str]:
    """Say what each column of a layer is, by the tables of the container, else by its id and name.

    Returns
    -------
    A row a feature: ``gene`` (its id), ``name``, ``kind`` (what it is instead of a gene, "" for a gene), ``genome``;
    and the column of ``var`` that the ids are from.
    """
    var, kinds = content.var(layer), _kinds_of(content, layer)
    ids_from, ids = _gene_ids(name, var, gene_ids, is_gene=kinds == "")
    named = next((column for column in _NAME_COLUMNS if column in var and column != ids_from), None)
    has_names = named is not None or ids_from != "index"
    names = texts(var[named] if named else var.index.to_series()) if has_names else [""] * len(var)
    names = ["" if is_ensembl_gene(text) else text for text in names]
    kinds_or_by_name = [kind or kind_by_name(*row) for kind, *row in zip(kinds, ids, names, strict=True)]
    columns = {"gene": ids, "name": names, "kind": kinds_or_by_name, "genome": genomes_of(var, ids)}
    return pd.DataFrame({name: np.array(column, dtype=object) for name, column in columns.items()}), ids_from


def _kinds_of(content: Content, layer: str) -> np.ndarray:
    """Say what each row is instead of a gene; of ``.raw`` also what the table beside ``X`` says of it."""
    var = content.var(layer)
    kinds = kinds_of(var)
    beside = content.var("X") if layer == "raw" and "X" in content.layers else var
    if beside is not var and beside.index.is_unique:
        kinds_beside = pd.Series(kinds_of(beside), index=beside.index).reindex(var.index).fillna("")
        kinds = np.where(kinds == "", kinds_beside.to_numpy(dtype=object), kinds)
    return kinds


def _gene_ids(name: str, var: pd.DataFrame, wanted: str | None, *, is_gene: np.ndarray) -> tuple[str, list[str]]:
    """Choose the column of ids: the one asked for; else the first with Ensembl ids, or with such in its texts."""
    if wanted is not None and wanted != "index" and wanted not in var:
        raise InputError(f"{name}: var has no column {wanted!r}. {did_you_mean(wanted, var.columns)}")
    if wanted is None and "ensembl_id" in var:
        wanted = "ensembl_id"
    if wanted is not None:
        return wanted, texts(var.index.to_series() if wanted == "index" else var[wanted])
    columns = {"index": texts(var.index.to_series())}
    columns |= {str(name): texts(var[name]) for name in var.columns if not pd.api.types.is_numeric_dtype(var[name])}
    for is_id in (is_ensembl_gene, ensembl_gene_in):
        for column, ids in columns.items():
            genes = [text for text, gene in zip(ids, is_gene, strict=True) if gene]
            n_ids = sum(map(bool, map(is_id, genes)))
            if n_ids and (2 * n_ids > len(genes) or 2 * n_ids > sum(not kind_by_name(text) for text in genes)):
                return column, ids
    return "index", columns["index"]


@contextmanager
def named_errors(name: str, what: str) -> Iterator[None]:
    """Turn what a library raises on a file that it cannot read into an error that names the file."""
    try:
        yield
    except DataFormatError as error:
        raise DataFormatError(str(error) if name in str(error) else f"{name}: {error}") from error
    except (InputError, MemoryError):
        raise
    except Exception as error:
        raise _unreadable(name, what, error) from error


def _unreadable(name: str, what: str, error: Exception) -> InputError:
    """Say why something could not be read; that a file is damaged, only where it is."""
    cause = " ".join("".join(c if c.isprintable() else " " for c in str(error)).split())
    cause = f"{cause[:_LONGEST_CAUSE]}{'…' * (len(cause) > _LONGEST_CAUSE)}"
    if isinstance(error, BlockingIOError):
        return InputError(_LOCKED.format(name))
    if isinstance(error, PermissionError):
        return InputError(f"{name}: may not be read by this user.")
    if isinstance(error, UnicodeDecodeError):
        return DataFormatError(
            f"{name}: {what}: text that is not in UTF-8 (byte {error.object[error.start]:#04x}); write it in UTF-8."
        )
    if _NO_FILTER.search(cause):
        return InputError(
            f"{name}: {what}: packed by a filter that is not installed ({cause}). pip install hdf5plugin, which is "
            "used once it is there; or write the file again, packed by gzip."
        )
    if isinstance(error, _DAMAGE):
        return DataFormatError(f"{name}: {what} cannot be read, the file is damaged or truncated ({cause}).")
    return DataFormatError(f"{name}: {what} cannot be read ({type(error).__name__}: {cause}).")
