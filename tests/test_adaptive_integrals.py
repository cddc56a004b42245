"""Integrated gradients along ways that are cut where they bend."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from geneformer_repro import adaptive_integrals
from geneformer_repro.adaptive_integrals import integrate


@dataclass
class Straight:
    """Ways from baselines to inputs of a function with known derivatives; counts the points at which it is derived."""

    function: object
    slope: object
    start: np.ndarray
    end: np.ndarray
    derived_at: list = field(default_factory=list)

    def _there(self, way, at):
        return self.start[way] + at[:, None] * (self.end - self.start)[way]

    def values(self, way, at):
        return self.function(self._there(way, at))

    def derived(self, way, at):
        self.derived_at += list(zip(way.tolist(), at.tolist(), strict=True))
        there = self._there(way, at)
        return self.function(there), self.slope(there) * (self.end - self.start)[way]


def found(ways, **settings):
    return integrate(ways, len(ways.end), ways.end.shape[1], **{"least": 1e-9, **settings})


def test_of_a_polynomial_of_second_degree_the_first_pieces_are_exact():
    """Golden values 5.12 (a)."""
    ways = Straight(
        lambda x: x[:, 0] ** 2 + 3 * x[:, 0] * x[:, 1] - 2 * x[:, 2],
        lambda x: np.stack([2 * x[:, 0] + 3 * x[:, 1], 3 * x[:, 0], np.full(len(x), -2.0)], axis=1),
        np.array([[1.0, -1, 0]]),
        np.array([[2.0, 1, 3]]),
    )
    integrals = found(ways)
    np.testing.assert_allclose(integrals.by_unit_PG, [[3, 9, -6]], rtol=1e-6)
    np.testing.assert_allclose(integrals.end_P - integrals.start_P, [6])
    assert len(ways.derived_at) == 8


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_of_a_sigmoid_units_get_their_shares_of_the_whole(monkeypatch):
    """Golden values 5.12 (b)."""
    monkeypatch.setattr(adaptive_integrals, "_RESOLUTION", 0)  # of double precision
    weights = np.array([1.0, -2, 0.5])
    ways = Straight(
        lambda x: sigmoid(x @ weights),
        lambda x: (sigmoid(x @ weights) * (1 - sigmoid(x @ weights)))[:, None] * weights,
        np.zeros((1, 3)),
        np.array([[2.0, 1, 2]]),
    )
    integrals = found(ways, tolerance=1e-7)
    np.testing.assert_allclose(integrals.by_unit_PG, [[0.462117157260, -0.462117157260, 0.231058578630]], atol=1e-7)
    assert integrals.gap_P[0] <= 1e-7


@pytest.mark.parametrize("tolerance", [1e-2, 1e-3, 1e-5])
def test_a_bend_is_found_with_few_points(tolerance):
    """A unit that switches on at 0.3717 of the way: evenly spread points err by up to half a point's share."""
    ways = Straight(
        lambda x: np.maximum(x[:, 0] - 0.3717, 0) + 0.1 * x[:, 1],
        lambda x: np.stack([(x[:, 0] > 0.3717).astype(float), np.full(len(x), 0.1)], axis=1),
        np.zeros((1, 2)),
        np.ones((1, 2)),
    )
    integrals = found(ways, tolerance=tolerance)
    np.testing.assert_allclose(integrals.by_unit_PG[0], [1 - 0.3717, 0.1], atol=2 * tolerance)
    assert integrals.gap_P[0] <= tolerance
    assert len(ways.derived_at) <= 8 + 2 * np.log2(1 / tolerance)


def test_a_way_depends_on_no_other_and_one_without_a_difference_adds_up_to_nothing():
    rng = np.random.default_rng(0)
    weight, start, end = rng.normal(size=(5, 9)), rng.normal(size=(6, 5)), rng.normal(size=(6, 5))
    end[2] = start[2]

    def ways_of(rows):
        return Straight(
            lambda x: np.maximum(x @ weight, 0).sum(1),
            lambda x: ((x @ weight) > 0) @ weight.T,
            start[rows],
            end[rows],
        )

    together = found(ways_of(np.arange(6)), least=0.1)
    for row in range(6):
        alone = found(ways_of(np.array([row])), least=0.1)
        np.testing.assert_array_equal(together.by_unit_PG[row], alone.by_unit_PG[0])
    np.testing.assert_array_equal(together.by_unit_PG[2], 0)
    assert (together.gap_P <= 1e-3).all()
