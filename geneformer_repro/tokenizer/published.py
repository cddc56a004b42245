"""Tokenised cells that others wrote: with the published tokenizer, `datasets`, pandas or polars.

What one can do with such files is brought to one form, and every change is said in the log: padding is stripped, codes
of a ClassLabel become its names, columns that hold lists or structures are left out, cells whose names are missing or
not distinct get their row number before it. Columns that need no change stay mapped from the file; changed ones are in
memory (of padded tokens the real ones).
"""

import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from geneformer_repro.errors import DataFormatError, listed
from geneformer_repro.tokenizer.rows import (
    CELLS_AT_ONCE,
    as_lists,
    is_list,
    lengths_of,
    require_lists,
    require_tokens,
    unpadded,
    whole,
    with_column,
)
from geneformer_repro.tokenizer.summary import CELL, INPUT_IDS, LENGTH, UNCROPPED, UNCROPPED_LENGTH
from geneformer_repro.tokenizer.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

_MASK = "attention_mask"
_CELL_COLUMNS = (CELL, "unique_cell_id", "cell_id")
_SPLITS = "dataset_dict.json"
_SHOWN = 5


def is_dataset(path: Path) -> bool:
    """Whether a path looks like tokenised cells, ours or others', rather than counts."""
    if path.is_dir():
        return any((path / name).exists() for name in ("spec.json", "state.json", "dataset_info.json", _SPLITS))
    return path.suffix == ".parquet" and not _is_table_of_expression(path)


def _is_table_of_expression(path: Path) -> bool:
    try:
        return "input_ids" not in pq.read_schema(path).names
    except (OSError, pa.ArrowException):  # what is wrong is said by what reads tokenised cells
        return False


def read_published(
    path: Path, vocabulary: Vocabulary, *, may_be_long: bool
) -> tuple[datasets.Dataset, dict[str, object]]:
    """Read tokenised cells that this package did not write.

    Parameters
    ----------
    path
        A folder of `datasets`, or a Parquet file.
    vocabulary
        What the tokens mean.
    may_be_long
        Whether cells may have more tokens than the vocabulary's ``max_length``.

    Returns
    -------
    A table with ``input_ids``, ``length``, ``cell`` and plain obs columns, and its spec.

    Raises
    ------
    DataFormatError
        It holds no cells, or cells that the vocabulary does not explain; says what to do.
    """
    table = open_table(path)
    table = _with_tokens(path, table, vocabulary, may_be_long=may_be_long)
    table = _with_names(path, _with_plain_columns(path, table))
    spec: dict[str, object] = {
        "format": "published",
        "fingerprint": _digest_of(table, vocabulary),
        "vocabulary": vocabulary.fingerprint,
        "sources": [{"name": str(path)}],
        "cell_names_unique": True,
        "failed": [],
        "n_cells": len(table),
        "max_length": vocabulary.max_length,
    }
    return table, spec


def open_table(path: Path) -> datasets.Dataset:
    """Open a folder of `datasets`, or a Parquet file, as it is.

    Raises
    ------
    DataFormatError
        It is neither, holds several datasets (names them), no ``input_ids``, or no cells.
    """
    if (path / _SPLITS).exists():
        raise DataFormatError(_of_splits(path))
    try:
        table = datasets.load_from_disk(str(path)) if path.is_dir() else datasets.Dataset(_read_parquet(path))
        table = table.with_format(None)
    except Exception as error:
        raise DataFormatError(
            f"{path}: neither a dataset folder nor a Parquet file ({' '.join(str(error).split())[:300]})."
        ) from error
    if INPUT_IDS not in table.column_names:
        raise DataFormatError(f"{path}: expected a table with a column {INPUT_IDS!r}, found {table.column_names}.")
    if not len(table):
        raise DataFormatError(f"{path}: holds no cells.")
    return table


def _of_splits(path: Path) -> str:
    try:
        names = list(json.loads((path / _SPLITS).read_text(encoding="utf-8"))["splits"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return f"{path}: {_SPLITS} is damaged ({error!r}); name the folder of one of its datasets."
    if not names:
        return f"{path}: holds no dataset ({_SPLITS} names none)."
    return (
        f"{path}: holds {len(names)} dataset{'s' * (len(names) > 1)} by name, found {', '.join(map(repr, names))}, and "
        f"expected one table with a column {INPUT_IDS!r}. Name one: {path / str(names[0])}."
    )


def _read_parquet(path: Path) -> pa.Table:
    table = pq.read_table(path)
    index = (table.schema.pandas_metadata or {}).get("index_columns", [])
    table = table.drop_columns([name for name in index if isinstance(name, str) and name in table.column_names])
    for i, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            table = table.set_column(i, field.name, table.column(i).cast(field.type.value_type))
    return table


# Tokens


def _with_tokens(path: Path, table: datasets.Dataset, vocabulary: Vocabulary, *, may_be_long: bool) -> datasets.Dataset:
    """Return the table with tokens and lengths as they should be."""
    stored = table.data.column(INPUT_IDS)
    require_lists(path, INPUT_IDS, stored)
    stored_lengths = lengths_of(stored)
    tokens = unpadded(as_lists(stored), vocabulary.pad_token)
    lengths = lengths_of(tokens)
    _check_mask(path, table, stored_lengths, lengths)
    if n_padded := int((lengths < stored_lengths).sum()):
        logger.warning(
            "%s: %d of %d cells are padded with token %d; the padding is stripped.",
            path, n_padded, len(table), vocabulary.pad_token,
        )  # fmt: skip
    longest = require_tokens(path, tokens, vocabulary)
    _check_lengths(path, table, stored_lengths, lengths)
    if longest > vocabulary.max_length and not may_be_long:
        raise DataFormatError(
            f"{path}: a cell has {longest} tokens, more than the vocabulary's max_length of {vocabulary.max_length}. "
            f"Cut such cells: TokenizedDataset.open(…, max_length={vocabulary.max_length}) "
            f"(--max-length {vocabulary.max_length})."
        )
    if tokens is not stored:
        table = with_column(table, INPUT_IDS, tokens)
    is_whole = LENGTH in table.column_names and pa.types.is_integer(table.data.column(LENGTH).type)
    if not is_whole or not np.array_equal(table.data.column(LENGTH).to_numpy(), lengths):
        table = with_column(table, LENGTH, pa.array(lengths))
    return table.remove_columns([_MASK]) if _MASK in table.column_names else table


def _check_mask(path: Path, table: datasets.Dataset, stored_lengths: np.ndarray, lengths: np.ndarray) -> None:
    """Raise if an attention mask hides anything else than the padding."""
    if _MASK not in table.column_names:
        return
    mask = table.data.column(_MASK)
    if not is_list(mask.type) or not (pa.types.is_integer(mask.type.value_type) or mask.type.value_type == pa.bool_()):
        raise DataFormatError(f"{path}: {_MASK!r} must hold a list of 0 and 1 for each cell, found {mask.type}.")
    if mask.null_count or any(chunk.flatten().null_count for chunk in mask.chunks):
        raise DataFormatError(f"{path}: {_MASK!r} has missing values. Remove the column.")
    seen = np.concatenate([_sums(chunk) for chunk in mask.chunks])
    wrong = np.flatnonzero((lengths_of(mask) != stored_lengths) | (seen != lengths))
    if len(wrong):
        row = int(wrong[0])
        raise DataFormatError(
            f"{path}: {_MASK!r} lets {seen[row]} of the {lengths[row]} tokens of row {row} be seen. It may hide "
            f"padding alone; leave other tokens out of {INPUT_IDS!r}, or remove the column."
        )


def _sums(lists: pa.Array) -> np.ndarray:
    """Sum of each list."""
    lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
    ends = np.concatenate([[0], np.cumsum(lists.flatten().to_numpy(zero_copy_only=False), dtype=np.int64)])
    edges = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    return np.asarray(np.diff(ends[edges]))


def _check_lengths(path: Path, table: datasets.Dataset, stored_lengths: np.ndarray, lengths: np.ndarray) -> None:
    """Raise unless a column of lengths gives those of the tokens, with or without padding."""
    if LENGTH not in table.column_names:
        return
    written = table.data.column(LENGTH).to_numpy()
    if not (np.array_equal(written, lengths) or np.array_equal(written, stored_lengths)):
        raise DataFormatError(
            f"{path}: the column {LENGTH!r} does not give the length of {INPUT_IDS!r}. Remove it; it is counted anew."
        )


# Columns of obs


def _with_plain_columns(path: Path, table: datasets.Dataset) -> datasets.Dataset:
    """Bring every other column to numbers, truth values or text, and leave out what is neither."""
    left_out = []
    for name in table.column_names:
        if name in (INPUT_IDS, LENGTH):
            continue
        column, feature = table.data.column(name), table.features[name]
        if name in (UNCROPPED, UNCROPPED_LENGTH):
            if not _is_uncropped(name, column.type):
                left_out.append(name)
        elif isinstance(feature, datasets.ClassLabel):
            table = with_column(table, name, _named(path, name, column, feature.names))
        elif not name.strip() or pa.types.is_nested(column.type) or not (plain := _plain(column)):
            left_out.append(name)
        elif plain is not column:
            table = with_column(table, name, plain)
    if left_out:
        logger.warning(
            "%s: the columns %s hold lists, structures or bytes, not a value for each cell, or have no name; left out.",
            path, ", ".join(map(repr, left_out)),
        )  # fmt: skip
    return table.remove_columns(left_out)


def _is_uncropped(name: str, kind: pa.DataType) -> bool:
    if name == UNCROPPED_LENGTH:
        return bool(pa.types.is_integer(kind))
    return bool((pa.types.is_list(kind) or pa.types.is_large_list(kind)) and pa.types.is_integer(kind.value_type))


def _named(path: Path, name: str, codes: pa.ChunkedArray, names: list[str]) -> pa.ChunkedArray:
    """Return the names of codes; -1, as `datasets` writes, and null are missing."""
    without_missing = pc.if_else(pc.equal(codes, -1), pa.scalar(None, codes.type), codes)
    used = pc.unique(without_missing).drop_null().to_numpy(zero_copy_only=False)
    if len(wrong := used[(used < 0) | (used >= len(names))]):
        raise DataFormatError(
            f"{path}: the column {name!r} holds the code {wrong[0]}, and has {len(names)} names of classes "
            f"({listed(map(repr, names), most=_SHOWN)})."
        )
    return pc.take(pa.array(names, pa.string()), without_missing)


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """Return a column as numbers, truth values or text, which AnnData can write too; None if it holds neither."""
    kind = column.type
    if pa.types.is_float16(kind):
        return column.cast(pa.float32())
    if pa.types.is_decimal(kind):
        return column.cast(pa.float64())
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind) or _is_text(kind):
        return column
    if pa.types.is_null(kind) or kind == pa.string_view():
        return column.cast(pa.string())
    if pa.types.is_temporal(kind):
        as_text = str if pa.types.is_duration(kind) else lambda time: time.isoformat()
        return pa.chunked_array([[None if time is None else as_text(time) for time in column.to_pylist()]], pa.string())
    return None


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


# Names of cells


def _with_names(path: Path, table: datasets.Dataset) -> datasets.Dataset:
    """Return the table with a distinct name of each cell in ``cell``."""
    named = next((name for name in _CELL_COLUMNS if name in table.column_names), None)
    if named is None:
        return with_column(table, CELL, pa.array([str(i) for i in range(len(table))]))
    column = table.data.column(named)
    names = column if _is_text(column.type) else pa.array([_text(name) for name in column.to_pylist()], pa.string())
    n_missing = pc.sum(pc.fill_null(pc.equal(names, ""), True)).as_py()
    if n_missing or pc.count_distinct(names).as_py() < len(names):
        names = _numbered(path, named, names, n_missing)
    others = table if named == CELL else table.remove_columns([named])
    return others if names is column and named == CELL else with_column(others, CELL, names)


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _numbered(path: Path, named: str, names: pa.ChunkedArray | pa.Array, n_missing: int) -> pa.Array:
    """Put the row number before names that do not tell cells apart."""
    written = pd.Series(names.to_pylist(), dtype=object).fillna("")
    twice = written[written.duplicated() & (written != "")]
    faults = [f"{n_missing} cells have none"] if n_missing else []
    faults += [f"several are called {name!r}" for name in twice[:1]]
    numbered = [f"{row}/{name}" for row, name in enumerate(written)]
    logger.warning(
        "%s: the names in %r do not tell cells apart (%s). Each has its row number before it, such as %r.",
        path, named, "; ".join(faults), numbered[0],
    )  # fmt: skip
    return pa.array(numbered)


# What tells two of them apart


def _digest_of(table: datasets.Dataset, vocabulary: Vocabulary) -> str:
    """SHA-256 over names and values of all columns; chunks, the width of numbers and the file's kind do not matter."""
    digest = hashlib.sha256(vocabulary.fingerprint.encode())
    for name in sorted(table.column_names):
        digest.update(json.dumps(name).encode())
        for start in range(0, len(table), CELLS_AT_ONCE):
            for piece in _as_bytes(whole(table.data.column(name).slice(start, CELLS_AT_ONCE))):
                digest.update(piece)
    return digest.hexdigest()


def _as_bytes(values: pa.Array) -> Iterator[bytes]:
    """Give what tells these values from any others, whatever lies in memory under missing ones."""
    yield values.is_valid().cast(pa.uint8()).to_numpy().tobytes()
    values, kind = values.drop_null(), values.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        yield values.value_lengths().to_numpy().astype("<i8").tobytes()
        yield from _as_bytes(values.flatten())
    elif pa.types.is_integer(kind) and kind != pa.uint64():
        yield b"i" + values.to_numpy().astype("<i8").tobytes()
    elif pa.types.is_floating(kind):
        yield b"f" + values.to_numpy().astype("<f8").tobytes()
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        yield b"s" + pc.binary_length(values).to_numpy().astype("<i8").tobytes()
        yield "".join(values.to_pylist()).encode()
    else:
        yield b"o" + repr(values.to_pylist()).encode()


# What can be said of them without a vocabulary


def described(path: Path) -> str:
    """Say in lines of text what a dataset of others holds, as far as that needs no vocabulary.

    Raises
    ------
    DataFormatError
        It is no dataset.
    """
    if (path / _SPLITS).exists():
        return _of_splits(path)
    table = open_table(path)
    stored = table.data.column(INPUT_IDS)
    require_lists(path, INPUT_IDS, stored)
    lengths, tokens = lengths_of(stored), as_lists(stored)
    ranges = [pc.min_max(chunk.flatten()).as_py() for chunk in tokens.chunks if len(chunk.flatten())]
    columns = ", ".join(f"{name} ({table.data.column(name).type})" for name in table.column_names)
    lines = [
        f"{len(table):,} cells of {lengths.min():,} to {lengths.max():,} tokens, {lengths.mean():,.0f} on average, not "
        "written by this package",
        f"columns: {columns}",
    ]
    if ranges:
        low, high = min(of_chunk["min"] for of_chunk in ranges), max(of_chunk["max"] for of_chunk in ranges)
        lines.append(f"tokens from {low} to {high}; what they mean says a vocabulary (--vocabulary)")
    return "\n".join(lines)
