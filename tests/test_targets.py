"""Kinds of target: loss, missing labels, the meaning of outputs, columns of predictions, and JSON."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from transformers import BertConfig

from geneformer_repro.errors import InputError
from geneformer_repro.heads import CellClassifier, Head
from geneformer_repro.targets import Classes, Number, Response, SurvivalTime, Target, UnknownKindError, labels_of

TYPE, AGE = Classes("type", ("b", "t")), Number("age", 40.0, 10.0)
RESPONSE = Response("response", "LN_IC50", 40.0, 10.0, samples=("A549",), drugs=("erlotinib", "olaparib"))
OUTPUTS = torch.tensor([[0.0, np.log(3)], [5.0, 5.0], [1.0, -2.0]])


@pytest.mark.parametrize(
    ("target", "outputs", "labels", "missing"),
    [
        pytest.param(TYPE, OUTPUTS, [[0.0], [1.0], [1.0]], [float("nan")], id="classes"),
        pytest.param(TYPE, OUTPUTS, [[0.0], [1.0], [1.0]], [-100.0], id="classes, as of tokens"),
        pytest.param(AGE, OUTPUTS[:, :1], [[30.0], [40.0], [55.0]], [float("nan")], id="number"),
        pytest.param(
            RESPONSE,
            OUTPUTS[:, :1],
            [[30.0, 0, 1, 0], [40.0, 0, 0, 0], [55.0, 0, 1, 2]],
            [float("nan"), 0, 0, 0],
            id="response",
        ),
    ],
)
def test_the_loss_is_a_sum_over_rows_to_which_a_missing_label_adds_nothing(target, outputs, labels, missing):
    labels = torch.tensor(labels)
    alone = [target.loss(outputs[[i]], labels[[i]]) for i in range(3)]
    torch.testing.assert_close(target.loss(outputs, labels), sum(alone))
    labels[1] = torch.tensor(missing)
    torch.testing.assert_close(target.loss(outputs, labels), alone[0] + alone[2])


def test_outputs_mean_probabilities_or_numbers_of_their_own_type():
    for dtype in (torch.float32, torch.float64):
        outputs = OUTPUTS.to(dtype)
        np.testing.assert_allclose(TYPE.meaning(outputs)[:2], [[0.25, 0.75], [0.5, 0.5]], rtol=1e-6)
        np.testing.assert_allclose(AGE.meaning(outputs[:, :1]), [[40.0], [90.0], [50.0]])
        assert TYPE.meaning(outputs).dtype == AGE.meaning(outputs).dtype == dtype
    assert TYPE.sums_to_one
    assert not AGE.sums_to_one


def test_a_table_of_predictions_has_the_class_its_probability_and_all_or_the_number():
    columns = TYPE.columns(np.array([[0.25, 0.75], [0.5, 0.5]]))
    assert {name: one.tolist() for name, one in columns.items()} == {
        "type_predicted": ["t", "b"],
        "type_probability": [0.75, 0.5],
        "type_p_b": [0.25, 0.5],
        "type_p_t": [0.75, 0.5],
    }
    assert AGE.columns(np.array([[41.0]]))["age_predicted"].tolist() == [41.0]


def test_a_response_is_learned_as_a_number_whoever_it_is_of_and_says_its_measure():
    labels = torch.tensor([[30.0], [40.0], [55.0]])
    whose = torch.cat([labels, torch.tensor([[0.0, 1, 0], [0, 0, 0], [0, 1, 2]])], dim=1)
    torch.testing.assert_close(RESPONSE.loss(OUTPUTS[:, :1], whose), AGE.loss(OUTPUTS[:, :1], labels))
    torch.testing.assert_close(RESPONSE.meaning(OUTPUTS[:, :1]), AGE.meaning(OUTPUTS[:, :1]))
    assert (RESPONSE.n_labels, RESPONSE.n_outputs, RESPONSE.n_meanings) == (4, 1, 1)
    assert RESPONSE.described == "'response' (LN_IC50, a response)"
    assert Target.from_json(RESPONSE.to_json()) == RESPONSE
    with pytest.raises(InputError, match="have names, found ''"):
        Response("response", "")
    with pytest.raises(InputError, match="'measure' is missing"):
        Target.from_json({name: value for name, value in RESPONSE.to_json().items() if name != "measure"})


HAZARDS = SurvivalTime("died", "days", (100.0, 400.0), 400.0, edges=(0.0, 150.0, 300.0, 700.0))
COX, WEIBULL = replace(HAZARDS, learned_by="cox", edges=()), replace(HAZARDS, learned_by="weibull", unit=250.0)
LIVES = torch.tensor([[100.0, 1, 0], [200, 1, 0], [200, 0, 1], [300, 1, 1], [650, 0, 0], [900, 1, 1]])


@pytest.mark.parametrize("target", [HAZARDS, WEIBULL], ids=["hazard", "weibull"])
def test_what_an_encoder_learns_of_survival_is_a_sum_over_rows_without_those_that_have_no_time(target):
    outputs = torch.randn(6, target.n_outputs, generator=torch.Generator().manual_seed(1))
    alone = torch.stack([target.loss(outputs[[i]], LIVES[[i]]) for i in range(6)])
    torch.testing.assert_close(target.loss(outputs, LIVES), alone.sum())
    fewer = LIVES.clone()
    fewer[[1, 4]] = float("nan")
    torch.testing.assert_close(target.loss(outputs, fewer), alone[[0, 2, 3, 5]].sum())


def test_cox_compares_within_cohorts_and_several_networks_at_once():
    outputs = torch.randn(3, 6, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    loss = COX.prepared_loss(LIVES)
    torch.testing.assert_close(loss(outputs), torch.stack([COX.loss(of_network, LIVES) for of_network in outputs]))
    of_cohorts = [LIVES[:, 2] == number for number in (0, 1)]
    torch.testing.assert_close(loss(outputs[0]), sum(COX.loss(outputs[0][rows], LIVES[rows]) for rows in of_cohorts))
    torch.testing.assert_close(loss(outputs + 100), loss(outputs))
    assert COX.loss(outputs[0], LIVES * torch.tensor([1.0, 0.0, 1.0])) == 0  # nobody has the event


@pytest.mark.parametrize("target", [HAZARDS, COX, WEIBULL], ids=["hazard", "cox", "weibull"])
def test_survival_is_told_as_a_risk_and_the_probability_at_each_time(target):
    outputs = torch.randn(6, target.n_outputs, generator=torch.Generator().manual_seed(1)).double()
    target = target.fitted(outputs, LIVES.double() * torch.tensor([1.0, 1.0, 0.0]))
    meaning = target.meaning(outputs)
    assert meaning.shape == (6, target.n_meanings) == (6, 3)
    risk, early, late = meaning.T
    assert ((late > 0) & (late < early) & (early < 1)).all()
    if target.learned_by == "cox":
        assert torch.equal(risk.argsort(), late.argsort(descending=True))
    columns = target.columns(meaning.numpy())
    np.testing.assert_array_equal(columns["died_risk"], risk)
    np.testing.assert_array_equal(columns["died_free_at_400"], late)


def test_cox_tells_no_survival_where_cohorts_have_baselines_of_their_own():
    outputs = torch.zeros(6, 1, dtype=torch.float64)
    assert COX.fitted(outputs, LIVES.double()).meaning(outputs)[:, 1:].isnan().all()


@pytest.mark.parametrize("target", [TYPE, AGE, HAZARDS, replace(COX, baseline=(0.1, 0.2), cohorts=("a", "b")), WEIBULL])
def test_json_gives_the_same_target(target):
    assert Target.from_json(target.to_json()) == target


def test_another_kind_is_refused_by_its_name():
    with pytest.raises(
        UnknownKindError, match=r"'os' is of kind 'hazards'\. There are: 'classes', 'number', 'response', 'survival'"
    ):
        Target.from_json({"kind": "hazards", "name": "os"})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda: Classes("a", ("x",)), "at least two different classes", id="one class"),
        pytest.param(lambda: Classes("a", ()), "at least two different classes", id="no class"),
        pytest.param(lambda: Classes("a", ("x", "x")), "at least two different classes", id="twice"),
        pytest.param(lambda: Classes("", ("x", "y")), "have names", id="no name"),
        pytest.param(lambda: Number(""), "have names", id="number without name"),
        pytest.param(lambda: Number("a", 0.0, 0.0), "sd above 0", id="no spread"),
        pytest.param(lambda: Number("a", float("nan")), "sd above 0", id="no mean"),
        pytest.param(lambda: SurvivalTime("a", "t", (2.0, 1.0), 1.0), "times that rise from above 0", id="times fall"),
        pytest.param(lambda: SurvivalTime("a", "t", (1.0, 2.0), 3.0), "one of them the horizon", id="no horizon"),
    ],
)
def test_a_target_that_cannot_be_learned_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


@dataclass(frozen=True)
class Range(Number):
    """Two numbers of a row, learned together; for labels of several numbers."""

    n_labels = 2

    def loss(self, outputs_NK, labels_NS, *, weights=None, smoothing=0.0):
        """Squared distance to both ends."""
        known = ~labels_NS.isnan().any(1)
        return ((outputs_NK[known] - labels_NS[known]) ** 2).sum()


def test_a_label_may_have_several_numbers_beside_others_that_have_one():
    head = Head((TYPE, Range("range"), AGE))
    config = BertConfig(vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4)
    model = CellClassifier(config, head).eval()
    outputs = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    nan = float("nan")
    labels = torch.tensor([[0.0, 1.0, 2.0, 30.0], [1.0, nan, 3.0, nan], [nan, 0.0, 0.0, 45.0]])
    own = [labels[:, :1], labels[:, 1:3], labels[:, 3:]]
    expected = sum(
        target.loss(one, of_target)
        for target, one, of_target in zip(head.targets, head.split(outputs), own, strict=True)
    )
    torch.testing.assert_close(model.sum_of_losses(outputs, labels), expected)
    assert head.n_labels == 4
    for of_target, expected in zip(labels_of(head.targets, labels.numpy()), own, strict=True):
        np.testing.assert_array_equal(of_target, expected)
    batch = {"input_ids": torch.tensor([2, 3] * 3), "lengths": [2, 2, 2]}
    logits = model(**batch).logits
    torch.testing.assert_close(model(**batch, labels=labels).loss, model.sum_of_losses(logits, labels) / 3)
