"""Cell vectors on disk, for more cells than memory holds: ``.h5ad`` or ``.zarr``.

They are computed in parts, each written aside and renamed, so that a part is there whole or not at all; what else the
result holds is written before the first, so that what cannot be written is known at once. At the end the parts are laid
end to end, a few at a time, and a call that is cut off there goes on with the next. That takes twice their room on disk
for a moment, and memory for one part, however many there are.
"""

import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Literal

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import zarr
from safetensors.numpy import load_file, save_file

import geneformer_repro.unfinished as unfinished
from geneformer_repro.errors import InputError
from geneformer_repro.files import VECTOR_ENDINGS, new_directory, new_file, read_json, require_ending, write_json
from geneformer_repro.progress import progress
from geneformer_repro.work import Parts, Work

_H5AD = ".h5ad"
_ROWS_A_CHUNK = 4096
_PARTS_AT_ONCE = 16
"""Parts that are laid into the result between two points from which that goes on."""


def refuse_unwritable(out: Path, *, overwrite: bool) -> None:
    """Raise before the work if vectors may not be written to `out`.

    Raises
    ------
    InputError
        The suffix is neither ``.h5ad`` nor ``.zarr``.
    FileExistsError
        It is there and may not be replaced.
    """
    require_ending(out, VECTOR_ENDINGS, "vectors")
    unfinished.refuse(out, overwrite=overwrite, marker=marker_of(out))


class VectorParts:
    """Unfinished vectors; every process of a run makes one and writes its share.

    Parameters
    ----------
    work
        The work on the result, whose name `refuse_unwritable` let pass.
    n_parts
        How many parts there are.
    """

    def __init__(self, work: Work, n_parts: int) -> None:
        self._work, self._parts = work, Parts(work, n_parts, suffix=".safetensors")
        self._result, self._note = work.folder / f"vectors{work.out.suffix}", work.folder / "laid.json"
        self.missing, self.mine = self._parts.missing, self._parts.mine
        """Parts that no earlier call has written, and this process's share of them."""

    def make_room(self, obs: pd.DataFrame, uns: Mapping[str, Any], n_dimensions: int) -> None:
        """Write everything but the vectors, on the first process.

        Raises
        ------
        InputError
            AnnData cannot write an obs column.
        """
        if self.missing:
            self._note.unlink(missing_ok=True)
        if self._laid()[0]:
            return
        unfinished.remove(self._result)
        try:
            _make_room(self._result, obs, uns, n_dimensions)
        except InputError:
            unfinished.remove(self._result)
            raise

    def write(self, part: int, vectors_ND: np.ndarray) -> None:
        """Keep a part."""
        self._parts.keep(part, lambda aside: save_file({"X": vectors_ND}, aside))

    def finish(self) -> None:
        """Make the result of the parts, which must all be there, on the first process."""
        paths, (n_laid, n_rows) = self._parts.paths, self._laid()
        with progress("merge", total=len(paths), unit="parts", done=n_laid, quiet=len(paths) < _PARTS_AT_ONCE) as bar:
            for start in range(n_laid, len(paths), _PARTS_AT_ONCE):
                next_paths = paths[start : start + _PARTS_AT_ONCE]
                n_rows = _fill(self._result, (load_file(path)["X"] for path in next_paths), start=n_rows)
                with new_file(self._note, overwrite=True) as aside:
                    write_json(aside, {"parts": start + len(next_paths), "rows": n_rows})
                bar.update(len(next_paths))
        self._work.deliver(self._result)

    def _laid(self) -> tuple[int, int]:
        """Return how many parts, and rows of theirs, an earlier call has laid into the result."""
        note = read_json(self._note) if self._note.exists() else {"parts": 0, "rows": 0}
        return int(note["parts"]), int(note["rows"])


def write_vectors(out: Path, adata: ad.AnnData, *, overwrite: bool) -> None:
    """Write vectors that are in memory."""
    with _written_aside(out, overwrite=overwrite) as aside:
        _make_room(aside, adata.obs, adata.uns, adata.n_vars)
        _fill(aside, [adata.X])


def open_vectors(path: Path) -> ad.AnnData:
    """Open vectors without reading ``X``: of ``.h5ad`` backed, of ``.zarr`` a `zarr.Array`."""
    if path.suffix == _H5AD:
        return ad.read_h5ad(path, backed="r")
    root = zarr.open_group(str(path), mode="r")
    return ad.AnnData(root["X"], **{name: ad.io.read_elem(root[name]) for name in ("obs", "var", "uns")})


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a copy of vectors on disk that replaces them when the block ends without an error."""
    with _written_aside(path, overwrite=True) as aside:
        if path.is_dir():
            shutil.copytree(path, aside, dirs_exist_ok=True)
        else:
            shutil.copyfile(path, aside)
        yield aside


def _written_aside(path: Path, *, overwrite: bool) -> AbstractContextManager[Path]:
    """Yield another name for vectors that take `path` when they are complete."""
    marker = marker_of(path)
    if marker is None:
        return new_file(path, overwrite=overwrite)
    return new_directory(path, marker=marker, overwrite=overwrite)


def add_obsm(path: Path, name: str, values: np.ndarray) -> None:
    """Add something a cell to a file of vectors that is not open elsewhere."""
    with _opened(path, "r+") as root:
        ad.io.write_elem(root["obsm"], name, values)


def marker_of(path: Path) -> str | None:
    """Return the file that tells a Zarr store from another folder: of format 2 or, also where there is none, 3."""
    if path.suffix == _H5AD:
        return None
    return ".zgroup" if (path / ".zgroup").exists() else "zarr.json"


@contextmanager
def _opened(path: Path, mode: Literal["w", "r+"]) -> Iterator[Any]:
    if path.suffix == _H5AD:
        with h5py.File(path, mode) as file:
            yield file
    else:
        yield zarr.open_group(str(path), mode=mode)


def _make_room(path: Path, obs: pd.DataFrame, uns: Mapping[str, Any], n_dimensions: int) -> None:
    """Write an AnnData whose vectors are still to come."""
    var = pd.DataFrame(index=[str(i) for i in range(n_dimensions)])
    nothing = [name for name in obs if obs[name].dtype == object and obs[name].isna().all()]
    typed = obs.astype(dict.fromkeys(nothing, "category"))  # AnnData takes objects without any for no text
    adata = ad.AnnData(obs=typed, var=var, uns=dict(uns))
    adata.strings_to_categoricals()
    with _opened(path, "w") as root, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*autosharding")  # anndata 0.12 on a default of the next
        try:
            ad.io.write_elem(root, "/", adata)
        except Exception as error:
            reason = " ".join([str(error), *getattr(error, "__notes__", [])])
            raise InputError(
                f"{path}: AnnData cannot write an obs column of the cells ({reason}). Leave it out, or rename it."
            ) from error
        if "raw" in root:
            del root["raw"]  # an empty dataset, over which anndata 0.12 stumbles when it reads a backed file to memory
        if isinstance(root, h5py.File):
            vectors = _allocated(root, adata.shape)
        else:
            chunks = (min(_ROWS_A_CHUNK, adata.n_obs), n_dimensions)
            vectors = root.empty(name="X", shape=adata.shape, dtype="float32", chunks=chunks)
        vectors.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})


def _allocated(root: h5py.File, shape: tuple[int, int]) -> h5py.Dataset:
    """Make ``X`` with all of its room: to fill that changes no structure of the file, so that a kill breaks none."""
    options = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    options.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    options.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    h5py.h5d.create(root.id, b"X", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple(shape), dcpl=options)
    return root["X"]


def _fill(path: Path, parts: Iterable[np.ndarray], *, start: int = 0) -> int:
    """Write vectors from a row on; return the row behind them."""
    with _opened(path, "r+") as root:
        for vectors_ND in parts:
            root["X"][start : start + len(vectors_ND)] = vectors_ND
            start += len(vectors_ND)
    return start
