"""What is known of pairs without the model: golden values, slow references, known answers."""

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from scipy.stats import spearmanr

from geneformer_repro.in_silico.networks.network_baselines import (
    Expression,
    boosted_gain,
    correlation_over_donors,
    degree_product,
    mutual_rank,
    mutual_ranks_of,
    rank_proximity,
)
from geneformer_repro.in_silico.networks.network_expression import correlation

SOURCES, TARGETS = np.array([0, 3]), np.arange(8)


@pytest.fixture(scope="module")
def cells():
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.uniform(0.3, 3, 8), (120, 8)).astype(float)
    counts[:, 5] += 2 * counts[:, 0]
    donors = np.array([f"donor{i % 3}" for i in range(120)], dtype=object)
    return Expression(csr_matrix(np.log1p(counts)), donors, 120)


def test_the_mean_over_donors_is_of_each_donors_own_correlation(cells):
    dense = cells.values.toarray()
    slow = np.mean([spearmanr(dense[i::3, 0], dense[i::3, 5]).statistic for i in range(3)])
    np.testing.assert_allclose(correlation_over_donors(cells, SOURCES, TARGETS)[0, 5], slow, atol=1e-12)
    assert correlation_over_donors(Expression(cells.values, None, 120), SOURCES, TARGETS) is None


def test_a_donor_in_which_a_gene_is_alike_in_all_cells_says_nothing_of_it(cells):
    values = cells.values.tolil()
    values[0::3, 0] = 1.0
    found = correlation_over_donors(Expression(csr_matrix(values), cells.donors, 120), SOURCES, TARGETS)
    dense = cells.values.toarray()
    slow = np.mean([spearmanr(dense[i::3, 0], dense[i::3, 5]).statistic for i in (1, 2)])
    np.testing.assert_allclose(found[0, 5], slow, atol=1e-12)


def test_mutual_rank_golden_values():
    of = np.array([[1, 0.9, 0.1, 0.2], [0.9, 1, 0.5, 0.3], [0.1, 0.5, 1, 0.8], [0.2, 0.3, 0.8, 1]])
    assert mutual_rank(of)[0, 1] == 1
    assert mutual_rank(of)[1, 2] == 2
    np.testing.assert_array_equal(mutual_rank(of), mutual_rank(of).T)


def test_mutual_ranks_of_blocks_are_those_of_the_whole_matrix(cells, monkeypatch):
    from geneformer_repro.in_silico.networks import network_expression

    monkeypatch.setattr(network_expression, "_TARGETS_AT_ONCE", 3)
    whole = mutual_rank(np.abs(correlation(cells.values, TARGETS, TARGETS)))
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
