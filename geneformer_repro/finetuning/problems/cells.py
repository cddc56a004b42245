"""Rows that are cells: obs columns to labels, a classifier on the encoder, counts and embeddings for simple methods."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.sparse import csr_matrix
from torch import nn

from geneformer_repro.batching import end_to_end
from geneformer_repro.checkpoint import Checkpoint
from geneformer_repro.embedding import embed
from geneformer_repro.errors import InputError
from geneformer_repro.finetuning.baselines import Features
from geneformer_repro.finetuning.kinds import read_labels
from geneformer_repro.finetuning.networks import Training, scores_by_target
from geneformer_repro.finetuning.problems.problem import EncoderProblem
from geneformer_repro.finetuning.settings.labels import FollowUpConfig
from geneformer_repro.finetuning.settings.networks import NetworkConfig
from geneformer_repro.finetuning.splits import Split
from geneformer_repro.heads import CellClassifier, Head
from geneformer_repro.network_settings import Pooling
from geneformer_repro.reading import outputs_of
from geneformer_repro.targets import Target
from geneformer_repro.tokenizer.counts import rank_values
from geneformer_repro.tokenizer.dataset import TokenizedDataset
from geneformer_repro.tokenizer.labels import as_labels
from geneformer_repro.training.config import CellExamples

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class CellProblem(EncoderProblem):
    """Labelled cells."""

    cells: TokenizedDataset
    targets: tuple[Target, ...]
    labels: np.ndarray
    obs: pd.DataFrame
    """The obs columns of the cells."""
    group: str | None = None
    """The column whose groups are never split."""
    row = "cell"

    @property
    def names(self) -> np.ndarray:
        """Name of each cell."""
        return self.cells.cell_names

    @property
    def groups(self) -> np.ndarray | None:
        """Group of each cell."""
        return None if self.group is None else as_labels(self.obs[self.group]).to_numpy()

    def select(self, rows: np.ndarray) -> CellProblem:
        """Return the problem of some of the cells."""
        chosen = {"cells": self.cells.select(rows), "labels": self.labels[rows], "obs": self.obs.iloc[rows]}
        return dataclasses.replace(self, **chosen)

    def training(self, start: Checkpoint, config: NetworkConfig, split: Split) -> Training:
        """Put together what trains a `CellClassifier`."""
        train_rows, validation_rows = split.train, split.validation
        head, labels = Head(self.head_targets(train_rows), config.pooling), self.labels[train_rows]
        kind, of_first = next(self.of_kinds(train_rows))
        examples = CellExamples(
            self.cells.lengths[train_rows],
            lambda i, _: (self.cells[train_rows[i]], labels[i]),
            rows=train_rows,
            weights=kind.row_weights(of_first) if config.training.class_balance == "sampling" else None,
        )
        weights = [kind.class_weights(of_target) for kind, of_target in self.of_kinds(train_rows)]
        return Training(
            start,
            config,
            head,
            examples,
            self.collate,
            self._scorer(head, validation_rows) if len(validation_rows) else None,
            [config.training.task_weights.get(target.name, 1.0) for target in head.targets],
            weights if config.training.class_balance == "weights" else None,
        )

    def collate(self, batch: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
        """Lay cells end to end, and stack their labels."""
        labels = torch.as_tensor(np.stack([label for _, label in batch]), dtype=torch.float32)
        return end_to_end([tokens for tokens, _ in batch], self.cells.vocabulary).inputs | {"labels": labels}

    def _scorer(self, head: Head, rows: np.ndarray) -> Callable[[nn.Module], dict[str, float]]:
        """Return what scores a network on validation cells."""
        cells, labels = self.cells.select(rows), self.labels[rows]

        def score(model: Any) -> dict[str, float]:
            outputs = outputs_of(model, cells, head, shared=True)
            loss = model.sum_of_losses(outputs, torch.tensor(labels, dtype=torch.float32))
            return {"loss": loss.item() / len(labels), **scores_by_target(head.targets, labels, head.meaning(outputs))}

        return score

    def ask(self, network: CellClassifier, rows: np.ndarray) -> np.ndarray:
        """Return what the network's outputs mean for some cells."""
        outputs = outputs_of(network, self.cells.select(rows), network.head, shared=True)
        return network.head.meaning(outputs).numpy()

    def features(self, start: Checkpoint, config: Any, counts: csr_matrix | None) -> Features:
        """Gather counts, rank values, vectors from the checkpoint as it is, and clinical columns."""
        covariates = list(config.compare.covariates)
        pooling: Pooling = "cls" if config.pooling == "cls" else "mean"
        vectors = np.asarray(embed(start, self.cells, pooling=pooling).X)
        return Features(
            counts=counts,
            ranks=rank_values(self.cells),
            values=self.cells.vocabulary.values,
            embedding=vectors,
            covariates=self.obs[covariates] if covariates else None,
        )


class SampleProblem(CellProblem):
    """Labelled bulk samples, each of a patient."""

    row = "sample"


def labelled_cells(
    cells: TokenizedDataset,
    targets: Sequence[str],
    *,
    regression: Sequence[str] = (),
    survival: Mapping[str, str] = MappingProxyType({}),
    follow_up: FollowUpConfig | None = None,
    min_cells: int = 0,
    max_cells_per_class: int | None = None,
    rng: np.random.Generator,
) -> CellProblem:
    """Read the labels of cells; leave out, and count in the log, those that have none.

    Parameters
    ----------
    cells
        Tokenised cells with the columns.
    targets
        Obs columns to learn.
    regression
        Those that are learned as numbers.
    survival
        Those that are events, each with the obs column of its times; rows are then samples.
    follow_up
        How times are taken; None as by default.
    min_cells
        Labels of classes with fewer cells count as missing.
    max_cells_per_class
        Keep a random choice of so many cells of each class of the first target; None all.
    rng
        Makes that choice.

    Raises
    ------
    InputError
        A column is missing, has fewer than two classes, or should hold numbers and does not.
    """
    if len(set(targets)) < len(targets):
        raise InputError(f"The targets must be different obs columns, found {', '.join(map(repr, targets))}.")
    wanted = [
        *targets,
        *survival.values(),
        *([follow_up.cohort] if survival and follow_up and follow_up.cohort else []),
    ]
    columns = {name: cells.require_obs(name) for name in wanted}
    kinds: dict[str, Any] = {"regression": regression, "survival": survival, "follow_up": follow_up or FollowUpConfig()}
    read = [read_labels(name, columns.__getitem__, **kinds, min_cells=min_cells) for name in targets]
    labels = np.column_stack([values for _, values in read])
    kept = np.flatnonzero(~np.isnan(labels).all(axis=1))
    if len(kept) < len(cells):
        logger.info("%s: %d cells have no label; left out.", ", ".join(targets), len(cells) - len(kept))
    if max_cells_per_class is not None:
        kept = at_most_of_a_class(kept, labels[kept, 0], max_cells_per_class, rng)
    make = SampleProblem if survival or cells.vocabulary.values != "counts" else CellProblem
    problem = make(cells.select(kept), tuple(target for target, _ in read), labels[kept], cells.obs.iloc[kept])
    without_gene = ~problem.cells.has_gene
    if without_gene.any():
        logger.info("%d labelled cells have no gene; left out.", without_gene.sum())
        return problem.select(np.flatnonzero(~without_gene))
    return problem


def at_most_of_a_class(rows: np.ndarray, codes: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """Draw so many of the rows of each class, ascending, and log how many that are.

    Parameters
    ----------
    rows
        Ascending.
    codes
        Class of each row, NaN where there is none, which counts as one more.
    most
        Rows of a class that are kept.
    rng
        Makes the choice.
    """
    shuffled = pd.Series(codes).iloc[rng.permutation(len(codes))]
    chosen = shuffled.groupby(shuffled, dropna=False).head(most).index.to_numpy()
    logger.info("%d of %d cells taken: at most %d of a class.", len(chosen), len(rows), most)
    return rows[np.sort(chosen)]
