"""The methods every model is printed beside: equal to their plain spellings, and blind to what should not matter."""

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression

from geneformer_repro import InputError
from geneformer_repro.finetuning.baselines import (
    counts_of,
    log_normalise,
    logistic_regression_on_counts,
    logistic_regression_on_embedding,
    majority,
)
from geneformer_repro.tokenizer.readers import open_counts

TYPES = ("CD14+ Monocyte", "CD19+ B", "CD56+ NK")


@pytest.fixture(scope="module")
def two_parts(_pbmc):
    """Counts and labels of training cells, counts and labels of other cells, three types."""
    few = _pbmc[np.isin(_pbmc.obs["cell_type"], TYPES)]
    counts, labels = csr_matrix(few.X), few.obs["cell_type"].to_numpy().astype(str)
    return counts[::2], labels[::2], counts[1::2], labels[1::2]


def test_majority_is_the_commonest_class_everywhere():
    np.testing.assert_array_equal(majority(np.array(["b", "a", "a"]), 4), ["a"] * 4)


def test_log_normalise_is_scanpys(pbmc):
    counts = csr_matrix(pbmc.X)
    before = counts.copy()
    pbmc.X = counts.toarray()
    sc.pp.normalize_total(pbmc, target_sum=1e4)
    sc.pp.log1p(pbmc)
    np.testing.assert_allclose(log_normalise(counts).toarray(), pbmc.X, rtol=1e-6)
    np.testing.assert_array_equal(counts.toarray(), before.toarray())


def test_an_empty_cell_stays_empty():
    found = log_normalise(csr_matrix(np.array([[0.0, 0.0], [1.0, 3.0]])))
    np.testing.assert_allclose(found.toarray(), [[0, 0], np.log1p([2500, 7500])])


def test_regression_on_counts_is_its_plain_spelling(two_parts):
    train, labels, test, _ = two_parts
    dense_train, dense_test = (np.log1p(part / part.sum(1, keepdims=True) * 1e4) for part in map(_dense, (train, test)))
    highest = np.where(dense_train.max(0) > 0, dense_train.max(0), 1)
    model = LogisticRegression(max_iter=2000).fit(dense_train / highest, labels)
    expected = model.predict(dense_test / highest)
    np.testing.assert_array_equal(logistic_regression_on_counts(train, labels, test), expected)


def _dense(counts):
    return counts.toarray().astype(np.float64)


def test_regression_on_counts_tells_real_cell_types_apart(two_parts):
    train, labels, test, true = two_parts
    found = logistic_regression_on_counts(train, labels, test)
    assert (found == true).mean() > 0.95 > (majority(labels, len(true)) == true).mean()


def test_regression_on_counts_does_not_see_sequencing_depth(two_parts):
    train, labels, test, _ = two_parts
    deeper = csr_matrix(test.multiply(np.arange(1, test.shape[0] + 1)[:, None]))
    shallow, deep = (logistic_regression_on_counts(train, labels, cells) for cells in (test, deeper))
    np.testing.assert_array_equal(shallow, deep)


def test_regression_on_an_embedding_does_not_see_the_scale_of_a_dimension(two_parts):
    train, labels, test, true = two_parts
    vectors, others = log_normalise(train)[:, :40].toarray(), log_normalise(test)[:, :40].toarray()
    scale = np.geomspace(1e-3, 1e3, 40)
    plain = logistic_regression_on_embedding(vectors, labels, others)
    rescaled = logistic_regression_on_embedding(vectors * scale + 5, labels, others * scale + 5)
    np.testing.assert_array_equal(plain, rescaled)
    assert (plain == true).mean() > (majority(labels, len(true)) == true).mean()


@pytest.mark.parametrize("on_disk", [False, True], ids=["AnnData", "h5ad"])
def test_counts_are_joined_by_cell_name_in_any_order(pbmc, tmp_path, on_disk):
    pbmc.write_h5ad(tmp_path / "cells.h5ad")
    source = open_counts(tmp_path / "cells.h5ad" if on_disk else pbmc)
    order = np.random.default_rng(0).permutation(pbmc.n_obs)[:50]
    found = counts_of(source, pbmc.obs_names.to_numpy()[order])
    np.testing.assert_array_equal(found.toarray(), pbmc.X[order].toarray())


def test_cells_that_are_not_in_the_counts_are_refused(pbmc):
    names = np.array([pbmc.obs_names[0], "AAAC-elsewhere", "AAAG-elsewhere"], dtype=object)
    with pytest.raises(InputError, match=r"AnnData: 2 of 3 cells.*not in it \(first: 'AAAC-elsewhere'\).*not where"):
        counts_of(open_counts(pbmc), names)


def test_normalised_values_are_refused_as_counts(pbmc):
    normalised = ad.AnnData(log_normalise(csr_matrix(pbmc.X)), obs=pbmc.obs, var=pbmc.var)
    with pytest.raises(InputError, match="raw counts"):
        counts_of(open_counts(normalised), pbmc.obs_names.to_numpy())
