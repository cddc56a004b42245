"""Pictures and page of gene sets hold what the tables hold; the command line gives the same."""

import numpy as np
import pandas as pd
import pytest
from drawing import EveryFigure, rows, texts
from tables_of_genes import sets_by_detection, table_of_genes

import geneformer_repro as gf
from geneformer_repro import cli
from geneformer_repro.errors import InputError
from geneformer_repro.files import read_table
from geneformer_repro.in_silico.explanations.enrichment_figures import (
    common_genes_figure,
    drivers_figure,
    sets_figure,
    sides_figure,
)

SETS = pd.DataFrame(
    {
        "direction": ["above 0", "below 0", "above 0"],
        "size": [40, 25, 310],
        "overlap": [9, 3, 0],
        "fold": [4.2, 2.0, 0.0],
        "p_value": [1e-6, 0.02, 1.0],
        "fdr": [1e-4, 0.3, 1.0],
        "plain_p_value": [1e-8, 0.001, 1.0],
    },
    index=["HALLMARK_INTERFERON_GAMMA_RESPONSE", "A_SET_WITH_A_NAME_THAT_IS_MUCH_TOO_LONG_FOR_ANY_PICTURE", "C"],
)
SIDES = pd.DataFrame(
    {"nes scratch": [2.5, -1.0, 0.5], "nes pretrained": [2.0, -2.2, 0.1], "found": ["shared", "pretrained", ""]},
    index=["FIRST_SET", "SECOND_SET", "THIRD_SET"],
)
GENES = [
    {"direction": "above 0", "only_first": 176, "common": 24, "only_second": 176, "expected": 20.3, "p_value": 0.2},
    {"direction": "below 0", "only_first": 182, "common": 18, "only_second": 182, "expected": 20.1, "p_value": 0.7},
]
DRIVERS = pd.DataFrame(
    {"precision": [0.3, 0.1, 0.1, 0.08], "expected": [0.08, 0.08, 0.12, 0.11], "p_value": [0.01, 0.3, 0.6, 0.9]},
    index=pd.MultiIndex.from_product([["hide", "detection"], [10, 50]], names=["score", "k"]),
)
FIGURES = {
    "sets": lambda: sets_figure(SETS, title="hide, CD19+ B"),
    "sides": lambda: sides_figure(SIDES, ["scratch", "pretrained"], value="nes"),
    "common genes": lambda: common_genes_figure(GENES, ["scratch", "pretrained"]),
    "drivers": lambda: drivers_figure(DRIVERS, title="OncoKB: 548 of 6,864 genes"),
}


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES, scope="class")
class TestEveryFigureOfGeneSets(EveryFigure):
    pass


def test_sets_stand_from_the_top_down_filled_matched_and_hollow_not():
    figure = FIGURES["sets"]()
    names = rows(figure.axes[0])
    assert names[0] == "↑ HALLMARK INTERFERON GAMMA RESPONSE  (9 of 40; ×4.2)"
    assert names[1].startswith("↓ A SET WITH")
    assert "…" in names[1]
    plain, *matched = figure.axes[0].collections[1:]
    np.testing.assert_allclose(plain.get_offsets()[:, 0], [8, 3, 0], atol=1e-12)
    np.testing.assert_allclose(
        np.sort(np.concatenate([of.get_offsets()[:, 0] for of in matched])), [0, 1.69897, 6], atol=1e-5
    )
    assert texts(figure)["legend"] == ["not matched", "matched, FDR ≥ 0.05", "matched, FDR < 0.05, above 0"]


def test_sets_of_two_models_are_told_apart_and_named():
    figure = FIGURES["sides"]()
    assert texts(figure)["written"] == ["FIRST SET", "SECOND SET"]
    assert texts(figure)["legend"] == ["in neither (1)", "in both (1)", "in pretrained only (1)"]
    assert texts(figure)["axes"] == ["NES, scratch", "NES, pretrained"]


def test_common_genes_stand_beside_what_chance_makes_common():
    written = texts(FIGURES["common genes"]())["written"]
    assert written[:5] == ["176", "scratch", "176", "pretrained", "24"]
    assert written[5] == "above 0\nby chance 20.3 in common, p = 0.2"


def test_drivers_have_a_bar_a_score_and_their_expectation():
    figure = FIGURES["drivers"]()
    assert [bar.get_height() for bar in figure.axes[0].patches] == [0.3, 0.1, 0.1, 0.08]
    assert texts(figure)["written"] == ["*"]
    assert {"hide", "detection", "expected of genes like them"} <= set(texts(figure)["legend"])


# The page and the command line


TABLE = table_of_genes()
OF_GENES = sets_by_detection(TABLE, n_sets=20)


@pytest.fixture(scope="module")
def results():
    planted = TABLE.assign(score=TABLE["score"] + 2 * TABLE.index.isin(OF_GENES["SET1"]))
    both = [gf.gene_set_enrichment(table, OF_GENES) for table in (planted, TABLE)]
    drivers = gf.driver_genes(planted, OF_GENES["SET1"], name="a list", version="7")
    return both[0], gf.compare_enrichment(*both, names=["planted", "none"]), drivers


def test_the_page_begins_with_what_is_found_and_what_would_be(results, tmp_path):
    enrichment, beside, drivers = results
    gf.write_enrichment_report(enrichment, tmp_path / "sets.html", beside=beside, drivers=drivers)
    page = (tmp_path / "sets.html").read_text()
    lead = page.partition("<section>")[0]
    assert "against genes of like detection_rate and mean_place; without matching" in lead
    for said in (
        "planted and none",
        "Genes in common",
        "Known genes among the strongest",
        "version: 7",
        "sets too small",
    ):
        assert said in page
    with pytest.raises(FileExistsError):
        gf.write_enrichment_report(enrichment, tmp_path / "sets.html")


@pytest.mark.parametrize("which", [0, 1, 2], ids=["sets", "two models", "drivers"])
def test_each_result_has_its_picture(results, which):
    assert gf.plot_enrichment(results[which]).axes


def test_another_table_is_no_result():
    with pytest.raises(InputError, match="no result of gene_set_enrichment or compare_enrichment"):
        gf.plot_enrichment(TABLE)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("enrich")
    for name, seed in (("ours", 0), ("theirs", 1)):
        score = np.random.default_rng(seed).normal(size=len(TABLE)) + 2 * TABLE.index.isin(OF_GENES["SET1"])
        TABLE.assign(score=score).to_csv(folder / f"{name}.tsv", sep="\t")
    lines = ["\t".join([name, "made up", *genes]) for name, genes in OF_GENES.items()]
    (folder / "sets.gmt").write_text("\n".join(lines) + "\n")
    (folder / "drivers.txt").write_text("# version: 7\n" + "\n".join(OF_GENES["SET1"]) + "\n")
    return folder


@pytest.mark.usefixtures("blank_pictures")
def test_enrich_writes_the_table_that_python_gives(files, capsys):
    command = ["enrich", files / "ours.tsv", "--sets", files / "sets.gmt", "-o", files / "out.tsv"]
    command += ["--beside", files / "theirs.tsv", "--drivers", files / "drivers.txt", "--top", "100"]
    assert cli.main(list(map(str, command))) == 0
    expected = gf.gene_set_enrichment(files / "ours.tsv", files / "sets.gmt", top=100)
    written = read_table(files / "out.tsv").set_index("set")
    assert list(written) == list(expected)
    np.testing.assert_allclose(written["p_value"].astype(float), expected["p_value"])
    other = gf.gene_set_enrichment(files / "theirs.tsv", files / "sets.gmt", top=100)
    sides = gf.compare_enrichment(expected, other, names=["ours", "theirs"])
    assert read_table(files / "out.beside.tsv")["found"].tolist() == sides["found"].tolist()
    drivers = gf.driver_genes(files / "ours.tsv", files / "drivers.txt")
    assert read_table(files / "out.drivers.tsv")["k"].astype(int).tolist() == list(
        drivers.table.index.get_level_values("k")
    )
    said = capsys.readouterr().out
    for sentence in (expected.attrs["sentence"], sides.attrs["sentence"], drivers.facts["sentence"]):
        assert sentence in said


@pytest.mark.usefixtures("blank_pictures")
def test_enrich_ranks_and_matches_as_it_is_told(files):
    command = ["enrich", files / "ours.tsv", "--sets", files / "sets.gmt", "-o", files / "ranked.tsv"]
    command += ["--method", "prerank", "--permutations", "60", "--strata", "n_cells", "--seed", "3"]
    assert cli.main(list(map(str, command))) == 0
    expected = gf.gene_set_enrichment(
        files / "ours.tsv", files / "sets.gmt", method="prerank", n_permutations=60, strata=["n_cells"], seed=3
    )
    np.testing.assert_allclose(read_table(files / "ranked.tsv")["p_value"].astype(float), expected["p_value"])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--names", "a", "b"], "--names goes with --beside"),
        (["--random-weights", "ours.tsv"], "--random-weights goes with --drivers"),
        (["--top", "5", "--max-fdr", "0.1"], "are ways to choose genes"),
        (["--beside", "nowhere.tsv"], "nowhere.tsv"),
        (["--drivers", "nowhere.txt"], "nowhere.txt"),
        (["--strata", "colour"], "no column 'colour'"),
    ],
)
def test_enrich_refuses_in_one_line(files, capsys, monkeypatch, options, says):
    monkeypatch.chdir(files)
    command = ["enrich", files / "ours.tsv", "--sets", files / "sets.gmt", "-o", files / "refused.tsv"]
    assert cli.main([*map(str, command), *options]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert says in error
    assert not list(files.glob("refused*"))


@pytest.mark.parametrize("sets", ["ours.tsv", "nowhere.gmt"])
def test_enrich_refuses_what_holds_no_sets(files, capsys, sets):
    command = ["enrich", files / "ours.tsv", "--sets", files / sets, "-o", files / "refused.tsv"]
    assert cli.main(list(map(str, command))) == 2
    assert sets in capsys.readouterr().err
