"""One reference and one choice of targets: every method on the same pairs, with intervals, nulls and curves.

What does not depend on the method is made once: which sources are drawn, the rewired references (4 bytes an edge and
rewiring), the exchanged labels. So an interval of a difference is of paired draws, and all methods meet the same null.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from geneformer_repro.in_silico.networks import edge_scores as scores
from geneformer_repro.in_silico.networks.pair_scores import CO_EXPRESSION, DEGREES, Method, ScoredPairs
from geneformer_repro.in_silico.networks.rewiring import rewired

Universe = Literal["open", "closed", "boosted"]
FEWEST_SOURCES = 3
"""Fewer have no interval."""
_CURVE_POINTS = 200
_ROUNDING = 1e-12


@dataclass(frozen=True, eq=False)
class Part:
    """The pairs of a universe, and all methods on them.

    Parameters
    ----------
    reference, universe
        Names.
    scored
        Pairs of the universe, sources × targets.
    of
        The pairs of the reference.
    methods
        All methods; those without a value of some pair are not compared here.
    strata
        Bin of each target, of detection and place, and of detection alone.
    n_null
        Rewired references, and exchanges of labels.
    ties
        Of early precision.
    seed
        Of everything that is drawn.
    """

    reference: str
    universe: Universe
    scored: np.ndarray
    of: ScoredPairs
    methods: Sequence[Method]
    strata: tuple[np.ndarray, np.ndarray]
    n_null: int
    ties: scores.Ties
    seed: int

    @cached_property
    def pairs(self) -> scores.Pairs:
        """The pairs, source by source."""
        return scores.Pairs.of(self.scored)

    @cached_property
    def is_edge(self) -> np.ndarray:
        """Whether each pair is a known edge."""
        return self.along(self.of.known)

    @cached_property
    def edges(self) -> np.ndarray:
        """Numbers of the pairs that are."""
        return np.flatnonzero(self.is_edge)

    @cached_property
    def draws(self) -> np.ndarray:
        """How often each source is drawn; too few sources have no interval, so no draw."""
        n_sources = int((self.of.known & self.scored).any(axis=1).sum())
        n = scores.N_RESAMPLES if n_sources >= FEWEST_SOURCES else 0
        return scores.drawn_sources(self.pairs.n_sources, np.random.default_rng(self.seed), n)

    @cached_property
    def rewired(self) -> list[np.ndarray]:
        """Edges of each rewired reference, as numbers of pairs."""
        listed = np.column_stack([self.pairs.source[self.edges], self.pairs.target[self.edges]])
        graphs = rewired(listed, self.scored, np.random.default_rng(self.seed), n=self.n_null)
        return [self.pairs.number[one[:, 0], one[:, 1]].astype(np.int32) for one in graphs]

    @cached_property
    def relabelled(self) -> list[np.ndarray]:
        """Edges after targets of one stratum have exchanged names."""
        rng = np.random.default_rng(self.seed + 1)
        return list(scores.exchanged(self.pairs, self.edges, self.strata[0], rng, n=self.n_null))

    def along(self, matrix: np.ndarray) -> np.ndarray:
        """Return the values of the pairs in a matrix, sources × targets."""
        return matrix[self.pairs.source, self.pairs.target]

    @cached_property
    def strata_of_pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Stratum of each pair, of detection and place, and of detection alone."""
        both, detection = (scores.strata_of(self.pairs, bins) for bins in self.strata)
        return both, detection

    def results(self) -> "Results":
        """Score method by method: what a method needs is let go of before the next, at 40 bytes a pair."""
        found: dict[str, Result] = {}
        for method in self.methods:
            score = self.along(method.score)
            if np.isfinite(score).all():
                signed = score if method.signed is None else self.along(method.signed)
                found[method.name] = Compared.of(score, signed, self).result(knows_reference=method.name == DEGREES)
        symbols = {i: name for name, i in self.of.genes.by_name.items()}
        names = [symbols.get(i, self.of.genes.gene_ids[i]) for i in self.of.sources.tolist()]
        sources, targets = (len(np.unique(of)) for of in (self.pairs.source, self.pairs.target))
        sizes = {"n_sources": sources, "n_targets": targets, "n_pairs": len(self.pairs), "n_edges": len(self.edges)}
        return Results(self.reference, self.universe, names, self.of.n_missing, self.of.n_lost, sizes, found)


class Result(NamedTuple):
    """What is kept of a method on the pairs of a part."""

    row: dict[str, float]
    """Scores, by column."""
    matched: float
    drawn: np.ndarray
    """The matched AUROC under each draw of sources, the same for all methods."""
    of_sources: list[float]
    """AUROC among the pairs of each source."""
    curve: dict[str, list[float]]
    """Precision at rising recall."""


class Results(NamedTuple):
    """What is kept of all methods on the pairs of a part."""

    reference: str
    universe: Universe
    sources: list[str]
    """Symbols of the sources."""
    n_missing: int
    n_lost: int
    sizes: dict[str, int]
    methods: dict[str, Result]

    def table(self) -> pd.DataFrame:
        """Return a row a method."""
        baseline, rows = self.methods[CO_EXPRESSION], []
        for name, one in self.methods.items():
            beyond = scores.difference_interval(one.drawn, baseline.drawn)
            compared = named("beyond_coexpression", one.matched - baseline.matched, *beyond)
            rows.append({"reference": self.reference, "universe": self.universe, "method": name, **one.row, **compared})
        return pd.DataFrame(rows).assign(**self.sizes)


@dataclass(frozen=True, eq=False)
class Compared:
    """One method on the pairs of a part."""

    score: np.ndarray
    signed: np.ndarray
    part: Part
    ordered: scores.Ordered
    stratified: scores.Stratified
    matched: scores.Score
    drawn: np.ndarray
    """The matched AUROC under each draw of sources."""
    of_sources: np.ndarray
    """AUROC among the pairs of each source."""

    @classmethod
    def of(cls, score: np.ndarray, signed: np.ndarray, part: Part) -> "Compared":
        """Rank the scores of a method, once."""
        pairs = part.pairs
        stratified = scores.Stratified(score, part.strata_of_pairs[0], pairs.source, pairs.n_sources)
        matched, drawn = scores.matched_over_sources(stratified, part.edges, part.draws)
        of_sources = scores.of_each_source(score, part.is_edge, pairs)
        return cls(score, signed, part, scores.Ordered(score), stratified, matched, drawn, of_sources)

    def result(self, *, knows_reference: bool) -> Result:
        """Return what is kept."""
        row = self.row() | self.beside_nulls(knows_reference=knows_reference)
        return Result(row, self.matched.value, self.drawn, self.of_sources.tolist(), self.curve())

    def row(self) -> dict[str, float]:
        """Return the scores on the reference as it is."""
        part, pairs, is_edge = self.part, self.part.pairs, self.part.is_edge
        detection = scores.Stratified(self.score, part.strata_of_pairs[1], pairs.source, pairs.n_sources)
        mean = scores.mean_over_sources(self.of_sources, part.draws)
        scored = self.of_sources[np.isfinite(self.of_sources)]
        return {
            **named("matched", *self.matched),
            "matched_detection": detection.auroc(part.edges),
            **named("auroc", *scores.auroc_over_sources(self.score, is_edge, pairs, part.draws)),
            "ap": self.ordered.average_precision(part.edges),
            **named("ap_ratio", *scores.ap_ratio_over_sources(self.score, is_edge, pairs, part.draws)),
            **named("epr", *scores.epr_over_sources(self.score, is_edge, pairs, part.draws, ties=part.ties)),
            **named("per_source", *mean),
            "per_source_median": float(np.median(scored)) if len(scored) else np.nan,
            "n_sources_scored": len(scored),
            **self._direction(),
            **self._sign(),
            **self._perturbed(),
        }

    def _direction(self) -> dict[str, float]:
        """Compare edges whose reverse is scored, too, and no edge, with their reverses."""
        part, edges = self.part, self.part.edges
        row_of = {gene: row for row, gene in enumerate(part.of.sources.tolist())}
        column_of = {gene: column for column, gene in enumerate(part.of.targets.tolist())}
        source, target = part.of.sources[part.pairs.source[edges]], part.of.targets[part.pairs.target[edges]]
        back = [
            part.pairs.number[row_of[b], column_of[a]] if b in row_of and a in column_of else -1
            for a, b in zip(source.tolist(), target.tolist(), strict=True)
        ]
        numbers = np.array(back, dtype=np.int64)
        one_way = (numbers >= 0) & ~part.is_edge[numbers]
        forth, reverse = self.score[edges[one_way]], self.score[numbers[one_way]]
        return {"direction": scores.direction_auroc(forth, reverse), "n_directed": int(one_way.sum())}

    def _sign(self) -> dict[str, float]:
        sign = self.part.along(self.part.of.sign)[self.part.edges]
        told = sign != 0
        activates = sign[told] > 0
        return {"sign": scores.auroc(self.signed[self.part.edges[told]], activates), "n_signed": int(told.sum())}

    def _perturbed(self) -> dict[str, float]:
        """Return what CausalBench asks of a table of perturbations; nothing of another."""
        effect = self.part.along(self.part.of.effect)
        if np.isnan(effect).all():
            return {}
        effect, k = np.nan_to_num(effect), len(self.part.edges)
        return {
            "mean_effect": scores.mean_among_first(self.score, effect, k),
            "mean_effect_of_all": float(effect.mean()),
            "false_omission_rate": scores.false_omission_rate(self.score, self.part.is_edge),
        }

    def beside_nulls(self, *, knows_reference: bool) -> dict[str, float]:
        """Return how far the scores are from those of rewired references and exchanged labels."""
        part, density = self.part, self.part.is_edge.mean()
        found: dict[str, float] = {}
        null = {
            "ap": np.array([self.ordered.average_precision(one) for one in part.rewired]) / density,
            "matched": np.array([self.stratified.auroc(one) for one in part.rewired]),
        }
        values = {"ap": self.ordered.average_precision(part.edges) / density, "matched": self.matched.value}
        for name, value in values.items():
            of_null = np.full(1, np.nan) if knows_reference else null[name]
            low, high = np.percentile(of_null, [2.5, 97.5])
            spread = of_null.std()
            found |= {
                f"{name}_z": (value - of_null.mean()) / spread if spread > _ROUNDING else np.nan,
                f"{name}_p": _p_value(value, of_null),
                f"{name}_null_low": low,
                f"{name}_null_high": high,
            }
        labels = np.array([self.stratified.auroc(one) for one in part.relabelled])
        return found | {"matched_label_p": np.nan if knows_reference else _p_value(self.matched.value, labels)}

    def curve(self) -> dict[str, list[float]]:
        """Return precision at rising recall."""
        n_down_to = np.sort(self.ordered.n_down_to[self.part.edges])
        found = np.searchsorted(n_down_to, n_down_to, side="right")
        shown = np.unique(np.geomspace(1, len(found), _CURVE_POINTS).astype(int)) - 1
        recall, precision = found / len(found), found / n_down_to
        return {"recall": recall[shown].tolist(), "precision": precision[shown].tolist()}


def named(name: str, value: float, low: float, high: float) -> dict[str, float]:
    """Return a score with its interval, as columns."""
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def _p_value(value: float, null: np.ndarray) -> float:
    """Return (b + 1) / (m + 1), with b the values of the null that are as high; NaN without a value."""
    known = null[np.isfinite(null)]
    if not len(known) or not np.isfinite(value):
        return np.nan
    return float((1 + (known >= value - _ROUNDING).sum()) / (1 + len(known)))
