"""Our networks as models of drevalpy: against the least of its interface, and the package where there is one."""

import sys
from abc import ABC, abstractmethod
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from test_finetune_response import DRUGS, screen

import geneformer_repro as gf
from geneformer_repro.checkpoint import Checkpoint
from geneformer_repro.errors import MissingExtraError

pytest.importorskip("rdkit", reason="needs RDKit: pip install 'geneformer-repro[drug]'")
pytestmark = pytest.mark.slow

CONFIG = gf.ResponseConfig(
    measure="LN_IC50",
    network={"model": "tdnn", "drug_input": "fingerprint", "sample_layers": (32,), "drug_layers": (32,)},
    training={"epochs": 6, "batch_size": 16, "learning_rate": 3e-3},
    split={"by": "sample"},
)
CANDIDATES = [{"learning_rate": 3e-3}, {"learning_rate": 1e-3, "dropout": 0.1}]


class Features:
    """The least of drevalpy's ``FeatureDataset``."""

    def __init__(self, features, meta_info=None):
        self.features, self.meta_info = features, meta_info or {}


class Rows:
    """The least of drevalpy's ``DrugResponseDataset``."""

    def __init__(self, response, cell_line_ids, drug_ids):
        self.response, self.cell_line_ids, self.drug_ids = response, cell_line_ids, drug_ids

    def __len__(self):
        return len(self.response)


class Model(ABC):
    """The least of drevalpy's ``DRPModel``."""

    def __init__(self):
        self.logged = []

    def log_hyperparameters(self, hyperparameters):
        self.logged.append(hyperparameters)

    @classmethod
    @abstractmethod
    def get_model_name(cls): ...
    @property
    @abstractmethod
    def cell_line_views(self): ...
    @property
    @abstractmethod
    def drug_views(self): ...
    @abstractmethod
    def build_model(self, hyperparameters): ...
    @abstractmethod
    def train(self, output, cell_line_input, drug_input, output_earlystopping, model_checkpoint_dir): ...
    @abstractmethod
    def predict(self, cell_line_ids, drug_ids, cell_line_input, drug_input): ...
    @abstractmethod
    def load_cell_line_features(self, data_path, dataset_name): ...
    @abstractmethod
    def load_drug_features(self, data_path, dataset_name): ...


def _genes(view, gene_list, data_path, dataset_name):
    table = pd.read_csv(f"{data_path}/{dataset_name}/{view}.csv", index_col="cell_line_name")
    features = {line: {view: row.to_numpy(float)} for line, row in table.iterrows()}
    return Features(features, {view: table.columns.to_numpy()})


@pytest.fixture(scope="module", params=["least", "package"])
def rows_of(request):
    """Make a data set of pairs, with drevalpy or what stands in for it."""
    if request.param == "package":
        pytest.importorskip("drevalpy", reason="needs drevalpy: pip install drevalpy")
        from drevalpy.datasets.dataset import DrugResponseDataset

        yield DrugResponseDataset
        return
    parts = {
        "models.drp_model": {"DRPModel": Model},
        "models.utils": {"load_and_select_gene_features": _genes},
        "datasets.dataset": {"FeatureDataset": Features},
    }
    with pytest.MonkeyPatch.context() as patch:
        for name in ("", ".models", ".datasets", *(f".{name}" for name in parts)):
            module = ModuleType(f"drevalpy{name}")
            vars(module).update(parts.get(name[1:], {}))
            patch.setitem(sys.modules, module.__name__, module)
        yield Rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data set of the benchmark, as files; one SMILES cannot be read."""
    folder = tmp_path_factory.mktemp("data") / "toy"
    folder.mkdir()
    expression, table = screen(60)
    expression.rename_axis("cell_line_name").to_csv(folder / "gene_expression.csv")
    smiles = pd.DataFrame({"pubchem_id": range(6), "canonical_smiles": DRUGS.values()})
    smiles.loc[6] = [6, "C1CC"]
    smiles.to_csv(folder / "drug_smiles.csv", index=False)
    table["drug"] = table["drug"].map({name: str(i) for i, name in enumerate(DRUGS)})
    table.to_csv(folder / "toy.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def parts(folder, rows_of):
    """Pairs to train on, to choose the epoch by, and to test: each of other lines."""
    table = pd.read_csv(folder / "toy.csv", dtype={"drug": str})
    line = table["sample"].str[2:].astype(int)
    return [
        rows_of(
            response=part["ln_ic50"].to_numpy(),
            cell_line_ids=part["sample"].to_numpy(),
            drug_ids=part["drug"].to_numpy(),
        )
        for part in (table[line < 36], table[(line >= 36) & (line < 46)], table[line >= 46])
    ]


@pytest.fixture(scope="module")
def trained(folder, parts, tmp_path_factory):
    """A model that learned, and features of all lines and drugs."""
    model = gf.drevalpy_model(CONFIG, name="OurTDNN", hyperparameters=CANDIDATES)()
    model.build_model(model.get_hyperparameter_set()[0])
    features = [load(str(folder.parent), "toy") for load in (model.load_cell_line_features, model.load_drug_features)]
    model.train(parts[0], *features, parts[1], model_checkpoint_dir=str(work := tmp_path_factory.mktemp("work")))
    assert not list(work.iterdir()), "nothing is left that another fold would go on with"
    return model, features


def test_it_learns_what_a_new_line_responds_to_and_the_rows_keep_their_order(trained, parts):
    model, features = trained
    assert model.get_model_name() == "OurTDNN"
    assert model.get_hyperparameter_set() == CANDIDATES
    assert list(features[1].features) == [str(i) for i in range(6)], "the drug that cannot be read is left out"
    test = parts[2]
    said = model.predict(test.cell_line_ids, test.drug_ids, *features)
    means = pd.Series(parts[0].response).groupby(parts[0].drug_ids).mean()
    beyond = [values - means[test.drug_ids].to_numpy() for values in (said, test.response)]
    assert np.corrcoef(*beyond)[0, 1] > 0.6
    backwards = model.predict(test.cell_line_ids[::-1], test.drug_ids[::-1], *features)
    np.testing.assert_allclose(backwards[::-1], said, rtol=1e-5)


def test_it_is_saved_as_a_checkpoint_and_opened_again(trained, parts, tmp_path):
    model, features = trained
    model.save(str(tmp_path / "model"))
    asked = (parts[2].cell_line_ids, parts[2].drug_ids, *features)
    np.testing.assert_array_equal(type(model).load(str(tmp_path / "model")).predict(*asked), model.predict(*asked))
    assert Checkpoint.from_pretrained(tmp_path / "model").pair_network.target.measure == "LN_IC50"


def test_a_benchmark_that_splits_otherwise_than_said_is_refused(folder, parts, tmp_path):
    model = gf.drevalpy_model(CONFIG, name="OurTDNN")()
    model.build_model({})
    features = [load(str(folder.parent), "toy") for load in (model.load_cell_line_features, model.load_drug_features)]
    with pytest.raises(gf.InputError, match="not trained yet"):
        model.predict(parts[2].cell_line_ids, parts[2].drug_ids, *features)
    with pytest.raises(gf.InputError, match=r"split.by='sample', and 36 samples .* \"pair\" for LPO"):
        model.train(parts[0], *features, parts[0], str(tmp_path / "work"))


def test_without_structures_no_drug_has_features(rows_of, folder):
    config = gf.ResponseConfig(measure="AUC", network={"model": "tdnn", "drug_input": "one_hot"})
    model = gf.drevalpy_model(config, name="ByName")()
    assert model.load_drug_features(str(folder.parent), "toy") is None
    assert list(model.drug_views) == []


@pytest.mark.parametrize(
    ("config", "said"),
    [
        pytest.param({"network": {"model": "encoder"}, "measure": "AUC"}, "reads something else", id="encoder"),
        pytest.param({"network": {"model": "conv_nn"}}, "measure is missing", id="no measure"),
    ],
)
def test_what_the_benchmark_does_not_have_is_refused(config, said):
    with pytest.raises(gf.InputError, match=said):
        gf.drevalpy_model(gf.ResponseConfig(**config), name="x")


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "drevalpy", None)
    with pytest.raises(MissingExtraError, match="pip install drevalpy"):
        gf.drevalpy_model(CONFIG, name="x")
