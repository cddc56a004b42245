"""A screen that spends its forward passes where they tell most; what is drawn and estimated is in `sampling`.

Estimates of all pairs are made part by part, as in a first-order screen. Then each round draws pairs from what earlier
rounds measured, and its passes are cut into parts again, which processes share. A round is a barrier: what it draws
follows from finished parts and the seed alone, so one process, two, and a call that was killed and given again end with
the same bytes. (A budget of minutes becomes a number of passes once, which is kept with the parts.)

All states and classes of a pass are measured at once. One of them steers: the goal, else the class whose estimates
spread most, else the only number there is.

Shapes: V variants of all cells, S states or classes, P pairs that may be drawn.
"""

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

import geneformer_repro.processes as processes
import geneformer_repro.unfinished as unfinished
from geneformer_repro.errors import InputError
from geneformer_repro.files import read_json, write_json
from geneformer_repro.in_silico.assisting_model import Pairs
from geneformer_repro.in_silico.engine import Outcome, PerturbedCell
from geneformer_repro.in_silico.first_order import first_order
from geneformer_repro.in_silico.parted import in_words
from geneformer_repro.in_silico.question import Question, Screened
from geneformer_repro.in_silico.sampling import (
    FEWEST_A_GENE,
    Draw,
    Estimated,
    Ranked,
    estimated,
    known_after,
    next_draw,
    passes_of_rounds,
)
from geneformer_repro.in_silico.shift_table import SAMPLED_COLUMNS, ShiftTable
from geneformer_repro.model import flops
from geneformer_repro.progress import progress
from geneformer_repro.work import Parts, Work, working_on

logger = logging.getLogger(__name__)

USELESS = 0.1
"""Correlation of estimates with exact values below which first order is said to be of no use."""

Make = Callable[[np.ndarray, Callable[[int], object]], pa.Table]
Tables = Callable[[], Iterable[pa.Table]]


class _Units(NamedTuple):
    """What is ranked: genes, of doses each by itself."""

    names: list[str]
    unit_V: np.ndarray
    cell_V: np.ndarray
    rank_V: np.ndarray

    @property
    def n_cells(self) -> np.ndarray:
        """How many cells have each."""
        return np.bincount(self.unit_V, minlength=len(self.names))


class SampledScreen:
    """The cells of a screen, some pairs of which are measured.

    Parameters
    ----------
    screened
        The cells, and what is done with them.
    cut
        Cuts cells, of which the tokens to be read are given, into parts.
    """

    def __init__(self, screened: Screened, cut: Callable[[np.ndarray], list[np.ndarray]]) -> None:
        self._question, self._engine, self._edits, self._layout = screened[:4]
        self._rows, self._n_variants, self._seed, self._cut = *screened[4:], cut
        self._lengths = self._question.cells.lengths[self._rows]
        self._starts = np.cumsum([0, *self._n_variants])
        self._has_estimates = self._engine.score is not None
        self._units = self._named()
        self._require_budget()

    # What may be drawn

    def _named(self) -> _Units:
        """Number the genes of all variants, and their doses."""
        variants = [self._perturbed(i).variants for i in range(len(self._rows))]
        token_V = np.concatenate([np.fromiter((tokens[0] for tokens in of.perturbed), np.int64) for of in variants])
        rank_V, dose_V = (np.concatenate([getattr(of, name) for of in variants]) for name in ("rank_N", "dose_N"))
        doses, dose_number_V = np.unique(dose_V, return_inverse=True)
        units, unit_V = np.unique(token_V * len(doses) + dose_number_V.ravel(), return_inverse=True)
        vocabulary = self._question.cells.vocabulary
        ids = [vocabulary.gene_ids[gene] for gene in vocabulary.genes_of(units // len(doses))]
        at = doses[units % len(doses)]
        names = [gene if np.isnan(dose) else f"{gene} at {dose:g}" for gene, dose in zip(ids, at, strict=True)]
        cell_V = np.repeat(np.arange(len(self._rows)), self._n_variants)
        return _Units(names, unit_V.ravel(), cell_V, rank_V)

    @property
    def _may_be_drawn(self) -> np.ndarray:
        units = self._units
        return np.asarray((units.n_cells >= self._question.budget.fewest_cells)[units.unit_V])

    def _require_budget(self) -> None:
        """Refuse, before the work, what leaves a gene without two passes."""
        budget = self._question.budget
        n_genes = int((self._units.n_cells >= budget.fewest_cells).sum())
        if not n_genes:
            raise InputError(
                f"No gene is in {budget.fewest_cells} of the {len(self._rows):,} cells, so none can be sampled. Take "
                "more cells, lower min_cells= (--min-cells), or use method='exact'."
            )
        if budget.passes is not None:
            self._require_enough(budget.passes, n_genes, f"passes={budget.passes:,}")

    def _require_enough(self, n_passes: int, n_genes: int, asked: str) -> None:
        fewest, n_pairs = FEWEST_A_GENE * n_genes, int(self._may_be_drawn.sum())
        if n_passes < fewest:
            raise InputError(
                f"{asked} gives not each of the {n_genes:,} genes in at least "
                f"{self._question.budget.fewest_cells} cells {FEWEST_A_GENE} passes: at least {fewest:,} are needed "
                f"(of {n_pairs:,} pairs of a cell and a gene). Give more, raise min_cells= (--min-cells), or use "
                "method='first_order'."
            )

    # The work

    def run(
        self, out: str | Path | None, metadata: Mapping[str, Any], plan: Mapping[str, Any], *, overwrite: bool
    ) -> ShiftTable:
        """Do all stages, in memory or into a file."""
        if out is None:
            tables, further = self._done(_InMemory())
            return ShiftTable(ShiftTable.form.as_frame(pa.concat_tables(tables)), {**metadata, **further})
        with working_on(out, plan, what="screen", overwrite=overwrite) as work:
            if not work.is_delivered:
                tables, further = self._done(_OnDisk(work))
                if processes.is_first():
                    with work.result() as aside:
                        ShiftTable.form.write(aside, iter(tables), {**metadata, **further})
        return ShiftTable.open(out)

    def _done(self, kept: "_Kept") -> tuple[Iterable[pa.Table], dict[str, Any]]:
        """Return all rows, part by part, and further metadata; on other processes than the first nothing."""
        n_passes = self._n_passes(kept)
        parts = self._cut(self._n_variants * self._lengths)
        estimates = kept.stage("estimates", "estimate", parts, self._size, self._estimates)
        sampler = _Sampler(self, estimates, n_passes) if processes.is_first() else None
        n_genes = int((self._units.n_cells >= self._question.budget.fewest_cells).sum())
        n_rounds = len(passes_of_rounds(n_passes, n_genes))
        for number in range(n_rounds):
            drawn = processes.agreed(lambda: sampler.draw() if sampler else np.empty(0, np.int64))
            of_cell = np.bincount(self._units.cell_V[drawn], minlength=len(self._rows))
            cells = np.flatnonzero(of_cell)
            parts = [cells[part] for part in self._cut(of_cell[cells] * self._lengths[cells])]
            size = partial(_sum_of, of_cell)
            measured = kept.stage(
                f"round{number}", f"round {number + 1} of {n_rounds}", parts, size, partial(self._measured, drawn)
            )
            if sampler:
                sampler.keep(measured())
        return ((), {}) if sampler is None else self._finished(sampler, estimates)

    def _size(self, cells: np.ndarray) -> int:
        return int(self._n_variants[cells].sum())

    def _perturbed(self, i: int) -> PerturbedCell:
        tokens = self._question.cells[int(self._rows[i])]
        return PerturbedCell(tokens, self._edits.variants(tokens))

    def _estimates(self, part: np.ndarray, show: Callable[[int], object]) -> pa.Table:
        """Return the rows of a part, with estimates as values."""
        cells = [self._perturbed(i) for i in part]
        if self._has_estimates:
            return self._layout.table(part, cells, first_order(self._engine, cells, show))
        nothing = [Outcome(np.zeros((len(of), 1)), np.full((len(of), 1), np.nan), {}) for _, of in cells]
        show(sum(map(len, (of for _, of in cells))))
        return self._layout.table(part, cells, nothing)

    def _measured(self, drawn: np.ndarray, part: np.ndarray, show: Callable[[int], object]) -> pa.Table:
        """Measure what was drawn of the cells of a part."""
        rows = [drawn[(drawn >= self._starts[i]) & (drawn < self._starts[i + 1])] for i in part]
        cells = [
            PerturbedCell(cell.tokens, cell.variants.select(of_cell - self._starts[i]))
            for i, of_cell, cell in zip(part, rows, map(self._perturbed, part), strict=True)
        ]
        value_NS = np.concatenate([outcome.value_NS for outcome in self._engine.run(cells, show)])
        values = {f"value{state}": value_N for state, value_N in enumerate(value_NS.T)}
        return pa.table({"variant": np.concatenate(rows), **values})

    def _finished(self, sampler: "_Sampler", estimates: Tables) -> tuple[Iterable[pa.Table], dict[str, Any]]:
        columns, further = sampler.finished()
        names = [name for name in ShiftTable.form.columns if name in ("perturbed", "affected")]
        narrow = (table.select(names) for table in estimates())
        further = {**self._layout.metadata_of(narrow, np.empty(0, np.int64)), "sampled": further}
        return self._with_columns(estimates(), columns), further

    def _with_columns(self, tables: Iterable[pa.Table], columns: Mapping[str, np.ndarray]) -> Iterator[pa.Table]:
        """Put what came of sampling into the rows of estimates."""
        start = 0
        for table in tables:
            rows = slice(start, start + len(table))
            start += len(table)
            for name in ("value", "exact"):
                table = table.set_column(table.schema.get_field_index(name), name, pa.array(columns[name][rows]))
            for name, kind in SAMPLED_COLUMNS.items():
                of_rows = columns[name][rows]
                missing = of_rows < 0 if name == "round" else np.isnan(of_rows)
                table = table.append_column(name, pa.array(of_rows, kind, mask=missing))
            yield table

    # How much

    def _n_passes(self, kept: "_Kept") -> int:
        """Return the budget in passes, and say what it is."""
        budget, n_pairs = self._question.budget, int(self._may_be_drawn.sum())
        n_genes = int((self._units.n_cells >= budget.fewest_cells).sum())
        if budget.passes is not None:
            n_passes = budget.passes
        else:
            n_passes = kept.once("passes.json", lambda: int(float(budget.minutes or 0) * 60 / self._seconds_a_pass()))
            self._require_enough(n_passes, n_genes, f"minutes={budget.minutes:g} ({n_passes:,} passes here)")
        n_passes = min(n_passes, n_pairs)
        if processes.is_first():
            text = f"{n_passes:,} passes for {n_pairs:,} pairs of {n_genes:,} genes in {len(self._rows):,} cells"
            if n_rare := len(self._units.names) - n_genes:
                text += f"; {n_rare:,} genes in fewer than {budget.fewest_cells} cells are only estimated"
            logger.info("%s", text)
        return n_passes

    def _seconds_a_pass(self) -> float:
        """Measure, on the first process, how long a pass takes on average, all processes together."""
        middle = int(np.argsort(self._lengths, kind="stable")[len(self._lengths) // 2])
        cell = self._perturbed(middle)
        n_probed = max(1, min(len(cell.variants), self._engine.reader.max_tokens // int(self._lengths[middle])))
        probe = [PerturbedCell(cell.tokens, cell.variants.select(np.arange(n_probed)))]
        for _ in range(2):  # the first one warms up
            began = time.perf_counter()
            self._engine.run(probe)
        seconds = (time.perf_counter() - began) / n_probed
        cost = np.array([flops(self._engine.reader.bert.config, np.array([length])) for length in self._lengths])
        mean = float((cost * self._n_variants).sum() / self._n_variants.sum())
        seconds *= mean / float(cost[middle]) / processes.count()
        of_all = in_words(seconds * int(self._starts[-1]))
        logger.info("a pass takes %.2g s here; all of them would take %s", seconds, of_all)
        return seconds


def _sum_of(of_cell: np.ndarray, cells: np.ndarray) -> int:
    return int(of_cell[cells].sum())


class _Kept(ABC):
    """Where finished parts are kept."""

    @abstractmethod
    def stage(
        self, name: str, verb: str, parts: list[np.ndarray], size: Callable[[np.ndarray], int], make: Make
    ) -> Tables:
        """Do what is missing of the parts of a stage; return, for the first process, what gives all their tables."""

    @abstractmethod
    def once(self, name: str, make: Callable[[], int]) -> int:
        """Return a number that is found out once, however often the call is cut off."""


class _InMemory(_Kept):
    def stage(
        self, name: str, verb: str, parts: list[np.ndarray], size: Callable[[np.ndarray], int], make: Make
    ) -> Tables:
        with progress(verb, total=sum(map(size, parts)), unit="variants") as bar:
            tables = [make(part, bar.update) for part in parts]
        return lambda: tables

    def once(self, name: str, make: Callable[[], int]) -> int:
        return make()


class _OnDisk(_Kept):
    def __init__(self, work: Work) -> None:
        self._work = work

    def stage(
        self, name: str, verb: str, parts: list[np.ndarray], size: Callable[[np.ndarray], int], make: Make
    ) -> Tables:
        files = Parts(self._work, len(parts), suffix=f".{name}.parquet")
        n_done = sum(size(part) for i, part in enumerate(parts) if i not in set(files.missing))
        mine = sum(size(parts[i]) for i in files.mine)
        quiet = not processes.is_first()
        with progress(verb, total=n_done + mine, unit="variants", done=n_done, quiet=quiet) as bar:
            for i in files.mine:
                table = make(parts[i], bar.update)
                files.keep(i, partial(pq.write_table, table, compression="zstd"))
        processes.wait()
        return lambda: map(pq.read_table, files.paths)

    def once(self, name: str, make: Callable[[], int]) -> int:
        path = self._work.folder / name

        def found() -> int:
            if not unfinished.is_whole(path):
                unfinished.keep(path, lambda aside: write_json(aside, {"number": make()}))
            return int(read_json(path)["number"])

        return processes.agreed(found)


class _Sampler:
    """What the first process knows of all pairs."""

    def __init__(self, screen: SampledScreen, estimates: Tables, n_passes: int) -> None:
        self._screen, self._units, self._seed = screen, screen._units, screen._seed
        self._budget, self._states = screen._question.budget, screen._layout.states
        n_states, n_variants = len(self._states), len(self._units.unit_V)
        flat = np.concatenate([table["value"].to_numpy() for table in estimates()])
        self._estimate_VS = flat.reshape(n_variants, n_states)
        self._require_finite(self._estimate_VS, np.arange(n_variants))
        self._exact_VS = np.full((n_variants, n_states), np.nan)
        self._steering = self._steered_by(screen._question)
        donors = screen._layout.donors
        donor_C = np.zeros(len(screen._rows), np.int64) if donors is None else pd.factorize(donors, sort=True)[0]
        drawable = np.flatnonzero(screen._may_be_drawn)
        unit, cell = self._units.unit_V[drawable], self._units.cell_V[drawable]
        self._variant_P = drawable[np.lexsort((cell, self._units.rank_V[drawable], donor_C[cell], unit))]
        self._unit_G, self._gene_P = np.unique(self._units.unit_V[self._variant_P], return_inverse=True)
        self._weight_P = _weights(self._gene_P, donor_C[self._units.cell_V[self._variant_P]])
        self._rounds = passes_of_rounds(n_passes, len(self._unit_G))
        self._draws: list[Draw] = []

    def _steered_by(self, question: Question) -> int:
        """Return which state decides what is drawn."""
        goal = str(question.goal.goal) if question.goal else None
        states = [str(state) for state in self._states]
        if goal in states:
            return states.index(goal)
        return int(np.argmax((self._estimate_VS**2).sum(0)))

    def _require_finite(self, value_VS: np.ndarray, variants: np.ndarray) -> None:
        wrong = ~np.isfinite(value_VS).all(1)
        if wrong.any():
            variant, units = variants[int(np.argmax(wrong))], self._units
            cell, gene = self._screen._layout.cells[units.cell_V[variant]], units.names[units.unit_V[variant]]
            raise InputError(
                f"The model gave no finite value for cell {cell!r}, perturbed {gene!r}. "
                "Look at the model, or leave the cell out with cells.select(…)."
            )

    def _pairs(self, state: int) -> Pairs:
        estimate_P = self._estimate_VS[self._variant_P, state]
        cell_P = self._units.cell_V[self._variant_P]
        return Pairs(self._gene_P, cell_P, estimate_P, self._weight_P, len(self._screen._rows))

    def draw(self) -> np.ndarray:
        """Return the variants, ascending, that the next round measures."""
        number = len(self._draws)
        self._draws.append(
            next_draw(
                self._pairs(self._steering), self._exact_VS[self._variant_P, self._steering], self._draws,
                self._rounds, self._budget.n_top, np.random.default_rng([self._seed, number]),
            )
        )  # fmt: skip
        return np.sort(self._variant_P[self._draws[-1].drawn_P])

    def keep(self, tables: Iterable[pa.Table]) -> None:
        """Take in what a round has measured."""
        for table in tables:
            variants = table["variant"].to_numpy()
            value_NS = np.stack([table[f"value{i}"].to_numpy() for i in range(len(self._states))], axis=1)
            self._require_finite(value_NS, variants)
            self._exact_VS[variants] = value_NS

    def finished(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return the columns of all rows, and what is to be said of the sample."""
        shape = self._exact_VS.shape
        columns = {name: np.full(shape, np.nan) for name in ("value", "unbiased", "variance")}
        of_states = [
            estimated(self._pairs(state), self._exact_VS[self._variant_P, state], self._draws, self._budget.n_top)
            for state in range(shape[1])
        ]
        for state, of_state in enumerate(of_states):
            model, cell_V = of_state.model, self._units.cell_V
            expected_V = model.level_C[cell_V] + model.slope_C[cell_V] * self._estimate_VS[:, state]
            for name in ("value", "unbiased"):
                columns[name][:, state] = expected_V
            for name in columns:
                columns[name][self._variant_P, state] = getattr(of_state, f"{name}_P")
        chance_V, round_V = np.zeros(shape[0]), np.full(shape[0], -1)
        for number, draw in enumerate(self._draws):
            drawn_P = draw.drawn_P
            chance_V[self._variant_P[drawn_P]] = draw.chance_P[drawn_P]
            round_V[self._variant_P[drawn_P]] = number
        estimate_VS = self._estimate_VS if self._screen._has_estimates else np.full(shape, np.nan)
        of_all = {"estimate": estimate_VS, "exact": round_V >= 0, "chance": chance_V, "round": round_V.astype(np.int32)}
        columns |= {
            name: of if of.ndim == 2 else np.repeat(of[:, None], shape[1], axis=1) for name, of in of_all.items()
        }
        return {name: of.ravel() for name, of in columns.items()}, self._said(of_states)

    def _said(self, of_states: Sequence[Estimated]) -> dict[str, Any]:
        trusted: dict[str, dict[str, float | None]] = {}
        for state, of_state in zip(self._states, of_states, strict=True):
            known = self._screen._has_estimates and np.isfinite(of_state.correlation)
            slope = float(of_state.model.slope_C.mean())
            said = {"correlation": of_state.correlation, "slope": slope} if known else {}
            trusted[str(state)] = {"correlation": said.get("correlation"), "slope": said.get("slope")}
        steering = str(self._states[self._steering])
        _tell_if_useless(trusted[steering]["correlation"], steering, has_estimates=self._screen._has_estimates)
        return {
            "passes": int(known_after(self._draws, len(self._variant_P)).sum()),
            "pairs": len(self._variant_P),
            "genes": len(self._unit_G),
            "not_sampled": len(self._units.names) - len(self._unit_G),
            "rounds": [int(draw.drawn_P.sum()) for draw in self._draws],
            "top": self._budget.n_top,
            "min_cells": self._budget.fewest_cells,
            "state": self._states[self._steering],
            "first_order": trusted,
            "found": self._found(of_states[self._steering].ranked),
        }

    def _found(self, ranked: Ranked) -> dict[str, dict[str, list[str]]]:
        """Name, for each direction, the genes that surely belong to the top, and those that may, best first."""
        directions = zip(("highest", "lowest"), ranked.decided(), (-1, 1), strict=True)
        found: dict[str, dict[str, list[str]]] = {}
        for direction, decided_G, sign in directions:
            order = np.argsort(sign * ranked.mean_G, kind="stable")
            chosen = {"decided": order[decided_G[order] == 1], "undecided": order[decided_G[order] == 0]}
            found[direction] = {
                name: [self._units.names[unit] for unit in self._unit_G[genes]] for name, genes in chosen.items()
            }
        return found


def _weights(gene_P: np.ndarray, donor_P: np.ndarray) -> np.ndarray:
    """Return weights that make a gene's mean one over its donors of means over their cells; they add up to 1."""
    both, which_P, n = np.unique(gene_P * (donor_P.max() + 1) + donor_P, return_inverse=True, return_counts=True)
    n_donors_G = np.bincount(both // (donor_P.max() + 1))
    return np.asarray(1 / (n[which_P.ravel()] * n_donors_G[gene_P]))


def _tell_if_useless(correlation: float | None, state: str, *, has_estimates: bool) -> None:
    if not has_estimates:
        logger.warning("A cell's similarity to itself has no first order: this is a plain sample, without estimates.")
    elif correlation is None or correlation < USELESS:
        logger.warning(
            "First order tells next to nothing of exact values here (%s: correlation %s within genes): this is a plain "
            "sample. It is as unbiased, with wider intervals.",
            state,
            "unknown" if correlation is None else f"{correlation:.2f}",
        )
