"""What needs no model scores on known edges of pbmc3k, beside numbers computed before, and what nulls cost.

    python benchmarks/network_evaluation.py shared/data [--rewirings 1000]

Edges are led to genes by symbol as it stands, genes in more than 5 % of the cells, as for these.
Its matched numbers had genes of one detection rate in whatever order an unstable sort gave; here they share a bin. What
their way gives on this machine is the last column.
"""

import argparse
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from geneformer_repro.in_silico.networks.edge_scores import Pairs, Stratified, strata_of
from geneformer_repro.in_silico.networks.network_baselines import Expression, degree_product
from geneformer_repro.in_silico.networks.network_evaluation import evaluate_network
from geneformer_repro.in_silico.networks.network_expression import CellCounts, correlation
from geneformer_repro.in_silico.networks.rewiring import rewired
from geneformer_repro.tokenizer.genes import GivenGenes

SHOWN = ["auroc", "ap_ratio", "per_source", "matched_detection", "matched", "ap_z", "matched_z"]
METHODS = ["detection product", "mean product", "|Pearson|", "|Spearman|", "degree product"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--rewirings", type=int, default=1000)
    arguments = parser.parse_args()
    cells = ad.read_h5ad(arguments.data / "pbmc3k" / "pbmc3k.h5ad")
    often = np.asarray((cells.X > 0).mean(axis=0)).ravel() > 0.05
    ids = dict(zip(cells.var["gene_name"][often], cells.var_names[often], strict=True))
    references = {name: by_symbol(rows, ids) for name, rows in tables(arguments.data).items()}
    sources = sorted({source for rows in references.values() for source in rows["tf"]})
    flat = pd.DataFrame(0.0, index=sources, columns=list(ids.values()))
    start = time.process_time()
    table = evaluate_network(flat, references, counts=cells, boosted_targets=0, n_rewirings=arguments.rewirings)
    print(f"three references, two universes, {arguments.rewirings} rewirings: {time.process_time() - start:.1f} CPU s")
    genes = GivenGenes.named(ids.values(), ids)
    of_cells = Expression.of(CellCounts.read(cells, genes))
    for name, rows in references.items():
        print(f"\n{name}")
        shown = table.loc[name].loc["open"].loc[METHODS, SHOWN]
        print(shown.assign(by_an_unstable_sort=by_an_unstable_sort(of_cells, genes, rows)).round(3).to_string())
        print(table.loc[name].loc["closed"].loc[METHODS[-2:], ["auroc"]].round(3).T.to_string())
    rewire(pd.read_csv(arguments.data / "gene_sets" / "trrust_human.tsv", sep="\t"))


def tables(data: Path) -> dict[str, pd.DataFrame]:
    dorothea = pd.read_parquet(data / "gene_sets" / "dorothea_hs.parquet")
    return {
        "TRRUST": pd.read_csv(data / "gene_sets" / "trrust_human.tsv", sep="\t"),
        "DoRothEA A": dorothea[dorothea["confidence"] == "A"],
        "DoRothEA A-C": dorothea[dorothea["confidence"].isin(["A", "B", "C"])],
    }


def by_symbol(rows: pd.DataFrame, ids: dict[str, str]) -> pd.DataFrame:
    led = rows.assign(tf=rows["tf"].map(ids), target=rows["target"].map(ids)).dropna(subset=["tf", "target"])
    return led[led["tf"] != led["target"]].drop_duplicates(["tf", "target"])


def by_an_unstable_sort(cells, genes: GivenGenes, rows: pd.DataFrame) -> list[float]:
    """Matched AUROC with bins of detection as they were for those numbers: by an unstable sort, ties as they fall."""
    sources, targets = np.unique([genes.position[gene] for gene in rows["tf"]]), np.arange(len(genes.gene_ids))
    known = np.zeros((len(sources), len(targets)), dtype=bool)
    row = np.searchsorted(sources, [genes.position[gene] for gene in rows["tf"]])
    known[row, [genes.position[gene] for gene in rows["target"]]] = True
    pairs = Pairs.of(sources[:, None] != targets)
    bins = np.argsort(np.argsort(cells.detection)) * 20 // len(targets)
    scores = [
        np.outer(cells.detection[sources], cells.detection),
        np.outer(cells.mean[sources], cells.mean),
        np.abs(correlation(cells.values, sources, targets, kind="pearson")),
        np.abs(correlation(cells.values, sources, targets)),
        degree_product(known),
    ]
    edges = np.flatnonzero(known[pairs.source, pairs.target])
    along = [score[pairs.source, pairs.target] for score in scores]
    stratum = strata_of(pairs, bins)
    return [Stratified(one, stratum, pairs.source, pairs.n_sources).auroc(edges) for one in along]


def rewire(known: pd.DataFrame) -> None:
    known = known[known["tf"] != known["target"]].drop_duplicates(["tf", "target"])
    sources, targets = pd.factorize(known["tf"]), pd.factorize(known["target"])
    edges = np.column_stack([sources[0], targets[0]])
    allowed = np.asarray(sources[1])[:, None] != np.asarray(targets[1])
    list(rewired(edges, allowed, np.random.default_rng(0), n=1))  # compiles
    seconds = []
    for seed in range(3):
        start = time.process_time()
        for one in rewired(edges, allowed, np.random.default_rng(seed), n=1000):
            last = one
        seconds.append(time.process_time() - start)
    new = 1 - len(set(map(tuple, last)) & set(map(tuple, edges))) / len(edges)
    print(
        f"\n1,000 rewirings of TRRUST ({len(edges):,} edges, ten proposals an edge), CPU s of three runs: "
        f"{min(seconds):.1f} / {np.median(seconds):.1f} / {max(seconds):.1f}; {100 * new:.0f} % of the edges are new"
    )


if __name__ == "__main__":
    main()
