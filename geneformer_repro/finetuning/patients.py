"""Fine-tuning on labels of patients, each a bag of cells: which cells decide is learned too, and told.

The vectors of cells are frozen, those of a checkpoint's encoder or of any other model in ``obsm``; what learns is a
small network that pools them. Splits are of patients, and beside the network stand its pooling by the mean, pseudobulk,
cell-type composition and the mean vector. What attention says of a cell comes from the network of the fold in which its
patient was tested.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

import geneformer_repro.processes as processes
from geneformer_repro.arguments import typed
from geneformer_repro.bags import BagNetwork
from geneformer_repro.checkpoint import Checkpoint
from geneformer_repro.config import resolved
from geneformer_repro.errors import InputError, listed
from geneformer_repro.files import provenance, write_json
from geneformer_repro.finetuning.attention import (
    attention_sections,
    cells_table,
    mean_said,
    patients_table,
    types_table,
)
from geneformer_repro.finetuning.baselines import PatientInputs
from geneformer_repro.finetuning.evaluation import Evaluation, log_verdicts
from geneformer_repro.finetuning.experiment import Experiment, Findings, splits_of
from geneformer_repro.finetuning.finetune import planned
from geneformer_repro.finetuning.methods import NetworkMethod
from geneformer_repro.finetuning.patient_cells import patient_cells
from geneformer_repro.finetuning.problems.patients import PatientProblem, labelled_patients, pseudobulk
from geneformer_repro.finetuning.results import write_findings
from geneformer_repro.finetuning.settings.patients import PatientConfig
from geneformer_repro.network_settings import BagPooling
from geneformer_repro.tokenizer.counts import digest_of
from geneformer_repro.tokenizer.dataset import TokenizedDataset
from geneformer_repro.work import working_on

if TYPE_CHECKING:
    from anndata import AnnData

VERSION = 1
"""Raised when the same call gives other results, so that a run which an earlier version began is not gone on with."""
_FEWEST = 3
"""Patients of a class, one for each part of a split."""
POOLINGS: Mapping[BagPooling, str] = {
    "cell_type": "attention within cell types",
    "attention": "attention pooling",
    "mean": "mean pooling",
}
"""What networks are called in tables; those after the one that is asked about stand beside it."""


@dataclass(frozen=True, eq=False)
class FinetunedPatients:
    """What learning labels of patients made.

    See Also
    --------
    finetune_patients : Makes it.

    Examples
    --------
    >>> import dataclasses
    >>> import geneformer_repro as gf
    >>> [field.name for field in dataclasses.fields(gf.FinetunedPatients)]
    ['network', 'evaluations', 'split', 'history', 'patients', 'attention', 'attention_by_type']
    """

    network: BagNetwork
    """The network; of several folds, one trained on all labelled patients afterwards."""
    evaluations: Mapping[str, Evaluation]
    """What each method reached, by target."""
    split: pd.DataFrame
    """``patient``, ``part`` and, of several, ``fold`` and ``repeat``; can be given back as ``split_file``."""
    history: pd.DataFrame
    """Training and validation scores of the network; of several folds with a column ``fold``."""
    patients: pd.DataFrame
    """A row a tested patient: ``patient``, ``n_cells``, labels, predictions, ``attention_entropy``, ``top_cells``."""
    attention: pd.DataFrame
    """A row a cell of these patients: ``cell``, ``patient``, ``cell_type`` where given, ``attention``,
    ``relative_attention``; by networks that had not seen the patient."""
    attention_by_type: pd.DataFrame | None = None
    """A row a cell type, where given: ``n_patients``, ``n_cells``, mean ``relative_attention`` with its interval."""

    @property
    def methods(self) -> pd.DataFrame:
        """A row a method, with scores on the test patients and their intervals; of several targets indexed by both."""
        if len(self.evaluations) == 1:
            return next(iter(self.evaluations.values())).methods
        return pd.concat({name: one.methods for name, one in self.evaluations.items()}, names=["target"])


@typed
def finetune_patients(
    checkpoint: Checkpoint | None,
    cells: "TokenizedDataset | AnnData | str | Path",
    config: PatientConfig,
    *,
    out: str | Path,
    counts: "AnnData | str | Path | None" = None,
    overwrite: bool = False,
) -> FinetunedPatients:
    """Learn labels of patients from their cells, beside methods that need no such network.

    Parameters
    ----------
    checkpoint
        Whose encoder, left as it is, makes the vectors of tokenised cells; None where ``obsm`` has vectors.
    cells
        Tokenised cells, or an AnnData or ``.h5ad`` with vectors in ``obsm[config.vectors]``; with the columns that the
        configuration names. Cells without a patient, and patients without a label, are left out and counted in the log.
    config
        What to learn and how.
    out
        Folder for the network, ``report.html``, tables and pictures. A run that was cut off goes on with the same call.
    counts
        Raw counts of the cells, for the pseudobulk; default the file they were tokenised from, or ``X``. Of an ``X``
        that holds no counts the pseudobulk is the mean over a patient's cells, and the log says so.
    overwrite
        Replace a result that `out` holds; drop an unfinished run with other settings (the same run goes on).

    Returns
    -------
    The network and the tables, all methods on the same test patients.

    Raises
    ------
    InputError
        A column or key is missing, a label differs within a patient or has one class, vectors are not finite, there are
        too few patients for the folds, or a patient is on two sides of the split.
    FileExistsError
        `out` exists, or an unfinished run with other settings.

    See Also
    --------
    PatientConfig : How.
    finetune : Labels of cells instead.

    Examples
    --------
    >>> import numpy as np
    >>> import geneformer_repro as gf
    >>> adata = gf.datasets.pbmc700()
    >>> adata.obs["sample"] = [f"sample{i % 14:02d}" for i in range(adata.n_obs)]
    >>> adata.obs["arm"] = ["even" if i % 2 else "odd" for i in range(adata.n_obs)]
    >>> adata.obsm["X_ten"] = np.log1p(adata.X[:, :10].toarray())
    >>> config = gf.PatientConfig(
    ...     patient="sample", target="arm", vectors="X_ten", split={"folds": 2}, training={"epochs": 5}
    ... )
    >>> result = gf.finetune_patients(None, adata, config, out="runs/arm")
    >>> result.methods.index.tolist()
    ['attention pooling', 'majority class', 'logistic regression, PCA of pseudobulk',
     'logistic regression, cell-type composition', 'logistic regression, mean vector', 'mean pooling']
    >>> result.attention.columns.tolist()
    ['cell', 'patient', 'attention', 'relative_attention']
    """
    processes.join()
    source = patient_cells(checkpoint, cells, config.vectors)
    problem = labelled_patients(source.obs, source.names, source.usable, config)
    experiment = _prepared(problem, config)
    if not config.split.allow_seen:
        source.require_unseen(problem, np.unique(experiment.tested))
    inputs = source.fingerprints(problem)
    expression = source.expression(problem, counts) if config.compare.baselines else None
    inputs |= {
        "labels": problem.digest(),
        "split": experiment.digest_of_splits(),
        "counts": None if expression is None else digest_of(expression[0]),
    }
    plan = {"step": "finetune_patients", "version": VERSION, "config": planned(config), **inputs}
    with working_on(out, plan, what="run", marker="provenance.json", overwrite=overwrite) as work:
        problem = problem.with_vectors(source.vectors(problem, work.folder))
        experiment = dataclasses.replace(experiment, problem=problem)
        found = experiment.run(_features(problem, config, expression), work.folder)
        log_verdicts(found.evaluations.values())
        result = _result(experiment, found)
        record = provenance("finetune_patients", config=resolved(config), inputs=inputs) | {
            "result": {
                name: of.methods.loc[of.ours].dropna().round(6).to_dict() for name, of in found.evaluations.items()
            },
            "intervals": experiment.intervals,
        }
        if processes.is_first():
            with work.result() as folder:
                folder.mkdir()
                _write_into(folder, result, experiment, work.folder)
                write_json(folder / "provenance.json", record)
    return result


@dataclass(frozen=True, eq=False)
class PatientExperiment(Experiment):
    """An experiment on patients."""

    problem: PatientProblem


def _prepared(problem: PatientProblem, config: PatientConfig) -> PatientExperiment:
    """Split, and refuse what must not be, before any work."""
    _require_patients(problem, config)
    splits = splits_of(problem, problem.obs, config)
    simpler = list(POOLINGS)[list(POOLINGS).index(config.pooling) :]
    networks = [
        NetworkMethod(POOLINGS[name], name, changes={"pooling": name}, step="" if n == 0 else f", {POOLINGS[name]}")
        for n, name in enumerate(simpler)
    ]
    experiment = PatientExperiment(
        problem, None, splits, config, tuple(networks) if config.compare.baselines else tuple(networks[:1])
    )
    experiment.require_labels()
    return experiment


def _require_patients(problem: PatientProblem, config: PatientConfig) -> None:
    """Raise unless there are patients enough, of every class, for the folds."""
    if config.split.split_file is not None:
        return
    n_patients, folds = len(problem.patients), config.split.folds
    if isinstance(folds, int) and n_patients < max(folds, _FEWEST):
        raise InputError(
            f"{n_patients} labelled patients are too few for {folds} folds. Give fewer folds (split.folds), or more "
            "patients."
        )
    for name, labels in problem.class_labels.items():
        n_of_class = pd.Series(labels).value_counts()
        rare = [f"{label!r} ({n})" for label, n in n_of_class.items() if n < _FEWEST]
        if rare:
            raise InputError(
                f"obs column {name!r}: a class needs at least {_FEWEST} patients; too few: {listed(rare)}. Leave "
                "their cells out, or join classes."
            )


def _features(
    problem: PatientProblem, config: PatientConfig, expression: tuple[csr_matrix, bool] | None
) -> PatientInputs | None:
    """Return what the simple methods look at; None where none are wanted."""
    if not config.compare.baselines:
        return None
    bulk = None if expression is None else pseudobulk(expression[0], problem.bags.lengths, are_counts=expression[1])
    return problem.features(None, config, bulk)


def _result(experiment: PatientExperiment, found: Findings) -> FinetunedPatients:
    said = mean_said(experiment, found)
    cells = cells_table(experiment.problem, said)
    return FinetunedPatients(
        found.network,
        found.evaluations,
        experiment.split_table(),
        found.history,
        patients_table(experiment.problem, said),
        cells,
        types_table(cells, seed=experiment.config.seed),
    )


def _write_into(folder: Path, result: FinetunedPatients, experiment: PatientExperiment, work: Path) -> None:
    """Write network, tables, pictures and page into the new folder `folder`."""
    result.network.write_into(folder)
    config = experiment.config
    sections = attention_sections(result.patients, result.attention_by_type, label=config.targets[0])
    for name, section in sections.items():
        assert section.figure is not None
        section.figure.savefig(folder / f"{name}.png", dpi=150)
    names = ("split", "history", "patients", "attention", "attention_by_type")
    write_findings(
        folder,
        experiment,
        result.evaluations,
        {name: getattr(result, name) for name in names},
        work=work,
        facts={
            "pooling": config.pooling,
            "epochs": config.training.epochs,
            "learning_rate": config.training.learning_rate,
            "seed": config.seed,
            "patients": len(experiment.problem.patients),
            "cells": len(experiment.problem.cell_names),
        },
        sections=list(sections.values()),
    )
