"""The site says what the package says: messages that are quoted exist, and every public name has its place."""

import ast
import re
import shlex
from functools import cache
from pathlib import Path

import pytest

import geneformer_repro as gf
from geneformer_repro.cli import _parser

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
QUOTED = re.findall(r"```none\n(.*?)\n```", (DOCS / "troubleshooting.md").read_text(encoding="utf-8"), flags=re.DOTALL)


@cache
def messages() -> str:
    """All text in the package's code, a line each; what is filled in is "…"."""
    told = set()
    for path in (ROOT / "geneformer_repro").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                told.add("".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                told.add(node.value)
    return "\n".join(told)


@pytest.mark.parametrize("quoted", QUOTED, ids=lambda quoted: quoted[:50])
def test_a_message_that_is_quoted_is_one_of_the_package(quoted):
    pieces = [piece.strip(" .,;:()") for piece in quoted.split("…")]
    missing = [piece for piece in pieces if piece not in messages()]
    assert not missing
    assert max(map(len, pieces)) >= 9


def commands_of(page: Path) -> list[list[str]]:
    """The words of every command in a page's blocks, what launches it left out."""
    blocks = re.findall(r"(?ms)^ *```(?:bash|sh)\n(.*?)```", page.read_text(encoding="utf-8"))
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    told = (re.search(r"(?:geneformer-repro|-m geneformer_repro) (.+)", line) for line in lines)
    return [shlex.split(command[1], comments=True) for command in told if command]


def test_every_command_of_every_page_is_understood():
    parser = _parser()
    told = [command for page in sorted(DOCS.glob("*.md")) for command in commands_of(page)]
    assert {command[0] for command in told} > {"tokenize", "finetune", "perturb", "network", "explain", "response"}
    for command in told:
        parser.parse_args(command)


def test_every_public_name_is_documented_once():
    shown = [
        name
        for page in (DOCS / "api").glob("*.md")
        for name in re.findall(r"(?m)^\.\. auto(?:class|function):: (\w+)$", page.read_text(encoding="utf-8"))
    ]
    assert sorted(shown) == sorted(set(gf.__all__) - {"datasets"})


def test_every_page_has_its_place():
    listed = set()
    for index in DOCS.rglob("index.md"):
        for block in re.findall(r"```\{toctree\}\n(.*?)```", index.read_text(encoding="utf-8"), flags=re.DOTALL):
            for line in block.splitlines():
                page = re.fullmatch(r"(?:.*<)?([\w/-]+)>?", line)
                listed |= {(index.parent / page[1]).relative_to(DOCS).as_posix()} if page else set()
    pages = {page.relative_to(DOCS).with_suffix("").as_posix() for page in DOCS.rglob("*.md")}
    assert pages - listed == {"index"} | {page for page in pages if page.startswith("_build/")}


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.stem)
def test_what_a_page_links_to_exists(page):
    links = re.findall(r"\]\((?!\w+:|#)([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert not [link for link in links if not (page.parent / link).exists()]
