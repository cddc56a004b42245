"""The command line: each command reads its inputs, calls one public function, says what came of it.

What a user can cause ends in one line on stderr and exit status 2; work that was done, but without some damaged source,
ends with exit status 1; anything else is a bug and shows its traceback.
"""

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

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
from geneformer_repro.errors import InputError, did_you_mean


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("geneformer_repro").setLevel(logging.WARNING if arguments.quiet else logging.INFO)
    try:
        status = int(arguments.run(arguments) or 0)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (InputError, FileExistsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "interrupted; the same command goes on where it stopped, if the step is one that resumes", file=sys.stderr
        )
        return 130
    finally:
        if argv is None:  # the program ends: another Ctrl-C must not raise amid what libraries clear up
            signal.signal(signal.SIGINT, signal.SIG_DFL)


class _Parser(argparse.ArgumentParser):
    """A parser that says what an unknown command or option may have meant."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, or end with a message."""
        arguments, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self._of(arguments.command)._end_of_unknown(unknown)
        return arguments

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            raise argparse.ArgumentError(action, f"invalid choice: {value!r}. {did_you_mean(value, action.choices)}")

    def _of(self, command: str) -> "_Parser":
        of_commands: Any = next(action for action in self._actions if action.dest == "command")
        return of_commands.choices[command]

    def _end_of_unknown(self, unknown: Sequence[str]) -> NoReturn:
        options = [option for option in unknown if option.startswith("-")]
        meant = did_you_mean(options[0].partition("=")[0], self._option_string_actions) if options else ""
        self.error(f"unrecognized arguments: {' '.join(unknown)}. {meant}".rstrip(" "))


class _Version(argparse.Action):
    """Print the version and end; it is read from the installed package's metadata when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        """Print it."""
        from importlib.metadata import version

        print(f"{parser.prog} {version('geneformer-repro')}")
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="geneformer-repro",
        description="From raw counts to a perturbation screen: Geneformer-style models of single-cell transcriptomes.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version, and exit")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
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
