"""Rank-value encoding: pure arithmetic on a block of counts, no file and no device.

A compiled loop over cells (numba), which lets go of the interpreter lock, so threads share the cells. A cell's values
are sorted by radix on the leading 22 bits that differ within the cell, in two passes, and the few neighbours that these
bits leave undecided are put in order by insertion. Equal values keep vocabulary order: NumPy's default sort leaves
theirs to the machine. 9 ns a value on one core, of which a cell has about a thousand. Steps that have no branches are
loops of their own, which become vector instructions; a division that may raise, as numba has it by default, does not.

Expression is ranked as counts are, by values rounded to 24 bits: in a small cohort many values are exactly their gene's
median, and these ties must not hang on the rounding that the scale of a sample brings. Z-scores have both signs and
gaps, and their zeros are values: a cell's are laid out by gene first, all of them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numba
import numpy as np
from scipy.sparse import csr_matrix

from geneformer_repro.tokenizer.matrices import first_not_a_count
from geneformer_repro.tokenizer.medians import TARGET_SUM
from geneformer_repro.tokenizer.vocabulary import CLS, EOS, Vocabulary

_MOST_DIGIT_BITS = 11
_FEW = 24
"""So many or fewer are sorted by insertion."""
_VALUES_IN_CACHE = 1 << 16
"""So many values and where they are take three quarters of a megabyte, as wide as they are here."""
_compiled = numba.njit(nogil=True, cache=True, error_model="numpy")


class Ragged(NamedTuple):
    """Rows of different lengths: row i is ``values[offsets[i]:offsets[i + 1]]``."""

    values: np.ndarray
    offsets: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Length of each row."""
        return np.diff(self.offsets)


class Encoded(NamedTuple):
    """Token ids of some cells, and how many known genes each expresses, cut off or not."""

    tokens: Ragged
    n_genes: np.ndarray
    signal: np.ndarray
    """Share of each cell's values, relative to the medians (of z-scores: without their signs), in genes not cut off."""


def encode(
    counts: csr_matrix,
    vocabulary: Vocabulary,
    *,
    position: np.ndarray | None = None,
    n_counts: np.ndarray | None = None,
    crop: bool = True,
) -> Encoded:
    """Order each cell's expressed genes by expression relative to the corpus.

    A gene's value is its count, scaled so that the cell sums to 10,000, divided by the gene's non-zero median
    over the corpus; computed in that order, as published. Equal values keep vocabulary order. Z-scores are values as
    they are.

    Parameters
    ----------
    counts
        What the vocabulary's ``values`` say, cells × genes: raw counts, linear expression, or z-scores (NaN: missing).
        Not log-transformed.
    vocabulary
        Needs medians, but for z-scores. Its ``order`` is that of the tokens.
    position
        Place of each column in ``vocabulary.gene_ids``, -1 for a gene it does not have; columns with the same place
        are one gene: their counts or expression are summed, of their z-scores it is the mean. Default: the columns
        follow ``vocabulary.gene_ids``.
    n_counts
        Total counts of each cell, also of genes outside the vocabulary; default the sum of `counts`. It cancels
        in the ranking, but for values that differ only by rounding.
    crop
        Whether to cut cells to ``vocabulary.max_length`` and put the special tokens around them. Without, a cell is
        its ranked genes, all of them and nothing else.

    Returns
    -------
    Token ids, most distinctive gene first, with ``<cls>`` and ``<eos>`` around them where the vocabulary has these (a
    cell without a known gene has only those); the number of known genes of each cell; and what was not cut off of
    their values.

    Raises
    ------
    InputError
        The vocabulary has no medians.

    References
    ----------
    Theodoris et al., Nature 618, 616 (2023), Methods, "Rank value encoding".
    """
    if vocabulary.values != "zscore":
        vocabulary.require_medians()
    ranking = _Ranking.of(vocabulary, position, counts.shape[1], crop=crop)
    totals = counts.sum(axis=1, dtype=np.float64) if n_counts is None else n_counts
    return ranking.encode(counts.data, counts.indices, counts.indptr, np.asarray(totals, dtype=np.float64).ravel())


class _Ranking(NamedTuple):
    """What is the same for all cells of a source."""

    position: np.ndarray
    medians: np.ndarray
    tokens: np.ndarray
    distinct: bool
    rounded: bool
    of_zscores: bool
    two_ended: bool
    room: int
    wrapped: bool
    special: np.ndarray

    @classmethod
    def of(cls, vocabulary: Vocabulary, position: np.ndarray | None, n_columns: int, *, crop: bool) -> "_Ranking":
        if position is None:
            position = np.arange(len(vocabulary))
        assert n_columns == len(position), (n_columns, len(position))
        wrapped = crop and vocabulary.has_cls
        dtype = np.min_scalar_type(vocabulary.size - 1)
        return cls(
            position.astype(np.int32, copy=False),
            np.ones(len(vocabulary)) if vocabulary.medians is None else vocabulary.medians,
            vocabulary.tokens.astype(dtype),
            bool(np.bincount(position[position >= 0], minlength=1).max() <= 1),
            vocabulary.values == "expression",
            vocabulary.values == "zscore",
            vocabulary.order == "two_ended",
            vocabulary.max_length - 2 * wrapped if crop else len(vocabulary),
            wrapped,
            np.array([vocabulary.special_tokens.get(token, 0) for token in (CLS, EOS)], dtype=dtype),
        )

    def encode(self, data: np.ndarray, indices: np.ndarray, indptr: np.ndarray, totals: np.ndarray) -> Encoded:
        n_cells = len(indptr) - 1
        n_stored = np.full(n_cells, (self.position >= 0).sum()) if self.of_zscores else np.diff(indptr)
        most = np.minimum(n_stored, self.room).astype(np.int64) + 2 * self.wrapped
        values, offsets = np.empty(most.sum(), dtype=self.tokens.dtype), np.zeros(n_cells + 1, dtype=np.int64)
        n_genes, signal = np.empty(n_cells, dtype=np.int64), np.empty(n_cells)
        where = indices.astype(np.int32, copy=False), indptr.astype(np.int64, copy=False)  # or compiled for each type
        _encode_cells(data, *where, totals, *self, values, offsets, n_genes, signal)
        return Encoded(Ragged(values[: offsets[-1]], offsets), n_genes, signal)


class CountedAndEncoded(NamedTuple):
    """Cells encoded as they are stored, and what was seen on the way."""

    encoded: Encoded
    sums: np.ndarray
    """Counts stored for each cell."""
    gene_counts: np.ndarray
    """Counts of each column."""


def encode_stored(
    stored: csr_matrix, vocabulary: Vocabulary, *, position: np.ndarray, n_counts: np.ndarray | None
) -> CountedAndEncoded | None:
    """Check, sum and encode raw counts as a file holds them: any type of numbers, genes of a cell in any order.

    A few cells at a time, which stay in the cache meanwhile, so nothing as large as a block is made: with that a third
    of the time of `canonical`, sums and `encode`, one after the other.

    Returns
    -------
    As `encode`, with sums; None if a value as it is stored is no count.
    """
    ranking = _Ranking.of(vocabulary, position, stored.shape[1], crop=True)
    n_cells, indptr = stored.shape[0], stored.indptr.astype(np.int64, copy=False)
    sums, gene_counts = np.zeros(n_cells), np.zeros(stored.shape[1])
    encoded: list[Encoded] = []
    step = max(1, _VALUES_IN_CACHE * n_cells // max(1, len(stored.data)))
    for start in range(0, n_cells, step):
        cells = slice(start, min(start + step, n_cells))
        first, last = indptr[cells.start], indptr[cells.stop]
        data = stored.data[first:last].astype(np.float64)
        indices, ends = stored.indices[first:last].astype(np.int32), indptr[cells.start : cells.stop + 1] - first
        if first_not_a_count(data) >= 0:
            return None
        _add_up(data, indices, ends, sums[cells], gene_counts)
        encoded.append(ranking.encode(data, indices, ends, sums[cells] if n_counts is None else n_counts[cells]))
    return CountedAndEncoded(joined(encoded), sums, gene_counts)


def joined(pieces: Sequence[Encoded]) -> Encoded:
    """Return consecutive cells as one."""
    if len(pieces) == 1:
        return pieces[0]
    lengths = np.concatenate([piece.tokens.lengths for piece in pieces])
    return Encoded(
        Ragged(np.concatenate([piece.tokens.values for piece in pieces]), np.concatenate([[0], np.cumsum(lengths)])),
        np.concatenate([piece.n_genes for piece in pieces]),
        np.concatenate([piece.signal for piece in pieces]),
    )


def sum_by_column(counts: csr_matrix) -> np.ndarray:
    """Return the sum of each column, as float64; five times as fast as SciPy's."""
    sums = np.zeros(counts.shape[1])
    _add_to_columns(counts.data, counts.indices, sums)
    return sums


@_compiled
def _add_to_columns(data, indices, sums):  # type: ignore[no-untyped-def]
    for i in range(len(data)):
        sums[indices[i]] += data[i]


@numba.njit(nogil=True, cache=True, fastmath={"reassoc"})  # sums of whole numbers are exact in any order
def _add_up(data, indices, indptr, of_cells, of_columns):  # type: ignore[no-untyped-def]
    """Write the sum of each cell, and add what it holds to the columns."""
    for i in range(len(of_cells)):
        values, columns, total = data[indptr[i] : indptr[i + 1]], indices[indptr[i] : indptr[i + 1]], 0.0
        for j in range(len(values)):
            total += values[j]
        of_cells[i] = total
        for j in range(len(values)):
            of_columns[np.uint32(columns[j])] += values[j]


@_compiled
def _encode_cells(  # type: ignore[no-untyped-def]
    data,
    indices,
    indptr,
    totals,
    position,
    medians,
    tokens,
    distinct,
    rounded,
    of_zscores,
    two_ended,
    room,
    wrapped,
    special,
    values,
    offsets,
    n_genes,
    signal,
):
    """Write the tokens of cell after cell into `values`, where each begins into `offsets`."""
    n_cells, most = len(indptr) - 1, len(medians) if of_zscores else 1
    for i in range(n_cells):
        most = max(most, indptr[i + 1] - indptr[i])
    gene, gene_aside = np.empty(most, np.uint32), np.empty(most, np.uint32)
    key, key_aside = np.empty(most, np.uint64), np.empty(most, np.uint64)
    amount, median = np.empty(most, np.float64), np.empty(most, np.float64)
    starts = np.empty((2, 1 << _MOST_DIGIT_BITS), np.uint32)
    laid_out = np.empty(len(position) if of_zscores else 0, np.float64)
    seen = np.full(len(medians), -1, np.int32)
    end = 0
    for i in range(n_cells):
        begin, stop, in_order = indptr[i], indptr[i + 1], True
        if of_zscores:
            n = _mean_by_gene(data[begin:stop], indices[begin:stop], position, laid_out, gene, amount, len(medians))
        else:
            n, in_order, once = _expressed(data[begin:stop], indices[begin:stop], position, distinct, gene, amount)
            if not (in_order or once or (distinct and not _is_repeated(gene, n, seen, i))):
                n = _sum_by_gene(gene, amount, n, key, key_aside, gene_aside, starts)
                in_order = True
            _make_relative(amount, gene, n, totals[i], medians, rounded, median)
        _keys_of(amount, n, key)
        _sort_pairs(key, gene, n, key_aside, gene_aside, starts)
        if not in_order:
            _sort_ties(key, gene, n)
        if wrapped:
            values[end] = special[0]
            end += 1
        for j in range(min(n, room)):
            values[end + j] = tokens[gene[_place_of(j, n, two_ended) if two_ended else j]]
        end += min(n, room)
        if wrapped:
            values[end] = special[1]
            end += 1
        offsets[i + 1], n_genes[i], signal[i] = end, n, _share_kept(key, n, room, two_ended, key_aside)


@_compiled
def _expressed(data, indices, position, distinct, gene, amount):  # type: ignore[no-untyped-def]
    """Write places and amounts of a cell's known genes that are above 0; also whether in order, and each but once."""
    n, n_not_ascending, n_not_in_order = 0, 0, 0
    for j in range(1, len(indices)):
        n_not_ascending += indices[j] <= indices[j - 1]
    for j in range(len(data)):
        place = position[np.uint32(indices[j])]
        gene[n], amount[n] = place, data[j]
        n += (place >= 0) & (data[j] > 0)
    for j in range(1, n):
        n_not_in_order += gene[j] <= gene[j - 1]
    return n, n_not_in_order == 0, distinct and n_not_ascending == 0


@_compiled
def _is_repeated(gene, n, seen, cell):  # type: ignore[no-untyped-def]
    """Whether a gene of a cell stands more than once; `seen` has the last cell in which each gene was."""
    n_again = 0
    for j in range(n):
        n_again += seen[gene[j]] == cell
        seen[gene[j]] = cell
    return n_again > 0


@_compiled
def _make_relative(amount, gene, n, total, medians, rounded, median):  # type: ignore[no-untyped-def]
    """Scale a cell's amounts to a sum of 10,000, and divide each by its gene's median; in that order, as published."""
    for j in range(n):
        median[j] = medians[gene[j]]
    for j in range(n):
        amount[j] = amount[j] / total * TARGET_SUM / median[j]
    if rounded:
        for j in range(n):
            amount[j] = np.float32(amount[j])


@_compiled
def _mean_by_gene(data, indices, position, laid_out, gene, amount, n_places):  # type: ignore[no-untyped-def]
    """Write places and mean values of a cell's genes, in vocabulary order; what is not stored is 0, NaN no value."""
    laid_out[:] = 0
    for j in range(len(data)):
        laid_out[indices[j]] = data[j]
    total, n_of = np.zeros(n_places, np.float64), np.zeros(n_places, np.int64)
    for column in range(len(position)):
        place = position[column]
        if place >= 0 and not np.isnan(laid_out[column]):
            total[place] += laid_out[column]
            n_of[place] += 1
    n = 0
    for place in range(n_places):
        if n_of[place]:
            gene[n], amount[n] = place, total[place] / n_of[place] + 0.0  # which makes 0 of -0
            n += 1
    return n


_SIGN = np.uint64(1 << 63)


@_compiled
def _keys_of(amount, n, key):  # type: ignore[no-untyped-def]
    """Write keys that are in the opposite order of the amounts.

    The bits of positive floats are in the order of the floats, those of negative ones against it; inverted, the largest
    comes first.
    """
    bits = amount.view(np.uint64)
    for j in range(n):
        key[j] = bits[j] if bits[j] & _SIGN else ~(bits[j] | _SIGN)


@_compiled
def _place_of(j, n, two_ended):  # type: ignore[no-untyped-def]
    """Return which of n ranked genes is token j."""
    if not two_ended:
        return j
    return j // 2 if j % 2 == 0 else n - 1 - j // 2


@_compiled
def _share_kept(key, n, room, two_ended, bits):  # type: ignore[no-untyped-def]
    """Return the share of n ranked amounts, given by their keys, that the first `room` tokens hold."""
    if n <= room:
        return 1.0
    for j in range(n):
        bits[j] = key[j] if key[j] & _SIGN else ~key[j] ^ _SIGN
    amounts, kept = np.abs(bits[:n].view(np.float64)), 0.0
    for j in range(room):
        kept += amounts[_place_of(j, n, two_ended)]
    total = amounts.sum()
    return kept / total if total > 0 else 1.0


@_compiled
def _sum_by_gene(gene, amount, n, key, key_aside, gene_aside, starts):  # type: ignore[no-untyped-def]
    """Put a cell's genes in vocabulary order and add up the counts of a gene that stands more than once."""
    before = amount[:n].copy()
    for j in range(n):
        key[j] = gene[j]
        gene[j] = j
    _sort_pairs(key, gene, n, key_aside, gene_aside, starts)
    last = -1
    for j in range(n):
        add = before[gene[j]]
        if last >= 0 and key[j] == key[last]:
            amount[last] += add
        else:
            last += 1
            key[last], amount[last] = key[j], add
    for j in range(last + 1):
        gene[j] = key[j]
    return last + 1


@_compiled
def _sort_pairs(key, carried, n, key_aside, carried_aside, starts):  # type: ignore[no-untyped-def]
    """Sort `key` upward and `carried` with it; stable."""
    low = np.uint64(0)
    if n > _FEW:
        differing, first = np.uint64(0), key[0]
        for j in range(1, n):
            differing |= key[j] ^ first
        bits = np.uint64(_MOST_DIGIT_BITS if n > 256 else 8)
        while differing >> low >> bits >> bits:
            low += np.uint64(1)
        _sort_by_two_digits(key, carried, n, key_aside, carried_aside, starts[0], starts[1], low, bits)
        if low == 0:
            return
    for j in range(1, n):
        this = key[j]
        if key[j - 1] > this:
            with_it, k = carried[j], j
            while k > 0 and key[k - 1] > this:
                key[k], carried[k] = key[k - 1], carried[k - 1]
                k -= 1
            key[k], carried[k] = this, with_it


@_compiled
def _sort_by_two_digits(  # type: ignore[no-untyped-def]
    key, carried, n, key_aside, carried_aside, start_of_low, start_of_high, low, bits
):
    n_digits, high, one = 1 << bits, low + bits, np.uint32(1)
    mask = np.uint64(n_digits - 1)
    start_of_low[:n_digits], start_of_high[:n_digits] = 0, 0
    for j in range(n):
        start_of_low[(key[j] >> low) & mask] += one
        start_of_high[(key[j] >> high) & mask] += one
    before_low, before_high = np.uint32(0), np.uint32(0)
    for digit in range(n_digits):
        before_low, start_of_low[digit] = before_low + start_of_low[digit], before_low
        before_high, start_of_high[digit] = before_high + start_of_high[digit], before_high
    for j in range(n):
        digit = (key[j] >> low) & mask
        to = start_of_low[digit]
        start_of_low[digit] = to + one
        key_aside[to], carried_aside[to] = key[j], carried[j]
    for j in range(n):
        digit = (key_aside[j] >> high) & mask
        to = start_of_high[digit]
        start_of_high[digit] = to + one
        key[to], carried[to] = key_aside[j], carried_aside[j]


@_compiled
def _sort_ties(key, carried, n):  # type: ignore[no-untyped-def]
    """Put what is carried by equal keys in ascending order."""
    start = 0
    for j in range(1, n + 1):
        if j == n or key[j] != key[start]:
            if j - start > _FEW:
                carried[start:j].sort()
            for after in range(start + 1, j if 1 < j - start <= _FEW else 0):
                this, k = carried[after], after
                while k > start and carried[k - 1] > this:
                    carried[k] = carried[k - 1]
                    k -= 1
                carried[k] = this
            start = j
