"""Edges as a graph: the strongest sources of each target, for networkx, Cytoscape, centrality and modules.

Of a matrix of weights most pairs are noise, and a threshold on weights would take more edges of genes with few cells.
So a graph has the same number of edges to each target, those of the largest weight · n / (n + 10) of n cells; a weight
of 0 or below is no edge.

GraphML knows text, integers and doubles; networkx writes neither None nor lists nor NumPy's booleans, and a column that
mixes kinds cannot be read again. So columns have one kind each, and what is missing is left out.
"""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from geneformer_repro.errors import InputError
from geneformer_repro.files import new_file

if TYPE_CHECKING:
    import networkx

logger = logging.getLogger(__name__)

SHRUNK_BY = 10
"""Edges are ranked by weight · n / (n + so many) of n cells."""
MOST_EDGES = 5_000
"""Edges of a file: more are a cloud in any drawing."""
NODE_KINDS = {"name": str, "is_source": int, "alpha": float, "beta": float, "detection": float, "module": int}
"""Columns of a node in GraphML."""
EDGE_KINDS = {"weight": float, "n_cells": int, "n_donors": int, "p_value": float, "fdr": float}


def scores_of(weight: np.ndarray, n_cells: np.ndarray) -> np.ndarray:
    """Return what edges are ranked by: weights, drawn to 0 where they are of few cells."""
    scores: np.ndarray = weight * n_cells / (n_cells + SHRUNK_BY)
    return scores


def strongest_pairs(weights: pd.DataFrame, counts: pd.DataFrame, *, top: int = 10) -> pd.DataFrame:
    """Return the strongest sources of each target.

    Parameters
    ----------
    weights
        Sources × targets by gene id; NaN for a pair without cells enough.
    counts
        Cells of each pair, of the same shape.
    top
        Sources of a target.

    Returns
    -------
    ``source``, ``target``, ``weight``, ``n_cells``, the strongest first; only weights above 0.

    Raises
    ------
    InputError
        `top` is below 1.
    """
    require_top(top)
    weight, n_cells = weights.to_numpy(), counts.to_numpy()
    score = scores_of(weight, n_cells)
    score = np.where(score > 0, score, -np.inf)  # NaN too
    k = min(top, len(score))
    row = np.argpartition(-score, k - 1, axis=0)[:k].ravel() if k else np.zeros(0, dtype=int)
    column = np.tile(np.arange(score.shape[1]), k)
    chosen = score[row, column] > 0
    row, column = row[chosen], column[chosen]
    order = np.lexsort((row, column, -score[row, column]))
    row, column = row[order], column[order]
    ends = {"source": weights.index.to_numpy()[row], "target": weights.columns.to_numpy()[column]}
    return pd.DataFrame({**ends, "weight": weight[row, column], "n_cells": n_cells[row, column]})


def require_top(top: int) -> None:
    """Raise unless each target may have a source."""
    if top < 1:
        raise InputError(f"top is how many sources each target has at most, at least 1; found {top}.")


def graph_of(pairs: pd.DataFrame, nodes: pd.DataFrame) -> "networkx.DiGraph[str]":
    """Return pairs as a directed graph, from source to target.

    Parameters
    ----------
    pairs
        ``source``, ``target``, ``weight``, and what there is of `EDGE_KINDS`.
    nodes
        By gene id, what there is of ``gene_name``, ``is_source``, ``alpha``, ``beta``, ``detection``, ``module``. Genes
        without an edge are left out.

    Returns
    -------
    Nodes are gene ids. Attributes are text, Python's int and float; what is missing is left out.
    """
    import networkx

    graph: networkx.DiGraph[str] = networkx.DiGraph()
    nodes = nodes.rename(columns={"gene_name": "name"})
    of_edges = pd.unique(pairs[["source", "target"]].to_numpy().ravel())
    graph.add_nodes_from(zip(map(str, of_edges), _attributes(nodes.reindex(of_edges), NODE_KINDS), strict=True))
    ends = zip(map(str, pairs["source"]), map(str, pairs["target"]), strict=True)
    edges = zip(ends, _attributes(pairs, EDGE_KINDS), strict=True)
    graph.add_edges_from((source, target, attributes) for (source, target), attributes in edges)
    return graph


def _attributes(table: pd.DataFrame, kinds: dict[str, type]) -> Iterable[dict[str, Any]]:
    """Return of each row what it has of some columns, each of its kind."""
    there = {name: kind for name, kind in kinds.items() if name in table}
    columns = [(name, kind, table[name].to_numpy(dtype=object)) for name, kind in there.items()]
    for i in range(len(table)):
        yield {name: kind(values[i]) for name, kind, values in columns if not pd.isna(values[i])}


def write_graphml(
    graph: "networkx.DiGraph[str]",
    path: str | Path,
    *,
    most_edges: int | None = MOST_EDGES,
    overwrite: bool = False,
) -> "networkx.DiGraph[str]":
    """Write a graph for Cytoscape, igraph and others, and return what was written; networkx reads it back as it was.

    Parameters
    ----------
    graph
        Of `graph_of`.
    path
        The file.
    most_edges
        Of more, so many strongest are written, with a word in the log; None all.
    overwrite
        Replace a file that is there.

    Raises
    ------
    FileExistsError
        `path` exists.
    InputError
        The graph has no edge.
    """
    import networkx

    if not graph.number_of_edges():
        raise InputError(f"{path}: no pair has a weight above 0, so there is no graph to write.")
    n_edges = graph.number_of_edges()
    if most_edges is not None and n_edges > most_edges:
        edges = sorted(graph.edges(data=True), key=lambda edge: -_score(edge[2]))[:most_edges]
        logger.warning(
            "%s: the %s strongest of %s edges are written; max_edges=None writes all.",
            path,
            f"{most_edges:,}",
            f"{n_edges:,}",
        )
        graph = graph.edge_subgraph([edge[:2] for edge in edges])
    with new_file(path, overwrite=overwrite) as aside:
        networkx.write_graphml_xml(graph, aside)
    return graph


def _score(edge: dict[str, Any]) -> float:
    n_cells = edge.get("n_cells", np.inf)
    return float(edge["weight"] * (1 if np.isinf(n_cells) else n_cells / (n_cells + SHRUNK_BY)))
