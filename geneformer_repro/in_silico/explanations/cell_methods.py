"""The methods that explain cells, each by its name: what they need, what they cost, and the rows that they give."""

import logging
import math
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, get_args

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from torch import Tensor

import geneformer_repro.processes as processes
from geneformer_repro.errors import InputError, listed
from geneformer_repro.in_silico.explanations.answers import Answer, unchanged
from geneformer_repro.in_silico.explanations.attribution import Attribution, GoodnessOfFit
from geneformer_repro.in_silico.explanations.gene_sets import read_gene_sets
from geneformer_repro.in_silico.explanations.gradients import (
    GRADIENT_METHODS,
    UNSIGNED,
    Baseline,
    GradientMethod,
    answer_spread,
    baseline_agreement,
    baseline_rows,
    gradients,
    n_passes,
)
from geneformer_repro.in_silico.explanations.occlusions import (
    OPERATORS,
    Alter,
    ask,
    first_order,
    hidden,
    median_places,
    occlusions,
    operation,
)
from geneformer_repro.in_silico.explanations.request import Request
from geneformer_repro.in_silico.explanations.surrogate import (
    LEAST_R2,
    LEAST_STABILITY,
    require_few_units,
    surrogates,
)
from geneformer_repro.in_silico.parted import Counted
from geneformer_repro.reading import Reader
from geneformer_repro.tokenizer.dataset import TokenizedDataset
from geneformer_repro.tokenizer.genes import gene_ids_of

logger = logging.getLogger(__name__)

_WORTH_A_PROBE = 0.01
"""Share of the work above which it is begun without measuring how long it will take; the bar tells soon enough."""
_NAMED, _LISTED = 20, 100
CELLS_OF_SPREAD, CHECKED_CELLS = 200, 3
"""Cells over which the spread of answers is taken, and in which baselines are compared."""
_BACKWARD = 1.5
"""Cost of a backward pass, of which derivatives take one for each number explained, in forward passes."""


class Rows(NamedTuple):
    """Rows of the file about some cells, as numbers."""

    unit: np.ndarray
    """Which gene of the vocabulary, or which set."""
    place: np.ndarray
    """Place of the gene in its cell; -1 of a set."""
    method: np.ndarray
    state: np.ndarray
    value: np.ndarray
    before: np.ndarray
    gap: np.ndarray
    fit: np.ndarray | None = None
    """What stands in `SURROGATE_COLUMNS`, (3, rows); None where no method is a surrogate."""

    @classmethod
    def joined(cls, blocks: Sequence["Rows"]) -> "Rows":
        """Return the rows of several blocks."""
        *columns, fits = zip(*blocks, strict=True)
        rows = cls(*map(np.concatenate, columns))
        return rows if fits[0] is None else rows._replace(fit=np.concatenate(fits, axis=1))


class CellMethods:
    """The methods of a request.

    Parameters
    ----------
    request
        Names and settings.
    cells
        All cells.
    reference
        Row numbers of the cells whose places and embeddings are those of reference.
    """

    def __init__(self, request: Request, cells: TokenizedDataset, reference: np.ndarray) -> None:
        self._request, self._cells, self._reference = request, cells, reference
        self._vocabulary = cells.vocabulary
        self._groups = None if request.sets is None else self._read_groups()
        self._operators: dict[str, Alter] = {}
        self._baselines: dict[str, Tensor] = {}
        self._spread_S: np.ndarray | None = None

    def _read_groups(self) -> dict[str, np.ndarray]:
        """Return the tokens of each set of genes; genes that are not known are counted, sets without any left out."""
        sets = read_gene_sets(self._request.sets)
        self._described_sets = dict(sets.described)
        ids = gene_ids_of(list(dict.fromkeys(gene for of in sets.members.values() for gene in of)), self._vocabulary)
        token_of = dict(zip(self._vocabulary.gene_ids, self._vocabulary.tokens.tolist(), strict=True))
        groups = {
            name: np.unique([token_of[ids[gene]] for gene in of if ids[gene]]).astype(np.int64)
            for name, of in sets.members.items()
        }
        unknown = [gene for gene, found in ids.items() if not found]
        empty = [name for name, tokens in groups.items() if not len(tokens)]
        if len(empty) == len(groups):
            raise InputError(
                f"None of the {len(ids):,} genes of {len(groups):,} sets is in the vocabulary (first: {unknown[:3]}). "
                "Give sets of the same species, in symbols or Ensembl ids."
            )
        if unknown and processes.is_first():
            logger.warning(
                "%d of %d genes of the sets are not in the vocabulary and left out: %s; %d of %d sets have none.",
                len(unknown), len(ids), listed(unknown, most=_NAMED), len(empty), len(groups),
            )  # fmt: skip
        return {name: tokens for name, tokens in groups.items() if len(tokens)}

    def describe(self) -> dict[str, Any]:
        """Return what is known of sets of genes that are taken away at once."""
        if self._groups is None:
            return {}
        genes = self._vocabulary.gene_ids
        named = {name: [genes[i] for i in self._vocabulary.genes_of(tokens)] for name, tokens in self._groups.items()}
        return {"sets": named, "sets_from": self._described_sets}

    def require_few_units(self, rows: np.ndarray) -> None:
        """Refuse a surrogate of cells that have too many genes."""
        if "surrogate" in self._request.methods:
            require_few_units([self._cells[int(row)] for row in rows], self._vocabulary, self._groups)

    def prepare(self) -> None:
        """Read what operators need of the reference cells."""
        wanted = {name for name in self._request.methods if name in OPERATORS}
        if "surrogate" in self._request.methods:
            wanted.add(self._request.operator)
        median = None
        if "median_rank" in wanted:
            median = median_places((self._cells[int(row)] for row in self._reference), self._vocabulary)
        for name in OPERATORS:
            if name in wanted:
                pooled = self._request.pooled_masks
                self._operators[name] = operation(name, self._vocabulary, median=median, pooled=pooled)

    def operator(self, name: str) -> Alter:
        """Return what an occlusion does to a cell; `prepare` has been called."""
        return self._operators[name]

    def places_of_units(self, tokens: np.ndarray) -> dict[int, np.ndarray]:
        """Return where the genes of each unit stand that a cell has, but for a unit that is all it has."""
        genes = self._vocabulary.genes_of(tokens)
        genes, ids = genes[genes >= 0], tokens[genes >= 0]
        if self._groups is None:
            return {int(gene): np.array([place]) for place, gene in enumerate(genes)} if len(genes) > 1 else {}
        places = {unit: np.flatnonzero(np.isin(ids, of)) for unit, of in enumerate(self._groups.values())}
        return {unit: of for unit, of in places.items() if 0 < len(of) < len(genes)}

    def measure(self, reader: Reader, answer: Answer, rows: np.ndarray) -> dict[str, Any]:
        """Measure what completeness is compared with, and how much the baseline decides; return it for metadata.

        Parameters
        ----------
        reader, answer
            The network, and what it is asked.
        rows
            Row numbers of the cells that are explained.
        """
        if "integrated_gradients" not in self._request.methods:
            return {}
        rng = np.random.default_rng(self._request.seed)
        some = [self._cells[int(row)] for row in rng.permutation(rows)[:CELLS_OF_SPREAD]]
        self.learn_spread(reader, answer, some)
        alike = processes.agreed(lambda: self._agreement_of_baselines(reader, answer, some[:CHECKED_CELLS]))
        return {"baseline_agreement": alike}

    def take_spread(self, spread_S: np.ndarray) -> None:
        """Take what completeness is compared with from elsewhere."""
        self._spread_S = spread_S

    def learn_spread(self, reader: Reader, answer: Answer, cells: Sequence[np.ndarray]) -> None:
        """Learn how far answers of some cells differ, which completeness is compared with."""
        self._spread_S = processes.agreed(lambda: answer_spread(reader, answer, cells, self._vocabulary))

    def _agreement_of_baselines(
        self, reader: Reader, answer: Answer, cells: Sequence[np.ndarray]
    ) -> dict[str, dict[str, float | None]]:
        """Return how alike other baselines rank genes in a few cells; warn where the choice decides the answer."""
        by_baseline = {
            baseline: gradients(
                reader, answer, cells, self._vocabulary, "integrated_gradients",
                baseline_PD=self._baseline(reader, baseline), integration=self._request.integration,
                spread_S=self._spread_S,
            )
            for baseline in get_args(Baseline)
        }  # fmt: skip
        alike = {
            pair: {
                state: None if np.isnan(r) else round(r, 6) for state, r in zip(answer.names, of_states, strict=True)
            }
            for pair, of_states in baseline_agreement(by_baseline).items()
        }
        low = {
            pair: r
            for pair, of in alike.items()
            if (r := min((x for x in of.values() if x is not None), default=1)) < 0.5
        }
        if low and processes.is_first():
            logger.warning(
                "The baseline decides what integrated gradients say: Spearman of their ranks, median of %d cells, is "
                "below 0.5 between %s. Say which one was taken, and look at occlusions as well.",
                len(cells), ", ".join(f"{pair} ({r:.2f})" for pair, r in low.items()),
            )  # fmt: skip
        return alike

    def passes(self, length: int) -> int:
        """Return how often the network is run for a cell of so many tokens."""
        return sum(self._passes(method, length) for method in self._request.methods)

    def work(self, length: int, n_numbers: int) -> int:
        """Return what a cell of so many tokens costs, in forward passes, if so many numbers are explained."""
        derived = 1 + math.ceil(_BACKWARD * n_numbers)
        of_pass = {method: derived for method in ("first_order", *GRADIENT_METHODS) if method not in UNSIGNED}
        return sum(self._passes(method, length) * of_pass.get(method, 1) for method in self._request.methods)

    def _passes(self, method: str, length: int) -> int:
        n_genes = length - 2 * self._vocabulary.has_cls
        if method in OPERATORS:
            return 1 + (n_genes if self._groups is None else len(self._groups))
        if method == "surrogate":
            return self._request.sampling.n_passes(n_genes if self._groups is None else len(self._groups))
        return n_passes(method, self._request.integration) if method in GRADIENT_METHODS else 1

    def seconds(
        self, reader: Reader, answer: Answer, tokens: np.ndarray, cost: float, costs: np.ndarray
    ) -> float | None:
        """Measure a batch of hidden genes of a cell; return how long cells of these costs will take.

        Parameters
        ----------
        reader, answer, tokens
            The network, what it is asked, and a cell.
        cost
            Of one pass of the cell.
        costs
            Of all passes of each cell.
        """
        view = unchanged(tokens, self._vocabulary, answer)
        places = [place for place in range(view.n_genes) if place != view.asked - view.margin]
        if len(places) < 2:
            return None
        n_probed = max(1, min(len(places), reader.max_tokens // len(tokens)))
        if cost * n_probed > _WORTH_A_PROBE * costs.sum():
            return None
        probe = [hidden(view, np.array([place])) for place in places[:n_probed]]
        for _ in range(2):  # the first one warms up
            began = time.perf_counter()
            ask(reader, answer, probe)
        return float((time.perf_counter() - began) * costs.sum() / (cost * n_probed))

    def do(
        self,
        method: str,
        reader: Reader,
        answer: Answer,
        cells: Sequence[np.ndarray],
        show: Callable[[int], object],
    ) -> Sequence[Attribution]:
        """Return what a method says of some cells."""
        counted = Counted(show, sum(self._passes(method, len(cell)) for cell in cells))
        done: Sequence[Attribution]
        if method in OPERATORS:
            operator = self._operators[method]
            done = occlusions(reader, answer, cells, self._vocabulary, operator, counted, groups=self._groups)
        elif method == "surrogate":
            done = self._surrogates(reader, answer, cells, counted)
        elif method in GRADIENT_METHODS:
            done = self._gradients(method, reader, answer, cells, counted)
        else:
            assert method == "first_order", method
            done = first_order(reader, answer, cells, self._vocabulary, counted)
        counted.finish()
        return done

    def _gradients(
        self,
        method: GradientMethod,
        reader: Reader,
        answer: Answer,
        cells: Sequence[np.ndarray],
        show: Callable[[int], object],
    ) -> list[Attribution]:
        settings: dict[str, Any] = {}
        if method in ("gradient_input", "integrated_gradients"):
            assert self._request.baseline != "median", "which is of values"
            settings["baseline_PD"] = self._baseline(reader, self._request.baseline)
        if method == "integrated_gradients":
            settings |= {"integration": self._request.integration, "spread_S": self._spread_S}
        return gradients(reader, answer, cells, self._vocabulary, method, show, **settings)

    def _surrogates(
        self, reader: Reader, answer: Answer, cells: Sequence[np.ndarray], show: Callable[[int], object]
    ) -> list[Attribution]:
        """Return the weights of stand-ins; the masks of a cell follow from its tokens and the seed alone."""
        operator, sampling = self._operators[self._request.operator], self._request.sampling
        rngs = [np.random.default_rng([self._request.seed, zlib.crc32(cell.tobytes())]) for cell in cells]
        fits = surrogates(
            reader, answer, cells, self._vocabulary, operator, rngs, show, groups=self._groups, sampling=sampling
        )
        return [
            Attribution(fit.weight_US, fit.before_S, fit=GoodnessOfFit(fit.sd_US, fit.r2_S, fit.stability_S))
            for fit in fits
        ]

    def _baseline(self, reader: Reader, baseline: Baseline) -> Tensor:
        """Return the rows from which genes start, made once."""
        if baseline not in self._baselines:
            reference = [self._cells[int(row)] for row in self._reference] if baseline == "mean" else None
            self._baselines[baseline] = baseline_rows(reader, self._vocabulary, baseline, reference=reference)
        return self._baselines[baseline]

    @property
    def unit_names(self) -> Sequence[str]:
        """What values are of: genes, or sets of them."""
        return self._vocabulary.gene_ids if self._groups is None else tuple(self._groups)

    def rows(self, method: str, tokens: np.ndarray, of_cell: Attribution) -> Rows:
        """Return the rows that a method gives of a cell: gene by gene, of each its numbers; none without a value."""
        if self._groups is None:
            genes = self._vocabulary.genes_of(tokens)
            units = genes[genes >= 0]
        else:
            units = np.arange(len(self._groups))
        unit, state = np.nonzero(~np.isnan(of_cell.value_GS))
        gap_S = np.full(len(of_cell.before_S), np.nan) if of_cell.gap_S is None else of_cell.gap_S
        return Rows(
            unit=units[unit],
            place=unit if self._groups is None else np.full(len(unit), -1),
            method=np.full(len(unit), self._request.methods.index(method)),
            state=state,
            value=of_cell.value_GS[unit, state],
            before=of_cell.before_S[state],
            gap=gap_S[state],
            fit=self._fit_of(of_cell, unit, state) if "surrogate" in self._request.methods else None,
        )

    @staticmethod
    def _fit_of(of_cell: Attribution, unit: np.ndarray, state: np.ndarray) -> np.ndarray:
        """Return what stands in the columns of surrogates, (3, rows); NaN of another method."""
        fit = of_cell.fit
        if fit is None:
            return np.full((3, len(unit)), np.nan)
        return np.stack([fit.sd_GS[unit, state], fit.r2_S[state], fit.stability_S[state]])

    def further(self, tables: Iterable[pa.Table]) -> dict[str, Any]:
        """Return the names of the genes that have a row, and how completely integrated gradients add up."""
        genes: set[str] = set()
        gaps = Gaps(self._request.integration.tolerance)
        fits: list[pd.DataFrame] = []
        for table in tables:
            genes.update(table["gene"].unique().to_pylist())
            if "surrogate" in self._request.methods:
                fits.append(fits_of(table))
            gaps.add(table)
        names, position = self._vocabulary.gene_names, self._vocabulary.position
        named = {gene: names[position[gene]] for gene in sorted(genes) if gene in position}
        return {"gene_names": named, **gaps.said()} | ({"surrogate": said_of_fits(pd.concat(fits))} if fits else {})


class Gaps:
    """By how much integrated gradients miss the difference at most, of each cell (sample …), table by table."""

    def __init__(self, tolerance: float) -> None:
        self._tolerance = tolerance
        self._worst: dict[str, float | None] = {}

    def add(self, table: pa.Table) -> None:
        """Take note of the rows of a table; a cell may have rows in several."""
        by_path = table.filter(pc.equal(table["method"], "integrated_gradients")).select(["cell", "gap"])
        of_cells = by_path.group_by("cell").aggregate([("gap", "max")]).to_pydict()
        for cell, gap in zip(of_cells["cell"], of_cells["gap_max"], strict=True):
            known = [one for one in (gap, self._worst.get(cell)) if one is not None]
            self._worst[cell] = max(known, default=None)

    def said(self) -> dict[str, Any]:
        """Return the metadata ``completeness``: in how many cells all numbers add up; warn of the others.

        Nothing where no table had integrated gradients.
        """
        if not self._worst:
            return {}
        failed = sorted(cell for cell, gap in self._worst.items() if gap is not None and gap > self._tolerance)
        if failed and processes.is_first():
            logger.warning(
                "In %d of %d cells integrated gradients miss the difference by more than %g (first: %s): look at them "
                "by other methods; tables of genes leave them out.",
                len(failed), len(self._worst), self._tolerance, failed[0],
            )  # fmt: skip
        gaps = [gap for gap in self._worst.values() if gap is not None]
        told = {
            "tolerance": self._tolerance,
            "n_cells": len(self._worst),
            "n_failed": len(failed),
            "failed": failed[:_LISTED],
            "median_gap": float(np.median(gaps)) if gaps else None,
            "largest_gap": max(gaps, default=None),
        }
        return {"completeness": told}


def fits_of(table: pa.Table) -> pd.DataFrame:
    """Return how good the surrogates of some cells are, a row a cell and number."""
    columns = ["cell", "state", "r2", "stability"]
    rows = table.filter(pc.equal(table["method"], "surrogate")).select(columns).to_pandas()
    return rows.drop_duplicates(["cell", "state"])


def said_of_fits(fits: pd.DataFrame) -> dict[str, dict[str, float | int | None]]:
    """Say of each number how good its surrogates are; warn where their weights rank nothing."""
    said: dict[str, dict[str, float | int | None]] = {}
    for state, of_cells in fits.groupby("state", sort=False):
        is_ranked = (of_cells["r2"] >= LEAST_R2) & (of_cells["stability"] >= LEAST_STABILITY)
        r2, stability = (float(of_cells[name].median()) for name in ("r2", "stability"))
        said[str(state)] = {
            "median_r2": r2 if np.isfinite(r2) else None,
            "median_stability": stability if np.isfinite(stability) else None,
            "n_cells": len(of_cells),
            "n_ranked": int(is_ranked.sum()),
        }
        if is_ranked.mean() < 0.5:
            logger.warning(
                "The surrogate stands in poorly for the model (%s: R² %.2f, stability %.2f, medians of %d cells): its "
                "weights rank nothing in %d of them.",
                state, r2, stability, len(of_cells), int((~is_ranked).sum()),
            )  # fmt: skip
    return said
