"""Asking a classifier about new data: the same numbers whatever the data come as, and where they are put."""

import dataclasses
import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from forking import several
from scipy.sparse import csr_matrix
from transformers import BertConfig, BertForSequenceClassification

import geneformer_repro as gf
from geneformer_repro import reading
from geneformer_repro.batching import end_to_end
from geneformer_repro.finetuning import predict as module
from geneformer_repro.finetuning.networks import new_classifier
from geneformer_repro.finetuning.predict import predict
from geneformer_repro.heads import Head
from geneformer_repro.reading import outputs_of
from geneformer_repro.targets import Classes, Number

TYPES = ("CD14+ Monocyte", "CD19+ B", "CD4+/CD25 T Reg")
SIZE = Number("size", mean=3.0, sd=0.5)
COLUMNS = ["type_predicted", "type_probability", *(f"type_p_{name}" for name in TYPES), "size_predicted"]


def classifier(base, *targets, level="cell"):
    model = new_classifier(base, Head(targets, level=level), seed=3, pretrained=True)
    with torch.no_grad():
        model.classifier.weight.mul_(5)  # so that not all are of one class
    return gf.Checkpoint(model.eval(), base.vocabulary, name="checkpoint clf")


@pytest.fixture(scope="module")
def of_cells(base):
    return classifier(base, Classes("type", TYPES), SIZE)


@pytest.fixture(scope="module")
def of_genes(base):
    return classifier(base, Classes("gene class", ("dull", "odd")), level="gene")


def silence(adata, *rows):
    """Take away all counts of some cells."""
    keep = np.ones((adata.n_obs, 1))
    keep[list(rows)] = 0
    adata.X = csr_matrix(adata.X.multiply(keep))
    return adata


# Cells


@pytest.fixture(scope="module")
def expected(of_cells, few):
    """The classifier's own outputs, one cell at a time."""
    with torch.inference_mode():
        outputs = torch.cat(
            [of_cells.model(**end_to_end([cell], few.vocabulary).inputs).logits for cell in few]
        ).double()
    of_types, of_size = outputs[:, :3].softmax(1).numpy(), outputs[:, 3].numpy() * SIZE.sd + SIZE.mean
    called = np.array(TYPES, dtype=object)[of_types.argmax(1)]
    columns = [called, of_types.max(1), *of_types.T, of_size]
    return pd.DataFrame(dict(zip(COLUMNS, columns, strict=True)), index=few.cell_names)


@pytest.mark.parametrize("form", ["AnnData", "file", "tokenised"])
def test_predictions_are_the_classifier_s_outputs_whatever_the_data_come_as(
    of_cells, expected, few, few_file, few_counts, form
):
    data = {"AnnData": few_counts, "file": few_file, "tokenised": few}[form]
    found = predict(of_cells, data)
    assert expected["type_predicted"].nunique() > 1
    pd.testing.assert_frame_equal(found, expected, atol=1e-5, check_names=False)


def test_a_published_classifier_predicts_what_stock_transformers_says(base, few, tmp_path):
    torch.manual_seed(4)
    config = BertConfig(**{**base.model.config.to_dict(), "id2label": dict(enumerate(TYPES))})
    stock = BertForSequenceClassification(config).eval()
    stock.bert.load_state_dict(base.model.bert.state_dict(), strict=False)
    stock.save_pretrained(tmp_path / "clf")
    found = predict(gf.Checkpoint.from_pretrained(tmp_path / "clf", vocabulary=base.vocabulary), few)
    with torch.inference_mode():
        said = torch.cat([stock(torch.as_tensor(cell)[None]).logits.softmax(1) for cell in few]).numpy()
    np.testing.assert_allclose(found[[f"label_p_{name}" for name in TYPES]], said, atol=1e-5)
    assert found["label_predicted"].tolist() == [TYPES[i] for i in said.argmax(1)]


@pytest.mark.parametrize("order", ["descending", "two_ended"])
def test_bulk_samples_are_read_as_those_that_the_classifier_knows(of_cells, few_counts, order):
    few_counts.X = few_counts.X * 40.5
    of_bulk = gf.Vocabulary.fit(few_counts, values="expression", base=of_cells.vocabulary)
    samples = gf.tokenize(few_counts, of_bulk, values="expression", order=order)
    of_samples = dataclasses.replace(of_cells, vocabulary=samples.vocabulary)
    expected = predict(of_samples, samples)
    pd.testing.assert_frame_equal(predict(of_samples, few_counts), expected, check_names=False)
    few_counts.X = few_counts.X.astype(np.float64)
    few_counts.X.data = np.log2(few_counts.X.data + 1)
    pd.testing.assert_frame_equal(predict(of_samples, few_counts, log2=True), expected, check_names=False)
    with pytest.raises(gf.DataFormatError, match="give log2=True"):
        predict(of_samples, few_counts)


def test_probabilities_sum_to_one(of_cells, few):
    found = predict(of_cells, few)
    np.testing.assert_allclose(found[[f"type_p_{name}" for name in TYPES]].sum(axis=1), 1)


def test_less_memory_gives_the_same(of_cells, few):
    pd.testing.assert_frame_equal(predict(of_cells, few, max_tokens=34), predict(of_cells, few), atol=1e-5)


def test_the_columns_are_put_into_obs_in_the_order_of_the_cells(of_cells, expected, few_counts):
    shuffled = few_counts[np.random.default_rng(0).permutation(few_counts.n_obs)].copy()
    before = shuffled.obs.copy()
    found = predict(of_cells, shuffled)
    assert found.index.tolist() == shuffled.obs_names.tolist()
    pd.testing.assert_frame_equal(found, expected.loc[shuffled.obs_names], atol=1e-5, check_names=False)
    for name in COLUMNS:
        np.testing.assert_array_equal(shuffled.obs[name.replace("/", "|")], found[name])
    pd.testing.assert_frame_equal(shuffled.obs[before.columns], before)
    assert shuffled.obs.shape[1] == before.shape[1] + len(COLUMNS)


def test_a_second_prediction_replaces_the_first(of_cells, few_counts):
    predict(of_cells, few_counts)
    before = few_counts.obs.copy()
    few_counts.obs["size_predicted"] = 0.0
    predict(of_cells, few_counts)
    pd.testing.assert_frame_equal(few_counts.obs, before)


def test_an_anndata_with_predictions_can_be_written(of_cells, few_counts, tmp_path):
    found = predict(of_cells, silence(few_counts, 5))
    few_counts.write_h5ad(tmp_path / "predicted.h5ad")
    obs = ad.read_h5ad(tmp_path / "predicted.h5ad").obs
    np.testing.assert_array_equal(obs["type_p_CD4+|CD25 T Reg"], found["type_p_CD4+/CD25 T Reg"])
    assert obs["type_predicted"].isna().sum() == 1


def test_a_cell_without_a_known_gene_has_no_prediction(of_cells, few_counts, caplog):
    expected = predict(of_cells, few_counts.copy())
    with caplog.at_level(logging.INFO, logger="geneformer_repro"):
        found = predict(of_cells, silence(few_counts, 3, 119))
    assert few_counts.obs[found.columns.str.replace("/", "|")].iloc[[3, 119]].isna().all(axis=None)
    others = np.delete(np.arange(120), [3, 119])
    pd.testing.assert_frame_equal(found.iloc[others], expected.iloc[others], atol=1e-5)
    assert "2 of 120 cells left out: no known gene" in caplog.text


def test_unknown_and_missing_genes_are_said_in_the_log(of_cells, few_counts, caplog):
    names = few_counts.var_names.tolist()
    names[5] = f"{names[6]}.2"  # one gene of the model twice
    few_counts.var_names = [f"ENSG9{i:010}" if i < 4 else name for i, name in enumerate(names)]
    with caplog.at_level(logging.INFO, logger="geneformer_repro"):
        predict(of_cells, few_counts[:, :-6].copy())
    n_known, n_genes = len(set(names[4:-6]) & set(of_cells.vocabulary.gene_ids)), len(of_cells.vocabulary)
    assert f"{n_known} of the {n_genes} genes that the model knows are in the data; the rest count as silent" in (
        caplog.text
    )
    assert "unknown" in caplog.text
    assert "mislead a model" not in caplog.text
    predict(of_cells, few_counts[:5, 200:400].copy())
    (warned,) = [
        record.message for record in caplog.records if record.levelno == logging.WARNING and "knows" in record.message
    ]
    assert "may mislead a model" in warned


def test_layer_and_column_of_ids_are_those_of_tokenize(of_cells, expected, few_counts):
    few_counts.layers["counts"], few_counts.var["ids"] = few_counts.X.copy(), few_counts.var_names
    few_counts.X, few_counts.var_names = few_counts.X / 2, [f"g{i}" for i in range(few_counts.n_vars)]
    found = predict(of_cells, few_counts, layer="counts", gene_ids="ids")
    pd.testing.assert_frame_equal(found, expected, atol=1e-5, check_names=False)


# Much data


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(reading, "CELLS_A_PART", 5)


def test_the_table_on_disk_is_the_one_in_memory(of_cells, few, tmp_path, small_parts):
    table = predict(of_cells, few, out=tmp_path / "p.tsv")
    pd.testing.assert_frame_equal(table, predict(of_cells, few))
    read = pd.read_csv(tmp_path / "p.tsv", sep="\t", index_col="cell")
    pd.testing.assert_frame_equal(read, table.rename_axis("cell"), check_dtype=False)
    assert [path.name for path in tmp_path.iterdir()] == ["p.tsv"]


@pytest.mark.parametrize("form", ["tokenised", "file"])
def test_a_prediction_that_was_cut_off_goes_on_with_what_is_missing(
    of_cells, few, few_counts, tmp_path, small_parts, monkeypatch, form
):
    data = few
    if form == "file":
        few_counts.write_h5ad(tmp_path / "cells.h5ad")
        data = tmp_path / "cells.h5ad"
    predict(of_cells, data, out=tmp_path / "whole.tsv")
    asked, cuts = [], [KeyboardInterrupt]

    def ask(model, cells, *given, **options):
        if len(asked) == 2 and cuts:
            raise cuts.pop()
        asked.append(list(cells.cell_names))
        return outputs_of(model, cells, *given, **options)

    monkeypatch.setattr(module, "outputs_of", ask)
    with pytest.raises(KeyboardInterrupt):
        predict(of_cells, data, out=tmp_path / "p.tsv")
    predict(of_cells, data, out=tmp_path / "p.tsv")
    assert [name for part in asked for name in part] == list(few.cell_names)
    assert (tmp_path / "p.tsv").read_bytes() == (tmp_path / "whole.tsv").read_bytes()


def test_two_processes_share_the_cells_and_write_what_one_writes(of_cells, of_genes, few, tmp_path, small_parts):
    def run(rank):
        asked = []

        def ask(model, cells, *given, **options):
            asked.append(len(cells))
            return outputs_of(model, cells, *given, **options)

        module.outputs_of = ask
        table = predict(of_cells, few, out=tmp_path / "two.tsv")
        assert 0 < sum(asked) < len(few)
        pd.testing.assert_frame_equal(predict(of_cells, few), table)
        predict(of_genes, few, out=tmp_path / "genes.tsv")

    several(run, tmp_path)
    predict(of_cells, few, out=tmp_path / "one.tsv")
    assert (tmp_path / "two.tsv").read_bytes() == (tmp_path / "one.tsv").read_bytes()
    found = pd.read_csv(tmp_path / "genes.tsv", sep="\t", index_col="gene")
    pd.testing.assert_frame_equal(found, predict(of_genes, few).rename_axis("gene"), check_dtype=False)


# Genes


@pytest.fixture(scope="module")
def by_gene(of_genes, few):
    """Mean probabilities over the occurrences of each gene, one cell at a time."""
    tables = []
    for i, cell in enumerate(few):
        with torch.inference_mode():
            logits = of_genes.model(torch.as_tensor(cell), [len(cell)]).logits
        rows = logits.double().softmax(1).numpy()[few.vocabulary.genes_of(cell) >= 0]
        tables.append(pd.DataFrame(rows, columns=["dull", "odd"], index=few.genes(i)))
    return pd.concat(tables)


def test_a_gene_s_prediction_is_the_mean_over_its_occurrences(of_genes, few, by_gene):
    found, mean = predict(of_genes, few), by_gene.groupby(level=0).mean()
    expected = mean.loc[found.index]
    assert len(found) == len(mean)
    np.testing.assert_allclose(found[["gene class_p_dull", "gene class_p_odd"]], expected, atol=1e-5)
    assert found["gene class_predicted"].tolist() == expected.idxmax(axis=1).tolist()
    assert found["n_cells"].tolist() == by_gene.index.value_counts()[found.index].tolist()


@pytest.mark.parametrize("ids", ["index", "version", "column", "raw"])
def test_genes_are_put_into_var_where_tokenize_finds_them(of_genes, few, few_counts, ids):
    expected = predict(of_genes, few).reindex(few_counts.var_names)
    names = few_counts.var_names
    if ids == "version":
        few_counts.var_names = names + ".7"
    if ids == "column":
        few_counts.var["ensembl_id"], few_counts.var_names = names, [f"g{i}" for i in range(len(names))]
    if ids == "raw":
        few_counts.raw = few_counts
        few_counts, expected = few_counts[:, ::-2].copy(), expected.iloc[::-2]
    found = predict(of_genes, few_counts, layer="raw" if ids == "raw" else None)
    np.testing.assert_allclose(found["gene class_p_odd"], expected["gene class_p_odd"], atol=1e-5)
    assert found.index.tolist() == few_counts.var_names.tolist()
    for name in found:
        pd.testing.assert_series_equal(few_counts.var[name], found[name])
    assert 0 < found["n_cells"].isna().sum() < len(found), "genes that no cell has among its tokens"


# What cannot be predicted


def test_a_pretrained_model_is_refused(base, few):
    with pytest.raises(gf.InputError, match="checkpoint base is a pretrained model without classes; predict needs one"):
        predict(base, few)


@pytest.mark.parametrize("told", [{"clinical": "clinical.tsv"}, {"genes_in": "rows"}])
def test_what_only_expression_networks_are_told_is_refused(of_cells, few, told):
    with pytest.raises(gf.InputError, match=f"^{next(iter(told))}= tells an expression network .* is an encoder"):
        predict(of_cells, few, **told)


def test_genes_of_another_species_stop_with_the_message_of_tokenize(of_cells, few_counts):
    few_counts.var_names = few_counts.var_names.str.replace("ENSG", "ENSMUSG")
    before = few_counts.obs.copy()
    with pytest.raises(gf.InputError, match=r"none of its 754 genes is known.*These are Ensembl ids of mouse"):
        predict(of_cells, few_counts)
    pd.testing.assert_frame_equal(few_counts.obs, before)


def test_normalised_counts_stop_with_the_message_of_tokenize(of_cells, few_counts):
    few_counts.X = few_counts.X / 3
    with pytest.raises(gf.DataFormatError, match="fractional values"):
        predict(of_cells, few_counts)


def test_cells_of_another_vocabulary_are_refused(of_cells, pbmc):
    others = gf.tokenize(pbmc[:9], gf.Vocabulary.fit(pbmc[:, 1:].copy(), max_length=34))
    with pytest.raises(gf.VocabularyMismatchError, match="the dataset and checkpoint clf"):
        predict(of_cells, others)


def test_a_tokenised_cell_of_special_tokens_only_has_no_prediction(of_cells, few, tmp_path):
    bare = [few.vocabulary.special_tokens[token] for token in ("<cls>", "<eos>")]
    pd.DataFrame({"input_ids": [few[0].tolist(), bare]}).to_parquet(tmp_path / "published.parquet")
    found = predict(of_cells, gf.TokenizedDataset.open(tmp_path / "published.parquet", few.vocabulary))
    assert found.notna().all(axis=1).tolist() == [True, False]
    assert found.iloc[1].isna().all()
