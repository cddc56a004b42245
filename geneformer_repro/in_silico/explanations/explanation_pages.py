"""Which picture fits an explanation, and a page that says first whether there is anything to explain."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd

from geneformer_repro.arguments import typed
from geneformer_repro.checkpoint_files import checkpoint_in_words, checkpoint_warning
from geneformer_repro.errors import InputError, did_you_mean
from geneformer_repro.files import refuse_existing
from geneformer_repro.in_silico.explanations import verdicts
from geneformer_repro.in_silico.explanations.agreement import MEAN_CHARACTER, PADDING, PLACE, agreement
from geneformer_repro.in_silico.explanations.attribution import LEAST_R2, LEAST_STABILITY
from geneformer_repro.in_silico.explanations.evaluation import ExplanationEvaluation
from geneformer_repro.in_silico.explanations.explanation import Explanation
from geneformer_repro.in_silico.explanations.explanation_figures import (
    agreement_figure,
    curves_figure,
    gaps_figure,
    genes_figure,
    sanity_figure,
    surrogate_figure,
)
from geneformer_repro.in_silico.explanations.gene_table import (
    FIT,
    PREDICTORS,
    SURROGATE,
    donor_means,
    gene_table,
    most_gap,
    read,
)
from geneformer_repro.in_silico.explanations.sanity import MOST_ALIKE
from geneformer_repro.in_silico.figures import from_above_to_below, of_one_class
from geneformer_repro.report import MOST_ROWS, Section, write_report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Kind = Literal["genes", "agreement", "gaps", "surrogate", "removal", "insertion", "sanity"]
N_STATES, N_SHOWN = 4, 15
"""Of which a page has sections; and sets of genes of each sign in its table."""
ENDS = ("above 0 first", "below 0 first")
_SHOWN = (
    "gene_name", "effect", "low", "high", "p_value", "fdr", "beyond", "n_cells", "n_donors", "mean_place",
    "detection_rate", "log2_fold_change",
)  # fmt: skip


@typed
def plot_explanation(
    why: Explanation,
    *,
    kind: Kind = "genes",
    method: str | None = None,
    state: str | None = None,
    genes: pd.DataFrame | None = None,
    check: ExplanationEvaluation | None = None,
) -> "Figure":
    """Draw an explanation, or one of its checks.

    Parameters
    ----------
    why
        The explanation.
    kind
        "genes": the strongest genes of both signs, a dot a donor. "agreement": how far methods agree, beside chance.
        "gaps": how complete integrated gradients are. "surrogate": how well surrogates fit. Of `check`: "removal" and
        "insertion", what becomes of the answer as genes go, or come; "sanity", what stays alike when the model forgets.
    method, state
        Of which; default the first.
    genes
        Table of its `genes`, if it is there already.
    check
        Result of `evaluate_explanation`.

    Returns
    -------
    A figure, to be saved with its `savefig`.

    Raises
    ------
    InputError
        There is no such method, state or kind, or the check was not made.
    MissingExtraError
        matplotlib is not installed.

    See Also
    --------
    explain : Makes the explanation.
    evaluate_explanation : Makes the checks.
    write_explanation_report : Pictures and words.

    Examples
    --------
    >>> import geneformer_repro as gf
    >>> why = gf.Explanation.open("why.parquet")
    >>> gf.plot_explanation(why).axes[0].get_xlabel().partition(" (")[0]
    'mean over donors of what a gene adds'
    """
    if kind not in get_args(Kind):
        raise InputError(f"kind must be one of {', '.join(map(repr, get_args(Kind)))}, found {kind!r}.")
    if kind == "gaps":
        return gaps_figure(_gaps(why), bound=most_gap(why.metadata), rows_are=why.rows_are)
    if kind == "surrogate":
        return surrogate_figure(*_fits(why), least_r2=LEAST_R2, least_stability=LEAST_STABILITY)
    if kind == "agreement":
        table = agreement(why) if check is None else check.agreement
        if table.empty:
            raise InputError("kind='agreement' compares methods, and the explanation has one, of what has no place.")
        return agreement_figure(_of(table, "state", state), rows_are=why.rows_are)
    if kind == "genes":
        table = genes if genes is not None else check.genes if check is not None else gene_table(why)
        of_method = _of(table, "method", method)
        return _genes_picture(why, _of(of_method if state else of_one_class(of_method)[0], "state", state))
    made = None if check is None else check.sanity if kind == "sanity" else check.points
    if made is None or made.empty:
        raise InputError(
            f"kind={kind!r} draws a check that was not made: give check=evaluate_explanation(why, checkpoint, cells)."
        )
    of_state = _of(made, "state", state)
    if kind == "sanity":
        return sanity_figure(of_state, bound=MOST_ALIKE, rows_are=why.rows_are)
    return _curves(of_state, kind, why)


def _of(table: pd.DataFrame, column: str, name: str | None) -> pd.DataFrame:
    """Return the rows of a method or state; the first, if none is named."""
    names = table[column].unique().tolist()
    if name is None:
        name = names[0]
    elif name not in names:
        raise InputError(f"There is no {column} {name!r}. {did_you_mean(name, [str(one) for one in names])}")
    return table[table[column].isna() if name is None or pd.isna(name) else table[column] == name]


def _genes_picture(why: Explanation, table: pd.DataFrame) -> "Figure":
    method, state = table["method"].iloc[0], table["state"].iloc[0]
    rows = read(why).of_donors
    rows = rows[(rows["method"] == method) & (rows["state"].isna() if pd.isna(state) else rows["state"] == state)]
    with_donor = rows[rows["donor"].notna()]
    absolute = bool(table.attrs.get("absolute", False))
    of_donors = donor_means(with_donor, absolute=absolute) if len(with_donor) else None
    over = verdicts.replicates(why.metadata)
    of = "" if pd.isna(state) else f", {state}"
    name = f"mean over {over} of what a gene adds ({method}{of})"
    return genes_figure(table, of_donors, effect_name=name, rows_are=why.rows_are, replicates=over)


def _curves(points: pd.DataFrame, kind: Kind, why: Explanation) -> "Figure":
    of_way = points[points["way"] == kind]
    operator = str(of_way["operator"].iloc[0])
    return curves_figure(
        of_way[of_way["operator"] == operator],
        value_name=why.measure,
        title=_curve_title(kind, operator, why),
        share_name=f"{_what(operator)}, % of the {_singular(why)}",
    )


def _curve_title(kind: str, operator: str, why: Explanation) -> str:
    """Say what is done to genes along a curve."""
    if operator in (MEAN_CHARACTER, PADDING):
        return f"characters taken away, by the vector of {operator.replace('of', 'of all')}"
    if kind == "removal":
        by = f"the {operator} instead of a gene's value" if operator in ("median", "mean") else repr(operator)
        return f"genes taken away by {by}"
    begin = (
        f"a {_singular(why)} of {operator}s"
        if operator not in ("median", "mean")
        else f"a {_singular(why)} at the {operator}"
    )
    return f"genes brought into {begin}"


def _what(operator: str) -> str:
    return "characters" if operator in (MEAN_CHARACTER, PADDING) else "genes"


def _singular(why: Explanation) -> str:
    return why.rows_are.partition(" ")[0].removesuffix("s")


def _gaps(why: Explanation) -> np.ndarray:
    """Return the gap of each cell and state."""
    gaps = []
    for block in why.blocks(["cell", "method", "state", "gap"]):
        known = block[block["gap"].notna()]
        gaps.append(known.drop_duplicates(["cell", "method", "state"])["gap"].to_numpy())
    found = np.concatenate(gaps)
    if not len(found):
        raise InputError("kind='gaps' draws how complete integrated gradients are, and the explanation has none.")
    return found


def _fits(why: Explanation) -> tuple[np.ndarray, np.ndarray]:
    """Return R² and stability of the surrogate of each cell and state."""
    if SURROGATE not in why.methods:
        raise InputError("kind='surrogate' draws how well surrogates fit, and the explanation has none.")
    blocks = why.blocks(["cell", "method", "state", *FIT])
    fits = [block[block["method"] == SURROGATE].drop_duplicates(["cell", "state"])[list(FIT)] for block in blocks]
    r2, stability = pd.concat(fits).to_numpy(dtype=float).T
    return r2, stability


# The page


@typed
def write_explanation_report(
    why: Explanation,
    path: str | Path,
    *,
    genes: pd.DataFrame | None = None,
    check: ExplanationEvaluation | None = None,
    overwrite: bool = False,
) -> None:
    """Write one HTML file: first how good the model is, then what is explained, genes, checks, what they leave open.

    Of a model that is no better than guessing on these rows the page says so above all else, and ranks no genes.

    Parameters
    ----------
    why
        The explanation.
    path
        The file.
    genes
        Table of its `genes`, if it is there already.
    check
        Result of `evaluate_explanation`; without it the page says that the explanation was not tested.
    overwrite
        Replace a file that is there.

    Raises
    ------
    FileExistsError
        `path` exists.
    MissingExtraError
        matplotlib is not installed.

    See Also
    --------
    evaluate_explanation : Makes the checks.
    plot_explanation : One picture.

    Examples
    --------
    >>> from pathlib import Path
    >>> import geneformer_repro as gf
    >>> why = gf.Explanation.open("why.parquet")
    >>> gf.write_explanation_report(why, "why.html")
    >>> "no better than guessing" in Path("why.html").read_text()
    True
    """
    refuse_existing(Path(path), overwrite=overwrite)
    table = genes if genes is not None else check.genes if check is not None else gene_table(why)
    guessing = verdicts.is_guessing(why.metadata)
    first = verdicts.how_good(why.metadata)
    known = verdicts.is_known(why.metadata) and not guessing
    explained = f"What is explained: {why.measure}. {_counted(why)}"
    write_report(
        path,
        title=f"Why a model says what it says{_asked(why)}",
        warning=" ".join(filter(None, [checkpoint_warning(why.metadata), "" if known else first])),
        lead=f"{first} {explained}" if known else explained,
        sections=list(_sections(why, table, check, guessing=guessing)),
        facts={name: why.metadata[name] for name in ("cells", "seed") if name in why.metadata},
        overwrite=overwrite,
    )


def _asked(why: Explanation) -> str:
    """Return what was asked about, for the title: a label, or a gene; nothing of a goal, which the sentence tells."""
    asked = why.metadata.get("target") or why.metadata.get("gene")
    return f": {why.metadata['gene_names'].get(asked, asked)}" if asked else ""


def _counted(why: Explanation) -> str:
    n_cells, donor = why.metadata.get("n_cells"), why.metadata.get("donor")
    told_by = f"each a replicate, told apart by {donor}" if why.rows_are == "patients" else f"donors by {donor}"
    return f"{n_cells:,} {why.rows_are}, {told_by if donor else 'no donors'}; {', '.join(why.methods)}."


def _sections(
    why: Explanation, genes: pd.DataFrame, check: ExplanationEvaluation | None, *, guessing: bool
) -> Iterator[Section]:
    of_one, class_shown = of_one_class(genes)
    yield _done(why, class_shown)
    left_out = set(genes["state"]) - set(of_one["state"])
    yield _believed(why, genes, check, left_out)
    if guessing:
        yield Section(
            "No ranking of genes",
            "Nothing: genes are ranked in the table beside this page, by what moves the network's numbers.",
            "Genes of the label: the network does not know the label, so neither do its genes.",
            finding="Genes are not ranked here: the network does not know what it was asked, so neither do its genes.",
        )
    else:
        yield from _rankings(why, of_one)
    yield from _of_methods(why, check, left_out)
    if check is not None:
        yield from _checks(check, why, left_out)


def _done(why: Explanation, class_shown: str) -> Section:
    """Say what was done, in the words of the metadata."""
    settings = {
        f"method {name}": ", ".join(f"{key} {value}" for key, value in of.items()) or "as it is"
        for name, of in why.metadata["methods"].items()
    }
    facts = {
        "a value is": f"what a gene adds to: {why.measure}",
        why.rows_are: why.metadata.get("n_cells"),
        "told apart by" if why.rows_are == "patients" else "donors": why.metadata.get("donor"),
        **{name: why.metadata.get(name) for name in ("target", "contrast", "gene", "layer", "pooling")},
        "class shown": class_shown or None,
        **settings,
        "checkpoint": checkpoint_in_words(why.metadata),
    }
    table = pd.DataFrame({"in this explanation": {name: str(v) for name, v in facts.items() if v is not None}})
    return Section(
        "What was explained",
        "The question, and by which methods it was asked. rollout and attention are summaries of attention without "
        "sign, not attributions.",
        "Why cells are as they are: the model's answer was explained, not the cells.",
        table=table.rename_axis("what"),
    )


def _believed(
    why: Explanation, genes: pd.DataFrame, check: ExplanationEvaluation | None, left_out: set[str]
) -> Section:
    sentences = [*verdicts.of_genes(genes, why.metadata)]
    if check is None:
        sentences.append("The explanation was not tested: evaluate_explanation does (--checkpoint and --cells).")
    else:
        sentences = [said for said in check.sentences if said != verdicts.how_good(why.metadata)]  # it stands above
    of_left_out = tuple(end for state in left_out for end in (f"({state}).", f": {state}."))
    sentences = [said for said in sentences if not said.endswith(of_left_out)]
    return Section(
        "Whether to believe it",
        "What the checks say, one line each.",
        "That a map which passes is right: these are ways to fail.",
        table=pd.DataFrame({"": sentences}).set_index(""),
    )


def _rankings(why: Explanation, genes: pd.DataFrame) -> Iterator[Section]:
    over = verdicts.replicates(why.metadata)
    pairs = genes[["method", "state"]].drop_duplicates()
    first = pairs["method"].iloc[0]
    states = pairs.loc[pairs["method"] == first, "state"].head(N_STATES)
    for state in states:
        of = "" if pd.isna(state) else f": {state}"
        table = _of(_of(genes, "method", first), "state", None if pd.isna(state) else state)
        yield Section(
            f"Strongest genes by {first}{of}",
            f"Mean over {over} of what a gene adds to the answer where it is expressed; grey dots are {over}. With "
            "intervals, the genes whose interval stays furthest from 0: sure before large.",
            "Genes that matter in life: the model moved, not a cell. Even small effects have small p-values.",
            figure=_genes_picture(why, table),
        )
        yield Section(
            f"All genes{of}",
            "First those whose interval stays furthest above 0, last those furthest below; with what needs no model. "
            "beyond: what place, detection and expression do not predict of the effect. A click on a heading sorts.",
            "Genes that no cell expresses: they have no value, which is not 0.",
            table=_shown(table, why),
            ends=ENDS,
            most_rows=MOST_ROWS // len(states),
        )
    if any(np.isfinite(rho) for of in genes.attrs["baselines"].values() for rho in of.values()):
        yield _beside(genes)


def _shown(table: pd.DataFrame, why: Explanation) -> pd.DataFrame:
    ranked = from_above_to_below(table.dropna(subset=["effect"]))
    rows = ranked[[name for name in _SHOWN if name in ranked]].dropna(axis=1, how="all")
    if why.rows_are == "patients":  # each is a cell and a donor
        rows = rows.drop(columns="n_donors", errors="ignore").rename(columns={"n_cells": "n_patients"})
    return rows.set_index("gene_name")


def _beside(genes: pd.DataFrame) -> Section:
    alone = pd.DataFrame(genes.attrs["baselines"]).T.reindex(columns=[name for name in PREDICTORS if name in genes])
    alone.insert(0, "R² together", pd.Series(genes.attrs["explained_by_baselines"]))
    states = set(genes["state"].dropna())
    shown = [": " not in name or name.partition(": ")[2] in states for name in alone.index]
    return Section(
        "Beside what needs no model",
        "Spearman correlation of effects with detection, place and expression of the same genes, and how much these "
        "explain together (cross-validated).",
        "That what they leave is right: it is only what they do not say.",
        table=alone[shown].dropna(axis=1, how="all").rename_axis("of"),
    )


def _of_methods(why: Explanation, check: ExplanationEvaluation | None, left_out: set[str]) -> Iterator[Section]:
    table = agreement(why) if check is None else check.agreement
    table = table[~table["state"].isin(left_out)]
    for state in table["state"].unique()[:N_STATES]:
        of = "" if pd.isna(state) else f": {state}"
        yield Section(
            f"Do methods agree{of}",
            "Colours: 0 is chance, 1 a method with itself."
            + (" place is minus the place of a gene, by itself." if (table["method_b"] == PLACE).any() else ""),
            "That what they agree on is right: methods of one operator (=) agree because they do the same.",
            figure=agreement_figure(_of(table, "state", None if pd.isna(state) else state), rows_are=why.rows_are),
        )
    if "integrated_gradients" in why.methods:
        yield Section(
            "Are integrated gradients complete",
            "Their sum should be the whole difference from the baseline. Cells beyond the bound are left out of means.",
            "That the baseline is the right one: another asks another question.",
            figure=gaps_figure(_gaps(why), bound=most_gap(why.metadata), rows_are=why.rows_are),
        )
    if SURROGATE in why.methods:
        yield Section(
            "Do surrogates fit",
            "A point a cell and state. Cells outside the dashed corner are shown and not ranked: they are in "
            "means, and in no comparison of ranks.",
            "That the model is a sum where they fit: only that a sum comes near it.",
            figure=surrogate_figure(*_fits(why), least_r2=LEAST_R2, least_stability=LEAST_STABILITY),
        )


def _checks(check: ExplanationEvaluation, why: Explanation, left_out: set[str]) -> Iterator[Section]:
    for kind in ("removal", "insertion") if not check.points.empty else ():
        of_states = check.points[~check.points["state"].isin(left_out)]
        for keys, points in of_states.groupby(["state", "operator"], sort=False, dropna=False):
            if (points["way"] == kind).any():
                yield _of_curves(points, kind, keys, why)
    if not check.removal.empty:
        columns = ["order", "operator", "way", "area", "better", "low", "high", "p_value", "faithfulness", "best"]
        columns = [*columns, "own_operator", "n_cells", "n_donors"]
        yield Section(
            "Curves in numbers",
            "better: area by which an order moves the answer more than random ones. faithfulness: 1 as much as the "
            "best order, 0 as much as random ones.",
            "A fair comparison where own_operator is true: an occlusion wins its own game.",
            table=check.removal[columns].dropna(axis=1, how="all").set_index("order"),
        )
    sanity = check.sanity if check.sanity.empty else check.sanity[~check.sanity["state"].isin(left_out)]
    for state in sanity["state"].unique() if not sanity.empty else ():
        of = "" if pd.isna(state) else f": {state}"
        yield Section(
            f"What stays alike when the model forgets{of}",
            "Correlation with the attributions of models whose weights were drawn anew from the top down, and of a "
            "head of permuted labels. Within the band a map owes little to the input alone.",
            "Which part was learned: only that something was.",
            figure=sanity_figure(
                _of(sanity, "state", None if pd.isna(state) else state),
                bound=MOST_ALIKE,
                rows_are=why.rows_are,
            ),
        )
    yield from _lists(check)


def _of_curves(points: pd.DataFrame, kind: Any, keys: tuple[Any, ...], why: Explanation) -> Section:
    of = "" if pd.isna(keys[0]) else f": {keys[0]}"
    what = _curve_title(kind, str(keys[1]), why)
    return Section(
        f"{what[0].upper()}{what[1:]}{of}",
        "The answer as genes go, or come, in the order of each method, and of what needs no model; band: random.",
        f"{why.rows_are[0].upper()}{why.rows_are[1:]}: altered ones are none that the model has seen, the more so the "
        "more genes are gone.",
        figure=_curves(points, kind, why),
    )


def _lists(check: ExplanationEvaluation) -> Iterator[Section]:
    if check.drivers is not None:
        yield Section(
            "Genes of a list among the strongest",
            "How many genes of the list stand among the strongest, and how many of genes like them do.",
            "That unlisted genes are wrong: a list holds what was studied.",
            table=check.drivers.table.dropna(axis=1, how="all"),
            finding=check.drivers.facts["sentence"],
        )
    if check.sets is not None:
        yield Section(
            "Sets of genes",
            "Sets whose genes stand among the strongest more often than genes like them.",
            "Activity of a pathway: its genes stand among the strongest, which is all that is counted.",
            table=check.sets.dropna(axis=1, how="all").drop(columns="genes", errors="ignore"),
            finding=check.sets.attrs["sentence"],
        )
