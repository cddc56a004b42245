"""Which pairs of a sample and a drug are trained on, which choose the epoch, and which are reported.

What is new in the test decides what a score means: a random pair (sample and drug are met in training, with others), a
sample ("cell cold start": which drug for this patient), a drug ("drug cold start": whom does this drug help), both, or
a tissue. The validation rows are new in the same way, or early stopping would favour who knows the training samples by
heart. What counts is who samples and drugs are, not what they are called: a pair's identities are given, so a line
under two names, or a drug under two, is on one side.

Of samples and drugs that are both new, pairs of one new and one old are in no part: of parts of a fifth each, training
keeps 64 % of the pairs less the validation's, and 4 % are reported.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd

from geneformer_repro.config import names_in
from geneformer_repro.errors import InputError
from geneformer_repro.finetuning.settings.splits import NewInTest, PairSplitConfig, SplitConfig
from geneformer_repro.finetuning.splits import Split, make_splits


class Identities(NamedTuple):
    """Who the sample and the drug of each row are, (rows,): equal where they are the same, whatever their names."""

    samples: np.ndarray
    drugs: np.ndarray
    tissues: np.ndarray | None = None
    """Tissue of each row's sample; None where none are known."""

    def groups(self, by: NewInTest) -> np.ndarray:
        """Return of each row, as text, what intervals resample as a whole in such a split; of "both" the sample.

        Raises
        ------
        InputError
            Tissues are wanted, and there are none.
        """
        if by == "tissue" and self.tissues is None:
            raise InputError('split.by="tissue" needs the tissue of every sample; name the column that has it.')
        if by == "pair":
            return np.char.add(np.char.add(self.samples.astype(str), " × "), self.drugs.astype(str))
        column = {"drug": self.drugs, "tissue": self.tissues}.get(by, self.samples)
        return np.asarray(column).astype(str)


def make_pair_splits(
    names: np.ndarray, strata: np.ndarray, identities: Identities, config: PairSplitConfig, *, seed: int
) -> list[Split]:
    """Split pairs in three, once or several times.

    Parameters
    ----------
    names
        Name of each row.
    strata
        What parts of random pairs hold alike: ranges of the response. Whole samples, drugs or tissues are dealt out by
        their numbers of rows alone.
    identities
        Of each row.
    config
        How to split.
    seed
        The same seed gives the same splits, in whatever order the rows are.

    Returns
    -------
    One split, or one a fold, repeat after repeat; see `splits.make_splits`. Train, validation and test share no pair,
    sample, drug, sample and drug, or tissue, as `config.by` says.

    Raises
    ------
    InputError
        There are too few of them, or a part of "both" would be empty; or a split file puts one on two sides.
    """
    if config.by == "pair" and config.split_file is None:
        return _random_pairs(names, strata, identities.groups("pair"), config, seed)
    if config.by != "both":
        return _cold_start(names, identities.groups(config.by), config, seed)
    by_sample = _cold_start(names, identities.groups("sample"), config, seed)
    by_drug = _cold_start(names, identities.groups("drug"), config, seed + 1)
    splits = [
        Split(*(np.intersect1d(*parts) for parts in zip(of_samples, of_drugs, strict=True)))
        for of_samples, of_drugs in zip(by_sample, by_drug, strict=True)
    ]
    for fold, split in enumerate(splits, 1):
        empty = [part for part, rows in split._asdict().items() if not len(rows)]
        if empty:
            raise InputError(
                f'split.by="both": no pair of fold {fold} is in {" and ".join(empty)}, since few of its samples were '
                "given its drugs. Ask for larger shares, fewer folds, or new samples or drugs alone."
            )
    return splits


def _cold_start(names: np.ndarray, groups: np.ndarray, config: PairSplitConfig, seed: int) -> list[Split]:
    """Deal out whole groups."""
    obs = pd.DataFrame({config.by: groups})
    plain = SplitConfig(**{name: getattr(config, name) for name in names_in(SplitConfig)} | {"group": config.by})
    alike = np.full(len(names), "row")
    return make_splits(names, alike, obs, plain, seed=seed, are_classes=False, row="pair")


def _random_pairs(
    names: np.ndarray, strata: np.ndarray, pairs: np.ndarray, config: PairSplitConfig, seed: int
) -> list[Split]:
    """Split single pairs; rows of the same pair go together."""
    _, first, pair_N = np.unique(pairs, return_index=True, return_inverse=True)
    no_columns = pd.DataFrame(index=range(len(first)))
    of_pairs = make_splits(names[first], strata[first], no_columns, config, seed=seed, are_classes=False, row="pair")
    return [Split(*(np.flatnonzero(np.isin(pair_N, part)) for part in split)) for split in of_pairs]


def draw_rows(split: Split, n: int, *, seed: int) -> Split:
    """Draw labelled rows at random, so that less is learned from; what is reported stays.

    Parameters
    ----------
    split
        Of which train and validation rows are drawn, each its share: validation rows have labels as well.
    n
        Rows in all; 0 leaves none.
    seed
        Of one seed, a smaller draw is part of a larger one.

    Raises
    ------
    InputError
        There are fewer rows.
    """
    sizes = len(split.train), len(split.validation)
    if not 0 <= n <= sum(sizes):
        raise InputError(f"{n} training rows are asked for; the split has {sum(sizes)} beside the reported ones.")
    n_validation = n * sizes[1] // max(1, sum(sizes))
    train, validation = (
        np.sort(np.random.default_rng([seed, part]).permutation(rows)[:size])
        for part, (rows, size) in enumerate([(split.train, n - n_validation), (split.validation, n_validation)])
    )
    return split._replace(train=train, validation=validation)
