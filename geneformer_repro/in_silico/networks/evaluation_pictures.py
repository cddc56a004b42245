"""Which picture fits an evaluation of a network, and a page that says what it shows and what it does not.

The page begins with the sentence about what is left beyond co-expression, because that is what a reader of such tables
takes away; precision alone looks good for whoever knows which genes are in references.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd

from geneformer_repro.arguments import typed
from geneformer_repro.checkpoint_files import checkpoint_warning, without_warning
from geneformer_repro.errors import InputError, did_you_mean
from geneformer_repro.files import refuse_existing
from geneformer_repro.in_silico.networks.evaluation_figures import (
    methods_figure,
    precision_recall_figure,
    sources_figure,
)
from geneformer_repro.in_silico.networks.network_evaluation import of_methods
from geneformer_repro.in_silico.networks.pair_scores import DEGREES, NETWORK
from geneformer_repro.report import Section, write_report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Kind = Literal["methods", "precision_recall", "sources"]
SHOWN = (
    "matched", "matched_low", "matched_high", "beyond_coexpression", "auroc", "ap_ratio", "epr", "per_source", "ap_p",
    "matched_p", "direction", "mean_effect", "mean_effect_of_all", "false_omission_rate", "n_edges", "n_sources",
    "n_pairs", "n_cells", "n_donors",
)  # fmt: skip
"""Columns that the page and the terminal show."""


@typed
def plot_network_evaluation(
    evaluation: pd.DataFrame, *, kind: Kind = "methods", reference: str | None = None, universe: str = "open"
) -> "Figure":
    """Draw how a network does on known edges.

    Parameters
    ----------
    evaluation
        Result of `evaluate_network`.
    kind
        "methods": matched AUROC of every method, with intervals and the band of rewired references.
        "precision_recall": precision at rising recall. "sources": the AUROC of each source.
    reference
        Which reference; default the first.
    universe
        "open", "closed" or "boosted".

    Returns
    -------
    A figure, to be saved with its `savefig`.

    Raises
    ------
    InputError
        There is no such reference, universe or kind, or the table is none of `evaluate_network`.
    MissingExtraError
        matplotlib is not installed.

    See Also
    --------
    evaluate_network : Makes the table.
    write_network_evaluation : Pictures and words.

    Examples
    --------
    >>> import pandas as pd
    >>> import geneformer_repro as gf
    >>> cells = gf.datasets.pbmc700()
    >>> known = pd.DataFrame({"source": cells.var_names[:12].repeat(8), "target": cells.var_names[20:116]})
    >>> weights = pd.DataFrame(0.0, index=cells.var_names[:12], columns=cells.var_names)
    >>> table = gf.evaluate_network(weights, known, counts=cells, boosted_targets=0, n_rewirings=20)
    >>> gf.plot_network_evaluation(table).axes[0].get_xlabel().partition(" (")[0]
    'matched AUROC'
    """
    if kind not in get_args(Kind):
        raise InputError(f"kind must be one of {', '.join(map(repr, get_args(Kind)))}, found {kind!r}.")
    reference = _reference(evaluation, reference)
    table = of_methods(evaluation, reference, universe)
    if table.empty:
        universes = evaluation.index.get_level_values("universe").unique()
        raise InputError(f"There is no universe {universe!r}. {did_you_mean(universe, universes)}")
    if kind == "methods":
        n_edges, n_sources = (int(table[name].iloc[0]) for name in ("n_edges", "n_sources"))
        title = f"{reference}, {universe} universe: {n_edges:,} edges of {n_sources:,} sources"
        return methods_figure(table, title=title, of_models=evaluation.attrs["of_models"], of_reference=[DEGREES])
    if kind == "precision_recall":
        curves = evaluation.attrs["curves"][reference][universe]
        return precision_recall_figure(curves, density=table["n_edges"].iloc[0] / table["n_pairs"].iloc[0])
    of_sources = {
        name: np.array(values, dtype=float)
        for name, values in evaluation.attrs["of_sources"][reference][universe].items()
    }
    return sources_figure(of_sources, evaluation.attrs["sources"][reference])


def _reference(evaluation: pd.DataFrame, reference: str | None) -> str:
    if list(evaluation.index.names) != ["reference", "universe", "method"] or "curves" not in evaluation.attrs:
        raise InputError("This is no result of evaluate_network, or one without its attrs. Give it as it was returned.")
    references = evaluation.index.get_level_values("reference").unique()
    if reference is not None and reference not in references:
        raise InputError(f"There is no reference {reference!r}. {did_you_mean(reference, references)}")
    return str(references[0]) if reference is None else reference


@typed
def write_network_evaluation(evaluation: pd.DataFrame, path: str | Path, *, overwrite: bool = False) -> None:
    """Write one HTML file: what is left beyond co-expression, every method in both universes, and what was lost.

    Parameters
    ----------
    evaluation
        Result of `evaluate_network`.
    path
        The file.
    overwrite
        Replace a file that is there.

    Raises
    ------
    FileExistsError
        `path` exists.
    InputError
        The table is none of `evaluate_network`.
    MissingExtraError
        matplotlib is not installed.

    See Also
    --------
    evaluate_network : Makes the table.
    plot_network_evaluation : One picture.

    Examples
    --------
    >>> from pathlib import Path
    >>> import pandas as pd
    >>> import geneformer_repro as gf
    >>> cells = gf.datasets.pbmc700()
    >>> known = pd.DataFrame({"source": cells.var_names[:12].repeat(8), "target": cells.var_names[20:116]})
    >>> weights = pd.DataFrame(0.0, index=cells.var_names[:12], columns=cells.var_names)
    >>> table = gf.evaluate_network(weights, known, counts=cells, boosted_targets=0, n_rewirings=20)
    >>> gf.write_network_evaluation(table, "evaluation.html")
    >>> "beyond co-expression" in Path("evaluation.html").read_text()
    True
    """
    refuse_existing(Path(path), overwrite=overwrite)
    _reference(evaluation, None)
    sentences = evaluation.attrs["sentences"]
    lead = " ".join(f"{name}: {sentence}" for name, sentence in sentences.items())
    write_report(
        path,
        title="A gene network on known edges",
        lead=lead,
        sections=list(_sections(evaluation)),
        facts={"seed": evaluation.attrs["seed"], **without_warning(evaluation.attrs["facts"])},
        warning=checkpoint_warning(evaluation.attrs["facts"]),
        overwrite=overwrite,
    )


def _sections(evaluation: pd.DataFrame) -> Iterator[Section]:
    for reference in evaluation.index.get_level_values("reference").unique():
        for universe in evaluation.loc[reference].index.get_level_values("universe").unique():
            yield _of_universe(evaluation, reference, universe)
        yield Section(
            f"{reference}: the first of many pairs",
            "Precision at rising recall, open universe. Pairs that are no known edge count as wrong.",
            "How many of the wrong ones are only not known yet: the ceiling is below 1 for every method.",
            figure=plot_network_evaluation(evaluation, kind="precision_recall", reference=reference),
        )
        yield Section(
            f"{reference}: factor by factor",
            "Each point is a source with at least 5 edges: the AUROC among its own targets, open universe.",
            "An effect of one factor that its neighbours do not have: points are few edges each.",
            figure=plot_network_evaluation(evaluation, kind="sources", reference=reference),
        )
    yield _lost(evaluation)
    if evaluation.attrs["overlap"]:
        yield Section(
            "How far the references are one",
            "Edges that two references share, among the genes of the network.",
            "Independence of what they do not share: curators read the same papers.",
            table=pd.DataFrame(evaluation.attrs["overlap"]).T.rename_axis("references"),
        )


_MEANING = {
    "open": "all targets that the network has a weight for",
    "closed": "targets with a known edge only",
    "boosted": "targets that boosted trees were fitted for",
}


def _of_universe(evaluation: pd.DataFrame, reference: str, universe: str) -> Section:
    table = of_methods(evaluation, reference, universe)
    without = table.drop(index=[*evaluation.attrs["of_models"], DEGREES], errors="ignore")["matched"]
    ours, finding = float(table["matched"].loc[NETWORK]), "No source has a known edge beside another target like it."
    is_compared = bool(without.notna().any()) and not np.isnan(ours)
    if is_compared:
        finding = (
            f"The network has {ours:.3f}; the best of what looks at cells without the model is {without.idxmax()}, "
            f"{without.max():.3f}."
        )
    return Section(
        f"{reference}, {universe} universe",
        f"{_MEANING[universe].capitalize()}. A point compares a source's edges with its other targets of like "
        "detection and place; 0.5 is chance, the grey band what rewired references give.",
        "Regulation: an edge is a hypothesis about the model. The degree product knows the reference and no cell"
        + (", and is biased against edges here." if universe != "open" else "; what it scores is what memory gives."),
        figure=plot_network_evaluation(evaluation, reference=reference, universe=universe) if is_compared else None,
        table=table[[name for name in SHOWN if name in table]].dropna(axis=1, how="all"),
        finding=finding,
    )


def _lost(evaluation: pd.DataFrame) -> Section:
    attrs: Any = evaluation.attrs
    unknown = [f"{name}: {lost['unknown names']}" for name, lost in attrs["lost"].items() if lost["unknown names"]]
    rows = {
        name: {
            **{reason: n for reason, n in lost.items() if reason != "unknown names"},
            "pairs without a weight": attrs["missing_pairs"][name],
            **attrs["said"].get(name, {}),
        }
        for name, lost in attrs["lost"].items()
    }
    stable, halves = attrs["stability"], attrs["stability_of_halves"]
    told = "" if pd.isna(stable) else f" Weights of two donors correlate with ρ = {stable:.2f} (median)."
    told += "" if pd.isna(halves) else f" Weights of every other cell correlate with those of the rest by {halves:.2f}."
    return Section(
        "What was scored, and what was lost",
        "Rows of each reference that were not used, by reason, and what it says of itself.",
        f"Whether other edges would say the same. {NETWORK.capitalize()} and baselines saw the same pairs.",
        table=pd.DataFrame(rows).astype(object).where(lambda of: of.notna(), "").rename_axis("rows"),
        finding=told.strip(),
        note=f"Names that led to no gene of the network. {'; '.join(unknown)}" if unknown else "",
    )
