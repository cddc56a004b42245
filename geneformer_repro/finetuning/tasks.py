"""What is to be learned of which cells: obs columns to targets and labels, before any work is done."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from geneformer_repro.errors import InputError
from geneformer_repro.heads import Target
from geneformer_repro.tokenizer.dataset import TokenizedDataset, as_labels

logger = logging.getLogger(__name__)

_GAP, _ENOUGH = "(none)", 3
_STRATA = 5
"""Parts of equal size into which a number is cut so that a split holds all of its range."""


@dataclass(frozen=True, eq=False)
class Task:
    """Labelled cells."""

    cells: TokenizedDataset
    targets: tuple[Target, ...]
    labels: np.ndarray
    """For each cell and target the class's number, or the number; NaN where there is none; (cells, targets)."""
    obs: pd.DataFrame
    """The obs columns of the cells."""

    @property
    def strata(self) -> np.ndarray:
        """What every part of a split should hold alike: the class, or the range of a number.

        Of several targets all together, where each combination has cells enough; else of the first.
        """
        of_targets = [
            _class_names(self.labels[:, i], target) if target.classes else _ranges(self.labels[:, i])
            for i, target in enumerate(self.targets)
        ]
        if len(of_targets) == 1:
            return of_targets[0]
        joint = np.array([" / ".join(names) for names in zip(*of_targets, strict=True)])
        return joint if pd.Series(joint).value_counts().min() >= _ENOUGH else _without_rare_gaps(of_targets[0])

    @property
    def class_labels(self) -> dict[str, np.ndarray]:
        """The class of each cell, None where there is none, of each target that has classes."""
        return {
            target.name: np.array([*target.classes, None], dtype=object)[_class_numbers(self.labels[:, i], target)]
            for i, target in enumerate(self.targets)
            if target.classes
        }

    def head_targets(self, rows: np.ndarray) -> tuple[Target, ...]:
        """Return the targets with mean and standard deviation of the numbers among these rows."""
        return tuple(
            target if target.classes else _scaled(target, self.labels[rows, i]) for i, target in enumerate(self.targets)
        )

    def digest(self, groups: np.ndarray | None = None) -> str:
        """Return a digest of the cells' names, their labels by name or number, and their groups."""
        said = [_class_names(self.labels[:, i], one) for i, one in enumerate(self.targets) if one.classes]
        numbers = [self.labels[:, i] for i, one in enumerate(self.targets) if not one.classes]
        digest = hashlib.sha256(repr([(one.name, one.classes) for one in self.targets]).encode())
        for column in [self.cells.cell_names, *said, *([] if groups is None else [groups])]:
            digest.update("\n".join([*column, ""]).encode())
        for column in numbers:
            digest.update(column.tobytes())
        return digest.hexdigest()

    def select(self, rows: np.ndarray) -> "Task":
        """Return the task of some of the cells."""
        return Task(self.cells.select(rows), self.targets, self.labels[rows], self.obs.iloc[rows])


def _without_rare_gaps(names: np.ndarray) -> np.ndarray:
    """Count the cells without a class as of the commonest one, where they are too few to be split themselves."""
    counts = pd.Series(names).value_counts()
    return np.where(names == _GAP, counts.index[0], names) if counts.get(_GAP, _ENOUGH) < _ENOUGH else names


def _scaled(target: Target, numbers: np.ndarray) -> Target:
    known = numbers[~np.isnan(numbers)]
    if not len(known):
        raise InputError(f"No training cell has a number in {target.name!r}. Give more cells, or another split.")
    return Target(target.name, (), float(known.mean()), float(known.std()) or 1.0)


def _class_names(codes: np.ndarray, target: Target) -> np.ndarray:
    return np.array([*target.classes, _GAP])[_class_numbers(codes, target)]


def _class_numbers(codes: np.ndarray, target: Target) -> np.ndarray:
    """Number the classes, and what has none behind them."""
    return np.where(np.isnan(codes), len(target.classes), codes).astype(int)


def _ranges(numbers: np.ndarray) -> np.ndarray:
    place = pd.Series(numbers).rank(method="first", pct=True)
    return (
        place.map(lambda share: f"range {np.ceil(share * _STRATA):.0f} of {_STRATA}", "ignore").fillna(_GAP).to_numpy()
    )


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
        _numbers(name, column) if name in regression else _classes(name, column, min_cells)
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


def _classes(name: str, column: pd.Series, min_cells: int) -> tuple[Target, np.ndarray]:
    names = as_labels(column)
    n_cells = names.value_counts()
    rare = sorted(n_cells.index[n_cells < min_cells])
    if rare:
        n_rare = int(n_cells[rare].sum())
        logger.info(
            "%s: %d cells are of classes with fewer than %d cells (%s); left out.",
            name, n_rare, min_cells, ", ".join(rare),
        )  # fmt: skip
    classes = tuple(sorted(set(n_cells.index) - set(rare)))
    if len(classes) < 2:
        raise InputError(
            f"obs column {name!r} has {len(classes)} class{'' if len(classes) == 1 else 'es'} "
            f"({', '.join(map(repr, classes)) or 'all missing'}) among {int(n_cells.sum())} labelled cells; at least "
            f"two are needed."
        )
    codes = pd.Index(classes).get_indexer(names).astype(float)
    return Target(name, classes), np.where(codes < 0, np.nan, codes)


def _numbers(name: str, column: pd.Series) -> tuple[Target, np.ndarray]:
    if not pd.api.types.is_numeric_dtype(column.dtype):
        column = as_labels(column)  # by whose rule text stands for a missing number too
    try:
        numbers = pd.to_numeric(column).to_numpy(dtype=float, na_value=np.nan)
    except (ValueError, TypeError) as error:
        raise InputError(
            f"obs column {name!r} should hold numbers to be learned by regression, but: {error}. Leave it out of "
            f"regression to learn classes."
        ) from error
    if np.isinf(numbers).any():
        raise InputError(f"obs column {name!r} holds infinite numbers (first: {column.index[np.isinf(numbers)][0]!r}).")
    if len(np.unique(numbers[~np.isnan(numbers)])) < 2:
        raise InputError(f"obs column {name!r} has fewer than two different numbers; there is nothing to learn.")
    return Target(name), numbers
