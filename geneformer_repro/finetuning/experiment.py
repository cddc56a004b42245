"""One experiment for all problems: every method on every split, once, and one table.

Settings are searched within each split, on its training and validation rows; test rows are looked at once, at the end.
Of several splits the network that is kept is one more, trained on the rows of all of them for as many epochs as they
found best.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from geneformer_repro.config import with_settings
from geneformer_repro.errors import InputError
from geneformer_repro.finetuning.block_use import uses_of_blocks
from geneformer_repro.finetuning.curve import learning_curve, require_enough
from geneformer_repro.finetuning.evaluation import Evaluation, evaluate_target
from geneformer_repro.finetuning.methods import NETWORKS, Comparison, NetworkMethod, Outcome
from geneformer_repro.finetuning.problems.problem import Problem
from geneformer_repro.finetuning.search import best_settings, search
from geneformer_repro.finetuning.splits import Split, digest_of, make_splits, repeat_of, split_table
from geneformer_repro.targets import labels_of


@dataclass(frozen=True, eq=False)
class Findings:
    """What an experiment found."""

    network: Any
    """The first of the networks; of several splits one trained on the rows of all."""
    evaluations: Mapping[str, Evaluation]
    """By target."""
    history: pd.DataFrame
    """Of the first network in each split; of several with a column ``fold``."""
    curve: pd.DataFrame | None
    trials: pd.DataFrame | None
    config: Any
    """With the settings that the search chose."""
    outcomes: list[Outcome]
    """Of each split."""
    predicted: list[dict[str, np.ndarray | None]]
    """For each target, by method, the predictions of the `Experiment.tested` rows."""


def splits_of(problem: Problem, obs: pd.DataFrame, config: Any) -> list[Split]:
    """Split the rows of a problem, whose columns these are, as its configuration says; see `make_splits`."""
    are_classes = all(kind.strata_are_classes for kind, _ in problem.of_kinds())
    how = {"seed": config.seed, "are_classes": are_classes, "row": problem.row}
    return make_splits(problem.names, problem.strata, obs, config.split, **how)


@dataclass(frozen=True, eq=False)
class Experiment:
    """A problem, how its rows are split, and which networks are compared."""

    problem: Problem
    start: Any
    """What networks begin with: a checkpoint."""
    splits: list[Split]
    config: Any
    """How networks are trained; with a section ``search``, if settings may be searched."""
    networks: tuple[NetworkMethod, ...] = NETWORKS
    sizes: tuple[int, ...] = ()
    """Of a learning curve."""
    ready: Mapping[str, Sequence[np.ndarray | None]] = field(default_factory=dict)
    """Methods that learn nothing from these rows: for each target their predictions of all of them, or None."""
    reference: str | None = None
    """A network that all methods are compared with, beside the best simple one."""

    @property
    def network_names(self) -> list[str]:
        """The networks, the one that is asked about first, and those that are ready."""
        return [*(network.name for network in self.networks), *self.ready]

    def require_labels(self) -> None:
        """Raise unless every part can be learned from, and the curve drawn.

        Raises
        ------
        InputError
            No training, or no test row has a label of a target; or the curve asks for more rows than there are.
        """
        parts = [("training", split.train) for split in self.splits]
        parts += [("validation", split.validation) for split in self.splits]
        for part, rows in [*parts, ("test", np.concatenate([split.test for split in self.splits]))]:
            for kind, labels in self.problem.of_kinds(rows):
                may_lack = part == "validation" and np.isnan(labels).any(axis=1).all()
                if not may_lack and (lacking := kind.lacks(labels)):
                    raise InputError(
                        f"No {part} {self.problem.row} has {lacking} in {kind.target.name!r}. Split otherwise, or "
                        "leave it out."
                    )
        require_enough(self.sizes, self.splits[0])

    @property
    def tested(self) -> np.ndarray:
        """Rows that are reported, in the order of the tables; each as often as there are repeats."""
        return np.concatenate([split.test for split in self.splits])[self._order]

    @property
    def _order(self) -> np.ndarray:
        """Where in the tables the rows stand that are tested split by split."""
        rows = np.concatenate([split.test for split in self.splits])
        return np.argsort(rows, kind="stable") if self.problem.reported_in_order else np.arange(len(rows))

    @property
    def units(self) -> np.ndarray | None:
        """What intervals resample as wholes, for each tested row: its group; of several repeats at least the row."""
        if self.problem.drawn is not None:
            return self.problem.drawn[self.tested]
        return self.tested if self.repeats > 1 else None

    @property
    def repeats(self) -> int:
        """How often the rows are dealt into folds."""
        return int(repeat_of(self.splits)[-1]) + 1

    @property
    def learned(self) -> np.ndarray:
        """Rows that the network which is kept learns from; of several splits those of all their parts."""
        several = len(self.splits) > 1
        return np.unique(np.concatenate([np.concatenate(split) if several else split.train for split in self.splits]))

    @property
    def intervals(self) -> str:
        """What the intervals are, in words."""
        groups, named = self.problem.drawn, self.problem.drawn_by
        n_groups = 0 if groups is None else len(np.unique(groups[self.tested]))
        repeated = f", each tested {self.repeats} times" if self.repeats > 1 else ""
        if n_groups >= 2:
            rough = ", rough with so few" if n_groups < 8 else ""
            return f"95 % bootstrap intervals over {n_groups} groups of {named!r}{repeated}{rough}"
        alone = f", too narrow, since all are of one group of {named!r}" if n_groups else ""
        return f"95 % bootstrap intervals over {len(np.unique(self.tested))} {self.problem.row}s{repeated}{alone}"

    def split_table(self) -> pd.DataFrame:
        """Return which row is in which part."""
        return split_table(self.splits, self.problem.names, row=self.problem.row)

    def digest_of_splits(self) -> str:
        """Return a digest of which row is in which part of which split."""
        return digest_of(self.splits, self.problem.names)

    def run(self, features: Any, work: Path) -> Findings:
        """Run everything but the curve; what an earlier call finished in `work` is not repeated.

        Parameters
        ----------
        features
            What the simple methods look at; None leaves them out.
        work
            Folder with a folder for each split, the learning curve, and the last network.
        """
        outcomes, tables = self._splits(self._compared(features), work)
        chosen = best_settings(tables, self.config) if tables else self.config
        network = outcomes[0].model or self._final(outcomes, chosen, work / "final")
        predicted = self._predicted(outcomes)
        return Findings(
            network,
            self._evaluations(predicted, outcomes),
            _by_fold([outcome.history for outcome in outcomes]),
            None,
            _by_fold(tables) if tables else None,
            chosen,
            outcomes,
            predicted,
        )

    def with_curve(self, found: Findings, features: Any, work: Path) -> Findings:
        """Add the learning curve to what `run` found; its networks are many, and none of the results waits for them."""
        compared = self._compared(features)
        curve = learning_curve(compared, found.config, self.splits[0], sizes=self.sizes, work=work / "curve")
        return replace(found, curve=curve)

    def _compared(self, features: Any) -> Comparison:
        return Comparison(self.problem, self.start, features, self.networks, self.ready)

    def _splits(self, compared: Comparison, work: Path) -> tuple[list[Outcome], list[pd.DataFrame]]:
        """Run every method on every split; search settings within each."""
        outcomes, tables, several = [], [], len(self.splits) > 1
        for number, split in enumerate(self.splits, 1):
            folder, config = work / f"fold-{number}", self.config
            if (searched := getattr(config, "search", None)) and searched.trials:
                config, table = self._search(split, folder / "search")
                tables.append(table)
            outcomes.append(
                compared.run(
                    config,
                    split,
                    with_model=not several,
                    work=folder,
                    step=f"fold {number} of {len(self.splits)}" if several else "fine-tune",
                )
            )
        return outcomes, tables

    def _search(self, split: Split, work: Path) -> tuple[Any, pd.DataFrame]:
        searched = self.problem.select(np.concatenate([split.train, split.validation]))
        rows = Split(*np.split(np.arange(len(searched.labels)), [len(split.train)]))
        return search(searched, self.networks[0].begin(self.start), self.config, rows, work=work)

    def _final(self, outcomes: list[Outcome], config: Any, work: Path) -> Any:
        """Train on the rows of all splits, as long as they found best."""
        first = self.networks[0]
        network, _ = self.problem.train(
            first.begin(self.start),
            self.problem.settled(with_settings(config, **first.changes), [outcome.history for outcome in outcomes]),
            Split(self.learned),
            pretrained=first.pretrained,
            work=work,
            step=f"all {self.problem.row}s",
        )
        return network

    def _predicted(self, outcomes: list[Outcome]) -> list[dict[str, np.ndarray | None]]:
        """Join the predictions of all splits, in the order of the tables."""
        return [
            _joined([outcome.predicted[i] for outcome in outcomes], self._order)
            for i in range(len(self.problem.targets))
        ]

    def _evaluations(
        self, predicted: list[dict[str, np.ndarray | None]], outcomes: list[Outcome]
    ) -> dict[str, Evaluation]:
        """Score all methods on the test rows of all splits."""
        tested, n_tested = self.tested, [len(split.test) for split in self.splits]
        folds = np.repeat(np.arange(len(self.splits)), n_tested)[self._order]
        labels = labels_of(self.problem.targets, self.problem.labels[tested])
        uses = uses_of_blocks(self.problem, self.networks, self.splits, outcomes)
        return {
            target.name: evaluate_target(
                target,
                self.problem.names[tested],
                of_target,
                by_method,
                folds=folds,
                repeats=repeat_of(self.splits)[folds],
                groups=self.units,
                seed=self.config.seed,
                named=self.problem.row,
                group=self.problem.group,
                networks=self.network_names,
                reference=self.reference,
                block_use=use,
            )
            for target, of_target, by_method, use in zip(self.problem.targets, labels, predicted, uses, strict=True)
        }


def _by_fold(tables: list[pd.DataFrame]) -> pd.DataFrame:
    if len(tables) == 1:
        return tables[0]
    return pd.concat([table.assign(fold=i + 1) for i, table in enumerate(tables)], ignore_index=True)


def _joined(predicted: list[dict[str, np.ndarray | None]], order: np.ndarray) -> dict[str, np.ndarray | None]:
    joined: dict[str, np.ndarray | None] = {}
    for name in predicted[0]:
        parts = [by_method[name] for by_method in predicted]
        there = [part for part in parts if part is not None]
        joined[name] = np.concatenate(there)[order] if len(there) == len(parts) else None
    return joined
