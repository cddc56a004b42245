"""How good predicted classes are, with intervals."""

import numpy as np
import pandas as pd
from sklearn.metrics import confusion_matrix

N_RESAMPLES = 1000


def scores(true: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Return ``accuracy`` and ``macro_f1``: the mean F1 of the true classes, 0 for one that is never predicted."""
    pairs, n_classes = _pairs(true, predicted)
    return _scores(pairs, n_classes)


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
    pairs, n_classes = _pairs(true, predicted)
    units = (
        np.arange(len(pairs))[:, None] if groups is None else [np.flatnonzero(groups == g) for g in np.unique(groups)]
    )
    resampled = []
    for _ in range(N_RESAMPLES):
        drawn = rng.integers(len(units), size=len(units))
        rows = units[drawn].ravel() if isinstance(units, np.ndarray) else np.concatenate([units[i] for i in drawn])
        resampled.append(_scores(pairs[rows], n_classes))
    low, high = pd.DataFrame(resampled).quantile([0.025, 0.975]).to_numpy()
    result: dict[str, float] = {}
    for i, (name, value) in enumerate(_scores(pairs, n_classes).items()):
        result |= {name: value, f"{name}_low": float(low[i]), f"{name}_high": float(high[i])}
    return result


def _pairs(true: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, int]:
    """Code each cell's (true class, predicted class) as one number."""
    classes, codes = np.unique(np.concatenate([true, predicted]), return_inverse=True)
    return codes[: len(true)] * len(classes) + codes[len(true) :], len(classes)


def _scores(pairs: np.ndarray, n_classes: int) -> dict[str, float]:
    """Scores from coded pairs; a thousand times in a bootstrap, where scikit-learn's checks of its input take 7 s."""
    counts = np.bincount(pairs, minlength=n_classes**2).reshape(n_classes, n_classes)
    right, n_true, n_predicted = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)
    there = n_true > 0
    f1 = 2 * right[there] / (n_true + n_predicted)[there]
    return {"accuracy": float(right.sum() / counts.sum()), "macro_f1": float(f1.mean())}


def confusion(true: np.ndarray, predicted: np.ndarray, classes: tuple[str, ...]) -> pd.DataFrame:
    """Return cells by true class (rows) and predicted class (columns)."""
    counts = confusion_matrix(true, predicted, labels=list(classes))
    return pd.DataFrame(counts, index=pd.Index(classes, name="true"), columns=pd.Index(classes, name="predicted"))
