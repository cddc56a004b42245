"""Examples and code of documents, run in this interpreter: a new one costs ten seconds of imports."""

import contextlib
import io
import logging
import runpy
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from unittest import mock


class Said(NamedTuple):
    """What a run wrote."""

    stdout: str
    stderr: str


def run_script(path: Path, *arguments: object) -> Said:
    """Run a script as ``python path arguments`` would."""
    with mock.patch.object(sys, "argv", [str(path), *map(str, arguments)]):
        return run(lambda: runpy.run_path(str(path), run_name="__main__"))


def run(code: Callable[[], object]) -> Said:
    """Call something as a new interpreter would: its own output, its own log, warnings as users have them."""
    stdout, stderr, root = io.StringIO(), io.StringIO(), logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers[:] = []
    try:
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr), warnings.catch_warnings():
            warnings.resetwarnings()
            code()
    finally:
        root.handlers[:], root.level = handlers, level
    return Said(stdout.getvalue(), stderr.getvalue())
