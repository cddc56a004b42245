import dataclasses
import json
import logging
import math
import os
import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from forking import forked, status_of
from safetensors.torch import load_file
from transformers import BertForMaskedLM, Trainer

import geneformer_repro as gf
from geneformer_repro import reading
from geneformer_repro.checkpoint import quiet_transformers
from geneformer_repro.config import ConfigError, setting, with_settings
from geneformer_repro.encoder import IGNORED
from geneformer_repro.heads import CellClassifier, Head
from geneformer_repro.pretraining import pretrain as module
from geneformer_repro.pretraining.masking import Masked
from geneformer_repro.pretraining.pretrain import FREQUENCY, MODEL, RANK, Guess, HeldOut, counts_by_rank
from geneformer_repro.targets import Classes
from geneformer_repro.tokenizer.vocabulary import Vocabulary
from geneformer_repro.training.loop import Interrupted

pytestmark = pytest.mark.slow

FILES = {
    "config.json",
    "model.safetensors",
    "vocabulary.json",
    "vocabulary.tsv",
    "provenance.json",
    "log.jsonl",
    "history.tsv",
    "scores.tsv",
    "tensorboard",
    "loss.png",
    "seen_cells.parquet",
}
SCORES = ["loss", "perplexity", "top1", "top5", "hidden_loss", "hidden_top1", "hidden_top5"]
MASK = 1
"""Token of ``<mask>`` in both published conventions."""
N_HELD_OUT, N_TRAINING, STEPS_AN_EPOCH = 6, 54, 7


class CutOffError(Exception):
    """Stands for whatever ends a run: a signal, the power, the queue."""


class Masking:
    """The real masking, which remembers what it made, of held-out and of training cells."""

    def __init__(self) -> None:
        self.held_out: list[Masked] = []
        self.training: list[list[Masked]] = []

    def masked_cell(self, cells: gf.TokenizedDataset, row: int, epoch: int, config: gf.PretrainConfig) -> Masked:
        masked = masked_cell(cells, row, epoch, config)
        if epoch == module._HELD_OUT_EPOCH:
            self.held_out.append(masked)
        else:
            self.training.extend([] for _ in range(epoch + 1 - len(self.training)))
            self.training[epoch].append(masked)
        return masked


masked_cell, loss_figure = module._masked_cell, module.loss_figure


class Finished(NamedTuple):
    """A run and what it left."""

    folder: Path
    checkpoint: gf.Checkpoint
    masking: Masking
    history: pd.DataFrame
    log: list[dict[str, Any]]


def config(**changes: Any) -> gf.PretrainConfig:
    recipe = {"size": "tiny", "epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "warmup_steps": 0.1, "held_out": 0.1}
    return with_settings(gf.PretrainConfig(), **recipe | changes)


def start(out: Path, cells: gf.TokenizedDataset, how: gf.PretrainConfig | None = None, **options: Any) -> Finished:
    with pytest.MonkeyPatch.context() as patch:
        masking = Masking()
        patch.setattr(module, "_masked_cell", masking.masked_cell)
        checkpoint = gf.pretrain(cells, how or config(), out=out, **options)
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return Finished(out, checkpoint, masking, pd.read_csv(out / "history.tsv", sep="\t"), log)


def cut_off(
    out: Path,
    cells: gf.TokenizedDataset,
    how: gf.PretrainConfig | None = None,
    *,
    step: int,
    by: signal.Signals | None = None,
    **options: Any,
) -> None:
    """Pretrain, and be cut off before a step, or by a signal while it is under way."""
    do_step = Trainer.training_step

    def step_or_stop(trainer: Trainer, *given: Any) -> torch.Tensor:
        if trainer.state.global_step + 1 == step:
            if by is None:
                raise CutOffError
            os.kill(os.getpid(), by)
        return do_step(trainer, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "training_step", step_or_stop)
        with pytest.raises(CutOffError if by is None else Interrupted):
            gf.pretrain(cells, how or config(), out=out, **options)


@pytest.fixture(scope="module")
def sixty(_pbmc, vocabulary: Vocabulary) -> gf.TokenizedDataset:
    """Sixty cells, cut to 64 tokens."""
    return gf.tokenize(_pbmc[:60], dataclasses.replace(vocabulary, max_length=64))


@pytest.fixture(scope="module", autouse=True)
def _quick_pictures() -> Iterator[None]:
    """Leave out what takes half the time of a small run; what is drawn is tested with the report."""

    class Picture:
        def savefig(self, path: Path, **_: Any) -> None:
            path.write_bytes(b"\x89PNG\r\n")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "loss_figure", lambda *_: Picture())
        yield


@pytest.fixture(scope="module")
def finished(sixty: gf.TokenizedDataset, tmp_path_factory) -> Finished:
    """Two epochs on sixty cells, and their picture."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "loss_figure", loss_figure)
        return start(tmp_path_factory.mktemp("runs") / "base", sixty)


@pytest.fixture(scope="module")
def continued(finished: Finished, sixty: gf.TokenizedDataset, tmp_path_factory) -> Finished:
    """Another epoch, from the weights of the finished run; the size asked for is not used."""
    base = gf.Checkpoint.from_pretrained(finished.folder)
    return start(tmp_path_factory.mktemp("runs") / "more", sixty, config(epochs=1, size="V1-10M"), base=base)


@pytest.fixture(scope="module")
def resumed(sixty: gf.TokenizedDataset, tmp_path_factory) -> Finished:
    """Cut off in the second epoch, and started again with the same call."""
    out = tmp_path_factory.mktemp("runs") / "base"
    cut_off(out, sixty, step=STEPS_AN_EPOCH + 3)
    assert [path.name for path in out.parent.iterdir()] == ["base.partial"]
    return start(out, sixty, resume=True)


@pytest.fixture(scope="module")
def untrained(sixty: gf.TokenizedDataset) -> gf.Checkpoint:
    """A model of the cells' vocabulary."""
    model = module.MaskedGeneModel(module.bert_config("tiny", sixty.vocabulary)).eval()
    return gf.Checkpoint(model, sixty.vocabulary, name="checkpoint untrained")


@pytest.fixture
def classifier(untrained: gf.Checkpoint) -> gf.Checkpoint:
    model = CellClassifier(untrained.model.config, Head((Classes("cell_type", ("B", "T")),)))
    return gf.Checkpoint(model, untrained.vocabulary, name="checkpoint clf")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def true_cells(masked: list[Masked]) -> list[tuple[int, ...]]:
    """Cells as they were before they were masked."""
    return [tuple(np.where(labels == IGNORED, shown, labels).tolist()) for shown, labels in masked]


def hidden_genes(masked: list[Masked]) -> list[tuple[int, int]]:
    """Rank and token of every hidden gene."""
    return [
        (rank, int(token)) for cell in masked for rank, token in enumerate(cell.labels.tolist()) if token != IGNORED
    ]


def summary(losses: list[float], places: list[int], masked: list[Masked]) -> list[float]:
    """Average over all chosen genes, and over those that are shown as ``<mask>``."""
    behind = np.concatenate([cell.input_ids[cell.labels != IGNORED] == MASK for cell in masked])
    assert 0 < behind.sum() < len(behind)
    loss, all_places = np.array(losses), np.array(places)
    found = [
        (loss[some].mean(), (all_places < 1)[some].mean(), (all_places < 5)[some].mean()) for some in (..., behind)
    ]
    return [found[0][0], math.exp(found[0][0]), *found[0][1:], *found[1]]


def slow_scores(model: torch.nn.Module, masked: list[Masked]) -> list[float]:
    """Score the masked positions, cell by cell."""
    losses, places = [], []
    for shown, labels in masked:
        with torch.no_grad():
            log_chances = model(torch.as_tensor(shown)[None]).logits[0].double().log_softmax(-1)
        for row, target in zip(log_chances.tolist(), labels.tolist(), strict=True):
            if target != IGNORED:
                losses.append(-row[target])
                places.append(sum(other > row[target] for other in row))
    return summary(losses, places, masked)


def slow_guess(training: list[tuple[int, ...]], masked: list[Masked], vocabulary: Vocabulary, by_rank: bool):
    """Score one who only counted: gene by gene, over all ranks or those of the same eighth of a doubling."""
    genes = [int(token) for token in vocabulary.tokens]

    def eighth(rank: int) -> int:
        return math.floor(8 * math.log2(1 + rank))

    n_seen = dict.fromkeys(genes, 1)
    n_near: dict[int, dict[int, int]] = {}
    for cell in training:
        for rank, token in enumerate(cell):
            near = n_near.setdefault(eighth(rank), {})
            near[token] = near.get(token, 0) + 1
            if token in n_seen:
                n_seen[token] += 1
    total = sum(n_seen.values())
    losses, places = [], []
    for rank, target in hidden_genes(masked):
        share = {token: n_seen[token] / total for token in genes}
        if by_rank:
            near = n_near.get(eighth(rank), {})
            weight = max(1000, sum(near.values()) / 10)
            share = {token: near.get(token, 0) + weight * share[token] for token in genes}
            share = {token: value / sum(share.values()) for token, value in share.items()}
        losses.append(-math.log(share[target]))
        better = [token for token in genes if (-share[token], token) < (-share[target], target)]
        places.append(len(better))
    return summary(losses, places, masked)


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

    def test_the_scores_are_those_of_the_checkpoint_in_stock_transformers(self, finished):
        with quiet_transformers():
            theirs = BertForMaskedLM.from_pretrained(finished.folder).eval()
        found = finished.checkpoint.provenance["result"]["scores"][MODEL]
        expected = slow_scores(theirs, finished.masking.held_out)
        np.testing.assert_allclose([found[name] for name in SCORES], expected, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize(("name", "by_rank"), [(FREQUENCY, False), (RANK, True)])
    def test_the_guesses_know_the_training_cells_alone(self, finished, sixty, name, by_rank):
        training = true_cells(finished.masking.training[0])
        found = finished.checkpoint.provenance["result"]["scores"][name]
        expected = slow_guess(training, finished.masking.held_out, sixty.vocabulary, by_rank)
        np.testing.assert_allclose([found[name] for name in SCORES], expected, rtol=1e-5, atol=1e-6)

    def test_the_table_of_scores_is_that_of_the_provenance(self, finished):
        table = pd.read_csv(finished.folder / "scores.tsv", sep="\t", index_col="method")
        assert list(table.index) == [MODEL, FREQUENCY, RANK]
        assert list(table.columns) == SCORES
        expected = pd.DataFrame(finished.checkpoint.provenance["result"]["scores"]).T
        np.testing.assert_allclose(table, expected, atol=1e-6)

    def test_tensorboard_has_every_loss_and_score(self, finished):
        (file,) = (finished.folder / "tensorboard").iterdir()
        content = file.read_bytes()
        assert content.count(b"held_out/top5") == content.count(b"held_out/hidden_top5") == 3
        assert content.count(b"grad_norm") == 2 * STEPS_AN_EPOCH

    def test_the_first_line_of_the_log_says_what_runs_how(self, finished, sixty):
        first = finished.log[0]
        assert (first["engine"], first["processes"], first["dtype"]) == ("one process", 1, "float32")
        assert first["steps"] == 2 * STEPS_AN_EPOCH
        n_tokens = sum(len(cell) for cell in true_cells(finished.masking.training[0]))
        assert first["tokens_a_batch"] == round(n_tokens / STEPS_AN_EPOCH)

    def test_history_and_log_hold_every_step_and_score(self, finished):
        steps = list(range(1, 2 * STEPS_AN_EPOCH + 1))
        for table in (finished.history, pd.DataFrame(finished.log)):
            assert table["step"][table["loss"].notna()].tolist() == steps
            assert table["step"][table["eval_loss"].notna()].tolist() == [0, STEPS_AN_EPOCH, 2 * STEPS_AN_EPOCH]

    def test_the_last_score_is_the_held_out_loss(self, finished):
        last = finished.history["eval_loss"].dropna().iloc[-1]
        np.testing.assert_allclose(finished.checkpoint.provenance["result"]["scores"][MODEL]["loss"], last, atol=1e-6)

    def test_every_line_of_a_loss_says_how_fast_it_goes(self, finished):
        lines = [entry for entry in finished.log if "loss" in entry]
        assert all(entry["event"] == "pretrain" and entry["cells_per_second"] > 0 for entry in lines)
        assert all(entry["share_of_peak"] >= 0 for entry in lines)

    def test_the_picture_is_one(self, finished):
        assert (finished.folder / "loss.png").read_bytes().startswith(b"\x89PNG\r\n")


class TestCells:
    def test_held_out_cells_are_never_trained_on(self, finished, sixty):
        held_out = true_cells(finished.masking.held_out)
        assert len(held_out) == N_HELD_OUT
        assert not set(held_out) & set(true_cells(finished.masking.training[0]))

    def test_the_cells_trained_on_are_known_by_their_digests(self, finished, sixty):
        held_out = set(true_cells(finished.masking.held_out))
        rows = [row for row, tokens in enumerate(sixty) if tuple(tokens.tolist()) not in held_out]
        expected = np.unique(sixty.select(rows).digests())
        assert len(expected) == N_TRAINING
        for checkpoint in (finished.checkpoint, gf.Checkpoint.from_pretrained(finished.folder)):
            np.testing.assert_array_equal(checkpoint.seen, expected, strict=True)

    @pytest.mark.parametrize("epoch", [0, 1])
    def test_every_other_cell_is_trained_on_once_an_epoch(self, finished, sixty, epoch):
        held_out = set(true_cells(finished.masking.held_out))
        expected = sorted(cell for cell in (tuple(tokens.tolist()) for tokens in sixty) if cell not in held_out)
        assert sorted(true_cells(finished.masking.training[epoch])) == expected

    def test_a_cell_is_masked_anew_each_epoch(self, finished):
        first, second = (
            dict(zip(true_cells(masked), (cell.labels.tolist() for cell in masked), strict=True))
            for masked in finished.masking.training
        )
        assert all(first[cell] != second[cell] for cell in first)

    def test_held_out_cells_are_masked_once(self, finished):
        assert len(finished.masking.held_out) == N_HELD_OUT

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
        recipe = config(epochs=50, batch_size=5, learning_rate=1e-2, trainer={"save_strategy": "no"})
        losses = start(tmp_path / "base", cells, recipe).history["loss"].dropna()
        assert losses.iloc[-10:].mean() < 0.5 * losses.iloc[0]

    def test_the_same_seed_gives_the_same_weights_and_global_random_states_stay(self, finished, sixty, tmp_path):
        def states() -> list[Any]:
            return [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]  # noqa: NPY002

        torch.rand(5)
        before = states()
        again = gf.pretrain(sixty, config(), out=tmp_path / "base")
        assert states() == before
        assert again.fingerprint == finished.checkpoint.fingerprint
        assert again.provenance["result"] == finished.checkpoint.provenance["result"]

    def test_another_seed_changes_weights_split_and_masks(self, finished, sixty, tmp_path):
        other = start(tmp_path / "base", sixty, config(seed=1, epochs=1))
        held_out = [set(true_cells(run.masking.held_out)) for run in (finished, other)]
        assert held_out[0] != held_out[1]
        assert other.history["eval_loss"].iloc[0] != finished.history["eval_loss"].iloc[0]

    def test_the_scores_are_logged_as_a_table(self, sixty, tmp_path, caplog):
        with caplog.at_level(logging.INFO, logger="geneformer_repro"):
            scores = gf.pretrain(sixty, config(epochs=1), out=tmp_path / "base").provenance["result"]["scores"]
        for name in (MODEL, FREQUENCY, RANK):
            line = next(line for line in caplog.text.splitlines() if line.startswith(f"{name}  "))
            assert f"{scores[name]['loss']:.3f}" in line
            assert f"{scores[name]['top5']:.1%}" in line

    def test_a_batch_whose_loss_is_not_finite_is_kept_with_the_rows_of_its_cells(self, sixty, tmp_path):
        with pytest.raises(gf.InputError, match="The loss became") as caught:
            gf.pretrain(sixty, config(learning_rate=1e30, warmup_steps=0), out=tmp_path / "base")
        (saved,) = (tmp_path / "base.partial").glob("not_finite*")
        assert str(saved) in str(caught.value)
        batch = {name: value.numpy() for name, value in load_file(saved).items()}
        assert {"input_ids", "labels", "lengths", "rows"} <= set(batch)
        tokens = np.where(batch["labels"] == IGNORED, batch["input_ids"], batch["labels"])
        found = np.split(tokens, np.cumsum(batch["lengths"])[:-1])
        assert [cell.tolist() for cell in found] == [sixty[row].tolist() for row in batch["rows"]]

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
        before = finished.checkpoint.provenance["result"]["scores"][MODEL]["loss"]
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

    def test_the_cells_seen_before_stay_known(self, sixty, untrained, tmp_path):
        """Also where they are trained on again."""
        few = sixty.select(range(12))
        digests = few.digests()
        earlier = np.sort(np.array([0, 2**63 + 1, 2**64 - 1, *digests[:6].tolist()], dtype=np.uint64))
        base = dataclasses.replace(untrained, seen=earlier)
        more = start(tmp_path / "more", few, config(epochs=1), base=base)
        held_out = set(true_cells(more.masking.held_out))
        trained = [tuple(tokens.tolist()) not in held_out for tokens in few]
        assert sum(trained) == 11
        np.testing.assert_array_equal(more.checkpoint.seen, np.union1d(earlier, digests[trained]), strict=True)

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

    def test_it_goes_on_from_counts_of_cells_to_expression_of_bulk(self, pbmc, untrained, tmp_path, caplog):
        bulk = pbmc[:12].copy()
        bulk.X = bulk.X * 40.5
        of_bulk = Vocabulary.fit(bulk, values="expression", base=untrained.vocabulary)
        samples = gf.tokenize(bulk, of_bulk, values="expression", order="two_ended")
        with pytest.raises(
            gf.VocabularyMismatchError, match=r"ranks of expression, two-ended in the one and of counts"
        ):
            untrained.require_matching(samples)
        caplog.set_level(logging.INFO, logger="geneformer_repro")
        adapted = start(tmp_path / "adapted", samples, config(epochs=1), base=untrained)
        checkpoint = gf.Checkpoint.from_pretrained(tmp_path / "adapted")
        checkpoint.require_matching(samples)
        np.testing.assert_array_equal(checkpoint.vocabulary.medians, of_bulk.medians)
        assert adapted.checkpoint.model.num_parameters() == untrained.model.num_parameters()
        said = checkpoint.provenance["adapted"]
        assert [(said[at]["values"], said[at]["order"]) for at in ("from", "to")] == [
            ("counts", "descending"), ("expression", "two_ended")
        ]  # fmt: skip
        assert said["from"]["vocabulary"] == untrained.vocabulary.fingerprint
        assert "goes on from ranks of counts to ranks of expression, two-ended" in caplog.text

    def test_other_medians_of_the_same_values_are_refused(self, pbmc, untrained, tmp_path):
        other = dataclasses.replace(untrained.vocabulary, medians=2 * untrained.vocabulary.medians)
        with pytest.raises(gf.VocabularyMismatchError, match="same tokens, but other medians"):
            gf.pretrain(gf.tokenize(pbmc[:9], other), config(), out=tmp_path / "more", base=untrained)

    def test_cells_longer_than_the_base_are_refused(self, cells, untrained, tmp_path):
        with pytest.raises(gf.InputError, match=r"checkpoint untrained has 64 positions.*max_length=64"):
            gf.pretrain(cells, config(), out=tmp_path / "more", base=untrained)


class TestCutOff:
    def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(self, resumed, finished):
        assert resumed.checkpoint.fingerprint == finished.checkpoint.fingerprint

    def test_a_resumed_run_has_the_result_of_an_uninterrupted_one(self, resumed, finished):
        assert resumed.checkpoint.provenance["result"] == finished.checkpoint.provenance["result"]

    def test_a_resumed_run_has_the_history_of_an_uninterrupted_one(self, resumed, finished):
        """To the last byte, also in the order of columns and the mean loss."""
        assert (resumed.folder / "history.tsv").read_bytes() == (finished.folder / "history.tsv").read_bytes()

    def test_its_log_has_no_step_twice(self, resumed):
        for name in ("loss", "eval_loss"):
            steps = [entry["step"] for entry in resumed.log if name in entry]
            assert len(steps) == len(set(steps))

    def test_a_resumed_run_does_not_repeat_the_finished_epoch(self, resumed):
        assert [len(epoch) for epoch in resumed.masking.training] == [0, N_TRAINING]

    def test_a_run_asked_to_stop_goes_on_where_it_was(self, sixty, finished, tmp_path):
        cut_off(tmp_path / "base", sixty, step=4, by=signal.SIGTERM)
        again = start(tmp_path / "base", sixty, resume=True)
        steps = [entry["step"] for entry in again.log if "engine" in entry]
        assert steps == [0, 4]
        assert again.checkpoint.fingerprint == finished.checkpoint.fingerprint
        assert again.checkpoint.provenance["result"] == finished.checkpoint.provenance["result"]

    def test_a_killed_run_loses_no_more_than_the_steps_since_it_saved(self, sixty, tmp_path):
        """Killed while it wrote nothing, and could say nothing; all three in forks, which have one thread."""
        how, log = config(trainer={"save_strategy": "steps", "save_steps": 3}), tmp_path / "log"
        killed = forked(lambda: cut_off(tmp_path / "base", sixty, how, step=9, by=signal.SIGKILL), log)
        assert status_of(killed) == -signal.SIGKILL
        assert status_of(forked(lambda: gf.pretrain(sixty, how, out=tmp_path / "base", resume=True), log)) == 0
        assert status_of(forked(lambda: gf.pretrain(sixty, how, out=tmp_path / "whole"), log)) == 0
        lines = [json.loads(line) for line in (tmp_path / "base" / "log.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines if "engine" in line] == [0, 6]
        again, whole = (gf.Checkpoint.from_pretrained(tmp_path / name) for name in ("base", "whole"))
        assert again.fingerprint == whole.fingerprint

    def test_going_on_without_an_unfinished_run_is_refused(self, sixty, tmp_path):
        with pytest.raises(gf.InputError, match=r"base.partial: no such folder, so there is no unfinished run"):
            gf.pretrain(sixty, config(), out=tmp_path / "base", resume=True)
        assert list(tmp_path.iterdir()) == []

    def test_another_number_of_processes_is_refused(self, sixty, tmp_path):
        """The same cells would come in other batches."""
        cut_off(tmp_path / "base", sixty, step=1)
        plan = tmp_path / "base.partial" / "plan.json"
        plan.write_text(json.dumps(json.loads(plan.read_text()) | {"processes": 2}))
        with pytest.raises(FileExistsError, match=r"other settings \(processes: 2 there, 1 now\)"):
            gf.pretrain(sixty, config(), out=tmp_path / "base")

    def test_a_resumed_run_leaves_the_same_files_and_nothing_else(self, resumed):
        assert {file.name for file in resumed.folder.iterdir()} == FILES
        assert list(resumed.folder.parent.iterdir()) == [resumed.folder]

    def test_a_run_cut_off_before_its_first_epoch_starts_anew(self, sixty, finished, tmp_path):
        cut_off(tmp_path / "base", sixty, step=1)
        assert gf.pretrain(sixty, config(), out=tmp_path / "base").fingerprint == finished.checkpoint.fingerprint

    def test_a_run_cut_off_while_writing_its_result_only_writes_it(self, sixty, finished, tmp_path, monkeypatch):
        def no_space(*_: Any) -> None:
            raise OSError("No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(module, "loss_figure", no_space)
            with pytest.raises(gf.InputError, match="the disk is full"):
                gf.pretrain(sixty, config(), out=tmp_path / "base")
        assert [path.name for path in tmp_path.iterdir()] == ["base.partial"]
        again = start(tmp_path / "base", sixty)
        assert again.checkpoint.fingerprint == finished.checkpoint.fingerprint
        assert again.masking.training == []

    @pytest.mark.parametrize(
        ("changes", "difference"),
        [
            pytest.param({"learning_rate": 2e-3}, "learning_rate: 0.001 there, 0.002 now", id="learning_rate"),
            pytest.param({"epochs": 3}, "epochs: 2.0 there, 3.0 now", id="epochs"),
        ],
    )
    def test_other_settings_are_refused_naming_the_difference(self, sixty, tmp_path, changes, difference):
        cut_off(tmp_path / "base", sixty, step=1)
        message = rf"base.partial holds an unfinished run with other settings .*{difference}.*overwrite=True"
        with pytest.raises(FileExistsError, match=message):
            gf.pretrain(sixty, config(**changes), out=tmp_path / "base")

    def test_another_base_is_refused(self, sixty, untrained, tmp_path):
        cut_off(tmp_path / "base", sixty, step=1)
        with pytest.raises(FileExistsError, match=r"other settings \(base: None there, '[0-9a-f]{64}' now\)"):
            gf.pretrain(sixty, config(), out=tmp_path / "base", base=untrained)

    def test_other_cells_are_refused(self, sixty, tmp_path):
        cut_off(tmp_path / "base", sixty, step=1)
        with pytest.raises(FileExistsError, match=r"other settings \(cells: "):
            gf.pretrain(sixty.select(range(30)), config(), out=tmp_path / "base")

    def test_overwriting_drops_the_unfinished_run(self, sixty, tmp_path):
        cut_off(tmp_path / "base", sixty, step=STEPS_AN_EPOCH + 1)
        anew = start(tmp_path / "base", sixty, config(epochs=1), overwrite=True)
        assert [entry["step"] for entry in anew.log if "loss" in entry] == list(range(1, STEPS_AN_EPOCH + 1))
        assert list(tmp_path.iterdir()) == [tmp_path / "base"]


class TestOutput:
    def test_an_output_that_exists_is_refused_before_the_work(self, sixty, finished):
        before = contents(finished.folder)
        with pytest.raises(FileExistsError, match=r"base already exists. Choose another output, .*overwrite=True"):
            gf.pretrain(sixty, config(epochs=1000), out=finished.folder)
        assert contents(finished.folder) == before
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
    @pytest.mark.parametrize(
        ("recipe", "published"),
        [
            pytest.param("V1", ("V1-10M", 12, 1e-3, "linear", 10_000, 0.001), id="V1"),
            pytest.param("V2", ("V2-104M", 18, 2e-4, "cosine", 0.007, 0.001), id="V2"),
        ],
    )
    def test_a_recipe_is_the_published_one(self, recipe, published):
        found = gf.PretrainConfig(training={"recipe": recipe})
        names = ("size", "batch_size", "learning_rate", "decay", "warmup_steps", "weight_decay")
        assert tuple(setting(found, name) for name in names) == published
        assert (found.training.epochs, found.mask_probability, found.held_out) == (3, 0.15, 0.05)

    def test_the_recipe_of_the_v1_series_is_the_default(self):
        assert gf.PretrainConfig() == gf.PretrainConfig(training={"recipe": "V1"})

    @pytest.mark.parametrize("recipe", ["V1", "V2"])
    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("size", "tiny"),
            ("batch_size", 3),
            ("learning_rate", 0.5),
            ("decay", "constant_with_warmup"),
            ("warmup_steps", 0),
            ("weight_decay", 0.0),
        ],
    )
    def test_what_is_given_wins_over_the_recipe(self, recipe, field, value):
        plain = gf.PretrainConfig(training={"recipe": recipe})
        changed = with_settings(plain, **{field: value})
        names = ("size", "batch_size", "learning_rate", "decay", "warmup_steps", "weight_decay")
        expected = {name: setting(plain, name) for name in names} | {field: value}
        assert {name: setting(changed, name) for name in names} == expected

    def test_an_unknown_recipe_is_refused(self):
        with pytest.raises(ConfigError, match=r"training.recipe must be one of 'V1', 'V2', found 'V3'"):
            gf.PretrainConfig(training={"recipe": "V3"})

    def test_fields_of_the_network_win_over_the_size(self, sixty, tmp_path):
        changes = {"num_hidden_layers": 1, "hidden_size": 32, "hidden_dropout_prob": 0.0, "layer_norm_eps": 1e-6}
        out = tmp_path / "base"
        gf.pretrain(sixty, config(network=changes, trainer={"max_steps": 1}, warmup_steps=0), out=out)
        opened = gf.Checkpoint.from_pretrained(out).model
        assert {name: getattr(opened.config, name) for name in changes} == changes
        assert len(opened.bert.encoder.layer) == 1
        assert opened.bert.embeddings.word_embeddings.weight.shape[1] == 32

    @pytest.mark.parametrize(
        ("network", "message"),
        [
            pytest.param(
                {"hiden_size": 32}, "BertConfig has no field 'hiden_size'.*hidden_size", id="unknown_with_the_nearest"
            ),
            pytest.param(
                {"hidden_size": 65}, "hidden_size 65 is no multiple of num_attention_heads", id="not_divisible"
            ),
        ],
    )
    def test_a_network_that_cannot_be_is_refused_and_leaves_nothing(self, sixty, tmp_path, network, message):
        with pytest.raises(ConfigError, match=message):
            gf.pretrain(sixty, config(network=network), out=tmp_path / "base")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("field", "value", "bound"),
        [
            ("mask_probability", 0, "between 0 and 1"),
            ("mask_probability", 1.5, "between 0 and 1"),
            ("held_out", 0, "between 0 and 1"),
            ("held_out", 1, "between 0 and 1"),
        ],
    )
    def test_a_value_out_of_bounds_is_named_with_its_bound(self, field, value, bound):
        with pytest.raises(ConfigError, match=f"PretrainConfig.{field} must be {bound}, found {value!r}"):
            config(**{field: value})

    def test_a_value_of_a_section_out_of_bounds_is_named_with_the_section(self):
        with pytest.raises(ConfigError, match=r"training\.epochs must be above 0, found 0"):
            config(epochs=0)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            pytest.param({"size": "V3-1B"}, "size must be one of 'tiny', .*found 'V3-1B'", id="unknown_size"),
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


FEW = np.arange(10)


class TestHeldOut:
    @pytest.fixture
    def masked(self, sixty: gf.TokenizedDataset) -> list[Masked]:
        return [masked_cell(sixty, row, module._HELD_OUT_EPOCH, config()) for row in range(len(FEW))]

    @pytest.fixture
    def held_out(self, sixty: gf.TokenizedDataset, monkeypatch) -> HeldOut:
        """Ten cells in several batches."""
        monkeypatch.setattr(reading, "MAX_TOKENS", 2 * 192)
        return HeldOut(sixty, FEW, config())

    def test_every_masked_gene_weighs_the_same(self, held_out, masked, untrained):
        assert held_out.n_masked == len(hidden_genes(masked))
        stock = BertForMaskedLM(untrained.model.config).eval()
        stock.load_state_dict(untrained.model.state_dict())
        found = held_out.scores(untrained.model)
        assert list(found) == SCORES
        np.testing.assert_allclose(list(found.values()), slow_scores(stock, masked), rtol=1e-5)

    def test_a_model_that_knows_better_has_better_scores(self, held_out, finished, untrained):
        """Scores that could not move would pass the others."""
        after, before = held_out.scores(finished.checkpoint.model), held_out.scores(untrained.model)
        assert after["loss"] < before["loss"]
        assert after["top1"] <= after["top5"]

    def test_perplexity_is_the_exponential_of_the_loss(self, held_out, untrained):
        found = held_out.scores(untrained.model)
        np.testing.assert_allclose(found["perplexity"], np.exp(found["loss"]))

    def test_the_scores_are_the_same_twice(self, held_out, untrained):
        assert held_out.scores(untrained.model) == held_out.scores(untrained.model)

    def test_how_cells_are_batched_does_not_matter(self, held_out, sixty, untrained, monkeypatch):
        monkeypatch.setattr(reading, "MAX_TOKENS", 2)
        single = HeldOut(sixty, FEW, config()).scores(untrained.model)
        np.testing.assert_allclose(list(single.values()), list(held_out.scores(untrained.model).values()), rtol=1e-5)

    @pytest.mark.parametrize("training", [True, False])
    def test_the_mode_of_the_model_is_as_before_afterwards(self, held_out, finished, training):
        model = gf.Checkpoint.from_pretrained(finished.folder).model.train(training)
        held_out.scores(model)
        assert model.training == training

    def test_the_same_seed_masks_the_same_genes(self, sixty, untrained):
        once, again, other = (HeldOut(sixty, FEW, config(seed=seed)).scores(untrained.model) for seed in (0, 0, 1))
        assert once == again != other

    @pytest.mark.parametrize("by_rank", [False, True], ids=["by_frequency", "by_rank"])
    def test_a_guess_is_scored_as_by_hand(self, held_out, masked, sixty, by_rank):
        rows = np.arange(10, 60)
        guess = Guess(counts_by_rank(sixty, rows), sixty.vocabulary, by_rank=by_rank)
        training = [tuple(sixty[row].tolist()) for row in rows]
        expected = slow_guess(training, masked, sixty.vocabulary, by_rank)
        np.testing.assert_allclose(list(held_out.scores(guess).values()), expected, rtol=1e-9)


class TestGuess:
    def test_every_token_is_counted_once_at_its_rank(self, sixty):
        counts = counts_by_rank(sixty, FEW)
        expected = np.zeros_like(counts)
        for row in FEW:
            for rank, token in enumerate(sixty[row]):
                expected[math.floor(8 * math.log2(1 + rank)), token] += 1
        np.testing.assert_array_equal(counts, expected)
        assert counts.sum() == sixty.lengths[FEW].sum()

    @pytest.mark.parametrize("by_rank", [False, True], ids=["by_frequency", "by_rank"])
    def test_the_chances_of_all_genes_are_one_and_special_tokens_are_impossible(self, sixty, by_rank):
        vocabulary = sixty.vocabulary
        guess = Guess(counts_by_rank(sixty, FEW), vocabulary, by_rank=by_rank)
        for rank in (0, 1, 7, 63):
            chances = np.array(
                [
                    math.exp(-guess.judge(torch.tensor([rank]), torch.tensor([token]))[0])
                    for token in range(vocabulary.size)
                ]
            )
            assert not chances[list(vocabulary.special_tokens.values())].any()
            assert (chances[vocabulary.tokens] > 0).all()
            np.testing.assert_allclose(chances.sum(), 1)

    def test_guessing_by_rank_knows_what_comes_first(self, sixty):
        """Where one gene is always at the top, only the guess that looks at the rank is sure of it."""
        vocabulary = sixty.vocabulary
        first, second = vocabulary.tokens[:2]
        counts = counts_by_rank(sixty, FEW) * 0
        counts[0, first], counts[8, second] = 100_000, 100_000
        ranks, target = torch.tensor([0]), torch.tensor([first])
        by_rank, by_frequency = (
            Guess(counts, vocabulary, by_rank=by).judge(ranks, target)[0].sum() for by in (True, False)
        )
        assert by_rank < 0.1 < np.log(1.9) < by_frequency
