"""Genes near the targets of a drug in a network of genes: what a network for drug response may read of the expression.

A random walker starts at a drug's targets, goes along an edge, and with probability `restart` goes back to a target;
how often it is at each gene is the gene's weight. The walk is iterated on the sparse network until it stands still, for
all drugs at once: STRING's 8,806 genes (as BEELINE has them) are 2 MB so, and 600 MB as a dense inverse. Hubs (TP53,
SRC, JUN) are near every target; what such a list tells beyond them, a random list of its length says.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.sparse import coo_matrix, csr_matrix, diags_array

from geneformer_repro.errors import DataFormatError, InputError
from geneformer_repro.tokenizer.tables import examples

logger = logging.getLogger(__name__)

_CONVERGED = 1e-10
"""Sum of the changes of a drug's weights, which sum to 1, at which the walk has come to rest."""


@dataclass(frozen=True, eq=False)
class GeneGraph:
    """A network of genes to walk on; made by `GeneGraph.of_edges`.

    Parameters
    ----------
    genes
        Their names, sorted.
    steps
        Genes × genes: the probability to go from the column's gene to the row's; columns sum to 1.

    See Also
    --------
    propagation.genes_near_targets : The gene list of drugs.

    Examples
    --------
    >>> import pandas as pd
    >>> from geneformer_repro.propagation import GeneGraph
    >>> edges = pd.DataFrame({"a": ["EGFR", "GRB2"], "b": ["GRB2", "SOS1"]})
    >>> GeneGraph.of_edges(edges).genes
    ('EGFR', 'GRB2', 'SOS1')
    """

    genes: tuple[str, ...]
    steps: csr_matrix

    @classmethod
    def of_edges(cls, edges: pd.DataFrame, *, weight: str | None = None) -> "GeneGraph":
        """Make a network of its edges, which are walked both ways.

        Parameters
        ----------
        edges
            A row an edge: its first two columns are genes. Edges that stand several times add up; of a gene with itself
            there is none.
        weight
            Column with how strong an edge is, above 0; by default all are 1.

        Raises
        ------
        InputError
            There is no such column, or no edge.
        DataFormatError
            A weight is not above 0 or not finite, or an edge has no gene at one end.

        See Also
        --------
        GeneGraph.walk : How near genes are to others.

        Examples
        --------
        >>> import pandas as pd
        >>> from geneformer_repro.propagation import GeneGraph
        >>> edges = pd.DataFrame({"a": ["EGFR", "GRB2"], "b": ["GRB2", "SOS1"], "score": [0.9, 0.3]})
        >>> GeneGraph.of_edges(edges, weight="score").steps.toarray().round(2).tolist()
        [[0.0, 0.75, 0.0], [1.0, 0.0, 1.0], [0.0, 0.25, 0.0]]
        """
        if weight is not None and weight not in edges:
            raise InputError(f"The network has no column {weight!r}.")
        ends = edges.iloc[:, :2]
        if ends.isna().to_numpy().any():
            raise DataFormatError(f"Edge {int(ends.isna().any(axis=1).to_numpy().argmax()) + 1} lacks a gene.")
        weights = np.ones(len(edges)) if weight is None else edges[weight].to_numpy(float)
        if not (np.isfinite(weights) & (weights > 0)).all():
            wrong = int(np.argmin(np.isfinite(weights) & (weights > 0)))
            raise DataFormatError(f"Edge {wrong + 1} has the weight {weights[wrong]:g}; expected a number above 0.")
        a, b = (ends.iloc[:, side].astype(str).to_numpy() for side in (0, 1))
        genes, numbers = np.unique(np.concatenate([a, b]), return_inverse=True)
        rows, columns = numbers.reshape(2, -1)
        keeps = rows != columns
        if not keeps.any():
            raise InputError("The network has no edge between two genes.")
        one_way = coo_matrix((weights[keeps], (rows[keeps], columns[keeps])), shape=(len(genes), len(genes))).tocsr()
        both = one_way + one_way.T
        degrees = np.asarray(both.sum(axis=0)).ravel()
        per_degree = np.divide(1.0, degrees, out=np.zeros_like(degrees), where=degrees > 0)
        return cls(tuple(map(str, genes)), csr_matrix(both @ diags_array(per_degree)))

    def walk(self, targets: Mapping[str, Iterable[str]], *, restart: float = 0.5) -> pd.DataFrame:
        """Return how near each gene is to the targets of each drug.

        Parameters
        ----------
        targets
            Genes that each drug acts on.
        restart
            Probability, at each step, to begin again at a target; above 0, at most 1.

        Returns
        -------
        A row a gene, a column a drug; each sums to 1. Drugs none of whose targets is in the network are not among them;
        the log names them, and targets that are not.

        Raises
        ------
        InputError
            `restart` is out of its range, or no target of any drug is in the network.

        See Also
        --------
        GeneGraph.of_edges : Makes the network.
        propagation.genes_near_targets : The nearest of all drugs.

        Examples
        --------
        >>> import pandas as pd
        >>> from geneformer_repro.propagation import GeneGraph
        >>> graph = GeneGraph.of_edges(pd.DataFrame({"a": ["EGFR", "GRB2"], "b": ["GRB2", "SOS1"]}))
        >>> graph.walk({"erlotinib": ["EGFR"]}).round(3)
              erlotinib
        EGFR      0.583
        GRB2      0.333
        SOS1      0.083
        """
        if not 0 < restart <= 1:
            raise InputError(f"restart={restart}: expected a probability above 0, at most 1.")
        begins = self._begins(targets)
        start_GD = begins.to_numpy()
        weights_GD = start_GD
        while True:
            after_GD = (1 - restart) * (self.steps @ weights_GD) + restart * start_GD
            if np.abs(after_GD - weights_GD).sum(axis=0).max() < _CONVERGED:
                return pd.DataFrame(after_GD, index=begins.index, columns=begins.columns)
            weights_GD = after_GD

    def _begins(self, targets: Mapping[str, Iterable[str]]) -> pd.DataFrame:
        """Return where each drug's walk begins: at its targets in the network, alike."""
        wanted = {drug: set(map(str, genes)) for drug, genes in targets.items()}
        there = {drug: genes & set(self.genes) for drug, genes in wanted.items()}
        unknown = sorted(set().union(*wanted.values()) - set(self.genes))
        without = [drug for drug, genes in there.items() if not genes]
        if len(without) == len(wanted):
            raise InputError(
                f"None of the targets ({examples(unknown)}) is in the network, whose genes are called "
                f"{examples(self.genes)}. Give both the same kind of names."
            )
        if unknown:
            logger.info("%d targets are not in the network: %s.", len(unknown), examples(unknown, 20))
        if without:
            logger.warning("%d drugs have no target in the network: %s.", len(without), examples(without, 20))
        begins = pd.DataFrame(
            {drug: pd.Series(1 / len(genes), index=sorted(genes)) for drug, genes in there.items() if genes}
        )
        return begins.reindex(self.genes, fill_value=0.0).fillna(0.0)


def genes_near_targets(
    graph: GeneGraph, targets: Mapping[str, Iterable[str]], *, top: int = 20, restart: float = 0.5
) -> list[str]:
    """Return the genes that are nearest to the targets of any drug: the gene list of PaccMann.

    Parameters
    ----------
    graph
        The network of genes.
    targets
        Genes that each drug acts on.
    top
        So many genes a drug, the nearest first, targets among them; of equally near ones the first by name.
    restart
        As of `GeneGraph.walk`.

    Returns
    -------
    Their union over drugs, sorted.

    Raises
    ------
    InputError
        As `GeneGraph.walk`, or `top` is not above 0.

    See Also
    --------
    GeneGraph.walk : How near each gene is.

    References
    ----------
    Oskooei et al., arXiv:1811.06802, and Manica et al., Mol. Pharmaceutics 16, 4797 (2019), PaccMann: 20 genes a drug.

    Examples
    --------
    >>> import pandas as pd
    >>> from geneformer_repro.propagation import GeneGraph, genes_near_targets
    >>> edges = pd.DataFrame({"a": ["EGFR", "GRB2", "BRAF"], "b": ["GRB2", "SOS1", "MAP2K1"]})
    >>> genes_near_targets(GeneGraph.of_edges(edges), {"erlotinib": ["EGFR"], "dabrafenib": ["BRAF"]}, top=2)
    ['BRAF', 'EGFR', 'GRB2', 'MAP2K1']
    """
    if top < 1:
        raise InputError(f"top={top}: expected at least 1 gene a drug.")
    weights = graph.walk(targets, restart=restart)
    nearest = [weights[drug].sort_values(ascending=False, kind="stable").index[:top] for drug in weights]
    return sorted(set().union(*nearest))
