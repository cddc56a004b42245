"""Asking a fine-tuned classifier about new data."""

import logging
from pathlib import Path
from typing import cast

import anndata as ad
import numpy as np
import pandas as pd
import torch

from geneformer_repro import processes
from geneformer_repro.batching import evaluation_batches
from geneformer_repro.checkpoint import Checkpoint
from geneformer_repro.embedding import MAX_TOKENS
from geneformer_repro.errors import InputError
from geneformer_repro.finetuning.networks import meaning, outputs_of
from geneformer_repro.model import GeneClassifier, Head, Target
from geneformer_repro.tokenizer.dataset import TokenizedDataset
from geneformer_repro.tokenizer.genes import reconcile
from geneformer_repro.tokenizer.readers import open_counts
from geneformer_repro.tokenizer.tokenize import tokenize
from geneformer_repro.tokenizer.vocabulary import Vocabulary

logger = logging.getLogger(__name__)


def predict(
    checkpoint: Checkpoint,
    data: TokenizedDataset | ad.AnnData | str | Path,
    *,
    layer: str | None = None,
    gene_ids: str | None = None,
    max_tokens: int = MAX_TOKENS,
    device: str | torch.device | None = None,
) -> pd.DataFrame:
    """Predict classes, with probabilities, or numbers of new cells; or classes of the genes in them.

    Parameters
    ----------
    checkpoint
        A classifier made by `finetune` or `finetune_genes`.
    data
        Raw counts (AnnData, or a file or folder that `tokenize` reads), or tokenised cells. What became of the genes is
        said in the log, also how many of the genes that the model knows are missing.
    layer, gene_ids
        Where counts and gene ids are, as for `tokenize`.
    max_tokens
        Tokens of a batch; less needs less memory.
    device
        Default: an accelerator where there is one.

    Returns
    -------
    A row a cell, by name, in the order of the data: for each target ``TARGET_predicted`` and, of classes,
    ``TARGET_probability`` (of that class) and ``TARGET_p_CLASS`` of each class. A cell without a known gene has no
    prediction. Of a gene classifier a row a gene, with the mean over its occurrences, and ``n_cells``. Where `data` is
    an AnnData it has a row for all of its cells (or genes), and the columns are also put into ``obs`` (``var`` for
    genes), "/" in their names as "|": AnnData writes no column with "/".

    Raises
    ------
    InputError
        The checkpoint is no classifier, or the data cannot be read or have too few known genes.
    VocabularyMismatchError
        The tokenised cells have another vocabulary.
    """
    head = checkpoint.head
    if head is None:
        raise InputError(
            f"{checkpoint.name} is a pretrained model without classes; predict needs one made by finetune."
        )
    cells = data if isinstance(data, TokenizedDataset) else _tokenized(checkpoint, data, layer, gene_ids)
    checkpoint.require_matching(cells)
    checkpoint.model.to(torch.device(device) if device else processes.device())  # type: ignore[arg-type]
    if head.level == "gene":
        table = _of_genes(cast(GeneClassifier, checkpoint.model), cells, head.targets[0], max_tokens)
    else:
        table = _of_cells(checkpoint, cells, head, max_tokens)
    if not isinstance(data, ad.AnnData):
        return table
    if head.level == "cell":
        return _into(data.obs, table.reindex(data.obs_names))
    ids = _gene_of_var(data, checkpoint.vocabulary, layer, gene_ids)
    return _into(data.var, table.reindex(ids).set_axis(data.var_names))


def _tokenized(
    checkpoint: Checkpoint, data: ad.AnnData | str | Path, layer: str | None, gene_ids: str | None
) -> TokenizedDataset:
    cells = tokenize(data, checkpoint.vocabulary, layer=layer, gene_ids=gene_ids)
    n_known, n_genes = cells.spec["n_genes_known"], len(checkpoint.vocabulary)
    logger.info("%d of the %d genes that the model knows are in the data; the rest count as silent.", n_known, n_genes)
    return cells


def _of_cells(checkpoint: Checkpoint, cells: TokenizedDataset, head: Head, max_tokens: int) -> pd.DataFrame:
    outputs = head.split(outputs_of(checkpoint.model, cells, head, max_tokens=max_tokens))
    tables = [
        _columns(target, meaning(target, one.numpy()), cells.cell_names)
        for target, one in zip(head.targets, outputs, strict=True)
    ]
    table = pd.concat(tables, axis=1)
    table[cells.lengths <= (2 if cells.vocabulary.has_cls else 0)] = np.nan
    return table


def _columns(target: Target, found: np.ndarray, names: np.ndarray) -> pd.DataFrame:
    columns: dict[str, np.ndarray] = {f"{target.name}_predicted": found}
    if target.classes:
        columns = {
            f"{target.name}_predicted": np.asarray(target.classes, dtype=object)[found.argmax(1)],
            f"{target.name}_probability": found.max(1),
        } | {f"{target.name}_p_{name}": found[:, i] for i, name in enumerate(target.classes)}
    return pd.DataFrame(columns, index=pd.Index(names))


def _of_genes(model: GeneClassifier, cells: TokenizedDataset, target: Target, max_tokens: int) -> pd.DataFrame:
    vocabulary = cells.vocabulary
    sums_VK = torch.zeros(vocabulary.size, target.n_outputs, dtype=torch.float64)
    n_cells_V = torch.zeros(vocabulary.size, dtype=torch.int64)
    device = next(model.parameters()).device
    model.eval()
    with torch.inference_mode():
        for _, batch in evaluation_batches(cells, max_tokens):
            real_BL = batch["attention_mask"].bool()
            tokens_T, lengths = batch["input_ids"][real_BL], real_BL.sum(1).tolist()
            probabilities_TK = model(tokens_T.to(device), lengths).logits.double().softmax(-1).cpu()
            sums_VK.index_add_(0, tokens_T, probabilities_TK)
            n_cells_V += torch.bincount(tokens_T, minlength=vocabulary.size)
    found = np.flatnonzero(n_cells_V[vocabulary.tokens].numpy())
    tokens = vocabulary.tokens[found]
    names = np.array(vocabulary.gene_ids, dtype=object)[found]
    table = _columns(target, (sums_VK[tokens] / n_cells_V[tokens, None]).numpy(), names)
    table["n_cells"] = n_cells_V[tokens].numpy()
    return table


def _gene_of_var(adata: ad.AnnData, vocabulary: Vocabulary, layer: str | None, gene_ids: str | None) -> np.ndarray:
    """Return the gene of the vocabulary that `tokenize` takes each gene of `var` for; "" for none."""
    position = reconcile(open_counts(adata, layer=layer, gene_ids=gene_ids), vocabulary).position
    ids = np.array([*vocabulary.gene_ids, ""], dtype=object)[position]
    if layer != "raw":
        return ids
    by_name = pd.Series(ids, adata.raw.var_names)
    return by_name[~by_name.index.duplicated()].reindex(adata.var_names).to_numpy()


def _into(frame: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    for name in table:
        frame[str(name).replace("/", "|")] = table[name]
    return table
