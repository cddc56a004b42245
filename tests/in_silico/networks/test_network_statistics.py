"""Edges that differ between states: found where planted, flagged where genes moved, silent where donors are few."""

from pathlib import Path
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.stats import kstest, spearmanr
from two_state_networks import N_GENES, STATES, Made, made_network

import geneformer_repro as gf
from geneformer_repro.errors import InputError
from geneformer_repro.in_silico.networks.network_statistics import NetworkDifference, _verdict, compare_networks


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made_network(tmp_path_factory.mktemp("made") / "net")


@pytest.fixture(scope="module")
def found(made: Made) -> NetworkDifference:
    return compare_networks(made.network, *STATES)


@pytest.fixture(scope="module")
def counts(made: Made) -> ad.AnnData:
    """Cells of both states of six donors; genes 0 to 5 are switched on, and genes 0 and 7 go together, in one."""
    rng = np.random.default_rng(0)
    obs = pd.DataFrame([(state, donor) for state in STATES for donor in "ABCDEF" for _ in range(40)])
    obs = obs.set_axis(["condition", "donor"], axis=1).set_axis([f"cell{i}" for i in range(len(obs))])
    is_stimulated = (obs["condition"] == "stim").to_numpy()
    rates = rng.uniform(0.5, 4, N_GENES) * np.ones((len(obs), 1))
    rates[is_stimulated, :6] *= 4
    together = rng.lognormal(0, 1, len(obs))
    rates[:, 0] *= together
    rates[is_stimulated, 7] *= together[is_stimulated]
    return ad.AnnData(rng.poisson(rates).astype(np.float32), obs=obs, var=pd.DataFrame(index=made.network.genes.index))


def _planted(edges: pd.DataFrame, made: Made) -> np.ndarray:
    sources, targets = made.network.sources, made.network.targets
    return made.changed[sources.get_indexer(edges["source"]), targets.get_indexer(edges["target"])]


# Tests


def test_a_difference_is_the_mean_over_donors_of_the_differences_of_their_networks(
    made: Made, found: NetworkDifference
) -> None:
    of_donors = [made.network.matrix("stim", donor) - made.network.matrix("ctrl", donor) for donor in "ABCDEF"]
    for _, edge in found.edges.iloc[::50].iterrows():
        differences = [matrix.loc[edge["source"], edge["target"]] for matrix in of_donors]
        assert edge["difference"] == pytest.approx(np.mean(differences))
        assert edge["weight_b"] - edge["weight_a"] == pytest.approx(edge["difference"])
        assert edge["n_donors"] == 6


def test_planted_changes_are_found_and_others_are_not(made: Made, found: NetworkDifference) -> None:
    planted, significant = _planted(found.edges, made), (found.edges["fdr"] < 0.05).to_numpy()
    assert significant[planted].mean() > 0.95
    assert planted[significant].mean() > 0.9
    assert found.facts["n_significant"] == significant.sum()
    assert found.facts["global_p_value"] == 1 / 32


def test_without_changes_p_values_are_uniform_and_the_global_test_is_silent(tmp_path: Path) -> None:
    nothing = compare_networks(made_network(tmp_path / "net", effect=0.0, seed=1).network, *STATES)
    assert kstest(nothing.edges["p_value"], "uniform").pvalue > 0.01
    assert nothing.facts["global_p_value"] > 0.05
    assert nothing.facts["n_significant"] <= 3


def test_the_other_direction_has_the_opposite_differences(made: Made, found: NetworkDifference) -> None:
    pair = ["source", "target"]
    back = (
        compare_networks(made.network, *STATES[::-1])
        .edges.set_index(pair)
        .loc[list(map(tuple, found.edges[pair].values))]
    )
    np.testing.assert_allclose(back["difference"], -found.edges["difference"].to_numpy(), atol=1e-12)
    np.testing.assert_allclose(back["p_value"], found.edges["p_value"])


def test_an_edge_both_of_whose_genes_moved_says_so(made: Made, found: NetworkDifference) -> None:
    edges = found.edges.set_index(["source_name", "target_name"])
    assert edges.loc[("G0", "G1"), ["moved", "source_moved", "target_moved"]].tolist() == [True, -9.0, -9.0]
    assert not edges.loc[("G0", "G20"), "moved"]  # the target stayed
    assert not edges.loc[("G9", "G1"), "moved"]  # the source did
    assert found.genes["moved"].sum() == 6


def test_a_pair_of_one_state_is_listed_apart_and_not_ranked(found: NetworkDifference) -> None:
    (row,) = found.in_one_state.itertuples()
    assert (row.state, row.source_name, row.target_name) == ("ctrl", "G0", "G59")
    assert not ((found.edges["source_name"] == "G0") & (found.edges["target_name"] == "G59")).any()


def test_fewer_rows_keep_the_correction_for_all_pairs(made: Made, found: NetworkDifference) -> None:
    few = compare_networks(made.network, *STATES, top=20)
    pd.testing.assert_frame_equal(few.edges, found.edges[:20])
    assert few.facts["n_tested"] == len(found.edges) == 12 * 60 - 12 - 1


@pytest.mark.parametrize(
    ("donors", "n_donors"),
    [
        pytest.param((("A", "B"), ("A", "B")), 2, id="two_donors"),
        pytest.param((("A", "B", "C"), ("B", "C", "D")), 2, id="two_in_common"),
        pytest.param((("A", "B", "C"), ("D", "E", "F")), 0, id="none_in_common"),
        pytest.param(((None,), (None,)), 0, id="no_donors"),
    ],
)
def test_below_three_donors_with_both_states_there_are_effects_only(
    donors: tuple[tuple[str | None, ...], tuple[str | None, ...]], n_donors: int, tmp_path: Path
) -> None:
    found = compare_networks(made_network(tmp_path / "net", donors=donors).network, *STATES)
    assert found.edges["p_value"].isna().all()
    assert set(found.edges["n_donors"]) == {n_donors}
    assert found.edges["difference"].abs().is_monotonic_decreasing
    assert f"with both ctrl and stim (there are {n_donors}), so nothing was tested" in found.sentence()


# Beside expression


def test_rank_correlations_stand_beside_edges(made: Made, counts: ad.AnnData) -> None:
    edges = compare_networks(made.network, *STATES, counts=counts).edges.set_index(["source_name", "target_name"])
    edge = edges.loc[("G0", "G7")]
    logged = np.log1p(counts.X / counts.X.sum(1, keepdims=True) * 1e4)
    of_donors = []
    for donor in "ABCDEF":
        of_states = []
        for state in STATES:
            chosen = ((counts.obs["donor"] == donor) & (counts.obs["condition"] == state)).to_numpy()
            of_states.append(spearmanr(logged[chosen, 0], logged[chosen, 7]).statistic)
        of_donors.append(of_states)
    before, after = np.transpose(of_donors)
    np.testing.assert_allclose(edge[["spearman_a", "spearman_b"]].astype(float), [before.mean(), after.mean()])
    assert edge["spearman_difference"] == pytest.approx((after - before).mean())
    assert edge["spearman_fdr"] < 0.05


def test_fold_changes_stand_beside_genes_and_edges(made: Made, counts: ad.AnnData) -> None:
    found = compare_networks(made.network, *STATES, counts=counts)
    assert (found.genes["expression_fdr"].to_numpy()[:6] < 0.05).all()
    assert found.genes["log2_fold_change"].to_numpy()[:6] == pytest.approx(1.6, abs=0.5)  # less: others share counts
    edge = found.edges.set_index(["source_name", "target_name"]).loc[("G0", "G20")]
    assert edge["source_log2_fold_change"] == found.genes["log2_fold_change"].iloc[0]
    assert edge["target_log2_fold_change"] == found.genes["log2_fold_change"].iloc[20]


def test_the_sentence_says_what_changes_more(made: Made, counts: ad.AnnData) -> None:
    said = compare_networks(made.network, *STATES, counts=counts).sentence()
    assert "attention changes in more pairs than co-expression" in said
    assert "not regulation" in said


def test_every_table_has_donors_a_null_and_what_needs_no_model_beside_it(made: Made, counts: ad.AnnData) -> None:
    found = compare_networks(made.network, *STATES, counts=counts)
    assert {"n_donors", "n_cells_a", "n_cells_b", "moved", "spearman_difference", "spearman_fdr"} <= set(found.edges)
    assert {"source_log2_fold_change", "target_log2_fold_change"} <= set(found.edges)
    assert {"source_detection_change", "target_detection_change"} <= set(found.edges)
    assert {"n_strong", "n_strong_expected", "global_p_value", "spearman_global_p_value"} <= set(found.facts)


# Refusals


def test_unknown_or_equal_states_are_refused(made: Made) -> None:
    with pytest.raises(InputError, match=r"no state 'stimulated'\. There are: 'ctrl', 'stim'"):
        compare_networks(made.network, "ctrl", "stimulated")
    with pytest.raises(InputError, match="between two states, found 'ctrl' twice"):
        compare_networks(made.network, "ctrl", "ctrl")


def test_counts_of_other_cells_are_refused(made: Made, counts: ad.AnnData) -> None:
    with pytest.raises(InputError, match="no column 'condition'"):
        compare_networks(made.network, *STATES, counts=ad.AnnData(counts.X, var=counts.var))
    other = counts[(counts.obs["condition"] == "ctrl") | (counts.obs["donor"] != "A")].copy()
    with pytest.raises(InputError, match="no cell in state 'stim' of donor 'A'"):
        compare_networks(made.network, *STATES, counts=other)
    strange = ad.AnnData(counts.X, obs=counts.obs, var=pd.DataFrame(index=[f"x{i}" for i in range(N_GENES)]))
    with pytest.raises(InputError, match="none of its 60 genes is one of the network's 60"):
        compare_networks(made.network, *STATES, counts=strange)


def test_counts_of_more_cells_are_refused_or_cut_to_the_cells_that_are_named(
    made: Made, counts: ad.AnnData, cells: gf.TokenizedDataset
) -> None:
    """Cells of another type, say, in the same states and donors."""
    others = counts.copy()
    others.obs_names = [f"other{name}" for name in counts.obs_names]
    both = ad.concat([counts, others])
    with pytest.raises(
        InputError, match=r"made of 40 cells in state 'ctrl' of donor 'A', and the counts hold 80.*cells="
    ):
        compare_networks(made.network, *STATES, counts=both)
    named = SimpleNamespace(cell_names=counts.obs_names.to_numpy())
    found = compare_networks.__wrapped__(made.network, *STATES, counts=both, cells=named)
    pd.testing.assert_frame_equal(found.edges, compare_networks(made.network, *STATES, counts=counts).edges)
    with pytest.raises(InputError, match="give counts= too"):
        compare_networks(made.network, *STATES, cells=cells)
    with pytest.raises(InputError, match="holds none of the 700 cells of cells="):
        compare_networks(made.network, *STATES, counts=counts, cells=cells)


@pytest.mark.parametrize(
    ("ours", "theirs", "p_values", "said"),
    [
        pytest.param(20, 5, (0.01, 0.5), "attention changes in more pairs than co-expression", id="attention"),
        pytest.param(5, 20, (0.5, 0.01), "co-expression of the same cells changes in more pairs", id="co-expression"),
        pytest.param(0, 1, (0.01, 0.5), "attention changes and co-expression of the same cells does not", id="few"),
        pytest.param(0, 1, (0.5, 0.01), "co-expression of the same cells changes and attention does not", id="other"),
        pytest.param(0, 0, (0.5, 0.5), "as a whole neither changes", id="none"),
        pytest.param(3, 0, (0.01, 0.01), "as a whole both change", id="both"),
    ],
)
def test_a_verdict_is_of_single_pairs_where_there_are_some(
    ours: int, theirs: int, p_values: tuple[float, float], said: str
) -> None:
    facts = {"n_significant": ours, "spearman_n_significant": theirs}
    facts |= dict(zip(("global_p_value", "spearman_global_p_value"), p_values, strict=True))
    assert said in _verdict(facts)
