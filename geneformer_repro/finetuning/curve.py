"""How many labels a method needs: every method trained on few cells, then on more, and asked the same test cells."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from geneformer_repro.errors import InputError
from geneformer_repro.finetuning.methods import Comparison
from geneformer_repro.finetuning.problems.problem import Problem
from geneformer_repro.finetuning.splits import Split, nested_draw

logger = logging.getLogger(__name__)

DRAWS = 3
"""Times that so many training cells are drawn: with ten labels it matters much which ten."""


def learning_curve(
    compared: Comparison, config: Any, split: Split, *, sizes: Sequence[int], work: Path
) -> pd.DataFrame:
    """Train every method on more and more of the training cells.

    No cell chooses the epoch here, since its label would have to be counted: all networks of a size take the same
    number of steps, and the last one is kept. Draws are nested: the cells of a size are among those of the next.

    Parameters
    ----------
    compared
        The methods.
    config, split, work
        As for the whole comparison; the validation cells count among those to be drawn.
    sizes
        Numbers of labelled cells, none of them too large (`require_enough`); all cells are added at the end.

    Returns
    -------
    ``target``, ``method``, ``n`` (labelled cells), ``draw``, and the scores on the test cells.
    """
    problem = compared.problem
    pool = np.sort(np.concatenate([split.train, split.validation]))
    rows = []
    for n in sorted({*sizes, len(pool)}):
        for draw in range(DRAWS if n < len(pool) else 1):
            chosen = nested_draw(problem.strata, pool, n, np.random.default_rng([config.seed, draw]))
            outcome = compared.run(
                problem.with_labels(config, n),
                Split(chosen, test=split.test),
                with_model=False,
                work=work / f"{n}-labels-draw-{draw + 1}",
                step=f"{n} labels, draw {draw + 1}",
            )
            rows += _scored(problem, split.test, outcome.predicted, n, draw)
    return pd.DataFrame(rows)


def require_enough(sizes: Sequence[int], split: Split) -> None:
    """Raise `InputError` if a size is larger than the number of cells to be drawn from."""
    n_cells = len(split.train) + len(split.validation)
    if max(sizes, default=0) > n_cells:
        raise InputError(
            f"curve asks for {max(sizes)} labelled cells, but those that are not reported are {n_cells}. Leave such "
            "sizes out; all cells are always the last."
        )


def _scored(
    problem: Problem, test_rows: np.ndarray, predicted: list[dict[str, np.ndarray | None]], n: int, draw: int
) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for (kind, labels), by_method in zip(problem.of_kinds(test_rows), predicted, strict=True):
        known = ~np.isnan(labels).any(axis=1)
        ran = {method: one[known] for method, one in by_method.items() if one is not None}
        scoring = kind.beside(ran)
        for method, one in ran.items():
            found = scoring.scores(labels[known], one)
            rows.append({"target": kind.target.name, "method": method, "n": n, "draw": draw + 1, **found})
    return rows


def over_draws(curve: pd.DataFrame, target: str, score: str) -> pd.DataFrame:
    """Return ``method``, ``n``, and of a score over the draws its mean (``score``), lowest and highest."""
    of_target = curve[curve["target"] == target]
    grouped = of_target.groupby(["method", "n"], sort=False)[score].agg(["mean", "min", "max"]).reset_index()
    return grouped.rename(columns={"mean": "score", "min": "low", "max": "high"})
