"""From what came of the variants of cells to the rows of a `ShiftTable`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from scipy.stats import spearmanr

from geneformer_repro.in_silico.block_tables import carried, taken
from geneformer_repro.in_silico.engine import Outcome, PerturbedCell
from geneformer_repro.in_silico.shift_table import COLUMNS, ESTIMATE, SHAMS, as_frame
from geneformer_repro.tokenizer.vocabulary import Vocabulary


@dataclass(frozen=True)
class Layout:
    """What the cells of a screen, their donors and the states are called."""

    vocabulary: Vocabulary
    cells: np.ndarray
    """Name of each cell."""
    donors: np.ndarray | None
    """Donor of each cell."""
    states: tuple[str | None, ...]
    """What the values of a variant are called."""
    obs: pd.DataFrame
    """Other columns, a row a cell."""
    n_shams: int = 0
    """Sham goals, whose values stand behind those of the states in an outcome."""
    goal: int = 0
    """Which state is the goal."""

    def table(
        self,
        cells: np.ndarray,
        perturbed: Sequence[PerturbedCell],
        outcomes: Sequence[Outcome],
        is_exact: np.ndarray | None = None,
    ) -> pa.Table:
        """Lay out the rows of some cells: of each variant its states, then the genes it affects.

        Parameters
        ----------
        cells
            Number of each cell among those of the screen.
        perturbed, outcomes
            What was done to each, and what came of it.
        is_exact
            Of each variant of all cells, whether its value is; None: all are.
        """
        rows = {str(name): column.to_numpy() for name, column in _rows(outcomes, len(self.states)).items()}
        variants = [cell.variants for cell in perturbed]
        place = np.repeat(np.arange(len(cells)), [len(of_cell) for of_cell in variants])[rows["variant"]]
        cell = cells[place]
        rank, dose = (np.concatenate([getattr(of_cell, of) for of_cell in variants]) for of in ("rank_N", "dose_N"))
        rank, dose = rank[rows["variant"]], dose[rows["variant"]]
        exact = np.ones(len(cell), dtype=bool) if is_exact is None else is_exact[rows["variant"]]
        columns = [
            taken(self.cells[cells], place),
            pa.nulls(len(cell), pa.string()) if self.donors is None else taken(self.donors[cells], place),
            taken(self._names([tokens for of_cell in variants for tokens in of_cell.perturbed]), rows["variant"]),
            self._affected(rows["affected"]),
            taken(self.states, rows["state"]),
            pa.array(dose, mask=np.isnan(dose)),
            pa.array(rank, pa.int32(), mask=rank < 0),
            pa.array(rows["value"]),
            pa.array(rows["before"], mask=np.isnan(rows["before"])),
            pa.array(exact),
        ]
        obs = carried(self.obs, cell)
        table = pa.table([*columns, *obs.columns], pa.schema([*COLUMNS.items(), *obs.schema]))
        return table.append_column(SHAMS, self._shams(rows, outcomes)) if self.n_shams else table

    def _shams(self, rows: Mapping[str, np.ndarray], outcomes: Sequence[Outcome]) -> pa.Array:
        """Return a list of values for each row about the goal, and null for the others."""
        of_shams = np.concatenate([outcome.value_NS[:, len(self.states) :] for outcome in outcomes])
        lists = pa.FixedSizeListArray.from_arrays(pa.array(of_shams.astype(np.float32).ravel()), self.n_shams)
        is_other = (rows["state"] != self.goal) | (rows["affected"] >= 0)
        return lists.take(pa.array(rows["variant"], mask=is_other))

    def _affected(self, tokens: np.ndarray) -> pa.Array:
        genes = self.vocabulary.genes_of(tokens)
        return pa.array(self.vocabulary.gene_ids).take(pa.array(genes, mask=genes < 0))

    def _names(self, perturbed: Sequence[tuple[int, ...]]) -> list[str]:
        """Return the ids of perturbed genes, joined by +."""
        flat = np.concatenate([np.asarray(tokens, dtype=np.int64) for tokens in perturbed])
        gene, ids = iter(self.vocabulary.genes_of(flat).tolist()), self.vocabulary.gene_ids
        return ["+".join([ids[next(gene)] for _ in tokens]) for tokens in perturbed]

    def metadata_of(self, tables: Iterable[pa.Table], checked: np.ndarray) -> dict[str, Any]:
        """Return the metadata that need all rows: names of genes, and how well estimates agree with exact values.

        Parameters
        ----------
        tables
            All rows, part by part.
        checked
            Number of each cell of which a first-order screen has all values exactly; none for another screen.
        """
        genes: set[str] = set()
        of_checked = []
        for table in tables:
            for name in ("perturbed", "affected"):
                perturbed = filter(None, table[name].unique().to_pylist())
                genes.update(gene for ids in perturbed for gene in ids.split("+"))
            if len(checked):
                of_checked.append(table.filter(pc.is_in(table["cell"], pa.array(self.cells[checked]))))
        name_of, position = self.vocabulary.gene_names, self.vocabulary.position
        metadata = {"gene_names": {gene: name_of[position[gene]] for gene in sorted(genes)}}
        return metadata | ({"first_order": _agreement(as_frame(pa.concat_tables(of_checked)))} if of_checked else {})


def _rows(outcomes: Sequence[Outcome], n_states: int) -> pd.DataFrame:
    """Lay out rows, variant by variant; of an outcome the values of so many states.

    Returns
    -------
    ``variant``: which one of all; ``state``: which one, 0 where there are none, and of an affected gene; ``affected``:
    token of the affected gene, -1 of a row about the cell; ``value`` and ``before``.
    """
    value_VS, before_VS = (
        np.concatenate([getattr(outcome, name)[:, :n_states] for outcome in outcomes])
        for name in ("value_NS", "before_NS")
    )
    variant, state = np.divmod(np.arange(value_VS.size), value_VS.shape[1])
    about_cells = {"variant": variant, "state": state, "value": value_VS.ravel(), "before": before_VS.ravel()}
    rows = pd.DataFrame(about_cells).assign(affected=-1)
    if not any(outcome.affected for outcome in outcomes):
        return rows
    starts = np.cumsum([0, *[len(outcome.value_NS) for outcome in outcomes]])
    of_variants = [
        (start + i, *pair)
        for outcome, start in zip(outcomes, starts, strict=False)
        for i, pair in outcome.affected.items()
    ]
    variants, tokens, values = zip(*of_variants, strict=True)
    about_genes = {"affected": np.concatenate(tokens), "value": np.concatenate(values)}
    variant = np.repeat(variants, [len(of_variant) for of_variant in tokens])
    of_genes = pd.DataFrame(about_genes).assign(variant=variant, state=0)
    return pd.concat([rows, of_genes]).sort_values("variant", kind="stable")


def _agreement(checked: pd.DataFrame) -> dict[str, Any]:
    """Compare estimates with exact values, over the genes of each checked cell."""
    by_state: dict[str, Any] = {}
    for state, rows in checked.groupby("state", sort=False):
        of_cells = [of_cell[[ESTIMATE, "value"]] for _, of_cell in rows.groupby("cell")]
        varying = [of_cell for of_cell in of_cells if len(of_cell) > 2 and (of_cell.nunique() > 1).all()]
        correlations = [float(spearmanr(of_cell[ESTIMATE], of_cell["value"]).statistic) for of_cell in varying]
        by_state[str(state)] = {
            "median": float(np.median(correlations)) if correlations else None,
            "lowest": min(correlations, default=None),
            "highest": max(correlations, default=None),
        }
    return {"checked_cells": sorted(checked["cell"].unique()), "spearman": by_state}
