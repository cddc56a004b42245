"""Whether logs or lifts of attention find edges better, where the answer is known: simulated attention, five seeds.

Both on the same cells. "rest" is as simulated: noise of one size in every logit, a single head. "sharp" adds a number
to the logits of one pair in fifty in each cell, as a head does that looks for something else in every cell: lifts then
hang on few cells.

python benchmarks/network_scales.py
"""

from unittest import mock

import _simulated_attention as simulated
import numpy as np

from geneformer_repro.in_silico.networks.edge_scores import auroc
from geneformer_repro.in_silico.networks.gene_effects import gene_effects

SHARP = 4.0
"""Added to logits, in natural units, where a head looks for something else."""


def found(beta: float, seed: int, *, of_lifts: bool) -> float:
    """Return the AUROC of what is left of pairs for edges."""
    drawn = simulated.simulate(beta, np.random.default_rng(seed), of_lifts=of_lifts)
    weights = drawn.without_place()
    left = gene_effects(weights, drawn.n_cells.sum(0)[: simulated.N_FACTORS]).residual
    known = ~np.isnan(left)
    return auroc(left[known], drawn.edges[known])


def sharper(order: np.ndarray, popularity: np.ndarray, effect: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Attend as simulated, and sharply to a few that differ from cell to cell."""
    added = np.zeros_like(effect)
    added[np.ix_(order, order)] = SHARP * (rng.random((len(order), len(order))) < 0.02)
    return _ATTENTION(order, popularity, effect + added, rng)


_ATTENTION = simulated._attention


def main() -> None:
    """Print the AUROC of both, by effect and seed."""
    for name, attention in (("rest", _ATTENTION), ("sharp", sharper)):
        with mock.patch.object(simulated, "_attention", attention):
            for beta in (0.0, 0.1, 0.25, 0.5):
                of_both = [[found(beta, seed, of_lifts=of_lifts) for seed in range(5)] for of_lifts in (False, True)]
                shown = "  ".join(" ".join(f"{value:.3f}" for value in of_one) for of_one in of_both)
                print(f"{name:<6} effect {beta:4}: log, lift  {shown}", flush=True)


if __name__ == "__main__":
    main()
