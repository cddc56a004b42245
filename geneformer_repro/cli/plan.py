"""What a step will cost: ``plan``."""

import argparse
import shlex
import sys
from typing import Any

from geneformer_repro.cli.inputs import AtLeast, new_command
from geneformer_repro.cli.terminal import Begun, broken, folded, width_of
from geneformer_repro.errors import InputError
from geneformer_repro.sizes import SIZES

TASKS = ("tokenize", "pretrain", "finetune", "embed", "perturb")
TABLES = "tables"


def add_commands(commands: Any) -> None:
    """Add the command of this module."""
    plan = new_command(
        commands,
        "plan",
        _plan,
        "say what a step will cost in time, memory and disk",
        None,
        family="look",
        examples=["pretrain --cells 3e6 --length 1500 --size V1-10M --device 8xa100", "tables"],
        more="And how to launch it.",
    )
    plan.add_argument("task", choices=[*TASKS, TABLES], help="step to plan; tables: those of docs/scale.md")
    plan.add_argument("--cells", type=float, metavar="N", help="number of cells, such as 3e6")
    plan.add_argument("--length", type=float, metavar="TOKENS", help="of a cell, on average (see info on the cells)")
    plan.add_argument(
        "--max-length", type=int, metavar="TOKENS", help="of the longest (default 2048, of the V2 series 4096)"
    )
    plan.add_argument("--size", choices=SIZES, default="V1-10M", help="of the network (default %(default)s)")
    plan.add_argument(
        "--device", default="cpu", metavar="NAME", help="cpu (two cores), a100, h100, h200, or several: 8xa100"
    )
    plan.add_argument("--epochs", type=float, default=3, metavar="N", help="passes of training (default %(default)s)")
    plan.add_argument(
        "--genes", type=AtLeast(1), default=25_424, metavar="N", help="of the vocabulary (default %(default)s)"
    )
    plan.add_argument("--first-order", action="store_true", help="of perturb: estimated from a gradient a cell")


def _plan(arguments: argparse.Namespace) -> None:
    if arguments.task == TABLES:
        from geneformer_repro.plan import scale_tables

        Begun.clear()
        print(scale_tables())  # as Markdown has them
        return
    if arguments.cells is None or arguments.length is None:
        raise InputError("A plan needs --cells and --length: how many cells, and their tokens on average.")
    if arguments.first_order and arguments.task != "perturb":
        raise InputError(f"--first-order is of perturb, not of {arguments.task}.")
    from geneformer_repro.plan import Work, in_words, planned

    longest = arguments.max_length or (4096 if arguments.size.startswith("V2") else 2048)
    work = Work(
        task="first-order" if arguments.first_order else arguments.task,
        cells=int(arguments.cells),
        length=arguments.length,
        max_length=longest,
        size=arguments.size,
        device=arguments.device,
        epochs=arguments.epochs,
        n_tokens=arguments.genes + 2,
    )
    said = in_words(planned(work))
    facts, launch, command = said.rpartition("\nlaunch     ")
    width = width_of(sys.stdout)
    Begun.clear()
    print(said if width is None else f"{broken(facts, width)}{launch}{folded(shlex.split(command), width, at=11)}")
