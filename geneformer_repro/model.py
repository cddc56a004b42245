"""The network that is pretrained, in its published sizes: stock BERT in its parameters, ours in its forward.

`transformers`' classes keep names, initialisation, loading and saving, so any stock BERT directory opens
here and ours open there. The forward is our own because stock BERT spends most of its time on what is
thrown away: padding, and 25,426 logits at every position where 15 % of the positions have a target (see
benchmarks/RESULTS.md). Linear layers run over the real tokens of a batch laid end to end; only attention
sees cells. The last block computes the masked positions alone, since nothing else is read.

Shapes: B cells, L positions, T real tokens of all cells, M masked ones, D hidden size, V tokens of the vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import BertConfig, BertForMaskedLM
from transformers.modeling_outputs import MaskedLMOutput

from geneformer_repro.attention import Cells
from geneformer_repro.cross_entropy import sum_of_cross_entropies_
from geneformer_repro.encoder import masked, require_positions, run_encoder, unpad
from geneformer_repro.errors import InputError
from geneformer_repro.sizes import SIZES, Size
from geneformer_repro.sizes import flops as flops  # of a network, for whoever trains or reads it
from geneformer_repro.tokenizer.vocabulary import Vocabulary

_CHUNK = 512
"""Masked positions whose logits the CPU computes at a time."""


def bert_config(size: Size, vocabulary: Vocabulary) -> BertConfig:
    """Return the published configuration of a model size, for a vocabulary.

    Parameters
    ----------
    size
        "V1-10M" (6 layers of 256), "V1-40M" (12 of 512), "V2-104M" (12 of 768), "V2-316M" (18 of 1,152), or
        "tiny" (3 of 64, no dropout), which trains on two CPU cores in a minute and is for demonstrations.
    vocabulary
        Gives the number of tokens, of positions and the padding token.
    """
    if size not in SIZES:
        raise InputError(f"There is no model size {size!r}. There are: {', '.join(map(repr, SIZES))}.")
    shape = SIZES[size]
    return BertConfig(
        vocab_size=vocabulary.size,
        max_position_embeddings=vocabulary.max_length,
        pad_token_id=vocabulary.pad_token,
        num_hidden_layers=shape.num_hidden_layers,
        hidden_size=shape.hidden_size,
        num_attention_heads=shape.num_attention_heads,
        intermediate_size=shape.intermediate_size,
        hidden_dropout_prob=shape.dropout,
        attention_probs_dropout_prob=shape.dropout,
        hidden_act="relu",
        layer_norm_eps=1e-12,
        initializer_range=0.02,
        type_vocab_size=2,
    )


class MaskedGeneModel(BertForMaskedLM):
    """Stock `BertForMaskedLM` whose loss computes logits at the masked positions only."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self._no_split_modules = ["Block"]  # what FSDP wraps
        unpad(self.bert)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        lengths: Sequence[int] | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> MaskedLMOutput:
        """Return the loss, or the logits of every position.

        Parameters
        ----------
        input_ids
            As of stock BERT, (B, L); or with `lengths` the tokens of all cells end to end, (T,).
        attention_mask
            1 for a token, 0 for padding, (B, L).
        labels
            The token to be found, or -100; shaped as `input_ids`.
        lengths
            Tokens of each cell, where there is no padding.
        num_items_in_batch
            What the sum of the losses is divided by; default the number of masked positions. Trainer gives that of the
            whole step, over all devices.

        Returns
        -------
        With `labels`, ``loss`` (mean cross-entropy in nats over the masked positions; 0 when there are none) and, in
        evaluation mode, ``logits`` at those positions, (masked, vocabulary). Without, ``logits`` at every position,
        those of padding 0.
        """
        real_BL = positions_T = None
        if lengths is None:
            require_positions(self.bert, input_ids.shape[1])
            real_BL = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
            positions_T, lengths = real_BL.nonzero()[:, 1], [length for length in real_BL.sum(1).tolist() if length]
            input_ids, labels = input_ids[real_BL], None if labels is None else labels[real_BL]
        if labels is None:
            logits_TV = self.cls(run_encoder(self.bert, input_ids, lengths, positions_T=positions_T))
            return MaskedLMOutput(logits=logits_TV if real_BL is None else _padded(logits_TV, real_BL))
        read = masked(labels, Cells(lengths))
        target_M = labels[read.tokens]
        hidden_MD = run_encoder(self.bert, input_ids, lengths, positions_T=positions_T, read=read)
        n_items = torch.as_tensor(len(target_M) if num_items_in_batch is None else num_items_in_batch).clamp(min=1)
        logits_MV = None
        if self.training:
            total = self._total_loss(hidden_MD, target_M)
        else:
            logits_MV = self.cls(hidden_MD)
            total = F.cross_entropy(logits_MV.float(), target_M, reduction="sum")
        return MaskedLMOutput(loss=total / n_items, logits=logits_MV)

    def _total_loss(self, hidden_MD: Tensor, target_M: Tensor) -> Tensor:
        """Sum of the cross-entropies; on the CPU by chunks whose logits stay near the cache, a quarter faster."""
        on_cpu = hidden_MD.device.type == "cpu"
        size = _CHUNK if on_cpu else max(1, len(target_M))
        losses = []
        for hidden, target in zip(hidden_MD.split(size), target_M.split(size), strict=True):
            logits = self.cls(hidden)
            if on_cpu and len(logits) and logits.dtype in (torch.float32, torch.bfloat16):
                losses.append(sum_of_cross_entropies_(logits, target))
            else:
                losses.append(F.cross_entropy(logits.float(), target, reduction="sum"))
        return torch.stack(losses).sum()


def _padded(logits_TV: Tensor, real_BL: Tensor) -> Tensor:
    """Return logits as stock BERT has them, (B, L, V); 0 where there is no token."""
    padded_BLV = logits_TV.new_zeros(*real_BL.shape, logits_TV.shape[-1])
    padded_BLV[real_BL] = logits_TV
    return padded_BLV
