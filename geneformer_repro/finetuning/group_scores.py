"""Scores by donor: cells of a donor are alike, so it is of donors, not of cells, that a method is right or wrong.

So are samples of a patient, whose survival is one.

Where all cells of a group have one label, such as a disease, the group becomes a row: what is predicted of it is the
mean over its cells. Where labels differ within groups, as cell types do, each group is scored by itself, and methods
are compared group by group. Over cells alone a method that knows 40 of 44 donors looks as sure as one of 400.

Shapes: N rows, S numbers of a label, G groups.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from geneformer_repro.finetuning.difference_tests import paired_test
from geneformer_repro.finetuning.kinds.kind import Kind

FEW_GROUPS = 8
"""Below so many, intervals over groups are rough."""


class GroupRows(NamedTuple):
    """Groups as rows; one that is tested in several repeats has a row in each."""

    names: np.ndarray
    labels_GS: np.ndarray
    predicted: dict[str, np.ndarray]
    """By method, the mean over the group's rows."""
    folds: np.ndarray
    repeats: np.ndarray


def are_of_groups(labels_NS: np.ndarray, groups: np.ndarray) -> bool:
    """Whether all rows of a group have one label, and groups differ in it."""
    of_group = pd.DataFrame(labels_NS).groupby(groups)
    return bool((of_group.nunique() == 1).all(axis=None)) and len(np.unique(labels_NS, axis=0)) > 1


def rows_of_groups(
    labels_NS: np.ndarray,
    predicted: Mapping[str, np.ndarray],
    *,
    groups: np.ndarray,
    folds: np.ndarray,
    repeats: np.ndarray,
) -> GroupRows:
    """Return groups as rows, in the order of folds and names.

    Parameters
    ----------
    labels_NS
        The same for all rows of a group, see `are_of_groups`.
    predicted
        By method, what its kind predicts of each row: probabilities, or a number.
    groups
        Group of each row.
    folds, repeats
        In which each row was tested.
    """
    _, first, codes = np.unique(
        folds * (len(groups) + 1) + np.unique(groups, return_inverse=True)[1], return_index=True, return_inverse=True
    )
    size = np.bincount(codes)

    def mean(of_rows: np.ndarray) -> np.ndarray:
        columns = of_rows.reshape(len(of_rows), -1).T
        means = np.stack([np.bincount(codes, weights=column) / size for column in columns], axis=1)
        return means.reshape(len(size), *of_rows.shape[1:])

    return GroupRows(
        groups[first],
        labels_NS[first],
        {name: mean(np.asarray(one, dtype=np.float64)) for name, one in predicted.items()},
        folds[first],
        repeats[first],
    )


def scores_in_groups(
    kind: Kind[Any],
    labels_NS: np.ndarray,
    predicted: Mapping[str, np.ndarray],
    *,
    groups: np.ndarray,
    folds: np.ndarray,
) -> pd.DataFrame:
    """Score every method in each group by itself.

    Returns
    -------
    A row a method and group: ``method``, ``group``, ``n`` (rows), and the scores of the kind, the mean over folds in
    which the group was tested, whose networks are not one; NaN where a group does not define one, as where all of its
    rows are of one class.
    """
    of_fold: Mapping[Any, np.ndarray] = pd.Series(np.arange(len(groups))).groupby([groups, folds]).indices
    rows = [
        {"method": name, "group": group, "n": len(members), **kind.scores(labels_NS[members], one[members])}
        for name, one in predicted.items()
        for (group, _), members in of_fold.items()
    ]
    of_group = pd.DataFrame(rows).groupby(["method", "group"], sort=False)
    table = of_group.mean()
    table["n"] = of_group["n"].sum()
    return table.reset_index()


def over_groups(per_group: pd.DataFrame, *, leading: str, best: str | None) -> pd.DataFrame:
    """Return how scores lie over groups, and how each method compares with one of them, group by group.

    Parameters
    ----------
    per_group
        Of `scores_in_groups`.
    leading
        The score by which methods are compared.
    best
        The method that the others are compared with; None for none.

    Returns
    -------
    Indexed by method: ``n_groups`` in which `leading` is defined; of each score the median over groups, with
    ``_lowest`` and ``_highest``. With `best` also the median of the differences in `leading` within groups,
    ``LEADING_vs_best_simple``, with both ends, ``n_above`` and ``n_below`` (groups in which the method is above, or
    below), and ``p_value`` of a paired t-test over groups (null hypothesis: the mean difference is 0; two-sided).
    """
    scores = [name for name in per_group if name not in ("method", "group", "n")]
    of_method = per_group.groupby("method", sort=False)[scores]
    ends = {"": of_method.median(), "_lowest": of_method.min(), "_highest": of_method.max()}
    columns: dict[str, pd.Series] = {"n_groups": of_method.count()[leading]}
    columns |= {f"{name}{end}": table[name] for name in scores for end, table in ends.items()}
    table = pd.DataFrame(columns)
    if best is None:
        return table
    by_group = per_group.pivot(index="group", columns="method", values=leading)
    differences = by_group.sub(by_group[best], axis=0)
    compared = {
        f"{leading}_vs_best_simple": differences.median(),
        f"{leading}_vs_best_simple_lowest": differences.min(),
        f"{leading}_vs_best_simple_highest": differences.max(),
        "n_above": (differences > 0).sum(),
        "n_below": (differences < 0).sum(),
        "p_value": pd.Series(
            [paired_test(of_groups.to_numpy(), by_group[best].to_numpy()).p for _, of_groups in by_group.items()],
            index=by_group.columns,
        ),
    }
    return table.join(pd.DataFrame(compared))
