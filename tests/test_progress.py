import io
import json
import logging
import subprocess
import sys

import pytest

from geneformer_repro import progress as module
from geneformer_repro.progress import progress


def done(caplog, *, step="embed", total=5, unit="cells", updates=(2, 3)):
    """Run a bar and return the JSON line it logged."""
    with (
        caplog.at_level(logging.INFO, logger="geneformer_repro.progress"),
        progress(step, total=total, unit=unit) as bar,
    ):
        for n in updates:
            bar.update(n)
    return [json.loads(record.message) for record in caplog.records]


def test_one_json_line_is_logged_at_the_end(caplog):
    (line,) = done(caplog)
    assert line["event"] == "embed"
    assert line["cells"] == 5
    assert set(line) == {"event", "cells", "seconds", "cells_per_second"}


def test_the_line_counts_what_was_done_not_what_was_planned(caplog):
    assert done(caplog, total=10, updates=[1])[0]["cells"] == 1


def test_the_rate_is_the_count_over_the_seconds(caplog):
    with caplog.at_level(logging.INFO), progress("x", total=None, unit="variants") as bar:
        bar.update(1_000)
        assert bar.format_dict["n"] == 1_000
    line = json.loads(caplog.records[-1].message)
    assert line["seconds"] >= 0
    assert line["variants_per_second"] >= 1_000 / (line["seconds"] + 1e-3)


def test_work_without_steps_still_ends_with_a_line(caplog):
    (line,) = done(caplog, total=0, updates=())
    assert line["cells"] == 0
    assert line["cells_per_second"] == 0


def test_the_total_may_be_unknown(caplog):
    assert done(caplog, total=None)[0]["cells"] == 5


def test_nothing_is_logged_where_the_work_failed(caplog):
    with (
        caplog.at_level(logging.INFO),
        pytest.raises(RuntimeError, match="stopped"),
        progress("x", total=1, unit="cells"),
    ):
        raise RuntimeError("stopped")
    assert caplog.records == []


def test_the_bar_is_on_stderr_and_names_step_and_unit(capsys):
    with progress("tokenize", total=4, unit="cells") as bar:
        bar.update(4)
    out, err = capsys.readouterr()
    assert out == ""
    assert "tokenize: 100%" in err
    assert "cells/s" in err or " cells" in err


def shown(monkeypatch, *, seconds=0.0, is_terminal=False):
    """What a bar of 700 cells writes to stderr, where each cell takes so long."""
    stream = io.StringIO()
    stream.isatty = lambda: is_terminal
    monkeypatch.setattr(sys, "stderr", stream)
    with progress("embed", total=700, unit="cells") as bar:
        bar._time = lambda: seconds * bar.n
        bar.start_t = bar.last_print_t = 0.0
        for _ in range(700):
            bar.update(1)
    return stream.getvalue()


def test_a_terminal_gets_a_bar_that_is_drawn_over(monkeypatch):
    assert "\rembed:   0%|" in shown(monkeypatch, is_terminal=True)


@pytest.mark.parametrize(("columns", "facts"), [(59, "loss=1.5, rate=2.5]"), (58, "loss=1.5]"), (48, "cells/s]")])
def test_of_facts_a_terminal_gets_those_that_fit_whole(monkeypatch, columns, facts):
    stream = io.StringIO()
    stream.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", stream)
    with module.Bar("embed", total=7, unit="cells") as bar:
        bar.dynamic_ncols = lambda _: (columns, 40)
        bar.set_postfix({"loss": 1.5, "rate": 2.5}, refresh=False)
        assert str(bar).endswith(facts)
        assert len(str(bar)) <= columns


def test_a_name_that_leaves_no_room_for_counts_gets_a_bar_without_them(monkeypatch):
    stream = io.StringIO()
    stream.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", stream)
    with module.Bar("sample, fold 1, 320 pairs, tDNN", total=7, unit="pairs") as bar:
        bar.dynamic_ncols = lambda _: (60, 40)
        assert str(bar).endswith("| [00:00<?]")
        assert len(str(bar)) <= 60


def test_a_log_file_gets_one_line_of_what_is_over_soon(monkeypatch):
    (line,) = shown(monkeypatch).splitlines()
    assert line.startswith("embed: 100% 700/700 [")
    assert "\r" not in line


def test_a_log_file_gets_a_line_every_tenth_of_what_takes_long(monkeypatch):
    lines = shown(monkeypatch, seconds=1.0).splitlines()
    assert [line.partition(" [")[0] for line in lines[:10]] == [f"embed: {10 * i}% {70 * i}/700" for i in range(1, 11)]
    assert len(lines) <= 11


def test_a_log_file_gets_at_most_a_line_every_half_minute(monkeypatch):
    n_lines = len(shown(monkeypatch, seconds=0.2).splitlines())
    assert 3 <= n_lines <= 140 / 30 + 1


class Clock:
    """A minute hand that is moved by hand."""

    def __init__(self, monkeypatch):
        self.seconds = 0.0
        monkeypatch.setattr(module.time, "perf_counter", lambda: self.seconds)


def test_every_half_minute_a_line_says_how_far_it_is(caplog, monkeypatch):
    clock = Clock(monkeypatch)
    with caplog.at_level(logging.INFO), progress("perturb", total=900, unit="variants") as bar:
        for _ in range(9):
            clock.seconds += 10
            bar.update(100)
    lines = [json.loads(record.message) for record in caplog.records]
    assert [(line["variants"], line["seconds"]) for line in lines] == [(400, 40.0), (800, 80.0), (900, 90.0)]
    assert {line["variants_per_second"] for line in lines} == {10.0}
    assert {line["event"] for line in lines} == {"perturb"}


def test_slow_work_that_is_over_at_once_is_told_once(caplog, monkeypatch):
    clock = Clock(monkeypatch)
    with caplog.at_level(logging.INFO), progress("tokenize", total=100, unit="cells") as bar:
        clock.seconds = 31
        bar.update(100)
    assert [json.loads(record.message)["cells"] for record in caplog.records] == [100]


def test_every_line_says_the_facts_as_they_are_then(caplog, monkeypatch):
    clock, facts = Clock(monkeypatch), {}
    with caplog.at_level(logging.INFO), progress("x", total=2, unit="cells", facts=lambda: facts) as bar:
        facts["gb"] = 1
        clock.seconds = 31
        bar.update(1)
        facts["gb"] = 2
    assert [json.loads(record.message)["gb"] for record in caplog.records] == [1, 2]


def test_what_an_earlier_run_did_counts_but_not_in_the_rate(caplog, monkeypatch):
    clock = Clock(monkeypatch)
    with caplog.at_level(logging.INFO), progress("x", total=100, unit="cells", done=60) as bar:
        clock.seconds = 8
        bar.update(40)
    line = json.loads(caplog.records[-1].message)
    assert (line["cells"], line["cells_per_second"]) == (100, 5.0)


def test_what_is_too_little_to_speak_of_is_not_spoken_of(caplog, capsys, monkeypatch):
    clock = Clock(monkeypatch)
    with caplog.at_level(logging.INFO), progress("x", total=1, unit="cells", quiet=True) as bar:
        clock.seconds = 100
        bar.update(1)
    assert caplog.records == []
    assert capsys.readouterr().err == ""


def test_no_bar_is_drawn_where_the_package_is_asked_for_warnings_alone(capsys):
    logger = logging.getLogger("geneformer_repro")
    before = logger.level
    try:
        for level, is_drawn in ((logging.NOTSET, True), (logging.INFO, True), (logging.WARNING, False)):
            logger.setLevel(level)
            with progress("x", total=10, unit="cells") as bar:
                bar.update(10)
            assert bar.n == 10
            assert ("x: 100%" in capsys.readouterr().err) == is_drawn
    finally:
        logger.setLevel(before)


def test_a_notebook_without_ipywidgets_gets_lines_and_no_warning():
    code = """
import sys, types, warnings
sys.modules["IPython"], sys.modules["ipywidgets"] = types.SimpleNamespace(get_ipython=object), None
sys.modules["ipykernel.zmqshell"] = types.ModuleType("zmqshell")
with warnings.catch_warnings(record=True) as warned:  # tqdm catches what the filter would raise
    warnings.simplefilter("always")
    import geneformer_repro as gf
    gf.Vocabulary
    import tqdm.auto, tqdm.notebook  # as libraries do
    from geneformer_repro import progress
assert not warned, warned[0].message
assert tqdm.notebook.IProgress is None and not issubclass(progress.Bar, tqdm.notebook.tqdm)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
