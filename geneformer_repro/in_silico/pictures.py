"""Pictures of a screen, and a page that says what they show and what they do not.

Each kind of picture is drawn from the table of `shift_statistics`, whichever method made it; a dose curve from the
screen itself. The page repeats with every picture that a model moved, not a cell, and what the p-values took for
independent: that is what readers of such screens got wrong most.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
import pandas as pd
from scipy.stats import t

from geneformer_repro.arguments import typed
from geneformer_repro.checkpoint_files import checkpoint_in_words, checkpoint_warning
from geneformer_repro.errors import InputError, listed
from geneformer_repro.files import refuse_existing
from geneformer_repro.in_silico.figures import (
    dose_figure,
    from_above_to_below,
    of_one_class,
    pairs_figure,
    ranked_effects_figure,
    sampled_effects_figure,
    volcano_figure,
)
from geneformer_repro.in_silico.sampled_effects import sample_in_words, steered_rows
from geneformer_repro.in_silico.shams import dependence_in_words
from geneformer_repro.in_silico.shift_table import CHANGE, SHIFT, SIMILARITY, ShiftTable, agreement_by_state
from geneformer_repro.in_silico.statistics import shift_statistics
from geneformer_repro.report import Section, write_report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Kind = Literal["volcano", "ranked", "dose", "pairs"]
BASELINES = (
    "detection_rate",
    "detection_difference",
    "log2_fold_change",
    "de_p_value",
    "axis_correlation",
    "effect_beyond_baselines",
)
ENDS = ("above 0 first", "below 0 first")
"""Where a table of genes can be begun."""
N_NAMED = 8
"""Curves that are named in a picture of doses, and genes in a sentence."""
CHOSEN = (
    "Of each direction the genes whose interval stays furthest from 0, where there are intervals, else those of the "
    "largest effect; genes with a warning, such as that of few cells, after all others."
)
_CURVE = ["perturbed", "state", "dose"]


class _Effects(NamedTuple):
    """What can be drawn of a table of statistics, whichever method made it."""

    table: pd.DataFrame
    """In the order of the statistics: ``gene_name``, ``effect``, and ``low``, ``high``, ``p_value``, ``fdr``,
    ``n_cells``, ``n_donors`` where they are there."""
    name: str
    """What an effect is."""


@typed
def plot_screen(shifts: ShiftTable, statistics: pd.DataFrame | None = None, *, kind: Kind | None = None) -> "Figure":
    """Draw what a screen found.

    Parameters
    ----------
    shifts
        The screen.
    statistics
        Result of `shift_statistics`, or some rows of it; computed when None. A dose curve uses only its order: its
        first genes are the ones that are named; when None, those that move cells most for their number of cells.
    kind
        "volcano": effect against p-value. "ranked": the strongest genes of both directions with intervals. "dose":
        value against place in the cell, mean and 95 % interval over donors, or cells where no donors are known.
        "pairs": interactions, gene × gene; with an anchor ranked. Default: what fits the screen.

    Returns
    -------
    A figure, to be saved with its `savefig`. Where a table has several classes or doses, a point is a gene and class,
    a gene and dose.

    Raises
    ------
    InputError
        The kind does not fit the screen or the table.
    MissingExtraError
        matplotlib is not installed.

    See Also
    --------
    shift_statistics : Makes the table.
    write_screen_report : Pictures and words.

    Examples
    --------
    >>> import geneformer_repro as gf
    >>> shifts = gf.ShiftTable.open("shifts.parquet")
    >>> figure = gf.plot_screen(shifts, kind="ranked")
    >>> figure.axes[0].get_xlabel().partition(",")[0]
    'mean cosine shift towards CD19+ B'
    >>> figure.savefig("genes.png")
    """
    if kind not in (None, *get_args(Kind)):
        raise InputError(f"kind must be one of {', '.join(map(repr, get_args(Kind)))}, found {kind!r}.")
    if kind == "dose" or (kind is None and _has_doses(shifts) and not _has_pairs(shifts)):
        return _dose_picture(shifts, statistics)
    if statistics is None:
        statistics = shift_statistics(shifts, method="pairs" if _has_pairs(shifts) else None)
    statistics, _ = of_one_class(statistics)
    kind = kind or ("pairs" if "interaction" in statistics else "volcano" if "p_value" in statistics else "ranked")
    if kind == "pairs":
        return _pairs_picture(shifts, statistics)
    effects = _effects(shifts, statistics)
    if kind == "ranked":
        return ranked_effects_figure(effects.table, effect_name=effects.name)
    _require(effects.table, ["p_value", "fdr"], "A volcano")
    return volcano_figure(effects.table, effect_name=effects.name)


def _has_pairs(shifts: ShiftTable) -> bool:
    return (shifts.metadata.get("perturbation") or {}).get("combine") == "pairs"


def _has_doses(shifts: ShiftTable) -> bool:
    """Tell whether places were compared: any cell of the screen has them all."""
    return bool(next(shifts.blocks(["dose"]))["dose"].nunique() > 1)


def _require(table: pd.DataFrame, columns: list[str], what: str) -> None:
    if missing := [name for name in columns if name not in table]:
        raise InputError(
            f"{what} needs the columns {', '.join(columns)}; the statistics lack {', '.join(missing)}. Use another "
            "kind of picture, or another method of shift_statistics."
        )


# What is drawn


def _effects(shifts: ShiftTable, statistics: pd.DataFrame) -> _Effects:
    column = _column_drawn(statistics)
    table = statistics.assign(effect=statistics[column].astype(float), gene_name=_labels(statistics))
    if column == "interaction":
        table = table.rename(columns={"interaction_low": "low", "interaction_high": "high"})
    elif column != "effect_vs_matched":
        table = table.drop(columns=["low", "high"], errors="ignore")
    if "impact" in table:
        table["effect"] -= 1
    if "best_class_fdr" in table:  # a reader of a picture takes the best class of a gene
        table["fdr"] = table[["fdr", "best_class_fdr"]].max(axis=1)
    return _Effects(table, _effect_name(shifts, statistics, column))


def _column_drawn(statistics: pd.DataFrame) -> str:
    """Return the column that the p-values of the table are of."""
    for column in ("interaction", "effect_vs_matched", "difference", "effect"):
        if column in statistics:
            return column
    raise InputError(
        "There is no effect of genes in these statistics, found the columns "
        f"{', '.join(map(str, statistics.columns))}. Use shift_statistics with a method that tests genes."
    )


def _effect_name(shifts: ShiftTable, statistics: pd.DataFrame, column: str) -> str:
    less = {"interaction": "less the sum for both genes", "effect_vs_matched": "less that of matched genes"}
    less["difference"] = "less that in the null's cells"
    if "impact" in statistics:
        less["effect"] = "less 1"
    elif "p_value" in statistics and not shifts.metadata.get("goal"):
        less["effect"] = "less that of all genes"
    moved = f"{'interaction: ' if column == 'interaction' else ''}mean {_value_name(shifts, statistics)}"
    further = " (below 0: moves cells more)" if shifts.measure == SIMILARITY else ""
    return (f"{moved}, {less[column]}" if column in less else moved) + further


def _value_name(shifts: ShiftTable, statistics: pd.DataFrame | None = None) -> str:
    """Say what a value is, and towards what."""
    goal = shifts.metadata.get("goal")
    if goal:
        return f"{shifts.measure} towards {goal['goal']}"
    if shifts.measure == SIMILARITY:
        return f"{SIMILARITY} to the cell before"
    states = _states(statistics) if statistics is not None else []
    return f"{shifts.measure}: {states[0]}" if len(states) == 1 else shifts.measure


def _states(statistics: pd.DataFrame) -> list[Any]:
    """Return the classes that rows are of; none where each row is a gene."""
    return statistics["state"].dropna().unique().tolist() if "state" in statistics else []


def _labels(statistics: pd.DataFrame) -> "pd.Series[str]":
    """Name the rows: gene or pair, with class and dose where there are several."""
    if "gene_name_a" in statistics:
        labels = statistics["gene_name_a"].astype(str) + " + " + statistics["gene_name_b"].astype(str)
    else:
        labels = statistics["gene_name"].astype(str)
    if len(_states(statistics)) > 1:
        labels = labels + " → " + statistics["state"].astype(str)
    if "dose" in statistics and statistics["dose"].nunique() > 1:
        labels = labels + " at " + statistics["dose"].map("{:g}".format)
    return labels


def _distinct(names: "pd.Series[str]", ids: "pd.Series[str]") -> "pd.Series[str]":
    """Write the id behind a name that several ids have."""
    ids_of_name = ids.groupby(names).transform("nunique")
    return names.where(ids_of_name == 1, names + " (" + ids + ")")


# Pairs


def _pairs_picture(shifts: ShiftTable, statistics: pd.DataFrame) -> "Figure":
    _require(statistics, ["gene_a", "gene_b", "gene_name_a", "gene_name_b", "interaction"], "A picture of pairs")
    table, name = _effects(shifts, statistics)
    if (shifts.metadata.get("perturbation") or {}).get("anchor") is not None:
        partners = statistics.drop(columns="gene_name_a").rename(columns={"gene_name_b": "gene_name"})
        anchor = statistics["gene_name_a"].iloc[0]
        table = table.drop(columns="gene_name_a").assign(gene_name=_labels(partners))
        return ranked_effects_figure(table, effect_name=name.replace("interaction", f"interaction with {anchor}", 1))
    if len(_states(statistics)) > 1:
        raise InputError(
            f"A heat map of pairs shows one class, found {', '.join(map(repr, _states(statistics)))}. Give the rows of "
            "one: statistics[statistics['state'] == …]."
        )
    return pairs_figure(table.assign(**_distinct_pairs(statistics)), value_name=name)


def _distinct_pairs(statistics: pd.DataFrame) -> "dict[str, pd.Series[str]]":
    """Name both genes of each pair; a name that several ids have is written with its id."""
    ids = pd.concat([statistics["gene_a"], statistics["gene_b"]], ignore_index=True)
    names = pd.concat([statistics["gene_name_a"], statistics["gene_name_b"]], ignore_index=True).astype(str)
    labels = _distinct(names, ids).to_numpy()
    first, second = np.split(labels, 2)
    return {"gene_a": pd.Series(first, statistics.index), "gene_b": pd.Series(second, statistics.index)}


# Doses


def _dose_picture(shifts: ShiftTable, statistics: pd.DataFrame | None) -> "Figure":
    curves, _ = of_one_class(_curves(shifts))
    order = _strongest_first(curves, neutral=float(shifts.measure == SIMILARITY))
    if statistics is not None:
        tested = statistics.index.unique().tolist()
        order = [*(gene for gene in tested if gene in set(order)), *(gene for gene in order if gene not in set(tested))]
    if "low" not in curves:
        intervals = _intervals(_means(shifts, "cell", genes=order[:N_NAMED])).drop(columns="value").reset_index()
        curves = curves.merge(intervals, on=_CURVE, how="left")
    curves = curves.assign(_place=curves["perturbed"].map({gene: i for i, gene in enumerate(order)}))
    curves = curves.sort_values(["_place", "dose"], kind="stable")
    named, value_name = curves.assign(gene_name=_curve_names(curves, shifts)), f"mean {_value_name(shifts, curves)}"
    return dose_figure(named, value_name=value_name, n_named=N_NAMED)


def _curves(shifts: ShiftTable) -> pd.DataFrame:
    """Return the mean of each gene, state and dose; over donors, with intervals, where there are several."""
    means = _means(shifts, "donor")
    if means.empty:
        raise InputError(
            "A dose curve needs a screen that moved genes to places: RankShift(to=[…]). This one has no doses."
        )
    n_cells = means.groupby(_CURVE, dropna=False)["n_cells"].sum()
    if means["donor"].nunique() > 1:
        return _intervals(means).assign(n_cells=n_cells).reset_index()
    return means.drop(columns="donor")


def _means(shifts: ShiftTable, replicate: str, *, genes: Sequence[str] | None = None) -> pd.DataFrame:
    """Return the mean value of each gene, state, dose and replicate, read block by block."""
    goal, of_blocks = shifts.metadata.get("goal"), []
    for block in shifts.blocks():
        chosen = block["affected"].isna() & block["dose"].notna()
        if goal:
            chosen &= block["state"] == goal["goal"]
        if genes is not None:
            chosen &= block["perturbed"].isin(genes)
        keys = [*_CURVE, replicate]
        of_blocks.append(block[chosen].groupby(keys, dropna=False, observed=True)["value"].agg(["sum", "size"]))
    sums = pd.concat(of_blocks).groupby(level=[*_CURVE, replicate], dropna=False).sum()
    return pd.DataFrame({"value": sums["sum"] / sums["size"], "n_cells": sums["size"]}).reset_index()


def _intervals(means: pd.DataFrame) -> pd.DataFrame:
    """Return mean and 95 % t interval over the replicates of each curve's points; NaN for one replicate."""
    of_point = means.groupby(_CURVE, dropna=False)["value"]
    value, half = of_point.mean(), of_point.sem() * t.ppf(0.975, of_point.size() - 1)
    return pd.DataFrame({"value": value, "low": value - half, "high": value + half})


def _strongest_first(curves: pd.DataFrame, *, neutral: float) -> list[str]:
    """Order genes by how far they move cells, weighed by √cells: the noise of a mean falls with it."""
    strength = (curves["value"] - neutral).abs() * np.sqrt(curves["n_cells"])
    return strength.groupby(curves["perturbed"]).max().sort_values(ascending=False).index.tolist()


def _curve_names(curves: pd.DataFrame, shifts: ShiftTable) -> "pd.Series[str]":
    named = curves["perturbed"].map(lambda genes: _name(genes, shifts))
    named = _distinct(named, curves["perturbed"])
    return named + " → " + curves["state"] if curves["state"].nunique() > 1 else named


def _name(genes: str, shifts: ShiftTable) -> str:
    names = shifts.metadata.get("gene_names") or {}
    return " + ".join(names.get(gene) or gene for gene in genes.split("+"))


# The page


@typed
def write_screen_report(
    shifts: ShiftTable, statistics: pd.DataFrame, path: str | Path, *, overwrite: bool = False
) -> None:
    """Write one HTML file: what was done, pictures, the strongest genes, and what each does not show.

    Parameters
    ----------
    shifts
        The screen.
    statistics
        Result of `shift_statistics`; with ``cells`` given to it, the page compares with baselines.
    path
        The file.
    overwrite
        Replace a file that is there.

    Raises
    ------
    FileExistsError
        `path` exists.
    InputError
        The statistics have no effect of genes (those of "aggregate" or "gene_shifts").
    MissingExtraError
        matplotlib is not installed.

    See Also
    --------
    shift_statistics : Makes the table.
    plot_screen : One picture.

    Examples
    --------
    >>> import geneformer_repro as gf
    >>> shifts = gf.ShiftTable.open("shifts.parquet")
    >>> gf.write_screen_report(shifts, gf.shift_statistics(shifts), "screen.html")
    >>> gf.write_screen_report(shifts, gf.shift_statistics(shifts), "screen.html")
    Traceback (most recent call last):
        ...
    FileExistsError: screen.html already exists. Choose another output, or allow it to be replaced: overwrite=True
    (--overwrite).
    """
    refuse_existing(Path(path), overwrite=overwrite)
    shown, said = of_one_class(statistics)
    done, metadata, statistics = _done(shifts, statistics, said), shifts.metadata, shown
    effects = _effects(shifts, statistics)
    write_report(
        path,
        title=f"In silico perturbation screen{_asked(metadata)}",
        lead=f"{_sentence(_in_words(metadata.get('perturbation') or {}, shifts))} This was done to cells as the model "
        "sees them; everything below is what the model made of it.",
        sections=[done, *_sections(shifts, statistics, effects)],
        facts={name: metadata[name] for name in ("cells", "seed") if name in metadata},
        warning=checkpoint_warning(metadata),
        overwrite=overwrite,
    )


def _asked(metadata: Mapping[str, Any]) -> str:
    """Return towards what cells were to move, for the title."""
    goal, target = metadata.get("goal"), metadata.get("target")
    return f": {goal['start']} → {goal['goal']}" if goal else f": {target['name']}" if target else ""


def _sections(shifts: ShiftTable, statistics: pd.DataFrame, effects: _Effects) -> Iterator[Section]:
    independent, what = _independence(statistics), "pair" if "interaction" in statistics else "gene"
    point = what
    if "best_class_fdr" in statistics:
        point = f"{what} and class, and FDR is that of its best class, corrected for how many there are"
    if {"p_value", "fdr"} <= set(effects.table):
        yield Section(
            "Effect and evidence",
            f"Each point is a {point}: {effects.name}, and how surely it differs from none. {independent}",
            "A mechanism, or that cells would do the same: the model moved, not a cell.",
            figure=volcano_figure(effects.table, effect_name=effects.name),
        )
    yield Section(
        f"Strongest {what}s of both directions",
        f"{_sentence(effects.name)} {CHOSEN.replace('gene', what)} In brackets: cells and donors it was measured in.",
        "A ranking of genes by importance in life: the bars hold the spread between replicates only, not the model's "
        "own error.",
        figure=ranked_effects_figure(effects.table, effect_name=effects.name),
    )
    yield from _sections_of_kind(shifts, statistics)
    yield Section(
        f"All {what}s",
        "The rows of the statistics. First those surely above 0, last those surely below: "
        f"{CHOSEN[0].lower()}{CHOSEN[1:].replace('gene', what)} A click on a heading sorts by that column.",
        "Genes that were not measured: a model knows only genes of its vocabulary that a cell expresses.",
        table=_rows_shown(statistics, effects),
        ends=ENDS,
    )
    if any(name in statistics for name in BASELINES):
        yield _beside_baselines(statistics, effects)
    if said := dependence_in_words(statistics.attrs):
        yield _goal_dependence(said)
    if shifts.metadata.get("method") == "first_order":
        yield _first_order(shifts)
    if {"sampling_low", "effect_shrunken"} <= set(statistics):
        yield _sampled(shifts, statistics)


def _sections_of_kind(shifts: ShiftTable, statistics: pd.DataFrame) -> Iterator[Section]:
    for rows in _by_class(statistics) if "interaction" in statistics else ():
        yield Section(
            ": ".join(["Interactions of genes", *map(str, _states(rows))]),
            "What a pair does beyond the sum of its genes, in the same cells. Where there are dots: FDR < 0.05.",
            "That two genes act on each other: effects in a model need not add up, as a cell can only move so far.",
            figure=_pairs_picture(shifts, rows),
        )
    if _has_doses(shifts):
        yield Section(
            "Where in the cell a gene was put",
            "Mean value by place, for the strongest genes with 95 % intervals over "
            f"{'donors' if shifts.metadata.get('donor') else 'cells'}; the others are thin lines.",
            "A dose in the sense of an amount: the place among the cell's genes is all that the model sees.",
            figure=_dose_picture(shifts, None),
        )


def _by_class(statistics: pd.DataFrame) -> list[pd.DataFrame]:
    return [statistics[statistics["state"] == state] for state in _states(statistics)] or [statistics]


def _rows_shown(statistics: pd.DataFrame, effects: _Effects) -> pd.DataFrame:
    """Return all rows, the names first, without columns that say nothing about any of them, or that all are of one."""
    of_one = ["state"] if len(_states(statistics)) == 1 else []
    rows = statistics.iloc[_from_above_to_below(effects)].drop(columns=[*BASELINES, *of_one], errors="ignore")
    rows = rows.loc[:, [not (rows[name].isna() | (rows[name] == "")).all() for name in rows]]
    if "gene_name_a" in rows:
        return rows.drop(columns=["gene_a", "gene_b"]).set_index("gene_name_a")
    return _named_first(rows)


def _named_first(rows: pd.DataFrame) -> pd.DataFrame:
    """Put names of genes before all, and their ids, if these are the index, behind."""
    if "gene_name" not in rows:
        return rows
    ids = {} if rows.index.name is None else {str(rows.index.name): rows.index}
    return rows.assign(**ids).set_index("gene_name")


def _from_above_to_below(effects: _Effects) -> list[int]:
    """Return the order in which the table stands on the page: what is strongest above 0 … below 0."""
    table = effects.table.reset_index(drop=True)
    return from_above_to_below(table).index.tolist()


def _beside_baselines(statistics: pd.DataFrame, effects: _Effects) -> Section:
    columns = ["gene_name", *(name for name in ("effect", *BASELINES) if name in statistics)]
    explained, alone = (statistics.attrs.get(name) for name in ("explained_by_baselines", "baselines"))
    together = f"Together they explain R² = {explained:.2f} (cross-validated) of it. " if explained is not None else ""
    each = ", ".join(f"{name} {rho:.2f}" for name, rho in (alone or {}).items() if pd.notna(rho))
    return Section(
        "Beside what needs no model",
        "How far simple numbers of the same genes say what the screen says. effect_beyond_baselines is what is left.",
        "That what is left is right: it is only what differential expression and rank do not say.",
        table=_named_first(statistics.iloc[_from_above_to_below(effects)][columns]),
        ends=ENDS,
        finding=((f"Spearman correlation with the effect: {each}. " if each else "") + together).strip(),
    )


def _goal_dependence(said: str) -> Section:
    return Section(
        "Does the ranking depend on the goal",
        "Sham goals are as far from the start state as the goal, in directions in which cells of the start differ by "
        "chance. Where hardly any of what tells genes apart is of the goal alone, the ranking says which genes move a "
        "cell at all. Where genes move apart no more than towards shams, it says so of any direction in which cells "
        "of the start differ, of which the goal may be one: the same ranking throughout, or that turned round. In "
        "the table effect_vs_sham is the effect less the mean of those towards shams, and sham_percentile the share of "
        "shams towards which a gene moves cells less far than towards the goal: 0 or 1 is as far as nineteen can tell.",
        "That a gene with 0 or 1 is about the goal: of so many genes one in ten has one by chance.",
        finding=_sentence(said),
    )


def _first_order(shifts: ShiftTable) -> Section:
    measured = [f"{state}: median {of_cells}" for state, of_cells in agreement_by_state(shifts.metadata).items()]
    agreement = "Spearman correlation with exact values within a cell: " + "; ".join(measured) + "."
    return Section(
        "Estimated values",
        "Values that are not marked as exact were estimated to first order, from gradients.",
        "The size of large effects: a first-order estimate is a straight line. Screen the genes that matter exactly.",
        finding=agreement if measured else "How well is not known: no cell was checked.",
    )


def _sampled(shifts: ShiftTable, statistics: pd.DataFrame) -> Section:
    spent, trust, found = sample_in_words(shifts.metadata)
    rows = steered_rows(shifts.metadata, statistics)
    name = f"mean {_value_name(shifts, rows)}"
    return Section(
        "Where the passes went",
        f"{_sentence(spent)} {_sentence(trust)} Genes of the top: {found}. Points are unbiased estimates of what "
        "measuring all pairs of these cells would give, with the interval of sampling; in brackets: values that were "
        "measured, of how many. The short line is the mean of measured and expected values, by which genes are ranked.",
        "How genes differ between donors: the interval of sampling is about these cells. And not that a gene of the "
        "top has an effect: some genes are always the highest.",
        figure=sampled_effects_figure(rows.assign(gene_name=_labels(rows)), effect_name=name),
    )


def _independence(statistics: pd.DataFrame) -> str:
    """Say what the p-values took for independent."""
    n_donors = statistics["n_donors"].max() if "n_donors" in statistics else np.nan
    if n_donors > 1:
        return f"Donors are the replicates (at most {n_donors:.0f} for a gene)."
    return "Cells were treated as independent, not donors, which makes p-values too small where donors have many cells."


def _done(shifts: ShiftTable, statistics: pd.DataFrame, class_shown: str) -> Section:
    metadata, goal, target = shifts.metadata, shifts.metadata.get("goal"), shifts.metadata.get("target")
    done = {
        "perturbation": _in_words(metadata.get("perturbation") or {}, shifts),
        "a value is": _MEANING[shifts.measure],
        "goal": goal
        and f"{goal['obs']}: from {goal['start']} to {goal['goal']}"
        + (f" (alternatives: {', '.join(goal['alternatives'])})" if goal.get("alternatives") else ""),
        "classifier": target and f"of {target['name']}: {', '.join(map(str, target['classes']))}",
        "class shown": class_shown or None,
        "cells perturbed": metadata.get("n_cells"),
        "values": f"{len(shifts):,}, in {len(statistics):,} rows of statistics",
        "donors": metadata.get("donor") and f"column {metadata['donor']}",
        "layer": metadata.get("layer"),
        "pooling": metadata.get("pooling"),
        "method": metadata.get("method"),
        "checkpoint": checkpoint_in_words(metadata),
    }
    facts = {name: str(value) for name, value in done.items() if value is not None}
    return Section(
        "What was done",
        "The screen, as it was run.",
        "Whether the question was right for this model: that takes known genes, perturbed in real cells.",
        table=pd.DataFrame({"in this screen": pd.Series(facts, dtype=object)}).rename_axis("what"),
    )


_MEANING = {
    SIMILARITY: "cosine similarity of the cell's vector before and after; 1: did not move",
    SHIFT: "change in cosine similarity to a state; above 0: moved towards it",
    CHANGE: "change of what the classifier predicts; above 0: more of that class",
}
_DONE = {
    "Deletion": "deleted",
    "Overexpression": "put at the front of the cell",
    "Activation": "moved up (quartiles: {quartiles})",
    "Inhibition": "moved down (quartiles: {quartiles})",
    "RankShift": "moved to {to} (0 front … 1 bottom)",
}
_HOW = {"singly": ", one at a time", "pairs": ", in pairs and alone", "together": ", together"}


def _in_words(perturbation: Mapping[str, Any], shifts: ShiftTable) -> str:
    """Say in words what was done to which genes."""
    if "steps" in perturbation:
        return "; then ".join(_in_words(step, shifts) for step in perturbation["steps"])
    kind, genes, anchor = str(perturbation.get("kind")), perturbation.get("genes"), perturbation.get("anchor")
    places = ", ".join(map("{:g}".format, np.atleast_1d(perturbation.get("to", []))))
    done = _DONE.get(kind, kind).format(quartiles=perturbation.get("quartiles"), to=places)
    several = genes == "each" or len(genes or ()) > 1
    how = _HOW.get(str(perturbation.get("combine")), "") if several else ""
    how = f", alone and with {_name(anchor, shifts)}" if anchor else how
    return f"{done}: {_genes_in_words(genes, shifts)}{how}"


def _genes_in_words(genes: Any, shifts: ShiftTable) -> str:
    if genes == "each":
        return "each gene that a cell expresses"
    names = [_name(gene, shifts) for gene in genes or ()]
    return listed(names, most=N_NAMED)


def _sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}."
