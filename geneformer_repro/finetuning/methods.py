"""Every way to predict the test rows from the training rows: networks, and what they must be compared with."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

import numpy as np
import pandas as pd

import geneformer_repro.processes as processes
from geneformer_repro.config import with_settings
from geneformer_repro.finetuning.kinds import kind_of
from geneformer_repro.finetuning.kinds.kind import FINE_TUNED, RANDOM
from geneformer_repro.finetuning.networks import HISTORY, drop_weights, read_history
from geneformer_repro.finetuning.problems.problem import Problem
from geneformer_repro.finetuning.splits import Split
from geneformer_repro.progress import progress
from geneformer_repro.targets import columns_of
from geneformer_repro.unfinished import is_whole, keep


@dataclass(frozen=True)
class NetworkMethod:
    """A way to train a network that stands in the table."""

    name: str
    """In the tables."""
    folder: str
    """In the work folder."""
    pretrained: bool = True
    """Begin with the start's weights; else with random ones."""
    step: str = ""
    """What is added to the words before its progress bar."""
    start: Any = None
    """What to begin with in place of the experiment's start."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Settings that differ from the experiment's."""
    config: Any = None
    """How it is trained, where that is not the experiment's way at all."""
    problem: Problem | None = None
    """The same rows with the same targets as such a network looks at them, in place of the experiment's."""

    def begin(self, start: Any) -> Any:
        """Return what the network begins with in an experiment that starts so."""
        return start if self.start is None else self.start


NETWORKS = (
    NetworkMethod(FINE_TUNED, "fine-tuned"),
    NetworkMethod(RANDOM, "random", pretrained=False, step=", random weights"),
)
"""The network that is wanted, and the same without pretraining."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """What the methods made of one split."""

    model: Any
    """The first network, where it was wanted; else None."""
    history: pd.DataFrame
    """Its training and validation scores."""
    predicted: list[dict[str, np.ndarray | None]]
    """For each target, by method: a prediction of each test row, as its kind has them; None where the method could not
    run."""
    said: Mapping[str, np.ndarray] = field(default_factory=dict)
    """By network, what `Problem.ask` returned."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """Which methods are compared on a problem, and what they look at."""

    problem: Problem
    start: Any
    """What networks begin with."""
    features: Any = None
    """What the simple methods look at; None leaves them out."""
    networks: tuple[NetworkMethod, ...] = NETWORKS
    """Which there are, the one that is wanted first."""
    ready: Mapping[str, Sequence[np.ndarray | None]] = field(default_factory=dict)
    """Methods that learn nothing from these rows: by name, for each target, the predictions of all rows of the
    problem, or None."""

    def run(
        self, config: Any, split: Split, *, with_model: bool = True, work: Path, step: str = "fine-tune"
    ) -> Outcome:
        """Train every method on the same rows and let it predict the same test rows.

        Parameters
        ----------
        config
            How the networks are trained.
        split
            Of the problem. Only networks look at the validation rows, to choose their epoch.
        with_model
            Whether the first network itself is wanted; else its predictions are kept, and its weights are not.
        work
            Folder for what is finished, so that a run that was cut off does not repeat it: the predictions of each
            simple method of a target as ``methods/TARGET/METHOD.npy``, of a network as ``FOLDER.npy``.
        step
            Word before the progress bars.
        """
        problem, test_rows = self.problem, split.test
        predicted, said = [dict[str, np.ndarray | None]() for _ in problem.targets], {}

        def train(network: NetworkMethod) -> tuple[Any, pd.DataFrame]:
            return (network.problem or problem).train(
                network.begin(self.start),
                with_settings(network.config or config, **network.changes),
                split,
                pretrained=network.pretrained,
                work=work / network.folder,
                step=f"{step}{network.step}",
            )

        def add(network: NetworkMethod, numbers: np.ndarray) -> None:
            said[network.name] = numbers
            meant = (network.problem or problem).predictions(numbers, test_rows)
            columns = columns_of(problem.targets, meant)
            for of_target, target, meaning in zip(predicted, problem.targets, columns, strict=True):
                of_target[network.name] = kind_of(target).as_predicted(meaning)

        def add_without_weights(network: NetworkMethod) -> None:
            looking = network.problem or problem
            add(network, kept_of_network(work / network.folder, lambda: looking.ask(train(network)[0], test_rows)))

        first, *others = self.networks
        model = None
        if with_model:
            model, history = train(first)
            add(first, problem.ask(model, test_rows))
        else:
            add_without_weights(first)
            history = read_history(work / first.folder)
        if self.features is not None:
            self._add_simple_methods(predicted, split, config.seed, work / "methods")
        for network in others:
            add_without_weights(network)
        for name, by_target in self.ready.items():
            for of_target, of_all in zip(predicted, by_target, strict=True):
                of_target[name] = None if of_all is None else of_all[test_rows]
        return Outcome(model, history, predicted, said)

    def _add_simple_methods(
        self, predicted: list[dict[str, np.ndarray | None]], split: Split, seed: int, work: Path
    ) -> None:
        train_rows = self.problem.fitted_rows(split)
        for of_target, (kind, labels) in zip(predicted, self.problem.of_kinds(train_rows), strict=True):
            labelled = ~np.isnan(labels).any(axis=1)
            fits = kind.simple_methods(self.features, train_rows[labelled], labels[labelled], split.test, seed)
            folder = work / file_name(kind.target.name)
            with progress("simple methods", total=len(fits), unit="methods", quiet=not processes.is_first()) as bar:
                for name, fit in fits.items():
                    bar.set_postfix_str(name)
                    of_target[name] = kept(folder / f"{file_name(name)}.npy", fit)
                    bar.update()


def kept(path: Path, make: Callable[[], np.ndarray | None], *, by_all: bool = False) -> np.ndarray | None:
    """Return what an earlier call kept, else make and keep it.

    Parameters
    ----------
    path
        An ``.npy`` file, named after what it holds.
    make
        Called on the first process, whose numbers the others get; None is not kept.
    by_all
        Let every process call `make`, as training needs.
    """
    found = processes.agreed(lambda: np.load(path, allow_pickle=False) if is_whole(path) else None)
    if found is not None:
        return found
    made = make() if by_all else processes.agreed(make)
    if made is not None:
        processes.agreed(lambda: keep(path, lambda aside: np.save(aside, made)))
    return made


def kept_of_network(work: Path, ask: Callable[[], np.ndarray]) -> np.ndarray:
    """Return what a network says: ``WORK.npy``, else by training and asking it; its weights are not kept after that."""
    path = work.with_name(f"{work.name}.npy")

    def forget_without_history() -> None:
        if not is_whole(work / HISTORY):
            path.unlink(missing_ok=True)

    processes.agreed(forget_without_history)
    said = cast(np.ndarray, kept(path, ask, by_all=True))
    processes.agreed(partial(drop_weights, work))
    return said


def file_name(name: str) -> str:
    """Return a name as a file may have it, the rest written as in a URL; no two names become one."""
    return re.sub(r"^\.", "%2E", re.sub(r"[^\w .-]", lambda found: quote(found[0], safe=""), name))
