"""How to train: what pretraining and fine-tuning share, and what `transformers.TrainingArguments` become of it."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import torch
from torch import nn

import geneformer_repro.processes as processes
from geneformer_repro.config import ConfigError, require

if TYPE_CHECKING:  # loads peft and bitsandbytes with it, which whoever only configures can do without
    from transformers import TrainingArguments

logger = logging.getLogger(__name__)

Decay = Literal["linear", "cosine", "constant_with_warmup"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train; what pretraining and fine-tuning share. Each sets its own defaults."""

    epochs: float
    """Passes over the training cells."""
    batch_size: int = 12
    """Cells of a batch, one on each device a step: so many of mean length, since batches are of equal tokens."""
    max_tokens: int | None = None
    """Tokens of a batch, in place of `batch_size`; less needs less memory."""
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
        require(0 <= self.seed < 2**32, self, "seed", "at least 0 and below 2**32")
        require(self.batch_size >= 1, self, "batch_size", "at least 1")
        require(self.max_tokens is None or self.max_tokens >= 1, self, "max_tokens", "at least 1")
        require(self.learning_rate > 0, self, "learning_rate", "above 0")
        require(self.warmup_steps >= 0, self, "warmup_steps", "at least 0")
        require(self.decay in get_args(Decay), self, "decay", f"one of {', '.join(map(repr, get_args(Decay)))}")


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


def join_processes(config: TrainConfig) -> None:
    """Join the other processes of the run as its fields of `TrainingArguments` say, before anything else asks of them.

    Raises
    ------
    InputError
        Several processes were launched, but they are no group; or the device does not have the backend.
    """
    processes.join(timeout=config.trainer.get("ddp_timeout"), backend=config.trainer.get("ddp_backend"))


def training_arguments(config: TrainConfig, best_by: str | None, work: Path) -> "TrainingArguments":
    """Turn a configuration into what Trainer takes; see `train` for `best_by` and `work`.

    Raises
    ------
    ConfigError
        ``config.trainer`` names a field that `TrainingArguments` does not have, or a value that it refuses.
    """
    from transformers import TrainingArguments

    has_gpu = torch.cuda.is_available()
    chosen: dict[str, Any] = {
        "output_dir": str(work),
        "num_train_epochs": config.epochs,
        "per_device_train_batch_size": config.batch_size,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": config.decay,
        "weight_decay": config.weight_decay,
        "optim": "adamw_torch_fused",
        "seed": config.seed,
        "eval_strategy": "epoch",
        "eval_on_start": True,
        "save_strategy": "epoch",
        "save_total_limit": 2,
        "report_to": "none",
        "remove_unused_columns": False,
        "average_tokens_across_devices": True,
        "ddp_find_unused_parameters": False,
        "logging_nan_inf_filter": False,
        "use_cpu": not torch.accelerator.is_available() and "deepspeed" not in config.trainer,
        "dataloader_pin_memory": has_gpu,
        "dataloader_num_workers": 4 if has_gpu else 0,
        "disable_tqdm": True,
    }
    if best_by:
        chosen |= {"load_best_model_at_end": True, "metric_for_best_model": best_by, "greater_is_better": True}
    try:
        arguments = TrainingArguments(**chosen | dict(config.trainer))
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
        logger.warning("trainer.bf16: this CPU computes bfloat16 by emulation, far slower than float32. Leave it out.")
    return arguments


def set_steps(arguments: "TrainingArguments", config: TrainConfig, steps_an_epoch: int) -> int:
    """Set what depends on the number of steps, how often to log and the warm-up; return that number.

    Raises
    ------
    ConfigError
        The warm-up is longer than the run.
    """
    given = dict(config.trainer)
    n_steps = arguments.max_steps if arguments.max_steps > 0 else math.ceil(steps_an_epoch * arguments.num_train_epochs)
    if "logging_steps" not in given:
        arguments.logging_steps = min(100, max(1, steps_an_epoch // 8))
    if {"warmup_steps", "warmup_ratio"} & set(given):
        return n_steps
    arguments.warmup_steps = (
        round(config.warmup_steps * n_steps) if config.warmup_steps < 1 else int(config.warmup_steps)
    )
    if arguments.warmup_steps >= n_steps:
        raise ConfigError(
            f"warmup_steps is {config.warmup_steps:g} but the run has only {n_steps} steps, so the learning "
            f"rate would never reach {config.learning_rate:g}. "
            "Give fewer steps, or a share of all steps such as warmup_steps=0.1."
        )
    return n_steps


def says_when_to_save(config: TrainConfig) -> bool:
    """Whether the configuration says how often to save; else it is done by the clock."""
    return bool({"save_strategy", "save_steps"} & set(config.trainer))
