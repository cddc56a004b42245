"""The cells of a part as rows of a dataset, block by block: left out or encoded, with their obs columns.

`Tokenisation` knows what is the same for all parts, and any process can do a part of it; `PartRows` are those of one.
"""

import hashlib
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache, partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from scipy.sparse import csr_matrix

import geneformer_repro.unfinished as unfinished
from geneformer_repro.errors import DataFormatError, InputError
from geneformer_repro.files import new_file, read_json, sha256, write_table
from geneformer_repro.sharing import by_threads
from geneformer_repro.tokenizer.corpus import Corpus, Job, Part, is_finished, parts_of, write_report
from geneformer_repro.tokenizer.encoding import Encoded, Ragged, encode, encode_stored, joined, sum_by_column
from geneformer_repro.tokenizer.folder import schema_of
from geneformer_repro.tokenizer.genes import GeneMap, is_mitochondrial, reconcile, require_known
from geneformer_repro.tokenizer.measures import Order, Values, n_values
from geneformer_repro.tokenizer.quality import ANOTHER_GENOME, FILTER_PASS, NO_KNOWN_GENE, CellFilter, moments_of
from geneformer_repro.tokenizer.readers import Block, CountSource
from geneformer_repro.tokenizer.summary import (
    CELL,
    FORMAT,
    INPUT_IDS,
    LENGTH,
    OWN_COLUMNS,
    SOURCE,
    UNCROPPED,
    UNCROPPED_LENGTH,
)
from geneformer_repro.tokenizer.vocabulary import Vocabulary

VERSION = 4
"""Of the rows: raised when another version of the package makes other ones, so that it does not go on with these."""
DATASET, REPORTS, VOCABULARY = "dataset", "reports", "vocabulary"
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
_KINDS = ("bool", "int64", "float64", "string")
"""Types of carried columns; of two sources' types the later one holds both."""


@dataclass(frozen=True)
class Options:
    """What decides the rows, as JSON can hold it."""

    obs: list[str]
    values: Values
    log2: bool
    order: Order
    layer: str | None
    gene_ids: str | None
    orthologs: dict[str, str]
    min_known_share: float
    cell_filter: dict[str, Any]
    uncropped: bool


class Tokenisation(Job):
    """The work of one call."""

    def __init__(self, corpus: Corpus, vocabulary: Vocabulary, options: Options) -> None:
        self.corpus, self.vocabulary, self.options = corpus, vocabulary, options
        self.cell_filter = CellFilter(**options.cell_filter)
        self.kinds = dict.fromkeys(options.obs, _KINDS[0])
        self.genes = lru_cache(maxsize=4)(self._genes)
        self.moments = lru_cache(maxsize=4)(self._moments)

    @classmethod
    def from_plan(cls, work: Path) -> "Tokenisation":
        """Make the job of another process."""
        plan = unfinished.read_plan(work)
        job = cls(Corpus.from_plan(plan), Vocabulary.load(work / VOCABULARY), Options(**plan["options"]))
        job.kinds = plan["kinds"]
        job.use(work)
        return job

    # Before the work

    def prepare(self) -> None:
        """Look at every source: its columns, its cells' names, its genes, a few counts."""
        self.corpus.check(self._look_at)

    def _look_at(self, i: int, source: CountSource) -> None:
        kinds = dict(self.kinds)
        for name in self.options.obs:
            if name in (*OWN_COLUMNS, *((SOURCE,) if len(self.corpus) > 1 else ())):
                raise InputError(
                    f"{source.name}: the obs column {name!r} has the name of a column of the dataset; rename it first."
                )
            kind = _kind_of(source.obs(name, 0, 1))
            kinds[name] = max(kinds[name], kind, key=_KINDS.index)
        self.cell_filter.check(source)
        source.check_cell_names()
        counts = np.zeros(len(source.gene_ids)) if source.stored_by_gene else _sampled_counts(source)
        self.require_known(i, counts, min_share=self.options.min_known_share / 2)
        self.kinds = kinds

    def require_known(self, i: int, counts: np.ndarray, *, min_share: float) -> None:
        """Raise if genes that the vocabulary knows hold less than this share of the counts (or values) of a source."""
        require_known(self.corpus.open(i), self.genes(i), counts, self.vocabulary, min_share=min_share)

    def _genes(self, i: int) -> GeneMap:
        return reconcile(self.corpus.open(i), self.vocabulary, self.options.orthologs)

    @cached_property
    def plan(self) -> dict[str, Any]:
        """What makes two calls the same work, and all that another process needs to know of it."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "vocabulary": self.vocabulary.fingerprint,
            **self.corpus.as_plan(),
            "options": asdict(self.options),
            "kinds": self.kinds,
            "failed": {str(i): message for i, message in self.corpus.failed.items()},
        }

    # The work

    @cached_property
    def parts(self) -> list[Part]:
        """All parts, of damaged sources too."""
        return parts_of(self.corpus.sizes)

    def run(self, work: Path) -> None:
        """Do what is not done yet."""
        if (work / REPORTS).exists() and not (work / DATASET).exists():
            shutil.rmtree(work / REPORTS)  # the rows were delivered, and are gone from there
        for name in (DATASET, REPORTS, VOCABULARY):
            (work / name).mkdir(exist_ok=True)
        if self.corpus.is_shared:
            self.vocabulary.write_into(work / VOCABULARY)
        self.use(work)
        self.deal_out_all()
        if self.cell_filter.needs_moments:
            self.share("measure", self._not_done("moments"))
        self.share("tokenize", self._not_done("json"))

    def _not_done(self, suffix: str) -> list[Part]:
        return [part for part in self.parts if not is_finished(self.report_file(part, suffix))]

    def report_file(self, part: Part, suffix: str) -> Path:
        """Where a part's report is: "json" (written last), "moments", "counts.npy" or "left_out.tsv"."""
        return self.work / REPORTS / f"{part.number:06d}.{suffix}"

    def arrow_file(self, part: Part) -> Path:
        """Where a part's rows are; there is no such file for a part without rows."""
        return self.work / DATASET / f"data-{part.number:06d}.arrow"

    @cached_property
    def arrow_files(self) -> list[str]:
        """Names of the files of all parts with rows, in their order."""
        files = [self.arrow_file(part) for part in self.parts if part.source not in self.corpus.failed]
        return [file.name for file in files if file.exists()]

    @cached_property
    def schema(self) -> pa.Schema:
        """Columns of the dataset."""
        obs = {name: pa.type_for_alias(kind) for name, kind in self.kinds.items()}
        return schema_of(self.vocabulary, obs, uncropped=self.options.uncropped, source=len(self.corpus) > 1)

    def _moments(self, i: int) -> np.ndarray | None:
        if not self.cell_filter.needs_moments:
            return None
        files = [self.report_file(part, "moments") for part in self.parts if part.source == i]
        return sum((np.array(read_json(file)["moments"]) for file in files), np.zeros((2, 3)))

    def deal_out(self, part: Part) -> None:
        """Copy a matrix stored by gene into blocks of cells, of which some are then looked at."""
        super().deal_out(part)
        counts = _sampled_counts(self.corpus.open(part.source))
        self.require_known(part.source, counts, min_share=self.options.min_known_share / 2)

    def measure(self, part: Part) -> None:
        """Write the moments of a part."""
        source = self.corpus.open(part.source)
        is_mito, moments = is_mitochondrial(source), np.zeros((2, 3))
        for block in source.blocks(part.start, part.stop):
            moments += moments_of(block, source.total_counts(block), is_mito)
        write_report(self.report_file(part, "moments"), {"moments": moments.tolist()}, {})

    def tokenize(self, part: Part) -> None:
        """Write the rows and the report of a part."""
        arrow, rows, digest = self.arrow_file(part), PartRows(self, part), hashlib.sha256()
        with new_file(arrow, overwrite=True) as aside, aside.open("wb") as file:
            for message in chain([self.schema.serialize()], rows, [_END_OF_STREAM]):
                digest.update(message)
                file.write(message)
        if not rows.n_cells:
            arrow.unlink()
        written = [self.report_file(part, suffix) for suffix in ("counts.npy", "left_out.tsv")]
        for path, write in zip(
            written, (lambda aside: np.save(aside, rows.gene_counts), rows.write_left_out), strict=True
        ):
            with new_file(path, overwrite=True) as aside:
                write(aside)
        digests = {path: sha256(path) for path in written}
        digests |= {arrow: digest.hexdigest()} if rows.n_cells else {}
        write_report(self.report_file(part, "json"), rows.report(), digests)


def _sampled_counts(source: CountSource) -> np.ndarray:
    """Return the counts (or values) of each gene in some cells of a source, evenly spread over it."""
    return sum((_of_each_gene(source, block) for block in source.sample()), np.zeros(1))


def _of_each_gene(source: CountSource, block: Block) -> np.ndarray:
    """Return the sum of each gene's counts or expression; of z-scores the number of values."""
    return n_values(block.counts) if source.measure.values == "zscore" else sum_by_column(block.counts)


def _kind_of(column: pd.Series) -> str:
    if isinstance(column.dtype, pd.CategoricalDtype) or not pd.api.types.is_numeric_dtype(column):
        return "string"
    if pd.api.types.is_bool_dtype(column):
        return "bool"
    return "int64" if pd.api.types.is_integer_dtype(column) else "float64"


class _Kept(NamedTuple):
    """Which cells of a block are kept, their tokens, and what else was seen of it."""

    block: slice
    """The cells of the source that it holds."""
    rows: np.ndarray
    """Those of it that are kept."""
    encoded: Encoded
    whole: Encoded | None
    """All ranked genes, where these are written too."""
    gene_counts: np.ndarray
    n_below_zero: int
    left_out: list[tuple[str, str]]


def _joined(pieces: Sequence[_Kept]) -> _Kept:
    """Return consecutive cells as one block."""
    first = pieces[0]
    if len(pieces) == 1:
        return first
    return _Kept(
        slice(first.block.start, pieces[-1].block.stop),
        np.concatenate([piece.rows + piece.block.start - first.block.start for piece in pieces]),
        joined([piece.encoded for piece in pieces]),
        None if first.whole is None else joined([piece.whole for piece in pieces if piece.whole is not None]),
        sum((piece.gene_counts for piece in pieces), np.zeros(1)),
        sum(piece.n_below_zero for piece in pieces),
        [cell for piece in pieces for cell in piece.left_out],
    )


class PartRows:
    """The rows of a part, as Arrow batches; its cells are read once, and what was seen is counted.

    Attributes
    ----------
    n_cells
        Cells that were kept.
    gene_counts
        Counts of each gene of the source in all cells that were read, also those left out; or expression; of z-scores
        the number of values.
    """

    def __init__(self, job: Tokenisation, part: Part) -> None:
        self.part, self._job = part, job
        columns = [*job.options.obs, *([FILTER_PASS] if job.cell_filter.filter_pass else [])]
        self._source = job.corpus.open(part.source).holding(columns, part.start, part.stop)
        self._genes = job.genes(part.source)
        self._is_mito = is_mitochondrial(self._source) if job.cell_filter.asked else np.empty(0)
        self.n_cells = self._n_cropped = self._n_below_zero = 0
        self._genes_within = self._signal_within = 0.0
        self.gene_counts = np.zeros(len(self._genes.position))
        self._left_out: list[tuple[str, str]] = []
        self._digest = hashlib.sha256()

    def __iter__(self) -> Iterator[pa.Buffer]:
        """Yield a batch a block, of the cells that are kept, as it stands in an Arrow stream."""
        for kept in self._blocks():
            self.gene_counts += kept.gene_counts
            self._n_below_zero += kept.n_below_zero
            self._left_out += kept.left_out
            if len(kept.rows):
                message = self._batch(kept).serialize()
                self._digest.update(message)
                yield message

    def _blocks(self) -> Iterator[_Kept]:
        """Read and encode block after block; of counts, whose sums are exact in any order, half a block at a time."""
        size, halves = self._source.block_cells, 2 if self._source.measure.values == "counts" else 1
        step = max(1, size // halves)
        starts = range(self.part.start, self.part.stop, step)
        kept = by_threads(starts, partial(self._kept_of, size=step), self._job.threads)
        while pieces := list(islice(kept, halves)):
            yield _joined(pieces)

    def _kept_of(self, start: int, *, size: int) -> _Kept:
        """Read and encode some cells."""
        stop = min(start + size, self.part.stop)
        if self._is_plain and (kept := self._kept_as_stored(start, stop)):
            return kept
        block = self._source.block(start, stop)
        totals, cell_filter = self._source.total_counts(block), self._job.cell_filter
        why = np.full(len(totals), "", dtype=object)
        if cell_filter.asked:
            moments = self._job.moments(self.part.source)
            why = cell_filter.reasons(self._source, block, totals, self._is_mito, moments)
        why[self._of_another_genome(block) & (why == "")] = ANOTHER_GENOME
        encoded = self._encode(block.counts, totals)
        why[(encoded.n_genes == 0) & (why == "")] = NO_KNOWN_GENE
        rows, counts, left_out = np.flatnonzero(why == ""), block.counts, []
        if len(rows) < len(why):
            others = np.flatnonzero(why != "")
            names = self._source.cell_names(start, start + len(why))
            left_out = list(zip(names[others], why[others], strict=True))
            counts, totals = block.counts[rows], totals[rows]
            encoded = self._encode(counts, totals)
        return _Kept(
            slice(start, start + len(why)),
            rows,
            encoded,
            self._encode(counts, totals, crop=False) if self._job.options.uncropped else None,
            _of_each_gene(self._source, block),
            block.n_below_zero,
            left_out,
        )

    @cached_property
    def _is_plain(self) -> bool:
        """Whether counts can be encoded as they are stored: no cell is asked anything but whether it has a gene."""
        needs_counts = self._job.cell_filter.asked or self._job.options.uncropped or self._genes.is_left_out.any()
        return self._source.measure.values == "counts" and not needs_counts

    def _kept_as_stored(self, start: int, stop: int) -> _Kept | None:
        """Encode cells as they are stored; None if they are not all counts, or one has no known gene."""
        stored, totals = self._source.as_stored(start, stop), self._source.given_totals(start, stop)
        found = encode_stored(stored, self._job.vocabulary, position=self._genes.position, n_counts=totals)
        if found is None or not found.encoded.n_genes.all():
            return None
        if totals is not None:
            self._source.require_totals(totals, found.sums, start)
        return _Kept(slice(start, stop), np.arange(stop - start), found.encoded, None, found.gene_counts, 0, [])

    def _of_another_genome(self, block: Block) -> np.ndarray:
        """Whether most of each cell's counts are in genes of a genome that is not read."""
        other = self._genes.is_left_out
        if not other.any() or self._source.measure.values == "zscore":
            return np.zeros(block.counts.shape[0], dtype=bool)
        return 2 * (block.counts @ other.astype(np.float64)) > np.asarray(block.counts.sum(axis=1)).ravel()

    def _encode(self, counts: csr_matrix, totals: np.ndarray, *, crop: bool = True) -> Encoded:
        return encode(counts, self._job.vocabulary, position=self._genes.position, n_counts=totals, crop=crop)

    def _batch(self, kept: _Kept) -> pa.RecordBatch:
        schema, encoded, rows = self._job.schema, kept.encoded, kept.rows
        room = self._job.vocabulary.max_length - 2 * self._job.vocabulary.has_cls
        self.n_cells += len(rows)
        self._n_cropped += int((encoded.n_genes > room).sum())
        self._genes_within += float(np.minimum(1, room / encoded.n_genes).sum())
        self._signal_within += float(encoded.signal.sum())
        columns: dict[str, Any] = {
            CELL: pa.array(self._source.cell_names(kept.block.start, kept.block.stop)[rows], pa.string()),
            INPUT_IDS: _lists(encoded.tokens),
            LENGTH: pa.array(encoded.tokens.lengths, pa.int32()),
        }
        if kept.whole is not None:
            columns |= {
                UNCROPPED: _lists(kept.whole.tokens),
                UNCROPPED_LENGTH: pa.array(kept.whole.n_genes, pa.int32()),
            }
        if SOURCE in schema.names:
            columns[SOURCE] = pa.repeat(pa.scalar(self._job.corpus.labels[self.part.source], pa.string()), len(rows))
        for name in self._job.options.obs:
            column = self._source.obs(name, kept.block.start, kept.block.stop).iloc[rows]
            columns[name] = _as_arrow(self._source, column, name, schema.field(name).type)
        return pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)

    def write_left_out(self, path: Path) -> None:
        """Write a line a cell left out."""
        table = pd.DataFrame(self._left_out, columns=[CELL, "why"])
        table.insert(0, SOURCE, self._job.corpus.labels[self.part.source])
        write_table(table, path, index=False, header=False)

    def report(self) -> dict[str, Any]:
        """Return what the part came to."""
        return {
            "n_cells": self.n_cells,
            "n_cropped": self._n_cropped,
            "genes_within": self._genes_within,
            "signal_within": self._signal_within,
            "n_below_zero": self._n_below_zero,
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
