import re

import pandas as pd
import pytest

from geneformer_repro.tokenizer.genes import ensembl_of_symbol


@pytest.mark.parametrize(
    ("symbol", "gene"),
    [
        pytest.param("TBX5", "ENSG00000089225", id="current"),
        pytest.param("ACTB", "ENSG00000075624", id="current_housekeeping"),
        pytest.param("MLL", "ENSG00000118058", id="former_of_KMT2A"),
        pytest.param("MT-ND1", "ENSG00000198888", id="mitochondrial"),
    ],
)
def test_a_symbol_leads_to_its_ensembl_id(symbol, gene):
    assert ensembl_of_symbol()[symbol] == gene


@pytest.mark.parametrize("symbol", ["", "no-such-gene", "Y_RNA", "tbx5"])
def test_a_name_that_stands_for_no_or_several_genes_is_absent(symbol):
    assert symbol not in ensembl_of_symbol()


def test_every_id_is_a_human_gene_without_version():
    assert all(re.fullmatch(r"ENSG\d{11}", gene) for gene in ensembl_of_symbol().values())


def test_names_that_look_like_missing_values_stay_names():
    assert all(isinstance(symbol, str) and symbol for symbol in ensembl_of_symbol())


def test_the_table_is_read_once():
    assert ensembl_of_symbol() is ensembl_of_symbol()


def test_current_names_agree_with_gencode(shared):
    gencode = pd.read_csv(shared / "data" / "gene_maps" / "gencode_v44_id_to_name.csv.gz", dtype=str)
    distinct = gencode.drop_duplicates("gene_name", keep=False).set_index("gene_name")["ensembl_id"]
    found = distinct.index.to_series().map(ensembl_of_symbol())
    # GENCODE 44 gives DDX11L2 to two genes; that copy of the list keeps one of them.
    assert found.index[found.isna()].tolist() == ["DDX11L2"]
    pd.testing.assert_series_equal(found.drop("DDX11L2"), distinct.drop("DDX11L2"), check_names=False)
