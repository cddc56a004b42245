"""What costs next to nothing and often wins: the methods every fine-tuned model is printed beside."""

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix, diags_array, vstack
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler, StandardScaler

from geneformer_repro.errors import InputError
from geneformer_repro.tokenizer.readers import CountSource

_MAX_ITERATIONS = 2000


def majority(labels: np.ndarray, n_test: int) -> np.ndarray:
    """Predict the commonest class of the training cells for every test cell."""
    return (
        DummyClassifier(strategy="most_frequent").fit(np.zeros((len(labels), 1)), labels).predict(np.zeros((n_test, 1)))
    )


def logistic_regression_on_counts(train: csr_matrix, labels: np.ndarray, test: csr_matrix) -> np.ndarray:
    """Predict with L2 logistic regression on log1p of counts per 10,000, each gene scaled to at most 1.

    Parameters
    ----------
    train, test
        Raw counts, cells × genes.
    labels
        Class of each training cell.
    """
    model = make_pipeline(MaxAbsScaler(), LogisticRegression(max_iter=_MAX_ITERATIONS))
    return model.fit(log_normalise(train), labels).predict(log_normalise(test))


def logistic_regression_on_embedding(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Predict with L2 logistic regression on cell vectors, each dimension standardised."""
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=_MAX_ITERATIONS))
    return model.fit(train, labels).predict(test)


def log_normalise(counts: csr_matrix) -> csr_matrix:
    """Return log1p of counts per 10,000; an empty cell stays empty."""
    totals = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
    return csr_matrix(diags_array(1e4 / np.maximum(totals, 1.0)) @ counts).log1p()


def counts_of(source: CountSource, cell_names: np.ndarray) -> csr_matrix:
    """Return the raw counts of these cells, in this order.

    Raises
    ------
    InputError
        A cell is not in the source.
    """
    where = source.obs.index.astype(str).get_indexer(pd.Index(cell_names))
    if (where < 0).any():
        missing = cell_names[where < 0]
        raise InputError(
            f"{source.name}: {len(missing)} of {len(cell_names)} cells of the dataset are not in it (first: "
            f"{missing[0]!r}); it is not where the dataset came from."
        )
    return csr_matrix(vstack([block.counts for block in source.blocks()], format="csr"))[where]
