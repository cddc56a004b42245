"""How good predicted probabilities of classes are: the sums that each score is made of, in all resamples at once.

Shapes: N cells, C classes, R resamples, S sums.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix
from sklearn.metrics import confusion_matrix

from geneformer_repro.finetuning.kinds.kind import Scored
from geneformer_repro.finetuning.metrics import (
    Interval,
    Statistics,
    bootstrap,
    mean_of_defined,
    once,
    ratio,
    require_finite,
    with_intervals,
)

CLASS_SCORES = ("accuracy", "balanced_accuracy", "macro_f1", "auroc", "auprc", "ece")
OF_A_CLASS = ("precision", "recall", "f1", "auroc", "auprc")
N_BINS = 15


@dataclass(frozen=True, eq=False)
class ClassEvaluation(Scored):
    """How good predicted probabilities of classes are; ``scores`` are `CLASS_SCORES`."""

    per_class: pd.DataFrame
    """Indexed by class: ``n``, and each of `OF_A_CLASS` with ``_low`` and ``_high``."""
    confusion: pd.DataFrame
    """Cells by true class (rows) and predicted class (columns)."""
    confusion_intervals: pd.DataFrame
    """A row a pair that occurs: ``true``, ``predicted``, ``n``, ``share`` of the true class, ``share_low`` and
    ``share_high``. Pairs that do not occur have no row: no resample has them either, so 0 to 0 would look certain."""
    reliability: pd.DataFrame
    """A row a bin of confidence that has cells: mean ``confidence``, ``accuracy``, ``accuracy_low``,
    ``accuracy_high``, ``n``."""


def scores(true_N: np.ndarray, probabilities_NC: np.ndarray) -> dict[str, float]:
    """Return `CLASS_SCORES` as in `evaluate_classes`, without intervals; all NaN if a probability is not finite."""
    if not np.isfinite(probabilities_NC).all() or _is_of_one_class(true_N):
        return dict.fromkeys(CLASS_SCORES, np.nan)
    found = _ClassStatistics(true_N, probabilities_NC)(once(len(true_N)))
    return {name: found[name].item() for name in CLASS_SCORES}


def validation_scores(true_N: np.ndarray, probabilities_NC: np.ndarray) -> dict[str, float]:
    """Return accuracy and macro-F1, by which an epoch is chosen; of one class, too, since one must be chosen."""
    if not np.isfinite(probabilities_NC).all():
        return {"accuracy": np.nan, "macro_f1": np.nan}
    calls = Calls(true_N, probabilities_NC)
    return {"accuracy": float(calls.right_N.mean()), "macro_f1": calls.macro_f1(once(len(true_N))).item()}


def _is_of_one_class(true_N: np.ndarray) -> bool:
    return len(true_N) > 0 and bool(np.ptp(true_N) == 0)


def evaluate_classes(
    true_N: np.ndarray,
    probabilities_NC: np.ndarray,
    classes: Sequence[str],
    *,
    groups: np.ndarray | None,
    rng: np.random.Generator,
) -> ClassEvaluation:
    """Score predicted probabilities of classes, each score with a 95 % percentile bootstrap interval.

    Parameters
    ----------
    true_N
        Number of each cell's class.
    probabilities_NC
        Of each class; the largest is the prediction (the first of equals). Of a method that only names a class,
        0 and 1.
    classes
        Their names.
    groups
        Resampled as wholes where given (cells of a donor are alike, so an interval over cells is too narrow). Rough
        below some ten groups, and too narrow rather than too wide. Cells are resampled where there are no groups or
        only one.
    rng
        Source of randomness; methods that are given the same seed are compared on the same resamples.

    Returns
    -------
    The scores. All lie between 0 and 1; higher is better, but for ``ece``. ``balanced_accuracy`` and ``macro_f1`` are
    means over the classes that test cells have, with F1 0 for one that is never predicted. ``auroc`` (0.5: order by
    chance) and ``auprc`` (average precision; share of the class: order by chance) are means, over the classes that
    some test cells have and others have not, of this class against the rest; equal probabilities count as in
    scikit-learn. With two classes, both AUROCs are the same, while the AUPRCs are not (see ``per_class``). ``ece`` is
    the mean distance between confidence (largest probability) and accuracy over 15 bins of equal width, closed on the
    right. Chance adds to it, more so in resamples, so its interval lies high: the value may be below the low end.

    What is not defined is NaN: recall, F1, AUROC and AUPRC of a class without test cells, precision of one that is
    never predicted. An interval leaves out resamples in which that happens. Where all test cells are of one class, all
    scores are NaN, also by confidence, and of the classes all but the recall of this one: a method that calls
    everything so is right.

    Raises
    ------
    InputError
        A probability is not finite.
    """
    require_finite(probabilities_NC)
    statistics = _ClassStatistics(true_N, probabilities_NC)
    found = bootstrap(statistics, len(true_N), groups, rng)
    if _is_of_one_class(true_N):
        of_class = [f"class_{name}" for name in OF_A_CLASS if name != "recall"]
        found |= {name: Interval(*(np.full_like(part, np.nan) for part in found[name])) for name in of_class}
        found |= {name: Interval(*np.full((3, 1), np.nan)) for name in CLASS_SCORES}
        found["bin_accuracy"] = Interval(*(np.full_like(part, np.nan) for part in found["bin_accuracy"]))
    return ClassEvaluation(
        with_intervals(found, CLASS_SCORES),
        _per_class(statistics, found, classes),
        _confusion(statistics, classes),
        _confusion_intervals(statistics, found, classes),
        pd.DataFrame(
            {"confidence": found["bin_confidence"].value}
            | found["bin_accuracy"].columns("accuracy")
            | {"n": _sizes(statistics.bins_SN)}
        ),
    )


class _Ranking(NamedTuple):
    """Sets of cells by falling probability of a class: each tie with cells of it, and all cells between two of these.

    What lies between cannot change an area, so there are at most about twice as many sets as cells of the class.
    """

    all_SN: csr_matrix
    hits_SN: csr_matrix
    """Cells of the class, in those sets that have any."""
    with_hits: np.ndarray
    """Which sets these are."""

    @classmethod
    def of(cls, positive_N: np.ndarray, probability_N: np.ndarray) -> "_Ranking":
        ties = np.unique(-probability_N, return_inverse=True)[1]
        hit = np.bincount(ties, weights=positive_N) > 0
        begins = hit | np.concatenate([[True], hit[:-1]])
        sets_N = (np.cumsum(begins) - 1)[ties]
        with_hits = np.unique(sets_N[positive_N])
        hits_N = np.where(positive_N, np.searchsorted(with_hits, sets_N), -1)
        return cls(_members(sets_N, sets_N.max() + 1), _members(hits_N, len(with_hits)), with_hits)

    def areas(self, weights_NR: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """AUROC (trapezoids) and average precision of each resample."""
        size_SR, hits_SR = self.all_SN @ weights_NR, self.hits_SN @ weights_NR
        seen_SR = size_SR.cumsum(axis=0)
        n_R, seen_SR, size_SR = seen_SR[-1], seen_SR[self.with_hits], size_SR[self.with_hits]
        found_SR = hits_SR.cumsum(axis=0)
        n_hits_R, n_misses_R = found_SR[-1], n_R - found_SR[-1]
        misses_above_SR = seen_SR - found_SR - (size_SR - hits_SR) / 2
        precision_SR = found_SR / np.maximum(seen_SR, 1)
        auroc_R = 1 - ratio((hits_SR * misses_above_SR).sum(axis=0), n_hits_R * n_misses_R)
        auprc_R = ratio((hits_SR * precision_SR).sum(axis=0), n_hits_R)
        return auroc_R, np.where(n_misses_R > 0, auprc_R, np.nan)


class Calls:
    """Which class was called for each cell, and what F1 sums over."""

    def __init__(self, true_N: np.ndarray, probabilities_NC: np.ndarray) -> None:
        n_classes = probabilities_NC.shape[1]
        self.true_N = true_N.astype(np.intp)  # codes of a categorical are int8, too small for those of pairs
        self.predicted_N = probabilities_NC.argmax(axis=1)
        self.right_N = self.true_N == self.predicted_N
        self.true_CN, self.predicted_CN = _members(self.true_N, n_classes), _members(self.predicted_N, n_classes)
        self.right_CN = _members(np.where(self.right_N, self.true_N, -1), n_classes)

    def sums(self, weights_NR: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return how many cells are of each class, are called so, and both."""
        return self.true_CN @ weights_NR, self.predicted_CN @ weights_NR, self.right_CN @ weights_NR

    def macro_f1(self, weights_NR: np.ndarray) -> np.ndarray:
        """Return the mean F1 over the classes that rows have, of each resample."""
        return mean_of_defined(_f1(*self.sums(weights_NR)))


def _f1(true_CR: np.ndarray, predicted_CR: np.ndarray, right_CR: np.ndarray) -> np.ndarray:
    return np.where(true_CR > 0, ratio(2 * right_CR, true_CR + predicted_CR), np.nan)


class _ClassStatistics(Calls):
    """What the scores of classes sum over."""

    def __init__(self, true_N: np.ndarray, probabilities_NC: np.ndarray) -> None:
        super().__init__(true_N, probabilities_NC)
        n_classes, true_N, right_N = probabilities_NC.shape[1], self.true_N, self.right_N
        confidence_N = probabilities_NC.max(axis=1).astype(np.float64)
        self.pairs, pair_N = np.unique(true_N * n_classes + self.predicted_N, return_inverse=True)
        self.pairs_SN = _members(pair_N, len(self.pairs))
        bins, bin_N = np.unique(np.ceil(confidence_N * N_BINS).clip(1, N_BINS), return_inverse=True)
        self.bins_SN = _members(bin_N, len(bins))
        self.right_bins_SN = _members(np.where(right_N, bin_N, -1), len(bins))
        self.confidence_SN = self.bins_SN.multiply(confidence_N).tocsr()
        self.rankings = {
            c: _Ranking.of(true_N == c, probabilities_NC[:, c]) for c in np.unique(true_N) if (true_N != c).any()
        }

    def __call__(self, weights_NR: np.ndarray) -> Statistics:
        """Of all cells, of each class (``class_…``), of each bin (``bin_…``), and the ``share`` of each pair."""
        of_class = self._of_class(weights_NR)
        n_true_CR = self.true_CN @ weights_NR
        return {
            "balanced_accuracy": mean_of_defined(of_class["class_recall"]),
            "macro_f1": mean_of_defined(of_class["class_f1"]),
            "auroc": mean_of_defined(of_class["class_auroc"]),
            "auprc": mean_of_defined(of_class["class_auprc"]),
            **of_class,
            **self._of_bin(weights_NR),
            "share": ratio(self.pairs_SN @ weights_NR, n_true_CR[self.pairs // len(n_true_CR)]),
        }

    def _of_class(self, weights_NR: np.ndarray) -> dict[str, np.ndarray]:
        true_CR, predicted_CR, right_CR = self.sums(weights_NR)
        areas_2CR = np.full((2, *true_CR.shape), np.nan)
        for c, ranking in self.rankings.items():
            areas_2CR[:, c] = ranking.areas(weights_NR)
        return {
            "class_precision": ratio(right_CR, predicted_CR),
            "class_recall": ratio(right_CR, true_CR),
            "class_f1": _f1(true_CR, predicted_CR, right_CR),
            "class_auroc": areas_2CR[0],
            "class_auprc": areas_2CR[1],
        }

    def _of_bin(self, weights_NR: np.ndarray) -> dict[str, np.ndarray]:
        n_SR, right_SR, confidence_SR = (
            sets @ weights_NR for sets in (self.bins_SN, self.right_bins_SN, self.confidence_SN)
        )
        n_R = n_SR.sum(axis=0)
        return {
            "accuracy": right_SR.sum(axis=0) / n_R,
            "ece": np.abs(right_SR - confidence_SR).sum(axis=0) / n_R,
            "bin_confidence": ratio(confidence_SR, n_SR),
            "bin_accuracy": ratio(right_SR, n_SR),
        }


def _members(set_N: np.ndarray, n_sets: int) -> csr_matrix:
    """Ones where a cell (column) is in a set (row); a cell of set -1 is in none."""
    in_one = set_N >= 0
    where = (set_N[in_one], np.flatnonzero(in_one))
    return csr_matrix((np.ones(len(where[0])), where), shape=(n_sets, len(set_N)))


def _sizes(sets_SN: csr_matrix) -> np.ndarray:
    return np.diff(sets_SN.indptr)


def _per_class(statistics: _ClassStatistics, found: Mapping[str, Interval], classes: Sequence[str]) -> pd.DataFrame:
    columns = {"n": _sizes(statistics.true_CN)}
    for name in OF_A_CLASS:
        columns |= found[f"class_{name}"].columns(name)
    return pd.DataFrame(columns, index=pd.Index(classes, name="class"))


def _confusion(statistics: _ClassStatistics, classes: Sequence[str]) -> pd.DataFrame:
    counts = confusion_matrix(statistics.true_N, statistics.predicted_N, labels=range(len(classes)))
    return pd.DataFrame(counts, index=pd.Index(classes, name="true"), columns=pd.Index(classes, name="predicted"))


def _confusion_intervals(
    statistics: _ClassStatistics, found: Mapping[str, Interval], classes: Sequence[str]
) -> pd.DataFrame:
    true, predicted = np.divmod(statistics.pairs, len(classes))
    names = np.asarray(classes, dtype=object)
    return pd.DataFrame(
        {"true": names[true], "predicted": names[predicted], "n": _sizes(statistics.pairs_SN)}
        | found["share"].columns("share")
    )
