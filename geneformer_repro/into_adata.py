"""Results in the AnnData that one has, joined by the names of its cells, or by which gene each of its genes is.

What has no result is NaN, and how many are is said in the log, as is what was there by that name; nothing else of the
AnnData changes. A view becomes an AnnData of its own, as whenever one is written to; of a file (backed) it cannot.
"""

import logging
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData

from geneformer_repro.errors import InputError, listed
from geneformer_repro.tokenizer.genes import KnownGenes, reconcile
from geneformer_repro.tokenizer.readers import open_counts

logger = logging.getLogger(__name__)

FEWEST_SHARE = 0.1
"""Of the genes that could meet, those that must."""

KEY = "X_geneformer"
"""Of vectors in ``obsm`` and ``varm``, and in ``uns`` of what made them."""


def require_writable(adata: AnnData) -> None:
    """Refuse, before the work, what AnnData cannot write to.

    Raises
    ------
    InputError
        It is a view of a file.
    """
    if adata.is_view and adata.isbacked:
        raise InputError(
            "The AnnData is a view of a file, which results cannot be written to. Give adata.to_memory(), or all of it."
        )


def places_of_cells(adata: AnnData, names: Any) -> np.ndarray:
    """Return the row among `names` of each cell of an AnnData, -1 of one that has none.

    Raises
    ------
    InputError
        Names stand twice, on either side, or no cell has one of `names`.
    """
    require_writable(adata)
    names, there = pd.Index(names).astype(str), adata.obs_names.astype(str)
    for what, index in (
        ("into=: cell names of the AnnData", there),
        ("into=: names of the cells that were read", names),
    ):
        if not index.is_unique:
            again = index[index.duplicated()][0]
            raise InputError(f"{what} stand more than once ({again!r} …), so that rows cannot be told apart.")
    places: np.ndarray = names.get_indexer(there)
    return _with_some(places, "cells", first=(there[0], names[0]) if len(there) and len(names) else ("", ""))


def places_of_genes(
    adata: AnnData,
    genes: KnownGenes | pd.Index,
    *,
    layer: str | None = None,
    gene_ids: str | None = None,
) -> np.ndarray:
    """Return which of `genes` each gene of an AnnData is, as `tokenize` takes it; -1 where it is none.

    Parameters
    ----------
    genes
        Of a vocabulary; or gene ids.
    layer, gene_ids
        Where its counts and gene ids are, as for `tokenize`.

    Raises
    ------
    InputError
        None of its genes is one of `genes`.
    """
    require_writable(adata)
    source = open_counts(adata, layer=layer, gene_ids=gene_ids)
    if isinstance(genes, pd.Index):
        places = genes.get_indexer(pd.Index(reconcile(source, None).table["gene_id"]))
        known = genes[0] if len(genes) else ""
    else:
        places, known = reconcile(source, genes).position, next(iter(genes.position))
    if layer == "raw":
        by_name = pd.Series(places, adata.raw.var_names)
        places = by_name[~by_name.index.duplicated()].reindex(adata.var_names, fill_value=-1).to_numpy()
    return _with_some(np.asarray(places), "genes", first=(source.gene_ids[0], known))


def places_of_results(adata: AnnData, genes: pd.Index) -> np.ndarray:
    """Return which of the genes with a result each gene of an AnnData is, -1 where it is none, as `places_of_genes`.

    Raises
    ------
    InputError
        Fewer than a tenth of them meet, of the AnnData's genes or of those with a result, whichever are fewer.
    """
    places = places_of_genes(adata, genes)
    n_met, n_most = len(np.unique(places[places >= 0])), min(len(places), len(genes))
    if n_met < FEWEST_SHARE * n_most:
        raise InputError(
            f"into=: only {n_met:,} genes of the AnnData ({len(places):,}) are among the {len(genes):,} with a result. "
            "Give the AnnData that the cells were tokenised from, or one of the same organism and gene ids."
        )
    return places


def _with_some(places: np.ndarray, what: str, first: tuple[str, str]) -> np.ndarray:
    n_without = int((places < 0).sum())
    if n_without == len(places):
        raise InputError(
            f"into=: none of the AnnData's {len(places):,} {what} is among those with a result (first: {first[0]!r}, "
            f"{first[1]!r}). Give the AnnData that these {what} are from."
        )
    if n_without:
        logger.info("%d of the AnnData's %d %s have no result (NaN).", n_without, len(places), what)
    return places


def put_vectors(store: Any, vectors: np.ndarray, places: np.ndarray) -> None:
    """Write vectors into ``obsm`` or ``varm``, in the order of the AnnData."""
    _tell_replaced([KEY] if KEY in store else [])
    placed = np.full((len(places), vectors.shape[1]), np.nan, dtype=np.float32)
    placed[places >= 0] = vectors[places[places >= 0]]
    store[KEY] = placed


def put_columns(
    adata: AnnData, axis: Literal["obs", "var"], table: pd.DataFrame, places: np.ndarray, *, prefix: str = ""
) -> None:
    """Write columns into ``obs`` or ``var``, "/" in their names as "|": AnnData writes no column with "/"."""
    frame: pd.DataFrame = getattr(adata, axis)
    placed = table.reset_index(drop=True).reindex(places).set_axis(frame.index)  # no row -1: missing
    names = [f"{prefix}{name}".replace("/", "|") for name in table]
    replaced = [name for name in names if name in frame]
    _tell_replaced(replaced)
    both = [frame.drop(columns=replaced), placed.set_axis(names, axis=1)]
    setattr(adata, axis, pd.concat(both, axis=1))  # at once: a view is copied once, a frame stays in one piece


def _tell_replaced(names: Sequence[str]) -> None:
    if names:
        logger.info("Replaced what the AnnData had by the name of %s.", listed(names))
