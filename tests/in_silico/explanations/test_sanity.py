"""What stays of an explanation when the model forgets what it learned."""

import numpy as np
import pandas as pd
import pytest
import torch
from made_explanations import Made, rows
from scipy.stats import spearmanr
from test_explained_samples import checkpoint_of, network_of

import geneformer_repro as gf
from geneformer_repro import InputError
from geneformer_repro.heads import CellClassifier, Head
from geneformer_repro.in_silico.explanations.sanity import (
    RANDOM_WEIGHTS,
    _fitted,
    forgetting,
    sanity,
    with_permuted_labels,
)
from geneformer_repro.model import bert_config
from geneformer_repro.targets import Classes, Number, SurvivalTime


@pytest.fixture(scope="module")
def classifier(vocabulary):
    torch.manual_seed(0)
    head = Head((Number("score", 2.0, 3.0), Classes("type", ("a", "b", "c"))))
    return gf.Checkpoint(CellClassifier(bert_config("tiny", vocabulary), head).eval(), vocabulary, name="classifier")


def weights(checkpoint, prefix):
    return {name: value for name, value in checkpoint.model.state_dict().items() if name.startswith(prefix)}


def same(one, other, prefix):
    """Whether weights are equal; those that every network begins with (norms, biases) are no evidence."""
    pairs = [(weights(one, prefix)[name], value) for name, value in weights(other, prefix).items()]
    telling = [(a, b) for a, b in pairs if b.std() > 0]
    assert telling
    return all(torch.equal(a, b) for a, b in telling)


def test_weights_are_drawn_anew_from_the_top_down(classifier):
    steps = dict(forgetting(classifier))
    assert list(steps) == ["head", "down to block 3", "down to block 2", "down to block 1", RANDOM_WEIGHTS]
    for name, n_kept in zip(steps, (3, 2, 1, 0, 0), strict=True):
        assert not same(steps[name], classifier, "classifier.")
        kept = [same(steps[name], classifier, f"bert.encoder.layer.{i}.") for i in range(3)]
        assert kept == [i < n_kept for i in range(3)]
        assert same(steps[name], classifier, "bert.embeddings.") == (name != RANDOM_WEIGHTS)


def test_the_model_itself_stays_as_it_is(classifier):
    before = {name: value.clone() for name, value in classifier.model.state_dict().items()}
    list(forgetting(classifier))
    assert all(torch.equal(value, before[name]) for name, value in classifier.model.state_dict().items())


def test_a_seed_decides_the_weights_and_touches_no_other_draw(classifier):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = (dict(forgetting(classifier, seed=seed))[RANDOM_WEIGHTS] for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert first.fingerprint == again.fingerprint != other.fingerprint


def test_a_pretrained_model_forgets_too(checkpoint):
    assert [name for name, _ in forgetting(checkpoint)] == [
        "down to block 3",
        "down to block 2",
        "down to block 1",
        RANDOM_WEIGHTS,
    ]


@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_head_of_permuted_labels_is_the_regression_that_was_fitted(vocabulary, n_classes):
    from sklearn.linear_model import LogisticRegression

    names = ("a", "b", "c")[:n_classes]
    head = Head((Number("score", 2.0, 3.0), Classes("type", names)))
    model = gf.Checkpoint(CellClassifier(bert_config("tiny", vocabulary), head).eval(), vocabulary)
    rng = np.random.default_rng(0)
    vectors, labels = rng.normal(3, 2, (60, 64)), rng.choice(names, 60)
    other = with_permuted_labels(model, "type", vectors, labels, seed=4)
    dealt = np.random.default_rng(4).permutation(labels.astype(object)).astype(str)
    scaled = (vectors - vectors.mean(0)) / vectors.std(0)
    expected = LogisticRegression(max_iter=1000).fit(scaled, dealt).predict_proba(scaled)
    with torch.no_grad():
        outputs = other.model.classifier(torch.as_tensor(vectors, dtype=torch.float32))
        ours = outputs[:, 1:].softmax(-1).numpy()
        before = model.model.classifier(torch.as_tensor(vectors, dtype=torch.float32))
    np.testing.assert_allclose(ours, expected, atol=1e-4)
    np.testing.assert_allclose(outputs[:, 0], before[:, 0], rtol=1e-5)


def test_labels_that_are_all_alike_cannot_be_permuted(classifier):
    with pytest.raises(InputError, match="permuting it changes nothing"):
        with_permuted_labels(classifier, "type", np.ones((4, 64)), ["a"] * 4)


@pytest.mark.parametrize("learned_by", ["cox", "hazard", "weibull"])
def test_a_head_of_permuted_times_is_where_the_penalised_loss_is_least(vocabulary, learned_by):
    edges = (0.0, 50.0, 200.0) if learned_by == "hazard" else ()
    target = SurvivalTime("death", "days", (100.0,), 100.0, learned_by=learned_by, edges=edges, unit=100.0)
    model = gf.Checkpoint(CellClassifier(bert_config("tiny", vocabulary), Head((target,))).eval(), vocabulary)
    rng = np.random.default_rng(0)
    vectors, times = rng.normal(3, 2, (40, 64)), np.stack([rng.exponential(100, 40), rng.random(40) < 0.7], axis=1)
    other = with_permuted_labels(model, "death", vectors, times.tolist(), seed=4)
    dealt = np.random.default_rng(4).permutation(times)
    loss_of = target.prepared_loss(torch.from_numpy(np.column_stack([dealt, np.zeros(40)])))
    sd, layer = vectors.std(0), other.model.classifier
    weight, bias = (of.detach().double() for of in (layer.weight, layer.bias))
    of_weibull = learned_by == "weibull"  # whose penalty is on the log hazard, minus shape times the log scale
    shared = torch.tensor([[1.0], [0.0]]) if of_weibull else 1.0
    shape = bias[1].exp() if of_weibull else 1.0
    assert not of_weibull or not weight[1].any()

    def penalised(weight, bias):
        outputs = torch.from_numpy(vectors) @ weight.T + bias
        return (loss_of(outputs) + 0.5 * (weight * torch.from_numpy(sd) * shape).square().sum()).item()

    least = penalised(weight, bias)
    for _ in range(20):
        moved = weight + 1e-2 * shared * torch.from_numpy(rng.normal(size=weight.shape) / sd)
        assert penalised(moved, bias) > least


def test_of_a_weibull_fit_shape_and_weights_are_where_the_loss_has_no_slope():
    """With more columns than events, where a shape for each row would grow for ever."""
    rng = np.random.default_rng(1)
    target = SurvivalTime("death", "days", (1.0,), 1.0, learned_by="weibull", unit=1.0)
    vectors, event = rng.normal(size=(20, 30)), np.arange(20) % 3 > 0
    time = rng.weibull(2.0, 20) * np.exp(-0.3 * vectors[:, 0])
    weight_2D, bias_2 = _fitted(target, vectors, np.column_stack([time, event]))
    shape = np.exp(bias_2[1])
    log_hazard = -shape * (vectors @ weight_2D[0] + bias_2[0])
    cumulative = np.exp(log_hazard) * time**shape
    rate = event - cumulative  # minus the slope of the loss by the log hazard
    np.testing.assert_allclose(vectors.T @ rate, -shape * weight_2D[0], atol=0.01)
    assert rate.sum() == pytest.approx(0, abs=0.01)
    assert (event * (1 + shape * np.log(time)) - cumulative * shape * np.log(time)).sum() == pytest.approx(0, abs=0.01)


def test_values_forget_layer_by_layer():
    network = network_of(layers=3)
    steps = dict(forgetting(checkpoint_of(network)))
    assert list(steps) == ["head", "down to layer 3", "down to layer 2", RANDOM_WEIGHTS]
    for name, n_kept in zip(steps, (3, 2, 1, 0), strict=True):
        kept = [same(steps[name], checkpoint_of(network), f"layers.{i}.") for i in range(3)]
        assert kept == [i < n_kept for i in range(3)]
        assert not same(steps[name], checkpoint_of(network), "classifier.")
        assert not same(steps[name], checkpoint_of(network), "skip.expression.")


def test_attributions_are_compared_cell_by_cell():
    rng = np.random.default_rng(1)
    ours = {f"d.{i}": rng.normal(size=20) for i in range(5)}
    theirs = {cell: rng.normal(size=20) + values for cell, values in list(ours.items())[:3]}
    opposite = {cell: -values for cell, values in ours.items()}
    made = {"first": theirs, "second": opposite}
    again = ((name, lambda of=of: Made(rows(of))) for name, of in made.items())
    table = sanity(Made(rows(ours)), again).set_index("model")
    expected = [spearmanr(np.abs(ours[cell]), np.abs(theirs[cell])).statistic for cell in theirs]
    np.testing.assert_allclose(table.loc["first", "spearman"], np.median(expected))
    assert table.loc["first", "n_cells"] == 3
    np.testing.assert_allclose(table.loc["second", ["spearman", "signed"]].astype(float), [1, -1])


def test_methods_and_states_stand_apart():
    values = {"d.1": np.arange(20.0)}
    parts = [rows(values, method=method, state=state) for method in ("hide", "mask") for state in ("B", "T")]
    table = sanity(Made(pd.concat(parts)), iter([("same", lambda: Made(pd.concat(parts)))]))
    assert table[["method", "state"]].to_numpy().tolist() == [
        ["hide", "B"], ["hide", "T"], ["mask", "B"], ["mask", "T"]
    ]  # fmt: skip
    np.testing.assert_allclose(table["spearman"], 1)
