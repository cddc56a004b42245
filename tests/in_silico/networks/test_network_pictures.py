"""The picture and the page of a network: what is drawn, and what is said."""

import numpy as np
import pandas as pd
import pytest
from two_state_networks import made_network

import geneformer_repro as gf
from geneformer_repro.checkpoint_files import CHECKPOINT_WARNING
from geneformer_repro.in_silico.networks import network_pictures
from geneformer_repro.in_silico.networks.network_pictures import N_EDGES


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return made_network(tmp_path_factory.mktemp("made") / "net").network


def drawn(figure):
    return [text.get_text() for text in figure.axes[0].texts if text.get_text()]


def test_the_strongest_edges_are_drawn_with_their_genes(network):
    figure = gf.plot_network(network, "stim", n_edges=15)
    edges = network.edges[network.edges["state"] == "stim"].head(15)
    names = network.genes["gene_name"]
    assert sorted(drawn(figure)) == sorted({*edges["source"].map(names), *edges["target"].map(names)})
    assert sum(text.arrow_patch is not None for text in figure.axes[0].texts if not text.get_text()) == 15
    assert figure.axes[0].get_title(loc="left") == "stim: the 15 strongest edges"


def test_no_more_than_sixty_unless_they_are_asked_for(network):
    figure = gf.plot_network(network)
    assert sum(not text.get_text() for text in figure.axes[0].texts) == N_EDGES == 60
    assert figure.axes[0].get_title(loc="left").startswith("ctrl")


def test_sources_are_squares(network):
    squares, dots = gf.plot_network(network, "stim").axes[0].collections
    assert (squares.get_label(), dots.get_label()) == ("source", "other gene")
    assert len(squares.get_paths()[0].vertices) == 5 < len(dots.get_paths()[0].vertices)


def test_the_caption_says_what_an_edge_is_not(network, monkeypatch):
    monkeypatch.setitem(network.metadata, "method", "attention")
    said = gf.plot_network(network)._supxlabel.get_text().replace("\n", " ")
    assert said.startswith("residual attention of the model, not regulation")
    assert "the model uses a to represent b" in said


def test_the_same_network_gives_the_same_picture(network):
    first, again = (gf.plot_network(network, "stim") for _ in range(2))
    for one, other in zip(first.axes[0].collections, again.axes[0].collections, strict=True):
        np.testing.assert_array_equal(one.get_offsets(), other.get_offsets())


def test_a_name_stands_where_it_hides_no_arrowhead():
    edges = pd.DataFrame({"source": ["top", "left"], "target": ["hub", "low"], "weight": [1.0, 1.0]})
    genes = ["top", "left", "hub", "low"]
    graph = network_pictures._graph(edges, pd.DataFrame({"gene_name": genes, "is_source": False}, index=genes))
    places = {"top": (0.0, 1.0), "hub": (0.0, 0.0), "left": (3.0, -1.0), "low": (3.0, 0.0)}
    below = {gene for gene in places if network_pictures._is_better_below(graph, places, gene)}
    assert below == {"hub", "left"}


def test_columns_of_donors_are_left_out_where_there_are_none():
    edges = pd.DataFrame({"source": ["a", "b"], "n_cells": [0, 0], "n_donors": [0, 0], "fdr": [np.nan, np.nan]})
    assert network_pictures.without_untold(edges).columns.tolist() == ["source", "n_cells"]
    assert "n_donors" in network_pictures.without_untold(edges.assign(n_donors=[0, 3]))


def test_edges_that_were_not_tested_are_not_said_to_be_none_that_differ(network):
    edges = network.edges
    assert np.isnan(network_pictures._n_significant(edges.assign(fdr=np.nan)))
    assert network_pictures._n_significant(edges.assign(fdr=[0.01] * 2 + [0.5] * (len(edges) - 2))) == 2


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"state": "stimm"}, r"no state 'stimm'\. Did you mean 'stim'"),
        ({"n_edges": 0}, "between 1 and 200, found 0"),
        ({"n_edges": 500}, "between 1 and 200, found 500"),
    ],
)
def test_what_cannot_be_drawn_is_refused(network, options, match):
    with pytest.raises(gf.InputError, match=match):
        gf.plot_network(network, **options)


@pytest.mark.usefixtures("blank_pictures")
def test_a_page_has_states_edges_and_what_was_left_out(network, tmp_path, monkeypatch):
    left_out = [{"state": "rest", "donor": "G", "n_cells": 5, "why": "fewer than 20 cells"}]
    of_heads = [{"layer": 0, "head": 1, "sd": 0.5, "explained_by_place": 0.25, "on_specials": 0.125}]
    told = {"left_out": left_out, "of_heads": of_heads, "n_calibrated": 12, CHECKPOINT_WARNING: "no good"}
    for name, value in told.items():
        monkeypatch.setitem(network.metadata, name, value)
    gf.write_network_report(network, tmp_path / "net.html")
    page = (tmp_path / "net.html").read_text().replace("<wbr>", "")
    assert page.count('<p class="warning"><b>The model is no good.</b></p>') == page.count("no good") == 1
    for said in (
        "ctrl: strongest edges",
        "stim: strongest edges",
        "rest, G: 5 (fewer than 20 cells)",
        "explained by genes",
        "median 25%",
        "on special tokens (median 12%)",
        "Regulation. Genes that stand together in cells of one kind attend to each other whatever they do.",
        "n_donors",
        "donor_mean",
    ):
        assert said in page
    assert "regulates" not in page
    assert "adjusted R²" not in page
    with pytest.raises(FileExistsError):
        gf.write_network_report(network, tmp_path / "net.html")
    of_heads[0] |= {"explained_by_sources": 0.375, "explained_by_genes": None}
    of_heads.append(of_heads[0] | {"head": 2, "explained_by_genes": 0.625})
    monkeypatch.setitem(network.metadata, "random_weights", True)
    gf.write_network_report(network, tmp_path / "net.html", overwrite=True)
    page = (tmp_path / "net.html").read_text().replace("<wbr>", "")
    assert "no good" not in page, "random weights are not the checkpoint's"
    for said in ("means of source genes explain (median 38%)", "(62%; adjusted R²", "explained_by_genes"):
        assert said in page
