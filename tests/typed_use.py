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


def cells_and_their_labels(counts: str) -> pd.DataFrame:
    """Read, choose, embed, map and score."""
    adata = gf.datasets.pbmc700()
    vocabulary = gf.Vocabulary.load("vocabulary")
    vocabulary.to_published("dictionaries")
    gf.tokenize(counts, vocabulary, cell_filter=gf.CellFilter(min_genes=200), workers=2, out="cells.tok")
    cells = gf.TokenizedDataset.open("cells.tok").select(np.arange(50))
    base = gf.Checkpoint.from_pretrained("runs/base", vocabulary=vocabulary)
    gf.embed_states(base, cells, "cell_type", states=["B"]).to_csv("states.csv")
    vectors = gf.embed(base, cells, layer=0, into=adata)
    print(gf.integration_scores(vectors, batch="donor", label="cell_type"), gf.pseudobulk(adata, by=["donor"]))
    return gf.map_to_reference(vectors, vectors, "cell_type", into=adata)


def fine_tuned_runs(base: gf.Checkpoint, cells: gf.TokenizedDataset) -> None:
    """Learn labels of cells, genes and patients, and from a source to a target."""
    made: gf.Finetuned = gf.finetune(base, cells, gf.FinetuneConfig(target="type"), out="runs/type")
    print([verdict for evaluation in made.evaluations.values() for verdict in evaluation.verdicts])
    config = gf.GeneFinetuneConfig(training={"epochs": 1})
    genes: gf.FinetunedGenes = gf.finetune_genes(base, cells, {"a": ["SPI1"], "b": ["CD19"]}, config, out="runs/genes")
    of_patients = gf.PatientConfig(patient="patient", target="arm")
    patients: gf.FinetunedPatients = gf.finetune_patients(base, cells, of_patients, out="runs/arm")
    asked: gf.PatientPredictions = gf.predict_patients("runs/arm", cells, checkpoint=base)
    print(genes.evaluation.methods, patients.evaluations, asked.patients, asked.attention)
    task = gf.TransferStudyConfig(target="type", source={"target": "type"})
    study = gf.transfer_study(base, cells, cells, task, out="runs/study")
    assert isinstance(study, gf.TransferStudy)


def bulk_samples_and_drugs() -> pd.DataFrame:
    """Survival across cohorts, and drug response."""
    samples = gf.read_samples("expression.tsv", "patients.tsv")
    scale = gf.Harmoniser.fit(np.asarray(samples.X), list(samples.obs["cohort"]), method="quantile")
    print(scale.n_genes)
    survival = {"time": "days", "event": "died"}
    table = gf.cross_cohort(samples, survival, cohort="cohort")
    gf.plot_cross_cohort(table)
    gf.write_cross_cohort_report(table, "cross.html")
    of_cohorts = gf.CohortStudyConfig(survival=survival, values="expression")
    assert isinstance(gf.transfer_study(samples, config=of_cohorts, cohort="cohort", out="s"), gf.CohortStudy)
    drugs = gf.Drugs.of_table(pd.read_csv("drugs.csv"))
    data = gf.ResponseData(samples, gf.read_responses("ic50.tsv", measure="LN_IC50", drugs=drugs), drugs)
    study = gf.transfer_study(None, data, data, gf.ResponseStudyConfig(), out="runs/screens")
    assert isinstance(study, gf.ResponseStudy)
    config = gf.ResponseConfig(network={"model": "conv_nn"})
    print(gf.drevalpy_model(config, name="ours"))
    made: gf.FinetunedResponse = gf.finetune_response(None, samples, data.responses, drugs, config, out="runs/drugs")
    return gf.predict_response(made.checkpoint, samples, drugs)


def screens_of_each_kind(checkpoint: gf.Checkpoint, cells: gf.TokenizedDataset) -> None:
    """Change genes of cells."""
    every = [
        gf.Overexpression(genes=["SPI1"]),
        gf.Activation(genes=["SPI1"]),
        gf.Inhibition(genes=["SPI1"]),
        gf.RankShift(genes=["SPI1"], to=[0.1, 0.5]),
    ]
    for kind in every:
        gf.plot_screen(gf.perturb(checkpoint, cells, kind, donor="donor"))
    gf.perturb(checkpoint, cells, gf.Deletion(genes=["SPI1"]) + gf.Overexpression(genes=["CD19"]))
    gf.shift_statistics(gf.ShiftTable.open("shifts.parquet"), into=gf.datasets.pbmc700())


def networks_and_explanations(checkpoint: gf.Checkpoint, cells: gf.TokenizedDataset, counts: str) -> pd.DataFrame:
    """Judge what a model rests on."""
    network = gf.gene_network(checkpoint, cells, sources=["SPI1"], by="cell_type", donor="donor", out="runs/net")
    gf.plot_network(network)
    gf.write_network_report(network, "network.html")
    judged = gf.evaluate_network(network, "edges.tsv", counts=counts)
    gf.plot_network_evaluation(judged)
    gf.write_network_evaluation(judged, "judged.html")
    difference: gf.NetworkDifference = gf.compare_networks(network, "B", "NK")
    print(difference, gf.head_statistics(checkpoint, cells, ["SPI1"]))
    why = gf.explain(checkpoint, cells, methods=["hide"])
    check: gf.ExplanationEvaluation = gf.evaluate_explanation(why, checkpoint, cells)
    gf.plot_explanation(why, check=check)
    gf.write_explanation_report(why, "why.html", check=check)
    drivers: gf.DriverGenes = gf.driver_genes(why, ["SPI1"])
    sets = gf.gene_set_enrichment(why, "hallmark.gmt")
    gf.plot_enrichment(sets)
    gf.write_enrichment_report(sets, "sets.html", drivers=drivers)
    return gf.compare_enrichment(sets, sets)


def what_went_wrong(counts: str) -> str:
    """Tell errors apart."""
    try:
        gf.Vocabulary.fit(counts)
    except gf.DataFormatError as error:
        return str(error)
    except (gf.VocabularyMismatchError, gf.InputError):
        return gf.__version__
    return ""
