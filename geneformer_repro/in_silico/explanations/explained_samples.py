"""Why an expression network says what it says of a sample: what each gene's value adds.

Genes are numbers here, so a way from a baseline to a sample is one of values that samples might have, and integrated
gradients are complete to a tenth of a percent: ways are cut as finely as they need (`adaptive_integrals`). An occluded
gene has the median of its cohort instead of its own value. Clinical columns stay as they are, in all methods.

Shapes: N samples, I columns that the network reads, G genes of them, S numbers explained.
"""

import dataclasses
import hashlib
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import anndata as ad
import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor

from geneformer_repro.adaptive_integrals import integrate
from geneformer_repro.checkpoint import Checkpoint
from geneformer_repro.errors import InputError, did_you_mean
from geneformer_repro.expression import ExpressionNetwork
from geneformer_repro.in_silico.explanations.attribution import Attribution, GoodnessOfFit
from geneformer_repro.in_silico.explanations.cell_methods import Gaps, fits_of, said_of_fits
from geneformer_repro.in_silico.explanations.explained import Explained, drawn
from geneformer_repro.in_silico.explanations.explanation import SURROGATE_COLUMNS
from geneformer_repro.in_silico.explanations.gene_table import MOST_GAP
from geneformer_repro.in_silico.explanations.how_good import labels_in, of_target, replicates
from geneformer_repro.in_silico.explanations.output_answers import OutputAnswer
from geneformer_repro.in_silico.explanations.request import Request, refuse_seen
from geneformer_repro.in_silico.explanations.surrogate import surrogate
from geneformer_repro.in_silico.explanations.unit_rows import Units, unit_rows
from geneformer_repro.in_silico.explanations.value_sets import ValueSets, require_few_units
from geneformer_repro.sample_reading import ScaledSamples, read_scaled
from geneformer_repro.tokenizer.dataset import TokenizedDataset
from geneformer_repro.tokenizer.labels import as_labels

METHODS = ("integrated_gradients", "gradient_input", "median", "surrogate")
Baseline: TypeAlias = Literal["mean", "median"]
TOLERANCE = 1e-3
"""Of the completeness of integrated gradients."""
_OPERATOR = "the median of the cohort instead of a gene's value"
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
class ExplainedSamples(Explained):
    """Samples of an expression network, to be explained part by part."""

    rows_are = "samples"
    request: Request
    checkpoint: Checkpoint
    samples: ScaledSamples
    function: SampleFunction
    median_NG: np.ndarray
    """Median of each gene in each sample's cohort, on the network's scale."""
    least_S: np.ndarray
    """As of `integrate`, of each number explained."""
    sets: ValueSets | None
    """Sets of genes that are changed at once; None where single genes are."""

    @classmethod
    def of(
        cls,
        request: Request,
        checkpoint: Checkpoint,
        data: TokenizedDataset | ad.AnnData | str | Path,
        **how: Any,
    ) -> "ExplainedSamples":
        """Read samples, and find what is explained of them.

        Parameters
        ----------
        request
            What is asked.
        checkpoint
            An expression network.
        data, how
            Samples, and how they are read: as `predict` takes them.

        Raises
        ------
        InputError, DataFormatError
            A method, target, class or column is unknown, or the data cannot be read; see `predict`.
        """
        require_methods(request, METHODS, get_args(Baseline), "an expression network")
        network = checkpoint.expression_network
        contrast = request.contrast_name
        answer = OutputAnswer.of(network.head.targets, request.target, request.states, contrast, named=checkpoint.name)
        samples = read_scaled(checkpoint, data, **how)
        for name in filter(None, [request.donor, *request.obs]):
            if name not in samples.obs:
                raise InputError(f"The samples have no obs column {name!r}. {did_you_mean(name, samples.obs.columns)}")
        function = SampleFunction(network, answer)
        spread_S = function.values(samples.scaled_NI).std(axis=0)
        median_NG = _medians(samples, function.genes)
        rows = drawn(np.arange(len(samples.names)), request.max_cells, np.random.default_rng(request.seed))
        samples, median_NG = _selected(samples, rows), median_NG[rows]
        if not request.allow_seen and checkpoint.seen is not None:
            refuse_seen(np.isin(samples.digests_N, checkpoint.seen), samples.names, "samples", checkpoint.name)
        sets = None if request.sets is None else ValueSets.read(request.sets, network.scale.vocabulary)
        if "surrogate" in request.methods:
            require_few_units(len(network.scale.gene_names) if sets is None else len(sets.names), sets)
        least_S = np.maximum(_LEAST * spread_S, 1e-6)
        return cls(request, checkpoint, samples, function, median_NG, least_S, sets)

    @property
    def names(self) -> np.ndarray:
        """Name of each sample."""
        return self.samples.names

    def donor_of(self, row: int) -> str | None:
        """Return the replicate that a sample is of; itself where none is named."""
        donor = self._donors[row]
        return None if pd.isna(donor) else str(donor)

    def of_model(self, checkpoint: Checkpoint) -> "ExplainedSamples":
        """Return the same samples and question, of another network that reads the same."""
        function = SampleFunction(checkpoint.expression_network, self.function.answer)
        return dataclasses.replace(self, checkpoint=checkpoint, function=function)

    @property
    def gene_ids(self) -> tuple[str, ...]:
        """Genes that the network reads."""
        return self.function.network.scale.names["expression"]

    def costs(self) -> np.ndarray:
        """Return about how many values of genes are computed with for each sample."""
        n_genes, sampling = len(self.gene_ids), self.request.sampling
        n_units = n_genes if self.sets is None else len(self.sets.names)
        passes = {**_PASSES, "surrogate": sampling.n_passes(n_units)}
        a_sample = n_genes * self.function.n_states * sum(passes[method] for method in self.request.methods)
        return np.full(len(self.samples.names), a_sample)

    def describe(self) -> dict[str, Any]:
        """Say what is explained and how, as JSON can hold it; all inputs by content."""
        samples, request, baseline = self.samples, self.request, self.request.baseline
        digest = hashlib.sha256(samples.scaled_NI.tobytes() + samples.is_there_NI.tobytes())
        digest.update(self.median_NG.tobytes() + self.least_S.tobytes() + "\n".join(samples.names).encode())
        for name in filter(None, [request.donor, *request.obs]):
            digest.update("\n".join(as_labels(samples.obs[name]).astype(str)).encode())
        settings: dict[str, dict[str, Any]] = {
            "integrated_gradients": {"baseline": baseline, "tolerance": TOLERANCE},
            "gradient_input": {"baseline": baseline},
            "median": {"operator": _OPERATOR},
            "surrogate": {"operator": _OPERATOR, "masks": request.masks, **dataclasses.asdict(request.sampling)},
        }
        return {
            "family": "samples",
            "measure": self.function.answer.described,
            "target": self.function.answer.target.name,
            "contrast": request.contrast_name,
            "states": list(self.function.answer.names),
            "methods": {method: settings[method] for method in request.methods},
            "unit": "gene" if self.sets is None else "set",
            **({} if self.sets is None else self.sets.describe(self.gene_ids)),
            "donor": request.donor,
            "obs": list(request.obs),
            "n_cells": len(samples.names),
            "seed": request.seed,
            "checkpoint": self.checkpoint.fingerprint,
            "rows": digest.hexdigest(),
        }

    def prepare(self) -> dict[str, Any]:
        """See how good the network is where the samples have labels."""
        target, network = self.function.answer.target, self.function.network
        labels = labels_in(target, self.samples.obs)
        if labels is None or not (known := ~np.isnan(labels).any(axis=1)).any():
            return {"how_good": None}
        outputs = torch.from_numpy(network.outputs(self.samples.scaled_NI[known])).double()
        meaning = target.meaning(network.head.split(outputs)[self.function.answer.number]).numpy()
        donors = None if self.request.donor is None else self._donors[known].astype(str)
        unit, what = replicates(donors, int(known.sum()))
        how_good = of_target(target, labels[known], meaning, unit) | {"replicates": what}
        return {"how_good": how_good}

    @property
    def columns_for_metadata(self) -> list[str]:
        """Columns that `further` needs."""
        fits = ["state", *SURROGATE_COLUMNS] if "surrogate" in self.request.methods else []
        return ["cell", "method", "gap", *fits]

    def further(self, tables: Iterable[pa.Table]) -> dict[str, Any]:
        """Return names of genes, and what methods say of themselves."""
        scale = self.function.network.scale
        named = zip(self.gene_ids, scale.gene_names, strict=True)
        facts: dict[str, Any] = {"gene_names": {gene: name or gene for gene, name in named}}
        fits, gaps = [], Gaps(MOST_GAP)
        for table in tables:
            if "surrogate" in self.request.methods:
                fits.append(fits_of(table))
            gaps.add(table)
        return facts | gaps.said() | ({"surrogate": said_of_fits(pd.concat(fits))} if fits else {})

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
        carried = {name: pa.array(self.samples.obs[name]) for name in self.request.obs}
        has_fits = "surrogate" in self.request.methods
        for start in range(0, len(part), _SAMPLES_AT_ONCE):
            some = part[start : start + _SAMPLES_AT_ONCE]
            for row, of_sample in zip(some, self.attributions(some), strict=True):
                kept = np.flatnonzero(self._units_there(row))
                units = Units(genes=[self._unit_names[i] for i in kept])
                for method, of_method in of_sample.items():
                    fit = of_method.fit
                    tables.append(
                        unit_rows(
                            units,
                            of_method.value_GS[kept],
                            self.function.answer.names,
                            of_method.before_S,
                            row=str(self.samples.names[row]),
                            donor=self.donor_of(int(row)),
                            method=method,
                            exact=method in ("median", "integrated_gradients"),
                            gap_S=of_method.gap_S,
                            fit=None if fit is None else (fit.sd_GS[kept], fit.r2_S, fit.stability_S),
                            has_fits=has_fits,
                            obs={name: values[int(row)] for name, values in carried.items()},
                        )
                    )
            show(len(some))
        return pa.concat_tables(tables).combine_chunks()

    @cached_property
    def _donors(self) -> np.ndarray:
        """The replicate that each sample is of; itself where none is named."""
        if self.request.donor is None:
            return self.samples.names.astype(object)
        return as_labels(self.samples.obs[self.request.donor]).to_numpy(dtype=object)

    @property
    def _unit_names(self) -> tuple[str, ...]:
        return self.gene_ids if self.sets is None else self.sets.names

    def _units_there(self, row: int) -> np.ndarray:
        there_G = self.samples.is_there_NI[row, self.function.genes]
        return there_G if self.sets is None else self.sets.has_UG @ there_G

    def attributions(self, rows: np.ndarray) -> list[dict[str, Attribution]]:
        """Return what each method says of some samples, of every unit, whether the sample has it or not."""
        function, scaled_NI = self.function, self.samples.scaled_NI[rows]
        before_NS, there_NG = function.values(scaled_NI), self.samples.is_there_NI[rows, function.genes]
        median_NG = np.where(there_NG, self.median_NG[rows], scaled_NI[:, function.genes])
        baseline_NG = median_NG if self.request.baseline == "median" else np.zeros_like(median_NG)
        found: list[dict[str, Attribution]] = [{} for _ in rows]
        for method in self.request.methods:
            match method:
                case "integrated_gradients":
                    values, gaps = function.integrated(scaled_NI, baseline_NG, self.least_S)
                    of_method = [Attribution(*of) for of in zip(values, before_NS, gaps, strict=True)]
                case "gradient_input":
                    values = function.gradient_input(scaled_NI, baseline_NG)
                    of_method = [Attribution(*of) for of in zip(values, before_NS, strict=True)]
                case "median":
                    each = zip(scaled_NI, median_NG, before_NS, strict=True)
                    of_method = [Attribution(self._occluded(*of[:2]), of[2]) for of in each]
                case _:
                    each_row = zip(rows, scaled_NI, median_NG, strict=True)
                    of_method = [self._surrogate(*of) for of in each_row]
            for of_sample, attribution in zip(found, of_method, strict=True):
                of_sample[method] = attribution
        return found

    def _occluded(self, scaled_I: np.ndarray, median_G: np.ndarray) -> np.ndarray:
        if self.sets is None:
            return self.function.occluded(scaled_I, median_G, np.arange(len(median_G)))
        altered_UI = np.repeat(scaled_I[None], len(self.sets.names), axis=0)
        altered_UI[:, self.function.genes] = np.where(self.sets.has_UG, median_G, scaled_I[self.function.genes])
        return self.function.values(scaled_I[None]) - self.function.values(altered_UI)

    def _without(self, scaled_I: np.ndarray, median_G: np.ndarray, mask_KU: np.ndarray) -> np.ndarray:
        """Return the numbers where units that a mask leaves out are at the cohort's median, (K, S)."""
        genes, has_UG = self.function.genes, self.sets.has_UG if self.sets is not None else None
        answers = []
        for start in range(0, len(mask_KU), 4 * _ROWS_AT_ONCE):
            some_KU = mask_KU[start : start + 4 * _ROWS_AT_ONCE]
            # a gene of several sets is there as long as one of them is
            gone_KG = ~some_KU if has_UG is None else has_UG.any(0) & ~(some_KU.astype(np.float32) @ has_UG > 0)
            altered_KI = np.repeat(scaled_I[None], len(some_KU), axis=0)
            altered_KI[:, genes] = np.where(gone_KG, median_G, scaled_I[genes])
            answers.append(self.function.values(altered_KI))
        return np.concatenate(answers)

    def _surrogate(self, row: int, scaled_I: np.ndarray, median_G: np.ndarray) -> Attribution:
        """Return the weights of a stand-in; a sample's masks follow from its name and the seed alone."""
        rng = np.random.default_rng([self.request.seed, zlib.crc32(str(self.samples.names[row]).encode())])
        n_units = len(self._unit_names)
        ask = partial(self._without, scaled_I, median_G)
        fit = surrogate(ask, n_units, rng, sampling=self.request.sampling)
        good = GoodnessOfFit(fit.sd_US, fit.r2_S, fit.stability_S)
        return Attribution(fit.weight_US, fit.before_S, fit=good)


def _selected(samples: ScaledSamples, rows: np.ndarray) -> ScaledSamples:
    return dataclasses.replace(
        samples,
        digests_N=samples.digests_N[rows],
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


def require_methods(request: Request, methods: Sequence[str], baselines: Sequence[str], of: str) -> None:
    """Raise if a method, baseline or question is not one of a family of models that reads values."""
    for method in request.methods:
        if method not in methods:
            raise InputError(f"{of.capitalize()} is not explained by {method!r}. {did_you_mean(method, methods)}")
    if request.baseline not in baselines:
        names = ", ".join(map(repr, baselines))
        raise InputError(f"baseline of {of} must be one of {names}, found {request.baseline!r}.")
    for name in ("goal", "gene", "layer", "pooling"):
        if getattr(request, name) is not None:
            raise InputError(f"{name}= is for models that read tokens, and this is {of}. Leave it out.")
