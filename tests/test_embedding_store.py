import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

import geneformer_repro as gf
from geneformer_repro import embedding_store
from geneformer_repro.embedding_store import VectorParts, marker_of, open_vectors, refuse_unwritable
from geneformer_repro.work import working_on

N_PARTS, ROWS, DIMENSIONS = 40, 500, 64
SUFFIXES = pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])


def part(i: int) -> np.ndarray:
    return np.random.default_rng(i).normal(size=(ROWS, DIMENSIONS)).astype(np.float32)


@contextmanager
def storing(out: Path, *, n_parts: int = N_PARTS, obs: pd.DataFrame | None = None) -> Iterator[VectorParts]:
    with working_on(out, {"layer": -1}, what="embedding", marker=marker_of(out)) as work:
        store = VectorParts(work, n_parts)
        obs = pd.DataFrame(index=[f"cell{i}" for i in range(n_parts * ROWS)]) if obs is None else obs
        store.make_room(obs, {"made_by": {"layer": -1}}, DIMENSIONS)
        yield store


@SUFFIXES
def test_parts_are_laid_end_to_end_in_whatever_order_they_came(suffix, tmp_path):
    with storing(tmp_path / f"x{suffix}", n_parts=3) as store:
        for i in (2, 0, 1):
            store.write(i, part(i))
        store.finish()
    found = open_vectors(tmp_path / f"x{suffix}")
    np.testing.assert_array_equal(found.X[:], np.concatenate([part(0), part(1), part(2)]))
    assert found.uns["made_by"]["layer"] == -1
    assert [path.name for path in tmp_path.iterdir()] == [f"x{suffix}"]


@SUFFIXES
def test_laying_that_was_cut_off_goes_on_with_the_next_parts(suffix, tmp_path, monkeypatch):
    """Of a large embedding it takes minutes, which a job that is cut off there each time would never have."""
    monkeypatch.setattr(embedding_store, "_PARTS_AT_ONCE", 2)
    out, read = tmp_path / f"x{suffix}", []

    def load(path):
        read.append(path.stem)
        if len(read) == 4:
            raise KeyboardInterrupt
        return load_file(path)

    monkeypatch.setattr(embedding_store, "load_file", load)

    def cut_off():
        with storing(out, n_parts=5) as store:
            for i in range(5):
                store.write(i, part(i))
            store.finish()

    with pytest.raises(KeyboardInterrupt):
        cut_off()
    with storing(out, n_parts=5) as store:
        assert store.missing == []
        store.finish()
    assert [name[-1] for name in read] == list("0123" + "234")
    np.testing.assert_array_equal(open_vectors(out).X[:], np.concatenate([part(i) for i in range(5)]))


@SUFFIXES
def test_memory_is_that_of_a_part_not_of_all(suffix, tmp_path, monkeypatch):
    monkeypatch.setattr(embedding_store, "_ROWS_A_CHUNK", ROWS)
    with storing(tmp_path / f"x{suffix}") as store:
        for i in range(N_PARTS):
            store.write(i, part(i))
        tracemalloc.start()
        store.finish()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    of_a_part = ROWS * DIMENSIONS * 4
    assert peak < 10 * of_a_part < N_PARTS * of_a_part


@SUFFIXES
def test_opening_does_not_read_the_vectors(suffix, tmp_path):
    with storing(tmp_path / f"x{suffix}", n_parts=1) as store:
        store.write(0, part(0))
        store.finish()
    assert not isinstance(open_vectors(tmp_path / f"x{suffix}").X, np.ndarray)


@SUFFIXES
def test_missing_values_stay_missing(suffix, few_cells, checkpoint, tmp_path):
    with_gaps = few_cells.table.add_column("ok", [True, None, False]).add_column("nothing", [None] * 3)
    with_gaps.save_to_disk(tmp_path / "theirs")
    cells = gf.TokenizedDataset.open(tmp_path / "theirs", few_cells.vocabulary)
    gf.embed(checkpoint, cells, out=tmp_path / f"x{suffix}")
    read = {".h5ad": ad.read_h5ad, ".zarr": ad.read_zarr}[suffix]
    assert read(tmp_path / f"x{suffix}").obs["ok"].tolist() == [True, pd.NA, False]
    assert read(tmp_path / f"x{suffix}").obs["nothing"].isna().all()


@pytest.fixture
def few_cells(cells):
    return cells.select([0, 1, 2])


def test_an_obs_column_that_cannot_be_written_is_known_before_the_work(tmp_path):
    obs = pd.DataFrame({"when": [[1, 2]] * ROWS}, index=[f"cell{i}" for i in range(ROWS)])
    with pytest.raises(gf.InputError, match=r"cannot write an obs column .*'when'.*Leave it out, or rename it"):
        storing(tmp_path / "x.h5ad", n_parts=1, obs=obs).__enter__()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_zarr_store_is_never_replaced(tmp_path):
    (tmp_path / "x.zarr").mkdir()
    (tmp_path / "x.zarr" / "thesis.txt").touch()
    with pytest.raises(FileExistsError, match=r"folder without zarr.json"):
        refuse_unwritable(tmp_path / "x.zarr", overwrite=True)


@pytest.mark.parametrize("marker", [".zgroup", "zarr.json"], ids=["format 2", "format 3"])
def test_a_zarr_store_of_either_format_may_be(marker, tmp_path):
    (tmp_path / "x.zarr").mkdir()
    (tmp_path / "x.zarr" / marker).touch()
    refuse_unwritable(tmp_path / "x.zarr", overwrite=True)


def test_what_is_on_disk_can_be_read_to_memory(checkpoint, cells, tmp_path):
    some = cells.select(range(20))
    expected = gf.embed(checkpoint, some)
    for name in ("cells.h5ad", "cells.zarr"):
        found = gf.embed(checkpoint, some, out=tmp_path / name)
        np.testing.assert_array_equal(np.asarray(found.to_memory().X), expected.X)
