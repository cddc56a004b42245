"""Edges as a graph, and GraphML that comes back as it went."""

import logging
from pathlib import Path

import networkx
import numpy as np
import pandas as pd
import pytest

from geneformer_repro.errors import InputError
from geneformer_repro.in_silico.networks.network_graphs import graph_of, scores_of, strongest_pairs, write_graphml

GENES = ["A", "B", "C", "D"]


@pytest.fixture
def nodes() -> pd.DataFrame:
    return pd.DataFrame(
        {"gene_name": ["a", "b", None, "d"], "is_source": [True, True, False, False], "alpha": [0.1, np.nan, 0.3, 0.4]},
        index=pd.Index(GENES, name="gene_id"),
    )


@pytest.fixture
def pairs() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "source": ["A", "B", "A"],
            "target": ["B", "C", "C"],
            "weight": [1 / 3, 0.2, 0.1],
            "n_cells": np.array([50, 40, 30], dtype=np.int32),
            "n_donors": [6, 5, 4],
            "fdr": [0.01, np.nan, 0.5],
        }
    )


def _matrices(seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    rng = np.random.default_rng(seed)
    weight, n = rng.normal(size=(7, 30)), rng.integers(1, 200, (7, 30))
    weight[rng.random(weight.shape) < 0.2] = np.nan
    ids = [f"S{i}" for i in range(7)], [f"T{i}" for i in range(30)]
    return pd.DataFrame(weight, *ids), pd.DataFrame(n, *ids)


def test_each_target_has_its_strongest_sources_above_0() -> None:
    weights, counts = _matrices()
    found = strongest_pairs(weights, counts, top=3)
    for target in weights:
        score = (weights[target] * counts[target] / (counts[target] + 10)).dropna()
        expected = score[score > 0].nlargest(3).index
        assert set(found["source"][found["target"] == target]) == set(expected)
    assert (np.diff(scores_of(found["weight"], found["n_cells"])) <= 0).all()


def test_more_sources_than_there_are_is_all_of_them() -> None:
    weights, counts = _matrices()
    assert len(strongest_pairs(weights, counts, top=100)) == (weights > 0).sum().sum()
    with pytest.raises(InputError, match="at least 1; found 0"):
        strongest_pairs(weights, counts, top=0)


def test_a_graph_has_edges_from_source_to_target_and_no_gene_without(pairs: pd.DataFrame, nodes: pd.DataFrame) -> None:
    graph = graph_of(pairs, nodes)
    assert sorted(graph.edges) == [("A", "B"), ("A", "C"), ("B", "C")]
    assert set(graph) == {"A", "B", "C"}


def test_what_is_missing_is_left_out_and_kinds_are_pythons(pairs: pd.DataFrame, nodes: pd.DataFrame) -> None:
    graph = graph_of(pairs, nodes)
    assert graph.nodes["A"] == {"name": "a", "is_source": 1, "alpha": 0.1}
    assert graph.nodes["B"] == {"name": "b", "is_source": 1}
    assert graph.nodes["C"] == {"is_source": 0, "alpha": 0.3}
    assert graph.edges["B", "C"] == {"weight": 0.2, "n_cells": 40, "n_donors": 5}
    values = [value for _, attributes in graph.nodes(data=True) for value in attributes.values()]
    assert {type(value) for value in values} == {str, int, float}


def test_graphml_is_read_back_as_it_was(pairs: pd.DataFrame, nodes: pd.DataFrame, tmp_path: Path) -> None:
    graph = graph_of(pairs, nodes)
    write_graphml(graph, tmp_path / "net.graphml")
    again = networkx.read_graphml(tmp_path / "net.graphml")
    assert dict(again.nodes(data=True)) == dict(graph.nodes(data=True))
    assert {edge[:2]: edge[2] for edge in again.edges(data=True)} == {
        edge[:2]: edge[2] for edge in graph.edges(data=True)
    }
    assert again.is_directed()


def test_a_file_holds_the_strongest_edges_unless_all_are_asked_for(
    pairs: pd.DataFrame, nodes: pd.DataFrame, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    graph = graph_of(pairs, nodes)
    with caplog.at_level(logging.WARNING):
        write_graphml(graph, tmp_path / "two.graphml", most_edges=2)
    assert "the 2 strongest of 3 edges are written" in caplog.text
    assert set(networkx.read_graphml(tmp_path / "two.graphml").edges) == {("A", "B"), ("B", "C")}
    write_graphml(graph, tmp_path / "all.graphml", most_edges=None)
    assert networkx.read_graphml(tmp_path / "all.graphml").number_of_edges() == 3


def test_a_file_that_is_there_stays_and_an_empty_graph_is_none(
    pairs: pd.DataFrame, nodes: pd.DataFrame, tmp_path: Path
) -> None:
    path = tmp_path / "net.graphml"
    write_graphml(graph_of(pairs, nodes), path)
    with pytest.raises(FileExistsError):
        write_graphml(graph_of(pairs, nodes), path)
    with pytest.raises(InputError, match="no pair has a weight above 0"):
        write_graphml(graph_of(pairs[:0], nodes), tmp_path / "none.graphml")
