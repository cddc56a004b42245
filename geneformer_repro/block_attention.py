"""Attention with dropout on a CPU: a block of queries at a time, so that no L × L matrix is kept.

torch's flash kernel for the CPU has no dropout, and with any torch makes the whole matrix, keeps it for the backward
pass, and takes four times the time. Here a block of scores is made by torch's matrix product, which runs near the peak
in float32 and in bfloat16; softmax and dropout are one compiled pass over the block while it is in the cache; the
backward pass makes the block anew. The threads take cells and heads, each by itself with products of one thread, at
the cells' own lengths, without padding.

Which weights are dropped follows from a seed, the cell, head, query and key alone, by a hash: both passes know it, in
whatever blocks and threads, and nothing is stored.

In bfloat16 scores are rounded to bfloat16, as stock BERT's are; sums are float32.

Shapes: T tokens of all cells, H heads, E channels of a head; of a block of scores H heads, Q queries, K keys.
"""

import functools
import itertools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from geneformer_repro.compiled import exponential, finite, largest, numbers, single, stored, threads_alone

BLOCK_DTYPES = (torch.float32, torch.bfloat16)
"""What is computed here."""
_BLOCK = 2**21
"""Bytes of a block of scores. In smaller blocks every product packs the keys anew for few queries, in larger ones the
block and its derivative leave the cache: forward and backward of a layer (4 cells of 2,048 tokens, 4 heads, two
threads) take 442 ms in float32 with 1 MB, 428 with 2, 466 with 4; in bfloat16 291, 271, 267."""


def attend_in_blocks(
    query_THE: Tensor,
    key_THE: Tensor,
    value_THE: Tensor,
    *,
    query_starts: Sequence[int],
    key_starts: Sequence[int],
    dropout: float,
) -> Tensor:
    """Softmax attention with dropout of each cell's queries over its own keys, on a CPU.

    Parameters
    ----------
    query_THE, key_THE, value_THE
        Of all cells end to end, of one of `BLOCK_DTYPES`; scores are divided by the root of the channels.
    query_starts, key_starts
        Where each cell begins among the queries and among the keys, and after the last one their number.
    dropout
        Chance of each weight to be set to zero, the others being scaled up; at least 0, below 1.

    Returns
    -------
    Context of each query, (tokens, heads, channels).
    """
    seed = int(torch.randint(2**62, ()))
    context_THE: Tensor = _Attention.apply(query_THE, key_THE, value_THE, query_starts, key_starts, dropout, seed)
    return context_THE


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query_THE: Tensor,
        key_THE: Tensor,
        value_THE: Tensor,
        query_starts: Sequence[int],
        key_starts: Sequence[int],
        dropout: float,
        seed: int,
    ) -> Tensor:
        context_THE = torch.empty_like(query_THE, memory_format=torch.contiguous_format)
        log_sum_HT = query_THE.new_empty(query_THE.shape[1], query_THE.shape[0], dtype=torch.float32)
        at_once = _BLOCK // query_THE.itemsize
        ctx.pieces = _Pieces(query_starts, key_starts, query_THE.shape[1], dropout, seed, at_once)
        tensors = query_THE, key_THE, value_THE, context_THE, log_sum_HT
        ctx.pieces.run(functools.partial(_forward, tensors))
        ctx.save_for_backward(*tensors)
        return context_THE

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, context_THE, log_sum_HT = ctx.saved_tensors
        slope_HT = torch.einsum("the,the->ht", gradients[0].float(), context_THE.float()).contiguous()
        outputs = [torch.empty_like(one, memory_format=torch.contiguous_format) for one in inputs]
        tensors = *inputs, gradients[0].contiguous(), log_sum_HT, slope_HT, *outputs
        ctx.pieces.run(functools.partial(_backward, tensors))
        return (*outputs, None, None, None, None)


class _Piece(NamedTuple):
    """Some heads of a cell."""

    cell: int
    queries: slice
    keys: slice
    heads: slice


class _Pieces:
    """What there is to compute, by threads."""

    def __init__(
        self,
        query_starts: Sequence[int],
        key_starts: Sequence[int],
        n_heads: int,
        dropout: float,
        seed: int,
        at_once: int,
    ) -> None:
        self.n_heads, self.dropout, self.seed, self._at_once = n_heads, dropout, seed, at_once
        self._queries = [slice(*ends) for ends in itertools.pairwise(query_starts)]
        self._keys = [slice(*ends) for ends in itertools.pairwise(key_starts)]

    def run(self, work: Callable[["_Pieces", _Piece, "_Scratch"], object]) -> None:
        """Do the work of all pieces, the largest first."""
        n_threads = torch.get_num_threads()
        pieces = sorted(self._cut(n_threads), key=lambda piece: -_size(piece))

        def do(pieces: Iterator[_Piece]) -> None:
            with torch.inference_mode():
                scratch = _Scratch()
                for piece in pieces:
                    work(self, piece, scratch)

        if n_threads == 1:
            do(iter(pieces))
            return
        pool, shared = threads_alone(n_threads), _Shared(pieces)
        for done in [pool.submit(do, shared) for _ in range(min(n_threads, len(pieces)))]:
            done.result()

    def _cut(self, n_threads: int) -> Iterator[_Piece]:
        at_most = -(-self.n_heads * len(self._keys) // n_threads)
        for cell, (queries, keys) in enumerate(zip(self._queries, self._keys, strict=True)):
            n_scores = (queries.stop - queries.start) * (keys.stop - keys.start)
            n_heads = max(1, min(self._at_once // max(n_scores, 1), at_most, self.n_heads))
            for first in range(0, self.n_heads, n_heads):
                yield _Piece(cell, queries, keys, slice(first, min(first + n_heads, self.n_heads)))

    def blocks(self, piece: _Piece) -> Iterator[tuple[slice, int]]:
        """Yield the places of a block's queries among all, and where the block begins in the cell."""
        n_keys, n_heads = piece.keys.stop - piece.keys.start, piece.heads.stop - piece.heads.start
        n_rows = max(16, self._at_once // max(1, n_keys * n_heads) // 16 * 16)
        for first in range(piece.queries.start, piece.queries.stop, n_rows):
            yield slice(first, min(first + n_rows, piece.queries.stop)), first - piece.queries.start


def _size(piece: _Piece) -> int:
    return (piece.queries.stop - piece.queries.start) * (piece.keys.stop - piece.keys.start)


class _Shared:
    """An iterator that several threads take from."""

    def __init__(self, pieces: Sequence[_Piece]) -> None:
        self._pieces, self._lock = iter(pieces), threading.Lock()

    def __iter__(self) -> Iterator[_Piece]:
        return self

    def __next__(self) -> _Piece:
        with self._lock:
            return next(self._pieces)


class _Scratch:
    """Memory for blocks, one after the other: new memory for each would be handed out page by page."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def product(self, name: str, one: Tensor, other: Tensor) -> Tensor:
        """Return the product of two stacks of matrices, where the last one of this name was."""
        shape = *one.shape[:2], other.shape[2]
        held = self._held.get(name)
        if held is None or held.numel() < math.prod(shape):
            held = self._held[name] = one.new_empty(math.prod(shape))
        return torch.bmm(one, other, out=held[: math.prod(shape)].view(shape))


def _of_heads(rows_THE: Tensor, rows: slice, heads: slice) -> Tensor:
    """Return (H, rows, E), a view."""
    return rows_THE[rows, heads].transpose(0, 1)


def _forward(tensors: tuple[Tensor, ...], pieces: _Pieces, piece: _Piece, scratch: _Scratch) -> None:
    """Fill in the context and the log-sums of a piece."""
    query_THE, key_THE, value_THE, context_THE, log_sum_HT = tensors
    key_HEK = _of_heads(key_THE, piece.keys, piece.heads).transpose(1, 2)
    value_HKE = _of_heads(value_THE, piece.keys, piece.heads)
    for rows, first in pieces.blocks(piece):
        weight_HQK = scratch.product("weight", _of_heads(query_THE, rows, piece.heads), key_HEK)
        log_sums_HQ = log_sum_HT[piece.heads, rows]
        factor_HQ = torch.empty_like(log_sums_HQ)
        seeds = pieces.seed, piece.cell * pieces.n_heads + piece.heads.start, first
        scale = 1 / math.sqrt(query_THE.shape[-1])
        _to_weights(numbers(weight_HQK), scale, *seeds, pieces.dropout, factor_HQ.numpy(), log_sums_HQ.numpy())
        context_HQE = scratch.product("context", weight_HQK, value_HKE)
        torch.mul(context_HQE, factor_HQ[..., None], out=_of_heads(context_THE, rows, piece.heads))


def _backward(tensors: tuple[Tensor, ...], pieces: _Pieces, piece: _Piece, scratch: _Scratch) -> None:
    """Fill in the gradients of a piece."""
    query_THE, key_THE, value_THE, gradient_THE, log_sum_HT, slope_HT, *d_inputs = tensors
    d_query_THE, d_key_THE, d_value_THE = d_inputs
    scale = 1 / math.sqrt(query_THE.shape[-1])
    key_HKE = _of_heads(key_THE, piece.keys, piece.heads).contiguous()
    key_HEK, value_HEK = key_HKE.transpose(1, 2), _of_heads(value_THE, piece.keys, piece.heads).transpose(1, 2)
    d_key_HEK, d_value_HEK = (key_HEK.new_zeros(key_HEK.shape, dtype=torch.float32) for _ in range(2))
    for rows, first in pieces.blocks(piece):
        query_HQE = _of_heads(query_THE, rows, piece.heads)
        gradient_HQE = _of_heads(gradient_THE, rows, piece.heads)
        weight_HQK = scratch.product("weight", query_HQE, key_HEK)
        slope_HQK = scratch.product("slope", gradient_HQE, value_HEK)
        seeds = pieces.seed, piece.cell * pieces.n_heads + piece.heads.start, first
        of_rows = log_sum_HT[piece.heads, rows].numpy(), slope_HT[piece.heads, rows].numpy()
        _to_slopes(numbers(weight_HQK), numbers(slope_HQK), *of_rows, scale, *seeds, pieces.dropout)
        _add_product(scratch, d_value_HEK, gradient_HQE.transpose(1, 2).contiguous(), weight_HQK)
        _add_product(scratch, d_key_HEK, query_HQE.transpose(1, 2).contiguous(), slope_HQK)
        d_query_HQE = scratch.product("context", slope_HQK, key_HKE)
        torch.mul(d_query_HQE, scale, out=_of_heads(d_query_THE, rows, piece.heads))
    torch.mul(d_key_HEK.transpose(1, 2), scale, out=_of_heads(d_key_THE, piece.keys, piece.heads))
    kept = 1 / (1 - pieces.dropout)
    torch.mul(d_value_HEK.transpose(1, 2), kept, out=_of_heads(d_value_THE, piece.keys, piece.heads))


def _add_product(scratch: _Scratch, total: Tensor, one: Tensor, other: Tensor) -> None:
    """Add the product of two tensors to float32."""
    if one.dtype == total.dtype:
        total.baddbmm_(one, other)
    else:
        total += scratch.product("summand", one, other)


# Compiled


@numba.njit(inline="always")
def _row_seed(seed, head, query):  # type: ignore[no-untyped-def]
    """Return two numbers of 32 bits for a row of weights: SplitMix64 (Steele, Lea & Flood, OOPSLA 2014)."""
    bits = np.uint64(seed) + ((np.uint64(head) << np.uint64(32)) + np.uint64(query)) * np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    bits ^= bits >> np.uint64(31)
    return np.uint32(bits), np.uint32(bits >> np.uint64(32))


@numba.njit(inline="always")
def _drawn(low, high, key):  # type: ignore[no-untyped-def]
    """Return the number of 32 bits that is drawn for a weight: two rounds of multiply and shift."""
    x = np.uint32(np.uint32(key) + low)
    x = np.uint32(np.uint32(x ^ (x >> np.uint32(16))) * np.uint32(0x21F0AAAD))
    x = np.uint32(x ^ high)
    return np.uint32(np.uint32(x ^ (x >> np.uint32(15))) * np.uint32(0xD35A2D97))


@numba.njit(nogil=True, cache=True)
def _bound(dropout):  # type: ignore[no-untyped-def]
    """Return below which number of 32 bits a weight is dropped."""
    return np.uint32(min(round(dropout * 2.0**32), 2**32 - 1))


@numba.njit(nogil=True, cache=True)
def dropped(seed, head, n_queries, n_keys, dropout):  # type: ignore[no-untyped-def]
    """Return which weights of a head are dropped, (queries, keys); `head` counts the heads of all cells."""
    drops = np.empty((n_queries, n_keys), np.bool_)
    bound = _bound(dropout)
    for i in range(n_queries):
        low, high = _row_seed(seed, head, i)
        for j in range(n_keys):
            drops[i, j] = _drawn(low, high, j) < bound
    return drops


@numba.njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def _to_weights(weight, scale, seed, head, first, dropout, factor, log_sum):  # type: ignore[no-untyped-def]
    """Make of scores (H, Q, K) the exponentials that are kept, and by what their product with values is multiplied."""
    scale, bound = np.float32(scale), _bound(dropout)
    for h in range(weight.shape[0]):
        for i in range(weight.shape[1]):
            row = weight[h, i]
            most = largest(row)
            top = most * scale
            low, high = _row_seed(seed, head + h, first + i)
            total = np.float32(0)
            for j in range(row.shape[0]):
                power = exponential(single(row[j]) * scale - top)
                total += power
                row[j] = stored(power if _drawn(low, high, j) >= bound else np.float32(0), row[j])
            factor[h, i] = 1 / (total * np.float32(1 - dropout)) if finite(most) else most
            log_sum[h, i] = top + np.float32(math.log(total))


@numba.njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def _to_slopes(weight, slope, log_sum, mean, scale, seed, head, first, dropout):  # type: ignore[no-untyped-def]
    """Make of scores the weights that are kept, and of the derivatives by weights those by scores.

    `mean` is the sum over a query's keys of weight times derivative.
    """
    scale, up, bound = np.float32(scale), np.float32(1 / (1 - dropout)), _bound(dropout)
    for h in range(weight.shape[0]):
        for i in range(weight.shape[1]):
            row, to, less, middle = weight[h, i], slope[h, i], log_sum[h, i], mean[h, i]
            low, high = _row_seed(seed, head + h, first + i)
            for j in range(row.shape[0]):
                power = exponential(single(row[j]) * scale - less)
                keeps = _drawn(low, high, j) >= bound
                row[j] = stored(power if keeps else np.float32(0), row[j])
                by_weight = single(to[j]) * up if keeps else np.float32(0)
                to[j] = stored(power * (by_weight - middle), to[j])
