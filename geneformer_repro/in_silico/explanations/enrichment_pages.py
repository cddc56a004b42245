"""Which picture fits gene sets, and a page that says what they show and what they do not.

The page begins with how many sets stand out against genes like the chosen ones, beside how many would without matching:
the second number is what most tables of pathways report.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from geneformer_repro.arguments import typed
from geneformer_repro.errors import InputError
from geneformer_repro.files import refuse_existing
from geneformer_repro.in_silico.explanations.drivers import DriverGenes
from geneformer_repro.in_silico.explanations.enrichment import groups_of
from geneformer_repro.in_silico.explanations.enrichment_figures import (
    common_genes_figure,
    drivers_figure,
    sets_figure,
    sides_figure,
)
from geneformer_repro.in_silico.figures import of_one_class
from geneformer_repro.report import Section, write_report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_GENES, _N_IN_TABLE = 60, 2_000


@typed
def plot_enrichment(result: pd.DataFrame | DriverGenes) -> "Figure":
    """Draw gene sets, the sets of two models, or drivers.

    Parameters
    ----------
    result
        Result of `gene_set_enrichment` (of several methods or states the first), `compare_enrichment` or
        `driver_genes`.

    Returns
    -------
    A figure, to be saved with its `savefig`.

    Raises
    ------
    InputError
        The table is none of these.
    MissingExtraError
        matplotlib is not installed.

    See Also
    --------
    gene_set_enrichment : Makes a table of sets.
    write_enrichment_report : All pictures, and words.

    Examples
    --------
    >>> import numpy as np
    >>> import pandas as pd
    >>> import geneformer_repro as gf
    >>> cells = gf.datasets.pbmc700()
    >>> table = pd.DataFrame({"detection_rate": np.asarray((cells.X > 0).mean(axis=0)).ravel()}, index=cells.var_names)
    >>> table["score"] = np.arange(len(table), 0, -1)
    >>> found = gf.gene_set_enrichment(table, {"the first": cells.var_names[:40]})
    >>> gf.plot_enrichment(found).axes[0].get_xlabel()
    '−log₁₀ p'
    """
    if isinstance(result, DriverGenes):
        return drivers_figure(result.table, title=_title_of_drivers(result))
    _require_made_here(result)
    if "names" in result.attrs:
        value = "nes" if result.attrs["method"] == "prerank" else "fold"
        return sides_figure(result, result.attrs["names"], value=value)
    of, rows = next(groups_of(of_one_class(result)[0]))
    return sets_figure(rows, title=", ".join(of.values()))


def _require_made_here(table: pd.DataFrame) -> None:
    if "sentence" not in table.attrs or not {"tests", "names"} & set(table.attrs):
        raise InputError(
            "This is no result of gene_set_enrichment or compare_enrichment, or one without its attrs. Give it as it "
            "was "
            "returned."
        )


def _title_of_drivers(drivers: DriverGenes) -> str:
    facts = drivers.facts
    name = facts.get("name") or facts.get("file", "listed genes")
    return f"{name}: {facts['known']:,} of {facts['background']:,} genes"


@typed
def write_enrichment_report(
    enrichment: pd.DataFrame,
    path: str | Path,
    *,
    beside: pd.DataFrame | None = None,
    drivers: DriverGenes | None = None,
    overwrite: bool = False,
) -> None:
    """Write one HTML file: which sets stand out against genes like the chosen ones, and what was tested and lost.

    Parameters
    ----------
    enrichment
        Result of `gene_set_enrichment`.
    path
        The file.
    beside
        Result of `compare_enrichment`, whose pictures follow.
    drivers
        Result of `driver_genes`, whose picture follows.
    overwrite
        Replace a file that is there.

    Raises
    ------
    FileExistsError
        `path` exists.
    InputError
        A table is none of these.
    MissingExtraError
        matplotlib is not installed.

    See Also
    --------
    gene_set_enrichment : Makes the table.
    plot_enrichment : One picture.

    Examples
    --------
    >>> from pathlib import Path
    >>> import numpy as np
    >>> import pandas as pd
    >>> import geneformer_repro as gf
    >>> cells = gf.datasets.pbmc700()
    >>> table = pd.DataFrame({"detection_rate": np.asarray((cells.X > 0).mean(axis=0)).ravel()}, index=cells.var_names)
    >>> table["score"] = np.arange(len(table), 0, -1)
    >>> found = gf.gene_set_enrichment(table, {"the first": cells.var_names[:40]})
    >>> gf.write_enrichment_report(found, "sets.html")
    >>> "without matching" in Path("sets.html").read_text()
    True
    """
    refuse_existing(Path(path), overwrite=overwrite)
    for table in (enrichment, *([] if beside is None else [beside])):
        _require_made_here(table)
    said = [enrichment, *([] if beside is None else [beside])]
    sentences = [table.attrs["sentence"] for table in said] + ([] if drivers is None else [drivers.facts["sentence"]])
    sets, warning = enrichment.attrs["sets"], enrichment.attrs["warning"]
    write_report(
        path,
        title=f"Gene sets by {enrichment.attrs['score']}",
        warning=warning,
        lead=" ".join(sentences).removeprefix(warning).lstrip(),
        sections=[
            *_of_sets(enrichment),
            *([] if beside is None else _of_two(beside)),
            *([] if drivers is None else _of_drivers(drivers)),
            _tested(enrichment),
        ],
        facts={**{f"sets {name}": value for name, value in sets.items()}, "seed": enrichment.attrs["seed"]},
        overwrite=overwrite,
    )


def _of_sets(table: pd.DataFrame) -> Iterator[Section]:
    like = " and ".join(table.attrs["strata"])
    against = f"against genes of like {like}" if like else "without matching, so that often detected genes decide"
    hollow = (
        " Hollow points are the same test without matching: where they alone are far out, a set holds genes that are "
        "often detected."
    )
    ranked = table.attrs["method"] == "prerank"
    how = (
        "genes of a set stand towards one end of the ranking" if ranked else "the chosen genes are more often in a set"
    )
    of_one, class_shown = of_one_class(table)
    for of, rows in groups_of(of_one):
        told = ", ".join(of.values())
        shown = rows.drop(columns=list(of))
        yield Section(
            "Gene sets" + (f": {told}" if told else ""),
            f"Whether {how} than chance makes them, {against}, by {table.attrs['score']}." + (hollow if like else ""),
            "What the genes do: a set is a list that somebody made, and the model may use its genes for another "
            "reason.",
            figure=sets_figure(rows, title=told, is_matched=bool(like)),
            table=shown.assign(genes=[_cut(genes) for genes in shown["genes"]]),
            most_rows=_N_IN_TABLE,
            note=f"Class shown: {class_shown}." if class_shown else "",
        )


def _cut(genes: str) -> str:
    return genes if len(genes) <= _MOST_GENES else genes[:_MOST_GENES].rpartition(" ")[0] + " …"


def _of_two(table: pd.DataFrame) -> Iterator[Section]:
    names = table.attrs["names"]
    shown = table[table["found"] != ""]
    yield Section(
        f"{names[0]} and {names[1]}",
        "Which sets are found in either, and which in one alone.",
        "Why they differ. A set that is found by one alone may be just below the threshold in the other.",
        figure=plot_enrichment(table),
        table=shown if len(shown) else None,
        finding=f"{table.attrs['sentence']} Mann-Whitney of −log10 FDR: p = {table.attrs['mann_whitney_p']:.2g}.",
    )
    if table.attrs["genes"]:
        yield Section(
            "Genes in common",
            "How many of the chosen genes both models chose, and how many chance makes common among genes of a "
            "stratum.",
            "That both are right: two models of the same cells follow the same counts.",
            figure=common_genes_figure(table.attrs["genes"], names),
            table=pd.DataFrame(table.attrs["genes"]).set_index("direction"),
        )


def _of_drivers(drivers: DriverGenes) -> Iterator[Section]:
    facts = drivers.facts
    known = {name: facts[name] for name in ("name", "file", "version", "licence") if facts.get(name)}
    yield Section(
        "Known genes among the strongest",
        "How many listed genes stand among the strongest, and how many of genes like them do.",
        "Genes that nobody has listed: they count as others. Listed genes are often well expressed and well studied.",
        figure=plot_enrichment(drivers),
        table=drivers.table.reset_index().set_index("score"),
        note="; ".join(f"{name}: {value}" for name, value in known.items()),
        finding=drivers.facts["sentence"],
    )


def _tested(table: pd.DataFrame) -> Section:
    rows = {
        ", ".join(test["of"].values()) or "table": {
            "genes in the background": len(test["background"]),
            **{f"genes left out, {why}": n for why, n in test["left_out"].items()},
            **{f"genes chosen, {direction}": len(chosen) for direction, chosen in test["chosen"].items()},
            "sets": test["sets"]["sets"],
            "sets tested": test["sets"]["tested"],
            "sets too small": test["sets"]["too small"],
            "sets too large": test["sets"]["too large"],
            "genes of the sets": test["sets"]["genes"],
            "of them not in the background": test["sets"]["unknown genes"],
        }
        for test in table.attrs["tests"]
    }
    first = table.attrs["tests"][0]["sets"]
    return Section(
        "What was tested, and what was lost",
        "Genes that could have been chosen, sets cut to them, and names that led to none of them.",
        "Whether other sets would say the same.",
        table=pd.DataFrame(rows).rename_axis("number of"),
        note=f"Genes of sets that are not in the background: {first['unknown names']}"
        if first["unknown genes"]
        else "",
    )
