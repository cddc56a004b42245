"""Tests of differences between methods: scipy's, by hand, and the published marks of significance."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student
from scipy.stats import ttest_ind, ttest_rel

from geneformer_repro.errors import InputError
from geneformer_repro.finetuning.difference_tests import paired_test, unpaired_test

FIRST, SECOND = np.array([0.5, 0.7, 0.6, 0.9]), np.array([0.4, 0.7, 0.4, 0.8])


def test_paired_and_unpaired_tests_are_those_of_scipy_and_differ():
    paired, unpaired = paired_test(FIRST, SECOND), unpaired_test(FIRST, SECOND)
    assert (paired.t, paired.p) == pytest.approx(tuple(ttest_rel(FIRST, SECOND)))
    assert (unpaired.t, unpaired.p) == pytest.approx(tuple(ttest_ind(FIRST, SECOND)))
    assert paired.difference == unpaired.difference == pytest.approx(0.1)
    assert paired.n == 4
    assert paired.p < 0.1 < unpaired.p  # the same folds: what is hard is hard for both


def test_the_corrected_test_is_nadeau_and_bengios_by_hand():
    # differences 0.1, 0, 0.2, 0.1: mean 0.1, variance 0.02 / 3; of 4 folds test / train = 1 / 3
    corrected = paired_test(FIRST, SECOND, test_to_train=1 / 3)
    t = 0.1 / np.sqrt((1 / 4 + 1 / 3) * 0.02 / 3)
    assert (corrected.t, corrected.p) == pytest.approx((t, 2 * student.sf(t, 3)))
    assert corrected.p > paired_test(FIRST, SECOND).p


def test_both_directions_are_said():
    steady = np.array([0.01, 0.02, 0.01, 0.02])
    up, down = paired_test(FIRST + 0.2 + steady, FIRST), paired_test(FIRST, FIRST + 0.2 + steady)
    assert (up.direction, down.direction) == ("higher", "lower")
    assert up.p == pytest.approx(down.p)
    assert paired_test(FIRST, SECOND).direction == "no clear difference"


def test_what_is_not_defined_is_left_out_and_nothing_is_claimed_of_one_fold_or_of_equals():
    gaps = np.append(FIRST, np.nan), np.append(SECOND, 0.3)
    assert paired_test(*gaps) == paired_test(FIRST, SECOND)
    assert unpaired_test(gaps[0], SECOND) == unpaired_test(FIRST, SECOND)
    for result in (paired_test(FIRST, FIRST), paired_test(FIRST[:1], SECOND[:1]), unpaired_test(FIRST[:1], SECOND[:1])):
        assert np.isnan(result.p)
        assert result.direction == "no clear difference"
    assert np.isnan(paired_test(FIRST[:0], FIRST[:0]).difference)
    with pytest.raises(InputError, match="scores of the same groups; found 4 and 3"):
        paired_test(FIRST, SECOND[:3])


@pytest.fixture(scope="module")
def table_2(shared):
    """Table 2 of Prasse et al.: scratch beside pre-trained, but for no training rows, where there is no scratch."""
    table = pd.read_csv(shared / "data" / "paper_drug_sensitivity_table2.csv")
    key = ["dataset", "task", "n_train", "model"]
    of = {name: part.set_index(key) for name, part in table.groupby("pretrained")}
    both = of[True].join(of[False], lsuffix="_pretrained", rsuffix="_scratch").dropna()
    both = both.reset_index()
    few = (both["dataset"] == "PDX") & (both["task"] == "drug_development")
    return both.assign(folds=np.where(few, 3, 10))


def as_published(mean, se, folds):
    """Folds with that mean and published standard error."""
    sign = np.linspace(-1, 1, folds)
    return mean + se * np.sqrt(folds) * sign / sign.std()


def test_folds_that_are_made_up_have_the_published_mean_and_error():
    folds = as_published(0.6, 0.02, 10)
    assert (folds.mean(), folds.std(ddof=0) / np.sqrt(10)) == pytest.approx((0.6, 0.02))


def directions_within_rounding(row):
    """What the unpaired test says of the folds that such rounded means and standard errors may come from."""
    for away, wider in itertools.product((-5e-4, 5e-4), repeat=2):
        pretrained = as_published(row.pearson_mean_pretrained + away, row.pearson_se_pretrained + wider, row.folds)
        scratch = as_published(row.pearson_mean_scratch - away, row.pearson_se_scratch + wider, row.folds)
        yield unpaired_test(pretrained, scratch).direction


def test_the_published_marks_are_those_of_the_unpaired_test_where_three_digits_can_tell(table_2):
    """The table's "*" says that p < 0.05 and pre-trained is higher; who marks gains alone never sees a loss."""
    said = [(row, set(directions_within_rounding(row))) for row in table_2.itertuples()]
    assert len(said) == 138
    sure = [(row, min(directions)) for row, directions in said if len(directions) == 1]
    assert len(sure) == SURE
    assert all((direction == "higher") == row.significant_pretrained for row, direction in sure)
    lower = {(row.dataset, row.task, row.n_train, row.model) for row, direction in sure if direction == "lower"}
    assert len(lower) == LOWER  # "pre-trained never significantly worse", says the text
    assert ("BeatAML", "drug_development", "all", "PaccMann") in lower


SURE, LOWER = 134, 6


@pytest.fixture(scope="module")
def simple(shared):
    """Means and random forests on the published folds."""
    return pd.read_csv(shared / "data" / "paper_drug_sensitivity_naive_rf.csv")


@pytest.mark.parametrize(("task", "n_rows"), [("precision_oncology", 14), ("drug_development", 6)])
def test_a_mean_is_as_good_as_the_best_pretrained_network_in_so_many_of_23_rows(shared, simple, task, n_rows):
    """The drug's mean for new samples, the sample's for new drugs; networks from no training rows have no such row."""
    networks, key = pd.read_csv(shared / "data" / "paper_drug_sensitivity_table2.csv"), ["dataset", "n_train"]
    pretrained = networks[(networks["task"] == task) & networks["pretrained"]]
    means = simple[(simple["task"] == task) & simple["model"].str.startswith("naive")].set_index(key)["pearson_mean"]
    best = pretrained.groupby(key)["pearson_mean"].max()[means.index]
    assert ((means >= best).sum(), len(means)) == (n_rows, 23)


def test_the_forest_that_was_left_out_is_as_good_as_every_network_that_learned_all_rows_of_new_samples(table_2, simple):
    networks, simple_of_all = (
        table[(table["task"] == "precision_oncology") & (table["n_train"] == "all")].set_index("dataset")
        for table in (table_2, simple)
    )
    best = networks[["pearson_mean_pretrained", "pearson_mean_scratch"]].groupby("dataset").max().max(axis=1)
    forest = simple_of_all[simple_of_all["model"] == "random_forest"]["pearson_mean"]
    assert (forest[best.index] >= best).all()
    assert len(best) == 4
