"""Every method on one split: who runs, on which cells, and what a run that was cut off need not repeat."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from forking import several

from geneformer_repro import processes
from geneformer_repro.finetuning.baselines import Features
from geneformer_repro.finetuning.kinds import classes, numbers
from geneformer_repro.finetuning.kinds.kind import FINE_TUNED, RANDOM
from geneformer_repro.finetuning.methods import NETWORKS, Comparison, kept
from geneformer_repro.finetuning.problems.cells import labelled_cells
from geneformer_repro.finetuning.settings.networks import NetworkConfig
from geneformer_repro.finetuning.splits import Split
from geneformer_repro.tokenizer.counts import rank_values

TRAIN, VALIDATION, TEST = np.arange(60), np.arange(60, 80), np.arange(80, 120)
CONFIG = NetworkConfig(training={"epochs": 1, "batch_size": 30, "learning_rate": 1e-3, "warmup_steps": 0})


@pytest.fixture(scope="module")
def shuffled(few):
    """A class with gaps and a number."""
    cells = few.select(np.random.default_rng(0).permutation(120))
    return labelled_cells(cells, ["partly", "flag", "size"], regression=["size"], rng=np.random.default_rng(0))


class Asked:
    """Two methods that write down what they are given."""

    def __init__(self, patch):
        self.calls = []
        patch.setattr(classes, "CLASS_METHODS", {"even": self.even, "unable": lambda *given: None})
        patch.setattr(numbers, "NUMBER_METHODS", {"zero": self.zero})

    def even(self, features, train, codes, n_classes, test, seed):
        self.calls.append((train, codes, test))
        return np.full((len(test), n_classes), 1 / n_classes)

    def zero(self, features, train, values, test, seed):
        self.calls.append((train, values, test))
        return np.zeros(len(test))


def compared(task, start, work, *, with_model=True, **changes):
    features = Features(counts=None, ranks=rank_values(task.cells), embedding=np.zeros((len(task.cells), 2)))
    methods = dataclasses.replace(Comparison(task, start, features), **changes)
    return methods.run(CONFIG, Split(TRAIN, VALIDATION, TEST), with_model=with_model, work=work)


@pytest.fixture(scope="module")
def run(shuffled, base, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        asked = Asked(patch)
        work = tmp_path_factory.mktemp("work")
        return compared(shuffled, base, work), asked, work


def test_the_methods_of_every_target_come_in_the_order_of_the_table(run):
    outcome, _, _ = run
    assert [list(of_target) for of_target in outcome.predicted] == [
        [FINE_TUNED, "even", "unable", RANDOM],
        [FINE_TUNED, "even", "unable", RANDOM],
        [FINE_TUNED, "zero", RANDOM],
    ]


def test_a_class_has_probabilities_and_a_number_is_one(run):
    outcome, _, _ = run
    for of_target, n_classes in zip(outcome.predicted[:2], (3, 2), strict=True):
        assert of_target["unable"] is None
        for name in (FINE_TUNED, RANDOM):
            assert of_target[name].shape == (40, n_classes)
            np.testing.assert_allclose(of_target[name].sum(axis=1), 1)
    assert [one.shape for one in outcome.predicted[2].values()] == [(40,)] * 3


def test_the_random_network_is_another_one(run):
    outcome, _, _ = run
    for of_target in outcome.predicted:
        assert not np.allclose(of_target[FINE_TUNED], of_target[RANDOM])


def test_simple_methods_are_given_the_training_cells_that_have_a_label_and_no_other_labels(run, shuffled):
    _, asked, _ = run
    for i, (train, labels, test) in enumerate(asked.calls):
        known = TRAIN[~np.isnan(shuffled.labels[TRAIN, i])]
        np.testing.assert_array_equal(train, known)
        np.testing.assert_array_equal(labels, shuffled.labels[known, i])
        np.testing.assert_array_equal(test, TEST)
    assert 0 < len(asked.calls[0][0]) < len(asked.calls[1][0]) == 60


def test_what_is_finished_is_not_repeated(run, shuffled, base, monkeypatch):
    outcome, _, work = run
    again = Asked(monkeypatch)
    repeated = compared(shuffled, base, work)
    assert again.calls == []
    for first, second in zip(outcome.predicted, repeated.predicted, strict=True):
        for name, one in first.items():
            np.testing.assert_array_equal(one, second[name])


def test_labels_of_test_cells_do_not_change_a_prediction(run, shuffled, base, tmp_path, monkeypatch):
    """Nothing of them reaches any method, which is what makes the scores mean something."""
    outcome, _, _ = run
    labels = shuffled.labels.copy()
    labels[TEST] = labels[TEST][::-1]
    Asked(monkeypatch)
    mixed = compared(dataclasses.replace(shuffled, labels=labels), base, tmp_path)
    for first, second in zip(outcome.predicted, mixed.predicted, strict=True):
        for name, one in first.items():
            np.testing.assert_array_equal(one, second[name])


def test_without_features_and_other_networks_only_the_fine_tuned_one_runs(run, shuffled, base):
    outcome, _, work = run
    alone = compared(shuffled, base, work, features=None, networks=NETWORKS[:1])
    assert [list(of_target) for of_target in alone.predicted] == [[FINE_TUNED]] * 3
    np.testing.assert_array_equal(alone.predicted[0][FINE_TUNED], outcome.predicted[0][FINE_TUNED])


def test_what_is_finished_lies_under_names_that_say_what_it_is(run):
    _, _, work = run
    found = {str(path.relative_to(work)) for path in work.rglob("*") if path.is_file()}
    assert {name for name in found if not name.endswith(".sha256")} == {
        "methods/partly/even.npy", "methods/flag/even.npy", "methods/size/zero.npy", "random.npy",
        "random/history.json", "random/log.jsonl",
        "fine-tuned/history.json", "fine-tuned/log.jsonl", "fine-tuned/model.safetensors",
    }  # fmt: skip


def test_a_network_that_is_not_wanted_itself_leaves_predictions_and_history(run, shuffled, base, tmp_path):
    outcome, _, _ = run
    given = {"features": None, "networks": NETWORKS[:1], "with_model": False}
    for found in (compared(shuffled, base, tmp_path, **given) for _ in range(2)):
        assert found.model is None
        pd.testing.assert_frame_equal(found.history[["epoch", "eval_loss"]], outcome.history[["epoch", "eval_loss"]])
        for first, second in zip(outcome.predicted, found.predicted, strict=True):
            np.testing.assert_array_equal(first[FINE_TUNED], second[FINE_TUNED])
    names = {path.name for path in (tmp_path / "fine-tuned").iterdir()}
    assert names == {"history.json", "history.json.sha256", "log.jsonl"}


def test_of_two_processes_the_first_fits_and_the_other_has_its_numbers(tmp_path):
    def fit():
        (tmp_path / f"fitted by {processes.rank()}").touch()
        return np.arange(3.0) + 10 * processes.rank()

    several(lambda rank: np.testing.assert_array_equal(kept(tmp_path / "a.npy", fit), [0, 1, 2]), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"a.npy", "a.npy.sha256", "fitted by 0"}


def test_what_the_first_process_cannot_fit_stops_the_other_too(tmp_path):
    def run(rank):
        with pytest.raises(ValueError, match="too few"):
            kept(tmp_path / "a.npy", lambda: int("too few"))

    several(run, tmp_path)


def test_a_result_is_kept_and_nothing_is_not(tmp_path):
    made = kept(tmp_path / "a.npy", lambda: np.arange(3))
    np.testing.assert_array_equal(kept(tmp_path / "a.npy", lambda: pytest.fail("made twice")), made)
    assert kept(tmp_path / "b.npy", lambda: None) is None
    assert {path.name for path in tmp_path.iterdir()} == {"a.npy", "a.npy.sha256"}
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-1])
    np.testing.assert_array_equal(kept(tmp_path / "a.npy", lambda: np.arange(4)), np.arange(4))
