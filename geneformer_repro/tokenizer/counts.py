"""Given cells as matrices: what their tokens say, and the raw counts, read again from where the cells came from.

A tokenised cell has lost its counts, and methods without a model need them. So they are joined by cell name from the
file that `tokenize` recorded, if that is still there as it was, or from one that is given. Bulk samples have expression
or z-scores in their place.
"""

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix, diags_array, vstack

from geneformer_repro.errors import InputError
from geneformer_repro.tokenizer.corpus import identity, is_unchanged, require_identity
from geneformer_repro.tokenizer.dataset import TokenizedDataset
from geneformer_repro.tokenizer.genes import reconcile, summing_matrix
from geneformer_repro.tokenizer.measures import Measure, Values
from geneformer_repro.tokenizer.readers import CountSource, open_counts
from geneformer_repro.tokenizer.summary import INPUT_IDS, SOURCE
from geneformer_repro.tokenizer.vocabulary import Vocabulary

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)

_CELLS_AT_ONCE = 2000
_DIGESTED_AT_ONCE = 2**22


def rank_values(cells: TokenizedDataset) -> csr_matrix:
    """Return what a cell's tokens say of its genes, as numbers: 1 for the most distinctive, towards 0 for the last.

    Returns
    -------
    Cells × genes of the vocabulary, float32: ``(L - p) / L`` for the gene at place p, from 0, of a cell of L genes; 0
    for a gene that is not among the cell's tokens. Special tokens are left out.
    """
    tokens = cells.table.with_format("arrow", columns=[INPUT_IDS])
    starts = range(0, max(1, len(cells)), _CELLS_AT_ONCE)
    blocks = [_rank_values(tokens[i : i + _CELLS_AT_ONCE].column(0), cells.vocabulary) for i in starts]
    return csr_matrix(vstack(blocks, format="csr"))


def _rank_values(tokens: Any, vocabulary: Vocabulary) -> csr_matrix:
    lists = tokens.combine_chunks()
    genes = vocabulary.genes_of(lists.flatten().to_numpy())
    cell = np.repeat(np.arange(len(lists)), lists.value_lengths().to_numpy())[genes >= 0]
    n_genes = np.bincount(cell, minlength=len(lists))
    ends = np.cumsum(n_genes)
    left = (np.repeat(ends, n_genes) - np.arange(len(cell))) / np.repeat(n_genes, n_genes)
    offsets = np.concatenate([[0], ends])
    return csr_matrix((left.astype(np.float32), genes[genes >= 0], offsets), shape=(len(lists), len(vocabulary)))


def log_normalise(counts: csr_matrix, values: Values = "counts") -> csr_matrix:
    """Return log1p of counts per 10,000, where an empty cell stays empty; of expression; or z-scores as they are."""
    if values != "counts":
        return counts if values == "zscore" else counts.log1p()
    totals = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
    return csr_matrix(diags_array(1e4 / np.maximum(totals, 1.0)) @ counts).log1p()


def digest_of(counts: csr_matrix | None) -> str | None:
    """Return a digest of a matrix's content, to tell whether counts are still the same; None of none."""
    if counts is None:
        return None
    digest = hashlib.sha256(f"{counts.shape} {counts.dtype}".encode())
    for array in (counts.indptr, counts.indices, counts.data):
        for start in range(0, len(array), _DIGESTED_AT_ONCE):
            piece = array[start : start + _DIGESTED_AT_ONCE]
            digest.update((piece if array is counts.data else piece.astype(np.int64)).tobytes())
    return digest.hexdigest()


def counts_of(source: CountSource, cell_names: np.ndarray) -> csr_matrix:
    """Return the raw counts of these cells, in this order; a missing z-score is 0, the mean.

    Raises
    ------
    InputError
        A cell is not in the source.
    """
    wanted = pd.Index(cell_names)
    place = wanted.get_indexer(source.cell_names())
    missing = np.setdiff1d(np.arange(len(wanted)), place)
    if len(missing):
        raise InputError(
            f"{source.name}: {len(missing)} of {len(cell_names)} cells of the dataset are not in it (first: "
            f"{cell_names[missing[0]]!r}); it is not where the dataset came from."
        )
    rows = np.flatnonzero(place >= 0)
    blocks = [
        block.counts[rows[(rows >= block.start) & (rows < block.start + block.counts.shape[0])] - block.start]
        for block in source.blocks()
    ]
    counts = csr_matrix(vstack(blocks, format="csr"))[np.argsort(place[rows])]
    counts.data[np.isnan(counts.data)] = 0
    return counts


def raw_counts(cells: TokenizedDataset, counts: "AnnData | str | Path | None" = None) -> csr_matrix | None:
    """Return the raw counts of the cells, in their order; None if they are not at hand.

    Of bulk samples their linear expression, or z-scores, as they were tokenised.

    Parameters
    ----------
    cells
        Tokenised cells.
    counts
        Where their counts are, if not where `tokenize` found them.

    Returns
    -------
    A column a gene of the source; of several sources, a column a gene of the vocabulary.
    """
    if counts is None and len(cells.spec["sources"]) > 1:
        return vocabulary_counts(cells)
    with _opened_sources(cells, counts) as opened:
        return counts_of(opened[0], cells.cell_names) if opened else None


def vocabulary_counts(cells: TokenizedDataset, counts: "AnnData | str | Path | None" = None) -> csr_matrix | None:
    """Return the raw counts of the cells as `raw_counts`, but always a column a gene of the vocabulary.

    None also where the cells were tokenised with a table of orthologs, which is not kept.
    """
    with _opened_sources(cells, counts, mapped=True) as opened:
        if len(opened) <= 1:
            matrices = [
                counts_of(source, cells.cell_names) @ _to_vocabulary(source, cells.vocabulary) for source in opened
            ]
            return csr_matrix(matrices[0]) if matrices else None
        return _counts_of_several(opened, cells)


def _counts_of_several(opened: list[CountSource], cells: TokenizedDataset) -> csr_matrix:
    labels, sources = cells.require_obs(SOURCE).to_numpy(), cells.spec["sources"]
    names = np.array([name.removeprefix(f"{label}/") for name, label in zip(cells.cell_names, labels, strict=True)])
    rows = [np.flatnonzero(labels == source["name"]) for source in sources]
    matrices = [
        counts_of(source, names[where]) @ _to_vocabulary(source, cells.vocabulary)
        for source, where in zip(opened, rows, strict=True)
        if len(where)
    ]
    return csr_matrix(vstack(matrices, format="csr"))[np.argsort(np.concatenate(rows))]


@contextmanager
def _opened_sources(
    cells: TokenizedDataset, counts: "AnnData | str | Path | None", *, mapped: bool = False
) -> Iterator[list[CountSource]]:
    """Open `counts`, or what the cells were tokenised from; nothing, and say so, if that is gone or has changed.

    Raises
    ------
    ChangedDataError
        At the end, if a file was replaced or written to meanwhile.
    """
    sources = cells.spec["sources"]
    has_orthologs = bool(cells.spec.get("options", {}).get("n_orthologs"))
    chosen: list[Any] = []
    why = "the cells were tokenised in memory"
    if mapped and has_orthologs:
        why = "the table of orthologs that led to the vocabulary's genes is not kept"
    elif counts is not None:
        chosen = [counts]
    elif all(map(is_unchanged, sources)):
        chosen = [source["path"] for source in sources]
    else:
        why = sources[0].get("path") or why
    if not chosen:
        logger.warning("No raw counts at hand (%s), so what needs them is left out; give counts=.", why)
    identities = {path: identity(Path(path)) for path in chosen if isinstance(path, (str, Path))}
    measure = Measure(cells.vocabulary.values, cells.spec.get("options", {}).get("log2", False))
    yield [
        open_counts(path, layer=source.get("layer"), gene_ids=source.get("gene_ids"), measure=measure)
        for path, source in zip(chosen, sources, strict=False)
    ]
    for path, before in identities.items():
        require_identity(Path(path), before, name=str(path))


def _to_vocabulary(source: CountSource, vocabulary: Vocabulary) -> csr_matrix:
    """Return a matrix by which values get the columns of the vocabulary; of one gene summed, z-scores averaged."""
    summing = summing_matrix(reconcile(source, vocabulary).position, len(vocabulary))
    if vocabulary.values == "zscore":
        summing.data /= summing.getnnz(axis=0)[summing.indices]
    return summing
