"""What a label is called, wherever one is read or named: the one rule for it.

pandas is imported where a column is read: configurations and the command line name labels, and need it no further.
"""

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from geneformer_repro.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

_SHOWN = 5
MISSING = frozenset({"", "nan", "NaN", "NA", "<NA>", "N/A", "n/a", "#N/A"})
"""Text that stands for a missing value, as pandas, R and Excel write them."""


def as_labels(column: "pd.Series") -> "pd.Series":
    """Return values as the names of what they stand for (classes, states, groups): text, or None where one is missing.

    The one rule for it, so that a class that was learned, a goal, a group of a split and a row of a table have one
    name. Text stays as it is, also "1.0", but for blanks around it; a number that is whole is written without a point,
    since an integer column with a gap becomes 1.0; other numbers, True and False as Python writes them. Text that
    stands for a missing value counts as one: nothing or blanks, "nan", "NaN", "NA", "<NA>", "N/A", "n/a", "#N/A"
    ("None" and "null" do not: treatments and alleles are called so). What is taken otherwise than it stands there is
    counted in the log.
    """
    labels, messages = labels_and_messages(column)
    for line in messages:
        logger.info(line)
    return labels


def labels_and_messages(column: "pd.Series") -> "tuple[pd.Series, list[str]]":
    """Return the labels of `as_labels`, and its messages for the log."""
    import pandas as pd

    codes, values = pd.factorize(column)
    of_their_precision = values.to_numpy() if pd.api.types.is_float_dtype(values.dtype) else values
    names = np.array([*map(label_of, of_their_precision), None], dtype=object)
    texts = [(i, value) for i, value in enumerate(of_their_precision) if isinstance(value, str)]
    missing = [i for i, _ in texts if names[i] in MISSING]
    with_blanks = [i for i, value in texts if value != names[i] and names[i] not in MISSING]
    messages = []
    if missing:
        examples = " or ".join(repr(str(of_their_precision[i])) for i in missing[:_SHOWN])
        messages.append(
            f"{column.name}: {_n_of(codes, missing)} of {len(column)} cells say {examples}; taken as missing."
        )
    if with_blanks:
        messages.append(
            f"{column.name}: {_n_of(codes, with_blanks)} of {len(column)} cells have blanks around their value (first: "
            f"{str(of_their_precision[with_blanks[0]])!r}); taken without."
        )
    names[missing] = None
    return pd.Series(names[codes], index=column.index, name=column.name, dtype=object), messages


def _n_of(codes: np.ndarray, values: list[int]) -> int:
    return int(np.isin(codes, values).sum())


def label_of(value: Any) -> str:
    """Return the name of a value that is not missing; see `as_labels`."""
    is_whole = isinstance(value, float | np.floating) and float(value).is_integer()
    return str(int(value)) if is_whole else str(value).strip()


def asked_labels(values: Any, what: str) -> tuple[str, ...]:
    """Return by their names, as `as_labels` has them, values of a column that a user named: 0, 0.0 and "0" are one.

    Parameters
    ----------
    values
        A sequence of text, numbers, True or False.
    what
        What they are, to begin a message.

    Raises
    ------
    InputError
        They are no sequence, or one of them is missing or no single value.
    """
    import pandas as pd

    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise InputError(f"{what} must be in a sequence of values; for one give [{values!r}].")
    values = tuple(values)
    for value in values:
        if not pd.api.types.is_scalar(value) or pd.isna(value):
            raise InputError(f"{what} must be a value of a column: text, a number, True or False; found {value!r}.")
    return tuple(map(label_of, values))
