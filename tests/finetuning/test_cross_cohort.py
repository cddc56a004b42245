"""One cohort's risks in another: of simulated cohorts, where what both share is known."""

import logging

import numpy as np
import pytest
from _cohorts import simulate_cohorts

from geneformer_repro.errors import InputError
from geneformer_repro.finetuning.baselines import Features
from geneformer_repro.finetuning.cross_cohort import cross_cohort
from geneformer_repro.finetuning.kinds.survival_methods import SURVIVAL_METHODS

pytestmark = pytest.mark.usefixtures("few_resamples")

SURVIVAL = {"event": "event_time"}


@pytest.fixture(scope="module", params=[1.0, 0.0], ids=["all is shared", "nothing is shared"])
def compared(request):
    """Part of the risk that two cohorts share, the cohorts, and what the first tells of the second."""
    cohorts = simulate_cohorts(2, 150, n_genes=200, sharing=request.param, censoring=0.2, seed=2)
    return request.param, cohorts, cross_cohort(cohorts, SURVIVAL, cohort="cohort", train="C01", test=["C02"], folds=3)


def test_nothing_is_lost_where_all_is_shared_and_all_where_nothing_is(compared):
    sharing, _, table = compared
    (row,) = table.to_dict("records")
    assert (row["train_cohort"], row["test_cohort"], row["n_train"]) == ("C01", "C02", 150)
    np.testing.assert_allclose(row["drop"], row["within"] - row["cross"])
    assert row["domain_auc_before"] > 0.95
    assert row["domain_auc_after"] < 0.6
    if sharing:
        assert row["cross"] > 0.65
        assert row["drop_low"] < 0
    else:
        assert abs(row["cross"] - 0.5) < 0.08
        assert row["drop_low"] > 0


def test_the_risk_is_that_of_the_method_on_harmonised_values(compared):
    _, cohorts, table = compared
    values = np.concatenate([(x - x.mean(axis=0)) / x.std(axis=0) for x in np.split(cohorts.X.astype(float), 2)])
    obs = cohorts.obs[["event_time", "event"]].assign(cohort=0.0).to_numpy()
    first, last = np.arange(150), np.arange(150, 300)
    risk = SURVIVAL_METHODS["Cox ridge, PCA"](Features.of_samples(values), first, obs[first], last, 0, ())[:, 0]
    time, event = obs[last, :2].T
    of_all_pairs = (risk[:, None] > risk)[(event[:, None] == 1) & (time[:, None] < time)].mean()
    assert abs(table["cross"].item() - of_all_pairs) < 0.05  # a third of the pairs: those within a fold
    assert table["events_test"].item() == event.sum()


def test_small_cohorts_are_left_out_and_named(caplog):
    caplog.set_level(logging.WARNING)
    cohorts = simulate_cohorts(3, [40, 40, 9], n_genes=20, seed=1)
    table = cross_cohort(cohorts, SURVIVAL, cohort="cohort", train="C01", harmonise="none", folds=2)
    assert list(table["test_cohort"]) == ["C02"]
    assert any("cohorts with fewer than 10 events are left out: C03 (" in message for message in caplog.messages)
    np.testing.assert_array_equal(table["domain_auc_before"], table["domain_auc_after"])
    with pytest.raises(InputError, match="1 cohorts have 10 events"):
        cross_cohort(cohorts[cohorts.obs["cohort"] != "C02"].copy(), SURVIVAL, cohort="cohort")


def test_what_cannot_be_compared_is_refused():
    cohorts = simulate_cohorts(2, 40, n_genes=30, seed=1)
    with pytest.raises(InputError, match="no obs column 'centre'"):
        cross_cohort(cohorts, SURVIVAL, cohort="centre")
    with pytest.raises(InputError, match="no cohort 'C09' with enough events"):
        cross_cohort(cohorts, SURVIVAL, cohort="cohort", test="C09")
    cohorts.X[3, 4] = np.nan
    with pytest.raises(InputError, match="1 values of the expression are missing"):
        cross_cohort(cohorts, SURVIVAL, cohort="cohort")
