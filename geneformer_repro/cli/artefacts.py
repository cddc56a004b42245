"""What a file or folder is, told by its name and its first bytes: for commands that were given something else."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from geneformer_repro.files import mudata_of
from geneformer_repro.hub import place_named

CHECKPOINT, CELLS, VOCABULARY = "a checkpoint", "tokenised cells", "a vocabulary"
SCREEN, EXPLANATION, NETWORK = "a perturbation screen", "an explanation", "a gene network"
ANNDATA, TABLE = "counts, expression or vectors (AnnData)", "a table"

_MARKERS = (
    ("network.json", NETWORK),
    ("config.json", CHECKPOINT),
    *((name, CELLS) for name in ("spec.json", "state.json", "dataset_info.json", "dataset_dict.json")),
    ("vocabulary.json", VOCABULARY),
    (".zgroup", ANNDATA),
    ("zarr.json", ANNDATA),
)
_ENDINGS = {
    **dict.fromkeys((".h5ad", ".h5mu", ".loom", ".h5"), ANNDATA),
    **dict.fromkeys((".tsv", ".csv", ".txt", ".gct"), TABLE),
}
_FORMATS = (("shifts", SCREEN), ("explanation", EXPLANATION))


def kind_of(path: Path) -> str | None:
    """Return what is there, as messages call it; None where neither name nor header says it."""
    if path.is_dir():
        return next((kind for name, kind in _MARKERS if (path / name).exists()), None)
    return _kind_of_parquet(path) if path.suffix == ".parquet" else _ENDINGS.get((mudata_of(path) or path).suffix)


def may_be_on_the_hub(name: str) -> bool:
    """Whether a name could be that of a repository of models, or a folder in one, and not of a folder mistyped here."""
    is_of_a_file = Path(name).suffix in (*_ENDINGS, ".parquet", ".tok")
    first, *more = name.split("/")
    return bool(more) and place_named(name) is not None and not is_of_a_file and not Path(first).exists()


def obs_columns(path: Path) -> list[str] | None:
    """Return the obs columns of tokenised cells that this package wrote; None of others."""
    from geneformer_repro.files import read_json

    spec = path / "spec.json"
    found = read_json(spec).get("obs") if spec.exists() else None
    return [str(name) for name in found] if isinstance(found, list) else None


def labels_in(path: Path, column: str) -> set[str] | None:
    """Return the labels in an obs column of such cells; None of numbers with a fraction, or files that are damaged."""
    import pyarrow as pa

    values: set[Any] = set()
    try:
        for block in _column_of(path, column):
            if pa.types.is_floating(block.type):
                return None
            values.update(block.unique().to_pylist())
    except (OSError, KeyError, TypeError, ValueError, pa.ArrowException):  # what is wrong is said by what reads them
        return None
    return {label for value in values if (label := _label(value)) is not None}


def labels_of_rows(path: Path, column: str) -> list[str | None]:
    """Return of each of such cells its label in an obs column, None where there is none; numbers as Python has them."""
    return [_label(value) for block in _column_of(path, column) for value in block.to_pylist()]


def _column_of(path: Path, column: str) -> Iterator[Any]:
    """Yield an obs column block by block, as Arrow has it."""
    import pyarrow as pa

    from geneformer_repro.files import read_json

    for file in read_json(path / "state.json")["_data_files"]:
        with pa.memory_map(str(path / file["filename"])) as mapped, pa.ipc.open_stream(mapped) as stream:
            for batch in stream:
                block = batch.column(column)
                yield block.dictionary_decode() if pa.types.is_dictionary(block.type) else block


def _label(value: Any) -> str | None:
    from geneformer_repro.tokenizer.labels import MISSING, label_of

    return None if value is None or (label := label_of(value)) in MISSING else label


def _kind_of_parquet(path: Path) -> str | None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
        told = json.loads((schema.metadata or {}).get(b"geneformer_repro", b"{}"))
    except (OSError, pa.ArrowException, ValueError):  # what is wrong is said by what reads it
        return None
    if "input_ids" in schema.names:
        return CELLS
    name = str(told.get("format", "")) if isinstance(told, dict) else ""
    return next((kind for part, kind in _FORMATS if part in name), None if name else TABLE)
