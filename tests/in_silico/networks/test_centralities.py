"""Central genes, ranked where donors agree on them."""

import logging

import numpy as np
import pandas as pd
import pytest

from geneformer_repro.in_silico.networks.centralities import centrality_table

N = 30


def _pairs(rng: np.random.Generator, hub: float = 5.0) -> pd.DataFrame:
    """Edges of ten sources, the first the strongest, to 30 targets."""
    source, target = np.divmod(np.arange(10 * N), N)
    weight = rng.gamma(2, 0.1, len(source)) + hub * (10 - source) / 10
    keep = (source != target) & (rng.random(len(source)) < 0.5)
    ids = np.array([f"G{i}" for i in range(N)])
    return pd.DataFrame({"source": ids[source], "target": ids[target], "weight": weight})[keep]


@pytest.fixture
def nodes() -> pd.DataFrame:
    rng = np.random.default_rng(9)
    ids = pd.Index([f"G{i}" for i in range(N)])
    columns = {"detection": rng.random(N), "mean_place": np.arange(N) * 2.0, "alpha": -np.arange(N) / 10}
    return pd.DataFrame({"gene_name": ids.str.lower(), "is_source": np.arange(N) < 10, **columns}, index=ids)


def _donors(n: int, hub: float = 5.0) -> list[pd.DataFrame]:
    return [_pairs(np.random.default_rng(i), hub) for i in range(1, n + 1)]


def test_strengths_are_sums_of_weights(nodes: pd.DataFrame) -> None:
    pairs = _pairs(np.random.default_rng(0))
    table = centrality_table(pairs, nodes)
    for name, end in (("out_strength", "source"), ("in_strength", "target")):
        expected = pairs.groupby(end)["weight"].sum().reindex(table.index, fill_value=0.0)
        np.testing.assert_allclose(table[name], expected)


def test_pagerank_is_that_of_the_reversed_graph(nodes: pd.DataFrame) -> None:
    """A walker goes from target to source in proportion to weights, and anywhere with a chance of 0.15."""
    pairs = _pairs(np.random.default_rng(0))
    ids = pd.Index(sorted({*pairs["source"], *pairs["target"]}))
    step = np.zeros((len(ids), len(ids)))
    step[ids.get_indexer(pairs["target"]), ids.get_indexer(pairs["source"])] = pairs["weight"]
    total = step.sum(1, keepdims=True)
    step = np.where(total > 0, step / np.where(total > 0, total, 1), 1 / len(ids))
    rank = np.full(len(ids), 1 / len(ids))
    for _ in range(200):
        rank = 0.15 / len(ids) + 0.85 * rank @ step
    found = centrality_table(pairs, nodes)["pagerank"]
    np.testing.assert_allclose(found.reindex(ids), rank, atol=1e-5)


def test_measures_on_which_donors_agree_are_ranked(nodes: pd.DataFrame) -> None:
    table = centrality_table(_pairs(np.random.default_rng(0)), nodes, _donors(5))
    assert table.attrs["stability"]["out_strength"] > 0.9
    for name in ("out_strength", "pagerank"):
        assert table[f"{name}_rank"].idxmin() == table[name].idxmax()
        assert table[f"{name}_rank"].min() == 1


def test_measures_on_which_donors_do_not_agree_are_not_ranked(
    nodes: pd.DataFrame, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        table = centrality_table(_pairs(np.random.default_rng(0), hub=0), nodes, _donors(5, hub=0))
    assert table.attrs["stability"]["in_strength"] < 0.5
    assert "in_strength_rank" not in table
    assert "in_strength is not ranked: between donors it agrees with a Spearman correlation of" in caplog.text


@pytest.mark.parametrize("n_donors", [0, 1])
def test_without_two_donors_nothing_is_ranked(n_donors: int, nodes: pd.DataFrame) -> None:
    table = centrality_table(_pairs(np.random.default_rng(0)), nodes, _donors(n_donors))
    assert set(table.attrs["stability"].values()) == {None}
    assert not [name for name in table if name.endswith("_rank")]


def test_what_a_measure_may_merely_repeat_stands_beside_it(nodes: pd.DataFrame) -> None:
    beside = centrality_table(_pairs(np.random.default_rng(0)), nodes).attrs["beside"]
    assert set(beside["out_strength"]) == {"detection", "mean_place", "alpha"}
    assert beside["out_strength"]["alpha"] > 0.7
    assert beside["out_strength"]["mean_place"] < -0.7


def test_betweenness_is_measured_on_request(nodes: pd.DataFrame) -> None:
    chain = pd.DataFrame({"source": ["G0", "G1", "G2"], "target": ["G1", "G2", "G3"], "weight": 1.0})
    assert "betweenness" not in centrality_table(chain, nodes)
    table = centrality_table(chain, nodes, betweenness=True)
    assert table["betweenness"].loc[["G0", "G1", "G2", "G3"]].tolist() == pytest.approx([0, 1 / 3, 1 / 3, 0])
