"""What counts of the same cells say of a network's genes and pairs, without the model.

Two genes whose expression rises and falls together are attended together too, and a gene that a state switches on takes
a front place, where everything is attended. So fold changes stand beside changed genes, and correlations beside edges,
of the same cells, pairs and donors. There is one reader: counts are per 10,000 (or million) of all counts of the cell,
not of the network's genes, whose share of a cell changes with the state that is looked at.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix, diags_array, vstack
from scipy.stats import rankdata

from geneformer_repro.errors import InputError, did_you_mean
from geneformer_repro.in_silico.gene_baselines import log_per_million, sums_by_donor
from geneformer_repro.tokenizer.genes import KnownGenes, reconcile, summing_matrix
from geneformer_repro.tokenizer.readers import CountSource, open_counts

if TYPE_CHECKING:
    from anndata import AnnData

Correlation = Literal["pearson", "spearman"]
FEWEST_CELLS = 20
"""Of a state, or of a donor in it, in which genes are correlated."""
_ALL = "all"
_TARGETS_AT_ONCE = 512
_CONSTANT = 1e-12
"""Standard deviation up to which a gene is alike in all cells, but for rounding."""


@dataclass(frozen=True, eq=False)
class CellCounts:
    """Counts of a network's genes, and of which state and donor each cell is."""

    counts: csr_matrix
    """Raw, cells × genes, in the order of the network's."""
    totals: np.ndarray
    """Of each cell, over all genes that were counted."""
    state: np.ndarray
    donor: np.ndarray | None
    n_found: int
    """Cells that were asked for, of which these were drawn."""

    @classmethod
    def read(
        cls,
        counts: "AnnData | str | Path",
        genes: KnownGenes,
        *,
        by: str | None = None,
        donor: str | None = None,
        keep: Mapping[str, Collection[str]] | None = None,
        cell_names: Collection[str] | None = None,
        max_cells: int | None = None,
        rng: np.random.Generator | None = None,
    ) -> "CellCounts":
        """Read counts of some genes.

        Parameters
        ----------
        counts
            Raw counts of the cells that the network is of.
        genes
            The genes of the network; each is a column.
        by, donor
            The obs columns of states and donors; None: all cells are of one.
        keep
            Obs columns and the labels of which cells must have one; None: all cells.
        cell_names
            Names of the cells to use, where the counts hold more; None all.
        max_cells
            Of more cells so many are drawn; None all.
        rng
            Draws them.

        Raises
        ------
        InputError
            A column is not there, no gene is known, or no cell is left.
        """
        source = open_counts(counts)
        known = reconcile(source, genes)
        if not known.n_known:
            raise InputError(
                f"counts {source.name}: none of its {len(source.gene_ids):,} genes is one of the network's "
                f"{len(genes.gene_ids):,} (first: {source.gene_ids[0]!r}, {genes.gene_ids[0]!r}). Give the counts of "
                "the cells that it was made of."
            )
        state = np.full(source.n_cells, _ALL, dtype=object) if by is None else _labels(source, by)
        donors = None if donor is None else _labels(source, donor)
        rows = _rows(source, keep or {}, cell_names)
        n_found = len(rows)
        if max_cells is not None and n_found > max_cells:
            assert rng is not None
            rows = np.sort(rng.choice(rows, max_cells, replace=False))
        matrix, totals = _counted(source, rows, summing_matrix(known.position, len(genes.gene_ids)))
        return cls(matrix, totals, state[rows], None if donors is None else donors[rows], n_found)

    def require_cells(self, groups: Sequence[Mapping[str, Any]]) -> None:
        """Raise unless a network's groups have as many cells here.

        Parameters
        ----------
        groups
            Each with ``state``, ``donor`` and ``n_cells``.

        Raises
        ------
        InputError
            Others are there too, such as those of another type.
        """
        for group in groups:
            n_cells = len(self.of(group["state"], group.get("donor")).totals)
            if n_cells != group["n_cells"]:
                of_donor = "" if group.get("donor") is None else f" of donor {group['donor']!r}"
                raise InputError(
                    f"The network was made of {group['n_cells']:,} cells in state {group['state']!r}{of_donor}, and "
                    f"the counts hold {n_cells:,}. Give the counts of these cells alone, or also the tokenised cells: "
                    "cells= (--cells)."
                )

    def of(self, state: str, donor: str | None = None) -> "CellCounts":
        """Return a state's cells, or those of one donor in it.

        Raises
        ------
        InputError
            There is no such cell.
        """
        chosen = self.state == state
        if donor is not None and self.donor is not None:
            chosen &= self.donor == donor
        if not chosen.any():
            of_donor = "" if donor is None else f" of donor {donor!r}"
            raise InputError(
                f"The counts hold no cell in state {state!r}{of_donor}. Give those of the cells that the network was "
                "made of, with the same obs columns."
            )
        donors = None if self.donor is None else self.donor[chosen]
        counts = csr_matrix(self.counts[chosen])
        return CellCounts(counts, self.totals[chosen], self.state[chosen], donors, len(counts.indptr) - 1)

    def logged(self) -> csr_matrix:
        """Return log1p of counts per 10,000 of all counts of the cell."""
        return csr_matrix(diags_array(1e4 / np.maximum(self.totals, 1.0)) @ self.counts).log1p()


def _rows(source: CountSource, keep: Mapping[str, Collection[str]], cell_names: Collection[str] | None) -> np.ndarray:
    chosen = np.ones(source.n_cells, dtype=bool)
    for column, wanted in keep.items():
        labels = _labels(source, column)
        chosen &= np.isin(labels, list(wanted))
        if not chosen.any():
            first = next(iter(wanted))
            raise InputError(
                f"counts {source.name}: no cell has {column} = {first!r}, of which the network is. "
                f"{did_you_mean(first, pd.unique(labels))}"
            )
    if cell_names is not None:
        chosen &= pd.Index(source.cell_names()).isin(list(cell_names))
        if not chosen.any():
            raise InputError(
                f"counts {source.name}: holds none of the {len(cell_names):,} cells of cells= (first: "
                f"{next(iter(cell_names))!r})."
            )
    return np.flatnonzero(chosen)


def _labels(source: CountSource, column: str) -> np.ndarray:
    return source.obs(column).astype(object).map(str).to_numpy()


def _counted(source: CountSource, rows: np.ndarray, to_genes: csr_matrix) -> tuple[csr_matrix, np.ndarray]:
    """Return the counts of some cells, and the total of each."""
    blocks, totals = [], []
    for block in source.blocks():
        here = rows[(rows >= block.start) & (rows < block.start + block.counts.shape[0])] - block.start
        blocks.append(block.counts[here] @ to_genes)
        totals.append(source.total_counts(block)[here])
    return csr_matrix(vstack(blocks, format="csr")), np.concatenate(totals)


# Pairs


def correlation(
    values: csr_matrix, sources: np.ndarray, targets: np.ndarray, *, kind: Correlation = "spearman"
) -> np.ndarray:
    """Return the correlation of each source with each target over cells.

    Parameters
    ----------
    values
        Cells × genes, as of `CellCounts.logged`.
    sources, targets
        Columns.
    kind
        Spearman's ranks zeros as equal.

    Returns
    -------
    Sources × targets; NaN for a gene that is alike in all cells, or below 20 cells.
    """
    if values.shape[0] < FEWEST_CELLS:
        return np.full((len(sources), len(targets)), np.nan)
    of_sources = standardised(values, sources, kind)
    blocks = [of_sources.T @ standardised(values, block, kind) for block in blocks_of(targets)]
    return np.clip(np.hstack(blocks) / values.shape[0], -1, 1)


def standardised(values: csr_matrix, genes: np.ndarray, kind: Correlation) -> np.ndarray:
    """Return columns, or their ranks, of mean 0 and standard deviation 1; of a gene that is alike in all cells, NaN."""
    dense = values[:, genes].toarray().astype(np.float64)
    if kind == "spearman":
        dense = rankdata(dense, axis=0)
    dense -= dense.mean(axis=0)
    spread = dense.std(axis=0)
    return np.divide(dense, spread, out=np.full_like(dense, np.nan), where=spread > _CONSTANT)


def blocks_of(genes: np.ndarray) -> Iterator[np.ndarray]:
    """Cut genes into blocks whose dense columns are in memory together."""
    return (genes[start : start + _TARGETS_AT_ONCE] for start in range(0, len(genes), _TARGETS_AT_ONCE))


# Genes


def log2_fold_changes(expression: CellCounts, a: str, b: str) -> np.ndarray:
    """Return log2 fold changes of genes from state a to b, donors × genes.

    Parameters
    ----------
    expression
        The counts.
    a, b
        States; above 0 a gene is higher in b.

    Returns
    -------
    Of each donor that has both states, from counts summed over its cells, as log2 of counts per million of all counts
    with a prior count of 2 in a mean library (edgeR's). Without donors, or if none has both, one row of all cells.
    """
    before, after = expression.of(a), expression.of(b)
    donors = [np.full(len(cells.totals), "") for cells in (before, after)]
    if before.donor is not None and after.donor is not None and set(before.donor) & set(after.donor):
        donors = [before.donor, after.donor]
    named = [pd.Series(of_state) for of_state in donors]
    sums = [sums_by_donor(cells.counts, of) for cells, of in zip((before, after), named, strict=True)]
    libraries = [pd.Series(cells.totals).groupby(of).sum() for cells, of in zip((before, after), named, strict=True)]
    both = sums[0].index.intersection(sums[1].index)
    logged = log_per_million(*(of.loc[both] for of in sums), libraries=(libraries[0].loc[both], libraries[1].loc[both]))
    change: np.ndarray = logged[1].to_numpy() - logged[0].to_numpy()
    return change
