"""How far genes move in perturbed cells: against scipy gene by gene, and what is refused."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix
from scipy.stats import wasserstein_distance

from geneformer_repro.errors import InputError
from geneformer_repro.in_silico.networks.perturbed_cells import perturbed_targets

GENES = ["MYC", "TP53", "GAPDH", "CXCL8"]


@pytest.fixture(scope="module")
def cells():
    rng = np.random.default_rng(0)
    label = np.repeat(["none", "MYC", "TP53", "few"], [60, 30, 30, 5]).astype(object)
    counts = rng.poisson(3.0, (125, 4))
    counts[label == "MYC", 0] = 0
    counts[label == "MYC", 3] += 6
    counts[:, 2] += 20
    obs = pd.DataFrame({"perturbed": label}, index=[f"cell{i}" for i in range(125)])
    return ad.AnnData(csr_matrix(counts.astype(np.float32)), obs, pd.DataFrame(index=GENES))


def test_distances_are_those_of_the_distributions_of_log_counts(cells):
    table = perturbed_targets(cells, column="perturbed", control="none").set_index(["perturbed", "target"])
    dense = np.log1p(cells.X.toarray() / cells.X.toarray().sum(axis=1, keepdims=True) * 1e4)
    label = cells.obs["perturbed"].to_numpy()
    slow = wasserstein_distance(dense[label == "MYC", 3], dense[label == "none", 3])
    np.testing.assert_allclose(table.loc[("MYC", "CXCL8"), "wasserstein"], slow)
    assert table.loc[("MYC", "CXCL8"), "p"] < 1e-6
    assert table.loc[("MYC", "MYC"), "p"] < 1e-6
    assert table.loc["TP53", "p"].gt(0.001).all()
    assert set(table.index.get_level_values("perturbed")) == {"MYC", "TP53"}  # few have too few cells


def test_rarely_detected_genes_are_left_out(cells):
    assert set(perturbed_targets(cells, column="perturbed", control="none", min_detection=0.99)["target"]) <= {
        "GAPDH", "MYC", "TP53", "CXCL8",
    }  # fmt: skip
    rare = cells.copy()
    rare.X = csr_matrix(rare.X.multiply(np.array([1, 0, 1, 1])))
    assert "TP53" not in set(perturbed_targets(rare, column="perturbed", control="none")["target"])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"control": "nome"}, "0 cells have perturbed = 'nome'.*Did you mean 'none'"),
        ({"control": "few"}, "5 cells have"),
    ],
    ids=["misspelt", "few"],
)
def test_without_controls_nothing_is_compared(cells, options, says):
    with pytest.raises(InputError, match=says):
        perturbed_targets(cells, column="perturbed", **options)


def test_controls_alone_are_refused(cells):
    with pytest.raises(InputError, match="no label of 'perturbed' but 'none' has 10 cells"):
        perturbed_targets(cells[:60], column="perturbed", control="none")
