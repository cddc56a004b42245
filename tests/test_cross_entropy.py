"""Cross-entropy in one walk beside torch's."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch.nn import functional as F

from geneformer_repro.cross_entropy import sum_of_cross_entropies_


def of_linear(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits of a linear layer, with its weight, and targets."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(301, 16, generator=generator).to(dtype).requires_grad_()
    hidden = torch.randn(50, 16, generator=generator).to(dtype)
    return F.linear(hidden, weight), weight, torch.randint(301, (50,), generator=generator)


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-6), (torch.bfloat16, 0.01)], ids=["single", "half"])
@pytest.mark.parametrize("n_threads", [1, 2])
def test_loss_and_gradient_are_torchs(dtype, near, n_threads):
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        logits, weight, target = of_linear(dtype)
        expected = F.cross_entropy(logits.float(), target, reduction="sum")
        (of_expected,) = torch.autograd.grad(expected / 7, weight)
        logits, weight, target = of_linear(dtype)
        found = sum_of_cross_entropies_(logits, target)
        (of_found,) = torch.autograd.grad(found / 7, weight)
    finally:
        torch.set_num_threads(before)
    assert found.dtype == torch.float32
    assert of_found.dtype == dtype
    assert_allclose(found.item(), expected.item(), rtol=1e-6)
    of_found, of_expected = of_found.float().numpy(), of_expected.float().numpy()
    assert np.linalg.norm(of_found - of_expected) < near * np.linalg.norm(of_expected)


def test_a_loss_that_is_not_finite_is_seen():
    logits, _, target = of_linear()
    with torch.no_grad():
        logits[3, 5] = torch.nan
    assert not torch.isfinite(sum_of_cross_entropies_(logits, target))


def test_who_needs_the_logits_for_a_gradient_is_told():
    logits, weight, target = of_linear()
    other = logits.square().sum()
    loss = sum_of_cross_entropies_(logits, target)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss + other, weight)


def test_a_second_backward_pass_gives_the_same():
    logits, weight, target = of_linear()
    loss = sum_of_cross_entropies_(logits, target)
    once, again = (torch.autograd.grad(loss / 3, weight, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(once, again)
