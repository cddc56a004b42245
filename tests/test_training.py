import contextlib
import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import geneformer_repro as gf
from geneformer_repro.batching import collate
from geneformer_repro.config import ConfigError
from geneformer_repro.model import IGNORED, MaskedGeneModel, bert_config
from geneformer_repro.tokenizer.vocabulary import Vocabulary
from geneformer_repro.training import CellExamples, TrainConfig, resumable, train

IDENTITY = {"step": "pretrain", "config": {"epochs": 3, "seed": 0}, "cells": "aaaa"}
N_CELLS, BATCH_SIZE = 16, 4
STEPS_AN_EPOCH = N_CELLS // BATCH_SIZE
Weights = dict[str, np.ndarray]


class CutOffError(Exception):
    """Stands for whatever ends a run: a signal, the power, the queue."""


class Run(NamedTuple):
    """A finished training."""

    weights: Weights
    history: pd.DataFrame
    log: list[dict[str, Any]]


class Watch:
    """What a run does to its surroundings: the batches it asks for, how and with which weights it is scored."""

    def __init__(self, vocabulary: Vocabulary, scores: Iterator[float] | None = None, cut_off_at: int = 0) -> None:
        self.vocabulary, self._scores, self._cut_off_at = vocabulary, scores, cut_off_at
        self.batches: list[list[tuple[int, ...]]] = []
        self.weights: list[Weights] = []
        self.modes: list[tuple[bool, bool]] = []

    def collate(self, cells: list[np.ndarray]) -> dict[str, Tensor]:
        """Every gene is to be named, none is hidden."""
        self.batches.append([tuple(cell.tolist()) for cell in cells])
        batch = collate(cells, self.vocabulary)
        labels = batch["input_ids"].where(batch.pop("pooled_mask"), IGNORED)
        return batch | {"labels": labels}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        if len(self.weights) + 1 == self._cut_off_at:
            raise CutOffError
        self.weights.append(weights(model))
        self.modes.append((model.training, torch.is_grad_enabled()))
        return {"score": next(self._scores) if self._scores else 0.0}


def weights(model: nn.Module) -> Weights:
    return {name: weight.detach().cpu().numpy().copy() for name, weight in model.state_dict().items()}


def assert_same(one: Weights, other: Weights) -> None:
    assert one.keys() == other.keys()
    for name, weight in one.items():
        np.testing.assert_array_equal(weight, other[name], err_msg=name)


def config(**changes: Any) -> TrainConfig:
    options = {"epochs": 3, "batch_size": BATCH_SIZE, "learning_rate": 1e-3, "warmup_steps": 0} | changes
    return TrainConfig(**options)


@pytest.fixture(scope="module")
def untrained(vocabulary: Vocabulary) -> MaskedGeneModel:
    """What every run starts from."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MaskedGeneModel(bert_config("tiny", dataclasses.replace(vocabulary, max_length=80)))


@pytest.fixture(scope="module")
def examples(cells: gf.TokenizedDataset) -> CellExamples:
    """The tops of sixteen cells."""
    return CellExamples([12 + i for i in range(N_CELLS)], lambda i: cells[i][: 12 + i])


@pytest.fixture(scope="module")
def run(untrained: MaskedGeneModel, examples: CellExamples, tmp_path_factory) -> Callable[..., Run]:
    """Train a copy of the untrained model."""

    def start(watch: Watch, how: TrainConfig | None = None, *, work: Path | None = None, **options: Any) -> Run:
        work = work or tmp_path_factory.mktemp("work")
        model = MaskedGeneModel(untrained.config)
        model.load_state_dict(untrained.state_dict())
        options = {"examples": examples, "collate": watch.collate, "evaluate": watch.evaluate} | options
        history = train(model, config=how or config(), work=work, step="teach", **options)
        lines = (work / "log.jsonl").read_text().splitlines()
        return Run(weights(model), history, [json.loads(line) for line in lines])

    return start


@pytest.fixture
def watch(vocabulary: Vocabulary) -> Watch:
    return Watch(vocabulary)


@pytest.fixture(scope="module")
def watched(vocabulary: Vocabulary) -> Watch:
    """Saw the whole run."""
    return Watch(vocabulary)


@pytest.fixture(scope="module")
def whole(run: Callable[..., Run], watched: Watch) -> Run:
    """Three epochs without interruption."""
    return run(watched)


@pytest.fixture(scope="module", params=[2, 3], ids=["in_epoch_1", "in_epoch_2"])
def resumed(request, run, vocabulary: Vocabulary, tmp_path_factory) -> Run:
    """Cut off at the end of an epoch, and gone on with."""
    work = tmp_path_factory.mktemp("cut")
    with pytest.raises(CutOffError):
        run(Watch(vocabulary, cut_off_at=request.param), work=work)
    return run(Watch(vocabulary), work=work)


class TestConfig:
    @pytest.mark.parametrize(
        ("field", "value", "bound"),
        [
            ("epochs", 0, "above 0"),
            ("batch_size", 0, "at least 1"),
            ("learning_rate", -1e-3, "above 0"),
            ("learning_rate", float("nan"), "above 0"),
            ("warmup_steps", -1, "at least 0"),
        ],
    )
    def test_a_value_out_of_bounds_is_named_with_its_bound(self, field, value, bound):
        with pytest.raises(ConfigError, match=f"TrainConfig.{field} must be {bound}, found {value!r}"):
            config(**{field: value})

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            pytest.param({"trainer": {"lerning_rate": 1e-3}}, "lerning_rate", id="unknown_field_of_the_trainer"),
            pytest.param({"trainer": {"optim": "best"}}, "best is not a valid OptimizerNames", id="unknown_value"),
        ],
    )
    def test_what_transformers_does_not_know_is_refused(self, run, watch, changes, message):
        with pytest.raises(ConfigError, match=rf"TrainingArguments refuses .*{message}"):
            run(watch, config(**changes))

    def test_a_warm_up_longer_than_the_run_is_refused(self, run, watch):
        message = (
            "warmup_steps is 10000 but the run has only 12 steps, so the learning rate would never reach 0.001. "
            "Give fewer steps, or a share of all steps such as warmup_steps=0.1"
        )
        with pytest.raises(ConfigError, match=message):
            run(watch, config(warmup_steps=10_000))

    @pytest.mark.parametrize("warmup_steps", [0.5, 2], ids=["share", "steps"])
    def test_the_learning_rate_rises_over_the_warm_up(self, run, watch, warmup_steps):
        rates = run(watch, config(epochs=1, warmup_steps=warmup_steps)).history["learning_rate"].dropna()
        np.testing.assert_allclose(rates, [0, 5e-4, 1e-3, 5e-4])

    def test_the_learning_rate_falls_in_a_line_by_default(self, whole):
        np.testing.assert_allclose(whole.history["learning_rate"].dropna(), 1e-3 * (1 - np.arange(12) / 12))

    @pytest.mark.parametrize(
        ("decay", "shares"),
        [("constant_with_warmup", [1, 1, 1, 1]), ("cosine", [(1 + np.cos(np.pi * i / 4)) / 2 for i in range(4)])],
    )
    def test_the_learning_rate_falls_as_asked(self, run, watch, decay, shares):
        rates = run(watch, config(epochs=1, decay=decay)).history["learning_rate"].dropna()
        np.testing.assert_allclose(rates, 1e-3 * np.array(shares))

    def test_fields_of_the_trainer_win(self, run, watch):
        given = {"max_steps": 3, "learning_rate": 5e-4, "warmup_steps": 1, "per_device_train_batch_size": 2}
        history = run(watch, config(trainer=given)).history
        assert history["step"].max() == 3
        assert history["learning_rate"].max() == 5e-4
        assert {len(batch) for batch in watch.batches} == {2}


class TestTrain:
    def test_the_model_learns_in_place(self, run, watch):
        losses = run(watch, config(epochs=8, learning_rate=5e-3)).history["loss"].dropna()
        assert losses.iloc[-1] < losses.iloc[0] - 0.5

    def test_every_weight_takes_part(self, whole, untrained):
        before = weights(untrained)
        for name in before:
            assert (whole.weights[name] != before[name]).any(), name

    def test_the_history_has_a_row_for_each_log_entry(self, whole):
        history = whole.history
        assert history["step"][history["loss"].notna()].tolist() == list(range(1, 3 * STEPS_AN_EPOCH + 1))
        assert history["step"][history["eval_score"].notna()].tolist() == [0, 4, 8, 12]
        assert history["epoch"][history["eval_score"].notna()].tolist() == [0, 1, 2, 3]

    def test_the_model_is_scored_in_evaluation_mode_before_the_first_and_after_every_epoch(self, whole, watched):
        assert watched.modes == [(False, False)] * 4

    def test_scores_before_the_first_epoch_are_those_of_the_untrained_model(self, whole, watched, untrained):
        assert_same(watched.weights[0], weights(untrained))

    def test_the_log_has_a_json_line_for_each_entry(self, whole):
        assert [entry["step"] for entry in whole.log] == whole.history["step"].tolist()
        assert {entry["event"] for entry in whole.log} == {"teach"}
        logged = pd.DataFrame(whole.log)
        pd.testing.assert_frame_equal(logged[whole.history.columns], whole.history)
        assert (logged[["seconds", "cells_per_second"]] >= 0).all(axis=None)

    def test_cells_per_second_counts_the_cells_that_were_seen(self, whole):
        last = whole.log[-1]
        np.testing.assert_allclose(last["cells_per_second"] * last["seconds"], 3 * N_CELLS, rtol=0.4)

    def test_cells_per_second_counts_the_cells_of_half_an_epoch(self, run, watch):
        last = run(watch, config(epochs=0.5)).log[-1]
        np.testing.assert_allclose(last["cells_per_second"] * last["seconds"], N_CELLS / 2, rtol=0.4)

    def test_every_cell_is_seen_once_an_epoch(self, whole, watched, cells):
        expected = sorted(tuple(cells[i][: 12 + i].tolist()) for i in range(N_CELLS))
        epochs = [watched.batches[i : i + STEPS_AN_EPOCH] for i in range(0, 3 * STEPS_AN_EPOCH, STEPS_AN_EPOCH)]
        for epoch in epochs:
            assert sorted(cell for batch in epoch for cell in batch) == expected
        assert epochs[0] != epochs[1]

    def test_cells_of_similar_length_share_a_batch(self, run, watch):
        many = CellExamples([10 + i for i in range(64)], lambda i: np.full(10 + i, 7))
        run(watch, config(epochs=1), examples=many)
        lengths = [[len(cell) for cell in batch] for batch in watch.batches]
        any_four = 64 * 3 / 5
        assert sorted(np.concatenate(lengths)) == many.lengths
        assert np.mean([np.ptp(batch) for batch in lengths]) < any_four / 2

    def test_the_last_epoch_is_kept(self, whole, watched):
        assert_same(whole.weights, watched.weights[3])

    @pytest.mark.parametrize(("scores", "best"), [((0.0, 0.9, 0.1, 0.5), 1), ((0.9, 0.2, 0.1, 0.3), 3)])
    def test_the_best_epoch_is_kept_where_asked(self, run, vocabulary, scores, best):
        watch = Watch(vocabulary, scores=iter(scores))
        assert_same(run(watch, best_by="score").weights, watch.weights[best])

    def test_the_same_seed_gives_the_same_weights(self, run, watch, whole):
        assert_same(run(watch).weights, whole.weights)

    def test_another_seed_gives_another_order(self, run, watch, whole, watched):
        run(watch, config(seed=1, epochs=1))
        assert watch.batches != watched.batches[:STEPS_AN_EPOCH]

    def test_a_loss_that_is_not_finite_stops_the_run(self, run, watch):
        message = (
            r"The loss became nan at step 1; lower the learning rate \(1e\+30\), or lengthen the warm-up \(0 steps"
        )
        with pytest.raises(gf.InputError, match=message):
            run(watch, config(learning_rate=1e30))


class TestResuming:
    def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(self, resumed, whole):
        assert_same(resumed.weights, whole.weights)

    def test_a_resumed_run_has_the_history_of_an_uninterrupted_one(self, resumed, whole):
        columns = ["step", "epoch", "loss", "eval_score", "learning_rate"]
        pd.testing.assert_frame_equal(resumed.history[columns], whole.history[columns])

    def test_a_resumed_run_does_not_repeat_finished_epochs(self, run, vocabulary, tmp_path):
        with pytest.raises(CutOffError):
            run(Watch(vocabulary, cut_off_at=4), work=tmp_path)
        last = Watch(vocabulary)
        run(last, work=tmp_path)
        seen = [cell for batch in last.batches for cell in batch]
        assert len(seen) == N_CELLS

    def test_a_resumed_run_keeps_the_best_epoch_from_before(self, run, vocabulary, tmp_path):
        before = Watch(vocabulary, scores=iter([0.0, 0.9, 0.1]), cut_off_at=4)
        with pytest.raises(CutOffError):
            run(before, work=tmp_path, best_by="score")
        resumed = run(Watch(vocabulary), work=tmp_path, best_by="score")
        assert_same(resumed.weights, before.weights[1])

    def test_a_run_cut_off_after_its_last_epoch_is_only_opened(self, run, vocabulary, tmp_path, whole):
        run(Watch(vocabulary), work=tmp_path)
        again = Watch(vocabulary)
        assert_same(run(again, work=tmp_path).weights, whole.weights)
        assert again.batches == []

    def test_a_half_written_checkpoint_is_passed_over(self, run, vocabulary, tmp_path, whole):
        with pytest.raises(CutOffError):
            run(Watch(vocabulary, cut_off_at=3), work=tmp_path)
        half = tmp_path / f"checkpoint-{2 * STEPS_AN_EPOCH}"
        half.mkdir()
        shutil.copy(tmp_path / f"checkpoint-{STEPS_AN_EPOCH}" / "model.safetensors", half)
        assert_same(run(Watch(vocabulary), work=tmp_path).weights, whole.weights)


def cut_off(out: Path) -> None:
    """Leave the remains of a run."""
    with contextlib.suppress(CutOffError), resumable(out, IDENTITY) as work:
        (work / "checkpoint-8").mkdir()
        raise CutOffError


class TestResumable:
    def test_the_work_folder_lies_beside_the_output_and_goes_at_the_end(self, tmp_path):
        with resumable(tmp_path / "base", IDENTITY) as work:
            assert work == tmp_path / "base.partial"
            assert work.is_dir()
        assert list(tmp_path.iterdir()) == []

    def test_folders_above_the_output_are_made(self, tmp_path):
        with resumable(tmp_path / "runs" / "new" / "base", IDENTITY) as work:
            assert work.is_dir()

    def test_the_work_survives_a_crash_for_the_same_settings(self, tmp_path):
        cut_off(tmp_path / "base")
        with resumable(tmp_path / "base", json.loads(json.dumps(IDENTITY))) as work:
            assert (work / "checkpoint-8").is_dir()

    @pytest.mark.parametrize(
        ("changes", "difference"),
        [
            pytest.param({"cells": "bbbb"}, "cells: 'aaaa' there, 'bbbb' now", id="cells"),
            pytest.param({"base": "cccc"}, "base: None there, 'cccc' now", id="base"),
        ],
    )
    def test_other_settings_are_refused_naming_the_difference(self, tmp_path, changes, difference):
        cut_off(tmp_path / "base")
        message = rf"base.partial holds an unfinished run with other settings \({difference}\).*overwrite=True \(--over"
        with pytest.raises(FileExistsError, match=message), resumable(tmp_path / "base", IDENTITY | changes):
            pass

    def test_a_field_that_is_the_same_is_not_named_as_the_difference(self, tmp_path):
        cut_off(tmp_path / "base")
        other = IDENTITY | {"config": {"epochs": 2, "seed": 0}}
        with (
            pytest.raises(FileExistsError, match=r"epochs.*3 there, 2 now") as caught,
            resumable(tmp_path / "base", other),
        ):
            pass
        assert "seed" not in str(caught.value)

    @pytest.mark.parametrize("changes", [{}, {"cells": "bbbb"}], ids=["same_settings", "other_settings"])
    def test_overwriting_drops_an_unfinished_run(self, tmp_path, changes):
        cut_off(tmp_path / "base")
        with resumable(tmp_path / "base", IDENTITY | changes, overwrite=True) as work:
            assert not (work / "checkpoint-8").exists()

    def test_an_output_that_exists_is_refused_before_the_work(self, tmp_path):
        (tmp_path / "base").mkdir()
        with (
            pytest.raises(FileExistsError, match=r"base already exists.*overwrite=True"),
            resumable(tmp_path / "base", {}),
        ):
            raise AssertionError("work began")
        assert not (tmp_path / "base.partial").exists()

    def test_a_folder_that_is_no_result_is_refused_even_to_overwrite(self, tmp_path):
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis.tex").touch()
        message = "mine is a folder without provenance.json.*not replaced"
        with pytest.raises(FileExistsError, match=message), resumable(tmp_path / "mine", {}, overwrite=True):
            raise AssertionError("work began")

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_a_folder_of_somebody_elses_in_the_place_of_the_work_is_spared(self, tmp_path, overwrite):
        (tmp_path / "base.partial").mkdir()
        (tmp_path / "base.partial" / "thesis.tex").touch()
        with (
            pytest.raises(FileExistsError, match=r"base\.partial"),
            resumable(tmp_path / "base", IDENTITY, overwrite=overwrite),
        ):
            pass
        assert (tmp_path / "base.partial" / "thesis.tex").exists()
