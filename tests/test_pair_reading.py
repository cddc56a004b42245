"""Forecasts and derivatives of networks over pairs."""

import numpy as np
import pytest
import torch
from test_pair_networks import DRUGS, NETWORKS, PAIRS, made_inputs, made_network

import geneformer_repro as gf
from geneformer_repro import pair_reading
from geneformer_repro.pair_reading import PairSides, integrated_gradients, pair_gradients

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


# Derivatives


def forecast(network, values, embedded, drugs):
    pairs = torch.arange(len(values))[:, None].expand(-1, 2)
    naive = torch.full((len(values),), network.head.targets[0].mean)
    outputs = network.outputs(network.of_samples(values), network.of_drugs(drugs, embedded), pairs, naive)
    return network.head.meaning(outputs)[:, 0]


@pytest.mark.parametrize("name", ["conv_nn", "paccmann", "bilinear fingerprint"])
def test_gradients_are_what_small_changes_make(name):
    network = made_network(NETWORKS[name]).double()
    sides = sides_of(network)
    sides = PairSides(sides.values_SG.astype(np.float64), None, sides.drugs.astype(
        np.int64 if network.drugs.kind == "smiles" else np.float64))  # fmt: skip
    found = pair_gradients(network, sides, PAIRS_P2)
    values, drugs = torch.from_numpy(sides.values_SG)[PAIRS[:, 0]], torch.from_numpy(sides.drugs)[PAIRS[:, 1]]
    embedded, step = network.embedded(drugs).detach(), 1e-5
    np.testing.assert_allclose(found.embedded, embedded.float(), rtol=1e-6)
    for place in (0, 7):
        small = torch.zeros_like(values)
        small[:, place] = step
        change = forecast(network, values + small, embedded, drugs) - forecast(network, values - small, embedded, drugs)
        np.testing.assert_allclose(found.by_gene_PG[:, place], change.detach() / (2 * step), rtol=1e-3, atol=1e-6)
    at = (slice(None), *(1 for _ in found.by_drug.shape[1:]))
    small = torch.zeros_like(embedded)
    small[at] = step
    change = forecast(network, values, embedded + small, drugs) - forecast(network, values, embedded - small, drugs)
    np.testing.assert_allclose(found.by_drug[at], change.detach() / (2 * step), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["conv_nn", "paccmann", "tdnn", "encoder with expression"])
def test_contributions_add_up_to_the_difference_from_a_sample_of_mean_expression(name, cells):
    network = made_network(NETWORKS[name], cells.vocabulary)
    found = integrated_gradients(network, sides_of(network, cells), PAIRS_P2)
    difference = found.forecast_P - found.baseline_P
    assert (np.abs(difference) > 0).all()
    np.testing.assert_allclose(found.by_gene_PG.sum(1), difference, rtol=1e-3, atol=2e-5)
    assert (found.gap_P < 1e-3).all()
    drug_alone = integrated_gradients(network, sides_of(network, cells), PAIRS_P2[[0, 6]])
    if name == "conv_nn":  # of one drug the baseline is one, whatever the sample
        np.testing.assert_allclose(drug_alone.baseline_P[0], drug_alone.baseline_P[1], rtol=1e-6)


def test_of_a_linear_network_contributions_are_weights_times_values():
    network = made_network({"model": "conv_nn", "drug_input": "none", "joint_layers": (), "residual": False})
    found = integrated_gradients(network, sides_of(network), PAIRS_P2)
    by_gene = (network.output.weight @ network.expression_tower[0].weight)[0] * network.head.targets[0].sd
    expected = network.scaled(made_inputs())[PAIRS_P2[:, 0]] * by_gene.detach().numpy()
    np.testing.assert_allclose(found.by_gene_PG, expected, rtol=1e-4, atol=1e-6)


def test_derivatives_by_gene_need_genes(cells):
    network = made_network(NETWORKS["encoder"], cells.vocabulary)
    for derive in (pair_gradients, integrated_gradients):
        with pytest.raises(gf.InputError, match="reads tokens alone"):
            derive(network, sides_of(network, cells), PAIRS_P2)
