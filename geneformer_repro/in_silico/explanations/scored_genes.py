"""The genes of any table: which could have been chosen, by what they are ranked, and which are like which.

Tables of explanations, screens, networks and differential tests name the same things differently, and tables of others
do, too. Here they become one form, and a gene that was never scored is no gene of the background: with a genome as
background 150 genes drawn by detection alone are "enriched" in 55 sets of Reactome (`benchmarks/enrichment.py`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from geneformer_repro.errors import DataFormatError, InputError, did_you_mean
from geneformer_repro.in_silico.block_tables import format_of
from geneformer_repro.in_silico.explanations.explanation import Explanation
from geneformer_repro.in_silico.explanations.gene_table import gene_table
from geneformer_repro.in_silico.networks.edge_scores import bins_of, bins_within
from geneformer_repro.in_silico.networks.gene_network import GeneNetwork
from geneformer_repro.in_silico.shift_table import ShiftTable
from geneformer_repro.in_silico.statistics import shift_statistics
from geneformer_repro.tokenizer.features import bare_id, is_ensembl_gene, texts
from geneformer_repro.tokenizer.genes import GivenGenes, gene_ids_of
from geneformer_repro.tokenizer.symbols import ensembl_of_symbol
from geneformer_repro.tokenizer.tables import column_called, examples, read_rows

INDEX = "index"
ID_COLUMNS = (
    "gene_id", "ensembl_id", "ensembl", "ensembl_gene_id", INDEX, "unnamed: 0", "", "gene", "symbol", "gene_symbol",
    "hugo_symbol",
)  # fmt: skip
NAME_COLUMNS = ("gene_name", "symbol", "gene_symbol", "hugo_symbol", "names", "name", "gene")
SCORE_COLUMNS = (
    "beyond", "effect_beyond_baselines", "effect_vs_matched", "difference", "effect", "score", "scores", "t", "stat",
    "log2_fold_change", "log2foldchange", "log2fc", "avg_log2fc", "logfoldchanges", "logfc", "alpha", "weight",
)  # fmt: skip
TESTED_SCORES = tuple(name for name in SCORE_COLUMNS if "beyond" not in name)
"""Scores whose sign is that of what a p-value beside them tests."""
MATCHED_SCORES = ("beyond", "effect_beyond_baselines", "effect_vs_matched", "matched_percentile")
"""Scores from which what genes of like detection and place have is taken off."""
FDR_COLUMNS = ("fdr", "padj", "p_val_adj", "pvals_adj", "q", "q_value", "adj_p_val", "adj_p_value")
SYNONYMS = {
    "detection_rate": ("detection_rate", "detection", "n_cells", "n_detected", "pct"),
    "mean_place": ("mean_place", "mean_rank"),
}
"""Columns that order genes alike: bins of the number of cells are those of the share of cells."""
EXPRESSION_COLUMNS = ("mean_expression", "basemean", "aveexpr", "avg_expr")
STRATA = ("detection_rate", "mean_place")
N_BINS, BINS_OF_TWO = 20, (5, 4)
GROUPS = ("method", "state", "drug", "dose", "group")
"""Columns that tell several tables in one apart: each is tested on its own."""
FEWEST_CELLS = 10
_TRUE = ("true", "1", "1.0", "yes")


@dataclass(frozen=True, eq=False)
class ScoredGenes:
    """Genes that could have been chosen, each once; arrays are along them."""

    of: Mapping[str, Any]
    """Of which method, state and dose they are, where the table has several."""
    rows: pd.DataFrame
    """Their rows of the table."""
    known: GivenGenes
    """Their ids, which are Ensembl's where the table names or means one."""
    names: np.ndarray
    score: np.ndarray
    score_name: str
    stratum: np.ndarray
    """Number of each gene's stratum, from 0, none empty."""
    strata: tuple[str, ...]
    """Columns that strata are of; none: all genes are one stratum."""
    left_out: Mapping[str, int]
    """Rows that are no gene of the background, by reason."""

    def __len__(self) -> int:
        return len(self.score)

    @property
    def n_strata(self) -> int:
        """How many strata there are."""
        return int(self.stratum.max(initial=0)) + 1

    def named(self, places: np.ndarray) -> str:
        """Return names of genes, with blanks between them."""
        return " ".join(map(str, self.names[places]))

    def column(self, choices: Sequence[str]) -> np.ndarray | None:
        """Return the numbers of the first column that is called so; None without one."""
        found = column_called(list(self.rows.columns), choices)
        return None if found is None else _numbers(self.rows[found])


def is_true(column: pd.Series) -> np.ndarray:
    """Return which rows of a column are true: true, yes, or 1."""
    return np.array([text.lower() in _TRUE for text in texts(column)])


def _numbers(column: pd.Series) -> np.ndarray:
    if pd.api.types.is_bool_dtype(column):
        return column.to_numpy(dtype=float)
    return pd.to_numeric(column, errors="coerce").to_numpy(dtype=float, na_value=np.nan)


def rows_of(table: pd.DataFrame | str | Path | ShiftTable | Explanation) -> tuple[str, pd.DataFrame]:
    """Return what a table of genes is called in messages, and its rows; of a screen its statistics are made.

    Raises
    ------
    InputError, DataFormatError
        The file is missing, or no such table.
    """
    called = str(table) if isinstance(table, str | Path) else f"the {type(table).__name__}"
    table = opened(table)
    if isinstance(table, ShiftTable):
        table = shift_statistics(table)
    elif isinstance(table, Explanation):
        table = gene_table(table)
    if isinstance(table, pd.DataFrame) and table.index.nlevels == 1 and INDEX not in table:
        # numbers of rows, such as those of chosen rows, name no gene
        is_numbered = pd.api.types.is_numeric_dtype(table.index)
        table = table.reset_index(drop=True) if is_numbered else table.rename_axis(INDEX)
    return read_rows(table, called)


def opened(
    table: pd.DataFrame | str | Path | ShiftTable | Explanation,
) -> pd.DataFrame | Path | ShiftTable | Explanation:
    """Open what this package wrote; a table of others is left to be read."""
    if not isinstance(table, str | Path):
        return table
    if (Path(table) / "network.json").is_file():
        return _nodes(GeneNetwork.open(table))
    form = format_of(table) or ""
    if form.startswith("geneformer_repro/shifts/"):
        return ShiftTable.open(table)
    if form.startswith("geneformer_repro/explanation/"):
        return Explanation.open(table)
    return Path(table)


class HowGood(NamedTuple):
    """What is known of the model that an explanation is of."""

    sentence: str
    """"" of another table."""
    is_warning: bool
    """Whether a reader must know it before anything else: the model is no better than guessing, or nobody knows."""


def how_good(table: object) -> HowGood:
    """Say how good the model is that an explanation is of."""
    if not isinstance(table, Explanation):
        return HowGood("", False)
    from geneformer_repro.in_silico.explanations import verdicts  # brings torch, which tables of others do without

    known = verdicts.is_known(table.metadata) and not verdicts.is_guessing(table.metadata)
    return HowGood(verdicts.how_good(table.metadata), not known)


def _nodes(network: GeneNetwork) -> pd.DataFrame:
    """Return what each state says of its genes, one below the other."""
    return pd.concat([network.node_table(state).assign(state=state) for state in network.states])


def scored_genes(
    table: pd.DataFrame | str | Path | ShiftTable | Explanation,
    *,
    score: str | None = None,
    strata: Sequence[str] | int | None = STRATA,
    min_cells: int | None = None,
    selected: str | None = None,
    choices: Sequence[str] = SCORE_COLUMNS,
) -> list[ScoredGenes]:
    """Return the genes of a table that could have been chosen; several where it has several methods, states or doses.

    Parameters
    ----------
    table
        A row a gene, or what makes such a table.
    score
        Column of numbers that rank genes; None the first of `choices` that is there.
    strata
        Columns of which genes of one stratum are alike: two, 5 bins of the first by 4 of the second within each, or
        one, 20 bins; of detection as `bins_of_detection`, of others with equally many genes. Of the default those that
        are there and differ from gene to gene, else ``mean_expression``. 1 or None: all genes are one stratum.
    min_cells
        Cells in which a gene must have been scored; None 10, or half of the largest ``n_cells`` if that is less.
    selected
        Column that says which genes are chosen: the score, of 1 and 0, of a table that has no other.
    choices
        Names of scores, the better first.

    Raises
    ------
    InputError
        There is no such column, or fewer than two genes are left.
    DataFormatError
        A gene has two rows.
    """
    called, rows = rows_of(table)
    if selected in rows and score is None and column_called(list(rows.columns), choices) is None:
        rows, score = rows.assign(**{str(selected): is_true(rows[selected])}), selected
    score_name = _column(rows, called, score, choices, "score")
    columns = _stratum_columns(rows, called, strata)
    n_cells = column_called(list(rows.columns), ["n_cells"])
    if min_cells and n_cells is None:
        raise InputError(f"{called}: has no column n_cells, so min_cells={min_cells} cannot be asked. Leave it out.")
    least = min_cells
    if least is None:
        most = 0.0 if n_cells is None else np.nanmax(_numbers(rows[n_cells]), initial=0.0)
        least = min(FEWEST_CELLS, int(most // 2))
    return [
        _tested(called, of, group, score_name, columns, (n_cells, least))
        for of, group in _groups(rows)
    ]  # fmt: skip


def _groups(rows: pd.DataFrame) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    several = [name for name in GROUPS if name in rows and rows[name].nunique(dropna=False) > 1]
    if not several:
        yield {}, rows
        return
    for key, group in rows.groupby(several, sort=False, observed=True, dropna=False):
        yield dict(zip(several, key, strict=True)), group


def _column(rows: pd.DataFrame, called: str, name: str | None, choices: Sequence[str], what: str) -> str:
    if name is not None:
        if name not in rows:
            raise InputError(f"{called}: has no column {name!r}. {did_you_mean(name, rows.columns)}")
        return name
    found = column_called([column for column in rows.columns if not np.isnan(_numbers(rows[column])).all()], choices)
    if found is None:
        raise InputError(
            f"{called}: has no column of a {what}, which may be called {', '.join(choices[:8])} …; found "
            f"{examples(rows.columns, 8)}. Name it with {what}=."
        )
    return found


def _stratum_columns(rows: pd.DataFrame, called: str, strata: Sequence[str] | int | None) -> tuple[str, ...]:
    if strata is None or strata == 1:
        return ()
    if isinstance(strata, int | str) or not 1 <= len(strata) <= len(STRATA):
        raise InputError(
            f"strata must be one or two columns of the table, or 1 or None for the plain test, found {strata!r}."
        )
    found = {name: column_called(list(rows.columns), SYNONYMS.get(name, (name,))) for name in strata}
    if tuple(strata) == STRATA:
        found["mean_expression"] = column_called(list(rows.columns), EXPRESSION_COLUMNS)
    lacking = [name for name, column in found.items() if column is None]
    if lacking and (tuple(strata) != STRATA or len(lacking) == len(found)):
        raise InputError(
            f"{called}: has no column {lacking[0]!r} to compare genes with others like them; genes that are detected "
            "in many cells are found whatever is asked. Give such a column (detection_rate or n_cells, mean_place; of "
            "bulk samples mean_expression), or strata=None (--strata none) for the plain test, which cannot tell."
        )
    columns = [column for column in found.values() if column is not None]
    if tuple(strata) == STRATA:  # of bulk samples all genes are detected in all, and have no place
        columns = [column for column in columns if _differs(rows[column])]
    return tuple(columns[: len(STRATA)])


def _differs(column: pd.Series) -> bool:
    values = _numbers(column)
    return len(np.unique(values[np.isfinite(values)])) > 1


def _tested(
    called: str,
    of: Mapping[str, Any],
    rows: pd.DataFrame,
    score_name: str,
    columns: tuple[str, ...],
    cells: tuple[str | None, int],
) -> ScoredGenes:
    score, (n_cells, least) = _numbers(rows[score_name]), cells
    if np.isinf(score).any():
        raise DataFormatError(
            f"{called}: column {score_name!r} holds an infinite value in row {int(np.isinf(score).argmax()) + 1}."
        )
    few = np.zeros(len(rows), dtype=bool) if n_cells is None else ~(_numbers(rows[n_cells]) >= least)
    unlike = np.zeros(len(rows), dtype=bool)
    for column in columns:
        unlike |= ~np.isfinite(_numbers(rows[column]))
    stays = ~(np.isnan(score) | few | unlike)
    left_out = {
        "no score": int(np.isnan(score).sum()),
        f"in fewer than {least} cells": int((few & ~np.isnan(score)).sum()),
        "no value of strata": int((unlike & ~few & ~np.isnan(score)).sum()),
    }
    if stays.sum() < 2:
        said = ", ".join(f"{n:,} {why}" for why, n in left_out.items() if n)
        raise InputError(
            f"{called}: {int(stays.sum())} of {len(rows):,} genes could have been chosen ({said}). Lower min_cells=, "
            "or score more cells."
        )
    rows, score = rows[stays], score[stays]
    known, names = _known(called, rows)
    return ScoredGenes(of, rows, known, names, score, score_name, _strata(rows, columns), columns, left_out)


def _strata(rows: pd.DataFrame, columns: tuple[str, ...]) -> np.ndarray:
    if not columns:
        return np.zeros(len(rows), dtype=np.int64)
    first, *second = (_numbers(rows[column]) for column in columns)
    n_first, n_second = BINS_OF_TWO if second else (N_BINS, 1)
    is_detection = column_called(columns[:1], SYNONYMS["detection_rate"]) is not None and (first >= 0).all()
    bins = (bins_of_detection if is_detection else bins_of)(first, n_first)
    return np.unique(bins if not second else bins_within(bins, second[0], n_second), return_inverse=True)[1]


def bins_of_detection(values: np.ndarray, n_bins: int) -> np.ndarray:
    """Deal detection rates, or numbers of cells, into bins from 0; equal values share a bin.

    A value's place is the mean of two shares, of the genes below it and of the detections below it. So a bin spans at
    most 2 / `n_bins` of either: bins of like numbers of genes are coarse above, where the first gene is detected in
    five times as many cells as the last, bins of like numbers of detections below, where most genes are.
    """
    distinct, of_value, n_equal = np.unique(values, return_inverse=True, return_counts=True)
    shares = [_middles(weight) for weight in (n_equal, distinct * n_equal) if weight.sum() > 0]
    return np.minimum(np.mean(shares, axis=0) * n_bins, n_bins - 1).astype(np.int64)[of_value]


def _middles(weight: np.ndarray) -> np.ndarray:
    """Return the share of all that is below the middle of each."""
    middles: np.ndarray = (np.cumsum(weight) - weight / 2) / weight.sum()
    return middles


def _known(called: str, rows: pd.DataFrame) -> tuple[GivenGenes, np.ndarray]:
    """Return the ids and names of genes; a symbol leads to its Ensembl id, unless another row is that gene."""
    columns = [column_called(list(rows.columns), choices) for choices in (ID_COLUMNS, NAME_COLUMNS)]
    column = next((name for name in columns if name is not None), str(rows.columns[0]))
    written = texts(rows[column])
    twice = pd.Index(written)[pd.Index(written).duplicated()]
    if len(twice) or "" in written:
        found = f"{len(twice)} genes have two rows (first: {twice[0]!r})" if len(twice) else "a row names no gene"
        raise DataFormatError(f"{called}: {found}, in column {column!r}. Give each gene one row.")
    ids, there = [], set(written)
    for name in written:
        led = bare_id(name) if is_ensembl_gene(name) else ensembl_of_symbol().get(name, name)
        ids.append(name if led != name and led in there else led)
        there.add(led)
    named = column_called([name for name in rows.columns if name != column], NAME_COLUMNS)
    names = written if named is None else [name or gene for name, gene in zip(texts(rows[named]), written, strict=True)]
    by_name = pd.Series(np.arange(len(names)), index=names)
    unique = by_name[~by_name.index.duplicated(keep=False)].to_dict()
    return GivenGenes(tuple(ids), {str(name): int(i) for name, i in unique.items()}, {}), np.array(names, dtype=object)


def places_of(names: Sequence[str], known: GivenGenes) -> dict[str, int]:
    """Return the place among tested genes of each name that leads to one."""
    ids = gene_ids_of(list(dict.fromkeys(names)), known)
    return {str(name): known.position[gene] for name, gene in ids.items() if gene}
