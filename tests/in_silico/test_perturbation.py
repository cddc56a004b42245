"""Deletions against lists one can read, and the mistakes in naming genes."""

import numpy as np
import pandas as pd
import pytest

from geneformer_repro import Deletion, InputError, Vocabulary

GENES = [f"ENSG{i:011d}" for i in range(1, 6)]
A, B, C, D, E = GENES


@pytest.fixture(params=["V1", "V2"])
def series(request):
    special = ["<pad>", "<mask>", "<cls>", "<eos>"][: 2 if request.param == "V1" else 4]
    return Vocabulary.from_tokens(
        {key: i for i, key in enumerate([*special, *GENES])}, names={A: "NPPA", B: "TTN", C: "TTN"}
    )


def cell_of(vocabulary, genes):
    tokens = [int(token) for token in vocabulary.tokens_of(genes)]
    if vocabulary.has_cls:
        tokens = [vocabulary.special_tokens["<cls>"], *tokens, vocabulary.special_tokens["<eos>"]]
    return np.array(tokens)


def slow_variants(vocabulary, genes):
    """(deleted gene, rank, tokens that are left) of each deletion, with lists."""
    left = []
    for rank, gene in enumerate(genes):
        others = [other for other in genes if other != gene]
        left.append((gene, rank, cell_of(vocabulary, others).tolist()))
    return left


def listed(vocabulary, cell, deletion):
    def name(tokens):
        return "+".join(vocabulary.gene_ids[i] for i in vocabulary.genes_of(tokens))

    variants = deletion.variants(cell, vocabulary)
    return [(name(variant.perturbed), variant.rank, cell[variant.kept].tolist()) for variant in variants]


@pytest.mark.parametrize("genes", [[C, A, E], [B, A], [D, C, B, A, E]], ids=len)
def test_each_gene_is_deleted_in_turn_and_the_genes_behind_move_up(series, genes):
    assert listed(series, cell_of(series, genes), Deletion()) == slow_variants(series, genes)


def test_each_gene_of_a_real_cell_is_deleted_in_turn(cells):
    for i in (0, 1, 2):
        assert listed(cells.vocabulary, cells[i], Deletion()) == slow_variants(cells.vocabulary, cells.genes(i))


def test_special_tokens_are_never_removed(series):
    cell = cell_of(series, [C, A])
    special = [token for token in cell if token in series.special_tokens.values()]
    for variant in Deletion().variants(cell, series):
        assert [token for token in cell[variant.kept] if token in series.special_tokens.values()] == special


def test_a_set_is_deleted_together_wherever_its_genes_stand(series):
    cell = cell_of(series, [C, A, E, B])
    found = listed(series, cell, Deletion([B, C]))
    assert found == [(f"{B}+{C}", None, cell_of(series, [A, E]).tolist())]


def test_one_named_gene_has_the_rank_it_has_among_all(series):
    cell = cell_of(series, [C, A, E])
    each = {gene: (rank, kept) for gene, rank, kept in listed(series, cell, Deletion())}
    for gene in (C, A, E):
        assert listed(series, cell, Deletion([gene])) == [(gene, *each[gene])]


@pytest.mark.parametrize("genes", [[D], [A, D], [B, D]], ids=["absent", "one of two", "both"])
def test_a_cell_without_all_the_genes_has_no_variant(series, genes):
    assert listed(series, cell_of(series, [C, A, E]), Deletion(genes)) == []


def test_a_cell_of_one_gene_can_lose_it(series):
    assert listed(series, cell_of(series, [A]), Deletion()) == [(A, 0, cell_of(series, []).tolist())]


def test_the_cell_stays_as_it_is(series):
    cell = cell_of(series, [C, A, E])
    before = cell.copy()
    list(Deletion().variants(cell, series))
    np.testing.assert_array_equal(cell, before)


def test_a_gene_may_be_given_by_name(series):
    cell = cell_of(series, [C, A])
    assert listed(series, cell, Deletion(["NPPA"])) == listed(series, cell, Deletion([A]))


@pytest.mark.parametrize(
    ("genes", "message"),
    [
        pytest.param([A, "NPPB"], r"1 of 2 genes are not in.*'NPPB'\. Give Ensembl ids such as 'ENSG0", id="unknown"),
        pytest.param(["TTN"], r"or their name stands for several genes: 'TTN'", id="ambiguous name"),
        pytest.param(["x", "y", A], r"2 of 3 genes.*: 'x', 'y'\.", id="every unknown one is named"),
    ],
)
def test_genes_that_are_not_known_are_refused_by_name(series, genes, message):
    with pytest.raises(InputError, match=message):
        list(Deletion(genes).variants(cell_of(series, [A]), series))


def test_a_gene_given_by_id_and_by_name_is_refused(series):
    with pytest.raises(InputError, match="NPPA"):
        list(Deletion([A, "NPPA"]).variants(cell_of(series, [A, B]), series))


@pytest.mark.parametrize(
    ("genes", "message"),
    [
        pytest.param(A, rf"sequence of gene ids, found the text '{A}'.*give \['{A}'\]", id="a text"),
        pytest.param("all", r"must be 'each' or a sequence of gene ids, found the text 'all'", id="another word"),
        pytest.param([], r"distinct and at least one, found \[\]", id="none"),
        pytest.param([A, A], r"distinct and at least one, found \['ENSG", id="twice"),
    ],
)
def test_a_set_of_genes_that_is_none_is_refused(genes, message):
    with pytest.raises(InputError, match=message):
        Deletion(genes)


@pytest.mark.parametrize("kind", [list, tuple, np.array, pd.Index, pd.Series], ids=lambda kind: kind.__name__)
def test_genes_may_come_in_any_sequence(kind):
    assert Deletion(kind([A, B])).genes == (A, B)


def test_deletions_of_the_same_genes_are_equal():
    assert Deletion([A, B]) == Deletion((A, B)) != Deletion()
