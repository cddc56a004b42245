"""What is learned: which columns, and how times until an event are taken."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from geneformer_repro.config import ConfigError, require, require_types
from geneformer_repro.errors import InputError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class FollowUpConfig:
    """How times are taken, and which rows are compared."""

    section: ClassVar[str] = "follow_up"
    cohort: str | None = None
    """Obs column of cohorts, such as the type of tumour: rows are compared with those of their own cohort alone."""
    horizon: float | None = None
    """Time at which survival is told and scored, such as five years, in the unit of the times; None: the median time
    of the events."""
    censor_at: float | None = None
    """Follow-up ends here: what comes later counts as censored at this time. None: as it is."""
    unusable: Literal["refuse", "leave_out"] = "refuse"
    """What becomes of rows whose time is not above 0, or whose time or event alone is missing."""
    learned_by: Literal["hazard", "weibull"] = "hazard"
    """What the network learns: the probability of the event in each of some intervals, or an accelerated failure time
    (Weibull)."""
    intervals: int = 10
    """Of "hazard", each with as many events."""

    def __post_init__(self) -> None:
        require_types(self)
        for name in ("horizon", "censor_at"):
            require((getattr(self, name) or 1) > 0, self, name, "above 0")
        require(self.intervals >= 2, self, "intervals", "at least 2")


def require_one_time(survival: Any) -> None:
    """Raise if several columns stand for the time of an event: entry times are not modelled.

    Raises
    ------
    ConfigError
        There are several columns of an event.
    """
    for event, columns in survival.items() if isinstance(survival, Mapping) else ():
        if isinstance(columns, list | tuple):
            raise ConfigError(
                f"survival names one column of times for each event, found {list(columns)} for {event!r}. Times of "
                "entry (left truncation, start and stop) are not modelled: risk sets begin at time 0. Give the time "
                "since entry only where nobody's entry depends on having survived until then."
            )


def require_columns(config: Any) -> None:
    """Raise, before types are checked, unless ``target``, ``regression`` and ``survival`` have the right form."""
    require_one_time(config.survival)
    several = isinstance(config.target, tuple | list) and all(isinstance(name, str) for name in config.target)
    require(several or isinstance(config.target, str), config, "target", "an obs column, or several")
    require(not isinstance(config.regression, str), config, "regression", "a tuple of targets")


def require_kinds(config: Any) -> None:
    """Raise unless each column that is learned as a number is a target, and no event."""
    both = set(config.regression) & set(config.survival)
    require(not both, config, "regression", "other than the events of survival")
    require_targets("regression", config.regression, config.targets)


def require_targets(field: str, names: Any, targets: tuple[str, ...]) -> None:
    """Raise unless a field of a configuration names targets only."""
    for name in names:
        if name not in targets:
            raise InputError(f"{field} names {name!r}, which is no target. {did_you_mean(name, targets)}")


def all_targets(target: str | Sequence[str], survival: Mapping[str, str]) -> tuple[str, ...]:
    """Return the obs columns to learn, also of one, with those of events at the end."""
    named = (target,) if isinstance(target, str) else tuple(target)
    return (*named, *(event for event in survival if event not in named))
