"""What is known of all rows of a screen from one block of them at a time.

A screen has cells × genes × states rows, and a table of genes needs sums over them. So each block is summed by key
(gene, donor, place, …), and sums are added up as blocks pass: memory follows the number of keys, whatever the number of
cells. Keys are integers: text is numbered once a block and name, not once a row.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pandas as pd

from geneformer_repro.errors import InputError
from geneformer_repro.in_silico.shift_table import ShiftTable

logger = logging.getLogger(__name__)


class InBlocks(Protocol):
    """A table that is read block by block."""

    def blocks(self, columns: Sequence[str] | None = None) -> Iterator[pd.DataFrame]:
        """Yield the rows in order, text of chosen columns as categories of the block."""


class Names:
    """Numbers of names, in the order in which they come."""

    def __init__(self) -> None:
        self._number: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._number)

    def number(self, name: str) -> int:
        """Return the number of a name."""
        return self._number.setdefault(name, len(self._number))

    def numbers(self, column: "pd.Series[Any]") -> np.ndarray:
        """Return the number of each name of a column of categories, -1 for none."""
        of_category = [self.number(name) for name in column.cat.categories]
        return np.array([*of_category, -1], dtype=np.int64)[column.cat.codes.to_numpy()]

    def names(self) -> np.ndarray:
        """Return the names, by number."""
        return np.array(list(self._number), dtype=object)

    def names_and(self, none: str | None) -> np.ndarray:
        """Return the names, by number, and behind them, where -1 finds it, what stands for none."""
        return np.array([*self._number, none], dtype=object)


def added(tables: Iterable[pd.DataFrame], merge: Callable[[pd.DataFrame], pd.DataFrame]) -> pd.DataFrame:
    """Add up tables of sums by their index as they come; at least one must.

    What waits is merged when it has outgrown what was merged, so that a key is touched few times and at most twice the
    result is held.

    Parameters
    ----------
    tables
        Sums of each block, a row a key.
    merge
        Makes one row of each key of a table that has several.
    """
    merged: list[pd.DataFrame] = []
    for table in tables:
        merged.append(table)
        if sum(map(len, merged[1:])) > len(merged[0]):
            merged = [merge(pd.concat(merged))]
    return merge(pd.concat(merged)) if len(merged) > 1 else merged[0]


def added_by_donor(
    blocks: Iterable[pd.DataFrame], keys: Sequence[str], how: Mapping[str, str], *, by_donor: bool
) -> pd.DataFrame:
    """Add up numbers of rows by key and donor, block by block, so that means of donors can be made of them.

    Parameters
    ----------
    blocks
        Rows with the keys, ``donor`` and the numbers.
    keys
        Columns that tell sums apart; missing values are a key.
    how
        How each number is added up, such as ``"sum"``.
    by_donor
        Whether donors are told apart, and rows without one left out; else all rows are of the donor ``""``.

    Returns
    -------
    The numbers, indexed by the keys and ``donor``.
    """
    levels = [*keys, "donor"]

    def sums() -> Iterator[pd.DataFrame]:
        for block in blocks:
            of_block = block[block["donor"].notna()] if by_donor else block.assign(donor="")
            text = {name: object for name in levels if isinstance(of_block[name].dtype, pd.CategoricalDtype)}
            if len(of_block):
                yield of_block.astype(text).groupby(levels, dropna=False).agg(how)

    return added(sums(), lambda tables: tables.groupby(level=levels, dropna=False).agg(how))


def totals(of_blocks: pd.DataFrame) -> pd.DataFrame:
    """Add the rows of each key."""
    return of_blocks.groupby(level=list(range(of_blocks.index.nlevels))).sum()


def totals_by_key(of_blocks: pd.DataFrame) -> pd.DataFrame:
    """Add the rows of each key, an integer; at half the memory of `totals`, and in the order of the keys."""
    key = of_blocks.index.to_numpy()
    order = np.argsort(key, kind="stable")
    key = key[order]
    starts = np.flatnonzero(np.diff(key, prepend=key[:1] - 1))
    columns = of_blocks if len(key) else ()
    summed = {name: np.add.reduceat(of_blocks[name].to_numpy()[order], starts) for name in columns}
    return pd.DataFrame(summed, index=pd.Index(key[starts], name=of_blocks.index.name), columns=of_blocks.columns)


def moments(values: "pd.Series[Any]", keys: Sequence[Any]) -> pd.DataFrame:
    """Return number, mean and sum of squared deviations of the values of each key."""
    of_key = values.groupby(list(keys))
    n_values = of_key.count()
    return pd.DataFrame({"n": n_values, "mean": of_key.mean(), "squares": of_key.var(ddof=0) * n_values})


def merged_moments(of_blocks: pd.DataFrame) -> pd.DataFrame:
    """Add spread within blocks and between their means, as Chan, Golub and LeVeque (1983); NaN where n is 0."""
    levels = list(range(of_blocks.index.nlevels))
    with_values = of_blocks[of_blocks["n"] > 0]
    of_key = with_values.assign(total=with_values["mean"] * with_values["n"]).groupby(level=levels)
    mean = of_key["total"].transform("sum") / of_key["n"].transform("sum")
    squares = with_values["squares"] + with_values["n"] * (with_values["mean"] - mean) ** 2
    of_key = with_values.assign(mean=mean, squares=squares).groupby(level=levels)
    merged: pd.DataFrame = of_key.agg({"n": "sum", "mean": "first", "squares": "sum"})
    if len(with_values) == len(of_blocks):
        return merged
    return merged.reindex(of_blocks.index.unique().sort_values()).fillna({"n": 0}).astype({"n": np.int64})


def measured(
    shifts: ShiftTable,
    columns: Sequence[str],
    *,
    affected: bool = False,
    whole_cells: bool = False,
    tell: bool = False,
) -> Iterator[pd.DataFrame]:
    """Yield what happened to cells, block by block, without rows of no value, as of a cell that lost its only gene.

    Parameters
    ----------
    shifts
        Result of a screen.
    columns
        Those that are wanted, ``value`` among them.
    affected
        Yield the rows of affected genes as well.
    whole_cells
        Yield blocks that hold all rows of their cells.
    tell
        Log how many rows are left out.

    Raises
    ------
    InputError
        A value is infinite, or none is known.
    """
    n_missing, n_known = 0, 0
    for block in (blocks_of_whole_cells if whole_cells else ShiftTable.blocks)(shifts, [*{*columns, "affected"}]):
        value = block["value"].to_numpy()
        is_there = ~np.isnan(value)
        if np.isinf(value).any():
            raise InputError(
                f"The screen holds infinite values (first: {_first(shifts, np.isinf)}), of which there is no mean. The "
                "model gave them, or the table was changed: screen again, or leave these rows out."
            )
        n_missing, n_known = n_missing + int((~is_there).sum()), n_known + int(is_there.sum())
        is_wanted = is_there if affected else is_there & block["affected"].isna()
        yield block if is_wanted.all() else block[is_wanted]
    if n_missing and not n_known:
        raise InputError(f"All {n_missing} values of the screen are missing; there is nothing to test. Screen again.")
    if n_missing and tell:
        logger.warning(
            "%s of %s values are missing (first: %s); left out.",
            f"{n_missing:,}", f"{n_missing + n_known:,}", _first(shifts, np.isnan),
        )  # fmt: skip


def _first(shifts: ShiftTable, of_kind: Callable[[np.ndarray], np.ndarray]) -> str:
    """Name the first row whose value is of a kind, such as infinite; there must be one."""
    for block in shifts.blocks(["cell", "perturbed", "value"]):
        rows = block[of_kind(block["value"].to_numpy())]
        if len(rows):
            return f"cell {rows['cell'].iloc[0]!r}, perturbed {rows['perturbed'].iloc[0]!r}"
    raise AssertionError


def rounding_error(block: pd.DataFrame) -> float:
    """Return how far rounding may take a value of a block, the mean of many values, or a difference of means.

    A value is the difference of two similarities, or predictions, s − s₀, each computed in float32, where a number x
    has an error of up to |x| · 2⁻²⁴. So it has one of up to (|s| + |s₀|) · 2⁻²⁴, of which the largest is taken; s₀ is
    in ``before``, and 1, what a similarity is where nothing moved, if that is null. Errors of like computations may be
    alike, so a mean over cells or donors need not have a smaller one.
    """
    if not len(block):
        return 0.0
    value, before = block["value"].to_numpy(), block["before"].to_numpy(dtype=float)
    has_before = ~np.isnan(before)
    of_value = np.abs(np.where(has_before, before + value, value)) + np.abs(np.where(has_before, before, 1.0))
    return float(of_value.max() * np.finfo(np.float32).eps / 2)


def blocks_of_whole_cells(table: InBlocks, columns: Sequence[str]) -> Iterator[pd.DataFrame]:
    """Yield blocks that hold all rows of their cells, by the column ``cell``.

    A screen writes each cell's rows into one block. Where those of a cell are spread over several, as in a table that
    was made otherwise, all rows are one block.
    """
    if _are_whole(table):
        yield from table.blocks(columns)
        return
    blocks = list(table.blocks(columns))
    text = [name for name in columns if isinstance(blocks[0][name].dtype, pd.CategoricalDtype)]
    yield pd.concat([block.astype(dict.fromkeys(text, object)) for block in blocks], ignore_index=True).astype(
        dict.fromkeys(text, pd.CategoricalDtype())
    )


def _are_whole(table: InBlocks) -> bool:
    seen: set[str] = set()
    for block in table.blocks(["cell"]):
        of_block = set(block["cell"].cat.categories)
        if seen & of_block:
            return False
        seen |= of_block
    return True
