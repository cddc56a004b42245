import json
import logging
import os
from dataclasses import replace

import cloudpickle
import numpy as np
import pandas as pd
import pytest
from forking import forked, status_of

import geneformer_repro as gf
from geneformer_repro.config import ConfigError
from geneformer_repro.expression import ExpressionInputs, ExpressionNetwork, InputScale
from geneformer_repro.finetuning import halving
from geneformer_repro.finetuning.expression_training import Examples, Trainee, train_expression
from geneformer_repro.finetuning.halving import default_space, halve
from geneformer_repro.finetuning.settings.samples import ExpressionTrainConfig, HalvingConfig
from geneformer_repro.heads import Head
from geneformer_repro.network_settings import ExpressionConfig
from geneformer_repro.targets import SurvivalTime

HEAD = Head((SurvivalTime("PFI", "PFI.time", (1.0,), 1.0, "cox"),))
CONFIG = HalvingConfig(n_trials=13, rungs=3, first_epochs=2, first_steps=4, space={
    "layers": [1, 2], "width": {"low": 16, "high": 40}, "activation": ["relu", "tanh"], "batch_size": [16, 0],
    "learning_rate": {"low": 1e-4, "high": 1e-1, "log": True}, "n_genes": [5, 9], "dropout": {"low": 0.0, "high": 0.7},
})  # fmt: skip


@pytest.fixture(scope="module")
def examples():
    """Training and validation rows of a cohort in which one gene kills."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(120, 9))
    time, event = rng.exponential(np.exp(-values[:, 4])) + 0.01, rng.random(120) < 0.7
    labels = np.column_stack([time, event, np.zeros(120)])
    inputs = ExpressionInputs({"expression": values}, {"expression": tuple("abcdefghi")})
    train, held_out = np.arange(80), np.arange(80, 120)
    scale = InputScale.fit(inputs.select(train))
    return (
        Examples.of(scale, inputs.select(train), labels[train], labels[train, 1]),
        Examples.of(scale, inputs.select(held_out), labels[held_out]),
    )


@pytest.fixture(scope="module")
def halved(examples, tmp_path_factory):
    return halve(*examples, HEAD, CONFIG, work=tmp_path_factory.mktemp("search"))


def as_text(halved):
    """All that two searches have in common; seconds are of the machine."""
    return halved.trials.drop(columns="seconds").to_csv(index=False)


def test_all_trials_stand_in_one_table_the_best_first(halved):
    trials = halved.trials
    assert CONFIG.sizes == [13, 5, 2]
    assert sorted(trials["trial"]) == list(range(1, 14))
    assert trials["rung"].tolist() == [3] * 2 + [2] * 3 + [1] * 8
    assert trials["epochs"].tolist() == [18] * 2 + [6] * 3 + [2] * 8
    assert trials["chosen"].tolist() == [True] + [False] * 12
    for _, of_rung in trials.groupby("rung"):
        assert of_rung["score"].is_monotonic_decreasing
    assert list(trials.columns) == [
        "trial", *CONFIG.space, "rung", "epochs", "epoch", "step", "score", "seconds", "chosen"
    ]  # fmt: skip
    assert (trials["seconds"] > 0).all()


def test_the_best_of_a_rung_go_on(examples, halved, tmp_path):
    first = halve(*examples, HEAD, replace(CONFIG, rungs=1), work=tmp_path)
    gone_on = set(halved.trials.loc[halved.trials["rung"] > 1, "trial"])
    assert gone_on == set(first.trials["trial"][:5])


def test_a_row_is_what_training_with_its_settings_gives(examples, halved):
    training, validation = examples
    best = halved.trials.iloc[0]
    assert (halved.network.width, halved.network.n_genes) == (best["width"], best["n_genes"])
    assert halved.training == replace(
        ExpressionTrainConfig(), learning_rate=best["learning_rate"], batch_size=best["batch_size"]
    )
    seed = int(np.random.SeedSequence([0, int(best["trial"])]).generate_state(1)[0])
    network = ExpressionNetwork(halved.network, HEAD, training.scale.first(halved.network.n_genes), seed=seed)
    config = replace(halved.training, epochs=18, min_steps=36)
    (trained,) = train_expression([Trainee(network, config, seed)], training, validation)
    assert (trained.epoch, trained.score) == (best["epoch"], pytest.approx(best["score"], rel=1e-4))


def test_a_search_finds_what_learns(halved):
    best, worst = halved.trials.iloc[0], halved.trials.iloc[-1]
    assert best["score"] > worst["score"] + 0.1
    assert best["learning_rate"] > 1e-3


def test_who_shares_the_work_in_which_order_changes_nothing(examples, halved, tmp_path, monkeypatch):
    """Workers that import torch take half a minute to start: here what they are sent is done in this process."""

    def backwards(shares, work, workers):
        assert workers == 2
        for share in reversed(shares):
            yield share, cloudpickle.loads(cloudpickle.dumps(work))(share)

    monkeypatch.setattr(halving, "by_processes", backwards)
    monkeypatch.setattr(halving, "die_with", lambda parent: None)
    assert as_text(halve(*examples, HEAD, CONFIG, work=tmp_path, workers=2)) == as_text(halved)


def test_stacks_are_dealt_by_their_work_the_longest_first():
    works = {1: 1.0, 2: 8.0, 3: 2.0, 4: 1.0, 5: 4.0}
    shares = halving._dealt([[1], [2], [3], [4], [5]], works, n_shares=4)
    assert shares == [[[2]], [[5]], [[3], [1], [4]]]


def test_a_killed_search_goes_on_to_the_same_result(examples, halved, tmp_path):
    def killed_in_the_second_rung():
        train = halving._Trials.train_share

        def killed(self, rung, stacks):
            if rung == 1:
                os.kill(os.getpid(), 9)
            train(self, rung, stacks)

        halving._Trials.train_share = killed
        halve(*examples, HEAD, CONFIG, work=tmp_path)

    assert status_of(forked(killed_in_the_second_rung, tmp_path / "log")) == -9
    kept = {path: path.read_bytes() for path in tmp_path.glob("rung-1/*.json")}
    assert kept
    damaged = next(iter(kept))
    damaged.write_text(damaged.read_text().replace("1", "2"))
    again = halve(*examples, HEAD, CONFIG, work=tmp_path)
    assert as_text(again) == as_text(halved)
    assert all(path.read_bytes() == content for path, content in kept.items() if path != damaged)


def test_another_score_chooses(examples, tmp_path):
    config = replace(CONFIG, n_trials=4, rungs=1)
    trials = halve(*examples, HEAD, config, work=tmp_path, score=lambda outputs: -float(outputs.std())).trials
    assert trials["score"].is_monotonic_decreasing
    assert (trials["score"] < 0).all()


def test_each_rung_is_a_line_that_a_machine_reads(examples, tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="geneformer_repro"):
        halve(*examples, HEAD, replace(CONFIG, n_trials=3), work=tmp_path)
    lines = [json.loads(record.getMessage()) for record in caplog.records if record.getMessage().startswith("{")]
    rungs = [line for line in lines if line["event"] == "rung"]
    assert [(line["rung"], line["networks"], line["epochs"]) for line in rungs] == [(1, 3, 2), (2, 1, 6)]
    assert lines[-1]["event"] == "search"
    assert lines[-1]["epochs"] == 12


def test_what_is_searched_where_nothing_is_said():
    space = default_space(1526, 3000)
    assert space["n_genes"] == [500, 1000, 1526]
    assert space["batch_size"] == [32, 64, 128, 256, 512, 0]
    assert default_space(300, 100)["n_genes"] == [300]
    assert default_space(300, 100)["batch_size"] == [32, 64, 0]
    assert HalvingConfig().sizes == [750, 250, 84, 28]


def test_a_search_in_which_nothing_is_finite_says_so(examples, tmp_path):
    config = HalvingConfig(n_trials=2, space={"learning_rate": [1e30], "optimiser": ["sgd"]})
    with pytest.raises(gf.InputError, match=r"None of 2 networks came to a finite score. Lower learning_rate"):
        halve(*examples, HEAD, config, work=tmp_path, network=ExpressionConfig(width=16))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"n_trials": 0}, "halving.n_trials must be at least 1"),
        ({"reduction": 1}, "halving.reduction must be at least 2"),
        ({"space": {"widht": [1]}}, "halving.space: 'widht' cannot be searched. Did you mean 'width'"),
        ({"space": {"epochs": [1]}}, "halving.space: 'epochs' cannot be searched"),
        ({"space": {"width": 3}}, "width must be a list of values or a range"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        HalvingConfig(**settings)


def test_a_value_out_of_bounds_is_refused_before_anything_is_trained(examples, tmp_path):
    config = HalvingConfig(n_trials=3, space={"layers": [9]})
    with pytest.raises(ConfigError, match=r"network.layers must be between 1 and 4, found 9"):
        halve(*examples, HEAD, config, work=tmp_path)
    assert not list(tmp_path.rglob("*.json"))


def test_missing_scores_rank_last(examples, tmp_path):
    config = HalvingConfig(n_trials=6, rungs=2, space={"learning_rate": [1e30, 1e-2], "optimiser": ["sgd"]})
    trials = halve(*examples, HEAD, config, work=tmp_path, network=ExpressionConfig(width=16)).trials
    assert trials["score"].isna().any()
    assert pd.notna(trials["score"][0])
    assert (trials["learning_rate"][trials["score"].isna()] == 1e30).all()
