"""What is known of a perturbed gene without the model: a screen is news only where it says more than this.

Cells that leave a state do so by genes that differ between the states, so a list of the strongest genes of a screen may
be a list of differentially expressed or of often detected genes. Here are these numbers, gene by gene, to set beside
the effects (`shift_statistics` with ``cells=`` does).
"""

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix
from scipy.stats import rankdata, sem, ttest_1samp, ttest_ind
from sklearn.feature_selection import r_regression
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score
from sklearn.model_selection import KFold, cross_val_predict

from geneformer_repro.errors import InputError
from geneformer_repro.in_silico.shift_table import ShiftTable
from geneformer_repro.tokenizer.counts import rank_values, vocabulary_counts
from geneformer_repro.tokenizer.dataset import TokenizedDataset

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)

PREDICTORS = ("detection_rate", "mean_rank", "detection_difference", "log2_fold_change", "axis_correlation")
"""The columns that may explain an effect; a p-value has no direction."""
FOLDS = 5
"""In which genes are dealt to predict an effect from baselines."""
_PRIOR_COUNT = 2.0
_GENES_AT_ONCE = 2000


def gene_baselines(
    shifts: ShiftTable, cells: TokenizedDataset, counts: "AnnData | str | Path | None" = None
) -> pd.DataFrame:
    """Return what is known of the genes of a screen without the model.

    Parameters
    ----------
    shifts
        Result of a screen with a goal.
    cells
        The cells that were screened, and those of the goal state, with the obs columns of the goal and the donors.
    counts
        Where their raw counts are, if not where `tokenize` found them.

    Returns
    -------
    A row a perturbed gene, indexed by ``gene_id``:

    - ``detection_rate``: share of the cells in the start state that have its token, and ``mean_rank``: its mean place
      in these, 0 for the first. ``detection_difference``: the rate in the goal state less that in the start state.
    - ``log2_fold_change``: goal against start (above 0: more in the goal state), of counts summed over the cells of a
      donor and state, as log2 of counts per million of the vocabulary's genes, with a prior count of 2 in a mean
      library, as in edgeR. The mean over donors that have both states, or, with fewer than two of these, the
      difference of the means. Without donors all cells of a state are one sum. NaN where counts are not at hand.
    - ``de_p_value``: two-sided t-test of the same numbers, null hypothesis: no difference between the states; paired
      over donors that have both, else Welch's. NaN with fewer than two donors; not corrected for many genes.
    - ``axis_correlation``: Spearman correlation over the screened cells of the gene's rank value (1 for the first of a
      cell, 0 for absent) with the cell's place between the states before any change: similarity to the goal less that
      to the start (which first-order screens leave out). Above 0, cells with the gene are nearer to the goal already.
      NaN for a gene that is alike in all cells.

    Raises
    ------
    InputError
        The screen has no goal or several doses, a column or state is missing, or the cells are not those that were
        screened.

    References
    ----------
    Robinson, McCarthy and Smyth, Bioinformatics 26, 139 (2010), for edgeR and its prior count.
    """
    goal = _goal(shifts)
    axis, genes = _screened(shifts, goal)
    screened, positions = _places(axis, genes, cells)
    if shifts.metadata.get("cells", cells.fingerprint) != cells.fingerprint:
        logger.warning(
            "cells= (--cells) are other cells than those that the screen was given: detection rates and fold changes "
            "are of these %s. Give the same, chosen in the same way (--where).",
            f"{len(cells):,}",
        )
    states = cells.labels(goal["obs"]).to_numpy()
    rows = [_rows_in(state, states, goal["obs"]) for state in (goal["start"], goal["goal"])]
    start, end = (cells.select(of_state) for of_state in rows)
    start_rate, end_rate = (rank_values(cells)[:, positions].getnnz(axis=0) / len(cells) for cells in (start, end))
    both = vocabulary_counts(cells.select(np.concatenate(rows)), counts)
    counted = None if both is None else (both[: len(start)], both[len(start) :])
    change, p_value = differential_expression(start, end, positions, shifts.metadata.get("donor"), counted)
    columns = {
        "detection_rate": start_rate,
        "mean_rank": _mean_places(start)[positions],
        "detection_difference": end_rate - start_rate,
        "log2_fold_change": change,
        "de_p_value": p_value,
        "axis_correlation": _correlations(rank_values(cells.select(screened))[:, positions], axis.to_numpy()),
    }
    return pd.DataFrame(columns, index=pd.Index(genes, name="gene_id"))


class Beyond(NamedTuple):
    """What baselines do not explain of the effects of genes."""

    residual: pd.Series
    """Effect less what is predicted of it, by gene."""
    explained: float
    """R² of the predictions; 0 or below: nothing is explained."""
    alone: pd.Series
    """Spearman correlation of each baseline with the effect."""


def beyond_baselines(effect: pd.Series, baselines: pd.DataFrame) -> Beyond:
    """Predict effects by a linear regression on the ranks of baselines, each gene from others.

    Parameters
    ----------
    effect
        By gene, at least as many as folds (5).
    baselines
        By the same genes. A column that is alike for all is left out; a missing value counts as the middle.
    """
    ranks = baselines.rank(pct=True)
    varying = ranks.loc[:, ranks.nunique() > 1].fillna(0.5)
    predicted = pd.Series(effect.mean(), index=effect.index)
    if varying.shape[1]:
        folds = KFold(FOLDS, shuffle=True, random_state=0)
        predicted = pd.Series(cross_val_predict(LinearRegression(), varying, effect, cv=folds), index=effect.index)
    alone = varying.corrwith(effect.rank()).reindex(baselines.columns)
    return Beyond(effect - predicted, float(r2_score(effect, predicted)), alone)


def _goal(shifts: ShiftTable) -> dict[str, Any]:
    goal = shifts.metadata["goal"]
    if not goal:
        raise InputError(
            "cells= asks for baselines between a start and a goal state; this screen has no goal. Leave cells= out, or "
            "screen with goal=GoalState(…)."
        )
    return dict(goal)


def _screened(shifts: ShiftTable, goal: dict[str, Any]) -> tuple[pd.Series, list[str]]:
    """Return each cell's place between the states, and the genes, sorted, in one pass over the rows."""
    states, of_blocks, genes, doses = [goal["start"], goal["goal"]], [], set(), set()
    for block in shifts.blocks():
        genes |= {gene for names in block["perturbed"].unique() for gene in names.split("+")}
        doses |= set(block["dose"].dropna())
        own = block.loc[block["affected"].isna() & block["state"].isin(states), ["cell", "state", "before"]]
        of_blocks.append(own.drop_duplicates(["cell", "state"]))
    if len(doses) > 1:
        raise InputError(
            f"cells= asks for baselines, which a gene has once, but the screen has {len(doses)} doses. Select one: "
            "ShiftTable(table[table['dose'] == DOSE], metadata)."
        )
    of_cells = pd.concat(of_blocks).drop_duplicates(["cell", "state"])
    before = of_cells.pivot(index="cell", columns="state", values="before")
    return before[goal["goal"]] - before.get(goal["start"], 0.0), sorted(genes)


def _places(axis: pd.Series, genes: list[str], cells: TokenizedDataset) -> tuple[np.ndarray, np.ndarray]:
    """Return the row of each screened cell and the vocabulary's position of each gene."""
    rows = pd.Index(cells.cell_names).get_indexer(axis.index)
    positions = pd.Index(cells.vocabulary.gene_ids).get_indexer(pd.Index(genes))
    for places, names, what in ((rows, axis.index, "cells"), (positions, genes, "genes")):
        if (places < 0).any():
            raise InputError(
                f"cells= lacks {(places < 0).sum():,} of the {len(places):,} {what} that were screened (first: "
                f"{names[int(np.argmin(places))]!r}). Give the dataset that perturb was given."
            )
    return rows, positions


def _rows_in(state: str, states: np.ndarray, obs: str) -> np.ndarray:
    rows = np.flatnonzero(states == state)
    if not len(rows):
        raise InputError(f"cells= has no cell with {obs} = {state!r}. Give the dataset that perturb was given.")
    return rows


def _mean_places(cells: TokenizedDataset) -> np.ndarray:
    """Return the mean place of each gene of the vocabulary in the cells that express it, from 0."""
    ranks = rank_values(cells).astype(np.float64)
    lengths = np.repeat(np.diff(ranks.indptr), np.diff(ranks.indptr))
    places = np.rint(lengths * (1 - ranks.data))
    n_genes, n_cells = ranks.shape[1], ranks.getnnz(axis=0)
    total = np.bincount(ranks.indices, weights=places, minlength=n_genes)
    return np.divide(total, n_cells, out=np.full(n_genes, np.nan), where=n_cells > 0)


def differential_expression(
    start: TokenizedDataset,
    end: TokenizedDataset,
    genes: np.ndarray,
    donor: str | None,
    counted: Sequence[csr_matrix] | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return log2 fold change and p-value of each gene, NaN where there are no raw counts of the two."""
    unknown = np.full(len(genes), np.nan)
    if counted is None or start.vocabulary.values == "zscore":
        return unknown, unknown
    donors = [cells.labels(donor).fillna("") if donor else pd.Series("", cells.cell_names) for cells in (start, end)]
    sums = [sums_by_donor(of_state, donor_of) for of_state, donor_of in zip(counted, donors, strict=True)]
    before, after = log_per_million(*sums)
    before, after = before.iloc[:, genes], after.iloc[:, genes]
    both = before.index.intersection(after.index)
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # a gene that is alike in all donors, or too few donors
        if len(both) >= 2:
            differences = (after.loc[both] - before.loc[both]).to_numpy()
            change, error = differences.mean(axis=0), sem(differences)
            p_value = ttest_1samp(differences, 0).pvalue
        else:
            change, error = (after.mean() - before.mean()).to_numpy(), np.hypot(sem(after), sem(before))
            p_value = ttest_ind(after, before, equal_var=False).pvalue
    return change, np.where(error > _rounding(before, after), p_value, np.nan)


def _rounding(before: pd.DataFrame, after: pd.DataFrame) -> float:
    """Return how far rounding may take the difference of two logarithms: four operations round what each is of."""
    largest = max(np.abs(logged.to_numpy()).max(initial=0) for logged in (before, after))
    return float(np.finfo(float).eps * (4 / np.log(2) + largest))


def sums_by_donor(counts: csr_matrix, donors: pd.Series) -> pd.DataFrame:
    """Sum the counts of each donor's cells: donors × genes."""
    codes, names = pd.factorize(donors.to_numpy(), sort=True)
    member = csr_matrix((np.ones(len(codes)), (codes, np.arange(len(codes)))), shape=(len(names), len(codes)))
    return pd.DataFrame((member @ counts).toarray(), index=names)


def log_per_million(
    before: pd.DataFrame, after: pd.DataFrame, *, libraries: tuple[pd.Series, pd.Series] | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return log2 counts per million; the prior grows with the library, so that absent genes are alike in all.

    Parameters
    ----------
    before, after
        Counts of samples, samples × genes.
    libraries
        All counts of each sample, where there are others than those of these genes.
    """
    of_before, of_after = libraries or (before.sum(axis=1), after.sum(axis=1))
    mean_library = np.concatenate([of_before, of_after]).mean()

    def logged(sums: pd.DataFrame, library: pd.Series) -> pd.DataFrame:
        prior = _PRIOR_COUNT * library / mean_library
        return sums.add(prior, axis=0).div(library + 2 * prior, axis=0).mul(1e6).apply(np.log2)

    return logged(before, of_before), logged(after, of_after)


def _correlations(ranks: csr_matrix, axis: np.ndarray) -> np.ndarray:
    """Return the Spearman correlation of each column with the axis; dense, so some columns at a time."""
    if not np.isfinite(axis).all():
        return np.full(ranks.shape[1], np.nan)
    blocks = (ranks[:, start : start + _GENES_AT_ONCE].toarray() for start in range(0, ranks.shape[1], _GENES_AT_ONCE))
    with np.errstate(divide="ignore", invalid="ignore"):
        correlations = [r_regression(rankdata(block, axis=0), rankdata(axis), force_finite=False) for block in blocks]
    return np.concatenate(correlations)
