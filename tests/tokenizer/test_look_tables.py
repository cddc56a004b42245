"""What ``info`` says of tables: which kind, which way round, what the numbers are, and the command that goes on."""

import numpy as np
import pandas as pd
import pytest

from geneformer_repro.errors import DataFormatError
from geneformer_repro.tokenizer.look_tables import described_table

GENES = ["STAT1", "IRF1", "TP53", "EGFR", "MYC", "CD79A", "SPI1", "GATA1"]


def written(path, text):
    path.write_text(text)
    return described_table(path)


KINDS = {
    "edges": ("tf,target,mor\nMYC,TERT,1\n", "known edges", "statistics NETWORK --known"),
    "responses": ("cell_line,drug,LN_IC50\nES5,Erlotinib,3.1\n", "(LN_IC50)", "--measure LN_IC50 -o response"),
    "drugs": ("drug,smiles\nX,CCO\n", "drugs and their structures", "--drugs"),
    "classes": ("gene,label\nSTAT1,a\n", "classes of genes", "finetune BASE CELLS --genes"),
    "classes of tasks": ("task,gene,label\nt,STAT1,a\n", "classes of genes", "--task TASK -o model"),
    "split": ("cell,part\nc1,train\n", "a split", "finetune BASE CELLS --split"),
    "scores": ("gene,effect,fdr\nSTAT1,0.5,0.01\n", "scores of genes", "enrich"),
    "sets": ("pathway,gene\nP,STAT1\n", "gene sets", "--sets"),
    "clinical": ("patient,sex,age,OS,OS.time\nP1,F,50,1,300\nP2,M,40,0,200\n", "known of it", "--clinical"),
    "wide responses": (
        "line,Erlotinib,BI-2536,17-AAG\nX1,0.1,0.2,0.3\n",
        "cannot tell where the genes are",
        "--responses",
    ),
}


@pytest.mark.parametrize(("text", "kind", "following"), KINDS.values(), ids=KINDS)
def test_a_table_is_told_by_what_its_columns_are_called(tmp_path, text, kind, following):
    said = written(tmp_path / "a table.csv", text)
    rows = text.count("\n") - 1
    assert said.startswith(f"{tmp_path}/a table.csv: {rows} rows × {text.partition(chr(10))[0].count(',') + 1} columns")
    assert kind in said
    last = said.splitlines()[-1]
    assert last.startswith("next: ")
    assert following in last
    assert f"'{tmp_path}/a table.csv'" in last


MEASURES = {
    "counts": (lambda x: np.round(x), "whole numbers", " tokenize {} --vocabulary VOCABULARY -o e.tok"),
    "linear": (lambda x: x + 0.5, "linear, as TPM", " --values expression --vocabulary VOCABULARY"),
    "logged": (lambda x: np.log2(x + 1.3), "logarithms, as of log2(x + 1)", " --values expression --log2 "),
    "z-scores": (lambda x: (x - x.mean()) / x.std(), "z-scores or log ratios", " --values zscore "),
}


@pytest.mark.parametrize("form", [".tsv", ".tsv.gz", ".parquet"])
@pytest.mark.parametrize(("how", "what", "command"), MEASURES.values(), ids=MEASURES)
def test_expression_is_told_with_its_numbers_and_either_way_round(tmp_path, form, how, what, command):
    genes = [f"ENSG{i:011d}" for i in range(300)]
    values = how(np.random.default_rng(0).exponential(100, (5, 300)))
    table = pd.DataFrame(values, index=[f"S{i}" for i in range(5)], columns=genes).rename_axis("sample")
    for side, given in (("columns", table), ("rows", table.T.rename_axis("gene"))):
        path = tmp_path / f"e{form}"
        if form == ".parquet":
            given.to_parquet(path)
        else:
            given.to_csv(path, sep="\t")
        said = described_table(path)
        there = "rows" if side == "columns" else "columns"
        assert f"it looks like: expression of 5 samples ({there}) × 300 genes ({side})" in said
        assert what in said
        assert command.format(path) in said


def test_of_a_long_table_the_rest_is_counted_only(tmp_path, monkeypatch):
    monkeypatch.setattr("geneformer_repro.tokenizer.look_tables._BYTES", 1000)
    said = written(tmp_path / "long.tsv", "source\ttarget\n" + "MYC\tTERT\n" * 5000)
    assert "5,000 rows × 2 columns" in said
    assert "columns (of the first 109 rows):" in said


def test_lists_and_sets_of_genes_are_named_for_what_they_are(tmp_path):
    said = written(tmp_path / "genes.txt", "\n".join(GENES))
    assert "8 lines of one word: STAT1, IRF1, TP53 and 5 more" in said
    assert "a list of genes (100% of the lines look like one)" in said
    assert "it is no list of genes" in written(tmp_path / "words.txt", "one\ntwo words\nthree\n")
    said = written(tmp_path / "sets.gmt", "A\tx\tSTAT1\tIRF1\nB\tx\tMYC\n")
    assert "2 gene sets of 1 to 2 genes: A, B" in said
    assert "enrich GENES.tsv --sets" in said


def test_what_is_no_table_is_refused(tmp_path):
    with pytest.raises(DataFormatError, match="expected a gene set a line"):
        written(tmp_path / "empty.gmt", "\n")
    with pytest.raises(DataFormatError, match="expected a header"):
        written(tmp_path / "empty.tsv", "")
