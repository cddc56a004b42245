"""From a source to a target: what each network begins with, the paired differences, and what must not be."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch

import geneformer_repro as gf
from geneformer_repro.config import ConfigError, with_settings
from geneformer_repro.finetuning import curve, networks, results, study
from geneformer_repro.finetuning.evaluation import vs
from geneformer_repro.finetuning.kinds import classes, kind_of
from geneformer_repro.finetuning.problems import problem as problems
from geneformer_repro.finetuning.study import FROM_SOURCE, ZERO_SHOT
from geneformer_repro.reading import outputs_of
from geneformer_repro.targets import Classes, Number

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("blank_pictures", "few_resamples")]

ROWS = [
    FROM_SOURCE, "majority class", "logistic regression, frozen embedding", "fine-tuned", "probe from source", "probe",
    "scratch", ZERO_SHOT,
]  # fmt: skip
SOURCE, TARGET = np.arange(0, 120, 2), np.arange(1, 120, 2)


def config(**changes):
    given = {"epochs": 1, "batch_size": 21, "learning_rate": 1e-3}
    return with_settings(gf.TransferStudyConfig(target="cell_type", source={"target": "cell_type"}), **given | changes)


class Run(NamedTuple):
    result: gf.TransferStudy
    out: Path
    trainings: dict
    """Encoder, config and number of steps of each network, by step."""


@pytest.fixture(scope="module")
def run(base, few, tmp_path_factory):
    out, trainings, real = tmp_path_factory.mktemp("run") / "clf", {}, networks.train

    def train(model, run):
        begun = {name: weight.clone() for name, weight in model.bert.state_dict().items()}
        model, history = real(model, run)
        trainings[run.step] = (begun, model, run.config, history["step"].max())
        return model, history

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "train", train)
        patch.setattr(problems, "FEWEST_STEPS", 2)
        patch.setattr(curve, "DRAWS", 1)
        patch.setattr(classes, "CLASS_METHODS", {name: classes.CLASS_METHODS[name] for name in ROWS[1:3]})
        result = gf.transfer_study(base, few.select(SOURCE), few.select(TARGET), config(curve=(9,)), out=out)
    return Run(result, out, trainings)


def test_the_table_has_every_way_and_the_simple_methods(run):
    assert run.result.methods.index.tolist() == ROWS
    assert run.result.methods["macro_f1"].notna().all()
    assert run.result.predictions.columns.tolist() == ["cell", "true", *ROWS]


def same(weights, others):
    return all(torch.equal(weights[name], others[name]) for name in weights if "pooler" not in name)


def test_each_network_begins_where_its_name_says(run, base):
    of_base, of_source = base.model.bert.state_dict(), run.result.source.model.bert.state_dict()
    begun = {step: weights for step, (weights, *_) in run.trainings.items() if "labels" not in step}
    assert {step for step, weights in begun.items() if same(weights, of_base)} == {
        "source", "fine-tune, without source", "fine-tune, probe",
    }  # fmt: skip
    assert {step for step, weights in begun.items() if same(weights, of_source)} == {
        "fine-tune",
        "fine-tune, probe from source",
    }
    assert len(begun) == 6, "and one begins with other weights"


def test_a_probe_keeps_the_encoder_that_it_began_with(run):
    for step in ("fine-tune, probe", "fine-tune, probe from source"):
        begun, model, *_ = run.trainings[step]
        assert same(begun, model.bert.state_dict())
    begun, model, *_ = run.trainings["fine-tune"]
    assert not same(begun, model.bert.state_dict())


def test_all_networks_of_the_target_take_the_same_steps(run):
    for begin in ("fine-tune", "9 labels", "48 labels"):
        steps = {n for step, (*_, n) in run.trainings.items() if step.startswith(begin)}
        assert len(steps) == 1


def test_differences_to_the_network_without_the_source_are_paired_and_said(run):
    methods, evaluation = run.result.methods, run.result.evaluations["cell_type"]
    columns = [f"macro_f1{vs('fine-tuned')}{end}" for end in ("", "_low", "_high")]
    assert columns[0] == "macro_f1_vs_fine_tuned"
    expected = methods["macro_f1"] - methods.loc["fine-tuned", "macro_f1"]
    np.testing.assert_allclose(methods[columns[0]], expected, atol=1e-12)
    assert methods.loc["fine-tuned", columns].tolist() == [0, 0, 0]
    best = methods["macro_f1"][ROWS[1:3]].idxmax()
    assert methods.loc[best, "macro_f1_vs_best_simple"] == 0
    first, second = evaluation.verdicts
    assert first.startswith(f"{FROM_SOURCE} is ")
    assert f" {best}: " in first
    assert " fine-tuned: " in second
    assert second in (run.out / "report.html").read_text()


def test_zero_shot_is_the_source_s_classifier_as_it_is(run, few):
    cells = few.select(pd.Index(few.cell_names).get_indexer(run.result.predictions["cell"]))
    source = run.result.source
    outputs = outputs_of(source.model, cells, source.head).argmax(1)
    names = np.array(source.head.targets[0].classes)[outputs]
    assert run.result.predictions[ZERO_SHOT].tolist() == names.tolist()


def test_the_curve_has_every_method_at_every_size(run):
    sizes = run.result.curve.groupby("method")["n"].apply(list)
    assert sizes.to_dict() == {name: [9, 48] for name in ROWS}


def test_both_classifiers_are_written_and_know_what_they_have_seen(run, few):
    target, source = gf.Checkpoint.from_pretrained(run.out), gf.Checkpoint.from_pretrained(run.out / "source")
    assert target.fingerprint == run.result.checkpoint.fingerprint
    assert source.fingerprint == run.result.source.fingerprint
    of_source = few.select(SOURCE).digests()
    assert np.isin(of_source, source.seen).all()
    assert np.isin(of_source, target.seen).all()
    tested = few.select(pd.Index(few.cell_names).get_indexer(run.result.predictions["cell"])).digests()
    assert not np.isin(tested, target.seen).any()
    record = json.loads((run.out / "provenance.json").read_text())
    assert record["step"] == "transfer_study"
    assert record["inputs"].keys() >= {"source", "source_labels", "labels", "split"}
    assert source.provenance["step"] == "transfer_study_source"


def test_what_is_finished_is_not_trained_again(base, few, tmp_path, monkeypatch):
    given = (base, few.select(SOURCE), few.select(TARGET), config(baselines=False))
    monkeypatch.setattr(results, "figures", lambda evaluation: {})
    monkeypatch.setattr(results, "write_page", lambda *given, **options: None)
    steps, real = [], networks.train

    def train(model, run):
        steps.append(run.step)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return real(model, run)

    monkeypatch.setattr(networks, "train", train)
    with pytest.raises(KeyboardInterrupt):
        gf.transfer_study(*given, out=tmp_path / "clf")
    found = gf.transfer_study(*given, out=tmp_path / "clf")
    begun = ["source", "fine-tune", "fine-tune, without source", "fine-tune, probe from source"]
    assert steps == [*begun, *begun[-1:], "fine-tune, probe", "fine-tune, random weights"]
    assert found.methods.index.tolist() == [ROWS[0], *ROWS[3:]]


def test_labels_of_other_names_leave_zero_shot_empty_and_other_columns_can_be_learned(
    base, few, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr(results, "figures", lambda evaluation: {})
    monkeypatch.setattr(results, "write_page", lambda *given, **options: None)
    settings = config(source={"target": ("flag", "size"), "regression": ("size",)}, baselines=False)
    with caplog.at_level("INFO", logger="geneformer_repro"):
        found = gf.transfer_study(base, few.select(SOURCE), few.select(TARGET), settings, out=tmp_path / "clf")
    assert found.methods.loc[ZERO_SHOT].isna().all()
    assert found.methods.drop(ZERO_SHOT)["macro_f1"].notna().all()
    assert "no class of the name of each of 'cell_type'" in caplog.text
    assert [target.name for target in found.source.head.targets] == ["flag", "size"]


def test_a_reported_cell_that_the_source_teaches_is_refused_by_name(base, few, tmp_path):
    with pytest.raises(gf.InputError, match=r"24 of 24 test cells \(first: '.+'\) are among the cells of the source"):
        gf.transfer_study(base, few, few, config(baselines=False), out=tmp_path / "clf")
    assert not list(tmp_path.iterdir())


def test_a_training_cell_that_the_source_teaches_is_fine(base, few, tmp_path):
    parts = np.where(np.arange(120) % 3 == 0, "test", "train")
    pd.DataFrame({"cell": few.cell_names, "part": parts}).to_csv(tmp_path / "split.tsv", sep="\t", index=False)
    settings = config(split_file=str(tmp_path / "split.tsv"))
    experiment = study.prepared(base, few, settings)
    source = study.labelled_cells(few.select(np.flatnonzero(parts == "train")), ["cell_type"], rng=None)
    study.refuse_tested(experiment, source.cells.digests(), "the cells of the source")


# Predictions of another target


def test_probabilities_of_classes_of_the_same_names_are_taken_in_their_order():
    wide, narrow = Classes("a", ("x", "y", "z")), kind_of(Classes("b", ("z", "x")))
    np.testing.assert_allclose(narrow.from_another(wide, np.array([[0.2, 0.2, 0.6]])), [[0.75, 0.25]])
    assert kind_of(Classes("b", ("x", "w"))).from_another(wide, np.ones((1, 3))) is None
    assert narrow.from_another(Number("c"), np.ones((1, 1))) is None


def test_a_number_is_taken_as_it_is_and_a_class_is_none():
    assert kind_of(Number("b")).from_another(Number("a", 3.0), np.array([[7.0]])).tolist() == [7.0]
    assert kind_of(Number("b")).from_another(Classes("a", ("x", "y")), np.ones((1, 2))) is None


# Settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"target": ()}, "source.target must be at least one obs column", id="none"),
        pytest.param({"regression": ("age",)}, "source.regression must be among source.target", id="no target"),
        pytest.param({"epochs": 0.0}, "source.epochs must be above 0", id="no pass"),
    ],
)
def test_settings_out_of_bounds_are_refused_by_name(changes, message):
    with pytest.raises(ConfigError, match=message):
        config(source={"target": "type"} | changes)


def test_settings_of_the_target_are_refused_as_without_a_source():
    with pytest.raises(ConfigError, match=r"split\.test must be between"):
        config(test=1.5)
