"""Gene networks: ``network``, and their strongest edges for other programs, ``statistics NET -o FILE.graphml``."""

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geneformer_repro.cli.commands import AtLeast
from geneformer_repro.cli.following import after_network
from geneformer_repro.cli.inputs import (
    ANY_FILE,
    CHECKPOINT,
    COLUMN,
    DATASET,
    MODEL,
    TOKENIZED,
    add_cells_options,
    add_dtype_option,
    new_command,
    open_both,
)
from geneformer_repro.cli.looks import look_at_attention, look_at_genes, outline_of
from geneformer_repro.cli.terminal import print_table, say
from geneformer_repro.errors import InputError

if TYPE_CHECKING:
    from geneformer_repro.in_silico.networks.gene_network import GeneNetwork

_OPTIONS = (
    "sources", "targets", "by", "donor", "method", "weight", "scale", "select", "select_on", "min_cells",
    "calibration_cells", "max_cells", "seed", "max_memory", "dtype", "max_tokens", "overwrite",
)  # fmt: skip
_SHOWN = ("state", "source", "target", "weight", "low", "high", "fdr", "n_cells", "n_donors")


def add_commands(commands: Any) -> None:
    """Add the command of this module."""
    network = new_command(
        commands,
        "network",
        _network,
        "read a gene network out of a model",
        "folder to write (and a .png and .html of the same name beside it)",
        family="ask",
        examples=["base cells.tok --by cell_type --donor donor --max-cells 2000 -o net"],
        more="It says which genes the model uses to represent which.",
        then=after_network,
        looks=_look_at_network,
    )
    network.add_argument("checkpoint", type=MODEL, help=CHECKPOINT)
    network.add_argument("cells", type=DATASET, help=TOKENIZED)
    network.add_argument(
        "--sources",
        type=ANY_FILE,
        metavar="FILE",
        help="genes that may influence others, ids or names, one a line (default all)",
    )
    network.add_argument(
        "--targets", type=ANY_FILE, metavar="FILE", help="genes that may be influenced, likewise (default all)"
    )
    network.add_argument(
        "--by", type=COLUMN, metavar="COLUMN", help="obs column of the state; each has a network of its own"
    )
    network.add_argument(
        "--donor", type=COLUMN, metavar="COLUMN", help="obs column of the donor, the replicate of statistics"
    )
    _add_measure_options(network)
    network.add_argument(
        "--min-cells", type=int, default=20, metavar="N", help="of a pair, and of a group (default %(default)s)"
    )
    network.add_argument(
        "--calibration-cells",
        type=AtLeast(1),
        default=200,
        metavar="N",
        help="for means of places (default %(default)s)",
    )
    network.add_argument(
        "--random-weights",
        action="store_true",
        help="of an encoder of the same shape that learned nothing, to be named --beside in statistics",
    )
    network.add_argument("--max-cells", type=AtLeast(1), metavar="N", help="read a random choice of so many cells")
    network.add_argument(
        "--seed", type=int, default=0, help="of these choices, and of random weights (default %(default)s)"
    )
    network.add_argument(
        "--max-memory", default="2GB", metavar="SIZE", help="beside the model; more is refused (default %(default)s)"
    )
    network.add_argument("--max-tokens", type=AtLeast(1), metavar="N", help="of a batch (default 16384, on a CPU 4096)")
    add_dtype_option(network)
    add_cells_options(network)


def _add_measure_options(network: argparse.ArgumentParser) -> None:
    network.add_argument(
        "--method",
        choices=["attention", "deletion", "masked_logit", "mean_qk"],
        default="attention",
        help="deletion: how targets move when a source is deleted, a forward a source and cell; masked_logit: how much "
        "less likely hidden targets are with a source hidden too, some forwards a source and cell; mean_qk: attention "
        "of queries and keys averaged over cells (default %(default)s)",
    )
    network.add_argument(
        "--weight",
        choices=["attention", "value_norm"],
        default="attention",
        help="value_norm: times the length of the vector that attention brings (default %(default)s)",
    )
    network.add_argument(
        "--scale", choices=["log", "lift"], default="log", help="what is averaged (default %(default)s)"
    )
    network.add_argument(
        "--layers", nargs="+", type=int, metavar="LAYER", help="blocks, counted from 0 next to the input (default all)"
    )
    network.add_argument("--heads", nargs="+", metavar="LAYER:HEAD", help="single heads instead (default all)")
    network.add_argument(
        "--select",
        metavar="FILE",
        help="known edges that choose the best quarter of these heads, by half of their sources; statistics --known "
        "then scores the others",
    )
    network.add_argument(
        "--select-on", choices=["first", "second"], default="first", help="the half that chooses (default %(default)s)"
    )


def _look_at_network(arguments: argparse.Namespace) -> None:
    from geneformer_repro.files import refuse_existing

    heads = [_head(text) for text in arguments.heads or ()]
    for path in _beside(Path(arguments.out)):
        refuse_existing(path, overwrite=arguments.overwrite)
    if outline := outline_of(arguments):
        look_at_attention(outline, arguments.layers or (), heads)
        look_at_genes(outline, [(arguments.sources, "sources"), (arguments.targets, "targets")])


def _beside(out: Path) -> tuple[Path, Path]:
    """Return where picture and page of a network are."""
    return out.with_name(f"{out.name}.png"), out.with_name(f"{out.name}.html")


def _network(arguments: argparse.Namespace) -> None:
    import geneformer_repro.processes as processes
    from geneformer_repro.in_silico.networks.network import gene_network
    from geneformer_repro.report import new_axes

    out, heads = Path(arguments.out), [_head(text) for text in arguments.heads or ()]
    picture, page = _beside(out)
    new_axes(1, 1)  # says before the work if pictures cannot be drawn
    checkpoint, cells = open_both(arguments)
    if arguments.random_weights:
        checkpoint = checkpoint.with_random_weights(seed=arguments.seed)
    network = gene_network(
        checkpoint,
        cells,
        out=out,
        layers=arguments.layers or "all",
        heads=heads or "all",
        **{name: getattr(arguments, name) for name in _OPTIONS},
    )
    if processes.is_first():
        _draw(network, picture, page, overwrite=arguments.overwrite)


def add_graph_options(statistics: argparse.ArgumentParser) -> None:
    """Add what ``statistics`` takes of a network's strongest edges."""
    graph = statistics.add_argument_group("a network for Cytoscape and others: -o FILE.graphml, --state")
    graph.add_argument(
        "--top", type=AtLeast(1), default=10, metavar="N", help="sources of each target (default %(default)s)"
    )
    graph.add_argument("--max-fdr", type=float, metavar="RATE", help="only edges below it over donors, such as 0.05")


def write_graph(arguments: argparse.Namespace) -> None:
    """Write the strongest edges of a state, as ``statistics NET -o FILE.graphml`` asks."""
    from geneformer_repro.in_silico.networks.gene_network import GeneNetwork

    out = Path(arguments.out)
    if out.suffix != ".graphml":
        raise InputError(
            f"{arguments.shifts} is a gene network: ask which edges differ between two states with --between, how many "
            "known edges it finds with --known (or --perturbed), or for its strongest edges as a graph with -o "
            "FILE.graphml."
        )
    network = GeneNetwork.open(arguments.shifts)
    state = network.one_state(arguments.state)
    options = {name: getattr(arguments, name) for name in ("top", "max_fdr", "overwrite")}
    graph = network.to_graphml(out, state, **options)
    say(f"{out}: {graph.number_of_nodes():,} genes, {graph.number_of_edges():,} edges of {state}")


def _head(text: str) -> tuple[int, int]:
    """Read a head, as in 3:1."""
    if not re.fullmatch(r"\d+:\d+", text):
        raise InputError(f"--heads takes LAYER:HEAD, such as 0:3, found {text!r}.")
    layer, head = map(int, text.split(":"))
    return layer, head


def _draw(network: "GeneNetwork", picture: Path, page: Path, *, overwrite: bool) -> None:
    """Write picture and page of a network; print its strongest edges."""
    from geneformer_repro.files import new_file
    from geneformer_repro.in_silico.networks.network_files import described_network
    from geneformer_repro.in_silico.networks.network_pictures import plot_network, without_untold, write_network_report

    say(f"{network.path}: {described_network(network.path)[0]}")
    edges = network.edges
    if edges.empty:
        say("No pair has cells enough and a weight above 0, so there is no picture. Lower --min-cells.")
    else:
        names = network.genes["gene_name"]
        head = edges.groupby("state", sort=False).head(3).head(12)
        head = head.assign(source=head["source"].map(names), target=head["target"].map(names))[list(_SHOWN)]
        print_table(without_untold(head))
        with new_file(picture, overwrite=overwrite) as aside:
            plot_network(network, str(edges["state"].iloc[0])).savefig(aside, dpi=150)
        say(f"{picture} is the picture of {edges['state'].iloc[0]}")
    write_network_report(network, page, overwrite=overwrite)
    say(f"{page} says what was added up and taken out, {network.path / 'edges.parquet'} has {len(edges):,} edges")
