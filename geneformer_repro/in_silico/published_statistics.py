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

In all of them rows without a value are left out, with a word in the log, and an infinite value is refused; the
published package takes the first for the largest of all. Where nothing spreads beyond rounding (`rounding_error`)
there is no p-value, and the log says so.

The tests of `goal_state`, `vs_all` and `vs_null` take every cell for an independent replicate. Cells of a donor are
not, so their p-values are too small where a gene was measured in many cells of few donors: read them as a ranking,
and look at the effect. `pairs` tests over donors.

Rows are read block by block and summed up as they pass, so memory does not grow with the number of cells (but for
`aggregate`, whose result has a row for each). Ranks among all genes are places in a sample of 100,000 values, which is
drawn in a pass before; ranks within a gene need all its values, so genes are ranked some at a time, a pass for each
16 million values of both screens.

References
----------
Theodoris et al., Nature 618, 616 (2023), Methods, "In silico perturbation"; InSilicoPerturberStats of the published
package.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control, norm, t
from sklearn.mixture import GaussianMixture

from geneformer_repro.errors import InputError, did_you_mean, listed
from geneformer_repro.in_silico.blockwise import Names, added, measured, merged_moments, moments, rounding_error, totals
from geneformer_repro.in_silico.shift_table import SIMILARITY, ShiftTable

logger = logging.getLogger(__name__)

POOL_SIZE = 100_000
SIGNIFICANT = 0.05
MIXTURE_SEED = 0
VALUES_AT_ONCE = 2**24
"""Values of both screens that are ranked within their genes at a time."""
_OF_A_CELL = ["perturbed", "cell", "donor", "state", "dose", "value"]
_PAIR = ["gene_a", "gene_b", "state"]
_NULL = ""
"""Stands for null among keys."""
_TEXT = ["perturbed", "cell", "donor", "state"]
_N_OF_PAIRS = ["n_cells", "n_donors"]
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
    values, a random 100,000 of them (fixed seed) stand for all. FDR: Benjamini and Hochberg over genes. NaN where all
    values of a state are the same but for rounding.
    """
    _require_goal(shifts, "goal_state", wanted=True)
    goal, counted = shifts.metadata["goal"], _counted_genes(shifts)
    tested = {state: _against_all(shifts, counted, state) for state in (goal["goal"], *goal["alternatives"])}
    columns = tested[goal["goal"]]
    for state in goal["alternatives"]:
        columns = columns.join(tested[state].drop(columns="n_cells").add_suffix(f"_to_{state}"))
    return named(_significant_first(columns, "effect"), shifts)


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
    counted = _counted_genes(shifts)
    columns = _against_all(shifts, counted, _the_state(counted, shifts), less_mean=True)
    return named(columns.sort_values(["fdr", "effect"], kind="stable"), shifts)


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
        The two were not measured alike (measure, goal, classifier, kind of perturbation and its options, layer,
        pooling, method, model), or share no gene. The genes of a list may differ, and one may be "each".

    Notes
    -----
    p: two-sided Wilcoxon rank-sum test (normal approximation, no correction for ties), null hypothesis: the values in
    the cells of both screens have one distribution. FDR: Benjamini and Hochberg over all genes of `shifts`. NaN where
    all values of a gene, in both, are the same but for rounding.
    """
    _require_measured_alike(shifts.metadata, null.metadata)
    both = [(of, _counted(of)) for of in (shifts, null)]
    (test, state), (control, state_of_null) = ((counted, _the_state(counted, of)) for of, counted in both)
    _require_same("state", state, state_of_null)
    _require_same("dose", test.dose, control.dose)
    of_gene = test.in_state(state)
    of_null = control.in_state(state).reindex(of_gene.index)
    n_null = of_null["n_cells"].fillna(0).astype(np.int64)
    if not n_null.any():
        raise InputError("The null perturbed none of the screen's genes. Screen the same genes in the null's cells.")
    columns = pd.DataFrame(
        {"effect": of_gene["total"] / of_gene["n_cells"], "null_mean": of_null["total"] / of_null["n_cells"]}
    )
    columns["difference"] = columns["effect"] - columns["null_mean"]
    ranked = _ranked_within(shifts, null, state, of_gene["n_cells"] + n_null)
    p_value = _rank_sum_p(ranked["exceeded"], of_gene["n_cells"], n_null).fillna(1.0)
    spreads = (ranked["range"] > max(test.rounding, control.rounding)) | (n_null == 0)
    columns["p_value"] = _where_it_spreads(p_value, spreads, "genes")
    columns["fdr"] = false_discovery_rate(columns["p_value"])
    columns = columns.assign(n_cells=of_gene["n_cells"], n_cells_null=n_null)
    return named(_significant_first(columns, "difference"), shifts)


def _require_measured_alike(screen: Mapping[str, Any], null: Mapping[str, Any]) -> None:
    for name, of_screen in _how_measured(screen).items():
        _require_same(name, of_screen, _how_measured(null).get(name))


def _require_same(name: str, of_screen: Any, of_null: Any) -> None:
    if of_null != of_screen:
        raise InputError(
            f"The null has another {name} than the screen: {of_null!r}, not {of_screen!r}. Screen both alike."
        )


def _how_measured(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What two screens must share to be compared; the start of a goal and its alternatives only choose cells.

    Each gene is compared on its own, so two lists of genes may differ, and one may be of each gene. Places of a
    `RankShift` are compared as they are in the rows, of which one place may have been selected.
    """
    goal = metadata["goal"] and {name: metadata["goal"].get(name) for name in ("obs", "goal", "embeddings")}
    perturbation = {name: value for name, value in metadata["perturbation"].items() if name not in ("genes", "to")}
    if len(metadata["perturbation"].get("genes", ())) == 1:  # of one gene that is the same
        perturbation["combine"] = "singly"
    others = {name: metadata.get(name) for name in ("target", "layer", "pooling", "method", "checkpoint")}
    return {
        "measure": metadata["measure"],
        "goal": goal,
        "kind of perturbation": perturbation.pop("kind"),
        **perturbation,
        **others,
    }


def _significant_first(columns: pd.DataFrame, effect: str) -> pd.DataFrame:
    keys = columns[[effect, "fdr"]].assign(significant=columns["fdr"] < SIGNIFICANT)
    order = keys.sort_values(["significant", effect, "fdr"], ascending=[False, False, True], kind="stable").index
    return columns.loc[order]


def _against_all(shifts: ShiftTable, counted: "_Counted", state: str, *, less_mean: bool = False) -> pd.DataFrame:
    """Test each gene's values in a state against those of all genes."""
    of_gene = counted.in_state(state)
    n_values = int(of_gene["n_cells"].sum())
    mean = of_gene["total"].sum() / n_values if less_mean else 0.0
    pool = np.sort(_pool(shifts, state, n_values))
    ranked = added((_ranked(rows, pool, mean) for rows in _rows_in(shifts, state)), totals).loc[of_gene.index]
    p_value = _rank_sum_p(ranked["exceeded"], of_gene["n_cells"], len(pool))
    p_value = _where_it_spreads(p_value, np.full(len(p_value), np.ptp(pool) > counted.rounding), "genes")
    return pd.DataFrame(
        {
            "effect": ranked["value"] / of_gene["n_cells"],
            "p_value": p_value,
            "fdr": false_discovery_rate(p_value),
            "n_cells": of_gene["n_cells"],
        }
    )


def _pool(shifts: ShiftTable, state: str, n_values: int) -> np.ndarray:
    """Return all values of a state, or as many as `POOL_SIZE` that are drawn from them."""
    if n_values <= POOL_SIZE:
        return np.concatenate([rows["value"].to_numpy() for rows in _rows_in(shifts, state)])
    drawn = np.sort(np.random.default_rng(42).choice(n_values, POOL_SIZE, replace=False))
    pool, start = [], 0
    for rows in _rows_in(shifts, state):
        here = drawn[np.searchsorted(drawn, start) : np.searchsorted(drawn, start + len(rows))]
        pool.append(rows["value"].to_numpy()[here - start])
        start += len(rows)
    return np.concatenate(pool)


def _ranked(rows: pd.DataFrame, pool: np.ndarray, mean: float) -> pd.DataFrame:
    """Return, by gene, sums of its values less the mean, and of how many values of the sorted pool each exceeds."""
    values = rows["value"].to_numpy()
    return _summed(pd.DataFrame({"value": values - mean, "exceeded": _exceeded(values, pool)}, rows.index), rows)


def _exceeded(values: np.ndarray, pool: np.ndarray) -> np.ndarray:
    """Return how many values of the sorted pool each value exceeds; equal ones count half."""
    below, not_above = (np.searchsorted(pool, values, side) for side in ("left", "right"))
    return np.asarray((below + not_above) / 2)


def _ranked_within(shifts: ShiftTable, null: ShiftTable, state: str, n_values: pd.Series) -> pd.DataFrame:
    """Return, by gene, how many values that it has in the null its values exceed, in all, and the ``range`` of both.

    Parameters
    ----------
    shifts, null, state
        What is compared.
    n_values
        Of each gene, in both.
    """
    at_once = (n_values.cumsum() // VALUES_AT_ONCE).to_numpy()
    ranks = pd.DataFrame(0.0, index=n_values.index, columns=["exceeded", "range"])
    for group in np.unique(at_once):
        genes = n_values.index[at_once == group]
        test, control = (_values_of(of, state, genes) for of in (shifts, null))
        for gene, values, of_null in zip(genes, test, control, strict=True):
            ranks.loc[gene] = _exceeded(values, np.sort(of_null)).sum(), np.ptp(np.append(values, of_null))
    return ranks


def _where_it_spreads(p_value: pd.Series, spreads: Any, what: str) -> pd.Series:
    """Leave out, and count in the log, p-values of what does not spread beyond rounding."""
    flat = int((p_value.notna() & ~spreads).sum())
    if flat:
        logger.warning("%d of %d %s have no p-value: nothing spreads beyond rounding.", flat, len(p_value), what)
    return p_value.where(spreads)


def _values_of(shifts: ShiftTable, state: str, genes: "pd.Index[Any]") -> list[np.ndarray]:
    """Return the values of each of some genes."""
    of_blocks = []
    for rows in _rows_in(shifts, state):
        perturbed = rows["perturbed"].cat
        gene = np.array([*genes.get_indexer(perturbed.categories), -1], dtype=np.int32)[perturbed.codes.to_numpy()]
        of_blocks.append((gene[gene >= 0], rows["value"].to_numpy()[gene >= 0]))
    gene, values = (np.concatenate(column) for column in zip(*of_blocks, strict=True))
    order = np.argsort(gene, kind="stable")
    return np.split(values[order], np.cumsum(np.bincount(gene, minlength=len(genes)))[:-1])


def _rank_sum_p(exceeded: pd.Series, n_values: pd.Series, n_null: pd.Series | int) -> pd.Series:
    """Return the p-values of `scipy.stats.ranksums`; called gene by gene, that takes ten times as long.

    Parameters
    ----------
    exceeded
        Of each gene, how many values of the null its values exceed, in all.
    n_values
        Values of each gene.
    n_null
        Values of the null, for each gene or all; the p-value is NaN where there is none.
    """
    n_pairs = n_values * n_null
    z = (exceeded - n_pairs / 2) / np.sqrt(n_pairs * (n_values + n_null + 1) / 12)
    return pd.Series(2 * norm.sf(z.abs()), n_values.index)


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
    counted = _counted_genes(shifts)
    of_gene = counted.of_gene.groupby(level=1).sum()
    columns = pd.DataFrame({"effect": of_gene["total"] / of_gene["n_cells"], "n_cells": of_gene["n_cells"]})
    if np.ptp(columns["effect"]) <= counted.rounding:
        raise InputError("All genes have the same mean similarity but for rounding; there are no two groups to find.")
    fitted = GaussianMixture(2, random_state=MIXTURE_SEED).fit(columns[["effect"]].to_numpy())
    columns.insert(1, "impact", _has_impact(fitted, columns["effect"]))
    n_with = added((_n_with_impact(fitted, rows) for rows in _rows_in(shifts)), totals)
    columns.insert(2, "share_of_cells", n_with["value"] / columns["n_cells"])
    return named(columns.sort_values(["impact", "effect"], ascending=[False, True], kind="stable"), shifts)


def _n_with_impact(fitted: GaussianMixture, rows: pd.DataFrame) -> pd.DataFrame:
    return _summed(_has_impact(fitted, rows["value"]).to_frame("value"), rows)


def _has_impact(fitted: GaussianMixture, values: pd.Series) -> pd.Series:
    low, high = np.argsort(fitted.means_[:, 0])
    nearer_low = fitted.predict(values.to_numpy()[:, None]) == low if len(values) else False
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
    blocks = measured(shifts, _OF_A_CELL, tell=True)
    of_cells = (block[_OF_A_CELL].astype(dict.fromkeys(_TEXT, object)) for block in blocks)
    rows = pd.concat(of_cells, ignore_index=True)
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
    genes, states = Names(), Names()
    columns = _moments(shifts, genes, states).reset_index()
    of_cell = columns["affected"] < 0
    if of_cell.all():
        raise InputError(
            "gene_shifts needs what happened to other genes; this screen measured only cells. Screen again with "
            "affected=…."
        )
    ids, names = genes.names_and(None), states.names_and(None)
    columns["perturbed"], columns["affected"] = ids[columns["perturbed"]], ids[columns["affected"]]
    columns["state"] = names[columns["state"]]
    order = ["_of_gene", "mean", "perturbed", "affected", "state"]
    columns = columns.assign(_of_gene=~of_cell).sort_values(order, na_position="first", ignore_index=True)
    columns["gene_name"] = _names(columns["perturbed"], shifts)
    columns["affected_name"] = _names(columns["affected"], shifts)
    columns["sd"] = np.sqrt(columns["squares"] / columns["n"])
    columns = columns.rename(columns={"n": "n_cells"})
    state = [] if columns["state"].isna().all() else ["state"]
    return columns[["perturbed", "gene_name", "affected", "affected_name", *state, "mean", "sd", "n_cells"]]


def _moments(shifts: ShiftTable, genes: Names, states: Names) -> pd.DataFrame:
    """Return number, mean and sum of squared deviations of the values of each perturbed gene, affected and state."""
    doses: set[float] = set()

    def of_blocks() -> Iterator[pd.DataFrame]:
        for block in measured(shifts, ["perturbed", "affected", "state", "dose", "value"], affected=True, tell=True):
            doses.update(block["dose"].dropna().unique())
            keys = [genes.numbers(block["perturbed"]), genes.numbers(block["affected"]), states.numbers(block["state"])]
            yield moments(block["value"], keys).rename_axis(["perturbed", "affected", "state"])

    merged = added(of_blocks(), merged_moments)
    _require_one_dose(doses)
    return merged


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
    replicates, null hypothesis: the mean interaction is 0. With one replicate NaN, as where replicates do not spread
    beyond the rounding of three values. FDR: Benjamini and Hochberg over pairs, for each class on its own.
    """
    columns = _effects_of_pairs(shifts)
    columns["fdr"] = columns.groupby("state")["p_value"].transform(false_discovery_rate)
    several = columns.index.unique("state").size > 1
    if several:
        pair = pd.MultiIndex.from_frame(columns.reset_index()[_PAIR[:2]])
        columns = columns.join(best_of_classes(columns["p_value"], pair, shifts))
    columns = columns[[name for name in columns if name not in _N_OF_PAIRS] + _N_OF_PAIRS]
    columns = columns.assign(_strength=-columns["interaction"].abs()).sort_values(["p_value", "_strength"])
    columns = columns.drop(columns="_strength").reset_index()
    for place, gene in enumerate("ab", start=2):
        columns.insert(place, f"gene_name_{gene}", _names(columns[f"gene_{gene}"], shifts))
    return columns if several else columns.drop(columns="state")


def _effects_of_pairs(shifts: ShiftTable) -> pd.DataFrame:
    """Return means, test and numbers of each pair and state."""
    names = _NamesOfPairs(Names(), Names(), Names(), {}, [], [0.0])
    sums = added(_interactions(shifts, names), _merged_pairs)
    if sums.empty:
        raise InputError(
            "pairs needs each pair and both of its genes alone in the same cells; this table has none. Screen with "
            "combine='pairs' or an anchor."
        )
    donors = sums.index.unique("donor")
    if -1 in donors and len(donors) > 1:
        raise InputError(
            f"Some cells have no donor (first: {names.nameless[0]!r}), others have. Select those that have: "
            "ShiftTable(shifts.table.dropna(subset='donor'), shifts.metadata)."
        )
    n_donors = sums.groupby(level=_PAIR).size() * (-1 not in donors)
    of_cells = _merged_pairs(sums.droplevel("donor"))
    replicates = of_cells
    if len(donors) > 1:
        means = sums[_EFFECTS].div(sums["n"], axis=0)
        keys = [means.index.get_level_values(name) for name in _PAIR]
        replicates = moments(means["interaction"], keys).join(totals(means.droplevel("donor")))
    tested = _t_test(replicates, 3 * max(names.rounding))
    columns = replicates[_EFFECTS].div(replicates["n"], axis=0).join(tested)
    columns = columns.assign(n_cells=of_cells["n"], n_donors=n_donors)
    genes, states = names.genes.names(), names.states.names_and(_NULL)
    columns.index = pd.MultiIndex.from_arrays(
        [of[columns.index.get_level_values(name)] for of, name in zip((genes, genes, states), _PAIR, strict=True)],
        names=_PAIR,
    )
    return columns.sort_index()


class _NamesOfPairs(NamedTuple):
    """Numbers of the names in rows, and what a pass over the rows gathers."""

    genes: Names
    states: Names
    donors: Names
    genes_of: dict[str, tuple[int, int]]
    """The genes of each label; of a gene alone the second is -1."""
    nameless: list[str]
    """The first cell without a donor."""
    rounding: list[float]
    """How far rounding may take a value of each block."""


def _interactions(shifts: ShiftTable, names: _NamesOfPairs) -> Iterator[pd.DataFrame]:
    """Yield, by pair, state and donor, sums over the cells of a block that have a, b and the pair.

    Beside sums of the effects, ``n``, ``mean`` and ``squares`` are the moments of the interaction.
    """
    goal = shifts.metadata["goal"]
    doses: set[float] = set()
    anchored = shifts.metadata["perturbation"].get("anchor") is not None
    unmoved = 1.0 if shifts.measure == SIMILARITY else 0.0
    for rows in measured(shifts, [*_OF_A_CELL, "before"], whole_cells=True, tell=True):
        names.rounding.append(rounding_error(rows))
        doses.update(rows["dose"].dropna().unique())
        _require_one_dose(doses)
        cells = _pairs_of(rows[rows["state"] == goal["goal"]] if goal else rows, names, anchored=anchored)
        total = cells["effect_a"] + cells["effect_b"] - unmoved
        cells = cells.assign(effect_sum=total, interaction=cells["effect_pair"] - total)
        keys = [cells[name].to_numpy() for name in [*_PAIR, "donor"]]
        sums = moments(cells["interaction"], keys).join(cells[_EFFECTS].groupby(keys).sum())
        yield sums.rename_axis([*_PAIR, "donor"])


def _pairs_of(rows: pd.DataFrame, names: _NamesOfPairs, *, anchored: bool) -> pd.DataFrame:
    """Return pair, state, donor and the effects of a, b and both in each cell that has all three."""
    labels = rows["perturbed"].cat
    genes_of = [_genes_of(label, names, anchored=anchored) for label in labels.categories]
    of_label = np.array([*genes_of, (-1, -1)], dtype=np.int64).reshape(-1, 2)
    a, b = of_label[labels.codes.to_numpy()].T
    state, donor = names.states.numbers(rows["state"]), names.donors.numbers(rows["donor"])
    cell = rows["cell"].cat.codes.to_numpy().astype(np.int64)
    value, of_cell, n_genes = rows["value"].to_numpy(), cell * (len(names.states) + 1) + state + 1, len(names.genes)
    is_pair = b >= 0
    key = pd.Index(of_cell * n_genes + a)
    alone = pd.Series(value[~is_pair], key[~is_pair])
    both = pd.DataFrame(
        {"gene_a": a, "gene_b": b, "state": state, "donor": donor, "effect_pair": value, "_cell": of_cell}
    )[is_pair]
    for gene in "ab":
        both = both.assign(_key=both["_cell"] * n_genes + both[f"gene_{gene}"])
        both = both.merge(alone.rename(f"effect_{gene}"), left_on="_key", right_index=True)
    if not names.nameless and (both["donor"] < 0).any():
        nameless = both.loc[both["donor"] < 0, "_cell"].iloc[0] // (len(names.states) + 1)
        names.nameless.append(rows["cell"].cat.categories[nameless])
    return both


def _genes_of(label: str, names: _NamesOfPairs, *, anchored: bool) -> tuple[int, int]:
    """Return the numbers of the genes of a pair; of a gene alone, or another set, the second is -1.

    "A+B" in one cell is "B+A" in another, but an anchor is always first.
    """
    if label not in names.genes_of:
        genes = label.split("+") if anchored else sorted(label.split("+"))
        genes = genes if len(genes) == 2 else [label]
        numbers = [names.genes.number(gene) for gene in genes]
        names.genes_of[label] = numbers[0], numbers[1] if len(numbers) > 1 else -1
    return names.genes_of[label]


def _merged_pairs(of_blocks: pd.DataFrame) -> pd.DataFrame:
    return merged_moments(of_blocks[["n", "mean", "squares"]]).join(totals(of_blocks[_EFFECTS]))


def _t_test(interaction: pd.DataFrame, rounding: float) -> pd.DataFrame:
    """Return what `scipy.stats.ttest_1samp` does, of the moments of all groups at once; NaN without spread."""
    mean, freedom = interaction["mean"], interaction["n"] - 1
    error = pd.Series(np.sqrt(interaction["squares"] / freedom.where(freedom > 0) / interaction["n"]))
    half = t.ppf(0.975, freedom) * error
    with np.errstate(divide="ignore", invalid="ignore"):
        p_value = pd.Series(2 * t.sf((mean / error).abs(), freedom), mean.index).where(error.notna())
    spreads = error > rounding
    half, p_value = half.where(spreads), _where_it_spreads(p_value, spreads, "pairs")
    return pd.DataFrame({"interaction_low": mean - half, "interaction_high": mean + half, "p_value": p_value})


def false_discovery_rate(p_value: pd.Series) -> pd.Series:
    """Correct p-values over those that there are (Benjamini and Hochberg); NaN stays NaN."""
    tested = p_value.dropna()
    corrected = false_discovery_control(tested) if len(tested) else tested
    return pd.Series(corrected, tested.index, dtype=float).reindex(p_value.index)


def best_of_classes(p_value: pd.Series, gene: "pd.Index[Any]", shifts: ShiftTable) -> pd.DataFrame:
    """Correct each gene's smallest p-value over classes for their number, and over genes.

    Parameters
    ----------
    p_value
        Of a gene and class.
    gene
        Gene, or pair of genes, of each.
    shifts
        The screen of a classifier.

    Returns
    -------
    ``best_class_p_value`` and ``best_class_fdr``, a row for each of `p_value`, alike for the classes of a gene.
    Bonferroni, since a gene's classes are not independent: two have changes that are each other's opposite, one test.
    """
    of_gene = p_value.set_axis(gene).groupby(level=list(range(gene.nlevels)))
    n_classes, target = int(of_gene.size().max()), shifts.metadata.get("target") or {}
    n_tests = 1 if len(target.get("classes", ())) == 2 else n_classes
    best = (of_gene.min() * n_tests).clip(upper=1)
    columns = pd.DataFrame({"best_class_p_value": best, "best_class_fdr": false_discovery_rate(best)})
    return columns.reindex(gene).set_axis(p_value.index)


# What all have in common


class _Counted(NamedTuple):
    """What a first pass over the rows about cells tells."""

    of_gene: pd.DataFrame
    """Number, ``n_cells``, and sum, ``total``, of the values of each state and perturbed gene, ascending."""
    states: list[str]
    dose: float | None
    rounding: float
    """How far rounding may take a value, or a mean of values."""

    def in_state(self, state: str) -> pd.DataFrame:
        """Return those of one state; refuse a state that has none."""
        require_state(state, self.states or [_NULL])
        return self.of_gene[self.of_gene.index.get_level_values("state") == state].droplevel("state")


def require_state(state: str, states: Iterable[str]) -> None:
    """Raise unless a table has values of a state, as its metadata say."""
    if state not in states:
        raise InputError(
            f"The table has no value of state {state!r}, of which its metadata speak. {did_you_mean(state, states)} "
            "Select its rows too, or screen again."
        )


def _counted(shifts: ShiftTable) -> _Counted:
    genes, states = Names(), Names()
    doses, rounding = set[float](), [0.0]

    def of_blocks() -> Iterator[pd.DataFrame]:
        for rows in measured(shifts, ["perturbed", "state", "dose", "value", "before"], tell=True):
            rounding.append(rounding_error(rows))
            doses.update(rows["dose"].dropna().unique())
            keys = [states.numbers(rows["state"]), genes.numbers(rows["perturbed"])]
            of_gene = rows["value"].groupby(keys).agg(["size", "sum"])
            yield of_gene.set_axis(["n_cells", "total"], axis=1).rename_axis(["state", "perturbed"])

    of_gene = added(of_blocks(), totals)
    _require_one_dose(doses)
    names, ids = states.names_and(_NULL), genes.names()
    state, gene = (of_gene.index.get_level_values(level).to_numpy() for level in range(2))
    of_gene.index = pd.MultiIndex.from_arrays([names[state], ids[gene]], names=["state", "perturbed"])
    state_names = [name for name in states.names() if name in set(names[state])]
    return _Counted(of_gene.sort_index(), state_names, next(map(float, doses), None), max(rounding))


def _counted_genes(shifts: ShiftTable) -> _Counted:
    """Count the rows of a screen that perturbed several genes, each alone."""
    counted = _counted(shifts)
    perturbed = counted.of_gene.index.unique("perturbed")
    if len(perturbed) < 2:
        raise InputError(
            f"The screen perturbed only {listed(map(repr, perturbed))}; a test needs other genes to compare with. "
            "Screen with Deletion(genes='each')."
        )
    if sets := [label for label in perturbed if "+" in label]:
        raise InputError(
            f"This statistic compares single genes; the screen perturbed several at once ({sets[0]!r}). For pairs use "
            "'pairs', for a set that was named 'aggregate'."
        )
    return counted


def _rows_in(shifts: ShiftTable, state: str | None = None) -> Iterator[pd.DataFrame]:
    """Yield ``perturbed`` and ``value`` of the rows about cells in a state, or in all."""
    for rows in measured(shifts, ["perturbed", "state", "value"]):
        if state is not None:
            rows = rows[rows["state"].isna() if state == _NULL else rows["state"] == state]
        yield rows[["perturbed", "value"]]


def _summed(values: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Sum columns by the perturbed gene of the rows."""
    summed = values.groupby(rows["perturbed"], observed=True).sum()
    return summed.set_axis(summed.index.astype(object), axis=0)


def _the_state(counted: _Counted, shifts: ShiftTable) -> str:
    """Return the goal, of a screen without a goal the only state; refuse several classes."""
    if goal := shifts.metadata["goal"]:
        return str(goal["goal"])
    if len(counted.states) > 1:
        classes = ", ".join(map(repr, counted.states))
        raise InputError(
            f"The screen holds a value for each class of a classifier ({classes}). Select one: "
            f"ShiftTable(shifts.table[shifts.table['state'] == {counted.states[0]!r}], shifts.metadata)."
        )
    return counted.states[0] if counted.states else _NULL


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


def named(columns: pd.DataFrame, shifts: ShiftTable) -> pd.DataFrame:
    """Insert the names of genes as the first column, and call the index ``gene_id``."""
    columns.insert(0, "gene_name", _names(columns.index.to_series(), shifts))
    return columns.rename_axis("gene_id")
