"""What attention owes to places: the mean of each pair of places, head by head, from a few hundred cells.

Genes in front attend and are attended otherwise than those behind, whatever genes they are: in a tiny trained model a
table of (place of the query × place of the key) explains 17 to 49 % of the variance of log attention. The table has
bins of the root of the place, finest in front: 46 × 46 of them for 2,048 genes.

Log lifts are products of queries and keys, so sums over all pairs of two bins are products of sums, and sums of squares
too: the table and each head's spread are exact, without an L × L matrix. Lifts themselves, and what each gene receives,
take one, in blocks of queries.

Shapes: N blocks, H heads, B bins, G genes of a cell.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from geneformer_repro.errors import DataFormatError
from geneformer_repro.in_silico.networks.lifts import LogLifts

LEAST_PAIRS = 50
"""Pairs of places of a bin; one that has fewer takes its neighbours' in."""
_FACTS = "geneformer_repro"
_BY_GENES = ("explained_by_sources", "explained_by_genes")
_EVEN = 1e-9
"""Spread, in bits, below which a head attends evenly, so that its numbers are rounding."""


def place_bins(n_genes: int) -> np.ndarray:
    """Return the bin of each place: the root, rounded down."""
    return np.floor(np.sqrt(np.arange(n_genes))).astype(np.int64)


@dataclass(frozen=True)
class Places:
    """Means of pairs of places, and what is left of each head.

    Parameters
    ----------
    sum_NHBB, square_NH
        Sum of the weights of all pairs (log lifts, or lifts), and of their squares, by bin of the query and of the key.
    n_BB
        Pairs of two bins, a gene with itself left out.
    on_specials_NH
        Mean share of attention on special tokens.
    by_sources_NH, by_genes_NH
        Share of the variance left after places that the means of key genes explain, and those of both genes fitted
        together, as `GeneSums.shares`; None where that was not asked.
    """

    sum_NHBB: np.ndarray
    square_NH: np.ndarray
    n_BB: np.ndarray
    on_specials_NH: np.ndarray
    by_sources_NH: np.ndarray | None = None
    by_genes_NH: np.ndarray | None = None

    @cached_property
    def means(self) -> np.ndarray:
        """Mean of each pair of bins; where it has few pairs, of the smallest square around it with `LEAST_PAIRS`."""
        n_bins = len(self.n_BB)
        n, sums = self.n_BB.astype(np.float64), self.sum_NHBB
        mean, wanted = np.zeros_like(sums), np.ones_like(self.n_BB, dtype=bool)
        least = min(LEAST_PAIRS, int(self.n_BB.sum()))
        for reach in range(n_bins):
            around = _summed(n, reach)
            enough = wanted & (around >= max(least, 1))
            if enough.any():
                mean[..., enough] = _summed(sums, reach)[..., enough] / around[enough]
            wanted &= ~enough
            if not wanted.any():
                break
        return mean

    @cached_property
    def spread(self) -> np.ndarray:
        """Standard deviation of what is left when the mean of their places is taken from weights; 0 of an even head."""
        left = np.sqrt(np.maximum(self._left / max(1, self.n_BB.sum()), 0.0))
        return np.where(left > _EVEN, left, 0.0)

    @property
    def explained(self) -> np.ndarray:
        """Share of the variance of each head's weights that places explain; NaN of an even head."""
        n = max(1, self.n_BB.sum())
        total = self.square_NH - self.sum_NHBB.sum((2, 3)) ** 2 / n
        even = self.spread == 0
        return np.where(even, np.nan, 1 - self._left / np.where(even, 1.0, total))

    @property
    def _left(self) -> np.ndarray:
        mean = self.means
        return self.square_NH - 2 * (mean * self.sum_NHBB).sum((2, 3)) + (mean**2 * self.n_BB).sum((2, 3))

    def save(self, path: Path) -> None:
        """Write a row a head and pair of bins: their numbers, ``mean``, ``sum`` and ``n``."""
        n_layers, n_heads, n_bins = self.sum_NHBB.shape[:3]
        axes = np.indices((n_layers, n_heads, n_bins, n_bins)).reshape(4, -1).astype(np.int32)
        columns: dict[str, np.ndarray] = dict(zip(("layer", "head", "query_bin", "key_bin"), axes, strict=True))
        columns |= {"mean": self.means.ravel(), "sum": self.sum_NHBB.ravel()}
        columns["n"] = np.broadcast_to(self.n_BB, self.sum_NHBB.shape).ravel()
        facts = {"square": self.square_NH.tolist(), "on_specials": self.on_specials_NH.tolist()}
        facts |= {name: _as_json(values) for name, values in self._by_genes.items()}
        table = pa.table(columns).replace_schema_metadata({_FACTS: json.dumps(facts)})
        pq.write_table(table, path, compression="zstd")

    @classmethod
    def open(cls, path: Path) -> "Places":
        """Read what `save` wrote.

        Raises
        ------
        DataFormatError
            The file is damaged, or another.
        """
        try:
            table = pq.read_table(path)
            facts: dict[str, Any] = json.loads((table.schema.metadata or {})[_FACTS.encode()])
            last = [int(table.column(name).to_numpy()[-1]) + 1 for name in ("layer", "head", "query_bin", "key_bin")]
            sums, n = (table.column(name).to_numpy().reshape(last) for name in ("sum", "n"))
        except (OSError, pa.ArrowException, KeyError, ValueError, IndexError) as error:
            raise DataFormatError(f"{path}: no table of places, or a damaged one ({error}). Make it anew.") from error
        by_genes = [np.array(facts[name], dtype=np.float64) for name in _BY_GENES if name in facts]
        return cls(sums, np.array(facts["square"]), n[0, 0], np.array(facts["on_specials"]), *by_genes)

    def table(self) -> pd.DataFrame:
        """Return what is known of each head.

        ``layer``, ``head``, ``sd``, ``explained_by_place``; ``explained_by_sources`` and ``explained_by_genes`` where
        they were asked; ``on_specials``.
        """
        layer, head = np.indices(self.square_NH.shape).reshape(2, -1)
        columns = {
            "sd": self.spread.ravel(),
            "explained_by_place": self.explained.ravel(),
            **{name: values.ravel() for name, values in self._by_genes.items()},
            "on_specials": self.on_specials_NH.ravel(),
        }
        return pd.DataFrame({"layer": layer, "head": head, **columns})

    @property
    def _by_genes(self) -> dict[str, np.ndarray]:
        known = zip(_BY_GENES, (self.by_sources_NH, self.by_genes_NH), strict=True)
        return {name: values for name, values in known if values is not None}


def _as_json(values_NH: np.ndarray) -> list[list[float | None]]:
    return [[None if np.isnan(value) else value for value in of_block] for of_block in values_NH.tolist()]


def _summed(values: np.ndarray, reach: int) -> np.ndarray:
    """Return sums over the square of bins around each, so many bins to each side, in the last two axes."""
    if not reach:
        return values
    n_bins = values.shape[-1]
    added = np.zeros((*values.shape[:-2], n_bins + 1, n_bins + 1))
    added[..., 1:, 1:] = values.cumsum(-1).cumsum(-2)
    low = np.maximum(np.arange(n_bins) - reach, 0)
    high = np.minimum(np.arange(n_bins) + reach + 1, n_bins)
    rows = added[..., high, :] - added[..., low, :]
    return rows[..., high] - rows[..., low]


class PlaceSums:
    """Sums over the pairs of calibration cells, on the device.

    Parameters
    ----------
    n_layers, n_heads, n_bins
        Blocks that are looked at, heads of each, bins of place.
    of_logs
        Whether log lifts are summed, or lifts.
    device
        Where the tokens are.
    """

    def __init__(self, n_layers: int, n_heads: int, n_bins: int, *, of_logs: bool, device: torch.device) -> None:
        self._of_logs = of_logs
        self._exact = torch.float32 if device.type == "mps" else torch.float64  # which Apple's GPUs do not have
        self._sum_NHBB = torch.zeros(n_layers, n_heads, n_bins, n_bins, dtype=self._exact, device=device)
        self._square_NH = torch.zeros(n_layers, n_heads, dtype=self._exact, device=device)
        self._on_specials_NH = torch.zeros(n_layers, n_heads, dtype=self._exact, device=device)
        self._n_BB = np.zeros((n_bins, n_bins), dtype=np.int64)
        self._n_queries = 0

    def count(self, n_genes: int) -> None:
        """Count the pairs of a cell, once for all blocks."""
        in_bin_B = np.bincount(place_bins(n_genes), minlength=len(self._n_BB))
        self._n_BB += np.outer(in_bin_B, in_bin_B) - np.diag(in_bin_B)
        self._n_queries += n_genes

    def add(self, layer: int, lifts: LogLifts) -> Tensor:
        """Add all pairs of a cell in one block; return the sum of each gene's pairs, as key and as query, (2, H, G)."""
        bins_G = torch.from_numpy(place_bins(len(lifts.query_QHE))).to(lifts.query_QHE.device)
        self._on_specials_NH[layer] += lifts.on_specials_QH.sum(0)
        return (self._add_logs if self._of_logs else self._add_lifts)(layer, lifts, bins_G)

    def _add_logs(self, layer: int, lifts: LogLifts, bins_G: Tensor) -> Tensor:
        query_HGF, key_HGF = (factor.to(self._exact).transpose(0, 1) for factor in _factors(lifts))
        own_HG = (query_HGF * key_HGF).sum(-1)
        self._square_NH[layer] += (_second(query_HGF) * _second(key_HGF)).sum((1, 2)) - (own_HG**2).sum(1)
        self._sum_NHBB[layer] += self._by_bin(query_HGF, bins_G) @ self._by_bin(key_HGF, bins_G).transpose(1, 2)
        self._leave_out(layer, own_HG, bins_G)
        both = ((key_HGF, query_HGF), (query_HGF, key_HGF))
        return torch.stack([(of_HGF @ all_HGF.sum(1)[..., None])[..., 0] - own_HG for of_HGF, all_HGF in both])

    def _add_lifts(self, layer: int, lifts: LogLifts, bins_G: Tensor) -> Tensor:
        of_genes_2HG = self._sum_NHBB.new_zeros(2, lifts.query_QHE.shape[1], len(bins_G))
        for rows, log_HQK in lifts.blocks():
            lift_HQK = log_HQK.exp2().to(self._exact)
            own_HQ = lift_HQK[:, torch.arange(rows.stop - rows.start), torch.arange(rows.start, rows.stop)]
            self._square_NH[layer] += (lift_HQK**2).sum((1, 2)) - (own_HQ**2).sum(1)
            of_keys_HQB = self._by_bin(lift_HQK.transpose(1, 2), bins_G).transpose(1, 2)
            self._sum_NHBB[layer] += self._by_bin(of_keys_HQB, bins_G[rows])
            self._leave_out(layer, own_HQ, bins_G[rows])
            of_genes_2HG[0] += lift_HQK.sum(1)
            of_genes_2HG[1, :, rows] = lift_HQK.sum(2)
            of_genes_2HG[:, :, rows] -= own_HQ
        return of_genes_2HG

    def _by_bin(self, values_HGF: Tensor, bins_G: Tensor) -> Tensor:
        """Return sums over the genes of each bin, (H, B, F)."""
        shape = (values_HGF.shape[0], len(self._n_BB), values_HGF.shape[2])
        return values_HGF.new_zeros(shape).index_add_(1, bins_G, values_HGF)

    def _leave_out(self, layer: int, own_HG: Tensor, bins_G: Tensor) -> None:
        """Take the pairs of genes with themselves away."""
        self._sum_NHBB[layer].diagonal(dim1=1, dim2=2).sub_(self._by_bin(own_HG[..., None], bins_G)[..., 0])

    def result(self) -> Places:
        """Return what the cells came to."""
        share = self._on_specials_NH.double().cpu().numpy() / max(1, self._n_queries)
        sums, squares = (tensor.double().cpu().numpy() for tensor in (self._sum_NHBB, self._square_NH))
        return Places(sums, squares, self._n_BB, share)


def _factors(lifts: LogLifts) -> tuple[Tensor, Tensor]:
    """Return queries and keys whose product is the whole log lift."""
    of_query_QH1, one_QH1 = lifts.of_query_QH[..., None], torch.ones_like(lifts.of_query_QH)[..., None]
    query_QHF = torch.cat([lifts.query_QHE, of_query_QH1, one_QH1], -1)
    of_key_KH = torch.zeros_like(one_QH1[..., 0]) if lifts.of_key_KH is None else lifts.of_key_KH
    return query_QHF, torch.cat([lifts.key_KHE, one_QH1, of_key_KH[..., None]], -1)


def _second(values_HGF: Tensor) -> Tensor:
    return values_HGF.transpose(1, 2) @ values_HGF
