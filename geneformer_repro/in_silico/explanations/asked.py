"""From what a user asks of a model to the number that is explained; what the model has not learned is refused first."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from geneformer_repro.checkpoint import Checkpoint
from geneformer_repro.errors import InputError, did_you_mean
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
from geneformer_repro.in_silico.question import GoalState, Question
from geneformer_repro.model import MaskedGeneModel
from geneformer_repro.targets import Classes, Target
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
            self.target  # noqa: B018
        else:
            self._check_gene(model)
        if isinstance(self.target, Classes):
            self.classes  # noqa: B018
        elif request.state is not None or request.contrast is not None:
            what = "a pretrained model" if self.target is None else self.target.described
            raise InputError(f"state= and contrast= name classes, and {what} has none. Leave them out.")

    def _refuse_with(self, asked: str, *others: str) -> None:
        if found := [name for name in others if getattr(self.request, name) is not None]:
            raise InputError(
                f"{asked}= and {found[0]}= ask different things of {self.checkpoint.name}. Give one of them."
            )

    def _check_gene(self, model: MaskedGeneModel | GeneClassifier) -> None:
        request, name = self.request, self.checkpoint.name
        if isinstance(model, MaskedGeneModel) and request.target is not None:
            raise InputError(
                f"target={request.target!r} needs a classifier, and {name} is a pretrained model. Make one with "
                "finetune, or ask for goal= (nearer to which state) or gene= (how sure it is of a masked gene)."
            )
        if isinstance(model, GeneClassifier) and request.target not in (None, model.head.targets[0].name):
            raise self._unknown_target([model.head.targets[0].name])
        if request.gene is None:
            what = "a classifier of genes" if isinstance(model, GeneClassifier) else "a pretrained model"
            goal = "" if isinstance(model, GeneClassifier) else ", or goal= for how near cells are to a state"
            raise InputError(f"{name} is {what}: name the gene that it is asked about with gene={goal}.")
        self.gene_token  # noqa: B018

    def _unknown_target(self, names: Sequence[str]) -> InputError:
        return InputError(
            f"{self.checkpoint.name} has no target {self.request.target!r}. "
            f"{did_you_mean(str(self.request.target), names)}"
        )

    @property
    def _targets(self) -> tuple[Target, ...]:
        return () if self.checkpoint.head is None else self.checkpoint.head.targets

    @property
    def target_number(self) -> int:
        """Number of the target among the head's; of a single one it need not be said."""
        names = [target.name for target in self._targets]
        if self.request.target is None:
            if len(names) > 1:
                raise InputError(f"{self.checkpoint.name} has several targets: name one of {names} with target=.")
            return 0
        if self.request.target not in names:
            raise self._unknown_target(names)
        return names.index(self.request.target)

    @property
    def target(self) -> Target | None:
        """The target that is explained; None of a pretrained model, and of a goal."""
        return self._targets[self.target_number] if self._targets and self.request.goal is None else None

    @property
    def classes(self) -> tuple[tuple[int, ...], int | None]:
        """Numbers of the classes that are explained, and of the one they are compared with."""
        assert self.target is not None
        names = self.target.output_names
        contrast = self._class(self.request.contrast_name, names)
        if self.request.states is None:
            return tuple(k for k in range(len(names)) if k != contrast), contrast
        classes = tuple(self._class(name, names) for name in self.request.states)
        if contrast is not None and contrast in classes:
            raise InputError(f"contrast={names[contrast]!r} is asked for as well; compare it with another class.")
        return tuple(k for k in classes if k is not None), contrast

    def _class(self, name: str | None, names: Sequence[str]) -> int | None:
        if name is None:
            return None
        if name not in names:
            assert self.target is not None
            raise InputError(
                f"{self.checkpoint.name} knows no {self.target.name} {name!r}. {did_you_mean(name, sorted(names))}"
            )
        return names.index(name)

    @property
    def gene_token(self) -> int | None:
        """Token of the gene that is asked about."""
        if self.request.gene is None:
            return None
        vocabulary = self.cells.vocabulary
        (place,) = vocabulary.find([self.request.gene])
        if place < 0:
            raise InputError(
                f"gene={self.request.gene!r} is not in the vocabulary, or its name stands for several genes. "
                f"{did_you_mean(self.request.gene, [*vocabulary.by_name])}"
            )
        return int(vocabulary.tokens[place])

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
            return ClassOfGene(model, token, name, *self.classes)
        assert isinstance(model, CellClassifier)
        of_classes = self.classes if isinstance(self.target, Classes) else ()
        return OfCell(model, OutputAnswer(model.head.targets, self.target_number, *of_classes))

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
