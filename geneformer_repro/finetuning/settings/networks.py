"""What a network of cells is and how it learns: transfer, training, search, and what stands beside it."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from geneformer_repro.config import ConfigError, Section, names_in, require, require_types, with_settings
from geneformer_repro.errors import did_you_mean
from geneformer_repro.network_settings import HeadPooling
from geneformer_repro.training.settings import SMOOTHING, SeededConfig, TrainConfig, trainer_fields

Strategy = Literal["full", "freeze", "probe", "probe_then_full", "discriminative", "gradual", "lora", "qlora"]
_USED_BY = {
    "freeze": ("freeze",),
    "rate_decay": ("discriminative",),
    "lora_rank": ("lora", "qlora"),
    "lora_alpha": ("lora", "qlora"),
    "lora_dropout": ("lora", "qlora"),
    "quantize_bits": ("qlora",),
}


@dataclass(frozen=True, kw_only=True)
class TransferConfig:
    """How the encoder takes part in learning; the head always learns."""

    section: ClassVar[str] = "transfer"
    strategy: Strategy = "full"
    """"full": all of it learns. "freeze": all but the embeddings and the first `freeze` blocks. "probe": none of it.
    "probe_then_full": none in the first half of the steps, then all. "discriminative": the deeper, the slower
    (`rate_decay`). "gradual": the steps are cut into equal parts, one for the head, one for each block, one for the
    embeddings; in each part one more of them begins to learn, from the top down. "lora": adapters on the blocks.
    "qlora": the same, and the weights of the blocks are quantised."""
    freeze: int = 0
    """Of "freeze": blocks that stay as they are, beside the embeddings, counted from the input."""
    rate_decay: float = 0.9
    """Of "discriminative": a block's learning rate as a multiple of that of the block above; the top block's is this
    times the head's, the embeddings' this times the first block's."""
    lora_rank: int = 16
    """Of "lora" and "qlora": rank of the change of a weight matrix."""
    lora_alpha: float = 32
    """Of "lora" and "qlora": the change is multiplied by this, divided by the rank."""
    lora_dropout: float = 0.1
    """Of "lora" and "qlora": share of an adapter's inputs that is dropped."""
    quantize_bits: Literal[4, 8] = 4
    """Of "qlora": 4 keeps weights as NF4; 8 keeps weights as integers and, but for training on a CPU, also rounds
    what they are multiplied by (LLM.int8)."""

    def __post_init__(self) -> None:
        require_types(self)
        require(self.freeze >= 0, self, "freeze", "at least 0")
        require(0 < self.rate_decay <= 1, self, "rate_decay", "above 0 and at most 1")
        require(self.lora_rank >= 1, self, "lora_rank", "at least 1")
        require(self.lora_alpha > 0, self, "lora_alpha", "above 0")
        require(0 <= self.lora_dropout < 1, self, "lora_dropout", "at least 0 and below 1")
        for one in dataclasses.fields(TransferConfig)[1:]:
            users = _USED_BY[one.name]
            is_used = self.strategy in users or getattr(self, one.name) == one.default
            require(is_used, self, one.name, f"left out unless transfer.strategy is {' or '.join(map(repr, users))}")


ClassBalance = Literal["none", "weights", "sampling"]


def smoothing_of(config: TrainConfig) -> float:
    """Return the share of a label that is spread over all classes, as its field of `TrainingArguments` says.

    Raises
    ------
    ConfigError
        It is not between 0 and 1.
    """
    share = float(trainer_fields(config)[SMOOTHING]) if SMOOTHING in config.trainer else 0.0
    if not 0 <= share <= 1:
        raise ConfigError(f"training.trainer.{SMOOTHING} must be between 0 and 1, found {share:g}.")
    return share


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifierTrainConfig(TrainConfig):
    """How to train a classifier of cells."""

    epochs: float = 10
    learning_rate: float = 5e-5
    warmup_steps: float = 0.1
    task_weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """How much the loss of a target counts, by its name; 1 where nothing is said."""
    class_balance: ClassBalance = "none"
    """Against rare classes: "weights" counts a cell's loss by one over the size of its class, "sampling" draws cells
    of every class equally often (of the first target)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        smoothing_of(self)
        require(all(weight >= 0 for weight in self.task_weights.values()), self, "task_weights", "at least 0 each")


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkConfig(SeededConfig):
    """What a classifier of cells is, and how it is trained."""

    pooling: HeadPooling = "mean"
    """How a cell's vector is made: the mean over its genes, ``<cls>``, a learned weighted mean ("attention"), or as in
    published classifiers the first token through a dense layer ("pooler")."""
    training: Section[ClassifierTrainConfig] = Section(ClassifierTrainConfig)
    """How the network is trained."""
    transfer: Section[TransferConfig] = Section(TransferConfig)
    """How the encoder takes part in learning."""


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """What stands beside the fine-tuned network."""

    section: ClassVar[str] = "compare"
    baselines: bool = True
    """Also fit the methods to compare with; leave it on."""

    def __post_init__(self) -> None:
        require_types(self)


DEFAULT_SPACE: Mapping[str, Any] = {
    "learning_rate": {"low": 1e-5, "high": 1e-3, "log": True},
    "weight_decay": {"low": 0.0, "high": 0.3},
    "warmup_steps": {"low": 0.0, "high": 0.2},
    "decay": ["linear", "cosine"],
}
"""Searched where no space is given; ranges after the published one."""
_NOT_SEARCHED = ("trainer", "task_weights")


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Which settings to search, and how."""

    section: ClassVar[str] = "search"
    trials: int = 0
    """Settings to try before fine-tuning, each on the training cells, judged on the validation cells; 0 for none."""
    space: Mapping[str, Any] = field(default_factory=dict)
    """What is searched: for a setting (by its name without section) a list of values, or a range
    { low = 1e-5, high = 1e-3, log = true }. Empty: learning rate, weight decay, warm-up and decay."""
    engine: Literal["random", "optuna", "ray"] = "random"
    """Who proposes settings: a seeded random draw, or Optuna or Ray Tune (extras of these names)."""

    def __post_init__(self) -> None:
        require_types(self)
        require(self.trials >= 0, self, "trials", "at least 0")
        if self.space and not self.trials:
            raise ConfigError("search.space is given, but search.trials is 0; say how many to try.")
        for name, values in self.space.items():
            require_list_or_range(name, values)

    @property
    def searched(self) -> Mapping[str, Any]:
        """The values or range of each setting that is searched; none without trials."""
        return (self.space or DEFAULT_SPACE) if self.trials else {}

    def require_searchable(self, config: NetworkConfig) -> None:
        """Refuse what is no setting of a configuration, or no value of it, before the trial that would draw it."""
        of_sections = [names_in(type(part)) for part in (config.training, config.transfer)]
        searchable = sorted({"pooling"}.union(*of_sections) - set(_NOT_SEARCHED))
        for name, values in self.space.items():
            if name not in searchable:
                raise ConfigError(f"search.space: {name!r} cannot be searched. {did_you_mean(name, searchable)}")
            for value in [values["high"]] if isinstance(values, Mapping) else values:
                try:
                    with_settings(config, **{name: value, "trials": 0, "space": {}})
                except ConfigError as error:
                    raise ConfigError(f"search.space: {name} cannot be {value!r}: {error}") from error


def require_list_or_range(name: str, values: Any) -> None:
    """Raise unless a setting of a space is a list of values, or a range."""
    if isinstance(values, Mapping):
        low, high = values.get("low"), values.get("high")
        if (
            not (isinstance(low, (int, float)) and isinstance(high, (int, float)))
            or not set(values) <= {"low", "high", "log"}
            or not (math.isfinite(low) and math.isfinite(high) and low < high)
            or (values.get("log") and low <= 0)
        ):
            raise ConfigError(
                f"search.space: {name} must be a range {{ low = …, high = … }} of numbers with low < high (above 0 "
                f"with log = true), found {dict(values)!r}."
            )
    elif not isinstance(values, (list, tuple)) or not len(values):
        raise ConfigError(
            f"search.space: {name} must be a list of values or a range {{ low = …, high = … }}, found {values!r}."
        )
