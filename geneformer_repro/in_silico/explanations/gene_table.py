"""From attributions of genes in cells to a table of genes, with donors as replicates.

A gene's effect is the mean over donors of each donor's mean over its cells that express the gene: cells of a donor are
alike, so they are no replicates, and a gene of one donor has an effect and no p-value. Beside each effect stands what
needs no model (how many cells express the gene, where it stands in them, how its expression differs), and `beyond`,
what these do not predict.

Signed and absolute attributions make two tables. A gene that raises the answer in some cells and lowers it in others
has a signed effect near 0 and a large absolute one; the mean of absolute values is above 0 by its making, so the second
table has no test.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from geneformer_repro.errors import InputError
from geneformer_repro.in_silico.blockwise import InBlocks, Names, added, blocks_of_whole_cells, totals_by_key
from geneformer_repro.in_silico.explanations.attribution import LEAST_R2, LEAST_STABILITY
from geneformer_repro.in_silico.gene_baselines import FOLDS, beyond_baselines, differential_expression
from geneformer_repro.in_silico.networks.donor_tests import FEWEST_DONORS, DonorTest, donor_test
from geneformer_repro.in_silico.published_statistics import SIGNIFICANT
from geneformer_repro.tokenizer.counts import rank_values, vocabulary_counts
from geneformer_repro.tokenizer.dataset import TokenizedDataset

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)

MOST_GAP = 0.01
"""Share by which a cell may miss completeness; beyond it its integrated gradients count for nothing."""
PREDICTORS = ("detection_rate", "mean_place", "detection_difference", "log2_fold_change")
"""What `beyond` is the residual of; columns that are not at hand are left out."""
COLUMNS = (
    "gene_name", "method", "state", "effect", "low", "high", "t", "p_value", "fdr", "n_cells", "n_donors",
    "mean_place", "detection_rate",
)  # fmt: skip
UNSIGNED = ("rollout", "attention")
"""Methods that are above 0 by their making: shares of attention, which say nothing of the number explained."""
SURROGATE, FIT = "surrogate", ("r2", "stability")
"""The method whose rows have further columns, and those that say how well it stands in for the model."""
_READ = ("cell", "donor", "gene", "place", "method", "state", "value")
_KEYS = ("method", "state", "donor", "gene")
_BITS = {"method": 6, "state": 17, "donor": 20, "gene": 20}
"""How many bits each part of a key has, from the highest."""


class Attributions(InBlocks, Protocol):
    """What a table of genes is made of: an `Explanation`, or rows of like columns."""

    metadata: dict[str, Any]
    """What made the rows."""


class Told(NamedTuple):
    """What one pass over the rows tells."""

    of_donors: pd.DataFrame
    """Of each method, state, donor and gene, as columns: ``n_cells``, ``total`` and ``absolute`` of values, and
    ``n_placed`` and ``places``; the donor is None where none was named."""
    n_cells: int
    """Cells that were explained."""
    n_left_out: Mapping[str, int]
    """Of each method, cells that are left out: whose integrated gradients do not add up."""


def gene_table(
    why: Attributions,
    cells: TokenizedDataset | None = None,
    counts: "AnnData | str | Path | None" = None,
    *,
    absolute: bool = False,
) -> pd.DataFrame:
    """Make a table of genes from attributions of cells.

    Parameters
    ----------
    why
        The rows, a gene of a cell, method and state each.
    cells
        The tokenised cells, those of the other classes or of the start state among them: adds how detection and
        expression differ.
    counts
        Raw counts of `cells`, if not where `tokenize` found them.
    absolute
        Take absolute values: how much a gene moves the answer, in whichever direction.

    Returns
    -------
    A row a gene, method and state, indexed by ``gene_id``; within a method and state first those with ``fdr`` below
    0.05, the largest effect first, then the others by ``p_value``.

    - ``gene_name``, ``method``, ``state``.
    - ``effect``: mean over donors of the donor's mean over the cells that express the gene, with its 95 % interval over
      donors, ``low`` to ``high``, and ``t``. Without donors the mean over cells, without interval.
    - ``p_value``: two-sided t-test over donors, its variance drawn to that of the other genes (limma's); null
      hypothesis: over the donors that one might have sampled the effect is 0. ``fdr``, Benjamini and Hochberg over the
      genes of the method and state. NaN below three donors, and for absolute values and
      shares of attention, which are above 0 by their making.
    - ``n_cells`` that express the gene, ``n_donors`` they are of (0: no donors were named), ``mean_place`` in them (0
      for the first), ``detection_rate`` among the cells explained.
    - With `cells`: ``detection_difference`` and ``log2_fold_change`` of the state's class against the rest, or of a
      goal against its start; counts summed by donor. NaN for a number, or where there are no counts.
    - ``beyond``: the effect less what a linear regression on the ranks of the last four predicts, fitted on other
      genes. NaN below ten genes.

    ``attrs`` hold ``explained_by_baselines`` (R² of that regression) and ``baselines`` (Spearman correlation of each
    with the effect), by method and state; ``n_cells``; ``n_left_out`` of each method, cells whose integrated gradients
    miss completeness; ``absolute``.

    Raises
    ------
    InputError
        A value is infinite, none is known, or `cells` lacks cells, genes or the column of the classes.
    """
    told = read(why)
    for method, n in told.n_left_out.items():
        logger.warning(
            "%s of %s cells miss completeness and are left out of %s.", n, told.n_cells, method
        )  # fmt: skip
    contrasts = None if cells is None else _Contrasts(why.metadata, cells, counts)
    groups = {_names(key): rows for key, rows in told.of_donors.groupby(["method", "state"], sort=False, dropna=False)}
    asked = list(why.metadata["methods"])
    tables, explained, alone = [], {}, {}
    for (method, state), rows in sorted(groups.items(), key=lambda group: asked.index(group[0][0])):
        table = _of_group(rows, told.n_cells, absolute=absolute or method in UNSIGNED)
        table.insert(0, "state", state)
        table.insert(0, "method", method)
        if contrasts is not None:
            table = table.join(contrasts.of(state, table.index))
        table["beyond"], explained[_key(method, state)], alone[_key(method, state)] = _beyond(table, absolute=absolute)
        tables.append(table.iloc[_order(table)])
    table = pd.concat(tables).rename_axis("gene_id")
    names = why.metadata.get("gene_names") or {}
    table.insert(0, "gene_name", [names.get(gene) or gene for gene in table.index])
    table.attrs = {
        "explained_by_baselines": explained,
        "baselines": alone,
        "n_cells": told.n_cells,
        "n_left_out": dict(told.n_left_out),
        "absolute": absolute,
    }
    return table


def _names(key: Any) -> tuple[str, str | None]:
    method, state = key
    return str(method), None if pd.isna(state) else str(state)


def _key(method: str, state: str | None) -> str:
    """Name a method and state, as JSON can."""
    return method if state is None else f"{method}: {state}"


# One pass over the rows


def read(why: Attributions) -> Told:
    """Sum the attributions of each method, state, donor and gene in one pass, one block in memory.

    Raises
    ------
    InputError
        A value is infinite, or none is known.
    """
    numbers = {name: Names() for name in _KEYS}
    cells, left_out, of_blocks = Names(), dict[str, set[str]](), []
    for block in sound_blocks(why, _READ, left_out):
        cells.numbers(block["cell"])
        if np.isinf(block["value"]).any():
            first = block[np.isinf(block["value"])].iloc[0]
            raise InputError(
                f"The explanation holds infinite values (first: cell {first['cell']!r}, gene {first['gene']!r}, method "
                f"{first['method']!r}), of which there is no mean. The model gave them: explain again with dtype=None."
            )
        of_blocks.append(_sums(block, numbers))
    if not sum(map(len, of_blocks)):
        raise InputError("No gene of the explanation has a value; there is nothing to average. Explain again.")
    summed = added(of_blocks, totals_by_key)
    columns = {name: numbers[name].names_and(None)[code] for name, code in _codes(summed.index.to_numpy()).items()}
    return Told(
        pd.concat([pd.DataFrame(columns, index=summed.index), summed], axis=1).reset_index(drop=True),
        len(cells),
        {method: len(names) for method, names in left_out.items()},
    )


def sound_blocks(
    why: Attributions, columns: Sequence[str], left_out: dict[str, set[str]] | None = None, *, ranked: bool = False
) -> Iterator[pd.DataFrame]:
    """Yield the rows with a value that is to be relied on, in blocks that hold all rows of their cells.

    Parameters
    ----------
    why
        The explanation.
    columns
        Those that are wanted, ``cell``, ``method`` and ``value`` among them.
    left_out
        To be filled with the cells that are left out of each method: whose integrated gradients miss completeness.
    ranked
        Genes are to be ranked within a cell, so leave out surrogates that fit poorly, too. Means over cells keep them:
        they fit worst where few genes matter, and without those cells the genes that matter would be missed.
    """
    has_fits = ranked and SURROGATE in why.metadata["methods"]
    bound = most_gap(why.metadata)
    for block in blocks_of_whole_cells(why, [*columns, "gap", *(FIT if has_fits else ())]):
        sound = ~(block["gap"] > bound)
        if has_fits:
            sound &= ~((block["r2"] < LEAST_R2) | (block["stability"] < LEAST_STABILITY))
        if left_out is not None:
            for method, of_method in block[~sound].groupby("method", observed=True):
                left_out.setdefault(str(method), set()).update(of_method["cell"].astype(str).unique())
        yield block[sound & block["value"].notna() & block["gene"].notna()]


def most_gap(metadata: Mapping[str, Any]) -> float:
    """Return the share by which a cell may miss completeness."""
    return float((metadata.get("completeness") or {}).get("tolerance", MOST_GAP))


def _sums(block: pd.DataFrame, numbers: Mapping[str, Names]) -> pd.DataFrame:
    codes = {name: numbers[name].numbers(block[name]) for name in _KEYS}
    value, place = block["value"], block["place"]
    sums = pd.DataFrame(
        {
            "n_cells": 1,
            "total": value.to_numpy(),
            "absolute": value.abs().to_numpy(),
            "n_placed": place.notna().to_numpy().astype(np.int64),
            "places": place.fillna(0).to_numpy(dtype=float),
        },
        index=pd.Index(_packed(codes), name="key"),
    )
    return totals_by_key(sums)


def _packed(codes: Mapping[str, np.ndarray]) -> np.ndarray:
    """Put the numbers of a row's names into one; none, -1, is the highest of its part."""
    key = np.zeros(len(codes["gene"]), dtype=np.int64)
    for name, bits in _BITS.items():
        if codes[name].max(initial=0) >= 2**bits - 1:
            raise InputError(f"An explanation can have {2**bits - 1:,} {name}s, found more. Average parts of it.")
        key = key << bits | np.where(codes[name] < 0, 2**bits - 1, codes[name])
    return key


def _codes(key: np.ndarray) -> dict[str, np.ndarray]:
    codes = {}
    for name, bits in reversed(_BITS.items()):
        code = key & (2**bits - 1)
        codes[name] = np.where(code == 2**bits - 1, -1, code)
        key = key >> bits
    return codes


# One method and state


def donor_means(rows: pd.DataFrame, *, absolute: bool = False) -> pd.DataFrame:
    """Return each donor's mean attribution of each gene, donors × genes, NaN where no cell of a donor has the gene.

    Parameters
    ----------
    rows
        Of `Told.of_donors`, of one method and state, all with a donor.
    absolute
        Of absolute attributions.
    """
    mean = rows["absolute" if absolute else "total"] / rows["n_cells"]
    return rows.assign(mean=mean).pivot(index="donor", columns="gene", values="mean")


def _of_group(rows: pd.DataFrame, n_cells: int, *, absolute: bool) -> pd.DataFrame:
    of_gene = rows.groupby("gene")[["n_cells", "total", "absolute", "n_placed", "places"]].sum()
    with_donor = rows[rows["donor"].notna()]
    if len(with_donor):
        means = donor_means(with_donor, absolute=absolute)
        tested = pd.DataFrame(_columns(_tested(means.to_numpy()), absolute=absolute), index=means.columns)
    else:
        effect = of_gene["absolute" if absolute else "total"] / of_gene["n_cells"]
        tested = pd.DataFrame({"effect": effect, **dict.fromkeys(_OF_TEST, np.nan), "n_donors": 0})
    tested = tested.reindex(of_gene.index)
    tested.insert(list(tested).index("n_donors"), "n_cells", of_gene["n_cells"])
    tested["n_donors"] = tested["n_donors"].fillna(0).astype(np.int64)
    placed = of_gene["n_placed"]
    tested["mean_place"] = (of_gene["places"] / placed).where(placed > 0)
    tested["detection_rate"] = of_gene["n_cells"] / n_cells
    return tested


_OF_TEST = ("low", "high", "t", "p_value", "fdr")


def _tested(means: np.ndarray) -> DonorTest:
    """Test over donors, with moderated variances where two genes have one to learn from."""
    spread = np.nanvar(means[:, np.sum(~np.isnan(means), 0) >= FEWEST_DONORS], axis=0)
    return donor_test(means, moderated=len(spread) > 1 and bool(np.median(spread) > 0))


def _columns(test: DonorTest, *, absolute: bool) -> dict[str, np.ndarray]:
    none = np.full_like(test.mean, np.nan)
    of_null = (none, none, none) if absolute else (test.t, test.p_value, test.fdr)
    columns = ("effect", "low", "high", "t", "p_value", "fdr", "n_donors")
    return dict(zip(columns, (test.mean, test.low, test.high, *of_null, test.n_donors), strict=True))


def _beyond(table: pd.DataFrame, *, absolute: bool) -> tuple[pd.Series, float, dict[str, float]]:
    """Return what baselines do not explain of the effects, how much they explain, and each one's correlation."""
    effect = table["effect"].sort_index().dropna()
    known = table.reindex(effect.index)[[name for name in PREDICTORS if name in table]]
    if absolute:
        changes = known.columns.intersection(["detection_difference", "log2_fold_change"])
        known = known.assign(**{name: known[name].abs() for name in changes})
    if len(effect) < 2 * FOLDS:
        return pd.Series(np.nan, table.index), np.nan, {}
    beyond = beyond_baselines(effect, known.dropna(axis=1, how="all"))
    alone = {str(name): float(rho) for name, rho in beyond.alone.items()}
    return beyond.residual.reindex(table.index), beyond.explained, alone


def _order(table: pd.DataFrame) -> np.ndarray:
    size, p_value = -table["effect"].abs().to_numpy(), table["p_value"].to_numpy()
    group = np.select([table["fdr"] < SIGNIFICANT, table["fdr"].notna()], [0, 1], 2)
    return np.lexsort((table.index.to_numpy(dtype=str), size, np.where(group == 1, p_value, size), group))


# Without the model


@dataclass(frozen=True)
class _Contrasts:
    """How genes differ between the cells of a state and the others."""

    metadata: Mapping[str, Any]
    cells: TokenizedDataset
    counts: "AnnData | str | Path | None"

    def of(self, state: str | None, genes: "pd.Index[str]") -> pd.DataFrame:
        """Return ``detection_difference`` and ``log2_fold_change`` of genes; NaN where a state has no rest."""
        place = pd.Index(self.cells.vocabulary.gene_ids).get_indexer(genes)
        if (place < 0).any():
            raise InputError(
                f"cells= lacks {(place < 0).sum():,} of the {len(genes):,} genes that were explained (first: "
                f"{genes[int(np.argmin(place))]!r}). Give the dataset that explain was given."
            )
        unknown = np.full(len(genes), np.nan)
        columns = {"detection_difference": unknown, "log2_fold_change": unknown}
        if (rows := self._rows(state)) is not None:
            rest, own = (self.cells.select(of) for of in rows)
            without, with_it = (rank_values(of)[:, place].getnnz(axis=0) / len(of) for of in (rest, own))
            counted = None if self._counted is None else [self._counted[of] for of in rows]
            change, _ = differential_expression(rest, own, place, self.metadata.get("donor"), counted)
            columns = {"detection_difference": with_it - without, "log2_fold_change": change}
        return pd.DataFrame(columns, index=genes)

    @cached_property
    def _counted(self) -> csr_matrix | None:
        """The raw counts of all cells, which are looked for once; None if they are not at hand."""
        return vocabulary_counts(self.cells, self.counts)

    def _rows(self, state: str | None) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the rows of the others and of the state; None where there are none of either."""
        goal, target = self.metadata.get("goal"), self.metadata.get("target")
        obs = goal["obs"] if goal else target
        if obs is None or state is None:
            return None
        labels = self.cells.labels(obs)
        own = (labels == state).to_numpy()
        rest = (labels == goal["start"]).to_numpy() if goal else labels.notna().to_numpy() & ~own
        return (np.flatnonzero(rest), np.flatnonzero(own)) if rest.any() and own.any() else None
