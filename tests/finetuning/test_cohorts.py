"""A study of cohorts: each is the target once, of whose test samples nothing is seen before their scores."""

import copy
import dataclasses
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr

import geneformer_repro as gf
from geneformer_repro.cli import main
from geneformer_repro.config import ConfigError
from geneformer_repro.expression import ExpressionInputs, ExpressionNetwork, InputScale
from geneformer_repro.finetuning.cohort_data import CohortData
from geneformer_repro.finetuning.cohort_tables import compare_over_cohorts, needed, sentence
from geneformer_repro.finetuning.kinds.survival_methods import SURVIVAL_METHODS
from geneformer_repro.finetuning.kinds.survival_scores import harrell_c
from geneformer_repro.finetuning.problems.samples import ExpressionProblem, clinical_block
from geneformer_repro.finetuning.settings.samples import SampleNetworkConfig
from geneformer_repro.finetuning.splits import Split
from geneformer_repro.heads import Head
from geneformer_repro.network_settings import ExpressionConfig
from geneformer_repro.sample_reading import clinical_columns
from geneformer_repro.targets import Number, SurvivalTime

pytestmark = pytest.mark.usefixtures("blank_pictures", "few_resamples")

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
        "split": {"folds": 2, "repeats": 1},
        "training": {"steps": 10, "rates": (1e-3, 1e-2), "epochs": 30},
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
    ways = ["fine-tuned", "head only", "discriminative", "scratch", "zero-shot", "fine-tuned, with clinical columns"]
    assert study.evaluations["acc"].methods.index.tolist() == ways
    names = {path.name for path in out.iterdir()}
    assert {"report.html", "cohorts.tsv", "comparisons.tsv", "trials.tsv", "methods.tsv", "cost.tsv", "acc"} <= names
    assert not out.with_name("run.partial").exists()


def test_what_cohorts_share_is_transferred(run):
    study, _ = run
    assert (study.cohorts["c_zero_shot"] > 0.6).all()
    assert study.cohorts["difference"].mean() > 0
    assert study.cost.groupby("method")["steps"].max().max() <= 10
    assert set(study.cost["learning_rate"]) <= {1e-3, 1e-2}


def test_what_the_network_with_clinical_columns_uses_of_them_and_of_expression_is_told(run):
    study, out = run
    use = study.block_use
    assert use["cohort"].tolist() == ["acc", "acc", "chol", "chol", "ucs", "ucs"]
    assert use["block"].tolist() == ["covariates", "expression"] * 3
    for row in use.itertuples():
        assert row.score == study.evaluations[row.cohort].methods.loc["fine-tuned, with clinical columns", "c_index"]
    assert (use["low"] <= use["fall"]).all()
    assert (use["fall"] <= use["high"]).all()
    of_expression = use.loc[use["block"] == "expression", "fall"]
    assert (of_expression > 0.05).all()
    assert (study.methods.drop(columns="mean").columns == study.cohorts["cohort"]).all()
    pairs = set(zip(study.comparisons["method"], study.comparisons["other"], strict=True))
    assert ("fine-tuned, with clinical columns", "fine-tuned") in pairs
    assert {"block_use.tsv", "block_use.png"} <= {path.name for path in out.iterdir()}
    assert "Does expression add to clinical columns" in (out / "report.html").read_text()


def test_clinical_columns_are_numbers_and_a_label_that_training_samples_lack_counts_nothing(tmp_path):
    given = samples()
    given.obs["stage"] = np.where(np.arange(given.n_obs) % 2, "I", "II")
    columns = config(follow_up={"cohort": "tumour"}, compare={"covariates": ("age", "stage"), "baselines": False})
    split = Split(np.arange(0, 40), np.arange(40, 50), np.arange(50, 60))
    said = {}
    for name in ("as it is", "changed"):
        data = CohortData.read(given, columns)
        problem = data.problem(np.flatnonzero(data.cohorts == "acc")).with_covariates(("age", "stage"))
        alone = data.problem(np.flatnonzero(data.cohorts == "acc")).inputs
        start = ExpressionNetwork(ExpressionConfig(), Head(problem.targets), InputScale.fit(alone))
        start = start.with_covariates(problem.inputs.names["covariates"])
        network, _ = problem.train(start, config(), split, work=tmp_path / name, step="train")
        path = dict(zip(problem.inputs.names["covariates"], network.skip["covariates"].weight[0].tolist(), strict=True))
        assert all(path[column] != 0 for column in ("age", "stage=I", "stage=II"))
        assert path.get("stage=IV", 0) == 0
        said[name] = problem.predictions(problem.ask(network, split.train), split.train)
        given.obs.loc[given.obs_names[split.test], ["age", "stage"]] = [99.0, "IV"]
    assert "stage=IV" in path
    np.testing.assert_allclose(said["changed"], said["as it is"], rtol=1e-5)


@pytest.fixture(scope="module")
def told_by_age():
    """Problem, split and network of patients whom age and stage tell, expression nothing; with a second target."""
    rng = np.random.default_rng(0)
    n, names = 200, ("age", "stage")
    obs = pd.DataFrame({"age": rng.normal(60, 9, n), "stage": rng.choice(["I", "II", "III"], n)})
    risk = (obs["age"] - 60) / 9 + obs["stage"].map({"I": -1.0, "II": 0.0, "III": 1.0})
    time, censored = rng.exponential(np.exp(-risk)), rng.exponential(3.0, n)
    labels = np.column_stack([np.minimum(time, censored), time < censored, np.arange(n) % 2, rng.normal(size=n)])
    genes = {"expression": rng.normal(size=(n, N_GENES)).astype(np.float32)}
    inputs = ExpressionInputs(genes, {"expression": tuple(f"G{i}" for i in range(N_GENES))})
    targets = (SurvivalTime("died", "days", (1.0,), 1.0, "cox", cohorts=("a", "b")), Number("grade"))
    problem = ExpressionProblem(inputs, targets, labels, obs).with_covariates(names)
    given = SampleNetworkConfig(network={"width": 8, "skip": ("covariates",)}, training={"steps": 40})
    return problem, Split(np.arange(0, 90), np.arange(90, 120), np.arange(120, 200)), given


def c_index(labels, risk):
    return harrell_c(labels[:, 0], labels[:, 1].astype(bool), risk, strata=labels[:, 2]).c


def test_a_network_with_clinical_columns_begins_as_cox_and_ends_no_worse(told_by_age, tmp_path):
    problem, split, given = told_by_age
    features = problem.features(None, SimpleNamespace(compare=SimpleNamespace(covariates=problem.obs.columns)), None)
    cox = SURVIVAL_METHODS["Cox, clinical"](
        features, split.train, problem.labels[split.train, :3], split.test, 0, (1.0,)
    )[:, 0]
    begun, tested = problem.begun(None, given, split.train), problem.inputs.select(split.test)
    assert spearmanr(begun.outputs(tested)[:, 0], cox).statistic > 0.98
    trained, _ = problem.train(None, given, split, work=tmp_path / "network", step="train")
    labels = problem.labels[split.test]
    assert c_index(labels, trained.outputs(tested)[:, 0]) > c_index(labels, cox) - 0.02
    assert (begun.skip["covariates"].weight[1] == 0).all()  # of the number's output
    plain = ExpressionNetwork(given.network, begun.head, begun.scale, seed=given.seed)
    np.testing.assert_array_equal(begun.outputs(tested)[:, 1], plain.outputs(tested)[:, 1])


def test_what_clinical_columns_begin_at_is_learned_of_training_samples_alone(told_by_age):
    problem, split, given = told_by_age
    other = copy.deepcopy(problem)
    others = np.concatenate(split[1:])
    for block in other.inputs.values.values():
        block[others] += 3
    other.labels[others, :2] = [7.0, 1.0]
    begun = [one.begun(None, given, split.train).state_dict() for one in (problem, other)]
    for name, weight in begun[0].items():
        assert torch.equal(weight, begun[1][name]), name


def test_what_others_taught_counts_as_much_as_it_tells_beside_clinical_columns(told_by_age):
    problem, split, given = told_by_age
    tested, said = problem.inputs.select(split.test), []
    for factor in (1, 50):
        start = ExpressionNetwork(given.network, Head(problem.targets), InputScale.fit(problem.inputs))
        start.classifier.weight.data *= factor
        said.append(problem.begun(start, given, split.train).outputs(tested)[:, 0])
    np.testing.assert_allclose(said[1], said[0], atol=1e-4)


def test_a_missing_clinical_number_is_usual_and_a_missing_label_none():
    columns = pd.DataFrame({"age": [50.0, np.nan], "sex": pd.Categorical(["f", None]), "old": pd.array([True, None])})
    values, names = clinical_block(columns)
    assert names == ("age", "sex=f", "old")
    np.testing.assert_array_equal(values, np.array([[50, 1, 1], [np.nan, 0, np.nan]], dtype=np.float32))


def test_networks_of_a_study_are_checkpoints(run):
    _, out = run
    tuned, others = gf.Checkpoint.from_pretrained(out / "ucs"), gf.Checkpoint.from_pretrained(out / "ucs" / "others")
    assert tuned.head.targets[0].cohorts == ()
    assert others.head.targets[0].cohorts == ("acc", "chol", "tiny", "ucs")
    assert len(others.seen) == sum(COHORTS.values()) - COHORTS["ucs"]
    assert len(tuned.seen) == sum(COHORTS.values())


def test_a_network_says_of_its_samples_what_it_said_in_the_study_whatever_they_come_as(run, tmp_path):
    _, out = run
    given, network = samples(), gf.Checkpoint.from_pretrained(out / "ucs")
    data = CohortData.read(given, config(follow_up={"cohort": "tumour"}))
    rows = np.flatnonzero(data.cohorts == "ucs")
    expected = data.problem(rows).ask(network.model, np.arange(len(rows)))
    of_ucs = given[given.obs["tumour"] == "ucs"].copy()
    table = gf.predict(network, of_ucs)
    columns = network.head.targets[0].columns(expected)
    pd.testing.assert_frame_equal(table, pd.DataFrame(columns, of_ucs.obs_names), check_exact=True)
    np.testing.assert_array_equal(of_ucs.obs["died_risk"], table["died_risk"])
    turned = pd.DataFrame(of_ucs.X.T[::-1], of_ucs.var_names[::-1], of_ucs.obs_names)
    turned.to_csv(tmp_path / "z.tsv", sep="\t")
    assert main(["predict", str(out / "ucs"), str(tmp_path / "z.tsv"), "-o", str(tmp_path / "risk.tsv")]) == 0
    written = pd.read_csv(tmp_path / "risk.tsv", sep="\t", index_col="sample")
    np.testing.assert_allclose(written, table, rtol=1e-5)


def test_a_network_with_clinical_columns_is_asked_with_a_table_of_them(run, tmp_path):
    _, out = run
    network = gf.Checkpoint.from_pretrained(out / "ucs" / "with-clinical")
    data = CohortData.read(samples(), config(follow_up={"cohort": "tumour"}))
    rows = np.flatnonzero(data.cohorts == "ucs")
    problem = data.problem(rows).with_covariates(("age",))
    expected = problem.predictions(problem.ask(network.model, np.arange(len(rows))), np.arange(len(rows)))
    columns = network.head.targets[0].columns(expected)
    of_ucs = samples()[samples().obs["tumour"] == "ucs"].copy()
    pd.testing.assert_frame_equal(
        gf.predict(network, of_ucs), pd.DataFrame(columns, of_ucs.obs_names), check_exact=True
    )
    table, clinical, risk = (str(tmp_path / name) for name in ("z.tsv", "clinical.tsv", "risk.tsv"))
    pd.DataFrame(of_ucs.X.T, of_ucs.var_names, of_ucs.obs_names).to_csv(table, sep="\t")
    of_ucs.obs[["age", "tumour"]].to_csv(clinical, sep="\t", index_label="patient")
    asked = ["predict", str(out / "ucs" / "with-clinical"), table, "--genes-in", "rows", "-o", risk]
    assert main([*asked, "--clinical", clinical]) == 0
    np.testing.assert_allclose(
        pd.read_csv(risk, sep="\t", index_col="sample")["died_risk"], columns["died_risk"], rtol=1e-5
    )
    older = of_ucs.obs[["age", "tumour"]].assign(age=of_ucs.obs["age"] + 10).rename_axis("patient").reset_index()
    for cohort in (None, "tumour"):  # which standardises genes, not what is known of patients
        told = gf.predict(network, table, clinical=older, cohort=cohort)["died_risk"]
        assert np.abs(told - columns["died_risk"]).max() > 0.01
    with pytest.raises(gf.InputError, match=r"clinical column 'age', which the samples do not have.*clinical="):
        gf.predict(network, table)


def test_clinical_columns_of_other_samples_are_those_that_were_learned(caplog):
    learned = pd.DataFrame({"age": [50.0, 60.0], "stage": ["I", "II=b"], "a=b": ["x", "y"]})
    values, names = clinical_block(learned)
    np.testing.assert_array_equal(clinical_columns(learned[["a=b", "stage", "age"]], names), values)
    assert not caplog.records
    others = learned.assign(stage=["IV", None])
    np.testing.assert_array_equal(clinical_columns(others, names)[:, 1:3], np.zeros((2, 2)))
    assert "stage: the network has not learned 'IV', of 1 samples; they count as missing" in caplog.text
    with pytest.raises(gf.InputError, match="reads numbers in 'age', found 'old'"):
        clinical_columns(learned.assign(age="old"), names)


def test_a_network_of_several_cohorts_standardises_each_by_itself(run, caplog):
    _, out = run
    others = gf.Checkpoint.from_pretrained(out / "ucs" / "others")
    assert others.model.scale.within_cohorts
    given = samples()
    given = given[given.obs["tumour"] != "tiny"].copy()
    by_cohort = gf.predict(others, given.copy(), cohort="tumour")
    elsewhere = given.copy()
    elsewhere.X[elsewhere.obs["tumour"] == "acc"] *= 3
    elsewhere.X[elsewhere.obs["tumour"] == "acc"] += 5
    np.testing.assert_allclose(gf.predict(others, elsewhere, cohort="tumour"), by_cohort, rtol=1e-3)
    of_acc = gf.predict(others, given[given.obs["tumour"] == "acc"].copy())
    np.testing.assert_array_equal(of_acc, by_cohort.loc[of_acc.index])
    assert "these 60 samples are taken for one" in caplog.text


@pytest.mark.parametrize(
    ("data", "options", "error", "words"),
    [
        pytest.param(lambda of: of[:9].copy(), {"cohort": "tumour"}, gf.InputError,
                     "Cohort 'acc' has 9 samples, and is to be standardised by itself", id="few"),
        pytest.param(lambda of: of, {"cohort": "tumor"}, gf.InputError, "no obs column 'tumor'", id="no column"),
        pytest.param(lambda of: of, {"layer": "tpm"}, gf.InputError, "no layer 'tpm'", id="no layer"),
        pytest.param(lambda of: of, {"gene_ids": "id"}, gf.InputError, "no var column 'id'", id="no ids"),
        pytest.param(lambda of: ad.AnnData(np.abs(of.X), of.obs, of.var), {}, gf.DataFormatError,
                     "said to hold z-scores, but none of its values is negative", id="other values"),
        pytest.param(lambda of: ad.AnnData(of.X, of.obs), {}, gf.InputError, "None of the 30 genes", id="other genes"),
    ],
)  # fmt: skip
def test_samples_that_a_network_cannot_read_are_refused(run, data, options, error, words):
    with pytest.raises(error, match=words):
        gf.predict(gf.Checkpoint.from_pretrained(run[1] / "acc"), data(samples()), **options)


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
        pytest.param(
            {"values": "counts"}, r"X .* said to hold raw counts.*first: cell 'p0', gene 'G0'", id="no counts"
        ),
        pytest.param({"values": "expression"}, "said to hold linear expression", id="negative"),
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
    assert "of 2 folds dealt once" in (tmp_path / "run" / "report.html").read_text()


def test_clinical_columns_in_the_networks_that_are_searched_are_refused():
    with pytest.raises(ConfigError, match='skip must be without "covariates"; a network of their own has'):
        config(network={"skip": ("covariates",)})


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
    for scored in evaluations.values():
        scored.predictions = [0] * 10
    (row,) = compare_over_cohorts(evaluations).itertuples()
    assert np.isnan(row.size_correlation)  # all cohorts are of one size
    assert row.difference_low < row.difference


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
