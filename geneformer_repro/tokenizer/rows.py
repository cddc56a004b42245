"""What the tokens of a cell must be, whoever wrote them; and rows that were padded, or are too long, made so.

Tokens are data from outside: a gene twice, a token of another vocabulary or an offset behind the end of the file gives
wrong vectors, or reads foreign memory, and no word of it. One compiled pass finds all of it, 3 ns a token: a quarter
billion tokens, of a quarter million cells, in a second. Of a larger dataset of ours, which `tokenize` wrote
from what it had checked, only as many are looked at, evenly spread.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import datasets
import numba
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from geneformer_repro.errors import DataFormatError, InputError
from geneformer_repro.tokenizer.encoding import Ragged
from geneformer_repro.tokenizer.vocabulary import CLS, EOS, Vocabulary

CELLS_AT_ONCE = 10_000
_MOST_TOKENS = 2**28
"""Tokens of a dataset of ours that are looked at when it is opened."""
_FOREIGN, _GENE, _FIRST, _LAST, _EITHER = range(5)
"""What a token is: of no gene, of one, what a cell begins or ends with, or a special token that may stand anywhere."""


def require_lists(path: Path, name: str, column: pa.ChunkedArray) -> None:
    """Raise unless a column holds a list of whole numbers for every cell."""
    kind = column.type
    if not is_list(kind) or not pa.types.is_integer(kind.value_type):
        raise DataFormatError(f"{path}: {name!r} must hold a list of whole numbers for each cell, found {kind}.")
    if column.null_count or any(chunk.flatten().null_count for chunk in column.chunks):
        raise DataFormatError(f"{path}: {name!r} has missing values.")


def is_list(kind: pa.DataType) -> bool:
    """Whether a type is one of Arrow's lists."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def require_room(vocabulary: Vocabulary, max_length: int) -> None:
    """Raise unless cells of a vocabulary can be cut to so many tokens.

    Raises
    ------
    InputError
        No gene would be left, or it is more than the vocabulary allows.
    """
    least = 1 + 2 * vocabulary.has_cls
    if not isinstance(max_length, int) or not least <= max_length <= vocabulary.max_length:
        raise InputError(
            f"max_length must be a whole number from {least} to {vocabulary.max_length}, the vocabulary's own, found "
            f"{max_length!r}."
        )


def as_lists(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return lists of one length as lists of any; others as they are."""
    if not pa.types.is_fixed_size_list(column.type):
        return column
    size = column.type.list_size
    chunks = [
        pa.ListArray.from_arrays(pa.array(np.arange(len(chunk) + 1, dtype=np.int32) * size), chunk.flatten())
        for chunk in column.chunks
    ]
    return pa.chunked_array(chunks, pa.list_(column.type.value_type))


def lengths_of(column: pa.ChunkedArray) -> np.ndarray:
    """Return the number of tokens of each cell."""
    return pc.list_value_length(column).to_numpy().astype(np.int64)


def require_tokens(
    path: Path, column: pa.ChunkedArray, vocabulary: Vocabulary, *, starts: Sequence[int] | None = None
) -> int:
    """Raise unless every cell holds genes of the vocabulary, each once, between its special tokens.

    Parameters
    ----------
    path
        Where the cells are, for messages.
    column
        Lists of tokens.
    vocabulary
        What they should be.
    starts
        First rows of the blocks of cells to look at; default all.

    Returns
    -------
    The most tokens of a cell that was looked at.

    Raises
    ------
    DataFormatError
        Names the first row, or counts the tokens, that are otherwise.
    """
    kinds, n_foreign, longest = _kinds(vocabulary), 0, 0
    foreign: list[int] = []
    bare_rows: list[int] = []
    repeated: list[tuple[int, int]] = []
    for start, tokens in _blocks(column, starts):
        as_compiled = tokens.values if tokens.values.dtype == np.uint16 else tokens.values.astype(np.int64)
        n, first, bare, twice, token, most = _check_rows(as_compiled, tokens.offsets, kinds, vocabulary.has_cls)
        n_foreign, longest = n_foreign + n, max(longest, most)
        foreign += [tokens.values[first]] if n else []
        bare_rows += [start + bare] if bare >= 0 else []
        repeated += [(start + twice, token)] if twice >= 0 else []
    if foreign:
        names = {token: f" ({name})" for name, token in vocabulary.special_tokens.items()}
        raise DataFormatError(
            f"{path}: {n_foreign} tokens are not genes of the vocabulary (first: {foreign[0]}"
            f"{names.get(foreign[0], '')}). It was made with another vocabulary, or is damaged."
        )
    if bare_rows:
        raise DataFormatError(
            f"{path}: row {bare_rows[0]} does not begin with {CLS} and end with {EOS}, as cells of this "
            "vocabulary do. If they were tokenised without special tokens, give a vocabulary without these two "
            "(Vocabulary.from_tokens); if they were cut afterwards, tokenise them anew."
        )
    for row, token in repeated:
        raise DataFormatError(f"{path}: token {token} stands twice in row {row}; a gene has one rank in a cell.")
    return longest


def _kinds(vocabulary: Vocabulary) -> np.ndarray:
    kinds = np.full(vocabulary.size, _FOREIGN, dtype=np.int8)
    kinds[vocabulary.tokens] = _GENE
    for name, kind in ((CLS, _FIRST), (EOS, _LAST)):
        if name in vocabulary.special_tokens:
            kinds[vocabulary.special_tokens[name]] = kind if vocabulary.has_cls else _EITHER
    return kinds


@numba.njit(nogil=True, cache=True)
def _check_rows(tokens, offsets, kinds, wrapped):  # type: ignore[no-untyped-def]
    """Return how many tokens are foreign and where the first is, and the first rows that are bare or repeat a token."""
    size = len(kinds)
    seen = np.full(size, -1, np.int32)
    n_foreign, first, bare, twice, token_twice, longest = 0, -1, -1, -1, -1, 0
    for row in range(len(offsets) - 1):
        start, stop = offsets[row], offsets[row + 1]
        longest = max(longest, stop - start)
        for at in range(start, stop):
            token = np.int64(tokens[at])
            if token < 0 or token >= size or kinds[token] == _FOREIGN:
                if n_foreign == 0:
                    first = at
                n_foreign += 1
            elif seen[token] == row:
                if twice < 0:
                    twice, token_twice = row, int(token)
            else:
                seen[token] = row
        if wrapped and stop > start and bare < 0:
            opening, closing = np.int64(tokens[start]), np.int64(tokens[stop - 1])
            inside = 0 <= opening < size and 0 <= closing < size
            if not (inside and kinds[opening] == _FIRST and kinds[closing] == _LAST):
                bare = row
    return n_foreign, first, bare, twice, token_twice, longest


def starts_to_check(lengths: np.ndarray) -> list[int]:
    """Return the first rows of the blocks of a dataset that are looked at: all, or so many, evenly spread."""
    starts = range(0, len(lengths), CELLS_AT_ONCE)
    n_blocks = max(2, int(_MOST_TOKENS / max(1.0, lengths.sum() / max(1, len(starts)))))
    return [starts[i] for i in np.unique(np.linspace(0, len(starts) - 1, num=min(n_blocks, len(starts))).astype(int))]


def whole(column: pa.ChunkedArray) -> pa.Array:
    """Return a column as one array."""
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)


def _blocks(column: pa.ChunkedArray, starts: Sequence[int] | None = None) -> Iterator[tuple[int, Ragged]]:
    """Yield the first row and the tokens of blocks of cells."""
    for start in range(0, len(column), CELLS_AT_ONCE) if starts is None else starts:
        lists = whole(column.slice(start, CELLS_AT_ONCE))
        lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        yield start, Ragged(lists.flatten().to_numpy(zero_copy_only=False), offsets)


def unpadded(column: pa.ChunkedArray, pad: int) -> pa.ChunkedArray:
    """Return rows without the padding at their ends; blocks of cells without any are not copied."""
    chunks: list[pa.Array] = []
    changed = False
    for start, tokens in _blocks(column):
        inside = np.flatnonzero(tokens.values != pad)
        if len(inside) == len(tokens.values):
            chunks += column.slice(start, CELLS_AT_ONCE).chunks
            continue
        low, high = (np.searchsorted(inside, edges) for edges in (tokens.offsets[:-1], tokens.offsets[1:]))
        held, changed = high > low, True
        first, last = tokens.offsets[:-1].copy(), tokens.offsets[:-1].copy()
        first[held], last[held] = inside[low[held]], inside[high[held] - 1] + 1
        chunks.append(_taken(tokens.values, first, last - first, column.type))
    return pa.chunked_array(chunks, column.type) if changed else column


def cut(column: pa.ChunkedArray, max_length: int, *, keep_last: bool) -> pa.ChunkedArray:
    """Return rows of at most so many tokens; with `keep_last` their last one, ``<eos>``, stays."""
    chunks: list[pa.Array] = []
    changed = False
    for start, tokens in _blocks(column):
        if not len(tokens.lengths) or tokens.lengths.max() <= max_length:
            chunks += column.slice(start, CELLS_AT_ONCE).chunks
            continue
        changed, lengths = True, np.minimum(tokens.lengths, max_length)
        values = tokens.values.copy()
        if keep_last:
            long = np.flatnonzero(tokens.lengths > max_length)
            values[tokens.offsets[long] + max_length - 1] = tokens.values[tokens.offsets[long + 1] - 1]
        chunks.append(_taken(values, tokens.offsets[:-1], lengths, column.type))
    return pa.chunked_array(chunks, column.type) if changed else column


def _taken(values: np.ndarray, first: np.ndarray, lengths: np.ndarray, kind: pa.DataType) -> pa.Array:
    ends = np.cumsum(lengths)
    places = np.arange(lengths.sum()) + np.repeat(first - (ends - lengths), lengths)
    offsets = np.concatenate([[0], ends])
    array, width = (pa.LargeListArray, np.int64) if pa.types.is_large_list(kind) else (pa.ListArray, np.int32)
    return array.from_arrays(pa.array(offsets.astype(width)), pa.array(values[places], kind.value_type))


def with_column(table: datasets.Dataset, name: str, column: pa.ChunkedArray | pa.Array) -> datasets.Dataset:
    """Return a table with a column in the place of one of the same name, or at the end."""
    digest = hashlib.sha256(f"{table._fingerprint} {name}".encode()).hexdigest()  # not of the column, which is long
    if name not in table.column_names:
        return table.add_column(name, column, new_fingerprint=digest)
    aside, order = f"{name} (new)", table.column_names
    both = table.add_column(aside, column, new_fingerprint=digest)
    return both.remove_columns([name]).rename_column(aside, name).select_columns(order)
