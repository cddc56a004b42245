"""One network on labelled cells: what it starts from, what its loss counts, which of its epochs is kept."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F

from geneformer_repro.batching import end_to_end
from geneformer_repro.config import ConfigError, with_settings
from geneformer_repro.finetuning import networks
from geneformer_repro.finetuning.kinds.class_scores import scores
from geneformer_repro.finetuning.kinds.classes import ClassLabels
from geneformer_repro.finetuning.kinds.numbers import NumberLabels
from geneformer_repro.finetuning.networks import best_epoch, new_classifier
from geneformer_repro.finetuning.problems.cells import labelled_cells
from geneformer_repro.finetuning.settings.cells import FinetuneConfig
from geneformer_repro.finetuning.settings.genes import GeneFinetuneConfig
from geneformer_repro.finetuning.settings.networks import NetworkConfig, TransferConfig
from geneformer_repro.finetuning.splits import Split
from geneformer_repro.finetuning.transfer import prepare
from geneformer_repro.heads import Head
from geneformer_repro.pretraining.settings import PretrainConfig
from geneformer_repro.reading import outputs_of
from geneformer_repro.targets import Classes, Number
from geneformer_repro.training.config import training_arguments

TRAIN, VALIDATION = np.arange(0, 120, 2), np.arange(1, 120, 10)


def config(**changes):
    """Two steps."""
    return with_settings(
        NetworkConfig(), **{"epochs": 1, "batch_size": 30, "learning_rate": 1e-3, "warmup_steps": 0} | changes
    )


def task_of(few, *targets, **options):
    return labelled_cells(few, targets, rng=np.random.default_rng(0), **options)


def trained(task, start, folder, *, validation_rows=(), pretrained=True, train_rows=TRAIN, **changes):
    split = Split(train_rows, np.array(validation_rows, dtype=int))
    return task.train(start, config(**changes), split, pretrained=pretrained, work=folder, step="test")


@pytest.fixture(scope="module")
def types(few):
    return task_of(few, "cell_type")


def weights_of(model):
    return torch.cat([weight.detach().flatten() for _, weight in sorted(model.state_dict().items())])


# What it starts from


def test_the_encoder_is_that_of_the_checkpoint_and_no_part_is_shared_with_it(base):
    model = new_classifier(base, Head((Classes("a", ("x", "y")),)), seed=0, pretrained=True)
    for (name, weight), (_, from_file) in zip(
        model.bert.state_dict().items(), base.model.bert.state_dict().items(), strict=True
    ):
        torch.testing.assert_close(weight, from_file, atol=0, rtol=0, msg=name)
        assert weight.data_ptr() != from_file.data_ptr()


def test_a_pooler_is_taken_over_where_both_have_one_and_learns_with_the_head(base):
    head = Head((Classes("a", ("x", "y")),), "pooler")
    first = dataclasses.replace(base, model=new_classifier(base, head, seed=1, pretrained=True))
    again = new_classifier(first, head, seed=2, pretrained=True)
    plain = new_classifier(first, Head(head.targets), seed=2, pretrained=True)
    torch.testing.assert_close(again.bert.state_dict(), first.model.bert.state_dict(), atol=0, rtol=0)
    torch.testing.assert_close(plain.bert.state_dict(), base.model.bert.state_dict(), atol=0, rtol=0)
    _, (learning,) = prepare(again, TransferConfig(strategy="probe"))
    assert {id(weight) for weight in learning.parameters} == {
        id(weight) for weight in (*again.classifier.parameters(), *again.bert.pooler.parameters())
    }


def test_random_weights_come_from_the_seed_alone_and_are_not_the_checkpoints(base):
    head = Head((Classes("a", ("x", "y")),))
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, same, other = (weights_of(new_classifier(base, head, seed=seed, pretrained=False)) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert not torch.equal(first, weights_of(new_classifier(base, head, seed=1, pretrained=True)))


def test_a_probe_ends_with_the_encoder_of_the_checkpoint_and_another_head(types, base, tmp_path):
    model, _ = trained(types, base, tmp_path, strategy="probe")
    assert torch.equal(weights_of(model.bert), weights_of(base.model.bert))
    fresh = new_classifier(base, model.head, seed=0, pretrained=True)
    assert not torch.equal(model.classifier.weight, fresh.classifier.weight)
    assert torch.equal(weights_of(fresh.bert), weights_of(model.bert))


def test_next_to_no_learning_rate_leaves_the_checkpoints_weights(types, base, tmp_path):
    model, _ = trained(types, base, tmp_path, learning_rate=1e-12)
    torch.testing.assert_close(weights_of(model.bert), weights_of(base.model.bert), atol=1e-6, rtol=0)


def test_all_of_a_random_network_learns_whatever_the_transfer(types, base, tmp_path):
    model, _ = trained(types, base, tmp_path, strategy="probe", pretrained=False)
    fresh = new_classifier(base, model.head, seed=0, pretrained=False)
    learned = [not torch.equal(*pair) for pair in zip(model.parameters(), fresh.parameters(), strict=True)]
    assert all(learned)
    assert not model.training


def test_the_checkpoint_is_left_as_it_is(types, base, tmp_path):
    before = base.fingerprint
    trained(types, base, tmp_path, learning_rate=0.1)
    assert base.fingerprint == before
    assert not base.model.training


# What the loss counts


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        pytest.param([0.0, 0, 0, 1, 2, 2], None, id="as scikit-learn"),
        pytest.param([0, 0, 0, 1, 2, 2, np.nan], None, id="without a label"),
        pytest.param([0.0, 0, 0, 2], [2 / 3, 0.0, 2.0], id="no cell of a class"),
    ],
)
def test_balanced_weights_are_one_over_the_share_of_a_class(labels, expected):
    labels = np.array(labels)
    known = labels[~np.isnan(labels)]
    weights = ClassLabels(Classes("a", ("x", "y", "z"))).class_weights(labels[:, None])
    assert weights == pytest.approx(expected or compute_class_weight("balanced", classes=np.arange(3), y=known))
    assert np.mean([weights[int(label)] for label in known]) == pytest.approx(1)


def test_numbers_have_no_balanced_weights():
    assert NumberLabels(Number("size")).class_weights(np.array([[1.0], [2.0]])) is None


@pytest.mark.slow
def test_against_rare_classes_both_ways_change_what_is_learned(few, base, tmp_path):
    """65 cells of the one class, 5 of the other."""
    flags = task_of(few, "flag")
    rows = np.concatenate([np.flatnonzero(flags.labels[:, 0] == 0)[:65], np.flatnonzero(flags.labels[:, 0] == 1)[:5]])
    shares = {}
    for how in ("none", "weights", "sampling"):
        model, _ = trained(flags, base, tmp_path / how, train_rows=rows, class_balance=how, strategy="probe",
                           learning_rate=0.05, epochs=6)  # fmt: skip
        found = outputs_of(model, flags.cells.select(rows), model.head).softmax(1)[:, 1].numpy()
        shares[how] = found.mean()
    assert shares["none"] < 0.25
    assert shares["weights"] > 1.5 * shares["none"]
    assert shares["sampling"] > 1.5 * shares["none"]


def test_a_target_without_weight_is_not_learned(few, base, tmp_path):
    task = task_of(few, "cell_type", "flag")
    model, _ = trained(task, base, tmp_path, task_weights={"flag": 0.0}, weight_decay=0.0)
    fresh = new_classifier(base, model.head, seed=0, pretrained=True).classifier.weight
    np.testing.assert_array_equal(
        (model.classifier.weight != fresh).any(dim=1).numpy(), [True, True, True, False, False]
    )


def test_a_cell_without_a_label_of_a_target_teaches_it_nothing(few, base, tmp_path):
    """Rows 0, 4, … have no class in ``partly``: it learns from them no more than if they were not there."""
    task = task_of(few, "partly", "flag")
    rows = np.arange(0, 120, 4)
    model, _ = trained(task, base, tmp_path, train_rows=rows, weight_decay=0.0)
    fresh = new_classifier(base, model.head, seed=0, pretrained=True).classifier.weight
    np.testing.assert_array_equal(
        (model.classifier.weight != fresh).any(dim=1).numpy(), [False, False, False, True, True]
    )


# What is kept


@pytest.fixture(scope="module")
def scored(types, gentle_base, tmp_path_factory):
    """Training with validation cells, long enough to get worse again."""
    return trained(types, gentle_base, tmp_path_factory.mktemp("scored"), validation_rows=VALIDATION, epochs=6,
                   batch_size=8, learning_rate=3e-3)  # fmt: skip


@pytest.mark.slow
def test_the_epoch_that_is_best_on_the_validation_cells_is_kept(scored, types):
    model, history = scored
    outputs = outputs_of(model, types.cells.select(VALIDATION), model.head)
    found = scores(types.labels[VALIDATION, 0].astype(int), types.targets[0].meaning(outputs).numpy())
    entries = history[history["epoch"] > 0].dropna(subset=["eval_selection"])
    assert found["macro_f1"] == pytest.approx(entries["eval_selection"].max())
    np.testing.assert_array_equal(entries["eval_selection"], entries["eval_macro_f1"])


def test_of_several_targets_the_scores_bear_their_names_and_their_mean_selects(few, base, tmp_path):
    task = task_of(few, "flag", "size", regression=("size",))
    _, history = trained(task, base, tmp_path, validation_rows=VALIDATION)
    entries = history.dropna(subset=["eval_selection"])
    assert {"eval_flag/accuracy", "eval_flag/macro_f1", "eval_size/r2", "eval_size/rmse"} <= set(history)
    explained = 1 - (entries["eval_size/rmse"] / np.std(task.labels[TRAIN, 1])) ** 2
    mean = (entries["eval_flag/macro_f1"] + explained) / 2
    np.testing.assert_allclose(entries["eval_selection"], mean)


def test_without_validation_cells_the_last_epoch_is_kept_and_nothing_is_scored(types, base, tmp_path, monkeypatch):
    saved = {}
    keep = networks._keep

    def keep_and_look(*given):
        keep(*given)
        saved.update({path.parent.name: load_file(path) for path in tmp_path.glob("checkpoint-*/model.safetensors")})

    monkeypatch.setattr(networks, "_keep", keep_and_look)
    model, history = trained(types, base, tmp_path, epochs=2)
    assert not [name for name in history if name.startswith("eval")]
    last = saved[f"checkpoint-{history['step'].max()}"]
    torch.testing.assert_close(dict(model.state_dict()), last, atol=0, rtol=0)


def names_in(folder):
    return {path.name for path in folder.iterdir() if path.suffix != ".sha256"}


def never(*given, **options):
    pytest.fail("trained again")


@pytest.mark.parametrize("transfer", ["full", "lora"])
def test_a_finished_network_is_kept_as_weights_history_and_log_and_not_trained_again(
    types, base, tmp_path, monkeypatch, transfer
):
    given = {"validation_rows": VALIDATION, "strategy": transfer, "pooling": "attention"}
    model, history = trained(types, base, tmp_path, **given)
    assert names_in(tmp_path) == {"model.safetensors", "history.json", "log.jsonl"}
    (tmp_path / "checkpoint-2").mkdir()  # as a kill before the last step of tidying up leaves it
    monkeypatch.setattr(networks, "train", never)
    again, same = trained(types, base, tmp_path, **given)
    assert not again.training
    assert again.head == model.head
    torch.testing.assert_close(dict(again.state_dict()), dict(model.state_dict()), atol=0, rtol=0)
    pd.testing.assert_frame_equal(same, history, check_exact=True)
    assert names_in(tmp_path) == {"model.safetensors", "history.json", "log.jsonl"}


def test_a_history_is_read_as_it_was_with_gaps_and_infinity(tmp_path):
    history = pd.DataFrame(
        [{"step": 1, "loss": 0.1 + 0.2, "epoch": 1.0}, {"step": 2, "grad_norm": np.inf, "epoch": 1.5}]
    )
    networks._keep(torch.nn.Linear(1, 1), history, tmp_path)
    pd.testing.assert_frame_equal(networks.read_history(tmp_path), history, check_exact=True)


@pytest.mark.parametrize("harm", ["truncated", "gone"])
def test_weights_that_are_not_what_was_kept_are_made_again(types, base, tmp_path, caplog, harm):
    model, _ = trained(types, base, tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8]) if harm == "truncated" else path.unlink()
    again, _ = trained(types, base, tmp_path)
    torch.testing.assert_close(dict(again.state_dict()), dict(model.state_dict()), atol=0, rtol=0)
    assert ("model.safetensors is damaged, and made again" in caplog.text) == (harm == "truncated")


@pytest.mark.parametrize(
    ("found", "epoch"),
    [
        pytest.param([0.1, 0.5, 0.9, 0.9], 2.0, id="the first of equals"),
        pytest.param([0.1, 0.5, 0.4, 0.4], 1.0, id="the first epoch"),
        pytest.param([0.9, 0.1, 0.5, 0.4], 2.0, id="never the untrained one"),
    ],
)
def test_the_best_epoch_is_read_from_the_history(found, epoch):
    history = pd.DataFrame({"epoch": [0.0, 1, 1, 2, 3], "eval_selection": [*found[:2], np.nan, *found[2:]]})
    assert best_epoch(history) == epoch
    assert best_epoch(history.assign(epoch=history["epoch"] / 4)) == 1, "at least one pass"


# Asking


def test_outputs_are_those_of_one_cell_at_a_time_in_the_order_of_the_cells(scored, types):
    model, _ = scored
    cells = types.cells.select(np.array([100, 3, 50, 7]))
    with torch.inference_mode():
        alone = torch.cat([model(**end_to_end([cell], cells.vocabulary).inputs).logits for cell in cells])
    torch.testing.assert_close(outputs_of(model, cells, model.head), alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(outputs_of(model, cells, model.head, max_tokens=40), alone, atol=1e-5, rtol=1e-5)


def test_asking_does_not_end_training(scored, types):
    model, _ = scored
    model.train()
    outputs_of(model, types.cells.select(np.arange(3)), model.head)
    assert model.training
    model.eval()


def test_settings_out_of_bounds_are_refused_by_name():
    with pytest.raises(ConfigError, match=r"transfer\.strategy must be one of 'full', .*found 'half'"):
        config(strategy="half")
    with pytest.raises(ConfigError, match=r"training\.class_balance must be one of .*found 'weight'"):
        config(class_balance="weight")
    with pytest.raises(ConfigError, match=r"training\.task_weights must be at least 0 each, found {'flag': -1.0}"):
        config(task_weights={"flag": -1})
    with pytest.raises(dataclasses.FrozenInstanceError):
        config().epochs = 3


def test_equal_validation_numbers_stop_no_run(few, base, tmp_path):
    task = task_of(few, "size", regression=("size",))
    same = dataclasses.replace(
        task, labels=np.where(np.isin(np.arange(len(task.labels)), VALIDATION), 3.0, task.labels.T).T
    )
    _, history = trained(same, base, tmp_path, validation_rows=VALIDATION)
    assert history["eval_selection"].notna().any()
    assert "eval_r2" not in history


# A share of a label spread over all classes


@pytest.mark.parametrize("share", [0.2, "0.2"], ids=["number", "text"])
def test_label_smoothing_is_that_of_torch_for_classes_and_none_for_numbers(few, base, share):
    task = labelled_cells(few, ["cell_type", "size"], regression=["size"], rng=np.random.default_rng(0))
    rows = np.arange(0, 120, 20)
    config = FinetuneConfig(
        target=("cell_type", "size"), regression=("size",), training={"trainer": {"label_smoothing_factor": share}}
    )
    parts = task.training(base, config, Split(rows, rows))
    model, _ = parts.make_model()
    outputs, labels = torch.linspace(-1, 1, 24).reshape(6, 4), torch.tensor(task.labels[rows], dtype=torch.float32)
    size = parts.head.targets[1]
    expected = F.cross_entropy(outputs[:, :3], labels[:, 0].long(), label_smoothing=0.2, reduction="sum")
    expected += F.mse_loss(outputs[:, 3], (labels[:, 1] - size.mean) / size.sd, reduction="sum")
    torch.testing.assert_close(model.sum_of_losses(outputs, labels), expected)
    run = parts.as_run(work=Path("work"), step="teach")
    assert training_arguments(run).label_smoothing_factor == 0  # of Trainer, which knows no target


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda given: FinetuneConfig(target="a", training=given(1.5)), "must be between 0 and 1, found 1.5"),
        (lambda given: GeneFinetuneConfig(training=given(-0.1)), "must be between 0 and 1, found -0.1"),
        (lambda given: FinetuneConfig(target="a", regression=("a",), training=given(0.1)), "no effect on numbers"),
        (lambda given: PretrainConfig(training=given(0.1)), "no effect on pretraining"),
    ],
    ids=["above 1", "below 0", "numbers", "pretraining"],
)
def test_label_smoothing_where_it_cannot_be_is_refused(make, message):
    with pytest.raises(ConfigError, match=rf"trainer.label_smoothing_factor .*{message}"):
        make(lambda share: {"trainer": {"label_smoothing_factor": share}})


@pytest.mark.parametrize("target", [5, (1, 2), None], ids=repr)
def test_a_target_that_is_no_name_of_a_column_is_refused(target):
    with pytest.raises(ConfigError, match=r"FinetuneConfig\.target must be an obs column, or several, found"):
        FinetuneConfig(target=target)
