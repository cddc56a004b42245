"""From predictions of several methods to tables: the same cells, the same resamples, a row a method."""

import logging

import numpy as np
import pandas as pd
import pytest

from geneformer_repro.finetuning.evaluation import evaluate_target, log_verdicts
from geneformer_repro.finetuning.kinds import kind_of
from geneformer_repro.finetuning.kinds.class_scores import evaluate_classes, scores
from geneformer_repro.finetuning.kinds.kind import FINE_TUNED, RANDOM
from geneformer_repro.finetuning.kinds.numbers import number_scores
from geneformer_repro.finetuning.metrics import differences
from geneformer_repro.targets import Classes, Number

TYPES, AGE = Classes("type", ("b", "nk", "t")), Number("age", 40.0, 10.0)
N = 30
NAMES = np.array([f"c{i}" for i in range(N)])
GAPS = np.array([3, 11])


@pytest.fixture
def labels():
    codes = np.random.default_rng(0).integers(3, size=N).astype(float)
    codes[GAPS] = np.nan
    return codes


@pytest.fixture
def predicted():
    rng = np.random.default_rng(1)
    return {FINE_TUNED: rng.dirichlet(np.ones(3), N), "other": rng.dirichlet(np.ones(3), N), "unable": None}


@pytest.fixture
def numbers():
    rng = np.random.default_rng(2)
    return {FINE_TUNED: rng.normal(40, 10, N), "unable": None, "mean": np.full(N, 40.0)}


def evaluated(target, labels, predicted, *, folds=None, groups=None, **options):
    folds = np.zeros(N, dtype=int) if folds is None else folds
    return evaluate_target(target, NAMES, labels, predicted, folds=folds, groups=groups, seed=5, **options)


def test_every_method_has_a_row_and_one_that_could_not_run_an_empty_one(labels, predicted):
    methods = evaluated(TYPES, labels, predicted).methods
    assert methods.index.tolist() == [FINE_TUNED, "other", "unable"]
    assert methods.index.name == "method"
    assert methods.isna().all(axis=1).tolist() == [False, False, True]


@pytest.mark.parametrize("groups", [None, np.arange(N) % 4], ids=["cells", "groups"])
def test_a_row_is_the_evaluation_of_the_cells_with_a_label(labels, predicted, groups):
    """Every method by itself, from the same seed: all are compared on the same resamples."""
    found = evaluated(TYPES, labels, predicted, groups=groups)
    known = ~np.isnan(labels)
    for name in (FINE_TUNED, "other"):
        expected = evaluate_classes(
            labels[known].astype(int),
            predicted[name][known],
            TYPES.classes,
            groups=None if groups is None else groups[known],
            rng=np.random.default_rng(5),
        )
        assert found.methods.loc[name, list(expected.scores)].to_dict() == pytest.approx(expected.scores)
        of_method = found.per_class[found.per_class["method"] == name].drop(columns="method").set_index("class")
        pd.testing.assert_frame_equal(of_method, expected.per_class, check_names=False)
        if name == FINE_TUNED:
            pd.testing.assert_frame_equal(found.confusion, expected.confusion)
            pd.testing.assert_frame_equal(found.confusion_intervals, expected.confusion_intervals)
    assert set(found.reliability["method"]) == {FINE_TUNED, "other"}


@pytest.mark.parametrize("kind", ["classes", "numbers"])
def test_the_last_columns_say_how_far_a_method_is_above_the_best_simple_one_on_the_same_resamples(
    labels, predicted, numbers, kind
):
    if kind == "classes":
        target, score, given = TYPES, "macro_f1", {"weak": np.eye(3)[np.zeros(N, dtype=int)], **predicted}
        given |= {RANDOM: np.eye(3)[np.nan_to_num(labels).astype(int)]}  # perfect, but no simple method
    else:
        target, score, given = AGE, "r2", {**numbers, "near": labels * 10 + 30, RANDOM: labels * 10 + 30.1}
        labels = labels * 10 + 30.2
    found = evaluated(target, labels, given).methods
    columns = [f"{score}_vs_best_simple{end}" for end in ("", "_low", "_high")]
    assert found.columns[-3:].tolist() == columns
    best = {"classes": "other", "numbers": "near"}[kind]
    known = ~np.isnan(labels)
    of_kind, right = kind_of(target), labels[known, None]
    expected = differences(
        {
            name: of_kind.leading_score(right, one[known], folds=np.zeros(len(right)))
            for name, one in given.items()
            if one is not None
        },
        best,
        n_rows=known.sum(),
        groups=None,
        rng=np.random.default_rng(5),
    )
    for name, one in expected.items():
        np.testing.assert_array_equal(found.loc[name, columns].astype(float), [one.value, one.low, one.high])
        assert found.loc[name, columns[0]] == pytest.approx(found.loc[name, score] - found.loc[best, score])
    assert found.loc[best, columns].tolist() == [0, 0, 0]
    assert found.loc["unable"].isna().all()


def test_without_simple_methods_there_is_nothing_to_compare_with(labels, predicted):
    found = evaluated(TYPES, labels, {FINE_TUNED: predicted[FINE_TUNED], RANDOM: predicted["other"]})
    assert not [name for name in found.methods if "best_simple" in name]
    assert found.verdict is None


@pytest.mark.parametrize(
    ("difference", "said"),
    [
        pytest.param((0.03, -0.01, 0.07), "(−0.01 to 0.07) macro-F1 above simple: no clear difference", id="more"),
        pytest.param((0.03, 0.01, 0.07), "(0.01 to 0.07) macro-F1 above simple: better", id="better"),
        pytest.param((-0.03, -0.07, -0.01), "(0.01 to 0.07) macro-F1 below simple: worse", id="worse"),
        pytest.param((-0.03, -0.07, 0.01), "(−0.01 to 0.07) macro-F1 below simple: no clear difference", id="less"),
    ],
)
def test_a_sentence_says_whether_fine_tuning_was_worth_it(labels, predicted, difference, said, caplog):
    found = evaluated(TYPES, labels, {FINE_TUNED: predicted[FINE_TUNED], "simple": predicted["other"]})
    found.methods.loc[FINE_TUNED, found.methods.columns[-3:]] = difference
    assert found.verdict == f"fine-tuned is 0.03 {said}"
    with caplog.at_level(logging.INFO, logger="geneformer_repro"):
        log_verdicts([found])
    assert f"{TYPES.name}: fine-tuned is 0.03 {said}." in caplog.text


def test_predictions_are_class_names_of_the_cells_with_a_label(labels, predicted):
    table = evaluated(TYPES, labels, predicted).predictions
    assert table.columns.tolist() == ["cell", "true", FINE_TUNED, "other"]
    assert table["cell"].tolist() == np.delete(NAMES, GAPS).tolist()
    classes = np.array(TYPES.classes)
    np.testing.assert_array_equal(table["true"], classes[np.delete(labels, GAPS).astype(int)])
    np.testing.assert_array_equal(table["other"], classes[np.delete(predicted["other"], GAPS, axis=0).argmax(axis=1)])


def test_probabilities_are_those_of_the_fine_tuned_model(labels, predicted):
    table = evaluated(TYPES, labels, predicted).probabilities
    assert (table.index.name, table.columns.tolist()) == ("cell", ["b", "nk", "t"])
    np.testing.assert_array_equal(table, np.delete(predicted[FINE_TUNED], GAPS, axis=0))


def test_numbers_have_their_own_scores_and_no_tables_of_classes(labels, numbers):
    ages = labels * 10 + 30
    found = evaluated(AGE, ages, numbers)
    assert found.methods.loc["unable"].isna().all()
    known = ~np.isnan(ages)
    expected = number_scores(ages[known], numbers[FINE_TUNED][known])
    assert found.methods.loc[FINE_TUNED, list(expected)].to_dict() == pytest.approx(expected)
    assert found.predictions.columns.tolist() == ["cell", "true", FINE_TUNED, "mean"]
    np.testing.assert_array_equal(found.predictions["true"], ages[known])
    nothing = ("folds", "probabilities", "per_class", "confusion", "confusion_intervals", "reliability")
    assert [getattr(found, name) for name in nothing] == [None] * 6


@pytest.mark.parametrize("kind", ["classes", "numbers"])
def test_over_folds_a_score_has_mean_and_sd_of_the_folds(labels, predicted, numbers, kind):
    folds = np.repeat([0, 1, 2], 10)
    if kind == "classes":
        found = evaluated(TYPES, labels, predicted, folds=folds)
        score, values, name = lambda a, b: scores(a.astype(int), b), predicted[FINE_TUNED], "macro_f1"
    else:
        found = evaluated(AGE, labels, numbers, folds=folds)
        score, values, name = number_scores, numbers[FINE_TUNED], "rmse"
    row = found.folds.set_index(["method", "score"]).loc[(FINE_TUNED, name)]
    known = ~np.isnan(labels)
    expected = [score(labels[known & (folds == i)], values[known & (folds == i)])[name] for i in range(3)]
    assert row[["mean", "sd", "n"]].tolist() == pytest.approx([np.mean(expected), np.std(expected, ddof=1), 3])
    assert "unable" not in found.folds["method"].to_numpy()
    np.testing.assert_array_equal(found.predictions["fold"], folds[known] + 1)


@pytest.mark.parametrize("score", [None, "fold"], ids=["all cells", "a fold"])
def test_test_cells_of_one_class_have_no_scores_but_the_recall_of_it_and_that_is_said(predicted, score, caplog):
    labels, folds = np.repeat([2.0, 0.0, 1.0], [20, 5, 5]), np.repeat([0, 1], [20, 10])
    if score is None:
        found = evaluated(TYPES, np.full(N, 2.0), predicted)
        assert found.methods.isna().all(axis=None)
        ours = found.per_class[found.per_class["method"] == FINE_TUNED].set_index("class")
        assert ours.loc["t", "recall"] == pytest.approx((predicted[FINE_TUNED].argmax(axis=1) == 2).mean())
        assert ours.drop(columns=["method", "n", "recall", "recall_low", "recall_high"]).isna().all(axis=None)
        assert found.verdict is None
        said = "All test cells are of class 't'; no score can tell"
    else:
        found = evaluated(TYPES, labels, predicted, folds=folds)
        assert found.methods.loc[FINE_TUNED].notna().all()
        row = found.folds.set_index(["method", "score"]).loc[(FINE_TUNED, "macro_f1")]
        assert (row["mean"], row["n"]) == (scores(labels[20:].astype(int), predicted[FINE_TUNED][20:])["macro_f1"], 1)
        said = "All test cells of fold 1 are of one class"
    log_verdicts([found])
    assert f"type: {said}" in caplog.text
    assert found.caution.startswith(said)


def test_a_class_without_test_cells_is_named(predicted):
    assert evaluated(TYPES, np.arange(N) % 2.0, predicted).caution.startswith("No test cells are of class 't'")
    assert evaluated(TYPES, np.arange(N) % 3.0, predicted).caution is None


def test_one_fold_has_no_table_of_folds(labels, predicted):
    found = evaluated(TYPES, labels, predicted)
    assert found.folds is None
    assert "fold" not in found.predictions


def test_a_row_is_called_what_it_is(labels, predicted):
    found = evaluated(TYPES, labels, predicted, named="gene")
    assert found.predictions.columns[0] == found.probabilities.index.name == "gene"
