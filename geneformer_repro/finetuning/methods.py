"""Every way to predict the test cells from the training cells: the network, and what it must be compared with."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd

from geneformer_repro import processes
from geneformer_repro.checkpoint import Checkpoint
from geneformer_repro.files import new_file
from geneformer_repro.finetuning.baselines import CLASS_METHODS, NUMBER_METHODS, Features
from geneformer_repro.finetuning.networks import NetworkConfig, meaning, outputs_of, train_classifier
from geneformer_repro.finetuning.tasks import Task
from geneformer_repro.model import CellClassifier
from geneformer_repro.progress import progress

FINE_TUNED, RANDOM = "fine-tuned", "same network, random weights"


@dataclass(frozen=True, eq=False)
class Outcome:
    """What the methods made of one split."""

    model: CellClassifier
    """The fine-tuned one."""
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
    work
        Folder for what is finished, so that a run that was cut off does not repeat it.
    step
        Word before the progress bars.
    """
    trained_with = partial(
        train_classifier, task, start, config, train_rows=train_rows, validation_rows=validation_rows
    )
    model, history = trained_with(work=work / "fine-tuned", step=step)
    cells = task.cells.select(test_rows)

    def ask(network: CellClassifier) -> list[np.ndarray]:
        outputs = network.head.split(outputs_of(network, cells, network.head))
        return [meaning(target, one.numpy()) for target, one in zip(network.head.targets, outputs, strict=True)]

    predicted: list[dict[str, np.ndarray | None]] = [{FINE_TUNED: one} for one in ask(model)]
    if features is None:
        return Outcome(model, history, predicted)
    _add_simple_methods(predicted, task, features, train_rows, test_rows, config.seed, work)

    def from_random_weights() -> np.ndarray:
        network, _ = trained_with(pretrained=False, work=work / "random", step=f"{step}, random weights")
        return np.concatenate([one.reshape(len(test_rows), -1) for one in ask(network)], axis=1)

    together = cast(np.ndarray, kept(work / "random.npy", from_random_weights))
    for i, (target, of_target) in enumerate(zip(task.targets, _split(task, together), strict=True)):
        predicted[i][RANDOM] = of_target if target.classes else of_target[:, 0]
    return Outcome(model, history, predicted)


def _split(task: Task, columns: np.ndarray) -> list[np.ndarray]:
    return np.split(columns, np.cumsum([target.n_outputs for target in task.targets])[:-1], axis=1)


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
            for number, (name, fit) in enumerate(fits.items()):
                bar.set_postfix_str(name)
                predicted[i][name] = kept(work / f"target{i}_method{number}.npy", fit)
                bar.update()


def kept(path: Path, make: Callable[[], np.ndarray | None]) -> np.ndarray | None:
    """Return what an earlier run kept, else make and keep it."""
    if path.exists():
        return np.load(path, allow_pickle=False)
    made = make()
    if made is not None and processes.is_first():
        with new_file(path, overwrite=True) as aside:
            np.save(aside, made)
    return made
