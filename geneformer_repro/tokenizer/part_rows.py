"""The cells of a part as rows of a dataset, block by block: left out or encoded, with their obs columns."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from scipy.sparse import csr_matrix

from geneformer_repro.errors import DataFormatError
from geneformer_repro.files import write_table
from geneformer_repro.tokenizer.corpus import Part
from geneformer_repro.tokenizer.encoding import Encoded, Ragged, encode, sum_by_column
from geneformer_repro.tokenizer.folder import SOURCE
from geneformer_repro.tokenizer.genes import GeneMap, is_mitochondrial
from geneformer_repro.tokenizer.quality import ANOTHER_GENOME, NO_KNOWN_GENE, CellFilter, Moments
from geneformer_repro.tokenizer.readers import Block, CountSource
from geneformer_repro.tokenizer.rows import CELL, INPUT_IDS, LENGTH, UNCROPPED, UNCROPPED_LENGTH
from geneformer_repro.tokenizer.vocabulary import Vocabulary


@dataclass(eq=False)
class PartRows:
    """The rows of a part, as Arrow batches; its cells are read once, and what was seen is counted.

    Parameters
    ----------
    source
        Where the counts are.
    part
        Which cells.
    genes
        What the genes of the source are in the vocabulary.
    vocabulary
        Gives the tokens.
    schema
        Columns of the dataset.
    obs
        Those of them that come from ``obs``.
    label
        What the source is called in the dataset.
    cell_filter
        Thresholds for cells.
    moments
        Of the source, for thresholds in standard deviations.
    """

    source: CountSource
    part: Part
    genes: GeneMap
    vocabulary: Vocabulary
    schema: pa.Schema
    obs: Sequence[str]
    label: str
    cell_filter: CellFilter
    moments: Moments | None
    n_cells: int = field(default=0, init=False)
    """Cells that were kept."""
    gene_counts: np.ndarray = field(init=False)
    """Counts of each gene of the source in all cells that were read, also those left out."""
    _n_cropped: int = field(default=0, init=False)
    _left_out: list[tuple[str, str]] = field(default_factory=list, init=False)
    _digest: Any = field(default_factory=hashlib.sha256, init=False)

    def __post_init__(self) -> None:
        self.gene_counts = np.zeros(len(self.genes.position))

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        """Yield a batch a block, of the cells that are kept."""
        thresholds = self.cell_filter.asked
        is_mito = is_mitochondrial(self.source) if thresholds else np.empty(0)
        for block in self.source.blocks(self.part.start, self.part.stop):
            totals = self.source.total_counts(block)
            why = np.full(len(totals), "", dtype=object)
            if thresholds:
                why = self.cell_filter.reasons(self.source, block, totals, is_mito, self.moments)
            why[self._of_another_genome(block) & (why == "")] = ANOTHER_GENOME
            encoded = self._encode(block.counts, totals)
            why[(encoded.n_genes == 0) & (why == "")] = NO_KNOWN_GENE
            rows = np.flatnonzero(why == "")
            if len(rows) < len(why):
                others = np.flatnonzero(why != "")
                names = self.source.cell_names(block.start, block.start + len(why))
                self._left_out += zip(names[others], why[others], strict=True)
                encoded = self._encode(block.counts[rows], totals[rows])
            self.gene_counts += sum_by_column(block.counts)
            if len(rows):
                yield self._batch(block, rows, encoded, totals)

    def _of_another_genome(self, block: Block) -> np.ndarray:
        """Whether most of each cell's counts are in genes of a genome that is not read."""
        other = self.genes.is_left_out
        if not other.any():
            return np.zeros(block.counts.shape[0], dtype=bool)
        return 2 * (block.counts @ other.astype(np.float64)) > np.asarray(block.counts.sum(axis=1)).ravel()

    def _encode(self, counts: csr_matrix, totals: np.ndarray, *, crop: bool = True) -> Encoded:
        return encode(counts, self.vocabulary, position=self.genes.position, n_counts=totals, crop=crop)

    def _batch(self, block: Block, rows: np.ndarray, encoded: Encoded, totals: np.ndarray) -> pa.RecordBatch:
        schema, stop = self.schema, block.start + len(totals)
        room = self.vocabulary.max_length - 2 * self.vocabulary.has_cls
        self.n_cells += len(rows)
        self._n_cropped += int((encoded.n_genes > room).sum())
        columns: dict[str, Any] = {
            CELL: pa.array(self.source.cell_names(block.start, stop)[rows], pa.string()),
            INPUT_IDS: _lists(encoded.tokens),
            LENGTH: pa.array(encoded.tokens.lengths, pa.int32()),
        }
        if UNCROPPED in schema.names:
            whole = self._encode(block.counts[rows], totals[rows], crop=False).tokens
            columns |= {UNCROPPED: _lists(whole), UNCROPPED_LENGTH: pa.array(whole.lengths, pa.int32())}
        if SOURCE in schema.names:
            columns[SOURCE] = pa.repeat(pa.scalar(self.label, pa.string()), len(rows))
        for name in self.obs:
            column = self.source.obs(name, block.start, stop).iloc[rows]
            columns[name] = _as_arrow(self.source, column, name, schema.field(name).type)
        batch = pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)
        self._digest.update(batch.serialize())
        return batch

    def write_left_out(self, path: Path) -> None:
        """Write a line a cell left out."""
        table = pd.DataFrame(self._left_out, columns=[CELL, "why"])
        table.insert(0, SOURCE, self.label)
        write_table(table, path, index=False, header=False)

    def report(self) -> dict[str, Any]:
        """Return what the part came to."""
        return {
            "n_cells": self.n_cells,
            "n_cropped": self._n_cropped,
            "left_out": dict(Counter(why for _, why in self._left_out)),
            "digest": self._digest.hexdigest(),
        }


def _lists(tokens: Ragged) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(tokens.offsets, pa.int32()), pa.array(tokens.values))


def _as_arrow(source: CountSource, column: pd.Series, name: str, kind: pa.DataType) -> pa.Array:
    if pd.api.types.is_datetime64_any_dtype(column):
        column = column.map(pd.Timestamp.isoformat, na_action="ignore")
    if column.dtype == np.float16:  # Arrow casts none
        column = column.astype(np.float32)
    if pa.types.is_string(kind):
        column = column.astype("string").astype(object)
    try:
        return pa.array(column, from_pandas=True).cast(kind)
    except pa.ArrowException as error:
        raise DataFormatError(f"{source.name}: the obs column {name!r} cannot be written as {kind}: {error}") from error
