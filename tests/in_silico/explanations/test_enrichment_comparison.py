"""Two models side by side: what is shared, what chance makes common, what two seeds have in common."""

import numpy as np
import pandas as pd
import pytest
from tables_of_genes import sets_by_detection, table_of_genes

import geneformer_repro as gf
from geneformer_repro.errors import InputError
from geneformer_repro.in_silico.explanations.enrichment_comparison import common_genes, found_sets, jaccard

TABLE = table_of_genes()
SETS = sets_by_detection(TABLE)


def enriched(planted, seed, method="overlap", sign=1):
    noise = np.random.default_rng(seed).normal(size=len(TABLE))
    score = noise + 2.5 * TABLE.index.isin([gene for name in planted for gene in SETS[name]])
    table = TABLE.assign(score=sign * score)
    return gf.gene_set_enrichment(table, SETS, method=method, n_permutations=3_000 if method == "prerank" else 1)


@pytest.mark.parametrize("method", ["overlap", "prerank"])
def test_sets_are_shared_or_of_one_model_alone(method):
    first, second = enriched(["SET1", "SET2"], 1, method), enriched(["SET1", "SET3"], 2, method)
    table = gf.compare_enrichment(first, second, names=["scratch", "pretrained"])
    found = table["found"].groupby(level="set").agg("max")
    assert found[["SET1", "SET2", "SET3"]].to_dict() == {"SET1": "shared", "SET2": "scratch", "SET3": "pretrained"}
    value = "nes" if method == "prerank" else "fold"
    of = first[first["direction"] == "above 0"]
    np.testing.assert_allclose(table[f"{value} scratch"].loc["SET1"].max(), of.loc["SET1", value])
    assert table.attrs["n_shared"] == (table["found"] == "shared").sum()
    np.testing.assert_allclose(table.attrs["jaccard"], jaccard(found_sets(first), found_sets(second)))


def test_a_ranking_turned_round_shares_nothing():
    first, second = enriched(["SET1"], 1, "prerank"), enriched(["SET1"], 2, "prerank", sign=-1)
    table = gf.compare_enrichment(first, second)
    assert table.loc["SET1", "found"] == "opposite"
    assert table.attrs["n_shared"] == 0
    assert not found_sets(first) & found_sets(second)


def test_beside_it_stands_what_two_seeds_share():
    first, second, third, fourth = (enriched(["SET1", "SET2"], seed) for seed in range(4))
    table = gf.compare_enrichment(first, second, names=["a", "b"], seeds=[third, fourth])
    assert table.attrs["jaccard_of_seeds"] == jaccard(found_sets(third), found_sets(fourth))
    assert "less alike than two seeds of one model" in table.attrs["sentence"]
    alone = gf.compare_enrichment(first, second, names=["a", "b"])
    assert "two seeds of one model are was not asked" in alone.attrs["sentence"]


def test_a_model_that_guesses_is_said_to():
    first, second = enriched(["SET1"], 0), enriched(["SET1"], 1)
    second.attrs["warning"] = "The model is no better than guessing."
    said = gf.compare_enrichment(first, second, names=["a", "b"]).attrs["sentence"]
    assert said.startswith("b: The model is no better than guessing. a finds ")


def test_common_genes_of_two_top_fifties():
    """Of 1,000 genes 2.5 are common by chance; eight or more with p = 0.0024."""
    genes = [f"G{i}" for i in range(1_000)]
    one = {"background": genes, "stratum": [0] * 1_000, "chosen": {"above 0": genes[:50]}}
    other = one | {"chosen": {"above 0": genes[42:92]}}
    found = common_genes(one, other, "above 0")
    assert [found[name] for name in ("only_first", "common", "only_second")] == [42, 8, 42]
    np.testing.assert_allclose(found["expected"], 2.5)
    np.testing.assert_allclose([found["p_value"], found["plain_p_value"]], 0.00235802888823, rtol=1e-11)


def test_genes_of_like_detection_are_common_by_chance():
    """Both choose the half that is often detected: without strata that looks like agreement."""
    genes = [f"G{i}" for i in range(200)]
    one = {"background": genes, "stratum": [0] * 100 + [1] * 100, "chosen": {"chosen": genes[100:160]}}
    other = one | {"chosen": {"chosen": genes[140:200]}}
    found = common_genes(one, other, "chosen")
    np.testing.assert_allclose([found["expected"], found["plain_expected"]], [36, 18])
    assert found["p_value"] == 1.0


def test_genes_that_only_one_could_choose_do_not_count():
    one = {"background": list("abcd"), "stratum": [0] * 4, "chosen": {"chosen": ["a", "b"]}}
    other = {"background": list("bcd"), "stratum": [0] * 3, "chosen": {"chosen": ["b", "c"]}}
    found = common_genes(one, other, "chosen")
    assert [found[name] for name in ("only_first", "common", "only_second")] == [0, 1, 1]


@pytest.mark.parametrize(
    ("second", "options", "says"),
    [
        (enriched([], 0, "prerank"), {}, "of different method: overlap and prerank"),
        (pd.DataFrame({"p_value": [1.0]}), {}, "no result of gene_set_enrichment"),
        (enriched([], 0), {"names": ["a", "a"]}, "names must be two, and different"),
        (enriched([], 0), {"seeds": [enriched([], 1)]}, "seeds must be two results of one model, found 1"),
    ],
    ids=["method", "other table", "names", "seeds"],
)
def test_what_cannot_be_compared_is_refused(second, options, says):
    with pytest.raises(InputError, match=says):
        gf.compare_enrichment(enriched([], 0), second, **options)
