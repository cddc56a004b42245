"""Which gene sets the strongest genes of a table are of, against genes of like detection and place.

Whatever chooses genes of single cells chooses those that are detected in many: 150 genes drawn at random, in proportion
to detection, are "enriched" in 22 sets of Reactome with the tested genes as background, and in 55 with the genome. So
by default genes are counted within strata of detection and place, exactly (`overlaps`), and rankings are exchanged
within them (`running_sums`); the plain p-value stands beside. `benchmarks/enrichment.py` has the numbers.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import pandas as pd

from geneformer_repro.arguments import require_at_least, typed
from geneformer_repro.errors import InputError, did_you_mean
from geneformer_repro.in_silico.explanations.explanation import Explanation
from geneformer_repro.in_silico.explanations.gene_sets import GeneSets, MappedSets, mapped_sets, read_gene_sets
from geneformer_repro.in_silico.explanations.overlaps import chance_overlap
from geneformer_repro.in_silico.explanations.preranked import effects_of_donors, preranked
from geneformer_repro.in_silico.explanations.running_sums import N_PERMUTATIONS
from geneformer_repro.in_silico.explanations.scored_genes import (
    FDR_COLUMNS,
    SCORE_COLUMNS,
    STRATA,
    TESTED_SCORES,
    HowGood,
    ScoredGenes,
    how_good,
    is_true,
    opened,
    scored_genes,
)
from geneformer_repro.in_silico.published_statistics import false_discovery_rate
from geneformer_repro.in_silico.shift_table import ShiftTable

logger = logging.getLogger(__name__)

Method = Literal["overlap", "prerank"]
SIGNIFICANT = 0.05
TOP, LARGEST_SHARE = 150, 10
"""Genes that are chosen of each direction, or a tenth of all where that is fewer."""
MIN_SIZE, MAX_SIZE = 10, 500
ABOVE, BELOW, CHOSEN = DIRECTIONS = ("above 0", "below 0", "chosen")


@typed
def gene_set_enrichment(
    table: pd.DataFrame | str | Path | ShiftTable | Explanation,
    sets: Mapping[str, Sequence[str]] | pd.DataFrame | str | Path,
    *,
    method: Method = "overlap",
    score: str | None = None,
    top: int | None = None,
    max_fdr: float | None = None,
    selected: str | None = None,
    strata: Sequence[str] | int | None = STRATA,
    min_cells: int | None = None,
    min_size: int = MIN_SIZE,
    max_size: int = MAX_SIZE,
    donors: pd.DataFrame | None = None,
    n_permutations: int = N_PERMUTATIONS,
    seed: int = 0,
) -> pd.DataFrame:
    """Ask which gene sets hold more of the strongest genes than genes like them would.

    Parameters
    ----------
    table
        Any table of genes, or its file: of an explanation, a screen, a network, a differential test. A row a gene, with
        its id or symbol, a score, and what genes are matched on. With several methods, states, drugs or doses each is
        asked on its own. An `Explanation` gives its table of genes, a `ShiftTable` its statistics.
    sets
        A GMT file, a table with columns such as ``set`` and ``gene`` or its file, or a mapping from names to genes.
        Symbols or ids.
    method
        "overlap": which sets hold more of the chosen genes. "prerank": where the genes of a set stand in the ranking
        of all.
    score
        Column that ranks genes; default the first of ``beyond``, ``effect_beyond_baselines``, ``effect_vs_matched``,
        ``difference``, ``effect``, ``score``, ``t`` …. Genes above 0 and below 0 are asked about apart.
    top
        How many genes to choose of each direction; default 150, or a tenth of all genes if that is fewer. Of genes that
        share the last score none is chosen.
    max_fdr
        Choose genes whose ``fdr`` is below this, instead; on which side is said by ``effect_vs_matched`` or ``effect``.
    selected
        Choose genes that this column says are chosen (true, 1), instead.
    strata
        Columns that genes are matched on: two, 5 bins of the first by 4 of the second within each; or one, 20 bins. A
        bin of detection spans at most two of its 5 or 20 parts of the genes, and of all detections.
        ``detection_rate`` may be called ``detection`` or ``n_cells``, ``mean_place`` ``mean_rank``. Of the default
        those that are there and differ from gene to gene; where neither does, as of bulk samples, ``mean_expression``.
        None or 1: not matched, which cannot tell a set from genes that are often detected.
    min_cells
        Cells in which a gene must have been scored to be in the background; default 10, or half of the largest
        ``n_cells`` if that is less.
    min_size, max_size
        Of a set, cut to the background.
    donors
        For "prerank": effects of each donor, donors × genes by id, of six donors or more, NaN where a donor has none.
        Then signs of donors are flipped, too, which keeps what genes have in common. An `Explanation` with so many
        donors has them.
    n_permutations
        For "prerank": exchanges of genes within strata, and flips.
    seed
        For "prerank": of what is drawn.

    Returns
    -------
    A row a set and direction, indexed by ``set``, the smallest p-value first: ``method``, ``state`` … where the table
    has several; ``direction`` ("above 0", "below 0", "chosen"); ``size``, genes of the set in the background.

    - "overlap": ``overlap``, ``expected`` within strata, ``fold``, ``p_value`` (exact, one-sided), ``fdr`` (Benjamini
      and Hochberg over all sets of a direction, those without overlap too, whose p-value is 1), ``plain_expected``,
      ``plain_p_value`` and ``plain_fdr`` (without strata: Fisher's exact test), ``genes`` that overlap.
    - "prerank": ``es``, the extreme of the running sum; ``es_sd`` over 10 orders of equal scores; ``nes``, over the
      mean of its null; ``p_value`` within sign, ``fdr``, ``plain_p_value`` and ``plain_fdr`` (exchanges of all genes);
      with `donors` ``donor_p_value`` and ``donor_fdr`` (of the mean over the set's genes, less what genes of their
      strata have); ``genes`` of the leading edge.

    ``attrs`` has what was tested and lost: ``sentence``, which of an explanation begins with how good the model is,
    ``score``, ``strata``, ``sets`` (file, digest, version, licence), and for each table ``tests``.

    Raises
    ------
    InputError
        A column or file is not there, no set has `min_size` genes of the table, or an argument does not fit the method.
    DataFormatError
        A gene has two rows, or a file is none of sets.

    See Also
    --------
    compare_enrichment : Sets of two models side by side.
    driver_genes : How many known genes are among the strongest.
    write_enrichment_report : A page of the table.

    Notes
    -----
    Null hypothesis of "overlap": within a stratum, which genes are chosen has nothing to do with the set. The overlap
    is a sum of independent hypergeometric numbers, one a stratum. Of "prerank": within a stratum, where genes stand has
    nothing to do with the set. A score from which nothing of like genes was taken off is ranked as its percentile
    within its stratum, -1 to 1: sizes of attributions follow detection. Without strata a score of one sign is refused.

    Not accepted as evidence: a set whose ``plain_fdr`` alone is small.

    References
    ----------
    Subramanian et al., PNAS 102, 15545 (2005), for the running sum. Matching on a covariate that decides who is chosen
    is after Young et al., Genome Biology 11, R14 (2010), goseq.

    Examples
    --------
    >>> import numpy as np
    >>> import pandas as pd
    >>> import geneformer_repro as gf
    >>> cells = gf.datasets.pbmc700()
    >>> table = pd.DataFrame(index=cells.var_names)
    >>> table["detection_rate"] = np.asarray((cells.X > 0).mean(axis=0)).ravel()
    >>> table["score"] = np.where(np.arange(cells.n_vars) % 10 == 0, 2.0, 1.0) * np.linspace(1, 2, cells.n_vars)
    >>> sets = {"every tenth": cells.var_names[::10], "every ninth": cells.var_names[::9]}
    >>> found = gf.gene_set_enrichment(table, sets)
    >>> found[["size", "overlap", "fdr"]].round(3)
                 size  overlap    fdr
    set
    every tenth    76       75  0.000
    every ninth    84        8  0.676
    """
    _require_fitting(method, top, max_fdr, selected, donors)
    require_at_least(top=(top, 1), min_cells=(min_cells, 0), min_size=(min_size, 1), n_permutations=(n_permutations, 1))
    read, table = read_gene_sets(sets), opened(table)
    choices = SCORE_COLUMNS if max_fdr is None else TESTED_SCORES
    groups = scored_genes(table, score=score, strata=strata, min_cells=min_cells, selected=selected, choices=choices)
    cuts = [mapped_sets(read, genes, min_size=min_size, max_size=max_size) for genes in groups]
    if method == "overlap":
        choice = _Choice(top, max_fdr, selected)
        tests = [_overlaps(genes, cut, choice) for genes, cut in zip(groups, cuts, strict=True)]
    else:
        rng, of_donors = np.random.default_rng(seed), effects_of_donors(table, donors, groups)
        tests = [
            _Test(genes, cut, *preranked(genes, cut, effects, n_permutations, rng))
            for genes, cut, effects in zip(groups, cuts, of_donors, strict=True)
        ]
    return _as_table(tests, method, read, seed, how_good(table))


def _require_fitting(
    method: str, top: int | None, max_fdr: float | None, selected: str | None, donors: pd.DataFrame | None
) -> None:
    if method not in get_args(Method):
        raise InputError(f"method must be one of {', '.join(map(repr, get_args(Method)))}, found {method!r}.")
    choices = {"top": top, "max_fdr": max_fdr, "selected": selected}
    given = [name for name, value in choices.items() if value is not None]
    if len(given) > 1:
        raise InputError(f"{' and '.join(given)} are ways to choose genes: give one of them.")
    if method == "prerank" and given:
        raise InputError(f"method='prerank' ranks all genes and chooses none: leave {given[0]} out.")
    if method == "overlap" and donors is not None:
        raise InputError("donors are for method='prerank', whose ranking is made of them.")


# What is tested of one table


class _Choice(NamedTuple):
    top: int | None
    max_fdr: float | None
    selected: str | None


@dataclass
class _Test:
    """What one table gave."""

    genes: ScoredGenes
    sets: MappedSets
    table: pd.DataFrame
    ranked_by: str
    chosen: dict[str, np.ndarray] = field(default_factory=dict)
    """Places of the chosen genes of each direction; of a ranking none."""


def _overlaps(genes: ScoredGenes, sets: MappedSets, choice: _Choice) -> _Test:
    chosen = _chosen(genes, choice)
    tables = [_overlap(genes, sets, direction, places) for direction, places in chosen.items()]
    return _Test(genes, sets, pd.concat(tables), genes.score_name, chosen)


def _chosen(genes: ScoredGenes, choice: _Choice) -> dict[str, np.ndarray]:
    """Return the places of the genes that are chosen, by direction."""
    if choice.selected is not None:
        if choice.selected not in genes.rows:
            raise InputError(
                f"There is no column {choice.selected!r}. {did_you_mean(choice.selected, genes.rows.columns)}"
            )
        chosen = {CHOSEN: np.flatnonzero(is_true(genes.rows[choice.selected]))}
    else:
        chosen = {direction: _strongest(genes, sign, choice) for direction, sign in ((ABOVE, 1), (BELOW, -1))}
    chosen = {direction: places for direction, places in chosen.items() if len(places)}
    if not chosen:
        raise InputError(
            f"No gene of {len(genes):,} is chosen ({_asked(choice)}, score {genes.score_name!r}). Choose more, with "
            "top=, "
            "max_fdr= or selected=, or ask where sets stand in the ranking of all genes with method='prerank'."
        )
    if all(len(places) == len(genes) for places in chosen.values()):
        raise InputError(f"All {len(genes):,} genes are chosen ({_asked(choice)}). Choose fewer than the table has.")
    return chosen


def _asked(choice: _Choice) -> str:
    return next((f"{name}={value}" for name, value in choice._asdict().items() if value is not None), "top by default")


def _strongest(genes: ScoredGenes, sign: int, choice: _Choice) -> np.ndarray:
    signed = sign * genes.score
    if choice.max_fdr is not None:
        fdr = genes.column(FDR_COLUMNS)
        if fdr is None:
            raise InputError(
                f"max_fdr={choice.max_fdr} needs a column such as {', '.join(FDR_COLUMNS[:3])}; there is none."
            )
        return np.flatnonzero((signed > 0) & (fdr < choice.max_fdr))
    top = min(TOP, max(1, len(genes) // LARGEST_SHARE)) if choice.top is None else choice.top
    if top >= len(genes):
        raise InputError(f"top={top:,} would choose all {len(genes):,} genes of the table. Choose fewer.")
    strongest = np.argsort(-signed, kind="stable")
    strongest = strongest[signed[strongest] > 0]
    if len(strongest) > top:
        strongest = strongest[signed[strongest] > signed[strongest[top]]]
    return strongest[:top]


def _overlap(genes: ScoredGenes, sets: MappedSets, direction: str, chosen: np.ndarray) -> pd.DataFrame:
    is_chosen = np.zeros(len(genes), dtype=bool)
    is_chosen[chosen] = True
    overlap = np.array([int(is_chosen[members].sum()) for members in sets.genes])
    matched, plain = (_chance(sets, of, is_chosen, overlap) for of in (genes.stratum, np.zeros_like(genes.stratum)))
    with np.errstate(divide="ignore", invalid="ignore"):
        fold = np.where(matched.expected > 0, overlap / matched.expected, np.nan)
    strength = np.abs(genes.score)
    shared = [members[is_chosen[members]] for members in sets.genes]
    return pd.DataFrame(
        {
            "direction": direction,
            "size": sets.sizes,
            "overlap": overlap,
            "expected": matched.expected,
            "fold": fold,
            "p_value": matched.p_value,
            "fdr": false_discovery_rate(pd.Series(matched.p_value)).to_numpy(),
            "plain_expected": plain.expected,
            "plain_p_value": plain.p_value,
            "plain_fdr": false_discovery_rate(pd.Series(plain.p_value)).to_numpy(),
            "genes": [genes.named(of[np.argsort(-strength[of], kind="stable")]) for of in shared],
        },
        index=pd.Index(sets.names, name="set", dtype=object),
    )


def _chance(sets: MappedSets, stratum: np.ndarray, is_chosen: np.ndarray, overlap: np.ndarray) -> Any:
    n_strata = int(stratum.max(initial=0)) + 1
    members = np.stack([np.bincount(stratum[of], minlength=n_strata) for of in sets.genes])
    of_genes, of_chosen = (np.bincount(stratum[which], minlength=n_strata) for which in (slice(None), is_chosen))
    return chance_overlap(members, of_genes, of_chosen, overlap)


# The table


def _as_table(tests: Sequence[_Test], method: str, read: GeneSets, seed: int, model: HowGood) -> pd.DataFrame:
    tables = []
    for test in tests:
        table = test.table
        for at, (name, value) in enumerate(test.genes.of.items()):
            table.insert(at, name, value)
        tables.append(table)
    table = pd.concat(tables)
    table = table.iloc[np.lexsort((-table["size"].to_numpy(), table["p_value"].to_numpy()))]
    first = tests[0]
    table.attrs = {
        "method": method,
        "score": first.ranked_by,
        "strata": list(first.genes.strata),
        "n_strata": first.genes.n_strata,
        "sets": dict(read.described),
        "seed": seed,
        "model": model.sentence,
        "warning": model.sentence if model.is_warning else "",
        "tests": [_described(test) for test in tests],
    }
    table.attrs["sentence"] = f"{model.sentence} {_sentence(table)}".lstrip()
    if not first.genes.strata:
        logger.warning("%s", _NOT_MATCHED)
    return table


_NOT_MATCHED = (
    "Genes are not matched: those that are detected in many cells, or expressed strongly, are chosen whatever is "
    "asked, and gene sets hold many of them, so small p-values are no evidence."
)


def _described(test: _Test) -> dict[str, Any]:
    ids = test.genes.known.gene_ids
    return {
        "of": {name: str(value) for name, value in test.genes.of.items()},
        "background": list(ids),
        "stratum": test.genes.stratum.tolist(),
        "chosen": {direction: [ids[i] for i in places] for direction, places in test.chosen.items()},
        "left_out": dict(test.genes.left_out),
        "sets": dict(test.sets.lost) | {"tested": len(test.sets.names)},
    }


def _sentence(table: pd.DataFrame) -> str:
    """Say how many sets are significant, and how many would be without matching."""
    strata, n_tests = table.attrs["strata"], len(table)
    what = "sets" if table.attrs["method"] == "prerank" else "tests (a set and a direction)"
    matched, plain = (int((table[name] < SIGNIFICANT).sum()) for name in ("fdr", "plain_fdr"))
    if not strata:
        return f"{matched:,} of {n_tests:,} {what} have FDR < {SIGNIFICANT}, not matched. {_NOT_MATCHED}"
    said = (
        f"{matched:,} of {n_tests:,} {what} have FDR < {SIGNIFICANT} against genes of like {' and '.join(strata)}; "
        f"without matching {plain:,} would."
    )
    strongest = next(iter(table.index[table["fdr"] < SIGNIFICANT]), None)
    return said + (f" The first is {strongest}." if strongest is not None else " No set stands out.")


def groups_of(table: pd.DataFrame) -> Iterator[tuple[dict[str, str], pd.DataFrame]]:
    """Yield what was tested on its own, and the rows that there are of it: a method, state, drug or dose."""
    for test in table.attrs["tests"]:
        rows = table
        for name, value in test["of"].items():
            rows = rows[rows[name].astype(str) == value]
        if len(rows):
            yield test["of"], rows
