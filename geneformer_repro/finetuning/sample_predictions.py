"""Asking an expression network about new samples."""

from pathlib import Path
from typing import Literal

import anndata as ad
import pandas as pd
import torch

from geneformer_repro.checkpoint import Checkpoint
from geneformer_repro.sample_reading import read_scaled
from geneformer_repro.targets import columns_of
from geneformer_repro.tokenizer.dataset import TokenizedDataset


def predict_samples(
    checkpoint: Checkpoint,
    data: TokenizedDataset | ad.AnnData | str | Path,
    *,
    layer: str | None,
    gene_ids: str | None,
    log2: bool,
    cohort: str | None,
    clinical: pd.DataFrame | str | Path | None,
    genes_in: Literal["rows", "columns"] | None,
) -> pd.DataFrame:
    """Return what an expression network says of samples; see `predict`.

    Raises
    ------
    InputError, DataFormatError
        As `read_scaled`.
    """
    network = checkpoint.expression_network
    samples = read_scaled(
        checkpoint,
        data,
        layer=layer,
        gene_ids=gene_ids,
        log2=log2,
        cohort=cohort,
        clinical=clinical,
        genes_in=genes_in,
    )
    meaning_NK = network.head.meaning(torch.from_numpy(network.outputs(samples.scaled_NI))).numpy()
    of_targets = zip(network.head.targets, columns_of(network.head.targets, meaning_NK), strict=True)
    columns = [target.columns(of_target) for target, of_target in of_targets]
    return pd.concat([pd.DataFrame(each, index=samples.obs.index) for each in columns], axis=1)
