"""What perturbing a gene did to all others, from perturbed cells: the table that `evaluate_network` takes.

CausalBench's measure: how far the distribution of a gene's expression among the perturbed cells lies from that among
the controls. Cells are the samples of its test, so with many of them p-values are small for small changes; where there
are replicates, a table of a test over these (limma, DESeq2) says more, and is taken as well.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix, diags_array, vstack
from scipy.stats import mannwhitneyu, wasserstein_distance

from geneformer_repro.arguments import typed
from geneformer_repro.errors import InputError, did_you_mean
from geneformer_repro.tokenizer.features import texts
from geneformer_repro.tokenizer.readers import CountSource, open_counts

if TYPE_CHECKING:
    from anndata import AnnData

FEWEST_CELLS = 10
"""Cells of a perturbation, and of controls, that are compared."""
_GENES_AT_ONCE = 512


@typed
def perturbed_targets(
    counts: "AnnData | str | Path", *, column: str, control: str, min_detection: float = 0.05
) -> pd.DataFrame:
    """Measure how far each gene moved in the cells of each perturbation.

    Parameters
    ----------
    counts
        Raw counts of perturbed and control cells.
    column
        Obs column that names the perturbed gene of each cell, by id or symbol; a cell without one is left out.
    control
        Its label for cells that were not perturbed.
    min_detection
        Genes in a smaller share of the controls are left out, 0 to 1.

    Returns
    -------
    A row a perturbation and gene: ``perturbed`` (its label), ``target`` (gene id as in `counts`), ``wasserstein``, the
    distance between both distributions of log1p counts per 10,000; ``p``, two-sided, of a Mann–Whitney test between
    cells. Perturbations with fewer than 10 cells are left out.

    Raises
    ------
    InputError
        There is no such column, fewer than 10 control cells, or no perturbation with 10.

    See Also
    --------
    evaluate_network : Takes the table as ``perturbed=``.

    References
    ----------
    Chevalley et al., Communications Biology 8, 412 (2025), CausalBench.

    Examples
    --------
    >>> import geneformer_repro as gf
    >>> from geneformer_repro.in_silico.networks.perturbed_cells import perturbed_targets
    >>> cells = gf.datasets.pbmc700()
    >>> cells.obs["perturbed"] = ["none", "CD79A"] * 350
    >>> table = perturbed_targets(cells, column="perturbed", control="none", min_detection=0.5)
    >>> table.columns.tolist(), bool(table["p"].between(0, 1).all())
    (['perturbed', 'target', 'wasserstein', 'p'], True)
    """
    source = open_counts(counts)
    labels = np.array(texts(source.obs(column)), dtype=object)
    rows = {str(label): np.flatnonzero(labels == label) for label in pd.unique(labels) if label}
    if len(rows.get(control, [])) < FEWEST_CELLS:
        raise InputError(
            f"{source.name}: {len(rows.get(control, []))} cells have {column} = {control!r}; at least {FEWEST_CELLS} "
            f"controls are compared with. {did_you_mean(control, rows)}"
        )
    controls = rows.pop(control)
    compared = {label: cells for label, cells in rows.items() if len(cells) >= FEWEST_CELLS}
    if not compared:
        raise InputError(f"{source.name}: no label of {column!r} but {control!r} has {FEWEST_CELLS} cells.")
    values = _log_normalised(source)
    genes = np.flatnonzero(values[controls].getnnz(axis=0) >= max(1, min_detection * len(controls)))
    ids = np.array([gene or name for gene, name in zip(source.gene_ids, source.gene_names, strict=True)], dtype=object)
    tables = [_moved(values, label, cells, controls, genes, ids) for label, cells in compared.items()]
    return pd.concat(tables, ignore_index=True)


def _log_normalised(source: CountSource) -> csr_matrix:
    blocks = []
    for block in source.blocks():
        scale = diags_array(1e4 / np.maximum(source.total_counts(block), 1.0))
        blocks.append(csr_matrix(scale @ block.counts).log1p())
    return csr_matrix(vstack(blocks, format="csr"))


def _moved(
    values: csr_matrix, label: str, cells: np.ndarray, controls: np.ndarray, genes: np.ndarray, ids: np.ndarray
) -> pd.DataFrame:
    tables = []
    for start in range(0, len(genes), _GENES_AT_ONCE):
        here = genes[start : start + _GENES_AT_ONCE]
        after, before = (values[rows][:, here].toarray() for rows in (cells, controls))
        distance = [wasserstein_distance(after[:, i], before[:, i]) for i in range(len(here))]
        p_value = mannwhitneyu(after, before, axis=0).pvalue
        tables.append(pd.DataFrame({"target": ids[here], "wasserstein": distance, "p": p_value}))
    table = pd.concat(tables, ignore_index=True)
    table.insert(0, "perturbed", label)
    return table
