"""Rows that are genes: their class is learned from how they stand in cells, and they are held out, not the cells."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.sparse import csr_matrix, vstack
from sklearn.model_selection import StratifiedKFold, train_test_split
from torch import nn

from geneformer_repro.batching import pack
from geneformer_repro.checkpoint import Checkpoint
from geneformer_repro.embedding import embed
from geneformer_repro.encoder import IGNORED
from geneformer_repro.errors import InputError, listed
from geneformer_repro.finetuning.baselines import GeneInputs, coexpression, gene_features
from geneformer_repro.finetuning.kinds.classes import ClassLabels
from geneformer_repro.finetuning.networks import Training, scores_by_target
from geneformer_repro.finetuning.problems.problem import EncoderProblem
from geneformer_repro.finetuning.splits import Split
from geneformer_repro.heads import Head
from geneformer_repro.reading import logits_at_tokens, parts_of
from geneformer_repro.targets import Classes
from geneformer_repro.tokenizer.counts import rank_values
from geneformer_repro.tokenizer.dataset import TokenizedDataset
from geneformer_repro.training.config import CellExamples

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class GeneProblem(EncoderProblem):
    """Genes with their classes, and the cells that express any of them."""

    cells: TokenizedDataset
    targets: tuple[Classes]
    genes: np.ndarray
    """Where each gene stands in the vocabulary."""
    labels: np.ndarray
    n_cells: np.ndarray
    """Cells that express each gene."""
    row = "gene"
    reported_in_order = True
    group = None

    @property
    def names(self) -> np.ndarray:
        """Id of each gene."""
        return np.array(self.cells.vocabulary.gene_ids, dtype=object)[self.genes]

    @property
    def codes(self) -> np.ndarray:
        """Number of each gene's class."""
        return self.labels[:, 0].astype(np.int64)

    def select(self, rows: np.ndarray) -> GeneProblem:
        """Return the problem of some of the genes, in the same cells."""
        chosen = {"genes": self.genes[rows], "labels": self.labels[rows], "n_cells": self.n_cells[rows]}
        return dataclasses.replace(self, **chosen)

    def fitted_rows(self, split: Split) -> np.ndarray:
        """Return all genes but the reported ones: simple methods have no epoch that some would have to choose."""
        return np.union1d(split.train, split.validation)

    def labels_by_token(self, rows: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Return a number for each token of the vocabulary: that of these genes, else -100."""
        labels = np.full(self.cells.vocabulary.size, IGNORED, dtype=np.int64)
        labels[self.cells.vocabulary.tokens[self.genes[rows]]] = values
        return labels

    def training(self, start: Checkpoint, config: Any, split: Split) -> Training:
        """Put together what trains a `GeneClassifier` on the occurrences of some genes."""
        train_rows, weights = split.train, None
        if config.training.class_balance == "weights":
            repeated = np.repeat(self.labels[train_rows], self.n_cells[train_rows], axis=0)
            weights = [ClassLabels(self.targets[0]).class_weights(repeated)]
        label_of = self.labels_by_token(train_rows, self.codes[train_rows])
        rows = np.array([i for i, cell in enumerate(self.cells) if (label_of[cell] != IGNORED).any()])
        examples = CellExamples(
            self.cells.lengths[rows], lambda i, _: (self.cells[rows[i]], label_of[self.cells[rows[i]]]), rows=rows
        )
        score = partial(self._score, split.validation) if len(split.validation) else None
        return Training(start, config, Head(self.targets, level="gene"), examples, pack, score, class_weights=weights)

    def _score(self, rows: np.ndarray, model: nn.Module) -> dict[str, float]:
        said = self.ask(model, rows)
        gene, probabilities = said[:, 0].astype(np.int64), said[:, 1:]
        right = np.clip(probabilities[np.arange(len(gene)), self.codes[gene]], 1e-12, None)
        of_genes = torch.from_numpy(self.predictions(said, rows))
        return {"loss": float(-np.log(right).mean()), **scores_by_target(self.targets, self.labels[rows], of_genes)}

    def ask(self, network: nn.Module, rows: np.ndarray) -> np.ndarray:
        """Return, for each occurrence of some genes, which it is and the probability of each class."""
        occurrences = [
            np.column_stack([gene.numpy(), logits_MK.double().softmax(-1).numpy()])
            for gene, logits_MK in logits_at_tokens(network, self.cells, self.labels_by_token(rows, rows))
        ]
        return np.concatenate(occurrences)

    def predictions(self, said: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return the mean over the occurrences of each gene; 0 for one that no cell expresses."""
        gene, n_genes = said[:, 0].astype(np.int64), len(self.genes)
        sums = np.stack([np.bincount(gene, column, minlength=n_genes) for column in said[:, 1:].T], axis=1)
        return (sums / np.maximum(np.bincount(gene, minlength=n_genes), 1)[:, None])[rows]

    def features(self, start: Checkpoint, config: Any, counts: csr_matrix | None) -> GeneInputs:
        """Gather what is known of genes without labels: features, co-expression, vectors; and random vectors."""
        vectors = embed(start, self.cells, level="gene")
        rng = np.random.default_rng(config.seed)
        return GeneInputs(
            features=gene_features(self.cells, counts, self.genes),
            coexpression=coexpression(self.cells, self.genes, seed=config.seed),
            random=rng.normal(size=(len(self.genes), vectors.n_vars)),
            embedding=np.asarray(vectors[np.asarray(self.cells.vocabulary.gene_ids)[self.genes]].X),
        )


def labelled_genes(
    cells: TokenizedDataset, gene_classes: Mapping[str, Sequence[str]], config: Any
) -> tuple[GeneProblem, np.ndarray]:
    """Find the genes, choose cells, deal folds, and refuse what must not be, before any work.

    Parameters
    ----------
    cells, gene_classes, config
        As in `finetune_genes`.

    Returns
    -------
    The problem, and the fold of each gene, from 0.

    Raises
    ------
    InputError
        There are fewer than two classes, or a class has too few genes.
    """
    genes, names = _found_genes(cells, gene_classes)
    max_cells, min_cells, folds = config.max_cells, config.min_cells, config.split.folds
    if max_cells and len(cells) > max_cells:
        rng = np.random.default_rng(config.seed)
        cells = cells.select(np.sort(rng.choice(len(cells), max_cells, replace=False)))
    parts = parts_of(cells.lengths) or [np.arange(0)]  # of many cells all genes would not fit into memory at once
    ranks = vstack([rank_values(cells.select(rows))[:, genes] for rows in parts], format="csr")
    n_cells, expressed = ranks.getnnz(axis=0), ranks.getnnz(axis=1) > 0
    enough = n_cells >= max(min_cells, 1)
    if not enough.all():
        logger.info(
            "%d of %d genes are in fewer than %d of the %d cells, as these were tokenised; left out.",
            (~enough).sum(), len(genes), min_cells, len(cells),
        )  # fmt: skip
    genes, names, n_cells = genes[enough], names[enough], n_cells[enough]
    classes = tuple(sorted(gene_classes))
    codes = np.array([classes.index(name) for name in names], dtype=np.int64)
    _require_genes(np.bincount(codes, minlength=len(classes)), classes, folds=folds, min_cells=min_cells)
    fold_of = np.empty(len(genes), dtype=np.int64)
    dealt = StratifiedKFold(folds, shuffle=True, random_state=config.seed).split(genes, codes)
    for fold, (_, tested) in enumerate(dealt):
        fold_of[tested] = fold
    target = Classes("gene class", classes)
    problem = GeneProblem(
        cells.select(np.flatnonzero(expressed)), (target,), genes, codes[:, None].astype(float), n_cells
    )
    return problem, fold_of


def gene_splits(problem: GeneProblem, fold_of: np.ndarray, *, validation: float, seed: int) -> list[Split]:
    """Return for each fold the genes that train, choose the epoch, and are reported."""
    splits = []
    for fold in range(fold_of.max() + 1):
        rest = np.flatnonzero(fold_of != fold)
        n = max(round(validation * len(rest)), problem.targets[0].n_outputs)
        trained, validated = train_test_split(rest, test_size=n, stratify=problem.codes[rest], random_state=seed)
        splits.append(Split(np.sort(trained), np.sort(validated), np.flatnonzero(fold_of == fold)))
    return splits


def _found_genes(cells: TokenizedDataset, gene_classes: Mapping[str, Sequence[str]]) -> tuple[np.ndarray, np.ndarray]:
    """Return position and class name of every listed gene that the vocabulary knows, once."""
    if len(gene_classes) < 2:
        raise InputError(f"Genes need at least two classes, found {len(gene_classes)}.")
    position, label, unknown = [], [], []
    for name, genes in gene_classes.items():
        found = cells.vocabulary.find(genes)
        unknown += [gene for gene, i in zip(genes, found, strict=True) if i < 0]
        position += np.unique(found[found >= 0]).tolist()
        label += [name] * len(np.unique(found[found >= 0]))
    if unknown:
        logger.warning("%d listed genes are not in the vocabulary and left out: %s", len(unknown), listed(unknown))
    ambiguous = pd.Index(position).duplicated(keep=False)
    if ambiguous.any():
        names = sorted({cells.vocabulary.gene_ids[i] for i in np.array(position)[ambiguous]})
        logger.warning("%d listed genes are in several classes and left out: %s", len(names), listed(names))
    kept = np.flatnonzero(~ambiguous)
    return np.array(position, dtype=np.int64)[kept], np.array(label, dtype=object)[kept]


def _require_genes(n_genes: np.ndarray, classes: tuple[str, ...], *, folds: int, min_cells: int) -> None:
    enough = 4 if folds == 2 else folds  # so that two are outside of any fold: to learn, and to validate
    few = [f"{name!r} ({n})" for name, n in zip(classes, n_genes, strict=True) if n < enough]
    if few:
        raise InputError(
            f"A class needs at least {enough} genes that at least {min_cells} cells express, for {folds} folds; too "
            f"few: {', '.join(few)}. Give more genes or cells, fewer folds, or a smaller min_cells."
        )
