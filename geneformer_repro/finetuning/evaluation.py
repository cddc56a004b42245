"""What each method reached on the test cells, with intervals, as tables."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from geneformer_repro.finetuning.methods import FINE_TUNED
from geneformer_repro.finetuning.metrics import evaluate_classes, evaluate_numbers, number_scores, over_folds, scores
from geneformer_repro.model import Target


@dataclass(frozen=True, eq=False)
class Evaluation:
    """How well one target was predicted; all methods on the same test cells."""

    target: Target
    """What was predicted."""
    methods: pd.DataFrame
    """A row a method: each score with ``_low`` and ``_high`` (95 % bootstrap interval)."""
    predictions: pd.DataFrame
    """A row a test cell: ``cell``, ``fold`` (of several), ``true``, and each method's prediction."""
    folds: pd.DataFrame | None = None
    """Over the folds, of several: ``method``, ``score``, ``mean``, ``sd``, ``n``."""
    probabilities: pd.DataFrame | None = None
    """The fine-tuned model's, a row a test cell, a column a class. None for a number, as what follows."""
    per_class: pd.DataFrame | None = None
    """``method``, ``class``, ``n``, and precision, recall, F1, AUROC and AUPRC with intervals."""
    confusion: pd.DataFrame | None = None
    """Test cells by true and predicted class, of the fine-tuned model."""
    confusion_intervals: pd.DataFrame | None = None
    """``true``, ``predicted``, ``n``, ``share`` of the true class, with its interval."""
    reliability: pd.DataFrame | None = None
    """``method``, and for each bin of confidence its mean, the ``accuracy`` there with its interval, and ``n``."""


def evaluate_target(
    target: Target,
    names: np.ndarray,
    labels: np.ndarray,
    predicted: Mapping[str, np.ndarray | None],
    *,
    folds: np.ndarray,
    groups: np.ndarray | None,
    seed: int,
    named: str = "cell",
) -> Evaluation:
    """Score every method on the test cells that have a label.

    Parameters
    ----------
    target
        What was predicted.
    names
        Name of each test cell.
    labels
        Class number, or number, of each; NaN where not known.
    predicted
        By method: probabilities (cells, classes) or numbers (cells,); None where it could not run.
    folds
        The fold in which each was tested, from 0.
    groups
        What the intervals resample as wholes; None resamples cells.
    seed
        Of the resampling, the same for every method.
    named
        What a row is called.
    """
    known = ~np.isnan(labels)
    names, labels, folds = names[known], labels[known], folds[known]
    groups = None if groups is None else groups[known]
    ran = {name: None if one is None else one[known] for name, one in predicted.items()}
    several = folds.max() > 0
    shown = {named: names} | ({"fold": folds + 1} if several else {})
    if not target.classes:
        rows = {
            name: {} if one is None else evaluate_numbers(labels, one, groups=groups, rng=np.random.default_rng(seed))
            for name, one in ran.items()
        }
        return Evaluation(
            target,
            _table(rows),
            pd.DataFrame(shown | {"true": labels} | {name: one for name, one in ran.items() if one is not None}),
            _over_folds(folds, labels, ran, number_scores) if several else None,
        )
    codes, classes = labels.astype(int), np.asarray(target.classes)
    found = {
        name: evaluate_classes(codes, one, target.classes, groups=groups, rng=np.random.default_rng(seed))
        for name, one in ran.items()
        if one is not None
    }
    ours, called = found[FINE_TUNED], {name: classes[one.argmax(1)] for name, one in ran.items() if one is not None}
    return Evaluation(
        target,
        _table({name: found[name].scores if name in found else {} for name in ran}),
        pd.DataFrame(shown | {"true": classes[codes]} | called),
        _over_folds(folds, codes, ran, scores) if several else None,
        pd.DataFrame(ran[FINE_TUNED], columns=list(classes)).assign(**{named: names}).set_index(named),
        _by_method({name: one.per_class.rename_axis("class").reset_index() for name, one in found.items()}),
        ours.confusion,
        ours.confusion_intervals,
        _by_method({name: one.reliability for name, one in found.items()}),
    )


def _table(rows: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    return pd.DataFrame(list(rows.values()), index=pd.Index(list(rows), name="method"))


def _by_method(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    return pd.concat([table.assign(method=name) for name, table in tables.items()], ignore_index=True).pipe(
        lambda table: table[["method", *table.columns.drop("method")]]
    )


def _over_folds(
    folds: np.ndarray,
    labels: np.ndarray,
    predicted: Mapping[str, np.ndarray | None],
    score: Callable[[np.ndarray, np.ndarray], dict[str, float]],
) -> pd.DataFrame:
    parts = [
        over_folds([score(labels[folds == fold], one[folds == fold]) for fold in np.unique(folds)])
        .rename_axis("score")
        .reset_index()
        .assign(method=name)
        for name, one in predicted.items()
        if one is not None
    ]
    table = pd.concat(parts, ignore_index=True)
    return table[["method", *table.columns.drop("method")]]
