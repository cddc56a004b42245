"""Cells/s of cell vectors: ours, and stock BERT over padded batches of cells sorted by length.

Stock: `BertForMaskedLM(output_hidden_states=True)`, 100 cells a batch, longest first, mean over the genes, as the
published package embeds. It makes all logits: 100 cells of 2,048 tokens take 20 GB of them, so that on a small machine
`--batch` must be less. Both read the block before the last, in float32, on the same cells.

python benchmarks/embedding.py CELLS     # V1-10M; CELLS a Parquet file of V1 token lists, such as the 500 cells of
                                         # Genecorpus-30M that NVIDIA's BioNeMo ships, or a folder written by `tokenize`
"""

import argparse
import contextlib
import io
import statistics

import numpy as np
import torch
from _side_by_side import add_json_option, alternate, chosen_cells, in_fresh_process, keep, machine, report
from transformers import BertForMaskedLM

import geneformer_repro as gf
from geneformer_repro.model import MaskedGeneModel, Size, bert_config

SETUP = (
    "from embedding import both_models, chosen_cells, ours, stock\n"
    "cells, batch = chosen_cells(sys.argv[1], int(sys.argv[2])), int(sys.argv[3])\n"
    "checkpoint, theirs = both_models(cells, sys.argv[4])"
)


def both_models(cells: gf.TokenizedDataset, size: Size) -> tuple[gf.Checkpoint, BertForMaskedLM]:
    """Return the same random network, ours and stock."""
    config = bert_config(size, cells.vocabulary)
    torch.manual_seed(0)
    checkpoint = gf.Checkpoint(MaskedGeneModel(config).eval(), cells.vocabulary)
    theirs = BertForMaskedLM(config).eval().to(device())
    theirs.load_state_dict(checkpoint.model.state_dict())
    return checkpoint, theirs


def ours(checkpoint: gf.Checkpoint, cells: gf.TokenizedDataset) -> np.ndarray:
    """Embed cells."""
    with contextlib.redirect_stderr(io.StringIO()):
        return np.asarray(gf.embed(checkpoint, cells).X)


def device() -> torch.device:
    """Where both compute."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def stock(model: BertForMaskedLM, cells: gf.TokenizedDataset, batch: int) -> np.ndarray:
    """Embed cells, padded to the longest of their batch; every layer and all logits are computed."""
    order = np.argsort(-cells.lengths, kind="stable")
    vectors = np.empty((len(cells), model.config.hidden_size), dtype=np.float32)
    with torch.no_grad():
        for rows in (order[start : start + batch] for start in range(0, len(cells), batch)):
            lengths = torch.as_tensor(cells.lengths[rows])
            ids = torch.nn.utils.rnn.pad_sequence([torch.as_tensor(cells[row]) for row in rows], batch_first=True)
            real, ids, lengths = (
                one.to(device()) for one in (torch.arange(ids.shape[1]) < lengths[:, None], ids, lengths)
            )
            hidden = model(ids, real.long(), output_hidden_states=True).hidden_states[-2]
            vectors[rows] = ((hidden * real[..., None]).sum(1) / lengths[:, None]).cpu().numpy()
    return vectors


def main() -> None:
    """Embed the same cells with both in turn; then each alone, for its memory."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("cells")
    parser.add_argument("--size", default="V1-10M")
    parser.add_argument("--n-cells", type=int, default=100)
    parser.add_argument("--batch", type=int, default=100, help="cells of a stock batch (default %(default)s)")
    parser.add_argument("--runs", type=int, default=5)
    add_json_option(parser)
    options = parser.parse_args()
    cells = chosen_cells(options.cells, options.n_cells)
    checkpoint, theirs = both_models(cells, options.size)
    seconds = alternate(lambda: ours(checkpoint, cells), lambda: stock(theirs, cells, options.batch), runs=options.runs)
    print(f"{machine()}, {device().type}")
    report(
        f"{options.size}, float32, {len(cells)} cells of {statistics.median(cells.lengths):,.0f} tokens (median)",
        seconds,
        amount=len(cells),
        unit="cells",
    )
    difference = np.abs(ours(checkpoint, cells) - stock(theirs, cells, options.batch)).max()
    print(f"  largest difference of a vector {difference:.1e}")
    memory = {}
    for name, work in {"ours": "ours(checkpoint, cells)", "stock": "stock(theirs, cells, batch)"}.items():
        if device().type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            ours(checkpoint, cells) if name == "ours" else stock(theirs, cells, options.batch)
            memory[name] = torch.cuda.max_memory_allocated() / 2**30
            print(f"  memory of {name}: {memory[name]:.2f} GB of the GPU, with what stays there")
        else:
            arguments = (options.cells, str(options.n_cells), str(options.batch), options.size)
            found = in_fresh_process(SETUP, work, *arguments, sample=True)
            memory[name] = (found.peak - found.baseline) / 2**30
            print(f"  memory of {name}: {memory[name]:.2f} GB beyond models and libraries")
    keep(
        options.json,
        f"embeddings, {options.size}, float32, {cells.lengths.min()} to {cells.lengths.max()} tokens",
        unit="cells/s",
        ours=[len(cells) / one for one in seconds["ours"]],
        stock=[len(cells) / one for one in seconds["stock"]],
        memory_gb=memory["ours"],
        stock_memory_gb=memory["stock"],
    )


if __name__ == "__main__":
    main()
