"""Losses of survival: published and golden values, plain versions, gradients; and curves and risks of their outputs."""

import numpy as np
import pytest
import torch
from scipy.stats import weibull_min
from statsmodels.duration.hazard_regression import PHReg

from geneformer_repro.errors import InputError
from geneformer_repro.hazards import (
    RiskSets,
    baseline_hazard,
    discrete_hazard_loss,
    discrete_risk,
    discrete_survival,
    equal_event_edges,
    weibull_loss,
    weibull_risk,
    weibull_survival,
)

TIES = ("efron", "breslow")
# from statsmodels' PHReg
ETA = torch.tensor(
    [
        *(1.5409960746765137, -0.293428897857666, -2.1787893772125244, 0.5684312582015991),
        *(-1.0845223665237427, -1.3985954523086548, 0.40334683656692505, 0.8380263447761536),
    ],
    dtype=torch.float64,
)
TIME, EVENT = np.array([1, 2, 2, 2, 3, 4, 4, 5.0]), np.array([1, 1, 0, 1, 1, 0, 1, 1])
GOLDEN = {"efron": 7.903758011668041, "breslow": 8.10088175486721}


def cohort(n, seed=0, *, n_times=12, n_strata=1):
    """Times with many ties, events, strata and log hazards of patients."""
    rng = np.random.default_rng(seed)
    time = rng.integers(1, n_times + 1, n).astype(float)
    return time, rng.random(n) < 0.6, rng.integers(n_strata, size=n), torch.tensor(rng.normal(size=n))


def plain_loss(eta, time, event, ties):
    """The definition, a risk set at a time."""
    loss = 0.0
    for moment in np.unique(time[event]):
        dead, at_risk = (time == moment) & event, time >= moment
        for place in range(dead.sum()):
            left = place / dead.sum() if ties == "efron" else 0
            loss = loss + torch.log(eta[at_risk].exp().sum() - left * eta[dead].exp().sum())
        loss = loss - eta[dead].sum()
    return loss


def gradient(loss, at):
    at = at.clone().requires_grad_()
    (result,) = torch.autograd.grad(loss(at).sum(), at)
    return result


# Cox


@pytest.mark.parametrize("ties", TIES)
def test_the_partial_likelihood_is_the_golden_one_in_any_order_and_after_any_shift(ties):
    for order in ([0, 1, 2, 3, 4, 5, 6, 7], [7, 6, 5, 4, 3, 2, 1, 0], [3, 6, 0, 2, 7, 5, 1, 4]):
        risk_sets = RiskSets(TIME[order], EVENT[order], ties=ties)
        assert risk_sets.n_events == 6
        for shift in (0, 100, 1e4):
            assert risk_sets.loss(ETA[order] + shift).item() == pytest.approx(GOLDEN[ties], abs=1e-10 * (1 + shift))


@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("n_strata", [1, 5])
def test_loss_and_gradient_are_those_of_the_plain_definition_summed_over_strata(ties, n_strata):
    time, event, strata, eta = cohort(60, n_strata=n_strata)
    event[strata == 3] = False  # a stratum without an event adds nothing

    def plain(eta):
        return sum(plain_loss(eta[strata == s], time[strata == s], event[strata == s], ties) for s in range(n_strata))

    risk_sets = RiskSets(time, event, strata=strata, ties=ties)
    torch.testing.assert_close(risk_sets.loss(eta), plain(eta), rtol=1e-12, atol=0)
    slope = gradient(risk_sets.loss, eta)
    torch.testing.assert_close(slope, gradient(plain, eta), rtol=0, atol=1e-12)
    assert slope.sum().abs() < 1e-12
    assert (slope[strata == 3] == 0).all()


def test_gradients_are_those_of_finite_differences():
    time, event, strata, eta = cohort(20, n_strata=2)
    assert torch.autograd.gradcheck(RiskSets(time, event, strata=strata).loss, eta.repeat(2, 1).requires_grad_())


@pytest.mark.parametrize("ties", TIES)
def test_the_loss_is_that_of_statsmodels_on_patients_with_ties_and_strata(ties):
    time, event, strata, eta = cohort(300, n_times=40, n_strata=3)
    model = PHReg(time, eta.numpy()[:, None], status=event, strata=strata, ties=ties)
    loss = RiskSets(time, event, strata=strata, ties=ties).loss(eta).item()
    assert loss == pytest.approx(-model.loglike(np.ones(1)), rel=1e-10)


def test_without_ties_efron_is_breslow():
    _, event, _, eta = cohort(50)
    time = np.random.default_rng(1).permutation(50) + 1.0
    efron, breslow = (RiskSets(time, event, ties=ties).loss(eta).item() for ties in TIES)
    assert efron == breslow


def test_networks_side_by_side_have_the_losses_and_gradients_of_each_alone():
    time, event, strata, _ = cohort(40, n_strata=3)
    risk_sets, many = RiskSets(time, event, strata=strata), torch.randn(2, 3, 40, dtype=torch.float64)
    assert risk_sets.loss(many).shape == (2, 3)
    torch.testing.assert_close(risk_sets.loss(many)[1, 2], risk_sets.loss(many[1, 2]))
    torch.testing.assert_close(gradient(risk_sets.loss, many)[1, 2], gradient(risk_sets.loss, many[1, 2]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_hazards_a_hundred_apart_in_few_bits_have_a_finite_loss_and_gradient_in_single_precision(dtype):
    time, event, strata, _ = cohort(64, n_strata=2)
    risk_sets = RiskSets(time, event, strata=strata)
    eta = torch.tensor([100.0, -100.0]).repeat(32)
    assert risk_sets.loss(eta.to(dtype)).dtype == torch.float32
    torch.testing.assert_close(risk_sets.loss(eta.to(dtype)).double(), risk_sets.loss(eta.double()))
    assert gradient(risk_sets.loss, eta.to(dtype)).isfinite().all()


def test_hazards_two_thousand_apart_have_the_loss_and_gradient_of_log_sum_exps():
    order = np.random.default_rng(0).permutation(30)
    time, eta = order + 1.0, torch.linspace(-1000, 1000, 30, dtype=torch.float64)[order[::-1].copy()]

    def plain(eta):
        return sum(eta[time >= time[i]].logsumexp(0) - eta[i] for i in range(30))

    loss = RiskSets(time, np.ones(30)).loss
    torch.testing.assert_close(loss(eta), plain(eta), rtol=1e-14, atol=0)
    torch.testing.assert_close(gradient(loss, eta), gradient(plain, eta), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("time", "event", "said"),
    [
        ([1.0, 2.0], [0, 0], "None of the 2 patients has an event"),
        ([1.0, 0.0], [1, 1], r"found 0\.0 for patient 1"),
        ([1.0, np.nan], [1, 1], "found nan for patient 1"),
        ([1.0, 2.0], [1, 2], r"found \[1 2\]"),
        ([1.0, 2.0], [1.0], r"found \(2,\) and \(1,\)"),
    ],
)
def test_what_is_no_survival_is_refused(time, event, said):
    with pytest.raises(InputError, match=said):
        RiskSets(np.array(time), torch.tensor(event))


# Hazards of intervals


def test_intervals_have_as_many_events_each_and_the_last_ends_with_the_last_event():
    time = np.arange(1, 101.0)
    event = (np.arange(100) % 2 == 0).astype(int)
    edges = equal_event_edges(time, event, 5)
    assert edges[0] == 0
    assert edges[-1] == 99
    assert np.histogram(-time[event == 1], -edges[::-1])[0].tolist() == [10] * 5  # intervals are closed on the right


def test_there_are_fewer_intervals_where_events_share_their_times():
    assert equal_event_edges(np.array([1.0, 1, 1, 2, 9]), np.array([1, 1, 1, 1, 0]), 10).tolist() == [0, 1, 2]


def test_intervals_need_an_event_and_a_number():
    for event, n in (([0, 0], 3), ([1, 0], 0)):
        with pytest.raises(InputError, match="at least one interval and one event"):
            equal_event_edges(np.array([1.0, 2.0]), np.array(event), n)


EDGES = np.array([0, 2, 6, 10.0])
HAZARDS = np.array([0.1, 0.3, 0.6])
LOGITS = torch.tensor(np.log(HAZARDS / (1 - HAZARDS)))


@pytest.mark.parametrize(
    ("time", "event", "likelihood"),
    [
        pytest.param(2, 1, 0.1, id="dies in the first interval, whose end is in it"),
        pytest.param(7, 1, 0.9 * 0.7 * 0.6, id="dies in the last"),
        pytest.param(3, 0, 0.9 * 0.7 ** (1 / 4), id="censored after a quarter of the second"),
        pytest.param(10, 0, 0.9 * 0.7 * 0.4, id="outlives all"),
        pytest.param(16, 0, 0.9 * 0.7 * 0.4**2.5, id="censored beyond the last edge"),
        pytest.param(12, 1, 0.9 * 0.7 * 0.4**0.5 * 0.6, id="dies beyond it"),
    ],
)
def test_the_likelihood_of_a_patient_is_that_of_the_intervals_lived_through(time, event, likelihood):
    loss = discrete_hazard_loss(LOGITS[None], torch.tensor([float(time)]), torch.tensor([event]), EDGES)
    assert loss.item() == pytest.approx(-np.log(likelihood), rel=1e-12)
    if not event:
        assert discrete_survival(LOGITS[None], EDGES, np.array([time]))[0, 0].item() == pytest.approx(likelihood)


def losses_of_rows():
    """Losses that are sums over rows, as functions of outputs and rows, with random outputs of two networks."""
    time, event, _, _ = cohort(30)
    time, event, edges = torch.tensor(time), torch.tensor(event), equal_event_edges(time, event, 4)
    rng = torch.Generator().manual_seed(0)
    yield (
        lambda outputs, rows: discrete_hazard_loss(outputs, time[rows], event[rows], edges),
        torch.randn(2, 30, len(edges) - 1, generator=rng, dtype=torch.float64),
    )
    yield (
        lambda outputs, rows: weibull_loss(outputs, time[rows], event[rows], unit=5),
        torch.randn(2, 30, 2, generator=rng, dtype=torch.float64),
    )


@pytest.mark.parametrize(("loss", "outputs"), [*losses_of_rows()], ids=["hazard", "weibull"])
def test_halves_of_the_rows_add_up_and_gradients_are_those_of_finite_differences(loss, outputs):
    everyone, some, others = slice(None), slice(0, 11), slice(11, None)
    assert loss(outputs, everyone).shape == (2,)
    torch.testing.assert_close(
        loss(outputs, everyone), loss(outputs[:, some], some) + loss(outputs[:, others], others), rtol=1e-14, atol=0
    )
    assert torch.autograd.gradcheck(lambda outputs: loss(outputs, everyone), outputs.requires_grad_())


def test_hazards_of_half_precision_and_extreme_logits_are_finite():
    logits = torch.tensor([[100.0, -100, 100], [-100, -100, -100]], dtype=torch.bfloat16)
    time, event = torch.tensor([3.0, 12.0]), torch.tensor([1, 0])
    assert discrete_hazard_loss(logits, time, event, EDGES).dtype == torch.float32
    for value in (
        discrete_hazard_loss(logits, time, event, EDGES),
        discrete_risk(logits, EDGES),
        gradient(lambda logits: discrete_risk(logits, EDGES), logits),
    ):
        assert value.isfinite().all()


def test_the_risk_of_hazards_is_minus_the_area_below_the_curve():
    times = np.linspace(0, 10, 100_001)
    area = np.trapezoid(discrete_survival(LOGITS[None], EDGES, times)[0], times)
    assert discrete_risk(LOGITS[None], EDGES).item() == pytest.approx(-area, rel=1e-8)
    worse = LOGITS + torch.tensor([0, 0.5, 0])
    assert discrete_risk(worse, EDGES) > discrete_risk(LOGITS, EDGES)


# Weibull


def test_the_weibull_loss_is_that_of_its_density_and_survival():
    time, event, unit = torch.tensor([30.0, 400.0]), torch.tensor([1, 0]), 100.0
    outputs = torch.tensor([[0.2, 0.4], [1.0, -0.3]], dtype=torch.float64)
    shape, scale = outputs[:, 1].exp(), outputs[:, 0].exp() * unit
    died, lived = (weibull_min(shape[i], scale=scale[i]) for i in range(2))
    loss = -died.logpdf(30) - np.log(unit) - lived.logsf(400)
    assert weibull_loss(outputs, time, event, unit=unit).item() == pytest.approx(loss, rel=1e-12)
    curves = weibull_survival(outputs, np.array([0, 50, 400.0]), unit=unit)
    np.testing.assert_allclose(curves[1], lived.sf([0, 50, 400]))
    median = torch.tensor(weibull_min.median(shape, scale=scale)) / unit
    torch.testing.assert_close(weibull_risk(outputs), -median.log())


def test_the_baseline_hazard_is_breslows():
    log_hazard, times = ETA - 50, np.array([0.5, 1.0, 2.5, 9.0])
    steps = [
        (time <= times).astype(float) * event / float(log_hazard[time <= TIME].exp().sum())
        for time, event in zip(TIME, EVENT, strict=True)
    ]
    baseline = baseline_hazard(log_hazard, torch.tensor(TIME), torch.tensor(EVENT), times)
    np.testing.assert_allclose(baseline, sum(steps), rtol=1e-12)
    from_library = pytest.importorskip("sksurv.linear_model")
    labels = np.array(list(zip(EVENT.astype(bool), TIME, strict=True)), dtype=[("event", bool), ("time", float)])
    model = from_library.CoxPHSurvivalAnalysis().fit(ETA.numpy()[:, None], labels)
    of_model = baseline_hazard(
        torch.tensor(model.predict(ETA.numpy()[:, None])), torch.tensor(TIME), torch.tensor(EVENT), times
    )
    curve = model.cum_baseline_hazard_
    np.testing.assert_allclose(of_model[1:], [curve(1.0), curve(2.0), curve(5.0)], rtol=1e-10)
