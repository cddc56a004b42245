"""The methods every model is printed beside: equal to their plain spellings, and blind to what should not matter."""

import logging
from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression

import geneformer_repro as gf
from geneformer_repro.finetuning import baselines as module
from geneformer_repro.finetuning.baselines import (
    Features,
    GeneInputs,
    coexpression,
    gene_features,
)
from geneformer_repro.finetuning.kinds import classes
from geneformer_repro.finetuning.kinds.classes import CLASS_METHODS, GENE_METHODS
from geneformer_repro.finetuning.kinds.numbers import NUMBER_METHODS
from geneformer_repro.tokenizer.counts import log_normalise, rank_values, vocabulary_counts

TYPES = ("CD14+ Monocyte", "CD19+ B", "CD56+ NK")
MAJORITY, ON_COUNTS = "majority class", "logistic regression, counts"
NEED_COUNTS = [name for name in CLASS_METHODS if "counts" in name]


@pytest.fixture(scope="module")
def features(_pbmc, cells):
    """All that is known of the blood cells; the "embedding" is 20 expressed genes."""
    counts = csr_matrix(_pbmc.X)
    return Features(counts, rank_values(cells), embedding=log_normalise(counts)[:, :20].toarray())


@pytest.fixture(scope="module")
def few(_pbmc):
    """Training rows, test rows and class of each blood cell, for cells of three types."""
    rows = np.flatnonzero(np.isin(_pbmc.obs["cell_type"], TYPES))
    return rows[::2], rows[1::2], pd.Categorical(_pbmc.obs["cell_type"], categories=TYPES).codes.astype(int)


def probabilities(name, features, train, codes, test, *, n_classes=3, seed=0):
    return CLASS_METHODS[name](features, train, codes[train], n_classes, test, seed)


def accuracy(found, codes):
    return (found.argmax(axis=1) == codes).mean()


@pytest.fixture
def few_rounds(monkeypatch):
    """Trees that are quickly grown, where not their accuracy is the point."""
    monkeypatch.setitem(module._BOOSTING, "max_iter", 5)


# Classes of cells


def test_majority_gives_the_shares_of_the_training_cells(features):
    found = CLASS_METHODS[MAJORITY](features, np.arange(4), np.array([1, 0, 1, 1]), 3, np.arange(4, 6), 0)
    np.testing.assert_allclose(found, [[0.25, 0.75, 0]] * 2)


def test_regression_on_counts_is_its_plain_spelling(features, few):
    train, test, codes = few
    dense = features.counts.toarray().astype(np.float64)
    logs = np.log1p(dense / dense.sum(1, keepdims=True) * 1e4)
    expected = LogisticRegression(max_iter=2000).fit(logs[train], codes[train]).predict_proba(logs[test])
    np.testing.assert_allclose(probabilities(ON_COUNTS, features, train, codes, test), expected, atol=1e-3)


def test_methods_on_counts_do_not_see_sequencing_depth(features, few):
    train, test, codes = few
    deeper = features.counts.multiply(np.arange(1, features.counts.shape[0] + 1)[:, None])
    for name in (ON_COUNTS, "nearest neighbours, PCA of counts"):
        found = [
            probabilities(name, replace(features, counts=c), train, codes, test)
            for c in (features.counts, deeper.tocsr())
        ]
        np.testing.assert_allclose(*found, atol=1e-3)


def test_regression_on_an_embedding_does_not_see_the_scale_of_a_dimension(features, few):
    train, test, codes = few
    rescaled = replace(features, embedding=features.embedding * np.geomspace(1e-3, 1e3, 20) + 5)
    name = "logistic regression, frozen embedding"
    found = [probabilities(name, given, train, codes, test) for given in (features, rescaled)]
    np.testing.assert_allclose(*found, atol=1e-3)


@pytest.mark.parametrize("name", [name for name in CLASS_METHODS if name != MAJORITY])
def test_every_method_tells_real_cell_types_apart(features, few, name):
    train, test, codes = few
    least = 0.6 if "embedding" in name else 0.95
    assert accuracy(probabilities(name, features, train, codes, test), codes[test]) > least
    assert least > accuracy(probabilities(MAJORITY, features, train, codes, test), codes[test])


@pytest.mark.parametrize("name", CLASS_METHODS)
@pytest.mark.parametrize(
    "present",
    [
        pytest.param([1, 3, 3, 1, 3], id="five_cells"),
        pytest.param([1, 3, 1, 1, 1, 1, 1, 1], id="class_with_one_cell"),
        pytest.param([3, 3, 3], id="single_class"),
        pytest.param([1, 3], id="two_cells"),
    ],
)
@pytest.mark.usefixtures("few_rounds")
def test_few_cells_give_probabilities_in_the_column_of_their_class(features, name, present):
    codes, test = np.array(present), np.arange(100, 130)
    found = CLASS_METHODS[name](features, np.arange(len(codes)), codes, 5, test, 0)
    assert found.shape == (30, 5)
    assert (found >= 0).all()
    np.testing.assert_allclose(found.sum(axis=1), 1)
    np.testing.assert_array_equal(found[:, np.setdiff1d(np.arange(5), codes)], 0)


def other_values(features, rows):
    """The same features, with noise in these rows."""
    rng = np.random.default_rng(0)
    counts, ranks, embedding = features.counts.tolil(), features.ranks.tolil(), features.embedding.copy()
    counts[rows] = rng.poisson(50, size=(len(rows), counts.shape[1]))
    ranks[rows] = rng.random((len(rows), ranks.shape[1]))
    embedding[rows] = 1e3 * rng.normal(size=(len(rows), embedding.shape[1]))
    return Features(csr_matrix(counts), csr_matrix(ranks), embedding=embedding)


@pytest.mark.parametrize("name", CLASS_METHODS)
@pytest.mark.usefixtures("few_rounds")
def test_nothing_is_fitted_on_test_cells(features, few, name):
    train, test, codes = few
    changed = other_values(features, test[20:])
    found = [probabilities(name, given, train, codes, test[:20]) for given in (features, changed)]
    beside = probabilities(name, changed, train, codes, test)[:20]
    np.testing.assert_array_equal(*found)
    np.testing.assert_allclose(beside, found[0], atol=1e-9)


@pytest.mark.parametrize("name", CLASS_METHODS)
@pytest.mark.usefixtures("few_rounds")
def test_the_same_seed_gives_the_same_probabilities(features, few, name):
    train, test, codes = few
    found = [probabilities(name, features, train, codes, test, seed=3) for _ in range(2)]
    np.testing.assert_array_equal(*found)


def test_without_counts_the_methods_that_need_them_give_none(features, few):
    train, test, codes = few
    without = replace(features, counts=None)
    missing = [name for name in CLASS_METHODS if probabilities(name, without, train, codes, test) is None]
    assert missing == NEED_COUNTS
    assert NUMBER_METHODS["ridge, counts"](without, train, codes[train], test, 0) is None


def test_regression_that_has_not_converged_still_predicts(features, few, monkeypatch):
    monkeypatch.setattr(classes, "_MAX_ITERATIONS", 1)
    train, test, codes = few
    assert np.isfinite(probabilities(ON_COUNTS, features, train, codes, test)).all()


def test_regression_on_counts_and_ranks_is_as_good_as_on_principal_components(shared):
    """Accuracy 0.868 and macro-F1 0.772 with 50 components: data/README.md, "Plain models"."""
    adata = ad.read_h5ad(shared / "data" / "kang_ifnb" / "kang_ifnb.h5ad")
    cells = gf.tokenize(adata, gf.Vocabulary.fit(adata))
    features = Features(csr_matrix(adata.X), rank_values(cells), embedding=np.zeros((adata.n_obs, 1)))
    held_out = adata.obs["donor"].astype(str).isin(["1015", "101"]).to_numpy()
    train, test, codes = (
        np.flatnonzero(~held_out),
        np.flatnonzero(held_out),
        adata.obs["cell_type"].cat.codes.to_numpy(),
    )
    for name in (ON_COUNTS, "logistic regression, rank values"):
        assert accuracy(probabilities(name, features, train, codes, test, n_classes=13), codes[test]) > 0.855


@pytest.mark.usefixtures("few_rounds")
def test_trees_of_many_cells_are_fitted_on_a_sample_with_each_class_s_share_and_the_log_says_so(features, few, caplog):
    train, test, codes = few
    make = module.on_few_genes(classes._boosted_class)
    capped = classes._probabilities("expression", make, most=40)
    with caplog.at_level(logging.INFO, logger="geneformer_repro"):
        found = capped(features, train, codes[train], 3, test, 0)
    assert f"fitted on a random 40 of the {len(train)} training cells, classes by their shares" in caplog.text
    chosen = module.sample(codes[train], 40, 0)
    shares = np.bincount(codes[train]) / len(train)
    np.testing.assert_allclose(np.bincount(codes[train][chosen]), 40 * shares, atol=1)
    name = "gradient boosting, counts"
    np.testing.assert_array_equal(found, probabilities(name, features, train[chosen], codes, test))
    np.testing.assert_array_equal(module.sample(codes[train], len(train), 0), np.arange(len(train)))


@pytest.mark.usefixtures("few_rounds")
def test_asking_trees_some_cells_at_a_time_changes_no_bit(features, few, monkeypatch):
    name, (train, test, codes) = "gradient boosting, counts", few
    expected = [probabilities(name, features, train, codes, test),
                NUMBER_METHODS[name](features, train, codes[train].astype(float), test, 0)]  # fmt: skip
    monkeypatch.setattr(module, "_ASKED_AT_ONCE", 7)
    np.testing.assert_array_equal(probabilities(name, features, train, codes, test), expected[0])
    np.testing.assert_array_equal(
        NUMBER_METHODS[name](features, train, codes[train].astype(float), test, 0), expected[1]
    )


def test_few_training_cells_are_enough_for_trees_to_tell_types_apart(features, few):
    train, test, codes = few
    train = np.concatenate([train[codes[train] == code][:5] for code in range(3)])
    assert accuracy(probabilities("gradient boosting, counts", features, train, codes, test), codes[test]) > 0.6


# Numbers of cells


def test_mean_is_the_mean_of_the_training_cells(features):
    found = NUMBER_METHODS["mean"](features, np.arange(3), np.array([1.0, 2.0, 6.0]), np.arange(3, 5), 0)
    np.testing.assert_allclose(found, [3, 3])


@pytest.mark.parametrize("name", [name for name in NUMBER_METHODS if name != "mean"])
def test_every_method_learns_a_number(features, pbmc, name):
    values = np.log(np.asarray(pbmc.obs["n_counts"]))
    train, test = np.arange(0, 700, 2), np.arange(1, 700, 2)
    found = NUMBER_METHODS[name](features, train, values[train], test, 0)
    assert np.corrcoef(found, values[test])[0, 1] > 0.4


@pytest.mark.parametrize("name", NUMBER_METHODS)
@pytest.mark.usefixtures("few_rounds")
def test_numbers_from_few_cells_are_blind_to_other_test_cells(features, name):
    values, test = np.array([1.0, 4.0, 2.0, 3.0, 0.5]), np.arange(5, 9)
    changed = other_values(features, np.arange(9, 20))
    found = [NUMBER_METHODS[name](given, np.arange(5), values, test, 0) for given in (features, changed)]
    assert found[0].shape == (4,)
    assert np.isfinite(found[0]).all()
    np.testing.assert_array_equal(*found)


# Genes


@pytest.fixture(scope="module")
def genes(cells):
    """Positions of 60 genes, not in order, the last ones detected in few cells."""
    order = np.argsort(-rank_values(cells).getnnz(axis=0), kind="stable")
    return np.concatenate([order[40::-1], order[-19:]])


def test_gene_features_are_their_slow_spelling(cells, pbmc, genes):
    counts = vocabulary_counts(cells, pbmc)
    found = gene_features(cells, counts, genes)
    ranks = pd.DataFrame(rank_values(cells).toarray().astype(np.float64)).iloc[:, genes]
    ranks = ranks.where(ranks > 0)
    logs = log_normalise(counts).toarray()[:, genes]
    expected = {
        "detection_rate": ranks.notna().mean(),
        "mean_rank_value": ranks.mean(),
        "sd_rank_value": ranks.std(ddof=0),
        "log_median": np.log(cells.vocabulary.medians[genes]),
        "mean_expression": logs.mean(axis=0),
        "cv_expression": logs.std(axis=0) / logs.mean(axis=0),
    }
    assert found.index.tolist() == [cells.vocabulary.gene_ids[gene] for gene in genes]
    pd.testing.assert_frame_equal(
        found.reset_index(drop=True), pd.DataFrame(expected).reset_index(drop=True), atol=1e-5
    )


def test_a_gene_that_no_cell_expresses_has_no_mean_rank(cells, pbmc):
    one, counts = cells.select([0]), vocabulary_counts(cells, pbmc)[:1]
    absent = np.setdiff1d(np.arange(len(cells.vocabulary)), cells.vocabulary.genes_of(cells[0]))[:2]
    found = gene_features(one, counts, absent)
    assert (found["detection_rate"] == 0).all()
    assert found[["mean_rank_value", "sd_rank_value", "cv_expression"]].isna().all(axis=None)


def test_features_of_genes_need_neither_counts_nor_medians(golden):
    found = gene_features(golden.cells, None, np.arange(5))
    assert found.columns.tolist() == ["detection_rate", "mean_rank_value", "sd_rank_value"]


def test_products_of_coexpression_vectors_are_correlations(cells, genes):
    found = coexpression(cells, genes[:40], n=39, seed=0)
    expected = np.corrcoef(rank_values(cells).toarray()[:, genes[:40]].T)
    np.testing.assert_allclose((found @ found.T), expected, atol=0.15)  # one of 40 components is left out
    np.testing.assert_array_equal(found, coexpression(cells, genes[:40], n=39, seed=0))


def test_coexpression_of_few_genes_or_cells_is_shorter(cells, genes):
    assert coexpression(cells, genes, seed=0).shape == (60, 32)
    assert coexpression(cells, genes[:10], seed=0).shape == (10, 9)
    assert coexpression(cells.select(np.arange(8)), genes, seed=0).shape == (60, 7)


@pytest.mark.parametrize("name", GENE_METHODS)
def test_methods_for_genes_tell_often_detected_ones_where_they_can(cells, genes, name):
    rng = np.random.default_rng(0)
    features, vectors = gene_features(cells, None, genes), coexpression(cells, genes, seed=0)
    features["unknown"] = np.nan
    inputs = GeneInputs(features, vectors, rng.normal(size=(60, 8)), embedding=vectors[:, :4])
    codes = (features["detection_rate"] > 0.3).to_numpy().astype(int)
    train, test = np.arange(0, 60, 2), np.arange(1, 60, 2)
    found = GENE_METHODS[name](inputs, train, codes[train], 3, test, 0)
    assert found.shape == (30, 3)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    np.testing.assert_array_equal(found[:, 2], 0)
    assert accuracy(found, codes[test]) > (0.9 if "gene features" in name and "regression" in name else 0.3)
