"""From what a user asks of a model to the number that is explained; what the model has not learned is refused first."""

from dataclasses import dataclass

import numpy as np
import torch

from geneformer_repro.checkpoint import Checkpoint
from geneformer_repro.errors import InputError
from geneformer_repro.heads import CellClassifier, GeneClassifier, require_poolable
from geneformer_repro.in_silico.engine import Nearness
from geneformer_repro.in_silico.explanations.answers import (
    Answer,
    ClassOfGene,
    MaskedGene,
    OfCell,
    Towards,
)
from geneformer_repro.in_silico.explanations.output_answers import OutputAnswer
from geneformer_repro.in_silico.explanations.request import Request
from geneformer_repro.in_silico.goals import GoalState
from geneformer_repro.in_silico.question import Question
from geneformer_repro.model import MaskedGeneModel
from geneformer_repro.outline import Level, require_gene, require_gene_named
from geneformer_repro.targets import Target
from geneformer_repro.tokenizer.dataset import TokenizedDataset


@dataclass(frozen=True)
class Asked:
    """What is asked of a model that reads tokens; refuses what the model cannot answer.

    Parameters
    ----------
    request, checkpoint, cells
        The arguments of `explain`.
    """

    request: Request
    checkpoint: Checkpoint
    cells: TokenizedDataset

    def __post_init__(self) -> None:
        request, model = self.request, self.checkpoint.token_model
        if request.goal is not None:
            self._refuse_with("goal", "target", "state", "contrast", "gene")
            self._goal_question  # noqa: B018  # refuses states that are not there
            return
        if request.layer is not None or request.pooling is not None:
            raise InputError("layer= and pooling= are for goal=; a target decides them itself. Leave them out.")
        if isinstance(model, CellClassifier):
            self._refuse_with("target", "gene")
        else:
            self._check_gene(model)
        if self._targets:
            self.output  # noqa: B018  # refuses what is no target or class
        elif request.state is not None or request.contrast is not None:
            raise InputError("state= and contrast= name classes, and a pretrained model has none. Leave them out.")

    def _refuse_with(self, asked: str, *others: str) -> None:
        if found := [name for name in others if getattr(self.request, name) is not None]:
            raise InputError(
                f"{asked}= and {found[0]}= ask different things of {self.checkpoint.name}. Give one of them."
            )

    def _check_gene(self, model: MaskedGeneModel | GeneClassifier) -> None:
        level: Level | None = "gene" if isinstance(model, GeneClassifier) else None
        names = [target.name for target in self._targets[:1]]
        require_gene_named(self.request.target, self.request.gene, level, names, self.checkpoint.name)
        self.gene_token  # noqa: B018

    @property
    def _targets(self) -> tuple[Target, ...]:
        return () if self.checkpoint.head is None else self.checkpoint.head.targets

    @property
    def output(self) -> OutputAnswer | None:
        """What is explained of the outputs of a head; None of a pretrained model, and of a goal."""
        if not self._targets or self.request.goal is not None:
            return None
        request = self.request
        return OutputAnswer.of(
            self._targets, request.target, request.states, request.contrast_name, named=self.checkpoint.name
        )

    @property
    def target(self) -> Target | None:
        """The target that is explained; None of a pretrained model, and of a goal."""
        return None if self.output is None else self.output.target

    @property
    def gene_token(self) -> int | None:
        """Token of the gene that is asked about."""
        if self.request.gene is None:
            return None
        return require_gene(self.request.gene, self.cells.vocabulary)

    @property
    def _goal_question(self) -> Question:
        """The question of a screen towards the same goal, which knows what is wrong with one."""
        goal = self.request.goal
        assert isinstance(goal, GoalState)
        if self.request.pooling is not None:
            require_poolable(self.cells.vocabulary, self.request.pooling)
        return Question(
            self.checkpoint,
            self.cells,
            goal,
            target=None,
            affected=None,
            layer=self.request.layer,
            pooling=self.request.pooling,
            method="exact",
            refine=0,
            donor=None,
            obs=(),
            shams=0,
        )

    @property
    def layer(self) -> int:
        """The layer that is read: 0 is the last block."""
        return 0 if self.request.goal is None else self._goal_question.layer_read

    def rows(self) -> np.ndarray:
        """Return the row numbers of the cells that can be explained: in the start state, or with the gene."""
        cells = self.cells
        rows = np.arange(len(cells)) if self.request.goal is None else self._goal_question.rows_of_start()
        rows = rows[cells.has_gene[rows]]
        if self.gene_token is not None:
            rows = np.array([row for row in rows if (cells[int(row)] == self.gene_token).any()], dtype=np.int64)
        if not len(rows):
            where = "has a gene" if self.request.gene is None else f"expresses {self.request.gene}"
            raise InputError(f"No cell {where}, so there is nothing to explain.")
        return rows

    def answer(self, device: torch.device) -> Answer:
        """Return the number that is explained; states of a goal are embedded where their vectors are not given."""
        model, vocabulary, token = self.checkpoint.token_model, self.cells.vocabulary, self.gene_token
        if self.request.goal is not None:
            question = self._goal_question
            nearness = question.score(device)
            assert isinstance(nearness, Nearness)
            start, *goals = map(str, question.states)
            states_SD = nearness.states_SD
            return Towards(states_SD[0], states_SD[1:], tuple(goals), start, question.pooling_read, question.layer_read)
        if token is not None:
            name = vocabulary.gene_names[int(vocabulary.genes_of(np.array([token]))[0])]
            if isinstance(model, MaskedGeneModel):
                return MaskedGene(model, token, (name,))
            assert isinstance(model, GeneClassifier)
            assert self.output is not None
            return ClassOfGene(model, token, name, self.output.classes, self.output.contrast)
        assert isinstance(model, CellClassifier)
        assert self.output is not None
        return OfCell(model, self.output)

    def describe(self) -> dict[str, object]:
        """Say what is asked, as JSON can hold it."""
        request, target = self.request, self.target
        return {
            "target": None if target is None else target.name,
            "contrast": request.contrast_name,
            "goal": None if request.goal is None else self._goal_question.describe()["goal"],
            "gene": request.gene,
            "layer": self.layer,
            "pooling": self._pooling,
        }

    @property
    def _pooling(self) -> str | None:
        if self.request.goal is not None:
            return self._goal_question.pooling_read
        head = self.checkpoint.head
        return None if head is None or head.level == "gene" else head.pooling
