"""Pictures of survival hold what the scores hold."""

import numpy as np
import pandas as pd
import pytest
from drawing import EveryFigure, rows, texts

from geneformer_repro.finetuning.kinds.survival_figures import calibration_figure, forest_figure, risk_groups_figure
from geneformer_repro.finetuning.kinds.survival_scores import calibration, kaplan_meier, log_rank, risk_groups

RNG = np.random.default_rng(0)
RISK = RNG.normal(size=90)
TIME, EVENT, FOLD = RNG.exponential(100 * np.exp(-RISK)), RNG.random(90) < 0.7, np.arange(90) % 3
CALIBRATION = calibration(TIME, EVENT, np.exp(-50 / 100 * np.exp(RISK)), 50)
DIFFERENCES = pd.DataFrame(
    {
        "n": [956, 166],
        "n_events": [130, 90],
        "gain": [0.02, 0.08],
        "gain_low": [-0.03, 0.01],
        "gain_high": [0.07, 0.15],
    },
    index=["breast", "pancreas"],
)

FIGURES = {
    "risk_groups": lambda: risk_groups_figure(TIME, EVENT, RISK, strata=FOLD),
    "calibration": lambda: calibration_figure(CALIBRATION),
    "forest": lambda: forest_figure(DIFFERENCES, "gain", "gain of C-index"),
}


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES, scope="class")
class TestEveryFigure(EveryFigure):
    pass


def test_curves_are_those_of_thirds_by_risk_with_numbers_at_risk_and_their_test():
    axes = FIGURES["risk_groups"]().axes[0]
    thirds = risk_groups(RISK, FOLD)
    for third, line in zip((1, 2, 3), axes.get_lines(), strict=True):
        curve = kaplan_meier(TIME[thirds == third], EVENT[thirds == third])
        np.testing.assert_array_equal(line.get_xdata(), [0, *curve.times])
        np.testing.assert_array_equal(line.get_ydata(), [1, *curve.probability])
    n_events = [EVENT[thirds == third].sum() for third in (1, 2, 3)]
    expected = [f"{name} risk (30; {n} events)" for name, n in zip(("low", "middle", "high"), n_events, strict=True)]
    assert texts(axes.figure)["legend"] == expected
    p = log_rank(TIME, EVENT, thirds, strata=FOLD)[1]
    assert axes.get_title(loc="left") == f"log-rank test of the thirds: p = {p:.2g}"
    written = texts(axes.figure)["written"]
    high = written[written.index("high") + 1 :]
    assert high == [str(np.sum(TIME[thirds == 3] >= tick)) for tick in axes.get_xticks()]


def test_of_equal_risks_there_is_one_curve_and_no_test():
    axes = risk_groups_figure(TIME, EVENT, np.zeros(90)).axes[0]
    assert len(axes.get_lines()) == 1
    assert axes.get_title(loc="left") == "all risks are equal"


def test_calibration_is_observed_by_predicted_beside_the_diagonal():
    diagonal, points = FIGURES["calibration"]().axes[0].get_lines()
    np.testing.assert_array_equal(diagonal.get_xydata(), [[0, 0], [1, 1]])
    np.testing.assert_array_equal(points.get_xydata(), CALIBRATION[["predicted", "observed"]])


def test_cohorts_are_drawn_from_the_top_with_their_sizes_and_0_is_marked():
    axes = FIGURES["forest"]().axes[0]
    assert rows(axes) == ["breast (956; 130 events)", "pancreas (166; 90 events)"]
    assert [0, 0] in [list(line.get_xdata()) for line in axes.get_lines()]
    assert axes.get_xlabel() == "gain of C-index (bar: 95 % interval)"
