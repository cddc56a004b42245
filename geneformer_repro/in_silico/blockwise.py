"""What is known of all rows of a screen from one block of them at a time.

A screen has cells × genes × states rows, and a table of genes needs sums over them. So each block is summed by key
(gene, donor, place, …), and sums are added up as blocks pass: memory follows the number of keys, whatever the number of
cells. Keys are integers: text is numbered once a block and name, not once a row.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from geneformer_repro.in_silico.shift_table import ShiftTable


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


def added(parts: Iterable[pd.DataFrame], merge: Callable[[pd.DataFrame], pd.DataFrame]) -> pd.DataFrame:
    """Add up tables of sums by their index as they come; at least one must.

    What waits is merged when it has outgrown what was merged, so that a key is touched few times and at most twice the
    result is held.

    Parameters
    ----------
    parts
        Sums of each block, a row a key.
    merge
        Makes one row of each key of a table that has several.
    """
    merged: list[pd.DataFrame] = []
    for part in parts:
        merged.append(part)
        if sum(map(len, merged[1:])) > len(merged[0]):
            merged = [merge(pd.concat(merged))]
    return merge(pd.concat(merged)) if len(merged) > 1 else merged[0]


def totals(parts: pd.DataFrame) -> pd.DataFrame:
    """Add the rows of each key."""
    return parts.groupby(level=list(range(parts.index.nlevels))).sum()


def totals_by_key(parts: pd.DataFrame) -> pd.DataFrame:
    """Add the rows of each key, an integer; at half the memory of `totals`, and in the order of the keys."""
    key = parts.index.to_numpy()
    order = np.argsort(key, kind="stable")
    key = key[order]
    starts = np.flatnonzero(np.diff(key, prepend=key[:1] - 1))
    summed = {name: np.add.reduceat(parts[name].to_numpy()[order], starts) for name in parts} if len(key) else {}
    return pd.DataFrame(summed, index=pd.Index(key[starts], name=parts.index.name), columns=parts.columns)


def moments(values: "pd.Series[Any]", keys: Sequence[Any]) -> pd.DataFrame:
    """Return number, mean and sum of squared deviations of the values of each key."""
    of_key = values.groupby(list(keys))
    n_values = of_key.count()
    return pd.DataFrame({"n": n_values, "mean": of_key.mean(), "squares": of_key.var(ddof=0) * n_values})


def merged_moments(parts: pd.DataFrame) -> pd.DataFrame:
    """Add spread within parts and between their means, as Chan, Golub and LeVeque (1983); NaN where n is 0."""
    levels = list(range(parts.index.nlevels))
    known = parts[parts["n"] > 0]
    of_key = known.assign(total=known["mean"] * known["n"]).groupby(level=levels)
    mean = of_key["total"].transform("sum") / of_key["n"].transform("sum")
    squares = known["squares"] + known["n"] * (known["mean"] - mean) ** 2
    of_key = known.assign(mean=mean, squares=squares).groupby(level=levels)
    merged: pd.DataFrame = of_key.agg({"n": "sum", "mean": "first", "squares": "sum"})
    if len(known) == len(parts):
        return merged
    return merged.reindex(parts.index.unique().sort_values()).fillna({"n": 0}).astype({"n": np.int64})


def blocks_of_whole_cells(shifts: ShiftTable, columns: Sequence[str]) -> Iterator[pd.DataFrame]:
    """Yield blocks that hold all rows of their cells.

    A screen writes each cell's rows into one block. Where those of a cell are spread over several, as in a table that
    was made otherwise, all rows are one block.
    """
    if _are_whole(shifts):
        yield from shifts.blocks(columns)
        return
    blocks = list(shifts.blocks(columns))
    text = [name for name in columns if isinstance(blocks[0][name].dtype, pd.CategoricalDtype)]
    yield pd.concat([block.astype(dict.fromkeys(text, object)) for block in blocks], ignore_index=True).astype(
        dict.fromkeys(text, pd.CategoricalDtype())
    )


def _are_whole(shifts: ShiftTable) -> bool:
    known: set[str] = set()
    for block in shifts.blocks(["cell"]):
        of_block = set(block["cell"].cat.categories)
        if known & of_block:
            return False
        known |= of_block
    return True
