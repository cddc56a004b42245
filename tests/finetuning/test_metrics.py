"""Scores against arithmetic done by hand, and what an interval must do."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, f1_score

from geneformer_repro.finetuning.metrics import confusion, scores, scores_with_intervals

TRUE = np.array(["a", "a", "a", "a", "b", "b", "c", "c"])
PREDICTED = np.array(["a", "a", "b", "d", "b", "b", "a", "b"])


def slow_scores(true, predicted):
    """Accuracy and macro-F1 by counting."""
    f1 = []
    for name in sorted(set(true)):
        hits = sum(t == p == name for t, p in zip(true, predicted, strict=True))
        f1.append(2 * hits / (list(true).count(name) + list(predicted).count(name)))
    return {
        "accuracy": sum(t == p for t, p in zip(true, predicted, strict=True)) / len(true),
        "macro_f1": sum(f1) / len(f1),
    }


@pytest.fixture(scope="module")
def guesses(_pbmc):
    """True types of the blood cells, and a prediction that is right for two cells of three."""
    true = _pbmc.obs["cell_type"].to_numpy().astype(str)
    rng = np.random.default_rng(0)
    return true, np.where(rng.random(len(true)) < 2 / 3, true, rng.permutation(true))


def test_scores_are_those_counted_by_hand(guesses):
    # F1: a 2·2/(4+3), b 2·2/(2+4), c 0; "d" is no true class
    assert scores(TRUE, PREDICTED) == pytest.approx({"accuracy": 4 / 8, "macro_f1": (4 / 7 + 4 / 6 + 0) / 3})
    assert scores(TRUE, PREDICTED) == pytest.approx(slow_scores(TRUE, PREDICTED))
    assert scores(*guesses) == pytest.approx(slow_scores(*guesses))


def test_scores_are_those_of_scikit_learn_where_both_have_the_same_classes(guesses):
    true, predicted = guesses
    assert set(true) == set(predicted)
    expected = {"accuracy": accuracy_score(true, predicted), "macro_f1": f1_score(true, predicted, average="macro")}
    assert scores(true, predicted) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(5))
def test_scores_of_a_few_cells_are_those_counted_by_hand(guesses, seed):
    rows = np.random.default_rng(seed).integers(700, size=12)
    few = [column[rows] for column in guesses]
    assert scores(*few) == pytest.approx(slow_scores(*few))


def test_a_class_that_is_never_predicted_counts_as_zero():
    assert scores(np.array(["a", "b"]), np.array(["a", "a"]))["macro_f1"] == pytest.approx((2 / 3 + 0) / 2)


def test_a_predicted_class_that_no_cell_has_adds_no_class_to_the_mean():
    assert scores(np.array(["a", "a"]), np.array(["a", "z"]))["macro_f1"] == pytest.approx(2 / 3)


def test_scores_are_plain_numbers():
    assert {type(value) for value in scores(TRUE, PREDICTED).values()} == {float}


def test_intervals_contain_the_scores_and_name_them(guesses):
    found = scores_with_intervals(*guesses, groups=None, rng=np.random.default_rng(0))
    assert list(found) == [f"{name}{end}" for name in ("accuracy", "macro_f1") for end in ("", "_low", "_high")]
    for name, value in scores(*guesses).items():
        assert found[name] == pytest.approx(value)
        assert 0 <= found[f"{name}_low"] < value < found[f"{name}_high"] <= 1


def test_the_accuracy_interval_is_as_wide_as_the_binomial_one(guesses):
    true, predicted = guesses
    found = scores_with_intervals(true, predicted, groups=None, rng=np.random.default_rng(0))
    share = found["accuracy"]
    expected = 2 * 1.96 * np.sqrt(share * (1 - share) / len(true))
    np.testing.assert_allclose(found["accuracy_high"] - found["accuracy_low"], expected, rtol=0.15)


def test_a_perfect_prediction_has_no_width():
    found = scores_with_intervals(TRUE, TRUE, groups=None, rng=np.random.default_rng(0))
    assert set(found.values()) == {1.0}


def test_the_same_rng_gives_the_same_interval(guesses):
    first, again, other = (
        scores_with_intervals(*guesses, groups=None, rng=np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert first == again != other


def test_groups_of_one_cell_are_the_cells(guesses):
    true, predicted = guesses
    each = scores_with_intervals(true, predicted, groups=np.arange(len(true)), rng=np.random.default_rng(0))
    assert each == scores_with_intervals(true, predicted, groups=None, rng=np.random.default_rng(0))


def test_the_interval_is_wider_over_groups_whose_cells_are_alike():
    groups = np.repeat(np.arange(12), 20)
    true = np.tile(["a", "b"], 120)
    predicted = np.where(groups % 3 > 0, true, "c")  # a donor is right or wrong as a whole
    by_group, by_cell = (
        scores_with_intervals(true, predicted, groups=chosen, rng=np.random.default_rng(0)) for chosen in (groups, None)
    )
    for name in ("accuracy", "macro_f1"):
        widths = [found[f"{name}_high"] - found[f"{name}_low"] for found in (by_group, by_cell)]
        assert widths[0] > 2 * widths[1]


def test_confusion_counts_true_by_predicted():
    table = confusion(TRUE, PREDICTED, ("a", "b", "c", "d"))
    counted = Counter(zip(TRUE, PREDICTED, strict=True))
    assert {(t, p): table.loc[t, p] for t in table.index for p in table.columns if table.loc[t, p]} == counted
    assert (table.index.name, table.columns.name) == ("true", "predicted")


def test_confusion_keeps_classes_that_no_cell_has_in_the_order_given():
    table = confusion(np.array(["b"]), np.array(["b"]), ("b", "a"))
    classes = pd.Index(["b", "a"])
    expected = pd.DataFrame([[1, 0], [0, 0]], index=classes.rename("true"), columns=classes.rename("predicted"))
    pd.testing.assert_frame_equal(table, expected)
