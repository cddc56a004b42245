"""The whole way on 700 blood cells: counts, tokens, pretraining, fine-tuning, embedding, deletion screen, report.

    python examples/demo.py            # about four minutes on two CPU cores; results in demo-output/
    python examples/demo.py --quick    # half a minute, poor models: to see that everything runs

And survival of 198 patients with breast cancer. The cells ship with scanpy, the patients with scikit-survival (extra
survival; without it they are left out), so nothing is downloaded.
"""

import argparse
import logging
import shutil
import time
from importlib.metadata import version
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
from sklearn.model_selection import train_test_split

import geneformer_repro as gf
from geneformer_repro.files import provenance, sha256, write_json
from geneformer_repro.finetuning.cohort_tables import methods_table
from geneformer_repro.finetuning.figures import methods_figure
from geneformer_repro.finetuning.kinds.classes import confusion_figure
from geneformer_repro.finetuning.kinds.survival_figures import forest_figure
from geneformer_repro.mapping import scatter_figure
from geneformer_repro.pretraining.figures import loss_figure
from geneformer_repro.report import Section, write_report

START, GOAL, ALTERNATIVE = "CD14+ Monocyte", "CD19+ B", "Dendritic"
MIN_CELLS = 5
"""Genes that fewer of the perturbed cells express are left out of the picture."""


def main() -> None:
    """Run every step, write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, default=Path("demo-output"), help="folder to write (replaced)")
    parser.add_argument("--quick", action="store_true", help="few steps, few cells")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    began = time.perf_counter()
    out = new_folder(arguments.out)
    sections = run(out, quick=arguments.quick)
    seconds = time.perf_counter() - began
    facts = {name: version(name) for name in ("geneformer-repro", "torch", "transformers", "scanpy")}
    write_report(
        out / "report.html",
        title="A Geneformer-style model, pretrained, fine-tuned and questioned on 700 blood cells",
        lead="Everything here was made from raw counts on this machine by make demo. The model is tiny and saw "
        "700 cells, where published ones saw tens of millions: look at what the steps do, not at how good it is.",
        sections=sections,
        facts=facts | {"seed": 0, "seconds": round(seconds)},
    )
    files = {file.name: sha256(file) for file in sorted(out.iterdir()) if file.is_file()}
    write_json(out / "provenance.json", provenance("demo", config={"quick": arguments.quick, "seed": 0}, inputs=files))
    print(f"\nDone in {seconds:.0f} s. Open {out / 'report.html'} in a browser.")


def new_folder(out: Path) -> Path:
    """Make an empty folder; replace an earlier demo's, and nothing else."""
    if out.exists() and any(out.iterdir()):
        if not (out / "cells.h5ad").exists():
            raise SystemExit(
                f"error: {out} is not an earlier demo's output; it is not replaced. Choose another with --out."
            )
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    return out


def run(out: Path, *, quick: bool) -> list[Section]:
    """Run the steps in `out`; return the sections of the report."""
    adata = gf.datasets.pbmc700()
    if quick:
        adata = adata[::3].copy()
    adata.write_h5ad(out / "cells.h5ad")
    say("counts", f"{adata.n_obs} cells × {adata.n_vars} genes, {adata.obs['cell_type'].nunique()} cell types")

    vocabulary = gf.Vocabulary.fit(out / "cells.h5ad")
    vocabulary.save(out / "vocabulary")
    say("vocabulary", f"{len(vocabulary)} genes with their non-zero medians")

    cells = gf.tokenize(out / "cells.h5ad", vocabulary, out=out / "cells.tok", obs=["cell_type", "phase"])
    say(
        "tokenize",
        f"{len(cells)} cells of {cells.lengths.mean():.0f} tokens, {cells.spec['share_of_counts_known']:.1%} of "
        f"counts known",
    )

    recipe = gf.PretrainConfig(
        size="tiny",
        held_out=0.1,
        training={
            "epochs": 1 if quick else 10,
            "batch_size": 4,
            "learning_rate": 2e-3,
            "warmup_steps": 0.1,
            "trainer": {"adam_beta2": 0.98},
        },
    )
    tested = hold_out(cells, out / "split.tsv")
    base = gf.pretrain(cells.select(np.flatnonzero(~tested)), recipe, out=out / "pretrained")
    learned = base.provenance["result"]
    losses = {method: scores["loss"] for method, scores in learned["scores"].items()}
    say("pretrain", "held-out loss: " + ", ".join(f"{method} {loss:.3f}" for method, loss in losses.items()))

    task = gf.FinetuneConfig(
        target="cell_type",
        split={"split_file": str(out / "split.tsv")},
        training={"epochs": 1 if quick else 8, "batch_size": 8, "learning_rate": 1e-3},
    )
    classifier = gf.finetune(base, cells, task, out=out / "classifier")
    say("finetune", "accuracy on the test cells:")
    print(classifier.methods[["accuracy", "macro_f1"]].round(3).to_string())

    embedding = gf.embed(classifier.checkpoint, cells)
    sc.pp.neighbors(embedding, use_rep="X")
    sc.tl.umap(embedding)
    embedding.write_h5ad(out / "embedding.h5ad")
    say("embed", f"{embedding.n_obs} cells × {embedding.n_vars} dimensions")

    goal = gf.GoalState(obs="cell_type", start=START, goal=GOAL, alternatives=[ALTERNATIVE])
    shifts = gf.perturb(
        classifier.checkpoint,
        cells,
        gf.Deletion(genes="each"),
        goal=goal,
        max_cells=5 if quick else 60,
        out=out / "shifts.parquet",
    )
    table = gf.shift_statistics(shifts, cells=cells)
    table.to_csv(out / "screen.tsv", sep="\t")
    gf.write_screen_report(shifts, table, out / "screen.html")
    leading = table[table["n_cells"] >= MIN_CELLS].nlargest(6, "effect_vs_matched")["gene_name"]
    say("perturb", f"{shifts.metadata['n_cells']} cells; most towards {GOAL}, of like genes: {', '.join(leading)}")

    history = pd.read_csv(out / "pretrained" / "history.tsv", sep="\t")
    return [*describe(history, learned, embedding, classifier, table, shifts), *survival(out / "survival", quick=quick)]


def survival(out: Path, *, quick: bool) -> list[Section]:
    """Ask whether patients whose tumours have receptors of oestrogen teach something of those without, and back."""
    try:
        from sksurv.datasets import load_breast_cancer
    except ImportError:
        say("survival", "left out: pip install 'geneformer-repro[survival]', with which its 198 patients come")
        return []
    columns, outcome = load_breast_cancer()
    genes = columns.filter(like="_at")
    obs = columns[["er", "age", "size"]].assign(days=outcome["t.tdm"], metastasis=outcome["e.tdm"].astype(int))
    obs.index = pd.Index([f"patient {i}" for i in range(1, len(obs) + 1)])
    patients = ad.AnnData(genes.to_numpy(np.float32), obs=obs, var=pd.DataFrame(index=genes.columns))
    config = gf.CohortStudyConfig(
        survival={"metastasis": "days"},
        values="expression",
        log2=True,
        follow_up={"horizon": 1826.0},
        halving={"n_trials": 3 if quick else 27, "rungs": 1 if quick else 3},
        split={"folds": 2 if quick else 3, "repeats": 1},
        training={"steps": 10 if quick else 60},
        compare={"covariates": ("age", "size"), "baselines": not quick},
    )
    study = gf.transfer_study(patients, config=config, cohort="er", out=out)
    scores = methods_table(study.evaluations)
    say("survival", "C-index of time to metastasis, by receptor status, on held-out patients:")
    print(scores.round(2).to_string(index=False, na_rep="–"))
    return [
        Section(
            "Survival: what one kind of tumour teaches of the other",
            "Time to metastasis of 198 patients with breast cancer, by whether the tumour has receptors of oestrogen: "
            "a point is by how much a network that learned the other kind before orders held-out patients better than "
            "the same network from random weights.",
            "That transfer helps, or does not, where the bar includes 0: there are some dozens of metastases. "
            "survival/report.html has more.",
            figure=forest_figure(study.cohorts.set_index("cohort"), "difference", "C-index, fine-tuned less scratch"),
            table=scores.set_index("method"),
        )
    ]


def hold_out(cells: gf.TokenizedDataset, path: Path) -> np.ndarray:
    """Choose a fifth of the cells to be tested on, unseen until then; write the split, return which they are."""
    types = cells.obs["cell_type"]
    _, rows = train_test_split(np.arange(len(cells)), test_size=0.2, stratify=types, random_state=0)
    tested = np.isin(np.arange(len(cells)), rows)
    pd.DataFrame({"cell": cells.cell_names, "part": np.where(tested, "test", "train")}).to_csv(
        path, sep="\t", index=False
    )
    return tested


def say(step: str, result: str) -> None:
    """Print a line of result."""
    print(f"{step:<11} {result}", flush=True)


def describe(
    history: pd.DataFrame,
    learned: dict,
    embedding: ad.AnnData,
    classifier: gf.Finetuned,
    table: pd.DataFrame,
    shifts: gf.ShiftTable,
) -> list[Section]:
    """Say of each picture what it shows and what it does not."""
    model, *_ = losses = [scores["loss"] for scores in learned["scores"].values()]
    guesses = pd.Series(losses[1:], index=list(learned["scores"])[1:])
    enough = table[table["n_cells"] >= MIN_CELLS]
    types = classifier.evaluations["cell_type"]
    by = "effect_vs_matched"
    shown = [by, "effect", "p_value", "fdr", "matched_percentile", "n_cells", "log2_fold_change"]
    shown.append(f"effect_to_{ALTERNATIVE}")
    strongest = pd.concat([enough.nlargest(8, by), enough.nsmallest(8, by).iloc[::-1]])
    return [
        Section(
            "Pretraining: naming hidden genes",
            f"On cells it was not trained on, the model names a hidden gene with a loss of "
            f"{model:.2f} nats; guessing every gene by how often cells express it costs {guesses.iloc[0]:.2f}, and by "
            f"how often at that rank {guesses.iloc[1]:.2f}, so what lies below the lines was learned from the rest of "
            "a cell.",
            f"That the model understands cells: {learned['n_held_out']} held-out cells of the same donor say nothing "
            "about other donors.",
            figure=loss_figure(history, guesses),
        ),
        Section(
            "Fine-tuning: cell types, beside simpler methods",
            f"{len(types.methods)} ways to predict ten cell types, trained and tested on the same cells; the best "
            f"accuracy here is that of: {types.methods['accuracy'].idxmax()}.",
            "A difference where the bars overlap, or how any of them would do on another donor: all 700 cells are one "
            "donor's, split cell by cell.",
            figure=methods_figure(types.methods),
            table=with_intervals(types.methods),
        ),
        Section(
            "Which types are confused",
            "Numbers of test cells by true and predicted type for the fine-tuned model; the colour is the share of the "
            "true type.",
            "Errors of the model alone: the labels were assigned by correlation with sorted populations, and "
            "neighbouring T-cell types are hard to tell apart for any method with these 754 genes.",
            figure=confusion_figure(types.confusion),
        ),
        Section(
            "Embedding: all cells, by cell type",
            "Each cell's vector (mean over its genes, last layer but one of the fine-tuned model) in two dimensions: "
            "cells near each other look alike to the model.",
            "Distances or sizes one can measure, nor an independent test: the fine-tuned model was trained on the "
            "labels of most of these cells.",
            figure=scatter_figure(embedding.obsm["X_umap"], embedding.obs["cell_type"]),
        ),
        Section(
            f"Deletion screen: {START} towards {GOAL}",
            f"Every expressed gene was deleted in turn from {shifts.metadata['n_cells']} cells; a point is a gene that "
            f"at least {MIN_CELLS} of them express. To the right, its deletion makes a cell's vector more similar to "
            f"the mean {GOAL} cell than deleting other genes does that stand at the same place and are as often "
            "detected.",
            "An effect in a real cell, nor proper p-values: cells are taken for independent replicates here, and these "
            "are all one donor's. Read it as a ranking of what the model relies on.",
            figure=gf.plot_screen(shifts, enough),
        ),
        Section(
            "Deletion screen: strongest genes, both directions",
            f"The genes that move cells furthest towards and away from {GOAL}, compared with genes of the same place "
            "and detection rate; matched_percentile says how extreme they are among these. Beside them the shift "
            f"towards {ALTERNATIVE}, and how the gene differs between the two cell types: such numbers, which need no "
            f"model, explain R² = {table.attrs['explained_by_baselines']:.2f} of the effects. screen.html has more.",
            "That these genes drive the difference: the model moved, not a cell, and there is no second donor.",
            table=strongest.set_index("gene_name")[shown],
        ),
    ]


def with_intervals(methods: pd.DataFrame) -> pd.DataFrame:
    """Write each score with its 95 % interval."""
    return pd.DataFrame(
        {
            score: [
                f"{row[score]:.2f} ({row[f'{score}_low']:.2f}–{row[f'{score}_high']:.2f})"
                for _, row in methods.iterrows()
            ]
            for score in ("accuracy", "macro_f1")
        },
        index=methods.index,
    )


if __name__ == "__main__":
    main()
