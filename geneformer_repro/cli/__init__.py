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

from geneformer_repro.cli import (
    cohorts,
    counts,
    embeddings,
    enrichment,
    explanations,
    heads,
    info,
    models,
    networks,
    patients,
    responses,
    screens,
)
from geneformer_repro.errors import InputError


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="geneformer-repro",
        description="From raw counts to a perturbation screen: Geneformer-style models of single-cell transcriptomes.",
    )
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
    ):
        family.add_commands(commands)
    return parser
