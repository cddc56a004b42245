"""The head that has several targets side by side, and the classifiers of cells and genes.

Shapes: B cells, T tokens of all cells, M tokens with a label, D hidden size, K outputs, S numbers of labels (one a
target, but for kinds of target that need more).
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertModel, BertPreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput, TokenClassifierOutput

from geneformer_repro.attention import Cells
from geneformer_repro.encoder import first_tokens, masked, run_encoder, unpad
from geneformer_repro.errors import InputError
from geneformer_repro.files import read_json
from geneformer_repro.network_settings import HeadPooling, Pooling
from geneformer_repro.targets import Classes, Target
from geneformer_repro.tokenizer.vocabulary import Vocabulary

Network = TypeVar("Network", bound=nn.Module)
WEIGHTS = "model.safetensors"
"""The file of a network's weights, and of what else are arrays of numbers."""


def pool(hidden_TD: Tensor, weight_T: Tensor, cells: Cells, pooling: Pooling) -> Tensor:
    """Make one vector a cell, (B, D): the mean over its genes, or its first token (``<cls>``).

    Parameters
    ----------
    hidden_TD
        Hidden states of the tokens of all cells, end to end.
    weight_T
        How much each token counts: 1, or True, for a gene, 0 for a special token.
    cells
        Where the cells lie; of one without a gene the mean is 0.
    pooling
        "mean" or "cls".
    """
    if pooling == "cls":
        return hidden_TD[cells.starts_on(hidden_TD.device)[:-1]]
    weight_T = weight_T.to(hidden_TD.dtype)
    return weighted_sums(hidden_TD, weight_T, cells) / sums(weight_T, cells).clamp(min=1)[:, None]


def weighted_sums(hidden_TD: Tensor, weight_T: Tensor, cells: Cells) -> Tensor:
    """Return the weighted sum of each cell's rows, (B, D).

    By the kernel of embedding bags where there is one: seven to twenty times as fast on a CPU as padding, four to ten
    times as `torch.segment_reduce`.
    """
    if hidden_TD.device.type not in ("cpu", "cuda"):
        summed_BD = hidden_TD.new_zeros(len(cells), hidden_TD.shape[1])
        return summed_BD.index_add(0, cells.numbers_on(hidden_TD.device), hidden_TD * weight_T[:, None])
    every_T = torch.arange(len(hidden_TD), dtype=torch.int32, device=hidden_TD.device)
    starts_B = cells.starts_on(hidden_TD.device)[:-1]
    return F.embedding_bag(every_T, hidden_TD, starts_B, mode="sum", per_sample_weights=weight_T)


def sums(values_T: Tensor, cells: Cells) -> Tensor:
    """Return the sum of each cell's values, (B,)."""
    return values_T.new_zeros(len(cells)).index_add(0, cells.numbers_on(values_T.device), values_T)


def shares_within(score_T: Tensor, cells: Cells, weight_T: Tensor | None = None) -> Tensor:
    """Return the softmax of scores within each cell, (T,): shares that sum to 1.

    Parameters
    ----------
    score_T
        Of each row.
    cells
        Where the cells, or whatever has the rows, lie.
    weight_T
        By what the exponentials are multiplied: 0 for a row that has no share. Of a cell without another all are 0.
    """
    cell_T, lowest = cells.numbers_on(score_T.device), torch.finfo(score_T.dtype).min
    weight_T = torch.ones_like(score_T) if weight_T is None else weight_T
    score_T = score_T.masked_fill(weight_T == 0, lowest)
    highest_B = score_T.new_full((len(cells),), lowest)
    highest_B = highest_B.scatter_reduce(0, cell_T, score_T.detach(), "amax")
    share_T = (score_T - highest_B[cell_T]).exp() * weight_T.to(score_T.dtype)
    total_B = sums(share_T, cells)
    return share_T / total_B.masked_fill(total_B == 0, 1)[cell_T]


def require_poolable(vocabulary: Vocabulary, pooling: str, *, choices: Any = Pooling) -> None:
    """Raise unless cells of this vocabulary can be pooled so: "cls" needs a ``<cls>`` token."""
    if pooling not in get_args(choices):
        raise InputError(f"pooling must be one of {', '.join(map(repr, get_args(choices)))}, found {pooling!r}.")
    if pooling == "cls" and not vocabulary.has_cls:
        raise InputError(
            "pooling='cls' needs cells that begin with <cls>, and this vocabulary (V1 convention) has no such "
            "token. Use pooling='mean'."
        )


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
        if self.level == "gene" and not (len(names) == 1 and isinstance(self.targets[0], Classes)):
            raise InputError(f"A head of genes has one target, with classes; found {names}.")

    @property
    def first_only(self) -> bool:
        """Whether the first token's hidden state is all that is read of a cell."""
        return self.pooling in ("cls", "pooler")

    @property
    def output_names(self) -> list[str]:
        """What each output of the network stands for: a class, or a number's target; of several targets both."""
        if len(self.targets) == 1:
            return list(self.targets[0].output_names)
        return [name for target in self.targets for name in target.full_output_names]

    @property
    def n_outputs(self) -> int:
        """Outputs of the network for all targets."""
        return sum(target.n_outputs for target in self.targets)

    @property
    def n_labels(self) -> int:
        """Numbers that make the labels of a row for all targets."""
        return sum(target.n_labels for target in self.targets)

    def split(self, outputs: Tensor) -> tuple[Tensor, ...]:
        """Cut outputs (…, all) into those of each target."""
        return outputs.split([target.n_outputs for target in self.targets], dim=-1)

    def meaning(self, outputs_NK: Tensor) -> Tensor:
        """Return what the outputs mean, all targets side by side, in double precision."""
        outputs = zip(self.targets, self.split(outputs_NK.double()), strict=True)
        return torch.cat([target.meaning(of_target) for target, of_target in outputs], dim=-1)

    def to_json(self) -> dict[str, Any]:
        """Return what ``head.json`` holds beside its format."""
        targets = [target.to_json() for target in self.targets]
        return {"targets": targets, "pooling": self.pooling, "level": self.level}

    def split_labels(self, labels: Tensor) -> tuple[Tensor, ...]:
        """Cut labels (…, all) into those of each target."""
        return labels.split([target.n_labels for target in self.targets], dim=-1)


def open_network(
    folder: Path, head: Head | None, form: str, make: Callable[[dict[str, Any], Head, dict[str, Tensor]], Network]
) -> Network:
    """Open a network that is no stock BERT: ``config.json``, `WEIGHTS`, and a head that says what its outputs mean.

    Parameters
    ----------
    folder
        Where they are.
    head
        From ``head.json``; None where there is none.
    form
        What ``config.json`` calls its format.
    make
        Makes the network of what ``config.json`` holds, the head and the tensors of the file.

    Raises
    ------
    InputError
        It is of another format, damaged, not finite, or has no head.
    """
    content = read_json(folder / "config.json")
    if content.get("format") != form:
        raise InputError(f"{folder}/config.json: expected format {form!r}, found {content.get('format')!r}.")
    if head is None:
        raise InputError(f"{folder}: has no head.json, so its outputs mean nothing; copy the checkpoint anew.")
    try:
        weights = load_file(folder / WEIGHTS)
        network = make(content, head, dict(weights))
    except Exception as error:  # whatever a file that was cut off or changed by hand leads to
        raise InputError(f"{folder}: is damaged ({error}); copy the checkpoint anew.") from error
    if broken := [name for name, weight in weights.items() if not torch.isfinite(weight).all()]:
        raise InputError(f"{folder}: holds weights that are not finite (first: {broken[0]}).")
    return network


class _HeadedModel(BertPreTrainedModel):
    """An encoder with one linear layer for all targets, named as in stock BERT."""

    def __init__(self, config: BertConfig, head: Head) -> None:
        config = copy.deepcopy(config)
        config.id2label = dict(enumerate(head.output_names))  # which sets num_labels too
        config.label2id = {name: i for i, name in config.id2label.items()}
        super().__init__(config)
        self.head = head
        self.bert = BertModel(config, add_pooling_layer=head.pooling == "pooler")
        unpad(self.bert)
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
        self._class_weights = tuple(
            None if weights is None else torch.tensor(weights) for weights in classes or [None] * n
        )

    def sum_of_losses(self, outputs_NK: Tensor, labels_NS: Tensor) -> Tensor:
        """Sum over cells (or genes) and targets; a missing label (NaN, or -100) adds nothing."""
        total = outputs_NK.new_zeros((), dtype=torch.float32)
        for target, outputs, labels, weight, class_weights in zip(
            self.head.targets,
            self.head.split(outputs_NK.float()),
            self.head.split_labels(labels_NS),
            self._target_weights,
            self._class_weights,
            strict=True,
        ):
            total = total + weight * target.loss(outputs, labels, weights=class_weights, smoothing=self._smoothing)
        return total


class CellClassifier(_HeadedModel):
    """Predicts classes, numbers, or several of both, of cells."""

    def forward(
        self,
        input_ids: Tensor,
        lengths: Sequence[int],
        labels: Tensor | None = None,
        weights: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> SequenceClassifierOutput:
        """Return ``logits`` (B, outputs) and, with `labels`, the loss.

        Parameters
        ----------
        input_ids
            Tokens of all cells end to end, (T,).
        lengths
            Tokens of each cell.
        labels
            For each cell and target the class's number, or the number; NaN where it is not known; (B, numbers of
            labels), or (B,) of one.
        weights
            How much each token counts in its cell's vector: 1 for a gene, 0 for a special token; default all alike.
        num_items_in_batch
            Labels by whose number the sum of the losses is divided; default those of this batch. The loss is the mean
            over cells of the weighted sum over targets: cross-entropy (nats), or squared error in standard deviations.
        """
        read = first_tokens(lengths, input_ids.device) if self.head.first_only else None
        hidden_TD = run_encoder(self.bert, input_ids, lengths, read=read)
        cells = Cells(lengths) if read is None else read.cells
        weight_T = hidden_TD.new_ones(len(hidden_TD)) if weights is None or read is not None else weights
        logits_BK = self.logits_of(hidden_TD, weight_T, cells)
        if labels is None:
            return SequenceClassifierOutput(logits=logits_BK)
        labels_BS = labels.reshape(len(labels), -1)
        n_items = labels_BS.numel() if num_items_in_batch is None else num_items_in_batch
        loss = self.sum_of_losses(logits_BK, labels_BS) / (n_items / self.head.n_labels)
        return SequenceClassifierOutput(loss=loss, logits=logits_BK)

    def logits_of(self, hidden_TD: Tensor, weight_T: Tensor, cells: Cells) -> Tensor:
        """Return the logits of cells whose last hidden states are known, (B, outputs).

        Parameters
        ----------
        hidden_TD
            Output of the last block at the tokens of all cells.
        weight_T
            How much each token counts in the cell's vector: 1 for a gene, 0 for a special token.
        cells
            Where the cells lie.
        """
        return self.classifier(self.dropout(self.pooled(hidden_TD, weight_T, cells)))

    def pooled(self, hidden_TD: Tensor, weight_T: Tensor, cells: Cells) -> Tensor:
        """Return the vector of each cell that its logits are made of, (B, D); parameters as of `logits_of`."""
        if self.head.pooling == "pooler":
            assert self.bert.pooler is not None
            pooled_BD: Tensor = self.bert.pooler(pool(hidden_TD, weight_T, cells, "cls")[:, None])
            return pooled_BD
        if self.head.pooling != "attention":
            return pool(hidden_TD, weight_T, cells, self.head.pooling)
        share_T = shares_within(self.attention_pool(hidden_TD)[:, 0].float(), cells, weight_T)
        return weighted_sums(hidden_TD, share_T.to(hidden_TD.dtype), cells)


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
        read = None if labels is None else masked(labels, Cells(lengths))
        hidden_MD = run_encoder(self.bert, input_ids, lengths, read=read)
        logits_MK = self.classifier(self.dropout(hidden_MD))
        if labels is None or read is None:
            return TokenClassifierOutput(logits=logits_MK)
        n_items = torch.as_tensor(len(logits_MK) if num_items_in_batch is None else num_items_in_batch).clamp(min=1)
        loss = self.sum_of_losses(logits_MK, labels[read.tokens].float()[:, None]) / n_items
        return TokenClassifierOutput(loss=loss, logits=logits_MK)
