"""The one rule for unfinished work: what goes on, what is refused, what is dropped, and what is never touched."""

import contextlib
import errno
import os
import signal
import time

import pytest
from forking import forked, kill, status_of

from geneformer_repro import unfinished as module
from geneformer_repro.errors import InputError
from geneformer_repro.unfinished import drop, held, is_whole, keep, refuse, refuse_other, unfinished, work_folder

PLAN = {"step": "embed", "config": {"layer": -1, "seed": 0}, "cells": "aaaa"}
OTHERS = [
    pytest.param({"cells": "bbbb"}, "cells: 'aaaa' there, 'bbbb' now", id="another_input"),
    pytest.param({"config": {"layer": 0, "seed": 0}}, "config.layer: -1 there, 0 now", id="a_nested_setting"),
    pytest.param({"version": 2}, "version: None there, 2 now", id="a_new_version_of_the_step"),
]


class CutOffError(RuntimeError):
    """What ends work in these tests."""


@pytest.fixture
def out(tmp_path):
    return tmp_path / "result.tsv"


@pytest.fixture
def cut_off(out):
    """Work that was cut off after its first part."""
    with contextlib.suppress(CutOffError), working(out) as work:
        (work.folder / "part").write_text("done")
        raise CutOffError
    return out


def working(out, plan=PLAN, **options):
    return unfinished(out, plan, what="embedding", **options)


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


class TestTheRule:
    def test_work_lies_beside_the_output_and_is_gone_at_the_end(self, out):
        with working(out) as work:
            assert work.folder == work_folder(out) == out.with_name("result.tsv.partial")
            with work.result(out) as aside:
                aside.write_text("whole")
        assert listing(out.parent) == ["result.tsv"]
        assert out.read_text() == "whole"

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_the_same_plan_goes_on_also_with_overwrite(self, cut_off, overwrite):
        """A job that is queued again with the same words would else begin anew for ever."""
        with working(cut_off, overwrite=overwrite) as work:
            assert (work.folder / "part").read_text() == "done"

    @pytest.mark.parametrize(("changes", "difference"), OTHERS)
    def test_another_plan_is_refused_with_the_first_difference(self, cut_off, changes, difference):
        message = rf"partial holds an unfinished embedding with other settings \({difference}\).*--overwrite"
        with pytest.raises(FileExistsError, match=message), working(cut_off, PLAN | changes):
            raise AssertionError("work began")
        with pytest.raises(FileExistsError, match=message):
            refuse_other(cut_off, PLAN | changes, what="embedding", overwrite=False)
        with working(cut_off) as work:
            assert (work.folder / "part").exists()

    def test_another_plan_is_dropped_with_overwrite(self, cut_off):
        refuse_other(cut_off, PLAN | {"cells": "bbbb"}, what="embedding", overwrite=True)
        with working(cut_off, PLAN | {"cells": "bbbb"}, overwrite=True) as work:
            assert listing(work.folder) == ["lock", "plan.json"]
        assert listing(cut_off.parent) == []

    def test_a_long_difference_is_cut(self, cut_off):
        with pytest.raises(FileExistsError) as caught, working(cut_off, PLAN | {"cells": ["gene"] * 1000}):
            pass
        assert len(str(caught.value)) < 800

    def test_an_output_that_exists_is_refused_before_the_work(self, out):
        out.write_text("earlier")
        with pytest.raises(FileExistsError, match="already exists"), working(out):
            raise AssertionError("work began")
        assert listing(out.parent) == ["result.tsv"]

    def test_an_output_is_replaced_only_by_a_complete_one(self, out):
        out.write_text("earlier")
        with contextlib.suppress(CutOffError), working(out, overwrite=True) as work, work.result(out) as aside:
            aside.write_text("half")
            raise CutOffError
        assert out.read_text() == "earlier"

    def test_refused_settings_leave_nothing(self, out):
        with pytest.raises(InputError, match="no"), working(out):
            raise InputError("no")
        assert listing(out.parent) == []

    def test_going_on_where_nothing_is_unfinished_is_refused(self, out):
        with pytest.raises(InputError, match=r"partial: no such folder.*Leave out --resume"):
            working(out, must_exist=True).__enter__()
        assert listing(out.parent) == []


class TestWhatIsNotOurs:
    @pytest.mark.parametrize("overwrite", [False, True])
    def test_a_folder_of_somebody_else_is_spared(self, out, overwrite):
        work_folder(out).mkdir()
        (work_folder(out) / "thesis.tex").touch()
        with pytest.raises(FileExistsError, match="in the way"), working(out, overwrite=overwrite):
            pass
        assert listing(work_folder(out)) == ["thesis.tex"]

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_a_link_is_refused(self, cut_off, tmp_path, overwrite):
        """What is behind it may be the work of another layer, kept elsewhere."""
        work_folder(cut_off).rename(tmp_path / "elsewhere")
        work_folder(cut_off).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(FileExistsError, match="is a link"), working(cut_off, overwrite=overwrite):
            pass
        assert (tmp_path / "elsewhere" / "part").exists()


class TestKilled:
    @pytest.mark.parametrize("left", [[], ["lock"], ["lock", ".plan.tmp-123.json"]], ids=len)
    def test_between_making_the_folder_and_naming_the_plan(self, out, left):
        work_folder(out).mkdir()
        for name in left:
            (work_folder(out) / name).touch()
        with working(out) as work, work.result(out) as aside:
            aside.write_text("whole")
        assert listing(out.parent) == ["result.tsv"]

    def test_when_the_result_was_in_place_and_the_work_not_yet_gone(self, out, monkeypatch):
        monkeypatch.setattr(module, "drop", lambda _: None)  # killed before
        with working(out) as work, work.result(out) as aside:
            aside.write_text("whole")
        monkeypatch.undo()
        refuse(out, overwrite=False)
        with working(out) as work:
            assert work.has_delivered(out)
        assert listing(out.parent) == ["result.tsv"]

    def test_another_output_of_that_name_is_not_taken_for_the_result(self, out, monkeypatch):
        monkeypatch.setattr(module, "drop", lambda _: None)
        with working(out) as work, work.result(out) as aside:
            aside.write_text("whole")
        out.rename(out.with_name("kept.tsv"))
        out.write_text("mine")
        with pytest.raises(FileExistsError, match="already exists"), working(out):
            pass

    def test_a_lock_of_a_dead_process_holds_nobody(self, out, tmp_path):
        pid = hold(out, tmp_path)
        kill(pid)
        with working(out) as work:
            assert (work.folder / "here").exists()


def hold(out, tmp_path):
    """Start a process that works on an output until it is killed."""

    def work_for_ever():
        with working(out) as work:
            (work.folder / "here").touch()
            signal.pause()

    pid = forked(work_for_ever, tmp_path / "log")
    while not (work_folder(out) / "here").exists():
        time.sleep(0.005)
    return pid


def test_a_second_call_leaves_with_one_line(out, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_PATIENCE_SECONDS", 0.2)
    pid = hold(out, tmp_path)
    message = rf"another call is working on this embedding \(process {pid} on .*\)\. Wait until it has ended"
    for plan in (PLAN, PLAN | {"cells": "bbbb"}):
        with pytest.raises(FileExistsError, match=message) as caught, working(out, plan, overwrite=True):
            pass
        assert "\n" not in str(caught.value)
    kill(pid)
    assert (work_folder(out) / "here").exists()


def test_of_many_calls_at_once_one_works_at_a_time(out, tmp_path):
    """Each adds one to a number that it reads first; the others wait for it, or find its output."""

    def count():
        with working(out, overwrite=True) as work:
            number = int(out.read_text()) if out.exists() else 0
            time.sleep(0.02)
            with work.result(out) as aside:
                aside.write_text(str(number + 1))

    pids = [forked(count, tmp_path / f"log{i}") for i in range(8)]
    assert [status_of(pid) for pid in pids] == [0] * 8
    assert out.read_text() == "8"


class TestParts:
    @pytest.fixture
    def part(self, tmp_path):
        keep(tmp_path / "part-0.bin", lambda aside: aside.write_bytes(bytes(range(100))))
        return tmp_path / "part-0.bin"

    def test_a_part_that_is_as_it_was_written_is_whole(self, part):
        assert is_whole(part)
        assert part.read_bytes() == bytes(range(100))

    @pytest.mark.parametrize(
        "hurt",
        [
            pytest.param(lambda part: part.write_bytes(bytes(range(50))), id="truncated"),
            pytest.param(lambda part: part.write_bytes(bytes([255, *range(1, 100)])), id="flipped"),
            pytest.param(lambda part: part.with_name("part-0.bin.sha256").unlink(), id="no_digest"),
            pytest.param(lambda part: part.with_name("part-0.bin.sha256").write_bytes(b"\xff"), id="another_digest"),
        ],
    )
    def test_a_damaged_part_is_removed_to_be_made_again(self, part, hurt, caplog):
        hurt(part)
        assert not is_whole(part)
        assert "part-0.bin is damaged, and made again" in caplog.text
        assert not part.exists()

    def test_a_missing_part_is_no_news(self, tmp_path, caplog):
        assert not is_whole(tmp_path / "part-1.bin")
        assert not caplog.text


def test_a_full_disk_ends_in_one_line_and_the_work_stays(out):
    def run_full():
        with held(work_folder(out), PLAN, what="embedding") as work:
            (work.folder / "part").write_text("done")
            raise RuntimeError("Can't write data (file write failed: errno = 28, error message = 'No space left')")

    with pytest.raises(InputError, match=r"could not be written: the disk is full .*give the same call") as caught:
        run_full()
    assert "\n" not in str(caught.value)
    assert (work_folder(out) / "part").exists()


def test_dropping_what_is_not_there_is_no_error(tmp_path):
    drop(tmp_path / "nothing")
    assert listing(tmp_path) == []


def test_a_file_system_without_locks_is_said_and_no_obstacle(out, monkeypatch, caplog):
    def refuse_lock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(module.fcntl, "lockf", refuse_lock)
    with working(out):
        pass
    assert "this file system has no locks" in caplog.text
