"""A network that pools bags of cells: what its weights mean, and that it is its own folder."""

import dataclasses
import json

import numpy as np
import pytest
import torch

import geneformer_repro as gf
from geneformer_repro.bags import BagNetwork, Bags, BagShape, GatedAttention, entropy_of
from geneformer_repro.heads import shares_within
from geneformer_repro.targets import Classes, Number

TARGETS = (Classes("response", ("no", "yes")), Number("age", 50.0, 9.0))
LENGTHS = np.array([3, 1, 6])
TYPES = np.array([0, 0, 1, -1, -1, 0, 0, 1, 1, 1])
POOLINGS = ("mean", "attention", "cell_type")


def bags():
    vectors = np.random.default_rng(0).normal(size=(LENGTHS.sum(), 4))
    return Bags(torch.tensor(vectors, dtype=torch.float32), LENGTHS, TYPES)


def network(pooling, hidden=5):
    shape = BagShape(
        pooling=pooling,
        n_inputs=4,
        hidden=hidden,
        attention=3,
        dropout=0.5,
        cell_types=("B", "T") if pooling == "cell_type" else (),
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        made = BagNetwork(shape, TARGETS)
        for parameter in made.parameters():
            torch.nn.init.normal_(parameter)
    made.standardise(bags().vectors_ND + 0.3)
    return made.eval()


def pooled_one_by_one(made, bag, types):
    """The slow way, from the paper's equation: one bag, one loop."""
    hidden = made.body((bag - made.mean_D) / made.sd_D)

    def weights(attention, rows, bias=0.0):
        scores = [
            (attention.score.weight[0] @ (torch.tanh(attention.value(row)) * torch.sigmoid(attention.gate(row))))
            + attention.score.bias[0]
            for row in rows
        ]
        return torch.softmax(torch.stack(scores) + bias, dim=0)

    if made.shape.pooling == "mean":
        return hidden.mean(0), torch.full((len(bag),), 1 / len(bag))
    if made.shape.pooling == "attention":
        share = weights(made.attention, hidden)
        return share @ hidden, share
    present = sorted(set(types.tolist()))
    shares = {kind: weights(made.attention, hidden[types == kind]) for kind in present}
    of_types = torch.stack([shares[kind] @ hidden[types == kind] for kind in present])
    share_of_types = weights(made.type_attention, of_types, made.type_bias[present])
    parts = [share * shares[kind] for kind, share in zip(present, share_of_types, strict=True)]
    return share_of_types @ of_types, torch.cat(parts)


@pytest.mark.parametrize("hidden", [0, 5])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_bags_end_to_end_are_bags_one_by_one(pooling, hidden):
    made, given = network(pooling, hidden), bags()
    with torch.inference_mode():
        outputs, attention = made(given)
        ends = np.cumsum(LENGTHS)[:-1]
        for i, (bag, types) in enumerate(zip(np.split(given.vectors_ND, ends), np.split(TYPES, ends), strict=True)):
            vector, share = pooled_one_by_one(made, bag, types)
            torch.testing.assert_close(outputs[i], made.classifier(vector))
            torch.testing.assert_close(attention[given.cells_of(np.array([i]))], share)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_bag_does_not_depend_on_the_others_or_on_the_order_of_its_cells(pooling):
    made, given = network(pooling), bags()
    with torch.inference_mode():
        outputs, attention = made(given)
        alone = made(given.select(np.array([2])))
        torch.testing.assert_close(alone.outputs_PK, outputs[2:])
        order = np.array([0, 2, 1, 3, 4, 5])[[0, 1, 2, 5, 3, 4]]  # within types
        shuffled = Bags(
            alone.attention_N.new_tensor(given.vectors_ND[4:][order].tolist()), LENGTHS[2:], TYPES[4:][order]
        )
        torch.testing.assert_close(made(shuffled).attention_N, attention[4:][order])


def test_attention_sums_to_one_in_each_bag_however_large_its_scores():
    made = network("cell_type")
    with torch.no_grad():
        made.attention.score.weight.mul_(1e4)
        _, attention = made(bags())
    np.testing.assert_allclose(np.add.reduceat(attention.numpy(), [0, 3, 4]), 1, rtol=1e-6)


def test_a_type_that_a_bag_lacks_has_no_say():
    made, given = network("cell_type"), bags()
    with torch.no_grad():
        before = made(given).outputs_PK
        made.type_bias[0] = 100.0
        after = made(given).outputs_PK
    torch.testing.assert_close(after[1], before[1])  # one cell, of no known type
    assert not torch.allclose(after[0], before[0])


def test_shares_of_equal_scores_are_equal_and_of_no_rows_none():
    from geneformer_repro.attention import Cells

    share = shares_within(torch.zeros(5), Cells([2, 3]), torch.tensor([0.0, 0, 1, 1, 0]))
    assert share.tolist() == [0, 0, 0.5, 0.5, 0]


@pytest.mark.parametrize("pooling", POOLINGS)
def test_losses_are_sums_over_bags_so_that_batches_add_up(pooling):
    made, given = network(pooling), bags()
    labels = torch.tensor([[1.0, 60.0], [0.0, float("nan")], [float("nan"), 41.0]])
    with torch.inference_mode():
        whole = made.losses(labels)(made(given).outputs_PK)
        parts = [
            made.losses(labels[rows])(made(given.select(rows)).outputs_PK) for rows in (np.array([0, 2]), np.array([1]))
        ]
    torch.testing.assert_close(torch.stack(parts).sum(), whole)


def test_constant_inputs_are_not_divided_by_nothing():
    made = network("mean")
    made.standardise(torch.ones(3, 4))
    assert made.sd_D.tolist() == [1, 1, 1, 1]


def test_the_attention_is_that_of_the_paper():
    gate = GatedAttention(2, 1)
    for layer, weight in ((gate.value, [[1.0, 0.0]]), (gate.gate, [[0.0, 2.0]]), (gate.score, [[3.0]])):
        layer.weight.data, layer.bias.data = torch.tensor(weight), torch.zeros(1)
    expected = 3 * np.tanh(0.5) / (1 + np.exp(2.0))
    assert gate(torch.tensor([[0.5, -1.0]])).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_network_that_was_saved_is_the_same(pooling, tmp_path):
    made = network(pooling)
    made.write_into(tmp_path)
    again = BagNetwork.open(tmp_path)
    assert (again.shape, again.targets) == (made.shape, made.targets)
    with torch.inference_mode():
        assert torch.equal(again(bags()).outputs_PK, made(bags()).outputs_PK)
    assert not again.training


def test_what_is_no_network_or_a_damaged_one_is_refused(tmp_path):
    with pytest.raises(gf.InputError, match=r"no bags.json there, so no network of patients. Name the folder"):
        BagNetwork.open(tmp_path)
    network("mean").write_into(tmp_path)
    content = json.loads((tmp_path / "bags.json").read_text())
    for change, said in (
        ({"format": "geneformer_repro/bags/9"}, r"format 'geneformer_repro/bags/9', this version reads"),
        ({"shape": {"pooling": "mean"}}, r"'n_inputs' is missing in shape"),
    ):
        (tmp_path / "bags.json").write_text(json.dumps(content | change))
        with pytest.raises(gf.InputError, match=said):
            BagNetwork.open(tmp_path)


def test_columns_of_several_targets_stand_side_by_side():
    made = network("mean")
    with torch.inference_mode():
        meaning = made.meaning(made(bags()).outputs_PK)
    assert meaning.dtype == torch.float64
    assert list(made.columns(meaning.numpy())) == [
        "response_predicted", "response_probability", "response_p_no", "response_p_yes", "age_predicted",
    ]  # fmt: skip


def test_entropy_is_one_where_cells_count_alike_and_zero_where_one_has_all():
    attention = np.array([0.25] * 4 + [1.0, 0, 0] + [1.0] + [0.5, 0.5, 0, 0])
    np.testing.assert_allclose(entropy_of(attention, np.array([4, 3, 1, 4])), [1, 0, 1, 0.5])


def test_selected_bags_keep_their_cells():
    some = bags().select(np.array([2, 0]))
    assert some.lengths.tolist() == [6, 3]
    assert torch.equal(some.vectors_ND, bags().vectors_ND[[4, 5, 6, 7, 8, 9, 0, 1, 2]])
    assert dataclasses.replace(some).types_N.tolist() == [-1, 0, 0, 1, 1, 1, 0, 0, 1]
