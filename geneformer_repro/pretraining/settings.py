"""How to pretrain, with the published recipes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from geneformer_repro.config import ConfigError, Section, flat_names, require
from geneformer_repro.sizes import Size
from geneformer_repro.training.settings import SMOOTHING, Decay, SeededConfig, TrainConfig

Recipe = Literal["V1", "V2"]
_SIZES: Mapping[Recipe, Size] = {"V1": "V1-10M", "V2": "V2-104M"}
_RECIPES: Mapping[Recipe, Mapping[str, Any]] = {
    "V1": {"batch_size": 12, "learning_rate": 1e-3, "decay": "linear", "warmup_steps": 10_000, "weight_decay": 0.001},
    "V2": {"batch_size": 18, "learning_rate": 2e-4, "decay": "cosine", "warmup_steps": 0.007, "weight_decay": 0.001},
}
_OF_THE_RECIPE: Any = None


@dataclass(frozen=True, kw_only=True)
class RecipeTrainConfig(TrainConfig):
    """How to train; what is not given is as in the published recipe."""

    recipe: Recipe = "V1"
    """Published recipe: "V1" (rate 1e-3 falling in a line after 10,000 steps, batches of 12 cells) or "V2" (rate 2e-4
    falling as a cosine after 0.7 % of the steps, batches of 18)."""
    epochs: float = 3
    batch_size: int = _OF_THE_RECIPE
    learning_rate: float = _OF_THE_RECIPE
    decay: Decay = _OF_THE_RECIPE
    warmup_steps: float = _OF_THE_RECIPE
    weight_decay: float = _OF_THE_RECIPE

    def __post_init__(self) -> None:
        require(self.recipe in get_args(Recipe), self, "recipe", f"one of {', '.join(map(repr, get_args(Recipe)))}")
        for name, value in _RECIPES[self.recipe].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        super().__post_init__()
        if SMOOTHING in self.trainer:
            raise ConfigError(
                f"training.trainer.{SMOOTHING} has no effect on pretraining; it is for fine-tuning on classes."
            )


@flat_names()
@dataclass(frozen=True, kw_only=True)
class PretrainConfig(SeededConfig):
    """How to pretrain; what is not given is as in the published recipe.

    See Also
    --------
    pretrain : Takes it.

    Examples
    --------
    >>> import geneformer_repro as gf
    >>> config = gf.PretrainConfig(training={"recipe": "V2", "epochs": 1})
    >>> config.size, config.training.batch_size, config.training.decay
    ('V2-104M', 18, 'cosine')
    >>> gf.PretrainConfig(size="tiny", mask_probability=1.5)
    Traceback (most recent call last):
        ...
    geneformer_repro.config.ConfigError: PretrainConfig.mask_probability must be between 0 and 1, found 1.5.
    """

    size: Size = _OF_THE_RECIPE
    """Shape of the network; not used when it goes on from a checkpoint. By default the recipe's, V1-10M or V2-104M."""
    network: Mapping[str, Any] | None = None
    """Fields of `transformers.BertConfig` that differ from those of the size."""
    mask_probability: float = 0.15
    """Chance of each gene to be hidden."""
    held_out: float = 0.05
    """Share of the cells kept from training and scored; 10,000 cells at most."""
    training: Section[RecipeTrainConfig] = Section(RecipeTrainConfig)
    """How the network is trained."""

    def __post_init__(self) -> None:
        if self.size is None:
            object.__setattr__(self, "size", _SIZES[self.training.recipe])
        super().__post_init__()
        require(0 < self.mask_probability < 1, self, "mask_probability", "between 0 and 1")
        require(0 < self.held_out < 1, self, "held_out", "between 0 and 1")
