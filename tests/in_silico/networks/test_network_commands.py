"""Commands of heads and of differences: what they write, and what they refuse."""

from pathlib import Path

import networkx
import pandas as pd
import pytest
from two_state_networks import made_network

import geneformer_repro as gf
from geneformer_repro.cli import main

pytestmark = pytest.mark.usefixtures("blank_pictures")


def test_states_of_a_network_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = made_network(tmp_path / "net").network
    command = ["statistics", str(tmp_path / "net"), "--between", "ctrl", "stim", "-o", str(tmp_path / "diff.tsv")]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "Over 6 donors" in said
    table = pd.read_csv(tmp_path / "diff.tsv", sep="\t")
    assert len(table) == 707
    assert {"source", "target", "fdr", "n_donors", "moved"} <= set(table)
    assert {path.suffix for path in tmp_path.glob("diff.*")} == {".tsv", ".png", ".html"}
    assert main(command) == 2
    assert "already exists" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0
    assert network.states == ["ctrl", "stim"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param(["net", "--between", "ctrl", "stimulated", "-o", "diff.tsv"], "no state 'stimulated'", id="state"),
        pytest.param(["net", "--between", "ctrl", "stim", "-o", "diff.csv"], "written as .tsv", id="suffix"),
        pytest.param(["net", "-o", "x.tsv"], "is a gene network: ask which edges differ", id="no_question"),
        pytest.param(["nowhere", "--between", "ctrl", "stim", "-o", "diff.tsv"], "nowhere: no such", id="no_network"),
    ],
)
def test_what_cannot_be_compared_is_one_line(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made_network(tmp_path / "net")
    monkeypatch.chdir(tmp_path)
    assert main(["statistics", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.startswith("error: ")


def test_the_strongest_edges_are_written_for_cytoscape(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = made_network(tmp_path / "net").network
    out = tmp_path / "stim.graphml"
    command = ["statistics", str(tmp_path / "net"), "-o", str(out), "--top", "2"]
    assert main(command) == 2
    assert "2 states; name one: state= (--state)" in capsys.readouterr().err
    assert main([*command, "--state", "stim"]) == 0
    again, graph = networkx.read_graphml(out), network.graph("stim", top=2)
    assert set(again.edges) == set(graph.edges)
    said = f"{graph.number_of_nodes()} genes, {graph.number_of_edges()} edges of stim"
    assert said in capsys.readouterr().out


def test_heads_write_a_table_a_picture_and_a_page(
    checkpoint: gf.Checkpoint,
    cells: gf.TokenizedDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint.save("base")
    cells.select(range(40)).save("cells.tok")
    Path("tfs.txt").write_text("SPI1\nIRF8\nID2\nFOS\nJUNB\nNOTAGENE\n")
    command = [
        "heads",
        "base",
        "cells.tok",
        "--genes",
        "tfs.txt",
        "--donor",
        "donor",
        "--min-cells",
        "5",
        "-o",
        "heads.tsv",
    ]
    assert main([*command, "--permutations", "99"]) == 0
    assert "of 6 heads" in capsys.readouterr().out
    table = pd.read_csv("heads.tsv", sep="\t")
    assert table[["layer", "head"]].to_numpy().tolist() == [[layer, head] for layer in range(3) for head in range(2)]
    assert {"fdr", "random_difference", "n_donors"} <= set(table)
    assert Path("heads.png").exists()
    assert "Heads of attention" in Path("heads.html").read_text()


@pytest.fixture
def made(
    checkpoint: gf.Checkpoint, cells: gf.TokenizedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model, cells of two types, and a list of genes, in the working folder."""
    monkeypatch.chdir(tmp_path)
    checkpoint.save("base")
    rows = cells.labels("cell_type").isin(["CD14+ Monocyte", "Dendritic"]).to_numpy().nonzero()[0]
    cells.select(rows[:120]).save("cells.tok")
    Path("tfs.txt").write_text("SPI1\nIRF8\nID2\nNOTAGENE\n")


@pytest.mark.usefixtures("made")
def test_a_network_is_a_folder_a_picture_and_a_page(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["network", "base", "cells.tok", "--sources", "tfs.txt", "--by", "cell_type", "--donor", "donor"]
    command += ["--min-cells", "10", "--calibration-cells", "20", "--heads", "0:1", "2:0", "-o", "net.v1"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "net.v1: 3 sources ×" in said
    assert "120 cells of 3 donors" in said
    assert {path.name for path in Path().glob("net*")} == {"net.v1", "net.v1.png", "net.v1.html"}
    network = gf.GeneNetwork.open("net.v1")
    assert network.metadata["heads"] == [[0, 1], [2, 0]]
    assert network.donors["Dendritic"] == ["donor0", "donor1", "donor2"]
    assert main(command) == 2
    assert "net.v1 already exists" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0
    capsys.readouterr()
    assert main(["info", "net.v1"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("3 sources × ")
    assert '"direction": "source=key"' in said
    assert "of_heads" not in said


@pytest.mark.usefixtures("made")
def test_a_network_of_random_weights_is_that_of_a_model_that_learned_nothing(checkpoint: gf.Checkpoint) -> None:
    options = {"by": "cell_type", "min_cells": 10, "calibration_cells": 20}
    command = ["network", "base", "cells.tok", "--sources", "tfs.txt", "--by", "cell_type", "--min-cells", "10"]
    command += ["--calibration-cells", "20", "--seed", "3"]
    assert main([*command, "--random-weights", "-o", "random"]) == 0
    untrained = checkpoint.with_random_weights(seed=3)
    expected = gf.gene_network(
        untrained, gf.TokenizedDataset.open("cells.tok"), sources="tfs.txt", out="expected", seed=3, **options
    )
    found = gf.GeneNetwork.open("random")
    assert found.metadata == expected.metadata
    assert found.metadata["checkpoint"] not in (checkpoint.fingerprint, checkpoint.with_random_weights().fingerprint)
    pd.testing.assert_frame_equal(found.edges, expected.edges)


@pytest.mark.usefixtures("made")
@pytest.mark.parametrize(
    ("options", "said"),
    [
        pytest.param(["--heads", "0.1"], "--heads takes LAYER:HEAD, such as 0:3, found '0.1'", id="heads"),
        pytest.param(["--sources", "none.txt"], "none.txt: no such file or folder", id="file"),
        pytest.param(["--by", "celltype"], "Did you mean 'cell_type'", id="by"),
        pytest.param(["--max-memory", "1KB"], "or allow more: max_memory=", id="memory"),
    ],
)
def test_what_cannot_be_made_is_one_line_before_the_work(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["network", "base", "cells.tok", *options, "-o", "net"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.splitlines()[-1].startswith("error: ")
    assert not list(Path().glob("net*"))
