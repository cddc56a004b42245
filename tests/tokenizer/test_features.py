import pandas as pd
import pytest

from geneformer_repro.tokenizer.features import (
    ensembl_gene_in,
    genome_in,
    genomes_of,
    kind_by_name,
    kinds_of,
    symbol_in,
)
from geneformer_repro.tokenizer.symbols import ensembl_of_symbol

TP53 = "ENSG00000141510"


# the kind of a row


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        pytest.param(["Gene Expression", "Antibody Capture"], ["", "Antibody Capture"], id="tenx"),
        pytest.param(["gene expression", "Custom"], ["", "Custom"], id="in_lower_case"),
        pytest.param(["Gene Expression", "anything at all"], ["", "anything at all"], id="beside_genes_all_others"),
        pytest.param(["Gene Expression", None], ["", ""], id="missing_says_nothing"),
        pytest.param(["unknown", "unknown"], ["", ""], id="unknown_says_nothing"),
        pytest.param(["protein_coding", "lncRNA"], ["", ""], id="a_biotype_says_nothing"),
        pytest.param(["GRCh38", "GRCh38"], ["", ""], id="a_genome_says_nothing"),
        pytest.param(["Peaks", "CRISPR Guide Capture"], ["Peaks", "CRISPR Guide Capture"], id="no_gene_among_them"),
        pytest.param(["rna", "ADT"], ["", "ADT"], id="modalities"),
        pytest.param(["gene", "spike-in"], ["", "spike-in"], id="cellxgene"),
    ],
)
def test_what_a_row_is_instead_of_a_gene_is_told_by_its_column(kinds, expected):
    for column in ("feature_types", "feature_type", "FeatureType", "feature_biotype"):
        assert kinds_of(pd.DataFrame({"other": [1, 2], column: pd.Categorical(kinds)})).tolist() == expected


def test_other_columns_say_nothing():
    assert kinds_of(pd.DataFrame({"type": ["Peaks", "Peaks"]})).tolist() == ["", ""]


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["?", "?-1", "?.2", "?|100130426"], "unnamed"),
        (["ERCC-00002", "ERCC_00171", "gSpikein_ERCC-00003", "SIRV101"], "spike-in"),
        (["__no_feature", "__alignment_not_unique", "N_multimapping", "no_feature"], "summary row"),
        (["chr1:10109-10357", "chrX-5000-6000", "chr2_1_900", "GL000194.1:101-200", "1:100-200"], "peak"),
        (["CD3_TotalSeqB", "CD3-TotalSeq-C", "adt_CD3", "HTO_A", "Hashtag1", "CD19_ADT", "CMO301"], "antibody"),
        (["anti_human_CD4", "CD3E|CD3E|AHS0231|pAbO"], "antibody"),
        (["NegPrb01", "NegControlProbe_00042", "BLANK_0001", "UnassignedCodeword_0001"], "control"),
        (["non-targeting_00001", "NonTargeting", "CD3D_sgRNA1", "CD3D-gRNA-2"], "guide"),
        (["ERCC1", "CD3D", "HLA-A", "RP11-34P13.7", "CMOS", "AMBRA1", f"{TP53}.18", ""], ""),
    ],
)
def test_what_a_row_is_instead_of_a_gene_is_told_by_its_name(names, kind):
    assert {name: kind_by_name(name) for name in names} == dict.fromkeys(names, kind)


def test_the_name_beside_an_id_tells_it_too_but_not_beside_an_ensembl_id():
    assert kind_by_name("CD3", "CD3_TotalSeqB") == "antibody"
    assert kind_by_name(TP53, "CD3_TotalSeqB") == ""


def test_no_human_symbol_is_taken_for_something_else_or_changed():
    symbols = list(ensembl_of_symbol())
    assert [symbol for symbol in symbols if kind_by_name(symbol) or symbol_in(symbol) != symbol] == []


# the gene in a text


@pytest.mark.parametrize(
    "text",
    [
        TP53,
        f"{TP53}-1",
        f"{TP53}_2",
        f"{TP53}|TP53",
        f"TP53_{TP53}",
        f"gene:{TP53}",
        f"GRCh38_{TP53}",
        f"GRCh38______{TP53}",
        f"ENST00000269305.9|{TP53}|OTTHUMG00000162125|TP53-201|TP53|2512|protein_coding|",
        f"{TP53}|{TP53}",
    ],
)
def test_the_only_ensembl_gene_of_a_text_is_found(text):
    assert ensembl_gene_in(text) == TP53


@pytest.mark.parametrize("text", ["TP53", f"{TP53}1", f"x{TP53}", f"{TP53}|ENSG00000075624", "ENST00000269305", ""])
def test_none_or_several_are_no_gene(text):
    assert ensembl_gene_in(text) == ""


def test_a_version_stays_with_its_id():
    assert ensembl_gene_in(f"GRCh38_{TP53}.18") == f"{TP53}.18"


@pytest.mark.parametrize(
    ("text", "symbol"),
    [
        ("GRCh38_CD3D", "CD3D"),
        ("mm10___Xkr4", "Xkr4"),
        ("GRCh38-2020-A_CD3D", "CD3D"),
        ("hg19_HLA-A", "HLA-A"),
        ("gene:CD3D", "CD3D"),
        ("rna_CD3D", "CD3D"),
        ("TP53|7157", "TP53"),
        ("TP53 (7157)", "TP53"),
        ("?|100130426", "?|100130426"),
        ("Y_RNA", "Y_RNA"),
        ("RNA18S5", "RNA18S5"),
    ],
)
def test_what_programs_put_around_a_symbol_is_dropped(text, symbol):
    assert symbol_in(text) == symbol


# genomes


def test_the_genome_is_told_by_its_column_or_by_the_beginning_of_the_id():
    ids = ["GRCh38_CD3D", "mm10_Cd3d", "CD3D"]
    assert [genome_in(text) for text in ids] == ["GRCh38", "mm10", ""]
    assert genomes_of(pd.DataFrame(index=ids), ids) == ("GRCh38", "mm10", "")
    assert genomes_of(pd.DataFrame({"genome": ["a", "b", None]}, index=ids), ids) == ("a", "b", "")
