"""The folder of a dataset: written, saved again, opened by other versions of `datasets`, and damaged."""

import shutil

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from geneformer_repro.errors import DataFormatError, InputError
from geneformer_repro.files import read_json, write_json
from geneformer_repro.tokenizer import rows as module
from geneformer_repro.tokenizer.dataset import TokenizedDataset
from geneformer_repro.tokenizer.tokenize import tokenize
from geneformer_repro.tokenizer.vocabulary import Vocabulary

ARROW = "data-000000.arrow"
ROWS = [[2, 4, 5, 3], [2, 8, 3], [2, 6, 5, 4, 3]]


@pytest.fixture(scope="module")
def few():
    """Genes a to e with tokens 4 to 8, at most five tokens a cell."""
    special = {"<pad>": 0, "<mask>": 1, "<cls>": 2, "<eos>": 3}
    return Vocabulary.from_tokens(special | {gene: 4 + i for i, gene in enumerate("abcde")}, max_length=5)


@pytest.fixture
def published(few, tmp_path):
    """Three cells of others, with obs columns of several types."""
    columns = {"input_ids": ROWS, "kind": ["x", None, "y"], "n": [1, 2, 3], "share": np.array([0.1, 2, 3], np.float32)}
    datasets.Dataset(pa.table(columns | {"ok": [True, None, False]})).save_to_disk(tmp_path / "theirs")
    return TokenizedDataset.open(tmp_path / "theirs", few)


@pytest.fixture
def saved(published, tmp_path):
    """The same, as this package writes them."""
    published.save(tmp_path / "saved")
    return tmp_path / "saved"


def assert_same(found, expected):
    assert [cell.tolist() for cell in found] == [cell.tolist() for cell in expected]
    np.testing.assert_array_equal(found.lengths, expected.lengths)
    np.testing.assert_array_equal(found.cell_names, expected.cell_names)
    pd.testing.assert_frame_equal(found.obs, expected.obs)
    assert found.fingerprint == expected.fingerprint
    assert found.vocabulary == expected.vocabulary


# saving


def test_published_cells_that_were_saved_open_without_a_vocabulary(published, saved):
    assert_same(TokenizedDataset.open(saved), published)


@pytest.mark.parametrize("rows", [[2, 0], [1, 1, 1], []], ids=["some", "repeated", "none"])
def test_a_selection_that_was_saved_opens_equal(published, rows, tmp_path):
    published.select(rows).save(tmp_path / "few")
    assert_same(TokenizedDataset.open(tmp_path / "few"), published.select(rows))


def test_what_was_saved_is_saved_again_as_it_is(saved, tmp_path):
    TokenizedDataset.open(saved).save(tmp_path / "again")
    for file in saved.iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes(), file.name


def test_cells_of_several_sources_keep_their_names_and_uncropped_genes(pbmc, vocabulary, tmp_path):
    cells = tokenize([pbmc[:20], pbmc[10:25]], vocabulary, obs=["cell_type"], uncropped=True)
    cells.select([30, 3]).save(tmp_path / "few")
    opened = TokenizedDataset.open(tmp_path / "few")
    assert_same(opened, cells.select([30, 3]))
    assert opened.table["input_ids_uncropped"][:] == cells.select([30, 3]).table["input_ids_uncropped"][:]


def test_saving_spares_what_is_there(published, saved):
    with pytest.raises(FileExistsError, match="already exists"):
        published.save(saved)
    published.select([0]).save(saved, overwrite=True)
    assert len(TokenizedDataset.open(saved)) == 1


def test_cells_of_ours_are_cut_on_request(saved):
    cells = TokenizedDataset.open(saved, max_length=4)
    assert [cell.tolist() for cell in cells] == [[2, 4, 5, 3], [2, 8, 3], [2, 6, 5, 3]]
    assert cells.lengths.tolist() == [4, 3, 4]
    assert cells.spec["n_cropped"] == 1
    assert cells.fingerprint != TokenizedDataset.open(saved).fingerprint
    assert_same(TokenizedDataset.open(saved, max_length=5), TokenizedDataset.open(saved))


# other versions of datasets


@pytest.fixture(scope="module")
def _written(_pbmc, vocabulary, tmp_path_factory):
    folder = tmp_path_factory.mktemp("written") / "cells.tok"
    tokenize(_pbmc[:60], vocabulary, obs=["n_counts", "cell_type"], out=folder)
    return folder


@pytest.fixture
def written(_written, tmp_path):
    """A folder that tokenize wrote; a copy, to be damaged at will."""
    return shutil.copytree(_written, tmp_path / "cells.tok")


def test_lists_are_written_in_the_word_that_datasets_3_knows(written):
    features = read_json(written / "dataset_info.json")["features"]
    assert features["input_ids"] == {"feature": {"dtype": "uint16", "_type": "Value"}, "_type": "Sequence"}
    assert {one["dtype"] for name, one in features.items() if name != "input_ids"} == {"string", "int32", "float64"}
    with pa.OSFile(str(written / ARROW)) as file:
        assert pa.ipc.open_stream(file).schema.metadata is None


def test_a_folder_of_datasets_4_opens_as_well(written, tmp_path):
    """As this package wrote them before: its lists are called List, also in the Arrow file."""
    ours = TokenizedDataset.open(written)
    table = datasets.load_from_disk(written)
    shutil.copytree(written, tmp_path / "former")
    for path in ("dataset_info.json", "state.json", ARROW):
        (tmp_path / "former" / path).unlink()
    table.save_to_disk(tmp_path / "stored")
    shutil.copytree(tmp_path / "stored", tmp_path / "former", dirs_exist_ok=True)
    assert_same(TokenizedDataset.open(tmp_path / "former"), ours)


# damaged


def arrow_of(folder):
    with pa.OSFile(str(folder / ARROW)) as file:
        return pa.ipc.open_stream(file).read_all()


def put(folder, table):
    with pa.OSFile(str(folder / ARROW), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)


def edited(folder, change, *, lengths=True):
    """Write the tokens of the second cell otherwise."""
    table = arrow_of(folder)
    rows = table["input_ids"].to_pylist()
    rows[1] = change(rows[1])
    table = table.set_column(1, table.schema.field(1), pa.array(rows, table.schema.field(1).type))
    if lengths:
        table = table.set_column(2, "length", pa.array([len(row) for row in rows], pa.int32()))
    put(folder, table)


def renamed(folder, name, other):
    table = arrow_of(folder)
    put(folder, table.rename_columns([other if one == name else one for one in table.column_names]))
    info = (folder / "dataset_info.json").read_text()
    (folder / "dataset_info.json").write_text(info.replace(f'"{name}"', f'"{other}"'))


def without_names(folder):
    table = arrow_of(folder)
    put(folder, table.set_column(0, "cell", pa.array([None] * len(table), pa.string())))


def offsets_beyond(folder):
    """Let the lists end behind their values, in the file's own bytes."""
    table = arrow_of(folder)
    offsets = np.asarray(table["input_ids"].chunk(0).offsets, dtype="<i4").tobytes()
    content = (folder / ARROW).read_bytes()
    at = content.index(offsets)
    (folder / ARROW).write_bytes(content[: at + 4] + b"\xff\xff\xff\x7f" + content[at + 8 :])


def edit_spec(folder, **changes):
    write_json(folder / "spec.json", read_json(folder / "spec.json") | changes)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(lambda d: edited(d, lambda row: [*row[:2], *row[1:]]), "stands twice in row 1", id="a gene twice"),
        pytest.param(lambda d: edited(d, lambda row: [*row[:1], 0, *row[1:]]), r"first: 0 \(<pad>\)", id="padding"),
        pytest.param(lambda d: edited(d, lambda row: [*row[:1], 1, *row[1:]]), r"first: 1 \(<mask>\)", id="a mask"),
        pytest.param(lambda d: edited(d, lambda row: [*row[:1], 999, *row[1:]]), "first: 999", id="token beyond"),
        pytest.param(lambda d: edited(d, lambda row: row[1:]), "row 1 does not begin with <cls>", id="no cls"),
        pytest.param(lambda d: edited(d, lambda row: row[:-1]), "end with <eos>", id="no eos"),
        pytest.param(
            lambda d: edited(d, lambda row: row[1:], lengths=False), "'length' does not give", id="wrong length"
        ),
        pytest.param(lambda d: renamed(d, "cell_type", "kind"), "speaks of the columns 'cell_type'", id="obs renamed"),
        pytest.param(lambda d: renamed(d, "cell", "name"), "speaks of the columns 'cell'", id="no names"),
        pytest.param(lambda d: renamed(d, "input_ids", "ids"), "missing or damaged", id="no tokens"),
        pytest.param(without_names, "'cell' has 60 missing values", id="names missing"),
        pytest.param(offsets_beyond, "missing or damaged", id="offsets beyond the values"),
        pytest.param(lambda d: (d / "state.json").write_text("[" * 10**5), "missing or damaged", id="nested state"),
        pytest.param(lambda d: (d / "state.json").write_text("{}"), "missing or damaged", id="empty state"),
        pytest.param(lambda d: (d / "dataset_info.json").write_text("[]"), "missing or damaged", id="info a list"),
        pytest.param(lambda d: (d / "spec.json").write_text("[" * 10**5), "not readable as JSON", id="nested spec"),
        pytest.param(lambda d: edit_spec(d, n_cells="60"), "n_cells should be a whole number", id="n_cells text"),
        pytest.param(lambda d: edit_spec(d, n_cells=True), "n_cells should be a whole number", id="n_cells true"),
        pytest.param(lambda d: edit_spec(d, n_cells=10**11), "speaks of 100000000000 cells", id="n_cells huge"),
        pytest.param(lambda d: edit_spec(d, fingerprint=7), "fingerprint should be text", id="fingerprint"),
        pytest.param(lambda d: edit_spec(d, sources={}), "sources should be a list", id="sources"),
        pytest.param(lambda d: edit_spec(d, sources=[{}]), r"'name' is missing in sources\[0\]", id="source"),
        pytest.param(lambda d: edit_spec(d, failed=["x"]), r"failed\[0\] should be an object", id="failed"),
        pytest.param(lambda d: edit_spec(d, genes={"kept": 3}), "genes.kept should be an object", id="genes"),
        pytest.param(
            lambda d: edit_spec(d, sources=[{"name": "a", "n_cells": 3}]),
            "'n_cells_kept' is missing in a",
            id="half a source",
        ),
        pytest.param(lambda d: edit_spec(d, max_length="long"), "max_length should be a whole number", id="length"),
        pytest.param(lambda d: edit_spec(d, obs="cell_type"), "obs should be a list", id="obs"),
        pytest.param(lambda d: edit_spec(d, cell_names_unique=False), "columns 'source'", id="no source"),
    ],
)
def test_a_folder_that_is_not_what_it_says_is_refused(written, damage, message):
    damage(written)
    with pytest.raises(InputError, match=rf"cells\.tok.*{message}"):
        TokenizedDataset.open(written)


def test_of_a_large_dataset_the_first_and_last_cells_are_looked_at(written, monkeypatch):
    monkeypatch.setattr(module, "CELLS_AT_ONCE", 5)
    monkeypatch.setattr(module, "_MOST_TOKENS", 1)
    lengths = TokenizedDataset.open(written).lengths
    assert module.starts_to_check(lengths) == [0, 55]
    edited(written, lambda row: [*row[:2], *row[1:]])
    with pytest.raises(DataFormatError, match="stands twice in row 1"):
        TokenizedDataset.open(written)
