"""Labels of patients, learned and asked for: ``finetune-patients`` and ``predict-patients``."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geneformer_repro.cli.commands import AtLeast
from geneformer_repro.cli.following import after_finetune_patients
from geneformer_repro.cli.inputs import (
    ANY_FILE,
    CHECKPOINT,
    COLUMN,
    MODEL,
    TOKENIZED,
    VECTORS_OR_CELLS,
    add_cells_options,
    add_config_options,
    add_survival_option,
    new_command,
    open_both,
    refuse_where,
    survival_settings,
)
from geneformer_repro.cli.models import print_evaluations
from geneformer_repro.cli.terminal import print_first, say
from geneformer_repro.config import load_config
from geneformer_repro.errors import counted

if TYPE_CHECKING:
    from geneformer_repro.finetuning.settings.patients import PatientConfig


def add_commands(commands: Any) -> None:
    """Add the commands of this module."""
    _add_finetune(commands)
    _add_predict(commands)


def _add_finetune(commands: Any) -> None:
    command = new_command(
        commands,
        "finetune-patients",
        _finetune_patients,
        "learn labels of patients, each a bag of cells",
        "folder to write: network, report.html, tables and pictures",
        family="train",
        examples=["cells.tok --checkpoint base --patient donor --target disease -o patients"],
        more="Pseudobulk and composition stand beside it.",
        then=after_finetune_patients,
        configures=_settings,
        settings=("finetuning.settings.patients", "PatientConfig"),
    )
    command.add_argument(
        "cells",
        type=VECTORS_OR_CELLS,
        help=f".h5ad with vectors in obsm; or, with --checkpoint, a {TOKENIZED}",
    )
    command.add_argument(
        "--checkpoint", type=MODEL, metavar="BASE", help=f"whose encoder makes the vectors: {CHECKPOINT}"
    )
    command.add_argument("--vectors", metavar="KEY", help="key of obsm with the vectors, such as X_uni")
    command.add_argument("--patient", type=COLUMN, metavar="COLUMN", help="obs column that says whose each cell is")
    command.add_argument(
        "--target", type=COLUMN, nargs="+", metavar="COLUMN", help="obs column to learn, or several together"
    )
    command.add_argument("--regression", nargs="+", metavar="COLUMN", help="targets that are learned as numbers")
    add_survival_option(command)
    command.add_argument("--cell-type", type=COLUMN, metavar="COLUMN", help="obs column with the type of each cell")
    command.add_argument(
        "--pooling", metavar="HOW", help="attention (default), cell_type (attention within each type), or mean"
    )
    command.add_argument("--group", type=COLUMN, help="obs column whose patients are never split, such as the hospital")
    command.add_argument("--folds", metavar="K", help="folds of patients (default 5), or groups: leave one group out")
    command.add_argument("--repeats", type=AtLeast(1), metavar="N", help="times that the folds are dealt (default 1)")
    command.add_argument("--split", type=ANY_FILE, metavar="FILE", help="split.tsv of an earlier run: patient and part")
    command.add_argument("--no-baselines", action="store_true", help="leave the methods to compare with out")
    command.add_argument(
        "--counts", type=ANY_FILE, help=".h5ad with the raw counts, if not X or where tokenize found them"
    )
    add_config_options(command)


def _add_predict(commands: Any) -> None:
    command = new_command(
        commands,
        "predict-patients",
        _predict_patients,
        "ask a network of patients about new ones",
        "folder to write: patients.tsv and attention.tsv",
        family="ask",
        examples=["patients new.tok --checkpoint base -o predicted"],
        more="It says, too, which of their cells it looks at.",
    )
    command.add_argument("folder", type=ANY_FILE, help="folder written by finetune-patients")
    command.add_argument(
        "cells",
        type=VECTORS_OR_CELLS,
        help=f".h5ad with vectors in obsm; or, with --checkpoint, a {TOKENIZED}",
    )
    command.add_argument(
        "--checkpoint", type=MODEL, metavar="BASE", help=f"whose encoder made the vectors: {CHECKPOINT}"
    )
    for name, what in (
        ("--patient", "obs column that says whose each cell is"),
        ("--vectors", "key of obsm with the vectors"),
        ("--cell-type", "obs column with the type of each cell"),
    ):
        command.add_argument(
            name, type=str if name == "--vectors" else COLUMN, metavar="NAME", help=f"{what} (default: that of the run)"
        )
    add_cells_options(command)


def _finetune_patients(arguments: argparse.Namespace) -> None:
    import geneformer_repro.processes as processes
    from geneformer_repro.finetuning.patients import finetune_patients

    where = {"out": arguments.out, "counts": arguments.counts, "overwrite": arguments.overwrite}
    result = finetune_patients(*_opened(arguments), arguments.settings, **where)
    if processes.is_first():
        print_evaluations(result.evaluations, "on the test patients", arguments.out)


def _predict_patients(arguments: argparse.Namespace) -> None:
    import geneformer_repro.processes as processes
    from geneformer_repro.finetuning.patient_predictions import predict_patients

    checkpoint, cells = _opened(arguments)
    given = {name: getattr(arguments, name) for name in ("patient", "vectors", "cell_type", "out", "overwrite")}
    found = predict_patients(arguments.folder, cells, checkpoint=checkpoint, **given)
    if processes.is_first():
        shown = [name for name in found.patients.columns.astype(str) if not name.startswith("top_")]
        print_first(found.patients[shown], number="{:.3f}")
        patients, cells = (Path(arguments.out) / name for name in ("patients.tsv", "attention.tsv"))
        say(f"{patients} has {counted(len(found.patients), 'patient')}, {cells} the attention of each cell")


def _opened(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """Open tokenised cells and their checkpoint; leave a file with vectors as it is."""
    from geneformer_repro.tokenizer.published import is_dataset

    is_tokenised = arguments.checkpoint or is_dataset(Path(arguments.cells))
    if is_tokenised:
        return open_both(arguments)
    refuse_where(arguments, f"{arguments.cells} has vectors")
    return None, arguments.cells


def _settings(arguments: argparse.Namespace) -> "PatientConfig":
    from geneformer_repro.finetuning.settings.patients import PatientConfig

    return load_config(PatientConfig, arguments.config, [*arguments.set, *patient_settings(arguments)])


def patient_settings(arguments: argparse.Namespace) -> list[str]:
    """Write options as settings; a JSON value is a TOML value."""
    folds = int(arguments.folds) if arguments.folds and arguments.folds.isdecimal() else arguments.folds
    given: dict[str, Any] = {
        "patient": arguments.patient,
        "target": arguments.target[0] if arguments.target and len(arguments.target) == 1 else arguments.target,
        "regression": arguments.regression,
        "vectors": arguments.vectors,
        "cell_type": arguments.cell_type,
        "pooling": arguments.pooling,
        "split.group": arguments.group,
        "split.folds": folds,
        "split.repeats": arguments.repeats,
        "split.split_file": arguments.split,
        "compare.baselines": False if arguments.no_baselines else None,
    }
    given |= survival_settings(arguments)
    return [f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in given.items() if value is not None]
