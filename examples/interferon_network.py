"""What a model of blood cells relates, what interferon changes of that, and whether it is more than co-expression.

    python examples/interferon_network.py kang_ifnb.h5ad factors.txt trrust.tsv           # some fifteen minutes
    python examples/interferon_network.py kang_ifnb.h5ad factors.txt trrust.tsv --quick   # two minutes, to see it run

The files: blood cells of eight lupus patients, resting or after six hours of interferon beta (Kang et al., Nature
Biotechnology 36, 89, 2018), as for `interferon.py`; transcription factors, one a line (such as Lambert et al., Cell
172, 650, 2018); known edges with a column of factors and one of targets (such as TRRUST).

From one pretrained model: its network in monocytes of each state; edges that differ between states, donors as
replicates, beside expression; heads that attend to factors, beside permuted labels and random weights; central genes
and modules; known edges, beside everything that needs no model. And two uses of the published paper: genes that are
central in the known network told from peripheral ones by a fine-tuned model, and what deletions of factors do to their
targets and to other genes like these. Tables, pictures and pages are written to OUT, what came of it is printed.
"""

import argparse
import logging
from pathlib import Path

import numpy as np
import pandas as pd

import geneformer_repro as gf
from geneformer_repro.in_silico.networks.network_pages import head_sentence, write_difference_report, write_head_report

CELL_TYPE, STATE, CONTROL, STIMULATED, DONOR = "CD14 Mono", "condition", "control", "IFNb_stimulated", "donor"
NO_DONOR = ["doublet", "ambiguous", "unknown"]
INDUCED = "APOBEC3A BST2 IFI6 IFIT1 IFIT2 IFIT3 IFITM3 IRF7 ISG15 ISG20 LY6E MX1 OAS1 PLSCR1 RSAD2 TNFSF10"
"""Genes that interferon induces in nearly every cell."""
CENTRAL, PERIPHERAL = 8, 1
"""Known edges of a gene at least, and at most."""


def main() -> None:
    """Make the model and its network; ask it what this module says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("counts", type=Path)
    parser.add_argument("factors", type=Path)
    parser.add_argument("known", type=Path)
    parser.add_argument("-o", "--out", type=Path, default=Path("interferon-network"), help="folder to write")
    parser.add_argument("--quick", action="store_true", help="few steps, short cells")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    out, quick = arguments.out, arguments.quick
    out.mkdir(parents=True, exist_ok=True)
    cells, base = learn(arguments.counts, out, quick=quick)
    is_chosen = (cells.obs["cell_type"] == CELL_TYPE) & ~cells.obs[DONOR].isin(NO_DONOR)
    monocytes = cells.select(np.flatnonzero(is_chosen))
    options = {"by": STATE, "donor": DONOR, "min_cells": 10}
    network = gf.gene_network(base, monocytes, sources=arguments.factors, out=out / "network", **options)
    compare(network, arguments.counts, monocytes, out)
    ask_heads(base, monocytes, arguments.factors, out, quick=quick)
    look_at_graph(network, out)
    score(network, arguments, monocytes, out, name="attention", quick=quick)
    delete_factors(base, arguments, monocytes, network, out, quick=quick)
    tell_central_genes(base, cells, arguments.known, out, quick=quick)


def learn(counts: Path, out: Path, *, quick: bool) -> tuple[gf.TokenizedDataset, gf.Checkpoint]:
    """Tokenise all cells, pretrain a tiny model on them."""
    vocabulary = gf.Vocabulary.fit(counts, max_length=128 if quick else 512)
    cells = gf.tokenize(counts, vocabulary, obs=["cell_type", STATE, DONOR])
    training = {"epochs": 1 if quick else 5, "batch_size": 16, "learning_rate": 2e-3, "warmup_steps": 0.1}
    chosen = cells.select(np.arange(0, len(cells), 8 if quick else 1))
    return cells, gf.pretrain(chosen, gf.PretrainConfig(size="tiny", training=training), out=out / "base")


def compare(network: gf.GeneNetwork, counts: Path, monocytes: gf.TokenizedDataset, out: Path) -> None:
    """Test edges between states; say whether genes that interferon induces are flagged as moved."""
    found = gf.compare_networks(network, CONTROL, STIMULATED, counts=counts, cells=monocytes)
    found.edges.to_csv(out / "difference.tsv", sep="\t", index=False)
    write_difference_report(found, out / "difference.html", overwrite=True)
    induced = found.genes[found.genes["gene_name"].isin(INDUCED.split())].dropna(subset=["moved_bins"])
    print(f"\nStates. {found.sentence()}")
    print(f"{int(induced['moved'].sum())} of {len(induced)} genes that interferon induces are flagged as moved.")


def ask_heads(base: gf.Checkpoint, monocytes: gf.TokenizedDataset, factors: Path, out: Path, *, quick: bool) -> None:
    """Test heads for factors, as it should be and as published."""
    n_permutations = 99 if quick else 1_000
    for method in ("matched", "published"):
        table = gf.head_statistics(base, monocytes, factors, donor=DONOR, method=method, n_permutations=n_permutations)
        table.to_csv(out / f"heads_{method}.tsv", sep="\t", index=False)
        write_head_report(table, out / f"heads_{method}.html", overwrite=True)
        print(f"\nHeads, {method}. {head_sentence(table)}")


def look_at_graph(network: gf.GeneNetwork, out: Path) -> None:
    """Write the graph of stimulated cells with its modules; say what is central, and how stable both are."""
    modules = network.modules(STIMULATED)
    network.to_graphml(out / "stimulated.graphml", STIMULATED, modules=modules, overwrite=True)
    facts = modules.attrs
    print(
        f"\nModules of stimulated cells: modularity {facts['modularity']:.2f}, of rewired graphs "
        f"{facts['rewired_modularity']['mean']:.2f}; agreement of seeds {facts['agreement']:.2f}, without a donor "
        f"{facts['agreement_without_donor']:.2f}."
    )
    table = network.centrality(STIMULATED)
    table.to_csv(out / "centrality.tsv", sep="\t")
    agreement = {name: None if value is None else round(value, 2) for name, value in table.attrs["stability"].items()}
    print(f"Agreement of centrality between donors: {agreement}")


def score(
    network: gf.GeneNetwork,
    arguments: argparse.Namespace,
    monocytes: gf.TokenizedDataset,
    out: Path,
    *,
    name: str,
    quick: bool,
) -> None:
    """Score the network of stimulated cells on known edges."""
    table = gf.evaluate_network(
        network,
        arguments.known,
        counts=arguments.counts,
        cells=monocytes,
        state=STIMULATED,
        boosted_targets=0,
        n_rewirings=20 if quick else 200,
    )
    table.to_csv(out / f"known_{name}.tsv", sep="\t")
    opened = table.reset_index().query("universe == 'open'")
    print(f"\nKnown edges, {name}")
    print(
        opened[["method", "matched", "matched_low", "matched_high", "auroc", "ap_ratio", "n_edges"]]
        .round(3)
        .to_string(index=False)
    )


def delete_factors(
    base: gf.Checkpoint,
    arguments: argparse.Namespace,
    monocytes: gf.TokenizedDataset,
    network: gf.GeneNetwork,
    out: Path,
    *,
    quick: bool,
) -> None:
    """Delete factors with known targets from stimulated cells: whether targets move more than genes like them."""
    nodes = network.node_table(STIMULATED)
    nodes = nodes[nodes["n_cells"] >= 20].set_index("gene_name")
    known = pd.read_csv(arguments.known, sep="\t").iloc[:, :2].set_axis(["factor", "target"], axis=1)
    known = known[known["factor"].isin(nodes.index[nodes["is_source"]]) & known["target"].isin(nodes.index)]
    factors = known["factor"].value_counts().index[: 4 if quick else 12].tolist()
    stimulated = monocytes.select(np.flatnonzero(monocytes.obs[STATE] == STIMULATED)[: 150 if quick else None])
    options = {"method": "deletion", "by": STATE, "min_cells": 5 if quick else 10}
    deleted = gf.gene_network(base, stimulated, sources=factors, out=out / "deletion", **options)
    score(deleted, arguments, stimulated, out, name="deletion", quick=quick)


def tell_central_genes(base: gf.Checkpoint, cells: gf.TokenizedDataset, known: Path, out: Path, *, quick: bool) -> None:
    """Fine-tune the model to tell genes with many known edges from those with one, beside methods without it."""
    edges = pd.read_csv(known, sep="\t").iloc[:, :2]
    n_edges = pd.Series(edges.to_numpy().ravel()).value_counts()
    n_edges = n_edges[cells.vocabulary.find(n_edges.index) >= 0]
    classes = {
        "central": n_edges.index[n_edges >= CENTRAL].tolist(),
        "peripheral": n_edges.index[n_edges <= PERIPHERAL].tolist(),
    }
    config = gf.GeneFinetuneConfig(
        max_cells=100 if quick else 500,
        min_cells=5,
        split={"folds": 2 if quick else 5},
        training={"epochs": 1, "batch_size": 16, "learning_rate": 5e-4},
    )
    result = gf.finetune_genes(base, cells, classes, config, out=out / "central")
    print("\nCentral genes of the known network against peripheral ones, genes held out")
    print(result.methods[["auroc", "auroc_low", "auroc_high", "macro_f1"]].round(3).to_string())


if __name__ == "__main__":
    main()
