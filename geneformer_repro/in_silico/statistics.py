"""From the shifts of cells to a table of genes.

The test is the published one, and it takes every cell for an independent replicate. Cells of a donor are
not independent, so its p-values are too small where a gene was measured in many cells of few donors: read
them as a ranking, and look at the effect.
"""

from typing import Literal, get_args

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control, norm

from geneformer_repro.errors import InputError
from geneformer_repro.in_silico.screen import ShiftTable

Method = Literal["goal_state", "vs_all"]
POOL_SIZE = 100_000
SIGNIFICANT = 0.05


def shift_statistics(shifts: ShiftTable, *, method: Method | None = None) -> pd.DataFrame:
    """Test which genes move cells otherwise than genes do in general.

    Parameters
    ----------
    shifts
        Result of a screen with ``genes="each"``.
    method
        "goal_state" (screens with a goal; the published mode of that name) or "vs_all" (without): each gene's values,
        one a cell, against the pool of the values of all genes, that gene included. Default: the one that fits.

    Returns
    -------
    A row a gene, the strongest first: ``gene_name``, ``effect`` (mean value over cells), ``p_value`` and ``fdr``,
    ``n_cells``, and for each alternative state ``effect_to_X``, ``p_value_to_X``, ``fdr_to_X``; indexed by
    ``gene_id``. With a goal, an effect above 0 moves cells towards it, and genes are ordered by significance
    (FDR < 0.05 first), then effect, then FDR. Without, an effect is the similarity to the unperturbed cell less its
    mean over all genes and cells: below 0, the gene moves cells more than genes do in general; ordered by FDR, then
    effect.

    Raises
    ------
    InputError
        The method does not fit the screen, or the screen perturbed one set of genes (there is nothing to compare with).

    Notes
    -----
    p: two-sided Wilcoxon rank-sum test (normal approximation, no correction for ties), null hypothesis: the gene's
    values come from the distribution of the pool. The pool is a random 100,000 of the values (fixed seed) where there
    are more. FDR: Benjamini and Hochberg over genes. Cells are taken as independent, see the module.

    References
    ----------
    Theodoris et al., Nature 618, 616 (2023), Methods; columns Shift_to_goal_end, Goal_end_vs_random_pval and
    Goal_end_FDR of the published InSilicoPerturberStats, mode "goal_state_shift".
    """
    goal = shifts.metadata["goal"]
    method = method or ("goal_state" if goal else "vs_all")
    if method not in get_args(Method):
        raise InputError(f"method must be one of {', '.join(map(repr, get_args(Method)))}, found {method!r}.")
    if (method == "goal_state") != bool(goal):
        raise InputError(
            f"method={method!r} needs a screen {'with' if method == 'goal_state' else 'without'} a goal state; this "
            f"one was made {'with' if goal else 'without'}."
        )
    if shifts.table["perturbed"].nunique() < 2:
        raise InputError(
            f"The screen perturbed only {shifts.table['perturbed'].iloc[0]!r}; a test needs other genes to compare "
            f"with. Screen with Deletion(genes='each')."
        )
    if goal is None:
        tested = _test(shifts.table.assign(value=shifts.table["value"] - shifts.table["value"].mean()))
        columns, order, ascending = tested, ["fdr", "effect"], [True, True]
    else:
        by_state = {
            state: _test(shifts.table[shifts.table["state"] == state])
            for state in (goal["goal"], *goal["alternatives"])
        }
        columns = by_state[goal["goal"]]
        for state in goal["alternatives"]:
            columns = columns.join(by_state[state].drop(columns="n_cells").add_suffix(f"_to_{state}"))
        columns = columns.assign(_significant=columns["fdr"] < SIGNIFICANT)
        order, ascending = ["_significant", "effect", "fdr"], [False, False, True]
    columns.insert(0, "gene_name", columns.index.map(shifts.metadata["gene_names"]))
    columns["gene_name"] = columns["gene_name"].where(columns["gene_name"] != "", columns.index.to_series())
    return (
        columns.sort_values(order, ascending=ascending, kind="stable")
        .drop(columns="_significant", errors="ignore")
        .rename_axis("gene_id")
    )


def _test(table: pd.DataFrame) -> pd.DataFrame:
    """Rank-sum test of each gene's values against the pool of all."""
    pool = table["value"].to_numpy()
    if len(pool) > POOL_SIZE:
        pool = np.random.default_rng(42).choice(pool, POOL_SIZE, replace=False)
    values = table.groupby("perturbed")["value"]
    pool = np.sort(pool)
    p_value = values.apply(lambda of_gene: _rank_sum_p(pool, of_gene.to_numpy()))
    return pd.DataFrame(
        {"effect": values.mean(), "p_value": p_value, "fdr": false_discovery_control(p_value), "n_cells": values.size()}
    )


def _rank_sum_p(pool: np.ndarray, values: np.ndarray) -> float:
    """Return the p-value of `scipy.stats.ranksums`, which sorts the whole pool anew for each gene.

    Parameters
    ----------
    pool
        Sorted values.
    values
        The gene's.
    """
    n_pool, n_values = len(pool), len(values)
    below, not_above = np.searchsorted(pool, values, "left"), np.searchsorted(pool, values, "right")
    expected = n_pool * n_values / 2
    z = ((below + not_above).sum() / 2 - expected) / np.sqrt(expected * (n_pool + n_values + 1) / 6)
    return float(2 * norm.sf(abs(z)))
