"""Genes that are drawn at random, by detection alone, and how many gene sets they are enriched in, by background.

    python benchmarks/enrichment.py ../shared/data            # two minutes

Prints the tables of RESULTS.md, "Gene sets": false positives of four backgrounds, and how long 1,787 sets take.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pandas as pd

from geneformer_repro.in_silico.explanations.enrichment import SIGNIFICANT, gene_set_enrichment
from geneformer_repro.in_silico.explanations.gene_sets import mapped_sets, read_gene_sets
from geneformer_repro.in_silico.explanations.overlaps import chance_overlap
from geneformer_repro.in_silico.explanations.scored_genes import scored_genes
from geneformer_repro.in_silico.networks.edge_scores import bins_of, matched_bins
from geneformer_repro.in_silico.published_statistics import false_discovery_rate
from geneformer_repro.tokenizer.tables import examples

SETS = ("hallmark", "kegg", "reactome")
N_DRAWS, N_CHOSEN, GENOME = 200, 150, 20_000
LEAST_DETECTED = 0.02
MIN_SIZE, MAX_SIZE = 10, 500


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with pbmc3k/ and gene_sets/")
    folder = parser.parse_args().data
    table = genes_of(folder / "pbmc3k" / "pbmc3k.h5ad")
    print(f"{len(table):,} genes in {LEAST_DETECTED:.0%} of cells or more ({examples(table['gene_name'])})")
    for name in SETS:
        found = false_positives(table, folder / "gene_sets" / f"human_{name}_v2025.gmt")
        print(f"{name} ({found.attrs['n_sets']} sets): mean number with FDR < {SIGNIFICANT}, share of draws with any")
        print(
            pd.DataFrame({"sets": found.mean(), "draws": (found > 0).mean()}).T.to_string(float_format="{:.3f}".format)
        )
    how_long(table, folder / "gene_sets" / "human_reactome_v2025.gmt")


def genes_of(path: Path) -> pd.DataFrame:
    """Return the genes of the cells that are detected often enough, with their detection and mean place."""
    cells = anndata.read_h5ad(path)
    counts = cells.X.tocsr()
    detected = np.asarray((counts > 0).sum(axis=0)).ravel()
    place = np.zeros(cells.n_vars)
    for i in range(cells.n_obs):
        row = counts[i]
        place[row.indices[np.argsort(-row.data, kind="stable")]] += np.arange(row.nnz)
    table = pd.DataFrame(
        {
            "gene_name": cells.var["gene_name"].to_numpy(),
            "detection_rate": detected / cells.n_obs,
            "mean_place": place / np.maximum(detected, 1),
            "score": np.random.default_rng(0).normal(size=cells.n_vars),
        },
        index=cells.var_names.rename("gene_id"),
    )
    return table[table["detection_rate"] >= LEAST_DETECTED]


STRATA: dict[str, Callable[[pd.DataFrame], np.ndarray]] = {
    "20 of detection": lambda table: strata_of(table, ["detection_rate"]),
    "5 x 4 with place": lambda table: strata_of(table, ["detection_rate", "mean_place"]),
    "20, like sizes": lambda table: bins_of(table["detection_rate"].to_numpy(), 20),
    "5 x 4, like sizes": lambda table: sized(table, 5, 4),
    "20 x 4, like sizes": lambda table: sized(table, 20, 4),
}
"""Ours, and others; of like sizes are bins of equally many genes."""


def strata_of(table: pd.DataFrame, columns: list[str]) -> np.ndarray:
    """Return the strata that the package makes."""
    return scored_genes(table, strata=columns)[0].stratum


def sized(table: pd.DataFrame, n_detection: int, n_place: int) -> np.ndarray:
    """Return bins of equally many genes."""
    columns = (table[name].to_numpy() for name in ("detection_rate", "mean_place"))
    return matched_bins(*columns, n_detection=n_detection, n_place=n_place)


def false_positives(table: pd.DataFrame, path: Path, *, n_draws: int = N_DRAWS) -> pd.DataFrame:
    """Return how many sets have FDR < 0.05, a row a draw of genes and a column a background."""
    sets, rng = read_gene_sets(path), np.random.default_rng(0)
    (genes,) = scored_genes(table, strata=None)
    strata = {name: of(table) for name, of in STRATA.items()}
    cut = mapped_sets(sets, genes, min_size=MIN_SIZE, max_size=MAX_SIZE)
    in_any = np.unique(np.concatenate(mapped_sets(sets, genes).genes))
    whole = np.array([len(sets.members[name]) for name in cut.names])
    n_listed = len({gene for members in sets.members.values() for gene in members})
    weight = table["detection_rate"].to_numpy() / table["detection_rate"].sum()
    found = []
    for _ in range(n_draws):
        chosen = np.zeros(len(genes), dtype=bool)
        chosen[rng.choice(len(genes), N_CHOSEN, replace=False, p=weight)] = True
        overlap = np.array([int(chosen[members].sum()) for members in cut.genes])
        p_values = {
            "genome 20,000": of_background(whole, GENOME, N_CHOSEN, overlap),
            "genes of the GMT": of_background(whole, n_listed, int(chosen[in_any].sum()), overlap),
            "tested genes": of_background(cut.sizes, len(genes), N_CHOSEN, overlap),
            **{name: of_strata(stratum, cut.genes, chosen, overlap) for name, stratum in strata.items()},
        }
        found.append({name: (false_discovery_rate(pd.Series(p)) < SIGNIFICANT).sum() for name, p in p_values.items()})
    table_of_draws = pd.DataFrame(found)
    table_of_draws.attrs["n_sets"] = len(cut.names)
    return table_of_draws


def of_background(sizes: np.ndarray, n_genes: int, n_chosen: int, overlap: np.ndarray) -> np.ndarray:
    """Return the plain p-values among so many genes."""
    return chance_overlap(sizes[:, None], np.array([n_genes]), np.array([n_chosen]), overlap).p_value


def of_strata(stratum: np.ndarray, members: list[np.ndarray], chosen: np.ndarray, overlap: np.ndarray) -> np.ndarray:
    """Return the p-values within strata."""
    n = int(stratum.max()) + 1
    of_sets = np.stack([np.bincount(stratum[places], minlength=n) for places in members])
    return chance_overlap(of_sets, np.bincount(stratum), np.bincount(stratum[chosen], minlength=n), overlap).p_value


def how_long(table: pd.DataFrame, path: Path) -> None:
    """Print how long all sets of Reactome take, by overlap and by ranking, five times."""
    for name, options in (
        ("overlap, 20 strata", {"strata": ["detection_rate"]}),
        ("overlap, 5 x 4 strata", {}),
        ("prerank, 1,000 exchanges twice", {"method": "prerank"}),
    ):
        gene_set_enrichment(table, path, min_size=1, max_size=2_000, **options)  # compiled and cached
        seconds = []
        for _ in range(5):
            start = time.perf_counter()
            found = gene_set_enrichment(table, path, min_size=1, max_size=2_000, **options)
            seconds.append(time.perf_counter() - start)
        low, middle, high = np.quantile(seconds, [0, 0.5, 1])
        n_sets = found.index.nunique()
        print(
            f"{name}: {n_sets:,} sets, {len(found):,} tests: {low:.2f} / {middle:.2f} / {high:.2f} s (min, median, max)"
        )


if __name__ == "__main__":
    main()
