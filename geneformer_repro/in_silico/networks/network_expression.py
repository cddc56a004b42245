"""What counts of the same cells say of a network's genes and pairs, without the model.

Two genes whose expression rises and falls together are attended together too, and a gene that a state switches on takes
a front place, where everything is attended. So fold changes stand beside changed genes, and changes of rank correlation
beside changed edges, of the same cells, pairs and donors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix, vstack
from scipy.stats import rankdata

from geneformer_repro.errors import InputError
from geneformer_repro.in_silico.gene_baselines import log_per_million, sums_by_donor
from geneformer_repro.tokenizer.counts import log_normalise
from geneformer_repro.tokenizer.genes import GivenGenes, reconcile, summing_matrix
from geneformer_repro.tokenizer.readers import CountSource, open_counts

if TYPE_CHECKING:
    from anndata import AnnData

FEWEST_CELLS = 20
"""Of a group in which genes are correlated."""
_ALL = "all"


@dataclass(frozen=True, eq=False)
class GroupedCounts:
    """Counts of a network's genes, and of which state and donor each cell is."""

    counts: csr_matrix
    """Raw, cells × genes, in the order of the network's."""
    state: np.ndarray
    donor: np.ndarray | None

    @classmethod
    def read(
        cls,
        counts: "AnnData | str | Path",
        genes: pd.DataFrame,
        *,
        by: str | None,
        donor: str | None,
        cells: np.ndarray | None = None,
    ) -> "GroupedCounts":
        """Read counts of some genes.

        Parameters
        ----------
        counts
            Raw counts of the cells that the network is of.
        genes
            By gene id, with ``gene_name``.
        by, donor
            The obs columns of states and donors; None: all cells are of one.
        cells
            Names of the cells to use, where the counts hold more; None all.

        Raises
        ------
        InputError
            A column is not there, no gene is known, or no cell is there.
        """
        source = open_counts(counts)
        columns = [None if column is None else source.obs(column) for column in (by, donor)]
        names = genes["gene_name"].astype(str)
        by_name = {name: i for i, name in enumerate(names) if name}
        place = reconcile(source, GivenGenes(tuple(genes.index), by_name, {})).position
        if not (place >= 0).any():
            raise InputError(
                f"{source.name}: none of its {len(place):,} genes is one of the network's {len(genes):,} (first: "
                f"{source.gene_ids[0]!r}, {genes.index[0]!r}). Give the counts of the cells that it was made of."
            )
        state, donors = (None if column is None else column.astype(object).to_numpy() for column in columns)
        state = np.full(source.n_cells, _ALL, dtype=object) if state is None else state
        used = np.arange(source.n_cells)
        if cells is not None:
            used = np.flatnonzero(np.isin(source.cell_names().astype(str), cells.astype(str)))
            if not len(used):
                raise InputError(f"{source.name}: holds none of the {len(cells):,} cells= (first: {cells[0]!r}).")
        matrix = _counts(source, summing_matrix(place, len(genes)))[used]
        return cls(matrix, state[used], None if donors is None else donors[used])

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
            n_cells = self.group(group["state"], group.get("donor")).shape[0]
            if n_cells != group["n_cells"]:
                of_donor = "" if group.get("donor") is None else f" of donor {group['donor']!r}"
                raise InputError(
                    f"The network was made of {group['n_cells']:,} cells in state {group['state']!r}{of_donor}, and "
                    f"the counts hold {n_cells:,}. Give the counts of these cells alone, or also the tokenised cells: "
                    "cells= (--cells)."
                )

    def group(self, state: str, donor: str | None = None) -> csr_matrix:
        """Return the counts of a state's cells, or of one donor's in it.

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
        return csr_matrix(self.counts[chosen])


def _counts(source: CountSource, to_genes: csr_matrix) -> csr_matrix:
    return csr_matrix(vstack([block.counts @ to_genes for block in source.blocks()], format="csr"))


def spearman(counts: csr_matrix, sources: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the rank correlation of each source with each target over cells.

    Parameters
    ----------
    counts
        Cells × genes, raw; each cell is brought to 10,000 counts.
    sources, targets
        Columns.

    Returns
    -------
    Sources × targets; NaN for a gene that is alike in all cells, or below 20 cells.
    """
    if counts.shape[0] < FEWEST_CELLS:
        return np.full((len(sources), len(targets)), np.nan)
    logged = log_normalise(counts).tocsc()
    of_sources, of_targets = (_standard_ranks(logged[:, columns].toarray()) for columns in (sources, targets))
    correlation: np.ndarray = of_sources.T @ of_targets
    return np.clip(correlation, -1, 1)


def _standard_ranks(values: np.ndarray) -> np.ndarray:
    """Return ranks in each column less their mean, of length 1; NaN where all are equal."""
    ranks = rankdata(values, axis=0)
    ranks -= ranks.mean(axis=0)
    length = np.sqrt((ranks**2).sum(axis=0))
    return np.divide(ranks, length, out=np.full_like(ranks, np.nan), where=length > 0)


def log2_fold_changes(expression: GroupedCounts, a: str, b: str) -> np.ndarray:
    """Return log2 fold changes of genes from state a to b, donors × genes.

    Parameters
    ----------
    expression
        The counts.
    a, b
        States; above 0 a gene is higher in b.

    Returns
    -------
    Of each donor that has both states, from counts summed over its cells, as log2 of counts per million with a prior
    count of 2 in a mean library (edgeR's). Without donors, or if none has both, one row of all cells.
    """
    before, after = expression.group(a), expression.group(b)
    donors = [np.full(counts.shape[0], "") for counts in (before, after)]
    if expression.donor is not None:
        donors = [expression.donor[expression.state == state].astype(str) for state in (a, b)]
        if not set(donors[0]) & set(donors[1]):
            donors = [np.full(len(of_state), "") for of_state in donors]
    sums = [sums_by_donor(*pair) for pair in zip((before, after), map(pd.Series, donors), strict=True)]
    both = sums[0].index.intersection(sums[1].index)
    logged = log_per_million(sums[0].loc[both], sums[1].loc[both])
    change: np.ndarray = logged[1].to_numpy() - logged[0].to_numpy()
    return change
