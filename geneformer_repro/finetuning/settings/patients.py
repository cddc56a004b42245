"""Labels of patients, each a bag of cells."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from geneformer_repro.config import Section, require, require_types
from geneformer_repro.finetuning.settings.labels import FollowUpConfig, all_targets, require_columns, require_kinds
from geneformer_repro.finetuning.settings.networks import CompareConfig
from geneformer_repro.finetuning.settings.splits import SplitConfig
from geneformer_repro.network_settings import BagPooling
from geneformer_repro.training.settings import SeededConfig


@dataclass(frozen=True, kw_only=True)
class PatientSplitConfig(SplitConfig):
    """Which patients are trained on, which choose the epoch, and which are reported; a row is a patient."""

    may_be_without_validation: ClassVar[bool] = True
    folds: int | Literal["groups"] = 5
    """As for cells; 1 reports one part of the patients."""
    validation: float = 0.0
    """Share of the patients that choose the epoch; 0, for few patients, none: the last epoch is kept."""


@dataclass(frozen=True, kw_only=True)
class BagNetworkConfig:
    """The network that pools the cells of a patient."""

    section: ClassVar[str] = "network"
    hidden: int = 0
    """Length of a vector that is made of each cell before pooling; 0 pools the vectors as they are."""
    attention: int = 32
    """Hidden size of what weighs cells."""
    dropout: float = 0.0
    """Share of the pooled (and hidden) vector that is left out at random while training."""

    def __post_init__(self) -> None:
        require_types(self)
        require(self.hidden >= 0, self, "hidden", "at least 0")
        require(self.attention >= 1, self, "attention", "at least 1")
        require(0 <= self.dropout < 1, self, "dropout", "at least 0 and below 1")


@dataclass(frozen=True, kw_only=True)
class PatientTrainConfig:
    """How the network is trained: AdamW, the learning rate falling as a cosine."""

    section: ClassVar[str] = "training"
    epochs: float = 200
    """Passes over the training patients."""
    batch_size: int | None = None
    """Patients of a step; None all."""
    learning_rate: float = 1e-2
    """Learning rate of the first step."""
    weight_decay: float = 0.5
    """AdamW's decoupled weight decay."""

    def __post_init__(self) -> None:
        require_types(self)
        require(self.epochs > 0, self, "epochs", "above 0")
        require(self.batch_size is None or self.batch_size >= 1, self, "batch_size", "at least 1")
        require(self.learning_rate > 0, self, "learning_rate", "above 0")
        require(self.weight_decay >= 0, self, "weight_decay", "at least 0")


@dataclass(frozen=True, kw_only=True)
class PatientConfig(SeededConfig):
    """How to learn labels of patients, and what to compare with.

    See Also
    --------
    finetune_patients : Takes it.
    FinetuneConfig : For labels of cells.

    Examples
    --------
    >>> import geneformer_repro as gf
    >>> config = gf.PatientConfig(patient="donor", target="response", split={"folds": 5, "repeats": 4})
    >>> config.pooling, config.split.repeats, config.training.epochs
    ('attention', 4, 200.0)
    >>> gf.PatientConfig(patient="donor", target="response", pooling="cell_type")
    Traceback (most recent call last):
        ...
    geneformer_repro.config.ConfigError: PatientConfig.cell_type must be an obs column with pooling="cell_type", found
    None.
    """

    patient: str
    """Obs column that says whose each cell is."""
    target: str | tuple[str, ...] = ()
    """The obs column to learn, or several to learn together; each says one thing of a patient."""
    regression: tuple[str, ...] = ()
    """Those of the targets that are learned as numbers, not as classes."""
    survival: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Times until an event, learned as survival: obs column of the event → that of the time, as in `FinetuneConfig`."""
    follow_up: Section[FollowUpConfig] = Section(FollowUpConfig)
    """How times until an event are taken, and which patients are compared."""
    vectors: str | None = None
    """Key of ``obsm`` with the cells' vectors, where they are no tokens; None for those of a checkpoint's encoder."""
    cell_type: str | None = None
    """Obs column with the type of each cell, for the composition and for ``pooling="cell_type"``."""
    pooling: BagPooling = "attention"
    """How cells become a patient: the "mean", learned weights ("attention"), or learned weights within each cell type,
    then over the types ("cell_type"). The simpler ones stand beside it."""
    split: Section[PatientSplitConfig] = Section(PatientSplitConfig)
    """Which patients are trained on, and which are reported."""
    network: Section[BagNetworkConfig] = Section(BagNetworkConfig)
    """What the network is."""
    training: Section[PatientTrainConfig] = Section(PatientTrainConfig)
    """How it is trained."""
    compare: Section[CompareConfig] = Section(CompareConfig)
    """What to compare with."""

    @property
    def targets(self) -> tuple[str, ...]:
        """The targets, also of one."""
        return all_targets(self.target, self.survival)

    def __post_init__(self) -> None:
        require_columns(self)
        super().__post_init__()
        require(len(set(self.targets)) == len(self.targets) > 0, self, "target", "different obs columns, at least one")
        require_kinds(self)
        by_type = self.pooling == "cell_type"
        require(self.cell_type is not None or not by_type, self, "cell_type", 'an obs column with pooling="cell_type"')
