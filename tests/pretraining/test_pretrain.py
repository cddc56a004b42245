import dataclasses
import json
import logging
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor
from transformers import BertForMaskedLM

import geneformer_repro as gf
from geneformer_repro.config import ConfigError
from geneformer_repro.model import IGNORED, CellClassifier, Head, quiet_transformers
from geneformer_repro.pretraining import pretrain as module
from geneformer_repro.pretraining.masking import Masked, mask_genes
from geneformer_repro.pretraining.pretrain import HeldOut, gene_frequency
from geneformer_repro.tokenizer.vocabulary import Vocabulary

FILES = {
    "config.json",
    "model.safetensors",
    "vocabulary.json",
    "vocabulary.tsv",
    "provenance.json",
    "log.jsonl",
    "history.tsv",
    "loss.png",
}
N_HELD_OUT, N_TRAINING, STEPS_AN_EPOCH = 6, 54, 7


class CutOffError(Exception):
    """Stands for whatever ends a run: a signal, the power, the queue."""


class Masking:
    """The real masking, which remembers what it was given and made, of held-out and of training cells."""

    def __init__(self) -> None:
        self.held_out: list[Masked] = []
        self.training: list[Masked] = []

    def __call__(self, input_ids: Tensor, vocabulary: Vocabulary, **options: Any) -> Masked:
        masked = mask_genes(input_ids, vocabulary, **options)
        of_training = options["generator"] is torch.default_generator
        (self.training if of_training else self.held_out).append(masked)
        return masked


class Finished(NamedTuple):
    """A run and what it left."""

    folder: Path
    checkpoint: gf.Checkpoint
    masking: Masking
    history: pd.DataFrame
    log: list[dict[str, Any]]


def config(**changes: Any) -> gf.PretrainConfig:
    recipe = {"size": "tiny", "epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "warmup_steps": 0.1, "held_out": 0.1}
    return gf.PretrainConfig(**recipe | changes)


def start(out: Path, cells: gf.TokenizedDataset, how: gf.PretrainConfig | None = None, **options: Any) -> Finished:
    with pytest.MonkeyPatch.context() as patch:
        masking = Masking()
        patch.setattr(module, "mask_genes", masking)
        checkpoint = gf.pretrain(cells, how or config(), out=out, **options)
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return Finished(out, checkpoint, masking, pd.read_csv(out / "history.tsv", sep="\t"), log)


def cut_off(
    out: Path, cells: gf.TokenizedDataset, how: gf.PretrainConfig | None = None, *, epoch: int, **options: Any
) -> None:
    """Pretrain, and be cut off when the epoch is to be scored (0: before the first)."""
    scored = iter(range(epoch))
    loss = HeldOut.loss

    def score_or_stop(held_out: HeldOut, model: torch.nn.Module) -> float:
        if next(scored, None) is None:
            raise CutOffError
        return loss(held_out, model)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HeldOut, "loss", score_or_stop)
        with pytest.raises(CutOffError):
            gf.pretrain(cells, how or config(), out=out, **options)


@pytest.fixture(scope="module")
def sixty(_pbmc, vocabulary: Vocabulary) -> gf.TokenizedDataset:
    """Sixty cells, cut to 64 tokens."""
    return gf.tokenize(_pbmc[:60], dataclasses.replace(vocabulary, max_length=64))


@pytest.fixture(scope="module")
def finished(sixty: gf.TokenizedDataset, tmp_path_factory) -> Finished:
    """Two epochs on sixty cells."""
    return start(tmp_path_factory.mktemp("runs") / "base", sixty)


@pytest.fixture(scope="module")
def continued(finished: Finished, sixty: gf.TokenizedDataset, tmp_path_factory) -> Finished:
    """Another epoch, from the weights of the finished run; the size asked for is not used."""
    base = gf.Checkpoint.from_pretrained(finished.folder)
    return start(tmp_path_factory.mktemp("runs") / "more", sixty, config(epochs=1, size="V1-10M"), base=base)


@pytest.fixture(scope="module")
def resumed(sixty: gf.TokenizedDataset, tmp_path_factory) -> Finished:
    """Cut off at the end of the second epoch, and started again with the same call."""
    out = tmp_path_factory.mktemp("runs") / "base"
    cut_off(out, sixty, epoch=2)
    assert [path.name for path in out.parent.iterdir()] == ["base.partial"]
    return start(out, sixty)


@pytest.fixture(scope="module")
def untrained(sixty: gf.TokenizedDataset) -> gf.Checkpoint:
    """A model of the cells' vocabulary."""
    model = module.MaskedGeneModel(module.bert_config("tiny", sixty.vocabulary)).eval()
    return gf.Checkpoint(model, sixty.vocabulary, name="checkpoint untrained")


@pytest.fixture
def classifier(untrained: gf.Checkpoint) -> gf.Checkpoint:
    head = Head("cell_type", ("B", "T"), "mean")
    return gf.Checkpoint(CellClassifier(untrained.model.config), untrained.vocabulary, head, name="checkpoint clf")


def true_cells(batches: list[Masked], vocabulary: Vocabulary) -> list[tuple[int, ...]]:
    """The cells of masked batches, as they were before they were masked."""
    unmasked = [torch.where(labels == IGNORED, shown, labels) for shown, labels in batches]
    rows = [row for batch in unmasked for row in batch.tolist()]
    return [tuple(token for token in row if token != vocabulary.pad_token) for row in rows]


def slow_loss(model: torch.nn.Module, batches: list[Masked]) -> float:
    """Mean cross-entropy at the masked positions, cell by cell, from stock BERT's logits."""
    losses = []
    for shown, labels in batches:
        for tokens, targets in zip(shown, labels, strict=True):
            real = tokens != 0
            with torch.no_grad():
                log_chances = model(tokens[real][None]).logits[0].double().log_softmax(-1)
            losses += [-log_chances[i, target].item() for i, target in enumerate(targets[real]) if target != IGNORED]
    return float(np.mean(losses))


def slow_frequency_loss(training: list[tuple[int, ...]], held_out: list[Masked], vocabulary: Vocabulary) -> float:
    """Mean surprise at the hidden genes of one who only knows how many training cells express each gene."""
    n_cells = {int(token): 1 + sum(token in cell for cell in training) for token in vocabulary.tokens}
    hidden = [int(target) for _, labels in held_out for target in labels.flatten() if target != IGNORED]
    return float(np.mean([-np.log(n_cells[token] / sum(n_cells.values())) for token in hidden]))


class TestResult:
    def test_the_folder_holds_these_files(self, finished):
        assert {file.name for file in finished.folder.iterdir()} == FILES

    def test_nothing_else_is_left(self, finished):
        assert list(finished.folder.parent.iterdir()) == [finished.folder]

    def test_the_checkpoint_on_disk_is_the_one_returned(self, finished, sixty):
        opened = gf.Checkpoint.from_pretrained(finished.folder)
        assert opened.fingerprint == finished.checkpoint.fingerprint
        assert opened.vocabulary == sixty.vocabulary
        assert opened.head is None
        assert dict(opened.provenance) == dict(finished.checkpoint.provenance)
        assert opened.name == finished.checkpoint.name

    def test_the_checkpoint_opens_in_stock_transformers(self, finished, sixty):
        with quiet_transformers():
            theirs = BertForMaskedLM.from_pretrained(finished.folder).eval()
        tokens = torch.as_tensor(sixty[0])[None]
        ours = gf.Checkpoint.from_pretrained(finished.folder).model
        with torch.no_grad():
            expected, found = theirs(tokens).logits, ours(tokens).logits
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)

    def test_the_model_is_in_evaluation_mode(self, finished):
        assert not finished.checkpoint.model.training

    def test_provenance_names_the_recipe_and_the_inputs(self, finished, sixty):
        provenance = finished.checkpoint.provenance
        assert provenance["step"] == "pretrain"
        assert provenance["config"] == dataclasses.asdict(config())
        assert provenance["inputs"] == {
            "cells": sixty.fingerprint,
            "vocabulary": sixty.vocabulary.fingerprint,
            "base": None,
        }
        assert {"torch", "transformers", "geneformer-repro", "python"} <= set(provenance["versions"])

    def test_provenance_counts_the_cells(self, finished):
        result = finished.checkpoint.provenance["result"]
        assert (result["n_cells"], result["n_held_out"]) == (N_TRAINING, N_HELD_OUT)

    def test_the_held_out_loss_is_that_of_the_checkpoint(self, finished):
        with quiet_transformers():
            theirs = BertForMaskedLM.from_pretrained(finished.folder).eval()
        expected = slow_loss(theirs, finished.masking.held_out)
        np.testing.assert_allclose(finished.checkpoint.provenance["result"]["held_out_loss"], expected, rtol=1e-5)

    def test_the_frequency_loss_is_that_of_guessing_by_counts(self, finished, sixty):
        training = true_cells(finished.masking.training[:STEPS_AN_EPOCH], sixty.vocabulary)
        expected = slow_frequency_loss(training, finished.masking.held_out, sixty.vocabulary)
        np.testing.assert_allclose(finished.checkpoint.provenance["result"]["frequency_loss"], expected, rtol=1e-5)

    def test_history_and_log_hold_every_step_and_score(self, finished):
        steps = list(range(1, 2 * STEPS_AN_EPOCH + 1))
        for table in (finished.history, pd.DataFrame(finished.log)):
            assert table["step"][table["loss"].notna()].tolist() == steps
            assert table["step"][table["eval_loss"].notna()].tolist() == [0, STEPS_AN_EPOCH, 2 * STEPS_AN_EPOCH]

    def test_the_last_score_is_the_held_out_loss(self, finished):
        last = finished.history["eval_loss"].dropna().iloc[-1]
        np.testing.assert_allclose(finished.checkpoint.provenance["result"]["held_out_loss"], last, atol=1e-6)

    def test_every_line_of_the_log_says_how_fast_it_goes(self, finished):
        assert all(entry["event"] == "pretrain" and entry["cells_per_second"] >= 0 for entry in finished.log)

    def test_the_picture_is_one(self, finished):
        assert (finished.folder / "loss.png").read_bytes().startswith(b"\x89PNG\r\n")


class TestCells:
    def test_held_out_cells_are_never_trained_on(self, finished, sixty):
        held_out = true_cells(finished.masking.held_out, sixty.vocabulary)
        training = true_cells(finished.masking.training, sixty.vocabulary)
        assert len(held_out) == N_HELD_OUT
        assert not set(held_out) & set(training)

    def test_every_other_cell_is_trained_on_once_an_epoch(self, finished, sixty):
        held_out = set(true_cells(finished.masking.held_out, sixty.vocabulary))
        expected = sorted(cell for cell in (tuple(tokens.tolist()) for tokens in sixty) if cell not in held_out)
        first, second = finished.masking.training[:STEPS_AN_EPOCH], finished.masking.training[STEPS_AN_EPOCH:]
        assert sorted(true_cells(first, sixty.vocabulary)) == expected
        assert sorted(true_cells(second, sixty.vocabulary)) == expected

    def test_a_cell_is_masked_anew_each_epoch(self, finished, sixty):
        def labels_of(batches: list[Masked]) -> dict[tuple[int, ...], list[int]]:
            rows = [row.tolist() for batch in batches for row in batch.labels]
            return dict(zip(true_cells(batches, sixty.vocabulary), rows, strict=True))

        first = labels_of(finished.masking.training[:STEPS_AN_EPOCH])
        second = labels_of(finished.masking.training[STEPS_AN_EPOCH:])
        assert all(first[cell] != second[cell] for cell in first)

    def test_held_out_cells_are_masked_once(self, finished):
        assert sum(len(batch.input_ids) for batch in finished.masking.held_out) == N_HELD_OUT

    def test_one_cell_is_too_few(self, sixty, tmp_path):
        message = r"1 cells are too few to train on some and hold others out \(held_out=0.1\)"
        with pytest.raises(gf.InputError, match=message):
            gf.pretrain(sixty.select([0]), config(), out=tmp_path / "base")

    def test_two_cells_are_enough(self, sixty, tmp_path):
        result = gf.pretrain(sixty.select([0, 1]), config(epochs=1), out=tmp_path / "base").provenance["result"]
        assert (result["n_cells"], result["n_held_out"]) == (1, 1)

    def test_held_out_cells_without_a_masked_gene_are_refused(self, sixty, tmp_path):
        message = r"None of the genes of 6 held-out cells was masked; hold out more cells \(held_out=0.1\)"
        with pytest.raises(gf.InputError, match=message):
            gf.pretrain(sixty, config(mask_probability=1e-9), out=tmp_path / "base")


class TestLearning:
    def test_a_few_cells_can_be_learned_by_heart(self, pbmc, tmp_path):
        cells = gf.tokenize(pbmc[:6], Vocabulary.fit(pbmc, series="V1", max_length=24))
        recipe = config(epochs=100, batch_size=5, learning_rate=5e-3, trainer={"save_strategy": "no"})
        losses = start(tmp_path / "base", cells, recipe).history["loss"].dropna()
        assert losses.iloc[-20:].mean() < 0.5 * losses.iloc[0]

    def test_the_same_seed_gives_the_same_weights(self, finished, sixty, tmp_path):
        torch.rand(5)
        again = gf.pretrain(sixty, config(), out=tmp_path / "base")
        assert again.fingerprint == finished.checkpoint.fingerprint
        assert again.provenance["result"] == finished.checkpoint.provenance["result"]

    def test_another_seed_changes_weights_split_and_masks(self, finished, sixty, tmp_path):
        other = start(tmp_path / "base", sixty, config(seed=1, epochs=1))
        held_out = [set(true_cells(run.masking.held_out, sixty.vocabulary)) for run in (finished, other)]
        assert held_out[0] != held_out[1]
        assert other.history["eval_loss"].iloc[0] != finished.history["eval_loss"].iloc[0]

    def test_both_losses_are_logged(self, sixty, tmp_path, caplog):
        with caplog.at_level(logging.INFO, logger="geneformer_repro"):
            result = gf.pretrain(sixty, config(epochs=1), out=tmp_path / "base").provenance["result"]
        held_out, guess = result["held_out_loss"], result["frequency_loss"]
        assert (
            f"held-out loss {held_out:.3f} nats a masked gene; guessing by gene frequency gives {guess:.3f}"
            in caplog.text
        )

    def test_a_loss_that_is_not_finite_stops_the_run(self, sixty, tmp_path):
        message = r"The loss became (nan|inf) at step 1; lower the learning rate \(1e\+30\), or lengthen the warm-up"
        with pytest.raises(gf.InputError, match=message):
            gf.pretrain(sixty, config(learning_rate=1e30, warmup_steps=0), out=tmp_path / "base")
        assert not (tmp_path / "base").exists()

    def test_a_held_out_loss_that_is_not_finite_stops_the_run(self, sixty, tmp_path):
        one_step = config(learning_rate=1e30, warmup_steps=0, epochs=1, batch_size=N_TRAINING)
        with pytest.raises(gf.InputError, match=r"loss became (nan|inf).*lower the learning rate"):
            gf.pretrain(sixty, one_step, out=tmp_path / "base")
        assert not (tmp_path / "base").exists()

    def test_logging_less_often_than_the_run_is_long_is_fine(self, sixty, tmp_path):
        rare = start(tmp_path / "base", sixty, config(epochs=1, trainer={"logging_steps": 1000}))
        assert {file.name for file in rare.folder.iterdir()} == FILES


class TestGoingOn:
    def test_it_starts_from_the_given_weights(self, continued, finished):
        before = finished.checkpoint.provenance["result"]["held_out_loss"]
        np.testing.assert_allclose(continued.history["eval_loss"].iloc[0], before, atol=1e-5)

    def test_it_trains_them(self, continued, finished):
        assert continued.checkpoint.fingerprint != finished.checkpoint.fingerprint

    def test_it_has_the_shape_of_the_base(self, continued, finished):
        assert continued.checkpoint.model.num_parameters() == finished.checkpoint.model.num_parameters()

    def test_provenance_names_the_base(self, continued, finished):
        assert continued.checkpoint.provenance["inputs"]["base"] == finished.checkpoint.fingerprint

    def test_the_base_stays_as_it_is(self, sixty, untrained, tmp_path):
        before, config_before = untrained.fingerprint, untrained.model.config.to_dict()
        gf.pretrain(sixty, config(epochs=1), out=tmp_path / "more", base=untrained)
        assert untrained.fingerprint == before
        assert untrained.model.config.to_dict() == config_before
        assert not untrained.model.training
        assert all(parameter.grad is None for parameter in untrained.model.parameters())

    def test_a_classifier_is_refused(self, sixty, classifier, tmp_path):
        message = "checkpoint clf is a classifier without a masked-gene head; go on from a pretrained model"
        with pytest.raises(gf.InputError, match=message):
            gf.pretrain(sixty, config(), out=tmp_path / "more", base=classifier)

    def test_a_base_of_another_vocabulary_is_refused(self, pbmc, untrained, tmp_path):
        few = pbmc[:9, 1:]
        cells = gf.tokenize(few, Vocabulary.fit(few))
        with pytest.raises(gf.VocabularyMismatchError, match=r"the dataset and checkpoint untrained have different"):
            gf.pretrain(cells, config(), out=tmp_path / "more", base=untrained)
        assert list(tmp_path.iterdir()) == []

    def test_cells_longer_than_the_base_are_refused(self, cells, untrained, tmp_path):
        with pytest.raises(gf.InputError, match=r"checkpoint untrained has 64 positions.*max_length=64"):
            gf.pretrain(cells, config(), out=tmp_path / "more", base=untrained)


class TestCutOff:
    def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(self, resumed, finished):
        assert resumed.checkpoint.fingerprint == finished.checkpoint.fingerprint

    def test_a_resumed_run_has_the_result_of_an_uninterrupted_one(self, resumed, finished):
        assert resumed.checkpoint.provenance["result"] == finished.checkpoint.provenance["result"]

    def test_a_resumed_run_has_the_history_of_an_uninterrupted_one(self, resumed, finished):
        columns = ["step", "epoch", "loss", "eval_loss", "learning_rate"]
        pd.testing.assert_frame_equal(resumed.history[columns], finished.history[columns])

    def test_a_resumed_run_does_not_repeat_the_finished_epoch(self, resumed):
        assert len(resumed.masking.training) == STEPS_AN_EPOCH

    def test_a_resumed_run_leaves_the_same_files_and_nothing_else(self, resumed):
        assert {file.name for file in resumed.folder.iterdir()} == FILES
        assert list(resumed.folder.parent.iterdir()) == [resumed.folder]

    def test_a_run_cut_off_before_its_first_epoch_starts_anew(self, sixty, finished, tmp_path):
        cut_off(tmp_path / "base", sixty, epoch=0)
        assert gf.pretrain(sixty, config(), out=tmp_path / "base").fingerprint == finished.checkpoint.fingerprint

    def test_a_run_cut_off_while_writing_its_result_only_writes_it(self, sixty, finished, tmp_path, monkeypatch):
        def no_space(*_: Any) -> None:
            raise OSError("No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(module, "loss_figure", no_space)
            with pytest.raises(OSError, match="No space left"):
                gf.pretrain(sixty, config(), out=tmp_path / "base")
        assert [path.name for path in tmp_path.iterdir()] == ["base.partial"]
        again = start(tmp_path / "base", sixty)
        assert again.checkpoint.fingerprint == finished.checkpoint.fingerprint
        assert again.masking.training == []

    @pytest.mark.parametrize(
        ("changes", "difference"),
        [
            pytest.param({"learning_rate": 2e-3}, "learning_rate: 0.001 there, 0.002 now", id="learning_rate"),
            pytest.param({"epochs": 3}, "epochs: 2 there, 3 now", id="epochs"),
        ],
    )
    def test_other_settings_are_refused_naming_the_difference(self, sixty, tmp_path, changes, difference):
        cut_off(tmp_path / "base", sixty, epoch=0)
        message = rf"base.partial holds an unfinished run with other settings .*{difference}.*overwrite=True"
        with pytest.raises(FileExistsError, match=message):
            gf.pretrain(sixty, config(**changes), out=tmp_path / "base")

    def test_another_base_is_refused(self, sixty, untrained, tmp_path):
        cut_off(tmp_path / "base", sixty, epoch=0)
        with pytest.raises(FileExistsError, match=r"other settings \(base: None there, '[0-9a-f]{64}' now\)"):
            gf.pretrain(sixty, config(), out=tmp_path / "base", base=untrained)

    def test_other_cells_are_refused(self, sixty, tmp_path):
        cut_off(tmp_path / "base", sixty, epoch=0)
        with pytest.raises(FileExistsError, match=r"other settings \(cells: "):
            gf.pretrain(sixty.select(range(30)), config(), out=tmp_path / "base")

    def test_overwriting_drops_the_unfinished_run(self, sixty, tmp_path):
        cut_off(tmp_path / "base", sixty, epoch=2)
        anew = start(tmp_path / "base", sixty, config(epochs=1), overwrite=True)
        assert [entry["step"] for entry in anew.log if "loss" in entry] == list(range(1, STEPS_AN_EPOCH + 1))
        assert list(tmp_path.iterdir()) == [tmp_path / "base"]


class TestOutput:
    def test_an_output_that_exists_is_refused_before_the_work(self, sixty, finished):
        before = {file.name: file.read_bytes() for file in finished.folder.iterdir()}
        with pytest.raises(FileExistsError, match=r"base already exists. Choose another output, .*overwrite=True"):
            gf.pretrain(sixty, config(size="no such size"), out=finished.folder)
        assert {file.name: file.read_bytes() for file in finished.folder.iterdir()} == before
        assert list(finished.folder.parent.iterdir()) == [finished.folder]

    def test_overwriting_replaces_an_earlier_checkpoint(self, sixty, finished, tmp_path):
        shutil.copytree(finished.folder, tmp_path / "base")
        new = gf.pretrain(sixty, config(epochs=1), out=tmp_path / "base", overwrite=True)
        assert new.fingerprint != finished.checkpoint.fingerprint
        assert gf.Checkpoint.from_pretrained(tmp_path / "base").fingerprint == new.fingerprint
        assert list(tmp_path.iterdir()) == [tmp_path / "base"]

    def test_overwriting_spares_a_folder_that_is_no_checkpoint(self, sixty, tmp_path):
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis.tex").touch()
        with pytest.raises(FileExistsError, match=r"folder without provenance.json.*not replaced"):
            gf.pretrain(sixty, config(), out=tmp_path / "mine", overwrite=True)
        assert (tmp_path / "mine" / "thesis.tex").exists()


class TestConfig:
    def test_defaults_are_the_published_recipe_of_the_v1_series(self):
        assert dataclasses.asdict(gf.PretrainConfig()) == {
            "size": "V1-10M",
            "epochs": 3,
            "batch_size": 12,
            "learning_rate": 1e-3,
            "decay": "linear",
            "warmup_steps": 10_000,
            "weight_decay": 0.001,
            "mask_probability": 0.15,
            "held_out": 0.05,
            "seed": 0,
            "trainer": {},
        }

    @pytest.mark.parametrize(
        ("field", "value", "bound"),
        [
            ("epochs", 0, "above 0"),
            ("mask_probability", 0, "between 0 and 1"),
            ("mask_probability", 1.5, "between 0 and 1"),
            ("held_out", 0, "between 0 and 1"),
            ("held_out", 1, "between 0 and 1"),
        ],
    )
    def test_a_value_out_of_bounds_is_named_with_its_bound(self, field, value, bound):
        with pytest.raises(ConfigError, match=f"PretrainConfig.{field} must be {bound}, found {value!r}"):
            config(**{field: value})

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            pytest.param({"size": "V3-1B"}, "no model size 'V3-1B'. There are: 'tiny'", id="unknown_size"),
            pytest.param(
                {"warmup_steps": 10_000},
                "warmup_steps is 10000 but the run has only 14 steps.*Give fewer steps, or a share",
                id="warm_up_longer_than_the_run",
            ),
            pytest.param({"trainer": {"lerning_rate": 1.0}}, "refuses.*lerning_rate", id="unknown_trainer_field"),
            pytest.param({"decay": "steep"}, "one of 'linear', .*found 'steep'", id="unknown_decay"),
        ],
    )
    def test_what_cannot_be_run_is_refused(self, sixty, tmp_path, changes, message):
        with pytest.raises(gf.InputError, match=message):
            gf.pretrain(sixty, config(**changes), out=tmp_path / "base")

    @pytest.mark.parametrize(
        "changes",
        [
            pytest.param({"size": "V3-1B"}, id="unknown_size"),
            pytest.param({"warmup_steps": 10_000}, id="warm_up_longer_than_the_run"),
            pytest.param({"trainer": {"lerning_rate": 1.0}}, id="unknown_trainer_field"),
        ],
    )
    def test_what_is_refused_leaves_nothing_in_the_way_of_the_next_try(self, sixty, tmp_path, changes):
        with pytest.raises(gf.InputError):
            gf.pretrain(sixty, config(**changes), out=tmp_path / "base")
        assert list(tmp_path.iterdir()) == []

    def test_fields_of_the_trainer_win(self, sixty, tmp_path):
        short = start(tmp_path / "base", sixty, config(trainer={"max_steps": 2}))
        assert short.history["step"].max() == 2


class TestHeldOut:
    @pytest.fixture
    def held_out(self, sixty: gf.TokenizedDataset, monkeypatch) -> HeldOut:
        """Ten cells in batches of different sizes."""
        monkeypatch.setattr(module, "MAX_TOKENS", 2 * 192)
        return HeldOut(sixty.select(range(10)), config())

    @pytest.fixture
    def masked(self, sixty: gf.TokenizedDataset, monkeypatch) -> list[Masked]:
        monkeypatch.setattr(module, "MAX_TOKENS", 2 * 192)
        masking = Masking()
        monkeypatch.setattr(module, "mask_genes", masking)
        HeldOut(sixty.select(range(10)), config())
        return masking.held_out

    def test_every_masked_gene_weighs_the_same(self, held_out, masked, untrained):
        assert len({len(batch.input_ids) for batch in masked}) > 1
        np.testing.assert_allclose(held_out.loss(untrained.model), slow_loss(untrained.model, masked), rtol=1e-5)

    def test_a_loss_is_the_same_twice(self, held_out, untrained):
        assert held_out.loss(untrained.model) == held_out.loss(untrained.model)

    @pytest.mark.parametrize("training", [True, False])
    def test_the_mode_of_the_model_is_as_before_afterwards(self, held_out, finished, training):
        model = gf.Checkpoint.from_pretrained(finished.folder).model.train(training)
        held_out.loss(model)
        assert model.training == training

    def test_the_same_seed_masks_the_same_genes(self, sixty, untrained):
        few = sixty.select(range(10))
        once, again, other = (HeldOut(few, config(seed=seed)).loss(untrained.model) for seed in (0, 0, 1))
        assert once == again != other

    def test_the_loss_of_a_guess_is_the_mean_surprise(self, held_out, masked, sixty):
        frequency = gene_frequency(sixty)
        hidden = [target for batch in masked for target in batch.labels.flatten().tolist() if target != IGNORED]
        expected = np.mean([-frequency[target].item() for target in hidden])
        np.testing.assert_allclose(held_out.loss_of(frequency), expected)


class TestGeneFrequency:
    def test_it_counts_the_cells_that_express_a_gene(self, sixty):
        chances = gene_frequency(sixty).exp().numpy()
        counts = dict.fromkeys(sixty.vocabulary.gene_ids, 1)
        for i in range(len(sixty)):
            for gene in sixty.genes(i):
                counts[gene] += 1
        expected = np.array(list(counts.values())) / sum(counts.values())
        np.testing.assert_allclose(chances[sixty.vocabulary.tokens], expected)

    def test_special_tokens_are_impossible(self, sixty):
        chances = gene_frequency(sixty).exp()
        assert not chances[list(sixty.vocabulary.special_tokens.values())].any()
        np.testing.assert_allclose(chances.sum(), 1)
