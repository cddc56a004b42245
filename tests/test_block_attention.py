"""Attention in blocks: what it drops, and that blocks, threads and types change nothing else."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from geneformer_repro import block_attention
from geneformer_repro.block_attention import attend_in_blocks, dropped

STANDARD_ERRORS = 5
HEADS, CHANNELS = 3, 8
STARTS = [0, 70, 70, 103, 393]
"""Where cells of 70, 0, 33 and 290 tokens begin."""


def assert_share(events: np.ndarray, expected: float) -> None:
    """The share lies within sampling error of what was expected."""
    error = np.sqrt(expected * (1 - expected) / events.size)
    assert abs(events.mean() - expected) < STANDARD_ERRORS * error


def with_gradients(dtype: torch.dtype = torch.float32) -> list[np.ndarray]:
    """Context and gradients of cells at a fixed seed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        inputs = [(torch.randn(STARTS[-1], HEADS, CHANNELS)).to(dtype).requires_grad_() for _ in range(3)]
        weighting = torch.randn(STARTS[-1], HEADS, CHANNELS).to(dtype)
        context_THE = attend_in_blocks(*inputs, query_starts=STARTS, key_starts=STARTS, dropout=0.2)
    gradients = torch.autograd.grad((context_THE * weighting).sum(), inputs)
    return [one.detach().float().numpy() for one in (context_THE, *gradients)]


class TestBlocks:
    def test_the_size_of_blocks_changes_nothing(self, monkeypatch):
        whole = with_gradients()
        monkeypatch.setattr(block_attention, "_BLOCK", 290 * 32 * 4)
        for one, other in zip(with_gradients(), whole, strict=True):
            assert_allclose(one, other, rtol=1e-4, atol=1e-5)

    def test_a_block_of_bfloat16_adds_up_as_the_whole_does(self, monkeypatch):
        whole = with_gradients(torch.bfloat16)
        monkeypatch.setattr(block_attention, "_BLOCK", 290 * 32 * 4)
        for one, other in zip(with_gradients(torch.bfloat16), whole, strict=True):
            assert np.linalg.norm(one - other) < 0.005 * np.linalg.norm(other)

    @pytest.mark.parametrize("odd", [np.nan, np.inf], ids=str)
    def test_a_query_that_is_not_finite_has_a_context_that_is_not(self, odd):
        query, key, value = (torch.randn(20, HEADS, CHANNELS) for _ in range(3))
        query[3, 1, 0] = odd
        context_THE = attend_in_blocks(query, key, value, query_starts=[0, 20], key_starts=[0, 20], dropout=0.1)
        lost = ~torch.isfinite(context_THE).all(-1)
        assert lost.nonzero().tolist() == [[3, 1]]

    def test_what_fails_in_a_thread_fails(self, monkeypatch):
        monkeypatch.setattr(torch, "bmm", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            with_gradients()

    def test_no_second_derivative_is_made_up(self):
        inputs = [torch.randn(9, HEADS, CHANNELS, requires_grad=True) for _ in range(3)]
        context_THE = attend_in_blocks(*inputs, query_starts=[0, 9], key_starts=[0, 9], dropout=0.1)
        (gradient,) = torch.autograd.grad(context_THE.square().sum(), inputs[2], create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            gradient.sum().backward()


class TestDropped:
    @pytest.mark.parametrize("p", [0.02, 0.1, 0.6])
    def test_the_share_of_weights_is_that_asked_for(self, p):
        assert_share(dropped(11, 0, 700, 900, p), p)

    def test_every_pair_is_as_likely(self):
        p, n = 0.1, 5000
        counts = sum(dropped(seed, 3, 5, 7, p).astype(int) for seed in range(n))
        chi_square = ((counts - n * p) ** 2 / (n * p * (1 - p))).sum()
        assert abs(chi_square - counts.size) < STANDARD_ERRORS * np.sqrt(2 * counts.size)

    def test_neighbouring_pairs_are_independent(self):
        drops = dropped(12, 0, 700, 900, 0.1)
        assert_share(drops[:, 1:] & drops[:, :-1], 0.1**2)
        assert_share(drops[1:] & drops[:-1], 0.1**2)

    @pytest.mark.parametrize("jobs", [(0, 1), (0, 2), (5, 6)], ids=["two_heads", "two_cells", "two_heads_of_another"])
    def test_heads_and_cells_are_independent(self, jobs):
        one, other = (dropped(13, job, 500, 500, 0.1) for job in jobs)
        assert_share(one & other, 0.1**2)

    def test_seeds_that_follow_each_other_are_independent(self):
        one, other = (dropped(seed, 0, 500, 500, 0.1) for seed in (20, 21))
        assert_share(one & other, 0.1**2)

    @pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1)])
    def test_narrow_cells_are_drawn_like_others(self, shape):
        drops = np.stack([dropped(seed, 0, *shape, 0.3) for seed in range(3000)])
        assert_share(drops, 0.3)
