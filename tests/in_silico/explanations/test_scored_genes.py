"""Which genes of a table are alike: bins, strata, and ids."""

import numpy as np
import pandas as pd
import pytest
from tables_of_genes import table_of_genes

from geneformer_repro.errors import InputError
from geneformer_repro.in_silico.explanations.scored_genes import bins_of_detection, scored_genes


def test_a_bin_spans_two_parts_of_the_genes_and_of_the_detections_at_most():
    values = np.random.default_rng(0).beta(0.3, 2, 5_000)
    bins = bins_of_detection(values, 20)
    for weight in (np.ones(5_000), values):
        assert (np.bincount(bins, weight) / weight.sum()).max() < 2 / 20 + 0.002
    assert (np.diff(bins[np.argsort(values)]) >= 0).all()
    tied = np.round(values, 1)
    assert all(len(set(bins_of_detection(tied, 20)[tied == value])) == 1 for value in set(tied))


@pytest.mark.parametrize("values", [np.zeros(5), np.full(5, 0.3)], ids=["none detected", "all alike"])
def test_genes_that_do_not_differ_are_one_bin(values):
    assert len(set(bins_of_detection(values, 20))) == 1


def test_the_number_of_cells_gives_the_strata_of_the_share_of_cells():
    table = table_of_genes()
    table["n_cells"] = (table["detection_rate"] * 10_000).round().astype(int)
    table["detection_rate"] = table["n_cells"] / 10_000
    (by_rate,), (by_number,) = (
        scored_genes(table, strata=[name], min_cells=0) for name in ("detection_rate", "n_cells")
    )
    np.testing.assert_array_equal(by_rate.stratum, by_number.stratum)


def test_places_are_binned_within_detection_and_no_stratum_is_empty():
    (genes,) = scored_genes(table_of_genes())
    size = np.bincount(genes.stratum)
    assert (len(size), size.min() > 0) == (20, True)
    rate, place = (genes.rows[name].to_numpy() for name in ("detection_rate", "mean_place"))
    lowest = genes.stratum < 4
    assert rate[lowest].max() <= rate[~lowest].min()
    assert place[genes.stratum == 0].max() <= place[genes.stratum == 1].min()


@pytest.mark.parametrize("name", [None, "names", "gene_id"])
def test_an_index_is_ids_whatever_it_is_called(name):
    table = pd.DataFrame({"gene_name": ["A", "A"], "score": [1.0, 2.0]}, index=["ENSG00000000001", "ENSG00000000002"])
    (genes,) = scored_genes(table.rename_axis(name), strata=None)
    assert genes.known.gene_ids == ("ENSG00000000001", "ENSG00000000002")


def test_ids_come_before_symbols_and_an_unnamed_index_is_ids():
    table = pd.DataFrame({"gene_name": ["A", "A"], "score": [1.0, 2.0]}, index=["ENSG00000000001.4", "ENSG00000000002"])
    (genes,) = scored_genes(table, strata=None)
    assert genes.known.gene_ids == ("ENSG00000000001", "ENSG00000000002")
    assert list(genes.names) == ["A", "A"]
    (again,) = scored_genes(table.reset_index().rename(columns={"index": ""}), strata=None)
    assert again.known.gene_ids == genes.known.gene_ids


def test_chosen_rows_of_a_numbered_frame_are_told_by_their_column():
    table = pd.DataFrame({"gene": ["x", "y", "z"], "score": [1.0, 2.0, 3.0]}).iloc[[0, 2]]
    assert scored_genes(table, strata=None)[0].known.gene_ids == ("x", "z")


def test_a_column_without_a_number_is_no_score():
    table = table_of_genes(n_genes=30).assign(beyond=np.nan)
    assert scored_genes(table)[0].score_name == "score"


def test_genes_of_bulk_samples_are_matched_on_expression_where_it_is_told():
    """All are detected in all samples, and have no place."""
    table = table_of_genes().assign(detection_rate=1.0, n_cells=40, mean_place=np.nan)
    (alike,) = scored_genes(table)
    assert (alike.strata, alike.n_strata, len(alike)) == ((), 1, len(table))
    (matched,) = scored_genes(table.assign(mean_expression=np.arange(len(table))))
    assert (matched.strata, matched.n_strata) == (("mean_expression",), 20)
    assert set(np.bincount(matched.stratum)) == {100}


def test_of_few_cells_half_is_enough():
    table = table_of_genes(n_genes=40).assign(n_cells=np.tile([2, 3, 6], 14)[:40])
    assert scored_genes(table)[0].left_out["in fewer than 3 cells"] == 14


def test_too_few_genes_are_refused_with_the_reason():
    table = table_of_genes(n_genes=30).assign(n_cells=3)
    with pytest.raises(InputError, match=r"0 of 30 genes could have been chosen \(30 in fewer than 10 cells\)"):
        scored_genes(table, min_cells=10)
    with pytest.raises(InputError, match="no column n_cells, so min_cells=5 cannot be asked"):
        scored_genes(table.drop(columns="n_cells"), min_cells=5)
