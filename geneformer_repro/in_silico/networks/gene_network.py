"""A gene network and its folder: sums over cells, from which weights are made when they are asked for.

What is kept of each group of cells (a state and a donor) is the sum of its corrected weights and the number of its
cells, for every pair of genes. Both are additive, so what comes later (which pairs have cells enough, the effects of
both genes, donors as replicates) is made anew of them, without the model. A matrix is in memory while somebody holds
it: 700 sources and 8,000 targets are 45 MB, and a folder that is opened takes none.

Direction everywhere: the source is the key gene, the target the query gene. "a → b" reads: the model uses gene a to
represent gene b.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from geneformer_repro.arguments import typed
from geneformer_repro.errors import InputError, counted, did_you_mean, listed
from geneformer_repro.files import new_file
from geneformer_repro.in_silico.networks.centralities import centrality_table
from geneformer_repro.in_silico.networks.gene_effects import GeneEffects, gene_effects
from geneformer_repro.in_silico.networks.gene_modules import module_table
from geneformer_repro.in_silico.networks.network_files import network_metadata, reading_file
from geneformer_repro.in_silico.networks.network_graphs import graph_of, require_top, strongest_pairs, write_graphml
from geneformer_repro.tokenizer.genes import GivenGenes

if TYPE_CHECKING:
    import networkx

DIRECTION = "source=key"
EDGES_A_TARGET = 10
"""Sources of each target that `edges.parquet` holds."""
OF_STATE = ("n_cells", "mean_place", "alpha", "beta", "mass")
"""Columns of a node that are of a state."""
EDGES: Mapping[str, pa.DataType] = {
    "state": pa.string(),
    "source": pa.string(),
    "target": pa.string(),
    "weight": pa.float64(),
    "donor_mean": pa.float64(),
    "low": pa.float64(),
    "high": pa.float64(),
    "p_value": pa.float64(),
    "fdr": pa.float64(),
    "n_cells": pa.int32(),
    "n_donors": pa.int32(),
    "codetection": pa.float64(),
    "lift": pa.float64(),
    "place_part": pa.float64(),
    "source_part": pa.float64(),
    "target_part": pa.float64(),
}
_SUMS = pa.schema(
    {"source": pa.int32(), "target": pa.int32(), "sum": pa.float64(), "n": pa.int32()},
)
_PAIRS_AT_ONCE = 2**19
"""Pairs of a block of sources, which is a row group of a file of sums: 10 MB while it is written or read."""


class Sums(NamedTuple):
    """What is added up over cells, sources × targets."""

    total: np.ndarray
    """Sum of the weights of each pair over the cells that have both genes, float64."""
    n: np.ndarray
    """Number of those cells, int32."""


@dataclass(frozen=True, eq=False)
class GeneNetwork:
    """Which genes a model uses to represent which: a folder that `gene_network` made.

    Nothing large is in memory until it is asked for.

    Parameters
    ----------
    path
        The folder; format in ``docs/formats.md``.
    metadata
        What made it: method, measure, direction, corrections, groups of cells, fingerprints; ``network.json``.

    See Also
    --------
    gene_network : Makes one.
    GeneNetwork.open : Opens one.

    Examples
    --------
    >>> import geneformer_repro as gf
    >>> network = gf.GeneNetwork.open("runs/net")
    >>> network.states, network.donors["Dendritic"]
    (['CD14+ Monocyte', 'Dendritic'], ['donor1', 'donor2', 'donor3'])
    >>> network.metadata["direction"]
    'source=key'
    """

    path: Path
    metadata: dict[str, Any]

    def __repr__(self) -> str:
        return (
            f"GeneNetwork({self.metadata['method']}, {len(self.sources):,} sources × {len(self.targets):,} targets, "
            f"{counted(len(self.states), 'state')}: {listed(self.states)})"
        )

    @classmethod
    @typed
    def open(cls, path: str | Path) -> "GeneNetwork":
        """Open a folder written by `gene_network`; its sums are not read yet.

        Raises
        ------
        InputError
            There is no such folder, or it is of another format.
        DataFormatError
            It is damaged, or files of it are missing.

        See Also
        --------
        gene_network : Writes one.

        Examples
        --------
        >>> import geneformer_repro as gf
        >>> gf.GeneNetwork.open("runs/net")
        GeneNetwork(attention, 4 sources × 621 targets, 2 states: CD14+ Monocyte, Dendritic)
        >>> gf.GeneNetwork.open("cells.tok")
        Traceback (most recent call last):
            ...
        geneformer_repro.errors.InputError: cells.tok: no gene network (it has no network.json). Make one with
        gene_network.
        """
        return cls(Path(path), network_metadata(path))

    # Genes, states, donors

    @cached_property
    def genes(self) -> pd.DataFrame:
        """The genes, by id: ``gene_name``, ``is_source``, ``is_target``; of a state `node_table` has more."""
        table = self._all_genes[["gene_name", "is_source", "is_target"]]
        return table.astype({"gene_name": object})

    @cached_property
    def known_genes(self) -> GivenGenes:
        """The genes, to which those of counts and references are led by id or name; in the order of `genes`."""
        return GivenGenes.named(self.genes.index, self.genes["gene_name"].fillna(""))

    @cached_property
    def _all_genes(self) -> pd.DataFrame:
        with reading_file(self.path / "genes.parquet"):
            return pd.read_parquet(self.path / "genes.parquet").set_index("gene_id")

    @property
    def sources(self) -> pd.Index:
        """Ids of the genes that may be a source, in the order of a matrix's rows."""
        return pd.Index(self.genes.index[self.genes["is_source"]], name="source")

    @property
    def targets(self) -> pd.Index:
        """Ids of the genes that may be a target, in the order of a matrix's columns."""
        return pd.Index(self.genes.index[self.genes["is_target"]], name="target")

    @property
    def states(self) -> list[str]:
        """The states, each with a network of its own; "all" where cells were not told apart."""
        return list(self.metadata["states"])

    @property
    def donors(self) -> dict[str, list[str]]:
        """Donors of each state; none where no donor was named."""
        return {
            state: [group["donor"] for group in self._groups(state) if group.get("donor") is not None]
            for state in self.states
        }

    def node_table(self, state: str | None = None) -> pd.DataFrame:
        """Return what a state says of each gene.

        Parameters
        ----------
        state
            One of `states`; None where there is only one.

        Returns
        -------
        A row a gene, by id: ``gene_name``, ``is_source``, ``is_target``; ``n_cells`` that express it; ``mean_place``
        in them, 0 for the first; ``alpha``, how much more it is attended as a source than its place says, and
        ``beta``, how much it attends as a target, in the unit of the weights, NaN without a pair; ``mass``, the
        attention it receives, 1 for as much as an even share, in the cells of the calibration (NaN without one).

        See Also
        --------
        GeneNetwork.matrix : The weights of pairs.

        Examples
        --------
        >>> import geneformer_repro as gf
        >>> nodes = gf.GeneNetwork.open("runs/net").node_table("Dendritic")
        >>> nodes.loc["ENSG00000019582", "gene_name"], int(nodes.loc["ENSG00000019582", "n_cells"])
        ('CD74', 240)
        """
        state = self.one_state(state)
        columns = {f"{name}:{state}": name for name in OF_STATE}
        return self.genes.join(self._all_genes[list(columns)].rename(columns=columns))

    def one_state(self, state: str | None) -> str:
        """Return a state that there is: the only one, where none is named.

        Raises
        ------
        InputError
            There is no such state, or none is named of several.

        See Also
        --------
        GeneNetwork.node_table : What it says of each gene.

        Examples
        --------
        >>> import geneformer_repro as gf
        >>> gf.GeneNetwork.open("runs/net").one_state("Dendritic")
        'Dendritic'
        """
        if state is None and len(self.states) > 1:
            named = did_you_mean("", self.states)
            raise InputError(f"The network has {len(self.states)} states; name one: state= (--state). {named}")
        state = self.states[0] if state is None else state
        self._require_state(state)
        return state

    def _require_state(self, state: str) -> None:
        if state not in self.metadata["states"]:
            raise InputError(f"The network has no state {state!r}. {did_you_mean(state, self.states)}")

    def _groups(self, state: str, donor: str | None = None) -> list[dict[str, Any]]:
        self._require_state(state)
        groups = [group for group in self.metadata["groups"] if group["state"] == state]
        if donor is None:
            return groups
        of_donor = [group for group in groups if group.get("donor") == donor]
        if not of_donor:
            raise InputError(f"State {state!r} has no donor {donor!r}. {did_you_mean(donor, self.donors[state])}")
        return of_donor

    # Pairs

    def sums(self, state: str | None = None, donor: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return what was added up over cells: the weights of each pair, and how many cells have both genes.

        Parameters
        ----------
        state
            One of `states`; None where there is only one.
        donor
            Of the cells of one donor; None all.

        Returns
        -------
        Sources × targets, float64 and int32. Of a gene with itself both are 0.

        See Also
        --------
        GeneNetwork.uncorrected : The mean.

        Examples
        --------
        >>> import geneformer_repro as gf
        >>> total, n = gf.GeneNetwork.open("runs/net").sums("Dendritic", "donor1")
        >>> total.shape, total.dtype, int(n.max())
        ((4, 621), dtype('float64'), 73)
        """
        state, shape = self.one_state(state), (len(self.sources), len(self.targets))
        total, n = np.zeros(shape), np.zeros(shape, dtype=np.int32)
        for group in self._groups(state, donor):
            add_sums(self.path / group["file"], total, n)
        return total, n

    def uncorrected(self, state: str | None = None, donor: str | None = None) -> pd.DataFrame:
        """Return the mean weight of each pair, its place taken out and the effects of both genes not.

        Parameters
        ----------
        state, donor
            As of `sums`.

        Returns
        -------
        Sources × targets, by gene id. NaN where a pair has fewer cells than ``metadata["min_cells"]``, of a donor a
        quarter of that; of networks of lifts the logarithm (base 2) of the mean.

        See Also
        --------
        GeneNetwork.matrix : Without the effects of both genes.

        Examples
        --------
        >>> import geneformer_repro as gf
        >>> gf.GeneNetwork.open("runs/net").uncorrected("Dendritic").shape
        (4, 621)
        """
        total, n = self.sums(state, donor)
        weights = mean_weights(total, n, least=self.least_cells(donor), scale=self.metadata["scale"], out=total)
        return self._framed(weights)

    def counts(self, state: str | None = None, donor: str | None = None) -> pd.DataFrame:
        """Return how many cells have both genes of each pair, sources × targets, by gene id.

        See Also
        --------
        GeneNetwork.sums : With what was added up.

        Examples
        --------
        >>> import geneformer_repro as gf
        >>> network = gf.GeneNetwork.open("runs/net")
        >>> int(network.counts("Dendritic").max(axis=None)), network.metadata["states"]["Dendritic"]["n_cells"]
        (240, 240)
        """
        return self._framed(self.sums(state, donor)[1])

    def matrix(self, state: str | None = None, donor: str | None = None) -> pd.DataFrame:
        """Return the weight of each pair beyond place and the effects of both genes.

        Parameters
        ----------
        state, donor
            As of `sums`. The effects are those of the cells that are asked for: of one donor, that donor's, fitted
            without the pairs that are far from the fit of the whole state.

        Returns
        -------
        Sources × targets, by gene id; above 0 the model relates the two more than their places and prominence say.
        NaN as of `uncorrected`.

        See Also
        --------
        GeneNetwork : Its ``edges`` are the strongest, with their intervals.
        GeneNetwork.node_table : The effects that were taken out.

        Examples
        --------
        >>> import geneformer_repro as gf
        >>> weights = gf.GeneNetwork.open("runs/net").matrix("Dendritic")
        >>> bool(abs(weights.mean(axis=None)) < 0.1)
        True
        """
        return self._framed_pair(self.one_state(state), donor)[0]

    def effects(self, state: str | None = None, donor: str | None = None) -> GeneEffects:
        """Return weights taken apart into a mean, effects of both genes, and what is left.

        Parameters
        ----------
        state, donor
            As of `sums`.

        See Also
        --------
        GeneNetwork.matrix : What is left, by gene id.

        Examples
        --------
        >>> import geneformer_repro as gf
        >>> effects = gf.GeneNetwork.open("runs/net").effects("Dendritic")
        >>> effects.source.shape, effects.target.shape
        ((4,), (621,))
        """
        state = self.one_state(state)
        total, n = self.sums(state, donor)
        weights, masked = self._fitted_pairs(state, total, n, donor)
        return gene_effects(weights, n, masked=masked, overwrite_weights=True)

    def _fitted_pairs(
        self, state: str, total: np.ndarray, n: np.ndarray, donor: str | None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return mean weights, in the memory of their sums, and which pairs a donor's fit leaves out."""
        weights = mean_weights(total, n, least=self.least_cells(donor), scale=self.metadata["scale"], out=total)
        return weights, None if donor is None else self._far(state)

    def _far(self, state: str) -> np.ndarray:
        """Return the pairs that a donor's fit leaves out."""
        if state not in self._far_pairs:
            self._far_pairs[state] = self.effects(state).far
        return self._far_pairs[state]

    @cached_property
    def _far_pairs(self) -> dict[str, np.ndarray]:
        return {}

    def least_cells(self, donor: str | None = None) -> int:
        """Return how many cells a pair needs for a weight: in a state, or of a donor.

        See Also
        --------
        GeneNetwork.uncorrected : NaN below it.

        Examples
        --------
        >>> import geneformer_repro as gf
        >>> network = gf.GeneNetwork.open("runs/net")
        >>> network.least_cells(), network.least_cells("donor1")
        (20, 5)
        """
        return least_cells(self.metadata["min_cells"], of_donor=donor is not None)

    def _framed(self, values: np.ndarray) -> pd.DataFrame:
        return pd.DataFrame(values, index=self.sources, columns=self.targets, copy=False)

    @cached_property
    def edges(self) -> pd.DataFrame:
        """The strongest edges of each state, read at the first use.

        Of each target the ten strongest sources with a weight above 0; within a state the strongest first, by weight ·
        n / (n + 10) of n cells. Columns: ``state``, ``source``, ``target`` (gene ids), ``source_name``,
        ``target_name``, ``weight`` (of all cells, as in `matrix`); ``donor_mean``, its 95 % interval ``low`` to
        ``high`` and ``p_value`` over donors, and ``fdr`` over all pairs of the state (NaN with fewer than three
        donors); ``n_cells``, ``n_donors``; ``codetection``, cells with both genes over those expected of the numbers
        with each; ``lift``, the mean before anything was taken out: the weight, the state's mean, ``place_part``,
        ``source_part`` and ``target_part``.
        """
        with reading_file(self.path / "edges.parquet"):
            edges = pd.read_parquet(self.path / "edges.parquet")
            place = edges.columns.get_loc("target")
        assert isinstance(place, int)
        for end in ("target", "source"):
            edges.insert(place + 1, f"{end}_name", edges[end].map(self.genes["gene_name"]))
        return edges

    # Graphs

    def graph(
        self, state: str | None = None, *, top: int = 10, max_fdr: float | None = None
    ) -> "networkx.DiGraph[str]":
        """Return the strongest edges of a state as a graph for networkx, from source to target.

        Parameters
        ----------
        state
            One of `states`; None where there is only one.
        top
            Sources of each target, at most, that have a weight above 0: the largest weight · n / (n + 10) of n cells.
        max_fdr
            Only edges whose false discovery rate over donors is below this, such as 0.05; of up to ten a target.

        Returns
        -------
        Nodes are gene ids with ``name``, ``is_source`` (0 or 1), ``alpha``, ``beta``, ``detection`` (share of cells
        with the gene); edges have ``weight``, ``n_cells`` and, with up to ten a target, ``n_donors``, ``p_value`` and
        ``fdr``. What is missing is left out, and so are genes without an edge.

        Raises
        ------
        InputError
            There is no such state, or `max_fdr` is given and no edge has three donors.

        See Also
        --------
        GeneNetwork.to_graphml : Writes it.
        GeneNetwork.centrality : Which of its genes are central.

        Examples
        --------
        >>> import geneformer_repro as gf
        >>> graph = gf.GeneNetwork.open("runs/net").graph("Dendritic", top=3)
        >>> max(degree for _, degree in graph.in_degree())
        3
        """
        state = self.one_state(state)
        return graph_of(self._strongest(state, top, max_fdr), self._nodes(state))

    def to_graphml(
        self,
        path: str | Path,
        state: str | None = None,
        *,
        top: int = 10,
        max_fdr: float | None = None,
        max_edges: int | None = 5_000,
        modules: pd.DataFrame | None = None,
        overwrite: bool = False,
    ) -> "networkx.DiGraph[str]":
        """Write the strongest edges of a state for Cytoscape, igraph and others.

        Parameters
        ----------
        path
            The file, ``.graphml``.
        state, top, max_fdr
            As of `graph`.
        max_edges
            Of more edges the strongest are written, with a word in the log; None all.
        modules
            Result of `modules`: nodes have the number of theirs.
        overwrite
            Replace a file that is there.

        Returns
        -------
        What was written.

        Raises
        ------
        FileExistsError
            `path` exists.
        InputError
            There is no edge.

        See Also
        --------
        GeneNetwork.graph : The same in memory.

        Examples
        --------
        >>> import geneformer_repro as gf, networkx
        >>> network = gf.GeneNetwork.open("runs/net")
        >>> graph = network.to_graphml("dendritic.graphml", "Dendritic", top=3)
        >>> again = networkx.read_graphml("dendritic.graphml")
        >>> dict(again.nodes(data=True)) == dict(graph.nodes(data=True))
        True
        """
        state = self.one_state(state)
        nodes = self._nodes(state)
        nodes = nodes if modules is None else nodes.join(modules["module"])
        graph = graph_of(self._strongest(state, top, max_fdr), nodes)
        return write_graphml(graph, path, most_edges=max_edges, overwrite=overwrite)

    def centrality(self, state: str | None = None, *, top: int = 10, betweenness: bool = False) -> pd.DataFrame:
        """Return how central each gene is in a state's graph, and whether donors agree on it.

        Parameters
        ----------
        state, top
            As of `graph`.
        betweenness
            Also count shortest paths, which is slow beyond a thousand genes.

        Returns
        -------
        A row a gene with an edge, by id, the largest ``pagerank`` first: ``gene_name``, ``is_source``;
        ``out_strength``, ``in_strength``, sums of weights; ``pagerank``, by which a gene is central if central genes
        are its targets; ``betweenness``. A measure that agrees between donors, with a median Spearman correlation of
        0.5 or more, has a rank, 1 for the most central, in a column such as ``pagerank_rank``; the log says which have
        none. ``attrs["stability"]`` holds the correlations, ``attrs["beside"]`` each measure's correlation with
        detection, mean place and alpha, which it may merely repeat.

        See Also
        --------
        GeneNetwork.modules : Groups of genes.

        Examples
        --------
        >>> import geneformer_repro as gf
        >>> table = gf.GeneNetwork.open("runs/net").centrality("Dendritic")
        >>> sorted(table.attrs["stability"])
        ['in_strength', 'out_strength', 'pagerank']
        """
        state = self.one_state(state)
        pairs = self._strongest(state, top)
        of_donors = [strongest_pairs(*self._framed_pair(state, donor), top=top) for donor in self.donors[state]]
        of_donors = [of_donor for of_donor in of_donors if len(of_donor)]
        return centrality_table(pairs, self._nodes(state), of_donors, betweenness=betweenness)

    def modules(
        self, state: str | None = None, *, top: int = 10, resolution: float = 1.0, n_seeds: int = 20, seed: int = 0
    ) -> pd.DataFrame:
        """Find groups of genes that a state's graph ties together (Leiden), and say how stable they are.

        Parameters
        ----------
        state, top
            As of `graph`. Of two directions the larger weight counts; all genes as sources say most.
        resolution
            Of the modularity; higher values give more and smaller modules.
        n_seeds, seed
            Runs, with seeds from `seed` on.

        Returns
        -------
        A row a gene with an edge, by id: ``gene_name``, ``is_source``; ``module``, numbered from 0 by size: genes that
        are together in 80 % of the runs, at least three; and ``together``, how often the gene is with the others of its
        module. ``attrs`` holds ``modularity``, ``n_modules``, the ``agreement`` of runs (adjusted Rand index), that of
        networks without each donor, ``agreement_without_donor``, and the modularity of graphs with the same degrees,
        ``rewired_modularity``: modules that do not beat it are those of any graph.

        Raises
        ------
        MissingExtraError
            igraph is not installed: ``pip install 'geneformer-repro[network]'``.
        InputError
            There is no edge, or an option is out of range.

        See Also
        --------
        GeneNetwork.to_graphml : Writes modules beside genes.

        References
        ----------
        Traag, Waltman and van Eck, Scientific Reports 9, 5233 (2019), "From Louvain to Leiden".

        Examples
        --------
        >>> import geneformer_repro as gf
        >>> table = gf.GeneNetwork.open("runs/net").modules("Dendritic", n_seeds=5)
        >>> table.columns.tolist(), sorted(table.attrs["rewired_modularity"])
        (['gene_name', 'is_source', 'module', 'together'], ['max', 'mean'])
        """
        state = self.one_state(state)
        pairs = self._strongest(state, top)
        without = [self._without(state, donor, top) for donor in self.donors[state]]
        options: dict[str, Any] = {"resolution": resolution, "n_seeds": n_seeds, "seed": seed}
        return module_table(pairs, self._nodes(state), without, **options)

    def _strongest(self, state: str, top: int, max_fdr: float | None = None) -> pd.DataFrame:
        """Return the strongest pairs; with what donors say where the file has it."""
        require_top(top)
        if top > EDGES_A_TARGET:
            if max_fdr is not None:
                raise InputError(f"max_fdr is known of {EDGES_A_TARGET} sources of each target, found top={top}.")
            return strongest_pairs(*self._framed_pair(state, None), top=top)
        of_state = self.edges[self.edges["state"] == state]
        of_state = of_state[of_state.groupby("target").cumcount() < top]
        if max_fdr is None:
            return of_state
        if of_state["fdr"].isna().all():
            raise InputError(
                f"No edge of {state!r} has a false discovery rate: that takes three donors. Leave max_fdr out."
            )
        return of_state[of_state["fdr"] < max_fdr]

    def _framed_pair(self, state: str, donor: str | None) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Return weights and numbers of cells; all NaN where no pair has cells enough."""
        total, n = self.sums(state, donor)
        return self._framed(self._residual(state, total, n, donor)), self._framed(n)

    def _without(self, state: str, donor: str, top: int) -> pd.DataFrame:
        """Return the strongest pairs of a state without a donor."""
        (total, n), (of_donor, n_of_donor) = self.sums(state), self.sums(state, donor)
        total, n = total - of_donor, n - n_of_donor
        return strongest_pairs(self._framed(self._residual(state, total, n, None)), self._framed(n), top=top)

    def _residual(self, state: str, total: np.ndarray, n: np.ndarray, donor: str | None) -> np.ndarray:
        weights, masked = self._fitted_pairs(state, total, n, donor)
        if np.isnan(weights if masked is None else np.where(masked, np.nan, weights)).all():
            return np.full(total.shape, np.nan)
        return gene_effects(weights, n, masked=masked, overwrite_weights=True).residual

    def _nodes(self, state: str) -> pd.DataFrame:
        nodes = self.node_table(state)
        return nodes.assign(detection=nodes["n_cells"] / self.metadata["states"][state]["n_cells"])


def least_cells(min_cells: int, *, of_donor: bool) -> int:
    """Return how many cells a pair needs for a weight: in a state, or of a donor."""
    return max(1, min_cells // 4) if of_donor else min_cells


def mean_weights(
    total: np.ndarray, n: np.ndarray, *, least: int, scale: str, out: np.ndarray | None = None
) -> np.ndarray:
    """Return the mean over cells of each pair, in logs; NaN where fewer than `least` cells have both genes.

    Parameters
    ----------
    total, n
        As of `Sums`.
    least
        Cells that a pair needs, at least 1.
    scale
        "log": what was added up are logs. "lift": they are not, so the log (base 2) is taken of the mean.
    out
        Where to; may be `total`.
    """
    enough = n >= max(1, least)
    mean = np.divide(total, n, out=np.empty(total.shape) if out is None else out, where=enough)
    mean[~enough] = np.nan
    return np.log2(mean, out=mean) if scale == "lift" else mean


# The file of a group's sums


def write_sums(path: Path, total: np.ndarray, n: np.ndarray) -> None:
    """Write the pairs of which there are cells, in their order; a block of sources at a time is in memory."""
    with pq.ParquetWriter(path, _SUMS, compression="zstd", use_dictionary=["source", "n"]) as writer:
        for rows in blocks_of_sources(total.shape):
            source, target = np.nonzero(n[rows])
            columns = [source + rows.start, target, total[rows][source, target], n[rows][source, target]]
            arrays = [pa.array(column, kind) for column, kind in zip(columns, _SUMS.types, strict=True)]
            writer.write_table(pa.Table.from_arrays(arrays, schema=_SUMS))


def blocks_of_sources(shape: tuple[int, ...]) -> Iterator[slice]:
    """Cut sources into the blocks that are a row group each."""
    step = max(1, _PAIRS_AT_ONCE // max(1, shape[1]))
    return (slice(first, min(first + step, shape[0])) for first in range(0, shape[0], step))


def add_sums(path: Path, total: np.ndarray, n: np.ndarray) -> None:
    """Add a file of `write_sums` to sums of the same genes, block by block.

    Raises
    ------
    DataFormatError
        The file is damaged, or of other genes.
    """
    with reading_file(path), pq.ParquetFile(path) as file:
        for i in range(file.num_row_groups):
            add_block(file, i, total, n)


def add_block(file: pq.ParquetFile, i: int, total: np.ndarray, n: np.ndarray, *, first: int = 0) -> None:
    """Add one row group of a file of sums to sums of the sources from the `first` on."""
    table = file.read_row_group(i, columns=_SUMS.names)
    source, target, of_pairs, cells = (table.column(name).to_numpy() for name in _SUMS.names)
    source = source - first
    total[source, target] += of_pairs  # a pair stands once in a file
    n[source, target] += cells


def write_edges(path: Path, edges: pd.DataFrame) -> None:
    """Write a table of edges."""
    table = pa.Table.from_pandas(edges[list(EDGES)], schema=pa.schema(EDGES), preserve_index=False)
    with new_file(path) as aside:
        pq.write_table(table, aside, compression="zstd")
