"""Counts from where users have them, in blocks of cells, checked, and never written to.

Everything is read by ranges of cells, the cells' names and columns too, so memory does not grow with their number.
`containers` knows where each kind of container has them.
"""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import anndata as ad
import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from geneformer_repro.errors import DataFormatError, InputError, did_you_mean
from geneformer_repro.tokenizer.containers import (
    BLOCK_CELLS,
    ByGene,
    Content,
    Matrix,
    content_kind,
    content_of,
    first_not_a_count,
    texts,
)

_LOCKED = (
    "{}: another program has it open for writing. Wait for it to finish; on a file system without locks set "
    "HDF5_USE_FILE_LOCKING=FALSE."
)
_NAMES_AT_A_TIME = 1 << 18
_NAME_COLUMNS = ("gene_name", "feature_name", "gene_symbols", "gene_names", "gene_symbol", "symbol", "Gene")
_ENSEMBL_GENE = re.compile(r"ENS[A-Z]{0,6}G\d{11}(\.\d+)?(_PAR_Y)?\Z", re.IGNORECASE)


def is_ensembl_gene(text: str) -> bool:
    """Whether a text is, as a whole, an Ensembl gene id of some species, with or without a version."""
    return _ENSEMBL_GENE.match(text) is not None


class Block(NamedTuple):
    """Consecutive cells: index of the first among all, and raw counts (cells × the source's genes)."""

    start: int
    counts: csr_matrix


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
    """

    name: str
    n_cells: int
    gene_ids: tuple[str, ...]
    gene_names: tuple[str, ...]
    ids_from: str
    layer: str
    obs_columns: tuple[str, ...]
    _content: Content = field(repr=False)
    _matrix: Matrix = field(repr=False)

    @property
    def stored_by_gene(self) -> bool:
        """Whether the matrix must be dealt out to blocks of cells before it can be read; see `deal_out`."""
        return isinstance(self._matrix, ByGene)

    def deal_out(self, folder: Path) -> None:
        """Write a matrix stored by gene into the new folder `folder`, from where the blocks are then read."""
        assert isinstance(self._matrix, ByGene)
        with self._named_errors("the matrix"):
            self._matrix.deal_out(folder)

    def blocks(self, start: int = 0, stop: int | None = None, *, size: int | None = None) -> Iterator[Block]:
        """Read the cells from `start` to `stop` in order, `size` (default ``BLOCK_CELLS``) at a time.

        One block ahead, in a thread: compiled loops and decompression run at the same time.

        Raises
        ------
        DataFormatError
            A value is negative, fractional or not finite (names the first cell and gene, and the layer that does hold
            counts), or the file is damaged.
        """
        stop, size = self.n_cells if stop is None else stop, size or BLOCK_CELLS
        if start >= stop:
            return
        bounds = [(begin, min(begin + size, stop)) for begin in range(start, stop, size)]
        if len(bounds) == 1:
            yield self._block(*bounds[0])
            return
        with ThreadPoolExecutor(1) as reader:
            ahead = reader.submit(self._block, *bounds[0])
            for next_bounds in bounds[1:]:
                block, ahead = ahead.result(), reader.submit(self._block, *next_bounds)
                yield block
            yield ahead.result()

    def _block(self, start: int, stop: int) -> Block:
        with self._named_errors(f"cells {start} to {stop}"):
            counts = self._matrix.read(start, stop)
        self._check_counts(counts, start)
        return Block(start, counts)

    def cell_names(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Names of the cells from `start` to `stop`, as text."""
        with self._named_errors("the names of the cells"):
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
        with self._named_errors(f"the obs column {column!r}"):
            return self._content.obs(column, start, self.n_cells if stop is None else stop)

    def total_counts(self, block: Block) -> np.ndarray:
        """Return each cell's total counts.

        ``obs['n_counts']`` where there is one, for it remembers genes left out of the file; else the stored sum.

        Raises
        ------
        DataFormatError
            ``obs['n_counts']`` is less than the counts stored for a cell.
        """
        start, sums = block.start, np.asarray(block.counts.sum(axis=1, dtype=np.float64)).ravel()
        if "n_counts" not in self.obs_columns:
            return sums
        column = self.obs("n_counts", start, start + len(sums))
        if not pd.api.types.is_numeric_dtype(column):
            return sums
        given = column.to_numpy(dtype=np.float64, na_value=np.nan)
        wrong = ~np.isfinite(given) | (given < sums * (1 - 1e-6))
        if wrong.any():
            i = int(np.flatnonzero(wrong)[0])
            raise DataFormatError(
                f"{self.name}: obs['n_counts'] of cell {self._cell(start + i)!r} is {given[i]:g}, less than the "
                f"{sums[i]:g} counts stored for it. "
                "It must be the cell's total raw counts; correct the column, or drop it and the stored counts are "
                "summed."
            )
        return given

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

    def _cell(self, i: int) -> str:
        return str(self.cell_names(i, i + 1)[0])

    @contextmanager
    def _named_errors(self, what: str) -> Iterator[None]:
        """Turn what a library raises on a damaged file into an error that names the file."""
        try:
            yield
        except DataFormatError as error:
            raise DataFormatError(str(error) if self.name in str(error) else f"{self.name}: {error}") from error
        except InputError:
            raise
        except BlockingIOError as error:
            raise InputError(_LOCKED.format(self.name)) from error
        except (OSError, EOFError, KeyError, RuntimeError, ValueError, IndexError, TypeError, OverflowError) as error:
            raise DataFormatError(
                f"{self.name}: {what} cannot be read, the file is damaged or truncated ({error})."
            ) from error

    def _check_counts(self, counts: csr_matrix, start: int) -> None:
        first = first_not_a_count(counts.data)
        if first < 0:
            return
        row = int(np.searchsorted(counts.indptr, first, side="right")) - 1
        value = counts.data[first]
        kind = "not finite" if not np.isfinite(value) else "negative" if value < 0 else "fractional"
        holding = [name for name in self._content.layers if name != self.layer and self._holds_counts(name)]
        advice = (
            f"{' and '.join(map(repr, holding))} {'hold' if len(holding) > 1 else 'holds'} counts: name it with layer= "
            f"(--layer)."
            if holding
            else "No other layer of it holds counts either; go back to the file before normalisation."
        )
        raise DataFormatError(
            f"{self.name}: {self.layer} holds {kind} values (first: cell {self._cell(start + row)!r}, gene "
            f"{self.gene_ids[counts.indices[first]]!r}, {value:g}). "
            f"Rank encoding needs raw counts. {advice}"
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


def open_counts(
    source: ad.AnnData | str | Path,
    *,
    layer: str | None = None,
    gene_ids: str | None = None,
    work: Path | None = None,
) -> CountSource:
    """Open raw counts; nothing of the matrix is read yet.

    Parameters
    ----------
    source
        An AnnData (in memory or backed), or the path of an ``.h5ad``, ``.loom`` or 10x ``.h5`` file, an AnnData
        ``.zarr`` store, or a 10x folder (or its ``matrix.mtx``). Opened read-only.
    layer
        Name of the layer that holds the counts, or "raw" for ``.raw``; default ``X``.
    gene_ids
        Column of ``var`` with the gene ids, or "index"; default ``ensembl_id`` where there is one, else the index
        or the first column that holds Ensembl ids for more than half of the genes, else the index.
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
    try:
        content = content_of(source)
        chosen = layer or "X"
        if chosen not in content.layers:
            hint = " X is absent." if chosen == "X" else ""
            raise InputError(f"{name}: there is no layer {chosen!r}.{hint} {did_you_mean(chosen, content.layers)}")
        var, matrix = content.var(chosen), content.matrix(chosen)
        if content.n_cells != matrix.shape[0]:
            raise DataFormatError(
                f"{name}: {chosen} has {matrix.shape[0]} rows, but {content.n_cells} cells are named."
            )
    except DataFormatError as error:
        raise DataFormatError(str(error) if name in str(error) else f"{name}: {error}") from error
    except InputError:
        raise
    except BlockingIOError as error:
        raise InputError(_LOCKED.format(name)) from error
    except Exception as error:
        raise DataFormatError(f"{name}: {content_kind(source)} that cannot be read: {error!r}") from error
    if isinstance(matrix, ByGene) and work is not None:
        matrix = ByGene(matrix.shape, matrix.entries, work)
    n_cells, n_genes = matrix.shape
    if n_cells == 0:
        raise DataFormatError(f"{name}: holds no cells ({n_genes} genes).")
    if n_genes == 0:
        raise DataFormatError(f"{name}: holds no genes ({n_cells} cells).")
    if n_genes != len(var):
        raise DataFormatError(f"{name}: {chosen} has {n_genes} columns, but {len(var)} genes are named.")
    column, ids = _gene_ids(name, var, gene_ids)
    named = next((candidate for candidate in _NAME_COLUMNS if candidate in var and candidate != column), None)
    names = texts(var[named] if named else var.index.to_series()) if named or column != "index" else [""] * len(var)
    return CountSource(
        name,
        n_cells,
        tuple(ids),
        tuple("" if is_ensembl_gene(text) else text for text in names),
        column,
        chosen,
        tuple(content.obs_columns),
        content,
        matrix,
    )


def _gene_ids(name: str, var: pd.DataFrame, asked: str | None) -> tuple[str, list[str]]:
    if asked is not None and asked != "index" and asked not in var:
        raise InputError(f"{name}: var has no column {asked!r}. {did_you_mean(asked, var.columns)}")
    if asked is None and "ensembl_id" in var:
        asked = "ensembl_id"
    if asked is not None:
        return asked, texts(var.index.to_series() if asked == "index" else var[asked])
    for column in ("index", *var.columns):
        ids = texts(var.index.to_series() if column == "index" else var[column])
        if sum(map(is_ensembl_gene, ids)) > len(ids) / 2:
            return str(column), ids
    return "index", texts(var.index.to_series())
