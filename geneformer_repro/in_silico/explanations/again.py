"""The question of an explanation asked again: of other models, and of cells that were altered.

Metadata hold all that was asked but vectors of goal states that a user gave; with the checkpoint and the cells they are
the same question.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

import geneformer_repro.processes as processes
from geneformer_repro.checkpoint import Checkpoint
from geneformer_repro.errors import InputError
from geneformer_repro.heads import CellClassifier
from geneformer_repro.in_silico.explanations.answers import Answer, Shown, View, counted, unchanged
from geneformer_repro.in_silico.explanations.asked import Asked
from geneformer_repro.in_silico.explanations.cell_methods import CellMethods
from geneformer_repro.in_silico.explanations.explanation import Explanation
from geneformer_repro.in_silico.explanations.occlusions import ask
from geneformer_repro.in_silico.explanations.request import Request
from geneformer_repro.in_silico.parted import batch_tokens
from geneformer_repro.in_silico.question import GoalState
from geneformer_repro.reading import Reader
from geneformer_repro.targets import Classes
from geneformer_repro.tokenizer.dataset import TokenizedDataset


def request_of(why: Explanation, checkpoint: Checkpoint, methods: Sequence[str]) -> Request:
    """Return what was asked, of some of the methods.

    Raises
    ------
    InputError
        It was asked with vectors of states that the user gave, which the file does not hold.
    """
    told, settings = why.metadata, why.metadata["methods"]
    goal = told.get("goal")
    if goal and "embeddings" in goal:
        raise InputError(
            "The explanation was asked with vectors of states (GoalState(embeddings=…)), which its file does not hold, "
            "so it cannot be asked again. Explain without them, or test with removal=False, random_weights=False."
        )
    asked: dict[str, Any] = {
        name: found for method, name in _SETTINGS if (found := settings.get(method, {}).get(name)) is not None
    }
    head = checkpoint.head
    has_classes = head is not None and any(
        isinstance(one, Classes) and one.name == told.get("target") for one in head.targets
    )
    return Request(
        target=told.get("target") if head is not None else None,
        state=states_of(why) if has_classes else None,
        contrast=told.get("contrast"),
        goal=None if goal is None else GoalState(**{name: goal[name] for name in _OF_GOAL}),
        gene=told.get("gene"),
        layer=told.get("layer") if goal else None,
        pooling=told.get("pooling") if goal else None,
        methods=tuple(methods),
        allow_seen=True,
        pooled_masks=bool(settings.get("mask", {}).get("pooled")),
        **asked,
    )


_OF_GOAL = ("obs", "start", "goal", "alternatives")
_SETTINGS = (
    ("integrated_gradients", "baseline"), ("integrated_gradients", "steps"),
    ("integrated_gradients", "rule"), ("gradient_input", "baseline"),
    ("surrogate", "operator"), ("surrogate", "masks"),
)  # fmt: skip


def states_of(why: Explanation) -> tuple[str, ...]:
    """Return the numbers that were explained, in the order of the rows."""
    states: dict[str, None] = {}
    for block in why.blocks(["state"]):
        states |= dict.fromkeys(block["state"].dropna().unique())
    return tuple(states)


class Again:
    """Some cells of an explanation, to be asked again.

    Parameters
    ----------
    why
        The explanation.
    checkpoint
        The model that was explained.
    cells
        The cells that explain was given.
    rows
        Row numbers of those that are asked again.
    """

    def __init__(self, why: Explanation, checkpoint: Checkpoint, cells: TokenizedDataset, rows: np.ndarray) -> None:
        checkpoint.require_matching(cells)
        self._why, self._checkpoint, self._cells, self.rows = why, checkpoint, cells, rows
        self.methods = [method for method in why.methods if method != "surrogate"]
        self._request = request_of(why, checkpoint, self.methods)
        self._reference = Asked(self._request, checkpoint, cells).rows()
        self.all_methods, self.vocabulary = why.methods, cells.vocabulary
        self.names: list[str] = cells.cell_names[rows].tolist()
        self.tokens = [cells[int(row)] for row in rows]
        self.gene_ids = [cells.genes(int(row)) for row in rows]
        donor = why.metadata.get("donor")
        self.donors = [None] * len(rows) if donor is None else cells.labels(donor).iloc[rows].tolist()

    def _of_cells(self) -> CellMethods:
        methods = CellMethods(self._request, self._cells, self._reference)
        methods.prepare()
        return methods

    @cached_property
    def answer(self) -> Answer:
        """What is asked of the model that was explained."""
        return self._answer(self._checkpoint)

    def _answer(self, checkpoint: Checkpoint) -> Answer:
        return Asked(self._request, checkpoint, self._cells).answer(processes.device())

    def _reader(self, checkpoint: Checkpoint, answer: Answer) -> Reader:
        device: torch.device = processes.device()
        room = batch_tokens(None, device)
        return Reader.of(checkpoint, layer=answer.layer, dtype="float32", max_tokens=room, device=device)

    @cached_property
    def views(self) -> list[View]:
        """The cells, as the answer reads them."""
        return [unchanged(tokens, self.vocabulary, self.answer) for tokens in self.tokens]

    def asking(self, show: Callable[[int], object]) -> Callable[[Iterator[View]], np.ndarray]:
        """Return a function that answers altered cells, (N, S); `show` is called with how many of them are done."""
        reader = self._reader(self._checkpoint, self.answer)
        return lambda views: ask(reader, self.answer, views, show=show)

    @property
    def n_passes(self) -> int:
        """How often the network is run for `explained`."""
        methods = self._of_cells()
        return sum(methods.passes(len(tokens)) for tokens in self.tokens)

    def explained(self, checkpoint: Checkpoint, show: Callable[[int], object]) -> Explanation:
        """Return the same cells by the same methods, but for surrogates, of another model."""
        answer = self._answer(checkpoint)
        reader, of_cells = self._reader(checkpoint, answer), self._of_cells()
        if "integrated_gradients" in self.methods:
            of_cells.learn_spread(reader, answer, self.tokens)
        frames = []
        units, states = np.array(of_cells.unit_names, dtype=object), np.array(answer.names, dtype=object)
        for method in self.methods:
            done = of_cells.do(method, reader, answer, self.tokens, show)
            for i, of_cell in enumerate(done):
                frame = pd.DataFrame(of_cells.rows(method, self.tokens[i], of_cell)._asdict())
                of = {"cell": self.names[i], "donor": self.donors[i], "method": method, "exact": True}
                frames.append(frame.assign(gene=units[frame["unit"]], state=states[frame["state"]], **of))
        table = pd.concat(frames, ignore_index=True)
        table["place"] = table["place"].astype("Int32").where(table["place"] >= 0)
        return Explanation(table, {**self._why.metadata, "how_good": None})

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """Return what the last layer of a classifier of cells reads, (cells, D)."""
        assert isinstance(self._checkpoint.model, CellClassifier)
        answer = _Vector(self._checkpoint.model)
        views = (unchanged(self._cells[int(row)], self.vocabulary, answer) for row in rows)
        return ask(self._reader(self._checkpoint, answer), answer, views)


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
