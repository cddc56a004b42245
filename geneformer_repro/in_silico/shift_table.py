"""The result of a screen: one Parquet file, read whole or row group by row group.

A screen of every gene in thousands of cells has millions of rows, one that asks for every affected gene thousands of
millions. So nothing here needs all rows at once but `ShiftTable.table`, which a user asks for.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from geneformer_repro.errors import DataFormatError
from geneformer_repro.files import misfit, new_file

FORMAT = "geneformer_repro/shifts/2"
SIMILARITY, SHIFT, CHANGE = "cosine similarity", "cosine shift", "change of prediction"
COLUMNS: Mapping[str, pa.DataType] = {
    "cell": pa.string(),
    "donor": pa.string(),
    "perturbed": pa.string(),
    "affected": pa.string(),
    "state": pa.string(),
    "dose": pa.float64(),
    "rank": pa.int32(),
    "value": pa.float64(),
    "before": pa.float64(),
    "exact": pa.bool_(),
}
ESTIMATE = "estimate"
"""Column that a first-order screen has besides: the estimate, also of rows whose value is exact."""
_KEY = b"geneformer_repro"
_ALWAYS = ("cell", "perturbed", "exact")
_MOST_ROWS_A_BYTE = 2**10
"""Writers put a million rows at most in a row group, of which what the footer says takes a thousand bytes."""
_SHOWN = 200
"""Most letters of a value, or of another library's message, that an error repeats."""


class ShiftTable:
    """What a screen found: how far each perturbation moved each cell, each state, each other gene.

    Parameters
    ----------
    source
        The rows, or the Parquet file that holds them. Columns: ``cell`` (its name), ``donor`` (null where none was
        named), ``perturbed`` (gene ids joined by "+"), ``affected`` (gene id; null for the cell itself), ``state`` (a
        state of the goal or a class of the classifier; null without), ``dose`` (where a `RankShift` put the gene, else
        null), ``rank`` (place of the perturbed gene in the cell, 0 for the first; null for several genes and for one
        the cell does not express), ``value``, ``before`` (what `value` is the change of: similarity to the state, or
        prediction; null for a similarity), ``exact`` (False where the value is a first-order estimate); then obs
        columns that were asked for.
    metadata
        ``measure`` says what a value is: "cosine similarity" before and after (1: did not move), "cosine shift", the
        change in similarity to a state (above 0: moved towards it), or "change of prediction" of a classifier. Also
        ``goal``, ``perturbation``, ``n_cells``, ``gene_names``, and what made the table.

    See Also
    --------
    perturb : Makes it.
    shift_statistics : From values to a table of genes.

    Examples
    --------
    >>> import geneformer_repro as gf
    >>> shifts = gf.ShiftTable.open("shifts.parquet")
    >>> shifts.measure, shifts.metadata["n_cells"], shifts.metadata["goal"]["goal"]
    ('cosine shift', 12, 'CD19+ B')
    >>> shifts.table[["donor", "perturbed", "state", "rank"]].head(3)
        donor        perturbed           state  rank
    0  donor3  ENSG00000090266  CD14+ Monocyte     0
    1  donor3  ENSG00000090266         CD19+ B     0
    2  donor3  ENSG00000087086  CD14+ Monocyte     1
    """

    def __init__(self, source: pd.DataFrame | Path, metadata: Mapping[str, Any]) -> None:
        self._source, self.metadata = source, dict(metadata)
        if isinstance(source, pd.DataFrame) and (lacking := [name for name in COLUMNS if name not in source]):
            raise DataFormatError(f"The table of shifts lacks the columns {lacking}; found {list(source)}.")

    def __repr__(self) -> str:
        return f"ShiftTable({len(self):,} values ({self.measure}) of {self.metadata.get('n_cells', '?')} cells)"

    def __len__(self) -> int:
        if isinstance(self._source, pd.DataFrame):
            return len(self._source)
        with _reading(self._source):
            return int(pq.read_metadata(self._source).num_rows)

    @property
    def measure(self) -> str:
        """What a value is."""
        return str(self.metadata["measure"])

    @cached_property
    def table(self) -> pd.DataFrame:
        """All rows; of a file they are read at the first use and kept."""
        if isinstance(self._source, pd.DataFrame):
            return self._source
        with _reading(self._source):
            return as_frame(pq.read_table(self._source))

    def blocks(self, columns: Sequence[str] | None = None) -> Iterator[pd.DataFrame]:
        """Yield the rows block by block, in order; of a file one row group at a time is in memory.

        Parameters
        ----------
        columns
            Columns of `COLUMNS` that are wanted; the others are not read, text comes as categories and ``rank`` as
            float, NaN for null. None: all, as in `table`.

        Raises
        ------
        DataFormatError
            The file is damaged; or, of some columns, a row lacks what every row has, or has a rank below 0.

        See Also
        --------
        ShiftTable : Its ``table`` has all rows at once.

        Examples
        --------
        >>> import geneformer_repro as gf
        >>> shifts = gf.ShiftTable.open("shifts.parquet")
        >>> sum(len(block) for block in shifts.blocks(["perturbed", "value"])) == len(shifts)
        True
        """
        if isinstance(self._source, pd.DataFrame) or "table" in self.__dict__:
            yield self.table if columns is None else self._checked(_compact(self.table[list(columns)]))
            return
        for table in self._tables(None if columns is None else list(columns)):
            with _reading(self._source):
                frame = as_frame(table) if columns is None else _compact_frame(table)
            yield frame if columns is None else self._checked(frame)

    def _checked(self, block: pd.DataFrame) -> pd.DataFrame:
        where = "The table of shifts" if isinstance(self._source, pd.DataFrame) else str(self._source)
        for name in _ALWAYS:
            if name in block and block[name].isna().any():
                raise DataFormatError(f"{where}: {block[name].isna().sum()} rows have no {name!r}. Screen again.")
        if "rank" in block and (block["rank"] < 0).any():
            raise DataFormatError(f"{where}: a rank is {block['rank'].min():g}; the first place is 0. Screen again.")
        return block

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write one Parquet file; `metadata` goes into its header.

        See Also
        --------
        ShiftTable.open : Open it again.

        Examples
        --------
        >>> import geneformer_repro as gf
        >>> shifts = gf.ShiftTable.open("shifts.parquet")
        >>> towards = gf.ShiftTable(shifts.table[shifts.table["value"] > 0], shifts.metadata)
        >>> towards.save("towards.parquet")
        >>> len(gf.ShiftTable.open("towards.parquet")) == len(towards)
        True
        """
        write_blocks(Path(path), self._tables(), self.metadata, overwrite=overwrite)

    def _tables(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        if isinstance(self._source, pd.DataFrame):
            yield pa.Table.from_pandas(self._source, schema=_schema(self._source), preserve_index=False)
            return
        with _reading(self._source):
            file = pq.ParquetFile(self._source, read_dictionary=_text(columns or ()))
        with file:
            for group in range(file.num_row_groups):
                with _reading(self._source):
                    table = file.read_row_group(group, columns)
                yield table

    @classmethod
    def open(cls, path: str | Path) -> "ShiftTable":
        """Open a file written by `save` or `perturb`; its rows are not read yet.

        Raises
        ------
        DataFormatError
            The file is missing or not such a table: no Parquet file, of another format, with columns or metadata that
            are lacking, of another type or at odds, or with more rows than its bytes can hold.

        See Also
        --------
        ShiftTable.save : Write one.

        Examples
        --------
        >>> import geneformer_repro as gf
        >>> gf.ShiftTable.open("shifts.parquet").measure
        'cosine shift'
        >>> gf.ShiftTable.open("cells.h5ad")
        Traceback (most recent call last):
            ...
        geneformer_repro.errors.DataFormatError: cells.h5ad: not a readable Parquet file (Parquet magic bytes not found
        in footer. Either the file is corrupted or this is not a parquet file.). Expected the output of perturb.
        """
        try:
            with pq.ParquetFile(path) as file:
                schema, footer = file.schema_arrow, file.metadata
        except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
            raise DataFormatError(
                f"{path}: not a readable Parquet file ({_short(error)}). Expected the output of perturb."
            ) from error
        metadata = _metadata_of(schema, path)
        if missing := set(COLUMNS) - set(schema.names):
            raise DataFormatError(f"{path}: lacks the columns {sorted(missing)}. The file is damaged; run it again.")
        _require_columns(schema, path)
        _require_claims(metadata, schema, path)
        _require_plausible_size(footer, Path(path))
        return cls(Path(path), metadata)


@contextmanager
def _reading(source: Any) -> Iterator[None]:
    """Say of which file it is that something cannot be read."""
    try:
        yield
    except MemoryError:
        raise
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise DataFormatError(
            f"{source}: cannot be read ({_short(error)}). The file is damaged, or gone; screen again."
        ) from error


def _short(what: object) -> str:
    line = next(iter(str(what).splitlines()), "")
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]} …"


def _metadata_of(schema: pa.Schema, path: str | Path) -> dict[str, Any]:
    try:
        metadata = json.loads((schema.metadata or {}).get(_KEY, b"{}"))
    except (ValueError, RecursionError) as error:
        raise DataFormatError(
            f"{path}: its metadata are no JSON ({_short(error)}). Expected the output of perturb; run it again."
        ) from error
    form = metadata.pop("format", None) if isinstance(metadata, dict) else metadata
    if not isinstance(metadata, dict) or form != FORMAT:
        raise DataFormatError(
            f"{path}: expected format {FORMAT!r}, found {_short(repr(form))}. Expected the output of perturb; run it "
            "again."
        )
    return metadata


def _require_columns(schema: pa.Schema, path: str | Path) -> None:
    """Refuse a column that comes twice, or holds what it should not; others than ours may hold what they like."""
    for name, wanted in COLUMNS.items():
        if schema.names.count(name) > 1:
            raise DataFormatError(f"{path}: has the column {name!r} twice. The file was changed; run perturb again.")
        kind = schema.field(name).type
        may_be_nothing = name not in (*_ALWAYS, "value") and pa.types.is_null(kind)
        if not may_be_nothing and not _is_like(kind.value_type if pa.types.is_dictionary(kind) else kind, wanted):
            raise DataFormatError(
                f"{path}: column {name!r} should hold {wanted}, found {kind}. The file was changed; run perturb again."
            )


def _is_like(kind: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether a column of a type can stand for one of another, as text of another layout can."""
    kinds = pa.types
    if kinds.is_string(wanted):
        return bool(kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_string_view(kind))
    if kinds.is_boolean(wanted):
        return bool(kinds.is_boolean(kind))
    return bool(kinds.is_integer(kind) or (kinds.is_floating(wanted) and kinds.is_floating(kind)))


def _has_form(form: Any, *, or_null: bool = False) -> Callable[[Any], bool]:
    """Return a test whether a value from JSON has a form, as `files.misfit` takes it."""
    return lambda value: (value is None and or_null) or misfit(value, form) is None


def _is_perturbation(value: Any) -> bool:
    if misfit(value, {"kind": str, "steps?": [{}]}):
        return False
    genes, anchor = value.get("genes", []), value.get("anchor", "")
    named_well = any(misfit(genes, form) is None for form in (str, [str])) and _has_form(str, or_null=True)(anchor)
    return named_well and all(map(_is_perturbation, value.get("steps", [])))


def _is_agreement(value: Any) -> bool:
    if misfit(value, {"checked_cells": [str], "spearman": {str: {}}}):
        return False
    ranges = value["spearman"].values()
    return all(_has_form(float, or_null=True)(of_cells.get(name)) for of_cells in ranges for name in _OF_AGREEMENT)


_OF_AGREEMENT = ("median", "lowest", "highest")
_GOAL = {"obs": str, "start": str, "goal": str, "alternatives": [str]}
_CLAIMS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "measure": (f"{SIMILARITY!r}, {SHIFT!r} or {CHANGE!r}", lambda value: value in (SIMILARITY, SHIFT, CHANGE)),
    "goal": ("null, or obs, start, goal and alternatives", _has_form(_GOAL, or_null=True)),
    "target": ("null, or name and classes", _has_form({"name": str, "classes?": [str]}, or_null=True)),
    "perturbation": ("kind, genes and the like", _is_perturbation),
    "gene_names": ("a name for each gene", _has_form({str: str})),
    "n_cells?": ("a number of cells", lambda value: type(value) is int and value >= 0),
    "obs?": ("names of columns", _has_form([str])),
    "donor?": ("null, or the name of a column", _has_form(str, or_null=True)),
    "method?": ("'exact' or 'first_order'", lambda value: value in ("exact", "first_order")),
    "first_order?": ("checked_cells and spearman", _is_agreement),
}
"""What metadata must say, or may say where the name ends with "?", and what is accepted."""


def _require_claims(metadata: Mapping[str, Any], schema: pa.Schema, path: str | Path) -> None:
    for key, (expected, is_right) in _CLAIMS.items():
        name = key.removesuffix("?")
        if (name not in metadata and name == key) or (name in metadata and not is_right(metadata[name])):
            claimed = _short(repr(metadata[name])) if name in metadata else "nothing"
            raise DataFormatError(
                f"{path}: its metadata should give {name} as {expected}, found {claimed}. Run perturb again."
            )
    goal, target, measure = metadata["goal"], metadata["target"], metadata["measure"]
    wanted = CHANGE if target else SHIFT if goal else SIMILARITY
    if measure != wanted:
        claimed = f"{'a' if goal else 'no'} goal and {'a' if target else 'no'} target"
        raise DataFormatError(
            f"{path}: its metadata contradict themselves: {measure!r} with {claimed}, where values are {wanted!r}. Run "
            "perturb again."
        )
    promised = [*metadata.get("obs", []), *([ESTIMATE] if metadata.get("method") == "first_order" else [])]
    if lacking := [name for name in promised if name not in schema.names]:
        raise DataFormatError(
            f"{path}: its metadata speak of the columns {lacking}, which it lacks. Run perturb again."
        )


def _require_plausible_size(footer: pq.FileMetaData, path: Path) -> None:
    """Refuse a file that claims more rows than it can hold, before memory is asked for them."""
    groups = [footer.row_group(i) for i in range(footer.num_row_groups)]
    n_rows, size = sum(group.num_rows for group in groups), path.stat().st_size
    most = size * _MOST_ROWS_A_BYTE
    if n_rows != footer.num_rows or n_rows > most or any(group.num_rows < 0 for group in groups):
        raise DataFormatError(
            f"{path}: claims {max(n_rows, footer.num_rows):,} rows in {size:,} bytes. The file is damaged; run perturb "
            "again."
        )


def as_frame(table: pa.Table) -> pd.DataFrame:
    """Return a table with the same types of columns wherever it was read or made."""
    frame = table.replace_schema_metadata(None).to_pandas(integer_object_nulls=True)
    text = dict.fromkeys(_text(COLUMNS), object)
    return frame.astype(text | {"rank": "Int32", "value": "float64", "before": "float64", "dose": "float64"})


def _compact_frame(table: pa.Table) -> pd.DataFrame:
    return _compact(table.replace_schema_metadata(None).unify_dictionaries().to_pandas())


def _compact(frame: pd.DataFrame) -> pd.DataFrame:
    """Make text categories, and ranks numbers with NaN for null: the types that take least memory."""
    kinds = dict.fromkeys(_text(map(str, frame)), pd.CategoricalDtype())
    return frame.astype(kinds | ({"rank": "float64"} if "rank" in frame else {}))


def _text(columns: Iterable[str]) -> list[str]:
    return [name for name in columns if pa.types.is_string(COLUMNS[name])]


def agreement_by_state(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Say of each state how estimates correlate with exact values in the cells that were checked: median and range."""
    of_states = (metadata.get("first_order") or {}).get("spearman") or {}
    return {
        state: f"{of_cells['median']:.2f} ({of_cells['lowest']:.2f} to {of_cells['highest']:.2f})"
        for state, of_cells in of_states.items()
        if of_cells["median"] is not None
    }


def write_blocks(
    path: Path, blocks: Iterator[pa.Table], metadata: Mapping[str, Any], *, overwrite: bool = False
) -> None:
    """Write tables of the same columns one behind the other, each a row group; at least one must come."""
    first = next(blocks)
    header = {_KEY: json.dumps({"format": FORMAT, **metadata})}
    schema = first.schema.with_metadata(header)
    with new_file(path, overwrite=overwrite) as aside, pq.ParquetWriter(aside, schema, compression="zstd") as writer:
        writer.write_table(first.replace_schema_metadata(header))
        for block in blocks:
            writer.write_table(block.replace_schema_metadata(header))


def _schema(frame: pd.DataFrame) -> pa.Schema:
    others = frame.drop(columns=list(COLUMNS))
    return pa.schema([*COLUMNS.items(), *pa.Schema.from_pandas(others, preserve_index=False)])
