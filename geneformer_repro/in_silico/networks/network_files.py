"""What the files of a gene network say of it: read by pyarrow alone, a fifth of a second, and neither pandas nor torch.

The form of ``network.json`` stands here for that reason.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from geneformer_repro.errors import DataFormatError, InputError, counted, listed
from geneformer_repro.files import misfit, read_json

FORMAT = "geneformer_repro/network/1"
MARKER = "network.json"
_METADATA: dict[str, Any] = {
    "method": str,
    "measure": str,
    "direction": str,
    "scale": str,
    "weight": str,
    "min_cells": int,
    "groups": [{"state": str, "n_cells": int, "file": str}],
    "states": {str: {"n_cells": int, "mean": float}},
}


def network_metadata(folder: str | Path) -> dict[str, Any]:
    """Return what made a network, ``network.json``.

    Raises
    ------
    InputError
        There is no such folder, or it is of another format.
    DataFormatError
        It is damaged, or files of it are missing.
    """
    path = Path(folder)
    if not (path / MARKER).is_file():
        raise InputError(f"{path}: no gene network (it has no {MARKER}). Make one with gene_network.")
    metadata = read_json(path / MARKER)
    if metadata.get("format") != FORMAT:
        raise InputError(
            f"{path / MARKER}: expected format {FORMAT!r}, found {metadata.get('format')!r}. Make the network anew."
        )
    if wrong := misfit(metadata, _METADATA):
        raise DataFormatError(f"{path / MARKER}: is incomplete or damaged ({wrong}). Make the network anew.")
    needed = ["genes.parquet", "edges.parquet", *(group["file"] for group in metadata["groups"])]
    if missing := [name for name in needed if not (path / name).is_file()]:
        raise DataFormatError(f"{path}: lacks {listed(missing)}. Make the network anew.")
    return metadata


def described_network(folder: str | Path) -> tuple[str, dict[str, Any]]:
    """Say how large a network is, without reading its sums; and return its metadata.

    Raises
    ------
    InputError
        As `network_metadata`.
    DataFormatError
        As `network_metadata`; or its genes cannot be read.
    """
    metadata, genes = network_metadata(folder), Path(folder) / "genes.parquet"
    with reading_file(genes), pq.ParquetFile(genes) as file:  # of read_table pandas would be imported
        n_sources, n_targets = (sum(column.to_pylist()) for column in file.read(["is_source", "is_target"]).columns)
    n_states, n_cells = len(metadata["states"]), sum(facts["n_cells"] for facts in metadata["states"].values())
    donors = {group["donor"] for group in metadata["groups"] if group.get("donor") is not None}
    said = (
        f"{n_sources:,} sources × {n_targets:,} targets by {metadata['method']}, "
        f"{counted(n_states, 'state')}, {counted(n_cells, 'cell')}"
        + (f" of {counted(len(donors), 'donor')}" if donors else "")
    )
    return said, metadata


@contextmanager
def reading_file(path: Path) -> Iterator[None]:
    """Say of which file of a network it is that something cannot be read."""
    try:
        yield
    except (OSError, pa.ArrowException, KeyError, IndexError) as error:
        raise DataFormatError(
            f"{path}: cannot be read ({' '.join(str(error).split())[:200]}). The file is damaged, or gone; make the "
            "network anew."
        ) from error
