"""The command ``explain`` does what the Python call does, with a picture and a page that says first who guesses."""

import inspect
import shlex

import numpy as np
import pandas as pd
import pytest
from drawing import blank
from explained_models import classifier_of
from test_explained_samples import checkpoint_of, network_of, samples

import geneformer_repro as gf
from geneformer_repro import cli
from geneformer_repro.cli.inputs import _chosen


@pytest.fixture
def beside(cells, vocabulary, tmp_path, monkeypatch):
    """A folder with a classifier that guesses and twelve cells of ten genes, as the working folder."""
    cells.select(range(12)).save(tmp_path / "long.tok")
    gf.TokenizedDataset.open(tmp_path / "long.tok", max_length=12).save(tmp_path / "cells.tok")
    classifier_of(vocabulary).save(tmp_path / "type")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(capsys):
    """Run a command; return its status, what it printed, and its last line on stderr."""

    def run_command(command):
        capsys.readouterr()
        status = cli.main(shlex.split(command))
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return status, said.out, (said.err.splitlines() or [""])[-1]

    return run_command


@pytest.fixture
def asked(beside, run, monkeypatch):
    """Return what a command asks of `explain`, without doing it."""

    def ask(options):
        found = {}

        def explain(checkpoint, rows, **options):
            found.update(options)
            raise gf.InputError("asked")

        monkeypatch.setattr("geneformer_repro.in_silico.explanations.explain.explain", explain)
        assert run(f"explain type cells.tok {options} -o why.parquet")[2] == "error: asked"
        return found

    return ask


def test_it_makes_what_the_python_call_makes_and_says_first_that_the_model_guesses(beside, run):
    options = "--state 'CD19+ B' Dendritic --methods hide gradient_input --donor donor --obs n_counts"
    status, said, _ = run(f"explain type cells.tok {options} -o why.parquet")
    assert status == 0
    assert said.startswith("The model is no better than guessing on the rows explained: balanced accuracy")
    cells, model = gf.TokenizedDataset.open("cells.tok"), gf.Checkpoint.from_pretrained("type")
    expected = gf.explain(
        model,
        cells,
        state=["CD19+ B", "Dendritic"],
        methods=["hide", "gradient_input"],
        donor="donor",
        obs=["n_counts"],
    )
    found = gf.Explanation.open("why.parquet")
    pd.testing.assert_frame_equal(found.table, expected.table)
    assert found.metadata == expected.metadata
    assert "480 values of" in said
    page = (beside / "why.html").read_text()
    assert "no better than guessing" in page
    assert (beside / "why.png").stat().st_size > 10_000


def test_info_says_what_the_file_is(beside, run):
    with blank():
        assert run("explain type cells.tok --max-cells 2 --seed 3 -o why.parquet")[0] == 0
    status, said, _ = run("info why.parquet")
    assert status == 0
    assert said.startswith("60 values of ")
    assert "genes in 2 cells by hide: log-odds of each cell_type" in said
    assert '"how_good"' in said
    assert "gene_names" not in said


def test_without_options_it_asks_for_the_defaults_of_the_function(asked):
    parameters = list(inspect.signature(gf.explain).parameters.values())[2:]
    defaults = {parameter.name: parameter.default for parameter in parameters if parameter.name != "device"}
    found = asked("")
    assert (found.pop("obs"), found.pop("reading"), str(found.pop("out"))) == ([], {}, "why.parquet")
    assert found == {name: value for name, value in defaults.items() if name not in ("obs", "reading", "out")}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--methods ig lime", {"methods": ["integrated_gradients", "surrogate"]}),
        ("--methods ig integrated_gradients", {"methods": ["integrated_gradients"]}),
        ("--state Dendritic --contrast 'CD19+ B'", {"state": ["Dendritic"], "contrast": "CD19+ B"}),
        (
            "--state-column cell_type --start Dendritic --goal 'CD19+ B' --alternatives 'CD56+ NK' --pooling mean",
            {"goal": gf.GoalState("cell_type", "Dendritic", "CD19+ B", ["CD56+ NK"]), "pooling": "mean"},
        ),
        ("--sets cells.tok --pooled-masks", {"sets": "cells.tok", "pooled_masks": True}),
        ("--baseline mean --steps 6 --rule gauss_legendre", {"baseline": "mean", "steps": 6, "rule": "gauss_legendre"}),
        ("--operator median_rank --masks 50", {"operator": "median_rank", "masks": 50}),
        ("--gene CD74 --allow-seen", {"gene": "CD74", "allow_seen": True}),
        ("--drugs cells.tok --log2 --cohort c", {"drugs": "cells.tok", "reading": {"log2": True, "cohort": "c"}}),
    ],
)
def test_options_are_those_of_the_function(asked, options, expected):
    found = asked(options)
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("explain type cells.tok -o why.tsv", "explanations are written as .parquet"),
        ("explain type cells.tok --goal B -o why.parquet", "A goal needs --state-column, --start and --goal together"),
        ("explain type cells.tok --state Bees -o why.parquet", "knows no cell_type 'Bees'"),
        ("explain type cells.tok --drugs cells.tok -o why.parquet", "drugs= is for a network of drug response"),
        ("explain type cells.tok --cohort c -o why.parquet", "reading= says how a matrix is read"),
        ("explain type cells.tok --sets no.gmt -o why.parquet", "no.gmt"),
        ("explain type cells.tok --methods median -o why.parquet", "median_rank"),
        ("explain type cells.tok --methods surrogate --masks 3 -o why.parquet", "n_masks must be at least 20, found 3"),
    ],
)
def test_what_a_user_got_wrong_ends_in_one_line(beside, run, command, message):
    status, said, error = run(command)
    assert (status, said) == (2, "")
    assert error.startswith("error: ")
    assert message in error
    assert {path.name for path in beside.iterdir()} == {"long.tok", "cells.tok", "type"}


def test_an_output_that_exists_is_not_overwritten(beside, run):
    (beside / "why.html").write_text("earlier")
    assert "already exists" in run("explain type cells.tok -o why.parquet")[2]
    assert not (beside / "why.parquet").exists()


def test_values_are_finite(beside, run):
    with blank():
        run("explain type cells.tok --max-cells 3 --methods hide ig attention_gradient -o why.parquet")
    assert np.isfinite(gf.Explanation.open("why.parquet").table["value"]).all()


# Which cells


def test_cells_are_chosen_by_columns_of_obs(beside, run):
    cells = gf.TokenizedDataset.open("cells.tok")
    kinds, donors = cells.labels("cell_type"), cells.labels("donor")
    two, donor = sorted(set(kinds))[:2], donors[kinds.isin(sorted(set(kinds))[:2])].iloc[0]
    with blank():
        where = " ".join(f"cell_type='{kind}'" for kind in two)
        assert run(f"explain type cells.tok --where {where} --where donor={donor} -o why.parquet")[0] == 0
    expected = cells.cell_names[(kinds.isin(two) & (donors == donor)).to_numpy()]
    assert list(dict.fromkeys(gf.Explanation.open("why.parquet").table["cell"])) == list(expected)


def test_cells_are_left_out_by_columns_of_obs(beside):
    cells = gf.TokenizedDataset.open("cells.tok")
    kinds, donors = cells.labels("cell_type"), cells.labels("donor")
    (first, second), donor = sorted(set(kinds))[:2], donors.iloc[0]
    rows = (~kinds.isin([first, second]) & (donors == donor)).to_numpy()
    asked = [f"cell_type!={first}", f"donor={donor}", f"cell_type!={second}"]
    assert _chosen(cells, asked).cell_names.tolist() == cells.cell_names[rows].tolist()


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("donor!=nobody", "--where donor!=nobody: no cell has that donor."),
        ("cell_type='CD19+B'", "--where cell_type=CD19+B: no cell has that cell_type. Did you mean 'CD19+ B'?"),
        ("celltype=B", "'celltype'"),
        ("cell_type", "--where takes COLUMN=VALUE, such as cell_type='CD19+ B', or COLUMN!=VALUE; found 'cell_type'"),
        ("cell_type='{kind}' donor={other}", "each is a value of some cells, and no cell has all of them"),
    ],
    ids=["value to leave out", "value", "column", "no value", "no cell"],
)
def test_a_choice_that_no_cell_has_is_refused(beside, run, where, message):
    cells = gf.TokenizedDataset.open("cells.tok")
    found = cells.obs.groupby("cell_type")["donor"].agg(set)
    lacking = [(kind, set(cells.labels("donor")) - of) for kind, of in found.items()]
    kind, others = next((kind, of) for kind, of in lacking if of)
    asked = where.format(kind=kind, other=min(others))
    status, _, error = run(f"explain type cells.tok --where {asked} -o why.parquet")
    assert status == 2
    assert message in error


# Whether to believe it, of samples


def test_samples_are_tested_as_they_were_explained(tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data, network = samples(24), network_of()
    data.obs["PFI.time"], data.obs["PFI"] = np.arange(1.0, 25), 1.0
    data.write_h5ad("samples.h5ad")
    checkpoint_of(network).save("network")
    given = "--cohort cohort"
    with blank():
        explained = run(f"explain network samples.h5ad --target PFI --methods ig median {given} -o why.parquet")
        assert explained[0] == 0, explained
        status, said, error = run(
            f"statistics why.parquet --checkpoint network --cells samples.h5ad {given} --max-cells 4 -o tested.tsv"
        )
    assert status == 0, error
    assert "Removing what integrated_gradients puts first, by median" in said
    curves = pd.read_csv("tested.removal.tsv", sep="\t")
    assert set(curves["operator"]) == {"median", "mean"}
    forgot = pd.read_csv("tested.sanity.tsv", sep="\t")
    assert forgot["model"].unique().tolist()[-2:] == ["random weights", "permuted labels"]
    assert run("explain network samples.h5ad --target PFI --where cohort=a -o b.parquet")[2].startswith(
        "error: --where chooses among tokenised cells, and samples.h5ad has samples"
    )
