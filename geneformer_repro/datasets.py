"""Real cells that need no download, for the demo, the examples and the tests.

See Also
--------
datasets.pbmc700 : 700 blood cells.

Examples
--------
>>> import geneformer_repro as gf
>>> gf.datasets.pbmc700().shape
(700, 754)
"""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from geneformer_repro.errors import DataFormatError
from geneformer_repro.tokenizer.symbols import ensembl_of_symbol

if TYPE_CHECKING:
    from anndata import AnnData


def pbmc700() -> "AnnData":
    """Return 700 blood cells of ten types, with raw counts and Ensembl ids.

    They are the cells of `scanpy.datasets.pbmc68k_reduced`, which scanpy ships: its 765 genes are a choice of the
    measured ones (most of them highly variable), so a cell has 250 genes here where it has 1,000 in full data. Eleven
    genes whose name leads to no Ensembl id are left out.

    Returns
    -------
    ``X`` raw counts (CSR, float32); ``obs['cell_type']`` (that data set's ``bulk_labels``, from sorted populations by
    correlation, not from a clustering of these cells), ``obs['n_counts']`` (total counts over all measured genes),
    ``obs['phase']``; ``var`` indexed by Ensembl id, with ``gene_name``.

    Raises
    ------
    DataFormatError
        The installed scanpy ships other values than the ones known here.

    See Also
    --------
    tokenize : What to do with them first.

    Notes
    -----
    ``.raw`` there holds log1p of counts per 10,000, rounded to four digits. Undone, every value lies within 0.09 of an
    integer (99 % within 0.007), which is checked, so that rounding gives the counts back.

    References
    ----------
    Zheng et al., Nature Communications 8, 14049 (2017).

    Examples
    --------
    >>> import geneformer_repro as gf
    >>> adata = gf.datasets.pbmc700()
    >>> adata.shape, int(adata.X.sum())
    ((700, 754), 486033)
    >>> adata.obs["cell_type"].value_counts().head(3)
    cell_type
    Dendritic         240
    CD14+ Monocyte    129
    CD19+ B            95
    Name: count, dtype: int64
    >>> adata.var.head(2)
                    gene_name
    ENSG00000188290      HES4
    ENSG00000186827   TNFRSF4
    """
    import scanpy

    source = scanpy.datasets.pbmc68k_reduced()
    n_counts = source.obs["n_counts"].to_numpy(dtype=np.float64)
    logged = csr_matrix(source.raw.X)
    scaled = np.expm1(logged.data.astype(np.float64)) * np.repeat(n_counts, np.diff(logged.indptr)) / 1e4
    counts = np.rint(scaled)
    if np.abs(scaled - counts).max() > 0.1:
        raise DataFormatError(
            "scanpy.datasets.pbmc68k_reduced() no longer gives whole counts back; please report it with your scanpy "
            "version."
        )
    symbols = source.raw.var_names.astype(str)
    ids = [ensembl_of_symbol().get(symbol) for symbol in symbols]
    named = np.flatnonzero([gene is not None for gene in ids])
    matrix = csr_matrix((counts.astype(np.float32), logged.indices, logged.indptr), shape=logged.shape)[:, named]
    columns = {"bulk_labels": str, "phase": str, "n_counts": np.float64}
    obs = source.obs[list(columns)].astype(columns).rename(columns={"bulk_labels": "cell_type"}, index=str)
    var = pd.DataFrame({"gene_name": symbols[named]}, index=pd.Index([ids[i] for i in named]))
    return type(source)(X=matrix, obs=obs, var=var)
