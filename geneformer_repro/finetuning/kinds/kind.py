"""What an experiment must know of a kind of label, whatever a row is."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import numpy as np
import pandas as pd

from geneformer_repro.report import Section
from geneformer_repro.targets import Target

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TargetT = TypeVar("TargetT", bound=Target)
FINE_TUNED, RANDOM = "fine-tuned", "same network, random weights"
"""What the networks are called in every table."""
GAP = "(none)"
"""Stratum of a row without a label."""


@dataclass(frozen=True, eq=False)
class Scored:
    """What one method reached on the test rows."""

    scores: dict[str, float]
    """Each score, with ``_low`` and ``_high``, the ends of its 95 % bootstrap interval."""


class Kind(ABC, Generic[TargetT]):
    """The labels of one target: how they are split, scored, predicted without a network, and shown.

    Labels are numbers, (rows, `Target.n_labels`), NaN where one is missing. A prediction has a row a test row: what
    `as_predicted` makes of the network's, and what the simple methods give.
    """

    leading: ClassVar[str]
    """The score by which methods are compared with the best of the simple ones; higher is better."""
    spelled: ClassVar[Mapping[str, str]]
    """What scores are called: those of the picture of methods, in its order; among them `leading`."""
    on_page: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """Scores of the table on a page, with their headings; files have all. Without any, all."""
    strata_are_classes: ClassVar[bool]
    """Whether strata are to be told apart, so that no part of a split should hold a single one."""
    has_means: ClassVar[bool] = False
    """Whether the mean of predictions is one, so that those of a donor's cells may be averaged."""

    def __init__(self, target: TargetT) -> None:
        self.target = target

    @property
    def asked(self) -> str:
        """What is learned, for the title of a page."""
        return self.target.name

    @property
    @abstractmethod
    def scores_in_words(self) -> str:
        """What the scores mean, and which way is better, for who reads the page."""

    # Before training

    def scaled(self, labels_NS: np.ndarray) -> TargetT:
        """Return the target as these training labels define it: a number's has their mean and sd."""
        return self.target

    @abstractmethod
    def strata(self, labels_NS: np.ndarray) -> np.ndarray:
        """Return, as text, what every part of a split should hold alike; `GAP` for a row without a label."""

    def compared_within(self, labels_NS: np.ndarray) -> np.ndarray:
        """Return a number of each row; rows of different numbers, such as of cohorts, are not compared."""
        return np.zeros(len(labels_NS))

    def lacks(self, labels_NS: np.ndarray) -> str | None:
        """Return what rows of a split with these labels lack to be learned from, or scored; None if nothing."""
        return "a label" if np.isnan(labels_NS).any(axis=1).all() else None

    def class_names(self, labels_NS: np.ndarray) -> np.ndarray | None:
        """Return the class of each row, None where there is none; None of a kind without classes."""
        return None

    @abstractmethod
    def content(self, labels_NS: np.ndarray) -> bytes:
        """Return all that labels say, for a digest."""

    def class_weights(self, labels_NS: np.ndarray) -> list[float] | None:
        """Return one over the share of each class; None of a kind without classes."""
        return None

    def row_weights(self, labels_NS: np.ndarray) -> np.ndarray | None:
        """Return how often to draw each row so that its class comes as often as the others; None without classes."""
        return None

    def straight_path(self, columns_NP: np.ndarray, labels_NS: np.ndarray, seed: int) -> np.ndarray | None:
        """Return with which weights columns add up to an output of the target that suits these training rows, (P,).

        A network that takes the columns straight to its output begins at these; None of a kind that begins at zero.

        Parameters
        ----------
        columns_NP
            Of training rows, of about equal spread.
        labels_NS
            Theirs, none missing.
        seed
            Of inner folds, which choose a penalty.
        """
        return None

    @abstractmethod
    def simple_methods(
        self, features: Any, train_rows: np.ndarray, labels_NS: np.ndarray, test_rows: np.ndarray, seed: int
    ) -> dict[str, Callable[[], np.ndarray | None]]:
        """Return the methods that need no network, by name in the order of the table.

        Parameters
        ----------
        features
            What they look at.
        train_rows, test_rows
            Of the features.
        labels_NS
            Of the training rows, none missing.
        seed
            Of what is random in a method.

        Returns
        -------
        For each what predicts the test rows; it gives None where its input is not at hand.
        """

    # After training

    def beside(self, predicted: Mapping[str, np.ndarray]) -> "Kind[TargetT]":
        """Return the kind that scores these rows, where a score of one method needs what another predicts.

        Parameters
        ----------
        predicted
            By method, predictions of the rows that are to be scored.
        """
        return self

    def as_predicted(self, meaning_NK: np.ndarray) -> np.ndarray:
        """Return a prediction from what a network's outputs mean."""
        return meaning_NK

    @abstractmethod
    def from_another(self, other: Target, meaning_NK: np.ndarray) -> np.ndarray | None:
        """Return predictions from what outputs for another target mean; None where that is no such thing."""

    @abstractmethod
    def scores(self, labels_NS: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
        """Return the scores without intervals; NaN where a prediction is not finite."""

    @abstractmethod
    def validation_scores(self, labels_NS: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
        """Return the scores that are logged at each epoch; each is defined for any labels."""

    @abstractmethod
    def merit(self, scores: Mapping[str, float]) -> float:
        """Return from `validation_scores` the number by which an epoch, or a trial, is chosen; 1 is perfect."""

    @abstractmethod
    def leading_score(
        self, labels_NS: np.ndarray, predicted: np.ndarray, *, folds: np.ndarray
    ) -> Callable[[np.ndarray], np.ndarray]:
        """Return the function that gives the score `leading` in resamples, from (rows, resamples) weights.

        `folds` has the number of the fold in which each row was tested, for scores that compare rows.
        """

    @abstractmethod
    def evaluate(
        self,
        labels_NS: np.ndarray,
        predicted: np.ndarray,
        *,
        folds: np.ndarray,
        groups: np.ndarray | None,
        rng: np.random.Generator,
    ) -> Any:
        """Return a `Scored`, or more: the scores of one method with intervals; `folds` as for `leading_score`."""

    @abstractmethod
    def written(self, labels_NS: np.ndarray) -> dict[str, np.ndarray]:
        """Return labels as columns of a table."""

    @abstractmethod
    def written_prediction(self, predicted: np.ndarray) -> np.ndarray:
        """Return predictions as they stand in a table."""

    def tables(
        self,
        scored: Mapping[str, Any],
        names: "pd.Index[Any]",
        predicted: np.ndarray,
        ours: str,
    ) -> dict[str, pd.DataFrame]:
        """Return what only this kind has, by field of `Evaluation`.

        Parameters
        ----------
        scored
            By method, what `evaluate` gave.
        names
            Of the test rows.
        predicted
            Predictions of the method that is asked about.
        ours
            What this one is called.
        """
        return {}

    def caution(self, predictions: pd.DataFrame) -> str | None:
        """Return in a sentence what the test rows cannot tell; None where nothing lacks."""
        return None

    @abstractmethod
    def figures(self, tables: Mapping[str, pd.DataFrame], tested: str, ours: str) -> "dict[str, Figure]":
        """Draw, by name, what is shown beside the picture of methods.

        Parameters
        ----------
        tables
            The tables of an `Evaluation`, by name.
        tested
            What rows are called, in the plural.
        ours
            The method that is asked about.
        """

    @abstractmethod
    def sections(self, tested: str, pictures: "Mapping[str, Figure]") -> Sequence[Section]:
        """Return the sections of the page that show these pictures."""
