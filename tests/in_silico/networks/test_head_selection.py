"""Heads chosen by known edges: by half of the sources alone, and judged on the others."""

import json
import re
from functools import cache

import numpy as np
import pandas as pd
import pytest
from _simulated_attention import N_FACTORS, Simulated, simulate
from made_networks import IDS, counts_of, edges_of, network_of
from sklearn.metrics import roc_auc_score

import geneformer_repro as gf
from geneformer_repro import processes
from geneformer_repro.errors import InputError
from geneformer_repro.in_silico.networks import head_selection as module
from geneformer_repro.in_silico.networks.attention_sums import Roles
from geneformer_repro.in_silico.networks.edge_scores import matched_bins
from geneformer_repro.in_silico.networks.gene_effects import gene_effects
from geneformer_repro.in_silico.networks.gene_network import Sums
from geneformer_repro.in_silico.networks.head_selection import HeadChoice, HeadScores, KnownHalves, StateGenes, half_of

EFFECTS = [0.0, 0.25, 0.0, 0.0]
"""Of pairs, in each of four heads."""
SOURCES = ["CD74", "LYZ", "FTL", "CTSS", "TYROBP", "S100A9", "S100A4", "HLA-DRA", "CST3", "LST1", "FCER1G", "AIF1"]


# Simulated attention


@cache
def _simulated(effect: float, seed: int) -> Simulated:
    return simulate(effect, np.random.default_rng(seed))


def _genes() -> pd.DataFrame:
    columns = {"gene_name": IDS, "is_source": np.arange(len(IDS)) < N_FACTORS, "is_target": True}
    return pd.DataFrame(columns, index=pd.Index(IDS))


def _choice(edges: pd.DataFrame, choosing: str) -> HeadChoice:
    """Score four heads, in one of which edges of pairs are."""
    known = KnownHalves.read(edges, _genes(), choosing)
    roles = Roles(np.where(np.arange(len(IDS)) < N_FACTORS, np.arange(len(IDS)), -1), np.arange(len(IDS)))
    scores = HeadScores(None, [None] * len(EFFECTS), known, _genes(), roles, least=5, scale="log")
    rows = [IDS.index(gene) for gene in known.sources]
    for head, effect in enumerate(EFFECTS):
        cells = _simulated(effect, head)
        n = cells.n_cells.sum(0)[:N_FACTORS].astype(np.int32)
        np.fill_diagonal(n, 0)
        sums = Sums(cells.residual.sum(0)[:N_FACTORS][rows], n[rows])
        scores.add_scores(head, sums, StateGenes(cells.detected.sum(0), cells.mean_place))
    return HeadChoice(np.column_stack([np.zeros(4, int), np.arange(4)]), scores.auroc(), known, 240)


def _known_by_id() -> pd.DataFrame:
    source, target = np.nonzero(_simulated(0.25, 1).edges)
    return pd.DataFrame({"source": np.array(IDS)[source], "target": np.array(IDS)[target]})


@pytest.mark.parametrize("choosing", ["first", "second"])
def test_either_half_chooses_the_head_that_has_the_edges(choosing: str) -> None:
    choice = _choice(_known_by_id(), choosing)
    assert choice.is_chosen.tolist() == [False, True, False, False]
    assert min(choice.auroc[:, 1]) > 0.8
    assert np.abs(np.delete(choice.auroc, 1, axis=1) - 0.5).max() < 0.2
    np.testing.assert_array_equal(np.argwhere(choice.averaged((1, 4)))[:, 1], np.flatnonzero(choice.is_chosen))


def test_edges_of_the_other_half_do_not_choose() -> None:
    known = _known_by_id()
    of_first = known["source"].map(half_of).eq(0)
    others = known[~of_first].assign(target=np.random.default_rng(0).permutation(known[~of_first]["target"]))
    choice, with_others = (_choice(edges, "first") for edges in (known, pd.concat([known[of_first], others])))
    np.testing.assert_array_equal(choice.auroc[0], with_others.auroc[0])
    np.testing.assert_array_equal(choice.is_chosen, with_others.is_chosen)
    assert with_others.auroc[1, 1] < choice.auroc[1, 1] - 0.1


def test_a_cut_in_two_is_of_the_gene_alone() -> None:
    assert [half_of(gene) for gene in ("ENSG00000019582", "ENSG00000090382")] == [1, 1]
    assert 0.4 < np.mean([half_of(f"ENSG{i:011d}") for i in range(2000)]) < 0.6


@pytest.mark.parametrize("reference", ["the same", "with others"])
def test_sources_that_chose_are_not_scored(reference: str, tmp_path) -> None:
    simulated = _simulated(0.25, 1)
    network = network_of(simulated, tmp_path / "net")
    known, options = edges_of(simulated), {"counts": counts_of(simulated), "boosted_targets": 0, "n_rewirings": 19}
    whole = gf.evaluate_network(network, known, **options)
    by_name = {name: gene for gene, name in network.genes["gene_name"].items()}
    choosers = sorted({by_name[name] for name in known["tf"] if half_of(by_name[name]) == 0})
    network.metadata["selected"] = {"sources": choosers}
    table = gf.evaluate_network(network, known, **options)
    n_left = len(set(known["tf"])) - len(choosers)
    assert set(table["n_sources"]) == {n_left}
    assert table.attrs["n_left_out"] == {"known": len(choosers)}
    assert f"{len(choosers)} sources whose edges chose heads are left out." in table.attrs["sentences"]["known"]
    assert not {by_name[name] for name in table.attrs["sources"]["known"]} & set(choosers)
    assert "left out" not in whole.attrs["sentences"]["known"]
    assert whole.attrs["n_left_out"] == {"known": 0}
    if reference == "with others":  # what another network chose by is left out, too
        beside = network_of(simulated, tmp_path / "beside")
        table = gf.evaluate_network(beside, known, beside={"chosen": network}, **options)
        assert set(table["n_sources"]) == {n_left}


def test_a_reference_all_of_whose_sources_chose_is_refused(tmp_path) -> None:
    simulated = _simulated(0.25, 1)
    network = network_of(simulated, tmp_path / "net")
    network.metadata["selected"] = {"sources": list(IDS)}
    with pytest.raises(InputError, match=r"cannot be judged on them: give a reference with other sources"):
        gf.evaluate_network(network, edges_of(simulated), counts=counts_of(simulated), boosted_targets=0)


# A model


@pytest.fixture(scope="module")
def some(cells: gf.TokenizedDataset) -> gf.TokenizedDataset:
    return cells.select(range(60))


@pytest.fixture(scope="module")
def known(some: gf.TokenizedDataset) -> pd.DataFrame:
    """Edges of no meaning: five targets of each source."""
    vocabulary, rng = some.vocabulary, np.random.default_rng(0)
    often = np.bincount(np.concatenate([vocabulary.genes_of(some[i])[1:-1] for i in range(60)])) >= 30
    names = np.array(vocabulary.gene_names, dtype=object)[np.flatnonzero(often)]
    return pd.DataFrame({"tf": np.repeat(SOURCES, 5), "target": rng.choice(names, 5 * len(SOURCES))})


@pytest.fixture
def make(checkpoint: gf.Checkpoint, some: gf.TokenizedDataset, tmp_path):
    """Make a network of sixty cells, all of which calibrate it."""

    def made(name: str, **options) -> gf.GeneNetwork:
        default = {"sources": SOURCES, "min_cells": 12, "device": "cpu"}
        with processes.one_thread():
            return gf.gene_network(checkpoint, some, out=tmp_path / name, **default | options)

    return made


def _matched(network: gf.GeneNetwork, known: pd.DataFrame, half: int) -> float:
    """Matched AUROC of a network on the known edges of half of its sources, stratum by stratum."""
    by_name = {name: gene for gene, name in network.genes["gene_name"].items()}
    edges = {(by_name[row.tf], by_name[row.target]) for row in known.itertuples() if row.tf != row.target}
    total, n = (pd.DataFrame(of, network.sources, network.targets) for of in network.sums("all"))
    rows = sorted({a for a, _ in edges if half_of(a) == half})
    mean = (total / n.where(n >= 3)).loc[rows]
    left = gene_effects(mean.to_numpy(), n.loc[rows].to_numpy()).residual * (n.loc[rows] / (n.loc[rows] + 10))
    nodes = network.node_table("all").loc[network.targets]
    bins = pd.Series(matched_bins(nodes["n_cells"].to_numpy(), nodes["mean_place"].to_numpy()), network.targets)
    wins = weight = 0.0
    for source in rows:
        of_source = left.loc[source].dropna()
        for _, of_bin in of_source.groupby(bins[of_source.index]):
            is_edge = [(source, target) in edges for target in of_bin.index]
            if 0 < sum(is_edge) < len(is_edge):
                w = sum(is_edge) * (len(is_edge) - sum(is_edge))
                wins, weight = wins + w * roc_auc_score(is_edge, of_bin), weight + w
    return wins / weight


def test_a_head_scores_what_a_network_of_it_alone_scores(make, known: pd.DataFrame) -> None:
    network = make("chosen", select=known)
    of_heads = pd.DataFrame(network.metadata["of_heads"])
    for layer, head in [(0, 0), (1, 1), (2, 0)]:
        alone = make(f"head{layer}{head}", heads=[(layer, head)])
        row = of_heads[(of_heads["layer"] == layer) & (of_heads["head"] == head)].iloc[0]
        assert row["first_half"] == pytest.approx(_matched(alone, known, 0), abs=2e-3)
        assert row["second_half"] == pytest.approx(_matched(alone, known, 1), abs=2e-3)
    chosen = of_heads.sort_values("first_half", ascending=False).head(2).sort_index()[["layer", "head"]]
    assert network.metadata["heads"] == chosen.to_numpy().tolist()
    np.testing.assert_array_equal(
        network.matrix("all"), make("by hand", heads=[tuple(pair) for pair in network.metadata["heads"]]).matrix("all")
    )


def test_the_folder_says_what_chose(make, known: pd.DataFrame, tmp_path) -> None:
    known.to_csv(tmp_path / "pairs.tsv", sep="\t", index=False)
    network = make("net", select=tmp_path / "pairs.tsv", select_on="second", layers=[0, 1])
    selected = gf.GeneNetwork.open(network.path).metadata["selected"]
    by_name = {name: gene for gene, name in network.genes["gene_name"].items()}
    assert selected["sources"] == sorted(by_name[name] for name in SOURCES if half_of(by_name[name]) == 1)
    told = {name: selected[name] for name in ("known", "on", "n_heads", "n_candidates", "n_cells")}
    assert told == {"known": "pairs", "on": "second", "n_heads": 1, "n_candidates": 4, "n_cells": 60}
    assert sum(selected["n_sources"]) == len(SOURCES)
    assert len(network.metadata["heads"]) == 1
    assert -1 <= selected["agreement"] <= 1
    json.dumps(network.metadata)


def test_a_network_without_a_choice_says_nothing_of_one(make) -> None:
    assert "selected" not in make("net").metadata


def test_what_was_read_to_choose_is_not_read_again(make, known: pd.DataFrame, monkeypatch, tmp_path) -> None:
    expected = make("whole", select=known)
    monkeypatch.setattr("geneformer_repro.in_silico.networks.network.add_attention", _killed)
    with pytest.raises(KeyboardInterrupt):
        make("net", select=known)
    monkeypatch.undo()
    monkeypatch.setattr(HeadScores, "read", _killed)
    again = make("net", select=known)
    for path in sorted(expected.path.rglob("*.*")):
        assert path.read_bytes() == (again.path / path.relative_to(expected.path)).read_bytes(), path


def _killed(*_, **__) -> None:
    raise KeyboardInterrupt


def test_the_page_says_what_the_other_half_says(make, known: pd.DataFrame, tmp_path) -> None:
    from geneformer_repro.in_silico.networks.network_pictures import write_network_report

    write_network_report(make("net", select=known), tmp_path / "net.html")
    page = re.sub(r"\s+", " ", (tmp_path / "net.html").read_text())
    assert "2 of 6 heads were chosen by the first half of the sources" in page
    assert "On the half that did not choose the chosen ones have" in page


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"method": "deletion"}, r"select= chooses heads for method='attention'", id="method"),
        pytest.param({"select_on": "third"}, r"select_on must be one of 'first', 'second'", id="half"),
        pytest.param({"sources": SOURCES[:4]}, r"heads are chosen by one half of at least 3", id="too_few_sources"),
        pytest.param({"max_memory": 900_000}, r"beside the model, more than max_memory", id="memory"),
    ],
)
def test_what_cannot_be_chosen_by_is_refused(options: dict, message: str, make, known: pd.DataFrame) -> None:
    with pytest.raises(InputError, match=message):
        make("net", select=known, **options)


def test_edges_that_cannot_be_compared_are_refused() -> None:
    known = module.KnownHalves("known", pd.DataFrame({"source": [], "target": []}), "first")
    choice = HeadChoice(np.zeros((2, 2), int), np.full((2, 2), np.nan), known, 3)
    with pytest.raises(InputError, match="no known edge of the first half can be compared"):
        choice.is_chosen  # noqa: B018
