"""Samples as expression networks read them: brought to a network's columns and scale, each by itself or by cohort.

A network that was trained on one cohort has the mean and spread of its genes, and scales a new sample by these alone,
so what is said of it depends on nobody else. Another platform lies elsewhere, and a network that learned several
cohorts, each standardised by itself, knows no scale for a new one; there a cohort is scaled by its own samples, of
which it needs some.
"""

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import anndata as ad
import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

import geneformer_repro.processes as processes
from geneformer_repro.checkpoint import Checkpoint
from geneformer_repro.errors import InputError, did_you_mean
from geneformer_repro.expression import ExpressionInputs, InputScale
from geneformer_repro.tokenizer.counts import log_normalise
from geneformer_repro.tokenizer.dataset import TokenizedDataset
from geneformer_repro.tokenizer.labels import as_labels
from geneformer_repro.tokenizer.measures import Measure, Values
from geneformer_repro.tokenizer.published import is_dataset
from geneformer_repro.tokenizer.samples import read_expression, read_samples

logger = logging.getLogger(__name__)

_FEWEST = 10
"""Samples of a cohort that is standardised by itself; the mean of fewer says little of what is usual."""


@dataclass(frozen=True, eq=False)
class ScaledSamples:
    """Samples as an expression network takes them."""

    names: np.ndarray
    """Of each sample."""
    obs: pd.DataFrame
    """What is known of them beside."""
    scaled_NI: np.ndarray
    """Their values on the network's scale, float32; 0 is the mean, also where a value is missing."""
    is_there_NI: np.ndarray
    """Where there was a value."""
    digests_N: np.ndarray
    """Of their values, as `Checkpoint.seen` has them."""
    cohorts: tuple[np.ndarray, ...]
    """The samples of each cohort that was scaled by itself; of a network that has its scale one of all samples."""


def read_scaled(
    checkpoint: Checkpoint,
    data: TokenizedDataset | ad.AnnData | str | Path,
    *,
    layer: str | None = None,
    gene_ids: str | None = None,
    log2: bool = False,
    cohort: str | None = None,
    clinical: pd.DataFrame | str | Path | None = None,
    genes_in: Literal["rows", "columns"] | None = None,
) -> ScaledSamples:
    """Read samples and bring them to the columns and scale of an expression network; options are those of `predict`.

    Raises
    ------
    InputError
        The data are tokens, what the network's values are is not known, no gene or a clinical column is not there, or a
        cohort has too few samples.
    DataFormatError
        The data cannot be read, or their values are not what the network's are.
    """
    network = checkpoint.expression_network
    scale = network.scale
    samples = _read(checkpoint, data, layer, gene_ids, clinical, genes_in)
    if scale.measure is None:
        raise InputError(
            f"{checkpoint.name} does not say whether it reads counts, expression or z-scores: an earlier version of "
            "the package wrote it. Train it anew."
        )
    inputs = _of_its_columns(scale, as_inputs(samples, Measure(scale.measure, log2)), samples.obs)
    scaled_NI = np.empty((len(inputs), len(scale)), dtype=np.float32)
    cohorts = _cohorts(checkpoint, samples, cohort)
    for name, rows in cohorts.items():
        of_cohort = inputs.select(rows)
        if name is not None and len(rows) < _FEWEST:
            raise InputError(
                f"{name} has {len(rows)} samples, and is to be standardised by itself, for which it needs {_FEWEST}. "
                "Give more of its samples, or leave it out."
            )
        its = scale if name is None else scale.refitted(of_cohort, but=("covariates",))
        scaled_NI[rows] = its(of_cohort)
    names, is_there_NI = samples.obs_names.to_numpy(dtype=str), ~np.isnan(scale.raw(inputs))
    digests_N, of_cohorts = network.digests(inputs), tuple(cohorts.values())
    return ScaledSamples(names, samples.obs, scaled_NI, is_there_NI, digests_N, of_cohorts)


def _read(
    checkpoint: Checkpoint,
    data: TokenizedDataset | ad.AnnData | str | Path,
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


def clinical_columns(obs: pd.DataFrame, names: Sequence[str]) -> np.ndarray:
    """Return the clinical columns of a network, as `clinical_block` named them, of other samples: (samples, names).

    A label that the network has not learned counts as missing, which is said.

    Raises
    ------
    InputError
        There is no such column, or it holds text where the network learned numbers.
    """
    values, others = [], dict[str, pd.Series]()
    for name in names:
        if name in obs:
            if not pd.api.types.is_numeric_dtype(obs[name].dtype):
                raise InputError(
                    f"The network reads numbers in {name!r}, found {str(obs[name].iloc[0])!r}. Give numbers."
                )
            values.append(obs[name].to_numpy(dtype=np.float32, na_value=np.nan))
            continue
        column, label = _column_and_label(obs, name)
        labels = as_labels(obs[column])
        values.append((labels == label).to_numpy(np.float32))
        left = others.get(column, labels)
        others[column] = left[left != label]
    for column, labels in others.items():
        if n := int(labels.notna().sum()):
            told = ", ".join(map(repr, sorted(set(labels.dropna()))[:5]))
            logger.warning("%s: the network has not learned %s, of %d samples; they count as missing.", column, told, n)
    return np.column_stack(values)


def _column_and_label(obs: pd.DataFrame, name: str) -> tuple[str, str]:
    """Return the column and the label that the name of a network's column is made of; either may hold a "="."""
    for end in (place for place, character in enumerate(name) if character == "="):
        if name[:end] in obs:
            return name[:end], name[end + 1 :]
    column = name.partition("=")[0]
    raise InputError(
        f"The network reads the clinical column {column!r}, which the samples do not have. "
        f"{did_you_mean(column, map(str, obs.columns))} A table of such columns is joined by clinical= (--clinical)."
    )


# Matrices


def as_inputs(adata: ad.AnnData, measure: Measure) -> ExpressionInputs:
    """Return the samples as networks on expression are given them.

    Raises
    ------
    DataFormatError
        As `as_measured`.
    InputError
        Two genes have one id.
    """
    names = adata.var["gene_name"].astype(str) if "gene_name" in adata.var else [""] * adata.n_vars
    values, ids = {"expression": as_measured(adata, measure)}, {"expression": tuple(adata.var_names.astype(str))}
    return ExpressionInputs(values, ids, tuple(names), measure.values)


def as_measured(adata: ad.AnnData, measure: Measure) -> np.ndarray:
    """Return the matrix on the scale that networks and simple methods look at, (samples, genes) float32.

    Raises
    ------
    DataFormatError
        The matrix does not hold what `measure` says.
    """
    return measured(adata, measure).toarray()


def measured(adata: ad.AnnData, measure: Measure) -> csr_matrix:
    """Return the same as a sparse matrix."""
    stored, told = csr_matrix(adata.X, dtype=np.float32), "X of the samples"
    measure.require(stored, told, adata.obs_names.__getitem__, adata.var_names)
    measure.require_likely(stored, told)
    return log_normalise(measure.linear(stored)[0], measure.values)


def opened_samples(
    samples: TokenizedDataset | ad.AnnData | pd.DataFrame | str | Path,
) -> TokenizedDataset | ad.AnnData | pd.DataFrame:
    """Open a file of samples, or a folder of tokens."""
    if isinstance(samples, str | Path) and Path(samples).exists() and is_dataset(Path(samples)):
        return TokenizedDataset.open(samples)
    return samples if isinstance(samples, TokenizedDataset) else opened_matrix(samples)


def opened_matrix(samples: ad.AnnData | pd.DataFrame | str | Path) -> ad.AnnData | pd.DataFrame:
    """Open a file of samples."""
    return read_samples(samples) if isinstance(samples, str | Path) else samples


def matrix_inputs(
    expression: ad.AnnData | pd.DataFrame, values: Values | None, log2: bool, genes: Sequence[str] = ()
) -> tuple[np.ndarray, ExpressionInputs]:
    """Return names of samples, and their expression as networks and simple methods look at it.

    Raises
    ------
    InputError
        An AnnData comes without `values`, or none of `genes` is there.
    DataFormatError
        It does not hold them.
    """
    called = expression.index if isinstance(expression, pd.DataFrame) else expression.obs_names
    if isinstance(expression, pd.DataFrame):
        names = {"expression": tuple(expression.columns.astype(str))}
        inputs = ExpressionInputs({"expression": expression.to_numpy(np.float32)}, names)
    elif values is None:
        raise InputError('values is missing: say what the matrix holds, "counts", "expression" or "zscore".')
    else:
        inputs = as_inputs(expression, Measure(values, log2))
    return called.to_numpy(dtype=str), inputs.of_genes(genes) if genes else inputs
