"""A corpus of counts, or of expression of bulk samples, to a dataset on disk, part by part.

So any number of processes write the same bytes.

A part (8,192 cells or more of one source) becomes an Arrow file and a small report in ``OUT.partial``; the report is
written last, with digests of what belongs to it. So a part whose report is true is done, and a run that was killed goes
on with the others. At the end the Arrow files are the dataset: nothing is copied.
"""

import hashlib
import json
import logging
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa

import geneformer_repro.unfinished as unfinished
from geneformer_repro.arguments import typed
from geneformer_repro.errors import DataFormatError, InputError
from geneformer_repro.files import read_json, write_json, write_table
from geneformer_repro.tokenizer.corpus import Corpus
from geneformer_repro.tokenizer.dataset import TokenizedDataset
from geneformer_repro.tokenizer.folder import read_folder, write_state
from geneformer_repro.tokenizer.genes import LEFT_OUT, in_one_line, read_gene_table, shares
from geneformer_repro.tokenizer.measures import SHARED_OF, Measure, Order, Values
from geneformer_repro.tokenizer.part_rows import DATASET, Options, Tokenisation
from geneformer_repro.tokenizer.quality import ANOTHER_GENOME, NO_KNOWN_GENE, CellFilter
from geneformer_repro.tokenizer.summary import CELL, FORMAT, SOURCE
from geneformer_repro.tokenizer.vocabulary import Vocabulary

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)


@typed
def tokenize(
    sources: "AnnData | str | Path | Sequence[AnnData | str | Path]",
    vocabulary: Vocabulary,
    *,
    values: Values = "counts",
    log2: bool = False,
    order: Order = "descending",
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
        An AnnData, or a path: ``.h5ad``, ``.h5mu`` (its modality "rna"), ``.loom``, ``.zarr``, 10x ``.h5`` or folder
        with ``matrix.mtx``, or a table (``.tsv``, ``.csv``, ``.parquet`` …, also ``.gz``; cells × genes or genes ×
        cells, which is recognised and said); or several; or a glob, or a folder with such files other than tables.
        Never changed. Where there are several, the column ``source`` tells which one a cell is from, and a damaged one
        is left out, named in the log and in ``spec["failed"]``.
    vocabulary
        Genes and their medians, which must be of what the sources hold.
    values
        What the sources hold. "counts": raw counts. "expression": bulk samples as TPM, RSEM, FPKM or intensities, at
        least 0; a gene's value is divided by its median over bulk samples (``Vocabulary.fit(…, values="expression")``),
        and a sample's sum cancels. "zscore": values of either sign (z-scores, log ratios), ranked as they are; medians
        are not used, a missing value (NaN) leaves the gene out of that sample, and rows of one gene count by their
        mean, where counts and expression are summed.
    log2
        Whether expression is stored as log2(x + 1), which is undone. Values down to -10 that are below 0, as batch
        adjustment leaves some, count as 0; how many is said.
    order
        "descending": the genes furthest above their median first. "two_ended": the top and the bottom of the ranking
        by turns (first, last, second, last but one …), so that ``max_length`` holds both ends; of expression the bottom
        are the detected genes furthest below their median. Not for counts. The dataset's vocabulary says it.
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
        The sources do not hold what `values` and `log2` say, too few genes that the vocabulary knows, or no cell that
        expresses one.
    ChangedDataError
        A source was replaced or written to while it was read; nothing is kept of the work.
    InputError
        A column, layer or file does not exist, an option does not fit a source, or the medians are of other values.
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
    _check(obs, min_known_share)
    vocabulary, measure = _ranking(vocabulary, values, order), Measure(values, log2)
    out = None if out is None else Path(out)
    if out is None and (ray or workers not in (None, 1)):
        raise InputError("Several workers write files; give out=, or leave workers= and ray= out.")
    if out is not None:
        unfinished.refuse(out, overwrite=overwrite, marker="spec.json")
    options = Options(
        obs=list(dict.fromkeys(obs)),
        values=values,
        log2=log2,
        order=order,
        layer=layer,
        gene_ids=gene_ids,
        orthologs={} if orthologs is None else read_gene_table(orthologs),
        min_known_share=min_known_share,
        cell_filter=asdict(cell_filter or CellFilter()),
        uncropped=uncropped,
    )
    corpus = Corpus.find(sources, layer=layer, gene_ids=gene_ids, measure=measure, workers=workers, ray=ray)
    job = Tokenisation(corpus, vocabulary, options)
    job.prepare()
    if out is None:
        return _in_memory(job)
    with unfinished.unfinished(out, job.plan, what="tokenisation", marker="spec.json", overwrite=overwrite) as work:
        if not work.has_delivered(out):
            try:
                _run(job, work.folder)
            except DataFormatError:
                unfinished.drop(work.folder)
                raise
            work.deliver(work.folder / DATASET, out)
    return TokenizedDataset(*read_folder(out, None, written=vocabulary))


def _check(obs: Sequence[str], min_known_share: float) -> None:
    if isinstance(obs, str):
        raise InputError(f"obs={obs!r}: expected a list of columns; write obs=[{obs!r}].")
    if not 0 <= min_known_share <= 1:
        raise InputError(f"min_known_share is a share between 0 and 1, found {min_known_share}.")


def _ranking(vocabulary: Vocabulary, values: Values, order: Order) -> Vocabulary:
    """Return the vocabulary that says what these cells are ranked by.

    Raises
    ------
    InputError
        Its medians are of other values, or there are none; or the order is another than that of its cells.
    """
    if values == "zscore":
        vocabulary = replace(vocabulary, medians=None, values=values)
    elif vocabulary.values != values:
        raise InputError(
            f"The sources were said to hold {values}, and {vocabulary!r} is of {vocabulary.values}, which does not "
            f"rank them. Give values={vocabulary.values!r} (--values {vocabulary.values}) if they do hold that, or a "
            f"vocabulary learned with Vocabulary.fit(…, values={values!r}), where base= keeps a model's tokens."
        )
    else:
        vocabulary.require_medians()
    if order == "two_ended" and values == "counts":
        raise InputError(
            'order="two_ended" is for expression and z-scores: most genes at the bottom of a cell\'s counts are one '
            "molecule each. Leave it out."
        )
    if vocabulary.order != order == "descending":
        raise InputError(
            f"{vocabulary!r} belongs to cells in the order {vocabulary.order!r}; give order={vocabulary.order!r} "
            f"(--order {vocabulary.order}), or the vocabulary that these were tokenised with."
        )
    return replace(vocabulary, order=order)


def _in_memory(job: Tokenisation) -> TokenizedDataset:
    with tempfile.TemporaryDirectory(prefix="geneformer_repro-") as folder:
        spec = _run(job, Path(folder))
        tables = [_read_arrow(Path(folder) / DATASET / name) for name in job.arrow_files]
    return TokenizedDataset(datasets.Dataset(pa.concat_tables(tables)), job.vocabulary, spec)


def _run(job: Tokenisation, work: Path) -> dict[str, Any]:
    """Do what is not done yet, write what belongs beside the Arrow files, return the spec."""
    job.run(work)
    spec = _Outcome(job).write()
    job.corpus.require_all_unchanged()
    return spec


def _read_arrow(path: Path) -> pa.Table:
    with pa.OSFile(str(path), "rb") as file:
        return pa.ipc.open_stream(file).read_all()


class _Outcome:
    """What all parts together came to; writes the files beside the rows."""

    def __init__(self, job: Tokenisation) -> None:
        self._job, self._folder = job, job.work / DATASET
        self._counts = {
            i: self._gene_counts(i) for i, n in enumerate(job.corpus.sizes) if n and i not in job.corpus.failed
        }
        for i, counts in self._counts.items():
            try:
                job.require_known(i, counts, min_share=job.options.min_known_share)
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
        write_table(pd.concat([genes, others], ignore_index=True), self._folder / "genes.tsv", index=False)
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

    def _total(self, what: str, source: int | None = None) -> Any:
        return sum(report[what] for part, report in self._reports.items() if source in (None, part.source))

    def _left_out(self) -> dict[str, int]:
        n_cells = sum((Counter(report["left_out"]) for report in self._reports.values()), Counter())
        order = [*self._job.options.cell_filter, ANOTHER_GENOME, NO_KNOWN_GENE]
        always = {*self._job.cell_filter.asked, NO_KNOWN_GENE}
        return {why: n_cells[why] for why in order if why in always or n_cells[why]}

    def _require_cells(self) -> None:
        if self._total("n_cells"):
            return
        names = ", ".join(self._job.corpus.open(i).name for i in self._good[:3])
        why = ", ".join(f"{n} by {reason}" for reason, n in self._left_out().items() if n)
        raise DataFormatError(
            f"{names}: no cell is left of {sum(self._job.corpus.sizes)} ({why}). Every cell must express a gene that "
            f"the vocabulary knows, and pass what was asked of it."
        )

    def _genes(self) -> pd.DataFrame:
        """Return a row a gene of the sources and what became of it, with its counts over all of them."""
        keys = ["gene", "name", "outcome", "by", "gene_id"]
        genes = pd.DataFrame()
        for i in self._good:
            table = self._job.genes(i).table.assign(counts=self._counts[i], sources=1)
            table["copy"] = table.groupby(keys, sort=False).cumcount()
            genes = pd.concat([genes, table])
            if i != self._good[0]:
                genes = genes.groupby([*keys, "copy"], sort=False, as_index=False).sum()
        genes = genes.drop(columns="copy")
        return genes.assign(counts=genes["counts"].convert_dtypes())  # whole numbers are written without points

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
            "within_max_length": {
                "genes": round(self._total("genes_within") / self._total("n_cells"), 6),
                "signal": round(self._total("signal_within") / self._total("n_cells"), 6),
            },
            **({"n_below_zero": self._total("n_below_zero")} if job.options.log2 else {}),
            "left_out": self._left_out(),
            "cell_names_unique": self._names_are_unique(),
            "n_genes": int(genes["outcome"].ne(LEFT_OUT).sum()),
            "n_genes_known": int(genes["gene_id"].ne("").sum()),
            "n_vocabulary_genes": int(genes["gene_id"][genes["gene_id"].ne("")].nunique()),
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
        phrases = [in_one_line(by_outcome, of=SHARED_OF[self._job.options.values])]
        phrases += [f"{n:,} {kind} left out" for kind, n in spec["no_genes"].items()]
        other = genes["by"][genes["outcome"] == LEFT_OUT].value_counts()
        phrases += [f"{n:,} genes of {genome} left out" for genome, n in other.items()]
        logger.info("%s: %s", names[0] if len(names) == 1 else f"{len(names)} sources", ", ".join(phrases))
        if spec.get("n_below_zero"):
            logger.info("%d log2 values below 0 count as 0.", spec["n_below_zero"])
        for why, n in spec["left_out"].items():
            if n:
                logger.warning("%d of %d cells left out: %s (left_out.tsv).", n, sum(self._job.corpus.sizes), why)
