"""Cells whose label is the presence of five genes, beside bystanders and a gene of one donor: what is to be found.

Two classes. A cell of the first has each of five planted genes with 0.85, one of the second with 0.15. Ten bystanders
go with the class weakly (0.6 against 0.4), 184 genes not at all. One more gene is in all cells of one donor and in no
other, and that donor has more cells of the first class than others have. Counts of a gene that is there do not depend
on what it is.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_matrix

N_PLANTED, N_BYSTANDERS, N_GENES, N_DONORS = 5, 10, 200, 6
PLANTED, BYSTANDER, OTHER = (0.85, 0.15), (0.6, 0.4), (0.3, 0.3)
"""Share of the cells of the first class, and of the second, that have a gene."""
OF_FIRST, OF_FIRST_IN_ONE = 0.46, 0.7
"""Share of the first class in a donor, and in the one with a gene of its own."""


@dataclass(frozen=True)
class PlantedLabel:
    """Cells with labels, and which genes are which."""

    cells: AnnData
    """Counts; ``obs``: "label" ("first", "second"), "permuted" (the same, dealt anew), "donor"; ``var["kind"]``:
    "planted", "bystander", "donor" or "other"."""

    def genes(self, kind: str) -> list[str]:
        """Return the genes of a kind."""
        return self.cells.var_names[self.cells.var["kind"] == kind].tolist()


def simulate(n_cells: int, *, seed: int = 0) -> PlantedLabel:
    """Draw cells, as many of each donor.

    Parameters
    ----------
    n_cells
        How many.
    seed
        Of the draws.
    """
    rng = np.random.default_rng(seed)
    n_others = N_GENES - N_PLANTED - N_BYSTANDERS - 1
    kinds = ["planted"] * N_PLANTED + ["bystander"] * N_BYSTANDERS + ["donor"] + ["other"] * n_others
    kind = rng.permutation(kinds)
    donor = rng.permutation(np.resize(np.arange(N_DONORS), n_cells))
    first = rng.random(n_cells) < np.where(donor == 0, OF_FIRST_IN_ONE, OF_FIRST)
    rate = np.empty((n_cells, N_GENES))
    for name, rates in (("planted", PLANTED), ("bystander", BYSTANDER), ("other", OTHER)):
        rate[:, kind == name] = np.where(first, *rates)[:, None]
    rate[:, kind == "donor"] = (donor == 0)[:, None]
    has = rng.random(rate.shape) < rate
    level = rng.lognormal(1.5, 0.5, N_GENES) * rng.lognormal(0, 0.5, has.shape)
    counts = np.where(has, 1 + rng.poisson(level), 0)
    label = np.where(first, "first", "second")
    obs = pd.DataFrame(
        {"label": label, "permuted": rng.permutation(label), "donor": [f"donor{i}" for i in donor]},
        index=[f"cell{i}" for i in range(n_cells)],
    )
    var = pd.DataFrame({"kind": kind}, index=[f"gene{i}" for i in range(N_GENES)])
    return PlantedLabel(AnnData(csr_matrix(counts.astype(np.float32)), obs=obs, var=var))
