"""Stock BERT's encoder in its parameters, ours in its forward: over the tokens of all cells laid end to end.

Stock BERT spends much of its time on padding. Here linear layers run over real tokens; only attention tells cells
apart, and the last block computes what is read of it.

Shapes: B cells, L positions, T real tokens of all cells, D hidden size, H heads, E = D / H.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertModel
from transformers.models.bert.modeling_bert import BertLayer

from geneformer_repro.attention import Attention, Cells, Dropout, attend, attend_shown
from geneformer_repro.errors import InputError

IGNORED = -100
"""Label of a position without a target."""
Watch = Callable[[int, Attention], object]
"""Looks at what the tokens of each block attend with, by the block's number from 0."""


class Read(NamedTuple):
    """The tokens whose last hidden state is asked for."""

    tokens: Tensor
    """Their places among all tokens, ascending."""
    cells: Cells
    """How many of them each cell has."""


class Block(BertLayer):
    """A stock block over tokens end to end.

    It is called as a whole, so that FSDP and gradient checkpointing find it; and calls its submodules, never their
    weights, so that adapters put on them work.
    """

    def forward(  # type: ignore[override]
        self,
        hidden_TD: Tensor,
        cells: Cells,
        read: Read | None = None,
        presence_T: Tensor | None = None,
        alike_T: Tensor | None = None,
        show: Callable[[Attention], object] | None = None,
        show_only: bool = False,
    ) -> Tensor:
        """Return the block's output at all tokens, or at those that are read.

        With `alike_T`, `hidden_TD` has only the distinct rows, and it says which one each token has. `presence_T` is as
        of `run_gated`. `show` is called with what all tokens attend with, and so not where a few are read; with
        `show_only` that is all, and the input is returned.
        """
        attention = self.attention.self
        asking_TD, asking = (hidden_TD, cells) if read is None else (hidden_TD[read.tokens], read.cells)
        projected = attention.query(asking_TD), attention.key(hidden_TD), attention.value(hidden_TD)
        by_head = (attention.num_attention_heads, -1)
        query_THE, key_THE, value_THE = (rows_TD.unflatten(-1, by_head) for rows_TD in projected)
        if alike_T is not None:
            query_THE, key_THE, value_THE, asking_TD = (
                rows.index_select(0, alike_T) for rows in (query_THE, key_THE, value_THE, asking_TD)
            )
        dropout = attention.dropout.p if self.training else 0.0
        if presence_T is not None:
            gated = _gated(query_THE, key_THE, value_THE, presence_T)
            context_THE = attend(*gated, queries=asking, keys=cells)[..., : value_THE.shape[-1]]
        elif show is not None:
            context_THE, attended = attend_shown(query_THE, key_THE, value_THE, cells)
            show(attended)
            if show_only:
                return hidden_TD
        else:
            context_THE = attend(query_THE, key_THE, value_THE, queries=asking, keys=cells, dropout=dropout)
        attended_TD = self.attention.output(context_THE.flatten(-2), asking_TD)
        return self.output(self.intermediate(attended_TD), attended_TD)


_ALIGNED = 8
"""Channels that kernels want the number of channels to be a multiple of."""


def _gated(query_THE: Tensor, key_THE: Tensor, value_THE: Tensor, presence_T: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return inputs whose attention is that of these with the weight of each key multiplied by its presence.

    Log presence rides in a channel of its own, where every query has a constant: any kernel does it, and its gradient.
    """
    n_channels = query_THE.shape[-1]
    wide = n_channels + _ALIGNED
    none_THX = query_THE.new_zeros(*query_THE.shape[:-1], _ALIGNED)
    constant_THX = none_THX.clone()
    constant_THX[..., 0] = wide**0.5
    log_TH1 = presence_T.log()[:, None, None].expand(*key_THE.shape[:-1], 1).to(key_THE.dtype)
    scaled_THE = query_THE * (wide / n_channels) ** 0.5  # attention divides by the root of all channels
    rest_THX = key_THE.new_zeros(*key_THE.shape[:-1], _ALIGNED - 1)
    keys_THE = torch.cat([key_THE, log_TH1, rest_THX], -1)
    values_THE = torch.cat([value_THE, value_THE.new_zeros(*rest_THX.shape[:-1], _ALIGNED)], -1)
    return torch.cat([scaled_THE, constant_THX], -1), keys_THE, values_THE


def unpad(bert: BertModel) -> None:
    """Let a stock encoder's blocks run over tokens end to end, with this package's dropout."""
    for block in bert.encoder.layer:
        block.__class__ = Block
    for module in bert.modules():
        if type(module) is nn.Dropout:
            module.__class__ = Dropout


def run_encoder(
    bert: BertModel,
    input_ids_T: Tensor,
    lengths: Sequence[int],
    *,
    positions_T: Tensor | None = None,
    rows_TD: Tensor | None = None,
    n_blocks: int | None = None,
    read: Read | None = None,
    alike: bool = False,
    watch: Watch | None = None,
    watch_only: bool = False,
) -> Tensor:
    """Run the encoder of one of this package's models over the tokens of all cells.

    Parameters
    ----------
    bert
        The encoder.
    input_ids_T
        Tokens of all cells, end to end.
    lengths
        Tokens of each cell.
    positions_T
        Position of each token, where cells do not begin at 0, or lack tokens and the others keep their places.
    rows_TD
        What stands instead of the rows that tokens have in the table of word embeddings; not with `alike`.
    n_blocks
        Stop after this many blocks; default all.
    read
        Tokens whose states are asked for, which are all that the last block computes; default all.
    alike
        Cells have much in common, as variants of one have: the same token at the same position has one embedding, one
        query, key and value in the first block; they are computed once.
    watch
        Called with the number of each block and what its tokens attend with; not with `read`.
    watch_only
        Nothing else is wanted: the last block ends there, and what is returned means nothing.

    Returns
    -------
    Output of the last block that ran, (T, D), or at the tokens that are read; the same as stock BERT's
    ``hidden_states[n_blocks]``.

    Raises
    ------
    InputError
        A cell is longer than the model has positions.
    """
    assert watch is None or read is None, "an observer sees all tokens"
    assert rows_TD is None or not alike, "tokens of one id have unlike rows"
    longest = max(lengths, default=0) if positions_T is None or not alike else int(positions_T.max()) + 1
    require_positions(bert, longest)
    cells = Cells(lengths)
    positions_T = positions_of(lengths, input_ids_T.device) if positions_T is None else positions_T
    blocks = [*bert.encoder.layer][:n_blocks]
    alike_T = None
    if alike:
        pairs_U, alike_T = torch.unique(input_ids_T * longest + positions_T, return_inverse=True)
        input_ids_T, positions_T = pairs_U // longest, pairs_U % longest
    hidden_TD = embedded(bert, input_ids_T, positions_T, rows_TD)
    if alike_T is not None and (not blocks or (read is not None and len(blocks) == 1)):
        hidden_TD, alike_T = hidden_TD[alike_T], None
    for i, block in enumerate(blocks):
        hidden_TD = block(
            hidden_TD,
            cells,
            read if i == len(blocks) - 1 else None,
            alike_T=alike_T if i == 0 else None,
            show=None if watch is None else partial(watch, i),
            show_only=watch_only and i == len(blocks) - 1,
        )
    return hidden_TD if blocks or read is None else hidden_TD[read.tokens]


def first_tokens(lengths: Sequence[int], device: torch.device) -> Read:
    """Return the first token of each cell, where ``<cls>`` stands, to be read alone."""
    return Read(torch.tensor(Cells(lengths).starts[:-1], device=device), Cells([1] * len(lengths)))


def run_gated(
    bert: BertModel, input_ids_T: Tensor, lengths: Sequence[int], presence_T: Tensor, *, n_blocks: int | None = None
) -> tuple[Tensor, Tensor]:
    """Run the encoder over cells end to end, each token present to a degree; for derivatives.

    Parameters
    ----------
    bert
        The encoder.
    input_ids_T
        Tokens of all cells.
    lengths
        Tokens of each cell.
    presence_T
        Weight of each token as a key: the attention it gets is multiplied by it, before attention is made to sum to 1.
        1 is the ordinary model; towards 0 other tokens no longer see it.
    n_blocks
        Stop after this many blocks; default all.

    Returns
    -------
    Hidden states, (T, D), and the sum of the embeddings of which they were made, before the first norm, (T, D).
    """
    require_positions(bert, max(lengths))
    cells, positions_T = Cells(lengths), positions_of(lengths, input_ids_T.device)
    embedded_TD = summed_embeddings(bert, input_ids_T, positions_T).requires_grad_()
    hidden_TD = bert.embeddings.dropout(bert.embeddings.LayerNorm(embedded_TD))
    for block in [*bert.encoder.layer][:n_blocks]:
        hidden_TD = block(hidden_TD, cells, presence_T=presence_T)
    return hidden_TD, embedded_TD


def positions_of(lengths: Sequence[int], device: torch.device) -> Tensor:
    """Return the position of each token in its cell."""
    return torch.from_numpy(np.concatenate([np.arange(length) for length in lengths])).to(device)


def require_positions(bert: BertModel, longest: int) -> None:
    """Raise unless the model has a position for every token of a cell of this length."""
    n_positions = bert.config.max_position_embeddings
    if longest > n_positions:
        raise InputError(
            f"A cell has {longest} tokens, the model has {n_positions} positions. Tokenise with "
            f"max_length={n_positions}."
        )


def embedded(bert: BertModel, input_ids_T: Tensor, position_ids_T: Tensor, rows_TD: Tensor | None) -> Tensor:
    """Return the input of the first block, (T, D); tokens need not be of one cell."""
    words = {"input_ids": input_ids_T[None]} if rows_TD is None else {"inputs_embeds": rows_TD[None]}
    hidden_1TD: Tensor = bert.embeddings(
        **words,
        position_ids=position_ids_T[None],
        token_type_ids=torch.zeros_like(input_ids_T)[None],  # transformers 4 cannot make them longer than one cell
    )
    return hidden_1TD[0]


def summed_embeddings(bert: BertModel, input_ids_T: Tensor, positions_T: Tensor) -> Tensor:
    """Return the sum of each token's embeddings, before the first norm, (T, D)."""
    embeddings, types_T = bert.embeddings, torch.zeros_like(input_ids_T)
    embedded_TD = embeddings.word_embeddings(input_ids_T) + embeddings.token_type_embeddings(types_T)
    return embedded_TD + embeddings.position_embeddings(positions_T)


def masked(labels_T: Tensor, cells: Cells) -> Read:
    """Return the tokens that have a label."""
    masked_T = labels_T != IGNORED
    before_T = F.pad(masked_T.cumsum(0), (1, 0))
    n_before = before_T[torch.tensor(cells.starts, device=labels_T.device)]
    return Read(masked_T.nonzero()[:, 0], Cells(n_before.diff().tolist()))
