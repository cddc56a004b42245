"""What several tests need: real cells, small trained-shaped models, and the shared folder where it is there.

What takes long to import is imported in the fixtures: pytest loads this file in the process, too, that deals tests out.
"""

import gc
import json
import logging
import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import anndata as ad
    import numpy as np

    import geneformer_repro as gf
    from geneformer_repro.tokenizer.vocabulary import Vocabulary


gc.set_threshold(50_000, 20, 50)
"""Collect garbage seldom: with as much loaded as here that takes 6 % of the time, and Trainer does it by itself."""


@pytest.fixture(scope="module", autouse=True)
def _little_to_collect() -> None:
    """Leave what is there out of garbage collection: each training begins with one, of half a second for libraries."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with files of slow tests: of two workers, one that came to such a file last would end long after."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def _n_threads() -> int:
    import torch

    return torch.get_num_threads()


@pytest.fixture(scope="module", autouse=True)
def _as_many_threads(_n_threads: int) -> None:
    """Compute with as many threads as at the start, whoever changed that: another number changes last bits."""
    import torch

    torch.set_num_threads(_n_threads)


_LOG_LEVEL = logging.getLogger("geneformer_repro").level


@pytest.fixture(autouse=True)
def _as_it_logs_by_itself() -> None:
    """Log what is logged at the start, whatever command of the command line set another level."""
    logging.getLogger("geneformer_repro").setLevel(_LOG_LEVEL)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with golden files and data sets, beside the checkout; users do not have it."""
    folder = Path(__file__).parents[2] / "shared"
    if not (folder / "golden").is_dir():
        pytest.skip("needs the golden files and data sets in ../shared, which are not part of the repository")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _what_was_imported_is_no_garbage() -> None:
    """Trainer collects garbage after every run, which takes half a second with so many modules loaded."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def _pbmc() -> "ad.AnnData":
    import geneformer_repro as gf

    return gf.datasets.pbmc700()


@pytest.fixture
def pbmc(_pbmc: "ad.AnnData") -> "ad.AnnData":
    """700 real blood cells with raw counts; a copy, to be changed at will."""
    return _pbmc.copy()


@pytest.fixture(scope="session")
def vocabulary(_pbmc: "ad.AnnData") -> "Vocabulary":
    """The 754 genes of the blood cells, V2 convention (``<cls>`` … ``<eos>``)."""
    from geneformer_repro.tokenizer.vocabulary import Vocabulary

    return Vocabulary.fit(_pbmc)


@pytest.fixture(scope="session")
def cells(_pbmc: "ad.AnnData", vocabulary: "Vocabulary") -> "gf.TokenizedDataset":
    """The blood cells, tokenised in memory, with their labels and three made-up donors."""
    import geneformer_repro as gf

    adata = _pbmc.copy()
    adata.obs["donor"] = [f"donor{i % 3}" for i in range(adata.n_obs)]
    return gf.tokenize(adata, vocabulary, obs=["cell_type", "phase", "donor", "n_counts"])


@pytest.fixture
def checkpoint(vocabulary: "Vocabulary") -> "gf.Checkpoint":
    """A tiny untrained model of that vocabulary, with weights large enough to make cells differ."""
    import torch

    import geneformer_repro as gf
    from geneformer_repro.model import MaskedGeneModel, bert_config

    torch.manual_seed(0)
    config = bert_config("tiny", vocabulary)
    config.initializer_range = 0.2
    return gf.Checkpoint(MaskedGeneModel(config).eval(), vocabulary, name="checkpoint tiny")


@pytest.fixture(scope="session", params=["v1", "v2"])
def golden(request: pytest.FixtureRequest, shared: Path) -> "Golden":
    """The published package's results on 14 real cells, in both conventions of special tokens."""
    return Golden(shared / "golden" / request.param)


@pytest.fixture
def forked_workers() -> Iterator[None]:
    """Workers that are forks of this interpreter, where it is not the point how they start: new ones import for long.

    What they are given and what they give back is pickled and sent as to any other.
    """
    from joblib.externals.loky import process_executor, reusable_executor

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process_executor, "get_context", lambda: multiprocessing.get_context("fork"))
        patch.setattr(reusable_executor, "_executor", None)
        yield
        if reusable_executor._executor is not None:
            reusable_executor._executor.shutdown(kill_workers=True)


@pytest.fixture(scope="module")
def few_trees() -> Iterator[None]:
    """Five trees (a class), where it is not asked how good they are: a hundred take ten seconds."""
    from geneformer_repro.finetuning import baselines
    from geneformer_repro.finetuning.kinds import response_methods

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(baselines._BOOSTING, "max_iter", 5)
        patch.setitem(response_methods._BOOSTING, "max_iter", 5)
        patch.setitem(response_methods._FOREST, "n_estimators", 5)
        yield


@pytest.fixture(scope="module")
def few_resamples() -> Iterator[None]:
    """Intervals of a hundred resamples, where not their ends are the point."""
    from geneformer_repro.finetuning import metrics

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "N_RESAMPLES", 100)
        yield


@pytest.fixture(scope="module")
def blank_pictures() -> Iterator[None]:
    """Pictures without content, where it is not looked at: each takes half a second, and a page draws it again."""
    from drawing import blank

    with blank():
        yield


@pytest.fixture(scope="module")
def flat_maps() -> Iterator[None]:
    """Maps of the first two dimensions, where it is not looked at: each process compiles UMAP for ten seconds."""
    import scanpy

    def flat(adata: "ad.AnnData", **_: object) -> None:
        adata.obsm["X_umap"] = adata.X[:, :2]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scanpy.pp, "neighbors", lambda *_, **__: None)
        patch.setattr(scanpy.tl, "umap", flat)
        yield


class Golden:
    """One of the two folders of reference outputs."""

    def __init__(self, folder: Path) -> None:
        import geneformer_repro as gf
        from geneformer_repro.tokenizer.vocabulary import Vocabulary

        self.folder, self.series = folder, folder.name
        tokens = json.loads((folder / "vocabulary.json").read_text())
        self.vocabulary = Vocabulary.from_tokens(tokens, max_length=96)
        self.cells = gf.TokenizedDataset.open(folder / "cells.parquet", self.vocabulary)
        self.checkpoint = gf.Checkpoint.from_pretrained(folder / "model", vocabulary=self.vocabulary)

    def state_vectors(self) -> "dict[str, np.ndarray]":
        """The vectors that were given to its goal-state runs."""
        import numpy as np

        return {
            state: np.array(vector)
            for state, vector in json.loads((self.folder / "state_embs.json").read_text()).items()
        }
