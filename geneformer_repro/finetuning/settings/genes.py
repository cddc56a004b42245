"""Classes of genes."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from geneformer_repro.config import Section, flat_names, require, require_types
from geneformer_repro.finetuning.settings.networks import CompareConfig, TransferConfig, smoothing_of
from geneformer_repro.training.settings import SeededConfig, TrainConfig


@dataclass(frozen=True, kw_only=True)
class GeneSplitConfig:
    """How genes are dealt into folds."""

    section: ClassVar[str] = "split"
    folds: int = 5
    """Parts into which the genes are dealt; each is reported once."""
    validation: float = 0.1
    """Share of a fold's other genes that choose the epoch."""

    def __post_init__(self) -> None:
        require_types(self)
        require(self.folds >= 2, self, "folds", "at least 2")
        require(0 < self.validation <= 0.5, self, "validation", "above 0 and at most 0.5")


@dataclass(frozen=True, kw_only=True)
class GeneTrainConfig(TrainConfig):
    """How to train a classifier of genes."""

    epochs: float = 1
    learning_rate: float = 5e-5
    warmup_steps: float = 0.1
    class_balance: Literal["none", "weights"] = "none"
    """ "weights" counts an occurrence's loss by one over the occurrences of its class."""

    def __post_init__(self) -> None:
        super().__post_init__()
        smoothing_of(self)


@flat_names(transfer="strategy")
@dataclass(frozen=True, kw_only=True)
class GeneFinetuneConfig(SeededConfig):
    """How to fine-tune on classes of genes, and what to compare with.

    See Also
    --------
    finetune_genes : Takes it.

    Examples
    --------
    >>> import geneformer_repro as gf
    >>> config = gf.GeneFinetuneConfig(split={"folds": 3}, training={"epochs": 2})
    >>> config.split.folds, config.min_cells, config.training.learning_rate
    (3, 10, 5e-05)
    """

    max_cells: int | None = 10_000
    """A random choice of so many cells in which the genes are looked at; None all."""
    min_cells: int = 10
    """Genes that fewer of these cells have, as they were tokenised, are left out."""
    split: Section[GeneSplitConfig] = Section(GeneSplitConfig)
    """How the genes are dealt into folds."""
    training: Section[GeneTrainConfig] = Section(GeneTrainConfig)
    """How the networks are trained."""
    transfer: Section[TransferConfig] = Section(TransferConfig)
    """How the encoder takes part in learning."""
    compare: Section[CompareConfig] = Section(CompareConfig)
    """What to compare with."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require((self.max_cells or 1) >= 1, self, "max_cells", "at least 1")
