r"""Which pairs of cell and gene get a forward pass, and what the gene means then are.

A gene's effect is a mean over donors of means over cells: a sum over its pairs with weights w. Of every pair there is
an estimate; some pairs are drawn and measured, in rounds. With f what is expected of a pair before round r
(`assisting_model`), p the probability with which the round draws it, and y what was measured, the **difference
estimator** of round r is

.. math:: t_r = \sum_{measured\ before} w y + \sum_{others} w f + \sum_{drawn\ now} w \frac{y - f}{p}

Given all that happened before, its mean is the gene's exact mean, whatever f is worth and however earlier values
decided what is drawn: f and p come from earlier rounds alone. The rounds after the first are averaged with weights
that are known before each is measured, and the last round, in which every gene has its share, takes what weight is
left: so the average is unbiased too. (Weights that look back at what an earlier round measured would not do, nor would
a plain mean of measured values: rounds go where earlier values were near the edge of the top. A gene of which all is
measured in the end has its exact mean.)

Passes are spread by size (Neyman): within a gene p is in proportion to the spread that is expected of a pair, which is
that of its cell times w, mixed with a fifth of even chances so that no pair is nearly excluded. Each gene's are drawn
systematically along its pairs, which are in the order of donors and places in the cell, so every donor gets its share.
Over genes the first and the last round are even; those between go to genes by what a pass lowers the expected loss of a
wrong choice of the top (both directions), as knowledge gradients do: with z a gene's distance from the edge in standard
errors s, in proportion to the root of φ(z)/s.

For the *ranking* there is a second estimate, biased and less noisy: measured values, and for others what is expected
of them (`Estimated.value_P`); an effect of a gene in it is shrunken as far as it is noisy.

Shapes: P pairs, G genes, C cells.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student

from geneformer_repro.in_silico.assisting_model import Fitted, Pairs, cell_scales, fitted

N_BETWEEN = 3
"""Rounds between the first and the last."""
SHARE_OF_FIRST, SHARE_OF_LAST = 0.25, 0.2
"""Of the passes; at least one a gene."""
FEWEST_A_GENE = 2
EVEN_CHANCES = 0.2
"""Part of the chances within a gene that is the same for all its pairs."""
Z = float(norm.ppf(0.975))


class Draw(NamedTuple):
    """Pairs that a round measures."""

    drawn_P: np.ndarray
    chance_P: np.ndarray
    """Probability with which each was drawn; 0 for those measured before, and of genes that this round leaves out."""


class Ranked(NamedTuple):
    """What is known of the order of genes: their means as far as they are known, by which they are ranked."""

    mean_G: np.ndarray
    error_G: np.ndarray
    """Standard error, as the model has it; 0 where all pairs are measured."""
    edges: tuple[float, float]
    """Between the last of the top and the first after it: of the highest, and of the lowest."""

    def decided(self) -> tuple[np.ndarray, np.ndarray]:
        """Return for each direction of each gene 1 if it surely belongs to the top, -1 if surely not, else 0, (G,)."""
        above, below = self.edges
        room_G = Z * self.error_G
        signs = [np.where(np.abs(gap_G) > room_G, np.sign(gap_G), 0) for gap_G in self._gaps()]
        exact_G = self.error_G == 0
        highest, lowest = self.mean_G >= above, self.mean_G <= below
        ties = (np.where(highest, 1, -1), np.where(lowest, 1, -1))
        first, second = (np.where(exact_G, tie, sign) for tie, sign in zip(ties, signs, strict=True))
        return first.astype(np.int64), second.astype(np.int64)

    def _gaps(self) -> tuple[np.ndarray, np.ndarray]:
        return self.mean_G - self.edges[0], self.edges[1] - self.mean_G

    def worth(self) -> np.ndarray:
        """Return how fast the expected loss of a wrong choice falls with a gene's variance, in both directions."""
        is_open_G = self.error_G > 0
        worth_G = np.zeros(len(self.mean_G))
        for gap_G in self._gaps():
            z_G = np.divide(gap_G, self.error_G, out=np.zeros(len(gap_G)), where=is_open_G)
            worth_G += np.divide(norm.pdf(z_G.clip(-30, 30)), self.error_G, out=np.zeros(len(gap_G)), where=is_open_G)
        return worth_G


@dataclass(frozen=True)
class Estimated:
    """What comes of all rounds."""

    value_P: np.ndarray
    """Measured, or expected of what is not: their mean ranks genes best, and is biased towards what is expected."""
    unbiased_P: np.ndarray
    """Their mean is the unbiased estimate of the gene's exact mean (`Pairs.means`)."""
    variance_P: np.ndarray
    """What each pair adds to the variance of a sum of `unbiased_P`, times (t / 1.96)² for what few passes leave unknown
    of it: a mean has a 95 % interval of 1.96 · √(Σ w² variance) on each side."""
    model: Fitted
    """What was expected of pairs in the end."""
    correlation: float
    """Of estimates and exact values within genes and cells' scales, over what was measured."""
    ranked: Ranked


def passes_of_rounds(n_passes: int, n_genes: int) -> list[int]:
    """Return how many passes each round has: two rounds at least, in which every gene has one."""
    last = max(n_genes, round(SHARE_OF_LAST * n_passes))
    first = max(n_genes, min(n_genes * 3 // 2, n_passes - last), round(SHARE_OF_FIRST * n_passes))
    ends = np.rint(np.linspace(0, max(n_passes - first - last, 0), N_BETWEEN + 1)).astype(int)
    return [first, *(n for n in np.diff(ends).tolist() if n), max(n_passes - first - int(ends[-1]), 0)]


def known_after(draws: Sequence[Draw], n_pairs: int) -> np.ndarray:
    """Return which pairs some rounds have measured, (P,)."""
    known_P = np.zeros(n_pairs, dtype=bool)
    for draw in draws:
        known_P |= draw.drawn_P
    return known_P


def next_draw(
    pairs: Pairs, exact_P: np.ndarray, before: Sequence[Draw], rounds: Sequence[int], top: int, rng: np.random.Generator
) -> Draw:
    """Draw the pairs of a round.

    Parameters
    ----------
    pairs
        Pairs and their estimates.
    exact_P
        What earlier rounds have measured; else is not read.
    before
        Earlier rounds.
    rounds
        Passes of all rounds. A gene gets at most as many as it has pairs left.
    top
        How many genes of each direction are to be found.
    rng
        Random numbers of this round.
    """
    known_P = known_after(before, len(exact_P))
    left_P = ~known_P
    n_left_G = pairs.by_gene(left_P)
    scale_C = cell_scales(pairs, exact_P, known_P)
    size_P, wanted_G = scale_C[pairs.cell_P] * pairs.weight_P * left_P, np.ones(pairs.n_genes)
    if 0 < len(before) < len(rounds) - 1:
        model = fitted(pairs, exact_P, known_P)
        worth_G = ranked(pairs, exact_P, known_P, model, top).worth()
        wanted_G = np.sqrt(worth_G) * pairs.by_gene(size_P)
    n_G = _whole(_shared_out(wanted_G, n_left_G, rounds[len(before)]), n_left_G)
    of_size_P = _within(size_P, pairs)
    even_P = left_P / np.maximum(n_left_G, 1)[pairs.gene_P]
    chance_P = _chances(((1 - EVEN_CHANCES) * of_size_P + EVEN_CHANCES * even_P) * left_P, pairs, n_G)
    return Draw(_systematic(chance_P, pairs, rng), chance_P)


def _within(size_P: np.ndarray, pairs: Pairs) -> np.ndarray:
    """Return sizes as shares of their gene."""
    total_G = pairs.by_gene(size_P)
    return np.divide(size_P, total_G[pairs.gene_P], out=np.zeros(len(size_P)), where=total_G[pairs.gene_P] > 0)


def _shared_out(wanted_G: np.ndarray, most_G: np.ndarray, n: int) -> np.ndarray:
    """Share n out in proportion to what is wanted, nobody more than fits; all, if n is more."""
    if n >= most_G.sum():
        return most_G.astype(float)
    if not (wanted_G * (most_G > 0)).any():
        wanted_G = (most_G > 0).astype(float)
    share_G, full_G = np.zeros(len(wanted_G)), most_G <= 0
    for _ in range(len(wanted_G) + 1):
        share_G = np.where(full_G, most_G, 0.0)
        open_G = np.where(full_G, 0.0, wanted_G)
        if open_G.sum() <= 0:  # those that are left want nothing: they share alike
            open_G = np.where(full_G, 0.0, 1.0)
        share_G += open_G * ((n - share_G.sum()) / max(open_G.sum(), np.finfo(float).tiny))
        over_G = (share_G >= most_G) & ~full_G
        if not over_G.any():
            break
        full_G |= over_G
    return share_G


def _whole(share_G: np.ndarray, most_G: np.ndarray) -> np.ndarray:
    """Round shares so that they, and all sums from the first on, keep within one half."""
    ends = np.floor(np.cumsum(share_G) + 0.5)
    return np.minimum(np.diff(ends, prepend=0.0), most_G)


def _chances(size_P: np.ndarray, pairs: Pairs, n_G: np.ndarray) -> np.ndarray:
    """Return chances in proportion to size, at most 1, that add up to n of each gene."""
    sure_P = np.zeros(len(size_P), dtype=bool)
    while True:
        left_G = n_G - pairs.by_gene(sure_P)
        total_G = pairs.by_gene(np.where(sure_P, 0.0, size_P))
        factor_G = np.divide(left_G, total_G, out=np.zeros(len(n_G)), where=total_G > 0)
        chance_P = np.where(sure_P, 1.0, size_P * factor_G[pairs.gene_P])
        more_P = (chance_P >= 1 - 1e-12) & ~sure_P
        if not more_P.any():
            return np.asarray(chance_P)
        sure_P |= more_P


def _systematic(chance_P: np.ndarray, pairs: Pairs, rng: np.random.Generator) -> np.ndarray:
    """Draw along the pairs of each gene: one where the sum of chances, from a random start, passes a whole number."""
    ends_P = np.cumsum(chance_P)
    first_P = np.flatnonzero(np.diff(pairs.gene_P, prepend=-1))
    before_G = ends_P[first_P] - chance_P[first_P]
    ends_P = ends_P - (before_G - rng.random(pairs.n_genes) - 1e-9)[pairs.gene_P]
    return np.asarray((np.floor(ends_P) > np.floor(ends_P - chance_P)) & (chance_P > 0))


def ranked(pairs: Pairs, exact_P: np.ndarray, known_P: np.ndarray, model: Fitted, top: int) -> Ranked:
    """Rank genes by what is measured, and expected of what is not."""
    mean_G = pairs.means(np.where(known_P, exact_P, model.value_P))
    size_P = model.scale_C[pairs.cell_P] * pairs.weight_P * ~known_P
    variance_G = pairs.by_gene(size_P) ** 2 * model.gene_variance_G + pairs.by_gene(size_P**2) * model.noise
    edges = []
    for sign in (1, -1):
        in_order = np.sort(-sign * mean_G)
        inside, outside = in_order[min(top, len(in_order)) - 1], in_order[min(top, len(in_order) - 1)]
        edges.append(-sign * float(inside + outside) / 2)
    return Ranked(mean_G, np.sqrt(variance_G), (edges[0], edges[1]))


def estimated(pairs: Pairs, exact_P: np.ndarray, draws: Sequence[Draw], top: int) -> Estimated:
    """Estimate the means of genes from what all rounds have measured.

    Parameters
    ----------
    pairs, exact_P, top
        As of `next_draw`.
    draws
        All rounds, in turn.
    """
    known_P, unbiased_P = draws[0].drawn_P, np.zeros(len(exact_P))
    left_G = np.ones(pairs.n_genes)
    rounds: list[_Round] = []
    weights: list[np.ndarray] = []
    for draw in draws[1:]:
        one = _Round.of(pairs, exact_P, known_P, draw)
        weight_G = left_G if draw is draws[-1] else left_G * one.share_G
        unbiased_P += weight_G[pairs.gene_P] * one.difference_P
        rounds.append(one)
        weights.append(weight_G)
        left_G = left_G - weight_G
        known_P = known_P | draw.drawn_P
    model = fitted(pairs, exact_P, known_P)
    is_whole_G = pairs.by_gene(~known_P) == 0
    return Estimated(
        np.where(known_P, exact_P, model.value_P),
        np.where(is_whole_G[pairs.gene_P], exact_P, unbiased_P),
        np.where(is_whole_G[pairs.gene_P], 0.0, _variance(pairs, rounds, weights)),
        model,
        _correlation(pairs, exact_P, known_P, model),
        ranked(pairs, exact_P, known_P, model, top),
    )


class _Round(NamedTuple):
    """The difference estimate of a round."""

    difference_P: np.ndarray
    """Their mean is the estimate of a gene."""
    spread_P: np.ndarray
    """What each pair adds to the variance of their sum, for a noise of 1."""
    share_G: np.ndarray
    """Weight beside the last round, of what weight is left, as both variances are expected before this round."""
    noise: float
    """What drawn pairs show of the noise, all genes together; what of it is common to a gene cancels in its sum."""
    freedom: float
    """How many pairs show it."""

    @classmethod
    def of(cls, pairs: Pairs, exact_P: np.ndarray, known_P: np.ndarray, draw: Draw) -> "_Round":
        chance_P, model = draw.chance_P, fitted(pairs, exact_P, known_P)
        error_P = np.divide(exact_P - model.value_P, chance_P, out=np.zeros(len(exact_P)), where=draw.drawn_P)
        odds_P = np.divide(1 - chance_P, chance_P, out=np.zeros(len(chance_P)), where=chance_P > 0)
        spread_P = odds_P * model.scale_C[pairs.cell_P] ** 2
        has_chances_G = pairs.by_gene((chance_P == 0) & ~known_P) == 0
        spread_G = pairs.by_gene(pairs.weight_P**2 * spread_P)
        in_last_G = _spread_of_few(pairs, model.scale_C[pairs.cell_P] * pairs.weight_P * ~known_P)
        both_G = spread_G + in_last_G
        share_G = np.divide(in_last_G, both_G, out=np.zeros(len(both_G)), where=has_chances_G & (both_G > 0))
        difference_P = np.where(known_P, exact_P, model.value_P + error_P)
        noise, freedom = _noise(pairs, error_P, draw, spread_G, model)
        return cls(difference_P, spread_P, share_G, noise, freedom)


def _noise(pairs: Pairs, error_P: np.ndarray, draw: Draw, spread_G: np.ndarray, model: Fitted) -> tuple[float, float]:
    """Return the noise that drawn pairs show, and how many they are; those that were sure to be drawn tell nothing.

    A mean over genes, by their numbers of pairs. Drawn to each other gene by gene, as limma does, variances of one or
    two errors with heavy tails look more different than they are, and intervals hold 97 to 99.9 %.
    """
    by_chance_P = draw.drawn_P & (draw.chance_P < 1 - 1e-9)
    n_G = pairs.by_gene(by_chance_P) * (spread_G > 0)
    if not n_G.any():
        return model.noise, 1.0
    shown_G = pairs.by_gene(np.where(by_chance_P, (1 - draw.chance_P) * (pairs.weight_P * error_P) ** 2, 0.0))
    shown_G *= model.noise / (model.noise + model.gene_variance_G)
    ratio_G = np.divide(shown_G, spread_G, out=np.zeros(len(n_G)), where=n_G > 0)
    return float(np.average(ratio_G, weights=n_G)), float(n_G.sum())


def _spread_of_few(pairs: Pairs, size_P: np.ndarray) -> np.ndarray:
    """Return the variance of a sum, for a noise of 1, of which a pass a gene is drawn by size."""
    return np.asarray(np.maximum(pairs.by_gene(size_P) ** 2 - pairs.by_gene(size_P**2), 0.0))


def _variance(pairs: Pairs, rounds: Sequence[_Round], weights: Sequence[np.ndarray]) -> np.ndarray:
    """Return what each pair adds to the variance, widened by Student's t; see `Estimated.variance_P`."""
    variance_P = np.zeros(len(pairs.gene_P))
    for one, weight_G in zip(rounds, weights, strict=True):
        wider = (student.ppf(0.975, one.freedom) / Z) ** 2
        variance_P += wider * one.noise * (weight_G**2)[pairs.gene_P] * one.spread_P
    return variance_P


def _correlation(pairs: Pairs, exact_P: np.ndarray, known_P: np.ndarray, model: Fitted) -> float:
    """Correlate estimates with exact values within genes, both in units of the cell's scale, over what is known."""
    gene_K = pairs.gene_P[known_P]
    n_G = np.maximum(np.bincount(gene_K, minlength=pairs.n_genes), 1)
    within = []
    for values_P in (pairs.estimate_P, exact_P):
        of_K = values_P[known_P] / model.scale_C[pairs.cell_P[known_P]]
        within.append(of_K - (np.bincount(gene_K, of_K, pairs.n_genes) / n_G)[gene_K])
    lengths = np.linalg.norm(within[0]) * np.linalg.norm(within[1])
    return float(within[0] @ within[1] / lengths) if lengths > 0 else float("nan")
