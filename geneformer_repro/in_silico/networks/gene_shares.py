"""What genes explain of each head's weights when places are taken out, from the same cells and without pairs.

Some genes are attended, or attend, more than others at their places, whomever they meet: that is no edge. How much it
is of a head's variance says how much the head has to say about pairs at all. Both effects are fitted together by least
squares over all pairs of all cells, and exactly: a cell's genes are all paired with each other, so the normal equations
hold only sums of each gene's pairs, counts, and the table of cells × genes. In the sum and the difference of the two
effects they fall apart into a diagonal and a matrix of that table's rank, so the largest system is cells × cells (200 ×
200). Sums take 16 bytes a head and token of the vocabulary, and as much a head, cell and bin of place.

Pairs of a gene in one cell share a query or key, so they are no replicates; cells are. What the means of as many genes
without any effect would explain is therefore judged by how a gene differs between cells, and taken off (adjusted R²
whose error is that of genes within cells): where a gene's effect is new in each cell, the share is 0 but for chance.
The usual correction, by the number of pairs, would take off next to nothing.

Shapes: N blocks, H heads, B bins of place, C cells, G genes.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from geneformer_repro.in_silico.networks.places import Places, place_bins

_FEWEST = 3
"""Genes of a cell of which effects of both genes can be told; shorter cells are left out of the fit."""
_NOTHING = 1e-10
"""Eigenvalue below which genes of one group of cells are in no cell with those of another."""


class GeneSums:
    """Sums of each gene's pairs over calibration cells, as key and as query, on the device.

    Parameters
    ----------
    n_layers, n_heads, n_tokens, n_bins
        Blocks that are looked at, heads of each, tokens of the vocabulary, bins of place.
    device
        Where the tokens are.
    """

    def __init__(self, n_layers: int, n_heads: int, n_tokens: int, n_bins: int, *, device: torch.device) -> None:
        exact = torch.float32 if device.type == "mps" else torch.float64  # which Apple's GPUs do not have
        self._of_genes_N2HG = torch.zeros(n_layers, 2, n_heads, n_tokens, dtype=exact, device=device)
        self._square_N3H = torch.zeros(n_layers, 3, n_heads, dtype=exact, device=device)
        self._n_bins = n_bins
        self._ids: list[np.ndarray] = []
        self._by_bin: list[Tensor] = []

    def count(self, cells: Sequence[np.ndarray]) -> int:
        """Take cells in, each the tokens of its genes by place; return the number of the first."""
        first = len(self._ids)
        self._ids += cells
        n_layers, _, n_heads = self._of_genes_N2HG.shape[:3]
        shape = (n_layers, 2, n_heads, self._n_bins)
        self._by_bin += [self._of_genes_N2HG.new_zeros(shape) for _ in cells]
        return first

    def add(self, layer: int, cell: int, of_genes_2HG: Tensor) -> None:
        """Add the sums of each gene's pairs in a cell and block, as key and as query."""
        n_genes = of_genes_2HG.shape[-1]
        if n_genes < _FEWEST:
            return
        device = of_genes_2HG.device
        bins_G = torch.from_numpy(place_bins(n_genes)).to(device)
        self._of_genes_N2HG[layer][..., torch.from_numpy(self._ids[cell]).long().to(device)] += of_genes_2HG
        self._by_bin[cell][layer].index_add_(-1, bins_G, of_genes_2HG)
        for i, (values_HG, n_free) in enumerate(zip(_turned(of_genes_2HG), _free(n_genes), strict=True)):
            self._square_N3H[layer, i] += (values_HG**2).sum(-1) / n_free

    def shares(self, places: Places) -> tuple[np.ndarray, np.ndarray]:
        """Return which share of the variance left after places genes explain, head by head.

        Parameters
        ----------
        places
            Of the same cells.

        Returns
        -------
        By the means of key genes alone, and by those of both genes together, each (N, H); adjusted, so that it may be
        slightly below 0. NaN of a head that attends evenly, or where no gene is in two cells.
        """
        shape = self._of_genes_N2HG.shape[0], 2, self._of_genes_N2HG.shape[2]
        found, n = np.full(shape, np.nan), places.n_BB.sum()
        cells = _Cells([ids for ids in self._ids if len(ids) >= _FEWEST])
        if not cells.ids:
            return found[:, 0], found[:, 1]
        for layer in range(len(found)):
            sum_H = (places.sum_NHBB[layer] - places.means[layer] * places.n_BB).sum((1, 2))
            total_H = places.spread[layer] ** 2 * n - sum_H**2 / n
            of_tokens, left_2HG, mean_H = self._left(layer, places.means[layer], cells)
            for i, (explained_H, n_fitted) in enumerate(cells.fits(left_2HG)):
                n_free = cells.n_fitted_to_tokens[i] - n_fitted
                if n_free > 0:
                    by_chance_H = (of_tokens[i] - explained_H) / n_free * (n_fitted - 1)
                    share_H = (explained_H - mean_H - by_chance_H) / np.where(total_H > 0, total_H, np.nan)
                    found[layer, i] = np.where(places.spread[layer] > 0, share_H, np.nan)
        return found[:, 0], found[:, 1]

    def _left(self, layer: int, mean_HBB: np.ndarray, cells: "_Cells") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Take the means of places out of a block's sums.

        Returns
        -------
        Squares that effects of each gene in each cell by itself explain (keys alone, both; (2, H)); the sums of each
        gene's pairs, (2, H, G); the squares that the mean of all explains, (H,).
        """
        square_3H = self._square_N3H[layer].double().cpu().numpy()
        left_2HG = self._of_genes_N2HG[layer].double().cpu().numpy()[..., cells.genes]
        own_HB = np.diagonal(mean_HBB, axis1=1, axis2=2)
        by_mean_H, sum_H = np.zeros(square_3H.shape[1]), np.zeros(square_3H.shape[1])
        used = [of_cell for ids, of_cell in zip(self._ids, self._by_bin, strict=True) if len(ids) >= _FEWEST]
        for genes, of_cell in zip(cells.numbers, used, strict=True):
            n_genes, bins = len(genes), place_bins(len(genes))
            n_B = np.bincount(bins, minlength=self._n_bins)
            expected_2HB = np.stack([n_B @ mean_HBB, mean_HBB @ n_B]) - own_HB
            by_bin_2HB = of_cell[layer].double().cpu().numpy()
            left_2HG[..., genes] -= expected_2HB[..., bins]
            turned = zip(_turned(by_bin_2HB), _turned(expected_2HB), _free(n_genes), strict=True)
            for i, (values_HB, mean_HB, n_free) in enumerate(turned):
                square_3H[i] += (n_B * mean_HB**2 - 2 * mean_HB * values_HB).sum(-1) / n_free
            of_cell_H = (by_bin_2HB[0] - n_B * expected_2HB[0]).sum(-1)
            by_mean_H += 2 * of_cell_H**2 / ((n_genes - 1) * (n_genes - 2))
            sum_H += of_cell_H
        of_both_H = (square_3H[1] - by_mean_H + square_3H[2]) / 2
        return np.stack([square_3H[0], of_both_H]), left_2HG, sum_H**2 / cells.n_pairs


def _turned(of_genes):  # type: ignore[no-untyped-def]  # tensors and arrays
    """Return sums as key, as key and query together, and as key less those as query."""
    return of_genes[0], of_genes[0] + of_genes[1], of_genes[0] - of_genes[1]


def _free(n_genes: int) -> tuple[int, int, int]:
    """Return what the squares of each of `_turned` are divided by, in a cell of so many genes."""
    return n_genes - 1, n_genes - 2, n_genes


class _Fit(NamedTuple):
    explained_H: np.ndarray
    """Squares that the means of genes explain, those of the mean of all included."""
    n_fitted: int
    """Numbers that were fitted."""


class _Cells:
    """Which genes are in which cells, and what is fitted to them."""

    def __init__(self, ids: list[np.ndarray]) -> None:
        self.ids = ids
        self._lengths = np.array([len(of_cell) for of_cell in ids])
        self.n_pairs = int((self._lengths * (self._lengths - 1)).sum())
        n_tokens, n_cells = int(self._lengths.sum()), len(ids)
        self.n_fitted_to_tokens = (n_tokens, 2 * n_tokens - n_cells)

    @cached_property
    def genes(self) -> np.ndarray:
        """Tokens that any cell has."""
        return np.unique(np.concatenate(self.ids))

    @cached_property
    def numbers(self) -> list[np.ndarray]:
        """Of each cell's genes the number among `genes`."""
        return [np.searchsorted(self.genes, of_cell) for of_cell in self.ids]

    @cached_property
    def _table(self) -> csr_matrix:
        starts = np.concatenate([[0], np.cumsum(self._lengths)])
        ones, shape = np.ones(starts[-1]), (len(self.ids), len(self.genes))
        return csr_matrix((ones, np.concatenate(self.numbers), starts), shape=shape)

    def _divided(self, less: int) -> tuple[np.ndarray, np.ndarray]:
        """Return of each gene the genes of its cells, each so many less; and the table of cells × cells by them."""
        n_G = self._table.T @ (self._lengths - float(less))
        return n_G, (self._table.multiply(1 / n_G) @ self._table.T).toarray()

    @cached_property
    def _of_sums(self) -> tuple[np.ndarray, np.ndarray]:
        n_G, table_CC = self._divided(2)
        return n_G, -np.linalg.inv(np.eye(len(table_CC)) + table_CC)

    @cached_property
    def _of_differences(self) -> tuple[np.ndarray, np.ndarray, int]:
        n_G, table_CC = self._divided(0)
        value, vector_CV = np.linalg.eigh(np.eye(len(table_CC)) - table_CC)
        told = value > _NOTHING
        return n_G, (vector_CV[:, told] / value[told]) @ vector_CV[:, told].T, int((~told).sum())

    def fits(self, left_2HG: np.ndarray) -> tuple[_Fit, _Fit]:
        """Fit means of key genes, then of both genes together, to sums of each gene's pairs as key and as query.

        With D the pairs of each gene and N the cells that two have both, effects a and b of key and query follow from
        (D + N)(a + b) and (D − N)(a − b), the sum and the difference of the sums; N is the table's product with itself
        but for its diagonal, so both are a diagonal and a product of few columns (Woodbury's identity).
        """
        of_keys_HG, sum_HG, difference_HG = _turned(left_2HG)
        n_G = self._table.T @ (self._lengths - 1.0)
        (n_sum_G, inner_CC), (n_difference_G, other_CC, n_apart) = self._of_sums, self._of_differences
        of_both_H = self._solved(sum_HG, n_sum_G, inner_CC) + self._solved(difference_HG, n_difference_G, other_CC)
        return (
            _Fit((of_keys_HG**2 / n_G).sum(-1), len(self.genes)),
            _Fit(of_both_H / 2, 2 * len(self.genes) - n_apart),
        )

    def _solved(self, values_HG: np.ndarray, n_G: np.ndarray, inner_CC: np.ndarray) -> np.ndarray:
        of_cells_CH = self._table @ (values_HG / n_G).T
        explained_H: np.ndarray = (values_HG**2 / n_G).sum(-1) + (of_cells_CH * (inner_CC @ of_cells_CH)).sum(0)
        return explained_H
