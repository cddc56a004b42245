"""Explanations of a label that was made of known genes, and of the same label dealt at random.

Run as ``python benchmarks/planted_explanation.py OUT [--seeds 5]``. Simulated cells, a `tiny` model fine-tuned on each
of two labels for a minute: the presence of five planted genes, and the same label permuted. Test cells are explained by
hiding, by integrated gradients and by surrogates. Prints, of each seed, how many planted genes are among the ten
strongest of those that three donors have, what becomes of the gene of one donor, how sets and lists of genes are
enriched under permuted labels, and what the first sentence of the checks says. Seeds that are finished in OUT are not
done again.
"""

import argparse
import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from _planted_explanation import PlantedLabel, simulate
from scipy.stats import kstest

import geneformer_repro as gf
from geneformer_repro.model import MaskedGeneModel, bert_config

N_CELLS, N_EXPLAINED, N_FITTED = 1_500, 60, 18
"""Cells, a fifth of which are for tests; of these so many are explained; by surrogates so many."""
MASKS = 300
"""Altered cells of a draw, for surrogates of cells of sixty genes."""
TRAINING = {"epochs": 5, "batch_size": 16, "learning_rate": 2e-3, "warmup_steps": 0.1, "trainer": {"adam_beta2": 0.98}}
N_SETS, SET_SIZES = 500, (10, 30)
TOP = 10
METHODS = ("hide", "integrated_gradients", "surrogate")


def untrained(vocabulary: gf.Vocabulary, seed: int) -> gf.Checkpoint:
    """Return a model that has learned nothing."""
    shape = bert_config("tiny", vocabulary)
    shape.update({"initializer_range": 0.08})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return gf.Checkpoint(MaskedGeneModel(shape).eval(), vocabulary, name="untrained")


def learned(cells: gf.TokenizedDataset, target: str, out: Path, seed: int) -> tuple[gf.Checkpoint, np.ndarray]:
    """Fine-tune on a label; return the classifier and the row numbers of the cells for tests."""
    config = gf.FinetuneConfig(target=target, seed=seed, training=TRAINING, compare={"baselines": False})
    result = gf.finetune(untrained(cells.vocabulary, seed), cells, config, out=out, overwrite=True)
    test = result.split.loc[result.split["part"] == "test", "cell"]
    return result.checkpoint, np.flatnonzero(np.isin(cells.cell_names, test))


def of_planted(cells: gf.TokenizedDataset, planted: PlantedLabel, out: Path, seed: int) -> dict[str, Any]:
    """Return how far methods find the planted genes, and what is said of the gene of one donor."""
    model, test = learned(cells, "label", out / "label", seed)
    asked: Mapping[str, Any] = {"target": "label", "state": "first", "donor": "donor", "seed": seed}
    explained = gf.explain(model, cells.select(test), methods=METHODS[:2], max_cells=N_EXPLAINED, **asked)
    fitted = gf.explain(model, cells.select(test), methods=METHODS[2:], max_cells=N_FITTED, masks=MASKS, **asked)
    found: dict[str, Any] = {"balanced accuracy": explained.metadata["how_good"]["value"]}
    for why in (explained, fitted):
        genes = why.genes()
        for method in why.methods:
            table = genes[(genes["method"] == method) & (genes["n_donors"] >= 3)]
            first = table["effect"].abs().nlargest(TOP).index
            found[f"top 10, {method}"] = int(np.isin(planted.genes("planted"), first).sum())
    genes = explained.genes()
    (own,) = planted.genes("donor")
    rows = genes[(genes.index == own) & (genes["method"] == "hide")]
    ranks = genes[genes["method"] == "hide"]["effect"].abs().rank(ascending=False)
    found["donor's gene: donors, p, rank"] = [
        int(rows["n_donors"].iloc[0]), _or_none(rows["p_value"].iloc[0]), int(ranks[own]),
    ]  # fmt: skip
    check = gf.evaluate_explanation(explained, model, cells.select(test), max_cells=6, seed=seed)
    judged = check.removal[(check.removal["way"] == "removal") & ~check.removal["own_operator"]]
    largest = judged[judged["order"].str.endswith("largest first")]
    found["faithfulness"] = dict(
        zip(largest["order"].str.partition(",")[0], largest["faithfulness"].round(2), strict=True)
    )
    alike = check.sanity[check.sanity["model"].isin(["random weights", "permuted labels"])]
    found["alike"] = {f"{row.method}, {row.model}": round(row.spearman, 2) for row in alike.itertuples()}
    return found


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def of_permuted(cells: gf.TokenizedDataset, planted: PlantedLabel, out: Path, seed: int) -> dict[str, Any]:
    """Return what sets and lists of genes say of a model of permuted labels, and the first sentence of the checks."""
    model, test = learned(cells, "permuted", out / "permuted", seed)
    asked: Mapping[str, Any] = {"target": "permuted", "state": "first", "donor": "donor", "seed": seed}
    why = gf.explain(model, cells.select(test), methods=["hide"], max_cells=N_EXPLAINED, **asked)
    rng = np.random.default_rng(seed)
    genes = why.genes()
    names = genes.index[genes["n_cells"] >= 10].to_numpy()
    sizes = rng.integers(*SET_SIZES, N_SETS)
    sets = {f"set{i}": rng.choice(names, size, replace=False).tolist() for i, size in enumerate(sizes)}
    ranked = gf.gene_set_enrichment(genes, sets, method="prerank", seed=seed)
    check = gf.evaluate_explanation(why, drivers=planted.genes("planted"))
    n_planted = int(genes.index.isin(planted.genes("planted")).sum())
    n_others = len(genes) - n_planted
    by_chance = 1.96 * np.sqrt((len(genes) + 1) / (12 * n_planted * n_others))
    return {
        "balanced accuracy": why.metadata["how_good"]["value"],
        "KS p of 500 sets": float(kstest(ranked["p_value"], "uniform").pvalue),
        "sets at FDR 0.05": int((ranked["fdr"] < 0.05).sum()),
        "AUROC of planted genes": float(check.drivers.table["auroc"].iloc[0]),
        "95 % of AUROCs of as many genes at random": [round(0.5 - by_chance, 3), round(0.5 + by_chance, 3)],
        "first sentence": check.sentences[0].partition(":")[0],
    }


def main() -> None:
    """Do all seeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    logging.getLogger("geneformer_repro").setLevel(logging.ERROR)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for seed in range(arguments.seeds):
        file = arguments.out / f"{seed}.json"
        if not file.exists():
            began = time.perf_counter()
            planted = simulate(N_CELLS, seed=seed)
            vocabulary = gf.Vocabulary.fit(planted.cells, max_length=256)
            cells = gf.tokenize(planted.cells, vocabulary, obs=["label", "permuted", "donor"])
            found = {
                "label": of_planted(cells, planted, arguments.out / str(seed), seed),
                "permuted": of_permuted(cells, planted, arguments.out / str(seed), seed),
            }
            file.write_text(json.dumps({**found, "seconds": round(time.perf_counter() - began)}, indent=1))
        print(seed, file.read_text(), flush=True)
    print(pd.json_normalize([json.loads((arguments.out / f"{s}.json").read_text()) for s in range(arguments.seeds)]).T)


if __name__ == "__main__":
    main()
