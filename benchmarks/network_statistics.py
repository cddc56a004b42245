"""Edges and heads where the truth is known: simulated attention and simulated heads, seed by seed.

    python benchmarks/network_statistics.py            # a minute

Prints the tables of RESULTS.md, "Statistics of networks".
"""

import sys
from pathlib import Path

import numpy as np
from _simulated_attention import N_DONORS, N_FACTORS, simulate
from scipy.stats import kstest
from sklearn.metrics import roc_auc_score

from geneformer_repro.in_silico.networks.donor_tests import donor_test
from geneformer_repro.in_silico.networks.gene_effects import gene_effects

SEEDS = range(5)


def main() -> None:
    """Print both tables."""
    print("effect  seed  AUROC raw ours   null p < .05: plain, own masks, state's masks   power  false share   KS p")
    for effect in (0.0, 0.25, 0.5, 1.0):
        for seed in SEEDS:
            print(f"{effect:6}  {seed:4}  " + "   ".join(f"{value:.3f}" for value in edges(effect, seed)))
    sys.path.append(str(Path(__file__).parents[1] / "tests" / "in_silico"))
    from test_head_tests import _simulated

    print("heads: share found by pooled rank sums and by matched permutations, planted found, others found")
    for seed in SEEDS:
        nothing, earlier, planted = (_simulated(seed, **options) for options in ({}, {"earlier": 0.5}, {"effect": 0.3}))
        found = (planted.tested().fdr < 0.05) & (planted.tested().difference > 0)
        shares = [
            of(one) for one in (nothing, earlier) for of in (lambda s: s.pooled_share(), lambda s: s.tested().share)
        ]
        print(f"{seed:4}  " + "  ".join(f"{share:.2f}" for share in shares), found[:5].sum(), found[5:].sum())


def edges(effect: float, seed: int) -> list[float]:
    """Return what one simulated network comes to."""
    cells = simulate(effect, np.random.default_rng(seed))
    state = gene_effects(cells.without_place(), cells.n_cells.sum(0)[:N_FACTORS])
    there, is_edge = ~np.isnan(state.residual), cells.edges.ravel()
    row = [roc_auc_score(cells.edges[there], score[there]) for score in (cells.mean_attention(), state.residual)]
    for fit in ({"masked_refits": 0}, {}, {"masked": state.far}):
        donors = [gene_effects(*cells.without_place_of(donor), **fit).residual.ravel() for donor in range(N_DONORS)]
        tested = donor_test(np.stack(donors))
        null = tested.p_value[~is_edge & ~np.isnan(tested.p_value)]
        row.append(np.mean(null < 0.05))
    of_edges = tested.p_value[is_edge & ~np.isnan(tested.p_value)]
    found = tested.fdr < 0.05
    some = np.random.default_rng(0).choice(null, 1_200, replace=False)
    return [
        *row,
        np.mean(of_edges < 0.05),
        np.sum(found & ~is_edge) / max(found.sum(), 1),
        kstest(some, "uniform").pvalue,
    ]


if __name__ == "__main__":
    main()
