"""Rows of an explanation whose units are genes of a sample, characters of a SMILES, or cells of a patient.

Shapes: U units, S numbers explained.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from geneformer_repro.in_silico.explanations.explanation import COLUMNS, SURROGATE_COLUMNS


@dataclass(frozen=True, eq=False)
class Units:
    """What values stand for."""

    genes: Sequence[str] | None = None
    """Gene ids, or names of sets; None where they are no genes."""
    places: np.ndarray | None = None
    """Place of each; None where there is none."""
    others: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Further columns, text or numbers, a value a unit."""

    def __len__(self) -> int:
        known = [self.genes, self.places, *self.others.values()]
        return next(len(values) for values in known if values is not None)

    def select(self, kept: np.ndarray) -> "Units":
        """Return some of them, by numbers."""
        genes = None if self.genes is None else [self.genes[i] for i in kept]
        places = None if self.places is None else self.places[kept]
        others = {name: [values[i] for i in kept] for name, values in self.others.items()}
        return Units(genes, places, others)


def unit_rows(
    units: Units,
    value_US: np.ndarray,
    states: Sequence[str],
    before_S: np.ndarray,
    *,
    row: str,
    donor: str | None,
    method: str,
    exact: bool,
    gap_S: np.ndarray | None = None,
    fit: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
    has_fits: bool = False,
    further: Mapping[str, pa.DataType] | None = None,
    obs: Mapping[str, pa.Scalar] | None = None,
) -> pa.Table:
    """Return the rows of one sample, pair or patient by one method; a unit without a value (NaN) has null.

    Parameters
    ----------
    units, value_US
        Units and their values.
    states, before_S
        Names of the numbers explained, and what these are of the unchanged row.
    row, donor, method, exact
        What the columns of these names say; `row` is ``cell``.
    gap_S
        Of integrated gradients, by how much they miss.
    fit
        Of a surrogate the spread of its weights (U, S), its R² and its stability, (S,) each.
    has_fits
        Whether the table has columns for these.
    further
        Columns that units may have, with their types; null where these have none.
    obs
        Further columns with one value for all rows.
    """
    n_units, n_states = value_US.shape
    n = n_units * n_states
    of_unit = np.repeat(np.arange(n_units), n_states)
    of_state = np.tile(np.arange(n_states), n_units)

    def of_all(value: Any, kind: pa.DataType) -> pa.Array:
        return pa.nulls(n, kind) if value is None else pa.repeat(pa.scalar(value, kind), n)

    def of_units(values: Sequence[Any] | np.ndarray | None, kind: pa.DataType) -> pa.Array:
        return pa.nulls(n, kind) if values is None else pa.array(values, kind).take(pa.array(of_unit))

    def numbers(values: np.ndarray | None) -> pa.Array:
        return pa.nulls(n, pa.float64()) if values is None else pa.array(values.astype(np.float64), from_pandas=True)

    columns = {
        "cell": of_all(row, pa.string()),
        "donor": of_all(donor, pa.string()),
        "gene": of_units(units.genes, pa.string()),
        "place": of_units(units.places, pa.int32()),
        "method": of_all(method, pa.string()),
        "state": pa.array(states, pa.string()).take(pa.array(of_state)),
        "value": numbers(value_US.ravel()),
        "before": numbers(before_S[of_state]),
        "gap": numbers(None if gap_S is None else gap_S[of_state]),
        "exact": of_all(exact, pa.bool_()),
    }
    if has_fits:
        of_fit = (None,) * 3 if fit is None else (fit[0].ravel(), fit[1][of_state], fit[2][of_state])
        columns |= {name: numbers(values) for name, values in zip(SURROGATE_COLUMNS, of_fit, strict=True)}
    columns |= {name: of_units(units.others.get(name), kind) for name, kind in (further or {}).items()}
    columns |= {name: pa.repeat(value, n) for name, value in (obs or {}).items()}
    assert list(columns)[: len(COLUMNS)] == list(COLUMNS)
    return pa.table(columns)
