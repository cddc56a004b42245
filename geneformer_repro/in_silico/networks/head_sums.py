"""How much each head of a model attends to each gene: sums over cells, added up part by part.

How much a gene is attended is a mean over all queries of a product of query and key, so the product of the mean query
and the key: no L × L matrix is made, and a cell costs its forward pass and little more.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor

from geneformer_repro.attention import Attention
from geneformer_repro.in_silico.networks.attention_sums import gene_tokens
from geneformer_repro.in_silico.networks.lifts import GeneTokens, LogLifts, log_lifts
from geneformer_repro.in_silico.networks.places import place_bins
from geneformer_repro.reading import Reader
from geneformer_repro.tokenizer.dataset import TokenizedDataset


@dataclass(frozen=True, eq=False)
class Attended:
    """How much each gene is attended, by head; heads of all blocks one behind the other."""

    of_gene: np.ndarray
    """Genes of the vocabulary × heads, mean over donors of means over cells; NaN of a gene that no cell has."""
    n_cells: np.ndarray
    mean_place: np.ndarray
    profile: np.ndarray
    """Bins of place × heads."""
    on_specials: np.ndarray
    heads: np.ndarray
    """Layer and head of each column, (heads, 2)."""
    tokens: np.ndarray | None
    """Tokens of all cells × heads, where they are pooled."""
    gene_of_token: np.ndarray | None


class HeadShape(NamedTuple):
    """What decides the size of sums."""

    n_donors: int
    n_genes: int
    longest: int
    """Tokens of the longest of all cells."""
    n_layers: int
    n_heads: int

    @property
    def n_columns(self) -> int:
        """Heads of all blocks."""
        return self.n_layers * self.n_heads


class HeadSums:
    """Sums over cells, of a part of them or of all.

    Parameters
    ----------
    shape
        Of what.
    pooled
        Whether all tokens are kept, too.
    """

    def __init__(self, shape: HeadShape, *, pooled: bool) -> None:
        self._shape, self._pooled, self._bins = shape, pooled, place_bins(shape.longest)
        n_bins, n_columns = int(self._bins[-1]) + 1, shape.n_columns
        self._sum = np.zeros((shape.n_donors, shape.n_genes, n_columns))
        self._n = np.zeros((shape.n_donors, shape.n_genes), dtype=np.int64)
        self._place = np.zeros(shape.n_genes)
        self._profile, self._n_profile = np.zeros((n_bins, n_columns)), np.zeros(n_bins)
        self._on_specials, self._n_cells = np.zeros(n_columns), np.zeros(1, dtype=np.int64)
        self._tokens: list[np.ndarray] = []
        self._genes: list[np.ndarray] = []

    def read(
        self,
        reader: Reader,
        cells: TokenizedDataset,
        rows: np.ndarray,
        donors: np.ndarray,
        *,
        show: Callable[[int], object],
    ) -> "HeadSums":
        """Read cells and add what their genes get; return the sums.

        Parameters
        ----------
        reader
            The network.
        cells, rows
            Cells, and the row numbers of those that are read.
        donors
            Number of the donor of each.
        show
            Called with the number of tokens of each batch.
        """
        for batch in reader.batches(cells, rows):
            tokens = gene_tokens(batch, reader.device)
            watch = _Watch(tokens)
            reader.watch(batch, watch)
            ids_T = batch.input_ids_T.cpu().numpy()
            for row, of_cell, seen in zip(batch.rows, tokens, watch.result(), strict=True):
                genes = cells.vocabulary.genes_of(ids_T[of_cell.genes_G.cpu().numpy()])
                self._add(int(donors[row]), genes, *seen)
            show(len(batch.input_ids_T))
        return self

    def _add(self, donor: int, genes: np.ndarray, got: np.ndarray, lost: np.ndarray) -> None:
        """Add a cell; one of a single gene says nothing."""
        if len(genes) < 2:
            return
        self._sum[donor, genes] += got
        self._n[donor, genes] += 1
        self._place[genes] += np.arange(len(genes))
        np.add.at(self._profile, self._bins[: len(genes)], got)
        self._n_profile += np.bincount(self._bins[: len(genes)], minlength=len(self._n_profile))
        self._on_specials += lost
        self._n_cells += 1
        if self._pooled:
            self._tokens.append(got.astype(np.float32))
            self._genes.append(genes)

    def _small(self) -> dict[str, np.ndarray]:
        return {
            "place": self._place,
            "profile": self._profile,
            "n_profile": self._n_profile,
            "on_specials": self._on_specials,
            "n_cells": self._n_cells,
        }

    def tensors(self) -> dict[str, np.ndarray]:
        """Return the sums as they are kept: of genes and donors only what some cell has."""
        donor, gene = np.nonzero(self._n)
        of_genes = {"donor": donor, "gene": gene, "sum": self._sum[donor, gene], "n": self._n[donor, gene]}
        if self._pooled:
            empty = np.zeros((0, self._shape.n_columns), dtype=np.float32)
            of_genes["tokens"] = np.concatenate([empty, *self._tokens])
            of_genes["gene_of_token"] = np.concatenate([np.zeros(0, dtype=np.int64), *self._genes])
        return {
            name: np.ascontiguousarray(of) for name, of in (of_genes | self._small()).items()
        }  # as safetensors needs

    def save(self, path: Path) -> None:
        """Write them."""
        save_file(self.tensors(), path)

    def add_file(self, path: Path) -> None:
        """Add what `save` wrote."""
        self.add_tensors(load_file(path))

    def add_tensors(self, read: dict[str, np.ndarray]) -> None:
        """Add what `tensors` returned."""
        self._sum[read["donor"], read["gene"]] += read["sum"]
        self._n[read["donor"], read["gene"]] += read["n"]
        for name, total in self._small().items():
            total += read[name]
        if self._pooled:
            self._tokens.append(read["tokens"])
            self._genes.append(read["gene_of_token"])

    def result(self) -> Attended:
        """Return means."""
        n, shape = self._n[..., None], self._shape
        of_donors = np.divide(self._sum, n, out=np.zeros_like(self._sum), where=n > 0)
        n_donors, n_cells = np.sum(self._n > 0, axis=0), self._n.sum(0)
        return Attended(
            of_gene=ratio(of_donors.sum(0), n_donors[:, None]),
            n_cells=n_cells,
            mean_place=ratio(self._place, n_cells),
            profile=ratio(self._profile, self._n_profile[:, None]),
            on_specials=self._on_specials / max(1, int(self._n_cells[0])),
            heads=np.indices((shape.n_layers, shape.n_heads)).reshape(2, -1).T,
            tokens=np.concatenate(self._tokens) if self._tokens else None,
            gene_of_token=np.concatenate(self._genes) if self._genes else None,
        )


class _Watch:
    """Observer of a batch: of each cell what its genes get, (G, heads), and what special tokens get, (heads,)."""

    def __init__(self, tokens: Sequence[GeneTokens]) -> None:
        self._tokens = tokens
        self._seen: list[list[tuple[Tensor, Tensor]]] = [[] for _ in tokens]

    def __call__(self, layer: int, attention: Attention) -> None:
        """Look at one block."""
        for seen, tokens in zip(self._seen, self._tokens, strict=True):
            lifts = log_lifts(attention, tokens)
            seen.append((mean_over_queries(lifts), lifts.on_specials_QH.mean(0)))

    def result(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return both of each cell, blocks one behind the other."""
        return [
            (torch.cat([got for got, _ in seen], 1).cpu().numpy(), torch.cat([lost for _, lost in seen]).cpu().numpy())
            for seen in self._seen
        ]


def mean_over_queries(lifts: LogLifts) -> Tensor:
    """Return the mean log lift of each key over the other genes' queries, (K, H); all genes are queries and keys.

    A product of the summed query with each key, less the gene's own. NaN in a cell of one gene.
    """
    total_KH = (lifts.query_QHE.sum(0) * lifts.key_KHE).sum(-1) + lifts.of_query_QH.sum(0)
    own_KH = (lifts.query_QHE * lifts.key_KHE).sum(-1) + lifts.of_query_QH
    return (total_KH - own_KH) / (len(lifts.query_QHE) - 1)


def ratio(total: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Return total / n; NaN where n is 0."""
    return np.divide(total, n, out=np.full(total.shape, np.nan), where=n > 0)
