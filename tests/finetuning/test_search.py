"""Searching settings: what can be searched, how it is drawn, and which cells a trial is shown."""

import json
import logging

import numpy as np
import pandas as pd
import pytest

from geneformer_repro.config import ConfigError, with_settings
from geneformer_repro.finetuning import results
from geneformer_repro.finetuning import search as module
from geneformer_repro.finetuning.finetune import finetune
from geneformer_repro.finetuning.networks import SELECTION
from geneformer_repro.finetuning.problems.cells import CellProblem, labelled_cells
from geneformer_repro.finetuning.search import draw_settings, search
from geneformer_repro.finetuning.settings.cells import FinetuneConfig
from geneformer_repro.finetuning.settings.networks import DEFAULT_SPACE
from geneformer_repro.finetuning.splits import Split

TRAIN, VALIDATION = np.arange(0, 80), np.arange(80, 100)
SPACE = {"learning_rate": {"low": 1e-5, "high": 1e-2, "log": True}, "pooling": ["mean", "cls", "attention"]}


def config(**changes):
    chosen = {"epochs": 1, "batch_size": 64, "baselines": False, "trials": 4, "space": SPACE}
    return with_settings(FinetuneConfig(target="cell_type"), **chosen | changes)


def draws(space, n=2000):
    rng = np.random.default_rng(0)
    return pd.DataFrame([draw_settings(space, rng) for _ in range(n)])


# Draws


def test_a_range_is_drawn_evenly():
    drawn = draws({"weight_decay": {"low": 0.1, "high": 0.3}})["weight_decay"]
    assert 0.1 <= drawn.min() < drawn.max() <= 0.3
    assert drawn.mean() == pytest.approx(0.2, abs=0.005)


def test_a_logarithmic_range_is_drawn_evenly_in_its_exponents():
    drawn = np.log10(draws(SPACE)["learning_rate"])
    assert -5 <= drawn.min() < drawn.max() <= -2
    assert drawn.mean() == pytest.approx(-3.5, abs=0.05)


@pytest.mark.parametrize("log", [False, True])
def test_a_range_of_whole_numbers_gives_whole_numbers_and_both_ends(log):
    drawn = draws({"batch_size": {"low": 4, "high": 8, "log": log}})["batch_size"]
    assert drawn.dtype == int
    assert set(drawn) == {4, 5, 6, 7, 8}


def test_a_list_is_drawn_evenly():
    shares = draws(SPACE)["pooling"].value_counts(normalize=True)
    assert (shares - 1 / 3).abs().max() < 0.04
    assert len(shares) == 3


def test_what_is_searched_without_a_space_can_be_searched():
    config(space=DEFAULT_SPACE)
    for settings in draws(DEFAULT_SPACE, 50).to_dict("records"):
        config(**settings)


# What can be searched


@pytest.mark.parametrize(
    ("space", "message"),
    [
        pytest.param({"learning_rat": [1]}, "'learning_rat' cannot .* mean 'learning_rate'", id="no setting"),
        pytest.param({"seed": [1, 2]}, "'seed' cannot be searched", id="the seed"),
        pytest.param({"target": ["a", "b"]}, "'target' cannot be searched", id="what is learned"),
        pytest.param({"test": [0.1, 0.2]}, "'test' cannot be searched", id="the split"),
        pytest.param({"epochs": 3}, "epochs must be a list of values or a range .*found 3", id="a value"),
        pytest.param({"decay": "linear"}, "decay must be a list of values .*found 'linear'", id="a text"),
        pytest.param({"decay": ["linear", "odd"]}, "decay cannot be 'odd': .*one of 'linear'", id="no such decay"),
        pytest.param({"batch_size": [8, 0]}, "batch_size cannot be 0: .*at least 1", id="out of bounds"),
        pytest.param({"epochs": [1, "x"]}, "epochs cannot be 'x': .*must be float", id="text among numbers"),
        pytest.param({"batch_size": {"low": 8.0, "high": 16.5}}, "batch_size cannot be 16.5: .*must be int", id="half"),
        pytest.param({"epochs": {"low": 1, "high": float("inf")}}, "low < high", id="no end"),
        pytest.param({"epochs": []}, r"epochs must be a list of values .*found \[\]", id="no value"),
        pytest.param({"epochs": {"low": 3, "high": 3}}, "low < high", id="no range"),
        pytest.param({"epochs": {"high": 3}}, r"low = …, high = … \} .*found \{'high': 3\}", id="half a range"),
        pytest.param({"epochs": {"low": "1", "high": 3}}, "of numbers with low < high", id="text in a range"),
        pytest.param({"epochs": {"low": 1, "high": 3, "step": 1}}, "epochs must be a range", id="step"),
        pytest.param({"weight_decay": {"low": 0, "high": 1, "log": True}}, r"above 0 with log = true", id="log of 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_searched_is_refused(space, message):
    with pytest.raises(ConfigError, match=f"search.space: .*{message}"):
        config(space=space)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"trials": -1}, r"search\.trials must be at least 0, found -1", id="trials"),
        pytest.param({"trials": 0}, r"search\.space is given, but search\.trials is 0", id="a space for nothing"),
        pytest.param({"engine": "optun"}, r"search\.engine must be one of 'random'.*'optun'", id="engine"),
    ],
)
def test_settings_out_of_bounds_are_refused_by_name(changes, message):
    with pytest.raises(ConfigError, match=message):
        config(**changes)


# Trials


@pytest.fixture(scope="module")
def task(few):
    shuffled = few.select(np.random.default_rng(0).permutation(120)[:100])
    return labelled_cells(shuffled, ["cell_type"], rng=np.random.default_rng(0))


def searched(task, base, work, **changes):
    return search(task, base, config(**changes), Split(TRAIN, VALIDATION), work=work)


@pytest.fixture(scope="module")
def four(task, base, tmp_path_factory):
    work = tmp_path_factory.mktemp("four")
    return *searched(task, base, work), work


def test_there_is_a_row_a_trial_with_its_settings_the_best_first(four):
    _, table, _ = four
    assert table.columns.tolist() == ["trial", *SPACE, SELECTION, "epoch"]
    assert sorted(table["trial"]) == [1, 2, 3, 4]
    assert table[SELECTION].is_monotonic_decreasing
    assert table[SELECTION].nunique() > 1, "all trials are equally good, so nothing is tested"


def test_the_best_settings_are_used_and_nothing_else_changes(four):
    best, table, _ = four
    assert best == with_settings(config(), **table.loc[0, list(SPACE)].to_dict())


def test_trials_are_reproducible_and_more_trials_begin_with_the_same(four, task, base, tmp_path, caplog):
    """Drawn one by one from the seed, so that a search can be made longer; the log says what each reached."""
    _, table, _ = four
    with caplog.at_level(logging.INFO, logger="geneformer_repro"):
        _, one = searched(task, base, tmp_path, trials=1)
    pd.testing.assert_frame_equal(one, table[table["trial"] == 1].reset_index(drop=True))
    said = [json.loads(message) for message in caplog.messages if '"trial"' in message]
    assert said == [{"event": "trial", **one.loc[0].to_dict()}]


def test_finished_trials_are_not_repeated(four, task, base, monkeypatch):
    best, table, work = four
    monkeypatch.setattr(CellProblem, "train", lambda *given, **options: pytest.fail("trained again"))
    again, same = searched(task, base, work)
    pd.testing.assert_frame_equal(same, table)
    assert again == best


def test_a_search_that_was_cut_off_goes_on_with_the_next_trial(four, task, base, tmp_path, monkeypatch):
    steps, reached = [], four[1].set_index("trial")

    def train(*given, step, **options):
        """Stand in for the training: what it would find is known."""
        steps.append(step)
        if len(steps) == 3:
            raise KeyboardInterrupt
        known = reached.loc[int(step.split()[1])]
        return None, pd.DataFrame({"epoch": [known["epoch"]], f"eval_{SELECTION}": [known[SELECTION]]})

    monkeypatch.setattr(CellProblem, "train", train)
    with pytest.raises(KeyboardInterrupt):
        searched(task, base, tmp_path)
    _, table = searched(task, base, tmp_path)
    assert steps == [f"trial {i} of 4" for i in (1, 2, 3, 3, 4)]
    pd.testing.assert_frame_equal(table, four[1])


def test_of_a_finished_trial_only_its_result_is_kept(four):
    names = {path.name for path in four[2].iterdir()}
    assert names == {f"trial-{i}.json{digest}" for i in (1, 2, 3, 4) for digest in ("", ".sha256")}


def test_an_untrained_network_wins_no_trial():
    history = pd.DataFrame({"epoch": [0.0, 1, 2], f"eval_{SELECTION}": [0.9, 0.2, 0.3]})
    assert module._best(history) == {SELECTION: 0.3, "epoch": 2.0}
    started = history.assign(epoch=[np.nan, 1, 2])  # as the first entry of a log may be
    assert module._best(started) == {SELECTION: 0.3, "epoch": 2.0}


# Other engines


SHARED = {"learning_rate": {"low": 1e-5, "high": 1e-2, "log": True}, "warmup_steps": {"low": 0.0, "high": 0.5}}


@pytest.fixture(scope="module")
def by_optuna(task, base, tmp_path_factory):
    pytest.importorskip("optuna")
    work = tmp_path_factory.mktemp("optuna")
    first = searched(task, base, work, engine="optuna", space=SHARED, trials=1)
    return *searched(task, base, work, engine="optuna", space=SHARED, trials=2), first


def test_optuna_proposes_settings_within_the_space_and_the_best_are_used(by_optuna):
    best, table, _ = by_optuna
    assert table.columns.tolist()[:3] == ["trial", *SHARED]
    assert sorted(table["trial"]) == [1, 2]
    assert table["learning_rate"].between(1e-5, 1e-2).all()
    assert table[SELECTION].is_monotonic_decreasing
    assert best.training.learning_rate == table["learning_rate"][0]


def test_optuna_is_reproducible_and_goes_on_with_its_trials(by_optuna, task, base, tmp_path):
    _, two, (_, one) = by_optuna
    _, again = searched(task, base, tmp_path, engine="optuna", space=SHARED, trials=1)
    for table in (again, two[two["trial"] == 1].reset_index(drop=True)):
        pd.testing.assert_frame_equal(table, one)


@pytest.mark.parametrize("engine", ["optuna", "ray"])
def test_what_another_engine_cannot_search_is_refused_with_the_one_that_can(task, base, tmp_path, engine):
    with pytest.raises(
        ConfigError, match=f"'pooling' cannot be searched by {engine}, only .*Use search.engine='random'"
    ):
        searched(task, base, tmp_path, engine=engine)


# Within a run


@pytest.fixture(scope="module")
def run(base, few, tmp_path_factory):
    real, shown, out = CellProblem.train, [], tmp_path_factory.mktemp("run") / "clf"

    def recording(problem, *given, step, **options):
        if step.startswith("trial"):
            shown.append(problem)
        return real(problem, *given, step=step, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CellProblem, "train", recording)
        patch.setattr(results, "figures", lambda evaluation: {})
        patch.setattr(results, "write_page", lambda *given, **options: None)
        return finetune(base, few, config(trials=2), out=out), shown, out


def test_a_trial_is_not_even_handed_the_test_cells(run):
    result, shown, _ = run
    tested = result.split["part"] == "test"
    assert len(shown) == 2
    for task in shown:
        assert sorted(task.cells.cell_names) == sorted(result.split["cell"][~tested])
        assert sorted(task.obs.index) == sorted(result.split["cell"][~tested])


def test_the_classifier_has_the_best_settings_and_the_trials_are_written(run):
    result, _, out = run
    best = result.trials.iloc[0]
    assert result.checkpoint.head.pooling == best["pooling"]
    highest = result.history["learning_rate"].max()
    assert highest <= best["learning_rate"] <= 10 * highest
    written = pd.read_csv(out / "trials.tsv", sep="\t")
    pd.testing.assert_frame_equal(written, result.trials)
