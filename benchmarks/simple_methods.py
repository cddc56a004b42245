"""Memory and time of the simple methods that need most of it, on more cells than a data set for a benchmark has.

Cells are drawn with replacement, and their counts anew around the old ones (Poisson), over their most detected genes;
one in five is a test cell. Each method runs in a process of its own, once as it is and once fitted on all training
cells; what is said is the process's most memory less what it held before.

python benchmarks/simple_methods.py FILE.h5ad [--cells 200000] [--genes 2000] [--label cell_type] [--rounds 100]
    # memory does not depend on the rounds of boosting, so few of them tell it sooner
"""

import argparse
import multiprocessing
import resource
import time
from multiprocessing.connection import Connection

import anndata as ad
import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from geneformer_repro.finetuning import baselines
from geneformer_repro.finetuning.kinds import classes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("--cells", type=int, default=200_000)
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--label", default="cell_type")
    parser.add_argument("--rounds", type=int, default=baselines._BOOSTING["max_iter"])
    parser.add_argument("--methods", nargs="+", default=[""], help="only those whose names begin so")
    options = parser.parse_args()
    baselines._BOOSTING["max_iter"] = options.rounds
    adata = ad.read_h5ad(options.file)
    detected = np.argsort(-np.asarray((adata.X > 0).sum(axis=0)).ravel(), kind="stable")[: options.genes]
    source, codes = csr_matrix(adata.X[:, detected]), pd.factorize(adata.obs[options.label], sort=True)[0]
    rng = np.random.default_rng(0)
    rows = rng.integers(len(codes), size=options.cells)
    counts = csr_matrix(source[rows], dtype=np.float32)
    counts.data = rng.poisson(counts.data).astype(np.float32)
    counts.eliminate_zeros()
    print(f"{options.cells:,} cells, {options.genes:,} genes, {counts.nnz / options.cells:.0f} counts a cell, "
          f"{codes.max() + 1} classes")  # fmt: skip
    make = baselines.on_few_genes(classes._boosted_class)
    ways = {
        "nearest neighbours": classes.CLASS_METHODS["nearest neighbours, PCA of counts"],
        "gradient boosting": classes.CLASS_METHODS["gradient boosting, counts"],
        "gradient boosting, all training cells": classes._probabilities("expression", make),
    }
    features = baselines.Features(counts, csr_matrix((options.cells, 1)), embedding=np.zeros((options.cells, 1)))
    assert features.expression is not None
    chosen = {name: one for name, one in ways.items() if name.startswith(tuple(options.methods))}
    for name, method in chosen.items():
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("fork").Process(target=run, args=(theirs, method, features, codes[rows]))
        process.start()
        seconds, gigabytes, accuracy = ours.recv()
        process.join()
        print(f"{name}: {seconds:.0f} s, {gigabytes:.2f} GB, accuracy {accuracy:.4f}", flush=True)


def run(to: Connection, method: baselines.MethodOrNone, features: baselines.Features, codes: np.ndarray) -> None:
    """Fit and ask; send seconds, memory and the share that is right."""
    test = np.arange(len(codes)) % 5 == 0
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    given = np.flatnonzero(~test), codes[~test], codes.max() + 1, np.flatnonzero(test), 0
    found = method(features, *given)
    assert found is not None
    seconds, most = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    to.send((seconds, (most - before) / 2**20, (found.argmax(axis=1) == codes[test]).mean()))


if __name__ == "__main__":
    main()
