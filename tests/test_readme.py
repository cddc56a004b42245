"""The README's code works as it stands, and what it names exists."""

import re
from pathlib import Path

import pytest
from running import run

pytestmark = pytest.mark.usefixtures("few_trees", "blank_pictures", "few_resamples", "flat_maps")

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def test_the_example_of_cells_of_others_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (example,) = blocks("python", (ROOT / "docs" / "published.md").read_text())
    said = run(lambda: exec(example, {"__name__": "__main__"}))
    assert "['ENSG00000159251', 'ENSG00000111245']" in said.stdout
    assert "1 cells of 3 to 3 tokens" in said.stdout


@pytest.mark.slow
def test_its_first_python_block_runs_from_counts_to_a_table(tmp_path, monkeypatch, pbmc):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("geneformer_repro.datasets.pbmc700", lambda: pbmc[::3].copy())  # for time
    said = run(lambda: exec(blocks("python")[0], {"__name__": "__main__"}))
    assert "logistic regression, counts" in said.stdout
    assert "p_value" in said.stdout


def test_every_command_it_shows_is_understood():
    from geneformer_repro.cli import _parser

    commands = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("geneformer-repro")]
    assert len({line.split()[1] for line in commands}) == 13
    for line in commands:
        _parser().parse_args(re.findall(r'"[^"]*"|\S+', line.partition(" #")[0])[1:])


@pytest.mark.parametrize("target", re.findall(r"(?:\]\(|src=\")(?!http)([^)#\"]+)", README))
def test_what_it_links_to_exists(target):
    assert (ROOT / target).exists()


def test_its_two_commands_are_targets_of_the_makefile():
    makefile = (ROOT / "Makefile").read_text()
    assert all(f"\n{target}: $(INSTALLED)" in makefile for target in ("demo", "test"))


def test_its_first_picture_is_the_plan_of_the_packages():
    import geneformer_repro.finetuning
    import geneformer_repro.pretraining
    import geneformer_repro.tokenizer

    picture = blocks("text")[0]
    for package, word in (("tokenizer", "tokenizer"), ("pretraining", "pretraining"), ("finetuning", "finetuning")):
        row = next(line for line in picture.splitlines() if f" {word} " in line)
        assert row.split(word)[1].strip() in getattr(geneformer_repro, package).__doc__


def test_the_design_begins_with_the_same_picture():
    assert blocks("text", (ROOT / "docs" / "design.md").read_text())[0] == blocks("text")[0]
