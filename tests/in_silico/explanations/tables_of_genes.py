"""Tables of made-up genes whose detection decides which sets they are of, as in cells."""

import numpy as np
import pandas as pd

N_GENES, N_SETS = 2_000, 60


def table_of_genes(seed=0, n_genes=N_GENES):
    """Genes with detection rates of all sizes, places that follow them, and a score of nothing."""
    rng = np.random.default_rng(seed)
    detection = rng.beta(0.5, 2, n_genes)
    return pd.DataFrame(
        {
            "gene_name": [f"NAME{i}" for i in range(n_genes)],
            "score": rng.normal(size=n_genes),
            "detection_rate": detection,
            "n_cells": np.ceil(1_000 * detection).astype(int) + 10,
            "mean_place": 100 * (1 - detection) + rng.normal(scale=10, size=n_genes),
        },
        index=pd.Index([f"ENSG{i:011d}" for i in range(n_genes)], name="gene_id"),
    )


def sets_by_detection(table, seed=1, n_sets=N_SETS, size=40):
    """Sets of genes that are detected in many cells more often than others are."""
    rng = np.random.default_rng(seed)
    weight = table["detection_rate"].to_numpy() ** 1.5
    return {
        f"SET{i}": rng.choice(table.index, size, replace=False, p=weight / weight.sum()).tolist() for i in range(n_sets)
    }


def chosen_by_detection(table, rng, n=150):
    """The table with so many genes chosen at random, in proportion to detection."""
    weight = table["detection_rate"].to_numpy()
    chosen = rng.choice(len(table), n, replace=False, p=weight / weight.sum())
    return table.assign(chosen=np.isin(np.arange(len(table)), chosen))
