"""The command line: each command reads its inputs, calls one public function, says what came of it.

What a user can cause ends in one line on stderr and exit status 2; work that was done, but without some damaged source,
ends with exit status 1; anything else is a bug and shows its traceback.
"""

import argparse
import errno
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from geneformer_repro.cli import (
    cohorts,
    counts,
    doctor,
    embeddings,
    enrichment,
    explanations,
    heads,
    info,
    models,
    networks,
    patients,
    plan,
    responses,
    screens,
)
from geneformer_repro.cli.commands import FAMILIES, Command, Suggesting
from geneformer_repro.cli.terminal import (
    RED,
    AboveBars,
    Begun,
    InWords,
    broken,
    coloured,
    is_looked_at,
    say,
    say_next,
    width_of,
)
from geneformer_repro.errors import InputError


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    command = parser.commands[arguments.command]
    shown = AboveBars(sys.stderr)
    shown.setFormatter(InWords("%(message)s"))
    shown.addFilter(InWords.is_news)
    logging.basicConfig(level=logging.WARNING, handlers=[shown])
    logging.getLogger("geneformer_repro").setLevel(logging.WARNING if arguments.quiet else logging.INFO)
    try:
        command.check(arguments)
        if not arguments.quiet:
            Begun.show()
        status = int(arguments.run(arguments) or 0)
        sys.stdout.flush()
        if status == 0 and not arguments.quiet and is_looked_at():
            with suppress(InputError):  # a hint that cannot be given is no failure of what was done
                say_next(command.then(arguments))
        return status
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (InputError, FileExistsError) as error:
        Begun.clear()
        said = broken(f"error: {error}", width_of(sys.stderr)).removeprefix("error:")
        print(f"{coloured('error:', RED, sys.stderr)}{said}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno != errno.ENOSPC or error.filename is not None:  # of files it is said where they are written
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print("error: what is printed could not be written: the disk is full", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        say(f"interrupted: {_what_is_left(arguments)}", stream=sys.stderr)
        return 130
    finally:
        Begun.clear()
        if argv is None:  # the program ends: another Ctrl-C must not raise amid what libraries clear up
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def _what_is_left(arguments: Any) -> str:
    """Say, of a command that was cut off, what becomes of what it has done."""
    import geneformer_repro.unfinished as unfinished

    if arguments.out is None:
        return "nothing was written."
    work = unfinished.work_folder(Path(arguments.out))
    if work.exists():
        return f"what is done is kept in {work}, and the same command goes on from there."
    return f"{arguments.out} is not written; the same command begins anew."


class _Parser(Suggesting):
    """The parser of all commands: help lists them by family."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, or end with a message."""
        arguments, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.commands[arguments.command].end_of_unknown(unknown)
        return arguments

    @property
    def commands(self) -> Mapping[str, Command]:
        """The commands by name."""
        of_commands: Any = next(action for action in self._actions if action.dest == "command")
        commands: Mapping[str, Command] = of_commands.choices
        return commands

    def format_help(self) -> str:
        """List the commands, one a line."""
        widest = max(map(len, self.commands))
        families = [
            "\n".join(
                [
                    family,
                    *(f"  {name:<{widest}}  {of.says}" for name, of in self.commands.items() if of.family == family),
                ]
            )
            for family in FAMILIES
        ]
        listed = "\n".join(families)
        return f"{self.format_usage()}\n{self.description}\n\n{listed}\n\n{self.epilog}\n"


class _Version(argparse.Action):
    """Print the version and end; it is read from the installed package's metadata when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        """Print it."""
        from importlib.metadata import version

        print(f"{parser.prog} {version('geneformer-repro')}")
        parser.exit()


def _parser() -> _Parser:
    parser = _Parser(
        prog="geneformer-repro",
        description="From raw counts to a perturbation screen: Geneformer-style models of\nsingle-cell transcriptomes.",
        epilog="geneformer-repro COMMAND --help says what a command takes, with an example.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version, and exit")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Command)
    for family in (
        counts,
        models,
        patients,
        cohorts,
        responses,
        embeddings,
        screens,
        networks,
        heads,
        explanations,
        enrichment,
        info,
        plan,
        doctor,
    ):
        family.add_commands(commands)
    return parser
