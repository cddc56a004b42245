"""How well a model predicts the cells that are explained, beside guessing: what a reader has to know first.

Why a model says what it says is of interest only if what it says is worth something. Of a classifier that is no better
than guessing, an explanation shows what the network does with its input, and nothing about the label.

Shapes: N cells, R resamples, U units (donors, or cells), K classes.
"""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from geneformer_repro.targets import Classes, SurvivalTime, Target
from geneformer_repro.tokenizer.labels import as_labels

logger = logging.getLogger(__name__)

RESAMPLES = 1000
_FEWEST = 3
"""Units below which there is no interval."""


def of_classes(true_N: np.ndarray, predicted_N: np.ndarray, unit_N: np.ndarray) -> dict[str, Any]:
    """Return the balanced accuracy: the mean, over classes that occur, of the share that is rightly called.

    Parameters
    ----------
    true_N, predicted_N
        Numbers of classes.
    unit_N
        Donor of each cell, or the cell itself: what intervals resample.
    """
    classes, true_N = np.unique(true_N, return_inverse=True)
    predicted_N = np.searchsorted(classes, predicted_N) * np.isin(predicted_N, classes) + len(classes) * ~np.isin(
        predicted_N, classes
    )
    units, unit_N = np.unique(unit_N, return_inverse=True)
    shape = len(units), len(classes)
    n_UK, right_UK = np.zeros(shape), np.zeros(shape)
    np.add.at(n_UK, (unit_N, true_N), 1)
    np.add.at(right_UK, (unit_N, true_N), true_N == predicted_N)

    def score(weights_RU: np.ndarray) -> np.ndarray:
        n_RK = weights_RU @ n_UK
        with np.errstate(invalid="ignore"):
            return np.nanmean(np.where(n_RK > 0, weights_RU @ right_UK / n_RK, np.nan), axis=1)

    found = _scored("balanced accuracy", score, len(units), guess=1 / len(classes), n=len(true_N))
    if len(classes) == 1:  # whoever always says it is right
        found |= {"low": None, "high": None, "better_than_guessing": None}
    return found | {"n_classes": len(classes)}


def of_numbers(true_N: np.ndarray, predicted_N: np.ndarray, unit_N: np.ndarray) -> dict[str, Any]:
    """Return Pearson's correlation; parameters as of `of_classes`, but numbers."""
    units, unit_N = np.unique(unit_N, return_inverse=True)
    true_N, predicted_N = true_N - true_N.mean(), predicted_N - predicted_N.mean()
    moments = (np.ones(len(true_N)), true_N, predicted_N, true_N**2, predicted_N**2, true_N * predicted_N)
    sums_U6 = np.stack([np.bincount(unit_N, of_cells, len(units)) for of_cells in moments], axis=1)

    def score(weights_RU: np.ndarray) -> np.ndarray:
        n, x, y, xx, yy, xy = (weights_RU @ sums_U6).T
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray((xy - x * y / n) / np.sqrt((xx - x**2 / n) * (yy - y**2 / n)))

    return _scored("Pearson correlation", score, len(units), guess=0.0, n=len(true_N))


def of_risks(time_N: np.ndarray, event_N: np.ndarray, risk_N: np.ndarray, unit_N: np.ndarray) -> dict[str, Any]:
    """Return Harrell's C: the share of comparable pairs in which who has the event first has the higher risk.

    Parameters
    ----------
    time_N, event_N
        Time of the event, or of censoring, and which of the two it is.
    risk_N
        Higher is worse; ties count half.
    unit_N
        As of `of_classes`.
    """
    units, unit_N = np.unique(unit_N, return_inverse=True)
    comparable_NN = (event_N[:, None] == 1) & (
        (time_N[:, None] < time_N) | ((time_N[:, None] == time_N) & (event_N == 0))
    )
    concordant_NN = comparable_NN * (0.5 * (risk_N[:, None] == risk_N) + (risk_N[:, None] > risk_N))
    member_UN = (unit_N == np.arange(len(units))[:, None]).astype(float)
    all_UU, right_UU = (member_UN @ of_pairs @ member_UN.T for of_pairs in (comparable_NN, concordant_NN))

    def score(weights_RU: np.ndarray) -> np.ndarray:
        right_R, all_R = (((weights_RU @ of_pairs) * weights_RU).sum(1) for of_pairs in (right_UU, all_UU))
        return np.divide(right_R, all_R, out=np.full(len(all_R), np.nan), where=all_R > 0)

    return _scored("C-index", score, len(units), guess=0.5, n=len(time_N))


def _scored(
    name: str, score: Callable[[np.ndarray], np.ndarray], n_units: int, *, guess: float, n: int
) -> dict[str, Any]:
    value = float(score(np.ones((1, n_units)))[0])
    low = high = None
    if n_units >= _FEWEST and np.isfinite(value):
        drawn_RU = np.random.default_rng(0).multinomial(n_units, np.full(n_units, 1 / n_units), RESAMPLES)
        low, high = map(float, np.nanquantile(score(drawn_RU.astype(float)), [0.025, 0.975]))
    return {
        "score": name,
        "value": value if np.isfinite(value) else None,
        "low": low,
        "high": high,
        "guess": guess,
        "n_rows": n,
        "n_replicates": n_units,
        "better_than_guessing": None if low is None else low > guess,
    }


def replicates(donor_N: np.ndarray | None, n: int) -> tuple[np.ndarray, str]:
    """Return what intervals resample, and what it is called: donors where there are enough, or else rows."""
    if donor_N is not None and len(np.unique(donor_N)) >= _FEWEST:
        return donor_N, "donors"
    return np.arange(n), "rows"


def sentence(how_good: dict[str, Any]) -> str:
    """Say how good a model is, for the log and the first line of a page.

    Parameters
    ----------
    how_good
        From one of the functions above, and ``replicates``: over what the interval is, such as "donors".
    """
    if how_good.get("n_classes") == 1:
        return (
            "How well the model predicts these rows cannot be told: all are of one class, and whoever always says it "
            "is right. Ask it about rows of other classes as well."
        )
    if how_good["value"] is None or how_good["low"] is None:
        return f"How well the model predicts these rows cannot be told: {how_good['n_rows']} rows say too little."
    interval = f" ({how_good['low']:.2f} to {how_good['high']:.2f} over {how_good['replicates']})"
    said = f"{how_good['score']} {how_good['value']:.2f}{interval}, where guessing has {how_good['guess']:.2f}"
    if how_good["better_than_guessing"]:
        return f"The model predicts the rows explained with {said}."
    return (
        f"The model is no better than guessing on the rows explained: {said}. Its explanation shows what the network "
        "does with its input, and nothing about the label."
    )


def tell(how_good: dict[str, Any]) -> None:
    """Log how good a model is; a warning where it is not known to be better than guessing."""
    say = logger.info if how_good["better_than_guessing"] else logger.warning
    say("%s", sentence(how_good))


def of_target(target: Target, label_NS: np.ndarray, meaning_NK: np.ndarray, unit_N: np.ndarray) -> dict[str, Any]:
    """Return the score of a target's kind.

    Parameters
    ----------
    target
        What is predicted.
    label_NS
        What is known: the number of a class, a number, or a time and whether it is that of the event.
    meaning_NK
        What the model says, see `Target.meaning`.
    unit_N
        As of `of_classes`.
    """
    if isinstance(target, Classes):
        return of_classes(label_NS[:, 0], meaning_NK.argmax(1), unit_N)
    if isinstance(target, SurvivalTime):
        return of_risks(label_NS[:, 0], label_NS[:, 1], meaning_NK[:, 0], unit_N)
    return of_numbers(label_NS[:, 0], meaning_NK[:, 0], unit_N)


def labels_in(target: Target, obs: pd.DataFrame) -> np.ndarray | None:
    """Return what obs columns say of a target, (rows, numbers), NaN where nothing; None where columns are missing."""
    names = [target.time, target.name] if isinstance(target, SurvivalTime) else [target.name]
    if any(name not in obs for name in names):
        return None
    if isinstance(target, Classes):
        number = {name: i for i, name in enumerate(target.classes)}
        return as_labels(obs[target.name]).map(number).to_numpy(dtype=np.float64, na_value=np.nan)[:, None]
    columns = [pd.to_numeric(obs[name], errors="coerce").to_numpy(dtype=np.float64) for name in names]
    return np.stack(columns, axis=1)
