"""Engines that propose settings: how a trial is judged, and that nobody notices it from outside."""

import dataclasses
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from geneformer_repro.finetuning.networks import SELECTION
from geneformer_repro.finetuning.problems.cells import labelled_cells
from geneformer_repro.finetuning.search_engines import _best_so_far, search_settings
from geneformer_repro.finetuning.settings.cells import FinetuneConfig
from geneformer_repro.finetuning.splits import Split


def judged(*scores, steps=(0, 5, 10)):
    """What an engine is told after each scoring of a trial, where Trainer knows the best score of the epochs before."""
    state, told = SimpleNamespace(best_metric=None), []
    judge = _best_so_far(SimpleNamespace(state=state))
    for i, (state.global_step, score) in enumerate(zip(steps, scores, strict=True)):
        state.best_metric = max(scores[1:i], default=None)
        told.append(judge({f"eval_{SELECTION}": score}))
    return told


def test_a_trial_is_judged_by_its_best_epoch_and_never_by_the_untrained_model():
    assert judged(0.9, 0.3, 0.2) == [-np.inf, 0.3, 0.3]


def test_a_best_epoch_of_zero_counts():
    """As much of the variance explained as by the mean, and then less."""
    assert judged(0.9, 0.0, -0.5)[-1] == 0.0


def test_by_optuna_the_untrained_model_does_not_win_and_global_random_states_stay(few, base, tmp_path):
    pytest.importorskip("optuna")
    task = labelled_cells(few, ["cell_type"], rng=np.random.default_rng(0))
    config = FinetuneConfig(target="cell_type", training={"epochs": 2, "batch_size": 24})
    rows = np.arange(0, 120, 5)
    parts = task.training(base, config, Split(rows, rows))
    scores = iter([0.9, 0.3, 0.2])

    def states():
        return [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]  # noqa: NPY002

    before = states()
    training = dataclasses.replace(parts, score=lambda _: {SELECTION: next(scores)})
    space = {"learning_rate": [1e-3]}
    (trial,) = search_settings(training, space, n_trials=1, engine="optuna", work=tmp_path)
    assert trial == {"learning_rate": 1e-3, SELECTION: 0.3}
    assert states() == before
