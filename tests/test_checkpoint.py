import copy
import dataclasses
import json
import logging
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from padding import padded
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    RobertaConfig,
    RobertaForMaskedLM,
)
from transformers.utils import logging as transformers_logging

import geneformer_repro as gf
from geneformer_repro.batching import end_to_end
from geneformer_repro.checkpoint import described_config, quiet_transformers
from geneformer_repro.checkpoint_files import described_checkpoint
from geneformer_repro.encoder import run_encoder
from geneformer_repro.finetuning.settings.networks import TransferConfig
from geneformer_repro.finetuning.transfer import prepare
from geneformer_repro.heads import CellClassifier, GeneClassifier, Head
from geneformer_repro.model import MaskedGeneModel, bert_config
from geneformer_repro.targets import Classes, Number
from geneformer_repro.tokenizer.vocabulary import Vocabulary

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
LENGTHS = (41, 60, 23)
CELL_TYPE = Classes("cell_type", ("B", "Monocyte", "T"))
AGE = Number("age", mean=40.5, sd=12.0)
DOSAGE = Classes("dosage", ("sensitive", "other"))
CONFIGURED = [("num_attention_heads", 1), ("hidden_act", "gelu"), ("layer_norm_eps", 1e-5)]
HEADS = [
    pytest.param(Head((CELL_TYPE,)), id="mean"),
    pytest.param(Head((CELL_TYPE,), "cls"), id="cls"),
    pytest.param(Head((CELL_TYPE,), "attention"), id="attention"),
    pytest.param(Head((CELL_TYPE,), "pooler"), id="pooler"),
    pytest.param(Head((AGE,)), id="number"),
    pytest.param(Head((CELL_TYPE, AGE), "attention"), id="several"),
    pytest.param(Head((DOSAGE,), level="gene"), id="genes"),
]
SEEN = np.array([0, 7, 2**53 + 1, 2**63 + 1, 2**64 - 1], dtype=np.uint64)


@pytest.fixture(scope="module")
def batch(cells: gf.TokenizedDataset) -> dict[str, Any]:
    """The tops of three cells, end to end."""
    return end_to_end([cells[i][:length] for i, length in enumerate(LENGTHS)], cells.vocabulary).inputs


@pytest.fixture
def inputs(cells: gf.TokenizedDataset) -> dict[str, Tensor]:
    """The same cells as stock BERT takes them."""
    return padded([cells[i][:length] for i, length in enumerate(LENGTHS)], cells.vocabulary)


@pytest.fixture
def headed(checkpoint: gf.Checkpoint) -> Callable[[Head], gf.Checkpoint]:
    """Makes a classifier of the shape of the tiny model."""

    def make(head: Head) -> gf.Checkpoint:
        kind = GeneClassifier if head.level == "gene" else CellClassifier
        model = kind(checkpoint.model.config, head).eval()
        return gf.Checkpoint(model, checkpoint.vocabulary, {"step": "finetune"}, name="clf")

    return make


@pytest.fixture
def classifier(headed: Callable[[Head], gf.Checkpoint]) -> gf.Checkpoint:
    """A cell classifier on the tiny encoder."""
    return headed(Head((CELL_TYPE,)))


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


def stock(model: MaskedGeneModel) -> BertForMaskedLM:
    """Stock transformers' model with the same weights."""
    theirs = BertForMaskedLM(copy.deepcopy(model.config))
    theirs.load_state_dict(model.state_dict())
    return theirs.eval()


def logits_of(model: nn.Module, batch: dict[str, Any]) -> np.ndarray:
    """Outputs of any model; at every token, or of every cell."""
    with torch.no_grad():
        if isinstance(model, CellClassifier):
            return model(**batch).logits.numpy()
        if "attention_mask" in batch:
            return model(**batch).logits[batch["attention_mask"].bool()].numpy()
        return model(batch["input_ids"], lengths=batch["lengths"]).logits.numpy()


def without_gene(vocabulary: Vocabulary, gene: int) -> Vocabulary:
    """The same vocabulary without one gene; all later tokens move down."""
    genes = [name for i, name in enumerate(vocabulary.gene_ids) if i != gene]
    tokens = {name: i for i, name in enumerate([*vocabulary.special_tokens, *genes])}
    return Vocabulary.from_tokens(tokens, max_length=vocabulary.max_length)


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def rewrite_head(folder: Path, **changes: object) -> None:
    head = json.loads((folder / "head.json").read_text()) | changes
    (folder / "head.json").write_text(json.dumps({name: value for name, value in head.items() if value is not None}))


class TestSaving:
    def test_a_checkpoint_knows_its_folder_which_is_no_part_of_it(self, tmp_path, checkpoint):
        checkpoint.save(tmp_path / "a")
        opened = gf.Checkpoint.from_pretrained(tmp_path / "a")
        assert opened.path == str(tmp_path / "a")
        assert opened.in_words == f"{tmp_path / 'a'}, fingerprint {opened.fingerprint}"
        in_memory = gf.Checkpoint(opened.model, opened.vocabulary)
        assert in_memory.path is None
        assert in_memory.in_words == opened.fingerprint
        assert in_memory.fingerprint == opened.fingerprint

    def test_every_file_is_as_readable_as_the_others(self, saved):
        assert len({file.stat().st_mode for file in saved.iterdir()}) == 1

    def test_stock_transformers_opens_it_with_the_same_logits(self, checkpoint, saved, batch, inputs):
        with quiet_transformers():
            theirs = BertForMaskedLM.from_pretrained(saved).eval()
        ours = logits_of(checkpoint.model, batch)
        np.testing.assert_allclose(ours, logits_of(theirs, inputs), **CLOSE)

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

    @pytest.mark.parametrize("head", HEADS)
    def test_a_classifier_comes_back_with_its_head(self, headed, head, tmp_path, batch):
        classifier = headed(head)
        classifier.save(tmp_path / "clf")
        opened = gf.Checkpoint.from_pretrained(tmp_path / "clf")
        assert type(opened.model) is type(classifier.model)
        assert opened.head == head
        assert dict(opened.provenance) == {"step": "finetune"}
        assert opened.fingerprint == classifier.fingerprint
        np.testing.assert_allclose(logits_of(opened.model, batch), logits_of(classifier.model, batch), **CLOSE)

    @pytest.mark.parametrize("head", [None, *HEADS])
    def test_its_files_say_of_it_what_the_network_does(self, checkpoint, headed, head, tmp_path):
        saved = checkpoint if head is None else headed(head)
        saved.save(tmp_path / "clf")
        opened = gf.Checkpoint.from_pretrained(tmp_path / "clf")
        assert described_checkpoint(tmp_path / "clf") == (repr(opened), dict(opened.provenance))

    def test_files_of_others_are_not_described_without_the_network(self, stock_folder):
        assert described_checkpoint(stock_folder) is None

    def test_weights_that_are_cut_off_are_refused_without_the_network(self, saved):
        weights = saved / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        with pytest.raises(
            gf.errors.InputError, match=r"model.safetensors: the weights are damaged \(.* bytes, where its header"
        ):
            described_checkpoint(saved)

    def test_a_gene_classifier_opens_in_stock_transformers_with_the_same_logits(self, headed, tmp_path, batch, inputs):
        classifier = headed(Head((DOSAGE,), level="gene"))
        classifier.save(tmp_path / "clf")
        with quiet_transformers():
            theirs, found = BertForTokenClassification.from_pretrained(tmp_path / "clf", output_loading_info=True)
        assert not any(found.values())
        with torch.no_grad():
            expected = theirs.eval()(**inputs).logits[inputs["attention_mask"].bool()]
        np.testing.assert_allclose(logits_of(classifier.model, batch), expected, **CLOSE)

    def test_how_classes_are_weighed_is_not_saved(self, classifier, tmp_path):
        fingerprint = classifier.fingerprint
        classifier.model.weigh([2.0], [[1.0, 2.0, 3.0]])
        classifier.save(tmp_path / "clf")
        assert gf.Checkpoint.from_pretrained(tmp_path / "clf").fingerprint == classifier.fingerprint == fingerprint

    def test_the_encoder_of_a_classifier_opens_in_stock_transformers(self, classifier, tmp_path, batch, inputs):
        classifier.save(tmp_path / "clf")
        with quiet_transformers():
            theirs = BertModel.from_pretrained(tmp_path / "clf", add_pooling_layer=False).eval()
        with torch.no_grad():
            expected = theirs(**inputs).last_hidden_state[inputs["attention_mask"].bool()]
            ours = run_encoder(classifier.model.bert, batch["input_ids"], LENGTHS)
        np.testing.assert_allclose(ours, expected, **CLOSE)

    @pytest.mark.parametrize(
        ("head", "seen", "extra", "architecture"),
        [
            pytest.param(None, None, set(), "BertForMaskedLM", id="pretrained"),
            pytest.param(None, SEEN, {"seen_cells.parquet"}, "BertForMaskedLM", id="seen"),
            pytest.param(Head((AGE,)), None, {"head.json"}, "BertModel", id="cells"),
            pytest.param(Head((DOSAGE,), level="gene"), None, {"head.json"}, "BertForTokenClassification", id="genes"),
        ],
    )
    def test_the_folder_holds_these_files(self, checkpoint, headed, tmp_path, head, seen, extra, architecture):
        one = headed(head) if head else checkpoint
        dataclasses.replace(one, seen=seen).save(tmp_path / "saved")
        files = {"config.json", "model.safetensors", "vocabulary.json", "vocabulary.tsv", "provenance.json"}
        assert {file.name for file in (tmp_path / "saved").iterdir()} == files | extra
        assert json.loads((tmp_path / "saved" / "config.json").read_text())["architectures"] == [architecture]

    def test_the_head_is_readable(self, headed, tmp_path):
        headed(Head((CELL_TYPE, AGE), "attention")).save(tmp_path / "clf")
        assert json.loads((tmp_path / "clf" / "head.json").read_text()) == {
            "format": "geneformer_repro/head/3",
            "targets": [
                {"kind": "classes", "name": "cell_type", "classes": ["B", "Monocyte", "T"]},
                {"kind": "number", "name": "age", "mean": 40.5, "sd": 12.0},
            ],
            "pooling": "attention",
            "level": "cell",
        }

    def test_the_cells_that_were_seen_come_back(self, checkpoint, tmp_path):
        dataclasses.replace(checkpoint, seen=SEEN).save(tmp_path / "saved")
        np.testing.assert_array_equal(gf.Checkpoint.from_pretrained(tmp_path / "saved").seen, SEEN, strict=True)

    def test_cells_that_are_not_known_stay_so(self, saved):
        assert gf.Checkpoint.from_pretrained(saved).seen is None

    def test_which_cells_were_seen_is_no_part_of_the_fingerprint(self, checkpoint):
        assert dataclasses.replace(checkpoint, seen=SEEN).fingerprint == checkpoint.fingerprint

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

    @pytest.mark.parametrize("weight", ["classifier.bias", "attention_pool.weight"])
    def test_a_missing_part_of_the_head_is_an_error(self, headed, tmp_path, weight):
        headed(Head((CELL_TYPE,), "attention")).save(tmp_path / "clf")
        rewrite(tmp_path / "clf", lambda weights: {n: w for n, w in weights.items() if n != weight})
        with pytest.raises(gf.InputError, match=rf"1 weights are missing from the file \(first: {weight}\)"):
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

    def test_a_folder_may_follow_a_hub_id(self, vocabulary, monkeypatch):
        def asked(source, *, subfolder, revision):
            raise ValueError(f"asked for {source} {subfolder}")

        monkeypatch.setattr(BertConfig, "get_config_dict", asked)
        with pytest.raises(gf.InputError, match=r"^lab/name: .* asked for lab/name a/b$"):
            gf.Checkpoint.from_pretrained("lab/name/a/b", vocabulary=vocabulary)

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
        with pytest.raises(gf.InputError, match=r"saved/config.json: not readable as JSON"):
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

    @pytest.mark.parametrize("pooling", ["mean", "cls"])
    def test_a_head_of_the_first_format_opens(self, headed, tmp_path, batch, pooling):
        classifier = headed(Head((CELL_TYPE,), pooling))
        classifier.save(tmp_path / "clf")
        first = {
            "format": "geneformer_repro/head/1",
            "task": "cell_classification",
            "target": "cell_type",
            "classes": ["B", "Monocyte", "T"],
            "pooling": pooling,
        }
        (tmp_path / "clf" / "head.json").write_text(json.dumps(first))
        opened = gf.Checkpoint.from_pretrained(tmp_path / "clf")
        assert opened.head == classifier.head
        np.testing.assert_allclose(logits_of(opened.model, batch), logits_of(classifier.model, batch), **CLOSE)

    def test_a_head_of_the_second_format_opens(self, headed, tmp_path):
        classifier = headed(Head((CELL_TYPE, AGE), "attention"))
        classifier.save(tmp_path / "clf")
        second = """{
          "format": "geneformer_repro/head/2",
          "targets": [
            {"name": "cell_type", "classes": ["B", "Monocyte", "T"], "mean": 0.0, "sd": 1.0},
            {"name": "age", "classes": [], "mean": 40.5, "sd": 12.0}
          ],
          "pooling": "attention",
          "level": "cell"
        }"""
        (tmp_path / "clf" / "head.json").write_text(second)
        opened = gf.Checkpoint.from_pretrained(tmp_path / "clf")
        assert opened.head == classifier.head
        assert opened.fingerprint == classifier.fingerprint

    def test_a_head_of_a_kind_that_this_version_does_not_have_is_refused_by_its_name(self, classifier, tmp_path):
        classifier.save(tmp_path / "clf")
        rewrite_head(tmp_path / "clf", targets=[{"kind": "hazards", "name": "os", "cuts": [1.0, 2.0]}])
        message = r"target 'os' is of kind 'hazards'\. There are: 'classes', 'number', 'response', 'survival'\. A newer"
        with pytest.raises(gf.InputError, match=message):
            gf.Checkpoint.from_pretrained(tmp_path / "clf")

    def test_a_head_of_another_format_is_refused(self, classifier, tmp_path):
        classifier.save(tmp_path / "clf")
        rewrite_head(tmp_path / "clf", format="somebody/else/2")
        message = "head.json: expected format 'geneformer_repro/head/3', found 'somebody/else/2'"
        with pytest.raises(gf.InputError, match=message):
            gf.Checkpoint.from_pretrained(tmp_path / "clf")

    @pytest.mark.parametrize(
        "change",
        [
            pytest.param({"targets": [{"kind": "classes", "name": "t"}]}, id="no_classes_of_that_kind"),
            pytest.param({"targets": [{"kind": "number", "name": "t", "mean": 1.0}]}, id="no_sd"),
            pytest.param({"targets": [{"kind": "number", "name": "t", "mean": 0, "sd": 0}]}, id="sd_of_0"),
            pytest.param({"targets": [{"kind": "number", "name": "", "mean": 0, "sd": 1}]}, id="a_number_without_name"),
            pytest.param({"targets": [{"kind": "classes", "name": "t", "classes": ["B", "T"], "mean": 1}]}, id="mixed"),
            pytest.param({"targets": [{"kind": ["number"], "name": "t"}]}, id="a_kind_that_is_no_text"),
        ],
    )
    def test_a_damaged_head_of_the_third_format_is_refused(self, classifier, tmp_path, change):
        classifier.save(tmp_path / "clf")
        rewrite_head(tmp_path / "clf", **change)
        with pytest.raises(gf.InputError, match=r"clf/head.json: is damaged \(.+\); copy the checkpoint anew"):
            gf.Checkpoint.from_pretrained(tmp_path / "clf")

    @pytest.mark.parametrize(
        "change",
        [
            pytest.param({"targets": None}, id="no_targets"),
            pytest.param({"targets": ["cell_type"]}, id="a_target_that_is_a_name"),
            pytest.param({"targets": [{"name": "cell_type"}]}, id="no_classes"),
            pytest.param({"colour": "red"}, id="an_unknown_field"),
            pytest.param({"targets": []}, id="an_empty_list_of_targets"),
            pytest.param({"targets": [{"name": "t", "classes": ["B", "B"]}]}, id="a_class_twice"),
            pytest.param({"targets": [{"name": "t", "classes": ["B", ""]}]}, id="a_class_without_a_name"),
            pytest.param({"targets": [{"name": "t", "classes": ["B", 2]}]}, id="a_class_that_is_a_number"),
            pytest.param({"targets": [{"name": "t", "classes": ["B"]}]}, id="one_class"),
            pytest.param({"targets": [{"name": "t", "classes": [], "sd": 0}]}, id="a_number_that_does_not_spread"),
            pytest.param({"targets": [{"name": "t", "classes": [], "mean": "x"}]}, id="a_mean_that_is_text"),
            pytest.param({"level": "tissue"}, id="an_unknown_level"),
            pytest.param({"pooling": "max"}, id="an_unknown_pooling"),
            pytest.param({"level": "gene", "targets": [{"name": "t", "classes": []}]}, id="genes_and_a_number"),
            pytest.param({"format": "geneformer_repro/head/1"}, id="not_of_its_format"),
        ],
    )
    def test_a_damaged_head_is_refused(self, classifier, tmp_path, change):
        classifier.save(tmp_path / "clf")
        rewrite_head(tmp_path / "clf", **{"format": "geneformer_repro/head/2"} | change)
        with pytest.raises(gf.InputError, match=r"clf/head.json: is damaged \(.+\); copy the checkpoint anew"):
            gf.Checkpoint.from_pretrained(tmp_path / "clf")

    @pytest.mark.parametrize(
        "damage",
        [
            pytest.param(lambda file: file.write_bytes(b"digest"), id="no_parquet"),
            pytest.param(lambda file: file.write_bytes(file.read_bytes()[:-40]), id="cut_off"),
            pytest.param(lambda file: pq.write_table(pa.table({"cell": SEEN}), file), id="another_table"),
            pytest.param(lambda file: pq.write_table(pa.table({"digest": SEEN[:0]}), file), id="empty"),
            pytest.param(lambda file: pq.write_table(pa.table({"digest": SEEN[::-1]}), file), id="not_ascending"),
            pytest.param(lambda file: pq.write_table(pa.table({"digest": ["a", "b"]}), file), id="text"),
            pytest.param(lambda file: pq.write_table(pa.table({"digest": SEEN.astype(float)}), file), id="floats"),
        ],
    )
    def test_a_damaged_list_of_seen_cells_is_refused(self, checkpoint, tmp_path, damage):
        dataclasses.replace(checkpoint, seen=SEEN).save(tmp_path / "saved")
        damage(tmp_path / "saved" / "seen_cells.parquet")
        message = r"seen_cells.parquet: is damaged \(.+\); copy the checkpoint anew"
        with pytest.raises(gf.InputError, match=message):
            gf.Checkpoint.from_pretrained(tmp_path / "saved")

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_weights_that_are_not_finite_are_refused(self, saved, value):
        name = "bert.encoder.layer.1.output.dense.bias"
        rewrite(saved, lambda weights: weights | {name: torch.full_like(weights[name], value)})
        with pytest.raises(gf.InputError, match=rf"saved: 1 weights hold values that are not finite \(first: {name}\)"):
            gf.Checkpoint.from_pretrained(saved)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            *(
                pytest.param({name: 10**11}, r"config.json: speaks of [\d,]+ weights, and their files have", id=name)
                for name in ("vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size", "num_labels")
            ),
            pytest.param(
                {"max_position_embeddings": "4096"}, "should be a whole number above 0, found '4096'", id="text"
            ),
            pytest.param(
                {"num_hidden_layers": -1}, "num_hidden_layers should be a whole number above 0", id="negative"
            ),
            pytest.param({"hidden_act": "nonsense"}, "cannot be opened as a BERT model", id="activation"),
            pytest.param({"id2label": [1, 2]}, "cannot be opened as a BERT model", id="labels"),
            pytest.param({"layer_norm_eps": "x"}, "cannot be opened as a BERT model", id="a number that is text"),
        ],
    )
    def test_a_configuration_that_claims_what_is_not_there_is_refused(self, saved, change, message):
        config = json.loads((saved / "config.json").read_text())
        (saved / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(gf.InputError, match=f"saved.*{message}"):
            gf.Checkpoint.from_pretrained(saved)

    def test_a_vocabulary_that_was_edited_is_refused(self, saved):
        table = (saved / "vocabulary.tsv").read_text()
        (saved / "vocabulary.tsv").write_text(table.replace("ENSG", "ENSX", 1))
        with pytest.raises(gf.InputError, match=r"vocabulary.tsv or other_ids.tsv has changed since it was written"):
            gf.Checkpoint.from_pretrained(saved)


class TestClassifiersOfOthers:
    """Stock classifiers, as the published package makes them, and ours in stock transformers."""

    @pytest.fixture
    def theirs(self, checkpoint, tmp_path):
        """Makes a stock classifier with the tiny encoder, and saves it; returns it."""

        def make(kind, **options):
            config = copy.deepcopy(checkpoint.model.config)
            for name, value in options.items():
                setattr(config, name, value)
            torch.manual_seed(1)
            model = kind(config).eval()
            model.bert.load_state_dict(checkpoint.model.bert.state_dict(), strict=False)
            with quiet_transformers():
                model.save_pretrained(tmp_path / "run" / "ksplit1")
            return model

        return make

    @pytest.fixture
    def opened(self, checkpoint, tmp_path):
        return lambda: gf.Checkpoint.from_pretrained(tmp_path / "run" / "ksplit1", vocabulary=checkpoint.vocabulary)

    @pytest.mark.parametrize("labels", [{0: "dcm", 1: "hcm", 2: "nf"}, {0: "LABEL_0", 1: "LABEL_1"}])
    def test_a_cell_classifier_opens_with_its_head_and_logits(self, theirs, opened, inputs, batch, labels):
        stock = theirs(BertForSequenceClassification, id2label=labels)
        ours = opened()
        assert ours.head == Head((Classes("label", tuple(labels.values())),), "pooler")
        with torch.no_grad():
            np.testing.assert_allclose(logits_of(ours.model, batch), stock(**inputs).logits, rtol=0, atol=1e-5)

    def test_a_gene_classifier_opens_with_its_head_and_logits(self, theirs, opened, inputs, batch):
        stock = theirs(BertForTokenClassification, id2label={0: "no", 1: "yes"})
        ours = opened()
        assert ours.head == Head((Classes("gene class", ("no", "yes")),), level="gene")
        with torch.no_grad():
            expected = stock(**inputs).logits[inputs["attention_mask"].bool()]
        np.testing.assert_allclose(logits_of(ours.model, batch), expected, rtol=0, atol=1e-5)

    def test_one_output_is_a_number(self, theirs, opened):
        theirs(BertForSequenceClassification, id2label={0: "LABEL_0"})
        assert opened().head == Head((Number("label"),), "pooler")

    @pytest.mark.parametrize(
        "options", [{"problem_type": "multi_label_classification"}, {"problem_type": "regression"}], ids=lambda o: o
    )
    def test_what_is_not_one_class_a_cell_is_refused(self, theirs, opened, options):
        theirs(BertForSequenceClassification, **options)
        with pytest.raises(
            gf.InputError, match=f"a classifier of problem_type '{options['problem_type']}' with 2 outputs"
        ):
            opened()

    @pytest.mark.parametrize("up", [0, 1, 2])
    def test_the_published_pickle_names_the_classes(self, theirs, opened, tmp_path, up):
        theirs(BertForSequenceClassification, id2label={0: "LABEL_0", 1: "LABEL_1"})
        folder = [tmp_path / "run" / "ksplit1", tmp_path / "run", tmp_path][up]
        (folder / "heart_id_class_dict.pkl").write_bytes(pickle.dumps({1: "nf", 0: 7.0}))
        assert opened().head.targets[0].classes == ("7", "nf")

    def test_pickles_that_do_not_fit_are_named(self, theirs, opened, tmp_path, caplog):
        theirs(BertForSequenceClassification, id2label={0: "LABEL_0", 1: "LABEL_1"})
        (tmp_path / "run" / "x_id_class_dict.pkl").write_bytes(pickle.dumps({0: "a", 1: "b", 2: "c"}))
        assert opened().head.targets[0].classes == ("LABEL_0", "LABEL_1")
        assert "x_id_class_dict.pkl" in caplog.text

    def test_one_that_was_saved_here_opens_there_with_the_same_logits(self, theirs, opened, inputs, tmp_path):
        stock = theirs(BertForSequenceClassification, id2label={0: "dcm", 1: "hcm", 2: "nf"})
        opened().save(tmp_path / "saved")
        with quiet_transformers():
            again, found = BertForSequenceClassification.from_pretrained(tmp_path / "saved", output_loading_info=True)
        assert not any(found.values())
        with torch.no_grad():
            np.testing.assert_array_equal(again.eval()(**inputs).logits, stock(**inputs).logits)

    @pytest.mark.parametrize(
        ("head", "names"),
        [
            pytest.param(Head((CELL_TYPE,)), ["B", "Monocyte", "T"], id="classes"),
            pytest.param(Head((AGE,)), ["age"], id="a number"),
            pytest.param(
                Head((CELL_TYPE, AGE)), ["cell_type: B", "cell_type: Monocyte", "cell_type: T", "age"], id="several"
            ),
            pytest.param(Head((DOSAGE,), level="gene"), ["sensitive", "other"], id="genes"),
        ],
    )
    def test_ours_says_its_labels_in_the_configuration(self, headed, tmp_path, head, names):
        headed(head).save(tmp_path / "clf")
        config = BertConfig.from_pretrained(tmp_path / "clf")
        assert config.id2label == dict(enumerate(names))
        assert config.label2id == {name: i for i, name in enumerate(names)}

    def test_a_stock_model_is_described_without_a_vocabulary(self, theirs, tmp_path):
        theirs(BertForSequenceClassification, id2label={0: "dcm", 1: "nf"})
        said = described_config(tmp_path / "run" / "ksplit1")
        assert said.startswith("classifier of 'label' (2 classes) (bert)")
        assert "classes: dcm, nf" in said
        assert "vocab_size 758" in said


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

    @pytest.mark.parametrize(
        ("field", "value"), [("num_attention_heads", 1), ("hidden_act", "gelu"), ("layer_norm_eps", 1e-5)]
    )
    def test_the_fingerprint_follows_what_the_weights_do_not_say(self, checkpoint, field, value):
        """The weights of one head of attention and of four are the same."""
        other = copy.deepcopy(checkpoint)
        setattr(other.model.config, field, value)
        assert other.fingerprint != checkpoint.fingerprint

    @pytest.mark.parametrize(
        "head",
        [Head((CELL_TYPE,), "cls"), Head((Classes(CELL_TYPE.name, CELL_TYPE.classes[::-1]),))],
        ids=["pooling", "names"],
    )
    def test_the_fingerprint_follows_the_head(self, headed, head):
        one, other = headed(Head((CELL_TYPE,))), headed(head)
        other.model.load_state_dict(one.model.state_dict())
        assert other.fingerprint != one.fingerprint

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            pytest.param({"quantize_bits": 4}, {"quantize_bits": 8}, id="bits"),
            pytest.param({"lora_alpha": 8}, {"lora_alpha": 16}, id="scale"),
        ],
    )
    def test_the_fingerprint_follows_adapters_and_quantisation(self, headed, one, other):
        prints = []
        for options in (one, other):
            checkpoint = headed(Head((CELL_TYPE,)))
            model, _ = prepare(checkpoint.model, TransferConfig(strategy="qlora", **options), seed=0)
            prints.append(dataclasses.replace(checkpoint, model=model).fingerprint)
        assert prints[0] != prints[1]

    def test_the_fingerprint_does_not_follow_the_name(self, checkpoint):
        assert dataclasses.replace(checkpoint, name="moved").fingerprint == checkpoint.fingerprint

    def test_a_pretrained_model_says_what_it_is(self, checkpoint):
        n_parameters = f"{checkpoint.model.num_parameters():,}"
        assert repr(checkpoint).startswith(
            f"Checkpoint(masked gene model, 3 layers of 64, {n_parameters} parameters, Voc"
        )

    @pytest.mark.parametrize(
        ("head", "what"),
        [
            pytest.param(Head((CELL_TYPE,)), "classifier of 'cell_type' (3 classes)", id="classes"),
            pytest.param(Head((AGE,)), "classifier of 'age' (a number)", id="number"),
            pytest.param(
                Head((CELL_TYPE, AGE)), "classifier of 'cell_type' (3 classes), 'age' (a number)", id="several"
            ),
            pytest.param(Head((DOSAGE,), level="gene"), "gene classifier of 'dosage' (2 classes)", id="genes"),
        ],
    )
    def test_a_classifier_says_what_it_is(self, headed, head, what):
        assert repr(headed(head)).startswith(f"Checkpoint({what}, 3 layers of 64, ")

    def test_the_head_is_that_of_the_model(self, checkpoint, classifier):
        assert checkpoint.head is None
        assert classifier.head is classifier.model.head

    def test_a_copied_folder_is_the_same_checkpoint(self, checkpoint, saved, tmp_path):
        shutil.copytree(saved, tmp_path / "elsewhere")
        assert gf.Checkpoint.from_pretrained(tmp_path / "elsewhere").fingerprint == checkpoint.fingerprint


def without_gene_fit(pbmc, vocabulary: Vocabulary, gene: int) -> Vocabulary:
    return Vocabulary.fit(pbmc[:, pbmc.var_names != vocabulary.gene_ids[gene]])
