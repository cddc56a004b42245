"""What pip installs: built from the files under version control, put where nothing else of the project is, and run."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

import geneformer_repro as gf

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> dict[str, Path]:
    """The wheel and the source distribution, by suffix."""
    folder = tmp_path_factory.mktemp("build")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "CITATION.cff"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(
        ROOT / "geneformer_repro", folder / "geneformer_repro", ignore=shutil.ignore_patterns("__pycache__")
    )
    build = "from setuptools import build_meta as b; b.build_wheel('dist'); b.build_sdist('dist')"
    subprocess.run([sys.executable, "-c", build], cwd=folder, check=True, capture_output=True)
    return {path.suffix: path for path in (folder / "dist").iterdir()}


def test_the_wheel_holds_all_modules_the_types_and_the_cells_that_ship(built):
    with zipfile.ZipFile(built[".whl"]) as wheel, tarfile.open(built[".gz"]) as source:
        names, in_source = set(wheel.namelist()), {name.partition("/")[2] for name in source.getnames()}
    files = (
        path for path in (ROOT / "geneformer_repro").rglob("*") if path.is_file() and "__pycache__" not in path.parts
    )
    ours = {path.relative_to(ROOT).as_posix() for path in files}
    assert ours <= names
    assert not [name for name in names if name.startswith(("tests", "benchmarks"))]
    assert ours | {"README.md", "LICENSE", "setup.cfg", "pyproject.toml"} <= in_source


def test_what_is_installed_runs_from_anywhere(built, tmp_path):
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", site, built[".whl"]]
    subprocess.run(install, check=True, capture_output=True)
    script = (
        "import geneformer_repro as gf; print(gf.__file__); "
        "vocabulary = gf.Vocabulary.fit(gf.datasets.pbmc700()[:50], series='V1'); vocabulary.save('v'); "
        "import sys; from geneformer_repro.cli import main; sys.argv = ['geneformer-repro', 'info', 'v']; main()"
    )
    environment = {"PYTHONPATH": str(site), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    )
    assert run.stdout.startswith(str(site))
    assert "genes" in run.stdout
    command = subprocess.run(
        [sys.executable, site / "bin" / "geneformer-repro", "--version"],
        cwd=tmp_path, env=environment, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert gf.__version__ in command.stdout


def test_the_citation_names_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == gf.__version__
    assert citation["references"][0]["doi"] == "10.1038/s41586-023-06139-9"
