"""Fine-tuning to tell classes of genes apart from how they stand in cells, with the genes, not the cells, held out.

Every class's genes are dealt into folds; a network learns from the occurrences of some genes in all cells and is asked
about the occurrences of genes it has no label of. A gene's prediction is the mean over its occurrences, and a gene
counts once, however often it is expressed; scores over occurrences, as published, are in a table of their own.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

import geneformer_repro.processes as processes
from geneformer_repro.arguments import typed
from geneformer_repro.checkpoint import Checkpoint, warn_if_guessing
from geneformer_repro.config import resolved
from geneformer_repro.errors import InputError
from geneformer_repro.files import provenance
from geneformer_repro.finetuning.evaluation import Evaluation, evaluate_target, log_verdicts
from geneformer_repro.finetuning.experiment import Experiment, Findings
from geneformer_repro.finetuning.kinds.kind import FINE_TUNED
from geneformer_repro.finetuning.methods import NETWORKS
from geneformer_repro.finetuning.problems.genes import GeneProblem, gene_splits, labelled_genes
from geneformer_repro.finetuning.results import write_findings
from geneformer_repro.finetuning.settings.genes import GeneFinetuneConfig
from geneformer_repro.tokenizer.counts import digest_of, vocabulary_counts
from geneformer_repro.tokenizer.dataset import TokenizedDataset
from geneformer_repro.tokenizer.gene_lists import read_gene_classes
from geneformer_repro.tokenizer.labels import asked_labels
from geneformer_repro.training.config import join_processes
from geneformer_repro.work import working_on

if TYPE_CHECKING:
    from anndata import AnnData

VERSION = 2
"""Raised when the same call gives other results, so that a run which an earlier version began is not gone on with."""
_MOST_OCCURRENCES = 100_000
"""Occurrences that are scored one by one; a random choice of more."""


@dataclass(frozen=True, eq=False)
class FinetunedGenes:
    """What fine-tuning on genes made.

    See Also
    --------
    finetune_genes : Makes it.

    Examples
    --------
    >>> import dataclasses
    >>> import geneformer_repro as gf
    >>> [field.name for field in dataclasses.fields(gf.FinetunedGenes)]
    ['checkpoint', 'evaluation', 'occurrences', 'split', 'history']
    """

    checkpoint: Checkpoint
    """A classifier of genes, trained on all genes with a label."""
    evaluation: Evaluation
    """What each method reached; a gene counts once."""
    occurrences: pd.DataFrame
    """The same scores over occurrences of the genes in cells, as published; a row a method."""
    split: pd.DataFrame
    """``gene``, ``label``, ``n_cells`` and ``fold``."""
    history: pd.DataFrame
    """Training and validation scores of the fine-tuned model in each ``fold``."""

    @property
    def methods(self) -> pd.DataFrame:
        """A row a method, with scores over genes and their intervals."""
        return self.evaluation.methods


@typed
def finetune_genes(
    checkpoint: Checkpoint,
    cells: TokenizedDataset,
    gene_classes: Mapping[str, Sequence[str]] | str | Path,
    config: GeneFinetuneConfig | None = None,
    *,
    out: str | Path,
    task: str | None = None,
    counts: "AnnData | str | Path | None" = None,
    overwrite: bool = False,
) -> FinetunedGenes:
    """Fine-tune a checkpoint to predict classes of genes, beside methods that need no such model.

    Parameters
    ----------
    checkpoint
        A pretrained model; left as it is.
    cells
        Tokenised cells in which the genes are looked at; no labels of cells are used.
    gene_classes
        The genes of each class, by id or name; or a table, see `read_gene_classes`. Genes that the vocabulary does not
        know, that are in several classes, or that too few cells have, are left out with a word in the log.
    config
        How; default `GeneFinetuneConfig()`.
    out
        Folder for the classifier, ``report.html``, tables and pictures. A run that was cut off goes on with the same
        call.
    task
        Which classes of a table with several sets.
    counts
        Raw counts of the cells, for features of genes; default the file they were tokenised from, if it is still there.
    overwrite
        Replace a result that `out` holds; drop an unfinished run with other settings (the same run goes on).

    Returns
    -------
    The classifier and the tables.

    Raises
    ------
    InputError
        There are fewer than two classes, or a class has fewer genes than there are folds.
    FileExistsError
        `out` exists, or an unfinished run with other settings.

    See Also
    --------
    GeneFinetuneConfig : How.
    finetune : Labels of cells instead.
    predict : Ask the classifier about the genes of other cells.

    Examples
    --------
    >>> import geneformer_repro as gf
    >>> base, cells = gf.Checkpoint.from_pretrained("runs/base"), gf.TokenizedDataset.open("cells.tok")
    >>> names = [name for name in cells.vocabulary.gene_names if name.startswith("RP")]
    >>> others = [name for name in cells.vocabulary.gene_names if name.startswith("C")][:20]
    >>> config = gf.GeneFinetuneConfig(
    ...     min_cells=5, split={"folds": 2}, training={"batch_size": 16}, compare={"baselines": False}
    ... )
    >>> classes = {"ribosomal": names, "other": others}
    >>> result = gf.finetune_genes(base, cells.select(range(40)), classes, config, out="runs/ribosomal")
    >>> result.methods.index.tolist()
    ['fine-tuned']
    >>> result.split["label"].value_counts().to_dict()
    {'other': 15, 'ribosomal': 4}
    """
    config = config or GeneFinetuneConfig()
    join_processes(config.training)
    checkpoint.require_matching(cells)
    warn_if_guessing(checkpoint)
    gene_classes = _by_name(gene_classes, task)
    problem, fold_of = labelled_genes(cells, gene_classes, config)
    splits = gene_splits(problem, fold_of, validation=config.split.validation, seed=config.seed)
    experiment = Experiment(problem, checkpoint, splits, config, NETWORKS if config.compare.baselines else NETWORKS[:1])
    counted = vocabulary_counts(problem.cells, counts) if config.compare.baselines else None
    split = _split_table(problem, fold_of)
    inputs = {
        "cells": cells.fingerprint,
        "checkpoint": checkpoint.fingerprint,
        "split": hashlib.sha256(split.to_csv(index=False).encode()).hexdigest(),
        "counts": digest_of(counted),
    }
    plan = {"step": "finetune_genes", "version": VERSION, "config": resolved(config), "gene_classes": gene_classes}
    with working_on(out, plan | inputs, what="run", marker="provenance.json", overwrite=overwrite) as work:
        features = problem.features(checkpoint, config, counted) if config.compare.baselines else None
        found = experiment.run(features, work.folder)
        (evaluation,) = found.evaluations.values()
        genes_of = split.groupby("label")["gene"].apply(list)
        record = provenance("finetune_genes", config=resolved(config), inputs=inputs) | {
            "gene_classes": {name: genes_of[name] for name in problem.targets[0].output_names},
            "result": evaluation.methods.loc[FINE_TUNED].dropna().round(6).to_dict(),
        }
        result = FinetunedGenes(
            Checkpoint(
                found.network, cells.vocabulary, record, checkpoint.seen, name=f"checkpoint {out}", path=str(out)
            ),
            evaluation,
            over_occurrences(problem, found, seed=config.seed),
            split,
            found.history,
        )
        log_verdicts([evaluation])
        if processes.is_first():
            with work.result() as folder:
                folder.mkdir()
                result.checkpoint.write_into(folder)
                facts = {
                    "transfer": config.transfer.strategy,
                    "folds": config.split.folds,
                    "genes": len(split),
                    "checkpoint": checkpoint.in_words,
                }
                tables = {"split": split, "history": result.history, "occurrences": result.occurrences}
                write_findings(folder, experiment, found.evaluations, tables, work=work.folder, facts=facts)
    return result


def _by_name(gene_classes: Mapping[str, Sequence[str]] | str | Path, task: str | None) -> dict[str, list[str]]:
    """Return the genes of each class, by its name, from a table or what was given in memory."""
    if isinstance(gene_classes, (str, Path)):
        gene_classes = read_gene_classes(gene_classes, task)
    names = asked_labels(gene_classes, "gene_classes: each class")
    if len(set(names)) < len(names):
        raise InputError(f"gene_classes give a class twice: {', '.join(map(repr, gene_classes))}.")
    return dict(zip(names, map(list, gene_classes.values()), strict=True))


def _split_table(problem: GeneProblem, fold_of: np.ndarray) -> pd.DataFrame:
    """Return ``gene``, ``label``, ``n_cells`` and ``fold``."""
    labels = np.asarray(problem.targets[0].output_names)[problem.codes]
    return pd.DataFrame({"gene": problem.names, "label": labels, "n_cells": problem.n_cells, "fold": fold_of + 1})


def over_occurrences(problem: GeneProblem, found: Findings, *, seed: int) -> pd.DataFrame:
    """Score every method over occurrences of genes in cells, as published; the intervals resample genes.

    A simple method says of each occurrence what it says of the gene.
    """
    said = {name: np.concatenate([outcome.said[name] for outcome in found.outcomes]) for name in found.outcomes[0].said}
    gene = said[FINE_TUNED][:, 0].astype(np.int64)
    taken = np.arange(len(gene))
    if len(gene) > _MOST_OCCURRENCES:
        taken = np.sort(np.random.default_rng(seed).choice(len(gene), _MOST_OCCURRENCES, replace=False))
    rows = gene[taken]
    predicted: dict[str, np.ndarray | None] = {name: one[taken, 1:] for name, one in said.items()}
    simple = {name: one for name, one in found.predicted[0].items() if name not in said}
    predicted |= {name: None if one is None else one[rows] for name, one in simple.items()}
    evaluation = evaluate_target(
        problem.targets[0],
        problem.names[rows],
        problem.labels[rows],
        predicted,
        folds=np.zeros(len(rows), dtype=np.int64),
        groups=rows,
        seed=seed,
        named=problem.row,
    )
    return evaluation.methods
