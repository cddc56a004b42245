"""Work in parts: who does which, what is left to do, and whose unfinished work it is."""

from types import SimpleNamespace

import pytest

from geneformer_repro import processes
from geneformer_repro.parts import Parts

PLAN = {"layer": -1, "cells": "abc"}


def begin(out, plan=PLAN, *, n_parts=5, overwrite=False):
    return Parts(out, plan, n_parts, suffix=".txt", what="screen", overwrite=overwrite)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "shifts.parquet"


@pytest.fixture
def begun(out):
    """Work of five parts of which two are done."""
    parts = begin(out)
    for i in (0, 3):
        parts.paths[i].write_text(str(i))
    return out


def several(monkeypatch, index, number):
    state = SimpleNamespace(process_index=index, num_processes=number)
    monkeypatch.setattr(processes, "_state", lambda: state)
    monkeypatch.setattr(processes, "wait", lambda: None)


def test_parts_lie_beside_the_output_in_order(out):
    parts = begin(out, n_parts=2)
    folder = out.with_name("shifts.parquet.partial")
    assert parts.paths == [folder / "part-000000.txt", folder / "part-000001.txt"]
    assert folder.is_dir()
    assert not out.exists()


def test_at_first_all_are_missing_and_mine(out):
    parts = begin(out, n_parts=3)
    assert parts.missing == parts.mine == [0, 1, 2]
    assert parts.untouched


def test_the_same_work_goes_on_with_what_is_missing(begun):
    parts = begin(begun)
    assert parts.missing == [1, 2, 4]
    assert not parts.untouched
    assert parts.paths[3].read_text() == "3"


def test_half_a_part_is_missing(begun):
    (begun.with_name("shifts.parquet.partial") / ".part-000001.tmp-1.txt").write_text("")
    assert begin(begun).missing == [1, 2, 4]


@pytest.mark.parametrize("number", [1, 2, 3, 7])
def test_processes_share_what_is_missing_and_each_part_is_done_once(begun, monkeypatch, number):
    shares = []
    for index in range(number):
        several(monkeypatch, index, number)
        shares.append(begin(begun).mine)
    assert sorted(part for share in shares for part in share) == [1, 2, 4]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_share_is_every_so_manieth(monkeypatch):
    several(monkeypatch, 1, 3)
    assert list(range(10))[processes.share()] == [1, 4, 7]


def test_what_is_missing_does_not_change_while_parts_are_written(out):
    """A process that comes late to a part must not find its share another."""
    parts = begin(out)
    parts.paths[0].write_text("0")
    assert parts.missing == [0, 1, 2, 3, 4]


def test_only_the_main_process_makes_the_folder(out, monkeypatch):
    several(monkeypatch, 1, 2)
    begin(out)
    assert list(out.parent.iterdir()) == []


def test_work_with_another_plan_is_refused_with_the_difference(begun):
    message = r"partial holds an unfinished screen with other settings \(layer: -1 there, 0 now\).*overwrite=True"
    with pytest.raises(FileExistsError, match=message):
        begin(begun, PLAN | {"layer": 0})
    assert begin(begun).missing == [1, 2, 4]


@pytest.mark.parametrize("plan", [PLAN, PLAN | {"layer": 0}], ids=["same plan", "other plan"])
def test_overwrite_drops_what_is_there(begun, plan):
    assert begin(begun, plan, overwrite=True).missing == [0, 1, 2, 3, 4]
    assert begin(begun, plan).untouched


def test_a_folder_of_somebody_else_is_never_taken(out):
    folder = out.with_name("shifts.parquet.partial")
    folder.mkdir()
    (folder / "thesis.txt").touch()
    with pytest.raises(FileExistsError, match="in the way and not unfinished work of this package"):
        begin(out, overwrite=True)
    assert (folder / "thesis.txt").exists()


def test_at_the_end_nothing_of_it_is_left(begun):
    begin(begun).drop()
    assert list(begun.parent.iterdir()) == []
