"""Labels of responses: scores beside the mean effects of each fold, tables, tests of differences, pictures."""

import numpy as np
import pandas as pd
import pytest
from _responses import simulate_responses
from scipy.stats import pearsonr

from geneformer_repro.finetuning import metrics
from geneformer_repro.finetuning.baselines import PairInputs
from geneformer_repro.finetuning.evaluation import evaluate_target
from geneformer_repro.finetuning.kinds import kind_of
from geneformer_repro.finetuning.kinds.response import ResponseLabels
from geneformer_repro.finetuning.kinds.response_methods import MEAN_EFFECTS, RESPONSE_METHODS
from geneformer_repro.finetuning.pair_splits import Identities, make_pair_splits
from geneformer_repro.finetuning.results import figures
from geneformer_repro.finetuning.settings.splits import PairSplitConfig
from geneformer_repro.targets import Number, Response

NAN = float("nan")
OURS, DRUG, OVERALL = "ridge, PCA × drug", "drug mean", "overall mean"
TARGET = Response("response", "AUC")
LABELS = np.array([[1.0, 0, 0, 0], [2, 0, 1, 0], [NAN, 1, 0, 0], [4, 1, 1, 0], [5, 2, 1, 0], [6, 2, 0, 0]])


def test_labels_are_scaled_and_dealt_out_by_their_value():
    kind = kind_of(TARGET)
    assert isinstance(kind, ResponseLabels)
    scaled = kind.scaled(LABELS)
    given = np.array([1, 2, 4, 5, 6])
    assert (scaled.mean, scaled.sd, scaled.measure) == (given.mean(), given.std(), "AUC")
    assert [stratum[:7] for stratum in kind.strata(LABELS)] == [
        "range 1", "range 2", "(none)", "range 3", "range 4", "range 5",
    ]  # fmt: skip
    assert kind.lacks(LABELS) is None
    assert kind.lacks(LABELS[[2]]) == "a label"
    other = LABELS.copy()
    other[0, 2] = 1
    assert kind.content(other) != kind.content(LABELS)


def test_predictions_for_another_measure_are_none():
    kind, meaning = kind_of(TARGET), np.array([[1.0], [2.0]])
    np.testing.assert_array_equal(kind.from_another(Response("other", "AUC"), meaning), [1, 2])
    assert kind.from_another(Response("response", "LN_IC50"), meaning) is None
    assert kind.from_another(Number("response"), meaning) is None


def test_an_epoch_is_chosen_by_the_error_that_is_learned():
    kind = kind_of(kind_of(TARGET).scaled(LABELS))
    known = LABELS[~np.isnan(LABELS[:, 0])]
    perfect, mean = (kind.validation_scores(known, one) for one in (known[:, 0], np.full(5, kind.target.mean)))
    assert kind.merit(perfect) == 1
    assert kind.merit(mean) == pytest.approx(0)
    assert mean["pearson"] == 0
    assert np.isnan(kind.merit(kind.validation_scores(known, np.full(5, NAN))))


@pytest.fixture(scope="module", autouse=True)
def _few_resamples():
    """How wide intervals are is not asked here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "N_RESAMPLES", 200)
        yield


@pytest.fixture(scope="module")
def tested():
    """Three folds of new samples, each method's predictions as an experiment joins them, and whose each row is."""
    simulated = simulate_responses(45, 12, interaction=0.5, chemistry=0.5, n_genes=40)
    responses = simulated.responses
    samples = simulated.expression.index.get_indexer(responses["sample"])
    drugs = simulated.fingerprints.index.get_indexer(responses["drug"])
    inputs = PairInputs(
        samples=simulated.expression.to_numpy(),
        drugs=simulated.fingerprints.to_numpy(),
        pairs=np.stack([samples, drugs], axis=1),
        tissues=np.zeros(45, dtype=int),
    )
    target = Response(
        "response", "AUC", samples=tuple(simulated.expression.index), drugs=tuple(simulated.fingerprints.index)
    )
    labels = np.stack([responses["value"], samples, drugs, np.zeros(len(samples))], axis=1)
    names = (responses["sample"] + " × " + responses["drug"]).to_numpy()
    splits = make_pair_splits(
        names, kind_of(target).strata(labels), Identities(samples, drugs), PairSplitConfig(folds=3), seed=0
    )
    predicted = {}
    for name in (OVERALL, DRUG, MEAN_EFFECTS, OURS):
        asked = [RESPONSE_METHODS[name](inputs, one.train, labels[one.train, 0], one.test, 0) for one in splits]
        predicted[name] = np.concatenate(asked)
    rows = np.concatenate([one.test for one in splits])
    return target, names[rows], labels[rows], predicted, np.repeat(np.arange(3), [len(one.test) for one in splits])


def evaluate(tested, **changes):
    target, names, labels, predicted, folds = tested
    how = {"folds": folds, "groups": labels[:, 1], "seed": 0, "named": "pair", "networks": [OURS]} | changes
    return evaluate_target(target, names, labels, how.pop("predicted", predicted), **how)


@pytest.fixture(scope="module")
def evaluation(tested):
    return evaluate(tested)


def test_what_is_scored_is_what_goes_beyond_the_mean_effects_of_the_same_fold(tested, evaluation):
    _, _, labels, predicted, folds = tested
    left = labels[:, 0] - predicted[MEAN_EFFECTS], predicted[OURS] - predicted[MEAN_EFFECTS]
    expected = [pearsonr(*(one[folds == fold] for one in left))[0] for fold in range(3)]
    leading = evaluation.methods["pearson_global_normalised"]
    assert leading[OURS] == pytest.approx(np.mean(expected))
    assert leading[MEAN_EFFECTS] == leading[DRUG] == 0  # of new samples the drug's mean is all that is known
    per_fold = evaluation.folds.set_index(["method", "score"]).loc[(OURS, "pearson_global_normalised")]
    assert (per_fold["mean"], per_fold["sd"]) == pytest.approx((np.mean(expected), np.std(expected, ddof=1)))
    assert evaluation.methods.loc[DRUG, "pearson_global"] > 0.5  # which is high for knowing the drugs
    assert " residual correlation above " in evaluation.verdict
    assert evaluation.verdict.endswith(": better")
    assert evaluation.caution is None


def test_a_label_that_is_missing_counts_nowhere(tested, evaluation):
    target, names, labels, predicted, folds = tested
    more = np.concatenate([labels, [[NAN, 0, 0, 0]]])
    longer = {name: np.append(predicted[name], 9.0) for name in (MEAN_EFFECTS, OURS)}
    with_gap = evaluate((target, np.append(names, "gap"), more, longer, np.append(folds, 0)), groups=more[:, 1])
    columns = [name for name in evaluation.methods if "_vs_" not in name]
    pd.testing.assert_frame_equal(with_gap.methods[columns], evaluation.methods.loc[list(longer), columns])


def test_tables_tell_of_every_sample_and_drug_by_name_and_count_what_has_no_score(tested, evaluation):
    target, _, labels, *_ = tested
    predictions, per_group = evaluation.predictions, evaluation.per_group
    assert list(predictions)[:5] == ["pair", "fold", "sample", "drug", "true"]
    assert (predictions["sample"] + " × " + predictions["drug"] == predictions["pair"]).all()
    of_drugs = per_group.query("aggregation == 'within_drug' and method == @OURS")
    assert set(of_drugs["group"]) == set(target.drugs)
    assert of_drugs["n"].sum() == len(labels)
    methods = evaluation.methods
    assert methods.loc[OURS, "pearson_within_drug"] == pytest.approx(of_drugs["pearson"].mean())
    assert (methods["n_groups_within_sample"] == 45).all()
    assert (methods["n_undefined_within_drug"] == 0).all()


def test_differences_are_tested_in_three_ways_and_in_both_directions(evaluation):
    tests = evaluation.difference_tests.set_index(["method", "other", "score", "test"]).sort_index()
    ours = tests.loc[(OURS, MEAN_EFFECTS, "pearson_global_normalised")]
    assert ours.loc["unpaired, folds", "n"] == ours.loc["corrected, folds", "n"] == 3
    assert ours.loc["paired, folds", "p"] < ours.loc["corrected, folds", "p"]
    ratio = np.sqrt(1 / 3 / (1 / 3 + 1 / 2))  # test / train = 1 / 2 of three folds of equal size
    assert ours.loc["corrected, folds", "t"] == pytest.approx(ours.loc["paired, folds", "t"] * ratio, rel=0.01)
    within = tests.loc[(OURS, MEAN_EFFECTS, "pearson_within_sample_normalised", "paired, groups")]
    assert (within["n"], within["direction"]) == (45, "higher")
    worse = tests.loc[(OVERALL, MEAN_EFFECTS, "pearson_within_sample", "paired, groups")]
    assert (worse["direction"], worse["difference"] < 0) == ("lower", True)


def test_without_simple_methods_nothing_is_compared_and_that_is_said(tested):
    alone = evaluate(tested, predicted={OURS: tested[3][OURS]})
    assert np.isnan(alone.methods.loc[OURS, "pearson_global_normalised"])
    assert alone.methods.loc[OURS, "pearson_within_drug"] > 0
    assert alone.verdict is None
    assert alone.caution.startswith("Without the simple methods there are no mean effects")
    assert set(figures(alone)) == {"methods", "aggregations", "per_drug"}


def test_pictures_show_the_scores_what_is_left_and_each_drug(evaluation):
    pictures = figures(evaluation)
    assert set(pictures) == {"methods", "aggregations", "residuals", "per_drug"}
    axes = pictures["aggregations"].axes[0]
    assert [label.get_text() for label in axes.get_legend().get_texts()] == [
        "as predicted", "less mean effects", "mean effects alone",
    ]  # fmt: skip
    left = evaluation.predictions[["true", OURS]].sub(evaluation.predictions[MEAN_EFFECTS], axis=0)
    points = pictures["residuals"].axes[0].collections[0].get_offsets()
    np.testing.assert_allclose(np.asarray(points), left[[OURS, "true"]])
    bars = [bar.get_height() for bar in pictures["per_drug"].axes[0].patches]
    assert bars == sorted(bars, reverse=True)
    assert np.mean(bars) == pytest.approx(evaluation.methods.loc[OURS, "pearson_within_drug"], abs=0.02)
    assert [section.title for section in evaluation.kind.sections("pairs", pictures)] == [
        "response: which drug for this sample, and whom does this drug help",
        "response: what is predicted beyond the mean effects",
        "response: each drug",
    ]
