"""The simulated cohorts that transfer is tried on: what is shared helps small cohorts, and nothing helps without it."""

import numpy as np
import pytest
from _cohorts import simulate_cohorts
from sklearn.decomposition import PCA
from sksurv.linear_model import CoxPHSurvivalAnalysis
from sksurv.metrics import concordance_index_censored

SMALL, LARGE, TESTED, OTHERS = 25, 200, slice(200, 400), slice(0, 50)


def test_cohorts_are_drawn_as_they_are_asked_for():
    cohorts = simulate_cohorts(3, [50, 4000, 20], n_genes=40, censoring=0.3, seed=1)
    assert cohorts.shape == (4070, 40)
    assert cohorts.obs["cohort"].value_counts().to_dict() == {"C01": 50, "C02": 4000, "C03": 20}
    large = cohorts.obs[cohorts.obs["cohort"] == "C02"]
    assert abs((large["event"] == 0).mean() - 0.3) < 0.03
    assert abs(large["true_risk"].std() - 1.2) < 0.05
    assert abs(c_index(large, large["true_risk"]) - 0.77) < 0.02
    again = simulate_cohorts(3, [50, 10, 20], n_genes=40, censoring=0.3, seed=1)
    np.testing.assert_array_equal(again.X[:50], cohorts.X[:50])


@pytest.fixture(scope="module", params=[1.0, 0.0], ids=["shared", "private"])
def gains(request):
    """What Cox ridge on a cohort's components gains by the risk that other cohorts teach: a small and a large one."""
    cohorts = simulate_cohorts(12, 400, n_genes=200, sharing=request.param, seed=3)
    names = cohorts.obs["cohort"].unique()
    return request.param, np.mean([gain_of(cohorts, target, names) for target in names[:4]], axis=0)


def test_what_others_teach_helps_a_small_cohort_most_and_not_at_all_where_nothing_is_shared(gains):
    sharing, (small, large) = gains
    if sharing:
        assert small > 0.05
        assert small > 2 * large
    else:
        assert max(small, large) < 0.01


def gain_of(cohorts, target, names):
    others = [of_cohort(cohorts, name, OTHERS) for name in names if name != target]
    values, obs = of_cohort(cohorts, target, slice(None))
    components = PCA(20, random_state=0).fit(np.concatenate([x for x, _ in others]))
    taught = cox([components.transform(x) for x, _ in others], [o for _, o in others])(components.transform(values))
    gains = []
    for n in (SMALL, LARGE):
        own = PCA(10, whiten=True, random_state=0).fit(values[:n]).transform(values)
        with_taught = np.column_stack([own, 2 * taught / taught.std()])
        alone, both = (c_index(obs[TESTED], cox([x[:n]], [obs[:n]])(x[TESTED])) for x in (own, with_taught))
        gains.append(both - alone)
    return gains


def of_cohort(cohorts, name, rows):
    """Expression less the cohort's mean, and outcomes with times on one scale."""
    cohort = cohorts[cohorts.obs["cohort"] == name][rows]
    obs = cohort.obs.assign(event_time=cohort.obs["event_time"] / cohort.obs["event_time"].median())
    return cohort.X - cohort.X.mean(axis=0), obs


def cox(values, obs):
    """Fit Cox ridge and return what gives risks."""
    time, event = (np.concatenate([o[column] for o in obs]) for column in ("event_time", "event"))
    outcome = np.array([*zip(event == 1, time)], dtype=[("event", bool), ("time", float)])
    return CoxPHSurvivalAnalysis(alpha=10.0).fit(np.concatenate(values), outcome).predict


def c_index(obs, risk):
    return concordance_index_censored(obs["event"].to_numpy() == 1, obs["event_time"], risk)[0]
