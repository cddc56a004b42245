"""A network on known edges: simulated ones that are planted, those of a published table, and what must be there."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from _simulated_attention import N_FACTORS, simulate
from made_networks import IDS, NAMES, counts_of, edges_of, network_of

import geneformer_repro as gf
from geneformer_repro.errors import InputError
from geneformer_repro.in_silico.networks.edge_scores import Pairs, Stratified, auroc, matched_bins, strata_of
from geneformer_repro.in_silico.networks.gene_effects import gene_effects
from geneformer_repro.in_silico.networks.network_evaluation import evaluate_network, sentence_of

SEEDS = range(5)
FEW = {"boosted_targets": 0, "n_rewirings": 50}


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A network with planted edges, their list, and the counts."""
    simulated = simulate(0.5, np.random.default_rng(0))
    return network_of(simulated, tmp_path_factory.mktemp("net") / "net"), edges_of(simulated), counts_of(simulated)


@pytest.fixture(scope="module")
def table(planted):
    net, known, counts = planted
    return evaluate_network(net, known, counts=counts, **FEW | {"boosted_targets": 20})


# Simulated attention


def areas(simulated, weights):
    """AUROC over all pairs and matched."""
    pairs = Pairs.of(np.isfinite(weights))
    scores, is_edge = weights[pairs.source, pairs.target], simulated.edges[pairs.source, pairs.target]
    bins = matched_bins(simulated.detection, simulated.mean_place, n_detection=5, n_place=2)
    stratified = Stratified(scores, strata_of(pairs, bins), pairs.source, pairs.n_sources)
    return auroc(scores, is_edge), stratified.auroc(np.flatnonzero(is_edge))


def left(simulated):
    """What is left after place and both genes."""
    return gene_effects(simulated.without_place(), simulated.n_cells.sum(axis=0)[:N_FACTORS]).residual


@pytest.mark.parametrize("seed", SEEDS)
def test_without_an_effect_of_pairs_attention_finds_edges_and_what_is_left_of_it_does_not(seed):
    simulated = simulate(0.0, np.random.default_rng(seed))
    assert areas(simulated, simulated.mean_attention())[0] > 0.6
    np.testing.assert_allclose(areas(simulated, left(simulated)), 0.5, atol=0.03)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_small_effect_of_pairs_is_found_better_than_by_raw_attention(seed):
    simulated = simulate(0.25, np.random.default_rng(seed))
    raw, ours = (areas(simulated, of) for of in (simulated.mean_attention(), left(simulated)))
    assert ours[0] >= max(0.9, raw[0] + 0.1)
    assert ours[1] >= max(0.9, raw[1] + 0.07)


# The table


def test_planted_edges_are_found_beyond_co_expression_and_the_table_says_so(table):
    row = table.loc[("known", "open", "network")]
    assert row["matched"] > 0.95
    assert row["matched_p"] == row["ap_p"] == row["matched_label_p"] == 1 / 51
    assert row["beyond_coexpression_low"] > 0.3
    assert table.attrs["sentences"]["known"].startswith("Beyond co-expression of the same cells: matched AUROC +0.")


def test_before_gene_effects_prominent_genes_are_still_in_it(table):
    rows = table.loc["known"].loc["open"]
    assert rows.loc["before gene effects", "auroc"] < rows.loc["network", "auroc"] - 0.05
    assert rows.loc["source effect alone", "per_source"] == 0.5
    assert rows.loc["source effect alone", "matched"] == 0.5


def test_every_table_has_baselines_nulls_and_donors(table):
    for universe in ("open", "closed"):
        rows = table.loc["known"].loc[universe]
        assert {
            "network", "before gene effects", "source effect alone", "|Spearman|", "|Spearman|, mean of donors",
            "|Pearson|", "mutual rank", "rank proximity", "detection product", "mean product", "degree product",
        } <= set(rows.index)  # fmt: skip
        assert (rows["n_donors"] == 6).all()
        assert (rows["n_cells"] == 240).all()
        nulls = rows.drop(index="degree product")[["ap_p", "matched_p", "matched_label_p"]]
        assert nulls.notna().all(axis=None)
        assert nulls.ge(1 / 51).all(axis=None)
        assert rows.loc["degree product", ["ap_p", "matched_p"]].isna().all()


def test_all_methods_are_scored_on_the_same_pairs_in_each_universe(table):
    of_universes = table.groupby("universe")
    assert (of_universes["n_pairs"].nunique() == 1).all()
    n_targets = of_universes["n_targets"].first()
    assert n_targets["open"] > n_targets["closed"] > n_targets["boosted"] == 20
    assert "boosted trees" in table.loc["known"].loc["boosted"].index
    assert "boosted trees" not in table.loc["known"].loc["open"].index


def test_what_has_no_direction_scores_exactly_one_half(table):
    rows = table.loc["known"].loc["open"]
    undirected = ["|Spearman|", "|Pearson|", "mutual rank", "rank proximity", "detection product", "mean product"]
    assert (rows.loc[undirected, "direction"] == 0.5).all()
    assert rows.loc["network", "direction"] > 0.9
    assert (rows["n_directed"] > 10).all()


def test_networks_beside_it_are_scored_on_the_pairs_that_all_have(planted):
    net, known, counts = planted
    rng = np.random.default_rng(0)
    other = pd.DataFrame(rng.normal(size=(N_FACTORS, len(NAMES))), index=NAMES[:N_FACTORS], columns=NAMES)
    other.iloc[:, 150:] = np.nan
    table = evaluate_network(net, known, counts=counts, beside={"random weights": other}, **FEW)
    rows = table.loc["known"].loc["open"]
    assert (rows["n_targets"] <= 150).all()
    np.testing.assert_allclose(rows.loc["random weights", "matched"], 0.5, atol=0.08)
    assert table.attrs["missing_pairs"]["known"] >= 50 * 20
    assert table.attrs["lost"]["known"]["of a pair that is not scored"] > 0


def test_a_table_of_weights_by_symbol_is_a_network_as_well(planted):
    net, known, counts = planted
    weights = net.matrix("resting").rename(index=dict(zip(IDS, NAMES, strict=True)))
    table = evaluate_network(weights, known, counts=counts[:240], donor="donor", **FEW)
    assert table.loc[("known", "open", "network"), "auroc"] > 0.95
    assert "source effect alone" not in table.index.get_level_values("method")


def test_the_seed_decides_all(planted):
    net, known, counts = planted
    once, again = (evaluate_network(net, known, counts=counts, seed=3, **FEW) for _ in range(2))
    pd.testing.assert_frame_equal(once, again)


def test_several_references_are_scored_one_by_one_and_their_overlap_is_said(planted):
    net, known, counts = planted
    table = evaluate_network(net, {"all": known, "half": known[::2]}, counts=counts, **FEW)
    assert set(table.index.get_level_values("reference")) == {"all", "half"}
    assert table.attrs["overlap"]["all, half"]["share_of_second"] == 1


def test_signs_of_a_reference_are_compared_with_signed_scores(planted):
    net, known, counts = planted
    table = evaluate_network(net, known.assign(sign=np.resize([1, -1], len(known))), counts=counts, **FEW)
    rows = table.loc["known"].loc["open"]
    assert (rows["n_signed"] == rows["n_edges"]).all()
    assert rows["sign"].between(0.3, 0.7).all()


def test_a_knockdown_is_a_reference_of_its_own_among_the_pairs_that_were_measured(planted):
    net, known, counts = planted
    perturbed = known[known["tf"].isin(NAMES[:4])].rename(columns={"tf": "perturbed"}).assign(p=1e-8, wasserstein=2.0)
    others = [(tf, gene) for tf in NAMES[:4] for gene in NAMES[50:150]]
    rest = pd.DataFrame(others, columns=["perturbed", "target"]).assign(p=0.5, wasserstein=0.1)
    measured = pd.concat([perturbed, rest]).drop_duplicates(["perturbed", "target"])
    table = evaluate_network(net, known, counts=counts, perturbed=measured, **FEW)
    row = table.loc[("perturbed", "open", "network")]
    assert row["n_pairs"] <= len(measured)
    assert row["mean_effect"] > 5 * row["mean_effect_of_all"] > 0
    assert row["false_omission_rate"] < 0.02
    assert table.loc["known"]["mean_effect"].isna().all()


@pytest.mark.parametrize("ties", ["expected", "beeline"])
def test_ties_of_early_precision_may_be_beelines(planted, ties):
    _, known, counts = planted
    flat = pd.DataFrame(0.0, index=NAMES[:N_FACTORS], columns=NAMES)
    table = evaluate_network(flat, known, counts=counts, ties=ties, **FEW)
    row = table.loc[("known", "open", "network")]
    assert (row["auroc"], row["matched"], row["ap_ratio"], row["epr"]) == (0.5, 0.5, 1, 1)
    assert table.attrs["sentences"]["known"].startswith("no evidence of regulation beyond co-expression")


@pytest.mark.parametrize(
    ("gain", "low", "begins"),
    [(0.05, 0.01, "Beyond co-expression"), (0.05, -0.01, "no evidence"), (0.015, 0.01, "no evidence"),
     (0.3, np.nan, "no evidence"), (np.nan, np.nan, "nothing can be said")],
    ids=["clear", "interval holds 0", "small", "no interval", "no pair"],
)  # fmt: skip
def test_the_sentence_needs_a_gain_whose_interval_is_above_zero(gain, low, begins):
    columns = {f"beyond_coexpression{end}": [value] for end, value in (("", gain), ("_low", low), ("_high", 2 * gain))}
    said = sentence_of(pd.DataFrame(columns, index=["network"]))
    assert said.startswith(begins)
    assert "regulates" not in said


REFUSED = {
    "counts of too few cells": (
        lambda net, known, counts: (net, known, counts[:100]), {}, "the network is of 240 cells",
    ),
    "counts with other cells of the state": (
        lambda net, known, counts: (net, known, ad.concat([counts, counts[:50]], index_unique="-")),
        {},
        "the network is of 240 cells in state 'resting', these are 290",
    ),
    "no edge among the sources": (
        lambda net, known, counts: (net, known.assign(tf="GENE150"), counts), {}, "none of its .* edges can be scored",
    ),
    "nothing to score it on": (lambda net, known, counts: (net, {}, counts), {}, "give known= or perturbed="),
    "a reference called as that of perturbations": (
        lambda net, known, counts: (net, {"perturbed": known}, counts), {}, "Name it otherwise",
    ),
    "an unknown state": (lambda *given: given, {"state": "excited"}, "has no state 'excited'"),
    "no null": (lambda *given: given, {"n_rewirings": 0}, "n_rewirings must be at least 1, found 0"),
    "hardly a cell": (lambda *given: given, {"max_cells": 1}, "max_cells must be at least 20, found 1"),
    "fewer than no trees": (lambda *given: given, {"boosted_targets": -3}, "boosted_targets must be at least 0"),
    "other ties": (lambda *given: given, {"ties": "first"}, "ties must be one of 'expected', 'beeline', found 'first'"),
    "a gene that the counts lack": (
        lambda net, known, counts: (pd.DataFrame(0.0, index=["GENE1"], columns=["GENE2", "other"]), known, counts),
        {},
        "1 of the 2 targets of a network given as a table are not among the genes of the counts",
    ),
    "a name that is taken": (
        lambda *given: given, {"beside": {"|Spearman|": pd.DataFrame()}}, "as another row of the table",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("given", "options", "says"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_before_the_work(planted, given, options, says):
    net, known, counts = given(*planted)
    with pytest.raises(InputError, match=says):
        evaluate_network(net, known, counts=counts, **FEW | options)


# Published numbers


ANCHORS = {
    "TRRUST": {
        "detection product": (0.547, 1.14, 0.547, None),
        "mean product": (0.554, 1.17, 0.558, None),
        "|Pearson|": (0.537, 1.68, 0.589, 0.547),
        "|Spearman|": (0.543, 1.72, 0.596, 0.551),
        "degree product": (0.856, 81, 0.832, 0.841),
    },
    "DoRothEA A": {
        "detection product": (0.556, 1.20, 0.561, None),
        "mean product": (0.562, 1.24, 0.570, None),
        "|Pearson|": (0.554, 1.70, 0.591, 0.552),
        "|Spearman|": (0.564, 1.71, 0.601, 0.564),
        "degree product": (0.737, 14, 0.796, 0.725),
    },
    "DoRothEA A-C": {
        "detection product": (0.542, 1.16, 0.518, None),
        "mean product": (0.545, 1.22, 0.522, None),
        "|Pearson|": (0.540, 1.49, 0.546, 0.537),
        "|Spearman|": (0.548, 1.48, 0.551, 0.545),
        "degree product": (0.760, 11, 0.773, 0.734),
    },
}
"""AUROC, ratio of average precision, mean over factors, and AUROC matched on 20 bins of detection; pbmc3k, genes in
more than 5 % of the cells. The products' matched numbers hang on how genes of one detection rate are dealt to bins:
published 0.498 and 0.588 (TRRUST), together in one bin 0.505 and 0.591."""
CLOSED = {"TRRUST": (0.500, 0.646), "DoRothEA A": (0.526, 0.461), "DoRothEA A-C": (0.527, 0.514)}
"""AUROC of |Spearman| and of the degree product among targets with an edge."""


@pytest.fixture(scope="module")
def anchored(shared):
    cells = ad.read_h5ad(shared / "data" / "pbmc3k" / "pbmc3k.h5ad")
    often = np.asarray((cells.X > 0).mean(axis=0)).ravel() > 0.05
    ids = dict(zip(cells.var["gene_name"][often], cells.var_names[often], strict=True))
    sets = shared / "data" / "gene_sets"
    dorothea = pd.read_parquet(sets / "dorothea_hs.parquet")
    references = {
        "TRRUST": pd.read_csv(sets / "trrust_human.tsv", sep="\t"),
        "DoRothEA A": dorothea[dorothea["confidence"] == "A"],
        "DoRothEA A-C": dorothea[dorothea["confidence"].isin(["A", "B", "C"])],
    }
    known = {  # by symbol as it stands, as the numbers were made; former symbols would add 13 edges
        name: rows.assign(tf=rows["tf"].map(ids), target=rows["target"].map(ids)).dropna(subset=["tf", "target"])
        for name, rows in references.items()
    }
    sources = sorted({source for rows in known.values() for source in rows["tf"]})
    flat = pd.DataFrame(0.0, index=sources, columns=list(ids.values()))
    return evaluate_network(flat, known, counts=cells, boosted_targets=0, n_rewirings=1)


@pytest.mark.slow
@pytest.mark.parametrize("reference", ANCHORS)
def test_scores_without_a_model_are_those_that_were_published(anchored, reference):
    rows = anchored.loc[reference].loc["open"]
    for method, (area, ratio, mean, matched) in ANCHORS[reference].items():
        found = rows.loc[method]
        np.testing.assert_allclose(found[["auroc", "per_source"]].tolist(), [area, mean], atol=0.0005)
        np.testing.assert_allclose(found["ap_ratio"], ratio, atol=0.5 if ratio > 5 else 0.005)
        if matched is not None:
            np.testing.assert_allclose(found["matched_detection"], matched, atol=0.0006)
    closed = anchored.loc[reference].loc["closed"].loc[["|Spearman|", "degree product"], "auroc"]
    np.testing.assert_allclose(closed, CLOSED[reference], atol=0.0005)


@pytest.mark.slow
def test_numbers_of_pairs_are_those_that_were_published(anchored):
    rows = anchored.xs(("open", "network"), level=["universe", "method"])
    np.testing.assert_array_equal(rows.loc["TRRUST", ["n_sources", "n_edges", "n_targets"]], [82, 732, 3829])
    np.testing.assert_array_equal(rows.loc["DoRothEA A", ["n_sources", "n_edges"]], [28, 753])
    np.testing.assert_array_equal(rows.loc["DoRothEA A-C", ["n_sources", "n_edges"]], [72, 1416])
    assert anchored.attrs["overlap"]["TRRUST, DoRothEA A"]["n_shared"] == 334


def test_it_is_public():
    assert gf.evaluate_network is evaluate_network
