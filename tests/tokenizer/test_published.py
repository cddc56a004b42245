"""Tokenised cells as others write them: what is made of them, and what is said of it."""

import datetime
import re

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from geneformer_repro.errors import DataFormatError, InputError
from geneformer_repro.tokenizer.dataset import TokenizedDataset
from geneformer_repro.tokenizer.published import described, is_dataset
from geneformer_repro.tokenizer.vocabulary import Vocabulary

PAD, MASK, CLS, EOS = range(4)
ROWS = [[2, 4, 5, 3], [2, 8, 3], [2, 6, 5, 4, 3]]
LONG = [[2, 4, 3], [2, 4, 5, 6, 7, 8, 3]]


@pytest.fixture(scope="module")
def few():
    """Genes a to e with tokens 4 to 8, at most five tokens a cell."""
    special = {"<pad>": PAD, "<mask>": MASK, "<cls>": CLS, "<eos>": EOS}
    return Vocabulary.from_tokens(special | {gene: 4 + i for i, gene in enumerate("abcde")}, max_length=5)


@pytest.fixture
def opened(few, tmp_path):
    """Opens columns (an Arrow type where it matters) as a dataset folder, or as Parquet."""

    def open_them(columns, *, parquet=False, features=None, **options):
        if parquet:
            pq.write_table(pa.table(columns), tmp_path / "x.parquet")
            return TokenizedDataset.open(tmp_path / "x.parquet", few, **options)
        table = datasets.Dataset(pa.table(columns))
        (table.cast(features) if features else table).save_to_disk(tmp_path / "x.dataset")
        return TokenizedDataset.open(tmp_path / "x.dataset", few, **options)

    return open_them


def tokens_of(cells):
    return [cell.tolist() for cell in cells]


# tokens


@pytest.mark.parametrize("parquet", [False, True], ids=["folder", "parquet"])
@pytest.mark.parametrize("kind", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"])
@pytest.mark.parametrize("lists", [pa.list_, pa.large_list], ids=["list", "large_list"])
def test_tokens_are_the_same_in_whatever_type_they_are_stored(opened, lists, kind, parquet):
    cells = opened({"input_ids": pa.array(ROWS, lists(pa.type_for_alias(kind)))}, parquet=parquet)
    assert tokens_of(cells) == ROWS
    assert cells.lengths.tolist() == [4, 3, 5]


def test_lists_of_one_length_are_read_as_any(opened):
    features = datasets.Features({"input_ids": datasets.Sequence(datasets.Value("int64"), length=3)})
    cells = opened({"input_ids": [[2, 4, 3], [2, 5, 3]]}, features=features)
    assert tokens_of(cells.select([1, 0])) == [[2, 5, 3], [2, 4, 3]]
    assert len(cells.digests()) == 2


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("length", [None, [4, 3, 5, 2], [5] * 4], ids=["no length", "its own", "of the padded"])
@pytest.mark.parametrize("with_mask", [False, True], ids=["no mask", "mask"])
def test_padding_is_stripped_and_said(opened, few, caplog, side, length, with_mask):
    rows = [*ROWS, [2, 3]]
    padding = [[PAD] * (5 - len(row)) for row in rows]
    padded = [row + pad if side == "right" else pad + row for row, pad in zip(rows, padding, strict=True)]
    columns = {"input_ids": padded}
    if length:
        columns["length"] = length
    if with_mask:
        columns["attention_mask"] = (np.array(padded) != PAD).astype(int).tolist()
    cells = opened(columns)
    assert tokens_of(cells) == rows
    assert cells.lengths.tolist() == [4, 3, 5, 2]
    assert cells.obs_columns == []
    assert "3 of 4 cells are padded with token 0; the padding is stripped" in caplog.text


def test_padded_cells_have_the_fingerprint_of_the_same_without(opened, few, tmp_path):
    plain = opened({"input_ids": ROWS}).fingerprint
    padded = pa.array([row + [PAD] * (6 - len(row)) for row in ROWS])
    pq.write_table(pa.table({"input_ids": padded}), tmp_path / "padded.parquet")
    assert TokenizedDataset.open(tmp_path / "padded.parquet", few).fingerprint == plain


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        pytest.param([[1, 1, 1, 1], [1, 1, 0], [1] * 5], "lets 2 of the 3 tokens of row 1 be seen", id="hides a token"),
        pytest.param([[1, 1, 1], [1, 1, 1], [1] * 5], "lets 3 of the 4 tokens of row 0", id="of another length"),
        pytest.param([1, 1, 1], "must hold a list of 0 and 1", id="no lists"),
        pytest.param([[1] * 4, None, [1] * 5], "has missing values", id="missing"),
    ],
)
def test_a_mask_that_hides_more_than_padding_is_refused(opened, mask, message):
    with pytest.raises(DataFormatError, match=f"'attention_mask' {message}"):
        opened({"input_ids": ROWS, "attention_mask": mask})


def test_longer_cells_are_cut_on_request_and_keep_their_end(opened, few):
    cells = opened({"input_ids": LONG, "length": [3, 7]}, max_length=4)
    assert tokens_of(cells) == [[2, 4, 3], [2, 4, 5, 3]]
    assert cells.lengths.tolist() == [3, 4]
    assert "1 cells (50.0%) were cut to 4 tokens" in cells.summary()


def test_cells_without_special_tokens_are_cut_at_their_end(few, tmp_path):
    plain = Vocabulary.from_tokens({"<pad>": 0, "<mask>": 1, "a": 2, "b": 3, "c": 4}, max_length=3)
    pq.write_table(pa.table({"input_ids": [[4, 2, 3], [2]]}), tmp_path / "x.parquet")
    assert tokens_of(TokenizedDataset.open(tmp_path / "x.parquet", plain, max_length=2)) == [[4, 2], [2]]


@pytest.mark.parametrize("max_length", [0, 2, 6])
def test_a_length_that_no_cell_can_have_is_refused(opened, max_length):
    with pytest.raises(InputError, match=f"max_length must be a whole number from 3 to 5, .* found {max_length!r}"):
        opened({"input_ids": ROWS}, max_length=max_length)


# columns of obs


def test_codes_of_classes_become_their_names(opened):
    features = {"input_ids": datasets.Sequence(datasets.Value("int64")), "type": datasets.ClassLabel(names=["T", "B"])}
    cells = opened({"input_ids": ROWS, "type": [1, -1, 0]}, features=datasets.Features(features))
    assert cells.obs["type"].tolist() == ["B", None, "T"]


def test_codes_of_classes_are_named_in_parquet_of_datasets_too(few, tmp_path):
    features = {"input_ids": datasets.Sequence(datasets.Value("int64")), "type": datasets.ClassLabel(names=["T", "B"])}
    table = datasets.Dataset.from_dict({"input_ids": ROWS, "type": [1, None, 0]}, features=datasets.Features(features))
    table.to_parquet(tmp_path / "x.parquet")
    assert TokenizedDataset.open(tmp_path / "x.parquet", few).obs["type"].tolist() == ["B", None, "T"]


def test_what_is_no_value_for_each_cell_is_left_out_and_said(opened, caplog):
    columns = {"vec": [[0.1]] * 3, "of": [{"a": 1}] * 3, "raw": [b"x"] * 3, "kept": [1, 2, 3]}
    assert opened({"input_ids": ROWS} | columns).obs_columns == ["kept"]
    assert "the columns 'vec', 'of', 'raw' hold lists, structures or bytes" in caplog.text


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        pytest.param(pa.array([1, None, 3], pa.int16()), [1, None, 3], id="integers"),
        pytest.param(pa.array([True, None, False]), [True, None, False], id="truth values"),
        pytest.param(pa.array([0.5, None, 2], pa.float16()), [0.5, None, 2], id="half floats"),
        pytest.param(pa.array(["a", None, "b"], pa.large_string()), ["a", None, "b"], id="large text"),
        pytest.param(pa.array(["a", None, "b"]).dictionary_encode(), ["a", None, "b"], id="categories"),
        pytest.param(pa.array([None] * 3, pa.null()), [None] * 3, id="nothing"),
        pytest.param(
            pa.array([datetime.datetime(2020, 1, 2, 3, 4, 5), None, datetime.datetime(2021, 1, 1)]),
            ["2020-01-02T03:04:05", None, "2021-01-01T00:00:00"],
            id="times",
        ),
        pytest.param(pa.array([datetime.date(2020, 1, 2)] * 3), ["2020-01-02"] * 3, id="dates"),
    ],
)
def test_values_of_every_plain_type_are_carried(opened, column, expected):
    obs = opened({"input_ids": ROWS, "x": column}, parquet=True).obs["x"]
    assert obs.isna().tolist() == [one is None for one in expected]
    assert obs.dropna().tolist() == [one for one in expected if one is not None]


def test_the_index_that_pandas_stored_is_no_column(few, tmp_path):
    pd.DataFrame({"input_ids": ROWS, "x": [1, 2, 3]}, index=list("abc")).to_parquet(tmp_path / "x.parquet")
    assert TokenizedDataset.open(tmp_path / "x.parquet", few).obs_columns == ["x"]


# names


@pytest.mark.parametrize(
    ("names", "expected", "said"),
    [
        pytest.param(["x", "y", "x"], ["0/x", "1/y", "2/x"], "several are called 'x'", id="repeated"),
        pytest.param(["x", None, "y"], ["0/x", "1/", "2/y"], "1 cells have none", id="missing"),
        pytest.param(["", "x", "y"], ["0/", "1/x", "2/y"], "1 cells have none", id="empty"),
    ],
)
def test_names_that_do_not_tell_cells_apart_get_the_row_before_them(opened, caplog, names, expected, said):
    assert opened({"input_ids": ROWS, "cell_id": names}).cell_names.tolist() == expected
    assert f"the names in 'cell_id' do not tell cells apart ({said})" in caplog.text


# several datasets, or none


def test_of_several_datasets_the_names_are_said_and_one_opens(few, tmp_path):
    one = datasets.Dataset.from_dict({"input_ids": ROWS})
    datasets.DatasetDict(train=one, test=one).save_to_disk(tmp_path / "x")
    with pytest.raises(
        DataFormatError, match=r"holds 2 datasets by name, found 'train', 'test'.*Name one: (\S+)\.$"
    ) as e:
        TokenizedDataset.open(tmp_path / "x", few)
    named = re.search(r"Name one: (\S+)\.$", str(e.value))[1]
    assert tokens_of(TokenizedDataset.open(named, few)) == ROWS


@pytest.mark.parametrize("content", ["{", "[]", '{"splits": []}', '{"splits": 3}', "[" * 100_000])
def test_a_damaged_list_of_datasets_is_named(few, tmp_path, content):
    (tmp_path / "dataset_dict.json").write_text(content)
    with pytest.raises(DataFormatError, match=r"dataset_dict\.json"):
        TokenizedDataset.open(tmp_path, few)


# without a vocabulary


def test_a_dataset_is_described_without_a_vocabulary(tmp_path):
    datasets.Dataset.from_dict({"input_ids": [[2, 4, 3], [2, 3]], "type": ["T", "B"]}).save_to_disk(tmp_path / "x")
    said = described(tmp_path / "x")
    assert is_dataset(tmp_path / "x")
    assert said.startswith("2 cells of 2 to 3 tokens")
    assert "type (string)" in said
    assert "tokens from 2 to 4" in said
