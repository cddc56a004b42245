"""Groups of genes that a network ties together, and whether they are more than an accident of a seed.

Leiden finds modules in any graph, a random one too (modularity 0.26 of 200 genes with 2,000 random edges), and others
with another seed. So it runs with twenty seeds; what is reported are genes together in four of five of these, how well
the runs agree with each other and with networks that lack a donor, and the modularity of graphs in which every gene has
its number of edges and no partner of its own.

igraph is used for what it finds: of planted groups (5 of 100 genes) its Leiden recovers an adjusted Rand index of 0.95
and modularity 0.456, scikit-network's 0.78 and 0.426, networkx's Louvain 0.74 and 0.418. It is under the GPL, so it is
an extra and imported when modules are asked for.
"""

import random
from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components
from sklearn.metrics import adjusted_rand_score

from geneformer_repro.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    import igraph

N_SEEDS, N_REWIRED = 20, 10
TOGETHER = 0.8
"""Share of seeds in which two genes are together from which they are of one module."""
LEAST_GENES = 3
"""Of a module that has a number."""
SWAPS_AN_EDGE = 10
_SEEDS_WITHOUT_DONOR = 3


def module_table(
    pairs: pd.DataFrame,
    nodes: pd.DataFrame,
    without_donors: Sequence[pd.DataFrame] = (),
    *,
    resolution: float = 1.0,
    n_seeds: int = N_SEEDS,
    seed: int = 0,
) -> pd.DataFrame:
    """Find modules of genes, and say how stable they are.

    Parameters
    ----------
    pairs
        Edges: ``source``, ``target``, ``weight`` above 0. Of two directions the larger weight counts.
    nodes
        By gene id: ``gene_name``, ``is_source``.
    without_donors
        Edges of the network without each donor in turn.
    resolution
        Of the modularity; higher values give more and smaller modules.
    n_seeds, seed
        Runs, with the seeds from `seed` on.

    Returns
    -------
    A row a gene that has an edge, by id, module by module: ``gene_name``, ``is_source``, ``module``, numbered from 0 by
    size (missing for a gene that fewer than two others are always near), and ``together``, the mean share of runs in
    which the gene is in a module with the others of its own. ``attrs``: ``modularity`` and ``n_modules``, means over
    runs; ``agreement``, mean adjusted Rand index between runs (None of one), ``agreement_without_donor``, of runs with
    the same seed on the whole network and without a donor (None without donors); ``rewired_modularity``, of ten graphs
    with the same degrees and shuffled weights, mean and maximum.

    Raises
    ------
    MissingExtraError
        igraph is not installed.
    InputError
        There is no edge, or an option is out of range.

    References
    ----------
    Traag, Waltman and van Eck, Scientific Reports 9, 5233 (2019), "From Louvain to Leiden".
    """
    if n_seeds < 1 or resolution <= 0:
        raise InputError(f"n_seeds must be at least 1 and resolution above 0, found {n_seeds} and {resolution}.")
    if pairs.empty:
        raise InputError(
            "No pair has a weight above 0, so there are no modules. Take more cells, or all genes as sources."
        )
    graph, ids = _undirected(pairs)
    seeds = range(seed, seed + n_seeds)
    runs = [_leiden(graph, resolution, run) for run in seeds]
    labels = np.stack([membership for membership, _ in runs])
    module, together = _consensus(labels)
    facts = {
        "modularity": float(np.mean([modularity for _, modularity in runs])),
        "n_modules": float(np.mean([len(set(membership.tolist())) for membership, _ in runs])),
        "agreement": _mean(adjusted_rand_score(one, other) for one, other in combinations(labels, 2)),
        "agreement_without_donor": _mean(
            _agreement(labels[:_SEEDS_WITHOUT_DONOR], ids, without, resolution, seed) for without in without_donors
        ),
        "n_donors": len(without_donors),
        "rewired_modularity": _rewired(graph, resolution, seed),
        "n_seeds": n_seeds,
        "resolution": resolution,
    }
    table = nodes[["gene_name", "is_source"]].reindex(ids).assign(module=module, together=together)
    table = table.iloc[np.lexsort((np.arange(len(ids)), -together, module.fillna(len(ids)).astype(int)))]
    table.attrs |= facts
    return table.rename_axis("gene_id")


def _undirected(pairs: pd.DataFrame) -> "tuple[igraph.Graph, pd.Index[str]]":
    """Return a graph with the larger weight of both directions, and the gene of each vertex."""
    igraph = _igraph()
    ids = pd.Index(np.unique(pairs[["source", "target"]].to_numpy().ravel()))
    ends = np.sort(np.stack([ids.get_indexer(pairs[end]) for end in ("source", "target")]), axis=0)
    weight = pd.Series(pairs["weight"].to_numpy()).groupby([ends[0], ends[1]]).max()
    graph = igraph.Graph(n=len(ids), edges=weight.index.tolist())
    graph.es["weight"] = weight.tolist()
    return graph, ids


def _igraph() -> Any:
    try:
        import igraph
    except ImportError as error:
        raise MissingExtraError("Modules need igraph: pip install 'geneformer-repro[network]'.") from error
    return igraph


def _leiden(graph: "igraph.Graph", resolution: float, seed: int) -> tuple[np.ndarray, float]:
    """Return the module of each vertex, and the modularity."""
    with_seed(seed)
    try:
        found = graph.community_leiden("modularity", weights="weight", resolution=resolution, n_iterations=-1)
        membership = np.array(found.membership)
        modularity = graph.modularity(found.membership, weights="weight", resolution=resolution)
    finally:
        with_seed(None)
    return membership, float(modularity)


def with_seed(seed: int | None) -> None:
    """Let igraph draw from a generator of its own; None gives it back what it draws from by itself."""
    _igraph().set_random_number_generator(random if seed is None else random.Random(seed))


def _mean(values: Any) -> float | None:
    listed = list(values)
    return float(np.mean(listed)) if listed else None


def _agreement(labels: np.ndarray, ids: "pd.Index[str]", without: pd.DataFrame, resolution: float, seed: int) -> float:
    """Return how well modules of a network without a donor agree, over the genes that both have."""
    if without.empty:
        return 0.0
    graph, others = _undirected(without)
    shared = ids.intersection(others)
    here, there = ids.get_indexer(shared), others.get_indexer(shared)
    runs = [_leiden(graph, resolution, seed + i)[0] for i in range(len(labels))]
    return float(np.mean([adjusted_rand_score(of[here], run[there]) for of, run in zip(labels, runs, strict=True)]))


def _rewired(graph: "igraph.Graph", resolution: float, seed: int) -> dict[str, float]:
    """Return the modularity of graphs with the same degrees, whose weights are dealt out anew."""
    rng, modularity = np.random.default_rng(seed), []
    for i in range(N_REWIRED):
        rewired = graph.copy()
        with_seed(seed + i)
        try:
            rewired.rewire(n=SWAPS_AN_EDGE * graph.ecount())
        finally:
            with_seed(None)
        rewired.es["weight"] = rng.permutation(np.array(graph.es["weight"])).tolist()
        modularity.append(_leiden(rewired, resolution, seed)[1])
    return {"mean": float(np.mean(modularity)), "max": float(np.max(modularity))}


def _consensus(labels: np.ndarray) -> tuple[Any, np.ndarray]:
    """Return the module of each gene over runs, missing for none, and how often it is with the others of it.

    Genes that no run tells apart are one block; blocks together often enough are joined, and what is joined to the same
    is one module.
    """
    blocks, block_of, sizes = np.unique(labels.T, axis=0, return_inverse=True, return_counts=True)
    share = np.zeros((len(blocks), len(blocks)), dtype=np.float32)
    for run in blocks.T:
        share += run[:, None] == run
    share /= labels.shape[0]
    _, joined = connected_components(csr_matrix(share >= TOGETHER), directed=False)
    of_gene = joined[block_of.ravel()]
    n_genes = np.bincount(of_gene)
    order = np.argsort(-n_genes, kind="stable")
    number = np.empty(len(order), dtype=np.int64)
    number[order] = np.arange(len(order))
    module = pd.array(number[of_gene], dtype="Int64")
    module[n_genes[of_gene] < LEAST_GENES] = pd.NA
    same = (joined[:, None] == joined) * share
    with_others = same @ sizes - 1
    others = np.maximum(n_genes[joined] - 1, 1)
    return module, (with_others / others)[block_of.ravel()]
