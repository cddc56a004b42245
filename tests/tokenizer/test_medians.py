import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.sparse import csr_matrix

from geneformer_repro.tokenizer.medians import TARGET_SUM, NonzeroMedians

GENES = ("a", "b", "c", "d", "e")
RTOL = 1e-12


def medians(counts, n_counts=None, genes=GENES, *, blocks=1):
    found = NonzeroMedians()
    totals = counts.sum(axis=1) if n_counts is None else n_counts
    for part, total in zip(np.array_split(counts, blocks), np.array_split(totals, blocks), strict=True):
        found.add(csr_matrix(part), total, genes)
    return found.result()


def slowly(counts, n_counts, genes):
    """One gene at a time, with numpy's median."""
    of_gene = {}
    for gene, column in zip(genes, counts.T, strict=True):
        expressed = column > 0
        if expressed.any():
            of_gene[gene] = np.median(column[expressed].astype(np.float64) / n_counts[expressed] * 10_000)
    return of_gene


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    np.testing.assert_allclose([found[gene] for gene in expected], list(expected.values()), rtol=RTOL)


@pytest.fixture
def real(pbmc):
    return pbmc.X.toarray(), pbmc.obs["n_counts"].to_numpy(), tuple(pbmc.var_names)


def test_medians_of_real_cells_are_those_of_numpy(real):
    assert_same(medians(*real), slowly(*real))


@settings(deadline=None, max_examples=80, database=None)
@given(arrays(np.float32, (7, 5), elements=st.integers(0, 5).map(float)), st.integers(1, 7))
def test_any_medians_are_those_of_numpy_however_the_cells_are_cut(counts, blocks):
    totals = np.full(7, 30.0)
    assert_same(medians(counts, totals, blocks=blocks), slowly(counts, totals, GENES))


@pytest.mark.parametrize("blocks", [2, 7, 700])
def test_blocks_give_the_same_medians_as_the_whole(real, blocks):
    assert medians(*real, blocks=blocks) == medians(*real)


def test_the_order_of_cells_does_not_matter(real):
    counts, totals, genes = real
    assert medians(counts[::-1], totals[::-1], genes) == medians(*real)


def test_the_order_of_genes_does_not_matter(real):
    counts, totals, genes = real
    assert medians(counts[:, ::-1], totals, genes[::-1]) == medians(*real)


def test_sources_with_different_genes_are_joined_by_id():
    found = NonzeroMedians()
    found.add(csr_matrix([[1.0, 3.0]]), np.array([10.0]), ["a", "b"])
    found.add(csr_matrix([[5.0, 2.0]]), np.array([10.0]), ["c", "a"])
    assert_same(found.result(), {"a": 1500.0, "b": 3000.0, "c": 5000.0})


def test_genes_with_the_same_id_are_one_gene_with_summed_counts():
    counts = np.array([[1.0, 2.0, 3.0], [0.0, 4.0, 0.0]])
    assert_same(medians(counts, np.array([10.0, 10.0]), ["a", "a", "b"]), {"a": 3500.0, "b": 3000.0})


def test_splitting_a_gene_over_columns_changes_nothing(real):
    counts, totals, genes = real
    halves = np.concatenate([np.floor(counts / 2), np.ceil(counts / 2)], axis=1)
    assert medians(halves, totals, genes * 2) == medians(*real)


def test_an_even_number_of_cells_gives_the_mean_of_the_middle_two():
    assert_same(medians(np.array([[1.0], [3.0], [2.0], [8.0]]), np.full(4, 1e4), ["a"]), {"a": 2.5})


def test_cells_without_the_gene_do_not_count():
    assert_same(medians(np.array([[0.0], [0.0], [6.0]]), np.full(3, 1e4), ["a"]), {"a": 6.0})


def test_stored_zeros_do_not_count():
    found = NonzeroMedians()
    found.add(
        csr_matrix((np.array([0.0, 6.0]), np.array([0, 0]), np.array([0, 1, 2])), shape=(2, 1)), np.full(2, 1e4), ["a"]
    )
    assert_same(found.result(), {"a": 6.0})


def test_a_gene_that_no_cell_expresses_has_no_median():
    assert "b" not in medians(np.array([[1.0, 0.0]]), genes=["a", "b"])


def test_cells_are_scaled_to_ten_thousand_counts():
    assert TARGET_SUM == 10_000
    assert_same(medians(np.array([[1.0, 3.0]]), genes=["a", "b"]), {"a": 2500.0, "b": 7500.0})


def test_a_cell_without_counts_adds_nothing():
    with_empty = medians(np.array([[1.0, 3.0], [0.0, 0.0]]), genes=["a", "b"])
    assert with_empty == medians(np.array([[1.0, 3.0]]), genes=["a", "b"])


def test_nothing_added_gives_no_medians():
    assert NonzeroMedians().result() == {}


def test_the_counts_are_left_as_they_were(pbmc):
    before = pbmc.X.copy()
    NonzeroMedians().add(pbmc.X, pbmc.obs["n_counts"].to_numpy(), pbmc.var_names)
    assert (before != pbmc.X).nnz == 0
