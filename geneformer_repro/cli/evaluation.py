"""A network on known edges and perturbations: ``statistics NET --known``, ``--perturbed``."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import geneformer_repro.cli.artefacts as artefacts
from geneformer_repro.cli.commands import Reads
from geneformer_repro.cli.inputs import ANY_FILE, MODEL, NAMED_FILE, given_vocabulary, table_outputs, write_together
from geneformer_repro.cli.terminal import print_table, say
from geneformer_repro.errors import InputError


def add_known_edges_options(statistics: argparse.ArgumentParser) -> None:
    """Add what ``statistics`` takes of known edges."""
    known = statistics.add_argument_group("a network on known edges")
    known.add_argument(
        "--known",
        type=NAMED_FILE,
        nargs="+",
        default=[],
        metavar="[NAME=]FILE",
        help="tables of known edges, with columns such as source (or tf) and target; with --counts",
    )
    known.add_argument("--confidence", nargs="+", metavar="LEVEL", help="levels of these tables to use")
    known.add_argument(
        "--perturbed", type=ANY_FILE, metavar="FILE", help="table of what changed when genes were perturbed"
    )
    known.add_argument("--state", metavar="STATE", help="of the network, where it has several")
    known.add_argument(
        "--beside",
        type=Reads(artefacts.NETWORK, named=True),
        nargs="+",
        default=[],
        metavar="NAME=FOLDER",
        help="other networks of the same cells",
    )
    known.add_argument(
        "--checkpoint",
        type=MODEL,
        metavar="FOLDER",
        help="the model: for the cosine of its token embeddings; of an explanation, to test it",
    )
    known.add_argument(
        "--boosted-targets",
        type=int,
        default=500,
        metavar="N",
        help="targets that boosted trees are fitted for, 0.15 s each; 0: none (default %(default)s)",
    )
    known.add_argument(
        "--rewirings", type=int, default=1000, metavar="N", help="of the reference, as a null (default %(default)s)"
    )
    known.add_argument(
        "--ties", choices=["expected", "beeline"], default="expected", help="of early precision (default %(default)s)"
    )
    known.add_argument("--seed", type=int, default=0, help="of all that is drawn (default %(default)s)")


def score_known_edges(arguments: argparse.Namespace) -> None:
    """Score a network on known edges, as ``statistics NET --known FILE --counts FILE`` asks."""
    from geneformer_repro.checkpoint import Checkpoint
    from geneformer_repro.in_silico.networks.evaluation_pictures import (
        SHOWN,
        plot_network_evaluation,
        write_network_evaluation,
    )
    from geneformer_repro.in_silico.networks.gene_network import GeneNetwork
    from geneformer_repro.in_silico.networks.network_evaluation import evaluate_network
    from geneformer_repro.tokenizer.dataset import TokenizedDataset

    out, *_ = outputs = table_outputs(arguments)
    if arguments.counts is None:
        raise InputError(
            "A network is compared with co-expression in the same cells: give their raw counts with --counts."
        )
    beside = named(arguments.beside, "--beside")
    table = evaluate_network(
        GeneNetwork.open(arguments.shifts),
        named(arguments.known, "--known"),
        counts=arguments.counts,
        state=arguments.state,
        cells=TokenizedDataset.open(arguments.cells, given_vocabulary(arguments)) if arguments.cells else None,
        beside={name: GeneNetwork.open(folder) for name, folder in beside.items()},
        checkpoint=Checkpoint.from_pretrained(arguments.checkpoint) if arguments.checkpoint else None,
        confidence=arguments.confidence,
        perturbed=arguments.perturbed,
        boosted_targets=arguments.boosted_targets,
        n_rewirings=arguments.rewirings,
        ties=arguments.ties,
        seed=arguments.seed,
    )
    write_together(
        outputs,
        table.reset_index().set_index("reference"),
        lambda path: plot_network_evaluation(table).savefig(path, dpi=150),
        lambda path: write_network_evaluation(table, path),
        overwrite=arguments.overwrite,
    )
    _show(table, SHOWN)
    first = next(iter(table.attrs["sentences"]))
    say(f"{out} has all {len(table):,} rows, {outputs[1]} is the picture of {first}, {outputs[2]} has all pictures")


def named(given: Sequence[str], option: str) -> dict[str, str]:
    """Return files by name: ``NAME=FILE``, or a file by its own name without ending.

    Raises
    ------
    InputError
        Two have one name.
    """
    found: dict[str, str] = {}
    for text in given:
        name, told, path = text.partition("=")
        path = path if told else text
        name = name if told else Path(text).stem
        if name in found:
            raise InputError(f"{option}: two are called {name!r}. Name them: NAME=FILE.")
        found[name] = path
    return found


def _show(table: Any, columns: Sequence[str]) -> None:
    """Print the leading columns of each reference's open universe, and its sentence."""
    from geneformer_repro.in_silico.networks.network_evaluation import of_methods

    shown = [name for name in columns if name in table][:11]
    for reference, sentence in table.attrs["sentences"].items():
        say(f"{reference}, open universe:")
        print_table(of_methods(table, reference, "open")[shown], number="{:.3f}", index=True)
        say(f"{reference}: {sentence}")
