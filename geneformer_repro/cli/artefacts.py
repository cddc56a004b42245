"""What a file or folder is, told by its name and its first bytes: for commands that were given something else."""

import json
from pathlib import Path

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


def text_values(path: Path, column: str) -> set[str] | None:
    """Return the texts in an obs column of such cells; None where it holds others, or its files cannot be read."""
    import pyarrow as pa

    from geneformer_repro.files import read_json

    values: set[str | None] = set()
    try:
        for file in read_json(path / "state.json")["_data_files"]:
            with pa.memory_map(str(path / file["filename"])) as mapped, pa.ipc.open_stream(mapped) as stream:
                kind = stream.schema.field(column).type
                if not pa.types.is_string(kind.value_type if pa.types.is_dictionary(kind) else kind):
                    return None
                for batch in stream:
                    values.update(batch.column(column).unique().to_pylist())
    except (OSError, KeyError, TypeError, ValueError, pa.ArrowException):  # what is wrong is said by what reads them
        return None
    return {value.strip() for value in values if value is not None}


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
