"""The first block's attention of a cell that is read again and again, each time without one of its tokens.

Of such a variant the tokens in front of the one left out are those of the cell, and those behind too, at their own
positions or one place up. So in the first block, whose inputs are token and position alone, what the keys in front
and the keys behind give a query are sums over a stretch of the cell, and those of all variants are sums that grow by
one key: O(L²) for the L variants of a cell, where attention of each by itself is O(L³). Sums run from both ends and are
added, never subtracted, in double precision: values are those of attention to rounding.

Shapes: L tokens of the cell, R rows (its tokens, and these again one place up), N variants, K keys of a stretch, H
heads, E channels of a head.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor

from geneformer_repro.compiled import threads_alone

_STRETCH = 64
"""Variants that begin from the same two sums: over the keys in front of all of them, and over those behind."""


class _Sums(NamedTuple):
    """What rows get of a stretch of keys, and of those in front of it and behind it, on one scale a row and head."""

    front_HRE: np.ndarray
    front_HR: np.ndarray
    """Sums of weights · values, and of weights, over the keys in front, float64."""
    behind_HRE: np.ndarray
    behind_HR: np.ndarray
    weight_HRK: np.ndarray
    """Of the keys of the stretch where they stand in front of the token left out, float64."""
    weight_up_HRK: np.ndarray
    """And where they stand behind it."""


class Cell:
    """A cell whose variants lack one token each.

    Parameters
    ----------
    ids_L
        Token ids.
    moves_up
        Whether the tokens behind the one left out move up by a place.
    """

    def __init__(self, ids_L: np.ndarray, *, moves_up: bool) -> None:
        self._n, self._moves_up = len(ids_L), moves_up
        places = np.arange(self._n)
        twice = 1 + moves_up
        self.ids_R = np.tile(ids_L, twice)
        """Token of each row."""
        self.positions_R = np.concatenate([places, np.maximum(places - 1, 0)])[: twice * self._n]
        """Position of each row."""
        self._projected: tuple[Tensor, Tensor, Tensor] | None = None
        self._stretch: tuple[int, _Sums] | None = None

    def contexts(self, places: np.ndarray, project: Callable[["Cell"], tuple[Tensor, ...]]) -> Tensor:
        """Return what attention gives the tokens of variants, (N · (L − 1), H, E), float32.

        Parameters
        ----------
        places
            Of the token that each variant lacks, (N,), in any order; one may be asked for several times.
        project
            Called once with this cell; returns its rows' queries, scaled, keys and values, (R, H, E), float32.
        """
        places_U, variant_N = np.unique(places, return_inverse=True)
        if len(places_U) < len(places):
            return self.contexts(places_U, project).unflatten(0, (len(places_U), -1))[variant_N].flatten(0, 1)
        if self._projected is None:
            query, key, value = (rows.transpose(0, 1).contiguous() for rows in project(self))
            self._projected = query, key, value
        n_heads, _, n_channels = self._projected[0].shape
        context_NLHE = np.empty((len(places), self._n - 1, n_heads, n_channels), dtype=np.float32)
        stretches = places // _STRETCH
        for stretch in np.unique(stretches).tolist():
            chosen = np.flatnonzero(stretches == stretch)
            self._fill(stretch, places[chosen], chosen, context_NLHE)
        return torch.from_numpy(context_NLHE).flatten(0, 1)

    def _fill(self, stretch: int, places: np.ndarray, chosen: np.ndarray, context_NLHE: np.ndarray) -> None:
        """Write the contexts of the variants that lack a token of a stretch."""
        if self._stretch is None or self._stretch[0] != stretch:
            self._stretch = stretch, self._sums(stretch)
        sums = self._stretch[1]
        first = stretch * _STRETCH
        assert self._projected is not None
        value_HRE = self._projected[2].numpy()
        up = self._n if self._moves_up else 0

        walk: Any = _walk

        def work(heads: np.ndarray) -> None:
            for h in heads.tolist():
                of_head = [of_heads[h] for of_heads in sums]
                walk(*of_head, value_HRE[h], places, chosen, first, up, context_NLHE[:, :, h])

        n_heads = len(value_HRE)
        shares = np.array_split(np.arange(n_heads), min(torch.get_num_threads(), n_heads))
        if len(shares) == 1:
            work(shares[0])
        else:
            list(threads_alone(torch.get_num_threads()).map(work, shares))

    def _sums(self, stretch: int) -> _Sums:
        assert self._projected is not None
        query_HRE, key_HRE, value_HRE = self._projected
        first, last = stretch * _STRETCH, min((stretch + 1) * _STRETCH, self._n)
        up = self._n if self._moves_up else 0
        within = slice(first, last), slice(up + first, up + last)
        front, behind = (
            _attended(query_HRE, key_HRE[:, keys], value_HRE[:, keys])
            for keys in (slice(first), slice(up + last, up + self._n))
        )
        score_HRK, score_up_HRK = (query_HRE @ key_HRE[:, keys].transpose(1, 2) for keys in within)
        highest = [score_HRK.amax(-1), score_up_HRK.amax(-1), front[1], behind[1]]
        most_HR = torch.stack(highest).amax(0)
        arrays = []
        for context_HRE, log_sum_HR in (front, behind):
            sum_HR = (log_sum_HR - most_HR).double().exp()
            arrays += [(context_HRE.double() * sum_HR[..., None]).numpy(), sum_HR.contiguous().numpy()]
        arrays += [(scores - most_HR[..., None]).double().exp_().numpy() for scores in (score_HRK, score_up_HRK)]
        return _Sums(*arrays)


def _attended(query_HRE: Tensor, key_HKE: Tensor, value_HKE: Tensor) -> tuple[Tensor, Tensor]:
    """Return what attention gives rows, and the log-sums of their scores: of no key 0 and −∞."""
    if not key_HKE.shape[1]:
        return torch.zeros_like(query_HRE), query_HRE.new_full(query_HRE.shape[:2], -torch.inf)
    inputs = (query_HRE[None], key_HKE[None], value_HKE[None])
    context_1HRE, log_sum_1HR = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*inputs, scale=1.0)
    return context_1HRE[0], log_sum_1HR[0]


@numba.njit(nogil=True, cache=True, fastmath=True)
def _walk(  # type: ignore[no-untyped-def]
    front_RE, front_R, behind_RE, behind_R, weight_RK, weight_up_RK, value_RE, places, chosen, first, up, context_NLE
):
    """Write what each variant's tokens get of one head: a sum from the back, then one from the front."""
    n_keys, n_channels = weight_RK.shape[1], value_RE.shape[1]
    n_tokens = context_NLE.shape[1] + 1
    variant_K = np.full(n_keys, -1)
    for n in range(len(places)):
        variant_K[places[n] - first] = chosen[n]
    behind_KE, behind_K = np.empty((n_keys, n_channels)), np.empty(n_keys)
    sum_E = np.empty(n_channels)
    for row in range(len(front_R)):
        token = row % n_tokens
        # rows that stand where they are lack a token behind them; those one place up, one in front
        lowest = 0 if up == 0 or row >= n_tokens else max(token - first + 1, 0)
        highest = n_keys if up == 0 or row < n_tokens else min(token - first, n_keys)
        if lowest >= highest:
            continue
        total = behind_R[row]
        for e in range(n_channels):
            sum_E[e] = behind_RE[row, e]
        for k in range(n_keys - 1, lowest - 1, -1):
            behind_K[k] = total
            for e in range(n_channels):
                behind_KE[k, e] = sum_E[e]
            weight = weight_up_RK[row, k]
            total += weight
            for e in range(n_channels):
                sum_E[e] += weight * value_RE[up + first + k, e]
        total = front_R[row]
        for e in range(n_channels):
            sum_E[e] = front_RE[row, e]
        for k in range(highest):
            n = variant_K[k]
            if k >= lowest and n >= 0 and first + k != token:
                place = token - (token > first + k)
                over = 1 / (total + behind_K[k])
                for e in range(n_channels):
                    context_NLE[n, place, e] = (sum_E[e] + behind_KE[k, e]) * over
            weight = weight_RK[row, k]
            total += weight
            for e in range(n_channels):
                sum_E[e] += weight * value_RE[first + k, e]
