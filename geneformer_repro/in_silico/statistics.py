"""From the values of a screen to a table of genes.

Three things move a cell although the perturbed gene means nothing for its state: the place of the gene in the cell, how
many and which cells carry it, and the donor. The published tests take cells for independent replicates and compare each
gene with all others, so of values with nothing in them but places, donors and what a gene does in one donor, a gene in
four has p < 0.05 (`tests/in_silico/test_statistics.py`). The default here compares a gene with others in the same
donor, at the same place and as often detected, and takes the donor for the replicate: one in twenty. What it costs is
power where donors are few: with three, only large and even effects can pass.

What is left to the user is the kind of cell: a gene of one cell type is compared with genes of all types that its donor
has. Screen one type at a time.
"""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np
import pandas as pd
from pandas.api.types import union_categoricals
from scipy.stats import false_discovery_control, t
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score
from sklearn.model_selection import KFold, cross_val_predict

from geneformer_repro.errors import InputError
from geneformer_repro.in_silico import published_statistics as published
from geneformer_repro.in_silico.gene_baselines import PREDICTORS, gene_baselines
from geneformer_repro.in_silico.shift_table import ShiftTable
from geneformer_repro.tokenizer.dataset import TokenizedDataset

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)

Method = Literal["matched", "goal_state", "vs_all", "vs_null", "mixture", "aggregate", "gene_shifts", "pairs"]
FEWEST_GENES, MOST_GENES = 10, 30
"""Other genes that a null holds at least: a tenth of the genes of the screen, within these bounds. One strong gene
shifts the null of its neighbours by its effect over this number."""
FEWEST_DONORS, FEW_CELLS = 3, 10
FOLDS = 5
"""In which genes are dealt to predict an effect from baselines."""
_DOUBLINGS = 6
_PLACES, _RATES = 2**_DOUBLINGS, 2**3
_TEXT, _NUMBERS = ("cell", "donor", "perturbed", "state"), ("dose", "rank", "value", "exact")
_COLUMNS = (
    "effect", "effect_vs_matched", "low", "high", "p_value", "fdr", "matched_percentile", "mean_rank", "n_cells",
    "n_donors", "n_exact", "warning",
)  # fmt: skip
_OF_OTHER_STATES = ["effect", "effect_vs_matched", "p_value", "fdr"]
_PUBLISHED: Mapping[str, Callable[[ShiftTable], pd.DataFrame]] = {
    "goal_state": published.goal_state,
    "vs_all": published.vs_all,
    "mixture": published.mixture,
    "aggregate": published.aggregate,
    "gene_shifts": published.gene_shifts,
    "pairs": published.pairs,
}


def shift_statistics(
    shifts: ShiftTable,
    *,
    method: Method | None = None,
    null: ShiftTable | None = None,
    cells: TokenizedDataset | None = None,
    counts: "AnnData | str | Path | None" = None,
) -> pd.DataFrame:
    """Make a table of genes from a screen.

    Parameters
    ----------
    shifts
        Result of a screen.
    method
        "matched" (default): which genes move cells otherwise than genes of the same place and detection rate do, with
        donors as replicates; the rest of this page. Or a published one, see `published_statistics`: "goal_state",
        "vs_all", "vs_null" (with `null`), "mixture", "aggregate", "gene_shifts", "pairs".
    null
        The same screen of control cells, for "vs_null" only.
    cells
        The cells that were screened, with those of the goal state: sets the effects beside what is known of the genes
        without the model (`gene_baselines`). For "matched" and a screen with a goal only.
    counts
        Where the raw counts of `cells` are, if not where `tokenize` found them.

    Returns
    -------
    A row a gene, indexed by ``gene_id``: first those of ``fdr`` below 0.05, the largest `effect_vs_matched` first, up
    or down (of thousands of cells p-values are tiny for tiny effects), then the others by ``p_value``. Of a classifier
    a row a gene and class, with a column ``state``; of a screen with doses a row a gene and ``dose``.

    - ``gene_name``
    - ``effect``: mean over donors of the donor's mean over cells. With a goal, above 0 moves cells towards it; of a
      classifier, towards the class; a similarity is 1 where cells did not move.
    - ``effect_vs_matched``: the same of the value less that of matched genes, with its 95 % interval ``low`` to
      ``high``. A similarity below 0 moves cells more than matched genes do.
    - ``p_value``, two-sided; ``fdr``, Benjamini and Hochberg over the genes that have a p-value, for each state and
      dose. NaN below three donors.
    - ``matched_percentile``: share of the matched genes whose `effect_vs_matched` is below the gene's, 0 to 1: is it
      also extreme among genes? With many donors a p-value is small for a small effect.
    - ``mean_rank``: mean place in the cell, 0 for the first; NaN for a gene that no cell expresses.
    - ``n_cells``; ``n_donors`` that were compared (0: the screen has no donors, and cells stand for them); ``n_exact``
      of its values that were computed exactly, where some were estimated.
    - ``warning``: why not to rely on the row, or "".
    - For each alternative state X of a goal, ``effect_to_X``, ``effect_vs_matched_to_X``, ``p_value_to_X``,
      ``fdr_to_X``.
    - With `cells`, the columns of `gene_baselines` and ``effect_beyond_baselines``: the effect less what a linear
      regression on the ranks of these predicts, fitted on other genes. ``attrs["explained_by_baselines"]`` is the R² of
      the predictions (0 or below: nothing), ``attrs["baselines"]`` each one's Spearman correlation with the effect.

    Raises
    ------
    InputError
        The method does not fit the screen, an argument does not fit the method, or there are too few other genes to
        compare with. "matched" does not accept pairs or sets of genes.

    Notes
    -----
    Null hypothesis: over the donors that one might have sampled, the gene moves cells as other genes do that are as
    often detected and stand at the same place in the cell. One-sample t-test over donors of the mean over cells of
    (value − null); the null is the mean over the other genes in a bin of the same donor, each gene with its own mean
    there. The tested gene is never in it. Bins: 64 of the square root of the place (as a share of the cell in a screen
    of each gene), so that they are finest where the cell begins, by 8 of the rank of the detection rate among genes.
    Where a bin holds too few other genes, it and its neighbour become one, in both directions, until there are enough
    (a tenth of the screen's, at least 10, at most 30); so at the head of cells, where few genes ever stand, a null is
    partly of places further down. A donor with fewer than 10 other genes is left out.

    Not accepted as evidence: a p-value where cells stand for donors (``n_donors`` 0), since cells of a donor are alike.
    """
    if method is not None and method not in get_args(Method):
        raise InputError(f"method must be one of {', '.join(map(repr, get_args(Method)))}, found {method!r}.")
    method = method or "matched"
    _require_fitting(method, null, cells, counts)
    if null is not None:
        return published.vs_null(shifts, null)
    if method != "matched":
        return _PUBLISHED[method](shifts)
    table = _matched(shifts)
    return table if cells is None else _beside_baselines(table, gene_baselines(shifts, cells, counts))


def _require_fitting(method: Method, null: ShiftTable | None, cells: Any, counts: Any) -> None:
    if (method == "vs_null") != (null is not None):
        fitting = "needs the same screen of control cells: give null=" if null is None else "takes no null"
        raise InputError(f"method={method!r} {fitting}.")
    if cells is not None and method != "matched":
        raise InputError(f"method={method!r} takes no cells; baselines stand beside method='matched'.")
    if counts is not None and cells is None:
        raise InputError("counts= are the counts of the cells: give cells= too.")


# Rows


def _matched(shifts: ShiftTable) -> pd.DataFrame:
    rows = _rows(shifts)
    _require_comparable(rows)
    _log_estimates(rows["exact"].to_numpy())
    rows = rows.assign(replicate=_replicates(rows), place=_places(rows, shifts.metadata))
    of_doses = rows[rows["replicate"] >= 0].groupby("dose", dropna=False)
    goal = shifts.metadata["goal"]
    table: pd.DataFrame = pd.concat([_of_dose(cast(float, dose), of_dose, goal) for dose, of_dose in of_doses])
    names = table.index.to_series().map(shifts.metadata["gene_names"])
    table.insert(0, "gene_name", names.where(names != "", table.index.to_series()))
    return table.iloc[_order(table)]


def _order(table: pd.DataFrame) -> np.ndarray:
    """Return the rows in order: significant ones by size, others by p-value, those without one by size."""
    size, p_value = -table["effect_vs_matched"].abs().to_numpy(), table["p_value"].to_numpy()
    group = np.select([table["fdr"] < published.SIGNIFICANT, table["fdr"].notna()], [0, 1], 2)
    return np.lexsort((table.index.to_numpy(dtype=str), size, np.where(group == 1, p_value, size), group))


def _rows(shifts: ShiftTable) -> pd.DataFrame:
    """Read what a test needs, names as categories; what happened to other genes is passed over block by block."""
    parts = [_compact(block, shifts.metadata["goal"]) for block in shifts.blocks()]
    text = {name: union_categoricals([part[name] for part in parts]) for name in _TEXT}
    return pd.DataFrame(text | {name: np.concatenate([part[name] for part in parts]) for name in _NUMBERS})


def _compact(block: pd.DataFrame, goal: Mapping[str, Any] | None) -> pd.DataFrame:
    wanted = block["affected"].isna()
    if goal:
        wanted &= block["state"].isin([goal["goal"], *goal["alternatives"]])
    return block.loc[wanted, [*_TEXT, *_NUMBERS]].astype(
        dict.fromkeys(_TEXT, pd.CategoricalDtype()) | {"rank": "float64", "exact": "bool"}
    )


def _log_estimates(exact: np.ndarray) -> None:
    if not exact.all():
        logger.warning(
            "%s of %s values are first-order estimates; n_exact says how many of a gene's are not.",
            f"{(~exact).sum():,}",
            f"{len(exact):,}",
        )


def _require_comparable(rows: pd.DataFrame) -> None:
    genes = rows["perturbed"].cat.categories
    several = genes.str.contains("+", regex=False)
    if several.any():
        fitting = "aggregate" if several.all() else "pairs"
        raise InputError(
            f"method='matched' compares single genes; this screen perturbed several at once ({genes[several][0]!r}). "
            f"Use method={fitting!r}."
        )
    if len(genes) <= FEWEST_GENES:
        raise InputError(
            f"method='matched' compares a gene with at least {FEWEST_GENES} others; this screen perturbed "
            f"{len(genes)}. Use method='aggregate' for the values of each cell, or screen with genes='each'."
        )


def _replicates(rows: pd.DataFrame) -> np.ndarray:
    """Return what stands for an independent sample, as codes: the donor (-1 for none), or cells without any donor."""
    if rows["donor"].isna().all():
        logger.warning(
            "The screen has no donors, so p-values take cells for independent replicates, and are too small: cells of "
            "a donor are alike. Screen with donor=COLUMN."
        )
        return rows["cell"].cat.codes.to_numpy()
    if rows["donor"].isna().any():
        n_lost = rows.loc[rows["donor"].isna(), "cell"].nunique()
        logger.warning("%s cells have no donor and are left out.", f"{n_lost:,}")
    return rows["donor"].cat.codes.to_numpy()


def _places(rows: pd.DataFrame, metadata: Mapping[str, Any]) -> np.ndarray:
    """Return the bin of each gene's place in its cell; a gene that the cell does not express comes last.

    Only in a screen of each gene does the last place tell how long the cell is.
    """
    if metadata.get("perturbation", {}).get("genes") == "each":
        last = rows.groupby("cell", observed=True)["rank"].transform("max")
    else:
        last = rows["rank"].max()
    share = ((rows["rank"] + 0.5) / (last + 1)).fillna(1).to_numpy()
    return np.minimum(np.sqrt(share) * _PLACES, _PLACES - 1).astype(np.int64)


# The test


def _tested(rows: pd.DataFrame) -> pd.DataFrame:
    """Test the genes of one state and dose."""
    of_gene = rows.groupby("perturbed", observed=True)
    columns = pd.DataFrame({"mean_rank": of_gene["rank"].mean(), "n_cells": of_gene.size()})
    detected = of_gene["rank"].count().rank(pct=True)
    rates = pd.cut(detected, np.linspace(0, 1, _RATES + 1).tolist(), labels=False)
    sums = rows.groupby(["replicate", "perturbed", "place"], observed=True)["value"].agg(["sum", "size"]).reset_index()
    sums["rate"] = sums["perturbed"].map(rates).astype(np.int64)
    n_wanted = int(np.clip(len(columns) // 10, FEWEST_GENES, MOST_GENES))
    columns = _t_test(_donor_means(sums, _null_means(sums, n_wanted))).join(columns)
    places = sums["size"].mul(sums["place"]).groupby(sums["perturbed"], observed=True).sum() / columns["n_cells"]
    percentile = _matched_percentile(columns["effect_vs_matched"], places.astype(np.int64), rates, n_wanted)
    columns = _completed(columns.assign(matched_percentile=percentile), rows)
    order = [name for name in _COLUMNS if name in columns]
    return columns[order].set_axis(columns.index.astype(str), axis=0).rename_axis("gene_id")


def _null_means(sums: pd.DataFrame, n_wanted: int) -> np.ndarray:
    """Return for each gene, place and donor what other genes have there, from the narrowest bin that has enough."""
    null = np.full(len(sums), np.nan)
    for level in range(_DOUBLINGS + 1):
        found, n_others = _mean_of_others(sums, level)
        enough = n_others >= (n_wanted if level < _DOUBLINGS else FEWEST_GENES)
        null = np.where(np.isnan(null) & enough, found, null)
        if not np.isnan(null).any():
            break
    return null


def _mean_of_others(sums: pd.DataFrame, level: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean over the other genes in a bin of their means in it, and how many they are.

    Rows are sorted by replicate, gene and place, so those of a gene in a bin follow each other, and the other genes are
    all less the own: no group for each gene. All levels of 3 million rows take half a second.
    """
    replicate, gene = sums["replicate"].to_numpy(), sums["perturbed"].cat.codes.to_numpy()
    place, rate = sums["place"].to_numpy() >> level, sums["rate"].to_numpy() >> level
    first = np.ones(len(sums), dtype=bool)
    first[1:] = (np.diff(replicate) != 0) | (np.diff(gene) != 0) | (np.diff(place) != 0)
    starts, own = np.flatnonzero(first), np.cumsum(first) - 1
    mean = np.add.reduceat(sums["sum"].to_numpy(), starts) / np.add.reduceat(sums["size"].to_numpy(), starts)
    bins, _ = pd.factorize(((replicate.astype(np.int64) * _PLACES + place) * _RATES + rate)[starts])
    n_others = np.bincount(bins)[bins] - 1
    others = np.bincount(bins, weights=mean)[bins] - mean
    return np.divide(others, n_others, out=np.full(len(mean), np.nan), where=n_others > 0)[own], n_others[own]


def _donor_means(sums: pd.DataFrame, null: np.ndarray) -> pd.DataFrame:
    """Return mean value and mean difference from the null of each gene in each donor."""
    summed = sums.assign(difference=sums["sum"] - sums["size"] * null).groupby(
        ["perturbed", "replicate"], observed=True
    )
    columns = pd.DataFrame({"value": summed["sum"].sum(), "difference": summed["difference"].sum(min_count=1)})
    return columns.div(summed["size"].sum(), axis=0)


def _t_test(means: pd.DataFrame) -> pd.DataFrame:
    """Test over donors whether the difference is 0; no sample is enough for this below three."""
    of_gene = means.groupby("perturbed", observed=True)
    difference = of_gene["difference"]
    n, mean = difference.count(), difference.mean()
    freedom = (n - 1).where(n >= FEWEST_DONORS)
    error: pd.Series = difference.std() / np.sqrt(n)
    with np.errstate(divide="ignore", invalid="ignore"):
        p_value = pd.Series(2 * t.sf(np.abs(mean / error), freedom), index=n.index)
    half = t.ppf(0.975, freedom) * error
    return pd.DataFrame(
        {
            "effect": of_gene["value"].mean(),
            "effect_vs_matched": mean,
            "low": mean - half,
            "high": mean + half,
            "p_value": p_value,
            "fdr": _false_discovery_rate(p_value),
            "n_donors": n,
        }
    )


def _false_discovery_rate(p_value: pd.Series) -> pd.Series:
    known = p_value.dropna()
    fdr = false_discovery_control(known) if len(known) else known
    return pd.Series(fdr, index=known.index, dtype=float).reindex(p_value.index)


def _matched_percentile(effect: pd.Series, place: pd.Series, rate: pd.Series, n_wanted: int) -> pd.Series:
    """Return the share of the other genes of the narrowest bin with enough of them whose effect is smaller."""
    found = pd.Series(np.nan, index=effect.index)
    for level in range(_DOUBLINGS + 1):
        of_bin = effect.groupby((place // 2**level) * _RATES + rate // 2**level)
        n_others = of_bin.transform("count") - 1
        enough = n_others >= (n_wanted if level < _DOUBLINGS else FEWEST_GENES)
        found = found.where(found.notna() | ~enough, (of_bin.rank() - 1) / n_others)
    return found


# The table


def _completed(columns: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Add how much is exact, and why not to rely on a row."""
    if not rows["exact"].all():
        columns["n_exact"] = rows["exact"].groupby(rows["perturbed"], observed=True).sum()
    of_cells = rows["donor"].isna().all()
    few_donors = _said(
        columns["n_donors"], f" {'cells' if of_cells else 'donors'}: no test below {FEWEST_DONORS}", FEWEST_DONORS
    )
    few_cells = _said(columns["n_cells"], " cells", FEW_CELLS)
    if of_cells:
        few_cells, columns["n_donors"] = few_cells.where(few_donors == "", ""), 0
    return columns.assign(warning=(few_donors + "; " + few_cells).str.strip("; "))


def _said(number: pd.Series, what: str, enough: int) -> pd.Series:
    return (number.astype(str) + what).where(number < enough, "")


def _of_dose(dose: float, rows: pd.DataFrame, goal: Mapping[str, Any] | None) -> pd.DataFrame:
    """Put the tables of the states together: beside each other with a goal, else one behind the other."""
    tables = {state: _tested(of_state) for state, of_state in rows.groupby("state", dropna=False, observed=True)}
    if goal:
        table = tables[goal["goal"]]
        for state in goal["alternatives"]:
            table = table.join(tables[state][_OF_OTHER_STATES].add_suffix(f"_to_{state}"))
    else:
        table = pd.concat([table.assign(state=state) for state, table in tables.items()])
        has_states = table["state"].notna().any()
        table = table[["state", *table.columns.drop("state")]] if has_states else table.drop(columns="state")
    if not np.isnan(dose):
        table.insert(0, "dose", dose)
    return table


def _beside_baselines(table: pd.DataFrame, baselines: pd.DataFrame) -> pd.DataFrame:
    """Add the baselines, and what they do not explain of the effect."""
    baselines = baselines.reindex(table.index.sort_values())
    effect = table["effect"].reindex(baselines.index)
    ranks = baselines[list(PREDICTORS)].rank(pct=True)
    ranks = ranks.loc[:, ranks.nunique() > 1].fillna(0.5)
    folds = KFold(FOLDS, shuffle=True, random_state=0)
    predicted = pd.Series(cross_val_predict(LinearRegression(), ranks, effect, cv=folds), index=effect.index)
    table = table.join(baselines.drop(columns="mean_rank"))
    table["effect_beyond_baselines"] = table["effect"] - predicted
    table.attrs["explained_by_baselines"] = float(r2_score(effect, predicted))
    alone = ranks.corrwith(effect.rank()).reindex(PREDICTORS)
    table.attrs["baselines"] = {str(name): float(value) for name, value in alone.items()}
    return table
