"""Fine-tuning a checkpoint to tell cell classes apart, and asking at once whether that was worth it.

One split, five ways to predict, one table. The test cells are seen once, at the end; the validation cells
choose the epoch.
"""

import copy
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geneformer_repro.batching import collate, evaluation_batches
from geneformer_repro.checkpoint import Checkpoint, Head
from geneformer_repro.config import require, resolved
from geneformer_repro.embedding import MAX_TOKENS, embed
from geneformer_repro.errors import InputError
from geneformer_repro.files import new_directory, provenance
from geneformer_repro.finetuning import baselines
from geneformer_repro.finetuning.metrics import confusion, scores, scores_with_intervals
from geneformer_repro.finetuning.splits import Split, split_cells, split_table
from geneformer_repro.model import CellClassifier, Pooling, flops, require_poolable
from geneformer_repro.report import confusion_figure, methods_figure
from geneformer_repro.tokenizer.dataset import TokenizedDataset
from geneformer_repro.training import LOG_FILE, CellExamples, TrainConfig, is_main_process, resumable, train

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)

FINE_TUNED, RANDOM = "fine-tuned", "same network, random weights"
MAJORITY, ON_COUNTS, ON_EMBEDDING = (
    "majority class",
    "logistic regression, counts",
    "logistic regression, frozen embedding",
)


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TrainConfig):
    """How to fine-tune."""

    target: str
    """The obs column to learn."""
    group: str | None = None
    """Obs column whose groups are never split, such as the donor; None splits cell by cell, which flatters
    every method when cells of a donor are alike."""
    validation: float = 0.1
    """Share of the cells that choose the epoch: the one with the best macro-F1 is kept."""
    test: float = 0.2
    """Share of the cells that are reported."""
    min_cells: int = 0
    """Classes with fewer cells are left out."""
    pooling: Pooling = "mean"
    """How a cell's vector is made."""
    epochs: float = 10
    learning_rate: float = 5e-5
    warmup_steps: float = 0.1
    baselines: bool = True
    """Also fit the methods to compare with; leave it on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.validation < 1, self, "validation", "between 0 and 1")
        require(0 < self.test < 1 - self.validation, self, "test", "between 0 and 1 - validation")


@dataclass(frozen=True, eq=False)
class Finetuned:
    """What fine-tuning made."""

    checkpoint: Checkpoint
    """The classifier."""
    methods: pd.DataFrame
    """A row a method: ``accuracy``, ``macro_f1`` on the test cells, each with ``_low`` and ``_high`` (95 %)."""
    confusion: pd.DataFrame
    """Test cells by true and predicted class, of the fine-tuned model."""
    predictions: pd.DataFrame
    """A row a test cell: ``cell``, ``true``, and each method's prediction."""
    split: pd.DataFrame
    """``cell`` and ``part``."""
    history: pd.DataFrame
    """Training and validation scores of the fine-tuned model."""


@dataclass(frozen=True)
class _Task:
    """Labelled cells and how they are split."""

    cells: TokenizedDataset
    labels: np.ndarray
    classes: tuple[str, ...]
    groups: np.ndarray | None
    split: Split
    config: FinetuneConfig

    def codes(self, rows: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.classes, self.labels[rows])


def finetune(
    checkpoint: Checkpoint,
    cells: TokenizedDataset,
    config: FinetuneConfig,
    *,
    out: str | Path,
    counts: "AnnData | str | Path | None" = None,
    overwrite: bool = False,
) -> Finetuned:
    """Fine-tune a checkpoint to predict an obs column, beside methods that need no such model.

    Parameters
    ----------
    checkpoint
        A pretrained model; left as it is.
    cells
        Tokenised cells with the column. Cells without a label are left out, and counted in the log.
    config
        What to learn and how.
    out
        Folder for the classifier and its ``methods.tsv``, ``confusion.tsv``, ``predictions.tsv``, ``split.tsv``,
        ``history.tsv`` and pictures. A run that was cut off goes on from its last epoch with the same call.
    counts
        Raw counts of the cells, for the baseline on counts; default the file they were tokenised from, if it is still
        there. Without either, that row of the table is empty.
    overwrite
        Replace a result that `out` holds.

    Returns
    -------
    The classifier and the table of methods, all on the same test cells.

    Raises
    ------
    InputError
        The column is missing or has one class, a class has too few cells, or the cells are not the checkpoint's.
    FileExistsError
        `out` exists, or an unfinished run with other settings.
    """
    checkpoint.require_matching(cells)
    require_poolable(cells.vocabulary, config.pooling)
    task = _labelled(cells, config)
    features = baselines.raw_counts(task.cells, counts) if config.baselines else None
    identity = {
        "step": "finetune",
        "config": resolved(config),
        "cells": cells.fingerprint,
        "checkpoint": checkpoint.fingerprint,
    }
    with resumable(out, identity, overwrite=overwrite) as work:
        predicted: dict[str, np.ndarray | None] = {}
        model, history = _train_network(task, checkpoint, work / "fine-tuned", "fine-tune")
        predicted[FINE_TUNED] = _predict(task, model, task.split.test)
        if config.baselines:
            predicted |= _baselines(task, checkpoint, features)
            random, _ = _train_network(task, None, work / "random", "from random weights", like=checkpoint)
            predicted[RANDOM] = _predict(task, random, task.split.test)
        record = provenance(
            "finetune",
            config=resolved(config),
            inputs={"cells": cells.fingerprint, "checkpoint": checkpoint.fingerprint},
        )
        methods = _methods(task, predicted)
        result = Finetuned(
            checkpoint=Checkpoint(
                model.eval(),
                cells.vocabulary,
                Head(config.target, task.classes, config.pooling),
                record | {"result": methods.loc[FINE_TUNED].round(6).to_dict()},
                name=f"checkpoint {out}",
            ),
            methods=methods,
            confusion=confusion(task.labels[task.split.test], _known(predicted[FINE_TUNED]), task.classes),
            predictions=pd.DataFrame(
                {"cell": task.cells.cell_names[task.split.test], "true": task.labels[task.split.test]}
                | {name: column for name, column in predicted.items() if column is not None}
            ),
            split=split_table(task.split, task.cells.cell_names),
            history=history,
        )
        if is_main_process():
            _write(result, work, Path(out), overwrite)
    return result


def _labelled(cells: TokenizedDataset, config: FinetuneConfig) -> _Task:
    column = cells.require_obs(config.target)
    has_label = column.notna().to_numpy()
    names = column.map(_class_name).to_numpy(dtype=object)
    n_cells = pd.Series(names[has_label]).value_counts()
    rare = set(n_cells.index[n_cells < config.min_cells])
    kept = np.flatnonzero(has_label & ~np.isin(names.astype(str), sorted(rare)))
    if len(kept) < len(cells):
        logger.info(
            "%s: %d cells have no label, %d are of classes with fewer than %d cells (%s); left out.",
            config.target,
            (~has_label).sum(),
            has_label.sum() - len(kept),
            config.min_cells,
            ", ".join(sorted(rare)) or "none",
        )
    labels = names[kept].astype(str)
    classes = tuple(sorted(set(map(str, labels))))
    if len(classes) < 2:
        raise InputError(
            f"obs column {config.target!r} has {len(classes)} class{'' if len(classes) == 1 else 'es'} "
            f"({', '.join(map(repr, classes)) or 'all missing'}) among {len(kept)} cells; at least two are needed."
        )
    groups = None
    if config.group:
        column = cells.require_obs(config.group).iloc[kept]
        if column.isna().any():
            raise InputError(
                f"obs column {config.group!r} says no group for {column.isna().sum()} of {len(kept)} labelled cells "
                f"(first: {column.index[column.isna()][0]!r}); leave these cells out, or split by another column."
            )
        groups = column.astype(str).to_numpy()
    split = split_cells(labels, groups, validation=config.validation, test=config.test, seed=config.seed)
    return _Task(cells.select(kept), labels, classes, groups, split, config)


def _class_name(value: Any) -> str:
    """Return a label as text: 1.0, which an integer column with a gap becomes, as "1"."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _baselines(task: _Task, checkpoint: Checkpoint, features: Any) -> dict[str, np.ndarray | None]:
    train_rows, test_rows = task.split.train, task.split.test
    labels = task.labels[train_rows]
    vectors = np.asarray(embed(checkpoint, task.cells, pooling=task.config.pooling).X)
    return {
        MAJORITY: baselines.majority(labels, len(test_rows)),
        ON_COUNTS: None
        if features is None
        else baselines.logistic_regression_on_counts(features[train_rows], labels, features[test_rows]),
        ON_EMBEDDING: baselines.logistic_regression_on_embedding(vectors[train_rows], labels, vectors[test_rows]),
    }


def _train_network(
    task: _Task, start: Checkpoint | None, work: Path, step: str, *, like: Checkpoint | None = None
) -> tuple[CellClassifier, pd.DataFrame]:
    """Train a classifier on the encoder of `start`, or on random weights of the same shape as `like`."""
    shape = start or like
    assert shape is not None
    bert_config = copy.deepcopy(shape.model.config)
    bert_config.num_labels = len(task.classes)
    with torch.random.fork_rng():
        torch.manual_seed(task.config.seed)
        model = CellClassifier(bert_config, task.config.pooling)
    if start is not None:
        model.bert.load_state_dict(start.model.bert.state_dict())
    train_rows = task.split.train
    codes = task.codes(train_rows)
    examples = CellExamples(task.cells.lengths[train_rows], lambda i, _: (task.cells[train_rows[i]], codes[i]))
    trained, history = train(
        model,
        examples,
        collate=lambda batch: (
            collate([tokens for tokens, _ in batch], task.cells.vocabulary)
            | {"labels": torch.as_tensor([code for _, code in batch])}
        ),
        evaluate=_scorer(task, task.split.validation),
        config=task.config,
        best_by="macro_f1",
        work=work,
        flops_an_epoch=3 * flops(bert_config, examples.lengths),
        step=step,
    )
    return cast(CellClassifier, trained), history


def _scorer(task: _Task, rows: np.ndarray) -> Callable[[nn.Module], dict[str, float]]:
    def score(model: nn.Module) -> dict[str, float]:
        logits = _logits(task.cells.select(rows), model, len(task.classes))
        loss = F.cross_entropy(logits, torch.as_tensor(task.codes(rows))).item()
        return {"loss": loss} | scores(task.labels[rows], np.asarray(task.classes)[logits.argmax(1).numpy()])

    return score


def _predict(task: _Task, model: nn.Module, rows: np.ndarray) -> np.ndarray:
    return np.asarray(task.classes)[_logits(task.cells.select(rows), model, len(task.classes)).argmax(1).numpy()]


def _logits(cells: TokenizedDataset, model: nn.Module, n_classes: int) -> Tensor:
    """Logits of each cell, in the order of the cells, on the CPU."""
    device = next(model.parameters()).device
    model.eval()
    logits = torch.empty(len(cells), n_classes)
    with torch.inference_mode():
        for rows, batch in evaluation_batches(cells, MAX_TOKENS):
            logits[torch.as_tensor(rows)] = (
                model(**{name: tensor.to(device) for name, tensor in batch.items()}).logits.float().cpu()
            )
    return logits


def _methods(task: _Task, predicted: Mapping[str, np.ndarray | None]) -> pd.DataFrame:
    test_rows = task.split.test
    groups = None if task.groups is None else task.groups[test_rows]
    rows = {
        name: {}
        if column is None
        else scores_with_intervals(
            task.labels[test_rows], column, groups=groups, rng=np.random.default_rng(task.config.seed)
        )
        for name, column in predicted.items()
    }
    return pd.DataFrame(list(rows.values()), index=pd.Index(list(rows), name="method"))


def _known(predicted: np.ndarray | None) -> np.ndarray:
    assert predicted is not None
    return predicted


def _write(result: Finetuned, work: Path, out: Path, overwrite: bool) -> None:
    with new_directory(out, marker="provenance.json", overwrite=overwrite) as folder:
        result.checkpoint.write_into(folder)
        result.methods.to_csv(folder / "methods.tsv", sep="\t")
        result.confusion.to_csv(folder / "confusion.tsv", sep="\t")
        for name in ("predictions", "split", "history"):
            getattr(result, name).to_csv(folder / f"{name}.tsv", sep="\t", index=False)
        (folder / LOG_FILE).write_bytes((work / "fine-tuned" / LOG_FILE).read_bytes())
        confusion_figure(result.confusion).savefig(folder / "confusion.png", dpi=150)
        methods_figure(result.methods).savefig(folder / "methods.png", dpi=150)
