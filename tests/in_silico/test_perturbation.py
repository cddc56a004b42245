"""Perturbed cells against cells made with plain lists, what is left alone, and the mistakes one can make."""

import dataclasses
import json
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geneformer_repro import InputError, Vocabulary
from geneformer_repro.in_silico import perturbation as kinds
from geneformer_repro.in_silico.perturbation import Activation, Deletion, Edits, Inhibition, Overexpression, RankShift

GENES = [f"ENSG{i:011d}" for i in range(1, 101)]
A, B, C, D, E = GENES[:5]
DRAWN = GENES[:66]
SPECIAL = {"V1": ["<pad>", "<mask>"], "V2": ["<pad>", "<mask>", "<cls>", "<eos>"]}
SERIES = {
    series: Vocabulary.from_tokens(
        {key: i for i, key in enumerate([*special, *GENES])}, names={A: "NPPA", B: "TTN", C: "TTN"}
    )
    for series, special in SPECIAL.items()
}
KINDS = [Deletion, Overexpression, Activation, Inhibition, RankShift]
COMBINED = {
    "each singly": {},
    "each in pairs": {"combine": "pairs"},
    "each with an anchor": {"anchor": True},
    "listed singly": {"genes": True, "combine": "singly"},
    "listed together": {"genes": True, "combine": "together"},
    "listed in pairs": {"genes": True, "combine": "pairs"},
    "listed with an anchor": {"genes": True, "anchor": True},
}
of_every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
however_combined = pytest.mark.parametrize("combined", COMBINED)
in_both_series = pytest.mark.parametrize("series", SERIES)
quickly = settings(deadline=None, database=None, max_examples=10)


def cell_of(vocabulary, genes):
    tokens = vocabulary.tokens_of(genes).tolist()
    if vocabulary.has_cls:
        tokens = [vocabulary.special_tokens["<cls>"], *tokens, vocabulary.special_tokens["<eos>"]]
    return np.array(tokens, dtype=np.int64)


def named(vocabulary, tokens):
    return [vocabulary.gene_ids[i] for i in vocabulary.genes_of(tokens)]


def versions(vocabulary, genes, perturbation):
    """(perturbed genes, rank, dose, genes of the changed cell) of each variant."""
    variants = Edits(perturbation, vocabulary).variants(cell_of(vocabulary, genes))
    names = [*genes, *named(vocabulary, variants.inserted)]
    return [
        (
            named(vocabulary, variants.perturbed[row]),
            int(variants.rank_N[row]),
            None if np.isnan(variants.dose_N[row]) else float(variants.dose_N[row]),
            [names[i] for i in variants.order(row, len(genes))],
        )
        for row in range(len(variants))
    ]


def changed(genes, perturbation):
    """The changed cells alone."""
    return [version[-1] for version in versions(SERIES["V2"], genes, perturbation)]


def slow_versions(genes, perturbation):
    """`versions` with lists."""
    return [
        (chosen, genes.index(chosen[0]) if len(chosen) == 1 and chosen[0] in genes else -1, dose, changed_cell)
        for chosen in slow_choices(genes, perturbation)
        if not set(genes) <= set(chosen)
        for dose in (perturbation.to if isinstance(perturbation, RankShift) else [None])
        for changed_cell in [slow_change(genes, chosen, perturbation, dose)]
    ]


def slow_choices(genes, perturbation):
    """Which genes are perturbed together."""
    adds, each = isinstance(perturbation, Overexpression), perturbation.genes == "each"
    anchor = [] if perturbation.anchor is None else [perturbation.anchor]
    in_order = sorted(genes) if perturbation.combine == "pairs" and not anchor else genes
    asked = [gene for gene in (in_order if each else perturbation.genes) if gene not in anchor]
    there = [gene for gene in asked if gene in genes or adds]
    if perturbation.combine == "together":
        return [asked] if there == asked else []
    if perturbation.combine == "singly":
        return [[gene] for gene in there if not (adds and each and gene == genes[0])]
    if anchor:
        with_anchor = [[*anchor], *([gene] for gene in there), *([*anchor, gene] for gene in there)]
        return with_anchor if adds or anchor[0] in genes else []
    return [*([gene] for gene in there), *map(list, combinations(there, 2))]


def slow_change(genes, chosen, perturbation, dose):
    """The changed cell: the others stay in order, the chosen ones go where they should, lower places first."""
    others = [gene for gene in genes if gene not in chosen]
    if isinstance(perturbation, Deletion):
        return others
    if isinstance(perturbation, Overexpression):
        return [*chosen, *others]
    wanted = {gene: slow_place(genes, gene, perturbation, dose) for gene in chosen}
    place = -1
    for gene in sorted(chosen, key=lambda gene: (wanted[gene], genes.index(gene))):
        place = max(wanted[gene], place + 1)
        others.insert(place, gene)  # at the end where it is beyond
    return others


def slow_place(genes, gene, perturbation, dose):
    places = range(len(genes))
    if isinstance(perturbation, RankShift):
        return round(dose * places[-1])
    quartile = slow_quartile(genes.index(gene), len(genes))
    to = (
        quartile - perturbation.quartiles if isinstance(perturbation, Activation) else quartile + perturbation.quartiles
    )
    if to < 1 or to > 4:
        return places[0 if to < 1 else -1]
    inside = [place for place in places if slow_quartile(place, len(genes)) == to]
    above = [place for place in places if slow_quartile(place, len(genes)) < to]
    return inside[(len(inside) - 1) // 2] if inside else above[-1]


def slow_quartile(place, n):
    return next(quartile for quartile in (1, 2, 3, 4) if 4 * place < quartile * n)


@st.composite
def cells_and_perturbations(draw, kind, combined):
    """A cell of 2 to 60 genes, and a perturbation of genes most of which it may or may not have."""
    options = dict(COMBINED[combined])
    drawn = draw(st.permutations(DRAWN))
    genes = drawn[: draw(st.integers(2, 12 if combined == "each in pairs" else 60))]
    if "genes" in options:
        pool = genes if draw(st.booleans()) else drawn
        options["genes"] = draw(st.lists(st.sampled_from(pool), min_size=2, max_size=8, unique=True))
    if "anchor" in options:
        listed = options.get("genes", [])
        options["anchor"] = draw(st.sampled_from([gene for gene in (*genes, drawn[-1]) if gene not in listed]))
    if kind in (Activation, Inhibition):
        options["quartiles"] = draw(st.integers(1, 3))
    if kind is RankShift:
        options["to"] = draw(st.lists(st.floats(0, 1), min_size=1, max_size=3, unique=True))
    return genes, kind(**options)


def example(kind, genes="each", **options):
    return kind(genes, **options, **({"to": 0.3} if kind is RankShift else {}))


@of_every_kind
@however_combined
@quickly
@given(st.data(), st.sampled_from(list(SERIES)))
def test_the_changed_cells_are_those_made_with_lists(kind, combined, data, series):
    genes, perturbation = data.draw(cells_and_perturbations(kind, combined))
    assert versions(SERIES[series], genes, perturbation) == slow_versions(genes, perturbation)


@of_every_kind
@pytest.mark.parametrize("genes", ["each", "listed"])
def test_the_changed_versions_of_real_cells_are_those_made_with_lists(cells, kind, genes):
    for i in (0, 1, 2):
        of_cell = list(cells.genes(i))
        perturbation = example(kind, "each" if genes == "each" else of_cell[3:60:7])
        assert versions(cells.vocabulary, of_cell, perturbation) == slow_versions(of_cell, perturbation)


@of_every_kind
@quickly
@given(st.data(), st.sampled_from(list(COMBINED)), st.integers(0, 60))
def test_the_number_of_variants_is_known_without_making_them(kind, data, combined, n_genes):
    genes, perturbation = data.draw(cells_and_perturbations(kind, combined))
    require_known_number(perturbation, genes[:n_genes])


def require_known_number(perturbation, genes, vocabulary=SERIES["V2"]):
    edits, cell = Edits(perturbation, vocabulary), cell_of(vocabulary, genes)
    assert edits.n_variants(len(genes), cell) == len(edits.variants(cell))


@of_every_kind
@however_combined
def test_the_number_of_variants_of_real_cells_is_known_without_making_them(cells, kind, combined):
    names, listed = cells.vocabulary.gene_ids, cells.genes(0)[2:40:6]
    for genes in (listed, [*listed, *names[::150]]):
        options = {**COMBINED[combined], **({"genes": genes} if "genes" in COMBINED[combined] else {})}
        options |= {"anchor": cells.genes(0)[1]} if "anchor" in options else {}
        for cell in (0, 1, 2):
            require_known_number(example(kind, **options), cells.genes(cell)[:30], cells.vocabulary)


def test_two_million_pairs_are_counted_without_making_one(monkeypatch):
    genes = [f"ENSG{i:011d}" for i in range(2000)]
    vocabulary = Vocabulary.from_tokens({key: i for i, key in enumerate([*SPECIAL["V2"], *genes])})
    edits = Edits(Deletion(combine="pairs"), vocabulary)
    monkeypatch.setattr(kinds, "_sets", None)
    monkeypatch.setattr(Edits, "variants", None)
    assert edits.n_variants(2000) == 2000 + 2000 * 1999 // 2


@of_every_kind
@quickly
@given(st.data(), st.sampled_from(list(COMBINED)))
def test_touched_genes_are_listed_by_their_place_and_removed_ones_last(kind, data, combined):
    genes, perturbation = data.draw(cells_and_perturbations(kind, combined))
    require_ascending_places(Edits(perturbation, SERIES["V1"]).variants(cell_of(SERIES["V1"], genes)))


def require_ascending_places(variants):
    for touched, place in zip(variants.touched_NE, variants.place_NE, strict=True):
        n_placed = int((place >= 0).sum())
        assert (np.diff(place[:n_placed]) > 0).all()
        assert (place[n_placed:] == -1).all()
        assert len(set(touched[touched >= 0])) == (touched >= 0).sum()


@of_every_kind
@quickly
@given(st.data(), st.sampled_from(list(COMBINED)))
def test_every_variant_leaves_a_gene_untouched(kind, data, combined):
    genes, perturbation = data.draw(cells_and_perturbations(kind, combined))
    for perturbed, *_ in versions(SERIES["V2"], genes, perturbation):
        assert set(genes) - set(perturbed)


@of_every_kind
@pytest.mark.parametrize("genes", [[], [A]], ids=["no gene", "one gene"])
@in_both_series
def test_a_cell_without_a_second_gene_has_no_variant(kind, genes, series):
    edits, cell = Edits(example(kind), SERIES[series]), cell_of(SERIES[series], genes)
    assert len(edits.variants(cell)) == edits.n_variants(len(genes)) == 0
    assert versions(SERIES[series], genes, example(kind, [A])) == []


@of_every_kind
def test_special_tokens_are_never_touched(kind):
    vocabulary = SERIES["V2"]
    tokens = vocabulary.tokens_of([C, A, E, B])
    wrapped = np.concatenate([cell_of(vocabulary, [C, A, E, B]), [vocabulary.pad_token] * 3])
    for perturbation in (example(kind), example(kind, [B, A])):
        with_special = Edits(perturbation, vocabulary).variants(wrapped)
        for mine, theirs in zip(with_special, Edits(perturbation, vocabulary).variants(tokens), strict=True):
            np.testing.assert_array_equal(mine, theirs)
        assert all((vocabulary.genes_of(np.array(tokens)) >= 0).all() for tokens in with_special.perturbed)


@of_every_kind
@however_combined
def test_the_cell_stays_as_it_is(kind, combined):
    options = {**COMBINED[combined], **({"genes": [A, C]} if "genes" in COMBINED[combined] else {})}
    options |= {"anchor": B} if "anchor" in options else {}
    cell = cell_of(SERIES["V2"], [C, A, E, B])
    before = cell.copy()
    Edits(example(kind, **options), SERIES["V2"]).variants(cell)
    np.testing.assert_array_equal(cell, before)


@of_every_kind
def test_selected_variants_are_the_same_in_another_order(kind):
    variants = Edits(example(kind, [C, A, E], combine="pairs"), SERIES["V2"]).variants(
        cell_of(SERIES["V2"], [C, A, E, B])
    )
    rows = np.array([4, 0, 5])
    selected = variants.select(rows)
    assert selected.perturbed == [variants.perturbed[row] for row in rows]
    assert [selected.order(i, 4) for i in range(3)] == [variants.order(row, 4) for row in rows]
    np.testing.assert_array_equal(selected.rank_N, variants.rank_N[rows])


@pytest.mark.parametrize("genes", [[D], [A, D], [B, D]], ids=["absent", "one of two", "both"])
@pytest.mark.parametrize("kind", [Deletion, Activation, Inhibition, RankShift], ids=lambda kind: kind.__name__)
def test_a_cell_without_all_the_genes_is_not_changed(kind, genes):
    assert changed([C, A, E], example(kind, genes)) == []


def test_overexpression_inserts_absent_genes_in_the_order_they_are_given():
    assert changed([C, A, E], Overexpression([D, E, B])) == [[D, E, B, C, A]]


def test_each_gene_is_overexpressed_but_the_one_that_is_at_the_front():
    assert changed([C, A, E], Overexpression()) == [[A, C, E], [E, C, A]]


def test_a_listed_gene_at_the_front_is_overexpressed_though_nothing_changes():
    assert changed([C, A, E], Overexpression([C])) == [[C, A, E]]


def test_pairs_of_each_include_the_gene_at_the_front_so_that_a_pair_can_be_compared_with_it():
    found = [perturbed for perturbed, *_ in versions(SERIES["V1"], [C, A, E], Overexpression(combine="pairs"))]
    assert found == [[A], [C], [E], [A, C], [A, E], [C, E]], "by token, so that a pair has one name in all cells"


@quickly
@given(st.permutations(DRAWN), st.integers(2, 60), st.integers(1, 5))
def test_overexpressing_twice_is_overexpressing_once(drawn, n, n_over):
    perturbation = Overexpression(drawn[n - 1 : n - 1 + n_over])
    (once,) = changed(drawn[:n], perturbation)
    assert changed(once, perturbation) == [once]


@pytest.mark.parametrize(
    ("kind", "places"),
    [
        pytest.param(lambda genes: Activation(genes), [0, 12, 37, 62], id="activated by one"),
        pytest.param(lambda genes: Activation(genes, quartiles=2), [0, 0, 12, 37], id="activated by two"),
        pytest.param(lambda genes: Activation(genes, quartiles=3), [0, 0, 0, 12], id="activated by three"),
        pytest.param(lambda genes: Inhibition(genes), [37, 62, 87, 99], id="inhibited by one"),
        pytest.param(lambda genes: Inhibition(genes, quartiles=2), [62, 87, 99, 99], id="inhibited by two"),
        pytest.param(lambda genes: Inhibition(genes, quartiles=3), [87, 99, 99, 99], id="inhibited by three"),
    ],
)
def test_genes_move_to_the_middle_of_another_quartile_as_the_published_package_documents(kind, places):
    """in_silico_perturber.py, docstring of perturb_rank_shift; its own code refuses to do it."""
    found = [changed(GENES, kind([GENES[rank]]))[0].index(GENES[rank]) for rank in (5, 30, 60, 99)]
    assert found == places


@pytest.mark.parametrize("n", range(4, 40))
def test_the_middle_of_a_quartile_is_in_it(n):
    quartiles = np.arange(1, 5)
    np.testing.assert_array_equal(kinds.quartile_of(kinds.middle_of_quartile(quartiles, n), n), quartiles)


def test_genes_of_the_same_place_keep_the_order_they_had():
    assert changed([A, B, C, D, E], RankShift([E, C, D], to=0)) == [[C, D, E, A, B]]
    assert changed([A, B, C, D, E], RankShift([C, A], to=1)) == [[B, D, E, A, C]]
    assert changed([A, B, C, D, E], Inhibition([D, C], quartiles=3)) == [[A, B, E, C, D]]


def test_a_rank_shift_tries_one_place_after_the_other():
    found = versions(SERIES["V2"], [A, B, C], RankShift([A, B], combine="singly", to=[0, 0.5, 1]))
    assert [(gene, rank, dose, cell.index(gene)) for (gene,), rank, dose, cell in found] == [
        *((A, 0, dose, place) for dose, place in [(0, 0), (0.5, 1), (1, 2)]),
        *((B, 1, dose, place) for dose, place in [(0, 0), (0.5, 1), (1, 2)]),
    ]


@st.composite
def cells_and_steps(draw):
    """A cell, and two or three steps of distinct genes, which it may or may not have."""
    drawn = draw(st.permutations(DRAWN))
    genes = drawn[: draw(st.integers(9, 60))]
    pool = iter(draw(st.permutations(genes)) if draw(st.booleans()) else drawn[::-1])
    of_steps = draw(st.lists(st.sampled_from(KINDS), min_size=2, max_size=3))
    return genes, [example(kind, [next(pool) for _ in range(draw(st.integers(1, 3)))]) for kind in of_steps]


def slow_composition(genes, steps):
    changed_cell = genes
    for step in steps:
        if not slow_choices(changed_cell, step):
            return []
        changed_cell = slow_change(changed_cell, step.genes, step, 0.3)
    chosen = [gene for step in steps for gene in step.genes]
    return [] if set(genes) <= set(chosen) else [(chosen, -1, None, changed_cell)]


@settings(quickly, max_examples=100)
@given(cells_and_steps(), st.sampled_from(list(SERIES)))
def test_a_composition_does_one_step_and_then_the_next(drawn, series):
    genes, (first, *others) = drawn
    composed = sum(others, start=first)
    assert versions(SERIES[series], genes, composed) == slow_composition(genes, [first, *others])
    require_ascending_places(Edits(composed, SERIES[series]).variants(cell_of(SERIES[series], genes)))
    require_known_number(composed, genes, SERIES[series])


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param([Deletion([A]), Deletion([B])], id="removed one by one"),
        pytest.param([Deletion([A]), Overexpression([B, C])], id="nothing but what was put there"),
        pytest.param([Overexpression([C]), Inhibition([A, B])], id="all moved behind what was put there"),
        pytest.param([Deletion([C]), Overexpression([D])], id="first step not possible"),
        pytest.param([Overexpression([D]), Deletion([C])], id="last step not possible"),
    ],
)
def test_a_composition_that_cannot_be_done_or_leaves_no_gene_untouched_is_not_done(steps):
    assert changed([A, B], steps[0] + steps[1]) == slow_composition([A, B], steps) == []


def test_the_order_of_the_steps_matters():
    to_front, over = RankShift([C], to=0), Overexpression([A])
    assert changed([E, A, C], to_front + over) == [[A, C, E]]
    assert changed([E, A, C], over + to_front) == [[C, A, E]]


def test_a_composition_may_be_added_to():
    first, second, third = Deletion([A]), Overexpression([B]), Inhibition([C])
    assert (first + second) + third == first + (second + third)
    assert (first + second + third).named == (A, B, C)


@pytest.mark.parametrize(
    ("perturbation", "each", "inserts"),
    [
        pytest.param(Deletion(), True, False, id="each"),
        pytest.param(RankShift(to=[0, 1]), True, False, id="each at several places"),
        pytest.param(Overexpression(), True, False, id="overexpressed each"),
        pytest.param(Deletion(combine="pairs"), False, False, id="pairs of each"),
        pytest.param(Overexpression(anchor=A), False, True, id="overexpressed anchor"),
        pytest.param(Deletion([A], combine="singly"), False, False, id="listed"),
        pytest.param(Overexpression([A], combine="singly"), False, True, id="overexpressed list"),
        pytest.param(Deletion([A]) + Overexpression([B]), False, True, id="composed"),
        pytest.param(Deletion([A]) + Inhibition([B]), False, False, id="composed without inserting"),
    ],
)
def test_edits_tell_whether_they_are_of_each_gene_and_whether_they_may_add_some(perturbation, each, inserts):
    edits = Edits(perturbation, SERIES["V2"])
    assert (edits.is_of_each, edits.inserts) == (each, inserts)


@pytest.mark.parametrize(
    ("perturbation", "single"),
    [
        pytest.param(RankShift(to=[0, 1]), True, id="each"),
        pytest.param(Overexpression(), True, id="overexpressed each"),
        pytest.param(Deletion([A, B], combine="singly"), True, id="listed singly"),
        pytest.param(Overexpression([A, B], combine="singly"), False, id="may be absent"),
        pytest.param(Deletion([A]), False, id="listed together"),
        pytest.param(Deletion(combine="pairs"), False, id="pairs"),
        pytest.param(Deletion([A]) + Inhibition([B]), False, id="composed"),
    ],
)
def test_a_plan_tells_whether_every_variant_touches_one_expressed_gene(perturbation, single):
    assert Edits(perturbation, SERIES["V2"]).is_of_single_expressed_genes is single


@of_every_kind
def test_only_overexpression_inserts(kind):
    variants = Edits(example(kind, [A, D], combine="singly"), SERIES["V2"]).variants(cell_of(SERIES["V2"], [C, A, E]))
    assert named(SERIES["V2"], variants.inserted) == ([D] if kind is Overexpression else [])


@pytest.mark.parametrize("perturb", [lambda gene: Deletion([gene, D]), lambda gene: Deletion([D], anchor=gene)])
def test_genes_may_be_given_by_name(perturb):
    assert versions(SERIES["V2"], [C, A, D], perturb("NPPA")) == versions(SERIES["V2"], [C, A, D], perturb(A))


@of_every_kind
@pytest.mark.parametrize("sequence", [list, tuple, np.array, pd.Index, pd.Series], ids=lambda kind: kind.__name__)
def test_genes_may_come_in_any_sequence(kind, sequence):
    assert example(kind, sequence([A, B])).genes == (A, B)


@pytest.mark.parametrize(
    "places", [0.5, [0.5], (0.5,), np.array([0.5]), np.float32(0.5), pd.Series([0.5])], ids=lambda to: type(to).__name__
)
def test_places_may_come_as_a_number_or_in_any_sequence(places):
    assert RankShift([A], to=places) == RankShift([A], to=0.5)


@pytest.mark.parametrize(
    ("options", "combine"),
    [
        pytest.param({}, "singly", id="each"),
        pytest.param({"genes": [A]}, "together", id="a list"),
        pytest.param({"anchor": A}, "pairs", id="an anchor"),
        pytest.param({"genes": [B], "anchor": A}, "pairs", id="an anchor and one gene"),
    ],
)
def test_how_genes_are_combined_follows_from_what_is_given(options, combine):
    assert Deletion(**options).combine == combine
    assert Deletion(**options) == Deletion(**options, combine=combine)


DIFFERENT = [
    *(example(kind) for kind in KINDS),
    *(example(kind, [A, B]) for kind in KINDS),
    Overexpression([B, A]),
    Deletion([A, B], combine="singly"),
    Deletion([A, B], combine="pairs"),
    Deletion([B], anchor=A),
    Deletion([A], anchor=B),
    Deletion(anchor=A),
    Activation([A, B], quartiles=2),
    RankShift([A, B], to=[0.3, 0.4]),
    RankShift([A, B], to=[0.4, 0.3]),
    Deletion([A]) + Overexpression([B]),
    Overexpression([B]) + Deletion([A]),
]


def rebuilt(kind, **options):
    if kind == "Composed":
        return kinds.Composed(tuple(rebuilt(**step) for step in options["steps"]))
    return getattr(kinds, kind)(**options)


@pytest.mark.parametrize("perturbation", DIFFERENT, ids=repr)
def test_a_description_says_everything_and_json_can_hold_it(perturbation):
    described = json.loads(json.dumps(perturbation.describe()))
    assert described == perturbation.describe()
    assert rebuilt(**described) == perturbation


def test_json_can_hold_the_description_of_numpy_values():
    assert '"quartiles": 2' in json.dumps(Inhibition(np.array([A]), quartiles=np.int64(2)).describe())
    assert '"to": [0.5]' in json.dumps(RankShift(np.array([A]), to=np.float32(0.5)).describe())


def test_different_perturbations_differ_in_all_that_identifies_them():
    assert len(set(DIFFERENT)) == len({json.dumps(one.describe()) for one in DIFFERENT}) == len(DIFFERENT)


@of_every_kind
def test_perturbations_of_the_same_genes_are_equal(kind):
    assert example(kind, [A, B]) == example(kind, (A, B)) != example(kind)
    assert hash(example(kind, [A, B])) == hash(example(kind, (A, B)))


def test_equal_compositions_are_equal():
    assert Deletion([A]) + Overexpression([B]) == Deletion((A,)) + Overexpression((B,))
    assert hash(Deletion([A]) + Overexpression([B])) == hash(Deletion((A,)) + Overexpression((B,)))


@pytest.mark.parametrize("perturbation", [Deletion(), Deletion([A]) + Overexpression([B])], ids=repr)
def test_a_perturbation_cannot_be_altered(perturbation):
    for one in dataclasses.fields(perturbation):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(perturbation, one.name, None)


@pytest.mark.parametrize(
    ("perturbation", "left"),
    [
        pytest.param(Deletion([A, B, C]), Deletion([A, C]), id="of a list"),
        pytest.param(RankShift([A, B], to=[0, 1]), RankShift([A], to=[0, 1]), id="with its options"),
        pytest.param(Deletion([C, B], anchor=A), Deletion([C], anchor=A), id="with its anchor"),
        pytest.param(Deletion(anchor=A), Deletion(anchor=A), id="each has no list"),
        pytest.param(Deletion([A, B]) + Inhibition([C]), Deletion([A]) + Inhibition([C]), id="of a step"),
        pytest.param(Deletion([B]) + Inhibition([C]), kinds.Composed((Inhibition([C]),)), id="a whole step"),
    ],
)
def test_genes_may_be_left_out(perturbation, left):
    assert perturbation.without({B}) == left


@pytest.mark.parametrize(
    ("perturbation", "needed", "left_out"),
    [
        pytest.param(Deletion([A, B]), [{A, B}], [{A}, {B}, {C}], id="one of a list"),
        pytest.param(Deletion([A, B, C], combine="pairs"), [{A, B}], [{A}, {C}], id="two for a pair"),
        pytest.param(Deletion([B, C], anchor=A), [{A}, {B, C}], [{B}, {C}], id="the anchor and another"),
        pytest.param(Deletion(anchor=A), [{A}], [{B}], id="the anchor of each"),
        pytest.param(Deletion([A]) + Inhibition([B]), [{A, B}], [{A}, {B}], id="one step"),
    ],
)
def test_genes_without_which_nothing_is_left_to_do_are_told_from_those_that_may_be_left_out(
    perturbation, needed, left_out
):
    assert all(perturbation.needs_one_of(genes) for genes in needed)
    for genes in left_out:
        assert not perturbation.needs_one_of(genes)
        assert set(perturbation.without(genes).named) == set(perturbation.named) - genes


def test_genes_must_be_expressed_unless_they_are_inserted():
    assert Inhibition([B, C], anchor=A).must_be_expressed == (A, B, C)
    assert Overexpression([B, C], anchor=A).must_be_expressed == ()
    assert (Deletion([A]) + Overexpression([B]) + Inhibition([C])).must_be_expressed == (A, C)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda: Deletion(A), rf"ids, found the text '{A}'.*give \['{A}'\]", id="a text"),
        pytest.param(lambda: Deletion("all"), r"'each' or a sequence of gene ids, found the text 'all'", id="a word"),
        pytest.param(lambda: Deletion([]), r"distinct and at least one, found \[\]", id="none"),
        pytest.param(lambda: Deletion([A, A]), r"distinct and at least one, found \['ENSG", id="twice"),
        pytest.param(
            lambda: Deletion([A], combine="triples"),
            "combine must be one of 'together', 'singly', 'pairs', found 'triples'",
            id="another combination",
        ),
        pytest.param(lambda: Deletion([A], combine=""), "combine must be one of .*, found ''", id="no combination"),
        pytest.param(lambda: Deletion([A], anchor=B, combine="singly"), "'pairs', found 'singly'", id="anchor singly"),
        pytest.param(lambda: Deletion(combine="together"), "would leave none. Give a list", id="each together"),
        pytest.param(lambda: Deletion([A, B], anchor=A), f"anchor '{A}' is among the genes as well", id="anchor twice"),
        pytest.param(lambda: Deletion([A], combine="pairs"), rf"pair needs two genes, found \['{A}'\]", id="no pair"),
        pytest.param(lambda: Activation([A], quartiles=4), "quartiles must be 1, 2 or 3, found 4", id="4 quartiles up"),
        pytest.param(lambda: Inhibition(quartiles=0), "quartiles must be 1, 2 or 3, found 0", id="0 quartiles down"),
        pytest.param(lambda: RankShift([A], to=1.5), r"from 0 \(front\) to 1 \(bottom\).*found 1\.5", id="too far"),
        pytest.param(lambda: RankShift([A], to=float("nan")), "must be a number.*found nan", id="to nan"),
        pytest.param(lambda: RankShift([A], to="0.5"), r"must be a number.*found '0\.5'", id="to a text"),
        pytest.param(lambda: RankShift([A], to=None), "must be a number.*found None", id="to nothing"),
        pytest.param(lambda: RankShift([A], to=[]), r"or several, found \[\]", id="to no place"),
        pytest.param(lambda: RankShift([A], to=[0, 1, 0]), r"to names a place twice: \[0, 1, 0\]", id="to one twice"),
        pytest.param(lambda: Deletion() + Deletion([A]), "together can be done one after.*'each'", id="each first"),
        pytest.param(lambda: Deletion([B]) + Deletion([A], combine="singly"), "found .*'singly'", id="then singly"),
        pytest.param(lambda: Deletion([B]) + RankShift([A], to=[0, 1]), r"found .*\(0\.0, 1\.0\)", id="several places"),
        pytest.param(lambda: Deletion([A]) + Overexpression([A]), f"perturbed twice: {A}, {A}", id="in two steps"),
        pytest.param(lambda: kinds.Composed(()), "at least one step, found none", id="no step"),
    ],
)
def test_what_cannot_be_done_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize(
    ("perturbation", "message"),
    [
        pytest.param(
            Deletion([A, "NPPB"]), r"1 of 2 genes are not in.*'NPPB'\. Give Ensembl ids such as 'ENSG0", id="unknown"
        ),
        pytest.param(Deletion(["TTN"]), r"or their name stands for several genes: 'TTN'", id="ambiguous name"),
        pytest.param(Deletion(["x", "y", A]), r"2 of 3 genes.*: 'x', 'y'\.", id="every unknown one is named"),
        pytest.param(Deletion(anchor="x"), "1 of 1 genes are not in.*'x'", id="unknown anchor"),
        pytest.param(Deletion([A]) + Overexpression(["x"]), "1 of 2 genes are not in.*'x'", id="in a later step"),
        pytest.param(Deletion([A, "NPPA"]), f"named twice, by id and by name: {A}, NPPA", id="by id and by name"),
        pytest.param(Deletion([A], anchor="NPPA"), "named twice, by id and by name", id="anchor by name"),
        pytest.param(Deletion([A]) + Overexpression(["NPPA"]), "named twice, by id and by name", id="in two steps"),
    ],
)
def test_genes_that_cannot_be_told_are_refused_by_name(perturbation, message):
    with pytest.raises(InputError, match=message):
        Edits(perturbation, SERIES["V2"])
