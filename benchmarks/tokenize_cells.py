"""Cells/s from .h5ad to a saved dataset: ours, and a faithful stock version.

Stock: argsort per cell, Python lists, `Dataset.from_dict` and `map`.

python benchmarks/tokenize_cells.py [file.h5ad]    # default: the 700 cells that ship with scanpy, repeated ten times
"""

import argparse
import contextlib
import io
import tempfile
from pathlib import Path

import anndata as ad
import datasets
import numpy as np
from _side_by_side import alternate, machine, peak_memory_gb, report
from scipy.sparse import csr_matrix

import geneformer_repro as gf


def stock(path: Path, vocabulary: gf.Vocabulary, out: Path) -> None:
    """Tokenise as the published package does: whole file in memory, a sort and a list a cell."""
    adata = ad.read_h5ad(path)
    known = [i for i, gene in enumerate(adata.var_names) if gene in vocabulary.position]
    genes = np.array([vocabulary.position[adata.var_names[i]] for i in known])
    n_counts = adata.obs["n_counts"].to_numpy()
    rows = []
    for start in range(0, adata.n_obs, 512):
        block = csr_matrix(
            adata[start : start + 512, known].X / n_counts[start : start + 512, None] * 1e4 / vocabulary.medians[genes]
        )
        rows += [vocabulary.tokens[genes][block[i].indices][np.argsort(-block[i].data)] for i in range(block.shape[0])]
    dataset = datasets.Dataset.from_dict({"input_ids": [row.tolist() for row in rows]})
    cls, eos = vocabulary.special_tokens["<cls>"], vocabulary.special_tokens["<eos>"]

    def finish(row: dict) -> dict:
        ids = [cls, *row["input_ids"][: vocabulary.max_length - 2], eos]
        return {"input_ids": ids, "length": len(ids)}

    dataset.map(finish).save_to_disk(str(out))


def main() -> None:
    """Make the file, run both in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", nargs="?", type=Path)
    given = parser.parse_args().file
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        path = given or Path(folder) / "cells.h5ad"
        if given is None:
            adata = ad.concat([gf.datasets.pbmc700()] * 10, index_unique="-")
            adata.write_h5ad(path)
        vocabulary = gf.Vocabulary.fit(path)
        n_cells = ad.read_h5ad(path, backed="r").n_obs
        ours_out, stock_out = Path(folder) / "ours", Path(folder) / "stock"
        seconds = alternate(
            lambda: gf.tokenize(path, vocabulary, out=ours_out, overwrite=True),
            lambda: stock(path, vocabulary, stock_out),
        )
        ours, theirs = gf.TokenizedDataset.open(ours_out), datasets.load_from_disk(str(stock_out))
        same = sum(set(ours[i]) == set(theirs[i]["input_ids"]) for i in range(0, n_cells, 97))
    print(machine())
    report(f"h5ad → saved dataset, {n_cells} cells", seconds, amount=n_cells, unit="cells")
    print(
        f"  same genes in {same} of {len(range(0, n_cells, 97))} cells looked at; peak memory of both "
        f"{peak_memory_gb():.2f} GB"
    )


if __name__ == "__main__":
    main()
