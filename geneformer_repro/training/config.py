"""What a run learns from and how: what pretraining and fine-tuning share, and what `TrainingArguments` become of it."""

import enum
import logging
import math
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

import geneformer_repro.processes as processes
from geneformer_repro.config import ConfigError, require, require_types
from geneformer_repro.errors import did_you_mean

if TYPE_CHECKING:  # loads peft and bitsandbytes with it, which whoever only configures can do without
    from transformers import TrainingArguments

logger = logging.getLogger(__name__)

Decay = Literal["linear", "cosine", "constant_with_warmup"]
SMOOTHING = "label_smoothing_factor"
"""Field of `TrainingArguments` that fine-tuning takes as its own: Trainer would take the labels from the model."""
_OWN_BATCHES = (
    "batches are of equal tokens and drawn from seed and epoch alone; batch_size, max_tokens and seed change them"
)
_OWN_SCORES = "held-out cells are scored by the task, all at once"
_NO_HUB = "nothing is uploaded; upload the finished folder with `hf upload`"
_WITHOUT_EFFECT: Mapping[str, str] = {
    "output_dir": "out= (-o) says where",
    "overwrite_output_dir": "overwrite= (--overwrite) does",
    "resume_from_checkpoint": "the same call goes on from its last checkpoint",
    "restore_callback_states_from_checkpoint": "all that a run goes on with is restored",
    **dict.fromkeys(("do_train", "do_eval", "do_predict"), "the command says what is done"),
    **dict.fromkeys(("local_rank", "log_on_each_node", "save_on_each_node"), "the launcher counts the processes"),
    **dict.fromkeys(
        (
            "auto_find_batch_size", "data_seed", "dataloader_drop_last", "dataloader_in_order", "group_by_length",
            "dataloader_multiprocessing_context", "label_names", "length_column_name", "remove_unused_columns",
            "train_sampling_strategy", "per_gpu_train_batch_size",
        ),
        _OWN_BATCHES,
    ),
    **dict.fromkeys(
        (
            "per_device_eval_batch_size", "per_gpu_eval_batch_size", "eval_accumulation_steps", "batch_eval_metrics",
            "eval_do_concat_batches", "eval_use_gather_object", "include_for_metrics", "include_inputs_for_metrics",
            "prediction_loss_only", "bf16_full_eval", "fp16_full_eval", "jit_mode_eval",
        ),
        _OWN_SCORES,
    ),
    **dict.fromkeys(
        (
            "push_to_hub", "push_to_hub_model_id", "push_to_hub_organization", "push_to_hub_token", "hub_always_push",
            "hub_model_id", "hub_private_repo", "hub_revision", "hub_strategy", "hub_token",
        ),
        _NO_HUB,
    ),
    "disable_tqdm": "the bar is this package's own",
    "logging_nan_inf_filter": "a loss that is not finite ends the run",
    "logging_dir": "TensorBoard's files are in the run's folder",
    "include_tokens_per_second": "rates are in log.jsonl",
    "enable_jit_checkpoint": "SIGTERM and Ctrl-C save, whatever is set",
    "past_index": "these networks have no past",
    "use_cache": "these networks generate nothing",
}  # fmt: skip
"""Fields of `TrainingArguments`, of this or earlier versions, that are replaced here, and by what."""
_OF_LOADER = ("split_batches", "dispatch_batches", "even_batches", "use_seedable_sampler", "non_blocking")
"""Fields of its `accelerator_config` of which the same holds, since the data loader is not Accelerate's."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train; what pretraining and fine-tuning share. Each sets its own defaults."""

    section: ClassVar[str] = "training"
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
    trainer: Mapping[str, Any] = field(default_factory=dict)
    """Any field of `transformers.TrainingArguments` that has an effect here; wins over the fields above. Numbers may
    be given as text."""

    def __post_init__(self) -> None:
        require_types(self)
        _require_effect(self.trainer)
        require(self.epochs > 0, self, "epochs", "above 0")
        require(self.batch_size >= 1, self, "batch_size", "at least 1")
        require(self.max_tokens is None or self.max_tokens >= 1, self, "max_tokens", "at least 1")
        require(self.learning_rate > 0, self, "learning_rate", "above 0")
        require(self.warmup_steps >= 0, self, "warmup_steps", "at least 0")


@dataclass(frozen=True, kw_only=True)
class SeededConfig:
    """What pretraining and fine-tuning share outside their sections."""

    seed: int = 0
    """Of initial weights, split, order and masks."""

    def __post_init__(self) -> None:
        require_types(self)
        require(0 <= self.seed < 2**32, self, "seed", "at least 0 and below 2**32")


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


def _require_effect(trainer: Mapping[str, Any]) -> None:
    """Refuse fields that this package's own loop does not look at."""
    for name in trainer:
        if name in _WITHOUT_EFFECT:
            raise ConfigError(f"training.trainer.{name} has no effect here: {_WITHOUT_EFFECT[name]}. Leave it out.")
    of_loader = trainer.get("accelerator_config")
    if isinstance(of_loader, Mapping) and (named := [name for name in _OF_LOADER if name in of_loader]):
        field = f"training.trainer.accelerator_config.{named[0]}"
        raise ConfigError(f"{field} has no effect here: {_OWN_BATCHES}. Leave it out.")


def trainer_fields(config: TrainConfig) -> dict[str, Any]:
    """Return the fields of `TrainingArguments` of a configuration, each of its type; numbers may be given as text.

    Raises
    ------
    ConfigError
        There is no such field, or a value is not of its type, or not finite.
    """
    if not config.trainer:
        return {}
    from transformers import TrainingArguments

    hints = get_type_hints(TrainingArguments)
    for name in config.trainer:
        if name not in hints:
            raise ConfigError(
                f"trainer: transformers.TrainingArguments refuses {name!r}, which is no field. "
                f"{did_you_mean(name, sorted(set(hints) - set(_WITHOUT_EFFECT)))}"
            )
    return {name: _of_type(name, value, hints[name]) for name, value in config.trainer.items()}


def _of_type(name: str, value: Any, hint: Any) -> Any:
    """Return a value as a field of `TrainingArguments` wants it, or raise."""
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    literals = [choice for option in options if get_origin(option) is Literal for choice in get_args(option)]
    kinds = [get_origin(option) or option for option in options if get_origin(option) is not Literal]
    read = value
    if isinstance(value, str) and not any(issubclass(kind, (str, enum.Enum)) for kind in kinds):
        read = _read(value, kinds)
    if isinstance(read, float) and read.is_integer() and int in kinds:
        read = int(read)
    if type(read) is int and float in kinds:
        read = float(read)
    if isinstance(read, float) and (math.isnan(read) or (math.isinf(read) and name != "max_grad_norm")):
        raise ConfigError(f"training.trainer.{name} must be a finite number, found {value!r}.")
    is_of_kind = type(read) is not bool and isinstance(read, tuple(kinds))
    if read in literals or is_of_kind or (type(read) is bool and bool in kinds):
        return read
    wanted = " or ".join("nothing" if kind is types.NoneType else kind.__name__ for kind in kinds)
    raise ConfigError(f"training.trainer.{name} must be {wanted}, found {value!r} ({type(value).__name__}).")


def _read(text: str, kinds: list[type]) -> Any:
    """Read a number, true or false that was given as text; what is neither stays text."""
    if bool in kinds and text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        if kind in kinds or float in kinds:
            with suppress(ValueError):
                return kind(text)
    return text


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
