"""Lifts of attention: values worked out by hand, slow references, and what must hold of any attention."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from geneformer_repro.attention import Attention, Cells, attend_shown
from geneformer_repro.in_silico.networks.lifts import (
    GeneTokens,
    log_lifts,
    pair_norms,
    received,
    received_lift,
    rollout,
    value_norms,
)

# A toy: 4 tokens, 2 heads of 2 channels
QUERY = [[[1, 0], [0, 1], [1, 1], [0, 0]], [[0, 1], [1, 0], [-1, 1], [1, 1]]]
KEY = [[[1, 0], [0, 1], [1, -1], [0, 0]], [[1, 1], [0, 1], [1, 0], [-1, 0]]]
VALUE = [[[1, 0], [0, 1], [1, 1], [2, 0]], [[0, 1], [1, 1], [-1, 0], [0, 2]]]
MIXING = [[1, 0, 0, 1], [0, 1, 1, 0], [1, 1, 0, 0], [0, 0, 1, -1]]
ALL_GENES = GeneTokens(torch.arange(4), torch.arange(0))
WITH_SPECIALS = GeneTokens(torch.tensor([1, 2]), torch.tensor([0, 3]))
SECOND = [[0.7, 0.1, 0.1, 0.1], [0.25, 0.25, 0.25, 0.25], [0, 0.5, 0.5, 0], [0.1, 0.2, 0.3, 0.4]]


def by_token(of_heads):
    return torch.tensor(of_heads, dtype=torch.float32).transpose(0, 1)


@pytest.fixture
def toy():
    return attend_shown(by_token(QUERY), by_token(KEY), by_token(VALUE), Cells([4]))[1]


@pytest.fixture
def output():
    layer = nn.Linear(4, 4)
    layer.weight.data = torch.tensor(MIXING, dtype=torch.float32)  # and a bias, which must not count
    return layer.eval()


def attention_of(weights_LL):
    """One head that attends by a matrix."""
    log_weights = torch.tensor(weights_LL).clamp(min=1e-30).log()
    n = len(log_weights)
    return Attention(
        log_weights[:, None] * math.sqrt(n), torch.eye(n)[:, None], torch.eye(n)[:, None], torch.zeros(n, 1), Cells([n])
    )


def near(found, expected):
    """Golden values have twelve digits; torch computes in float32."""
    np.testing.assert_allclose(np.asarray(found.detach()), expected, rtol=0, atol=1e-6)


class TestGolden:
    def test_5_1_log_sums(self, toy):
        near(toy.log_sum_TH[:, 0], [1.801087488217, 1.508773834128, 1.801087488217, 1.386294361120])
        near(toy.log_sum_TH[:, 1], [1.801087488217, 1.713671551249, 1.713671551249, 2.159009024930])

    def test_5_1_weights(self, toy):
        ((_, log_HQK),) = toy.log_weights(0)
        near(log_HQK[0, 1].exp(), [0.221181016370, 0.448580532956, 0.109057434303, 0.221181016370])
        near(log_HQK[1, 1].exp(), [0.365472307015, 0.180202952161, 0.365472307015, 0.088852433808])
        near(log_HQK[:, 0].exp().mean(0), [0.334880774663, 0.25, 0.25, 0.165119225337])

    def test_5_1_log_lifts_averaged_over_heads_densely_and_as_one_product(self, toy):
        lifts = log_lifts(toy, ALL_GENES)
        expected = [0.462743639846, -0.047326083452, -0.047326083452, -1.067465530049]
        near(lifts.dense().mean(0)[3], expected)
        sum_KQ = torch.zeros(4, 4)
        lifts.add_weighted(torch.full((2,), 0.5), sum_KQ)
        near(sum_KQ[:, 3], expected)

    def test_5_1_received(self, toy):
        near(received_lift(toy, 0, ALL_GENES)[:, 0], [1.140942565697, 1.198580532956, 0.859057434303, 0.801419467044])
        given_LH = torch.tensor([0.1, 0.2, 0.3, 0.4])[:, None].expand(-1, 2)
        near(received(toy, 0, given_LH).mean(1), [0.314382250991, 0.289756211236, 0.207373623476, 0.188487914297])

    def test_5_2_norms_of_values(self, toy, output):
        norm_TH = value_norms(toy.value_THE, output)
        near(norm_TH[:, 0], np.sqrt([2, 2, 6, 8]))
        near(norm_TH[:, 1], np.sqrt([2, 2, 2, 8]))
        ((_, log_HQK),) = toy.log_weights(0)
        weighted = (log_HQK.exp() * norm_TH.T[:, None]).mean(0)
        near(weighted[0], [0.473592933307, 0.353553390593, 0.526900435236, 0.467027695759])

    def test_5_2_norm_of_the_sum_over_heads(self, toy, output):
        found = pair_norms(toy, output, 0, torch.zeros(4, dtype=torch.long), torch.arange(4))
        near(found, [0.820287022593, 0.624026835813, 0.785371891782, 0.808915697597])

    def test_5_3_specials(self, toy):
        lifts = log_lifts(toy, WITH_SPECIALS)
        among = lifts.dense().exp2() / 2
        near(among.mean(0), [[0.567334066590, 0.432665933410], [0.737095615917, 0.262904384083]])
        near(lifts.dense().mean(0), [[0.043809117013, -0.466260606285], [0.553878840311, -0.976330329584]])
        near(lifts.on_specials_QH.mean(1), [0.448343386782, 0.522837629588])

    def test_5_4_rollout(self, toy):
        blocks = [toy, attention_of(SECOND)]
        of_first = rollout(blocks, 0, torch.tensor([1.0, 0, 0, 0]))
        near(of_first, [0.590156434995, 0.153915763364, 0.146407823785, 0.109519977856])
        of_genes = rollout(blocks, 0, torch.tensor([0, 0.5, 0.5, 0]))
        near(of_genes, [0.173543004869, 0.379501257343, 0.313806786025, 0.133148951763])


@pytest.fixture
def random():
    """Three cells of unlike length, the first and last token of each special; more queries than are done at once."""
    torch.manual_seed(0)
    lengths = [12, 300, 7]
    query, key, value = torch.randn(3, sum(lengths), 2, 8)
    return attend_shown(query, key, value, Cells(lengths))[1]


def tokens_of(attention, cell):
    start, stop = attention.cells.starts[cell : cell + 2]
    return GeneTokens(torch.arange(start + 1, stop - 1), torch.tensor([start, stop - 1]))


def slow_lifts(attention, cell, norm_TH=None):
    """The definition, with the whole matrix in float64: (H, G, G)."""
    start, stop = attention.cells.starts[cell : cell + 2]
    query, key = (tensor[start:stop].double() for tensor in (attention.query_THE, attention.key_THE))
    score = torch.einsum("ihe,jhe->hij", query, key) / math.sqrt(query.shape[-1])
    weight = score.softmax(-1)
    among = weight[:, 1:-1, 1:-1] / (1 - weight[:, 1:-1, [0, -1]].sum(-1, keepdim=True))
    if norm_TH is not None:
        norm = norm_TH[start + 1 : stop - 1].double()
        among = among * (norm / norm.mean(0)).T[:, None]
    return among * among.shape[-1]


@pytest.mark.parametrize("cell", [0, 1, 2])
def test_log_lifts_are_those_of_the_whole_matrix(random, cell):
    found = log_lifts(random, tokens_of(random, cell)).dense()
    np.testing.assert_allclose(found, slow_lifts(random, cell).log2(), rtol=0, atol=2e-5)
    np.testing.assert_allclose(found.exp2().mean(-1), 1, rtol=1e-5)  # of each row


def test_chosen_queries_and_keys_are_rows_and_columns_of_all(random):
    tokens, queries, keys = tokens_of(random, 1), torch.tensor([290, 3, 4]), torch.tensor([7, 0])
    norm_TH = torch.rand(len(random.query_THE), 2) + 0.1
    whole = log_lifts(random, tokens, norm_TH=norm_TH)
    chosen = log_lifts(random, tokens, queries=queries, keys=keys, norm_TH=norm_TH)
    np.testing.assert_allclose(chosen.dense(), whole.dense()[:, queries][..., keys], atol=1e-5)
    sum_KQ = torch.zeros(2, 3)
    weight_H = torch.tensor([0.3, 2.0])
    chosen.add_weighted(weight_H, sum_KQ)
    np.testing.assert_allclose(sum_KQ, torch.einsum("hqk,h->kq", chosen.dense(), weight_H), atol=1e-5)


def test_a_norm_stands_beside_attention_relative_to_its_mean_over_the_cell(random):
    norm_TH = torch.rand(len(random.query_THE), 2) + 0.1
    found = log_lifts(random, tokens_of(random, 1), norm_TH=norm_TH).dense()
    np.testing.assert_allclose(found, slow_lifts(random, 1, norm_TH).log2(), rtol=0, atol=2e-5)


def test_uniform_attention_has_log_lift_0_at_any_length():
    for n in (3, 50):
        attention = attend_shown(torch.zeros(n, 1, 4), torch.randn(n, 1, 4), torch.zeros(n, 1, 4), Cells([n]))[1]
        tokens = GeneTokens(torch.arange(1, n - 1), torch.tensor([0, n - 1]))
        np.testing.assert_allclose(log_lifts(attention, tokens).dense(), 0, atol=1e-6)


def test_what_genes_are_left_is_exact_where_special_tokens_get_nearly_all(random):
    """Of 1 − m only two digits would be left in float32."""
    key_THE = random.key_THE.clone()
    query_THE = random.query_THE.clone()
    query_THE[..., 0], key_THE[0, :, 0], key_THE[1:, :, 0] = 8.0, 5.0, 0.0
    sunk = attend_shown(query_THE, key_THE, random.value_THE, random.cells)[1]
    found = log_lifts(sunk, tokens_of(sunk, 0))
    assert found.on_specials_QH.min() > 0.9999
    np.testing.assert_allclose(found.dense(), slow_lifts(sunk, 0).log2(), rtol=0, atol=2e-5)


def test_received_lift_is_the_mean_of_the_column(random):
    tokens = tokens_of(random, 1)
    np.testing.assert_allclose(received_lift(random, 1, tokens).T, slow_lifts(random, 1).mean(1), rtol=1e-4)


def test_adapters_on_the_output_layer_count(random):
    class WithAdapter(nn.Module):
        def __init__(self):
            super().__init__()
            self.whole, self.down, self.up = nn.Linear(16, 16), nn.Linear(16, 2, bias=False), nn.Linear(2, 16)

        def forward(self, hidden):
            return self.whole(hidden) + self.up(self.down(hidden))

    output = WithAdapter()
    found = value_norms(random.value_THE, output)
    alone = torch.zeros_like(random.value_THE)
    alone[:, 1] = random.value_THE[:, 1]
    bias = output(torch.zeros(1, 16))
    np.testing.assert_allclose(found[:, 1].detach(), (output(alone.flatten(1)) - bias).norm(dim=1).detach(), rtol=1e-4)


def test_rollout_is_a_row_of_the_product_of_matrices_and_sums_to_1(random):
    blocks = [random, attend_shown(*torch.randn(3, 319, 2, 8), random.cells)[1]]
    product = torch.eye(12)
    for block in blocks:
        weight = torch.cat([log_HQK for _, log_HQK in block.log_weights(0)], 1).exp().mean(0)
        product = (weight + torch.eye(12)) / 2 @ product
    readout = torch.rand(12)
    readout /= readout.sum()
    found = rollout(blocks, 0, readout)
    np.testing.assert_allclose(found, readout @ product, atol=1e-6)
    assert abs(float(found.sum()) - 1) < 1e-5
