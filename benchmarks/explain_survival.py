"""Pathways of a pan-cancer network of survival beside those of one that went on with the target, and their controls.

Run as ``python benchmarks/explain_survival.py DATA OUT [--target gbmlgg] [--steps 200] [--sets hallmark.gmt]``; DATA
has ``expression.parquet`` and ``clinical.parquet`` of tcga_9_zscore. A third of the target's patients is kept out of
all training, and explained: by the network of the other cohorts, by the one that went on with the target, by both of
another seed, by one that learned permuted times, and by random weights. Writes tables of genes and sets, how alike they
are, and a page; the C-index on the patients explained stands beside each.

A gene's weight is what its attribution rises by over a spread of its value, across patients: above 0, more of it is
more risk.
The mean attribution itself says little: values are z-scores, so what a gene adds is above 0 in one half of the patients
and below in the other.
"""

import argparse
from pathlib import Path
from unittest.mock import patch

import anndata as ad
import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr

import geneformer_repro as gf
from geneformer_repro.expression import ExpressionNetwork
from geneformer_repro.finetuning import results

EVENT, TIME = "cdr_PFI", "cdr_PFI.time"
METHODS = ("integrated_gradients", "gradient_input", "median")
TOP = 50


def study(samples: ad.AnnData, target: str, out: Path, *, steps: int, seed: int) -> Path:
    """Train on all cohorts but the target, and go on with it; return the folder of its networks."""
    config = gf.CohortStudyConfig(
        survival={EVENT: TIME},
        values="zscore",
        cohorts=(target,),
        halving={"n_trials": 3, "rungs": 1, "first_steps": 30, "space": {"width": [32, 128], "l2": [1e-3, 1e-1]}},
        network={"layers": 2, "n_genes": None},
        split={"folds": 2, "repeats": 1},
        training={"steps": steps, "rates": (1e-3,), "epochs": steps},
        compare={"baselines": False},
        seed=seed,
    )
    if not (out / "cohorts.tsv").exists():
        with patch.object(results, "figures", lambda _: {}):
            gf.transfer_study(samples, config=config, cohort="cohort", out=out)
    return out / target


def permuted(samples: ad.AnnData, rng: np.random.Generator) -> ad.AnnData:
    """Deal times and events out anew within each cohort."""
    dealt = samples.copy()
    for cohort in samples.obs["cohort"].unique():
        rows = np.flatnonzero(samples.obs["cohort"] == cohort)
        order = rng.permutation(rows)
        for name in (EVENT, TIME):
            values = samples.obs[name].to_numpy()
            column = dealt.obs.columns.get_loc(name)
            dealt.obs.iloc[rows, column] = values[order]
    return dealt


def random_weights(checkpoint: gf.Checkpoint) -> gf.Checkpoint:
    """Return a network that learned nothing, of the same shape and scale."""
    network = checkpoint.expression_network
    fresh = ExpressionNetwork(network.config, network.head, network.scale, seed=99).eval()
    return gf.Checkpoint(fresh, checkpoint.vocabulary, {"step": "random weights"}, name="random weights")


def main() -> None:
    """Train, explain, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--target", default="gbmlgg")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--sets", type=Path, help="GMT file")
    parser.add_argument("--most", type=int, default=100, help="patients that are explained")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    samples = gf.read_samples(arguments.data / "expression.parquet", arguments.data / "clinical.parquet")
    samples = samples[samples.obs[[EVENT, TIME]].notna().all(axis=1) & (samples.obs[TIME] > 0)].copy()
    of_target = np.flatnonzero(samples.obs["cohort"] == arguments.target)
    held = np.random.default_rng(0).permutation(of_target)[: len(of_target) // 3]
    learned, explained = samples[np.setdiff1d(np.arange(samples.n_obs), held)].copy(), samples[held].copy()
    folders = {
        "seed 0": study(learned, arguments.target, out / "seed-0", steps=arguments.steps, seed=0),
        "seed 1": study(learned, arguments.target, out / "seed-1", steps=arguments.steps, seed=1),
        "permuted": study(
            permuted(learned, np.random.default_rng(0)),
            arguments.target,
            out / "permuted",
            steps=arguments.steps,
            seed=0,
        ),
    }
    opened = gf.Checkpoint.from_pretrained
    models = {
        "pan-cancer": opened(folders["seed 0"] / "others"),
        "fine-tuned": opened(folders["seed 0"]),
        "pan-cancer, seed 1": opened(folders["seed 1"] / "others"),
        "fine-tuned, seed 1": opened(folders["seed 1"]),
        "permuted times": opened(folders["permuted"]),
        "random weights": random_weights(opened(folders["seed 0"])),
    }
    tables, said = {}, []
    for name, checkpoint in models.items():
        path = out / f"{name.replace(', ', '-').replace(' ', '-')}.parquet"
        why = gf.explain(checkpoint, explained, methods=METHODS, max_cells=arguments.most, out=path, overwrite=True)
        tables[name] = weights(why, explained)
        tables[name].to_csv(out / f"genes-{path.stem}.tsv", sep="\t")
        good, complete = why.metadata["how_good"], why.metadata["completeness"]
        said.append({"model": name, "c_index": good["value"], "low": good["low"], "high": good["high"],
                     "largest_gap": complete["largest_gap"], "n_failed": complete["n_failed"]})  # fmt: skip
    print(pd.DataFrame(said).round(4).to_string(index=False))
    alike = pd.concat([agreement(tables, method) for method in METHODS], ignore_index=True)
    alike.to_csv(out / "agreement.tsv", sep="\t", index=False)
    print(alike.round(3).to_string(index=False))
    if arguments.sets is not None:
        pathways(tables, arguments.sets, out)


def weights(why: gf.Explanation, samples: ad.AnnData) -> pd.DataFrame:
    """Return the table of genes of absolute attributions, with the slope of these over values beside."""
    values = pd.DataFrame(np.clip(samples.X, -5, 5), samples.obs_names, samples.var_names)
    values -= values.mean()
    tables = []
    for method, table in why.genes(absolute=True).groupby("method", sort=False):
        rows = why.table[why.table["method"] == method]
        by_gene = rows.pivot(index="cell", columns="gene", values="value")
        z = values.loc[by_gene.index, by_gene.columns]
        slope = (z * by_gene).sum() / np.sqrt((z**2).sum() * len(z))  # a spread of the gene: silent ones have none
        tables.append(table.assign(method=method, weight=slope.reindex(table.index)))
    return pd.concat(tables)


def agreement(tables: dict[str, pd.DataFrame], method: str) -> pd.DataFrame:
    """Return how alike weights of genes are in each model and in the fine-tuned one, and what chance makes common."""
    of = {name: table.loc[table["method"] == method, "weight"] for name, table in tables.items()}
    reference, rows = of.pop("fine-tuned"), []
    for name, effect in of.items():
        both = pd.concat([reference, effect], axis=1, join="inner").to_numpy()
        top = [set(side.abs().nlargest(TOP).index) for side in (reference, effect)]
        rows.append({
            "method": method, "beside fine-tuned": name, "spearman": spearmanr(*both.T).statistic,
            "spearman of sizes": spearmanr(*np.abs(both.T)).statistic, f"common of {TOP}": len(top[0] & top[1]),
            "by chance": TOP**2 / len(both),
        })  # fmt: skip
    return pd.DataFrame(rows)


def pathways(tables: dict[str, pd.DataFrame], sets: Path, out: Path) -> None:
    """Write which sets the pan-cancer and the fine-tuned network rank, side by side, beside another seed."""
    found = {}
    for name, table in tables.items():
        of_method = table[table["method"] == "integrated_gradients"]
        # z-scores have neither detection nor place, on which genes could be matched
        of_method = of_method[["gene_name", "weight"]].dropna()
        found[name] = gf.gene_set_enrichment(
            of_method, sets, method="prerank", score="weight", strata=1, n_permutations=5000
        )
        found[name].to_csv(out / f"sets-{name.replace(', ', '-').replace(' ', '-')}.tsv", sep="\t")
        print(f"{name}: {int((found[name]['fdr'] < 0.05).sum())} of {len(found[name])} sets at FDR 0.05")
    seeds = [found["fine-tuned"], found["fine-tuned, seed 1"]]
    beside = gf.compare_enrichment(
        found["pan-cancer"], found["fine-tuned"], names=["pan-cancer", "fine-tuned"], seeds=seeds
    )
    beside.to_csv(out / "pathways.tsv", sep="\t")
    print(beside.attrs["sentence"])
    print(beside[beside["found"] != ""].head(20).to_string())
    gf.write_enrichment_report(found["fine-tuned"], out / "pathways.html", beside=beside, overwrite=True)


if __name__ == "__main__":
    main()
