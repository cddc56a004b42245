"""What is to be learned of which cells: obs columns to targets and labels, before any work is done."""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from geneformer_repro.errors import InputError
from geneformer_repro.finetuning.kinds import kind_of
from geneformer_repro.finetuning.kinds.classes import read_classes
from geneformer_repro.finetuning.kinds.kind import GAP, Kind
from geneformer_repro.finetuning.kinds.numbers import read_numbers
from geneformer_repro.targets import Target, labels_of
from geneformer_repro.tokenizer.dataset import TokenizedDataset

logger = logging.getLogger(__name__)

_ENOUGH = 3


@dataclass(frozen=True, eq=False)
class Task:
    """Labelled cells."""

    cells: TokenizedDataset
    targets: tuple[Target, ...]
    labels: np.ndarray
    """For each cell and target the class's number, or the number; NaN where there is none; (cells, numbers of
    labels)."""
    obs: pd.DataFrame
    """The obs columns of the cells."""

    @property
    def strata(self) -> np.ndarray:
        """What every part of a split should hold alike: the class, or the range of a number.

        Of several targets all together, where each combination has cells enough; else of the first.
        """
        of_targets = [kind.strata(labels) for kind, labels in self.of_kinds()]
        if len(of_targets) == 1:
            return of_targets[0]
        joint = np.array([" / ".join(names) for names in zip(*of_targets, strict=True)])
        return joint if pd.Series(joint).value_counts().min() >= _ENOUGH else _without_rare_gaps(of_targets[0])

    def of_kinds(self, rows: np.ndarray | slice = slice(None)) -> Iterator[tuple[Kind[Any], np.ndarray]]:
        """Yield, for each target, its kind and the labels of some cells."""
        yield from zip(map(kind_of, self.targets), labels_of(self.targets, self.labels[rows]), strict=True)

    @property
    def class_labels(self) -> dict[str, np.ndarray]:
        """The class of each cell, None where there is none, of each target that has classes."""
        named = {kind.target.name: kind.class_names(labels) for kind, labels in self.of_kinds()}
        return {name: classes for name, classes in named.items() if classes is not None}

    def head_targets(self, rows: np.ndarray) -> tuple[Target, ...]:
        """Return the targets as the labels of these rows define them."""
        return tuple(kind.scaled(labels) for kind, labels in self.of_kinds(rows))

    def digest(self, groups: np.ndarray | None = None) -> str:
        """Return a digest of the cells' names, their labels by name or number, and their groups."""
        digest = hashlib.sha256(repr([target.to_json() for target in self.targets]).encode())
        for column in [self.cells.cell_names, *([] if groups is None else [groups])]:
            digest.update("\n".join([*column, ""]).encode())
        for kind, labels in self.of_kinds():
            digest.update(kind.content(labels))
        return digest.hexdigest()

    def select(self, rows: np.ndarray) -> "Task":
        """Return the task of some of the cells."""
        return Task(self.cells.select(rows), self.targets, self.labels[rows], self.obs.iloc[rows])


def _without_rare_gaps(names: np.ndarray) -> np.ndarray:
    """Count the cells without a class as of the commonest one, where they are too few to be split themselves."""
    counts = pd.Series(names).value_counts()
    return np.where(names == GAP, counts.index[0], names) if counts.get(GAP, _ENOUGH) < _ENOUGH else names


def labelled_cells(
    cells: TokenizedDataset,
    targets: Sequence[str],
    *,
    regression: Sequence[str] = (),
    min_cells: int = 0,
    max_cells_per_class: int | None = None,
    rng: np.random.Generator,
) -> Task:
    """Read the labels of cells; leave out, and count in the log, those that have none.

    Parameters
    ----------
    cells
        Tokenised cells with the columns.
    targets
        Obs columns to learn.
    regression
        Those that are learned as numbers.
    min_cells
        Labels of classes with fewer cells count as missing.
    max_cells_per_class
        Keep a random choice of so many cells of each class of the first target; None all.
    rng
        Makes that choice.

    Raises
    ------
    InputError
        A column is missing, has fewer than two classes, or should hold numbers and does not.
    """
    if len(set(targets)) < len(targets):
        raise InputError(f"The targets must be different obs columns, found {', '.join(map(repr, targets))}.")
    columns = {name: cells.require_obs(name) for name in targets}
    read = [
        read_numbers(name, column) if name in regression else read_classes(name, column, min_cells)
        for name, column in columns.items()
    ]
    labels = np.stack([values for _, values in read], axis=1)
    kept = np.flatnonzero(~np.isnan(labels).all(axis=1))
    if len(kept) < len(cells):
        logger.info("%s: %d cells have no label; left out.", ", ".join(targets), len(cells) - len(kept))
    if max_cells_per_class is not None:
        kept = at_most_of_a_class(kept, labels[kept, 0], max_cells_per_class, rng)
    task = Task(cells.select(kept), tuple(target for target, _ in read), labels[kept], cells.obs.iloc[kept])
    without_gene = ~task.cells.has_gene
    if without_gene.any():
        logger.info("%d labelled cells have no gene; left out.", without_gene.sum())
        return task.select(np.flatnonzero(~without_gene))
    return task


def at_most_of_a_class(rows: np.ndarray, codes: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """Draw so many of the rows of each class, ascending, and log how many that are.

    Parameters
    ----------
    rows
        Ascending.
    codes
        Class of each row, NaN where there is none, which counts as one more.
    most
        Rows of a class that are kept.
    rng
        Makes the choice.
    """
    shuffled = pd.Series(codes).iloc[rng.permutation(len(codes))]
    chosen = shuffled.groupby(shuffled, dropna=False).head(most).index.to_numpy()
    logger.info("%d of %d cells taken: at most %d of a class.", len(chosen), len(rows), most)
    return rows[np.sort(chosen)]
