"""Stock BERT's encoder in its parameters, ours in its forward: over the tokens of all cells laid end to end.

Stock BERT spends much of its time on padding. Here linear layers run over real tokens; only attention tells cells
apart, and the last block computes what is read of it.

Shapes: B cells, L positions, T real tokens of all cells, D hidden size, H heads, E = D / H.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertModel
from transformers.models.bert.modeling_bert import BertLayer

from geneformer_repro.attention import Cells, Dropout, attend
from geneformer_repro.errors import InputError

IGNORED = -100
"""Label of a position without a target."""


class Packed(NamedTuple):
    """Hidden states of the real tokens of a padded batch, end to end."""

    hidden_TD: Tensor
    real_BL: Tensor
    """Which positions hold a token."""

    def padded(self) -> Tensor:
        """Return hidden_BLD, zero where there is no token."""
        if self.real_BL.all():
            return self.hidden_TD.view(*self.real_BL.shape, -1)
        padded_BLD = self.hidden_TD.new_zeros(*self.real_BL.shape, self.hidden_TD.shape[-1])
        padded_BLD[self.real_BL] = self.hidden_TD
        return padded_BLD


class Block(BertLayer):
    """A stock block over tokens end to end.

    It is called as a whole, so that FSDP and gradient checkpointing find it; and calls its submodules, never their
    weights, so that adapters put on them work.
    """

    def forward(  # type: ignore[override]
        self,
        hidden_TD: Tensor,
        cells: Cells,
        read: "Read | None" = None,
        presence_T: Tensor | None = None,
        alike_T: Tensor | None = None,
    ) -> Tensor:
        """Return the block's output at all tokens, or at those that are read.

        With `alike_T`, `hidden_TD` has only the distinct rows, and it says which one each token has. `presence_T` is as
        of `run_gated`.
        """
        attention = self.attention.self
        asking_TD, asking = (hidden_TD, cells) if read is None else (hidden_TD[read.tokens], read.cells)
        query_THE, key_THE, value_THE = (
            project(tokens_TD).unflatten(-1, (attention.num_attention_heads, -1))
            for project, tokens_TD in (
                (attention.query, asking_TD),
                (attention.key, hidden_TD),
                (attention.value, hidden_TD),
            )
        )
        if alike_T is not None:
            query_THE, key_THE, value_THE, asking_TD = (
                one.index_select(0, alike_T) for one in (query_THE, key_THE, value_THE, asking_TD)
            )
        dropout = attention.dropout.p if self.training else 0.0
        if presence_T is None:
            context_THE = attend(query_THE, key_THE, value_THE, queries=asking, keys=cells, dropout=dropout)
        else:
            gated = _gated(query_THE, key_THE, value_THE, presence_T)
            context_THE = attend(*gated, queries=asking, keys=cells)[..., : value_THE.shape[-1]]
        attended_TD = self.attention.output(context_THE.flatten(-2), asking_TD)
        return self.output(self.intermediate(attended_TD), attended_TD)


class Read(NamedTuple):
    """The tokens whose last hidden state is asked for."""

    tokens: Tensor
    """Their places among all tokens, ascending."""
    cells: Cells
    """How many of them each cell has."""


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
    bert: BertModel, input_ids_BL: Tensor, attention_mask_BL: Tensor | None = None, *, n_blocks: int | None = None
) -> Packed:
    """Run the encoder of one of this module's models over the real tokens of a padded batch.

    Parameters
    ----------
    bert
        The encoder.
    input_ids_BL
        Token ids.
    attention_mask_BL
        1 where there is a token, 0 for padding; None for none.
    n_blocks
        Stop after this many blocks; default all.

    Returns
    -------
    Output of the last block that ran; the same as stock BERT's `hidden_states[n_blocks]` at the real positions.

    Raises
    ------
    InputError
        A cell is longer than the model has positions.
    """
    real_BL, positions_T, cells = layout(bert, input_ids_BL, attention_mask_BL)
    return Packed(run(bert, input_ids_BL[real_BL], positions_T, cells, n_blocks=n_blocks), real_BL)


def run_packed(
    bert: BertModel,
    input_ids_T: Tensor,
    lengths: Sequence[int],
    *,
    n_blocks: int | None = None,
    first_only: bool = False,
) -> Tensor:
    """Run the encoder over cells that lie end to end and have much in common: variants of one cell.

    The same token at the same position has one embedding, one query, key and value in the first block; they are
    computed once.

    Parameters
    ----------
    bert
        The encoder.
    input_ids_T
        Tokens of all cells.
    lengths
        Tokens of each cell.
    n_blocks
        Stop after this many blocks; default all.
    first_only
        Return only the first token's state of each cell (``<cls>``): the last block computes no others.

    Returns
    -------
    Hidden states, (T, D); with `first_only` (cells, D).

    Raises
    ------
    InputError
        A cell is longer than the model has positions.
    """
    require_positions(bert, max(lengths))
    cells = Cells(lengths)
    starts = torch.tensor(cells.starts[:-1], device=input_ids_T.device)
    positions_T = positions_of(lengths, input_ids_T.device)
    longest = max(lengths)
    pairs_U, alike_T = torch.unique(input_ids_T * longest + positions_T, return_inverse=True)
    hidden_UD = _embed(bert, pairs_U // longest, pairs_U % longest)
    first, *others = [*bert.encoder.layer][:n_blocks] or [None]
    if first is None:
        return hidden_UD[alike_T[starts] if first_only else alike_T]
    read = Read(starts, Cells([1] * len(cells))) if first_only else None
    if not others:
        return _through([first], hidden_UD[alike_T], cells, read)
    return _through(others, first(hidden_UD, cells, alike_T=alike_T), cells, read)


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
    embeddings = bert.embeddings
    types_T = torch.zeros_like(input_ids_T)
    embedded_TD = embeddings.word_embeddings(input_ids_T) + embeddings.token_type_embeddings(types_T)
    embedded_TD = (embedded_TD + embeddings.position_embeddings(positions_T)).requires_grad_()
    hidden_TD = embeddings.dropout(embeddings.LayerNorm(embedded_TD))
    return _through([*bert.encoder.layer][:n_blocks], hidden_TD, cells, presence_T=presence_T), embedded_TD


def positions_of(lengths: Sequence[int], device: torch.device) -> Tensor:
    """Return the position of each token in its cell."""
    return torch.from_numpy(np.concatenate([np.arange(length) for length in lengths])).to(device)


def layout(bert: BertModel, input_ids_BL: Tensor, attention_mask_BL: Tensor | None) -> tuple[Tensor, Tensor, Cells]:
    """Return where a padded batch has tokens, the position of each in its cell, and how many each cell has."""
    require_positions(bert, input_ids_BL.shape[1])
    real_BL = torch.ones_like(input_ids_BL, dtype=torch.bool) if attention_mask_BL is None else attention_mask_BL.bool()
    return real_BL, real_BL.nonzero()[:, 1], Cells([length for length in real_BL.sum(1).tolist() if length])


def require_positions(bert: BertModel, longest: int) -> None:
    """Raise unless the model has a position for every token of a cell of this length."""
    n_positions = bert.config.max_position_embeddings
    if longest > n_positions:
        raise InputError(
            f"A cell has {longest} tokens, the model has {n_positions} positions. Tokenise with "
            f"max_length={n_positions}."
        )


def run(
    bert: BertModel,
    input_ids_T: Tensor,
    position_ids_T: Tensor,
    cells: Cells,
    *,
    n_blocks: int | None = None,
    read: Read | None = None,
) -> Tensor:
    """Return the last hidden states of all tokens, or of those that are read: the last block computes no others."""
    return _through([*bert.encoder.layer][:n_blocks], _embed(bert, input_ids_T, position_ids_T), cells, read)


def _through(
    blocks: Sequence[Any], hidden_TD: Tensor, cells: Cells, read: Read | None = None, **options: Tensor
) -> Tensor:
    """Run blocks one after the other; the last one computes only what is read."""
    for block in blocks[:-1]:
        hidden_TD = block(hidden_TD, cells, **options)
    for block in blocks[-1:]:
        hidden_TD = block(hidden_TD, cells, read, **options)
    return hidden_TD


def _embed(bert: BertModel, input_ids_T: Tensor, position_ids_T: Tensor) -> Tensor:
    """Return the input of the first block."""
    hidden_1TD: Tensor = bert.embeddings(
        input_ids=input_ids_T[None],
        position_ids=position_ids_T[None],
        token_type_ids=torch.zeros_like(input_ids_T)[None],  # transformers 4 cannot make them longer than one cell
    )
    return hidden_1TD[0]


def masked(labels_T: Tensor, cells: Cells) -> Read:
    """Return the tokens that have a label."""
    masked_T = labels_T != IGNORED
    before_T = F.pad(masked_T.cumsum(0), (1, 0))
    n_before = before_T[torch.tensor(cells.starts, device=labels_T.device)]
    return Read(masked_T.nonzero()[:, 0], Cells(n_before.diff().tolist()))
