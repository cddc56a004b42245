"""The only training loop: `transformers.Trainer`, with what it lacks.

Cells of similar length share a batch; the held-out score is the task's own (Trainer's mean over batches
weighs a batch of one masked gene like one of a hundred); every log entry is a line of JSON; and a run that
was cut off goes on from its last epoch when the same command is given again.
"""

import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import pandas as pd
import torch
from accelerate import PartialState
from torch import nn
from torch.utils.data import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from geneformer_repro.batching import LengthGroupedOrder
from geneformer_repro.config import ConfigError, require
from geneformer_repro.errors import InputError
from geneformer_repro.files import begin_work, drop_if_not_begun, refuse_existing, refuse_other_work, work_folder
from geneformer_repro.model import quiet_transformers

logger = logging.getLogger(__name__)

LOG_FILE = "log.jsonl"
Decay = Literal["linear", "cosine", "constant_with_warmup"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train; what pretraining and fine-tuning share. Each sets its own defaults."""

    epochs: float
    """Passes over the training cells."""
    batch_size: int = 12
    """Cells a step on each device."""
    learning_rate: float
    """Highest learning rate."""
    decay: Decay = "linear"
    """How the learning rate falls after the warm-up."""
    warmup_steps: float
    """Steps over which the learning rate rises; below 1, a share of all steps."""
    weight_decay: float = 0.001
    """AdamW's decoupled weight decay."""
    seed: int = 0
    """Of initial weights, split, order and masks."""
    trainer: Mapping[str, Any] = field(default_factory=dict)
    """Any field of `transformers.TrainingArguments`; wins over the fields above."""

    def __post_init__(self) -> None:
        require(self.epochs > 0, self, "epochs", "above 0")
        require(self.batch_size >= 1, self, "batch_size", "at least 1")
        require(self.learning_rate > 0, self, "learning_rate", "above 0")
        require(self.warmup_steps >= 0, self, "warmup_steps", "at least 0")
        require(self.decay in get_args(Decay), self, "decay", f"one of {', '.join(map(repr, get_args(Decay)))}")


class CellExamples(Dataset):
    """Rows for the data loader: whatever `get` returns for a row number."""

    def __init__(self, lengths: Iterable[int], get: Callable[[int], Any]) -> None:
        self.lengths, self._get = list(map(int, lengths)), get

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: int) -> Any:
        return self._get(row)


@contextmanager
def resumable(out: str | Path, identity: Mapping[str, Any], *, overwrite: bool = False) -> Iterator[Path]:
    """Yield the work folder of a run, ``OUT.partial``, which survives a crash and is removed at the end.

    Parameters
    ----------
    out
        The run's final output, which must not exist yet.
    identity
        What makes two runs the same: configuration and inputs.
    overwrite
        Replace the output, and drop the remains of another run.

    Raises
    ------
    FileExistsError
        `out` exists, or the work folder is that of another run; names the first difference.
    """
    out = Path(out)
    refuse_existing(out, overwrite=overwrite, marker="provenance.json")
    plan = json.loads(json.dumps(identity, default=str))
    refuse_other_work(out, plan, what="run", overwrite=overwrite)
    processes = PartialState()
    processes.wait_for_everyone()
    if processes.is_main_process:
        begin_work(out, plan, overwrite=overwrite)
    processes.wait_for_everyone()
    try:
        yield work_folder(out)
    except InputError:
        if processes.is_main_process:
            drop_if_not_begun(out)
        raise
    processes.wait_for_everyone()
    if processes.is_main_process:
        shutil.rmtree(work_folder(out))


def is_main_process() -> bool:
    """Whether this process writes the outputs: the first of a distributed run, or the only one."""
    return bool(PartialState().is_main_process)


def train(
    model: PreTrainedModel,
    examples: CellExamples,
    *,
    collate: Callable[[list[Any]], dict[str, Any]],
    evaluate: Callable[[nn.Module], dict[str, float]],
    config: TrainConfig,
    best_by: str | None = None,
    work: Path,
    step: str,
) -> pd.DataFrame:
    """Train a model in place, from the last epoch that `work` holds.

    Parameters
    ----------
    model
        Its forward returns a ``loss`` for what `collate` makes.
    examples
        The training cells.
    collate
        Examples to a batch.
    evaluate
        Scores the model on held-out cells, before the first and after every epoch; names without prefix.
    config
        Epochs, rates and the like.
    best_by
        Held-out score, larger is better, whose best epoch is kept; None keeps the last.
    work
        Folder for Trainer's checkpoints and ``log.jsonl``.
    step
        Word before the progress bar.

    Returns
    -------
    One row a log entry: ``step``, ``epoch``, ``loss`` (training, since the last entry) and ``eval_…`` scores.

    Raises
    ------
    ConfigError
        ``config.trainer`` names a field that `TrainingArguments` does not have.
    InputError
        The loss is not finite.
    """
    arguments = _arguments(config, best_by, work, n_examples=len(examples))
    trainer = _Trainer(
        model=model, args=arguments, train_dataset=examples, eval_dataset=examples, data_collator=collate
    )
    trainer.score, trainer.lengths = evaluate, examples.lengths
    work.mkdir(parents=True, exist_ok=True)
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_Show(step, len(examples), work / LOG_FILE))
    last = _last_complete_checkpoint(work)
    if last:
        trainer.args.eval_on_start = False  # its score is in the history that is restored
        logger.info("%s: goes on from %s.", step, last)
    with quiet_transformers():
        trainer.train(resume_from_checkpoint=last)
    return pd.DataFrame(trainer.state.log_history)


def _last_complete_checkpoint(work: Path) -> str | None:
    """Return Trainer's newest checkpoint whose last file was written; a run killed while saving leaves one without."""
    complete = [folder for folder in work.glob("checkpoint-*") if (folder / "trainer_state.json").exists()]
    return str(max(complete, key=lambda folder: int(folder.name.removeprefix("checkpoint-")))) if complete else None


def _arguments(config: TrainConfig, best_by: str | None, work: Path, *, n_examples: int) -> TrainingArguments:
    chosen: dict[str, Any] = {
        "output_dir": str(work),
        "num_train_epochs": config.epochs,
        "per_device_train_batch_size": config.batch_size,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": config.decay,
        "weight_decay": config.weight_decay,
        "seed": config.seed,
        "eval_strategy": "epoch",
        "eval_on_start": True,
        "save_strategy": "epoch",
        "save_total_limit": 2,
        "report_to": "none",
        "remove_unused_columns": False,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "disable_tqdm": True,
    }
    if best_by:
        chosen |= {"load_best_model_at_end": True, "metric_for_best_model": best_by, "greater_is_better": True}
    given = dict(config.trainer)
    try:
        arguments = TrainingArguments(**chosen | given)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"trainer: transformers.TrainingArguments refuses these fields: {error}") from error
    steps_an_epoch = -(
        -n_examples // (arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size)
    )
    n_steps = arguments.max_steps if arguments.max_steps > 0 else math.ceil(steps_an_epoch * arguments.num_train_epochs)
    if "logging_steps" not in given:
        arguments.logging_steps = max(1, steps_an_epoch // 8)
    if not {"warmup_steps", "warmup_ratio"} & set(given):
        arguments.warmup_steps = (
            round(config.warmup_steps * n_steps) if config.warmup_steps < 1 else int(config.warmup_steps)
        )
        if arguments.warmup_steps >= n_steps:
            raise ConfigError(
                f"warmup_steps is {config.warmup_steps:g} but the run has only {n_steps} steps, so the learning "
                f"rate would never reach {config.learning_rate:g}. "
                "Give fewer steps, or a share of all steps such as warmup_steps=0.1."
            )
    return arguments


class _Trainer(Trainer):
    model: PreTrainedModel
    score: Callable[[nn.Module], dict[str, float]]
    lengths: list[int]

    def _get_train_sampler(self, *_: Any) -> LengthGroupedOrder:
        return LengthGroupedOrder(self.lengths, self.args.train_batch_size * self.args.gradient_accumulation_steps)

    def training_step(self, *inputs: Any, **options: Any) -> torch.Tensor:
        loss = super().training_step(*inputs, **options)
        if not torch.isfinite(loss):
            raise InputError(self._diverged(f"The loss became {loss.item()}"))
        return loss

    def _diverged(self, what: str) -> str:
        return (
            f"{what} at step {self.state.global_step}; lower the learning rate ({self.args.learning_rate:g}), "
            f"or lengthen the warm-up ({self.args.warmup_steps} steps)."
        )

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        self.model.eval()
        with torch.no_grad():
            scores = {f"{metric_key_prefix}_{name}": value for name, value in self.score(self.model).items()}
        wrong = [name for name, value in scores.items() if not math.isfinite(value)]
        if wrong:
            raise InputError(self._diverged(f"{wrong[0]} became {scores[wrong[0]]}"))
        self.log(scores)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, scores)
        return scores


class _Show(TrainerCallback):
    """A bar that counts cells, and a line of JSON for every log entry."""

    def __init__(self, step: str, n_cells: int, log: Path) -> None:
        self._step, self._n_cells, self._log = step, n_cells, log
        self._shown: dict[str, str] = {}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            self._began, self._first = time.perf_counter(), state.global_step
            a_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
            self._cells_a_step = self._n_cells / math.ceil(self._n_cells / a_step)
            self._bar = tqdm(
                total=round(state.max_steps * self._cells_a_step),
                initial=round(state.global_step * self._cells_a_step),
                desc=self._step,
                unit=" cells",
                dynamic_ncols=True,
            )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            self._bar.update(round(state.global_step * self._cells_a_step) - self._bar.n)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **_: Any,
    ) -> None:
        if not state.is_world_process_zero:
            return
        seconds = time.perf_counter() - self._began
        cells = (state.global_step - self._first) * self._cells_a_step
        entry = {
            "event": self._step,
            "step": state.global_step,
            **(logs or {}),
            "seconds": round(seconds, 2),
            "cells_per_second": round(cells / seconds, 1),
        }
        with self._log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        self._shown |= {
            name.removeprefix("eval_"): f"{value:.3g}"
            for name, value in (logs or {}).items()
            if name == "loss" or name.startswith("eval_")
        }
        self._bar.set_postfix(self._shown, refresh=False)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            self._bar.close()
