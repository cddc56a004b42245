"""Goals drawn at random: their vectors by definition, what a screen measures towards them, and what that says."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from slow_screen import random_model

import geneformer_repro as gf
from geneformer_repro import DataFormatError, Deletion, GoalState, InputError, ShiftTable, perturb
from geneformer_repro.in_silico.gene_baselines import PREDICTORS
from geneformer_repro.in_silico.pictures import write_screen_report
from geneformer_repro.in_silico.shams import N_SHAMS, dependence, dependence_in_words, sham_goals
from geneformer_repro.in_silico.shift_table import SHIFT
from geneformer_repro.in_silico.statistics import _beside_baselines, shift_statistics

pytestmark = pytest.mark.usefixtures("blank_pictures")

GOAL = GoalState("cell_type", "CD56+ NK", "CD19+ B", ["CD34+"])
FEW = {"max_cells": 3, "donor": "donor"}


@pytest.fixture(scope="module")
def short(_pbmc):
    """Blood cells of three states, 24 of the start state, only their first dozen genes: a screen is small."""
    types = _pbmc.obs["cell_type"].to_numpy()
    chosen = [np.flatnonzero(types == state)[: 24 if state == GOAL.start else 6] for state in GOAL.states]
    adata = _pbmc[np.sort(np.concatenate(chosen))].copy()
    adata.obs["donor"] = [f"donor{i % 3}" for i in range(adata.n_obs)]
    return gf.tokenize(adata, gf.Vocabulary.fit(_pbmc, max_length=14), obs=["cell_type", "donor"])


@pytest.fixture(scope="module")
def model(short):
    return random_model(short.vocabulary)


# Where they lie


def test_shams_are_as_far_from_the_start_as_the_goal_in_directions_of_its_cells():
    rng = np.random.default_rng(0)
    start, goal = rng.normal(size=8), rng.normal(size=8)
    cells = start + rng.normal(size=(30, 8)) * np.array([3, 1, 0, 0, 0, 0, 0, 0])
    shams = sham_goals(cells, start, goal, n=5, rng=np.random.default_rng(1))
    np.testing.assert_allclose(np.linalg.norm(shams - start, axis=1), np.linalg.norm(goal - start), rtol=1e-5)
    np.testing.assert_allclose((shams - start)[:, 2:], 0, atol=1e-6)
    first = np.random.default_rng(1).permutation(30)
    away = cells[first[:15]].mean(0) - cells[first[15:]].mean(0)
    assert (shams[0] - start) @ away == pytest.approx(np.linalg.norm(goal - start) * np.linalg.norm(away), rel=1e-5)
    with pytest.raises(InputError, match="all alike"):
        sham_goals(np.ones((4, 8)), start, goal, n=1, rng=rng)


# What a screen measures


def test_values_towards_shams_are_those_towards_states_of_these_vectors(model, short):
    """And values towards states are the same to the bit, with shams or without."""
    given = perturb(model, short, Deletion(), goal=GOAL, shams=2, seed=4, **FEW)
    plain = perturb(model, short, Deletion(), goal=GOAL, shams=0, seed=4, **FEW)
    pd.testing.assert_frame_equal(given.table.drop(columns="shams"), plain.table, check_exact=True)
    states = gf.embed_states(model, short, GOAL.obs, pooling="cls", states=GOAL.states)
    is_start = (short.obs["cell_type"] == GOAL.start).to_numpy()
    cells = gf.embed(model, short.select(np.flatnonzero(is_start)), pooling="cls").X
    start, goal = states.loc[GOAL.start].to_numpy(), states.loc[GOAL.goal].to_numpy()
    shams = sham_goals(cells, start, goal, n=2, rng=np.random.default_rng([4, N_SHAMS]))
    vectors = {GOAL.start: start, GOAL.goal: goal, "sham0": shams[0], "sham1": shams[1]}
    as_states = GoalState(GOAL.obs, GOAL.start, GOAL.goal, ["sham0", "sham1"], vectors)
    expected = perturb(model, short, Deletion(), goal=as_states, shams=0, seed=4, **FEW).table
    found = np.stack(given.table.loc[given.table["state"] == GOAL.goal, "shams"])
    for k in range(2):
        np.testing.assert_allclose(found[:, k], expected.loc[expected["state"] == f"sham{k}", "value"], atol=1e-6)
    assert given.table.loc[given.table["state"] != GOAL.goal, "shams"].isna().all()


def test_an_exact_screen_towards_a_goal_has_shams_where_the_start_has_cells_enough(model, short):
    def n_shams(cells, **options):
        return perturb(model, cells, Deletion(), max_cells=1, **options).metadata.get("shams", 0)

    fewer = short.select(np.flatnonzero(short.obs["cell_type"] != GOAL.start).tolist() + short_start(short)[:19])
    assert n_shams(short, goal=GOAL) == N_SHAMS
    assert n_shams(fewer, goal=GOAL) == 0
    assert n_shams(short) == 0
    assert n_shams(short, goal=GOAL, method="first_order") == 0
    assert n_shams(short, goal=GOAL, method="first_order", shams=2, refine=1) == 2


def short_start(short):
    return np.flatnonzero(short.obs["cell_type"] == GOAL.start).tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"shams": 3}, "beside a goal", id="without-goal"),
        pytest.param({"shams": 3, "goal": GOAL, "method": "sampled", "passes": 9}, "nor method", id="sampled"),
        pytest.param({"shams": -1, "goal": GOAL}, "shams must be at least 0, found -1", id="below-0"),
    ],
)
def test_shams_that_mean_nothing_are_refused(model, short, options, message):
    with pytest.raises(InputError, match=message):
        perturb(model, short, Deletion(), **options)


def test_a_file_has_the_same_rows_and_one_without_what_it_promises_is_refused(model, short, tmp_path):
    out = tmp_path / "shifts.parquet"
    written = perturb(model, short, Deletion(), goal=GOAL, shams=3, out=out, **FEW)
    kept = perturb(model, short, Deletion(), goal=GOAL, shams=3, **FEW).table
    pd.testing.assert_frame_equal(ShiftTable.open(out).table, kept)
    again = tmp_path / "again.parquet"
    ShiftTable(kept, written.metadata).save(again)
    towards = ShiftTable.open(again).table
    np.testing.assert_array_equal(*(np.stack(table["shams"].dropna()) for table in (towards, kept)))
    ShiftTable(kept.drop(columns="shams"), written.metadata).save(tmp_path / "less.parquet")
    with pytest.raises(DataFormatError, match="columns \\['shams'\\], which it lacks"):
        ShiftTable.open(tmp_path / "less.parquet")


# What it says


@pytest.fixture
def made():
    """Twelve cells of three donors with sixteen genes, moved towards a goal, an alternative and four shams."""
    rng = np.random.default_rng(0)
    genes, cells = [f"ENSG{i:011}" for i in range(16)], [f"cell{i}" for i in range(12)]
    rows = pd.MultiIndex.from_product([cells, genes], names=["cell", "perturbed"]).to_frame(index=False)
    gene = rows["perturbed"].map(genes.index).to_numpy()
    rows["donor"] = rows["cell"].map({cell: f"donor{i % 3}" for i, cell in enumerate(cells)})
    rows["rank"] = pd.array(gene, dtype="Int32")
    rows = rows.assign(affected=None, dose=np.nan, before=0.5, exact=True)
    shams = gene[:, None] + rng.normal(size=(len(rows), 4))
    goal = rows.assign(state="b", value=gene + rng.normal(size=len(rows)), shams=list(shams.astype(np.float32)))
    other = rows.assign(state="c", value=-gene + rng.normal(size=len(rows)), shams=None)
    table = pd.concat([goal, other], ignore_index=True).astype({"affected": object})
    told = {"obs": "state", "start": "a", "goal": "b", "alternatives": ["c"]}
    names = dict.fromkeys(genes, "")
    perturbation = {"kind": "Deletion", "genes": "each", "combine": "singly", "anchor": None}
    metadata = {"measure": SHIFT, "goal": told, "target": None, "perturbation": perturbation, "shams": 4}
    return ShiftTable(table, metadata | {"gene_names": names, "donor": "donor", "n_cells": 12})


def test_a_gene_is_told_how_it_stands_among_shams_by_means_over_donors(made):
    found = shift_statistics(made)
    goal = made.table[made.table["state"] == "b"]
    shams = pd.DataFrame(np.stack(goal["shams"]).astype(float), index=goal.index)
    shams = shams.groupby([goal["perturbed"], goal["donor"]]).mean()
    shams = shams.groupby("perturbed").mean().loc[found.index]
    below = shams.lt(found["effect"], axis=0).mean(axis=1)
    np.testing.assert_allclose(found["sham_percentile"], below)
    np.testing.assert_allclose(found["effect_vs_sham"], found["effect"] - shams.mean(axis=1), rtol=1e-6)
    told = found.attrs["goal_dependence"]
    of_shams = [spearmanr(found["effect"], shams[k]).statistic for k in range(4)]
    np.testing.assert_allclose(told["to_shams"], [np.median(np.abs(of_shams)), min(of_shams), max(of_shams)])
    assert told["to_states"]["c"] == pytest.approx(spearmanr(found["effect"], found["effect_to_c"]).statistic)
    plain = ShiftTable(made.table.drop(columns="shams"), made.metadata | {"shams": 0})
    pd.testing.assert_frame_equal(found.drop(columns=["effect_vs_sham", "sham_percentile"]), shift_statistics(plain))


def test_what_shams_say_stands_beside_what_baselines_say(made):
    found = shift_statistics(made)
    baselines = pd.DataFrame(np.random.default_rng(0).random((len(found), 5)), found.index, list(PREDICTORS))
    said = _beside_baselines(found, baselines).attrs
    assert {"goal_dependence", "explained_by_baselines", "baselines"} == set(said)


def test_a_ranking_is_said_to_depend_on_the_goal_or_not():
    rng = np.random.default_rng(0)
    common, own, cells = rng.normal(size=60), rng.normal(size=60), np.full(60, 10)
    noise = rng.normal(size=(60, 19))
    axis = np.linspace(-0.9, 0.9, 19)
    cases = {
        "no": (common + 0.1 * own, common[:, None] + 0.01 * noise),
        "as at random": (common + 0.5 * own, common[:, None] + 0.5 * noise),
        "in part": (common + 0.8 * own, common[:, None] + 0.1 * noise),
        "yes": (common + 2 * own, common[:, None] + 0.1 * noise),
        # all directions rank genes as the goal does, or the other way round: cells differ along the goal's own axis
        "yes ": (own, own[:, None] * axis + 0.01 * noise),
        "not known": (common + 2 * own, common[:, None] + 0.1 * noise[:, :18]),
    }
    for said, (effect, shams) in cases.items():
        assert dependence(effect, shams, cells, {})["depends_on_goal"] == said.strip()
    effect, shams = cases["yes"]
    share = dependence(effect, shams, cells, {})["own_share"]
    assert share == pytest.approx(1 / (1 + shams.mean(1).var() / (effect - shams.mean(1)).var()))
    assert dependence(effect, shams, cells - 1, {}) is None
    assert dependence_in_words({}) == ""


def test_of_twenty_directions_one_is_said_to_be_what_the_ranking_depends_on():
    directions, cells = np.random.default_rng(0).normal(size=(30, 20)), np.full(30, 10)
    told = [dependence(directions[:, k], np.delete(directions, k, axis=1), cells, {}) for k in range(20)]
    assert sorted(one["n_below"] for one in told) == list(range(20))
    assert [one["depends_on_goal"] for one in told].count("as at random") == 19


def test_page_and_sentence_say_that_a_ranking_does_not_depend_on_the_goal(made, tmp_path):
    table = shift_statistics(made)
    said = dependence_in_words(table.attrs)
    assert said.startswith("the ranking of genes does not depend on the goal: ")
    assert "of 4 of these (by chance so many in " in said
    assert "4 shams can tell 20 % at best" in said
    assert "with the ranking towards c −" in said
    write_screen_report(made, table, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "Does the ranking depend on the goal" in text
    assert f"T{said[1:]}." in text


def test_a_table_of_doses_finds_the_shams_of_its_dose(made):
    both = pd.concat([made.table.assign(dose=dose) for dose in (0.0, 0.5)], ignore_index=True)
    at_half = both["dose"] == 0.5
    both.loc[at_half, "value"] += 100.0
    found = shift_statistics(ShiftTable(both, made.metadata))
    assert (found.loc[found["dose"] == 0.5, "sham_percentile"] == 1).all()
    assert (found.loc[found["dose"] == 0.0, "sham_percentile"] < 1).any()
