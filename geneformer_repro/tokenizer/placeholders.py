"""Words that stand in a column of labels or donors for cells that have none.

Programs that tell donors or lanes apart write them among the names (demuxlet, vireo, souporcell, HTODemux), and
annotations do so among the cell types. They are told, never dropped by themselves: a column may mean them.
"""

import logging
import shlex

import pandas as pd

logger = logging.getLogger(__name__)

UNKNOWN_LABELS = frozenset(
    f"{prefix}{word}"
    for prefix in ("", "cell_type_", "cell type ")
    for word in ("unknown", "unlabelled", "unlabeled", "unassigned", "unannotated", "undefined", "not assigned")
)
"""What stands for no known type of cell, in small letters."""
_NO_DONORS = UNKNOWN_LABELS | {
    f"{word}{end}"
    for word in ("doublet", "multiplet", "dbl", "amb", "ambient", "ambiguous", "debris")
    for end in ("", "s")
}


def are_unknown(labels: pd.Series, words: frozenset[str] = UNKNOWN_LABELS) -> pd.Series:
    """Say which labels (text, None where one is missing) are such a word, in any spelling."""
    return labels.str.casefold().str.strip().isin(words).astype(bool)


def warn_of_no_donors(labels: pd.Series, column: str, *, row: str = "cell") -> None:
    """Warn, once, of names in a column of donors (or other groups) that are words for having none.

    Parameters
    ----------
    labels
        As of `as_labels`: text, None where one is missing.
    column
        Its name.
    row
        What a label is of: "cell", "sample".
    """
    names = labels.dropna()
    counts = names[are_unknown(names, _NO_DONORS)].value_counts() if len(names) else names
    if len(counts):
        logger.warning(
            "%s: %s of %s %ss are called %s, which says that they have none, and are taken for one of their own. Leave "
            "them out (--where %s; in Python cells.select) if they are of no donor.",
            column, f"{counts.sum():,}", f"{len(labels):,}", row,
            ", ".join(f"{name!r} ({n:,})" for name, n in counts.items()),
            shlex.join(f"{column}!={name}" for name in counts.index),
        )  # fmt: skip
