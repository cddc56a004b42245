"""What the tests of fine-tuning share: 120 blood cells with columns of every kind, and a small model."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

import geneformer_repro as gf
from geneformer_repro.finetuning import results
from geneformer_repro.model import MaskedGeneModel, bert_config

TYPES = {"CD14+ Monocyte": 45, "CD19+ B": 45, "CD56+ NK": 30}
OBS = [
    "cell_type", "donor", "sample", "partly", "number", "gap", "large", "flag", "same", "unlabelled", "rare", "size",
    "written", "infinite", "age",
]  # fmt: skip


@pytest.fixture(scope="session")
def few_file(_pbmc, tmp_path_factory):
    """Raw counts of 120 cells of three types, as a file."""
    types = _pbmc.obs["cell_type"].to_numpy()
    few = _pbmc[np.concatenate([np.flatnonzero(types == name)[:n] for name, n in TYPES.items()])].copy()
    types, code = few.obs["cell_type"].to_numpy(), few.obs["cell_type"].map(dict(zip(TYPES, range(3)))).to_numpy()
    i = np.arange(few.n_obs)
    few.obs["donor"] = [f"donor{row % 6}" for row in i]
    few.obs["sample"] = [f"sample{row % 12}" for row in i]
    few.obs["partly"] = pd.Series(types, index=few.obs_names).where(i % 4 > 0)
    few.obs["number"] = code
    few.obs["gap"] = np.where(i % 4 > 0, code.astype(float), np.nan)
    few.obs["large"] = np.where(i % 4 > 0, 1_000_001.0 + code, np.nan)
    few.obs["flag"] = code == 1
    few.obs["same"] = "blood"
    few.obs["unlabelled"] = np.nan
    few.obs["rare"] = np.where(i % 60 == 0, "odd", types)
    few.obs["size"] = few.obs["n_counts"].to_numpy() / 1000
    few.obs["written"] = [f"{row / 2}" for row in i]
    few.obs["infinite"] = np.where(i == 3, np.inf, i)
    few.obs["age"] = 30.0 + i % 6
    path = tmp_path_factory.mktemp("counts") / "few.h5ad"
    few.write_h5ad(path)
    return path


@pytest.fixture
def few_counts(few_file):
    """The same as an AnnData, to be changed at will."""
    return ad.read_h5ad(few_file)


@pytest.fixture(scope="session")
def few(few_file):
    """The same cells, tokenised."""
    return gf.tokenize(few_file, gf.Vocabulary.fit(few_file, max_length=34), obs=OBS)


@pytest.fixture(scope="session")
def untrained():
    """Make a tiny network of a vocabulary, with weights of a size."""

    def make(vocabulary, initializer_range):
        shape = bert_config("tiny", vocabulary)
        shape.initializer_range = initializer_range
        with torch.random.fork_rng():
            torch.manual_seed(7)  # not the seed of the runs, whose random network would be this one
            return gf.Checkpoint(MaskedGeneModel(shape).eval(), vocabulary, name="checkpoint base")

    return make


@pytest.fixture(scope="session")
def base(few, untrained):
    """A network with weights large enough to make cells differ."""
    return untrained(few.vocabulary, 0.2)


@pytest.fixture(scope="session")
def gentle_base(few, untrained):
    """A network with weights as small as pretraining starts from."""
    return untrained(few.vocabulary, 0.02)


@pytest.fixture
def without_pictures(monkeypatch):
    """Leave out what takes most of the time of a small run."""
    monkeypatch.setattr(results, "figures", lambda evaluation: {})
    monkeypatch.setattr(results, "write_page", lambda *given, **options: None)
