"""The table of genes: each number by hand, calibrated where nothing happens, and blind to what is no evidence."""

import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from scipy.stats import false_discovery_control, kstest, rankdata, ttest_1samp

import geneformer_repro as gf
from geneformer_repro import InputError
from geneformer_repro.in_silico import published_statistics as published
from geneformer_repro.in_silico.shift_table import CHANGE, COLUMNS, SHIFT, SIMILARITY, ShiftTable, write_blocks
from geneformer_repro.in_silico.statistics import shift_statistics

GOAL = {"obs": "cell_type", "start": "a", "goal": "b", "alternatives": ["c"]}
EACH = {"kind": "Deletion", "genes": "each", "combine": "singly", "anchor": None}
PLAIN = [
    "gene_name", "effect", "effect_vs_matched", "low", "high", "p_value", "fdr", "matched_percentile", "mean_rank",
    "n_cells", "n_donors", "warning",
]  # fmt: skip


@pytest.fixture(scope="module")
def measured(_pbmc):
    """Cell, donor, gene and place of a deletion screen's rows: 160 real blood cells of eight donors, 5 to 70 each."""
    vocabulary = gf.Vocabulary.fit(_pbmc, max_length=102)
    cells = gf.tokenize(_pbmc, vocabulary).select(range(160))
    donors = np.random.default_rng(0).choice(8, 160, p=np.arange(1, 9) / 36)
    rows = [
        (name, f"donor{donors[i]}", gene, rank)
        for i, name in enumerate(cells.cell_names)
        for rank, gene in enumerate(cells.genes(i))
    ]
    table = pd.DataFrame(rows, columns=["cell", "donor", "perturbed", "rank"])
    rest = {"affected": None, "state": None, "dose": np.nan, "value": 0.0, "before": np.nan, "exact": True}
    return table.assign(**rest).astype({"rank": "Int32", "affected": object, "state": object})


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def nothing(measured, rng):
    """Values that genes do not cause: donors, places, noise, and what a gene does in one donor only."""
    return screen(measured.assign(value=null_values(measured, rng)))


def null_values(table, rng):
    donor, gene = table["donor"].astype("category").cat.codes, table["perturbed"].astype("category").cat.codes
    in_donor = rng.normal(size=(8, gene.max() + 1))[donor, gene]
    place = table["rank"].to_numpy(dtype=float)
    return rng.normal(size=8)[donor] + 3 * np.exp(-place / 25) + in_donor + 0.3 * rng.normal(size=len(table))


def screen(table, **metadata):
    names = dict.fromkeys(table["perturbed"].unique(), "")
    known = {"measure": SIMILARITY, "goal": None, "target": None, "perturbation": EACH, "donor": "donor"}
    return ShiftTable(table, known | {"gene_names": names} | metadata)


def in_states(table, values):
    """The rows once for each state, with its values."""
    parts = [table.assign(state=state, value=of_state) for state, of_state in values.items()]
    return pd.concat(parts, ignore_index=True)


def towards_a_goal(measured, rng):
    values = {state: null_values(measured, rng) for state in "abc"}
    return screen(in_states(measured, values), goal=GOAL, measure=SHIFT)


def small(measured):
    """Rows of three donors with 25 genes, so that bins must be joined."""
    genes = measured["perturbed"].value_counts().index[:25]
    return measured[measured["perturbed"].isin(genes) & measured["donor"].isin(["donor0", "donor1", "donor2"])]


def most_frequent(table, n):
    return table["perturbed"].value_counts().index[:n].tolist()


# The numbers


def slow_statistics(table):
    """Effect, interval and p-value from their definition, a row at a time."""
    last, rate = table.groupby("cell")["rank"].max(), table.groupby("perturbed")["cell"].nunique()
    rate_bin = pd.Series(np.ceil(rankdata(rate) / len(rate) * 8).astype(int) - 1, index=rate.index)
    place = [int(np.sqrt((rank + 0.5) / (last[cell] + 1)) * 64) for cell, rank in zip(table["cell"], table["rank"])]
    table = table.assign(place=place, rate=table["perturbed"].map(rate_bin))
    difference = [row.value - slow_null(table[table["donor"] == row.donor], row) for row in table.itertuples()]
    means = table.assign(difference=difference).groupby(["perturbed", "donor"])[["value", "difference"]].mean()
    found = {}
    for gene, of_gene in means.groupby("perturbed"):
        test = ttest_1samp(of_gene["difference"], 0)
        tested = (*test.confidence_interval(), test.pvalue) if len(of_gene) > 2 else (np.nan,) * 3
        found[gene] = (*of_gene.mean(), *tested, len(of_gene))
    columns = ["effect", "effect_vs_matched", "low", "high", "p_value", "n_donors"]
    return pd.DataFrame.from_dict(found, orient="index", columns=columns)


def slow_null(donor, row):
    for level in range(7):
        near = (donor["place"] // 2**level == row.place // 2**level) & (
            donor["rate"] // 2**level == row.rate // 2**level
        )
        others = donor[near & (donor["perturbed"] != row.perturbed)].groupby("perturbed")["value"].mean()
        if len(others) >= 10:
            return others.mean()
    raise AssertionError("too few genes")


def test_the_numbers_are_their_slow_spelling(measured, rng):
    table = small(measured)
    table = table[table["perturbed"].isin(most_frequent(table, 16))]
    table = table.assign(value=null_values(table, rng))
    found = shift_statistics(screen(table))
    expected = slow_statistics(table).loc[found.index]
    assert (expected["n_donors"] == 3).sum() > 10
    pd.testing.assert_frame_equal(found[expected.columns.tolist()], expected, check_names=False, rtol=1e-9)


FLAT = {
    "one value": lambda gene, rng: np.full(len(gene), 0.1),
    "one value a gene": lambda gene, rng: 0.001 * (gene % 5),
    "one gene alone moves": lambda gene, rng: np.where(gene == 0, 0.01, 0.0),
    "steps below rounding": lambda gene, rng: 1e-9 * (gene % 3),
    "noise of rounding": lambda gene, rng: rng.normal(scale=1e-8, size=len(gene)),
}


@pytest.mark.parametrize("replicate", ["donor", "cell"])
@pytest.mark.parametrize("values", FLAT.values(), ids=FLAT)
def test_what_does_not_spread_beyond_rounding_has_no_p_value(measured, rng, values, replicate):
    table = small(measured).assign(state="b", before=0.5)
    table = table.assign(value=values(table["perturbed"].astype("category").cat.codes.to_numpy(), rng))
    table = table if replicate == "donor" else table.assign(donor=None)
    found = shift_statistics(screen(table, measure=SHIFT, goal=GOAL | {"alternatives": []}))
    assert found[["p_value", "fdr", "low", "high"]].isna().all(axis=None)
    assert found["effect"].notna().all()
    assert found["warning"].str.contains(f"no spread over {replicate}s").sum() >= len(found) - 3


def test_the_floor_follows_the_size_of_the_similarities(measured, rng):
    """Noise of 1e-6 tells something of similarities of 0.5, whose rounding is 6e-8, and nothing of numbers of 1,000."""
    table = small(measured).assign(state="b")
    table = table.assign(value=rng.normal(scale=1e-6, size=len(table)))
    n_tested = [
        shift_statistics(screen(table.assign(before=before), measure=CHANGE))["p_value"].notna().sum()
        for before in (0.5, 1000.0)
    ]
    assert n_tested[0] > 15
    assert n_tested[1] == 0


def test_fdr_is_benjamini_and_hochberg_over_genes_that_were_tested(nothing):
    found = shift_statistics(nothing)
    tested = found["p_value"].dropna().sort_values()
    assert 0 < len(tested) < len(found)
    scaled = tested * len(tested) / np.arange(1, len(tested) + 1)
    np.testing.assert_allclose(found.loc[tested.index, "fdr"], scaled[::-1].cummin()[::-1].clip(upper=1))
    assert found["fdr"].isna().sum() == len(found) - len(tested)


def test_counts_of_cells_and_places_are_those_of_the_rows(nothing):
    found, by_gene = shift_statistics(nothing), nothing.table.groupby("perturbed")
    np.testing.assert_array_equal(found["n_cells"], by_gene["cell"].nunique()[found.index])
    np.testing.assert_array_equal(found["n_donors"], by_gene["donor"].nunique()[found.index])
    np.testing.assert_allclose(found["mean_rank"], by_gene["rank"].mean()[found.index].astype(float))


# What a p-value means


def test_p_is_uniform_where_genes_make_no_difference(nothing):
    p_value = shift_statistics(nothing)["p_value"].dropna()
    assert len(p_value) > 200
    assert kstest(p_value, "uniform").pvalue > 0.01
    assert (p_value < 0.05).mean() < 0.06


def test_the_published_test_calls_many_genes_where_none_makes_a_difference(nothing):
    towards = screen(nothing.table.assign(state="b"), goal=GOAL | {"alternatives": []}, measure=SHIFT)
    assert (shift_statistics(towards, method="goal_state")["p_value"] < 0.05).mean() > 0.2
    assert (shift_statistics(towards)["fdr"] < 0.05).sum() == 0


def test_an_effect_is_found_in_both_directions(nothing):
    up, down = most_frequent(nothing.table, 40)[20:22]
    moved = nothing.table["perturbed"].map({up: 5.0, down: -5.0}).fillna(0)
    found = shift_statistics(screen(nothing.table.assign(value=nothing.table["value"] + moved)))
    assert set(found.index[:2]) == {up, down}
    assert (found["fdr"].head(2) < 0.05).all()
    assert (found["fdr"] < 0.05).sum() <= 3
    np.testing.assert_allclose(found.loc[[up, down], "effect_vs_matched"], [5, -5], atol=1.5)
    assert found.loc[[up, down], "matched_percentile"].tolist() == [1, 0]
    assert ((found["low"] < found["effect_vs_matched"]) == found["p_value"].notna()).all()


def test_a_tested_gene_is_not_in_its_own_null(nothing):
    gene = most_frequent(nothing.table, 1)[0]
    before = shift_statistics(nothing).loc[gene]
    moved = nothing.table["value"] + 100 * (nothing.table["perturbed"] == gene)
    after = shift_statistics(screen(nothing.table.assign(value=moved))).loc[gene]
    for name in ("effect", "effect_vs_matched", "low", "high"):
        assert after[name] - before[name] == pytest.approx(100)


def test_cells_that_are_counted_twice_make_no_gene_more_significant(nothing):
    again = nothing.table.assign(cell=nothing.table["cell"] + " again")
    found = shift_statistics(screen(pd.concat([nothing.table, again], ignore_index=True)))
    once = shift_statistics(nothing).loc[found.index]
    np.testing.assert_allclose(found["p_value"], once["p_value"], rtol=1e-6)
    np.testing.assert_array_equal(found["n_cells"], 2 * once["n_cells"])


def test_what_moves_all_cells_of_a_donor_alike_does_not_matter(nothing):
    donor = nothing.table["donor"].str.removeprefix("donor").astype(float)
    found = shift_statistics(screen(nothing.table.assign(value=nothing.table["value"] + 50 * donor)))
    expected = shift_statistics(nothing).loc[found.index]
    columns = ["effect_vs_matched", "low", "high", "p_value", "matched_percentile"]
    pd.testing.assert_frame_equal(found[columns], expected[columns], rtol=1e-6)


def test_what_the_place_does_is_no_effect(measured, rng):
    place = np.sqrt(measured["rank"].to_numpy(dtype=float) + 1)
    found = shift_statistics(screen(measured.assign(value=place + 0.01 * rng.normal(size=len(measured)))))
    often = found[found["n_cells"] > 20]
    assert often["effect"].std() > 0.7
    assert often["effect_vs_matched"].std() < 0.08


def test_matched_percentiles_of_unmoved_genes_are_uniform(nothing):
    found = shift_statistics(nothing)["matched_percentile"].dropna()
    assert found.between(0, 1).all()
    assert kstest(found, "uniform").pvalue > 0.01


# Donors


def test_without_donors_cells_stand_for_them_and_the_log_says_so(nothing, caplog):
    without = screen(nothing.table.assign(donor=None))
    found = shift_statistics(without)
    assert re.search("no donors.*cells for independent replicates.*Screen with donor=COLUMN", caplog.text)
    caplog.clear()
    shift_statistics(without)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    assert (found["n_donors"] == 0).all()
    few = found["n_cells"] < 3
    assert found.loc[few, "warning"].str.fullmatch(r"[12] cells: no test below 3").all()
    np.testing.assert_array_equal(found["p_value"].isna(), few)
    by_cell = shift_statistics(screen(nothing.table.assign(donor=nothing.table["cell"])))
    pd.testing.assert_series_equal(found["p_value"], by_cell["p_value"])


def test_cells_without_a_donor_are_left_out_and_the_log_says_how_many(nothing, caplog):
    unknown = nothing.table["donor"] == "donor7"
    found = shift_statistics(screen(nothing.table.assign(donor=nothing.table["donor"].where(~unknown, None))))
    n_lost = nothing.table.loc[unknown, "cell"].nunique()
    assert f"{n_lost} cells have no donor and are left out" in caplog.text
    pd.testing.assert_frame_equal(found, shift_statistics(screen(nothing.table[~unknown])))


def test_a_row_says_why_not_to_rely_on_it(nothing):
    found = shift_statistics(nothing)
    few_donors, few_cells = found["n_donors"] < 3, found["n_cells"] < 10
    assert (found["warning"] == "").eq(~few_donors & ~few_cells).all()
    assert found.loc[few_donors, ["low", "high", "p_value", "fdr"]].isna().all(axis=None)
    assert found.loc[few_donors, "effect_vs_matched"].notna().all()
    both = found[(found["n_donors"] == 2) & (found["n_cells"] == 4)]
    assert set(both["warning"]) == {"2 donors: no test below 3; 4 cells"}
    assert set(found.loc[few_cells & ~few_donors & (found["n_cells"] == 4), "warning"]) == {"4 cells"}


def test_a_donor_with_too_few_other_genes_is_not_compared(measured, rng):
    table = small(measured)
    table = table.assign(value=null_values(table, rng))
    few = table[table["donor"] == "donor1"].drop_duplicates("perturbed").head(10).assign(donor="donor9", cell="new")
    found = shift_statistics(screen(pd.concat([table, few], ignore_index=True)))
    expected = shift_statistics(screen(table)).loc[found.index, "n_donors"]
    np.testing.assert_array_equal(found["n_donors"], expected)


# The form


def test_columns_and_index_are_those_that_are_promised(nothing):
    found = shift_statistics(nothing)
    assert found.columns.tolist() == PLAIN
    assert found.index.name == "gene_id"
    assert sorted(found.index) == sorted(nothing.table["perturbed"].unique())


def test_alternative_states_stand_beside_the_goal(measured, rng):
    shifts = towards_a_goal(measured, rng)
    found = shift_statistics(shifts)
    of_others = ["effect", "effect_vs_matched", "p_value", "fdr"]
    assert found.columns.tolist() == PLAIN + [f"{name}_to_c" for name in of_others]
    for state, suffix in (("b", ""), ("c", "_to_c")):
        rows = shifts.table[shifts.table["state"] == state]
        alone = shift_statistics(screen(rows.assign(state=None))).loc[found.index]
        for name in of_others:
            np.testing.assert_allclose(found[name + suffix], alone[name], rtol=1e-9)


def of_classes(measured, rng, *classes):
    table = in_states(measured, {state: null_values(measured, rng) for state in classes})
    return screen(table, measure=CHANGE, target={"name": "disease", "classes": list(classes)})


BEST = ["best_class_p_value", "best_class_fdr"]


def test_a_classifier_has_a_row_for_each_gene_and_class(measured, rng):
    shifts = of_classes(measured, rng, "healthy", "ill", "worse")
    found = shift_statistics(shifts)
    assert found.columns.drop(BEST).tolist() == ["gene_name", "state", *PLAIN[1:]]
    alone = shift_statistics(screen(shifts.table[shifts.table["state"] == "ill"].assign(state=None)))
    pd.testing.assert_frame_equal(found[found["state"] == "ill"].drop(columns=["state", *BEST]), alone)


def test_the_best_class_of_a_gene_is_corrected_for_the_number_of_classes(measured, rng):
    """Of three classes nothing happens in, the smallest p-value is below 0.05 in a gene of seven."""
    found = shift_statistics(of_classes(measured, rng, "a", "b", "c"))
    of_gene = found.groupby(level=0)
    assert (of_gene[BEST].nunique() <= 1).all(axis=None)
    smallest, best = of_gene["p_value"].min().dropna(), of_gene[BEST].first().dropna()
    np.testing.assert_allclose(best["best_class_p_value"], (3 * smallest).clip(upper=1))
    np.testing.assert_allclose(best["best_class_fdr"], false_discovery_control(best["best_class_p_value"]))
    assert (smallest < 0.05).mean() > 0.1
    assert (best["best_class_p_value"] < 0.05).mean() < 0.06
    alike = [name for name in found if name.startswith("best_class")]
    assert alike == BEST


def test_two_classes_are_one_test(measured, rng):
    shifts = of_classes(measured, rng, "healthy", "ill")
    ill = shifts.table["state"] == "ill"
    opposite = np.where(ill, -shifts.table["value"], np.tile(shifts.table["value"][ill], 2))
    found = shift_statistics(ShiftTable(shifts.table.assign(value=opposite), shifts.metadata))
    np.testing.assert_allclose(found["best_class_p_value"], found["p_value"])


def test_each_dose_has_statistics_of_its_own(measured, rng):
    values = null_values(measured, rng)
    parts = {dose: measured.assign(dose=dose, value=dose * values) for dose in (0.25, 0.5)}
    found = shift_statistics(screen(pd.concat(parts.values(), ignore_index=True)))
    for dose, rows in parts.items():
        alone = shift_statistics(screen(rows))
        assert alone.columns.tolist() == ["gene_name", "dose", *PLAIN[1:]]
        pd.testing.assert_frame_equal(found[found["dose"] == dose], alone)


def test_genes_are_ordered_by_significance_never_by_direction(nothing):
    found = shift_statistics(nothing)
    warned = found["warning"] != ""
    assert warned.any()
    assert warned.is_monotonic_increasing
    found = found[~warned]
    tested = found.dropna(subset="fdr")
    significant = tested["fdr"] < 0.05
    assert significant.is_monotonic_decreasing
    assert tested.loc[significant, "effect_vs_matched"].abs().is_monotonic_decreasing
    assert tested.loc[~significant, "p_value"].is_monotonic_increasing
    assert (tested["effect_vs_matched"].head(20) < 0).any()
    assert (tested["effect_vs_matched"].head(20) > 0).any()
    assert found["effect_vs_matched"].iloc[len(tested) :].abs().is_monotonic_decreasing


def test_a_gene_without_a_name_is_called_by_its_id(nothing):
    named = nothing.table["perturbed"].iloc[0]
    names = nothing.metadata["gene_names"] | {named: "CD3D"}
    found = shift_statistics(screen(nothing.table, gene_names=names))["gene_name"]
    assert found.tolist() == ["CD3D" if gene == named else gene for gene in found.index]


def test_genes_that_no_cell_expresses_are_compared_as_if_last(nothing):
    absent = most_frequent(nothing.table, 3)[2]
    rows = nothing.table["perturbed"] == absent
    found = shift_statistics(screen(nothing.table.assign(rank=nothing.table["rank"].mask(rows))))
    assert np.isnan(found.loc[absent, "mean_rank"])
    assert np.isfinite(found.loc[absent, "effect_vs_matched"])


def test_estimates_are_counted_and_logged(nothing, caplog):
    estimated = nothing.table.assign(exact=nothing.table["rank"].to_numpy(dtype=int) % 2 == 0)
    found = shift_statistics(screen(estimated))
    assert "values are first-order estimates" in caplog.text
    exact = estimated.groupby("perturbed")["exact"].sum()
    np.testing.assert_array_equal(found["n_exact"], exact[found.index])
    pd.testing.assert_frame_equal(found.drop(columns="n_exact"), shift_statistics(nothing))


def test_rows_of_affected_genes_do_not_count(nothing):
    affected = nothing.table.head(500).assign(affected="ENSG00000000001", value=1e6)
    found = shift_statistics(screen(pd.concat([nothing.table, affected], ignore_index=True)))
    pd.testing.assert_frame_equal(found, shift_statistics(nothing))


def test_neither_order_nor_storage_of_the_rows_matters(nothing, tmp_path):
    shuffled = screen(nothing.table.sample(frac=1, random_state=0))
    schema, parts = pa.schema(list(COLUMNS.items())), (shuffled.table.iloc[i::3] for i in range(3))
    blocks = (pa.Table.from_pandas(part, schema=schema, preserve_index=False) for part in parts)
    write_blocks(tmp_path / "shifts.parquet", blocks, shuffled.metadata)
    expected = shift_statistics(nothing)
    for shifts in (shuffled, ShiftTable.open(tmp_path / "shifts.parquet")):
        pd.testing.assert_frame_equal(shift_statistics(shifts), expected)


def test_the_screen_stays_as_it_is(nothing):
    before = nothing.table.copy()
    shift_statistics(nothing)
    pd.testing.assert_frame_equal(nothing.table, before)


# Published methods


@pytest.mark.parametrize("method", ["vs_all", "mixture", "goal_state"])
def test_a_published_method_is_the_function_of_that_name(nothing, measured, rng, method):
    shifts = towards_a_goal(measured, rng) if method == "goal_state" else nothing
    expected = getattr(published, method)(shifts)
    pd.testing.assert_frame_equal(shift_statistics(shifts, method=method), expected)


def test_vs_null_compares_two_screens(nothing, measured, rng):
    null = screen(measured.assign(value=null_values(measured, rng)))
    expected = published.vs_null(nothing, null)
    pd.testing.assert_frame_equal(shift_statistics(nothing, method="vs_null", null=null), expected)


# What is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(
            {"method": "t-test"}, "method must be one of 'matched', 'goal_state',.* found 't-test'", id="name"
        ),
        pytest.param({"method": "vs_null"}, "needs the same screen of control cells: give null=", id="no null"),
        pytest.param({"null": "a screen"}, "method='matched' takes no null", id="null"),
        pytest.param({"method": "mixture", "cells": "the cells"}, "method='mixture' takes no cells", id="cells"),
        pytest.param({"counts": "counts.h5ad"}, "counts= are the counts of the cells: give cells= too", id="counts"),
    ],
)
def test_an_argument_that_does_not_fit_the_method_is_refused(nothing, cells, arguments, message):
    given = {"a screen": nothing, "the cells": cells}
    with pytest.raises(InputError, match=message):
        shift_statistics(nothing, **{name: given.get(value, value) for name, value in arguments.items()})


@pytest.mark.parametrize("n_genes", [0, 1, 10])
def test_a_screen_of_few_genes_is_refused_with_what_to_do(nothing, n_genes):
    few = nothing.table[nothing.table["perturbed"].isin(most_frequent(nothing.table, n_genes))]
    with pytest.raises(InputError, match=rf"at least 10 others.*perturbed {n_genes}\. Use method='aggregate'"):
        shift_statistics(screen(few))


@pytest.mark.parametrize(("singles", "fitting"), [(True, "pairs"), (False, "aggregate")], ids=["pairs", "sets"])
def test_several_genes_at_once_are_refused_with_the_method_that_fits(nothing, singles, fitting):
    table = nothing.table.assign(perturbed=nothing.table["perturbed"] + "+ENSG00000000001")
    table = pd.concat([table, nothing.table], ignore_index=True) if singles else table
    with pytest.raises(InputError, match=rf"single genes.*\+ENSG00000000001.*Use method='{fitting}'"):
        shift_statistics(screen(table))


def test_a_screen_is_a_table_of_genes_for_gene_sets(nothing, tmp_path):
    sets = {"some": nothing.table["perturbed"].unique()[:60].tolist()}
    found = gf.gene_set_enrichment(nothing, sets)
    assert (found.attrs["score"], found.attrs["strata"]) == ("effect_vs_matched", ["n_cells", "mean_rank"])
    pd.testing.assert_frame_equal(found, gf.gene_set_enrichment(gf.shift_statistics(nothing), sets))
    nothing.save(tmp_path / "shifts.parquet")
    pd.testing.assert_frame_equal(found, gf.gene_set_enrichment(tmp_path / "shifts.parquet", sets))
