"""Fine-tuning to tell classes of genes apart from how they stand in cells, with the genes, not the cells, held out.

Every class's genes are dealt into folds; a network learns from the occurrences of some genes in all cells and is asked
about the occurrences of genes it has no label of. A gene's prediction is the mean over its occurrences, and a gene
counts once, however often it is expressed; scores over occurrences, as published, are in a table of their own.
"""

import dataclasses
import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import numpy as np
import pandas as pd
import torch
from scipy.sparse import csr_matrix
from sklearn.model_selection import StratifiedKFold, train_test_split
from torch import nn

import geneformer_repro.processes as processes
from geneformer_repro.arguments import typed
from geneformer_repro.batching import pack
from geneformer_repro.checkpoint import Checkpoint
from geneformer_repro.config import require, resolved
from geneformer_repro.embedding import embed
from geneformer_repro.encoder import IGNORED
from geneformer_repro.errors import InputError, did_you_mean
from geneformer_repro.files import provenance, read_table, write_table
from geneformer_repro.finetuning import baselines, transfer
from geneformer_repro.finetuning.evaluation import Evaluation, evaluate_target, log_verdicts
from geneformer_repro.finetuning.methods import FINE_TUNED, RANDOM, file_name, kept, kept_of_network
from geneformer_repro.finetuning.metrics import validation_scores
from geneformer_repro.finetuning.networks import (
    NO_SCORES,
    SELECTION,
    balanced_weights,
    best_epoch,
    new_classifier,
    read_history,
    smoothing_of,
    trained_once,
)
from geneformer_repro.finetuning.results import write_evaluation, write_page
from geneformer_repro.finetuning.transfer import TransferConfig
from geneformer_repro.heads import GeneClassifier, Head, Target
from geneformer_repro.model import flops
from geneformer_repro.reading import logits_at_tokens
from geneformer_repro.tokenizer.counts import digest_of, vocabulary_counts
from geneformer_repro.tokenizer.dataset import TokenizedDataset, as_labels, asked_labels
from geneformer_repro.training.config import TrainConfig, join_processes
from geneformer_repro.training.log import LOG_FILE
from geneformer_repro.training.loop import CellExamples, train
from geneformer_repro.work import Work, working_on

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)

VERSION = 1
"""Raised when the same call gives other results, so that a run which an earlier version began is not gone on with."""
_MOST_OCCURRENCES = 100_000
"""Occurrences that are scored one by one; a random choice of more."""
_ID_COLUMNS = ("gene_id", "ensembl_id", "gene", "gene_name")


@dataclass(frozen=True, kw_only=True)
class GeneFinetuneConfig(TransferConfig, TrainConfig):
    """How to fine-tune on classes of genes, and what to compare with.

    See Also
    --------
    finetune_genes : Takes it.

    Examples
    --------
    >>> import geneformer_repro as gf
    >>> config = gf.GeneFinetuneConfig(folds=3, epochs=2)
    >>> config.folds, config.min_cells, config.learning_rate
    (3, 10, 5e-05)
    """

    folds: int = 5
    """Parts into which the genes are dealt; each is reported once."""
    validation: float = 0.1
    """Share of a fold's other genes that choose the epoch."""
    max_cells: int | None = 10_000
    """A random choice of so many cells in which the genes are looked at; None all."""
    min_cells: int = 10
    """Genes that fewer of these cells have, as they were tokenised, are left out."""
    class_balance: Literal["none", "weights"] = "none"
    """ "weights" counts an occurrence's loss by one over the occurrences of its class."""
    epochs: float = 1
    learning_rate: float = 5e-5
    warmup_steps: float = 0.1
    baselines: bool = True
    """Also fit the methods to compare with; leave it on."""

    def __post_init__(self) -> None:
        TrainConfig.__post_init__(self)
        TransferConfig.__post_init__(self)
        smoothing_of(self)
        require(self.folds >= 2, self, "folds", "at least 2")
        require(0 < self.validation <= 0.5, self, "validation", "above 0 and at most 0.5")
        require((self.max_cells or 1) >= 1, self, "max_cells", "at least 1")


@dataclass(frozen=True, eq=False)
class FinetunedGenes:
    """What fine-tuning on genes made.

    See Also
    --------
    finetune_genes : Makes it.

    Examples
    --------
    >>> import geneformer_repro as gf
    >>> base, cells = gf.Checkpoint.from_pretrained("runs/base"), gf.TokenizedDataset.open("cells.tok")
    >>> genes = cells.vocabulary.gene_ids
    >>> config = gf.GeneFinetuneConfig(folds=2, epochs=1, batch_size=16, baselines=False)
    >>> classes = {"even": genes[100:140:2], "odd": genes[101:140:2]}  # that is, nothing to learn
    >>> result = gf.finetune_genes(base, cells.select(range(40)), classes, config, out="runs/genes")
    >>> result.split.columns.tolist()
    ['gene', 'label', 'n_cells', 'fold']
    >>> result.split["fold"].nunique()
    2
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
            f"{', '.join(map(repr, table.columns))}."
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
    >>> config = gf.GeneFinetuneConfig(folds=2, epochs=1, batch_size=16, baselines=False, min_cells=5)
    >>> classes = {"ribosomal": names, "other": others}
    >>> result = gf.finetune_genes(base, cells.select(range(40)), classes, config, out="runs/ribosomal")
    >>> result.methods.index.tolist()
    ['fine-tuned']
    >>> result.split["label"].value_counts().to_dict()
    {'other': 15, 'ribosomal': 4}
    """
    config = config or GeneFinetuneConfig()
    join_processes(config)
    checkpoint.require_matching(cells)
    if isinstance(gene_classes, (str, Path)):
        gene_classes = read_gene_classes(gene_classes, task)
    named = asked_labels(gene_classes, "gene_classes: each class")
    if len(set(named)) < len(named):
        raise InputError(f"gene_classes give a class twice: {', '.join(map(repr, gene_classes))}.")
    gene_classes = dict(zip(named, gene_classes.values(), strict=True))
    run = _GeneRun.prepared(checkpoint, cells, gene_classes, config)
    counted = vocabulary_counts(run.cells, counts) if config.baselines else None
    inputs = {"cells": cells.fingerprint, "checkpoint": checkpoint.fingerprint, **run.digests(counted)}
    listed = {name: list(genes) for name, genes in gene_classes.items()}
    step = {"step": "finetune_genes", "version": VERSION, "config": resolved(config), "gene_classes": listed}
    with working_on(out, step | inputs, what="run", marker="provenance.json", overwrite=overwrite) as work:
        outcomes = [run.fold(i, work.folder / f"fold-{i + 1}") for i in range(config.folds)]
        histories = [outcome.history for outcome in outcomes]
        predicted = run.simple_methods(work.folder / "methods", counted) if config.baselines else {}
        asked = [FINE_TUNED, *([RANDOM] if config.baselines else [])]
        networks = {name: [outcome.predicted[name] for outcome in outcomes] for name in asked}
        of_genes = {FINE_TUNED: run.per_gene(networks[FINE_TUNED]), **predicted}
        of_genes |= {name: run.per_gene(networks[name]) for name in asked[1:]}
        evaluation = evaluate_target(
            run.target, run.names, run.codes.astype(float), of_genes, folds=run.fold_of, groups=None, seed=config.seed,
            named="gene",
        )  # fmt: skip
        occurrences = run.over_occurrences(networks, predicted)
        model = run.final_model(histories, work.folder / "final")
        record = provenance("finetune_genes", config=resolved(config), inputs=inputs) | {
            "gene_classes": {name: run.names[run.codes == i].tolist() for i, name in enumerate(run.target.classes)},
            "result": evaluation.methods.loc[FINE_TUNED].dropna().round(6).to_dict(),
        }
        result = FinetunedGenes(
            Checkpoint(model, cells.vocabulary, record, checkpoint.seen, name=f"checkpoint {out}"),
            evaluation,
            occurrences,
            run.split_table(),
            pd.concat([one.assign(fold=i + 1) for i, one in enumerate(histories)], ignore_index=True),
        )
        log_verdicts([evaluation])
        if processes.is_first():
            _write(result, config, work)
    return result


class _Asked(NamedTuple):
    """What a network says of the genes of a fold, occurrence by occurrence."""

    gene: np.ndarray
    """Which gene of the run, (occurrences,)."""
    probabilities: np.ndarray
    """(occurrences, classes)."""


class _Outcome(NamedTuple):
    history: pd.DataFrame
    predicted: dict[str, _Asked]


@dataclass(frozen=True, eq=False)
class _GeneRun:
    """Genes with their classes and folds, the cells that express any of them, and the steps over them."""

    checkpoint: Checkpoint
    cells: TokenizedDataset
    target: Target
    genes: np.ndarray
    """Where each gene stands in the vocabulary."""
    codes: np.ndarray
    n_cells: np.ndarray
    """Cells that express each gene."""
    fold_of: np.ndarray
    config: GeneFinetuneConfig

    @classmethod
    def prepared(
        cls,
        checkpoint: Checkpoint,
        cells: TokenizedDataset,
        gene_classes: Mapping[str, Sequence[str]],
        config: GeneFinetuneConfig,
    ) -> "_GeneRun":
        """Find the genes, choose cells, deal folds, and refuse what must not be, before any work."""
        genes, names = _found_genes(cells, gene_classes)
        rng = np.random.default_rng(config.seed)
        rows = np.arange(len(cells))
        if config.max_cells and len(cells) > config.max_cells:
            rows = np.sort(rng.choice(len(cells), config.max_cells, replace=False))
        cells = cells.select(rows)
        n_cells, expressed = _count(cells, genes)
        enough = n_cells >= max(config.min_cells, 1)
        if not enough.all():
            logger.info(
                "%d of %d genes are in fewer than %d of the %d cells, as these were tokenised; left out.",
                (~enough).sum(), len(genes), config.min_cells, len(cells),
            )  # fmt: skip
        genes, names, n_cells = genes[enough], names[enough], n_cells[enough]
        classes = tuple(sorted(gene_classes))
        codes = np.array([classes.index(name) for name in names], dtype=np.int64)
        _require_genes(np.bincount(codes, minlength=len(classes)), classes, config)
        folds = StratifiedKFold(config.folds, shuffle=True, random_state=config.seed).split(genes, codes)
        fold_of = np.empty(len(genes), dtype=np.int64)
        for i, (_, tested) in enumerate(folds):
            fold_of[tested] = i
        cells = cells.select(np.flatnonzero(expressed))
        return cls(checkpoint, cells, Target("gene class", classes), genes, codes, n_cells, fold_of, config)

    def digests(self, counted: csr_matrix | None) -> dict[str, str | None]:
        """Return digests of the genes' labels and folds, and of the counts."""
        split = self.split_table().to_csv(index=False)
        return {"split": hashlib.sha256(split.encode()).hexdigest(), "counts": digest_of(counted)}

    @property
    def names(self) -> np.ndarray:
        """Id of each gene."""
        return np.array(self.cells.vocabulary.gene_ids, dtype=object)[self.genes]

    @property
    def head(self) -> Head:
        """What the network puts out."""
        return Head((self.target,), level="gene")

    def split_table(self) -> pd.DataFrame:
        """Return ``gene``, ``label``, ``n_cells`` and ``fold``."""
        labels = np.asarray(self.target.classes)[self.codes]
        return pd.DataFrame({"gene": self.names, "label": labels, "n_cells": self.n_cells, "fold": self.fold_of + 1})

    def parts(self, fold: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the genes that train, choose the epoch, and are reported."""
        rest = np.flatnonzero(self.fold_of != fold)
        n = max(round(self.config.validation * len(rest)), len(self.target.classes))
        trained, validated = train_test_split(
            rest, test_size=n, stratify=self.codes[rest], random_state=self.config.seed
        )
        return np.sort(trained), np.sort(validated), np.flatnonzero(self.fold_of == fold)

    def labels_by_token(self, genes: np.ndarray, values: np.ndarray | None = None) -> np.ndarray:
        """Return a label for each token of the vocabulary: the class of these genes (or `values`), else -100."""
        labels = np.full(self.cells.vocabulary.size, IGNORED, dtype=np.int64)
        labels[self.cells.vocabulary.tokens[self.genes[genes]]] = self.codes[genes] if values is None else values
        return labels

    def fold(self, fold: int, work: Path) -> _Outcome:
        """Train the network, and one from random weights, without a fold's genes; ask both about these."""
        trained, validated, tested = self.parts(fold)
        step = f"fold {fold + 1} of {self.config.folds}"
        folders = {FINE_TUNED: work / "fine-tuned", RANDOM: work / "random"}
        steps = {FINE_TUNED: step, RANDOM: f"{step}, random weights"}

        def train_and_ask(name: str) -> np.ndarray:
            network, _ = self.train(trained, validated, folders[name], steps[name], pretrained=name == FINE_TUNED)
            return np.column_stack(self.ask(network, tested))

        predicted = {}
        for name in (FINE_TUNED, RANDOM) if self.config.baselines else (FINE_TUNED,):
            columns = kept_of_network(folders[name], partial(train_and_ask, name))
            predicted[name] = _Asked(columns[:, 0].astype(np.int64), columns[:, 1:])
        return _Outcome(read_history(folders[FINE_TUNED]), predicted)

    def train(
        self,
        genes: np.ndarray,
        validated: np.ndarray | None,
        work: Path,
        step: str,
        *,
        pretrained: bool = True,
        epochs: float | None = None,
    ) -> tuple[GeneClassifier, pd.DataFrame]:
        """Train a network on the occurrences of some genes; keep the epoch that is best on others."""
        config = self.config if pretrained else transfer.all_learning(self.config)
        if validated is None:
            config = dataclasses.replace(
                config, epochs=epochs or config.epochs, trainer={**config.trainer, **NO_SCORES}
            )
        model = cast(
            GeneClassifier, new_classifier(self.checkpoint, self.head, seed=config.seed, pretrained=pretrained)
        )
        weights = None
        if config.class_balance == "weights":
            repeated = np.repeat(self.codes[genes], self.n_cells[genes])
            weights = [balanced_weights(repeated.astype(float), self.target)]
        model.weigh(classes=weights, smoothing=smoothing_of(config))
        label_of = self.labels_by_token(genes)
        rows = np.array([i for i, cell in enumerate(self.cells) if (label_of[cell] != IGNORED).any()])
        examples = CellExamples(
            self.cells.lengths[rows], lambda i, _: (self.cells[rows[i]], label_of[self.cells[rows[i]]]), rows=rows
        )

        def trained_here() -> tuple[GeneClassifier, pd.DataFrame]:
            prepared, groups = transfer.prepare(model, config, seed=config.seed)
            trained, history = train(
                prepared,
                examples,
                collate=pack,
                evaluate=(lambda _: {}) if validated is None else partial(self._score, validated),
                config=config,
                groups=groups,
                best_by=None if validated is None else SELECTION,
                work=work,
                flops_an_epoch=3 * flops(model.config, examples.lengths),
                step=step,
            )
            return cast(GeneClassifier, transfer.finished(trained)).eval(), history

        return trained_once(work, trained_here, like=lambda: model)

    def _score(self, genes: np.ndarray, model: nn.Module) -> dict[str, float]:
        asked = self.ask(model, genes)
        right = np.clip(asked.probabilities[np.arange(len(asked.gene)), self.codes[asked.gene]], 1e-12, None)
        of_genes = _mean_by_gene(asked, len(self.genes))[genes]
        found = validation_scores(self.codes[genes], of_genes)
        return {"loss": float(-np.log(right).mean()), **found, SELECTION: found["macro_f1"]}

    def ask(self, model: nn.Module, genes: np.ndarray) -> _Asked:
        """Return probabilities of the classes for each occurrence of these genes."""
        occurrences = logits_at_tokens(model, self.cells, self.labels_by_token(genes, genes))
        numbers, logits = zip(*occurrences, strict=True)
        return _Asked(torch.cat(numbers).numpy(), torch.cat(logits).double().softmax(-1).numpy())

    def per_gene(self, folds: list[_Asked]) -> np.ndarray:
        """Return the mean probabilities of each gene over its occurrences."""
        return sum(_mean_by_gene(asked, len(self.genes)) for asked in folds)  # type: ignore[return-value]

    def simple_methods(self, work: Path, counted: csr_matrix | None) -> dict[str, np.ndarray | None]:
        """Let the simple methods predict every fold's genes from the others."""
        vocabulary = self.cells.vocabulary
        vectors = embed(self.checkpoint, self.cells, level="gene")
        rng = np.random.default_rng(self.config.seed)
        inputs = baselines.GeneInputs(
            features=baselines.gene_features(self.cells, counted, self.genes),
            coexpression=baselines.coexpression(self.cells, self.genes, seed=self.config.seed),
            random=rng.normal(size=(len(self.genes), vectors.n_vars)),
            embedding=np.asarray(vectors[np.asarray(vocabulary.gene_ids)[self.genes]].X),
        )
        predicted: dict[str, np.ndarray | None] = {}
        for name, method in baselines.GENE_METHODS.items():
            predicted[name] = kept(work / f"{file_name(name)}.npy", partial(self._over_folds, method, inputs))
        return predicted

    def _over_folds(self, method: Callable[..., np.ndarray], inputs: Any) -> np.ndarray:
        predicted = np.empty((len(self.genes), len(self.target.classes)))
        for fold in range(self.config.folds):
            tested = np.flatnonzero(self.fold_of == fold)
            rest = np.flatnonzero(self.fold_of != fold)
            predicted[tested] = method(
                inputs, rest, self.codes[rest], len(self.target.classes), tested, self.config.seed
            )
        return predicted

    def over_occurrences(
        self, networks: Mapping[str, list[_Asked]], simple: Mapping[str, np.ndarray | None]
    ) -> pd.DataFrame:
        """Score every method over occurrences; the intervals resample genes."""
        gene = np.concatenate([asked.gene for asked in networks[FINE_TUNED]])
        rng = np.random.default_rng(self.config.seed)
        taken = np.arange(len(gene))
        if len(gene) > _MOST_OCCURRENCES:
            taken = np.sort(rng.choice(len(gene), _MOST_OCCURRENCES, replace=False))
        predicted: dict[str, np.ndarray | None] = {
            name: np.concatenate([asked.probabilities for asked in folds])[taken] for name, folds in networks.items()
        }
        predicted |= {name: None if one is None else one[gene[taken]] for name, one in simple.items()}
        evaluation = evaluate_target(
            self.target,
            self.names[gene[taken]],
            self.codes[gene[taken]].astype(float),
            predicted,
            folds=np.zeros(len(taken), dtype=np.int64),
            groups=gene[taken],
            seed=self.config.seed,
            named="gene",
        )
        return evaluation.methods

    def final_model(self, histories: list[pd.DataFrame], work: Path) -> GeneClassifier:
        """Train on all genes, as long as the folds found best."""
        best = [best_epoch(history) for history in histories]
        model, _ = self.train(np.arange(len(self.genes)), None, work, "all genes", epochs=float(np.median(best)))
        return model


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
        logger.warning("%d listed genes are not in the vocabulary and left out: %s", len(unknown), _listed(unknown))
    ambiguous = pd.Index(position).duplicated(keep=False)
    if ambiguous.any():
        names = sorted({cells.vocabulary.gene_ids[i] for i in np.array(position)[ambiguous]})
        logger.warning("%d listed genes are in several classes and left out: %s", len(names), _listed(names))
    kept = np.flatnonzero(~ambiguous)
    return np.array(position, dtype=np.int64)[kept], np.array(label, dtype=object)[kept]


def _listed(genes: Sequence[str]) -> str:
    return ", ".join(genes[:10]) + (", …" if len(genes) > 10 else "")


def _count(cells: TokenizedDataset, genes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count the cells that express each gene; say which cells express any."""
    wanted = np.zeros(cells.vocabulary.size, dtype=bool)
    wanted[cells.vocabulary.tokens[genes]] = True
    n_by_token = np.zeros(cells.vocabulary.size, dtype=np.int64)
    expressed = np.zeros(len(cells), dtype=bool)
    for i, cell in enumerate(cells):
        found = cell[wanted[cell]]
        n_by_token[found] += 1
        expressed[i] = len(found) > 0
    return n_by_token[cells.vocabulary.tokens[genes]], expressed


def _require_genes(n_genes: np.ndarray, classes: tuple[str, ...], config: GeneFinetuneConfig) -> None:
    enough = 4 if config.folds == 2 else config.folds  # so that two are outside of any fold: to learn, and to validate
    few = [f"{name!r} ({n})" for name, n in zip(classes, n_genes, strict=True) if n < enough]
    if few:
        raise InputError(
            f"A class needs at least {enough} genes that at least {config.min_cells} cells express, for {config.folds} "
            f"folds; too few: {', '.join(few)}. Give more genes or cells, fewer folds, or a smaller min_cells."
        )


def _mean_by_gene(asked: _Asked, n_genes: int) -> np.ndarray:
    """Mean probabilities of each gene; 0 for those that were not asked."""
    sums = np.stack([np.bincount(asked.gene, column, minlength=n_genes) for column in asked.probabilities.T], axis=1)
    return sums / np.maximum(np.bincount(asked.gene, minlength=n_genes), 1)[:, None]


def _write(result: FinetunedGenes, config: GeneFinetuneConfig, work: Work) -> None:
    with work.result() as folder:
        folder.mkdir()
        result.checkpoint.write_into(folder)
        write_table(result.split, folder / "split.tsv", index=False)
        write_table(result.history, folder / "history.tsv", index=False)
        write_table(result.occurrences, folder / "occurrences.tsv")
        (folder / LOG_FILE).write_bytes((work.folder / "fold-1" / "fine-tuned" / LOG_FILE).read_bytes())
        page = write_evaluation(result.evaluation, folder)
        facts = {"transfer": config.transfer, "folds": config.folds, "genes": len(result.split)}
        write_page(folder, [page], intervals=f"95 % bootstrap intervals over {len(result.split)} genes", facts=facts)
