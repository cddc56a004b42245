"""Cells to batches: few shapes, little padding."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

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
        n_cells = max(1, max_tokens // int(lengths[order[start]]))
        yield order[start : start + n_cells]
        start += n_cells


def evaluation_batches(cells: TokenizedDataset, max_tokens: int) -> Iterator[tuple[np.ndarray, dict[str, Tensor]]]:
    """Yield ``(row numbers, batch)`` over all cells, by token budget."""
    for rows in token_budget_batches(cells.lengths, max_tokens):
        yield rows, collate([cells[row] for row in rows], cells.vocabulary)
