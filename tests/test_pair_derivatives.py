"""Derivatives of forecasts of networks over pairs."""

import numpy as np
import pytest
import torch
from test_pair_networks import NETWORKS, PAIRS, made_inputs, made_network
from test_pair_reading import PAIRS_P2, sides_of

import geneformer_repro as gf
from geneformer_repro.pair_derivatives import integrated_gradients, pair_gradients
from geneformer_repro.pair_reading import PairSides


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
