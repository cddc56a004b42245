import csv
import errno
import hashlib
import json
import os
import subprocess
import sys
from datetime import datetime, timedelta
from importlib import metadata

import numpy as np
import pandas as pd
import pytest

from geneformer_repro.errors import InputError
from geneformer_repro.files import (
    damage,
    new_directory,
    new_file,
    provenance,
    read_columns,
    read_json,
    read_table,
    refuse_existing,
    sha256,
    write_json,
    write_manifest,
    write_table,
)

MARKER = "spec.json"


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


def write_result(path, content="new", **options):
    with new_directory(path, marker=MARKER, **options) as folder:
        (folder / MARKER).write_text(content)


def write_text(path, content="new", **options):
    with new_file(path, **options) as aside:
        aside.write_text(content)


def failing_directory(path, **options):
    with new_directory(path, marker=MARKER, **options) as folder:
        (folder / MARKER).write_text("half")
        raise RuntimeError("stopped")


def failing_file(path, **options):
    with new_file(path, **options) as aside:
        aside.write_text("half")
        raise RuntimeError("stopped")


@pytest.fixture
def earlier(tmp_path):
    """A result of an earlier run."""
    write_result(tmp_path / "out", "earlier")
    return tmp_path / "out"


# refuse_existing


@pytest.mark.parametrize("marker", [MARKER, None])
def test_an_output_that_is_not_there_is_not_refused(tmp_path, marker):
    refuse_existing(tmp_path / "out", overwrite=False, marker=marker)
    assert listing(tmp_path) == []


@pytest.mark.parametrize("marker", [MARKER, None])
def test_an_existing_output_is_refused_with_the_way_out(earlier, marker):
    with pytest.raises(FileExistsError, match=r"out already exists\. Choose another output, or .*--overwrite"):
        refuse_existing(earlier, overwrite=False, marker=marker)


def test_an_empty_folder_counts_as_existing(tmp_path):
    with pytest.raises(FileExistsError, match="already exists"):
        refuse_existing(tmp_path, overwrite=False, marker=MARKER)


def test_overwrite_allows_an_earlier_result(earlier):
    refuse_existing(earlier, overwrite=True, marker=MARKER)


def test_overwrite_allows_an_empty_folder(tmp_path):
    refuse_existing(tmp_path, overwrite=True, marker=MARKER)


def test_overwrite_refuses_a_folder_that_is_no_earlier_result(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(FileExistsError, match=rf"without {MARKER}, so not an earlier result.*not replaced"):
        refuse_existing(tmp_path, overwrite=True, marker=MARKER)


def test_overwrite_refuses_a_file_where_a_folder_is_written(tmp_path):
    (tmp_path / "out").write_text("x")
    with pytest.raises(FileExistsError, match="is a file, but this step writes a folder; it is not replaced"):
        refuse_existing(tmp_path / "out", overwrite=True, marker=MARKER)


def test_overwrite_refuses_a_folder_where_a_file_is_written(earlier):
    with pytest.raises(FileExistsError, match="is a folder, but this step writes a file; it is not replaced"):
        refuse_existing(earlier, overwrite=True)


def test_the_folders_above_an_output_are_made(tmp_path):
    write_result(tmp_path / "a" / "b" / "out")
    assert listing(tmp_path / "a" / "b") == ["out"]


def test_an_output_below_a_file_is_refused(tmp_path):
    (tmp_path / "notes").write_text("x")
    with pytest.raises(InputError, match=r"notes.out: the folder .*notes cannot be made"):
        refuse_existing(tmp_path / "notes" / "out", overwrite=False)


def test_an_output_in_a_folder_that_cannot_be_written_to_is_refused(tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    if os.access(folder, os.W_OK):
        pytest.skip("this user may write everywhere")
    with pytest.raises(InputError, match="locked"):
        refuse_existing(folder / "out", overwrite=False)


# new_directory and new_file


def test_a_folder_appears_whole_when_the_block_ends(tmp_path):
    with new_directory(tmp_path / "out", marker=MARKER) as folder:
        (folder / MARKER).write_text("x")
        assert not (tmp_path / "out").exists()
    assert listing(tmp_path) == ["out"]
    assert (tmp_path / "out" / MARKER).read_text() == "x"


def test_a_file_appears_whole_when_the_block_ends(tmp_path):
    with new_file(tmp_path / "out.tsv") as aside:
        aside.write_text("x")
        assert not (tmp_path / "out.tsv").exists()
    assert listing(tmp_path) == ["out.tsv"]
    assert (tmp_path / "out.tsv").read_text() == "x"


def test_the_name_aside_keeps_the_suffix_so_that_writers_choose_the_same_format(tmp_path):
    with new_file(tmp_path / "out.parquet") as aside:
        assert aside.suffix == ".parquet"
        aside.touch()


def test_a_path_may_be_a_string(tmp_path):
    write_result(str(tmp_path / "out"))
    write_text(str(tmp_path / "out.tsv"))
    assert listing(tmp_path) == ["out", "out.tsv"]


@pytest.mark.parametrize("fail", [failing_directory, failing_file])
def test_a_failed_run_leaves_nothing(tmp_path, fail):
    with pytest.raises(RuntimeError, match="stopped"):
        fail(tmp_path / "out")
    assert listing(tmp_path) == []


def test_a_failed_run_leaves_the_earlier_folder(earlier):
    with pytest.raises(RuntimeError, match="stopped"):
        failing_directory(earlier, overwrite=True)
    assert listing(earlier.parent) == ["out"]
    assert (earlier / MARKER).read_text() == "earlier"


def test_a_failed_run_leaves_the_earlier_file(tmp_path):
    write_text(tmp_path / "out.tsv", "earlier")
    with pytest.raises(RuntimeError, match="stopped"):
        failing_file(tmp_path / "out.tsv", overwrite=True)
    assert listing(tmp_path) == ["out.tsv"]
    assert (tmp_path / "out.tsv").read_text() == "earlier"


def test_a_killed_run_leaves_at_most_a_hidden_folder(tmp_path):
    code = (
        "import os, sys; from geneformer_repro.files import new_directory\n"
        "with new_directory(sys.argv[1], marker='spec.json'): os._exit(9)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], check=False)
    assert killed.returncode == 9
    assert [name.startswith(".out.tmp-") for name in listing(tmp_path)] == [True]


def test_a_killed_run_is_no_obstacle_to_the_next(tmp_path):
    (tmp_path / ".out.tmp-abc").mkdir()
    write_result(tmp_path / "out")
    assert listing(tmp_path) == [".out.tmp-abc", "out"]


def test_an_existing_folder_is_refused_before_the_block_runs(earlier):
    with pytest.raises(FileExistsError, match="already exists"):
        failing_directory(earlier)
    assert (earlier / MARKER).read_text() == "earlier"


def test_an_existing_file_is_refused_before_the_block_runs(earlier):
    with pytest.raises(FileExistsError, match="already exists"):
        failing_file(earlier / MARKER)


def test_overwrite_replaces_an_earlier_folder_and_its_leftovers(earlier):
    (earlier / "old-shard").touch()
    write_result(earlier, overwrite=True)
    assert listing(earlier.parent) == ["out"]
    assert listing(earlier) == [MARKER]
    assert (earlier / MARKER).read_text() == "new"


def test_overwrite_replaces_an_earlier_file(tmp_path):
    write_text(tmp_path / "out.tsv", "earlier")
    write_text(tmp_path / "out.tsv", overwrite=True)
    assert (tmp_path / "out.tsv").read_text() == "new"


def test_overwrite_never_deletes_somebody_elses_folder(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("x")
    with pytest.raises(FileExistsError, match="not replaced"):
        write_result(tmp_path / "out", overwrite=True)
    assert listing(tmp_path / "out") == ["thesis.tex"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT], ids=["full", "quota"])
def test_a_disk_that_is_full_is_named_with_the_way_out_and_the_earlier_file_stays(tmp_path, code):
    write_text(tmp_path / "out.tsv", "earlier")
    message = r"out\.tsv could not be written: the disk is full \(.+\)\. Make room and give the same call again"
    with pytest.raises(InputError, match=message), new_file(tmp_path / "out.tsv", overwrite=True):
        raise OSError(code, "no room")
    assert listing(tmp_path) == ["out.tsv"]
    assert (tmp_path / "out.tsv").read_text() == "earlier"


def test_other_errors_of_the_system_are_passed_on(tmp_path):
    with pytest.raises(PermissionError), new_file(tmp_path / "out.tsv"):
        raise PermissionError(errno.EACCES, "not allowed")


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX modes")
def test_a_new_folder_has_the_mode_of_any_new_folder(tmp_path):
    (tmp_path / "plain").mkdir()
    write_result(tmp_path / "out")
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "plain").stat().st_mode


# JSON, digests, provenance


def test_json_comes_back_as_it_was_written(tmp_path):
    content = {"a": [1, 2.5, None, True], "b": {"µ": "é"}}
    write_json(tmp_path / "x.json", content)
    assert read_json(tmp_path / "x.json") == content


def test_json_is_readable(tmp_path):
    write_json(tmp_path / "x.json", {"a": "é"})
    assert (tmp_path / "x.json").read_text(encoding="utf-8") == '{\n  "a": "é"\n}\n'


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_refuses_what_it_cannot_hold(tmp_path, value):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "x.json", {"a": value})


def test_json_refuses_objects(tmp_path):
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_json(tmp_path / "x.json", {"a": object()})


def test_missing_json_is_named(tmp_path):
    with pytest.raises(InputError, match=r"x\.json: no such file\. Expected it to be written by geneformer_repro"):
        read_json(tmp_path / "x.json")


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": ', b"\xff\xfe"], ids=["empty", "cut", "cut_later", "not_utf8"])
def test_damaged_json_is_named_with_the_way_out(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.json: not readable as JSON \(.*The file is damaged; write it anew"):
        read_json(tmp_path / "x.json")


@pytest.mark.parametrize(("content", "found"), [("[1]", "list"), ('"a"', "str"), ("null", "NoneType")])
def test_json_that_is_no_object_is_named(tmp_path, content, found):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(InputError, match=rf"x\.json: expected a JSON object, found a {found}"):
        read_json(tmp_path / "x.json")


@pytest.mark.parametrize("content", [b"", b"abc", b"\x00" * 1_000_003], ids=["empty", "short", "long"])
def test_sha256_is_that_of_the_bytes(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    assert sha256(tmp_path / "x") == hashlib.sha256(content).hexdigest()


@pytest.fixture
def listed(tmp_path):
    """A folder with files, one of them in a folder below, and the list of them."""
    (tmp_path / "shards").mkdir()
    (tmp_path / "weights.bin").write_bytes(bytes(range(200)))
    (tmp_path / "shards" / "optimizer.bin").write_bytes(b"moments")
    (tmp_path / "empty").touch()
    write_manifest(tmp_path)
    return tmp_path


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_folder_that_is_as_it_was_has_no_damage(listed):
    assert damage(listed) is None


def test_the_list_has_size_and_digest_of_every_file(listed):
    content = read_json(listed / "manifest.json")
    assert content["format"] == "geneformer_repro/manifest/1"
    assert content["files"] == {
        name: {"bytes": (listed / name).stat().st_size, "sha256": sha256(listed / name)}
        for name in ("empty", "shards/optimizer.bin", "weights.bin")
    }


@pytest.mark.parametrize(
    ("hurt", "reason"),
    [
        pytest.param(
            lambda folder: (folder / "weights.bin").write_bytes(bytes(range(150))),
            "weights.bin has 150 bytes, not 200",
            id="cut_off",
        ),
        pytest.param(
            lambda folder: flip_a_byte(folder / "shards" / "optimizer.bin"),
            "shards/optimizer.bin is not what was written",
            id="a_bit_flipped_below",
        ),
        pytest.param(lambda folder: (folder / "empty").unlink(), "empty is missing", id="missing"),
        pytest.param(
            lambda folder: (folder / "manifest.json").unlink(), "no readable manifest.json", id="without_the_list"
        ),
        pytest.param(
            lambda folder: (folder / "manifest.json").write_text('{"files": {"weights'),
            "no readable manifest.json",
            id="list_cut_off",
        ),
        pytest.param(
            lambda folder: (folder / "manifest.json").write_text('{"format": "another"}'),
            "no readable manifest.json",
            id="another_list",
        ),
    ],
)
def test_damage_is_named_with_its_file(listed, hurt, reason):
    hurt(listed)
    assert damage(listed) == reason


def test_a_file_that_came_later_is_no_damage(listed):
    (listed / "notes.txt").write_text("mine")
    assert damage(listed) is None


def test_the_list_can_be_written_anew(listed):
    """It does not describe itself: its own digest would be wrong as soon as it is written."""
    (listed / "weights.bin").write_bytes(b"others")
    write_manifest(listed)
    assert damage(listed) is None


def test_provenance_says_what_made_a_result():
    made = provenance("tokenize", config={"layer": "X"}, inputs={"cells": "abc"})
    assert made["format"] == "geneformer_repro/provenance/1"
    assert made["step"] == "tokenize"
    assert made["config"] == {"layer": "X"}
    assert made["inputs"] == {"cells": "abc"}
    assert json.loads(json.dumps(made)) == made


def test_provenance_records_the_time_in_utc():
    created = datetime.fromisoformat(provenance("x", config={}, inputs={})["created"])
    assert created.utcoffset() == timedelta(0)


@pytest.mark.parametrize("package", ["torch", "transformers", "datasets", "anndata", "scanpy", "numpy", "scikit-learn"])
def test_provenance_records_the_versions_that_ran(package):
    assert provenance("x", config={}, inputs={})["versions"][package] == metadata.version(package)


def test_provenance_records_the_version_of_python():
    assert sys.version.startswith(provenance("x", config={}, inputs={})["versions"]["python"])


def test_provenance_leaves_out_packages_that_are_not_installed(monkeypatch):
    monkeypatch.setattr("geneformer_repro.files._RECORDED_PACKAGES", ("numpy", "no-such-package-here"))
    assert set(provenance("x", config={}, inputs={})["versions"]) == {"python", "numpy"}


# Tables


RUN = ["=1+1", "+A1", "-A1", "@SUM(A1)", "\t=1", "\r=1", "=cmd|'/c calc'!A0", "--1", "-", "+"]
PLAIN = ["-1", "+2.5", "-1e-5", "-.5", "a=1", "1-2", "'quoted'", "x\ty", "x\ny", "x\ry", "", "NA", " =1", "ENSG1+ENSG2"]


@pytest.mark.parametrize("text", RUN)
def test_no_cell_that_is_a_name_begins_as_a_spreadsheet_s_formula(tmp_path, text):
    table = pd.DataFrame(
        {"gene": [text, "b"], text: pd.Categorical([text, "b"])}, index=pd.Index([text, "b"], name=text)
    )
    write_table(table, tmp_path / "x.tsv")
    with (tmp_path / "x.tsv").open(newline="") as file:
        cells = [cell for row in csv.reader(file, delimiter="\t") for cell in row]
    assert cells.count(f"'{text}") == 5
    assert text not in cells


@pytest.mark.parametrize("text", [*RUN, *PLAIN, "'=1", "''-x", "'"])
def test_what_was_written_is_read(tmp_path, text):
    table = pd.DataFrame({"gene": [text, "b"], text or "c": ["1", text]})
    write_table(table, tmp_path / "x.tsv", index=False)
    pd.testing.assert_frame_equal(read_table(tmp_path / "x.tsv"), table)


def test_numbers_and_other_text_are_written_as_pandas_does(tmp_path):
    numbers = {
        "a": [-1, 2],
        "b": [-0.5, np.nan],
        "c": [True, False],
        "d": ["-1", None],
        "e": pd.array([-1, None], "Int64"),
    }
    table = pd.DataFrame(numbers | {"f": ["x", "y z"]}, index=[-1, -2])
    write_table(table, tmp_path / "x.tsv")
    table.to_csv(tmp_path / "y.tsv", sep="\t")
    assert (tmp_path / "x.tsv").read_bytes() == (tmp_path / "y.tsv").read_bytes()


@pytest.mark.parametrize("text", ["x", "", "a b", 'say "x"', "x\ty", "x\ny", "x\ry", "é"])
@pytest.mark.parametrize("header", [True, False])
def test_texts_and_whole_numbers_are_written_as_pandas_does(tmp_path, text, header):
    columns = {"gene": [text, "b", ""], "n": [-1, 2, 0], "m": pd.array([3, None, 1], "Int64"), "name": ["c", text, "d"]}
    write_table(pd.DataFrame(columns), tmp_path / "x.tsv", index=False, header=header)
    quoting = csv.QUOTE_ALL if "\r" in text else csv.QUOTE_MINIMAL
    pd.DataFrame(columns).to_csv(tmp_path / "y.tsv", sep="\t", index=False, header=header, quoting=quoting)
    assert (tmp_path / "x.tsv").read_bytes() == (tmp_path / "y.tsv").read_bytes()


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("a\tb\nx\ty\n\tz\n", id="plain"),
        pytest.param("a\tb\nx\ty", id="no line end"),
        pytest.param("a\tb\n\nx\ty\n", id="empty line"),
        pytest.param('a\tb\n"x\ty"\tz\n', id="quotes"),
        pytest.param("a\tb\r\nx\ty\r\n", id="line ends of Windows"),
        pytest.param("a\ta\nx\ty\n", id="a name twice"),
        pytest.param("a\tb\nx\n", id="a field less"),
        pytest.param("a\tb\n", id="no row"),
        pytest.param("a\tb\n'=1\t'x\n", id="apostrophes"),
    ],
)
def test_columns_are_those_that_pandas_reads(tmp_path, text):
    (tmp_path / "x.tsv").write_text(text, newline="")
    expected = pd.read_csv(tmp_path / "x.tsv", sep="\t", dtype=str, keep_default_na=False).replace("'=1", "=1")
    pd.testing.assert_frame_equal(read_table(tmp_path / "x.tsv"), expected)
    assert read_columns(tmp_path / "x.tsv") == {name: expected[name].tolist() for name in expected.columns}
