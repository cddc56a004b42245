"""Tutorials name what there is. The build of the site runs them; here nothing is run."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "geneformer_repro"
TUTORIALS = sorted(path for path in (ROOT / "docs" / "tutorials").glob("*.md") if path.stem != "index")
pytestmark = pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)


def code_of(text: str) -> str:
    cells = re.findall(r"```(?:\{code-cell\}|python)\n(?::.*\n)*\n?(.*?)```", text, flags=re.DOTALL)
    return "\n".join(cells)


def accepted(name: str) -> set[str]:
    """Return the parameters of a public function, or fields of a class and its bases, from the source alone."""
    stub = ast.parse((PACKAGE / "__init__.pyi").read_text())
    (module,) = [line.module for line in stub.body if isinstance(line, ast.ImportFrom) and line.names[0].asname == name]
    source = ROOT.joinpath(*module.split("."))
    tree = ast.parse((source.with_suffix(".py") if not source.is_dir() else source / "__init__.py").read_text())
    (made,) = [one for one in tree.body if getattr(one, "name", None) == name and not _is_overload(one)]
    if isinstance(made, ast.FunctionDef):
        return {one.arg for one in (*made.args.args, *made.args.kwonlyargs)}
    return {one.target.id for one in made.body if isinstance(one, ast.AnnAssign)}


def _is_overload(made: ast.stmt) -> bool:
    return any(isinstance(one, ast.Name) and one.id == "overload" for one in getattr(made, "decorator_list", ()))


def test_its_cells_are_python_and_name_public_names_and_parameters_that_exist(path):
    tree = ast.parse(code_of(path.read_text()))
    public = {line.names[0].asname for line in ast.parse((PACKAGE / "__init__.pyi").read_text()).body[1:-1]}
    imported = {one.module for one in ast.walk(tree) if isinstance(one, ast.ImportFrom)}
    assert not [module for module in imported if module and module.startswith("geneformer_repro")]
    used = [one for one in ast.walk(tree) if isinstance(one, ast.Attribute) and ast.unparse(one.value) == "gf"]
    assert {one.attr for one in used} <= public
    for call in (one for one in ast.walk(tree) if isinstance(one, ast.Call)):
        if ast.unparse(call.func).partition(".")[::2] in {("gf", one.attr) for one in used}:
            unknown = {one.arg for one in call.keywords} - accepted(call.func.attr)
            assert not unknown or call.func.attr.endswith("Config"), f"{call.func.attr} has no {unknown}"


def test_its_commands_are_understood_and_its_links_and_files_exist(path):
    from geneformer_repro.cli import _parser

    text = path.read_text()
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    lines = [line.partition(" #")[0] for block in blocks for line in block.splitlines()]
    commands = [line.split("geneformer-repro ", 1)[-1].split("-m geneformer_repro ")[-1] for line in lines]
    for command in (line for line in commands if not line.startswith(("accelerate", "sbatch"))):
        _parser().parse_args([word.strip('"') for word in re.findall(r'"[^"]*"|\S+', command)])
    for target in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (path.parent / target).exists(), target
    for file in re.findall(r"configs/\w+\.\w+", text):
        assert (ROOT / file).exists(), file
