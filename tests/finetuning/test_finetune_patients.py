"""Labels of patients from their cells: what attention finds, what stands beside it, what is refused before the work."""

import dataclasses
import json
import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_matrix

import geneformer_repro as gf
from geneformer_repro.bags import BagNetwork
from geneformer_repro.cli import main
from geneformer_repro.config import ConfigError, with_settings
from geneformer_repro.finetuning import patient_cells
from geneformer_repro.finetuning.attention import types_table
from geneformer_repro.finetuning.patients import finetune_patients
from geneformer_repro.finetuning.problems.patients import labelled_patients, pseudobulk
from geneformer_repro.finetuning.settings.patients import PatientConfig
from geneformer_repro.tokenizer.counts import log_normalise

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("few_trees", "blank_pictures", "few_resamples")]

N_PATIENTS, N_CELLS = 120, 20
SIMPLE = [
    "majority class",
    "logistic regression, PCA of pseudobulk",
    "logistic regression, cell-type composition",
    "logistic regression, mean vector",
]


@pytest.fixture(scope="module")
def planted():
    """Patients whose label one cell in twenty has: those with a high first number. The mean of a bag says nothing."""
    rng = np.random.default_rng(0)
    sick = np.arange(N_PATIENTS) % 2
    vectors = rng.normal(size=(N_PATIENTS, N_CELLS, 6))
    vectors[:, 0, 0] = 3.5
    vectors[:, 0, 1] = np.where(sick, 3.5, -3.5)
    vectors[:, 1:, 1] -= vectors[:, :, 1].sum(axis=1, keepdims=True) / (N_CELLS - 1)
    obs = pd.DataFrame(
        {
            "patient": np.repeat([f"p{i:03d}" for i in range(N_PATIENTS)], N_CELLS),
            "state": np.repeat(np.where(sick, "sick", "well"), N_CELLS),
            "score": np.repeat(10.0 * sick + rng.normal(size=N_PATIENTS), N_CELLS),
            "site": np.repeat([f"site{i // 2 % 12}" for i in range(N_PATIENTS)], N_CELLS),
            "type": np.tile(["B"] * 5 + ["T"] * 15, N_PATIENTS),
            "decides": np.tile(np.arange(N_CELLS) == 0, N_PATIENTS),
        },
        index=[f"c{i}" for i in range(N_PATIENTS * N_CELLS)],
    )
    counts = csr_matrix(rng.poisson(1.0, size=(len(obs), 30)).astype(np.float32))
    shuffled = rng.permutation(len(obs))
    adata = ad.AnnData(counts, obs=obs, obsm={"X_planted": vectors.reshape(len(obs), -1)})
    adata.var_names = [f"ENSG{i:011d}" for i in range(30)]
    return adata[shuffled].copy()


def config(**changes):
    chosen = PatientConfig(patient="patient", target="state", vectors="X_planted", cell_type="type")
    return with_settings(chosen, **{"folds": 2, "epochs": 100} | changes)


def quick(**changes):
    return config(**{"epochs": 1, "baselines": False} | changes)


@pytest.fixture(scope="module")
def learned(planted, tmp_path_factory):
    out = tmp_path_factory.mktemp("patients") / "run"
    return finetune_patients(None, planted, config(), out=out), out


def test_one_cell_in_twenty_is_found_by_attention_and_lost_in_the_mean(learned):
    methods = learned[0].methods
    assert methods.index.tolist() == ["attention pooling", *SIMPLE, "mean pooling"]
    assert methods.loc["attention pooling", "accuracy"] > 0.9
    assert methods.drop("attention pooling")["accuracy"].max() < 0.7
    assert methods.loc["attention pooling", "macro_f1_vs_best_simple_low"] > 0.2


def test_the_cell_that_decides_has_the_attention_of_networks_that_had_not_seen_the_patient(learned, planted):
    table = learned[0].attention.set_index("cell").join(planted.obs["decides"])
    np.testing.assert_allclose(table.groupby("patient")["attention"].sum(), 1, rtol=1e-5)
    np.testing.assert_allclose(table["relative_attention"], table["attention"] * N_CELLS, rtol=1e-6)
    patients = learned[0].patients.set_index("patient")
    first = patients["top_cells"].str.split(", ").str[0]
    decides = planted.obs["decides"].loc[first].set_axis(patients.index).groupby(patients["state"]).mean()
    assert decides.max() > 0.8  # of one class: the other is told by the absence of such a cell
    assert patients["attention_entropy"].median() < 0.5
    assert patients["attention_entropy"].between(0, 1).all()
    assert (patients["n_cells"] == N_CELLS).all()


def test_what_is_said_of_a_patient_is_what_the_table_of_predictions_says(learned):
    result, _ = learned
    predictions = result.evaluations["state"].predictions.set_index("patient").sort_index()
    patients = result.patients.set_index("patient").sort_index()
    assert patients["state_predicted"].tolist() == predictions["attention pooling"].tolist()
    assert patients["state"].tolist() == predictions["true"].tolist()


def test_attention_by_type_is_a_mean_over_patients(learned):
    result, _ = learned
    expected = (
        result.attention.groupby(["patient", "cell_type"])["relative_attention"].mean().groupby("cell_type").mean()
    )
    by_type = result.attention_by_type.set_index("cell_type")
    np.testing.assert_allclose(by_type["relative_attention"], expected[by_type.index])
    assert by_type.index.tolist() == ["B", "T"]  # the most first
    assert (by_type["relative_attention_low"] <= by_type["relative_attention"]).all()
    assert by_type["n_cells"].to_dict() == {"B": 5 * N_PATIENTS, "T": 15 * N_PATIENTS}


def test_a_type_that_a_patient_lacks_does_not_count_as_unattended():
    cells = pd.DataFrame(
        {"patient": ["a", "a", "b"], "cell_type": ["B", "T", "T"], "relative_attention": [1.5, 0.5, 1.0]}
    )
    table = types_table(cells, seed=0).set_index("cell_type")
    assert table["relative_attention"].to_dict() == {"B": 1.5, "T": 0.75}
    assert table["n_patients"].to_dict() == {"B": 1, "T": 2}
    assert table["relative_attention_low"].isna().to_dict() == {"B": True, "T": False}  # of one patient no interval


def test_the_folder_has_the_network_tables_pictures_and_a_page(learned, planted):
    result, out = learned
    names = {path.name for path in out.iterdir()}
    assert {"bags.json", "model.safetensors", "provenance.json", "report.html", "methods.tsv", "split.tsv"} <= names
    assert {"patients.tsv", "attention.tsv", "attention_by_type.tsv", "attention.png", "attention_by_type.png"} <= names
    page = (out / "report.html").read_text()
    assert "state: methods on the same test patients" in page
    assert "Which cell types does it look at?" in page
    assert f"95 % bootstrap intervals over {N_PATIENTS} patients" in page
    written = pd.read_csv(out / "attention.tsv", sep="\t")
    np.testing.assert_allclose(written["attention"], result.attention["attention"], rtol=1e-5)
    opened = BagNetwork.open(out)
    for name, weight in result.network.state_dict().items():
        assert torch.equal(opened.state_dict()[name], weight)
    record = json.loads((out / "provenance.json").read_text())
    assert record["result"]["state"]["accuracy"] == pytest.approx(result.methods.loc["attention pooling", "accuracy"])


def test_the_order_of_cells_changes_nothing(planted, tmp_path):
    runs = []
    for name, rows in (("one", np.arange(planted.n_obs)), ("other", np.argsort(planted.obs_names))):
        given = planted[rows].copy()
        runs.append(finetune_patients(None, given, quick(epochs=5), out=tmp_path / name).attention.set_index("cell"))
    np.testing.assert_allclose(runs[0]["attention"], runs[1]["attention"].loc[runs[0].index], atol=1e-6)


@pytest.mark.parametrize("pooling", ["cell_type", "mean"])
def test_every_pooling_stands_beside_the_simpler_ones(planted, pooling, tmp_path):
    result = finetune_patients(
        None, planted, config(pooling=pooling, epochs=2, hidden=4, dropout=0.1), out=tmp_path / "run"
    )
    names = {
        "cell_type": ["attention within cell types", "attention pooling", "mean pooling"],
        "mean": ["mean pooling"],
    }
    networks = [name for name in result.methods.index if name not in SIMPLE]
    assert networks == names[pooling]
    if pooling == "mean":
        np.testing.assert_allclose(result.attention["relative_attention"], 1, rtol=1e-6)
        np.testing.assert_allclose(result.patients["attention_entropy"], 1, rtol=1e-6)
    else:
        assert result.network.shape.cell_types == ("B", "T")


def test_classes_and_numbers_are_learned_together_and_missing_labels_add_nothing(planted, tmp_path):
    cells = planted.copy()
    cells.obs["score"] = cells.obs["score"].where(cells.obs["patient"] != "p003")
    chosen = config(target=("state", "score"), regression=("score",), repeats=2, epochs=5, validation=0.2)
    result = finetune_patients(None, cells, chosen, out=tmp_path / "run")
    numbers = result.evaluations["score"].methods
    assert numbers.index.tolist()[1:5] == [
        "mean", "ridge, PCA of pseudobulk", "ridge, cell-type composition", "ridge, mean vector",
    ]  # fmt: skip
    assert len(result.evaluations["score"].predictions) == 2 * (N_PATIENTS - 1)
    assert len(result.evaluations["state"].predictions) == 2 * N_PATIENTS
    assert len(result.patients) == N_PATIENTS  # a mean over repeats
    assert pd.isna(result.patients.set_index("patient").loc["p003", "score"])
    assert {"eval_selection", "loss"} <= set(result.history)
    assert (tmp_path / "run" / "score" / "methods.tsv").exists()


def test_survival_of_patients_is_learned_and_compared_with_cox_on_pseudobulk(planted, tmp_path):
    cells = planted.copy()
    rng, patient = np.random.default_rng(0), cells.obs["patient"].str[1:].astype(int).to_numpy()
    times = rng.exponential(np.where(np.arange(N_PATIENTS) % 2, 1.0, 8.0))
    cells.obs["time"], cells.obs["died"] = np.minimum(times, 10.0)[patient], (times < 10)[patient].astype(int)
    cells.obsm["X_planted"][:, 2] += 2.0 * (patient % 2)  # which every method sees
    chosen = config(target=(), survival={"died": "time"}, epochs=30)
    result = finetune_patients(None, cells, chosen, out=tmp_path / "run")
    methods = result.methods["c_index"]
    assert methods.index.tolist() == [
        "attention pooling", "Kaplan–Meier", "Cox ridge, PCA of pseudobulk", "Cox ridge, cell-type composition",
        "Cox ridge, mean vector", "mean pooling",
    ]  # fmt: skip
    assert methods["Kaplan–Meier"] == 0.5
    assert methods[["attention pooling", "mean pooling", "Cox ridge, mean vector"]].min() > 0.65
    risk = result.patients.set_index("patient")["died_risk"]
    sick = planted.obs.drop_duplicates("patient").set_index("patient")["state"].loc[risk.index] == "sick"
    assert risk[sick].mean() > risk[~sick].mean()  # higher is worse


def test_batches_of_patients_are_other_steps_of_the_same_sum(planted, tmp_path):
    whole, parts = (
        finetune_patients(None, planted, quick(epochs=2, batch_size=size), out=tmp_path / str(size))
        for size in (None, 16)
    )
    assert not np.allclose(whole.attention["attention"], parts.attention["attention"])
    assert abs(whole.history["loss"].iloc[0] - parts.history["loss"].iloc[0]) < 0.1


def test_a_run_that_was_cut_off_goes_on_to_the_same_end(planted, tmp_path, monkeypatch):
    expected = finetune_patients(None, planted, quick(epochs=3), out=tmp_path / "whole")
    from geneformer_repro.finetuning.problems import patients as module

    train, calls = module._train, []

    def cut(*given, **named):
        calls.append(named["step"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return train(*given, **named)

    monkeypatch.setattr(module, "_train", cut)
    with pytest.raises(KeyboardInterrupt):
        finetune_patients(None, planted, quick(epochs=3), out=tmp_path / "cut")
    again = finetune_patients(None, planted, quick(epochs=3), out=tmp_path / "cut")
    assert calls == ["fold 1 of 2", "fold 2 of 2", "fold 2 of 2", "all patients"]
    pd.testing.assert_frame_equal(again.attention, expected.attention)
    pd.testing.assert_frame_equal(again.methods, expected.methods)
    with pytest.raises(FileExistsError):
        finetune_patients(None, planted, quick(epochs=3), out=tmp_path / "cut")


def test_groups_of_patients_are_not_divided_and_a_split_can_be_given_back(planted, tmp_path):
    made = finetune_patients(None, planted, quick(group="site"), out=tmp_path / "run").split
    site_of = planted.obs.drop_duplicates("patient").set_index("patient")["site"]
    for _, fold in made.groupby("fold"):
        sides = fold.groupby("part")["patient"].apply(lambda names: set(site_of[names]))
        assert not sides["train"] & sides["test"]
    again = finetune_patients(
        None, planted, quick(split_file=str(tmp_path / "run" / "split.tsv")), out=tmp_path / "again"
    )
    pd.testing.assert_frame_equal(again.split, made)


# Inputs of simple methods


def test_pseudobulk_of_counts_is_that_of_their_sum_and_of_other_values_the_mean():
    rng = np.random.default_rng(0)
    counts, lengths = csr_matrix(rng.poisson(2.0, size=(7, 5)).astype(float)), np.array([3, 1, 3])
    summed = np.add.reduceat(counts.toarray(), [0, 3, 4])
    np.testing.assert_allclose(
        pseudobulk(counts, lengths, are_counts=True).toarray(), log_normalise(csr_matrix(summed)).toarray()
    )
    np.testing.assert_allclose(pseudobulk(counts, lengths, are_counts=False).toarray(), summed / lengths[:, None])


def test_composition_and_mean_vector_are_of_the_patient_in_the_order_of_the_table(planted):
    obs = planted.obs.copy()
    obs.loc[(obs["patient"] == "p001") & (obs["type"] == "T"), "type"] = None
    problem = labelled_patients(obs, planted.obs_names.to_numpy(), np.ones(len(obs), bool), config())
    problem = problem.with_vectors(planted.obsm["X_planted"][problem.cell_rows])
    features = problem.features(None, config(), None)
    expected = pd.DataFrame(planted.obsm["X_planted"]).groupby(obs["patient"].to_numpy()).mean()
    np.testing.assert_allclose(features.embedding, expected.loc[problem.names], atol=1e-5)
    assert features.composition[:3].tolist() == [[0.25, 0.75], [1.0, 0.0], [0.25, 0.75]]
    few = problem.select(np.array([2, 1]))
    assert few.names.tolist() == ["p002", "p001"]
    assert set(obs.loc[few.cell_names[:N_CELLS], "patient"]) == {"p002"}


def test_x_that_is_no_count_is_said_and_counts_may_be_given(planted, caplog):
    logged = planted.copy()
    logged.X = np.log1p(logged.X.toarray())
    caplog.set_level(logging.INFO, "geneformer_repro")
    problem = labelled_patients(logged.obs, logged.obs_names.to_numpy(), np.ones(logged.n_obs, bool), config())
    source = patient_cells.CellsWithVectors(logged, "X_planted")
    assert source.expression(problem, None)[1] is False
    assert "X holds no raw counts; the pseudobulk is the mean over a patient's cells" in caplog.text
    counts, are_counts = source.expression(problem, planted)
    assert are_counts
    np.testing.assert_array_equal(counts.toarray(), planted.X.toarray()[problem.cell_rows])
    del logged.X
    assert patient_cells.CellsWithVectors(logged, "X_planted").expression(problem, None) is None
    assert "X is absent, so there is no pseudobulk" in caplog.text


# Tokenised cells


def test_vectors_of_a_checkpoint_are_those_of_embed_made_once(few, few_file, base, gentle_base, tmp_path, monkeypatch):
    calls = []
    embed = patient_cells.embed
    monkeypatch.setattr(patient_cells, "embed", lambda *given: calls.append(len(given[1])) or embed(*given))
    chosen = PatientConfig(
        patient="sample", target="donor", cell_type="cell_type", split={"split_file": str(tmp_path / "split.tsv")},
        training={"epochs": 2},
    )  # fmt: skip
    names = sorted(set(few.obs["sample"]))
    pd.DataFrame({"patient": names, "part": ["train"] * 6 + ["test"] * 6}).to_csv(tmp_path / "split.tsv", index=False)
    result = finetune_patients(base, few, chosen, out=tmp_path / "run", counts=few_file)
    assert calls == [120]
    assert result.network.shape.n_inputs == base.model.config.hidden_size
    assert result.methods.loc[SIMPLE[1], "accuracy"] >= 0  # with counts
    vectors = torch.from_numpy(np.asarray(embed(base, few).X))
    tested = np.isin(few.obs["sample"], names[6:])
    torch.testing.assert_close(result.network.mean_D, vectors[~tested].mean(0), atol=1e-5, rtol=1e-5)
    asked = gf.predict_patients(tmp_path / "run", few, checkpoint=base)  # by the same network, of all patients
    assert len(asked.patients) == 12
    of_tested = asked.patients.set_index("patient").loc[result.patients["patient"]].reset_index()
    pd.testing.assert_frame_equal(of_tested, result.patients.drop(columns="donor"))
    cells = asked.attention.set_index("cell").loc[result.attention["cell"]].reset_index()
    pd.testing.assert_frame_equal(cells, result.attention)
    with pytest.raises(gf.InputError, match=r"learned vectors of the checkpoint .* whose vectors mean other things"):
        gf.predict_patients(tmp_path / "run", few, checkpoint=gentle_base)
    seen = dataclasses.replace(base, seen=few.select([int(np.flatnonzero(tested)[3])]).digests())
    with pytest.raises(gf.InputError, match=r"1 of 10 cells of test patient 'sample\d+' are among the cells that"):
        finetune_patients(seen, few, chosen, out=tmp_path / "new")
    allowed = with_settings(chosen, allow_seen=True, baselines=False, epochs=1)
    assert len(finetune_patients(seen, few, allowed, out=tmp_path / "allowed").patients) == 6


@pytest.mark.parametrize(
    ("given", "words"),
    [
        pytest.param({"patient": "donor"}, "no obs column 'donor'", id="patient"),
        pytest.param({"vectors": "X_umap"}, "obsm has no 'X_umap'; it has 'X_planted'", id="key"),
        pytest.param({"vectors": "X_two"}, "learned vectors of 6 numbers, and these cells have such of 2", id="length"),
    ],
)
def test_new_patients_that_a_network_cannot_read_are_refused(learned, planted, given, words):
    cells = planted[:40].copy()
    cells.obsm["X_two"] = cells.obsm["X_planted"][:, :2]
    if "X_umap" in given.values():
        del cells.obsm["X_two"]
    with pytest.raises(gf.InputError, match=words):
        gf.predict_patients(learned[1], cells, **given)


# What is refused before the work


def broken(planted, how):
    cells = planted.copy()
    how(cells)
    return cells


def relabel(cells):
    cells.obs.loc[cells.obs_names[0], "state"] = "neither"


def blind(cells):
    cells.obsm["X_planted"][3, 2] = np.nan


REFUSED = {
    "label differs within a patient": (relabel, {}, r"'state' says several things of patient 'p\d+' \('\w+', '\w+'\)"),
    "site differs within a patient": (
        lambda cells: cells.obs.__setitem__("site", np.arange(cells.n_obs) % 7),
        {"group": "site"},
        r"'site' says several things of patient 'p000'",
    ),
    "one class": (
        lambda cells: cells.obs.__setitem__("state", "well"),
        {},
        r"'state' has 1 class \('well'\) among 120 labelled patients",
    ),
    "vectors are not finite": (
        blind,
        {},
        r"obsm\['X_planted'\] is not finite for 1 of 2400 cells \(first: 'c\d+' of patient 'p\d+'\)",
    ),
    "no such vectors": (lambda cells: None, {"vectors": "X_uni"}, r"obsm has no 'X_uni'; it has 'X_planted'"),
    "no vectors named": (lambda cells: None, {"vectors": None}, r"have their vectors in obsm; found vectors=None"),
    "no such column": (lambda cells: None, {"patient": "patients"}, r"no obs column 'patients'. Did you mean 'patie"),
    "fewer patients than folds": (
        lambda cells: None, {"folds": 121, "validation": 0.0}, r"120 labelled patients are too few for 121 folds"
    ),
    "a rare class": (
        lambda cells: cells.obs.loc.__setitem__((cells.obs["patient"] == "p000", "state"), "odd"),
        {},
        r"'state': a class needs at least 3 patients; too few: 'odd' \(1\)",
    ),
    "X is not finite": (
        lambda cells: cells.X.data.__setitem__(0, np.inf), {"baselines": True}, r"X holds values that are not finite"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("how", "changes", "said"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_learned_is_refused_before_the_work(planted, how, changes, said, tmp_path):
    with pytest.raises(gf.InputError, match=said):
        finetune_patients(None, broken(planted, how), quick(**changes), out=tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_a_patient_on_two_sides_of_a_split_is_refused_by_name(planted, tmp_path):
    names = [f"p{i:03d}" for i in range(N_PATIENTS)]
    table = pd.DataFrame({"patient": [*names, "p007"], "part": ["train"] * 60 + ["test"] * 61})
    table.to_csv(tmp_path / "split.tsv", sep="\t", index=False)
    with pytest.raises(gf.InputError, match=r"Patient 'p007' is in train and test; give each patient one part"):
        finetune_patients(None, planted, quick(split_file=str(tmp_path / "split.tsv")), out=tmp_path / "run")
    table.rename(columns={"patient": "cell"}).to_csv(tmp_path / "cells.tsv", sep="\t", index=False)
    with pytest.raises(gf.InputError, match=r"expected the columns 'patient' and 'part'"):
        finetune_patients(None, planted, quick(split_file=str(tmp_path / "cells.tsv")), out=tmp_path / "run")


def test_a_patient_whose_cells_have_no_gene_is_refused_by_name(planted):
    usable = (planted.obs["patient"] != "p004").to_numpy()
    with pytest.raises(gf.InputError, match=r"None of the 20 cells of patient 'p004' has a gene"):
        labelled_patients(planted.obs, planted.obs_names.to_numpy(), usable, config())


def test_cells_without_a_patient_and_patients_without_a_label_are_left_out_and_counted(planted, caplog):
    obs = planted.obs.copy()
    obs["state"] = obs["state"].where(obs["patient"] != "p000")
    obs["patient"] = obs["patient"].where(obs["patient"] != "p001")
    caplog.set_level(logging.INFO, "geneformer_repro")
    problem = labelled_patients(obs, planted.obs_names.to_numpy(), np.ones(len(obs), bool), config())
    assert len(problem.names) == N_PATIENTS - 2
    assert "patient: 20 cells have no patient; left out." in caplog.text
    assert "state: 1 patients have no label; left out." in caplog.text


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"pooling": "cell_type", "cell_type": None}, 'cell_type must be an obs column with pooling="cell_type"'),
        ({"target": ()}, "target must be different obs columns, at least one"),
        ({"regression": ("age",)}, "regression names 'age', which is no target"),
        ({"dropout": 1.0}, "network.dropout must be at least 0 and below 1"),
        ({"batch_size": 0}, "training.batch_size must be at least 1"),
        ({"validation": -0.1}, "split.validation must be between 0 and 1"),
    ],
)
def test_settings_out_of_bounds_are_refused(given, said):
    with pytest.raises((ConfigError, gf.InputError), match=said):
        config(**given)


def test_cells_checkpoint_and_key_must_fit_together(planted, few, base, tmp_path):
    for checkpoint, cells, key, said in (
        (base, planted, "X_planted", "and a checkpoint, which needs tokenised cells"),
        (None, few, None, "Tokenised cells get their vectors from a checkpoint"),
        (base, few, "X_planted", "leave vectors out"),
        (None, tmp_path / "no.h5ad", "X_planted", r"no.h5ad: is no .h5ad file"),
    ):
        with pytest.raises(gf.InputError, match=said):
            patient_cells.patient_cells(checkpoint, cells, key)


# On the command line


def test_the_command_does_the_same_and_prints_the_table(planted, tmp_path, monkeypatch, capsys, caplog):
    planted.write_h5ad(tmp_path / "cells.h5ad")
    monkeypatch.chdir(tmp_path)
    options = (
        "--vectors X_planted --patient patient --target state --cell-type type --pooling cell_type --folds 2 "
        "--repeats 2 --group site --set training.epochs=2 --quiet -o run"
    )
    assert main(["finetune-patients", "cells.h5ad", *options.split()]) == 0
    said = capsys.readouterr().out
    assert said.startswith("state, on the test patients\n")
    assert "attention within cell types" in said
    assert "run/report.html has the pictures and intervals" in said
    written = json.loads((tmp_path / "run" / "provenance.json").read_text())["config"]
    assert (written["split"]["repeats"], written["split"]["group"], written["pooling"]) == (2, "site", "cell_type")
    new = planted[planted.obs["patient"].isin(["p001", "p002"])].copy()
    new.obs["kind"] = new.obs["type"].astype(str).replace("B", "NK")
    del new.obs["state"]
    new.write_h5ad("new.h5ad")
    assert main(["predict-patients", "run", "new.h5ad", "--cell-type", "kind", "-o", "asked"]) == 0
    assert capsys.readouterr().out.splitlines()[0].split()[:3] == ["patient", "n_cells", "state_predicted"]
    assert "kind: 10 cells are of types that the network does not know" in caplog.text
    asked = pd.read_csv("asked/patients.tsv", sep="\t", index_col="patient")
    assert asked.index.tolist() == ["p001", "p002"]
    expected = gf.predict_patients("run", new, cell_type="kind").patients
    assert asked["state_predicted"].tolist() == expected["state_predicted"].tolist()
    assert pd.read_csv("asked/attention.tsv", sep="\t").groupby("patient")["attention"].sum().round(5).tolist() == [
        1,
        1,
    ]
    assert main(["finetune-patients", "cells.h5ad", "--target", "state", "--quiet", "-o", "new"]) == 2
    assert "patient" in capsys.readouterr().err
