"""What several tests need: real cells, small trained-shaped models, and the shared folder where it is there."""

import gc
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import torch
from drawing import blank

import geneformer_repro as gf
from geneformer_repro.finetuning import baselines, metrics
from geneformer_repro.model import MaskedGeneModel, bert_config
from geneformer_repro.tokenizer.vocabulary import Vocabulary


@pytest.fixture(scope="module", autouse=True)
def _little_to_collect() -> None:
    """Leave what is there out of garbage collection: each training begins with one, of half a second for libraries."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with files of slow tests: of two workers, one that came to such a file last would end long after."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


_N_THREADS = torch.get_num_threads()


@pytest.fixture(scope="module", autouse=True)
def _as_many_threads() -> None:
    """Compute with as many threads as at the start, whoever changed that: another number changes last bits."""
    torch.set_num_threads(_N_THREADS)


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
def _pbmc() -> ad.AnnData:
    return gf.datasets.pbmc700()


@pytest.fixture
def pbmc(_pbmc: ad.AnnData) -> ad.AnnData:
    """700 real blood cells with raw counts; a copy, to be changed at will."""
    return _pbmc.copy()


@pytest.fixture(scope="session")
def vocabulary(_pbmc: ad.AnnData) -> Vocabulary:
    """The 754 genes of the blood cells, V2 convention (``<cls>`` … ``<eos>``)."""
    return Vocabulary.fit(_pbmc)


@pytest.fixture(scope="session")
def cells(_pbmc: ad.AnnData, vocabulary: Vocabulary) -> gf.TokenizedDataset:
    """The blood cells, tokenised in memory, with their labels and three made-up donors."""
    adata = _pbmc.copy()
    adata.obs["donor"] = [f"donor{i % 3}" for i in range(adata.n_obs)]
    return gf.tokenize(adata, vocabulary, obs=["cell_type", "phase", "donor", "n_counts"])


@pytest.fixture
def checkpoint(vocabulary: Vocabulary) -> gf.Checkpoint:
    """A tiny untrained model of that vocabulary, with weights large enough to make cells differ."""
    torch.manual_seed(0)
    config = bert_config("tiny", vocabulary)
    config.initializer_range = 0.2
    return gf.Checkpoint(MaskedGeneModel(config).eval(), vocabulary, name="checkpoint tiny")


@pytest.fixture(scope="session", params=["v1", "v2"])
def golden(request: pytest.FixtureRequest, shared: Path) -> "Golden":
    """The published package's results on 14 real cells, in both conventions of special tokens."""
    return Golden(shared / "golden" / request.param)


@pytest.fixture(scope="module")
def few_trees() -> Iterator[None]:
    """Gradient boosting of five trees a class, where it is not asked how good it is: a hundred take ten seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(baselines._BOOSTING, "max_iter", 5)
        yield


@pytest.fixture(scope="module")
def few_resamples() -> Iterator[None]:
    """Intervals of a hundred resamples, where not their ends are the point."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "N_RESAMPLES", 100)
        yield


@pytest.fixture(scope="module")
def blank_pictures() -> Iterator[None]:
    """Pictures without content, where it is not looked at: each takes half a second, and a page draws it again."""
    with blank():
        yield


class Golden:
    """One of the two folders of reference outputs."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.series = folder, folder.name
        tokens = json.loads((folder / "vocabulary.json").read_text())
        self.vocabulary = Vocabulary.from_tokens(tokens, max_length=96)
        self.cells = gf.TokenizedDataset.open(folder / "cells.parquet", self.vocabulary)
        self.checkpoint = gf.Checkpoint.from_pretrained(folder / "model", vocabulary=self.vocabulary)

    def state_vectors(self) -> dict[str, np.ndarray]:
        """The vectors that were given to its goal-state runs."""
        return {
            state: np.array(vector)
            for state, vector in json.loads((self.folder / "state_embs.json").read_text()).items()
        }
