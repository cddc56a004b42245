"""Counts of a network's cells: one reader, correlations of pairs, fold changes of genes."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix
from scipy.stats import pearsonr, spearmanr

from geneformer_repro.errors import InputError
from geneformer_repro.in_silico.networks import network_expression
from geneformer_repro.in_silico.networks.network_baselines import Expression
from geneformer_repro.in_silico.networks.network_expression import CellCounts, correlation, log2_fold_changes
from geneformer_repro.tokenizer.genes import GivenGenes

SOURCES, TARGETS = np.array([0, 3]), np.arange(8)


@pytest.fixture(scope="module")
def values():
    counts = np.random.default_rng(0).poisson(np.linspace(0.3, 3, 8), (120, 8)).astype(float)
    return csr_matrix(np.log1p(counts))


@pytest.mark.parametrize(("kind", "of"), [("pearson", pearsonr), ("spearman", spearmanr)])
def test_correlations_are_those_of_scipy(values, kind, of, monkeypatch):
    monkeypatch.setattr(network_expression, "_TARGETS_AT_ONCE", 3)
    dense = values.toarray()
    slow = [[of(dense[:, a], dense[:, b]).statistic for b in TARGETS] for a in SOURCES]
    np.testing.assert_allclose(correlation(values, SOURCES, TARGETS, kind=kind), slow, atol=1e-12)


def test_nothing_is_known_of_a_gene_that_is_alike_in_all_cells_nor_of_few_cells():
    values = csr_matrix(np.column_stack([np.arange(20.0), np.ones(20)]))
    np.testing.assert_allclose(correlation(values, np.array([0]), np.array([0, 1])), [[1, np.nan]])
    assert np.isnan(correlation(values[:19], np.array([0]), np.array([0]))).all()


GENES = GivenGenes(("ENSG00000136997", "ENSG00000141510"), {"MYC": 0, "TP53": 1}, {})


def counted():
    obs = pd.DataFrame({"state": ["a", "b", "a", "a"], "donor": ["x", "x", "y", "y"]}, index=list("pqrs"))
    var = pd.DataFrame(index=["TP53", "unknown", "MYC"])
    return ad.AnnData(csr_matrix(np.array([[1, 8, 1], [5, 5, 0], [0, 0, 4], [2, 2, 0]], dtype=np.float32)), obs, var)


def read(**options):
    given = {"keep": {"state": ["a"]}, "donor": "donor", "max_cells": 10} | options
    return CellCounts.read(counted(), GENES, rng=np.random.default_rng(0), **given)


def test_cells_of_the_state_are_read_per_ten_thousand_of_all_their_counts():
    cells = read()
    np.testing.assert_allclose(cells.logged().toarray(), np.log1p([[1000, 1000], [10_000, 0], [0, 5000]]))
    assert cells.donor.tolist() == ["x", "y", "y"]
    assert cells.n_found == 3
    np.testing.assert_allclose(Expression.of(cells).detection, [2 / 3, 2 / 3])


def test_of_more_cells_some_are_drawn():
    cells = read(max_cells=2)
    assert cells.counts.shape == (2, 2)
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
    with pytest.raises(InputError, match="none of its 3 genes is one of the network's 2"):
        CellCounts.read(other, GENES)


def test_cells_of_a_state_and_donor_are_those_of_the_whole_file():
    cells = CellCounts.read(counted(), GENES, by="state", donor="donor")
    of_group = cells.of("a", "y")
    np.testing.assert_array_equal(of_group.counts.toarray(), [[4, 0], [0, 2]])
    np.testing.assert_array_equal(of_group.totals, [4, 4])
    with pytest.raises(InputError, match="no cell in state 'b' of donor 'y'"):
        cells.of("b", "y")


def test_a_fold_change_is_of_all_counts_of_a_cell_not_of_the_genes_that_are_looked_at():
    counts = np.array([[10, 10, 980], [20, 10, 970]] * 2, dtype=np.float32)
    adata = ad.AnnData(
        counts,
        pd.DataFrame({"state": ["a", "b"] * 2, "donor": ["x", "x", "y", "y"]}, index=list("pqrs")),
        pd.DataFrame(index=["MYC", "TP53", "unknown"]),
    )
    found = log2_fold_changes(CellCounts.read(adata, GENES, by="state", donor="donor"), "a", "b")
    assert found.shape == (2, 2)
    np.testing.assert_allclose(found[0], [np.log2(22 / 12), 0], atol=1e-9)  # a prior count of 2 in libraries of 1,000
