"""gene_network: what it adds up, however the cells are read; going on, sharing, and what it refuses."""

import copy
import logging
import os
import re
import signal

import numpy as np
import pandas as pd
import pytest
import torch
from forking import forked, several, status_of
from torch.nn import functional as F

import geneformer_repro as gf
from geneformer_repro import processes
from geneformer_repro.in_silico.networks import network as module
from geneformer_repro.in_silico.networks.deletion_sums import OTHERS, others_at_like_places
from geneformer_repro.in_silico.networks.lifts import BITS
from geneformer_repro.reading import Reader

SOURCES = ["CD74", "LYZ", "SPI1", "IRF8"]
STATES = ["CD14+ Monocyte", "Dendritic"]


@pytest.fixture(scope="module")
def few(cells):
    """Thirty monocytes and thirty dendritic cells, and five B cells."""
    types = cells.labels("cell_type").to_numpy()
    rows = [np.flatnonzero(types == name)[:n] for name, n in (*dict.fromkeys(STATES, 30).items(), ("CD19+ B", 5))]
    return cells.select(np.sort(np.concatenate(rows)))


@pytest.fixture
def make(checkpoint, few, tmp_path, one_thread):
    """Make a network; options win."""

    def made(name="net", cells=few, **options):
        default = {"sources": SOURCES, "by": "cell_type", "calibration_cells": 20, "device": "cpu"}
        return gf.gene_network(checkpoint, cells, out=tmp_path / name, **default | options)

    return made


@pytest.fixture
def one_thread():
    """Another number of threads changes last bits."""
    with processes.one_thread():
        yield


def names_of(cells, row):
    names = dict(zip(cells.vocabulary.gene_ids, cells.vocabulary.gene_names, strict=True))
    return [names[gene] for gene in cells.genes(row)]


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


class TestWhatIsAddedUp:
    def test_each_state_has_a_network_of_its_cells(self, make, few):
        network = make()
        assert network.states == STATES
        assert network.donors == {key: [] for key in STATES}
        assert network.metadata["states"]["Dendritic"]["n_cells"] == 30
        counts = network.counts("Dendritic")
        dendritic = few.select(np.flatnonzero(few.labels("cell_type") == "Dendritic"))
        in_cells = [set(dendritic.genes(i)) for i in range(30)]
        for source in counts.index:
            for target in counts.columns[::50]:
                both = sum({source, target} <= genes for genes in in_cells)
                assert counts.loc[source, target] == (0 if source == target else both)

    def test_nodes_say_how_many_cells_express_a_gene_and_where(self, make, few):
        nodes = make().node_table("Dendritic")
        places = [
            few.genes(i).index("ENSG00000019582")
            for i in np.flatnonzero(few.labels("cell_type") == "Dendritic")
            if "ENSG00000019582" in few.genes(i)
        ]
        found = nodes.loc["ENSG00000019582"]
        assert (found["gene_name"], found["n_cells"], found["mean_place"]) == ("CD74", len(places), np.mean(places))
        assert nodes["mass"].notna().sum() > 100
        assert nodes.loc[nodes["is_source"], "alpha"].notna().all()

    def test_a_donors_sums_add_up_to_the_states(self, make):
        network = make(donor="donor", min_cells=5)
        assert network.donors == {key: ["donor0", "donor1", "donor2"] for key in ["CD14+ Monocyte", "Dendritic"]}
        parts = [network.sums("Dendritic", donor) for donor in network.donors["Dendritic"]]
        for whole, of_donors in zip(network.sums("Dendritic"), zip(*parts, strict=True), strict=True):
            np.testing.assert_allclose(whole, np.sum(of_donors, axis=0), rtol=1e-12)
        assert network.least_cells("donor0") == 1

    def test_weights_of_all_genes_hold_those_of_some(self, make):
        """Which genes are asked for does not enter weights before effects of genes are taken out."""
        few_genes, every = make("few"), make("every", sources=None)
        assert len(every.sources) == len(every.targets) == len(few_genes.targets)
        whole = every.uncorrected("Dendritic").loc[few_genes.sources]
        np.testing.assert_allclose(few_genes.uncorrected("Dendritic"), whole, atol=1e-5)

    def test_another_order_of_cells_and_another_batch_size_change_rounding_only(self, make, few):
        network = make()
        shuffled = few.select(np.random.default_rng(0).permutation(len(few)))
        options = {"calibration_cells": 1000, "max_tokens": 700}
        by_others = make("other", cells=shuffled, **options)
        as_it_is = make("all", calibration_cells=1000)
        for state in STATES:
            np.testing.assert_allclose(by_others.sums(state)[0], as_it_is.sums(state)[0], atol=1e-4)
            np.testing.assert_allclose(by_others.matrix(state), as_it_is.matrix(state), atol=1e-5)
        assert network.metadata["n_calibrated"] == 20

    def test_of_a_random_choice_of_cells_those_are_read(self, make):
        network = make(max_cells=40, min_cells=10)
        assert sum(state["n_cells"] for state in network.metadata["states"].values()) <= 40

    def test_half_precision_is_near_single(self, make):
        found = make("half", dtype="bfloat16").uncorrected("Dendritic")
        expected = make().uncorrected("Dendritic")
        assert np.corrcoef(found.stack(), expected.stack())[0, 1] > 0.9

    def test_a_classifier_is_read_as_its_encoder(self, make, few, checkpoint, tmp_path):
        from geneformer_repro.heads import CellClassifier, Head
        from geneformer_repro.targets import Classes

        head = Head((Classes("cell_type", ("a", "b")),))
        classifier = CellClassifier(checkpoint.model.config, head).eval()
        classifier.bert.load_state_dict(checkpoint.model.bert.state_dict())
        options = {"sources": SOURCES, "by": "cell_type", "calibration_cells": 20, "device": "cpu"}
        wrapped = gf.Checkpoint(classifier, few.vocabulary)
        found = gf.gene_network(wrapped, few, out=tmp_path / "classifier", **options)
        np.testing.assert_array_equal(found.matrix("Dendritic"), make().matrix("Dendritic"))

    def test_adapters_count(self, make, checkpoint, few, tmp_path):
        peft = pytest.importorskip("peft")
        adapted = copy.deepcopy(checkpoint.model)
        settings = peft.LoraConfig(target_modules=["query", "key"], r=2, init_lora_weights=False)
        peft.inject_adapter_in_model(settings, adapted)
        options = {"sources": SOURCES, "by": "cell_type", "calibration_cells": 20, "device": "cpu"}
        found = gf.gene_network(gf.Checkpoint(adapted.eval(), few.vocabulary), few, out=tmp_path / "adapted", **options)
        plain = make()
        assert found.metadata["checkpoint"] != plain.metadata["checkpoint"]
        assert not np.allclose(found.matrix("Dendritic"), plain.matrix("Dendritic"), equal_nan=True)

    def test_the_heads_that_are_asked_for_are_averaged(self, make):
        by_layer, by_heads = make("layer", layers=[1]), make("heads", heads=[(1, 0), (1, 1)])
        assert by_layer.metadata["heads"] == by_heads.metadata["heads"] == [[1, 0], [1, 1]]
        np.testing.assert_array_equal(by_layer.matrix("Dendritic"), by_heads.matrix("Dendritic"))
        of_heads = by_layer.metadata["of_heads"]
        assert len(of_heads) == 2
        for head in of_heads:
            assert -0.1 < head["explained_by_sources"] < head["explained_by_genes"] < 1

    def test_parts_of_an_edge_add_up_to_its_lift(self, make):
        network = make(min_cells=10)
        edges, mean = network.edges, network.metadata["states"]
        parts = edges["weight"] + edges["place_part"] + edges["source_part"] + edges["target_part"]
        np.testing.assert_allclose(edges["lift"], parts + edges["state"].map(lambda state: mean[state]["mean"]))
        assert edges["place_part"].std() > 0

    def test_codetection_is_how_often_both_are_there_beside_what_is_expected(self, make):
        network = make()
        nodes, edge = network.node_table("Dendritic"), network.edges[network.edges["state"] == "Dendritic"].iloc[3]
        expected = nodes.loc[edge["source"], "n_cells"] * nodes.loc[edge["target"], "n_cells"] / 30
        assert edge["codetection"] == pytest.approx(edge["n_cells"] / expected)

    def test_an_edges_place_part_is_what_was_taken_out(self, make, monkeypatch):
        """Without means of places the sums are larger by just that."""
        network = make()
        monkeypatch.setattr(module.AttentionWatch, "add_to", add_without_places)
        raw = make("raw").uncorrected("Dendritic").stack()
        edges = network.edges[network.edges["state"] == "Dendritic"]
        pairs = pd.MultiIndex.from_frame(edges[["source", "target"]])
        expected = raw[pairs].to_numpy() - network.uncorrected("Dendritic").stack()[pairs].to_numpy()
        np.testing.assert_allclose(edges["place_part"], expected, atol=1e-4)


def add_without_places(watch, sums):
    for cell in watch.cells:
        sums.add(cell.rows, cell.columns, cell.sum_KQ)


class TestOtherMethods:
    def test_a_deletion_moves_a_target_as_that_gene_alone_deleted_does(self, make, few, checkpoint):
        cells = few.select(np.flatnonzero(few.labels("cell_type") == "Dendritic")[:6])
        network = make("deletion", cells=cells, method="deletion", min_cells=1, by=None)
        reader, vocabulary = Reader.of(checkpoint, layer=-1, device="cpu"), cells.vocabulary
        total = np.zeros((len(network.sources), len(network.targets)))
        for i in range(6):
            tokens = cells[i]
            genes = [vocabulary.gene_ids[gene] for gene in vocabulary.genes_of(tokens)[1:-1]]
            before = reader.hidden(torch.from_numpy(tokens), [len(tokens)])[1:-1]
            places = [place for place, gene in enumerate(genes) if gene in network.sources]
            moved = np.full((len(places), len(genes)), np.nan)
            for row, place in enumerate(places):
                others = np.delete(np.arange(len(genes)), place)
                left = np.delete(tokens, place + 1)
                after = reader.hidden(torch.from_numpy(left), [len(left)])[1:-1]
                moved[row, others] = 1 - F.cosine_similarity(after, before[others], dim=-1).double()
            if len(places) < 2:
                continue
            for row, place in enumerate(places):
                beyond = moved[row] - np.nanmean(np.delete(moved, row, axis=0), axis=0)
                target = network.targets.get_indexer(genes)
                known = (target >= 0) & ~np.isnan(beyond)
                total[network.sources.get_loc(genes[place]), target[known]] += beyond[known]
        np.testing.assert_allclose(network.sums("all")[0], total, atol=1e-5)

    def test_a_deletion_without_others_to_compare_it_with_is_warned_about(self, make, few, caplog):
        cells = few.select(np.flatnonzero(few.labels("cell_type") == "Dendritic")[:12])
        make("few", cells=cells, method="deletion", min_cells=1, by=None)
        alone = sum(len({"CD74", "LYZ", "SPI1", "IRF8"} & set(names_of(cells, i))) == 1 for i in range(12))
        assert f"and {alone} of 12 cells have one and are left out" in caplog.text
        caplog.clear()
        make("all", cells=cells.select([0]), sources=None, method="deletion", min_cells=1, by=None)
        assert "is compared with" not in caplog.text

    def test_other_sources_are_those_nearest_by_the_root_of_their_place(self):
        places, rng = np.array([0, 1, 4, 9, *range(100, 120)]), np.random.default_rng(0)
        moved = rng.random((24, 3))
        moved[5, 1] = np.nan
        found = others_at_like_places(moved, places)
        distance = np.abs(np.sqrt(places) - np.sqrt(places[2]))
        nearest = [i for i in np.argsort(distance, kind="stable") if i != 2][:OTHERS]
        np.testing.assert_allclose(found[2], np.nanmean(moved[nearest], axis=0))

    def test_mean_queries_and_keys_attend_once(self, make, few, checkpoint):
        network = make("mean", method="mean_qk", min_cells=1, by=None)
        reader, n_genes = Reader.of(checkpoint, device="cpu"), few.vocabulary.size
        query, key = np.zeros((2, 3, n_genes, 2, 32))
        n = np.zeros(n_genes)
        for i in range(len(few)):
            seen = []
            reader.hidden(torch.from_numpy(few[i]), [len(few[i])], watch=lambda _, shown: seen.append(shown))  # noqa: B023
            for layer, shown in enumerate(seen):
                query[layer, few[i]] += shown.query_THE.numpy()
                key[layer, few[i]] += shown.key_THE.numpy()
            n[few[i]] += 1
        genes = few.vocabulary.tokens[n[few.vocabulary.tokens] > 0]
        weights = np.zeros((len(genes), len(genes)))
        is_source = np.isin(genes, few.vocabulary.tokens_of(network.sources))
        for layer, head in np.ndindex(3, 2):
            mean_query, mean_key = (of_all[layer, genes, head] / n[genes, None] for of_all in (query, key))
            score = torch.from_numpy(mean_query @ mean_key.T / np.sqrt(32))
            lift = (score.log_softmax(-1) * BITS + np.log2(len(genes))).numpy()[:, is_source]
            weights[:, is_source] += (lift - lift.mean()) / lift.std() / 6
        found = network.uncorrected("all")
        np.testing.assert_array_equal(
            found.columns, [few.vocabulary.gene_ids[i] for i in few.vocabulary.genes_of(genes)]
        )
        expected = weights[:, is_source].T
        known = found.notna().to_numpy()
        np.testing.assert_allclose(found.to_numpy()[known], expected[known], atol=1e-4)
        assert known.sum() == (network.counts("all").to_numpy() > 0).sum()

    @pytest.mark.parametrize("options", [{"scale": "lift"}, {"weight": "value_norm"}], ids=["lift", "value_norm"])
    def test_scale_and_weight_stand_in_the_metadata_and_change_weights(self, make, options):
        network = make("other", **options)
        assert {name: network.metadata[name] for name in options} == options
        assert not np.allclose(network.matrix("Dendritic"), make().matrix("Dendritic"), equal_nan=True)


def test_agreement_of_halves_is_of_the_pairs_that_every_other_cell_and_the_rest_have(make, few):
    cells = few.select(np.flatnonzero(few.labels("cell_type") == "Dendritic"))
    whole = make("whole", cells=cells, by=None, min_cells=4)
    said = whole.metadata["states"]["all"]
    halves = []
    for half in range(2):
        other = make(f"half{half}", cells=cells.select(np.arange(half, len(cells), 2)), by=None, min_cells=1)
        halves.append(other.counts("all").reindex(index=whole.sources, columns=whole.targets).fillna(0))
    assert said["n_pairs_of_halves"] > 100
    assert -1 <= said["agreement_of_halves"] <= 1
    np.testing.assert_array_equal(halves[0] + halves[1], whole.counts("all"))
    assert said["n_pairs_of_halves"] == int(((halves[0] >= 2) & (halves[1] >= 2)).to_numpy().sum())


def test_random_weights_are_named_in_the_metadata(make, few, checkpoint, tmp_path):
    assert make().metadata["random_weights"] is None
    random = checkpoint.with_random_weights(seed=3)
    network = gf.gene_network(random, few, sources=SOURCES, by="cell_type", out=tmp_path / "random", device="cpu")
    assert network.metadata["random_weights"] == {"seed": 3}


# Cut off, and shared


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(module, "CELLS_A_PART", 8)


@pytest.mark.parametrize("method", ["attention", "mean_qk", "deletion", "masked_logit"])
def test_a_network_that_was_killed_goes_on_and_ends_with_the_same_bytes(make, tmp_path, small_parts, method):
    options = {"method": method, "sources": SOURCES[:3]}
    kind = module._METHODS[method]

    def killed():
        part = kind.part
        done = []

        def watched(self, rows, show):
            if len(done) == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            done.append(rows)
            return part(self, rows, show)

        kind.part = watched
        make("net", **options)

    assert status_of(forked(killed, tmp_path / "log")) == -signal.SIGKILL
    left = sorted(path.name for path in (tmp_path / "net.partial").iterdir() if path.name.startswith("part"))
    assert [name for name in left if not name.endswith("sha256")] == [f"part-{i:06d}{kind.suffix}" for i in range(3)]
    make("net", **options)
    make("whole", **options)
    assert files_of(tmp_path / "net") == files_of(tmp_path / "whole")
    assert not (tmp_path / "net.partial").exists()


def test_two_processes_write_what_one_does(make, tmp_path, small_parts):
    several(lambda rank: make("two", donor="donor", min_cells=5), tmp_path)
    make("one", donor="donor", min_cells=5)
    assert files_of(tmp_path / "two") == files_of(tmp_path / "one")


def test_the_parts_change_rounding_only(make, monkeypatch):
    whole = make("whole")
    monkeypatch.setattr(module, "CELLS_A_PART", 7)
    np.testing.assert_allclose(make("parts").matrix("Dendritic"), whole.matrix("Dendritic"), atol=1e-5)


def test_unfinished_work_with_other_settings_is_refused_with_the_difference(make, tmp_path, monkeypatch):
    def stopped(*_):
        raise RuntimeError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(module._ByAttention, "part", stopped)
        with pytest.raises(RuntimeError, match="stopped"):
            make()
    with pytest.raises(FileExistsError, match=r"with other settings \(min_cells: 20 there, 10 now"):
        make(min_cells=10)
    make()


def test_a_network_that_exists_is_refused_and_replaced_where_that_is_allowed(make, tmp_path):
    make()
    with pytest.raises(FileExistsError, match="already exists"):
        make()
    assert make(overwrite=True, min_cells=10).metadata["min_cells"] == 10
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"without network\.json"):
        make("mine", overwrite=True)


# What is said, and refused, before the work


@pytest.fixture
def unread(monkeypatch):
    """Nothing may be read."""

    def read(*_, **__):
        raise AssertionError("cells were read")

    monkeypatch.setattr(Reader, "hidden", read)


def refused(make, match, **options):
    with pytest.raises(gf.InputError, match=match):
        make(**options)


def test_unknown_genes_are_listed_with_the_nearest_and_left_out(make, caplog):
    network = make(sources=["CD74", "LYZZ", "SPI-1", "LYZ"])
    assert "2 of 4 sources are not in the vocabulary" in caplog.text
    assert "'LYZZ' (near: LYZ), 'SPI-1' (near: SPI1" in caplog.text
    assert len(network.sources) == 2


@pytest.mark.usefixtures("unread")
class TestRefused:
    def test_genes_of_which_the_vocabulary_has_none(self, make):
        match = r"2 of 2 sources are not in the vocabulary.*: 'CD79' \(near: CD79B, CD79A\), 'x'. So there is none"
        refused(make, match, sources=["CD79", "x"])

    def test_a_file_of_genes_that_is_not_there(self, make):
        refused(make, r"tfs\.txt: cannot be read.*Expected a list of genes", sources="tfs.txt")

    def test_genes_that_no_state_expresses_often_enough(self, make):
        refused(make, "None of the 1 sources is expressed by 20 cells", sources=["CD79A"])

    def test_groups_that_are_all_too_small(self, make):
        refused(make, "Every group has fewer than 20 cells.*lower min_cells", by="cell_type", donor="donor")

    def test_a_column_that_is_not_there(self, make):
        refused(make, "no obs column 'celltype'. Did you mean 'cell_type'", by="celltype")
        refused(make, "no obs column 'patient'", donor="patient")

    def test_more_memory_than_allowed_with_three_remedies(self, make):
        match = r"3 sources × \d+ targets take about .* GB.*sources=.*targets=.*max_memory='0\.1GB'"
        refused(make, match, max_memory="10KB")

    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"method": "correlation"}, "method must be one of 'attention', 'deletion', 'masked_logit', 'mean_qk'"),
            ({"scale": "linear"}, "scale must be one of"),
            ({"weight": "norm"}, "weight must be one of"),
            ({"method": "deletion", "scale": "lift"}, "weight= and scale= are for method='attention'"),
            ({"method": "deletion", "layers": [0]}, "layers= and heads= choose attention"),
            ({"layers": [3]}, "has 3 layers of 2 heads, counted from 0.*found layer 3"),
            ({"layers": [-1]}, "found layer -1"),
            ({"heads": [(0, 2)]}, "found layer 0, head 2"),
            ({"heads": [(0,)]}, r"heads must be pairs \(layer, head\)"),
            ({"layers": [0], "heads": [(0, 1)]}, "not both"),
            ({"layers": []}, "names none"),
            ({"layers": "first"}, "are 'all' or a list"),
            ({"min_cells": 0}, "min_cells must be at least 1"),
            ({"calibration_cells": 0}, "calibration_cells must be at least 1"),
            ({"max_cells": 0}, "max_cells must be at least 1"),
            ({"seed": -1}, "seed must be at least 0"),
            ({"max_memory": "much"}, "max_memory is a size such as '2GB'"),
            ({"max_memory": "2PB"}, "max_memory is a size such as '2GB'"),
            ({"max_memory": 0}, "max_memory must be more than 0"),
            ({"max_tokens": 0}, "max_tokens"),
        ],
        ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
    )
    def test_options_that_contradict_or_are_none(self, make, options, match):
        refused(make, match, **options)

    def test_cells_of_another_vocabulary(self, make, pbmc):
        others = gf.tokenize(pbmc[:5].copy(), gf.Vocabulary.fit(pbmc, series="V1"))
        with pytest.raises(gf.VocabularyMismatchError):
            make(cells=others)


def test_groups_of_few_cells_are_left_out_and_listed(make, caplog):
    network = make()
    assert "Left out: CD19+ B: 5 cells (fewer than 20 cells)" in caplog.text
    assert network.metadata["left_out"] == [
        {"state": "CD19+ B", "donor": None, "n_cells": 5, "why": "fewer than 20 cells"}
    ]


def test_pooled_types_are_warned_about(make, caplog):
    network = make(by=None)
    assert network.states == ["all"]
    assert "by=None pools all cells" in caplog.text
    assert "by='cell_type' (--by)" in caplog.text


def test_sources_may_be_a_file(make, tmp_path):
    (tmp_path / "tfs.txt").write_text("# factors\nCD74\n\nLYZ\tlysozyme\nCD74\n")
    assert len(make(sources=tmp_path / "tfs.txt").sources) == 2


@pytest.mark.parametrize("method", ["attention", "mean_qk"])
def test_what_is_to_be_done_is_said_before_it(make, caplog, method):
    with caplog.at_level(logging.INFO, logger="geneformer_repro"):
        make(method=method)
    assert "60 cells in 2 groups of 2 states; 3 sources ×" in caplog.text
    assert "GB beside the model" in caplog.text
    assert re.search(r"about \d+ s here", caplog.text)
