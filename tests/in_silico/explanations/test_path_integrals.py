"""Integrated gradients of functions whose answer is known, and what the test of completeness catches."""

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients
from torch import nn
from torch.nn import functional as F

from geneformer_repro import InputError
from geneformer_repro.in_silico.explanations.path_integrals import Integration, StraightWay, integrate

X_B = torch.tensor([2.0, 1.0, 2.0], dtype=torch.float64)


def polynomial(x_NG):
    return (x_NG[:, :1] ** 2 + 3 * x_NG[:, :1] * x_NG[:, 1:2] - 2 * x_NG[:, 2:]).double()


def logistic(x_NG):
    return torch.sigmoid(x_NG @ torch.tensor([[1.0], [-2.0], [0.5]], dtype=x_NG.dtype))


def of(function, start, end, **settings):
    """Of one way, with exactly so many steps where they are given."""
    if "steps" in settings:
        settings["first_steps"] = settings["most_steps"] = settings.pop("steps")
    start, end = (torch.as_tensor(one, dtype=torch.float64) for one in (start, end))
    [integral] = integrate(StraightWay(function, start, end[None]), Integration(**settings))
    return integral


@pytest.fixture
def network():
    """A small network with bends, in double precision."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 2)).double()


@pytest.mark.parametrize("steps", [1, 2, 18])
@pytest.mark.parametrize("rule", ["midpoint", "gauss_legendre"])
def test_of_a_function_of_second_degree_they_are_exact_with_any_number_of_steps(steps, rule):
    found = of(polynomial, [1, -1, 0], [2, 1, 3], steps=steps, rule=rule)
    np.testing.assert_allclose(found.value_GS[:, 0], [3, 9, -6], rtol=1e-12)
    np.testing.assert_allclose([found.value_GS.sum(), (found.end_S - found.start_S)[0]], 6, rtol=1e-12)
    assert found.gap_S[0] < 1e-12


@pytest.mark.parametrize(
    ("steps", "first"), [(10, 0.462192902087), (20, 0.462136087834), (50, 0.462120185900)], ids=lambda one: str(one)
)
def test_the_midpoint_rule_of_a_logistic_function(steps, first):
    found = of(logistic, [0, 0, 0], X_B, steps=steps)
    np.testing.assert_allclose(found.value_GS[0, 0], first, atol=1e-12)


def test_they_share_out_the_whole_difference_of_a_logistic_function_and_occlusion_does_not():
    found = of(logistic, [0, 0, 0], X_B, tolerance=1e-9, rule="gauss_legendre")
    total = (found.end_S - found.start_S)[0]
    np.testing.assert_allclose(total, 0.231058578630, atol=1e-12)
    np.testing.assert_allclose(found.value_GS[:, 0], [0.462117157260, -0.462117157260, 0.231058578630], atol=1e-12)
    x = X_B.clone().requires_grad_()
    (slope_G,) = torch.autograd.grad(logistic(x[None]).sum(), x)
    np.testing.assert_allclose(slope_G * X_B, [0.393223866483, -0.393223866483, 0.196611933241], atol=1e-12)
    occluded_G = [
        float(logistic(X_B[None]) - logistic(torch.where(torch.arange(3) == g, 0, X_B)[None])) for g in range(3)
    ]
    np.testing.assert_allclose(occluded_G, [0.462117157260, -0.221515548192, 0.231058578630], atol=1e-12)
    np.testing.assert_allclose(sum(occluded_G), 0.471660187698, atol=1e-12)


def test_of_a_way_from_zero_through_a_layer_norm_the_gap_is_all_there_is():
    """The norm takes the length away: the way stands still, and only the gap says that nothing was explained."""
    weight_G = torch.tensor([1.0, -2.0, 0.5, 0.3], dtype=torch.float64)

    def normed(x_NG):
        return F.layer_norm(x_NG, (4,), eps=1e-12) @ weight_G[:, None]

    x_G = torch.tensor([1.0, 2.0, -1.0, 0.5], dtype=torch.float64)
    ends_RG = torch.stack([x_G, 3 * x_G])
    assert torch.allclose(*normed(ends_RG))  # they differ by scale only
    for found in integrate(StraightWay(normed, torch.zeros(4, dtype=torch.float64), ends_RG)):
        assert np.abs(found.value_GS.sum()) < 1e-3 * np.abs(found.end_S - found.start_S)[0]
        assert found.gap_S[0] > 0.99
        assert found.steps == 486  # and more steps do not help


def seed_002(network, x_G, n_steps=50):
    """Attributions as the published drug paper's code makes them: one gene's baseline, and no difference."""
    start_G = torch.where(torch.arange(len(x_G)) == 0, 0, x_G)
    at_I1 = torch.linspace(0, 1, n_steps + 1, dtype=torch.float64)[:, None]
    there_IG = (start_G + at_I1 * (x_G - start_G)).requires_grad_()
    (slope_IG,) = torch.autograd.grad(network(there_IG)[:, 0].sum(), there_IG)
    return ((slope_IG[1:] + slope_IG[:-1]) / 2).mean(0)


def test_completeness_fails_for_the_version_of_seed_002_and_holds_for_ours(network):
    x_RG, zero_G = torch.randn(8, 6, generator=torch.Generator().manual_seed(3)).double() + 1, torch.zeros(6).double()
    with torch.no_grad():
        difference_R = (network(x_RG) - network(zero_G[None]))[:, 0].numpy()
    ours_R = np.array([one.value_GS[:, 0].sum() for one in integrate(StraightWay(network, zero_G, x_RG))])
    theirs_R = np.array([float(seed_002(network, x_G).sum()) for x_G in x_RG])
    assert (np.abs(ours_R - difference_R) <= 0.01 * np.abs(difference_R)).all()
    assert (np.abs(theirs_R - difference_R) > 0.05 * np.abs(difference_R)).all()


@pytest.mark.parametrize(("rule", "theirs"), [("midpoint", "riemann_middle"), ("gauss_legendre", "gausslegendre")])
def test_they_are_captums_with_the_same_points(network, rule, theirs):
    torch.manual_seed(1)
    start_G, end_RG = torch.randn(6).double(), torch.randn(5, 6).double()
    settings = Integration(rule=rule, first_steps=20, most_steps=20)
    found = np.stack([one.value_GS for one in integrate(StraightWay(network, start_G, end_RG, at_once=7), settings)])
    for state in range(2):
        expected = IntegratedGradients(network).attribute(
            end_RG, start_G[None], target=state, n_steps=20, method=theirs
        )
        np.testing.assert_allclose(found[:, :, state], expected.detach(), atol=1e-9)


class Counted(StraightWay):
    """Knows how many points were derived."""

    n = 0

    def slopes(self, row_I, at_I):
        object.__setattr__(self, "n", self.n + len(row_I))
        return super().slopes(row_I, at_I)


def test_three_times_as_many_steps_keep_what_was_computed(network):
    end_RG = torch.randn(1, 6, generator=torch.Generator().manual_seed(2)).double()
    way = Counted(network, torch.zeros(6).double(), end_RG)
    [tripled] = integrate(way, Integration(first_steps=6, most_steps=54, tolerance=1e-12))
    [at_once] = integrate(way, Integration(first_steps=54, most_steps=54))
    np.testing.assert_allclose(tripled.value_GS, at_once.value_GS, atol=1e-12)
    assert tripled.steps == at_once.steps == 54
    assert way.n == 54 + 54


def test_a_row_gets_as_many_steps_as_it_needs_and_no_other_row_more(network):
    easy, hard = torch.tensor([[1e-3] * 6, [3.0, -4, 5, -2, 4, -3]], dtype=torch.float64)
    done = []
    settings = Integration(first_steps=2, tolerance=1e-3)
    found = integrate(
        StraightWay(network, torch.zeros(6).double(), torch.stack([easy, hard])),
        settings,
        spread_S=np.zeros(2),
        show=done.append,
    )
    assert found[0].steps == 2 < found[1].steps
    assert done[0] == 1
    assert sum(done) == 2


def test_a_difference_far_below_the_spread_over_rows_need_not_be_met_to_a_hundredth():
    end_RG = torch.tensor([[1e-4, 0, 0]], dtype=torch.float64)

    def steps(spread):
        way = StraightWay(lambda x: logistic(x) + 1e-3 * (300 * x[:, :1]).sin() ** 2, torch.zeros(3).double(), end_RG)
        [found] = integrate(way, Integration(first_steps=1, tolerance=1e-6), spread_S=np.array([spread]))
        return found.steps

    assert steps(1.0) < steps(0.0)


def test_where_rows_do_not_differ_at_all_a_gap_means_nothing():
    found = of(lambda x: 0 * x[:, :1], [0, 0, 0], X_B)
    assert np.isnan(found.gap_S).all()
    assert (found.value_GS == 0).all()
    assert found.steps == 18


def test_where_an_end_is_not_finite_nothing_adds_up():
    found = of(lambda x: x[:, :1].log(), [0, 0, 0], X_B)
    assert np.isinf(found.gap_S).all()
    assert found.steps == 486


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rule": "simpson"}, "rule must be one of 'midpoint', 'gauss_legendre', found 'simpson'"),
        ({"first_steps": 0}, "first_steps must be at least 1"),
        ({"first_steps": 600}, "at most most_steps, found 600 and 512"),
        ({"tolerance": 0}, "tolerance must be above 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, said):
    with pytest.raises(InputError, match=said):
        Integration(**settings)
