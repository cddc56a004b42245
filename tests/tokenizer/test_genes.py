import gzip
import re

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from geneformer_repro.errors import DataFormatError, InputError
from geneformer_repro.tokenizer.genes import (
    bare_id,
    in_one_line,
    is_mitochondrial,
    names_of,
    read_gene_table,
    reconcile,
    require_known,
    shares,
)
from geneformer_repro.tokenizer.readers import is_ensembl_gene, open_counts
from geneformer_repro.tokenizer.symbols import ensembl_of_symbol, symbol_of_ensembl
from geneformer_repro.tokenizer.vocabulary import Vocabulary

TBX5, ACTB, KMT2A, ENSA, HES4, MT_ND1 = (
    "ENSG00000089225",
    "ENSG00000075624",
    "ENSG00000118058",
    "ENSG00000143420",
    "ENSG00000188290",
    "ENSG00000198888",
)
GENES = sorted([TBX5, ACTB, KMT2A, ENSA, HES4, MT_ND1])


def vocabulary_of(genes=GENES, **options):
    genes = sorted(genes)
    tokens = {token: i for i, token in enumerate(["<pad>", "<mask>", *genes])}
    return Vocabulary.from_tokens(tokens, dict.fromkeys(genes, 1.0), **options)


def source_of(ids, names=None):
    """One cell that expresses every gene."""
    adata = ad.AnnData(np.ones((1, len(ids)), dtype=np.float32))
    adata.var["ensembl_id"] = list(ids)
    if names is not None:
        adata.var["gene_name"] = list(names)
    return open_counts(adata)


def rows(genes):
    columns = ["gene", "outcome", "by", "gene_id"]
    return [tuple(row) for row in genes.table[columns].itertuples(index=False)]


def led(ids, names=None, vocabulary=None, other_ids=None):
    return rows(reconcile(source_of(ids, names), vocabulary or vocabulary_of(), other_ids))


# the table of symbols


@pytest.mark.parametrize(
    ("symbol", "gene"),
    [
        pytest.param("TBX5", TBX5, id="current"),
        pytest.param("ACTB", ACTB, id="current_housekeeping"),
        pytest.param("MLL", KMT2A, id="former_of_KMT2A"),
        pytest.param("MT-ND1", MT_ND1, id="mitochondrial"),
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


# recognised by the full pattern


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("ENSG00000089225", True, id="human"),
        pytest.param("ENSG00000089225.15", True, id="version"),
        pytest.param("ENSG00000182378.14_PAR_Y", True, id="par_y"),
        pytest.param("ENSG00000182378_PAR_Y", True, id="par_y_without_version"),
        pytest.param("ensg00000089225", True, id="lower_case"),
        pytest.param("ENSMUSG00000018263", True, id="mouse"),
        pytest.param("ENSDARG00000024894", True, id="zebrafish"),
        pytest.param("ENSA", False, id="a_symbol_that_begins_so"),
        pytest.param("ENSG", False, id="prefix_only"),
        pytest.param("ENSG0000008922", False, id="ten_digits"),
        pytest.param("ENSG000000892251", False, id="twelve_digits"),
        pytest.param("ENST00000310931", False, id="transcript"),
        pytest.param("ENSP00000309913", False, id="protein"),
        pytest.param("ENSE00001184784", False, id="exon"),
        pytest.param("ENSMUST00000018407", False, id="mouse_transcript"),
        pytest.param("xENSG00000089225", False, id="something_before"),
        pytest.param("ENSG00000089225x", False, id="something_after"),
        pytest.param("ENSG00000089225\n", False, id="newline_after"),
        pytest.param("ENSG00000089225.", False, id="empty_version"),
        pytest.param("", False, id="empty"),
    ],
)
def test_ensembl_genes_are_told_by_their_full_pattern(text, expected):
    assert is_ensembl_gene(text) is expected


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        ("ENSG00000089225.15", TBX5),
        ("ensg00000089225", TBX5),
        ("ENSG00000089225.15_PAR_Y", TBX5),
        ("ENSG00000089225_PAR_Y", TBX5),
        ("ENSMUSG00000018263.14", "ENSMUSG00000018263"),
        ("NKX2-5", "NKX2-5"),
        ("AC009403.2", "AC009403.2"),
        ("ENST00000310931.8", "ENST00000310931.8"),
    ],
)
def test_only_ensembl_gene_ids_lose_their_version(text, bare):
    assert bare_id(text) == bare


# what leads to a gene


@pytest.mark.parametrize(
    ("gene", "expected"),
    [
        pytest.param(TBX5, ("kept", "id", TBX5), id="id"),
        pytest.param(TBX5 + ".15", ("mapped", "version", TBX5), id="version"),
        pytest.param(TBX5 + ".15_PAR_Y", ("mapped", "version", TBX5), id="par_y"),
        pytest.param(TBX5.lower(), ("mapped", "version", TBX5), id="lower_case"),
        pytest.param(f" {TBX5} ", ("kept", "id", TBX5), id="spaces"),
        pytest.param("TBX5", ("mapped", "symbol", TBX5), id="symbol"),
        pytest.param("MLL", ("mapped", "symbol", KMT2A), id="former_symbol"),
        pytest.param("ENSA", ("mapped", "symbol", ENSA), id="symbol_that_begins_like_an_id"),
        pytest.param("MT-ND1", ("mapped", "symbol", MT_ND1), id="mitochondrial"),
        pytest.param("tbx5", ("unknown", "", ""), id="mouse_or_lower_case_symbol"),
        pytest.param("ENSG00000141510", ("unknown", "", ""), id="id_that_the_vocabulary_lacks"),
        pytest.param("TP53", ("unknown", "", ""), id="symbol_of_such"),
        pytest.param("ENST00000310931", ("unknown", "", ""), id="transcript"),
        pytest.param("", ("unknown", "", ""), id="blank"),
        pytest.param("TBX5-1", ("unknown", "", ""), id="no_such_symbol"),
    ],
)
def test_an_id_leads_to_a_gene_and_the_table_says_how(gene, expected):
    assert led([gene]) == [(gene.strip(), *expected)]


def test_a_mixture_of_ids_and_symbols_is_led_one_by_one():
    ids = [TBX5, "ACTB", KMT2A + ".3", "", "ENSA", "unheard-of"]
    found = reconcile(source_of(ids), vocabulary_of())
    np.testing.assert_array_equal(found.position, [GENES.index(g) if g else -1 for g in found.table["gene_id"]])
    assert found.table["gene_id"].tolist() == [TBX5, ACTB, KMT2A, "", ENSA, ""]
    assert found.position.dtype == np.int32
    assert found.n_known == 4


def test_a_blank_id_is_led_by_its_name():
    assert led(["", "", ""], ["TBX5", "", "unheard-of"]) == [
        ("", "mapped", "name", TBX5),
        ("", "unknown", "", ""),
        ("", "unknown", "", ""),
    ]


def test_an_ensembl_id_is_never_led_elsewhere_by_a_name():
    assert led(["ENSG00000141510"], ["TBX5"]) == [("ENSG00000141510", "unknown", "", "")]


def test_the_names_of_the_vocabulary_come_before_the_table_of_symbols():
    vocabulary = vocabulary_of(names={ACTB: "TBX5"})
    assert led(["TBX5"], vocabulary=vocabulary) == [("TBX5", "mapped", "symbol", ACTB)]


def test_a_name_that_two_genes_of_the_vocabulary_share_leads_to_neither_by_it():
    vocabulary = vocabulary_of(names={ACTB: "SAME", TBX5: "SAME"})
    assert led(["SAME"], vocabulary=vocabulary) == [("SAME", "unknown", "", "")]


@pytest.mark.parametrize("again", ["TBX5-1", "TBX5.1", "TBX5-12"])
def test_names_made_unique_lead_to_the_gene_beside_them(again):
    assert led(["TBX5", again]) == [
        ("TBX5", "mapped", "symbol", TBX5),
        (again, "collapsed", "symbol made unique", TBX5),
    ]


def test_blank_ids_are_led_by_names_made_unique_too():
    assert [row[1] for row in led(["", ""], ["TBX5", "TBX5-1"])] == ["mapped", "collapsed"]


def test_a_symbol_of_its_own_is_not_taken_for_another_made_unique():
    """IGHV1-69-2 is a gene, not the second IGHV1-69."""
    gene = ensembl_of_symbol()["IGHV1-69"]
    assert ensembl_of_symbol()["IGHV1-69-2"] != gene
    found = led(["IGHV1-69", "IGHV1-69-2"], vocabulary=vocabulary_of([gene, TBX5]))
    assert found == [("IGHV1-69", "mapped", "symbol", gene), ("IGHV1-69-2", "unknown", "", "")]


def test_no_current_symbol_is_led_to_another_gene():
    """All symbols that end like one made unique, beside the symbol they would be made from."""
    table = {symbol: gene for gene, symbol in symbol_of_ensembl().items()}
    pairs = [(re.sub(r"[-.]\d+\Z", "", symbol), symbol) for symbol in table if re.search(r"[-.]\d+\Z", symbol)]
    pairs = [(base, symbol) for base, symbol in pairs if base in table and table[base] != table[symbol]]
    vocabulary = vocabulary_of(sorted({table[base] for base, _ in pairs} - {table[symbol] for _, symbol in pairs}))
    known = [(base, symbol) for base, symbol in pairs if table[base] in vocabulary.position]
    found = reconcile(source_of([text for pair in known for text in pair]), vocabulary).table
    led_astray = [(row.gene, row.gene_id) for row in found.itertuples() if row.gene_id not in ("", table[row.gene])]
    assert known
    assert led_astray == []


def test_a_former_name_beside_what_it_looks_like_is_that_made_unique():
    """SSB-1 was a name of SPSB1; no annotation has it beside SSB, but AnnData's obs_names_make_unique makes it."""
    ssb, spsb1 = ensembl_of_symbol()["SSB"], ensembl_of_symbol()["SSB-1"]
    vocabulary = vocabulary_of([ssb, spsb1])
    assert [row[3] for row in led(["SSB", "SSB-1"], vocabulary=vocabulary)] == [ssb, ssb]
    assert [row[3] for row in led(["SSB-1"], vocabulary=vocabulary)] == [spsb1]


def test_retired_ids_of_the_vocabulary_lead_to_their_gene():
    vocabulary = vocabulary_of(other_ids={"ENSG00000000001": TBX5, "ENSG00000000002": TBX5})
    found = led(["ENSG00000000001", "ENSG00000000002.7", TBX5], vocabulary=vocabulary)
    assert found == [
        ("ENSG00000000001", "collapsed", "table", TBX5),
        ("ENSG00000000002.7", "collapsed", "table", TBX5),
        (TBX5, "kept", "id", TBX5),
    ]


def test_a_given_table_comes_before_that_of_the_vocabulary():
    vocabulary = vocabulary_of(other_ids={"ENSG00000000001": TBX5})
    found = led(["ENSG00000000001"], vocabulary=vocabulary, other_ids={"ENSG00000000001": ACTB})
    assert found == [("ENSG00000000001", "mapped", "table", ACTB)]


def test_a_table_that_leads_to_a_gene_unknown_leads_nowhere():
    assert led(["Actb"], other_ids={"Actb": "ENSG00000141510"}) == [("Actb", "unknown", "", "")]


def test_symbols_are_led_by_a_table_before_names():
    assert led(["TBX5"], other_ids={"TBX5": ACTB}) == [("TBX5", "mapped", "table", ACTB)]


def test_an_id_that_the_vocabulary_has_is_not_led_elsewhere_by_a_table():
    assert led([TBX5], other_ids={TBX5: ACTB}) == [(TBX5, "kept", "id", TBX5)]


# several columns of one gene


def test_of_several_columns_of_a_gene_the_one_with_its_id_is_kept():
    assert led(["TBX5", TBX5 + ".1", TBX5, TBX5]) == [
        ("TBX5", "collapsed", "symbol", TBX5),
        (TBX5 + ".1", "collapsed", "version", TBX5),
        (TBX5, "kept", "id", TBX5),
        (TBX5, "collapsed", "id", TBX5),
    ]


def test_without_its_id_the_first_column_stands_for_the_gene():
    assert [row[1] for row in led(["ACTB", "MLL", "KMT2A", "ACTB"])] == ["mapped", "mapped", "collapsed", "collapsed"]


def test_unknown_genes_are_not_collapsed():
    assert [row[1] for row in led(["nothing", "nothing", ""])] == ["unknown"] * 3


def test_shares_are_those_of_the_counts():
    found = reconcile(source_of([TBX5, "TBX5", "ACTB", "nothing"]), vocabulary_of())
    table = shares(found.table, np.array([50.0, 30, 15, 5]))
    assert table.index.tolist() == ["kept", "mapped", "collapsed", "unknown"]
    assert table["genes"].tolist() == [1, 1, 1, 1]
    np.testing.assert_allclose(table["share"], [0.5, 0.15, 0.3, 0.05])
    assert (
        in_one_line(table) == "1 genes kept (50.0 % of the counts), 1 mapped (15.0 %), 1 collapsed (30.0 %), "
        "1 unknown (5.0 %)"
    )


def test_shares_name_every_outcome_also_without_any_gene_or_count():
    found = reconcile(source_of([TBX5]), vocabulary_of())
    table = shares(found.table, np.zeros(1))
    assert table["genes"].tolist() == [1, 0, 0, 0]
    assert table["share"].tolist() == [0, 0, 0, 0]


# without a vocabulary, to learn one


def test_to_learn_every_id_stands_for_itself_without_version_and_symbols_for_ids():
    found = reconcile(source_of([TBX5 + ".3", "ACTB", "nothing", "", "ENSMUSG00000018263.1"]), None)
    assert rows(found) == [
        (TBX5 + ".3", "mapped", "version", TBX5),
        ("ACTB", "mapped", "symbol", ACTB),
        ("nothing", "kept", "id", "nothing"),
        ("", "unknown", "", ""),
        ("ENSMUSG00000018263.1", "mapped", "version", "ENSMUSG00000018263"),
    ]
    genes = sorted({TBX5, ACTB, "nothing", "ENSMUSG00000018263"})
    np.testing.assert_array_equal(found.position, [genes.index(g) if g else -1 for g in found.table["gene_id"]])


def test_to_learn_a_symbol_of_its_own_stays_its_own():
    found = reconcile(source_of(["clone-7", "clone-7-1", "IGHV1-69", "IGHV1-69-2"]), None)
    assert found.table["gene_id"].nunique() == 3
    assert found.table["gene_id"].iloc[2] != found.table["gene_id"].iloc[3]


def test_names_are_the_first_that_a_source_gives():
    maps = [reconcile(source_of([TBX5, ACTB], names), vocabulary_of()) for names in (["", "A1"], ["T2", "A2"])]
    assert names_of(maps) == {TBX5: "T2", ACTB: "A1"}


# tables of other ids

MOUSE = {name: f"ENSMUSG{i:011}" for i, name in enumerate("abcdef", start=1)}
OLD1, OLD2 = "ENSG00000000001", "ENSG00000000002"
A, B, C, D = (MOUSE[name] for name in "abcd")
BIOMART = f"""Gene stable ID\tHuman gene stable ID\tHuman gene name\tHuman homology type
{A}\t{TBX5}\tTBX5\tortholog_one2one
{B}\t\t\t
{C}\t{ACTB}\tACTB\tortholog_one2many
{C}\t{HES4}\tHES4\tortholog_one2many
{D}\t{KMT2A}\tKMT2A\tortholog_one2one
"""


@pytest.mark.parametrize(
    ("name", "separator"), [("o.tsv", "\t"), ("o.csv", ","), ("o.txt", "\t"), ("o.tsv.gz", "\t"), ("o.csv.gz", ",")]
)
def test_a_table_of_biomart_is_read_with_its_header(tmp_path, name, separator):
    content = BIOMART.replace("\t", separator).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert read_gene_table(tmp_path / name) == {A: TBX5, D: KMT2A}
    assert read_gene_table(str(tmp_path / name)) == {A: TBX5, D: KMT2A}


@pytest.mark.parametrize("n", [1, 2])
def test_a_table_may_have_no_header_and_few_lines(tmp_path, n):
    (tmp_path / "o.tsv").write_text("".join(f"{m}\t{h}\n" for m, h in [(A, TBX5), (B, ACTB)][:n]))
    assert read_gene_table(tmp_path / "o.tsv") == dict([(A, TBX5), (B, ACTB)][:n])


def test_a_table_may_be_a_mapping_and_versions_are_dropped():
    assert read_gene_table({A + ".2": TBX5 + ".15", "Actb": ACTB, B: ""}) == {A: TBX5, "Actb": ACTB}


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        pytest.param([(A, TBX5), (A, TBX5)], {A: TBX5}, id="same_row_twice"),
        pytest.param([(A, TBX5), (A, ACTB), (B, HES4)], {B: HES4}, id="one_to_many"),
        pytest.param([(A, TBX5), (B, TBX5), (C, HES4)], {C: HES4}, id="many_to_one"),
        pytest.param([(A, TBX5), (A, ACTB), (B, TBX5), (C, HES4)], {C: HES4}, id="many_to_many"),
        pytest.param([(A, TBX5), (B, ""), (C, "none")], {A: TBX5}, id="rows_without_a_gene"),
        pytest.param([(OLD1, TBX5), (OLD2, TBX5)], {OLD1: TBX5, OLD2: TBX5}, id="retired_ids_many_to_one"),
        pytest.param([(OLD1, TBX5), (OLD1, ACTB), (B, HES4)], {B: HES4}, id="retired_id_split"),
    ],
)
def test_only_what_is_one_to_one_between_species_is_kept(tmp_path, pairs, expected):
    (tmp_path / "o.tsv").write_text("from\tto\n" + "".join(f"{a}\t{b}\n" for a, b in pairs))
    assert read_gene_table(tmp_path / "o.tsv") == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param("", "not a readable table of genes", id="empty"),
        pytest.param(f"{A}\n{B}\n", ".", id="one_column"),
        pytest.param("aaaa\naaaa\n", ".", id="one_column_of_equal_letters"),
        pytest.param("a\nb\nc\n", ".", id="one_column_of_letters"),
        pytest.param("mouse\thuman\nActb\tACTB\n", "no row leads one id to one Ensembl gene id", id="symbols"),
        pytest.param(f"human\tmouse\n{TBX5}\tTbx5\n", "no row leads one id to one", id="the_wrong_way_round"),
        pytest.param(f"{A}\t{TBX5}\n{A}\t{ACTB}\n", "no row leads one id to one", id="nothing_one_to_one"),
        pytest.param(b"\xff\xfe\x00\x00\x89", ".", id="binary"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_by_name(tmp_path, content, message):
    (tmp_path / "o.tsv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=rf"o\.tsv: .*{message}"):
        read_gene_table(tmp_path / "o.tsv")


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(InputError, match=r"o\.tsv: cannot be read"):
        read_gene_table(tmp_path / "o.tsv")


def test_an_empty_mapping_is_refused():
    with pytest.raises(InputError, match="The table: no row leads"):
        read_gene_table({})


# too little is known


def refusal(ids, vocabulary=None, *, names=None, min_share=0.5):
    vocabulary, source = vocabulary or vocabulary_of(), source_of(ids, names)
    genes = reconcile(source, vocabulary)
    with pytest.raises(DataFormatError) as caught:
        require_known(source, genes, np.ones(len(ids)), vocabulary, min_share=min_share)
    return str(caught.value)


OTHERS = [f"ENSG{i:011}" for i in range(3)]
FIRST_OF_MM10 = ["Xkr4", "Gm1992", "Gm37381", "Rp1", "Sox17", "Gm37323", "Mrpl15", "Lypla1", "Gm37988", "Tcea1"]
SEEMING = {
    "mouse_ids": ([A, B, C], "Ensembl ids of mouse (ENSMUSG…), the vocabulary is of human; give"),
    "other_ids": ([gene.replace("ENSG", "ENSXYZG") for gene in OTHERS], "Ensembl ids of another species (ENSXYZG…)"),
    "mouse_names": (["Actb", "Gapdh", "Trp53", "Cd4"], "mouse gene symbols; give a one-to-one table"),
    "mouse_names_as_10x_lists_them": (FIRST_OF_MM10, "mouse gene symbols; give a one-to-one table"),
    "transcripts": (["ENST00000310931", "ENST00000310932.8"], "transcripts, proteins or exons, not genes"),
    "mouse_transcripts": (["ENSMUST00000310931", "ENSMUST00000310932"], "transcripts, proteins or exons"),
    "numbers": (["7157", "6910", "60"], "These are numbers (Entrez ids, or rows without names)"),
    "another_vocabulary": (OTHERS, "Ensembl ids of the right species: the vocabulary was learned from data without"),
    "symbols_of_another": (["TP53", "GAPDH", "CD4"], "These are gene symbols; the vocabulary was learned"),
    "neither": (["g1", "g2", "g3"], "neither Ensembl ids nor human gene symbols (of 3 0 are)"),
}


@pytest.mark.parametrize("kind", list(SEEMING))
def test_the_message_says_what_the_ids_seem_to_be(kind):
    ids, message = SEEMING[kind]
    found = refusal(ids)
    assert message in found
    assert found.startswith(f"AnnData: none of its {len(ids)} genes is known to the vocabulary")
    assert f"(ids from 'ensembl_id': {ids[0]!r} … against {GENES[0]!r} …)" in found


def test_the_message_gives_the_share_that_is_known_and_the_one_asked_for():
    found = refusal([TBX5, A, B, C], min_share=0.6)
    assert "1 of 4 genes, with 25.0 % of the counts, are known to the vocabulary; at least 60 % is asked for" in found


def test_where_most_genes_are_known_the_rows_that_hold_the_counts_are_named():
    """Antibodies whose names say nothing, in a file that does not say what they are."""
    source = source_of([TBX5, ACTB, KMT2A, "Hu.CD3"])
    genes = reconcile(source, vocabulary_of())
    with pytest.raises(
        DataFormatError, match=r"not those that hold most counts: 'Hu\.CD3' \(97 %\)\. If they are no genes"
    ):
        require_known(source, genes, np.array([1.0, 1, 1, 97]), vocabulary_of(), min_share=0.5)


def test_blank_ids_alone_are_refused_without_stumbling():
    assert "none of its 2 genes" in refusal(["", ""])


@pytest.mark.parametrize(("counts", "min_share"), [([1, 1], 0.5), ([1, 9], 0.1), ([0, 0], 0.5), ([0, 1], 0.0)])
def test_enough_is_enough(counts, min_share):
    source = source_of([TBX5, "nothing"])
    genes = reconcile(source, vocabulary_of())
    require_known(source, genes, np.array(counts, dtype=float), vocabulary_of(), min_share=min_share)


def test_real_ids_and_symbols_lead_to_the_same_genes(shared):
    path = shared / "data" / "pbmc3k" / "pbmc3k.h5ad"
    vocabulary = Vocabulary.load(shared / "golden" / "published_v1")
    by_id = reconcile(open_counts(path), vocabulary)
    by_symbol = reconcile(open_counts(path, gene_ids="gene_name"), vocabulary)
    both = (by_id.position >= 0) & (by_symbol.position >= 0)
    both &= by_id.table["gene_id"].isin(set(ensembl_of_symbol().values())).to_numpy()  # 128 ids of hg19 are retired
    assert both.sum() > 12_000
    assert (by_id.position[both] == by_symbol.position[both]).mean() > 0.99


# mitochondrial genes


@pytest.mark.parametrize(
    ("gene", "name", "expected"),
    [
        ("MT-ND1", "", True),
        ("mt-Nd1", "", True),
        ("ENSMUSG00000064341", "mt-Nd1", True),
        (MT_ND1, "", True),
        (MT_ND1 + ".2", "", True),
        (TBX5, "MT-ND1", True),
        ("MTOR", "", False),
        (TBX5, "TBX5", False),
        ("", "", False),
        ("MT1X", "", False),
    ],
)
def test_mitochondrial_genes_are_told_by_name_or_human_id(gene, name, expected):
    assert is_mitochondrial(source_of([gene], [name])).tolist() == [expected]


def test_the_human_mitochondrial_ids_are_the_37_genes_of_its_genome():
    """Former names such as MT-A70 (METTL3) and MT-SP1 (ST14) are of nuclear genes."""
    ids = sorted(set(ensembl_of_symbol().values()))
    found = np.array(ids)[is_mitochondrial(source_of(ids))].tolist()
    symbols = {gene: symbol for symbol, gene in ensembl_of_symbol().items()}
    assert len(found) == 37, [symbols[gene] for gene in found]
    assert "ENSG00000165819" not in found  # METTL3
