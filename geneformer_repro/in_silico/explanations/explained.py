"""The families of models that can be explained have one form; here are cells by a model that reads tokens."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch

import geneformer_repro.processes as processes
from geneformer_repro.checkpoint import Checkpoint
from geneformer_repro.errors import InputError
from geneformer_repro.heads import CellClassifier
from geneformer_repro.in_silico.block_tables import carried, taken
from geneformer_repro.in_silico.explanations.answers import Answer
from geneformer_repro.in_silico.explanations.asked import Asked
from geneformer_repro.in_silico.explanations.attribution import Attribution
from geneformer_repro.in_silico.explanations.cell_methods import CellMethods, Rows
from geneformer_repro.in_silico.explanations.explanation import COLUMNS, SURROGATE_COLUMNS
from geneformer_repro.in_silico.explanations.how_good import labels_in, of_target, replicates
from geneformer_repro.in_silico.explanations.occlusions import OPERATORS
from geneformer_repro.in_silico.explanations.request import Request, refuse_seen
from geneformer_repro.in_silico.parted import batch_tokens
from geneformer_repro.in_silico.question import donors_of
from geneformer_repro.model import flops
from geneformer_repro.reading import Reader, outputs_of
from geneformer_repro.tokenizer.dataset import TokenizedDataset
from geneformer_repro.tokenizer.placeholders import warn_of_no_donors

_TOKENS_A_ROW = 4
"""So that a part, of two million tokens, has half a million rows at most."""
CELLS_JUDGED = 2000
"""Most cells over which is said how good a model is."""


class Explained(ABC):
    """Rows of one family of models that are explained: cells, samples, pairs, patients."""

    rows_are: ClassVar[str] = "rows"
    """What they are called, such as "cells"."""

    @abstractmethod
    def costs(self) -> np.ndarray:
        """Return the work of each row, as tokens (or the like) that are read; parts are cut by it."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return what makes two explanations the same, as JSON can hold it; it goes into the metadata, too.

        At least ``methods`` (settings of each), ``donor``, ``obs`` and ``n_cells``; all inputs by content. Here or from
        `prepare` also ``measure`` (what number is explained, in words).
        """

    @abstractmethod
    def table(self, part: np.ndarray, show: Callable[[int], object]) -> pa.Table:
        """Return the rows of the file for some rows; `show` is called with passes that are done."""

    @property
    @abstractmethod
    def names(self) -> np.ndarray:
        """Name of each row, as in column ``cell``; several rows may be of one."""

    def donor_of(self, row: int) -> str | None:
        """Return the replicate of a row: here itself."""
        return str(self.names[row])

    def table_by_itself(self, part: np.ndarray, show: Callable[[int], object]) -> pa.Table:
        """Return the rows of the file for some rows, without what `prepare` measures over all of them."""
        return self.table(part, show)

    def passes(self) -> np.ndarray:
        """Return how often the network is run for each row, which the bar counts; here once."""
        return np.ones(len(self.costs()), dtype=np.int64)

    def prepare(self) -> dict[str, Any]:
        """Do what costs and is needed before the first row; return further metadata, such as ``how_good``."""
        return {}

    def seconds(self, rows: np.ndarray) -> float | None:
        """Measure how long some rows will take; None where a bar tells soon enough."""
        return None

    @property
    def columns_for_metadata(self) -> list[str]:
        """Columns that `further` needs."""
        return ["gene"]

    def further(self, tables: Iterable[pa.Table]) -> dict[str, Any]:
        """Return metadata that need all rows, part by part."""
        return {}


class CellsExplained(Explained):
    """Cells by a model that reads tokens."""

    rows_are = "cells"

    def __init__(self, request: Request, checkpoint: Checkpoint, cells: TokenizedDataset) -> None:
        checkpoint.require_matching(cells)
        if "median" in request.methods or request.baseline == "median":
            raise InputError(
                "The median of a gene's value is for networks that read values; of cells, whose genes have places, it "
                'is methods=["median_rank"], and baseline="mean".'
            )
        self._request, self._checkpoint, self._cells = request, checkpoint, cells
        self._asked = Asked(request, checkpoint, cells)
        for name in filter(None, [request.donor, *request.obs]):
            cells.require_obs(name)
        if request.donor is not None:
            warn_of_no_donors(cells.labels(request.donor), request.donor)
        every = self._asked.rows()
        self._rows = drawn(every, request.max_cells, np.random.default_rng(request.seed))
        if not request.allow_seen and checkpoint.seen is not None:
            is_seen = np.isin(cells.select(self._rows).digests(), checkpoint.seen)
            refuse_seen(is_seen, cells.cell_names[self._rows], "cells", checkpoint.name)
        device = torch.device(request.device) if request.device else processes.device()
        self._reader = Reader.of(
            checkpoint,
            layer=self._asked.layer,
            dtype=request.dtype,
            max_tokens=batch_tokens(request.max_tokens, device),
            device=device,
        )
        self._methods = CellMethods(request, cells, every)
        self._methods.require_few_units(self._rows)
        self._donors = donors_of(cells, self._rows, request.donor, to="explain")

    @cached_property
    def answer(self) -> Answer:
        """What is asked of each cell."""
        return self._asked.answer(self._reader.device)

    @property
    def rows_of_cells(self) -> np.ndarray:
        """Row number of each in the dataset."""
        return self._rows

    @property
    def names(self) -> np.ndarray:
        """Name of each cell."""
        return self._cells.cell_names[self._rows]

    def donor_of(self, row: int) -> str | None:
        """Return the donor; None where none is named."""
        return None if self._donors is None else self._donors[row]

    def of_model(self, checkpoint: Checkpoint) -> "CellsExplained":
        """Return the same cells and question, of another model."""
        return CellsExplained(self._request, checkpoint, self._cells)

    def table_by_itself(self, part: np.ndarray, show: Callable[[int], object]) -> pa.Table:
        """Return the rows of the file for some cells; gaps are measured by the spread of these alone."""
        self._methods.prepare()
        if "integrated_gradients" in self._request.methods:
            cells = [self._cells[int(row)] for row in self._rows[part]]
            self._methods.learn_spread(self._reader, self.answer, cells)
        return self.table(part, show)

    @cached_property
    def _lengths(self) -> np.ndarray:
        return self._cells.lengths[self._rows]

    def passes(self) -> np.ndarray:
        """Return how often the network is run for each cell."""
        return np.array([self._methods.passes(int(length)) for length in self._lengths])

    def costs(self) -> np.ndarray:
        """Return the tokens that are read for each cell; or its rows in the file, where those are what is much."""
        n_rows = self._lengths * len(self._request.methods) * len(self._names)
        return np.maximum(self._work() * self._lengths, n_rows * _TOKENS_A_ROW)

    def _work(self) -> np.ndarray:
        """Return what each cell costs, in forward passes."""
        return np.array([self._methods.work(int(length), len(self._names)) for length in self._lengths])

    def describe(self) -> dict[str, Any]:
        """Return what makes two explanations of cells the same."""
        request = self._request
        return {
            **self._asked.describe(),
            "states": list(self._names),
            "methods": request.settings(),
            "unit": "gene" if request.sets is None else "set",
            **self._methods.describe(),
            "donor": request.donor,
            "obs": list(request.obs),
            "n_cells": len(self._rows),
            "max_cells": request.max_cells,
            "seed": request.seed,
            "dtype": request.dtype,
            "allow_seen": request.allow_seen,
            "checkpoint": self._checkpoint.fingerprint,
            "cells": self._cells.fingerprint,
        }

    @property
    def _names(self) -> Sequence[str]:
        """What the numbers explained are called, before states are embedded."""
        goal = self._request.goal
        return goal.states[1:] if goal is not None else self.answer.names

    def prepare(self) -> dict[str, Any]:
        """Embed states, read places of reference cells, and see how good the model is."""
        self._methods.prepare()
        facts = self._methods.measure(self._reader, self.answer, self._rows)
        how_good = processes.agreed(self._how_good)
        return {"measure": self.answer.described, "how_good": how_good, **facts}

    def _how_good(self) -> dict[str, Any] | None:
        """Return how well the model predicts the cells explained, where their labels are known."""
        output, model, cells = self._asked.output, self._checkpoint.token_model, self._cells
        if not isinstance(model, CellClassifier) or output is None or output.target.name not in cells.obs_columns:
            return None
        target = output.target
        chosen = drawn(np.arange(len(self._rows)), CELLS_JUDGED, np.random.default_rng(self._request.seed))
        judged = cells.select(self._rows[chosen])
        labels = labels_in(target, judged.obs)
        if labels is None or not (known := ~np.isnan(labels).any(axis=1)).any():
            return None
        outputs = outputs_of(model, judged, model.head, max_tokens=self._reader.max_tokens)
        meaning = target.meaning(model.head.split(outputs.double())[output.number]).numpy()[known]
        labels = labels[known]
        unit, what = replicates(None if self._donors is None else self._donors[chosen][known], len(labels))
        scored = of_target(target, labels, meaning, unit)
        return scored | {"replicates": what}

    def seconds(self, rows: np.ndarray) -> float | None:
        """Measure a few passes of a cell of middle length, and scale them by what all cost."""
        middle = rows[np.argsort(self._lengths[rows], kind="stable")[len(rows) // 2]]
        cost = np.array([flops(self._reader.bert.config, np.array([length])) for length in self._lengths])
        return self._methods.seconds(
            self._reader, self.answer, self._cells[int(self._rows[middle])], cost[middle], (cost * self._work())[rows]
        )

    def table(self, part: np.ndarray, show: Callable[[int], object]) -> pa.Table:
        """Return the rows of the file for some cells: of each its methods, of each of those its genes and states."""
        cells = [self._cells[int(row)] for row in self._rows[part]]
        done = {
            method: self._methods.do(method, self._reader, self.answer, cells, show) for method in self._request.methods
        }
        return self._laid_out(part, cells, done)

    def _laid_out(
        self, part: np.ndarray, cells: Sequence[np.ndarray], done: Mapping[str, Sequence[Attribution]]
    ) -> pa.Table:
        blocks = [
            (part[i], self._methods.rows(method, tokens, of_cells[i]))
            for i, tokens in enumerate(cells)
            for method, of_cells in done.items()
        ]
        row = np.repeat([cell for cell, _ in blocks], [len(of_cell.unit) for _, of_cell in blocks])
        rows = Rows.joined([of_cell for _, of_cell in blocks])
        own = {
            "cell": taken(self._cells.cell_names[self._rows], row),
            "donor": pa.nulls(len(row), pa.string()) if self._donors is None else taken(self._donors, row),
            "gene": taken(self._methods.unit_names, rows.unit),
            "place": pa.array(rows.place, pa.int32(), mask=rows.place < 0),
            "method": taken(self._request.methods, rows.method),
            "state": taken(self._names, rows.state),
            "value": pa.array(rows.value),
            "before": pa.array(rows.before),
            "gap": pa.array(rows.gap, mask=np.isnan(rows.gap)),
            "exact": taken([name in OPERATORS for name in self._request.methods], rows.method, pa.bool_()),
        }
        if rows.fit is not None:
            own |= {name: pa.array(of, mask=np.isnan(of)) for name, of in zip(SURROGATE_COLUMNS, rows.fit, strict=True)}
        obs = carried(self._cells.obs[list(self._request.obs)].iloc[self._rows], row)
        further = [(name, pa.float64()) for name in own if name in SURROGATE_COLUMNS]
        return pa.table([*own.values(), *obs.columns], pa.schema([*COLUMNS.items(), *further, *obs.schema]))

    @property
    def columns_for_metadata(self) -> list[str]:
        """Columns that `further` needs."""
        of_fits = ["state", *SURROGATE_COLUMNS] if "surrogate" in self._request.methods else []
        return ["cell", "gene", "method", "gap", *of_fits]

    def further(self, tables: Iterable[pa.Table]) -> dict[str, Any]:
        """Return the names of the genes, and what each method says of itself over all cells."""
        return self._methods.further(tables)


def drawn(rows: np.ndarray, most: int | None, rng: np.random.Generator) -> np.ndarray:
    """Return the rows, or a random choice of too many, ascending."""
    return rows if most is None or len(rows) <= most else np.sort(rng.choice(rows, most, replace=False))
