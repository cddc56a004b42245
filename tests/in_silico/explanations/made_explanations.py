"""Explanations made by hand, for tests of what is done with them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

TEXT = ("cell", "donor", "gene", "method", "state")


class Made:
    """Rows of an explanation in memory, in blocks of some size, as a file would give them."""

    def __init__(self, table: pd.DataFrame, metadata: Mapping[str, Any] | None = None, *, size: int = 7) -> None:
        self.table, self.metadata, self.size = table, dict(metadata or {}), size

    def blocks(self, columns: Sequence[str] | None = None) -> Iterator[pd.DataFrame]:
        table = self.table if columns is None else self.table[list(columns)]
        for start in range(0, len(table), self.size):
            block = table.iloc[start : start + self.size]
            yield block.astype(dict.fromkeys(set(TEXT) & set(block), "category"))


def rows(
    values: Mapping[str, Sequence[float]], *, method: str = "hide", state: str | None = "B", **columns: Any
) -> pd.DataFrame:
    """Rows of cells: of each cell the values of genes g0, g1, … in the order of their places; NaN: not expressed."""
    cells = []
    for cell, of_cell in values.items():
        known = np.flatnonzero(~np.isnan(of_cell))
        cells.append(
            pd.DataFrame(
                {
                    "cell": cell,
                    "donor": cell.partition(".")[0] if "." in cell else None,
                    "gene": [f"g{i}" for i in known],
                    "place": np.arange(len(known)),
                    "method": method,
                    "state": state,
                    "value": np.asarray(of_cell, dtype=float)[known],
                    "before": 1.0,
                    "gap": np.nan,
                    "exact": True,
                    **columns,
                }
            )
        )
    return pd.concat(cells, ignore_index=True)
