"""Labels of cells, and those of a source before them."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from geneformer_repro.config import (
    ConfigError,
    Section,
    flat_names,
    require,
    require_types,
)
from geneformer_repro.finetuning.settings.labels import (
    FollowUpConfig,
    all_targets,
    require_columns,
    require_kinds,
    require_one_time,
    require_targets,
)
from geneformer_repro.finetuning.settings.networks import CompareConfig, NetworkConfig, SearchConfig
from geneformer_repro.finetuning.settings.splits import SplitConfig
from geneformer_repro.training.settings import SMOOTHING


@dataclass(frozen=True, kw_only=True)
class CellCompareConfig(CompareConfig):
    """What stands beside the fine-tuned network, and with how many labels."""

    curve: tuple[int, ...] = ()
    """Numbers of labelled cells for a learning curve, such as 10, 50, 100, 500."""
    covariates: tuple[str, ...] = ()
    """Obs columns, such as age and stage, for the clinical model that survival is compared with."""

    def __post_init__(self) -> None:
        require(not isinstance(self.covariates, str), self, "covariates", "a tuple of obs columns")
        super().__post_init__()
        require(all(n >= 2 for n in self.curve), self, "curve", "numbers of cells, each at least 2")


@flat_names(transfer="strategy")
@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(NetworkConfig):
    """How to fine-tune on labels of cells, and what to compare with.

    See Also
    --------
    finetune : Takes it.
    GeneFinetuneConfig : For classes of genes.

    Examples
    --------
    >>> import geneformer_repro as gf
    >>> config = gf.FinetuneConfig(target="cell_type", split={"group": "donor"}, training={"epochs": 2})
    >>> config.targets, config.split.group, config.training.learning_rate
    (('cell_type',), 'donor', 5e-05)
    >>> gf.FinetuneConfig(target="cell_type", training={"epochs": -1})
    Traceback (most recent call last):
        ...
    geneformer_repro.config.ConfigError: training.epochs must be above 0, found -1.0.
    """

    target: str | tuple[str, ...] = ()
    """The obs column to learn, or several to learn together."""
    regression: tuple[str, ...] = ()
    """Those of the targets that are learned as numbers, not as classes."""
    survival: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Times until an event, learned as survival: obs column of the event (1, or 0 where follow-up ended without one) →
    that of the time. Such a column need not stand in `target`."""
    follow_up: Section[FollowUpConfig] = Section(FollowUpConfig)
    """How times until an event are taken, and which rows are compared."""
    min_cells: int = 0
    """Classes with fewer cells are left out."""
    max_cells_per_class: int | None = None
    """A random choice of so many cells of each class (of the first target) is used, with `split_file` of those that it
    lists; None all."""
    split: Section[SplitConfig] = Section(SplitConfig)
    """Which cells are trained on, and which are reported."""
    search: Section[SearchConfig] = Section(SearchConfig)
    """Which settings to search."""
    compare: Section[CellCompareConfig] = Section(CellCompareConfig)
    """What to compare with."""

    @property
    def targets(self) -> tuple[str, ...]:
        """The targets, also of one."""
        return all_targets(self.target, self.survival)

    def __post_init__(self) -> None:
        require_columns(self)
        super().__post_init__()
        require(len(self.targets) > 0, self, "target", "at least one obs column")
        of_classes = set(self.targets) - set(self.regression) - set(self.survival)
        if SMOOTHING in self.training.trainer and not of_classes:
            raise ConfigError(
                f"training.trainer.{SMOOTHING} has no effect on numbers, and no target has classes. Leave it out."
            )
        require_kinds(self)
        require(self.min_cells >= 0, self, "min_cells", "at least 0")
        require((self.max_cells_per_class or 3) >= 3, self, "max_cells_per_class", "at least 3")
        has_classes = self.max_cells_per_class is None or self.targets[0] in of_classes
        require(has_classes, self, "max_cells_per_class", "left out where the first target has no classes")
        require_targets("task_weights", self.training.task_weights, self.targets)
        self.search.require_searchable(self)


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """What is learned of the source."""

    section: ClassVar[str] = "source"
    target: str | tuple[str, ...] = ()
    """The obs column of the source to learn first, or several."""
    regression: tuple[str, ...] = ()
    """Those of them that are learned as numbers."""
    survival: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Times until an event, event → time as for the target; `follow_up` is that of the target."""
    epochs: float | None = None
    """Passes over the source; None as many as over the target. The one that is best on a tenth of its cells is kept."""

    @property
    def targets(self) -> tuple[str, ...]:
        """The source's targets, also of one."""
        return all_targets(self.target, self.survival)

    def __post_init__(self) -> None:
        require_one_time(self.survival)
        require_types(self)
        require(len(self.targets) > 0, self, "target", "at least one obs column")
        require(set(self.regression) <= set(self.targets), self, "regression", "among source.target")
        require(self.epochs is None or self.epochs > 0, self, "epochs", "above 0")


@flat_names(transfer="strategy")
@dataclass(frozen=True, kw_only=True)
class TransferStudyConfig(FinetuneConfig):
    """How to learn labels of one data set, go on with those of another, and what to compare with.

    See Also
    --------
    transfer_study : Takes it.
    FinetuneConfig : Without a source.

    Examples
    --------
    >>> import geneformer_repro as gf
    >>> config = gf.TransferStudyConfig(target="phase", source={"target": "cell_type", "epochs": 2})
    >>> config.targets, config.source.targets
    (('phase',), ('cell_type',))
    """

    source: Section[SourceConfig] = Section(SourceConfig)
    """What is learned of the source."""
