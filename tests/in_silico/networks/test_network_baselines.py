"""What is known of pairs without the model: golden values, slow references, known answers."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix
from scipy.stats import pearsonr, spearmanr

from geneformer_repro.errors import InputError
from geneformer_repro.in_silico.networks.network_baselines import (
    Expression,
    boosted_gain,
    correlation,
    correlation_over_donors,
    degree_product,
    mutual_rank,
    mutual_ranks_of,
    rank_proximity,
    read_expression,
)
from geneformer_repro.tokenizer.genes import GivenGenes

SOURCES, TARGETS = np.array([0, 3]), np.arange(8)


@pytest.fixture(scope="module")
def cells():
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.uniform(0.3, 3, 8), (120, 8)).astype(float)
    counts[:, 5] += 2 * counts[:, 0]
    donors = np.array([f"donor{i % 3}" for i in range(120)], dtype=object)
    return Expression(csr_matrix(np.log1p(counts)), donors, 120)


@pytest.mark.parametrize(("kind", "of"), [("pearson", pearsonr), ("spearman", spearmanr)])
def test_correlations_are_those_of_scipy(cells, kind, of):
    found, dense = correlation(cells, SOURCES, TARGETS, kind=kind), cells.values.toarray()
    slow = [[of(dense[:, a], dense[:, b]).statistic for b in TARGETS] for a in SOURCES]
    np.testing.assert_allclose(found, slow, atol=1e-12)


def test_a_gene_that_is_alike_in_all_cells_correlates_with_none():
    values = csr_matrix(np.column_stack([np.arange(5.0), np.ones(5)]))
    found = correlation(Expression(values, None, 5), np.array([0]), np.array([0, 1]))
    np.testing.assert_allclose(found, [[1, 0]])


def test_the_mean_over_donors_is_of_each_donors_own_correlation(cells):
    dense = cells.values.toarray()
    slow = np.mean([spearmanr(dense[i::3, 0], dense[i::3, 5]).statistic for i in range(3)])
    np.testing.assert_allclose(correlation_over_donors(cells, SOURCES, TARGETS)[0, 5], slow, atol=1e-12)
    assert correlation_over_donors(Expression(cells.values, None, 120), SOURCES, TARGETS) is None


def test_mutual_rank_golden_values():
    of = np.array([[1, 0.9, 0.1, 0.2], [0.9, 1, 0.5, 0.3], [0.1, 0.5, 1, 0.8], [0.2, 0.3, 0.8, 1]])
    assert mutual_rank(of)[0, 1] == 1
    assert mutual_rank(of)[1, 2] == 2
    np.testing.assert_array_equal(mutual_rank(of), mutual_rank(of).T)


def test_mutual_ranks_of_blocks_are_those_of_the_whole_matrix(cells, monkeypatch):
    from geneformer_repro.in_silico.networks import network_baselines

    monkeypatch.setattr(network_baselines, "_TARGETS_AT_ONCE", 3)
    whole = mutual_rank(np.abs(correlation(cells, TARGETS, TARGETS)))
    found = mutual_ranks_of(cells, SOURCES, TARGETS)
    others = SOURCES[:, None] != TARGETS
    np.testing.assert_allclose(found[others], whole[SOURCES][others])


def test_proximity_is_of_places_in_the_cells_that_have_both():
    values = csr_matrix(np.log1p([[12.0, 2, 0.5], [8, 0, 1], [4, 2, 0]]))
    cells = Expression(values, None, 3)  # over non-zero means: 1.5, 1, 2/3; 1, –, 4/3; 1/2, 1, –
    np.testing.assert_array_equal(cells.places.toarray(), [[1, 2, 3], [2, 0, 1], [2, 1, 0]])
    np.testing.assert_allclose(rank_proximity(cells, np.array([0]), np.arange(3)), [[0, -1, -1.5]])
    np.testing.assert_allclose(cells.mean_place, [2 / 3, 0.5, 1])


def test_the_degree_product_leaves_the_pair_itself_out():
    known = np.array([[1, 1, 0], [0, 1, 0]], dtype=bool)
    np.testing.assert_array_equal(degree_product(known), [[0, 1, 0], [1, 0, 0]])


def test_trees_gain_most_by_the_source_that_a_target_follows(cells):
    gain = np.array(list(boosted_gain(cells, SOURCES, np.array([5, 0]), seed=0)))
    assert gain[0, 0] > 10 * gain[0, 1]
    assert gain[1, 0] == 0  # never from itself
    again = np.array(list(boosted_gain(cells, SOURCES, np.array([5, 0]), seed=0)))
    np.testing.assert_array_equal(gain, again)


GENES = GivenGenes(("ENSG00000136997", "ENSG00000141510"), {"MYC": 0, "TP53": 1}, {})


def counted():
    obs = pd.DataFrame({"state": ["a", "b", "a", "a"], "donor": ["x", "x", "y", "y"]}, index=list("pqrs"))
    var = pd.DataFrame(index=["TP53", "unknown", "MYC"])
    return ad.AnnData(csr_matrix(np.array([[1, 8, 1], [5, 5, 0], [0, 0, 4], [2, 2, 0]], dtype=np.float32)), obs, var)


def read(**options):
    given = {"keep": {"state": ["a"]}, "donor": "donor", "max_cells": 10} | options
    return read_expression(counted(), GENES, rng=np.random.default_rng(0), **given)


def test_cells_of_the_state_are_read_per_ten_thousand_of_all_their_counts():
    cells = read()
    np.testing.assert_allclose(cells.values.toarray(), np.log1p([[1000, 1000], [10_000, 0], [0, 5000]]))
    assert cells.donors.tolist() == ["x", "y", "y"]
    assert (cells.n_found, cells.n_donors) == (3, 2)
    np.testing.assert_allclose(cells.detection, [2 / 3, 2 / 3])


def test_of_more_cells_some_are_drawn():
    cells = read(max_cells=2)
    assert cells.values.shape == (2, 2)
    assert cells.n_found == 3


def test_cells_may_be_named():
    cells = read(cell_names=["p", "q"])  # q is of another state
    assert cells.n_found == 1
    with pytest.raises(InputError, match="holds none of the 1 cells"):
        read(cell_names=["q"])


def test_a_state_that_the_counts_lack_is_refused():
    with pytest.raises(InputError, match="no cell has state = 'c', of which the network is"):
        read(keep={"state": ["c"]})


def test_counts_of_other_genes_are_refused():
    other = counted()
    other.var_names = ["x1", "x2", "x3"]
    with pytest.raises(InputError, match="none of its genes is in the network"):
        read_expression(other, GENES, keep={}, donor=None, max_cells=5, rng=np.random.default_rng(0))
