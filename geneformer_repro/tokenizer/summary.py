"""What the files of a tokenised dataset say of it, read by pyarrow alone: a quarter of a second, and no `datasets`.

The names of its columns and the form of its ``spec.json`` stand here for that reason.
"""

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from geneformer_repro.errors import counted
from geneformer_repro.files import misfit, read_json
from geneformer_repro.tokenizer.measures import SHARED_OF, Values
from geneformer_repro.tokenizer.vocabulary import Vocabulary

CELL, INPUT_IDS, LENGTH = "cell", "input_ids", "length"
UNCROPPED, UNCROPPED_LENGTH = "input_ids_uncropped", "length_uncropped"
"""Columns of a dataset that are not carried from obs."""
OWN_COLUMNS = (CELL, INPUT_IDS, LENGTH, UNCROPPED, UNCROPPED_LENGTH)
FORMAT = "geneformer_repro/tokenized/2"
SOURCE = "source"
_READ = {
    "n_cells": int, "n_cells_kept": int, "n_genes": int, "n_genes_known": int, "share_of_counts_known": float,
    "layer": str, "gene_ids": str,
}  # fmt: skip
"""What is known of a source that was read here."""
_SPEC: dict[str, Any] = {
    "fingerprint": str,
    "vocabulary": str,
    "n_cells": int,
    "cell_names_unique": bool,
    "sources": [{"name": str}],
    "failed": [{"name": str, "error": str}],
    "obs?": [str],
    "max_length?": int,
    "n_cropped?": int,
    "within_max_length?": {"genes": float, "signal": float},
    "n_below_zero?": int,
    "left_out?": {str: int},
    "no_genes?": {str: int},
    "genes?": {str: {"genes": int, "share_of_counts": float}},
    "share_of_counts_known?": float,
    "options?": {},
    "saved?": bool,
}
_BARS, _SHOWN_SOURCES = 8, 10


def described_dataset(folder: Path) -> str | None:
    """Return what `TokenizedDataset.summary` says of a folder; None if it is not as `tokenize` and `save` write it.

    Numbers of cells, columns and lengths are looked at, tokens are not: what is wrong is said when it is opened.
    """
    import pyarrow as pa

    spec = read_json(folder / "spec.json")
    if spec.get("format") != FORMAT or wrong_with(spec):
        return None
    vocabulary = Vocabulary.load(folder)
    try:
        lengths, columns = _lengths_and_columns(folder)
    except (OSError, KeyError, TypeError, ValueError, AttributeError, pa.ArrowException):
        return None
    is_whole = vocabulary.has_fingerprint(spec["vocabulary"]) and len(lengths) == spec["n_cells"]
    if (
        not is_whole
        or not {CELL, *spec.get("obs", [])} <= set(columns)
        or lengths.max(initial=0) > vocabulary.max_length
    ):
        return None
    return in_lines(lengths, spec, vocabulary, [name for name in columns if name not in OWN_COLUMNS])


def _lengths_and_columns(folder: Path) -> tuple[np.ndarray, list[str]]:
    """Return the number of tokens of each cell, and the names of the columns, out of the mapped Arrow files.

    Raises
    ------
    ValueError
        The column of lengths does not say how long the lists are.
    """
    import pyarrow as pa

    lengths: list[np.ndarray] = [np.empty(0, dtype=np.int64)]
    columns: list[str] = []
    for file in read_json(folder / "state.json")["_data_files"]:
        with pa.memory_map(str(folder / file["filename"])) as mapped, pa.ipc.open_stream(mapped) as stream:
            columns = stream.schema.names
            for batch in stream:
                of_lists = np.diff(_plain(batch.column(INPUT_IDS).offsets))
                if batch.column(LENGTH).null_count or not np.array_equal(_plain(batch.column(LENGTH)), of_lists):
                    raise ValueError("other lengths")
                lengths.append(of_lists)
    return np.concatenate(lengths), columns


def digests_in(folder: Path) -> Iterator[np.ndarray]:
    """Yield the digests of the cells in the Arrow files of a folder, as `TokenizedDataset.digests`, block by block."""
    import pyarrow as pa

    for file in read_json(folder / "state.json")["_data_files"]:
        with pa.memory_map(str(folder / file["filename"])) as mapped, pa.ipc.open_stream(mapped) as stream:
            for batch in stream:
                yield digests_of(batch.column(INPUT_IDS))


def digests_of(lists: Any) -> np.ndarray:
    """Return a 64-bit digest of the tokens of each row of an Arrow column (uint64)."""
    import pyarrow.compute as pc

    tokens = memoryview(lists.flatten().to_numpy().astype("<u4").tobytes())
    ends = 4 * np.cumsum(pc.list_value_length(lists).to_numpy())
    digests = (
        int.from_bytes(hashlib.blake2b(tokens[first:last], digest_size=8).digest(), "little")
        for first, last in itertools.pairwise([0, *ends.tolist()])
    )
    return np.fromiter(digests, dtype=np.uint64, count=len(lists))


def _plain(numbers: Any) -> np.ndarray:
    """Return 32-bit numbers without `to_numpy`, which imports pandas."""
    return np.frombuffer(numbers.buffers()[1], np.int32, len(numbers), 4 * numbers.offset)


def wrong_with(spec: dict[str, Any]) -> str | None:
    """Say what of a spec is missing or of another form; None if nothing is."""
    if wrong := misfit(spec, _SPEC):
        return wrong
    for key, needed in (("genes", "share_of_counts_known"), ("n_cropped", "max_length")):
        if key in spec and needed not in spec:
            return f"{needed!r} is missing"
    read_here = [source for source in spec["sources"] if "n_cells" in source]
    return next((wrong for source in read_here if (wrong := misfit(source, _READ, source["name"]))), None)


def in_lines(lengths: np.ndarray, spec: Mapping[str, Any], vocabulary: Vocabulary, obs_columns: Sequence[str]) -> str:
    """Say what a dataset is, as `TokenizedDataset.summary`."""
    if not len(lengths):
        return "0 cells"
    lines = [
        f"{len(lengths):,} cells of {lengths.min():,} to {lengths.max():,} tokens, {lengths.mean():,.0f} on average",
        *_histogram(lengths),
    ]
    if "n_cropped" in spec:
        lines.append(said_of_cut(spec, vocabulary.values))
    if spec.get("n_below_zero"):
        lines.append(f"{spec['n_below_zero']:,} log2 values below 0 count as 0")
    if "genes" in spec:
        lines.append(
            f"{spec['share_of_counts_known']:.1%} of the {SHARED_OF[vocabulary.values]} are in known genes: "
            + ", ".join(
                f"{row['genes']:,} {name} ({row['share_of_counts']:.1%})" for name, row in spec["genes"].items()
            )
            + ("" if "saved" in spec else "; genes.tsv names them")
        )
    if no_genes := spec.get("no_genes"):
        lines.append("No genes: " + ", ".join(f"{n:,} {kind}" for kind, n in no_genes.items()) + " (genes.tsv)")
    left_out = {why: n for why, n in spec.get("left_out", {}).items() if n}
    where = "" if "saved" in spec else " (left_out.tsv)"
    lines += [f"{counted(n, 'cell')} left out: {why}{where}" for why, n in left_out.items()]
    lines.append(f"obs columns: {', '.join(obs_columns) or 'none'}")
    lines.append(repr(vocabulary))
    shown = spec["sources"][:_SHOWN_SOURCES]
    held = SHARED_OF[vocabulary.values]
    lines += [
        f"source {source['name']}" + (_of_source(source, held) if "n_cells" in source else "") for source in shown
    ]
    if len(spec["sources"]) > len(shown):
        lines.append(f"… and {len(spec['sources']) - len(shown):,} more sources (spec.json)")
    lines += [f"LEFT OUT: {source['name']}: {source['error']}" for source in spec["failed"]]
    return "\n".join(lines)


def said_of_cut(spec: Mapping[str, Any], values: Values) -> str:
    """Say in a line how many cells were cut to ``max_length``, and what that left of their genes and values.

    A spec of before, and that of cells cut when they were opened, does not say what was left.
    """
    line = (
        f"{spec['n_cropped']:,} cells ({spec['n_cropped'] / spec['n_cells']:.1%}) were cut to {spec['max_length']:,} "
        "tokens"
    )
    if not spec["n_cropped"] or "within_max_length" not in spec:
        return line
    within, genes = spec["within_max_length"], "known" if values == "zscore" else "detected"
    signal = "sum of |z|" if values == "zscore" else "sum of value / median"
    held = f"{within['genes']:.1%} of a cell's {genes} genes and {within['signal']:.1%} of its {signal}"
    return f"{line}: {held}, on average"


def _of_source(source: dict[str, Any], held: str) -> str:
    return (
        f": {source['n_cells_kept']:,} of {source['n_cells']:,} cells, {source['n_genes_known']:,} of "
        f"{source['n_genes']:,} genes known ({source['share_of_counts_known']:.1%} of {held}), {source['layer']}, ids "
        f"from {source['gene_ids']}"
    )


def _histogram(lengths: np.ndarray) -> list[str]:
    edges = np.unique(np.linspace(lengths.min(), lengths.max() + 1, num=_BARS + 1).astype(np.int64))
    counts, _ = np.histogram(lengths, bins=edges)
    widest = counts.max()
    return [
        f"  {low:>6,} {'█' * round(40 * n / widest):<40} {n:,}".rstrip()
        for n, low in zip(counts, edges[:-1], strict=True)
    ]
