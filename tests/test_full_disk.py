"""A disk that is full: one line that names the file, whichever library met it; with room the same call goes on.

The process may write no file larger than so many bytes, as under a quota; each library says so in its own words.
"""

import resource
import sys

import anndata as ad
import numpy as np
import pytest
from forking import forked, status_of

import geneformer_repro as gf
from geneformer_repro.finetuning.networks import new_classifier
from geneformer_repro.heads import Head
from geneformer_repro.targets import Classes

pytestmark = pytest.mark.slow


def in_little_room(run, folder, n_bytes):
    """Return what a process printed that may write no file larger than so many bytes."""
    log = folder / "log"

    def limited():
        sys.dont_write_bytecode = True  # half a module would be written, and found by who imports it next
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))
        try:
            run()
        except gf.InputError as error:
            print(f"error: {error}")
            raise SystemExit(2) from None

    assert status_of(forked(limited, log)) == 2, log.read_text()
    said = log.read_text()
    log.unlink()
    return said


@pytest.fixture
def calls(checkpoint, cells, pbmc, tmp_path):
    """Name of an output → the call that writes it."""
    some = cells.select(range(120))
    classifier = gf.Checkpoint(
        new_classifier(checkpoint, Head((Classes("type", ("a", "b")),)), seed=0, pretrained=True).eval(),
        checkpoint.vocabulary,
    )
    config = gf.PretrainConfig(
        size="tiny", training={"epochs": 1, "batch_size": 40, "warmup_steps": 0, "trainer": {"max_steps": 1}}
    )
    return {
        "cells.tok": lambda out: gf.tokenize(pbmc, checkpoint.vocabulary, out=out),
        "x.h5ad": lambda out: gf.embed(checkpoint, some, out=out),
        "x.zarr": lambda out: gf.embed(checkpoint, some, out=out),
        "shifts.parquet": lambda out: gf.perturb(checkpoint, some, gf.Deletion(), max_cells=20, out=out, layer=-3),
        "p.tsv": lambda out: gf.predict(classifier, some, out=out),
        "base": lambda out: gf.pretrain(some.select(range(50)), config, out=out),
    }


@pytest.mark.parametrize(
    ("name", "n_bytes"),
    [
        ("cells.tok", 60_000), ("x.h5ad", 40_000), ("x.zarr", 15_000), ("shifts.parquet", 7_000), ("p.tsv", 3_000),
        ("base", 100_000),
    ],
)  # fmt: skip
def test_it_ends_in_one_line_and_goes_on_when_there_is_room(calls, tmp_path, name, n_bytes):
    out, call = tmp_path / name, calls[name]
    said = in_little_room(lambda: call(out), tmp_path, n_bytes)
    errors = [line for line in said.splitlines() if line.startswith("error:")]
    assert "could not be written: the disk is full" in errors[0]
    assert name in errors[0]
    assert "Traceback" not in said
    assert not out.exists()
    made = call(out)
    if isinstance(made, ad.AnnData):
        np.testing.assert_array_equal(made.X[:], call(tmp_path / f"whole-{name}").X[:])
    assert not list(tmp_path.glob("*.partial"))
