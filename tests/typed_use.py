"""What users write, as their type checker sees it: for `mypy --strict` (`make lint`), not to be run."""

from pathlib import Path

import numpy as np
import pandas as pd

import geneformer_repro as gf


def from_counts_to_a_classifier(counts: str, donors: str) -> pd.DataFrame:
    """Annotate cells."""
    vocabulary = gf.Vocabulary.fit(counts)
    cells = gf.tokenize(counts, vocabulary, obs=["cell_type", donors], out="cells.tok")
    lengths: np.ndarray = cells.lengths
    assert lengths.min() > 0
    base = gf.pretrain(cells, gf.PretrainConfig(size="tiny", training={"epochs": 2}), out=Path("runs/base"))
    task = gf.FinetuneConfig(target="cell_type", split={"group": donors})
    result = gf.finetune(base, cells, task, out="runs/type", counts=counts)
    print(result.methods.round(2), result.checkpoint.in_words, gf.embed(base, cells))
    return gf.predict(result.checkpoint, counts)


def which_genes_move_cells(checkpoint: gf.Checkpoint, cells: gf.TokenizedDataset) -> list[str]:
    """Screen, and read what came of it."""
    goal = gf.GoalState(obs="cell_type", start="CD14+ Monocyte", goal="CD19+ B")
    shifts: gf.ShiftTable = gf.perturb(checkpoint, cells, gf.Deletion(genes="each"), goal=goal, max_cells=5)
    table = gf.shift_statistics(shifts)
    gf.write_screen_report(shifts, table, "screen.html")
    return [str(name) for name in table["gene_name"].head()]


def what_it_rests_on(checkpoint: gf.Checkpoint, cells: gf.TokenizedDataset) -> tuple[gf.Explanation, gf.GeneNetwork]:
    """Explain, and read a network."""
    network = gf.gene_network(checkpoint, cells, sources=["SPI1"], out="runs/net")
    print(network.graph("all").number_of_edges())
    return gf.explain(checkpoint, cells, methods=["hide"], donor="donor", out="why.parquet"), network


def on_the_hub(checkpoint: gf.Checkpoint) -> str:
    """Publish."""
    return checkpoint.push_to_hub("lab/blood", license="cc-by-4.0", data="700 blood cells.")
