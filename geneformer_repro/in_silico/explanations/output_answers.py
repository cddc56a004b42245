"""What is explained of the outputs of a head, whoever made them: cells, samples or patients.

Probabilities saturate: a cell that is certainly a B cell is one without any single gene. So a class is explained by its
log-odds, which add up over evidence; a time to an event by its log hazard or its cumulative hazard; a number in its
unit.

Shapes: B rows, K outputs of all targets side by side, S numbers explained.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from geneformer_repro.hazards import discrete_cumulative_hazard, weibull_risk
from geneformer_repro.outline import TargetOutline, chosen_outputs
from geneformer_repro.targets import Classes, SurvivalTime, Target


def log_odds(logits_BK: Tensor, classes: Sequence[int], contrast: int | None) -> Tensor:
    """Return the log-odds of some classes against all others, or against one, (B, S).

    Parameters
    ----------
    logits_BK
        Of all classes.
    classes
        The numbers of those that are asked about.
    contrast
        Number of the class they are compared with; None: all others together.
    """
    if contrast is not None:
        return logits_BK[:, list(classes)] - logits_BK[:, [contrast]]
    others = [[j for j in range(logits_BK.shape[1]) if j != k] for k in classes]
    rest = [logits_BK[:, of_class].logsumexp(1) for of_class in others]
    return logits_BK[:, list(classes)] - torch.stack(rest, dim=1)


def survival_risk(target: SurvivalTime, outputs_BK: Tensor) -> Tensor:
    """Return what is explained of outputs about a time to an event, (B, 1); higher is worse.

    Of hazards of intervals the cumulative hazard until the horizon, −log S(τ); of a Cox loss the log hazard; of Weibull
    minus the log of the median time.
    """
    match target.learned_by:
        case "hazard":
            return discrete_cumulative_hazard(outputs_BK, np.asarray(target.edges), np.array([target.horizon]))
        case "cox":
            return outputs_BK[:, :1]  # not by the meaning, whose survival has no slope without a baseline
    return weibull_risk(outputs_BK)[:, None]


def described_risk(target: SurvivalTime) -> str:
    """Say in words what `survival_risk` is."""
    match target.learned_by:
        case "hazard":
            return f"cumulative hazard of {target.name!r} until {target.horizon:g}, −log S"
        case "cox":
            return f"log relative hazard of {target.name!r}"
    return f"minus the log of the median time to {target.name!r}"


@dataclass(frozen=True)
class OutputAnswer:
    """Numbers that are explained of the outputs of a head: log-odds of classes, a number, or a risk."""

    targets: tuple[Target, ...]
    """Of the head; their outputs lie side by side."""
    number: int
    """Which of them is explained."""
    classes: tuple[int, ...] = ()
    """Of a target that is classes, those that are explained."""
    contrast: int | None = None
    """The class that they are compared with; None: all others together."""

    @classmethod
    def of(
        cls,
        targets: Sequence[Target],
        target: str | None,
        state: str | Sequence[str] | None,
        contrast: str | None,
        *,
        named: str,
    ) -> "OutputAnswer":
        """Find what is asked about among the targets of a network.

        Parameters
        ----------
        targets
            Of the network.
        target
            Name of one of them; may be left out where there is one.
        state
            Of classes one of them, or several; default all.
        contrast
            Of classes another one, with which they are compared.
        named
            What the network is called in messages.

        Raises
        ------
        InputError
            There is no such target or class, none is named among several, or classes are asked of a number.
        """
        given = [state] if isinstance(state, str) else state
        outlines = [
            TargetOutline(one.name, one.described, one.classes if isinstance(one, Classes) else None) for one in targets
        ]
        return cls(tuple(targets), *chosen_outputs(outlines, target, given, contrast, name=named))

    @property
    def target(self) -> Target:
        """What is explained."""
        return self.targets[self.number]

    @property
    def names(self) -> tuple[str, ...]:
        """What each number is called: the classes, or the target."""
        target = self.target
        return tuple(target.classes[k] for k in self.classes) if isinstance(target, Classes) else (target.name,)

    @property
    def described(self) -> str:
        """What the numbers are, in words."""
        target = self.target
        if isinstance(target, Classes):
            against = "all other classes" if self.contrast is None else repr(target.classes[self.contrast])
            return f"log-odds of each {target.name} named in column state against {against}, in nats"
        return described_risk(target) if isinstance(target, SurvivalTime) else f"predicted {target.name}, in its unit"

    def __call__(self, outputs_BK: Tensor) -> Tensor:
        """Return the numbers, (B, S); differentiable."""
        outputs = outputs_BK.split([target.n_outputs for target in self.targets], dim=-1)[self.number]
        target = self.target
        if isinstance(target, Classes):
            return log_odds(outputs, self.classes, self.contrast)
        return survival_risk(target, outputs) if isinstance(target, SurvivalTime) else target.meaning(outputs)
