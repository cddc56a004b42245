"""A linear stand-in for a model around one cell: which genes, left out at random, take how much of the answer along.

Units (genes, or sets of them) are left out by random masks, at a rate that differs from mask to mask, and a ridge
regression with a free intercept is fitted to the answers, near masks counting more (LIME; Ribeiro et al. 2016). Such
weights always exist; whether they mean anything is measured: how much of the answers of masks that were held out they
explain, how alike fits on two halves of the masks are, and how much they vary between draws.

Shapes: K masks, U units, S numbers explained, J penalties.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

from geneformer_repro.arguments import require_at_least
from geneformer_repro.errors import InputError
from geneformer_repro.in_silico.explanations.answers import Answer, View, unchanged
from geneformer_repro.in_silico.explanations.attribution import LEAST_R2, LEAST_STABILITY
from geneformer_repro.in_silico.explanations.occlusions import Alter, ask
from geneformer_repro.reading import Reader
from geneformer_repro.tokenizer.vocabulary import Vocabulary

MOST_UNITS = 300
"""Genes a cell may have to be its own units: masks are in proportion to units."""
_PENALTIES = np.logspace(-6, 1, 15)
"""By what squared weights are multiplied, for a total weight of masks of 1."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a surrogate is fitted."""

    n_masks: int | None = None
    """Masks of a draw; None: 20 a unit, and at least 1,000."""
    most_dropped: float = 0.5
    """A mask leaves each unit out with a chance of its own, drawn between 0 and this."""
    sigma: float = 0.25
    """A mask that leaves out a share d of units has weight exp(−d² / σ²)."""
    n_draws: int = 5
    """Draws of masks, over which weights are averaged."""
    held_out: float = 0.2
    """Share of the masks on which R² is measured."""
    n_folds: int = 5
    """Folds of the other masks by which the penalty is chosen."""

    def __post_init__(self) -> None:
        require_at_least(n_masks=(self.n_masks, 20), n_draws=(self.n_draws, 1), n_folds=(self.n_folds, 2))
        for name, share in (("most_dropped", self.most_dropped), ("held_out", self.held_out)):
            if not 0 < share < 1:
                raise InputError(f"{name} is a share above 0 and below 1, found {share}.")
        if not self.sigma > 0:
            raise InputError(f"sigma must be above 0, found {self.sigma}.")

    def masks(self, n_units: int) -> int:
        """Return how many masks a draw has."""
        return max(1_000, 20 * n_units) if self.n_masks is None else self.n_masks

    def n_passes(self, n_units: int) -> int:
        """Return how often the model is asked: by every mask of every draw, and once of the whole."""
        return self.n_draws * self.masks(n_units) + 1


USUAL = Sampling()


class SurrogateFit(NamedTuple):
    """Weights of units, and how far they are to be believed."""

    weight_US: np.ndarray
    """How much of the answer a unit takes along, mean over draws."""
    sd_US: np.ndarray
    """Standard deviation over draws; NaN of a single one."""
    r2_S: np.ndarray
    """Share of the variance of held-out answers that is explained, mean over draws; NaN where answers never differ."""
    stability_S: np.ndarray
    """Spearman's correlation of the weights of fits on two halves of the masks, mean over draws."""
    before_S: np.ndarray
    """The answer where nothing is left out."""

    @property
    def is_ranked(self) -> np.ndarray:
        """Whether units may be ranked by their weights, (S,)."""
        return (self.r2_S >= LEAST_R2) & (self.stability_S >= LEAST_STABILITY)


def draw_masks(n_masks: int, n_units: int, rng: np.random.Generator, most_dropped: float = 0.5) -> np.ndarray:
    """Return random masks, (K, U): True for a unit that stays. At least one does.

    Parameters
    ----------
    n_masks, n_units
        K and U.
    rng
        Where chance comes from.
    most_dropped
        A mask's own chance of leaving a unit out is even between 0 and this.
    """
    rate_K1 = rng.uniform(0, most_dropped, size=(n_masks, 1))
    mask_KU = rng.random((n_masks, n_units)) >= rate_K1
    while len(empty := np.flatnonzero(~mask_KU.any(1))):
        mask_KU[empty] = rng.random((len(empty), n_units)) >= rate_K1[empty]
    return mask_KU


def nearness(mask_KU: np.ndarray, sigma: float) -> np.ndarray:
    """Return how much each mask counts, (K,): exp(−d² / σ²), d the share of units that it leaves out."""
    return np.exp(-(((~mask_KU).mean(1) / sigma) ** 2))


class Ridge(NamedTuple):
    """A weighted ridge regression; the intercept bears no penalty."""

    intercept_S: np.ndarray
    weight_US: np.ndarray

    def __call__(self, mask_KU: np.ndarray) -> np.ndarray:
        """Return what it says of masks, (K, S)."""
        return np.asarray(self.intercept_S + mask_KU @ self.weight_US)


def weighted_ridge(
    mask_KU: np.ndarray, answer_KS: np.ndarray, weight_K: np.ndarray, penalty_S: np.ndarray | float
) -> Ridge:
    """Fit Σ_k π_k (y_k − w₀ − Σ_u w_u z_ku)² + λ Σ_u w_u².

    Parameters
    ----------
    mask_KU, answer_KS, weight_K
        z, y and π.
    penalty_S
        λ, for each number or for all.
    """
    centred = _Centred.of(mask_KU, answer_KS, weight_K)
    penalty_JS = np.broadcast_to(np.asarray(penalty_S, dtype=float), (1, answer_KS.shape[1]))
    return centred.fit(penalty_JS[0])


@dataclass(frozen=True, eq=False)
class _Centred:
    """Masks and answers less their weighted means; solved for all penalties at once."""

    mean_U: np.ndarray
    mean_S: np.ndarray
    eigenvalue_U: np.ndarray
    eigenvector_UU: np.ndarray
    moment_US: np.ndarray
    """Of masks and answers, along the eigenvectors."""

    @classmethod
    def of(cls, mask_KU: np.ndarray, answer_KS: np.ndarray, weight_K: np.ndarray) -> "_Centred":
        share_K = weight_K / weight_K.sum()
        mean_U, mean_S = share_K @ mask_KU, share_K @ answer_KS
        offset_KU = mask_KU - mean_U
        weighted_UK = offset_KU.T * weight_K
        eigenvalue_U, eigenvector_UU = np.linalg.eigh(weighted_UK @ offset_KU)
        moment_US = eigenvector_UU.T @ (weighted_UK @ (answer_KS - mean_S))
        return cls(mean_U, mean_S, eigenvalue_U.clip(min=0), eigenvector_UU, moment_US)

    def fit(self, penalty_S: np.ndarray) -> Ridge:
        weight_US = self.eigenvector_UU @ (self.moment_US / (self.eigenvalue_U[:, None] + penalty_S))
        return Ridge(self.mean_S - self.mean_U @ weight_US, weight_US)


def surrogate(
    answers: Callable[[np.ndarray], np.ndarray],
    n_units: int,
    rng: np.random.Generator,
    *,
    sampling: Sampling = USUAL,
) -> SurrogateFit:
    """Fit a linear stand-in for any function of which of some units are there.

    Parameters
    ----------
    answers
        Takes masks (K, U), True for a unit that is there, and returns (K,) or (K, S).
    n_units
        U.
    rng
        Where masks come from; each draw has a stream of its own.
    sampling
        How many masks, and how they count.

    References
    ----------
    Ribeiro, Singh & Guestrin, KDD 2016, "Why should I trust you?": explaining the predictions of any classifier.
    """
    require_at_least(n_units=(n_units, 1))
    n_masks = sampling.masks(n_units)
    fits = []
    for of_draw in rng.spawn(sampling.n_draws):
        mask_KU = draw_masks(n_masks, n_units, of_draw, sampling.most_dropped)
        fits.append(_fit(mask_KU, _columns(answers(mask_KU)), of_draw, sampling))
    before_S = _columns(answers(np.ones((1, n_units), dtype=bool)))[0]
    weight_NUS, r2_NS, stability_NS = (np.stack(of) for of in zip(*fits, strict=True))
    alone = np.full_like(weight_NUS[0], np.nan)
    sd_US = weight_NUS.std(0, ddof=1) if len(fits) > 1 else alone
    return SurrogateFit(weight_NUS.mean(0), sd_US, r2_NS.mean(0), stability_NS.mean(0), before_S)


def _columns(answer: np.ndarray) -> np.ndarray:
    return np.asarray(answer, dtype=float).reshape(len(answer), -1)


def _fit(
    mask_KU: np.ndarray, answer_KS: np.ndarray, rng: np.random.Generator, sampling: Sampling
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return weights by all masks, R² on those held out of another fit, and how alike those of two halves are."""
    weight_K = nearness(mask_KU, sampling.sigma)
    order = rng.permutation(len(mask_KU))
    n_held = max(1, round(sampling.held_out * len(order)))
    held, seen = order[:n_held], order[n_held:]
    penalty_S = _chosen_penalty(mask_KU[seen], answer_KS[seen], weight_K[seen], sampling.n_folds)

    def fit(rows: np.ndarray) -> Ridge:
        total = weight_K[rows].sum()
        return weighted_ridge(mask_KU[rows], answer_KS[rows], weight_K[rows], penalty_S * total)

    r2_S = weighted_r2(answer_KS[held], fit(seen)(mask_KU[held]), weight_K[held])
    halves = [fit(half).weight_US for half in np.array_split(order, 2)]
    return fit(order).weight_US, r2_S, _spearmans(*halves)


def _chosen_penalty(mask_KU: np.ndarray, answer_KS: np.ndarray, weight_K: np.ndarray, n_folds: int) -> np.ndarray:
    """Return of each number the penalty, for a total weight of 1, that errs least on folds that were left out."""
    error_JS = np.zeros((len(_PENALTIES), answer_KS.shape[1]))
    fold_K = np.arange(len(mask_KU)) % n_folds
    for fold in range(n_folds):
        out = fold_K == fold
        centred = _Centred.of(mask_KU[~out], answer_KS[~out], weight_K[~out])
        along_KU = (mask_KU[out] - centred.mean_U) @ centred.eigenvector_UU
        total = weight_K[~out].sum()
        for j, penalty in enumerate(_PENALTIES):
            said_KS = along_KU @ (centred.moment_US / (centred.eigenvalue_U[:, None] + penalty * total))
            error_JS[j] += weight_K[out] @ (answer_KS[out] - centred.mean_S - said_KS) ** 2
    return _PENALTIES[error_JS.argmin(0)]


def weighted_r2(answer_KS: np.ndarray, said_KS: np.ndarray, weight_K: np.ndarray) -> np.ndarray:
    """Return the share of the weighted variance of answers that is explained, (S,); NaN where they do not differ."""
    mean_S = weight_K @ answer_KS / weight_K.sum()
    all_S, left_S = weight_K @ (answer_KS - mean_S) ** 2, weight_K @ (answer_KS - said_KS) ** 2
    differs_S = np.ptp(answer_KS, axis=0) > 0
    return np.asarray(1 - np.divide(left_S, all_S, out=np.full_like(all_S, np.nan), where=differs_S))


def _spearmans(one_US: np.ndarray, other_US: np.ndarray) -> np.ndarray:
    """Return the rank correlation of each column, (S,); NaN where one is constant."""
    ranks = [rankdata(weights_US, axis=0) for weights_US in (one_US, other_US)]
    one, other = (rank_US - rank_US.mean(0) for rank_US in ranks)
    size_S = np.sqrt((one**2).sum(0) * (other**2).sum(0))
    return np.divide((one * other).sum(0), size_S, out=np.full_like(size_S, np.nan), where=size_S > 0)


# Of cells


def surrogates(
    reader: Reader,
    answer: Answer,
    cells: Sequence[np.ndarray],
    vocabulary: Vocabulary,
    operator: Alter,
    rngs: Sequence[np.random.Generator],
    show: Callable[[int], object] = lambda n: None,
    *,
    groups: Mapping[str, np.ndarray] | None = None,
    sampling: Sampling = USUAL,
) -> list[SurrogateFit]:
    """Fit a surrogate to each cell.

    Parameters
    ----------
    reader, answer, cells, vocabulary, operator, show, groups
        As of `occlusions`. A gene of several groups is there as long as one of them is; genes of none always are.
    rngs
        Where the masks of each cell come from, so that they do not depend on which cells are explained together.
    sampling
        How many masks, and how they count.

    Returns
    -------
    Fits with a row a gene, or a group; NaN for the gene that is asked about, and for a group of which the cell has no
    other gene.

    Raises
    ------
    InputError
        A cell has more genes than `MOST_UNITS`, and there are no groups.
    """
    require_few_units(cells, vocabulary, groups)
    return [
        _of_cell(reader, answer, unchanged(cell, vocabulary, answer), operator, rng, show, groups, sampling)
        for cell, rng in zip(cells, rngs, strict=True)
    ]


def require_few_units(
    cells: Sequence[np.ndarray], vocabulary: Vocabulary, groups: Mapping[str, np.ndarray] | None = None
) -> None:
    """Raise if cells have too many genes, or there are too many groups, for a surrogate."""
    if groups is not None:
        if len(groups) > MOST_UNITS:
            raise InputError(
                f"A surrogate has at most {MOST_UNITS} units, and {len(groups)} sets of genes were given. Give fewer."
            )
        return
    longest = max((int((vocabulary.genes_of(cell) >= 0).sum()) for cell in cells), default=0)
    if longest > MOST_UNITS:
        raise InputError(
            f"A surrogate needs masks in proportion to its units, and a cell has {longest} genes (at most "
            f"{MOST_UNITS}). Name sets of genes, or modules of a gene network, with sets=; or use hide, or "
            "integrated_gradients."
        )


def _of_cell(
    reader: Reader,
    answer: Answer,
    view: View,
    operator: Alter,
    rng: np.random.Generator,
    show: Callable[[int], object],
    groups: Mapping[str, np.ndarray] | None,
    sampling: Sampling,
) -> SurrogateFit:
    has_UG = _units(view, groups)
    there = np.flatnonzero(has_UG.any(1))
    is_free_G = ~has_UG.any(0)

    def views(mask_KU: np.ndarray) -> Iterator[View]:
        for mask_U in mask_KU:
            gone = np.flatnonzero(~(has_UG[there][mask_U].any(0) | is_free_G))
            yield operator(view, gone) if len(gone) else view

    def answers(mask_KU: np.ndarray) -> np.ndarray:
        return ask(reader, answer, views(mask_KU), show=show)

    n_units, width = len(has_UG), len(answer.names)
    value_US, sd_US = np.full((2, n_units, width), np.nan)
    if not len(there):
        [before_S] = ask(reader, answer, [view], show=show)
        none_S = np.full(width, np.nan)
        return SurrogateFit(value_US, sd_US, none_S, none_S, before_S)
    fit = surrogate(answers, len(there), rng, sampling=sampling)
    value_US[there], sd_US[there] = fit.weight_US, fit.sd_US
    return fit._replace(weight_US=value_US, sd_US=sd_US)


def _units(view: View, groups: Mapping[str, np.ndarray] | None) -> np.ndarray:
    """Return which genes of a cell each unit has, (U, G), without the one that is asked about."""
    genes_G = view.ids_L[view.margin : view.margin + view.n_genes]
    if groups is None:
        has_UG = np.eye(len(genes_G), dtype=bool)
    else:
        has_UG = np.stack([np.isin(genes_G, ids) for ids in groups.values()])
    if view.asked >= 0:
        has_UG[:, view.asked - view.margin] = False
    return has_UG
