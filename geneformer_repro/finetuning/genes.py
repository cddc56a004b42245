"""Fine-tuning to tell classes of genes apart from how they stand in cells, with the genes, not the cells, held out.

Every class's genes are dealt into folds; a network learns from the occurrences of some genes in all cells and is asked
about the occurrences of genes it has no label of. A gene's prediction is the mean over its occurrences, and a gene
counts once, however often it is expressed; scores over occurrences, as published, are in a table of their own.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import pandas as pd

import geneformer_repro.processes as processes
from geneformer_repro.arguments import typed
from geneformer_repro.checkpoint import Checkpoint, warn_if_guessing
from geneformer_repro.config import Section, flat_names, require, require_types, resolved
from geneformer_repro.errors import InputError, did_you_mean, listed
from geneformer_repro.files import provenance, read_table
from geneformer_repro.finetuning.evaluation import Evaluation, evaluate_target, log_verdicts
from geneformer_repro.finetuning.experiment import Experiment, Findings
from geneformer_repro.finetuning.kinds.kind import FINE_TUNED
from geneformer_repro.finetuning.methods import NETWORKS, CompareConfig
from geneformer_repro.finetuning.networks import smoothing_of
from geneformer_repro.finetuning.problems.genes import GeneProblem, gene_splits, labelled_genes
from geneformer_repro.finetuning.results import write_findings
from geneformer_repro.finetuning.transfer import TransferConfig
from geneformer_repro.tokenizer.counts import digest_of, vocabulary_counts
from geneformer_repro.tokenizer.dataset import TokenizedDataset, as_labels, asked_labels
from geneformer_repro.training.config import SeededConfig, TrainConfig, join_processes
from geneformer_repro.work import working_on

if TYPE_CHECKING:
    from anndata import AnnData

VERSION = 2
"""Raised when the same call gives other results, so that a run which an earlier version began is not gone on with."""
_MOST_OCCURRENCES = 100_000
"""Occurrences that are scored one by one; a random choice of more."""
_ID_COLUMNS = ("gene_id", "ensembl_id", "gene", "gene_name")


@dataclass(frozen=True, kw_only=True)
class GeneSplitConfig:
    """How genes are dealt into folds."""

    section: ClassVar[str] = "split"
    folds: int = 5
    """Parts into which the genes are dealt; each is reported once."""
    validation: float = 0.1
    """Share of a fold's other genes that choose the epoch."""

    def __post_init__(self) -> None:
        require_types(self)
        require(self.folds >= 2, self, "folds", "at least 2")
        require(0 < self.validation <= 0.5, self, "validation", "above 0 and at most 0.5")


@dataclass(frozen=True, kw_only=True)
class GeneTrainConfig(TrainConfig):
    """How to train a classifier of genes."""

    epochs: float = 1
    learning_rate: float = 5e-5
    warmup_steps: float = 0.1
    class_balance: Literal["none", "weights"] = "none"
    """ "weights" counts an occurrence's loss by one over the occurrences of its class."""

    def __post_init__(self) -> None:
        super().__post_init__()
        smoothing_of(self)


@flat_names(transfer="strategy")
@dataclass(frozen=True, kw_only=True)
class GeneFinetuneConfig(SeededConfig):
    """How to fine-tune on classes of genes, and what to compare with.

    See Also
    --------
    finetune_genes : Takes it.

    Examples
    --------
    >>> import geneformer_repro as gf
    >>> config = gf.GeneFinetuneConfig(split={"folds": 3}, training={"epochs": 2})
    >>> config.split.folds, config.min_cells, config.training.learning_rate
    (3, 10, 5e-05)
    """

    max_cells: int | None = 10_000
    """A random choice of so many cells in which the genes are looked at; None all."""
    min_cells: int = 10
    """Genes that fewer of these cells have, as they were tokenised, are left out."""
    split: Section[GeneSplitConfig] = Section(GeneSplitConfig)
    """How the genes are dealt into folds."""
    training: Section[GeneTrainConfig] = Section(GeneTrainConfig)
    """How the networks are trained."""
    transfer: Section[TransferConfig] = Section(TransferConfig)
    """How the encoder takes part in learning."""
    compare: Section[CompareConfig] = Section(CompareConfig)
    """What to compare with."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require((self.max_cells or 1) >= 1, self, "max_cells", "at least 1")


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


def read_gene_classes(path: str | Path, task: str | None = None) -> dict[str, list[str]]:
    """Read classes of genes from a table.

    Parameters
    ----------
    path
        Separated by tabs, commas or semicolons, with a column ``label`` and one of ``gene_id``, ``ensembl_id``,
        ``gene``, ``gene_name``; the first of these that is there is used. Labels are read as those of cells
        (`tokenizer.dataset.as_labels`); rows without a label are left out.
    task
        Where a column ``task`` says of several sets of classes which row is whose, the one to read.

    Raises
    ------
    InputError
        The file or a column is missing, or `task` is needed or not there.
    """
    try:
        table = read_table(Path(path), sep=None)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{path}: cannot be read as a table of gene classes ({error}).") from error
    if not isinstance(table.index, pd.RangeIndex):
        raise InputError(f"{path}: the rows have more fields than the header. Give every column a name.")
    ids = next((name for name in _ID_COLUMNS if name in table.columns), None)
    if ids is None or "label" not in table.columns:
        raise InputError(
            f"{path}: expected a column label and one of {', '.join(_ID_COLUMNS)}, found "
            f"{listed(map(repr, table.columns))}."
        )
    tasks = sorted(table["task"].unique()) if "task" in table.columns else []
    if task is not None and task not in tasks:
        raise InputError(f"{path}: has no task {task!r}. {did_you_mean(task, tasks)}")
    if task is None and len(tasks) > 1:
        raise InputError(f"{path}: holds several tasks; choose one with task= (--task): {', '.join(tasks)}.")
    chosen = table if task is None else table[table["task"] == task]
    labels = as_labels(chosen["label"])
    return {str(label): genes.tolist() for label, genes in chosen.groupby(labels)[ids]}


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
