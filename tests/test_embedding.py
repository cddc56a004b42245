import copy
import dataclasses

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from transformers import BertModel

import geneformer_repro as gf
from geneformer_repro.batching import collate
from geneformer_repro.checkpoint import Head
from geneformer_repro.embedding import blocks_to_run, default_device, embed, hidden_states
from geneformer_repro.model import CellClassifier, MaskedGeneModel
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


def refuse_to_run(*_: object) -> None:
    raise AssertionError("a part of the network ran that nobody reads")


class TestHiddenStates:
    @pytest.mark.parametrize(("layer", "state"), [(0, 3), (-1, 2), (-2, 1), (-3, 0)])
    def test_a_layer_is_stock_berts_hidden_state(self, checkpoint, few, layer, state):
        rows = []
        for batch in hidden_states(checkpoint, few, layer=layer, max_tokens=1200, device="cpu"):
            for row, hidden in zip(batch.rows, batch.hidden_BLD, strict=True):
                expected = stock_hidden_states(checkpoint, few[row])[state]
                np.testing.assert_allclose(hidden[: len(few[row])], expected, **CLOSE)
            rows += batch.rows.tolist()
        assert sorted(rows) == list(range(len(few)))

    @pytest.mark.parametrize("layer", [0, -1, -2, -3])
    def test_what_lies_beyond_the_layer_never_runs(self, checkpoint, few, layer):
        checkpoint.model.cls.predictions.transform.dense.register_forward_hook(refuse_to_run)
        for block in checkpoint.model.bert.encoder.layer[3 + layer :]:
            for part in block.modules():
                part.register_forward_hook(refuse_to_run)
        embed(checkpoint, few, layer=layer)

    def test_genes_are_what_is_neither_padding_nor_special(self, checkpoint, few):
        for batch in hidden_states(checkpoint, few, max_tokens=1200, device="cpu"):
            expected = collate([few[row] for row in batch.rows], few.vocabulary)
            np.testing.assert_array_equal(batch.genes_BL, expected["pooled_mask"])
            np.testing.assert_array_equal(batch.input_ids_BL, expected["input_ids"])

    def test_positions_without_a_token_are_zero(self, checkpoint, few):
        for batch in hidden_states(checkpoint, few, max_tokens=10_000):
            padding = batch.input_ids_BL == few.vocabulary.pad_token
            assert padding.any()
            assert not batch.hidden_BLD[padding].any()

    @pytest.mark.parametrize(("layer", "n_blocks"), [(0, 3), (-1, 2), (-3, 0)])
    def test_layers_are_counted_from_the_last_block(self, checkpoint, layer, n_blocks):
        assert blocks_to_run(checkpoint, layer) == n_blocks

    @pytest.mark.parametrize("layer", [1, -4])
    def test_a_layer_that_does_not_exist_is_refused(self, checkpoint, few, layer):
        message = rf"layer must lie between -3 \(the input embedding\) and 0 \(the last block\), found {layer}"
        with pytest.raises(gf.InputError, match=message):
            embed(checkpoint, few, layer=layer)

    def test_the_default_device_can_hold_a_tensor(self):
        assert torch.ones(1, device=default_device()).item() == 1


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
    def test_padding_does_not_change_an_embedding(self, checkpoint, few, pooling):
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
        model = CellClassifier(checkpoint.model.config)
        model.bert.load_state_dict(checkpoint.model.bert.state_dict())
        classifier = gf.Checkpoint(model, checkpoint.vocabulary, Head("cell_type", ("B", "T"), "mean"))
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
        defaults = {"level": "cell", "layer": -1, "pooling": "mean"}
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


class TestRefusals:
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
