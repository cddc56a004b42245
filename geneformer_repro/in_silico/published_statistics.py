"""The published statistics: the same numbers where they are right, and the right ones where they are not.

================  =======================  ===============================================================
here              published mode           what differs
================  =======================  ===============================================================
`goal_state`      goal_state_shift         nothing
`vs_all`          –                        the same test for a screen without a goal
`vs_null`         vs_null                  a null that cannot be compared with the screen is refused
`mixture`         mixture_model            the component of the lower mean has the impact, not the one that
                                           scikit-learn numbers 0
`pairs`           mixture_model, combos 1  runs (the published one raises TypeError), with an interval and a
                                           p-value instead of a mixture
`aggregate`       aggregate_data           cells and donors keep their names
`gene_shifts`     aggregate_gene_shifts    nothing
================  =======================  ===============================================================

The tests of `goal_state`, `vs_all` and `vs_null` take every cell for an independent replicate. Cells of a donor are
not, so their p-values are too small where a gene was measured in many cells of few donors: read them as a ranking,
and look at the effect. `pairs` tests over donors.

Rows are read block by block. What a cell itself did is gathered in memory; what it did to each other gene, hundreds of
times as many rows, is summed up as it passes.

References
----------
Theodoris et al., Nature 618, 616 (2023), Methods, "In silico perturbation"; InSilicoPerturberStats of the published
package.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.typing import SeriesGroupBy
from scipy.stats import false_discovery_control, norm, t
from sklearn.mixture import GaussianMixture

from geneformer_repro.errors import InputError
from geneformer_repro.in_silico.shift_table import SIMILARITY, ShiftTable

POOL_SIZE = 100_000
SIGNIFICANT = 0.05
MIXTURE_SEED = 0
_OF_A_CELL = ["perturbed", "cell", "donor", "state", "dose", "value"]
_OF_A_GENE = ["perturbed", "affected", "state"]
_PAIR = ["gene_a", "gene_b", "state"]
_NULL = ""
"""Stands for null among keys."""
_EFFECTS = ["effect_a", "effect_b", "effect_sum", "effect_pair", "interaction"]


# A gene against others


def goal_state(shifts: ShiftTable) -> pd.DataFrame:
    """Test which genes move cells towards a state otherwise than genes do in general.

    Parameters
    ----------
    shifts
        Result of a screen of single genes with a goal. Not accepted: a screen of pairs or sets, of a classifier, of
        several doses, of one gene.

    Returns
    -------
    A row a gene, indexed by ``gene_id``: ``gene_name``; ``effect`` (published Shift_to_goal_end), the mean over cells,
    above 0 towards the goal; ``p_value`` (Goal_end_vs_random_pval); ``fdr`` (Goal_end_FDR); ``n_cells``
    (N_Detections); and for each alternative state X ``effect_to_X`` (Shift_to_alt_end_X), ``p_value_to_X``,
    ``fdr_to_X``. Ordered as published: FDR < 0.05 first, then the largest effect, then the lowest FDR.

    Raises
    ------
    InputError
        The screen is not of the kind that is accepted.

    Notes
    -----
    p: two-sided Wilcoxon rank-sum test (normal approximation, no correction for ties), null hypothesis: the gene's
    values come from the distribution of the values of all genes, that gene included. Where there are more than 100,000
    values, a random 100,000 of them (fixed seed) stand for all. FDR: Benjamini and Hochberg over genes.
    """
    _require_goal(shifts, "goal_state", wanted=True)
    goal, rows = shifts.metadata["goal"], _rows_of_genes(shifts)
    tested = {state: _against_all(rows[rows["state"] == state]) for state in (goal["goal"], *goal["alternatives"])}
    columns = tested[goal["goal"]]
    for state in goal["alternatives"]:
        columns = columns.join(tested[state].drop(columns="n_cells").add_suffix(f"_to_{state}"))
    return _named(_significant_first(columns, "effect"), shifts)


def vs_all(shifts: ShiftTable) -> pd.DataFrame:
    """Test which genes move cells otherwise than genes do in general, in a screen without a goal.

    Parameters
    ----------
    shifts
        Result of a screen of single genes without a goal; of a classifier, one class of it. Not accepted: a screen of
        pairs or sets, of several doses, of one gene.

    Returns
    -------
    A row a gene, indexed by ``gene_id``: ``gene_name``; ``effect``, the mean over cells less the mean of all values
    (a similarity below 0: the gene moves cells more than genes do in general); ``p_value``, ``fdr``, ``n_cells``.
    Ordered by FDR, then effect. The test is that of `goal_state`.

    Raises
    ------
    InputError
        The screen is not of the kind that is accepted.
    """
    _require_goal(shifts, "vs_all", wanted=False)
    rows = _of_one_state(_rows_of_genes(shifts), shifts)
    columns = _against_all(rows.assign(value=rows["value"] - rows["value"].mean()))
    return _named(columns.sort_values(["fdr", "effect"], kind="stable"), shifts)


def vs_null(shifts: ShiftTable, null: ShiftTable) -> pd.DataFrame:
    """Test which perturbations move cells otherwise than the same perturbation moves the cells of a null.

    Parameters
    ----------
    shifts
        Result of a screen; with a goal, values towards the goal count. Not accepted: several classes or doses.
    null
        The same screen of other cells, such as controls.

    Returns
    -------
    A row a gene (or set of genes, their ids joined by "+"), indexed by ``gene_id``: ``gene_name``; ``effect``
    (published Test_avg_shift), the mean over cells; ``null_mean`` (Null_avg_shift), NaN for a gene that the null
    lacks; ``difference`` (Test_vs_null_avg_shift), effect less null; ``p_value`` (Test_vs_null_pval), 1 for a gene
    that the null lacks; ``fdr`` (Test_vs_null_FDR); ``n_cells`` and ``n_cells_null`` (N_Detections_test and _null).
    Ordered as published: FDR < 0.05 first, then the largest difference, then the lowest FDR. So with similarities the
    genes that move cells more than in the null come last.

    Raises
    ------
    InputError
        The two were not measured alike (measure, goal, classifier, kind of perturbation, layer, pooling, method,
        model), or share no gene.

    Notes
    -----
    p: two-sided Wilcoxon rank-sum test (normal approximation, no correction for ties), null hypothesis: the values in
    the cells of both screens have one distribution. FDR: Benjamini and Hochberg over all genes of `shifts`.
    """
    _require_measured_alike(shifts.metadata, null.metadata)
    test, control = (_of_one_state(_rows_of_cells(of), of) for of in (shifts, null))
    of_gene, of_null = (rows.groupby("perturbed")["value"] for rows in (test, control))
    n_null = of_null.size().reindex(of_gene.size().index, fill_value=0)
    if not n_null.any():
        raise InputError("The null perturbed none of the screen's genes. Screen the same genes in the null's cells.")
    columns = pd.DataFrame({"effect": of_gene.mean(), "null_mean": of_null.mean().reindex(n_null.index)})
    columns["difference"] = columns["effect"] - columns["null_mean"]
    columns["p_value"] = _rank_sum_p(_ranks_within(test, control), n_null).fillna(1.0)
    columns["fdr"] = false_discovery_control(columns["p_value"])
    columns = columns.assign(n_cells=of_gene.size(), n_cells_null=n_null)
    return _named(_significant_first(columns, "difference"), shifts)


def _require_measured_alike(screen: Mapping[str, Any], null: Mapping[str, Any]) -> None:
    for name, of_screen in _how_measured(screen).items():
        if (of_null := _how_measured(null)[name]) != of_screen:
            raise InputError(
                f"The null has another {name} than the screen: {of_null!r}, not {of_screen!r}. Screen both alike."
            )


def _how_measured(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What two screens must share to be compared; the start of a goal and its alternatives only choose cells."""
    goal = metadata["goal"] and {name: metadata["goal"].get(name) for name in ("obs", "goal", "embeddings")}
    kind = metadata["perturbation"]["kind"]
    others = {name: metadata.get(name) for name in ("target", "layer", "pooling", "method", "checkpoint")}
    return {"measure": metadata["measure"], "goal": goal, "kind of perturbation": kind, **others}


def _significant_first(columns: pd.DataFrame, effect: str) -> pd.DataFrame:
    keys = columns[[effect, "fdr"]].assign(significant=columns["fdr"] < SIGNIFICANT)
    order = keys.sort_values(["significant", effect, "fdr"], ascending=[False, False, True], kind="stable").index
    return columns.loc[order]


def _against_all(rows: pd.DataFrame) -> pd.DataFrame:
    """Test each gene's values against those of all genes."""
    pool = rows["value"].to_numpy()
    if len(pool) > POOL_SIZE:
        pool = np.random.default_rng(42).choice(pool, POOL_SIZE, replace=False)
    values = rows.groupby("perturbed")["value"]
    p_value = _rank_sum_p(_ranks_in(np.sort(pool), rows), len(pool))
    return pd.DataFrame(
        {"effect": values.mean(), "p_value": p_value, "fdr": false_discovery_control(p_value), "n_cells": values.size()}
    )


def _ranks_in(pool: np.ndarray, rows: pd.DataFrame) -> SeriesGroupBy:
    """Return, by gene, how many values of the sorted pool each value exceeds; equal ones count half."""
    below, not_above = (np.searchsorted(pool, rows["value"], side) for side in ("left", "right"))
    return pd.Series((below + not_above) / 2, rows.index).groupby(rows["perturbed"])


def _ranks_within(test: pd.DataFrame, control: pd.DataFrame) -> SeriesGroupBy:
    """Return, by gene, how many values that the gene has in the null each value exceeds; equal ones count half."""
    among_both = pd.concat([test, control], ignore_index=True).groupby("perturbed")["value"].rank()[: len(test)]
    among_own = test.groupby("perturbed")["value"].rank()
    return pd.Series(among_both.to_numpy() - among_own.to_numpy()).groupby(test["perturbed"].to_numpy())


def _rank_sum_p(exceeded: SeriesGroupBy, n_null: pd.Series | int) -> pd.Series:
    """Return the p-values of `scipy.stats.ranksums`; called gene by gene, that takes ten times as long.

    Parameters
    ----------
    exceeded
        Of each value of each gene, how many values of the null it exceeds.
    n_null
        Values of the null, for each gene or all; the p-value is NaN where there is none.
    """
    n_pairs = exceeded.size() * n_null
    z = (exceeded.sum() - n_pairs / 2) / np.sqrt(n_pairs * (exceeded.size() + n_null + 1) / 12)
    return pd.Series(2 * norm.sf(z.abs()), exceeded.size().index)


# Two kinds of genes


def mixture(shifts: ShiftTable) -> pd.DataFrame:
    """Split genes into those with an impact on cells and those without.

    Two normal distributions are fitted to the genes' mean similarities. The one of the lower mean is that of genes with
    an impact. A gene below its mean has one, a gene above the mean of the other has none, and one between belongs to
    the distribution that is more probable.

    Parameters
    ----------
    shifts
        Result of a screen of single genes without a goal or classifier: similarities. Not accepted: a screen of pairs
        or sets, of several doses, of one gene.

    Returns
    -------
    A row a gene, indexed by ``gene_id``: ``gene_name``; ``effect`` (published Test_avg_shift), the mean similarity
    over cells; ``impact`` (Impact_component, 0 or 1); ``share_of_cells`` (Impact_component_percent / 100) whose own
    similarity would count as an impact; ``n_cells``. Ordered as published: genes with an impact first, then the lowest
    similarity.

    Raises
    ------
    InputError
        The screen is not of the kind that is accepted, or all genes have one mean.

    Notes
    -----
    There is no test: two groups are found in any data. Mean and spread of few cells are noisier than those of many,
    and the fit does not know.
    """
    if shifts.measure != SIMILARITY:
        raise InputError(
            f"mixture needs a screen of {SIMILARITY}, this one measured {shifts.measure}. Screen without goal and "
            "classifier."
        )
    rows = _rows_of_genes(shifts)
    values = rows.groupby("perturbed")["value"]
    columns = pd.DataFrame({"effect": values.mean(), "n_cells": values.size()})
    if columns["effect"].nunique() < 2:
        raise InputError("All genes have the same mean similarity; there are no two groups to find.")
    fitted = GaussianMixture(2, random_state=MIXTURE_SEED).fit(columns[["effect"]].to_numpy())
    columns.insert(1, "impact", _has_impact(fitted, columns["effect"]))
    columns.insert(2, "share_of_cells", _has_impact(fitted, rows["value"]).groupby(rows["perturbed"]).mean())
    return _named(columns.sort_values(["impact", "effect"], ascending=[False, True], kind="stable"), shifts)


def _has_impact(fitted: GaussianMixture, values: pd.Series) -> pd.Series:
    low, high = np.argsort(fitted.means_[:, 0])
    nearer_low = fitted.predict(values.to_numpy()[:, None]) == low
    below, above = values < fitted.means_[low, 0], values > fitted.means_[high, 0]
    return below | (nearer_low & ~above)


# Long tables


def aggregate(shifts: ShiftTable) -> pd.DataFrame:
    """List what a named gene or set of genes did to each cell.

    Parameters
    ----------
    shifts
        Result of a screen of genes that were named.

    Returns
    -------
    A row a perturbation and cell (and state and dose, where there are): ``perturbed`` (gene ids joined by "+"),
    ``gene_name`` (published Gene), ``cell``, ``donor``, ``state``, ``dose``, ``value`` (Cosine_sim); in the order of
    the screen.

    Raises
    ------
    InputError
        The screen perturbed each gene.
    """
    if shifts.metadata["perturbation"].get("genes") == "each":
        raise InputError(
            "aggregate lists the values of named genes; this screen perturbed each gene. Its rows are shifts.table; "
            "for a row a gene use another method, for one gene screen with genes=[…]."
        )
    rows = _rows_of_cells(shifts, one_dose=False)
    rows.insert(1, "gene_name", _names(rows["perturbed"], shifts))
    return rows


def gene_shifts(shifts: ShiftTable) -> pd.DataFrame:
    """Average what each perturbation did to each other gene, and to the cell.

    Parameters
    ----------
    shifts
        Result of a screen with ``affected``. Not accepted: several doses. Memory is that of the result, however many
        cells there are, unless ``shifts.table`` was read before.

    Returns
    -------
    A row a perturbed and affected gene: ``perturbed`` and ``gene_name`` (published Ensembl_ID, Gene_name),
    ``affected`` and ``affected_name`` (Affected_Ensembl_ID, Affected_gene_name; null for the cell itself), ``state``
    where the cell's values have one, ``mean`` (Cosine_sim_mean), ``sd`` (Cosine_sim_stdev; of the population, 0 for one
    cell), ``n_cells`` (N_Detections). Ordered as published: cells first, then the lowest mean.

    Raises
    ------
    InputError
        The screen did not measure affected genes, or has several doses.
    """
    columns = _moments(shifts).reset_index()
    of_cell = columns["affected"] == _NULL
    if of_cell.all():
        raise InputError(
            "gene_shifts needs what happened to other genes; this screen measured only cells. Screen again with "
            "affected=…."
        )
    columns = columns.assign(_of_gene=~of_cell).sort_values(["_of_gene", "mean"], kind="stable", ignore_index=True)
    columns[["affected", "state"]] = columns[["affected", "state"]].replace(_NULL, None)
    columns["gene_name"] = _names(columns["perturbed"], shifts)
    columns["affected_name"] = _names(columns["affected"], shifts)
    columns["sd"] = np.sqrt(columns["squares"] / columns["n_cells"])
    state = [] if columns["state"].isna().all() else ["state"]
    return columns[["perturbed", "gene_name", "affected", "affected_name", *state, "mean", "sd", "n_cells"]]


def _moments(shifts: ShiftTable) -> pd.DataFrame:
    """Return number, mean and sum of squared deviations of the values of each key, one block at a time.

    Blocks are merged when what waits has outgrown what was merged, so that a key is touched few times.
    """
    parts: list[pd.DataFrame] = []
    doses: set[float] = set()
    for block in shifts.blocks():
        doses.update(block["dose"].dropna().unique())
        parts.append(_moments_of_block(block))
        if sum(map(len, parts[1:])) > len(parts[0]):
            parts = [_merged(parts)]
    _require_one_dose(doses)
    return _merged(parts)


def _moments_of_block(block: pd.DataFrame) -> pd.DataFrame:
    keys = block[_OF_A_GENE].where(block[_OF_A_GENE].notna(), _NULL)
    values = block["value"].groupby([keys[name] for name in _OF_A_GENE])
    n_cells = values.size()
    return pd.DataFrame({"n_cells": n_cells, "mean": values.mean(), "squares": values.var(ddof=0) * n_cells})


def _merged(parts: list[pd.DataFrame]) -> pd.DataFrame:
    """Add spread within parts and between their means, as Chan, Golub and LeVeque (1983)."""
    moments = pd.concat(parts)
    of_key = moments.assign(total=moments["mean"] * moments["n_cells"]).groupby(level=_OF_A_GENE)
    mean = of_key["total"].transform("sum") / of_key["n_cells"].transform("sum")
    between = moments["n_cells"] * (moments["mean"] - mean) ** 2
    moments = moments.assign(mean=mean, squares=moments["squares"] + between)
    return moments.groupby(level=_OF_A_GENE).agg({"n_cells": "sum", "mean": "first", "squares": "sum"})


# Two genes at once


def pairs(shifts: ShiftTable) -> pd.DataFrame:
    """Compare what two genes do together with the sum of what each does alone, in the same cells.

    Parameters
    ----------
    shifts
        Result of a screen with ``combine="pairs"`` or an anchor; with a goal, values towards the goal count. Not
        accepted: several doses.

    Returns
    -------
    A row a pair, and class where a classifier has several: ``gene_a``, ``gene_b`` (ids; the anchor is a, else ids
    ascend), ``gene_name_a``, ``gene_name_b``, ``state`` (only with several classes); means over the replicates of
    ``effect_a`` (published Anchor_shift), ``effect_b`` (Test_token_shift), ``effect_sum`` (Sum_of_indiv_shifts),
    ``effect_pair`` (Combo_shift) and ``interaction`` (Combo_minus_sum_shift), which is pair less sum; its 95 %
    interval, ``interaction_low`` and ``interaction_high``; ``p_value``, ``fdr``; ``n_cells``, ``n_donors`` (0 where
    donors are unknown). Ordered by p-value, then the strongest interaction in either direction.

    Raises
    ------
    InputError
        No pair was perturbed whose genes were perturbed alone in the same cells, or there are several doses.

    Notes
    -----
    Of shifts and changes of a prediction the sum is a + b. A similarity is 1 less the distance a cell moved, and
    distances add up: sum = 1 − ((1 − a) + (1 − b)). So an interaction of similarities below 0 says that the pair moves
    cells further than both genes do one by one.

    Replicates are donors (mean over a donor's cells). Where donors are unknown, or all cells are of one, they are
    cells; those are not independent, and p-values are then too small. Test and interval: two-sided one-sample t over
    replicates, null hypothesis: the mean interaction is 0. With one replicate NaN. FDR: Benjamini and Hochberg over
    pairs, for each class on its own.
    """
    cells = _interactions(shifts)
    of_pair = cells.groupby([*_PAIR, _replicate(cells)])[_EFFECTS].mean().groupby(level=_PAIR)
    columns = of_pair.mean().join(_t_test(of_pair["interaction"]))
    counts = cells.groupby(_PAIR).agg(n_cells=("cell", "nunique"), n_donors=("donor", "nunique"))
    columns = columns.assign(fdr=columns.groupby("state")["p_value"].transform(_false_discovery_rate)).join(counts)
    columns = columns.assign(_strength=-columns["interaction"].abs()).sort_values(["p_value", "_strength"])
    columns = columns.drop(columns="_strength").reset_index()
    for place, gene in enumerate("ab", start=2):
        columns.insert(place, f"gene_name_{gene}", _names(columns[f"gene_{gene}"], shifts))
    return columns if columns["state"].nunique() > 1 else columns.drop(columns="state")


def _interactions(shifts: ShiftTable) -> pd.DataFrame:
    """Return the effects of a, b, their sum and the pair in each cell that has all three."""
    rows = _rows_of_cells(shifts)
    if goal := shifts.metadata["goal"]:
        rows = rows[rows["state"] == goal["goal"]]
    rows = rows.assign(state=rows["state"].where(rows["state"].notna(), _NULL))
    anchored = shifts.metadata["perturbation"].get("anchor") is not None
    genes = _genes_of_pairs(rows["perturbed"], anchored=anchored)
    cells = rows.join(genes, on="perturbed", how="inner")
    cells = cells.rename(columns={"value": "effect_pair"})
    for gene in "ab":
        names = {"perturbed": f"gene_{gene}", "value": f"effect_{gene}"}
        alone = rows[["cell", "state", "perturbed", "value"]].rename(columns=names)
        cells = cells.merge(alone, on=["cell", "state", f"gene_{gene}"])
    if cells.empty:
        raise InputError(
            "pairs needs each pair and both of its genes alone in the same cells; this table has none. Screen with "
            "combine='pairs' or an anchor."
        )
    unmoved = 1.0 if shifts.measure == SIMILARITY else 0.0
    total = cells["effect_a"] + cells["effect_b"] - unmoved
    return cells.assign(effect_sum=total, interaction=cells["effect_pair"] - total)


def _replicate(cells: pd.DataFrame) -> str:
    nameless = cells.loc[cells["donor"].isna(), "cell"]
    if 0 < len(nameless) < len(cells):
        raise InputError(
            f"Some cells have no donor (first: {nameless.iloc[0]!r}), others have. Select those that have: "
            "ShiftTable(shifts.table.dropna(subset='donor'), shifts.metadata)."
        )
    return "donor" if cells["donor"].nunique() > 1 else "cell"


def _genes_of_pairs(perturbed: pd.Series, *, anchored: bool) -> pd.DataFrame:
    """Return the two genes of every pair; "A+B" in one cell is "B+A" in another, but an anchor is always first."""
    labels = [label for label in perturbed.unique() if label.count("+") == 1]
    genes = [label.split("+") if anchored else sorted(label.split("+")) for label in labels]
    return pd.DataFrame(genes, index=labels, columns=["gene_a", "gene_b"], dtype=object)


def _t_test(interaction: SeriesGroupBy) -> pd.DataFrame:
    """Return what `scipy.stats.ttest_1samp` does, of all groups at once."""
    mean, freedom = interaction.mean(), interaction.size() - 1
    error = interaction.sem()
    half = t.ppf(0.975, freedom) * error
    p_value = 2 * t.sf((mean / error).abs(), freedom)
    return pd.DataFrame({"interaction_low": mean - half, "interaction_high": mean + half, "p_value": p_value})


def _false_discovery_rate(p_value: pd.Series) -> pd.Series:
    tested = p_value.dropna()
    return pd.Series(false_discovery_control(tested), tested.index).reindex(p_value.index)


# What all have in common


def _rows_of_cells(shifts: ShiftTable, *, one_dose: bool = True) -> pd.DataFrame:
    """Return what happened to cells themselves, without the rows of affected genes."""
    rows = pd.concat([block.loc[block["affected"].isna(), _OF_A_CELL] for block in shifts.blocks()], ignore_index=True)
    if one_dose:
        _require_one_dose(rows["dose"].dropna().unique())
    return rows


def _rows_of_genes(shifts: ShiftTable) -> pd.DataFrame:
    """Return the rows of a screen that perturbed several genes, each alone."""
    rows = _rows_of_cells(shifts)
    perturbed = rows["perturbed"].unique()
    if len(perturbed) < 2:
        raise InputError(
            f"The screen perturbed only {', '.join(map(repr, perturbed))}; a test needs other genes to compare with. "
            "Screen with Deletion(genes='each')."
        )
    if sets := [label for label in perturbed if "+" in label]:
        raise InputError(
            f"This statistic compares single genes; the screen perturbed several at once ({sets[0]!r}). For pairs use "
            "'pairs', for a set that was named 'aggregate'."
        )
    return rows


def _of_one_state(rows: pd.DataFrame, shifts: ShiftTable) -> pd.DataFrame:
    """Return the rows of the goal, of a screen without a goal all; refuse several classes."""
    if goal := shifts.metadata["goal"]:
        return rows[rows["state"] == goal["goal"]]
    if rows["state"].nunique() > 1:
        classes = ", ".join(map(repr, rows["state"].unique()))
        raise InputError(
            f"The screen holds a value for each class of a classifier ({classes}). Select one: "
            f"ShiftTable(shifts.table[shifts.table['state'] == {rows['state'].iloc[0]!r}], shifts.metadata)."
        )
    return rows


def _require_goal(shifts: ShiftTable, method: str, *, wanted: bool) -> None:
    if bool(shifts.metadata["goal"]) == wanted:
        return
    target = shifts.metadata.get("target")
    made = f"with a classifier of {target['name']!r}; use 'matched'" if target else "without" if wanted else "with"
    raise InputError(
        f"method={method!r} needs a screen {'with' if wanted else 'without'} a goal state; this one was made {made}."
    )


def _require_one_dose(doses: Iterable[float]) -> None:
    if len(distinct := sorted(map(float, doses))) > 1:
        raise InputError(
            f"The screen holds several doses ({', '.join(f'{dose}' for dose in distinct)}), and a mean over doses "
            f"says nothing. Select one: ShiftTable(shifts.table[shifts.table['dose'] == {distinct[0]!r}], "
            "shifts.metadata)."
        )


def _names(perturbed: pd.Series, shifts: ShiftTable) -> pd.Series:
    """Return the name of each gene or set, its id where it has none; null stays null."""
    names = shifts.metadata["gene_names"]
    labels = perturbed.dropna().unique()
    return perturbed.map({label: "+".join(names.get(gene) or gene for gene in label.split("+")) for label in labels})


def _named(columns: pd.DataFrame, shifts: ShiftTable) -> pd.DataFrame:
    columns.insert(0, "gene_name", _names(columns.index.to_series(), shifts))
    return columns.rename_axis("gene_id")
