"""The folder of a tokenised dataset: what is written into it, and what must hold of it when it is opened.

`datasets` 4 writes a type of lists that `datasets` 3 does not know, into a file of its own and into each Arrow file. So
the one is written here, in words that both know, and the other is left out.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from geneformer_repro.errors import DataFormatError, InputError
from geneformer_repro.files import read_json, write_json
from geneformer_repro.tokenizer.rows import CELLS_AT_ONCE, lengths_of, require_lists, require_tokens, starts_to_check
from geneformer_repro.tokenizer.summary import (
    CELL,
    FORMAT,
    INPUT_IDS,
    LENGTH,
    SOURCE,
    UNCROPPED,
    UNCROPPED_LENGTH,
    wrong_with,
)
from geneformer_repro.tokenizer.vocabulary import Vocabulary


def schema_of(vocabulary: Vocabulary, obs: dict[str, pa.DataType], *, uncropped: bool, source: bool) -> pa.Schema:
    """Return the columns of a dataset, in their order."""
    tokens = pa.list_(pa.from_numpy_dtype(np.min_scalar_type(vocabulary.size - 1)))
    columns: dict[str, pa.DataType] = {CELL: pa.string(), INPUT_IDS: tokens, LENGTH: pa.int32()}
    if uncropped:
        columns |= {UNCROPPED: tokens, UNCROPPED_LENGTH: pa.int32()}
    if source:
        columns[SOURCE] = pa.string()
    return pa.schema([*columns.items(), *obs.items()])


def write_state(folder: Path, schema: pa.Schema, files: Sequence[str], fingerprint: str) -> None:
    """Write the two small files that make a folder one of `datasets.load_from_disk`, of version 3 and later."""
    state: dict[str, Any] = {
        "_data_files": [{"filename": name} for name in files],
        "_fingerprint": fingerprint,
        "_format_columns": None,
        "_format_kwargs": {},
    }
    features = {field.name: _feature(field.type) for field in schema}
    info = {"citation": "", "description": "", "features": features, "homepage": "", "license": ""}
    write_json(folder / "dataset_info.json", info)
    write_json(folder / "state.json", state | {"_format_type": None, "_output_all_columns": False, "_split": None})


def _feature(kind: pa.DataType) -> dict[str, Any]:
    if pa.types.is_list(kind):
        return {"feature": _feature(kind.value_type), "_type": "Sequence"}
    return {
        "dtype": "float64" if kind == pa.float64() else "float32" if kind == pa.float32() else str(kind),
        "_type": "Value",
    }


def write_folder(folder: Path, table: datasets.Dataset, vocabulary: Vocabulary, spec: dict[str, Any]) -> None:
    """Write a dataset that is in memory, or a selection of one, into a folder that exists."""
    stored = table.data.schema
    own = (CELL, INPUT_IDS, LENGTH, UNCROPPED, UNCROPPED_LENGTH, SOURCE)
    obs = {name: stored.field(name).type for name in table.column_names if name not in own}
    schema = schema_of(vocabulary, obs, uncropped=UNCROPPED in table.column_names, source=SOURCE in table.column_names)
    arrow = folder / "data-000000.arrow"
    rows = table.with_format("arrow", columns=schema.names)
    with pa.OSFile(str(arrow), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        for start in range(0, len(table), CELLS_AT_ONCE):
            block = rows[start : start + CELLS_AT_ONCE].select(schema.names)
            writer.write_table(block.replace_schema_metadata(None).cast(schema).combine_chunks())
    vocabulary.write_into(folder)
    special = {"special_tokens": dict(vocabulary.special_tokens)}
    write_json(folder / "spec.json", spec | special | {"format": FORMAT, "obs": list(obs), "saved": True})
    write_state(folder, schema, [arrow.name], spec["fingerprint"])


def read_folder(
    path: Path, vocabulary: Vocabulary | None, *, written: Vocabulary | None = None
) -> tuple[datasets.Dataset, Vocabulary, dict[str, Any]]:
    """Open a folder, and look whether it holds what it says.

    Parameters
    ----------
    path
        The folder.
    vocabulary
        What must be its own; None: whatever that is.
    written
        The vocabulary that has just been written into it, which is not read again.

    Raises
    ------
    DataFormatError
        It is damaged; says where.
    InputError
        Its format is another.
    VocabularyMismatchError
        `vocabulary` is not its own.
    """
    spec = read_json(path / "spec.json")
    if spec.get("format") != FORMAT:
        raise InputError(f"{path}/spec.json: expected format {FORMAT!r}, found {spec.get('format')!r}. Tokenise again.")
    own = written or Vocabulary.load(path)
    if wrong := wrong_with(spec):
        raise InputError(f"{path}/spec.json: is incomplete or damaged ({wrong}). Tokenise again.")
    if not own.has_fingerprint(spec["vocabulary"]):
        raise DataFormatError(
            f"{path}: the vocabulary in the folder ({own.fingerprint[:12]}) is not the one that made the cells "
            f"({spec['vocabulary'][:12]}). Tokenise again."
        )
    if vocabulary is not None:
        own.require_same(vocabulary, this=f"dataset {path}", that="the vocabulary given")
    try:
        table = datasets.load_from_disk(str(path)).with_format(None)
        for chunk in table.data.column(INPUT_IDS).chunks:
            chunk.validate(full=True)
    except Exception as error:
        raise DataFormatError(
            f"{path}: the Arrow dataset is missing or damaged ({' '.join(str(error).split())[:300]}). Tokenise again."
        ) from error
    if len(table) != spec["n_cells"]:
        raise DataFormatError(
            f"{path}: spec.json speaks of {spec['n_cells']} cells, the dataset holds {len(table)}. Tokenise again."
        )
    _require_columns(path, table, spec)
    _require_rows(path, table, own, looked_at=written is not None)
    return table, own, spec


def _require_columns(path: Path, table: datasets.Dataset, spec: dict[str, Any]) -> None:
    needed = [CELL, INPUT_IDS, LENGTH, *spec.get("obs", []), *([] if spec["cell_names_unique"] else [SOURCE])]
    if missing := [name for name in needed if name not in table.column_names]:
        raise DataFormatError(
            f"{path}: spec.json speaks of the columns {', '.join(map(repr, missing))}, the dataset holds "
            f"{', '.join(map(repr, table.column_names))}. Tokenise again."
        )
    for name, is_right in ((CELL, pa.types.is_string), (LENGTH, pa.types.is_integer)):
        column = table.data.column(name)
        if not is_right(column.type) or column.null_count:
            raise DataFormatError(
                f"{path}: the column {name!r} has {column.null_count} missing values of type {column.type}; expected "
                f"{'text' if name == CELL else 'whole numbers'} in every row. Tokenise again."
            )


def _require_rows(path: Path, table: datasets.Dataset, vocabulary: Vocabulary, *, looked_at: bool) -> None:
    tokens = table.data.column(INPUT_IDS)
    require_lists(path, INPUT_IDS, tokens)
    lengths = lengths_of(tokens)
    if not np.array_equal(table.data.column(LENGTH).to_numpy(), lengths):
        raise DataFormatError(
            f"{path}: the column {LENGTH!r} does not give the length of {INPUT_IDS!r}. Tokenise again."
        )
    if len(lengths) and lengths.max() > vocabulary.max_length:
        raise DataFormatError(
            f"{path}: a cell has {lengths.max()} tokens, more than the vocabulary's max_length of "
            f"{vocabulary.max_length}. Tokenise again."
        )
    if looked_at:  # each token was made of a gene of the vocabulary a moment ago
        return
    starts = starts_to_check(lengths)
    try:
        for start in starts:
            table.data.slice(start, CELLS_AT_ONCE).validate(full=True)
    except pa.ArrowException as error:
        raise DataFormatError(f"{path}: the Arrow dataset is damaged ({error}). Tokenise again.") from error
    require_tokens(path, tokens, vocabulary, starts=starts)
