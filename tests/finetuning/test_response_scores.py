"""Scores of responses: by hand at each aggregation, scipy's group by group, and a slow bootstrap that repeats rows."""

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

from geneformer_repro.errors import InputError
from geneformer_repro.finetuning.kinds.response_scores import (
    AGGREGATIONS,
    Pairs,
    counts,
    evaluate_responses,
    response_statistics,
    scores_of_groups,
)
from geneformer_repro.finetuning.metrics import once
from geneformer_repro.mean_effects import MeanEffects


def scores(pairs, predicted, naive=None):
    found = response_statistics(pairs, np.asarray(predicted, dtype=float), naive=naive)(once(len(predicted)))
    return {name: value.item() for name, value in found.items()}


def one_fold(true, samples, drugs):
    return Pairs(np.asarray(true, dtype=float), np.asarray(samples), np.asarray(drugs), np.zeros(len(true)))


def screen(n_samples=12, n_drugs=6, seed=0):
    """A screen in three folds of samples with missing pairs, a prediction that knows something, and mean effects."""
    rng = np.random.default_rng(seed)
    samples, drugs = np.nonzero(rng.random((n_samples, n_drugs)) < 0.9)
    true = rng.normal(size=len(samples)) + drugs
    naive = MeanEffects.fit(true, samples, drugs, effects=("drug",)).predict(samples, drugs)
    pairs = Pairs(true, samples, drugs, samples % 3)
    return pairs, true + rng.normal(size=len(true)), naive


def test_three_aggregations_by_hand():
    # samples a, b; drugs x, y, z: a's order is right, b's is turned round; of each drug two samples
    pairs = one_fold([1, 2, 3, 2, 4, 6], [0, 0, 0, 1, 1, 1], [0, 1, 2, 0, 1, 2])
    found = scores(pairs, [1, 2, 3, 6, 4, 2])
    assert found["pearson_within_sample"] == pytest.approx((1 - 1) / 2)
    assert found["pearson_within_drug"] == pytest.approx((1 + 1 - 1) / 3)  # z: 3 < 6, predicted 3 > 2
    assert found["pearson_global"] == pytest.approx(pearsonr([1, 2, 3, 2, 4, 6], [1, 2, 3, 6, 4, 2])[0])
    assert found["rmse_global"] == pytest.approx(np.sqrt(32 / 6))


def test_what_is_left_of_mean_effects_by_hand_at_three_aggregations():
    # left of a: -1/2, -1, -3/2, predicted 1, 0, -1; of b: 1/2, 1, 3/2, predicted 2, 1, -1
    pairs = one_fold([1, 2, 3, 2, 4, 6], [0, 0, 0, 1, 1, 1], [0, 1, 2, 0, 1, 2])
    naive = np.array([1.5, 3, 4.5, 1.5, 3, 4.5])
    got = scores(pairs, naive + np.array([1, 0, -1, 2, 1, -1]), naive)
    expected = {
        "pearson_within_sample_normalised": (1 - 1.5 / np.sqrt(1 / 2 * 42 / 9)) / 2,
        "spearman_within_sample_normalised": (1 - 1) / 2,
        "pearson_within_drug_normalised": (1 + 1 + 0) / 3,  # of z both are predicted the same
        "spearman_within_drug_normalised": (1 + 1 + 0) / 3,
        "pearson_global_normalised": 1.5 / np.sqrt(7 * 22 / 3),
        "rmse_within_sample": (np.sqrt(3.5 / 3) + np.sqrt(8.5 / 3)) / 2,
        "rmse_within_drug": (np.sqrt(2.25) + np.sqrt(0.5) + np.sqrt(3.25)) / 3,
        "rmse_global": np.sqrt(12 / 6),
    }
    assert {name: got[name] for name in expected} == pytest.approx(expected)


def test_errors_within_groups_are_means_over_all_of_them():
    """The published code's mean squared error a drug averages the last group alone."""
    pairs = one_fold([0, 0, 0, 0], [0, 1, 0, 1], [0, 0, 1, 1])
    assert scores(pairs, [3, 3, 1, 1])["rmse_within_drug"] == pytest.approx((3 + 1) / 2)
    assert scores(pairs, [1, 1, 3, 3])["rmse_within_drug"] == pytest.approx((3 + 1) / 2)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_groups_are_scipys_within_folds_with_and_without_the_mean_effects(aggregation):
    pairs, predicted, naive = screen(18)
    number = {"within_sample": pairs.samples, "within_drug": pairs.drugs}.get(aggregation, np.zeros(len(predicted)))
    table = scores_of_groups(pairs, predicted, naive=naive, aggregation=aggregation)
    for row in table.itertuples():
        members = (pairs.folds == row.fold) & (number == row.number)
        both = pairs.true[members], predicted[members]
        left = tuple(one - naive[members] for one in both)
        expected = [pearsonr(*both)[0], spearmanr(*both)[0], pearsonr(*left)[0], spearmanr(*left)[0]]
        got = [row.pearson, row.spearman, row.pearson_normalised, row.spearman_normalised]
        np.testing.assert_allclose(got, expected, atol=1e-12)
        assert row.n == members.sum()
    found = scores(pairs, predicted, naive)
    assert found[f"pearson_{aggregation}_normalised"] == pytest.approx(table["pearson_normalised"].mean())
    assert found[f"rmse_{aggregation}"] == pytest.approx(table["rmse"].mean())


def test_a_constant_prediction_scores_0_and_groups_that_cannot_be_scored_are_counted():
    # drug 0: two samples; drug 1: one row; drug 2: equal truth
    pairs = one_fold([1, 2, 3, 5, 5], [0, 1, 0, 0, 1], [0, 0, 1, 2, 2])
    found = scores(pairs, [7, 7, 1, 2, 3])
    assert found["pearson_within_drug"] == found["spearman_within_drug"] == 0
    by_group = {one: scores_of_groups(pairs, np.zeros(5), aggregation=one) for one in AGGREGATIONS}
    counted = counts(by_group)
    assert (counted["n_groups_within_drug"], counted["n_undefined_within_drug"]) == (3, 2)
    assert (counted["n_groups_within_sample"], counted["n_undefined_within_sample"]) == (2, 0)
    assert np.isnan(scores(one_fold([1, 1], [0, 1], [0, 0]), [1, 2])["pearson_within_drug"])


def test_means_that_differ_by_rounding_are_constant():
    pairs, _, _ = screen()
    effects = MeanEffects.fit(pairs.true, pairs.samples, pairs.drugs)
    naive = effects.predict(pairs.samples, pairs.drugs)
    again = naive * (1 + 1e-15) + 3e-16
    found = scores(pairs, again, naive)
    for aggregation in AGGREGATIONS:
        assert found[f"pearson_{aggregation}_normalised"] == found[f"spearman_{aggregation}_normalised"] == 0


def test_the_mean_of_a_drug_over_other_folds_is_not_held_against_it():
    """Over folds together, a left-out mean is low where the truth is high; of each fold it is constant."""
    rng = np.random.default_rng(0)
    true, samples, drugs = rng.normal(size=40), np.arange(40), np.zeros(40, dtype=int)
    folds = np.arange(40) // 2
    left_out = np.array([true[folds != fold].mean() for fold in folds])
    assert np.corrcoef(true, left_out)[0, 1] < -0.6
    assert scores(Pairs(true, samples, drugs, folds), left_out)["pearson_within_drug"] == 0


def test_intervals_are_those_of_repeated_samples():
    pairs, predicted, naive = screen()
    statistics = response_statistics(pairs, predicted, naive=naive)
    drawn = np.random.default_rng(5).integers(12, size=12)
    times = np.bincount(drawn, minlength=12)[pairs.samples]
    found = {name: value.item() for name, value in statistics(times[:, None].astype(float)).items()}
    rows = np.repeat(np.arange(len(times)), times)
    copy = np.concatenate([np.arange(n) for n in times])
    repeated = Pairs(pairs.true[rows], pairs.samples[rows] * 100 + copy, pairs.drugs[rows], pairs.folds[rows])
    expected = scores(repeated, predicted[rows], naive[rows])
    for name in ("pearson_within_sample", "pearson_within_sample_normalised", "spearman_within_sample"):
        assert found[name] == pytest.approx(expected[name])  # a sample that was drawn twice counts twice
    weights = np.array([times[pairs.folds == fold].mean() for fold in range(3)])
    of_folds = [
        pearsonr(pairs.true[rows[members]], predicted[rows[members]])[0]
        for members in (pairs.folds[rows] == fold for fold in range(3))
    ]
    assert found["pearson_global"] == pytest.approx(np.average(of_folds, weights=weights))


def test_intervals_resample_whole_groups_and_hold_the_score():
    pairs, predicted, naive = screen(40)
    found = evaluate_responses(pairs, predicted, naive=naive, groups=pairs.samples, rng=np.random.default_rng(0))
    for name in ("pearson_global_normalised", "pearson_within_drug", "rmse_within_sample"):
        assert found[f"{name}_low"] < found[name] < found[f"{name}_high"]
    with pytest.raises(InputError, match="not finite"):
        evaluate_responses(pairs, predicted * np.nan, groups=None, rng=np.random.default_rng(0))
