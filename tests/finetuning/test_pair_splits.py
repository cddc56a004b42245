"""Splits of pairs: who is new in the test is nowhere else, under whatever name, and in whatever order rows come."""

import itertools

import numpy as np
import pandas as pd
import pytest

from geneformer_repro.config import ConfigError
from geneformer_repro.errors import InputError
from geneformer_repro.finetuning.pair_splits import Identities, draw_rows, make_pair_splits
from geneformer_repro.finetuning.settings.splits import PairSplitConfig
from geneformer_repro.finetuning.splits import Split

N_SAMPLES, N_DRUGS = 30, 12


@pytest.fixture(scope="module")
def screen():
    """Names, strata and identities of a screen in which a fifth of the pairs is missing."""
    rng = np.random.default_rng(0)
    samples, drugs = np.nonzero(rng.random((N_SAMPLES, N_DRUGS)) < 0.8)
    names = np.array([f"s{sample} x d{drug}" for sample, drug in zip(samples, drugs, strict=True)])
    return names, rng.integers(5, size=len(names)).astype(str), Identities(samples, drugs, samples % 6)


def splits_of(screen, by, **changes):
    return make_pair_splits(*screen, PairSplitConfig(by=by, **changes), seed=0)


NEW = {
    "pair": lambda of: [of.samples * N_DRUGS + of.drugs],
    "sample": lambda of: [of.samples],
    "drug": lambda of: [of.drugs],
    "both": lambda of: [of.samples, of.drugs],
    "tissue": lambda of: [of.tissues],
}


@pytest.mark.parametrize("folds", [1, 3])
@pytest.mark.parametrize("by", NEW)
def test_no_part_knows_who_is_new_in_another(screen, by, folds):
    splits = splits_of(screen, by, folds=folds)
    assert len(splits) == folds
    for split in splits:
        for identity in NEW[by](screen[2]):
            for first, second in ((0, 1), (0, 2), (1, 2)):
                assert not np.intersect1d(identity[split[first]], identity[split[second]]).size
        assert all(len(part) for part in split)
    if by != "both":
        tested = np.concatenate([split.test for split in splits])
        assert len(np.unique(tested)) == len(tested) == (len(screen[0]) if folds > 1 else len(tested))


@pytest.mark.parametrize("by", NEW)
def test_rows_in_another_order_are_split_alike_but_for_random_pairs(screen, by):
    names, strata, identities = screen
    order = np.random.default_rng(1).permutation(len(names))
    shuffled = names[order], strata[order], Identities(*(column[order] for column in identities))
    for one, other in zip(splits_of(screen, by, folds=3), splits_of(shuffled, by, folds=3), strict=True):
        assert [set(names[part]) for part in one] == [set(names[order][part]) for part in other]


def test_another_seed_is_another_split_and_the_same_the_same(screen):
    config = PairSplitConfig(by="sample")
    first, again, other = (make_pair_splits(*screen, config, seed=seed)[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.test, again.test)
    assert set(first.test) != set(other.test)


def test_one_left_out_at_a_time_and_named_ones(screen):
    samples, drugs, _ = screen[2]
    assert [np.unique(drugs[split.test]).size for split in splits_of(screen, "drug", folds="groups")] == [1] * N_DRUGS
    (named,) = splits_of(screen, "sample", test_groups=("3", "17"))
    assert np.unique(samples[named.test]).tolist() == [3, 17]


def test_rows_of_one_pair_under_two_names_go_together():
    samples = np.repeat(np.arange(20), 4)
    drugs = np.tile([0, 0, 1, 2], 20)  # the first two are one drug under two names
    names = np.array([f"row {i}" for i in range(80)])
    for split in make_pair_splits(
        names, np.full(80, "a"), Identities(samples, drugs), PairSplitConfig(by="pair", folds=4), seed=0
    ):
        for part in split:
            assert np.isin(part[part % 4 == 0] + 1, part).all()
        assert (np.isin(split.test, split.train)).sum() == 0


def test_a_file_that_puts_a_drug_on_two_sides_is_refused(screen, tmp_path):
    names, _, identities = screen
    part = np.where(np.arange(len(names)) % 3 == 0, "test", "train")
    path = tmp_path / "split.tsv"
    pd.DataFrame({"pair": names, "part": part}).to_csv(path, sep="\t", index=False)
    for by in ("drug", "sample", "both"):
        with pytest.raises(InputError, match=r"is in (train|validation) and in test"):
            splits_of(screen, by, split_file=str(path))
    part = np.where(identities.drugs < 3, "test", "train")
    pd.DataFrame({"pair": names, "part": part}).to_csv(path, sep="\t", index=False)
    (split,) = splits_of(screen, "drug", split_file=str(path))
    assert np.unique(identities.drugs[split.test]).tolist() == [0, 1, 2]
    assert not np.intersect1d(identities.drugs[split.train], identities.drugs[split.validation]).size


def test_shares_of_both_are_of_samples_and_of_drugs(screen):
    (split,) = splits_of(screen, "both", test=0.25)
    samples, drugs, _ = screen[2]
    shares = [np.unique(of[split.test]).size / np.unique(of).size for of in (samples, drugs)]
    np.testing.assert_allclose(shares, 0.25, atol=0.05)


def test_what_is_known_in_the_test_follows_from_what_is_new():
    known = {by: PairSplitConfig(by=by).known_effects for by in NEW}
    both = ("sample", "drug")
    assert known == {"pair": both, "sample": ("drug",), "drug": ("sample",), "both": (), "tissue": ("drug",)}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        pytest.param({"by": "cell"}, "by must be one of pair, sample, drug, both, tissue", id="by"),
        pytest.param({"group": "patient"}, "group must be None", id="group"),
        pytest.param({"balance": ("age",)}, "balance must be empty", id="balance"),
        pytest.param({"by": "both", "folds": "groups"}, "folds must be a number", id="each of both"),
        pytest.param({"by": "both", "test_groups": ("a",)}, "test_groups must be empty", id="named both"),
        pytest.param({"by": "pair", "folds": "groups"}, "group must be a column", id="each pair"),
    ],
)
def test_configurations_that_mean_nothing_are_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        PairSplitConfig(**changes)


def test_what_cannot_be_split_is_refused(screen):
    names, strata, identities = screen
    with pytest.raises(InputError, match="needs the tissue of every sample"):
        make_pair_splits(names, strata, identities._replace(tissues=None), PairSplitConfig(by="tissue"), seed=0)
    diagonal = np.arange(20)
    with pytest.raises(InputError, match="no pair of fold 1 is in"):
        make_pair_splits(
            diagonal.astype(str), np.full(20, "a"), Identities(diagonal, diagonal), PairSplitConfig(by="both"), seed=0
        )


def test_drawn_rows_are_nested_and_keep_the_parts(screen):
    (split,) = splits_of(screen, "sample")
    sizes = [0, 10, 50, 100, len(split.train) + len(split.validation)]
    drawn = [draw_rows(split, n, seed=3) for n in sizes]
    assert [len(one.train) + len(one.validation) for one in drawn] == sizes
    for small, large in itertools.pairwise(drawn):
        assert set(small.train) <= set(large.train)
        assert set(small.validation) <= set(large.validation)
    assert len(drawn[2].validation) == 50 * len(split.validation) // sizes[-1]
    np.testing.assert_array_equal(drawn[-1].train, split.train)
    np.testing.assert_array_equal(drawn[1].test, split.test)
    assert set(draw_rows(split, 10, seed=4).train) != set(drawn[1].train)
    with pytest.raises(InputError, match=f"{sizes[-1] + 1} training rows are asked for"):
        draw_rows(split, sizes[-1] + 1, seed=0)
    assert isinstance(drawn[0], Split)
