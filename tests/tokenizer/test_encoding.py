from itertools import pairwise

import anndata as ad
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.sparse import csr_matrix, hstack

import geneformer_repro.tokenizer.encoding as encoding
from geneformer_repro.errors import InputError
from geneformer_repro.tokenizer.encoding import Ragged, encode, encode_stored, sum_by_column
from geneformer_repro.tokenizer.genes import reconcile
from geneformer_repro.tokenizer.matrices import canonical
from geneformer_repro.tokenizer.readers import open_counts
from geneformer_repro.tokenizer.vocabulary import Vocabulary

SPECIAL = {"V1": ["<pad>", "<mask>"], "V2": ["<pad>", "<mask>", "<cls>", "<eos>"]}


def vocabulary_of(medians, *, series="V1", max_length=None):
    genes = [f"ENSG{i:011}" for i in range(len(medians))]
    tokens = {token: i for i, token in enumerate([*SPECIAL[series], *genes])}
    return Vocabulary.from_tokens(tokens, dict(zip(genes, medians, strict=True)), max_length=max_length)


def rows(encoded):
    values, offsets = encoded.tokens
    return [values[start:stop].tolist() for start, stop in pairwise(offsets)]


def slowly(columns, values, vocabulary, position=None, total=None, *, crop=True):
    """One cell's tokens: its entries added up gene by gene, sorted by value, then by place in the vocabulary."""
    amounts = {}
    for column, value in zip(columns, values, strict=True):
        place = int(column) if position is None else int(position[column])
        if place >= 0 and value > 0:
            amounts[place] = amounts.get(place, np.float64(0)) + np.float64(value)
    total = np.float64(np.sum(values, dtype=np.float64) if total is None else total)
    relative = {place: amount / total * 10_000 / vocabulary.medians[place] for place, amount in amounts.items()}
    tokens = [int(vocabulary.tokens[place]) for place in sorted(relative, key=lambda place: (-relative[place], place))]
    if not crop:
        return tokens
    if not vocabulary.has_cls:
        return tokens[: vocabulary.max_length]
    special = vocabulary.special_tokens
    return [special["<cls>"], *tokens[: vocabulary.max_length - 2], special["<eos>"]]


def each_slowly(counts, vocabulary, position=None, totals=None, *, crop=True):
    return [
        slowly(
            counts.indices[start:stop],
            counts.data[start:stop],
            vocabulary,
            position,
            None if totals is None else totals[i],
            crop=crop,
        )
        for i, (start, stop) in enumerate(pairwise(counts.indptr))
    ]


def as_stored(cells, n_genes, dtype=np.float32):
    """CSR with the entries of each cell, (column, value), in the order given, sorted or not, repeated or not."""
    indptr = np.cumsum([0, *map(len, cells)])
    entries = [entry for cell in cells for entry in cell]
    matrix = csr_matrix((len(cells), n_genes), dtype=dtype)
    matrix.indices = np.array([column for column, _ in entries], dtype=np.int32)
    matrix.data = np.array([value for _, value in entries], dtype=dtype)
    matrix.indptr = indptr.astype(np.int64)
    return matrix


quickly = settings(deadline=None, max_examples=30, database=None)
counts_and_medians = st.tuples(st.integers(1, 6), st.integers(1, 8)).flatmap(
    lambda shape: st.tuples(
        arrays(np.float32, shape, elements=st.integers(0, 4).map(float)),
        arrays(np.float64, shape[1], elements=st.sampled_from([0.5, 1.0, 1.5, 2.0, 3.0])),
    )
)


@st.composite
def stored_cells(draw):
    """Entries in any order, columns repeated, zeros stored; columns that are one gene, or none; many ties."""
    n_columns, n_genes = draw(st.integers(1, 12)), draw(st.integers(1, 8))
    entry = st.tuples(st.integers(0, n_columns - 1), st.integers(0, 5))
    cells = draw(st.lists(st.lists(entry, max_size=60), min_size=1, max_size=4))
    position = np.array(draw(st.lists(st.integers(-1, n_genes - 1), min_size=n_columns, max_size=n_columns)))
    medians = draw(st.lists(st.sampled_from([0.1, 1.0, 1.5, 3.0]), min_size=n_genes, max_size=n_genes))
    return as_stored(cells, n_columns, draw(st.sampled_from([np.float32, np.float64]))), position, medians


# against one cell at a time


@pytest.mark.parametrize("crop", [True, False], ids=["cropped", "uncropped"])
@pytest.mark.parametrize("series", ["V1", "V2"])
@pytest.mark.parametrize("max_length", [None, 40])
def test_real_cells_are_ordered_as_one_by_one(pbmc, series, max_length, crop):
    vocabulary = Vocabulary.fit(pbmc, series=series, max_length=max_length)
    counts = csr_matrix(pbmc[::9, list(vocabulary.gene_ids)].X)
    found = encode(counts, vocabulary, crop=crop)
    assert rows(found) == each_slowly(counts, vocabulary, crop=crop)
    np.testing.assert_array_equal(found.n_genes, np.diff(counts.indptr))
    np.testing.assert_array_equal(found.tokens.lengths, [len(row) for row in rows(found)])


def test_real_cells_with_a_whole_transcriptome_are_ordered_as_one_by_one(shared):
    """5,800 genes a cell, by the published medians; many genes of a cell have the same count."""
    vocabulary = Vocabulary.load(shared / "golden" / "published_v1")
    adata = ad.read_h5ad(shared / "data" / "lung_lines_mixology" / "lung_lines_mixology.h5ad")[::120].copy()
    position = reconcile(open_counts(adata), vocabulary).position
    counts = csr_matrix(adata.X)
    for crop in (True, False):
        expected = each_slowly(counts, vocabulary, position, crop=crop)
        assert rows(encode(counts, vocabulary, position=position, crop=crop)) == expected
    assert max(map(len, expected)) > 5000


def test_given_totals_replace_the_sum_of_the_counts(pbmc, vocabulary):
    counts = csr_matrix(pbmc[::9, list(vocabulary.gene_ids)].X)
    totals = pbmc.obs["n_counts"].to_numpy()[::9]
    assert rows(encode(counts, vocabulary, n_counts=totals)) == each_slowly(counts, vocabulary, None, totals)


@quickly
@given(stored_cells(), st.sampled_from(["V1", "V2"]), st.integers(5, 9), st.booleans())
def test_any_stored_cells_are_ordered_as_one_by_one(drawn, series, max_length, crop):
    counts, position, medians = drawn
    vocabulary = vocabulary_of(medians, series=series, max_length=max_length)
    found = encode(counts, vocabulary, position=position, crop=crop)
    assert rows(found) == each_slowly(counts, vocabulary, position, crop=crop)
    assert found.n_genes.tolist() == [len(row) for row in each_slowly(counts, vocabulary, position, crop=False)]


MEDIANS = {
    "two": lambda n, rng: rng.choice([0.5, 1.0], n),
    "as_real": lambda n, rng: rng.gamma(2, 1, n) + 0.01,
    "within_rounding": lambda n, rng: 1 + np.arange(n)[::-1] * 2.0**-52,
    "wide": lambda n, rng: 10.0 ** rng.uniform(-200, 200, n),
    "one_far_off": lambda n, rng: np.where(np.arange(n) == n // 2, 1e-9, 1 + rng.random(n) * 1e-12),
}


@pytest.mark.parametrize("form", ["in_order", "unsorted", "one_gene_in_columns"])
@pytest.mark.parametrize("medians", list(MEDIANS))
@pytest.mark.parametrize("n", [0, 1, 24, 25, 256, 257, 2300])
def test_cells_of_any_size_are_ordered_as_one_by_one(n, medians, form):
    rng = np.random.default_rng(n)
    n_genes = max(n, 1) + 5
    vocabulary = vocabulary_of(MEDIANS[medians](n_genes, rng), series="V2", max_length=3000)
    cells = []
    for _ in range(3):
        columns = np.sort(rng.choice(n_genes, n, replace=False))
        if form == "unsorted":
            columns = rng.permutation(columns)
        if form == "one_gene_in_columns":
            columns = rng.choice(n_genes, n)
        cells.append(list(zip(columns.tolist(), rng.integers(1, 5, n).tolist(), strict=True)))
    counts = as_stored([*cells, [], cells[0][: n // 2]], n_genes)
    expected = each_slowly(counts, vocabulary)
    assert rows(encode(counts, vocabulary)) == expected
    position = rng.permutation(n_genes)
    if form == "one_gene_in_columns":
        position = rng.integers(-1, n_genes, n_genes)
    expected = each_slowly(counts, vocabulary, position)
    assert rows(encode(counts, vocabulary, position=position)) == expected


@pytest.mark.parametrize("indices", [np.int32, np.int64])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_types_of_the_matrix_do_not_change_the_tokens(pbmc, vocabulary, dtype, indices):
    counts = csr_matrix(pbmc[:60, list(vocabulary.gene_ids)].X)
    expected = rows(encode(counts, vocabulary))
    other = counts.astype(dtype)
    other.indices, other.indptr = other.indices.astype(indices), other.indptr.astype(indices)
    assert rows(encode(other, vocabulary)) == expected


@quickly
@given(counts_and_medians, st.sampled_from([2, 3, 7, 1000]))
def test_counts_times_a_constant_give_the_same_tokens(drawn, constant):
    counts, medians = drawn
    vocabulary = vocabulary_of(medians)
    once, scaled = (encode(csr_matrix(counts * factor), vocabulary) for factor in (1, constant))
    assert rows(once) == rows(scaled)


@pytest.mark.parametrize("constant", [3, 1000])
def test_real_counts_times_a_constant_give_the_same_tokens(pbmc, vocabulary, constant):
    counts = csr_matrix(pbmc[:, list(vocabulary.gene_ids)].X)
    assert rows(encode(counts * constant, vocabulary)) == rows(encode(counts, vocabulary))


@pytest.mark.parametrize("seed", [0, 1])
def test_the_order_of_genes_does_not_change_the_tokens(pbmc, vocabulary, seed):
    order = np.random.default_rng(seed).permutation(len(vocabulary))
    counts = csr_matrix(pbmc[:, list(vocabulary.gene_ids)].X)
    shuffled = csr_matrix(counts[:, order])
    assert rows(encode(shuffled, vocabulary, position=order)) == rows(encode(counts, vocabulary))


def test_a_gene_in_two_columns_is_as_one_in_one(pbmc, vocabulary):
    counts = csr_matrix(pbmc[:100, list(vocabulary.gene_ids)].X)
    half = counts.copy()
    half.data = np.floor(half.data / 2)  # leaves stored zeros
    n = len(vocabulary)
    both = csr_matrix(hstack([half, counts - half]))
    found = encode(both, vocabulary, position=np.tile(np.arange(n), 2))
    assert rows(found) == rows(encode(counts, vocabulary))
    np.testing.assert_array_equal(found.n_genes, np.diff(counts.indptr))


def test_counts_of_unknown_genes_weigh_in_the_total_only():
    vocabulary = vocabulary_of([1.0, 3.0])
    counts = csr_matrix([[100.0, 2.0, 9.0]])
    found = encode(counts, vocabulary, position=np.array([-1, 0, 1]))
    assert rows(found) == each_slowly(counts, vocabulary, np.array([-1, 0, 1])) == [[3, 2]]
    assert found.n_genes.tolist() == [2]


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
    assert rows(encode(csr_matrix([[9.0, 2.0, 4.0]]), vocabulary_of([9.0, 1.0, 4.0]))) == [[3, 2, 4]]


def test_equal_values_keep_vocabulary_order():
    assert rows(encode(csr_matrix([[2.0, 1.0, 4.0, 1.0]]), vocabulary_of([2.0, 1.0, 4.0, 0.5]))) == [[5, 2, 3, 4]]


@pytest.mark.parametrize("stored", [[0, 1, 2], [2, 0, 1], [2, 1, 0]])
def test_equal_values_keep_vocabulary_order_however_the_matrix_stores_them(stored):
    counts = as_stored([[(column, 1) for column in stored]], 3)
    assert rows(encode(counts, vocabulary_of(np.ones(3)))) == [[2, 3, 4]]


def test_stored_zeros_are_not_expressed():
    found = encode(as_stored([[(0, 1), (1, 0), (2, 2)]], 3), vocabulary_of(np.ones(3)))
    assert rows(found) == [[4, 2]]
    assert found.n_genes.tolist() == [2]


def test_the_counts_and_positions_are_left_as_they_were(pbmc, vocabulary):
    counts = csr_matrix(pbmc[:, list(vocabulary.gene_ids)].X)
    position = np.arange(len(vocabulary), dtype=np.int32)[::-1].copy()
    before, places = counts.copy(), position.copy()
    encode(counts, vocabulary, position=position)
    for name in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(counts, name), getattr(before, name))
    np.testing.assert_array_equal(position, places)


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
    found = encode(csr_matrix([[1.0, 2.0, 3.0, 4.0, 5.0]]), vocabulary)
    assert rows(found) == [expected]
    assert found.n_genes.tolist() == [5]


@pytest.mark.parametrize(("series", "expected"), [("V1", [6, 5, 4, 3, 2]), ("V2", [8, 7, 6, 5, 4])])
def test_uncropped_are_all_ranked_genes_and_nothing_else(series, expected):
    vocabulary = vocabulary_of(np.ones(5), series=series, max_length=5)
    assert rows(encode(csr_matrix([[1.0, 2.0, 3.0, 4.0, 5.0]]), vocabulary, crop=False)) == [expected]


def test_cut_tokens_are_the_beginning_of_the_uncropped_ones(pbmc):
    vocabulary = Vocabulary.fit(pbmc, series="V1", max_length=50)
    counts = csr_matrix(pbmc[:, list(vocabulary.gene_ids)].X)
    assert [row[:50] for row in rows(encode(counts, vocabulary, crop=False))] == rows(encode(counts, vocabulary))


@pytest.mark.parametrize("position", [None, [-1]], ids=["not_expressed", "not_known"])
@pytest.mark.parametrize(("series", "special"), [("V1", []), ("V2", [2, 3])])
def test_a_cell_without_a_known_gene_has_only_special_tokens(series, special, position):
    counts = csr_matrix([[0.0], [0.0]]) if position is None else csr_matrix([[1.0], [3.0]])
    found = encode(counts, vocabulary_of([1.0], series=series), position=None if position is None else np.array([-1]))
    assert rows(found) == [special, special]
    assert found.n_genes.tolist() == [0, 0]


def test_special_tokens_are_taken_from_the_vocabulary_not_from_convention():
    vocabulary = Vocabulary.from_tokens(
        {"<pad>": 9, "<mask>": 8, "<cls>": 7, "<eos>": 6, "a": 1, "b": 3}, {"a": 1, "b": 1}
    )
    assert rows(encode(csr_matrix([[1.0, 2.0]]), vocabulary)) == [[7, 3, 1, 6]]


@pytest.mark.parametrize(
    ("n_genes", "dtype"),
    [(254, np.uint8), (255, np.uint16), (65_534, np.uint16), (65_535, np.uint32)],
)
def test_tokens_are_stored_as_small_as_the_largest_token_allows(n_genes, dtype):
    counts = csr_matrix(([1.0], ([0], [n_genes - 1])), shape=(1, n_genes))
    found = encode(counts, vocabulary_of(np.ones(n_genes)))
    assert rows(found) == [[n_genes + 1]]
    assert found.tokens.values.dtype == dtype


def test_no_cells_give_no_rows():
    found = encode(csr_matrix((0, 3)), vocabulary_of(np.ones(3)))
    assert rows(found) == []
    assert len(found.n_genes) == 0


def test_a_vocabulary_without_medians_is_refused():
    vocabulary = Vocabulary.from_tokens({"<pad>": 0, "<mask>": 1, "a": 2})
    with pytest.raises(
        InputError, match=r"no medians, so it can read tokens but not make them.*from_tokens\(…, medians=…\)"
    ):
        encode(csr_matrix([[1.0]]), vocabulary)


def test_lengths_of_ragged_rows():
    np.testing.assert_array_equal(Ragged(np.arange(5), np.array([0, 2, 2, 5])).lengths, [2, 0, 3])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_columns_are_summed_in_double_precision(dtype):
    values = np.random.default_rng(0).integers(0, 2**23, (400, 7)).astype(dtype)
    values[:, 3] = 0
    found = sum_by_column(csr_matrix(values))
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, values.astype(np.float64).sum(axis=0))


def test_columns_of_no_cells_sum_to_zero():
    np.testing.assert_array_equal(sum_by_column(csr_matrix((0, 3))), [0, 0, 0])


@quickly
@given(stored_cells(), st.booleans())
def test_cells_as_a_file_holds_them_are_encoded_and_summed_as_in_canonical_form(drawn, has_totals):
    counts, position, medians = drawn
    vocabulary = vocabulary_of(medians)
    in_order = canonical(counts)
    totals = np.asarray(in_order.sum(axis=1)).ravel() + 3 if has_totals else None
    found = encode_stored(counts, vocabulary, position=position, n_counts=totals)
    expected = encode(in_order, vocabulary, position=position, n_counts=totals)
    assert rows(found.encoded) == rows(expected)
    np.testing.assert_array_equal(found.encoded.n_genes, expected.n_genes)
    np.testing.assert_array_equal(found.sums, np.asarray(in_order.sum(axis=1)).ravel())
    np.testing.assert_array_equal(found.gene_counts, sum_by_column(in_order))


@pytest.mark.parametrize("value", [-1.0, 0.5, np.nan, np.inf])
def test_cells_as_a_file_holds_them_are_not_encoded_if_a_value_is_no_count(value):
    counts = as_stored([[(0, 1)], [(1, value)]], 2)
    assert encode_stored(counts, vocabulary_of(np.ones(2)), position=np.arange(2), n_counts=None) is None


def test_pieces_of_a_few_cells_give_what_all_at_once_give(pbmc, vocabulary, monkeypatch):
    counts, position = csr_matrix(pbmc.X), np.arange(pbmc.n_vars)
    at_once = encode_stored(counts, vocabulary, position=position, n_counts=None)
    monkeypatch.setattr(encoding, "_VALUES_IN_CACHE", 999)
    in_pieces = encode_stored(counts, vocabulary, position=position, n_counts=None)
    assert rows(in_pieces.encoded) == rows(at_once.encoded)
    np.testing.assert_array_equal(in_pieces.gene_counts, at_once.gene_counts)
