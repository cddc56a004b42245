"""Which cells are trained on, which choose the epoch, and which are reported.

Cells of a donor are alike, so a method looks better than it is when it is reported on donors that it was trained on.
With a group column no group is on both sides; and whatever the split, the reported cells choose nothing: in k-fold,
too, the epoch is chosen on cells of the other folds.

scikit-learn's `StratifiedGroupKFold` deals out groups by size: its seed decides nothing unless groups are equal, and
its first fold always has the largest. It is used for k-fold, where every group has its turn. For one part of whole
groups, `DRAWS` are made and the one most like all cells is taken: for a quarter of 2,000 cells (8 donors of 97 to 449
cells, 13 types) the share of a type is 5 points off on average, in the first of four stratified folds 8 points. Where
groups are few, most seeds find the same one.

Donors are often cases or controls, and a part of one class cannot tell how well classes are told apart. Where the
nearest draw lacks a class that has groups enough, others are made that begin with groups of every class, and a class
that is lacking counts as one whose share is off by all of it: of three cases and three controls each part is one of
both, while a rare type of cell does not triple the validation cells.
"""

import hashlib
import logging
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from sklearn.model_selection import KFold, StratifiedGroupKFold, StratifiedKFold, train_test_split

from geneformer_repro.errors import InputError, did_you_mean, listed
from geneformer_repro.finetuning.balance import p_value, units
from geneformer_repro.finetuning.settings.splits import SplitConfig, test_share
from geneformer_repro.finetuning.split_files import read_parts
from geneformer_repro.tokenizer.labels import as_labels
from geneformer_repro.tokenizer.placeholders import warn_of_no_donors

logger = logging.getLogger(__name__)

DRAWS = 100
"""Parts of whole groups that are drawn to take the one most like all cells."""
TRIALS = 100
"""Whole splits that are compared for `SplitConfig.balance`."""
_DRAWS_A_TRIAL = 5
"""With `DRAWS` of them each trial would end at the same few groups, and there would be nothing to compare."""


class Split(NamedTuple):
    """Row numbers of each part, ascending."""

    train: np.ndarray
    validation: np.ndarray = np.array([], dtype=np.int64)
    """Without any, no row chooses the epoch, and the last one is kept."""
    test: np.ndarray = np.array([], dtype=np.int64)


def make_splits(
    names: np.ndarray,
    strata: np.ndarray,
    obs: pd.DataFrame,
    config: SplitConfig,
    *,
    seed: int,
    are_classes: bool = True,
    row: str = "cell",
) -> list[Split]:
    """Split cells in three, once or several times, each part with about the same share of every class.

    Parameters
    ----------
    names
        Name of each cell.
    strata
        Class of each cell (for a number to predict, its quantile; for several columns, their combination).
    obs
        The cells' columns, among them those of the config.
    config
        How to split.
    seed
        The same seed gives the same splits; another one others, if there are others as good.
    are_classes
        Whether the strata are to be told apart; False of ranges of a number, of which a part may hold one only.
    row
        What a row is called, and its column in a split file.

    Returns
    -------
    One split, or one a fold, repeat after repeat. Drawn splits have every class of the test cells in train. With
    groups, no group is on both sides of test; the validation cells, too, are whole groups, unless train would lose a
    class or all its groups, or they would all be of one class. The test part is drawn to have every class that three
    groups have (of fewer than two such classes, that two groups have), and validation every class of which the
    remaining groups have two, if need be in parts larger than asked; a warning says what a part lacks.

    Raises
    ------
    InputError
        A column, group or cell is unknown or missing; there are too few cells, groups or classes for such a split; a
        class of drawn test cells is missing from train; or the file puts a cell or a group on two sides.
    """
    group = None if config.group is None else _complete_column(obs, config.group, names, row)
    cells = _cells(strata, group, config, are_classes=are_classes, row=row)
    groups = None if config.group is None else cells.group_names[cells.groups]
    if config.group is not None:
        warn_of_no_donors(pd.Series(groups, dtype=object), config.group, row=row)
    if config.split_file is not None:
        splits, repeats = _splits_of_file(Path(config.split_file), names, cells, seed)
    elif config.test_groups or config.folds == "groups":
        splits, repeats = _splits_of_groups(cells, seed), None
    else:
        traits = {name: _complete_column(obs, name, names, row) for name in config.balance}
        splits = [split for one in _seeds(seed, config.repeats) for split in _drawn_splits(cells, traits, one)]
        repeats = repeat_of(splits)
    require_no_leak(splits, names, groups, repeats, row=row)
    _tell(splits, cells)
    return splits


def _seeds(seed: int, repeats: int) -> list[int]:
    """Return a seed for each repeat, the first the one that was given."""
    return [seed, *np.random.default_rng(seed).integers(2**32, size=repeats - 1).tolist()]


def repeat_of(splits: Sequence[Split]) -> np.ndarray:
    """Return in which repeat each split is, from 0: one begins where a row comes to be tested again."""
    numbers, tested, repeat = [], set[int](), 0
    for split in splits:
        if not tested.isdisjoint(split.test.tolist()):
            tested, repeat = set(), repeat + 1
        tested |= set(split.test.tolist())
        numbers.append(repeat)
    return np.array(numbers)


def split_table(splits: Sequence[Split], names: np.ndarray, *, row: str = "cell") -> pd.DataFrame:
    """Return ``cell`` (or what a row is called), ``part`` and, of several splits, ``fold`` (from 1).

    `SplitConfig.split_file` reads it back. Of folds that are dealt several times the numbers go on, and ``repeat``
    (from 1) says which dealing it is.
    """
    tables = [
        pd.DataFrame({row: names[rows], "part": part, "fold": fold, "repeat": repeat + 1})
        for fold, (split, repeat) in enumerate(zip(splits, repeat_of(splits), strict=True), 1)
        for part, rows in split._asdict().items()
    ]
    table = pd.concat(tables, ignore_index=True)
    lacking = {"fold": len(splits) == 1, "repeat": table["repeat"].max() == 1}
    return table.drop(columns=[name for name, lacks in lacking.items() if lacks])


def nested_draw(strata: np.ndarray, pool: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Draw `n` rows of the pool, the strata as evenly represented as their shares allow, one of each first.

    Of one `rng` state, a smaller draw is part of a larger one.
    """
    shuffled = pool[rng.permutation(len(pool))]
    names = pd.Series(strata[shuffled])
    place = names.groupby(names).cumcount().to_numpy()
    share = names.map(names.value_counts(normalize=True)).to_numpy()
    # the k-th of a stratum is due when a draw of its share would hold k and a half; the first of each at once
    due = np.where(place == 0, -1 / share, (place + 0.5) / share)
    return np.sort(shuffled[np.argsort(due, kind="stable")][:n])


def digest_of(splits: Sequence[Split], cell_names: np.ndarray) -> str:
    """Return a digest of which cell is in which part of which split, whatever says so."""
    digest = hashlib.sha256()
    for fold, split in enumerate(splits, 1):
        for part, rows in split._asdict().items():
            digest.update("\n".join([f"fold {fold}, {part}", *cell_names[rows], ""]).encode())
    return digest.hexdigest()


def require_no_leak(
    splits: Sequence[Split],
    names: np.ndarray,
    groups: np.ndarray | None,
    repeats: np.ndarray | None = None,
    *,
    row: str = "cell",
) -> None:
    """Raise if what is reported was seen before.

    Parameters
    ----------
    splits
        One, or one a fold.
    names
        Name of each cell.
    groups
        Group of each cell, if groups are to stay whole. Train and validation may share one.
    repeats
        In which repeat each split is; None where there is one.
    row
        What a row is called.

    Raises
    ------
    InputError
        Within a split, a cell is in two parts, or a group is among the test cells and the others; or a cell is tested
        in two folds of a repeat. Names the first.
    """
    for split, where in zip(splits, _headings(splits), strict=True):
        _require_one_part_a_row(split, names, where, row)
        if groups is not None:
            _require_one_side_a_group(split, groups, where)
    repeats = np.zeros(len(splits), dtype=int) if repeats is None else repeats
    for repeat in np.unique(repeats):
        folds_of_repeat = np.flatnonzero(repeats == repeat).tolist()
        for number in _repeated(np.concatenate([splits[i].test for i in folds_of_repeat])):
            folds = [str(i + 1) for i in folds_of_repeat if number in splits[i].test]
            raise InputError(
                f"{row.capitalize()} {str(names[number])!r} is tested in folds {' and '.join(folds)}, and would count "
                f"twice; test each {row} in one fold, or say in a column repeat which folds are dealt anew."
            )


def _require_one_part_a_row(split: Split, names: np.ndarray, where: str, row: str) -> None:
    for number in _repeated(np.concatenate(split)):
        parts = [part for part, rows in split._asdict().items() for _ in range(np.sum(rows == number))]
        name = f"{row.capitalize()} {str(names[number])!r}"
        raise InputError(f"{where}{name} is in {' and '.join(parts)}; give each {row} one part.")


def _require_one_side_a_group(split: Split, groups: np.ndarray, where: str) -> None:
    for group in np.intersect1d(groups[split.test], groups[np.concatenate([split.train, split.validation])]):
        part = "train" if group in groups[split.train] else "validation"
        raise InputError(
            f"{where}Group {str(group)!r} is in {part} and in test; give the whole group to one of them, or name as "
            "group the column that was split by."
        )


def _repeated(rows: np.ndarray) -> np.ndarray:
    numbers, counts = np.unique(rows, return_counts=True)
    return numbers[counts > 1]


def _headings(splits: Sequence[Split]) -> list[str]:
    return [f"Fold {fold}: " if len(splits) > 1 else "" for fold in range(1, len(splits) + 1)]


def _listed(names: Iterable[Any]) -> str:
    return ", ".join(repr(str(name)) for name in names)


@dataclass(frozen=True)
class _Cells:
    """What a split goes by; classes and groups as numbers, because they are counted hundreds of times."""

    strata: np.ndarray
    class_names: np.ndarray
    groups: np.ndarray | None
    group_names: np.ndarray
    config: SplitConfig
    are_classes: bool
    row: str
    """What a row is called: a cell, sample, patient."""

    @property
    def by(self) -> str:
        """How rare classes are left out."""
        return " with min_cells" if self.row == "cell" else ""

    def is_of_one_class(self, rows: np.ndarray, among: np.ndarray) -> bool:
        """Whether some rows hold one class where those they are among hold several."""
        return self.are_classes and np.ptp(self.strata[rows]) == 0 < np.ptp(self.strata[among])

    @property
    def rows(self) -> np.ndarray:
        return np.arange(len(self.strata))

    @property
    def known_groups(self) -> np.ndarray:
        assert self.groups is not None
        return self.groups

    def unseen(self, rows: np.ndarray, train: np.ndarray) -> np.ndarray:
        """Return the classes of some rows that the training rows lack."""
        return self.class_names[np.setdiff1d(self.strata[rows], self.strata[train])]

    def counts(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the groups of some rows, and these rows by group and class (those that are there)."""
        there, group_of = np.unique(self.known_groups[rows], return_inverse=True)
        _, class_of = np.unique(self.strata[rows], return_inverse=True)
        shape = len(there), class_of.max() + 1
        return there, np.bincount(np.ravel_multi_index((group_of, class_of), shape), minlength=np.prod(shape)).reshape(
            shape
        )


def _cells(strata: np.ndarray, group: pd.Series | None, config: SplitConfig, *, are_classes: bool, row: str) -> _Cells:
    class_names, classes = np.unique(strata.astype(str), return_inverse=True)
    if group is None:
        return _Cells(classes, class_names, None, np.array([], dtype=str), config, are_classes, row)
    group_names, groups = np.unique(as_labels(group).to_numpy(dtype=str), return_inverse=True)
    return _Cells(classes, class_names, groups, group_names, config, are_classes, row)


def _complete_column(obs: pd.DataFrame, name: str, names: np.ndarray, row: str) -> pd.Series:
    """Return a column that is there and has a value for every row."""
    if name not in obs:
        raise InputError(f"The {row}s have no obs column {name!r}. {did_you_mean(name, map(str, obs.columns))}")
    missing = np.flatnonzero(obs[name].isna())
    if len(missing):
        raise InputError(
            f"obs column {name!r} says nothing for {len(missing)} of {len(obs)} labelled {row}s "
            f"(first: {str(names[missing[0]])!r}); leave these {row}s out, or name another column."
        )
    return obs[name]


def _splits_of_groups(cells: _Cells, seed: int) -> list[Split]:
    """Report `test_groups`, or each group in its turn."""
    config, rows = cells.config, cells.rows
    if config.folds == "groups":
        _require_groups(cells, 3, "Leaving one group out")
        tested = [np.flatnonzero(cells.groups == group) for group in range(len(cells.group_names))]
    else:
        tested = [_rows_of(config.test_groups, cells, "test_groups")]
    validated = _rows_of(config.validation_groups, cells, "validation_groups")
    if len(tested[0]) + len(validated) == len(rows):
        raise InputError("test_groups and validation_groups name all groups; leave at least one to train on.")
    if len(validated):
        return [Split(np.setdiff1d(rows, np.union1d(validated, tested[0])), validated, tested[0])]
    return [_with_validation(cells, np.setdiff1d(rows, test), test, DRAWS, seed) for test in tested]


def _rows_of(names: Sequence[Any], cells: _Cells, field: str) -> np.ndarray:
    for name in names:
        if name not in cells.group_names:
            raise InputError(
                f"{field}: no labelled {cells.row} has {name!r} in obs column {cells.config.group!r}. "
                f"{did_you_mean(name, cells.group_names)}"
            )
    return np.flatnonzero(np.isin(cells.group_names, names)[cells.known_groups])


def _splits_of_file(path: Path, names: np.ndarray, cells: _Cells, seed: int) -> tuple[list[Split], np.ndarray]:
    """Return the splits, and in which repeat each is."""
    folds, repeats = read_parts(path, names, Split._fields, row=cells.row)
    splits = [Split(**fold) for fold in folds]
    splits = [
        split if len(split.validation) else _with_validation(cells, split.train, split.test, DRAWS, seed)
        for split in splits
    ]
    return splits, repeats


def _drawn_splits(cells: _Cells, traits: Mapping[str, pd.Series], seed: int) -> list[Split]:
    _require_enough(cells)
    splits = _most_balanced(cells, traits, seed) if traits else _draw(cells, DRAWS, seed)
    for split, where in zip(splits, _headings(splits), strict=True):
        unseen = cells.unseen(split.test, split.train)
        if len(unseen):
            where_it_is = f"of too few {cells.row}s" if cells.groups is None else "in too few groups"
            raise InputError(
                f"{where}No training {cells.row} is of class {_listed(unseen)}, which the test {cells.row}s have; it "
                f"is {where_it_is}. Leave it out{cells.by}, or split by another column or share."
            )
    return splits


def _require_enough(cells: _Cells) -> None:
    counts = np.bincount(cells.strata)
    rare = [f"{name!r} ({n})" for name, n in zip(cells.class_names.tolist(), counts, strict=True) if n < 3]
    if rare:
        raise InputError(
            f"A class needs at least 3 {cells.row}s, one for each part of the split; "
            f"too few: {listed(rare)}. Leave such classes out{cells.by and f'{cells.by}=3'}."
        )
    folds = int(cells.config.folds)
    if counts.max() < folds:
        most = counts.max()
        raise InputError(f"folds={folds} needs a class of so many {cells.row}s, found at most {most}; give fewer.")
    if cells.groups is not None:
        _require_groups(cells, 3 if folds == 1 else folds, f"Splitting by group{f' in {folds} folds' * (folds > 1)}")


def _require_groups(cells: _Cells, needed: int, what: str) -> None:
    found = cells.group_names
    if len(found) < needed:
        raise InputError(f"{what} needs at least {needed} groups, found {len(found)}: {listed(found)}.")


def _draw(cells: _Cells, draws: int, seed: int) -> list[Split]:
    """Draw one split, or one a fold."""
    config = cells.config
    if config.folds != 1:
        tested = _draw_folds(cells, int(config.folds), draws, seed)
    elif cells.groups is None:
        tested = [_some_cells(cells, cells.rows, config.test, seed)]
    else:
        tested = [_some_groups(cells, cells.rows, config.test, draws, seed, leave=2)]
    return [_with_validation(cells, np.setdiff1d(cells.rows, test), test, draws, seed) for test in tested]


def _draw_folds(cells: _Cells, folds: int, draws: int, seed: int) -> list[np.ndarray]:
    if cells.groups is not None and draws < DRAWS:  # the seed of the stratified one decides nothing
        parts = KFold(folds, shuffle=True, random_state=seed).split(cells.group_names)
        return [np.flatnonzero(np.isin(cells.groups, part)) for _, part in parts]
    with warnings.catch_warnings():  # a class rarer than the folds is as well spread as it can be
        warnings.filterwarnings("ignore", message="The least populated class")
        if cells.groups is not None and cells.config.repeats > 1:
            return _deal_groups(cells, folds, seed)
        splitter = StratifiedKFold if cells.groups is None else StratifiedGroupKFold
        parts = splitter(folds, shuffle=True, random_state=seed).split(cells.rows, cells.strata, cells.groups)
        return [np.sort(test) for _, test in parts]


def _deal_groups(cells: _Cells, folds: int, seed: int) -> list[np.ndarray]:
    """Deal out whole groups at random, those of a (commonest) class evenly, and no class whole, if `TRIALS` allow."""
    commonest = cells.counts(cells.rows)[1].argmax(axis=1)
    splitter = StratifiedKFold if np.bincount(commonest).max() >= folds else KFold
    for trial in _seeds(seed, TRIALS):
        parts = splitter(folds, shuffle=True, random_state=trial).split(commonest, commonest)
        tested = [np.flatnonzero(np.isin(cells.known_groups, part)) for _, part in parts]
        if not any(len(cells.unseen(test, np.setdiff1d(cells.rows, test))) for test in tested):
            break
    return tested


def _with_validation(cells: _Cells, rest: np.ndarray, test: np.ndarray, draws: int, seed: int) -> Split:
    """Take the validation cells from `rest`: whole groups of several classes that leave train every class, or by cell.

    Of one class, they would choose the network that calls everything so; those of training groups tell classes apart.
    """
    share = cells.config.validation / (1 - test_share(cells.config))
    if share == 0:
        return Split(rest, test=test)
    if cells.groups is not None and len(np.unique(cells.groups[rest])) > 1:
        validation = _some_groups(cells, rest, share, draws, seed)
        train = np.setdiff1d(rest, validation)
        if not len(cells.unseen(validation, train)) and not cells.is_of_one_class(validation, rest):
            return Split(train, validation, test)
    validation = _some_cells(cells, rest, share, seed)
    return Split(np.setdiff1d(rest, validation), validation, test)


def _some_cells(cells: _Cells, rows: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Take a share of each class's cells; the only cell of a class is left."""
    strata = cells.strata[rows]
    n_of_class = np.bincount(strata)
    several = n_of_class[strata] > 1
    n_several = len(np.unique(strata[several]))
    n_cells = max(round(share * len(rows)), n_several)
    if not 0 < n_several <= several.sum() - n_cells:
        rarest = min(np.unique(strata), key=lambda stratum: n_of_class[stratum])
        raise InputError(
            f"{len(rows)} {cells.row}s of {len(np.unique(strata))} classes are too few to take {n_cells} and leave "
            f"some of every class; class {str(cells.class_names[rarest])!r} has {n_of_class[rarest]}. Give smaller "
            f"validation and test shares, or leave rare classes out{cells.by}."
        )
    _, taken = train_test_split(rows[several], test_size=n_cells, stratify=strata[several], random_state=seed)
    return np.sort(taken)


def _some_groups(cells: _Cells, rows: np.ndarray, share: float, draws: int, seed: int, *, leave: int = 1) -> np.ndarray:
    """Take whole groups with about a share of the cells; of the draws, the one most like all rows."""
    groups, counts = cells.counts(rows)
    rng = np.random.default_rng(seed)
    drawn = [_random_groups(counts.sum(axis=1), share, leave, rng) for _ in range(draws)]
    nearest = min(drawn, key=lambda taken: _distance(counts, taken, share))
    wishes = _Wishes.of(counts, leave)
    if cells.are_classes and wishes.unmet(nearest):
        drawn += [_groups_of_every_class(counts, share, leave, wishes, rng) for _ in range(draws)]

        def distance(taken: np.ndarray) -> tuple[int, bool, float]:
            n_whole, away = _distance(counts, taken, share)
            return n_whole, wishes.n_classes(taken) == 1, away + wishes.unmet(taken) / counts.shape[1]

        nearest = min(drawn, key=distance)
    return rows[np.isin(cells.known_groups[rows], groups[nearest])]


class _Wishes(NamedTuple):
    """Which classes a part of whole groups should hold, and leave to the others."""

    has: np.ndarray
    """Whether a group has cells of a class, (groups, classes)."""
    wanted: np.ndarray
    """Classes that have groups enough."""
    keep: int
    """Groups of each such class that are left."""

    @classmethod
    def of(cls, counts: np.ndarray, leave: int) -> "_Wishes":
        """Wish for every class of which `leave` groups would be left; if that is no choice of classes, one."""
        has, n_groups = counts > 0, (counts > 0).sum(axis=0)
        keep = leave if (n_groups > leave).sum() > 1 else 1
        return cls(has, n_groups > keep, keep)

    def left(self, taken: np.ndarray) -> np.ndarray:
        """Return how many groups of each wanted class are not taken."""
        return np.asarray((self.has.sum(axis=0) - self.has[taken].sum(axis=0))[self.wanted])

    def held(self, taken: np.ndarray) -> np.ndarray:
        """Return whether those that are taken have each wanted class."""
        return np.asarray(self.has[taken].any(axis=0)[self.wanted])

    def n_classes(self, taken: np.ndarray) -> int:
        """Count the classes that are held, also those that are not wanted."""
        return int(self.has[taken].any(axis=0).sum())

    def unmet(self, taken: np.ndarray) -> int:
        """Count the wanted classes that are not held, or of which too few groups are left."""
        return int((~self.held(taken) | (self.left(taken) < self.keep)).sum())


def _groups_of_every_class(
    counts: np.ndarray, share: float, leave: int, wishes: _Wishes, rng: np.random.Generator
) -> np.ndarray:
    """Take groups in random order that bring a class, then until their cells are nearest to a share of all."""
    sizes, taken = counts.sum(axis=1), np.array([], dtype=np.int64)
    order = rng.permutation(len(sizes))
    for for_classes in (True, False):
        for group in order[~np.isin(order, taken)]:
            more = np.append(taken, group)
            away = np.abs(np.array([sizes[taken].sum(), sizes[more].sum()]) - share * sizes.sum())
            brings = (wishes.held(more) > wishes.held(taken)).any() if for_classes else away[1] < away[0]
            if brings and len(more) <= len(sizes) - leave and not (wishes.left(more) < wishes.keep).any():
                taken = more
    return taken if len(taken) else order[:1]


def _random_groups(sizes: np.ndarray, share: float, leave: int, rng: np.random.Generator) -> np.ndarray:
    """Take groups in random order until their cells are nearest to a share of all."""
    order = rng.permutation(len(sizes))
    n_taken = int(np.abs(sizes[order].cumsum() - share * sizes.sum()).argmin()) + 1
    return order[: min(n_taken, len(sizes) - leave)]


def _distance(counts: np.ndarray, taken: np.ndarray, share: float) -> tuple[int, float]:
    """Return how many classes the part has whole, then how far its shares of classes and of cells are from `share`."""
    part, whole = counts[taken].sum(axis=0), counts.sum(axis=0)
    away = np.abs(part / whole - share).mean() + abs(part.sum() / whole.sum() - share)
    return int((part == whole).sum()), float(away)


def _most_balanced(cells: _Cells, traits: Mapping[str, pd.Series], seed: int) -> list[Split]:
    """Draw `TRIALS` times and take the splits whose smallest p-value is largest."""
    seeds = np.random.default_rng(seed).integers(2**32, size=TRIALS).tolist()
    trials = [_draw(cells, _DRAWS_A_TRIAL, trial) for trial in seeds]
    usable = [
        splits for splits in trials if not any(len(cells.unseen(split.test, split.train)) for split in splits)
    ] or trials
    n_of_one_class = [
        sum(cells.is_of_one_class(part, cells.rows) for split in splits for part in split[1:] if len(part))
        for splits in usable
    ]
    usable = [splits for splits, n in zip(usable, n_of_one_class, strict=True) if n == min(n_of_one_class)]
    values_of = {name: units(column, cells.groups) for name, column in traits.items()}
    judged = [
        {
            name: min(p_value(parts, values) for parts in _units_of(splits, cells) for values in several)
            for name, several in values_of.items()
        }
        for splits in usable
    ]
    best = max(range(len(judged)), key=lambda i: min(judged[i].values()))
    listed = ", ".join(f"{name} p = {p:.3g}" for name, p in judged[best].items())
    logger.info("Split chosen among %d for its balance over parts: %s.", len(judged), listed)
    return usable[best]


def _units_of(splits: Sequence[Split], cells: _Cells) -> list[list[np.ndarray]]:
    """Return for each split the units of its parts that are compared for balance: cells or, with groups, groups."""
    return [
        [rows if cells.groups is None else np.unique(cells.groups[rows]) for rows in split if len(rows)]
        for split in splits
    ]


def _tell(splits: Sequence[Split], cells: _Cells) -> None:
    """Log what makes scores look worse or better than they are."""
    for split, where in zip(splits, _headings(splits), strict=True):
        for part, rows in (("validation", split.validation), ("test", split.test)):
            unseen = _listed(cells.unseen(rows, split.train))
            if unseen:
                logger.warning(
                    "%sNo training %s is of class %s; %s %ss of it count as errors.",
                    where, cells.row, unseen, part, cells.row,
                )  # fmt: skip
        if cells.groups is not None and np.isin(cells.groups[split.validation], cells.groups[split.train]).any():
            told = "%sThe epoch is chosen on %ss of training groups; reported %ss are of other groups."
            logger.info(told, where, cells.row, cells.row)
    if cells.are_classes:
        warn_of_lacking_classes(splits, cells.class_names[cells.strata], cells.row)


def warn_of_lacking_classes(splits: Sequence[Split], labels: np.ndarray, row: str, *, target: str = "") -> None:
    """Log which parts hold one class only, and which classes the one split's parts lack.

    Parameters
    ----------
    splits
        One, or one a fold, of which a class may be lacking, but not all others.
    labels
        Class of each row; None where there is none.
    row
        What a row is called.
    target
        What is told apart, where several things are.
    """
    what, known = f"{target}: " if target else "", pd.Series(labels, dtype=object)
    for part in ("validation", "test") if len(splits[0].validation) else ("test",):
        held = [set(known.iloc[getattr(split, part)].dropna()) for split in splits]
        wanted = [set((known.iloc[split.train] if part == "validation" else known).dropna()) for split in splits]
        alone = [i for i, classes in enumerate(held) if len(classes) == 1 < len(wanted[i])]
        if alone:
            folds = f"fold{'s' * (len(alone) > 1)} {', '.join(str(i + 1) for i in alone)}" if len(splits) > 1 else ""
            logger.warning("%s%s", what, _of_one_class(part, folds, min(held[alone[0]]), row))
        elif len(splits) == 1 and wanted[0] - held[0]:
            logger.warning(
                "%sNo %s %s is of class %s; it is in too few groups, or all of its groups were put elsewhere.",
                what, part, row, _listed(sorted(wanted[0] - held[0])),
            )  # fmt: skip


def _of_one_class(part: str, folds: str, name: str, row: str) -> str:
    if part == "validation":
        whose = f"s of {folds} are of one class" if folds else f"s are of one class ({name!r})"
        return (
            f"All validation {row}{whose}, so the epoch that they choose may be one that calls everything so. Name "
            "validation_groups of several classes, or leave them out."
        )
    if not folds:
        return (
            f"All test {row}s are of one class ({name!r}), so no score can tell how well classes are told apart, and "
            "none is given. Test groups of several classes, or give more groups of the others."
        )
    return (
        f"All test {row}s of {folds} are of one class, so these folds have no scores of their own; those over all "
        f"folds compare {row}s that different networks were asked. Give fewer folds, so that each has several classes."
    )
