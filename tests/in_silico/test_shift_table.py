"""The file of a screen: what goes in comes out, part by part, and what is no such file is refused."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from geneformer_repro import DataFormatError, Overexpression, ShiftTable, perturb
from geneformer_repro.in_silico import screen
from geneformer_repro.in_silico.shift_table import COLUMNS, ESTIMATE, SIMILARITY, as_frame, write_blocks

A, B = "ENSG00000000001", "ENSG00000000002"
EACH = {"kind": "Deletion", "genes": "each", "combine": "singly", "anchor": None}
METADATA = {
    "measure": SIMILARITY, "goal": None, "target": None, "perturbation": EACH, "n_cells": 2,
    "gene_names": {A: "ACTB", B: ""},
}  # fmt: skip


def part(cell="cell0", n=2, **columns):
    """Rows of one cell, as a screen lays them out."""
    rows = {
        "cell": [cell] * n, "donor": [None] * n, "perturbed": [A] * n, "affected": [None, B, B][:n],
        "state": [None] * n, "dose": [None, 0.5, 1][:n], "rank": [None, 1, 2][:n],
        "value": np.arange(n) / 3, "before": [None] * n, "exact": [True] * n,
    }  # fmt: skip
    table = pa.table(rows, schema=pa.schema(list(COLUMNS.items())))
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values))
    return table


@pytest.fixture
def written(tmp_path):
    """A file of three parts of two, one and three rows."""
    path = tmp_path / "shifts.parquet"
    write_blocks(path, iter([part("cell0"), part("cell1", 1), part("cell2", 3)]), METADATA)
    return path


# Rows


def test_types_do_not_depend_on_which_values_are_missing():
    expected = {name: np.dtype(object) for name in ("cell", "donor", "perturbed", "affected", "state")}
    expected |= {name: np.dtype(float) for name in ("dose", "value", "before")}
    expected |= {"rank": pd.Int32Dtype(), "exact": np.dtype(bool)}
    for rows in (part(), part(n=1), part(n=3).slice(1), part(n=0)):
        assert as_frame(rows).dtypes.to_dict() == expected


def test_what_is_missing_is_none_or_no_number():
    first = as_frame(part()).iloc[0]
    assert first["affected"] is first["state"] is first["donor"] is None
    assert first["rank"] is pd.NA
    assert np.isnan(first["dose"])
    assert np.isnan(first["before"])


def test_the_parts_of_a_file_are_its_row_groups_in_order(written):
    assert pq.ParquetFile(written).num_row_groups == 3
    blocks = list(ShiftTable.open(written).blocks())
    assert [block["cell"].unique().tolist() for block in blocks] == [["cell0"], ["cell1"], ["cell2"]]
    pd.testing.assert_frame_equal(pd.concat(blocks, ignore_index=True), ShiftTable.open(written).table)


def test_of_some_columns_only_these_are_read_with_text_as_categories(written, monkeypatch):
    read, read_row_group = [], pq.ParquetFile.read_row_group

    def recording(file, group, columns=None):
        read.append(columns)
        return read_row_group(file, group, columns)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", recording)
    wanted = ["perturbed", "affected", "rank"]
    opened = ShiftTable.open(written)
    blocks = list(opened.blocks(wanted))
    assert read == [wanted] * 3
    for block in (*blocks, *ShiftTable(opened.table, METADATA).blocks(wanted)):
        assert [str(kind) for kind in block.dtypes] == ["category", "category", "float64"]
    whole = pd.concat([block.astype({"perturbed": object, "affected": object}) for block in blocks])
    expected = opened.table[wanted].astype({"rank": float})
    assert whole["affected"].fillna("").tolist() == expected["affected"].fillna("").tolist()
    np.testing.assert_array_equal(whole["rank"], expected["rank"])


def test_a_screen_has_a_row_group_for_each_part_of_its_cells(checkpoint, cells, tmp_path, monkeypatch):
    monkeypatch.setattr(screen, "CELLS_A_PART", 2)
    short = cells.select(np.argsort(cells.lengths)[:5])
    shifts = perturb(checkpoint, short, Overexpression(short.genes(0)[:1]), out=tmp_path / "shifts.parquet")
    assert [block["cell"].nunique() for block in shifts.blocks()] == [2, 2, 1]


def test_a_table_in_memory_is_one_block(written):
    frame = as_frame(part())
    assert [id(block) for block in ShiftTable(frame, METADATA).blocks()] == [id(frame)]
    opened = ShiftTable.open(written)
    assert [id(block) for block in (opened.table, *opened.blocks())] == [id(opened.table)] * 2


def test_opening_reads_no_row(written, monkeypatch):
    monkeypatch.setattr(pq, "read_table", None)
    opened = ShiftTable.open(written)
    assert len(opened) == 6
    assert opened.measure == "cosine similarity"
    assert repr(opened) == "ShiftTable(6 values (cosine similarity) of 2 cells)"


def test_memory_is_that_of_a_part_when_writing_and_when_reading(tmp_path):
    size = 10_000 * part().nbytes
    held, before = [], pa.total_allocated_bytes()

    def parts():
        for i in range(20):
            yield pa.concat_tables([part(f"cell{i}")] * 10_000).combine_chunks()
            held.append(pa.total_allocated_bytes() - before)

    write_blocks(tmp_path / "shifts.parquet", parts(), METADATA)
    for block in ShiftTable.open(tmp_path / "shifts.parquet").blocks():
        held.append(pa.total_allocated_bytes() - before)
        assert len(block) == 20_000
    assert len(held) == 40
    assert max(held) < 5 * size


# Files


@pytest.mark.parametrize(
    "columns",
    [
        pytest.param({}, id="plain"),
        pytest.param({"age": [1.5, None], "sex": ["f", None], "n_counts": [3, 4]}, id="obs"),
        pytest.param({ESTIMATE: [0.25, -1.0]}, id="first order"),
    ],
)
def test_a_table_is_the_same_after_save_and_open(tmp_path, columns):
    shifts = ShiftTable(as_frame(part(**columns)), METADATA)
    shifts.save(tmp_path / "shifts.parquet")
    opened = ShiftTable.open(tmp_path / "shifts.parquet")
    pd.testing.assert_frame_equal(opened.table, shifts.table, check_exact=True)
    assert list(opened.table) == [*COLUMNS, *columns]
    assert opened.metadata == METADATA


def test_a_saved_copy_of_a_file_is_the_same_part_by_part(written, tmp_path):
    """Also where a part knows no value of a column."""
    obs = pa.array([None, None], pa.string()), pa.array(["f", "m"])
    write_blocks(written, iter([part(sex=one) for one in obs]), METADATA, overwrite=True)
    ShiftTable.open(written).save(tmp_path / "copy.parquet")
    assert (tmp_path / "copy.parquet").read_bytes() == written.read_bytes()


def test_a_file_may_be_saved_over_itself(written):
    before = written.read_bytes()
    ShiftTable.open(written).save(written, overwrite=True)
    assert written.read_bytes() == before


def test_a_file_that_exists_is_refused(written):
    with pytest.raises(FileExistsError, match=r"shifts\.parquet already exists"):
        ShiftTable(as_frame(part()), METADATA).save(written)


def test_a_file_names_its_format_and_what_made_it(written):
    schema = pq.read_schema(written)
    assert schema.names == list(COLUMNS)
    assert schema.types == list(COLUMNS.values())
    assert json.loads(schema.metadata[b"geneformer_repro"]) == {"format": "geneformer_repro/shifts/2", **METADATA}


def test_metadata_that_a_user_changes_stay_their_own():
    known = dict(METADATA)
    ShiftTable(as_frame(part()), known).metadata["n_cells"] = 5
    assert known == METADATA


@pytest.mark.parametrize("content", ["text", "folder", "missing", "foreign", "other version", "without a column"])
def test_a_file_that_is_no_shift_table_is_refused(tmp_path, content):
    path = tmp_path / "shifts.parquet"
    if content == "text":
        path.write_text("cell,value\n")
    elif content == "folder":
        path.mkdir()
    elif content == "foreign":
        pd.DataFrame({"cell": ["a"], "value": [1.0]}).to_parquet(path)
    elif content in ("other version", "without a column"):
        header = json.dumps({"format": f"geneformer_repro/shifts/{2 if 'column' in content else 1}"})
        rows = part().drop_columns(["dose", "rank"]).replace_schema_metadata({"geneformer_repro": header})
        pq.write_table(rows, path)
    found = {
        "foreign": "found None.*Expected the output of perturb; run it again",
        "other version": "expected format 'geneformer_repro/shifts/2', found 'geneformer_repro/shifts/1'",
        "without a column": r"lacks the columns \['dose', 'rank'\]. The file is damaged; run it again",
    }.get(content, "not a readable Parquet file.*Expected the output of perturb")
    with pytest.raises(DataFormatError, match=rf"shifts\.parquet: .*{found}"):
        ShiftTable.open(path)


def rewritten(path, *, table=None, header=None, **changed):
    """Write the rows of a file again with other ones, metadata or columns."""
    table = pq.read_table(path) if table is None else table
    for name, values in changed.items():
        table = table.set_column(table.schema.names.index(name), name, values)
    kept = pq.read_schema(path).metadata if header is None else {"geneformer_repro": header}
    pq.write_table(table.replace_schema_metadata(kept), path)


def claiming(**claims):
    return json.dumps({"format": "geneformer_repro/shifts/2", **METADATA, **claims})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"value": pa.array(["x"] * 6)}, "'value' should hold double, found string", id="text"),
        pytest.param({"value": pa.nulls(6)}, "'value' should hold double, found null", id="no values"),
        pytest.param({"cell": pa.array(range(6))}, "'cell' should hold string, found int64", id="numbers"),
        pytest.param({"exact": pa.array([1] * 6)}, "'exact' should hold bool, found int64", id="no truth values"),
        pytest.param({"header": b"\xff{"}, "its metadata are no JSON", id="no JSON"),
        pytest.param({"header": "[" * 50_000}, "its metadata are no JSON", id="nested JSON"),
        pytest.param({"header": "[]"}, r"expected format .* found \[\]", id="a list"),
        pytest.param({"header": '{"format": "' + "x" * 9999 + '"}'}, "found 'x{150,200} …", id="a long word"),
        pytest.param(
            {"header": '{"format": "geneformer_repro/shifts/2"}'}, "give measure as .*nothing", id="no claims"
        ),
        pytest.param({"header": claiming(measure="x")}, "give measure as .*found 'x'", id="measure"),
        pytest.param({"header": claiming(goal={"obs": "a"})}, "give goal as null, or obs", id="goal"),
        pytest.param({"header": claiming(target=1)}, "give target as null, or name", id="target"),
        pytest.param({"header": claiming(perturbation={"kind": "x", "genes": 5})}, "give perturbation as", id="genes"),
        pytest.param({"header": claiming(gene_names={A: 1})}, "give gene_names as", id="names"),
        pytest.param({"header": claiming(n_cells="2")}, "give n_cells as", id="cells"),
        pytest.param({"header": claiming(first_order={})}, "give first_order as", id="agreement"),
        pytest.param({"header": claiming(measure="cosine shift")}, "contradict themselves", id="no goal"),
        pytest.param({"header": claiming(obs=["age"])}, r"speak of the columns \['age'\]", id="obs"),
        pytest.param({"header": claiming(method="first_order")}, r"columns \['estimate'\]", id="estimates"),
        pytest.param(
            {"table": part(n=3).append_column("value", pa.array([1.0, 2, 3]))}, "the column 'value' twice", id="twice"
        ),
    ],
)
def test_a_file_that_was_changed_is_refused_for_what_is_wrong(written, change, message):
    rewritten(written, **change)
    with pytest.raises(DataFormatError, match=rf"shifts\.parquet: .*{message}") as raised:
        ShiftTable.open(written)
    assert len(str(raised.value)) < 600


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"cell": pa.array(["c"] * 6, pa.large_string())}, id="long text"),
        pytest.param({"perturbed": pa.array([A] * 6).dictionary_encode()}, id="categories"),
        pytest.param({"donor": pa.nulls(6), "dose": pa.nulls(6)}, id="nothing"),
        pytest.param({"value": pa.array([1.0] * 6, pa.float32()), "rank": pa.array([1] * 6)}, id="other widths"),
        pytest.param({"value": pa.array([1] * 6)}, id="whole numbers"),
    ],
)
def test_columns_that_another_program_wrote_are_read(written, change):
    rewritten(written, **change)
    opened = ShiftTable.open(written)
    for name in change:
        values = [None if pd.isna(value) else value for value in opened.table[name]]
        assert values == change[name].to_pylist()
    assert sum(map(len, ShiftTable.open(written).blocks(list(change)))) == 6


def test_columns_of_others_are_kept_as_they_are(written):
    table = part(n=3).append_column("note", pa.array([{"a": [1]}] * 3))
    rewritten(written, table=table)
    assert ShiftTable.open(written).table["note"].iloc[0]["a"].tolist() == [1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"perturbed": pa.array([A] * 5 + [None])}, "1 rows have no 'perturbed'", id="no gene"),
        pytest.param({"cell": pa.array([None] * 6, pa.string())}, "6 rows have no 'cell'", id="no cell"),
        pytest.param({"rank": pa.array([-1] * 6, pa.int32())}, "a rank is -1; the first place is 0", id="rank"),
    ],
)
def test_rows_that_lack_what_every_row_has_are_refused_when_read(written, change, message):
    rewritten(written, **change)
    with pytest.raises(DataFormatError, match=message):
        list(ShiftTable.open(written).blocks(list(change)))


def test_a_file_that_is_damaged_or_gone_is_named_by_whoever_reads_it(written):
    opened = ShiftTable.open(written)
    whole = written.read_bytes()
    written.write_bytes(whole[:4] + bytes(len(whole[4:300])) + whole[300:])
    for read in (lambda: list(opened.blocks(["cell", "value"])), lambda: list(opened.blocks()), lambda: opened.table):
        with pytest.raises(
            DataFormatError, match=r"shifts\.parquet: cannot be read \(.*damaged, or gone; screen again"
        ):
            read()
    written.write_bytes(whole[:-9])
    for read in (lambda: ShiftTable.open(written), lambda: len(opened)):
        with pytest.raises(DataFormatError, match=r"shifts\.parquet: "):
            read()


def test_more_rows_than_the_bytes_can_hold_are_refused_before_memory_is_asked_for(written, monkeypatch):
    group = SimpleNamespace(num_rows=10**11)
    footer = SimpleNamespace(num_row_groups=1, num_rows=10**11, row_group=lambda i: group)
    monkeypatch.setattr(pq.ParquetFile, "metadata", footer)
    with pytest.raises(DataFormatError, match=r"claims 100,000,000,000 rows in [\d,]+ bytes"):
        ShiftTable.open(written)


def test_a_table_without_a_column_is_refused():
    with pytest.raises(DataFormatError, match=r"table of shifts lacks the columns \['dose'\]"):
        ShiftTable(as_frame(part()).drop(columns="dose"), METADATA)
