"""Simulated screens: exact effects and first-order estimates of every pair, so that what a sample finds can be told."""

from typing import NamedTuple

import numpy as np

from geneformer_repro.in_silico.assisting_model import Pairs

N_DONORS = 4


class Simulated(NamedTuple):
    """A screen of which everything is known."""

    pairs: Pairs
    exact_P: np.ndarray


def simulated(
    *,
    n_cells: int = 80,
    n_genes: int = 600,
    correlation: float = 0.6,
    freedom: float = 4.0,
    spread_of_cells: float = 1.2,
    gene_share: float = 0.05,
    seed: int = 0,
) -> Simulated:
    """Make a screen.

    A cell's effects have a scale (log-normal) and a level; in units of it, a gene has an effect of its own (a share of
    the variance), and the rest differs from cell to cell, with tails of Student's t. Estimates follow what a pair does,
    effect of the gene and rest, with the correlation that is asked for within cells. Genes are in 15 to 100 % of cells,
    cells of four donors in turn.

    Parameters
    ----------
    n_cells, n_genes
        How many; a gene is in 3 cells at least.
    correlation
        Of estimates and values within a cell.
    freedom
        Of Student's t; infinite for normal.
    spread_of_cells
        Standard deviation of the logarithm of scales.
    gene_share
        Of the variance within a cell that the gene's own effect is.
    seed
        Of random numbers.
    """
    rng = np.random.default_rng(seed)
    rate_G = rng.uniform(0.15, 1, n_genes)
    has_GC = rng.random((n_genes, n_cells)) < rate_G[:, None]
    has_GC |= np.argsort(np.argsort(rng.random((n_genes, n_cells)), axis=1), axis=1) < 3
    gene_P, cell_P = np.nonzero(has_GC)
    scale_C = np.exp(spread_of_cells * rng.normal(size=n_cells))
    level_C = 0.3 * rng.normal(size=n_cells)
    of_gene = np.sqrt(gene_share) * rng.normal(size=n_genes)
    tails = rng.normal(size=len(gene_P)) if np.isinf(freedom) else rng.standard_t(freedom, len(gene_P))
    tails = tails / (1.0 if np.isinf(freedom) else np.sqrt(freedom / (freedom - 2)))
    unit_P = of_gene[gene_P] + np.sqrt(1 - gene_share) * tails
    noise_P = rng.normal(size=len(gene_P))
    estimate_P = scale_C[cell_P] * (correlation * unit_P + np.sqrt(1 - correlation**2) * noise_P)
    of_donors = np.zeros((n_genes, N_DONORS))
    np.add.at(of_donors, (gene_P, cell_P % N_DONORS), 1)
    weight_P = 1 / (of_donors[gene_P, cell_P % N_DONORS] * (of_donors > 0).sum(1)[gene_P])
    pairs = Pairs(gene_P, cell_P, estimate_P, weight_P, n_cells)
    return Simulated(pairs, np.asarray(scale_C[cell_P] * (level_C[cell_P] + unit_P)))
