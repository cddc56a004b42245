"""Why an expression network says what it says of a sample: what each gene's value adds.

Genes are numbers here, so a way from a baseline to a sample is one of values that samples might have, and integrated
gradients are complete to a tenth of a percent: ways are cut as finely as they need (`adaptive_integrals`). An occluded gene
has the median of its cohort instead of its own value. Clinical columns stay as they are, in all methods.

Shapes: N samples, I columns that the network reads, G genes of them, S numbers explained.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import anndata as ad
import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor

from geneformer_repro.checkpoint import Checkpoint
from geneformer_repro.errors import InputError, did_you_mean
from geneformer_repro.expression import ExpressionNetwork
from geneformer_repro.in_silico.explanations.attribution import Attribution
from geneformer_repro.in_silico.explanations.output_answers import OutputAnswer
from geneformer_repro.in_silico.explanations.unit_rows import Units, unit_rows
from geneformer_repro.adaptive_integrals import integrate
from geneformer_repro.sample_reading import ScaledSamples, read_scaled
from geneformer_repro.tokenizer.dataset import TokenizedDataset, as_labels

Method: TypeAlias = Literal["integrated_gradients", "gradient_input", "median"]
METHODS: tuple[Method, ...] = get_args(Method)
Baseline: TypeAlias = Literal["mean", "median"]
TOLERANCE = 1e-3
"""Of the completeness of integrated gradients."""
_LEAST = 0.1
"""Differences below this share of the spread over samples count as so much in the gap."""
_SAMPLES_AT_ONCE, _ROWS_AT_ONCE = 16, 256
_PASSES: Mapping[str, int] = {"integrated_gradients": 32, "gradient_input": 2, "median": 8}
"""About how many passes of a sample's genes a method's work is worth."""


class SampleFunction:
    """What is explained, as a function of scaled samples.

    Parameters
    ----------
    network
        Whose outputs they are.
    answer
        The numbers of them that are explained.
    """

    def __init__(self, network: ExpressionNetwork, answer: OutputAnswer) -> None:
        self.network, self.answer = network.eval(), answer
        self.genes = network.scale.columns("expression")
        self.n_states = len(answer.names)

    def __call__(self, scaled_NI: Tensor) -> Tensor:
        """Return the numbers, (N, S)."""
        return self.answer(self.network(scaled_NI))

    @torch.no_grad()
    def values(self, scaled_NI: np.ndarray) -> np.ndarray:
        """Return the numbers, (N, S) float64."""
        blocks = torch.from_numpy(scaled_NI).split(_ROWS_AT_ONCE)
        return torch.cat([self(block).double() for block in blocks]).numpy()

    def gradient_input(self, scaled_NI: np.ndarray, baseline_NG: np.ndarray) -> np.ndarray:
        """Return the derivative by each gene times its distance from the baseline, (N, G, S) float64."""
        there = torch.from_numpy(scaled_NI).requires_grad_()
        summed_S = self(there).sum(0)
        slopes = [torch.autograd.grad(of_state, there, retain_graph=True)[0] for of_state in summed_S.unbind()]
        share_NG = scaled_NI[:, self.genes] - baseline_NG
        return torch.stack(slopes, dim=2)[:, self.genes].double().numpy() * share_NG[:, :, None]

    @torch.no_grad()
    def occluded(self, scaled_I: np.ndarray, instead_G: np.ndarray, genes: np.ndarray) -> np.ndarray:
        """Return what is lost of each number when a gene has another value, (genes, S) float64.

        Parameters
        ----------
        scaled_I
            One sample.
        instead_G
            Value that each gene of the network gets.
        genes
            Which are changed, one at a time.
        """
        sample_I, instead = torch.from_numpy(scaled_I), torch.from_numpy(instead_G)
        before_S = self(sample_I[None])[0].double()
        blocks = [
            self.answer(self.network.outputs_of_changes(sample_I, some, instead[some]))
            for some in torch.from_numpy(genes).split(8 * _ROWS_AT_ONCE)
        ]
        lost_CS: np.ndarray = (before_S - torch.cat(blocks).double()).numpy()
        return lost_CS

    def integrated(
        self, scaled_NI: np.ndarray, baseline_NG: np.ndarray, least_S: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return integrated gradients by gene, (N, G, S) float64, and their gaps, (N, S)."""
        ways = _SampleWays.of(self, scaled_NI, baseline_NG)
        n, n_genes = baseline_NG.shape
        found = integrate(ways, n * self.n_states, n_genes, least=np.tile(least_S, n), tolerance=TOLERANCE)
        by_gene_NSG = found.by_unit_PG.astype(np.float64).reshape(n, self.n_states, n_genes)
        return by_gene_NSG.transpose(0, 2, 1), found.gap_P.reshape(n, self.n_states)


@dataclass(frozen=True, eq=False)
class _SampleWays:
    """Ways from baselines to samples: of each sample one for each number explained."""

    function: SampleFunction
    start: Tensor
    share: Tensor

    @classmethod
    def of(cls, function: SampleFunction, scaled_NI: np.ndarray, baseline_NG: np.ndarray) -> "_SampleWays":
        start_NI = scaled_NI.copy()
        start_NI[:, function.genes] = baseline_NG
        return cls(function, torch.from_numpy(start_NI), torch.from_numpy(scaled_NI - start_NI))

    @torch.no_grad()
    def values(self, way_I: np.ndarray, at_I: np.ndarray) -> np.ndarray:
        """Return the numbers at places on ways."""
        cuts = self._cut(way_I, at_I)
        return np.concatenate([self._at(*some)[1].double().numpy() for some in cuts])

    def derived(self, way_I: np.ndarray, at_I: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the numbers there, and what each gene adds if its derivative there holds for all of the way."""
        found = []
        for way, at in self._cut(way_I, at_I):
            there, value = self._at(way, at)
            (slope,) = torch.autograd.grad(value.sum(), there)
            added = (slope * self.share[self._samples(way)])[:, self.function.genes]
            found.append((value.detach().double().numpy(), added.double().numpy()))
        value_I, by_gene_IG = (np.concatenate(of) for of in zip(*found, strict=True))
        return value_I, by_gene_IG

    def _samples(self, way_I: np.ndarray) -> Tensor:
        return torch.from_numpy(way_I // self.function.n_states)

    def _at(self, way_I: np.ndarray, at_I: np.ndarray) -> tuple[Tensor, Tensor]:
        rows, at = self._samples(way_I), torch.from_numpy(at_I).to(self.share)
        there = (self.start[rows] + at[:, None] * self.share[rows]).requires_grad_()
        state_I = torch.from_numpy(way_I % self.function.n_states)
        return there, self.function(there).gather(1, state_I[:, None])[:, 0]

    @staticmethod
    def _cut(way_I: np.ndarray, at_I: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        starts = range(0, len(way_I), _ROWS_AT_ONCE)
        return [(way_I[i : i + _ROWS_AT_ONCE], at_I[i : i + _ROWS_AT_ONCE]) for i in starts]


@dataclass(frozen=True, eq=False)
class ExplainedSamples:
    """Samples of an expression network, to be explained part by part."""

    checkpoint: Checkpoint
    samples: ScaledSamples
    function: SampleFunction
    methods: tuple[Method, ...]
    baseline: Baseline
    donor: str | None
    obs: tuple[str, ...]
    median_NG: np.ndarray
    """Median of each gene in each sample's cohort, on the network's scale."""
    least_S: np.ndarray
    """As of `integrate`, of each number explained."""

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        data: TokenizedDataset | ad.AnnData | str | Path,
        *,
        target: str | None = None,
        state: str | Sequence[str] | None = None,
        contrast: str | None = None,
        methods: Sequence[str] = ("integrated_gradients",),
        baseline: Baseline = "mean",
        donor: str | None = None,
        obs: Sequence[str] = (),
        rows: np.ndarray | None = None,
        **how: Any,
    ) -> "ExplainedSamples":
        """Read samples, and find what is explained of them.

        Parameters
        ----------
        checkpoint
            An expression network.
        data, how
            Samples, and how they are read: as `predict` takes them.
        target, state, contrast
            As of `OutputAnswer.of`.
        methods
            Some of `METHODS`.
        baseline
            Where ways begin, and with what the input is compared: "mean", the mean of the training samples (0 on the
            network's scale), or "median", that of the sample's cohort.
        donor
            obs column of the replicates; default each sample is one.
        obs
            obs columns to carry into the table.
        rows
            Numbers of the samples that are explained; medians are of all. Default all.

        Raises
        ------
        InputError, DataFormatError
            A method, target, class or column is unknown, or the data cannot be read; see `predict`.
        """
        require_methods(methods, METHODS, "an expression network")
        if baseline not in get_args(Baseline):
            raise InputError(f"baseline must be 'mean' or 'median' for an expression network, found {baseline!r}.")
        network = checkpoint.expression_network
        answer = OutputAnswer.of(network.head.targets, target, state, contrast, named=checkpoint.name)
        samples = read_scaled(checkpoint, data, **how)
        for name in [*([donor] if donor else []), *obs]:
            if name not in samples.obs:
                raise InputError(f"The samples have no obs column {name!r}. {did_you_mean(name, samples.obs.columns)}")
        function = SampleFunction(network, answer)
        spread_S = function.values(samples.scaled_NI).std(axis=0)
        median_NG = _medians(samples, function.genes)
        if rows is not None:
            samples, median_NG = _selected(samples, rows), median_NG[rows]
        given = (tuple(methods), baseline, donor, tuple(obs), median_NG, np.maximum(_LEAST * spread_S, 1e-6))
        return cls(checkpoint, samples, function, *given)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.samples.names)

    @property
    def gene_ids(self) -> tuple[str, ...]:
        """Genes that the network reads."""
        return self.function.network.scale.names["expression"]

    def costs(self) -> np.ndarray:
        """Return about how many values of genes are computed with for each sample."""
        a_sample = len(self.gene_ids) * self.function.n_states * sum(_PASSES[method] for method in self.methods)
        return np.full(len(self), a_sample)

    def describe(self) -> dict[str, Any]:
        """Say what is explained and how, as JSON can hold it; all inputs by content."""
        scale, samples = self.function.network.scale, self.samples
        digest = hashlib.sha256(samples.scaled_NI.tobytes())
        digest.update(self.median_NG.tobytes() + self.least_S.tobytes() + "\n".join(samples.names).encode())
        for name in [*([self.donor] if self.donor else []), *self.obs]:
            digest.update("\n".join(as_labels(samples.obs[name]).astype(str)).encode())
        settings: dict[str, dict[str, Any]] = {
            "integrated_gradients": {"baseline": self.baseline, "tolerance": TOLERANCE},
            "gradient_input": {"baseline": self.baseline},
            "median": {"operator": "the median of the cohort instead of a gene's value"},
        }
        return {
            "family": "samples",
            "measure": self.function.answer.described,
            "target": self.function.answer.target.name,
            "states": list(self.function.answer.names),
            "methods": {method: settings[method] for method in self.methods},
            "gene_names": {
                gene: name for gene, name in zip(self.gene_ids, scale.gene_names, strict=True) if name and name != gene
            },
            "donor": self.donor,
            "obs": list(self.obs),
            "checkpoint": self.checkpoint.fingerprint,
            "rows": digest.hexdigest(),
            "n_cells": len(self),
        }

    def table(self, part: np.ndarray, show: Callable[[int], object] = lambda n: None) -> pa.Table:
        """Return the rows of some samples.

        Parameters
        ----------
        part
            Their numbers.
        show
            Called with the number of samples that are done.
        """
        tables = []
        carried = {name: pa.array(self.samples.obs[name]) for name in self.obs}
        for start in range(0, len(part), _SAMPLES_AT_ONCE):
            some = part[start : start + _SAMPLES_AT_ONCE]
            for row, of_sample in zip(some, self.attributions(some), strict=True):
                kept = np.flatnonzero(self.samples.is_there_NI[row, self.function.genes])
                units = Units(genes=[self.gene_ids[i] for i in kept])
                for method, (value_GS, before_S, gap_S) in of_sample.items():
                    said: dict[str, Any] = {"row": self.samples.names[row], "donor": self._donor(row)}
                    said |= {"obs": {name: values[int(row)] for name, values in carried.items()}}
                    said |= {"method": method, "exact": method != "gradient_input", "gap_S": gap_S}
                    tables.append(unit_rows(units, value_GS[kept], self.function.answer.names, before_S, **said))
            show(len(some))
        return pa.concat_tables(tables).combine_chunks()

    def _donor(self, row: int) -> str | None:
        if self.donor is None:
            return str(self.samples.names[row])
        label = as_labels(self.samples.obs[self.donor]).iloc[row]
        return None if pd.isna(label) else str(label)

    def attributions(self, rows: np.ndarray) -> list[dict[Method, Attribution]]:
        """Return what each method says of some samples: by gene of the network, whether the sample has it or not."""
        function, scaled_NI = self.function, self.samples.scaled_NI[rows]
        before_NS, there_NG = function.values(scaled_NI), self.samples.is_there_NI[rows, function.genes]
        median_NG = np.where(there_NG, self.median_NG[rows], scaled_NI[:, function.genes])
        baseline_NG = median_NG if self.baseline == "median" else np.zeros_like(median_NG)
        found: list[dict[Method, Attribution]] = [{} for _ in rows]
        for method in self.methods:
            gaps = None
            if method == "integrated_gradients":
                values, gaps = function.integrated(scaled_NI, baseline_NG, self.least_S)
            elif method == "gradient_input":
                values = function.gradient_input(scaled_NI, baseline_NG)
            else:
                every = np.arange(median_NG.shape[1])
                each = zip(scaled_NI, median_NG, strict=True)
                values = np.stack([function.occluded(sample, instead, every) for sample, instead in each])
            for i, of_sample in enumerate(found):
                of_sample[method] = Attribution(values[i], before_NS[i], None if gaps is None else gaps[i])
        return found


def _selected(samples: ScaledSamples, rows: np.ndarray) -> ScaledSamples:
    return dataclasses.replace(
        samples,
        names=samples.names[rows],
        obs=samples.obs.iloc[rows],
        scaled_NI=samples.scaled_NI[rows],
        is_there_NI=samples.is_there_NI[rows],
        cohorts=(),
    )


def _medians(samples: ScaledSamples, genes: slice) -> np.ndarray:
    """Return the median of each gene in each sample's cohort, of samples that have a value; 0 where none has."""
    median_NG = np.zeros_like(samples.scaled_NI[:, genes])
    for rows in samples.cohorts:
        values = np.where(samples.is_there_NI[rows, genes], samples.scaled_NI[rows, genes], np.nan)
        known = ~np.isnan(values).all(axis=0)
        of_cohort = np.zeros(values.shape[1], dtype=np.float32)
        of_cohort[known] = np.nanmedian(values[:, known], axis=0)
        median_NG[rows] = of_cohort
    return median_NG


def require_methods(methods: Sequence[str], known: Sequence[str], of: str) -> None:
    """Raise if a method is unknown for what is explained, stands twice, or none is named."""
    if isinstance(methods, str) or not methods or len(set(methods)) < len(methods):
        raise InputError(f"methods names different methods in a list, at least one; found {methods!r}.")
    for method in methods:
        if method not in known:
            raise InputError(f"{of.capitalize()} is not explained by {method!r}. {did_you_mean(method, known)}")
