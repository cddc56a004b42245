"""Methods of survival without a network: what they find, what they do not look at, and what must not stop them."""

import logging
import sys

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix
from sksurv.linear_model import CoxPHSurvivalAnalysis
from sksurv.util import Surv

from geneformer_repro.finetuning.baselines import Features
from geneformer_repro.finetuning.kinds import survival_methods
from geneformer_repro.finetuning.kinds.numbers import NUMBER_METHODS
from geneformer_repro.finetuning.kinds.survival_methods import SURVIVAL_METHODS
from geneformer_repro.finetuning.kinds.survival_scores import harrell_c, kaplan_meier

N, N_GENES = 160, 40
TRAIN, TEST = np.arange(110), np.arange(110, N)
TIMES = (5.0, 20.0)
OF_GENES = [name for name in SURVIVAL_METHODS if name not in ("Kaplan–Meier", "Cox, clinical")]


@pytest.fixture(scope="module")
def patients():
    """Features and labels: a programme of five genes is the risk, and age is."""
    rng = np.random.default_rng(0)
    programme, age = rng.normal(size=N), rng.normal(60, 10, size=N)
    genes = rng.normal(size=(N, N_GENES))
    genes[:, :5] += 2 * programme[:, None]
    genes[3, 7], genes[:, 8] = 17_036, 1.5  # an outlier, and a gene that says nothing
    risk = programme + (age - 60) / 10
    time, censored = rng.exponential(20 * np.exp(-risk)), rng.exponential(60, size=N)
    labels = np.stack([np.minimum(time, censored), time <= censored, np.zeros(N)], axis=1)
    covariates = pd.DataFrame({"age": age, "stage": rng.choice(["I", "II"], size=N)})
    covariates.loc[::9, "age"] = np.nan
    covariates.loc[::7, "stage"] = None
    return Features.of_samples(genes, embedding=genes[:, :12], covariates=covariates), labels


def predicted(name, features, labels, *, train=TRAIN, test=TEST, times=TIMES, seed=0):
    return SURVIVAL_METHODS[name](features, train, labels[train], test, seed, times)


def c_index(risk, labels, test=TEST):
    return harrell_c(labels[test, 0], labels[test, 1], risk).c


@pytest.mark.parametrize("name", [*OF_GENES, "Cox, clinical"])
def test_a_method_finds_who_is_at_risk_and_tells_falling_survival(name, patients):
    found = predicted(name, *patients)
    assert found.shape == (len(TEST), 3)
    assert c_index(found[:, 0], patients[1]) > 0.64
    survival = found[:, 1:]
    assert ((survival >= 0) & (survival <= 1)).all()
    assert (np.diff(survival, axis=1) <= 0).all()
    assert np.corrcoef(found[:, 0], survival[:, 0])[0, 1] < -0.5  # higher is more risk
    np.testing.assert_array_equal(predicted(name, *patients, times=())[:, 0], found[:, 0])


def test_kaplan_meier_gives_all_the_same_risk_and_the_curve_of_the_training_patients(patients):
    found = predicted("Kaplan–Meier", *patients)
    curve = kaplan_meier(*patients[1][TRAIN, :2].T).at(np.array(TIMES))
    np.testing.assert_array_equal(found, np.tile(np.append(0, curve), (len(TEST), 1)))
    assert c_index(found[:, 0], patients[1]) == 0.5


@pytest.mark.parametrize("name", SURVIVAL_METHODS)
def test_other_test_rows_change_nothing(name, patients):
    features, labels = patients
    np.testing.assert_allclose(
        predicted(name, features, labels, test=TEST[:3]), predicted(name, features, labels)[:3], rtol=1e-8
    )


@pytest.mark.parametrize("name", SURVIVAL_METHODS)
def test_few_patients_one_event_and_constant_columns_stop_no_method(name):
    rng = np.random.default_rng(0)
    genes = rng.normal(size=(12, 30))
    genes[:, 0] = np.nan
    covariates = pd.DataFrame({"age": np.nan, "sex": ["f"] * 12, "stage": ["I", "II"] * 6}, index=range(12))
    labels = np.stack([np.arange(1, 13), np.arange(12) == 4, np.zeros(12)], axis=1).astype(float)
    for values in (genes, np.ones((12, 30))):
        features = Features.of_samples(values, embedding=values, covariates=covariates)
        found = predicted(name, features, labels, train=np.arange(9), test=np.arange(9, 12))
        assert np.isfinite(found).all()


def test_what_is_not_at_hand_gives_no_prediction(patients):
    _, labels = patients
    features = Features(None, csr_matrix((N, 3)), embedding=None)
    assert [name for name in SURVIVAL_METHODS if predicted(name, features, labels) is not None] == ["Kaplan–Meier"]


def test_without_scikit_survival_its_methods_are_left_out_which_is_said_once(patients, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "sksurv", None)
    survival_methods._has_scikit_survival.cache_clear()
    left_out = [name for name in SURVIVAL_METHODS if predicted(name, *patients) is None]
    survival_methods._has_scikit_survival.cache_clear()
    assert left_out == ["Cox elastic net, genes", "random survival forest", "gradient boosting, survival"]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "pip install 'geneformer-repro[survival]'" in caplog.text


def test_several_cohorts_are_strata_whose_baseline_hazards_are_not_one(patients):
    features, labels = patients
    of_two, other_unit = labels.copy(), labels.copy()
    of_two[::2, 2] = other_unit[::2, 2] = 1
    other_unit[::2, 0] /= 1000  # only the order within a cohort counts
    together = predicted("Cox ridge, PCA", features, of_two)
    assert np.isnan(together[:, 1:]).all()
    np.testing.assert_allclose(predicted("Cox ridge, PCA", features, other_unit), together)
    assert np.abs(together[:, 0] - predicted("Cox ridge, PCA", features, labels)[:, 0]).max() > 0.01


def test_coefficients_of_all_columns_are_stratified_and_in_the_unit_of_the_columns():
    rng = np.random.default_rng(0)
    columns, time, event = rng.normal(size=(80, 3)), rng.exponential(size=80), rng.random(80) < 0.6
    labels = np.stack([time, event, np.arange(80) % 2], axis=1)
    other_unit = labels * np.where(labels[:, [2]] == 1, [1000, 1, 1], 1)
    found = survival_methods.cox_ridge_coefficients(columns, labels, 0)
    np.testing.assert_allclose(survival_methods.cox_ridge_coefficients(columns, other_unit, 0), found)
    np.testing.assert_allclose(survival_methods.cox_ridge_coefficients(10 * columns, labels, 0), found / 10)
    assert (survival_methods.cox_ridge_coefficients(np.ones((80, 2)), labels, 0) == 0).all()


def test_coefficients_are_those_of_scikit_survival_under_the_same_penalty():
    rng = np.random.default_rng(0)
    columns, time, event = rng.normal(size=(80, 6)), rng.integers(1, 15, 80).astype(float), rng.random(80) < 0.6
    labels = np.stack([time, event, np.zeros(80)], axis=1)
    penalties = np.array([0.01, 1.0])
    found = survival_methods._ridge(columns, labels, np.array([6, 4]), penalties)
    for i, n_columns in enumerate((6, 4)):
        model = CoxPHSurvivalAnalysis(alpha=penalties[i] * event.sum(), ties="efron", tol=1e-12)
        expected = model.fit(columns[:, :n_columns], Surv.from_arrays(event, time)).coef_
        np.testing.assert_allclose(found[i, :n_columns], expected, atol=2e-5)
        assert (found[i, n_columns:] == 0).all()


def test_of_genes_that_say_nothing_the_elastic_net_takes_next_to_none():
    rng = np.random.default_rng(0)
    genes, time, event = rng.normal(size=(80, 200)), rng.exponential(size=80), rng.random(80) < 0.6
    labels = np.stack([time, event, np.zeros(80)], axis=1)
    path, _ = survival_methods._elastic_net_path(genes, labels, None)
    risk = survival_methods._elastic_net(genes, genes, labels, 0, np.empty(0))[:, 0]
    assert risk.std() < 0.2 * (genes @ path[:, -1]).std()  # the last of the path


def test_methods_of_other_kinds_take_samples_too(patients):
    features, _ = patients
    found = NUMBER_METHODS["ridge, counts"](features, TRAIN, np.arange(N, dtype=float)[TRAIN], TEST, 0)
    assert found.shape == (len(TEST),)
    assert NUMBER_METHODS["ridge, rank values"](features, TRAIN, np.arange(N, dtype=float)[TRAIN], TEST, 0) is None
    assert NUMBER_METHODS["mean"](features, TRAIN, np.ones(len(TRAIN)), TEST, 0).tolist() == [1] * len(TEST)


@pytest.mark.slow
def test_on_real_tumours_components_reach_what_was_published_beside_the_data(shared):
    folder = shared / "data" / "tcga_9_zscore"
    clinical = pd.read_parquet(folder / "clinical.parquet").query("cohort == 'gbmlgg' and survival_months > 0")
    genes = pd.read_parquet(folder / "expression.parquet").loc[clinical.index].to_numpy()
    labels = clinical[["survival_months", "event_os"]].assign(cohort=0).to_numpy(dtype=float)
    order = np.random.default_rng(0).permutation(len(labels))
    folds = [order[i::5] for i in range(5)]
    reached = []
    for test in folds[:2]:
        given = {"train": np.setdiff1d(order, test), "test": test}
        found = predicted("Cox ridge, PCA", Features.of_samples(genes), labels, **given)
        reached.append(c_index(found[:, 0], labels, test))
    assert np.mean(reached) == pytest.approx(0.80, abs=0.04)  # 5-fold, of OS
