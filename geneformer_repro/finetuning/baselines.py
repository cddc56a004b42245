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
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_selection import SelectKBest
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.utils.sparsefuncs import mean_variance_axis

from geneformer_repro.finetuning.splits import nested_draw
from geneformer_repro.tokenizer.counts import log_normalise, rank_values
from geneformer_repro.tokenizer.dataset import TokenizedDataset
from geneformer_repro.tokenizer.matrices import dense
from geneformer_repro.tokenizer.measures import Values

logger = logging.getLogger(__name__)

Method: TypeAlias = Callable[..., np.ndarray | None]
Make: TypeAlias = Callable[[tuple[int, int], int], Any]

_VARIABLE_GENES, _COMPONENTS, _NEIGHBOURS = 2000, 50, 15
_USUAL, FAR = (0.01, 0.99), 5.0
"""Quantiles of a column between which its values are taken as they are, and standard deviations beyond which an outlier
in few rows is pulled back."""
_BOOSTED_GENES, BOOSTED_CELLS, _ASKED_AT_ONCE = 500, 50_000, 10_000
"""Trees need a dense matrix in double precision: 200 MB for so many genes and cells. More training cells are drawn from
(and the log says so); test cells are asked in blocks."""
_BOOSTING = {"max_iter": 100, "max_leaf_nodes": 6, "max_features": 0.3, "early_stopping": False}
"""100 rounds of trees with 31 leaves on 300 genes take three times as long and name one in a hundred fewer right."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Inputs:
    """What the methods know of each labelled row."""

    embedding: np.ndarray | None
    """Vectors from the model before fine-tuning; None where there are none."""

    @property
    def n_rows(self) -> int:
        """How many rows."""
        return len(self.embedding) if self.embedding is not None else 0

    @cached_property
    def nothing(self) -> np.ndarray:
        """One column that says nothing."""
        return np.zeros((self.n_rows, 1))


@dataclass(frozen=True, eq=False)
class Features(Inputs):
    """What the methods know of each labelled cell, a row each."""

    counts: csr_matrix | None
    """Raw counts, or values of bulk samples, cells × genes; None where they are not at hand."""
    ranks: csr_matrix | None
    """Rank values, from `rank_values`; None of samples that have no tokens."""
    values: Values = "counts"
    """What `counts` are."""
    covariates: pd.DataFrame | None = None
    """Clinical columns, such as age and stage; None where none were named."""

    @classmethod
    def of_samples(
        cls, measured: Any, *, embedding: np.ndarray | None = None, covariates: pd.DataFrame | None = None
    ) -> "Features":
        """Return what is known of samples whose expression, (samples, genes), is looked at as it is."""
        return cls(csr_matrix(measured), None, "zscore", covariates, embedding=embedding)

    @property
    def n_rows(self) -> int:
        """How many rows."""
        return next(known.shape[0] for known in (self.ranks, self.counts) if known is not None)

    @cached_property
    def expression(self) -> csr_matrix | None:
        """log1p of counts per 10,000, or of expression; or z-scores, and what is to be looked at as it is."""
        return None if self.counts is None else log_normalise(self.counts, self.values)


@dataclass(frozen=True, eq=False)
class GeneInputs(Inputs):
    """What the methods know of each labelled gene, a row each."""

    features: pd.DataFrame
    """From `gene_features`."""
    coexpression: np.ndarray
    """From `coexpression`."""
    random: np.ndarray
    """Random vectors: what a method makes of nothing."""

    @cached_property
    def numbers(self) -> np.ndarray:
        """The features as a matrix."""
        return self.features.to_numpy(dtype=np.float64)


@dataclass(frozen=True, eq=False)
class PatientInputs(Inputs):
    """What the methods know of each labelled patient, a row each; ``embedding`` is the mean vector of the cells."""

    pseudobulk: csr_matrix | None
    """log1p of counts per 10,000 of all cells together, or what stands for it; None where no expression is at hand."""
    composition: np.ndarray | None
    """Share of each cell type among the cells; None where no types are given."""


@dataclass(frozen=True, eq=False, kw_only=True)
class PairInputs:
    """What the methods know of pairs of a sample and a drug: each sample and each drug once, and who meets whom."""

    samples: np.ndarray | None
    """Expression, (samples, genes), on a scale on which differences mean the same everywhere; None where there is
    none."""
    drugs: np.ndarray | None
    """Fingerprints, or other numbers, (drugs, features); None where there are none."""
    pairs: np.ndarray
    """Number of the sample and of the drug of each row, (rows, 2)."""
    tissues: np.ndarray
    """Number of each sample's tissue, (samples,), 0 where none is known."""
    embedding: np.ndarray | None = None
    """Vectors of the samples from the model before fine-tuning, (samples, length); None where there are none."""

    def __post_init__(self) -> None:
        ends = [("samples", self.samples, 0), ("embedding", self.embedding, 0), ("drugs", self.drugs, 1)]
        ends.append(("tissues", self.tissues, 0))
        for name, table, column in ends:
            assert table is None or len(table) > self.pairs[:, column].max(initial=-1), name


def sample(strata: np.ndarray, most: int | None, seed: int) -> np.ndarray:
    """Choose rows to fit on, ascending: all, or of more than `most` so many, of each stratum its share."""
    rows = np.arange(len(strata))
    if most is None or len(rows) <= most:
        return rows
    logger.info("gradient boosting: fitted on a random %d of the %d training cells, classes by their shares.",
                most, len(rows))  # fmt: skip
    return nested_draw(strata, rows, most, np.random.default_rng(seed))


def asked_in_blocks(ask: Callable[[Any], np.ndarray], known: Any, rows: np.ndarray, most: int | None) -> np.ndarray:
    """Ask about rows, those of a method for `most` some at a time, which then need no large dense matrix."""
    size = len(rows) if most is None else _ASKED_AT_ONCE
    return np.concatenate([ask(known[rows[start : start + size]]) for start in range(0, len(rows), size)])


def fitted(make: Make, known: Any, target: np.ndarray, seed: int) -> Any:
    """Return what `make` makes for inputs of this shape, fitted to them."""
    with warnings.catch_warnings():  # what is not converged after so many iterations predicts as if it were
        warnings.simplefilter("ignore", ConvergenceWarning)
        return make(known.shape, seed).fit(known, target)


def nearest(neighbours: type, shape: tuple[int, int], seed: int) -> Any:
    """Neighbours among principal components; few training cells have few near ones."""

    def make(shape: tuple[int, int], seed: int) -> Any:  # noqa: ARG001
        return neighbours(min(_NEIGHBOURS, math.ceil(math.sqrt(shape[0]))), weights="distance")

    return on_components(make)(shape, seed)


def boosted(model: type, shape: tuple[int, int], seed: int) -> Any:
    """Trees; of few training cells with small leaves: the usual 20 would leave ten cells undivided."""
    return model(**_BOOSTING, min_samples_leaf=max(1, min(20, shape[0] // 10)), random_state=seed)


def on_few_genes(make: Make) -> Make:
    """Return what makes the same on the most variable genes, dense."""

    def of_few_genes(shape: tuple[int, int], seed: int) -> Any:
        dense = FunctionTransformer(csr_matrix.toarray, accept_sparse=True)
        return make_pipeline(_most_variable(_BOOSTED_GENES, shape), dense, make(shape, seed))

    return of_few_genes


def on_components(make: Make) -> Make:
    """Return what makes the same on principal components of the most variable genes, up to 50."""

    def of_components(shape: tuple[int, int], seed: int) -> Any:
        n_components = max(1, min(_COMPONENTS, shape[0] - 1, shape[1] - 1))
        components = PCA(n_components, svd_solver="arpack", random_state=seed)
        return make_pipeline(_most_variable(_VARIABLE_GENES, shape), components, make((shape[0], n_components), seed))

    return of_components


def _most_variable(n_genes: int, shape: tuple[int, int]) -> SelectKBest:
    return SelectKBest(_variances, k=min(n_genes, shape[1]))


def _variances(values: csr_matrix, _: np.ndarray) -> np.ndarray:
    return mean_variance_axis(values, axis=0)[1]


def components(
    values: Any, train: np.ndarray, test: np.ndarray, seed: int, *, most: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return up to `most` principal components of training rows, and the same of test rows, by falling variance.

    They are those of the most variable columns, as `standardised` returns them, and fitted on training rows alone.
    """
    of_train, of_test = standardised(values, train, test, _VARIABLE_GENES)
    n = min(most, min(of_train.shape) - 1)
    if n < 1:
        return of_train, of_test
    pca = PCA(n, svd_solver="arpack", random_state=seed).fit(of_train)
    return pca.transform(of_train), pca.transform(of_test)


def column_effects(values: np.ndarray, train: np.ndarray, told_NK: np.ndarray) -> np.ndarray:
    """Return what each column adds to what a linear method on `components` tells of its training rows, (P, K).

    By standard deviation of the column over these rows. A method that adds up principal components tells the sum of its
    weights of standardised columns; of all weights that do, these are the smallest, which are the method's own, since
    components lie among the rows.

    Parameters
    ----------
    values
        Rows × columns.
    train
        The rows that the method was fitted on.
    told_NK
        What it tells of each of them.

    Returns
    -------
    0 for columns that the method did not look at.
    """
    of_train, chosen = _standardised_rows(values[train], _VARIABLE_GENES)[:2]
    effects_PK = np.zeros((values.shape[1], told_NK.shape[1]))
    effects_PK[chosen] = np.linalg.pinv(of_train) @ (told_NK - told_NK.mean(axis=0))
    return effects_PK


def standardised(values: Any, train: np.ndarray, test: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Return columns that vary most over the training rows, of mean 0 and sd 1 there; what is missing is usual.

    Values are pulled into the range of 98 % of the training rows, and to five standard deviations.
    """
    of_train, chosen, (low, high), (mean, sd) = _standardised_rows(dense(values[train], np.float64), most)
    of_test = dense(values[test][:, chosen], np.float64).clip(low, high)
    return of_train, np.nan_to_num((of_test - mean) / sd).clip(-FAR, FAR)


_Ends = tuple[np.ndarray, np.ndarray]


def _standardised_rows(of_train: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray, _Ends, _Ends]:
    """Return training rows, which columns were chosen, and what of these is usual, and their mean and deviation."""
    of_train = of_train.astype(np.float64)
    of_train[:, np.isnan(of_train).all(axis=0)] = 0
    low, high = _usual(of_train)
    of_train = of_train.clip(low, high)
    spread = np.nanstd(of_train, axis=0)
    (varying,) = np.nonzero(spread > 1e-12)
    chosen = np.sort(varying[np.argsort(-spread[varying], kind="stable")[:most]])
    mean, sd = np.nanmean(of_train[:, chosen], axis=0), spread[chosen]
    scaled = np.nan_to_num((of_train[:, chosen] - mean) / sd).clip(-FAR, FAR)
    return scaled, chosen, (low[chosen], high[chosen]), (mean, sd)


def _usual(values_NP: np.ndarray) -> np.ndarray:
    """Return the ends of what is usual of each column, (2, P)."""
    ends_2P = np.quantile(values_NP, _USUAL, axis=0)
    gaps_P = np.isnan(ends_2P).any(axis=0)
    ends_2P[:, gaps_P] = np.nanquantile(values_NP[:, gaps_P], _USUAL, axis=0)  # five times as slow
    return ends_2P


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
    of what `log_normalise` makes of them (of the vocabulary's genes) over all cells. NaN where it is not defined, as
    the mean rank of a gene that no cell expresses.
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
        mean, sd = _moments(log_normalise(counts, cells.vocabulary.values)[:, genes], np.full(len(genes), len(cells)))
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
