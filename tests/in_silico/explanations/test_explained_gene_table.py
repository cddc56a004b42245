"""A table of genes of an explanation: donors are the replicates, and what needs no model stands beside."""

import numpy as np
import pandas as pd
import pytest
from made_explanations import Made, rows
from scipy.stats import ttest_1samp

from geneformer_repro import InputError
from geneformer_repro.in_silico.explanations.gene_table import MOST_GAP, gene_table, read

_ = np.nan


def test_an_effect_is_the_mean_over_donors_of_each_donors_mean():
    why = Made(rows({"a.1": [1, 4], "a.2": [3, _], "b.1": [10, 0], "c.1": [4, 2]}))
    table = gene_table(why)
    np.testing.assert_allclose(table.loc["g0", "effect"], np.mean([2, 10, 4]))
    np.testing.assert_allclose(table.loc["g1", "effect"], np.mean([4, 0, 2]))
    assert table["n_cells"].to_dict() == {"g0": 4, "g1": 3}
    assert set(table["n_donors"]) == {3}


def test_moments_over_donors_are_those_of_the_specification():
    """Golden 5.10: without others to learn a variance from, the plain test."""
    values = {f"d{i}.1": [value] for i, value in enumerate([0.3, 0.1, 0.4, 0.2])}
    table = gene_table(Made(rows(values)))
    np.testing.assert_allclose(table["t"], 3.87298334621, rtol=1e-11)
    np.testing.assert_allclose(table["p_value"], 0.0304662916622, rtol=1e-11)


def test_variances_are_drawn_to_those_of_other_genes():
    rng = np.random.default_rng(0)
    values = rng.normal(0.1, rng.gamma(2, 0.1, 40), (5, 40))
    table = gene_table(Made(rows({f"d{i}.1": of_donor for i, of_donor in enumerate(values)}), size=50))
    plain = ttest_1samp(values, 0).statistic
    ours = table["t"].reindex([f"g{i}" for i in range(40)])
    assert np.std(np.log(np.abs(ours / values.mean(0)))) < np.std(np.log(np.abs(plain / values.mean(0))))


def test_a_gene_of_one_donor_has_no_p_value():
    """6.4 (a): a technical gene, however strong."""
    why = Made(rows({"a.1": [1, 9], "a.2": [1.5, 9], "b.1": [1.2, _], "c.1": [0.9, _], "d.1": [1.1, _]}))
    table = gene_table(why)
    assert table.loc["g1", "n_donors"] == 1
    assert table.loc["g1", ["low", "high", "t", "p_value", "fdr"]].isna().all()
    assert table.loc["g1", "effect"] == 9
    assert table.loc["g0", "p_value"] < 0.05


@pytest.mark.parametrize("names", [("a.1", "a.2", "b.1"), ("1", "2", "3")], ids=["two donors", "no donors"])
def test_below_three_donors_there_are_effects_and_no_p_value(names):
    table = gene_table(Made(rows({name: [1.0, 2.0] for name in names})))
    assert table["effect"].tolist() == [2, 1]
    assert table[["p_value", "fdr", "low", "high"]].isna().all(axis=None)
    assert set(table["n_donors"]) == {len({name.partition(".")[0] for name in names}) if "." in names[0] else 0}


def test_absolute_attributions_are_a_table_apart_without_test():
    why = Made(rows({"a.1": [1, -2], "b.1": [-1, -2.2], "c.1": [1, -2.1]}))
    signed, absolute = gene_table(why), gene_table(why, absolute=True)
    np.testing.assert_allclose(signed.loc["g0", "effect"], 1 / 3)
    assert absolute.loc["g0", "effect"] == 1
    assert absolute["p_value"].isna().all()
    assert signed["p_value"].notna().all()
    assert absolute.loc["g1", "low"] > 0


def test_cells_that_miss_completeness_are_left_out_and_counted(caplog):
    good = rows({"a.1": [1.0], "b.1": [1.0]}, method="integrated_gradients", gap=MOST_GAP)
    bad = rows({"a.2": [100.0]}, method="integrated_gradients", gap=2 * MOST_GAP)
    table = gene_table(Made(pd.concat([good, bad, rows({"a.2": [3.0]})])))
    of_method = table.set_index("method")["effect"]
    assert of_method.to_dict() == {"integrated_gradients": 1, "hide": 3}
    assert table.attrs["n_left_out"] == {"integrated_gradients": 1}
    assert "1 of 3 cells miss completeness and are left out of integrated_gradients" in caplog.text


def test_there_is_a_row_for_each_method_and_state():
    parts = [rows({"a.1": [1, 2]}, method=method, state=state) for method in ("hide", "mask") for state in ("B", "T")]
    table = gene_table(Made(pd.concat(parts)))
    assert len(table) == 8
    assert table.groupby(["method", "state"]).size().to_dict() == dict.fromkeys(
        [("hide", "B"), ("hide", "T"), ("mask", "B"), ("mask", "T")], 2
    )


def test_rows_without_value_are_no_observations():
    table = gene_table(Made(pd.concat([rows({"a.1": [1.0, 2.0]}), rows({"b.1": [1.0]}).assign(value=np.nan)])))
    assert table.loc["g0", "n_cells"] == 1


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_blocks_of_any_size_give_the_same_table(size):
    rng = np.random.default_rng(1)
    values = np.where(rng.random((30, 25)) < 0.7, rng.normal(size=(30, 25)), np.nan)
    table = rows({f"d{i % 4}.{i}": of_cell for i, of_cell in enumerate(values)})
    expected = gene_table(Made(table, size=10_000))
    pd.testing.assert_frame_equal(gene_table(Made(table, size=size)), expected, rtol=1e-12)


def test_beyond_is_what_place_and_detection_do_not_predict():
    rng = np.random.default_rng(2)
    n_genes, n_cells = 60, 200
    detected = rng.random((n_cells, n_genes)) < np.linspace(0.9, 0.2, n_genes)
    values = np.where(detected, np.linspace(1, 0, n_genes) + rng.normal(0, 0.05, (n_cells, n_genes)), np.nan)
    values[:, 30] += 0.8
    table = gene_table(Made(rows({f"d{i % 4}.{i}": row for i, row in enumerate(values)}), size=5000))
    assert table["beyond"].idxmax() == "g30"
    assert table.attrs["explained_by_baselines"]["hide: B"] > 0.5
    assert table.attrs["baselines"]["hide: B"]["detection_rate"] > 0.8


def test_expression_of_the_class_against_the_rest_stands_beside(pbmc, cells):
    import scanpy as sc

    state = "CD19+ B"
    b_cells = np.flatnonzero(cells.labels("cell_type") == state)[:20]
    table = pd.concat(
        pd.DataFrame(
            {
                "cell": cells.cell_names[i], "donor": cells.obs["donor"].iloc[i], "gene": cells.genes(i),
                "place": np.arange(len(cells.genes(i))), "method": "hide", "state": state, "value": 0.1, "before": 1.0,
                "gap": np.nan, "exact": True,
            }
        )
        for i in b_cells
    )  # fmt: skip
    metadata = {"target": "cell_type", "donor": "donor", "gene_names": {}}
    genes = gene_table(Made(table, metadata, size=10_000), cells, pbmc)
    assert genes["log2_fold_change"].notna().all()
    is_b = pbmc.obs["cell_type"] == state
    rates = [np.asarray((pbmc.X[rows] > 0).mean(0)).ravel() for rows in (is_b.to_numpy(), ~is_b.to_numpy())]
    expected = pd.Series(rates[0] - rates[1], pbmc.var_names).reindex(genes.index)
    np.testing.assert_allclose(genes["detection_difference"], expected, atol=1e-12)
    sc.pp.normalize_total(pbmc)
    means = [np.asarray(pbmc.X[rows].mean(0)).ravel() for rows in (is_b.to_numpy(), ~is_b.to_numpy())]
    change = pd.Series(np.log2(means[0] + 0.01) - np.log2(means[1] + 0.01), pbmc.var_names).reindex(genes.index)
    assert genes["log2_fold_change"].corr(change, method="spearman") > 0.95


def test_other_cells_are_refused(cells):
    why = Made(rows({"a.1": [1.0]}), {"target": "cell_type"})
    with pytest.raises(InputError, match="lacks 1 of the 1 genes that were explained"):
        gene_table(why, cells)


@pytest.mark.parametrize(
    ("value", "message"), [(np.inf, "holds infinite values"), (np.nan, "No gene of the explanation has a value")]
)
def test_values_that_have_no_mean_are_refused(value, message):
    with pytest.raises(InputError, match=message):
        read(Made(rows({"a.1": [1.0]}).assign(value=value)))
