"""Pictures and the page of cohorts beside each other."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import pandas as pd

from geneformer_repro.arguments import typed
from geneformer_repro.errors import InputError
from geneformer_repro.files import refuse_existing
from geneformer_repro.finetuning.cohort_pairs import HARMONISED, NO_EFFECTS, SCORES, SPELLED
from geneformer_repro.finetuning.figures import rows_figure
from geneformer_repro.report import (
    BLUE,
    CATEGORIES,
    GREY,
    LIGHT,
    ORANGE,
    Section,
    legend_beside,
    new_axes,
    write_report,
)
from geneformer_repro.tokenizer.symbols import symbol_of_ensembl

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Kind = Literal["drop", "domain", "effects"]
_OUTCOMES = ("event", "target", "measure")
_OUTPUTS = {"target": "label", "measure": "drug"}
_WAYS: dict[str, str] = {"before": "as they are"} | {str(way): str(way) for way in HARMONISED if way != "none"}
_TOP_EFFECTS = 15
_EFFECTS = {
    "effects_spearman": "Spearman, across",
    "effects_spearman_within": "Spearman, halves of the cohort tested",
    "effects_top": "first genes shared (Jaccard), across",
    "effects_top_within": "first genes shared, halves",
    "effects_top_chance": "first genes shared, by chance",
    "n_genes": "genes looked at",
    "n_outputs": "labels or drugs",
}
"""Columns about genes, in words."""


@typed
def plot_cross_cohort(table: pd.DataFrame, *, kind: Kind = "drop") -> "Figure":
    """Draw what is lost between cohorts, how far apart they lie, or whether they use the same genes.

    Parameters
    ----------
    table
        Result of `cross_cohort`.
    kind
        "drop": scores within and across, and their difference, with intervals. "domain": the AUC by which two cohorts
        are told apart, as they are and after each way of harmonising. "effects": agreement of the effects of genes
        across cohorts, beside that of two halves of a cohort, and chance.

    Raises
    ------
    InputError
        The table is none of `cross_cohort`, or effects of genes are not known.
    MissingExtraError
        matplotlib is not installed.

    See Also
    --------
    cross_cohort : Makes the table.
    write_cross_cohort_report : All pictures on a page.

    Examples
    --------
    >>> import numpy as np
    >>> import pandas as pd
    >>> from anndata import AnnData
    >>> import geneformer_repro as gf
    >>> rng = np.random.default_rng(0)
    >>> values = rng.normal(size=(120, 30))
    >>> time = rng.exponential(np.exp(-values[:, :5].sum(axis=1)))
    >>> obs = pd.DataFrame({"OS": 1, "OS.time": time, "study": ["A", "B"] * 60}, index=[f"P{i}" for i in range(120)])
    >>> table = gf.cross_cohort(AnnData(values, obs=obs), {"OS": "OS.time"}, cohort="study", top=5)
    >>> gf.plot_cross_cohort(table).savefig("drop.png")
    """
    _require_table(table)
    if kind not in get_args(Kind):
        raise InputError(f"kind must be one of {', '.join(map(repr, get_args(Kind)))}, found {kind!r}.")
    if kind == "effects" and not _has_effects(table):
        raise InputError("Effects of genes are not known of these cohorts: vectors were looked at, not genes.")
    return {"drop": _drop_figure, "domain": _domain_figure, "effects": _effects_figure}[kind](table)


@typed
def write_cross_cohort_report(table: pd.DataFrame, path: str | Path, *, overwrite: bool = False) -> None:
    """Write one HTML file: what is lost between cohorts, how far apart they lie, whether they use the same genes.

    Parameters
    ----------
    table
        Result of `cross_cohort`.
    path
        The file.
    overwrite
        Replace a file that is there.

    Raises
    ------
    FileExistsError
        `path` exists.
    InputError
        The table is none of `cross_cohort`.
    MissingExtraError
        matplotlib is not installed.

    See Also
    --------
    cross_cohort : Makes the table.
    plot_cross_cohort : One picture.

    Examples
    --------
    >>> from pathlib import Path
    >>> import numpy as np
    >>> import pandas as pd
    >>> from anndata import AnnData
    >>> import geneformer_repro as gf
    >>> rng = np.random.default_rng(0)
    >>> values = rng.normal(size=(120, 30))
    >>> time = rng.exponential(np.exp(-values[:, :5].sum(axis=1)))
    >>> obs = pd.DataFrame({"OS": 1, "OS.time": time, "study": ["A", "B"] * 60}, index=[f"P{i}" for i in range(120)])
    >>> table = gf.cross_cohort(AnnData(values, obs=obs), {"OS": "OS.time"}, cohort="study", top=5)
    >>> gf.write_cross_cohort_report(table, "cohorts.html")
    >>> "told apart" in Path("cohorts.html").read_text()
    True
    """
    _require_table(table)
    refuse_existing(Path(path), overwrite=overwrite)
    sections = [_drop_section(table), _domain_section(table)]
    if _has_effects(table):
        sections += [_effects_section(table), *_genes_section(table)]
    else:
        sections.append(_no_effects_section())
    write_report(
        path,
        title=f"What one cohort teaches of another: {', '.join(_outcomes(table))}",
        lead=table.attrs["sentence"],
        sections=sections,
        facts=table.attrs["facts"],
        overwrite=overwrite,
    )


def _require_table(table: pd.DataFrame) -> None:
    if not {"train_cohort", "within", "cross", "drop"} <= set(table) or "sentence" not in table.attrs:
        raise InputError("This is no result of cross_cohort, or one without its attrs. Give it as it was returned.")


def _has_effects(table: pd.DataFrame) -> bool:
    return "effects_spearman" in table and bool(table["effects_spearman"].notna().any())


def _outcomes(table: pd.DataFrame) -> list[str]:
    """Return what was predicted."""
    return [str(value) for name in _OUTCOMES if name in table for value in table[name].unique()]


def labels_of(table: pd.DataFrame) -> list[str]:
    """Return the name of each row: the cohort learned and the one tested, and of several outcomes which."""
    several = [name for name in _OUTCOMES if name in table and table[name].nunique() > 1]
    return [
        f"{row['train_cohort']} → {row['test_cohort']}" + "".join(f", {row[name]}" for name in several)
        for _, row in table.iterrows()
    ]


# Figures


def _drop_figure(table: pd.DataFrame) -> "Figure":
    chance = {"c_index": 0.5, "pearson_within_sample_normalised": 0.0}.get(str(table["metric"].iloc[0]))
    scores = {"within": "learned within the cohort", "cross": "learned in the other", "drop": "lost (drop)"}
    figure, axes = rows_figure(table, labels_of(table), scores)
    axes.axvline(0, color=GREY, linewidth=0.8)
    if chance:
        axes.axvline(chance, color=GREY, linewidth=0.8, linestyle="--")
    metric = str(table["metric"].iloc[0])
    axes.set_xlabel(f"{SPELLED.get(metric, metric)} (bar: 95 % interval)" + ("; dashed: chance" if chance else ""))
    return figure


def _rows(table: pd.DataFrame, labels: Sequence[str]) -> "tuple[Figure, np.ndarray]":
    figure, axes = new_axes(7.6, 1.2 + 0.4 * len(table))
    rows = np.arange(len(table), dtype=float)
    axes.set(ylim=(len(table) - 0.5, -0.5))
    axes.set_yticks(rows, labels, fontsize=9)
    axes.grid(color=LIGHT)
    axes.set_axisbelow(True)
    return figure, rows


def _domain_figure(table: pd.DataFrame) -> "Figure":
    figure, rows = _rows(table, labels_of(table))
    (axes,) = figure.axes
    colours = (GREY, BLUE, ORANGE, *CATEGORIES[2:])
    shifts = 0.14 * (np.arange(len(_WAYS)) - (len(_WAYS) - 1) / 2)  # side by side, since many are nearly equal
    for (way, label), colour, shift in zip(_WAYS.items(), colours, shifts, strict=False):
        axes.plot(table[f"domain_auc_{way}"], rows + shift, "o", color=colour, markersize=6, label=label)
    axes.axvline(0.5, color=GREY, linewidth=0.8, linestyle="--")
    axes.set_xlabel("AUC by which two cohorts are told apart (dashed: not at all)")
    axes.set_xlim(min(0.35, np.nanmin(table.filter(like="domain_auc").to_numpy(float)) - 0.03), 1.03)
    legend_beside(axes)
    return figure


def _effects_figure(table: pd.DataFrame) -> "Figure":
    figure, rows = _rows(table, labels_of(table))
    (axes,) = figure.axes
    points = {
        "effects_spearman": (BLUE, "o"),
        "effects_spearman_within": (BLUE, "|"),
        "effects_top": (ORANGE, "o"),
        "effects_top_within": (ORANGE, "|"),
        "effects_top_chance": (GREY, "|"),
    }
    for name, (colour, marker) in points.items():
        shift = -0.12 if "spearman" in name else 0.12
        axes.plot(
            table[name],
            rows + shift,
            marker,
            color=colour,
            markersize=6 if marker == "o" else 13,
            mew=2,
            label=_EFFECTS[name],
        )
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.margins(x=0.06)
    axes.set_xlabel("agreement of the effects of genes")
    legend_beside(axes)
    return figure


# Sections


def _named(table: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    shown = table[[name for name in columns if name in table]]
    return shown.set_axis(labels_of(table), axis=0).rename_axis("learned → tested")


def _columns(table: pd.DataFrame, *prefixes: str) -> list[str]:
    return [str(name) for name in table if str(name).startswith(prefixes)]


def _drop_section(table: pd.DataFrame) -> Section:
    intervals = [f"{name}{end}" for name in SCORES for end in ("", "_low", "_high")]
    sizes = [name for name in _columns(table, "n_", "events_", "measured_") if name not in _EFFECTS]
    note = ""
    if "measured_twice" in table:
        note = (
            "measured_twice is the same correlation of the responses that both studies measured of the same samples "
            "and drugs: no study can tell more of another than the two agree."
        )
    return Section(
        "What is lost from one cohort to another",
        "The rows tested as their own cohort tells them, with the row's fold left out, and as the other does; and the "
        "difference on the same resampled patients, donors or samples.",
        "Why: fewer samples to learn from, another mixture of patients, another platform, or other biology.",
        figure=_drop_figure(table),
        table=_named(table, [*intervals, *sizes]),
        note=note,
    )


def _domain_section(table: pd.DataFrame) -> Section:
    return Section(
        "How well the cohorts are told apart",
        "AUC of logistic regression on principal components, in samples that neither it nor the harmoniser has seen: "
        "as they are, and after each way of harmonising. 0.5: they are not told apart by what a linear method sees.",
        "That what is left is the same: trees often still tell cohorts of equal means and spreads apart. Nor that what "
        "was taken out was of the platform alone.",
        figure=_domain_figure(table),
        table=_named(table, [f"domain_auc_{way}" for way in _WAYS]).rename(
            columns={f"domain_auc_{way}": label for way, label in _WAYS.items()}
        ),
    )


def _effects_section(table: pd.DataFrame) -> Section:
    return Section(
        "Whether both cohorts use the same genes",
        "Effects of genes in the method fitted to either cohort by itself: rank correlation, and how many of the genes "
        "with the largest effects are shared, beside chance, and beside two halves of the cohort tested.",
        "That shared genes are causes: correlated genes share an effect, and a method may choose either.",
        figure=_effects_figure(table),
        table=_named(table, list(_EFFECTS)).rename(columns=_EFFECTS),
    )


def _no_effects_section() -> Section:
    return Section(
        "Whether both cohorts use the same genes",
        NO_EFFECTS,
        "That they do, or do not: explain the checkpoint in both cohorts, and compare the tables of genes.",
    )


def _genes_section(table: pd.DataFrame) -> list[Section]:
    effects, called = table.attrs["effects"], table.attrs.get("called", {})

    def name(key: str) -> str:
        return str(called.get(key) or symbol_of_ensembl().get(key, key))

    effects = effects.assign(gene=effects["gene"].map(name), output=effects["output"].map(name))
    n_outputs = effects["output"].nunique()
    what = next((_OUTPUTS[name] for name in _OUTPUTS if name in table), "of")
    listed = {
        (output, place, cohort): gene
        for (output, cohort), of in effects.groupby(["output", "cohort"])
        for place, gene in enumerate(_largest(of), start=1)
    }
    genes = pd.Series(listed, dtype=object).unstack(fill_value="").rename_axis([what, "place"])
    genes = genes[list(effects["cohort"].unique())]
    return [
        Section(
            "The genes with the largest effects",
            f"Of each cohort, and what an effect is by standard deviation of the gene; the first {_TOP_EFFECTS}"
            + (f" for each of {n_outputs} {what}s, which the search finds by name." if n_outputs > 1 else "."),
            "An effect by itself: methods on components spread an effect over all genes that go together.",
            table=genes if n_outputs > 1 else genes.droplevel(what),
        )
    ]


def _largest(effects: pd.DataFrame) -> list[str]:
    """Name the genes with the largest effects, each with its effect."""
    first = effects.loc[effects["effect"].abs().sort_values(ascending=False, kind="stable").index[:_TOP_EFFECTS]]
    return [f"{gene} {effect:+.3g}" for gene, effect in zip(first["gene"], first["effect"], strict=True)]
