"""Are the genes that a method names those that the answer rests on? Take them away and see.

An occlusion wins a game that is played with its own operator, so each method is judged by another: methods that leave
genes out by masking them, others by hiding them. What a curve is worth is told by others: genes at random, from the
front of the cell, and by fold change; and by the best of all that were tried, an occlusion by the judging operator
among them where there is one.

Rows are cells, samples, patients, or samples with a drug, and what is taken away are genes, or characters of a SMILES;
how that is done, and what the model says then, the family of models knows (`again`).

Shapes: N altered rows, G genes of a row, S shares of them that are taken away.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
from scipy.integrate import trapezoid

from geneformer_repro.in_silico.explanations.agreement import THE_MEAN, THE_MEDIAN, operator_of
from geneformer_repro.in_silico.explanations.gene_table import UNSIGNED
from geneformer_repro.in_silico.networks.donor_tests import donor_test

SHARES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
"""Of the genes of a row."""
N_RANDOM = 10
RANDOM = "random"
BY_PLACE, BY_CHANGE, BY_VALUE, BY_DETECTION = "place", "fold change", "distance from the mean", "detection"
SIMPLE = (BY_PLACE, BY_CHANGE, BY_VALUE, BY_DETECTION)
"""Orders that need no model."""
LARGEST, SMALLEST = "largest first", "smallest first"
_OPERATOR = {"hide": "leaving genes out", "mask": "<mask>", "median": THE_MEDIAN, "mean": THE_MEAN}
"""What a judge does, in the words of `operator_of`; of characters the operator is called so itself."""
_DIFFERENCE = 1e-9
"""Of two areas; below it there is nothing to share out."""


Altered: TypeAlias = tuple[int, np.ndarray]
"""Number of a row, and of its genes that are altered."""


class RankedRow(NamedTuple):
    """A row, and what each order goes by."""

    name: str
    donor: str | None
    free: np.ndarray
    """Numbers of its genes that may be taken away."""
    scores: Mapping[str, np.ndarray]
    """By order, a number a gene: the largest goes first, a gene without one (NaN) last."""


class Curves(NamedTuple):
    """What becomes of the answer as genes go, or come."""

    points: pd.DataFrame
    """A row an ``order`` and ``share``: ``value``, the mean over donors of the mean over cells; of random orders their
    mean, and from ``low`` to ``high`` where most lie."""
    areas: pd.DataFrame
    """A row an order: ``area`` under its curve, ``better``, by how much it is better than random, with its 95 %
    interval over donors, ``low`` to ``high``, and ``p_value``, ``faithfulness`` and ``best``, the best order."""


def area(shares: Sequence[float], values: np.ndarray) -> np.ndarray:
    """Return the area under curves, by trapezoids; the shares are those of the last axis."""
    return np.asarray(trapezoid(values, shares, axis=-1))


def faithfulness(of_random: float, of_method: float, of_best: float) -> float:
    """Return (random − method) / (random − best) of areas: 1 as good as the best, 0 as random, below 0 worse.

    NaN where the best is no better than random.
    """
    if abs(of_random - of_best) <= _DIFFERENCE * max(abs(of_random), abs(of_best)):
        return np.nan
    return (of_random - of_method) / (of_random - of_best)


def order_of(scores_G: np.ndarray) -> np.ndarray:
    """Return places of genes, the largest score first; of equal ones, and those without one, the first in the cell."""
    return np.argsort(np.where(np.isnan(scores_G), np.inf, -scores_G), kind="stable")


def n_taken(n_genes: int, shares: Sequence[float]) -> np.ndarray:
    """Return how many genes each share of them is, to the nearest."""
    return np.floor(np.asarray(shares) * n_genes + 0.5).astype(np.int64)


def orders(
    attributions: Mapping[str, np.ndarray], simple: Mapping[str, np.ndarray], *, signed: bool = True
) -> dict[str, np.ndarray]:
    """Return what each order of a row's genes goes by, but random ones.

    Parameters
    ----------
    attributions
        Of each method, (G,).
    simple
        Of each order that needs no model, (G,).
    signed
        Also the smallest first, of methods with signs.
    """
    scores = {f"{method}, {LARGEST}": values for method, values in attributions.items()}
    if signed:
        of_signed = {method: of for method, of in attributions.items() if method.partition(" ")[0] not in UNSIGNED}
        scores |= {f"{method}, {SMALLEST}": -values for method, values in of_signed.items()}
    return scores | dict(simple)


@dataclass(frozen=True)
class Judge:
    """Takes genes away, or brings them, by one operator.

    Parameters
    ----------
    operator
        Its name, such as "hide", "mask" or "median".
    value_of
        Answers of altered rows, (N,).
    inserting
        Begin with the row whose genes are all altered, and bring them, the first of each order first.
    shares
        Of the genes, ascending from 0.
    n_random
        Random orders of each row.
    """

    operator: str
    value_of: Callable[[Iterator[Altered]], np.ndarray]
    inserting: bool = False
    shares: Sequence[float] = SHARES
    n_random: int = N_RANDOM

    def curves(self, rows: Sequence[RankedRow], metadata: Mapping[str, Any], *, rng: np.random.Generator) -> Curves:
        """Return what becomes of the answer in each order.

        Parameters
        ----------
        rows
            With the same orders.
        metadata
            Of the explanation, says what its methods do.
        rng
            Of random orders.
        """
        names = [*rows[0].scores, *(f"{RANDOM} {i}" for i in range(self.n_random))]
        values = self.value_of(self._altered(rows, rng)).reshape(len(rows), len(names), len(self.shares))
        donors = pd.Series([row.donor for row in rows], dtype=object)
        has_donors = bool(donors.notna().all())
        of_donors = pd.Series(range(len(rows))).groupby(donors if has_donors else np.zeros(len(rows), int)).indices
        means = np.stack([values[of_donor].mean(0) for of_donor in of_donors.values()])
        random = [name.startswith(RANDOM) for name in names]
        points = self._points(names, means.mean(0), np.array(random))
        areas = self._areas(names, area(self.shares, means), np.array(random), has_donors=has_donors)
        areas.insert(1, "own_operator", [self._is_own(name, metadata) for name in areas["order"]])
        return Curves(points, areas.assign(n_cells=len(rows), n_donors=len(of_donors) if has_donors else 0))

    def _altered(self, rows: Sequence[RankedRow], rng: np.random.Generator) -> Iterator[Altered]:
        """Yield the rows with ever more genes taken away, or brought, order by order."""
        for number, row in enumerate(rows):
            genes = row.free
            taken = n_taken(len(genes), self.shares)
            ordered = [genes[order_of(scores[genes])] for scores in row.scores.values()]
            ordered += [rng.permutation(genes) for _ in range(self.n_random)]
            for order in ordered:
                for n in taken.tolist():
                    yield number, np.sort(order[n:] if self.inserting else order[:n])

    def _points(self, names: Sequence[str], values: np.ndarray, is_random: np.ndarray) -> pd.DataFrame:
        rows = [*zip(np.array(names)[~is_random], values[~is_random], strict=True)]
        none = np.full(len(self.shares), np.nan)
        tables = [self._point_rows(name, of, none, none) for name, of in rows]
        if is_random.any():
            low, high = np.percentile(values[is_random], [2.5, 97.5], axis=0)
            tables.append(self._point_rows(RANDOM, values[is_random].mean(0), low, high))
        return pd.concat(tables, ignore_index=True)

    def _point_rows(self, name: str, value: np.ndarray, low: np.ndarray, high: np.ndarray) -> pd.DataFrame:
        return pd.DataFrame({"order": name, "share": self.shares, "value": value, "low": low, "high": high})

    def _areas(
        self, names: Sequence[str], areas: np.ndarray, is_random: np.ndarray, *, has_donors: bool
    ) -> pd.DataFrame:
        """Return how the areas, donors × orders, compare with those of random orders."""
        sign = -1 if self.inserting else 1
        of_random = areas[:, is_random].mean(1, keepdims=True)
        named, kept = np.array(names)[~is_random].tolist(), areas[:, ~is_random]
        tested = donor_test(sign * (of_random - kept))
        unknown = np.full(len(named), np.nan)
        low, high, p_value = (tested.low, tested.high, tested.p_value) if has_donors else (unknown,) * 3
        mean, random = kept.mean(0), float(of_random.mean())
        toward = sign * mean
        toward[[name.endswith(SMALLEST) for name in named]] = np.inf
        best = int(np.argmin(toward))
        table = pd.DataFrame(
            {
                "order": named,
                "area": mean,
                "better": sign * (random - mean),
                "low": low,
                "high": high,
                "p_value": p_value,
                "faithfulness": [faithfulness(random, value, mean[best]) for value in mean],
                "best": named[best],
            }
        )
        smallest = table["order"].str.endswith(SMALLEST)
        table.loc[smallest, "faithfulness"] = np.nan
        if sign * (random - mean[best]) <= 0:
            table["faithfulness"] = np.nan
        return table

    def _is_own(self, order: str, metadata: Mapping[str, Any]) -> bool:
        method = order.partition(", ")[0]
        own = _OPERATOR.get(self.operator, self.operator)
        return order not in SIMPLE and operator_of(method, metadata) == own
