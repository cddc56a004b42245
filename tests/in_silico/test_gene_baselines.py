"""What is known of genes without the model: each column by hand, and what it takes from an effect."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr, ttest_ind, ttest_rel

import geneformer_repro as gf
from geneformer_repro import InputError
from geneformer_repro.in_silico.gene_baselines import PREDICTORS, gene_baselines
from geneformer_repro.in_silico.shift_table import SHIFT, ShiftTable
from geneformer_repro.in_silico.statistics import shift_statistics

START, END = "CD14+ Monocyte", "CD19+ B"
GOAL = {"obs": "cell_type", "start": START, "goal": END, "alternatives": []}


def screen(cells, goal=GOAL, donor="donor", n_cells=60):
    """A deletion screen of cells of the start state, whose values and places between the states are random."""
    rng, vocabulary = np.random.default_rng(0), cells.vocabulary
    rows = np.flatnonzero(cells.obs[goal["obs"]] == goal["start"])[:n_cells]
    table = pd.DataFrame(
        [(cells.cell_names[i], gene, rank) for i in rows for rank, gene in enumerate(cells.genes(int(i)))],
        columns=["cell", "perturbed", "rank"],
    )
    of_cell = {} if donor is None else cells.obs[donor].astype(str).to_dict()
    table = table.assign(donor=table["cell"].map(of_cell).astype(object), affected=None, dose=np.nan, exact=True)
    before = pd.Series(rng.uniform(size=len(rows)), index=cells.cell_names[rows])
    parts = [
        table.assign(state=goal["start"], before=0.5, value=0.0),
        table.assign(state=goal["goal"], before=table["cell"].map(before), value=rng.normal(size=len(table))),
    ]
    names = dict(zip(vocabulary.gene_ids, vocabulary.gene_names, strict=True))
    perturbation = {"kind": "Deletion", "genes": "each", "combine": "singly", "anchor": None}
    metadata = {"measure": SHIFT, "goal": goal, "donor": donor, "perturbation": perturbation, "gene_names": names}
    return ShiftTable(pd.concat(parts, ignore_index=True).astype({"affected": object, "rank": "Int32"}), metadata)


def with_values(shifts, values):
    """The screen with another value for each gene towards the goal."""
    moved = shifts.table["perturbed"].map(values).where(shifts.table["state"] == END, 0.0)
    return ShiftTable(shifts.table.assign(value=moved), shifts.metadata)


@pytest.fixture(scope="module")
def shifts(cells):
    return screen(cells)


@pytest.fixture(scope="module")
def found(shifts, cells, _pbmc):
    return gene_baselines(shifts, cells, _pbmc)


def places_of(cells, state):
    """Place of each gene in each cell of a state: cells × genes, NaN where the cell does not express it."""
    rows = np.flatnonzero(cells.obs["cell_type"] == state)
    places = [pd.Series(range(len(genes)), index=genes) for genes in (cells.genes(int(i)) for i in rows)]
    return pd.DataFrame(places, index=cells.cell_names[rows]).reindex(columns=cells.vocabulary.gene_ids)


# The columns


def test_a_row_is_a_perturbed_gene(found, shifts):
    assert found.index.name == "gene_id"
    assert found.index.tolist() == sorted(shifts.table["perturbed"].unique())
    assert set(found) == {*PREDICTORS, "de_p_value"}


def test_detection_and_mean_rank_are_counted_by_hand(found, cells):
    start, end = (places_of(cells, state)[found.index] for state in (START, END))
    np.testing.assert_allclose(found["detection_rate"], start.notna().mean())
    np.testing.assert_allclose(found["detection_difference"], end.notna().mean() - start.notna().mean(), atol=1e-12)
    np.testing.assert_allclose(found["mean_rank"], start.mean(), rtol=1e-6)


def test_axis_correlation_is_spearmans_with_the_place_between_the_states(found, shifts, cells):
    before = shifts.table.drop_duplicates(["cell", "state"]).pivot(index="cell", columns="state", values="before")
    axis, places = before[END] - before[START], places_of(cells, START).loc[before.index]
    rank_values = (1 - places.div(places.notna().sum(axis=1), axis=0)).fillna(0)
    for gene in found.index[::40]:
        if rank_values[gene].nunique() > 1:
            expected = spearmanr(rank_values[gene], axis).statistic
            assert found.loc[gene, "axis_correlation"] == pytest.approx(expected, abs=1e-6)


def sums_by_hand(adata, states, donors):
    """log2 counts per million of each donor and state, prior count of 2 in a mean library."""
    counts = pd.DataFrame(adata.X.toarray().astype(float), columns=adata.var_names).groupby([states, donors]).sum()
    library = counts.sum(axis=1)
    prior = 2 * library / library.mean()
    return np.log2(counts.add(prior, axis=0).div(library + 2 * prior, axis=0) * 1e6)


def of_two_states(adata, cells):
    """The cells of the start and goal state alone, with their obs."""
    rows = cells.obs["cell_type"].isin([START, END]).to_numpy()
    return adata[rows], cells.obs.loc[rows, "cell_type"].to_numpy(), cells.obs.loc[rows, "donor"].to_numpy()


def test_fold_change_is_the_mean_over_donors_with_a_paired_test(found, cells, pbmc):
    logs = sums_by_hand(*of_two_states(pbmc, cells))[found.index]
    np.testing.assert_allclose(found["log2_fold_change"], (logs.loc[END] - logs.loc[START]).mean(), atol=1e-6)
    expected = ttest_rel(logs.loc[END], logs.loc[START]).pvalue
    np.testing.assert_allclose(found["de_p_value"], expected, rtol=1e-5)


def relabelled(cells, pbmc, donors):
    """The cells, tokenised again with other donors."""
    adata = pbmc.copy()
    adata.obs["donor"] = donors
    return gf.tokenize(adata, cells.vocabulary, obs=["cell_type", "donor"])


def test_donors_with_one_state_each_are_compared_by_welchs_test(cells, pbmc):
    state = pbmc.obs["cell_type"].astype(str)
    elsewhere = relabelled(cells, pbmc, state + np.where(np.arange(700) % 3 == 0, "1", "2"))
    found = gene_baselines(screen(elsewhere), elsewhere, pbmc)
    logs = sums_by_hand(*of_two_states(pbmc, elsewhere))[found.index]
    start, end = logs.loc[START], logs.loc[END]
    np.testing.assert_allclose(found["log2_fold_change"], end.mean() - start.mean(), atol=1e-6)
    varying = start.columns[(start.std() > 1e-6) & (end.std() > 1e-6)]
    expected = ttest_ind(end[varying], start[varying], equal_var=False).pvalue
    np.testing.assert_allclose(found.loc[varying, "de_p_value"], expected, rtol=1e-5)


def test_one_donor_or_none_gives_a_fold_change_without_a_test(cells, pbmc):
    one = relabelled(cells, pbmc, "the only one")
    known = gene_baselines(screen(one), one, pbmc)
    assert known["de_p_value"].isna().all()
    assert known["log2_fold_change"].notna().all()
    pd.testing.assert_frame_equal(gene_baselines(screen(cells, donor=None), cells, pbmc), known)


def test_a_gene_without_counts_in_both_states_has_no_fold_change(cells, pbmc):
    silent = cells.genes(int(np.flatnonzero(cells.obs["cell_type"] == START)[0]))[0]
    counts = pbmc.X.toarray()
    counts[:, pbmc.var_names.get_loc(silent)] = 0
    pbmc.X = counts
    assert gene_baselines(screen(cells), cells, pbmc).loc[silent, "log2_fold_change"] == pytest.approx(0)


def test_without_counts_at_hand_only_what_needs_them_is_missing(found, shifts, cells, caplog):
    without = gene_baselines(ShiftTable(shifts.table, {**shifts.metadata, "cells": cells.fingerprint}), cells)
    assert "other cells" not in caplog.text
    assert "No raw counts at hand" in caplog.text
    needing = ["log2_fold_change", "de_p_value"]
    assert without[needing].isna().all(axis=None)
    pd.testing.assert_frame_equal(without.drop(columns=needing), found.drop(columns=needing))


def test_it_is_said_when_fold_changes_are_of_other_cells_than_the_screen_was_given(shifts, cells, pbmc, caplog):
    """As of all cell types, beside a screen of one."""
    gene_baselines(ShiftTable(shifts.table, {**shifts.metadata, "cells": "of one type"}), cells, pbmc)
    assert caplog.messages == [
        "cells= (--cells) are other cells than those that the screen was given: detection rates and fold changes are "
        "of these 700. Give the same, chosen in the same way (--where)."
    ]


def test_counts_are_read_where_the_dataset_came_from(found, cells, pbmc, shifts, tmp_path):
    pbmc.obs["donor"] = cells.obs["donor"].to_numpy()
    pbmc.write_h5ad(tmp_path / "pbmc.h5ad")
    on_disk = gf.tokenize(tmp_path / "pbmc.h5ad", cells.vocabulary, obs=["cell_type", "donor"])
    pd.testing.assert_frame_equal(gene_baselines(shifts, on_disk), found)


def test_a_screen_without_places_between_states_has_no_axis(shifts, cells, pbmc):
    found = gene_baselines(ShiftTable(shifts.table.assign(before=np.nan), shifts.metadata), cells, pbmc)
    assert found["axis_correlation"].isna().all()


def test_interferon_genes_rise_in_the_cells_of_eight_donors(shared):
    """Kang et al.: in every type, log1p of counts per 10,000 rises by at least 3.42 (ISG15) and 2.20 (IFI6)."""
    adata = ad.read_h5ad(shared / "data" / "kang_ifnb" / "kang_ifnb.h5ad")
    adata = adata[(adata.obs["cell_type"] == "CD14 Mono") & adata.obs["donor"].astype(str).str.isdecimal()].copy()
    cells = gf.tokenize(adata, gf.Vocabulary.fit(adata), obs=["condition", "donor"])
    goal = {"obs": "condition", "start": "control", "goal": "IFNb_stimulated", "alternatives": []}
    found = gene_baselines(screen(cells, goal), cells, adata)
    normalised = adata.to_df().div(adata.X.sum(axis=1).A1, axis=0) * 1e4
    means = normalised.groupby(adata.obs["condition"].to_numpy()).mean()
    by_hand = np.log2((means.loc["IFNb_stimulated"] + 0.01) / (means.loc["control"] + 0.01))
    risen = [adata.var_names[adata.var["gene_name"] == name][0] for name in ("ISG15", "IFI6")]
    assert (found.loc[risen, "log2_fold_change"] > 3).all()
    assert (found.loc[risen, "de_p_value"] < 1e-4).all()
    np.testing.assert_allclose(found.loc[risen, "log2_fold_change"], by_hand[risen], atol=1)
    often = found.index[found["detection_rate"] > 0.3]
    assert spearmanr(found.loc[often, "log2_fold_change"], by_hand[often]).statistic > 0.9


# Beside the effects


def test_statistics_gain_the_baselines_and_the_effect_beyond_them(shifts, found, cells, pbmc):
    plain, beside = shift_statistics(shifts), shift_statistics(shifts, cells=cells, counts=pbmc)
    pd.testing.assert_frame_equal(beside[plain.columns.tolist()], plain, check_flags=False)
    added = [name for name in found if name != "mean_rank"]
    assert beside.columns.tolist() == [*plain.columns, *added, "effect_beyond_baselines"]
    pd.testing.assert_frame_equal(beside[added], found.loc[beside.index, added])


def test_an_effect_that_is_a_baseline_is_explained_by_it(shifts, found, cells, pbmc):
    follows = with_values(shifts, found["log2_fold_change"].rank())
    table = shift_statistics(follows, cells=cells, counts=pbmc)
    assert table.attrs["explained_by_baselines"] > 0.99
    assert table.attrs["baselines"]["log2_fold_change"] == pytest.approx(1)
    assert table["effect_beyond_baselines"].abs().max() < 0.01 * table["effect"].std()


def test_an_effect_that_no_baseline_knows_stays(shifts, found, cells, pbmc):
    news = pd.Series(np.random.default_rng(0).permutation(np.linspace(-1, 1, len(found))), index=found.index)
    table = shift_statistics(with_values(shifts, news), cells=cells, counts=pbmc)
    assert table.attrs["explained_by_baselines"] < 0.05
    assert np.corrcoef(table["effect"], table["effect_beyond_baselines"])[0, 1] > 0.95
    assert set(table.attrs["baselines"]) == set(PREDICTORS)
    for name, value in table.attrs["baselines"].items():
        expected = spearmanr(found[name], news, nan_policy="omit").statistic
        assert value == pytest.approx(expected, abs=0.05)


def test_genes_that_only_cells_without_a_donor_express_are_no_matter(shifts, cells):
    known = shifts.table["donor"].where(shifts.table["donor"] == "donor0", None)
    table = shift_statistics(ShiftTable(shifts.table.assign(donor=known), shifts.metadata), cells=cells)
    assert len(table) < shifts.table["perturbed"].nunique()
    assert table["effect_beyond_baselines"].notna().all()


def test_a_baseline_that_is_not_at_hand_explains_nothing(shifts, cells):
    table = shift_statistics(shifts, cells=cells)
    assert np.isnan(table.attrs["baselines"]["log2_fold_change"])
    assert table["effect_beyond_baselines"].notna().all()


# What is refused


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        pytest.param({"goal": None}, "this screen has no goal. Leave cells= out, or screen with goal=", id="no goal"),
        pytest.param({"goal": GOAL | {"obs": "type"}}, "no obs column 'type'", id="column"),
        pytest.param({"donor": "patient"}, "no obs column 'patient'", id="donor"),
    ],
)
def test_a_screen_or_dataset_without_the_states_is_refused(shifts, cells, pbmc, metadata, message):
    with pytest.raises(InputError, match=message):
        gene_baselines(ShiftTable(shifts.table, shifts.metadata | metadata), cells, pbmc)


def test_several_doses_are_refused_with_how_to_select_one(shifts, cells):
    doses = pd.concat([shifts.table.assign(dose=dose) for dose in (0.0, 0.5)])
    with pytest.raises(InputError, match=r"has 2 doses. Select one: ShiftTable\(table\[table\['dose'\] == DOSE\]"):
        gene_baselines(ShiftTable(doses, shifts.metadata), cells)


def test_other_cells_than_those_screened_are_refused(shifts, cells):
    start, end = (np.flatnonzero(cells.obs["cell_type"] == state) for state in (START, END))
    with pytest.raises(InputError, match=r"lacks 55 of the 60 cells that were screened \(first: .*that perturb was"):
        gene_baselines(shifts, cells.select(np.concatenate([start[:5], end])))
    with pytest.raises(InputError, match="no cell with cell_type = 'CD19"):
        gene_baselines(shifts, cells.select(start))


def test_cells_of_another_vocabulary_are_refused(shifts, cells, pbmc):
    fewer = pbmc[:, :300].copy()
    fewer.obs["donor"] = cells.obs["donor"].to_numpy()
    others = gf.tokenize(fewer, gf.Vocabulary.fit(fewer), obs=["cell_type", "donor"])
    with pytest.raises(InputError, match=r"lacks \d+ of the \d+ genes that were screened"):
        gene_baselines(shifts, others)
