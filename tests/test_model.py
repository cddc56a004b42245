import copy
import dataclasses
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForMaskedLM, BertForMaskedLM, BertModel, RobertaConfig, RobertaForMaskedLM
from transformers.utils import logging as transformers_logging

import geneformer_repro as gf
from geneformer_repro.batching import collate
from geneformer_repro.checkpoint import Head, quiet_transformers
from geneformer_repro.model import (
    IGNORED,
    CellClassifier,
    MaskedGeneModel,
    bert_config,
    flops,
    pool,
    require_poolable,
    run_encoder,
)
from geneformer_repro.pretraining.masking import mask_genes
from geneformer_repro.tokenizer.vocabulary import Vocabulary

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
LENGTHS = (41, 60, 23)
CLASSES = ("B", "Monocyte", "T")


@pytest.fixture(scope="module")
def batch(cells: gf.TokenizedDataset) -> dict[str, Tensor]:
    """The tops of three cells, padded to the longest."""
    return collate([cells[i][:length] for i, length in enumerate(LENGTHS)], cells.vocabulary)


@pytest.fixture
def inputs(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """What stock BERT takes of the batch."""
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


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
def classifier(checkpoint: gf.Checkpoint) -> gf.Checkpoint:
    """A cell classifier on the tiny encoder."""
    config = copy.deepcopy(checkpoint.model.config)
    config.num_labels = len(CLASSES)
    model = CellClassifier(config).eval()
    return gf.Checkpoint(model, checkpoint.vocabulary, Head("cell_type", CLASSES, "mean"), {"step": "finetune"}, "clf")


@pytest.fixture
def saved(checkpoint: gf.Checkpoint, tmp_path: Path) -> Path:
    """The tiny model, as this package writes it."""
    checkpoint.save(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture
def stock_folder(checkpoint: gf.Checkpoint, tmp_path: Path) -> Path:
    """The tiny model, as transformers writes it: no vocabulary."""
    with quiet_transformers():
        stock(checkpoint.model).save_pretrained(tmp_path / "stock")
    return tmp_path / "stock"


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


def without_gene(vocabulary: Vocabulary, gene: int) -> Vocabulary:
    """The same vocabulary without one gene; all later tokens move down."""
    genes = [name for i, name in enumerate(vocabulary.gene_ids) if i != gene]
    tokens = {name: i for i, name in enumerate([*vocabulary.special_tokens, *genes])}
    return Vocabulary.from_tokens(tokens, max_length=vocabulary.max_length)


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


class TestForward:
    @pytest.mark.parametrize("attention", ["eager", "sdpa"])
    def test_logits_are_those_of_stock_bert(self, checkpoint, batch, attention):
        ours, theirs = logits_of(checkpoint.model, batch), logits_of(stock(checkpoint.model, attention), batch)
        np.testing.assert_allclose(ours[real(batch)], theirs[real(batch)], **CLOSE)

    def test_logits_of_padding_are_zero(self, checkpoint, batch):
        assert not logits_of(checkpoint.model, batch)[~real(batch)].any()

    def test_padding_on_the_left_is_that_of_stock_bert(self, checkpoint, batch):
        flipped = {name: tensor.flip(1) for name, tensor in batch.items()}
        ours, theirs = logits_of(checkpoint.model, flipped), logits_of(stock(checkpoint.model), flipped)
        np.testing.assert_allclose(ours[real(flipped)], theirs[real(flipped)], **CLOSE)

    def test_no_attention_mask_means_no_padding(self, checkpoint, cells):
        alone = collate([cells[0][:50]], cells.vocabulary)
        with torch.no_grad():
            without_mask = checkpoint.model(alone["input_ids"]).logits.numpy()
        np.testing.assert_array_equal(without_mask, logits_of(checkpoint.model, alone))

    def test_padding_does_not_change_the_logits_of_a_cell(self, checkpoint, batch, cells):
        alone = logits_of(checkpoint.model, collate([cells[2][: LENGTHS[2]]], cells.vocabulary))
        together = logits_of(checkpoint.model, batch)[2, : LENGTHS[2]]
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
    def test_it_stops_after_the_blocks_asked_for(self, checkpoint, inputs, batch, n_blocks):
        with torch.no_grad():
            ours = run_encoder(checkpoint.model.bert, **_named(inputs), n_blocks=n_blocks)
            theirs = stock(checkpoint.model).bert(**inputs, output_hidden_states=True).hidden_states[n_blocks]
        np.testing.assert_allclose(ours.hidden_TD, theirs[ours.real_BL], **CLOSE)
        np.testing.assert_array_equal(ours.padded()[ours.real_BL], ours.hidden_TD)
        assert not ours.padded()[~ours.real_BL].any()

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
    def test_an_adapter_in_place_of_a_submodule_takes_part(self, checkpoint, batch, place):
        ours, theirs = checkpoint.model, stock(checkpoint.model)
        before = logits_of(ours, batch)
        for model in (ours, theirs):
            model.bert.set_submodule(place, nn.Sequential(model.bert.get_submodule(place), nn.Hardtanh(-0.3, 0.3)))
        after = logits_of(ours, batch)
        np.testing.assert_allclose(after[real(batch)], logits_of(theirs, batch)[real(batch)], **CLOSE)
        assert np.abs(after - before).max() > 0.01

    @pytest.mark.parametrize("where", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
    def test_dropout_acts_in_training_only(self, checkpoint, batch, where):
        config = copy.deepcopy(checkpoint.model.config)
        setattr(config, where, 0.5)
        model = MaskedGeneModel(config)
        model.load_state_dict(checkpoint.model.state_dict())
        np.testing.assert_array_equal(logits_of(model.eval(), batch), logits_of(checkpoint.model, batch))
        training = model.train()
        assert np.abs(logits_of(training, batch) - logits_of(training, batch)).max() > 0.01

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


def _named(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"input_ids_BL": inputs["input_ids"], "attention_mask_BL": inputs["attention_mask"]}


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
        batch = collate(whole, vocabulary)
        hidden = mask_genes(batch["input_ids"].numpy(), vocabulary, probability=0.6, rng=np.random.default_rng(0))
        padded = {name: torch.from_numpy(array) for name, array in hidden._asdict().items()}
        padded["attention_mask"] = batch["attention_mask"]
        assert (hidden.labels != IGNORED).sum() > 512
        real = padded["attention_mask"].bool()
        joined = {name: padded[name][real] for name in ("input_ids", "labels")} | {"lengths": list(map(len, whole))}
        model = checkpoint.model.train()
        assert_same(loss_and_gradients(model, joined), loss_and_gradients(stock(model), padded), rtol=1e-4, atol=1e-5)

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
    def test_compiled_it_has_the_same_loss_and_gradients(self, checkpoint, end_to_end):
        model = checkpoint.model.train()
        expected = loss_and_gradients(model, end_to_end)
        try:
            compiled = torch.compile(model, backend="eager")
            found = loss_and_gradients(compiled, end_to_end)
        finally:
            torch._dynamo.reset()
        assert_same({name.removeprefix("_orig_mod."): value for name, value in found.items()}, expected)

    @pytest.mark.parametrize("kind", ["checkpoint", "classifier"])
    def test_what_launchers_wrap_is_a_block(self, request, kind):
        """They look for modules whose class has one of these names."""
        model = request.getfixturevalue(kind).model
        found = [module for module in model.modules() if type(module).__name__ in model._no_split_modules]
        assert found == list(model.bert.encoder.layer)

    def test_sharded_by_block_it_has_the_same_loss_and_gradients(self, checkpoint, saved, end_to_end, tmp_path):
        """FSDP gathers a block's weights when the block is called: one that is by-passed would find none."""
        tensors = {name: end_to_end[name].contiguous() for name in ("input_ids", "labels")}
        save_file(tensors | {"lengths": torch.tensor(LENGTHS)}, tmp_path / "batch.safetensors")
        command = "import sys, test_model; test_model.train_sharded(sys.argv[1])"
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-c", command, str(tmp_path)],
            cwd=Path(__file__).parent,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        found = {name: tensor.numpy() for name, tensor in load_file(tmp_path / "sharded.safetensors").items()}
        assert_same(found, loss_and_gradients(checkpoint.model.train(), end_to_end))


def train_sharded(folder: str) -> None:
    """In a process of its own: one backward pass, each block and the root sharded; gradients into a file."""
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    here = Path(folder)
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


class TestClassifier:
    def test_logits_are_a_linear_layer_on_the_mean_of_stock_hidden_states(self, classifier, batch, inputs):
        model = classifier.model
        encoder = BertModel(copy.deepcopy(model.config), add_pooling_layer=False).eval()
        encoder.load_state_dict(model.bert.state_dict())
        with torch.no_grad():
            hidden = encoder(**inputs).last_hidden_state
            means = torch.stack([h[genes].mean(0) for h, genes in zip(hidden, batch["pooled_mask"], strict=True)])
            expected = means @ model.classifier.weight.T + model.classifier.bias
            np.testing.assert_allclose(model(**batch).logits, expected, **CLOSE)

    def test_without_a_pooled_mask_every_token_enters_the_mean(self, classifier, inputs):
        with torch.no_grad():
            by_default = classifier.model(**inputs).logits
            asked = classifier.model(**inputs, pooled_mask=inputs["attention_mask"].bool()).logits
        np.testing.assert_array_equal(by_default, asked)

    def test_loss_is_the_mean_cross_entropy_of_the_logits(self, classifier, batch):
        labels = torch.tensor([2, 0, 1])
        with torch.no_grad():
            output = classifier.model(**batch, labels=labels)
        chances = torch.softmax(output.logits.double(), dim=1).numpy()
        slow = np.mean([-np.log(chances[i, label]) for i, label in enumerate(labels.tolist())])
        np.testing.assert_allclose(output.loss.item(), slow, rtol=1e-5)

    def test_there_is_no_loss_without_labels(self, classifier, batch):
        assert classifier.model(**batch).loss is None

    def test_pooling_by_cls_reads_the_first_token_alone(self, classifier, batch):
        classifier.model.pooling = "cls"
        with torch.no_grad():
            hidden = run_encoder(classifier.model.bert, batch["input_ids"], batch["attention_mask"]).padded()
            expected = F.linear(hidden[:, 0], classifier.model.classifier.weight, classifier.model.classifier.bias)
            np.testing.assert_allclose(classifier.model(**batch).logits, expected, **CLOSE)


class TestPooling:
    def test_mean_is_over_the_genes(self, batch):
        hidden = torch.randn(*batch["input_ids"].shape, 8)
        slow = [[h[g, d].mean() for d in range(8)] for h, g in zip(hidden, batch["pooled_mask"], strict=True)]
        np.testing.assert_allclose(pool(hidden, batch["pooled_mask"], "mean"), np.array(slow), **CLOSE)

    def test_mean_over_no_gene_is_zero(self):
        np.testing.assert_array_equal(pool(torch.ones(1, 4, 2), torch.zeros(1, 4, dtype=torch.bool), "mean"), [[0, 0]])

    def test_cls_is_the_first_position(self, batch):
        hidden = torch.randn(*batch["input_ids"].shape, 8)
        np.testing.assert_array_equal(pool(hidden, batch["pooled_mask"], "cls"), hidden[:, 0])

    def test_cls_is_refused_without_a_cls_token(self, pbmc):
        message = r"pooling='cls' needs cells that begin with <cls>.*Use pooling='mean'"
        with pytest.raises(gf.InputError, match=message):
            require_poolable(Vocabulary.fit(pbmc, series="V1"), "cls")

    def test_an_unknown_pooling_is_refused(self, vocabulary):
        with pytest.raises(gf.InputError, match="pooling must be one of 'mean', 'cls', found 'max'"):
            require_poolable(vocabulary, "max")

    @pytest.mark.parametrize("pooling", ["mean", "cls"])
    def test_v2_cells_can_be_pooled_either_way(self, vocabulary, pooling):
        require_poolable(vocabulary, pooling)


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


class TestSaving:
    def test_stock_transformers_opens_it_with_the_same_logits(self, checkpoint, saved, batch):
        with quiet_transformers():
            theirs = BertForMaskedLM.from_pretrained(saved).eval()
        ours = logits_of(checkpoint.model, batch)
        np.testing.assert_allclose(ours[real(batch)], logits_of(theirs, batch)[real(batch)], **CLOSE)

    def test_stock_transformers_finds_every_weight(self, checkpoint, saved):
        with quiet_transformers():
            theirs, found = BertForMaskedLM.from_pretrained(saved, output_loading_info=True)
        assert not any(found.values())
        for name, weight in checkpoint.model.state_dict().items():
            np.testing.assert_array_equal(theirs.state_dict()[name], weight, err_msg=name)

    def test_opening_what_was_saved_gives_it_back(self, checkpoint, saved, batch):
        opened = gf.Checkpoint.from_pretrained(saved)
        assert opened.fingerprint == checkpoint.fingerprint
        assert opened.vocabulary == checkpoint.vocabulary
        assert opened.head is None
        np.testing.assert_array_equal(logits_of(opened.model, batch), logits_of(checkpoint.model, batch))

    def test_a_classifier_comes_back_with_its_head(self, classifier, tmp_path, batch):
        classifier.save(tmp_path / "clf")
        opened = gf.Checkpoint.from_pretrained(tmp_path / "clf")
        assert opened.head == classifier.head
        assert dict(opened.provenance) == {"step": "finetune"}
        assert opened.fingerprint == classifier.fingerprint
        with torch.no_grad():
            np.testing.assert_array_equal(opened.model(**batch).logits, classifier.model(**batch).logits)

    def test_a_classifier_comes_back_with_its_pooling(self, classifier, tmp_path, batch):
        classifier.model.pooling = "cls"
        head = dataclasses.replace(classifier.head, pooling="cls")
        dataclasses.replace(classifier, head=head).save(tmp_path / "clf")
        opened = gf.Checkpoint.from_pretrained(tmp_path / "clf")
        with torch.no_grad():
            np.testing.assert_array_equal(opened.model(**batch).logits, classifier.model(**batch).logits)

    def test_the_encoder_of_a_classifier_opens_in_stock_transformers(self, classifier, tmp_path, inputs):
        classifier.save(tmp_path / "clf")
        with quiet_transformers():
            theirs = BertModel.from_pretrained(tmp_path / "clf", add_pooling_layer=False).eval()
        with torch.no_grad():
            hidden = run_encoder(classifier.model.bert, **_named(inputs))
            np.testing.assert_allclose(hidden.hidden_TD, theirs(**inputs).last_hidden_state[hidden.real_BL], **CLOSE)

    @pytest.mark.parametrize(
        ("kind", "extra", "architecture"),
        [
            pytest.param("checkpoint", set(), "BertForMaskedLM", id="pretrained"),
            pytest.param("classifier", {"head.json"}, "BertModel", id="classifier"),
        ],
    )
    def test_the_folder_holds_these_files(self, request, tmp_path, kind, extra, architecture):
        request.getfixturevalue(kind).save(tmp_path / "saved")
        files = {"config.json", "model.safetensors", "vocabulary.json", "vocabulary.tsv", "provenance.json"}
        assert {file.name for file in (tmp_path / "saved").iterdir()} == files | extra
        assert json.loads((tmp_path / "saved" / "config.json").read_text())["architectures"] == [architecture]

    def test_the_head_is_readable(self, classifier, tmp_path):
        classifier.save(tmp_path / "clf")
        assert json.loads((tmp_path / "clf" / "head.json").read_text()) == {
            "format": "geneformer_repro/head/1",
            "task": "cell_classification",
            "target": "cell_type",
            "classes": list(CLASSES),
            "pooling": "mean",
        }

    def test_provenance_comes_back(self, checkpoint, tmp_path):
        dataclasses.replace(checkpoint, provenance={"step": "pretrain", "result": {"loss": 1.5}}).save(tmp_path / "it")
        assert gf.Checkpoint.from_pretrained(tmp_path / "it").provenance["result"] == {"loss": 1.5}

    def test_a_folder_that_exists_is_refused(self, checkpoint, saved):
        with pytest.raises(FileExistsError, match=r"saved already exists. Choose another output.*overwrite=True"):
            checkpoint.save(saved)

    def test_overwriting_replaces_an_earlier_checkpoint(self, classifier, saved):
        classifier.save(saved, overwrite=True)
        assert gf.Checkpoint.from_pretrained(saved).head == classifier.head

    def test_overwriting_spares_a_folder_that_is_no_checkpoint(self, checkpoint, stock_folder):
        with pytest.raises(FileExistsError, match=r"folder without provenance.json.* it is not replaced"):
            checkpoint.save(stock_folder, overwrite=True)
        assert (stock_folder / "model.safetensors").exists()

    def test_saving_and_opening_print_nothing(self, checkpoint, classifier, tmp_path, capfd):
        for kind in (checkpoint, classifier):
            kind.save(tmp_path / kind.name)
            gf.Checkpoint.from_pretrained(tmp_path / kind.name)
        assert capfd.readouterr() == ("", "")

    @pytest.mark.parametrize("shown", [True, False])
    def test_transformers_own_bars_are_as_before_afterwards(self, checkpoint, tmp_path, shown):
        before = transformers_logging.is_progress_bar_enabled()
        try:
            (transformers_logging.enable_progress_bar if shown else transformers_logging.disable_progress_bar)()
            checkpoint.save(tmp_path / "saved")
            assert transformers_logging.is_progress_bar_enabled() == shown
        finally:
            (transformers_logging.enable_progress_bar if before else transformers_logging.disable_progress_bar)()


class TestOpening:
    def test_a_stock_folder_opens_with_a_vocabulary(self, checkpoint, stock_folder, batch):
        opened = gf.Checkpoint.from_pretrained(stock_folder, vocabulary=checkpoint.vocabulary)
        assert opened.fingerprint == checkpoint.fingerprint
        np.testing.assert_array_equal(logits_of(opened.model, batch), logits_of(checkpoint.model, batch))

    def test_a_stock_folder_without_a_vocabulary_is_refused(self, stock_folder):
        with pytest.raises(gf.InputError, match=r"stock: has no vocabulary of its own; give one: .*vocabulary="):
            gf.Checkpoint.from_pretrained(stock_folder)

    def test_a_stock_folder_with_a_pytorch_file_opens(self, checkpoint, stock_folder):
        weights = load_file(stock_folder / "model.safetensors")
        (stock_folder / "model.safetensors").unlink()
        torch.save(weights, stock_folder / "pytorch_model.bin")
        opened = gf.Checkpoint.from_pretrained(stock_folder, vocabulary=checkpoint.vocabulary)
        assert opened.fingerprint == checkpoint.fingerprint

    def test_a_model_stored_in_half_precision_opens_in_single(self, checkpoint, tmp_path):
        with quiet_transformers():
            stock(checkpoint.model).half().save_pretrained(tmp_path / "half")
        opened = gf.Checkpoint.from_pretrained(tmp_path / "half", vocabulary=checkpoint.vocabulary).model
        for name, weight in checkpoint.model.state_dict().items():
            np.testing.assert_array_equal(opened.state_dict()[name], weight.half().float(), err_msg=name, strict=True)

    def test_a_subfolder_opens(self, saved, checkpoint):
        opened = gf.Checkpoint.from_pretrained(saved.parent, subfolder=saved.name)
        assert opened.fingerprint == checkpoint.fingerprint

    def test_an_opened_model_is_in_evaluation_mode(self, saved):
        assert not gf.Checkpoint.from_pretrained(saved).model.training

    def test_the_vocabulary_of_the_folder_may_be_given_again(self, saved, vocabulary):
        assert gf.Checkpoint.from_pretrained(saved, vocabulary=vocabulary).vocabulary == vocabulary

    def test_another_vocabulary_is_refused_naming_the_first_differing_gene(self, saved, vocabulary):
        gene = vocabulary.gene_ids[5]
        message = f"saved and the vocabulary given have different vocabularies .*first differing gene {gene} is token 9"
        with pytest.raises(gf.VocabularyMismatchError, match=message):
            gf.Checkpoint.from_pretrained(saved, vocabulary=without_gene(vocabulary, 5))

    def test_a_vocabulary_larger_than_the_model_is_refused(self, checkpoint, tmp_path):
        small = without_gene(checkpoint.vocabulary, 5)
        with quiet_transformers():
            BertForMaskedLM(bert_config("tiny", small)).save_pretrained(tmp_path / "small")
        with pytest.raises(gf.VocabularyMismatchError, match="the model has 757 tokens, the vocabulary 758"):
            gf.Checkpoint.from_pretrained(tmp_path / "small", vocabulary=checkpoint.vocabulary)

    def test_a_vocabulary_smaller_than_the_model_is_refused(self, checkpoint, stock_folder):
        with pytest.raises(gf.VocabularyMismatchError, match="the model has 758 tokens, the vocabulary 757"):
            gf.Checkpoint.from_pretrained(stock_folder, vocabulary=without_gene(checkpoint.vocabulary, 5))

    def test_the_loaded_weights_are_those_of_the_file(self, golden):
        loaded = golden.checkpoint.model.state_dict()
        stored = load_file(golden.folder / "model" / "model.safetensors")
        for name, weight in stored.items():
            np.testing.assert_array_equal(loaded[name], weight, err_msg=name)
        assert set(loaded) - set(stored) <= {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}

    def test_the_decoder_shares_its_weights_with_the_embedding(self, saved):
        model = gf.Checkpoint.from_pretrained(saved).model
        assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight

    @pytest.mark.parametrize(
        "weight", ["bert.encoder.layer.1.attention.self.query.weight", "bert.embeddings.position_embeddings.weight"]
    )
    def test_a_weight_missing_from_the_file_is_an_error(self, saved, weight):
        rewrite(saved, lambda weights: {name: values for name, values in weights.items() if name != weight})
        with pytest.raises(gf.InputError, match=rf"saved: 1 weights are missing from the file \(first: {weight}\)"):
            gf.Checkpoint.from_pretrained(saved)

    def test_a_missing_classifier_is_an_error(self, classifier, tmp_path):
        classifier.save(tmp_path / "clf")
        rewrite(tmp_path / "clf", lambda weights: {n: w for n, w in weights.items() if n != "classifier.bias"})
        with pytest.raises(gf.InputError, match=r"1 weights are missing from the file \(first: classifier.bias\)"):
            gf.Checkpoint.from_pretrained(tmp_path / "clf")

    def test_an_encoder_without_a_head_opens_with_a_warning(self, checkpoint, tmp_path, caplog, batch):
        with quiet_transformers():
            checkpoint.model.bert.save_pretrained(tmp_path / "encoder")
        with caplog.at_level(logging.WARNING, logger="geneformer_repro"):
            opened = gf.Checkpoint.from_pretrained(tmp_path / "encoder", vocabulary=checkpoint.vocabulary)
        assert "has no masked-gene head; it is random and must be trained" in caplog.text
        for name, weight in checkpoint.model.bert.state_dict().items():
            np.testing.assert_array_equal(opened.model.bert.state_dict()[name], weight, err_msg=name)

    def test_an_encoder_without_a_head_opens_the_same_twice(self, checkpoint, tmp_path):
        with quiet_transformers():
            checkpoint.model.bert.save_pretrained(tmp_path / "encoder")
        once, again = (
            gf.Checkpoint.from_pretrained(tmp_path / "encoder", vocabulary=checkpoint.vocabulary) for _ in range(2)
        )
        assert once.fingerprint == again.fingerprint

    def test_a_folder_without_a_model_is_refused(self, tmp_path):
        message = (
            "no config.json there, so not a model. Expected a checkpoint folder of this package or of transformers"
        )
        with pytest.raises(gf.InputError, match=message):
            gf.Checkpoint.from_pretrained(tmp_path)

    def test_a_subfolder_that_is_not_there_is_named(self, saved):
        with pytest.raises(gf.InputError, match=r"Geneformer-V9: no config.json there"):
            gf.Checkpoint.from_pretrained(saved.parent, subfolder="Geneformer-V9")

    @pytest.mark.parametrize("with_vocabulary", [True, False])
    def test_a_path_that_is_not_there_is_said_not_to_be_there(self, tmp_path, vocabulary, with_vocabulary):
        with pytest.raises(gf.InputError, match=r"typo.*(no such|not found|does not exist|no folder)"):
            gf.Checkpoint.from_pretrained(tmp_path / "typo", vocabulary=vocabulary if with_vocabulary else None)

    def test_a_model_that_is_not_bert_is_refused(self, vocabulary, tmp_path):
        config = RobertaConfig(
            vocab_size=vocabulary.size,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
        )
        with quiet_transformers():
            RobertaForMaskedLM(config).save_pretrained(tmp_path / "roberta")
        with pytest.raises(gf.InputError, match="a 'roberta' model; this package reads BERT models"):
            gf.Checkpoint.from_pretrained(tmp_path / "roberta", vocabulary=vocabulary)

    def test_a_folder_without_weights_is_refused(self, saved):
        (saved / "model.safetensors").unlink()
        with pytest.raises(gf.InputError, match=r"saved: cannot be opened as a BERT model: .*model.safetensors"):
            gf.Checkpoint.from_pretrained(saved)

    def test_a_configuration_that_is_not_json_is_refused(self, saved):
        (saved / "config.json").write_text("{")
        with pytest.raises(gf.InputError, match=r"saved: cannot be opened as a BERT model: .*not a valid JSON"):
            gf.Checkpoint.from_pretrained(saved)

    def test_a_weights_file_that_was_cut_off_is_refused(self, saved):
        content = (saved / "model.safetensors").read_bytes()
        (saved / "model.safetensors").write_bytes(content[: len(content) // 2])
        with pytest.raises(gf.InputError, match="saved: cannot be opened as a BERT model"):
            gf.Checkpoint.from_pretrained(saved)

    def test_weights_of_another_shape_are_refused(self, saved):
        config = json.loads((saved / "config.json").read_text())
        (saved / "config.json").write_text(json.dumps(config | {"intermediate_size": 99}))
        with pytest.raises(gf.InputError, match="saved: cannot be opened as a BERT model"):
            gf.Checkpoint.from_pretrained(saved)

    def test_a_head_of_another_format_is_refused(self, classifier, tmp_path):
        classifier.save(tmp_path / "clf")
        head = json.loads((tmp_path / "clf" / "head.json").read_text())
        (tmp_path / "clf" / "head.json").write_text(json.dumps(head | {"format": "somebody/else/2"}))
        message = "head.json: expected format 'geneformer_repro/head/1', found 'somebody/else/2'"
        with pytest.raises(gf.InputError, match=message):
            gf.Checkpoint.from_pretrained(tmp_path / "clf")

    def test_a_vocabulary_that_was_edited_is_refused(self, saved):
        table = (saved / "vocabulary.tsv").read_text()
        (saved / "vocabulary.tsv").write_text(table.replace("ENSG", "ENSX", 1))
        with pytest.raises(gf.InputError, match=r"vocabulary.tsv has changed since it was written"):
            gf.Checkpoint.from_pretrained(saved)


class TestCheckpoint:
    def test_cells_of_its_vocabulary_match(self, checkpoint, cells):
        checkpoint.require_matching(cells)

    def test_cells_of_another_vocabulary_are_refused(self, checkpoint, pbmc, vocabulary):
        other = gf.tokenize(pbmc[:5, pbmc.var_names != vocabulary.gene_ids[3]], without_gene_fit(pbmc, vocabulary, 3))
        message = (
            rf"the dataset and checkpoint tiny have different vocabularies .*first differing gene "
            rf"{vocabulary.gene_ids[4]} is token 7 in the one and token 8 in the other.* Tokenise the counts again"
        )
        with pytest.raises(gf.VocabularyMismatchError, match=message):
            checkpoint.require_matching(other)

    def test_cells_longer_than_the_model_are_refused(self, vocabulary, cells):
        short = MaskedGeneModel(bert_config("tiny", dataclasses.replace(vocabulary, max_length=100)))
        message = f"A cell has {cells.lengths.max()} tokens, short has 100 positions. Tokenise .* max_length=100"
        with pytest.raises(gf.InputError, match=message):
            gf.Checkpoint(short, vocabulary, name="short").require_matching(cells)

    def test_the_fingerprint_follows_the_weights(self, checkpoint):
        before = checkpoint.fingerprint
        with torch.no_grad():
            checkpoint.model.bert.encoder.layer[2].output.dense.bias[7] += 1e-3
        assert checkpoint.fingerprint != before

    def test_the_fingerprint_follows_the_vocabulary(self, checkpoint):
        other = dataclasses.replace(checkpoint.vocabulary, medians=None)
        assert dataclasses.replace(checkpoint, vocabulary=other).fingerprint != checkpoint.fingerprint

    def test_the_fingerprint_does_not_follow_the_name(self, checkpoint):
        assert dataclasses.replace(checkpoint, name="moved").fingerprint == checkpoint.fingerprint

    def test_a_pretrained_model_says_what_it_is(self, checkpoint):
        n_parameters = f"{checkpoint.model.num_parameters():,}"
        assert repr(checkpoint).startswith(
            f"Checkpoint(masked gene model, 3 layers of 64, {n_parameters} parameters, Voc"
        )

    def test_a_classifier_says_what_it_is(self, classifier):
        assert repr(classifier).startswith("Checkpoint(classifier of 'cell_type' (3 classes), 3 layers of 64, ")

    def test_a_copied_folder_is_the_same_checkpoint(self, checkpoint, saved, tmp_path):
        shutil.copytree(saved, tmp_path / "elsewhere")
        assert gf.Checkpoint.from_pretrained(tmp_path / "elsewhere").fingerprint == checkpoint.fingerprint


def without_gene_fit(pbmc, vocabulary: Vocabulary, gene: int) -> Vocabulary:
    return Vocabulary.fit(pbmc[:, pbmc.var_names != vocabulary.gene_ids[gene]])
