"""Cells as stock BERT takes them: padded to the longest. This package lays them end to end."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from geneformer_repro.tokenizer.vocabulary import Vocabulary


def padded(cells: Sequence[np.ndarray], vocabulary: Vocabulary) -> dict[str, Tensor]:
    """Return ``input_ids`` and ``attention_mask`` (1 for a token, 0 for padding), (B, L)."""
    lengths = np.array([len(cell) for cell in cells])
    real_BL = np.arange(lengths.max()) < lengths[:, None]
    ids_BL = np.full(real_BL.shape, vocabulary.pad_token, dtype=np.int64)
    ids_BL[real_BL] = np.concatenate(cells)
    return {"input_ids": torch.from_numpy(ids_BL), "attention_mask": torch.from_numpy(real_BL.astype(np.int64))}
