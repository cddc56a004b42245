"""What a network that looks at several blocks of inputs makes of each: vectors, expression, clinical columns.

That a network with clinical columns and expression scores well does not say that it reads both. So each block is dealt
out anew among the test rows that are compared with each other, and what the score falls by is what the block was worth
to the network. It is asked while the network is at hand and kept with its predictions (`Problem.ask`), since weights
are not; scores are those of all folds together, as in the table of methods.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from geneformer_repro.expression import falls
from geneformer_repro.finetuning.figures import rows_figure
from geneformer_repro.finetuning.kinds.kind import Kind
from geneformer_repro.finetuning.methods import NetworkMethod, Outcome
from geneformer_repro.finetuning.problems.problem import Problem
from geneformer_repro.finetuning.splits import Split
from geneformer_repro.report import GREY, Section
from geneformer_repro.targets import Target, columns_of, labels_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class _Asked(NamedTuple):
    """What a network said of all test rows, fold after fold."""

    method: str
    problem: Problem
    said: np.ndarray

    def scores(self, number: int, kind: Kind[Target], labels_NS: np.ndarray, folds: np.ndarray) -> pd.DataFrame:
        """Return the falls of a target's score."""
        labelled = ~np.isnan(labels_NS).any(axis=1)

        def score(meaning_NK: np.ndarray) -> float:
            of_target = columns_of(self.problem.targets, meaning_NK)[number][labelled]
            within = kind.leading_score(labels_NS[labelled], kind.as_predicted(of_target), folds=folds[labelled])
            return within(np.ones((labelled.sum(), 1))).item()

        as_it_is = score(self.problem.predictions(self.said, np.arange(len(self.said))))
        dealt = self.problem.dealt(self.said)
        table = falls(as_it_is, {block: np.array([*map(score, of_draws)]) for block, of_draws in dealt.items()})
        table.insert(0, "method", self.method)
        return table


def uses_of_blocks(
    problem: Problem, networks: Sequence[NetworkMethod], splits: Sequence[Split], outcomes: Sequence[Outcome]
) -> list[pd.DataFrame | None]:
    """Return for each target what networks make of the blocks of their inputs; None where none has several.

    Parameters
    ----------
    problem
        Whose rows were tested.
    networks
        What was asked.
    splits, outcomes
        Which rows were tested, and what networks said of them.

    Returns
    -------
    A row a ``method`` and ``block``: the leading ``score`` on the test rows, and its ``fall`` once the block is dealt
    out anew among rows of a cohort and fold (the mean over the draws, of which ``low`` and ``high`` are the lowest and
    highest).
    """
    asked = list(_asked(problem, networks, outcomes))
    if not asked:
        return [None] * len(problem.targets)
    rows = np.concatenate([split.test for split in splits])
    folds = np.repeat(np.arange(len(splits)), [len(split.test) for split in splits])
    kinds = [kind for kind, _ in problem.of_kinds()]
    of_targets = enumerate(zip(kinds, labels_of(problem.targets, problem.labels[rows]), strict=True))
    return [
        pd.concat([one.scores(number, kind, labels, folds) for one in asked], ignore_index=True)
        for number, (kind, labels) in of_targets
    ]


def _asked(problem: Problem, networks: Sequence[NetworkMethod], outcomes: Sequence[Outcome]) -> Iterator[_Asked]:
    """Yield the networks whose inputs have several blocks."""
    for network in networks:
        looking, said = network.problem or problem, [outcome.said[network.name] for outcome in outcomes]
        if looking.dealt(said[0]):
            yield _Asked(network.name, looking, np.concatenate(said))


def use_figure(use: pd.DataFrame, *, score: str) -> "Figure":
    """Draw by how much a score falls without each block.

    Parameters
    ----------
    use
        From `uses_of_blocks`, or the same with a row a ``cohort`` as well.
    score
        What the score is called.
    """
    named = [
        name for name in ("cohort", "method", "block") if name in use and (name == "block" or use[name].nunique() > 1)
    ]
    labels = _in_words(use)[named].agg(": ".join, axis=1)
    figure, axes = rows_figure(
        use.rename(columns={"low": "fall_low", "high": "fall_high"}), list(labels), {"fall": "mean over draws"}
    )
    axes.axvline(0, color=GREY, linewidth=0.8, linestyle="--")
    axes.set(xlabel=f"fall of the {score} once the block is dealt out anew (bar: lowest to highest)")
    return figure


def _in_words(use: pd.DataFrame) -> pd.DataFrame:
    return use.assign(
        block=use["block"].replace({"covariates": "clinical columns", "embedding": "vectors of the encoder"})
    )


def use_section(use: pd.DataFrame, figure: "Figure", *, score: str, tested: str, title: str) -> Section:
    """Return the part of the page that shows them."""
    return Section(
        title,
        f"By how much the {score} falls once a block of a network's inputs is dealt out anew among the test {tested} "
        "of a cohort and fold; the mean, lowest and highest of some draws. A block that is not used falls by 0, one "
        "that misleads by less.",
        "What a block would tell by itself: of what two blocks both tell, either may fall little.",
        figure=figure,
        table=_in_words(use).set_index(next(name for name in ("cohort", "method") if name in use)),
    )
