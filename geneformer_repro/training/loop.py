"""The only training loop: `transformers.Trainer`, with what it lacks.

Batches are of equal tokens, the same cells whatever the number of processes; the loss of a step is the mean over what
all of its batches score; the held-out score is the task's own. Everything random follows from seed, epoch and step, so
a run that was cut off, at any step, goes on as if it had not been. Checkpoints are written aside, listed with their
digests, then renamed; a damaged one is passed over. Every log entry is a line of JSON and a point in TensorBoard.
"""

import copy
import itertools
import logging
import math
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import IntervalStrategy

import geneformer_repro.processes as processes
from geneformer_repro.batching import StepBatches
from geneformer_repro.checkpoint import quiet_transformers
from geneformer_repro.config import ConfigError
from geneformer_repro.errors import InputError, MissingExtraError
from geneformer_repro.files import damage, new_file, read_json, translated, write_json, write_manifest
from geneformer_repro.reading import evaluating
from geneformer_repro.training.config import (
    CellExamples,
    ParameterGroup,
    TrainingRun,
    set_steps,
    training_arguments,
)
from geneformer_repro.training.log import Show, Stopwatch

logger = logging.getLogger(__name__)

Network = TypeVar("Network", bound=nn.Module)
SAVE_SECONDS = 600
"""A run that is not told how often to save does so every ten minutes, and at the end of each epoch."""
_FIRST_COLUMNS = ("step", "epoch", "loss", "grad_norm", "learning_rate", "eval_loss")
_NOT_LOGGED = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "total_flos")
"""What Trainer tells at the end of the part since it was started last, and operations, of which it knows none where
weights are in shards; rates and the share of the peak are in the log."""


class Interrupted(SystemExit):
    """A run was asked to stop, by a signal; it saved what it had, and goes on when the same command is given again."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.code = 128 + number


@contextmanager
def random_states_kept() -> Iterator[None]:
    """Leave Python's, NumPy's and torch's global random states as they are; Trainer seeds them all."""
    device = processes.device().type
    n_devices = 0 if device in ("cpu", "mps") else torch.get_device_module(device).device_count()
    of_python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(range(n_devices), device_type="cuda" if not n_devices else device):
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)  # noqa: NPY002


@random_states_kept()
def train(model: Network, run: TrainingRun) -> tuple[Network, pd.DataFrame]:
    """Train a model, from the last step that ``run.work`` holds.

    Parameters
    ----------
    model
        Its forward returns a ``loss`` for what ``run.collate`` makes: a sum divided by ``num_items_in_batch``, the
        number of labels of the whole step. Changed.
    run
        On what, how and where; its groups are the model's.

    Returns
    -------
    The trained model, whole on every process (`model` itself unless DeepSpeed or FSDP cut that into shards), and one
    row a log entry: ``step``, ``epoch``, ``loss`` (training, since the last entry) and ``eval_…`` scores.

    Raises
    ------
    ConfigError
        ``run.config.trainer`` names a field that `TrainingArguments` does not have, or asks for DeepSpeed or FSDP where
        the groups leave out, slow down or delay a part of the model.
    InputError
        The loss is not finite (the batch is in ``run.work``), the device has too little memory, there are fewer cells
        than batches a step, or the disk is full (what was saved before is kept).
    Interrupted
        The process received SIGTERM, or Ctrl-C; what was done is saved.
    """
    trainer = _Trainer(model, run)
    whole = copy.deepcopy(model) if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled else None
    if whole is not None and run.groups:
        _require_one_rate(model, run.groups)
    show = Show(run, trainer.batches, trainer.stopwatch, engine=_engine(trainer), dtype=_dtype(trainer))
    trainer.add_callback(_Save(trainer, show))
    if processes.is_first():
        trainer.add_callback(show)
    last = processes.agreed(lambda: _newest_whole(run.work))
    if last:
        trainer.args.eval_on_start = False  # its score is in the history that is restored
        logger.info("%s: goes on from %s.", run.step, last)
    with quiet_transformers(), trainer.stopping_on_signals(), translated(run.work), closing(show):
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    trained = (
        _whole(trainer, whole)
        if whole is not None
        else trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)
    )
    return trained, _history(trainer.state.log_history)


def _history(entries: list[dict[str, float]]) -> pd.DataFrame:
    """Make a table of log entries; those from before an interruption come with their names sorted, the others not."""
    names = {name for entry in entries for name in entry}
    columns = [name for name in _FIRST_COLUMNS if name in names]
    table = pd.DataFrame(entries, columns=[*columns, *sorted(names.difference(columns))])
    return table.astype({"step": int, "epoch": float})


def trainer_of_trials(
    make_model: Callable[[], tuple[PreTrainedModel, Sequence[ParameterGroup]]], run: TrainingRun
) -> tuple[Trainer, int]:
    """Make a Trainer whose `hyperparameter_search` tries settings, each in a run like `train`'s that saves nothing.

    Parameters
    ----------
    make_model
        Makes the same model anew for each trial, with its groups.
    run
        As for `train`, but without groups.

    Returns
    -------
    The trainer, whose ``state.best_metric`` is the best score of the epochs before, never that of the untrained model;
    and the number of steps of a trial.
    """

    def model_init() -> PreTrainedModel:
        model, trainer.groups = make_model()
        return model

    trainer = _Trainer(make_model()[0], run)
    trainer.args.load_best_model_at_end, trainer.args.save_strategy = False, IntervalStrategy.NO
    trainer.model_init = model_init
    return trainer, trainer.n_steps


def _require_one_rate(model: nn.Module, groups: Sequence[ParameterGroup]) -> None:
    """Raise unless all of the model learns all the time at one rate; weights in shards are gathered no other way."""
    n_alike = sum(len(group.parameters) for group in groups if group.rate == 1 and not group.begins)
    if n_alike < len(list(model.parameters())):
        raise ConfigError(
            "Under DeepSpeed and FSDP all of a model learns, at one rate; here a part is frozen, or learns later or at "
            "another rate. Start the run without them (on several GPUs: configs/ddp.yaml), or with "
            "transfer.strategy='full'."
        )


def _newest_whole(work: Path) -> Path | None:
    """Return the newest checkpoint that is whole; one process looks, so that all go on from the same."""
    for folder in reversed(_checkpoints(work)):
        reason = damage(folder)
        if not reason:
            return folder
        logger.warning("%s is damaged (%s) and passed over.", folder, reason)
    return None


def _checkpoints(work: Path) -> list[Path]:
    """Return the folders of all checkpoints, the oldest first."""
    return sorted(work.glob("checkpoint-*"), key=lambda folder: int(folder.name.removeprefix("checkpoint-")))


class _Loader(DataLoader):
    """A data loader that tells its batches the epoch, as Trainer expects."""

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]


class _Trainer(Trainer):
    model: Any
    train_dataset: CellExamples

    def __init__(self, model: nn.Module, run: TrainingRun) -> None:
        arguments = training_arguments(run)
        self.batches = StepBatches(
            run.examples.lengths,
            batch_size=arguments.per_device_train_batch_size,
            max_tokens=run.config.max_tokens,
            process=arguments.process_index,
            n_processes=arguments.world_size,
            batches_a_step=arguments.gradient_accumulation_steps,
            seed=arguments.seed,
            weights=run.examples.weights,
            alike=run.examples.alike,
            alike_a_step=run.examples.alike_a_step,
        )
        self.n_steps = set_steps(arguments, run.config, self.batches.n_steps)
        self.run, self.groups = run, run.groups
        self.stopwatch = Stopwatch()
        self.stop_asked = 0
        """The signal that asked to stop."""
        self._saving = False
        self._micro_step = 0
        self._owed = 0.0
        """Loss of the steps since the last log entry that were done before the run was cut off."""
        try:
            super().__init__(model, arguments, run.collate, train_dataset=run.examples, eval_dataset=run.examples)
        except RuntimeError as error:
            if "report_to" not in run.config.trainer:
                raise
            needed = f"training.trainer.report_to: {error} pip install 'geneformer-repro[wandb]'."
            raise MissingExtraError(needed) from error
        self.model_accepts_loss_kwargs = True
        self.remove_callback(PrinterCallback)
        run.work.mkdir(parents=True, exist_ok=True)

    # Batches and steps

    def get_train_dataloader(self) -> DataLoader:
        args = self.args
        return _Loader(
            self.train_dataset,
            batch_sampler=self.batches,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
        )

    def get_batch_samples(self, *given: Any, **options: Any) -> Any:
        self._micro_step = 0
        return super().get_batch_samples(*given, **options)

    def create_optimizer(self, *given: Any) -> torch.optim.Optimizer:
        if self.optimizer is None and any(group.rate != 1 for group in self.groups):
            optimizer, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = optimizer(self._optimizer_groups(), **options)
        return super().create_optimizer(*given)

    def _optimizer_groups(self) -> list[dict[str, Any]]:
        """Cut each group into parameters with weight decay and without, as Trainer does the whole model."""
        decaying = set(self.get_decay_parameter_names(self.model))
        decays = {parameter: name in decaying for name, parameter in self.model.named_parameters()}
        cut = [
            {
                "params": [parameter for parameter in group.parameters if decays[parameter] == decay],
                "weight_decay": self.args.weight_decay if decay else 0.0,
                "lr": self.args.learning_rate * group.rate,
            }
            for group in self.groups
            for decay in (True, False)
        ]
        return [group for group in cut if group["params"]]

    def _freeze_or_begin(self) -> None:
        """Let groups take part from their step on; by the number of the step alone, as a resumed run knows no other."""
        for group in self.groups:
            if group.begins:
                has_begun = self.state.global_step >= group.first_step(self.state.max_steps)
                for parameter in group.parameters:
                    parameter.requires_grad_(has_begun)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *given: Any, **options: Any) -> Tensor:
        self._freeze_or_begin()
        place = [self.args.seed, self.state.global_step, self._micro_step, self.args.process_index]
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0]) >> 1)  # dropout
        try:
            loss = super().training_step(model, inputs, *given, **options)
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
                raise InputError(self._too_large()) from error
            raise
        if not torch.isfinite(loss):
            raise InputError(f"{self._diverged(f'The loss became {loss.item()}')} {self._keep(inputs)}")
        self._micro_step += 1
        loss, self._owed = loss + self._owed, 0.0  # transformers 4 lets nobody else at the sum that is logged
        return loss

    def _too_large(self) -> str:
        budget, n_batches = self.batches.tokens_a_batch, self.args.gradient_accumulation_steps
        return (
            f"Out of memory with batches of {budget:,} tokens. Try training.max_tokens={budget // 2}; with "
            f"training.trainer.gradient_accumulation_steps={2 * n_batches} a step stays as large as it was."
        )

    def _diverged(self, what: str) -> str:
        return (
            f"{what} at step {self.state.global_step}; lower the learning rate ({self.args.learning_rate:g}), "
            f"or lengthen the warm-up ({self.args.warmup_steps} steps)."
        )

    def _keep(self, inputs: dict[str, Any]) -> str:
        """Save a batch for inspection, say where."""
        path = self.run.work / f"not_finite_step{self.state.global_step}_process{self.args.process_index}.safetensors"
        tensors = {name: torch.as_tensor(value).cpu().contiguous() for name, value in inputs.items()}
        done = self.state.global_step % self.batches.n_steps * self.args.gradient_accumulation_steps
        numbers = next(itertools.islice(self.batches, done + self._micro_step, None))
        with new_file(path, overwrite=True) as aside:
            save_file(tensors | {"rows": torch.from_numpy(self.train_dataset.rows[[i for i, _ in numbers]])}, aside)
        return f"The batch, with the row numbers of its cells, is in {path}."

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Return what Trainer counts of networks of transformers; of others it would ask what they do not know."""
        return int(super().floating_point_ops(inputs)) if isinstance(self.model, PreTrainedModel) else 0

    # Scores

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        with self.stopwatch.aside(), evaluating(self.model):
            scores = {f"{metric_key_prefix}_{name}": value for name, value in self.run.evaluate(self.model).items()}
        wrong = [name for name, value in scores.items() if not math.isfinite(value)]
        if wrong:
            raise InputError(self._diverged(f"{wrong[0]} became {scores[wrong[0]]}"))
        self.log(scores)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, scores)
        return scores

    # Checkpoints

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.run.work / "saving") if self._saving else str(super()._get_output_dir(trial))

    def _maybe_log_save_evaluate(self, tr_loss: Tensor, *given: Any, **options: Any) -> None:
        self._tr_loss = tr_loss  # transformers 4 keeps it to itself
        super()._maybe_log_save_evaluate(tr_loss, *given, **options)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write aside, list the files with their digests, then rename."""
        folder, aside = self.run.work / f"checkpoint-{self.state.global_step}", self.run.work / "saving"
        with self.stopwatch.aside(), translated(folder):
            loss = self._loss_so_far()
            if processes.is_first():
                shutil.rmtree(aside, ignore_errors=True)
            processes.wait()
            self._saving = True
            try:
                super()._save_checkpoint(model, trial)
            except BaseException:
                shutil.rmtree(aside, ignore_errors=True)  # half of it helps nobody, least on a full disk
                raise
            finally:
                self._saving = False
            if self.state.best_global_step:
                self.state.best_model_checkpoint = str(self.run.work / f"checkpoint-{self.state.best_global_step}")
            processes.wait()
            if processes.is_first():
                self.state.save_to_json(str(aside / folder.name / "trainer_state.json"))
                write_json(aside / folder.name / "loss.json", loss)
                write_manifest(aside / folder.name)
                shutil.rmtree(folder, ignore_errors=True)
                (aside / folder.name).rename(folder)
                aside.rmdir()
                self._drop_old_checkpoints()
            processes.wait()

    def _drop_old_checkpoints(self) -> None:
        best = self.state.best_model_checkpoint and Path(self.state.best_model_checkpoint)
        for folder in _checkpoints(self.run.work)[: -self.args.save_total_limit if self.args.save_total_limit else 0]:
            if folder != best:
                shutil.rmtree(folder)

    def _loss_so_far(self) -> dict[str, Any]:
        """What restores the losses: each process's sum since the last log entry, and the sum of all entries."""
        sums = torch.zeros(self.args.world_size, dtype=self._tr_loss.dtype, device=self._tr_loss.device)
        sums[self.args.process_index] = self._tr_loss
        return {
            "sums": processes.sum_over(sums).tolist(),
            "since_step": self._globalstep_last_logged,
            "logged": self._total_loss_scalar,
        }

    def restore_loss(self) -> None:
        """Go on with the losses as they were when the checkpoint was saved."""
        path = self.run.work / f"checkpoint-{self.state.global_step}" / "loss.json"
        if self.state.global_step and path.exists():
            loss = read_json(path)
            sums = loss["sums"]
            as_many = len(sums) == self.args.world_size
            self._owed = sums[self.args.process_index] if as_many else sum(sums) / len(sums)
            self._globalstep_last_logged, self._total_loss_scalar = loss["since_step"], loss["logged"]

    def log(self, logs: dict[str, float], *given: Any, **options: Any) -> None:
        if "train_loss" in logs:
            logs = {name: value for name, value in logs.items() if name not in _NOT_LOGGED}
            logs["train_loss"] = (self._total_loss_scalar + self._owed) / max(self.state.global_step, 1)
        super().log(logs, *given, **options)

    @contextmanager
    def stopping_on_signals(self) -> Iterator[None]:
        """Note SIGTERM and the first Ctrl-C instead of dying of them; the step that is under way is finished first."""

        def note(number: int, _: Any) -> None:
            if number == self.stop_asked == signal.SIGINT:
                raise KeyboardInterrupt
            self.stop_asked = number

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Leave out the decoder, which is stored once, as the embedding."""
        load_result.missing_keys[:] = [key for key in load_result.missing_keys if ".decoder." not in key]
        super()._issue_warnings_after_load(load_result)


def _whole(trainer: "_Trainer", like: Network) -> Network:
    """Gather a model that is cut into shards, in float32, on every process."""
    if trainer.is_deepspeed_enabled:
        from deepspeed.utils import safe_get_full_fp32_param

        named = trainer.accelerator.unwrap_model(trainer.model_wrapped).named_parameters()
        weights = {name: safe_get_full_fp32_param(weight) for name, weight in named}
    else:
        named = trainer.model.named_parameters()
        weights = {name: weight.full_tensor() if hasattr(weight, "full_tensor") else weight for name, weight in named}
    with torch.no_grad():
        for name, weight in like.named_parameters():
            weight.copy_(weights[name])
    return like


class _Save(TrainerCallback):
    """Saves every so many seconds, and when the process is asked to stop; all processes decide the same."""

    def __init__(self, trainer: _Trainer, show: Show) -> None:
        self._trainer, self._show = trainer, show
        self._every_seconds = (
            math.inf if {"save_strategy", "save_steps"} & set(trainer.run.config.trainer) else SAVE_SECONDS
        )
        self._stopping = 0
        """The signal after which it leaves."""
        self._after_scoring = False
        """At the end of an epoch it saves after the score, so that what is saved has it."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._saved = time.monotonic()
        self._trainer.restore_loss()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        due = time.monotonic() - self._saved > self._every_seconds
        wish = 1 + self._trainer.stop_asked if self._trainer.stop_asked else int(due)
        if args.world_size > 1:
            wishes = torch.tensor(wish, device=args.device)
            torch.distributed.all_reduce(wishes, op=torch.distributed.ReduceOp.MAX)
            wish = int(wishes.item())
        control.should_save |= wish > 0
        self._stopping = max(wish - 1, 0)
        self._after_scoring = control.should_save and state.global_step % self._trainer.batches.n_steps == 0
        if self._after_scoring:
            control.should_save = False
        elif self._stopping:
            control.should_evaluate = False

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        control.should_save |= self._after_scoring

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._saved = time.monotonic()
        if self._stopping:
            by = signal.Signals(self._stopping).name
            message = (
                f"{self._trainer.run.step}: stopped by {by} at step {state.global_step:,} of {state.max_steps:,}; "
                "saved. The same command goes on from there."
            )
            if state.is_world_process_zero:
                self._show.close()
                logger.warning(message)
            raise Interrupted(message, self._stopping)


def _dtype(trainer: _Trainer) -> torch.dtype:
    """Return in what most is computed."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(trainer.accelerator.mixed_precision, torch.float32)


def _engine(trainer: _Trainer) -> str:
    """Name what spreads the work over processes."""
    if trainer.is_deepspeed_enabled:
        return f"DeepSpeed ZeRO-{trainer.accelerator.state.deepspeed_plugin.zero_stage}"
    if trainer.is_fsdp_enabled:
        return f"FSDP{getattr(trainer.accelerator.state.fsdp_plugin, 'fsdp_version', 1)}"
    return "DDP" if trainer.args.world_size > 1 else "one process"
