"""The picture of a network, and a page that says what was added up, what was taken out, and what is left.

A page repeats with every edge that it is the model's: attention follows what genes have in common, and an edge that
stands here may be no more than that. Whether there is more, `evaluate_network` asks.
"""

from collections.abc import Iterator
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from geneformer_repro.arguments import typed
from geneformer_repro.checkpoint_files import checkpoint_in_words, checkpoint_warning
from geneformer_repro.errors import InputError
from geneformer_repro.files import refuse_existing
from geneformer_repro.in_silico.networks.gene_network import GeneNetwork
from geneformer_repro.report import BLUE, GREY, ORANGE, Section, name_points, new_axes, write_report

if TYPE_CHECKING:
    import networkx
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CAPTION = {
    "attention": "residual attention of the model, not regulation",
    "deletion": "what deletions do to vectors of the model, not regulation",
    "mean_qk": "attention of mean queries and keys, of no cell, not regulation",
}
N_EDGES, N_IN_TABLE, N_PICTURES = 60, 2_000, 6
"""Edges of a picture, most rows of a table, states that are drawn on a page."""
_MARKERS = {True: "s", False: "o"}


@typed
def plot_network(network: GeneNetwork, state: str | None = None, *, n_edges: int = N_EDGES) -> "Figure":
    """Draw the strongest edges of a state: sources as squares, other genes as dots, an arrow from source to target.

    Parameters
    ----------
    network
        The network.
    state
        Which state; default the first.
    n_edges
        Most edges that are drawn, by rank; at most 200.

    Returns
    -------
    A figure, to be saved with its `savefig`. The same network gives the same picture.

    Raises
    ------
    InputError
        There is no such state, or no edge in it.
    MissingExtraError
        matplotlib is not installed.

    See Also
    --------
    write_network_report : Pictures of all states, and words.
    GeneNetwork : Its ``edges`` have the numbers.

    Examples
    --------
    >>> import geneformer_repro as gf
    >>> network = gf.GeneNetwork.open("runs/net")
    >>> figure = gf.plot_network(network, "Dendritic", n_edges=20)
    >>> figure.savefig("net.png")
    """
    if not 1 <= n_edges <= 200:
        raise InputError(f"n_edges must be between 1 and 200, found {n_edges}. Of more, write_graphml has them all.")
    state = network.states[0] if state is None else state
    nodes = network.node_table(state)
    edges = network.edges[network.edges["state"] == state].head(n_edges)
    if edges.empty:
        raise InputError(f"State {state!r} has no edge with a weight above 0.")
    graph = _graph(edges, nodes)
    figure, axes = new_axes(8.6, 7.0)
    _draw(axes, graph, _places(graph))
    axes.set_axis_off()
    axes.set_title(f"{state}: the {len(edges)} strongest edges", loc="left", fontsize=11)
    said = f"{CAPTION.get(network.metadata['method'], 'weights of pairs, not regulation')}; a → b: {_READS}"
    figure.supxlabel(fill(said, 110), fontsize=8.5, color=GREY)
    return figure


_OF_NOTHING = "Of random weights: what chance says. "
_READS = "the model uses a to represent b; the wider, the larger the weight"


def _graph(edges: pd.DataFrame, nodes: pd.DataFrame) -> "networkx.DiGraph[str]":
    import networkx

    graph: networkx.DiGraph[str] = networkx.DiGraph()
    for gene in dict.fromkeys([*edges["source"], *edges["target"]]):
        graph.add_node(gene, name=nodes.at[gene, "gene_name"] or gene, is_source=bool(nodes.at[gene, "is_source"]))
    graph.add_weighted_edges_from(edges[["source", "target", "weight"]].itertuples(index=False, name=None))
    return graph


def _places(graph: "networkx.DiGraph[str]") -> dict[str, tuple[float, float]]:
    """Return where nodes stand: parts that hang together side by side, the largest first, laid out by distances."""
    import networkx

    parts = sorted(networkx.weakly_connected_components(graph), key=lambda part: (-len(part), sorted(part)[0]))
    places: dict[str, tuple[float, float]] = {}
    across, down, tallest, width = 0.0, 0.0, 0.0, 2.2 * np.sqrt(len(graph))
    for part in parts:
        side = 1.1 * np.sqrt(len(part)) + 0.6
        if across and across + side > width:
            across, down, tallest = 0.0, down - tallest, 0.0
        alone: networkx.Graph[str] = networkx.Graph()  # a subgraph's order is that of a set, which differs by process
        alone.add_nodes_from(sorted(part))
        alone.add_edges_from(sorted(graph.subgraph(part).edges))
        inside = networkx.kamada_kawai_layout(alone, weight=None)
        span = np.array([*inside.values()])
        low, reach = span.min(0), np.maximum(np.ptp(span, axis=0), 1e-9)
        for gene, at in inside.items():
            right, below = (0.1 + 0.8 * (at - low) / reach) * side
            places[gene] = (across + right, down - below)
        across, tallest = across + side, max(tallest, side)
    return places


def _draw(axes: "Axes", graph: "networkx.DiGraph[str]", places: dict[str, tuple[float, float]]) -> None:
    from matplotlib.patheffects import withStroke

    weight = {pair: graph.edges[pair]["weight"] for pair in graph.edges}
    heaviest, bent = max(weight.values()), {pair for pair in graph.edges if pair[::-1] in weight}
    for (source, target), of_pair in weight.items():
        arrow = {
            "arrowstyle": "-|>,head_width=0.16,head_length=0.34",
            "linewidth": 0.5 + 2.0 * of_pair / heaviest,
            "color": GREY,
            "alpha": 0.35 + 0.5 * of_pair / heaviest,
            "shrinkA": 5,
            "shrinkB": 6,
            "connectionstyle": "arc3,rad=0.18" if (source, target) in bent else "arc3",
        }
        axes.annotate("", places[target], places[source], arrowprops=arrow)
    for is_source, marker in _MARKERS.items():
        genes = [gene for gene in graph if graph.nodes[gene]["is_source"] is is_source]
        if genes:
            across, down = np.array([places[gene] for gene in genes]).T
            colour, label = (ORANGE, "source") if is_source else (BLUE, "other gene")
            axes.scatter(across, down, s=46, marker=marker, color=colour, zorder=3, label=label, edgecolors="white")
    for gene, at in places.items():
        offset, across, up = _where_to_write(graph, places, gene)
        name = axes.annotate(graph.nodes[gene]["name"], at, offset, textcoords="offset points", ha=across, va=up)
        name.set(fontsize=7.5, zorder=4, color="#111827", path_effects=[withStroke(linewidth=2.2, foreground="white")])
    across, down = np.array([*places.values()]).T
    joined = pd.DataFrame(
        {way: [dict(of)[gene] for gene in places] for way, of in (("in", graph.in_degree), ("out", graph.out_degree))}
    )
    name_points(axes, across, down, [graph.nodes[gene]["name"] for gene in places], joined)
    axes.margins(0.05)
    axes.legend(frameon=False, fontsize=8.5, loc="upper right", bbox_to_anchor=(1.0, 1.06), ncols=2)


def _where_to_write(
    graph: "networkx.DiGraph[str]", places: dict[str, tuple[float, float]], gene: str
) -> tuple[tuple[float, float], str, str]:
    """Return where a name stands, in points from its gene, and which of its sides is there.

    Of a gene with one neighbour away from it, so that names around a source do not lie on each other.
    """
    neighbours = {*graph.predecessors(gene), *graph.successors(gene)}
    if len(neighbours) == 1:
        away = np.subtract(places[gene], places[neighbours.pop()])
        x, y = away / max(float(np.hypot(*away)), 1e-9)
        if abs(x) > 0.15:
            return (6 * x, 6 * y), "left" if x > 0 else "right", "center"
        return (0, 6 * np.sign(y)), "center", "bottom" if y > 0 else "top"
    below = _is_better_below(graph, places, gene)
    return (0, -6 if below else 6), "center", "top" if below else "bottom"


def _is_better_below(graph: "networkx.DiGraph[str]", places: dict[str, tuple[float, float]], gene: str) -> bool:
    """Return whether a name above its gene would hide more arrows than one below; heads count most."""
    come_from = [(places[other], 2.0) for other in graph.predecessors(gene)]
    go_to = [(places[other], 1.0) for other in graph.successors(gene)]
    across, down = places[gene]
    steep = [(y - down) / max(np.hypot(x - across, y - down), 1e-9) * weight for (x, y), weight in come_from + go_to]
    return sum(max(up, 0.0) for up in steep) > sum(max(-up, 0.0) for up in steep)


@typed
def write_network_report(network: GeneNetwork, path: str | Path, *, overwrite: bool = False) -> None:
    """Write a page about a network: what was added up, what was taken out, the strongest edges, and what they are not.

    Parameters
    ----------
    network
        The network.
    path
        HTML file to write.
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
    plot_network : One picture.
    gene_network : Makes a network.

    Examples
    --------
    >>> import geneformer_repro as gf
    >>> network = gf.GeneNetwork.open("runs/net")
    >>> gf.write_network_report(network, "net.html")
    >>> gf.write_network_report(network, "net.html")
    Traceback (most recent call last):
        ...
    FileExistsError: net.html already exists. Choose another output, or allow it to be replaced: overwrite=True
    (--overwrite).
    """
    refuse_existing(Path(path), overwrite=overwrite)
    metadata = network.metadata
    named = (
        "method", "scale", "weight", "by", "donor", "min_cells", "seed", "random_weights", "cells", "vocabulary",
    )  # fmt: skip
    write_report(
        path,
        title="Gene network of a model",
        lead=f"{_OF_NOTHING if metadata.get('random_weights') else ''}{len(network.sources):,} sources, "
        f"{len(network.targets):,} targets. A weight is {metadata['measure']}, "
        "beyond what both genes have with all others. It is the model's: a hypothesis about genes, and no more before "
        "it has been compared with co-expression of the same cells (evaluate_network).",
        sections=list(_sections(network)),
        facts={
            "checkpoint": checkpoint_in_words(metadata),
            **{name: metadata[name] for name in named if metadata.get(name) is not None},
        },
        warning="" if metadata.get("random_weights") else checkpoint_warning(metadata),
        overwrite=overwrite,
    )


_OF_SELECTION = ["first_half", "second_half", "chosen"]
"""Columns of heads where known edges chose them."""


def _sections(network: GeneNetwork) -> Iterator[Section]:
    yield Section(
        "States and cells",
        "How many cells and donors each state has, how many pairs have a weight, and the share of the variance of mean "
        "weights that the effects of both genes explain. That is of genes, not of pairs, and is taken out. Agreement "
        "of halves: Spearman correlation of the weights of every other cell with those of the rest.",
        "Cells of states that lack a network; they are listed below, with why.",
        table=_states(network),
        note=_left_out(network),
    )
    for state in network.states[:N_PICTURES]:
        edges = network.edges[network.edges["state"] == state]
        if edges.empty:
            continue
        yield Section(
            f"{state}: strongest edges",
            "Edges by weight · n / (n + 10) of n cells. a → b: the model uses a to represent b. donor_mean and its "
            "95 % interval are over donors, where there are three or more; lift is the sum of the state's mean and of "
            "all parts.",
            "Regulation. Genes that stand together in cells of one kind attend to each other whatever they do.",
            figure=plot_network(network, state),
            table=_strongest(network, edges),
            most_rows=N_IN_TABLE,
        )
    if len(network.states) > N_PICTURES:
        yield Section(
            "Other states",
            f"States whose pictures are left out here: {', '.join(network.states[N_PICTURES:])}.",
            "Their edges, which are in edges.parquet.",
        )
    if "of_heads" in network.metadata:
        yield _heads(network)
    if chosen := (network.metadata.get("selected") or {}):
        yield _selected(network, chosen)


def _states(network: GeneNetwork) -> pd.DataFrame:
    edges = network.edges
    rows = {
        state: {
            "cells": facts["n_cells"],
            "donors": facts.get("n_donors") or np.nan,
            "pairs": int((network.counts(state).to_numpy() >= network.least_cells()).sum()),
            "of possible": len(network.sources) * len(network.targets),
            "explained by genes": facts["explained_by_genes"],
            "agreement of halves": facts.get("agreement_of_halves"),
            "edges listed": int((edges["state"] == state).sum()),
            "of these FDR < 0.05": _n_significant(edges[edges["state"] == state]),
        }
        for state, facts in network.metadata["states"].items()
    }
    table = pd.DataFrame([*rows.values()], index=[*rows], dtype=object)  # whole numbers beside missing ones
    return table.rename_axis("state").dropna(axis=1, how="all")


def _n_significant(edges: pd.DataFrame) -> float:
    """Return how many edges of a state have a false discovery rate below 0.05; NaN where none was tested."""
    return int((edges["fdr"] < 0.05).sum()) if edges["fdr"].notna().any() else np.nan


def without_untold(edges: pd.DataFrame) -> pd.DataFrame:
    """Leave out columns that say nothing of these edges, such as those of donors where there are none."""
    told = edges.notna().any() & ~(edges.columns.isin(["n_donors"]) & edges.eq(0).all())
    return edges.loc[:, told]


def _left_out(network: GeneNetwork) -> str:
    listed = network.metadata.get("left_out") or []
    if not listed:
        return ""
    named = [
        f"{one['state'] or 'cells'}{', ' + one['donor'] if one['donor'] else ''}: {one['n_cells']} ({one['why']})"
        for one in listed[:20]
    ]
    more = f" and {len(listed) - 20} more" if len(listed) > 20 else ""
    return f"Left out: {'; '.join(named)}{more}."


def _strongest(network: GeneNetwork, edges: pd.DataFrame) -> pd.DataFrame:
    names = network.genes["gene_name"]
    shown = without_untold(edges.drop(columns=["state", "source_name", "target_name"]))
    return shown.assign(**{role: shown[role].map(names) for role in ("source", "target")}).set_index("source")


def _heads(network: GeneNetwork) -> Section:
    metadata: dict[str, Any] = network.metadata
    table = pd.DataFrame(metadata["of_heads"]).drop(columns=_OF_SELECTION, errors="ignore")
    middle = table.astype(float).median()
    return Section(
        "What was taken out of each head",
        f"From {metadata['n_calibrated']:,} cells: the spread of its weights beyond place (sd), the share of their "
        f"variance that the places of both genes explain (median {middle['explained_by_place']:.0%}), "
        f"{_by_genes(middle)}and the share of its attention on special tokens (median {middle['on_specials']:.0%}), "
        "which is left out of each row.",
        "What a head is for: heads are averaged, each divided by its spread.",
        table=table.set_index("layer"),
    )


def _selected(network: GeneNetwork, chosen: dict[str, Any]) -> Section:
    """Say which heads known edges chose, and what these score where they did not choose."""
    table = pd.DataFrame(network.metadata["of_heads"])[["layer", "head", *_OF_SELECTION]]
    held_out = "second_half" if chosen["on"] == "first" else "first_half"
    of_chosen, of_all = (part[held_out].astype(float).mean() for part in (table[table["chosen"]], table))
    agreement = chosen["agreement"]
    agrees = "" if agreement is None else f" Over heads the halves agree with ρ = {agreement:.2f}."
    return Section(
        "Heads that known edges chose",
        f"{chosen['n_heads']} of {chosen['n_candidates']} heads were chosen by the {chosen['on']} half of the sources "
        f"with an edge in {chosen['known']}: matched AUROC of each head alone, in {chosen['n_cells']:,} cells, "
        f"{chosen['n_sources'][0]} sources with {chosen['n_edges'][0]} edges and {chosen['n_sources'][1]} with "
        f"{chosen['n_edges'][1]}. On the half that did not choose the chosen ones have {of_chosen:.3f} on average, all "
        f"{of_all:.3f}; 0.5 is chance.{agrees}",
        "Anything about the sources that chose: evaluate_network leaves these out.",
        table=table.sort_values("chosen", ascending=False, kind="stable").set_index("layer"),
    )


def _by_genes(middle: pd.Series) -> str:
    """Say what genes explain of heads, where that is known: older networks do not say it."""
    if "explained_by_genes" not in middle:
        return ""
    return (
        "the shares of what places leave that the means of source genes explain "
        f"(median {middle['explained_by_sources']:.0%}) and those of both genes, fitted together "
        f"({middle['explained_by_genes']:.0%}; adjusted R², all states together), "
    )
