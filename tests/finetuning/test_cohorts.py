"""A study of cohorts: each is the target once, of whose test samples nothing is seen before their scores."""

import copy
import dataclasses
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

import geneformer_repro as gf
from geneformer_repro.cli import main
from geneformer_repro.finetuning.cohort_data import CohortData
from geneformer_repro.finetuning.cohort_tables import compare_over_cohorts, needed, sentence
from geneformer_repro.finetuning.splits import Split

N_GENES, COHORTS = 30, {"acc": 60, "chol": 50, "ucs": 40, "tiny": 12}


def samples(seed=0, *, canary=False):
    """Samples of four cohorts that share what decides; of the last there are too few events for a score."""
    rng = np.random.default_rng(seed)
    cohort = np.repeat(list(COHORTS), list(COHORTS.values()))
    hidden = rng.normal(size=len(cohort))
    values = rng.normal(size=(len(cohort), N_GENES)) + hidden[:, None] * np.r_[np.ones(6), np.zeros(N_GENES - 6)]
    event_time, censored = rng.exponential(np.exp(-1.5 * hidden)), rng.exponential(2.0, len(cohort))
    died = (event_time < censored) & (cohort != "tiny")
    obs = pd.DataFrame(
        {
            "days": np.ceil(1000 * np.minimum(event_time, censored)),
            "died": died.astype(int),
            "tumour": cohort,
            "age": 60 + 5 * hidden + rng.normal(0, 9, len(cohort)),
        },
        index=[f"p{i}" for i in range(len(cohort))],
    )
    if canary:
        values = rng.normal(size=values.shape)
        values[:, 0] = np.where(cohort == "ucs", 0.0, obs["days"])  # tells all of the others, nothing of the target
    return ad.AnnData(values.astype(np.float32), obs=obs, var=pd.DataFrame(index=[f"G{i}" for i in range(N_GENES)]))


def config(**changes):
    usual = {
        "survival": {"died": "days"},
        "values": "zscore",
        "halving": {"n_trials": 3, "rungs": 2, "space": {"width": [8, 16], "l2": [1e-3], "dropout": [0.0, 0.3]}},
        "network": {"layers": 1},
        "split": {"folds": 2, "repeats": 2},
        "training": {"steps": 15, "rates": (1e-3, 1e-2), "epochs": 30},
        "compare": {"covariates": ("age",), "baselines": False},
    }
    return gf.CohortStudyConfig(**usual | changes)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("study") / "run"
    return gf.transfer_study(samples(), config=config(), cohort="tumour", out=out), out


def test_every_cohort_with_events_is_a_target_and_the_others_are_listed(run):
    study, out = run
    assert study.cohorts["cohort"].tolist() == ["acc", "chol", "ucs"]
    assert study.cohorts["n"].tolist() == [60, 50, 40]
    assert study.left_out.to_dict("records") == [
        {"cohort": "tiny", "n": 12, "n_events": 0, "why": "fewer than 10 events"}
    ]
    ways = ["fine-tuned", "head only", "discriminative", "scratch", "zero-shot"]
    assert study.evaluations["acc"].methods.index.tolist() == ways
    names = {path.name for path in out.iterdir()}
    assert {"report.html", "cohorts.tsv", "comparisons.tsv", "trials.tsv", "methods.tsv", "cost.tsv", "acc"} <= names
    assert not out.with_name("run.partial").exists()


def test_what_cohorts_share_is_transferred(run):
    study, _ = run
    assert (study.cohorts["c_zero_shot"] > 0.65).all()
    assert study.cohorts["difference"].mean() > 0
    assert study.cost.groupby("method")["steps"].max().max() <= 15


def test_networks_of_a_study_are_checkpoints(run):
    _, out = run
    tuned, others = gf.Checkpoint.from_pretrained(out / "ucs"), gf.Checkpoint.from_pretrained(out / "ucs" / "others")
    assert tuned.head.targets[0].cohorts == ()
    assert others.head.targets[0].cohorts == ("acc", "chol", "tiny", "ucs")
    assert len(others.seen) == sum(COHORTS.values()) - COHORTS["ucs"]
    assert len(tuned.seen) == sum(COHORTS.values())


def test_what_the_others_alone_know_leaves_every_score_at_chance(tmp_path):
    study = gf.transfer_study(
        samples(canary=True), config=config(cohorts=("ucs",)), cohort="tumour", out=tmp_path / "run"
    )
    methods = study.evaluations["ucs"].methods
    assert ((methods["c_index_low"] < 0.5) & (methods["c_index_high"] > 0.5)).all()


def test_test_samples_change_nothing_that_is_learned_of_the_target(tmp_path):
    given = CohortData.read(samples(), config(follow_up={"cohort": "tumour"}))
    problem = given.problem(np.flatnonzero(given.cohorts == "acc"))
    split = Split(np.arange(0, 40), np.arange(40, 50), np.arange(50, 60))
    other = copy.deepcopy(problem)
    other.inputs.values["expression"][split.test] += 3
    other.labels[split.test] = other.labels[split.test][::-1] * np.array([2.0, 1.0, 1.0])
    trained = [
        one.train(None, config(), split, work=tmp_path / name, step="train")[0].state_dict()
        for name, one in {"as it is": problem, "changed": other}.items()
    ]
    for name, weight in trained[0].items():
        assert torch.equal(weight, trained[1][name]), name


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param({"survival": {"dead": "days"}}, "no obs column 'dead'. Did you mean 'died'", id="event"),
        pytest.param({"cohorts": ("uc",)}, "cohorts names 'uc'. Did you mean 'ucs'", id="cohort"),
        pytest.param(
            {"compare": {"covariates": ("agee",)}}, "no obs column 'agee'. Did you mean 'age'", id="covariate"
        ),
        pytest.param({"values": "counts"}, "should hold raw counts: sample 'p0', gene 'G0'", id="no counts"),
        pytest.param({"values": "expression"}, "should hold linear expression", id="negative"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_work(change, words, tmp_path):
    with pytest.raises(gf.InputError, match=words):
        gf.transfer_study(samples(), config=config(**change), cohort="tumour", out=tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_samples_and_their_patients_become_one_file(tmp_path, capsys):
    given = samples()
    pd.DataFrame(given.X, given.obs_names, [f"ENSG{i:011}" for i in range(N_GENES)]).to_csv(tmp_path / "z.csv")
    given.obs.to_csv(tmp_path / "clinical.tsv", sep="\t", index_label="patient")
    command = ["samples", str(tmp_path / "z.csv"), "--clinical", str(tmp_path / "clinical.tsv"), "-o"]
    assert main([*command, str(tmp_path / "joined.h5ad")]) == 0
    assert "162 samples × 30 genes; obs columns: patient, days, died" in capsys.readouterr().out
    joined = ad.read_h5ad(tmp_path / "joined.h5ad")
    assert joined.obs["days"].tolist() == given.obs["days"].tolist()
    np.testing.assert_allclose(joined.X, given.X)
    assert main([*command, str(tmp_path / "joined.tsv")]) == 2
    assert "samples are written as .h5ad" in capsys.readouterr().err


def test_the_command_joins_a_table_and_clinical_columns_and_prints_what_came_of_it(tmp_path, capsys):
    given = samples()
    pd.DataFrame(given.X, given.obs_names, [f"ENSG{i:011}" for i in range(N_GENES)]).to_csv(tmp_path / "z.csv")
    given.obs.to_csv(tmp_path / "clinical.tsv", sep="\t", index_label="patient")
    command = [
        "transfer-study", str(tmp_path / "z.csv"), "--clinical", str(tmp_path / "clinical.tsv"), "--cohort", "tumour",
        "--cohorts", "acc", "--survival", "days", "died", "--no-baselines", "--trials", "1",
        "-o", str(tmp_path / "run"),
    ]  # fmt: skip
    assert main(command) == 2
    assert "--values is missing" in capsys.readouterr().err
    quick = ["split.folds=2", "split.repeats=1", "training.steps=3", "training.epochs=3", "network.layers=1"]
    space = "halving.space={ width = [8], learning_rate = [1e-3] }"
    assert main([*command, "--values", "zscore", "--set", *quick, space]) == 0
    said = capsys.readouterr().out
    assert "fine-tuned" in said
    assert "zero-shot" in said
    assert said.splitlines()[0].split()[:3] == ["cohort", "n", "n_events"]
    assert (tmp_path / "run" / "acc" / "others" / "model.safetensors").is_file()


def test_a_patient_in_two_cohorts_is_refused_by_name(tmp_path):
    given = samples()
    given.obs["patient"] = np.arange(given.n_obs) % 100
    words = "patient '0' has samples in cohorts 'acc' and 'chol'"
    with pytest.raises(gf.InputError, match=words):
        gf.transfer_study(given, config=config(split={"group": "patient"}), cohort="tumour", out=tmp_path / "run")


def test_over_cohorts_wins_and_differences_are_counted():
    scores = {"a": (0.7, 0.6), "b": (0.65, 0.6), "c": (0.6, 0.62), "d": (0.8, 0.7)}

    @dataclasses.dataclass
    class Scored:
        methods: pd.DataFrame
        predictions: list
        leading: str = "c_index"

    evaluations = {
        cohort: Scored(pd.DataFrame({"c_index": {"fine-tuned": tuned, "scratch": scratch}}), [0] * n)
        for n, (cohort, (tuned, scratch)) in zip((10, 20, 30, 5), scores.items(), strict=True)
    }
    (row,) = compare_over_cohorts(evaluations).itertuples()
    assert (row.cohorts, row.wins) == (4, 3)
    assert row.difference == pytest.approx(np.mean([0.1, 0.05, -0.02, 0.1]))
    assert row.p_sign == pytest.approx(0.625)
    assert row.size_correlation < -0.5  # small cohorts gain more
    assert sentence(row).startswith("fine-tuned is above scratch in 3 of 4 cohorts, by +0.058 C-index on average")


@pytest.mark.parametrize(
    ("wins", "mean", "said"),
    [
        pytest.param(6, 0.02, "6 of 9 cohorts, by +0.020 C-index on average (+0.010", id="both above"),
        pytest.param(5, -0.003, "5 of 9 cohorts, but 0.003 C-index below it on average (−0.013", id="wins alone"),
        pytest.param(4, 0.01, "4 of 9 cohorts, but 0.010 C-index above it on average (+0.000", id="mean alone"),
        pytest.param(1, -0.02, "1 of 9 cohorts, and 0.020 C-index below it on average (−0.030", id="both below"),
    ],
)
def test_wins_and_mean_are_both_said_where_they_disagree(wins, mean, said):
    interval = {"difference": mean, "difference_low": mean - 0.01, "difference_high": mean + 0.01}
    row = SimpleNamespace(method="fine-tuned", other="scratch", wins=wins, cohorts=9, **interval)
    assert sentence(row).startswith(f"fine-tuned is above scratch in {said}")


def test_how_many_patients_are_needed_is_read_from_the_curves():
    curve = pd.DataFrame(
        [("ucs", "died", method, n, 1, c) for method, points in
         {"scratch": {10: 0.5, 100: 0.7}, "fine-tuned": {10: 0.6, 100: 0.8}}.items() for n, c in points.items()],
        columns=["cohort", "target", "method", "n", "draw", "c_index"],
    )  # fmt: skip
    (row,) = needed(curve, "died").itertuples()
    assert (row.n_scratch, row.c_scratch) == (100, 0.7)
    assert row.n_fine_tuned == pytest.approx(10**1.5)
