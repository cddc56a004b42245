"""Gene sets and known genes among the strongest of a table: ``enrich``."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from geneformer_repro.cli.commands import AtLeast
from geneformer_repro.cli.inputs import ANY_FILE, new_command, table_outputs, write_together
from geneformer_repro.cli.terminal import print_table, say
from geneformer_repro.errors import InputError

_SHOWN = (
    "method", "state", "drug", "dose", "direction", "fdr", "fold", "nes", "overlap", "size", "expected", "p_value",
    "plain_fdr", "donor_p_value",
)  # fmt: skip


def add_commands(commands: Any) -> None:
    """Add the commands of this module."""
    enrich = new_command(
        commands,
        "enrich",
        _enrich,
        "ask which gene sets the strongest genes are of",
        ".tsv file to write (and a .png and .html beside it; with --beside a .beside.tsv, with --drivers .drivers.tsv)",
        family="look",
        examples=["genes.tsv --sets hallmark.gmt -o sets.tsv"],
        more="Against genes of like detection and place.",
        looks=_look_at_table,
    )
    enrich.add_argument(
        "table",
        type=ANY_FILE,
        help="a table with a row a gene (.tsv, .csv, .parquet), written by explain, perturb or anything else, or a "
        "folder written by network",
    )
    enrich.add_argument(
        "--sets", type=ANY_FILE, required=True, metavar="FILE", help="gene sets: .gmt, or a table of sets and genes"
    )
    _choice_options(enrich)
    _null_options(enrich)
    beside = enrich.add_argument_group("a second model, and known genes")
    beside.add_argument("--beside", type=ANY_FILE, metavar="TABLE", help="the same of another model, side by side")
    beside.add_argument("--names", nargs=2, metavar="NAME", help="what the two are called (default their files)")
    beside.add_argument(
        "--seeds", type=ANY_FILE, nargs=2, metavar="TABLE", help="of one model twice: how alike sets are by chance"
    )
    beside.add_argument(
        "--drivers", type=ANY_FILE, metavar="FILE", help="known genes, one a line or a table with a column of them"
    )
    beside.add_argument(
        "--random-weights", type=ANY_FILE, metavar="TABLE", help="of a network with random weights, beside --drivers"
    )
    beside.add_argument("--drivers-name", metavar="TEXT", help="of the list, where the file does not say")
    beside.add_argument("--drivers-version", metavar="TEXT", help="the same of its version")
    beside.add_argument("--drivers-licence", metavar="TEXT", help="the same of its licence")


def _choice_options(enrich: argparse.ArgumentParser) -> None:
    enrich.add_argument(
        "--method",
        choices=["overlap", "prerank"],
        default="overlap",
        help="sets of the chosen genes, or where sets stand in the ranking of all (default %(default)s)",
    )
    enrich.add_argument(
        "--score", metavar="COLUMN", help="that ranks genes (default beyond, effect_vs_matched, effect …)"
    )
    enrich.add_argument("--top", type=AtLeast(1), metavar="N", help="genes chosen above 0, and below (default 150)")
    enrich.add_argument("--max-fdr", type=float, metavar="Q", help="choose genes whose fdr is below this, instead")
    enrich.add_argument("--selected", metavar="COLUMN", help="choose genes of which this column is true, instead")


def _null_options(enrich: argparse.ArgumentParser) -> None:
    enrich.add_argument(
        "--strata",
        nargs="+",
        metavar="COLUMN",
        help="one or two columns that genes are matched on, or none (default detection_rate and mean_place, which may "
        "be called n_cells and mean_rank)",
    )
    enrich.add_argument("--min-cells", type=int, metavar="N", help="cells a gene was scored in (default 10)")
    enrich.add_argument("--min-size", type=int, default=10, metavar="N", help="of a set (default %(default)s)")
    enrich.add_argument("--max-size", type=AtLeast(1), default=500, metavar="N", help="of a set (default %(default)s)")
    enrich.add_argument(
        "--permutations", type=AtLeast(1), default=1_000, metavar="N", help="of --method prerank (default %(default)s)"
    )
    enrich.add_argument("--seed", type=int, default=0, help="of what is drawn (default %(default)s)")


def _enrich(arguments: argparse.Namespace) -> None:
    from geneformer_repro.files import write_table
    from geneformer_repro.in_silico.explanations.drivers import driver_genes
    from geneformer_repro.in_silico.explanations.enrichment_comparison import compare_enrichment
    from geneformer_repro.in_silico.explanations.enrichment_pages import plot_enrichment, write_enrichment_report

    outputs, kinds = _outputs(arguments)
    table = _enriched(arguments, arguments.table)
    comparison, drivers = None, None
    beside: list[Callable[[Path], object]] = [
        lambda path: plot_enrichment(table).savefig(path, dpi=150),
        lambda path: write_enrichment_report(table, path, beside=comparison, drivers=drivers),
    ]
    if arguments.beside:
        seeds = [_enriched(arguments, path) for path in arguments.seeds or []]
        comparison = compare_enrichment(
            table, _enriched(arguments, arguments.beside), names=_names(arguments), seeds=seeds or None
        )
        beside.append(lambda path: write_table(comparison, path))
    if arguments.drivers:
        drivers = driver_genes(
            arguments.table,
            arguments.drivers,
            random_weights=arguments.random_weights,
            **{name: getattr(arguments, f"drivers_{name}") for name in ("name", "version", "licence")},
            **_of_genes(arguments),
            seed=arguments.seed,
        )
        beside.append(lambda path: write_table(drivers.table.reset_index().set_index("score"), path))
    write_together(outputs, table, *beside, overwrite=arguments.overwrite)
    _show(table)
    for said in (comparison.attrs if comparison is not None else {}, drivers.facts if drivers is not None else {}):
        if "sentence" in said:
            say(said["sentence"])
    where = ", ".join(f"{path} {kind}" for path, kind in zip(outputs[1:], kinds, strict=True))
    say(f"{outputs[0]} has all {len(table):,} rows, {where}")


def _look_at_table(arguments: argparse.Namespace) -> None:
    _outputs(arguments)
    for option, of in (("names", "beside"), ("seeds", "beside"), ("random_weights", "drivers")):
        if getattr(arguments, option) and not getattr(arguments, of):
            raise InputError(f"--{option.replace('_', '-')} goes with --{of}: give that too.")


def _outputs(arguments: argparse.Namespace) -> tuple[tuple[Path, ...], list[str]]:
    from geneformer_repro.files import refuse_existing

    outputs = table_outputs(arguments)
    kinds = ["the picture", "what was done and what it shows"]
    for option, kind in (("beside", "both models"), ("drivers", "known genes among the first")):
        if getattr(arguments, option):
            path = outputs[0].with_suffix(f".{option}.tsv")
            refuse_existing(path, overwrite=arguments.overwrite)
            outputs, kinds = (*outputs, path), [*kinds, kind]
    return outputs, kinds


def _of_genes(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what decides which genes are in the background, and which are alike."""
    given = {} if arguments.strata is None else {"strata": None if arguments.strata == ["none"] else arguments.strata}
    return {"score": arguments.score, "min_cells": arguments.min_cells, **given}


def _enriched(arguments: argparse.Namespace, path: str) -> Any:
    from geneformer_repro.in_silico.explanations.enrichment import gene_set_enrichment

    options = ("method", "top", "max_fdr", "selected", "min_size", "max_size", "seed")
    return gene_set_enrichment(
        path,
        arguments.sets,
        n_permutations=arguments.permutations,
        **{name: getattr(arguments, name) for name in options},
        **_of_genes(arguments),
    )


def _names(arguments: argparse.Namespace) -> list[str]:
    """Return what the two tables are called: as they are named, or their files as far as these differ."""
    if arguments.names:
        return list(arguments.names)
    paths = [Path(path) for path in (arguments.table, arguments.beside)]
    stems = [path.stem for path in paths]
    return stems if len(set(stems)) == len(stems) else [str(path) for path in paths]


def _show(table: Any) -> None:
    from geneformer_repro.in_silico.figures import of_one_class

    shown, class_shown = of_one_class(table)
    print_table(shown[[name for name in _SHOWN if name in shown]].head(10), number="{:.3g}", index=True)
    if class_shown:
        say(f"class shown: {class_shown}")
    say(table.attrs["sentence"])
