"""Variants/s of a deletion screen: exact and to first order, both in bfloat16 too, and a faithful stock version.

Stock: one cell at a time; `Dataset.map` makes the variants, padded `BertForMaskedLM(output_hidden_states=True)` runs
them 100 at a time, and each value is read from the device by itself, as in the published perturber. All measure the
movement of every gene's deletion towards two states, V1-10M with the published vocabulary's 25,426 tokens.

python benchmarks/perturbation.py tokens.parquet --genes 400            # two CPU cores: about ten minutes
python benchmarks/perturbation.py tokens.parquet --genes 2048 --device cuda
python benchmarks/perturbation.py --size V2-104M --genes 4096 --device cuda    # made-up cells

`tokens.parquet` has a column input_ids of V1 tokens; without it cells are made up.
"""

import argparse
import contextlib
import io
import os
import statistics

import datasets
import numpy as np
import torch
from _side_by_side import add_json_option, chosen_cells, in_turn, keep, machine, rates, ratio
from scipy.stats import spearmanr
from transformers import BertForMaskedLM

import geneformer_repro as gf
from geneformer_repro.model import MaskedGeneModel, bert_config, flops
from geneformer_repro.processes import peak_memory_gb
from geneformer_repro.tokenizer.vocabulary import Vocabulary
from geneformer_repro.training.log import peak_flops

N_GENES = 25_424
CELLS_ESTIMATED = 32
"""Cells of a first-order screen, whose time is given a cell: of one, opening and closing would be most."""


class Stock:
    """The published way, with what it needs."""

    def __init__(self, model: BertForMaskedLM, states: np.ndarray, device: str) -> None:
        self.model, self.device = model.to(device).eval(), device
        self.states = torch.as_tensor(states, device=device)
        self.layer = model.config.num_hidden_layers - 1

    def hidden(self, ids: torch.Tensor) -> torch.Tensor:
        """All layers and the head run; one layer is kept."""
        ids = ids.to(self.device)
        return self.model(ids, torch.ones_like(ids), output_hidden_states=True).hidden_states[self.layer]

    def shifts(self, hidden: torch.Tensor) -> torch.Tensor:
        """Cosine similarity of the mean vector to each state."""
        return torch.cosine_similarity(hidden.mean(-2)[..., None, :], self.states, dim=-1)

    def screen(self, cell: np.ndarray, batch_size: int = 100, n_variants: int | None = None) -> list[float]:
        """Delete each gene, or the first of them; return the movement towards the second state."""
        gone = list(range(n_variants or len(cell)))
        variants = datasets.Dataset.from_dict({"input_ids": [cell.tolist()] * len(gone), "gone": gone})
        variants = variants.map(
            lambda row: {"input_ids": row["input_ids"][: row["gone"]] + row["input_ids"][row["gone"] + 1 :]}
        )
        with torch.no_grad():
            before = self.shifts(self.hidden(torch.as_tensor(cell)[None])[0])
            values = []
            for start in range(0, len(gone), batch_size):
                ids = torch.as_tensor(variants[start : start + batch_size]["input_ids"])
                values += [(one - before)[1].item() for one in self.shifts(self.hidden(ids))]
        return values


def made_up(size: str, n_genes: int) -> gf.TokenizedDataset:
    """Cells of random genes, for lengths that no real cell at hand has."""
    tokens = {"<pad>": 0, "<mask>": 1} | {f"ENSG{i:011d}": i for i in range(2, N_GENES + 2)}
    vocabulary = Vocabulary.from_tokens(tokens, max_length=max(n_genes, 2048))
    rng = np.random.default_rng(0)
    ids = [rng.permutation(np.arange(2, N_GENES + 2))[:n_genes].tolist() for _ in range(CELLS_ESTIMATED)]
    table = datasets.Dataset.from_dict(
        {"input_ids": ids, "length": [n_genes] * CELLS_ESTIMATED, "cell": [str(i) for i in range(CELLS_ESTIMATED)]}
    )
    spec = {"fingerprint": size, "cell_names_unique": True, "failed": [], "n_cells": CELLS_ESTIMATED, "sources": []}
    return gf.TokenizedDataset(table, vocabulary, spec)


def cut(cells: gf.TokenizedDataset, n_genes: int, n_cells: int) -> gf.TokenizedDataset:
    """Take cells that have so many genes, and no more of each."""
    few = cells.select(np.flatnonzero(cells.lengths >= n_genes)[:n_cells])
    table = datasets.Dataset.from_dict(
        {
            "input_ids": [tokens[:n_genes].tolist() for tokens in few],
            "length": [n_genes] * len(few),
            "cell": [str(name) for name in few.cell_names],
            "state": ["a"] * len(few),
        }
    )
    return gf.TokenizedDataset(table, few.vocabulary, few.spec)


def main() -> None:
    """Screen cells with all in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokens", nargs="?", help="Parquet file of V1 tokens, or a tokenised dataset")
    parser.add_argument("--genes", type=int, default=400)
    parser.add_argument("--size", default="V1-10M")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--max-tokens", type=int, nargs="+", default=[None], help="of a batch; several are compared")
    parser.add_argument("--stock-variants", type=int, help="only so many variants of the stock version, extrapolated")
    parser.add_argument("--variants", type=int, help="only so many of the exact ones, of the first genes")
    parser.add_argument("--ways", nargs="+", default=["exact", "first order"], help="also: either in bfloat16")
    add_json_option(parser)
    arguments = parser.parse_args()
    os.environ["TQDM_DISABLE"] = "1"
    datasets.disable_progress_bars()
    whole = chosen_cells(arguments.tokens, 500) if arguments.tokens else made_up(arguments.size, arguments.genes)
    many = cut(whole, arguments.genes, CELLS_ESTIMATED)
    cells = many.select([0])
    config = bert_config(arguments.size, cells.vocabulary)
    torch.manual_seed(0)
    ours = MaskedGeneModel(config).eval()
    theirs = BertForMaskedLM(config)
    theirs.load_state_dict(ours.state_dict())
    states = np.random.default_rng(0).normal(size=(2, config.hidden_size)).astype(np.float32)
    goal = gf.GoalState("state", "a", "b", embeddings=dict(zip("ab", states, strict=True)))
    checkpoint = gf.Checkpoint(ours, cells.vocabulary)
    stock = Stock(theirs, states, arguments.device)

    n_exact = arguments.variants or arguments.genes
    few = cells.genes(0)[:n_exact]
    deletion = gf.Deletion(few, combine="singly") if arguments.variants else gf.Deletion()

    def screen(**options: object) -> np.ndarray:
        options = {"goal": goal, "device": arguments.device, "max_tokens": arguments.max_tokens[0]} | options
        table = gf.perturb(checkpoint, cells, deletion, **options).table
        return table.loc[table["state"] == "b", "value"].to_numpy()

    works = {}
    if "exact" in arguments.ways:
        works = {f"exact, {n or 'default'} tokens": lambda n=n: screen(max_tokens=n) for n in arguments.max_tokens}
    if "exact in bfloat16" in arguments.ways:
        works["exact in bfloat16"] = lambda: screen(dtype="bfloat16")
    n_stock = min(arguments.stock_variants or arguments.genes, n_exact)
    if "first order" in arguments.ways:
        works["first order"] = lambda: estimate(checkpoint, many, goal, arguments.device)
    if "first order in bfloat16" in arguments.ways:
        works["first order in bfloat16"] = lambda: estimate(checkpoint, many, goal, arguments.device, "bfloat16")
    works |= {"stock": lambda: stock.screen(cells[0], n_variants=n_stock)}
    with contextlib.redirect_stderr(io.StringIO()):
        found = {name: np.asarray(work()) for name, work in works.items()}
        seconds = in_turn(works, runs=arguments.runs)
    for name in (name for name in works if name.startswith("first order")):
        found[name] = found[name][: arguments.genes]
        seconds[name] = [one / len(many) for one in seconds[name]]
    seconds["stock"] = [one * arguments.genes / n_stock for one in seconds["stock"]]
    for name in works:
        if name.startswith("exact"):
            seconds[name] = [one * arguments.genes / n_exact for one in seconds[name]]
    print(machine())
    print(f"\n{arguments.size}, one cell of {arguments.genes} genes, every gene deleted, on {arguments.device}")
    rates(seconds, amount=arguments.genes, unit="variants")
    for name in list(works)[:-1]:
        ratio(f"{name:<22}", seconds["stock"], seconds[name], "stock time / its time")
    exact, *others = [name for name in works if name != "stock"]
    if exact.startswith("exact"):
        largest = np.abs(found[exact][:n_stock] - found["stock"]).max()
        print(f"  largest difference of an exact value from stock's {largest:.1e}")
        for name in others:
            agreement = spearmanr(found[name][:n_exact], found[exact][:n_exact]).statistic
            print(f"  Spearman of {name} with exact: {agreement:.4f}")
    work = arguments.genes * flops(config, np.array([arguments.genes - 1]))
    work *= (config.num_hidden_layers - 1) / config.num_hidden_layers
    for name in works:
        share = None
        if name.startswith("exact"):
            dtype = torch.bfloat16 if "bfloat16" in name else torch.float32
            rate = work / statistics.median(seconds[name])
            share = rate / peak_flops(torch.device(arguments.device), dtype)
            print(f"  {name}: {rate / 1e9:,.0f} GFLOP/s, {share:.0%} of the best matrix product ({dtype})")
        if name != "stock":
            keep(
                arguments.json,
                f"deletion screen, {arguments.size}, {arguments.genes} genes, {name}",
                unit="variants/s",
                ours=[arguments.genes / one for one in seconds[name]],
                stock=[arguments.genes / one for one in seconds["stock"]],
                share_of_peak=share,
                both_memory_gb=peak_memory_gb(),
            )
    print(f"  peak memory of all {peak_memory_gb():.1f} GB")


def estimate(
    checkpoint: gf.Checkpoint, cells: gf.TokenizedDataset, goal: gf.GoalState, device: str, dtype: str = "float32"
) -> np.ndarray:
    """Rank the genes of the cell without the exact check of a few cells that a screen makes once."""
    from geneformer_repro.in_silico import screen

    kept, screen.CHECKED_CELLS = screen.CHECKED_CELLS, 0
    try:
        options = {"goal": goal, "method": "first_order", "device": device, "dtype": dtype}
        table = gf.perturb(checkpoint, cells, gf.Deletion(), **options).table
    finally:
        screen.CHECKED_CELLS = kept
    return table.loc[table["state"] == "b", "value"].to_numpy()


if __name__ == "__main__":
    main()
