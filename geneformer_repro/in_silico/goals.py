"""What a screen is asked for, before there is a model: the goal of its cells, and the budget of a sampled one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from geneformer_repro.errors import InputError, listed
from geneformer_repro.in_silico.perturbation import Composed, Perturbation
from geneformer_repro.tokenizer.labels import asked_labels

Method = Literal["exact", "first_order", "sampled"]
FEW_CELLS = 10
"""A state of fewer cells is warned about; a gene of fewer is not sampled."""
FEWEST_CELLS = 3
"""A mean over fewer is not sampled: two passes of it are to be drawn by chance."""
TOP = 50
"""Genes of each direction that a sampled screen is to find."""


@dataclass(frozen=True)
class GoalState:
    """Where cells come from and where they might go.

    Parameters
    ----------
    obs
        Column of the cells that names their state.
    start
        State of the cells that are perturbed. A state is text, a number, True or False, and kept as its name: 0, 0.0
        and "0" are one, whether the column holds integers or, because of a gap, floats.
    goal
        State towards which a movement counts.
    alternatives
        States towards which it is measured as well.
    embeddings
        Vector of each state, (D,); default the mean over the cells in that state.

    See Also
    --------
    perturb : Takes it as ``goal``.
    embed_states : Vectors of states, for ``embeddings``.

    Examples
    --------
    >>> import geneformer_repro as gf
    >>> goal = gf.GoalState(obs="cell_type", start="CD14+ Monocyte", goal="CD19+ B", alternatives=["Dendritic"])
    >>> goal.states
    ('CD14+ Monocyte', 'CD19+ B', 'Dendritic')
    >>> gf.GoalState(obs="cell_type", start="CD19+ B", goal="CD19+ B")
    Traceback (most recent call last):
        ...
    geneformer_repro.errors.InputError: Start, goal and alternatives must be different states, found 'CD19+ B', 'CD19+
    B'.
    """

    obs: str
    start: str | float
    goal: str | float
    alternatives: Sequence[str | float] = ()
    embeddings: Mapping[Any, np.ndarray] | None = None

    @property
    def states(self) -> tuple[str, ...]:
        """Start, goal and alternatives, in this order."""
        return (str(self.start), str(self.goal), *map(str, self.alternatives))

    def __post_init__(self) -> None:
        if isinstance(self.alternatives, str):
            raise InputError(f"alternatives must be a sequence of states; for one give [{self.alternatives!r}].")
        named = {
            "start": asked_labels([self.start], "start")[0],
            "goal": asked_labels([self.goal], "goal")[0],
            "alternatives": asked_labels(self.alternatives, "alternatives: each"),
            "embeddings": self.embeddings and _by_name(self.embeddings),
        }
        for name, value in named.items():
            object.__setattr__(self, name, value)
        if len(set(self.states)) < len(self.states):
            raise InputError(
                f"Start, goal and alternatives must be different states, found {', '.join(map(repr, self.states))}."
            )


@dataclass(frozen=True)
class Budget:
    """How many forward passes a sampled screen has, and what they are to tell.

    Parameters
    ----------
    passes
        Passes; or
    minutes
        for how long the processes of the run may make some.
    top
        Genes of each direction that are to be found; default 50.
    min_cells
        Genes in fewer cells get none; default 10.
    """

    passes: int | None
    minutes: float | None
    top: int | None
    min_cells: int | None

    @property
    def n_top(self) -> int:
        """`top`, or its default."""
        return TOP if self.top is None else self.top

    @property
    def fewest_cells(self) -> int:
        """`min_cells`, or its default."""
        return FEW_CELLS if self.min_cells is None else self.min_cells

    def require_fitting(self, method: Method) -> None:
        """Refuse what the method does not take, and what is no budget."""
        given = {name: value for name, value in vars(self).items() if value is not None}
        if method != "sampled":
            if given:
                raise InputError(f"{next(iter(given))}= is for method='sampled'; found method={method!r}.")
            return
        if (self.passes is None) == (self.minutes is None):
            raise InputError(
                "method='sampled' needs a budget: passes= (forward passes, --passes), or minutes= (--minutes), one of "
                "the two."
            )
        for name, least in (("passes", 1), ("minutes", 0), ("top", 1), ("min_cells", FEWEST_CELLS)):
            value = given.get(name, least + 1)
            if not (least <= value < float("inf")) or value == 0:
                raise InputError(f"{name} must be {f'at least {least}' if least else 'above 0'}, found {value}.")

    def describe(self) -> dict[str, Any]:
        """Say what there is, as JSON can hold it."""
        return {"passes": self.passes, "minutes": self.minutes, "top": self.n_top, "min_cells": self.fewest_cells}


NO_BUDGET = Budget(None, None, None, None)


def _by_name(embeddings: Mapping[Any, np.ndarray]) -> dict[str, np.ndarray]:
    named = dict(zip(asked_labels(embeddings, "embeddings: each state"), embeddings.values(), strict=True))
    if len(named) < len(embeddings):
        raise InputError(f"embeddings give a state twice: {', '.join(map(repr, embeddings))}.")
    return named


def require_fitting(method: Method, *, budget: Budget, affected: bool, towards: bool, refine: int) -> None:
    """Raise unless what is asked of a screen goes together.

    Parameters
    ----------
    method, budget, refine
        As for `perturb`.
    affected
        Whether other genes are measured as well.
    towards
        Whether there is a goal or a target.
    """
    if method not in get_args(Method):
        raise InputError(f"method must be 'exact', 'first_order' or 'sampled', found {method!r}.")
    budget.require_fitting(method)
    if affected and towards:
        raise InputError(
            "affected= compares genes with themselves, goal= and target= compare cells with states. Make two screens."
        )
    if affected and method == "sampled":
        raise InputError("method='sampled' measures what happens to cells; affected= needs method='exact'.")
    if refine < 0 or (refine and method != "first_order"):
        raise InputError(f"refine must be at least 0, and is for method='first_order'; found {refine}.")
    if method == "first_order" and not towards:
        raise InputError("method='first_order' needs goal= or target=: a cell's similarity to itself has slope 0.")


UNKNOWN = "are not in the vocabulary, or their name stands for several genes"
"""Why genes are left out that cannot be found."""


def left_out(genes: set[str], perturbation: Perturbation | Composed, why: str) -> str:
    """Say which genes a perturbation goes without; raise if it needs them."""
    message = f"{len(genes)} of {len(perturbation.named)} genes {why}: {listed(map(repr, sorted(genes)))}."
    if perturbation.needs_one_of(genes):
        raise InputError(f"{message} Give ids or names of genes that are there.")
    return message
