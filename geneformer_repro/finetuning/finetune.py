"""Fine-tuning a checkpoint to tell cells apart, and asking at once whether that was worth it.

One split, every method on it, one table. The test cells are seen once, at the end; the validation cells choose the
epoch, and the settings where a search is asked for.
"""

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

import geneformer_repro.processes as processes
from geneformer_repro.arguments import typed
from geneformer_repro.checkpoint import Checkpoint
from geneformer_repro.config import ConfigError, require, resolved
from geneformer_repro.embedding import embed
from geneformer_repro.errors import InputError, did_you_mean
from geneformer_repro.files import provenance, write_table
from geneformer_repro.finetuning import baselines
from geneformer_repro.finetuning.curve import learning_curve, require_enough
from geneformer_repro.finetuning.evaluation import Evaluation, evaluate_target, log_verdicts
from geneformer_repro.finetuning.methods import FINE_TUNED, Outcome, run_methods
from geneformer_repro.finetuning.networks import NetworkConfig, best_epoch, train_classifier
from geneformer_repro.finetuning.results import folder_of, write_evaluation, write_page
from geneformer_repro.finetuning.search import SearchConfig, best_settings, search, searched_settings
from geneformer_repro.finetuning.splits import (
    Split,
    SplitConfig,
    make_splits,
    split_table,
    warn_of_lacking_classes,
)
from geneformer_repro.finetuning.splits import digest_of as digest_of_splits
from geneformer_repro.finetuning.tasks import Task, at_most_of_a_class, labelled_cells
from geneformer_repro.heads import CellClassifier, HeadPooling, Pooling, require_poolable
from geneformer_repro.tokenizer.counts import digest_of as digest_of_counts
from geneformer_repro.tokenizer.counts import rank_values, raw_counts
from geneformer_repro.tokenizer.dataset import TokenizedDataset, as_labels
from geneformer_repro.training.config import SMOOTHING, join_processes
from geneformer_repro.training.log import LOG_FILE
from geneformer_repro.work import Work, working_on

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)

VERSION = 1
"""Raised when the same call gives other results, so that a run which an earlier version began is not gone on with."""


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(SearchConfig, SplitConfig, NetworkConfig):
    """How to fine-tune on labels of cells, and what to compare with.

    See Also
    --------
    finetune : Takes it.
    GeneFinetuneConfig : For classes of genes.

    Examples
    --------
    >>> import geneformer_repro as gf
    >>> config = gf.FinetuneConfig(target="cell_type", group="donor", epochs=2)
    >>> config.targets, config.group
    (('cell_type',), 'donor')
    >>> gf.FinetuneConfig(target="cell_type", epochs=-1)
    Traceback (most recent call last):
        ...
    geneformer_repro.config.ConfigError: FinetuneConfig.epochs must be above 0, found -1.0.
    """

    target: str | tuple[str, ...]
    """The obs column to learn, or several to learn together."""
    regression: tuple[str, ...] = ()
    """Those of the targets that are learned as numbers, not as classes."""
    min_cells: int = 0
    """Classes with fewer cells are left out."""
    max_cells_per_class: int | None = None
    """A random choice of so many cells of each class (of the first target) is used, with `split_file` of those that it
    lists; None all."""
    epochs: float = 10
    learning_rate: float = 5e-5
    warmup_steps: float = 0.1
    baselines: bool = True
    """Also fit the methods to compare with; leave it on."""
    curve: tuple[int, ...] = ()
    """Numbers of labelled cells for a learning curve, such as 10, 50, 100, 500."""
    allow_seen: bool = False
    """Also report test cells that the checkpoint was pretrained on (it saw their genes, not their labels); by default
    that is refused."""

    @property
    def targets(self) -> tuple[str, ...]:
        """The targets, also of one."""
        return (self.target,) if isinstance(self.target, str) else tuple(self.target)

    def __post_init__(self) -> None:
        several = isinstance(self.target, tuple | list) and all(isinstance(name, str) for name in self.target)
        require(several or isinstance(self.target, str), self, "target", "an obs column, or several")
        require(not isinstance(self.regression, str), self, "regression", "a tuple of targets")
        NetworkConfig.__post_init__(self)
        SplitConfig.__post_init__(self)
        require(len(self.targets) > 0, self, "target", "at least one obs column")
        if SMOOTHING in self.trainer and set(self.targets) <= set(self.regression):
            raise ConfigError(f"trainer.{SMOOTHING} has no effect on numbers, and no target has classes. Leave it out.")
        require(self.min_cells >= 0, self, "min_cells", "at least 0")
        require((self.max_cells_per_class or 3) >= 3, self, "max_cells_per_class", "at least 3")
        has_classes = self.max_cells_per_class is None or self.targets[0] not in self.regression
        require(has_classes, self, "max_cells_per_class", "left out where the first target is a number")
        require(all(n >= 2 for n in self.curve), self, "curve", "numbers of cells, each at least 2")
        for field in ("regression", "task_weights"):
            for name in getattr(self, field):
                if name not in self.targets:
                    raise InputError(
                        f"{type(self).__name__}.{field} names {name!r}, which is no target. "
                        f"{did_you_mean(name, self.targets)}"
                    )
        SearchConfig.__post_init__(self)


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
    >>> config = gf.FinetuneConfig(target="phase", min_cells=3, epochs=1, batch_size=16, baselines=False)
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
    >>> config = gf.FinetuneConfig(target="phase", group="donor", min_cells=3, epochs=1, batch_size=16)
    >>> result = gf.finetune(base, cells.select(range(90)), config, out="runs/phase", counts="cells.h5ad")
    >>> result.methods.index.tolist()
    ['fine-tuned', 'majority class', 'logistic regression, counts', 'logistic regression, rank values',
     'nearest neighbours, PCA of counts', 'gradient boosting, counts', 'logistic regression, frozen embedding',
     'same network, random weights']
    >>> result.methods[["accuracy", "accuracy_low", "accuracy_high"]].shape
    (8, 3)
    """
    join_processes(config)
    checkpoint.require_matching(cells)
    require_poolable(cells.vocabulary, config.pooling, choices=HeadPooling)
    run = _Run.prepared(checkpoint, cells, config)
    counted = raw_counts(run.task.cells, counts) if config.baselines else None
    inputs = {"cells": cells.fingerprint, "checkpoint": checkpoint.fingerprint, **run.digests(counted)}
    settings = resolved(config) | {"split_file": None}  # whose content the inputs name
    plan = {"step": "finetune", "version": VERSION, "config": settings, **inputs}
    with working_on(out, plan, what="run", marker="provenance.json", overwrite=overwrite) as work:
        features = run.features(counted) if config.baselines else None
        outcomes, tables = run.folds(features, work.folder)
        chosen = best_settings(tables, config)
        model = outcomes[0].model or run.final_model(outcomes, chosen, work.folder / "final")
        evaluations = run.evaluations(outcomes)
        curve = run.curve(features, chosen, work.folder / "curve") if config.curve else None
        record = provenance("finetune", config=resolved(config), inputs=inputs) | {
            "result": {name: _as_json(one.methods.loc[FINE_TUNED]) for name, one in evaluations.items()},
            "intervals": run.intervals,
            "settings": {name: getattr(chosen, name) for name in searched_settings(config)},
        }
        result = Finetuned(
            checkpoint=Checkpoint(model, cells.vocabulary, record, run.seen(), name=f"checkpoint {out}"),
            evaluations=evaluations,
            split=split_table(run.splits, run.task.cells.cell_names),
            history=_by_fold([outcome.history for outcome in outcomes]),
            curve=curve,
            trials=_by_fold(tables) if tables else None,
        )
        log_verdicts(evaluations.values())
        if processes.is_first():
            _write(result, run, work)
    return result


def _at_most_of_a_class(
    task: Task, splits: list[Split], most: int, rng: np.random.Generator
) -> tuple[Task, list[Split]]:
    """Keep a random choice of the cells that a file lists, so many of each class; the others are left out."""
    listed = np.unique(np.concatenate([np.concatenate(split) for split in splits]))
    kept = at_most_of_a_class(listed, task.labels[listed, 0], most, rng)
    fewer = [Split(*(np.flatnonzero(np.isin(kept, rows)) for rows in split)) for split in splits]
    for fold, split in enumerate(fewer, 1):
        for part, rows in split._asdict().items():
            if not len(rows):
                where = f" of fold {fold}" if len(fewer) > 1 else ""
                raise InputError(
                    f"max_cells_per_class={most} leaves no {part} cell{where} of those that the split file lists. "
                    "Allow more, or leave it out: the file says which cells are used."
                )
    return task.select(kept), fewer


def _as_json(row: Any) -> dict[str, float]:
    return {str(name): round(float(value), 6) for name, value in row.dropna().items()}


def _by_fold(tables: list[pd.DataFrame]) -> pd.DataFrame:
    if len(tables) == 1:
        return tables[0]
    return pd.concat([table.assign(fold=i + 1) for i, table in enumerate(tables)], ignore_index=True)


@dataclass(frozen=True, eq=False)
class _Run:
    """Labelled cells, how they are split, and the steps over them."""

    checkpoint: Checkpoint
    task: Task
    splits: list[Split]
    groups: np.ndarray | None
    config: FinetuneConfig

    @classmethod
    def prepared(cls, checkpoint: Checkpoint, cells: TokenizedDataset, config: FinetuneConfig) -> "_Run":
        """Read labels, split, and refuse what must not be, before any work."""
        by_file, rng = config.split_file is not None, np.random.default_rng(config.seed)
        task = labelled_cells(
            cells,
            config.targets,
            regression=config.regression,
            min_cells=config.min_cells,
            max_cells_per_class=None if by_file else config.max_cells_per_class,
            rng=rng,
        )
        if config.group:
            cells.require_obs(config.group)
        are_classes = all(target.classes for target in task.targets)
        splits = make_splits(
            task.cells.cell_names, task.strata, task.obs, config, seed=config.seed, are_classes=are_classes
        )
        if by_file and config.max_cells_per_class is not None:
            task, splits = _at_most_of_a_class(task, splits, config.max_cells_per_class, rng)
        for name, labels in task.class_labels.items():
            if not np.array_equal(labels, task.strata):  # of which the splits warn themselves
                warn_of_lacking_classes(splits, labels, target=name)
        groups = as_labels(task.obs[config.group]).to_numpy() if config.group else None
        run = cls(checkpoint, task, splits, groups, config)
        run._require_labels()
        run._require_unseen()
        require_enough(config.curve, splits[0])
        return run

    def _require_labels(self) -> None:
        parts = [("training", split.train) for split in self.splits]
        for part, rows in [*parts, ("test", np.concatenate([split.test for split in self.splits]))]:
            for target, labels in zip(self.task.targets, self.task.labels[rows].T, strict=True):
                if np.isnan(labels).all():
                    raise InputError(
                        f"No {part} cell has a label in {target.name!r}. Split otherwise, or leave it out."
                    )

    def _require_unseen(self) -> None:
        seen = self.checkpoint.seen
        if seen is None or self.config.allow_seen:
            return
        tested = np.concatenate([split.test for split in self.splits])
        known = np.isin(self.task.cells.select(tested).digests(), seen)
        if known.any():
            raise InputError(
                f"{known.sum()} of {len(tested)} test cells (first: {self.task.cells.cell_names[tested[known][0]]!r}) "
                f"are among the cells that {self.checkpoint.name} was pretrained on. Pretrain without them, report "
                "other cells (split_file=, test_groups=), or accept it: allow_seen=true."
            )

    def digests(self, counted: csr_matrix | None) -> dict[str, str | None]:
        """Return digests of what is learned and compared, which a dataset's fingerprint need not cover."""
        return {
            "labels": self.task.digest(self.groups),
            "split": digest_of_splits(self.splits, self.task.cells.cell_names),
            "counts": digest_of_counts(counted),
        }

    @property
    def trained(self) -> np.ndarray:
        """Rows that the classifier learns from; of several folds those of all their parts."""
        several = len(self.splits) > 1
        return np.unique(np.concatenate([np.concatenate(split) if several else split.train for split in self.splits]))

    @property
    def intervals(self) -> str:
        """What the intervals are, in words."""
        tested = np.concatenate([split.test for split in self.splits])
        n_groups = 0 if self.groups is None else len(np.unique(self.groups[tested]))
        if n_groups >= 2:
            rough = ", rough with so few" if n_groups < 8 else ""
            return f"95 % bootstrap intervals over {n_groups} groups of {self.config.group!r}{rough}"
        alone = f", too narrow, since all are of one group of {self.config.group!r}" if n_groups else ""
        return f"95 % bootstrap intervals over {len(tested)} cells{alone}"

    def features(self, counted: csr_matrix | None) -> baselines.Features:
        """Gather what simple methods look at."""
        pooling: Pooling = "cls" if self.config.pooling == "cls" else "mean"
        vectors = np.asarray(embed(self.checkpoint, self.task.cells, pooling=pooling).X)
        return baselines.Features(counts=counted, ranks=rank_values(self.task.cells), embedding=vectors)

    def folds(self, features: baselines.Features | None, work: Path) -> tuple[list[Outcome], list[pd.DataFrame]]:
        """Run every method on every split; search settings within each, on its training and validation cells."""
        outcomes, tables = [], []
        for i, split in enumerate(self.splits):
            folder, step = work / f"fold-{i + 1}", "fine-tune"
            if len(self.splits) > 1:
                step = f"fold {i + 1} of {len(self.splits)}"
            config = self.config
            if config.trials:
                searched = self.task.select(np.concatenate([split.train, split.validation]))
                n_train = len(split.train)
                config, table = search(
                    searched,
                    self.checkpoint,
                    config,
                    train_rows=np.arange(n_train),
                    validation_rows=np.arange(n_train, len(searched.labels)),
                    work=folder / "search",
                )
                tables.append(table)
            outcomes.append(
                run_methods(
                    self.task,
                    self.checkpoint,
                    config,
                    train_rows=split.train,
                    validation_rows=split.validation,
                    test_rows=split.test,
                    features=features,
                    with_model=len(self.splits) == 1,
                    work=folder,
                    step=step,
                )
            )
        return outcomes, tables

    def final_model(self, outcomes: list[Outcome], config: FinetuneConfig, work: Path) -> CellClassifier:
        """Train on the cells of all folds, as long as the folds found best."""
        best = [best_epoch(outcome.history) for outcome in outcomes]
        config = dataclasses.replace(config, epochs=float(np.median(best)))
        model, _ = train_classifier(
            self.task,
            self.checkpoint,
            config,
            train_rows=self.trained,
            validation_rows=None,
            work=work,
            step="all cells",
        )
        return model

    def evaluations(self, outcomes: list[Outcome]) -> dict[str, Evaluation]:
        """Score all methods on the test cells of all folds."""
        tested = np.concatenate([split.test for split in self.splits])
        folds = np.repeat(np.arange(len(self.splits)), [len(split.test) for split in self.splits])
        return {
            target.name: evaluate_target(
                target,
                self.task.cells.cell_names[tested],
                self.task.labels[tested, i],
                _joined([outcome.predicted[i] for outcome in outcomes]),
                folds=folds,
                groups=None if self.groups is None else self.groups[tested],
                seed=self.config.seed,
            )
            for i, target in enumerate(self.task.targets)
        }

    def curve(self, features: baselines.Features | None, config: FinetuneConfig, work: Path) -> pd.DataFrame:
        """Train on more and more labels of the first split."""
        return learning_curve(
            self.task,
            self.checkpoint,
            config,
            split=self.splits[0],
            sizes=config.curve,
            features=features,
            work=work,
        )

    def seen(self) -> np.ndarray | None:
        """Return the digests of all cells that the classifier learned from, in pretraining or here."""
        own = self.task.cells.select(self.trained).digests()
        return np.unique(own) if self.checkpoint.seen is None else np.union1d(own, self.checkpoint.seen)


def _joined(predicted: list[dict[str, np.ndarray | None]]) -> dict[str, np.ndarray | None]:
    joined: dict[str, np.ndarray | None] = {}
    for name in predicted[0]:
        parts = [one[name] for one in predicted]
        joined[name] = None if any(part is None for part in parts) else np.concatenate(parts)  # type: ignore[arg-type]
    return joined


def _write(result: Finetuned, run: _Run, work: Work) -> None:
    several = len(result.evaluations) > 1
    with work.result() as folder:
        folder.mkdir()
        result.checkpoint.write_into(folder)
        for name in ("split", "history", "curve", "trials"):
            table = getattr(result, name)
            if table is not None:
                write_table(table, folder / f"{name}.tsv", index=False)
        (folder / LOG_FILE).write_bytes((work.folder / "fold-1" / "fine-tuned" / LOG_FILE).read_bytes())
        pages = [
            write_evaluation(evaluation, folder_of(folder, name, several=several), curve=result.curve)
            for name, evaluation in result.evaluations.items()
        ]
        facts = {name: getattr(run.config, name) for name in ("transfer", "epochs", "learning_rate", "seed")}
        facts |= {"test cells": sum(len(split.test) for split in run.splits)}
        write_page(folder, pages, intervals=run.intervals, facts=facts)
