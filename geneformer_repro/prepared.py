"""A network that is only read, on a CPU: weights are cast and joined once, and layers are oneDNN's.

Stock layers are one call for each of queries, keys and values, cast their weights anew at every call where half
precision is asked for, and add, rectify and norm in passes of their own. Here queries, keys and values are one
product; the feed-forward layer's activation and, in single precision, the residual are part of theirs. oneDNN's
products are 10 to 20 % faster than those that torch takes in single precision on AMD's Zen 4, and as fast in half.

In bfloat16 the inputs of products are halved, the residual stream and its norms stay in single precision. Attention
then goes cell by cell through two products and a softmax, whose scores are halved too: 1.5 to 1.7 times as fast as
torch's kernel, which computes as slowly as in single precision where a CPU has no matrix unit (AMX).

Only networks whose layers are plain are prepared: adapters and quantised layers are called as they are.

Shapes: T tokens of all cells, L of one, D hidden size, H heads, E channels of a head.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertModel
from transformers.activations import GELUActivation
from transformers.models.bert.modeling_bert import BertLayer

from geneformer_repro.attention import Cells, attend
from geneformer_repro.encoder import Read, embedded, positions_of, require_positions
from geneformer_repro.left_out import Cell

SCORES = 2**21
"""Scores that are held at a time, over heads and cells."""


class LeftOut(NamedTuple):
    """Cells of a batch that are one cell, each without one of its tokens."""

    first: int
    """Number of the first of them in the batch."""
    cell: Cell
    places: np.ndarray
    """Of the token that each lacks."""


class Layer(NamedTuple):
    """A linear layer."""

    weight: Tensor
    bias: Tensor | None

    @classmethod
    def of(cls, *layers: nn.Linear, dtype: torch.dtype, scale: float = 1.0) -> "Layer":
        """Join layers of one input; the first is scaled."""
        scales = [scale, *[1.0] * (len(layers) - 1)]
        weight = torch.cat([layer.weight.detach() * by for layer, by in zip(layers, scales, strict=True)])
        biases = [layer.bias.detach() * by for layer, by in zip(layers, scales, strict=True)]
        return cls(weight.to(dtype), torch.cat(biases).to(dtype))

    def part(self, rows: slice) -> "Layer":
        """Return the layer with some of its outputs."""
        return Layer(self.weight[rows], None if self.bias is None else self.bias[rows])

    def __call__(self, input_TD: Tensor, *, then: str = "none") -> Tensor:
        """Return the product, through an activation as oneDNN calls it."""
        if not len(input_TD):
            return input_TD.new_zeros(0, len(self.weight))
        algorithm = "none" if then == "gelu" else ""
        product: Tensor = torch.ops.mkldnn._linear_pointwise(
            input_TD.to(self.weight.dtype), self.weight, self.bias, then, [], algorithm
        )
        return product

    def plus(self, input_TD: Tensor, other_TD: Tensor) -> Tensor:
        """Return the product added to other rows, in their precision."""
        if self.weight.dtype != other_TD.dtype or not len(input_TD):
            return other_TD + self(input_TD)
        total: Tensor = torch.ops.mkldnn._linear_pointwise.binary(input_TD, other_TD, self.weight, self.bias, "add")
        return total


class Norm(NamedTuple):
    """A norm of each row."""

    weight: Tensor
    bias: Tensor
    eps: float

    @classmethod
    def of(cls, norm: nn.LayerNorm) -> "Norm":
        """Take what a layer norm holds."""
        return cls(norm.weight.detach(), norm.bias.detach(), norm.eps)

    def __call__(self, input_TD: Tensor) -> Tensor:
        """Return the rows with mean 0 and spread 1, stretched and moved."""
        return F.layer_norm(input_TD, self.weight.shape, self.weight, self.bias, self.eps)


class PreparedBlock:
    """A block of the encoder."""

    def __init__(self, block: BertLayer, dtype: torch.dtype) -> None:
        attention = block.attention.self
        self.n_heads, self._width = attention.num_attention_heads, attention.all_head_size
        layers = attention.query, attention.key, attention.value
        self.dtype, scale = dtype, 1 / math.sqrt(self._width // self.n_heads)
        self.scale = 1.0 if dtype == torch.bfloat16 else scale
        """By what queries are still to be multiplied."""
        self.projection = Layer.of(*layers, dtype=dtype, scale=scale / self.scale)
        self.attended = Layer.of(block.attention.output.dense, dtype=dtype)
        self.attended_norm = Norm.of(block.attention.output.LayerNorm)
        self.wide = Layer.of(block.intermediate.dense, dtype=dtype)
        self.then = _fused(block.intermediate.intermediate_act_fn)
        """Activation of the wide layer."""
        self.narrow = Layer.of(block.output.dense, dtype=dtype)
        self.norm = Norm.of(block.output.LayerNorm)

    def projected(self, hidden_TD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries (scaled, in bfloat16), keys and values, (T, H, E)."""
        query_THE, key_THE, value_THE = self.projection(hidden_TD).unflatten(-1, (3, self.n_heads, -1)).unbind(1)
        return query_THE, key_THE, value_THE

    def scaled(self, hidden_TD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the same in single precision, queries scaled."""
        query_THE, key_THE, value_THE = (rows.float() for rows in self.projected(hidden_TD))
        return query_THE * self.scale, key_THE, value_THE

    def __call__(self, hidden_TD: Tensor, cells: Cells, read: Read | None = None) -> Tensor:
        """Return the output at all tokens, or at those that are read."""
        if read is None:
            return self.after(attended(*self.projected(hidden_TD), cells, cells), hidden_TD)
        asking_TD = hidden_TD[read.tokens]
        query = self.projection.part(slice(self._width))(asking_TD).unflatten(-1, (self.n_heads, -1))
        rest = self.projection.part(slice(self._width, None))(hidden_TD)
        key, value = rest.unflatten(-1, (2, self.n_heads, -1)).unbind(1)
        return self.after(attended(query, key, value, read.cells, cells), asking_TD)

    def after(self, context_THE: Tensor, asking_TD: Tensor) -> Tensor:
        """Return the output of tokens whose attention is known."""
        attended_TD = self.attended_norm(self.attended.plus(context_THE.flatten(-2), asking_TD))
        return self.norm(self.narrow.plus(self.wide(attended_TD, then=self.then), attended_TD))


class Prepared:
    """A network that is only read.

    Parameters
    ----------
    bert
        The encoder, as `can_be_prepared` wants it; later changes of its weights are not seen.
    n_blocks
        Blocks that run.
    dtype
        What products are computed in.
    """

    def __init__(self, bert: BertModel, n_blocks: int, dtype: torch.dtype) -> None:
        self.bert = bert
        self.blocks = [PreparedBlock(block, dtype) for block in [*bert.encoder.layer][:n_blocks]]

    def __call__(
        self,
        input_ids_T: Tensor,
        lengths: Sequence[int],
        *,
        positions_T: Tensor | None = None,
        rows_TD: Tensor | None = None,
        read: Read | None = None,
        alike: bool = False,
        left_out: Sequence[LeftOut] = (),
    ) -> Tensor:
        """Return what `run_encoder` returns, in float32.

        Parameters
        ----------
        input_ids_T, lengths, positions_T, rows_TD, read, alike
            As of `run_encoder`.
        left_out
            What is known of cells that lack one token of another, with `alike`: first to last.
        """
        longest = max(lengths, default=0) if positions_T is None or not alike else int(positions_T.max()) + 1
        require_positions(self.bert, longest)
        cells = Cells(lengths)
        positions_T = positions_of(lengths, input_ids_T.device) if positions_T is None else positions_T
        alike = alike and len(self.blocks) > (read is not None)
        if not alike:
            hidden_TD, blocks = embedded(self.bert, input_ids_T, positions_T, rows_TD), self.blocks
        else:
            pairs_U, alike_T = torch.unique(input_ids_T * longest + positions_T, return_inverse=True)
            hidden_UD = embedded(self.bert, pairs_U // longest, pairs_U % longest, None)
            context_THE = self._first_contexts(hidden_UD, alike_T, cells, left_out)
            hidden_TD = self.blocks[0].after(context_THE, hidden_UD.index_select(0, alike_T))
            blocks = self.blocks[1:]
        for i, block in enumerate(blocks):
            hidden_TD = block(hidden_TD, cells, read if i == len(blocks) - 1 else None)
        return hidden_TD if blocks or read is None else hidden_TD[read.tokens]

    def _first_contexts(self, hidden_UD: Tensor, alike_T: Tensor, cells: Cells, left_out: Sequence[LeftOut]) -> Tensor:
        """Return what the first block's attention gives all tokens, whose distinct inputs are given."""
        contexts, done, projected = [], 0, None
        for some in [*left_out, None]:
            until = len(cells) if some is None else some.first
            if until > done:
                projected = self.blocks[0].projected(hidden_UD) if projected is None else projected
                rows, others = slice(cells.starts[done], cells.starts[until]), Cells(cells.lengths[done:until])
                query_THE, key_THE, value_THE = (of_all.index_select(0, alike_T[rows]) for of_all in projected)
                contexts.append(attended(query_THE, key_THE, value_THE, others, others))
            if some is not None:
                contexts.append(some.cell.contexts(some.places, self._project).to(self.blocks[0].dtype))
                done = until + len(some.places)
        return torch.cat(contexts) if len(contexts) != 1 else contexts[0]

    def _project(self, cell: Cell) -> tuple[Tensor, ...]:
        ids_R, positions_R = torch.from_numpy(cell.ids_R), torch.from_numpy(cell.positions_R)
        return self.blocks[0].scaled(embedded(self.bert, ids_R, positions_R, None))


def can_be_prepared(bert: BertModel, device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether a network's layers are plain, on a CPU whose oneDNN has the data type."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    blocks: list[Any] = [*bert.encoder.layer]
    return all(
        type(layer) is nn.Linear and layer.bias is not None and layer.weight.dtype == torch.float32
        for block in blocks
        for layer in _layers(block)
    ) and all(_fused(block.intermediate.intermediate_act_fn) for block in blocks)


def _layers(block: Any) -> list[nn.Module]:
    attention = block.attention
    return [
        *(attention.self.query, attention.self.key, attention.self.value, attention.output.dense),
        *(block.intermediate.dense, block.output.dense),
    ]


def _fused(activation: Any) -> str:
    """Return what oneDNN calls an activation; nothing of one it does not have."""
    if isinstance(activation, nn.ReLU):
        return "relu"
    is_gelu = isinstance(activation, GELUActivation | nn.GELU)
    return "gelu" if is_gelu and getattr(activation, "approximate", "none") == "none" else ""


def attended(query_THE: Tensor, key_THE: Tensor, value_THE: Tensor, queries: Cells, keys: Cells) -> Tensor:
    """Return softmax attention as `attend` does, on a CPU; queries in bfloat16 are scaled already."""
    if query_THE.dtype != torch.bfloat16:
        return attend(query_THE, key_THE, value_THE, queries=queries, keys=keys)
    context_THE = torch.empty_like(query_THE)
    for asked, seen, n_cells in of_one_length(queries, keys, query_THE.shape[1]):
        apart = (n_cells, -1)
        context_THE[asked] = _by_products(
            query_THE[asked].unflatten(0, apart), key_THE[seen].unflatten(0, apart), value_THE[seen].unflatten(0, apart)
        ).flatten(0, 1)
    return context_THE


def of_one_length(queries: Cells, keys: Cells, n_heads: int) -> Iterator[tuple[slice, slice, int]]:
    """Yield where queries and keys of neighbouring cells of one length lie, and how many cells; `SCORES` at a time."""
    first = 0
    while first < len(keys):
        n_asked, n_seen = queries.lengths[first], keys.lengths[first]
        most = max(SCORES // max(n_heads * n_asked * n_seen, 1), 1)
        last = first + 1
        while last < min(len(keys), first + most) and (queries.lengths[last], keys.lengths[last]) == (n_asked, n_seen):
            last += 1
        asked, seen = (slice(cells.starts[first], cells.starts[last]) for cells in (queries, keys))
        if n_asked:
            yield asked, seen, last - first
        first = last


def _by_products(query_NLHE: Tensor, key_NKHE: Tensor, value_NKHE: Tensor) -> Tensor:
    """Return attention of cells of one length by two products and a softmax, some queries at a time."""
    n_cells, n_queries, n_heads, _ = query_NLHE.shape
    query_MLE, key_MKE, value_MKE = (
        of_cells.transpose(1, 2).flatten(0, 1).contiguous() for of_cells in (query_NLHE, key_NKHE, value_NKHE)
    )
    at_once = max(SCORES // (n_cells * n_heads * key_MKE.shape[1]), 64)
    contexts = []
    for first in range(0, n_queries, at_once):
        score_MQK = torch.bmm(query_MLE[:, first : first + at_once], key_MKE.transpose(1, 2))
        contexts.append(torch.bmm(torch.softmax(score_MQK, -1, out=score_MQK), value_MKE))
    context_MLE = torch.cat(contexts, 1) if len(contexts) != 1 else contexts[0]
    return context_MLE.unflatten(0, (n_cells, n_heads)).transpose(1, 2)
