"""Training one network on labelled cells, once, and asking it.

A run of folds, trials and a learning curve trains dozens of networks. Of one under way the last checkpoints are kept,
with the optimiser's moments, three times the weights; of a finished one its weights, history and log (of 104 million
parameters 0.4 GB in place of 2.5), and not even the weights where its predictions are kept.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

import geneformer_repro.processes as processes
from geneformer_repro.batching import end_to_end
from geneformer_repro.checkpoint import Checkpoint
from geneformer_repro.config import ConfigError, require
from geneformer_repro.files import read_json
from geneformer_repro.finetuning import transfer
from geneformer_repro.finetuning.metrics import number_scores, validation_scores
from geneformer_repro.finetuning.tasks import Task
from geneformer_repro.finetuning.transfer import TransferConfig
from geneformer_repro.heads import CellClassifier, GeneClassifier, Head, HeadPooling, Target
from geneformer_repro.model import flops
from geneformer_repro.reading import outputs_of
from geneformer_repro.training.config import SMOOTHING, ParameterGroup, TrainConfig, trainer_fields
from geneformer_repro.training.log import LOG_FILE
from geneformer_repro.training.loop import CellExamples, train
from geneformer_repro.unfinished import is_whole, keep

Network = TypeVar("Network", bound=PreTrainedModel)
WEIGHTS, HISTORY = "model.safetensors", "history.json"
"""What a finished network's folder holds beside its log; the history is written last, and says that it is."""
ClassBalance = Literal["none", "weights", "sampling"]
SELECTION = "selection"
"""Held-out score by which an epoch, or a trial, is chosen: macro-F1, or of a number the explained share of the training
cells' variance; of several targets the mean."""
NO_SCORES: Mapping[str, Any] = {"eval_strategy": "no", "eval_on_start": False}
"""Fields of `TrainingArguments` for a run without held-out cells."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkConfig(TransferConfig, TrainConfig):
    """How to train a classifier of cells."""

    task_weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """How much the loss of a target counts, by its name; 1 where nothing is said."""
    class_balance: ClassBalance = "none"
    """Against rare classes: "weights" counts a cell's loss by one over the size of its class, "sampling" draws cells
    of every class equally often (of the first target)."""
    pooling: HeadPooling = "mean"
    """How a cell's vector is made: the mean over its genes, ``<cls>``, a learned weighted mean ("attention"), or as in
    published classifiers the first token through a dense layer ("pooler")."""

    def __post_init__(self) -> None:
        TrainConfig.__post_init__(self)
        TransferConfig.__post_init__(self)
        smoothing_of(self)
        choices = get_args(ClassBalance)
        require(self.class_balance in choices, self, "class_balance", f"one of {', '.join(map(repr, choices))}")
        require(all(weight >= 0 for weight in self.task_weights.values()), self, "task_weights", "at least 0 each")


def smoothing_of(config: TrainConfig) -> float:
    """Return the share of a label that is spread over all classes, as its field of `TrainingArguments` says.

    Raises
    ------
    ConfigError
        It is not between 0 and 1.
    """
    share = float(trainer_fields(config)[SMOOTHING]) if SMOOTHING in config.trainer else 0.0
    if not 0 <= share <= 1:
        raise ConfigError(f"trainer.{SMOOTHING} must be between 0 and 1, found {share:g}.")
    return share


def new_classifier(like: Checkpoint, head: Head, *, seed: int, pretrained: bool) -> CellClassifier | GeneClassifier:
    """Make a classifier of the shape of a checkpoint, with its encoder's weights or with random ones."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = (GeneClassifier if head.level == "gene" else CellClassifier)(like.model.config, head)
    if pretrained:
        own, theirs = model.bert.state_dict(), like.model.bert.state_dict()  # of which one alone may have a pooler
        model.bert.load_state_dict({name: theirs.get(name, weight) for name, weight in own.items()})
    return model


def train_classifier(
    task: Task,
    start: Checkpoint,
    config: NetworkConfig,
    *,
    train_rows: np.ndarray,
    validation_rows: np.ndarray | None,
    pretrained: bool = True,
    work: Path,
    step: str,
) -> tuple[CellClassifier, pd.DataFrame]:
    """Train a classifier; keep the epoch that is best on the validation cells, or without any the last.

    Parameters
    ----------
    task
        Labelled cells.
    start
        Gives the encoder, or only its shape.
    config
        How to train and transfer.
    train_rows, validation_rows
        Cells of the task.
    pretrained
        Start from the weights of `start`; else from random ones, all of them trained.
    work, step
        As for `train`.

    Returns
    -------
    The classifier, a plain one whatever the transfer, and its history.
    """
    if not pretrained:
        config = transfer.all_learning(config)
    if validation_rows is None:
        config = dataclasses.replace(config, trainer={**config.trainer, **NO_SCORES})
    parts = RunParts.of(task, start, config, train_rows=train_rows, validation_rows=validation_rows)

    def trained_here() -> tuple[CellClassifier, pd.DataFrame]:
        prepared, groups = parts.make_model(pretrained=pretrained)
        trained, history = train(
            prepared,
            parts.examples,
            collate=parts.collate,
            evaluate=parts.score,
            config=config,
            groups=groups,
            best_by=None if validation_rows is None else SELECTION,
            work=work,
            flops_an_epoch=3 * flops(start.model.config, parts.examples.lengths),
            step=step,
        )
        return cast(CellClassifier, transfer.finished(trained)).eval(), history

    def like() -> CellClassifier:
        return cast(CellClassifier, new_classifier(start, parts.head, seed=config.seed, pretrained=False))

    return trained_once(work, trained_here, like=like)


def trained_once(
    work: Path, train_here: Callable[[], tuple[Network, pd.DataFrame]], *, like: Callable[[], Network]
) -> tuple[Network, pd.DataFrame]:
    """Return the network that an earlier call finished; else train it, and keep its weights, history and log alone.

    Parameters
    ----------
    work
        The network's folder.
    train_here
        Trains in that folder, from what it holds; returns the network, a plain one, and its history. Every process
        calls it.
    like
        Makes a network of the same shape, to be given the weights that were kept.

    Returns
    -------
    The same network and history, bit by bit, whichever way they come.
    """
    if processes.agreed(partial(_is_finished, work)):
        model, kept = like(), read_json(work / HISTORY)
        model.load_state_dict(load_file(work / WEIGHTS))
        device = torch.device("cpu") if kept["device"] == "cpu" else processes.device()
        nn.Module.to(model.eval(), device)
        history = read_history(work)
    else:
        model, history = train_here()
        processes.agreed(partial(_keep, model, history, work))
    processes.agreed(partial(_drop_all_but, (f"{WEIGHTS}*", f"{HISTORY}*", LOG_FILE), work))
    return model, history


def read_history(work: Path) -> pd.DataFrame:
    """Return the history of a finished network."""
    kept = read_json(work / HISTORY)
    return pd.DataFrame(kept["entries"], columns=kept["columns"])


def drop_weights(work: Path) -> None:
    """Remove the weights of a finished network, for the first process to call once its predictions are kept."""
    _drop_all_but((f"{HISTORY}*", LOG_FILE), work)


def _is_finished(work: Path) -> bool:
    return is_whole(work / HISTORY) and is_whole(work / WEIGHTS)


def _keep(model: nn.Module, history: pd.DataFrame, work: Path) -> None:
    weights = {name: weight.detach().cpu().contiguous() for name, weight in model.state_dict().items()}
    rows = history.to_dict("records")
    content = {
        "columns": list(history),
        "entries": [{name: value for name, value in row.items() if pd.notna(value)} for row in rows],
        "device": next(model.parameters()).device.type,
    }
    keep(work / WEIGHTS, partial(save_file, weights))
    keep(work / HISTORY, lambda aside: aside.write_text(json.dumps(content)))  # also of an infinite gradient


def _drop_all_but(patterns: tuple[str, ...], work: Path) -> None:
    for path in work.glob("*"):
        if path.is_dir():
            shutil.rmtree(path)
        elif not any(path.match(pattern) for pattern in patterns):
            path.unlink()


@dataclasses.dataclass(frozen=True, eq=False)
class RunParts:
    """What a training run is made of."""

    task: Task
    start: Checkpoint
    config: NetworkConfig
    head: Head
    examples: CellExamples
    class_weights: list[list[float] | None] | None
    score: Callable[[nn.Module], dict[str, float]]
    """Scores a model on the validation cells."""

    @classmethod
    def of(
        cls,
        task: Task,
        start: Checkpoint,
        config: NetworkConfig,
        *,
        train_rows: np.ndarray,
        validation_rows: np.ndarray | None,
    ) -> "RunParts":
        """Put together what `train_classifier` is given."""
        head = Head(task.head_targets(train_rows), config.pooling)
        labels = task.labels[train_rows]
        balanced = [balanced_weights(labels[:, i], target) for i, target in enumerate(head.targets)]
        examples = CellExamples(
            task.cells.lengths[train_rows],
            lambda i, _: (task.cells[train_rows[i]], labels[i]),
            rows=train_rows,
            weights=_sampling_weights(labels[:, 0], balanced[0]) if config.class_balance == "sampling" else None,
        )
        class_weights = balanced if config.class_balance == "weights" else None
        return cls(task, start, config, head, examples, class_weights, _scorer(task, head, validation_rows))

    def make_model(self, *, pretrained: bool = True) -> tuple[CellClassifier, list[ParameterGroup]]:
        """Make a classifier, ready to be trained."""
        model = new_classifier(self.start, self.head, seed=self.config.seed, pretrained=pretrained)
        weights = [self.config.task_weights.get(target.name, 1.0) for target in self.head.targets]
        model.weigh(weights, self.class_weights, smoothing=smoothing_of(self.config))
        return transfer.prepare(cast(CellClassifier, model), self.config, seed=self.config.seed)

    def collate(self, batch: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
        """Lay cells end to end, and stack their labels."""
        labels = torch.as_tensor(np.stack([label for _, label in batch]), dtype=torch.float32)
        return end_to_end([tokens for tokens, _ in batch], self.task.cells.vocabulary).inputs | {"labels": labels}


def balanced_weights(labels: np.ndarray, target: Target) -> list[float] | None:
    """One over the share of each class, so that the mean over cells is 1; 0 for a class without cells."""
    if not target.classes:
        return None
    n_cells = np.bincount(labels[~np.isnan(labels)].astype(int), minlength=len(target.classes))
    return [float(n_cells.sum() / ((n_cells > 0).sum() * n)) if n else 0.0 for n in n_cells]


def _sampling_weights(labels: np.ndarray, weight_of_class: list[float] | None) -> np.ndarray | None:
    if weight_of_class is None:
        return None
    weights = np.array([*weight_of_class, 1.0])
    return weights[np.where(np.isnan(labels), len(weights) - 1, labels).astype(int)]


def _scorer(task: Task, head: Head, rows: np.ndarray | None) -> Callable[[nn.Module], dict[str, float]]:
    if rows is None:
        return lambda _: {}
    cells, labels = task.cells.select(rows), task.labels[rows]

    def score(model: nn.Module) -> dict[str, float]:
        outputs = outputs_of(model, cells, head, shared=True)
        found = {
            target.name: _target_scores(target, of_target.numpy(), labels[:, i])
            for i, (target, of_target) in enumerate(zip(head.targets, head.split(outputs), strict=True))
        }
        loss = cast(CellClassifier, model).sum_of_losses(outputs, torch.tensor(labels, dtype=torch.float32))
        chosen = [_merit(target, found[target.name]) for target in head.targets if found[target.name]]
        named = next(iter(found.values())) if len(found) == 1 else _prefixed(found)
        return {"loss": loss.item() / len(labels), **named, SELECTION: float(np.mean(chosen))}

    return score


def _merit(target: Target, found: Mapping[str, float]) -> float:
    """Return macro-F1, or the share of the training cells' variance that is explained."""
    return found["macro_f1"] if target.classes else 1 - (found["rmse"] / target.sd) ** 2


def _prefixed(found: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    return {f"{name}/{score}": value for name, of_target in found.items() for score, value in of_target.items()}


def _target_scores(target: Target, outputs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    known = ~np.isnan(labels)
    if not known.any():
        return {}
    predicted = meaning(target, outputs[known])
    if not target.classes:
        found = number_scores(labels[known], predicted)
        r2 = {} if np.isnan(found["r2"]) else {"r2": found["r2"]}  # not defined where all numbers are equal
        return {"rmse": found["rmse"], **r2}
    return validation_scores(labels[known].astype(int), predicted)


def best_epoch(history: pd.DataFrame) -> float:
    """Return the epoch whose model was kept, at least the first."""
    return max(float(best_entry(history)["epoch"]), 1.0)


def best_entry(history: pd.DataFrame) -> pd.Series:
    """Return the entry of the best held-out score of a trained model; before training there is nothing to choose."""
    scored = history[history["epoch"] > 0].dropna(subset=[f"eval_{SELECTION}"])
    return scored.iloc[int(scored[f"eval_{SELECTION}"].to_numpy().argmax())]


def meaning(target: Target, outputs: np.ndarray) -> np.ndarray:
    """Return what outputs mean: probabilities (n, classes), or numbers (n,)."""
    if target.classes:
        return torch.as_tensor(outputs, dtype=torch.float64).softmax(-1).numpy()
    return np.asarray(outputs[:, 0].astype(np.float64) * target.sd + target.mean)
