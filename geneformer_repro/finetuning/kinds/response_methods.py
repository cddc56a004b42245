"""What is said of a pair of sample and drug without a network: means, ridge, trees, the most alike drug, ablations.

Networks of drug response are seldom better than means, and none was found to beat tuned trees for new samples or drugs
(DrEval), so none of these is left out. Plain means of samples and drugs are what others publish beside; where screens
have gaps a method may be above them just by telling a sensitive sample from one that met the potent drugs, so effects
fitted together stand there as well. Methods that look at features learn what is left of the responses when the mean
effects are taken off that training rows tell of the tested ones (`mean_effects.shared_effects`); what they add is what
expression and chemistry tell beyond who it is. A sample and a drug are looked at by their principal components, fitted
on training samples and drugs, so that pairs × genes are never in memory: rows are joined in blocks, or drawn.

Ridge on components side by side ("⊕") is additive: it can tell a sensitive sample and a potent drug, not which drug for
which sample. Beside it stands one with their products ("×"), whose weights are a matrix. The penalty is chosen by inner
folds that leave out what is new in the test: samples, drugs, or pairs.

Ablations are of gradient boosting: without drug or expression, and with the rows of one of them permuted among samples
or drugs, which leaves its distribution as it is and takes away its meaning. A permuted fingerprint still tells a drug
of the training rows from others: where drugs are known, what is lost by it is what alike drugs share.

Shapes: N training rows, M test rows, S samples, D drugs, F columns, K inner folds.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.decomposition import PCA
from sklearn.ensemble import HistGradientBoostingRegressor, RandomForestRegressor
from sklearn.linear_model import Ridge
from threadpoolctl import threadpool_limits

from geneformer_repro.finetuning.baselines import Method, PairInputs, components
from geneformer_repro.finetuning.splits import nested_draw
from geneformer_repro.mean_effects import Effect, MeanEffects, shared_effects

logger = logging.getLogger(__name__)

MEAN_EFFECTS = "mean effects"
"""The method whose prediction is taken off in normalised scores."""
_ROWS_OF_NOTHING = 1.0
"""Rows of an average response that each sample and drug counts beside its own when effects are fitted together."""
_COMPONENTS, _CROSSED = 50, 20
"""Components of samples and of drugs; so many of each are multiplied with each other."""
_PENALTIES = np.logspace(-5, 2, num=8)
"""Of squared weights of columns whose largest standard deviation is 1, beside the mean squared error."""
_FOLDS = 5
_AT_ONCE = 10_000
"""Rows whose columns are in memory together."""
_BOOSTED_ROWS, _FOREST_ROWS = 50_000, 20_000
"""Of more training rows so many are drawn, of each drug its share."""
_BOOSTING = {"max_iter": 200, "max_leaf_nodes": 16, "max_features": 0.3, "early_stopping": False}
"""For new lines of CCLE the correlation beyond mean effects is 0.43 so, with 100 trees of 6 leaves 0.34, with twice as
many trees at half the rate again 0.43; learning the responses themselves in place of what is left gives 0.43, too."""
_FOREST = {"n_estimators": 100, "min_samples_leaf": 5, "max_features": 1 / 3, "n_jobs": 1}

Fit = Callable[[Callable[[np.ndarray], np.ndarray], np.ndarray, np.ndarray, np.ndarray, int], Any]


def _who(inputs: PairInputs, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return numbers of sample, drug and tissue of some rows."""
    samples, drugs = inputs.pairs[rows].T
    return samples, drugs, inputs.tissues[samples]


# Means


def _means(*effects: Effect) -> Method:
    """Return the method that predicts means; one of tissues needs that some are known."""

    def fit_predict(
        inputs: PairInputs,
        train: np.ndarray,
        values_N: np.ndarray,
        test: np.ndarray,
        seed: int,  # noqa: ARG001
    ) -> np.ndarray | None:
        """Take the means of training rows."""
        if any(effect.startswith("tissue") for effect in effects) and not inputs.tissues.any():
            return None
        return MeanEffects.fit(values_N, *_who(inputs, train), effects=effects).predict(*_who(inputs, test))

    return fit_predict


def _fitted_together(
    inputs: PairInputs,
    train: np.ndarray,
    values_N: np.ndarray,
    test: np.ndarray,
    seed: int,  # noqa: ARG001
) -> np.ndarray:
    """Predict what sample and drug add, by least squares: plain means mix them up where not all met all."""
    n_samples, n_drugs = 1 + inputs.pairs.max(axis=0)

    def indicators(rows: np.ndarray) -> csr_matrix:
        columns = inputs.pairs[rows] + [0, n_samples]
        ones = np.ones(columns.size)
        return csr_matrix((ones, columns.ravel(), np.arange(0, columns.size + 1, 2)), (len(rows), n_samples + n_drugs))

    if not len(train):
        return np.zeros(len(test))
    fitted = Ridge(alpha=_ROWS_OF_NOTHING, solver="sparse_cg", tol=1e-6).fit(indicators(train), values_N)
    predicted: np.ndarray = fitted.predict(indicators(test))
    return predicted


# What is looked at


def _expression(inputs: PairInputs, train: np.ndarray, seed: int, *, of: str = "samples") -> np.ndarray | None:
    """Return the components of all samples, (S, F), from those of training rows."""
    values = getattr(inputs, of)
    if values is None:
        return None
    of_train = np.unique(inputs.pairs[train, 0])
    _, of_all = components(values, of_train, np.arange(len(values)), seed, most=_COMPONENTS)
    return _largest_is_one(of_all, of_train)


def _chemistry(inputs: PairInputs, train: np.ndarray, seed: int) -> np.ndarray:
    """Return the components of all drugs, (D, F), from those of training rows; bits are not scaled by their rarity.

    Where nothing is known of drugs but who they are, that: a column for each.
    """
    values = np.eye(1 + inputs.pairs[:, 1].max()) if inputs.drugs is None else inputs.drugs
    of_train = np.unique(inputs.pairs[train, 1])
    if not np.isin(values, (0, 1)).all():
        _, of_all = components(values, of_train, np.arange(len(values)), seed, most=_COMPONENTS)
        return _largest_is_one(of_all, of_train)
    n = min(_COMPONENTS, len(of_train) - 1, values.shape[1] - 1)
    if n < 1:
        return np.zeros((len(values), 0))
    pca = PCA(n, svd_solver="arpack", random_state=seed).fit(values[of_train].astype(np.float64))
    return _largest_is_one(pca.transform(values.astype(np.float64)), of_train)


def _largest_is_one(columns: np.ndarray, of_train: np.ndarray) -> np.ndarray:
    return columns / (columns[of_train].std(axis=0).max(initial=0) or 1)


@dataclass(frozen=True, eq=False)
class _Columns:
    """Columns of pairs, joined when they are asked for."""

    samples_SF: np.ndarray
    drugs_DF: np.ndarray
    pairs: np.ndarray
    crossed: bool = False
    """Whether products of the first columns of both stand beside them."""

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        samples, drugs = self.samples_SF[self.pairs[rows, 0]], self.drugs_DF[self.pairs[rows, 1]]
        if not self.crossed:
            return np.concatenate([samples, drugs], axis=1)
        products = samples[:, :_CROSSED, None] * drugs[:, None, :_CROSSED]
        return np.concatenate([samples, drugs, products.reshape(len(rows), math.prod(products.shape[1:]))], axis=1)


Look = Callable[[PairInputs, np.ndarray, int], _Columns | None]


def _both(
    inputs: PairInputs, train: np.ndarray, seed: int, *, of: str = "samples", crossed: bool = False
) -> _Columns | None:
    """Look at samples and drugs."""
    samples = _expression(inputs, train, seed, of=of)
    return None if samples is None else _Columns(samples, _chemistry(inputs, train, seed), inputs.pairs, crossed)


def _ablated(
    inputs: PairInputs, train: np.ndarray, seed: int, *, what: Literal["expression", "drug"], permuted: bool = False
) -> _Columns | None:
    """Look at both, of which one is left out, or permuted among all samples or all drugs."""
    columns = _both(inputs, train, seed)
    if columns is None:
        return None
    values = columns.samples_SF if what == "expression" else columns.drugs_DF
    values = np.random.default_rng(seed).permutation(values) if permuted else values[:, :0]
    return replace(columns, samples_SF=values) if what == "expression" else replace(columns, drugs_DF=values)


def _on(look: Look, fit: Fit) -> Method:
    """Return the method that learns from columns what mean effects leave."""

    def fit_predict(
        inputs: PairInputs, train: np.ndarray, values_N: np.ndarray, test: np.ndarray, seed: int
    ) -> np.ndarray | None:
        """Fit on training rows, whose responses these are, and predict the test rows."""
        of_train, of_test = _who(inputs, train), _who(inputs, test)
        effects = shared_effects(*of_train[:2], *of_test[:2])
        means = MeanEffects.fit(values_N, *of_train, effects=effects)
        columns, predicted = look(inputs, train, seed) if len(train) else None, means.predict(*of_test)
        if columns is None:
            return None
        left_N = values_N - means.predict(*of_train)
        ask = fit(columns, train, left_N, _what_is_new(effects, inputs.pairs[train], seed), seed)
        return predicted + np.concatenate([ask(columns(rows)) for rows in _blocks(test)])

    return fit_predict


def _blocks(rows: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, max(1, len(rows)), _AT_ONCE):
        yield rows[start : start + _AT_ONCE]


def _what_is_new(effects: Sequence[Effect], pairs: np.ndarray, seed: int) -> np.ndarray:
    """Number inner folds of training rows that leave out samples, drugs, or pairs, whichever is new in the test."""
    new = [number for number, effect in enumerate(("sample", "drug")) if effect not in effects]
    units = np.unique(pairs[:, new[0]], return_inverse=True)[1] if new else np.arange(len(pairs))
    of_unit = np.random.default_rng(seed).permutation(units.max(initial=0) + 1) % _FOLDS
    return of_unit[units]


# Ridge


def _ridge(
    columns: Callable[[np.ndarray], np.ndarray],
    train: np.ndarray,
    left_N: np.ndarray,
    fold_N: np.ndarray,
    seed: int,  # noqa: ARG001
) -> Callable[[np.ndarray], np.ndarray]:
    """Fit all rows under the penalty that inner folds choose, from sums of products of columns of each fold."""
    with threadpool_limits(1, "blas"):
        products_KFF = _products(columns, train, left_N, fold_N)
        total = products_KFF.sum(axis=0)
        there = [products for products in products_KFF if products[0, 0] and products[0, 0] < total[0, 0]]
        loss = [
            sum(_squared_error(products, _weights(total - products, penalty)) for products in there)
            for penalty in _PENALTIES
        ]
        weights_F = _weights(total, _PENALTIES[int(np.argmin(loss))])
    return lambda columns_MF: weights_F[0] + columns_MF @ weights_F[1:]


def _products(
    columns: Callable[[np.ndarray], np.ndarray], train: np.ndarray, left_N: np.ndarray, fold_N: np.ndarray
) -> np.ndarray:
    """Return products of a column of ones, the columns, and what is to be predicted, by fold, (K, F + 2, F + 2)."""
    n_columns = columns(train[:0]).shape[1]
    products_KFF = np.zeros((_FOLDS, n_columns + 2, n_columns + 2))
    for fold in range(_FOLDS):
        (members,) = np.nonzero(fold_N == fold)
        for block in _blocks(members):
            joined = np.column_stack([np.ones(len(block)), columns(train[block]), left_N[block]])
            products_KFF[fold] += joined.T @ joined
    return products_KFF


def _weights(products_FF: np.ndarray, penalty: float) -> np.ndarray:
    """Return the weights of the column of ones, which is not penalised, and of the others."""
    penalties = np.full(len(products_FF) - 1, penalty * products_FF[0, 0])
    penalties[0] = 0
    return np.linalg.solve(products_FF[:-1, :-1] + np.diag(penalties), products_FF[:-1, -1])


def _squared_error(products_FF: np.ndarray, weights_F: np.ndarray) -> float:
    signed_F = np.append(weights_F, -1)
    return float(signed_F @ products_FF @ signed_F)


# Trees


def _trees(
    columns: Callable[[np.ndarray], np.ndarray],
    train: np.ndarray,
    left_N: np.ndarray,
    fold_N: np.ndarray,  # noqa: ARG001
    seed: int,
    *,
    make: Callable[[tuple[int, int], int], Any],
    name: str,
    most: int,
) -> Callable[[np.ndarray], np.ndarray]:
    """Grow trees on at most so many rows."""
    chosen = np.arange(len(train))
    if len(train) > most:
        logger.info("%s: fitted on a random %d of the %d training pairs.", name, most, len(train))
        chosen = nested_draw(np.zeros(len(train)), chosen, most, np.random.default_rng(seed))
    columns_NF = columns(train[chosen])
    if not columns_NF.shape[1]:
        return lambda columns_MF: np.zeros(len(columns_MF))
    answer: Callable[[np.ndarray], np.ndarray] = make(columns_NF.shape, seed).fit(columns_NF, left_N[chosen]).predict
    return answer


def _boosting(shape: tuple[int, int], seed: int) -> HistGradientBoostingRegressor:
    leaf = max(1, min(20, shape[0] // 10))  # of few rows small ones: the usual 20 would leave ten rows undivided
    return HistGradientBoostingRegressor(**_BOOSTING, min_samples_leaf=leaf, random_state=seed)


def _forest(shape: tuple[int, int], seed: int) -> RandomForestRegressor:  # noqa: ARG001
    return RandomForestRegressor(**_FOREST, random_state=seed)


_BOOSTED = partial(_trees, make=_boosting, name="gradient boosting", most=_BOOSTED_ROWS)
_FORESTED = partial(_trees, make=_forest, name="random forest", most=_FOREST_ROWS)


# The most alike drug


def _nearest_drug(
    inputs: PairInputs,
    train: np.ndarray,
    values_N: np.ndarray,
    test: np.ndarray,
    seed: int,  # noqa: ARG001
) -> np.ndarray | None:
    """Predict the response of the sample to the most alike drug that it was given in training (Tanimoto).

    Of a sample without training rows, the mean of the training drug that is most alike: where it is the same, its own.
    """
    if inputs.drugs is None or not len(train):
        return None
    responses_SD = np.full((len(inputs.tissues), len(inputs.drugs)), np.nan)
    responses_SD[tuple(inputs.pairs[train].T)] = values_N
    of_train, predicted = np.unique(inputs.pairs[train, 1]), np.empty(len(test))
    means_D = np.nanmean(responses_SD[:, of_train], axis=0)
    samples, drugs = inputs.pairs[test].T
    for drug in np.unique(drugs):
        (rows,) = np.nonzero(drugs == drug)
        order = np.argsort(-tanimoto(inputs.drugs[[drug]], inputs.drugs[of_train])[0], kind="stable")
        given = responses_SD[samples[rows]][:, of_train[order]]
        first = np.isfinite(given).argmax(axis=1)
        of_sample = given[np.arange(len(rows)), first]
        predicted[rows] = np.where(np.isnan(of_sample), means_D[order[0]], of_sample)
    return predicted


def tanimoto(fingerprints: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return how alike drugs are, (drugs, others): shared bits by bits of either, 0 without any.

    Of numbers that are no bits the same of products, a · b / (a · a + b · b - a · b).
    """
    first, second = fingerprints.astype(np.float64), others.astype(np.float64)
    shared = first @ second.T
    either = (first**2).sum(axis=1)[:, None] + (second**2).sum(axis=1) - shared
    return np.divide(shared, either, out=np.zeros_like(shared), where=either > 0)


RESPONSE_METHODS: Mapping[str, Method] = {
    "overall mean": _means(),
    "tissue mean": _means("tissue"),
    "sample mean": _means("sample"),
    "drug mean": _means("drug"),
    "tissue × drug mean": _means("tissue_drug"),
    MEAN_EFFECTS: _means("sample", "drug"),
    "mean effects, fitted together": _fitted_together,
    "nearest drug": _nearest_drug,
    "ridge, PCA ⊕ drug": _on(_both, _ridge),
    "ridge, PCA × drug": _on(partial(_both, crossed=True), _ridge),
    "ridge, frozen embedding × drug": _on(partial(_both, of="embedding", crossed=True), _ridge),
    "random forest, PCA ⊕ drug": _on(_both, _FORESTED),
    "gradient boosting, PCA ⊕ drug": _on(_both, _BOOSTED),
    "gradient boosting, no drug": _on(partial(_ablated, what="drug"), _BOOSTED),
    "gradient boosting, no expression": _on(partial(_ablated, what="expression"), _BOOSTED),
    "gradient boosting, permuted drugs": _on(partial(_ablated, what="drug", permuted=True), _BOOSTED),
    "gradient boosting, permuted expression": _on(partial(_ablated, what="expression", permuted=True), _BOOSTED),
}
"""Name → ``fit_predict(pair_inputs, train, values, test, seed)``; "drug" stands for the numbers of the drug that are at
hand, such as its fingerprint, or who it is."""
