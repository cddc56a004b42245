"""A corpus of counts to a dataset on disk, part by part, so that any number of processes write the same bytes.

A part (8,192 cells or more of one source) becomes an Arrow file and a small report in ``OUT.partial``; the report is
written last, with digests of what belongs to it. So a part whose report is true is done, and a run that was killed goes
on with the others. At the end the Arrow files are the dataset: nothing is copied.
"""

import hashlib
import json
import logging
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa

import geneformer_repro.unfinished as unfinished
from geneformer_repro.arguments import typed
from geneformer_repro.errors import DataFormatError, InputError
from geneformer_repro.files import new_file, read_json, write_json, write_table
from geneformer_repro.tokenizer.corpus import Corpus, Job, Part, parts_of, read_report, write_report
from geneformer_repro.tokenizer.dataset import (
    CELL,
    OWN_COLUMNS,
    SOURCE,
    TokenizedDataset,
)
from geneformer_repro.tokenizer.encoding import sum_by_column
from geneformer_repro.tokenizer.folder import FORMAT, schema_of, write_state
from geneformer_repro.tokenizer.genes import (
    LEFT_OUT,
    GeneMap,
    in_one_line,
    is_mitochondrial,
    read_gene_table,
    reconcile,
    require_known,
    shares,
)
from geneformer_repro.tokenizer.part_rows import PartRows
from geneformer_repro.tokenizer.quality import ANOTHER_GENOME, NO_KNOWN_GENE, CellFilter, Moments
from geneformer_repro.tokenizer.readers import CountSource
from geneformer_repro.tokenizer.vocabulary import Vocabulary

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)

VERSION = 2
"""Of the rows: raised when another version of the package makes other ones, so that it does not go on with these."""
_LOOKS, _LOOK_CELLS = 8, 32
"""Places of each source, and cells there, that are read before the work, to see whether its genes are known."""
_DATASET, _REPORTS, _VOCABULARY = "dataset", "reports", "vocabulary"
_KINDS = ("bool", "int64", "float64", "string")
"""Types of carried columns; of two sources' types the later one holds both."""


@typed
def tokenize(
    sources: "AnnData | str | Path | Sequence[AnnData | str | Path]",
    vocabulary: Vocabulary,
    *,
    out: str | Path | None = None,
    obs: Sequence[str] = (),
    layer: str | None = None,
    gene_ids: str | None = None,
    orthologs: Mapping[str, str] | str | Path | None = None,
    min_known_share: float = 0.5,
    cell_filter: CellFilter | None = None,
    uncropped: bool = False,
    workers: int | None = None,
    ray: bool = False,
    overwrite: bool = False,
) -> TokenizedDataset:
    """Turn raw counts into rank-value encodings, one row a cell in the order of the sources and their cells.

    Parameters
    ----------
    sources
        An AnnData, or a path: ``.h5ad``, ``.loom``, ``.zarr``, 10x ``.h5`` or folder with ``matrix.mtx``; or several;
        or a glob or a folder with such files. Never changed. Where there are several, the column ``source`` tells
        which one a cell is from, and a damaged one is left out, named in the log and in ``spec["failed"]``.
    vocabulary
        Genes and their medians.
    out
        Folder to write the dataset to; None keeps it in memory. What an interrupted call has finished is kept in
        ``OUT.partial``, and the same call goes on with it.
    obs
        Columns of ``obs`` to carry along; numbers stay numbers, anything else becomes text.
    layer
        Layer that holds the counts, or "raw"; default ``X``.
    gene_ids
        Column of ``var`` that holds the gene ids, or "index"; default ``ensembl_id`` where there is one, else
        whichever of index and columns holds Ensembl ids, else the index. Ids with a version, symbols and retired ids
        lead to the genes of the vocabulary too; genes that lead to the same one are summed.
    orthologs
        Table that leads other ids (or symbols) to gene ids, as `genes.read_gene_table` takes it.
    min_known_share
        Least share of a source's counts in genes that the vocabulary knows.
    cell_filter
        Thresholds that cells must pass; each says how many cells it took.
    uncropped
        Also write ``input_ids_uncropped`` and ``length_uncropped``: all ranked genes, without special tokens.
    workers
        Processes that share the work; with `ray`, tasks at a time (default all processors of the cluster).
    ray
        Share the work over a Ray cluster (the one of ``RAY_ADDRESS``, else one started here); sources and `out` must
        be on storage that all its machines see. Needs the extra ``ray``.
    overwrite
        Replace a dataset that `out` holds; drop unfinished work with other settings (the same work goes on).

    Returns
    -------
    The dataset. ``spec`` says what was known, left out and cut; in the folder, ``genes.tsv`` has a row a gene of the
    sources, ``left_out.tsv`` a row a cell left out.

    Raises
    ------
    DataFormatError
        The sources hold no raw counts, too few genes that the vocabulary knows, or no cell that expresses one.
    ChangedDataError
        A source was replaced or written to while it was read; nothing is kept of the work.
    InputError
        A column, layer or file does not exist, or an option does not fit a source.
    FileExistsError
        `out` exists, or unfinished work on it has other settings.

    See Also
    --------
    Vocabulary.fit : Learn genes and medians.
    TokenizedDataset : What comes out.
    CellFilter : Thresholds for cells.
    datasets.pbmc700 : Cells to try it on.

    Examples
    --------
    >>> import geneformer_repro as gf
    >>> vocabulary = gf.Vocabulary.load("vocabulary")
    >>> cells = gf.tokenize("cells.h5ad", vocabulary, out="pbmc.tok", obs=["cell_type", "donor"])
    >>> len(cells), round(cells.spec["share_of_counts_known"], 3)
    (700, 1.0)
    >>> cells.genes(0)[:2]  # of the first cell the genes furthest above their median
    ['ENSG00000133246', 'ENSG00000087086']
    """
    if isinstance(obs, str):
        raise InputError(f"obs={obs!r}: expected a list of columns; write obs=[{obs!r}].")
    vocabulary.require_medians()
    if not 0 <= min_known_share <= 1:
        raise InputError(f"min_known_share is a share between 0 and 1, found {min_known_share}.")
    out = None if out is None else Path(out)
    if out is None and (ray or workers not in (None, 1)):
        raise InputError("Several workers write files; give out=, or leave workers= and ray= out.")
    if out is not None:
        unfinished.refuse(out, overwrite=overwrite, marker="spec.json")
    options = _Options(
        obs=list(dict.fromkeys(obs)),
        layer=layer,
        gene_ids=gene_ids,
        orthologs={} if orthologs is None else read_gene_table(orthologs),
        min_known_share=min_known_share,
        cell_filter=asdict(cell_filter or CellFilter()),
        uncropped=uncropped,
    )
    job = _Job(Corpus.find(sources, layer=layer, gene_ids=gene_ids), vocabulary, options)
    job.corpus.require_fit(workers=workers, ray=ray)
    if out is None:
        with tempfile.TemporaryDirectory(prefix="geneformer_repro-") as folder:
            job.prepare()
            spec = job.run(Path(folder), workers=workers, ray=ray)
            tables = [_read_arrow(Path(folder) / _DATASET / name) for name in job.arrow_files]
        return TokenizedDataset(datasets.Dataset(pa.concat_tables(tables)), vocabulary, spec)
    job.prepare()
    with unfinished.unfinished(out, job.plan, what="tokenisation", marker="spec.json", overwrite=overwrite) as work:
        if not work.has_delivered(out):
            try:
                job.run(work.folder, workers=workers, ray=ray)
            except DataFormatError:
                unfinished.drop(work.folder)
                raise
            work.deliver(work.folder / _DATASET, out)
    return TokenizedDataset.open(out)


@dataclass(frozen=True)
class _Options:
    """What decides the rows, as JSON can hold it."""

    obs: list[str]
    layer: str | None
    gene_ids: str | None
    orthologs: dict[str, str]
    min_known_share: float
    cell_filter: dict[str, Any]
    uncropped: bool


class _Job(Job):
    """The work of one call."""

    def __init__(self, corpus: Corpus, vocabulary: Vocabulary, options: _Options) -> None:
        self.corpus, self.vocabulary, self.options = corpus, vocabulary, options
        self.cell_filter = CellFilter(**options.cell_filter)
        self.sizes: list[int] = []
        self.kinds = dict.fromkeys(options.obs, _KINDS[0])
        self.genes = lru_cache(maxsize=4)(self._genes)
        self.moments = lru_cache(maxsize=4)(self._moments)

    @classmethod
    def from_plan(cls, work: Path) -> "_Job":
        """Make the job of another process."""
        plan = unfinished.read_plan(work)
        options = _Options(**plan["options"])
        corpus = Corpus.from_plan(plan, layer=options.layer, gene_ids=options.gene_ids)
        job = cls(corpus, Vocabulary.load(work / _VOCABULARY), options)
        job.sizes, job.kinds = plan["sizes"], plan["kinds"]
        job.use(work)
        return job

    # Before the work

    def prepare(self) -> None:
        """Look at every source: its columns, its cells' names, its genes, a few counts."""
        self.sizes = self.corpus.check(self._look_at)

    def _look_at(self, i: int, source: CountSource) -> int:
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
        genes = self.genes(i)
        counts = np.zeros(len(genes.position)) if source.stored_by_gene else _counts_of_some(source)
        self._require_known(source, genes, counts, min_share=self.options.min_known_share / 2)
        self.kinds = kinds
        return source.n_cells

    def _require_known(self, source: CountSource, genes: GeneMap, counts: np.ndarray, *, min_share: float) -> None:
        require_known(source, genes, counts, self.vocabulary, min_share=min_share)

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
            "sizes": self.sizes,
            "kinds": self.kinds,
            "failed": {str(i): message for i, message in self.corpus.failed.items()},
        }

    # The work

    @cached_property
    def parts(self) -> list[Part]:
        """All parts, of damaged sources too."""
        return parts_of(self.sizes)

    def run(self, work: Path, *, workers: int | None, ray: bool) -> dict[str, Any]:
        """Do what is not done yet, write what belongs beside the Arrow files, return the spec."""
        if (work / _REPORTS).exists() and not (work / _DATASET).exists():
            shutil.rmtree(work / _REPORTS)  # the rows were delivered, and are gone from there
        for name in (_DATASET, _REPORTS, _VOCABULARY):
            (work / name).mkdir(exist_ok=True)
        if ray or (workers or 1) > 1:
            self.vocabulary.write_into(work / _VOCABULARY)
        self.use(work)
        self.deal_out_all(workers=workers, ray=ray)
        if self.cell_filter.needs_moments:
            self.share("measure", self._not_done("moments"), workers=workers, ray=ray)
        self.share("tokenize", self._not_done("json"), workers=workers, ray=ray)
        spec = _Outcome(self).write()
        for i in range(len(self.corpus)):
            self.corpus.require_unchanged(i)
        return spec

    def _not_done(self, suffix: str) -> list[Part]:
        return [part for part in self.parts if read_report(self.report_file(part, suffix)) is None]

    def report_file(self, part: Part, suffix: str) -> Path:
        """Where a part's report is: "json" (written last), "moments", "counts.npy" or "left_out.tsv"."""
        return self.work / _REPORTS / f"{part.number:06d}.{suffix}"

    def arrow_file(self, part: Part) -> Path:
        """Where a part's rows are; there is no such file for a part without rows."""
        return self.work / _DATASET / f"data-{part.number:06d}.arrow"

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

    def _moments(self, i: int) -> Moments | None:
        if not self.cell_filter.needs_moments:
            return None
        of_parts = [
            Moments.from_json(read_json(self.report_file(part, "moments"))) for part in self.parts if part.source == i
        ]
        return sum(of_parts, Moments())

    def deal_out(self, part: Part) -> None:
        """Copy a matrix stored by gene into blocks of cells, of which some are then looked at."""
        super().deal_out(part)
        source, genes = self.corpus.open(part.source), self.genes(part.source)
        self._require_known(source, genes, _counts_of_some(source), min_share=self.options.min_known_share / 2)

    def measure(self, part: Part) -> None:
        """Write the moments of a part."""
        source = self.corpus.open(part.source)
        is_mito, moments = is_mitochondrial(source), Moments()
        for block in source.blocks(part.start, part.stop):
            moments += Moments.of(block, source.total_counts(block), is_mito)
        write_report(self.report_file(part, "moments"), moments.as_json())

    def tokenize(self, part: Part) -> None:
        """Write the rows and the report of a part."""
        arrow, rows = self.arrow_file(part), self._rows_of(part)
        with (
            new_file(arrow, overwrite=True) as aside,
            pa.OSFile(str(aside), "wb") as file,
            pa.ipc.new_stream(file, self.schema) as writer,
        ):
            for batch in rows:
                writer.write_batch(batch)
        if not rows.n_cells:
            arrow.unlink()
        written = [self.report_file(part, suffix) for suffix in ("counts.npy", "left_out.tsv")]
        for path, write in zip(
            written, (lambda aside: np.save(aside, rows.gene_counts), rows.write_left_out), strict=True
        ):
            with new_file(path, overwrite=True) as aside:
                write(aside)
        write_report(self.report_file(part, "json"), rows.report(), *[arrow] * (rows.n_cells > 0), *written)

    def _rows_of(self, part: Part) -> PartRows:
        return PartRows(
            self.corpus.open(part.source),
            part,
            self.genes(part.source),
            self.vocabulary,
            self.schema,
            obs=self.options.obs,
            label=self.corpus.labels[part.source],
            cell_filter=self.cell_filter,
            moments=self.moments(part.source),
        )


def _counts_of_some(source: CountSource) -> np.ndarray:
    """Return the counts of each gene in some cells of a source, evenly spread over it."""
    starts = np.unique(np.linspace(0, max(0, source.n_cells - _LOOK_CELLS), num=_LOOKS).astype(np.int64))
    ends = np.minimum(starts + _LOOK_CELLS, source.n_cells)
    blocks = [block for start, end in zip(starts.tolist(), ends.tolist()) for block in source.blocks(start, end)]
    return sum((sum_by_column(block.counts) for block in blocks), np.zeros(1))


def _kind_of(column: pd.Series) -> str:
    if isinstance(column.dtype, pd.CategoricalDtype) or not pd.api.types.is_numeric_dtype(column):
        return "string"
    if pd.api.types.is_bool_dtype(column):
        return "bool"
    return "int64" if pd.api.types.is_integer_dtype(column) else "float64"


def _read_arrow(path: Path) -> pa.Table:
    with pa.OSFile(str(path), "rb") as file:
        return pa.ipc.open_stream(file).read_all()


class _Outcome:
    """What all parts together came to; writes the files beside the rows."""

    def __init__(self, job: _Job) -> None:
        self._job, self._folder = job, job.work / _DATASET
        self._counts = {i: self._gene_counts(i) for i, n in enumerate(job.sizes) if n and i not in job.corpus.failed}
        for i, counts in self._counts.items():
            try:
                job._require_known(job.corpus.open(i), job.genes(i), counts, min_share=job.options.min_known_share)
            except DataFormatError as error:
                job.corpus.note(i, error)
        self._good = [i for i in self._counts if i not in job.corpus.failed]
        self._parts = [part for part in job.parts if part.source in self._good]
        self._reports = {part: read_json(job.report_file(part, "json")) for part in self._parts}

    def _gene_counts(self, i: int) -> np.ndarray:
        parts = [part for part in self._job.parts if part.source == i]
        return sum((np.load(self._job.report_file(part, "counts.npy")) for part in parts), np.zeros(1))

    def write(self) -> dict[str, Any]:
        """Write all but the rows; return the spec."""
        self._require_cells()
        for path in self._folder.iterdir():  # of damaged sources, and what a killed process was writing
            if path.name not in self._job.arrow_files:
                path.unlink()
        genes, others = self._genes(), self._no_genes()
        if len(others):
            counts = genes["counts"].astype("Int64" if genes["counts"].dtype.kind == "i" else "Float64")
            table = pd.concat([genes.assign(counts=counts), others], ignore_index=True)
        else:
            table = genes
        write_table(table, self._folder / "genes.tsv", index=False)
        with (self._folder / "left_out.tsv").open("wb") as file:
            file.write(f"{SOURCE}\t{CELL}\twhy\n".encode())
            for part in self._parts:
                file.write(self._job.report_file(part, "left_out.tsv").read_bytes())
        spec = self._spec(genes) | {"no_genes": others["by"].value_counts().to_dict()}
        self._say(spec, genes)
        self._job.vocabulary.write_into(self._folder)
        write_json(self._folder / "spec.json", spec)
        write_state(self._folder, self._job.schema, self._job.arrow_files, spec["fingerprint"])
        return spec

    def _total(self, what: str, source: int | None = None) -> int:
        return sum(report[what] for part, report in self._reports.items() if source in (None, part.source))

    def _left_out(self) -> dict[str, int]:
        n_cells: Counter[str] = Counter()
        for report in self._reports.values():
            n_cells.update(report["left_out"])
        order = [*self._job.options.cell_filter, ANOTHER_GENOME, NO_KNOWN_GENE]
        always = {*self._job.cell_filter.asked, NO_KNOWN_GENE}
        return {why: n_cells[why] for why in order if why in always or n_cells[why]}

    def _require_cells(self) -> None:
        if self._total("n_cells"):
            return
        names = ", ".join(self._job.corpus.open(i).name for i in self._good[:3])
        why = ", ".join(f"{n} by {reason}" for reason, n in self._left_out().items() if n)
        raise DataFormatError(
            f"{names}: no cell is left of {sum(self._job.sizes)} ({why}). Every cell must express a gene that the "
            f"vocabulary knows, and pass what was asked of it."
        )

    def _genes(self) -> pd.DataFrame:
        """Return a row a gene of the sources and what became of it, with its counts over all of them."""
        keys = ["gene", "name", "outcome", "by", "gene_id"]
        genes = pd.DataFrame()
        for i in self._good:
            table = self._job.genes(i).table.assign(counts=self._counts[i], sources=1)
            table["copy"] = table.groupby(keys, sort=False).cumcount()
            genes = pd.concat([genes, table]).groupby([*keys, "copy"], sort=False, as_index=False).sum()
        genes = genes.drop(columns="copy")
        whole = genes["counts"] == genes["counts"].round()
        return genes.assign(counts=genes["counts"].astype(np.int64)) if whole.all() else genes

    def _no_genes(self) -> pd.DataFrame:
        """Return a row a feature that is no gene, and whose counts were not read."""
        tables = [self._job.corpus.open(i).no_genes.rename(columns={"kind": "by"}) for i in self._good]
        keys = ["gene", "name", "by"]
        features = pd.concat(tables).groupby(keys, sort=False).size().rename("sources").reset_index()
        features[["outcome", "gene_id"]] = LEFT_OUT, ""
        return features

    def _spec(self, genes: pd.DataFrame) -> dict[str, Any]:
        job, by_outcome = self._job, shares(genes, genes["counts"].to_numpy(dtype=np.float64))
        digest = hashlib.sha256(json.dumps([job.vocabulary.fingerprint, job.schema.names]).encode())
        for report in self._reports.values():
            digest.update(report["digest"].encode())
        return {
            "format": FORMAT,
            "fingerprint": digest.hexdigest(),
            "vocabulary": job.vocabulary.fingerprint,
            "max_length": job.vocabulary.max_length,
            "special_tokens": dict(job.vocabulary.special_tokens),
            "obs": job.options.obs,
            "n_cells": self._total("n_cells"),
            "n_cropped": self._total("n_cropped"),
            "left_out": self._left_out(),
            "cell_names_unique": self._names_are_unique(),
            "n_genes": int(genes["outcome"].ne(LEFT_OUT).sum()),
            "n_genes_known": int(genes["gene_id"].ne("").sum()),
            "genes": {
                name: {"genes": int(row["genes"]), "share_of_counts": round(float(row["share"]), 6)}
                for name, row in by_outcome.iterrows()
            },
            "share_of_counts_known": round(1 - float(by_outcome["share"]["unknown"]), 6),
            "options": {name: value for name, value in asdict(job.options).items() if name not in ("obs", "orthologs")}
            | {"cell_filter": job.cell_filter.asked, "n_orthologs": len(job.options.orthologs)},
            "sources": [self._source(i) for i in self._good],
            "failed": [
                {"name": job.corpus.labels[i], "error": job.corpus.failed[i]} for i in sorted(job.corpus.failed)
            ],
        }

    def _source(self, i: int) -> dict[str, Any]:
        source, by_outcome = self._job.corpus.open(i), shares(self._job.genes(i).table, self._counts[i])
        return {
            "name": self._job.corpus.labels[i],
            **self._job.plan["sources"][i],
            "layer": source.layer,
            "gene_ids": source.ids_from,
            "n_cells": source.n_cells,
            "n_cells_kept": self._total("n_cells", i),
            "n_genes": int((~self._job.genes(i).is_left_out).sum()),
            "n_genes_known": self._job.genes(i).n_known,
            "share_of_counts_known": round(1 - float(by_outcome["share"]["unknown"]), 6),
        }

    def _names_are_unique(self) -> bool:
        if len(self._good) == 1:
            return True
        hashes = np.empty(self._total("n_cells"), dtype=np.uint64)
        end = 0
        for name in self._job.arrow_files:
            with pa.memory_map(str(self._folder / name)) as file:
                for batch in pa.ipc.open_stream(file):
                    names = batch.column(CELL).to_numpy(zero_copy_only=False)
                    hashes[end : end + len(names)] = pd.util.hash_array(names, categorize=False)
                    end += len(names)
        hashes.sort()
        return not (hashes[1:] == hashes[:-1]).any()

    def _say(self, spec: Mapping[str, Any], genes: pd.DataFrame) -> None:
        by_outcome = shares(genes, genes["counts"].to_numpy(dtype=np.float64))
        names = [self._job.corpus.labels[i] for i in self._good]
        said = [in_one_line(by_outcome), *(f"{n:,} {kind} left out" for kind, n in spec["no_genes"].items())]
        other = genes["by"][genes["outcome"] == LEFT_OUT].value_counts()
        said += [f"{n:,} genes of {genome} left out" for genome, n in other.items()]
        logger.info("%s: %s", names[0] if len(names) == 1 else f"{len(names)} sources", ", ".join(said))
        for why, n in spec["left_out"].items():
            if n:
                logger.warning("%d of %d cells left out: %s (left_out.tsv).", n, sum(self._job.sizes), why)
