import hashlib
import json
import re
import shutil
from itertools import pairwise

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import geneformer_repro as gf
from geneformer_repro.errors import DataFormatError, InputError, VocabularyMismatchError
from geneformer_repro.files import read_json, sha256, write_json
from geneformer_repro.tokenizer import dataset as module
from geneformer_repro.tokenizer.counts import rank_values
from geneformer_repro.tokenizer.dataset import TokenizedDataset
from geneformer_repro.tokenizer.labels import as_labels, asked_labels
from geneformer_repro.tokenizer.quality import CellFilter
from geneformer_repro.tokenizer.tokenize import tokenize
from geneformer_repro.tokenizer.vocabulary import Vocabulary

ARROW = "data-000000.arrow"
OBS = ["cell_type", "n_counts"]


def tokens_of(cells):
    return [tokens.tolist() for tokens in cells]


def saved(adata, path):
    adata.copy().write_h5ad(path)
    return path


def assert_same_cells(found, expected):
    assert tokens_of(found) == tokens_of(expected)
    np.testing.assert_array_equal(found.lengths, expected.lengths)
    np.testing.assert_array_equal(found.cell_names, expected.cell_names)
    pd.testing.assert_frame_equal(found.obs, expected.obs)


@pytest.fixture(scope="module")
def plain(_pbmc, vocabulary):
    """The blood cells, tokenised in memory."""
    return tokenize(_pbmc, vocabulary, obs=OBS)


@pytest.fixture(scope="module")
def _written(_pbmc, vocabulary, tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    tokenize(saved(_pbmc, folder / "pbmc.h5ad"), vocabulary, out=folder / "cells.tok", obs=OBS)
    return folder / "cells.tok"


@pytest.fixture
def written(_written, tmp_path):
    """A folder that tokenize wrote; a copy, to be damaged at will."""
    return shutil.copytree(_written, tmp_path / "cells.tok")


@pytest.fixture
def two_sources(pbmc, vocabulary, tmp_path):
    """Cells 0 to 20 and 10 to 25, of two files that share ten names, and a damaged third file."""
    paths = [saved(pbmc[:20], tmp_path / "a.h5ad"), saved(pbmc[10:25], tmp_path / "b.h5ad"), tmp_path / "c.h5ad"]
    paths[2].write_text("cell,gene")
    return tokenize(paths, vocabulary, obs=["cell_type"], out=tmp_path / "two.tok")


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


# digests


def test_a_digest_is_that_of_the_tokens_bytes(plain):
    slow = [
        int.from_bytes(hashlib.blake2b(np.array(cell, dtype="<u4").tobytes(), digest_size=8).digest(), "little")
        for cell in tokens_of(plain)
    ]
    found = plain.digests()
    assert found.dtype == np.uint64
    assert found.tolist() == slow


def test_a_cell_has_the_same_digest_in_two_datasets(pbmc, vocabulary, plain, tmp_path):
    """Under another name, in another row, in memory and from a file."""
    other = pbmc[200:100:-1].copy()
    other.obs_names = [f"renamed{i}" for i in range(other.n_obs)]
    tokenize(saved(other, tmp_path / "other.h5ad"), vocabulary, out=tmp_path / "other.tok")
    np.testing.assert_array_equal(TokenizedDataset.open(tmp_path / "other.tok").digests(), plain.digests()[200:100:-1])


@pytest.mark.parametrize("write", ["to_parquet", "save_to_disk"])
def test_a_cell_has_the_same_digest_in_a_published_dataset(plain, vocabulary, tmp_path, write):
    getattr(plain.table, write)(tmp_path / "x")
    np.testing.assert_array_equal(TokenizedDataset.open(tmp_path / "x", vocabulary).digests(), plain.digests())


def test_other_cells_have_other_digests(plain):
    assert len(np.unique(plain.digests())) == len({tuple(cell) for cell in tokens_of(plain)})


@pytest.mark.parametrize("rows", [[5, 0, 5, 699], []], ids=["some", "none"])
def test_digests_of_selected_cells_are_those_of_their_rows(plain, rows):
    found = plain.select(rows).digests()
    np.testing.assert_array_equal(found, plain.digests()[np.array(rows, dtype=int)], strict=True)


@pytest.mark.parametrize("at_once", [1, 7, 700, 701])
def test_digests_do_not_depend_on_how_many_are_read_at_once(plain, monkeypatch, at_once):
    expected = plain.digests()
    monkeypatch.setattr(module, "CELLS_AT_ONCE", at_once)
    np.testing.assert_array_equal(plain.digests(), expected)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param([[2, 5, 4, 3]], id="another_order"),
        pytest.param([[2, 4, 3]], id="a_gene_less"),
        pytest.param([[2, 4, 6, 3]], id="another_gene"),
    ],
)
def test_a_digest_tells_cells_apart_by(stored, few, other):
    cells = TokenizedDataset.open(stored({"input_ids": [[2, 4, 5, 3], *other]}), few)
    assert len(set(cells.digests().tolist())) == 2


# obs columns


def test_an_obs_column_is_given_by_name(plain):
    pd.testing.assert_series_equal(plain.require_obs("cell_type"), plain.obs["cell_type"])


def test_an_obs_column_is_read_without_the_others(plain, monkeypatch):
    monkeypatch.setattr(TokenizedDataset, "obs", property(lambda _: pytest.fail("all of obs is read")))
    assert len(plain.require_obs("cell_type")) == 700


def test_an_obs_column_that_is_not_there_is_refused_with_the_nearest(plain):
    message = (
        r"no obs column 'celltype'\. Did you mean 'cell_type'\? Columns are carried along with tokenize\(obs=\[…\]\)"
    )
    with pytest.raises(InputError, match=message):
        plain.require_obs("celltype")


@pytest.mark.parametrize(
    ("values", "names"),
    [
        pytest.param([1.0, np.nan, 0.0, -3.0], ["1", None, "0", "-3"], id="whole numbers with a gap"),
        pytest.param([0.5, 1e6 + 1, np.inf], ["0.5", "1000001", "inf"], id="other numbers"),
        pytest.param(np.array([0.1, 2], np.float32), ["0.1", "2"], id="of single precision"),
        pytest.param(np.array([3, 1], np.int8), ["3", "1"], id="integers"),
        pytest.param(pd.array([3, None], "Int64"), ["3", None], id="integers that know gaps"),
        pytest.param([True, False], ["True", "False"], id="booleans"),
        pytest.param([True, None], ["True", None], id="booleans with a gap"),
        pytest.param(["1.0", "1", None], ["1.0", "1", None], id="text"),
        pytest.param(["", " ", "nan", "NaN", "NA", "<NA>", "N/A", "n/a", "#N/A"], [None] * 9, id="missing as text"),
        pytest.param(["None", "null", "na", "Nan"], ["None", "null", "na", "Nan"], id="no missing text"),
        pytest.param(["B", " B", "B ", "B\xa0", "\tB", "T B"], ["B"] * 5 + ["T B"], id="blanks around"),
        pytest.param(pd.Categorical(["NA", "B ", None]), [None, "B", None], id="categories of text"),
        pytest.param(pd.array([True, None], "boolean"), ["True", None], id="truth values that know gaps"),
        pytest.param(["1", 1, 1.0, np.int64(1)], ["1"] * 4, id="of several types"),
        pytest.param(pd.array(["a", None], "string"), ["a", None], id="text that knows gaps"),
        pytest.param(pd.Categorical([2, 1, None], categories=[1, 2, 3]), ["2", "1", None], id="categories of integers"),
        pytest.param(pd.Categorical([2.0, None]), ["2", None], id="categories of whole numbers"),
    ],
)
def test_a_value_has_one_name_whatever_holds_it(values, names):
    found = as_labels(pd.Series(values, index=[f"c{i}" for i in range(len(names))], name="state"))
    expected = pd.Series(names, index=found.index, name="state", dtype=object)
    pd.testing.assert_series_equal(found, expected)


def test_what_is_taken_otherwise_is_counted(caplog):
    caplog.set_level("INFO", "geneformer_repro")
    as_labels(pd.Series(["B", "B ", "nan", "nan", "", None, " T"], name="type"))
    assert "type: 3 of 7 cells say 'nan' or ''; taken as missing" in caplog.text
    assert "type: 2 of 7 cells have blanks around their value (first: 'B '); taken without" in caplog.text


def test_what_is_taken_as_it_stands_is_not_spoken_of(caplog):
    caplog.set_level("INFO", "geneformer_repro")
    as_labels(pd.Series(["B", None, "T"], name="type"))
    assert caplog.text == ""


def test_truth_values_with_gaps_stay_so(few, tmp_path):
    datasets.Dataset.from_dict({"input_ids": ROWS, "ok": [True, None, False]}).save_to_disk(tmp_path / "x")
    cells = TokenizedDataset.open(tmp_path / "x", few)
    for column in (cells.obs["ok"], cells.require_obs("ok"), cells.select([0, 1, 2]).obs["ok"]):
        assert column.dtype == "boolean"
        assert column.tolist() == [True, pd.NA, False]
    assert cells.labels("ok").tolist() == ["True", None, "False"]


def test_labels_are_those_of_the_column(plain):
    pd.testing.assert_series_equal(plain.labels("cell_type"), plain.obs["cell_type"], check_dtype=False)
    with pytest.raises(InputError, match=r"no obs column 'celltype'"):
        plain.labels("celltype")


@pytest.mark.parametrize(
    "value",
    [0, 0.0, "0", "0.0", 0.5, np.int64(3), np.float64(2), True, np.False_, "x", pd.Timestamp("2020")],
    ids=lambda value: f"{type(value).__name__} {value}",
)
def test_a_value_that_is_asked_for_has_the_name_that_it_has_in_a_column(value):
    for column in (pd.Series([value]), pd.Series([value, None], dtype=object), pd.Series([value]).astype("category")):
        assert asked_labels([value], "start") == (as_labels(column)[0],)


@pytest.mark.parametrize("values", [[None], [np.nan], [pd.NA], [["a"]], "a", 7], ids=repr)
def test_what_is_no_value_of_a_column_is_refused(values):
    with pytest.raises(InputError, match="start: each must be"):
        asked_labels(values, "start: each")


def test_the_representation_says_what_it_holds(plain, pbmc, vocabulary):
    assert repr(plain) == f"TokenizedDataset(700 cells, cell_type, n_counts, {vocabulary!r})"
    assert "no obs columns" in repr(tokenize(pbmc[:2], vocabulary))


# names in several sources


def test_names_that_sources_share_are_told_apart_by_their_source(pbmc, two_sources):
    names = [f"a.h5ad/{name}" for name in pbmc.obs_names[:20]] + [f"b.h5ad/{name}" for name in pbmc.obs_names[10:25]]
    assert two_sources.cell_names.tolist() == two_sources.obs.index.tolist() == names
    assert two_sources.select([30, 3]).cell_names.tolist() == [names[30], names[3]]


def test_the_source_of_each_cell_is_an_obs_column(two_sources):
    assert two_sources.obs_columns == ["source", "cell_type"]
    assert two_sources.require_obs("source").tolist() == ["a.h5ad"] * 20 + ["b.h5ad"] * 15


def test_uncropped_tokens_are_no_obs_column(pbmc, vocabulary):
    assert tokenize(pbmc[:3], vocabulary, obs=OBS, uncropped=True).obs_columns == OBS


# the summary


def lines_with(cells, text):
    return [line for line in cells.summary().splitlines() if text in line]


def test_the_summary_says_cells_lengths_and_vocabulary(plain):
    first = plain.summary().splitlines()[0]
    lengths = plain.lengths
    assert first == f"700 cells of {lengths.min()} to {lengths.max()} tokens, {lengths.mean():.0f} on average"
    assert lines_with(plain, "obs columns") == ["obs columns: cell_type, n_counts"]
    assert repr(plain.vocabulary) in plain.summary()


def test_the_bars_of_the_summary_are_all_cells(plain, two_sources):
    for cells in (plain, two_sources, plain.select([0]), plain.select([5, 5])):
        bars = [re.fullmatch(r" +([\d,]+) █* *([\d,]+)", line) for line in cells.summary().splitlines()]
        edges, counts = zip(*((bar[1], int(bar[2].replace(",", ""))) for bar in bars if bar), strict=True)
        assert sum(counts) == len(cells)
        assert len(set(edges)) == len(edges), "two bars of the same length"


def test_each_bar_counts_the_cells_from_its_length_to_the_next(plain):
    bars = [re.fullmatch(r" +([\d,]+) █* *([\d,]+)", line) for line in plain.summary().splitlines()]
    edges, counts = zip(*((int(bar[1].replace(",", "")), int(bar[2])) for bar in bars if bar), strict=True)
    bounds = [*edges, 10**9]
    assert list(counts) == [((plain.lengths >= low) & (plain.lengths < high)).sum() for low, high in pairwise(bounds)]


def test_the_summary_says_what_was_cut_left_out_and_unknown(pbmc, vocabulary):
    short = Vocabulary.fit(pbmc[:, :300], max_length=60)
    asked = CellFilter(min_counts=float(pbmc.obs["n_counts"].quantile(0.1)))
    cells = tokenize(pbmc, short, min_known_share=0, cell_filter=asked)
    n_out = (pbmc.obs["n_counts"] < asked.min_counts).sum()
    n_cut = (pbmc[pbmc.obs["n_counts"] >= asked.min_counts, :300].X.getnnz(axis=1) > 58).sum()
    share = pbmc.X[:, :300].sum(dtype=np.float64) / pbmc.X.sum(dtype=np.float64)
    (cut,) = lines_with(cells, "were cut")
    assert cut.startswith(f"{n_cut} cells ({n_cut / (700 - n_out):.1%}) were cut to 60 tokens: ")
    assert cut.endswith("of a cell's detected genes and 77.8% of its sum of value / median, on average")
    assert lines_with(cells, "left out") == [f"{n_out} cells left out: min_counts (left_out.tsv)"]
    (known,) = lines_with(cells, "of the counts are in known genes")
    assert known.startswith(f"{share:.1%} of the counts")
    assert f"300 kept ({share:.1%}), 0 mapped (0.0%), 0 collapsed (0.0%), 454 unknown ({1 - share:.1%})" in known


def test_the_summary_names_every_source_and_the_damaged_ones(two_sources):
    assert lines_with(two_sources, "source a.h5ad") == [
        "source a.h5ad: 20 of 20 cells, 754 of 754 genes known (100.0% of counts), X, ids from index"
    ]
    (failed,) = lines_with(two_sources, "LEFT OUT: c.h5ad")
    assert "not an .h5ad" in failed
    assert repr(two_sources).endswith(", 1 source left out)")


def test_the_summary_of_many_sources_names_the_first_ten(pbmc, vocabulary):
    cells = tokenize([pbmc[i : i + 2] for i in range(0, 26, 2)], vocabulary)
    assert len(lines_with(cells, "source AnnData")) == 10
    assert "… and 3 more sources (spec.json)" in cells.summary()


def test_the_summary_of_a_selection_speaks_of_the_selection(pbmc):
    cells = tokenize(pbmc, Vocabulary.fit(pbmc, max_length=250))
    few = cells.select([0, 1])
    assert few.summary().startswith("2 cells of ")
    shares = [float(share) for share in re.findall(r"([\d.]+)%\) were cut", few.summary())]
    assert all(share <= 100 for share in shares)


def test_a_selection_without_cells_has_a_summary(plain):
    assert plain.select([]).summary().startswith("0 cells")


def test_published_cells_have_a_summary(plain, vocabulary, tmp_path):
    plain.table.to_parquet(tmp_path / "x.parquet")
    summary = TokenizedDataset.open(tmp_path / "x.parquet", vocabulary).summary()
    assert summary.startswith("700 cells of ")
    assert "x.parquet" in summary


# opening our own


def test_a_dataset_opens_with_its_own_vocabulary(written, vocabulary, plain):
    assert_same_cells(TokenizedDataset.open(written, vocabulary), plain)


def test_a_dataset_opens_whose_vocabulary_has_the_format_before(written, vocabulary, plain):
    """Names and other ids did not count in the fingerprint then."""
    digest = hashlib.sha256(b"geneformer_repro/vocabulary/1" + "\n".join(vocabulary.gene_ids).encode())
    digest.update(vocabulary.tokens.tobytes() + vocabulary.medians.tobytes())
    digest.update(repr((sorted(vocabulary.special_tokens.items()), 4096)).encode())
    header = read_json(written / "vocabulary.json")
    former = {"format": "geneformer_repro/vocabulary/1", "fingerprint": digest.hexdigest()}
    write_json(written / "vocabulary.json", header | former)
    edit_spec(written, vocabulary=digest.hexdigest())
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
            lambda d: edit_spec(d, format="x/2"), r"expected format 'gene.*/2', found 'x/2'", id="spec_format"
        ),
        pytest.param(
            lambda d: edit_spec(d, n_cells=3), "speaks of 3 cells, the dataset holds 700. Tokenise", id="n_cells"
        ),
        pytest.param(lambda d: edit_spec(d, n_cells=None), r"spec\.json: is incomplete .* Tokenise", id="no_n_cells"),
        pytest.param(lambda d: edit_spec(d, sources=None), r"spec\.json: is incomplete .* Tokenise", id="no_sources"),
        pytest.param(lambda d: edit_spec(d, failed=None), r"spec\.json: is incomplete .* Tokenise", id="no_failed"),
        pytest.param(
            lambda d: edit_spec(d, format="geneformer_repro/tokenized/1"), r"found '.*/1'. Tokenise again", id="before"
        ),
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


def made(folder):
    folder.mkdir()
    return folder


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


LABELLED = {"input_ids": ROWS, "label": ["x", None, "yz"], "batch": [1, 2, 3], "share": [0.5, 1.0, 1.5]}


def test_the_fingerprint_of_published_cells_is_that_of_their_content_however_it_is_stored(few, tmp_path):
    found = set()
    for n_shards in (1, 3):
        datasets.Dataset.from_dict(LABELLED).save_to_disk(tmp_path / f"{n_shards}.dataset", num_shards=n_shards)
        found.add(TokenizedDataset.open(tmp_path / f"{n_shards}.dataset", few).fingerprint)
    other_types = {
        "input_ids": pa.array(ROWS, pa.large_list(pa.uint8())),
        "label": pa.array(LABELLED["label"]).dictionary_encode(),
    }
    table = pa.table(LABELLED | other_types)
    pq.write_table(pa.concat_tables([table[:1], table[1:]]), tmp_path / "x.parquet", row_group_size=2)
    found.add(TokenizedDataset.open(tmp_path / "x.parquet", few).fingerprint)
    assert len(found) == 1


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"input_ids": ROWS[::-1]}, id="order"),
        pytest.param({"input_ids": [[2, 4, 3], [2, 5, 8, 3], [2, 6, 5, 4, 3]]}, id="cuts_between_cells"),
        pytest.param({"cell": list("abc")}, id="names"),
        pytest.param({"label": ["yz", None, "x"]}, id="two_labels_swapped"),
        pytest.param({"label": ["xy", None, "z"]}, id="cuts_between_labels"),
        pytest.param({"label": ["x", "", "yz"]}, id="empty_instead_of_missing"),
        pytest.param({"batch": ["1", "2", "3"]}, id="text_instead_of_numbers"),
        pytest.param({"share": [0.5, 1.0, 1.25]}, id="a_number"),
        pytest.param({"more": [True, False, True]}, id="another_column"),
        pytest.param({"batch": None, "lot": [1, 2, 3]}, id="name_of_a_column"),
    ],
)
def test_the_fingerprint_tells_published_datasets_apart(few, tmp_path, other):
    """Labels, too: whoever goes on with unfinished work must not go on with others."""
    changed = {name: values for name, values in (LABELLED | other).items() if values is not None}
    first, second = (
        TokenizedDataset.open(as_folder(columns, made(tmp_path / name)), few)
        for name, columns in (("a", LABELLED), ("b", changed))
    )
    assert first.fingerprint != second.fingerprint
    assert first.select([2, 0]).fingerprint != second.select([2, 0]).fingerprint


# cells without a gene


@pytest.fixture(params=["V1", "V2"])
def with_empty(request, few, stored):
    """Five cells: the second has no gene, in V2 written as its special tokens alone; the fourth not even these."""
    wrapped = request.param == "V2"
    special = {token: few.special_tokens[token] for token in ("<pad>", "<mask>", *(("<cls>", "<eos>") * wrapped))}
    vocabulary = Vocabulary.from_tokens(special | dict(zip("abcde", few.tokens.tolist(), strict=True)), max_length=5)
    rows = [[2, *genes, 3] if wrapped and genes is not None else genes or [] for genes in ([4], [], [5, 6], None, [7])]
    return stored({"input_ids": rows, "cell": list("vwxyz")}), vocabulary


def test_cells_without_a_gene_are_named_and_carried(with_empty, caplog):
    cells = TokenizedDataset.open(*with_empty)
    assert re.search(r"2 of 5 cells have no gene \('w', 'y'\)", caplog.text)
    assert cells.has_gene.tolist() == [True, False, True, False, True]
    assert [cells.genes(i) for i in range(5)] == [["a"], [], ["b", "c"], [], ["d"]]
    assert [len(tokens) for tokens in cells] == cells.lengths.tolist()
    assert rank_values(cells).getnnz(axis=1).tolist() == [1, 0, 2, 0, 1]
    assert len(cells.digests()) == 5
    assert cells.summary().startswith("5 cells of ")
    empty = cells.select([1, 3])
    assert not empty.has_gene.any()
    assert rank_values(empty).nnz == 0
    assert empty.summary().startswith("2 cells of ")
    assert len(empty.digests()) == 2
    assert rank_values(cells.select([])).shape == (0, 5)


def test_published_cells_that_all_lack_genes_are_refused(stored, few):
    with pytest.raises(DataFormatError, match="none of its 2 cells has a gene"):
        TokenizedDataset.open(stored({"input_ids": [[2, 3], [2, 3]]}), few)


def test_the_spec_of_published_cells_says_where_they_are_from(stored, few):
    path = stored({"input_ids": ROWS})
    spec = TokenizedDataset.open(path, few).spec
    assert spec["format"] == "published"
    assert spec["sources"] == [{"name": str(path)}]
    assert spec["n_cells"] == 3
    assert json.loads(json.dumps(spec)) == spec


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        pytest.param(
            {"input_ids": [[4, 99], [5, 77]]}, r"2 tokens are not genes .*\(first: 99\).*another vocab", id="unknown"
        ),
        pytest.param({"input_ids": [[4, -1]]}, r"1 tokens are not genes .*\(first: -1\)", id="negative"),
        pytest.param({"input_ids": [[2, 4, 0, 5, 3]]}, r"1 tokens .*\(first: 0 \(<pad>\)\)", id="padding_inside"),
        pytest.param({"input_ids": [[4, 1]]}, r"not genes .*\(first: 1 \(<mask>\)\)", id="masked"),
        pytest.param(
            {"input_ids": [[2, 4, 3], [2, 5, 5, 3]]}, "token 5 stands twice in row 1; a gene has one rank", id="twice"
        ),
        pytest.param(
            {"input_ids": [[2, 4, 5, 6, 7, 3]]},
            r"has 6 tokens, .* max_length of 5. Cut .*max_length=5\)",
            id="too_long",
        ),
        pytest.param(
            {"input_ids": [[2, 4, 3]], "length": [2]}, "'length' does not give the length of 'input_ids'", id="length"
        ),
        pytest.param(
            {"input_ids": [[2, 4, 3], [2, 5, 3]], "length": [3, None]}, "'length' does not give", id="length_missing"
        ),
        pytest.param(
            {"input_ids": [[2, 4, 3], [4, 5]]}, "row 1 does not begin with <cls> and end with <eos>", id="not_wrapped"
        ),
        pytest.param(
            {"tokens": [[4]]}, r"expected a table with a column 'input_ids', found \['tokens'\]", id="no_tokens"
        ),
        pytest.param({"input_ids": [4, 5]}, "must hold a list of whole numbers", id="no_lists"),
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
