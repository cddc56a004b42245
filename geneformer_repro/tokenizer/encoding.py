"""Rank-value encoding: pure arithmetic on a block of counts, no file and no device.

One sort over the whole block (cell, then value, then vocabulary order) instead of one per cell, so that
ties have a rule: NumPy's default sort leaves the order of equal values to the machine.
"""

from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_matrix

from geneformer_repro.errors import InputError
from geneformer_repro.tokenizer.medians import TARGET_SUM
from geneformer_repro.tokenizer.vocabulary import CLS, EOS, Vocabulary


class Ragged(NamedTuple):
    """Rows of different lengths: row i is ``values[offsets[i]:offsets[i + 1]]``."""

    values: np.ndarray
    offsets: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Length of each row."""
        return np.diff(self.offsets)


def encode(counts: csr_matrix, vocabulary: Vocabulary, *, n_counts: np.ndarray | None = None) -> Ragged:
    """Order each cell's expressed genes by expression relative to the corpus.

    A gene's value is its count, scaled so that the cell sums to 10,000, divided by the gene's non-zero median
    over the corpus; computed in that order, as published. Equal values keep vocabulary order.

    Parameters
    ----------
    counts
        Raw counts, cells × genes; columns follow ``vocabulary.gene_ids``. Not log-transformed.
    vocabulary
        Needs medians.
    n_counts
        Total counts of each cell, also of genes outside the vocabulary; default the sum of `counts`. It cancels
        in the ranking, but for values that differ only by rounding.

    Returns
    -------
    Token ids, most distinctive gene first, cut to ``vocabulary.max_length`` with ``<cls>`` and ``<eos>`` around
    them where the vocabulary has these; a cell without a known gene has only those.

    Raises
    ------
    InputError
        The vocabulary has no medians.

    References
    ----------
    Theodoris et al., Nature 618, 616 (2023), Methods, "Rank value encoding".
    """
    if vocabulary.medians is None:
        raise InputError(
            f"{vocabulary!r} has no medians, so it can read tokens but not make them. Give "
            f"Vocabulary.from_tokens(…, medians=…)."
        )
    assert counts.shape[1] == len(vocabulary), (counts.shape, len(vocabulary))
    n_cells = counts.shape[0]
    expressed = counts.data > 0
    cell = np.repeat(np.arange(n_cells), np.diff(counts.indptr))[expressed]
    gene = counts.indices[expressed]
    totals = np.asarray(counts.sum(axis=1)).ravel() if n_counts is None else np.asarray(n_counts)
    value = (
        counts.data[expressed].astype(np.float64)
        / totals.astype(np.float64)[cell]
        * TARGET_SUM
        / vocabulary.medians[gene]
    )
    order = np.lexsort((gene, -value, cell))
    n_genes = np.bincount(cell, minlength=n_cells)
    rank = np.arange(len(cell)) - np.repeat(np.cumsum(n_genes) - n_genes, n_genes)

    before, after = (
        ([vocabulary.special_tokens[CLS]], [vocabulary.special_tokens[EOS]]) if vocabulary.has_cls else ([], [])
    )
    room = vocabulary.max_length - len(before) - len(after)
    kept = rank < room
    offsets = np.concatenate([[0], np.cumsum(np.minimum(n_genes, room) + len(before) + len(after))])
    values = np.empty(offsets[-1], dtype=np.min_scalar_type(vocabulary.size))
    values[offsets[cell[kept]] + len(before) + rank[kept]] = vocabulary.tokens[gene[order][kept]]
    if vocabulary.has_cls:
        values[offsets[:-1]], values[offsets[1:] - 1] = before[0], after[0]
    return Ragged(values, offsets)
