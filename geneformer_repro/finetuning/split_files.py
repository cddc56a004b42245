"""The file that says which cell is in which part: a table, read and checked against the cells that there are."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from geneformer_repro.errors import InputError, did_you_mean
from geneformer_repro.files import read_table

logger = logging.getLogger(__name__)


def read_parts(
    path: Path, names: np.ndarray, parts: Sequence[str], *, row: str
) -> tuple[list[dict[str, np.ndarray]], np.ndarray]:
    """Return the rows of each part, ascending, of each fold of a table, and in which repeat each fold is, from 0.

    Parameters
    ----------
    path
        Has the columns ``cell`` (or what `row` says), ``part``, and where there are several ``fold`` and ``repeat``.
    names
        Of the cells; those that are not listed are left out.
    parts
        Which there may be; the first and the last must have cells.
    row
        What a row is called, and its column.

    Raises
    ------
    InputError
        It is no such table, names a part or a cell that there is not, or a fold lacks a part.
    """
    table = _read(path, parts, row)
    table["row"] = _find_rows(table[row], names, path, row)
    dealt = [name for name in ("repeat", "fold") if name in table]
    folds = [fold for _, fold in table.groupby(dealt, sort=False)] if dealt else [table]
    repeats = pd.factorize(np.array([fold["repeat"].iloc[0] if "repeat" in fold else 1 for fold in folds]))[0]
    unlisted = len(names) - table[row].nunique()
    if unlisted:
        logger.info("%s: %d of %d labelled %ss are not listed; left out.", path, unlisted, len(names), row)
    return [_parts_of(fold, parts, path, row) for fold in folds], repeats


def _read(path: Path, parts: Sequence[str], row: str) -> pd.DataFrame:
    try:
        table = read_table(path, sep=None)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{path}: not a table ({error}).") from error
    if not {row, "part"} <= set(table) or table.empty:
        raise InputError(
            f"{path}: expected the columns {row!r} and 'part', with tabs, commas or semicolons between them, and a "
            f"line a {row}; found {_listed(table.columns)} and {len(table)} lines."
        )
    for part in table["part"].unique():
        if part not in parts:
            raise InputError(f"{path}: there is no part {part!r}. {did_you_mean(part, parts)}")
    return table


def _listed(names: Iterable[Any]) -> str:
    return ", ".join(repr(str(name)) for name in names)


def _find_rows(listed: pd.Series, names: np.ndarray, path: Path, row: str) -> np.ndarray:
    index = pd.Index(names)
    if not index.is_unique:
        raise InputError(
            f"{path}: {row}s cannot be found by name, two are called {str(index[index.duplicated()][0])!r}; make names "
            "unique, or split by group."
        )
    rows = index.get_indexer(pd.Index(listed))
    unknown = listed[rows < 0]
    if len(unknown):
        raise InputError(
            f"{path}: {unknown.nunique()} of its {row}s are not among the {len(names)} labelled ones (first: "
            f"{unknown.iloc[0]!r}). Give the cells that the file was made for, with the same target and min_cells."
        )
    return rows


def _parts_of(table: pd.DataFrame, parts: Sequence[str], path: Path, row: str) -> dict[str, np.ndarray]:
    rows_of = {part: np.sort(table["row"].to_numpy()[table["part"] == part]) for part in parts}
    for part in (parts[0], parts[-1]):
        if not len(rows_of[part]):
            where = f"fold {table['fold'].iloc[0]}" if "fold" in table else "the file"
            raise InputError(f"{path}: {where} has no {row} in part {part!r}; name at least one.")
    return rows_of
