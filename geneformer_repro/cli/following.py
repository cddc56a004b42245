"""The command that may come after another, with the paths that this one used, ready to be run.

None where it would need something that the command was not told, such as gene sets. What it would write is not there
yet, and stands beside what this command has written, since the folder of an input may not be one's own.
"""

import argparse
from itertools import chain, count
from pathlib import Path

from geneformer_repro.cli.artefacts import (
    CELLS,
    CHECKPOINT,
    EXPLANATION,
    NETWORK,
    SCREEN,
    VOCABULARY,
    kind_of,
    may_be_on_the_hub,
    obs_columns,
)
from geneformer_repro.cli.inputs import open_cells
from geneformer_repro.files import read_json

_FEW_CELLS = "100"
_OF_COUNTS = {"layer": None, "gene_ids": None, "values": "counts"}
"""Options that say how counts are read, with their defaults."""
_SAMPLED = 256
_FEWEST_TO_MATCH = 10
"""Genes with which one is compared, by default."""
_TINY = ("size=tiny", "training.batch_size=4", "training.learning_rate=2e-3")
"""A recipe for few cells: the published batch and rate, 12 and 1e-3, leave a tiny network of them guessing."""
_SMALL, _SHORT = 20_000, 500_000
"""Cells below which a tiny network is large enough to begin with; below which 10,000 steps of warm-up are too many."""


def after_vocabulary(given: argparse.Namespace) -> list[str] | None:
    """Tokenise the same counts."""
    first = given.inputs[0]
    if kind_of(Path(first)) in (VOCABULARY, CHECKPOINT) or (may_be_on_the_hub(first) and not Path(first).exists()):
        return None
    changed = [name for name, default in _OF_COUNTS.items() if getattr(given, name) != default]
    options = [part for name in changed for part in (_option(name), getattr(given, name))]
    log2 = ["--log2"] * given.log2
    return ["tokenize", *given.inputs, "--vocabulary", given.out, *options, *log2, "-o", beside(given.out, "cells.tok")]


def after_tokenize(given: argparse.Namespace) -> list[str]:
    """Ask the checkpoint whose vocabulary it is about the cells; else pretrain on them."""
    if (Path(given.vocabulary) / "head.json").exists():
        return ["predict", given.vocabulary, given.out, "-o", renamed(given.out, "-predicted.tsv")]
    if kind_of(Path(given.vocabulary)) == CHECKPOINT:
        return ["embed", given.vocabulary, given.out, "-o", renamed(given.out, "-vectors.h5ad")]
    n_cells = read_json(Path(given.out) / "spec.json")["n_cells"]
    settings = [*_TINY] * (n_cells < _SMALL) + ["training.warmup_steps=0.1"] * (n_cells < _SHORT)
    return ["pretrain", given.out, *(["--set", *settings] if settings else []), "-o", beside(given.out, "base")]


def after_pretrain(given: argparse.Namespace) -> list[str]:
    """Embed the cells."""
    return ["embed", given.out, given.cells, *_reading(given), "-o", renamed(given.out, "-vectors.h5ad")]


def after_finetune(given: argparse.Namespace) -> list[str] | None:
    """Ask which genes move the classifier; of classes of genes, ask it about the cells."""
    if given.genes:
        return ["predict", given.out, given.cells, *_reading(given), "-o", renamed(given.out, "-predicted.tsv")]
    if not given.target:
        return None
    donor = ["--donor", given.group] if given.group else []
    question = ["--target", given.target[0], *donor, "--first-order", "--max-cells", _FEW_CELLS]
    return ["perturb", given.out, given.cells, *_reading(given), *question, "-o", renamed(given.out, "-screen.parquet")]


def after_predict(given: argparse.Namespace) -> list[str] | None:
    """Explain what was predicted of tokenised cells."""
    head = Path(given.checkpoint) / "head.json"
    is_of_cells = head.exists() and read_json(head).get("level") == "cell"
    if kind_of(Path(given.data)) != CELLS or not is_of_cells or _has_seen(given):
        return None
    few = ["--max-cells", _FEW_CELLS]
    return ["explain", given.checkpoint, given.data, *_reading(given), *few, "-o", renamed(given.out, "-why.parquet")]


def _has_seen(given: argparse.Namespace) -> bool:
    """Whether the model was trained on some of the cells, which `explain` would refuse, by a sample of them."""
    seen = Path(given.checkpoint) / "seen_cells.parquet"
    if not seen.exists() or not (Path(given.data) / "spec.json").exists():
        return False
    import numpy as np
    import pyarrow.parquet as pq

    cells = open_cells(given, given.data)
    few = cells.select(np.unique(np.linspace(0, len(cells) - 1, _SAMPLED).astype(int)))
    return bool(np.isin(few.digests(), pq.read_table(seen)["digest"].to_numpy()).any())


def after_finetune_patients(given: argparse.Namespace) -> list[str]:
    """Ask about patients, new ones in the place of these."""
    model = ["--checkpoint", given.checkpoint] if given.checkpoint else []
    return ["predict-patients", given.out, given.cells, *model, "-o", renamed(given.out, "-predicted")]


def after_response(given: argparse.Namespace) -> list[str] | None:
    """Predict every pair of sample and drug."""
    if not given.drugs:
        return None
    beside_samples = ["--expression", given.expression] if given.expression else []
    drugs = ["--drugs", given.drugs]
    return ["predict-response", given.out, given.samples, *beside_samples, *drugs, "-o", renamed(given.out, ".tsv")]


def after_embed(given: argparse.Namespace) -> list[str] | None:
    """Screen some cells with the same model."""
    if given.states or given.level != "cell":
        return None
    few = ["--max-cells", _FEW_CELLS]
    return [
        "perturb",
        given.checkpoint,
        given.cells,
        *_reading(given),
        *few,
        "-o",
        renamed(given.out, "-screen.parquet"),
    ]


def after_perturb(given: argparse.Namespace) -> list[str]:
    """Test the genes of the screen, if they are enough to be matched with others; else average each."""
    if _n_perturbed(Path(given.out)) <= _FEWEST_TO_MATCH:
        return ["statistics", given.out, "--method", "aggregate", "-o", renamed(given.out, ".tsv")]
    has_goal = getattr(given, "goal", None) and not given.target
    beside_it = ["--cells", given.cells, *_reading(given)] if has_goal else []
    return ["statistics", given.out, *beside_it, "-o", renamed(given.out, ".tsv")]


def _n_perturbed(screen: Path) -> float:
    from geneformer_repro.in_silico.shift_table import ShiftTable

    return ShiftTable.open(screen).n_distinct("perturbed")


def after_explain(given: argparse.Namespace) -> list[str]:
    """Test whether to believe the explanation, where cells are what it explains."""
    model = ["--checkpoint", given.checkpoint, "--cells", given.cells, *_reading(given)]
    is_of_cells = obs_columns(Path(given.cells)) is not None and not (given.drugs or given.patients)
    return ["statistics", given.out, *(model if is_of_cells else []), "-o", renamed(given.out, "-genes.tsv")]


def after_network(given: argparse.Namespace) -> list[str]:
    """Compare two states over donors; else write a graph of the first."""
    network = read_json(Path(given.out) / "network.json")
    states = list(network["states"])
    if len(states) > 1 and any(group.get("donor") for group in network["groups"]):
        return ["statistics", given.out, "--between", *states[:2], "-o", renamed(given.out, "-states.tsv")]
    of_state = ["--state", states[0]] if len(states) > 1 else []
    return ["statistics", given.out, *of_state, "-o", renamed(given.out, ".graphml")]


def after_heads(given: argparse.Namespace) -> list[str]:
    """Read a network of the same genes out of the same model and cells."""
    of_genes = [*_reading(given), "--sources", given.genes]
    return ["network", given.checkpoint, given.cells, *of_genes, "-o", renamed(given.out, "-network")]


def after_info(given: argparse.Namespace) -> list[str] | None:
    """Make the table of what was measured."""
    kind, path = kind_of(Path(given.path)), argparse.Namespace(out=given.path)
    if kind == EXPLANATION:
        return ["statistics", given.path, "-o", renamed(given.path, ".tsv")]
    return after_perturb(path) if kind == SCREEN else after_network(path) if kind == NETWORK else None


def beside(path: str, name: str) -> str:
    """Return a name in the same folder that is not taken."""
    return _free(Path(path).with_name(name))


def renamed(path: str, ending: str) -> str:
    """Return a path, not taken, with another ending; one that begins with a dash comes after the bare name."""
    whole = Path(path.rstrip("/"))
    return _free(whole.with_name(f"{whole.stem if whole.suffix else whole.name}{ending}"))


def _free(path: Path) -> str:
    """Return a path, with a number where something has its name."""
    numbered = (path.with_name(f"{path.stem}-{n}{path.suffix}") for n in count(2))
    return str(next(name for name in chain([path], numbered) if not name.exists()))


def _reading(given: argparse.Namespace) -> list[str]:
    """Return how the cells were opened, to be said again."""
    options = []
    for name in ("vocabulary", "max_length"):
        if (value := getattr(given, name)) is not None:
            options += [_option(name), str(value)]
    return [*options, *(["--where", *given.where] if given.where else [])]


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
