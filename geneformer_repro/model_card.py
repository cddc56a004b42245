"""The page that a checkpoint is published with: what it is, what it learned from, and its scores beside guesses."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from geneformer_repro.checkpoint_files import worse_than_guessing

if TYPE_CHECKING:
    import pandas as pd

_MOST_SCORES = 6
_NAMES_PEOPLE = ("test_groups", "validation_groups")
_USE = """\
```python
import geneformer_repro as gf

checkpoint = gf.Checkpoint.from_pretrained("{repo_id}")
{line}
```

Install the package `geneformer_repro` first. {hint}
"""
Reads = Literal["cells", "samples", "pairs"]
_LINES: dict[Reads, str] = {
    "cells": 'cells = gf.tokenize("cells.h5ad", checkpoint.vocabulary)',
    "samples": 'table = gf.predict(checkpoint, "samples.h5ad")',
    "pairs": 'table = gf.predict_response(checkpoint, "samples.h5ad", "drugs.tsv")',
}
_LIMITS = """\
For research: no medical device, and no advice for patients. Scores hold for data like those it was tested on; on cells
of another laboratory, tissue or kit, score it anew beside a simple method before it is believed.
"""


def public_provenance(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return what made a checkpoint without what is nobody else's: names of donors or patients, paths of files."""
    config = dict(provenance.get("config") or {})
    if isinstance(split := config.get("split"), Mapping):
        hidden: dict[str, Any] = {name: [] for name in _NAMES_PEOPLE if split.get(name)}
        if split.get("split_file"):
            hidden["split_file"] = None
        config["split"] = {**split, **hidden}
    return {**provenance, **({"config": config} if config else {})}


def public_network(described: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``config.json`` tells of a network over pairs without its samples, who may be patients."""
    effects = described["effects"]
    if effects is not None:
        kept = {name: of for name, of in effects["effects"].items() if "sample" not in name.split("_")}
        effects = {**effects, "effects": kept}
    return {**described, "effects": effects, "learned": {**described["learned"], "samples": []}}


def model_card(
    *,
    repo_id: str,
    license: str,
    data: str,
    described: str,
    provenance: Mapping[str, Any],
    n_seen: int | None,
    reads: Reads,
    n_samples: int | None = None,
    has_names: bool = False,
    methods: "Mapping[str, pd.DataFrame]",
) -> str:
    """Write the card.

    Parameters
    ----------
    repo_id
        Where it will be.
    license
        As the hub names it.
    data
        What its author says it learned from.
    described
        The network in one line.
    provenance
        What made it.
    n_seen
        Cells that it is known to have seen.
    reads
        What it is asked about.
    n_samples, has_names
        Of a network over pairs: how many samples it was trained on, and whether their names go along.
    methods
        Scores of it and of others on the same rows, a table for each target.
    """
    from huggingface_hub import ModelCardData

    front = ModelCardData(
        license=license,
        library_name="geneformer-repro",
        tags=["single-cell", "transcriptomics", "geneformer", str(provenance.get("step") or "model")],
    )
    parts = [
        f"---\n{front.to_yaml()}\n---\n\n# {repo_id.rpartition('/')[2]}\n\n`{described}`",
        f"## Data\n\n{data}\n\n{_counted(provenance, n_seen, reads, n_samples, has_names=has_names)}",
        f"## Scores\n\n{_scores(provenance, methods)}",
        f"## Use\n\n{_USE.format(repo_id=repo_id, line=_LINES[reads], hint=_hint(provenance, reads))}",
        f"## Limits\n\n{_LIMITS}",
        f"## How it was made\n\n{_made(provenance)}",
    ]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _hint(provenance: Mapping[str, Any], reads: Reads) -> str:
    if reads != "cells":
        return "Samples are given with the kind of values that it was trained on, which it says where they differ."
    if provenance.get("step") == "pretrain":
        return "`gf.embed`, `gf.finetune` and `gf.perturb` take both."
    return "`gf.predict(checkpoint, cells)` gives its outputs, `gf.explain` what they rest on."


def _counted(
    provenance: Mapping[str, Any], n_seen: int | None, reads: Reads, n_samples: int | None, *, has_names: bool
) -> str:
    result = provenance.get("result") or {}
    inputs = {name: digest for name, digest in (provenance.get("inputs") or {}).items() if digest}
    lines = []
    if "n_cells" in result:
        lines.append(f"{result['n_cells']:,} cells were learned from, {result.get('n_held_out', 0):,} held out.")
    if n_seen:
        lines.append(
            f"Digests of the {n_seen:,} cells that it or its base has seen are in `seen_cells.parquet`: this package "
            "refuses to score it on them."
        )
    elif n_samples is not None and has_names:
        lines.append(f"It was trained on {n_samples:,} samples, whose names are in `config.json`.")
    elif n_samples is not None:
        lines.append(
            f"It was trained on {n_samples:,} samples, whose names, and mean effects by name, are left out: it takes "
            "them for new ones, and scores on them are too good."
        )
    else:
        lines.append(
            f"Which {reads} it has seen is not recorded: scores on {reads} that may be among them are too good."
        )
    if inputs:
        told = ", ".join(f"{name} `{str(digest)[:12]}`" for name, digest in inputs.items())
        lines.append(f"Digests of what went in: {told}.")
    return " ".join(lines)


def _scores(provenance: Mapping[str, Any], methods: "Mapping[str, pd.DataFrame]") -> str:
    import pandas as pd

    if isinstance(scores := (provenance.get("result") or {}).get("scores"), Mapping):
        table = pd.DataFrame(scores).T.rename_axis("method")
        said = "Of masked genes in cells held out; the model beside guesses that look at no other gene."
        if worse_than_guessing(provenance):
            said = f"**No better than a guess.** {said}"
        return f"{said}\n\n{_markdown(table)}"
    if not methods:
        return "None are recorded. Score it before you use it."
    tables = [
        (f"`{target}`:\n\n" if len(methods) > 1 else "") + _markdown(table.set_index(table.columns[0]))
        for target, table in methods.items()
    ]
    says = "Every method was trained and tested on the same rows; a model that does not beat the simple methods was not"
    intervals = f" Brackets: {provenance['intervals']}." if provenance.get("intervals") else ""
    alone = "" if any(len(table) > 1 for table in methods.values()) else " Here no simple method was run beside it."
    return "\n\n".join([f"{says} worth it here.{alone}{intervals}", *tables])


def _markdown(table: "pd.DataFrame") -> str:
    """Lay out the first scores of each method, with their intervals where they have some."""
    numbers = table.select_dtypes("number")
    names = [name for name in numbers if not str(name).endswith(("_low", "_high")) and "_vs_" not in str(name)]
    names = names[:_MOST_SCORES]
    head = f"| method | {' | '.join(str(name).replace('_', ' ') for name in names)} |"
    rows = [
        f"| {_escaped(method)} | {' | '.join(_cell(row, str(name)) for name in names)} |"
        for method, row in numbers.iterrows()
    ]
    return "\n".join([head, "|---" * (len(names) + 1) + "|", *rows])


def _cell(row: "pd.Series[Any]", name: str) -> str:
    value, low, high = (row.get(f"{name}{end}") for end in ("", "_low", "_high"))
    if value is None or value != value:
        return "–"
    interval = "" if low is None or high is None or low != low else f" ({low:.3g}–{high:.3g})"
    return f"{value:.4g}{interval}"


def _made(provenance: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in (provenance.get("versions") or {}).items())
    step, created = provenance.get("step") or "not recorded", provenance.get("created") or "not recorded"
    return f"Step: {step}. Made: {created}. Versions: {versions or 'not recorded'}. Settings: `provenance.json`."


def _escaped(text: object) -> str:
    return str(text).replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
