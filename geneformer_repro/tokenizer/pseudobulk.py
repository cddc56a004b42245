"""Samples out of cells: the raw counts of each group of cells, summed, a block of cells at a time."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.utils import make_index_unique
from scipy.sparse import csr_matrix

from geneformer_repro.arguments import typed
from geneformer_repro.errors import InputError
from geneformer_repro.tokenizer.labels import as_labels
from geneformer_repro.tokenizer.placeholders import warn_of_no_donors
from geneformer_repro.tokenizer.readers import CountSource, open_counts

logger = logging.getLogger(__name__)

N_CELLS = "n_cells"


@typed
def pseudobulk(
    source: AnnData | str | Path, by: str | Sequence[str], *, layer: str | None = None, min_cells: int = 10
) -> AnnData:
    """Sum the raw counts of the cells of each group.

    Parameters
    ----------
    source
        Cells with raw counts, in anything that `tokenize` reads.
    by
        One or several columns of ``obs``: a group is the cells that have the same values in all, such as those of one
        type from one donor. Cells without a value are left out.
    layer
        Matrix with the counts, "raw" for ``.raw``; default ``X``.
    min_cells
        Groups of fewer cells are left out.

    Returns
    -------
    Groups × genes, exact sums (float64, sparse), groups sorted by their values and named by them (``donor1|B cell``).
    ``obs`` has the columns `by` (as text), ``n_cells``, and each further column that has one value in every group.
    ``var`` has the genes' ids as its index, and ``gene_name``. Features that are no genes are left out.

    Raises
    ------
    InputError
        There is no such column, or no group has enough cells.
    DataFormatError
        A value is no count, or the file is damaged.

    See Also
    --------
    tokenize : Samples as tokens, as cells are.
    read_samples : Bulk samples with what is known of their patients.

    Examples
    --------
    >>> import geneformer_repro as gf
    >>> samples = gf.pseudobulk("cells.h5ad", ["donor", "cell_type"], min_cells=30)
    >>> samples.obs_names[:2].tolist()
    ['donor1|CD14+ Monocyte', 'donor1|CD19+ B']
    >>> bool((samples.obs["n_cells"] >= 30).all())
    True
    """
    columns = [by] if isinstance(by, str) else list(by)
    if not columns or len(set(columns)) < len(columns):
        raise InputError(f"by={by!r}: expected one or several different columns of obs.")
    cells = open_counts(source, layer=layer)
    labels = pd.DataFrame({column: as_labels(cells.obs(column).reset_index(drop=True)) for column in columns})
    for column in columns:
        warn_of_no_donors(labels[column], column)
    groups, codes = _groups(cells.name, labels, min_cells)
    sums = csr_matrix((len(groups), len(cells.gene_ids)), dtype=np.float64)
    for block in cells.blocks():
        of_block = codes[block.start : block.start + block.counts.shape[0]]
        rows = np.flatnonzero(of_block >= 0)
        members = csr_matrix((np.ones(len(rows)), (of_block[rows], rows)), shape=(len(groups), len(of_block)))
        sums = sums + members @ block.counts
    further = _constant_columns(cells, columns, codes).set_axis(groups.index, axis=0)
    return AnnData(csr_matrix(sums), obs=groups.join(further), var=_var(cells))


def _groups(name: str, labels: pd.DataFrame, min_cells: int) -> tuple[pd.DataFrame, np.ndarray]:
    """Return a row a group that is large enough, and the number of each cell's group, -1 for none."""
    columns = [str(column) for column in labels]
    what = " × ".join(columns)
    sizes = labels.value_counts(sort=False).sort_index().rename(N_CELLS).reset_index()
    n_missing = int(labels.isna().any(axis=1).sum())
    if n_missing:
        logger.warning("%s: %d of %d cells have no %s; left out.", name, n_missing, len(labels), " or ".join(columns))
    stays = sizes[N_CELLS] >= min_cells
    if not stays.any():
        largest = f"the largest has {sizes[N_CELLS].max()}" if len(sizes) else "there is none"
        raise InputError(
            f"{name}: no group of {what} has {min_cells} cells ({largest}); lower min_cells, or name fewer columns."
        )
    names = pd.Index(["|".join(row) for row in sizes[columns].itertuples(index=False)], dtype=object)
    groups = sizes[stays].set_axis(make_index_unique(names)[stays], axis=0)
    left_out = sizes[~stays]
    logger.info(
        "%s: %d groups of %s%s.",
        name,
        len(groups),
        what,
        f"; {len(left_out)} of fewer than {min_cells} cells left out ({left_out[N_CELLS].sum()} cells)"
        if len(left_out)
        else "",
    )
    return groups, pd.MultiIndex.from_frame(groups[columns]).get_indexer(pd.MultiIndex.from_frame(labels))


def _constant_columns(cells: CountSource, by: Sequence[str], codes: np.ndarray) -> pd.DataFrame:
    """Return the other columns of obs that have one value in every group, a row a group."""
    first = np.unique(codes, return_index=True)[1][-(codes.max() + 1) :]
    member = codes >= 0
    constant = {}
    for column in cells.obs_columns:
        if column in by or column == N_CELLS:
            continue
        values = cells.obs(column).reset_index(drop=True)
        places = pd.factorize(values)[0]
        if (places[member] == places[first][codes[member]]).all():
            constant[column] = values.iloc[first].to_numpy()
    return pd.DataFrame(constant)


def _var(cells: CountSource) -> pd.DataFrame:
    ids = [gene or name for gene, name in zip(cells.gene_ids, cells.gene_names, strict=True)]
    return pd.DataFrame({"gene_name": list(cells.gene_names)}, index=make_index_unique(pd.Index(ids, dtype=object)))
