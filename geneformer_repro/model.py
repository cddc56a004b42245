"""The networks: stock BERT in their parameters, ours in their forward.

`transformers`' classes keep names, initialisation, loading and saving, so any stock BERT directory opens
here and ours open there. The forward is our own because stock BERT spends most of its time on what is
thrown away: padding, and 25,426 logits at every position where 15 % of the positions have a target (see
benchmarks/RESULTS.md). Linear layers run over the real tokens of a batch laid end to end; only attention
sees cells. The last block computes the masked positions alone, since nothing else is read.

Shapes: B cells, L positions, T real tokens of all cells, M masked ones, D hidden size, H heads, E = D / H,
V tokens of the vocabulary.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertForMaskedLM, BertModel, BertPreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput, SequenceClassifierOutput, TokenClassifierOutput
from transformers.models.bert.modeling_bert import BertLayer

from geneformer_repro.attention import Cells, Dropout, attend
from geneformer_repro.errors import InputError
from geneformer_repro.tokenizer.vocabulary import Vocabulary

IGNORED = -100
"""Label of a position without a target."""
_CHUNK = 512
"""Masked positions whose logits the CPU computes at a time."""
Size = Literal["tiny", "V1-10M", "V1-40M", "V2-104M", "V2-316M"]
Pooling = Literal["mean", "cls"]
HeadPooling = Literal["mean", "cls", "attention", "pooler"]


class _Shape(NamedTuple):
    layers: int
    hidden: int
    heads: int
    feed_forward: int
    dropout: float


_SIZES: Mapping[str, _Shape] = {
    "tiny": _Shape(3, 64, 2, 128, 0.0),
    "V1-10M": _Shape(6, 256, 4, 512, 0.02),
    "V1-40M": _Shape(12, 512, 8, 1024, 0.02),
    "V2-104M": _Shape(12, 768, 12, 3072, 0.1),
    "V2-316M": _Shape(18, 1152, 18, 4608, 0.1),
}
assert set(_SIZES) == set(get_args(Size))


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
    if size not in _SIZES:
        raise InputError(f"There is no model size {size!r}. There are: {', '.join(map(repr, _SIZES))}.")
    shape = _SIZES[size]
    return BertConfig(
        vocab_size=vocabulary.size,
        max_position_embeddings=vocabulary.max_length,
        pad_token_id=vocabulary.pad_token,
        num_hidden_layers=shape.layers,
        hidden_size=shape.hidden,
        num_attention_heads=shape.heads,
        intermediate_size=shape.feed_forward,
        hidden_dropout_prob=shape.dropout,
        attention_probs_dropout_prob=shape.dropout,
        hidden_act="relu",
        layer_norm_eps=1e-12,
        initializer_range=0.02,
        type_vocab_size=2,
    )


def flops(config: BertConfig, lengths: np.ndarray, *, read: float = 1.0, n_outputs: int = 0) -> float:
    """Count the floating-point operations of a forward pass: matrix products and attention, two for each product.

    Parameters
    ----------
    config
        Shape of the network.
    lengths
        Tokens of each cell.
    read
        Share of the positions that the last block and the head compute.
    n_outputs
        Width of the head at each position that is read; 0 for none.
    """
    hidden, lengths = config.hidden_size, np.asarray(lengths, dtype=np.float64)
    n_tokens, n_pairs = lengths.sum(), (lengths**2).sum()
    key_value = 4 * hidden**2 * n_tokens
    at_query = (4 * hidden**2 + 4 * hidden * config.intermediate_size) * n_tokens + 4 * hidden * n_pairs
    head = 2 * hidden * (hidden + n_outputs) * n_tokens * read if n_outputs else 0
    return float(config.num_hidden_layers * key_value + (config.num_hidden_layers - 1 + read) * at_query + head)


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
        read: "_Read | None" = None,
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


class _Read(NamedTuple):
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


def _unpad(bert: BertModel) -> None:
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
    real_BL, positions_T, cells = _layout(bert, input_ids_BL, attention_mask_BL)
    return Packed(_run(bert, input_ids_BL[real_BL], positions_T, cells, n_blocks=n_blocks), real_BL)


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
    _require_positions(bert, max(lengths))
    cells = Cells(lengths)
    starts = torch.tensor(cells.starts[:-1], device=input_ids_T.device)
    positions_T = _positions(lengths, input_ids_T.device)
    longest = max(lengths)
    pairs_U, alike_T = torch.unique(input_ids_T * longest + positions_T, return_inverse=True)
    hidden_UD = _embed(bert, pairs_U // longest, pairs_U % longest)
    first, *others = [*bert.encoder.layer][:n_blocks] or [None]
    if first is None:
        return hidden_UD[alike_T[starts] if first_only else alike_T]
    read = _Read(starts, Cells([1] * len(cells))) if first_only else None
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
    _require_positions(bert, max(lengths))
    cells, positions_T = Cells(lengths), _positions(lengths, input_ids_T.device)
    embeddings = bert.embeddings
    types_T = torch.zeros_like(input_ids_T)
    embedded_TD = embeddings.word_embeddings(input_ids_T) + embeddings.token_type_embeddings(types_T)
    embedded_TD = (embedded_TD + embeddings.position_embeddings(positions_T)).requires_grad_()
    hidden_TD = embeddings.dropout(embeddings.LayerNorm(embedded_TD))
    return _through([*bert.encoder.layer][:n_blocks], hidden_TD, cells, presence_T=presence_T), embedded_TD


def _positions(lengths: Sequence[int], device: torch.device) -> Tensor:
    """Return the position of each token in its cell."""
    return torch.from_numpy(np.concatenate([np.arange(length) for length in lengths])).to(device)


def _layout(bert: BertModel, input_ids_BL: Tensor, attention_mask_BL: Tensor | None) -> tuple[Tensor, Tensor, Cells]:
    """Return where a padded batch has tokens, the position of each in its cell, and how many each cell has."""
    _require_positions(bert, input_ids_BL.shape[1])
    real_BL = torch.ones_like(input_ids_BL, dtype=torch.bool) if attention_mask_BL is None else attention_mask_BL.bool()
    return real_BL, real_BL.nonzero()[:, 1], Cells([length for length in real_BL.sum(1).tolist() if length])


def _require_positions(bert: BertModel, longest: int) -> None:
    n_positions = bert.config.max_position_embeddings
    if longest > n_positions:
        raise InputError(
            f"A cell has {longest} tokens, the model has {n_positions} positions. Tokenise with "
            f"max_length={n_positions}."
        )


def _run(
    bert: BertModel,
    input_ids_T: Tensor,
    position_ids_T: Tensor,
    cells: Cells,
    *,
    n_blocks: int | None = None,
    read: _Read | None = None,
) -> Tensor:
    """Return the last hidden states of all tokens, or of those that are read: the last block computes no others."""
    return _through([*bert.encoder.layer][:n_blocks], _embed(bert, input_ids_T, position_ids_T), cells, read)


def _through(
    blocks: Sequence[Any], hidden_TD: Tensor, cells: Cells, read: _Read | None = None, **options: Tensor
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


class MaskedGeneModel(BertForMaskedLM):
    """Stock `BertForMaskedLM` whose loss computes logits at the masked positions only."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self._no_split_modules = ["Block"]  # what FSDP wraps
        _unpad(self.bert)

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
        if labels is None and lengths is None:
            packed = run_encoder(self.bert, input_ids, attention_mask)
            return MaskedLMOutput(logits=Packed(self.cls(packed.hidden_TD), packed.real_BL).padded())
        if lengths is not None:
            _require_positions(self.bert, max(lengths))
            cells = Cells(lengths)
            positions_T = _positions(lengths, input_ids.device)
        else:
            assert labels is not None
            real_BL, positions_T, cells = _layout(self.bert, input_ids, attention_mask)
            input_ids, labels = input_ids[real_BL], labels[real_BL]
        if labels is None:
            return MaskedLMOutput(logits=self.cls(_run(self.bert, input_ids, positions_T, cells)))
        read = _masked(labels, cells)
        target_M = labels[read.tokens]
        hidden_MD = _run(self.bert, input_ids, positions_T, cells, read=read)
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
        size = _CHUNK if hidden_MD.device.type == "cpu" else max(1, len(target_M))
        losses = [
            F.cross_entropy(self.cls(hidden).float(), target, reduction="sum")
            for hidden, target in zip(hidden_MD.split(size), target_M.split(size), strict=True)
        ]
        return torch.stack(losses).sum()


def _masked(labels_T: Tensor, cells: Cells) -> _Read:
    """Return the tokens that have a label."""
    masked_T = labels_T != IGNORED
    before_T = F.pad(masked_T.cumsum(0), (1, 0))
    n_before = before_T[torch.tensor(cells.starts, device=labels_T.device)]
    return _Read(masked_T.nonzero()[:, 0], Cells(n_before.diff().tolist()))


@dataclass(frozen=True)
class Target:
    """One thing that a head predicts: a class, or a number."""

    name: str
    """The obs column that was learned; for genes, what the classes are called together."""
    classes: tuple[str, ...] = ()
    """Name of each output, in order; none for a number."""
    mean: float = 0.0
    """Of a number in the training cells; the network's output is (number - mean) / sd."""
    sd: float = 1.0
    """Of a number in the training cells."""

    def __post_init__(self) -> None:
        for name in (self.name, *self.classes):
            if not isinstance(name, str) or not name:
                raise InputError(f"Targets and classes have names, found {name!r} in target {self.name!r}.")
        if len(self.classes) == 1 or len(set(self.classes)) < len(self.classes):
            raise InputError(f"Target {self.name!r} needs at least two different classes, found {list(self.classes)}.")
        if not (np.isfinite(self.mean) and np.isfinite(self.sd) and self.sd > 0):
            raise InputError(
                f"Target {self.name!r} has mean {self.mean} and sd {self.sd}; expected numbers, sd above 0."
            )

    @property
    def n_outputs(self) -> int:
        """Outputs of the network for this target."""
        return len(self.classes) or 1


@dataclass(frozen=True)
class Head:
    """What a classifier's outputs mean; ``head.json``."""

    targets: tuple[Target, ...]
    """What is predicted; the outputs of the network lie side by side in this order."""
    pooling: HeadPooling = "mean"
    """How a cell's vector is made of its tokens' last hidden states; without meaning for genes. "pooler" is that of
    stock BERT, and so of published cell classifiers: the first token's, through a dense layer and tanh."""
    level: Literal["cell", "gene"] = "cell"
    """Whether cells or the genes in them are classified."""

    def __post_init__(self) -> None:
        if self.pooling not in get_args(HeadPooling) or self.level not in ("cell", "gene"):
            raise InputError(
                f"A head pools by {', '.join(map(repr, get_args(HeadPooling)))}, at level 'cell' or 'gene'; found "
                f"{self.pooling!r} and {self.level!r}."
            )
        names = [target.name for target in self.targets]
        if not names or len(set(names)) < len(names):
            raise InputError(f"A head needs targets of different names, found {names}.")
        if self.level == "gene" and not (len(names) == 1 and self.targets[0].classes):
            raise InputError(f"A head of genes has one target, with classes; found {names}.")

    @property
    def first_only(self) -> bool:
        """Whether the first token's hidden state is all that is read of a cell."""
        return self.pooling in ("cls", "pooler")

    @property
    def output_names(self) -> list[str]:
        """What each output of the network stands for: a class, or a number's target; of several targets both."""
        several = len(self.targets) > 1
        return [
            f"{target.name}: {name}" if several and target.classes else name
            for target in self.targets
            for name in target.classes or (target.name,)
        ]

    @property
    def n_outputs(self) -> int:
        """Outputs of the network for all targets."""
        return sum(target.n_outputs for target in self.targets)

    def split(self, outputs: Tensor) -> tuple[Tensor, ...]:
        """Cut outputs (…, all) into those of each target."""
        return outputs.split([target.n_outputs for target in self.targets], dim=-1)


class _HeadedModel(BertPreTrainedModel):
    """An encoder with one linear layer for all targets, named as in stock BERT."""

    def __init__(self, config: BertConfig, head: Head) -> None:
        config = copy.deepcopy(config)
        config.id2label = dict(enumerate(head.output_names))  # which sets num_labels too
        config.label2id = {name: i for i, name in config.id2label.items()}
        super().__init__(config)
        self.head = head
        self.bert = BertModel(config, add_pooling_layer=head.pooling == "pooler")
        _unpad(self.bert)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, head.n_outputs)
        if head.pooling == "attention":
            self.attention_pool = nn.Linear(config.hidden_size, 1, bias=False)
        self.weigh()
        self.post_init()
        self._no_split_modules = ["Block"]  # what FSDP wraps

    def weigh(
        self,
        targets: Sequence[float] | None = None,
        classes: Sequence[Sequence[float] | None] | None = None,
        *,
        smoothing: float = 0.0,
    ) -> None:
        """Set how much each target's loss counts, and each class in it; by default all the same. Not saved.

        Parameters
        ----------
        targets
            A factor for each target.
        classes
            A factor for each class of each target; None for a target whose classes count the same, or a number.
        smoothing
            Share of a label that is spread evenly over all classes (label smoothing), 0 to 1; numbers have none.
        """
        n = len(self.head.targets)
        self._smoothing = smoothing
        self._target_weights = tuple(targets or [1.0] * n)
        self._class_weights = tuple(None if one is None else torch.tensor(one) for one in classes or [None] * n)

    def sum_of_losses(self, outputs_NK: Tensor, labels_NS: Tensor) -> Tensor:
        """Sum over cells (or genes) and targets; a missing label (NaN, or -100) adds nothing."""
        total = outputs_NK.new_zeros((), dtype=torch.float32)
        for target, outputs, labels_N, weight, class_weight in zip(
            self.head.targets,
            self.head.split(outputs_NK.float()),
            labels_NS.unbind(-1),
            self._target_weights,
            self._class_weights,
            strict=True,
        ):
            known = ~labels_N.isnan() & (labels_N != IGNORED) if target.classes else ~labels_N.isnan()
            found, wanted = outputs[known], labels_N[known]
            if target.classes:
                of_classes = None if class_weight is None else class_weight.to(outputs)
                loss = F.cross_entropy(
                    found, wanted.long(), weight=of_classes, reduction="sum", label_smoothing=self._smoothing
                )
            else:
                loss = F.mse_loss(found[:, 0], (wanted.float() - target.mean) / target.sd, reduction="sum")
            total = total + weight * loss
        return total


class CellClassifier(_HeadedModel):
    """Predicts classes, numbers, or several of both, of cells."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        pooled_mask: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> SequenceClassifierOutput:
        """Return ``logits`` (B, outputs) and, with `labels`, the loss.

        Parameters
        ----------
        input_ids, attention_mask
            As of stock BERT, (B, L).
        labels
            For each cell and target the class's number, or the number; NaN where it is not known; (B, targets), or (B,)
            of one target.
        pooled_mask
            Positions that enter the cell's vector: genes, not special tokens; (B, L).
        num_items_in_batch
            Labels by whose number the sum of the losses is divided; default those of this batch. The loss is the mean
            over cells of the weighted sum over targets: cross-entropy (nats), or squared error in standard deviations.
        """
        packed = run_encoder(self.bert, input_ids, attention_mask)
        logits_BK = self.logits_of(packed.padded(), packed.real_BL if pooled_mask is None else pooled_mask)
        if labels is None:
            return SequenceClassifierOutput(logits=logits_BK)
        labels_BS = labels.reshape(len(labels), -1)
        n_items = labels_BS.numel() if num_items_in_batch is None else num_items_in_batch
        loss = self.sum_of_losses(logits_BK, labels_BS) / (n_items / len(self.head.targets))
        return SequenceClassifierOutput(loss=loss, logits=logits_BK)

    def logits_of(self, hidden_BLD: Tensor, weight_BL: Tensor) -> Tensor:
        """Return the logits of cells whose last hidden states are known.

        Parameters
        ----------
        hidden_BLD
            Output of the last block.
        weight_BL
            How much each position counts in the cell's vector: 1 for a gene, 0 for padding and special tokens.
        """
        return self.classifier(self.dropout(self._pooled(hidden_BLD, weight_BL)))

    def _pooled(self, hidden_BLD: Tensor, weight_BL: Tensor) -> Tensor:
        if self.head.pooling == "pooler":
            assert self.bert.pooler is not None
            pooled_BD: Tensor = self.bert.pooler(hidden_BLD)
            return pooled_BD
        if self.head.pooling != "attention":
            return pool(hidden_BLD, weight_BL, self.head.pooling)
        score_BL1 = self.attention_pool(hidden_BLD).float()
        weight_BL1 = weight_BL[..., None].to(score_BL1.dtype)
        lowest, least = torch.finfo(score_BL1.dtype).min, torch.finfo(score_BL1.dtype).tiny
        score_BL1 = score_BL1 + weight_BL1.clamp(min=least).log()
        score_BL1 = score_BL1.masked_fill(weight_BL1 == 0, lowest)  # not -inf, which makes NaN of a cell without a gene
        share_BL1 = score_BL1.softmax(1).masked_fill(weight_BL1 == 0, 0)
        return (hidden_BLD * share_BL1.to(hidden_BLD.dtype)).sum(1)


class GeneClassifier(_HeadedModel):
    """Predicts classes of genes from their place in cells; opens in stock `BertForTokenClassification`."""

    def forward(
        self,
        input_ids: Tensor,
        lengths: Sequence[int],
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> TokenClassifierOutput:
        """Return ``logits`` and, with `labels`, the loss.

        Parameters
        ----------
        input_ids
            Tokens of all cells end to end, (T,).
        lengths
            Tokens of each cell.
        labels
            Class of each token, or -100, (T,).
        num_items_in_batch
            What the sum of the cross-entropies is divided by; default the number of tokens with a label.

        Returns
        -------
        ``logits`` of the tokens with a label, (M, classes); without `labels` of all tokens.
        """
        _require_positions(self.bert, max(lengths))
        cells = Cells(lengths)
        positions_T = _positions(lengths, input_ids.device)
        read = None if labels is None else _masked(labels, cells)
        hidden_MD = _run(self.bert, input_ids, positions_T, cells, read=read)
        logits_MK = self.classifier(self.dropout(hidden_MD))
        if labels is None or read is None:
            return TokenClassifierOutput(logits=logits_MK)
        n_items = torch.as_tensor(len(logits_MK) if num_items_in_batch is None else num_items_in_batch).clamp(min=1)
        loss = self.sum_of_losses(logits_MK, labels[read.tokens].float()[:, None]) / n_items
        return TokenClassifierOutput(loss=loss, logits=logits_MK)


def pool(hidden_BLD: Tensor, genes_BL: Tensor, pooling: Pooling) -> Tensor:
    """Make one vector a cell: the mean over its genes, or the first position (``<cls>``).

    Parameters
    ----------
    hidden_BLD
        Hidden states.
    genes_BL
        True, or 1, where there is a gene: not padding, not a special token. Numbers weigh positions.
    pooling
        "mean" or "cls".
    """
    if pooling == "cls":
        return hidden_BLD[:, 0]
    weight_BL1 = genes_BL[..., None].to(hidden_BLD.dtype)
    return (hidden_BLD * weight_BL1).sum(1) / weight_BL1.sum(1).clamp(min=1)


def require_poolable(vocabulary: Vocabulary, pooling: str, *, choices: Any = Pooling) -> None:
    """Raise unless cells of this vocabulary can be pooled so: "cls" needs a ``<cls>`` token."""
    if pooling not in get_args(choices):
        raise InputError(f"pooling must be one of {', '.join(map(repr, get_args(choices)))}, found {pooling!r}.")
    if pooling == "cls" and not vocabulary.has_cls:
        raise InputError(
            "pooling='cls' needs cells that begin with <cls>, and this vocabulary (V1 convention) has no such "
            "token. Use pooling='mean'."
        )
