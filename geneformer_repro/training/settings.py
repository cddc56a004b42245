"""How to train, as pretraining and fine-tuning share it; which fields of `TrainingArguments` have an effect here."""

import enum
import math
import types
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from geneformer_repro.config import ConfigError, require, require_types
from geneformer_repro.errors import did_you_mean

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
