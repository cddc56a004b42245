"""What several commands take: options, the inputs that they name, opened, and a table with its picture and page."""

import argparse
import json
import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import geneformer_repro.cli.artefacts as artefacts
from geneformer_repro.cli.commands import AtLeast, Column, Command, Reads, asked_where
from geneformer_repro.errors import InputError, counted, did_you_mean

if TYPE_CHECKING:
    from anndata import AnnData

    from geneformer_repro.in_silico.goals import GoalState
    from geneformer_repro.tokenizer.dataset import TokenizedDataset
    from geneformer_repro.tokenizer.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

COUNTS = (
    "raw counts: .h5ad, .loom, .zarr, 10x .h5 or folder with matrix.mtx, or a table (.tsv, .csv, .parquet); or a glob, "
    "or a folder of such files other than tables"
)
TOKENIZED = "folder written by tokenize, or tokenised cells of others (.dataset folder, .parquet)"
CHECKPOINT = "checkpoint folder, or hub id"
MODEL = Reads(artefacts.CHECKPOINT, hub=True)
DATASET = Reads(artefacts.CELLS)
SAMPLES = Reads(artefacts.ANNDATA, artefacts.TABLE, artefacts.CELLS)
EXPLAINED = Reads(artefacts.CELLS, artefacts.ANNDATA, artefacts.TABLE)
COUNT_FILES = Reads(artefacts.ANNDATA, artefacts.TABLE)
ANY_FILE = Reads()
NAMED_FILE = Reads(named=True)
VECTORS = Reads(artefacts.ANNDATA)
VECTORS_OR_CELLS = Reads(artefacts.ANNDATA, artefacts.CELLS)
COLUMN = Column()


def new_command(
    commands: Any,
    name: str,
    run: Callable[[argparse.Namespace], int | None],
    says: str,
    out: str | None,
    *,
    family: str,
    examples: Sequence[str],
    more: str = "",
    then: Callable[[argparse.Namespace], list[str] | None] | None = None,
    configures: Callable[[argparse.Namespace], Any] | None = None,
    settings: tuple[str, str] | None = None,
    looks: Callable[[argparse.Namespace], None] | None = None,
) -> Command:
    """Add a command that writes `out`, if anything, with the options that all such commands have."""
    command: Command = commands.add_parser(
        name,
        description=f"{says[0].upper()}{says[1:]}.{' ' * bool(more)}{more}",
        family=family,
        says=says,
        examples=[f"geneformer-repro {name} {example}".rstrip() for example in examples],
        then=then,
        configures=configures,
        settings=settings,
        looks=looks,
        siblings=commands.choices,
    )
    if out is not None:
        command.add_argument("-o", "--out", required=True, help=out)
        command.add_argument("--overwrite", action="store_true", help="replace an output of this step that exists")
        command.add_argument("--quiet", action="store_true", help="log warnings only, and draw no bars")
    command.set_defaults(run=run, **({} if out is not None else {"quiet": False, "out": None}))
    return command


def add_place_options(command: argparse.ArgumentParser) -> None:
    """Add where counts are in a file."""
    command.add_argument("--layer", help="layer that holds the counts, or raw (default X)")
    command.add_argument(
        "--gene-ids",
        metavar="COLUMN",
        help="var column with the gene ids, or index (default ensembl_id, else where Ensembl ids are, else the index)",
    )


def add_log2_option(command: argparse.ArgumentParser) -> None:
    """Add how expression is stored."""
    command.add_argument("--log2", action="store_true", help="expression is stored as log2(x + 1), which is undone")


def add_count_options(command: argparse.ArgumentParser) -> None:
    """Add where counts are in a file, what they are, and who shares the work."""
    add_place_options(command)
    command.add_argument(
        "--values",
        choices=["counts", "expression", "zscore"],
        default="counts",
        help="what the files hold: raw counts; expression of bulk samples (TPM, RSEM, FPKM, intensities), divided by "
        "medians of bulk; or z-scores or log ratios, ranked as they are (default %(default)s)",
    )
    add_log2_option(command)
    command.add_argument("--workers", type=AtLeast(1), metavar="N", help="processes; with --ray, tasks at a time")
    command.add_argument("--ray", action="store_true", help="share the work over a Ray cluster (RAY_ADDRESS)")


def add_survival_option(command: argparse.ArgumentParser) -> None:
    """Add times until an event."""
    command.add_argument(
        "--survival",
        nargs=2,
        action="append",
        type=COLUMN,
        metavar=("TIME", "EVENT"),
        help="obs columns of a time until an event, and of the event (1 or 0): learned as survival; may be repeated",
    )


def survival_settings(arguments: argparse.Namespace) -> dict[str, str]:
    """Write what `add_survival_option` was given as settings."""
    return {f"survival.{json.dumps(event)}": time for time, event in arguments.survival or []}


def add_samples_options(command: argparse.ArgumentParser) -> None:
    """Add bulk samples, and how they are joined with what is known of their patients."""
    command.add_argument(
        "expression", nargs="+", type=COUNT_FILES, help="table (.tsv, .csv, .gct, .parquet) or .h5ad of expression"
    )
    command.add_argument("--clinical", type=ANY_FILE, metavar="TABLE", help="a row a patient or sample; joined by id")
    command.add_argument("--id", metavar="COLUMN", help="of --clinical, if not the one that matches most samples")
    command.add_argument("--genes-in", choices=["rows", "columns"], help="of tables, if names do not tell")
    command.add_argument("--one-per-patient", action="store_true", help="take the first of several samples")


def given_samples(arguments: argparse.Namespace) -> "AnnData":
    """Read what `add_samples_options` names."""
    from geneformer_repro.tokenizer.samples import read_samples

    how = {name: getattr(arguments, name) for name in ("id", "genes_in", "one_per_patient")}
    return read_samples(arguments.expression, arguments.clinical, **how)


def add_config_options(command: argparse.ArgumentParser) -> None:
    """Add `add_settings_options` and `add_cells_options`."""
    add_settings_options(command)
    add_cells_options(command)


def add_settings_options(command: argparse.ArgumentParser) -> None:
    """Add settings, from a file and one by one."""
    command.add_argument("--config", type=ANY_FILE, metavar="FILE", help="TOML file with the settings")
    command.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="settings, such as training.epochs=3; they win over the file",
    )


def add_cells_options(command: argparse.ArgumentParser) -> None:
    """Add how tokenised cells are opened."""
    command.add_argument(
        "--vocabulary", type=ANY_FILE, help="what tokens mean, where neither the checkpoint nor the cells say it"
    )
    command.add_argument(
        "--max-length", type=AtLeast(1), metavar="N", help="cut longer cells to so many tokens (default: refuse them)"
    )
    add_where_option(command)


def add_where_option(command: Any) -> None:
    """Add which of the tokenised cells are taken."""
    command.add_argument(
        "--where",
        nargs="+",
        action="extend",
        default=[],
        metavar="COLUMN=VALUE",
        help="take only the tokenised cells with this value of an obs column; of several values of one column any, of "
        "several columns all; COLUMN!=VALUE leaves such cells out",
    )


def refuse_where(arguments: argparse.Namespace, what: str) -> None:
    """Raise if cells are to be chosen among what are none."""
    if arguments.where:
        raise InputError(f"--where chooses among tokenised cells, and {what}. Leave it out.")


def add_dtype_option(command: argparse.ArgumentParser) -> None:
    """Add what the network computes in."""
    command.add_argument(
        "--dtype", choices=["float32", "bfloat16"], default="float32", help="to compute in (default %(default)s)"
    )


def add_model_options(command: argparse.ArgumentParser, *, with_target: bool) -> None:
    """Add how a cell is represented, and `add_cells_options`; a classifier's target decides the defaults."""
    layer, pooling = (None, None) if with_target else (-1, "mean")
    of_layer = "-1; with --target 0" if with_target else "%(default)s"
    of_pooling = (
        "cls where cells have one, else mean as embed; with --target the classifier's"
        if with_target
        else "%(default)s; perturb and explain take cls where cells have one"
    )
    command.add_argument(
        "--layer", type=int, default=layer, help=f"0 is the last block, -1 the one before (default {of_layer})"
    )
    command.add_argument(
        "--pooling", choices=["mean", "cls"], default=pooling, help=f"of a cell's tokens (default {of_pooling})"
    )
    add_cells_options(command)


def given_vocabulary(arguments: argparse.Namespace) -> "Vocabulary | None":
    """Open the vocabulary that ``--vocabulary`` names; None without."""
    from geneformer_repro.tokenizer.vocabulary import Vocabulary

    return Vocabulary.load(arguments.vocabulary) if arguments.vocabulary else None


def open_both(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """Open the checkpoint, if a command names any, and the cells."""
    from geneformer_repro.checkpoint import Checkpoint

    path, vocabulary = arguments.checkpoint, given_vocabulary(arguments)
    checkpoint = Checkpoint.from_pretrained(path, vocabulary=vocabulary) if path else None
    return checkpoint, open_cells(arguments, arguments.cells, checkpoint)


def open_cells(arguments: argparse.Namespace, path: str, checkpoint: Any = None, *, where: bool = True) -> Any:
    """Open tokenised cells, of others with the vocabulary given or else the checkpoint's; take those of ``--where``."""
    from geneformer_repro.tokenizer.dataset import TokenizedDataset

    vocabulary = given_vocabulary(arguments)
    if vocabulary is None and checkpoint is not None and not (Path(path) / "spec.json").exists():
        vocabulary = checkpoint.vocabulary
    cells = TokenizedDataset.open(path, vocabulary, max_length=arguments.max_length)
    return _chosen(cells, arguments.where) if where and arguments.where else cells


def _chosen(cells: "TokenizedDataset", where: Sequence[str]) -> "TokenizedDataset":
    """Return the cells that have the values of obs columns that ``--where`` names."""
    import numpy as np

    is_wanted = np.ones(len(cells), dtype=bool)
    for asked in asked_where(where):
        column, sign, values = asked
        labels = cells.labels(column)
        for value in values:
            if not (labels == value).any():
                near = did_you_mean(value, sorted(labels.dropna().unique()))
                raise InputError(f"--where {column}{sign}{value}: no cell has that {column}. {near}")
        is_wanted &= asked.takes(labels.isin(values).to_numpy(dtype=bool))
    if not is_wanted.any():
        raise InputError(f"--where {' '.join(where)}: each is a value of some cells, and no cell has all of them.")
    logger.info("--where: %s of %s.", f"{is_wanted.sum():,}", counted(len(cells), "cell"))
    return cells.select(np.flatnonzero(is_wanted))


def table_outputs(arguments: argparse.Namespace, *, drawn: bool = True, refused: bool = True) -> tuple[Path, ...]:
    """Return the names of a table and, if it is drawn, its picture and its page; refuse them before the work.

    With ``refused=False`` files that are there are let pass, for work that goes on.
    """
    from geneformer_repro.files import refuse_existing

    out = Path(arguments.out)
    if out.suffix != ".tsv":
        raise InputError(f"{out}: statistics are written as .tsv, with a .png and an .html of the same name beside it.")
    outputs = (out, out.with_suffix(".png"), out.with_suffix(".html")) if drawn else (out,)
    for path in outputs if refused else ():
        refuse_existing(path, overwrite=arguments.overwrite)
    return outputs


def write_together(outputs: tuple[Path, ...], table: Any, *beside: Callable[[Path], object], overwrite: bool) -> None:
    """Write a table and what is beside it: whoever is killed leaves all of the files or none; the table comes last."""
    from geneformer_repro.files import new_file, write_table

    with ExitStack() as together:
        out, *others = (together.enter_context(new_file(path, overwrite=overwrite)) for path in outputs)
        write_table(table, out)
        for write, path in zip(beside, others, strict=True):
            write(path)


def goal_of(arguments: argparse.Namespace, column: str | None, option: str) -> "GoalState | None":
    """Return the goal that ``--start``, ``--goal`` and the option with its obs column name; None where none is."""
    from geneformer_repro.in_silico.goals import GoalState

    if column and arguments.start and arguments.goal:
        return GoalState(column, arguments.start, arguments.goal, alternatives=arguments.alternatives)
    if column or arguments.start or arguments.goal or arguments.alternatives:
        raise InputError(f"A goal needs {option}, --start and --goal together.")
    return None
