"""A corpus of counts to each gene's non-zero median: one pass, by any number of processes.

The sketches of a source's parts are merged in the order of its parts, and those of the sources in their order, whoever
made them and whenever, so the medians are the same bits with one process or many, interrupted or not.
"""

import logging
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

import geneformer_repro.unfinished as unfinished
from geneformer_repro.errors import DataFormatError
from geneformer_repro.files import new_file, write_json
from geneformer_repro.tokenizer.corpus import Corpus, Job, Part, parts_of
from geneformer_repro.tokenizer.genes import GivenGenes, KnownGenes, names_of, reconcile, summing_matrix, with_symbols
from geneformer_repro.tokenizer.matrices import BLOCK_CELLS
from geneformer_repro.tokenizer.measures import n_values
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
    corpus: Corpus,
    work: str | Path | None = None,
    *,
    base: KnownGenes | None = None,
    exact: bool,
    overwrite: bool = False,
) -> tuple[dict[str, float], dict[str, str]]:
    """Return the non-zero median, in counts per 10,000, and the name of each gene that some cell expresses.

    Expression, too, is scaled to a sum of 10,000 a sample. Of z-scores the genes are those with a value, and what
    stands for their medians is 1.

    Parameters
    ----------
    corpus
        Where the counts are, and who reads them.
    work, base, exact, overwrite
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
    job = _Fit(corpus, base, exact=exact)
    job.prepare()
    with ExitStack() as stack:
        if work is None:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="geneformer_repro-")), "fit")
        stack.enter_context(unfinished.held(Path(work), job.plan, what="fit", overwrite=overwrite))
        try:
            return job.run(Path(work))
        except DataFormatError:
            unfinished.drop(Path(work))
            raise


def medians_of(genes: Sequence[str], medians: Mapping[str, float]) -> np.ndarray:
    """Return the medians of these genes; of those that no source expresses, the median of the others' medians."""
    silent = [gene for gene in genes if gene not in medians]
    if silent:
        logger.warning(
            "%d of the %d genes of base are expressed in no source (first: %s); their median is that of the others' "
            "medians.", len(silent), len(genes), silent[0],
        )  # fmt: skip
    of_silent = float(np.median(list(medians.values())))
    return np.array([medians.get(gene, of_silent) for gene in genes])


class _Fit(Job):
    """The work of one call."""

    def __init__(self, corpus: Corpus, base: KnownGenes | None, *, exact: bool) -> None:
        self.corpus, self.base, self.exact = corpus, base, exact
        self.genes: list[str] = []
        self._names: dict[str, str] = {}
        self.to_genes = lru_cache(maxsize=4)(self._to_genes)

    @classmethod
    def from_plan(cls, work: Path) -> "_Fit":
        """Make the job of another process."""
        plan = unfinished.read_plan(work)
        base = GivenGenes(**plan["base"]) if "base" in plan else None
        job = cls(Corpus.from_plan(plan), base, exact=plan["options"]["exact"])
        job.genes = plan["genes"]
        job.use(work)
        return job

    def prepare(self) -> None:
        """Look at the genes of every source."""
        self.corpus.check(self._look_at)
        self.genes = sorted(self._names)

    def _look_at(self, i: int, source: CountSource) -> None:
        if source.measure.values != "counts" and not source.stored_by_gene:
            source.sample()
        genes = reconcile(source, self.base)
        self._names |= {gene: "" for gene in genes.table["gene_id"] if gene and gene not in self._names}
        self._names |= {gene: name for gene, name in names_of([genes]).items() if not self._names[gene]}

    @cached_property
    def plan(self) -> dict[str, Any]:
        """What makes two calls the same work, and all that another process needs to know of it."""
        measure, base = self.corpus.measure, self.base
        options = {**self.corpus.options, **({} if measure.values == "counts" else asdict(measure))}
        plan = {"format": FORMAT, **self.corpus.as_plan(), "options": {**options, "exact": self.exact}}
        return plan | {"genes": self.genes} | ({} if base is None else {"base": asdict(GivenGenes.of(base))})

    @cached_property
    def parts(self) -> list[Part]:
        """All parts, of damaged sources too."""
        return parts_of(self.corpus.sizes, smallest=_PART)

    def run(self, work: Path) -> tuple[dict[str, float], dict[str, str]]:
        """Do what is not done yet, return medians and names by gene."""
        self.use(work)
        self.deal_out_all()
        sketches = _Sketches(self)
        self.share("sketch", sketches.to_make(), on_done=sketches.take_in)
        medians = sketches.merged().medians()
        median_of = {gene: float(median) for gene, median in zip(self.genes, medians, strict=True) if median > 0}
        if not median_of:
            raise DataFormatError(
                "No gene is expressed in any cell of the given sources; a vocabulary cannot be learned from them."
            )
        self.corpus.require_all_unchanged()
        if self.corpus.failed:
            write_json(self.work / FAILED, {self.corpus.labels[i]: error for i, error in self.corpus.failed.items()})
            good = [i for i in range(len(self.corpus)) if i not in self.corpus.failed]
            genes = [reconcile(self.corpus.open(i), self.base) for i in good]
            self._names = dict.fromkeys(median_of, "") | names_of(genes)
        return median_of, with_symbols({gene: self._names[gene] for gene in median_of})

    def deal_out(self, part: Part) -> None:
        """Copy a matrix stored by gene into blocks of cells, of which some are then looked at."""
        super().deal_out(part)
        source = self.corpus.open(part.source)
        if source.measure.values != "counts":
            source.sample()

    def sketch(self, part: Part) -> None:
        """Write the medians' sketches of a part."""
        source, sketch = self.corpus.open(part.source), NonzeroMedians(len(self.genes), exact=self.exact)
        for block in source.blocks(part.start, part.stop):
            if source.measure.values == "zscore":
                counts = csr_matrix((n_values(block.counts)[None] @ self.to_genes(part.source) > 0).astype(np.float64))
            else:
                counts = csr_matrix(block.counts @ self.to_genes(part.source))
                counts.data = counts.data / np.repeat(source.total_counts(block), np.diff(counts.indptr)) * TARGET_SUM
            sketch.add(counts)
        with new_file(self.sketch_file(part), overwrite=True) as aside:
            sketch.save(aside)

    def sketch_file(self, part: Part) -> Path:
        """Where the sketches of a part are until they are merged."""
        return self.work / f"part-{part.number:06d}.npz"

    def _to_genes(self, i: int) -> csr_matrix:
        """Return a matrix of a source by which its counts get the columns of the corpus."""
        gene_ids = reconcile(self.corpus.open(i), self.base).table["gene_id"]
        return summing_matrix(pd.Index(self.genes).get_indexer(pd.Index(gene_ids)), len(self.genes))


class _Sketches:
    """The sketches of each source's parts; from its first part on, as far as there is no gap, merged into one file."""

    def __init__(self, job: _Fit) -> None:
        self._job = job
        self._drop_damaged()
        self._merged: dict[int, Path] = {}
        self._waiting: dict[int, list[Part]] = {}
        """Parts of each source that are not merged."""
        for part in job.parts:
            self._waiting.setdefault(part.source, []).append(part)
            if self._file_until(part).exists():
                self._merged[part.source] = self._file_until(part)
                self._waiting[part.source] = []

    def _drop_damaged(self) -> None:
        """Remove what an earlier run has written and what is no longer as it was: the file's own checksums tell."""
        for path in sorted(self._job.work.glob("*.npz")):
            try:
                NonzeroMedians.load(path)
            except DataFormatError:
                logger.warning("%s: is not as it was written; it is made again.", path)
                path.unlink()

    def _file_until(self, part: Part) -> Path:
        """Where the sketches of a source are, merged up to and with this part."""
        return self._job.work / f"until-{part.number:06d}.npz"

    def to_make(self) -> list[Part]:
        """Return the parts that are neither merged nor sketched."""
        waiting = (part for parts in self._waiting.values() for part in parts)
        return [part for part in waiting if not self._job.sketch_file(part).exists()]

    def take_in(self, part: Part) -> None:
        """Merge what has no gap before it, once this part is sketched; exact values wait for the end."""
        waiting = self._waiting[part.source]
        while waiting and not self._job.exact and self._job.sketch_file(waiting[0]).exists():
            self._merge(waiting.pop(0))

    def _merge(self, part: Part) -> None:
        sketch, before = self._job.sketch_file(part), self._merged.get(part.source)
        medians = self._sum([before, sketch] if before else [sketch])
        with new_file(self._file_until(part), overwrite=True) as aside:
            medians.save(aside)
        self._merged[part.source] = self._file_until(part)
        sketch.unlink()
        if before:
            before.unlink()

    def merged(self) -> NonzeroMedians:
        """Return the medians of all sources that are not damaged."""
        total = NonzeroMedians(len(self._job.genes), exact=self._job.exact)
        for source, waiting in self._waiting.items():
            if source not in self._job.corpus.failed:
                files = [self._merged[source]] if source in self._merged else []
                total.merge(self._sum([*files, *map(self._job.sketch_file, waiting)]))
        return total

    def _sum(self, files: Sequence[Path]) -> NonzeroMedians:
        medians = NonzeroMedians(len(self._job.genes), exact=self._job.exact)
        for file in files:
            medians.merge(NonzeroMedians.load(file))
        return medians
