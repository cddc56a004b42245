"""The file of an explanation: written, read in blocks, and refused where it is damaged or another one."""

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from geneformer_repro import ShiftTable
from geneformer_repro.errors import DataFormatError
from geneformer_repro.in_silico.explanations.explanation import COLUMNS, FORM, Explanation

METADATA = {
    "measure": "log-odds of each cell_type named in column state, in nats",
    "methods": {"hide": {}, "integrated_gradients": {"baseline": "mask"}},
    "gene_names": {"ENSG1": "A", "ENSG2": "B"},
    "n_cells": 2,
    "donor": None,
    "obs": ["age"],
    "how_good": None,
}


@pytest.fixture
def rows():
    """Two cells, two genes, two methods; of a set there is no place."""
    table = pd.DataFrame(
        {
            "cell": np.repeat(["c1", "c2"], 4),
            "donor": None,
            "gene": ["ENSG1", "ENSG2"] * 4,
            "place": pd.array([0, 1, None, 1, 1, 0, 1, 0], dtype="Int32"),
            "method": ["hide", "hide", "integrated_gradients", "integrated_gradients"] * 2,
            "state": "B",
            "value": np.arange(8) / 4 - 1,
            "before": 0.5,
            "gap": [np.nan, np.nan, 0.01, 0.01] * 2,
            "exact": [True, True, False, False] * 2,
            "age": 61,
        }
    )
    return table.astype({"donor": object})


@pytest.fixture
def saved(rows, tmp_path):
    Explanation(rows, METADATA).save(tmp_path / "why.parquet")
    return tmp_path / "why.parquet"


def test_saved_and_opened_it_is_the_same(rows, saved):
    opened = Explanation.open(saved)
    pd.testing.assert_frame_equal(opened.table, rows, check_dtype=False)
    assert opened.metadata == METADATA
    assert opened.methods == ("hide", "integrated_gradients")
    assert len(opened) == 8
    assert opened.rows_are == "cells"
    assert repr(opened) == (
        "Explanation(8 values (hide, integrated_gradients) of 2 cells: log-odds of each cell_type named in column "
        "state, in nats)"
    )


def test_it_is_read_block_by_block(rows, tmp_path):
    path, half = tmp_path / "why.parquet", len(rows) // 2
    tables = [Explanation(part, METADATA)._tables() for part in (rows[:half], rows[half:])]
    FORM.write(path, (table for of_part in tables for table in of_part), METADATA)
    blocks = list(Explanation.open(path).blocks(["gene", "place", "value"]))
    assert [len(block) for block in blocks] == [4, 4]
    assert blocks[0].dtypes.astype(str).to_dict() == {"gene": "category", "place": "float64", "value": "float64"}
    assert np.isnan(blocks[0]["place"][2])


def test_a_table_of_genes_is_made_of_it(rows):
    table = Explanation(rows, METADATA).genes()
    of_hide = table[table["method"] == "hide"]
    assert of_hide["effect"].to_dict() == {"ENSG1": -0.5, "ENSG2": -0.25}
    assert of_hide["n_cells"].tolist() == [2, 2]


@pytest.mark.parametrize("lost", ["gap", "cell"])
def test_a_table_without_a_column_is_refused(rows, lost):
    with pytest.raises(DataFormatError, match=rf"table of an explanation lacks the columns \['{lost}'\]"):
        Explanation(rows.drop(columns=lost), METADATA)


def test_a_screen_is_no_explanation(tmp_path):
    columns = ["cell", "donor", "perturbed", "affected", "state", "dose", "rank", "value", "before", "exact"]
    shifts = pd.DataFrame({name: [None] for name in columns})
    metadata = {"measure": "cosine similarity", "goal": None, "target": None, "perturbation": {"kind": "delete"}}
    ShiftTable(shifts.assign(cell="c", perturbed="ENSG1", value=0.5, exact=True), metadata | {"gene_names": {}}).save(
        tmp_path / "shifts.parquet"
    )
    with pytest.raises(DataFormatError, match=r"expected format 'geneformer_repro/explanation/1', found .*shifts/2"):
        Explanation.open(tmp_path / "shifts.parquet")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"measure": None}, "should give measure as the number explained, in words, found None"),
        ({"methods": ["hide"]}, "should give methods as settings of each method"),
        ({"obs": ["age", "sex"]}, r"speak of the columns \['sex'\], which it lacks"),
        ({"n_cells": -1}, "should give n_cells as a number of cells"),
    ],
)
def test_metadata_that_are_not_right_are_refused(rows, tmp_path, change, message):
    Explanation(rows, METADATA | change).save(tmp_path / "why.parquet")
    with pytest.raises(DataFormatError, match=message):
        Explanation.open(tmp_path / "why.parquet")


def test_a_file_that_was_cut_off_is_refused(saved):
    content = saved.read_bytes()
    saved.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataFormatError, match=r"why\.parquet: not a readable Parquet file .*the output of explain"):
        Explanation.open(saved)


def test_a_place_below_0_is_refused(rows, saved):
    table = pq.read_table(saved).to_pandas()
    table.loc[0, "place"] = -3
    broken = Explanation(table, METADATA)
    with pytest.raises(DataFormatError, match=r"a place is -3; the first place is 0\. Explain again"):
        list(broken.blocks(["place"]))


def test_columns_are_those_that_are_documented():
    assert list(COLUMNS) == [
        "cell", "donor", "gene", "place", "method", "state", "value", "before", "gap", "exact"
    ]  # fmt: skip
