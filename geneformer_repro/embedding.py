"""The only evaluation forward: hidden states of a layer, pooled to genes or cells.

It stops after the block that is read and never runs a head.
"""

import logging
from collections.abc import Iterator
from typing import Literal, NamedTuple, get_args

import anndata as ad
import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from transformers import BertModel

from geneformer_repro.batching import evaluation_batches
from geneformer_repro.checkpoint import Checkpoint
from geneformer_repro.errors import InputError
from geneformer_repro.model import Pooling, pool, require_poolable, run_encoder
from geneformer_repro.progress import progress
from geneformer_repro.tokenizer.dataset import TokenizedDataset
from geneformer_repro.tokenizer.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

Level = Literal["cell", "gene"]
MAX_TOKENS = 16_384
"""Tokens of an evaluation batch: 64 cells of 256 genes, or 8 of 2,048."""


class HiddenBatch(NamedTuple):
    """Hidden states of some cells."""

    rows: np.ndarray
    """Row number of each cell."""
    input_ids_BL: Tensor
    genes_BL: Tensor
    """True where there is a gene: not padding, not a special token."""
    hidden_BLD: Tensor


def blocks_to_run(checkpoint: Checkpoint, layer: int) -> int:
    """Return how many blocks run to read `layer`: 0 is the last block, -1 the one before (the published convention)."""
    n_blocks = checkpoint.model.config.num_hidden_layers + layer
    if layer > 0 or n_blocks < 0:
        raise InputError(
            f"layer must lie between {-checkpoint.model.config.num_hidden_layers} (the input embedding) and 0 (the "
            f"last block), found {layer}."
        )
    return int(n_blocks)


def default_device() -> torch.device:
    """Return the accelerator of this machine, else the CPU."""
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")  # type: ignore[return-value]


def encoder_on(checkpoint: Checkpoint, device: torch.device) -> BertModel:
    """Move a checkpoint's model to a device, in evaluation mode; return its encoder."""
    nn.Module.to(checkpoint.model, device)
    return checkpoint.model.eval().bert


def hidden_states(
    checkpoint: Checkpoint,
    cells: TokenizedDataset,
    *,
    layer: int = -1,
    max_tokens: int = MAX_TOKENS,
    device: str | torch.device | None = None,
) -> Iterator[HiddenBatch]:
    """Run cells through a model in evaluation mode, in batches of similar length (not in input order).

    Parameters
    ----------
    checkpoint
        The model; moved to `device`.
    cells
        Cells of the same vocabulary.
    layer
        0 is the last block, -1 the one before.
    max_tokens
        Tokens of a batch, padding included.
    device
        Default: an accelerator where there is one.

    Raises
    ------
    InputError
        The layer does not exist, or cells and model do not belong together.
    """
    checkpoint.require_matching(cells)
    n_blocks = blocks_to_run(checkpoint, layer)
    device = torch.device(device) if device else default_device()
    bert = encoder_on(checkpoint, device)
    with progress("embed", total=len(cells), unit="cells") as bar:
        for rows, batch in evaluation_batches(cells, max_tokens):
            with torch.inference_mode():
                ids_BL = batch["input_ids"].to(device)
                packed = run_encoder(bert, ids_BL, batch["attention_mask"].to(device), n_blocks=n_blocks)
                hidden_BLD = packed.padded()
            yield HiddenBatch(rows, ids_BL, batch["pooled_mask"].to(device), hidden_BLD)
            bar.update(len(rows))


def embed(
    checkpoint: Checkpoint,
    cells: TokenizedDataset,
    *,
    level: Level = "cell",
    layer: int = -1,
    pooling: Pooling = "mean",
    max_tokens: int = MAX_TOKENS,
    device: str | torch.device | None = None,
) -> ad.AnnData:
    """Embed cells, or the genes of their vocabulary.

    Parameters
    ----------
    checkpoint
        The model.
    cells
        Cells of the same vocabulary.
    level
        "cell": one vector a cell. "gene": one vector a gene, the mean of its contextual vectors over the cells that
        express it.
    layer
        0 is the last block, -1 the one before (as a rule the more general one).
    pooling
        For cells: "mean" over the genes, or "cls", the vector of ``<cls>`` (V2 series only).
    max_tokens
        Tokens of a batch; less needs less memory.
    device
        Default: an accelerator where there is one.

    Returns
    -------
    ``X`` (float32). At cell level in the order of the cells, with their names and obs columns; at gene level indexed by
    gene id with ``gene_name`` and ``n_cells``, genes that no cell expresses left out. ``uns["geneformer_repro"]``
    says which layer and pooling.

    Raises
    ------
    InputError
        The layer does not exist, or pooling "cls" is asked of cells without ``<cls>``.
    VocabularyMismatchError
        The cells were tokenised with another vocabulary than the model's.
    """
    require_poolable(cells.vocabulary, pooling)
    if level not in get_args(Level):
        raise InputError(f"level must be one of {', '.join(map(repr, get_args(Level)))}, found {level!r}.")
    batches = hidden_states(checkpoint, cells, layer=layer, max_tokens=max_tokens, device=device)
    hidden_size = checkpoint.model.config.hidden_size
    if level == "cell":
        adata = _embed_cells(batches, cells, hidden_size, pooling)
    else:
        adata = _embed_genes(batches, cells.vocabulary, hidden_size)
    adata.uns["geneformer_repro"] = {
        "model": checkpoint.name,
        "vocabulary": cells.vocabulary.fingerprint,
        "level": level,
        "layer": layer,
        "pooling": pooling,
    }
    return adata


def _embed_cells(
    batches: Iterator[HiddenBatch], cells: TokenizedDataset, hidden_size: int, pooling: Pooling
) -> ad.AnnData:
    vectors_ND = np.empty((len(cells), hidden_size), dtype=np.float32)
    for batch in batches:
        vectors_ND[batch.rows] = pool(batch.hidden_BLD, batch.genes_BL, pooling).float().cpu().numpy()
    return ad.AnnData(vectors_ND, obs=cells.obs)


def _embed_genes(batches: Iterator[HiddenBatch], vocabulary: Vocabulary, hidden_size: int) -> ad.AnnData:
    sums_VD = torch.zeros(vocabulary.size, hidden_size, dtype=torch.float64)
    n_cells_V = torch.zeros(vocabulary.size, dtype=torch.int64)
    for batch in batches:
        tokens_T = batch.input_ids_BL[batch.genes_BL].cpu()
        sums_VD.index_add_(0, tokens_T, batch.hidden_BLD[batch.genes_BL].cpu().double())
        n_cells_V += torch.bincount(tokens_T, minlength=vocabulary.size)
    found = np.flatnonzero(n_cells_V[vocabulary.tokens].numpy())
    tokens = vocabulary.tokens[found]
    means_GD = (sums_VD[tokens] / n_cells_V[tokens, None]).float().numpy()
    obs = pd.DataFrame(
        {"gene_name": [vocabulary.gene_names[i] for i in found], "n_cells": n_cells_V[tokens].numpy()},
        index=pd.Index([vocabulary.gene_ids[i] for i in found]),
    )
    return ad.AnnData(means_GD, obs=obs)
