import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.sparse import csr_matrix

from geneformer_repro.errors import InputError
from geneformer_repro.tokenizer.encoding import Ragged, encode
from geneformer_repro.tokenizer.vocabulary import Vocabulary

SPECIAL = {"V1": ["<pad>", "<mask>"], "V2": ["<pad>", "<mask>", "<cls>", "<eos>"]}


def vocabulary_of(medians, *, series="V1", max_length=None):
    genes = [f"ENSG{i:011}" for i in range(len(medians))]
    tokens = {token: i for i, token in enumerate([*SPECIAL[series], *genes])}
    return Vocabulary.from_tokens(tokens, dict(zip(genes, medians, strict=True)), max_length=max_length)


def rows(ragged):
    return [ragged.values[start:stop].tolist() for start, stop in zip(ragged.offsets, ragged.offsets[1:], strict=False)]


def slowly(cell, vocabulary, total=None):
    """One cell's tokens, one gene at a time."""
    total = np.float64(cell.sum(dtype=np.float64) if total is None else total)
    value = {i: np.float64(c) / total * 10_000 / vocabulary.medians[i] for i, c in enumerate(cell) if c > 0}
    tokens = [int(vocabulary.tokens[i]) for i in sorted(value, key=lambda i: (-value[i], i))]
    if not vocabulary.has_cls:
        return tokens[: vocabulary.max_length]
    special = vocabulary.special_tokens
    return [special["<cls>"], *tokens[: vocabulary.max_length - 2], special["<eos>"]]


counts_and_medians = st.tuples(st.integers(1, 6), st.integers(1, 8)).flatmap(
    lambda shape: st.tuples(
        arrays(np.float32, shape, elements=st.integers(0, 4).map(float)),
        arrays(np.float64, shape[1], elements=st.sampled_from([0.5, 1.0, 1.5, 2.0, 3.0])),
    )
)
quickly = settings(deadline=None, max_examples=80, database=None)


# against one cell at a time


@pytest.mark.parametrize("series", ["V1", "V2"])
@pytest.mark.parametrize("max_length", [None, 40])
def test_real_cells_are_ordered_as_one_by_one(pbmc, series, max_length):
    vocabulary = Vocabulary.fit(pbmc, series=series, max_length=max_length)
    counts = pbmc[:, list(vocabulary.gene_ids)].X
    expected = [slowly(cell, vocabulary) for cell in counts.toarray()]
    assert rows(encode(csr_matrix(counts), vocabulary)) == expected


def test_given_totals_replace_the_sum_of_the_counts(pbmc, vocabulary):
    counts = csr_matrix(pbmc[:, list(vocabulary.gene_ids)].X)
    totals = pbmc.obs["n_counts"].to_numpy()
    expected = [slowly(cell, vocabulary, total) for cell, total in zip(counts.toarray(), totals, strict=True)]
    assert rows(encode(counts, vocabulary, n_counts=totals)) == expected


@quickly
@given(counts_and_medians, st.sampled_from(["V1", "V2"]), st.integers(5, 9))
def test_any_cells_are_ordered_as_one_by_one(drawn, series, max_length):
    counts, medians = drawn
    vocabulary = vocabulary_of(medians, series=series, max_length=max_length)
    expected = [slowly(cell, vocabulary) for cell in counts]
    assert rows(encode(csr_matrix(counts), vocabulary)) == expected


@quickly
@given(counts_and_medians, st.sampled_from([2, 3, 7, 1000]))
def test_counts_times_a_constant_give_the_same_tokens(drawn, constant):
    counts, medians = drawn
    vocabulary = vocabulary_of(medians)
    once, scaled = (encode(csr_matrix(counts * factor), vocabulary) for factor in (1, constant))
    assert rows(once) == rows(scaled)


@quickly
@given(counts_and_medians)
def test_a_block_of_cells_is_as_its_cells_alone(drawn):
    counts, medians = drawn
    vocabulary = vocabulary_of(medians, series="V2")
    alone = [rows(encode(csr_matrix(cell[None]), vocabulary))[0] for cell in counts]
    assert rows(encode(csr_matrix(counts), vocabulary)) == alone


@quickly
@given(counts_and_medians)
def test_a_cell_has_every_gene_it_expresses_once(drawn):
    counts, medians = drawn
    vocabulary = vocabulary_of(medians)
    for cell, tokens in zip(counts, rows(encode(csr_matrix(counts), vocabulary)), strict=True):
        assert sorted(tokens) == vocabulary.tokens[cell > 0].tolist()


# the rules one by one


def test_the_gene_highest_relative_to_its_median_comes_first():
    tokens = encode(csr_matrix([[9.0, 2.0, 4.0]]), vocabulary_of([9.0, 1.0, 4.0]))
    assert rows(tokens) == [[3, 2, 4]]


def test_equal_values_keep_vocabulary_order():
    assert rows(encode(csr_matrix([[2.0, 1.0, 4.0, 1.0]]), vocabulary_of([2.0, 1.0, 4.0, 0.5]))) == [[5, 2, 3, 4]]


def test_equal_values_keep_vocabulary_order_in_a_long_cell():
    assert rows(encode(csr_matrix(np.ones((2, 500))), vocabulary_of(np.ones(500)))) == [list(range(2, 502))] * 2


def test_equal_values_keep_vocabulary_order_when_the_matrix_stores_genes_in_another():
    counts = csr_matrix((np.ones(3), np.array([2, 0, 1]), np.array([0, 3])), shape=(1, 3))
    assert rows(encode(counts, vocabulary_of(np.ones(3)))) == [[2, 3, 4]]


def test_stored_zeros_are_not_expressed():
    counts = csr_matrix((np.array([1.0, 0.0, 2.0]), np.array([0, 1, 2]), np.array([0, 3])), shape=(1, 3))
    assert rows(encode(counts, vocabulary_of(np.ones(3)))) == [[4, 2]]


def test_the_counts_are_left_as_they_were(pbmc, vocabulary):
    counts = csr_matrix(pbmc[:, list(vocabulary.gene_ids)].X)
    before = counts.copy()
    encode(counts, vocabulary)
    np.testing.assert_array_equal(counts.data, before.data)
    np.testing.assert_array_equal(counts.indices, before.indices)
    np.testing.assert_array_equal(counts.indptr, before.indptr)


@pytest.mark.parametrize(
    ("series", "max_length", "expected"),
    [
        pytest.param("V1", 9, [6, 5, 4, 3, 2], id="V1_with_room"),
        pytest.param("V1", 5, [6, 5, 4, 3, 2], id="V1_just_fits"),
        pytest.param("V1", 3, [6, 5, 4], id="V1_cut"),
        pytest.param("V2", 9, [2, 8, 7, 6, 5, 4, 3], id="V2_with_room"),
        pytest.param("V2", 7, [2, 8, 7, 6, 5, 4, 3], id="V2_just_fits"),
        pytest.param("V2", 5, [2, 8, 7, 6, 3], id="V2_cut_keeps_cls_and_eos"),
    ],
)
def test_cells_are_cut_to_the_most_distinctive_genes(series, max_length, expected):
    vocabulary = vocabulary_of(np.ones(5), series=series, max_length=max_length)
    assert rows(encode(csr_matrix([[1.0, 2.0, 3.0, 4.0, 5.0]]), vocabulary)) == [expected]


def test_cut_tokens_are_the_beginning_of_the_uncut_ones(pbmc):
    long, short = (Vocabulary.fit(pbmc, series="V1", max_length=n) for n in (2048, 50))
    counts = csr_matrix(pbmc[:, list(long.gene_ids)].X)
    assert [row[:50] for row in rows(encode(counts, long))] == rows(encode(counts, short))


@pytest.mark.parametrize(("series", "expected"), [("V1", [[], [2], []]), ("V2", [[2, 3], [2, 4, 3], [2, 3]])])
def test_a_cell_without_a_known_gene_has_only_special_tokens(series, expected):
    assert rows(encode(csr_matrix([[0.0], [1.0], [0.0]]), vocabulary_of([1.0], series=series))) == expected


def test_special_tokens_are_taken_from_the_vocabulary_not_from_convention():
    vocabulary = Vocabulary.from_tokens(
        {"<pad>": 9, "<mask>": 8, "<cls>": 7, "<eos>": 6, "a": 1, "b": 3}, {"a": 1, "b": 1}
    )
    assert rows(encode(csr_matrix([[1.0, 2.0]]), vocabulary)) == [[7, 3, 1, 6]]


@pytest.mark.parametrize(("n_genes", "dtype"), [(100, np.uint8), (300, np.uint16), (70_000, np.uint32)])
def test_tokens_are_stored_as_small_as_the_vocabulary_allows(n_genes, dtype):
    tokens = encode(csr_matrix(([1.0], ([0], [n_genes - 1])), shape=(1, n_genes)), vocabulary_of(np.ones(n_genes)))
    assert tokens.values.dtype == dtype
    assert rows(tokens) == [[n_genes + 1]]


def test_no_cells_give_no_rows():
    assert rows(encode(csr_matrix((0, 3)), vocabulary_of(np.ones(3)))) == []


def test_a_vocabulary_without_medians_is_refused():
    vocabulary = Vocabulary.from_tokens({"<pad>": 0, "<mask>": 1, "a": 2})
    with pytest.raises(
        InputError, match=r"no medians, so it can read tokens but not make them.*from_tokens\(…, medians=…\)"
    ):
        encode(csr_matrix([[1.0]]), vocabulary)


def test_lengths_of_ragged_rows():
    np.testing.assert_array_equal(Ragged(np.arange(5), np.array([0, 2, 2, 5])).lengths, [2, 0, 3])
