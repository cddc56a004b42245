"""Training one network on labelled cells, once, and asking it.

A run of folds, trials and a learning curve trains dozens of networks. Of one under way the last checkpoints are kept,
with the optimiser's moments, three times the weights; of a finished one its weights, history and log (of 104 million
parameters 0.4 GB in place of 2.5), and not even the weights where its predictions are kept.
"""

import dataclasses
import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import geneformer_repro.processes as processes
from geneformer_repro.checkpoint import Checkpoint
from geneformer_repro.files import read_json
from geneformer_repro.finetuning import transfer
from geneformer_repro.finetuning.kinds import kind_of
from geneformer_repro.finetuning.settings.networks import smoothing_of
from geneformer_repro.heads import CellClassifier, GeneClassifier, Head
from geneformer_repro.model import flops
from geneformer_repro.targets import Target, columns_of, labels_of
from geneformer_repro.training.config import CellExamples, ParameterGroup, TrainingRun
from geneformer_repro.training.log import LOG_FILE
from geneformer_repro.training.loop import train
from geneformer_repro.unfinished import is_whole, keep

logger = logging.getLogger(__name__)

Network = TypeVar("Network", bound=nn.Module)
WEIGHTS, HISTORY = "model.safetensors", "history.json"
"""What a finished network's folder holds beside its log; the history is written last, and says that it is."""
SELECTION = "selection"
"""Held-out score by which an epoch, or a trial, is chosen: macro-F1, or of a number the explained share of the training
cells' variance; of several targets the mean."""
NO_SCORES: Mapping[str, Any] = {"eval_strategy": "no", "eval_on_start": False}
"""Fields of `TrainingArguments` for a run without held-out cells."""


def new_classifier(like: Checkpoint, head: Head, *, seed: int, pretrained: bool) -> CellClassifier | GeneClassifier:
    """Make a classifier of the shape of a checkpoint, with its encoder's weights or with random ones."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = (GeneClassifier if head.level == "gene" else CellClassifier)(like.token_model.config, head)
    if pretrained:
        own, theirs = model.bert.state_dict(), like.token_model.bert.state_dict()  # one alone may have a pooler
        model.bert.load_state_dict({name: theirs.get(name, weight) for name, weight in own.items()})
    return model


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
class Training:
    """What the training of one network is made of."""

    start: Checkpoint
    """Gives the encoder, or only its shape."""
    config: Any
    """Has sections ``training`` and ``transfer``, and a ``seed``."""
    head: Head
    examples: CellExamples
    collate: Callable[[list[Any]], dict[str, Any]]
    score: Callable[[nn.Module], dict[str, float]] | None
    """Scores a model on the validation rows; None keeps the last epoch."""
    target_weights: Sequence[float] | None = None
    class_weights: Sequence[Sequence[float] | None] | None = None

    def make_model(self, *, pretrained: bool = True) -> tuple[CellClassifier | GeneClassifier, list[ParameterGroup]]:
        """Make a classifier, ready to be trained."""
        model = new_classifier(self.start, self.head, seed=self.config.seed, pretrained=pretrained)
        model.weigh(self.target_weights, self.class_weights, smoothing=smoothing_of(self.config.training))
        return transfer.prepare(model, self.config.transfer, seed=self.config.seed)

    def as_run(self, groups: Sequence[ParameterGroup] = (), *, work: Path, step: str) -> TrainingRun:
        """Say where the training is done."""
        return TrainingRun(
            examples=self.examples,
            collate=self.collate,
            evaluate=self.score or (lambda _: {}),
            config=self.config.training,
            seed=self.config.seed,
            groups=groups,
            best_by=SELECTION if self.score else None,
            flops_an_epoch=3 * flops(self.start.token_model.config, self.examples.lengths),
            work=work,
            step=step,
        )

    def run(self, *, pretrained: bool, work: Path, step: str) -> tuple[CellClassifier | GeneClassifier, pd.DataFrame]:
        """Train, once: return the classifier, a plain one whatever the transfer, and its history."""

        def train_here() -> tuple[CellClassifier | GeneClassifier, pd.DataFrame]:
            prepared, groups = self.make_model(pretrained=pretrained)
            trained, history = train(prepared, self.as_run(groups, work=work, step=step))
            return transfer.finished(trained).eval(), history

        def like() -> CellClassifier | GeneClassifier:
            return new_classifier(self.start, self.head, seed=self.config.seed, pretrained=False)

        return trained_once(work, train_here, like=like)


def scores_by_target(targets: Sequence[Target], labels_NS: np.ndarray, meaning_NK: Tensor) -> dict[str, float]:
    """Return the validation scores, of several targets each with the target's name, and `SELECTION`.

    Parameters
    ----------
    targets
        As training rows define them.
    labels_NS
        Of the validation rows.
    meaning_NK
        What the outputs mean for these rows, all targets side by side.
    """
    found: dict[str, dict[str, float]] = {}
    merits = []
    of_targets = zip(targets, labels_of(targets, labels_NS), columns_of(targets, np.asarray(meaning_NK)), strict=True)
    for target, labels, meaning in of_targets:
        kind, known = kind_of(target), ~np.isnan(labels).any(axis=1)
        if known.any():
            found[target.name] = kind.validation_scores(labels[known], kind.as_predicted(meaning[known]))
            merits.append(kind.merit(found[target.name]))
    named = {f"{name}/{score}": value for name, scores in found.items() for score, value in scores.items()}
    return {**(found[targets[0].name] if len(targets) == 1 else named), SELECTION: float(np.mean(merits))}


def best_epoch(history: pd.DataFrame) -> float:
    """Return the epoch whose model was kept, at least the first; the last one where no row chose it."""
    if f"eval_{SELECTION}" not in history:
        return float(history["epoch"].iloc[-1])
    return max(float(best_entry(history)["epoch"]), 1.0)


def best_entry(history: pd.DataFrame) -> pd.Series:
    """Return the entry of the best held-out score of a trained model; before training there is nothing to choose."""
    scored = history[history["epoch"] > 0].dropna(subset=[f"eval_{SELECTION}"])
    return scored.iloc[int(scored[f"eval_{SELECTION}"].to_numpy().argmax())]
