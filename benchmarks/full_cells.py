"""Seconds of putting 200 absent genes, one by one, at the front of full cells, which lose their last gene.

All variants are compared with one and the same cut cell, so they go through the model together. To compare with another
version, run its package: PYTHONPATH=OTHER python benchmarks/full_cells.py

python benchmarks/full_cells.py [--genes 64 256] [--size tiny] [--device cpu]
"""

import argparse
import os
import time

import datasets
import numpy as np
import torch
from _side_by_side import machine

import geneformer_repro as gf
from geneformer_repro.model import MaskedGeneModel, bert_config
from geneformer_repro.tokenizer.vocabulary import Vocabulary

N_GENES, N_CELLS = 5000, 2
ABSENT = [f"ENSG{i:011d}" for i in range(4500, 4700)]


def full_cells(n_genes: int) -> gf.TokenizedDataset:
    """Make cells of as many genes as a cell may have."""
    tokens = {"<pad>": 0, "<mask>": 1} | {f"ENSG{i:011d}": i for i in range(2, N_GENES + 2)}
    rng = np.random.default_rng(0)
    rows = {
        "input_ids": [rng.permutation(np.arange(2, 4002))[:n_genes].tolist() for _ in range(N_CELLS)],
        "length": [n_genes] * N_CELLS,
        "cell": [str(i) for i in range(N_CELLS)],
    }
    spec = {"fingerprint": "made up", "cell_names_unique": True, "failed": [], "n_cells": N_CELLS, "sources": []}
    return gf.TokenizedDataset(
        datasets.Dataset.from_dict(rows), Vocabulary.from_tokens(tokens, max_length=n_genes), spec
    )


def main() -> None:
    """Screen full cells of each length."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--genes", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    os.environ["TQDM_DISABLE"] = "1"
    print(machine())
    for n_genes in arguments.genes:
        cells = full_cells(n_genes)
        torch.manual_seed(0)
        model = MaskedGeneModel(bert_config(arguments.size, cells.vocabulary)).eval()
        checkpoint = gf.Checkpoint(model, cells.vocabulary, name="made up")
        seconds = []
        for _ in range(1 + arguments.runs):  # the first warms up
            began = time.process_time() if arguments.device == "cpu" else time.perf_counter()
            gf.perturb(checkpoint, cells, gf.Overexpression(ABSENT, combine="singly"), device=arguments.device)
            seconds.append((time.process_time() if arguments.device == "cpu" else time.perf_counter()) - began)
        shown = " / ".join(f"{one:.2f}" for one in sorted(seconds[1:]))
        clock = "CPU" if arguments.device == "cpu" else "wall"
        print(f"{n_genes} genes, {N_CELLS * len(ABSENT)} variants: {shown} s ({clock})")


if __name__ == "__main__":
    main()
