"""Where counts, cells and genes are in each container: AnnData, ``.h5ad``, ``.zarr``, ``.loom``, 10x, tables."""

import html
import io
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
from anndata.io import read_elem
from scipy.sparse import csr_matrix

from geneformer_repro.errors import DataFormatError, InputError, did_you_mean
from geneformer_repro.files import FIRST_BYTES, foreign_content, is_there, mudata_of, open_unpacked, read_text
from geneformer_repro.tokenizer.features import texts
from geneformer_repro.tokenizer.matrices import (
    ENTRIES,
    ByCell,
    ByGene,
    Entries,
    Matrix,
    check_chunks,
    check_pointers,
    matrix_in_memory,
    matrix_stored,
    read_csr,
    read_dense,
)
from geneformer_repro.tokenizer.tables import is_expression_table, read_expression_table

_TABLES = ("barcodes", "features", "genes")
_WRITE_AS_H5AD = {
    **dict.fromkeys(
        (".xlsx", ".xls"),
        "anndata.AnnData(pandas.read_excel(…, index_col=0).T).write_h5ad(…), without .T if rows are cells",
    ),
    **dict.fromkeys(
        (".rds", ".rda", ".rdata", ".qs", ".qs2", ".h5seurat"),
        "in R, anndataR::write_h5ad(…) of the Seurat or SingleCellExperiment object",
    ),
    **dict.fromkeys(
        (".mat", ".npz", ".npy"), "anndata.AnnData(counts, obs=…, var=…).write_h5ad(…) of the matrix in it"
    ),
    **dict.fromkeys((".pkl", ".pickle"), "open it where it was made, if you trust it, and AnnData.write_h5ad(…) there"),
}
"""What people have instead."""
Opened = Callable[..., AbstractContextManager[Any]]
"""Opens what is at a place inside a store, the whole of it by default."""
_MTX = re.compile(r"(?P<prefix>.*)matrix\.mtx(\.gz)?\Z")


class Content(ABC):
    """What `open_counts` needs to know of a container; without more, one matrix, and cells that have names only."""

    layers: Sequence[str] = ("X",)
    obs_columns: Sequence[str] = ()
    n_cells: int
    _var: pd.DataFrame

    def var(self, layer: str) -> pd.DataFrame:
        """Return the table of the genes that a layer has."""
        del layer
        return self._var

    @abstractmethod
    def matrix(self, layer: str) -> Matrix:
        """Return the matrix of a layer."""

    @abstractmethod
    def obs_index(self, start: int, stop: int) -> np.ndarray:
        """Return the names of these cells, as text."""

    def obs(self, column: str, start: int, stop: int) -> pd.Series:
        """Return a column of these cells, one of `obs_columns`."""
        raise KeyError(column)


def content_of(source: ad.AnnData | str | Path) -> Content:
    """Open a container by what it is.

    Raises
    ------
    DataFormatError
        There is none, or none that is known.
    """
    if isinstance(source, ad.AnnData):
        return _AnnDataContent(source)
    path = Path(source)
    if not is_there(path):
        raise DataFormatError(not_there(path))
    if path.is_dir():
        if is_zarr(path):
            with _zarr(path) as root:
                inside = _rna_of(path, root)
            return _StoredAnnData(_within(partial(_zarr, path), inside))
        return _TenXFolder(_only_mtx(path))
    if _MTX.match(path.name):
        return _TenXFolder(path)
    if is_expression_table(path):
        return _AnnDataContent(_read_table(path))
    return _hdf5_content(path)


def not_there(path: Path) -> str:
    """Say that a path leads to nothing."""
    what = f"a link that leads nowhere ({path.readlink()})" if path.is_symlink() else "no such file"
    return f"{path}: {what}. Expected raw counts: .h5ad, .zarr, .loom, 10x .h5 or mtx, or a table."


def _read_table(path: Path) -> ad.AnnData:
    try:
        return read_expression_table(path)
    except DataFormatError:
        raise
    except InputError as error:
        raise InputError(f"{error} Give what read_samples({path.name!r}, genes_in=…) returns in its place.") from error


def is_zarr(path: Path) -> bool:
    """Whether a folder is a Zarr group."""
    return any((path / name).exists() for name in ("zarr.json", ".zgroup", ".zmetadata"))


def mtx_files(folder: Path) -> list[Path]:
    """The ``matrix.mtx`` files of 10x form directly in a folder, also with a prefix (``GSM1_matrix.mtx.gz``)."""
    files = (path for path in folder.iterdir() if _MTX.match(path.name) and not path.name.startswith("."))
    return sorted(path for path in files if path.is_file())


def files_of(path: Path) -> list[Path]:
    """The files that a source consists of, the matrix first."""
    if holder := mudata_of(path):
        return [holder]
    match = _MTX.match(path.name)
    if match and path.is_file():
        names = (f"{match['prefix']}{stem}.tsv{suffix}" for stem in _TABLES for suffix in ("", ".gz"))
        return [path, *(path.with_name(name) for name in names if path.with_name(name).exists())]
    if path.is_dir() and not is_zarr(path) and len(mtx_files(path)) == 1:
        return files_of(mtx_files(path)[0])
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def _only_mtx(folder: Path) -> Path:
    files = mtx_files(folder)
    if len(files) != 1:
        raise DataFormatError(
            f"{folder}: a folder with {len(files)} matrix.mtx files. Expected a Zarr store, or a 10x folder with one."
        )
    return files[0]


@cache
def _more_filters() -> None:
    """Let HDF5 read what other programs packed by Blosc, Zstandard …, if the package for it is there."""
    if find_spec("hdf5plugin"):
        import_module("hdf5plugin")


@contextmanager
def _h5(path: Path, inside: str = "/") -> Iterator[Any]:
    _more_filters()
    with closing(h5py.File(path, "r", rdcc_nbytes=0)) as file:  # what is read is read once: no cache of chunks
        yield file[inside]


@contextmanager
def _zarr(path: Path, inside: str = "/") -> Iterator[Any]:
    import zarr

    root = zarr.open_group(str(path), mode="r")
    yield root if inside == "/" else root[inside]


def _hdf5_content(path: Path, modality: str | None = None) -> Content:
    if holder := mudata_of(path):
        return _hdf5_content(holder, path.name)
    how = _way_out(path)
    if how or not h5py.is_hdf5(path):
        raise DataFormatError(f"{path}: {_instead_of_hdf5(path)}")
    try:
        with _h5(path) as file:
            keys = set(file)
            if "matrix" in keys and isinstance(file["matrix"], h5py.Dataset) and {"row_attrs", "col_attrs"} <= keys:
                return _LoomContent(path)
            genomes = [key for key in keys if isinstance(file[key], h5py.Group) and "barcodes" in file[key]]
    except BlockingIOError:
        raise
    except OSError as error:
        raise DataFormatError(f"{path}: cannot be opened, the file is damaged or truncated ({error}).") from error
    if len(genomes) == 1:
        return _TenXContent(path, genomes[0])
    if genomes:
        raise DataFormatError(
            f"{path}: a 10x file of several genomes ({', '.join(sorted(genomes))}). Read one and write it as an .h5ad: "
            f"scanpy.read_10x_h5(path, genome={min(genomes)!r}).write_h5ad(…)."
        )
    if "mod" in keys:
        with _h5(path) as file:
            inside = _rna_of(path, file, modality)
        return _StoredAnnData(_within(partial(_h5, path), inside))
    if not {"obs", "var"} <= keys:
        raise DataFormatError(
            f"{path}: an HDF5 file, but not a readable .h5ad, .loom or 10x matrix (it holds "
            f"{', '.join(sorted(keys)) or 'nothing'})."
        )
    return _StoredAnnData(partial(_h5, path))


def _instead_of_hdf5(path: Path) -> str:
    """Say what a file is that should be HDF5, and the way out."""
    if how := _way_out(path):
        return f"a file of this kind is not read. Write its counts as an .h5ad: {how}."
    with path.open("rb") as file:
        foreign = foreign_content(file.read(FIRST_BYTES), path.name)
    if foreign:
        return f"expected counts (.h5ad, .loom, 10x .h5), found {foreign.what}. {foreign.way_out}"
    return (
        "not an .h5ad, .loom or 10x .h5 (HDF5) file, or damaged at its beginning. "
        "Expected raw counts as written by AnnData.write_h5ad, loompy or Cell Ranger."
    )


def _way_out(path: Path) -> str | None:
    """Say how what a file of another kind holds is written as an ``.h5ad``; None of a name that says no kind."""
    unpacked = path.with_suffix("") if path.suffix.lower() in (".gz", ".bz2", ".xz", ".zip") else path
    return _WRITE_AS_H5AD.get(unpacked.suffix.lower())


def _rna_of(path: Path, root: Any, modality: str | None = None) -> str:
    """Return the place of the RNA in a store: of a MuData the modality asked for, "rna" or the only one; else root."""
    if "mod" not in root or {"X", "layers"} & set(root):
        return "/"
    modalities = sorted(root["mod"])
    if modality is not None and modality not in modalities:
        raise InputError(f"{path}: a MuData without {modality!r}. {did_you_mean(modality, modalities)}")
    called_rna = [modality] if modality else [name for name in modalities if name.lower() == "rna"]
    if len(called_rna) == 1 or len(modalities) == 1:
        return f"mod/{(called_rna or modalities)[0]}"
    inside = path if mudata_of(path / "rna") else path / "mod"
    raise DataFormatError(
        f"{path}: a MuData whose modalities are {', '.join(modalities) or 'none'}; its RNA is looked for under 'rna'. "
        f"Name the one with RNA: {inside / 'NAME'}."
    )


def _within(opened: Opened, base: str) -> Opened:
    """Open places below a group as if it were the root."""
    if base == "/":
        return opened
    return lambda inside="/": opened(base if inside == "/" else f"{base}/{inside}")


class _AnnDataContent(Content):
    def __init__(self, adata: ad.AnnData) -> None:
        self._adata, self._obs = adata, in_memory(adata.obs)
        self._matrices: dict[str, Callable[[], Any]] = {
            name: partial(adata.layers.__getitem__, name) for name in adata.layers
        }
        self._matrices |= {"X": lambda: adata.X} if adata.X is not None else {}
        self._matrices |= {"raw": lambda: adata.raw.X} if adata.raw is not None else {}
        self.layers = _in_order(self._matrices)
        self.n_cells = adata.n_obs
        self.obs_columns = [str(column) for column in self._obs.columns]

    def var(self, layer: str) -> pd.DataFrame:
        is_raw = layer == "raw" and self._adata.raw is not None
        return in_memory(self._adata.raw.var if is_raw else self._adata.var)

    def matrix(self, layer: str) -> Matrix:
        return matrix_in_memory(self._matrices[layer]())

    def obs_index(self, start: int, stop: int) -> np.ndarray:
        return self._obs.index[start:stop].astype(str).to_numpy(dtype=object)

    def obs(self, column: str, start: int, stop: int) -> pd.Series:
        return self._obs[column].iloc[start:stop]


def _in_order(layers: Iterable[str]) -> list[str]:
    return sorted(layers, key=lambda name: (name != "X", name == "raw"))


def in_memory(table: Any) -> pd.DataFrame:
    """Return a table of an AnnData, which is not read yet in one of ``anndata.experimental.read_lazy``."""
    return table.to_memory() if hasattr(table, "to_memory") else table


def with_cells_in_memory(content: Content, start: int, names: np.ndarray, columns: dict[str, pd.Series]) -> Content:
    """Return a container of which the names and some columns of consecutive cells, from `start` on, are in memory."""
    return _HeldCells(content, start, names, columns)


class _HeldCells(Content):
    def __init__(self, content: Content, start: int, names: np.ndarray, columns: dict[str, pd.Series]) -> None:
        self.layers, self.obs_columns, self.n_cells = content.layers, content.obs_columns, content.n_cells
        self._content, self._start, self._names, self._columns = content, start, names, columns

    def var(self, layer: str) -> pd.DataFrame:
        return self._content.var(layer)

    def matrix(self, layer: str) -> Matrix:
        return self._content.matrix(layer)

    def obs_index(self, start: int, stop: int) -> np.ndarray:
        return self._names[start - self._start : stop - self._start]

    def obs(self, column: str, start: int, stop: int) -> pd.Series:
        if column not in self._columns:
            return self._content.obs(column, start, stop)
        return self._columns[column].iloc[start - self._start : stop - self._start]


class _Stored(Content):
    """A container on disk that has the columns of its cells, their names among them, in one group.

    Parameters
    ----------
    opened
        Opens what is at a place inside, the whole of it by default.
    cells
        Place of the group of the cells' columns.
    """

    _index: str
    """Column with the names."""

    def __init__(self, opened: Opened, cells: str) -> None:
        self._opened, self._cells = opened, cells

    def obs_index(self, start: int, stop: int) -> np.ndarray:
        return self.obs(self._index, start, stop).map(str).to_numpy(dtype=object)

    def obs(self, column: str, start: int, stop: int) -> pd.Series:
        with self._opened(f"{self._cells}/{column}") as stored:
            return pd.Series(_values(stored, start, stop))


class _StoredAnnData(_Stored):
    """An AnnData in an HDF5 file or a Zarr store."""

    def __init__(self, opened: Opened) -> None:
        super().__init__(opened, "obs")
        with opened() as root:
            self._places = {name: f"layers/{name}" for name in root.get("layers", ())}
            self._places |= {"X": "X"} if "X" in root else {}
            has_raw = "raw" in root and hasattr(root["raw"], "keys") and "X" in root["raw"]
            self._places |= {"raw": "raw/X"} if has_raw else {}
            self.layers = _in_order(self._places)
            self._var = read_elem(root["var"])
            self._raw_var = read_elem(root["raw/var"]) if has_raw else self._var
            obs = root["obs"]
            if not hasattr(obs, "keys"):
                raise DataFormatError(
                    "written by AnnData before 0.7; read it with anndata.read_h5ad and write it again with write_h5ad"
                )
            self._index = str(obs.attrs["_index"])
            self.obs_columns = [str(name) for name in obs.attrs["column-order"]]
            # AnnData < 0.8 kept categories apart.
            self._whole_obs = read_elem(obs).reset_index(names=self._index) if "__categories" in obs else None
            self.n_cells = _checked_names(obs).shape[0]
            _checked_names(root["var"])

    def var(self, layer: str) -> pd.DataFrame:
        return self._raw_var if self._places[layer] == "raw/X" else self._var

    def matrix(self, layer: str) -> Matrix:
        return matrix_stored(partial(self._opened, self._places[layer]))

    def obs(self, column: str, start: int, stop: int) -> pd.Series:
        if self._whole_obs is not None:
            return self._whole_obs[column].iloc[start:stop]
        return super().obs(column, start, stop)


def _checked_names(table: Any) -> Any:
    """Return the stored names of a data frame's rows, all of which are there."""
    names = table[str(table.attrs["_index"])]
    names = names["values"] if hasattr(names, "keys") else names
    if names.shape[0]:
        check_chunks(names)
    return names


def _values(stored: Any, start: int, stop: int) -> Any:
    """Read part of a column of a stored data frame."""
    if not hasattr(stored, "keys"):
        values = stored[start:stop].reshape(-1)
        if values.dtype.kind in "SO":
            return np.array([v.decode() if isinstance(v, bytes) else v for v in values], dtype=object)
        if values.dtype.kind in "UT":
            return values.astype(object)
        return values.astype(np.float32 if values.dtype == np.float16 else values.dtype.newbyteorder("="))
    if stored.attrs["encoding-type"] == "categorical":
        return pd.Categorical.from_codes(stored["codes"][start:stop], read_elem(stored["categories"]))
    values = _values(stored["values"], start, stop)
    missing = np.asarray(stored["mask"][start:stop], dtype=bool) if "mask" in stored else np.zeros(len(values), bool)
    kinds = {"b": "boolean", "i": f"Int{8 * values.dtype.itemsize}", "u": f"UInt{8 * values.dtype.itemsize}"}
    column: Any = pd.array(values, dtype=kinds.get(values.dtype.kind, object))
    column[missing] = pd.NA
    return column


class _LoomContent(_Stored):
    """A loom file: dense, genes × cells, in compressed squares of 64 × 64."""

    def __init__(self, path: Path) -> None:
        super().__init__(partial(_h5, path), "col_attrs")
        with self._opened() as file:
            self._shape = file["matrix"].shape[::-1]
            self.layers = ["X", *file.get("layers", {})]
            rows, columns = file["row_attrs"], file["col_attrs"]
            names = [name for name in rows if _is_column(rows[name], self._shape[1])]
            self._var = pd.DataFrame({name: _unescaped(_values(rows[name], 0, self._shape[1])) for name in names})
            self.obs_columns = [name for name in columns if _is_column(columns[name], self._shape[0])]
            self._index = next((name for name in ("CellID", "obs_names", "cell_id") if name in columns), "")
            self.n_cells = columns[self._index].shape[0] if self._index else self._shape[0]
        genes = next((name for name in ("Accession", "var_names", "Gene") if name in self._var), None)
        self._var.index = pd.Index(self._var[genes] if genes else range(self._shape[1])).astype(str)

    def matrix(self, layer: str) -> Matrix:
        return ByCell(self._shape, partial(self._read, "matrix" if layer == "X" else f"layers/{layer}"))

    def _read(self, place: str, start: int, stop: int) -> csr_matrix:
        with self._opened(place) as stored:
            return read_dense(lambda i, j: stored[:, i:j].T, self._shape[1], start, stop)

    def obs_index(self, start: int, stop: int) -> np.ndarray:
        return super().obs_index(start, stop) if self._index else np.arange(start, stop).astype(str).astype(object)

    def obs(self, column: str, start: int, stop: int) -> pd.Series:
        return pd.Series(_unescaped(super().obs(column, start, stop).to_numpy()))


def _is_column(stored: Any, n: int) -> bool:
    return isinstance(stored, h5py.Dataset) and stored.shape in ((n,), (n, 1))


def _unescaped(values: np.ndarray) -> np.ndarray:
    """Undo what loompy does to text that is not ASCII: ``&#946;``, ``&amp;``."""
    if values.dtype != object:
        return values
    return np.array([html.unescape(value) if isinstance(value, str) else value for value in values], dtype=object)


class _TenXContent(_Stored):
    """Cell Ranger's ``.h5``: a compressed matrix whose columns are cells, which is CSR of cells × genes."""

    _index = "barcodes"

    def __init__(self, path: Path, group: str) -> None:
        super().__init__(partial(_h5, path), group)
        with self._opened(group) as stored:
            n_genes, n_cells = (int(n) for n in stored["shape"][:])
            self._shape = (n_cells, n_genes)
            self.n_cells = stored["barcodes"].shape[0]
            features = stored.get("features")
            places = {"gene_id": "id", "gene_name": "name", "feature_type": "feature_type", "genome": "genome"}
            if features is None:
                features, places = stored, {"gene_id": "genes", "gene_name": "gene_names", "genome": "genome"}
            places = {name: place for name, place in places.items() if place in features}
            columns = {name: _values(features[place], 0, features[place].shape[0]) for name, place in places.items()}
            if len(columns["gene_id"]) != n_genes:
                raise DataFormatError(f"{path}: {len(columns['gene_id'])} features are named for {n_genes} rows.")
            check_pointers(stored, n_cells)
        self._var = pd.DataFrame(columns).set_index("gene_id")

    def matrix(self, layer: str) -> Matrix:
        del layer
        return ByCell(self._shape, partial(read_csr, partial(self._opened, self._cells), self._shape))


class _TenXFolder(Content):
    """``matrix.mtx`` with ``barcodes.tsv`` and ``features.tsv`` (``genes.tsv`` before Cell Ranger 3) beside it."""

    def __init__(self, mtx: Path) -> None:
        self._mtx = mtx
        with open_unpacked(self._mtx) as lines:
            banner = _line(lines).removeprefix(b"\xef\xbb\xbf").decode("ascii", "replace").lower().split()
            kinds = [["%%matrixmarket", "matrix", "coordinate", kind, "general"] for kind in ("integer", "real")]
            if banner not in kinds:
                raise DataFormatError(f"{mtx}: not a Matrix Market file of integer or real coordinates.")
            line = _line(lines)
            while line.startswith(b"%") or line.isspace():
                line = _line(lines)
            self._shape_on_file = tuple(int(n) for n in line.split())
            self._begins = lines.tell()
        if len(self._shape_on_file) != 3:
            raise DataFormatError(f"{mtx}: expected numbers of features, cells and entries below its comments.")
        n_features, n_cells, _ = self._shape_on_file
        table, cells = self._table(n_features, "features", "genes"), self._table(n_cells, "barcodes")
        if (n_features, n_cells) != (len(table), len(cells)):
            raise DataFormatError(
                f"{mtx}: {n_features} features × {n_cells} cells, but {len(table)} features and {len(cells)} barcodes "
                "are named beside it."
            )
        names = ["gene_id", "gene_name", "feature_type"][: table.shape[1]]
        self._var = table.iloc[:, : len(names)].set_axis(names, axis=1).set_index("gene_id")
        self._barcodes = texts(cells[0])
        self.n_cells = n_cells

    def obs_index(self, start: int, stop: int) -> np.ndarray:
        return np.array(self._barcodes[start:stop], dtype=object)

    def _table(self, n_rows: int, *stems: str) -> pd.DataFrame:
        match = _MTX.match(self._mtx.name)
        assert match
        names = [f"{match['prefix']}{stem}.tsv{suffix}" for stem in stems for suffix in ("", ".gz")]
        path = next((self._mtx.with_name(name) for name in names if self._mtx.with_name(name).exists()), None)
        if path is None:
            raise DataFormatError(f"{self._mtx}: expected one of {', '.join(names)} beside it, found none.")
        lines = re.split(r"\r\n|\r|\n", read_text(path))
        while lines and not lines[-1].strip():
            lines.pop()
        rows = [[field.strip().strip('"') for field in line.split("\t")] for line in lines]
        if all(len(row) == 1 for row in rows) and all(len(line.split()) > 1 for line in lines):
            rows = [[field.strip('"') for field in line.split(maxsplit=2)] for line in lines]
        return pd.DataFrame(rows[len(rows) == n_rows + 1 :])  # one more than the matrix has: the first is a header

    def matrix(self, layer: str) -> Matrix:
        del layer
        return ByGene((self.n_cells, len(self._var)), self._entries)

    def _entries(self) -> Iterator[Entries]:
        expected, seen = self._shape_on_file[2], 0
        with open_unpacked(self._mtx) as lines:
            lines.seek(self._begins)
            chunks = pd.read_csv(_ShortLines(lines), sep=r"\s+", header=None, chunksize=ENTRIES)
            for chunk in chunks if expected else ():
                seen += len(chunk)
                if chunk.shape[1] != 3 or chunk.dtypes[:2].map(str).ne("int64").any():
                    raise DataFormatError("a line is not row, column and value")
                if seen > expected:
                    break
                yield Entries(chunk[1].to_numpy() - 1, chunk[0].to_numpy() - 1, chunk[2].to_numpy(np.float64))
        if seen != expected:
            more = " or more" if seen > expected else ""
            raise DataFormatError(f"{seen}{more} entries where its header speaks of {expected}")


_LONGEST_LINE = 1 << 20


def _line(lines: Any) -> bytes:
    line: bytes = lines.readline(_LONGEST_LINE)
    if not line or len(line) == _LONGEST_LINE:
        raise DataFormatError("not a Matrix Market file: it ends within its header, or a line of it has no end")
    return line


class _ShortLines(io.BufferedIOBase):
    """A file whose lines all end soon: one without an end would be taken into memory as a whole."""

    def __init__(self, file: Any) -> None:
        self._file, self._since_end = file, 0

    def readable(self) -> bool:
        return True

    def read1(self, size: int = -1) -> bytes:
        return self.read(size)

    def read(self, size: int | None = -1) -> bytes:
        block: bytes = self._file.read(-1 if size is None else size)
        self._since_end = len(block) - end - 1 if (end := block.rfind(b"\n")) >= 0 else self._since_end + len(block)
        if self._since_end > _LONGEST_LINE:
            raise DataFormatError(f"a line is longer than {_LONGEST_LINE:,} bytes")
        return block


def content_kind(path: ad.AnnData | str | Path) -> str:
    """Say what a path seems to hold, for messages."""
    if isinstance(path, ad.AnnData):
        return "an AnnData"
    if Path(path).is_dir():
        return "a Zarr store" if is_zarr(Path(path)) else "a 10x folder"
    if is_expression_table(path):
        return "a table"
    return "a Matrix Market file" if _MTX.match(Path(path).name) else "an HDF5 file"
