"""From the values of a screen to a table of genes.

Three things move a cell although the perturbed gene means nothing for its state: the place of the gene in the cell, how
many and which cells carry it, and the donor. The published tests take cells for independent replicates and compare each
gene with all others, so of values with nothing in them but places, donors and what a gene does in one donor, a gene in
four has p < 0.05 (`tests/in_silico/test_statistics.py`). The default here compares a gene with others in the same
donor, at the same place and as often detected, and takes the donor for the replicate: one in twenty. What it costs is
power where donors are few: with three, only large and even effects can pass.

What is left to the user is the kind of cell: a gene of one cell type is compared with genes of all types that its donor
has. Screen one type at a time.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args
from weakref import WeakSet

import numpy as np
import pandas as pd
from scipy.stats import t

from geneformer_repro.arguments import typed
from geneformer_repro.errors import InputError
from geneformer_repro.in_silico import published_statistics as published
from geneformer_repro.in_silico.blockwise import (
    Names,
    added,
    measured,
    merged_moments,
    moments,
    rounding_error,
    totals,
    totals_by_key,
)
from geneformer_repro.in_silico.gene_baselines import PREDICTORS, beyond_baselines, gene_baselines
from geneformer_repro.in_silico.sampled_effects import is_sampled, sampled_columns, unbiased
from geneformer_repro.in_silico.shams import has_shams, sham_columns
from geneformer_repro.in_silico.shift_table import UNBIASED, ShiftTable
from geneformer_repro.into_adata import places_of_results, put_columns
from geneformer_repro.tokenizer.dataset import TokenizedDataset

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)

Method = Literal["matched", "goal_state", "vs_all", "vs_null", "mixture", "aggregate", "gene_shifts", "pairs"]
FEWEST_GENES, MOST_GENES = 10, 30
"""Other genes that a null holds at least: a tenth of the genes of the screen, within these bounds. One strong gene
shifts the null of its neighbours by its effect over this number."""
FEWEST_DONORS, FEW_CELLS = 3, 10
_DOUBLINGS = 6
_PLACES, _RATES = 2**_DOUBLINGS, 2**3
_KEY_BITS = _GROUP_BITS, _REPLICATE_BITS, _GENE_BITS, _PLACE_BITS = 15, 24, 17, _DOUBLINGS
"""Bits that groups, replicates, genes and places have in a key."""
_ROWS_AT_ONCE = 2**20
_TOLD: "WeakSet[ShiftTable]" = WeakSet()
"""Screens of which the log has said that they have no donors: it is asked about in several ways, and warned of once."""
_KEYS = ("cell", "donor", "perturbed", "state", "dose", "rank")
_COLUMNS = (
    "effect", "effect_vs_matched", "low", "high", "p_value", "fdr", "matched_percentile", "mean_rank", "n_cells",
    "n_donors", "n_exact", "warning",
)  # fmt: skip
_WRITTEN = (
    "effect", "effect_vs_matched", "p_value", "fdr", "difference", "impact", "effect_vs_sham", "sham_percentile",
    "n_cells",
)  # fmt: skip
"""Columns that are written into an AnnData."""
_OF_OTHER_STATES = ["effect", "effect_vs_matched", "p_value", "fdr"]


@typed
def shift_statistics(
    shifts: ShiftTable,
    *,
    method: Method | None = None,
    null: ShiftTable | None = None,
    cells: TokenizedDataset | None = None,
    counts: "AnnData | str | Path | None" = None,
    into: "AnnData | None" = None,
) -> pd.DataFrame:
    """Make a table of genes from a screen.

    Parameters
    ----------
    shifts
        Result of a screen.
    method
        "matched" (default): which genes move cells otherwise than genes of the same place and detection rate do, with
        donors as replicates; the rest of this page. Or a published one, see `published_statistics`: "goal_state",
        "vs_all", "vs_null" (with `null`), "mixture", "aggregate", "gene_shifts", "pairs".
    null
        The same screen of control cells, for "vs_null" only.
    cells
        The cells that were screened, with those of the goal state: sets the effects beside what is known of the genes
        without the model (`gene_baselines`). For "matched" and a screen with a goal only.
    counts
        Where the raw counts of `cells` are, if not where `tokenize` found them.
    into
        An AnnData of such genes: effects, p-values and FDRs are also written into its ``var``, at the genes that they
        belong to (NaN elsewhere), by columns that are named by the screen: ``deletion_to_GOAL_effect``.

    Returns
    -------
    A row a gene, indexed by ``gene_id``: first those of ``fdr`` below 0.05, the largest `effect_vs_matched` first, up
    or down (of thousands of cells p-values are tiny for tiny effects), then the others by ``p_value``; at the end, in
    the same order, rows with a ``warning``, such as genes of few cells, whose values are extreme by chance. Of a
    classifier a row a gene and class, with a column ``state``; of a screen with doses a row a gene and ``dose``.

    - ``gene_name``
    - ``effect``: mean over donors of the donor's mean over cells. With a goal, above 0 moves cells towards it; of a
      classifier, towards the class; a similarity is 1 where cells did not move.
    - ``effect_vs_matched``: the same of the value less that of matched genes, with its 95 % interval ``low`` to
      ``high``. A similarity below 0 moves cells more than matched genes do.
    - ``p_value``, two-sided; ``fdr``, Benjamini and Hochberg over the genes that have a p-value, for each state and
      dose. NaN below three donors, and with the interval where the gene's value, or its difference from matched genes,
      does not spread over donors beyond rounding: its standard error is below what float32 makes of the similarities
      (or predictions) that values are differences of, 2⁻²⁴ of the sum of both.
    - Of several classes also ``best_class_p_value`` and ``best_class_fdr``, for who takes each gene's best class: the
      smallest p-value of the gene times the number of classes, at most 1 (Bonferroni, as the classes of a gene are not
      independent; of a classifier of two classes, where one change is the other's opposite, just the p-value), and
      Benjamini and Hochberg of these over genes. Null hypothesis: the gene moves cells towards no class otherwise than
      matched genes do.
    - ``matched_percentile``: share of the matched genes whose `effect_vs_matched` is below the gene's, 0 to 1: is it
      also extreme among genes? With many donors a p-value is small for a small effect.
    - Of a screen with sham goals ``effect_vs_sham``: the effect less the mean of those towards goals drawn at random;
      and ``sham_percentile``: the share of these towards which the gene's effect is below that towards the goal, 0 to
      1; in the middle the effect has nothing to do with the goal. of 19 shams 0 and 1 have one chance in ten together.
      ``attrs["goal_dependence"]`` says whether the ranking of genes depends on the goal.
    - ``mean_rank``: mean place in the cell, 0 for the first; NaN for a gene that no cell expresses.
    - ``n_cells``; ``n_donors`` that were compared (0: the screen has no donors, and cells stand for them); ``n_exact``
      of its values that were computed exactly, where some were estimated.
    - ``warning``: why not to rely on the row, or "".
    - Of a sampled screen ``effect`` and all that is tested are unbiased estimates, and their intervals over donors
      hold the sampling as well. ``sampling_low`` to ``sampling_high`` is the 95 % interval in which ``effect`` of the
      exact screen of the same cells and donors lies. ``effect_shrunken`` is the mean of what was measured and what is
      expected of the rest: it ranks genes best, and is biased towards what is expected. ``in_top``: "highest" or
      "lowest" where a gene surely belongs to the so many that the screen was to find, "maybe highest" or "maybe lowest"
      where the passes did not decide it, else "".
    - For each alternative state X of a goal, ``effect_to_X``, ``effect_vs_matched_to_X``, ``p_value_to_X``,
      ``fdr_to_X``.
    - With `cells`, the columns of `gene_baselines` and ``effect_beyond_baselines``: the effect less what a linear
      regression on the ranks of these predicts, fitted on other genes. ``attrs["explained_by_baselines"]`` is the R² of
      the predictions (0 or below: nothing), ``attrs["baselines"]`` each one's Spearman correlation with the effect.

    Raises
    ------
    InputError
        The method does not fit the screen, an argument does not fit the method, there are too few other genes to
        compare with, a value is infinite, or `into` has few of the genes. "matched" does not accept pairs or sets of
        genes. Rows without a value are left out, with a word in the log.

    See Also
    --------
    perturb : Makes the screen.
    plot_screen : Draws the table.
    write_screen_report : A page of it.

    Notes
    -----
    Null hypothesis: over the donors that one might have sampled, the gene moves cells as other genes do that are as
    often detected and stand at the same place in the cell. One-sample t-test over donors of the mean over cells of
    (value − null); the null is the mean over the other genes in a bin of the same donor, each gene with its own mean
    there. The tested gene is never in it. Bins: 64 of the square root of the place (as a share of the cell in a screen
    of each gene), so that they are finest where the cell begins, by 8 of the rank of the detection rate among genes.
    Where a bin holds too few other genes, it and its neighbour become one, in both directions, until there are enough
    (a tenth of the screen's, at least 10, at most 30); so at the head of cells, where few genes ever stand, a null is
    partly of places further down. A donor with fewer than 10 other genes is left out.

    Not accepted as evidence: a p-value where cells stand for donors (``n_donors`` 0), since cells of a donor are alike.

    Examples
    --------
    >>> import geneformer_repro as gf
    >>> shifts = gf.ShiftTable.open("shifts.parquet")
    >>> table = gf.shift_statistics(shifts)
    >>> table.columns.tolist()
    ['gene_name', 'effect', 'effect_vs_matched', 'low', 'high', 'p_value', 'fdr', 'matched_percentile', 'mean_rank',
     'n_cells', 'n_donors', 'effect_vs_sham', 'sham_percentile', 'warning']
    >>> table[["gene_name", "n_cells", "n_donors"]].sort_values(["n_cells", "gene_name"], ascending=False).head(3)
                    gene_name  n_cells  n_donors
    gene_id
    ENSG00000026025       VIM       12         3
    ENSG00000011600    TYROBP       12         3
    ENSG00000122862      SRGN       12         3
    >>> published = gf.shift_statistics(shifts, method="goal_state")
    >>> len(published) == len(table)
    True
    """
    if method is not None and method not in get_args(Method):
        raise InputError(f"method must be one of {', '.join(map(repr, get_args(Method)))}, found {method!r}.")
    method = method or "matched"
    _require_fitting(method, null, cells, counts)
    known = list(shifts.metadata.get("gene_names") or ())
    if into is not None and known:
        places_of_results(into, pd.Index(known))  # refused before the work
    if null is not None:
        table = published.vs_null(shifts, null)
    elif method != "matched":
        of_method: Callable[[ShiftTable], pd.DataFrame] = getattr(published, method)  # the functions have its names
        table = of_method(shifts)
    else:
        table = _matched(shifts)
        table = table if cells is None else _beside_baselines(table, gene_baselines(shifts, cells, counts))
    if into is not None:
        _put_into(into, table, shifts)
    return table


def _put_into(adata: "AnnData", table: pd.DataFrame, shifts: ShiftTable) -> None:
    """Write what a table says of genes into ``var``: of a classifier or doses a set of columns for each."""
    by = [name for name in ("state", "dose") if name in table and table[name].nunique() > 1]
    groups = table.groupby(by, sort=False) if by else [((), table)]
    if table.index.name != "gene_id" or any(of_group.index.has_duplicates for _, of_group in groups):
        raise InputError("into= takes a table with a row a gene; this method has others. Use method='matched'.")
    goal, kind = shifts.metadata.get("goal"), str((shifts.metadata.get("perturbation") or {}).get("kind", "shift"))
    prefix = f"{kind.lower()}_to_{goal['goal']}_" if goal else f"{kind.lower()}_"
    written = [name for name in _WRITTEN if name in table]
    places = {key: places_of_results(adata, of_group.index) for key, of_group in groups}
    for key, of_group in groups:
        of_key = "".join(f"{value:g}_" if isinstance(value, float) else f"{value}_" for value in key)
        put_columns(adata, "var", of_group[written], places[key], prefix=prefix + of_key)


def _require_fitting(method: Method, null: ShiftTable | None, cells: Any, counts: Any) -> None:
    if (method == "vs_null") != (null is not None):
        fitting = "needs the same screen of control cells: give null=" if null is None else "takes no null"
        raise InputError(f"method={method!r} {fitting}.")
    if cells is not None and method != "matched":
        raise InputError(f"method={method!r} takes no cells; baselines stand beside method='matched'.")
    if counts is not None and cells is None:
        raise InputError("counts= are the counts of the cells: give cells= too.")


# Rows


def _matched(shifts: ShiftTable) -> pd.DataFrame:
    counted = _counted(shifts)
    _require_comparable(counted.genes)
    counted.log(is_told=shifts in _TOLD)
    _TOLD.add(shifts)
    of_replicates = _moments(shifts, counted)
    tables = {group: _tested(of_replicates.loc[[i]], counted, i) for i, group in enumerate(counted.groups)}
    if is_sampled(shifts):
        tables = sampled_columns(tables, shifts, by_donor=counted.replicate == "donor")
    doses = dict.fromkeys(dose for dose, _ in counted.groups)
    of_doses = [{state: table for (of, state), table in tables.items() if of is dose} for dose in doses]
    table: pd.DataFrame = pd.concat([_of_dose(dose, of, shifts) for dose, of in zip(doses, of_doses, strict=True)])
    table = published.named(table, shifts).iloc[_order(table)]
    return sham_columns(table, shifts, by_donor=counted.replicate == "donor") if has_shams(shifts) else table


def _order(table: pd.DataFrame) -> np.ndarray:
    """Return the rows in order: significant ones by size, others by p-value, those without one by size.

    Those with a warning, such as genes of few cells, in the same order after all others.
    """
    size, p_value = -table["effect_vs_matched"].abs().to_numpy(), table["p_value"].to_numpy()
    warned = table["warning"].ne("").to_numpy()
    group = np.select([table["fdr"] < published.SIGNIFICANT, table["fdr"].notna()], [0, 1], 2)
    return np.lexsort((table.index.to_numpy(dtype=str), size, np.where(group == 1, p_value, size), group, warned))


@dataclass(frozen=True)
class _Counted:
    """What a first pass over the rows tells. A group is the rows of a dose and state, which are tested on their own."""

    numbers: "_Numbers"
    group_of: np.ndarray
    """Group of a dose and state by their numbers; -1, which is the last, for none."""
    gene_of: np.ndarray
    """Place of a gene in `genes`, by its number."""
    groups: list[tuple[float, str | None]]
    genes: np.ndarray
    """Id of each gene, ascending."""
    of_gene: pd.DataFrame
    """Of each group and gene: number of values, ``n_cells``, how many of them are of cells that express it,
    ``n_detected``, the sum of its places in these, ``rank``, and ``n_exact``."""
    replicate: Literal["donor", "cell"]
    """What stands for an independent sample."""
    n_values: int
    n_exact: int
    n_lost: int
    """Cells without a donor, where others have one."""
    is_sampled: bool
    last: float
    """The largest place of a perturbed gene."""
    rounding: float
    """How far rounding may take a value, or a mean of values."""

    def log(self, *, is_told: bool) -> None:
        """Warn of estimates, and of cells without a donor; of a screen without any unless that `is_told` already."""
        if self.is_sampled:
            logger.info(
                "%s of %s values were measured; effects are unbiased estimates of what all would give.",
                f"{self.n_exact:,}",
                f"{self.n_values:,}",
            )
        elif self.n_exact < self.n_values:
            logger.warning(
                "%s of %s values are first-order estimates; n_exact says how many of a gene's are not.",
                f"{self.n_values - self.n_exact:,}",
                f"{self.n_values:,}",
            )
        if self.replicate == "cell":
            logger.log(
                logging.INFO if is_told else logging.WARNING,
                "The screen has no donors, so p-values take cells for independent replicates, and are too small: cells "
                "of a donor are alike. Screen with donor=COLUMN.",
            )
        elif self.n_lost:
            logger.warning("%s cells have no donor and are left out.", f"{self.n_lost:,}")

    def rates(self, group: int) -> "pd.Series[int]":
        """Return the bin of each gene's detection rate."""
        detected = self.of_gene["n_detected"].xs(group).rank(pct=True)
        return pd.cut(detected, np.linspace(0, 1, _RATES + 1).tolist(), labels=False)

    def n_wanted(self, group: int) -> int:
        """Return how many other genes a null holds at least."""
        return int(np.clip(len(self.of_gene.loc[group]) // 10, FEWEST_GENES, MOST_GENES))


class _Numbers(NamedTuple):
    """Numbers of what rows are named by."""

    doses: Names
    states: Names
    genes: Names
    donors: Names


def _rows(
    shifts: ShiftTable, columns: list[str], *, whole_cells: bool = False, tell: bool = False
) -> Iterator[pd.DataFrame]:
    """Yield the rows that are tested: without, of a screen with a goal, those of its start state.

    What is tested of a sampled screen is its unbiased values.
    """
    goal, of_sample = shifts.metadata["goal"], [UNBIASED] if is_sampled(shifts) else []
    for block in measured(shifts, [*columns, *of_sample], whole_cells=whole_cells, tell=tell):
        wanted = block[block["state"].isin([goal["goal"], *goal["alternatives"]])] if goal else block
        yield unbiased(wanted) if of_sample else wanted


def _counted(shifts: ShiftTable) -> _Counted:
    numbers = _Numbers(Names(), Names(), Names(), Names())
    of_blocks, nameless, has_donors, last, rounding = [], set(), False, np.nan, 0.0
    columns_read = [*_KEYS, "exact", "value", "before"]
    for block in _rows(shifts, columns_read, tell=True):
        rounding = max(rounding, rounding_error(block))
        lacks = block["donor"].isna()
        has_donors |= not lacks.all()
        nameless |= set(block.loc[lacks, "cell"].unique())
        last = np.fmax(last, block["rank"].max())
        columns = {"n_cells": 1, "n_detected": block["rank"].notna(), "rank": block["rank"], "n_exact": block["exact"]}
        keys = [*_numbered(block, numbers), lacks.to_numpy()]
        of_blocks.append(pd.DataFrame(columns).groupby(keys)[list(columns)].sum())
    of_gene = added(of_blocks, totals)
    if of_gene.empty and len(numbers.genes):
        raise InputError("The table has no row of cells themselves, all are of affected genes: use 'gene_shifts'.")
    goal = shifts.metadata["goal"]
    for state in (goal["goal"], *goal["alternatives"]) if goal else ():
        published.require_state(state, numbers.states.names())
    n_values, n_exact = int(of_gene["n_cells"].sum()), int(of_gene["n_exact"].sum())
    ids = numbers.genes.names()
    gene_of = np.argsort(np.argsort(ids))
    if has_donors:
        of_gene = of_gene[~of_gene.index.get_level_values(3).to_numpy(dtype=bool)]
    group_of, groups = _groups(of_gene.index, numbers)
    dose, state, gene = (of_gene.index.get_level_values(level).to_numpy() for level in range(3))
    of_gene = of_gene.set_axis([group_of[dose, state], gene_of[gene]]).sort_index()
    return _Counted(
        numbers, group_of, gene_of, groups, np.sort(ids), of_gene, "donor" if has_donors else "cell",
        n_values, n_exact, len(nameless), is_sampled(shifts), last, rounding,
    )  # fmt: skip


def _numbered(block: pd.DataFrame, numbers: _Numbers) -> list[np.ndarray]:
    """Return the numbers of dose, state and gene of each row."""
    dose = numbers.doses.numbers(block["dose"].astype(pd.CategoricalDtype()))
    return [dose, numbers.states.numbers(block["state"]), numbers.genes.numbers(block["perturbed"])]


def _groups(index: "pd.Index[Any]", numbers: _Numbers) -> tuple[np.ndarray, list[tuple[float, str | None]]]:
    """Number doses and states by their order."""
    doses, states = [*numbers.doses.names(), np.nan], [*numbers.states.names(), None]
    numbers_of = {(doses[dose], states[state]): (dose, state) for dose, state in {key[:2] for key in index.tolist()}}
    groups = sorted(numbers_of, key=lambda group: (group[0], group[1] or ""))
    group_of = np.full((len(doses), len(states)), -1)
    for i, group in enumerate(groups):
        group_of[numbers_of[group]] = i
    return group_of, groups


def _require_comparable(genes: np.ndarray) -> None:
    several = ["+" in gene for gene in genes]
    if any(several):
        fitting = "aggregate" if all(several) else "pairs"
        raise InputError(
            "method='matched' compares single genes; this screen perturbed several at once "
            f"({genes[several][0]!r}). Use method={fitting!r}."
        )
    if len(genes) <= FEWEST_GENES:
        raise InputError(
            f"method='matched' compares a gene with at least {FEWEST_GENES} others; this screen perturbed "
            f"{len(genes)}. Use method='aggregate' for the values of each cell, or screen with genes='each'."
        )


def _places(block: pd.DataFrame, last: float, metadata: Mapping[str, Any]) -> np.ndarray:
    """Return the bin of each gene's place in its cell; a gene that the cell does not express comes last.

    Only in a screen of each gene does the last place tell how long the cell is.
    """
    if metadata.get("perturbation", {}).get("genes") == "each":
        of_cell: Any = block["rank"].groupby(block["cell"].cat.codes.to_numpy()).transform("max")
    else:
        of_cell = last
    share = ((block["rank"] + 0.5) / (of_cell + 1)).fillna(1).to_numpy()
    return np.minimum(np.sqrt(share) * _PLACES, _PLACES - 1).astype(np.int64)


# The test


def _moments(shifts: ShiftTable, counted: _Counted) -> pd.DataFrame:
    """Return of each group and gene what a test needs, over replicates; see `_of_replicates`.

    Values of a donor are summed up block by block. A cell that stands for a donor is whole in its block, so what comes
    of the block's cells is added up instead.
    """
    sums: Iterable[pd.DataFrame] = _sums(shifts, counted)
    if counted.replicate == "donor":
        sums = _of_some_replicates(added(sums, totals_by_key))
    return added((_of_replicates(of_some, counted) for of_some in sums), _merged)


def _of_some_replicates(sums: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Cut sums between replicates, of which each has a null of its own: a million rows or more at a time."""
    replicate = sums.index.to_numpy() >> _GENE_BITS + _PLACE_BITS
    ends = np.append(np.flatnonzero(np.diff(replicate)) + 1, len(sums))
    start = 0
    for end in ends.tolist():
        if end - start >= _ROWS_AT_ONCE or end == len(sums):
            yield sums.iloc[start:end]
            start = end


def _sums(shifts: ShiftTable, counted: _Counted) -> Iterator[pd.DataFrame]:
    """Yield sum and number of each block's values by group, replicate, gene and place, which are one key."""
    for block in _rows(shifts, [*_KEYS, "value"], whole_cells=True):
        dose, state, gene = _numbered(block, counted.numbers)
        place = _places(block, counted.last, shifts.metadata)
        of_donors = counted.replicate == "donor"
        replicate = counted.numbers.donors.numbers(block["donor"]) if of_donors else block["cell"].cat.codes.to_numpy()
        keys = [counted.group_of[dose, state], replicate, counted.gene_of[gene], place]
        has_replicate = replicate >= 0
        key = np.zeros(len(block), dtype=np.int64)
        for number, n_bits in zip(keys, _KEY_BITS, strict=True):
            if number.max(initial=0) >= 2**n_bits:
                raise InputError(
                    f"The screen holds more than {2**n_bits:,} genes, donors or states, and has no table of genes. "
                    "Select fewer: ShiftTable(shifts.table[…], shifts.metadata)."
                )
            key = key << n_bits | number
        yield block["value"][has_replicate].groupby(key[has_replicate]).agg(["sum", "size"])


def _of_replicates(sums: pd.DataFrame, counted: _Counted) -> pd.DataFrame:
    """Return, by group and gene, moments over replicates.

    Of the difference from matched genes ``n``, ``mean`` and ``squares``; number, sum, mean and squares of the
    replicates' mean values, ``n_replicates``, ``value``, ``value_mean`` and ``value_squares``; sum of the bins of
    places over cells, ``place``.
    """
    moments_of, numbers = {}, [sums.index.to_numpy()]
    for n_bits in _KEY_BITS[:0:-1]:
        numbers[:1] = [numbers[0] >> n_bits, numbers[0] & 2**n_bits - 1]
    table = pd.DataFrame(dict(zip(("group", "replicate", "gene", "place"), numbers, strict=True)))
    table = table.assign(sum=sums["sum"].to_numpy(), size=sums["size"].to_numpy())
    for group in np.unique(table["group"]).tolist():
        of_group = table[table["group"] == group]
        of_group = of_group.assign(rate=counted.rates(group).loc[of_group["gene"]].to_numpy(dtype=np.int64))
        means = _replicate_means(of_group, _null_means(of_group, counted.n_wanted(group)))
        gene = means.index.get_level_values("gene").to_numpy()
        values = means["value"].groupby(gene).agg(["size", "sum"]).set_axis(["n_replicates", "value"], axis=1)
        values = values.join(moments(means["value"], [gene])[["mean", "squares"]].add_prefix("value_"))
        places = of_group["size"].mul(of_group["place"]).groupby(of_group["gene"]).sum()
        moments_of[group] = moments(means["difference"], [gene]).join(values).assign(place=places)
    return pd.concat(moments_of, names=["group", "gene"])


def _merged(of_blocks: pd.DataFrame) -> pd.DataFrame:
    columns = ["n_replicates", "value_mean", "value_squares"]
    values = merged_moments(of_blocks[columns].set_axis(["n", "mean", "squares"], axis=1))[["mean", "squares"]]
    summed = totals(of_blocks[["n_replicates", "value", "place"]])
    return merged_moments(of_blocks[["n", "mean", "squares"]]).join(summed).join(values.add_prefix("value_"))


def _tested(of_replicates: pd.DataFrame, counted: _Counted, group: int) -> pd.DataFrame:
    """Test the genes of one dose and state."""
    of_gene, n_wanted = counted.of_gene.loc[group], counted.n_wanted(group)
    of_replicates = of_replicates.droplevel("group")
    columns = _t_test(of_replicates, counted.rounding).assign(
        mean_rank=of_gene["rank"] / of_gene["n_detected"], n_cells=of_gene["n_cells"]
    )
    places = (of_replicates["place"] / columns["n_cells"]).astype(np.int64)
    percentile = _matched_percentile(columns["effect_vs_matched"], places, counted.rates(group), n_wanted)
    columns = columns.assign(matched_percentile=percentile)
    if of_gene["n_exact"].sum() < of_gene["n_cells"].sum():
        columns["n_exact"] = of_gene["n_exact"]
    columns = _with_warnings(columns, of_cells=counted.replicate == "cell")
    order = [name for name in _COLUMNS if name in columns]
    return columns[order].set_axis(counted.genes[columns.index].astype(str), axis=0).rename_axis("gene_id")


def _null_means(sums: pd.DataFrame, n_wanted: int) -> np.ndarray:
    """Return for each gene, place and donor what other genes have there, from the narrowest bin that has enough."""
    null = np.full(len(sums), np.nan)
    for level in range(_DOUBLINGS + 1):
        mean, n_others = _mean_of_others(sums, level)
        enough = n_others >= (n_wanted if level < _DOUBLINGS else FEWEST_GENES)
        null = np.where(np.isnan(null) & enough, mean, null)
        if not np.isnan(null).any():
            break
    return null


def _mean_of_others(sums: pd.DataFrame, level: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean over the other genes in a bin of their means in it, and how many they are.

    Rows are sorted by replicate, gene and place, so those of a gene in a bin follow each other, and the other genes are
    all less the own: no group for each gene. All levels of 3 million rows take half a second.
    """
    replicate, gene = sums["replicate"].to_numpy(), sums["gene"].to_numpy()
    place, rate = sums["place"].to_numpy() >> level, sums["rate"].to_numpy() >> level
    first = np.ones(len(sums), dtype=bool)
    first[1:] = (np.diff(replicate) != 0) | (np.diff(gene) != 0) | (np.diff(place) != 0)
    starts, own = np.flatnonzero(first), np.cumsum(first) - 1
    mean = np.add.reduceat(sums["sum"].to_numpy(), starts) / np.add.reduceat(sums["size"].to_numpy(), starts)
    bins, _ = pd.factorize(((replicate.astype(np.int64) * _PLACES + place) * _RATES + rate)[starts])
    n_others = np.bincount(bins)[bins] - 1
    others = np.bincount(bins, weights=mean)[bins] - mean
    return np.divide(others, n_others, out=np.full(len(mean), np.nan), where=n_others > 0)[own], n_others[own]


def _replicate_means(sums: pd.DataFrame, null: np.ndarray) -> pd.DataFrame:
    """Return mean value and mean difference from the null of each gene in each replicate."""
    summed = sums.assign(difference=sums["sum"] - sums["size"] * null).groupby(["gene", "replicate"])
    columns = pd.DataFrame({"value": summed["sum"].sum(), "difference": summed["difference"].sum(min_count=1)})
    return columns.div(summed["size"].sum(), axis=0)


def _t_test(of_replicates: pd.DataFrame, rounding: float) -> pd.DataFrame:
    """Test over replicates whether the difference is 0; no sample is enough for this below three, or without spread."""
    n, mean = of_replicates["n"], of_replicates["mean"]
    freedom = (n - 1).where(n >= FEWEST_DONORS)
    error = _standard_error(of_replicates["squares"], n)
    of_value = _standard_error(of_replicates["value_squares"], of_replicates["n_replicates"])
    spreads = (error > rounding) & (of_value > rounding)
    freedom, is_flat = freedom.where(spreads), freedom.notna() & ~spreads
    with np.errstate(divide="ignore", invalid="ignore"):
        p_value = pd.Series(2 * t.sf(np.abs(mean / error), freedom), index=n.index)
    half = t.ppf(0.975, freedom) * error
    return pd.DataFrame(
        {
            "effect": of_replicates["value"] / of_replicates["n_replicates"],
            "effect_vs_matched": mean,
            "low": mean - half,
            "high": mean + half,
            "p_value": p_value,
            "fdr": published.false_discovery_rate(p_value),
            "n_donors": n,
            "is_flat": is_flat,
        }
    )


def _standard_error(squares: pd.Series, n: pd.Series) -> pd.Series:
    error: pd.Series = np.sqrt(squares / (n - 1).where(n > 1)) / np.sqrt(n)
    return error


def _matched_percentile(effect: pd.Series, place: pd.Series, rate: pd.Series, n_wanted: int) -> pd.Series:
    """Return the share of the other genes of the narrowest bin with enough of them whose effect is smaller."""
    percentile = pd.Series(np.nan, index=effect.index)
    for level in range(_DOUBLINGS + 1):
        of_bin = effect.groupby((place // 2**level) * _RATES + rate // 2**level)
        n_others = of_bin.transform("count") - 1
        enough = n_others >= (n_wanted if level < _DOUBLINGS else FEWEST_GENES)
        percentile = percentile.where(percentile.notna() | ~enough, (of_bin.rank() - 1) / n_others)
    return percentile


# The table


def _with_warnings(columns: pd.DataFrame, *, of_cells: bool) -> pd.DataFrame:
    """Say why not to rely on a row."""
    few_donors = _if_few(
        columns["n_donors"], f" {'cells' if of_cells else 'donors'}: no test below {FEWEST_DONORS}", FEWEST_DONORS
    )
    few_cells = _if_few(columns["n_cells"], " cells", FEW_CELLS)
    if of_cells:
        few_cells, columns["n_donors"] = few_cells.where(few_donors == "", ""), 0
    flat = columns["is_flat"].map({True: f"no spread over {'cells' if of_cells else 'donors'}", False: ""})
    warning = few_donors.where(~columns["is_flat"], flat) + "; " + few_cells
    return columns.assign(warning=warning.str.strip("; "))


def _if_few(number: pd.Series, what: str, enough: int) -> pd.Series:
    return (number.astype(str) + what).where(number < enough, "")


def _of_dose(dose: float, tables: Mapping[str | None, pd.DataFrame], shifts: ShiftTable) -> pd.DataFrame:
    """Put the tables of the states together: beside each other with a goal, else one behind the other."""
    if goal := shifts.metadata["goal"]:
        table = tables[goal["goal"]]
        for state in goal["alternatives"]:
            table = table.join(tables[state][_OF_OTHER_STATES].add_suffix(f"_to_{state}"))
    else:
        table = pd.concat([table.assign(state=state) for state, table in tables.items()])
        has_states = table["state"].notna().any()
        table = table[["state", *table.columns.drop("state")]] if has_states else table.drop(columns="state")
        if len(tables) > 1:
            best = published.best_of_classes(table["p_value"], table.index, shifts)
            for i, name in enumerate(best, start=list(table).index("fdr") + 1):
                table.insert(i, name, best[name])
    if not np.isnan(dose):
        table.insert(0, "dose", dose)
    return table


def _beside_baselines(table: pd.DataFrame, baselines: pd.DataFrame) -> pd.DataFrame:
    """Add the baselines, and what they do not explain of the effect."""
    baselines = baselines.reindex(table.index.sort_values())
    beyond = beyond_baselines(table["effect"].reindex(baselines.index), baselines[list(PREDICTORS)])
    said, table = table.attrs, table.join(baselines.drop(columns="mean_rank"))  # which keeps none of them
    table.attrs.update(said)
    table["effect_beyond_baselines"] = beyond.residual
    table.attrs["explained_by_baselines"] = beyond.explained
    table.attrs["baselines"] = {str(name): float(value) for name, value in beyond.alone.items()}
    return table
