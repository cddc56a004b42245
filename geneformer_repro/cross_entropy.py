"""Cross-entropy over many classes on a CPU, loss and gradient in one walk through the logits.

torch makes float32 of logits, logarithms of probabilities, their gradient and that in the logits' type, each of them
25,426 numbers for a masked gene in new memory. Here the gradient takes the place of the logits; what is new is one
number a row.

Shapes: M rows, V classes.
"""

import itertools
import math
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from geneformer_repro.compiled import exponential, largest, numbers, single, stored, threads_alone


def sum_of_cross_entropies_(logits_MV: Tensor, target_M: Tensor) -> Tensor:
    """Return the sum of the cross-entropies (nats), float32; the logits are used up.

    Parameters
    ----------
    logits_MV
        Float32 or bfloat16, on a CPU, contiguous, of an operation that does not need them for its own gradient, such
        as a linear layer. Changed.
    target_M
        The right class of each row.
    """
    total: Tensor = _SumOfCrossEntropies.apply(logits_MV, target_M)
    return total


class _SumOfCrossEntropies(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_MV: Tensor, target_M: Tensor) -> Tensor:
        loss_M = torch.empty(len(logits_MV))
        arrays = numbers(logits_MV), target_M.numpy(), loss_M.numpy()
        n_threads = min(torch.get_num_threads(), len(logits_MV))
        cuts = np.linspace(0, len(logits_MV), n_threads + 1).astype(int)
        parts = [tuple(array[first:last] for array in arrays) for first, last in itertools.pairwise(cuts)]
        if n_threads == 1:
            _to_gradients(*parts[0])
        else:
            list(threads_alone(torch.get_num_threads()).map(_to_gradients, *zip(*parts, strict=True)))
        torch.autograd.graph.increment_version(logits_MV)  # who needs the logits after all is told
        ctx.gradient_MV = logits_MV
        return loss_M.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.gradient_MV * gradients[0].to(ctx.gradient_MV.dtype), None


@numba.njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def _to_gradients(logits, target, loss):  # type: ignore[no-untyped-def]
    """Make of each row's logits the derivatives of its loss: probabilities, less 1 at the target."""
    for i in range(logits.shape[0]):
        row = logits[i]
        top = largest(row)
        total = np.float32(0)
        for j in range(row.shape[0]):
            total += exponential(single(row[j]) - top)
        log_sum = top + np.float32(math.log(total))
        right = single(row[target[i]])
        loss[i] = log_sum - right
        for j in range(row.shape[0]):
            row[j] = stored(exponential(single(row[j]) - log_sum), row[j])
        row[target[i]] = stored(exponential(right - log_sum) - np.float32(1), row[0])
