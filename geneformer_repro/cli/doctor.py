"""Whether this machine is fit: ``doctor``."""

import argparse
from typing import Any


def add_commands(commands: Any) -> None:
    """Add the command of this module."""
    doctor = commands.add_parser(
        "doctor", help="say what this machine and its packages can do, and what to do about it"
    )
    doctor.set_defaults(run=_doctor, quiet=False)


def _doctor(_: argparse.Namespace) -> int:
    from geneformer_repro.doctor import findings

    found = findings()
    for finding in found:
        print(f"{finding.name:<13}{finding.says}")
    for finding in found:
        if finding.todo:
            print(f"{'! ' if finding.hinders else '- '}{finding.name}: {finding.todo}")
    return int(any(finding.hinders for finding in found))
