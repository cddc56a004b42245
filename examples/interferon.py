"""Which genes carry a blood cell from control to interferon, as a model sees it? From counts to an explained table.

    python examples/interferon.py kang_ifnb.h5ad            # some ten minutes on two CPU cores
    python examples/interferon.py kang_ifnb.h5ad --quick    # half a minute, to see that everything runs

The file: blood cells of eight lupus patients, resting or after six hours of interferon beta (Kang et al., Nature
Biotechnology 36, 89, 2018; GEO GSE96583), raw counts, obs columns cell_type, condition and donor. With other columns or
states, change the names below.

The answer is known, which is the point: the genes that interferon induces should lead. Whether they do, and whether a
fold change of the counts would have said so as well, is printed and written to OUT/answer.tsv.
"""

import argparse
import logging
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

import geneformer_repro as gf

CELL_TYPE, STATE, CONTROL, STIMULATED, DONOR = "CD14 Mono", "condition", "control", "IFNb_stimulated", "donor"
NO_DONOR = ["doublet", "ambiguous", "unknown"]
TEST_DONORS = ["1015", "101"]
INDUCED = (
    "ADAR APOBEC3A BST2 CXCL10 CXCL11 DDX58 DDX60 EIF2AK2 EPSTI1 GBP1 HERC5 HERC6 IFI16 IFI27 IFI35 IFI44 IFI44L IFI6 "
    "IFIH1 IFIT1 IFIT2 IFIT3 IFIT5 IFITM1 IFITM2 IFITM3 IRF7 IRF9 ISG15 ISG20 LY6E MX1 MX2 OAS1 OAS2 OAS3 OASL PARP14 "
    "PLSCR1 RSAD2 SAMD9 SAMD9L SP110 STAT1 STAT2 TNFSF10 TRIM22 UBE2L6 USP18 XAF1"
)
"""Genes that type I interferon induces in most cells (as in the hallmark set of the interferon alpha response)."""
RANKINGS = {
    "effect": "screen: effect",
    "effect_vs_matched": "screen: effect beside genes of like place and detection",
    "effect_beyond_baselines": "screen: effect beyond the baselines below",
    "log2_fold_change": "baseline: log fold change, goal against start",
    "detection_difference": "baseline: difference of detection",
    "axis_correlation": "baseline: correlation with the state axis",
}


def main() -> None:
    """Make the model, ask it twice, say how the known genes did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("counts", type=Path)
    parser.add_argument("-o", "--out", type=Path, default=Path("interferon-output"), help="folder to write")
    parser.add_argument("--quick", action="store_true", help="few steps, few cells")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("geneformer_repro.in_silico").setLevel(logging.INFO)
    arguments.out.mkdir(parents=True, exist_ok=True)
    cells, model = learn(arguments.counts, arguments.out, quick=arguments.quick)
    obs = cells.obs
    chosen = cells.select(np.flatnonzero((obs["cell_type"] == CELL_TYPE) & ~obs[DONOR].isin(NO_DONOR)))
    n_cells, n_genes = (15, 40) if arguments.quick else (150, 400)
    questions = {
        "deletion": (gf.Deletion(), gf.GoalState(STATE, STIMULATED, CONTROL)),
        "overexpression": (
            gf.Overexpression(most_detected(chosen, n_genes), combine="singly"),
            gf.GoalState(STATE, CONTROL, STIMULATED),
        ),
    }
    answers = []
    for name, (perturbation, goal) in questions.items():
        options = {"goal": goal, "donor": DONOR, "pooling": "mean", "max_cells": n_cells}
        shifts = gf.perturb(model, chosen, perturbation, out=arguments.out / f"{name}.parquet", **options)
        table = gf.shift_statistics(shifts, cells=chosen, counts=arguments.counts)
        table.to_csv(arguments.out / f"{name}.tsv", sep="\t")
        gf.write_screen_report(shifts, table, arguments.out / f"{name}.html", overwrite=True)
        answers.append(judge(table, name, down=name == "deletion"))
    answer = pd.concat(answers)
    answer.to_csv(arguments.out / "answer.tsv", sep="\t", index=False)
    print(f"\nArea under the ROC curve of {len(INDUCED.split())} known interferon genes in each ranking (chance: 0.5)")
    print(answer.to_string(index=False))


def learn(counts: Path, out: Path, *, quick: bool) -> tuple[gf.TokenizedDataset, gf.Checkpoint]:
    """Tokenise the cells, pretrain a tiny model on them, teach it the condition; two donors are held out."""
    vocabulary = gf.Vocabulary.fit(counts, max_length=128 if quick else 256)
    cells = gf.tokenize(counts, vocabulary, obs=["cell_type", STATE, DONOR])
    cells = cells.select(np.arange(0, len(cells), 8 if quick else 1))
    is_tested = cells.obs[DONOR].isin(TEST_DONORS).to_numpy()
    recipe = gf.PretrainConfig(
        size="tiny",
        training={"epochs": 1 if quick else 10, "batch_size": 8, "learning_rate": 2e-3, "warmup_steps": 0.1},
    )
    base = gf.pretrain(cells.select(np.flatnonzero(~is_tested)), recipe, out=out / "base")
    task = gf.FinetuneConfig(
        target=STATE,
        split={"group": DONOR, "test_groups": TEST_DONORS},
        training={"epochs": 1 if quick else 4, "batch_size": 8, "learning_rate": 1e-3},
    )
    result = gf.finetune(base, cells, task, out=out / "classifier", counts=ad.read_h5ad(counts))
    print("\nNaming the condition of cells of two other donors\n", result.methods[["accuracy", "macro_f1"]].round(3))
    return cells, result.checkpoint


def most_detected(cells: gf.TokenizedDataset, n_genes: int) -> list[str]:
    """Return the genes that most cells express, whatever their state: a choice that does not know the answer."""
    n_cells = np.zeros(cells.vocabulary.size)
    for tokens in cells:
        n_cells[tokens] += 1
    order = np.argsort(-n_cells[cells.vocabulary.tokens], kind="stable")
    return [cells.vocabulary.gene_ids[i] for i in order[:n_genes]]


def judge(table: pd.DataFrame, screen: str, *, down: bool) -> pd.DataFrame:
    """Score rankings by the area under the ROC curve of the known genes; print what leads."""
    enough = table[table["n_cells"] >= 10]
    is_known = enough["gene_name"].isin(INDUCED.split()).to_numpy()
    print(f"\n{screen}: {len(enough)} genes, {is_known.sum()} of them known. In front:")
    leading = enough.sort_values("low", ascending=False).head(10)  # surely large, not noisily
    shown = ["gene_name", "effect_vs_matched", "low", "high", "fdr", "n_cells", "n_donors", "log2_fold_change"]
    print(leading[shown].to_string(index=False, float_format=lambda value: f"{value:.2g}"))
    rows = []
    for column, name in RANKINGS.items():
        sign = -1 if down and name.startswith("baseline") else 1  # deleting what is lower in the goal moves towards it
        known = enough[column].notna().to_numpy()
        both = 0 < is_known[known].sum() < known.sum()
        area = roc_auc_score(is_known[known], sign * enough[column][known]) if both else np.nan
        rows.append({"screen": screen, "ranking": name, "area": round(area, 3), "genes": int(known.sum())})
    return pd.DataFrame(rows)


if __name__ == "__main__":
    main()
