"""Every way to predict the test cells from the training cells: the network, and what it must be compared with."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast
from urllib.parse import quote

import numpy as np
import pandas as pd

import geneformer_repro.processes as processes
from geneformer_repro.checkpoint import Checkpoint
from geneformer_repro.finetuning.baselines import CLASS_METHODS, NUMBER_METHODS, Features
from geneformer_repro.finetuning.networks import (
    HISTORY,
    NetworkConfig,
    drop_weights,
    meaning,
    read_history,
    train_classifier,
)
from geneformer_repro.finetuning.tasks import Task
from geneformer_repro.heads import CellClassifier
from geneformer_repro.progress import progress
from geneformer_repro.reading import outputs_of
from geneformer_repro.tokenizer.dataset import TokenizedDataset
from geneformer_repro.unfinished import is_whole, keep

FINE_TUNED, RANDOM = "fine-tuned", "same network, random weights"


@dataclass(frozen=True, eq=False)
class Outcome:
    """What the methods made of one split."""

    model: CellClassifier | None
    """The fine-tuned one, where it was wanted."""
    history: pd.DataFrame
    """Its training and validation scores."""
    predicted: list[dict[str, np.ndarray | None]]
    """For each target, by method: probabilities (test cells, classes) or numbers (test cells,); None where the method
    could not run."""


def run_methods(
    task: Task,
    start: Checkpoint,
    config: NetworkConfig,
    *,
    train_rows: np.ndarray,
    validation_rows: np.ndarray | None,
    test_rows: np.ndarray,
    features: Features | None,
    with_model: bool = True,
    work: Path,
    step: str = "fine-tune",
) -> Outcome:
    """Train every method on the same cells and let it predict the same test cells.

    Parameters
    ----------
    task
        Labelled cells.
    start
        The pretrained model.
    config
        How the networks are trained.
    train_rows, validation_rows, test_rows
        Cells of the task. Only networks look at the validation cells, to choose their epoch; None keeps the last.
    features
        What the simple methods look at; None leaves all comparisons out.
    with_model
        Whether the fine-tuned network itself is wanted; else its predictions are kept, and its weights are not.
    work
        Folder for what is finished, so that a run that was cut off does not repeat it: the predictions of each simple
        method of a target as ``methods/TARGET/METHOD.npy``, of the networks as ``fine-tuned.npy`` and ``random.npy``.
    step
        Word before the progress bars.
    """
    trained_with = partial(
        train_classifier, task, start, config, train_rows=train_rows, validation_rows=validation_rows
    )
    cells = task.cells.select(test_rows)
    model, predicted = None, [dict[str, np.ndarray | None]() for _ in task.targets]
    ours, random = work / "fine-tuned", work / "random"
    train_ours = partial(trained_with, work=ours, step=step)
    if with_model:
        model, history = train_ours()
        _add(predicted, FINE_TUNED, task, _asked(model, cells))
    else:
        _add(predicted, FINE_TUNED, task, kept_of_network(ours, lambda: _asked(train_ours()[0], cells)))
        history = read_history(ours)
    if features is None:
        return Outcome(model, history, predicted)
    _add_simple_methods(predicted, task, features, train_rows, test_rows, config.seed, work / "methods")
    train_random = partial(trained_with, pretrained=False, work=random, step=f"{step}, random weights")
    _add(predicted, RANDOM, task, kept_of_network(random, lambda: _asked(train_random()[0], cells)))
    return Outcome(model, history, predicted)


def _asked(network: CellClassifier, cells: TokenizedDataset) -> np.ndarray:
    """Return what a network says of cells: the probabilities or the number of each target, side by side."""
    outputs = network.head.split(outputs_of(network, cells, network.head, shared=True))
    said = [meaning(target, one.numpy()) for target, one in zip(network.head.targets, outputs, strict=True)]
    return np.concatenate([one.reshape(len(cells), -1) for one in said], axis=1)


def _add(predicted: list[dict[str, np.ndarray | None]], method: str, task: Task, columns: np.ndarray) -> None:
    ends = np.cumsum([target.n_outputs for target in task.targets])[:-1]
    for of_target, target, one in zip(predicted, task.targets, np.split(columns, ends, axis=1), strict=True):
        of_target[method] = one if target.classes else one[:, 0]


def _add_simple_methods(
    predicted: list[dict[str, np.ndarray | None]],
    task: Task,
    features: Features,
    train_rows: np.ndarray,
    test_rows: np.ndarray,
    seed: int,
    work: Path,
) -> None:
    for i, target in enumerate(task.targets):
        known = train_rows[~np.isnan(task.labels[train_rows, i])]
        labels = task.labels[known, i]
        fits: dict[str, Callable[[], np.ndarray | None]]
        if target.classes:
            given = (features, known, labels.astype(int), len(target.classes), test_rows, seed)
            fits = {name: partial(method, *given) for name, method in CLASS_METHODS.items()}
        else:
            fits = {
                name: partial(method, features, known, labels, test_rows, seed)
                for name, method in NUMBER_METHODS.items()
            }
        with progress("simple methods", total=len(fits), unit="methods", quiet=not processes.is_first()) as bar:
            for name, fit in fits.items():
                bar.set_postfix_str(name)
                predicted[i][name] = kept(work / file_name(target.name) / f"{file_name(name)}.npy", fit)
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
