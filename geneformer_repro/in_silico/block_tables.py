"""A long table in one Parquet file, read whole or row group by row group; its metadata stand in the header.

A screen of every gene in thousands of cells has millions of rows, and so has an explanation. So nothing here needs all
rows at once but `BlockTable.table`, which a user asks for. A file that was damaged or changed is refused in one line.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeGuard

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from geneformer_repro.errors import DataFormatError
from geneformer_repro.files import misfit, new_file

if TYPE_CHECKING:
    import pandas as pd  # only frames need it, and it takes longer than a command may to start

_KEY = b"geneformer_repro"
_MOST_ROWS_A_BYTE = 2**10
"""Writers put a million rows at most in a row group, of which what the footer says takes a thousand bytes."""
_SHOWN = 200
"""Most letters of a value, or of another library's message, that an error repeats."""

Claims = Mapping[str, tuple[str, Callable[[Any], bool]]]
"""What metadata must say, or may say where the name ends with "?", and what is accepted."""


@dataclass(frozen=True)
class Form:
    """What a kind of table holds."""

    name: str
    """Of the format, with its version."""
    what: str
    """What the table is called in messages."""
    made_by: str
    """The function that makes it."""
    again: str
    """What a user does when a file is damaged."""
    columns: Mapping[str, pa.DataType]
    """Text, 32-bit places (0 or above), numbers, and True or False."""
    never_null: tuple[str, ...]
    """Columns that every row has."""
    not_only_null: tuple[str, ...]
    """Columns that must be of their type even where they hold nothing."""
    claims: Claims

    @property
    def text(self) -> list[str]:
        """Columns of text."""
        return [name for name, kind in self.columns.items() if pa.types.is_string(kind)]

    @property
    def places(self) -> list[str]:
        """Columns of places."""
        return [name for name, kind in self.columns.items() if pa.types.is_int32(kind)]

    def as_frame(self, table: pa.Table) -> "pd.DataFrame":
        """Return a table with the same types of columns wherever it was read or made."""
        frame = table.replace_schema_metadata(None).to_pandas(integer_object_nulls=True)
        numbers = [name for name, kind in self.columns.items() if pa.types.is_float64(kind)]
        kinds = (dict.fromkeys(names, kind) for names, kind in ((self.text, object), (self.places, "Int32")))
        return frame.astype({key: kind for of_kind in kinds for key, kind in of_kind.items()}).astype(
            dict.fromkeys(numbers, "float64")
        )

    def compact(self, frame: "pd.DataFrame") -> "pd.DataFrame":
        """Make text categories, and places numbers with NaN for null: the types that take least memory."""
        import pandas as pd

        text = {name: pd.CategoricalDtype() for name in self.text if name in frame}
        return frame.astype(text | {name: "float64" for name in self.places if name in frame})

    def compact_frame(self, table: pa.Table) -> "pd.DataFrame":
        """Return a table whose text is in dictionaries, in the types of `compact`."""
        return self.compact(table.replace_schema_metadata(None).unify_dictionaries().to_pandas())

    def schema(self, frame: "pd.DataFrame") -> pa.Schema:
        """Return the types of a table, further columns included."""
        others = frame.drop(columns=list(self.columns))
        return pa.schema([*self.columns.items(), *pa.Schema.from_pandas(others, preserve_index=False)])

    def write(
        self, path: Path, blocks: Iterator[pa.Table], metadata: Mapping[str, Any], *, overwrite: bool = False
    ) -> None:
        """Write tables of the same columns one behind the other, each a row group; at least one must come."""
        first = next(blocks)
        header = {_KEY: json.dumps({"format": self.name, **metadata})}
        schema = first.schema.with_metadata(header)
        with new_file(path, overwrite=overwrite) as aside, pq.ParquetWriter(aside, schema, compression="zstd") as out:
            out.write_table(first.replace_schema_metadata(header))
            for block in blocks:
                out.write_table(block.replace_schema_metadata(header))


class BlockTable:
    """A long table, in memory or in a file."""

    form: ClassVar[Form]

    def __init__(self, source: "pd.DataFrame | Path", metadata: Mapping[str, Any]) -> None:
        self._source, self.metadata = source, dict(metadata)
        if _is_frame(source) and (lacking := [name for name in self.form.columns if name not in source]):
            raise DataFormatError(f"The {self.form.what} lacks the columns {lacking}; found {list(source)}.")

    def __len__(self) -> int:
        if _is_frame(self._source):
            return len(self._source)
        with self._reading():
            return int(pq.read_metadata(self._source).num_rows)

    @property
    def measure(self) -> str:
        """What a value is."""
        return str(self.metadata["measure"])

    @cached_property
    def table(self) -> "pd.DataFrame":
        """All rows; of a file they are read at the first use and kept."""
        if _is_frame(self._source):
            return self._source
        with self._reading():
            return self.form.as_frame(pq.read_table(self._source))

    def _blocks(self, columns: Sequence[str] | None) -> "Iterator[pd.DataFrame]":
        if _is_frame(self._source) or "table" in self.__dict__:
            yield self.table if columns is None else self._checked(self.form.compact(self.table[list(columns)]))
            return
        for table in self._tables(None if columns is None else list(columns)):
            with self._reading():
                frame = self.form.as_frame(table) if columns is None else self.form.compact_frame(table)
            yield frame if columns is None else self._checked(frame)

    def n_distinct(self, column: str) -> int:
        """Return how many values a column of text has, of a file row group by row group and without pandas.

        Raises
        ------
        DataFormatError
            The file is damaged, or a row lacks a value that each has.

        See Also
        --------
        ShiftTable.blocks : The rows.

        Examples
        --------
        >>> import geneformer_repro as gf
        >>> shifts = gf.ShiftTable.open("shifts.parquet")
        >>> shifts.n_distinct("cell") == shifts.table["cell"].nunique()
        True
        """
        values: set[str | None] = set()
        for table in self._tables([column]):
            for chunk in table.column(column).chunks:
                values.update(chunk.unique().to_pylist())
        if None in values and column in self.form.never_null:
            raise DataFormatError(f"{self._source}: rows have no {column!r}. {self.form.again.capitalize()}.")
        return len(values - {None})

    def _checked(self, block: "pd.DataFrame") -> "pd.DataFrame":
        where = f"The {self.form.what}" if _is_frame(self._source) else str(self._source)
        again = self.form.again.capitalize()
        for name in self.form.never_null:
            if name in block and block[name].isna().any():
                raise DataFormatError(f"{where}: {block[name].isna().sum()} rows have no {name!r}. {again}.")
        for name in self.form.places:
            if name in block and (block[name] < 0).any():
                raise DataFormatError(f"{where}: a {name} is {block[name].min():g}; the first place is 0. {again}.")
        return block

    def _save(self, path: Path, *, overwrite: bool) -> None:
        self.form.write(path, self._tables(), self.metadata, overwrite=overwrite)

    def _tables(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        if _is_frame(self._source):
            schema = self.form.schema(self._source)
            yield pa.Table.from_pandas(self._source, schema=schema, preserve_index=False)
            return
        with self._reading():
            text = [name for name in columns or () if name in self.form.text]
            file = pq.ParquetFile(self._source, read_dictionary=text)
        with file:
            for group in range(file.num_row_groups):
                with self._reading():
                    table = file.read_row_group(group, columns)
                yield table

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Say of which file it is that something cannot be read."""
        try:
            yield
        except MemoryError:
            raise
        except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
            raise DataFormatError(
                f"{self._source}: cannot be read ({short(error)}). The file is damaged, or gone; {self.form.again}."
            ) from error

    @classmethod
    def _opened(cls, path: str | Path) -> Self:
        form = cls.form
        try:
            with pq.ParquetFile(path) as file:
                schema, footer = file.schema_arrow, file.metadata
        except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
            raise DataFormatError(
                f"{path}: not a readable Parquet file ({short(error)}). Expected the output of {form.made_by}."
            ) from error
        metadata = _metadata_of(form, schema, path)
        if missing := set(form.columns) - set(schema.names):
            raise DataFormatError(f"{path}: lacks the columns {sorted(missing)}. The file is damaged; run it again.")
        _require_columns(form, schema, path)
        _require_claims(form, metadata, path)
        cls._require_agreement(metadata, schema, path)
        _require_plausible_size(form, footer, Path(path))
        return cls(Path(path), metadata)

    @classmethod
    def _require_agreement(cls, metadata: Mapping[str, Any], schema: pa.Schema, path: str | Path) -> None:
        """Refuse a file whose metadata contradict themselves, or speak of columns that it lacks."""


def taken(values: Sequence[Any] | np.ndarray, rows: np.ndarray, kind: pa.DataType | None = None) -> pa.Array:
    """Return a column whose rows are some of the values, by number; text unless another type is given."""
    return pa.array(list(values), pa.string() if kind is None else kind).take(pa.array(rows))


def carried(obs: "pd.DataFrame", rows: np.ndarray) -> pa.Table:
    """Return obs columns of some rows, by number, of the types that they have over all rows."""
    of_all = pa.Schema.from_pandas(obs, preserve_index=False)  # some rows may know less of a column's type
    return pa.Table.from_pandas(obs.iloc[rows], of_all, preserve_index=False).replace_schema_metadata(None)


def _is_frame(source: "pd.DataFrame | Path") -> "TypeGuard[pd.DataFrame]":
    return not isinstance(source, Path)


def short(what: object) -> str:
    """Return the beginning of a value, or of a message's first line, as errors repeat it."""
    line = next(iter(str(what).splitlines()), "")
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]} …"


def format_of(path: str | Path) -> str | None:
    """Return what a Parquet file calls its format, or None if it is none of this package."""
    try:
        return str(json.loads((pq.read_schema(path).metadata or {})[_KEY])["format"])
    except (OSError, pa.ArrowException, UnicodeDecodeError, KeyError, ValueError, TypeError, RecursionError):
        return None


def _metadata_of(form: Form, schema: pa.Schema, path: str | Path) -> dict[str, Any]:
    expected = f"Expected the output of {form.made_by}; run it again."
    try:
        metadata = json.loads((schema.metadata or {}).get(_KEY, b"{}"))
    except (ValueError, RecursionError) as error:
        raise DataFormatError(f"{path}: its metadata are no JSON ({short(error)}). {expected}") from error
    found = metadata.pop("format", None) if isinstance(metadata, dict) else metadata
    if not isinstance(metadata, dict) or found != form.name:
        raise DataFormatError(f"{path}: expected format {form.name!r}, found {short(repr(found))}. {expected}")
    return metadata


def _require_columns(form: Form, schema: pa.Schema, path: str | Path) -> None:
    """Refuse a column that comes twice, or holds what it should not; others than ours may hold what they like."""
    changed = f"The file was changed; run {form.made_by} again."
    for name, wanted in form.columns.items():
        if schema.names.count(name) > 1:
            raise DataFormatError(f"{path}: has the column {name!r} twice. {changed}")
        kind = schema.field(name).type
        may_be_nothing = name not in form.not_only_null and pa.types.is_null(kind)
        if not may_be_nothing and not _is_like(kind.value_type if pa.types.is_dictionary(kind) else kind, wanted):
            raise DataFormatError(f"{path}: column {name!r} should hold {wanted}, found {kind}. {changed}")


def _is_like(kind: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether a column of a type can stand for one of another, as text of another layout can."""
    kinds = pa.types
    if kinds.is_string(wanted):
        return bool(kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_string_view(kind))
    if kinds.is_boolean(wanted):
        return bool(kinds.is_boolean(kind))
    return bool(kinds.is_integer(kind) or (kinds.is_floating(wanted) and kinds.is_floating(kind)))


def has_form(form: Any, *, or_null: bool = False) -> Callable[[Any], bool]:
    """Return a test whether a value from JSON has a form, as `files.misfit` takes it."""
    return lambda value: (value is None and or_null) or misfit(value, form) is None


def _require_claims(form: Form, metadata: Mapping[str, Any], path: str | Path) -> None:
    for key, (expected, is_right) in form.claims.items():
        name = key.removesuffix("?")
        if (name not in metadata and name == key) or (name in metadata and not is_right(metadata[name])):
            claimed = short(repr(metadata[name])) if name in metadata else "nothing"
            raise DataFormatError(
                f"{path}: its metadata should give {name} as {expected}, found {claimed}. Run {form.made_by} again."
            )


def require_promised(columns: Iterable[str], schema: pa.Schema, path: str | Path, *, made_by: str) -> None:
    """Refuse a file that lacks columns of which its metadata speak."""
    if lacking := [name for name in columns if name not in schema.names]:
        raise DataFormatError(
            f"{path}: its metadata speak of the columns {lacking}, which it lacks. Run {made_by} again."
        )


def _require_plausible_size(form: Form, footer: pq.FileMetaData, path: Path) -> None:
    """Refuse a file that claims more rows than it can hold, before memory is asked for them."""
    groups = [footer.row_group(i) for i in range(footer.num_row_groups)]
    n_rows, size = sum(group.num_rows for group in groups), path.stat().st_size
    most = size * _MOST_ROWS_A_BYTE
    if n_rows != footer.num_rows or n_rows > most or any(group.num_rows < 0 for group in groups):
        raise DataFormatError(
            f"{path}: claims {max(n_rows, footer.num_rows):,} rows in {size:,} bytes. The file is damaged; run "
            f"{form.made_by} again."
        )
