"""What costs next to nothing and often wins: the methods every fine-tuned model is printed beside."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix, diags_array, vstack
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler, StandardScaler

from geneformer_repro.errors import InputError
from geneformer_repro.tokenizer.corpus import is_unchanged
from geneformer_repro.tokenizer.dataset import SOURCE, TokenizedDataset
from geneformer_repro.tokenizer.genes import reconcile
from geneformer_repro.tokenizer.readers import CountSource, open_counts
from geneformer_repro.tokenizer.vocabulary import Vocabulary

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)

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
    wanted = pd.Index(cell_names)
    place = wanted.get_indexer(source.cell_names())
    missing = np.setdiff1d(np.arange(len(wanted)), place)
    if len(missing):
        raise InputError(
            f"{source.name}: {len(missing)} of {len(cell_names)} cells of the dataset are not in it (first: "
            f"{cell_names[missing[0]]!r}); it is not where the dataset came from."
        )
    rows = np.flatnonzero(place >= 0)
    blocks = [
        block.counts[rows[(rows >= block.start) & (rows < block.start + block.counts.shape[0])] - block.start]
        for block in source.blocks()
    ]
    return csr_matrix(vstack(blocks, format="csr"))[np.argsort(place[rows])]


def raw_counts(cells: TokenizedDataset, given: "AnnData | str | Path | None" = None) -> csr_matrix | None:
    """Return the raw counts of the cells, in their order; None if they are not at hand.

    Parameters
    ----------
    cells
        Tokenised cells.
    given
        Where their counts are, if not where `tokenize` found them.

    Returns
    -------
    A column a gene of the source; of several sources, a column a gene of the vocabulary.
    """
    sources = cells.spec["sources"]
    if given is not None:
        layer, gene_ids = sources[0].get("layer"), sources[0].get("gene_ids")
        return counts_of(open_counts(given, layer=layer, gene_ids=gene_ids), cells.cell_names)
    several = len(sources) > 1
    if not all(map(is_unchanged, sources)) or (several and cells.spec["options"]["n_orthologs"]):
        logger.warning(
            "No raw counts at hand (%s), so logistic regression on counts stays empty in the table; give counts=.",
            sources[0].get("path") or "the cells were tokenised in memory",
        )
        return None
    opened = [open_counts(source["path"], layer=source["layer"], gene_ids=source["gene_ids"]) for source in sources]
    if not several:
        return counts_of(opened[0], cells.cell_names)
    labels = cells.obs[SOURCE].to_numpy()
    names = np.array([name.removeprefix(f"{label}/") for name, label in zip(cells.cell_names, labels, strict=True)])
    rows = [np.flatnonzero(labels == source["name"]) for source in sources]
    found = [
        counts_of(source, names[where]) @ _to_vocabulary(source, cells.vocabulary)
        for source, where in zip(opened, rows, strict=True)
        if len(where)
    ]
    return csr_matrix(vstack(found, format="csr"))[np.argsort(np.concatenate(rows))]


def _to_vocabulary(source: CountSource, vocabulary: Vocabulary) -> csr_matrix:
    """Return a 0/1 matrix, genes of the source × genes of the vocabulary: a product sums what is one gene."""
    position = reconcile(source, vocabulary).position
    known = np.flatnonzero(position >= 0)
    ones = np.ones(len(known), dtype=np.float32)
    return csr_matrix((ones, (known, position[known])), shape=(len(position), len(vocabulary)))
