"""What a run learns from and how: what pretraining and fine-tuning share, and what `TrainingArguments` become of it."""

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

import geneformer_repro.processes as processes
from geneformer_repro.config import ConfigError
from geneformer_repro.training.settings import SMOOTHING, TrainConfig, trainer_fields

if TYPE_CHECKING:  # loads peft and bitsandbytes with it, which whoever only configures can do without
    from transformers import TrainingArguments

logger = logging.getLogger(__name__)


class ParameterGroup(NamedTuple):
    """Parameters that learn alike."""

    name: str
    """For the log."""
    parameters: list[nn.Parameter]
    """Those of the model that is trained."""
    rate: float = 1.0
    """Their learning rate, as a multiple of the run's."""
    begins: float = 0.0
    """Share of all steps before which they are frozen: without gradient, and without moments in the optimiser."""

    def first_step(self, n_steps: int) -> int:
        """Steps of a run of so many before which they are frozen."""
        return int(self.begins * n_steps)


class CellExamples(Dataset):
    """Cells for the data loader: whatever `get` returns for a number and an epoch.

    `rows` names them in messages; `weights` says how often each is drawn, else every cell comes once an epoch; `alike`
    and `alike_a_step` which of them come together, as of `StepBatches`.
    """

    def __init__(
        self,
        lengths: Iterable[int],
        get: Callable[[int, int], Any],
        *,
        rows: Iterable[int] | None = None,
        weights: np.ndarray | None = None,
        alike: np.ndarray | None = None,
        alike_a_step: int = 1,
    ) -> None:
        self.alike, self.alike_a_step = alike, alike_a_step
        self.lengths, self._get, self.weights = np.asarray(list(lengths), dtype=np.int64), get, weights
        self.rows = np.arange(len(self.lengths)) if rows is None else np.asarray(list(rows))

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row_and_epoch: tuple[int, int]) -> Any:
        return self._get(*row_and_epoch)


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingRun:
    """What a network learns from, how, and where that is written."""

    examples: CellExamples
    """The training cells."""
    collate: Callable[[list[Any]], dict[str, Any]]
    """Examples to a batch."""
    evaluate: Callable[[nn.Module], dict[str, float]]
    """Scores the network on held-out cells, before the first and after every epoch; names without prefix. Every process
    calls it."""
    config: TrainConfig
    """Epochs, rates and the like."""
    seed: int
    """Of order and dropout."""
    groups: Sequence[ParameterGroup] = ()
    """All parameters that learn; default those of the network that require a gradient, at one rate."""
    best_by: str | None = None
    """Held-out score, larger is better, whose best epoch is kept; None keeps the last."""
    flops_an_epoch: float | None = None
    """Floating-point operations of an epoch, forward and backward, to tell the share of the machine's peak."""
    work: Path
    """Folder for checkpoints, ``log.jsonl`` and TensorBoard's files."""
    step: str
    """Word before the progress bar, and ``event`` of each line of the log."""
    row: str = "cell"
    """What an example is; the bar counts tokens of cells, and others one by one."""


def join_processes(config: TrainConfig) -> None:
    """Join the other processes of the run as its fields of `TrainingArguments` say, before anything else asks of them.

    Raises
    ------
    ConfigError
        ``config.trainer`` has a field that is none, or a value of another type.
    InputError
        Several processes were launched, but they are no group; or the device does not have the backend.
    """
    fields = trainer_fields(config)
    processes.join(timeout=fields.get("ddp_timeout"), backend=fields.get("ddp_backend"))


def training_arguments(run: TrainingRun) -> "TrainingArguments":
    """Turn a run into what Trainer takes.

    Raises
    ------
    ConfigError
        ``run.config.trainer`` names a field that `TrainingArguments` does not have, or a value that it refuses.
    """
    from transformers import TrainingArguments

    config = run.config
    given = {name: value for name, value in trainer_fields(config).items() if name != SMOOTHING}
    has_gpu = torch.cuda.is_available()
    chosen: dict[str, Any] = {
        "output_dir": str(run.work),
        "num_train_epochs": config.epochs,
        "per_device_train_batch_size": config.batch_size,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": config.decay,
        "weight_decay": config.weight_decay,
        "optim": "adamw_torch_fused",
        "seed": run.seed,
        "eval_strategy": "epoch",
        "eval_on_start": True,
        "save_strategy": "epoch",
        "save_total_limit": 2,
        "report_to": "none",
        "remove_unused_columns": False,
        "average_tokens_across_devices": True,
        "ddp_find_unused_parameters": False,
        "logging_nan_inf_filter": False,
        "use_cpu": not torch.accelerator.is_available() and "deepspeed" not in given,
        "dataloader_pin_memory": has_gpu,
        "dataloader_num_workers": 4 if has_gpu else 0,
        "disable_tqdm": True,
    }
    if run.best_by:
        chosen |= {"load_best_model_at_end": True, "metric_for_best_model": run.best_by, "greater_is_better": True}
    try:
        arguments = TrainingArguments(**chosen | given)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"trainer: transformers.TrainingArguments refuses these fields: {error}") from error
    if arguments.n_gpu > 1:
        logger.warning(
            "One process uses one of the %d GPUs. For all: accelerate launch --config_file configs/ddp.yaml -m "
            "geneformer_repro ….",
            arguments.n_gpu,
        )
        arguments._n_gpu = 1  # Trainer would cut batches by their first axis, which here is tokens
    emulated = torch.backends.mkldnn.is_available() and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if arguments.bf16 and arguments.device.type == "cpu" and emulated:
        logger.warning(
            "training.trainer.bf16: this CPU computes bfloat16 by emulation, far slower than float32. Leave it out."
        )
    if any(group.begins for group in run.groups):
        arguments.ddp_find_unused_parameters = True
    return arguments


def set_steps(arguments: "TrainingArguments", config: TrainConfig, steps_an_epoch: int) -> int:
    """Set what depends on the number of steps, how often to log and the warm-up; return that number.

    Raises
    ------
    ConfigError
        The warm-up is longer than the run.
    """
    n_steps = arguments.max_steps if arguments.max_steps > 0 else math.ceil(steps_an_epoch * arguments.num_train_epochs)
    if "logging_steps" not in config.trainer:
        arguments.logging_steps = min(100, max(1, steps_an_epoch // 8))
    if {"warmup_steps", "warmup_ratio"} & set(config.trainer):
        return n_steps
    arguments.warmup_steps = (
        round(config.warmup_steps * n_steps) if config.warmup_steps < 1 else int(config.warmup_steps)
    )
    if arguments.warmup_steps >= n_steps:
        raise ConfigError(
            f"warmup_steps is {config.warmup_steps:g} but the run has only {n_steps} steps, so the learning "
            f"rate would never reach {config.learning_rate:g}. "
            "Give fewer steps, or a share of all steps such as training.warmup_steps=0.1."
        )
    return n_steps
