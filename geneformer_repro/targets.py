"""What a network learns: the kinds of target, each with its loss and the meaning of its outputs.

All that differs between a class, a number and a time for a network stands here, one class a kind; what differs for an
experiment (labels, scores, simple methods) stands in `finetuning.kinds`. Losses are sums over rows, so that two
processes that share the rows add up to one; Cox's, which compares rows, is for networks that see all rows at once.

Shapes: N rows, K outputs of a target, S numbers of its label, J intervals, T times.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from geneformer_repro import hazards
from geneformer_repro.encoder import IGNORED
from geneformer_repro.errors import InputError, did_you_mean
from geneformer_repro.files import misfit


@dataclass(frozen=True)
class Target(ABC):
    """One thing that a head predicts; a subclass for each kind of label."""

    name: str
    """The obs column that was learned; for genes, what the classes are called together."""
    kind: ClassVar[str]
    """What such a target is called in ``head.json``."""
    form: ClassVar[Mapping[str, Any]]
    """What ``head.json`` holds of it beside its kind, for `files.misfit`."""
    n_labels: ClassVar[int] = 1
    """Numbers that make the label of a row."""
    sums_to_one: ClassVar[bool]
    """Whether what the outputs mean are shares, so that one follows from the others."""

    def __post_init__(self) -> None:
        self._require_names(self.name)

    def _require_names(self, *names: object) -> None:
        for name in names:
            if not isinstance(name, str) or not name:
                raise InputError(f"Targets and classes have names, found {name!r} in target {self.name!r}.")

    @property
    @abstractmethod
    def described(self) -> str:
        """Name and kind, for people."""

    @property
    @abstractmethod
    def output_names(self) -> tuple[str, ...]:
        """What each output of the network stands for, in order."""

    @property
    def full_output_names(self) -> tuple[str, ...]:
        """The same, to be told from those of other targets."""
        return self.output_names

    @property
    def n_outputs(self) -> int:
        """Outputs of the network for this target."""
        return len(self.output_names)

    @property
    def n_meanings(self) -> int:
        """Numbers that its outputs mean."""
        return self.n_outputs

    @abstractmethod
    def loss(
        self, outputs_NK: Tensor, labels_NS: Tensor, *, weights: Tensor | None = None, smoothing: float = 0.0
    ) -> Tensor:
        """Return the sum over rows; one whose label is missing adds nothing.

        Parameters
        ----------
        outputs_NK
            Of the network.
        labels_NS
            NaN where a label is missing.
        weights
            How much each class counts, for kinds that have classes.
        smoothing
            Share of a label that is spread evenly over all classes, for kinds that have classes.
        """

    def prepared_loss(self, labels_NS: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the loss of outputs (…, N, K) of these rows, (…), as a function; what labels decide is done once."""

        def losses(outputs_NK: Tensor) -> Tensor:
            if outputs_NK.ndim == 2:
                return self.loss(outputs_NK, labels_NS)
            return torch.stack([losses(of_network) for of_network in outputs_NK])

        return losses

    def fitted(self, outputs_NK: Tensor, labels_NS: Tensor) -> "Target":
        """Return the target with what a trained network's outputs of its training rows must yet tell it."""
        return self

    @abstractmethod
    def meaning(self, outputs_NK: Tensor) -> Tensor:
        """Return what outputs mean, in their own unit and of their type: `n_meanings` numbers a row."""

    @abstractmethod
    def columns(self, meaning_NK: np.ndarray) -> dict[str, np.ndarray]:
        """Return the columns of a table of predictions, by name."""

    def to_json(self) -> dict[str, Any]:
        """Return what ``head.json`` holds."""
        fields = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return {"kind": self.kind, **fields}

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> "Target":
        """Make the target of which `to_json` told.

        Raises
        ------
        UnknownKindError
            It is of a kind that this version does not have.
        InputError
            It is damaged.
        """
        fields = dict(content)
        name = fields.pop("kind", None)
        kinds = {kind.kind: kind for kind in (Classes, Number, Response, SurvivalTime)}
        if name not in kinds:
            raise UnknownKindError(
                f"target {fields.get('name')!r} is of kind {name!r}. {did_you_mean(str(name), sorted(kinds))} A newer "
                "version of this package may have it."
            )
        if wrong := misfit(fields, kinds[name].form):
            raise InputError(wrong)
        of_kind: Any = kinds[name]
        target: Target = of_kind(
            **{key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
        )
        return target


class UnknownKindError(InputError):
    """A target is of a kind that this version of the package does not have."""


@dataclass(frozen=True)
class Classes(Target):
    """One class of several; the label is its number, the outputs are logits."""

    classes: tuple[str, ...]
    """Name of each output, in order."""
    kind = "classes"
    form = {"name": str, "classes": [str]}  # noqa: RUF012
    sums_to_one = True

    def __post_init__(self) -> None:
        self._require_names(self.name, *self.classes)
        if len(self.classes) < 2 or len(set(self.classes)) < len(self.classes):
            raise InputError(f"Target {self.name!r} needs at least two different classes, found {list(self.classes)}.")

    @property
    def described(self) -> str:
        """Name and number of classes."""
        return f"{self.name!r} ({len(self.classes)} classes)"

    @property
    def output_names(self) -> tuple[str, ...]:
        """The classes."""
        return self.classes

    @property
    def full_output_names(self) -> tuple[str, ...]:
        """The classes, each with the target."""
        return tuple(f"{self.name}: {name}" for name in self.classes)

    def loss(
        self, outputs_NK: Tensor, labels_NS: Tensor, *, weights: Tensor | None = None, smoothing: float = 0.0
    ) -> Tensor:
        """Return the sum of the cross-entropies, in nats; -100 is a missing label as well."""
        labels_N = labels_NS[:, 0]
        has_label = ~labels_N.isnan() & (labels_N != IGNORED)
        return F.cross_entropy(
            outputs_NK[has_label],
            labels_N[has_label].long(),
            weight=None if weights is None else weights.to(outputs_NK),
            reduction="sum",
            label_smoothing=smoothing,
        )

    def meaning(self, outputs_NK: Tensor) -> Tensor:
        """Return the probability of each class."""
        return outputs_NK.softmax(-1)

    def columns(self, meaning_NK: np.ndarray) -> dict[str, np.ndarray]:
        """Return the likeliest class, its probability, and that of each class."""
        return {
            f"{self.name}_predicted": np.asarray(self.classes, dtype=object)[meaning_NK.argmax(1)],
            f"{self.name}_probability": meaning_NK.max(1),
        } | {f"{self.name}_p_{name}": meaning_NK[:, i] for i, name in enumerate(self.classes)}


class _ScaledNumber(Target):
    """A number; the network's output is (number - mean) / sd, and the number is the label's first."""

    mean: float
    sd: float
    sums_to_one = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (np.isfinite(self.mean) and np.isfinite(self.sd) and self.sd > 0):
            raise InputError(
                f"Target {self.name!r} has mean {self.mean} and sd {self.sd}; expected numbers, sd above 0."
            )

    @property
    def output_names(self) -> tuple[str, ...]:
        """The name of the target."""
        return (self.name,)

    def loss(
        self, outputs_NK: Tensor, labels_NS: Tensor, *, weights: Tensor | None = None, smoothing: float = 0.0
    ) -> Tensor:
        """Return the sum of the squared errors, in standard deviations; `weights` and `smoothing` are of classes."""
        assert weights is None
        has_label = ~labels_NS[:, 0].isnan()
        wanted = (labels_NS[has_label, 0].float() - self.mean) / self.sd
        return F.mse_loss(outputs_NK[has_label, 0], wanted, reduction="sum")

    def meaning(self, outputs_NK: Tensor) -> Tensor:
        """Return the number, (N, 1)."""
        return outputs_NK * self.sd + self.mean

    def columns(self, meaning_NK: np.ndarray) -> dict[str, np.ndarray]:
        """Return the number."""
        return {f"{self.name}_predicted": meaning_NK[:, 0]}


@dataclass(frozen=True)
class Number(_ScaledNumber):
    """A number; the network's output is (number - mean) / sd."""

    mean: float = 0.0
    """Of the number in the training cells."""
    sd: float = 1.0
    """Of the number in the training cells."""
    kind = "number"
    form = {"name": str, "mean": float, "sd": float}  # noqa: RUF012

    @property
    def described(self) -> str:
        """Name and kind."""
        return f"{self.name!r} (a number)"


@dataclass(frozen=True)
class Response(_ScaledNumber):
    """How a sample responds to a drug; the label is the value and the numbers of sample, drug and tissue.

    The network's output is (value - mean) / sd. The numbers are those of a problem: by them scores tell whose rows
    belong together. A sample's tissue is 0 where none is known.
    """

    measure: str
    """What the values are, such as "LN_IC50" or "AUC"; values of two measures are never mixed."""
    mean: float = 0.0
    """Of what is learned, over the training rows."""
    sd: float = 1.0
    """Of what is learned, over the training rows."""
    samples: tuple[str, ...] = ()
    """Names of the samples, by number; none where tables may name them by it."""
    drugs: tuple[str, ...] = ()
    """Names of the drugs, by number; none where tables may name them by it."""
    kind = "response"
    form = {  # noqa: RUF012
        "name": str, "measure": str, "mean": float, "sd": float, "samples": [str], "drugs": [str],
    }  # fmt: skip
    n_labels = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_names(self.measure)

    @property
    def described(self) -> str:
        """Name and measure."""
        return f"{self.name!r} ({self.measure}, a response)"


SurvivalLoss = Literal["hazard", "cox", "weibull"]


@dataclass(frozen=True)
class SurvivalTime(Target):
    """A time until an event, which may be censored; the label is time, event (1, or 0 if censored) and cohort's number.

    Whatever the loss, outputs mean a risk, higher is worse, and the probability of being free of the event at `times`.
    """

    time: str
    """The obs column of the times; the target's name is that of the events."""
    times: tuple[float, ...]
    """When survival is told, ascending, in the unit of the labels."""
    horizon: float
    """The one of them at which survival is told to people, such as five years."""
    learned_by: SurvivalLoss = "hazard"
    """"hazard": the probability of an event in each of some intervals; "weibull": an accelerated failure time; both are
    sums over rows. "cox": partial likelihood within cohorts, which needs all rows at once."""
    intervals: int = 10
    """Of "hazard", how many at most, each with as many events."""
    cohorts: tuple[str, ...] = ()
    """Names of the cohorts, by the number that stands in labels; none where all are of one."""
    edges: tuple[float, ...] = ()
    """Of "hazard" 0 and the ends of the intervals, from training labels."""
    unit: float = 1.0
    """Of "weibull" the time that an output of 0 stands for, from training labels."""
    baseline: tuple[float, ...] = ()
    """Of "cox" the cumulative baseline hazard at `times`, from training rows; without it survival is not told."""
    kind = "survival"
    form = {  # noqa: RUF012
        "name": str, "time": str, "times": [float], "horizon": float, "learned_by": str, "intervals": int,
        "cohorts": [str], "edges": [float], "unit": float, "baseline": [float],
    }  # fmt: skip
    n_labels = 3
    sums_to_one = False

    def __post_init__(self) -> None:
        self._require_names(self.name, self.time)
        rising = all(early < late for early, late in zip((0.0, *self.times), self.times, strict=False))
        if not (rising and self.horizon in self.times and self.learned_by in get_args(SurvivalLoss)):
            raise InputError(
                f"Target {self.name!r} tells survival at times that rise from above 0, one of them the horizon, "
                f"learned by {', '.join(map(repr, get_args(SurvivalLoss)))}; found {self.times}, {self.horizon}, "
                f"{self.learned_by!r}."
            )

    @property
    def described(self) -> str:
        """Name and kind."""
        return f"{self.name!r} (survival)"

    @property
    def output_names(self) -> tuple[str, ...]:
        """What the loss is about."""
        match self.learned_by:
            case "hazard":
                return tuple(f"{self.name} until {end:g}" for end in self.edges[1:])
            case "weibull":
                return f"{self.name} scale", f"{self.name} shape"
        return (f"{self.name} log hazard",)

    @property
    def n_meanings(self) -> int:
        """The risk, and survival at each of the times."""
        return 1 + len(self.times)

    def loss(
        self, outputs_NK: Tensor, labels_NS: Tensor, *, weights: Tensor | None = None, smoothing: float = 0.0
    ) -> Tensor:
        """Return the negative log-likelihood; `weights` and `smoothing` are of classes."""
        assert weights is None
        return self.prepared_loss(labels_NS)(outputs_NK)

    def prepared_loss(self, labels_NS: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the loss of outputs (…, N, K) of these rows, summed over rows, (…); risk sets are sorted once."""
        has_label = ~labels_NS.isnan().any(dim=1)
        event_time, event, cohort = labels_NS[has_label].unbind(dim=1)
        if self.learned_by == "cox":
            if not event.any():
                return lambda outputs_NK: outputs_NK.sum(dim=(-1, -2)) * 0
            risk_sets = hazards.RiskSets(event_time, event, strata=cohort)
            return lambda outputs_NK: risk_sets.loss(outputs_NK[..., has_label, 0])
        if self.learned_by == "hazard":
            edges = np.asarray(self.edges)
            return lambda outputs_NK: hazards.discrete_hazard_loss(
                outputs_NK[..., has_label, :], event_time, event, edges
            )
        return lambda outputs_NK: hazards.weibull_loss(outputs_NK[..., has_label, :], event_time, event, unit=self.unit)

    def fitted(self, outputs_NK: Tensor, labels_NS: Tensor) -> "SurvivalTime":
        """Return the target with the baseline hazard, where the loss has left it open."""
        has_label = ~labels_NS.isnan().any(dim=1)
        event_time, event, cohort = labels_NS[has_label].unbind(dim=1)
        if self.learned_by != "cox" or len(cohort.unique()) > 1:  # each cohort has a baseline of its own
            return self
        cumulative = hazards.baseline_hazard(outputs_NK[has_label, 0], event_time, event, self.times)
        return replace(self, baseline=tuple(cumulative.tolist()))

    def meaning(self, outputs_NK: Tensor) -> Tensor:
        """Return the risk, and the probability to be free of the event at each of the times, (N, 1 + T)."""
        times, edges = np.asarray(self.times), np.asarray(self.edges)
        if self.learned_by == "hazard":
            survival_NT = hazards.discrete_survival(outputs_NK, edges, times)
            risk_N = hazards.discrete_risk(outputs_NK, edges)
        elif self.learned_by == "weibull":
            survival_NT = hazards.weibull_survival(outputs_NK, times, unit=self.unit)
            risk_N = hazards.weibull_risk(outputs_NK)
        else:
            risk_N = outputs_NK[:, 0]
            cumulative = outputs_NK.new_tensor(self.baseline or [torch.nan] * len(times))
            survival_NT = (-cumulative * risk_N[:, None].exp()).exp()
        return torch.cat([risk_N[:, None], survival_NT], dim=1)

    def columns(self, meaning_NK: np.ndarray) -> dict[str, np.ndarray]:
        """Return the risk, and the probability of being free of the event at the horizon."""
        survival = meaning_NK[:, 1 + self.times.index(self.horizon)]
        return {f"{self.name}_risk": meaning_NK[:, 0], f"{self.name}_free_at_{self.horizon:g}": survival}


def labels_of(targets: Sequence[Target], labels_NS: np.ndarray) -> list[np.ndarray]:
    """Cut labels (rows, all) into those of each target."""
    return np.split(labels_NS, np.cumsum([target.n_labels for target in targets])[:-1], axis=1)


def columns_of(targets: Sequence[Target], meaning_NK: np.ndarray) -> list[np.ndarray]:
    """Cut what outputs mean (rows, all) into that of each target."""
    return np.split(meaning_NK, np.cumsum([target.n_meanings for target in targets])[:-1], axis=1)
