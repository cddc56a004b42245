"""Edges rewired at random, with as many edges at each source and at each target as before.

What a method scores because prominent genes are prominent in the reference, too, it scores on these. An edge a → b and
an edge c → d become a → d and c → b, unless one of these is there already or is no pair that is scored (a gene and
itself, genes that too few cells share). A proposal that is refused counts as a step: the graph stays as it is. Were
only the accepted ones counted, graphs with few neighbours would be visited too seldom (by 11 to 15 % among the 12
graphs of the test). A compiled loop over a matrix of marks, sources × targets: 1,000 rewirings of TRRUST, each of ten
proposals an edge, take 4 s.

`networkx.directed_edge_swap` needs directed paths of three edges, which factor → target graphs hardly have; xswap has
not been released since 2019.
"""

from collections.abc import Iterator

import numba
import numpy as np

from geneformer_repro.errors import InputError

PROPOSALS_AN_EDGE = 10


def rewired(
    edges: np.ndarray, allowed: np.ndarray, rng: np.random.Generator, *, n: int, proposals: int | None = None
) -> Iterator[np.ndarray]:
    """Yield edge lists with the same number of edges at each source and each target.

    Parameters
    ----------
    edges
        Source and target of each edge, (n_edges, 2), each pair once.
    allowed
        Which pairs may be edges, sources × targets; all of `edges` are.
    rng
        Randomness.
    n
        How many.
    proposals
        Swaps that are proposed before each, accepted or not; default ten an edge. Each graph goes on from the one
        before it.

    Raises
    ------
    InputError
        An edge is not allowed, or is there twice.
    """
    edges = np.array(edges, dtype=np.int64)
    marks = np.where(allowed, 0, 2).astype(np.uint8)
    if (marks[edges[:, 0], edges[:, 1]] != 0).any():
        raise InputError("An edge is not among the pairs that are scored, so it cannot be rewired among them.")
    marks[edges[:, 0], edges[:, 1]] = 1
    if (marks == 1).sum() != len(edges):
        raise InputError(f"{len(edges) - (marks == 1).sum():,} edges are listed twice. Give each once.")
    proposals = PROPOSALS_AN_EDGE * len(edges) if proposals is None else proposals
    for _ in range(n):
        if len(edges):
            _swap(edges, marks, rng.integers(0, len(edges), size=(proposals, 2)))
        yield edges.copy()


@numba.njit(nogil=True, cache=True)
def _swap(edges: np.ndarray, marks: np.ndarray, proposed: np.ndarray) -> None:
    """Exchange the targets of two edges, proposal by proposal, where both new pairs are allowed and free."""
    for i in range(len(proposed)):
        first, second = proposed[i]
        a, b = edges[first]
        c, d = edges[second]
        if marks[a, d] == 0 and marks[c, b] == 0:
            marks[a, b] = 0
            marks[c, d] = 0
            marks[a, d] = 1
            marks[c, b] = 1
            edges[first, 1] = d
            edges[second, 1] = b
