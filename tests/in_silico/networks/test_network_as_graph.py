"""A network's graph, centrality and modules, from its folder."""

from pathlib import Path

import networkx
import pytest
from two_state_networks import N_GENES, made_network

from geneformer_repro.errors import InputError
from geneformer_repro.in_silico.networks.gene_network import GeneNetwork
from geneformer_repro.in_silico.networks.network_graphs import strongest_pairs


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> GeneNetwork:
    return made_network(tmp_path_factory.mktemp("made") / "net").network


def test_a_graph_of_few_edges_is_that_of_the_whole_matrix(network: GeneNetwork) -> None:
    """The file of edges, and the matrix, which takes over beyond ten a target."""
    expected = strongest_pairs(network.matrix("ctrl"), network.counts("ctrl"), top=3)
    graph = network.graph("ctrl", top=3)
    assert set(graph.edges) == set(zip(expected["source"], expected["target"], strict=True))
    weight = dict(zip(zip(expected["source"], expected["target"], strict=True), expected["weight"], strict=True))
    assert {pair: graph.edges[pair]["weight"] for pair in graph.edges} == pytest.approx(weight)
    assert set(graph.edges) < set(network.graph("ctrl", top=12).edges)


def test_edges_of_a_graph_say_what_donors_say(network: GeneNetwork) -> None:
    _, _, edge = next(iter(network.graph("stim").edges(data=True)))
    assert {"weight", "n_cells", "n_donors", "p_value", "fdr"} == set(edge)
    assert edge["n_donors"] == 6


def test_a_graph_may_have_significant_edges_alone(network: GeneNetwork, tmp_path: Path) -> None:
    every, few = network.graph("stim"), network.graph("stim", max_fdr=0.05)
    assert set(few.edges) == {pair for pair in every.edges if every.edges[pair]["fdr"] < 0.05}
    assert 0 < few.number_of_edges() < every.number_of_edges()
    network.to_graphml(tmp_path / "few.graphml", "stim", max_fdr=0.05)
    assert networkx.read_graphml(tmp_path / "few.graphml").number_of_edges() == few.number_of_edges()
    with pytest.raises(InputError, match="max_fdr is known of 10 sources"):
        network.graph("stim", top=11, max_fdr=0.05)
    alone = made_network(tmp_path / "alone", donors=((None,), (None,)), n_cells=(30, 90)).network
    with pytest.raises(InputError, match="that takes three donors"):
        alone.graph("stim", max_fdr=0.05)


def test_graphml_with_modules_comes_back(network: GeneNetwork, tmp_path: Path) -> None:
    pytest.importorskip("igraph")
    modules = network.modules("ctrl", n_seeds=3)
    network.to_graphml(tmp_path / "net.graphml", "ctrl", modules=modules)
    again = networkx.read_graphml(tmp_path / "net.graphml")
    assert {pair: again.edges[pair] for pair in again.edges} == {
        pair: network.graph("ctrl").edges[pair] for pair in network.graph("ctrl").edges
    }
    numbered = {gene: node["module"] for gene, node in again.nodes(data=True) if "module" in node}
    assert numbered == modules["module"].dropna().to_dict()


def test_centrality_is_ranked_where_donors_agree(network: GeneNetwork) -> None:
    table = network.centrality("ctrl")
    for name, agreement in table.attrs["stability"].items():
        assert (f"{name}_rank" in table) == (agreement >= 0.5)
    assert set(table.attrs["beside"]["pagerank"]) == {"detection", "mean_place", "alpha"}


def test_modules_without_a_donor_are_of_the_sums_less_its_own(network: GeneNetwork, tmp_path: Path) -> None:
    donors = (("A", "B", "C"), ("A", "B", "C"))
    three = made_network(tmp_path / "three", donors=donors).network
    n = three.sums("ctrl", "A")[1] + three.sums("ctrl", "B")[1]
    found = three._without("ctrl", "C", 5)
    for _, pair in found[::20].iterrows():
        row, column = three.sources.get_loc(pair["source"]), three.targets.get_loc(pair["target"])
        assert n[row, column] == pair["n_cells"]
    assert len(found) > N_GENES


def test_a_state_of_few_cells_has_no_edge_and_says_so(tmp_path: Path) -> None:
    few = made_network(tmp_path / "few", donors=((None,), (None,)), n_cells=(3, 8)).network
    assert few.graph("ctrl").number_of_edges() == 0
    assert few.graph("ctrl", top=11).number_of_edges() == 0
    assert few.centrality("ctrl").empty
    with pytest.raises(InputError, match="No pair has a weight above 0"):
        few.modules("ctrl")
    with pytest.raises(InputError, match="no pair has a weight above 0"):
        few.to_graphml(tmp_path / "few.graphml", "ctrl")


@pytest.mark.parametrize("call", ["graph", "centrality", "modules"])
def test_unknown_states_and_no_sources_are_refused(call: str, network: GeneNetwork) -> None:
    with pytest.raises(InputError, match="no state 'stimulated'"):
        getattr(network, call)("stimulated")
    with pytest.raises(InputError, match="at least 1; found 0"):
        getattr(network, call)("ctrl", top=0)


def test_modules_of_donors_are_said_to_agree(network: GeneNetwork) -> None:
    pytest.importorskip("igraph")
    facts = network.modules("ctrl", n_seeds=5).attrs
    assert facts["n_donors"] == 6
    assert -0.1 <= facts["agreement_without_donor"] <= 1
