"""How well a model predicts what is explained: known scores, and intervals that know guessing when they see it."""

import numpy as np
import pytest
from scipy.stats import pearsonr
from sklearn.metrics import balanced_accuracy_score

from geneformer_repro.finetuning.kinds.survival_scores import harrell_c
from geneformer_repro.in_silico.explanations.how_good import of_classes, of_numbers, of_risks, replicates, sentence


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def by_itself(n):
    return np.arange(n)


def test_balanced_accuracy_is_scikit_learns(rng):
    true, predicted = rng.choice(4, 200, p=[0.7, 0.1, 0.1, 0.1]), rng.choice(4, 200)
    found = of_classes(true, predicted, by_itself(200))
    np.testing.assert_allclose(found["value"], balanced_accuracy_score(true, predicted), rtol=1e-12)
    assert found["guess"] == 0.25


def test_a_class_that_no_cell_has_counts_nothing():
    true, predicted = np.array([0, 0, 2, 2]), np.array([0, 1, 2, 2])
    found = of_classes(true, predicted, by_itself(4))
    assert (found["value"], found["guess"]) == (0.75, 0.5)


def test_the_correlation_is_pearsons(rng):
    true = rng.normal(1e4, 1, 150)
    predicted = true + rng.normal(0, 2, 150)
    found = of_numbers(true, predicted, by_itself(150))
    np.testing.assert_allclose(found["value"], pearsonr(true, predicted).statistic, rtol=1e-9)
    assert found["better_than_guessing"]


def test_the_c_index_is_that_of_survival_problems(rng):
    time, event, risk = rng.integers(1, 30, 120).astype(float), rng.integers(0, 2, 120), rng.integers(0, 9, 120) * 1.0
    found = of_risks(time, event, risk, by_itself(120))
    np.testing.assert_allclose(found["value"], harrell_c(time, event, risk)[0], rtol=1e-12)


def test_a_guess_is_called_no_better_than_guessing_19_times_of_20(rng):
    better = [
        of_classes(rng.integers(0, 2, 60), rng.integers(0, 2, 60), by_itself(60))["better_than_guessing"]
        for _ in range(100)
    ]
    assert sum(better) <= 8


def test_cells_of_a_donor_are_no_replicates():
    """Donors in whom a model is right in all cells, or in none: cells seem certain, six donors are not."""
    donor, true = np.repeat(np.arange(6), 100), np.tile([0, 1], 300)
    predicted = np.where(np.array([True, True, True, True, False, True])[donor], true, 1 - true)
    by_cells, by_donors = of_classes(true, predicted, by_itself(600)), of_classes(true, predicted, donor)
    assert by_cells["value"] == by_donors["value"]
    assert by_donors["high"] - by_donors["low"] > 3 * (by_cells["high"] - by_cells["low"])


def test_below_three_donors_rows_are_resampled():
    donor = np.array(["a", "b", "a", "b"])
    assert replicates(donor, 4)[1] == replicates(None, 4)[1] == "rows"
    assert replicates(np.array(["a", "b", "c", "a"]), 4)[1] == "donors"


def test_the_sentence_says_first_that_a_model_guesses():
    guesses = {
        "score": "balanced accuracy", "value": 0.51, "low": 0.44, "high": 0.6, "guess": 0.5, "n_rows": 80,
        "better_than_guessing": False, "replicates": "donors",
    }  # fmt: skip
    assert sentence(guesses).startswith(
        "The model is no better than guessing on the rows explained: balanced accuracy 0.51 (0.44 to 0.60 over "
        "donors), where guessing has 0.50."
    )
    assert sentence(guesses | {"low": 0.52, "better_than_guessing": True}).startswith("The model predicts the rows")
    assert "cannot be told: 80 rows say too little" in sentence(guesses | {"low": None})


def test_two_rows_say_too_little():
    found = of_classes(np.array([0, 1]), np.array([0, 1]), by_itself(2))
    assert (found["low"], found["better_than_guessing"]) == (None, None)


def test_of_one_class_nothing_can_be_told(rng):
    found = of_classes(np.zeros(90), rng.integers(2, size=90), np.repeat([0, 1, 2], 30))
    assert found["better_than_guessing"] is None
    assert "all are of one class" in sentence({**found, "replicates": "donors"})
