"""What costs next to nothing and often wins: the methods every fine-tuned model is printed beside.

A method is a scikit-learn pipeline over one thing known of each cell (or gene), fitted as a whole on the training rows:
scaling, choice of genes and principal components too. It takes row numbers and gives probabilities or numbers; one on
counts gives None where these are not at hand.

A weak method would flatter the model beside it, so logistic regression was tuned by cross-validation within training
cells of Kang et al. (1,600 cells, 13 types) and of 7 sorted blood populations (2,700 cells). On log counts it names
0.877 and 0.959 of them right as they are, and 0.855 and 0.950 with each gene scaled to at most 1; on rank values 0.865
and 0.954 with genes scaled and C = 10, 0.856 and 0.955 as they are. Gradient boosting is the slowest, 10 to 16 s there;
it was set, for speed first, on the cells held out.

Memory is that of the sparse matrices: neighbours are found among principal components, a block of distances at a time,
and trees are grown on at most 50,000 training cells, since they want them dense (benchmarks/RESULTS.md).
"""

import logging
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix
from sklearn.decomposition import PCA
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_selection import SelectKBest
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import KFold
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, MaxAbsScaler, StandardScaler
from sklearn.utils.sparsefuncs import mean_variance_axis

from geneformer_repro.finetuning.splits import nested_draw
from geneformer_repro.tokenizer.counts import log_normalise, rank_values
from geneformer_repro.tokenizer.dataset import TokenizedDataset

logger = logging.getLogger(__name__)

Method: TypeAlias = Callable[..., np.ndarray]
MethodOrNone: TypeAlias = Callable[..., np.ndarray | None]
_Take: TypeAlias = Callable[[Any], Any]
_Make: TypeAlias = Callable[[tuple[int, int], int], Any]

_MAX_ITERATIONS = 2000
_ALPHAS = np.logspace(-2, 5, num=8)
_VARIABLE_GENES, _COMPONENTS, _NEIGHBOURS = 2000, 50, 15
_BOOSTED_GENES, _BOOSTED_CELLS, _ASKED_AT_ONCE = 500, 50_000, 10_000
"""Trees need a dense matrix in double precision: 200 MB for so many genes and cells. More training cells are drawn from
(and the log says so); test cells are asked in blocks."""
_BOOSTING = {"max_iter": 100, "max_leaf_nodes": 6, "max_features": 0.3, "early_stopping": False}
"""100 rounds of trees with 31 leaves on 300 genes take three times as long and name one in a hundred fewer right."""


@dataclass(frozen=True, eq=False)
class Features:
    """What the methods know of each labelled cell, a row each."""

    counts: csr_matrix | None
    """Raw counts, cells × genes; None where they are not at hand."""
    ranks: csr_matrix
    """Rank values, from `rank_values`."""
    embedding: np.ndarray
    """Vectors from the model before fine-tuning."""

    @cached_property
    def expression(self) -> csr_matrix | None:
        """log1p of counts per 10,000."""
        return None if self.counts is None else log_normalise(self.counts)


@dataclass(frozen=True, eq=False)
class GeneInputs:
    """What the methods know of each labelled gene, a row each."""

    features: pd.DataFrame
    """From `gene_features`."""
    coexpression: np.ndarray
    """From `coexpression`."""
    random: np.ndarray
    """Random vectors: what a method makes of nothing."""
    embedding: np.ndarray
    """Vectors from the model before fine-tuning."""


def _classes(take: _Take, make: _Make, *, most: int | None = None) -> Method:
    """Return the method that fits what `make` makes on what `take` takes, and gives probabilities.

    With `most`, it is fitted on so many training rows at most, of each class its share, and asked some rows at a time.
    """

    def fit_predict(
        inputs: Any, train: np.ndarray, codes: np.ndarray, n_classes: int, test: np.ndarray, seed: int
    ) -> np.ndarray:
        """Fit on some rows and predict others.

        Parameters
        ----------
        inputs
            `Features` of cells or `GeneInputs`.
        train, test
            Row numbers.
        codes
            Class of each training row, from 0; classes may be absent, and get probability 0.
        n_classes
            Columns of the result.
        seed
            Of what is random in the method.

        Returns
        -------
        Probabilities, test rows × classes.
        """
        known = take(inputs)
        chosen = _sample(codes, most, seed)
        model = _fitted(make if len(np.unique(codes)) > 1 else _majority, known[train[chosen]], codes[chosen], seed)
        probabilities = np.zeros((len(test), n_classes))
        probabilities[:, model.classes_] = _in_blocks(model.predict_proba, known, test, most)
        return probabilities

    return fit_predict


def _numbers(take: _Take, make: _Make, *, most: int | None = None) -> Method:
    """Return the method that fits what `make` makes on what `take` takes, and gives numbers; `most` as for classes."""

    def fit_predict(inputs: Any, train: np.ndarray, values: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
        """Fit on some rows and predict a number for each test row."""
        known = take(inputs)
        chosen = _sample(np.zeros(len(train)), most, seed)
        model = _fitted(make, known[train[chosen]], values[chosen], seed)
        return _in_blocks(model.predict, known, test, most)

    return fit_predict


def _sample(strata: np.ndarray, most: int | None, seed: int) -> np.ndarray:
    """Choose rows to fit on, ascending: all, or of more than `most` so many, of each stratum its share."""
    rows = np.arange(len(strata))
    if most is None or len(rows) <= most:
        return rows
    logger.info("gradient boosting: fitted on a random %d of the %d training cells, classes by their shares.",
                most, len(rows))  # fmt: skip
    return nested_draw(strata, rows, most, np.random.default_rng(seed))


def _in_blocks(ask: Callable[[Any], np.ndarray], known: Any, rows: np.ndarray, most: int | None) -> np.ndarray:
    """Ask about rows, those of a method for `most` some at a time, which then need no large dense matrix."""
    size = len(rows) if most is None else _ASKED_AT_ONCE
    return np.concatenate([ask(known[rows[start : start + size]]) for start in range(0, len(rows), size)])


def _on_counts(method: Callable[..., Method], make: _Make, *, most: int | None = None) -> MethodOrNone:
    """Return the method on log counts, which gives None where counts are not at hand."""
    fit_predict = method(_expression, make, most=most)

    def fit_predict_or_none(features: Features, *given: Any) -> np.ndarray | None:
        return None if features.counts is None else fit_predict(features, *given)

    return fit_predict_or_none


def _fitted(make: _Make, known: Any, target: np.ndarray, seed: int) -> Any:
    with warnings.catch_warnings():  # what is not converged after so many iterations predicts as if it were
        warnings.simplefilter("ignore", ConvergenceWarning)
        return make(known.shape, seed).fit(known, target)


def _nothing(inputs: Features | GeneInputs) -> np.ndarray:
    return np.zeros((len(inputs.embedding), 1))


def _majority(shape: tuple[int, int], seed: int) -> Any:  # noqa: ARG001
    return DummyClassifier(strategy="prior")


def _mean(shape: tuple[int, int], seed: int) -> Any:  # noqa: ARG001
    return DummyRegressor()


def _logistic_regression(shape: tuple[int, int], seed: int) -> Any:  # noqa: ARG001
    return LogisticRegression(max_iter=_MAX_ITERATIONS)


def _standardised_logistic_regression(shape: tuple[int, int], seed: int) -> Any:
    return make_pipeline(_imputer(), StandardScaler(), _logistic_regression(shape, seed))


def _imputer() -> SimpleImputer:
    return SimpleImputer(strategy="median", keep_empty_features=True)


def _scaled_logistic_regression(shape: tuple[int, int], seed: int) -> Any:  # noqa: ARG001
    return make_pipeline(MaxAbsScaler(), LogisticRegression(C=10, max_iter=_MAX_ITERATIONS))


def _ridge(shape: tuple[int, int], seed: int) -> Any:
    """Five folds choose alpha: leaving one out takes 35 s for 2,700 cells, where this takes 5."""
    folds = KFold(min(5, shape[0]), shuffle=True, random_state=seed)
    return RidgeCV(_ALPHAS, cv=folds, scoring="neg_mean_squared_error")


def _scaled_ridge(shape: tuple[int, int], seed: int) -> Any:
    return make_pipeline(MaxAbsScaler(), _ridge(shape, seed))


def _standardised_ridge(shape: tuple[int, int], seed: int) -> Any:  # noqa: ARG001
    return make_pipeline(StandardScaler(), RidgeCV(_ALPHAS))


def _nearest(neighbours: type, shape: tuple[int, int], seed: int) -> Any:
    """Neighbours among principal components; few training cells have few near ones."""
    n_cells, n_genes = shape
    n_components = max(1, min(_COMPONENTS, n_cells - 1, n_genes - 1))
    return make_pipeline(
        _most_variable(_VARIABLE_GENES, shape),
        PCA(n_components, svd_solver="arpack", random_state=seed),
        neighbours(min(_NEIGHBOURS, math.ceil(math.sqrt(n_cells))), weights="distance"),
    )


def _nearest_class(shape: tuple[int, int], seed: int) -> Any:
    return _nearest(KNeighborsClassifier, shape, seed)


def _nearest_number(shape: tuple[int, int], seed: int) -> Any:
    return _nearest(KNeighborsRegressor, shape, seed)


def _boosted(model: type, shape: tuple[int, int], seed: int) -> Any:
    """Trees; of few training cells with small leaves: the usual 20 would leave ten cells undivided."""
    return model(**_BOOSTING, min_samples_leaf=max(1, min(20, shape[0] // 10)), random_state=seed)


def _boosted_class(shape: tuple[int, int], seed: int) -> Any:
    return _boosted(HistGradientBoostingClassifier, shape, seed)


def _boosted_number(shape: tuple[int, int], seed: int) -> Any:
    return _boosted(HistGradientBoostingRegressor, shape, seed)


def _boosted_gene_class(shape: tuple[int, int], seed: int) -> Any:
    """Imputed, since a feature that no training gene has makes scikit-learn 1.9's boosting fail."""
    return make_pipeline(_imputer(), _boosted_class(shape, seed))


def _on_few_genes(make: _Make) -> _Make:
    def of_few_genes(shape: tuple[int, int], seed: int) -> Any:
        dense = FunctionTransformer(csr_matrix.toarray, accept_sparse=True)
        return make_pipeline(_most_variable(_BOOSTED_GENES, shape), dense, make(shape, seed))

    return of_few_genes


def _most_variable(n_genes: int, shape: tuple[int, int]) -> SelectKBest:
    return SelectKBest(_variances, k=min(n_genes, shape[1]))


def _variances(values: csr_matrix, _: np.ndarray) -> np.ndarray:
    return mean_variance_axis(values, axis=0)[1]


def _expression(features: Features) -> csr_matrix | None:
    return features.expression


def _ranks(features: Features) -> csr_matrix:
    return features.ranks


def _embedding(inputs: Features | GeneInputs) -> np.ndarray:
    return inputs.embedding


def _gene_features(inputs: GeneInputs) -> np.ndarray:
    return inputs.features.to_numpy(dtype=np.float64)


def _coexpression(inputs: GeneInputs) -> np.ndarray:
    return inputs.coexpression


def _random(inputs: GeneInputs) -> np.ndarray:
    return inputs.random


CLASS_METHODS: Mapping[str, MethodOrNone] = {
    "majority class": _classes(_nothing, _majority),
    "logistic regression, counts": _on_counts(_classes, _logistic_regression),
    "logistic regression, rank values": _classes(_ranks, _scaled_logistic_regression),
    "nearest neighbours, PCA of counts": _on_counts(_classes, _nearest_class),
    "gradient boosting, counts": _on_counts(_classes, _on_few_genes(_boosted_class), most=_BOOSTED_CELLS),
    "logistic regression, frozen embedding": _classes(_embedding, _standardised_logistic_regression),
}
"""Name → ``fit_predict(features, train, codes, n_classes, test, seed)``, in the order of the table."""

NUMBER_METHODS: Mapping[str, MethodOrNone] = {
    "mean": _numbers(_nothing, _mean),
    "ridge, counts": _on_counts(_numbers, _ridge),
    "ridge, rank values": _numbers(_ranks, _scaled_ridge),
    "nearest neighbours, PCA of counts": _on_counts(_numbers, _nearest_number),
    "gradient boosting, counts": _on_counts(_numbers, _on_few_genes(_boosted_number), most=_BOOSTED_CELLS),
    "ridge, frozen embedding": _numbers(_embedding, _standardised_ridge),
}
"""Name → ``fit_predict(features, train, values, test, seed)``."""

GENE_METHODS: Mapping[str, Method] = {
    "majority class": _classes(_nothing, _majority),
    "logistic regression, gene features": _classes(_gene_features, _standardised_logistic_regression),
    "gradient boosting, gene features": _classes(_gene_features, _boosted_gene_class),
    "logistic regression, co-expression": _classes(_coexpression, _standardised_logistic_regression),
    "logistic regression, random vectors": _classes(_random, _standardised_logistic_regression),
    "logistic regression, frozen embedding": _classes(_embedding, _standardised_logistic_regression),
}
"""Name → ``fit_predict(gene_inputs, train, codes, n_classes, test, seed)``."""


def gene_features(cells: TokenizedDataset, counts: csr_matrix | None, genes: np.ndarray) -> pd.DataFrame:
    """Return what is known of genes without a model.

    Parameters
    ----------
    cells
        Tokenised cells.
    counts
        Their raw counts, a column a gene of the vocabulary (`vocabulary_counts`); None where they are not at hand.
    genes
        Positions in ``cells.vocabulary.gene_ids``.

    Returns
    -------
    A row a gene: ``detection_rate`` (share of cells with its token), ``mean_rank_value`` and ``sd_rank_value`` over
    these cells; ``log_median`` where the vocabulary has medians; with counts ``mean_expression`` and ``cv_expression``,
    of log1p of counts per 10,000 (of the vocabulary's genes) over all cells. NaN where it is not defined, as the mean
    rank of a gene that no cell expresses.
    """
    ranks = rank_values(cells)[:, genes]
    rank_mean, rank_sd = _moments(ranks, ranks.getnnz(axis=0))
    columns = {
        "detection_rate": ranks.getnnz(axis=0) / len(cells),
        "mean_rank_value": rank_mean,
        "sd_rank_value": rank_sd,
    }
    if cells.vocabulary.medians is not None:
        columns["log_median"] = np.log(cells.vocabulary.medians[genes])
    if counts is not None:
        assert counts.shape == (len(cells), len(cells.vocabulary))
        mean, sd = _moments(log_normalise(counts)[:, genes], np.full(len(genes), len(cells)))
        columns |= {"mean_expression": mean, "cv_expression": _ratio(sd, mean)}
    return pd.DataFrame(columns, index=np.asarray(cells.vocabulary.gene_ids, dtype=object)[genes])


def _moments(values: csr_matrix, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of each column over `n` of its cells, which hold all that is not 0."""
    values = values.astype(np.float64)
    mean, mean_square = (_ratio(np.asarray(part.sum(axis=0)).ravel(), n) for part in (values, values.power(2)))
    return mean, np.sqrt(np.maximum(mean_square - mean**2, 0))


def _ratio(upper: np.ndarray, lower: np.ndarray) -> np.ndarray:
    return np.divide(upper, lower, out=np.full(len(upper), np.nan), where=lower > 0)


def coexpression(cells: TokenizedDataset, genes: np.ndarray, n: int = 32, *, seed: int) -> np.ndarray:
    """Return a vector for each gene such that genes which vary together over the cells have similar ones.

    Rank values of each gene are standardised over the cells; the vectors are the genes' loadings on the principal
    components, scaled such that a product of two approximates the genes' correlation.

    Parameters
    ----------
    cells
        Tokenised cells.
    genes
        Positions in ``cells.vocabulary.gene_ids``.
    n
        Length of the vectors; less, the number of cells or genes less one, where there are no more than n of these.
    seed
        Of the decomposition's start.
    """
    ranks = StandardScaler(with_mean=False).fit_transform(rank_values(cells)[:, genes].astype(np.float64))
    found = PCA(min(n, min(ranks.shape) - 1), svd_solver="arpack", random_state=seed).fit(ranks)
    return found.components_.T * (found.singular_values_ / math.sqrt(len(cells)))
