"""Scores of survival: scikit-survival's, and a slow reference that repeats rows in resamples and compares all pairs."""

import numpy as np
import pandas as pd
import pytest
from sksurv import metrics as sk
from sksurv.compare import compare_survival
from sksurv.nonparametric import kaplan_meier_estimator
from sksurv.util import Surv

from geneformer_repro.errors import InputError
from geneformer_repro.finetuning.kinds.survival_scores import (
    CALIBRATION_GROUPS,
    Censoring,
    PredictedCurves,
    calibration,
    evaluate_survival,
    harrell_c,
    kaplan_meier,
    log_rank,
    n_without_weight,
    risk_groups,
    survival_statistics,
)
from geneformer_repro.finetuning.metrics import once

EXACT = {"rtol": 1e-10, "atol": 1e-12}
TIMES = np.array([3, 9, 15, 25.0])


def patients(n, seed=0, *, n_times=40, alive=0.5):
    """Times with ties, events (few where most are `alive`), and risks with ties."""
    rng = np.random.default_rng(seed)
    time = rng.integers(1, n_times, n).astype(float)
    return time, rng.random(n) > alive, np.round(rng.normal(size=n) - time / 20, 1)


def predicted_curves(risk):
    return PredictedCurves(TIMES, np.exp(-np.exp(risk)[:, None] * TIMES / 20))


def scores_of(time, event, risk, censoring, **options):
    """Each score that tables hold, of the patients as they are."""
    statistics = survival_statistics(time, event, risk, censoring=censoring, **options)
    return {name: value.item() for name, value in statistics(once(len(time))).items()}


@pytest.fixture(params=[0.2, 0.9], ids=["little censored", "heavily censored"])
def trained_and_tested(request):
    """Follow-up of training patients, longer than that of the test patients; these, with risks."""
    time, event, _ = patients(300, 1, n_times=45, alive=request.param)
    return (time, event), patients(120, 2, alive=request.param)


# Beside scikit-survival


def test_kaplan_meier_of_events_and_of_censoring_is_that_of_scikit_survival(trained_and_tested):
    (time, event), _ = trained_and_tested
    for of_censoring in (False, True):
        curve = kaplan_meier(time, event, of_censoring=of_censoring)
        moments, probability = kaplan_meier_estimator(event, time, reverse=of_censoring)
        np.testing.assert_allclose(curve.at(moments), probability, **EXACT)


def test_concordance_is_that_of_scikit_survival(trained_and_tested):
    (train_time, train_event), (time, event, risk) = trained_and_tested
    train, test = Surv.from_arrays(train_event, train_time), Surv.from_arrays(event, time)
    censoring = Censoring.of(train_time, train_event)
    c, *pairs = sk.concordance_index_censored(event, time, risk)
    assert harrell_c(time, event, risk) == (pytest.approx(c, abs=1e-12), 120, event.sum(), sum(pairs[:3]))
    scores = scores_of(time, event, risk, censoring, horizon=15)
    for name, tau in (("uno_c", None), ("uno_c_horizon", 15)):
        expected = sk.concordance_index_ipcw(train, test, risk, tau=tau)[0]
        assert scores[name] == pytest.approx(expected, abs=1e-10)


def test_risks_that_differ_by_a_hair_are_tied_as_in_scikit_survival():
    time, event, risk = patients(60)
    risk = np.random.default_rng(0).choice([0, 4e-9, 9e-9, 1.5e-8, 1], size=60)
    expected = sk.concordance_index_censored(event, time, risk)[0]
    assert harrell_c(time, event, risk).c == pytest.approx(expected, abs=1e-12)


def test_auc_and_brier_scores_are_those_of_scikit_survival(trained_and_tested):
    (train_time, train_event), (time, event, risk) = trained_and_tested
    train, test = Surv.from_arrays(train_event, train_time), Surv.from_arrays(event, time)
    censoring, curves = Censoring.of(train_time, train_event), predicted_curves(risk)
    scores = pd.DataFrame([scores_of(time, event, risk, censoring, horizon=t, curves=curves) for t in TIMES])
    with np.errstate(invalid="ignore"):  # no event so early
        auc = sk.cumulative_dynamic_auc(train, test, risk, TIMES)[0]
    np.testing.assert_allclose(scores["auc_horizon"], auc, **EXACT)
    brier = sk.brier_score(train, test, curves.probability, TIMES)[1]
    np.testing.assert_allclose(scores["brier_horizon"], brier, **EXACT)
    np.testing.assert_allclose(
        scores["ibs"], sk.integrated_brier_score(train, test, curves.probability, TIMES), **EXACT
    )


def test_the_log_rank_test_is_that_of_scikit_survival(trained_and_tested):
    _, (time, event, _) = trained_and_tested
    for n_groups in (2, 4):
        groups = np.random.default_rng(0).integers(n_groups, size=len(time))
        expected = compare_survival(Surv.from_arrays(event, time), groups)
        np.testing.assert_allclose(log_rank(time, event, groups), expected, rtol=1e-9)
    assert np.isnan(log_rank(time, event, np.zeros(len(time)))).all()


def test_a_stratified_log_rank_test_compares_groups_within_strata_alone():
    time, event, _ = patients(100)
    groups, once = np.arange(100) % 2, np.zeros(100)
    assert log_rank(time, event, groups, strata=once) == log_rank(time, event, groups)
    later = np.where(groups == 1, time + 100, time)  # all of group 1 after all of group 0, but they never meet
    assert log_rank(later, event, groups, strata=groups) == (pytest.approx(0), pytest.approx(1))
    twice = np.tile(time, 2), np.tile(event, 2), np.tile(groups, 2)
    strata = np.repeat([0, 1], 100)
    statistic = log_rank(time, event, groups)[0]
    assert log_rank(*twice, strata=strata)[0] == pytest.approx(2 * statistic)


# Strata


def slow_concordance(time, event, risk, strata, weights):
    concordant = total = 0.0
    for i in np.flatnonzero(event):
        for j in range(len(time)):
            outlives = time[j] > time[i] or (time[j] == time[i] and not event[j])
            if strata[i] == strata[j] and outlives and i != j:
                total += weights[i]
                concordant += weights[i] * (1.0 if risk[i] > risk[j] else 0.5 if risk[i] == risk[j] else 0)
    return concordant / total


def test_only_patients_of_a_stratum_are_compared_and_pairs_of_all_strata_add_up():
    time, event, risk = patients(90)
    strata = np.random.default_rng(0).choice(["lung", "skin", "blood"], size=90)
    risk = risk + np.where(strata == "lung", 100, 0)  # which would be a high C over all, if lung were the worst
    together = harrell_c(time, event, risk, strata=strata)
    assert together.c == pytest.approx(slow_concordance(time, event, risk, strata, np.ones(90)))
    alone = [harrell_c(time[of], event[of], risk[of]) for of in (strata == name for name in np.unique(strata))]
    assert together.n_pairs == sum(each.n_pairs for each in alone)
    censoring = Censoring.of(time, event, strata)
    weights = censoring.weights(time, strata) ** 2
    expected = slow_concordance(time, event, risk, strata, weights)
    assert scores_of(time, event, risk, censoring, strata=strata)["uno_c"] == pytest.approx(expected)


def test_censoring_of_a_stratum_that_is_scored_must_be_known():
    censoring = Censoring.of(np.array([1.0, 2]), np.array([1, 0]), np.array(["lung", "lung"]))
    with pytest.raises(InputError, match=r"Censoring of 'skin' was not estimated, only of \['lung'\]"):
        scores_of(*patients(3), censoring, strata=np.array(["lung", "skin", "skin"]))


# Directions and ends


def test_higher_is_more_risk_and_nothing_is_turned_round():
    time, event, risk = patients(100)
    assert harrell_c(time, event, -risk).c == pytest.approx(1 - harrell_c(time, event, risk).c)
    assert harrell_c(np.array([1.0, 2, 3]), np.ones(3), np.array([3, 2, 1])).c == 1
    assert harrell_c(time, event, np.zeros(100)).c == 0.5


def test_where_nobody_can_be_compared_a_score_is_not_defined():
    nobody = harrell_c(np.array([1.0, 2]), np.array([0, 1]), np.array([1.0, 2]))
    assert (np.isnan(nobody.c), nobody.n_pairs) == (True, 0)


def test_events_after_the_last_training_follow_up_are_left_out_and_counted():
    time, event, risk = patients(100)
    censoring = Censoring.of(*patients(200, 1, n_times=20)[:2])
    last = max(censoring.curves[None].times)
    late = event & (time >= last)  # nobody is left at the last time itself
    at = np.array([10.0, last + 1])  # followed, and not
    curves = PredictedCurves(at, np.full((100, 2), 0.5))
    early, beyond = (scores_of(time, event, risk, censoring, horizon=t, curves=curves) for t in at)
    assert beyond["uno_c"] == pytest.approx(beyond["uno_c_horizon"])
    assert n_without_weight(time, event, censoring=censoring) == late.sum() > 0
    for name in ("auc_horizon", "brier_horizon"):
        assert (np.isnan(early[name]), np.isnan(beyond[name])) == (False, True)


def test_a_curve_ends_with_the_follow_up_unless_all_have_died():
    assert np.isnan(kaplan_meier(np.array([1.0, 2]), np.array([1, 0])).at(3))
    assert kaplan_meier(np.array([1.0, 2]), np.array([1, 1])).at(3) == 0
    assert kaplan_meier(np.array([1.0, 2]), np.array([1, 1])).at(np.array([0.5, 1, 1.5])).tolist() == [1, 0.5, 0.5]


def antolini_c(time, event, curves, strata=None):
    censoring = Censoring.of(time, event)
    return scores_of(time, event, np.zeros(len(time)), censoring, curves=curves, strata=strata)["antolini_c"]


def test_curves_that_cross_are_compared_at_the_time_of_the_event():
    time, event = np.array([1.0, 3, 5]), np.array([1, 1, 0])
    early, late, free = [0.5, 0.5, 0.5], [0.9, 0.1, 0.1], [0.95, 0.6, 0.1]
    curves = PredictedCurves(np.array([1.0, 3, 4]), np.array([early, late, free]))
    assert antolini_c(time, event, curves) == 1
    swapped = PredictedCurves(curves.times, curves.probability[[1, 0, 2]])
    assert antolini_c(time, event, swapped) == pytest.approx(2 / 3)  # of three pairs the first two patients' is wrong
    earlier = PredictedCurves(curves.times[:1], curves.probability[:, :1])  # says nothing at time 3
    assert antolini_c(time, event, earlier) == 1
    assert np.isnan(antolini_c(time + 9, event, curves))


@pytest.mark.parametrize("strata", [None, np.arange(300) % 4], ids=["all", "strata"])
def test_of_curves_that_never_cross_antolinis_c_is_harrells(strata):
    time, event, risk = patients(300, n_times=25)
    risk[::2] = risk[0]
    expected = harrell_c(time, event, risk, strata=strata).c
    assert antolini_c(time, event, predicted_curves(risk), strata) == pytest.approx(expected, abs=1e-12)


# Calibration


def test_a_prediction_is_compared_with_kaplan_meier_of_its_third():
    time, event, _ = patients(90, alive=0.3)
    thirds = np.repeat([1, 2, 3], 30)
    right = np.concatenate([[kaplan_meier(time[thirds == t], event[thirds == t]).at(12)] * 30 for t in (1, 2, 3)])
    table = calibration(time, event, right, 12)
    np.testing.assert_allclose(table["predicted"], table["observed"])
    assert table["n"].tolist() == [30, 30, 30]
    assert (table["observed_low"] < table["observed"]).all()
    assert (table["observed"] < table["observed_high"]).all()
    assert table["n_events"].sum() == (event & (time <= 12)).sum()


def test_risk_groups_are_parts_of_equal_size_of_each_stratum():
    risk, strata = np.r_[np.arange(9), 100 + np.arange(6)], np.repeat(["a", "b"], [9, 6])
    assert risk_groups(risk, strata).tolist() == [1, 1, 1, 2, 2, 2, 3, 3, 3, 1, 1, 2, 2, 3, 3]
    assert len(set(risk_groups(np.zeros(5)))) == 1  # equal risks are in one group


def test_a_probability_between_times_lies_on_a_line():
    curves = PredictedCurves(np.array([2.0, 4]), np.array([[0.8, 0.4]]))
    assert [curves.at(t).item() for t in (1, 2, 3, 4)] == pytest.approx([0.9, 0.8, 0.6, 0.4])
    assert np.isnan(curves.at(5)).all()


# Resamples


@pytest.mark.parametrize("strata", [None, np.arange(60) % 3], ids=["all", "strata"])
def test_scores_in_resamples_are_those_of_repeated_rows(strata):
    time, event, risk = patients(60, alive=0.3)
    curves, censoring = predicted_curves(risk), Censoring.of(time, event, strata)
    rng = np.random.default_rng(0)
    draws = np.stack([np.bincount(rng.integers(60, size=60), minlength=60) for _ in range(40)], axis=1)
    found = survival_statistics(time, event, risk, censoring=censoring, horizon=15, strata=strata, curves=curves)(
        draws.astype(float)
    )
    for r in range(0, 40, 13):
        rows = np.repeat(np.arange(60), draws[:, r])
        given = (time[rows], event[rows], risk[rows])
        within = None if strata is None else strata[rows]
        repeated = PredictedCurves(TIMES, curves.probability[rows])
        expected = scores_of(*given, censoring, horizon=15, strata=within, curves=repeated)
        expected["calibration_error"] = slow_calibration_error(time, event, curves.at(15), rows)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name][r], value, err_msg=name, **EXACT)


def slow_calibration_error(time, event, probability, rows):
    """Thirds of all patients, in which those of a resample are."""
    thirds, error = risk_groups(probability, n_groups=CALIBRATION_GROUPS), 0
    for third in (1, 2, 3):
        of = rows[thirds[rows] == third]
        observed = kaplan_meier(time[of], event[of]).at(15)
        error += len(of) / len(rows) * abs(probability[of].mean() - observed)
    return error


def test_an_evaluation_says_how_many_pairs_it_compares_and_gives_every_score_an_interval():
    time, event, risk = patients(150)
    given = {"censoring": Censoring.of(time, event), "groups": None, "rng": np.random.default_rng(0)}
    scores = evaluate_survival(time, event, risk, horizon=15, curves=predicted_curves(risk), **given)
    assert (scores["n"], scores["n_events"]) == (150, event.sum())
    assert scores["n_pairs"] == harrell_c(time, event, risk).n_pairs
    names = [
        "c_index",
        "uno_c",
        "uno_c_horizon",
        "auc_horizon",
        "antolini_c",
        "ibs",
        "brier_horizon",
        "calibration_error",
    ]
    assert [name for name in scores if f"{name}_low" in scores] == names
    for name in names:
        assert scores[f"{name}_low"] < scores[f"{name}_high"]
    assert "uno_c_horizon" not in evaluate_survival(time, event, risk, **given)


def test_a_risk_that_is_not_finite_has_no_score():
    time, event, risk = patients(10)
    risk[3] = np.nan
    with pytest.raises(InputError, match="not finite"):
        evaluate_survival(
            time, event, risk, censoring=Censoring.of(time, event), groups=None, rng=np.random.default_rng(0)
        )
