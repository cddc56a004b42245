"""Networks with known edges, as folders, and the counts of their cells: simulated attention without a model."""

import anndata as ad
import numpy as np
import pandas as pd
from _simulated_attention import N_DONORS, N_FACTORS, N_GENES, Simulated
from scipy.sparse import csr_matrix

from geneformer_repro.in_silico.networks.gene_network import GeneNetwork, write_sums
from geneformer_repro.in_silico.networks.network_folder import Group, finish, sums_file

IDS = tuple(f"ENSG{i:011d}" for i in range(1, N_GENES + 1))
NAMES = tuple(f"GENE{i}" for i in range(N_GENES))


def network_of(simulated: Simulated, folder, *, state="resting") -> GeneNetwork:
    """Write the sums of a simulation as a network of one state and six donors."""
    genes = pd.DataFrame(
        {"gene_name": NAMES, "is_source": np.arange(N_GENES) < N_FACTORS, "is_target": True}, index=IDS
    )
    (folder / "sums").mkdir(parents=True)
    groups = []
    for donor in range(N_DONORS):
        here = np.arange(len(simulated.detected)) % N_DONORS == donor
        n = simulated.n_cells[donor][:N_FACTORS].astype(np.int32)
        np.fill_diagonal(n, 0)
        write_sums(folder / sums_file(donor), simulated.residual[donor][:N_FACTORS], n)
        n_with_gene = simulated.detected[here].sum(axis=0)
        place = simulated.mean_place * n_with_gene
        groups.append(Group(state, f"donor{donor}", int(here.sum()), n_with_gene, place))
    made = {
        "method": "attention",
        "measure": "log2 lift",
        "scale": "log",
        "weight": "attention",
        "min_cells": 20,
        "by": "condition",
        "donor": "donor",
    }
    finish(folder, genes, groups, made)
    return GeneNetwork.open(folder)


def counts_of(simulated: Simulated, *, state="resting") -> ad.AnnData:
    """Make counts of which cells have which genes, with cells of another state behind them."""
    rng = np.random.default_rng(0)
    has = np.vstack([simulated.detected, simulated.detected[:30]])
    counts = has * (1 + rng.poisson(1.0, has.shape))
    obs = pd.DataFrame(
        {
            "condition": [state] * len(simulated.detected) + ["other"] * 30,
            "donor": [f"donor{i % N_DONORS}" for i in range(len(has))],
        },
        index=[f"cell{i}" for i in range(len(has))],
    )
    var = pd.DataFrame({"gene_name": NAMES}, index=list(IDS))
    return ad.AnnData(csr_matrix(counts.astype(np.float32)), obs=obs, var=var)


def edges_of(simulated: Simulated) -> pd.DataFrame:
    """Return the planted edges as a reference would list them, by symbol."""
    source, target = np.nonzero(simulated.edges)
    return pd.DataFrame({"tf": np.array(NAMES)[source], "target": np.array(NAMES)[target]})
