"""Pre-ranked gene set enrichment: the running sum, and what it is for genes that are exchanged within strata.

Genes that are detected in many cells stand at both ends of most rankings, and pathways hold many of them. So genes are
exchanged only with others of like detection and place; one exchange serves all sets. A walk down the ranking adds to
the sets of each gene alone, so 1,787 sets with 97,000 members take 2 ms an exchange.

A set whose running sum goes as far up as down has the score 0, as in fgsea: neither end is more its own.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numba
import numpy as np

N_PERMUTATIONS = 1_000
N_ORDERS = 10
"""Random orders of genes with equal scores, over which a running sum is averaged."""


class Enrichment(NamedTuple):
    """Scores of sets, an entry each."""

    es: np.ndarray
    """Extreme of the running sum, the mean over orders of tied genes."""
    es_sd: np.ndarray
    """Its standard deviation over these orders; 0 where scores are all different."""
    nes: np.ndarray
    """Over the mean of the null of the same sign; NaN where the null has none."""
    p_value: np.ndarray
    """(b + 1) / (m + 1), b of the m exchanges of the same sign being as extreme."""


class Members(NamedTuple):
    """Which sets each gene is of: those of gene g are ``sets[start[g]:start[g + 1]]``."""

    start: np.ndarray
    sets: np.ndarray
    sizes: np.ndarray

    @classmethod
    def of(cls, genes_of: Sequence[np.ndarray], n_genes: int) -> "Members":
        """Turn the genes of each set round."""
        sizes = np.array([len(genes) for genes in genes_of], dtype=np.int64)
        gene = np.concatenate(genes_of)
        order = np.argsort(gene, kind="stable")
        start = np.concatenate([[0], np.cumsum(np.bincount(gene, minlength=n_genes))])
        return cls(start.astype(np.int64), np.repeat(np.arange(len(sizes)), sizes)[order], sizes)


def running_sum(score: np.ndarray, in_set: np.ndarray, *, weight: float = 1.0) -> np.ndarray:
    """Return the running sum of one set down the ranking, as defined; `enriched` is the fast form of its extreme.

    Parameters
    ----------
    score
        In descending order.
    in_set
        Whether each gene is of the set.
    weight
        Power of |score| by which a gene of the set counts; 0 counts each alike.

    References
    ----------
    Subramanian et al., PNAS 102, 15545 (2005).
    """
    hit = np.where(in_set, np.abs(score) ** weight, 0.0)
    sums: np.ndarray = np.cumsum(hit / hit.sum() - np.where(in_set, 0.0, 1 / (~in_set).sum()))
    return sums


@numba.njit(nogil=True, cache=True)
def _extremes(gene_at, weight_at, start, sets, sizes):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Return the extreme of the running sum of each set: genes as they stand, and what each place counts."""
    n_genes, n_sets = len(gene_at), len(sizes)
    total = np.zeros(n_sets)
    for place in range(n_genes):
        for i in range(start[gene_at[place]], start[gene_at[place] + 1]):
            total[sets[i]] += weight_at[place]
    hits, n_hit = np.zeros(n_sets), np.zeros(n_sets)
    highest, lowest = np.zeros(n_sets), np.zeros(n_sets)
    for place in range(n_genes):
        for i in range(start[gene_at[place]], start[gene_at[place] + 1]):
            one = sets[i]
            missed = (place - n_hit[one]) / (n_genes - sizes[one])
            share = hits[one] / total[one] if total[one] > 0 else n_hit[one] / sizes[one]
            lowest[one] = min(lowest[one], share - missed)
            hits[one] += weight_at[place]
            n_hit[one] += 1
            share = hits[one] / total[one] if total[one] > 0 else n_hit[one] / sizes[one]
            highest[one] = max(highest[one], share - missed)
    is_even = np.abs(highest + lowest) <= 1e-12
    return np.where(is_even, 0.0, np.where(highest > -lowest, highest, lowest))


def enrichment_scores(orders: np.ndarray, weights: np.ndarray, members: Members) -> np.ndarray:
    """Return the extreme of every set's running sum, 0 where it goes as far up as down: orders × sets.

    Parameters
    ----------
    orders
        The genes from the highest score down: orders × genes.
    weights
        What each place counts, of the same shape.
    members
        The sets.
    """
    scores = np.empty((len(orders), len(members.sizes)))
    for i, (order, weight) in enumerate(zip(orders, weights, strict=True)):
        scores[i] = _extremes(order, weight, members.start, members.sets, members.sizes)
    return scores


def enriched(
    score: np.ndarray,
    members: Members,
    stratum: np.ndarray,
    *,
    n_permutations: int = N_PERMUTATIONS,
    weight: float = 1.0,
    rng: np.random.Generator,
) -> Enrichment:
    """Score sets on a ranking, against exchanges of genes within strata.

    Null hypothesis: among genes of like detection and place, which are of the set has nothing to do with the ranking.

    Parameters
    ----------
    score
        Of each gene, finite.
    members
        The sets; none holds all genes.
    stratum
        Number of each gene's stratum.
    n_permutations
        Exchanges.
    weight
        Power of |score|.
    rng
        Draws exchanges and orders of ties.
    """
    orders = _orders(score, rng)
    counts = np.abs(score) ** weight
    observed = enrichment_scores(orders, counts[orders], members)
    within = np.argsort(stratum, kind="stable")
    null = np.empty((n_permutations, len(members.sizes)))
    for i in range(n_permutations):
        order = orders[i % len(orders)]
        exchanged = np.empty(len(score), dtype=np.int64)
        exchanged[within] = within[np.argsort(stratum[within] + rng.random(len(score)))]
        null[i] = enrichment_scores(exchanged[order][None], counts[order][None], members)[0]
    return against(observed, null)


def against(observed: np.ndarray, null: np.ndarray) -> Enrichment:
    """Compare scores, orders of ties × sets, with those of a null, draws × sets, sign by sign."""
    es = observed.mean(axis=0)
    is_same = (null >= 0) == (es >= 0)
    n_same = is_same.sum(axis=0)
    as_extreme = (is_same & (np.abs(null) >= np.abs(es) * (1 - 1e-12))).sum(axis=0)
    mean = np.divide(
        np.where(is_same, np.abs(null), 0.0).sum(axis=0), n_same, out=np.full(len(es), np.nan), where=n_same > 0
    )
    nes = np.divide(es, mean, out=np.full(len(es), np.nan), where=mean > 0)
    return Enrichment(es, observed.std(axis=0), nes, (as_extreme + 1) / (n_same + 1))


def _orders(score: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the genes from the highest score down; several orders where scores are equal."""
    if len(np.unique(score)) == len(score):
        return np.argsort(-score, kind="stable")[None]
    return np.stack([np.lexsort((rng.random(len(score)), -score)) for _ in range(N_ORDERS)])


def leading_edge(order: np.ndarray, weight_at: np.ndarray, genes: np.ndarray) -> np.ndarray:
    """Return the genes of a set up to the extreme of its running sum, or from it on where that is below 0."""
    in_set = np.isin(order, genes)
    sums = running_sum(weight_at, in_set) if weight_at[in_set].sum() > 0 else running_sum(np.ones(len(order)), in_set)
    if sums.max() >= -sums.min():
        at = np.arange(len(order)) <= int(sums.argmax())
    else:
        at = np.arange(len(order)) > int(sums.argmin())
    edge: np.ndarray = order[in_set & at]
    return edge
