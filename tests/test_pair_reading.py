"""Forecasts of networks over pairs."""

import numpy as np
import pytest
import torch
from test_pair_networks import DRUGS, NETWORKS, PAIRS, made_inputs, made_network

import geneformer_repro as gf
from geneformer_repro import pair_reading
from geneformer_repro.pair_reading import PairSides, all_pairs, read_pairs

PAIRS_P2 = PAIRS.numpy()


def sides_of(network, cells=None):
    few = None if cells is None else cells.select(np.arange(6))
    return PairSides.of(network, made_inputs(), few, DRUGS)


@pytest.mark.parametrize("name", ["conv_nn", "paccmann", "encoder, expression, attention"])
def test_forecasts_are_the_same_however_many_are_made_at_once(name, cells, monkeypatch):
    network = made_network(NETWORKS[name], cells.vocabulary)
    sides, naive = sides_of(network, cells), np.linspace(-1, 1, len(PAIRS))
    together = sides.outputs(network, PAIRS_P2, naive)
    expected = network(**sides.batch(PAIRS_P2), naive=torch.from_numpy(naive).float()).logits
    torch.testing.assert_close(together, expected.detach(), atol=1e-6, rtol=1e-5)
    for limit in ("_SAMPLES_AT_ONCE", "_DRUGS_AT_ONCE", "_PAIRS_AT_ONCE"):
        monkeypatch.setattr(pair_reading, limit, 2)
    monkeypatch.setattr(pair_reading, "MAX_TOKENS", 200)
    torch.testing.assert_close(sides.outputs(network, PAIRS_P2, naive), together, atol=1e-6, rtol=1e-5)
    assert sides.outputs(network, PAIRS_P2[:0], naive[:0]).shape == (0, 1)


def test_vectors_of_a_frozen_encoder_are_made_once(cells):
    network = made_network(NETWORKS["encoder"], cells.vocabulary)
    sides, naive = sides_of(network, cells), np.zeros(len(PAIRS))
    pooled = sides.with_pooled(network)
    assert "input_ids" not in pooled.batch(PAIRS_P2)
    torch.testing.assert_close(pooled.outputs(network, PAIRS_P2, naive), sides.outputs(network, PAIRS_P2, naive))


def test_what_a_network_reads_must_be_there(cells):
    with pytest.raises(gf.InputError, match="reads tokens of samples, and there are none"):
        PairSides.of(made_network(NETWORKS["encoder"], cells.vocabulary), made_inputs(), None, DRUGS)
    with pytest.raises(gf.InputError, match="reads expression of genes of samples"):
        PairSides.of(made_network(NETWORKS["conv_nn"]), None, cells, DRUGS)


def test_a_checkpoint_reads_tokens_of_its_vocabulary_and_all_pairs_of_them(cells):
    network = made_network(NETWORKS["encoder"], cells.vocabulary)
    checkpoint = gf.Checkpoint(network, cells.vocabulary, {"step": "finetune_response"}, name="response")
    few = cells.select(np.arange(3))
    asked = read_pairs(checkpoint, few, DRUGS)
    assert [*asked.names] == [*few.cell_names]
    np.testing.assert_array_equal(all_pairs(2, 3), [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]])
