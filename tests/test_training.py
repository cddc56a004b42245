import contextlib
import copy
import dataclasses
import json
import logging
import os
import random
import re
import resource
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import BertForMaskedLM, Trainer

import geneformer_repro as gf
from geneformer_repro.batching import end_to_end
from geneformer_repro.checkpoint import quiet_transformers
from geneformer_repro.config import ConfigError
from geneformer_repro.encoder import IGNORED
from geneformer_repro.errors import MissingExtraError
from geneformer_repro.model import MaskedGeneModel, bert_config
from geneformer_repro.tokenizer.vocabulary import Vocabulary
from geneformer_repro.training import loop
from geneformer_repro.training.config import CellExamples, ParameterGroup, TrainingRun, join_processes
from geneformer_repro.training.log import peak_flops
from geneformer_repro.training.loop import Interrupted, train
from geneformer_repro.training.settings import _WITHOUT_EFFECT, TrainConfig, trainer_fields

pytestmark = pytest.mark.slow

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
    in_place: bool
    work: Path


class Watch:
    """What a run does to its surroundings: what it trains on, how and with which weights it is scored.

    `at_step` does something before a step, `cut_off_at` ends the run at so many-eth scoring.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        scores: Iterator[float] | None = None,
        cut_off_at: int = 0,
        at_step: Mapping[int, Callable[[], None]] | None = None,
    ) -> None:
        self.vocabulary, self._scores, self._cut_off_at, self._at_step = vocabulary, scores, cut_off_at, at_step or {}
        self.batches: list[list[tuple[int, ...]]] = []
        self.steps: list[int] = []
        self.weights: list[Weights] = []
        self.modes: list[tuple[bool, bool]] = []

    def collate(self, cells: list[np.ndarray]) -> dict[str, Tensor]:
        """Every gene is to be named, none is hidden."""
        batch = end_to_end(cells, self.vocabulary).inputs
        labels = batch["input_ids"].where(batch.pop("weights"), IGNORED)
        return batch | {"labels": labels}

    def see(self, step: int, batch: Mapping[str, Tensor]) -> None:
        self._at_step.get(step, lambda: None)()
        self.batches.append([tuple(ids.tolist()) for ids in batch["input_ids"].split(batch["lengths"])])
        self.steps.append(step)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Tell one state of the weights from another."""
        if len(self.weights) + 1 == self._cut_off_at:
            raise CutOffError
        self.weights.append(weights(model))
        self.modes.append((model.training, torch.is_grad_enabled()))
        norm = float(np.linalg.norm(np.concatenate([weight.ravel() for weight in self.weights[-1].values()])))
        return {"score": next(self._scores) if self._scores else norm}


def cut_off_now() -> None:
    raise CutOffError


def ask_to_stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def weights(model: nn.Module) -> Weights:
    return {name: weight.detach().cpu().numpy().copy() for name, weight in model.state_dict().items()}


def assert_same(one: Weights, other: Weights) -> None:
    assert one.keys() == other.keys()
    for name, weight in one.items():
        np.testing.assert_array_equal(weight, other[name], err_msg=name)


def assert_same_history(one: Run, other: Run) -> None:
    """As they are written, to the last byte, and no entry twice."""
    assert one.history.to_csv(sep="\t") == other.history.to_csv(sep="\t")
    for run in (one, other):
        for name in ("loss", "eval_score"):
            logged = [entry["step"] for entry in run.log if name in entry]
            assert logged == run.history["step"][run.history[name].notna()].tolist()
            assert len(logged) == len(set(logged))


EVERY_FIVE = {"save_strategy": "steps", "save_steps": 5}


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
    return CellExamples([12 + i for i in range(N_CELLS)], lambda i, epoch: cells[i][: 12 + i])


@pytest.fixture(scope="module")
def run(untrained: MaskedGeneModel, examples: CellExamples, tmp_path_factory) -> Callable[..., Run]:
    """Train a copy of the untrained model."""

    def start(
        watch: Watch,
        how: TrainConfig | None = None,
        *,
        work: Path | None = None,
        seed: int = 0,
        dropout: float = 0.02,
        **options: Any,
    ) -> Run:
        work = work or tmp_path_factory.mktemp("work")
        shape = copy.deepcopy(untrained.config)
        shape.hidden_dropout_prob = shape.attention_probs_dropout_prob = dropout
        with torch.random.fork_rng():
            model = MaskedGeneModel(shape)
        model.load_state_dict(untrained.state_dict())
        options = {"examples": examples, "collate": watch.collate, "evaluate": watch.evaluate, "seed": seed} | options
        step = Trainer.training_step

        def watched_step(trainer: Trainer, model: nn.Module, inputs: dict[str, Any], *given: Any) -> Tensor:
            watch.see(trainer.state.global_step + 1, inputs)
            return step(trainer, model, inputs, *given)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Trainer, "training_step", watched_step)
            trained, history = train(model, TrainingRun(config=how or config(), work=work, step="teach", **options))
        lines = (work / "log.jsonl").read_text().splitlines()
        return Run(weights(trained), history, [json.loads(line) for line in lines], model is trained, work)

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
            ("max_tokens", 0, "at least 1"),
            ("learning_rate", -1e-3, "above 0"),
            ("learning_rate", float("nan"), "a finite number"),
            ("warmup_steps", -1, "at least 0"),
        ],
    )
    def test_a_value_out_of_bounds_is_named_with_its_bound(self, field, value, bound):
        with pytest.raises(ConfigError, match=f"training.{field} must be {bound}, found {value!r}"):
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

    @pytest.mark.parametrize("field", sorted(_WITHOUT_EFFECT))
    def test_a_field_of_the_trainer_without_effect_is_refused_with_what_has_one(self, field):
        with pytest.raises(ConfigError, match=rf"trainer.{field} has no effect here: \w.*Leave it out"):
            config(trainer={field: 1})

    def test_so_are_parts_of_a_field(self):
        with pytest.raises(ConfigError, match=r"trainer.accelerator_config.split_batches has no effect here: batches"):
            config(trainer={"accelerator_config": {"split_batches": True}})

    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            ({"learning_rate": "1e-4"}, 1e-4),
            ({"max_steps": "3"}, 3),
            ({"max_steps": 3.0}, 3),
            ({"weight_decay": 1}, 1.0),
            ({"bf16": "True"}, True),
            ({"optim": "sgd"}, "sgd"),
            ({"report_to": ["none"]}, ["none"]),
            ({"max_grad_norm": float("inf")}, float("inf")),
            ({"ddp_timeout": np.int64(60)}, 60),
            ({"deepspeed": {"bf16": {"enabled": "auto"}}}, {"bf16": {"enabled": "auto"}}),
        ],
        ids=str,
    )
    def test_a_field_of_the_trainer_has_the_type_it_should(self, given, expected):
        (found,) = trainer_fields(config(trainer=given)).values()
        assert found == expected
        assert type(found) is type(expected)

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"learning_rate": "fast"}, r"trainer.learning_rate must be float, found 'fast' \(str\)"),
            ({"learning_rate": float("nan")}, "trainer.learning_rate must be a finite number, found nan"),
            ({"num_train_epochs": "inf"}, "trainer.num_train_epochs must be a finite number, found 'inf'"),
            ({"max_steps": 2.5}, "trainer.max_steps must be int, found 2.5"),
            ({"max_steps": True}, "trainer.max_steps must be int, found True"),
            ({"bf16": 1}, "trainer.bf16 must be bool, found 1"),
            ({"optim": 3}, "trainer.optim must be OptimizerNames or str, found 3"),
            ({"lerning_rate": 1e-3}, "'lerning_rate', which is no field. Did you mean 'learning_rate'"),
        ],
        ids=str,
    )
    def test_a_field_of_the_trainer_of_another_type_is_refused_before_the_work(self, given, message):
        with pytest.raises(ConfigError, match=message):
            join_processes(config(trainer=given))

    def test_a_warm_up_longer_than_the_run_is_refused(self, run, watch):
        message = (
            "warmup_steps is 10000 but the run has only 12 steps, so the learning rate would never reach 0.001. "
            "Give fewer steps, or a share of all steps such as training.warmup_steps=0.1"
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
        given = {"max_steps": 3, "learning_rate": 5e-4, "warmup_steps": 1}
        history = run(watch, config(trainer=given)).history
        assert history["step"].max() == 3
        assert history["learning_rate"].max() == 5e-4

    def test_a_reporter_that_is_not_installed_is_refused_with_its_extra(self, run, watch, monkeypatch):
        def missing(*_: Any, **__: Any) -> None:
            raise RuntimeError("WandbCallback requires wandb to be installed.")

        monkeypatch.setattr("geneformer_repro.training.loop.Trainer.__init__", missing)
        with pytest.raises(MissingExtraError, match=r"requires wandb.*pip install 'geneformer-repro\[wandb\]'"):
            run(watch, config(trainer={"report_to": "wandb"}))

    def test_a_batch_size_given_to_the_trainer_wins_or_is_refused(self, run, watch):
        """Else a setting of the user is dropped without a word."""
        with contextlib.suppress(ConfigError):
            run(watch, config(epochs=1, trainer={"per_device_train_batch_size": 2}))
            assert len(watch.batches) == N_CELLS / 2

    def test_tokens_of_a_batch_can_be_given(self, run, watch):
        total = sum(12 + i for i in range(N_CELLS))
        log = run(watch, config(epochs=1, max_tokens=60)).log
        tokens = [sum(map(len, batch)) for batch in watch.batches]
        assert log[0]["tokens_a_batch"] == round(total / -(-total // 60))
        assert sum(tokens) == total
        np.testing.assert_allclose(tokens, log[0]["tokens_a_batch"], atol=27)

    def test_fewer_tokens_than_the_longest_cell_has_are_refused(self, run, watch):
        with pytest.raises(gf.InputError, match=r"max_tokens=20 is less than the longest cell, 27 tokens. Give more"):
            run(watch, config(max_tokens=20))

    def test_fewer_cells_than_batches_of_a_step_are_refused(self, run, watch):
        with pytest.raises(gf.InputError, match=r"16 cells are fewer than the 17 batches that make a step"):
            run(watch, config(trainer={"gradient_accumulation_steps": 17}))


class TestGroups:
    """What groups do to learning is tested with the ways of transfer."""

    @pytest.mark.parametrize("engine", ["is_fsdp_enabled", "is_deepspeed_enabled"])
    def test_a_model_in_shards_learns_as_a_whole_or_not_at_all(self, run, watch, monkeypatch, engine):
        make = Trainer.__init__

        def as_if_launched_so(trainer: Trainer, *given: Any, **options: Any) -> None:
            make(trainer, *given, **options)
            setattr(trainer, engine, True)

        monkeypatch.setattr(Trainer, "__init__", as_if_launched_so)
        with pytest.raises(ConfigError, match="Under DeepSpeed and FSDP all of a model learns, at one rate"):
            run(watch, groups=[ParameterGroup("nothing", [])])

    def test_a_whole_model_at_one_rate_is_no_reason_to_refuse_shards(self, untrained):
        loop._require_one_rate(untrained, [ParameterGroup("all", list(untrained.parameters()))])

    @pytest.mark.parametrize("changes", [{"rate": 0.5}, {"begins": 0.5}], ids=["slower", "later"])
    def test_another_rate_or_beginning_is(self, untrained, changes):
        with pytest.raises(ConfigError, match="learns later or at another rate"):
            loop._require_one_rate(untrained, [ParameterGroup("all", list(untrained.parameters()), **changes)])

    @pytest.mark.parametrize(("begins", "step"), [(0.0, 0), (0.5, 5), (0.99, 9)])
    def test_a_group_begins_within_the_run(self, begins, step):
        assert ParameterGroup("late", [], begins=begins).first_step(10) == step


class TestTrain:
    def test_the_model_learns_in_place(self, run, watch):
        learned = run(watch, config(epochs=5, learning_rate=1e-2, trainer={"save_strategy": "no"}))
        losses = learned.history["loss"].dropna()
        assert learned.in_place
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

    def test_the_columns_of_the_history_come_in_one_order(self, whole):
        """Those of a run that was cut off come out of JSON, sorted."""
        columns = ["step", "epoch", "loss", "grad_norm", "learning_rate", "eval_score", "train_loss"]
        assert whole.history.columns.tolist() == columns

    def test_its_last_row_has_the_mean_loss_of_all_steps(self, whole):
        losses = whole.history["loss"].dropna()
        assert len(losses) == 3 * STEPS_AN_EPOCH
        np.testing.assert_allclose(whole.history["train_loss"].dropna(), [losses.mean()], rtol=1e-6)

    def test_the_global_random_states_are_left_as_they_were(self, run, watch):
        def states() -> list[Any]:
            return [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]  # noqa: NPY002

        before = states()
        run(watch, config(trainer={"max_steps": 1}))
        assert states() == before

    def test_the_model_is_scored_in_evaluation_mode_before_the_first_and_after_every_epoch(self, whole, watched):
        assert watched.modes == [(False, False)] * 4

    def test_scores_before_the_first_epoch_are_those_of_the_untrained_model(self, whole, watched, untrained):
        assert_same(watched.weights[0], weights(untrained))

    def test_the_first_line_of_the_log_says_what_runs_how(self, whole):
        total = sum(12 + i for i in range(N_CELLS))
        first = whole.log[0]
        assert {name: first[name] for name in ("event", "step", "engine", "processes", "device", "dtype", "steps")} == {
            "event": "teach",
            "step": 0,
            "engine": "one process",
            "processes": 1,
            "device": "cpu",
            "dtype": "float32",
            "steps": 3 * STEPS_AN_EPOCH,
        }
        assert first["tokens_a_batch"] == round(total / STEPS_AN_EPOCH)
        assert 0 <= first["padding"] < 1

    def test_the_log_has_a_json_line_for_each_entry(self, whole):
        entries = whole.log[1:]
        assert [entry["step"] for entry in entries] == whole.history["step"].tolist()
        assert {entry["event"] for entry in entries} == {"teach"}
        logged = pd.DataFrame(entries)
        pd.testing.assert_frame_equal(logged[whole.history.columns], whole.history)
        assert (logged["seconds"] >= 0).all()

    def test_a_line_with_a_loss_tells_how_fast_the_steps_before_it_were(self, whole):
        lines = [entry for entry in whole.log if "loss" in entry]
        assert len(lines) == 3 * STEPS_AN_EPOCH
        tokens, cells = sum(12 + i for i in range(N_CELLS)), N_CELLS
        for line in lines:
            assert line["peak_memory_gb"] > 0
            np.testing.assert_allclose(line["tokens_per_second"] / line["cells_per_second"], tokens / cells, rtol=1e-2)

    def test_the_share_of_the_peak_is_told_where_the_work_is_known(self, run, watch):
        log = run(watch, config(epochs=1), flops_an_epoch=1e9).log
        line = next(entry for entry in log if "loss" in entry)
        steps_a_second = line["cells_per_second"] * STEPS_AN_EPOCH / N_CELLS
        expected = steps_a_second * 1e9 / STEPS_AN_EPOCH / log[0]["peak_flops"]
        np.testing.assert_allclose(line["share_of_peak"], expected, atol=1e-3)

    def test_the_share_of_the_peak_is_not_told_where_the_work_is_unknown(self, whole):
        assert whole.log[0]["peak_flops"] is None
        assert not any("share_of_peak" in entry for entry in whole.log)

    def test_the_peak_is_measured_once_a_process(self):
        first, second = (peak_flops(torch.device("cpu"), torch.float32) for _ in range(2))
        assert first == second > 0

    def test_every_cell_is_seen_once_an_epoch(self, whole, watched, cells):
        expected = sorted(tuple(cells[i][: 12 + i].tolist()) for i in range(N_CELLS))
        epochs = [watched.batches[i : i + STEPS_AN_EPOCH] for i in range(0, 3 * STEPS_AN_EPOCH, STEPS_AN_EPOCH)]
        for epoch in epochs:
            assert sorted(cell for batch in epoch for cell in batch) == expected
        assert epochs[0] != epochs[1]

    def test_cells_of_similar_length_share_a_batch(self, run, watch):
        many = CellExamples([10 + i for i in range(64)], lambda i, epoch: np.full(10 + i, 7))
        run(watch, config(epochs=1), examples=many)
        lengths = [[len(cell) for cell in batch] for batch in watch.batches]
        any_four = 64 * 3 / 5
        np.testing.assert_array_equal(sorted(np.concatenate(lengths)), many.lengths)
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
        run(watch, config(epochs=1), seed=1)
        assert watch.batches != watched.batches[:STEPS_AN_EPOCH]

    def test_an_example_is_asked_for_by_row_and_epoch(self, run, watch, cells):
        asked = []

        def get(row: int, epoch: int) -> np.ndarray:
            asked.append((row, epoch))
            return cells[row][: 12 + row]

        run(watch, config(epochs=2), examples=CellExamples([12 + i for i in range(N_CELLS)], get))
        assert sorted(asked) == sorted((row, epoch) for row in range(N_CELLS) for epoch in range(2))

    def test_accumulated_batches_make_the_step_of_one_large_batch(self, run, vocabulary):
        """The loss is a mean over the genes of the whole step, however it is cut."""
        options = {"dropout": 0.0}
        large = run(Watch(vocabulary), config(epochs=1), **options)
        halves = config(epochs=1, batch_size=2, trainer={"gradient_accumulation_steps": 2})
        cut = run(Watch(vocabulary), halves, **options)
        np.testing.assert_allclose(cut.history["loss"].dropna(), large.history["loss"].dropna(), rtol=1e-5)
        for name, weight in large.weights.items():
            np.testing.assert_allclose(cut.weights[name], weight, atol=2e-5, err_msg=name)


class TestFailing:
    @pytest.fixture
    def diverged(self, run, watch, tmp_path) -> tuple[str, dict[str, Tensor]]:
        """The message, and the batch that was saved."""
        with pytest.raises(gf.InputError) as caught:
            run(watch, config(learning_rate=1e30), work=tmp_path)
        (saved,) = tmp_path.glob("not_finite*")
        assert str(saved) in str(caught.value)
        return str(caught.value), load_file(saved)

    def test_a_loss_that_is_not_finite_stops_the_run_and_says_what_to_change(self, diverged):
        expected = "The loss became nan at step 1; lower the learning rate (1e+30), or lengthen the warm-up (0 steps)."
        assert diverged[0].startswith(expected)

    def test_the_batch_whose_loss_is_not_finite_is_kept(self, diverged, watch, vocabulary):
        batch = diverged[1]
        rows = batch["input_ids"].split(batch["lengths"].tolist())
        assert [tuple(ids.tolist()) for ids in rows] == watch.batches[-1]

    def test_with_the_row_numbers_of_its_cells(self, diverged, watch, cells):
        rows = diverged[1]["rows"].tolist()
        assert [tuple(cells[row][: 12 + row].tolist()) for row in rows] == watch.batches[-1]

    def test_the_rows_are_right_in_a_later_epoch_after_resuming(self, run, vocabulary, cells, tmp_path):
        how = config(trainer=EVERY_FIVE | {"gradient_accumulation_steps": 2}, batch_size=2)
        with pytest.raises(CutOffError):
            run(Watch(vocabulary, at_step={7: cut_off_now}), how, work=tmp_path)
        watch = Watch(vocabulary, at_step={7: lambda: patch.setattr(torch, "isfinite", lambda _: torch.tensor(False))})
        with pytest.MonkeyPatch.context() as patch, pytest.raises(gf.InputError, match="at step 6"):
            run(watch, how, work=tmp_path)
        (saved,) = tmp_path.glob("not_finite*")
        rows = load_file(saved)["rows"].tolist()
        assert [tuple(cells[row][: 12 + row].tolist()) for row in rows] == watch.batches[-1]

    def test_a_score_that_is_not_finite_stops_the_run(self, run, vocabulary):
        with pytest.raises(gf.InputError, match=r"eval_score became nan at step 4; lower the learning rate"):
            run(Watch(vocabulary, scores=iter([0.0, float("nan")])))

    @pytest.mark.parametrize(
        "error",
        [
            pytest.param(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), id="GPU"),
            pytest.param(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"), id="CPU"),
        ],
    )
    def test_too_little_memory_is_answered_with_a_smaller_batch(self, run, watch, monkeypatch, error):
        def forward(*_: Any, **__: Any) -> None:
            raise error

        monkeypatch.setattr(MaskedGeneModel, "forward", forward)
        with pytest.raises(gf.InputError, match="Out of memory with batches of 78 tokens") as caught:
            run(watch)
        assert "max_tokens=39" in str(caught.value)
        assert "trainer.gradient_accumulation_steps=2" in str(caught.value)

    def test_another_error_is_passed_on(self, run, watch, monkeypatch):
        def forward(*_: Any, **__: Any) -> None:
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

        monkeypatch.setattr(MaskedGeneModel, "forward", forward)
        with pytest.raises(RuntimeError, match="mat1 and mat2"):
            run(watch)


class TestResuming:
    def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(self, resumed, whole):
        assert_same(resumed.weights, whole.weights)

    def test_a_resumed_run_has_the_history_of_an_uninterrupted_one(self, resumed, whole):
        assert_same_history(resumed, whole)

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
        resumed = run(Watch(vocabulary, scores=iter([0.2])), work=tmp_path, best_by="score")
        assert_same(resumed.weights, before.weights[1])

    def test_a_run_cut_off_after_its_last_epoch_is_only_opened(self, run, vocabulary, tmp_path, whole):
        shutil.copytree(whole.work, tmp_path, dirs_exist_ok=True)
        again = Watch(vocabulary)
        assert_same(run(again, work=tmp_path).weights, whole.weights)
        assert again.batches == []

    def test_an_unfinished_checkpoint_is_no_checkpoint(self, run, vocabulary, tmp_path, whole):
        """A crash while saving leaves a folder of another name."""
        with pytest.raises(CutOffError):
            run(Watch(vocabulary, cut_off_at=3), work=tmp_path)
        shutil.copytree(tmp_path / "checkpoint-4", tmp_path / "saving" / "checkpoint-8")
        (tmp_path / "saving" / "checkpoint-8" / "optimizer.pt").unlink()
        assert_same(run(Watch(vocabulary), work=tmp_path).weights, whole.weights)
        assert not (tmp_path / "saving").exists()

    def test_a_half_written_checkpoint_is_passed_over(self, run, vocabulary, tmp_path, whole):
        with pytest.raises(CutOffError):
            run(Watch(vocabulary, cut_off_at=3), work=tmp_path)
        half = tmp_path / f"checkpoint-{2 * STEPS_AN_EPOCH}"
        half.mkdir()
        shutil.copy(tmp_path / f"checkpoint-{STEPS_AN_EPOCH}" / "model.safetensors", half)
        assert_same(run(Watch(vocabulary), work=tmp_path).weights, whole.weights)


def damage_end(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def damage_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.fixture(scope="module")
def accumulating() -> TrainConfig:
    """Saves at step 5, in the middle of an epoch, and between two log entries."""
    return config(batch_size=2, trainer=EVERY_FIVE | {"logging_steps": 3, "gradient_accumulation_steps": 2})


@pytest.fixture(scope="module")
def uninterrupted(run, accumulating, vocabulary) -> tuple[Run, Watch]:
    watch = Watch(vocabulary)
    return run(watch, accumulating, dropout=0.1), watch


@pytest.fixture
def cut(run, accumulating, vocabulary, tmp_path) -> Callable[..., None]:
    """Train until something happens at a step."""

    def until(step: int, what: Callable[[], None], error: type[BaseException]) -> None:
        with pytest.raises(error):
            run(Watch(vocabulary, at_step={step: what}), accumulating, work=tmp_path, dropout=0.1)

    return until


@pytest.fixture
def go_on(run, accumulating, vocabulary, tmp_path) -> Callable[[], tuple[Run, Watch]]:
    """Train to the end, from what is there."""

    def rest() -> tuple[Run, Watch]:
        watch = Watch(vocabulary)
        return run(watch, accumulating, work=tmp_path, dropout=0.1), watch

    return rest


class TestExactly:
    """A run that is cut off at any step goes on as if it had not been: dropout, batches, logged losses."""

    @pytest.mark.parametrize("cut_at", [4, 12], ids="at_step_{}".format)
    def test_a_run_cut_off_at_a_step_ends_as_an_uninterrupted_one(self, cut, go_on, uninterrupted, cut_at):
        whole, watched = uninterrupted
        cut(cut_at, cut_off_now, CutOffError)
        resumed, rest = go_on()
        saved = (cut_at - 1) // 5 * 5
        assert rest.steps == [step for step in watched.steps if step > saved]
        assert rest.batches == watched.batches[2 * saved :]
        assert_same(resumed.weights, whole.weights)
        assert_same_history(resumed, whole)

    def test_it_can_be_cut_off_again_and_again(self, cut, go_on, uninterrupted):
        for step in (6, 7, 11):
            cut(step, cut_off_now, CutOffError)
        resumed, _ = go_on()
        assert_same(resumed.weights, uninterrupted[0].weights)
        assert_same_history(resumed, uninterrupted[0])

    @pytest.mark.parametrize("asked_at", [1, 7], ids="at_step_{}".format)
    def test_a_run_asked_to_stop_ends_as_an_uninterrupted_one(self, cut, go_on, uninterrupted, asked_at):
        cut(asked_at, ask_to_stop, Interrupted)
        resumed, rest = go_on()
        assert rest.steps[0] == asked_at + 1
        assert_same(resumed.weights, uninterrupted[0].weights)
        assert_same_history(resumed, uninterrupted[0])

    def test_dropout_takes_part_and_does_not_depend_on_what_was_drawn_before(
        self, run, accumulating, go_on, uninterrupted, vocabulary
    ):
        torch.rand(7)
        assert_same(go_on()[0].weights, uninterrupted[0].weights)
        without = run(Watch(vocabulary), accumulating, dropout=0.0)
        assert any((without.weights[name] != weight).any() for name, weight in uninterrupted[0].weights.items())


@pytest.fixture(scope="module", params=["asked_to_stop", "cut_off_while_scoring"])
def stopped_at_the_end_of_an_epoch(request, run, vocabulary, tmp_path_factory) -> Run:
    work = tmp_path_factory.mktemp("end")
    if request.param == "asked_to_stop":
        with pytest.raises(Interrupted):
            run(Watch(vocabulary, at_step={STEPS_AN_EPOCH: ask_to_stop}), work=work)
    else:
        by_steps = config(trainer={"save_strategy": "steps", "save_steps": STEPS_AN_EPOCH})
        with pytest.raises(CutOffError):
            run(Watch(vocabulary, cut_off_at=2), by_steps, work=work)
    return run(Watch(vocabulary), work=work)


@pytest.fixture(scope="module")
def stopped(run, vocabulary: Vocabulary, tmp_path_factory) -> tuple[Path, Interrupted, Watch]:
    work, watch = tmp_path_factory.mktemp("stopped"), Watch(vocabulary, at_step={6: ask_to_stop})
    with pytest.raises(Interrupted) as caught:
        run(watch, work=work)
    return work, caught.value, watch


class TestEndOfAnEpoch:
    """The last step of an epoch is saved before the epoch is scored: its score must not be lost."""

    def test_the_weights_are_those_of_an_uninterrupted_run(self, stopped_at_the_end_of_an_epoch, whole):
        assert_same(stopped_at_the_end_of_an_epoch.weights, whole.weights)

    def test_the_score_of_the_epoch_is_in_the_history(self, stopped_at_the_end_of_an_epoch, whole):
        assert_same_history(stopped_at_the_end_of_an_epoch, whole)


class TestAskedToStop:
    def test_its_bar_is_ended_however_it_stops(self, run, vocabulary, capsys):
        """So that the message of an error has a line of its own."""
        with pytest.raises(CutOffError):
            run(Watch(vocabulary, at_step={2: cut_off_now}))
        assert capsys.readouterr().err.endswith("\n")
        assert not [bar for bar in tqdm._instances if bar.desc.startswith("teach")]

    def test_the_step_under_way_is_finished_and_saved(self, stopped):
        work, _, watch = stopped
        assert watch.steps == [1, 2, 3, 4, 5, 6]
        assert json.loads((work / "checkpoint-6" / "trainer_state.json").read_text())["global_step"] == 6

    def test_it_says_where_it_stopped(self, stopped):
        expected = "teach: stopped by SIGTERM at step 6 of 12; saved. The same command goes on from there."
        assert str(stopped[1]) == expected

    def test_the_exit_code_is_that_of_sigterm(self, stopped):
        assert stopped[1].code == 128 + signal.SIGTERM == 143
        assert isinstance(stopped[1], SystemExit)

    def test_the_handler_from_before_is_back(self, run, vocabulary):
        def mine(*_: Any) -> None:
            raise AssertionError

        before = signal.signal(signal.SIGTERM, mine)
        try:
            for error, at_step in [(Interrupted, {2: ask_to_stop}), (CutOffError, {2: cut_off_now})]:
                with pytest.raises(error):
                    run(Watch(vocabulary, at_step=at_step))
                assert signal.getsignal(signal.SIGTERM) is mine
        finally:
            signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="module")
def cut_off_at_8(run, vocabulary, tmp_path_factory) -> Path:
    """The work folder of a run that saved every step."""
    work = tmp_path_factory.mktemp("every_step")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "SAVE_SECONDS", 0)
        with pytest.raises(CutOffError):
            run(Watch(vocabulary, at_step={8: cut_off_now}), work=work)
    return work


@pytest.fixture
def files_of_at_most() -> Iterator[Callable[[int], None]]:
    """Limit the size of files, as a quota does, from when it is called until the test ends."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda n_bytes: resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


class TestFullDisk:
    @pytest.mark.parametrize("n_bytes", [100_000, 800_000], ids=["for_the_weights", "for_the_optimizer"])
    def test_a_checkpoint_without_room_ends_in_one_line_and_the_run_goes_on_from_the_one_before(
        self, run, vocabulary, whole, tmp_path, files_of_at_most, n_bytes
    ):
        with pytest.raises(gf.InputError) as caught:
            run(Watch(vocabulary, at_step={6: lambda: files_of_at_most(n_bytes)}), work=tmp_path)
        files_of_at_most(resource.RLIM_INFINITY)
        assert re.search(
            r"checkpoint-8.* could not be written: the disk is full .*the same call again", str(caught.value)
        )
        assert "\n" not in str(caught.value)
        rest = Watch(vocabulary)
        resumed = run(rest, work=tmp_path)
        assert rest.steps[0] == STEPS_AN_EPOCH + 1
        assert_same(resumed.weights, whole.weights)
        assert_same_history(resumed, whole)


class TestCheckpoints:
    def saved(self, work: Path) -> list[int]:
        return sorted(int(folder.name.removeprefix("checkpoint-")) for folder in work.glob("checkpoint-*"))

    def test_the_last_two_epochs_are_kept(self, whole):
        assert self.saved(whole.work) == [8, 12]

    @pytest.mark.parametrize(("limit", "kept"), [(1, [12]), (3, [10, 11, 12])])
    def test_as_many_are_kept_as_asked(self, run, watch, tmp_path, monkeypatch, limit, kept):
        monkeypatch.setattr(loop, "SAVE_SECONDS", 0)
        run(watch, config(trainer={"save_total_limit": limit}), work=tmp_path)
        assert self.saved(tmp_path) == kept

    def test_the_best_is_kept_beside_them(self, run, vocabulary, tmp_path, monkeypatch):
        monkeypatch.setattr(loop, "SAVE_SECONDS", 0)
        watch = Watch(vocabulary, scores=iter([0.0, 0.9, 0.1, 0.5]))
        found = run(watch, work=tmp_path, best_by="score")
        assert self.saved(tmp_path) == [4, 11, 12]
        assert_same(found.weights, watch.weights[1])

    def test_the_best_outlives_an_interruption(self, run, vocabulary, tmp_path, monkeypatch):
        monkeypatch.setattr(loop, "SAVE_SECONDS", 0)
        before = Watch(vocabulary, scores=iter([0.0, 0.9, 0.1]), at_step={11: cut_off_now})
        with pytest.raises(CutOffError):
            run(before, work=tmp_path, best_by="score")
        found = run(Watch(vocabulary, scores=iter([0.5])), work=tmp_path, best_by="score")
        assert self.saved(tmp_path) == [4, 11, 12]
        assert_same(found.weights, before.weights[1])

    def test_when_enough_time_has_passed_a_step_is_saved(self, cut_off_at_8):
        assert self.saved(cut_off_at_8) == [6, 7]

    def test_a_run_that_is_told_when_to_save_does_not_save_by_the_clock(self, run, vocabulary, tmp_path, monkeypatch):
        monkeypatch.setattr(loop, "SAVE_SECONDS", 0)
        with pytest.raises(CutOffError):
            run(Watch(vocabulary, at_step={7: cut_off_now}), config(trainer=EVERY_FIVE), work=tmp_path)
        assert self.saved(tmp_path) == [5]

    @pytest.mark.parametrize(
        ("hurt", "reason"),
        [
            pytest.param(lambda folder: damage_end(folder / "model.safetensors"), "model.safetensors has", id="cut"),
            pytest.param(lambda folder: damage_byte(folder / "optimizer.pt"), "optimizer.pt is not what", id="flipped"),
            pytest.param(lambda folder: (folder / "manifest.json").unlink(), "no readable manifest", id="unlisted"),
            pytest.param(lambda folder: (folder / "scheduler.pt").unlink(), "scheduler.pt is missing", id="missing"),
        ],
    )
    def test_a_damaged_one_is_passed_over_for_the_one_before(
        self, run, vocabulary, whole, cut_off_at_8, tmp_path, caplog, hurt, reason
    ):
        shutil.copytree(cut_off_at_8, tmp_path, dirs_exist_ok=True)
        hurt(tmp_path / "checkpoint-7")
        rest = Watch(vocabulary)
        with caplog.at_level(logging.WARNING, logger="geneformer_repro"):
            resumed = run(rest, work=tmp_path)
        assert rest.steps[0] == 7
        assert f"{tmp_path / 'checkpoint-7'} is damaged ({reason}" in caplog.text
        assert_same(resumed.weights, whole.weights)
        assert_same_history(resumed, whole)

    def test_it_opens_in_stock_transformers(self, whole):
        with quiet_transformers():
            stock = BertForMaskedLM.from_pretrained(whole.work / "checkpoint-12")
        found = weights(stock)
        for name, weight in whole.weights.items():
            np.testing.assert_array_equal(found[name], weight, err_msg=name)
