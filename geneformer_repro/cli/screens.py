"""Perturbation screens: ``perturb`` and ``statistics``."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import geneformer_repro.cli.artefacts as artefacts
from geneformer_repro.cli.checks import (
    add_explanation_options,
    check_explanation,
    is_explanation,
    refuse_explanation_options,
)
from geneformer_repro.cli.commands import AtLeast, Reads
from geneformer_repro.cli.evaluation import add_known_edges_options, score_known_edges
from geneformer_repro.cli.following import after_perturb
from geneformer_repro.cli.heads import compare_states
from geneformer_repro.cli.inputs import (
    ANY_FILE,
    CHECKPOINT,
    COLUMN,
    DATASET,
    EXPLAINED,
    MODEL,
    TOKENIZED,
    add_dtype_option,
    add_model_options,
    add_where_option,
    goal_of,
    new_command,
    open_both,
    open_cells,
    table_outputs,
    write_together,
)
from geneformer_repro.cli.looks import look_at_layer, look_at_target, outline_of
from geneformer_repro.cli.networks import add_graph_options, write_graph
from geneformer_repro.cli.terminal import print_table, say
from geneformer_repro.errors import InputError, counted

if TYPE_CHECKING:
    from geneformer_repro.in_silico.goals import Method

_SHIFTS = "Parquet file written by perturb"
_STATISTICS = ("matched", "goal_state", "vs_all", "vs_null", "mixture", "aggregate", "gene_shifts", "pairs")
_KINDS = {
    "delete": "Deletion",
    "overexpress": "Overexpression",
    "activate": "Activation",
    "inhibit": "Inhibition",
    "shift": "RankShift",
}
_SHOWN = (
    "gene_name", "gene_name_a", "gene_name_b", "affected_name", "cell", "donor", "state", "dose", "effect",
    "sampling_low", "sampling_high", "in_top", "effect_vs_matched", "sham_percentile", "difference",
    "interaction", "impact", "value", "mean", "sd", "p_value", "fdr", "best_class_fdr", "n_cells", "n_donors",
    "warning",
)  # fmt: skip
"""Columns of statistics that fit into a terminal."""
_TABLES_ALONE = ("aggregate", "gene_shifts")
"""Methods whose tables have no picture and no page."""


def add_commands(commands: Any) -> None:
    """Add the commands of this module."""
    _add_perturb(commands)
    _add_statistics(commands)


def _add_perturb(commands: Any) -> None:
    perturb = new_command(
        commands,
        "perturb",
        _perturb,
        "change genes of cells and measure how the model moves",
        "Parquet file to write",
        family="ask",
        examples=[
            "classifier cells.tok --target cell_type --first-order --donor donor -o screen.parquet",
            "base cells.tok --state cell_type --start Monocyte --goal Dendritic --genes STAT1 IRF1 -o two.parquet",
        ],
        then=after_perturb,
        looks=_look_at_screen,
    )
    perturb.add_argument("checkpoint", type=MODEL, help=CHECKPOINT)
    perturb.add_argument("cells", type=DATASET, help=TOKENIZED)
    _perturbation_options(perturb)
    _question_options(perturb)
    perturb.add_argument(
        "--donor", type=COLUMN, metavar="COLUMN", help="obs column of the donor, the replicate of statistics"
    )
    perturb.add_argument(
        "--obs", type=COLUMN, nargs="+", default=[], metavar="COLUMN", help="other obs columns to carry along"
    )
    perturb.add_argument("--max-cells", type=AtLeast(1), metavar="N", help="perturb a random choice of so many cells")
    perturb.add_argument("--seed", type=int, default=0, help="of that choice (default %(default)s)")
    add_dtype_option(perturb)
    perturb.add_argument(
        "--max-tokens",
        type=AtLeast(1),
        metavar="N",
        help="of a batch (default 16384, on a CPU 4096); fewer need less memory",
    )
    add_model_options(perturb, with_target=True)


def _perturbation_options(perturb: argparse.ArgumentParser) -> None:
    perturb.add_argument(
        "--kind",
        choices=_KINDS,
        default="delete",
        help="overexpress: move to the front, and add where absent; activate, inhibit: up or down by quartiles of the "
        "cell's ranking; shift: to a place of it (default %(default)s)",
    )
    perturb.add_argument("--quartiles", type=int, metavar="N", help="of activate and inhibit: 1, 2 or 3 (default 1)")
    perturb.add_argument(
        "--to", nargs="+", type=float, metavar="PLACE", help="of shift: 0 front … 1 bottom, or several"
    )
    perturb.add_argument(
        "--genes", nargs="+", metavar="GENE", help="ids or names, or @FILE with one a line; default each gene in turn"
    )
    perturb.add_argument(
        "--combine",
        choices=["together", "singly", "pairs"],
        help="how several genes are changed (default together, of each gene singly); pairs: also each alone",
    )
    perturb.add_argument("--anchor", metavar="GENE", help="gene that each of the others is paired with")


def _question_options(perturb: argparse.ArgumentParser) -> None:
    perturb.add_argument("--state", type=COLUMN, metavar="COLUMN", help="obs column that names the states")
    perturb.add_argument("--start", help="state of the cells that are perturbed")
    perturb.add_argument("--goal", help="state towards which a movement counts")
    perturb.add_argument("--alternatives", nargs="+", default=[], metavar="STATE", help="other states to measure")
    perturb.add_argument(
        "--shams",
        type=int,
        metavar="N",
        help="goals drawn at random, which tell what depends on the goal (default 19 of exact screens; 0: none)",
    )
    perturb.add_argument(
        "--target", metavar="COLUMN", help="measure what a classifier says of this obs column that it learned"
    )
    perturb.add_argument(
        "--affected",
        nargs="*",
        metavar="GENE",
        help="measure other genes as well: these (or @FILE), or each if none is named",
    )
    perturb.add_argument(
        "--first-order", action="store_true", help="estimate all genes from one gradient a cell; for a goal or target"
    )
    perturb.add_argument(
        "--refine", type=int, default=0, metavar="K", help="compute each cell's K strongest estimates exactly"
    )
    perturb.add_argument(
        "--sampled",
        action="store_true",
        help="estimate all genes, and measure some pairs of cell and gene: with --passes or --minutes",
    )
    perturb.add_argument(
        "--passes", type=AtLeast(1), metavar="N", help="of --sampled: forward passes, at least two a gene"
    )
    perturb.add_argument("--minutes", type=float, metavar="M", help="of --sampled: instead, for how long to make some")
    perturb.add_argument(
        "--top", type=int, metavar="K", help="of --sampled: genes of each direction to be found (default 50)"
    )
    perturb.add_argument(
        "--min-cells", type=int, metavar="N", help="of --sampled: genes in fewer cells get no pass (default 10)"
    )


def _add_statistics(commands: Any) -> None:
    statistics = new_command(
        commands,
        "statistics",
        _statistics,
        "test which genes move cells, or explain them",
        ".tsv file to write (and a .png and .html beside it)",
        family="look",
        examples=[
            "screen.parquet --cells cells.tok -o genes.tsv",
            "net --between control stimulated -o rewired.tsv",
            "why.parquet --checkpoint classifier --cells cells.tok -o genes.tsv",
        ],
        looks=_look_at_statistics,
        more="Writes a table, a picture and a page.",
    )
    statistics.add_argument(
        "shifts",
        type=Reads(artefacts.SCREEN, artefacts.EXPLANATION, artefacts.NETWORK),
        help=f"{_SHIFTS} or explain, or folder written by network",
    )
    statistics.add_argument(
        "--method",
        choices=_STATISTICS,
        metavar="METHOD",
        help="of a screen: matched (default), against genes of the same place and detection rate, donors as "
        f"replicates; or as published {', '.join(_STATISTICS[1:])}",
    )
    statistics.add_argument(
        "--null", type=ANY_FILE, metavar="FILE", help="for vs_null: the same screen of control cells"
    )
    statistics.add_argument(
        "--cells", type=EXPLAINED, metavar="FOLDER", help="the tokenised cells: also compare with what needs no model"
    )
    statistics.add_argument("--vocabulary", type=ANY_FILE, help="with --cells of others, what their tokens mean")
    statistics.add_argument(
        "--max-length", type=AtLeast(1), metavar="N", help="with --cells, as perturb or explain was given it"
    )
    add_where_option(statistics)
    statistics.add_argument(
        "--counts",
        metavar="FILE",
        help="with --cells, their .h5ad, if not where tokenize found it; of a network, counts of its cells",
    )
    statistics.add_argument(
        "--between", nargs=2, metavar="STATE", help="of a network: edges that differ between two states, over donors"
    )
    add_known_edges_options(statistics)
    add_explanation_options(statistics)
    add_graph_options(statistics)


def _perturb(arguments: argparse.Namespace) -> None:
    import geneformer_repro.processes as processes
    from geneformer_repro.in_silico.sampled_effects import sample_in_words
    from geneformer_repro.in_silico.screen import perturb

    checkpoint, cells = open_both(arguments)
    options = (
        "target", "layer", "pooling", "refine", "donor", "obs", "max_cells", "seed", "passes", "minutes", "top",
        "min_cells", "shams", "dtype", "max_tokens",
    )  # fmt: skip
    shifts = perturb(
        checkpoint,
        cells,
        _perturbation(arguments),
        goal=goal_of(arguments, arguments.state, "--state"),
        affected=None if arguments.affected is None else _listed(arguments.affected) or "each",
        method=_method(arguments),
        out=arguments.out,
        overwrite=arguments.overwrite,
        **{name: getattr(arguments, name) for name in options},
    )
    if processes.is_first():
        say(f"{arguments.out}: {size_of_screen(arguments.out)}")
        for line in filter(None, (_agreement(shifts.metadata), *sample_in_words(shifts.metadata))):
            say(line)


def _look_at_screen(arguments: argparse.Namespace) -> None:
    from geneformer_repro.in_silico.goals import UNKNOWN, Budget, left_out, require_fitting

    if arguments.first_order and arguments.sampled:
        raise InputError("--first-order measures nothing, --sampled some pairs of cell and gene: give one of the two.")
    perturbation, goal = _perturbation(arguments), goal_of(arguments, arguments.state, "--state")
    require_fitting(
        _method(arguments),
        budget=Budget(arguments.passes, arguments.minutes, arguments.top, arguments.min_cells),
        affected=arguments.affected is not None,
        towards=bool(goal or arguments.target),
        refine=arguments.refine,
    )
    affected = _listed(arguments.affected or ())
    if outline := outline_of(arguments):
        look_at_layer(arguments, outline)
        look_at_target(arguments, outline)
        named = perturbation.named
        unknown = {gene for gene, i in zip(named, outline.vocabulary.find(named), strict=True) if i < 0}
        if unknown:
            left_out(unknown, perturbation, UNKNOWN)
        outline.vocabulary.tokens_of(affected)


def _method(arguments: argparse.Namespace) -> "Method":
    return "first_order" if arguments.first_order else "sampled" if arguments.sampled else "exact"


def _perturbation(arguments: argparse.Namespace) -> Any:
    from dataclasses import fields

    from geneformer_repro.in_silico import perturbation

    kind = getattr(perturbation, _KINDS[arguments.kind])
    settings = {name: value for name in ("to", "quartiles") if (value := getattr(arguments, name)) is not None}
    options = {field.name for field in fields(kind)}
    if wrong := sorted(set(settings) - options):
        raise InputError(
            f"--{wrong[0]} does not fit --kind {arguments.kind}: --quartiles is for activate and inhibit, --to for "
            "shift."
        )
    if "to" in options and not settings:
        raise InputError("--kind shift moves genes to a place: give --to with numbers from 0 (front) to 1 (bottom).")
    genes = "each" if arguments.genes is None else _listed(arguments.genes)
    return kind(genes, combine=arguments.combine, anchor=arguments.anchor, **settings)


def _listed(genes: Sequence[str]) -> list[str]:
    """Put the lines of each @FILE in its place."""
    listed = []
    for gene in genes:
        listed += _lines(Path(gene[1:])) if gene.startswith("@") else [gene]
    return listed


def _lines(path: Path) -> list[str]:
    from geneformer_repro.files import read_text

    try:
        lines = [line.strip() for line in read_text(path).splitlines()]
    except InputError as error:
        raise InputError(f"{error} Expected a text file with one gene a line.") from error
    if not any(lines):
        raise InputError(f"{path}: names no gene. Expected one a line.")
    return [line for line in lines if line]


def size_of_screen(path: str | Path) -> str:
    """Say how large a screen is, without reading its values."""
    from geneformer_repro.in_silico.shift_table import ShiftTable

    shifts = ShiftTable.open(path)
    donors, n_cells = shifts.n_distinct("donor"), shifts.metadata.get("n_cells")
    n_cells = shifts.n_distinct("cell") if n_cells is None else n_cells
    return (
        f"{len(shifts):,} values ({shifts.measure}) of {counted(shifts.n_distinct('perturbed'), 'perturbation')} in "
        f"{counted(n_cells, 'cell')}" + (f" of {counted(donors, 'donor')}" if donors else "")
    )


def _agreement(metadata: Mapping[str, Any]) -> str:
    """Say how well first-order estimates agree with exact values, where both are known; else nothing."""
    from geneformer_repro.in_silico.shift_table import agreement_by_state

    ranges = ", ".join(f"{state} {of_cells}" for state, of_cells in agreement_by_state(metadata).items())
    if not ranges:
        return ""
    n_cells = len(metadata["first_order"]["checked_cells"])
    return f"estimates against exact values in {n_cells} cells, Spearman, median and range: {ranges}"


def _look_at_statistics(arguments: argparse.Namespace) -> None:
    if arguments.between and (arguments.known or arguments.perturbed):
        raise InputError(
            "--between compares two states, --known and --perturbed score a network on edges: give one of the two."
        )
    of_edges = arguments.between or arguments.known or arguments.perturbed
    kind = artefacts.kind_of(Path(arguments.shifts))
    if of_edges and kind in (artefacts.SCREEN, artefacts.EXPLANATION):
        raise InputError(f"--between, --known and --perturbed are of gene networks, and {arguments.shifts} is {kind}.")
    if kind == artefacts.SCREEN:
        refuse_explanation_options(arguments)
    if of_edges or kind in (artefacts.SCREEN, artefacts.EXPLANATION):
        table_outputs(arguments, drawn=arguments.method not in _TABLES_ALONE)


def _statistics(arguments: argparse.Namespace) -> None:
    is_scored = arguments.known or arguments.perturbed
    if not (arguments.between or is_scored) and is_explanation(arguments.shifts):
        check_explanation(arguments)
        return
    refuse_explanation_options(arguments)
    if arguments.between or is_scored:
        (compare_states if arguments.between else score_known_edges)(arguments)
        return
    if (Path(arguments.shifts) / "network.json").is_file():
        write_graph(arguments)
        return
    from geneformer_repro.in_silico.pictures import plot_screen, write_screen_report
    from geneformer_repro.in_silico.shift_table import ShiftTable
    from geneformer_repro.in_silico.statistics import shift_statistics

    drawn = arguments.method not in _TABLES_ALONE
    out, *beside = outputs = table_outputs(arguments, drawn=drawn)
    shifts = ShiftTable.open(arguments.shifts)
    table = shift_statistics(
        shifts,
        method=arguments.method,
        null=ShiftTable.open(arguments.null) if arguments.null else None,
        cells=open_cells(arguments, arguments.cells) if arguments.cells else None,
        counts=arguments.counts,
    )
    kind: Literal["ranked"] | None = "ranked" if "interaction" in table and "state" in table else None
    draw = (
        lambda path: plot_screen(shifts, table, kind=kind).savefig(path, dpi=150),
        lambda path: write_screen_report(shifts, table, path),
    )
    named = table if table.index.name else table.set_index(table.columns[0])
    write_together(outputs, named, *(draw if drawn else ()), overwrite=arguments.overwrite)
    _show_head(table)
    where = ", {} the picture, {} what was done and what it shows".format(*beside) if drawn else ""
    say(f"{out} has all {len(table):,} rows{where}")


def _show_head(table: Any) -> None:
    """Print the first rows without a warning, without columns that are empty, and what a reader must know of them."""
    from geneformer_repro.in_silico.figures import of_one_class, without_warning
    from geneformer_repro.in_silico.shams import dependence_in_words

    shown, class_shown = of_one_class(table)
    free = without_warning(shown)
    head = shown[free].head(10)
    empty = {"n_donors": 0}
    columns = [
        name for name in _SHOWN if name in head and not (head[name].isna() | (head[name] == empty.get(name, ""))).all()
    ]
    print_table(head[columns])
    if class_shown:
        say(f"class shown: {class_shown}")
    if not free.all():
        say(f"rows with a warning, such as that of few cells, are left out here: {(~free).sum():,} of {len(shown):,}")
    of_donors = "n_donors" in table and table["n_donors"].max() > 1
    if "p_value" in table and not of_donors and "effect_vs_matched" not in table:  # of which the statistics warn
        say("p-values treat cells as independent, not donors, which makes them too small: read them as a ranking")
    if said := dependence_in_words(table.attrs):
        say(said)
    if "explained_by_baselines" in table.attrs:
        say(f"what needs no model explains R² = {table.attrs['explained_by_baselines']:.2f} of the effects")
