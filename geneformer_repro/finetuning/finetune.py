"""Fine-tuning a checkpoint to tell cells apart, and asking at once whether that was worth it.

One split, every method on it, one table. The test cells are seen once, at the end; the validation cells choose the
epoch, and the settings where a search is asked for.
"""

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

import geneformer_repro.processes as processes
from geneformer_repro.arguments import typed
from geneformer_repro.checkpoint import Checkpoint, warn_if_guessing
from geneformer_repro.config import (
    resolved,
    setting,
    with_settings,
)
from geneformer_repro.errors import InputError
from geneformer_repro.files import provenance
from geneformer_repro.finetuning.baselines import Features
from geneformer_repro.finetuning.evaluation import Evaluation, log_verdicts
from geneformer_repro.finetuning.experiment import Experiment, Findings, splits_of
from geneformer_repro.finetuning.methods import NETWORKS
from geneformer_repro.finetuning.problems.cells import CellProblem, at_most_of_a_class, labelled_cells
from geneformer_repro.finetuning.problems.samples import BESIDE_VERSION, beside_encoder
from geneformer_repro.finetuning.results import tested_rows, write_findings
from geneformer_repro.finetuning.settings.cells import FinetuneConfig
from geneformer_repro.finetuning.splits import Split, warn_of_lacking_classes
from geneformer_repro.heads import require_poolable
from geneformer_repro.network_settings import HeadPooling
from geneformer_repro.outline import PRETRAINED_ON
from geneformer_repro.tokenizer.counts import digest_of as digest_of_counts
from geneformer_repro.tokenizer.counts import raw_counts
from geneformer_repro.tokenizer.dataset import TokenizedDataset
from geneformer_repro.training.config import join_processes
from geneformer_repro.work import Work, working_on

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)

VERSION = 1
"""Raised when the same call gives other results, also of a study, so that a run which an earlier version began is not
gone on with."""


@dataclass(frozen=True, eq=False)
class Finetuned:
    """What fine-tuning made.

    See Also
    --------
    finetune : Makes it.

    Examples
    --------
    >>> import geneformer_repro as gf
    >>> base, cells = gf.Checkpoint.from_pretrained("runs/base"), gf.TokenizedDataset.open("cells.tok")
    >>> config = gf.FinetuneConfig(
    ...     target="phase", min_cells=3, training={"epochs": 1, "batch_size": 16}, compare={"baselines": False}
    ... )
    >>> result = gf.finetune(base, cells.select(range(60)), config, out="runs/phase")
    >>> result.split["part"].value_counts().to_dict()
    {'train': 41, 'test': 12, 'validation': 6}
    >>> result.predictions.columns.tolist()
    ['cell', 'true', 'fine-tuned']
    >>> result.evaluations["phase"].confusion.shape
    (2, 2)
    """

    checkpoint: Checkpoint
    """The classifier; of several folds, one trained on all labelled cells afterwards."""
    evaluations: Mapping[str, Evaluation]
    """What each method reached, by target."""
    split: pd.DataFrame
    """``cell``, ``part`` and, of several, ``fold``; can be given back as ``split_file``."""
    history: pd.DataFrame
    """Training and validation scores of the fine-tuned model; of several folds with a column ``fold``."""
    curve: pd.DataFrame | None = None
    """The learning curve, if one was asked for: ``target``, ``method``, ``n``, ``draw`` and scores."""
    trials: pd.DataFrame | None = None
    """The trials of the search, if one was asked for: settings and scores on validation cells."""

    @property
    def methods(self) -> pd.DataFrame:
        """A row a method, with scores on the test cells and their intervals; of several targets indexed by both."""
        if len(self.evaluations) == 1:
            return next(iter(self.evaluations.values())).methods
        return pd.concat({name: one.methods for name, one in self.evaluations.items()}, names=["target"])

    @property
    def predictions(self) -> pd.DataFrame:
        """``cell``, ``true`` and each method's prediction, of the (first) target."""
        return next(iter(self.evaluations.values())).predictions


@typed
def finetune(
    checkpoint: Checkpoint,
    cells: TokenizedDataset,
    config: FinetuneConfig,
    *,
    out: str | Path,
    counts: "AnnData | str | Path | None" = None,
    overwrite: bool = False,
) -> Finetuned:
    """Fine-tune a checkpoint to predict obs columns, beside methods that need no such model.

    Parameters
    ----------
    checkpoint
        A pretrained model; left as it is.
    cells
        Tokenised cells with the columns. Cells without a label are left out, and counted in the log.
    config
        What to learn and how.
    out
        Folder for the classifier, ``report.html``, and tables and pictures (``methods``, ``per_class``, ``confusion``,
        ``reliability``, ``predictions``, ``split``, ``history``, …); of several targets in a folder each. A run that
        was cut off goes on with the same call.
    counts
        Raw counts of the cells, for the methods that need them; default the file they were tokenised from, if it is
        still there. Without either, their rows of the table are empty.
    overwrite
        Replace a result that `out` holds; drop an unfinished run with other settings (the same run goes on).

    Returns
    -------
    The classifier and the tables, all methods on the same test cells.

    Raises
    ------
    InputError
        A column is missing or has one class, a class has too few cells, a cell or group is on two sides of the split,
        test cells were in the pretraining set, or the cells are not the checkpoint's.
    FileExistsError
        `out` exists, or an unfinished run with other settings.

    See Also
    --------
    FinetuneConfig : How.
    predict : Ask the classifier about other cells.
    finetune_genes : Classes of genes instead.

    Examples
    --------
    >>> import geneformer_repro as gf
    >>> base, cells = gf.Checkpoint.from_pretrained("runs/base"), gf.TokenizedDataset.open("cells.tok")
    >>> config = gf.FinetuneConfig(
    ...     target="phase", min_cells=3, split={"group": "donor"}, training={"epochs": 1, "batch_size": 16}
    ... )
    >>> result = gf.finetune(base, cells.select(range(90)), config, out="runs/phase", counts="cells.h5ad")
    >>> result.methods.index.tolist()
    ['fine-tuned', 'majority class', 'logistic regression, counts', 'logistic regression, rank values',
     'nearest neighbours, PCA of counts', 'gradient boosting, counts', 'logistic regression, frozen embedding',
     'same network, random weights']
    >>> result.methods[["accuracy", "accuracy_low", "accuracy_high"]].shape
    (8, 3)
    """
    experiment = prepared(checkpoint, cells, config)
    return experiment.carry_out(out=out, counts=counts, overwrite=overwrite)


@dataclass(frozen=True, eq=False)
class CellExperiment(Experiment):
    """An experiment on cells, and the run that carries it out."""

    problem: CellProblem
    cells: TokenizedDataset = dataclasses.field(kw_only=True)
    """All cells that were given, also those without a label."""
    step: ClassVar[str] = "finetune"
    """What the run is called in its plan and provenance."""

    def carry_out(self, *, out: str | Path, counts: "AnnData | str | Path | None", overwrite: bool) -> Finetuned:
        """Run every method, and write the classifier, tables, pictures and page; see `finetune`."""
        config, problem = self.config, self.problem
        counted = raw_counts(problem.cells, counts) if config.compare.baselines else None
        inputs = self.inputs(counted)
        version = [VERSION, BESIDE_VERSION] if config.survival else VERSION
        plan = {"step": self.step, "version": version, "config": planned(config), **inputs}
        with working_on(out, plan, what="run", marker="provenance.json", overwrite=overwrite) as work:
            begun = self.begun(inputs, work.folder)
            features = problem.features(self.start, config, counted) if config.compare.baselines else None
            experiment = begun.beside(features)
            found = experiment.run(features, work.folder)
            record = provenance(self.step, config=resolved(config), inputs=inputs) | {
                "result": {name: _as_json(of.methods.loc[of.ours]) for name, of in found.evaluations.items()},
                "by_group": {
                    name: _as_json(of.by_group.methods.loc[of.ours])
                    for name, of in found.evaluations.items()
                    if of.by_group is not None
                },
                "intervals": self.intervals,
                "settings": {name: setting(found.config, name) for name in config.search.searched},
            }
            learned = Checkpoint(
                found.network, self.cells.vocabulary, record, begun.seen, name=f"checkpoint {out}", path=str(out)
            )
            result = begun.delivered(begun.result(learned, found), work)
            log_verdicts(found.evaluations.values())
            if self.sizes:
                logger.info("%s is written; its learning curve is added when its last network has learned.", out)
                found = experiment.with_curve(found, features, work.folder)
                result = begun.delivered(begun.result(learned, found), work)
        return result

    def delivered(self, result: Finetuned, work: Work) -> Finetuned:
        """Write a result to where the run's output is, and return it."""
        if processes.is_first():
            with work.result() as folder:
                self.write_into(folder, result, work.folder)
        return result

    def inputs(self, counted: csr_matrix | None) -> dict[str, str | None]:
        """Return digests of all that decides what the run finds, beside its settings."""
        return {
            "cells": self.cells.fingerprint,
            "checkpoint": self.start.fingerprint,
            "labels": self.problem.digest(),
            "split": self.digest_of_splits(),
            "counts": digest_of_counts(counted),
        }

    def begun(self, inputs: Mapping[str, Any], work: Path) -> Self:
        """Do in the work folder what comes before all methods, and return the experiment as it then is."""
        return self

    def beside(self, features: Features | None) -> Self:
        """Return the experiment with networks that look at the expression of samples whose survival is learned."""
        if features is None or not self.config.survival:
            return self
        problem = self.problem
        others = beside_encoder(features, problem.targets, problem.labels, problem.obs, seed=self.config.seed)
        return dataclasses.replace(self, networks=(*self.networks, *others))

    @property
    def seen(self) -> np.ndarray:
        """Digests of all cells that the classifier learned from, in pretraining or here."""
        return learned_too(self.networks[0].begin(self.start), self.problem.cells.select(self.learned))

    def result(self, checkpoint: Checkpoint, found: Findings) -> Finetuned:
        """Put together what the run returns."""
        return Finetuned(checkpoint, found.evaluations, self.split_table(), found.history, found.curve, found.trials)

    def write_into(self, folder: Path, result: Finetuned, work: Path, **facts: Any) -> None:
        """Write classifier, tables, pictures and page, which tells the facts too, into the new folder `folder`."""
        folder.mkdir()
        result.checkpoint.write_into(folder)
        config = self.config
        facts = {
            "transfer": config.transfer.strategy,
            "epochs": config.training.epochs,
            "learning_rate": config.training.learning_rate,
            "seed": config.seed,
            f"test {tested_rows(next(iter(result.evaluations.values())))}": len(self.tested),
            "checkpoint": self.start.in_words,
            **facts,
        }
        tables = {name: getattr(result, name) for name in ("split", "history", "curve", "trials")}
        write_findings(folder, self, result.evaluations, tables, work=work, facts=facts)


def prepared(checkpoint: Checkpoint, cells: TokenizedDataset, config: FinetuneConfig) -> CellExperiment:
    """Read labels, split, and refuse what must not be, before any work."""
    join_processes(config.training)
    checkpoint.require_matching(cells)
    warn_if_guessing(checkpoint)
    require_poolable(cells.vocabulary, config.pooling, choices=HeadPooling)
    by_file, rng = config.split.split_file is not None, np.random.default_rng(config.seed)
    problem = labelled_cells(
        cells,
        config.targets,
        regression=config.regression,
        survival=config.survival,
        follow_up=config.follow_up,
        min_cells=config.min_cells,
        max_cells_per_class=None if by_file else config.max_cells_per_class,
        rng=rng,
    )
    for name in (*([config.split.group] if config.split.group else []), *config.compare.covariates):
        cells.require_obs(name)
    problem = dataclasses.replace(problem, group=config.split.group)
    splits = splits_of(problem, problem.obs, config)
    if by_file and config.max_cells_per_class is not None:
        problem, splits = _at_most_of_a_class(problem, splits, config.max_cells_per_class, rng)
    for name, labels in problem.class_labels.items():
        if not np.array_equal(labels, problem.strata):  # of which the splits warn themselves
            warn_of_lacking_classes(splits, labels, problem.row, target=name)
    networks = NETWORKS if config.compare.baselines else NETWORKS[:1]
    experiment = CellExperiment(problem, checkpoint, splits, config, networks, config.compare.curve, cells=cells)
    experiment.require_labels()
    if not config.split.allow_seen:
        _require_unseen(experiment, checkpoint)
    return experiment


def planned(config: Any) -> dict[str, Any]:
    """Return the settings that a plan names: without the split file, whose content the inputs name, or the curve.

    So a run goes on without its curve, or with it, from what is finished.

    Folds that are dealt once do not say so, as in runs that were begun before there were repeats.
    """
    plain = resolved(with_settings(config, split_file=None))
    if "curve" in plain["compare"]:
        plain["compare"]["curve"] = ()
    if config.split.repeats == 1:
        del plain["split"]["repeats"]
    return plain


def _require_unseen(experiment: CellExperiment, checkpoint: Checkpoint) -> None:
    if checkpoint.seen is not None:
        refuse_tested(experiment, checkpoint.seen, PRETRAINED_ON.format(checkpoint.name))


def refuse_tested(experiment: CellExperiment, digests: np.ndarray, whose: str) -> None:
    """Raise if a cell that is reported is among others, by its tokens; `whose` says which, and what to do."""
    tested, cells = experiment.tested, experiment.problem.cells
    is_among = np.isin(cells.select(tested).digests(), digests)
    if is_among.any():
        first = cells.cell_names[tested[is_among][0]]
        raise InputError(f"{is_among.sum()} of {len(tested)} test cells (first: {first!r}) are among {whose}")


def learned_too(checkpoint: Checkpoint, cells: TokenizedDataset) -> np.ndarray:
    """Return the digests of all cells that a checkpoint has seen once it has learned from these."""
    own = cells.digests()
    return np.unique(own) if checkpoint.seen is None else np.union1d(own, checkpoint.seen)


def _at_most_of_a_class(
    problem: CellProblem, splits: list[Split], most: int, rng: np.random.Generator
) -> tuple[CellProblem, list[Split]]:
    """Keep a random choice of the cells that a file lists, so many of each class; the others are left out."""
    listed = np.unique(np.concatenate([np.concatenate(split) for split in splits]))
    kept = at_most_of_a_class(listed, problem.labels[listed, 0], most, rng)
    fewer = [Split(*(np.flatnonzero(np.isin(kept, rows)) for rows in split)) for split in splits]
    for fold, split in enumerate(fewer, 1):
        for part, rows in split._asdict().items():
            if not len(rows):
                where = f" of fold {fold}" if len(fewer) > 1 else ""
                raise InputError(
                    f"max_cells_per_class={most} leaves no {part} cell{where} of those that the split file lists. "
                    "Allow more, or leave it out: the file says which cells are used."
                )
    return problem.select(kept), fewer


def _as_json(row: Any) -> dict[str, float]:
    return {str(name): round(float(value), 6) for name, value in row.dropna().items()}
