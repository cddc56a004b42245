"""Survival of bulk samples: expression networks, their search, and a study of cohorts."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from geneformer_repro.config import ConfigError, Section, names_in, require, require_types
from geneformer_repro.errors import did_you_mean
from geneformer_repro.finetuning.settings.cells import CellCompareConfig
from geneformer_repro.finetuning.settings.labels import FollowUpConfig, require_one_time
from geneformer_repro.finetuning.settings.networks import require_list_or_range
from geneformer_repro.finetuning.settings.splits import SplitConfig
from geneformer_repro.network_settings import ExpressionConfig
from geneformer_repro.tokenizer.measures import Values
from geneformer_repro.training.settings import SeededConfig

Optimiser = Literal["adam", "adamw", "sgd"]
ExpressionStrategy = Literal["full", "probe", "discriminative"]


@dataclass(frozen=True, kw_only=True)
class ExpressionTrainConfig:
    """How an expression network is trained."""

    section: ClassVar[str] = "training"
    optimiser: Optimiser = "adam"
    """"adam" (`l2` is added to the gradient), "adamw" (weights shrink by `l2` times the rate), "sgd" (momentum 0.9)."""
    learning_rate: float = 1e-3
    """Of every step; it stays the same."""
    l1: float = 0.0
    """Factor of the sum of absolute weights in the loss; biases and norms are free."""
    l2: float = 1e-4
    """Factor of half the sum of squared weights in the loss; biases and norms are free."""
    batch_size: int = 0
    """Rows of a step, about; 0 for all of them."""
    epochs: int = 200
    """Most passes over the rows."""
    min_steps: int = 0
    """Steps that are made where `epochs` would be fewer; a pass over all rows at once is one step."""
    patience: int = 20
    """Passes without a better validation score after which a network stops; 0 for never."""
    strategy: ExpressionStrategy = "full"
    """"full": all weights learn. "probe": the last layer and the straight path. "discriminative": the deeper, the
    slower (`layer_decay`)."""
    layer_decay: float = 2.6
    """Of "discriminative": the rate of a layer is that of the next one towards the outputs, divided by this."""

    def __post_init__(self) -> None:
        require_types(self)
        require(self.learning_rate > 0, self, "learning_rate", "above 0")
        for name in ("l1", "l2", "batch_size", "min_steps", "patience"):
            require(getattr(self, name) >= 0, self, name, "at least 0")
        require(self.epochs >= 1, self, "epochs", "at least 1")
        require(self.layer_decay >= 1, self, "layer_decay", "at least 1")


@dataclass(frozen=True, kw_only=True)
class SampleTrainConfig(ExpressionTrainConfig):
    """How networks of samples are trained, so that ways of transfer compare."""

    epochs: int = 100
    rates: tuple[float, ...] = (1e-4, 1e-3, 1e-2)
    """Learning rates that are tried, each way of transfer with its own best on the validation samples."""
    steps: int = 100
    """Of every network, whatever its way of transfer; a step is a pass over all samples unless `batch_size` is set. 0
    leaves a network as it begins."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.rates) > 0 and all(rate > 0 for rate in self.rates), self, "rates", "numbers above 0")
        require(self.steps >= 0, self, "steps", "at least 0")


@dataclass(frozen=True, kw_only=True)
class SampleNetworkConfig(SeededConfig):
    """What an expression network of samples is, and how it is trained."""

    network: Section[ExpressionConfig] = Section(ExpressionConfig)
    """What the network is."""
    training: Section[SampleTrainConfig] = Section(SampleTrainConfig)
    """How it is trained."""


_SET_BY_A_RUNG = ("epochs", "min_steps", "strategy", "layer_decay")


@dataclass(frozen=True, kw_only=True)
class HalvingConfig:
    """Which settings of expression networks are searched, and how."""

    section: ClassVar[str] = "halving"
    n_trials: int = 750
    """Networks of the first rung, each with settings of its own."""
    reduction: int = 3
    """The next rung has so many times fewer networks, which are trained so many times as long."""
    rungs: int = 4
    """How many at most; a rung of one network is the last."""
    first_epochs: int = 1
    """Passes over the training rows in the first rung."""
    first_steps: int = 4
    """Steps that a network makes in the first rung at least; a pass over all rows at once is a single step."""
    space: Mapping[str, Any] = field(default_factory=dict)
    """For a setting of network or training a list of values, or a range { low = 1e-5, high = 1e-2, log = true }. Empty:
    layers, width, activation, dropout, batch_norm, n_genes, optimiser, learning_rate, l1, l2, batch_size."""

    def __post_init__(self) -> None:
        require_types(self)
        for name in ("n_trials", "rungs", "first_epochs"):
            require(getattr(self, name) >= 1, self, name, "at least 1")
        require(self.reduction >= 2, self, "reduction", "at least 2")
        require(self.first_steps >= 0, self, "first_steps", "at least 0")
        searchable = sorted({*names_in(ExpressionConfig), *names_in(ExpressionTrainConfig)} - {*_SET_BY_A_RUNG})
        for name, values in self.space.items():
            if name not in searchable:
                raise ConfigError(f"halving.space: {name!r} cannot be searched. {did_you_mean(name, searchable)}")
            require_list_or_range(name, values)

    @property
    def sizes(self) -> list[int]:
        """Networks of each rung."""
        sizes = [math.ceil(self.n_trials / self.reduction**rung) for rung in range(self.rungs)]
        return sizes[: sizes.index(1) + 1] if 1 in sizes else sizes

    def epochs(self, rung: int) -> int:
        """Return the passes of a rung, counted from 0."""
        return self.first_epochs * self.reduction**rung

    def min_steps(self, rung: int) -> int:
        """Return the fewest steps of a rung, counted from 0."""
        return self.first_steps * self.reduction**rung


@dataclass(frozen=True, kw_only=True)
class StudySplitConfig(SplitConfig):
    """Which samples of the target are trained on, which choose rate and epoch, and which are reported."""

    folds: int | Literal["groups"] = 5
    repeats: int = 2
    validation: float = 0.2


@dataclass(frozen=True, kw_only=True)
class CohortStudyConfig(SampleNetworkConfig):
    """How networks learn survival of every cohort, after that of the others, and what to compare with.

    See Also
    --------
    transfer_study : Takes it.
    TransferStudyConfig : For cells, from one source to one target.

    Examples
    --------
    >>> import geneformer_repro as gf
    >>> config = gf.CohortStudyConfig(survival={"PFI": "PFI.time"}, values="zscore", halving={"n_trials": 27})
    >>> config.event, config.halving.n_trials, config.split.folds
    ('PFI', 27, 5)
    """

    survival: Mapping[str, str]
    """The obs column of the event (1, or 0 where follow-up ended without one) → that of its time; one."""
    values: Values
    """What the matrix holds: raw "counts", which become log1p of counts per 10,000; "expression" (TPM, RSEM, FPKM,
    intensities), which becomes log1p; "zscore", or log ratios, as they are."""
    log2: bool = False
    """Whether expression is stored as log2(x + 1)."""
    follow_up: Section[FollowUpConfig] = Section(FollowUpConfig)
    """How times are taken; its ``cohort`` names the column of the cohorts."""
    cohorts: tuple[str, ...] = ()
    """The cohorts that are the target in their turn; none named are all with events enough."""
    split: Section[StudySplitConfig] = Section(StudySplitConfig)
    """How the samples of a target are dealt."""
    halving: Section[HalvingConfig] = Section(HalvingConfig)
    """Which settings are searched on the other cohorts."""
    compare: Section[CellCompareConfig] = Section(CellCompareConfig)
    """What to compare with; ``curve`` in numbers of patients."""

    @property
    def event(self) -> str:
        """The obs column of the event."""
        return next(iter(self.survival))

    def __post_init__(self) -> None:
        require_one_time(self.survival)
        super().__post_init__()
        require_types(self)
        require(len(self.survival) == 1, self, "survival", "one event with its time")
        is_apart = "covariates" not in self.network.skip
        require(is_apart, self.network, "skip", 'without "covariates"; a network of their own has compare.covariates')
