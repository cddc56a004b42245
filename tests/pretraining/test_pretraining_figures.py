"""The picture of a pretraining run holds what its tables hold."""

import numpy as np
import pandas as pd
import pytest
from drawing import EveryFigure, texts

from geneformer_repro.pretraining.figures import loss_figure

HISTORY = pd.DataFrame(
    {"epoch": [0, 0.5, 1, 1], "loss": [np.nan, 4.0, 3.0, np.nan], "eval_loss": [5.0, np.nan, np.nan, 3.5]}
)
GUESSES = pd.Series({"gene frequency": 4.5, "gene frequency at the rank": 4.2})

FIGURES = {
    "loss": lambda: loss_figure(HISTORY, GUESSES),
}


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES, scope="class")
class TestEveryFigure(EveryFigure):
    pass


def test_the_loss_curve_has_training_loss_held_out_loss_and_that_of_each_guess():
    axes = loss_figure(HISTORY, GUESSES).axes[0]
    training, held_out, *guesses = axes.get_lines()
    np.testing.assert_array_equal(training.get_xydata(), [[0.5, 4], [1, 3]])
    np.testing.assert_array_equal(held_out.get_xydata(), [[0, 5], [1, 3.5]])
    assert [set(guess.get_ydata()) for guess in guesses] == [{4.5}, {4.2}]
    assert len({guess.get_linestyle() for guess in guesses}) == 2
    for name, written in zip(GUESSES.index, texts(axes.figure)["legend"][2:], strict=True):
        assert written == f"guess by {name} (no model)"


def test_the_loss_curve_has_no_line_for_a_guess_that_was_not_made():
    assert len(loss_figure(HISTORY, GUESSES.iloc[:0]).axes[0].get_lines()) == 2
