"""Each published number, from the published package's own screens; each formula by hand; each defect mended."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from scipy.stats import false_discovery_control, kstest, norm, rankdata, ranksums, ttest_1samp
from sklearn.mixture import GaussianMixture

from geneformer_repro.errors import InputError
from geneformer_repro.in_silico import published_statistics as module
from geneformer_repro.in_silico.published_statistics import (
    aggregate,
    gene_shifts,
    goal_state,
    mixture,
    pairs,
    vs_all,
    vs_null,
)
from geneformer_repro.in_silico.shift_table import CHANGE, COLUMNS, SHIFT, SIMILARITY, ShiftTable, write_blocks

GOAL = {"obs": "disease", "start": "dcm", "goal": "nf", "alternatives": ["hcm"]}
STATES = ("dcm", "nf", "hcm")
EACH = {"kind": "Deletion", "genes": "each", "combine": "singly", "anchor": None}
ANCHOR = "ENSG00000164733"


def shifts_of(columns, **metadata):
    """A screen with these columns; the others are null."""
    table = pd.DataFrame({name: columns.get(name) for name in COLUMNS}, index=pd.DataFrame(columns).index)
    text = {name: object for name, kind in COLUMNS.items() if pa.types.is_string(kind)}
    table = table.astype(text | {"rank": "Int32", "value": float, "before": float, "dose": float})
    for name in text:
        table[name] = table[name].where(table[name].notna(), None)
    return ShiftTable(
        table.assign(exact=True),
        {"measure": SIMILARITY, "goal": None, "target": None, "perturbation": EACH, "gene_names": {}, **metadata},
    )


def with_rows(shifts, table):
    return ShiftTable(table, shifts.metadata)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# The published numbers


def published_screen(golden, name, **metadata):
    """A raw result of the published package as our table."""
    raw = pd.read_parquet(golden.folder / f"isp_{name}.parquet")
    gene_of = {token: gene for gene, token in json.loads((golden.folder / "vocabulary.json").read_text()).items()}
    columns = {
        "cell": raw["i"].astype(str),
        "perturbed": ["+".join(gene_of[token] for token in tokens) for tokens in raw["perturbed"]],
        "affected": [None if gene == "cell_emb" else gene_of[int(gene)] for gene in raw["affected"]],
        "state": raw["state"],
        "value": raw["value"],
    }
    return shifts_of(columns, **metadata)


def published_statistics(golden, name):
    return pd.read_csv(golden.folder / f"stats_{name}.csv", index_col="Ensembl_ID")


def test_goal_state_is_the_published_goal_state_shift(golden):
    found = goal_state(published_screen(golden, "delete_goal", measure=SHIFT, goal=GOAL))
    expected = published_statistics(golden, "delete_goal_goal")
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
        np.testing.assert_allclose(found[ours], expected[theirs], rtol=1e-6, err_msg=ours)


def test_vs_null_is_the_published_one(golden):
    found = vs_null(published_screen(golden, "delete_all_dcm"), published_screen(golden, "delete_all_null"))
    expected = published_statistics(golden, "delete_all_dcm_vs_null")
    assert found.index.tolist() == expected.index.tolist()
    for ours, theirs in (
        ("effect", "Test_avg_shift"),
        ("null_mean", "Null_avg_shift"),
        ("difference", "Test_vs_null_avg_shift"),
        ("p_value", "Test_vs_null_pval"),
        ("fdr", "Test_vs_null_FDR"),
        ("n_cells", "N_Detections_test"),
        ("n_cells_null", "N_Detections_null"),
    ):
        np.testing.assert_allclose(found[ours], expected[theirs], rtol=1e-6, err_msg=ours)


@pytest.mark.parametrize("step", [0.0, 1e-9], ids=["equal", "rounding"])
@pytest.mark.parametrize("method", ["goal_state", "vs_all", "vs_null", "pairs"])
def test_what_does_not_spread_beyond_rounding_has_no_p_value(method, step, caplog):
    genes = ["A", "B", "A+B"] if method == "pairs" else ["A", "B", "C", "D"]
    cells = np.repeat([f"c{i}" for i in range(8)], len(genes))
    value = 0.2 + step * np.tile(np.arange(len(genes)), 8) + step * np.repeat(np.arange(8) % 2, len(genes))
    columns = {
        "cell": cells,
        "perturbed": genes * 8,
        "value": value,
        "before": 0.5,
        "donor": np.repeat(list("wxyz"), 2 * len(genes)),
    }
    goal = GOAL | {"alternatives": []} if method == "goal_state" else None
    shifts = shifts_of(columns | {"state": "nf" if goal else None}, measure=SHIFT if goal else SIMILARITY, goal=goal)
    given = {
        "goal_state": (goal_state, shifts),
        "vs_all": (vs_all, shifts),
        "vs_null": (vs_null, shifts, shifts),
        "pairs": (pairs, shifts),
    }
    ours, *tables = given[method]
    found = ours(*tables)
    assert len(found) >= 1
    assert found[["p_value", "fdr"]].isna().all(axis=None)
    assert f"{len(found)} of {len(found)} {'pairs' if method == 'pairs' else 'genes'} have no p-value" in caplog.text


def test_mixture_is_the_published_one_where_that_has_the_components_in_order(golden):
    found = mixture(published_screen(golden, "delete_all_layer-1"))
    expected = published_statistics(golden, "delete_all_layer-1_mixture")
    in_order = expected.groupby("Impact_component")["Test_avg_shift"].mean()
    assert in_order[1] < in_order[0], "the published components are inverted; there is nothing to compare with"
    assert found.index.tolist() == expected.index.tolist()
    np.testing.assert_allclose(found["effect"], expected["Test_avg_shift"], rtol=1e-6)
    np.testing.assert_array_equal(found["impact"], expected["Impact_component"] == 1)
    np.testing.assert_allclose(100 * found["share_of_cells"], expected["Impact_component_percent"], rtol=1e-6)
    np.testing.assert_array_equal(found["n_cells"], expected["N_Detections"])


def test_aggregate_holds_the_published_values(golden):
    named = {**EACH, "genes": [ANCHOR], "combine": "together"}
    found = aggregate(published_screen(golden, "delete_one", perturbation=named, gene_names={ANCHOR: "CTSB"}))
    expected = pd.read_csv(golden.folder / "stats_delete_one_agg.csv")
    np.testing.assert_allclose(found["value"], expected["Cosine_sim"], atol=1e-12)
    assert found["gene_name"].tolist() == expected["Gene"].tolist()


def test_gene_shifts_are_the_published_ones(golden):
    found = gene_shifts(published_screen(golden, "delete_all_and_gene"))
    raw = pd.read_csv(golden.folder / "stats_delete_all_and_gene_gene_shifts.csv")
    of_gene = ["Ensembl_ID", "Affected_Ensembl_ID"]
    expected = raw.set_index(of_gene).loc[pd.MultiIndex.from_frame(found[["perturbed", "affected"]], names=of_gene)]
    assert len(found) == len(raw)
    np.testing.assert_allclose(found["mean"], expected["Cosine_sim_mean"], atol=1e-12)
    np.testing.assert_allclose(found["sd"], expected["Cosine_sim_stdev"], atol=1e-12)
    np.testing.assert_array_equal(found["n_cells"], expected["N_Detections"])
    np.testing.assert_allclose(found["mean"], raw["Cosine_sim_mean"], atol=1e-12, err_msg="order")
    np.testing.assert_array_equal(found["affected"].isna(), raw["Affected"] == "cell_emb")


def published_rows_by_cell(golden, name, *, without):
    """Rows of a published screen with the cell each belongs to: it wrote a cell's genes by their rank."""
    table = published_screen(golden, name).table
    genes = [[gene for gene in golden.cells.genes(row) if gene not in without] for row in range(len(golden.cells))]
    cells, start = [], 0
    while start < len(table):
        (row,) = (i for i, of in enumerate(genes) if table["perturbed"].iloc[start : start + len(of)].tolist() == of)
        cells += [row] * len(genes[row])
        start += len(genes[row])
    obs = golden.cells.obs.iloc[cells]
    return table.assign(cell=golden.cells.cell_names[cells], donor=obs["donor"].astype(str).to_numpy())


def test_pairs_run_where_the_published_statistics_raise_a_type_error(golden):
    """It stored one number a pair where its statistics expected three: anchor, gene, pair."""
    single = published_rows_by_cell(golden, "delete_all_layer-1", without=())
    both = published_rows_by_cell(golden, "delete_anchor", without={ANCHOR})
    both["perturbed"] = ANCHOR + "+" + both["perturbed"]
    rows = pd.concat([single, both], ignore_index=True)
    found = pairs(shifts_of(rows, perturbation={**EACH, "combine": "pairs", "anchor": ANCHOR}))
    value = rows.set_index(["cell", "perturbed"])["value"]
    assert len(found) == both["perturbed"].nunique()
    assert (found["gene_a"] == ANCHOR).all()
    for pair in found.sample(20, random_state=0).itertuples():
        cells = both[both["perturbed"] == f"{ANCHOR}+{pair.gene_b}"]
        total = [1 - ((1 - value[cell, ANCHOR]) + (1 - value[cell, pair.gene_b])) for cell in cells["cell"]]
        by_donor = cells.assign(total=total, less=cells["value"] - total).groupby("donor")[["total", "less"]].mean()
        assert pair.effect_sum == pytest.approx(by_donor["total"].mean(), abs=1e-12)
        assert pair.interaction == pytest.approx(by_donor["less"].mean(), abs=1e-12)
        assert (pair.n_cells, pair.n_donors) == (len(cells), len(by_donor))


# A gene against all: each p and FDR from its definition


@pytest.fixture(scope="module")
def measured(cells):
    """Gene, cell and rank of a deletion screen's rows on 40 real cells, without the rarest genes."""
    few = cells.select(range(40))
    rows = [(name, gene) for i, name in enumerate(few.cell_names) for gene in few.genes(i)[:40]]
    table = pd.DataFrame(rows, columns=["cell", "perturbed"])
    return table[table.groupby("perturbed")["cell"].transform("size") >= 3].reset_index(drop=True)


@pytest.fixture
def similarities(measured, rng):
    return shifts_of(measured.assign(value=1 - rng.exponential(0.01, len(measured))))


@pytest.fixture
def towards_a_goal(measured, rng):
    return with_goal(measured, {state: rng.normal(size=len(measured)) for state in STATES})


def with_goal(measured, values):
    rows = [measured.assign(state=state, value=values[state]) for state in STATES]
    return shifts_of(pd.concat(rows, ignore_index=True), measure=SHIFT, goal=GOAL)


def of_a_classifier(measured, rng):
    rows = [measured.assign(state=state, value=rng.normal(size=len(measured))) for state in ("B", "T")]
    target = {"name": "cell_type", "classes": ["B", "T"]}
    return shifts_of(pd.concat(rows, ignore_index=True), measure=CHANGE, target=target)


def slow_p(pool, values):
    """Rank-sum test from its definition: normal approximation, no correction for ties or continuity."""
    n, m = len(pool), len(values)
    expected, spread = n * (n + m + 1) / 2, np.sqrt(n * m * (n + m + 1) / 12)
    return 2 * norm.sf(abs(rankdata(np.concatenate([pool, values]))[:n].sum() - expected) / spread)


def slow_table(table):
    """Effect, p, FDR and number of cells of each gene."""
    values = {gene: rows["value"].to_numpy() for gene, rows in table.groupby("perturbed")}
    p_values = np.array([slow_p(table["value"].to_numpy(), of_gene) for of_gene in values.values()])
    columns = {"effect": [np.mean(v) for v in values.values()], "p_value": p_values}
    columns |= {"fdr": false_discovery_control(p_values), "n_cells": [len(v) for v in values.values()]}
    return pd.DataFrame(columns, index=list(values))


def test_without_a_goal_each_gene_is_tested_against_all(similarities):
    table = similarities.table.assign(value=similarities.table["value"] - similarities.table["value"].mean())
    found = vs_all(similarities)
    expected = slow_table(table).loc[found.index]
    pd.testing.assert_frame_equal(found[expected.columns.tolist()], expected, check_names=False, rtol=1e-9)


def test_towards_a_goal_each_state_has_its_own_test(towards_a_goal):
    found = goal_state(towards_a_goal)
    for state, suffix in (("nf", ""), ("hcm", "_to_hcm")):
        expected = slow_table(towards_a_goal.table[towards_a_goal.table["state"] == state]).loc[found.index]
        for name in ("effect", "p_value", "fdr"):
            np.testing.assert_allclose(found[f"{name}{suffix}"], expected[name], rtol=1e-9)
        np.testing.assert_array_equal(found["n_cells"], expected["n_cells"])


def test_p_is_uniform_where_genes_make_no_difference(measured, rng):
    found = vs_all(shifts_of(measured.assign(value=rng.permutation(np.linspace(0.9, 1, len(measured))))))
    assert len(found) > 50
    assert kstest(found["p_value"], "uniform").pvalue > 0.01
    assert (found["fdr"] > 0.05).all()


def test_with_a_goal_significant_genes_come_first_then_the_largest_effects(measured, rng):
    values = {state: rng.normal(size=len(measured)) for state in STATES}
    often = measured["perturbed"].value_counts().index[:6]
    for gene, effect in zip(often, (4, -4, 3, -3, 2, -2), strict=True):
        values["nf"][measured["perturbed"] == gene] += effect
    found = goal_state(with_goal(measured, values))
    significant = found["fdr"] < 0.05
    assert 4 <= significant.sum() < 20
    assert significant.is_monotonic_decreasing
    for part in (found[significant], found[~significant]):
        assert part["effect"].is_monotonic_decreasing
    assert found.index[0] == often[0]


def test_without_a_goal_the_order_is_by_fdr_then_effect(similarities):
    found = vs_all(similarities).reset_index()
    pd.testing.assert_frame_equal(found, found.sort_values(["fdr", "effect"], kind="stable"))


def test_columns_and_index_are_those_that_are_promised(similarities, towards_a_goal):
    plain = ["gene_name", "effect", "p_value", "fdr", "n_cells"]
    assert vs_all(similarities).columns.tolist() == plain
    table = goal_state(towards_a_goal)
    assert table.columns.tolist() == [*plain, "effect_to_hcm", "p_value_to_hcm", "fdr_to_hcm"]
    assert table.index.name == "gene_id"
    assert set(table.index) == set(towards_a_goal.table["perturbed"])


def test_the_order_of_the_rows_does_not_matter(towards_a_goal):
    shuffled = with_rows(towards_a_goal, towards_a_goal.table.sample(frac=1, random_state=0))
    pd.testing.assert_frame_equal(goal_state(shuffled), goal_state(towards_a_goal))


def test_a_pool_too_large_is_sampled_alike_every_time(similarities, monkeypatch):
    whole = vs_all(similarities)
    monkeypatch.setattr(module, "POOL_SIZE", len(similarities) * 3 // 4)
    first, again = vs_all(similarities), vs_all(similarities)
    pd.testing.assert_frame_equal(first, again)
    np.testing.assert_allclose(first["p_value"], whole.loc[first.index, "p_value"], atol=0.15)
    assert not np.array_equal(first["p_value"], whole.loc[first.index, "p_value"])


@pytest.mark.parametrize("statistic", [vs_all, mixture])
def test_what_happened_to_other_genes_does_not_count(similarities, statistic):
    affected = similarities.table.assign(affected="ENSG1", value=0.1)
    more = with_rows(similarities, pd.concat([similarities.table, affected], ignore_index=True))
    pd.testing.assert_frame_equal(statistic(more), statistic(similarities))


def test_one_class_of_a_classifier_can_be_tested_against_all(measured, rng):
    shifts = of_a_classifier(measured, rng)
    of_b = with_rows(shifts, shifts.table[shifts.table["state"] == "B"])
    plain = shifts_of(of_b.table.drop(columns="state"))
    pd.testing.assert_frame_equal(vs_all(of_b), vs_all(plain))


# A screen against the same screen of other cells


def test_vs_null_has_scipys_p_value_for_each_gene(measured, rng):
    test, null = (shifts_of(measured.assign(value=rng.normal(size=len(measured)))) for _ in range(2))
    found = vs_null(test, null)
    for gene in found.index[:20]:
        values, of_null = (of.table.loc[of.table["perturbed"] == gene, "value"] for of in (test, null))
        assert found.loc[gene, "p_value"] == pytest.approx(ranksums(values, of_null).pvalue)
        assert found.loc[gene, "difference"] == pytest.approx(values.mean() - of_null.mean())
    np.testing.assert_allclose(found["fdr"], false_discovery_control(found["p_value"]))


def test_a_gene_that_the_null_lacks_stays_in_the_table_with_p_1(similarities):
    lacking = similarities.table["perturbed"].iloc[0]
    null = with_rows(similarities, similarities.table[similarities.table["perturbed"] != lacking])
    found = vs_null(similarities, null)
    assert found.loc[lacking, ["p_value", "n_cells_null"]].tolist() == [1, 0]
    assert found.loc[lacking, ["null_mean", "difference"]].isna().all()
    assert found.index[-1] == lacking


def test_of_a_screen_with_a_goal_the_goal_is_compared_and_the_null_may_start_elsewhere(towards_a_goal):
    to_goal = towards_a_goal.table[towards_a_goal.table["state"] == "nf"]
    null = ShiftTable(to_goal.assign(value=0.0), {**towards_a_goal.metadata, "goal": {**GOAL, "start": "hcm"}})
    found = vs_null(towards_a_goal, null)
    np.testing.assert_allclose(found["difference"], to_goal.groupby("perturbed")["value"].mean()[found.index])


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        pytest.param({"measure": CHANGE}, "another measure .*: 'change of prediction', not 'cosine sim", id="measure"),
        pytest.param({"goal": GOAL}, "another goal than the screen: .*'nf'", id="goal"),
        pytest.param({"layer": 0}, "another layer than the screen: 0, not None. Screen both alike", id="layer"),
        pytest.param({"pooling": "cls"}, "another pooling", id="pooling"),
        pytest.param({"method": "first_order"}, "another method", id="method"),
        pytest.param({"checkpoint": "abc"}, "another checkpoint", id="checkpoint"),
        pytest.param({"target": {"name": "cell_type"}}, "another target", id="target"),
        pytest.param({"perturbation": {**EACH, "kind": "Overexpression"}}, "another kind of perturb", id="kind"),
        pytest.param({"perturbation": {**EACH, "quartiles": 2}}, "another quartiles .*: 2, not 1", id="quartiles"),
        pytest.param({"perturbation": {**EACH, "combine": "pairs"}}, "another combine .*'pairs', not", id="combine"),
        pytest.param({"perturbation": {**EACH, "anchor": ANCHOR}}, f"another anchor .*'{ANCHOR}', not", id="anchor"),
    ],
)
def test_a_null_measured_otherwise_is_refused_with_the_difference(similarities, metadata, message):
    shifts = ShiftTable(similarities.table, {**similarities.metadata, "perturbation": {**EACH, "quartiles": 1}})
    null = {"perturbation": {**EACH, "quartiles": 1}, **metadata}
    with pytest.raises(InputError, match=message):
        vs_null(shifts, ShiftTable(similarities.table, {**similarities.metadata, **null}))


def test_a_null_of_other_places_steps_or_class_is_refused(similarities, measured, rng):
    def composed(*genes):
        return {"kind": "Composed", "steps": [{**EACH, "genes": [gene], "combine": "together"} for gene in genes]}

    one, other = (
        ShiftTable(similarities.table, {**similarities.metadata, "perturbation": composed(*g)}) for g in ("ab", "ba")
    )
    with pytest.raises(InputError, match="another steps than the screen"):
        vs_null(one, other)
    early, late = (with_rows(similarities, similarities.table.assign(dose=dose)) for dose in (0.0, 1.0))
    with pytest.raises(InputError, match=r"another dose than the screen: 1\.0, not 0\.0"):
        vs_null(early, late)
    classes = of_a_classifier(measured, rng)
    of_b, of_t = (with_rows(classes, classes.table[classes.table["state"] == state]) for state in "BT")
    with pytest.raises(InputError, match="another state than the screen: 'T', not 'B'"):
        vs_null(of_b, of_t)


def test_a_null_of_each_gene_fits_a_screen_of_a_list_and_of_one(similarities):
    gene = similarities.table["perturbed"].iloc[0]
    for options in ({"genes": [gene], "combine": "together"}, {"genes": [gene, "x"], "combine": "singly"}):
        listed = similarities.table[similarities.table["perturbed"] == gene]
        shifts = ShiftTable(listed, {**similarities.metadata, "perturbation": {**EACH, **options}})
        assert vs_null(shifts, similarities).loc[gene, "difference"] == 0


def test_a_null_of_other_genes_is_refused(similarities):
    with pytest.raises(InputError, match="none of the screen's genes"):
        vs_null(similarities, with_rows(similarities, similarities.table.assign(perturbed="other")))


# Genes with and without an impact


@pytest.fixture
def two_kinds(rng):
    """100 genes in 5 cells each; the first 30 move cells."""
    genes = np.repeat(np.arange(100), 5)
    value = np.where(genes < 30, 0.90, 0.99) + rng.normal(scale=0.003, size=len(genes))
    return shifts_of({"perturbed": [f"g{gene:02}" for gene in genes], "cell": "c", "value": value})


def test_genes_that_move_cells_have_an_impact(two_kinds):
    found = mixture(two_kinds)
    assert sorted(found.index[found["impact"]]) == [f"g{gene:02}" for gene in range(30)]
    np.testing.assert_allclose(found["share_of_cells"], found["impact"])
    assert found.columns.tolist() == ["gene_name", "effect", "impact", "share_of_cells", "n_cells"]
    pd.testing.assert_frame_equal(found, found.sort_values(["impact", "effect"], ascending=[False, True]))


def test_which_component_has_the_impact_does_not_depend_on_the_random_start(two_kinds, monkeypatch):
    """The published package takes the component that scikit-learn numbers 0."""
    effect = two_kinds.table.groupby("perturbed")["value"].mean().to_numpy()[:, None]
    seeds = range(10)
    numbered_0 = {int(np.argmin(GaussianMixture(2, random_state=seed).fit(effect).means_)) for seed in seeds}
    assert numbered_0 == {0, 1}, "no random start inverts the numbers; the test shows nothing"
    expected = mixture(two_kinds)
    for seed in seeds:
        monkeypatch.setattr(module, "MIXTURE_SEED", seed)
        pd.testing.assert_frame_equal(mixture(two_kinds), expected)


def test_beyond_the_means_the_side_decides(two_kinds):
    """A wide component would else take what lies beyond the mean of a narrow one."""
    fitted = GaussianMixture(2)
    fitted.means_, fitted.weights_ = np.array([[0.9], [0.5]]), np.array([0.5, 0.5])
    fitted.precisions_cholesky_ = np.array([[[1 / 0.01]], [[1 / 0.3]]])
    values = pd.Series([0.4, 0.6, 0.89, 0.99])
    assert fitted.predict(values.to_numpy()[:, None]).tolist() == [1, 1, 0, 1]
    assert module._has_impact(fitted, values).tolist() == [True, True, False, False]


def test_a_mixture_of_one_mean_is_refused(two_kinds):
    with pytest.raises(InputError, match="same mean similarity"):
        mixture(with_rows(two_kinds, two_kinds.table.assign(value=0.9)))


def test_a_mixture_needs_similarities(towards_a_goal):
    with pytest.raises(InputError, match="cosine similarity, this one measured cosine shift"):
        mixture(towards_a_goal)


# Long tables


def test_aggregate_keeps_cells_donors_states_and_doses():
    named = {**EACH, "kind": "RankShift", "genes": ["g1", "g2"], "combine": "together"}
    columns = {
        "cell": ["c1", "c1"],
        "donor": "d1",
        "perturbed": "g1+g2",
        "state": "nf",
        "dose": [0, 1],
        "value": [1, 2],
    }
    found = aggregate(shifts_of(columns, perturbation=named, gene_names={"g1": "SPI1", "g2": ""}))
    assert found.columns.tolist() == ["perturbed", "gene_name", "cell", "donor", "state", "dose", "value"]
    assert found.iloc[1].tolist() == ["g1+g2", "SPI1+g2", "c1", "d1", "nf", 1, 2]


def test_aggregate_keeps_several_perturbations_apart():
    """The published package takes one group of a folder for all."""
    named = {**EACH, "genes": ["g1", "g2"], "combine": "pairs"}
    columns = {"cell": "c1", "perturbed": ["g1", "g2", "g1+g2"], "value": [0.5, 0.25, 0.125]}
    found = aggregate(shifts_of(columns, perturbation=named, gene_names={"g1": "SPI1", "g2": ""}))
    assert found.set_index("gene_name")["value"].to_dict() == {"SPI1": 0.5, "g2": 0.25, "SPI1+g2": 0.125}


def test_aggregate_refuses_a_screen_of_each_gene(similarities):
    with pytest.raises(InputError, match=r"perturbed each gene.*genes=\[…\]"):
        aggregate(similarities)


@pytest.fixture
def affected_genes(rng):
    """Cells of three genes, each perturbed in turn, and what happened to the others; values differ in the 9th digit."""
    rows = [
        (f"c{cell}", perturbed, affected)
        for cell in range(40)
        for perturbed in ("g1", "g2", "g3")
        for affected in (None, "g1", "g2", "g3")
        if perturbed != affected and (cell + ord(perturbed[1])) % 5
    ]
    table = pd.DataFrame(rows, columns=["cell", "perturbed", "affected"])
    names = {"g1": "SPI1", "g2": "", "g3": "IRF8"}
    return shifts_of(table.assign(value=1 - 1e-9 * rng.random(len(table))), gene_names=names)


def test_gene_shifts_of_a_file_are_those_of_all_rows_and_it_is_read_block_by_block(affected_genes, tmp_path):
    table = pa.Table.from_pandas(affected_genes.table, schema=pa.schema(COLUMNS.items()), preserve_index=False)
    blocks = (table.slice(start, 7) for start in range(0, len(table), 7))
    write_blocks(tmp_path / "shifts.parquet", blocks, affected_genes.metadata)
    shifts = ShiftTable.open(tmp_path / "shifts.parquet")
    found = gene_shifts(shifts)
    assert "table" not in vars(shifts), "all rows were read at once"
    pd.testing.assert_frame_equal(found, gene_shifts(affected_genes), rtol=1e-14)
    for row in found.itertuples():
        of = (
            affected_genes.table["affected"].isna()
            if row.affected is None
            else affected_genes.table["affected"] == row.affected
        )
        values = affected_genes.table.loc[of & (affected_genes.table["perturbed"] == row.perturbed), "value"]
        assert row.n_cells == len(values)
        assert row.mean == pytest.approx(values.mean(), abs=1e-15)
        assert row.sd == pytest.approx(np.std(values), rel=1e-5)


def test_gene_shifts_name_both_genes_and_begin_with_the_cells(affected_genes):
    found = gene_shifts(affected_genes)
    assert found.columns.tolist() == ["perturbed", "gene_name", "affected", "affected_name", "mean", "sd", "n_cells"]
    assert found["affected"].isna().tolist() == [True] * 3 + [False] * 6
    assert found["mean"][:3].is_monotonic_increasing
    assert found["mean"][3:].is_monotonic_increasing
    assert set(zip(found["affected"][3:], found["affected_name"][3:], strict=True)) == {
        ("g1", "SPI1"),
        ("g2", "g2"),
        ("g3", "IRF8"),
    }
    assert found["affected_name"][:3].isna().all()


def test_gene_shifts_keep_states_apart(affected_genes):
    of_cell = affected_genes.table["affected"].isna()
    states = affected_genes.table.assign(state=np.where(of_cell, "nf", None))
    more = pd.concat([states, states[of_cell].assign(state="hcm", value=0.0)], ignore_index=True)
    found = gene_shifts(with_rows(affected_genes, more))
    assert found["state"].tolist() == ["hcm"] * 3 + ["nf"] * 3 + [None] * 6
    assert (found["mean"][:3] == 0).all()


def test_gene_shifts_need_affected_genes(similarities):
    with pytest.raises(InputError, match=r"measured only cells\. Screen again with affected="):
        gene_shifts(similarities)


# Two genes at once


def pair_screen(value, *, donors=None, order="a+b", **metadata):
    """A screen of genes a, b and both in some cells: value has a row a cell."""
    n_cells = len(value)
    columns = {
        "cell": np.repeat([f"c{i}" for i in range(n_cells)], 3),
        "donor": None if donors is None else np.repeat(donors, 3),
        "perturbed": ["a", "b", order] * n_cells,
        "value": np.ravel(value),
    }
    return shifts_of(pd.DataFrame(columns), perturbation={**EACH, "combine": "pairs"}, **metadata)


def test_similarities_add_up_as_distances():
    (found,) = pairs(pair_screen([[0.9, 0.8, 0.6], [0.95, 0.9, 0.9]])).itertuples()
    assert found.effect_sum == pytest.approx(np.mean([1 - (0.1 + 0.2), 1 - (0.05 + 0.1)]))
    assert found.interaction == pytest.approx(np.mean([0.6 - 0.7, 0.9 - 0.85]))
    assert (found.effect_a, found.effect_b, found.effect_pair) == pytest.approx((0.925, 0.85, 0.75))


@pytest.mark.parametrize("measure", [SHIFT, CHANGE])
def test_shifts_and_predictions_add_up_as_they_are(measure):
    (found,) = pairs(pair_screen([[0.1, 0.2, 0.5], [0.0, -0.1, 0.1]], measure=measure)).itertuples()
    assert (found.effect_sum, found.interaction) == pytest.approx((0.1, 0.2))


def test_the_interval_and_the_test_are_scipys_over_cells_without_donors(rng):
    value = rng.normal(size=(9, 3))
    (found,) = pairs(pair_screen(value, measure=SHIFT)).itertuples()
    expected = ttest_1samp(value[:, 2] - value[:, 0] - value[:, 1], 0)
    interval = expected.confidence_interval(0.95)
    assert (found.interaction_low, found.interaction_high) == pytest.approx((interval.low, interval.high))
    assert (found.p_value, found.fdr) == pytest.approx((expected.pvalue, expected.pvalue))
    assert (found.n_cells, found.n_donors) == (9, 0)


def test_with_donors_they_are_the_replicates_and_count_alike(rng):
    value = rng.normal(size=(9, 3))
    donors = ["d1"] * 5 + ["d2"] * 3 + ["d3"]
    (found,) = pairs(pair_screen(value, donors=donors, measure=SHIFT)).itertuples()
    of_donors = pd.Series(value[:, 2] - value[:, 0] - value[:, 1]).groupby(donors).mean()
    assert found.interaction == pytest.approx(of_donors.mean())
    assert found.interaction == pytest.approx(found.effect_pair - found.effect_sum)
    assert found.p_value == pytest.approx(ttest_1samp(of_donors, 0).pvalue)
    assert (found.n_cells, found.n_donors) == (9, 3)


def test_a_pair_in_one_donor_of_several_has_an_interaction_and_no_test(rng):
    rows = pair_screen(rng.normal(size=(6, 3)), donors=["d1"] * 3 + ["d2"] * 3, measure=SHIFT).table
    of_d1 = rows[rows["donor"] == "d1"].replace({"perturbed": {"b": "c", "a+b": "a+c"}})
    more = pd.concat([rows, of_d1[of_d1["perturbed"] != "a"]], ignore_index=True)
    found = pairs(shifts_of(more, measure=SHIFT)).set_index("gene_b")
    assert found.index.tolist() == ["b", "c"]
    assert found.loc["c", ["p_value", "fdr", "interaction_low"]].isna().all()
    assert found.loc["c", "interaction"] == pytest.approx(
        pairs(shifts_of(more[more["donor"] == "d1"], measure=SHIFT)).set_index("gene_b").loc["c", "interaction"]
    )
    assert found.loc["b", "fdr"] == found.loc["b", "p_value"]


def test_cells_without_one_of_the_three_do_not_count():
    rows = pair_screen([[0.9, 0.8, 0.6], [0.1, 0.1, 0.1]]).table
    (found,) = pairs(shifts_of(rows.drop(index=4))).itertuples()
    assert (found.n_cells, found.effect_pair) == (1, 0.6)


def test_a_pair_is_one_pair_in_either_order():
    rows = pd.concat([pair_screen([[0.9, 0.8, 0.6]], order=order).table for order in ("a+b", "b+a")])
    rows = rows.assign(cell=np.repeat(["c0", "c1"], 3)).reset_index(drop=True)
    (found,) = pairs(shifts_of(rows, gene_names={"a": "SPI1"})).itertuples()
    assert (found.gene_a, found.gene_b, found.gene_name_a, found.gene_name_b) == ("a", "b", "SPI1", "b")
    assert (found.n_cells, found.effect_a, found.effect_b) == (2, 0.9, 0.8)


def test_an_anchor_is_gene_a_however_it_was_called_and_whatever_its_id():
    rows = pair_screen([[0.9, 0.8, 0.6]], order="b+a").table
    (found,) = pairs(shifts_of(rows, perturbation={**EACH, "anchor": "name of b"})).itertuples()
    assert (found.gene_a, found.gene_b, found.effect_a, found.effect_b) == ("b", "a", 0.8, 0.9)


def test_with_a_goal_the_goal_counts_and_classes_stay_apart(rng):
    rows = pair_screen(rng.normal(size=(4, 3)), measure=SHIFT).table
    both = pd.concat([rows.assign(state="nf"), rows.assign(state="hcm", value=0.0)], ignore_index=True)
    plain = pairs(shifts_of(rows, measure=SHIFT))
    pd.testing.assert_frame_equal(pairs(shifts_of(both, measure=SHIFT, goal=GOAL)), plain)
    of_classes = pairs(shifts_of(both, measure=CHANGE))
    assert of_classes["state"].tolist() == ["nf", "hcm"]
    best = ["best_class_p_value", "best_class_fdr"]
    pd.testing.assert_frame_equal(of_classes[of_classes["state"] == "nf"].drop(columns=["state", *best]), plain)
    assert of_classes["best_class_p_value"].tolist() == [min(1, 2 * of_classes["p_value"].min())] * 2


def test_pairs_come_by_their_p_value_then_by_the_strongest_interaction(rng):
    tables = [
        pair_screen(rng.normal(size=(n, 3)), measure=SHIFT).table.replace(
            {"perturbed": {"b": f"b{i}", "a+b": f"a+b{i}"}}
        )
        for i, n in enumerate([5, 1, 5, 1, 5])
    ]
    tables = [table.assign(cell=f"{i}" + table["cell"]) for i, table in enumerate(tables)]
    found = pairs(shifts_of(pd.concat(tables, ignore_index=True), measure=SHIFT))
    tested = found["p_value"].notna()
    assert tested.tolist() == [True] * 3 + [False] * 2
    assert found["p_value"][tested].is_monotonic_increasing
    assert found["interaction"][~tested].abs().is_monotonic_decreasing
    np.testing.assert_allclose(found["fdr"][tested], false_discovery_control(found["p_value"][tested]))


def test_pairs_without_their_genes_alone_are_refused(similarities):
    with pytest.raises(InputError, match=r"this table has none\. Screen with combine='pairs'"):
        pairs(similarities)


def test_cells_without_a_donor_among_others_are_refused_in_pairs(rng):
    with pytest.raises(InputError, match=r"no donor \(first: 'c1'\).*dropna"):
        pairs(pair_screen(rng.normal(size=(2, 3)), donors=["d1", None]))


# What is refused, and names


@pytest.mark.parametrize("statistic", [goal_state, vs_all, mixture, gene_shifts, pairs])
def test_several_doses_are_refused_with_what_to_do(similarities, towards_a_goal, statistic):
    shifts = towards_a_goal if statistic is goal_state else similarities
    half = with_rows(shifts, shifts.table.assign(dose=np.arange(len(shifts)) % 2 / 2))
    with pytest.raises(InputError, match=r"doses \(0.0, 0.5\).*shifts.table\['dose'\] == 0.0\]"):
        statistic(half)


@pytest.mark.parametrize("statistic", [vs_all, mixture])
def test_a_screen_of_one_perturbation_or_of_sets_is_refused(similarities, statistic):
    gene = similarities.table["perturbed"].iloc[0]
    alone = similarities.table[similarities.table["perturbed"] == gene]
    with pytest.raises(InputError, match=rf"perturbed only '{gene}'.*Deletion\(genes='each'\)"):
        statistic(with_rows(similarities, alone))
    with pytest.raises(InputError, match=r"several at once \('a\+b'\).*'pairs'.*'aggregate'"):
        statistic(pair_screen([[0.9, 0.8, 0.6]]))


def test_a_method_that_does_not_fit_the_goal_is_refused(similarities, towards_a_goal, measured, rng):
    with pytest.raises(InputError, match=r"'vs_all' needs a screen without a goal state.* made with\."):
        vs_all(towards_a_goal)
    with pytest.raises(InputError, match=r"'goal_state' needs a screen with a goal state.* made without\."):
        goal_state(similarities)
    with pytest.raises(InputError, match=r"'goal_state' needs .* made with a classifier of 'cell_type'; use 'matched'"):
        goal_state(of_a_classifier(measured, rng))


def test_several_classes_are_refused_where_a_gene_has_one_row(measured, rng):
    shifts = of_a_classifier(measured, rng)
    for statistic in (vs_all, lambda of: vs_null(of, of)):
        with pytest.raises(InputError, match=r"each class of a classifier \('B', 'T'\).*\['state'\] == 'B'\]"):
            statistic(shifts)


def test_a_gene_without_a_name_is_called_by_its_id(two_kinds):
    named = ShiftTable(two_kinds.table, {**two_kinds.metadata, "gene_names": {"g00": "SPI1", "g01": ""}})
    found = mixture(named)["gene_name"]
    assert found[["g00", "g01", "g02"]].tolist() == ["SPI1", "g01", "g02"]


def test_the_screen_stays_as_it_is(similarities, towards_a_goal, affected_genes):
    for statistic, shifts in ((vs_all, similarities), (mixture, similarities), (goal_state, towards_a_goal)):
        before = shifts.table.copy()
        statistic(shifts)
        pd.testing.assert_frame_equal(shifts.table, before)
