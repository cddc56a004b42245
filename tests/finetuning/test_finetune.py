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
from sklearn.dummy import DummyClassifier

import geneformer_repro as gf
from geneformer_repro.batching import end_to_end
from geneformer_repro.config import ConfigError, with_settings
from geneformer_repro.finetuning import curve as curves
from geneformer_repro.finetuning import experiment, networks, results
from geneformer_repro.finetuning import finetune as module
from geneformer_repro.finetuning.experiment import Experiment
from geneformer_repro.finetuning.finetune import finetune
from geneformer_repro.finetuning.kinds import classes, numbers
from geneformer_repro.finetuning.kinds.class_scores import CLASS_SCORES
from geneformer_repro.finetuning.kinds.classes import CLASS_METHODS
from geneformer_repro.finetuning.kinds.kind import FINE_TUNED, RANDOM
from geneformer_repro.finetuning.kinds.numbers import NUMBER_METHODS, number_scores
from geneformer_repro.finetuning.problems import problem as problems
from geneformer_repro.finetuning.problems.cells import CellProblem
from geneformer_repro.finetuning.settings.cells import FinetuneConfig
from geneformer_repro.finetuning.splits import split_table
from geneformer_repro.in_silico.gene_baselines import gene_baselines
from geneformer_repro.targets import Number
from geneformer_repro.tokenizer.counts import digest_of, raw_counts

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("few_trees", "few_resamples")]

OBS = ["cell_type", "donor", "size"]
METHODS = [FINE_TUNED, *CLASS_METHODS, RANDOM]
TWO = ("majority class", "logistic regression, counts")
TYPES = ["CD14+ Monocyte", "CD19+ B", "CD56+ NK"]
PICTURES = {"methods.png", "confusion.png", "per_class.png", "reliability.png"}
TABLES = {f"{name}.tsv" for name in (
    "methods", "confusion", "confusion_intervals", "per_class", "reliability", "probabilities", "predictions", "split",
    "history",
)}  # fmt: skip
MODEL = {
    "config.json", "model.safetensors", "vocabulary.tsv", "vocabulary.json", "head.json", "provenance.json",
    "log.jsonl", "seen_cells.parquet",
}  # fmt: skip


def config(**changes):
    chosen = {"epochs": 2, "batch_size": 21, "learning_rate": 1e-3}
    return with_settings(FinetuneConfig(target="cell_type"), **chosen | changes)


def quick(**changes):
    """Two steps and no baselines: for what is decided before or after training."""
    return config(**{"epochs": 1, "batch_size": 64, "baselines": False} | changes)


@pytest.fixture
def two_methods(monkeypatch):
    """Leave out the slow methods, where the content of the table is not the point."""
    monkeypatch.setattr(classes, "CLASS_METHODS", {name: CLASS_METHODS[name] for name in TWO})


@pytest.fixture(autouse=True)
def quickly(without_pictures):
    """No pictures, but in fixtures of a wider scope, which come before this one."""


class Run(NamedTuple):
    result: gf.Finetuned
    out: Path
    noted: dict
    """What else a test looks at."""

    def read(self, name, **options):
        return pd.read_csv(self.out / f"{name}.tsv", sep="\t", **options)

    @property
    def tested(self):
        return self.cells_in("test")

    def cells_in(self, part):
        return self.result.split["cell"][self.result.split["part"] == part].to_numpy()


@pytest.fixture(scope="module")
def run(base, few, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "clf"
    weights = {name: weight.clone() for name, weight in base.model.state_dict().items()}
    return Run(finetune(base, few, config(), out=out), out, weights)


def rows_of(cells, names):
    return pd.Index(cells.cell_names).get_indexer(names)


# What comes back, and what is written


def test_every_promised_file_is_written_and_nothing_is_left_beside_it(run):
    assert {file.name for file in run.out.iterdir()} == MODEL | TABLES | PICTURES | {"report.html"}
    assert [path.name for path in run.out.parent.iterdir()] == ["clf"]


def test_the_table_has_every_method_in_order_with_intervals(run):
    assert run.result.methods.index.tolist() == METHODS
    assert run.result.methods.index.name == "method"
    assert run.result.methods.columns.tolist() == [
        f"{score}{end}" for score in (*CLASS_SCORES, "macro_f1_vs_best_simple") for end in ("", "_low", "_high")
    ]
    assert run.result.methods.notna().all(axis=None)


def test_every_row_of_the_table_is_the_score_of_its_predictions(run):
    predictions, table = run.result.predictions, run.result.methods
    assert predictions.columns.tolist() == ["cell", "true", *METHODS]
    for method in METHODS:
        accuracy = (predictions["true"] == predictions[method]).mean()
        assert table.loc[method, "accuracy"] == pytest.approx(accuracy)


def test_predictions_are_of_the_test_cells_with_their_labels(run, few):
    predictions = run.result.predictions
    assert predictions["cell"].tolist() == run.tested.tolist()
    assert predictions["true"].tolist() == few.obs.loc[predictions["cell"], "cell_type"].tolist()


def test_the_majority_row_is_that_of_scikit_learn_on_the_training_cells(run, few):
    learned = few.obs.loc[run.cells_in("train"), "cell_type"].astype(str)
    guess = DummyClassifier().fit(np.zeros((len(learned), 1)), learned)
    np.testing.assert_array_equal(run.result.predictions["majority class"], guess.predict(np.zeros((24, 1))))


def test_the_split_covers_every_cell_once(run, few):
    written = run.read("split")
    assert sorted(written["cell"]) == sorted(few.cell_names)
    assert written["part"].value_counts().to_dict() == {"train": 84, "test": 24, "validation": 12}


def test_the_confusion_matrix_sums_to_the_test_cells_and_its_diagonal_to_the_accuracy(run):
    table = run.result.evaluations["cell_type"].confusion
    assert table.to_numpy().sum() == 24
    assert np.trace(table) / 24 == pytest.approx(run.result.methods.loc[FINE_TUNED, "accuracy"])
    assert table.index.tolist() == table.columns.tolist() == TYPES


@pytest.mark.parametrize("name", sorted(table.removesuffix(".tsv") for table in TABLES))
def test_the_files_hold_what_was_returned(run, name):
    holder = run.result if name in ("split", "history") else run.result.evaluations["cell_type"]
    written = run.read(name, index_col=0) if name in ("methods", "confusion", "probabilities") else run.read(name)
    pd.testing.assert_frame_equal(written, getattr(holder, name), check_names=False, check_dtype=False)


def test_history_starts_before_training_and_scores_every_epoch(run):
    scored = run.result.history.dropna(subset=["eval_macro_f1"])
    np.testing.assert_array_equal(scored["epoch"].fillna(0), [0, 1, 2])
    assert run.result.history["loss"].notna().any()


def test_the_log_has_a_line_of_json_for_each_entry(run):
    began, *entries = [json.loads(line) for line in (run.out / "log.jsonl").read_text().splitlines()]
    assert began["engine"] == "one process"
    assert len(entries) == len(run.result.history)
    assert {entry["event"] for entry in entries} == {"fine-tune"}


def test_provenance_says_what_made_the_classifier(run, base, few):
    record = json.loads((run.out / "provenance.json").read_text())
    assert record["step"] == "finetune"
    assert record["config"] == json.loads(json.dumps(dataclasses.asdict(config())))
    assert record["inputs"].items() >= {"cells": few.fingerprint, "checkpoint": base.fingerprint}.items()
    assert record["inputs"].keys() == {"cells", "checkpoint", "labels", "split", "counts"}
    assert record["result"]["cell_type"] == pytest.approx(run.result.methods.loc[FINE_TUNED].to_dict(), abs=1e-6)


@pytest.mark.parametrize("name", sorted(PICTURES))
def test_pictures_are_written(run, name):
    content = (run.out / name).read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) > 5000


def test_the_page_has_every_picture_with_what_it_shows_and_what_it_does_not(run):
    page = (run.out / "report.html").read_text()
    assert re.findall(r"<h2>(.*?)</h2>", page)[:4] == [
        f"cell_type: {title}"
        for title in (
            "methods on the same test cells",
            "which classes are found",
            "which classes are confused",
            "can the probabilities be believed",
        )
    ]
    assert page.count("<img ") == 4
    assert all(f"<td>{method}</td>" in page or f"<th>{method}</th>" in page for method in METHODS)
    assert "95 % bootstrap intervals over 24 cells" in page
    assert f"<p>On the same resamples, {run.result.evaluations['cell_type'].verdict}.</p>" in page


def predicted_by(checkpoint, cells):
    """Outputs, one cell at a time."""
    with torch.inference_mode():
        return torch.cat([checkpoint.model(**end_to_end([cell], cells.vocabulary).inputs).logits for cell in cells])


def test_the_folder_reopens_as_the_classifier_with_the_same_probabilities(run, few):
    reopened = gf.Checkpoint.from_pretrained(run.out)
    found = predicted_by(reopened, few.select(rows_of(few, run.tested))).softmax(1)
    np.testing.assert_allclose(found, run.read("probabilities", index_col=0), atol=1e-5)
    assert reopened.head == run.result.checkpoint.head
    assert (reopened.head.targets[0].name, reopened.head.targets[0].classes) == ("cell_type", tuple(TYPES))
    assert reopened.fingerprint == run.result.checkpoint.fingerprint
    assert reopened.vocabulary == few.vocabulary


def test_the_classifier_has_seen_its_training_cells(run, few):
    digests = few.select(rows_of(few, run.cells_in("train"))).digests()
    np.testing.assert_array_equal(run.result.checkpoint.seen, np.unique(digests))
    np.testing.assert_array_equal(gf.Checkpoint.from_pretrained(run.out).seen, run.result.checkpoint.seen)


def test_training_tells_real_cell_types_apart(gentle_base, few, tmp_path):
    """Enough training to learn something, from weights as small as pretraining starts from."""
    settings = quick(epochs=8, batch_size=8, learning_rate=2e-3)
    result = finetune(gentle_base, few, settings, out=tmp_path / "clf")
    assert result.methods.loc[FINE_TUNED, "accuracy"] > 0.8


# What it starts from


def test_the_base_is_left_as_it_is(run, base):
    assert all(torch.equal(weight, run.noted[name]) for name, weight in base.model.state_dict().items())
    assert not base.model.training


def test_the_classifier_starts_from_the_checkpoint(base, few, tmp_path):
    result = finetune(base, few, quick(strategy="probe"), out=tmp_path / "clf")
    reopened = gf.Checkpoint.from_pretrained(tmp_path / "clf").model.bert.state_dict()
    for name, weight in base.model.bert.state_dict().items():
        assert torch.equal(result.checkpoint.model.bert.state_dict()[name], weight)
        assert torch.equal(reopened[name], weight)


def test_a_classifier_can_be_the_start_as_well(run, few, tmp_path):
    result = finetune(run.result.checkpoint, few, quick(target="flag", allow_seen=True), out=tmp_path / "clf")
    assert result.checkpoint.head.targets[0].classes == ("False", "True")


def test_a_goal_on_an_integer_column_with_a_gap_can_be_asked_of_its_own_classifier(of_gap, few):
    """A label has one name wherever it is asked for, though the column holds 0.0, 1.0, 2.0 and nothing."""
    goal = gf.GoalState("gap", "0", "1")
    checkpoint, cells = of_gap.checkpoint, few.select(np.arange(0, 120, 3))
    asked = gf.perturb(checkpoint, cells, gf.Deletion(), goal=goal, target="gap", max_cells=1)
    assert set(asked.table["state"]) == {"0", "1", "2"}
    named = cells.labels("gap")
    assert set(named[asked.table["cell"]]) == {"0"}
    assert gf.embed_states(checkpoint, cells, "gap").index.tolist() == ["0", "1", "2"]
    without_classifier = gf.perturb(checkpoint, cells, gf.Deletion(), goal=goal, donor="gap", max_cells=2)
    assert set(without_classifier.table["donor"]) == {"0"}
    assert gene_baselines(without_classifier, cells)["detection_rate"].notna().all()


@pytest.mark.parametrize("pooling", ["cls", "attention"])
def test_pooling_is_written_with_the_head(base, few, tmp_path, pooling):
    result = finetune(base, few, quick(pooling=pooling), out=tmp_path / "clf")
    reopened, some = gf.Checkpoint.from_pretrained(tmp_path / "clf"), few.select(np.arange(5))
    assert reopened.head.pooling == pooling
    assert ("attention_pool.weight" in reopened.model.state_dict()) == (pooling == "attention")
    torch.testing.assert_close(predicted_by(reopened, some), predicted_by(result.checkpoint, some))


# The same again


@pytest.fixture(scope="module")
def alone(base, few, tmp_path_factory):
    """The same run without baselines."""
    return finetune(base, few, config(baselines=False), out=tmp_path_factory.mktemp("alone") / "clf")


def test_the_same_seed_gives_the_same_model_with_or_without_baselines(run, alone):
    assert alone.checkpoint.fingerprint == run.result.checkpoint.fingerprint
    pd.testing.assert_frame_equal(alone.methods, run.result.methods.loc[[FINE_TUNED], list(alone.methods)])
    pd.testing.assert_frame_equal(alone.predictions, run.result.predictions[["cell", "true", FINE_TUNED]])
    pd.testing.assert_frame_equal(alone.split, run.result.split)


def test_a_tuple_of_one_target_is_that_target():
    assert config(target=("cell_type",)).targets == config().targets


class StoppedError(RuntimeError):
    """Stands for a crash."""


def stop_training_after(patch, n_steps):
    from geneformer_repro.training import loop

    step, done = loop._Trainer.training_step, []

    def stopping(*inputs, **options):
        if len(done) == n_steps:
            raise StoppedError
        done.append(None)
        return step(*inputs, **options)

    patch.setattr(loop._Trainer, "training_step", stopping)


def test_a_run_that_was_cut_off_ends_like_an_uninterrupted_one(
    run, alone, base, few, tmp_path, monkeypatch, two_methods
):
    with monkeypatch.context() as patch:
        stop_training_after(patch, 14)  # in the random network
        with pytest.raises(StoppedError):
            finetune(base, few, config(), out=tmp_path / "clf")
    assert not (tmp_path / "clf").exists()
    resumed = finetune(base, few, config(), out=tmp_path / "clf")
    rows, columns = [FINE_TUNED, *TWO, RANDOM], list(alone.methods)
    pd.testing.assert_frame_equal(resumed.methods[columns], run.result.methods.loc[rows, columns])
    pd.testing.assert_frame_equal(resumed.predictions, run.result.predictions[["cell", "true", *rows]])
    pd.testing.assert_frame_equal(resumed.history[["epoch", "eval_loss"]], alone.history[["epoch", "eval_loss"]])
    assert resumed.checkpoint.fingerprint == run.result.checkpoint.fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["clf"]


def test_of_a_finished_fold_only_what_it_found_is_kept_and_the_end_is_the_uninterrupted_one(
    folded, base, few, tmp_path, monkeypatch
):
    """No weights, and of the optimiser, which is twice as large, nothing: a run may have dozens of networks."""
    with monkeypatch.context() as patch:
        stop_training_after(patch, 3)  # in the second fold
        with pytest.raises(StoppedError):
            finetune(base, few, quick(folds=3, group="donor"), out=tmp_path / "clf")
    first = tmp_path / "clf.partial" / "fold-1"
    found = {str(path.relative_to(first)) for path in first.rglob("*") if path.is_file() and path.suffix != ".sha256"}
    assert found == {"fine-tuned.npy", "fine-tuned/history.json", "fine-tuned/log.jsonl"}
    resumed = finetune(base, few, quick(folds=3, group="donor"), out=tmp_path / "clf")
    pd.testing.assert_frame_equal(resumed.methods, folded.result.methods, check_exact=True)
    pd.testing.assert_frame_equal(resumed.predictions, folded.result.predictions)
    evaluated = [name for name in folded.result.history if name.startswith("eval")]
    pd.testing.assert_frame_equal(
        resumed.history[["epoch", "fold", *evaluated]], folded.result.history[["epoch", "fold", *evaluated]]
    )
    assert resumed.checkpoint.fingerprint == folded.result.checkpoint.fingerprint


# What is the same run


@pytest.fixture
def begin(base, few, tmp_path, monkeypatch):
    """Begin a run, and stop before anything is computed; raises `StoppedError` where it was not refused."""

    def stop(*given, **options):
        raise StoppedError

    monkeypatch.setattr(CellProblem, "features", stop)
    monkeypatch.setattr(Experiment, "run", stop)

    def begin(settings, *, cells=few, **options):
        with pytest.raises(StoppedError):
            finetune(base, cells, settings, out=tmp_path / "clf", **options)

    return begin


def refused(begin, what, *given, **options):
    with pytest.raises(FileExistsError, match=rf"clf\.partial holds an unfinished run.*\({what}.*overwrite=True"):
        begin(*given, **options)


def test_an_unfinished_run_gives_way_to_other_settings_only_with_overwrite(begin, few):
    begin(quick())
    begin(quick())
    refused(begin, "config.training.learning_rate: .*0\\.01 now", quick(learning_rate=0.01))
    refused(begin, "cells", quick(), cells=few.select(np.arange(0, 120, 2)))
    begin(quick(learning_rate=0.01), overwrite=True)


@pytest.fixture
def whole_split(base, few, tmp_path):
    """All 120 cells as a file, in three parts."""
    prepared = module.prepared(base, few, quick())
    split_table(prepared.splits, prepared.problem.names).to_csv(tmp_path / "whole.tsv", sep="\t", index=False)
    return tmp_path / "whole.tsv"


def test_of_the_cells_that_a_file_lists_so_many_of_a_class_are_taken(base, few, whole_split, caplog):
    with caplog.at_level(logging.INFO):
        prepared = module.prepared(base, few, quick(split_file=str(whole_split), max_cells_per_class=20))
    names = prepared.problem.names
    assert few.obs.loc[names, "cell_type"].value_counts().tolist() == [20, 20, 20]
    part = pd.read_csv(whole_split, sep="\t").set_index("cell")["part"]
    for name, rows in prepared.splits[0]._asdict().items():
        assert set(part[names[rows]]) == {name}
    assert sum(map(len, prepared.splits[0])) == 60
    assert "60 of 120 cells taken: at most 20 of a class." in caplog.text


def test_a_file_of_cells_that_were_taken_takes_them_again(base, few, tmp_path):
    first = module.prepared(base, few, quick(max_cells_per_class=20))
    names = first.problem.names
    split_table(first.splits, names).to_csv(tmp_path / "split.tsv", sep="\t", index=False)
    again = module.prepared(base, few, quick(max_cells_per_class=20, split_file=str(tmp_path / "split.tsv"), seed=7))
    assert again.problem.names.tolist() == names.tolist()
    for one, other in zip(first.splits[0], again.splits[0], strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_limit_that_leaves_a_part_of_a_file_empty_is_refused(base, few, tmp_path):
    names = few.cell_names
    table = pd.DataFrame({"cell": names, "part": "train"})
    table.loc[[0, 60], "part"] = ["validation", "test"]
    table.to_csv(tmp_path / "split.tsv", sep="\t", index=False)
    with pytest.raises(gf.InputError, match=r"max_cells_per_class=3 leaves no (validation|test) cell of those that"):
        module.prepared(base, few, quick(max_cells_per_class=3, split_file=str(tmp_path / "split.tsv")))


def test_a_split_file_is_the_same_run_by_its_content(begin, run, tmp_path):
    """Edited in between, a run would report cells that it was trained on."""
    table, path = run.result.split, tmp_path / "split.tsv"
    settings = quick(split_file=str(path))
    table.to_csv(path, sep="\t", index=False)
    begin(settings)
    table.to_csv(tmp_path / "same.csv", index=False)
    begin(quick(split_file=str(tmp_path / "same.csv")))
    table.assign(part=table["part"].replace({"train": "test", "test": "train"})).to_csv(path, sep="\t", index=False)
    refused(begin, "split", settings)


def test_counts_are_the_same_by_their_content(begin, few_counts):
    begin(quick(baselines=True))
    begin(quick(baselines=True), counts=few_counts[::-1].copy())
    few_counts.X.data[0] += 1
    refused(begin, "counts", quick(baselines=True), counts=few_counts)
    begin(quick(), overwrite=True)
    begin(quick(), counts=few_counts)  # which are not looked at


@pytest.mark.parametrize("column", ["cell_type", "donor", "size"])
def test_labels_and_groups_are_the_same_by_their_content(begin, few, tmp_path, column):
    """Whatever the fingerprint of a dataset covers."""
    path, table = tmp_path / "published.parquet", few.table.to_pandas()[["input_ids", "cell", *OBS]]
    settings = quick(target=("cell_type", "size"), regression=("size",), group="donor")

    def published():
        table.to_parquet(path)
        return gf.TokenizedDataset.open(path, few.vocabulary)

    before = published()
    begin(settings, cells=before)
    begin(settings, cells=published())
    table.loc[[0, 1, 118, 119], column] = table.loc[[119, 118, 1, 0], column].to_numpy()
    refused(begin, "labels", settings, cells=dataclasses.replace(published(), spec=before.spec))


def test_a_version_that_gives_other_results_does_not_go_on(begin, monkeypatch):
    begin(quick())
    monkeypatch.setattr(module, "VERSION", module.VERSION + 1)
    refused(begin, "version", quick())


def test_a_mistake_in_the_settings_does_not_stand_in_the_way_of_the_corrected_call(base, few, tmp_path, request):
    with pytest.raises(ConfigError, match="warmup_steps is 1000 but the run has only 2 steps"):
        finetune(base, few, quick(warmup_steps=1000), out=tmp_path / "clf")
    request.getfixturevalue("begin")(quick(warmup_steps=0.1))


def test_an_output_that_exists_is_refused_and_left_alone(run, base, few):
    before = (run.out / "methods.tsv").stat().st_mtime_ns
    with pytest.raises(FileExistsError, match=r"clf already exists.*overwrite=True"):
        finetune(base, few, quick(), out=run.out)
    assert (run.out / "methods.tsv").stat().st_mtime_ns == before


def test_overwrite_replaces_a_result(base, few, tmp_path):
    (tmp_path / "clf").mkdir()
    (tmp_path / "clf" / "provenance.json").write_text("{}")
    finetune(base, few, quick(target="flag"), out=tmp_path / "clf", overwrite=True)
    assert gf.Checkpoint.from_pretrained(tmp_path / "clf").head.targets[0].name == "flag"


def test_overwrite_never_replaces_a_folder_that_is_not_a_result(base, few, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("precious")
    with pytest.raises(FileExistsError, match=r"folder without provenance\.json"):
        finetune(base, few, quick(), out=tmp_path / "thesis", overwrite=True)
    assert (tmp_path / "thesis" / "chapter1.txt").read_text() == "precious"


# Labels


@pytest.fixture(scope="module")
def of_gap(base, few, tmp_path_factory):
    """Of an integer column with a gap."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "write_page", lambda *given, **options: None)
        patch.setattr(results, "figures", lambda evaluation: {})
        return finetune(base, few, quick(target="gap"), out=tmp_path_factory.mktemp("gap") / "clf")


def test_cells_without_a_label_are_left_out(of_gap, few):
    result = of_gap
    assert sorted(result.split["cell"]) == sorted(few.cell_names[np.arange(120) % 4 > 0])
    assert result.predictions["true"].tolist() == [
        f"{label:.0f}" for label in few.obs.loc[result.predictions["cell"], "number"]
    ]


def test_a_class_too_rare_to_split_is_refused_with_the_way_out(base, few, tmp_path):
    with pytest.raises(gf.InputError, match=r"at least 3 cells.*'odd' \(2\).*min_cells=3"):
        finetune(base, few, quick(target="rare"), out=tmp_path / "clf")


def test_rare_classes_and_more_cells_than_asked_for_are_left_out(base, few):
    prepared = module.prepared(base, few, quick(target="rare", min_cells=3, max_cells_per_class=10))
    labels = few.obs.loc[prepared.problem.names[np.concatenate(prepared.splits[0])], "rare"]
    assert labels.value_counts().to_dict() == dict.fromkeys(TYPES, 10)


@pytest.mark.parametrize("field", ["target", "group"])
def test_a_missing_column_is_refused_with_the_nearest_name(base, few, tmp_path, field):
    with pytest.raises(gf.InputError, match=r"no obs column 'cell_typ'\. Did you mean 'cell_type'\?"):
        finetune(base, few, quick(**{field: "cell_typ"}), out=tmp_path / "clf")
    assert not list(tmp_path.iterdir())


# Several targets


@pytest.fixture(scope="module")
def several(base, few, tmp_path_factory):
    """A class with gaps, and a number."""
    out = tmp_path_factory.mktemp("several") / "clf"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classes, "CLASS_METHODS", {name: CLASS_METHODS[name] for name in TWO})
        patch.setattr(numbers, "NUMBER_METHODS", {name: NUMBER_METHODS[name] for name in ("mean", "ridge, counts")})
        settings = config(target=("partly", "size"), regression=("size",))
        return Run(finetune(base, few, settings, out=out), out, {})


def test_several_targets_have_a_row_for_each_method_of_each(several):
    assert several.result.methods.index.names == ["target", "method"]
    assert several.result.methods.index.tolist() == [
        *(("partly", name) for name in (FINE_TUNED, *TWO, RANDOM)),
        *(("size", name) for name in (FINE_TUNED, "mean", "ridge, counts", RANDOM)),
    ]


def test_each_target_is_scored_on_the_test_cells_that_have_its_label(several, few):
    found = several.result.evaluations
    known = few.obs.loc[several.tested, "partly"].notna().to_numpy()
    assert 0 < known.sum() < len(several.tested) == 24
    assert found["partly"].predictions["cell"].tolist() == several.tested[known].tolist()
    sizes = found["size"].predictions
    assert sizes["cell"].tolist() == several.tested.tolist()
    np.testing.assert_allclose(sizes["true"], few.obs.loc[several.tested, "size"].astype(float))
    expected = number_scores(sizes["true"].to_numpy(), sizes[FINE_TUNED].to_numpy())
    assert several.result.methods.loc[("size", FINE_TUNED), list(expected)].to_dict() == pytest.approx(expected)


def test_a_number_is_predicted_in_its_own_unit(several, few):
    predicted = several.result.evaluations["size"].predictions
    learned = few.obs.loc[several.cells_in("train"), "size"].astype(float)
    np.testing.assert_allclose(predicted["mean"], learned.mean())
    target = several.result.checkpoint.head.targets[1]
    assert (target.mean, target.sd) == pytest.approx((learned.mean(), learned.std(ddof=0)))
    outputs = predicted_by(several.result.checkpoint, few.select(rows_of(few, predicted["cell"])))[:, 3]
    np.testing.assert_allclose(predicted[FINE_TUNED], outputs * target.sd + target.mean, rtol=1e-4)


def test_several_targets_have_a_folder_each(several):
    assert {path.name for path in several.out.iterdir()} == MODEL | {
        "split.tsv", "history.tsv", "report.html", "partly", "size",
    }  # fmt: skip
    assert {path.name for path in (several.out / "partly").iterdir()} == TABLES - {
        "split.tsv", "history.tsv",
    } | PICTURES  # fmt: skip
    assert {path.name for path in (several.out / "size").iterdir()} == {
        "methods.tsv", "predictions.tsv", "methods.png", "predicted.png",
    }  # fmt: skip


def test_the_page_and_the_record_speak_of_every_target(several):
    titles = re.findall(r"<h2>(\w+): .*?</h2>", (several.out / "report.html").read_text())
    assert titles[:6] == ["partly"] * 4 + ["size"] * 2
    assert set(json.loads((several.out / "provenance.json").read_text())["result"]) == {"partly", "size"}


def test_numbers_alone_can_be_learned(base, few, tmp_path):
    settings = quick(target="written", regression=("written",))
    result = finetune(base, few, settings, out=tmp_path / "clf")
    assert isinstance(result.checkpoint.head.targets[0], Number)
    assert {"r2", "rmse"} <= set(result.methods.columns)


def test_text_to_be_learned_as_a_number_is_refused_before_any_work(base, few, tmp_path):
    with pytest.raises(gf.InputError, match=r"'cell_type' should hold numbers.*CD14\+ Monocyte"):
        finetune(base, few, quick(regression=("cell_type",)), out=tmp_path / "clf")
    assert not list(tmp_path.iterdir())


# Splits


@pytest.fixture(scope="module")
def folded(base, few, tmp_path_factory):
    out = tmp_path_factory.mktemp("folded") / "clf"
    real, calls, seen = (CellProblem.train, experiment.evaluate_target), [], {}

    def train(*given, step, **options):
        if step == "all cells":
            calls.append(given[2:4])
        return real[0](*given, step=step, **options)

    def evaluate_target(*given, groups, **options):
        seen["groups"] = groups
        return real[1](*given, groups=groups, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "write_page", lambda *given, **options: None)
        patch.setattr(results, "figures", lambda evaluation: {})
        patch.setattr(CellProblem, "train", train)
        patch.setattr(experiment, "evaluate_target", evaluate_target)
        result = finetune(base, few, quick(folds=3, group="donor"), out=out)
    return Run(result, out, {"calls": calls, **seen})


def test_over_folds_every_cell_is_predicted_once_by_a_model_that_did_not_learn_its_donor(folded, few):
    predictions, split = folded.result.predictions, folded.result.split
    assert sorted(predictions["cell"]) == sorted(few.cell_names)
    donors = few.obs["donor"].astype(str)
    for fold in (1, 2, 3):
        tested = predictions["cell"][predictions["fold"] == fold]
        learned = split["cell"][(split["fold"] == fold) & (split["part"] == "train")]
        assert not set(donors[tested]) & set(donors[learned])
        assert sorted(tested) == sorted(split["cell"][(split["fold"] == fold) & (split["part"] == "test")])


def test_folds_are_told_apart_in_the_tables(folded):
    assert folded.result.history["fold"].unique().tolist() == [1, 2, 3]
    table = folded.read("folds")
    pd.testing.assert_frame_equal(table, folded.result.evaluations["cell_type"].folds, check_dtype=False)
    assert set(table["method"]) == {FINE_TUNED}
    assert set(table["n"]) == {3}


def test_after_the_folds_one_model_is_trained_on_all_cells(folded):
    [(settings, split)] = folded.noted["calls"]
    np.testing.assert_array_equal(split.train, np.arange(120))
    assert not len(split.validation)
    assert settings.training.epochs == 1


def test_the_model_of_all_cells_has_seen_all_cells(folded, few):
    """Also those of donors that are in no fold's training cells."""
    np.testing.assert_array_equal(folded.result.checkpoint.seen, np.unique(few.digests()))


def test_named_groups_are_the_test_cells(base, few):
    prepared = module.prepared(base, few, quick(group="donor", test_groups=("donor2", "donor5")))
    tested = prepared.splits[0].test
    assert set(few.obs["donor"].iloc[tested]) == {"donor2", "donor5"}
    assert len(tested) == 40


def test_a_split_given_back_gives_the_same_split(run, base, few):
    prepared = module.prepared(base, few, config(split_file=str(run.out / "split.tsv")))
    first = module.prepared(base, few, config())
    for one, other in zip(prepared.splits[0], first.splits[0], strict=True):
        np.testing.assert_array_equal(one, other)


def test_groups_are_what_the_intervals_resample(folded, few):
    donors = few.obs.loc[folded.result.predictions["cell"], "donor"]
    np.testing.assert_array_equal(folded.noted["groups"], donors)


@pytest.mark.parametrize("lacking", ["train", "test"])
def test_a_split_without_a_label_of_a_target_is_refused_before_any_work(base, few, tmp_path, lacking):
    """Every fourth cell has none in ``partly``."""
    other = {"train": "test", "test": "train"}[lacking]
    parts = np.where(np.arange(120) % 4 == 0, lacking, other)
    pd.DataFrame({"cell": few.cell_names, "part": parts}).to_csv(tmp_path / "split.tsv", sep="\t", index=False)
    settings = quick(target=("partly", "flag"), split_file=str(tmp_path / "split.tsv"))
    with pytest.raises(gf.InputError, match=rf"No {lacking}(ing)? cell has a label in 'partly'\."):
        finetune(base, few, settings, out=tmp_path / "clf")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        pytest.param({}, "over 24 cells", id="no groups"),
        pytest.param({"group": "donor", "test_groups": ("donor1", "donor2")},
                     "over 2 groups of 'donor', rough with so few", id="few groups"),
        pytest.param({"group": "sample", "folds": "groups"}, "over 12 groups of 'sample'", id="groups"),
        pytest.param({"group": "donor", "test_groups": ("donor1",)},
                     "over 20 cells, too narrow, since all are of one group of 'donor'", id="one group"),
    ],
)  # fmt: skip
def test_what_the_intervals_are_is_said_in_words(base, few, changes, said):
    assert module.prepared(base, few, quick(**changes)).intervals == f"95 % bootstrap intervals {said}"


# Cells that the checkpoint knows


def having_seen(base, cells, names):
    return dataclasses.replace(base, seen=np.unique(cells.select(rows_of(cells, names)).digests()))


def test_test_cells_that_the_checkpoint_was_pretrained_on_are_refused_by_name(run, base, few, tmp_path):
    knowing = having_seen(base, few, run.tested[3:5])
    message = rf"2 of 24 test cells \(first: '{run.tested[3]}'\) .*checkpoint base was pretrained on.*allow_seen=true"
    with pytest.raises(gf.InputError, match=message):
        finetune(knowing, few, config(baselines=False), out=tmp_path / "clf")
    assert not list(tmp_path.iterdir())


def test_a_renamed_copy_of_a_cell_is_the_same_cell(run, base, few, few_counts, tmp_path):
    few_counts.obs_names = [f"copy of {name}" for name in few_counts.obs_names]
    copies = gf.tokenize(few_counts, few.vocabulary, obs=["cell_type"])
    with pytest.raises(gf.InputError, match="first: 'copy of "):
        finetune(having_seen(base, few, few.cell_names), copies, quick(), out=tmp_path / "clf")


def test_seen_test_cells_can_be_accepted_and_seen_training_cells_are_fine(run, base, few):
    for cells, changes in ((run.tested, {"allow_seen": True}), (run.cells_in("train"), {})):
        knowing = having_seen(base, few, cells)
        prepared = module.prepared(knowing, few, config(**changes))
        np.testing.assert_array_equal(prepared.seen, np.union1d(knowing.seen, run.result.checkpoint.seen))


# Baselines and their counts


@pytest.fixture(scope="module")
def in_memory(few, few_file):
    """The same cells, without a trace of a file."""
    return gf.tokenize(ad.read_h5ad(few_file), few.vocabulary, obs=["cell_type"])


def test_without_counts_at_hand_their_rows_are_empty_and_the_log_says_why(
    base, in_memory, tmp_path, caplog, two_methods
):
    result = finetune(base, in_memory, quick(baselines=True), out=tmp_path / "clf")
    rows = [FINE_TUNED, *TWO, RANDOM]
    assert result.methods.index.tolist() == rows
    assert result.methods.isna().all(axis=1).tolist() == [method == TWO[1] for method in rows]
    assert TWO[1] not in result.predictions
    assert re.search(r"No raw counts at hand \(the cells were tokenised in memory\).*give counts=", caplog.text)


@pytest.mark.parametrize("change", ["gone", "other"])
def test_a_file_of_counts_that_is_gone_or_has_changed_is_not_used(few, few_counts, tmp_path, caplog, change):
    path = tmp_path / "moved.h5ad"
    few_counts.write_h5ad(path)
    tokenized = gf.tokenize(path, few.vocabulary)
    path.unlink()
    if change == "other":
        few_counts[::-1].write_h5ad(path)
    assert raw_counts(tokenized) is None
    assert re.search(r"No raw counts at hand \(.*moved\.h5ad", caplog.text)


def test_counts_given_in_any_order_give_the_rows_of_the_file(few, in_memory, few_counts):
    shuffled = few_counts[np.random.default_rng(0).permutation(120)].copy()
    found, expected = raw_counts(in_memory, shuffled), raw_counts(few)
    np.testing.assert_array_equal(found.toarray(), expected.toarray())
    assert digest_of(found) == digest_of(expected)


@pytest.mark.parametrize("where", ["given", "recorded"])
def test_the_layer_that_was_tokenised_is_the_layer_of_the_baselines(few, few_counts, tmp_path, where):
    counts = few_counts.X.copy()
    few_counts.layers["counts"], few_counts.X = counts, counts / 2
    few_counts.write_h5ad(tmp_path / "layered.h5ad")
    tokenized = gf.tokenize(tmp_path / "layered.h5ad", few.vocabulary, layer="counts")
    found = raw_counts(tokenized, few_counts if where == "given" else None)
    np.testing.assert_array_equal(found.toarray(), counts.toarray())


def test_counts_of_other_cells_are_refused(base, few, few_counts, tmp_path):
    with pytest.raises(gf.InputError, match="60 of 120 cells of the dataset are not in it"):
        finetune(base, few, quick(baselines=True), out=tmp_path / "clf", counts=few_counts[:60].copy())


# Learning curve


def stopped(*_, **__):
    raise KeyboardInterrupt


def assert_results_stand_and_no_curve(out):
    assert gf.Checkpoint.from_pretrained(out).provenance["result"]
    assert (out / "methods.tsv").exists()
    assert not (out / "curve.tsv").exists()


def test_a_learning_curve_comes_after_the_results_and_can_be_dropped(base, few, tmp_path, monkeypatch, two_methods):
    monkeypatch.setattr(problems, "FEWEST_STEPS", 1)
    monkeypatch.setattr(curves, "DRAWS", 1)
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "learning_curve", stopped)
        with pytest.raises(KeyboardInterrupt):
            finetune(base, few, quick(baselines=True, curve=(6,)), out=tmp_path / "clf")
        assert_results_stand_and_no_curve(tmp_path / "clf")
        patch.setattr(networks, "_keep", stopped)  # all has learned but the curve
        finetune(base, few, quick(baselines=True), out=tmp_path / "clf")
        assert_results_stand_and_no_curve(tmp_path / "clf")
        assert not (tmp_path / "clf.partial").exists()
    result = finetune(base, few, quick(baselines=True, curve=(6,)), out=tmp_path / "clf", overwrite=True)
    sizes = result.curve.groupby("method", sort=False)[["n", "draw"]].apply(lambda table: table.to_numpy().tolist())
    assert sizes.to_dict() == {name: [[6, 1], [96, 1]] for name in (FINE_TUNED, *TWO, RANDOM)}
    assert result.curve[["accuracy", "macro_f1"]].notna().all(axis=None)
    written = pd.read_csv(tmp_path / "clf" / "curve.tsv", sep="\t")
    pd.testing.assert_frame_equal(written, result.curve)
    assert (tmp_path / "clf" / "curve.png").stat().st_size > 5000


def test_a_learning_curve_of_too_many_cells_is_refused_before_any_work(base, few, tmp_path):
    with pytest.raises(gf.InputError, match=r"curve asks for 500 labelled cells, but those .* are 96"):
        finetune(base, few, quick(curve=(10, 500)), out=tmp_path / "clf")
    assert not list(tmp_path.iterdir())


# What does not belong together


def test_cells_of_another_vocabulary_are_refused_naming_both_sides(base, pbmc, tmp_path):
    others = gf.tokenize(pbmc, gf.Vocabulary.fit(pbmc[:, 1:].copy(), max_length=34), obs=["cell_type"])
    with pytest.raises(gf.VocabularyMismatchError, match=r"the dataset and checkpoint base.*first differing gene ENSG"):
        finetune(base, others, quick(), out=tmp_path / "clf")
    assert not list(tmp_path.iterdir())


def test_cls_pooling_is_refused_where_cells_have_no_cls(pbmc, untrained, tmp_path):
    vocabulary = gf.Vocabulary.fit(pbmc, series="V1", max_length=64)
    v1 = gf.tokenize(pbmc[:30].copy(), vocabulary, obs=["cell_type"])
    with pytest.raises(gf.InputError, match="pooling='cls' needs cells that begin with <cls>"):
        finetune(untrained(vocabulary, 0.02), v1, quick(pooling="cls"), out=tmp_path / "clf")


def test_cells_without_a_group_are_refused_by_name(base, few, tmp_path):
    message = rf"'partly' says nothing for 30 of 120 labelled cells \(first: '{re.escape(few.cell_names[0])}'\)"
    with pytest.raises(gf.InputError, match=message):
        finetune(base, few, quick(group="partly"), out=tmp_path / "clf")


# Settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"validation": 0.0}, r"split\.validation must be between 0 and 1, found 0", id="too few"),
        pytest.param({"test": 0.9}, r"\.test must be between 0 and 1 - validation, found 0\.9", id="too many"),
        pytest.param({"epochs": 0}, r"training\.epochs must be above 0, found 0", id="epochs"),
        pytest.param({"seed": -1}, r"\.seed must be at least 0 and below 2\*\*32, found -1", id="seed"),
        pytest.param({"batch_size": 0}, r"training\.batch_size must be at least 1", id="batch_size"),
        pytest.param({"learning_rate": 0.0}, r"training\.learning_rate must be above 0", id="learning_rate"),
        pytest.param({"strategy": "half"}, r"transfer\.strategy must be one of", id="transfer"),
        pytest.param({"target": ()}, r"FinetuneConfig\.target must be at least one obs column", id="no target"),
        pytest.param({"min_cells": -1}, r"FinetuneConfig\.min_cells must be at least 0, found -1", id="min_cells"),
        pytest.param({"max_cells_per_class": 2}, r"\.max_cells_per_class must be at least 3", id="max_cells"),
        pytest.param({"curve": (10, 1)}, r"\.curve must be numbers of cells, each at least 2", id="curve"),
        pytest.param({"regression": ("age",)}, r"regression names 'age', which is no target\.", id="regression"),
        pytest.param({"task_weights": {"cell_typ": 2.0}},
                     r"task_weights names 'cell_typ'.*Did you mean 'cell_type'", id="task_weights"),
    ],
)  # fmt: skip
def test_settings_out_of_bounds_are_refused_by_name(changes, message):
    with pytest.raises(gf.InputError, match=message):
        config(**changes)


def test_the_target_must_be_named():
    with pytest.raises(gf.InputError, match="target must be at least one obs column"):
        FinetuneConfig()


def test_a_config_cannot_be_changed_afterwards():
    with pytest.raises(dataclasses.FrozenInstanceError):
        config().target = "other"


def test_a_plan_without_repeats_is_that_of_runs_before_there_were_any_and_names_no_split_file():
    assert not {"repeats"} & set(module.planned(config())["split"])
    assert (
        module.planned(config(folds=2, repeats=3, split_file="s.tsv"))["split"].items()
        >= {
            "repeats": 3,
            "split_file": None,
        }.items()
    )
