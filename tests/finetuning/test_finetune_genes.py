"""Telling classes of genes apart: who learns from which genes, what a gene's prediction is, and what is refused."""

import dataclasses
import json
import logging
import shutil
from functools import partial
from pathlib import Path
from typing import NamedTuple

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from padding import padded
from scipy.sparse import csr_matrix
from sklearn.metrics import f1_score
from transformers import BertForTokenClassification

import geneformer_repro as gf
from geneformer_repro.config import ConfigError, with_settings
from geneformer_repro.encoder import IGNORED
from geneformer_repro.finetuning import genes as module
from geneformer_repro.finetuning import networks, results
from geneformer_repro.finetuning.experiment import Experiment, Findings
from geneformer_repro.finetuning.genes import finetune_genes
from geneformer_repro.finetuning.kinds.class_scores import evaluate_classes
from geneformer_repro.finetuning.kinds.classes import GENE_METHODS
from geneformer_repro.finetuning.kinds.kind import FINE_TUNED, RANDOM
from geneformer_repro.finetuning.methods import Outcome, file_name
from geneformer_repro.finetuning.problems.genes import gene_splits, labelled_genes
from geneformer_repro.finetuning.settings.genes import GeneFinetuneConfig
from geneformer_repro.finetuning.splits import Split
from geneformer_repro.heads import GeneClassifier, Head
from geneformer_repro.targets import Classes
from geneformer_repro.tokenizer.gene_lists import read_gene_classes

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("few_trees", "blank_pictures", "few_resamples")]

SIZES = {"dull": 6, "odd": 9, "plain": 6}
CLASSES = tuple(SIZES)
FILES = {
    "config.json", "model.safetensors", "vocabulary.tsv", "vocabulary.json", "head.json", "provenance.json",
    "log.jsonl", "split.tsv", "history.tsv", "occurrences.tsv", "methods.tsv", "predictions.tsv", "folds.tsv",
    "probabilities.tsv", "per_class.tsv", "confusion.tsv", "confusion_intervals.tsv", "reliability.tsv",
    "methods.png", "confusion.png", "per_class.png", "reliability.png", "report.html",
}  # fmt: skip


def settings(**changes):
    return with_settings(
        GeneFinetuneConfig(), **{"folds": 3, "batch_size": 40, "learning_rate": 1e-3, "min_cells": 3} | changes
    )


def quick(**changes):
    """No methods to compare with."""
    return settings(baselines=False, **changes)


@pytest.fixture(scope="module")
def cells_file(few_file, tmp_path_factory):
    """The 120 cells with a part of their counts, so that they are of different lengths."""
    adata, rng = ad.read_h5ad(few_file), np.random.default_rng(0)
    counts = adata.X.toarray()
    adata.X = csr_matrix(counts * (rng.random(counts.shape) < rng.uniform(0.03, 0.2, (len(counts), 1))))
    path = tmp_path_factory.mktemp("genes") / "thin.h5ad"
    adata.write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def cells(cells_file, few):
    return gf.tokenize(cells_file, few.vocabulary)


def n_cells_of(cells):
    """Cells that express each gene of the vocabulary, one cell at a time."""
    counted = pd.Series(0, index=list(cells.vocabulary.gene_ids))
    for i in range(len(cells)):
        counted[cells.genes(i)] += 1
    return counted


@pytest.fixture(scope="module")
def classes(cells):
    """Three classes of the genes that most cells express."""
    common = n_cells_of(cells).sort_values(ascending=False, kind="stable").index
    ends = np.cumsum(list(SIZES.values()))
    return {name: common[end - SIZES[name] : end].tolist() for name, end in zip(SIZES, ends, strict=True)}


def prepared(cells, classes, **changes):
    """What a run would learn, without the run."""
    return labelled_genes(cells, classes, settings(**changes))


def split_of(cells, classes, **changes):
    return module._split_table(*prepared(cells, classes, **changes))


class Training(NamedTuple):
    """What one network learned from."""

    step: str
    cells: list
    labels: list
    validated: np.ndarray | None
    start: dict
    model: GeneClassifier


class Run(NamedTuple):
    result: module.FinetunedGenes
    out: Path
    trainings: list[Training]
    base_before: str
    kept: Path
    """What a kill before the last network would have left."""

    def read(self, name, **options):
        return pd.read_csv(self.out / f"{name}.tsv", sep="\t", **options)

    def genes_of(self, fold):
        return set(self.result.split["gene"][self.result.split["fold"] == fold])

    def fold_networks(self):
        """The fine-tuned network of each fold, by fold."""
        return {fold: next(t.model for t in self.trainings if t.step == f"fold {fold} of 3") for fold in (1, 2, 3)}


def recording(trainings):
    """Stand in for `train`: the same, noting what it was given."""
    real = networks.train

    def train(model, run):
        tokens, labels = zip(*(run.examples[i, 0] for i in range(len(run.examples))), strict=True)
        validated = run.evaluate.args[0] if isinstance(run.evaluate, partial) else None
        start = {name: weight.clone() for name, weight in model.bert.state_dict().items()}
        trained = real(model, run)
        trainings.append(Training(run.step, tokens, labels, validated, start, model))
        return trained

    return train


@pytest.fixture(scope="module")
def run(base, cells, classes, tmp_path_factory):
    out, trainings, before = tmp_path_factory.mktemp("run") / "clf", [], base.fingerprint
    kept, last = tmp_path_factory.mktemp("kept") / "clf.partial", Experiment._final

    def final(self, outcomes, config, work):
        shutil.copytree(work.parent, kept)
        return last(self, outcomes, config, work)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "train", recording(trainings))
        patch.setattr(Experiment, "_final", final)
        result = finetune_genes(base, cells, classes, settings(), out=out)
    return Run(result, out, trainings, before, kept)


@pytest.fixture
def without_pictures(monkeypatch):
    monkeypatch.setattr(results, "write_evaluation", lambda *given, **options: None)
    monkeypatch.setattr(results, "write_page", lambda *given, **options: None)


class StoppedError(RuntimeError):
    """Stands for a crash."""


@pytest.fixture
def begun(monkeypatch, base, cells, classes, tmp_path):
    """Begin a run; return the model and the run of its first training."""

    def begin(config):
        given = []

        def train(*positional):
            given.extend(positional)
            raise StoppedError

        monkeypatch.setattr(networks, "train", train)
        with pytest.raises(StoppedError):
            finetune_genes(base, cells, classes, config, out=tmp_path / "clf", overwrite=True)
        return given

    return begin


# Who learns from which genes


def test_folds_hold_every_gene_once_and_every_class_alike(run, cells, classes):
    split = run.result.split
    assert split.columns.tolist() == ["gene", "label", "n_cells", "fold"]
    assert sorted(split["gene"]) == sorted(gene for genes in classes.values() for gene in genes)
    assert all(gene in classes[label] for gene, label in zip(split["gene"], split["label"], strict=True))
    n_genes = split.groupby("label")["fold"].value_counts().unstack()
    assert n_genes.to_dict("index") == {name: dict.fromkeys((1, 2, 3), n // 3) for name, n in SIZES.items()}
    np.testing.assert_array_equal(split["n_cells"], n_cells_of(cells)[split["gene"]])


def learned_genes(trained, vocabulary):
    """Genes behind the tokens that had a label."""
    tokens = np.concatenate(trained.cells)[np.concatenate(trained.labels) != IGNORED]
    return set(np.array(vocabulary.gene_ids)[vocabulary.genes_of(tokens)])


@pytest.mark.parametrize("fold", [1, 2, 3])
@pytest.mark.parametrize("network", ["", ", random weights"], ids=["fine-tuned", "random"])
def test_no_label_of_a_reported_or_validation_gene_reaches_training(run, cells, fold, network):
    (trained,) = [one for one in run.trainings if one.step == f"fold {fold} of 3{network}"]
    learned = learned_genes(trained, cells.vocabulary)
    validated = set(run.result.split["gene"].iloc[trained.validated])
    parts = [learned, validated, run.genes_of(fold)]
    assert [len(part) for part in parts] == [11, 3, 7]
    assert set.union(*parts) == set(run.result.split["gene"]), "the parts overlap"


def test_labels_are_the_classes_of_the_training_genes_and_nothing_else(run, cells, classes):
    label_of = {gene: CLASSES.index(name) for name, genes in classes.items() for gene in genes}
    ids = np.array(cells.vocabulary.gene_ids, dtype=object)
    for trained in run.trainings:
        learned = learned_genes(trained, cells.vocabulary)
        for tokens, labels in zip(trained.cells, trained.labels, strict=True):
            place = cells.vocabulary.genes_of(tokens)
            genes = [ids[i] if i >= 0 else "special" for i in place]
            assert labels.tolist() == [label_of[gene] if gene in learned else IGNORED for gene in genes]


def test_a_network_is_trained_on_all_genes_at_the_end(run, cells):
    last = run.trainings[-1]
    assert (last.step, last.validated) == ("all genes", None)
    assert learned_genes(last, cells.vocabulary) == set(run.result.split["gene"])
    assert len(run.trainings) == 7


def test_every_network_but_the_random_ones_starts_from_the_checkpoint(run, base):
    expected = base.model.bert.state_dict()
    for trained in run.trainings:
        same = [torch.equal(trained.start[name], expected[name]) for name in expected if expected[name].dim() > 1]
        assert not any(same) if trained.step.endswith("random weights") else all(same)


def test_the_base_is_left_as_it_is(run, base):
    assert base.fingerprint == run.base_before
    assert not base.model.training


def test_probing_leaves_the_encoder_as_it_was(base, cells, classes, tmp_path):
    problem, _ = prepared(cells, classes)
    every = Split(np.arange(len(problem.genes)))
    model, _ = problem.train(base, settings(strategy="probe"), every, work=tmp_path, step="all genes")
    found = model.bert.state_dict()
    assert all(torch.equal(found[name], weight) for name, weight in base.model.bert.state_dict().items())


def test_class_balance_weighs_an_occurrence_by_one_over_the_occurrences_of_its_class(begun):
    model, run = begun(quick(class_balance="weights"))
    labels = np.concatenate([run.examples[i, 0][1] for i in range(len(run.examples))])
    n = np.bincount(labels[labels != IGNORED])
    np.testing.assert_allclose(model._class_weights[0].numpy(), n.sum() / (3 * n), rtol=1e-6)
    assert begun(quick())[0]._class_weights == (None,)


def test_cells_are_a_random_choice_of_so_many(base, cells, classes):
    chosen = [prepared(cells, classes, max_cells=50, min_cells=1, seed=seed)[0] for seed in (0, 0, 1)]
    names = [set(one.cells.cell_names) for one in chosen]
    assert max(map(len, names)) <= 50
    assert names[0] == names[1] != names[2]
    np.testing.assert_array_equal(chosen[0].n_cells, n_cells_of(chosen[0].cells)[chosen[0].names])


# What a gene's prediction is


def probabilities_at(model, cells, folder):
    """Gene and probabilities at each place: stock BERT, one padded cell at a time."""
    model.save_pretrained(folder)
    stock = BertForTokenClassification.from_pretrained(folder).eval()
    longest, ids = cells[int(cells.lengths.argmax())], np.array(cells.vocabulary.gene_ids)
    found = []
    for cell in cells:
        batch = padded([cell, longest], cells.vocabulary)
        with torch.inference_mode():
            logits = stock(batch["input_ids"][:1], batch["attention_mask"][:1]).logits[0]
        place = cells.vocabulary.genes_of(cell)
        rows = logits.double().softmax(-1).numpy()[: len(cell)][place >= 0]
        found.append(pd.DataFrame(rows, columns=list(CLASSES), index=ids[place[place >= 0]]))
    return pd.concat(found)


@pytest.fixture(scope="module")
def occurrences(run, cells, tmp_path_factory):
    """Probabilities at each occurrence of a gene, from the network of the fold that reports it."""
    found = []
    for fold, network in run.fold_networks().items():
        table = probabilities_at(network, cells, tmp_path_factory.mktemp("stock"))
        found.append(table[table.index.isin(run.genes_of(fold))])
    return pd.concat(found)


def test_a_gene_s_prediction_is_the_mean_over_its_occurrences(run, occurrences, cells):
    assert cells.lengths.min() < cells.lengths.max(), "nothing was padded"
    expected = occurrences.groupby(level=0).mean().loc[run.result.split["gene"]]
    found = run.result.evaluation.probabilities
    assert found.index.tolist() == run.result.split["gene"].tolist()
    np.testing.assert_allclose(found[list(CLASSES)], expected, atol=1e-5)


def test_a_gene_counts_once_in_the_table(run):
    predictions = run.result.evaluation.predictions
    assert predictions[["gene", "true"]].to_numpy().tolist() == run.result.split[["gene", "label"]].to_numpy().tolist()
    np.testing.assert_array_equal(predictions["fold"], run.result.split["fold"])
    for name, row in run.result.methods.iterrows():
        assert row["accuracy"] == pytest.approx((predictions[name] == predictions["true"]).mean())


def test_the_epoch_is_chosen_by_the_macro_f1_of_the_validation_genes(run, cells, tmp_path):
    (trained,) = [one for one in run.trainings if one.step == "fold 1 of 3"]
    validated = run.result.split.iloc[trained.validated]
    mean = probabilities_at(trained.model, cells, tmp_path).groupby(level=0).mean().loc[validated["gene"]]
    found = f1_score(validated["label"], mean.idxmax(axis=1), average="macro")
    history = run.result.history[run.result.history["fold"] == 1]
    assert history["eval_macro_f1"].max() == pytest.approx(found)
    pd.testing.assert_series_equal(history["eval_selection"], history["eval_macro_f1"], check_names=False)


def test_the_table_of_occurrences_resamples_genes(run, occurrences):
    genes = run.result.split["gene"].tolist()
    number = np.array([genes.index(gene) for gene in occurrences.index])
    codes = run.result.split["label"].map(CLASSES.index).to_numpy()[number]
    expected = evaluate_classes(
        codes, occurrences.to_numpy(), CLASSES, groups=number, rng=np.random.default_rng(settings().seed)
    ).scores
    found = run.result.occurrences.loc[FINE_TUNED, list(expected)].to_dict()
    assert found == pytest.approx(expected, abs=1e-3)  # of near ties


def test_over_occurrences_a_simple_method_counts_a_gene_as_often_as_it_is_expressed(run):
    predictions, n_cells = run.result.evaluation.predictions, run.result.split["n_cells"]
    for name in GENE_METHODS:
        expected = np.average(predictions[name] == predictions["true"], weights=n_cells)
        assert run.result.occurrences.loc[name, "accuracy"] == pytest.approx(expected)


def test_of_too_many_occurrences_a_random_part_is_scored(run, occurrences, base, cells, classes, monkeypatch):
    monkeypatch.setattr(module, "_MOST_OCCURRENCES", 50)
    problem, _ = prepared(cells, classes)
    number = np.array([problem.names.tolist().index(gene) for gene in occurrences.index])
    said = {FINE_TUNED: np.column_stack([number, occurrences.to_numpy()])}
    findings = Findings(None, {}, None, None, None, None, [Outcome(None, None, [], said)], [{}])
    found = module.over_occurrences(problem, findings, seed=0).loc[FINE_TUNED, "accuracy"]
    assert found * 50 == pytest.approx(round(found * 50))
    assert found != run.result.occurrences.loc[FINE_TUNED, "accuracy"]


# The tables and the classifier


def test_every_promised_file_is_written_and_nothing_is_left_beside_it(run):
    assert {file.name for file in run.out.iterdir()} == FILES
    assert [path.name for path in run.out.parent.iterdir()] == ["clf"]


def test_the_tables_have_the_network_the_simple_methods_and_random_weights(run):
    assert run.result.methods.index.tolist() == [FINE_TUNED, *GENE_METHODS, RANDOM]
    assert set(run.result.occurrences.index) == set(run.result.methods.index)
    assert run.result.methods.notna().all(axis=None)
    assert run.result.methods is run.result.evaluation.methods


def test_the_files_hold_what_was_returned(run):
    for name in ("split", "history"):
        pd.testing.assert_frame_equal(run.read(name), getattr(run.result, name))
    for name in ("methods", "occurrences"):
        pd.testing.assert_frame_equal(run.read(name, index_col=0), getattr(run.result, name))


def test_history_has_every_fold(run):
    scored = run.result.history.dropna(subset=["eval_macro_f1"])
    assert scored["fold"].tolist() == [1, 1, 2, 2, 3, 3]
    np.testing.assert_allclose(scored["epoch"], [0, 1] * 3)


def test_the_folder_reopens_as_the_gene_classifier_that_was_returned(run, cells, tmp_path):
    reopened = gf.Checkpoint.from_pretrained(run.out)
    assert isinstance(reopened.model, GeneClassifier)
    assert reopened.head == Head((Classes("gene class", CLASSES),), level="gene")
    assert reopened.fingerprint == run.result.checkpoint.fingerprint
    expected = probabilities_at(run.result.checkpoint.model, cells, tmp_path)
    stock = BertForTokenClassification.from_pretrained(run.out).eval()
    with torch.inference_mode():
        found = stock(torch.as_tensor(cells[0][None])).logits[0].double().softmax(-1)
        own = reopened.model(torch.as_tensor(cells[0]), [len(cells[0])]).logits.double().softmax(-1)
    np.testing.assert_allclose(own, found, atol=1e-5)
    np.testing.assert_allclose(own[1:-1], expected[: len(cells[0]) - 2], atol=1e-5)


def test_provenance_says_what_made_the_classifier(run, base, cells, classes):
    record = json.loads((run.out / "provenance.json").read_text())
    assert record["step"] == "finetune_genes"
    assert record["config"] == dataclasses.asdict(settings())
    assert record["inputs"].items() >= {"cells": cells.fingerprint, "checkpoint": base.fingerprint}.items()
    assert record["inputs"].keys() == {"cells", "checkpoint", "split", "counts"}
    assert {name: sorted(genes) for name, genes in record["gene_classes"].items()} == {
        name: sorted(genes) for name, genes in classes.items()
    }
    assert record["result"] == pytest.approx(run.result.methods.loc[FINE_TUNED].to_dict(), abs=1e-6)


# The same again


def test_a_run_that_was_cut_off_ends_like_an_uninterrupted_one(
    run, base, cells, classes, tmp_path, monkeypatch, without_pictures
):
    shutil.copytree(run.kept, tmp_path / "clf.partial")
    (tmp_path / "clf.partial" / "fold-2" / "random.npy").unlink()
    trainings = []
    monkeypatch.setattr(networks, "train", recording(trainings))
    resumed = finetune_genes(base, cells, classes, settings(), out=tmp_path / "clf")
    assert [trained.step for trained in trainings] == ["fold 2 of 3, random weights", "all genes"]
    pd.testing.assert_frame_equal(resumed.methods, run.result.methods, check_exact=True)
    pd.testing.assert_frame_equal(resumed.history, run.result.history, check_exact=True)
    pd.testing.assert_frame_equal(resumed.occurrences, run.result.occurrences)
    pd.testing.assert_frame_equal(resumed.evaluation.probabilities, run.result.evaluation.probabilities)
    assert resumed.checkpoint.fingerprint == run.result.checkpoint.fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["clf"]


def test_what_is_finished_lies_under_names_that_say_what_it_is_without_weights(run):
    found = {str(path.relative_to(run.kept)) for path in run.kept.rglob("*") if path.is_file()}
    folders = [f"fold-{i}/{name}" for i in (1, 2, 3) for name in ("fine-tuned", "random")]
    files = [f"{network}{file}" for network in folders for file in (".npy", "/history.json", "/log.jsonl")]
    simple = [f"fold-{i}/methods/gene class/{file_name(name)}.npy" for i in (1, 2, 3) for name in GENE_METHODS]
    found = {name for name in found if not name.endswith(".sha256")}
    assert found == {"plan.json", "lock", *files, *simple}


@pytest.fixture
def begin(base, cells, classes, tmp_path, monkeypatch):
    """Begin a run, and stop before anything is computed; raises `StoppedError` where it was not refused."""

    def stop(*given, **options):
        raise StoppedError

    monkeypatch.setattr(Experiment, "run", stop)

    def begin(config, classes=classes, **options):
        with pytest.raises(StoppedError):
            finetune_genes(base, cells, classes, config, out=tmp_path / "clf", **options)

    return begin


def refused(begin, what, *given, **options):
    with pytest.raises(FileExistsError, match=rf"clf\.partial holds an unfinished run.*\({what}.*overwrite=True"):
        begin(*given, **options)


def test_an_unfinished_run_is_the_same_by_the_content_of_classes_counts_and_version(
    begin, cells_file, classes, monkeypatch
):
    counts = ad.read_h5ad(cells_file)
    begin(settings())
    begin(settings(), counts=counts)
    refused(begin, "gene_classes.dull", settings(), classes | {"dull": classes["dull"][:-1]})
    counts.X.data[0] += 1
    refused(begin, "counts", settings(), counts=counts)
    monkeypatch.setattr(module, "VERSION", module.VERSION + 1)
    refused(begin, "version", settings())


def test_an_output_that_exists_is_refused_and_left_alone(run, base, cells, classes):
    before = (run.out / "methods.tsv").stat().st_mtime_ns
    with pytest.raises(FileExistsError, match=r"clf already exists.*overwrite=True"):
        finetune_genes(base, cells, classes, quick(), out=run.out)
    assert (run.out / "methods.tsv").stat().st_mtime_ns == before


# Genes and classes


def test_genes_by_name_are_the_genes_by_id(base, cells, classes):
    name_of = dict(zip(cells.vocabulary.gene_ids, cells.vocabulary.gene_names, strict=True))
    named = {label: [name_of[gene] for gene in genes] for label, genes in classes.items()}
    assert not set(name_of).intersection(*named.values())
    expected = split_of(cells, classes)
    pd.testing.assert_frame_equal(split_of(cells, named), expected)


def test_a_gene_listed_twice_in_a_class_counts_once(base, cells, classes):
    twice = {label: genes + genes[:2] for label, genes in classes.items()}
    expected = split_of(cells, classes)
    pd.testing.assert_frame_equal(split_of(cells, twice), expected)


def test_unknown_genes_are_left_out_and_named(base, cells, classes, caplog):
    more = classes | {"odd": [*classes["odd"], "NOGENE1", "ENSG99999999999"]}
    found = split_of(cells, more)
    pd.testing.assert_frame_equal(found, split_of(cells, classes))
    assert "2 listed genes are not in the vocabulary and left out: NOGENE1, ENSG99999999999" in caplog.text


def test_genes_that_few_cells_express_are_left_out_and_counted(base, cells, classes, caplog):
    counted = n_cells_of(cells)
    rare = counted[(counted >= 1) & (counted < 3)].index[:4].tolist()
    with caplog.at_level(logging.INFO, logger="geneformer_repro"):
        found = split_of(cells, classes | {"odd": classes["odd"] + rare})
    pd.testing.assert_frame_equal(found, split_of(cells, classes))
    assert "4 of 25 genes are in fewer than 3 of the 120 cells, as these were tokenised; left out." in caplog.text


def test_genes_in_several_classes_are_left_out_and_named(base, cells, classes, caplog):
    twice = classes["dull"][0]
    found = split_of(cells, classes | {"odd": [*classes["odd"], twice]})
    assert twice not in set(found["gene"])
    assert len(found) == len(split_of(cells, classes)) - 1
    assert f"1 listed genes are in several classes and left out: {twice}" in caplog.text


REFUSED = {
    "one class": (lambda classes: {"dull": classes["dull"]}, "at least two classes, found 1"),
    "a class too small": (
        lambda classes: classes | {"odd": classes["odd"][:2]},
        r"needs at least 3 genes that at least 3 cells express, for 3 folds; too few: 'odd' \(2\)\. Give more genes",
    ),
    "a class given twice": (lambda classes: {0: classes["dull"], "0": classes["odd"]}, "give a class twice: 0, '0'"),
    "a class of unknown genes": (lambda classes: classes | {"odd": ["NOGENE"]}, r"too few: 'odd' \(0\)"),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_classes_that_cannot_be_learned_are_refused_before_the_work(base, cells, classes, tmp_path, change, message):
    with pytest.raises(gf.InputError, match=message):
        finetune_genes(base, cells, change(classes), quick(), out=tmp_path / "clf")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("folds", "least"), [(2, 4), (3, 3), (5, 5)])
def test_a_class_of_the_fewest_genes_can_be_split(base, cells, classes, folds, least):
    small = {name: genes[:least] for name, genes in classes.items()}
    splits = gene_splits(*prepared(cells, small, folds=folds), validation=0.5, seed=0)
    assert len(splits) == folds
    for split in splits:
        np.testing.assert_array_equal(np.sort(np.concatenate(split)), np.arange(3 * least))
    with pytest.raises(gf.InputError, match=f"at least {least} genes"):
        prepared(cells, small | {"odd": classes["odd"][: least - 1]}, folds=folds)


def test_cells_of_another_vocabulary_are_refused(base, pbmc, classes, tmp_path):
    others = gf.tokenize(pbmc[:, 1:].copy(), gf.Vocabulary.fit(pbmc[:, 1:].copy(), max_length=34))
    with pytest.raises(gf.VocabularyMismatchError, match="the dataset and checkpoint base"):
        finetune_genes(base, others, classes, quick(), out=tmp_path / "clf")


# Tables of classes


def table(folder, text):
    (folder / "classes.txt").write_text(text)
    return folder / "classes.txt"


@pytest.mark.parametrize("column", ["gene_id", "ensembl_id", "gene", "gene_name"])
@pytest.mark.parametrize("comma", ["\t", ","], ids=["tab", "comma"])
def test_a_table_has_a_column_of_genes_and_one_of_labels(tmp_path, column, comma):
    text = "\n".join(comma.join(row) for row in [("label", column), ("b", "G1"), ("a", "G2"), ("b", "NA"), ("", "G4")])
    assert read_gene_classes(table(tmp_path, text)) == {"a": ["G2"], "b": ["G1", "NA"]}


def test_a_table_with_tabs_may_have_commas_in_its_columns(tmp_path):
    path = table(tmp_path, "gene\tlabel\tfound, where\nA\tx, y\t1, 2, 3\n")
    assert read_gene_classes(path) == {"x, y": ["A"]}


def test_labels_of_genes_are_read_as_those_of_cells(tmp_path):
    path = table(tmp_path, "gene\tlabel\nA\tx\nB\tx \nC\tNA\nD\tnan\nE\t \nF\ty\n")
    assert read_gene_classes(path) == {"x": ["A", "B"], "y": ["F"]}


def test_of_several_columns_of_genes_ids_are_read(tmp_path):
    path = table(tmp_path, "gene_name,label,gene_id\nA,x,ENSG1\n")
    assert read_gene_classes(path) == {"x": ["ENSG1"]}


def test_of_several_tasks_one_is_read(tmp_path):
    path = table(tmp_path, "task,gene,label\nlong,A,x\nlong,B,y\nshort,A,z\n")
    assert read_gene_classes(path, "long") == {"x": ["A"], "y": ["B"]}
    assert read_gene_classes(table(tmp_path, "task,gene,label\nonly,A,x\n")) == {"x": ["A"]}


@pytest.mark.parametrize(
    ("text", "task", "message"),
    [
        pytest.param("gene,class\nA,x\n", None, r"expected a column label and.*found 'gene', 'class'", id="label"),
        pytest.param("symbol,label\nA,x\n", None, "one of gene_id, ensembl_id, gene, gene_name, found", id="genes"),
        pytest.param("gene,label\nA,x\n", "long", "has no task 'long'. There are none", id="no tasks"),
        pytest.param(
            "task,gene,label\nlong,A,x\n", "lonng", "has no task 'lonng'. Did you mean 'long'?", id="wrong task"
        ),
        pytest.param(
            "task,gene,label\nlong,A,x\nshort,A,x\n", None, r"several tasks; choose one.*: long, short", id="no choice"
        ),
        pytest.param("", None, "cannot be read as a table", id="empty"),
        pytest.param("gene,label\nA,x\nB,x,1,2\n", None, "cannot be read as a table", id="a longer row"),
        pytest.param("gene\tlabel\nA\tx\tnote\n", None, "more fields than the header", id="a column without a name"),
    ],
)
def test_a_table_that_does_not_say_it_is_refused(tmp_path, text, task, message):
    with pytest.raises(gf.InputError, match=rf"classes\.txt: .*{message}"):
        read_gene_classes(table(tmp_path, text), task)


def test_a_missing_table_is_refused(tmp_path):
    with pytest.raises(gf.InputError, match=r"nowhere\.tsv: cannot be read"):
        read_gene_classes(tmp_path / "nowhere.tsv")


def test_a_run_reads_a_table_itself(base, cells, tmp_path, monkeypatch):
    def stop(cells, gene_classes, config):
        raise StoppedError(gene_classes)

    monkeypatch.setattr(module, "labelled_genes", stop)
    path = table(tmp_path, "task,gene,label\nlong,A,x\nshort,A,x\n")
    with pytest.raises(StoppedError, match=r"{'x': \['A'\]}"):
        finetune_genes(base, cells, path, task="short", out=tmp_path / "clf")


# Settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"folds": 1}, r"split\.folds must be at least 2, found 1", id="folds"),
        pytest.param({"validation": 0.0}, r"\.validation must be above 0 and at most 0\.5, found 0", id="validation 0"),
        pytest.param({"validation": 0.6}, r"\.validation must be above 0 and at most 0\.5, found", id="validation 0.6"),
        pytest.param({"max_cells": -1}, r"\.max_cells must be at least 1, found -1", id="max_cells"),
        pytest.param({"epochs": 0}, r"\.epochs must be above 0", id="those of training"),
        pytest.param({"seed": -1}, r"\.seed must be at least 0 and below 2\*\*32, found -1", id="seed"),
        pytest.param({"strategy": "half"}, r"transfer\.strategy must be one of 'full'", id="those of the transfer"),
    ],
)
def test_settings_out_of_bounds_are_refused_by_name(changes, message):
    with pytest.raises(ConfigError, match=message):
        settings(**changes)


# Published classes


def test_published_classes_in_real_cells(shared):
    adata = ad.read_h5ad(shared / "data" / "pbmc3k" / "pbmc3k.h5ad")[:60].copy()
    vocabulary = gf.Vocabulary.fit(adata, max_length=512)
    listed = read_gene_classes(shared / "data" / "gene_sets" / "geneformer_gene_classes.tsv", "dosage_sensitivity_tf")
    assert {name: len(genes) for name, genes in listed.items()} == {"dosage_insensitive": 368, "dosage_sensitive": 122}
    split = split_of(gf.tokenize(adata, vocabulary), listed, folds=2)
    assert split["n_cells"].min() >= 3
    assert all(gene in listed[label] for gene, label in zip(split["gene"], split["label"], strict=True))
    assert set(split["label"]) == set(listed)
