"""Degree-preserving rewiring: what it keeps, and that it visits all graphs alike."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest
from scipy.stats import chisquare

from geneformer_repro.errors import InputError
from geneformer_repro.in_silico.networks.rewiring import rewired

SMALL = np.array([[0, 0], [0, 1], [1, 0], [1, 2], [2, 3]])
"""Row sums 2, 2, 1 and column sums 2, 1, 1, 1, of which there are exactly 12 graphs."""


def degrees(edges, shape):
    return [np.bincount(edges[:, side], minlength=shape[side]).tolist() for side in (0, 1)]


def drawn(rng, shape=(20, 60), n=150):
    allowed = rng.random(shape) < 0.9
    chosen = rng.choice(np.flatnonzero(allowed), n, replace=False)
    return np.column_stack(np.unravel_index(chosen, shape)), allowed


def test_degrees_and_number_of_edges_stay_and_no_pair_comes_twice_or_where_it_may_not():
    edges, allowed = drawn(np.random.default_rng(0))
    for one in rewired(edges, allowed, np.random.default_rng(1), n=20):
        assert degrees(one, allowed.shape) == degrees(edges, allowed.shape)
        assert len(set(map(tuple, one))) == len(edges)
        assert allowed[one[:, 0], one[:, 1]].all()


def test_most_edges_are_new():
    edges, allowed = drawn(np.random.default_rng(0))
    one = next(rewired(edges, allowed, np.random.default_rng(1), n=1))
    assert len(set(map(tuple, one)) & set(map(tuple, edges))) < 0.3 * len(edges)


def test_all_twelve_graphs_are_visited_alike():
    graphs = [
        frozenset(map(tuple, one.tolist()))
        for one in rewired(SMALL, np.ones((3, 4), dtype=bool), np.random.default_rng(0), n=12_000, proposals=60)
    ]
    visits = Counter(graphs)
    assert len(visits) == 12
    assert chisquare(list(visits.values())).pvalue > 0.01
    np.testing.assert_allclose(np.mean([(0, 0) in graph for graph in graphs]), 3 / 4, atol=0.015)
    shared = [len({t for s, t in graph if s == 0} & {t for s, t in graph if s == 1}) for graph in graphs]
    np.testing.assert_allclose(np.mean(shared), 1 / 2, atol=0.02)


def test_the_input_is_not_touched_and_the_same_seed_gives_the_same_graphs():
    edges, allowed = drawn(np.random.default_rng(0))
    before = edges.copy()
    once, again = (list(rewired(edges, allowed, np.random.default_rng(3), n=3)) for _ in range(2))
    np.testing.assert_array_equal(edges, before)
    np.testing.assert_array_equal(once, again)


def test_no_edges_are_rewired_to_none():
    assert [len(one) for one in rewired(np.empty((0, 2)), np.ones((2, 2)), np.random.default_rng(0), n=2)] == [0, 0]


@pytest.mark.parametrize(
    ("edges", "says"),
    [([[0, 0], [0, 0]], "1 edges are listed twice"), ([[0, 0], [1, 1]], "not among the pairs that are scored")],
    ids=["twice", "of a gene to itself"],
)
def test_what_cannot_be_rewired_is_refused(edges, says):
    allowed = np.array([[True, True], [True, False]])
    with pytest.raises(InputError, match=says):
        next(rewired(np.array(edges), allowed, np.random.default_rng(0), n=1))


def test_a_curated_reference_keeps_its_degrees(shared):
    known = pd.read_csv(shared / "data" / "gene_sets" / "trrust_human.tsv", sep="\t")
    known = known[known["tf"] != known["target"]].drop_duplicates(["tf", "target"])
    sources, targets = pd.factorize(known["tf"]), pd.factorize(known["target"])
    edges = np.column_stack([sources[0], targets[0]])
    allowed = np.asarray(sources[1])[:, None] != np.asarray(targets[1])
    one = next(rewired(edges, allowed, np.random.default_rng(0), n=1))
    assert degrees(one, allowed.shape) == degrees(edges, allowed.shape)
    assert len(set(map(tuple, one)) & set(map(tuple, edges))) < 0.12 * len(edges)
