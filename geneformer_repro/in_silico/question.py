"""What a screen asks: of which cells, which numbers, by which method."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

import geneformer_repro.processes as processes
from geneformer_repro.checkpoint import Checkpoint
from geneformer_repro.embedding import embed, embed_states
from geneformer_repro.errors import InputError, did_you_mean
from geneformer_repro.heads import CellClassifier, require_poolable
from geneformer_repro.in_silico.engine import Engine, Nearness, Prediction, Score
from geneformer_repro.in_silico.goals import FEW_CELLS, NO_BUDGET, Budget, GoalState, Method, require_fitting
from geneformer_repro.in_silico.layout import Layout
from geneformer_repro.in_silico.perturbation import EACH, Edits
from geneformer_repro.in_silico.shams import FEWEST_CELLS as FEWEST_TO_HALVE
from geneformer_repro.in_silico.shams import MOST_CELLS, N_SHAMS, sham_goals
from geneformer_repro.in_silico.shift_table import CHANGE, COLUMNS, SAMPLED_COLUMNS, SHAMS, SHIFT, SIMILARITY
from geneformer_repro.network_settings import Pooling
from geneformer_repro.outline import Level, require_class, target_of_cells
from geneformer_repro.tokenizer.dataset import TokenizedDataset
from geneformer_repro.tokenizer.placeholders import warn_of_no_donors

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Question:
    """What is measured of a model and its cells, and how: arguments of `perturb`."""

    checkpoint: Checkpoint
    cells: TokenizedDataset
    goal: GoalState | None
    target: str | None
    affected: Literal["each"] | Sequence[str] | None
    layer: int | None
    pooling: Pooling | None
    method: Method
    refine: int
    donor: str | None
    obs: Sequence[str]
    budget: Budget = NO_BUDGET
    shams: int | None = None
    seed: int = 0

    @property
    def layer_read(self) -> int:
        """The layer that is read: `layer`, or its default."""
        return 0 if self.target else -1 if self.layer is None else self.layer

    @property
    def pooling_read(self) -> Pooling:
        """How a cell is represented, unless by a classifier: `pooling`, or its default."""
        return self.pooling or ("cls" if self.cells.vocabulary.has_cls else "mean")

    @property
    def pooling_is_unlike_embed(self) -> bool:
        """Whether cells are pooled otherwise than `embed` does, without having been asked for."""
        return self.target is None and self.pooling is None and self.pooling_read != "mean"

    def __post_init__(self) -> None:
        require_fitting(
            self.method,
            budget=self.budget,
            affected=self.affected is not None,
            towards=bool(self.goal or self.target),
            refine=self.refine,
        )
        if self.target is not None:
            self._check_target()
        elif self.pooling is not None:
            require_poolable(self.cells.vocabulary, self.pooling)
        self.affected_tokens()
        self._check_columns()
        if self.goal is not None:
            self._check_states(self.goal)
        self._check_shams()

    def _check_shams(self) -> None:
        if self.shams is None or self.shams == 0:
            return
        if self.shams < 0:
            raise InputError(f"shams must be at least 0, found {self.shams}.")
        if self.goal is None or self.target is not None or self.method == "sampled":
            raise InputError(
                "shams= are goals drawn at random beside a goal= of states; not for target=, nor method='sampled'. "
                "Leave them out."
            )
        if (n_cells := len(self._halved())) < 2:
            raise InputError(f"shams= halve the cells of the start state, found {n_cells}. Leave them out: shams=0.")

    @property
    def n_shams(self) -> int:
        """How many sham goals there are: `shams`, or where exact and the start has cells enough their usual number."""
        if self.shams is not None:
            return self.shams
        is_usual = self.goal is not None and self.target is None and self.method == "exact"
        return N_SHAMS if is_usual and len(self._halved()) >= FEWEST_TO_HALVE else 0

    def _halved(self) -> np.ndarray:
        """Return the row numbers of cells of the start state in whose directions shams lie."""
        rows = self.rows_of_start()
        rows = rows[self.cells.has_gene[rows]]
        if len(rows) <= MOST_CELLS:
            return rows
        return np.sort(np.random.default_rng([self.seed, N_SHAMS]).choice(rows, MOST_CELLS, replace=False))

    def _check_columns(self) -> None:
        if isinstance(self.obs, str):
            raise InputError(f"obs must be a sequence of columns; for one give [{self.obs!r}].")
        for name in filter(None, [self.donor, *self.obs]):
            self.cells.require_obs(name)
        if self.donor is not None:
            warn_of_no_donors(self.cells.labels(self.donor), self.donor)
        if len(set(self.obs)) < len(self.obs):
            raise InputError(f"obs names a column twice: {list(self.obs)}.")
        if taken := set(self.obs) & {*COLUMNS, *SAMPLED_COLUMNS, SHAMS}:
            raise InputError(
                f"The table has its own column {sorted(taken)[0]!r}; rename that of obs, or name donors with donor=."
            )

    def _check_states(self, goal: GoalState) -> None:
        """Refuse a goal whose states have no cells, or whose vectors are not such as the model makes."""
        states = self.cells.labels(goal.obs).dropna()
        n_cells = states.value_counts()
        only_start = self.target is not None
        needed = goal.states[:1] if only_start or goal.embeddings is not None else goal.states
        for state in needed:
            if state not in n_cells:
                raise InputError(f"No cell has {goal.obs} = {state!r}. {did_you_mean(state, sorted(n_cells.index))}")
        if only_start:
            return
        if goal.embeddings is None:
            few = {state: int(n_cells[state]) for state in goal.states if n_cells[state] < FEW_CELLS}
            if few and processes.is_first():
                logger.warning("States of few cells, whose mean vectors are uncertain: %s.", few)
            return
        if missing := set(goal.states) - set(goal.embeddings):
            raise InputError(f"embeddings lack the states {sorted(missing)}.")
        expected = (int(self.checkpoint.token_model.config.hidden_size),)
        for state in goal.states:
            shape = np.shape(goal.embeddings[state])
            if shape != expected:
                raise InputError(f"The vector of state {state!r} has shape {shape}, the model's have {expected}.")
            if not np.isfinite(goal.embeddings[state]).all():
                raise InputError(f"The vector of state {state!r} holds values that are not finite.")

    def rows_of_start(self) -> np.ndarray:
        """Return the row numbers of the cells in the start state; without a goal of all."""
        if self.goal is None:
            return np.arange(len(self.cells))
        return np.flatnonzero(self.cells.labels(self.goal.obs).to_numpy() == self.goal.start)

    def _donors(self, rows: np.ndarray) -> np.ndarray | None:
        return donors_of(self.cells, rows, self.donor, to="perturb")

    def layout(self, rows: np.ndarray) -> Layout:
        """Return how the rows of the table are made of what comes of the cells that are perturbed."""
        cells = self.cells
        carried = cells.obs[list(self.obs)].iloc[rows].reset_index(drop=True)
        goal = self.states.index(self.goal.goal) if self.n_shams and self.goal else 0
        names, donors = cells.cell_names[rows], self._donors(rows)
        return Layout(cells.vocabulary, names, donors, self.states, carried, self.n_shams, goal)

    def check_first_order(self, edits: Edits) -> None:
        """Refuse a screen with estimates of anything but single genes that cells express."""
        if self.method != "exact" and not edits.is_of_single_expressed_genes:
            does = "samples" if self.method == "sampled" else "estimates"
            raise InputError(
                f"method={self.method!r} {does} one expressed gene at a time: genes='each', or a list with "
                "combine='singly' of a kind that inserts no gene. Use method='exact'."
            )

    def _check_target(self) -> None:
        """Refuse a target that the model has not learned; with a goal, states that are not classes of it."""
        self._target_number()
        if self.layer not in (None, 0) or self.pooling is not None:
            raise InputError("With target= the classifier decides layer and pooling; leave them out.")
        if self.goal is None:
            return
        if self.goal.obs != self.target or self.goal.embeddings is not None:
            raise InputError(
                f"goal= with target={self.target!r} names classes of {self.target!r}, without embeddings; found states "
                f"of {self.goal.obs!r}. To perturb some cells only, give cells.select(…)."
            )
        classes = [str(state) for state in self.states]
        for state in self.goal.states:
            require_class(state, str(self.target), classes, self.checkpoint.name)

    def _target_number(self) -> int:
        head = self.checkpoint.head
        names = [] if head is None else [target.name for target in head.targets]
        is_of_cells = isinstance(self.checkpoint.model, CellClassifier)
        level: Level | None = None if head is None else "cell" if is_of_cells else "gene"
        return target_of_cells(str(self.target), level, names, self.checkpoint.name)

    @property
    def states(self) -> tuple[str | None, ...]:
        """What the values of a variant are called."""
        if self.target is not None and self.checkpoint.head is not None:
            return self.checkpoint.head.targets[self._target_number()].output_names
        if self.goal is None:
            return (None,)
        return self.goal.states if self.method == "exact" else self.goal.states[1:]  # each state costs a backward pass

    def score(self, device: torch.device) -> Score | None:
        """Return what is measured of a cell; states that are not given are embedded."""
        if self.target is not None:
            assert isinstance(self.checkpoint.model, CellClassifier)
            return Prediction(self.checkpoint.model, self._target_number())
        if self.goal is None:
            return None
        states, pooling = [str(state) for state in self.states], self.pooling_read
        if self.goal.embeddings is not None:
            vectors = np.stack([np.asarray(self.goal.embeddings[state], np.float32) for state in states])
        else:
            options: Mapping[str, Any] = {"layer": self.layer_read, "pooling": pooling, "device": device}
            vectors = embed_states(self.checkpoint, self.cells, self.goal.obs, states=states, **options).to_numpy()
        if self.n_shams:
            vectors = np.concatenate([vectors, self._sham_vectors(vectors, states, device)])
        return Nearness(torch.as_tensor(vectors, device=device), pooling)

    def _sham_vectors(self, vectors_SD: np.ndarray, states: Sequence[str], device: torch.device) -> np.ndarray:
        assert self.goal is not None
        options: Mapping[str, Any] = {"layer": self.layer_read, "pooling": self.pooling_read, "device": device}
        cells = np.asarray(embed(self.checkpoint, self.cells.select(self._halved()), **options).X)
        goal_D = vectors_SD[states.index(str(self.goal.goal))]
        if self.goal.start in states:
            start_D = vectors_SD[states.index(str(self.goal.start))]
        elif self.goal.embeddings is not None:
            start_D = np.asarray(self.goal.embeddings[self.goal.start], np.float32)
        else:
            start_D = cells.mean(0)
        return sham_goals(cells, start_D, goal_D, n=self.n_shams, rng=np.random.default_rng([self.seed, N_SHAMS]))

    def affected_tokens(self) -> np.ndarray | None:
        """Return of each token whether what happens to it is reported."""
        if self.affected is None:
            return None
        vocabulary = self.cells.vocabulary
        wanted = np.zeros(vocabulary.size, dtype=bool)
        each = isinstance(self.affected, str)
        if each and self.affected != EACH:
            raise InputError(f"affected must be 'each' or a sequence of gene ids, found {self.affected!r}.")
        wanted[vocabulary.tokens if each else vocabulary.tokens_of(self.affected)] = True
        return wanted

    def describe(self) -> dict[str, Any]:
        """Say what is measured, as JSON can hold it."""
        each_affected = self.affected is None or isinstance(self.affected, str)
        head = self.checkpoint.head
        return {
            "measure": CHANGE if self.target else SHIFT if self.goal else SIMILARITY,
            "goal": _described(self.goal) if self.goal else None,
            "target": {"name": self.target, "classes": list(self.states)} if self.target else None,
            "affected": self.affected if each_affected else list(self.affected or ()),
            "method": self.method,
            "refine": self.refine,
            "donor": self.donor,
            "obs": list(self.obs),
            "layer": self.layer_read,
            "pooling": head.pooling if self.target and head else self.pooling_read,
            "checkpoint": self.checkpoint.fingerprint,
            "cells": self.cells.fingerprint,
            **({"budget": self.budget.describe()} if self.method == "sampled" else {}),
            **({SHAMS: self.n_shams} if self.n_shams else {}),
        }


def donors_of(cells: TokenizedDataset, rows: np.ndarray, donor: str | None, *, to: str) -> np.ndarray | None:
    """Return the donor of each of some cells, None where no column names them; refuse cells without one.

    Parameters
    ----------
    cells, rows
        Cells, and the row numbers of those that are asked about.
    donor
        The obs column.
    to
        What is done with them, for the message.
    """
    if donor is None:
        return None
    donors = cells.labels(donor).iloc[rows]
    if unknown := int(donors.isna().sum()):
        raise InputError(
            f"{unknown} of {len(rows)} cells to {to} have no {donor!r}. Leave them out with cells.select(…)."
        )
    return donors.to_numpy()


def _described(goal: GoalState) -> dict[str, Any]:
    """What JSON can hold of a goal; state vectors that were given as their digest."""
    described = {"obs": goal.obs, "start": goal.start, "goal": goal.goal, "alternatives": list(goal.alternatives)}
    if goal.embeddings is None:
        return described
    vectors = np.stack([np.asarray(goal.embeddings[state], dtype=np.float32) for state in goal.states])
    return described | {"embeddings": hashlib.sha256(vectors.tobytes()).hexdigest()}


class Screened(NamedTuple):
    """Cells of a screen, and what is done with them."""

    question: Question
    """What is asked."""
    engine: Engine
    """How it is measured."""
    edits: Edits
    """What is done to a cell."""
    layout: Layout
    """How rows are laid out."""
    rows: np.ndarray
    """Which cells."""
    n_variants: np.ndarray
    """How many variants each has."""
    seed: int
