"""Cells in which factors switch targets on, beside decoys of the same detection: what a trained model could learn.

Three types have markers of their own. Within each type half of the cells
have a factor; a cell with it has each of its ten targets with 0.9, one without with 0.3. Thirty decoys are there as
often as a target, but in cells of their own choice. Counts of a gene that is there do not depend on what it is, so
neither detection nor place tells a target from a decoy: only which cells have it.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_matrix

TYPES = ("A", "B", "C")
N_FACTORS, TARGETS_A_FACTOR, N_DECOYS, MARKERS_A_TYPE = 4, 10, 30, 5
HAVE_FACTOR = 0.5
"""Share of the cells of each type that have a factor."""
SWITCHED_ON, SWITCHED_OFF = 0.9, 0.3
"""Share of the cells with and without its factor that have a target."""
MARKED, UNMARKED = 0.8, 0.2
"""Share of the cells of its type, and of the others, that have a marker."""


@dataclass(frozen=True)
class Planted:
    """Cells, and which pairs are true."""

    cells: AnnData
    """Counts, cells × genes; ``obs["type"]``; ``var["kind"]``: "factor", "target", "decoy" or "marker"."""
    pairs: pd.DataFrame
    """``source``, ``target``, ``is_edge``: each factor with its ten targets and with the thirty decoys."""


def simulate(n_cells: int, *, regulated: bool = True, seed: int = 0) -> Planted:
    """Draw cells, a third of each type.

    Parameters
    ----------
    n_cells
        How many.
    regulated
        False: targets are switched on as often, each in cells of its own choice (the null).
    seed
        Of the draws.
    """
    rng = np.random.default_rng(seed)
    genes = _genes()
    kind = genes["kind"].to_numpy()
    type_of = rng.permutation(np.resize(TYPES, n_cells))
    is_own = type_of[:, None] == genes["of"].to_numpy()
    switched = SWITCHED_OFF + (SWITCHED_ON - SWITCHED_OFF) * HAVE_FACTOR
    rate = np.where(kind == "marker", np.where(is_own, MARKED, UNMARKED), switched)
    rate[:, kind == "factor"] = HAVE_FACTOR
    has = rng.random(rate.shape) < rate
    if regulated:
        on = has[:, genes.index.get_indexer(genes.loc[kind == "target", "of"])]
        has[:, kind == "target"] = rng.random(on.shape) < np.where(on, SWITCHED_ON, SWITCHED_OFF)
    level = rng.lognormal(1.5, 0.5, len(genes)) * rng.lognormal(0, 0.5, has.shape)
    counts = np.where(has, 1 + rng.poisson(level), 0)
    obs = pd.DataFrame({"type": type_of}, index=[f"cell{i}" for i in range(n_cells)])
    return Planted(AnnData(csr_matrix(counts.astype(np.float32)), obs=obs, var=genes), _pairs(genes))


def _genes() -> pd.DataFrame:
    """Return the kind of each gene, and of which factor (a target) or type (a marker) it is."""
    factors = [f"factor{i}" for i in range(N_FACTORS)]
    rows = [(factor, "factor", "") for factor in factors]
    rows += [(f"{factor}-target{i}", "target", factor) for factor in factors for i in range(TARGETS_A_FACTOR)]
    rows += [(f"decoy{i}", "decoy", "") for i in range(N_DECOYS)]
    rows += [(f"{type_}-marker{i}", "marker", type_) for type_ in TYPES for i in range(MARKERS_A_TYPE)]
    return pd.DataFrame(rows, columns=["gene", "kind", "of"]).set_index("gene")


def _pairs(genes: pd.DataFrame) -> pd.DataFrame:
    decoys = genes.index[genes["kind"] == "decoy"]
    rows = []
    for factor in genes.index[genes["kind"] == "factor"]:
        rows += [(factor, target, True) for target in genes.index[genes["of"] == factor]]
        rows += [(factor, decoy, False) for decoy in decoys]
    return pd.DataFrame(rows, columns=["source", "target", "is_edge"])
