"""Attention of mean queries and keys: a network from one softmax over genes, whatever the number of cells.

As scPRINT makes it: queries and keys are averaged over cells, gene by gene, and attend once. That costs memory for
genes × channels and hardly more time than a forward; but no cell has that attention, places are not taken out, and the
mean of an exponential is not the exponential of a mean. For speed, by name, and as a baseline.

Shapes: N blocks, G genes, H heads, E channels, S sources, R targets.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from geneformer_repro.attention import Attention
from geneformer_repro.batching import Batch
from geneformer_repro.in_silico.networks.attention_sums import Roles
from geneformer_repro.in_silico.networks.gene_network import Sums
from geneformer_repro.in_silico.networks.lifts import BITS
from geneformer_repro.reading import Reader
from geneformer_repro.tokenizer.dataset import TokenizedDataset

_QUERIES_AT_ONCE = 256


class MeanQueryKey:
    """Sums of queries and keys of each gene over cells, of the blocks that are looked at.

    Parameters
    ----------
    chosen_NH
        Heads that are averaged.
    n_channels
        Of a head.
    gene_of_token
        Number of each token's gene, -1 for none.
    """

    def __init__(self, chosen_NH: np.ndarray, n_channels: int, gene_of_token: np.ndarray) -> None:
        self._chosen_NH, self._gene_of_token = chosen_NH, torch.from_numpy(gene_of_token)
        shape = (len(chosen_NH), int(gene_of_token.max()) + 1, chosen_NH.shape[1], n_channels)
        self.query_NGHE, self.key_NGHE = (torch.zeros(shape, dtype=torch.float64) for _ in range(2))
        self.n_G = torch.zeros(shape[1], dtype=torch.float64)

    def add(self, reader: Reader, batch: Batch) -> None:
        """Read a batch; add queries and keys of its genes."""
        genes_T = self._gene_of_token[batch.input_ids_T.cpu()]
        is_known_T = genes_T >= 0
        genes_M = genes_T[is_known_T]

        def watch(layer: int, attention: Attention) -> None:
            if self._chosen_NH[layer].any():
                for sums_GHE, rows_THE in (
                    (self.query_NGHE[layer], attention.query_THE),
                    (self.key_NGHE[layer], attention.key_THE),
                ):
                    sums_GHE.index_add_(0, genes_M, rows_THE.cpu()[is_known_T].double())

        reader.watch(batch, watch)
        self.n_G.index_add_(0, genes_M, torch.ones(len(genes_M), dtype=torch.float64))

    def save(self, path: Path) -> None:
        """Write the sums."""
        save_file({"query": self.query_NGHE, "key": self.key_NGHE, "n": self.n_G}, path)

    def add_file(self, path: Path) -> None:
        """Add what `save` wrote."""
        read = load_file(path)
        self.query_NGHE += read["query"]
        self.key_NGHE += read["key"]
        self.n_G += read["n"]

    def weights(self, roles: Roles) -> np.ndarray:
        """Return the mean over heads of log lifts of all pairs, each head by its spread: sources × targets.

        NaN where no cell has a gene.
        """
        known_G = self.n_G > 0
        mean_G11 = self.n_G.clamp(min=1)[:, None, None]
        rows, columns = (self._by_number(numbers) for numbers in (roles.row, roles.column))
        weight_SR = np.zeros((len(rows), len(columns)))
        for layer, head in np.argwhere(self._chosen_NH):
            query_GE, key_GE = (
                (sums_NGHE[layer] / mean_G11)[:, head].float() for sums_NGHE in (self.query_NGHE, self.key_NGHE)
            )
            lift_SR = np.concatenate(list(_log_lifts(query_GE[columns], key_GE, known_G, rows)), axis=1)
            spread = np.nanstd(lift_SR)
            if spread > 0:
                weight_SR += (lift_SR - np.nanmean(lift_SR)) / spread / self._chosen_NH.sum()
        weight_SR[:, ~known_G[columns].numpy()] = np.nan
        weight_SR[~known_G[rows].numpy()] = np.nan
        return weight_SR

    def _by_number(self, numbers: np.ndarray) -> Tensor:
        """Return the gene of each row or column."""
        genes = torch.empty(int(numbers.max()) + 1, dtype=torch.long)
        has = torch.from_numpy(numbers >= 0)
        genes[torch.from_numpy(numbers)[has]] = self._gene_of_token[has]
        return genes


def _log_lifts(query_RE: Tensor, key_GE: Tensor, known_G: Tensor, rows: Tensor) -> Iterator[np.ndarray]:
    """Yield log lifts of sources × some targets at a time; NaN for a source that no cell has."""
    key_GE = key_GE / math.sqrt(key_GE.shape[1])
    absent_G = torch.where(known_G, 0.0, -torch.inf)
    for query_QE in query_RE.split(_QUERIES_AT_ONCE):
        score_QG = query_QE @ key_GE.T + absent_G
        log_weight_QS = score_QG[:, rows] - score_QG.logsumexp(1, keepdim=True)
        lift_SQ = (log_weight_QS * BITS + math.log2(float(known_G.sum()))).T.numpy().astype(np.float64)
        lift_SQ[~known_G[rows].numpy()] = np.nan
        yield lift_SQ


def pair_counts(cells: TokenizedDataset, rows: np.ndarray, roles: Roles) -> np.ndarray:
    """Return how many of some cells have both genes of each pair, int32; of a gene with itself 0."""
    n = np.zeros(roles.shape, dtype=np.int32)
    for row in rows:
        tokens = cells[int(row)]
        sources, targets = roles.row[tokens], roles.column[tokens]
        n[np.ix_(sources[sources >= 0], targets[targets >= 0])] += 1
    n[roles.own] = 0
    return n


def as_sums(weights: np.ndarray, n: np.ndarray) -> Sums:
    """Return sums whose mean is what the mean queries and keys say: they are not added up cell by cell."""
    is_known = ~np.isnan(weights)
    return Sums(np.where(is_known, weights, 0.0) * n, np.where(is_known, n, 0).astype(np.int32))
