"""Pictures and page of a network on known edges hold what the table holds; the command line gives the same."""

import numpy as np
import pandas as pd
import pytest
from _simulated_attention import simulate
from drawing import EveryFigure, rows, texts
from made_networks import counts_of, edges_of, network_of

from geneformer_repro import cli
from geneformer_repro.checkpoint_files import CHECKPOINT_WARNING
from geneformer_repro.errors import InputError
from geneformer_repro.files import read_table
from geneformer_repro.in_silico.networks.evaluation_figures import (
    methods_figure,
    precision_recall_figure,
    sources_figure,
)
from geneformer_repro.in_silico.networks.evaluation_pictures import plot_network_evaluation, write_network_evaluation
from geneformer_repro.in_silico.networks.network_evaluation import evaluate_network

METHODS = pd.DataFrame(
    {
        "matched": [0.61, 0.5, 0.55, 0.84],
        "matched_low": [0.58, 0.47, 0.52, 0.8],
        "matched_high": [0.65, 0.53, 0.58, 0.88],
        "matched_null_low": [0.48, 0.48, 0.49, np.nan],
        "matched_null_high": [0.52, 0.52, 0.53, np.nan],
    },
    index=["network", "random weights", "|Spearman|", "degree product"],
)
CURVES = {
    "network": {"recall": [0.01, 0.1, 1.0], "precision": [1.0, 0.4, 0.02]},
    "|Spearman|": {"recall": [0.01, 0.1, 1.0], "precision": [0.5, 0.1, 0.02]},
}
OF_SOURCES = {"network": np.array([0.9, np.nan, 0.6]), "|Spearman|": np.array([0.5, np.nan, 0.4])}
FIGURES = {
    "methods": lambda: methods_figure(
        METHODS, title="TRRUST", of_models=["network", "random weights"], of_reference=["degree product"]
    ),
    "precision_recall": lambda: precision_recall_figure(CURVES, density=0.02),
    "sources": lambda: sources_figure(OF_SOURCES, ["SPI1", "GATA3", "LEF1"]),
}


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES, scope="class")
class TestEveryFigureOfAnEvaluation(EveryFigure):
    pass


def test_methods_stand_from_the_top_down_with_their_null():
    figure = FIGURES["methods"]()
    assert rows(figure.axes[0]) == METHODS.index.tolist()
    assert texts(figure)["legend"] == [
        "of a model", "of the cells alone", "the reference alone", "rewired references, 95 %",
    ]  # fmt: skip
    bands = figure.axes[0].patches
    np.testing.assert_allclose([band.get_x() for band in bands[:3]], METHODS["matched_null_low"][:3])


def test_a_curve_has_the_precision_of_chance_beside_it():
    figure = FIGURES["precision_recall"]()
    assert texts(figure)["legend"] == ["network", "|Spearman|", "chance"]
    np.testing.assert_array_equal(figure.axes[0].lines[-1].get_ydata(), [0.02, 0.02])


def test_sources_that_the_network_finds_best_are_named_and_those_without_an_area_are_not_drawn():
    axes = FIGURES["sources"]().axes[0]
    assert axes.get_title(loc="left") == "highest for the network: SPI1, LEF1"
    assert [len(points.get_offsets()) for points in axes.collections[::2]] == [2, 2]


# Of a whole evaluation


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A network, the counts of its cells, and its planted edges."""
    simulated, folder = simulate(0.5, np.random.default_rng(0)), tmp_path_factory.mktemp("made")
    network_of(simulated, folder / "net")
    counts_of(simulated).write_h5ad(folder / "cells.h5ad")
    edges_of(simulated).assign(licence="none").to_csv(folder / "planted.tsv", sep="\t", index=False)
    return folder


@pytest.fixture(scope="module")
def evaluation(folder):
    from geneformer_repro.in_silico.networks.gene_network import GeneNetwork

    net, known = GeneNetwork.open(folder / "net"), {"planted": folder / "planted.tsv"}
    return evaluate_network(net, known, counts=folder / "cells.h5ad", boosted_targets=20, n_rewirings=20)


def test_a_picture_is_of_the_rows_of_its_universe(evaluation):
    drawn = rows(plot_network_evaluation(evaluation, universe="boosted").axes[0])
    assert drawn == evaluation.loc["planted"].loc["boosted"].index.tolist()


def test_a_picture_says_of_which_edges_it_is(evaluation):
    row = evaluation.loc[("planted", "closed", "network")]
    title = f"planted, closed universe: {row['n_edges']:.0f} edges of {row['n_sources']:.0f} sources"
    assert plot_network_evaluation(evaluation, universe="closed").axes[0].get_title(loc="left") == title


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"kind": "curve"}, "kind must be one of"),
        ({"universe": "wide"}, "There is no universe 'wide'"),
        ({"reference": "TRRUST"}, "There is no reference 'TRRUST'"),
    ],
    ids=["kind", "universe", "reference"],
)
def test_what_is_not_there_is_not_drawn(evaluation, options, says):
    with pytest.raises(InputError, match=says):
        plot_network_evaluation(evaluation, **options)


def test_a_table_of_something_else_is_refused():
    with pytest.raises(InputError, match="no result of evaluate_network"):
        plot_network_evaluation(METHODS)


def test_the_page_says_what_is_left_beyond_co_expression_first_and_of_all_what_it_does_not_show(
    evaluation, tmp_path, blank_pictures, monkeypatch
):
    monkeypatch.setitem(evaluation.attrs["facts"], CHECKPOINT_WARNING, "no good")
    write_network_evaluation(evaluation, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.count("<b>The model is no good.</b>") == page.count("no good") == 1
    assert page.index("Beyond co-expression of the same cells: matched AUROC +0.") < page.index("<section>")
    assert page.count("<b>Does not show:</b>") == page.count("<section>") == 6
    assert "degree product" in page
    assert "licence" in page
    assert "regulates" not in page
    with pytest.raises(FileExistsError):
        write_network_evaluation(evaluation, tmp_path / "page.html")


def test_the_command_line_writes_table_picture_and_page(folder, evaluation, tmp_path, capsys, blank_pictures):
    given = [str(folder / "net"), "--known", str(folder / "planted.tsv"), "--counts", str(folder / "cells.h5ad")]
    options = ["--boosted-targets", "20", "--rewirings", "20", "-o", str(tmp_path / "known.tsv")]
    assert cli.main(["statistics", *given, *options]) == 0
    table = read_table(tmp_path / "known.tsv").set_index(["reference", "universe", "method"])
    np.testing.assert_allclose(table["matched"].astype(float), evaluation["matched"])
    assert {file.name for file in tmp_path.iterdir()} == {"known.tsv", "known.png", "known.html"}
    said = capsys.readouterr().out
    assert "planted: Beyond co-expression of the same cells" in said
    assert "|Spearman|" in said


def test_knockdowns_are_scored_without_a_list_of_known_edges(folder, tmp_path, capsys, blank_pictures):
    changed = (
        pd.read_csv(folder / "planted.tsv", sep="\t").rename(columns={"tf": "perturbed"}).assign(p=1e-8, log2fc=-1.5)
    )
    others = changed["target"].sample(frac=1, random_state=0).to_numpy()
    same = changed.assign(target=others, p=0.5, log2fc=0.1)
    pd.concat([changed, same]).to_csv(tmp_path / "knockdowns.tsv", sep="\t", index=False)
    given = [str(folder / "net"), "--perturbed", str(tmp_path / "knockdowns.tsv")]
    options = ["--counts", str(folder / "cells.h5ad"), "--boosted-targets", "0", "--rewirings", "2"]
    assert cli.main(["statistics", *given, *options, "-o", str(tmp_path / "scores.tsv")]) == 0
    table = read_table(tmp_path / "scores.tsv")
    assert set(table["reference"]) == {"perturbed"}
    assert "perturbed, open universe" in capsys.readouterr().out
    assert "false_omission_rate" in (tmp_path / "scores.html").read_text().replace("<wbr>", "")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--known", "planted.tsv"], "give their raw counts with --counts"),
        (["--known", "planted.tsv", "./planted.tsv", "--counts", "cells.h5ad"], "two are called 'planted'"),
        (["--perturbed", "planted.tsv"], "give their raw counts with --counts"),
        (["--known", "planted.tsv", "--between", "a", "b"], "give one of the two"),
        (["--perturbed", "planted.tsv", "--between", "a", "b"], "give one of the two"),
    ],
    ids=["without counts", "one name", "knockdowns without counts", "two questions", "knockdowns, and states"],
)
def test_the_command_line_refuses_before_the_work(folder, tmp_path, capsys, monkeypatch, options, says):
    monkeypatch.chdir(folder)
    status = cli.main(["statistics", str(folder / "net"), *options, "-o", str(tmp_path / "known.tsv")])
    assert status != 0
    assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
