"""Counts from where users have them, in blocks of cells, checked, and never written to.

An ``.h5ad`` is read block by block through AnnData's on-disk sparse arrays, so a file larger than memory is
fine in CSR or dense form; a CSC matrix is read whole (it cannot be cut by cells).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import anndata as ad
import h5py
import numpy as np
import pandas as pd
from anndata.io import read_elem
from scipy.sparse import csr_matrix

from geneformer_repro.errors import DataFormatError, InputError, did_you_mean

BLOCK_CELLS = 4096
"""Cells read at a time: 4,096 cells of 2,000 expressed genes are about 100 MB on the way to tokens."""

_NAME_COLUMNS = ("gene_name", "feature_name", "gene_symbols", "gene_names", "gene_symbol", "symbol")


class Block(NamedTuple):
    """Consecutive cells: index of the first among all, and raw counts (cells × the source's genes)."""

    start: int
    counts: csr_matrix


@dataclass(frozen=True)
class CountSource:
    """Raw counts with their cells and genes; made by `open_counts`."""

    name: str
    obs: pd.DataFrame
    gene_ids: tuple[str, ...]
    gene_names: tuple[str, ...]
    _read: Callable[[int, int], csr_matrix]
    _alternatives: Callable[[], dict[str, Any]]
    _layer: str

    def blocks(self, size: int = BLOCK_CELLS) -> Iterator[Block]:
        """Read all cells in order.

        Parameters
        ----------
        size
            Cells in a block.

        Raises
        ------
        DataFormatError
            A value is negative, fractional or not finite; names the first cell and gene, and the layer that does
            hold counts.
        """
        for start in range(0, len(self.obs), size):
            counts = self._read(start, min(start + size, len(self.obs)))
            self._check_counts(counts, start)
            yield Block(start, counts)

    def total_counts(self, block: Block) -> np.ndarray:
        """Return each cell's total counts.

        ``obs['n_counts']`` where there is one, for it remembers genes left out of the file; else the stored sum.

        Raises
        ------
        DataFormatError
            ``obs['n_counts']`` is less than the counts stored for a cell.
        """
        start, sums = block.start, np.asarray(block.counts.sum(axis=1, dtype=np.float64)).ravel()
        if "n_counts" not in self.obs or not pd.api.types.is_numeric_dtype(self.obs["n_counts"]):
            return sums
        given = self.obs["n_counts"].to_numpy(dtype=np.float64)[start : start + len(sums)]
        wrong = ~np.isfinite(given) | (given < sums * (1 - 1e-6))
        if wrong.any():
            i = int(np.flatnonzero(wrong)[0])
            raise DataFormatError(
                f"{self.name}: obs['n_counts'] of cell {self.obs.index[start + i]!r} is {given[i]:g}, less than the "
                f"{sums[i]:g} counts stored for it. "
                "It must be the cell's total raw counts; correct the column, or drop it and the stored counts are "
                "summed."
            )
        return given

    def _check_counts(self, counts: csr_matrix, start: int) -> None:
        wrong = _not_counts(counts.data)
        if not wrong.any():
            return
        first = int(np.flatnonzero(wrong)[0])
        row = int(np.searchsorted(counts.indptr, first, side="right")) - 1
        value = counts.data[first]
        kind = "not finite" if not np.isfinite(value) else "negative" if value < 0 else "fractional"
        holding = [name for name, matrix in self._alternatives().items() if _holds_counts(matrix, len(self.obs))]
        advice = (
            f"{' and '.join(map(repr, holding))} holds counts: name it with layer=."
            if holding
            else "No other layer of it holds counts either; go back to the file before normalisation."
        )
        raise DataFormatError(
            f"{self.name}: {self._layer} holds {kind} values (first: cell {self.obs.index[start + row]!r}, gene "
            f"{self.gene_ids[counts.indices[first]]!r}, {value:g}). "
            f"Rank encoding needs raw counts. {advice}"
        )


def open_counts(
    source: ad.AnnData | str | Path, *, layer: str | None = None, gene_ids: str | None = None
) -> CountSource:
    """Open raw counts; nothing of the matrix is read yet.

    Parameters
    ----------
    source
        An AnnData, or the path of an ``.h5ad`` file (opened read-only).
    layer
        Name of the layer that holds the counts, or "raw" for ``.raw``; default ``X``.
    gene_ids
        Column of ``var`` with the gene ids; default ``ensembl_id`` where there is one, else the index.

    Raises
    ------
    DataFormatError
        The file is missing, not an ``.h5ad``, has no cells, or repeats a cell's name.
    InputError
        The layer or column does not exist.
    """
    return (
        _from_anndata(source, layer, gene_ids)
        if isinstance(source, ad.AnnData)
        else _from_h5ad(Path(source), layer, gene_ids)
    )


def _from_anndata(adata: ad.AnnData, layer: str | None, gene_ids: str | None) -> CountSource:
    matrices = {name: matrix for name, matrix in {"X": adata.X, **dict(adata.layers)}.items() if matrix is not None}
    var = dict.fromkeys(matrices, adata.var)
    if adata.raw is not None:
        matrices["raw"], var["raw"] = adata.raw.X, adata.raw.var
    chosen = _chosen(layer, matrices, "AnnData")
    matrix = matrices[chosen]

    def read(start: int, stop: int) -> csr_matrix:
        return csr_matrix(matrix[start:stop])

    others = {name: other for name, other in matrices.items() if name != chosen}
    return _checked_source("AnnData", adata.obs, var[chosen], gene_ids, read, lambda: others, chosen)


def _from_h5ad(path: Path, layer: str | None, gene_ids: str | None) -> CountSource:
    with _h5(path) as file:
        try:
            obs, var = read_elem(file["obs"]), read_elem(file["var"])
            raw_var = read_elem(file["raw/var"]) if "raw" in file else var
        except Exception as error:
            raise DataFormatError(f"{path}: an HDF5 file, but not a readable .h5ad: {error}") from error
        matrices = {"X": "X"} if "X" in file else {}
        matrices |= {name: f"layers/{name}" for name in file.get("layers", {})}
        matrices |= {"raw": "raw/X"} if "raw" in file else {}
    chosen = _chosen(layer, matrices, str(path))

    @cache
    def whole_csc() -> csr_matrix | None:
        with _h5(path) as file:
            stored = file[matrices[chosen]]
            is_csc = isinstance(stored, h5py.Group) and ad.io.sparse_dataset(stored).format == "csc"
            return csr_matrix(ad.io.sparse_dataset(stored).to_memory()) if is_csc else None

    def read(start: int, stop: int) -> csr_matrix:
        try:
            whole = whole_csc()
            if whole is not None:
                return whole[start:stop]
            with _h5(path) as file:
                return csr_matrix(_rows(file[matrices[chosen]], start, stop))
        except (OSError, KeyError, RuntimeError) as error:
            raise DataFormatError(
                f"{path}: cells {start} to {stop} cannot be read, the file is damaged or truncated ({error})."
            ) from error

    def alternatives() -> dict[str, Any]:
        with _h5(path) as file:
            return {name: _rows(file[place], 0, 100) for name, place in matrices.items() if name != chosen}

    return _checked_source(str(path), obs, raw_var if chosen == "raw" else var, gene_ids, read, alternatives, chosen)


def _h5(path: Path) -> h5py.File:
    if not path.exists():
        raise DataFormatError(f"{path}: no such file. Expected an .h5ad file with raw counts.")
    if path.is_dir() or not h5py.is_hdf5(path):
        raise DataFormatError(
            f"{path}: not an .h5ad (HDF5) file. Expected raw counts as written by AnnData.write_h5ad."
        )
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise DataFormatError(f"{path}: cannot be opened, the file is damaged or truncated ({error}).") from error


def _rows(stored: h5py.Group | h5py.Dataset, start: int, stop: int) -> Any:
    if isinstance(stored, h5py.Dataset):
        return stored[start:stop]
    matrix = ad.io.sparse_dataset(stored)
    return matrix.to_memory()[start:stop] if matrix.format == "csc" else matrix[start:stop]


def _chosen(layer: str | None, matrices: dict[str, Any], name: str) -> str:
    chosen = layer or "X"
    if chosen not in matrices:
        raise InputError(f"{name}: there is no layer {chosen!r}. {did_you_mean(chosen, matrices)}")
    return chosen


def _checked_source(
    name: str,
    obs: pd.DataFrame,
    var: pd.DataFrame,
    gene_ids: str | None,
    read: Callable[[int, int], csr_matrix],
    alternatives: Callable[[], dict[str, Any]],
    layer: str,
) -> CountSource:
    if obs.empty and len(obs.index) == 0:
        raise DataFormatError(f"{name}: holds no cells ({len(var)} genes).")
    if not len(var):
        raise DataFormatError(f"{name}: holds no genes ({len(obs)} cells).")
    repeated = obs.index[obs.index.duplicated()]
    if len(repeated):
        raise DataFormatError(
            f"{name}: {len(repeated)} cell names stand more than once (first: {repeated[0]!r}), so results could "
            f"not be joined back. Call adata.obs_names_make_unique() first."
        )
    if gene_ids is not None and gene_ids not in var:
        raise InputError(f"{name}: var has no column {gene_ids!r}. {did_you_mean(gene_ids, var.columns)}")
    column = gene_ids or ("ensembl_id" if "ensembl_id" in var else None)
    ids = var[column] if column else var.index.to_series()
    ids = ids.astype(object).where(ids.notna(), "").astype(str)
    named = next((candidate for candidate in _NAME_COLUMNS if candidate in var), None)
    names = (
        var[named].astype(object).where(var[named].notna(), "").astype(str) if named else pd.Series("", index=var.index)
    )
    return CountSource(name, obs, tuple(ids), tuple(names), read, alternatives, layer)


def _not_counts(values: np.ndarray) -> np.ndarray:
    return ~np.isfinite(values) | (values < 0) | (values != np.rint(values))


def _holds_counts(matrix: Any, n_cells: int) -> bool:
    block = csr_matrix(matrix[: min(100, n_cells)])
    return block.nnz > 0 and not _not_counts(block.data).any()
