"""Whether to believe an explanation: ``statistics WHY.parquet``."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geneformer_repro.cli.artefacts import SCREEN, kind_of
from geneformer_repro.cli.commands import AtLeast
from geneformer_repro.cli.explanations import READING, add_family_options, opened, print_strongest
from geneformer_repro.cli.inputs import (
    ANY_FILE,
    MODEL,
    given_vocabulary,
    open_cells,
    table_outputs,
    write_together,
)
from geneformer_repro.cli.terminal import say
from geneformer_repro.errors import InputError

if TYPE_CHECKING:
    from geneformer_repro.in_silico.explanations.evaluation import ExplanationEvaluation

_OF_EXPLANATIONS = ("sets", "drivers", "permuted", "max_cells", "patients", "drugs", "responses", *READING)
_OF_CELLS = ("where", "max_length")
"""What fits a screen as well, beside whose genes ``--cells`` puts what needs no model."""
_TABLES = ("agreement", "removal", "points", "sanity")
"""Tables of an evaluation that are written beside the genes, where they were made."""


def add_explanation_options(statistics: argparse.ArgumentParser) -> None:
    """Add what ``statistics`` takes of explanations."""
    tested = statistics.add_argument_group(
        "an explanation", "with --checkpoint and --cells, genes are taken away and models that forgot are explained"
    )
    tested.add_argument(
        "--sets", type=ANY_FILE, metavar="FILE", help="gene sets (.gmt) that are looked for among the strongest genes"
    )
    tested.add_argument(
        "--drivers", type=ANY_FILE, metavar="FILE", help="known genes that are looked for among the strongest"
    )
    tested.add_argument(
        "--permuted", type=MODEL, metavar="FOLDER", help="the model fine-tuned on permuted labels, to be explained"
    )
    tested.add_argument(
        "--max-cells", type=AtLeast(1), metavar="N", help="cells that the model is asked again about (default 30)"
    )
    add_family_options(statistics.add_argument_group("an explanation of samples, drugs or patients", "as of explain"))


def is_explanation(path: str | Path) -> bool:
    """Whether a file is one that explain wrote."""
    from geneformer_repro.in_silico.block_tables import format_of
    from geneformer_repro.in_silico.explanations.explanation import FORM

    return format_of(path) == FORM.name


def refuse_explanation_options(arguments: argparse.Namespace) -> None:
    """Raise if something is asked of a screen or network that explanations alone can answer."""
    fits_cells = arguments.cells and kind_of(Path(arguments.shifts)) == SCREEN
    refused = _OF_EXPLANATIONS if fits_cells else (*_OF_EXPLANATIONS, *_OF_CELLS)
    if given := [name for name in refused if getattr(arguments, name)]:
        option = given[0].replace("_", "-")
        raise InputError(
            f"--{option} is for explanations, and {arguments.shifts} is none. Give a .parquet written by explain, or "
            "leave it out; gene sets among the genes of any table are asked for with enrich."
        )


def check_explanation(arguments: argparse.Namespace) -> None:
    """Make the table of genes of an explanation and test it, as ``statistics WHY.parquet`` asks."""
    from geneformer_repro.checkpoint import Checkpoint
    from geneformer_repro.in_silico.explanations.evaluation import MAX_CELLS, evaluate_explanation
    from geneformer_repro.in_silico.explanations.explanation import Explanation
    from geneformer_repro.in_silico.explanations.explanation_pages import plot_explanation, write_explanation_report

    if arguments.method is not None or arguments.null is not None:
        raise InputError("--method and --null are for screens; an explanation has one table of genes. Leave them out.")
    out, *beside = outputs = table_outputs(arguments)
    why = Explanation.open(arguments.shifts)
    vocabulary = given_vocabulary(arguments)
    checkpoint: Checkpoint | None = None
    cells: Any = None
    reading: dict[str, Any] = {}
    if arguments.checkpoint and arguments.cells:
        checkpoint, cells, reading = opened(arguments)
    elif arguments.checkpoint:
        checkpoint = Checkpoint.from_pretrained(arguments.checkpoint, vocabulary=vocabulary)
    elif arguments.cells:
        cells = open_cells(arguments, arguments.cells)
    check = evaluate_explanation(
        why,
        checkpoint,
        cells,
        drugs=arguments.drugs,
        responses=arguments.responses,
        patients=arguments.patients,
        reading=reading,
        counts=arguments.counts,
        drivers=arguments.drivers,
        sets=arguments.sets,
        permuted=Checkpoint.from_pretrained(arguments.permuted, vocabulary=vocabulary) if arguments.permuted else None,
        max_cells=MAX_CELLS if arguments.max_cells is None else arguments.max_cells,
    )
    further = {name: table for name, table in _tables(check).items() if len(table)}
    paths = tuple(out.with_suffix(f".{name}.tsv") for name in further)
    draw = (
        lambda path: plot_explanation(why, check=check).savefig(path, dpi=150),
        lambda path: write_explanation_report(why, path, check=check),
    )
    write_together(
        (*outputs, *paths), check.genes, *draw, *map(_writing, further.values()), overwrite=arguments.overwrite
    )
    _show(check, why.rows_are)
    say(f"{out} has all {len(check.genes):,} rows, {beside[0]} the picture, {beside[1]} what was tested")
    if paths:
        say(f"the tests in numbers: {', '.join(map(str, paths))}")


def _tables(check: "ExplanationEvaluation") -> dict[str, Any]:
    """Return the tables beside that of genes, by name."""
    tables = {name: getattr(check, name) for name in _TABLES}
    tables = {name: table.set_index(table.columns[0]) for name, table in tables.items() if len(table)}
    if check.drivers is not None:
        tables["drivers"] = check.drivers.table.reset_index("k")
    if check.sets is not None:
        tables["sets"] = check.sets
    return tables


def _writing(table: Any) -> Any:
    from geneformer_repro.files import write_table

    return lambda path: write_table(table, path)


def _show(check: "ExplanationEvaluation", rows: str) -> None:
    """Print what the tests say, first whether there is anything to explain, and then the strongest genes."""
    say("\n".join(check.sentences))
    print_strongest(check.genes, rows)
