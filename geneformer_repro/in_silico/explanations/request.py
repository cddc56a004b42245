"""What is asked of an explanation: arguments of `explain`, checked before any work."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch

from geneformer_repro.arguments import require_at_least
from geneformer_repro.errors import InputError, did_you_mean
from geneformer_repro.in_silico.explanations.explanation import COLUMNS, SURROGATE_COLUMNS
from geneformer_repro.in_silico.explanations.occlusions import OPERATORS, Operator
from geneformer_repro.in_silico.explanations.path_integrals import Integration, Rule
from geneformer_repro.in_silico.explanations.surrogate import Sampling
from geneformer_repro.in_silico.goals import GoalState
from geneformer_repro.outline import TRAINED_ON
from geneformer_repro.reading import Dtype, require_one_of
from geneformer_repro.tokenizer.labels import asked_labels

ExplainMethod: TypeAlias = Literal[
    "delete", "hide", "mask", "median_rank", "first_order", "gradient_input", "integrated_gradients",
    "attention_gradient", "rollout", "attention", "surrogate", "median",
]  # fmt: skip
METHODS: tuple[ExplainMethod, ...] = get_args(ExplainMethod)
AnyBaseline: TypeAlias = Literal["mask", "mean", "pad", "median"]
"""Of models that read tokens the first three, of values of genes "mean" and "median", of characters "mean" and "pad".
"""
SUMMARIES = ("rollout", "attention")
"""Methods that say what is attended and nothing of the number explained: shares without sign, no attribution."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """Arguments of `explain` but for the model and its rows; each family of models takes those that it knows."""

    target: str | None = None
    state: Any = None
    contrast: Any = None
    goal: GoalState | None = None
    gene: str | None = None
    layer: int | None = None
    pooling: Literal["mean", "cls"] | None = None
    methods: tuple[str, ...] = ("hide",)
    donor: str | None = None
    obs: tuple[str, ...] = ()
    max_cells: int | None = None
    seed: int = 0
    sets: Any = None
    pooled_masks: bool = False
    baseline: AnyBaseline = "mask"
    steps: int = Integration().first_steps
    rule: Rule = "midpoint"
    operator: Operator = "hide"
    """Of the surrogate."""
    masks: int | None = None
    """Of the surrogate: how many altered cells it is fitted to; None: as many as its number of units needs."""
    dtype: Dtype = "float32"
    max_tokens: int | None = None
    device: str | torch.device | None = None
    allow_seen: bool = False

    def __post_init__(self) -> None:
        self._check_methods()
        require_at_least(max_cells=(self.max_cells, 1), seed=(self.seed, 0))
        self.integration, self.sampling  # noqa: B018  # which refuse settings that are none
        require_one_of(AnyBaseline, "baseline", self.baseline)
        if self.operator not in ("hide", "median_rank"):
            raise InputError(f"operator, of the surrogate, must be 'hide' or 'median_rank', found {self.operator!r}.")
        if len(set(self.obs)) < len(self.obs):
            raise InputError(f"obs names a column twice: {list(self.obs)}.")
        if taken := sorted(set(self.obs) & {*COLUMNS, *SURROGATE_COLUMNS}):
            raise InputError(
                f"The table has its own column {taken[0]!r}; rename that of obs, or name donors with donor=."
            )

    def _check_methods(self) -> None:
        for method in self.methods:
            if method not in METHODS:
                raise InputError(f"There is no method {method!r}. {did_you_mean(str(method), METHODS)}")
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise InputError(f"methods must name at least one, and each once; found {list(self.methods)}.")
        of_groups = [method for method in self.methods if method in (*OPERATORS, "median", "surrogate")]
        if self.sets is not None and len(of_groups) < len(self.methods):
            others = [method for method in self.methods if method not in of_groups]
            raise InputError(
                f"sets= takes groups of genes away at once, which {', '.join(OPERATORS)}, median and surrogate can; "
                f"found {', '.join(others)}. For sets of genes by their values, use gene_set_enrichment."
            )

    @property
    def states(self) -> tuple[str, ...] | None:
        """Names of the classes that are asked for; None for all."""
        if self.state is None:
            return None
        several = isinstance(self.state, Sequence) and not isinstance(self.state, str)
        names = asked_labels(self.state if several else [self.state], "state: each")
        if len(set(names)) < len(names) or not names:
            raise InputError(f"state must name at least one class, and each once; found {list(names)}.")
        return names

    @property
    def contrast_name(self) -> str | None:
        """Name of the class that is compared with."""
        return None if self.contrast is None else asked_labels([self.contrast], "contrast")[0]

    @property
    def integration(self) -> Integration:
        """How integrated gradients are summed."""
        return Integration(rule=self.rule, first_steps=self.steps)

    @property
    def sampling(self) -> Sampling:
        """How surrogates are fitted."""
        return Sampling(n_masks=self.masks)

    def settings(self) -> dict[str, dict[str, Any]]:
        """Return the settings of each method, as metadata hold them."""
        return {method: self._settings_of(method) for method in self.methods}

    def _settings_of(self, method: str) -> dict[str, Any]:
        match method:
            case "mask":
                return {"pooled": self.pooled_masks}
            case "integrated_gradients":
                how = asdict(self.integration)
                return {"baseline": self.baseline, "steps": how.pop("first_steps"), **how}
            case "gradient_input":
                return {"baseline": self.baseline}
            case "surrogate":
                return {"operator": self.operator, "masks": self.masks, **asdict(self.sampling)}
        return {}


def refuse_seen(is_seen: np.ndarray, names: Sequence[str] | np.ndarray, rows: str, whose: str) -> None:
    """Raise if a model has learned from some of the rows that it explains: it tells what it was told.

    Parameters
    ----------
    is_seen, names
        Of each row.
    rows
        What they are called.
    whose
        What the model is called.
    """
    if is_seen.any():
        first = str(names[int(is_seen.argmax())])
        raise InputError(
            f"{is_seen.sum():,} of {len(is_seen):,} {rows} to explain (first: {first!r}) are among "
            f"{TRAINED_ON.format(whose)}"
        )


def sequence_of(names: Sequence[str], what: str) -> tuple[str, ...]:
    """Return names that were given in a sequence; refuse a single one, which is one too."""
    if isinstance(names, str):
        raise InputError(f"{what} must be a sequence; for one give [{names!r}].")
    return tuple(names)


GeneSetsGiven: TypeAlias = Mapping[str, Sequence[str]] | str | Path
