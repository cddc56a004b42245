"""Networks of sums that are drawn, with what is known of them."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from geneformer_repro.in_silico.networks.gene_network import GeneNetwork, Sums
from geneformer_repro.in_silico.networks.network_folder import Group, write_network

N_SOURCES, N_GENES, N_CELLS = 12, 60, 40
STATES = ("ctrl", "stim")


class Made(NamedTuple):
    """A network of two states, and the pairs whose weight is larger in the second."""

    network: GeneNetwork
    changed: np.ndarray
    """Sources × targets."""


def made_network(
    path: Path,
    *,
    effect: float = 1.5,
    n_cells: tuple[int, int] = (10, 30),
    donors: tuple[tuple[str | None, ...], tuple[str | None, ...]] = ((*"ABCDEF",), (*"ABCDEF",)),
    seed: int = 0,
) -> Made:
    """Write a network of 12 sources and 60 targets; the donors are those of each state, pairs have from
    `n_cells` cells of each.

    Genes 0 to 5 stand at the front of stimulated cells, and in the middle of others; the pair of genes 0 and 59 is in
    control cells only.
    """
    rng = np.random.default_rng(seed)
    shape = (N_SOURCES, N_GENES)
    of_genes = rng.normal(0, 0.5, (N_SOURCES, 1)) + rng.normal(0, 0.5, N_GENES)
    changed = rng.random(shape) < 0.04
    changed[0, 1] = True
    sums, groups = {}, []
    for state, of_state in zip(STATES, donors, strict=True):
        for donor in of_state:
            n = rng.integers(*n_cells, shape).astype(np.int32)
            n[np.arange(N_SOURCES), np.arange(N_SOURCES)] = 0
            if state == "stim":
                n[0, 59] = 0
            weight = of_genes + rng.normal(0, 0.3, shape) + effect * changed * (state == "stim")
            sums[state, donor] = Sums(weight * n, n)
            n_with_gene = np.full(N_GENES, 30)
            place = np.full(N_GENES, 100.0)
            place[:6] = 1.0 if state == "stim" else 100.0
            groups.append(Group(state, donor, N_CELLS, n_with_gene, place * n_with_gene))
    ids = pd.Index([f"ENSG{i:011d}" for i in range(N_GENES)], name="gene_id")
    names = [f"G{i}" for i in range(N_GENES)]
    is_source = np.arange(N_GENES) < N_SOURCES
    genes = pd.DataFrame({"gene_name": names, "is_source": is_source, "is_target": True}, index=ids)
    metadata = {"by": "condition", "donor": "donor"}
    return Made(write_network(path, genes, sums, groups, metadata), changed)
