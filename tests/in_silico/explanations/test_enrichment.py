"""Gene sets of tables: false positives with and without matching, how genes are chosen, and what is refused."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kstest
from tables_of_genes import chosen_by_detection, sets_by_detection, table_of_genes

import geneformer_repro as gf
from geneformer_repro.errors import DataFormatError, InputError
from geneformer_repro.in_silico.explanations.explanation import Explanation
from geneformer_repro.in_silico.explanations.overlaps import chance_overlap
from geneformer_repro.in_silico.explanations.scored_genes import scored_genes

TABLE = table_of_genes()
SETS = sets_by_detection(TABLE)


# Whether to believe it


def test_genes_chosen_by_detection_are_enriched_without_matching_and_not_with_it():
    """At most one draw in twenty with any set at FDR 0.05, where matched; not matched most have one."""
    rng = np.random.default_rng(0)
    any_matched, any_plain = [], []
    for _ in range(40):
        found = gf.gene_set_enrichment(chosen_by_detection(TABLE, rng), SETS, selected="chosen")
        any_matched.append((found["fdr"] < 0.05).any())
        any_plain.append((found["plain_fdr"] < 0.05).any())
    assert np.mean(any_matched) <= 0.05
    assert np.mean(any_plain) > 0.5


def randomised(p_value, of_more):
    """A place between the p-value and that of one gene more, which is uniform where exact p-values are steps."""
    return of_more + np.random.default_rng(0).random(len(p_value)) * (p_value - of_more)


def test_p_values_of_nothing_are_uniform():
    """Over 500 sets, by overlap and by ranking; not matched they are small."""
    sets = sets_by_detection(TABLE, seed=2, n_sets=500)
    table = chosen_by_detection(TABLE, np.random.default_rng(0), n=400)
    found = gf.gene_set_enrichment(table, sets, selected="chosen").loc[list(sets)]
    (genes,) = scored_genes(table)
    members, chosen = np.stack([table.index.isin(of) for of in sets.values()]), table["chosen"].to_numpy()
    n_strata = genes.n_strata
    of_sets = np.stack([np.bincount(genes.stratum[of], minlength=n_strata) for of in members])
    of_genes, of_chosen = np.bincount(genes.stratum), np.bincount(genes.stratum[chosen], minlength=n_strata)
    overlap = (members & chosen).sum(axis=1)
    of_one, of_more = (chance_overlap(of_sets, of_genes, of_chosen, overlap + n).p_value for n in (0, 1))
    np.testing.assert_allclose(found["p_value"], of_one)
    assert kstest(randomised(of_one, of_more), "uniform").pvalue > 0.01
    assert found["plain_p_value"].mean() < 0.3
    ranked = gf.gene_set_enrichment(TABLE, sets, method="prerank", n_permutations=200)
    assert kstest(ranked["p_value"], "uniform").pvalue > 0.01


@pytest.mark.parametrize("method", ["overlap", "prerank"])
def test_a_planted_set_is_found(method):
    table = TABLE.assign(score=TABLE["score"] + 1.5 * TABLE.index.isin(SETS["SET3"]))
    found = gf.gene_set_enrichment(table, SETS, method=method)
    assert found.index[0] == "SET3"
    assert found["direction"].iloc[0] == "above 0"
    assert found["p_value"].iloc[0] < 0.003
    below = gf.gene_set_enrichment(table.assign(score=-table["score"]), SETS, method=method)
    assert below["direction"].iloc[0] == "below 0"


def test_a_set_without_overlap_has_p_value_one_and_counts_among_the_tests():
    """Of 12 p-values with two sets that share nothing; without these the first would be smaller (0.01)."""
    table = pd.DataFrame({"score": np.r_[np.ones(10), np.zeros(90)], "chosen": [True] * 10 + [False] * 90})
    table.index = [f"G{i}" for i in range(100)]
    sets = {"some": [f"G{i}" for i in range(12)], "none": [f"G{i}" for i in range(40, 55)]}
    found = gf.gene_set_enrichment(table, sets, selected="chosen", strata=None)
    assert found.loc["none", "p_value"] == 1.0
    np.testing.assert_allclose(found.loc["some", "fdr"], 2 * found.loc["some", "p_value"])


def test_false_discovery_rates_are_over_all_sets():
    from geneformer_repro.in_silico.published_statistics import false_discovery_rate

    p_values = [0.001, 0.008, 0.039, 0.041, 0.042, 0.06, 0.074, 0.205, 0.212, 0.216, 1, 1]
    expected = [
        0.012, 0.048, 0.1008, 0.1008, 0.1008, 0.12, 0.126857142857, 0.2592, 0.2592, 0.2592, 1, 1,
    ]  # fmt: skip
    np.testing.assert_allclose(false_discovery_rate(pd.Series(p_values)), expected, atol=1e-12)
    np.testing.assert_allclose(false_discovery_rate(pd.Series(p_values[:10]))[:5], [0.01, 0.04, 0.084, 0.084, 0.084])


# Which genes


def chosen_of(found, direction):
    return found.attrs["tests"][0]["chosen"][direction]


def test_the_strongest_of_both_signs_are_chosen_apart():
    found = gf.gene_set_enrichment(TABLE, SETS, top=7)
    order = TABLE["score"].sort_values(ascending=False).index
    assert set(chosen_of(found, "above 0")) == set(order[:7])
    assert set(chosen_of(found, "below 0")) == set(order[-7:])
    assert set(found["direction"]) == {"above 0", "below 0"}


def test_of_genes_that_share_the_last_score_none_is_chosen():
    table = TABLE.assign(score=np.r_[[3.0, 2.0, 1.0, 1.0], np.zeros(len(TABLE) - 4)])
    found = gf.gene_set_enrichment(table, SETS, top=3)
    assert chosen_of(found, "above 0") == list(TABLE.index[:2])
    assert "below 0" not in found.attrs["tests"][0]["chosen"]


@pytest.mark.parametrize("written", [bool, int, str], ids=["true", "1", "text"])
def test_a_column_of_chosen_genes_needs_no_score(written):
    table = TABLE.drop(columns="score").assign(chosen=[written(i < 100) for i in range(len(TABLE))])
    found = gf.gene_set_enrichment(table, SETS, selected="chosen")
    assert chosen_of(found, "chosen") == list(TABLE.index[:100])
    assert set(found["direction"]) == {"chosen"}


def test_genes_are_chosen_by_false_discovery_rate():
    table = TABLE.assign(fdr=np.where(np.arange(len(TABLE)) < 100, 0.01, 0.5), beyond=-TABLE["score"])
    found = gf.gene_set_enrichment(table, SETS, max_fdr=0.05)
    assert set(chosen_of(found, "above 0")) == set(TABLE.index[:100][TABLE["score"][:100] > 0])


def test_genes_that_could_not_be_chosen_are_no_background():
    table = TABLE.assign(n_cells=np.where(np.arange(len(TABLE)) < 500, 3, 100))
    table.iloc[500:600, table.columns.get_loc("score")] = np.nan
    found = gf.gene_set_enrichment(table, SETS, min_size=5)
    (test,) = found.attrs["tests"]
    assert test["left_out"] == {"no score": 100, "in fewer than 10 cells": 500, "no value of strata": 0}
    assert test["background"] == list(TABLE.index[600:])
    assert (found["size"] < 40).all()


def test_each_method_and_state_is_tested_on_its_own():
    other = TABLE.assign(score=-TABLE["score"], method="second")
    both = pd.concat([TABLE.assign(method="first"), other])
    found = gf.gene_set_enrichment(both, SETS)
    alone = gf.gene_set_enrichment(TABLE, SETS)
    of_first = found[found["method"] == "first"].drop(columns="method")
    pd.testing.assert_frame_equal(of_first, alone, check_exact=True)
    assert [test["of"] for test in found.attrs["tests"]] == [{"method": "first"}, {"method": "second"}]


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".parquet"])
def test_a_file_is_its_table(tmp_path, suffix):
    path = tmp_path / f"genes{suffix}"
    if suffix == ".parquet":
        TABLE.to_parquet(path)
    else:
        TABLE.to_csv(path, sep="\t" if suffix == ".tsv" else ",")
    found = gf.gene_set_enrichment(path, SETS)
    pd.testing.assert_frame_equal(found, gf.gene_set_enrichment(TABLE, SETS))


def explanation(n_donors, n_genes=300, n_cells=12):
    rng = np.random.default_rng(0)
    effect = rng.normal(size=n_genes) + 2.5 * (np.arange(n_genes) < 20)
    cells = [(f"cell{i}", f"donor{i % n_donors}") for i in range(n_cells)]
    rows = pd.DataFrame(
        [
            (cell, donor, f"G{gene}", place, "hide", "B", effect[gene] + 0.1 * rng.normal(), 0.5, None, True)
            for cell, donor in cells
            for place, gene in enumerate(rng.permutation(n_genes))
        ],
        columns=["cell", "donor", "gene", "place", "method", "state", "value", "before", "gap", "exact"],
    )
    return Explanation(rows, {"measure": "log-odds", "methods": {"hide": {}}, "gene_names": {}, "n_cells": n_cells})


def test_an_explanation_is_its_table_of_genes_with_flips_of_its_donors(tmp_path):
    why = explanation(n_donors=6)
    sets = {"planted": [f"G{i}" for i in range(20)], "other": [f"G{i}" for i in range(100, 130)]}
    found = gf.gene_set_enrichment(why, sets, method="prerank", n_permutations=200)
    assert found.index[0] == "planted"
    assert found.loc["planted", "donor_p_value"] < 0.06
    assert found.attrs["score"] == "beyond"
    why.save(tmp_path / "why.parquet")
    again = gf.gene_set_enrichment(tmp_path / "why.parquet", sets, method="prerank", n_permutations=200)
    pd.testing.assert_frame_equal(found, again)
    assert "donor_p_value" not in gf.gene_set_enrichment(explanation(3), sets, method="prerank", n_permutations=50)


# What ranks genes


def test_a_score_that_is_not_matched_is_ranked_within_its_stratum():
    """Sizes follow detection: their percentile within strata does not."""
    table = TABLE.assign(score=np.abs(TABLE["score"]) * TABLE["detection_rate"])
    found = gf.gene_set_enrichment(table, SETS, method="prerank", n_permutations=200)
    assert found.attrs["score"] == "percentile of score within strata"
    assert (found["fdr"] < 0.05).sum() == 0


def test_what_is_beyond_baselines_is_ranked_as_it_is():
    found = gf.gene_set_enrichment(TABLE.assign(beyond=TABLE["score"]), SETS, method="prerank", n_permutations=20)
    assert found.attrs["score"] == "beyond"


def test_a_size_without_strata_is_refused():
    with pytest.raises(InputError, match="'score' has one sign, so it is a size, and sizes follow detection"):
        gf.gene_set_enrichment(TABLE.assign(score=np.abs(TABLE["score"])), SETS, method="prerank", strata=None)


def test_few_exchanges_for_many_sets_are_said(caplog):
    gf.gene_set_enrichment(TABLE, SETS, method="prerank", n_permutations=50)
    assert "50 exchanges are few for 60 sets" in caplog.text
    assert "n_permutations=2,400" in caplog.text


def test_the_same_seed_gives_the_same_table():
    first, second, other = (
        gf.gene_set_enrichment(TABLE, SETS, method="prerank", n_permutations=50, seed=seed) for seed in (0, 0, 1)
    )
    pd.testing.assert_frame_equal(first, second, check_exact=True)
    assert not first["p_value"].equals(other["p_value"].reindex(first.index))


def test_donors_where_a_gene_is_not_there_count_for_nothing():
    rng = np.random.default_rng(0)
    donors = pd.DataFrame(rng.normal(size=(6, len(TABLE))), columns=TABLE.index)
    donors += 2.0 * TABLE.index.isin(SETS["SET3"])
    donors.iloc[0, ::3] = np.nan
    table = TABLE.assign(score=donors.mean().to_numpy())
    donors.columns = table["gene_name"]
    found = gf.gene_set_enrichment(table, SETS, method="prerank", donors=donors, n_permutations=200)
    assert found.loc["SET3", "donor_p_value"] < 0.06


# Strata


def test_strata_are_said_and_counted():
    attrs = gf.gene_set_enrichment(TABLE, SETS).attrs
    assert (attrs["strata"], attrs["n_strata"]) == (["detection_rate", "mean_place"], 20)
    one = gf.gene_set_enrichment(TABLE.drop(columns="mean_place"), SETS).attrs
    assert (one["strata"], one["n_strata"]) == (["detection_rate"], 20)
    counted = gf.gene_set_enrichment(TABLE.drop(columns=["mean_place", "detection_rate"]), SETS).attrs
    assert counted["strata"] == ["n_cells"]


@pytest.mark.parametrize("strata", [None, 1])
def test_without_strata_it_is_the_plain_test_and_says_so(strata, caplog):
    found = gf.gene_set_enrichment(TABLE, SETS, strata=strata)
    np.testing.assert_array_equal(found["p_value"], found["plain_p_value"])
    assert "Genes are not matched" in caplog.text
    assert "no evidence" in found.attrs["sentence"]


# What is refused


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"method": "ora"}, "method must be one of 'overlap', 'prerank', found 'ora'"),
        ({"top": 10, "max_fdr": 0.05}, "top and max_fdr are ways to choose genes: give one"),
        ({"method": "prerank", "top": 10}, "ranks all genes and chooses none: leave top out"),
        ({"top": 0}, "top must be at least 1"),
        ({"top": 2_000}, "top=2,000 would choose all 2,000 genes"),
        ({"score": "scor"}, "has no column 'scor'. Did you mean 'score'"),
        ({"strata": ["place"]}, "has no column 'place' to compare genes with others like them"),
        ({"strata": 3}, "strata must be one or two columns"),
        ({"max_fdr": 0.05}, "max_fdr=0.05 needs a column such as fdr"),
        ({"selected": "chosen"}, "There is no column 'chosen'"),
        ({"min_size": 41}, "None of 60 sets has 41 to 500 genes"),
        ({"donors": pd.DataFrame(np.zeros((6, 3)))}, "donors are for method='prerank'"),
        ({"method": "prerank", "donors": pd.DataFrame(np.zeros((2, 3)))}, "donors has 2 rows; flips of signs need 6"),
    ],
    ids=lambda value: "" if isinstance(value, str) else ",".join(value),
)
def test_what_cannot_be_asked_is_refused(options, says):
    with pytest.raises(InputError, match=says):
        gf.gene_set_enrichment(TABLE, SETS, **options)


def test_a_gene_with_two_rows_is_refused():
    with pytest.raises(DataFormatError, match=r"1 genes have two rows \(first: 'ENSG00000000000'\)"):
        gf.gene_set_enrichment(pd.concat([TABLE, TABLE.iloc[:1]]), SETS)


def test_a_table_without_detection_is_refused_and_told_the_way():
    with pytest.raises(InputError, match=r"strata=None \(--strata none\) for the plain test"):
        gf.gene_set_enrichment(TABLE[["score"]], SETS)


def test_a_table_without_a_score_names_those_that_it_may_have():
    with pytest.raises(InputError, match="no column of a score, which may be called beyond, "):
        gf.gene_set_enrichment(TABLE.drop(columns="score"), SETS)


def test_infinite_scores_are_refused():
    with pytest.raises(DataFormatError, match="'score' holds an infinite value in row 1"):
        gf.gene_set_enrichment(TABLE.assign(score=np.inf), SETS)


def test_of_an_explanation_it_is_said_first_how_good_the_model_is(tmp_path):
    why = explanation(3)
    how_good = {
        "score": "balanced accuracy", "value": 0.11, "low": 0.1, "high": 0.12, "guess": 0.11, "replicates": "donors",
        "n_rows": 12, "better_than_guessing": False,
    }  # fmt: skip
    why = Explanation(why.table, {**why.metadata, "how_good": how_good})
    found = gf.gene_set_enrichment(why, {"planted": [f"G{i}" for i in range(20)]})
    assert found.attrs["sentence"].startswith("The model is no better than guessing on the rows explained: balanced")
    assert gf.driver_genes(why, [f"G{i}" for i in range(20)], top=[10]).facts["model"] == found.attrs["model"]
    gf.write_enrichment_report(found, tmp_path / "sets.html")
    page = (tmp_path / "sets.html").read_text()
    assert page.index("<b>The model is no better than guessing") < page.index("tests (a set and a direction)")
    assert page.count("The model is no better than guessing") == 1


def test_an_expression_network_has_no_places_and_all_genes_in_all_samples():
    """Nothing tells its genes apart, and the sentence says so; with their mean expression they are matched."""
    of_cells = explanation(6)
    rows = of_cells.table.assign(place=pd.array([None] * len(of_cells.table), dtype="Int32"))
    why = Explanation(rows, of_cells.metadata)
    sets = {"planted": [f"G{i}" for i in range(20)], "other": [f"G{i}" for i in range(100, 130)]}
    found = gf.gene_set_enrichment(why, sets)
    assert found.attrs["strata"] == []
    assert "Genes are not matched" in found.attrs["sentence"]
    assert found.index[0] == "planted"
    genes = why.genes()
    genes["mean_expression"] = np.arange(len(genes), dtype=float)
    matched = gf.gene_set_enrichment(genes, sets)
    assert (matched.attrs["strata"], matched.attrs["n_strata"]) == (["mean_expression"], 20)
    drivers = gf.driver_genes(why, sets["planted"], top=[10])
    assert "not matched" in drivers.facts["sentence"]
