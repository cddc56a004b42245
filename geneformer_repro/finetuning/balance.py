"""Whether the parts of a split are alike in a column, such as age or sex: what is compared, and by which test."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import chi2_contingency, kruskal


def units(column: pd.Series, groups: np.ndarray | None) -> list[np.ndarray]:
    """Return what is compared: a value a cell or, where groups are moved as wholes, a value a group.

    Parameters
    ----------
    column
        Without gaps.
    groups
        Number of each cell's group, from 0; None without groups.

    Returns
    -------
    One array, or several. Of a group its mean number, the text that all its cells have, or its share of each text.
    Numbers come as float, text as codes.
    """
    is_number = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
    values = column.to_numpy(dtype=float) if is_number else pd.factorize(column)[0]
    if groups is None:
        return [values]
    if is_number:
        return [np.bincount(groups, values) / np.bincount(groups)]
    shares = pd.crosstab(groups, values, normalize="index").to_numpy()
    return [shares.argmax(axis=1)] if (shares.max(axis=1) == 1).all() else list(shares.T)


def p_value(parts: Sequence[np.ndarray], values: np.ndarray) -> float:
    """Test whether the values of the parts come from one distribution (null hypothesis).

    Numbers: Kruskal and Wallis; text: chi-squared of the table of parts and values. Approximate where units are few,
    which does for choosing among splits.

    Parameters
    ----------
    parts
        Which units are in each.
    values
        Of all units, from `units`.
    """
    of_parts = [values[part] for part in parts]
    if np.ptp(np.concatenate(of_parts)) == 0:
        return 1.0
    if values.dtype.kind == "f":
        return float(kruskal(*of_parts).pvalue)
    table = np.array([np.bincount(part, minlength=values.max() + 1) for part in of_parts])
    return float(chi2_contingency(table).pvalue)
