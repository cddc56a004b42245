"""Every command once, in one chain, beside the Python calls it stands for; and what it says when the input is wrong."""

import inspect
import io
import json
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
from contextlib import nullcontext, redirect_stdout
from importlib.metadata import entry_points
from typing import NamedTuple

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from drawing import blank
from forking import forked, several, status_of
from scipy.sparse import csr_matrix

import geneformer_repro as gf
from geneformer_repro import cli, mapping
from geneformer_repro.cli import following
from geneformer_repro.cli.models import named_settings
from geneformer_repro.cli.terminal import in_columns
from geneformer_repro.config import load_config, with_settings
from geneformer_repro.files import sha256
from geneformer_repro.finetuning.genes import finetune_genes
from geneformer_repro.finetuning.predict import predict
from geneformer_repro.finetuning.settings.genes import GeneFinetuneConfig

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("few_trees", "few_resamples")]

COMMANDS = (
    "vocabulary",
    "tokenize",
    "pretrain",
    "finetune",
    "predict",
    "finetune-patients",
    "predict-patients",
    "samples",
    "transfer-study",
    "cross-cohort",
    "response",
    "predict-response",
    "response-study",
    "embed",
    "map",
    "mixing",
    "perturb",
    "statistics",
    "network",
    "heads",
    "explain",
    "enrich",
    "info",
    "plan",
    "doctor",
)
START, GOAL, ALTERNATIVE = "CD14+ Monocyte", "CD19+ B", "Dendritic"
TOWARDS = gf.GoalState("cell_type", START, GOAL, [ALTERNATIVE])
PRETRAIN = {"size": "tiny", "training.epochs": 1, "training.batch_size": 8, "training.warmup_steps": 0.1}
FINETUNE = {"training.epochs": 1, "training.batch_size": 8, "split.allow_seen": True}
GENES = {"split.folds": 2, "min_cells": 5, "training.batch_size": 20}
STATES = ["--state", "cell_type", "--start", START, "--goal", GOAL, "--alternatives", ALTERNATIVE]


def settings(chosen):
    return [
        "--set",
        *(f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in chosen.items()),
    ]


def configured(config, chosen):
    return with_settings(config, **{key.rpartition(".")[2]: value for key, value in chosen.items()})


CHAIN = {
    "vocab": ["vocabulary", "cells.h5ad", "--max-length", "34"],
    "cells.tok": ["tokenize", "cells.h5ad", "--vocabulary", "vocab", "--obs", "cell_type", "donor"],
    "base": ["pretrain", "cells.tok", *settings(PRETRAIN)],
    "clf": ["finetune", "base", "cells.tok", "--target", "cell_type", *settings(FINETUNE)],
    "kinds": ["finetune", "base", "cells.tok", "--genes", "genes.tsv", "--no-baselines", *settings(GENES)],
    "types.tsv": ["predict", "clf", "cells.h5ad"],
    "typed.h5ad": ["predict", "clf", "cells.h5ad"],
    "kinds.tsv": ["predict", "kinds", "cells.tok"],
    "cells-out.h5ad": ["embed", "base", "cells.tok"],
    "genes-out.h5ad": ["embed", "base", "cells.tok", "--level", "gene", "--layer", "0"],
    "shifts.parquet": ["perturb", "base", "cells.tok", *STATES, "--donor", "donor", "--max-cells", "4", "--seed", "1"],
    "plain.parquet": ["perturb", "clf", "cells.tok", "--pooling", "mean", "--layer", "0", "--max-cells", "3"],
    "table.tsv": ["statistics", "shifts.parquet"],
}
"""Output → the command that makes it, without ``-o``; each reads the outputs before it."""
EXTRA = {"cells.h5ad", "genes.tsv", "table.png", "table.html"}


@pytest.fixture(autouse=True)
def _blank_pictures(request):
    """Draw no pictures, but in the chain of statistics and where a test asks for what is `drawn`."""
    with nullcontext() if "drawn" in request.fixturenames else blank():
        yield


@pytest.fixture
def drawn():
    """A test that has this looks at its pictures."""


class Chain(NamedTuple):
    folder: object
    said: dict


@pytest.fixture(scope="module")
def cells_file(_pbmc, tmp_path_factory):
    """A hundred blood cells of three types and two donors."""
    few = _pbmc[_pbmc.obs["cell_type"].isin([START, GOAL, ALTERNATIVE])][:100].copy()
    few.obs["donor"] = [f"donor{i % 2}" for i in range(few.n_obs)]
    path = tmp_path_factory.mktemp("input") / "cells.h5ad"
    few.write_h5ad(path)
    return path


def write_gene_classes(cells_file, path):
    """Two classes of five genes that many cells have among their tokens."""
    cells = gf.tokenize(cells_file, gf.Vocabulary.fit(cells_file, max_length=34))
    common = pd.Series([gene for i in range(len(cells)) for gene in cells.genes(i)]).value_counts().index[:10]
    pd.DataFrame({"gene_id": common, "label": ["dull", "odd"] * 5}).to_csv(path, sep="\t", index=False)


@pytest.fixture(scope="module")
def chain(cells_file, tmp_path_factory):
    """The outputs of every command, and what each printed."""
    folder = tmp_path_factory.mktemp("chain")
    shutil.copy(cells_file, folder / "cells.h5ad")
    write_gene_classes(cells_file, folder / "genes.tsv")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        said = {}
        for out, command in CHAIN.items():
            with blank() if command[0] == "finetune" else nullcontext():
                said[out] = printed([*command, "-o", out])
        return Chain(folder, said)


def printed(command):
    with redirect_stdout(io.StringIO()) as text:
        assert cli.main(command) == 0
    return text.getvalue()


@pytest.fixture
def there(chain, monkeypatch):
    """The chain's folder as the working folder, only to be read."""
    before = sorted(path.name for path in chain.folder.iterdir())
    monkeypatch.chdir(chain.folder)
    yield chain.folder
    assert sorted(path.name for path in chain.folder.iterdir()) == before


@pytest.fixture
def copy(chain, tmp_path, monkeypatch):
    """A copy of it, to be changed."""
    shutil.copytree(chain.folder, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def run(capsys):
    """Run a command; return its status, what it printed, and its last line on stderr."""

    def run_command(*command):
        capsys.readouterr()
        status = cli.main(list(map(str, command)))
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return status, said.out, (said.err.splitlines() or [""])[-1]

    return run_command


# Equal to the Python calls


@pytest.fixture(scope="module")
def opened(chain):
    """What the Python calls read."""
    return {
        "vocabulary": gf.Vocabulary.load(chain.folder / "vocab"),
        "cells": gf.TokenizedDataset.open(chain.folder / "cells.tok"),
        "base": gf.Checkpoint.from_pretrained(chain.folder / "base"),
        "clf": gf.Checkpoint.from_pretrained(chain.folder / "clf"),
        "kinds": gf.Checkpoint.from_pretrained(chain.folder / "kinds"),
    }


def test_vocabulary_is_fit(chain, opened):
    expected = gf.Vocabulary.fit(chain.folder / "cells.h5ad", max_length=34)
    assert opened["vocabulary"] == expected
    assert chain.said["vocab"].strip() == f"vocab: {expected!r}"


def test_samples_are_tokenised_with_a_model_s_genes_and_medians_of_their_own(chain, opened, tmp_path, run):
    adata = ad.read_h5ad(chain.folder / "cells.h5ad")
    adata.X = np.log2(adata.X.toarray().astype(np.float64) * 40.5 + 1)
    adata.write_h5ad(tmp_path / "bulk.h5ad")
    of_bulk, source = ("--values", "expression", "--log2"), tmp_path / "bulk.h5ad"
    said = run("vocabulary", source, *of_bulk, "--base", chain.folder / "base", "-o", tmp_path / "vocab")[1]
    expected = gf.Vocabulary.fit(source, values="expression", log2=True, base=opened["base"].vocabulary)
    assert gf.Vocabulary.load(tmp_path / "vocab") == expected
    assert said.strip() == f"{tmp_path / 'vocab'}: {expected!r}"
    order = ("--order", "two_ended", "-o", tmp_path / "bulk.tok")
    assert run("tokenize", source, *of_bulk, "--vocabulary", tmp_path / "vocab", *order)[0] == 0
    cells = gf.tokenize(source, expected, values="expression", log2=True, order="two_ended")
    assert gf.TokenizedDataset.open(tmp_path / "bulk.tok").fingerprint == cells.fingerprint


def test_vocabulary_converts_the_published_dictionaries(shared, tmp_path, run):
    source = shared / "golden" / "published_v1"
    status, said, _ = run("vocabulary", source, "--series", "V1", "-o", tmp_path / "v1")
    assert status == 0
    assert gf.Vocabulary.load(tmp_path / "v1") == gf.Vocabulary.from_pretrained(source, series="V1")
    assert "25,424 genes" in said


def test_tokenize_is_tokenize(chain, opened):
    expected = gf.tokenize(chain.folder / "cells.h5ad", opened["vocabulary"], obs=["cell_type", "donor"])
    found = opened["cells"]
    pd.testing.assert_frame_equal(found.table.to_pandas(), expected.table.to_pandas())
    assert found.fingerprint == expected.fingerprint
    assert chain.said["cells.tok"].strip() == f"cells.tok: {found.summary()}"


def test_pretrain_is_pretrain(chain, opened, tmp_path):
    expected = gf.pretrain(opened["cells"], configured(gf.PretrainConfig(), PRETRAIN), out=tmp_path / "base")
    assert opened["base"].fingerprint == expected.fingerprint
    assert opened["base"].provenance["result"] == expected.provenance["result"]
    assert chain.said["base"].splitlines()[-1] == f"base: {expected!r}"


def test_finetune_is_finetune(chain, opened, tmp_path):
    config = configured(gf.FinetuneConfig(target="cell_type"), FINETUNE)
    expected = gf.finetune(opened["base"], opened["cells"], config, out=tmp_path / "clf")
    methods = pd.read_csv(chain.folder / "clf" / "methods.tsv", sep="\t", index_col=0)
    pd.testing.assert_frame_equal(methods, expected.methods)
    assert methods.loc["logistic regression, counts"].notna().all()
    assert opened["clf"].fingerprint == expected.checkpoint.fingerprint
    verdict = expected.evaluations["cell_type"].verdict
    assert chain.said["clf"].splitlines() == said_of(expected.methods, "cell_type, on the test cells", "clf", verdict)


def said_of(methods, title, out, *verdict):
    """The title, the table without intervals, whether it was worth it, and where the rest is."""
    shown = methods[[name for name in methods if not name.endswith(("_low", "_high"))]].rename_axis(None)
    return [
        title,
        *in_columns(shown, number="{:.3f}", index=True).splitlines(),
        *verdict,
        f"{out} holds the network and its tables; {out}/report.html has the pictures and intervals",
    ]


def test_finetune_on_genes_is_finetune_genes(chain, opened, tmp_path):
    expected = finetune_genes(
        opened["base"],
        opened["cells"],
        chain.folder / "genes.tsv",
        configured(GeneFinetuneConfig(), GENES | {"baselines": False}),
        out=tmp_path / "kinds",
    )
    assert opened["kinds"].fingerprint == expected.checkpoint.fingerprint
    assert chain.said["kinds"].splitlines() == said_of(expected.methods, "gene class, on genes held out", "kinds")


def test_predict_is_predict(chain, opened):
    adata = ad.read_h5ad(chain.folder / "cells.h5ad")
    expected = predict(opened["clf"], adata)
    found = pd.read_csv(chain.folder / "types.tsv", sep="\t", index_col=0)
    assert found.index.name == "cell"
    pd.testing.assert_frame_equal(found, expected, check_names=False)
    written = ad.read_h5ad(chain.folder / "typed.h5ad").obs
    pd.testing.assert_frame_equal(written.astype(adata.obs.dtypes), adata.obs)
    assert chain.said["types.tsv"].replace("types.tsv", "typed.h5ad") == chain.said["typed.h5ad"]
    for name, n_cells in expected["cell_type_predicted"].value_counts().items():
        assert f"{name}  " in chain.said["types.tsv"]
        assert f" {n_cells}\n" in chain.said["types.tsv"]


def test_predict_on_genes_is_predict(chain, opened):
    found = pd.read_csv(chain.folder / "kinds.tsv", sep="\t", index_col=0)
    assert found.index.name == "gene"
    pd.testing.assert_frame_equal(found, predict(opened["kinds"], opened["cells"]), check_names=False)


def test_predictions_of_genes_go_into_var(copy, run):
    assert run("predict", "kinds", "cells.h5ad", "-o", "var.h5ad")[0] == 0
    found, table = ad.read_h5ad("var.h5ad"), pd.read_csv("kinds.tsv", sep="\t", index_col=0)
    np.testing.assert_allclose(found.var.loc[table.index, "gene class_p_odd"], table["gene class_p_odd"], atol=1e-6)
    assert "gene class_p_odd" not in found.obs


def test_predict_leaves_its_input_as_it_is(chain, cells_file):
    assert sha256(chain.folder / "cells.h5ad") == sha256(cells_file)


def test_predict_on_numbers_says_how_they_lie(copy, run):
    options = ["--target", "n_counts", "--regression", "n_counts", "--no-baselines", *settings(FINETUNE)]
    run("tokenize", "cells.h5ad", "--vocabulary", "vocab", "--obs", "n_counts", "-o", "counted.tok")
    assert run("finetune", "base", "counted.tok", *options, "-o", "size")[0] == 0
    status, said, _ = run("predict", "size", "cells.h5ad", "-o", "size.tsv")
    table = pd.read_csv("size.tsv", sep="\t", index_col=0)
    assert status == 0
    assert table.columns.tolist() == ["n_counts_predicted"]
    spread = table["n_counts_predicted"].describe()
    assert said.splitlines()[0] == "size.tsv: predictions of 100 rows"
    assert said.splitlines()[1].startswith(f"n_counts_predicted: mean {spread['mean']:.4g}, std {spread['std']:.4g}, ")


FINETUNE_OPTIONS = {
    "target": ("--target type", {"target": "type"}),
    "targets": ("--target type 'age at\\death'", {"target": ("type", "age at\\death")}),
    "odd target": ("--target '\"ü\" = 3'", {"target": '"ü" = 3'}),
    "target that looks like a number": ("--target 3", {"target": "3"}),
    "regression": ("--target type age --regression age", {"target": ("type", "age"), "regression": ("age",)}),
    "group": ("--target t --group donor", {"group": "donor"}),
    "test groups": (
        "--target t --group donor --test-groups 101 'donor 7'",
        {"group": "donor", "test_groups": ("101", "donor 7")},
    ),
    "split": ("--target t --split a/split.tsv", {"split_file": "a/split.tsv"}),
    "folds": ("--target t --folds 5", {"folds": 5}),
    "folds by group": ("--target t --group donor --folds groups", {"group": "donor", "folds": "groups"}),
    "transfer": ("--target t --transfer probe", {"strategy": "probe"}),
    "curve": ("--target t --curve 10 50", {"curve": (10, 50)}),
    "trials": ("--target t --trials 4", {"trials": 4}),
    "no baselines": ("--target t --no-baselines", {"baselines": False}),
    "setting": ("--target t --set training.epochs=3 pooling=cls", {"epochs": 3.0, "pooling": "cls"}),
}
"""What → options of finetune, and the fields of its configuration."""


@pytest.mark.parametrize(("options", "fields"), FINETUNE_OPTIONS.values(), ids=FINETUNE_OPTIONS)
def test_every_option_of_finetune_reaches_its_configuration(options, fields):
    given = cli._parser().parse_args(["finetune", "base", "cells.tok", "-o", "clf", *shlex.split(options)])
    config = load_config(gf.FinetuneConfig, overrides=[*given.set, *named_settings(given)])
    assert config == with_settings(gf.FinetuneConfig(target="t"), **fields)


def test_with_a_source_its_labels_are_learned_first(there, run, monkeypatch):
    def learn(checkpoint, source, target, config, **where):
        raise gf.InputError(f"asked for {config.target} after {config.source.target} of {len(source)} cells")

    monkeypatch.setattr("geneformer_repro.finetuning.study.transfer_study", learn)
    command = "finetune base cells.tok --target cell_type --source cells.tok --source-target donor --folds 3 -o new"
    command += " --set split.allow_seen=true"
    assert "asked for cell_type after donor of 100 cells" in run(*shlex.split(command))[2]


def test_of_a_table_with_several_tasks_one_is_learned(there, run, tmp_path, monkeypatch):
    def learn(checkpoint, cells, classes, config, **where):
        raise gf.InputError(
            f"asked for {classes} in {config.split.folds} folds without baselines: {not config.compare.baselines}"
        )

    monkeypatch.setattr("geneformer_repro.finetuning.genes.finetune_genes", learn)
    (tmp_path / "tasks.csv").write_text("task,gene,label\none,A,x\nother,B,y\n")
    command = shlex.split(f"finetune base cells.tok --genes {tmp_path}/tasks.csv --folds 4 --no-baselines -o new")
    refused(run(*command), "holds several tasks; choose one with task= (--task): one, other")
    refused(run(*command, "--task", "one"), "asked for {'x': ['A']} in 4 folds without baselines: True")


@pytest.mark.parametrize(
    ("out", "options"),
    [("cells-out.h5ad", {}), ("genes-out.h5ad", {"level": "gene", "layer": 0})],
    ids=["cells", "genes"],
)
def test_embed_is_embed(chain, opened, out, options):
    expected = gf.embed(opened["base"], opened["cells"], **options)
    found = ad.read_h5ad(chain.folder / out)
    np.testing.assert_allclose(found.X, expected.X, atol=1e-6)
    assert found.obs_names.tolist() == expected.obs_names.tolist()
    pd.testing.assert_frame_equal(found.obs.astype(str), expected.obs.astype(str))
    said = f"{out}: {expected.n_obs} {options.get('level', 'cell')}s × 64 dimensions"
    assert chain.said[out].strip() == said


@pytest.mark.parametrize(
    ("out", "model", "options"),
    [
        ("shifts.parquet", "base", {"goal": TOWARDS, "donor": "donor", "max_cells": 4, "seed": 1}),
        ("plain.parquet", "clf", {"pooling": "mean", "layer": 0, "max_cells": 3}),
    ],
    ids=["goal", "no goal"],
)
def test_perturb_is_perturb(chain, opened, out, model, options):
    expected = gf.perturb(opened[model], opened["cells"], gf.Deletion(), **options)
    found = gf.ShiftTable.open(chain.folder / out)
    assert_same_shifts(found, expected)
    assert chain.said[out] == f"{out}: {size_of(found)}\n"


def size_of(shifts):
    n_changes, n_cells, n_donors = (shifts.table[name].nunique() for name in ("perturbed", "cell", "donor"))
    changes = "1 perturbation" if n_changes == 1 else f"{n_changes:,} perturbations"
    cells = "1 cell" if n_cells == 1 else f"{n_cells} cells"
    of_donors = f" of {n_donors} donors" if n_donors else ""
    return f"{len(shifts):,} values ({shifts.measure}) of {changes} in {cells}{of_donors}"


def assert_same_shifts(found, expected):
    pd.testing.assert_frame_equal(found.table, expected.table, atol=1e-7)
    where = {"checkpoint_path": expected.metadata["checkpoint_path"]}  # as it was given, which is no part of the plan
    assert found.metadata | where == expected.metadata


@pytest.fixture
def asked(there, run, tmp_path, monkeypatch):
    """Return what a perturb command asks of `perturb`, without doing it."""

    def ask(options):
        found = {}

        def perturb(checkpoint, cells, perturbation, **options):
            found.update(options, perturbation=perturbation)
            raise gf.InputError("asked")

        monkeypatch.setattr("geneformer_repro.in_silico.screen.perturb", perturb)
        refused(run("perturb", "base", "cells.tok", *shlex.split(options), "-o", tmp_path / "out"), "asked")
        return found

    return ask


def test_without_options_perturb_asks_for_the_defaults_of_the_function(asked, tmp_path):
    parameters = list(inspect.signature(gf.perturb).parameters.values())[3:]
    defaults = {parameter.name: parameter.default for parameter in parameters if parameter.name != "device"}
    expected = defaults | {"perturbation": gf.Deletion(), "obs": [], "out": str(tmp_path / "out")}
    assert asked("") == expected


PERTURB_OPTIONS = {
    "genes": ("--genes A B", {"perturbation": gf.Deletion(["A", "B"])}),
    "one at a time": ("--genes A B --combine singly", {"perturbation": gf.Deletion(["A", "B"], combine="singly")}),
    "pairs": ("--genes A B --combine pairs", {"perturbation": gf.Deletion(["A", "B"], combine="pairs")}),
    "anchor": ("--anchor A", {"perturbation": gf.Deletion(anchor="A")}),
    "anchor and genes": (
        "--kind overexpress --genes B C --anchor A",
        {"perturbation": gf.Overexpression(["B", "C"], anchor="A")},
    ),
    "overexpress": ("--kind overexpress --genes A", {"perturbation": gf.Overexpression(["A"])}),
    "inhibit": ("--kind inhibit", {"perturbation": gf.Inhibition()}),
    "activate": ("--kind activate --quartiles 3", {"perturbation": gf.Activation(quartiles=3)}),
    "shift": ("--kind shift --to 0.5", {"perturbation": gf.RankShift(to=0.5)}),
    "doses": ("--kind shift --to 0 0.5 1 --genes A", {"perturbation": gf.RankShift(["A"], to=[0, 0.5, 1])}),
    "goal": (shlex.join(STATES), {"goal": TOWARDS}),
    "target": ("--target cell_type", {"target": "cell_type"}),
    "each affected": ("--affected", {"affected": "each"}),
    "some affected": ("--affected A B", {"affected": ["A", "B"]}),
    "first order": ("--first-order --refine 5", {"method": "first_order", "refine": 5}),
    "sampled": (
        "--sampled --passes 90 --top 5 --min-cells 4",
        {"method": "sampled", "passes": 90, "minutes": None, "top": 5, "min_cells": 4},
    ),
    "minutes": ("--sampled --minutes 1.5", {"method": "sampled", "passes": None, "minutes": 1.5}),
    "shams": ("--shams 3", {"shams": 3}),
    "donor": ("--donor donor --obs cell_type", {"donor": "donor", "obs": ["cell_type"]}),
    "some cells": ("--max-cells 5 --seed 2", {"max_cells": 5, "seed": 2}),
    "layer": ("--layer 0 --pooling mean", {"layer": 0, "pooling": "mean"}),
    "speed": ("--dtype bfloat16 --max-tokens 512", {"dtype": "bfloat16", "max_tokens": 512}),
}
"""What → options of perturb, and what they ask of the function."""


@pytest.mark.parametrize(("options", "expected"), PERTURB_OPTIONS.values(), ids=PERTURB_OPTIONS)
def test_every_option_of_perturb_reaches_the_function(asked, options, expected):
    assert asked(options).items() >= expected.items()


@pytest.mark.parametrize("option", ["genes", "affected"])
def test_genes_can_be_listed_in_a_file(asked, tmp_path, option):
    (tmp_path / "genes.txt").write_bytes(b"\xef\xbb\xbfB\r\n  C\n\n")
    found = asked(f"--{option} A @{tmp_path}/genes.txt D")
    assert list(found["perturbation"].genes if option == "genes" else found["affected"]) == ["A", "B", "C", "D"]


SCREENS = {
    "named genes": ("base --genes {0} {1}", lambda genes: gf.Deletion(genes), {}),
    "doses": ("base --kind shift --to 0 1 --genes {0}", lambda genes: gf.RankShift(genes[:1], to=[0, 1]), {}),
    "affected genes": ("base --genes {0} --affected {1}", lambda genes: gf.Deletion(genes[:1]), {"affected": 1}),
    "classes": (
        "clf --genes {0} {1} --target cell_type --combine pairs",
        lambda genes: gf.Deletion(genes, combine="pairs"),
        {"target": "cell_type"},
    ),
}
"""What → command, and the same in Python."""


@pytest.fixture
def screened(copy, opened, run):
    """Make a screen, with options where {0} and {1} are genes; return it, and what was said."""
    genes = opened["cells"].genes(0)[:2]

    def screen(options):
        command = f"perturb {options} -o few.parquet".format(*genes).split()
        status, said, _ = run(*command[:2], "cells.tok", *command[2:])
        assert status == 0
        return gf.ShiftTable.open("few.parquet"), said

    return screen


@pytest.mark.parametrize(("command", "perturbation", "options"), SCREENS.values(), ids=SCREENS)
def test_perturb_is_perturb_of_few_genes(screened, opened, command, perturbation, options):
    genes = opened["cells"].genes(0)[:2]
    if "affected" in options:
        options = {"affected": genes[1:]}
    found, said = screened(command)
    model = opened[command.split()[0]]
    assert_same_shifts(found, gf.perturb(model, opened["cells"], perturbation(genes), **options))
    assert said == f"few.parquet: {size_of(found)}\n"


def test_a_first_order_screen_says_how_good_its_estimates_are(screened):
    shifts, said = screened("clf --target cell_type --first-order --refine 1 --max-cells 4")
    assert {True, False} == set(shifts.table["exact"])
    median = shifts.metadata["first_order"]["spearman"][GOAL]["median"]
    assert said.splitlines()[1].startswith("estimates against exact values in 3 cells, Spearman, median and range: ")
    assert f"{GOAL} {median:.2f} (" in said


def test_a_sampled_screen_says_where_its_passes_went_and_what_they_decided(screened):
    shifts, said = screened("clf --target cell_type --sampled --passes 4000 --top 3 --min-cells 3 --max-cells 12")
    spent, trusted, found = said.splitlines()[1:]
    assert spent.startswith(f"{shifts.metadata['sampled']['passes']:,} of ")
    assert "correlation" in trusted
    assert found.startswith("highest 3: ")


def test_of_several_processes_one_says_what_was_done(copy, tmp_path):
    command = ["perturb", "base", "cells.tok", "--max-cells", "2", "-o", "few.parquet", "--quiet"]
    first, second = several(lambda _: cli.main(command), tmp_path)
    assert "few.parquet: " in first
    assert "few.parquet" not in second


def test_statistics_is_shift_statistics(chain):
    expected = gf.shift_statistics(gf.ShiftTable.open(chain.folder / "shifts.parquet"))
    found = pd.read_csv(chain.folder / "table.tsv", sep="\t", index_col=0)
    found = found.fillna({"warning": ""})
    pd.testing.assert_frame_equal(found, expected.astype(found.dtypes))
    assert [line.split()[0] for line in chain.said["table.tsv"].splitlines()[1:11]] == [
        name.split()[0] for name in expected["gene_name"][:10]
    ]
    assert (chain.folder / "table.png").read_bytes().startswith(b"\x89PNG")
    assert "Does not show:" in (chain.folder / "table.html").read_text()
    last = f"table.tsv has all {len(expected)} rows, table.png the picture, table.html what was done and what it shows"
    assert chain.said["table.tsv"].splitlines()[-1] == last


STATISTICS = {
    "cells": (
        "shifts.parquet --cells cells.tok --counts cells.h5ad",
        lambda shifts, opened: gf.shift_statistics(shifts, cells=opened["cells"], counts="cells.h5ad"),
    ),
    "null": (
        "shifts.parquet --method vs_null --null null.parquet",
        lambda shifts, _: gf.shift_statistics(shifts, method="vs_null", null=gf.ShiftTable.open("null.parquet")),
    ),
    "goal": ("shifts.parquet --method goal_state", lambda shifts, _: gf.shift_statistics(shifts, method="goal_state")),
    "all": ("plain.parquet --method vs_all", lambda shifts, _: gf.shift_statistics(shifts, method="vs_all")),
    "mixture": ("plain.parquet --method mixture", lambda shifts, _: gf.shift_statistics(shifts, method="mixture")),
}
"""What → command, and the same in Python."""


@pytest.mark.parametrize(("command", "expected"), STATISTICS.values(), ids=STATISTICS)
def test_every_option_of_statistics_reaches_the_function(copy, opened, run, command, expected):
    shifts = gf.ShiftTable.open(command.split()[0])
    gf.ShiftTable(shifts.table.assign(value=shifts.table["value"] * 2), shifts.metadata).save("null.parquet")
    status, said, _ = run("statistics", *command.split(), "-o", "new.tsv")
    assert status == 0
    table = expected(shifts, opened)
    found = pd.read_csv("new.tsv", sep="\t", index_col=0)
    pd.testing.assert_frame_equal(found[["effect", "n_cells"]], table[["effect", "n_cells"]])
    assert found.columns.tolist() == table.columns.tolist()
    assert ("explains R²" in said) == ("--cells" in command)
    assert ("p-values treat cells as independent" in said) == ("p_value" in table and "low" not in table)


def test_without_donors_matched_statistics_warn_that_cells_stand_for_them(copy, run, caplog):
    assert run("statistics", "plain.parquet", "-o", "new.tsv")[0] == 0
    assert "p-values take cells for independent replicates" in caplog.text


@pytest.mark.parametrize(
    ("screen", "method", "first"),
    [
        pytest.param("base --genes {0} --affected", "gene_shifts", "perturbed\tgene_name\taffected", id="gene_shifts"),
        pytest.param("base --genes {0} {1}", "aggregate", "perturbed\tgene_name\tcell", id="aggregate"),
    ],
)
def test_a_long_table_comes_without_pictures(screened, copy, run, screen, method, first):
    screened(screen)
    (copy / "long.png").write_text("mine")
    status, said, _ = run("statistics", "few.parquet", "--method", method, "-o", "long.tsv")
    assert status == 0
    assert (copy / "long.tsv").read_text().startswith(first)
    assert said.split()[0] == "gene_name"
    assert said.splitlines()[-1].startswith("long.tsv has all ")
    assert not (copy / "long.html").exists()
    assert (copy / "long.png").read_text() == "mine"


def test_pairs_of_several_classes_have_a_picture(screened, copy, run):
    screened("clf --genes {0} {1} --target cell_type --combine pairs")
    status, said, _ = run("statistics", "few.parquet", "--method", "pairs", "-o", "pairs.tsv")
    assert status == 0
    assert "p-values treat cells as independent" in said
    assert (copy / "pairs.tsv").read_text().startswith("gene_a\tgene_b\t")
    assert (copy / "pairs.png").exists()
    assert (copy / "pairs.html").exists()


def test_nothing_but_the_outputs_is_left(chain):
    assert {path.name for path in chain.folder.iterdir()} == set(CHAIN) | EXTRA


@pytest.fixture
def quick_umap(monkeypatch):
    """The first two dimensions in place of UMAP, which takes ten seconds to compile and is scanpy's to test."""
    monkeypatch.setattr(mapping, "umap", lambda adata: adata.X[:, :2])


def test_embed_into_writes_a_copy_of_the_cells_with_their_vectors(copy, run):
    before = (copy / "cells.h5ad").read_bytes()
    status, *_ = run("embed", "base", "cells.tok", "--into", "cells.h5ad", "-o", "both.h5ad")
    assert status == 0
    both, alone = ad.read_h5ad("both.h5ad"), ad.read_h5ad("cells-out.h5ad")
    np.testing.assert_allclose(both[alone.obs_names].obsm["X_geneformer"], alone.X, atol=1e-6)
    assert both.shape == ad.read_h5ad("cells.h5ad").shape
    assert (copy / "cells.h5ad").read_bytes() == before
    for options, message in (
        (["--umap", "cell_type", "-o", "b.h5ad"], "--umap needs the vectors alone"),
        (["-o", "cells.h5ad", "--overwrite"], "cells.h5ad: is the input, which is not changed"),
        (["-o", "b.zarr"], "is written as .h5ad"),
    ):
        status, _, said = run("embed", "base", "cells.tok", "--into", "cells.h5ad", *options)
        assert (status, message in said) == (2, True), said


def test_embed_can_add_a_umap_and_its_picture(copy, run, quick_umap, drawn):
    status, *_ = run("embed", "base", "cells.tok", "--umap", "cell_type", "-o", "umap.h5ad")
    assert status == 0
    adata = ad.read_h5ad("umap.h5ad")
    np.testing.assert_array_equal(adata.obsm["X_umap"], adata.X[:, :2])
    assert (copy / "umap.png").read_bytes().startswith(b"\x89PNG")


def test_a_umap_that_fails_leaves_the_vectors_as_they_were(copy, run, monkeypatch):
    def fill_half(path, name, values):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("geneformer_repro.embedding_store.add_obsm", fill_half)
    monkeypatch.setattr(mapping, "umap", lambda adata: adata.X[:, :2])
    run("embed", "base", "cells.tok", "--umap", "cell_type", "-o", "umap.h5ad")
    assert ad.read_h5ad("umap.h5ad").n_obs == 100


def test_information_into_a_closed_pipe_is_no_error(there, tmp_path):
    def info():
        read, write = os.pipe()
        os.close(read)
        os.dup2(write, 1)
        sys.stdout = os.fdopen(1, "w")
        raise SystemExit(cli.main(["info", "base"]))

    assert status_of(forked(info, tmp_path / "log")) == 0
    assert (tmp_path / "log").read_text() == ""


def test_what_cannot_be_printed_is_told_in_a_line(there, tmp_path):
    def info():
        os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        raise SystemExit(cli.main(["info", "base"]))

    assert status_of(forked(info, tmp_path / "log")) == 2
    said = (tmp_path / "log").read_text()
    assert "error: what is printed could not be written: the disk is full" in said
    assert "Traceback" not in said


def test_genes_are_not_coloured_by_a_column_of_cells(there, run, quick_umap, tmp_path):
    out = tmp_path / "genes.h5ad"
    refused(run("embed", "base", "cells.tok", "--level", "gene", "--umap", "cell_type", "-o", out), "--umap")
    assert not list(tmp_path.iterdir())


def test_a_stock_checkpoint_needs_a_vocabulary_and_takes_one(copy, opened, run):
    opened["base"].model.save_pretrained("stock")
    status, _, error = run("embed", "stock", "cells.tok", "-o", "stock.h5ad")
    assert status == 2
    assert "stock: has no vocabulary of its own; give one" in error
    status, *_ = run("embed", "stock", "cells.tok", "--vocabulary", "vocab", "-o", "stock.h5ad")
    assert status == 0
    np.testing.assert_array_equal(ad.read_h5ad("stock.h5ad").X, ad.read_h5ad("cells-out.h5ad").X)


@pytest.fixture
def theirs(copy):
    """The cells as others would keep them, in the copy: a folder of datasets, and its name."""
    gf.TokenizedDataset.open("cells.tok").table.save_to_disk("theirs")
    return "theirs"


def test_cells_of_others_need_no_vocabulary_where_the_checkpoint_has_one(theirs, run):
    assert run("embed", "base", theirs, "-o", "embedded.h5ad")[0] == 0
    np.testing.assert_array_equal(ad.read_h5ad("embedded.h5ad").X, ad.read_h5ad("cells-out.h5ad").X)
    assert run("predict", "clf", theirs, "-o", "predicted.tsv")[0] == 0
    pd.testing.assert_frame_equal(pd.read_csv("predicted.tsv", sep="\t"), pd.read_csv("types.tsv", sep="\t"), atol=1e-5)
    few = ["--genes", gf.Vocabulary.load("vocab").gene_ids[0], "--max-cells", "2"]
    assert run("perturb", "base", theirs, *few, "-o", "perturbed.parquet")[0] == 0
    refused(run("pretrain", theirs, "-o", "new"), "its tokens need a vocabulary")


def test_longer_cells_are_cut_on_request(theirs, run):
    assert run("embed", "base", theirs, "--max-length", "20", "-o", "cut.h5ad")[0] == 0
    cells = gf.TokenizedDataset.open(theirs, gf.Vocabulary.load("vocab"), max_length=20)
    np.testing.assert_array_equal(ad.read_h5ad("cut.h5ad").X, gf.embed(gf.Checkpoint.from_pretrained("base"), cells).X)
    refused(run("embed", "base", theirs, "--max-length", "35", "-o", "new.h5ad"), "a whole number from 3 to 34")
    refused(run("predict", "clf", "cells.h5ad", "--max-length", "20", "-o", "new.tsv"), "--max-length cuts tokenised")


def test_info_says_what_cells_and_models_of_others_are(theirs, opened, run):
    said = run("info", theirs)[1]
    assert said.startswith("100 cells of ")
    assert "cell_type (string)" in said
    assert run("info", theirs, "--vocabulary", "vocab")[1].startswith("100 cells of ")
    gf.TokenizedDataset.open("cells.tok").table.to_parquet("theirs.parquet")
    assert run("info", "theirs.parquet")[1].startswith("100 cells of ")
    opened["base"].model.save_pretrained("stock")
    assert run("info", "stock")[1].startswith("MaskedGeneModel (bert), not written by this package")
    assert run("info", "stock", "--vocabulary", "vocab")[1].startswith("Checkpoint(masked gene model")


def test_pretraining_goes_on_from_a_checkpoint(copy, opened, run):
    status, *_ = run("pretrain", "cells.tok", "--base", "base", "-o", "more", *settings(PRETRAIN))
    assert status == 0
    assert gf.Checkpoint.from_pretrained("more").provenance["inputs"]["base"] == opened["base"].fingerprint


def test_settings_come_from_a_file_and_the_command_line_wins(copy, run):
    (copy / "settings.toml").write_text('size = "tiny"\n[training]\nepochs = 50\nwarmup_steps = 0.1\nbatch_size = 16\n')
    status, *_ = run(
        *shlex.split("pretrain cells.tok --config settings.toml --set training.epochs=1 --set seed=3 -o m")
    )
    assert status == 0
    used = json.loads((copy / "m" / "provenance.json").read_text())["config"]
    assert (used["size"], used["seed"]) == ("tiny", 3)
    assert (used["training"]["epochs"], used["training"]["batch_size"]) == (1, 16)


# info


@pytest.mark.parametrize(
    ("path", "title", "facts"),
    [
        ("vocab", "Vocabulary(", []),
        ("base", "Checkpoint(masked gene model, 3 layers of 64", ['"step": "pretrain"', '"size": "tiny"', '"result"']),
        (
            "cells-out.h5ad",
            "vectors of 100 cells × 64 dimensions, by embed",
            ['"level": "cell"', '"layer": -1', "donor"],
        ),
        ("clf", "Checkpoint(classifier of 'cell_type' (3 classes)", ['"step": "finetune"', '"accuracy"']),
        (
            "shifts.parquet",
            "384 values (cosine shift) of ",
            ["perturbations in 4 cells of 2 donors", '"measure": "cosine shift"', f'"start": "{START}"', '"seed": 1'],
        ),
    ],
    ids=str,
)
def test_info_says_what_an_artefact_is(there, run, path, title, facts):
    status, said, error = run("info", path)
    assert (status, error) == (0, "")
    assert said.startswith(title)
    assert "gene_names" not in said
    for fact in facts:
        assert fact in said
    if facts:
        json.loads(said.partition("\n")[2])


def test_info_says_what_a_dataset_is(there, run):
    status, said, error = run("info", "cells.tok")
    assert (status, error) == (0, "")
    cells = gf.TokenizedDataset.open("cells.tok")
    assert said.strip() == cells.summary()
    assert said.startswith("100 cells of ")
    for fact in (" to 34 tokens", "100.0% of the counts are in known genes", "obs columns: cell_type, donor", "█"):
        assert fact in said
    assert f"source cells.h5ad: 100 of 100 cells, {cells.spec['n_genes_known']} of 754 genes known" in said


def test_after_predict_no_explanation_is_named_that_would_be_refused(there):
    after = {}
    for options in ("", " --max-length 20"):
        given = cli._parser().parse_args(f"predict clf cells.tok{options} -o types-again.tsv".split())
        after[options] = following.after_predict(given)
    assert after[""] is None
    assert shlex.join(after[" --max-length 20"]) == (
        "explain clf cells.tok --max-length 20 --max-cells 100 -o types-again-why.parquet"
    )


NO_MODEL = [
    ["vocabulary", "cells.h5ad", "-o", "vocab-again"],
    ["tokenize", "cells.h5ad", "--vocabulary", "vocab", "-o", "cells-again.tok"],
    ["statistics", "shifts.parquet", "-o", "table-again.tsv"],
    *(["info", name] for name in ("cells.h5ad", "vocab", "cells.tok", "base", "clf", "kinds", "shifts.parquet")),
]


def test_commands_that_need_no_model_load_no_torch(copy):
    code = (
        "import json, sys\nfrom geneformer_repro import cli\nfor command in json.loads(sys.argv[1]):\n"
        "    assert cli.main(command) == 0\n    assert not {'torch', 'transformers'} & set(sys.modules), command"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, json.dumps(NO_MODEL)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_what_things_are_and_values_that_no_cell_has_need_no_pandas(there, tmp_path):
    write_network(tmp_path / "net")
    write_explanation(tmp_path / "why.parquet")
    code = (
        "import sys\nfrom geneformer_repro import cli\nassert cli.main(['info', 'vocab']) == 0\n"
        "for path in ('base', 'cells.tok', 'shifts.parquet', *sys.argv[1:]):\n"
        "    assert cli.main(['info', path]) == 0\n"
        "asked = 'perturb base cells.tok --state cell_type --start Dendritic --goal Monocyt -o new.parquet'\n"
        "assert cli.main(asked.split()) == cli.main('embed base cells.tok --where donor=d -o new.h5ad'.split()) == 2\n"
        "assert not {'pandas', 'anndata', 'numba', 'datasets', 'torch', 'sklearn'} & set(sys.modules)"
    )
    given = [str(tmp_path / name) for name in ("net", "why.parquet")]
    result = subprocess.run([sys.executable, "-c", code, *given], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "No cell has cell_type = 'Monocyt'." in result.stderr
    assert "--where donor=d: no cell has that donor." in result.stderr
    assert "2 sources × 1 targets by attention, 1 state, 5 cells of 2 donors\n{" in result.stdout
    assert "1 value of 1 gene in 5 cells by hide: log-odds\n{" in result.stdout


def write_network(folder):
    """What `info` looks at of a network, and nothing else of it."""
    groups = [{"state": "B", "donor": donor, "n_cells": n, "file": "sums.parquet"} for donor, n in (("a", 2), ("b", 3))]
    metadata = {"measure": "nats", "direction": "source=key", "scale": "log", "weight": "attention", "min_cells": 1}
    states = {"B": {"n_cells": 5, "mean": 0.0}}
    whole = {"format": "geneformer_repro/network/1", "method": "attention", "groups": groups, "states": states}
    folder.mkdir()
    (folder / "network.json").write_text(json.dumps(whole | metadata))
    for name in ("genes", "edges", "sums"):
        genes = pd.DataFrame({"gene_id": ["x", "y"], "is_source": [True, True], "is_target": [True, False]})
        genes.to_parquet(folder / f"{name}.parquet")


def write_explanation(path):
    values = {"cell": "c", "donor": "a", "gene": "x", "place": 0, "method": "hide", "state": "B", "value": 1.0}
    table = pd.DataFrame([values | {"before": 0.0, "gap": np.nan, "exact": True}])
    told = {"measure": "log-odds", "methods": {"hide": {}}, "gene_names": {"x": "X"}, "n_cells": 5}
    gf.Explanation(table, told).save(path)


# Outputs that exist


@pytest.mark.parametrize("out", CHAIN)
def test_an_output_that_exists_is_refused(there, run, out):
    before = (there / out).stat().st_mtime_ns
    status, said, error = run(*CHAIN[out], "-o", out)
    assert (status, said) == (2, "")
    assert error == (
        f"error: {out} already exists. Choose another output, or allow it to be replaced: overwrite=True (--overwrite)."
    )
    assert (there / out).stat().st_mtime_ns == before


@pytest.mark.parametrize("out", CHAIN)
def test_overwrite_replaces_it(copy, run, out):
    before = (copy / out).stat().st_ino
    status, *_ = run(*CHAIN[out], "-o", out, "--overwrite")
    assert status == 0
    assert (copy / out).stat().st_ino != before
    assert {path.name for path in copy.iterdir()} == set(CHAIN) | EXTRA


@pytest.mark.parametrize("out", ["vocab", "cells.tok", "base", "clf"])
def test_overwrite_never_replaces_a_folder_that_is_no_result(copy, run, out):
    (copy / "thesis").mkdir()
    (copy / "thesis" / "chapter1.txt").write_text("precious")
    status, _, error = run(*CHAIN[out], "-o", "thesis", "--overwrite")
    assert status == 2
    assert "thesis is a folder without" in error
    assert (copy / "thesis" / "chapter1.txt").read_text() == "precious"


@pytest.mark.parametrize("name", ["other.png", "other.html"])
def test_a_picture_in_the_way_is_refused_before_the_work(copy, run, name):
    (copy / name).write_text("mine")
    status, _, error = run("statistics", "shifts.parquet", "-o", "other.tsv")
    assert status == 2
    assert f"{name} already exists" in error
    assert not (copy / "other.tsv").exists()


def test_statistics_that_are_stopped_leave_neither_table_nor_picture(copy, run, monkeypatch):
    def stopped(*_, **__):
        raise RuntimeError("stopped")

    monkeypatch.setattr("geneformer_repro.in_silico.pictures.write_screen_report", stopped)
    before = sorted(copy.iterdir())
    with pytest.raises(RuntimeError, match="stopped"):
        run("statistics", "shifts.parquet", "-o", "new.tsv")
    assert sorted(copy.iterdir()) == before


@pytest.mark.parametrize(
    ("home", "work", "command"),
    [
        ("tokenizer.vocabulary", "Vocabulary.fit", "vocabulary cells.h5ad -o vocab"),
        ("embedding", "Reader.of", "embed base cells.tok -o cells-out.h5ad"),
        ("embedding", "embed", "embed base cells.tok --umap donor -o table.h5ad"),
        ("in_silico.screen", "Reader.of", "perturb base cells.tok -o plain.parquet"),
        ("in_silico.statistics", "shift_statistics", "statistics shifts.parquet -o table.tsv"),
    ],
    ids=["vocabulary", "embed", "embed's picture", "perturb", "statistics"],
)
def test_refusal_comes_before_the_work(there, run, monkeypatch, home, work, command):
    def work_done(*_, **__):
        raise AssertionError("worked for nothing")

    monkeypatch.setattr(f"geneformer_repro.{home}.{work}", work_done)
    status, _, error = run(*command.split())
    assert status == 2
    assert "already exists" in error


# Bad input


@pytest.fixture(scope="module")
def bad(cells_file, tmp_path_factory):
    """Files that do not hold what they should."""
    folder = tmp_path_factory.mktemp("bad")
    few = ad.read_h5ad(cells_file)
    (folder / "text.h5ad").write_text("no HDF5")
    normalised = few.copy()
    sc.pp.normalize_total(normalised)
    normalised.write_h5ad(folder / "normalised.h5ad")
    normalised.layers["counts"] = few.X
    normalised.write_h5ad(folder / "layered.h5ad")
    negative = few.copy()
    negative.X = csr_matrix(-few.X)
    negative.write_h5ad(folder / "negative.h5ad")
    for name, ids in {
        "symbols": few.var["gene_name"],
        "versions": few.var_names + ".7",
        "mouse": few.var_names.str.replace("ENSG", "ENSMUSG"),
    }.items():
        renamed = few.copy()
        renamed.var_names = pd.Index(ids.to_numpy())
        renamed.write_h5ad(folder / f"{name}.h5ad")
    few[:0].write_h5ad(folder / "empty.h5ad")
    silent = few[:5].copy()
    silent.X = csr_matrix(silent.shape, dtype=np.float32)
    silent.write_h5ad(folder / "silent.h5ad")
    others = gf.Vocabulary.fit(few[:, 5:].copy(), max_length=34)
    gf.tokenize(few, others, obs=["cell_type"], out=folder / "others.tok")
    (folder / "broken.toml").write_text("epochs = = 3")
    (folder / "blank.txt").write_text(" \n\n")
    (folder / "plain").mkdir()
    return folder


@pytest.mark.parametrize("command", ["vocabulary", "tokenize"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "missing.h5ad",
            "missing.h5ad: no such file or folder.",
        ),
        ("text.h5ad", "text.h5ad: not an .h5ad, .loom or 10x .h5 (HDF5) file"),
        ("normalised.h5ad", "X holds fractional values (first: cell "),
        ("normalised.h5ad", "No other layer of it holds counts either; go back to the file before normalisation."),
        ("layered.h5ad", "Rank encoding needs raw counts. 'counts' holds counts: name it with layer="),
        ("negative.h5ad", "X holds negative values"),
        ("empty.h5ad", "holds no cells"),
        ("silent.h5ad", "express"),
    ],
)
def test_a_file_without_counts_is_refused(there, bad, run, tmp_path, command, name, message):
    options = ["--vocabulary", "vocab"] if command == "tokenize" else []
    refused(run(command, bad / name, *options, "-o", tmp_path / "out"), message)
    assert not (tmp_path / "out").exists()


def refused(result, message):
    """One line that says so, and status 2."""
    status, said, error = result
    assert (status, said) == (2, "")
    assert error.startswith("error: ")
    assert message in error


def test_the_layer_that_holds_the_counts_can_be_named(there, bad, run, tmp_path):
    command = ["tokenize", bad / "layered.h5ad", "--vocabulary", "vocab", "--layer", "counts", "-o", tmp_path / "out"]
    status, *_ = run(*command)
    assert status == 0
    found, expected = gf.TokenizedDataset.open(tmp_path / "out"), gf.TokenizedDataset.open("cells.tok")
    assert [cell.tolist() for cell in found] == [cell.tolist() for cell in expected]


@pytest.mark.parametrize(("name", "known"), [("symbols", 0.99), ("versions", 1)])
def test_genes_by_symbol_or_with_version_are_found(there, bad, run, tmp_path, name, known):
    status, said, _ = run("tokenize", bad / f"{name}.h5ad", "--vocabulary", "vocab", "-o", tmp_path / "out")
    assert status == 0
    cells = gf.TokenizedDataset.open(tmp_path / "out")
    assert cells.spec["share_of_counts_known"] >= known
    assert f"{cells.spec['genes']['mapped']['genes']} mapped" in said


def test_genes_of_another_species_are_refused_with_what_they_are(there, bad, run, tmp_path):
    result = run("tokenize", bad / "mouse.h5ad", "--vocabulary", "vocab", "-o", tmp_path / "out")
    refused(result, "none of its 754 genes is known to the vocabulary")
    assert "These are Ensembl ids of mouse (ENSMUSG…), the vocabulary is of human" in result[2]


def test_a_column_with_the_gene_ids_can_be_named(there, bad, run, tmp_path):
    adata = ad.read_h5ad(bad / "symbols.h5ad")
    adata.var["ids"] = ad.read_h5ad("cells.h5ad").var_names
    adata.write_h5ad(tmp_path / "named.h5ad")
    command = ["tokenize", tmp_path / "named.h5ad", "--vocabulary", "vocab", "-o", tmp_path / "out"]
    assert run(*command, "--gene-ids", "ids")[0] == 0


BAD = {
    "tokenize, column": (
        "tokenize cells.h5ad --vocabulary vocab --obs celltype",
        "obs has no column 'celltype'. Did you mean 'cell_type'?",
    ),
    "tokenize, layer": ("tokenize cells.h5ad --vocabulary vocab --layer count", "there is no layer 'count'"),
    "tokenize, vocabulary": (
        "tokenize cells.h5ad --vocabulary nowhere",
        "nowhere: no such file or folder. --vocabulary is: folder written by vocabulary",
    ),
    "tokenize, output in a file": ("tokenize cells.h5ad --vocabulary vocab -o cells.h5ad/out", "cells.h5ad"),
    "vocabulary, folder and file": ("vocabulary vocab cells.h5ad", "found vocab among 2 inputs"),
    "vocabulary, length of a folder's": ("vocabulary vocab --max-length 20", "--max-length"),
    "vocabulary, layer of a folder": ("vocabulary vocab --layer counts", "--layer"),
    "pretrain, cells": ("pretrain nowhere", "nowhere: no such file or folder. CELLS is: folder written by tokenize"),
    "pretrain, setting": ("pretrain cells.tok --set epoch=3", "has no field 'epoch'. Did you mean 'training.epochs'?"),
    "pretrain, type": ("pretrain cells.tok --set training.epochs=many", "training.epochs must be float, found 'many'"),
    "pretrain, bound": ("pretrain cells.tok --set training.epochs=0", "training.epochs must be above 0, found 0"),
    "pretrain, size": ("pretrain cells.tok --set size=huge", "size must be one of 'tiny', 'V1-10M'"),
    "pretrain, no value": ("pretrain cells.tok --set epochs", "--set epochs: expected key=value"),
    "pretrain, no file": ("pretrain cells.tok --config nowhere.toml", "nowhere.toml: no such file or folder"),
    "pretrain, no TOML": ("pretrain cells.tok --config {bad}/broken.toml", "broken.toml: not valid TOML"),
    "pretrain, classifier": (
        "pretrain cells.tok --base clf --set training.epochs=1 training.warmup_steps=0.1",
        "is a classifier without a masked-gene head",
    ),
    "finetune, target set twice": (
        "finetune base cells.tok --set target=other --target cell_type",
        "target is set twice, in --set or by an option of its own",
    ),
    "pretrain, no key": ("pretrain cells.tok --set training.trainer.=1", "'training.trainer.' is no key"),
    "pretrain, no effect": (
        "pretrain cells.tok --set training.trainer.push_to_hub=true",
        "trainer.push_to_hub has no effect here: nothing is uploaded",
    ),
    "finetune, source without columns": ("finetune base cells.tok --target cell_type --source cells.tok", "give both"),
    "finetune, columns without source": (
        "finetune base cells.tok --target cell_type --source-target type",
        "give both",
    ),
    "finetune, source and genes": (
        "finetune base cells.tok --source cells.tok --source-target type --genes genes.tsv",
        "give both, and not with --genes",
    ),
    "finetune, no target": ("finetune base cells.tok", "target"),
    "finetune, target": (
        "finetune base cells.tok --target celltype",
        "no obs column 'celltype'. Did you mean 'cell_type'?",
    ),
    "finetune, quoted target": ("finetune base cells.tok --target 'the \"type\"'", "no obs column 'the \"type\"'."),
    "finetune, target with a backslash": (
        "finetune base cells.tok --target 'cell\\type'",
        "no obs column 'cell\\\\type'.",
    ),
    "finetune, groups": (
        "finetune base cells.tok --target cell_type --group donor --set split.allow_seen=true",
        "at least 3 groups, found 2: donor0, donor1",
    ),
    "finetune, model": (
        "finetune cells.tok cells.tok --target cell_type",
        "cells.tok: is tokenised cells. finetune takes a checkpoint for CHECKPOINT.",
    ),
    "finetune, counts": (
        "finetune base cells.tok --target cell_type --counts {bad}/silent.h5ad --set split.allow_seen=true",
        "95 of 100 cells of the dataset are not in it",
    ),
    "finetune, setting": (
        "finetune base cells.tok --target cell_type --set epoch=3",
        "Did you mean 'training.epochs'?",
    ),
    "finetune, transfer": (
        "finetune base cells.tok --target cell_type --transfer half",
        "transfer.strategy must be one of 'full', 'freeze'",
    ),
    "finetune, folds": ("finetune base cells.tok --target cell_type --folds many", "folds must be"),
    "finetune, regression": (
        "finetune base cells.tok --target cell_type --regression n_counts",
        "regression names 'n_counts', which is no target",
    ),
    "finetune, text as numbers": (
        "finetune base cells.tok --target cell_type --regression cell_type --set split.allow_seen=true",
        "obs column 'cell_type' should hold numbers",
    ),
    "finetune, split": (
        "finetune base cells.tok --target cell_type --split nowhere.tsv",
        "nowhere.tsv",
    ),
    "finetune, genes and a target": (
        "finetune base cells.tok --genes genes.tsv --target cell_type",
        "GeneFinetuneConfig has no field 'target'",
    ),
    "finetune, genes and no table": (
        "finetune base cells.tok --genes nowhere.tsv",
        "nowhere.tsv: no such file or folder.",
    ),
    "finetune, genes and no such task": (
        "finetune base cells.tok --genes genes.tsv --task range",
        "genes.tsv: has no task 'range'. There are none.",
    ),
    "finetune, too few genes": (
        "finetune base cells.tok --genes genes.tsv --folds 6",
        "A class needs at least 6 genes",
    ),
    "finetune, task without genes": (
        "finetune base cells.tok --target cell_type --task range",
        "--task chooses among the classes of genes of a table; name it with --genes.",
    ),
    "predict, pretrained model": (
        "predict base cells.h5ad -o new.tsv",
        "checkpoint base is a pretrained model without classes; predict needs one made by finetune.",
    ),
    "predict, layer of tokenised cells": (
        "predict clf cells.tok --layer raw -o new.tsv",
        "--layer and --gene-ids are for",
    ),
    "predict, kind of output": ("predict clf cells.h5ad -o new.csv", "new.csv: predictions are written as .tsv, or"),
    "predict, nothing to copy": (
        "predict clf cells.tok -o new.h5ad",
        "new.h5ad: only a copy of an .h5ad can hold predictions; write a .tsv.",
    ),
    "predict, into its input": (
        "predict clf cells.h5ad -o ./cells.h5ad --overwrite",
        "cells.h5ad: is the input, which is not changed. Choose another output.",
    ),
    "predict, another species": ("predict clf {bad}/mouse.h5ad -o new.tsv", "Ensembl ids of mouse"),
    "predict, no counts": ("predict clf {bad}/normalised.h5ad -o new.h5ad", "X holds fractional values"),
    "predict, vocabulary": ("predict clf {bad}/others.tok -o new.tsv", "have different vocabularies"),
    "predict, no data": ("predict clf nowhere.h5ad -o new.tsv", "nowhere.h5ad: no such file"),
    "predict, no data to copy": ("predict clf nowhere.h5ad -o new.h5ad", "nowhere.h5ad"),
    "finetune, cells of the pretraining": (
        "finetune base cells.tok --target cell_type",
        "are among the cells that checkpoint base was pretrained on. Pretrain without them",
    ),
    "finetune, vocabulary": ("finetune base {bad}/others.tok --target cell_type", "have different vocabularies"),
    "embed, vocabulary": ("embed base {bad}/others.tok -o new.h5ad", "have different vocabularies"),
    "embed, layer": ("embed base cells.tok --layer 3 -o new.h5ad", "layer must lie between -3"),
    "embed, column": ("embed base cells.tok --umap celltype", "no obs column 'celltype'"),
    "embed, no model": ("embed {bad}/plain cells.tok -o new.h5ad", "plain: no config.json there"),
    "embed, mistyped model": ("embed bsae cells.tok", "bsae: no such"),
    "perturb, half a goal": (
        "perturb base cells.tok --state cell_type",
        "A goal needs --state, --start and --goal together.",
    ),
    "perturb, alternatives alone": ("perturb base cells.tok --alternatives Dendritic --max-cells 1", "--state"),
    "perturb, state": (
        "perturb base cells.tok --state cell_type --start Dendrit --goal 'CD19+ B'",
        "No cell has cell_type = 'Dendrit'. Did you mean 'Dendritic'?",
    ),
    "perturb, gene": ("perturb base cells.tok --genes ACTB4", "1 of 1 genes are not in the vocabulary"),
    "perturb, gene twice": ("perturb base cells.tok --genes A A", "genes must be distinct"),
    "perturb, no cells": ("perturb base cells.tok --max-cells 0", "--max-cells must be at least 1, found 0."),
    "perturb, no place": ("perturb base cells.tok --kind shift", "give --to with numbers from 0 (front) to 1 (bottom)"),
    "perturb, place off": ("perturb base cells.tok --kind shift --to 2", "to must be a number from 0 (front) to 1"),
    "perturb, place of a deletion": (
        "perturb base cells.tok --to 1",
        "--to does not fit --kind delete: --quartiles is",
    ),
    "perturb, quartiles of a deletion": ("perturb base cells.tok --quartiles 1", "--quartiles does not fit --kind del"),
    "perturb, no quartile": ("perturb base cells.tok --kind inhibit --quartiles 0", "must be 1, 2 or 3, found 0"),
    "perturb, no file": ("perturb base cells.tok --genes @nowhere.txt", "nowhere.txt: cannot be read"),
    "perturb, no text": ("perturb base cells.tok --genes @cells.h5ad", "Expected a text file with one gene a line."),
    "perturb, no gene in a file": ("perturb base cells.tok --affected @{bad}/blank.txt", "blank.txt: names no gene."),
    "perturb, anchor singly": ("perturb base cells.tok --anchor A --combine singly", "combine must be 'pairs', found"),
    "perturb, target": (
        "perturb clf cells.tok --target celltype",
        "has no target 'celltype'. Did you mean 'cell_type'?",
    ),
    "perturb, target of no classifier": ("perturb base cells.tok --target cell_type", "needs a classifier of cells"),
    "perturb, target and layer": (
        "perturb clf cells.tok --target cell_type --layer 0 --pooling mean",
        "leave them out",
    ),
    "perturb, estimates of no goal": ("perturb base cells.tok --first-order", "needs goal= or target="),
    "perturb, no budget": ("perturb clf cells.tok --target cell_type --sampled", "needs a budget: passes="),
    "perturb, budget of all": ("perturb base cells.tok --passes 9", "passes= is for method='sampled'; found"),
    "perturb, both methods": ("perturb base cells.tok --sampled --first-order", "give one of the two"),
    "perturb, refine": ("perturb base cells.tok --refine 3", "refine must be at least 0, and is for"),
    "perturb, donor": ("perturb base cells.tok --donor doner", "no obs column 'doner'. Did you mean 'donor'?"),
    "perturb, vocabulary": ("perturb base {bad}/others.tok", "have different vocabularies"),
    "statistics, missing": ("statistics nowhere.parquet -o new.tsv", "nowhere.parquet: no such file or folder."),
    "statistics, foreign": (
        "statistics cells.h5ad -o new.tsv",
        "cells.h5ad: is counts, expression or vectors (AnnData). statistics takes",
    ),
    "statistics, onto its input": (
        "statistics shifts.parquet --overwrite -o shifts.parquet",
        "shifts.parquet: statistics are written as .tsv",
    ),
    "statistics, no null": (
        "statistics shifts.parquet --method vs_null -o new.tsv",
        "needs the same screen of control cells",
    ),
    "statistics, null": ("statistics shifts.parquet --null plain.parquet -o new.tsv", "method='matched' takes no null"),
    "statistics, null of another kind": (
        "statistics shifts.parquet --method vs_null --null plain.parquet -o new.tsv",
        "The null has another measure than the screen",
    ),
    "statistics, no cells": (
        "statistics shifts.parquet --cells nowhere -o new.tsv",
        "nowhere: no such file or folder.",
    ),
    "statistics, counts alone": ("statistics shifts.parquet --counts cells.h5ad -o new.tsv", "give cells= too"),
    "statistics, method": (
        "statistics shifts.parquet --method vs_all -o new.tsv",
        "method='vs_all' needs a screen without a goal state",
    ),
}
"""What → a command without ``-o``, and what it says."""


@pytest.mark.parametrize(("command", "message"), BAD.values(), ids=BAD)
def test_what_a_user_got_wrong_ends_in_one_line(there, bad, run, tmp_path, command, message):
    command = [part.format(bad=bad) for part in shlex.split(command)]
    out = [] if "-o" in command else ["-o", tmp_path / "out" / "made"]
    refused(run(*command, *out), message)
    assert not (tmp_path / "out" / "made").exists()


TOLD_AT_ONCE = (
    "finetune, target|finetune, folds|finetune, regression|finetune, genes and no such task|"
    "finetune, task without genes|finetune, cells of the pretraining|finetune, vocabulary|predict, pretrained model|"
    "predict, layer of tokenised cells|predict, kind of output|predict, vocabulary|embed, vocabulary|embed, layer|"
    "perturb, half a goal|perturb, state|perturb, gene|perturb, gene twice|perturb, place off|perturb, no file|"
    "perturb, anchor singly|perturb, target|perturb, target of no classifier|perturb, estimates of no goal|"
    "perturb, no budget|perturb, both methods|perturb, refine|perturb, vocabulary|statistics, onto its input"
)
MORE_TOLD_AT_ONCE = {
    "embed base cells.tok --where donr=d1 -o x.h5ad": "--where: the dataset has no obs column 'donr'. Did you mean",
    "predict clf cells.tok --where cell_type=Dendrit -o x.tsv": "no cell has that cell_type. Did you mean 'Dendritic'?",
    "embed base cells.tok --where donor -o x.h5ad": "--where takes COLUMN=VALUE",
    "finetune base cells.tok --target cell_type --group donor --test-groups d9 -o x": "no cell has donor = 'd9'.",
    "network base cells.tok --layers 9 -o x": "checkpoint base has 3 layers of 2 heads",
    "network base cells.tok --heads zero -o x": "--heads takes LAYER:HEAD",
    "explain clf cells.tok --state Bees -o x.parquet": "knows no cell_type 'Bees'.",
    "explain base cells.tok -o x.parquet": "base is a pretrained model: name the gene that it is asked about",
    "explain clf cells.tok -o x.parquet": "cells to explain are among those that checkpoint clf was trained on.",
}
WITHOUT_TORCH = """
import json, sys
class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "sklearn"):
            raise AssertionError(f"loads {name}")
sys.meta_path.insert(0, Forbidden())
from geneformer_repro import cli
for command in json.load(sys.stdin):
    assert cli.main(command) == 2, command
"""


def test_what_small_files_tell_is_said_before_torch_is_loaded(there, bad, tmp_path):
    """Torch takes eight seconds of processor time."""
    told = {BAD[name][0]: BAD[name][1] for name in TOLD_AT_ONCE.split("|")} | MORE_TOLD_AT_ONCE
    commands = [[part.format(bad=bad) for part in shlex.split(command)] for command in told]
    commands = [command + ([] if "-o" in command else ["-o", str(tmp_path / "made")]) for command in commands]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH], input=json.dumps(commands), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for command, said, message in zip(told, done.stderr.splitlines(), told.values(), strict=True):
        assert message in said, command


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere", "nowhere: no such file or folder."),
        ("{bad}/plain", "plain: holds neither vocabulary.json nor token_dictionary*.pkl"),
    ],
)
def test_info_on_what_is_no_artefact_is_refused(there, bad, run, path, message):
    refused(run("info", path.format(bad=bad)), message)


def test_a_mistake_in_the_settings_does_not_stand_in_the_way_of_the_corrected_command(copy, run):
    command = shlex.split(
        "finetune base cells.tok --target cell_type --no-baselines -o new --set training.epochs=1 split.allow_seen=true"
    )
    refused(run(*command, "training.warmup_steps=1000"), "the run has only")
    assert run(*command, "warmup_steps=0.1")[0] == 0


def test_a_bug_shows_its_traceback(there, tmp_path, monkeypatch):
    def bug(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr("geneformer_repro.tokenizer.vocabulary.Vocabulary.fit", bug)
    with pytest.raises(ZeroDivisionError):
        cli.main(["vocabulary", "cells.h5ad", "-o", str(tmp_path / "out")])


def test_an_interrupt_is_told_how_to_go_on(there, run, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("geneformer_repro.tokenizer.vocabulary.Vocabulary.fit", interrupt)
    status, _, error = run("vocabulary", "cells.h5ad", "-o", tmp_path / "out")
    assert status == 130
    assert error == f"interrupted: {tmp_path / 'out'} is not written; the same command begins anew."
    (tmp_path / "out.partial").mkdir()
    _, _, error = run("vocabulary", "cells.h5ad", "-o", tmp_path / "out")
    assert error.startswith(f"interrupted: what is done is kept in {tmp_path / 'out'}.partial, and the same command")


def test_another_interrupt_while_the_program_ends_is_silent(monkeypatch, tmp_path):
    """What libraries do at the end would print a traceback for each."""

    def interrupted_and_again():
        monkeypatch.setattr(sys, "argv", ["geneformer-repro", "info", str(tmp_path / "nothing")])
        assert cli.main() == 2
        os.kill(os.getpid(), signal.SIGINT)

    assert status_of(forked(interrupted_and_again, tmp_path / "log")) == -signal.SIGINT
    assert "Traceback" not in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        pytest.param([], "the following arguments are required: COMMAND", id="no command"),
        pytest.param(["tokenise"], "invalid choice: 'tokenise'. Did you mean 'tokenize'?", id="unknown command"),
        pytest.param(["perturb", "a", "b", "-o", "c", "--donr=d"], "--donr=d. Did you mean '--donor'", id="option"),
        pytest.param(["tokenize", "cells.h5ad"], "-o/--out", id="no output"),
        pytest.param(["embed", "a", "b", "-o", "c", "--level", "tissue"], "invalid choice: 'tissue'", id="choice"),
        pytest.param(["perturb", "a", "b", "-o", "c", "--max-cells", "few"], "invalid int value: 'few'", id="number"),
    ],
)
def test_a_command_that_cannot_be_read_ends_with_its_usage(capsys, command, message):
    with pytest.raises(SystemExit) as ended:
        cli.main(command)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("usage: geneformer-repro")
    assert message in said


# Logging and help


@pytest.mark.parametrize("quiet", [False, True], ids=["loud", "quiet"])
def test_quiet_logs_warnings_only(there, run, tmp_path, caplog, quiet):
    with caplog.at_level(logging.DEBUG):
        run("tokenize", "cells.h5ad", "--vocabulary", "vocab", "-o", tmp_path / "out", *(["--quiet"] if quiet else []))
    levels = {record.levelno for record in caplog.records if record.name.startswith("geneformer_repro")}
    assert levels == (set() if quiet else {logging.INFO})


def test_the_last_log_line_of_a_step_is_json_for_machines(there, run, tmp_path, caplog):
    run("tokenize", "cells.h5ad", "--vocabulary", "vocab", "-o", tmp_path / "out")
    events = [json.loads(record.message) for record in caplog.records if record.name == "geneformer_repro.progress"]
    assert (events[-1]["event"], events[-1]["cells"]) == ("tokenize", 100)


def test_these_are_all_commands():
    assert set(cli._parser().commands) == set(COMMANDS)


@pytest.mark.parametrize(
    ("command", "status", "out", "err"),
    [
        pytest.param(["--help"], 0, "usage: geneformer-repro", "", id="help"),
        pytest.param(["--version"], 0, f"geneformer-repro {gf.__version__}\n", "", id="version"),
        pytest.param(
            ["info", "nowhere"],
            2,
            "",
            "error: nowhere: no such file or folder. PATH is: what a command reads or has written.\n",
            id="one line of error",
        ),
    ],
)
def test_the_package_runs_as_a_module(tmp_path, command, status, out, err):
    done = subprocess.run(
        [sys.executable, "-m", "geneformer_repro", *command],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "COLUMNS": "100"},
    )
    assert (done.returncode, done.stderr) == (status, err)
    assert done.stdout.startswith(out)


def test_the_console_command_is_the_same_function():
    (found,) = entry_points(group="console_scripts", name="geneformer-repro")
    assert found.load() is cli.main


def test_importing_main_runs_nothing():
    import geneformer_repro.__main__ as module

    assert module.main is cli.main
