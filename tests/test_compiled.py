"""Compiled numbers beside those of NumPy and torch."""

import numba
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from geneformer_repro.compiled import exponential, largest, numbers, stored, threads_alone


@numba.njit
def _exponentials(powers):  # type: ignore[no-untyped-def]
    return np.array([exponential(power) for power in powers], np.float32)


@numba.njit
def _through(numbers, like):  # type: ignore[no-untyped-def]
    return [stored(number, like) for number in numbers]


class TestNumbers:
    def test_exponentials_are_those_of_double_precision(self):
        powers = np.linspace(-87, 0.01, 20_001, dtype=np.float32)
        assert_allclose(_exponentials(powers), np.exp(powers.astype(np.float64)), rtol=1e-5)
        near = np.linspace(-4, 0, 20_001, dtype=np.float32)
        assert_allclose(_exponentials(near), np.exp(near.astype(np.float64)), rtol=7e-7)

    def test_a_masked_score_has_no_weight(self):
        assert _exponentials(np.float32([-np.inf, -1e9]))[0] < 1e-37

    def test_bfloat16_is_rounded_as_torch_does(self):
        numbers = np.random.default_rng(0).normal(size=5000).astype(np.float32)
        numbers[:3] = 0, 1 + 2**-8, 1 + 3 * 2**-8  # the latter two lie in the middle between two
        found = np.array(_through(numbers, np.uint16(0)), np.uint16)
        assert_array_equal(found, torch.from_numpy(numbers).bfloat16().view(torch.uint16).numpy())


@numba.njit
def _largest(rows):  # type: ignore[no-untyped-def]
    found = np.empty(len(rows), np.float32)
    for i in range(len(rows)):
        found[i] = largest(rows[i])
    return found


class TestLargest:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["single", "half"])
    def test_it_is_torchs(self, dtype):
        rows = torch.randn(60, 301, generator=torch.Generator().manual_seed(0))
        rows = torch.cat([rows, -rows.abs(), torch.zeros(2, 301), -torch.zeros(2, 301)]).to(dtype)
        assert_array_equal(_largest(numbers(rows)), rows.amax(1).float().numpy())

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["single", "half"])
    @pytest.mark.parametrize("odd", [np.nan, -np.nan, np.inf, -np.inf])
    def test_a_number_that_is_not_finite_is_seen(self, dtype, odd):
        row = torch.zeros(1, 301)
        row[0, 7] = torch.from_numpy(np.copysign(np.float32([odd]), np.float32(odd)))[0]
        assert np.isnan(_largest(numbers(row.to(dtype))))


class TestThreads:
    def test_threads_compute_alone_and_torch_keeps_its_own(self):
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(3)
            pool = threads_alone(3)
            assert set(pool.map(lambda _: torch.get_num_threads(), range(30))) == {1}
            assert torch.get_num_threads() == 3
        finally:
            torch.set_num_threads(before)
