"""How good predicted classes are, with intervals."""

import numpy as np
import pandas as pd
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

N_RESAMPLES = 1000


def scores(true: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Return ``accuracy`` and ``macro_f1``, the mean over the classes among the true ones of each class's F1 (0 where it is never predicted)."""
    return {
        "accuracy": float(accuracy_score(true, predicted)),
        "macro_f1": float(f1_score(true, predicted, labels=np.unique(true), average="macro", zero_division=0)),
    }


def scores_with_intervals(
    true: np.ndarray, predicted: np.ndarray, *, groups: np.ndarray | None, rng: np.random.Generator
) -> dict[str, float]:
    """Return each of `scores` with ``…_low`` and ``…_high``, a 95 % percentile bootstrap interval.

    Parameters
    ----------
    true, predicted
        Class of each test cell.
    groups
        Resampled as wholes where given (cells of a donor are alike, so cells alone would give too narrow an interval).
    rng
        Source of randomness.
    """
    units = (
        [np.array([i]) for i in range(len(true))]
        if groups is None
        else [np.flatnonzero(groups == group) for group in np.unique(groups)]
    )
    resampled = []
    for _ in range(N_RESAMPLES):
        rows = np.concatenate([units[i] for i in rng.integers(len(units), size=len(units))])
        resampled.append(scores(true[rows], predicted[rows]))
    low, high = pd.DataFrame(resampled).quantile([0.025, 0.975]).to_numpy()
    whole = scores(true, predicted)
    return {
        name: value
        for i, metric in enumerate(whole)
        for name, value in ((metric, whole[metric]), (f"{metric}_low", low[i]), (f"{metric}_high", high[i]))
    }


def confusion(true: np.ndarray, predicted: np.ndarray, classes: tuple[str, ...]) -> pd.DataFrame:
    """Return cells by true class (rows) and predicted class (columns)."""
    counts = confusion_matrix(true, predicted, labels=list(classes))
    return pd.DataFrame(counts, index=pd.Index(classes, name="true"), columns=pd.Index(classes, name="predicted"))
