"""The layers of docs/design.md: imports go down, the workflows never meet, and the lower layers do without torch.

Read from the source, also inside functions and under TYPE_CHECKING; and once at run time, because a library
below may import torch where we do not.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import geneformer_repro

ROOT = Path(geneformer_repro.__file__).parent
PACKAGE = ROOT.name
LAYERS = {
    "errors": 0,
    "arguments": 0,
    "files": 0,
    "unfinished": 0,
    "progress": 0,
    "sharing": 0,
    "config": 0,
    "report": 0,
    "report_tables": 0,
    "report_points": 0,
    "tokenizer": 1,
    "datasets": 1,
    "into_adata": 1,
    "mapping": 1,
    "harmonise": 1,
    "agreement": 1,
    "identities": 1,
    "drugs": 1,
    "responses": 1,
    "propagation": 1,
    "mean_effects": 1,
    "sizes": 1,
    "network_settings": 1,
    "outline": 1,
    "plan": 1,
    "checkpoint_files": 1,
    "model_card": 1,
    "hub": 1,
    "processes": 2,
    "attention": 2,
    "block_attention": 2,
    "compiled": 2,
    "cross_entropy": 2,
    "encoder": 2,
    "left_out": 2,
    "prepared": 2,
    "prepared_derivatives": 2,
    "hazards": 2,
    "targets": 2,
    "heads": 2,
    "model": 2,
    "bags": 2,
    "expression": 2,
    "drug_inputs": 2,
    "pair_layers": 2,
    "pair_networks": 2,
    "checkpoint": 2,
    "batching": 2,
    "doctor": 2,
    "adaptive_integrals": 2,
    "reading": 3,
    "sample_reading": 3,
    "patient_reading": 3,
    "pair_reading": 3,
    "pair_derivatives": 3,
    "embedding": 3,
    "embedding_store": 3,
    "work": 3,
    "training": 3,
    "pretraining": 4,
    "finetuning": 4,
    "in_silico": 4,
    "cli": 5,
    "__init__": 5,
    "__main__": 5,
}
"""Each module or package directly under the root, with its layer; ``__init__`` is the root itself."""
WORKFLOWS = 4
"""The layer whose members never import each other."""
WITHOUT_TORCH = (0, 1)
TORCH = ("torch", "transformers")


def package_sources():
    """Source of every module, by dotted name below the root; the root itself is ``__init__``."""
    return {module_name(path): path.read_text(encoding="utf-8") for path in sorted(ROOT.rglob("*.py"))}


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts if len(parts) == 1 else parts[:-1] if parts[-1] == "__init__" else parts)


def member(module):
    """The part of the layer table a module belongs to."""
    return module.partition(".")[0]


def imported_names(source, module, is_package):
    """Every name that a source imports, absolute, one tuple of candidates each: the most specific first."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name,) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = absolute(node, module, is_package)
            yield from ((f"{base}.{alias.name}", base) for alias in node.names)
        elif isinstance(node, ast.Call) and called(node) in ("import_module", "__import__"):
            yield from ((str(name.value),) for name in node.args[:1] if isinstance(name, ast.Constant))


def called(node):
    return getattr(node.func, "attr", getattr(node.func, "id", None))


def absolute(node, module, is_package):
    """The module that ``from … import`` names, dots resolved."""
    if not node.level:
        return node.module
    here = [PACKAGE] if module == "__init__" else [PACKAGE, *module.split(".")]
    up = node.level - (is_package or module == "__init__")
    return ".".join([*here[: len(here) - up], *([node.module] if node.module else [])])


def dependencies(sources):
    """What each module imports: modules of the package (``__init__`` for the root), and other top-level packages."""
    packages = {name.rpartition(".")[0] for name in sources if "." in name}
    inside, outside = {}, {}
    for module, source in sources.items():
        inside[module], outside[module] = set(), set()
        for candidates in imported_names(source, module, module in packages):
            if candidates[0].partition(".")[0] != PACKAGE:
                outside[module].add(candidates[0].partition(".")[0])
                continue
            below = [name.partition(".")[2] for name in candidates]
            inside[module].add(next((name for name in below if name in sources), below[-1] or "__init__"))
    return inside, outside


def violations(sources):
    """Sentences about what breaks the table; none where it holds."""
    inside, outside = dependencies(sources)
    found = [f"{module} is in no layer" for module in sources if member(module) not in LAYERS]
    for module, target in ((m, t) for m in sources for t in sorted(inside[m]) if member(m) in LAYERS):
        layer, below = LAYERS[member(module)], LAYERS.get(member(target))
        if target == "__init__":
            found.append(f"{module} imports from the package root")
        elif below is None:
            found.append(f"{module} imports {target}, which is in no layer")
        elif below > layer:
            found.append(f"{module} (L{layer}) imports {target} (L{below}) above it")
        elif below == layer == WORKFLOWS and member(module) != member(target):
            found.append(f"{module} imports its neighbour {target}")
    for module in sources:
        for name in sorted(outside[module] & set(TORCH)):
            if LAYERS.get(member(module)) in WITHOUT_TORCH:
                found.append(f"{module} (L{LAYERS[member(module)]}) imports {name}")
    return found + [f"cycle: {' → '.join(cycle)}" for cycle in cycles(inside)]


def cycles(graph):
    """Import cycles, one for each module where the search comes back to itself."""
    found, finished = [], set()

    def visit(module, path):
        if module in path:
            found.append([*path[path.index(module) :], module])
        elif module not in finished:
            for target in sorted(graph.get(module, ())):
                visit(target, [*path, module])
            finished.add(module)

    for module in sorted(graph):
        visit(module, [])
    return found


# The package


def test_the_layers_hold():
    assert violations(package_sources()) == []


def test_every_line_of_the_table_is_there():
    assert {member(module) for module in package_sources()} == set(LAYERS)


def test_every_package_is_one_that_python_imports():
    folders = {path.parent for path in ROOT.rglob("*.py")}
    assert [folder.name for folder in folders if not (folder / "__init__.py").exists()] == []


def test_the_reader_finds_imports_that_are_known_to_be_there():
    inside, outside = dependencies(package_sources())
    assert {"model", "tokenizer.dataset", "in_silico.perturbation"} <= inside["in_silico.screen"]
    assert "tokenizer.fitting" in inside["tokenizer.vocabulary"]  # inside a function
    assert "finetuning.transfer" in inside["finetuning.networks"]  # a module from its package
    assert {"torch", "transformers"} <= outside["model"]
    assert "anndata" in outside["tokenizer.corpus"]  # under TYPE_CHECKING


def test_lower_layers_load_no_torch():
    modules = [f"{PACKAGE}.{module}" for module in package_sources() if LAYERS[member(module)] in WITHOUT_TORCH]
    assert f"{PACKAGE}.tokenizer.dataset" in modules
    assert loaded_by(*modules) == []


def loaded_by(*modules):
    script = f"import sys, {', '.join(modules)}\nprint(*({set(TORCH)!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


# The checker


def with_modules(changed):
    """A small package in good order, with some modules changed; ``gf`` stands for the package's name."""
    clean = {
        "__init__": "from gf.cli import main",
        "errors": "import difflib",
        "files": "from gf.errors import InputError",
        "tokenizer": "",
        "tokenizer.vocabulary": "from gf.files import new_file\nimport numpy",
        "model": "import torch\nfrom gf.tokenizer.vocabulary import Vocabulary",
        "training": "from gf.model import Checkpoint",
        "finetuning": "",
        "finetuning.splits": "import numpy",
        "finetuning.finetune": "from gf.finetuning import splits\nfrom ..training import train",
        "in_silico": "",
        "in_silico.screen": "from gf.model import Checkpoint",
        "cli": "def run():\n    from gf.finetuning.finetune import finetune",
    }
    return {module: source.replace("gf", PACKAGE) for module, source in (clean | changed).items()}


def test_a_package_in_good_order_has_no_violations():
    assert violations(with_modules({})) == []


UPWARD = {
    "from": "from gf.training import train",
    "import": "import gf.training",
    "import as": "import gf.training as t",
    "in a function": "def f():\n    from gf.training import train",
    "for types": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from gf.training import train",
    "by a dot": "from .training import train",
    "by two names": "from . import training",
    "by import_module": "import importlib\nimportlib.import_module('gf.training')",
    "by __import__": "__import__('gf.training')",
}


@pytest.mark.parametrize("source", UPWARD.values(), ids=UPWARD)
def test_the_checker_finds_an_upward_import_however_it_is_written(source):
    assert without_cycles({"model": source}) == ["model (L2) imports training (L3) above it"]


def without_cycles(changed):
    return [said for said in violations(with_modules(changed)) if not said.startswith("cycle")]


@pytest.mark.parametrize(
    ("module", "source", "said"),
    [
        ("tokenizer.vocabulary", "from ..model import Head", "tokenizer.vocabulary (L1) imports model (L2) above it"),
        ("tokenizer", "from ..model import Head", "tokenizer (L1) imports model (L2) above it"),
        ("files", "from gf import cli", "files (L0) imports cli (L5) above it"),
        ("in_silico", "from gf.finetuning.splits import x", "in_silico imports its neighbour finetuning.splits"),
        ("in_silico.screen", "from gf import finetuning", "in_silico.screen imports its neighbour finetuning"),
        ("in_silico", "from ..finetuning import splits", "in_silico imports its neighbour finetuning.splits"),
        ("model", "from gf import Checkpoint", "model imports from the package root"),
        ("model", "import gf", "model imports from the package root"),
        ("cli", "from . import __version__", "cli imports from the package root"),
        ("files", "import torch", "files (L0) imports torch"),
        ("files", "from torch.nn import Module", "files (L0) imports torch"),
        ("tokenizer.vocabulary", "def f():\n    import torch", "tokenizer.vocabulary (L1) imports torch"),
        ("tokenizer", "import transformers.utils", "tokenizer (L1) imports transformers"),
        ("helpers", "", "helpers is in no layer"),
        ("cli", "from gf.utils import thing", "cli imports utils, which is in no layer"),
    ],
)  # fmt: skip
def test_the_checker_finds_a_violation(module, source, said):
    assert without_cycles({module: source}) == [said]


@pytest.mark.parametrize(
    ("changed", "cycle"),
    [
        pytest.param({"errors": "import gf.files"}, {"errors", "files"}, id="of two"),
        pytest.param(
            {"errors": "def f():\n    from .config import y", "config": "from gf.files import x"},
            {"errors", "config", "files"},
            id="of three",
        ),
        pytest.param(
            {"finetuning.splits": "from .finetune import x"},
            {"finetuning.splits", "finetuning.finetune"},
            id="in a package",
        ),
        pytest.param({"model": "import gf.model"}, {"model"}, id="of itself"),
    ],
)
def test_the_checker_finds_a_cycle(changed, cycle):
    (found,) = violations(with_modules(changed))
    assert set(found.removeprefix("cycle: ").split(" → ")) == cycle


def test_two_ways_to_the_same_module_are_no_cycle():
    assert cycles({"a": {"b", "c"}, "b": {"d"}, "c": {"d"}, "d": set()}) == []
