"""The worked example of docs/explaining.md, and the same on the command line: explain, then statistics."""

import contextlib
import io
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import geneformer_repro as gf
from geneformer_repro.cli import main
from geneformer_repro.heads import CellClassifier, Head
from geneformer_repro.model import bert_config
from geneformer_repro.targets import Classes

DOCUMENT = Path(gf.__file__).parents[1] / "docs" / "explaining.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, _pbmc, vocabulary):
    """What the example begins with: twelve short cells of three donors, their counts, and an untrained classifier."""
    folder = tmp_path_factory.mktemp("explaining")
    adata = _pbmc.copy()
    adata.obs["donor"] = [f"donor{i % 3}" for i in range(adata.n_obs)]
    adata.write_h5ad(folder / "cells.h5ad")
    cells = gf.tokenize(folder / "cells.h5ad", vocabulary, obs=["cell_type", "donor"])
    order = np.argsort(cells.lengths)
    is_own = cells.labels("cell_type").to_numpy()[order] == "CD19+ B"
    cells.select(np.sort(np.r_[order[is_own][:6], order[~is_own][:6]])).save(folder / "held_out.tok")
    torch.manual_seed(0)
    target = Classes("cell_type", tuple(sorted(set(cells.labels("cell_type")))))
    config = bert_config("tiny", vocabulary)
    config.initializer_range = 0.2
    gf.Checkpoint(CellClassifier(config, Head((target,))).eval(), vocabulary).save(folder / "runs" / "type")
    return folder


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.slow
@pytest.mark.usefixtures("here", "blank_pictures")
def test_the_worked_example_runs(folder):
    (block,) = re.findall(r"(?s)```python\n(.*?)```", DOCUMENT.read_text())[:1]
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(block, {"__name__": "__main__"})
    assert "'score': 'balanced accuracy'" in said.getvalue()
    assert "random weights" in said.getvalue()
    assert (folder / "why.html").exists()


@pytest.fixture
def explained(here, folder):
    """What the first command of the document writes, for few cells."""
    path = folder / "short.parquet"
    if not path.exists():
        cells = gf.TokenizedDataset.open(folder / "held_out.tok")
        model = gf.Checkpoint.from_pretrained(folder / "runs" / "type")
        gf.explain(model, cells, state="CD19+ B", methods=["first_order"], donor="donor", out=path)
    return path


def run(*arguments):
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        status = main([str(argument) for argument in arguments])
    return status, said.getvalue()


@pytest.mark.usefixtures("blank_pictures")
def test_statistics_of_an_explanation_writes_the_genes_and_every_test(explained, tmp_path):
    out = tmp_path / "why.tsv"
    options = ["--checkpoint", "runs/type", "--cells", "held_out.tok", "--counts", "cells.h5ad", "--max-cells", 2]
    status, said = run("statistics", explained, *options, "-o", out)
    assert status == 0
    table = pd.read_csv(out, sep="\t").set_index("gene_id")
    expected = gf.Explanation.open(explained).genes(gf.TokenizedDataset.open("held_out.tok"), "cells.h5ad")
    np.testing.assert_allclose(table["effect"].reindex(expected.index), expected["effect"])
    assert "log2_fold_change" in table
    names = {path.name for path in tmp_path.iterdir()}
    of_tests = {f"why.{name}.tsv" for name in ("agreement", "removal", "points", "sanity")}
    assert names == {"why.tsv", "why.png", "why.html", *of_tests}
    assert said.index("The model is no better than guessing") < said.index("gene_name")


@pytest.mark.usefixtures("blank_pictures")
def test_lists_and_sets_are_options(explained, tmp_path):
    genes = gf.Explanation.open(explained).genes()
    often = genes.loc[genes["n_cells"] >= 10, "gene_name"].tolist()
    (tmp_path / "drivers.txt").write_text("\n".join(often[:5]))
    (tmp_path / "sets.gmt").write_text("\t".join(["a set", "no description", *often[:12]]) + "\n")
    options = ["--drivers", tmp_path / "drivers.txt", "--sets", tmp_path / "sets.gmt"]
    status, said = run("statistics", explained, *options, "-o", tmp_path / "why.tsv")
    assert status == 0
    assert "listed genes" in said
    assert (tmp_path / "why.sets.tsv").exists()
    assert (tmp_path / "why.drivers.tsv").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "goal_state"], "--method and --null are for screens"),
        (["--checkpoint", "runs/type"], "give the tokenised cells"),
    ],
    ids=["method", "no cells"],
)
def test_what_does_not_fit_an_explanation_is_refused(explained, tmp_path, capsys, arguments, message):
    status = main(["statistics", str(explained), *arguments, "-o", str(tmp_path / "why.tsv")])
    assert status != 0
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_fits_explanations_alone_is_refused_of_a_screen(here, folder, tmp_path, capsys):
    cells = gf.TokenizedDataset.open(folder / "held_out.tok")
    model = gf.Checkpoint.from_pretrained(folder / "runs" / "type")
    shifts = tmp_path / "shifts.parquet"
    gf.perturb(model, cells, gf.Deletion(["CD74"]), target="cell_type", max_cells=2, out=shifts)
    status = main(["statistics", str(shifts), "--sets", str(shifts), "-o", str(tmp_path / "t.tsv")])
    assert status != 0
    assert "--sets is for explanations" in capsys.readouterr().err
