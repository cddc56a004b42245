"""What a label is, one file a kind: how it is read, split, scored, predicted without a network, and shown."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from geneformer_repro.config import require
from geneformer_repro.errors import InputError, did_you_mean
from geneformer_repro.finetuning.kinds.classes import ClassLabels, read_classes
from geneformer_repro.finetuning.kinds.kind import Kind
from geneformer_repro.finetuning.kinds.numbers import NumberLabels, read_numbers
from geneformer_repro.finetuning.kinds.response import ResponseLabels
from geneformer_repro.finetuning.kinds.survival import FollowUpConfig, SurvivalLabels, read_survival, require_one_time
from geneformer_repro.targets import Classes, Number, Response, SurvivalTime, Target


def kind_of(target: Target) -> Kind[Any]:
    """Return what an experiment must know of a target's labels."""
    match target:
        case Classes():
            return ClassLabels(target)
        case Number():
            return NumberLabels(target)
        case Response():
            return ResponseLabels(target)
        case SurvivalTime():
            return SurvivalLabels(target)
    raise AssertionError(target)


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


def read_labels(
    name: str,
    column_of: Callable[[str], pd.Series],
    *,
    regression: Any,
    survival: Any,
    follow_up: FollowUpConfig,
    min_cells: int = 0,
    row: str = "cell",
) -> tuple[Target, np.ndarray]:
    """Read a target: a class, a number, or a time until an event.

    Parameters
    ----------
    name
        Of the target.
    column_of
        Returns a column by its name.
    regression, survival, follow_up
        As in a configuration.
    min_cells, row
        As for `read_classes`.
    """
    if name in survival:
        time, cohort = survival[name], follow_up.cohort
        columns = {column: column_of(column) for column in (name, time, *([cohort] if cohort else []))}
        return read_survival(name, pd.DataFrame(columns), time, follow_up)
    if name in regression:
        return read_numbers(name, column_of(name))
    return read_classes(name, column_of(name), min_cells, row=row)
