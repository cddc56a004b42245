"""Cells to batches: few shapes, little padding."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from geneformer_repro.tokenizer.dataset import TokenizedDataset
from geneformer_repro.tokenizer.vocabulary import Vocabulary


def collate(cells: Sequence[np.ndarray], vocabulary: Vocabulary) -> dict[str, Tensor]:
    """Pad cells to the longest.

    Parameters
    ----------
    cells
        Token ids of each cell.
    vocabulary
        Names the padding token and the genes.

    Returns
    -------
    ``input_ids`` (B, L), ``attention_mask`` (1 for a token, 0 for padding) and ``pooled_mask`` (True for a gene:
    neither padding nor a special token).
    """
    lengths = np.array([len(cell) for cell in cells])
    real_BL = np.arange(lengths.max()) < lengths[:, None]
    ids_BL = np.full(real_BL.shape, vocabulary.pad_token, dtype=np.int64)
    ids_BL[real_BL] = np.concatenate(cells)
    return {
        "input_ids": torch.from_numpy(ids_BL),
        "attention_mask": torch.from_numpy(real_BL.astype(np.int64)),
        "pooled_mask": torch.from_numpy(real_BL & (vocabulary.genes_of(ids_BL) >= 0)),
    }


_BATCHES_SORTED_TOGETHER = 50


class LengthGroupedOrder(Sampler[int]):
    """An order of cells in which every `batch_size` consecutive ones are of similar length, new each epoch.

    Cells are shuffled, sorted by length among 50 batches' worth (a quarter of all, if these are few), cut into batches,
    and the batches shuffled.
    `transformers`' sampler leaves these sorted, so that training goes from long cells to short ones and back every 50
    steps: the loss swings, and the tiny model of the demo ends 0.3 nats higher (see benchmarks/RESULTS.md).

    Parameters
    ----------
    lengths
        Tokens of each cell.
    batch_size
        Cells of a batch.
    generator
        Source of randomness; None is torch's default one, which Trainer saves and restores.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, generator: torch.Generator | None = None) -> None:
        self._lengths, self._batch_size, self._generator = torch.as_tensor(lengths), batch_size, generator

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        n_together = max(1, min(_BATCHES_SORTED_TOGETHER, len(self) // self._batch_size // 4))
        batches: list[Tensor] = []
        for together in self._shuffled(len(self)).split(n_together * self._batch_size):
            batches += together[self._lengths[together].argsort(stable=True)].split(self._batch_size)
        partial = [batch for batch in batches if len(batch) < self._batch_size]  # last, so that the others stay whole
        whole = [batch for batch in batches if len(batch) == self._batch_size]
        order = [whole[i] for i in self._shuffled(len(whole)).tolist()] + partial
        return iter(torch.cat(order).tolist())

    def _shuffled(self, n: int) -> Tensor:
        return torch.randperm(n, generator=self._generator)


def token_budget_batches(lengths: np.ndarray, max_tokens: int) -> Iterator[np.ndarray]:
    """Cut cells into batches of similar length and constant size, longest first.

    A batch that is too large for the memory so fails at once, not after an hour.

    Parameters
    ----------
    lengths
        Tokens of each cell.
    max_tokens
        Most tokens of a batch, padding included; a cell longer than that is a batch of its own.

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


def evaluation_batches(cells: TokenizedDataset, max_tokens: int) -> Iterator[tuple[np.ndarray, dict[str, Tensor]]]:
    """Yield ``(row numbers, batch)`` over all cells, by token budget."""
    for rows in token_budget_batches(cells.lengths, max_tokens):
        yield rows, collate([cells[row] for row in rows], cells.vocabulary)
