"""Pages of heads, and of differences between networks: pictures, tables, and what they do not show."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from geneformer_repro.checkpoint_files import checkpoint_warning, without_warning
from geneformer_repro.files import refuse_existing
from geneformer_repro.in_silico.networks.network_figures import (
    N_DRAWN,
    N_RINGED,
    difference_figure,
    heads_figure,
    place_profile_figure,
)
from geneformer_repro.in_silico.networks.network_statistics import NetworkDifference
from geneformer_repro.report import Section, write_report

SIGNIFICANT = 0.05
N_SHOWN = 5_000
"""Most rows of a table on a page."""
_EDGES = (
    "source_name", "target_name", "difference", "low", "high", "t", "p_value", "fdr", "weight_a", "weight_b",
    "n_donors", "n_cells_a", "n_cells_b", "moved", "spearman_difference", "spearman_fdr",
)  # fmt: skip
"""Columns of edges that a page has room for."""
NOT_REGULATION = "Regulation: an edge is what the model relates, a hypothesis about genes."


def head_sentence(table: pd.DataFrame) -> str:
    """Say in words how many heads attend more to the genes that were asked about, and what chance gives.

    Parameters
    ----------
    table
        Of `head_statistics`.
    """
    facts, n_heads = table.attrs, len(table)
    found = (table["fdr"] < SIGNIFICANT) & (table["difference"] > 0)
    said = f"{int(found.sum())} of {n_heads} heads ({facts['share']:.0%}) attend more to the {_first(table, 'n_genes')}"
    said += f" genes than to others{' like them' if facts['method'] == 'matched' else ''} (FDR < 0.05)"
    if "null_share" in facts:
        null = facts["null_share"]
        said += (
            f"; permuted labels give {null['mean']:.1%} on average and {null['q95']:.1%} in one of twenty (p "
            f"{facts['share_p_value']:.3g})"
        )
    if "random_share" in facts:
        said += f", a network with random weights {facts['random_share']:.0%}"
    if not np.isnan(facts.get("trend", np.nan)):
        said += f". Correlation of the difference with the layer {facts['trend']:.2f} (p {facts['trend_p_value']:.3g})"
    return f"{said}. {facts['warning']}".strip()


def _first(table: pd.DataFrame, column: str) -> int:
    return int(table[column].iloc[0])


def write_head_report(
    table: pd.DataFrame, path: str | Path, *, facts: Mapping[str, Any] | None = None, overwrite: bool = False
) -> None:
    """Write one HTML file of heads.

    Parameters
    ----------
    table
        Of `head_statistics`.
    path
        The file.
    facts
        What was read, for the end of the page; with `Checkpoint.whereabouts` it says whether to rely on the model.
    overwrite
        Replace a file that is there.

    Raises
    ------
    FileExistsError
        `path` exists.
    MissingExtraError
        matplotlib is not installed.
    """
    refuse_existing(Path(path), overwrite=overwrite)
    sections = [
        Section(
            "Heads that attend to these genes",
            "Each tile is a head: mean log2 lift of attention that these genes get, less that of others"
            f"{' of like place and detection' if table.attrs['method'] == 'matched' else ''}. Dots: FDR < 0.05. Beside "
            "it the share of such heads, that of a network with random weights, and what permuted labels give.",
            "What a head is for: genes that are attended alike need not be read alike.",
            figure=heads_figure(table),
        ),
        Section(
            "Where heads look",
            "Mean log2 lift of attention on genes by their place in the cell, a line a head. Above 0: more than an "
            "even share.",
            "Which genes they look at: the genes of a place differ from cell to cell.",
            figure=place_profile_figure(table),
        ),
        Section(
            "All heads",
            "The rows of the table. difference_unmatched is without regard to place; random_… is a network with random "
            "weights.",
            "Donors as replicates: labels of genes are permuted, so p-values are about which genes were named.",
            table=table.set_index("layer"),
        ),
    ]
    write_report(
        path,
        title="Heads of attention",
        lead=head_sentence(table),
        sections=sections,
        facts=without_warning(facts or {}),
        warning=checkpoint_warning(facts or {}),
        overwrite=overwrite,
    )


def write_difference_report(difference: NetworkDifference, path: str | Path, *, overwrite: bool = False) -> None:
    """Write one HTML file of how the networks of two states differ.

    Parameters
    ----------
    difference
        Of `compare_networks`.
    path
        The file.
    overwrite
        Replace a file that is there.

    Raises
    ------
    FileExistsError
        `path` exists.
    MissingExtraError
        matplotlib is not installed.
    """
    refuse_existing(Path(path), overwrite=overwrite)
    a, b = difference.facts["states"]
    write_report(
        path,
        title=f"Gene networks: {b} against {a}",
        lead=difference.sentence(),
        sections=list(_sections(difference)),
        facts={name: value for name, value in without_warning(difference.facts).items() if not isinstance(value, list)},
        warning=checkpoint_warning(difference.facts),
        overwrite=overwrite,
    )


def _sections(difference: NetworkDifference) -> Iterator[Section]:
    a, b = difference.facts["states"]
    n_donors = len(difference.facts["donors"])
    yield Section(
        "Differences and evidence",
        f"Each point is an edge, of the {min(N_DRAWN, len(difference.edges)):,} with most evidence: weight in {b} less "
        f"that in {a}, mean over {n_donors} donors. Rings: of the first {N_RINGED}, those both of whose genes moved a "
        "place bin or more.",
        f"{NOT_REGULATION} Nor that the pair changed where both genes moved: what moves is attended otherwise.",
        figure=difference_figure(difference.edges, (a, b)),
    )
    yield Section(
        "Edges by evidence",
        "Of each edge what the table says first. The file has more: the places of both genes, and what needs no model "
        "where counts were given.",
        "Pairs that can be tested in one state only: those are listed below.",
        table=_of_states(_shown(difference.edges[[name for name in _EDGES if name in difference.edges]]), a, b),
        most_rows=N_SHOWN,
    )
    by_place = difference.genes["moved_bins"].abs().sort_values(ascending=False, kind="stable")
    yield Section(
        "Genes by how far they moved",
        f"moved_bins: change of the root of the mean place from {a} to {b}, below 0 towards the front. alpha: how much "
        "a gene is attended beyond its place.",
        "Expression itself: a place is a rank among the genes of the cell, each relative to its median.",
        table=_of_states(_shown(difference.genes.loc[by_place.index].reset_index(drop=True)), a, b),
        most_rows=N_SHOWN,
    )
    if len(difference.in_one_state):
        yield Section(
            f"Pairs of one state ({len(difference.in_one_state):,} listed)",
            "The strongest pairs for which the other state has too few cells with both genes.",
            "Differences: an edge that cannot be tested is not absent.",
            table=_shown(difference.in_one_state.drop(columns=["source", "target"])),
            most_rows=N_SHOWN,
        )


def _of_states(table: pd.DataFrame, a: str, b: str) -> pd.DataFrame:
    """Call columns of a state by its name, not by its letter."""
    ends, names = {"_a": a, "_b": b}, [str(name) for name in table]
    return table.set_axis([f"{name[:-2]}, {ends[name[-2:]]}" if name[-2:] in ends else name for name in names], axis=1)


def _shown(table: pd.DataFrame) -> pd.DataFrame:
    told = table.dropna(axis=1, how="all")
    return told.set_index(told.columns[0])
