"""The folder of a network: what is read of it, and what it refuses."""

import json
import shutil

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from scipy.stats import false_discovery_control, ttest_1samp
from two_state_networks import N_CELLS, N_GENES, N_SOURCES, made_network

import geneformer_repro as gf
from geneformer_repro.in_silico.networks import gene_network as module
from geneformer_repro.in_silico.networks.gene_effects import gene_effects
from geneformer_repro.in_silico.networks.gene_network import (
    EDGES,
    Sums,
    add_sums,
    blocks_of_sources,
    least_cells,
    mean_weights,
    write_sums,
)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return made_network(tmp_path_factory.mktemp("made") / "net").network


class TestMatrices:
    def test_rows_are_sources_and_columns_targets_by_id(self, network):
        matrix = network.matrix("ctrl")
        assert matrix.shape == (N_SOURCES, N_GENES)
        assert matrix.index.equals(network.sources)
        assert matrix.columns.equals(network.targets)
        assert (matrix.index.name, matrix.columns.name) == ("source", "target")

    def test_of_a_gene_with_itself_there_is_no_weight(self, network):
        assert np.isnan(np.diag(network.matrix("stim").iloc[:, :N_SOURCES])).all()

    def test_weights_are_what_the_effects_of_both_genes_leave_of_the_mean(self, network):
        total, n = network.sums("ctrl")
        mean = np.where(n >= 20, total / np.maximum(n, 1), np.nan)
        np.testing.assert_allclose(network.uncorrected("ctrl"), mean)
        effects = gene_effects(mean, n)
        np.testing.assert_allclose(network.matrix("ctrl"), effects.residual, atol=1e-12)
        nodes = network.node_table("ctrl")
        np.testing.assert_allclose(nodes.loc[network.sources, "alpha"], effects.source, atol=1e-12)
        np.testing.assert_allclose(nodes.loc[network.targets, "beta"], effects.target, atol=1e-12)

    def test_a_donors_pairs_need_a_quarter_of_the_cells(self, network):
        assert least_cells(20, of_donor=True) == network.least_cells("A") == 5
        assert least_cells(2, of_donor=True) == 1
        n = network.counts("ctrl", "A").to_numpy()
        np.testing.assert_array_equal(network.uncorrected("ctrl", "A").isna(), n < 5)

    def test_of_lifts_the_logarithm_is_taken_of_the_mean(self):
        total, n = np.array([[8.0, 3.0]]), np.array([[2, 1]], dtype=np.int32)
        np.testing.assert_array_equal(mean_weights(total, n, least=2, scale="lift"), [[2.0, np.nan]])
        np.testing.assert_array_equal(mean_weights(total, n, least=1, scale="log"), [[4.0, 3.0]])

    def test_a_state_or_donor_that_is_not_there_is_refused_with_the_nearest(self, network):
        with pytest.raises(gf.InputError, match=r"no state 'stimm'\. Did you mean 'stim'"):
            network.matrix("stimm")
        with pytest.raises(gf.InputError, match=r"State 'stim' has no donor 'G'\. There are: 'A'"):
            network.sums("stim", "G")
        with pytest.raises(gf.InputError, match="no state"):
            network.node_table("none")

    def test_the_only_state_need_not_be_named_one_of_several_must(self, network):
        of_one = {"states": {"stim": network.metadata["states"]["stim"]}}
        alone = gf.GeneNetwork(network.path, network.metadata | of_one)
        for ask in (gf.GeneNetwork.node_table, gf.GeneNetwork.matrix, gf.GeneNetwork.counts):
            pd.testing.assert_frame_equal(ask(alone), ask(network, "stim"))
            with pytest.raises(gf.InputError, match=r"has 2 states; name one: state= .*'ctrl', 'stim'"):
                ask(network)
        assert alone.graph(top=2).edges == network.graph("stim", top=2).edges
        np.testing.assert_array_equal(alone.effects().residual, network.effects("stim").residual)


class TestEdges:
    def test_columns_are_those_of_the_format(self, network):
        names = ["source_name", "target_name"]
        assert list(network.edges) == [*list(EDGES)[:3], *names, *list(EDGES)[3:]]
        for end in ("source", "target"):
            named = network.genes.loc[network.edges[end], "gene_name"]
            assert network.edges[f"{end}_name"].tolist() == named.tolist()
        assert list(dict.fromkeys(network.edges["state"])) == ["ctrl", "stim"]

    def test_each_target_has_its_ten_strongest_sources_above_0_the_strongest_first(self, network):
        for state, edges in network.edges.groupby("state"):
            weights, n = network.matrix(state), network.counts(state)
            score = weights * n / (n + 10)
            ranked = score.stack()
            pairs = list(zip(edges["source"], edges["target"], strict=True))
            np.testing.assert_allclose(ranked[pairs], np.sort(ranked[pairs])[::-1])
            for target, of_target in edges.groupby("target"):
                expected = score[target][score[target] > 0].nlargest(10)
                assert set(of_target["source"]) == set(expected.index)

    def test_weights_and_counts_are_those_of_the_matrices(self, network):
        edges = network.edges[network.edges["state"] == "stim"]
        pairs = pd.MultiIndex.from_frame(edges[["source", "target"]])
        np.testing.assert_allclose(edges["weight"], network.matrix("stim").stack()[pairs], atol=1e-12)
        np.testing.assert_array_equal(edges["n_cells"], network.counts("stim").stack()[pairs])

    def test_intervals_and_p_values_are_those_of_a_t_test_over_donors(self, network):
        of_donors = np.stack([network.matrix("stim", donor) for donor in network.donors["stim"]])
        n_donors = (~np.isnan(of_donors)).sum(0)
        known = network.matrix("stim").notna().to_numpy() & (n_donors >= 3)
        p_value, fdr, mean, low, high = np.full((5, *known.shape), np.nan)
        for pair in np.argwhere(known):
            values = of_donors[:, *pair]
            tested = ttest_1samp(values[~np.isnan(values)], 0)
            p_value[*pair], mean[*pair] = tested.pvalue, np.nanmean(values)
            low[*pair], high[*pair] = tested.confidence_interval(0.95)
        fdr[known] = false_discovery_control(p_value[known])
        edges = network.edges[network.edges["state"] == "stim"]
        at = network.sources.get_indexer(edges["source"]), network.targets.get_indexer(edges["target"])
        np.testing.assert_allclose(edges["p_value"], p_value[at], rtol=1e-9)
        np.testing.assert_allclose(edges["fdr"], fdr[at], rtol=1e-9)
        np.testing.assert_array_equal(edges["n_donors"], n_donors[at])
        for name, expected in (("donor_mean", mean), ("low", low), ("high", high)):
            np.testing.assert_allclose(edges[name], expected[at], rtol=1e-9)

    def test_fewer_than_three_donors_give_effects_and_no_p(self, tmp_path):
        edges = made_network(tmp_path / "net", donors=(("A", "B"), ("A", "B", "C"))).network.edges
        is_of_two = edges["state"] == "ctrl"
        assert edges.loc[is_of_two, ["low", "high", "p_value", "fdr", "donor_mean"]].isna().all(axis=None)
        assert (edges.loc[is_of_two, "n_donors"] <= 2).all()
        assert edges.loc[~is_of_two, "p_value"].notna().any()

    def test_without_donors_there_are_none(self, tmp_path):
        network = made_network(tmp_path / "net", donors=((None,), (None,))).network
        assert network.donors == {"ctrl": [], "stim": []}
        assert (network.edges["n_donors"] == 0).all()
        assert network.edges["p_value"].isna().all()


class TestFolder:
    def test_many_blocks_of_sources_are_one(self, tmp_path, monkeypatch):
        whole = made_network(tmp_path / "whole").network
        monkeypatch.setattr(module, "_PAIRS_AT_ONCE", 2 * N_GENES)
        assert len(list(blocks_of_sources((N_SOURCES, N_GENES)))) == 6
        cut = made_network(tmp_path / "cut").network
        assert pq.ParquetFile(cut.path / "sums/0000.parquet").num_row_groups == 6
        pd.testing.assert_frame_equal(cut.edges, whole.edges)
        np.testing.assert_array_equal(cut.sums("stim")[0], whole.sums("stim")[0])

    def test_sums_that_are_written_are_added_to_others(self, tmp_path):
        rng = np.random.default_rng(0)
        n = rng.integers(0, 3, (5, 7)).astype(np.int32)
        total = rng.normal(size=(5, 7)) * (n > 0)
        write_sums(tmp_path / "sums.parquet", total, n)
        found = Sums(np.ones((5, 7)), np.ones((5, 7), dtype=np.int32))
        add_sums(tmp_path / "sums.parquet", *found)
        np.testing.assert_array_equal(found.total, 1 + total)
        np.testing.assert_array_equal(found.n, 1 + n)
        assert len(pq.read_table(tmp_path / "sums.parquet")) == (n > 0).sum()

    def test_what_made_it_is_in_the_metadata(self, network):
        assert network.metadata["format"] == "geneformer_repro/network/1"
        assert network.metadata["direction"] == "source=key"
        assert network.metadata["states"]["stim"]["n_cells"] == 6 * N_CELLS
        assert network.metadata["states"]["stim"]["n_donors"] == 6

    @pytest.fixture
    def copy(self, network, tmp_path):
        return shutil.copytree(network.path, tmp_path / "copy")

    def test_a_folder_that_is_none_is_refused(self, tmp_path):
        with pytest.raises(gf.InputError, match="no gene network"):
            gf.GeneNetwork.open(tmp_path)
        with pytest.raises(gf.InputError, match="no gene network"):
            gf.GeneNetwork.open(tmp_path / "nothing")

    def test_another_format_is_refused(self, copy):
        change(copy, format="geneformer_repro/network/9")
        with pytest.raises(gf.InputError, match="expected format 'geneformer_repro/network/1', found"):
            gf.GeneNetwork.open(copy)

    def test_metadata_that_lack_something_are_damaged(self, copy):
        change(copy, groups=[{"state": "ctrl"}])
        with pytest.raises(gf.DataFormatError, match=r"'n_cells' is missing in groups\[0\]"):
            gf.GeneNetwork.open(copy)

    def test_a_file_that_is_missing_is_named(self, copy):
        (copy / "sums" / "0003.parquet").unlink()
        with pytest.raises(gf.DataFormatError, match=r"lacks sums/0003\.parquet"):
            gf.GeneNetwork.open(copy)

    @pytest.mark.parametrize("name", ["sums/0000.parquet", "edges.parquet", "genes.parquet"])
    def test_a_damaged_file_is_named_when_it_is_read(self, copy, name):
        (copy / name).write_bytes((copy / name).read_bytes()[:100])
        network = gf.GeneNetwork.open(copy)
        with pytest.raises(gf.DataFormatError, match=rf"{name}: cannot be read.*make the network anew"):
            _ = network.edges if name.startswith("edges") else network.matrix("ctrl")


def change(folder, **content):
    path = folder / "network.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | content))


def test_its_nodes_are_a_table_of_genes_for_gene_sets_a_state_each(network):
    sets = {"even": list(network.targets[::2]), "third": list(network.targets[::3])}
    options = {"score": "beta", "min_size": 3, "top": 5}
    found = gf.gene_set_enrichment(network.path, sets, **options)
    assert set(found["state"]) == set(network.states)
    of_state = gf.gene_set_enrichment(network.node_table("ctrl"), sets, **options)
    pd.testing.assert_frame_equal(found[found["state"] == "ctrl"].drop(columns="state"), of_state)
