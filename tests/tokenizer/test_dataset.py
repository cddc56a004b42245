import hashlib
import json
import logging
import pickle
import shutil
import subprocess
import sys

import anndata as ad
import datasets
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csc_matrix, csr_matrix, hstack

import geneformer_repro as gf
from geneformer_repro.errors import DataFormatError, InputError, VocabularyMismatchError
from geneformer_repro.files import read_json, sha256, write_json
from geneformer_repro.tokenizer.dataset import TokenizedDataset, tokenize
from geneformer_repro.tokenizer.encoding import encode
from geneformer_repro.tokenizer.readers import CountSource
from geneformer_repro.tokenizer.vocabulary import Vocabulary

ARROW = "data-00000-of-00001.arrow"
OBS = ["cell_type", "n_counts"]


def tokens_of(cells):
    return [tokens.tolist() for tokens in cells]


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


def digests(folder):
    return {path.name: sha256(path) for path in folder.iterdir()}


def saved(adata, path, **options):
    adata.copy().write_h5ad(path, **options)
    return path


def assert_same_cells(found, expected):
    assert tokens_of(found) == tokens_of(expected)
    np.testing.assert_array_equal(found.lengths, expected.lengths)
    np.testing.assert_array_equal(found.cell_names, expected.cell_names)
    pd.testing.assert_frame_equal(found.obs, expected.obs)


@pytest.fixture(scope="module")
def h5ad(_pbmc, tmp_path_factory):
    """The blood cells as a file."""
    return saved(_pbmc, tmp_path_factory.mktemp("source") / "pbmc.h5ad")


@pytest.fixture(scope="module")
def plain(_pbmc, vocabulary):
    """The blood cells, tokenised in memory."""
    return tokenize(_pbmc, vocabulary, obs=OBS)


@pytest.fixture(scope="module")
def _written(h5ad, vocabulary, tmp_path_factory):
    out = tmp_path_factory.mktemp("written") / "cells.tok"
    tokenize(h5ad, vocabulary, out=out, obs=OBS)
    return out


@pytest.fixture
def written(_written, tmp_path):
    """A folder that tokenize wrote; a copy, to be damaged at will."""
    return shutil.copytree(_written, tmp_path / "cells.tok")


@pytest.fixture(scope="module")
def published(shared):
    """The folder of the published tokenizer's results, and its vocabulary."""
    folder = shared / "golden" / "published_v1"
    return folder, Vocabulary.load(folder)


# the published results


@pytest.mark.parametrize("where", ["file", "memory"])
def test_tokens_are_the_published_ones_cell_for_cell(published, where):
    folder, vocabulary = published
    source = folder / "cells.h5ad"
    found = tokenize(source if where == "file" else ad.read_h5ad(source), vocabulary)
    expected = pd.read_parquet(folder / "tokens.parquet")
    np.testing.assert_array_equal(found.cell_names, expected["cell"])
    for tokens, published_tokens in zip(found, expected["input_ids"], strict=True):
        np.testing.assert_array_equal(tokens, published_tokens)


def test_the_published_tokens_open_as_those_made_here(published):
    folder, vocabulary = published
    made, opened = (
        tokenize(folder / "cells.h5ad", vocabulary),
        TokenizedDataset.open(folder / "tokens.parquet", vocabulary),
    )
    assert_same_cells(opened, made)


def test_real_pretraining_cells_open_with_the_v1_vocabulary(published, shared):
    path = shared / "data" / "genecorpus_500_tokens" / "genecorpus_500.parquet"
    cells = TokenizedDataset.open(path, published[1])
    expected = pd.read_parquet(path)
    assert len(cells) == 500
    np.testing.assert_array_equal(cells.lengths, expected["length"])
    np.testing.assert_array_equal(cells.cell_names, np.arange(500).astype(str))
    for i in (0, 250, 499):
        np.testing.assert_array_equal(cells[i], expected["input_ids"][i])


@pytest.mark.parametrize("name", ["datlinger_jurkat", "gbm_panobinostat", "kang_ifnb"])
def test_real_counts_are_tokenised_with_a_vocabulary_learned_from_them(shared, name):
    path = shared / "data" / name / f"{name}.h5ad"
    vocabulary, adata = Vocabulary.fit(path), ad.read_h5ad(path)
    cells = tokenize(path, vocabulary, obs=["donor"])
    assert cells.cell_names.tolist() == adata.obs_names.tolist()
    assert cells.obs["donor"].tolist() == adata.obs["donor"].tolist()
    known = adata[:, adata.var_names.isin(vocabulary.gene_ids)].X
    np.testing.assert_array_equal(cells.lengths, np.minimum(known.getnnz(axis=1) + 2, vocabulary.max_length))


@pytest.mark.parametrize("name", ["oligodendroglioma", "tcga_50_allgenes"])
def test_real_values_that_are_no_counts_are_refused(shared, published, name):
    with pytest.raises(
        DataFormatError, match=rf"{name}\.h5ad: X holds fractional values \(first: cell .*Rank encoding needs"
    ):
        tokenize(shared / "data" / name / f"{name}.h5ad", published[1])


# the same counts in another form


def in_layer(adata, form):
    adata.layers["counts"], adata.X = form(adata.X), adata.X * np.float32(0.1)
    return adata


def in_raw(adata):
    adata.raw, adata.X = adata, adata.X * np.float32(0.1)
    return adata


def with_x(adata, x):
    adata.X = x
    return adata


def with_ids_in(adata, column):
    adata.var[column] = adata.var_names
    adata.var_names = [f"gene{i}" for i in range(adata.n_vars)]
    return adata


def split_genes(adata):
    """Every gene as two columns of one id, its counts shared between them."""
    half = csr_matrix((np.floor(adata.X.data / 2), adata.X.indices, adata.X.indptr), adata.shape)
    ids = list(adata.var_names) * 2
    var = pd.DataFrame({"ensembl_id": ids}, index=[str(i) for i in range(len(ids))])
    return ad.AnnData(csr_matrix(hstack([half, adata.X - half])), obs=adata.obs, var=var)


SAME = [
    pytest.param(lambda a: a, {}, id="csr"),
    pytest.param(lambda a: with_x(a, csc_matrix(a.X)), {}, id="csc"),
    pytest.param(lambda a: with_x(a, a.X.toarray()), {}, id="dense"),
    pytest.param(lambda a: with_x(a, a.X.astype(np.int64)), {}, id="int64"),
    pytest.param(lambda a: with_x(a, a.X.astype(np.float64)), {}, id="float64"),
    pytest.param(lambda a: in_layer(a, csr_matrix), {"layer": "counts"}, id="layer"),
    pytest.param(lambda a: in_layer(a, csc_matrix), {"layer": "counts"}, id="layer_csc"),
    pytest.param(in_raw, {"layer": "raw"}, id="raw"),
    pytest.param(lambda a: with_ids_in(a, "ensembl_id"), {}, id="ids_in_ensembl_id"),
    pytest.param(lambda a: with_ids_in(a, "other"), {"gene_ids": "other"}, id="ids_in_another_column"),
    pytest.param(lambda a: a[:, ::-1].copy(), {}, id="genes_backwards"),
    pytest.param(lambda a: a[:, sorted(a.var_names, key=lambda gene: gene[::-1])].copy(), {}, id="genes_shuffled"),
    pytest.param(split_genes, {}, id="genes_in_two_columns"),
]


@pytest.mark.parametrize("where", ["memory", "file"])
@pytest.mark.parametrize(("change", "options"), SAME)
def test_the_form_of_the_counts_does_not_change_the_tokens(pbmc, vocabulary, plain, tmp_path, where, change, options):
    adata = change(pbmc[:200].copy())
    source = adata if where == "memory" else saved(adata, tmp_path / "x.h5ad")
    assert_same_cells(tokenize(source, vocabulary, obs=OBS, **options), plain.select(range(200)))


def test_a_view_gives_the_same_tokens(pbmc, vocabulary, plain):
    rows = np.arange(0, 700, 3)
    assert_same_cells(tokenize(pbmc[rows], vocabulary, obs=OBS), plain.select(rows))


def test_a_backed_anndata_gives_the_same_tokens(h5ad, vocabulary, plain):
    backed = ad.read_h5ad(h5ad, backed="r")
    assert_same_cells(tokenize(backed, vocabulary, obs=OBS), plain)
    backed.file.close()


def test_a_path_may_be_a_string(h5ad, vocabulary, plain, tmp_path):
    assert_same_cells(tokenize(str(h5ad), vocabulary, out=str(tmp_path / "out"), obs=OBS), plain)
    assert_same_cells(TokenizedDataset.open(str(tmp_path / "out")), plain)


def test_what_is_written_is_what_is_made_in_memory(written, plain):
    assert_same_cells(TokenizedDataset.open(written), plain)


def test_what_tokenize_returns_is_what_open_opens(pbmc, vocabulary, plain, tmp_path):
    assert_same_cells(tokenize(pbmc, vocabulary, out=tmp_path / "out", obs=OBS), plain)


@pytest.mark.parametrize("factor", [7, 1000])
def test_counts_times_a_constant_give_the_same_tokens(pbmc, vocabulary, factor):
    few = pbmc[:200].copy()
    many = with_x(few.copy(), few.X * factor)
    many.obs["n_counts"] *= factor
    assert_same_cells(tokenize(many, vocabulary), tokenize(few, vocabulary))


@pytest.mark.parametrize("size", [1, 64, 699])
@pytest.mark.parametrize("out", [None, "out"])
def test_the_size_of_blocks_does_not_change_the_tokens(pbmc, vocabulary, plain, tmp_path, monkeypatch, size, out):
    monkeypatch.setattr(CountSource.blocks, "__defaults__", (size,))
    out = out and tmp_path / out
    assert_same_cells(tokenize(pbmc[:70], vocabulary, out=out, obs=OBS), plain.select(range(70)))


def test_the_order_of_cells_is_that_of_the_source(pbmc, vocabulary, plain):
    assert_same_cells(tokenize(pbmc[::-1], vocabulary, obs=OBS), plain.select(np.arange(700)[::-1]))


def test_a_cell_is_tokenised_alone_as_among_others(pbmc, vocabulary, plain):
    for i in (0, 350, 699):
        assert tokens_of(tokenize(pbmc[i], vocabulary)) == [plain[i].tolist()]


def test_genes_that_the_vocabulary_lacks_are_left_out(pbmc, plain):
    fewer = Vocabulary.fit(pbmc[:, :500])
    kept = set(fewer.gene_ids)
    found = tokenize(pbmc[:50], fewer)
    assert [found.genes(i) for i in range(50)] == [[gene for gene in plain.genes(i) if gene in kept] for i in range(50)]


def half_of(vocabulary, factor=1.0):
    """Every second gene, with its median times a factor."""
    genes = vocabulary.gene_ids[::2]
    tokens = dict(vocabulary.special_tokens) | {gene: 4 + i for i, gene in enumerate(genes)}
    return Vocabulary.from_tokens(tokens, dict(zip(genes, vocabulary.medians[::2] * factor, strict=True)))


def test_cells_are_scaled_by_all_their_counts_also_those_of_unknown_genes(pbmc):
    del pbmc.obs["n_counts"]
    half = half_of(Vocabulary.fit(pbmc))
    totals = pbmc.X.sum(axis=1, dtype=np.float64).A1
    expected = encode(csr_matrix(pbmc[:, list(half.gene_ids)].X), half, n_counts=totals)
    np.testing.assert_array_equal(np.concatenate(list(tokenize(pbmc, half))), expected.values)


# conventions


@pytest.mark.parametrize("max_length", [None, 100])
def test_v2_cells_are_v1_cells_between_cls_and_eos(pbmc, max_length):
    v1, v2 = (Vocabulary.fit(pbmc, series=series, max_length=max_length) for series in ("V1", "V2"))
    room = v2.max_length - 2
    for first, second in zip(tokenize(pbmc, v1), tokenize(pbmc, v2), strict=True):
        assert second.tolist() == [2, *(first[:room] + 2), 3]


@pytest.mark.parametrize(("series", "wrapping"), [("V1", 0), ("V2", 2)])
def test_long_cells_are_cut_and_counted(pbmc, series, wrapping):
    vocabulary = Vocabulary.fit(pbmc, series=series, max_length=250)
    cells = tokenize(pbmc, vocabulary)
    n_genes = np.diff(pbmc.X.indptr)
    np.testing.assert_array_equal(cells.lengths, np.minimum(n_genes + wrapping, 250))
    assert cells.spec["n_cropped"] == (n_genes + wrapping > 250).sum() > 0


def test_every_row_says_its_length(plain):
    np.testing.assert_array_equal(plain.lengths, [len(tokens) for tokens in plain])


def test_no_gene_stands_twice_in_a_cell(plain):
    assert all(len(set(tokens)) == len(tokens) for tokens in tokens_of(plain))


# what a dataset offers


def test_a_cell_is_an_array_of_int64(plain):
    assert plain[0].dtype == np.int64
    assert next(iter(plain)).dtype == np.int64


def test_rows_are_counted_and_indexed_as_iterated(plain):
    assert len(plain) == 700
    assert [plain[i].tolist() for i in (0, 5, 699, -1)] == [tokens_of(plain)[i] for i in (0, 5, 699, -1)]


def test_every_row_joins_back_to_its_cell(pbmc, plain):
    assert plain.cell_names.tolist() == pbmc.obs_names.tolist()
    assert plain.obs.index.tolist() == pbmc.obs_names.tolist()
    assert plain.obs["cell_type"].tolist() == pbmc.obs["cell_type"].tolist()
    np.testing.assert_array_equal(plain.obs["n_counts"], pbmc.obs["n_counts"])


def test_genes_of_a_cell_are_those_it_expresses(pbmc, plain):
    for i in (0, 699):
        assert sorted(plain.genes(i)) == sorted(pbmc.var_names[pbmc.X[i].indices])


def test_selected_cells_are_those_rows_in_that_order(plain):
    found = plain.select([5, 0, 5])
    assert tokens_of(found) == [plain[5].tolist(), plain[0].tolist(), plain[5].tolist()]
    assert found.cell_names.tolist() == plain.cell_names[[5, 0, 5]].tolist()
    assert found.obs["n_counts"].tolist() == plain.obs["n_counts"].iloc[[5, 0, 5]].tolist()


def test_selecting_no_cells_gives_none(plain):
    assert len(plain.select([])) == 0


def test_an_obs_column_is_given_by_name(plain):
    pd.testing.assert_series_equal(plain.require_obs("cell_type"), plain.obs["cell_type"])


def test_an_obs_column_that_is_not_there_is_refused_with_the_nearest(plain):
    message = (
        r"no obs column 'celltype'\. Did you mean 'cell_type'\? Columns are carried along with tokenize\(obs=\[…\]\)"
    )
    with pytest.raises(InputError, match=message):
        plain.require_obs("celltype")


def test_the_representation_says_what_it_holds(plain, pbmc, vocabulary):
    assert repr(plain) == f"TokenizedDataset(700 cells, cell_type, n_counts, {vocabulary!r})"
    assert "no obs columns" in repr(tokenize(pbmc[:2], vocabulary))


# obs columns

N = 4
COLUMNS = {
    "text": (["a", "b", "a", "c"], ["a", "b", "a", "c"]),
    "categorical": (pd.Categorical(["a", "b", "a", "c"]), ["a", "b", "a", "c"]),
    "categorical_of_numbers": (pd.Categorical([3, 1, 3, 2]), ["3", "1", "3", "2"]),
    "categorical_with_missing": (pd.Categorical(["a", None, "a", "c"]), ["a", None, "a", "c"]),
    "text_with_missing": (["a", None, "a", "c"], ["a", None, "a", "c"]),
    "bool": ([True, False, True, True], [True, False, True, True]),
    "int": ([1, -2, 3, 2**40], [1, -2, 3, 2**40]),
    "int8": (np.array([1, 2, 3, -4], dtype=np.int8), [1, 2, 3, -4]),
    "uint32": (np.array([1, 2, 3, 2**32 - 1], dtype=np.uint32), [1, 2, 3, 2**32 - 1]),
    "float": ([0.1, -2.0, 3.5, 1e300], [0.1, -2.0, 3.5, 1e300]),
    "float32": (np.array([0.5, 1, 2, 3], dtype=np.float32), [0.5, 1.0, 2.0, 3.0]),
    "float_with_missing": ([0.1, np.nan, 3.5, 1.0], [0.1, None, 3.5, 1.0]),
    "nullable_int": (pd.array([1, 2, 3, 4], dtype="Int64"), [1, 2, 3, 4]),
    "nullable_int_with_missing": (pd.array([1, None, 3, 4], dtype="Int64"), [1, None, 3, 4]),
    "nullable_bool_with_missing": (pd.array([True, None, False, True], dtype="boolean"), [True, None, False, True]),
    "all_missing": ([np.nan] * N, [None] * N),
    "mixed": (["a", 1, 2.5, True], ["a", "1", "2.5", "True"]),
    "dates": (pd.to_datetime(["2020-01-01"] * N), ["2020-01-01"] * N),
}
NOT_IN_H5AD = ("mixed", "dates")


@pytest.mark.parametrize(
    ("kind", "where"),
    [
        pytest.param(kind, where, id=f"{kind}-{where}")
        for kind in COLUMNS
        for where in ("memory", "file", "out")
        if not (where == "file" and kind in NOT_IN_H5AD)
    ],
)
def test_numbers_stay_numbers_and_anything_else_becomes_text(pbmc, vocabulary, tmp_path, kind, where):
    given, expected = COLUMNS[kind]
    adata = pbmc[:N].copy()
    adata.obs["x"] = given
    source = saved(adata, tmp_path / "x.h5ad") if where == "file" else adata
    cells = tokenize(source, vocabulary, obs=["x"], out=tmp_path / "out" if where == "out" else None)
    assert cells.table["x"][:] == expected
    assert [type(value) for value in cells.table["x"][:]] == [type(value) for value in expected]


def test_missing_numbers_and_text_are_missing_in_obs(pbmc, vocabulary):
    adata = pbmc[:N].copy()
    adata.obs["number"], adata.obs["text"] = COLUMNS["float_with_missing"][0], COLUMNS["text_with_missing"][0]
    found = tokenize(adata, vocabulary, obs=["number", "text"]).obs
    assert found.isna().to_numpy().tolist() == [[False] * 2, [True] * 2, [False] * 2, [False] * 2]


def test_columns_come_in_the_order_they_are_asked_for(pbmc, vocabulary):
    cells = tokenize(pbmc[:3], vocabulary, obs=["phase", "cell_type", "phase"])
    assert cells.obs_columns == ["phase", "cell_type"]


def test_no_column_is_carried_along_unasked(pbmc, vocabulary):
    assert tokenize(pbmc[:3], vocabulary).obs_columns == []


def test_an_unknown_column_is_refused_with_the_nearest(pbmc, vocabulary):
    with pytest.raises(InputError, match=r"obs has no column 'celltype'\. Did you mean 'cell_type'\?"):
        tokenize(pbmc, vocabulary, obs=["celltype"])


def test_a_single_name_is_not_read_letter_by_letter(pbmc, vocabulary):
    with pytest.raises(InputError, match=r"obs=.*'cell_type'"):
        tokenize(pbmc, vocabulary, obs="cell_type")


@pytest.mark.parametrize("name", ["cell", "length", "input_ids"])
def test_a_column_named_like_one_of_the_dataset_is_refused(pbmc, vocabulary, name):
    pbmc.obs[name] = 1
    with pytest.raises(
        InputError, match=rf"the obs column '{name}' has the name of a column of the dataset; rename it first"
    ):
        tokenize(pbmc, vocabulary, obs=[name])


# the folder


def test_the_folder_holds_these_files(written):
    assert listing(written) == sorted(
        [ARROW, "dataset_info.json", "spec.json", "state.json", "vocabulary.json", "vocabulary.tsv"]
    )


def test_the_datasets_library_opens_the_folder(written, plain):
    table = datasets.load_from_disk(str(written))
    assert table.column_names == ["cell", "input_ids", "length", *OBS]
    assert table["input_ids"][:] == tokens_of(plain)
    assert table["length"][:] == plain.lengths.tolist()
    assert table["cell"][:] == plain.cell_names.tolist()


def test_pyarrow_opens_the_arrow_file_alone(written, plain):
    assert datasets.Dataset.from_file(str(written / ARROW))["input_ids"][:] == tokens_of(plain)


def test_tokens_are_stored_as_small_as_the_vocabulary_allows(plain):
    assert plain.table.features["input_ids"].feature.dtype == "uint16"


def test_the_folder_carries_its_vocabulary(written, vocabulary):
    assert Vocabulary.load(written) == vocabulary == TokenizedDataset.open(written).vocabulary


def test_the_spec_says_what_made_the_dataset(written, h5ad, vocabulary):
    spec = read_json(written / "spec.json")
    assert spec == TokenizedDataset.open(written).spec
    assert spec["format"] == "geneformer_repro/tokenized/1"
    assert spec["vocabulary"] == vocabulary.fingerprint
    assert spec["max_length"] == 4096
    assert spec["special_tokens"] == dict(vocabulary.special_tokens)
    assert spec["obs"] == OBS
    assert (spec["n_cells"], spec["n_genes"], spec["n_genes_known"], spec["n_cropped"]) == (700, 754, 754, 0)
    assert spec["cells_left_out"] == []
    assert spec["share_of_counts_known"] == 1
    where = {"name": str(h5ad), "path": str(h5ad.resolve()), "sha256": sha256(h5ad)}
    assert spec["source"] == where | {"layer": "X", "gene_ids": None, "n_cells": 700}


def test_the_spec_counts_what_the_vocabulary_knows(pbmc):
    spec = tokenize(pbmc, Vocabulary.fit(pbmc[:, :300])).spec
    assert spec["n_genes_known"] == 300
    share = pbmc.X[:, :300].sum(dtype=np.float64) / pbmc.X.sum(dtype=np.float64)
    np.testing.assert_allclose(spec["share_of_counts_known"], share, atol=1e-6)


def test_the_same_run_gives_the_same_bytes(h5ad, vocabulary, tmp_path):
    for name in "ab":
        tokenize(h5ad, vocabulary, out=tmp_path / name, obs=OBS)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def test_the_same_run_in_another_process_gives_the_same_bytes(h5ad, vocabulary, tmp_path, written):
    vocabulary.save(tmp_path / "v")
    code = (
        "import sys; from geneformer_repro import Vocabulary, tokenize\n"
        "tokenize(sys.argv[1], Vocabulary.load(sys.argv[2]), out=sys.argv[3], obs=['cell_type', 'n_counts'])"
    )
    subprocess.run([sys.executable, "-c", code, str(h5ad), str(tmp_path / "v"), str(tmp_path / "out")], check=True)
    assert digests(tmp_path / "out") == digests(written)


def test_the_fingerprint_does_not_depend_on_where_the_counts_lie(pbmc, vocabulary, plain, written):
    assert TokenizedDataset.open(written).fingerprint == plain.fingerprint
    assert tokenize(pbmc, vocabulary, obs=OBS).fingerprint == plain.fingerprint


def test_the_fingerprint_tells_vocabularies_apart_that_give_the_same_tokens(pbmc, vocabulary):
    once, twice = (tokenize(pbmc, half_of(vocabulary, factor)) for factor in (1, 2))
    assert_same_cells(once, twice)
    assert once.fingerprint != twice.fingerprint


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(lambda adata, vocabulary: tokenize(adata, vocabulary), id="obs"),
        pytest.param(lambda adata, vocabulary: tokenize(adata[:699], vocabulary, obs=OBS), id="cells"),
        pytest.param(lambda adata, vocabulary: tokenize(adata[::-1], vocabulary, obs=OBS), id="order"),
        pytest.param(
            lambda adata, vocabulary: tokenize(adata, Vocabulary.fit(adata, max_length=9), obs=OBS), id="vocabulary"
        ),
    ],
)
def test_the_fingerprint_tells_datasets_apart(pbmc, vocabulary, plain, other):
    assert other(pbmc, vocabulary).fingerprint != plain.fingerprint


@pytest.mark.parametrize("mode", [0o644, 0o444], ids=["writable", "read_only"])
def test_the_input_file_is_left_as_it_was(pbmc, vocabulary, tmp_path, mode):
    source = saved(pbmc, tmp_path / "x.h5ad")
    source.chmod(mode)
    before = hashlib.sha256(source.read_bytes()).hexdigest(), source.stat().st_mtime_ns
    tokenize(source, vocabulary, out=tmp_path / "out", obs=OBS)
    assert (hashlib.sha256(source.read_bytes()).hexdigest(), source.stat().st_mtime_ns) == before
    assert listing(tmp_path) == ["out", "x.h5ad"]


def test_the_input_anndata_is_left_as_it_was(pbmc, vocabulary):
    before = pickle.dumps((pbmc.X, pbmc.obs, pbmc.var))
    tokenize(pbmc, vocabulary, obs=OBS)
    assert pickle.dumps((pbmc.X, pbmc.obs, pbmc.var)) == before


# cells without known genes


@pytest.fixture
def partly(pbmc):
    """Cells of which the second and the last express no gene that the vocabulary knows."""
    counts = pbmc.X[:5].toarray()
    counts[[1, 4], 1:] = 0
    counts[:, 0] = 9
    adata = ad.AnnData(csr_matrix(counts), obs=pbmc.obs[:5], var=pbmc.var)
    return adata, Vocabulary.fit(adata[:, 1:])


def test_cells_without_a_known_gene_are_left_out_and_listed(partly, caplog):
    adata, vocabulary = partly
    with caplog.at_level(logging.WARNING):
        cells = tokenize(adata, vocabulary, obs=["n_counts"])
    assert cells.cell_names.tolist() == adata.obs_names[[0, 2, 3]].tolist()
    assert cells.obs["n_counts"].tolist() == adata.obs["n_counts"].iloc[[0, 2, 3]].tolist()
    assert cells.spec["cells_left_out"] == adata.obs_names[[1, 4]].tolist()
    assert cells.spec["n_cells"] == 3
    assert f"2 cells without a known gene were left out (first: {adata.obs_names[1]})" in caplog.text


def test_leaving_cells_out_does_not_change_the_others(partly):
    adata, vocabulary = partly
    assert_same_cells(tokenize(adata, vocabulary), tokenize(adata[[0, 2, 3]], vocabulary))


def test_a_whole_block_without_known_genes_is_left_out(partly, monkeypatch):
    adata, vocabulary = partly
    expected = tokenize(adata, vocabulary)
    monkeypatch.setattr(CountSource.blocks, "__defaults__", (1,))
    found = tokenize(adata, vocabulary)
    assert_same_cells(found, expected)
    assert found.spec["cells_left_out"] == expected.spec["cells_left_out"]


def test_no_cell_left_is_refused(partly):
    adata, vocabulary = partly
    with pytest.raises(
        DataFormatError, match="no cell is left: none of its 2 cells expresses a gene that the vocabulary knows"
    ):
        tokenize(adata[[1, 4]], vocabulary)


# bad input

SYMBOLS = "these are gene symbols, not Ensembl ids; name the var column .* with gene_ids="
VERSIONS = "the ids carry versions; strip them"
SPECIES = r"another species \({} ids, the vocabulary has ENSG\); map them to orthologs first"


@pytest.mark.parametrize(
    ("ids", "cause"),
    [
        pytest.param(lambda adata: adata.var["gene_name"].tolist(), SYMBOLS, id="symbols"),
        pytest.param(lambda adata: [str(i) for i in range(adata.n_vars)], SYMBOLS, id="numbers"),
        pytest.param(lambda adata: adata.var_names + ".12", VERSIONS, id="versions"),
        pytest.param(
            lambda adata: adata.var_names.str.replace("ENSG", "ENSMUSG"), SPECIES.format("ENSMUSG"), id="mouse"
        ),
        pytest.param(
            lambda adata: adata.var_names.str.replace("ENSG", "ENSRNOG") + ".3", SPECIES.format("ENSRNOG"), id="rat"
        ),
    ],
)
def test_genes_that_are_all_unknown_are_refused_with_the_likely_cause(pbmc, vocabulary, ids, cause):
    pbmc.var_names = ids(pbmc)
    both = rf"\('.+' … against '{vocabulary.gene_ids[0]}' …\)"
    message = rf"none of its 754 genes is known to the vocabulary {both}\. Likely cause: {cause}"
    with pytest.raises(DataFormatError, match=message):
        tokenize(pbmc, vocabulary)


def test_human_ids_that_are_all_unknown_are_not_called_another_species(pbmc):
    vocabulary = Vocabulary.fit(pbmc[:, :300])
    with pytest.raises(DataFormatError, match="none of its 454 genes is known to the vocabulary") as caught:
        tokenize(pbmc[:, 300:], vocabulary)
    assert "another species" not in str(caught.value)


def test_versions_can_be_stripped_as_the_message_says(pbmc, vocabulary, plain):
    pbmc.var_names = pbmc.var_names + ".12"
    pbmc.var_names = pbmc.var_names.str.split(".").str[0]
    assert_same_cells(tokenize(pbmc, vocabulary, obs=OBS), plain)


def test_a_source_without_genes_is_refused(pbmc, vocabulary):
    with pytest.raises(DataFormatError, match="genes"):
        tokenize(pbmc[:, :0].copy(), vocabulary)


def spoil(adata, value):
    adata.X.data[adata.X.indptr[2]] = value
    return adata


BAD = [
    pytest.param(lambda a: spoil(a, 0.5), DataFormatError, "X holds fractional values", id="fractional"),
    pytest.param(lambda a: spoil(a, -1), DataFormatError, "X holds negative values", id="negative"),
    pytest.param(lambda a: spoil(a, np.nan), DataFormatError, "X holds not finite values", id="nan"),
    pytest.param(
        lambda a: in_layer(a, csr_matrix), DataFormatError, "'counts' holds counts: name it with layer=", id="layer"
    ),
    pytest.param(in_raw, DataFormatError, "'raw' holds counts: name it with layer=", id="raw"),
    pytest.param(lambda a: a[:0].copy(), DataFormatError, r"holds no cells \(754 genes\)", id="no_cells"),
    pytest.param(lambda a: with_ids_in(a, "x"), DataFormatError, "none of its 754 genes is known", id="no_known_gene"),
]


@pytest.mark.parametrize("where", ["memory", "file"])
@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_counts_are_refused_and_leave_nothing(pbmc, vocabulary, tmp_path, where, change, error, message):
    adata = change(pbmc)
    source = adata if where == "memory" else saved(adata, tmp_path / "x.h5ad")
    before = listing(tmp_path)
    with pytest.raises(error, match=message):
        tokenize(source, vocabulary, out=tmp_path / "out")
    assert listing(tmp_path) == before


def test_a_bad_value_after_many_good_blocks_leaves_nothing(pbmc, vocabulary, tmp_path, monkeypatch):
    monkeypatch.setattr(CountSource.blocks, "__defaults__", (64,))
    pbmc.X.data[-1] = 0.5
    with pytest.raises(DataFormatError, match=f"fractional values .first: cell '{pbmc.obs_names[-1]}'"):
        tokenize(pbmc, vocabulary, out=tmp_path / "out")
    assert listing(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(None, r"x\.h5ad: no such file", id="missing"),
        pytest.param(b"cell,gene\n", r"x\.h5ad: not an \.h5ad \(HDF5\) file", id="text"),
    ],
)
def test_files_that_are_no_h5ad_are_refused_and_leave_nothing(vocabulary, tmp_path, content, message):
    if content:
        (tmp_path / "x.h5ad").write_bytes(content)
    before = listing(tmp_path)
    with pytest.raises(DataFormatError, match=message):
        tokenize(tmp_path / "x.h5ad", vocabulary, out=tmp_path / "out")
    assert listing(tmp_path) == before


def test_a_truncated_file_is_refused_and_leaves_nothing(h5ad, vocabulary, tmp_path):
    (tmp_path / "x.h5ad").write_bytes(h5ad.read_bytes()[:-1000])
    with pytest.raises(DataFormatError, match=r"x\.h5ad: .*truncated"):
        tokenize(tmp_path / "x.h5ad", vocabulary, out=tmp_path / "out")
    assert listing(tmp_path) == ["x.h5ad"]


def test_repeated_cell_names_are_refused(pbmc, vocabulary):
    pbmc.obs_names = [*pbmc.obs_names[:-1], pbmc.obs_names[0]]
    with pytest.raises(DataFormatError, match="cell names stand more than once"):
        tokenize(pbmc, vocabulary)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"layer": "count"}, "there is no layer 'count'", id="layer"),
        pytest.param({"gene_ids": "id"}, "var has no column 'id'", id="gene_ids"),
        pytest.param({"obs": ["donor"]}, "obs has no column 'donor'", id="obs"),
    ],
)
@pytest.mark.parametrize("where", ["memory", "file"])
def test_names_that_do_not_exist_are_refused(pbmc, h5ad, vocabulary, where, options, message):
    with pytest.raises(InputError, match=message):
        tokenize(pbmc if where == "memory" else h5ad, vocabulary, **options)


def test_a_vocabulary_without_medians_is_refused_and_leaves_nothing(pbmc, tmp_path):
    tokens = {"<pad>": 0, "<mask>": 1, pbmc.var_names[0]: 2}
    with pytest.raises(InputError, match="no medians, so it can read tokens but not make them"):
        tokenize(pbmc, Vocabulary.from_tokens(tokens), out=tmp_path / "out")
    assert listing(tmp_path) == []


# existing outputs


def test_an_existing_output_is_refused_before_the_source_is_read(vocabulary, written, tmp_path):
    with pytest.raises(FileExistsError, match=r"cells\.tok already exists.*--overwrite"):
        tokenize(tmp_path / "absent.h5ad", vocabulary, out=written)


def test_overwrite_replaces_an_earlier_dataset(pbmc, vocabulary, written):
    tokenize(pbmc[:7], vocabulary, out=written, overwrite=True)
    assert len(TokenizedDataset.open(written)) == 7
    assert listing(written.parent) == ["cells.tok"]


def test_overwrite_while_the_earlier_dataset_is_open_leaves_it_readable(pbmc, vocabulary, written, plain):
    opened = TokenizedDataset.open(written)
    tokenize(pbmc[:7], vocabulary, out=written, overwrite=True)
    assert_same_cells(opened, plain)


def test_overwrite_never_replaces_another_folder(pbmc, vocabulary, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match=r"without spec\.json, so not an earlier result"):
        tokenize(pbmc, vocabulary, out=tmp_path / "out", overwrite=True)
    assert listing(tmp_path / "out") == ["thesis.tex"]


def test_a_failed_overwrite_leaves_the_earlier_dataset(pbmc, vocabulary, written, plain):
    pbmc.X.data[-1] = 0.5
    with pytest.raises(DataFormatError, match="fractional"):
        tokenize(pbmc, vocabulary, out=written, overwrite=True)
    assert_same_cells(TokenizedDataset.open(written), plain)
    assert listing(written.parent) == ["cells.tok"]


# opening our own


def test_a_dataset_opens_with_its_own_vocabulary(written, vocabulary, plain):
    assert_same_cells(TokenizedDataset.open(written, vocabulary), plain)


def test_a_dataset_is_refused_with_another_vocabulary(written, pbmc):
    with pytest.raises(
        VocabularyMismatchError, match=r"dataset .*cells\.tok and the vocabulary given have different vocab"
    ):
        TokenizedDataset.open(written, Vocabulary.fit(pbmc, series="V1"))


def cut(path, share):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def edit_spec(folder, **changes):
    spec = read_json(folder / "spec.json") | changes
    write_json(folder / "spec.json", {key: value for key, value in spec.items() if value is not None})


def put_another_vocabulary(folder):
    Vocabulary.fit(gf.datasets.pbmc700(), series="V1").write_into(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(lambda d: (d / "spec.json").write_text("{"), r"spec\.json: not readable as JSON", id="spec_cut"),
        pytest.param(
            lambda d: (d / "spec.json").write_text("[]"), "expected a JSON object, found a list", id="spec_list"
        ),
        pytest.param(
            lambda d: edit_spec(d, format="x/2"), r"expected format 'gene.*/1', found 'x/2'", id="spec_format"
        ),
        pytest.param(
            lambda d: edit_spec(d, n_cells=3), "speaks of 3 cells, the dataset holds 700. Tokenise", id="n_cells"
        ),
        pytest.param(lambda d: edit_spec(d, n_cells=None), r"spec\.json", id="no_n_cells"),
        pytest.param(lambda d: (d / ARROW).unlink(), "missing or damaged .* Tokenise again", id="no_arrow"),
        pytest.param(lambda d: cut(d / ARROW, 0.1), "missing or damaged .* Tokenise again", id="arrow_cut_early"),
        pytest.param(lambda d: cut(d / ARROW, 0.99), "missing or damaged .* Tokenise again", id="arrow_cut_late"),
        pytest.param(lambda d: (d / ARROW).write_bytes(b""), "missing or damaged .* Tokenise again", id="arrow_empty"),
        pytest.param(lambda d: (d / "state.json").unlink(), "missing or damaged .* Tokenise again", id="no_state"),
        pytest.param(lambda d: (d / "vocabulary.json").unlink(), r"neither vocabulary\.json", id="no_vocabulary"),
        pytest.param(lambda d: (d / "vocabulary.tsv").unlink(), r"vocabulary\.tsv .*missing", id="no_genes"),
        pytest.param(put_another_vocabulary, "vocabulary", id="another_vocabulary"),
    ],
)
def test_a_damaged_dataset_is_refused(written, damage, message):
    damage(written)
    with pytest.raises(InputError, match=rf"cells\.tok.*{message}"):
        TokenizedDataset.open(written)


# opening those of the published tokenizer


def as_parquet(columns, tmp_path):
    pd.DataFrame(columns).to_parquet(tmp_path / "x.parquet")
    return tmp_path / "x.parquet"


def as_folder(columns, tmp_path):
    datasets.Dataset.from_dict(columns).save_to_disk(tmp_path / "x.dataset")
    return tmp_path / "x.dataset"


@pytest.fixture(params=[as_parquet, as_folder], ids=["parquet", "folder"])
def stored(request, tmp_path):
    """Writes columns as the published tokenizer or its users do, and returns the path."""
    return lambda columns: request.param(columns, tmp_path)


@pytest.fixture(scope="module")
def few():
    """Genes a to e with tokens 4 to 8, at most five tokens a cell."""
    special = {"<pad>": 0, "<mask>": 1, "<cls>": 2, "<eos>": 3}
    return Vocabulary.from_tokens(special | {gene: 4 + i for i, gene in enumerate("abcde")}, max_length=5)


ROWS = [[2, 4, 5, 3], [2, 8, 3], [2, 6, 5, 4, 3]]


def test_published_cells_open_as_they_are(stored, few):
    cells = TokenizedDataset.open(stored({"input_ids": ROWS, "length": [4, 3, 5], "disease": list("xyx")}), few)
    assert tokens_of(cells) == ROWS
    assert cells.lengths.tolist() == [4, 3, 5]
    assert cells.obs["disease"].tolist() == list("xyx")
    assert cells.genes(2) == ["c", "b", "a"]
    assert cells.vocabulary == few


def test_published_cells_without_lengths_get_them(stored, few):
    assert TokenizedDataset.open(stored({"input_ids": ROWS}), few).lengths.tolist() == [4, 3, 5]


@pytest.mark.parametrize("column", ["cell", "unique_cell_id", "cell_id"])
@pytest.mark.parametrize("names", [["z", "y", "x"], [30, 10, 20]], ids=["text", "numbers"])
def test_published_cells_are_named_by_their_column(stored, few, column, names):
    cells = TokenizedDataset.open(stored({"input_ids": ROWS, column: names}), few)
    assert cells.cell_names.tolist() == [str(name) for name in names]
    assert cells.obs_columns == []


def test_published_cells_without_names_are_numbered(stored, few):
    assert TokenizedDataset.open(stored({"input_ids": ROWS}), few).cell_names.tolist() == ["0", "1", "2"]


def test_a_published_folder_in_several_shards_opens_whole(plain, vocabulary, tmp_path):
    plain.table.save_to_disk(tmp_path / "x.dataset", num_shards=3)
    assert_same_cells(TokenizedDataset.open(tmp_path / "x.dataset", vocabulary), plain)


def test_a_published_folder_saved_after_a_selection_opens_so(plain, vocabulary, tmp_path):
    chosen = plain.select([9, 3, 600])
    chosen.table.save_to_disk(tmp_path / "x.dataset")
    assert_same_cells(TokenizedDataset.open(tmp_path / "x.dataset", vocabulary), chosen)


def test_a_parquet_file_of_our_own_cells_opens_as_they_were(plain, vocabulary, tmp_path):
    plain.table.to_parquet(tmp_path / "x.parquet")
    assert_same_cells(TokenizedDataset.open(tmp_path / "x.parquet", vocabulary), plain)


def test_opening_leaves_a_published_file_as_it_was(stored, few):
    path = stored({"input_ids": ROWS})
    before = {file: sha256(file) for file in [path, *path.rglob("*")] if file.is_file()}
    TokenizedDataset.open(path, few)
    assert {file: sha256(file) for file in [path, *path.rglob("*")] if file.is_file()} == before


def test_the_fingerprint_of_published_cells_is_that_of_their_content(stored, few):
    path = stored({"input_ids": ROWS})
    assert TokenizedDataset.open(path, few).fingerprint == TokenizedDataset.open(path, few).fingerprint


def test_the_fingerprint_of_other_published_cells_is_another(few, tmp_path):
    found = {
        TokenizedDataset.open(as_parquet(columns, tmp_path), few).fingerprint
        for columns in (
            {"input_ids": ROWS},
            {"input_ids": ROWS[::-1]},
            {"input_ids": ROWS, "cell": list("abc")},
            {"input_ids": [[2, 4, 3], [2, 5, 8, 3], [2, 6, 5, 4, 3]]},
        )
    }
    assert len(found) == 4


def test_the_spec_of_published_cells_says_where_they_are_from(stored, few):
    path = stored({"input_ids": ROWS})
    spec = TokenizedDataset.open(path, few).spec
    assert spec["format"] == "published"
    assert spec["source"] == {"name": str(path)}
    assert spec["n_cells"] == 3
    assert json.loads(json.dumps(spec)) == spec


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        pytest.param(
            {"input_ids": [[4, 99], [5, 77]]}, r"2 tokens are not genes .*\(first: 99\).*another vocab", id="unknown"
        ),
        pytest.param({"input_ids": [[4, -1]]}, r"1 tokens are not genes .*\(first: -1\)", id="negative"),
        pytest.param({"input_ids": [[4, 0, 0]]}, r"2 tokens are not genes .*\(first: 0\)", id="padded"),
        pytest.param({"input_ids": [[4, 1]]}, r"not genes .*\(first: 1\)", id="masked"),
        pytest.param(
            {"input_ids": [[2, 4, 3], [2, 5, 5, 3]]}, "token 5 stands twice in row 1; a gene has one rank", id="twice"
        ),
        pytest.param(
            {"input_ids": [[2, 4, 5, 6, 7, 3]]}, "has 6 tokens, more than the .* max_length of 5", id="too_long"
        ),
        pytest.param(
            {"input_ids": [[2, 4, 3]], "length": [2]}, "'length' does not give the length of 'input_ids'", id="length"
        ),
        pytest.param(
            {"input_ids": [[2, 4, 3], [2, 5, 3]], "length": [3, None]}, "'length' does not give", id="length_missing"
        ),
        pytest.param(
            {"input_ids": [[2, 4, 3], [2, 5, 3]], "cell": ["x", "x"]}, "names in 'cell' are not distinct", id="names"
        ),
        pytest.param(
            {"input_ids": [[2, 4, 3], [4, 5]]}, "row 1 does not begin with <cls> and end with <eos>", id="not_wrapped"
        ),
        pytest.param(
            {"tokens": [[4]]}, r"expected a table with a column 'input_ids', found \['tokens'\]", id="no_tokens"
        ),
        pytest.param({"input_ids": [4, 5]}, "input_ids", id="no_lists"),
        pytest.param({"input_ids": [["a"], ["b"]]}, "input_ids", id="lists_of_text"),
        pytest.param({"input_ids": [[4.5], [5.0]]}, "input_ids|not genes", id="lists_of_fractions"),
        pytest.param({"input_ids": [[4], None]}, "input_ids", id="cell_missing"),
        pytest.param({"input_ids": [[4], [5, None]]}, "input_ids|not genes", id="token_missing"),
    ],
)
def test_damaged_published_cells_are_refused(stored, few, columns, message):
    with pytest.raises(DataFormatError, match=rf"x\.(parquet|dataset): .*({message})"):
        TokenizedDataset.open(stored(columns), few)


def test_a_published_table_without_cells_is_refused(few, tmp_path):
    with pytest.raises(DataFormatError, match="holds no cells"):
        TokenizedDataset.open(as_parquet({"input_ids": []}, tmp_path), few)


def test_a_dictionary_of_datasets_is_refused(few, tmp_path):
    datasets.DatasetDict(train=datasets.Dataset.from_dict({"input_ids": ROWS})).save_to_disk(tmp_path / "x")
    with pytest.raises(DataFormatError, match=r"expected a table with a column 'input_ids', found .*train"):
        TokenizedDataset.open(tmp_path / "x", few)


@pytest.mark.parametrize(
    "make", [lambda path: path.mkdir(), lambda path: path.write_text("a,b")], ids=["folder", "text"]
)
def test_a_path_that_is_no_dataset_is_refused(few, tmp_path, make):
    make(tmp_path / "x")
    with pytest.raises(DataFormatError, match=r"x: neither a dataset folder nor a Parquet file \(.+\)"):
        TokenizedDataset.open(tmp_path / "x", few)


def test_a_missing_dataset_is_named(few, tmp_path):
    with pytest.raises(
        InputError, match=r"x: no such dataset\. Expected a folder written by tokenize, or a \.dataset folder"
    ):
        TokenizedDataset.open(tmp_path / "x", few)


def test_published_cells_need_a_vocabulary(stored):
    message = (
        r"not written by this package \(no spec\.json\), so its tokens need a vocabulary: .*open\(path, vocabulary\)"
    )
    with pytest.raises(InputError, match=message):
        TokenizedDataset.open(stored({"input_ids": ROWS}))
