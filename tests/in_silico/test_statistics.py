"""The table of genes: each p and FDR by hand, calibrated where nothing happens, equal to the published one."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kstest, mannwhitneyu, norm, rankdata

import geneformer_repro as gf
from geneformer_repro import Deletion, GoalState, InputError, ShiftTable, perturb, shift_statistics
from geneformer_repro.in_silico import statistics as module

GOAL = {"obs": "cell_type", "start": "a", "goal": "b", "alternatives": ["c"]}
STATES = ("a", "b", "c")


@pytest.fixture(scope="module")
def measured(_pbmc):
    """Gene, cell and rank of a deletion screen's rows on 60 real cells, without the rarest genes."""
    vocabulary = gf.Vocabulary.fit(_pbmc, max_length=22)
    cells = gf.tokenize(_pbmc, vocabulary).select(range(60))
    rows = [(name, gene, rank) for i, name in enumerate(cells.cell_names) for rank, gene in enumerate(cells.genes(i))]
    table = pd.DataFrame(rows, columns=["cell", "perturbed", "rank"])
    table = table[table.groupby("perturbed")["cell"].transform("size") >= 3].reset_index(drop=True)
    return table.assign(affected=None, state=None), dict(zip(vocabulary.gene_ids, vocabulary.gene_names, strict=True))


def shifts_of(measured, values, goal=None):
    """A screen with these values; with a goal, one array a state."""
    table, names = measured
    if goal is None:
        table = table.assign(value=values)
    else:
        table = pd.concat([table.assign(state=state, value=v) for state, v in values.items()], ignore_index=True)
    measure = "cosine shift" if goal else "cosine similarity"
    return ShiftTable(table, {"measure": measure, "goal": goal, "gene_names": names})


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def similarities(measured, rng):
    return shifts_of(measured, 1 - rng.exponential(0.01, len(measured[0])))


@pytest.fixture
def towards_a_goal(measured, rng):
    return shifts_of(measured, {state: rng.normal(size=len(measured[0])) for state in STATES}, GOAL)


def slow_p(pool, values):
    """Rank-sum test from its definition: normal approximation, no correction for ties or continuity."""
    n, m = len(pool), len(values)
    expected, spread = n * (n + m + 1) / 2, np.sqrt(n * m * (n + m + 1) / 12)
    return 2 * norm.sf(abs(rankdata(np.concatenate([pool, values]))[:n].sum() - expected) / spread)


def slow_fdr(p_values):
    """Benjamini and Hochberg, from the largest p down."""
    fdr, lowest = np.empty(len(p_values)), 1.0
    for n_smaller, i in zip(range(len(p_values), 0, -1), np.argsort(p_values)[::-1], strict=True):
        lowest = min(lowest, p_values[i] * len(p_values) / n_smaller)
        fdr[i] = lowest
    return fdr


def slow_table(values):
    """Effect, p, FDR and number of cells of each gene's list of values."""
    pool = np.concatenate(list(values.values()))
    p_values = np.array([slow_p(pool, of_gene) for of_gene in values.values()])
    columns = {"effect": [np.mean(v) for v in values.values()], "p_value": p_values, "fdr": slow_fdr(p_values)}
    return pd.DataFrame(columns | {"n_cells": [len(v) for v in values.values()]}, index=list(values))


def values_by_gene(table):
    return {gene: rows["value"].to_numpy() for gene, rows in table.groupby("perturbed")}


# The numbers


def test_without_a_goal_each_gene_is_tested_against_all(similarities):
    table = similarities.table.assign(value=similarities.table["value"] - similarities.table["value"].mean())
    found = shift_statistics(similarities)
    expected = slow_table(values_by_gene(table)).loc[found.index]
    pd.testing.assert_frame_equal(found[expected.columns.tolist()], expected, check_names=False, rtol=1e-9)


def test_towards_a_goal_each_state_has_its_own_test(towards_a_goal):
    found = shift_statistics(towards_a_goal)
    for state, suffix in (("b", ""), ("c", "_to_c")):
        of_state = towards_a_goal.table[towards_a_goal.table["state"] == state]
        expected = slow_table(values_by_gene(of_state)).loc[found.index]
        for name in ("effect", "p_value", "fdr"):
            np.testing.assert_allclose(found[f"{name}{suffix}"], expected[name], rtol=1e-9)
        np.testing.assert_array_equal(found["n_cells"], expected["n_cells"])


def test_p_is_scipys_where_there_are_no_ties():
    values = {"g1": np.array([0.9, 0.8, 0.75]), "g2": np.array([0.1, 0.2, 0.3, 0.35])}
    exact = mannwhitneyu(values["g1"], values["g2"], method="asymptotic", use_continuity=False).pvalue
    assert slow_p(values["g2"], values["g1"]) == pytest.approx(exact)


def test_fdr_is_that_of_statsmodels(towards_a_goal):
    multitest = pytest.importorskip("statsmodels.stats.multitest", exc_type=ImportError)
    found = shift_statistics(towards_a_goal)
    np.testing.assert_allclose(found["fdr"], multitest.multipletests(found["p_value"], method="fdr_bh")[1])


def test_p_is_uniform_where_genes_make_no_difference(measured, rng):
    counts = measured[0]["perturbed"].value_counts()
    often = measured[0][measured[0]["perturbed"].isin(counts.index[counts >= 5])].reset_index(drop=True)
    found = shift_statistics(shifts_of((often, measured[1]), rng.permutation(np.linspace(0.9, 1, len(often)))))
    assert len(found) > 50
    assert kstest(found["p_value"], "uniform").pvalue > 0.01
    assert (found["fdr"] > 0.05).all()


def test_a_gene_that_moves_cells_is_found_and_the_others_are_not(measured, rng):
    strong = measured[0]["perturbed"].value_counts().index[0]
    values = {state: rng.normal(size=len(measured[0])) for state in STATES}
    values["b"][measured[0]["perturbed"] == strong] += 3
    found = shift_statistics(shifts_of(measured, values, GOAL))
    assert found.index[0] == strong
    assert found.index[found["fdr"] < 0.05].tolist() == [strong]
    assert found.loc[strong, "effect"] == pytest.approx(3, abs=0.5)


def test_values_are_those_of_the_published_package(golden):
    goal = GoalState("disease", "dcm", "nf", ["hcm"], golden.state_vectors())
    found = shift_statistics(perturb(golden.checkpoint, golden.cells, Deletion(), goal=goal))
    expected = pd.read_csv(golden.folder / "stats_delete_goal_goal.csv", index_col="Ensembl_ID")
    assert found.index.tolist() == expected.index.tolist()
    for ours, theirs in (
        ("effect", "Shift_to_goal_end"),
        ("p_value", "Goal_end_vs_random_pval"),
        ("fdr", "Goal_end_FDR"),
        ("effect_to_hcm", "Shift_to_alt_end_hcm"),
        ("p_value_to_hcm", "Alt_end_vs_random_pval_hcm"),
        ("fdr_to_hcm", "Alt_end_FDR_hcm"),
        ("n_cells", "N_Detections"),
    ):
        np.testing.assert_allclose(found[ours], expected[theirs], atol=1e-5, rtol=0)


# The form


def test_columns_and_index_are_those_that_are_promised(similarities, towards_a_goal):
    plain = ["gene_name", "effect", "p_value", "fdr", "n_cells"]
    assert shift_statistics(similarities).columns.tolist() == plain
    table = shift_statistics(towards_a_goal)
    assert table.columns.tolist() == [*plain, "effect_to_c", "p_value_to_c", "fdr_to_c"]
    assert table.index.name == "gene_id"
    assert table.index.is_unique
    assert set(table.index) == set(towards_a_goal.table["perturbed"])


def test_a_gene_without_a_name_is_called_by_its_id(similarities):
    nameless = similarities.table["perturbed"].iloc[0]
    names = dict(similarities.metadata["gene_names"]) | {nameless: ""}
    found = shift_statistics(ShiftTable(similarities.table, {**similarities.metadata, "gene_names": names}))[
        "gene_name"
    ]
    expected = [nameless if gene == nameless else names[gene] or gene for gene in found.index]
    assert found.tolist() == expected


def test_without_a_goal_the_order_is_by_fdr_then_effect(similarities):
    found = shift_statistics(similarities).reset_index()
    pd.testing.assert_frame_equal(found, found.sort_values(["fdr", "effect"], kind="stable"))


def test_with_a_goal_significant_genes_come_first_then_the_largest_effects(measured, rng):
    values = {state: rng.normal(size=len(measured[0])) for state in STATES}
    often = measured[0]["perturbed"].value_counts().index[:6]
    for gene, effect in zip(often, (4, -4, 3, -3, 2, -2), strict=True):
        values["b"][measured[0]["perturbed"] == gene] += effect
    found = shift_statistics(shifts_of(measured, values, GOAL))
    significant = found["fdr"] < 0.05
    assert 4 <= significant.sum() < 20
    assert significant.is_monotonic_decreasing
    for part in (found[significant], found[~significant]):
        assert part["effect"].is_monotonic_decreasing
    assert found.index[0] == often[0]


def test_the_screen_stays_as_it_is(towards_a_goal, similarities):
    for shifts in (towards_a_goal, similarities):
        before = shifts.table.copy()
        shift_statistics(shifts)
        pd.testing.assert_frame_equal(shifts.table, before)


def test_the_order_of_the_rows_does_not_matter(towards_a_goal):
    shuffled = towards_a_goal.table.sample(frac=1, random_state=0)
    found = shift_statistics(ShiftTable(shuffled, towards_a_goal.metadata))
    pd.testing.assert_frame_equal(found, shift_statistics(towards_a_goal))


@pytest.mark.parametrize("method", ["goal_state", "vs_all"])
def test_the_method_that_fits_is_the_default(towards_a_goal, similarities, method):
    shifts = towards_a_goal if method == "goal_state" else similarities
    pd.testing.assert_frame_equal(shift_statistics(shifts), shift_statistics(shifts, method=method))


def test_a_pool_too_large_is_sampled_alike_every_time(similarities, monkeypatch):
    whole = shift_statistics(similarities)
    monkeypatch.setattr(module, "POOL_SIZE", 600)
    assert len(similarities) > 800
    first, again = shift_statistics(similarities), shift_statistics(similarities)
    pd.testing.assert_frame_equal(first, again)
    np.testing.assert_allclose(first["p_value"], whole.loc[first.index, "p_value"], atol=0.15)
    assert not np.array_equal(first["p_value"], whole.loc[first.index, "p_value"])
    pd.testing.assert_series_equal(first["effect"], whole.loc[first.index, "effect"])


# What is refused


@pytest.mark.parametrize(
    ("method", "with_goal", "message"),
    [
        pytest.param("vs_all", True, r"method='vs_all' needs a screen without a goal state.* made with\.", id="goal"),
        pytest.param(
            "goal_state", False, "method='goal_state' needs a screen with a goal.* made without", id="no goal"
        ),
        pytest.param("mixture", False, "method must be one of 'goal_state', 'vs_all', found 'mixture'", id="unknown"),
    ],
)
def test_a_method_that_does_not_fit_is_refused(towards_a_goal, similarities, method, with_goal, message):
    with pytest.raises(InputError, match=message):
        shift_statistics(towards_a_goal if with_goal else similarities, method=method)


def test_a_screen_of_one_perturbation_is_refused_with_what_to_do(similarities):
    gene = similarities.table["perturbed"].iloc[0]
    alone = similarities.table[similarities.table["perturbed"] == gene]
    with pytest.raises(InputError, match=rf"perturbed only '{gene}'.*Deletion\(genes='each'\)"):
        shift_statistics(ShiftTable(alone, similarities.metadata))
