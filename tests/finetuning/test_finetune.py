"""Fine-tuning on 120 blood cells of three types: what it writes, what it leaves alone, what it refuses."""

import dataclasses
import json
import logging
import re
from pathlib import Path
from typing import NamedTuple

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import geneformer_repro as gf
from geneformer_repro.batching import collate
from geneformer_repro.config import ConfigError
from geneformer_repro.finetuning import finetune as module
from geneformer_repro.finetuning.baselines import raw_counts
from geneformer_repro.finetuning.finetune import (
    FINE_TUNED,
    MAJORITY,
    ON_COUNTS,
    ON_EMBEDDING,
    RANDOM,
    FinetuneConfig,
    finetune,
)
from geneformer_repro.finetuning.metrics import scores
from geneformer_repro.model import MaskedGeneModel, bert_config

METHODS = [FINE_TUNED, MAJORITY, ON_COUNTS, ON_EMBEDDING, RANDOM]
TYPES = {"CD14+ Monocyte": 45, "CD19+ B": 45, "CD56+ NK": 30}
FILES = {
    "config.json", "model.safetensors", "vocabulary.tsv", "vocabulary.json", "head.json", "provenance.json",
    "log.jsonl", "methods.tsv", "confusion.tsv", "predictions.tsv", "split.tsv", "history.tsv",
    "confusion.png", "methods.png",
}  # fmt: skip
OBS = ["cell_type", "donor", "partly", "number", "gap", "large", "flag", "same", "unlabelled", "rare"]


@pytest.fixture(scope="module")
def counts_file(_pbmc, tmp_path_factory):
    """120 cells of three types with columns of every kind, as a file."""
    types = _pbmc.obs["cell_type"].to_numpy()
    few = _pbmc[np.concatenate([np.flatnonzero(types == name)[:n] for name, n in TYPES.items()])].copy()
    types, code = few.obs["cell_type"].to_numpy(), few.obs["cell_type"].map(dict(zip(TYPES, range(3)))).to_numpy()
    i = np.arange(few.n_obs)
    few.obs["donor"] = [f"donor{row % 6}" for row in i]
    few.obs["partly"] = pd.Series(types, index=few.obs_names).where(i % 4 > 0)
    few.obs["number"] = code
    few.obs["gap"] = np.where(i % 4 > 0, code.astype(float), np.nan)
    few.obs["large"] = np.where(i % 4 > 0, 1_000_001.0 + code, np.nan)
    few.obs["flag"] = code == 1
    few.obs["same"] = "blood"
    few.obs["unlabelled"] = np.nan
    few.obs["rare"] = np.where(i % 60 == 0, "odd", types)
    path = tmp_path_factory.mktemp("counts") / "few.h5ad"
    few.write_h5ad(path)
    return path


@pytest.fixture
def adata(counts_file):
    return ad.read_h5ad(counts_file)


@pytest.fixture(scope="module")
def cells(counts_file):
    return gf.tokenize(counts_file, gf.Vocabulary.fit(counts_file, max_length=34), obs=OBS)


@pytest.fixture(scope="module")
def in_memory(cells, counts_file):
    """The same cells, without a trace of a file."""
    return gf.tokenize(ad.read_h5ad(counts_file), cells.vocabulary, obs=OBS)


def untrained(vocabulary, initializer_range):
    shape = bert_config("tiny", vocabulary)
    shape.initializer_range = initializer_range
    with torch.random.fork_rng():
        torch.manual_seed(7)  # not the seed of the runs, whose random network would be this one
        return gf.Checkpoint(MaskedGeneModel(shape).eval(), vocabulary, name="checkpoint base")


@pytest.fixture(scope="module")
def base(cells):
    """A network with weights large enough to make cells differ."""
    return untrained(cells.vocabulary, 0.2)


def config(**changes):
    chosen = {"target": "cell_type", "epochs": 2, "batch_size": 21, "learning_rate": 1e-3}
    return FinetuneConfig(**chosen | changes)


def quick(**changes):
    """Two steps and no baselines: for what is decided before or after training."""
    return config(**{"epochs": 1, "batch_size": 64, "baselines": False} | changes)


class Run(NamedTuple):
    result: gf.Finetuned
    out: Path
    weights_before: dict

    def read(self, name, **options):
        return pd.read_csv(self.out / f"{name}.tsv", sep="\t", **options)


@pytest.fixture(scope="module")
def run(base, cells, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "clf"
    weights = {name: weight.clone() for name, weight in base.model.state_dict().items()}
    return Run(finetune(base, cells, config(), out=out), out, weights)


def labelled(cells, **changes):
    """What a run would learn, without the run."""
    return module._labelled(cells, quick(**changes))


# What comes back, and what is written


def test_every_promised_file_is_written_and_nothing_is_left_beside_it(run):
    assert {file.name for file in run.out.iterdir()} == FILES
    assert [path.name for path in run.out.parent.iterdir()] == ["clf"]


def test_the_table_has_every_method_in_order_with_intervals(run):
    assert run.result.methods.index.tolist() == METHODS
    assert run.result.methods.index.name == "method"
    assert run.result.methods.columns.tolist() == [
        f"{score}{end}" for score in ("accuracy", "macro_f1") for end in ("", "_low", "_high")
    ]
    assert run.result.methods.notna().all(axis=None)


def test_every_row_of_the_table_is_the_score_of_its_predictions(run):
    predictions, methods = run.result.predictions, run.result.methods
    assert predictions.columns.tolist() == ["cell", "true", *METHODS]
    for method in METHODS:
        expected = scores(predictions["true"].to_numpy(), predictions[method].to_numpy())
        assert methods.loc[method, ["accuracy", "macro_f1"]].to_dict() == pytest.approx(expected)


def test_predictions_are_of_the_test_cells_with_their_labels(run, cells):
    split, predictions = run.result.split, run.result.predictions
    assert predictions["cell"].tolist() == split["cell"][split["part"] == "test"].tolist()
    assert predictions["true"].tolist() == cells.obs.loc[predictions["cell"], "cell_type"].tolist()


def test_the_majority_row_predicts_the_commonest_class_of_the_training_cells(run, cells):
    trained = run.result.split["cell"][run.result.split["part"] == "train"]
    assert cells.obs.loc[trained, "cell_type"].mode().isin(run.result.predictions[MAJORITY].unique()).any()
    assert run.result.predictions[MAJORITY].nunique() == 1


def test_the_split_covers_every_cell_once(run, cells):
    written = run.read("split")
    assert sorted(written["cell"]) == sorted(cells.cell_names)
    assert written["part"].value_counts().to_dict() == {"train": 84, "test": 24, "validation": 12}


def test_the_confusion_matrix_sums_to_the_test_cells_and_its_diagonal_to_the_accuracy(run):
    table = run.result.confusion
    assert table.to_numpy().sum() == 24
    assert np.trace(table) / 24 == pytest.approx(run.result.methods.loc[FINE_TUNED, "accuracy"])
    assert table.index.tolist() == table.columns.tolist() == sorted(TYPES)


@pytest.mark.parametrize("name", ["methods", "confusion", "predictions", "split", "history"])
def test_the_files_hold_what_was_returned(run, name):
    returned = getattr(run.result, name)
    written = run.read(name, index_col=0) if name in ("methods", "confusion") else run.read(name)
    pd.testing.assert_frame_equal(written, returned, check_names=False)


def test_history_starts_before_training_and_scores_every_epoch(run):
    scored = run.result.history.dropna(subset=["eval_macro_f1"])
    np.testing.assert_array_equal(scored["epoch"].fillna(0), [0, 1, 2])
    assert run.result.history["loss"].notna().any()


def test_the_log_has_a_line_of_json_for_each_entry(run):
    began, *entries = [json.loads(line) for line in (run.out / "log.jsonl").read_text().splitlines()]
    assert began["engine"] == "one process"
    assert len(entries) == len(run.result.history)
    assert {entry["event"] for entry in entries} == {"fine-tune"}


def test_provenance_says_what_made_the_classifier(run, base, cells):
    record = json.loads((run.out / "provenance.json").read_text())
    assert record["step"] == "finetune"
    assert record["config"] == dataclasses.asdict(config())
    assert record["inputs"] == {"cells": cells.fingerprint, "checkpoint": base.fingerprint}
    expected = run.result.methods.loc[FINE_TUNED].to_dict()
    assert record["result"] == pytest.approx(expected, abs=1e-6)


def predict(checkpoint, cells):
    """One cell at a time."""
    logits = [checkpoint.model(**collate([cell], cells.vocabulary)).logits[0] for cell in cells]
    return np.array([checkpoint.head.classes[int(row.argmax())] for row in logits])


def test_the_folder_reopens_as_the_classifier_with_the_same_predictions(run, cells):
    reopened = gf.Checkpoint.from_pretrained(run.out)
    tested = run.read("predictions")
    rows = pd.Index(cells.cell_names).get_indexer(tested["cell"])
    with torch.inference_mode():
        np.testing.assert_array_equal(predict(reopened, cells.select(rows)), tested[FINE_TUNED])
    assert reopened.head == run.result.checkpoint.head
    assert (reopened.head.target, reopened.head.classes) == ("cell_type", tuple(sorted(TYPES)))
    assert reopened.fingerprint == run.result.checkpoint.fingerprint
    assert reopened.vocabulary == cells.vocabulary


@pytest.fixture(scope="module")
def longer(cells, tmp_path_factory):
    """Enough training to learn something, from weights as small as pretraining starts from."""
    settings = config(epochs=8, batch_size=8, learning_rate=2e-3, baselines=False)
    return finetune(untrained(cells.vocabulary, 0.02), cells, settings, out=tmp_path_factory.mktemp("longer") / "clf")


def test_training_tells_real_cell_types_apart(longer):
    assert longer.methods.loc[FINE_TUNED, "accuracy"] > 0.8


def test_the_epoch_with_the_best_validation_score_is_kept(longer, cells):
    validated = longer.split["cell"][longer.split["part"] == "validation"]
    rows = np.flatnonzero(np.isin(cells.cell_names, validated))
    found = scores(cells.obs["cell_type"].to_numpy()[rows].astype(str), predict(longer.checkpoint, cells.select(rows)))
    scored = longer.history[longer.history["epoch"] > 0].dropna(subset=["eval_macro_f1"])
    assert found["macro_f1"] == pytest.approx(scored["eval_macro_f1"].max())
    assert scored["eval_macro_f1"].iloc[-1] < found["macro_f1"], "the last epoch was the best, so nothing was tested"


# What it starts from


def test_the_base_is_left_as_it_is(run, base):
    assert all(torch.equal(weight, run.weights_before[name]) for name, weight in base.model.state_dict().items())
    assert not base.model.training


class StoppedError(RuntimeError):
    """Stands for a crash."""


@pytest.fixture(scope="module")
def trained_networks(base, cells, tmp_path_factory):
    """Weights of both networks after training at next to no learning rate, as a run that crashed at its end leaves."""

    def crash(*_):
        raise StoppedError

    folder = tmp_path_factory.mktemp("crashed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_write", crash)
        with pytest.raises(StoppedError):
            finetune(base, cells, quick(learning_rate=1e-12, baselines=True), out=folder / "clf")
    return {
        name: load_file(next((folder / "clf.partial" / name).glob("checkpoint-*/model.safetensors")))
        for name in ("fine-tuned", "random")
    }


def test_the_fine_tuned_encoder_starts_from_the_checkpoint_and_the_random_one_does_not(trained_networks, base):
    for name, weight in base.model.bert.named_parameters(prefix="bert"):
        if weight.dim() == 1:  # biases and norms start alike everywhere
            continue
        torch.testing.assert_close(trained_networks["fine-tuned"][name], weight, atol=1e-6, rtol=0)
        assert not torch.allclose(trained_networks["random"][name], weight, atol=1e-3)


def test_the_random_network_has_the_same_shape(trained_networks):
    shapes = [{name: weight.shape for name, weight in network.items()} for network in trained_networks.values()]
    assert shapes[0] == shapes[1]


def test_a_classifier_can_be_the_start_as_well(run, cells, tmp_path):
    result = finetune(run.result.checkpoint, cells, quick(target="flag"), out=tmp_path / "clf")
    assert result.checkpoint.head.classes == ("False", "True")


def test_pooling_is_written_with_the_head(run, base, cells, tmp_path):
    finetune(base, cells, quick(pooling="cls"), out=tmp_path / "clf")
    poolings = [gf.Checkpoint.from_pretrained(out).model.pooling for out in (run.out, tmp_path / "clf")]
    assert poolings == ["mean", "cls"]


# The same again


@pytest.fixture(scope="module")
def alone(base, cells, tmp_path_factory):
    """The same run without baselines."""
    return finetune(base, cells, config(baselines=False), out=tmp_path_factory.mktemp("alone") / "clf")


def test_the_same_seed_gives_the_same_model_with_or_without_baselines(run, alone):
    assert alone.checkpoint.fingerprint == run.result.checkpoint.fingerprint
    pd.testing.assert_frame_equal(alone.methods, run.result.methods.loc[[FINE_TUNED]])
    pd.testing.assert_frame_equal(alone.predictions, run.result.predictions[["cell", "true", FINE_TUNED]])
    pd.testing.assert_frame_equal(alone.split, run.result.split)


@pytest.mark.parametrize(
    ("stop_at", "baselines"),
    [pytest.param(6, False, id="in an epoch"), pytest.param(14, True, id="in the random network")],
)
def test_a_run_that_was_cut_off_ends_like_an_uninterrupted_one(
    run, alone, base, cells, tmp_path, monkeypatch, stop_at, baselines
):
    with monkeypatch.context() as patch:
        stop_training_after(patch, stop_at)
        with pytest.raises(StoppedError):
            finetune(base, cells, config(baselines=baselines), out=tmp_path / "clf")
    assert not (tmp_path / "clf").exists()
    resumed = finetune(base, cells, config(baselines=baselines), out=tmp_path / "clf")
    whole = run.result if baselines else alone
    pd.testing.assert_frame_equal(resumed.methods, whole.methods)
    pd.testing.assert_frame_equal(resumed.predictions, whole.predictions)
    assert resumed.checkpoint.fingerprint == whole.checkpoint.fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["clf"]


def stop_training_after(patch, n_steps):
    from geneformer_repro import training

    step, done = training._Trainer.training_step, []

    def stopping(*inputs, **options):
        if len(done) == n_steps:
            raise StoppedError
        done.append(None)
        return step(*inputs, **options)

    patch.setattr(training._Trainer, "training_step", stopping)


@pytest.fixture
def cut_off(base, cells, tmp_path, monkeypatch):
    """Folder name of a run that was cut off in its second step."""
    with monkeypatch.context() as patch:
        stop_training_after(patch, 1)
        with pytest.raises(StoppedError):
            finetune(base, cells, quick(), out=tmp_path / "clf")
    return tmp_path / "clf"


def test_an_unfinished_run_with_other_settings_is_refused_with_the_difference(cut_off, base, cells):
    with pytest.raises(FileExistsError, match=r"clf\.partial holds an unfinished run.*0\.01.*overwrite=True"):
        finetune(base, cells, quick(learning_rate=0.01), out=cut_off)


def test_an_unfinished_run_on_other_cells_is_refused(cut_off, base, cells):
    with pytest.raises(FileExistsError, match="cells"):
        finetune(base, cells.select(np.arange(0, 120, 2)), quick(), out=cut_off)


def test_an_unfinished_run_with_other_settings_gives_way_to_overwrite(cut_off, base, cells):
    finetune(base, cells, quick(learning_rate=0.01), out=cut_off, overwrite=True)
    assert [path.name for path in cut_off.parent.iterdir()] == ["clf"]


def test_a_mistake_in_the_settings_does_not_stand_in_the_way_of_the_corrected_call(base, cells, tmp_path):
    with pytest.raises(ConfigError, match="warmup_steps is 1000 but the run has only 2 steps"):
        finetune(base, cells, quick(warmup_steps=1000), out=tmp_path / "clf")
    finetune(base, cells, quick(warmup_steps=0.1), out=tmp_path / "clf")


def test_an_output_that_exists_is_refused_and_left_alone(run, base, cells):
    before = (run.out / "methods.tsv").stat().st_mtime_ns
    with pytest.raises(FileExistsError, match=r"clf already exists.*overwrite=True"):
        finetune(base, cells, quick(), out=run.out)
    assert (run.out / "methods.tsv").stat().st_mtime_ns == before


def test_overwrite_replaces_a_result(base, cells, tmp_path):
    (tmp_path / "clf").mkdir()
    (tmp_path / "clf" / "provenance.json").write_text("{}")
    finetune(base, cells, quick(target="flag"), out=tmp_path / "clf", overwrite=True)
    assert gf.Checkpoint.from_pretrained(tmp_path / "clf").head.target == "flag"


def test_overwrite_never_replaces_a_folder_that_is_not_a_result(base, cells, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("precious")
    with pytest.raises(FileExistsError, match=r"folder without provenance\.json"):
        finetune(base, cells, quick(), out=tmp_path / "thesis", overwrite=True)
    assert (tmp_path / "thesis" / "chapter1.txt").read_text() == "precious"


# Labels


@pytest.mark.parametrize(
    ("target", "classes"),
    [
        pytest.param("number", ("0", "1", "2"), id="whole numbers"),
        pytest.param("gap", ("0", "1", "2"), id="whole numbers with a gap"),
        pytest.param("large", ("1000001", "1000002", "1000003"), id="large whole numbers with a gap"),
        pytest.param("flag", ("False", "True"), id="booleans"),
        pytest.param("partly", tuple(sorted(TYPES)), id="text with a gap"),
    ],
)
def test_labels_of_any_kind_become_class_names(cells, target, classes):
    task = labelled(cells, target=target)
    assert task.classes == classes
    assert set(task.labels) == set(classes)


def test_cells_without_a_label_are_left_out_and_counted_in_the_log(base, cells, tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="geneformer_repro"):
        result = finetune(base, cells, quick(target="gap"), out=tmp_path / "clf")
    assert sorted(result.split["cell"]) == sorted(cells.cell_names[np.arange(120) % 4 > 0])
    assert result.predictions["true"].tolist() == [
        f"{label:.0f}" for label in cells.obs.loc[result.predictions["cell"], "number"]
    ]
    assert "gap: 30 cells have no label" in caplog.text


def test_min_cells_leaves_rare_classes_out_and_says_which(cells, caplog):
    with caplog.at_level(logging.INFO, logger="geneformer_repro"):
        task = labelled(cells, target="rare", min_cells=3)
    assert task.classes == tuple(sorted(TYPES))
    assert sorted(task.cells.cell_names) == sorted(np.delete(cells.cell_names, [0, 60]))
    assert "2 are of classes with fewer than 3 cells (odd); left out" in caplog.text


def test_min_cells_is_the_smallest_number_that_stays_and_two_classes_are_enough(cells):
    assert labelled(cells, min_cells=30).classes == tuple(sorted(TYPES))
    assert labelled(cells, min_cells=31).classes == ("CD14+ Monocyte", "CD19+ B")


def test_a_class_too_rare_to_split_is_refused_with_the_way_out(base, cells, tmp_path):
    with pytest.raises(gf.InputError, match=r"at least 3 cells.*'odd' \(2\).*min_cells=3"):
        finetune(base, cells, quick(target="rare"), out=tmp_path / "clf")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        pytest.param("same", r"'same' has 1 class \('blood'\) among 120 cells; at least two", id="one class"),
        pytest.param("unlabelled", r"'unlabelled' has 0 classes \(all missing\)", id="no label"),
    ],
)
def test_fewer_than_two_classes_are_refused(base, cells, tmp_path, target, message):
    with pytest.raises(gf.InputError, match=message):
        finetune(base, cells, quick(target=target), out=tmp_path / "clf")


@pytest.mark.parametrize("field", ["target", "group"])
def test_a_missing_column_is_refused_with_the_nearest_name(base, cells, tmp_path, field):
    with pytest.raises(gf.InputError, match=r"no obs column 'cell_typ'\. Did you mean 'cell_type'\?"):
        finetune(base, cells, quick(**{field: "cell_typ"}), out=tmp_path / "clf")
    assert not list(tmp_path.iterdir())


def test_groups_are_never_split_and_are_what_the_intervals_resample(base, cells, tmp_path, monkeypatch):
    given = []
    real = module.scores_with_intervals
    monkeypatch.setattr(
        module,
        "scores_with_intervals",
        lambda true, predicted, *, groups, rng: given.append(groups) or real(true, predicted, groups=groups, rng=rng),
    )
    result = finetune(base, cells, quick(group="donor"), out=tmp_path / "clf")
    donors = cells.obs.loc[result.split["cell"], "donor"].groupby(result.split["part"].to_numpy()).unique()
    assert sorted(np.concatenate(donors.tolist())) == [f"donor{i}" for i in range(6)]
    np.testing.assert_array_equal(given[0], cells.obs.loc[result.predictions["cell"], "donor"])


# Baselines and their counts


def test_without_counts_at_hand_their_row_is_empty_and_the_log_says_why(base, in_memory, tmp_path, caplog):
    result = finetune(base, in_memory, quick(baselines=True), out=tmp_path / "clf")
    assert result.methods.index.tolist() == METHODS
    assert result.methods.isna().all(axis=1).tolist() == [method == ON_COUNTS for method in METHODS]
    assert ON_COUNTS not in result.predictions
    assert re.search(r"No raw counts at hand \(the cells were tokenised in memory\).*give counts=", caplog.text)


@pytest.mark.parametrize("change", ["gone", "other"])
def test_a_file_of_counts_that_is_gone_or_has_changed_is_not_used(cells, adata, tmp_path, caplog, change):
    path = tmp_path / "moved.h5ad"
    adata.write_h5ad(path)
    tokenized = gf.tokenize(path, cells.vocabulary)
    path.unlink()
    if change == "other":
        adata[::-1].write_h5ad(path)
    assert raw_counts(tokenized) is None
    assert re.search(r"No raw counts at hand \(.*moved\.h5ad", caplog.text)


def test_counts_given_in_any_order_give_the_row_of_the_file(run, base, in_memory, adata, tmp_path):
    shuffled = adata[np.random.default_rng(0).permutation(adata.n_obs)].copy()
    result = finetune(base, in_memory, quick(baselines=True), out=tmp_path / "clf", counts=shuffled)
    pd.testing.assert_series_equal(result.predictions[ON_COUNTS], run.result.predictions[ON_COUNTS])


@pytest.mark.parametrize("where", ["given", "recorded"])
def test_the_layer_that_was_tokenised_is_the_layer_of_the_baseline(cells, adata, tmp_path, where):
    counts = adata.X.copy()
    adata.layers["counts"], adata.X = counts, counts / 2
    adata.write_h5ad(tmp_path / "layered.h5ad")
    tokenized = gf.tokenize(tmp_path / "layered.h5ad", cells.vocabulary, layer="counts")
    found = raw_counts(tokenized, adata if where == "given" else None)
    np.testing.assert_array_equal(found.toarray(), counts.toarray())


def test_counts_of_other_cells_are_refused(base, cells, adata, tmp_path):
    with pytest.raises(gf.InputError, match="60 of 120 cells of the dataset are not in it"):
        finetune(base, cells, quick(baselines=True), out=tmp_path / "clf", counts=adata[:60].copy())


# What does not belong together


def test_cells_of_another_vocabulary_are_refused_naming_both_sides(base, pbmc, tmp_path):
    others = gf.tokenize(pbmc, gf.Vocabulary.fit(pbmc[:, 1:].copy(), max_length=34), obs=["cell_type"])
    with pytest.raises(gf.VocabularyMismatchError, match=r"the dataset and checkpoint base.*first differing gene ENSG"):
        finetune(base, others, quick(), out=tmp_path / "clf")
    assert not list(tmp_path.iterdir())


def test_cls_pooling_is_refused_where_cells_have_no_cls(pbmc, tmp_path):
    vocabulary = gf.Vocabulary.fit(pbmc, series="V1", max_length=64)
    v1 = gf.tokenize(pbmc[:30].copy(), vocabulary, obs=["cell_type"])
    with pytest.raises(gf.InputError, match="pooling='cls' needs cells that begin with <cls>"):
        finetune(untrained(vocabulary, 0.02), v1, quick(pooling="cls"), out=tmp_path / "clf")


# Settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"validation": 0.0}, r"FinetuneConfig\.validation must be between 0 and 1, found 0", id="too few"),
        pytest.param({"test": 0.9}, r"\.test must be between 0 and 1 - validation, found 0\.9", id="too many"),
        pytest.param({"test": 0.0}, r"FinetuneConfig\.test must be", id="no test cells"),
        pytest.param({"epochs": 0}, r"FinetuneConfig\.epochs must be above 0, found 0", id="epochs"),
        pytest.param({"batch_size": 0}, r"FinetuneConfig\.batch_size must be at least 1", id="batch_size"),
        pytest.param({"learning_rate": 0.0}, r"FinetuneConfig\.learning_rate must be above 0", id="learning_rate"),
        pytest.param({"warmup_steps": -1}, r"FinetuneConfig\.warmup_steps must be at least 0", id="warmup_steps"),
    ],
)  # fmt: skip
def test_settings_out_of_bounds_are_refused_by_name(changes, message):
    with pytest.raises(ConfigError, match=message):
        config(**changes)


def test_the_target_must_be_named():
    with pytest.raises(TypeError, match="target"):
        FinetuneConfig()


def test_a_config_cannot_be_changed_afterwards():
    with pytest.raises(dataclasses.FrozenInstanceError):
        config().target = "other"


def test_cells_without_a_group_are_refused_by_name(checkpoint, pbmc, vocabulary, tmp_path):
    pbmc.obs["donor"] = pd.array(["a", "b", None, "c"] * 175, dtype="string")
    cells = gf.tokenize(pbmc, vocabulary, obs=["cell_type", "donor"])
    config = gf.FinetuneConfig(target="cell_type", group="donor")
    message = rf"'donor' says no group for 175 of 700 labelled cells \(first: '{cells.cell_names[2]}'\)"
    with pytest.raises(gf.InputError, match=message):
        gf.finetune(checkpoint, cells, config, out=tmp_path / "clf")
