"""What is explained: one number a cell (or several, side by side), as a differentiable function of hidden states.

Probabilities saturate: a cell that is certainly a B cell is one without any single gene. So a class is explained by its
log-odds, which add up over evidence; a time to an event by its log hazard or its cumulative hazard; a number in its
unit.

Shapes: T tokens of all cells, B cells, D hidden size, S numbers explained, K outputs of a target.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from geneformer_repro.attention import Cells
from geneformer_repro.heads import CellClassifier, GeneClassifier, pool
from geneformer_repro.in_silico.explanations.output_answers import OutputAnswer, log_odds
from geneformer_repro.model import MaskedGeneModel
from geneformer_repro.network_settings import Pooling
from geneformer_repro.tokenizer.vocabulary import Vocabulary


class View(NamedTuple):
    """One cell as it is given to the network, whole or altered."""

    ids_L: np.ndarray
    """Token ids, int64."""
    positions_L: np.ndarray
    """Position of each token, int64; where tokens are hidden, the others keep theirs."""
    weight_L: np.ndarray
    """How much each token counts in the cell's vector, float32: 1 for a gene, 0 for a special token or a mask."""
    asked: int = -1
    """Which token the answer is read at; -1 where it is read of the whole cell."""
    margin: int = 0
    """Special tokens in front of the genes."""
    whole: "View | None" = None
    """The cell of which this is one token short, and nothing else: how it came about, for whoever reads many such."""
    lacks: int = -1
    """The place of that token."""

    @property
    def n_genes(self) -> int:
        """Tokens that stand for genes, masked ones included."""
        return len(self.ids_L) - 2 * self.margin


class Shown(NamedTuple):
    """Cells as they are given to the network, end to end."""

    ids_T: Tensor
    positions_T: Tensor
    weight_T: Tensor
    """As of `View`."""
    lengths: list[int]
    """Tokens of each cell."""
    asked_B: Tensor | None = None
    """Number among all tokens of the one that is asked about in each cell; None where answers are of whole cells."""


class Answer(Protocol):
    """Numbers of a cell that are explained."""

    @property
    def names(self) -> tuple[str, ...]:
        """What each number is called, as in the column ``state``."""

    @property
    def first_only(self) -> bool:
        """Whether the first token's state is all that is read."""

    @property
    def layer(self) -> int:
        """The layer that is read: 0 is the last block, -1 the one before."""

    @property
    def asked(self) -> int | None:
        """Token id of the gene at whose place the answer is read; None where it is of the whole cell."""

    @property
    def masks(self) -> bool:
        """Whether ``<mask>`` stands at that place."""

    @property
    def described(self) -> str:
        """What the numbers are, in words."""

    def __call__(self, hidden_TD: Tensor, shown: Shown) -> Tensor:
        """Return the numbers, (B, S), of hidden states at all tokens, or at the first of each cell; differentiable."""


def unchanged(tokens: np.ndarray, vocabulary: Vocabulary, answer: Answer) -> View:
    """Return a cell as the answer reads it: whole, or with ``<mask>`` in the place of the gene that is asked about.

    Parameters
    ----------
    tokens
        Token ids of the cell, special tokens included.
    vocabulary, answer
        Tell genes from special tokens; and which gene is asked about. The cell must express it.
    """
    ids_L = tokens.astype(np.int64)
    weight_L = (vocabulary.genes_of(ids_L) >= 0).astype(np.float32)
    asked = -1
    if answer.asked is not None:
        (places,) = np.nonzero(ids_L == answer.asked)
        assert len(places) == 1, "cells without the gene are passed over"
        asked = int(places[0])
        if answer.masks:
            ids_L[asked], weight_L[asked] = vocabulary.mask_token, 0
    return View(ids_L, np.arange(len(ids_L)), weight_L, asked, int(vocabulary.has_cls))


def laid_out(views: Sequence[View], device: torch.device) -> Shown:
    """Lay cells end to end on a device."""
    ids_T, positions_T, weight_T = (
        torch.from_numpy(np.concatenate([view[i] for view in views])).to(device, non_blocking=True) for i in range(3)
    )
    lengths = [len(view.ids_L) for view in views]
    asked_B = None
    if views[0].asked >= 0:
        starts_B = np.cumsum([0, *lengths[:-1]])
        asked_B = torch.from_numpy(starts_B + [view.asked for view in views]).to(device)
    return Shown(ids_T, positions_T, weight_T, lengths, asked_B)


def counted(hidden_TD: Tensor, shown: Shown) -> tuple[Tensor, Cells]:
    """Return how much each row of hidden states counts, and where the cells lie among them."""
    if len(hidden_TD) == len(shown.ids_T):
        return shown.weight_T, Cells(shown.lengths)
    return hidden_TD.new_ones(len(hidden_TD)), Cells([1] * len(hidden_TD))


@dataclass(frozen=True)
class OfCell:
    """What a classifier's head says of a cell: log-odds of classes, a number, or a risk."""

    model: CellClassifier
    said: OutputAnswer
    layer = 0
    asked = None
    masks = False

    @property
    def first_only(self) -> bool:
        """Whether the first token's state is all that is read."""
        return self.model.head.first_only

    @property
    def names(self) -> tuple[str, ...]:
        """What each number is called: the classes, or the target."""
        return self.said.names

    @property
    def described(self) -> str:
        """In words."""
        return self.said.described

    def __call__(self, hidden_TD: Tensor, shown: Shown) -> Tensor:
        """Return the numbers, (B, S)."""
        return self.said(self.model.logits_of(hidden_TD, *counted(hidden_TD, shown)).float())


@dataclass(frozen=True)
class Towards:
    """How much nearer a cell's vector is to a goal, or each of some, than to where it starts."""

    start_D: Tensor
    goals_SD: Tensor
    names: tuple[str, ...]
    start: str
    pooling: Pooling
    layer: int
    asked: None = field(default=None, init=False)
    masks: bool = field(default=False, init=False)

    @property
    def first_only(self) -> bool:
        """Whether the first token's state is all that is read."""
        return self.pooling == "cls"

    @property
    def described(self) -> str:
        """In words."""
        return f"cosine similarity of the cell's vector to each state in column state, less that to {self.start!r}"

    def __call__(self, hidden_TD: Tensor, shown: Shown) -> Tensor:
        """Return the differences of similarities, (B, S)."""
        vector_B1D = pool(hidden_TD, *counted(hidden_TD, shown), self.pooling)[:, None]
        to_goals_BS = F.cosine_similarity(vector_B1D, self.goals_SD, dim=-1)
        return to_goals_BS - F.cosine_similarity(vector_B1D, self.start_D, dim=-1)


@dataclass(frozen=True)
class MaskedGene:
    """How sure a pretrained model is of a gene at its place, where it sees ``<mask>``."""

    model: MaskedGeneModel
    asked: int
    names: tuple[str, ...]
    layer = 0
    masks = True
    first_only = False

    @property
    def described(self) -> str:
        """In words."""
        return f"log probability of {self.names[0]} at its place, which is masked, in nats"

    def __call__(self, hidden_TD: Tensor, shown: Shown) -> Tensor:
        """Return the log probabilities, (B, 1)."""
        assert shown.asked_B is not None
        logits_BV = self.model.cls(hidden_TD[shown.asked_B]).float()
        return logits_BV.log_softmax(-1)[:, [self.asked]]


@dataclass(frozen=True)
class ClassOfGene:
    """Log-odds of classes of a gene in the cells that express it."""

    model: GeneClassifier
    asked: int
    gene: str
    classes: tuple[int, ...]
    contrast: int | None = None
    layer = 0
    masks = False
    first_only = False

    @property
    def names(self) -> tuple[str, ...]:
        """The classes."""
        names = self.model.head.targets[0].output_names
        return tuple(names[k] for k in self.classes)

    @property
    def described(self) -> str:
        """In words."""
        names = self.model.head.targets[0].output_names
        against = "all other classes" if self.contrast is None else repr(names[self.contrast])
        return f"log-odds of each class of {self.gene} named in column state against {against}, in nats"

    def __call__(self, hidden_TD: Tensor, shown: Shown) -> Tensor:
        """Return the log-odds, (B, S)."""
        assert shown.asked_B is not None
        logits_BK = self.model.classifier(self.model.dropout(hidden_TD[shown.asked_B])).float()
        return log_odds(logits_BK, self.classes, self.contrast)
