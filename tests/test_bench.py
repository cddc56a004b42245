"""The table of speeds: rows that fail, or take too long, are said, and the others stand."""

import time
from pathlib import Path

import bench
import pytest
from bench import Data, Row, cpu_rows, gpu_rows, measured, quick, ratios, table_of

DATA = Data(("tokens.parquet", "made up"), ("long.parquet", "made up"), ([], "700"), ("cells.tok", "700"))
KEEPS = """
import json, sys
file = sys.argv[sys.argv.index("--json") + 1]
row = {"what": "work", "unit": "cells/s", "ours": [4.0, 6.0], "stock": [2.0, 2.0], "memory_gb": 1.5}
open(file, "a").write(json.dumps(row) + "\\n")
"""


@pytest.fixture
def scripts(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "HERE", tmp_path)
    (tmp_path / "fine.py").write_text(KEEPS)
    (tmp_path / "late.py").write_text(f"{KEEPS}\nimport time; time.sleep(100)")
    (tmp_path / "bad.py").write_text("raise SystemExit('no such cells')")
    return tmp_path


def rows_of(scripts, script, limit=60):
    return measured(Row(script, ["cells.tok"], limit, "700"), 1, scripts, limit)


def test_a_row_is_what_its_script_keeps(scripts):
    (row,) = rows_of(scripts, "fine")
    assert row["ours"] == [4.0, 6.0]
    line = table_of([row]).splitlines()[-1]
    assert line == "| work | 5 cells/s | 2 | 2.5 × (2–3) | – | 1.50, – | 700 |"


def test_a_script_that_fails_leaves_a_row_that_says_where_to_look(scripts):
    (row,) = rows_of(scripts, "bad")
    assert "| bad cells.tok | exit status 1 | see 01-bad.log |" in table_of([row])
    assert "no such cells" in (scripts / "01-bad.log").read_text()


def test_a_script_that_takes_too_long_is_stopped_and_what_it_kept_stays(scripts):
    began = time.monotonic()
    kept, stopped = rows_of(scripts, "late", limit=3)
    assert time.monotonic() - began < 60
    assert kept["what"] == "work"
    assert stopped["failed"] == "stopped after 3 s"


def test_ratios_are_of_runs_that_belong_together():
    assert ratios([2.0, 9.0, 4.0], [1.0, 3.0, 4.0]) == "2 × (1–3)"
    assert ratios([2.0], []) == "–"


@pytest.mark.parametrize("rows", [cpu_rows(DATA, "cell_type"), gpu_rows(DATA)], ids=["cpu", "gpu"])
def test_every_row_is_a_script_and_all_fit_into_their_time(rows):
    folder = Path(bench.__file__).parent
    assert all((folder / f"{row.script}.py").exists() for row in rows)
    assert [row.script for row in quick(rows)] == list(dict.fromkeys(row.script for row in rows))
    assert sum(row.limit for row in gpu_rows(DATA)) <= 480
