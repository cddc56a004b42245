"""The result of a screen: one Parquet file, read whole or row group by row group.

A screen of every gene in thousands of cells has millions of rows, one that asks for every affected gene thousands of
millions. So nothing here needs all rows at once but `ShiftTable.table`, which a user asks for.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from geneformer_repro.errors import DataFormatError
from geneformer_repro.files import new_file

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
    """

    def __init__(self, source: pd.DataFrame | Path, metadata: Mapping[str, Any]) -> None:
        self._source, self.metadata = source, dict(metadata)

    def __repr__(self) -> str:
        return f"ShiftTable({len(self):,} values ({self.measure}) of {self.metadata.get('n_cells', '?')} cells)"

    def __len__(self) -> int:
        if isinstance(self._source, pd.DataFrame):
            return len(self._source)
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
        return as_frame(pq.read_table(self._source))

    def blocks(self, columns: Sequence[str] | None = None) -> Iterator[pd.DataFrame]:
        """Yield the rows part by part, in order; of a file one row group at a time is in memory.

        Parameters
        ----------
        columns
            Columns of `COLUMNS` that are wanted; the others are not read, text comes as categories and ``rank`` as
            float, NaN for null. None: all, as in `table`.
        """
        if isinstance(self._source, pd.DataFrame) or "table" in self.__dict__:
            yield self.table if columns is None else _compact(self.table[list(columns)])
        elif columns is None:
            yield from map(as_frame, self._parts())
        else:
            yield from map(_compact_frame, self._parts(list(columns)))

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write one Parquet file; `metadata` goes into its header."""
        write_blocks(Path(path), self._parts(), self.metadata, overwrite=overwrite)

    def _parts(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        if isinstance(self._source, pd.DataFrame):
            yield pa.Table.from_pandas(self._source, schema=_schema(self._source), preserve_index=False)
            return
        with pq.ParquetFile(self._source, read_dictionary=_text(columns or ())) as file:
            for group in range(file.num_row_groups):
                yield file.read_row_group(group, columns)

    @classmethod
    def open(cls, path: str | Path) -> "ShiftTable":
        """Open a file written by `save` or `perturb`; its rows are not read yet.

        Raises
        ------
        DataFormatError
            The file is missing or not such a table.
        """
        try:
            schema = pq.read_schema(path)
        except (OSError, pa.ArrowInvalid) as error:
            raise DataFormatError(
                f"{path}: not a readable Parquet file ({error}). Expected the output of perturb."
            ) from error
        metadata = json.loads((schema.metadata or {}).get(_KEY, b"{}"))
        if metadata.pop("format", None) != FORMAT:
            found = json.loads((schema.metadata or {}).get(_KEY, b"{}")).get("format")
            raise DataFormatError(
                f"{path}: expected format {FORMAT!r}, found {found!r}. Expected the output of perturb; run it again."
            )
        if missing := set(COLUMNS) - set(schema.names):
            raise DataFormatError(f"{path}: lacks the columns {sorted(missing)}. The file is damaged; run it again.")
        return cls(Path(path), metadata)


def as_frame(table: pa.Table) -> pd.DataFrame:
    """Give the columns the same types however the table was made."""
    frame = table.replace_schema_metadata(None).to_pandas(integer_object_nulls=True)
    text = dict.fromkeys(_text(COLUMNS), object)
    return frame.astype(text | {"rank": "Int32", "value": "float64", "before": "float64", "dose": "float64"})


def _compact_frame(table: pa.Table) -> pd.DataFrame:
    return _compact(table.unify_dictionaries().to_pandas())


def _compact(frame: pd.DataFrame) -> pd.DataFrame:
    """Give columns the types that cost least and know what is missing."""
    kinds = dict.fromkeys(_text(map(str, frame)), pd.CategoricalDtype())
    return frame.astype(kinds | ({"rank": "float64"} if "rank" in frame else {}))


def _text(columns: Iterable[str]) -> list[str]:
    return [name for name in columns if pa.types.is_string(COLUMNS[name])]


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
