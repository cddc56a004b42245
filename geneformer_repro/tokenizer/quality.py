"""Which cells are good enough to learn from: a few thresholds, each of which says how many cells it took.

Bounds in standard deviations are about the mean of a cell's own source, which needs one more pass over its counts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from geneformer_repro.config import require
from geneformer_repro.errors import InputError
from geneformer_repro.tokenizer.genes import is_mitochondrial
from geneformer_repro.tokenizer.measures import Values
from geneformer_repro.tokenizer.readers import Block, CountSource

FILTER_PASS = "filter_pass"
NO_KNOWN_GENE = "no known gene"
ANOTHER_GENOME = "another genome"
"""Why a cell is left out most of whose counts are in a genome that is not read."""


_TOTALS = ("min_counts", "max_counts", "counts_within_sd")
_OF_COUNTS: Mapping[Values, Sequence[str]] = {
    "counts": (),
    "expression": _TOTALS,
    "zscore": (*_TOTALS, "min_genes", "max_genes", "max_mito", "mito_within_sd"),
}
"""Thresholds that say nothing of such values."""


@dataclass(frozen=True, kw_only=True)
class CellFilter:
    """Thresholds that a cell must pass; None asks nothing. Applied in the order of the fields.

    See Also
    --------
    tokenize : Takes it as ``cell_filter``.

    Examples
    --------
    >>> import geneformer_repro as gf
    >>> adata, vocabulary = gf.datasets.pbmc700(), gf.Vocabulary.load("vocabulary")
    >>> cells = gf.tokenize(adata, vocabulary, cell_filter=gf.CellFilter(min_genes=100, counts_within_sd=3))
    >>> len(cells), {why: n for why, n in cells.spec["left_out"].items() if n}
    (690, {'counts_within_sd': 10})
    >>> gf.CellFilter(max_mito=5)
    Traceback (most recent call last):
        ...
    geneformer_repro.config.ConfigError: CellFilter.max_mito must be a share, at most 1, found 5.
    """

    filter_pass: bool = False
    """Keep only cells whose ``obs['filter_pass']`` is 1, as the published tokenizer does where the column exists."""
    min_counts: float | None = None
    """Least total counts of a cell."""
    max_counts: float | None = None
    """Most total counts of a cell."""
    min_genes: int | None = None
    """Fewest expressed genes of the source."""
    max_genes: int | None = None
    """Most expressed genes of the source."""
    max_mito: float | None = None
    """Largest share of the stored counts in mitochondrial genes, 0 to 1."""
    counts_within_sd: float | None = None
    """Total counts within so many standard deviations of the mean of the source (published corpus: 3)."""
    mito_within_sd: float | None = None
    """Mitochondrial share within so many standard deviations of the mean of the source (published corpus: 3)."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            is_number = isinstance(value, (int, float)) and 0 <= value < np.inf
            require(value is None or is_number, self, field.name, "a number of at least 0")
        require(self.max_mito is None or self.max_mito <= 1, self, "max_mito", "a share, at most 1")
        for name in ("counts", "genes"):
            low, high = getattr(self, f"min_{name}"), getattr(self, f"max_{name}")
            require(None in (low, high) or low <= high, self, f"min_{name}", f"at most max_{name} ({high})")

    @property
    def asked(self) -> dict[str, Any]:
        """The thresholds that ask for something."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value for name, value in values if value is not None and value is not False}

    @property
    def needs_moments(self) -> bool:
        """Whether the source must be read once before, for its means."""
        return self.counts_within_sd is not None or self.mito_within_sd is not None

    def check(self, source: CountSource) -> None:
        """Raise before the work if a source lacks what a threshold needs.

        Raises
        ------
        InputError
            There is no ``obs['filter_pass']``, or no mitochondrial gene; or a threshold is for other values.

        See Also
        --------
        CellFilter.reasons : Which cells fail.

        Examples
        --------
        >>> import geneformer_repro as gf
        >>> from geneformer_repro.tokenizer.readers import open_counts
        >>> gf.CellFilter(min_counts=500).check(open_counts("cells.h5ad"))
        >>> gf.CellFilter(filter_pass=True).check(open_counts("cells.h5ad"))
        Traceback (most recent call last):
            ...
        geneformer_repro.errors.InputError: cells.h5ad: obs has no column 'filter_pass'. There are: 'cell_type',
        'phase', 'n_counts', 'donor'.
        """
        unfit = [name for name in self.asked if name in _OF_COUNTS[source.measure.values]]
        if unfit:
            raise InputError(
                f"{source.name}: {', '.join(unfit)} says nothing of {source.measure}, which the source was said to "
                "hold. Leave it out."
            )
        if self.filter_pass and not pd.api.types.is_numeric_dtype(source.obs(FILTER_PASS, 0, 1)):
            raise InputError(f"{source.name}: obs['filter_pass'] must hold 0 and 1, found text.")
        if (self.max_mito is not None or self.mito_within_sd is not None) and not is_mitochondrial(source).any():
            raise InputError(
                f"{source.name}: a bound on the mitochondrial share was asked for, but none of its genes is "
                f"mitochondrial by name (MT-…) or human Ensembl id."
            )

    def reasons(
        self,
        source: CountSource,
        block: Block,
        totals: np.ndarray,
        is_mito: np.ndarray,
        moments: np.ndarray | None,
    ) -> np.ndarray:
        """Return why each cell of a block is left out: the first threshold it fails, or "".

        See Also
        --------
        CellFilter.check : Whether the thresholds can be applied at all.

        Examples
        --------
        >>> import numpy as np
        >>> import geneformer_repro as gf
        >>> from geneformer_repro.tokenizer.readers import open_counts
        >>> source = open_counts("cells.h5ad")
        >>> block = next(source.blocks(0, 5))
        >>> totals, is_mito = source.total_counts(block), np.zeros(len(source.gene_ids), dtype=bool)
        >>> totals
        array([2557., 2695., 3389., 2204., 3878.])
        >>> gf.CellFilter(min_counts=2600, max_counts=3800).reasons(source, block, totals, is_mito, None)
        array(['min_counts', '', '', 'min_counts', 'max_counts'], dtype=object)
        """
        counts, n_cells = block.counts, len(totals)
        n_genes, mito = np.diff(counts.indptr), mito_share(counts, is_mito)
        failed: dict[str, Any] = {}
        if self.filter_pass:
            passed = source.obs(FILTER_PASS, block.start, block.start + n_cells)
            failed["filter_pass"] = passed.to_numpy(dtype=np.float64, na_value=np.nan) != 1
        bounds = (
            ("min_counts", totals, np.less),
            ("max_counts", totals, np.greater),
            ("min_genes", n_genes, np.less),
            ("max_genes", n_genes, np.greater),
            ("max_mito", mito, np.greater),
        )
        failed |= {
            name: beyond(values, getattr(self, name))
            for name, values, beyond in bounds
            if getattr(self, name) is not None
        }
        if moments is not None and self.counts_within_sd is not None:
            failed["counts_within_sd"] = is_beyond(totals, moments[0], self.counts_within_sd)
        if moments is not None and self.mito_within_sd is not None:
            failed["mito_within_sd"] = is_beyond(mito, moments[1], self.mito_within_sd)
        why = np.full(n_cells, "", dtype=object)
        for name, out in failed.items():
            why[out & (why == "")] = name
        return why


def mito_share(counts: csr_matrix, is_mito: np.ndarray) -> np.ndarray:
    """Return the share of each cell's stored counts in the genes marked; 0 for a cell without counts."""
    totals = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
    return (counts @ is_mito.astype(np.float64)) / np.maximum(totals, 1.0)


def moments_of(block: Block, totals: np.ndarray, is_mito: np.ndarray) -> np.ndarray:
    """Return number of cells, sum and sum of squares of the total counts, and of the mitochondrial share.

    Returns
    -------
    (2, 3), float64; those of several blocks add up.
    """
    values = np.stack([totals, mito_share(block.counts, is_mito)])
    return np.stack([np.full(2, float(len(totals))), values.sum(axis=1), (values**2).sum(axis=1)], axis=1)


def is_beyond(values: np.ndarray, moments: np.ndarray, n_sd: float) -> np.ndarray:
    """Whether each value lies more than `n_sd` standard deviations (population) off the mean, by one row of moments."""
    n, total, squares = moments
    mean = total / n
    sd = np.sqrt(max(squares / n - mean**2, 0.0))
    return np.abs(values - mean) > n_sd * sd + 1e-7 * abs(mean)  # what rounding makes of cells that are all alike
