"""Every public docstring shows how its object is used, in an example that runs, and what to look at next.

Examples find what a user would have by then, made once, and each runs in a copy of that folder.
"""

import doctest
import inspect
import os
import pickle
import re
import shutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData

import geneformer_repro as gf
from geneformer_repro import mapping
from geneformer_repro.heads import CellClassifier, Head
from geneformer_repro.model import MaskedGeneModel, bert_config
from geneformer_repro.targets import Classes

pytestmark = pytest.mark.usefixtures("few_trees", "blank_pictures", "few_resamples", "flat_maps")

DOCUMENTS = [*Path(__file__).parents[1].glob("docs/*.md"), Path(__file__).parents[1] / "README.md"]
HUB_FOLDER = "Geneformer/geneformer"


def public_objects() -> dict[str, object]:
    """Every public name, the methods of classes among them, functions of `datasets`, and what documents import."""
    objects = {name: getattr(gf, name) for name in gf.__all__}
    objects |= {f"datasets.{name}": member for name, member in functions_of(gf.datasets)}
    for document in DOCUMENTS:
        for module, names in re.findall(r"(?m)^from geneformer_repro\.([\w.]+) import (.+)$", document.read_text()):
            members = import_module(f"geneformer_repro.{module}")
            objects |= {f"{module}.{name}": getattr(members, name) for name in names.split(", ")}
    methods = {}
    for kind in filter(inspect.isclass, objects.values()):
        for base in kind.__mro__:
            methods |= {f"{base.__name__}.{name}": member for name, member in functions_of(base)}
    return objects | methods


def functions_of(owner: object) -> Iterator[tuple[str, object]]:
    """The public functions that are defined in a module or class of this package, not imported or inherited."""
    module = owner.__name__ if inspect.ismodule(owner) else owner.__module__
    for name, member in vars(owner).items():
        function = inspect.unwrap(getattr(member, "__func__", member))
        is_own = (
            inspect.isfunction(function) and function.__module__ == module and module.startswith("geneformer_repro")
        )
        if is_own and not name.startswith("_"):
            yield name, function


OBJECTS = public_objects()
SLOW = ("finetune", "finetune_genes", "transfer_study")
HOW_IT_LOOKS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what examples begin with, under the names that the README gives it."""
    folder = tmp_path_factory.mktemp("made")
    adata = gf.datasets.pbmc700()
    adata.obs["donor"] = [f"donor{i % 3 + 1}" for i in range(adata.n_obs)]
    adata.write_h5ad(folder / "cells.h5ad")
    vocabulary = gf.Vocabulary.fit(adata)
    vocabulary.save(folder / "vocabulary")
    columns = ["cell_type", "phase", "donor", "n_counts"]
    cells = gf.tokenize(folder / "cells.h5ad", vocabulary, out=folder / "cells.tok", obs=columns)

    torch.manual_seed(0)
    base = gf.Checkpoint(MaskedGeneModel(bert_config("tiny", vocabulary)).eval(), vocabulary)
    base.save(folder / "runs" / "base")
    target = Classes("cell_type", tuple(sorted(set(cells.labels("cell_type")))))
    classifier = CellClassifier(bert_config("tiny", vocabulary), Head((target,))).eval()
    typed = gf.Checkpoint(classifier, vocabulary)
    typed.save(folder / "runs" / "type")
    methods, why = ["hide", "gradient_input"], folder / "why.parquet"
    gf.explain(typed, cells, state="CD19+ B", methods=methods, donor="donor", max_cells=3, out=why)

    gf.embed(base, cells).write_h5ad(folder / "cells.embedding.h5ad")
    goal = gf.GoalState(obs="cell_type", start="CD14+ Monocyte", goal="CD19+ B")
    gf.perturb(base, cells, gf.Deletion(), goal=goal, donor="donor", max_cells=12, out=folder / "shifts.parquet")
    tfs = ["SPI1", "IRF8", "ID2", "CD74"]
    monocytes = cells.select(np.flatnonzero(cells.labels("cell_type").isin(["CD14+ Monocyte", "Dendritic"])))
    gf.gene_network(base, monocytes, sources=tfs, by="cell_type", donor="donor", out=folder / "runs" / "net")
    write_hub_copy(folder / HUB_FOLDER)
    return folder


def write_hub_copy(folder: Path) -> None:
    """Write dictionaries as the published package does."""
    folder.mkdir(parents=True)
    tokens = {"<pad>": 0, "<mask>": 1, "<cls>": 2, "<eos>": 3, "ENSG00000111245": 4}
    for stem, content in (("token_dictionary", tokens), ("gene_median_dictionary", {"ENSG00000111245": 2.5})):
        (folder / f"{stem}_gc104M.pkl").write_bytes(pickle.dumps(content))


@pytest.fixture(scope="module", autouse=True)
def _scores_are_tested_with_mapping() -> Iterator[None]:
    """Give scores of integration without computing them: compiling what scib-metrics calls takes twenty seconds."""
    names = (*mapping.BIO_CONSERVATION, *mapping.BATCH_MIXING)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mapping, "_scores", lambda *_: dict.fromkeys(names, 0.5).items())
        yield


@pytest.fixture(scope="module", autouse=True)
def _cohorts_are_compared_once() -> Iterator[None]:
    """Compare the cohorts of an example once: those of three examples are the same, and take three seconds each."""
    compare, compared = gf.cross_cohort, {}

    def remembered(samples: AnnData, *asked: object, **options: object) -> pd.DataFrame:
        key = (samples.X.tobytes(), samples.obs.to_json(), str(asked), str(options))
        if key not in compared:
            compared[key] = compare(samples, *asked, **options)
        return compared[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gf, "cross_cohort", remembered)
        yield


@pytest.fixture
def beside(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, in which an example may write."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True, copy_function=os.link)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sections(name: str) -> dict[str, str]:
    """The sections of an object's docstring, by title."""
    parts = re.split(r"(?m)^(\w[\w ]+)\n-{3,}\n", inspect.getdoc(OBJECTS[name]) or "")
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("name", OBJECTS)
def test_a_public_object_has_an_example_and_says_what_to_look_at_next(name):
    assert {"See Also", "Examples"} <= set(sections(name))


@pytest.mark.parametrize("name", OBJECTS)
def test_what_it_says_to_look_at_is_there(name):
    named = re.findall(r"(?m)^(\S+) : ", sections(name)["See Also"])
    assert named
    assert [other for other in named if other not in OBJECTS or other == name] == []


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in OBJECTS])
@pytest.mark.usefixtures("beside")
def test_its_example_runs_as_it_is_shown(name):
    said: list[str] = []
    example = doctest.DocTestParser().get_doctest(inspect.getdoc(OBJECTS[name]), {}, name, None, None)
    result = doctest.DocTestRunner(optionflags=HOW_IT_LOOKS).run(example, out=said.append)
    assert result.attempted > 0
    assert result.failed == 0, "".join(said)
