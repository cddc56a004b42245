"""Sets and lists of others: how they are read, what they say of themselves, which names lead to no gene."""

import gzip

import numpy as np
import pandas as pd
import pytest
from tables_of_genes import table_of_genes

from geneformer_repro.errors import DataFormatError, InputError
from geneformer_repro.files import sha256
from geneformer_repro.in_silico.explanations.gene_sets import mapped_sets, read_gene_list, read_gene_sets
from geneformer_repro.in_silico.explanations.scored_genes import scored_genes

GMT = "# licence: CC BY 4.0\nFIRST\tfrom a paper\tTP53\tEGFR\tTP53\nSECOND\t\tENSG00000141510.17\tKRAS\n"


@pytest.mark.parametrize("packed", [False, True])
def test_a_gmt_file_with_what_it_says(tmp_path, packed):
    path = tmp_path / f"h.all.v2025.1.Hs.symbols.gmt{'.gz' if packed else ''}"
    path.write_bytes(gzip.compress(GMT.encode()) if packed else GMT.encode())
    sets = read_gene_sets(path)
    assert sets.members == {"FIRST": ("TP53", "EGFR"), "SECOND": ("ENSG00000141510.17", "KRAS")}
    assert sets.described == {
        "file": path.name, "sha256": sha256(path), "version": "2025.1", "licence": "CC BY 4.0",
    }  # fmt: skip


@pytest.mark.parametrize("columns", [("set", "gene"), ("source", "target"), ("gs_name", "Gene Symbol")])
def test_a_table_of_sets_and_genes(tmp_path, columns):
    rows = pd.DataFrame([("A", "TP53"), ("B", "KRAS"), ("A", "EGFR"), ("A", "TP53"), ("A", None)], columns=columns)
    rows["version"] = "7"
    path = tmp_path / "sets.tsv"
    rows.to_csv(path, sep="\t", index=False)
    for given in (rows, path):
        sets = read_gene_sets(given)
        assert sets.members == {"A": ("TP53", "EGFR"), "B": ("KRAS",)}
        assert sets.described["version"] == "7"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("A\tTP53\n", r"line 1 holds 2 fields \(first: 'A'\)"),
        ("A\tpaper\tTP53\nA\tpaper\tKRAS\n", "line 2 is a second set 'A'"),
        ("# nothing\n", "holds no gene set"),
    ],
    ids=["no gene", "a name twice", "no set"],
)
def test_what_is_no_gmt_is_refused_with_its_line(tmp_path, text, says):
    path = tmp_path / "sets.gmt"
    path.write_text(text)
    with pytest.raises(InputError, match=says):
        read_gene_sets(path)


def test_a_table_without_sets_says_which_columns_it_may_have(tmp_path):
    path = tmp_path / "sets.tsv"
    path.write_text("one\ttwo\nA\tTP53\n")
    with pytest.raises(DataFormatError, match=r"no column of sets.* may be called set, .*found 'one', 'two'.*\.gmt"):
        read_gene_sets(path)


def test_sets_are_cut_to_the_table_and_what_is_lost_is_counted():
    table = pd.DataFrame({"score": np.arange(4.0), "gene_name": ["TP53", "KRAS", "MARCHF1", "own name"]})
    table.index = ["ENSG00000141510", "ENSG00000133703", "ENSG00000145416", "gene 4"]
    (genes,) = scored_genes(table, strata=None)
    sets = read_gene_sets(
        {"A": ["TP53", "ENSG00000133703.5", "NOT A GENE"], "B": ["MARCH1", "own name"], "C": ["EGFR"]}
    )
    cut = mapped_sets(sets, genes, min_size=2)
    assert dict(zip(cut.names, map(list, cut.genes), strict=True)) == {"A": [0, 1], "B": [2, 3]}
    assert cut.lost == {
        "sets": 3, "too small": 1, "too large": 0,
        "genes": 6, "unknown genes": 2, "unknown names": "'NOT A GENE', 'EGFR'",
    }  # fmt: skip


def test_a_table_of_symbols_is_led_to_the_same_genes():
    (genes,) = scored_genes(pd.DataFrame({"symbol": ["TP53", "MARCH1"], "score": [1.0, 2.0]}), strata=None)
    cut = mapped_sets(read_gene_sets({"A": ["ENSG00000141510", "MARCHF1"]}), genes)
    assert list(cut.genes[0]) == [0, 1]


def test_sets_of_another_species_are_refused_with_examples():
    (genes,) = scored_genes(table_of_genes(n_genes=20), strata=None)
    with pytest.raises(
        InputError, match=r"None of 1 sets.* \(0 of 2 genes of the sets are there; 'Trp53', 'Kras' against"
    ):
        mapped_sets(read_gene_sets({"A": ["Trp53", "Kras"]}), genes)


@pytest.mark.parametrize(
    ("text", "names", "said"),
    [
        ("TP53\nKRAS\n", ["TP53", "KRAS"], {}),
        ("# name: OncoKB\n# version = 2025-01\nTP53\n", ["TP53"], {"name": "OncoKB", "version": "2025-01"}),
        ("Hugo Symbol\tEntrez\nTP53\t7157\nKRAS\t3845\n", ["TP53", "KRAS"], {}),
        ("gene\nTP53\n", ["TP53"], {}),
        ("symbol,licence\nTP53,academic\n", ["TP53"], {"licence": "academic"}),
    ],
    ids=["one a line", "with remarks", "a table", "one column", "what columns say"],
)
def test_lists_of_genes(tmp_path, text, names, said):
    path = tmp_path / "drivers.txt"
    path.write_text(text)
    found, known = read_gene_list(path)
    assert found == names
    assert known == {"file": "drivers.txt", "sha256": sha256(path), **said}


def test_a_list_that_names_no_gene_is_refused(tmp_path):
    path = tmp_path / "drivers.txt"
    path.write_text("# nothing\n")
    with pytest.raises(InputError, match="names no gene"):
        read_gene_list(path)
