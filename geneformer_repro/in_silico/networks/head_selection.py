"""Heads of a network chosen by known edges, of half of the sources: only the other half can say what that is worth.

Choosing heads by known edges and scoring them on the same edges finds what it was given. So sources are cut in two by a
hash of their id, the same cut for every network and reference; each head is scored on the edges of one half, as
`evaluate_network` scores a network (AUROC among targets of like detection and place, gene effects out); the best
quarter is averaged; and the evaluation of such a network leaves out the sources that chose. Every head is scored on the
other half, too, which chooses nothing: how far the two halves agree on heads says whether there was anything to choose.

A few hundred cells are read once more, one observer a head: products of a cell's known sources with its targets, a few
per cent of its forward.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from geneformer_repro.attention import Attention
from geneformer_repro.batching import Batch
from geneformer_repro.errors import DataFormatError, InputError
from geneformer_repro.in_silico.networks import edge_scores as scores
from geneformer_repro.in_silico.networks.attention_sums import AttentionWatch, HeadWeights, PairSums, Roles
from geneformer_repro.in_silico.networks.gene_effects import gene_effects
from geneformer_repro.in_silico.networks.gene_network import Sums, mean_weights
from geneformer_repro.in_silico.networks.known_edges import read_known_edges
from geneformer_repro.in_silico.networks.network_graphs import scores_of
from geneformer_repro.progress import progress
from geneformer_repro.reading import Reader
from geneformer_repro.tokenizer.dataset import TokenizedDataset
from geneformer_repro.tokenizer.genes import GivenGenes

Half = Literal["first", "second"]
HALVES: tuple[Half, ...] = get_args(Half)
SELECTED_SHARE = 4
"""One head in so many is chosen, rounded up."""
SELECTION_CELLS = 1000
"""Most cells, drawn evenly from the groups, that heads are scored on."""
FEWEST_SOURCES = 3
"""With a known edge, that each half needs."""
BYTES_OF_HEAD = 12
"""Memory of a head for a pair of a known source and a target while heads are scored."""


def half_of(gene_id: str) -> int:
    """Return the half that a source is in: the parity of the first byte of the SHA-256 of its id."""
    return hashlib.sha256(gene_id.encode()).digest()[0] % 2


@dataclass(frozen=True, eq=False)
class KnownHalves:
    """Known edges of a network's sources, cut in two by their source.

    Parameters
    ----------
    name
        What the reference is called.
    edges
        ``source`` and ``target``, gene ids of the network.
    choosing
        The half whose edges choose heads.
    """

    name: str
    edges: pd.DataFrame
    choosing: Half

    @classmethod
    def read(cls, known: pd.DataFrame | str | Path, genes: pd.DataFrame, choosing: Half) -> "KnownHalves":
        """Read a table of edges as `read_known_edges` does.

        Parameters
        ----------
        known
            The table, or its file.
        genes
            Of the network, by id: ``gene_name``, ``is_source``, ``is_target``.
        choosing
            "first" or "second".

        Raises
        ------
        DataFormatError
            There is no column of sources or of targets.
        InputError
            A half has fewer than three sources with a known edge within the network.
        """
        if choosing not in HALVES:
            raise InputError(f"select_on must be one of {', '.join(map(repr, HALVES))}, found {choosing!r}.")
        name = "known" if isinstance(known, pd.DataFrame) else Path(known).stem
        read = read_known_edges(known, GivenGenes.named(genes.index, genes["gene_name"].fillna("")), name=name).edges
        inside = (
            genes["is_source"].reindex(read["source"]).to_numpy()
            & genes["is_target"].reindex(read["target"]).to_numpy()
        )
        found = cls(name, read.loc[inside, ["source", "target"]].reset_index(drop=True), choosing)
        of_halves = [len(found.sources_of(half)) for half in range(2)]
        if min(of_halves) < FEWEST_SOURCES:
            raise InputError(
                f"select={name!r}: {of_halves[0]} and {of_halves[1]} sources of the network's two halves have a known "
                f"edge within it, and heads are chosen by one half of at least {FEWEST_SOURCES} and judged on the "
                "other. Name more sources, take more cells, another reference, or leave select= out."
            )
        return found

    @cached_property
    def sources(self) -> list[str]:
        """Ids of all sources with a known edge, in order."""
        return sorted(set(self.edges["source"]))

    def sources_of(self, half: int) -> list[str]:
        """Ids of those of a half, 0 or 1."""
        return [gene for gene in self.sources if half_of(gene) == half]

    @property
    def choosers(self) -> list[str]:
        """Ids of the sources whose edges choose: nothing can be said of these."""
        return self.sources_of(HALVES.index(self.choosing))

    def describe(self) -> dict[str, Any]:
        """Say what chooses, as JSON can hold it."""
        listed = self.edges.sort_values(["source", "target"]).to_csv(index=False)
        return {"known": self.name, "on": self.choosing, "edges": hashlib.sha256(listed.encode()).hexdigest()}


class StateGenes(NamedTuple):
    """What a state's cells say of the network's targets."""

    n_with_gene: np.ndarray
    mean_place: np.ndarray


@dataclass(frozen=True, eq=False)
class HeadChoice:
    """What each head scores on known edges, and which are chosen.

    Parameters
    ----------
    candidates
        Layer and head of each that could be chosen, (n, 2).
    auroc
        Matched AUROC of each on the edges of the first and of the second half, (2, n); NaN where a half has no edge
        that can be compared.
    known
        What chose.
    n_cells
        Cells that were read.
    """

    candidates: np.ndarray
    auroc: np.ndarray
    known: KnownHalves
    n_cells: int

    @cached_property
    def is_chosen(self) -> np.ndarray:
        """Whether each candidate is: the best quarter on the choosing half, of equal ones the first."""
        of_half = self.auroc[HALVES.index(self.known.choosing)]
        if np.isnan(of_half).all():
            raise InputError(
                f"select={self.known.name!r}: no known edge of the {self.known.choosing} half can be compared with "
                "another pair of its source, as too few cells have both genes. Take more cells, a lower min_cells, or "
                "leave select= out."
            )
        n_chosen = math.ceil(len(of_half) / SELECTED_SHARE)
        chosen = np.zeros(len(of_half), dtype=bool)
        chosen[np.argsort(-np.nan_to_num(of_half, nan=-np.inf), kind="stable")[:n_chosen]] = True
        return chosen

    def averaged(self, shape: tuple[int, int]) -> np.ndarray:
        """Return which heads are averaged, blocks × heads."""
        chosen = np.zeros(shape, dtype=bool)
        chosen[tuple(self.candidates[self.is_chosen].T)] = True
        return chosen

    def describe(self) -> dict[str, Any]:
        """Say what was chosen, as JSON can hold it."""
        agreement = float(spearmanr(*self.auroc).statistic) if len(self.candidates) > 2 else np.nan
        edges = self.known.edges
        n_edges = [int(edges["source"].isin(self.known.sources_of(half)).sum()) for half in range(2)]
        return {
            **self.known.describe(),
            "sources": self.known.choosers,
            "n_sources": [len(self.known.sources_of(half)) for half in range(2)],
            "n_edges": n_edges,
            "n_heads": int(self.is_chosen.sum()),
            "n_candidates": len(self.candidates),
            "n_cells": self.n_cells,
            "agreement": None if np.isnan(agreement) else agreement,
        }

    def columns(self) -> pd.DataFrame:
        """Return what is known of each candidate: ``layer``, ``head``, ``first_half``, ``second_half``, ``chosen``."""
        layer, head = self.candidates.T
        first, second = self.auroc
        scored = {"layer": layer, "head": head, "first_half": first, "second_half": second}
        return pd.DataFrame(scored | {"chosen": self.is_chosen})

    def save(self, path: Path) -> None:
        """Write the scores."""
        self.columns().drop(columns="chosen").assign(n_cells=self.n_cells).to_parquet(path)

    @classmethod
    def open(cls, path: Path, known: KnownHalves) -> "HeadChoice":
        """Read what `save` wrote.

        Raises
        ------
        DataFormatError
            It is another file.
        """
        table = pd.read_parquet(path)
        if lacking := {"layer", "head", "first_half", "second_half", "n_cells"} - set(table):
            raise DataFormatError(f"{path}: lacks {sorted(lacking)}. Remove it, and it is made again.")
        auroc = table[["first_half", "second_half"]].to_numpy().T
        return cls(table[["layer", "head"]].to_numpy(), auroc, known, int(table["n_cells"].iloc[0]))


class HeadScores:
    """Heads scored one by one on known edges.

    Parameters
    ----------
    reader
        The network, up to the last block with a candidate.
    candidates
        Weights of each head alone.
    known
        The edges.
    genes
        Of the network, by id: ``is_source``, ``is_target``.
    roles
        Rows and columns of the network's sources and targets.
    least, scale
        Cells that a pair needs, and of what sums are, as of `mean_weights`.
    """

    def __init__(
        self,
        reader: Reader,
        candidates: Sequence[HeadWeights],
        known: KnownHalves,
        genes: pd.DataFrame,
        roles: Roles,
        *,
        least: int,
        scale: str,
    ) -> None:
        self._reader, self._candidates, self._least, self._scale = reader, candidates, least, scale
        sources, targets = (genes.index[genes[name]] for name in ("is_source", "is_target"))
        row_of_source = np.full(len(sources) + 1, -1)  # the last for genes that are no source
        row_of_source[sources.get_indexer(pd.Index(known.sources))] = np.arange(len(known.sources))
        self._roles = Roles(row_of_source[roles.row], roles.column)
        self._half_of_row = np.array([half_of(gene) for gene in known.sources])
        self._is_known = np.zeros(self._roles.shape, dtype=bool)
        ends = ((pd.Index(known.sources), "source"), (targets, "target"))
        self._is_known[tuple(ids.get_indexer(pd.Index(known.edges[end])) for ids, end in ends)] = True
        self._wins, self._weight = np.zeros((2, 2, len(candidates)))

    def read(
        self, cells: TokenizedDataset, rows: np.ndarray, states: np.ndarray, of_states: Sequence[StateGenes]
    ) -> None:
        """Read cells; score every head on the pairs of each state.

        Parameters
        ----------
        cells, rows
            Cells, and the row numbers of those that are read.
        states
            Number of the state of each.
        of_states
            What is known of targets in each.
        """
        sums = [PairSums(self._roles, self._reader.device) for _ in self._candidates]
        with progress("choose heads", total=int(cells.lengths[rows].sum()), unit="tokens") as bar:
            for state, of_state in enumerate(of_states):
                for one in sums:
                    one.clear()
                for batch in self._reader.batches(cells, rows[states == state]):
                    self._add(batch, sums)
                    bar.update(len(batch.input_ids_T))
                for i, one in enumerate(sums):
                    self.add_scores(i, one.sums(), of_state)

    def _add(self, batch: Batch, sums: Sequence[PairSums]) -> None:
        watches = [AttentionWatch(self._reader, batch, self._roles, one) for one in self._candidates]

        def watch(layer: int, attention: Attention) -> None:
            for one in watches:
                one(layer, attention)

        self._reader.watch(batch, watch)
        with self._reader.reading():
            for one, of_head in zip(watches, sums, strict=True):
                one.add_to(of_head)

    def add_scores(self, head: int, sums: Sums, of_state: StateGenes) -> None:
        """Add what a head's weights in a state score on the edges of each half."""
        bins = scores.matched_bins(of_state.n_with_gene, of_state.mean_place)
        weights = mean_weights(*sums, least=self._least, scale=self._scale)
        for half in range(2):
            of_half = self._half_of_row == half
            wins, weight = matched_wins(weights[of_half], sums.n[of_half], self._is_known[of_half], bins)
            self._wins[half, head] += wins
            self._weight[half, head] += weight

    def auroc(self) -> np.ndarray:
        """Return the matched AUROC of each head on each half, (2, heads)."""
        return np.divide(self._wins, self._weight, out=np.full(self._wins.shape, np.nan), where=self._weight > 0)


def matched_wins(weights: np.ndarray, n: np.ndarray, is_known: np.ndarray, bins: np.ndarray) -> tuple[float, float]:
    """Return Σ w·AUROC and Σ w over strata of a source and its targets of one bin, w = edges × other pairs.

    Parameters
    ----------
    weights
        Mean weights, sources × targets; NaN where a pair has none. Effects of both genes are fitted to these alone.
    n
        Cells of each pair.
    is_known
        Whether each pair is a known edge.
    bins
        Of each target.
    """
    if np.isnan(weights).all():
        return 0.0, 0.0
    score = scores_of(gene_effects(weights, n).residual, n)
    pairs = scores.Pairs.of(np.isfinite(score))
    along = pairs.source, pairs.target
    stratified = scores.Stratified(score[along], scores.strata_of(pairs, bins), pairs.source, pairs.n_sources)
    wins, weight = stratified.of_sources(np.flatnonzero(is_known[along]))
    return float(wins.sum()), float(weight.sum())


def single_heads(chosen_NH: np.ndarray, heads: HeadWeights) -> tuple[np.ndarray, list[HeadWeights]]:
    """Return layer and head of each head that is chosen, (n, 2), and the weights of a network of it alone."""
    candidates = np.argwhere(chosen_NH)
    alone = []
    for layer, head in candidates:
        one = np.zeros_like(chosen_NH)
        one[layer, head] = True
        alone.append(HeadWeights(one, heads.places, heads.scale, heads.weight))
    return candidates, alone
