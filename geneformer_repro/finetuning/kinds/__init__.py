"""What a label is, one file a kind: how it is read, split, scored, predicted without a network, and shown."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from geneformer_repro.finetuning.kinds.classes import ClassLabels, read_classes
from geneformer_repro.finetuning.kinds.kind import Kind
from geneformer_repro.finetuning.kinds.numbers import NumberLabels, read_numbers
from geneformer_repro.finetuning.kinds.response import ResponseLabels
from geneformer_repro.finetuning.kinds.survival import SurvivalLabels, read_survival
from geneformer_repro.finetuning.settings.labels import FollowUpConfig
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
