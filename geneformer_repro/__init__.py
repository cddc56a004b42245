"""Self-supervised learning on single-cell transcriptomes, after Geneformer.

Names are imported when they are first touched, so ``import geneformer_repro`` brings neither torch nor AnnData. Which
they are, and from where, stands once, in the stub beside this file, which type checkers read as well.
"""

import ast
import random
from importlib import import_module
from pathlib import Path
from typing import Any

_MODULE_OF = {
    alias.name: str(node.module)
    for node in ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")).body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    state = random.getstate()
    try:
        import_module(f"{__name__}.progress")  # before libraries import tqdm: it decides whether a notebook is warned
        module = import_module(_MODULE_OF[name])
        value = import_module(f"{__name__}.{name}") if module.__name__ == __name__ else getattr(module, name)
    finally:
        random.setstate(state)  # scikit-learn loads a library that draws from it
    globals()[name] = value
    return value


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version  # which would be most of importing the package

    try:
        return version("geneformer-repro")
    except PackageNotFoundError:
        return "0+source"


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
