"""Asking an expression network about new samples: their values brought to its scale, each by itself or by cohort.

A network that was trained on one cohort has the mean and spread of its genes, and scales a new sample by these alone,
so what is said of it depends on nobody else. Another platform lies elsewhere, and a network that learned several
cohorts, each standardised by itself, knows no scale for a new one; there a cohort is scaled by its own samples, of
which it needs some.
"""

import dataclasses
import logging
from pathlib import Path
from typing import Literal, TypeAlias

import anndata as ad
import numpy as np
import pandas as pd
import torch

import geneformer_repro.processes as processes
from geneformer_repro.checkpoint import Checkpoint
from geneformer_repro.errors import InputError, did_you_mean
from geneformer_repro.expression import ExpressionInputs, InputScale
from geneformer_repro.finetuning.cohort_data import as_inputs
from geneformer_repro.finetuning.problems.samples import clinical_columns
from geneformer_repro.targets import columns_of
from geneformer_repro.tokenizer.dataset import TokenizedDataset, as_labels
from geneformer_repro.tokenizer.measures import Measure
from geneformer_repro.tokenizer.samples import read_expression, read_samples

logger = logging.getLogger(__name__)

_Data: TypeAlias = TokenizedDataset | ad.AnnData | str | Path
_FEWEST = 10
"""Samples of a cohort that is standardised by itself; the mean of fewer says little of what is usual."""


def predict_samples(
    checkpoint: Checkpoint,
    data: _Data,
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
    InputError
        The data are tokens, what the network's values are is not known, no gene or a clinical column is not there, or a
        cohort has too few samples.
    DataFormatError
        The data cannot be read, or their values are not what the network's are.
    """
    network = checkpoint.expression_network
    samples = _read(checkpoint, data, layer, gene_ids, clinical, genes_in)
    values = network.scale.measure
    if values is None:
        raise InputError(
            f"{checkpoint.name} does not say whether it reads counts, expression or z-scores: an earlier version of "
            "the package wrote it. Train it anew."
        )
    inputs = _of_its_columns(network.scale, as_inputs(samples, Measure(values, log2)), samples.obs)
    scaled_NI = np.empty((len(inputs), len(network.scale)), dtype=np.float32)
    for name, rows in _cohorts(checkpoint, samples, cohort).items():
        of_cohort = inputs.select(rows)
        if name is not None and len(rows) < _FEWEST:
            raise InputError(
                f"{name} has {len(rows)} samples, and is to be standardised by itself, for which it needs {_FEWEST}. "
                "Give more of its samples, or leave it out."
            )
        scale = network.scale if name is None else network.scale.refitted(of_cohort, but=("covariates",))
        scaled_NI[rows] = scale(of_cohort)
    meaning_NK = network.head.meaning(torch.from_numpy(network.outputs(scaled_NI))).numpy()
    of_targets = zip(network.head.targets, columns_of(network.head.targets, meaning_NK), strict=True)
    columns = [target.columns(of_target) for target, of_target in of_targets]
    return pd.concat([pd.DataFrame(each, index=samples.obs_names) for each in columns], axis=1)


def _read(
    checkpoint: Checkpoint,
    data: _Data,
    layer: str | None,
    gene_ids: str | None,
    clinical: pd.DataFrame | str | Path | None,
    genes_in: Literal["rows", "columns"] | None,
) -> ad.AnnData:
    if isinstance(data, TokenizedDataset):
        raise InputError(
            f"These samples are tokenised, and {checkpoint.name} is an expression network, which reads their values. "
            "Give an AnnData, an .h5ad or a table of expression."
        )
    samples = read_expression(data, genes_in) if clinical is None else read_samples(data, clinical, genes_in=genes_in)
    if layer is not None:
        if layer not in samples.layers:
            raise InputError(f"The samples have no layer {layer!r}. {did_you_mean(layer, samples.layers)}")
        samples.X = samples.layers[layer]
    if gene_ids not in (None, "index"):
        if gene_ids not in samples.var:
            raise InputError(f"The samples have no var column {gene_ids!r}. {did_you_mean(gene_ids, samples.var)}")
        samples.var_names = samples.var[gene_ids].astype(str)
    return samples


def _of_its_columns(scale: InputScale, inputs: ExpressionInputs, obs: pd.DataFrame) -> ExpressionInputs:
    """Return the columns that a network reads, clinical ones too, so that what is missing is said once."""
    if clinical := scale.names.get("covariates"):
        values, names = {"covariates": clinical_columns(obs, clinical)}, {"covariates": clinical}
        inputs = dataclasses.replace(inputs, values={**values, **inputs.values}, names={**names, **inputs.names})
    raw_NI, n_genes = scale.raw(inputs), len(scale.gene_names)
    if processes.is_first():
        n_there = int((~np.isnan(raw_NI[:, scale.columns("expression")]).all(axis=0)).sum())
        logger.info("%s of the %s genes that the network reads are in the data.", f"{n_there:,}", f"{n_genes:,}")
    values = {block: raw_NI[:, scale.columns(block)] for block in scale.names}
    return ExpressionInputs(values, scale.names, scale.gene_names, inputs.measure)


def _cohorts(checkpoint: Checkpoint, samples: ad.AnnData, cohort: str | None) -> dict[str | None, np.ndarray]:
    """Return the samples of each cohort that is standardised by itself; under None those that are scaled as trained."""
    every = np.arange(samples.n_obs)
    if cohort is None and checkpoint.expression_network.scale.within_cohorts:
        if processes.is_first():
            logger.warning(
                "%s learned cohorts that were standardised each by itself; these %s samples are taken for one. Of "
                "several name their obs column: cohort= (--cohort).",
                checkpoint.name, f"{len(every):,}",
            )  # fmt: skip
        return {"The data": every}
    if cohort is None:
        return {None: every}
    if cohort not in samples.obs:
        raise InputError(f"The samples have no obs column {cohort!r}. {did_you_mean(cohort, samples.obs.columns)}")
    labels = as_labels(samples.obs[cohort])
    if labels.isna().any():
        first = samples.obs_names[labels.isna()][0]
        raise InputError(f"obs column {cohort!r} names no cohort of {labels.isna().sum()} samples (first: {first!r}).")
    return {f"Cohort {name!r}": np.flatnonzero(labels == name) for name in sorted(set(labels))}
