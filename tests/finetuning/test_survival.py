"""Labels of survival: what obs columns may hold, strata, scores within cohorts and folds, a whole run."""

import dataclasses
import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from forking import several
from safetensors.torch import load_file

import geneformer_repro as gf
from geneformer_repro.config import ConfigError
from geneformer_repro.errors import InputError
from geneformer_repro.finetuning.kinds import classes, kind_of
from geneformer_repro.finetuning.kinds.survival import SurvivalLabels, read_survival
from geneformer_repro.finetuning.kinds.survival_scores import harrell_c
from geneformer_repro.finetuning.networks import read_history
from geneformer_repro.finetuning.problems.cells import labelled_cells
from geneformer_repro.finetuning.settings.cells import FinetuneConfig
from geneformer_repro.finetuning.settings.labels import FollowUpConfig
from geneformer_repro.finetuning.settings.networks import NetworkConfig
from geneformer_repro.finetuning.splits import Split
from geneformer_repro.targets import Classes
from geneformer_repro.training.config import join_processes

NAN = float("nan")


def patients(**columns):
    """Six patients of two cohorts; columns replace those of the same name."""
    usual = {
        "died": [1, 0, 1, 1, 0, 1],
        "days": [10.0, 20.0, 30.0, 40.0, 50.0, 60.0],
        "tumour": ["acc", "acc", "acc", "ucs", "ucs", "ucs"],
    }
    return pd.DataFrame(usual | columns, index=[f"p{i}" for i in range(6)])


def read(config=None, **columns):
    return read_survival("died", patients(**columns), "days", FollowUpConfig(**(config or {})))


def test_labels_are_time_event_and_cohort_and_a_row_without_both_has_none():
    target, labels = read({"cohort": "tumour"}, died=[1, 0, NAN, 1, 0, 1], days=[10, 20, NAN, 40, 50, 60])
    expected = [[10, 1, 0], [20, 0, 0], [NAN] * 3, [40, 1, 1], [50, 0, 1], [60, 1, 1]]
    np.testing.assert_array_equal(labels, expected)
    assert target.cohorts == ("acc", "ucs")
    assert target.horizon == 40.0  # the median time of the events
    assert target.horizon in target.times


def test_events_may_be_truth_values_or_numbers_as_text():
    for died in ([True, False, True, True, False, True], ["1", "0", "1", "1", "0", "1"]):
        np.testing.assert_array_equal(read(died=died)[1], read()[1])


def test_follow_up_may_end_for_all_at_a_time():
    target, labels = read({"censor_at": 35.0})
    np.testing.assert_array_equal(labels[:, 0], [10, 20, 30, 35, 35, 35])
    np.testing.assert_array_equal(labels[:, 1], [1, 0, 1, 0, 0, 0])
    assert max(target.times) <= 30


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        pytest.param({"died": ["dead", "alive"] * 3}, "'died' should hold numbers .*events as 1 and 0", id="text"),
        pytest.param({"died": [1, 2, 1, 1, 2, 1]}, r"'died' should hold events, 1 or 0 \(censored\), found 2", id="2"),
        pytest.param(
            {"days": [10, 0, 30, 40, 50, 60]}, r"1 rows have no usable time .*'p1' has event 0 and time 0", id="0"
        ),
        pytest.param({"days": [10, -3, 30, 40, 50, 60]}, "'p1' has event 0 and time -3", id="negative"),
        pytest.param({"days": [10, NAN, 30, 40, 50, 60]}, "'p1' has event 0 and time missing", id="no time"),
        pytest.param({"died": [1, 0, 1, NAN, 0, 1]}, "'p3' has event missing and time 40", id="no event"),
        pytest.param({"died": [0] * 6}, "has no event among 6 rows", id="all censored"),
        pytest.param({"days": [10, 20, 30, 40, 50, np.inf]}, "infinite", id="infinite"),
    ],
)
def test_labels_that_are_none_are_refused(columns, words):
    with pytest.raises(InputError, match=words):
        read(**columns)


def test_unusable_rows_can_be_left_out_and_are_counted(caplog):
    with caplog.at_level(logging.WARNING):
        _, labels = read({"unusable": "leave_out"}, days=[10, 0, NAN, 40, 50, 60])
    assert np.isnan(labels[:, 0]).tolist() == [False, True, True, False, False, False]
    assert "2 rows without a usable time and event are left out" in caplog.text


def test_a_horizon_beyond_all_follow_up_is_refused():
    with pytest.raises(InputError, match=r"horizon=1826: nobody is followed that long; the longest .* is 60"):
        read({"horizon": 1826.0})


def test_months_beside_days_are_named(caplog):
    with caplog.at_level(logging.WARNING):
        read({"cohort": "tumour"}, days=[300.0, 600, 900, 11, 19, 32])
    assert "the median follow-up of 'acc' is 31.6 times that of 'ucs' (600 and 19)" in caplog.text
    assert "Are months and days mixed?" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        read({"cohort": "tumour"}, days=[300.0, 600, 900, 111, 190, 320])
    assert not caplog.text


def test_entry_times_are_refused_with_a_word():
    with pytest.raises(ConfigError, match="left truncation, start and stop"):
        FinetuneConfig(survival={"died": ["entry", "days"]})


def test_events_are_targets_without_being_named_and_none_else_are_taken_as_numbers():
    config = FinetuneConfig(target="type", survival={"died": "days"})
    assert config.targets == ("type", "died")
    assert FinetuneConfig(survival={"died": "days"}).targets == ("died",)
    with pytest.raises(ConfigError, match="regression must be other than the events of survival"):
        FinetuneConfig(survival={"died": "days"}, regression=("died",))
    with pytest.raises(ConfigError, match="at least one obs column"):
        FinetuneConfig()


def test_parts_hold_events_of_every_cohort_alike():
    target, labels = read({"cohort": "tumour"}, died=[1, 0, NAN, 1, 0, 1], days=[10, 20, NAN, 40, 50, 60])
    kind = kind_of(target)
    assert isinstance(kind, SurvivalLabels)
    assert kind.strata(labels).tolist() == [
        "event in acc", "censored in acc", "(none)", "event in ucs", "censored in ucs", "event in ucs",
    ]  # fmt: skip
    assert kind.lacks(labels) is None
    assert kind.lacks(labels[[1, 4]]) == "an event"
    assert kind.lacks(labels[[2]]) == "a label"


def lives(n=60, seed=0, *, cohorts=("acc", "ucs")):
    """Labels of patients of some cohorts, the target, and a prediction that knows something."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=n)
    table = pd.DataFrame(
        {
            "died": (rng.random(n) < 0.6).astype(int),
            "days": np.ceil(rng.exponential(400 * np.exp(-hidden))),
            "tumour": np.asarray(cohorts)[np.arange(n) % len(cohorts)],
        },
        index=[f"p{i}" for i in range(n)],
    )
    target, labels = read_survival("died", table, "days", FollowUpConfig(cohort="tumour"))
    survival = np.exp(-np.outer(np.exp(hidden), np.asarray(target.times) / 800))
    return target, labels, np.column_stack([hidden + rng.normal(size=n), survival])


def test_pairs_are_counted_within_cohorts_and_folds_alone():
    target, labels, predicted = lives()
    kind, folds = kind_of(target), np.arange(60) // 30
    shifted = predicted.copy()
    shifted[:, 0] += 10 * labels[:, 2] + 100 * folds  # each on a scale of its own
    options = {"folds": folds, "groups": None}
    expected = kind.evaluate(labels, predicted, **options, rng=np.random.default_rng(0)).scores
    found = kind.evaluate(labels, shifted, **options, rng=np.random.default_rng(0)).scores
    assert found["c_index"] == pytest.approx(expected["c_index"], abs=1e-12)
    pairs = [
        harrell_c(*labels[rows, :2].T, predicted[rows, 0])
        for rows in ((labels[:, 2] == cohort) & (folds == fold) for cohort in (0, 1) for fold in (0, 1))
    ]
    concordant = sum(one.c * one.n_pairs for one in pairs)
    assert found["c_index"] == pytest.approx(concordant / sum(one.n_pairs for one in pairs))
    once = np.ones((60, 1))
    leading = kind.leading_score(labels, shifted, folds=folds)
    assert leading(once).item() == pytest.approx(found["c_index"])


def test_every_cohort_is_scored_by_itself_too():
    target, labels, predicted = lives()
    kind = kind_of(target)
    scored = kind.evaluate(labels, predicted, folds=np.zeros(60), groups=None, rng=np.random.default_rng(0))
    tables = kind.tables({"ours": scored}, pd.Index([f"p{i}" for i in range(60)], name="sample"), predicted, "ours")
    per_cohort = tables["per_cohort"].set_index("cohort")
    for number, cohort in enumerate(target.cohorts):
        rows = labels[:, 2] == number
        assert per_cohort.loc[cohort, "c_index"] == harrell_c(*labels[rows, :2].T, predicted[rows, 0]).c
        assert per_cohort.loc[cohort, "c_index_low"] < per_cohort.loc[cohort, "c_index"]
    assert tables["probabilities"].shape == (60, len(target.times))


def test_times_after_follow_up_that_brier_scores_leave_out_are_said_once():
    target, labels, predicted = lives()
    kind, rows = kind_of(target), np.flatnonzero(labels[:, 2] == 1)
    late = [time for time in target.times if time >= 300]
    shorter = labels.copy()
    shorter[rows, 1] *= shorter[rows, 0] <= 300
    shorter[rows, 0] = np.minimum(shorter[rows, 0], 300)
    said = kind.caution(pd.DataFrame({"sample": np.arange(60), **kind.written(shorter)}))
    assert said.startswith(f"Brier scores leave out {len(late)} of {len(target.times)} times ({late[0]:g}, ")
    scores = kind.scores(shorter, predicted)
    within = [i for i, time in enumerate(target.times) if time < 300]
    told = dataclasses.replace(target, times=tuple(target.times[i] for i in within), horizon=target.times[within[-1]])
    assert kind_of(told).scores(shorter, predicted[:, [0, *(1 + i for i in within)]])["ibs"] == scores["ibs"]
    assert kind_of(told).caution(pd.DataFrame({"sample": np.arange(60), **kind.written(shorter)})) is None


def test_what_tells_no_survival_has_a_risk_alone_and_what_is_of_another_kind_nothing():
    target, labels, predicted = lives()
    kind = kind_of(target)
    risk_alone = predicted.copy()
    risk_alone[:, 1:] = NAN
    scores = kind.scores(labels, risk_alone)
    assert "ibs" not in scores
    assert scores["c_index"] == kind.scores(labels, predicted)["c_index"]
    assert kind.from_another(Classes("a", ("x", "y")), predicted) is None
    np.testing.assert_array_equal(kind.from_another(target, predicted), predicted)
    other = dataclasses.replace(target, times=(target.horizon, 9000.0))
    assert np.isnan(kind.from_another(other, predicted[:, :3])[:, 1:]).all()


def test_an_epoch_is_chosen_by_order_and_numbers_that_are_none_are_no_better_than_chance():
    target, labels, predicted = lives()
    kind = kind_of(target)
    assert kind.merit(kind.validation_scores(labels, predicted)) > 0.2
    reversed_, lost = -predicted, predicted.copy()
    lost[3] = NAN
    assert kind.merit(kind.validation_scores(labels, reversed_)) < -0.2
    assert kind.merit(kind.validation_scores(labels, lost)) == 0
    assert kind.merit(kind.validation_scores(labels[:1], predicted[:1])) == 0


@pytest.fixture(scope="module")
def followed(few_file):
    """120 cells taken for samples of two cohorts, whose time depends on their type."""
    adata = ad.read_h5ad(few_file)
    rng = np.random.default_rng(0)
    pace = adata.obs["cell_type"].map({"CD14+ Monocyte": 1.0, "CD19+ B": 8.0, "CD56+ NK": 8.0}).to_numpy(dtype=float)
    event_time, censored = rng.exponential(100 * pace), rng.exponential(900, len(pace))
    adata.obs["days"] = np.ceil(np.minimum(event_time, censored))
    adata.obs["died"] = (event_time <= censored).astype(float)
    adata.obs["tumour"] = np.where(np.arange(len(pace)) % 2, "acc", "ucs")
    vocabulary = gf.Vocabulary.fit(adata, max_length=34)
    return gf.tokenize(adata, vocabulary, obs=["days", "died", "tumour", "cell_type"])


def test_events_that_have_no_weight_in_unos_c_are_said_once(caplog):
    target, labels, predicted = lives()
    last = np.flatnonzero(labels[:, 2] == 0)[:3]
    labels[last, :2] = [[9999, 1], [9999, 1], [9999, 0]]  # in the order of time nobody is left at the last one
    kind, n_events = kind_of(target), int(labels[:, 1].sum())
    caplog.set_level("INFO", logger="geneformer_repro")
    kind.evaluate(labels, predicted, folds=np.zeros(60), groups=None, rng=np.random.default_rng(0))
    assert not caplog.records
    said = kind.caution(pd.DataFrame({"sample": np.arange(60), **kind.written(labels)}))
    assert said.startswith(f"Uno's C leaves out 2 of {n_events} events, as with an earlier end: when they come, some ")


@pytest.mark.slow
@pytest.mark.usefixtures("blank_pictures", "few_resamples")
def test_an_encoder_learns_survival_beside_what_a_statistician_would_do(
    followed, untrained, tmp_path, few_file, monkeypatch
):
    monkeypatch.setattr(classes, "CLASS_METHODS", {})
    config = FinetuneConfig(
        target="cell_type",
        survival={"died": "days"},
        follow_up={"cohort": "tumour", "intervals": 4},
        split={"validation": 0.2, "test": 0.4},
        training={"epochs": 8, "batch_size": 16, "learning_rate": 3e-3},
        compare={"covariates": ("tumour",)},
    )
    base = untrained(followed.vocabulary, 0.2)
    result = gf.finetune(base, followed, config, out=tmp_path / "run", counts=few_file)
    evaluation = result.evaluations["died"]
    assert evaluation.methods.loc["fine-tuned", "c_index"] > 0.6
    assert evaluation.methods.loc["Kaplan–Meier", "c_index"] == 0.5
    assert evaluation.methods.loc["expression network", "c_index"] > 0.6
    assert evaluation.methods.loc["encoder and expression side by side", "c_index"] > 0.6
    use = evaluation.block_use.set_index("block")
    assert use["method"].unique().tolist() == ["encoder and expression side by side"]
    assert use.index.tolist() == ["covariates", "embedding", "expression"]
    assert (use["score"] == evaluation.methods.loc["encoder and expression side by side", "c_index"]).all()
    assert use.loc["covariates", "fall"] == 0  # the cohort, within which patients are compared
    assert use.loc["expression", "fall"] > 0
    assert (tmp_path / "run" / "died" / "block_use.tsv").is_file()
    assert result.evaluations["cell_type"].block_use is not None
    predictions = evaluation.predictions
    assert list(predictions.columns[:5]) == ["sample", "event_time", "event", "cohort", "fine-tuned"]
    assert evaluation.per_cohort["cohort"].unique().tolist() == ["acc", "ucs"]
    assert {"report.html", "died", "cell_type"} <= {path.name for path in (tmp_path / "run").iterdir()}
    opened = gf.Checkpoint.from_pretrained(tmp_path / "run")
    table = gf.predict(opened, followed.select(range(5)))
    horizon = opened.head.targets[1].horizon
    assert table["died_risk"].notna().all()
    assert table[f"died_free_at_{horizon:g}"].between(0, 1).all()


@pytest.mark.slow
def test_two_processes_learn_hazards_as_one_does(followed, untrained, tmp_path):
    survival = {"survival": {"died": "days"}, "follow_up": FollowUpConfig(cohort="tumour", intervals=4)}
    problem = labelled_cells(followed, ["died"], rng=np.random.default_rng(0), **survival)
    base, split = untrained(followed.vocabulary, 0.2), Split(np.arange(70), np.arange(70, 100))

    def train(name, batch_size):
        trainer = {"logging_steps": 1, "optim": "sgd"}  # Adam makes steps of the last bits of gradients that are 0
        training = {"epochs": 1, "learning_rate": 0.1, "warmup_steps": 0, "trainer": trainer}
        config = NetworkConfig(training=training | {"batch_size": batch_size})
        join_processes(config.training)
        problem.train(base, config, split, work=tmp_path / name, step="train")

    train("one", 16)
    several(lambda rank: train("two", 8), tmp_path)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, atol=2e-5, rtol=0)
    one, two = (read_history(tmp_path / name) for name in ("one", "two"))
    assert one["loss"].notna().sum() == 5
    for column in ("loss", "eval_c_index", "eval_loss"):
        np.testing.assert_allclose(two[column], one[column], atol=1e-5, rtol=0)


def test_a_part_without_an_event_is_refused_before_the_work(followed, untrained, tmp_path):
    split = pd.DataFrame({"sample": followed.cell_names, "part": "train"})
    censored = np.flatnonzero(followed.require_obs("died") == 0)
    split.loc[censored[:5], "part"] = "test"
    split.to_csv(tmp_path / "split.tsv", sep="\t", index=False)
    config = FinetuneConfig(survival={"died": "days"}, split={"split_file": str(tmp_path / "split.tsv")})
    with pytest.raises(InputError, match="No test sample has an event in 'died'"):
        gf.finetune(untrained(followed.vocabulary, 0.2), followed, config, out=tmp_path / "run")
    assert not (tmp_path / "run.partial").exists()
