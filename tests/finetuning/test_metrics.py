"""Scores against scikit-learn, scipy and arithmetic done by hand; intervals against a slow loop with the same draws."""

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn import metrics as sk

from geneformer_repro import InputError
from geneformer_repro.finetuning import metrics
from geneformer_repro.finetuning.kinds.class_scores import (
    CLASS_SCORES,
    OF_A_CLASS,
    Calls,
    evaluate_classes,
    scores,
    validation_scores,
)
from geneformer_repro.finetuning.kinds.numbers import NUMBER_SCORES, NumberLabels, evaluate_numbers, number_scores
from geneformer_repro.finetuning.metrics import differences, over_folds, resample_weights
from geneformer_repro.targets import Number

N_FEW = 6
"""Resamples where a slow loop draws the same ones."""
TRUE = np.array([0, 0, 0, 0, 1, 1, 2, 2])
PREDICTED = np.array([0, 0, 1, 3, 1, 1, 0, 1])


def one_hot(codes, n_classes):
    return np.eye(n_classes)[codes]


def rng(seed=0):
    return np.random.default_rng(seed)


def evaluated(true, probabilities, *, groups=None, seed=0):
    classes = [f"c{i}" for i in range(probabilities.shape[1])]
    return evaluate_classes(true, probabilities, classes, groups=groups, rng=rng(seed))


@pytest.fixture(scope="module")
def guesses(_pbmc):
    """Types of 200 blood cells, and probabilities in steps of a twentieth, so that many are equal."""
    true = pd.factorize(_pbmc.obs["cell_type"], sort=True)[0][:200]
    n_classes = true.max() + 1
    draws = rng().multinomial(20, np.where(one_hot(true, n_classes), 0.4, 0.6 / (n_classes - 1)))
    return true, draws / 20


@pytest.fixture(scope="module")
def numbers():
    """Numbers with ties, and predictions far from 0, of 12 donors who differ."""
    donors = np.repeat(np.arange(12), 10)
    true = np.round(rng(1).normal(donors % 4, 1), 1) + 1000
    return true, np.round(0.7 * true + rng(2).normal(300, 0.5, size=120), 1), donors


def defined_mean(values):
    return np.mean([value for value in values if not np.isnan(value)] or [np.nan])


def slow_scores(true, probabilities):
    """All scores of all cells and of each class, with a function of scikit-learn for each."""
    predicted, classes = probabilities.argmax(1), range(probabilities.shape[1])
    of_class = {"auroc": [], "auprc": [], "recall": [], "f1": [], "precision": []}
    for c in classes:
        is_c, called = true == c, predicted == c
        ranked = is_c.any() and not is_c.all()
        of_class["auroc"].append(sk.roc_auc_score(is_c, probabilities[:, c]) if ranked else np.nan)
        of_class["auprc"].append(sk.average_precision_score(is_c, probabilities[:, c]) if ranked else np.nan)
        of_class["recall"].append(sk.recall_score(is_c, called) if is_c.any() else np.nan)
        of_class["f1"].append(sk.f1_score(is_c, called) if is_c.any() else np.nan)
        of_class["precision"].append(sk.precision_score(is_c, called) if called.any() else np.nan)
    return of_class | {
        "all": {
            "accuracy": sk.accuracy_score(true, predicted),
            "balanced_accuracy": defined_mean(of_class["recall"]),
            "macro_f1": defined_mean(of_class["f1"]),
            "auroc": defined_mean(of_class["auroc"]),
            "auprc": defined_mean(of_class["auprc"]),
            "ece": slow_ece(true, probabilities),
        }
    }


def slow_ece(true, probabilities):
    confidence, right = probabilities.max(1), true == probabilities.argmax(1)
    distance = 0
    for i in range(15):
        inside = (np.ceil(confidence * 15) == i + 1) | ((confidence == 0) & (i == 0))
        if inside.any():
            distance += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return distance


def slow_number_scores(true, predicted):
    return {
        "r2": sk.r2_score(true, predicted),
        "pearson": stats.pearsonr(true, predicted).statistic,
        "spearman": stats.spearmanr(true, predicted).statistic,
        "mae": sk.mean_absolute_error(true, predicted),
        "rmse": sk.root_mean_squared_error(true, predicted),
    }


def few_resamples(n_cells, groups, monkeypatch):
    """Rows of each of the resamples that an evaluation with seed 0 draws; there are few from now on."""
    monkeypatch.setattr(metrics, "N_RESAMPLES", N_FEW)
    weights = np.concatenate(list(resample_weights(n_cells, groups, rng(), N_FEW)))
    return [np.repeat(np.arange(n_cells), one) for one in weights]


# Scores of classes


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("n_cells", [3, 12, 200])
def test_class_scores_are_those_of_scikit_learn_with_its_handling_of_ties(guesses, n_cells, seed):
    rows = rng(seed).choice(200, n_cells, replace=False)
    true, probabilities = (column[rows] for column in guesses)
    expected, found = slow_scores(true, probabilities), evaluated(true, probabilities)
    for name, value in expected["all"].items():
        np.testing.assert_allclose(found.scores[name], value, rtol=0, atol=1e-12)
    for name in OF_A_CLASS:
        np.testing.assert_allclose(found.per_class[name], expected[name], rtol=0, atol=1e-12)


def test_single_precision_probabilities_score_as_what_they_are(guesses):
    true, probabilities = guesses
    single = probabilities.astype(np.float32)
    assert scores(true, single) == pytest.approx(slow_scores(true, single.astype(np.float64))["all"], abs=1e-12)


def test_codes_of_a_categorical_score_as_any_numbers():
    true = np.arange(40) % 20
    probabilities = rng().random((40, 20))
    small = pd.Categorical(true).codes
    assert small.dtype == np.int8
    found, expected = evaluated(small, probabilities), evaluated(true, probabilities)
    assert found.scores == expected.scores
    pd.testing.assert_frame_equal(found.confusion_intervals, expected.confusion_intervals)


def test_scores_without_intervals_are_those_with_them(guesses):
    found = scores(*guesses)
    assert list(found) == list(CLASS_SCORES)
    assert {name: evaluated(*guesses).scores[name] for name in CLASS_SCORES} == found
    assert {type(value) for value in found.values()} == {float}


def test_scores_of_named_classes_are_those_counted_by_hand():
    found = scores(TRUE, one_hot(PREDICTED, 4))
    assert found["accuracy"] == 4 / 8
    assert found["balanced_accuracy"] == pytest.approx((2 / 4 + 2 / 2 + 0) / 3)
    # F1: 2·2/(4+3), 2·2/(2+4), 0; no cell is of class 3
    assert found["macro_f1"] == pytest.approx((4 / 7 + 4 / 6 + 0) / 3)
    # AUROC of 0 and 1: mean of recall and specificity
    assert found["auroc"] == pytest.approx(((2 / 4 + 3 / 4) + (2 / 2 + 4 / 6) + (0 + 6 / 6)) / 6)
    assert found["ece"] == pytest.approx(4 / 8)  # always sure, half the time right


def test_ece_is_the_mean_distance_of_confidence_and_accuracy_over_bins():
    # Bins end at 8/15 = 0.533, 9/15 = 0.6, 15/15: two cells at 0.55 and 0.6 (right, wrong), two at 0.95 (right)
    confidence = np.array([0.55, 0.6, 0.95, 0.95])
    probabilities = np.stack([confidence, 1 - confidence], axis=1)
    expected = 2 / 4 * abs(1 / 2 - 0.575) + 2 / 4 * abs(1 - 0.95)
    assert scores(np.array([0, 1, 0, 0]), probabilities)["ece"] == pytest.approx(expected)


def test_both_aurocs_of_two_classes_are_the_same_and_both_average_precisions_are_not():
    probability = rng(3).random(60).round(1)
    true = (rng(4).random(60) < 0.3).astype(int)
    table = evaluated(true, np.stack([1 - probability, probability], axis=1)).per_class
    assert table["auroc"].iloc[0] == pytest.approx(table["auroc"].iloc[1])
    assert table["auprc"].iloc[0] > table["auprc"].iloc[1] + 0.1


def test_perfect_predictions_have_perfect_scores_without_width():
    found = evaluated(TRUE, one_hot(TRUE, 3)).scores
    assert {value for name, value in found.items() if "ece" not in name} == {1.0}
    assert {value for name, value in found.items() if "ece" in name} == {0.0}


def test_a_class_that_is_never_predicted_has_f1_0_and_no_precision():
    row = evaluated(TRUE, one_hot(PREDICTED, 4)).per_class.loc["c2"]
    assert (row["n"], row["recall"], row["f1"]) == (2, 0, 0)
    assert row[["precision", "precision_low", "precision_high"]].isna().all()


def test_a_class_without_test_cells_is_empty_and_changes_no_mean(guesses):
    true, probabilities = guesses
    more = np.concatenate([probabilities, np.zeros((200, 1))], axis=1)
    assert scores(true, more) == pytest.approx(scores(true, probabilities))
    assert evaluated(true, more).per_class.iloc[-1].drop("n").isna().all()


def test_where_all_test_cells_are_of_one_class_there_are_no_scores_but_an_epoch_can_be_chosen():
    true, probabilities = np.zeros(5, int), np.array([[0.75, 0.25]] * 4 + [[0.25, 0.75]])
    found = evaluated(true, probabilities)
    assert np.isnan(list(found.scores.values())).all()
    assert np.isnan(list(scores(true, probabilities).values())).all()
    assert found.per_class.loc["c0", "recall"] == 0.8
    assert found.reliability[["accuracy", "accuracy_low", "accuracy_high"]].isna().all(axis=None)
    assert np.isnan(found.per_class.loc["c0", ["precision", "f1", "auroc", "f1_low", "precision_high"]]).all()
    assert validation_scores(true, probabilities) == pytest.approx({"accuracy": 0.8, "macro_f1": 8 / 9})


@pytest.mark.parametrize("n_classes", [2, 5])
def test_the_scores_of_an_epoch_are_those_of_test_cells(n_classes):
    true, probabilities = np.arange(30) % n_classes, rng().dirichlet(np.ones(n_classes), 30)
    found, expected = validation_scores(true, probabilities), scores(true, probabilities)
    assert found == {name: expected[name] for name in ("accuracy", "macro_f1")}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_predictions_that_are_not_finite_have_no_score(guesses, bad):
    true, probabilities = guesses[0], guesses[1].copy()
    probabilities[[3, 7], 1] = bad
    assert np.isnan(list(scores(true, probabilities).values())).all()
    assert np.isnan(list(number_scores(true, probabilities[:, 1]).values())).all()
    message = r"Predictions of 2 of 200 cells are not finite \(first: row 3\).*lower learning_rate"
    with pytest.raises(InputError, match=message):
        evaluated(true, probabilities)
    with pytest.raises(InputError, match=message):
        evaluate_numbers(true, probabilities[:, 1], groups=None, rng=rng())


# Tables of classes


def test_the_confusion_counts_true_by_predicted_and_keeps_empty_classes():
    table = evaluated(TRUE, one_hot(PREDICTED, 4)).confusion
    np.testing.assert_array_equal(table, sk.confusion_matrix(TRUE, PREDICTED, labels=range(4)))
    assert (table.index.name, table.columns.name) == ("true", "predicted")
    assert list(table.index) == list(table.columns) == ["c0", "c1", "c2", "c3"]


def test_the_first_of_equally_probable_classes_is_predicted():
    assert evaluated(np.array([0, 1]), np.full((2, 2), 0.5)).confusion["c0"].tolist() == [1, 1]


def test_confusion_shares_are_those_of_the_pairs_that_occur(guesses):
    found = evaluated(*guesses)
    pairs, counts = found.confusion_intervals, found.confusion
    assert list(pairs) == ["true", "predicted", "n", "share", "share_low", "share_high"]
    long = counts.stack()
    assert pairs.set_index(["true", "predicted"])["n"].to_dict() == long[long > 0].to_dict()
    np.testing.assert_allclose(pairs["share"], pairs["n"] / pairs["true"].map(counts.sum(axis=1)))
    np.testing.assert_allclose(pairs.groupby("true")["share"].sum(), 1)


def test_the_share_of_the_right_class_is_its_recall(guesses):
    found = evaluated(*guesses)
    pairs = found.confusion_intervals
    right = pairs[pairs["true"] == pairs["predicted"]].set_index("true").filter(like="share")
    expected = found.per_class.loc[right.index, ["recall", "recall_low", "recall_high"]]
    np.testing.assert_allclose(right, expected)


def test_reliability_has_a_row_a_bin_with_cells(guesses):
    true, probabilities = guesses
    confidence, right = probabilities.max(1), true == probabilities.argmax(1)
    by_bin = pd.DataFrame({"confidence": confidence, "accuracy": right}).groupby(np.ceil(confidence * 15).astype(int))
    table = evaluated(*guesses).reliability
    np.testing.assert_allclose(table[["confidence", "accuracy"]], by_bin.mean())
    np.testing.assert_array_equal(table["n"], by_bin.size())
    assert (table["accuracy_low"] <= table["accuracy"]).all()
    assert (table["accuracy"] <= table["accuracy_high"]).all()
    assert scores(*guesses)["ece"] == pytest.approx(
        (table["n"] * (table["confidence"] - table["accuracy"]).abs()).sum() / 200
    )


# Intervals


@pytest.mark.parametrize("grouped", [False, True], ids=["cells", "groups"])
def test_class_intervals_are_those_of_a_slow_loop_over_the_same_resamples(guesses, grouped, monkeypatch):
    true, probabilities = guesses
    groups = np.arange(200) // 20 if grouped else None
    slow = [slow_scores(true[rows], probabilities[rows]) for rows in few_resamples(200, groups, monkeypatch)]
    found = evaluated(true, probabilities, groups=groups)
    for end, share in (("low", 0.025), ("high", 0.975)):
        for name in CLASS_SCORES:
            expected = np.nanquantile([one["all"][name] for one in slow], share)
            np.testing.assert_allclose(found.scores[f"{name}_{end}"], expected, rtol=0, atol=1e-12)
        for name in OF_A_CLASS:
            expected = np.nanquantile([one[name] for one in slow], share, axis=0)
            np.testing.assert_allclose(found.per_class[f"{name}_{end}"], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("grouped", [False, True], ids=["cells", "groups"])
def test_number_intervals_are_those_of_a_slow_loop_over_the_same_resamples(numbers, grouped, monkeypatch):
    true, predicted, donors = numbers
    groups = donors if grouped else None
    slow = []
    for rows in few_resamples(120, groups, monkeypatch):
        ranks = stats.rankdata(true)[rows], stats.rankdata(predicted)[rows]
        slow.append(slow_number_scores(true[rows], predicted[rows]) | {"spearman": stats.pearsonr(*ranks).statistic})
    found = evaluate_numbers(true, predicted, groups=groups, rng=rng())
    for name in NUMBER_SCORES:
        expected = np.quantile([one[name] for one in slow], [0.025, 0.975])
        np.testing.assert_allclose([found[f"{name}_low"], found[f"{name}_high"]], expected, rtol=1e-9)


def test_an_interval_leaves_out_resamples_in_which_the_score_is_not_defined():
    true = np.array([0] * 9 + [1])  # a third of the resamples have no cell of class 1
    recall = evaluated(true, one_hot(true, 2)).per_class.loc["c1"]
    assert recall[["recall", "recall_low", "recall_high"]].tolist() == [1, 1, 1]


def test_the_accuracy_interval_is_as_wide_as_the_binomial_one(guesses):
    found = evaluated(*guesses).scores
    share = found["accuracy"]
    expected = 2 * 1.96 * np.sqrt(share * (1 - share) / 200)
    np.testing.assert_allclose(found["accuracy_high"] - found["accuracy_low"], expected, rtol=0.15)


def test_the_same_rng_gives_the_same_interval(guesses):
    first, again, other = (evaluated(*guesses, seed=seed).scores for seed in (1, 1, 2))
    assert first == again != other


def test_the_interval_is_wider_over_groups_whose_cells_are_alike():
    groups = np.repeat(np.arange(12), 20)
    true = np.tile([0, 1], 120)
    predicted = np.where(groups % 3 > 0, true, 2)  # a donor is right or wrong as a whole
    by_group, by_cell = (evaluated(true, one_hot(predicted, 3), groups=chosen).scores for chosen in (groups, None))
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "auroc"):
        widths = [found[f"{name}_high"] - found[f"{name}_low"] for found in (by_group, by_cell)]
        assert widths[0] > 2 * widths[1]


def macro_f1(true, probabilities):
    called = probabilities.argmax(axis=1)
    return sk.f1_score(true, called, labels=np.unique(true), average="macro", zero_division=0)


@pytest.mark.parametrize("grouped", [False, True], ids=["cells", "groups"])
def test_differences_are_those_of_a_slow_loop_over_the_same_resamples(guesses, numbers, grouped, monkeypatch):
    (true, one), other = guesses, rng().dirichlet(np.ones(guesses[1].shape[1]), 200)
    groups = np.arange(200) // 20 if grouped else None
    slow = [
        macro_f1(true[rows], one[rows]) - macro_f1(true[rows], other[rows])
        for rows in few_resamples(200, groups, monkeypatch)
    ]
    found = differences(
        {"one": Calls(true, one).macro_f1, "other": Calls(true, other).macro_f1},
        "other",
        n_rows=len(true),
        groups=groups,
        rng=rng(),
    )
    expected = [scores(true, one)["macro_f1"] - scores(true, other)["macro_f1"], *np.nanquantile(slow, [0.025, 0.975])]
    np.testing.assert_allclose([*found["one"]], expected, rtol=0, atol=1e-12)
    assert [float(value) for value in found["other"]] == [0, 0, 0]


def test_a_difference_of_numbers_is_that_of_their_r2(numbers):
    true, predicted, donors = numbers
    given = {"one": predicted, "half": (predicted + true.mean()) / 2}
    of_size = NumberLabels(Number("size"))
    score_of = {
        name: of_size.leading_score(true[:, None], one, folds=np.zeros(len(true))) for name, one in given.items()
    }
    found = differences(score_of, "half", n_rows=len(true), groups=donors, rng=rng())["one"]
    assert found.value == number_scores(true, given["one"])["r2"] - number_scores(true, given["half"])["r2"]
    assert found.low < found.value < found.high


# Resamples


def test_resamples_have_as_many_cells_as_there_are():
    (weights,) = resample_weights(50, None, rng(), 7)
    assert weights.shape == (7, 50)
    assert (weights.sum(axis=1) == 50).all()
    assert len(np.unique(weights, axis=0)) == 7


def test_groups_are_drawn_as_wholes_and_as_many_as_there_are():
    groups = np.array(list("abcaabca"))
    (weights,) = resample_weights(8, groups, rng(), 20)
    of_group = np.stack([weights[:, groups == name][:, 0] for name in "abc"], axis=1)
    for i, name in enumerate("abc"):
        np.testing.assert_array_equal(weights[:, groups == name], of_group[:, [i]].repeat((groups == name).sum(), 1))
    assert (of_group.sum(axis=1) == 3).all()


@pytest.mark.parametrize("groups", [np.full(30, "one donor"), np.arange(30)], ids=["one group", "a group a cell"])
def test_cells_are_drawn_where_groups_say_no_more(groups):
    expected, found = (next(resample_weights(30, chosen, rng(), 5)) for chosen in (None, groups))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("block", [1, 70, 119])
def test_neither_draws_nor_intervals_depend_on_the_size_of_blocks(numbers, block, monkeypatch):
    true, predicted, donors = numbers
    whole = np.concatenate(list(resample_weights(120, donors, rng(), 11)))
    expected = evaluate_numbers(true, predicted, groups=donors, rng=rng())
    monkeypatch.setattr(metrics, "BLOCK", block * 120 // 10)
    blocks = list(resample_weights(120, donors, rng(), 11))
    assert max(map(len, blocks)) == max(1, block // 10)
    np.testing.assert_array_equal(np.concatenate(blocks), whole)
    assert evaluate_numbers(true, predicted, groups=donors, rng=rng()) == pytest.approx(expected, rel=1e-12)


# Scores of numbers


def test_number_scores_are_those_of_scikit_learn_and_scipy(numbers):
    true, predicted, _ = numbers
    found = number_scores(true, predicted)
    assert found == pytest.approx(slow_number_scores(true, predicted), rel=1e-9)
    assert list(found) == list(NUMBER_SCORES)
    assert {type(value) for value in found.values()} == {float}


def test_number_scores_are_those_with_intervals(numbers):
    true, predicted, donors = numbers
    found = evaluate_numbers(true, predicted, groups=donors, rng=rng())
    assert list(found) == [f"{name}{end}" for name in NUMBER_SCORES for end in ("", "_low", "_high")]
    for name, value in number_scores(true, predicted).items():
        assert found[name] == value
        assert found[f"{name}_low"] < value < found[f"{name}_high"]


def test_perfect_numbers_have_perfect_scores_without_width(numbers):
    found = evaluate_numbers(numbers[0], numbers[0], groups=None, rng=rng())
    expected = {"r2": 1, "pearson": 1, "spearman": 1, "mae": 0, "rmse": 0}
    assert found == pytest.approx(
        {f"{name}{end}": expected[name] for name in expected for end in ("", "_low", "_high")}
    )


def test_the_mean_as_prediction_has_r2_0_and_no_correlation(numbers):
    true = numbers[0]
    found = evaluate_numbers(true, np.full(120, true.mean()), groups=None, rng=rng())
    assert found["r2"] == pytest.approx(0, abs=1e-9)
    assert found["r2_high"] <= 1e-9  # a resample's own mean is better
    assert np.isnan([found[f"{name}{end}"] for name in ("pearson", "spearman") for end in ("", "_low", "_high")]).all()


def test_equal_true_numbers_leave_only_the_errors():
    found = number_scores(np.full(4, 0.1), np.array([0.1, 0.2, 0.3, 0.4]))
    assert np.isnan([found[name] for name in ("r2", "pearson", "spearman")]).all()
    assert (found["mae"], found["rmse"]) == pytest.approx((0.15, np.sqrt(0.14 / 4)))


# Folds


def test_folds_are_summed_up_score_by_score():
    found = over_folds([{"r2": 0.1, "mae": 1.0}, {"r2": 0.4, "mae": np.nan}, {"r2": 0.4, "mae": 3.0}])
    expected = pd.DataFrame(
        {"mean": [0.3, 2.0], "sd": [np.sqrt(0.06 / 2), np.sqrt(2)], "n": [3, 2]},
        index=pd.Index(["r2", "mae"], name="score"),
    )
    pd.testing.assert_frame_equal(found, expected)


def test_one_fold_has_no_sd():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert over_folds([{"r2": 0.1}])["sd"].isna().all()
