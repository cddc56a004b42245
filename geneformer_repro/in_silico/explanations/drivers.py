"""How many known genes, such as drivers of cancer, are among the strongest of a table, against genes like them.

Drivers are often well expressed and well studied, so whatever follows detection finds them. Each number stands beside
what genes of like detection and place give, and beside what fold change, detection, place and a network with random
weights find: who does not beat these has found detection. An example of what matching does: three strata in which 5 of
16 drivers are chosen have p = 0.001 together and 0.006 apart.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import norm

from geneformer_repro.arguments import require_at_least, typed
from geneformer_repro.errors import InputError
from geneformer_repro.in_silico.explanations.explanation import Explanation
from geneformer_repro.in_silico.explanations.gene_sets import read_gene_list
from geneformer_repro.in_silico.explanations.overlaps import chance_overlap, odds_ratio
from geneformer_repro.in_silico.explanations.scored_genes import (
    STRATA,
    SYNONYMS,
    ScoredGenes,
    how_good,
    opened,
    places_of,
    scored_genes,
)
from geneformer_repro.in_silico.networks.edge_scores import auroc, ranks_within
from geneformer_repro.in_silico.published_statistics import false_discovery_rate
from geneformer_repro.in_silico.shift_table import ShiftTable
from geneformer_repro.tokenizer.tables import examples

TOP = (10, 50, 100, 200)
FOLD_CHANGE, DETECTION, PLACE, RANDOM_WEIGHTS = ("fold change", "detection", "place", "random weights")
"""What an explanation must beat."""
FOLD_CHANGES = ("log2_fold_change", "log2fc", "log2foldchange", "avg_log2fc", "logfoldchanges", "logfc")
N_ORDERS = 10
"""Random orders of genes that share the last score, over which the first k are averaged."""
SIGNIFICANT = 0.05


@dataclass(frozen=True, eq=False)
class DriverGenes:
    """How well scores find the genes of a list; made by `driver_genes`.

    See Also
    --------
    driver_genes : Makes it.

    Examples
    --------
    >>> import numpy as np
    >>> import pandas as pd
    >>> import geneformer_repro as gf
    >>> table = pd.DataFrame({"score": np.linspace(1, 0, 100), "detection_rate": np.linspace(0, 1, 100)})
    >>> table.index = [f"G{i}" for i in range(100)]
    >>> found = gf.driver_genes(table, ["G1", "G2", "G3", "G40"], top=[10])
    >>> found.genes.loc["G1"].to_dict()
    {'gene_name': 'G1', 'score': 0.98989898989899, 'is_driver': True}
    """

    table: pd.DataFrame
    """A row a score and k."""
    genes: pd.DataFrame
    """A row a gene of the background, by ``gene_id``: ``gene_name``, each score, ``is_driver``."""
    facts: Mapping[str, Any]
    """``name``, ``version``, ``licence``, file and digest of the list; genes listed and known, names of the unknown;
    ``strata``; ``model``, how good the model is that an explanation is of; ``sentence``."""


@typed
def driver_genes(
    table: pd.DataFrame | str | Path | ShiftTable | Explanation,
    drivers: Sequence[str] | pd.DataFrame | str | Path,
    *,
    score: str | None = None,
    random_weights: pd.DataFrame | str | Path | Explanation | None = None,
    top: Sequence[int] = TOP,
    strata: Sequence[str] | int | None = STRATA,
    min_cells: int | None = None,
    name: str | None = None,
    version: str | None = None,
    licence: str | None = None,
    seed: int = 0,
) -> DriverGenes:
    """Ask how many genes of a list are among the strongest of a table, against genes of like detection and place.

    Parameters
    ----------
    table
        A table of genes, as of `gene_set_enrichment`; each of its methods and states is a score.
    drivers
        The list: names, a file with one a line, or a table with a column such as ``Hugo Symbol`` or ``gene``. Lines
        such as ``# version: 2025`` above it are kept.
    score
        Column whose size ranks genes, whatever its sign; default as of `gene_set_enrichment`.
    random_weights
        The same table of a network with random weights.
    top
        Numbers of genes that are looked at.
    strata, min_cells
        As of `gene_set_enrichment`.
    name, version, licence
        Of the list, where the file does not say.
    seed
        Of orders of equal scores.

    Returns
    -------
    Scores (``table``), genes (``genes``) and what is known of the list (``facts``). A score is a row for each k,
    indexed by ``score`` and ``k``: the table's own, then where they are there "fold change", "detection", "place"
    (nearer to the first is higher) and "random weights". Columns: ``auroc``, the chance that a driver scores above
    another gene; ``matched_auroc``, the same among genes of a stratum, with ``matched_p_value`` (two-sided);
    ``precision``, the share of drivers among the first k; ``expected`` and ``p_value`` of it within strata, exact and
    one-sided, ``fdr`` over all rows; ``plain_expected`` and ``plain_p_value``; ``odds_ratio`` with ½ added to each
    number; ``n_drivers``, ``n_genes``.

    Raises
    ------
    InputError
        A file or column is not there, fewer than two drivers are genes of the table, or all genes are drivers.

    See Also
    --------
    gene_set_enrichment : Sets instead of one list.
    write_enrichment_report : A page of both.

    Notes
    -----
    Null hypothesis: among genes of like detection and place, the score does not depend on who is a driver. The matched
    AUROC is tested as a rank sum within strata, with its exact variance. Of genes that share the last score, first ones
    are drawn 10 times, and numbers averaged.

    Examples
    --------
    >>> import numpy as np
    >>> import pandas as pd
    >>> import geneformer_repro as gf
    >>> table = pd.DataFrame({"score": np.linspace(1, 0, 100), "detection_rate": np.linspace(0, 1, 100)})
    >>> table.index = [f"G{i}" for i in range(100)]
    >>> found = gf.driver_genes(table, ["G1", "G2", "G3", "G40"], top=[10], name="a list", version="1")
    >>> found.table.loc[("score", 10), ["auroc", "precision"]].round(3).to_dict()
    {'auroc': 0.896, 'precision': 0.3}
    """
    require_at_least(**{"top": (min(top, default=0), 1)})
    names, said = read_gene_list(drivers)
    table = opened(table)
    groups = scored_genes(table, score=score, strata=strata, min_cells=min_cells)
    listed = [_is_driver(names, genes) for genes in groups]
    scores = [*_of_table(groups, listed), *_beside(groups[0], listed[0])]
    if random_weights is not None:
        scores += _of_random_weights(random_weights, groups[0], listed[0], score)
    rng = np.random.default_rng(seed)
    rows = [_row(scored, k, rng) for scored in scores for k in top if k < len(scored.strength)]
    if not rows:
        raise InputError(f"top={list(top)} would choose all {len(groups[0]):,} genes of the table. Choose fewer.")
    result = pd.DataFrame(rows).set_index(["score", "k"])
    result.insert(list(result).index("p_value") + 1, "fdr", false_discovery_rate(result["p_value"]))
    given = {"name": name, "version": version, "licence": licence}
    facts: dict[str, Any] = {**said, **{what: value for what, value in given.items() if value is not None}}
    facts |= _counted(names, groups[0], listed[0])
    facts["model"] = how_good(table).sentence
    facts["sentence"] = _sentence(result, facts, [scored.name for scored in scores[: len(groups)]])
    return DriverGenes(result, _genes(scores, groups[0], listed[0]), facts)


# Scores


class _Scored(NamedTuple):
    """A score that may find drivers."""

    name: str
    genes: ScoredGenes
    is_driver: np.ndarray
    value: np.ndarray

    @property
    def strength(self) -> np.ndarray:
        """By what genes are ranked; higher for a driver."""
        return self.value if self.name in (DETECTION, PLACE) else np.abs(self.value)


def _of_table(groups: Sequence[ScoredGenes], listed: Sequence[np.ndarray]) -> list[_Scored]:
    return [
        _Scored(", ".join(map(str, genes.of.values())) or genes.score_name, genes, is_driver, genes.score)
        for genes, is_driver in zip(groups, listed, strict=True)
    ]


def _beside(genes: ScoredGenes, is_driver: np.ndarray) -> list[_Scored]:
    """Return what needs no model, where the table has it for all genes."""
    place = genes.column(SYNONYMS["mean_place"])
    found = {
        FOLD_CHANGE: genes.column(FOLD_CHANGES),
        DETECTION: genes.column(SYNONYMS["detection_rate"]),
        PLACE: None if place is None else -place,
    }
    return [
        _Scored(name, genes, is_driver, of)
        for name, of in found.items()
        if of is not None and np.isfinite(of).all()
    ]  # fmt: skip


def _of_random_weights(
    table: pd.DataFrame | str | Path | Explanation, ours: ScoredGenes, is_driver: np.ndarray, score: str | None
) -> list[_Scored]:
    """Return what random weights score of the same genes."""
    scored = []
    for group in scored_genes(table, score=score or ours.score_name, strata=None, min_cells=0):
        there = [group.known.position.get(gene, -1) for gene in ours.known.gene_ids]
        lacking = sum(place < 0 for place in there)
        if lacking:
            raise InputError(
                f"random_weights lacks {lacking:,} of {len(ours):,} genes. Explain the same cells with both networks."
            )
        name = ", ".join([RANDOM_WEIGHTS, *map(str, group.of.values())])
        scored.append(_Scored(name, ours, is_driver, group.score[there]))
    return scored


def _is_driver(names: Sequence[str], genes: ScoredGenes) -> np.ndarray:
    is_driver = np.zeros(len(genes), dtype=bool)
    is_driver[list(places_of(names, genes.known).values())] = True
    if not 2 <= is_driver.sum() < len(genes):
        raise InputError(
            f"{int(is_driver.sum())} of {len(names):,} listed genes ({examples(names)}) are among the {len(genes):,} "
            "of the "
            f"table ({examples(genes.names)}); expected two or more, and others beside them."
        )
    return is_driver


# One score


def _row(scored: _Scored, k: int, rng: np.random.Generator) -> dict[str, Any]:
    genes, strength, is_driver = scored.genes, scored.strength, scored.is_driver
    drawn = [_first(genes, is_driver, chosen) for chosen in _chosen(strength, k, rng)]
    precision = {name: float(np.mean([of[name] for of in drawn])) for name in drawn[0]}
    return {
        "score": scored.name,
        "k": k,
        "auroc": auroc(strength, is_driver),
        **matched_rank_sum(strength, is_driver, genes.stratum)._asdict(),
        **precision,
        "n_drivers": int(is_driver.sum()),
        "n_genes": len(genes),
    }


def _chosen(strength: np.ndarray, k: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Return the k strongest; of several that share the last place, those of several draws."""
    order = np.argsort(-strength, kind="stable")
    if strength[order[k - 1]] > strength[order[k]]:
        return [order[:k]]
    return [np.lexsort((rng.random(len(strength)), -strength))[:k] for _ in range(N_ORDERS)]


def _first(genes: ScoredGenes, is_driver: np.ndarray, chosen: np.ndarray) -> dict[str, float]:
    n_found, k = int(is_driver[chosen].sum()), len(chosen)
    matched, plain = (
        chance_overlap(
            np.bincount(stratum[is_driver], minlength=genes.n_strata)[None],
            np.bincount(stratum, minlength=genes.n_strata),
            np.bincount(stratum[chosen], minlength=genes.n_strata),
            np.array([n_found]),
        )
        for stratum in (genes.stratum, np.zeros_like(genes.stratum))
    )
    odds = odds_ratio(np.array(n_found), np.array(is_driver.sum()), np.array(k), np.array(len(genes)))
    return {
        "precision": n_found / k,
        "expected": float(matched.expected[0]) / k,
        "p_value": float(matched.p_value[0]),
        "plain_expected": float(plain.expected[0]) / k,
        "plain_p_value": float(plain.p_value[0]),
        "odds_ratio": float(odds),
    }


class MatchedRankSum(NamedTuple):
    """Whether genes of a list score otherwise than others of their strata."""

    matched_auroc: float
    matched_p_value: float


def matched_rank_sum(score: np.ndarray, is_listed: np.ndarray, stratum: np.ndarray) -> MatchedRankSum:
    """Return the AUROC within strata, and its two-sided p-value.

    Parameters
    ----------
    score
        Finite, one a gene.
    is_listed
        Whether each gene is of the list.
    stratum
        Number of each gene's stratum.

    Returns
    -------
    Σ w·AUROC / Σ w over strata, w = listed × others. Null hypothesis: within a stratum, listed genes are a random
    choice; then the sum of their ranks has a known mean and, ties included, variance. NaN where no stratum has both.
    """
    rank, size = ranks_within(score, stratum), np.bincount(stratum)
    listed = np.bincount(stratum, is_listed, minlength=len(size))
    pairs = (listed * (size - listed)).sum()
    wins = rank[is_listed].sum() - (listed * (listed + 1)).sum() / 2
    spread = np.bincount(stratum, (rank - (size[stratum] + 1) / 2) ** 2)
    of_stratum = np.divide(
        listed * (size - listed) * spread, size * (size - 1.0), out=np.zeros(len(size)), where=size > 1
    )
    variance = of_stratum.sum()
    if not pairs or not variance:
        return MatchedRankSum(np.nan, np.nan)
    z = (wins - pairs / 2) / np.sqrt(variance)
    return MatchedRankSum(float(wins / pairs), float(2 * norm.sf(abs(z))))


# What is said of it


def _genes(scores: Sequence[_Scored], genes: ScoredGenes, is_driver: np.ndarray) -> pd.DataFrame:
    """Return the genes of the first table with each score of a model, NaN where it has none."""
    index = pd.Index(genes.known.gene_ids, name="gene_id", dtype=object)
    of_models = {
        scored.name: pd.Series(scored.value, index=list(scored.genes.known.gene_ids)).reindex(index)
        for scored in scores
        if scored.name not in (FOLD_CHANGE, DETECTION, PLACE)
    }
    return pd.DataFrame({"gene_name": genes.names, **of_models, "is_driver": is_driver}, index=index)


def _counted(names: Sequence[str], genes: ScoredGenes, is_driver: np.ndarray) -> dict[str, Any]:
    found = places_of(names, genes.known)
    unknown = [gene for gene in names if gene not in found]
    return {
        "listed": len(names),
        "known": int(is_driver.sum()),
        "unknown names": examples(unknown, 20) if unknown else "",
        "background": len(genes),
        "strata": list(genes.strata),
    }


def _sentence(table: pd.DataFrame, facts: Mapping[str, Any], ours: Sequence[str]) -> str:
    """Say whether the table's scores find drivers beyond genes like them, and beyond what needs no model."""
    of_score = table.groupby(level="score", sort=False)[["matched_auroc", "matched_p_value"]].first()
    matched = of_score["matched_auroc"].to_dict()
    best = max(ours, key=lambda name: np.nan_to_num(matched[name]))
    others = {name: value for name, value in matched.items() if name not in ours and np.isfinite(value)}
    p_value = float(of_score["matched_p_value"].to_dict()[best])
    like = f"other genes of like {' and '.join(facts['strata'])}" if facts["strata"] else "other genes, not matched,"
    said = (
        f"{facts['known']:,} of {facts['listed']:,} listed genes are among {facts['background']:,}. By {best} they "
        f"score above {like} with an AUROC of {matched[best]:.3f} (p = {p_value:.2g})"
    )
    if others:
        strongest = max(others, key=others.__getitem__)
        said += f"; the best of what stands beside is {strongest}, {others[strongest]:.3f}"
    is_found = p_value < SIGNIFICANT and matched[best] > 0.5
    return said + ("." if is_found else ". That is no evidence that they are found.")
