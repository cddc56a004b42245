"""Cells of an explanation asked again: tokens are hidden or masked, and encoders forget block by block."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import cast

import numpy as np
import torch
from torch import Tensor

import geneformer_repro.processes as processes
from geneformer_repro.checkpoint import Checkpoint
from geneformer_repro.errors import InputError
from geneformer_repro.heads import CellClassifier
from geneformer_repro.in_silico.explanations.again import MOST_FITTED, NOT_FITTED, Again, RowUnits, Show, Taking
from geneformer_repro.in_silico.explanations.answers import Answer, Shown, counted, unchanged
from geneformer_repro.in_silico.explanations.explained import CellsExplained
from geneformer_repro.in_silico.explanations.explanation import Explanation
from geneformer_repro.in_silico.explanations.occlusions import Alter, Operator, ask, masked, operation
from geneformer_repro.in_silico.explanations.removal import BY_PLACE, Altered
from geneformer_repro.in_silico.explanations.sanity import forgetting, labels_to_deal, with_permuted_labels
from geneformer_repro.in_silico.parted import batch_tokens
from geneformer_repro.reading import Reader
from geneformer_repro.tokenizer.dataset import TokenizedDataset
from geneformer_repro.tokenizer.vocabulary import Vocabulary

TAKINGS = (Taking("mask", "removal"), Taking("hide", "removal"), Taking("mask", "insertion"))


def altering(taking: Taking, vocabulary: Vocabulary) -> Alter:
    """Return what a way of taking genes away does to a cell.

    Of a cell that is all ``<mask>``, where insertion begins, masks count in its vector: else nothing would.
    """
    if taking.way == "removal":
        return operation(cast(Operator, taking.operator), vocabulary)
    return lambda view, places: masked(view, places, mask_token=vocabulary.mask_token, pooled=True)


class CellsAgain(Again[Checkpoint]):
    """Cells by a model that reads tokens."""

    takings = TAKINGS

    def __init__(
        self,
        why: Explanation,
        explained: CellsExplained,
        names: Sequence[str],
        checkpoint: Checkpoint,
        cells: TokenizedDataset,
    ) -> None:
        super().__init__(why, explained, names)
        self._cells_explained, self._checkpoint, self._cells = explained, checkpoint, cells
        rows = explained.rows_of_cells[self.rows]
        donor = why.metadata.get("donor")
        if donor is not None:
            self.donors = cells.labels(donor).iloc[rows].tolist()
        self._answer = explained.answer
        self.vocabulary = cells.vocabulary
        self.views = [unchanged(cells[int(row)], self.vocabulary, self._answer) for row in rows]
        self._gene_ids = [cells.genes(int(row)) for row in rows]

    @property
    def states(self) -> Sequence[str]:
        """What the numbers explained are called."""
        return self._answer.names

    def units(self, number: int, state: int, taking: Taking) -> RowUnits:
        """Return the genes of a cell, but for one that is asked about."""
        view = self.views[number]
        free = np.flatnonzero(np.arange(view.n_genes) != view.asked - view.margin)
        return RowUnits(self._gene_ids[number], free, {BY_PLACE: -np.arange(view.n_genes, dtype=float)})

    @cached_property
    def _reader(self) -> Reader:
        return _reader(self._checkpoint, self._answer)

    def answers(self, taking: Taking, state: int, altered: Iterator[Altered], show: Show) -> np.ndarray:
        """Return what the model says of altered cells, (N,)."""
        alter = altering(taking, self.vocabulary)
        views = (alter(self.views[i], places) if len(places) else self.views[i] for i, places in altered)
        return ask(self._reader, self._answer, views, show=show)[:, state]

    def explained_by(self, model: Checkpoint) -> CellsExplained:
        """Return the cells by another model."""
        return self._cells_explained.of_model(model)

    def forgetting(self, seed: int) -> Iterator[tuple[str, Checkpoint]]:
        """Yield models whose blocks were drawn anew."""
        return forgetting(self._checkpoint, seed=seed)

    def given(self, checkpoint: Checkpoint) -> Checkpoint:
        """Return it."""
        return checkpoint

    def permuted(self, seed: int, *, required: bool) -> Checkpoint | None:
        """Return a classifier whose last layer was fitted to permuted labels of all cells that have one."""
        target, (rows, labels) = self.why.metadata.get("target"), self._labelled()
        if not len(rows):
            if required:
                raise InputError(
                    NOT_FITTED.format(what="a classifier of cells whose target is a column of the cells", rows="cells")
                )
            return None
        if len(rows) > MOST_FITTED:
            chosen = np.sort(np.random.default_rng(seed).choice(len(rows), MOST_FITTED, replace=False))
            rows, labels = rows[chosen], labels[chosen]
        return with_permuted_labels(self._checkpoint, str(target), self._vectors(rows), labels.tolist(), seed=seed)

    def _labelled(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows of cells whose labels a last layer could be fitted to, and these; none where it cannot."""
        model, name, cells = self._checkpoint.model, self.why.metadata.get("target"), self._cells
        if not isinstance(model, CellClassifier) or name is None:
            return np.zeros(0, dtype=np.int64), np.zeros(0)
        usable = np.flatnonzero(cells.has_gene)
        target = next(one for one in model.head.targets if one.name == name)
        rows, labels = labels_to_deal(target, cells.obs.iloc[usable])
        return usable[rows], labels

    def _vectors(self, rows: np.ndarray) -> np.ndarray:
        """Return what the last layer of a classifier of cells reads, (cells, D)."""
        assert isinstance(self._checkpoint.model, CellClassifier)
        answer = _Vector(self._checkpoint.model)
        views = (unchanged(self._cells[int(row)], self.vocabulary, answer) for row in rows)
        return ask(_reader(self._checkpoint, answer), answer, views)


def _reader(checkpoint: Checkpoint, answer: Answer) -> Reader:
    device: torch.device = processes.device()
    room = batch_tokens(None, device)
    return Reader.of(checkpoint, layer=answer.layer, dtype="float32", max_tokens=room, device=device)


class _Vector:
    """The vector of a cell, as if it were so many answers."""

    layer = 0
    asked = None
    masks = False
    described = "the vector of a cell"

    def __init__(self, model: CellClassifier) -> None:
        self._model = model
        self.names = tuple(map(str, range(model.config.hidden_size)))

    @property
    def first_only(self) -> bool:
        """Whether the first token's state is all that is read."""
        return self._model.head.first_only

    def __call__(self, hidden_TD: Tensor, shown: Shown) -> Tensor:
        """Return the vectors, (B, D)."""
        return self._model.pooled(hidden_TD, *counted(hidden_TD, shown))
