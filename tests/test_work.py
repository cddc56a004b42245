"""Work of several processes: the first looks and writes, the others believe it, and each part is done once."""

import pytest
from forking import several

import geneformer_repro as gf
from geneformer_repro import processes, unfinished
from geneformer_repro.work import Parts, working_on

PLAN = {"layer": -1, "cells": "abc"}


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out.txt"


def listing(folder):
    return [path.name for path in folder.iterdir()]


def do_all(out, *, n_parts=5, cut_off_after=None, made=None):
    """Write a part for each number, and at the end all numbers; note which were made here."""
    with working_on(out, PLAN, what="list") as work:
        parts = Parts(work, n_parts, suffix=".txt")
        for n_done, i in enumerate(parts.mine):
            if n_done == cut_off_after:
                raise KeyboardInterrupt
            parts.keep(i, lambda aside, i=i: aside.write_text(str(i)))
            if made is not None:
                made.append(i)
        processes.wait()
        if processes.is_first():
            with work.result() as aside:
                aside.write_text(" ".join(path.read_text() for path in parts.paths))


def test_parts_lie_in_the_work_folder_in_order(out):
    with working_on(out, PLAN, what="list") as work:
        assert Parts(work, 2, suffix=".txt").paths == [work.folder / "part-000000.txt", work.folder / "part-000001.txt"]


def test_cut_off_and_given_again_is_uninterrupted_and_no_part_is_made_twice(out):
    made = []
    with pytest.raises(KeyboardInterrupt):
        do_all(out, cut_off_after=2, made=made)
    do_all(out, made=made)
    assert made == [0, 1, 2, 3, 4]
    assert out.read_text() == "0 1 2 3 4"
    assert listing(out.parent) == ["out.txt"]


def test_a_damaged_part_is_made_again(out):
    with pytest.raises(KeyboardInterrupt):
        do_all(out, cut_off_after=2)
    (unfinished.work_folder(out) / "part-000001.txt").write_text("7")
    made = []
    do_all(out, made=made)
    assert made == [1, 2, 3, 4]
    assert out.read_text() == "0 1 2 3 4"


def test_two_processes_make_what_one_makes_and_share_the_parts(out, tmp_path):
    def run(rank):
        made = []
        do_all(out, made=made)
        assert made == list(range(rank, 5, 2))

    several(run, tmp_path)
    assert out.read_text() == "0 1 2 3 4"
    assert listing(tmp_path) == ["out.txt"]


def test_the_others_believe_the_first_about_what_is_there(out, tmp_path):
    """On a shared file system the second may see a part later; then one would be done twice and another never."""
    with pytest.raises(KeyboardInterrupt):
        do_all(out, cut_off_after=1)

    def run(rank):
        if rank == 1:
            unfinished.is_whole = lambda _: False
        made = []
        do_all(out, made=made)
        assert made == [[1, 3], [2, 4]][rank]

    several(run, tmp_path)


def test_a_refusal_reaches_every_process(out, tmp_path):
    out.write_text("earlier")
    for said in several(lambda _: do_all(out), tmp_path, expected=1):
        assert "FileExistsError" in said
        assert "already exists" in said


def test_when_one_fails_the_others_stop_and_what_is_done_stays(out, tmp_path):
    def run(rank):
        if rank == 1:
            with working_on(out, PLAN, what="list") as work:
                Parts(work, 5, suffix=".txt")
                raise gf.InputError("no room")
        do_all(out)

    first, second = several(run, tmp_path, expected=1)
    assert "process 1: no room" in first
    assert "InputError: no room" in second
    assert "part-000000.txt" in listing(unfinished.work_folder(out))
