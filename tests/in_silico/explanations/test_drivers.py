"""Known genes among the strongest: matched and not, beside what needs no model."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import hypergeom
from sklearn.metrics import roc_auc_score
from tables_of_genes import table_of_genes

import geneformer_repro as gf
from geneformer_repro.errors import InputError
from geneformer_repro.in_silico.explanations.drivers import matched_rank_sum
from geneformer_repro.in_silico.networks.edge_scores import Stratified

TABLE = table_of_genes().assign(log2_fold_change=np.random.default_rng(9).normal(size=2_000))


def drivers_by_detection(seed, n=150):
    """Listed genes that are detected in many cells, as listed genes are."""
    weight = TABLE["detection_rate"].to_numpy()
    return list(np.random.default_rng(seed).choice(TABLE.index, n, replace=False, p=weight / weight.sum()))


def test_the_matched_auroc_is_the_one_of_networks():
    rng = np.random.default_rng(0)
    score, listed = rng.integers(0, 20, 300).astype(float), rng.random(300) < 0.2
    stratum = rng.integers(0, 12, 300)
    expected = Stratified(score, stratum, np.zeros(300, dtype=int), 1).auroc(np.flatnonzero(listed))
    np.testing.assert_allclose(matched_rank_sum(score, listed, stratum).matched_auroc, expected)
    one = matched_rank_sum(score, listed, np.zeros(300, dtype=int)).matched_auroc
    np.testing.assert_allclose(one, roc_auc_score(listed, score))


def test_its_p_value_is_that_of_permutations_within_strata():
    rng = np.random.default_rng(1)
    stratum = np.repeat(np.arange(4), 30)
    score = rng.normal(size=120) + stratum
    score[::5] = np.round(score[::5])
    listed = rng.random(120) < 0.3
    found = matched_rank_sum(score + 0.45 * listed, listed, stratum)
    drawn = np.empty((4_000, 2))
    for i in range(4_000):
        order = np.lexsort((rng.random(120), stratum))
        drawn[i] = matched_rank_sum(score + 0.45 * listed, listed[order], stratum)
    as_far = np.abs(drawn[:, 0] - 0.5) >= abs(found.matched_auroc - 0.5)
    np.testing.assert_allclose(found.matched_p_value, as_far.mean(), atol=0.02)


def test_a_score_that_follows_detection_finds_drivers_only_where_genes_are_not_matched():
    table = TABLE.assign(score=TABLE["detection_rate"] + 0.05 * TABLE["score"])
    found = gf.driver_genes(table, drivers_by_detection(0)).table
    first = found.loc[("score", 100)]
    assert first["auroc"] > 0.7
    assert first["plain_p_value"] < 0.01
    assert abs(first["matched_auroc"] - 0.5) < 0.05
    assert first["p_value"] > 0.05


def test_listed_genes_that_mean_nothing_have_a_matched_auroc_of_a_half():
    matched = [gf.driver_genes(TABLE, drivers_by_detection(seed)).table["matched_auroc"].iloc[0] for seed in range(8)]
    assert abs(np.mean(matched) - 0.5) < 0.02
    assert np.max(np.abs(np.array(matched) - 0.5)) < 0.08


def test_planted_drivers_are_found_beyond_what_needs_no_model():
    listed = drivers_by_detection(3)
    table = TABLE.assign(score=TABLE["score"] * 0.5 + 2 * TABLE.index.isin(listed))
    found = gf.driver_genes(table, listed, random_weights=TABLE.assign(score=TABLE["score"].to_numpy()[::-1]))
    scores = found.table.index.get_level_values("score").unique()
    assert list(scores) == ["score", "fold change", "detection", "place", "random weights"]
    assert found.table.loc[("score", 50), "precision"] == 1.0
    assert found.table.loc[("score", 50), "p_value"] < 1e-12
    assert "no evidence" not in found.facts["sentence"]
    assert list(found.genes) == ["gene_name", "score", "random weights", "is_driver"]
    assert found.genes["is_driver"].sum() == 150


def test_without_strata_it_is_the_plain_test():
    listed = drivers_by_detection(1)
    found = gf.driver_genes(TABLE, listed, strata=None, top=[60]).table.loc[("score", 60)]
    strongest = TABLE["score"].abs().nlargest(60).index
    x = len(set(strongest) & set(listed))
    np.testing.assert_allclose(found["precision"], x / 60)
    np.testing.assert_allclose(found["p_value"], hypergeom.sf(x - 1, 2_000, 150, 60))
    np.testing.assert_allclose(found["expected"], 150 / 2_000)
    both, listed_only, chosen_only = x + 0.5, 150 - x + 0.5, 60 - x + 0.5
    np.testing.assert_allclose(found["odds_ratio"], both * (2_000 - 150 - 60 + x + 0.5) / (listed_only * chosen_only))


def test_of_equal_scores_the_expectation_is_counted():
    table = pd.DataFrame({"score": np.ones(100), "detection_rate": np.linspace(0, 1, 100)})
    table.index = [f"gene {i}" for i in range(100)]
    found = gf.driver_genes(table, list(table.index[:40]), top=[50]).table.loc[("score", 50)]
    assert abs(found["precision"] - 0.4) < 0.06
    assert found["auroc"] == 0.5


def test_each_method_of_an_explanation_is_a_score():
    both = pd.concat([TABLE.assign(method="hide"), TABLE.assign(method="surrogate", score=-TABLE["score"])])
    found = gf.driver_genes(both, drivers_by_detection(1), top=[10])
    assert list(found.table.index.get_level_values("score").unique())[:2] == ["hide", "surrogate"]
    np.testing.assert_allclose(found.genes["hide"], -found.genes["surrogate"])


def test_what_is_known_of_the_list_is_told(tmp_path):
    path = tmp_path / "drivers.txt"
    path.write_text("# version: 7\n" + "\n".join(drivers_by_detection(0)[:20]) + "\nNOT A GENE\n")
    facts = gf.driver_genes(TABLE, path, name="a list", licence="academic").facts
    assert {name: facts[name] for name in ("name", "version", "licence", "file", "listed", "known")} == {
        "name": "a list", "version": "7", "licence": "academic", "file": "drivers.txt", "listed": 21, "known": 20,
    }  # fmt: skip
    assert facts["unknown names"] == "'NOT A GENE'"


@pytest.mark.parametrize(
    ("drivers", "options", "says"),
    [
        (["NOT A GENE"], {}, r"0 of 1 listed genes \('NOT A GENE'\) are among the 2,000"),
        (list(TABLE.index), {}, "2000 of 2,000 listed genes"),
        (drivers_by_detection(0), {"top": [0]}, "top must be at least 1"),
        (drivers_by_detection(0), {"top": [2_000]}, "would choose all 2,000 genes"),
        (drivers_by_detection(0), {"random_weights": TABLE.iloc[:1_000]}, "random_weights lacks 1,000 of 2,000 genes"),
    ],
    ids=["unknown", "all", "no k", "all chosen", "other genes"],
)
def test_what_cannot_be_asked_is_refused(drivers, options, says):
    with pytest.raises(InputError, match=says):
        gf.driver_genes(TABLE, drivers, **options)
