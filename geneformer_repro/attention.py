"""Attention within each cell of a batch whose tokens lie end to end, by the fastest exact way of the device.

On the CPU cells of like length go together through torch's flash kernel, padded by a few per cent at most. That kernel
has no dropout: with any, torch falls back to the whole L × L matrix, four times slower and ten times the memory on
cells of 2,048 tokens. So attention with dropout is made in blocks (`block_attention`), without padding.

On an NVIDIA or AMD GPU one kernel call takes all cells at their own lengths: torch's variable-length flash attention
where it may (half precision, no dropout), jagged tensors else.

Shapes: T tokens of all cells, N cells of a group, L positions, H heads, E channels of a head.
"""

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geneformer_repro.block_attention import BLOCK_DTYPES, attend_in_blocks

_LONGER_IN_A_GROUP = 1.1
"""How much longer than its shortest the longest cell of a group may be: padding stays under 5 % as a rule."""
_SHORT = 48
"""Cells up to this length share a group whatever their padding: a call costs more than their attention."""
_LONG = 256
"""Longer cells share a group only if they are of one length: of real cells of 460 to 1,650 tokens padding, its mask and
the copies took a tenth of the time of their vectors, and a call costs nothing beside them."""


class Cells:
    """Where the cells of a batch lie among its tokens.

    Parameters
    ----------
    lengths
        Tokens of each cell, in the order in which they lie; cells of like length side by side are computed together.
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = tuple(map(int, lengths))
        self._starts: dict[torch.device, Tensor] = {}
        self._numbers: dict[torch.device, Tensor] = {}

    def __len__(self) -> int:
        return len(self.lengths)

    @cached_property
    def starts(self) -> list[int]:
        """First token of each cell, and after the last one the number of tokens."""
        return [0, *np.cumsum(self.lengths).tolist()]

    def starts_on(self, device: torch.device) -> Tensor:
        """Return `starts` as 32-bit integers on a device, as variable-length kernels want them."""
        if device not in self._starts:
            self._starts[device] = torch.tensor(self.starts, dtype=torch.int32).to(device, non_blocking=True)
        return self._starts[device]

    def numbers_on(self, device: torch.device) -> Tensor:
        """Return which cell each token is of, on a device."""
        if device not in self._numbers:
            numbers, lengths = torch.arange(len(self), device=device), torch.tensor(self.lengths, device=device)
            self._numbers[device] = torch.repeat_interleave(numbers, lengths, output_size=self.starts[-1])
        return self._numbers[device]

    def padding(self) -> float:
        """Share of padding in what the CPU computes: 0 for cells of one length."""
        of_groups = [self.lengths[group] for group in groups(self, self)]
        return 1 - sum(self.lengths) / max(sum(len(lengths) * max(lengths) for lengths in of_groups), 1)


def groups(queries: Cells, keys: Cells) -> Iterator[slice]:
    """Cut cells into groups of neighbours of like length, which are computed together."""
    first = 0
    while first < len(keys):
        least = most = keys.lengths[first]
        few = many = queries.lengths[first]
        last = first + 1
        while last < len(keys):
            least, most = min(least, keys.lengths[last]), max(most, keys.lengths[last])
            few, many = min(few, queries.lengths[last]), max(many, queries.lengths[last])
            longer = 1.0 if most > _LONG else _LONGER_IN_A_GROUP
            alike = most <= longer * least and many <= longer * few
            if not alike and most > _SHORT:
                break
            last += 1
        yield slice(first, last)
        first = last


def attend(
    query_THE: Tensor, key_THE: Tensor, value_THE: Tensor, *, queries: Cells, keys: Cells, dropout: float = 0.0
) -> Tensor:
    """Softmax attention of each cell's queries over its own keys.

    Parameters
    ----------
    query_THE
        Queries of all cells end to end, (tokens, heads, channels); scores are divided by the root of the channels.
    key_THE, value_THE
        Keys and values, likewise.
    queries, keys
        Where the cells lie in them; the same number of cells. A cell may have no query.
    dropout
        Chance of each attention weight to be set to zero, the others being scaled up; 0 outside training.

    Returns
    -------
    Context of each query, (tokens, heads, channels).
    """
    if query_THE.is_cuda:
        return _attend_jagged(query_THE, key_THE, value_THE, queries, keys, dropout)
    if dropout and query_THE.device.type == "cpu" and query_THE.dtype in BLOCK_DTYPES:
        starts = {"query_starts": queries.starts, "key_starts": keys.starts}
        return attend_in_blocks(query_THE, key_THE, value_THE, **starts, dropout=dropout)
    contexts = [
        _attend_group(query_THE, key_THE, value_THE, queries, keys, group, dropout) for group in groups(queries, keys)
    ]
    return torch.cat(contexts) if len(contexts) != 1 else contexts[0]


def _attend_group(
    query_THE: Tensor, key_THE: Tensor, value_THE: Tensor, queries: Cells, keys: Cells, group: slice, dropout: float
) -> Tensor:
    inputs, mask_N11L, asked_NL = _padded_inputs(query_THE, key_THE, value_THE, queries, keys, group)
    context_NHLE = F.scaled_dot_product_attention(*inputs, attn_mask=mask_N11L, dropout_p=dropout)
    return _by_real_token(context_NHLE, asked_NL)


def _padded_inputs(
    query_THE: Tensor, key_THE: Tensor, value_THE: Tensor, queries: Cells, keys: Cells, group: slice
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor | None, Tensor | None]:
    """Return queries, keys and values of a group's cells, (N, H, L, E), the mask of its keys, and where queries are."""
    query_NHLE, asked_NL = _padded(query_THE, queries, group)
    key_NHLE, real_NL = _padded(key_THE, keys, group)
    value_NHLE, _ = _padded(value_THE, keys, group)
    mask_N11L = None if real_NL is None else real_NL[:, None, None]
    return (query_NHLE, key_NHLE, value_NHLE), mask_N11L, asked_NL


def _padded(tokens_THE: Tensor, cells: Cells, group: slice) -> tuple[Tensor, Tensor | None]:
    """Return the cells of a group as (N, H, L, E), and where there are tokens if some have fewer than others."""
    lengths = cells.lengths[group]
    tokens_THE = tokens_THE[cells.starts[group.start] : cells.starts[group.stop]]
    longest = max(lengths)
    if min(lengths) == longest:
        return tokens_THE.unflatten(0, (len(lengths), longest)).transpose(1, 2), None
    real_NL = (torch.arange(longest) < torch.tensor(lengths)[:, None]).to(tokens_THE.device)
    padded_NLHE = tokens_THE.new_zeros(len(lengths), longest, *tokens_THE.shape[1:])
    padded_NLHE[real_NL] = tokens_THE
    return padded_NLHE.transpose(1, 2), real_NL


def _by_real_token(padded_NHL: Tensor, real_NL: Tensor | None) -> Tensor:
    """Return what a group's tokens have, (T, H, …), without padding."""
    padded_NLH = padded_NHL.transpose(1, 2)
    return padded_NLH.flatten(0, 1) if real_NL is None else padded_NLH[real_NL]


# What an observer sees


class Attention(NamedTuple):
    """What the tokens of a batch attend with in one block; weights are made of it where they are asked for.

    The weight of token j for token i is ``exp(query_i · key_j / √E − log_sum_i)``.
    """

    query_THE: Tensor
    key_THE: Tensor
    value_THE: Tensor
    log_sum_TH: Tensor
    """Logarithm of the sum of the exponentials of a query's scores, float32."""
    cells: Cells

    def log_weights(
        self, cell: int, keys: Tensor | None = None, *, at_once: int = 256
    ) -> Iterator[tuple[slice, Tensor]]:
        """Yield logarithms of a cell's attention weights for chosen keys, some queries at a time.

        Parameters
        ----------
        cell
            Number of the cell.
        keys
            Places in the cell whose columns are wanted; default all.
        at_once
            Queries of a block, so that memory is `at_once` × keys × heads.

        Yields
        ------
        Places of the queries in the cell, and float32 (heads, queries, keys).
        """
        start, stop = self.cells.starts[cell : cell + 2]
        key_KHE = self.key_THE[start:stop] if keys is None else self.key_THE[start:stop][keys]
        key_HEK = key_KHE.float().permute(1, 2, 0) / math.sqrt(self.query_THE.shape[-1])
        for first in range(start, stop, at_once):
            rows = slice(first, min(first + at_once, stop))
            score_HQK = self.query_THE[rows].float().transpose(0, 1) @ key_HEK
            yield slice(first - start, rows.stop - start), score_HQK - self.log_sum_TH[rows].T[..., None]


def attend_shown(query_THE: Tensor, key_THE: Tensor, value_THE: Tensor, cells: Cells) -> tuple[Tensor, Attention]:
    """Attend as `attend` does without dropout; also return what an observer may look at.

    The CPU's kernel has the log-sums at no cost; elsewhere they take one more product of queries and keys.

    Parameters
    ----------
    query_THE, key_THE, value_THE
        Of all tokens.
    cells
        Where the cells lie in them.
    """
    if query_THE.device.type == "cpu":
        contexts, sums = zip(*(_on_cpu(query_THE, key_THE, value_THE, cells, group) for group in groups(cells, cells)))
        context_THE, log_sum_TH = torch.cat(contexts), torch.cat(sums)
    else:
        context_THE = attend(query_THE, key_THE, value_THE, queries=cells, keys=cells)
        unsummed = Attention(query_THE, key_THE, value_THE, query_THE.new_zeros(query_THE.shape[:2]).float(), cells)
        blocks = (block for cell in range(len(cells)) for _, block in unsummed.log_weights(cell))
        log_sum_TH = torch.cat([score_HQK.logsumexp(-1).T for score_HQK in blocks])
    return context_THE, Attention(query_THE, key_THE, value_THE, log_sum_TH, cells)


def _on_cpu(query_THE: Tensor, key_THE: Tensor, value_THE: Tensor, cells: Cells, group: slice) -> tuple[Tensor, Tensor]:
    """Return the context of a group's tokens, (T, H, E), and their log-sums, (T, H)."""
    inputs, mask_N11L, real_NL = _padded_inputs(query_THE, key_THE, value_THE, cells, cells, group)
    context_NHLE, log_sum_NHL = _flash_on_cpu(*inputs, mask_N11L)
    return _by_real_token(context_NHLE, real_NL), _by_real_token(log_sum_NHL, real_NL)


def _flash_on_cpu(
    query_NHLE: Tensor, key_NHLE: Tensor, value_NHLE: Tensor, mask_N11L: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return contexts, and the log-sums of the scores, (N, H, L)."""
    bias = _bias(mask_N11L, query_NHLE)
    context_NHLE, log_sum_NHL = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query_NHLE, key_NHLE, value_NHLE, attn_mask=bias
    )
    return context_NHLE, log_sum_NHL


# Dropout on the CPU


class Dropout(nn.Dropout):
    """Dropout that draws the few positions it drops, where torch draws a number for every position (8 ns each)."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the input with a random share `p` of it set to zero, and the rest scaled up."""
        if not self.training or not 0 < self.p < 1 or input.device.type != "cpu":
            return super().forward(input)
        return _DropPositions.apply(input, self.p)


class _DropPositions(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, whole: Tensor, p: float) -> Tensor:
        ctx.p = p
        ctx.positions = torch.from_numpy(_draw_positions(int(torch.randint(2**62, ())), whole.numel(), p))
        return _drop(whole, ctx.positions, p)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _drop(gradients[0], ctx.positions, ctx.p), None


def _drop(whole: Tensor, positions: Tensor, p: float) -> Tensor:
    left = (whole / (1 - p)).contiguous()
    left.view(-1)[positions] = 0
    return left


def _bias(mask_N11L: Tensor | None, query_NHLE: Tensor) -> Tensor | None:
    """Return the mask as the kernel wants it: added to the scores."""
    if mask_N11L is None:
        return None
    bias = torch.zeros(mask_N11L.shape, dtype=query_NHLE.dtype).masked_fill_(~mask_N11L, -torch.inf)
    return bias.expand(-1, -1, query_NHLE.shape[2], -1)


@numba.njit(nogil=True, cache=True)
def _next_random(state):  # type: ignore[no-untyped-def]
    """One step of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014): the new state and a number in (0, 1]."""
    state += np.uint64(0x9E3779B97F4A7C15)
    bits = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    bits ^= bits >> np.uint64(31)
    return state, (np.float64(bits >> np.uint64(11)) + 1.0) * 2.0**-53


@numba.njit(nogil=True, cache=True)
def _draw_positions(seed, n, p):  # type: ignore[no-untyped-def]
    """Return the positions among `n` of which each is drawn with chance `p`.

    The gap from one to the next is geometric, so that only those are drawn.
    """
    expected = n * p
    positions = np.empty(int(expected + 8 * math.sqrt(expected) + 16), np.int64)
    state, _ = _next_random(np.uint64(seed))
    per_log = 1 / math.log1p(-p)
    position, n_drawn = -1, 0
    while n_drawn < len(positions):
        state, u = _next_random(state)
        gap = math.log(u) * per_log
        if gap >= n - position - 1:
            break
        position += 1 + int(gap)
        positions[n_drawn] = position
        n_drawn += 1
    return positions[:n_drawn]


# On a GPU


def _attend_jagged(
    query_THE: Tensor, key_THE: Tensor, value_THE: Tensor, queries: Cells, keys: Cells, dropout: float
) -> Tensor:
    if not len(query_THE):
        return query_THE + 0 * (key_THE.sum() + value_THE.sum())
    starts = [cells.starts_on(query_THE.device) for cells in (queries, keys)]
    shortest, longest = ([pick(cells.lengths) for cells in (queries, keys)] for pick in (min, max))
    flash = _variable_length_flash()
    if flash and query_THE.is_cuda and query_THE.dtype != torch.float32 and not dropout:
        return flash(query_THE, key_THE, value_THE, *starts, *longest)

    def jagged(tokens_THE: Tensor, of: int) -> Tensor:
        nested = torch.nested.nested_tensor_from_jagged(
            tokens_THE.contiguous(), starts[of], min_seqlen=shortest[of], max_seqlen=longest[of]
        )
        return nested.transpose(1, 2)

    context = F.scaled_dot_product_attention(
        jagged(query_THE, 0), jagged(key_THE, 1), jagged(value_THE, 1), dropout_p=dropout
    )
    return context.transpose(1, 2).values()


def _variable_length_flash() -> Any:
    """Return torch's variable-length flash attention, None before torch 2.10."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn


def kernel_on(device: torch.device) -> str:
    """Say in words what computes attention on a device."""
    if device.type == "cpu":
        return "torch's flash kernel, cells of like length together; with dropout neither is an L × L matrix made"
    if device.type == "cuda" and _variable_length_flash():
        return "variable-length flash attention in half precision; with dropout, or in float32, nested tensors"
    return "nested tensors"
