"""Top genes of a network of drug response that went on from GDSC beside those of one from random weights.

Run as ``python benchmarks/explain_response.py DATA OUT [--model conv_nn] [--genes 1000] [--sets kegg.gmt]``; DATA has
the files of gdsc_ccle. A network learns GDSC without the lines of CCLE; then two thirds of CCLE's lines are learned by
it and from random weights, and the others are explained. As published, a gene's size is its mean absolute integrated
gradient over pairs, and the 200 largest are compared and looked up in gene sets; beside that stand what the published
figures lacked: another seed of each, permuted responses, random weights, and what chance makes common of genes of like
mean and spread. Writes tables and a page; how well each network predicts the lines explained stands beside it.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import hypergeom, spearmanr

import geneformer_repro as gf
from geneformer_repro.identities import same_samples
from geneformer_repro.pair_networks import PairNetwork

TOP = 200


def learned(
    start: gf.Checkpoint | None,
    lines: pd.DataFrame,
    responses: pd.DataFrame,
    smiles: pd.DataFrame,
    out: Path,
    arguments: argparse.Namespace,
    *,
    measure: str,
    seed: int,
    epochs: float,
) -> gf.Checkpoint:
    """Train a network, unless that was done; return it."""
    if not (out / "config.json").exists():
        config = gf.ResponseConfig(
            measure=measure,
            values="zscore",
            network={"model": arguments.model},
            split={"by": "sample", "test": 0.1, "validation": 0.1},
            training={"epochs": epochs},
            compare={"baselines": False},
            seed=seed,
        )
        table = responses.set_axis(["sample", "drug", "value"], axis=1)
        return gf.finetune_response(start, lines, table, smiles, config, out=out).checkpoint
    return gf.Checkpoint.from_pretrained(out)


def random_weights(checkpoint: gf.Checkpoint) -> gf.Checkpoint:
    """Return a network that learned nothing, of the same shape and scales."""
    network = checkpoint.pair_network
    fresh = PairNetwork(network.shape, network.head, network.scale, network.drugs, seed=99)
    fresh.effects, fresh.learned = network.effects, network.learned
    torch.nn.init.normal_(fresh.output.weight, std=0.1, generator=torch.Generator().manual_seed(99))
    return gf.Checkpoint(fresh.eval(), checkpoint.vocabulary, {"step": "random weights"}, name="random weights")


def sizes(checkpoint: gf.Checkpoint, lines: pd.DataFrame, drugs: gf.Drugs, out: Path) -> pd.Series:
    """Return the mean absolute integrated gradient of each gene over all pairs."""
    why = gf.explain(checkpoint, lines, drugs=drugs, allow_seen=True, out=out, overwrite=True)
    complete = why.metadata["completeness"]
    print(f"{out.stem}: {complete['n_failed']} of {complete['n_cells']} lines miss completeness")
    table = why.table
    table = table[table["gene"].notna()]
    return table["value"].abs().groupby(table["gene"]).mean()


def predicted(checkpoint: gf.Checkpoint, lines: pd.DataFrame, drugs: gf.Drugs, truth: pd.DataFrame) -> float:
    """Return the mean over drugs of Pearson's correlation over lines that were not learned."""
    said = gf.predict_response(checkpoint, lines, drugs).merge(truth, on=["sample", "drug"])
    by_drug = [of[["predicted", "value"]].corr().iloc[0, 1] for _, of in said.groupby("drug") if len(of) > 5]
    return float(np.nanmean(by_drug))


def main() -> None:
    """Train, explain, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="conv_nn")
    parser.add_argument("--genes", type=int, default=1000, help="those that vary most over lines")
    parser.add_argument("--drugs", type=int, default=60, help="of GDSC that are learned")
    parser.add_argument("--epochs", type=float, default=5)
    parser.add_argument("--lines", type=int, default=10, help="that are explained")
    parser.add_argument("--sets", type=Path, help="GMT file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data, out = arguments.data, arguments.out
    out.mkdir(parents=True, exist_ok=True)
    lines = pd.read_parquet(data / "gdsc_expression.parquet")
    lines = lines[lines.std().nlargest(arguments.genes).index]
    smiles = pd.read_csv(data / "smiles.tsv", sep="\t")
    gdsc = pd.read_parquet(data / "gdsc_response.parquet")
    gdsc = gdsc.groupby(["cell_key", "drug"], as_index=False, observed=True)["ln_ic50"].mean()
    ccle = pd.read_parquet(data / "ccle_response.parquet")
    ccle = ccle.loc[ccle["cell_key"].isin(lines.index), ["cell_key", "drug", "ic50_uM"]]
    ccle["ic50_uM"] = np.log(ccle["ic50_uM"])
    with_smiles = set(smiles["drug"])
    ccle = ccle[ccle["drug"].isin(with_smiles)]
    shared = set(same_samples(np.array(lines.index), sorted(set(ccle["cell_key"])), None)["a"])
    few = gdsc["drug"][gdsc["drug"].isin(with_smiles)].value_counts().index[: arguments.drugs]
    gdsc = gdsc[~gdsc["cell_key"].isin(shared) & gdsc["drug"].isin(few)]
    order = np.random.default_rng(0).permutation(sorted(set(ccle["cell_key"])))
    explained, train = order[: len(order) // 3], order[len(order) // 3 :]
    own = ccle[ccle["cell_key"].isin(train)]
    dealt = own.assign(
        ic50_uM=own.groupby("drug")["ic50_uM"].transform(lambda of: np.random.default_rng(0).permutation(of))
    )
    names = sorted(set(ccle["drug"]))
    drugs = gf.Drugs.of_table(smiles[smiles["drug"].isin(names)])

    def model(
        name: str, start: gf.Checkpoint | None, table: pd.DataFrame, seed: int, *, of: pd.DataFrame
    ) -> gf.Checkpoint:
        epochs = arguments.epochs if "GDSC" in name else 4 * arguments.epochs
        return learned(start, of, table, smiles, out / name, arguments, measure="LN_IC50", seed=seed, epochs=epochs)

    rest = lines[~lines.index.isin(shared)]
    models = {}
    for seed in (0, 1):
        source = model(f"GDSC-{seed}", None, gdsc, seed, of=rest)
        models[f"pre-trained, seed {seed}"] = model(f"pretrained-{seed}", source, own, seed, of=lines.loc[train])
        models[f"scratch, seed {seed}"] = model(f"scratch-{seed}", None, own, seed, of=lines.loc[train])
    models["permuted responses"] = model("permuted", None, dealt, 0, of=lines.loc[train])
    models["random weights"] = random_weights(models["scratch, seed 0"])
    truth = ccle.set_axis(["sample", "drug", "value"], axis=1)
    some, found = lines.loc[explained[: arguments.lines]], {}
    for name, checkpoint in models.items():
        r = predicted(checkpoint, lines.loc[explained], drugs, truth)
        print(f"{name}: r = {r:.3f} over lines that it has not seen, a mean over drugs")
        found[name] = sizes(checkpoint, some, drugs, out / f"{name.replace(', ', '-').replace(' ', '-')}.parquet")
    compare(pd.DataFrame(found), lines, arguments.sets, out)


def compare(found: pd.DataFrame, lines: pd.DataFrame, sets: Path | None, out: Path) -> None:
    """Write how many of the largest genes models have in common, and which gene sets hold them."""
    found.to_csv(out / "genes.tsv", sep="\t")
    top = {name: set(found[name].nlargest(TOP).index) for name in found}
    rows = [
        {
            "first": a,
            "second": b,
            "common": len(top[a] & top[b]),
            "by chance": TOP**2 / len(found),
            "p": hypergeom.sf(len(top[a] & top[b]) - 1, len(found), TOP, TOP),
            "spearman": spearmanr(found[a], found[b]).statistic,
        }
        for i, a in enumerate(found)
        for b in list(found)[i + 1 :]
    ]
    table = pd.DataFrame(rows)
    table.to_csv(out / "venn.tsv", sep="\t", index=False)
    print(table.round(4).to_string(index=False))
    if sets is None:
        return
    known = pd.DataFrame({"mean_expression": lines.mean(), "sd_expression": lines.std()})
    enriched = {}
    for name in found:
        genes = known.assign(score=found[name]).rename_axis("gene_id")
        enriched[name] = gf.gene_set_enrichment(
            genes, sets, score="score", top=TOP, strata=("sd_expression", "mean_expression")
        )
        enriched[name].to_csv(out / f"sets-{name.replace(', ', '-').replace(' ', '-')}.tsv", sep="\t")
        n, plain = ((enriched[name][column] < 0.05).sum() for column in ("fdr", "plain_fdr"))
        print(f"{name}: {n} of {len(enriched[name])} sets at FDR 0.05 among like genes, {plain} by Fisher's test")
    beside = gf.compare_enrichment(
        enriched["scratch, seed 0"],
        enriched["pre-trained, seed 0"],
        names=["scratch", "pre-trained"],
        seeds=[enriched["scratch, seed 0"], enriched["scratch, seed 1"]],
    )
    beside.to_csv(out / "pathways.tsv", sep="\t")
    print(beside.attrs["sentence"])
    gf.write_enrichment_report(enriched["pre-trained, seed 0"], out / "pathways.html", beside=beside, overwrite=True)


if __name__ == "__main__":
    main()
