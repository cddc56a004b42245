"""What an experiment must know of its rows, whatever they are."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from geneformer_repro.config import with_settings
from geneformer_repro.finetuning.kinds import kind_of
from geneformer_repro.finetuning.kinds.kind import GAP, Kind
from geneformer_repro.finetuning.networks import NO_SCORES, Training, best_epoch
from geneformer_repro.finetuning.settings.networks import TransferConfig
from geneformer_repro.finetuning.splits import Split
from geneformer_repro.targets import Target, labels_of

_ENOUGH = 3
FEWEST_STEPS = 100
"""A network of a learning curve sees at least so many batches, however few its rows."""


class Problem(ABC):
    """Rows with labels, a network that learns from some of them, and what simple methods look at.

    A row is whatever has a label of its own: a cell, a gene, a sample, a patient, a pair. Rows are numbered from 0.
    """

    row: ClassVar[str]
    """What a row is called; tables have a column of this name."""
    reported_in_order: ClassVar[bool] = False
    """Whether tables of several folds hold rows in their own order, not fold by fold."""
    targets: tuple[Target, ...]
    labels: np.ndarray
    """For each row and target the class's number, or the number; NaN where there is none; (rows, numbers of labels)."""
    group: str | None
    """What groups are called, such as a column of donors; None without groups."""

    @property
    @abstractmethod
    def names(self) -> np.ndarray:
        """Name of each row."""

    @property
    def groups(self) -> np.ndarray | None:
        """Group of each row, which no split divides; None without groups."""
        return None

    @property
    def drawn_by(self) -> str | None:
        """What `drawn` is called."""
        return self.group

    @property
    def drawn(self) -> np.ndarray | None:
        """What intervals resample as wholes, of each row; None for rows."""
        return self.groups

    @abstractmethod
    def select(self, rows: np.ndarray) -> Problem:
        """Return the problem of some of the rows."""

    @abstractmethod
    def train(
        self,
        start: Any,
        config: Any,
        split: Split,
        *,
        pretrained: bool = True,
        work: Path,
        step: str,
    ) -> tuple[Any, pd.DataFrame]:
        """Train a network, by `networks.trained_once`; keep the epoch that is best on the validation rows.

        Parameters
        ----------
        start
            Gives the weights to begin with, or only the network's shape.
        config
            How to train.
        split
            Whose labels are learned, and whose choose; without the latter the last epoch is kept.
        pretrained
            Begin with the weights of `start`; else with random ones, all of which learn.
        work
            The network's folder; one that was cut off goes on from what it holds.
        step
            Word before the progress bar.

        Returns
        -------
        The network, and its history: ``epoch``, and scores of the validation rows as ``eval_…``, among them
        ``eval_selection``.
        """

    @abstractmethod
    def ask(self, network: Any, rows: np.ndarray) -> np.ndarray:
        """Return what a network says of rows, as numbers that are kept."""

    def predictions(self, said: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return what outputs mean for each row, all targets side by side, from what `ask` returned."""
        return said

    def dealt(self, said: np.ndarray) -> Mapping[str, np.ndarray]:
        """Return what outputs mean once a block of a network's inputs is dealt out anew among rows that are compared.

        By block, (draws, rows, meanings), from what `ask` returned; none of networks whose inputs are one block.
        """
        return {}

    @abstractmethod
    def features(self, start: Any, config: Any, counts: Any) -> Any:
        """Return what the simple methods look at, a row each: `baselines.Features`, or `GeneInputs`."""

    def settled(self, config: Any, histories: Sequence[pd.DataFrame]) -> Any:
        """Return how to train without validation rows, from the histories of trainings that had some."""
        return with_settings(config, epochs=float(np.median([best_epoch(history) for history in histories])))

    def with_labels(self, config: Any, n: int) -> Any:
        """Return how to train on `n` rows alone, without validation rows."""
        training = config.training
        n_steps = max(FEWEST_STEPS, math.ceil(training.epochs * n / training.batch_size))
        return with_settings(config, trainer={**training.trainer, "max_steps": n_steps})

    def fitted_rows(self, split: Split) -> np.ndarray:
        """Return the rows from which simple methods learn."""
        return split.train

    def content(self) -> Iterator[bytes]:
        """Yield all that rows are beside their labels, for `digest`."""
        yield from map(as_lines, [self.names, *([] if self.groups is None else [self.groups])])

    # Of all problems

    def digest(self) -> str:
        """Return a digest of what rows are, and of their labels by name or number."""
        digest = hashlib.sha256(repr([target.to_json() for target in self.targets]).encode())
        for part in self.content():
            digest.update(part)
        for kind, labels in self.of_kinds():
            digest.update(kind.content(labels))
        return digest.hexdigest()

    def of_kinds(self, rows: np.ndarray | slice = slice(None)) -> Iterator[tuple[Kind[Any], np.ndarray]]:
        """Yield, for each target, its kind and the labels of some rows."""
        yield from zip(map(kind_of, self.targets), labels_of(self.targets, self.labels[rows]), strict=True)

    @property
    def strata(self) -> np.ndarray:
        """What every part of a split should hold alike: the class, or the range of a number.

        Of several targets all together, where each combination has rows enough; else of the first.
        """
        of_targets = [kind.strata(labels) for kind, labels in self.of_kinds()]
        if len(of_targets) == 1:
            return of_targets[0]
        joint = np.array([" / ".join(names) for names in zip(*of_targets, strict=True)])
        return joint if pd.Series(joint).value_counts().min() >= _ENOUGH else _without_rare_gaps(of_targets[0])

    @property
    def class_labels(self) -> dict[str, np.ndarray]:
        """The class of each row, None where there is none, of each target that has classes."""
        named = {kind.target.name: kind.class_names(labels) for kind, labels in self.of_kinds()}
        return {name: classes for name, classes in named.items() if classes is not None}

    def head_targets(self, rows: np.ndarray) -> tuple[Target, ...]:
        """Return the targets as the labels of these rows define them."""
        return tuple(kind.scaled(labels) for kind, labels in self.of_kinds(rows))


def as_lines(names: Iterable[str]) -> bytes:
    """Return names as text, one a line, for `Problem.content`."""
    return "\n".join([*names, ""]).encode()


def _without_rare_gaps(names: np.ndarray) -> np.ndarray:
    """Count the rows without a class as of the commonest one, where they are too few to be split themselves."""
    counts = pd.Series(names).value_counts()
    return np.where(names == GAP, counts.index[0], names) if counts.get(GAP, _ENOUGH) < _ENOUGH else names


class EncoderProblem(Problem):
    """A problem whose networks are classifiers on a checkpoint's encoder."""

    @abstractmethod
    def training(self, start: Any, config: Any, split: Split) -> Training:
        """Put together what `train` is given."""

    def train(
        self, start: Any, config: Any, split: Split, *, pretrained: bool = True, work: Path, step: str
    ) -> tuple[Any, pd.DataFrame]:
        """Train a classifier, a plain one whatever the transfer."""
        if not pretrained:
            config = dataclasses.replace(config, transfer=TransferConfig())
        if not len(split.validation):
            config = with_settings(config, trainer={**config.training.trainer, **NO_SCORES})
        return self.training(start, config, split).run(pretrained=pretrained, work=work, step=step)
