"""A corpus of counts to each gene's non-zero median: one pass, by any number of processes.

The sketches of a source's parts are merged in the order of its parts, and those of the sources in their order, whoever
made them and whenever, so the medians are the same bits with one process or many, interrupted or not.
"""

import logging
import tempfile
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

import geneformer_repro.unfinished as unfinished
from geneformer_repro.errors import DataFormatError
from geneformer_repro.files import new_file, write_json
from geneformer_repro.tokenizer.corpus import Corpus, Job, Part, Sources, parts_of
from geneformer_repro.tokenizer.genes import names_of, reconcile, with_symbols
from geneformer_repro.tokenizer.matrices import BLOCK_CELLS
from geneformer_repro.tokenizer.medians import TARGET_SUM, NonzeroMedians
from geneformer_repro.tokenizer.readers import CountSource

logger = logging.getLogger(__name__)

FORMAT = "geneformer_repro/fit/2"
"""Of the sketches, and of what they say: raised when another version of the package makes other ones."""
FAILED = "failed.json"
"""File in the work folder that names the damaged sources; absent if there is none."""
_PART = 16 * BLOCK_CELLS
"""Cells of a part: its sketches take up to 100 MB on disk until they are merged."""


def fit_medians(
    sources: Sources,
    *,
    layer: str | None,
    gene_ids: str | None,
    exact: bool,
    workers: int | None,
    ray: bool,
    work: Path | None,
    overwrite: bool = False,
) -> tuple[dict[str, float], dict[str, str]]:
    """Return the non-zero median, in counts per 10,000, and the name of each gene that some cell expresses.

    Parameters
    ----------
    sources, layer, gene_ids, exact, workers, ray, work, overwrite
        As for `Vocabulary.fit`.

    Raises
    ------
    DataFormatError
        A source holds no raw counts, or no gene is expressed.
    ChangedDataError
        A source was replaced or written to while it was read.
    FileExistsError
        `work` holds other work, or is not a work folder.
    """
    corpus = Corpus.find(sources, layer=layer, gene_ids=gene_ids)
    corpus.require_fit(workers=workers, ray=ray)
    job = _Fit(corpus, layer=layer, gene_ids=gene_ids, exact=exact)
    job.prepare()
    if work is None:
        with tempfile.TemporaryDirectory(prefix="geneformer_repro-") as folder:
            return _in_folder(Path(folder) / "fit", job, workers=workers, ray=ray, overwrite=False)
    return _in_folder(work, job, workers=workers, ray=ray, overwrite=overwrite)


def _in_folder(
    work: Path, job: "_Fit", *, workers: int | None, ray: bool, overwrite: bool
) -> tuple[dict[str, float], dict[str, str]]:
    """Do a job in a work folder, which is left for the caller to drop."""
    with unfinished.held(work, job.plan, what="fit", overwrite=overwrite):
        try:
            return job.run(work, workers=workers, ray=ray)
        except DataFormatError:
            unfinished.drop(work)
            raise


class _Fit(Job):
    """The work of one call."""

    def __init__(self, corpus: Corpus, *, layer: str | None, gene_ids: str | None, exact: bool) -> None:
        self.corpus, self._options = corpus, {"layer": layer, "gene_ids": gene_ids, "exact": exact}
        self.exact = exact
        self.sizes: list[int] = []
        self.genes: list[str] = []
        self._names: dict[str, str] = {}
        self.columns = lru_cache(maxsize=4)(self._columns)

    @classmethod
    def from_plan(cls, work: Path) -> "_Fit":
        """Make the job of another process."""
        plan = unfinished.read_plan(work)
        options = plan["options"]
        corpus = Corpus.from_plan(plan, layer=options["layer"], gene_ids=options["gene_ids"])
        job = cls(corpus, **options)
        job.sizes, job.genes = plan["sizes"], plan["genes"]
        job.use(work)
        return job

    def prepare(self) -> None:
        """Look at the genes of every source."""
        self.sizes = self.corpus.check(self._look_at)
        self.genes = sorted(self._names)

    def _look_at(self, i: int, source: CountSource) -> int:
        genes = reconcile(source, None)
        self._names |= {gene: "" for gene in genes.table["gene_id"] if gene and gene not in self._names}
        self._names |= {gene: name for gene, name in names_of([genes]).items() if not self._names[gene]}
        return source.n_cells

    @cached_property
    def plan(self) -> dict[str, Any]:
        """What makes two calls the same work, and all that another process needs to know of it."""
        return {
            "format": FORMAT,
            **self.corpus.as_plan(),
            "options": self._options,
            "sizes": self.sizes,
            "genes": self.genes,
        }

    @cached_property
    def parts(self) -> list[Part]:
        """All parts, of damaged sources too."""
        return parts_of(self.sizes, smallest=_PART)

    def run(self, work: Path, *, workers: int | None, ray: bool) -> tuple[dict[str, float], dict[str, str]]:
        """Do what is not done yet, return medians and names by gene."""
        self.use(work)
        self.deal_out_all(workers=workers, ray=ray)
        merged = _Merged(self)
        self.share("sketch", merged.left(), workers=workers, ray=ray, on_done=merged.take_in)
        medians = merged.all().medians()
        median_of = {gene: float(median) for gene, median in zip(self.genes, medians, strict=True) if median > 0}
        if not median_of:
            raise DataFormatError(
                "No gene is expressed in any cell of the given sources; a vocabulary cannot be learned from them."
            )
        for i in range(len(self.corpus)):
            self.corpus.require_unchanged(i)
        if self.corpus.failed:
            write_json(self.work / FAILED, {self.corpus.labels[i]: error for i, error in self.corpus.failed.items()})
            good = [i for i in range(len(self.corpus)) if i not in self.corpus.failed]
            self._names = dict.fromkeys(median_of, "") | names_of([reconcile(self.corpus.open(i), None) for i in good])
        return median_of, with_symbols({gene: self._names[gene] for gene in median_of})

    def sketch(self, part: Part) -> None:
        """Write the medians' sketches of a part."""
        source, sketch = self.corpus.open(part.source), NonzeroMedians(len(self.genes), exact=self.exact)
        columns = self.columns(part.source)
        for block in source.blocks(part.start, part.stop):
            sketch.add(_normalised(block.counts, source.total_counts(block), columns, len(self.genes)))
        with new_file(self.sketch_file(part), overwrite=True) as aside:
            sketch.save(aside)

    def sketch_file(self, part: Part) -> Path:
        """Where the sketches of a part are until they are merged."""
        return self.work / f"part-{part.number:06d}.npz"

    def _columns(self, i: int) -> np.ndarray:
        genes = reconcile(self.corpus.open(i), None)
        places = {gene: place for place, gene in enumerate(self.genes)}
        return np.array([places[gene] if gene else -1 for gene in genes.table["gene_id"]], dtype=np.int64)


def _normalised(counts: csr_matrix, totals: np.ndarray, columns: np.ndarray, n_genes: int) -> csr_matrix:
    """Return counts per 10,000 in the columns of the corpus, no zero stored; repeated genes are summed."""
    column = columns[counts.indices]
    stays = (column >= 0) & (counts.data > 0)
    ends = np.concatenate([[0], np.cumsum(stays)])
    data = counts.data[stays].astype(np.float64)
    scaled = csr_matrix((data, column[stays], ends[counts.indptr]), shape=(counts.shape[0], n_genes))
    places = columns[columns >= 0]
    if len(np.unique(places)) < len(places):
        scaled.sum_duplicates()
    scaled.data = scaled.data / np.repeat(totals, np.diff(scaled.indptr)) * TARGET_SUM
    return scaled


class _Merged:
    """The sketches of each source so far: its parts from the first on, without a gap."""

    def __init__(self, job: _Fit) -> None:
        self._job = job
        self._of: dict[int, list[Part]] = {}
        for part in job.parts:
            self._of.setdefault(part.source, []).append(part)
        self._drop_damaged()
        self._done = {source: self._kept(source) for source in self._of}

    def _drop_damaged(self) -> None:
        """Remove what an earlier run has written and what is no longer as it was: the file's own checksums tell."""
        for path in sorted(self._job.work.glob("*.npz")):
            try:
                NonzeroMedians.load(path)
            except DataFormatError:
                logger.warning("%s: is not as it was written; it is made again.", path)
                path.unlink()

    def _file(self, source: int, n: int) -> Path:
        return self._job.work / f"source-{source:06d}-{n:06d}.npz"

    def _kept(self, source: int) -> int:
        """Return how many parts of a source an earlier run has merged."""
        return max((n for n in range(1, len(self._of[source]) + 1) if self._file(source, n).exists()), default=0)

    def left(self) -> list[Part]:
        """Return the parts that are neither merged nor done."""
        return [
            part
            for source, parts in self._of.items()
            for part in parts[self._done[source] :]
            if not self._job.sketch_file(part).exists()
        ]

    def take_in(self, part: Part) -> None:
        """Merge what has no gap before it, once this part is done; exact values wait for the end."""
        if not self._job.exact:
            self._merge(part.source, self._job.work)

    def _merge(self, source: int, keep: Path | None) -> NonzeroMedians:
        n = before = self._done[source]
        medians = NonzeroMedians(len(self._job.genes), exact=self._job.exact)
        ready = []
        for part in self._of[source][n:]:
            if not self._job.sketch_file(part).exists():
                break
            ready.append(part)
        if n:
            medians = NonzeroMedians.load(self._file(source, n))
        for part in ready:
            medians.merge(NonzeroMedians.load(self._job.sketch_file(part)))
        if keep and ready:
            n += len(ready)
            with new_file(self._file(source, n), overwrite=True) as aside:
                medians.save(aside)
            self._done[source] = n
            for part in ready:
                self._job.sketch_file(part).unlink()
            if before:
                self._file(source, before).unlink()
        return medians

    def all(self) -> NonzeroMedians:
        """Return the medians of all sources that are not damaged."""
        total = NonzeroMedians(len(self._job.genes), exact=self._job.exact)
        for source in self._of:
            if source not in self._job.corpus.failed:
                total.merge(self._merge(source, keep=None))
        return total
