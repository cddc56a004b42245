"""Counts as matrices that are read by ranges of cells, however they are stored: dense, by cell, by gene, in no order.

What is stored by gene (CSC, Matrix Market) cannot be cut by cells: it is dealt out once, in one pass, to a file for
every 2,048 cells in a work folder, which costs 16 bytes of disk a stored value and about the time of reading it twice.
"""

import math
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import anndata as ad
import h5py
import numba
import numpy as np
from scipy.sparse import coo_matrix, csr_matrix, issparse, vstack

from geneformer_repro.errors import DataFormatError
from geneformer_repro.files import new_directory

BLOCK_CELLS = 2048
"""Cells read at a time: 2,048 cells of 2,000 expressed genes are about 100 MB on the way to tokens."""
DENSE_VALUES = 1 << 24
"""Values of a dense matrix read at a time: 64 MB in float32."""
ENTRIES = 1 << 21
"""Entries of a matrix stored by gene dealt out at a time: about 80 MB with what sorts them."""


class Entries(NamedTuple):
    """Part of a matrix, entry by entry."""

    cells: np.ndarray
    genes: np.ndarray
    values: np.ndarray


class ByCell:
    """A matrix that can be cut by cells."""

    def __init__(self, shape: tuple[int, int], read: Callable[[int, int], csr_matrix]) -> None:
        self.shape, self._read = shape, read

    def read(self, start: int, stop: int) -> csr_matrix:
        """Return these cells as CSR, float64 values and int32 indices."""
        return canonical(self.as_stored(start, stop))

    def as_stored(self, start: int, stop: int) -> csr_matrix:
        """Return these cells as CSR, with any type of numbers, and what is not in order or repeated as it is."""
        cells = self._read(start, stop)
        if cells.shape != (stop - start, self.shape[1]):
            raise DataFormatError(f"expected {stop - start} × {self.shape[1]} values, found {cells.shape}")
        return cells


class ByGene:
    """A matrix stored by gene, or in no order: dealt out to a file for every block of cells, read from there."""

    def __init__(
        self, shape: tuple[int, int], entries: Callable[[], Iterator[Entries]], folder: Path | None = None
    ) -> None:
        self.shape, self.entries, self._existing = shape, entries, folder

    @cached_property
    def _folder(self) -> Path:
        if self._existing is not None and self._existing.exists():
            return self._existing
        temporary = tempfile.mkdtemp(prefix="geneformer_repro-")
        weakref.finalize(self, shutil.rmtree, temporary, ignore_errors=True)
        self.deal_out(Path(temporary) / "blocks")
        return Path(temporary) / "blocks"

    def deal_out(self, folder: Path) -> None:
        """Read all entries once and append each to the file of its block."""
        with new_directory(folder, marker=_BLOCK_FILE.format(0)) as aside:
            for i in range(-(-self.shape[0] // BLOCK_CELLS)):
                (aside / _BLOCK_FILE.format(i)).touch()
            for cells, genes, values in self.entries():
                if not (_all_within(cells, self.shape[0]) and _all_within(genes, self.shape[1])):
                    raise DataFormatError(f"an entry lies outside of the {self.shape[0]} × {self.shape[1]} matrix")
                entries = np.empty(len(cells), dtype=_ENTRY)
                entries["cell"], entries["gene"], entries["value"] = cells, genes, values
                block = entries["cell"] // BLOCK_CELLS
                order = np.argsort(block, kind="stable")
                blocks, starts = np.unique(block[order], return_index=True)
                for i, of_block in zip(blocks, np.split(entries[order], starts)[1:], strict=True):
                    with (aside / _BLOCK_FILE.format(i)).open("ab") as file:
                        of_block.tofile(file)

    def read(self, start: int, stop: int) -> csr_matrix:
        """Return these cells as CSR, float64 values and int32 indices."""
        blocks = range(start // BLOCK_CELLS, -(-stop // BLOCK_CELLS))
        entries = np.concatenate([np.fromfile(self._folder / _BLOCK_FILE.format(i), dtype=_ENTRY) for i in blocks])
        entries = entries[(entries["cell"] >= start) & (entries["cell"] < stop)]
        coordinates = (entries["cell"] - start, entries["gene"])
        return canonical(csr_matrix(coo_matrix((entries["value"], coordinates), shape=(stop - start, self.shape[1]))))

    as_stored = read


Matrix = ByCell | ByGene


def select_genes(matrix: Matrix, genes: np.ndarray) -> Matrix:
    """Return the matrix of these genes alone, given by their places, ascending."""
    shape = (matrix.shape[0], len(genes))
    if isinstance(matrix, ByCell):
        return ByCell(shape, lambda start, stop: csr_matrix(matrix.read(start, stop)[:, genes]))
    column = np.full(matrix.shape[1], -1, dtype=np.int64)
    column[genes] = np.arange(len(genes))

    def entries() -> Iterator[Entries]:
        for piece in matrix.entries():
            if not _all_within(piece.genes, len(column)):
                raise DataFormatError(f"an entry lies outside of the {len(column)} features")
            stays = column[piece.genes] >= 0
            yield Entries(piece.cells[stays], column[piece.genes[stays]], piece.values[stays])

    return ByGene(shape, entries)


_BLOCK_FILE = "{:06d}.entries"
_ENTRY = np.dtype([("cell", np.int32), ("gene", np.int32), ("value", np.float64)])


def _all_within(indices: np.ndarray, stop: int) -> bool:
    return len(indices) == 0 or (indices.min() >= 0 and indices.max() < stop)


def canonical(matrix: csr_matrix) -> csr_matrix:
    """Return float64 values and int32 indices, for which the compiled loops are compiled, in canonical form.

    That is each gene of a cell once, in ascending order, and no zeros: what a filter or a method that counts stored
    entries takes for granted, and what Cell Ranger 3, R and additions of matrices do not give.
    """
    data, indices = matrix.data.astype(np.float64, copy=False), matrix.indices.astype(np.int32, copy=False)
    indptr = matrix.indptr.astype(np.int64, copy=False)
    in_order, clean = _is_canonical(data, indices, indptr)
    if not in_order:
        data, indices = _in_order(data, indices, indptr, matrix.shape[1])
        _, clean = _is_canonical(data, indices, indptr)
    if not clean:
        cleaned = csr_matrix((data, indices, indptr), shape=matrix.shape, copy=True)
        cleaned.sum_duplicates()
        cleaned.eliminate_zeros()
        data, indices = cleaned.data, cleaned.indices.astype(np.int32, copy=False)
        indptr = cleaned.indptr.astype(np.int64, copy=False)
    plain = csr_matrix(matrix.shape, dtype=np.float64)
    plain.data, plain.indices, plain.indptr = data, indices, indptr
    return plain


@numba.njit(nogil=True, cache=True)
def _is_canonical(data, indices, indptr):  # type: ignore[no-untyped-def]
    """Whether the genes of every cell ascend, but for repeats; and whether none is repeated and no value is 0."""
    n_back, n_again, n_zero = 0, 0, 0
    for i in range(len(indptr) - 1):
        of_cell = indices[indptr[i] : indptr[i + 1]]
        for j in range(1, len(of_cell)):
            n_back += of_cell[j] < of_cell[j - 1]
            n_again += of_cell[j] == of_cell[j - 1]
    for j in range(len(data)):
        n_zero += data[j] == 0
    return n_back == 0, n_back + n_again + n_zero == 0


@numba.njit(nogil=True, cache=True)
def _in_order(data, indices, indptr, n_genes):  # type: ignore[no-untyped-def]
    """Return values and genes with those of each cell in ascending order, repeats in the order in which they stand.

    By radix, in two passes over the halves of a gene's number, which carry along where its value is.
    """
    n_bits, most, place_bits = np.uint64(1), 0, np.uint64(32)
    while n_genes >> n_bits >> n_bits:
        n_bits += np.uint64(1)
    for i in range(len(indptr) - 1):
        most = max(most, indptr[i + 1] - indptr[i])
    low, high, one = place_bits, place_bits + n_bits, np.uint32(1)
    mask = np.uint64((1 << n_bits) - 1)
    start_of_low, start_of_high = np.empty(1 << n_bits, np.uint32), np.empty(1 << n_bits, np.uint32)
    key, aside = np.empty(most, np.uint64), np.empty(most, np.uint64)
    sorted_data, sorted_indices = np.empty_like(data), np.empty_like(indices)
    for i in range(len(indptr) - 1):
        begin, end = indptr[i], indptr[i + 1]
        values, genes, n = data[begin:end], indices[begin:end], end - begin
        start_of_low[:], start_of_high[:] = 0, 0
        for j in range(n):
            key[j] = np.uint64(genes[j]) << place_bits | np.uint64(j)
            start_of_low[key[j] >> low & mask] += one
            start_of_high[key[j] >> high & mask] += one
        before_low, before_high = np.uint32(0), np.uint32(0)
        for digit in range(len(start_of_low)):
            before_low, start_of_low[digit] = before_low + start_of_low[digit], before_low
            before_high, start_of_high[digit] = before_high + start_of_high[digit], before_high
        for j in range(n):
            digit = key[j] >> low & mask
            aside[start_of_low[digit]] = key[j]
            start_of_low[digit] += one
        for j in range(n):
            digit = aside[j] >> high & mask
            key[start_of_high[digit]] = aside[j]
            start_of_high[digit] += one
        to_values, to_genes = sorted_data[begin:end], sorted_indices[begin:end]
        for j in range(n):
            to_values[j] = values[np.uint32(key[j])]
            to_genes[j] = key[j] >> place_bits
    return sorted_data, sorted_indices


def as_csr(values: Any) -> csr_matrix:
    """Return an array as CSR: dense or sparse, lazy (dask), also of kinds of numbers that SciPy does not know."""
    if hasattr(values, "compute"):
        values = values.compute()
    if np.ma.is_masked(values):
        raise DataFormatError("holds masked values, and of what is missing there is no rank; fill them first")
    if not (issparse(values) or isinstance(values, np.ndarray)):
        values = np.asarray(values)
    is_for_scipy = values.dtype.isnative and values.dtype != np.float16
    return csr_matrix(values if is_for_scipy else values.astype(np.float64))


@numba.njit(nogil=True, cache=True)
def first_not_a_count(values):  # type: ignore[no-untyped-def]
    """Index of the first value that is negative, fractional or not finite; -1 if there is none."""
    for start in range(0, len(values), 4096):
        few, n_wrong = values[start : start + 4096], 0
        for i in range(len(few)):  # without a way out of it, so that it becomes vector instructions
            n_wrong += not (few[i] >= 0 and few[i] == np.floor(few[i]) and few[i] < np.inf)
        if n_wrong:
            for i in range(len(few)):
                if not (few[i] >= 0 and few[i] == np.floor(few[i]) and few[i] < np.inf):
                    return start + i
    return -1


def dense(values: Any, dtype: type[np.floating[Any]] = np.float32) -> np.ndarray:
    """Return a matrix, sparse or not, as an array."""
    return np.asarray(values.toarray() if issparse(values) else values, dtype=dtype)


def matrix_in_memory(matrix: Any) -> Matrix:
    """Wrap what an AnnData holds: SciPy sparse, NumPy, or a stored matrix of a backed one."""
    if hasattr(matrix, "group"):
        return matrix_stored(lambda: nullcontext(matrix.group))
    if isinstance(matrix, h5py.Dataset):
        return matrix_stored(lambda: nullcontext(matrix))
    _check_array(matrix, "iufb", dimensions=2)
    if issparse(matrix):
        if matrix.format != "csr":
            matrix = as_csr(matrix)
        arrays = {name: getattr(matrix, name) for name in ("data", "indices", "indptr")}
        return ByCell(matrix.shape, partial(read_csr, lambda: nullcontext(arrays), matrix.shape))
    return ByCell(matrix.shape, lambda start, stop: as_csr(matrix[start:stop]))


def matrix_stored(opened: Callable[[], AbstractContextManager[Any]]) -> Matrix:
    """Wrap a matrix in an HDF5 file or Zarr store, written by AnnData."""
    with opened() as stored:
        if not hasattr(stored, "keys"):
            _check_array(stored, "iufb", dimensions=2)
            return ByCell(stored.shape, partial(_read_dense, opened))
        matrix = ad.io.sparse_dataset(stored)
        shape, by_cell = (int(matrix.shape[0]), int(matrix.shape[1])), matrix.format == "csr"
        check_pointers(stored, shape[0] if by_cell else shape[1])
    return ByCell(shape, partial(read_csr, opened, shape)) if by_cell else ByGene(shape, partial(_entries, opened))


def _check_array(stored: Any, kinds: str, *, dimensions: int = 1) -> None:
    """Raise unless an array holds numbers of these kinds, in so many dimensions, with all its chunks.

    Zarr gives zeros for a chunk whose file is lost, and stores no chunk that is all zeros: which of the two it is can
    be told for the parts of a sparse matrix and for names, not for a dense matrix.
    """
    if stored.ndim != dimensions or stored.dtype.kind not in kinds:
        raise DataFormatError(f"expected numbers in {dimensions} dimensions, found {stored.dtype}, {stored.shape}")
    if dimensions == 1 and stored.shape[0]:
        check_chunks(stored)


def check_pointers(stored: Any, n: int) -> None:
    """Raise unless the arrays of a stored sparse matrix of `n` rows (or columns, of a CSC one) fit each other."""
    _check_array(stored["data"], "iufb")
    _check_array(stored["indices"], "iu")
    if stored["data"].shape[0]:
        _check_array(stored["indptr"], "iu")
    indptr, n_values = stored["indptr"], stored["data"].shape[0]
    if indptr.shape[0] != n + 1 or int(indptr[0:1][0]) != 0 or int(indptr[n : n + 1][0]) != n_values:
        raise DataFormatError(f"indptr does not fit {n} rows and {n_values} values")
    if stored["indices"].shape[0] != n_values:
        raise DataFormatError(f"{stored['indices'].shape[0]} indices for {n_values} values")


def check_chunks(values: Any) -> None:
    """Raise if parts of an array were never written: it may claim any size, and would be zeros."""
    n_written = n = 0
    if hasattr(values, "nchunks_initialized"):
        n_written, n = values.nchunks_initialized, values.nchunks
    elif isinstance(values, h5py.Dataset) and values.chunks:
        n_written, n = values.id.get_num_chunks(), math.prod(map(math.ceil, np.divide(values.shape, values.chunks)))
    elif isinstance(values, h5py.Dataset) and not values.is_virtual and not values.external:
        n_written, n = int(values.id.get_storage_size() > 0), 1
    if n_written < n:
        raise DataFormatError(f"{n - n_written} of {n} chunks are missing")


def _read_dense(opened: Callable[[], AbstractContextManager[Any]], start: int, stop: int) -> csr_matrix:
    with opened() as stored:
        return read_dense(lambda i, j: stored[i:j], stored.shape[1], start, stop)


def read_dense(read: Callable[[int, int], Any], n_genes: int, start: int, stop: int) -> csr_matrix:
    """Return cells of a dense matrix, of which `read` gives those of a range, so many values at a time."""
    step = max(64, DENSE_VALUES // max(1, n_genes) // 64 * 64)  # loom files and many others have chunks of 64
    pieces = [as_csr(read(i, min(i + step, stop))) for i in range(start, stop, step)]
    return pieces[0] if len(pieces) == 1 else csr_matrix(vstack(pieces, format="csr"))


def read_csr(
    opened: Callable[[], AbstractContextManager[Any]], shape: tuple[int, int], start: int, stop: int
) -> csr_matrix:
    """Return rows of a stored CSR matrix, as the reader of a `ByCell`."""
    with opened() as stored:
        indptr = _pointers(stored, start, stop + 1)
        data, indices = (_copied(stored[name], int(indptr[0]), int(indptr[-1])) for name in ("data", "indices"))
    if len(data) != indptr[-1] - indptr[0] or len(data) != len(indices) or not _all_within(indices, shape[1]):
        raise DataFormatError(f"a column index lies outside of the {shape[1]} genes, or values are missing")
    block = csr_matrix((stop - start, shape[1]), dtype=np.float64)
    block.data, block.indices, block.indptr = data, indices, indptr - indptr[0]
    return block


def _copied(stored: Any, start: int, stop: int) -> np.ndarray:
    return np.array(stored[start:stop]) if isinstance(stored, np.ndarray) else np.asarray(stored[start:stop])


def _pointers(stored: Any, start: int = 0, stop: int | None = None) -> np.ndarray:
    indptr = np.asarray(stored["indptr"][start:stop]).astype(np.int64)
    if (np.diff(indptr) < 0).any():
        raise DataFormatError("indptr goes back")
    return indptr


def _entries(opened: Callable[[], AbstractContextManager[Any]]) -> Iterator[Entries]:
    with opened() as stored:
        indptr = _pointers(stored)
        for start in range(0, int(indptr[-1]), ENTRIES):
            stop = min(start + ENTRIES, int(indptr[-1]))
            genes = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr.clip(start, stop)))
            yield Entries(np.asarray(stored["indices"][start:stop]), genes, np.asarray(stored["data"][start:stop]))
