"""Where the genes of sets stand in a ranking of all genes: what ranks them, and against what.

Two nulls stand side by side. Exchanging genes within strata asks whether a set stands out among genes like its own, and
takes genes for independent; flipping the signs of donors keeps how genes go together, and asks for six donors. What is
flipped is the set's mean over genes, not its running sum: that has no unit, so where genes differ alike in all donors
the ranking, and with it the running sum, stays when one sign is flipped, and with six donors no p-value was below 0.15.
"""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from geneformer_repro.errors import InputError
from geneformer_repro.in_silico.explanations.explanation import Explanation
from geneformer_repro.in_silico.explanations.gene_sets import MappedSets
from geneformer_repro.in_silico.explanations.gene_table import donor_means, read
from geneformer_repro.in_silico.explanations.running_sums import Members, enriched, leading_edge
from geneformer_repro.in_silico.explanations.scored_genes import MATCHED_SCORES, ScoredGenes, places_of
from geneformer_repro.in_silico.networks.edge_scores import ranks_within
from geneformer_repro.in_silico.published_statistics import false_discovery_rate

logger = logging.getLogger(__name__)

FEWEST_DONORS = 6
SIGNIFICANT = 0.05
_ROUNDING = 1e-12
ABOVE, BELOW = "above 0", "below 0"


def preranked(
    genes: ScoredGenes, sets: MappedSets, donors: pd.DataFrame | None, n_permutations: int, rng: np.random.Generator
) -> tuple[pd.DataFrame, str]:
    """Test all sets on the ranking of a table; return a row a set, and what ranks genes.

    Raises
    ------
    InputError
        The score has one sign and nothing to match on, or a set holds all genes.
    """
    score, ranked_by = _ranking(genes)
    smallest = 2 / (n_permutations + 2) * len(sets.names)
    if smallest > SIGNIFICANT:
        logger.warning(
            "%s exchanges are few for %s sets: of one alone that none of them reaches the FDR is %.2g. Take %s.",
            f"{n_permutations:,}",
            f"{len(sets.names):,}",
            min(smallest, 1.0),
            f"n_permutations={round(2 * len(sets.names) / SIGNIFICANT):,}",
        )
    whole = [name for name, size in zip(sets.names, sets.sizes, strict=True) if size == len(genes)]
    if whole:
        raise InputError(
            f"Set {whole[0]!r} holds all {len(genes):,} genes of the table, so it stands nowhere. Lower max_size."
        )
    members = Members.of(sets.genes, len(genes))
    matched, plain = (
        enriched(score, members, stratum, n_permutations=n_permutations, rng=rng)
        for stratum in (genes.stratum, np.zeros_like(genes.stratum))
    )
    order = np.argsort(-score, kind="stable")
    edges = [genes.named(leading_edge(order, np.abs(score)[order], of)) for of in sets.genes]
    columns = {
        "direction": np.where(matched.es >= 0, ABOVE, BELOW),
        "size": sets.sizes,
        "es": matched.es,
        "es_sd": matched.es_sd,
        "nes": matched.nes,
        **_tested(matched.p_value, ""),
        **_tested(plain.p_value, "plain_"),
        **({} if donors is None else _of_donors(genes, sets, donors, n_permutations, rng)),
        "genes": edges,
    }
    return pd.DataFrame(columns, index=pd.Index(sets.names, name="set", dtype=object)), ranked_by


def _tested(p_value: np.ndarray, name: str) -> dict[str, np.ndarray]:
    return {f"{name}p_value": p_value, f"{name}fdr": false_discovery_rate(pd.Series(p_value)).to_numpy()}


def _ranking(genes: ScoredGenes) -> tuple[np.ndarray, str]:
    """Return what ranks genes: a score from which like genes are taken off, or the percentile among these."""
    if genes.score_name == "matched_percentile":
        return genes.score - 0.5, genes.score_name
    if genes.score_name in MATCHED_SCORES:
        return genes.score, genes.score_name
    if genes.strata:
        return matched_percentile(genes.score, genes.stratum), f"percentile of {genes.score_name} within strata"
    if (genes.score >= 0).all() or (genes.score <= 0).all():
        raise InputError(
            f"{genes.score_name!r} has one sign, so it is a size, and sizes follow detection: rank by 'beyond', or "
            "give strata, within which the percentile is taken."
        )
    return genes.score, genes.score_name


def matched_percentile(score: np.ndarray, stratum: np.ndarray) -> np.ndarray:
    """Return where each score stands among those of its stratum, -1 lowest to 1 highest, the middle 0."""
    size = np.bincount(stratum)[stratum]
    percentile: np.ndarray = 2 * (ranks_within(score, stratum) - 0.5) / size - 1
    return percentile


def effects_of_donors(
    table: Any, donors: pd.DataFrame | None, groups: Sequence[ScoredGenes]
) -> list[pd.DataFrame | None]:
    """Return the effects of each donor, donors × genes, of each table of genes: those given, or an explanation's.

    Raises
    ------
    InputError
        There are fewer than six donors, or several tables and one of donors.
    """
    if donors is not None:
        if len(groups) > 1:
            raise InputError(
                f"donors are effects of one table, and there are {len(groups)} ({groups[0].of} …). Ask one by one."
            )
        if len(donors) < FEWEST_DONORS:
            raise InputError(
                f"donors has {len(donors)} rows; flips of signs need {FEWEST_DONORS} donors or more, rows donors and "
                "columns genes. Leave it out."
            )
        return [donors]
    if not isinstance(table, Explanation):
        return [None] * len(groups)
    rows = read(table).of_donors
    rows = rows[rows["donor"].notna()]
    return [_of_explanation(rows, genes) for genes in groups]


def _of_explanation(rows: pd.DataFrame, genes: ScoredGenes) -> pd.DataFrame | None:
    for name, value in genes.of.items():
        rows = rows[rows[name].isna() if pd.isna(value) else rows[name].eq(value)]
    return donor_means(rows) if rows["donor"].nunique() >= FEWEST_DONORS else None


def _of_donors(
    genes: ScoredGenes, sets: MappedSets, donors: pd.DataFrame, n_permutations: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Test on what each donor's genes have beyond others of their strata, where a donor lacks a gene nothing."""
    place, effects = places_of(list(map(str, donors.columns)), genes.known), np.full((len(donors), len(genes)), np.nan)
    known = [str(column) in place for column in donors.columns]
    effects[:, [place[str(column)] for column in donors.columns[known]]] = donors.loc[:, known].to_numpy(dtype=float)
    if np.isnan(effects).all(axis=0).any():
        lacking = genes.known.gene_ids[int(np.isnan(effects).all(axis=0).argmax())]
        raise InputError(f"No donor has an effect of gene {lacking!r}. Give donors of the table's genes, by gene id.")
    beyond = beyond_strata(effects, genes.stratum)
    of_sets = np.stack([beyond[:, members].mean(axis=1) for members in sets.genes], axis=1)
    return _tested(flips_of_donors(of_sets, n_permutations=n_permutations, rng=rng), "donor_")


def flips_of_donors(values: np.ndarray, *, n_permutations: int, rng: np.random.Generator) -> np.ndarray:
    """Return a two-sided p-value of each column's mean, against flips of the signs of donors, alike for all columns.

    Null hypothesis: what a donor has is as likely as its opposite.

    Parameters
    ----------
    values
        Donors × sets.
    n_permutations
        Flips that are drawn; where there are no more, all are taken, so with six donors no p-value is below 1/32.
    rng
        Draws them.
    """
    n_donors = len(values)
    if 2**n_donors <= n_permutations:
        signs = 1 - 2 * ((np.arange(1, 2**n_donors)[:, None] >> np.arange(n_donors)) & 1)
    else:
        signs = rng.choice([-1, 1], size=(n_permutations, n_donors))
    observed = np.abs(values.sum(axis=0))
    as_extreme = (np.abs(signs @ values) >= observed * (1 - _ROUNDING)).sum(axis=0)
    p_value: np.ndarray = (as_extreme + 1) / (len(signs) + 1)
    return p_value


def beyond_strata(effects: np.ndarray, stratum: np.ndarray) -> np.ndarray:
    """Return effects, donors × genes, less the mean of each stratum in the same donor; 0 where there is none."""
    is_known, n_strata = np.isfinite(effects), int(stratum.max(initial=0)) + 1
    known = np.where(is_known, effects, 0.0)
    sums, counts = (
        np.stack([np.bincount(stratum, of, minlength=n_strata) for of in what]) for what in (known, is_known)
    )
    means = np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0)
    return np.where(is_known, known - means[:, stratum], 0.0)
