import json
import logging

import pytest

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
