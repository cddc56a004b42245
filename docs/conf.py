"""The site: prose and notebooks in MyST Markdown, API pages from docstrings.

`make docs` builds it, without the network. Pages link to one another by their paths, so that they read on a code host
too; some files outside this folder are pages of the site, and links to them are led there. Warnings are errors.
"""

import inspect
import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]
os.environ["COLUMNS"] = "76"  # of the commands' help

import generated  # noqa: E402
from docutils import nodes  # noqa: E402
from sphinx.util.typing import stringify_annotation  # noqa: E402

import geneformer_repro  # noqa: E402

project = "geneformer_repro"
author = "the authors of geneformer_repro"
copyright = f"2026, {author}"
release = version = geneformer_repro.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build", "tutorials/runs", "**.ipynb_checkpoints", "**.py"]
templates_path: list[str] = []

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4
nb_execution_mode = "force"
nb_execution_timeout = 900  # seconds a cell: on a busy machine slow is not wrong
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_merge_streams = True

napoleon_google_docstring = False
napoleon_use_rtype = False
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
toc_object_entries_show_parents = "hide"

html_theme = "sphinx_book_theme"
html_title = "geneformer_repro"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_theme_options = {
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "use_download_button": False,
    "navbar_persistent": [],  # one search field is enough
}
default_role = "py:obj"
copybutton_exclude = ".linenos, .gp, .go"

SHOWN = {
    "index": "README.md",
    "results": "benchmarks/RESULTS.md",
    "changelog": "CHANGELOG.md",
    "contributing": "CONTRIBUTING.md",
}
"""Pages, and the files outside this folder that they show or stand for."""
PAGE_OF = {file: page for page, file in SHOWN.items()}


def links_of_the_site(text: str, file: str, page: str) -> str:
    """Text of a file of the repository as text of a page: links lead to pages where there are such, else to files."""

    def led(link: re.Match) -> str:
        path = os.path.relpath(ROOT / Path(file).parent / link[1], ROOT)
        target = f"docs/{PAGE_OF[path]}.md" if path in PAGE_OF else path
        return f"]({os.path.relpath(target, Path('docs', page).parent)}{link[2] or ''})"

    return re.sub(r"\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)", led, text)


def on_source_read(app, page: str, source: list[str]) -> None:
    """Fill in what a page takes from elsewhere."""
    text, file = source[0], f"docs/{page}.md"
    for name in ("commands", "settings"):
        if (mark := f"<!-- {name} -->") in text:
            text = text.replace(mark, getattr(generated, name)())
    if page in SHOWN and page != "index":
        file = SHOWN[page]
        text = (ROOT / file).read_text(encoding="utf-8")
        app.env.note_dependency(str(ROOT / file))
    source[0] = links_of_the_site(text, file, page)


def short_types(text: str) -> str:
    """Types without their modules, which Sphinx marks for that."""
    return re.sub(r"~(\w+\.)+", "", text)


def on_docstring(_app, what: str, _name: str, subject, _options, lines: list[str]) -> None:
    """Put what is returned below its type, which stands in the signature, as napoleon wants it.

    Of the line that describes a field, napoleon would take what is before a colon for the field's type.
    """
    if what in ("attribute", "data", "property"):
        lines[:0] = ["..", ""]  # an empty comment
    if "Returns" not in lines:
        return
    start = lines.index("Returns") + 2
    end = next((at for at in range(start, len(lines) - 1) if set(lines[at + 1]) == {"-"}), len(lines))
    returned = inspect.signature(getattr(subject, "fget", subject)).return_annotation
    told = (f"    {line}".rstrip() for line in lines[start:end])
    lines[start:end] = [short_types(stringify_annotation(returned, "smart")), *told]


def on_doctree(_app, doctree: nodes.document) -> None:
    """Shorten types within unions, which autodoc leaves marked."""
    for text in list(doctree.findall(nodes.Text)):
        if "~" in text and isinstance(text.parent, nodes.emphasis):
            text.parent.replace(text, nodes.Text(short_types(text)))


def setup(app) -> None:
    """Connect to Sphinx."""
    app.connect("source-read", on_source_read)
    app.connect("doctree-read", on_doctree)
    app.connect("autodoc-process-docstring", on_docstring, priority=100)  # before napoleon
