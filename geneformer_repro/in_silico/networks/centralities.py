"""Which genes are central in a network, and whether that is more than their place and prevalence.

A rank among thousands of genes always exists; that it says something does not follow. So each measure is set beside the
same of every single donor's network (without an agreement of 0.5 it is not ranked), and beside detection rate, mean
place and alpha, which it may merely repeat.
"""

import logging
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from geneformer_repro.in_silico.networks.network_graphs import graph_of

logger = logging.getLogger(__name__)

DAMPING = 0.85
STABLE = 0.5
"""Median Spearman correlation between donors from which a measure is ranked."""
BESIDE = ("detection", "mean_place", "alpha")
MEASURES = ("out_strength", "in_strength", "pagerank", "betweenness")


def centrality_table(
    pairs: pd.DataFrame,
    nodes: pd.DataFrame,
    of_donors: Sequence[pd.DataFrame] = (),
    *,
    betweenness: bool = False,
) -> pd.DataFrame:
    """Return how central each gene of a graph is, with what that agrees with.

    Parameters
    ----------
    pairs
        Edges of the graph: ``source``, ``target``, ``weight`` above 0.
    nodes
        By gene id: ``gene_name``, ``is_source``, ``detection``, ``mean_place``, ``alpha``.
    of_donors
        Edges of the graph of each donor, for the stability.
    betweenness
        Also shortest paths through a gene, an edge being as long as 1 / weight; slow beyond a thousand genes.

    Returns
    -------
    A row a gene that has an edge, by id: ``gene_name``, ``is_source``; ``out_strength`` and ``in_strength``, sums of
    the weights of edges from and to it; ``pagerank``, of the graph with edges turned round, so that a gene is central
    if central genes are its targets (damping 0.85); ``betweenness``. Of a measure that is stable, its rank, 1 for the
    most central, as ``pagerank_rank``. ``attrs["stability"]``: the median over pairs of donors of the Spearman
    correlation of each measure, None with fewer than two donors; ``attrs["beside"]``: its correlation with
    ``detection``, ``mean_place`` and ``alpha``.

    References
    ----------
    Page, Brin, Motwani and Winograd (1999), "The PageRank citation ranking".
    """
    names = MEASURES if betweenness else MEASURES[:-1]
    table = _measured(pairs, names)
    donors = [_measured(of_donor, names) for of_donor in of_donors]
    stability = {name: _stability([of_donor[name] for of_donor in donors]) for name in names}
    beside = {
        name: {of: _correlation(table[name], nodes[of].reindex(table.index)) for of in BESIDE if of in nodes}
        for name in names
    }
    table = nodes[["gene_name", "is_source"]].reindex(table.index).join(table)
    for name, agreement in stability.items():
        if agreement is not None and agreement >= STABLE:
            table[f"{name}_rank"] = table[name].rank(ascending=False, method="min").astype(int)
        else:
            logger.warning("%s is not ranked: %s.", name, _why(agreement))
    table.attrs |= {"stability": stability, "beside": beside, "n_donors": len(donors)}
    return table.sort_values("pagerank", ascending=False, kind="stable").rename_axis("gene_id")


def _why(agreement: float | None) -> str:
    if agreement is None:
        return "fewer than two donors, so nothing says how stable it is"
    return f"between donors it agrees with a Spearman correlation of {agreement:.2f}, below {STABLE}"


def _measured(pairs: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Return measures of the genes of a graph, by id."""
    import networkx

    graph = graph_of(pairs[["source", "target", "weight"]], pd.DataFrame(index=pd.Index([])))
    measures: dict[str, Any] = {
        "out_strength": dict(graph.out_degree(weight="weight")),
        "in_strength": dict(graph.in_degree(weight="weight")),
        "pagerank": networkx.pagerank(graph.reverse(copy=False), alpha=DAMPING, weight="weight"),
    }
    if "betweenness" in names:
        for *_, edge in graph.edges(data=True):
            edge["length"] = 1 / edge["weight"]
        measures["betweenness"] = networkx.betweenness_centrality(graph, weight="length")
    return pd.DataFrame({name: pd.Series(measures[name], dtype=float) for name in names})


def _stability(of_donors: Sequence["pd.Series[float]"]) -> float | None:
    """Return the median Spearman correlation between donors; a gene without an edge in one of two counts as 0 there."""
    correlations = [
        _correlation(*(values.reindex(one.index.union(other.index), fill_value=0.0) for values in (one, other)))
        for one, other in combinations(of_donors, 2)
    ]
    known = [value for value in correlations if value is not None]
    return float(np.median(known)) if known else None


def _correlation(one: "pd.Series[float]", other: "pd.Series[float]") -> float | None:
    """Return the Spearman correlation of what both have; None where there is none."""
    both = one.notna() & other.notna()
    one, other = one[both], other[both]
    if len(one) < 3 or one.nunique() < 2 or other.nunique() < 2:
        return None
    return float(spearmanr(one, other).statistic)
