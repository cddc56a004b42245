"""Cells to batches: tokens end to end, cells of like length together."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from geneformer_repro.attention import Cells
from geneformer_repro.errors import InputError
from geneformer_repro.tokenizer.vocabulary import Vocabulary


class Batch(NamedTuple):
    """Cells end to end, to be read."""

    rows: np.ndarray
    """Row number of each cell."""
    input_ids_T: Tensor
    lengths: tuple[int, ...]
    """Tokens of each cell."""
    genes_T: Tensor
    """True for a gene, False for a special token."""

    @property
    def inputs(self) -> dict[str, Any]:
        """What a classifier of cells takes."""
        return {"input_ids": self.input_ids_T, "lengths": self.lengths, "weights": self.genes_T}

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device."""
        return self._replace(input_ids_T=self.input_ids_T.to(device), genes_T=self.genes_T.to(device))


def end_to_end(cells: Sequence[np.ndarray], vocabulary: Vocabulary, rows: np.ndarray | None = None) -> Batch:
    """Lay cells end to end, without padding.

    Parameters
    ----------
    cells
        Token ids of each cell.
    vocabulary
        Tells genes from special tokens.
    rows
        Row number of each cell; default in order.
    """
    ids_T = np.concatenate(cells).astype(np.int64)
    return Batch(
        np.arange(len(cells)) if rows is None else rows,
        torch.from_numpy(ids_T),
        tuple(map(len, cells)),
        torch.from_numpy(vocabulary.genes_of(ids_T) >= 0),
    )


def pack(cells: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """Lay cells end to end, with a label for each token, to be trained on.

    Parameters
    ----------
    cells
        Token ids and labels of each cell.

    Returns
    -------
    ``input_ids`` and ``labels`` of all tokens, (T,), and the ``lengths`` of the cells.
    """
    tokens, labels = zip(*cells, strict=True)
    return {
        "input_ids": torch.from_numpy(np.concatenate(tokens)),
        "labels": torch.from_numpy(np.concatenate(labels)),
        "lengths": tuple(map(len, tokens)),
    }


_STEPS_SORTED_TOGETHER = 50


class StepBatches(Sampler[list[tuple[int, int]]]):
    """What each process trains on at each step: every cell once an epoch, about the same number of tokens a step.

    Cells are shuffled, sorted by length among 50 steps' worth (a quarter of all, if these are few), cut into steps of
    equal tokens, and the steps shuffled (left sorted, training would go from short cells to long ones and back: the
    loss swings, and the tiny model of the demo ends 0.3 nats higher, see benchmarks/RESULTS.md). The cells of a step
    depend on its tokens alone, not on how many processes share it: two processes of half the budget see what one sees.

    Everything follows from seed and epoch, so a run that goes on sees what it would have seen.

    Parameters
    ----------
    lengths
        Tokens of each cell.
    batch_size
        Cells of mean length in a batch, the share of one process: its budget. Batches differ from it by less than a
        cell.
    max_tokens
        The budget in tokens, instead of `batch_size`.
    process, n_processes
        Whose batches to yield, of how many.
    batches_a_step
        Batches of each process that make a step (gradient accumulation).
    seed
        Of the order.
    weights
        How often each cell is drawn, relative to the others: an epoch then draws as many cells as there are, with
        replacement. None: every cell once.
    alike, alike_a_step
        A number for each row, such as that of a pair's drug, and of how many numbers the rows of a step should be,
        about: those of one come together, drawn anew each epoch, in place of rows of like length. None: as they come.

    Raises
    ------
    InputError
        There are fewer cells than shares of a step, or `max_tokens` is less than the longest cell.
    """

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        *,
        batch_size: int = 12,
        max_tokens: int | None = None,
        process: int = 0,
        n_processes: int = 1,
        batches_a_step: int = 1,
        seed: int = 0,
        weights: np.ndarray | None = None,
        alike: np.ndarray | None = None,
        alike_a_step: int = 1,
    ) -> None:
        self._alike, self._alike_a_step = alike, alike_a_step
        self._lengths, self._seed, self._epoch = np.asarray(lengths, dtype=np.int64), seed, 0
        self._chance = None if weights is None else np.asarray(weights) / np.sum(weights)
        self._process, self._n_processes, self._batches_a_step = process, n_processes, batches_a_step
        self._n_parts = n_processes * batches_a_step
        n_cells, self.n_tokens = len(self._lengths), int(self._lengths.sum())
        if self._chance is not None:
            self.n_tokens = round(float(n_cells * (self._chance @ self._lengths)))
        if n_cells < self._n_parts:
            raise InputError(f"{n_cells} cells are fewer than the {self._n_parts} batches that make a step.")
        if max_tokens is not None and max_tokens < self._lengths.max():
            raise InputError(
                f"max_tokens={max_tokens} is less than the longest cell, {self._lengths.max()} tokens. Give more."
            )
        if max_tokens is None:
            wanted = -(-n_cells // (self._n_parts * batch_size))
        else:
            wanted = -(-self.n_tokens // (self._n_parts * max_tokens))
        self.n_steps = min(wanted, n_cells // self._n_parts)

    @property
    def tokens_a_batch(self) -> int:
        """Tokens of a batch, on average."""
        return round(self.n_tokens / (self.n_steps * self._n_parts))

    def padding(self) -> float:
        """Share of padding in what attention on the CPU computes, over 100 batches; the rest has none anywhere."""
        batches = [self._lengths[[row for row, _ in batch]] for batch in itertools.islice(self, 100)]
        padded = [sum(lengths) / (1 - Cells(lengths.tolist()).padding()) for lengths in batches]
        return 1 - float(sum(map(sum, batches)) / sum(padded))

    def __len__(self) -> int:
        return self.n_steps * self._batches_a_step

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose batches come next."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yield ``(row, epoch)`` of the cells of a batch."""
        for rows in self._steps():
            parts = self._cut(rows[self._lengths[rows].argsort(kind="stable")], self._n_parts)
            for part in parts[self._process :: self._n_processes]:
                yield [(row, self._epoch) for row in part.tolist()]

    def _steps(self) -> Iterator[np.ndarray]:
        rng = np.random.default_rng([self._seed, self._epoch])
        n_cells = len(self._lengths)
        shuffled = rng.permutation(n_cells) if self._chance is None else rng.choice(n_cells, n_cells, p=self._chance)
        together = self._steps_together() / self.n_steps
        window = (np.arange(len(shuffled)) / (len(shuffled) * together)).astype(np.int64)
        if self._alike is None:
            length = self._lengths[shuffled]
            place = np.where(window % 2, -length, length)  # so that neighbours are alike where windows meet
        else:
            place = rng.random((window[-1] + 1, self._alike.max() + 1))[window, self._alike[shuffled]]
        steps = self._cut(shuffled[np.lexsort((place, window))], self.n_steps, at_least=self._n_parts)
        return (steps[i] for i in rng.permutation(self.n_steps))

    def _steps_together(self) -> float:
        """Return of how many steps the rows are sorted together; of rows that are alike every window has as many."""
        if self._alike is None:
            return max(1, min(_STEPS_SORTED_TOGETHER, self.n_steps // 4))
        n_alike = len(np.unique(self._alike))
        return self.n_steps / max(1, round(self.n_steps * self._alike_a_step / n_alike))

    def _cut(self, rows: np.ndarray, n_parts: int, at_least: int = 1) -> list[np.ndarray]:
        """Cut rows into parts of about the same number of tokens and `at_least` so many cells."""
        lengths = self._lengths[rows]
        middle = np.cumsum(lengths) - lengths / 2
        cuts = np.searchsorted(middle, np.arange(1, n_parts) * (lengths.sum() / n_parts))
        least = np.arange(1, n_parts) * at_least
        cuts = least + np.maximum.accumulate(np.maximum(cuts - least, 0))
        return np.split(rows, np.minimum(cuts, len(rows) - least[::-1]))


def token_budget_batches(lengths: np.ndarray, max_tokens: int) -> Iterator[np.ndarray]:
    """Cut cells into batches of similar length and constant size, longest first.

    A batch that is too large for the memory so fails at once, not after an hour.

    Parameters
    ----------
    lengths
        Tokens of each cell.
    max_tokens
        Most tokens of a batch, if all its cells had the length of the longest; a longer cell is a batch of its own.

    Yields
    ------
    Indices of the cells of a batch; every cell once.
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        n_cells = max(1, max_tokens // max(1, int(lengths[order[start]])))
        yield order[start : start + n_cells]
        start += n_cells


def require_budget(max_tokens: int | None) -> None:
    """Raise unless a batch may hold a token; None leaves it to the device.

    Raises
    ------
    InputError
        `max_tokens` is less than one.
    """
    if max_tokens is not None and max_tokens < 1:
        raise InputError(f"max_tokens must be at least 1, found {max_tokens}.")
