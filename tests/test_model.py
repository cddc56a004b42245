import copy
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forking import forked, status_of
from padding import padded
from safetensors.torch import load_file, save_file
from scipy.special import logsumexp, softmax
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForMaskedLM, BertForMaskedLM, BertForTokenClassification, BertModel

import geneformer_repro as gf
from geneformer_repro.attention import Cells
from geneformer_repro.batching import end_to_end as laid_out
from geneformer_repro.encoder import IGNORED, first_tokens, run_encoder, run_gated
from geneformer_repro.heads import CellClassifier, GeneClassifier, Head, pool, require_poolable, weighted_sums
from geneformer_repro.model import MaskedGeneModel, bert_config, flops
from geneformer_repro.network_settings import HeadPooling
from geneformer_repro.pretraining.masking import mask_genes
from geneformer_repro.targets import Classes, Number
from geneformer_repro.tokenizer.vocabulary import Vocabulary

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
LENGTHS = (41, 60, 23)
CELL_TYPE = Classes("cell_type", ("B", "Monocyte", "T"))
AGE = Number("age", mean=40.5, sd=12.0)
PHASE = Classes("phase", ("G1", "S"))
SEVERAL = Head((CELL_TYPE, AGE, PHASE))
DOSAGE = Head((Classes("dosage", ("sensitive", "other")),), level="gene")
POOLINGS = ["mean", "cls", "attention"]
NAN = math.nan
LABELS = torch.tensor([[2, 35.0, 0], [0, NAN, 1], [NAN, 61.5, NAN]])
"""Of three cells for `SEVERAL`; some are not known."""


@pytest.fixture(scope="module")
def batch(cells: gf.TokenizedDataset) -> dict[str, Any]:
    """The tops of three cells, end to end."""
    return laid_out([cells[i][:length] for i, length in enumerate(LENGTHS)], cells.vocabulary).inputs


@pytest.fixture
def inputs(cells: gf.TokenizedDataset) -> dict[str, Tensor]:
    """The same cells as stock BERT takes them."""
    return padded([cells[i][:length] for i, length in enumerate(LENGTHS)], cells.vocabulary)


@pytest.fixture
def masked(inputs: dict[str, Tensor], vocabulary: Vocabulary) -> dict[str, Tensor]:
    """The batch with genes hidden, and their labels."""
    hidden = mask_genes(inputs["input_ids"].numpy(), vocabulary, probability=0.15, rng=np.random.default_rng(0))
    return inputs | {name: torch.from_numpy(array) for name, array in hidden._asdict().items()}


@pytest.fixture
def end_to_end(masked: dict[str, Tensor]) -> dict[str, Any]:
    """The same cells without padding, and how long they are."""
    real = masked["attention_mask"].bool()
    return {name: masked[name][real] for name in ("input_ids", "labels")} | {"lengths": LENGTHS}


@pytest.fixture
def gene_batch(inputs: dict[str, Tensor], end_to_end: dict[str, Any]) -> dict[str, Any]:
    """The same cells for a gene classifier: one gene in five has a class."""
    labels = torch.full_like(end_to_end["input_ids"], IGNORED)
    labels[3::5] = torch.arange(len(labels[3::5])) % 2
    tokens = inputs["input_ids"][inputs["attention_mask"].bool()]
    return {"input_ids": tokens, "labels": labels, "lengths": LENGTHS}


@pytest.fixture
def headed(checkpoint: gf.Checkpoint) -> Callable[[Head], CellClassifier | GeneClassifier]:
    """Makes a classifier of the shape of the tiny model."""
    return lambda head: (GeneClassifier if head.level == "gene" else CellClassifier)(
        checkpoint.model.config, head
    ).eval()


@pytest.fixture
def classifier(headed: Callable[[Head], CellClassifier]) -> CellClassifier:
    """Of one target with three classes."""
    return headed(Head((CELL_TYPE,)))


@pytest.fixture
def several(headed: Callable[[Head], CellClassifier]) -> CellClassifier:
    """Of two targets with classes and a number."""
    return headed(SEVERAL)


@pytest.fixture
def gene_classifier(headed: Callable[[Head], GeneClassifier]) -> GeneClassifier:
    """Of two classes of genes."""
    return headed(DOSAGE)


def stock(model: MaskedGeneModel, attention: str = "eager") -> BertForMaskedLM:
    """Stock transformers' model with the same weights."""
    theirs = AutoModelForMaskedLM.from_config(copy.deepcopy(model.config), attn_implementation=attention)
    theirs.load_state_dict(model.state_dict())
    return theirs.train(model.training)


def logits_of(model: nn.Module, batch: dict[str, Tensor]) -> np.ndarray:
    with torch.no_grad():
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.numpy()


def real(batch: dict[str, Tensor]) -> np.ndarray:
    return batch["attention_mask"].bool().numpy()


class TestForward:
    @pytest.mark.parametrize("attention", ["eager", "sdpa"])
    def test_logits_are_those_of_stock_bert(self, checkpoint, inputs, attention):
        ours, theirs = logits_of(checkpoint.model, inputs), logits_of(stock(checkpoint.model, attention), inputs)
        np.testing.assert_allclose(ours[real(inputs)], theirs[real(inputs)], **CLOSE)

    def test_logits_of_padding_are_zero(self, checkpoint, inputs):
        assert not logits_of(checkpoint.model, inputs)[~real(inputs)].any()

    def test_padding_on_the_left_is_that_of_stock_bert(self, checkpoint, inputs):
        flipped = {name: tensor.flip(1) for name, tensor in inputs.items()}
        ours, theirs = logits_of(checkpoint.model, flipped), logits_of(stock(checkpoint.model), flipped)
        np.testing.assert_allclose(ours[real(flipped)], theirs[real(flipped)], **CLOSE)

    def test_no_attention_mask_means_no_padding(self, checkpoint, cells):
        alone = padded([cells[0][:50]], cells.vocabulary)
        with torch.no_grad():
            without_mask = checkpoint.model(alone["input_ids"]).logits.numpy()
        np.testing.assert_array_equal(without_mask, logits_of(checkpoint.model, alone))

    def test_padding_does_not_change_the_logits_of_a_cell(self, checkpoint, inputs, cells):
        alone = logits_of(checkpoint.model, padded([cells[2][: LENGTHS[2]]], cells.vocabulary))
        together = logits_of(checkpoint.model, inputs)[2, : LENGTHS[2]]
        np.testing.assert_allclose(together, alone[0], **CLOSE)

    def test_loss_is_that_of_stock_bert(self, checkpoint, masked):
        ours, theirs = checkpoint.model(**masked).loss, stock(checkpoint.model)(**masked).loss
        np.testing.assert_allclose(ours.item(), theirs.item(), **CLOSE)

    def test_gradients_of_the_loss_are_those_of_stock_bert(self, checkpoint, masked):
        ours, theirs = checkpoint.model.train(), stock(checkpoint.model).train()
        ours(**masked).loss.backward()
        theirs(**masked).loss.backward()
        expected = dict(theirs.named_parameters())
        for name, parameter in ours.named_parameters():
            if expected[name].grad is None:
                assert parameter.grad is None, name
                continue
            np.testing.assert_allclose(parameter.grad, expected[name].grad, rtol=1e-4, atol=1e-5, err_msg=name)

    def test_logits_beside_a_loss_are_those_of_the_masked_positions(self, checkpoint, masked):
        every = logits_of(checkpoint.model, masked)[(masked["labels"] != IGNORED).numpy()]
        with torch.no_grad():
            np.testing.assert_allclose(checkpoint.model(**masked).logits, every, **CLOSE)

    def test_loss_without_a_masked_gene_is_zero(self, checkpoint, inputs):
        loss = checkpoint.model(**inputs, labels=torch.full_like(inputs["input_ids"], IGNORED)).loss
        loss.backward()
        assert loss.item() == 0.0
        assert all(p.grad is None or not p.grad.any() for p in checkpoint.model.parameters())

    @pytest.mark.parametrize("n_blocks", range(4))
    def test_it_stops_after_the_blocks_asked_for(self, checkpoint, inputs, n_blocks):
        with torch.no_grad():
            ours = run_encoder(checkpoint.model.bert, inputs["input_ids"][real(inputs)], LENGTHS, n_blocks=n_blocks)
            theirs = stock(checkpoint.model).bert(**inputs, output_hidden_states=True).hidden_states[n_blocks]
        np.testing.assert_allclose(ours, theirs[real(inputs)], **CLOSE)

    @pytest.mark.parametrize(
        "place",
        [
            "embeddings.word_embeddings",
            "embeddings.LayerNorm",
            "encoder.layer.1.attention.self.query",
            "encoder.layer.1.attention.self.key",
            "encoder.layer.1.attention.self.value",
            "encoder.layer.1.attention.output.dense",
            "encoder.layer.1.intermediate.dense",
            "encoder.layer.1.output.dense",
        ],
    )
    def test_an_adapter_in_place_of_a_submodule_takes_part(self, checkpoint, inputs, place):
        ours, theirs = checkpoint.model, stock(checkpoint.model)
        before = logits_of(ours, inputs)
        for model in (ours, theirs):
            model.bert.set_submodule(place, nn.Sequential(model.bert.get_submodule(place), nn.Hardtanh(-0.3, 0.3)))
        after = logits_of(ours, inputs)
        np.testing.assert_allclose(after[real(inputs)], logits_of(theirs, inputs)[real(inputs)], **CLOSE)
        assert np.abs(after - before).max() > 0.01

    @pytest.mark.parametrize("where", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
    def test_dropout_acts_in_training_only(self, checkpoint, inputs, where):
        config = copy.deepcopy(checkpoint.model.config)
        setattr(config, where, 0.5)
        model = MaskedGeneModel(config)
        model.load_state_dict(checkpoint.model.state_dict())
        np.testing.assert_array_equal(logits_of(model.eval(), inputs), logits_of(checkpoint.model, inputs))
        training = model.train()
        assert np.abs(logits_of(training, inputs) - logits_of(training, inputs)).max() > 0.01

    def test_a_cell_longer_than_the_model_is_refused(self, vocabulary, inputs):
        model = MaskedGeneModel(bert_config("tiny", dataclasses.replace(vocabulary, max_length=59)))
        message = "A cell has 60 tokens, the model has 59 positions. Tokenise with max_length=59"
        with pytest.raises(gf.InputError, match=message):
            model(**inputs)

    def test_logits_are_the_published_ones(self, golden):
        for i in range(3):
            with torch.no_grad():
                logits = golden.checkpoint.model(torch.as_tensor(golden.cells[i])[None]).logits[0]
            np.testing.assert_allclose(logits, np.load(golden.folder / f"logits_{i}.npy"), **CLOSE)


def with_dropout(model: MaskedGeneModel, p: float) -> MaskedGeneModel:
    """The same weights, in training, with dropout of both kinds."""
    config = copy.deepcopy(model.config)
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = p
    other = MaskedGeneModel(config)
    other.load_state_dict(model.state_dict())
    return other.train()


def loss_and_gradients(model: nn.Module, batch: Mapping[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """By parameter, zeros where a parameter had no part; ``loss`` too."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        loss = model(**batch).loss
        loss.backward()
    found = {name: p.new_zeros(p.shape) if p.grad is None else p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    return {name: gradient.clone().numpy() for name, gradient in found.items()} | {"loss": loss.detach().numpy()}


def assert_same(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], **tolerance: float) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, **(tolerance or CLOSE), err_msg=name)


class TestTokensEndToEnd:
    """`lengths` in place of an attention mask: how training feeds the model."""

    @pytest.mark.parametrize("training", [True, False])
    def test_loss_and_gradients_are_those_of_the_padded_batch(self, checkpoint, masked, end_to_end, training):
        model = checkpoint.model.train(training)
        assert_same(loss_and_gradients(model, end_to_end), loss_and_gradients(model, masked))

    @pytest.mark.parametrize("training", [True, False])
    def test_loss_and_gradients_are_those_of_stock_bert(self, checkpoint, masked, end_to_end, training):
        model = checkpoint.model.train(training)
        assert_same(loss_and_gradients(model, end_to_end), loss_and_gradients(stock(model), masked))

    def test_they_are_those_of_stock_bert_where_logits_are_computed_in_parts(self, checkpoint, cells, vocabulary):
        """More masked genes than the CPU computes logits of at a time, in cells of very different lengths."""
        lengths = (400, 30, 380, 300)
        whole = [cells[row][:length] for row, length in zip(np.argsort(-cells.lengths), lengths, strict=False)]
        batch = padded(whole, vocabulary)
        hidden = mask_genes(batch["input_ids"].numpy(), vocabulary, probability=0.6, rng=np.random.default_rng(0))
        theirs = {name: torch.from_numpy(array) for name, array in hidden._asdict().items()}
        theirs["attention_mask"] = batch["attention_mask"]
        assert (hidden.labels != IGNORED).sum() > 512
        real = theirs["attention_mask"].bool()
        joined = {name: theirs[name][real] for name in ("input_ids", "labels")} | {"lengths": list(map(len, whole))}
        model = checkpoint.model.train()
        assert_same(loss_and_gradients(model, joined), loss_and_gradients(stock(model), theirs), rtol=1e-4, atol=1e-5)

    def test_logits_are_those_of_the_masked_positions(self, checkpoint, masked, end_to_end):
        every = logits_of(stock(checkpoint.model), masked)[(masked["labels"] != IGNORED).numpy()]
        with torch.no_grad():
            np.testing.assert_allclose(checkpoint.model(**end_to_end).logits, every, **CLOSE)

    def test_training_computes_the_loss_alone(self, checkpoint, end_to_end):
        assert checkpoint.model.train()(**end_to_end).logits is None

    def test_without_labels_there_are_logits_at_every_token(self, checkpoint, masked, end_to_end):
        del end_to_end["labels"]
        with torch.no_grad():
            output = checkpoint.model(**end_to_end)
        assert output.loss is None
        np.testing.assert_allclose(output.logits, logits_of(stock(checkpoint.model), masked)[real(masked)], **CLOSE)

    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize("as_tensor", [True, False])
    def test_the_loss_is_divided_by_the_number_of_items_given(self, checkpoint, end_to_end, training, as_tensor):
        model, n_masked = checkpoint.model.train(training), int((end_to_end["labels"] != IGNORED).sum())
        n_items = torch.tensor(3 * n_masked) if as_tensor else 3 * n_masked
        found = loss_and_gradients(model, end_to_end | {"num_items_in_batch": n_items})
        assert_same(found, {name: value / 3 for name, value in loss_and_gradients(model, end_to_end).items()})

    def test_cells_alone_add_up_to_the_step_they_share(self, checkpoint, end_to_end):
        """What gradient accumulation and several processes rely on."""
        model, n_items = checkpoint.model.train(), int((end_to_end["labels"] != IGNORED).sum())
        parts = [end_to_end[name].split(LENGTHS) for name in ("input_ids", "labels")]
        alone = [
            loss_and_gradients(
                model,
                {"input_ids": ids, "labels": labels, "lengths": [len(ids)], "num_items_in_batch": n_items},
            )
            for ids, labels in zip(*parts, strict=True)
        ]
        together = loss_and_gradients(model, end_to_end)
        assert_same({name: sum(one[name] for one in alone) for name in together}, together)

    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize("p", [0.0, 0.1])
    def test_a_batch_without_a_masked_gene_has_loss_zero(self, checkpoint, end_to_end, training, p):
        model = with_dropout(checkpoint.model, p).train(training)
        nothing = end_to_end | {"labels": torch.full_like(end_to_end["labels"], IGNORED)}
        assert not any(value.any() for value in loss_and_gradients(model, nothing).values())

    @pytest.mark.parametrize("p", [0.0, 0.1])
    def test_a_cell_without_a_masked_gene_changes_nothing_of_the_others(self, checkpoint, end_to_end, p):
        model = with_dropout(checkpoint.model, p)
        labels = end_to_end["labels"].clone()
        labels[LENGTHS[0] : LENGTHS[0] + LENGTHS[1]] = IGNORED
        found = loss_and_gradients(model, end_to_end | {"labels": labels})
        assert all(np.isfinite(value).all() for value in found.values())
        ids = end_to_end["input_ids"].clone()
        ids[LENGTHS[0] : LENGTHS[0] + LENGTHS[1]] = ids[0]
        assert_same(loss_and_gradients(model, end_to_end | {"labels": labels, "input_ids": ids}), found)

    def test_a_cell_longer_than_the_model_is_refused(self, vocabulary, end_to_end):
        model = MaskedGeneModel(bert_config("tiny", dataclasses.replace(vocabulary, max_length=59)))
        with pytest.raises(gf.InputError, match="A cell has 60 tokens, the model has 59 positions"):
            model(**end_to_end)

    def test_dropout_follows_the_seed(self, checkpoint, end_to_end):
        model = with_dropout(checkpoint.model, 0.1)
        once, again, other = (loss_and_gradients(model, end_to_end, seed) for seed in (0, 0, 1))
        for name, value in once.items():
            np.testing.assert_array_equal(again[name], value, err_msg=name)
        assert once["loss"] != other["loss"]

    @pytest.mark.slow
    def test_the_mean_loss_with_dropout_is_that_of_stock_bert(self, checkpoint, masked, end_to_end):
        """Different random numbers, the same distribution."""
        ours = with_dropout(checkpoint.model, 0.2)
        theirs = stock(ours)
        n = 150
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            losses = np.array([(ours(**end_to_end).loss.item(), theirs(**masked).loss.item()) for _ in range(n)])
        error = np.sqrt(losses.var(0, ddof=1).sum() / n)
        assert abs(np.diff(losses.mean(0))[0]) < 4 * error
        assert 0.6 < np.divide(*losses.std(0)) < 1.6
        without = checkpoint.model(**end_to_end).loss.item()
        assert abs(losses.mean() - without) > 2 * error, "dropout of this size should be seen"


class TestTwoMoreWaysThroughTheEncoder:
    """With `alike`, for variants of a cell, and `run_gated`, for derivatives by how present a token is."""

    @pytest.fixture
    def bert(self, checkpoint) -> BertModel:
        return checkpoint.model.bert

    @pytest.fixture
    def tokens(self, inputs) -> Tensor:
        """Of all cells end to end, none masked."""
        return inputs["input_ids"][inputs["attention_mask"].bool()]

    @pytest.fixture
    def presence(self, tokens) -> Tensor:
        """Of each token, from a twentieth to twice."""
        return torch.empty(len(tokens)).uniform_(0.05, 2, generator=torch.Generator().manual_seed(0))

    @pytest.mark.parametrize("n_blocks", [0, 1, 2, None])
    def test_alike_or_fully_present_the_states_are_the_ordinary_ones(self, bert, tokens, n_blocks):
        with torch.no_grad():
            expected = run_encoder(bert, tokens, LENGTHS, n_blocks=n_blocks)
            gated, _ = run_gated(bert, tokens, LENGTHS, torch.ones(len(tokens)), n_blocks=n_blocks)
            alike = run_encoder(bert, tokens, LENGTHS, n_blocks=n_blocks, alike=True)
        np.testing.assert_allclose(alike, expected, **CLOSE)
        np.testing.assert_allclose(gated, expected, **CLOSE)

    @pytest.mark.parametrize("alike", [True, False])
    @pytest.mark.parametrize("n_blocks", [0, 1, 2, None])
    def test_the_first_tokens_alone_are_those_of_all(self, bert, tokens, n_blocks, alike):
        with torch.no_grad():
            every = run_encoder(bert, tokens, LENGTHS, n_blocks=n_blocks, alike=alike)
            read = first_tokens(LENGTHS, tokens.device)
            first = run_encoder(bert, tokens, LENGTHS, n_blocks=n_blocks, alike=alike, read=read)
        np.testing.assert_allclose(first, every[np.cumsum([0, *LENGTHS[:-1]])], **CLOSE)

    def test_copies_of_a_cell_that_are_alike_have_its_states(self, bert, cells):
        """What they share is computed once; a token at another position shares nothing."""
        cell = torch.from_numpy(cells[0][:30]).long()
        left = torch.cat([cell[:9], cell[10:]])
        with torch.no_grad():
            together = run_encoder(bert, torch.cat([cell, left, cell]), [30, 29, 30], alike=True).split([30, 29, 30])
            for found, tokens in zip(together, (cell, left, cell), strict=True):
                np.testing.assert_allclose(found, run_encoder(bert, tokens, [len(tokens)]), **CLOSE)

    @pytest.mark.parametrize("n_blocks", [1, 2, 3])
    def test_presence_is_its_logarithm_added_to_the_scores_of_stock_bert(self, checkpoint, tokens, presence, n_blocks):
        theirs = stock(checkpoint.model).bert
        with torch.no_grad():
            found, _ = run_gated(checkpoint.model.bert, tokens, LENGTHS, presence, n_blocks=n_blocks)
            for ids, of_cell, states in zip(*(one.split(LENGTHS) for one in (tokens, presence, found)), strict=True):
                mask = of_cell.log().expand(1, 1, len(ids), -1)
                every = theirs(ids[None], attention_mask=mask, output_hidden_states=True).hidden_states
                np.testing.assert_allclose(states, every[n_blocks][0], **CLOSE)

    def test_a_token_that_is_hardly_present_is_as_if_it_was_masked(self, checkpoint, cells):
        ids, gone = torch.from_numpy(cells[0][:30]).long(), 7
        presence, mask = torch.ones(30), torch.ones(1, 30)
        presence[gone], mask[0, gone] = 1e-12, 0
        with torch.no_grad():
            found, _ = run_gated(checkpoint.model.bert, ids, [30], presence)
            expected = stock(checkpoint.model).bert(ids[None], attention_mask=mask).last_hidden_state[0]
        np.testing.assert_allclose(found, expected, **CLOSE)

    def test_the_slope_by_presence_is_that_of_finite_differences(self, checkpoint, cells):
        bert, ids = copy.deepcopy(checkpoint.model.bert).double(), torch.from_numpy(cells[0][:8]).long()
        presence = torch.linspace(0.3, 1.5, 8, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda g: run_gated(bert, ids, [3, 5], g)[0][:, ::16], presence)

    def test_the_embeddings_returned_are_the_input_of_the_first_norm(self, bert, tokens, presence):
        states, embedded = run_gated(bert, tokens, LENGTHS, presence, n_blocks=0)
        with torch.no_grad():
            np.testing.assert_allclose(bert.embeddings.LayerNorm(embedded), states, **CLOSE)

    def test_the_slope_by_the_embeddings_is_that_of_stock_bert(self, checkpoint, cells):
        """Stock BERT adds positions and types itself: the slope by the words is that by the sum."""
        ids, theirs = torch.from_numpy(cells[0][:30]).long(), stock(checkpoint.model).bert
        words = theirs.embeddings.word_embeddings(ids[None]).detach().requires_grad_()
        expected = torch.autograd.grad(theirs(inputs_embeds=words).last_hidden_state[0, 4, :9].sum(), words)[0][0]
        states, embedded = run_gated(checkpoint.model.bert, ids, [30], torch.ones(30))
        found = torch.autograd.grad(states[4, :9].sum(), embedded)[0]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)

    def test_a_cell_longer_than_the_model_is_refused(self, vocabulary, tokens):
        bert = MaskedGeneModel(bert_config("tiny", dataclasses.replace(vocabulary, max_length=59))).bert
        with pytest.raises(gf.InputError, match="A cell has 60 tokens, the model has 59 positions"):
            run_encoder(bert, tokens, LENGTHS)
        with pytest.raises(gf.InputError, match="A cell has 60 tokens, the model has 59 positions"):
            run_gated(bert, tokens, LENGTHS, torch.ones(len(tokens)))


class TestTrainingMachinery:
    """What others put around the model: recomputation, compilation, sharding."""

    @pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
    @pytest.mark.parametrize("p", [0.0, 0.1])
    def test_gradient_checkpointing_changes_no_gradient(self, checkpoint, end_to_end, p):
        model = with_dropout(checkpoint.model, p)
        expected = loss_and_gradients(model, end_to_end)
        calls = []
        for block in model.bert.encoder.layer:
            block.attention.self.query.register_forward_hook(lambda *_: calls.append(1))
        model.gradient_checkpointing_enable()
        found = loss_and_gradients(model, end_to_end)
        assert len(calls) == 2 * len(model.bert.encoder.layer), "each block should run again in the backward pass"
        assert_same(found, expected, rtol=1e-6, atol=1e-7)

    @pytest.mark.filterwarnings("ignore")  # the compiler's own deprecations are not ours to mend
    @pytest.mark.slow
    def test_compiled_it_has_the_same_loss_and_gradients(self, checkpoint, end_to_end):
        config = copy.deepcopy(checkpoint.model.config)
        config.num_hidden_layers = 1  # all are compiled alike
        model = MaskedGeneModel(config).train()
        expected = loss_and_gradients(model, end_to_end)
        try:
            compiled = torch.compile(model, backend="eager")
            found = loss_and_gradients(compiled, end_to_end)
        finally:
            torch._dynamo.reset()
        assert_same({name.removeprefix("_orig_mod."): value for name, value in found.items()}, expected)

    @pytest.mark.parametrize("head", [None, SEVERAL, DOSAGE], ids=["pretrained", "cells", "genes"])
    def test_what_launchers_wrap_is_a_block(self, checkpoint, headed, head):
        """They look for modules whose class has one of these names."""
        model = headed(head) if head else checkpoint.model
        found = [module for module in model.modules() if type(module).__name__ in model._no_split_modules]
        assert found == list(model.bert.encoder.layer)

    @pytest.mark.slow
    def test_sharded_by_block_it_has_the_same_loss_and_gradients(self, checkpoint, end_to_end, tmp_path):
        """FSDP gathers a block's weights when the block is called: one that is by-passed would find none."""
        checkpoint.save(tmp_path / "saved")
        tensors = {name: end_to_end[name].contiguous() for name in ("input_ids", "labels")}
        save_file(tensors | {"lengths": torch.tensor(LENGTHS)}, tmp_path / "batch.safetensors")
        log = tmp_path / "log"
        assert status_of(forked(lambda: train_sharded(tmp_path), log)) == 0, log.read_text()[-3000:]
        found = {name: tensor.numpy() for name, tensor in load_file(tmp_path / "sharded.safetensors").items()}
        assert_same(found, loss_and_gradients(checkpoint.model.train(), end_to_end))


def train_sharded(here: Path) -> None:
    """In a process of its own: one backward pass, each block and the root sharded; gradients into a file."""
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    distributed.init_process_group("gloo", init_method=(here / "meeting").as_uri(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        model = gf.Checkpoint.from_pretrained(here / "saved").model.train()
        for block in model.bert.encoder.layer:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        batch = load_file(here / "batch.safetensors")
        loss = model(batch["input_ids"], labels=batch["labels"], lengths=batch["lengths"].tolist()).loss
        loss.backward()
        gradients = {
            name: torch.zeros(p.shape) if p.grad is None else p.grad.full_tensor().contiguous()
            for name, p in model.named_parameters()
        }
        save_file(gradients | {"loss": loss.detach().clone()}, here / "sharded.safetensors")
    finally:
        distributed.destroy_process_group()


class TestFlops:
    @pytest.mark.parametrize("length", [64, 400])
    def test_they_are_those_counted_in_stock_bert(self, checkpoint, cells, length):
        """Only matrix products are counted, there and here: not the softmax, norms or activations."""
        cell = cells[int(cells.lengths.argmax())][:length]
        assert len(cell) == length
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            stock(checkpoint.model)(torch.from_numpy(cell).long()[None])
        config = checkpoint.model.config
        assert flops(config, np.array([length]), n_outputs=config.vocab_size) == counter.get_total_flops()

    def test_those_of_the_encoder_leave_out_the_head(self, checkpoint):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            stock(checkpoint.model).bert(torch.arange(4, 74)[None])
        assert flops(checkpoint.model.config, np.array([70])) == counter.get_total_flops()

    def test_those_of_a_part_of_the_last_block_are_those_of_our_layers(self, checkpoint, end_to_end):
        """Linear layers are counted as they run; the attention's products, which the counter cannot see, by hand."""
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            checkpoint.model(**end_to_end)
        linear = sum(counter.get_flop_counts()["Global"].get(op, 0) for op in (torch.ops.aten.mm, torch.ops.aten.addmm))
        config, labels = checkpoint.model.config, end_to_end["labels"]
        read = float((labels != IGNORED).double().mean())
        n_pairs = sum(length**2 for length in LENGTHS)
        attended = 4 * config.hidden_size * n_pairs * (config.num_hidden_layers - 1 + read)
        found = flops(config, np.array(LENGTHS), read=read, n_outputs=config.vocab_size)
        assert found == pytest.approx(linear + attended)

    def test_cells_add_up(self, checkpoint):
        config = checkpoint.model.config
        together = flops(config, np.array([100, 30]), read=0.15, n_outputs=9)
        assert together == pytest.approx(sum(flops(config, np.array([n]), read=0.15, n_outputs=9) for n in (100, 30)))


class TestHead:
    def test_a_target_has_an_output_for_each_class_or_one_for_a_number(self):
        assert [target.n_outputs for target in SEVERAL.targets] == [3, 1, 2]

    def test_outputs_lie_side_by_side_in_the_order_of_the_targets(self):
        outputs = torch.arange(24).reshape(4, 6)
        assert SEVERAL.n_outputs == 6
        for found, columns in zip(SEVERAL.split(outputs), ([0, 1, 2], [3], [4, 5]), strict=True):
            np.testing.assert_array_equal(found, outputs[:, columns])


class TestCellClassifier:
    def test_logits_are_a_linear_layer_on_the_mean_of_stock_hidden_states(self, classifier, batch, inputs):
        encoder = BertModel(copy.deepcopy(classifier.config), add_pooling_layer=False).eval()
        encoder.load_state_dict(classifier.bert.state_dict())
        with torch.no_grad():
            hidden = encoder(**inputs).last_hidden_state[real(inputs)]
            means = torch.stack([cell[genes].mean(0) for cell, genes in by_cell(hidden, batch["weights"])])
            expected = means @ classifier.classifier.weight.T + classifier.classifier.bias
            np.testing.assert_allclose(classifier(**batch).logits, expected, **CLOSE)

    def test_without_weights_every_token_enters_the_mean(self, classifier, batch):
        with torch.no_grad():
            by_default = classifier(batch["input_ids"], LENGTHS).logits
            asked = classifier(**batch | {"weights": torch.ones_like(batch["weights"])}).logits
        np.testing.assert_array_equal(by_default, asked)

    def test_pooling_by_cls_reads_the_first_token_alone(self, headed, batch):
        model = headed(Head((CELL_TYPE,), "cls"))
        with torch.no_grad():
            first = hidden_states(model, batch)[np.cumsum([0, *LENGTHS[:-1]])]
            expected = F.linear(first, model.classifier.weight, model.classifier.bias)
            np.testing.assert_allclose(model(**batch).logits, expected, **CLOSE)

    @pytest.mark.parametrize("pooling", POOLINGS)
    def test_cells_together_have_the_logits_of_cells_alone(self, headed, batch, cells, pooling):
        model = headed(Head(SEVERAL.targets, pooling))
        alone = [laid_out([cells[i][:length]], cells.vocabulary).inputs for i, length in enumerate(LENGTHS)]
        with torch.no_grad():
            expected = torch.cat([model(**cell).logits for cell in alone])
            np.testing.assert_allclose(model(**batch).logits, expected, **CLOSE)

    def test_there_is_no_loss_without_labels(self, classifier, batch):
        assert classifier(**batch).loss is None

    def test_the_configuration_given_stays_as_it_is(self, checkpoint):
        before = checkpoint.model.config.to_dict()
        assert CellClassifier(checkpoint.model.config, SEVERAL).config.num_labels == 6
        assert checkpoint.model.config.to_dict() == before


def by_cell(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Rows of tensors, a cell at a time."""
    return zip(*(tensor.split(LENGTHS) for tensor in tensors), strict=True)


class TestAttentionPooling:
    """A cell's vector as a learned weighted mean over its genes."""

    @pytest.fixture
    def model(self, headed) -> CellClassifier:
        return headed(Head((CELL_TYPE,), "attention"))

    @pytest.fixture
    def hidden(self, model, batch) -> Tensor:
        return hidden_states(model, batch)

    def test_weights_are_a_softmax_over_the_genes_alone(self, model, batch, hidden):
        scores = hidden.double() @ model.attention_pool.weight[0].detach().double()
        slow = [
            softmax(score[genes].numpy()) @ vectors[genes].numpy()
            for score, genes, vectors in by_cell(scores, batch["weights"], hidden.double())
        ]
        assert all(np.ptp(softmax(score.numpy())) > 0.01 for (score,) in by_cell(scores)), "weights should differ"
        np.testing.assert_allclose(pooled(model, hidden, batch["weights"]), slow, **CLOSE)
        with torch.no_grad():
            expected = model.classifier(torch.tensor(np.array(slow), dtype=torch.float32))
            np.testing.assert_allclose(model(**batch).logits, expected, **CLOSE)

    def test_weights_add_up_to_one(self, model, batch, hidden):
        """So where all vectors move by one, theirs does."""
        moved = pooled(model, hidden + 1, batch["weights"])
        np.testing.assert_allclose(moved, pooled(model, hidden, batch["weights"]) + 1, **CLOSE)

    def test_scores_far_apart_and_far_from_zero_overflow_nothing(self, model, batch, hidden):
        nn.init.constant_(model.attention_pool.weight, 1e3)
        assert np.isfinite(pooled(model, hidden.abs() * 100, batch["weights"])).all()

    def test_without_scores_it_is_the_mean(self, model, batch, hidden):
        nn.init.zeros_(model.attention_pool.weight)
        expected = pool(hidden, batch["weights"], Cells(LENGTHS), "mean")
        np.testing.assert_allclose(pooled(model, hidden, batch["weights"]), expected, **CLOSE)

    def test_vectors_of_special_tokens_change_nothing(self, model, batch, hidden):
        genes = batch["weights"]
        other = torch.where(genes[:, None], hidden, 100 * torch.randn(hidden.shape))
        np.testing.assert_array_equal(pooled(model, other, genes), pooled(model, hidden, genes))

    def test_special_tokens_have_no_gradient(self, model, batch, hidden):
        hidden.requires_grad_()
        model.pooled(hidden, batch["weights"], Cells(LENGTHS)).square().sum().backward()
        assert not hidden.grad[~batch["weights"]].any()
        assert hidden.grad[batch["weights"]].any(dim=1).all()

    def test_a_cell_without_genes_is_zero_and_learns_nothing(self, model, batch):
        nothing = batch | {"weights": torch.zeros_like(batch["weights"])}
        found = loss_and_gradients(model, nothing | {"labels": torch.tensor([0, 1, 2])})
        with torch.no_grad():
            np.testing.assert_array_equal(model(**nothing).logits, model.classifier.bias.expand(3, -1))
        assert all(np.isfinite(value).all() for value in found.values())
        assert not any(value.any() for name, value in found.items() if name.startswith(("bert", "attention_pool")))

    def test_its_weights_are_learned(self, model, batch):
        assert loss_and_gradients(model, batch | {"labels": torch.tensor([0, 1, 2])})["attention_pool.weight"].any()


def hidden_states(model: CellClassifier, batch: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        return run_encoder(model.bert, batch["input_ids"], batch["lengths"])


def pooled(model: CellClassifier, hidden_TD: Tensor, weight_T: Tensor) -> np.ndarray:
    with torch.no_grad():
        return model.pooled(hidden_TD, weight_T, Cells(LENGTHS)).numpy()


def slow_sum_of_losses(
    head: Head, outputs: Tensor, labels: Tensor, targets: Sequence[float], classes: Sequence[Sequence[float] | None]
) -> float:
    """Cell by cell and target by target."""
    total = 0.0
    for row, wanted in zip(outputs.tolist(), labels.tolist(), strict=True):
        for target, label, weight, class_weight in zip(head.targets, wanted, targets, classes, strict=True):
            found, row = row[: target.n_outputs], row[target.n_outputs :]
            if math.isnan(label):
                continue
            if isinstance(target, Classes):
                loss = (logsumexp(found) - found[int(label)]) * (class_weight[int(label)] if class_weight else 1)
            else:
                loss = (found[0] - (label - target.mean) / target.sd) ** 2
            total += weight * loss
    return total


def of_cells(batch: dict[str, Any], rows: list[int]) -> dict[str, Any]:
    """Some cells of a batch."""
    parts = {name: batch[name].split(LENGTHS) for name in ("input_ids", "weights")}
    tensors = {name: torch.cat([tensors[row] for row in rows]) for name, tensors in parts.items()}
    return tensors | {"lengths": [LENGTHS[row] for row in rows]}


class TestLoss:
    def test_of_one_target_it_is_the_mean_cross_entropy_of_the_logits(self, classifier, batch):
        labels = torch.tensor([2, 0, 1])
        with torch.no_grad():
            output = classifier(**batch, labels=labels)
        chances = torch.softmax(output.logits.double(), dim=1).numpy()
        slow = np.mean([-np.log(chances[i, label]) for i, label in enumerate(labels.tolist())])
        np.testing.assert_allclose(output.loss.item(), slow, rtol=1e-5)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.int64], ids=str)
    def test_labels_of_one_target_may_be_a_column_or_a_row(self, classifier, batch, dtype):
        labels = torch.tensor([2, 0, 1], dtype=dtype)
        expected = loss_and_gradients(classifier, batch | {"labels": labels})
        assert_same(loss_and_gradients(classifier, batch | {"labels": labels[:, None]}), expected)

    @pytest.mark.parametrize(
        ("targets", "classes"),
        [
            pytest.param((1.0, 1.0, 1.0), (None, None, None), id="all_the_same"),
            pytest.param((0.5, 3.0, 0.0), (None, None, None), id="targets"),
            pytest.param((1.0, 1.0, 1.0), ((0.2, 1.0, 5.0), None, (2.0, 0.0)), id="classes"),
            pytest.param((0.5, 3.0, 1.5), ((1, 1, 7), None, None), id="both"),
        ],
    )
    def test_it_is_the_weighted_sum_over_targets_by_the_number_of_cells(self, several, batch, targets, classes):
        several.weigh(targets, classes)
        with torch.no_grad():
            output = several(**batch, labels=LABELS)
        slow = slow_sum_of_losses(SEVERAL, output.logits.double(), LABELS.double(), targets, classes) / 3
        np.testing.assert_allclose(output.loss.item(), slow, rtol=1e-5)

    @pytest.mark.parametrize("weights", [None, [0.2, 1.0, 5.0]], ids=["alike", "weighted"])
    def test_a_share_of_a_label_may_be_spread_over_the_classes(self, classifier, batch, weights):
        labels = torch.tensor([2, 0, 1])
        classifier.weigh(classes=[weights], smoothing=0.1)
        with torch.no_grad():
            output = classifier(**batch, labels=labels)
        factors = None if weights is None else torch.tensor(weights)
        expected = torch.nn.CrossEntropyLoss(factors, label_smoothing=0.1, reduction="sum")(output.logits, labels) / 3
        torch.testing.assert_close(output.loss, expected)

    def test_weights_are_all_the_same_until_they_are_set_and_when_they_are_unset(self, several, batch):
        before = several(**batch, labels=LABELS).loss
        several.weigh([1.0, 1.0, 1.0], [[1.0] * 3, None, [1.0] * 2])
        torch.testing.assert_close(several(**batch, labels=LABELS).loss, before)
        several.weigh([9.0, 9.0, 9.0])
        torch.testing.assert_close(several(**batch, labels=LABELS).loss, 9 * before)
        several.weigh()
        torch.testing.assert_close(several(**batch, labels=LABELS).loss, before)

    def test_a_missing_label_has_no_gradient(self, several):
        outputs = torch.randn(3, 6, requires_grad=True)
        several.sum_of_losses(outputs, LABELS).backward()
        known = LABELS.isfinite().repeat_interleave(torch.tensor([3, 1, 2]), dim=1)
        np.testing.assert_array_equal(outputs.grad != 0, known)

    def test_a_cell_without_any_label_changes_nothing_of_the_others(self, several, batch):
        labels = LABELS.clone()
        labels[1] = NAN
        others = of_cells(batch, [0, 2]) | {"labels": labels[[0, 2]]}
        found = loss_and_gradients(several, batch | {"labels": labels, "num_items_in_batch": 6})
        assert_same(found, loss_and_gradients(several, others))

    def test_a_batch_without_any_label_has_loss_zero(self, several, batch):
        nothing = loss_and_gradients(several, batch | {"labels": torch.full_like(LABELS, NAN)})
        assert not any(value.any() for value in nothing.values())

    def test_minus_100_is_a_missing_class_but_a_number_like_any_other(self, several):
        outputs = torch.randn(3, 6)
        of_the_number = (outputs[1, 3] - (-100 - AGE.mean) / AGE.sd) ** 2
        found = several.sum_of_losses(outputs, LABELS.nan_to_num(-100))
        torch.testing.assert_close(found, several.sum_of_losses(outputs, LABELS) + of_the_number)

    def test_that_of_a_number_is_in_standard_deviations(self, headed):
        """So it is the same in years and in months."""
        years, months = (headed(Head((Number("age", mean=40.5 * n, sd=12.0 * n),))) for n in (1, 12))
        outputs, labels = torch.randn(5, 1), torch.tensor([[20.0], [35.0], [40.5], [60.0], [90.0]])
        found = years.sum_of_losses(outputs, labels)
        torch.testing.assert_close(months.sum_of_losses(outputs, 12 * labels), found)
        torch.testing.assert_close(years.sum_of_losses((labels - 40.5) / 12, labels), torch.tensor(0.0))

    @pytest.mark.parametrize("as_tensor", [True, False])
    def test_parts_of_a_batch_add_up_to_it(self, several, batch, as_tensor):
        """What gradient accumulation and several processes rely on."""
        several.weigh([0.5, 3.0, 1.5], [[1.0, 2.0, 7.0], None, None])
        n_items = torch.tensor(LABELS.numel()) if as_tensor else LABELS.numel()
        whole = batch | {"labels": LABELS}
        parts = [
            loss_and_gradients(several, of_cells(batch, rows) | {"labels": LABELS[rows], "num_items_in_batch": n_items})
            for rows in ([0], [1, 2])
        ]
        together = loss_and_gradients(several, whole)
        assert_same({name: parts[0][name] + parts[1][name] for name in together}, together)


def stock_genes(model: GeneClassifier) -> BertForTokenClassification:
    """Stock transformers' model with the same weights."""
    theirs = BertForTokenClassification(copy.deepcopy(model.config))
    theirs.load_state_dict(model.state_dict())
    return theirs.train(model.training)


class TestGeneClassifier:
    @pytest.fixture
    def padded(self, inputs, gene_batch) -> dict[str, Tensor]:
        """The same batch as stock BERT takes it."""
        labels = torch.full_like(inputs["input_ids"], IGNORED)
        labels[inputs["attention_mask"].bool()] = gene_batch["labels"]
        return inputs | {"labels": labels}

    def test_without_labels_there_are_the_logits_of_stock_bert_at_every_token(
        self, gene_classifier, gene_batch, padded
    ):
        del gene_batch["labels"]
        with torch.no_grad():
            output = gene_classifier(**gene_batch)
        assert output.loss is None
        expected = logits_of(stock_genes(gene_classifier), padded)[real(padded)]
        np.testing.assert_allclose(output.logits, expected, **CLOSE)

    def test_with_labels_there_are_those_of_the_tokens_that_have_one(self, gene_classifier, gene_batch, padded):
        with torch.no_grad():
            output = gene_classifier(**gene_batch)
        expected = logits_of(stock_genes(gene_classifier), padded)[(padded["labels"] != IGNORED).numpy()]
        np.testing.assert_allclose(output.logits, expected, **CLOSE)

    @pytest.mark.parametrize("training", [True, False])
    def test_loss_and_gradients_are_those_of_stock_bert(self, gene_classifier, gene_batch, padded, training):
        model = gene_classifier.train(training)
        assert_same(loss_and_gradients(model, gene_batch), loss_and_gradients(stock_genes(model), padded))

    def test_a_class_counts_as_much_as_it_is_weighed(self, gene_classifier, gene_batch):
        gene_classifier.weigh(classes=[[0.25, 3.0]])
        with torch.no_grad():
            output = gene_classifier(**gene_batch)
        labels = gene_batch["labels"][gene_batch["labels"] != IGNORED]
        slow = [
            -math.log(softmax(logits)[label]) * (0.25, 3.0)[label]
            for logits, label in zip(output.logits.double().numpy(), labels.tolist(), strict=True)
        ]
        np.testing.assert_allclose(output.loss.item(), np.mean(slow), rtol=1e-5)

    def test_cells_alone_add_up_to_the_batch_they_share(self, gene_classifier, gene_batch):
        n_items = int((gene_batch["labels"] != IGNORED).sum())
        parts = zip(*(gene_batch[name].split(LENGTHS) for name in ("input_ids", "labels")), strict=True)
        alone = [
            loss_and_gradients(
                gene_classifier,
                {"input_ids": ids, "labels": labels, "lengths": [len(ids)], "num_items_in_batch": n_items},
            )
            for ids, labels in parts
        ]
        together = loss_and_gradients(gene_classifier, gene_batch)
        assert_same({name: sum(one[name] for one in alone) for name in together}, together)

    def test_a_batch_without_a_label_has_loss_zero(self, gene_classifier, gene_batch):
        nothing = gene_batch | {"labels": torch.full_like(gene_batch["labels"], IGNORED)}
        assert not any(value.any() for value in loss_and_gradients(gene_classifier, nothing).values())

    def test_a_cell_longer_than_the_model_is_refused(self, vocabulary, gene_batch):
        model = GeneClassifier(bert_config("tiny", dataclasses.replace(vocabulary, max_length=59)), DOSAGE)
        with pytest.raises(gf.InputError, match="A cell has 60 tokens, the model has 59 positions"):
            model(**gene_batch)


class TestPooling:
    def test_mean_is_over_the_genes(self, batch):
        hidden = torch.randn(len(batch["input_ids"]), 8)
        slow = [[cell[genes, d].mean() for d in range(8)] for cell, genes in by_cell(hidden, batch["weights"])]
        np.testing.assert_allclose(pool(hidden, batch["weights"], Cells(LENGTHS), "mean"), np.array(slow), **CLOSE)

    def test_without_the_kernel_of_embedding_bags_it_is_the_same(self, batch):
        """As on devices that have none; here the one without data."""
        hidden, weights, cells = torch.randn(len(batch["input_ids"]), 8), batch["weights"].float(), Cells(LENGTHS)
        assert weighted_sums(hidden.to("meta"), weights.to("meta"), cells).shape == (3, 8)
        summed = hidden.new_zeros(3, 8).index_add(0, cells.numbers_on(hidden.device), hidden * weights[:, None])
        np.testing.assert_allclose(weighted_sums(hidden, weights, cells), summed, **CLOSE)

    def test_mean_over_no_gene_is_zero(self):
        np.testing.assert_array_equal(pool(torch.ones(4, 2), torch.zeros(4), Cells([4]), "mean"), [[0, 0]])

    def test_cls_is_the_first_position(self, batch):
        hidden = torch.randn(len(batch["input_ids"]), 8)
        first = np.cumsum([0, *LENGTHS[:-1]])
        np.testing.assert_array_equal(pool(hidden, batch["weights"], Cells(LENGTHS), "cls"), hidden[first])

    def test_cls_is_refused_without_a_cls_token(self, pbmc):
        message = r"pooling='cls' needs cells that begin with <cls>.*Use pooling='mean'"
        with pytest.raises(gf.InputError, match=message):
            require_poolable(Vocabulary.fit(pbmc, series="V1"), "cls")

    def test_an_unknown_pooling_is_refused(self, vocabulary):
        with pytest.raises(gf.InputError, match="pooling must be one of 'mean', 'cls', found 'max'"):
            require_poolable(vocabulary, "max")

    def test_attention_is_a_pooling_of_heads_alone(self, vocabulary):
        with pytest.raises(gf.InputError, match="pooling must be one of 'mean', 'cls', found 'attention'"):
            require_poolable(vocabulary, "attention")
        with pytest.raises(gf.InputError, match="one of 'mean', 'cls', 'attention', 'pooler', found 'max'"):
            require_poolable(vocabulary, "max", choices=HeadPooling)

    @pytest.mark.parametrize("pooling", POOLINGS)
    def test_v2_cells_can_be_pooled_any_way(self, vocabulary, pooling):
        require_poolable(vocabulary, pooling, choices=HeadPooling)


def published(series: str) -> Vocabulary:
    """A vocabulary of the published size."""
    special, size = {"V1": (["<pad>", "<mask>"], 25_426), "V2": (["<pad>", "<mask>", "<cls>", "<eos>"], 20_275)}[series]
    names = special + [f"ENSG{i:011d}" for i in range(size - len(special))]
    return Vocabulary.from_tokens({name: token for token, name in enumerate(names)})


class TestSizes:
    @pytest.mark.parametrize(
        ("size", "layers", "hidden", "heads", "feed_forward", "dropout", "positions", "tokens"),
        [
            ("V1-10M", 6, 256, 4, 512, 0.02, 2048, 25_426),
            ("V1-40M", 12, 512, 8, 1024, 0.02, 2048, 25_426),
            ("V2-104M", 12, 768, 12, 3072, 0.1, 4096, 20_275),
            ("V2-316M", 18, 1152, 18, 4608, 0.1, 4096, 20_275),
        ],
    )
    def test_a_size_has_the_published_shape(
        self, size, layers, hidden, heads, feed_forward, dropout, positions, tokens
    ):
        config = bert_config(size, published(size[:2]))
        expected = {
            "num_hidden_layers": layers,
            "hidden_size": hidden,
            "num_attention_heads": heads,
            "intermediate_size": feed_forward,
            "hidden_dropout_prob": dropout,
            "attention_probs_dropout_prob": dropout,
            "max_position_embeddings": positions,
            "vocab_size": tokens,
            "hidden_act": "relu",
            "layer_norm_eps": 1e-12,
            "initializer_range": 0.02,
            "type_vocab_size": 2,
            "pad_token_id": 0,
        }
        assert {name: getattr(config, name) for name in expected} == expected

    @pytest.mark.parametrize("size", ["V1-10M", "V1-40M", "V2-104M", "V2-316M"])
    def test_a_size_has_as_many_million_parameters_as_its_name_says(self, size):
        with torch.device("meta"):
            n_parameters = MaskedGeneModel(bert_config(size, published(size[:2]))).num_parameters()
        assert round(n_parameters / 1e6) == int(size[3:-1])

    def test_v1_10m_has_the_parameters_of_its_layers(self):
        tokens, positions, hidden, feed_forward = 25_426, 2048, 256, 512
        embedding = (tokens + positions + 2) * hidden + 2 * hidden
        block = 4 * (hidden + 1) * hidden + (hidden + 1) * feed_forward + (feed_forward + 1) * hidden + 4 * hidden
        head = (hidden + 1) * hidden + 2 * hidden + tokens
        with torch.device("meta"):
            n_parameters = MaskedGeneModel(bert_config("V1-10M", published("V1"))).num_parameters()
        assert n_parameters == embedding + 6 * block + head

    def test_tiny_has_no_dropout(self, vocabulary):
        config = bert_config("tiny", vocabulary)
        assert config.hidden_dropout_prob == config.attention_probs_dropout_prob == 0.0

    def test_a_padding_token_other_than_zero_reaches_the_configuration(self):
        vocabulary = Vocabulary.from_tokens({"ENSG1": 0, "ENSG2": 1, "<mask>": 2, "<pad>": 3}, max_length=10)
        config = bert_config("tiny", vocabulary)
        assert (config.pad_token_id, config.vocab_size, config.max_position_embeddings) == (3, 4, 10)

    def test_an_unknown_size_is_refused_with_the_sizes_there_are(self, vocabulary):
        message = "no model size 'V3-1B'. There are: 'tiny', 'V1-10M', 'V1-40M', 'V2-104M', 'V2-316M'"
        with pytest.raises(gf.InputError, match=message):
            bert_config("V3-1B", vocabulary)
