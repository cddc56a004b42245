"""Time and memory of attention added up over cells, beside a forward, eager attention, and two published ways.

In turn, on the same cells and the same random V1-10M: `embed` to the last layer; our sums with some sources a cell, and
with all pairs; stock BERT with ``output_attentions=True`` in eager attention; that, then all layers stacked, averaged
and scattered into a genes × genes matrix (geneRNIB's way); and a double loop in Python over the pairs of one layer
(Geneformer-NetworkMedicine's way, timed on a part of a matrix and taken to go on as fast). Seconds are those of the
processor, since machines are shared.

python benchmarks/network_speed.py CELLS    # CELLS a Parquet file of V1 token lists, such as the 500 cells of
                                            # Genecorpus-30M that NVIDIA's BioNeMo ships
python benchmarks/network_speed.py --memory # made-up cells, 700 sources × 8,000 targets; a process for each size
"""

import argparse
import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import datasets
import numpy as np
import torch
from _side_by_side import chosen_cells, in_fresh_process, machine
from transformers import BertForMaskedLM

import geneformer_repro as gf
from geneformer_repro.in_silico.networks.attention_sums import HeadWeights, PairSums, Roles, add_attention, calibrate
from geneformer_repro.model import MaskedGeneModel, Size, bert_config
from geneformer_repro.reading import Reader
from geneformer_repro.tokenizer.vocabulary import Vocabulary

SOURCES_A_CELL = 150
LOOPED = 300
"""Queries and keys of the part of a matrix that the double loop goes over."""
SETUP = (
    "from network_speed import made_up, network\n"
    "import geneformer_repro as gf\n"
    "network(*made_up('tiny', 10, 50, 100)), gf.embed(*made_up('tiny', 10, 50, 100))\n"  # libraries, compiled code
    "checkpoint, cells = made_up(sys.argv[1], *map(int, sys.argv[2:5]))"
)

A_CELL = "network(checkpoint, cells, max_tokens=2048)"
SHORT = {"20 sources": "network(checkpoint, cells, n_sources=20)"}
EMBED = "gf.embed(checkpoint, cells, layer=0, max_tokens=4096)"


def model_of(vocabulary: Vocabulary, size: Size = "V1-10M") -> gf.Checkpoint:
    """Return a network with random weights."""
    torch.manual_seed(0)
    return gf.Checkpoint(MaskedGeneModel(bert_config(size, vocabulary)).eval(), vocabulary)


def roles_of(cells: gf.TokenizedDataset, sources_a_cell: int | None) -> Roles:
    """Return roles in which every expressed gene is a target, and about so many of a cell are sources."""
    present = np.unique(np.concatenate([cells[i] for i in range(len(cells))]))
    row, column = np.full((2, cells.vocabulary.size), -1)
    column[present] = np.arange(len(present))
    share = 1.0 if sources_a_cell is None else sources_a_cell / cells.lengths.mean()
    sources = present[np.random.default_rng(0).random(len(present)) < share]
    row[sources] = np.arange(len(sources))
    return Roles(row, column)


class Ours:
    """Sums of attention, calibrated on two of the cells beforehand."""

    def __init__(self, checkpoint: gf.Checkpoint, cells: gf.TokenizedDataset, sources_a_cell: int | None) -> None:
        self._reader, self._cells = Reader.of(checkpoint, layer=0, max_tokens=4096, device="cpu"), cells
        self.roles = roles_of(cells, sources_a_cell)
        config = checkpoint.token_model.config
        chosen = np.ones((config.num_hidden_layers, config.num_attention_heads), dtype=bool)
        found = calibrate(
            self._reader, cells, np.arange(2), [0, 0], n_states=1, chosen_NH=chosen, gene_of_token=self.roles.column,
            n_bins=int(np.sqrt(cells.lengths.max())) + 1,
        )  # fmt: skip
        self._heads, self.sums = HeadWeights(chosen, found.places), PairSums(self.roles, torch.device("cpu"))

    def __call__(self) -> None:
        """Read all cells."""
        for batch in self._reader.batches(self._cells, np.arange(len(self._cells))):
            add_attention(self._reader, batch, self.roles, self._heads, self.sums)


class Eager:
    """Stock BERT that writes out every attention matrix, a cell at a time; and what others do with them."""

    def __init__(self, checkpoint: gf.Checkpoint, cells: gf.TokenizedDataset, roles: Roles) -> None:
        config = checkpoint.token_model.config.__class__(**checkpoint.token_model.config.to_dict())
        config._attn_implementation = "eager"
        self._model, self._cells = BertForMaskedLM(config).eval(), cells
        self._model.load_state_dict(checkpoint.model.state_dict())
        self._column = {token: int(column) for token, column in enumerate(roles.column) if column >= 0}
        n_genes = len(self._column)
        self._sums, self._n = torch.zeros(n_genes, n_genes), torch.zeros(n_genes, n_genes)

    def attentions(self, i: int) -> tuple[torch.Tensor, ...]:
        """Return the attention of a cell, (1, heads, L, L) a layer, by the encoder alone."""
        with torch.no_grad():
            return self._model.bert(torch.from_numpy(self._cells[i])[None], output_attentions=True).attentions

    def alone(self) -> None:
        """Read all cells, and drop what came of them."""
        for i in range(len(self._cells)):
            self.attentions(i)

    def stacked_and_scattered(self) -> None:
        """Read all cells with head and hidden states, average stacked layers and heads, scatter into genes × genes.

        As geneRNIB does, first and last token left out, -1 for a token without a gene and all.
        """
        for i in range(len(self._cells)):
            ids = torch.from_numpy(self._cells[i])[None]
            with torch.no_grad():
                output = self._model(ids, output_attentions=True, output_hidden_states=True)
            mean = torch.stack(output.attentions).mean(dim=(0, 2))[:, 1:-1, 1:-1]
            del output
            genes = torch.tensor([[self._column.get(token.item(), -1) for token in ids[0, 1:-1]]])
            known, width = genes != -1, mean.shape[1]
            row, column = genes[..., None].expand(-1, -1, width)[known], genes[:, None].expand(-1, width, -1)[known]
            self._sums.index_put_((row, column), mean[known], accumulate=True)
            self._n.index_put_((row, column), torch.ones_like(mean[known]), accumulate=True)

    def looped(self) -> float:
        """Return processor seconds of a double loop over the pairs of a layer, all heads, taken from a part of them.

        As Geneformer-NetworkMedicine does: both directions of each pair, both counted, so that each comes twice.
        """
        heads = self.attentions(0)[0][0].numpy()
        genes = np.array([self._column[token] for token in self._cells[0].tolist()])
        sums, n = np.zeros((2, len(self._column), len(self._column)))
        began = time.process_time()
        for i in range(LOOPED):
            for j in range(LOOPED):
                one, other = genes[i], genes[j]
                forth = back = 0
                for head in range(len(heads)):
                    forth += heads[head, i, j]
                    back += heads[head, j, i]
                sums[one, other] += forth / len(heads)
                sums[other, one] += back / len(heads)
                n[one, other] += 1.0
                n[other, one] += 1.0
        return (time.process_time() - began) * (len(genes) / LOOPED) ** 2


def in_turn(works: Mapping[str, Callable[[], object]], *, runs: int) -> dict[str, list[float]]:
    """Return processor seconds of each run of all, in turn, after one uncounted run of each."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for run in range(runs + 1):
        for name, work in works.items():
            began = time.process_time()
            work()
            if run:
                seconds[name].append(time.process_time() - began)
    return seconds


def times(path: str, n_cells: int, runs: int) -> None:
    """Print seconds a cell of all ways, and their ratios pair by pair."""
    cells = chosen_cells(path, 200)
    full = np.flatnonzero(cells.lengths == cells.lengths.max())[:n_cells]
    cells = cells.select(full)
    checkpoint = model_of(cells.vocabulary)
    some, every = Ours(checkpoint, cells, SOURCES_A_CELL), Ours(checkpoint, cells, None)
    eager = Eager(checkpoint, cells, every.roles)

    def embed() -> None:
        with contextlib.redirect_stderr(io.StringIO()):
            gf.embed(checkpoint, cells, layer=0, max_tokens=4096)

    works = {
        "embed, to the last layer": embed,
        f"sums, about {SOURCES_A_CELL} sources a cell": some,
        "sums, all pairs": every,
        "eager, output_attentions": eager.alone,
        "eager, stacked and scattered": eager.stacked_and_scattered,
    }
    seconds = in_turn(works, runs=runs)
    in_cells = [int((some.roles.row[cells[i]] >= 0).sum()) for i in range(len(cells))]
    print(machine())
    print(f"V1-10M, {len(cells)} cells of {int(cells.lengths.max()):,} tokens, {np.mean(in_cells):.0f} sources a cell")
    print(f"sums of {some.roles.shape} and {every.roles.shape} genes; CPU seconds a cell, min, median, max of {runs}")
    for name, found in seconds.items():
        of_cell = sorted(second / len(cells) for second in found)
        print(f"  {name:<34} {of_cell[0]:8.3f} {statistics.median(of_cell):8.3f} {of_cell[-1]:8.3f}")
    looped = eager.looped()
    print(f"  double loop, one layer of a cell   {looped:8.1f}  (from {LOOPED}² pairs; beside the forward)")
    forward, ours, pairs, _, scattered = seconds.values()
    for name, of, to in (
        ("sums / embed", ours, forward),
        ("scattered / sums", scattered, ours),
        ("scattered / sums of all pairs", scattered, pairs),
    ):
        found = sorted(a / b for a, b in zip(of, to, strict=True))
        print(f"  {name:<34} {found[0]:8.2f} {statistics.median(found):8.2f} {found[-1]:8.2f} ×")
    n_layers = checkpoint.token_model.config.num_hidden_layers
    a_cell = statistics.median(ours) / len(cells)
    print(f"  {n_layers} layers looped over / sums            {n_layers * looped / a_cell:8.0f} ×")


# Memory


def made_up(size: Size, n_cells: int, n_tokens: int, n_genes: int) -> tuple[gf.Checkpoint, gf.TokenizedDataset]:
    """Return a network and cells of random genes."""
    tokens = {"<pad>": 0, "<mask>": 1} | {f"ENSG{i:011d}": i for i in range(2, n_genes + 2)}
    vocabulary = Vocabulary.from_tokens(tokens, max_length=max(n_tokens, 2048))
    rng = np.random.default_rng(0)
    ids = (np.sort(rng.permutation(n_genes)[:n_tokens]) + 2 for _ in range(n_cells))
    table = datasets.Dataset.from_dict(
        {"input_ids": list(ids), "length": [n_tokens] * n_cells, "cell": [str(i) for i in range(n_cells)]}
    )
    spec = {"fingerprint": size, "cell_names_unique": True, "failed": [], "n_cells": n_cells, "sources": []}
    return model_of(vocabulary, size), gf.TokenizedDataset(table, vocabulary, spec)


def network(
    checkpoint: gf.Checkpoint, cells: gf.TokenizedDataset, *, n_sources: int = 700, max_tokens: int | None = None
) -> None:
    """Make a network of all genes by some of them, from the first cell to the last edge."""
    sources = list(cells.vocabulary.gene_ids[:n_sources])
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        options = {"calibration_cells": 10, "min_cells": 1, "device": "cpu", "max_tokens": max_tokens}
        gf.gene_network(checkpoint, cells, sources=sources, out=Path(folder) / "net", **options)


def memory() -> None:
    """Print the peak above model and libraries, of networks of more and more cells, and of embeddings beside them."""
    print(machine())
    for size, n_cells, n_tokens, works in (
        ("V1-10M", 40, 2048, {"network": "network(checkpoint, cells)", "a cell at a time": A_CELL, "embed": EMBED}),
        ("V1-10M", 100, 96, SHORT),
        ("V1-10M", 1_000, 96, SHORT),
        ("V1-10M", 10_000, 96, SHORT),
    ):
        for name, work in works.items():
            found = in_fresh_process(SETUP, work, size, str(n_cells), str(n_tokens), "8000", sample=True)
            peak = (found.peak - found.baseline) / 1e9
            print(f"  {name:<16} {size}, {n_cells:,} cells of {n_tokens:,} tokens: {peak:.3f} GB", flush=True)


def main() -> None:
    """Times beside others, or memory."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("cells", nargs="?")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--n-cells", type=int, default=4)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    if options.memory:
        memory()
    if options.cells:
        times(options.cells, options.n_cells, options.runs)


if __name__ == "__main__":
    main()
