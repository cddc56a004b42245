"""The question of an explanation asked again: of rows that were altered, and of other models.

Metadata hold all that was asked but vectors of goal states that a user gave; with the checkpoint and the rows they are
the same question. What a family of models adds to it stands here in one form: which of a row's genes may be taken
away, and how, what the model says then, and which models forgot what.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Generic, Literal, NamedTuple, TypeVar

import numpy as np

from geneformer_repro.checkpoint import Checkpoint
from geneformer_repro.errors import InputError
from geneformer_repro.in_silico.explanations.explained import Explained
from geneformer_repro.in_silico.explanations.explanation import Explanation
from geneformer_repro.in_silico.explanations.gene_table import Attributions
from geneformer_repro.in_silico.explanations.removal import Altered
from geneformer_repro.in_silico.explanations.request import AnyBaseline, Request
from geneformer_repro.in_silico.goals import GoalState
from geneformer_repro.targets import Classes, Target

Model = TypeVar("Model")
Show = Callable[[int], object]
NOT_FITTED = (
    "permuted=True fits a last layer to permuted labels, of {what}. Give such {rows}, or a checkpoint fine-tuned on "
    "permuted labels."
)
MOST_FITTED = 2_000
"""Rows to which a head of permuted labels is fitted at most."""


def request_of(
    why: Explanation, targets: Sequence[Target], methods: Sequence[str], *, baseline: AnyBaseline = "mask"
) -> Request:
    """Return what was asked, of some of the methods.

    Parameters
    ----------
    why
        The explanation.
    targets
        What the model learned; none of a pretrained one.
    methods
        Which are asked.
    baseline
        Where none of these has one.

    Raises
    ------
    InputError
        It was asked with vectors of states that the user gave, which the file does not hold.
    """
    told, settings = why.metadata, why.metadata["methods"]
    goal, family = told.get("goal"), told.get("family")
    if goal and "embeddings" in goal:
        raise InputError(
            "The explanation was asked with vectors of states (GoalState(embeddings=…)), which its file does not hold, "
            "so it cannot be asked again. Explain without them, or test with removal=False, random_weights=False."
        )
    asked: dict[str, Any] = {"baseline": baseline}
    asked |= {
        name: found
        for method, name in _SETTINGS
        if method in methods and (found := settings.get(method, {}).get(name)) is not None
    }
    has_classes = any(isinstance(one, Classes) and one.name == told.get("target") for one in targets)
    return Request(
        target=told.get("target") if targets and family != "pairs" else None,
        state=states_of(why) if has_classes or family == "pairs" else None,
        contrast=told.get("contrast"),
        goal=None if goal is None else GoalState(**{name: goal[name] for name in _OF_GOAL}),
        gene=told.get("gene"),
        layer=told.get("layer") if goal else None,
        pooling=told.get("pooling") if goal else None,
        donor=told.get("donor") if family == "samples" else None,
        methods=tuple(methods),
        sets=told.get("sets"),
        allow_seen=True,
        pooled_masks=bool(settings.get("mask", {}).get("pooled")),
        **asked,
    )


_OF_GOAL = ("obs", "start", "goal", "alternatives")
_SETTINGS = (
    ("integrated_gradients", "baseline"), ("integrated_gradients", "steps"), ("integrated_gradients", "rule"),
    ("gradient_input", "baseline"), ("mask", "baseline"),
)  # fmt: skip


def states_of(why: Explanation) -> tuple[str, ...]:
    """Return the numbers that were explained, in the order of the rows."""
    states: dict[str, None] = {}
    for block in why.blocks(["state"]):
        states |= dict.fromkeys(block["state"].dropna().unique())
    return tuple(states)


class Taking(NamedTuple):
    """One way to take genes of rows away, or to bring them."""

    operator: str
    way: Literal["removal", "insertion"]
    of_characters: bool = False
    """Whether what is taken are characters of a SMILES, and no genes."""


class RowUnits(NamedTuple):
    """What can be taken away from a row."""

    names: Sequence[str]
    """Gene ids, or as characters are called in `Again.readable`."""
    free: np.ndarray
    """Numbers of those that may be taken."""
    simple: Mapping[str, np.ndarray]
    """By orders that need no model, a number a unit, see `removal.orders`."""


class Again(ABC, Generic[Model]):
    """Some rows of an explanation, to be asked again.

    Parameters
    ----------
    why
        The explanation.
    explained
        The rows, as its family has them, by the model that was explained.
    names
        Names of those that are asked again.
    """

    takings: ClassVar[Sequence[Taking]]
    """How genes are taken away, two ways at least, since no method is judged by its own."""

    def __init__(self, why: Explanation, explained: Explained, names: Sequence[str]) -> None:
        self.why, self._explained, self.names = why, explained, list(names)
        of_name = {name: i for i, name in reversed(list(enumerate(explained.names.tolist())))}
        self.rows = np.array([of_name[name] for name in self.names])
        """Of each, its number among the rows of the family (the first of them, where there are several)."""
        self.donors: list[str | None] = [explained.donor_of(int(row)) for row in self.rows]

    @property
    def methods(self) -> list[str]:
        """Those that other models are explained by; surrogates take too long."""
        return [method for method in self.why.methods if method != "surrogate"]

    @property
    def readable(self) -> Attributions:
        """The rows of the explanation, each unit with a name in column ``gene``."""
        return self.why

    @property
    def all_methods(self) -> Sequence[str]:
        """Of `readable`."""
        return self.why.methods

    @property
    def states(self) -> Sequence[str]:
        """What the numbers explained are called."""
        return states_of(self.why)

    @property
    def takings_here(self) -> Sequence[Taking]:
        """Those that this model has something for."""
        return self.takings

    @abstractmethod
    def units(self, number: int, state: int, taking: Taking) -> RowUnits:
        """Return what can be taken away from one of the rows asked again."""

    @abstractmethod
    def answers(self, taking: Taking, state: int, altered: Iterator[Altered], show: Show) -> np.ndarray:
        """Return what the model says of altered rows, (N,); `show` is called with how many of them are done."""

    @property
    def n_read(self) -> int:
        """How often the network is run to answer each row once."""
        return len(self.names)

    @abstractmethod
    def forgetting(self, seed: int) -> Iterator[tuple[str, Model]]:
        """Yield models whose weights were drawn anew, from the top down, each with what it forgot."""

    @abstractmethod
    def permuted(self, seed: int, *, required: bool) -> Model | None:
        """Return a model whose last layer was fitted to permuted labels; None where there are no labels.

        Raises
        ------
        InputError
            It is required, and there are none.
        """

    @abstractmethod
    def given(self, checkpoint: Checkpoint) -> Model:
        """Return a model that the user made, of permuted labels."""

    @abstractmethod
    def explained_by(self, model: Model) -> Explained:
        """Return the rows by another model."""

    @property
    def _part(self) -> np.ndarray:
        """All rows of the family that are of the rows asked again."""
        return np.flatnonzero(np.isin(self._explained.names, self.names))

    @property
    def n_passes(self) -> int:
        """How often the network is run for `explained`."""
        return int(self._explained.passes()[self._part].sum())

    def explained(self, model: Model, show: Show) -> Attributions:
        """Return the same rows by the same methods, but for surrogates, of another model."""
        table = self.explained_by(model).table_by_itself(self._part, show).to_pandas()
        return Explanation(table, {**self.why.metadata, "how_good": None})
