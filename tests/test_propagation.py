import logging

import numpy as np
import pandas as pd
import pytest

from geneformer_repro.errors import DataFormatError, InputError
from geneformer_repro.propagation import GeneGraph, genes_near_targets

PATH = pd.DataFrame({"source": ["A", "B", "C", "C"], "target": ["B", "C", "D", "C"], "weight": [1.0, 2.0, 1.0, 9.0]})


def exactly(graph, begins, restart):
    """The walk at rest, by linear algebra: p = (1 - c) W p + c s."""
    steps = graph.steps.toarray()
    return restart * np.linalg.solve(np.eye(len(steps)) - (1 - restart) * steps, begins)


def test_a_step_goes_along_edges_by_their_weight_and_both_ways():
    graph = GeneGraph.of_edges(PATH, weight="weight")
    assert graph.genes == ("A", "B", "C", "D")
    np.testing.assert_allclose(
        graph.steps.toarray(), [[0, 1 / 3, 0, 0], [1, 0, 2 / 3, 0], [0, 2 / 3, 0, 1], [0, 0, 1 / 3, 0]]
    )


@pytest.mark.parametrize("restart", [0.1, 0.5, 1.0])
def test_the_walk_ends_where_linear_algebra_says(restart):
    graph = GeneGraph.of_edges(PATH)
    weights = graph.walk({"x": ["A"], "y": ["B", "D", "D"]}, restart=restart)
    np.testing.assert_allclose(weights["x"], exactly(graph, [1, 0, 0, 0], restart), atol=1e-9)
    np.testing.assert_allclose(weights["y"], exactly(graph, [0, 0.5, 0, 0.5], restart), atol=1e-9)
    np.testing.assert_allclose(weights.sum(), 1)


def test_the_gene_list_is_the_union_of_the_nearest_of_each_drug(caplog):
    caplog.set_level(logging.INFO, logger="geneformer_repro")
    graph = GeneGraph.of_edges(PATH)
    assert genes_near_targets(graph, {"x": ["A"], "y": ["D", "X1"], "z": ["X2"]}, top=1) == ["A", "D"]
    assert genes_near_targets(graph, {"x": ["A"], "y": ["D"]}, top=2) == ["A", "B", "C", "D"]
    assert caplog.messages == [
        "2 targets are not in the network: 'X1', 'X2'.",
        "1 drugs have no target in the network: 'z'.",
    ]


WRONG = {
    "no such column": (PATH, {"weight": "strength"}, InputError, "no column 'strength'"),
    "a weight of 0": (
        PATH.assign(weight=[1, 0, 1, 1]),
        {"weight": "weight"},
        DataFormatError,
        "Edge 2 has the weight 0",
    ),
    "no gene": (PATH.assign(target=["B", None, "D", "C"]), {}, DataFormatError, "Edge 2 lacks a gene"),
    "loops alone": (PATH.iloc[3:], {}, InputError, "no edge between two genes"),
}


@pytest.mark.parametrize(("edges", "options", "kind", "said"), WRONG.values(), ids=WRONG)
def test_edges_that_are_none_are_refused(edges, options, kind, said):
    with pytest.raises(kind, match=said):
        GeneGraph.of_edges(edges, **options)


def test_what_cannot_be_walked_is_refused():
    graph = GeneGraph.of_edges(PATH)
    with pytest.raises(InputError, match="restart=0: expected a probability above 0"):
        graph.walk({"x": ["A"]}, restart=0)
    with pytest.raises(
        InputError, match=r"None of the targets \('ENSG1'\) is in the network, whose genes are called 'A'"
    ):
        graph.walk({"x": ["ENSG1"]})
    with pytest.raises(InputError, match="top=0"):
        genes_near_targets(graph, {"x": ["A"]}, top=0)


def test_of_8806_genes_those_of_its_pathway_are_near_an_inhibitor_of_mek(shared):
    graph = GeneGraph.of_edges(pd.read_parquet(shared / "data" / "networks" / "beeline_string_human.parquet"))
    near = genes_near_targets(graph, {"binimetinib": ["MAP2K1", "MAP2K2"]}, top=20)
    assert (len(graph.genes), len(near)) == (8806, 20)
    assert {"MAP2K1", "MAP2K2", "MAPK1", "MAPK3", "SOS1", "FOS", "JUN", "MYC"} <= set(near)
