"""A prepared network forwards and backwards: how a number of a cell changes with each of its tokens.

No weight has a gradient here, so a block's backward pass is its products once more, with weights transposed: oneDNN's,
as in the forward pass. Attention goes through products and a softmax of cells of one length, whose weights are kept for
the backward pass where they are few. Of 400 tokens it runs at 155 GFLOP/s in single precision and at 300 in bfloat16,
where torch's flash kernel has 130 and 125 (two cores of AMD's Zen 4); of cells too long for that, at 128 and 245.

How present a token is multiplies the attention it gets as a key; the derivative by it, where all are 1, is the sum over
queries of that by the score.

Shapes: T tokens of all cells, D hidden size, I width between, H heads, E channels of a head; of neighbouring cells of
one length M = cells × heads, L queries or keys, Q queries of a block.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from geneformer_repro.attention import Cells
from geneformer_repro.encoder import positions_of, require_positions, summed_embeddings
from geneformer_repro.prepared import SCORES, Layer, Norm, Prepared, PreparedBlock, of_one_length

_KEPT = 2**27
"""Attention weights that are kept for the backward pass at most, over all blocks: half a gigabyte in float32."""


class Derivable:
    """A prepared network that can be derived by what its tokens are and by how present they are.

    Parameters
    ----------
    prepared
        The network.
    """

    def __init__(self, prepared: Prepared) -> None:
        self._bert = prepared.bert
        self._blocks = [_Block(block) for block in prepared.blocks]

    def __call__(self, input_ids_T: Tensor, lengths: Sequence[int], presence_T: Tensor) -> tuple[Tensor, Tensor]:
        """Return what `run_gated` returns of tokens that are all present; gradients flow to `presence_T` as well.

        Parameters
        ----------
        input_ids_T, lengths
            Tokens of all cells end to end, and of each.
        presence_T
            1 for each token.
        """
        require_positions(self._bert, max(lengths))
        cells = Cells(lengths)
        embedded_TD = summed_embeddings(self._bert, input_ids_T, positions_of(lengths, input_ids_T.device))
        embedded_TD.requires_grad_()
        hidden_TD = self._bert.embeddings.LayerNorm(embedded_TD)
        n_weights = sum(block.n_heads for block in self._blocks) * sum(length**2 for length in lengths)
        for block in self._blocks:
            hidden_TD = _Through.apply(hidden_TD, presence_T, block, cells, n_weights <= _KEPT)
        return hidden_TD, embedded_TD


class _Through(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_TD: Tensor, _: Tensor, block: "_Block", cells: Cells, keeps: bool) -> Tensor:
        output_TD, ctx.made = block.forward(hidden_TD, cells, keeps=keeps)
        ctx.block = block
        return output_TD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *by_output: Tensor) -> tuple[Tensor | None, ...]:
        return (*ctx.block.backward(ctx.made, by_output[0].contiguous()), None, None, None)


class _Normed(NamedTuple):
    """What a norm was given, and by what it moved and stretched each row."""

    norm: Norm
    input_TD: Tensor
    mean_T1: Tensor
    over_spread_T1: Tensor

    @classmethod
    def of(cls, norm: Norm, input_TD: Tensor) -> "tuple[Tensor, _Normed]":
        """Return the output, and what is needed to derive it."""
        output_TD, *moments = torch.native_layer_norm(input_TD, norm.weight.shape, norm.weight, norm.bias, norm.eps)
        return output_TD, cls(norm, input_TD, *moments)

    def backward(self, by_output_TD: Tensor) -> Tensor:
        wanted = [True, False, False]
        inputs = self.input_TD, self.norm.weight.shape, self.mean_T1, self.over_spread_T1
        by_input_TD: Tensor = torch.ops.aten.native_layer_norm_backward(
            by_output_TD, *inputs, self.norm.weight, self.norm.bias, wanted
        )[0]
        return by_input_TD


class _Attended(NamedTuple):
    """What cells of one length attend with, and their weights if they are kept."""

    rows: slice
    n_cells: int
    query_MLE: Tensor
    key_MLE: Tensor
    value_MLE: Tensor
    context_MLE: Tensor
    weights: tuple[Tensor, ...]

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield queries and their weights (M, Q, L), which are made anew where none were kept."""
        places = list(_blocks_of(self.query_MLE))
        if self.weights:
            yield from zip(places, self.weights, strict=True)
            return
        for queries in places:
            yield queries, _weights(self.query_MLE[:, queries], self.key_MLE)


class _Made(NamedTuple):
    """What the forward pass of a block leaves to its backward pass."""

    attended: list[_Attended]
    attended_norm: _Normed
    wide_TI: Tensor
    """Of a rectifier what came out of it, else what went in."""
    norm: _Normed


class _Block:
    """A block forwards and backwards."""

    def __init__(self, block: PreparedBlock) -> None:
        self._block, self.n_heads = block, block.n_heads
        self._projection = _with_scaled_queries(block)
        layers = self._projection, block.attended, block.wide, block.narrow
        self._by_projection, self._by_attended, self._by_wide, self._by_narrow = map(_transposed, layers)

    def forward(self, hidden_TD: Tensor, cells: Cells, *, keeps: bool) -> tuple[Tensor, _Made]:
        """Return the output, and what was made on the way; with `keeps` attention weights too."""
        block = self._block
        context_TD, attended = self._attend(self._projection(hidden_TD), cells, keeps=keeps)
        attended_TD, attended_norm = _Normed.of(block.attended_norm, block.attended.plus(context_TD, hidden_TD))
        if block.then == "relu":
            wide_TI = active_TI = block.wide(attended_TD, then="relu")
        else:
            wide_TI = block.wide(attended_TD)
            active_TI = torch.nn.functional.gelu(wide_TI)
        output_TD, norm = _Normed.of(block.norm, block.narrow.plus(active_TI, attended_TD))
        return output_TD, _Made(attended, attended_norm, wide_TI, norm)

    def backward(self, made: _Made, by_output_TD: Tensor) -> tuple[Tensor, Tensor]:
        """Return the derivatives by the input, (T, D), and by the presence of each token, (T,)."""
        by_narrow_TD = made.norm.backward(by_output_TD)
        by_wide_TI = self._by_narrow(by_narrow_TD)
        if self._block.then == "relu":
            by_wide_TI = torch.ops.aten.threshold_backward(by_wide_TI, made.wide_TI, 0)
        else:
            by_wide_TI = torch.ops.aten.gelu_backward(by_wide_TI, made.wide_TI)
        by_attended_TD = made.attended_norm.backward(self._by_wide.plus(by_wide_TI, by_narrow_TD))
        by_projected_TX, by_presence_T = self._attend_backward(made.attended, self._by_attended(by_attended_TD))
        return self._by_projection.plus(by_projected_TX, by_attended_TD), by_presence_T

    def _attend(self, projected_TX: Tensor, cells: Cells, *, keeps: bool) -> tuple[Tensor, list[_Attended]]:
        context_TD, attended = projected_TX.new_empty(len(projected_TX), projected_TX.shape[1] // 3), []
        for rows, _, n_cells in of_one_length(cells, cells, self.n_heads):
            query_MLE, key_MLE, value_MLE = self._by_head(projected_TX[rows], n_cells, 3)
            kept, contexts = [], []
            for queries in _blocks_of(query_MLE):
                weight_MQL = _weights(query_MLE[:, queries], key_MLE)
                contexts.append(torch.bmm(weight_MQL, value_MLE))
                kept += [weight_MQL] if keeps else []
            context_MLE = contexts[0] if len(contexts) == 1 else torch.cat(contexts, 1)
            _put(context_MLE, context_TD[rows], n_cells)
            attended.append(_Attended(rows, n_cells, query_MLE, key_MLE, value_MLE, context_MLE, tuple(kept)))
        return context_TD, attended

    def _attend_backward(self, attended: Sequence[_Attended], by_context_TD: Tensor) -> tuple[Tensor, Tensor]:
        n_tokens, n_channels = by_context_TD.shape
        by_projected_TX = by_context_TD.new_empty(n_tokens, 3 * n_channels)
        by_presence_T = torch.empty(n_tokens)
        for of_cells in attended:
            [by_context_MLE] = self._by_head(by_context_TD[of_cells.rows], of_cells.n_cells, 1)
            *by_inputs, by_presence_ML = _attention_backward(of_cells, by_context_MLE)
            for part, by_input_MLE in zip(by_projected_TX.chunk(3, 1), by_inputs, strict=True):
                _put(by_input_MLE, part[of_cells.rows], of_cells.n_cells)
            by_presence_T[of_cells.rows] = by_presence_ML.unflatten(0, (of_cells.n_cells, -1)).sum(1).flatten()
        return by_projected_TX, by_presence_T

    def _by_head(self, rows_TX: Tensor, n_cells: int, n_parts: int) -> list[Tensor]:
        """Return the parts of rows of cells of one length, (M, L, E) each."""
        parts = rows_TX.unflatten(-1, (n_parts, self.n_heads, -1)).unflatten(0, (n_cells, -1)).unbind(2)
        return [part_NLHE.transpose(1, 2).flatten(0, 1).contiguous() for part_NLHE in parts]


def _put(values_MLE: Tensor, rows_TD: Tensor, n_cells: int) -> None:
    """Write what each head of cells of one length has where their tokens are."""
    values_NHLE = values_MLE.unflatten(0, (n_cells, -1))
    rows_TD.unflatten(-1, (values_NHLE.shape[1], -1)).unflatten(0, (n_cells, -1)).copy_(values_NHLE.transpose(1, 2))


def _blocks_of(query_MLE: Tensor) -> Iterator[slice]:
    """Yield queries whose scores are made at a time."""
    n_rows, n_queries, _ = query_MLE.shape
    at_once = max(SCORES // (n_rows * n_queries), 64)
    return (slice(first, min(first + at_once, n_queries)) for first in range(0, n_queries, at_once))


def _weights(query_MQE: Tensor, key_MLE: Tensor) -> Tensor:
    score_MQL = torch.bmm(query_MQE, key_MLE.transpose(1, 2))
    return torch.softmax(score_MQL, -1, out=score_MQL)


def _attention_backward(attended: _Attended, by_context_MLE: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the derivatives by queries, keys and values, (M, L, E), and by the presence of keys, (M, L)."""
    query_MLE, key_MLE = attended.query_MLE, attended.key_MLE
    by_query_MLE = torch.empty_like(query_MLE)
    by_key_MEL, by_value_MEL = (torch.zeros(key_MLE.transpose(1, 2).shape) for _ in range(2))
    by_presence_ML = torch.zeros(key_MLE.shape[:2])
    from_MLX, less_MLX = _less_the_mean(attended, by_context_MLE)
    for queries, weight_MQL in attended.blocks():
        by_context_MQE = by_context_MLE[:, queries]
        by_score_MQL = torch.bmm(from_MLX[:, queries], less_MLX.transpose(1, 2)).mul_(weight_MQL)
        by_presence_ML += by_score_MQL.sum(1, dtype=torch.float32)
        by_query_MLE[:, queries] = torch.bmm(by_score_MQL, key_MLE)
        _add_product(by_key_MEL, query_MLE[:, queries].transpose(1, 2), by_score_MQL)
        _add_product(by_value_MEL, by_context_MQE.transpose(1, 2), weight_MQL)
    return by_query_MLE, by_key_MEL.transpose(1, 2), by_value_MEL.transpose(1, 2), by_presence_ML


def _less_the_mean(attended: _Attended, by_context_MLE: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows whose product is the derivative by weights less each query's mean of it, (M, L, E + 2) each.

    The mean rides in two channels, as what half precision holds of it and the rest: of the difference nothing is lost.
    """
    mean_ML1 = (by_context_MLE.float() * attended.context_MLE).sum(-1, keepdim=True)
    most_ML1 = mean_ML1.to(by_context_MLE.dtype)
    rest_ML1 = (mean_ML1 - most_ML1).to(by_context_MLE.dtype)
    one_ML1 = torch.ones_like(most_ML1)
    return torch.cat([by_context_MLE, -most_ML1, -rest_ML1], -1), torch.cat([attended.value_MLE, one_ML1, one_ML1], -1)


def _add_product(total: Tensor, one: Tensor, other: Tensor) -> None:
    """Add the product of two tensors to float32."""
    if one.dtype == total.dtype:
        total.baddbmm_(one, other)
    else:
        total += torch.bmm(one, other)


def _with_scaled_queries(block: PreparedBlock) -> Layer:
    """Return the joined layer of queries, keys and values, with queries divided by the root of their channels."""
    layer = block.projection
    if block.scale == 1:
        return layer
    scale_X = torch.ones(len(layer.weight))
    scale_X[: len(scale_X) // 3] = block.scale
    return Layer(layer.weight * scale_X[:, None], None if layer.bias is None else layer.bias * scale_X)


def _transposed(layer: Layer) -> Layer:
    return Layer(layer.weight.T.contiguous(), None)
