"""Heads of attention, and networks of two states: ``heads``, and ``statistics NET --between``."""

import argparse
from typing import Any

from geneformer_repro.cli.commands import AtLeast
from geneformer_repro.cli.following import after_heads
from geneformer_repro.cli.inputs import (
    ANY_FILE,
    CHECKPOINT,
    COLUMN,
    DATASET,
    MODEL,
    TOKENIZED,
    add_cells_options,
    add_dtype_option,
    given_vocabulary,
    new_command,
    open_both,
    table_outputs,
    write_together,
)
from geneformer_repro.cli.looks import look_at_genes, outline_of
from geneformer_repro.cli.terminal import print_table, say


def add_commands(commands: Any) -> None:
    """Add the commands of this module."""
    heads = new_command(
        commands,
        "heads",
        _heads,
        "test which heads of attention attend to some genes",
        ".tsv file to write (and a .png and .html beside it)",
        family="ask",
        examples=["base cells.tok --genes factors.txt -o heads.tsv"],
        more="More than to others like them.",
        then=after_heads,
        looks=_look_at_heads,
    )
    heads.add_argument("checkpoint", type=MODEL, help=CHECKPOINT)
    heads.add_argument("cells", type=DATASET, help=TOKENIZED)
    heads.add_argument(
        "--genes", type=ANY_FILE, required=True, metavar="FILE", help="genes asked about, ids or names, one a line"
    )
    heads.add_argument(
        "--donor", type=COLUMN, metavar="COLUMN", help="obs column of the donor, over which means are taken"
    )
    heads.add_argument(
        "--method",
        choices=["matched", "published"],
        default="matched",
        help="against genes of like place and detection, or rank sums over pooled tokens (default %(default)s)",
    )
    heads.add_argument(
        "--no-random-weights",
        dest="random_weights",
        action="store_false",
        help="leave out the network with random weights, which takes half of the time",
    )
    heads.add_argument("--min-cells", type=int, default=20, metavar="N", help="that have a gene (default %(default)s)")
    heads.add_argument(
        "--max-cells",
        type=int,
        default=2_000,
        metavar="N",
        help="read a random choice of so many (default %(default)s)",
    )
    heads.add_argument(
        "--permutations", type=AtLeast(1), default=1_000, metavar="N", help="of the genes' labels (default %(default)s)"
    )
    heads.add_argument("--seed", type=int, default=0, help="of cells, permutations and weights (default %(default)s)")
    heads.add_argument("--max-tokens", type=AtLeast(1), metavar="N", help="of a batch (default 16384, on a CPU 4096)")
    add_dtype_option(heads)
    add_cells_options(heads)


def _look_at_heads(arguments: argparse.Namespace) -> None:
    from geneformer_repro.files import refuse_existing

    for path in table_outputs(arguments, refused=False)[1:]:
        refuse_existing(path, overwrite=arguments.overwrite)
    if outline := outline_of(arguments):
        look_at_genes(outline, [(arguments.genes, "genes")])


def _heads(arguments: argparse.Namespace) -> None:
    import geneformer_repro.processes as processes
    from geneformer_repro.files import new_file
    from geneformer_repro.in_silico.networks.heads import head_statistics
    from geneformer_repro.in_silico.networks.network_figures import heads_figure
    from geneformer_repro.in_silico.networks.network_pages import head_sentence, write_head_report
    from geneformer_repro.report import new_axes

    out, picture, page = table_outputs(arguments, refused=False)
    new_axes(1, 1)  # says before the work if pictures cannot be drawn
    checkpoint, cells = open_both(arguments)
    options = ("donor", "method", "random_weights", "min_cells", "max_cells", "seed", "dtype", "max_tokens")
    table = head_statistics(
        checkpoint,
        cells,
        arguments.genes,
        n_permutations=arguments.permutations,
        out=out,
        overwrite=arguments.overwrite,
        **{name: getattr(arguments, name) for name in options},
    )
    if not processes.is_first():
        return
    facts = {**checkpoint.whereabouts, "cells": arguments.cells, "genes": arguments.genes}
    with new_file(picture, overwrite=arguments.overwrite) as aside:
        heads_figure(table).savefig(aside, dpi=150)
    write_head_report(table, page, facts=facts, overwrite=arguments.overwrite)
    say(head_sentence(table))
    say(f"{out} has all {len(table):,} heads, {picture} the picture, {page} what it shows")


def compare_states(arguments: argparse.Namespace) -> None:
    """Compare two states of a network, as ``statistics NET --between A B`` asks."""
    from geneformer_repro.in_silico.networks.gene_network import GeneNetwork
    from geneformer_repro.in_silico.networks.network_figures import difference_figure
    from geneformer_repro.in_silico.networks.network_pages import write_difference_report
    from geneformer_repro.in_silico.networks.network_statistics import compare_networks
    from geneformer_repro.tokenizer.dataset import TokenizedDataset

    out, *_ = outputs = table_outputs(arguments)
    a, b = arguments.between
    cells = TokenizedDataset.open(arguments.cells, given_vocabulary(arguments)) if arguments.cells else None
    found = compare_networks(GeneNetwork.open(arguments.shifts), a, b, counts=arguments.counts, cells=cells)
    write_together(
        outputs,
        found.edges.set_index("source"),
        lambda path: difference_figure(found.edges, (a, b)).savefig(path, dpi=150),
        lambda path: write_difference_report(found, path),
        overwrite=arguments.overwrite,
    )
    shown = ["source_name", "target_name", "difference", "p_value", "fdr", "n_donors", "moved"]
    head = found.edges[shown].head(10).dropna(axis=1, how="all")
    print_table(head)
    say(found.sentence())
    say(f"{out} has {len(found.edges):,} edges, {outputs[1]} the picture, {outputs[2]} what it shows")
