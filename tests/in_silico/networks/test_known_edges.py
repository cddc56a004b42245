"""References as their authors wrote them: what is read, what is lost and why, and what is refused."""

import numpy as np
import pandas as pd
import pytest

from geneformer_repro.errors import DataFormatError, InputError
from geneformer_repro.in_silico.networks.known_edges import overlap_of, read_known_edges, read_perturbed
from geneformer_repro.tokenizer.genes import GivenGenes

GENES = GivenGenes(
    ("ENSG00000136997", "ENSG00000141510", "ENSG00000169429", "ENSG00000111640"),
    {"MYC": 0, "TP53": 1, "CXCL8": 2, "GAPDH": 3},
    {},
)
MYC, TP53, CXCL8, GAPDH = GENES.gene_ids
ROWS = pd.DataFrame(
    {
        "tf": ["MYC", "MYC", "TP53", "TP53", "AP1", "MYC", "TP53"],
        "target": ["TP53", "IL8", "ENSG00000111640.15", "GAPDH", "MYC", "no gene", "TP53"],
        "mor": [1, -1, 1, -1, 1, 1, 1],
        "confidence": ["A", "A", "B", "B", "A", "C", "C"],
    }
)


def test_symbols_former_symbols_and_ids_with_a_version_lead_to_genes():
    known = read_known_edges(ROWS, GENES, name="made")
    assert list(zip(known.edges["source"], known.edges["target"], strict=True)) == [
        (MYC, TP53), (MYC, CXCL8), (TP53, GAPDH),
    ]  # fmt: skip


def test_each_row_is_used_or_lost_with_its_reason():
    lost = read_known_edges(ROWS, GENES, name="made").lost
    assert lost == {
        "rows": 7,
        "unknown source": 1,
        "unknown target": 1,
        "of a gene with itself": 1,
        "unknown names": "'AP1', 'no gene'",
        "listed again": 1,
    }


def test_a_pair_that_is_told_both_ways_has_no_sign():
    known = read_known_edges(ROWS, GENES, name="made")
    assert known.edges["sign"].tolist() == [1, -1, 0]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (["Activation", "Repression", "Unknown"], [1, -1, 0]),
        (["2.5", "-0.1", "0"], [1, -1, 0]),
        (["+", "-", ""], [1, -1, 0]),
    ],
    ids=["words", "numbers", "signs"],
)
def test_signs_may_be_words_or_numbers(written, meant):
    rows = pd.DataFrame({"source": ["MYC", "MYC", "TP53"], "target": ["TP53", "IL8", "GAPDH"], "mode": written})
    assert read_known_edges(rows, GENES, name="made").edges["sign"].tolist() == meant


def test_levels_of_confidence_are_chosen():
    known = read_known_edges(ROWS, GENES, name="made", confidence=["A"])
    assert len(known) == 2
    assert known.lost["other confidence"] == 4


def test_a_file_says_what_it_is(tmp_path):
    ROWS.assign(set="made", version=2, licence="CC0").to_csv(tmp_path / "made.tsv", sep="\t", index=False)
    known = read_known_edges(tmp_path / "made.tsv", GENES, name="made")
    assert known.described == {"set": "made", "version": "2", "licence": "CC0"}
    assert len(known) == 3


REFUSED = {
    "no column of targets": (ROWS.drop(columns="target"), None, DataFormatError, "has no column of targets"),
    "no such level": (ROWS, ["E"], InputError, "no row has confidence 'E'"),
    "no column of confidence": (ROWS.drop(columns="confidence"), ["A"], InputError, "Leave confidence= out"),
    "genes of another species": (
        pd.DataFrame({"tf": ["Myc"], "target": ["Trp53"]}), None, InputError, "no edge in its 1 rows",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("rows", "confidence", "error", "says"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(rows, confidence, error, says):
    with pytest.raises(error, match=says):
        read_known_edges(rows, GENES, name="made", confidence=confidence)


def test_how_far_two_references_are_one():
    first = read_known_edges(ROWS, GENES, name="first")
    second = read_known_edges(ROWS[ROWS["tf"] == "MYC"], GENES, name="second")
    found = overlap_of(first, second)
    assert found["n_shared"] == 2
    np.testing.assert_allclose([found["share_of_first"], found["share_of_second"], found["jaccard"]], [2 / 3, 1, 2 / 3])


KNOCKDOWN = pd.DataFrame(
    {
        "perturbed": ["MYC"] * 4 + ["TP53"] * 2,
        "gene": ["MYC", "TP53", "IL8", "IL8", "MYC", "GAPDH"],
        "p": [1e-9, 0.001, 0.5, 1e-4, 0.04, 0.9],
        "log2fc": [-3.0, -1.0, 0.1, -0.7, 0.5, 0.0],
    }
)


def test_changed_targets_are_edges_and_all_measured_pairs_are_known():
    known = read_perturbed(KNOCKDOWN, GENES, name="knockdown")
    assert list(zip(known.edges["source"], known.edges["target"], strict=True)) == [(MYC, TP53), (MYC, CXCL8)]
    assert known.lost["did not change"] == 2  # TP53 on MYC: 0.08 after correction for two genes
    effects = known.measured.set_index(["source", "target"])["effect"]
    assert effects[MYC, CXCL8] == 0.7
    assert len(effects) == 4


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"p": 2.0}, "row 1 has the p-value .*2.0.*; expected 0 to 1"),
        ({"log2fc": None}, "'log2fc' has no number in row 1"),
    ],
    ids=["no p-value", "no effect"],
)
def test_a_table_of_perturbations_with_something_else_in_it_is_refused(changed, says):
    with pytest.raises(DataFormatError, match=says):
        read_perturbed(KNOCKDOWN.assign(**changed), GENES, name="knockdown")


def test_half_of_a_reference_may_be_another(shared):
    sets = shared / "data" / "gene_sets"
    tables = pd.read_csv(sets / "trrust_human.tsv", sep="\t"), pd.read_parquet(sets / "dorothea_hs.parquet")
    names = sorted({gene for table in tables for column in ("tf", "target") for gene in table[column]})
    genes = GivenGenes(tuple(names), {name: i for i, name in enumerate(names)}, {})
    first = read_known_edges(sets / "trrust_human.tsv", genes, name="TRRUST")
    second = read_known_edges(sets / "dorothea_hs.parquet", genes, name="DoRothEA", confidence=["A"])
    np.testing.assert_allclose(overlap_of(first, second)["share_of_second"], 0.51, atol=0.005)
