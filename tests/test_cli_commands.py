"""What the command line says without a model: help, examples, mistakes told at once, what comes next, tables."""

import io
import json
import logging
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from geneformer_repro import cli
from geneformer_repro.cli import following, terminal
from geneformer_repro.errors import InputError
from geneformer_repro.progress import IN_A_BAR, Bar

PARSER = cli._parser()
COMMANDS = PARSER.commands


# Help


def test_the_list_of_commands_fits_a_screen_with_one_line_each():
    lines = PARSER.format_help().splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 80
    listed = [line.split()[0] for line in lines if line.startswith("  ")]
    assert sorted(listed) == sorted(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_first_screen_of_help_has_usage_and_examples_that_are_understood(name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    command = COMMANDS[name]
    screen = "\n".join(command.format_help().splitlines()[:24])
    usage = screen.partition("\n\n")[0]
    assert all(action.metavar in usage for action in command._actions if not action.option_strings)
    shown = screen.partition("for example:\n")[2].partition("\n\n")[0].replace("\\\n", " ").splitlines()
    assert [" ".join(line.split()) for line in shown] == command.examples
    for example in shown:
        assert PARSER.parse_args(shlex.split(example)[1:]).command == name


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_a_terminal_and_puts_every_option_in_a_group(name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    command = COMMANDS[name]
    assert max(map(len, command.format_help().splitlines())) <= 80
    titles = [group.title for group in command._action_groups if group._group_actions]
    assert not {"positional arguments", "options"} & set(titles)
    assert all(action.help for action in command._actions)


# Mistakes that need no data


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Names of artefacts, as far as commands look before they load anything."""
    for path, content in {
        "base/config.json": {},
        "base/vocabulary.json": {},
        "clf/config.json": {},
        "clf/head.json": {},
        "cells.tok/spec.json": {"obs": ["cell_type", "donor"], "n_cells": 700},
        "net/network.json": {"states": {"A": {}, "B b": {}}, "groups": [{"state": "A", "donor": "d1"}]},
        "pooled/network.json": {"states": {"A": {}, "B b": {}}, "groups": [{"state": "A", "donor": None}]},
    }.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(json.dumps(content))
    (tmp_path / "counts.h5ad").touch()
    (tmp_path / "done.parquet").touch()
    (tmp_path / "table.tsv").touch()
    (tmp_path / "classes.tsv").write_text("gene\tlabel\nSTAT1\ta\n")
    (tmp_path / "bound.toml").write_text("held_out = 2.0\n")
    pd.DataFrame({"gene_id": []}).to_parquet(tmp_path / "genes.parquet")
    monkeypatch.chdir(tmp_path)


MISTAKES = {
    "embed bsae cells.tok -o x.h5ad": "bsae: no such file or folder. Did you mean 'base'?",
    "embed base cels.tok -o x.h5ad": "cels.tok: no such file or folder. Did you mean 'cells.tok'? CELLS is: folder",
    "embed cells.tok base -o x.h5ad": "embed takes a checkpoint for CHECKPOINT. The two are the wrong way round",
    "embed base counts.h5ad -o x.h5ad": "geneformer-repro tokenize counts.h5ad --vocabulary base -o CELLS.tok",
    "tokenize base --vocabulary base -o x.tok": "base: is a checkpoint. tokenize takes counts, expression or vectors",
    "statistics net/nothing -o x.tsv": "net/nothing: no such file or folder. SHIFTS is: Parquet file",
    "statistics cells.tok -o x.tsv": "Commands that take tokenised cells: ",
    "perturb base cells.tok --donor doner -o x.parquet": "--donor: the dataset has no obs column 'doner'. Did you mean",
    "perturb base cells.tok --max-cells 0 -o x.parquet": "--max-cells must be at least 1, found 0.",
    "perturb base cells.tok -o done.parquet": "done.parquet already exists.",
    "finetune base cells.tok --target celltype -o x": "no obs column 'celltype'. Did you mean 'cell_type'?",
    "finetune base cells.tok --set epoch=3 -o x": "has no field 'epoch'. Did you mean 'training.epochs'?",
    "finetune base cells.tok --genes genes.parquet --set fold=3 -o x": "GeneFinetuneConfig has no field 'fold'.",
    "pretrain cells.tok --set training.epochs=many -o x": "training.epochs must be float, found 'many'",
    "pretrain cells.tok --set size=huge -o x": "size must be one of 'tiny', 'V1-10M'",
    "pretrain cells.tok --set training.epochs=0 -o x": "training.epochs must be above 0, found 0.0.",
    "pretrain cells.tok --config bound.toml -o x": "PretrainConfig.held_out must be between 0 and 1, found 2.0.",
    "finetune base cells.tok -o x": "FinetuneConfig.target must be at least one obs column",
    "finetune base cells.tok --target donor --test-groups 1 -o x": "split.group must be a column with test_groups",
    "finetune base cells.tok --target donor --transfer lorra -o x": "strategy must be one of 'full', 'freeze'",
    "pretrain cells.tok --set epochs -o x": "--set epochs: expected key=value",
    "pretrain cells.tok --config no.toml -o x": "no.toml: no such file or folder.",
}
FORBIDDING = """
import shlex, sys
class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "pandas", "anndata", "datasets", "scipy"):
            raise AssertionError(f"loads {name}")
sys.meta_path.insert(0, Forbidden())
from geneformer_repro import cli
for command in sys.stdin.read().splitlines():
    assert cli.main(shlex.split(command)) == 2, command
"""


def test_what_needs_no_data_is_told_before_any_library_is_loaded(here):
    commands = "\n".join(MISTAKES)
    done = subprocess.run(
        [sys.executable, "-c", FORBIDDING], input=commands, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for said, (command, message) in zip(done.stderr.splitlines(), MISTAKES.items(), strict=True):
        assert said.startswith("error: "), command
        assert message in said, command


EVERY_STEP = {
    "pretrain": "pretrain cells.tok",
    "finetune": "finetune base cells.tok --target cell_type",
    "genes": "finetune base cells.tok --genes classes.tsv",
    "study": "finetune base cells.tok --target cell_type --source cells.tok --source-target cell_type",
    "patients": "finetune-patients cells.tok --patient donor --target cell_type",
    "cohorts": "transfer-study counts.h5ad --values counts --survival time event",
    "response": "response counts.h5ad --responses table.tsv",
    "screens": "response-study counts.h5ad --responses table.tsv --source counts.h5ad --source-responses table.tsv",
}


@pytest.mark.parametrize("step", EVERY_STEP)
def test_every_configuration_is_made_with_its_bounds_before_the_work(here, step):
    command = [*shlex.split(EVERY_STEP[step]), "-o", "x"]
    given = PARSER.parse_args(command)
    COMMANDS[given.command].check(given)
    assert given.settings.seed == 0
    for wrong, said in {"seed=-1": "seed must be at least 0", "sed=1": "has no field 'sed'. Did you mean"}.items():
        given = PARSER.parse_args([*command, "--set", wrong])
        with pytest.raises(InputError, match=said):
            COMMANDS[given.command].check(given)


# What comes next

NEXT = {
    "vocabulary counts.h5ad --layer raw -o v": "tokenize counts.h5ad --vocabulary v --layer raw -o cells-2.tok",
    "tokenize counts.h5ad --vocabulary base -o 'my cells.tok'": "embed base 'my cells.tok' -o 'my cells-vectors.h5ad'",
    "tokenize counts.h5ad --vocabulary clf -o cells.tok": "predict clf cells.tok -o cells-predicted.tsv",
    "tokenize counts.h5ad --vocabulary v -o cells.tok": "pretrain cells.tok --set size=tiny "
    "training.batch_size=4 training.learning_rate=2e-3 training.warmup_steps=0.1 -o base-2",
    "pretrain cells.tok -o runs/base": "embed runs/base cells.tok -o runs/base-vectors.h5ad",
    "pretrain cells.tok --vocabulary v --max-length 9 --where donor=a -o new": "embed new cells.tok --vocabulary v "
    "--max-length 9 --where donor=a -o new-vectors.h5ad",
    "finetune base cells.tok --target cell_type -o clf": "perturb clf cells.tok --target cell_type --first-order "
    "--max-cells 100 -o clf-screen.parquet",
    "finetune base cells.tok --target cell_type --group donor --where donor!=d1 -o new": "perturb new cells.tok "
    "--where 'donor!=d1' --target cell_type --donor donor --first-order --max-cells 100 -o new-screen.parquet",
    "embed base cells.tok --where donor=d1 -o v.h5ad": "perturb base cells.tok --where donor=d1 --max-cells 100 "
    "-o v-screen.parquet",
    "perturb base cells.tok -o few.parquet": "statistics few.parquet --method aggregate -o few.tsv",
    "perturb base cells.tok -o many.parquet": "statistics many.parquet -o many.tsv",
    "perturb base cells.tok --where donor=d1 --state cell_type --start a --goal b -o many.parquet": "statistics "
    "many.parquet --cells cells.tok --where donor=d1 -o many.tsv",
    "explain base cells.tok -o why.parquet": "statistics why.parquet --checkpoint base --cells cells.tok "
    "-o why-genes.tsv",
    "network base cells.tok -o net": "statistics net --between A 'B b' -o net-states.tsv",
    "network base cells.tok -o pooled": "statistics pooled --state A -o pooled.graphml",
    "info pooled": "statistics pooled --state A -o pooled.graphml",
    "heads base cells.tok --genes g.txt -o heads.tsv": "network base cells.tok --sources g.txt -o heads-network",
}


@pytest.mark.parametrize(("command", "after"), NEXT.items(), ids=NEXT)
def test_the_next_command_has_the_paths_of_this_one_and_is_understood(here, command, after, monkeypatch):
    monkeypatch.setattr(following, "_n_perturbed", lambda screen: 3 if screen.stem == "few" else 900)
    words = shlex.split(command)
    found = COMMANDS[words[0]].then(PARSER.parse_args(words))
    assert shlex.join(found) == after
    assert not Path(PARSER.parse_args(found).out).exists()


def test_info_says_that_a_file_may_not_be_read(here, monkeypatch, capsys):
    """As root reads every file, the answer of the system is set."""
    monkeypatch.setattr("os.access", lambda path, mode: mode != os.R_OK)
    assert cli.main(["info", "counts.h5ad"]) == 2
    assert capsys.readouterr().err == "error: counts.h5ad: may not be read by this user.\n"


def test_without_what_it_would_need_no_command_is_named(here):
    assert following.after_embed(PARSER.parse_args(shlex.split("embed base cells.tok --level gene -o x.h5ad"))) is None
    assert COMMANDS["enrich"].then(PARSER.parse_args(shlex.split("enrich t.tsv --sets s.gmt -o x.tsv"))) is None


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_next_command_and_colour_are_for_a_terminal(monkeypatch, capsys):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    terminal.say_next(["info", "a b"])
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys, "stderr", Terminal())
    terminal.say_next(["info", "a b"])
    assert sys.stderr.getvalue() == "\x1b[32mnext:\x1b[0m geneformer-repro info 'a b'\n"
    monkeypatch.setenv("NO_COLOR", "1")
    assert terminal.coloured("error:", terminal.RED, Terminal()) == "error:"


def test_that_libraries_load_is_said_until_there_is_more_to_say(monkeypatch, capsys):
    monkeypatch.setenv("TERM", "xterm")
    terminal.Begun.show()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys, "stderr", Terminal())
    terminal.Begun.show()
    terminal.say("vectors")
    terminal.say("more")
    assert sys.stderr.getvalue() == "loading …\r\x1b[K"
    assert capsys.readouterr().out == "vectors\nmore\n"


def test_an_event_is_told_in_words_on_a_terminal_and_as_json_in_a_file(monkeypatch):
    event = '{"event": "embed", "cells": 1200, "seconds": 0.131, "peak_memory_gb": 0.6, "learning": []}'
    record = logging.makeLogRecord({"msg": event})
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert terminal.InWords("%(message)s").format(record) == event
    monkeypatch.setattr(sys, "stderr", Terminal())
    in_words = "embed: cells 1,200, seconds 0.131"
    assert terminal.InWords("%(message)s").format(record) == in_words


def test_a_line_of_the_log_is_written_in_the_place_of_a_bar_and_the_bar_below_it(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with Bar("search", total=7, unit="epochs"):
        terminal.AboveBars(sys.stderr).handle(logging.makeLogRecord({"msg": "rung 1"}))
        before, after = sys.stderr.getvalue().split("rung 1\n")
    assert before.endswith(" \r")
    assert after.startswith("\rsearch:   0%|")


def test_what_a_bar_shows_is_not_said_again_on_its_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert not terminal.InWords.is_news(logging.makeLogRecord({"msg": "{}", **IN_A_BAR}))
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert terminal.InWords.is_news(logging.makeLogRecord({"msg": "{}", **IN_A_BAR}))


# Lines

SAID = """\
versions     Python and what is long to say of it
  donor  9 values: 1015, 1256 and 7 more of them
A sentence that is longer than the terminal is wide
    row 1"""


def test_lines_go_on_below_what_stands_behind_their_label():
    assert terminal.broken(SAID, 30).splitlines() == [
        "versions     Python and what",
        "             is long to say of",
        "             it",
        "  donor  9 values: 1015, 1256",
        "         and 7 more of them",
        "A sentence that is longer than",
        "  the terminal is wide",
        "    row 1",
    ]
    assert terminal.broken(SAID, None) == SAID


def test_a_command_that_is_folded_is_the_same_to_a_shell():
    words = ["geneformer-repro", "embed", "my base", "cells.tok", "--where", "donor=it's", "--umap", "cell_type"]
    folded = terminal.folded(words, 40, at=6)
    assert max(map(len, folded.splitlines())) <= 40
    assert folded.count(" \\\n") == 3
    assert shlex.split(folded.replace("\\\n", "")) == words
    assert terminal.folded(words, None) == shlex.join(words)


def test_nested_facts_are_told_a_line_each():
    facts = {
        "step": "finetune",
        "config": {"seed": 0, "search": {"trials": 2, "space": {}}, "base": None},
        "inputs": {"cells": "0123456789ab" + "c" * 52},
        "result": {"type": {"accuracy": 0.98913, "accuracy_low": 0.9, "accuracy_high": 1.0, "n": 1900}},
        "methods": {"hide": {}, "ig": {"steps": 18}},
        "method": {"hide": {}},
        "donors": [*"abcdefghijkl"],
    }
    assert terminal.in_rows(facts) == [
        "  step     finetune",
        "  config",
        "    seed    0",
        "    search  trials 2",
        "  inputs   cells 0123456789ab…",
        "  result",
        "    type  accuracy 0.9891 (0.9 to 1), n 1,900",
        "  methods",
        "    hide  –",
        "    ig    steps 18",
        "  method   hide",
        "  donors   a, b, c, d, e, f, g, h, i, j and 2 more",
    ]


# Tables

TABLE = pd.DataFrame({"gene": ["STAT1", "A" * 50], "effect": [0.123456, None], "n": [7, 1200], "note": ["", "few"]})


def test_numbers_stand_to_the_right_and_text_to_the_left():
    assert terminal.in_columns(TABLE.assign(gene=["STAT1", "IRF"])).splitlines() == [
        "gene   effect     n  note",
        "STAT1  0.1235     7",
        "IRF         –  1200  few",
    ]


def test_a_narrow_terminal_has_fewer_columns_and_says_which_it_lacks():
    lines = terminal.in_columns(TABLE, width=60).splitlines()
    assert max(map(len, lines)) <= 60
    assert lines[2].startswith("A" * 39 + "…  ")
    assert terminal.in_columns(TABLE, width=50).splitlines()[-1] == "(for want of room without n, note)"


def test_into_a_file_everything_is_written(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    terminal.print_table(TABLE.set_index("gene"), index=True)
    assert "A" * 50 + "       –  1200  few" in capsys.readouterr().out
