"""Whether this machine is fit: ``doctor``."""

import argparse
from typing import Any

from geneformer_repro.cli.inputs import new_command
from geneformer_repro.cli.terminal import say


def add_commands(commands: Any) -> None:
    """Add the command of this module."""
    new_command(
        commands,
        "doctor",
        _doctor,
        "say what this machine and its packages can do",
        None,
        family="look",
        examples=[""],
        more="And what to do about what they cannot.",
    )


def _doctor(_: argparse.Namespace) -> int:
    from geneformer_repro.doctor import findings

    found = findings()
    for finding in found:
        say(f"{finding.name:<13}{finding.says}")
    for finding in found:
        if finding.todo:
            say(f"{'! ' if finding.hinders else '- '}{finding.name}: {finding.todo}")
    return int(any(finding.hinders for finding in found))
