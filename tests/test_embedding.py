import copy
import dataclasses
import json
import logging
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from forking import several
from transformers import BertModel

import geneformer_repro as gf
from geneformer_repro import processes, progress, reading
from geneformer_repro.embedding import embed, embed_states
from geneformer_repro.heads import CellClassifier, Head
from geneformer_repro.model import MaskedGeneModel, bert_config
from geneformer_repro.reading import Reader, blocks_to_run, parts_of
from geneformer_repro.targets import Classes
from geneformer_repro.tokenizer.vocabulary import Vocabulary

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
DIMENSIONS = [f"{i}" for i in range(32)]


@pytest.fixture(scope="module")
def few(cells: gf.TokenizedDataset) -> gf.TokenizedDataset:
    """Twelve cells, not in the order of their lengths."""
    return cells.select([600, 3, 44, 500, 7, 8, 91, 10, 411, 12, 13, 699])


def stock_hidden_states(checkpoint: gf.Checkpoint, cell: np.ndarray) -> list[torch.Tensor]:
    """Stock BERT on one cell: the input embedding and the output of every block."""
    theirs = BertModel(checkpoint.model.config, add_pooling_layer=False).eval()
    theirs.load_state_dict(checkpoint.model.bert.state_dict())
    with torch.no_grad():
        return [states[0] for states in theirs(torch.as_tensor(cell)[None], output_hidden_states=True).hidden_states]


def hidden_states(checkpoint, cells, *, layer=-1, max_tokens, device=None):
    """Batches as `embed` reads them."""
    reader = Reader.of(checkpoint, layer=layer, max_tokens=max_tokens, device=device)
    for batch in reader.batches(cells, np.arange(len(cells))):
        yield batch, reader.hidden(batch.input_ids_T, batch.lengths)


def refuse_to_run(*_: object) -> None:
    raise AssertionError("a part of the network ran that nobody reads")


class TestHiddenStates:
    @pytest.mark.parametrize(("layer", "state"), [(0, 3), (-1, 2), (-2, 1), (-3, 0)])
    def test_a_layer_is_stock_berts_hidden_state(self, checkpoint, few, layer, state):
        rows = []
        for batch, hidden in hidden_states(checkpoint, few, layer=layer, max_tokens=1200, device="cpu"):
            for row, of_cell in zip(batch.rows, hidden.split(batch.lengths), strict=True):
                np.testing.assert_allclose(of_cell, stock_hidden_states(checkpoint, few[row])[state], **CLOSE)
            rows += batch.rows.tolist()
        assert sorted(rows) == list(range(len(few)))

    @pytest.mark.parametrize("layer", [0, -1, -2, -3])
    def test_what_lies_beyond_the_layer_never_runs(self, checkpoint, few, layer):
        checkpoint.model.cls.predictions.transform.dense.register_forward_hook(refuse_to_run)
        for block in checkpoint.model.bert.encoder.layer[3 + layer :]:
            for part in block.modules():
                part.register_forward_hook(refuse_to_run)
        embed(checkpoint, few, layer=layer)

    def test_cells_lie_end_to_end_and_genes_are_what_is_not_special(self, checkpoint, few):
        for batch, _ in hidden_states(checkpoint, few, max_tokens=1200, device="cpu"):
            np.testing.assert_array_equal(batch.input_ids_T, np.concatenate([few[row] for row in batch.rows]))
            special = torch.tensor(list(few.vocabulary.special_tokens.values()))
            np.testing.assert_array_equal(batch.genes_T, ~torch.isin(batch.input_ids_T, special))

    @pytest.mark.parametrize(("layer", "n_blocks"), [(0, 3), (-1, 2), (-3, 0)])
    def test_layers_are_counted_from_the_last_block(self, checkpoint, layer, n_blocks):
        assert blocks_to_run(checkpoint, layer) == n_blocks

    @pytest.mark.parametrize("layer", [1, -4])
    def test_a_layer_that_does_not_exist_is_refused(self, checkpoint, few, layer):
        message = rf"layer must lie between -3 \(the input embedding\) and 0 \(the last block\), found {layer}"
        with pytest.raises(gf.InputError, match=message):
            embed(checkpoint, few, layer=layer)

    def test_the_default_device_can_hold_a_tensor(self):
        assert torch.ones(1, device=processes.device()).item() == 1


class TestCells:
    @pytest.mark.parametrize("layer", [0, -1])
    def test_cells_are_embedded_as_published(self, golden, layer):
        published = pd.read_parquet(golden.folder / f"embs_cell_{layer}.parquet").set_index("cell_id")
        ours = embed(golden.checkpoint, golden.cells, layer=layer).to_df()
        np.testing.assert_allclose(ours.loc[published.index], published[DIMENSIONS], **CLOSE)
        assert len(ours) == len(published)

    @pytest.mark.parametrize("layer", [0, -1])
    @pytest.mark.parametrize("golden", ["v2"], indirect=True)
    def test_cls_is_embedded_as_published(self, golden, layer):
        published = pd.read_parquet(golden.folder / f"embs_cls_{layer}.parquet").set_index("cell_id")
        ours = embed(golden.checkpoint, golden.cells, layer=layer, pooling="cls").to_df()
        np.testing.assert_allclose(ours.loc[published.index], published[DIMENSIONS], **CLOSE)

    @pytest.mark.parametrize("pooling", ["mean", "cls"])
    def test_a_cell_is_the_pooled_hidden_state_of_stock_bert(self, checkpoint, few, pooling):
        ours = embed(checkpoint, few, pooling=pooling).X
        for i in range(len(few)):
            hidden = stock_hidden_states(checkpoint, few[i])[2]
            expected = hidden[0] if pooling == "cls" else hidden[1:-1].mean(0)
            np.testing.assert_allclose(ours[i], expected, **CLOSE)

    @pytest.mark.parametrize("pooling", ["mean", "cls"])
    def test_other_cells_do_not_change_an_embedding(self, checkpoint, few, pooling):
        one_by_one = np.concatenate([embed(checkpoint, few.select([i]), pooling=pooling).X for i in range(len(few))])
        together = embed(checkpoint, few, pooling=pooling, max_tokens=10**6).X
        np.testing.assert_allclose(together, one_by_one, **CLOSE)

    @pytest.mark.parametrize("max_tokens", [1, 700, 2000])
    def test_the_size_of_a_batch_does_not_change_an_embedding(self, checkpoint, few, max_tokens):
        batched = embed(checkpoint, few, max_tokens=max_tokens).X
        np.testing.assert_allclose(batched, embed(checkpoint, few).X, **CLOSE)

    def test_cells_keep_their_order_names_and_obs(self, checkpoint, few):
        adata = embed(checkpoint, few, max_tokens=700)
        assert adata.obs_names.tolist() == few.cell_names.tolist()
        pd.testing.assert_frame_equal(adata.obs, few.obs, check_dtype=False)
        assert adata.obs["cell_type"].nunique() > 1

    def test_reordering_the_cells_reorders_their_vectors(self, checkpoint, few):
        order = [5, 0, 11, 3]
        chosen = embed(checkpoint, few.select(order))
        np.testing.assert_allclose(chosen.X, embed(checkpoint, few).X[order], **CLOSE)

    def test_cells_differ(self, checkpoint, few):
        vectors = embed(checkpoint, few).X
        assert np.linalg.norm(vectors[:, None] - vectors, axis=-1)[~np.eye(len(few), dtype=bool)].min() > 0.01

    def test_twice_gives_the_same_bits(self, checkpoint, few):
        np.testing.assert_array_equal(embed(checkpoint, few).X, embed(checkpoint, few).X)

    def test_dropout_has_no_effect(self, checkpoint, few):
        config = copy.deepcopy(checkpoint.model.config)
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.5
        model = MaskedGeneModel(config)
        model.load_state_dict(checkpoint.model.state_dict())
        training = dataclasses.replace(checkpoint, model=model.train())
        np.testing.assert_array_equal(embed(training, few).X, embed(checkpoint, few).X)

    def test_a_classifier_embeds_with_its_encoder(self, checkpoint, few):
        model = CellClassifier(checkpoint.model.config, Head((Classes("cell_type", ("B", "T")),)))
        model.bert.load_state_dict(checkpoint.model.bert.state_dict())
        classifier = gf.Checkpoint(model, checkpoint.vocabulary)
        np.testing.assert_array_equal(embed(classifier, few).X, embed(checkpoint, few).X)

    def test_the_model_stays_as_it_is(self, checkpoint, few):
        before = checkpoint.fingerprint
        embed(checkpoint, few)
        assert checkpoint.fingerprint == before

    @pytest.mark.parametrize("options", [{}, {"layer": 0, "pooling": "cls"}], ids=["default", "chosen"])
    def test_it_says_what_made_it(self, checkpoint, few, options):
        adata = embed(checkpoint, few, **options)
        assert adata.X.dtype == np.float32
        where = {"model": "checkpoint tiny", "vocabulary": few.vocabulary.fingerprint}
        where |= {"checkpoint": checkpoint.fingerprint, "cells": few.fingerprint}
        defaults = {"level": "cell", "layer": -1, "pooling": "mean", "dtype": "float32"}
        assert adata.uns["geneformer_repro"] == where | defaults | options

    def test_it_can_be_written_and_read_back(self, checkpoint, few, tmp_path):
        adata = embed(checkpoint, few)
        adata.write_h5ad(tmp_path / "embedding.h5ad")
        read = ad.read_h5ad(tmp_path / "embedding.h5ad")
        np.testing.assert_array_equal(read.X, adata.X)
        assert dict(read.uns["geneformer_repro"]) == adata.uns["geneformer_repro"]
        assert read.obs["cell_type"].tolist() == few.obs["cell_type"].tolist()


class TestGenes:
    @pytest.mark.parametrize("layer", [0, -1])
    def test_genes_are_embedded_as_published(self, golden, layer):
        published = pd.read_parquet(golden.folder / f"embs_gene_{layer}.parquet")
        published = published[~published.index.str.startswith("<")]
        ours = embed(golden.checkpoint, golden.cells, level="gene", layer=layer).to_df()
        np.testing.assert_allclose(ours.loc[published.index], published[DIMENSIONS], **CLOSE)
        assert len(ours) == len(published)

    def test_a_gene_is_its_mean_over_the_cells_that_express_it(self, checkpoint, few):
        vectors: dict[str, list[np.ndarray]] = {}
        for i in range(len(few)):
            hidden = stock_hidden_states(checkpoint, few[i])[2].numpy()
            for gene, vector in zip(few.genes(i), hidden[1:-1], strict=True):
                vectors.setdefault(gene, []).append(vector)
        ours = embed(checkpoint, few, level="gene", max_tokens=1000)
        assert sorted(ours.obs_names) == sorted(vectors)
        np.testing.assert_allclose(ours.X, [np.mean(vectors[gene], axis=0) for gene in ours.obs_names], **CLOSE)
        assert ours.obs["n_cells"].tolist() == [len(vectors[gene]) for gene in ours.obs_names]

    def test_genes_come_in_the_order_of_the_vocabulary_with_their_names(self, checkpoint, few):
        obs = embed(checkpoint, few, level="gene").obs
        names = dict(zip(few.vocabulary.gene_ids, few.vocabulary.gene_names, strict=True))
        assert obs["gene_name"].tolist() == [names[gene] for gene in obs.index]
        assert obs.index.tolist() == [gene for gene in few.vocabulary.gene_ids if gene in set(obs.index)]

    def test_genes_that_no_cell_expresses_are_left_out(self, checkpoint, few):
        one = few.select([0])
        adata = embed(checkpoint, one, level="gene")
        assert sorted(adata.obs_names) == sorted(one.genes(0))
        assert adata.n_obs < len(few.vocabulary)

    def test_it_says_what_made_it(self, checkpoint, few):
        adata = embed(checkpoint, few, level="gene", layer=0)
        assert adata.X.dtype == np.float32
        assert adata.uns["geneformer_repro"]["level"] == "gene"
        assert adata.uns["geneformer_repro"]["layer"] == 0


class TestParts:
    def test_they_are_consecutive_and_none_is_too_large(self, monkeypatch):
        monkeypatch.setattr(reading, "CELLS_A_PART", 3)
        monkeypatch.setattr(reading, "TOKENS_A_PART", 10)
        lengths = np.array([5, 5, 1, 1, 1, 1, 30, 2, 2])
        assert [rows.tolist() for rows in parts_of(lengths)] == [[0, 1], [2, 3, 4], [5], [6], [7, 8]]

    def test_a_part_of_a_few_cells_is_all_of_them(self):
        assert [rows.tolist() for rows in parts_of(np.array([5, 3, 9]))] == [[0, 1, 2]]

    @pytest.mark.parametrize("level", ["cell", "gene"])
    def test_parts_do_not_change_an_embedding(self, checkpoint, few, level, monkeypatch):
        whole = embed(checkpoint, few, level=level)
        monkeypatch.setattr(reading, "CELLS_A_PART", 5)
        np.testing.assert_allclose(embed(checkpoint, few, level=level).X, whole.X, **CLOSE)


@pytest.fixture
def parts(monkeypatch) -> None:
    monkeypatch.setattr(reading, "CELLS_A_PART", 5)


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
class TestStreamed:
    @pytest.mark.parametrize("level", ["cell", "gene"])
    def test_what_is_written_is_what_memory_would_hold(self, checkpoint, few, level, suffix, tmp_path):
        in_memory = embed(checkpoint, few, level=level)
        streamed = embed(checkpoint, few, level=level, out=tmp_path / f"x{suffix}")
        assert streamed.X.dtype == np.float32
        np.testing.assert_array_equal(streamed.X[:], in_memory.X)
        pd.testing.assert_frame_equal(streamed.obs, in_memory.obs, check_dtype=False, check_categorical=False)
        assert streamed.var_names.tolist() == in_memory.var_names.tolist()
        assert dict(streamed.uns["geneformer_repro"]) == in_memory.uns["geneformer_repro"]

    @pytest.mark.parametrize("level", ["cell", "gene"])
    def test_anndata_reads_it(self, checkpoint, few, level, suffix, tmp_path):
        streamed = embed(checkpoint, few, level=level, out=tmp_path / f"x{suffix}")
        read = {".h5ad": ad.read_h5ad, ".zarr": ad.read_zarr}[suffix](tmp_path / f"x{suffix}")
        np.testing.assert_array_equal(read.X, streamed.X[:])
        assert read.obs_names.tolist() == streamed.obs_names.tolist()

    def test_nothing_else_is_left(self, checkpoint, few, suffix, tmp_path):
        embed(checkpoint, few, out=tmp_path / f"x{suffix}")
        assert [path.name for path in tmp_path.iterdir()] == [f"x{suffix}"]

    @pytest.mark.parametrize("level", ["cell", "gene"])
    def test_what_is_there_is_replaced_only_when_allowed(self, checkpoint, few, level, suffix, tmp_path):
        out = tmp_path / f"x{suffix}"
        embed(checkpoint, few.select([0]), level=level, out=out)
        with pytest.raises(FileExistsError, match=r"already exists.*overwrite=True"):
            embed(checkpoint, few, level=level, out=out)
        streamed = embed(checkpoint, few, level=level, out=out, overwrite=True)
        np.testing.assert_array_equal(streamed.X[:], embed(checkpoint, few, level=level).X)

    def test_what_was_cut_off_goes_on_and_ends_the_same(self, checkpoint, few, suffix, tmp_path, cut_off):
        out = tmp_path / f"x{suffix}"
        cut_off(checkpoint, few, out)
        assert not out.exists()
        seen = []
        checkpoint.model.bert.embeddings.register_forward_hook(lambda *_: seen.append(1))
        streamed = embed(checkpoint, few, out=out)
        n_forwards_of_the_rest = len(seen)
        np.testing.assert_array_equal(streamed.X[:], embed(checkpoint, few).X)
        assert 0 < n_forwards_of_the_rest < len(seen) - n_forwards_of_the_rest
        assert not (tmp_path / f"x{suffix}.partial").exists()

    def test_the_rate_counts_what_this_call_did(self, checkpoint, few, suffix, tmp_path, cut_off, caplog):
        cut_off(checkpoint, few, tmp_path / f"x{suffix}")
        with caplog.at_level(logging.INFO, logger="geneformer_repro"):
            embed(checkpoint, few, out=tmp_path / f"x{suffix}")
        ours, *_ = lines_of(caplog)
        assert ours["cells"] == len(few)

    @pytest.mark.parametrize(
        ("options", "difference"),
        [
            ({"layer": 0}, "layer: -1 there, 0 now"),
            ({"pooling": "cls"}, "pooling: 'mean' there, 'cls' now"),
            ({"dtype": "bfloat16"}, "dtype: 'float32' there, 'bfloat16' now"),
            ({"max_tokens": 100}, "max_tokens: 16384 there, 100 now"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_other_settings_do_not_go_on(self, checkpoint, few, suffix, tmp_path, cut_off, options, difference):
        out = tmp_path / f"x{suffix}"
        cut_off(checkpoint, few, out)
        with pytest.raises(FileExistsError, match=f"unfinished embedding with other settings .{difference}"):
            embed(checkpoint, few, out=out, **options)

    def test_other_settings_begin_anew_where_that_is_allowed(self, checkpoint, few, suffix, tmp_path, cut_off):
        cut_off(checkpoint, few, tmp_path / f"x{suffix}")
        streamed = embed(checkpoint, few, layer=0, out=tmp_path / f"x{suffix}", overwrite=True)
        np.testing.assert_array_equal(streamed.X[:], embed(checkpoint, few, layer=0).X)

    def test_other_cells_do_not_go_on(self, checkpoint, few, suffix, tmp_path, cut_off):
        cut_off(checkpoint, few, tmp_path / f"x{suffix}")
        with pytest.raises(FileExistsError, match=r"other settings \(cells: "):
            embed(checkpoint, few.select(range(11)), out=tmp_path / f"x{suffix}")


@pytest.fixture
def cut_off(monkeypatch):
    """Embed, but fail while the second part is computed."""

    def run(checkpoint: gf.Checkpoint, cells: gf.TokenizedDataset, out: Path) -> None:
        run, calls = reading.Reader.hidden, iter([1])

        def failing(*given, **options):
            if next(calls, None) is None:
                raise RuntimeError("cut off")
            return run(*given, **options)

        with monkeypatch.context() as patch:
            patch.setattr(reading.Reader, "hidden", failing)
            with pytest.raises(RuntimeError, match="cut off"):
                embed(checkpoint, cells, out=out)

    return run


def lines_of(caplog) -> list[dict]:
    return [json.loads(record.message) for record in caplog.records if record.message.startswith("{")]


class TestStates:
    @pytest.fixture
    def labelled(self, few) -> gf.TokenizedDataset:
        """Twelve cells: five of "a", four of "b", one of "c", two of no state."""
        states = ["a", "b", "a", None, "b", "a", "a", "c", None, "b", "b", "a"]
        return dataclasses.replace(few, table=few.table.add_column("state", states))

    @pytest.mark.parametrize("statistic", ["mean", "median"])
    @pytest.mark.parametrize("options", [{}, {"layer": 0, "pooling": "cls"}], ids=["default", "chosen"])
    def test_a_state_is_the_statistic_over_its_cells(self, checkpoint, labelled, statistic, options):
        cells = embed(checkpoint, labelled, **options).to_df()
        expected = cells.groupby(labelled.obs["state"]).agg(statistic)
        found = embed_states(checkpoint, labelled, "state", statistic=statistic, **options)
        pd.testing.assert_frame_equal(found, expected.astype(np.float32), rtol=1e-5, atol=1e-5)

    def test_more_cells_than_a_batch_or_a_part_are_all_counted(self, checkpoint, cells, monkeypatch):
        some = cells.select(range(60))
        monkeypatch.setattr(reading, "CELLS_A_PART", 7)
        expected = embed(checkpoint, some).to_df().groupby(some.obs["donor"]).mean()
        found = embed_states(checkpoint, some, "donor", max_tokens=1000)
        np.testing.assert_allclose(found, expected, **CLOSE)

    def test_only_the_states_that_are_asked_for_in_their_order(self, checkpoint, labelled):
        every = embed_states(checkpoint, labelled, "state")
        found = embed_states(checkpoint, labelled, "state", states=["c", "a"])
        pd.testing.assert_frame_equal(found, every.loc[["c", "a"]])
        assert found.index.name == "state"

    def test_an_unknown_state(self, checkpoint, labelled):
        with pytest.raises(gf.InputError, match=r"No cell has cell_type = 'Dendritc'\. Did you mean 'Dendritic'"):
            embed_states(checkpoint, labelled, "cell_type", states=["Dendritc"])

    def test_a_state_that_is_no_text_is_answered_with_those_there_are(self, checkpoint, labelled):
        with pytest.raises(gf.InputError, match=r"No cell has state = '7'\. There are: 'a', 'b', 'c'"):
            embed_states(checkpoint, labelled, "state", states=[7])

    def test_one_state_without_a_list(self, checkpoint, labelled):
        with pytest.raises(gf.InputError, match=r"states must be a sequence of states; for one give \['a'\]"):
            embed_states(checkpoint, labelled, "state", states="a")

    def test_no_cell_has_a_state(self, checkpoint, labelled):
        with pytest.raises(gf.InputError, match="No cell with a gene has a value of 'state'"):
            embed_states(checkpoint, labelled.select([3, 8]), "state")

    def test_an_unknown_statistic(self, checkpoint, labelled):
        with pytest.raises(gf.InputError, match="statistic must be one of 'mean', 'median', found 'max'"):
            embed_states(checkpoint, labelled, "state", statistic="max")

    def test_an_unknown_column(self, checkpoint, labelled):
        with pytest.raises(gf.InputError, match=r"no obs column 'stat'. Did you mean 'state'"):
            embed_states(checkpoint, labelled, "stat")


class TestBfloat16:
    @pytest.mark.parametrize("options", [{}, {"pooling": "cls"}, {"level": "gene"}], ids=["mean", "cls", "gene"])
    def test_it_is_close_and_float32(self, checkpoint, few, options):
        exact, rounded = (embed(checkpoint, few, dtype=dtype, **options).X for dtype in ("float32", "bfloat16"))
        assert rounded.dtype == np.float32
        similarity = (exact * rounded).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(rounded, axis=1)
        assert similarity.min() > 0.999
        assert np.abs(exact - rounded).max() > 1e-5

    def test_an_unknown_dtype(self, checkpoint, few):
        with pytest.raises(gf.InputError, match="dtype must be one of 'float32', 'bfloat16', found 'float16'"):
            embed(checkpoint, few, dtype="float16")


class TestLog:
    def test_the_last_line_says_cells_rate_and_memory(self, checkpoint, few, caplog):
        with caplog.at_level(logging.INFO, logger="geneformer_repro"):
            embed(checkpoint, few)
        (line,) = lines_of(caplog)
        assert line["event"] == "embed"
        assert line["cells"] == len(few)
        assert line["cells_per_second"] > 0
        assert line["peak_memory_gb"] > 0

    def test_long_work_says_so_now_and_then(self, checkpoint, few, caplog, monkeypatch):
        monkeypatch.setattr(progress, "SECONDS_A_LINE", 0)
        with caplog.at_level(logging.INFO, logger="geneformer_repro"):
            embed(checkpoint, few, max_tokens=1)
        assert [line["cells"] for line in lines_of(caplog)] == [*range(1, 13)]


@pytest.fixture(scope="module")
def launched(tmp_path_factory, vocabulary) -> Path:
    """What two processes and one made of the same cells."""
    folder = tmp_path_factory.mktemp("two")
    torch.manual_seed(0)
    checkpoint = gf.Checkpoint(MaskedGeneModel(bert_config("tiny", vocabulary)).eval(), vocabulary)
    some = gf.tokenize(gf.datasets.pbmc700()[:23], vocabulary, obs=["cell_type"])

    def run(name):
        reading.CELLS_A_PART = 5
        in_memory = embed(checkpoint, some)
        genes = embed(checkpoint, some, level="gene")
        states = embed_states(checkpoint, some, "cell_type", statistic="median")
        for suffix in (".h5ad", ".zarr"):
            streamed = embed(checkpoint, some, out=folder / name / f"x{suffix}")
            np.testing.assert_array_equal(streamed.X[:], in_memory.X)
        rank = processes.rank()
        np.savez(folder / name / f"rank{rank}.npz", cells=in_memory.X, genes=genes.X, states=states)

    for name, n in {"one": 1, "two": 2}.items():
        (folder / name).mkdir()
        several(lambda _, name=name: run(name), folder, n=n)
    return folder


class TestTwoProcesses:
    @pytest.mark.parametrize("rank", [0, 1])
    @pytest.mark.parametrize("what", ["cells", "states"])
    def test_each_has_what_one_has(self, launched, rank, what):
        found, expected = np.load(launched / "two" / f"rank{rank}.npz"), np.load(launched / "one" / "rank0.npz")
        np.testing.assert_array_equal(found[what], expected[what])

    @pytest.mark.parametrize("rank", [0, 1])
    def test_genes_differ_in_the_last_bit_at_most(self, launched, rank):
        found, expected = np.load(launched / "two" / f"rank{rank}.npz"), np.load(launched / "one" / "rank0.npz")
        np.testing.assert_allclose(found["genes"], expected["genes"], rtol=1e-6)

    @pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
    def test_the_file_is_the_same(self, launched, suffix):
        read = {".h5ad": ad.read_h5ad, ".zarr": ad.read_zarr}[suffix]
        found, expected = (read(launched / name / f"x{suffix}") for name in ("two", "one"))
        np.testing.assert_array_equal(found.X, expected.X)
        pd.testing.assert_frame_equal(found.obs, expected.obs)
        assert len(list((launched / "two").iterdir())) == 4


class TestCellsWithoutGenes:
    """Published datasets have them, also in the middle: no token at all, or special tokens only."""

    @pytest.fixture
    def gappy(self, checkpoint, few, tmp_path):
        some = [few[i].tolist() for i in range(4)]
        special = checkpoint.vocabulary.special_tokens
        ids = [[special["<cls>"], special["<eos>"]], some[0], some[1], [], some[2], some[3]]
        table = pd.DataFrame({"input_ids": ids, "state": list("aababb")})
        table.to_parquet(tmp_path / "gappy.parquet")
        return gf.TokenizedDataset.open(tmp_path / "gappy.parquet", checkpoint.vocabulary)

    @pytest.mark.parametrize("pooling", ["mean", "cls"])
    def test_they_have_no_vector_and_change_no_other(self, checkpoint, few, gappy, pooling, tmp_path):
        expected = embed(checkpoint, few.select(range(4)), pooling=pooling).X
        for found in (
            embed(checkpoint, gappy, pooling=pooling),
            embed(checkpoint, gappy, pooling=pooling, out=tmp_path / "x.h5ad"),
        ):
            assert np.isnan(found.X[[0, 3]]).all()
            np.testing.assert_allclose(found.X[:][[1, 2, 4, 5]], expected, rtol=1e-6)

    def test_genes_and_states_do_without_them(self, checkpoint, few, gappy):
        genes = embed(checkpoint, few.select(range(4)), level="gene")
        np.testing.assert_allclose(embed(checkpoint, gappy, level="gene").X, genes.X, rtol=1e-6)
        states = embed_states(checkpoint, gappy, "state")
        vectors = embed(checkpoint, few.select(range(4))).X
        np.testing.assert_allclose(states.loc["a"], vectors[0], rtol=1e-6)
        np.testing.assert_allclose(states.loc["b"], vectors[1:].mean(0), rtol=1e-5)


class TestRefusals:
    @pytest.mark.parametrize("name", ["x.csv", "x", "x.h5ad.gz"])
    def test_another_suffix(self, checkpoint, few, name, tmp_path):
        checkpoint.model.bert.register_forward_hook(refuse_to_run)
        with pytest.raises(gf.InputError, match=rf"{name}: vectors are written as .h5ad or .zarr"):
            embed(checkpoint, few, out=tmp_path / name)

    def test_cells_of_another_vocabulary(self, checkpoint, pbmc, vocabulary):
        known = pbmc[:5, pbmc.var_names != vocabulary.gene_ids[0]]
        other = gf.tokenize(known, Vocabulary.fit(known))
        with pytest.raises(gf.VocabularyMismatchError, match=r"the dataset and checkpoint tiny .*first differing gene"):
            embed(checkpoint, other)

    def test_cells_without_cls_pooled_by_it(self, checkpoint, pbmc):
        cells = gf.tokenize(pbmc[:5], Vocabulary.fit(pbmc, series="V1"))
        with pytest.raises(gf.InputError, match=r"V1 convention.* Use pooling='mean'"):
            embed(checkpoint, cells, pooling="cls")

    def test_an_unknown_level(self, checkpoint, few):
        with pytest.raises(gf.InputError, match="level must be one of 'cell', 'gene', found 'tissue'"):
            embed(checkpoint, few, level="tissue")

    def test_an_unknown_pooling(self, checkpoint, few):
        with pytest.raises(gf.InputError, match="pooling must be one of 'mean', 'cls', found 'max'"):
            embed(checkpoint, few, pooling="max")

    def test_no_cells(self, checkpoint, few):
        with pytest.raises(gf.InputError, match=r"(?i)no cell"):
            embed(checkpoint, few.select([]))
