"""Statistics of a screen on disk: as of all rows at once, in memory that does not grow with the number of cells."""

import tracemalloc
from itertools import combinations

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from geneformer_repro.errors import InputError
from geneformer_repro.in_silico import blockwise
from geneformer_repro.in_silico import published_statistics as published
from geneformer_repro.in_silico.blockwise import (
    added,
    blocks_of_whole_cells,
    merged_moments,
    moments,
    rounding_error,
    totals,
)
from geneformer_repro.in_silico.shift_table import COLUMNS, SHIFT, SIMILARITY, ShiftTable, as_frame, write_blocks
from geneformer_repro.in_silico.statistics import shift_statistics

GENES = [f"g{i:02}" for i in range(40)]
PAIRS = [*GENES[:12], *("+".join(pair) for pair in combinations(GENES[:12], 2))]
EACH = {"kind": "Deletion", "genes": "each", "combine": "singly", "anchor": None}
GOAL = {"obs": "disease", "start": "a", "goal": "b", "alternatives": ["c"]}
METHODS = ["matched", "matched without donors", "goal_state", "vs_all", "vs_null", "mixture", "pairs", "gene_shifts"]


def part_of(block, method):
    """The rows of 30 cells, as a screen writes them."""
    rng = np.random.default_rng(block)
    names = PAIRS if method == "pairs" else GENES
    rank = np.tile(np.arange(len(names)), 30)
    cell = np.repeat([f"cell{30 * block + i}" for i in range(30)], len(names))
    value = 1 - rng.exponential(0.01, len(rank)) * np.where(rank % 7, 1, 3)
    rows = {"cell": cell, "donor": np.repeat([f"donor{i % 4}" for i in range(30)], len(names))}
    rows |= {"perturbed": np.tile(names, 30), "rank": rank, "value": value, "exact": True}
    table = pd.DataFrame(rows)
    if method == "matched without donors":
        table["donor"] = None
    if method == "goal_state":
        table = pd.concat(
            [table.assign(state=state, value=table["value"] ** power) for power, state in enumerate("bc", 1)]
        )
    if method == "gene_shifts":
        table = pd.concat([table, *(table.assign(affected=gene) for gene in GENES[:3])])
    return pa.Table.from_pandas(
        table.reindex(columns=list(COLUMNS)), schema=pa.schema(list(COLUMNS.items())), preserve_index=False
    )


LISTED = {"kind": "Deletion", "genes": GENES, "combine": "singly", "anchor": None}


@pytest.mark.parametrize("method", [*METHODS, "aggregate"])
def test_rows_without_a_value_are_left_out_and_infinite_ones_refused_by_every_method(method, caplog):
    table = as_frame(part_of(0, method))
    bad = table["cell"].isin(["cell3", "cell7"]) & (table["perturbed"] == GENES[4])
    goal = GOAL if method == "goal_state" else None
    how = {"pairs": {**EACH, "combine": "pairs"}, "aggregate": LISTED}.get(method, EACH)
    metadata = {"measure": SHIFT if goal else SIMILARITY, "goal": goal, "target": None, "perturbation": how}
    metadata["gene_names"] = {}

    def of(rows):
        return statistics(ShiftTable(rows, metadata), method)

    expected = of(table[~bad])
    caplog.clear()
    pd.testing.assert_frame_equal(of(table.assign(value=table["value"].mask(bad))), expected)
    said = f"{bad.sum():,} of {len(table):,} values are missing (first: cell 'cell3', perturbed 'g04'); left out."
    assert said in caplog.text
    for value in (np.inf, -np.inf):
        with pytest.raises(InputError, match=r"infinite values \(first: cell 'cell3', perturbed 'g04'\)"):
            of(table.assign(value=table["value"].mask(bad, value)))
    with pytest.raises(InputError, match=rf"All {len(table)} values of the screen are missing"):
        of(table.assign(value=np.nan))


def test_a_value_is_as_exact_as_the_similarities_it_is_the_difference_of():
    block = pd.DataFrame({"value": [0.25, -0.5, 0.75], "before": [0.5, 0.75, np.nan]})
    assert rounding_error(block) == 1.75 * 2**-24
    assert rounding_error(block[:2]) == 1.25 * 2**-24


def screen_of(folder, method, n_blocks):
    path = folder / f"{n_blocks}.parquet"
    goal = GOAL if method == "goal_state" else None
    how = {**EACH, "combine": "pairs"} if method == "pairs" else EACH
    metadata = {"measure": SHIFT if goal else SIMILARITY, "goal": goal, "target": None, "perturbation": how}
    write_blocks(path, (part_of(i, method) for i in range(n_blocks)), metadata | {"gene_names": {}})
    return ShiftTable.open(path)


def statistics(shifts, method):
    if method == "vs_null":
        return shift_statistics(shifts, method="vs_null", null=shifts)
    return shift_statistics(shifts, method=None if method.startswith("matched") else method)


@pytest.fixture
def small_pools(monkeypatch):
    monkeypatch.setattr(published, "POOL_SIZE", 1000)
    monkeypatch.setattr(published, "VALUES_AT_ONCE", 3000)


@pytest.mark.parametrize("method", METHODS)
def test_statistics_of_a_file_are_those_of_all_rows(tmp_path, method, small_pools):
    shifts = screen_of(tmp_path, method, 3)
    found = statistics(shifts, method)
    assert "table" not in vars(shifts), "all rows were read at once"
    pd.testing.assert_frame_equal(found, statistics(ShiftTable(shifts.table, shifts.metadata), method), rtol=1e-9)


@pytest.mark.parametrize("method", ["matched", "matched without donors", "goal_state", "vs_null", "pairs"])
def test_memory_does_not_grow_with_the_number_of_cells(tmp_path, method, small_pools):
    few, many = (screen_of(tmp_path, method, n_blocks) for n_blocks in (2, 4))
    statistics(few, method)  # the first time something is imported
    peaks = []
    for shifts in (few, many):
        tracemalloc.start()
        statistics(shifts, method)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]


# What it is made of


def test_sums_and_moments_of_parts_are_those_of_the_whole():
    rng = np.random.default_rng(0)
    values = pd.Series(1 - 1e-9 * rng.random(600)).where(rng.random(600) > 0.1)
    key = rng.integers(0, 9, 600)
    values[key == 8] = np.nan
    pieces = [slice(start, start + 40) for start in range(0, 600, 40)]
    found = added((moments(values[piece], [key[piece]]) for piece in pieces), merged_moments)
    assert found["n"].tolist() == values.groupby(key).count().tolist()
    np.testing.assert_allclose(found["mean"], values.groupby(key).mean(), rtol=1e-15)
    np.testing.assert_allclose(found["squares"] / (found["n"] - 1), values.groupby(key).var(), rtol=1e-6)
    sums = added((values[piece].groupby(key[piece]).sum().to_frame() for piece in pieces), totals)
    np.testing.assert_allclose(sums[0], values.groupby(key).sum(), rtol=1e-14)


def test_a_cell_that_is_spread_over_blocks_is_put_together(tmp_path):
    table = part_of(0, "matched")
    metadata = {"measure": SIMILARITY, "goal": None, "target": None, "perturbation": EACH, "gene_names": {}}
    write_blocks(tmp_path / "a.parquet", (table.take(list(range(i, len(table), 3))) for i in range(3)), metadata)
    (block,) = blocks_of_whole_cells(ShiftTable.open(tmp_path / "a.parquet"), ["cell", "value"])
    assert len(block) == len(table)
    assert block["cell"].nunique() == 30


def test_a_name_keeps_its_number_in_every_block():
    names = blockwise.Names()
    first, second = (pd.Series(some, dtype="category") for some in (["b", "a", None], ["c", "b"]))
    assert names.numbers(first).tolist() == [1, 0, -1]
    assert names.numbers(second).tolist() == [2, 1]
    assert names.names().tolist() == ["a", "b", "c"]
