"""Attention of many cells added up pair by pair, with one observer of the forward and no L × L matrix.

Of each cell a matrix of its own sources × its own targets is made: over all blocks and heads the sum of what is left of
log lifts when places are taken out, each head divided by its spread. It is then added to the sums of all genes; a gene
stands once in a cell, so that is one plain addition. Scores are float32 also where the network computes in bfloat16,
sums over cells float64.

Shapes: T tokens of a batch, N blocks, H heads, B bins of place, G genes, K sources and Q targets of a cell.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor

from geneformer_repro.attention import Attention
from geneformer_repro.batching import Batch
from geneformer_repro.in_silico.networks.gene_network import Sums
from geneformer_repro.in_silico.networks.gene_shares import GeneSums
from geneformer_repro.in_silico.networks.lifts import GeneTokens, log_lifts, received_lift, value_norms
from geneformer_repro.in_silico.networks.places import Places, PlaceSums, place_bins
from geneformer_repro.reading import Reader
from geneformer_repro.tokenizer.dataset import TokenizedDataset

Scale = Literal["log", "lift"]
Weight = Literal["attention", "value_norm"]


@dataclass(frozen=True)
class Roles:
    """Which genes are sources and targets: the number of the row and column of each token, -1 for none."""

    row: np.ndarray
    column: np.ndarray

    @cached_property
    def shape(self) -> tuple[int, int]:
        """Numbers of sources and targets."""
        return int((self.row >= 0).sum()), int((self.column >= 0).sum())

    @property
    def own(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns of genes that are both, so of pairs that are none."""
        both = (self.row >= 0) & (self.column >= 0)
        return self.row[both], self.column[both]


class PairSums:
    """Sums over cells of the weights of pairs, on the device that computes; 12 bytes a pair.

    Parameters
    ----------
    roles
        Which genes are sources and targets.
    device
        Where weights are made.
    """

    def __init__(self, roles: Roles, device: torch.device) -> None:
        where = torch.device("cpu") if device.type == "mps" else device  # which has no float64
        self._total_ST = torch.zeros(roles.shape, dtype=torch.float64, device=where)
        self._n_ST = torch.zeros(roles.shape, dtype=torch.int32, device=where)
        self._own = tuple(torch.from_numpy(numbers).to(where) for numbers in roles.own)

    def add(self, rows_K: Tensor, columns_Q: Tensor, weights_KQ: Tensor) -> None:
        """Add a cell's weights of its sources × its targets."""
        if self._n_ST.device.type == "cpu":
            sums = (self._total_ST.numpy(), self._n_ST.numpy())
            _add_pairs(*sums, *(given.cpu().numpy() for given in (rows_K, columns_Q, weights_KQ)))
            return
        where = rows_K[:, None], columns_Q[None]
        self._total_ST[where] += weights_KQ.to(self._total_ST.dtype)
        self._n_ST[where] += 1

    def sums(self) -> Sums:
        """Return what was added up; of a gene with itself 0."""
        self._total_ST[self._own], self._n_ST[self._own] = 0, 0
        return Sums(self._total_ST.cpu().numpy(), self._n_ST.cpu().numpy())

    def clear(self) -> None:
        """Begin anew, in the same memory."""
        self._total_ST.zero_()
        self._n_ST.zero_()


@numba.njit(nogil=True, cache=True)
def _add_pairs(total, n, rows, columns, weights):  # type: ignore[no-untyped-def]
    """Add weights and ones in one pass: 25 ms for 2,048 × 2,048 pairs, where torch's indexing takes 180."""
    for k in range(rows.shape[0]):
        for q in range(columns.shape[0]):
            total[rows[k], columns[q]] += weights[k, q]
            n[rows[k], columns[q]] += 1


@dataclass(frozen=True)
class HeadWeights:
    """How much of each head goes into a weight, and what of it belongs to places.

    Parameters
    ----------
    chosen_NH
        Which heads are averaged, of the blocks that run.
    places
        What is taken out; None: nothing, for attention as it is.
    scale
        "log": mean over heads of (log lift − mean of its places) / the head's spread. "lift": mean over heads of lift /
        mean of its places.
    weight
        "value_norm": attention is multiplied by the norm of the value that it brings.
    """

    chosen_NH: np.ndarray
    places: Places | None
    scale: Scale = "log"
    weight: Weight = "attention"

    @cached_property
    def of_head(self) -> np.ndarray:
        """What each head is multiplied by, (N, H); 0 for one that is not chosen, or attends evenly."""
        share = self.chosen_NH / max(1, self.chosen_NH.sum())
        if self.scale == "lift" or self.places is None:
            return share
        spread = self.places.spread
        return np.divide(share, spread, out=np.zeros(share.shape), where=spread > 0)

    @cached_property
    def of_places(self) -> np.ndarray:
        """What is taken out of a log weight, by bin of the query and of the key, (B, B)."""
        if self.places is None:
            return np.zeros((1, 1))
        means = self.places.means
        if self.scale == "lift":
            means = np.log2(means, out=np.zeros_like(means), where=means > 0)
        return np.einsum("nh,nhab->ab", self.of_head, means)


class _Cell(NamedTuple):
    """A cell of a batch that has sources and targets."""

    number: int
    tokens: GeneTokens
    sum_KQ: Tensor
    """What is being added up over blocks."""
    sources: Tensor
    """Places of its sources, as those of its targets."""
    targets: Tensor
    rows: Tensor
    """Of its sources in the sums, and columns of its targets."""
    columns: Tensor


def gene_tokens(batch: Batch, device: torch.device) -> list[GeneTokens]:
    """Return where the genes of each cell of a batch stand."""
    is_gene_T, starts = batch.genes_T.cpu().numpy(), np.cumsum([0, *batch.lengths])
    places = [
        (first + np.flatnonzero(is_gene_T[first:last]), first + np.flatnonzero(~is_gene_T[first:last]))
        for first, last in itertools.pairwise(starts)
    ]
    return [GeneTokens(*(torch.from_numpy(of_kind).to(device) for of_kind in pair)) for pair in places]


class AttentionWatch:
    """Observer of a batch that makes the weights of its cells' pairs.

    Parameters
    ----------
    reader
        The network.
    batch
        Its cells.
    roles, heads
        Which genes and heads.
    """

    def __init__(self, reader: Reader, batch: Batch, roles: Roles, heads: HeadWeights) -> None:
        self._reader, self._heads = reader, heads
        device = reader.device
        self._weight_NH = torch.from_numpy(heads.of_head).float().to(device)
        self.cells = list(self._cells(batch, roles, device))
        longest = max(batch.lengths, default=0)
        self._bins = torch.from_numpy(place_bins(longest)).to(device)

    @staticmethod
    def _cells(batch: Batch, roles: Roles, device: torch.device) -> Iterator[_Cell]:
        ids_T = batch.input_ids_T.cpu().numpy()
        for number, tokens in enumerate(gene_tokens(batch, device)):
            of_cell = ids_T[tokens.genes_G.cpu().numpy()]
            rows, columns = roles.row[of_cell], roles.column[of_cell]
            sources, targets = np.flatnonzero(rows >= 0), np.flatnonzero(columns >= 0)
            if len(sources) and len(targets):
                known = (sources, targets, rows[sources], columns[targets])
                places = tuple(torch.from_numpy(each).to(device) for each in known)
                yield _Cell(number, tokens, torch.zeros(len(sources), len(targets), device=device), *places)

    def __call__(self, layer: int, attention: Attention) -> None:
        """Add what a block's heads say of each cell's pairs."""
        weight_H = self._weight_NH[layer]
        if not self._heads.of_head[layer].any():
            return
        norm_TH = norms_of(self._reader, layer, attention, self._heads.weight)
        for cell in self.cells:
            lifts = log_lifts(attention, cell.tokens, queries=cell.targets, keys=cell.sources, norm_TH=norm_TH)
            if self._heads.scale == "log":
                lifts.add_weighted(weight_H, cell.sum_KQ)
                continue
            for rows, log_HQK in lifts.blocks():
                relative_HQK = log_HQK.exp2_() / self._expected(layer, cell, rows)
                cell.sum_KQ[:, rows] += torch.einsum("hqk,h->kq", relative_HQK, weight_H)

    def _expected(self, layer: int, cell: _Cell, rows: slice) -> Tensor | float:
        """Return the mean lift at the places of a cell's pairs, (H, Q, K)."""
        if self._heads.places is None:
            return 1.0
        means_HBB = torch.from_numpy(self._heads.places.means[layer]).float().to(self._reader.device)
        return means_HBB[:, self._bins[cell.targets[rows]][:, None], self._bins[cell.sources]]

    def add_to(self, sums: PairSums) -> None:
        """Add what all blocks came to, less what belongs to places."""
        of_places = torch.from_numpy(self._heads.of_places).float().to(self._reader.device)
        for cell in self.cells:
            if self._heads.scale == "log" and self._heads.places is not None:
                cell.sum_KQ.sub_(of_places[self._bins[cell.targets][None], self._bins[cell.sources][:, None]])
            sums.add(cell.rows, cell.columns, cell.sum_KQ)


def norms_of(reader: Reader, layer: int, attention: Attention, weight: Weight) -> Tensor | None:
    """Return what attention is multiplied by, of each token and head; None for nothing."""
    if weight == "attention":
        return None
    block: Any = reader.bert.encoder.layer[layer]
    return value_norms(attention.value_THE, block.attention.output.dense)


def add_attention(reader: Reader, batch: Batch, roles: Roles, heads: HeadWeights, sums: PairSums) -> None:
    """Read a batch; add the weights of its cells' pairs."""
    watch = AttentionWatch(reader, batch, roles, heads)
    reader.watch(batch, watch)
    with reader.reading():
        watch.add_to(sums)


class Calibration(NamedTuple):
    """What a few hundred cells say of heads and genes, before sums are made."""

    places: Places
    mass: np.ndarray
    """Sum over cells of the attention that each gene receives, mean of the chosen heads, states × genes."""
    n: np.ndarray
    """Cells of which it is the sum."""


def calibrate(
    reader: Reader,
    cells: TokenizedDataset,
    rows: np.ndarray,
    states: Sequence[int],
    *,
    n_states: int,
    chosen_NH: np.ndarray,
    gene_of_token: np.ndarray,
    n_bins: int,
    scale: Scale = "log",
    weight: Weight = "attention",
) -> Calibration:
    """Read cells for the means of places, what genes explain beside them, and the attention that genes receive.

    Parameters
    ----------
    reader
        The network, up to the last block that is looked at.
    cells, rows
        Cells, and the row numbers of those that are read.
    states, n_states
        Number of the state of each, and how many there are.
    chosen_NH
        Heads that are averaged.
    gene_of_token
        Number of each token's gene, -1 for none.
    n_bins
        Bins of place, enough for the longest cell that is to come.
    scale, weight
        As of `HeadWeights`.
    """
    n_layers, n_heads = chosen_NH.shape
    sums = PlaceSums(n_layers, n_heads, n_bins, of_logs=scale == "log", device=reader.device)
    of_genes = GeneSums(n_layers, n_heads, len(gene_of_token), n_bins, device=reader.device)
    shape = (n_states, int(gene_of_token.max()) + 1)
    mass, n = np.zeros(shape), np.zeros(shape, dtype=np.int32)
    share_NH = torch.from_numpy(chosen_NH / max(1, chosen_NH.sum())).float().to(reader.device)
    for batch in reader.batches(cells, rows):
        tokens = gene_tokens(batch, reader.device)
        received = [torch.zeros(len(of_cell.genes_G), device=reader.device) for of_cell in tokens]
        ids_T = batch.input_ids_T.cpu().numpy()
        ids = [ids_T[of_cell.genes_G.cpu().numpy()] for of_cell in tokens]
        first = of_genes.count(ids)

        def watch(
            layer: int, attention: Attention, tokens: list = tokens, received: list = received, first: int = first
        ) -> None:
            if not chosen_NH[layer].any():
                return
            norm_TH = norms_of(reader, layer, attention, weight)
            for i, of_cell in enumerate(tokens):
                of_genes.add(layer, first + i, sums.add(layer, log_lifts(attention, of_cell, norm_TH=norm_TH)))
                received[i] += received_lift(attention, i, of_cell) @ share_NH[layer]

        reader.watch(batch, watch)
        for row, of_cell, attended in zip(batch.rows, ids, received, strict=True):
            sums.count(len(of_cell))
            genes = gene_of_token[of_cell]
            mass[states[row], genes[genes >= 0]] += attended.double().cpu().numpy()[genes >= 0]
            n[states[row], genes[genes >= 0]] += 1
    places = sums.result()
    by_sources_NH, by_genes_NH = of_genes.shares(places)
    return Calibration(replace(places, by_sources_NH=by_sources_NH, by_genes_NH=by_genes_NH), mass, n)
