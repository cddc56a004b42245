"""What a forecast for a pair loses when a gene has another value, or a character of the SMILES another vector.

Each altered sample is read once for all drugs, and each altered SMILES once for all samples.

Shapes: P pairs, S samples, D drugs, G genes, T positions of a SMILES, E length of a character's vector.
"""

import numpy as np
import torch
from torch import Tensor

from geneformer_repro.pair_derivatives import forecasts
from geneformer_repro.pair_networks import PairNetwork, Side
from geneformer_repro.pair_reading import PairSides
from geneformer_repro.reading import evaluating

_AT_ONCE = 256
"""Altered samples, or SMILES."""


def answers(network: PairNetwork, samples: Side, drugs: Side, pairs_P2: Tensor) -> Tensor:
    """Return what is explained of pairs, (P,): the forecast, or what it has beyond mean effects where that was learned.

    In the unit of the measure.
    """
    value_P = forecasts(network, samples, drugs, pairs_P2).double()
    return value_P - network.target.mean if network.shape.residual else value_P


def lost_by_genes(
    network: PairNetwork, sides: PairSides, sample: int, drugs: np.ndarray, instead_G: np.ndarray
) -> np.ndarray:
    """Return what forecasts for a sample lose when a gene has another value, one at a time, (drugs, G) float64.

    Parameters
    ----------
    network
        One that reads expression.
    sides
        Its samples and drugs.
    sample, drugs
        Number of the sample, and of drugs.
    instead_G
        Value that each gene gets, on the network's scale.
    """
    assert sides.values_SG is not None
    with evaluating(network) as device:
        of_drugs = network.of_drugs(torch.from_numpy(sides.drugs[drugs]).to(device))
        values_G = torch.from_numpy(sides.values_SG[sample]).to(device)
        instead = torch.from_numpy(instead_G).to(values_G)
        pooled = None if sides.cells is None else sides.vectors_of(network, np.array([sample]), device)

        def of(values_CG: Tensor) -> Tensor:
            many = None if pooled is None else pooled.expand(len(values_CG), -1)
            pairs = _every_pair(len(values_CG), len(drugs), device)
            found = answers(network, network.of_samples(values_CG, many), of_drugs, pairs)
            return found.view(len(values_CG), len(drugs))

        lost = []
        before_1D = of(values_G[None])
        for genes in torch.arange(len(values_G), device=device).split(_AT_ONCE):
            altered_CG = values_G.repeat(len(genes), 1)
            altered_CG[torch.arange(len(genes), device=device), genes] = instead[genes]
            lost.append(before_1D - of(altered_CG))
        return torch.cat(lost).T.numpy(force=True)


def lost_by_characters(
    network: PairNetwork, sides: PairSides, sample: int, drug: int, instead_E: np.ndarray
) -> np.ndarray:
    """Return what a forecast loses when a character has another vector, one at a time, (T,); NaN behind the end.

    Parameters
    ----------
    network
        One that reads characters.
    sides, sample, drug
        Samples and drugs, and the numbers of two of them.
    instead_E
        The vector.
    """
    with evaluating(network) as device:
        values = None if sides.values_SG is None else torch.from_numpy(sides.values_SG[[sample]]).to(device)
        pooled = None if sides.cells is None else sides.vectors_of(network, np.array([sample]), device)
        of_sample = network.of_samples(values, pooled)
        ids_1T = torch.from_numpy(sides.drugs[[drug]]).to(device)
        embedded_1TE = network.embedded(ids_1T)
        there = (ids_1T[0] > 0).nonzero()[:, 0]
        instead = torch.from_numpy(instead_E).to(embedded_1TE)

        def of(embedded_CTE: Tensor) -> Tensor:
            many = len(embedded_CTE)
            read = network.of_drugs(ids_1T.expand(many, -1), embedded_CTE)
            return answers(network, of_sample, read, _every_pair(1, many, device))

        lost_T = torch.full((ids_1T.shape[1],), torch.nan, dtype=torch.float64, device=device)
        before_1 = of(embedded_1TE)
        for places in there.split(_AT_ONCE):
            altered_CTE = embedded_1TE.repeat(len(places), 1, 1)
            altered_CTE[torch.arange(len(places), device=device), places] = instead
            lost_T[places] = before_1 - of(altered_CTE)
        return lost_T.numpy(force=True)


def _every_pair(n_samples: int, n_drugs: int, device: torch.device) -> Tensor:
    number = torch.arange(n_samples * n_drugs, device=device)
    return torch.stack([number // n_drugs, number % n_drugs], dim=1)
