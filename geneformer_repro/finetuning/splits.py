"""Which cells are trained on, which choose the epoch, and which are reported.

Three parts that share no cell and, if asked, no group.
"""

import warnings
from typing import NamedTuple

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold, train_test_split

from geneformer_repro.errors import InputError


class Split(NamedTuple):
    """Row numbers of each part."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def split_cells(labels: np.ndarray, groups: np.ndarray | None, *, validation: float, test: float, seed: int) -> Split:
    """Split cells in three, each with about the same share of every class.

    Parameters
    ----------
    labels
        Class of each cell.
    groups
        Group of each cell (its donor): no group is in two parts. None splits cell by cell.
    validation, test
        Share of the cells in these parts; with groups only as near as whole groups allow.
    seed
        Decides which.

    Raises
    ------
    InputError
        A class has fewer than three cells, there are fewer than three groups, or a class of the test cells is missing
        from the training cells.
    """
    counts = pd.Series(labels).value_counts().sort_index()
    rare = counts[counts < 3]
    if len(rare):
        listed = ", ".join(f"{str(name)!r} ({n})" for name, n in rare.items())
        raise InputError(
            "A class needs at least 3 cells, one for each part of the split; "
            f"too few: {listed}. Leave such classes out with min_cells=3."
        )
    if groups is not None and len(np.unique(groups)) < 3:
        raise InputError(
            f"Splitting by group needs at least 3 groups, found {len(np.unique(groups))}: "
            f"{', '.join(map(str, np.unique(groups)))}."
        )
    rows = np.arange(len(labels))
    rest, tested = _part(rows, labels, groups, test, seed)
    train, validated = _part(rest, labels, groups, validation / (1 - test), seed)
    unseen = sorted(set(map(str, labels[tested])) - set(map(str, labels[train])))
    if unseen:
        raise InputError(
            f"No training cell is of class {', '.join(map(repr, unseen))}, which the test cells have; "
            "it lives in too few groups. Leave it out with min_cells, or split by another column."
        )
    return Split(np.sort(train), np.sort(validated), np.sort(tested))


def _part(
    rows: np.ndarray, labels: np.ndarray, groups: np.ndarray | None, share: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    counts = pd.Series(labels[rows]).value_counts()
    if groups is None:
        n_cells = max(round(share * len(rows)), len(counts))
        if counts.min() < 2 or len(rows) - n_cells < len(counts):
            raise InputError(
                f"{len(rows)} cells are too few to put every class in every part; class {str(counts.idxmin())!r} has "
                f"{counts.min()} left. Give smaller validation and test shares, or leave it out with min_cells."
            )
        rest, part = train_test_split(rows, test_size=n_cells, stratify=labels[rows], random_state=seed)
        return rest, part
    most = min(len(np.unique(groups[rows])), counts.max())
    folds = StratifiedGroupKFold(n_splits=int(np.clip(round(1 / share), 2, most)), shuffle=True, random_state=seed)
    with warnings.catch_warnings():  # a class rarer than the folds is as well spread as it can be
        warnings.filterwarnings("ignore", message="The least populated class")
        rest, part = next(folds.split(rows, labels[rows], groups[rows]))
    return rows[rest], rows[part]


def split_table(split: Split, cell_names: np.ndarray) -> pd.DataFrame:
    """Return ``cell`` and ``part``, to be saved and looked at."""
    parts = [pd.DataFrame({"cell": cell_names[rows], "part": part}) for part, rows in split._asdict().items()]
    return pd.concat(parts, ignore_index=True)
