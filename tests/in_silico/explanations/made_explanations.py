"""Explanations made by hand, for tests of what is done with them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from geneformer_repro.in_silico.explanations.explanation import Explanation


class Made(Explanation):
    """Rows of an explanation in memory, in blocks of some size, as a file would give them."""

    def __init__(self, table: pd.DataFrame, metadata: Mapping[str, Any] | None = None, *, size: int = 7) -> None:
        methods = {name: {} for name in table["method"].unique()}
        super().__init__(table, {"measure": "log-odds", "methods": methods, "gene_names": {}, **(metadata or {})})
        self.size = size

    def blocks(self, columns: Sequence[str] | None = None) -> Iterator[pd.DataFrame]:
        for start in range(0, len(self.table), self.size):
            yield from Explanation(self.table.iloc[start : start + self.size], self.metadata).blocks(columns)


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
