"""What each method reached on the test cells, with intervals, as tables."""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd

import geneformer_repro.processes as processes
from geneformer_repro.finetuning.methods import FINE_TUNED, RANDOM
from geneformer_repro.finetuning.metrics import (
    LEADING,
    differences,
    evaluate_classes,
    evaluate_numbers,
    number_scores,
    over_folds,
    scores,
)
from geneformer_repro.heads import Target

logger = logging.getLogger(__name__)

VS_BEST = "_vs_best_simple"
_NETWORKS = [FINE_TUNED, RANDOM]
_SPELLED = {"macro_f1": "macro-F1", "r2": "R²"}


@dataclass(frozen=True, eq=False)
class Evaluation:
    """How well one target was predicted; all methods on the same test cells."""

    target: Target
    """What was predicted."""
    methods: pd.DataFrame
    """A row a method: each score with ``_low`` and ``_high`` (95 % bootstrap interval). Where there are simple methods,
    at the end ``SCORE_vs_best_simple``, with both: by how much the score (macro-F1, or R² of a number) is above that of
    the simple method in which it is highest, on the same resamples; 0 for this method itself."""
    predictions: pd.DataFrame
    """A row a test cell: ``cell``, ``fold`` (of several), ``true``, and each method's prediction."""
    folds: pd.DataFrame | None = None
    """Over the folds, of several: ``method``, ``score``, ``mean``, ``sd``, ``n``; without folds of one class."""
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

    @property
    def leading(self) -> str:
        """The score by which methods are compared."""
        return LEADING["classes" if self.target.classes else "numbers"]

    @property
    def caution(self) -> str | None:
        """What the test rows cannot tell, in a sentence: all of them, or of a fold, are of one class, or a class lacks.

        None where nothing lacks.
        """
        if not self.target.classes:
            return None
        table = self.predictions
        rows, held = f"{table.columns[0]}s", set(table["true"])
        if len(held) == 1:
            return f"All test {rows} are of class {min(held)!r}; no score can tell how well classes are told apart"
        said = []
        if lacking := [repr(name) for name in self.target.classes if name not in held]:
            said.append(f"No test {rows} are of class {', '.join(lacking)}; scores are of the others")
        n_classes = table.groupby("fold")["true"].nunique() if "fold" in table else pd.Series(dtype=int)
        if alone := [str(fold) for fold in n_classes.index[n_classes == 1]]:
            folds = f"fold{'s' * (len(alone) > 1)} {', '.join(alone)}"
            said.append(f"All test {rows} of {folds} are of one class; there are scores over all folds only")
        return ". ".join(said) or None

    @property
    def verdict(self) -> str | None:
        """Whether fine-tuning was worth it, in a sentence; None where there is nothing to compare with.

        "Better" and "worse" where 0 is outside of the interval of the difference to the best simple method.
        """
        best = _best_simple(self.methods[self.leading])
        if best is None:
            return None
        columns = [f"{self.leading}{VS_BEST}{end}" for end in ("", "_low", "_high")]
        difference, low, high = map(float, self.methods.loc[FINE_TUNED, columns])
        if np.isnan([difference, low, high]).any():
            return None
        judged = "better" if low > 0 else "worse" if high < 0 else "no clear difference"
        where = "above"
        if difference < 0:
            where, difference, low, high = "below", -difference, -high, -low
        by_how_much = f"{_signed(difference)} ({_signed(low)} to {_signed(high)})"
        return f"{FINE_TUNED} is {by_how_much} {_SPELLED[self.leading]} {where} {best}: {judged}"


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
    beside = partial(_with_differences, labels=labels, predicted=ran, groups=groups, seed=seed)
    several = folds.max() > 0
    shown = {named: names} | ({"fold": folds + 1} if several else {})
    if not target.classes:
        rows = {
            name: {} if one is None else evaluate_numbers(labels, one, groups=groups, rng=np.random.default_rng(seed))
            for name, one in ran.items()
        }
        return Evaluation(
            target,
            beside(_table(rows), score=LEADING["numbers"]),
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
        beside(_table({name: found[name].scores if name in found else {} for name in ran}), score=LEADING["classes"]),
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


def _with_differences(
    table: pd.DataFrame,
    *,
    score: str,
    labels: np.ndarray,
    predicted: Mapping[str, np.ndarray | None],
    groups: np.ndarray | None,
    seed: int,
) -> pd.DataFrame:
    """Add how far each method is above the best simple one."""
    best = _best_simple(table[score])
    if best is None:
        return table
    ran = {name: one for name, one in predicted.items() if one is not None}
    found = differences(labels, ran, best, groups=groups, rng=np.random.default_rng(seed))
    rows = {name: one.columns(f"{score}{VS_BEST}") for name, one in found.items()}
    return table.join(pd.DataFrame.from_dict(rows, orient="index").astype(float))


def _best_simple(scores: pd.Series) -> str | None:
    """Return the method that is best but for the networks; the first of equals."""
    simple = scores.drop(_NETWORKS, errors="ignore").dropna()
    return str(simple.idxmax()) if len(simple) else None


def _signed(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def log_verdicts(evaluations: Iterable[Evaluation]) -> None:
    """Say in the log of every target whether fine-tuning was worth it, or why that cannot be told."""
    for evaluation in evaluations:
        if processes.is_first() and evaluation.caution:
            logger.warning("%s: %s.", evaluation.target.name, evaluation.caution)
        if processes.is_first() and evaluation.verdict:
            logger.info("%s: %s.", evaluation.target.name, evaluation.verdict)


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
