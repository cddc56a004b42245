"""Results land in the AnnData that one has, at the cells and genes they belong to."""

import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import geneformer_repro as gf
from geneformer_repro.errors import InputError
from geneformer_repro.in_silico.statistics import _put_into
from geneformer_repro.into_adata import places_of_cells, places_of_genes, put_columns


def test_vectors_of_cells_stand_beside_their_cells_whatever_the_order(checkpoint, cells, pbmc):
    mine = pbmc[[9, 3, 50, 4]].copy()  # the last but one was not embedded
    few = cells.select([3, 4, 9])
    embedding = gf.embed(checkpoint, few, into=mine)
    np.testing.assert_array_equal(mine.obsm["X_geneformer"][[1, 3, 0]], embedding.X)
    assert np.isnan(mine.obsm["X_geneformer"][2]).all()
    assert mine.uns["X_geneformer"]["layer"] == -1


def test_vectors_of_genes_stand_beside_their_genes_also_those_on_disk(checkpoint, cells, pbmc, tmp_path):
    mine = pbmc[:5, ::-1].copy()
    genes = gf.embed(checkpoint, cells.select(range(5)), level="gene", into=mine, out=tmp_path / "genes.h5ad")
    at = mine.var_names.get_indexer(genes.obs_names)
    np.testing.assert_array_equal(mine.varm["X_geneformer"][at], genes.X[:])
    assert np.isnan(np.delete(mine.varm["X_geneformer"], at, axis=0)).all()


def test_labels_of_a_reference_are_written_by_name(checkpoint, cells, pbmc):
    embedding = gf.embed(checkpoint, cells.select(range(120)))
    mine = pbmc[:40][::-1].copy()
    table = gf.map_to_reference(embedding[:40], embedding[40:], "cell_type", into=mine)
    assert mine.obs["cell_type_mapped"].tolist() == table["label"].tolist()[::-1]
    np.testing.assert_array_equal(mine.obs["cell_type_mapped_confidence"], table["confidence"][::-1])


def test_an_anndata_of_other_cells_or_genes_is_refused_before_the_work(checkpoint, cells, pbmc, monkeypatch):
    monkeypatch.setattr("geneformer_repro.embedding._embed_cells", None)
    others = pbmc[:3].copy()
    others.obs_names = ["a", "b", "c"]
    with pytest.raises(InputError, match=r"none of the AnnData's 3 cells is among those with a result \(first: 'a', "):
        gf.embed(checkpoint, cells.select([0]), into=others)
    others.var_names = [f"ENSG9{i:010}" for i in range(others.n_vars)]
    with pytest.raises(InputError, match="none of the AnnData's 754 genes"):
        places_of_genes(others, pd.Index(["ENSG00000000938"]))


def test_names_that_stand_twice_are_refused(pbmc):
    pbmc.obs_names = ["x", *pbmc.obs_names[1:-1], "x"]
    with pytest.raises(InputError, match=r"cell names of the AnnData stand more than once \('x'"):
        places_of_cells(pbmc, ["x"])
    with pytest.raises(InputError, match="names of the cells that were read stand more than once"):
        places_of_cells(pbmc[1:].copy(), ["x", "x"])


def test_cells_without_a_result_are_counted_and_missing(pbmc, caplog):
    with caplog.at_level(logging.INFO, logger="geneformer_repro"):
        places = places_of_cells(pbmc, pbmc.obs_names[:690])
    assert "10 of the AnnData's 700 cells have no result (NaN)." in caplog.text
    table = pd.DataFrame({"a/b": range(690), "text": "t"})
    put_columns(pbmc, "obs", table, places, prefix="p_")
    assert pbmc.obs["p_a|b"].isna().sum() == pbmc.obs["p_text"].isna().sum() == 10
    assert pbmc.obs["p_a|b"].iloc[7] == 7


# Screens


@pytest.fixture(scope="module")
def shifts(_pbmc):
    """A made-up screen of the first thirty genes in six cells of three donors, of two classes."""
    genes, rng = gf.Vocabulary.fit(_pbmc[:, :30]).gene_ids, np.random.default_rng(0)
    rows = pd.MultiIndex.from_product([range(6), range(30), ["B", "NK"]]).to_frame(index=False)
    table = pd.DataFrame(
        {
            "cell": [f"cell{i}" for i in rows[0]], "donor": [f"donor{i % 3}" for i in rows[0]],
            "perturbed": [genes[i] for i in rows[1]], "affected": None, "state": rows[2], "dose": np.nan,
            "rank": rows[1].astype("Int32"), "value": rng.normal(size=len(rows)), "before": 0.5, "exact": True,
        }
    )  # fmt: skip
    told = {"measure": "change of prediction", "goal": None, "target": {"name": "type", "classes": ["B", "NK"]}}
    names = dict.fromkeys(genes, "")
    return gf.ShiftTable(table, told | {"perturbation": {"kind": "Deletion", "genes": "each"}, "gene_names": names})


def test_a_screen_is_written_beside_its_genes_by_columns_that_name_it(shifts, pbmc):
    mine = pbmc[:5, 29:2:-1].copy()
    table = gf.shift_statistics(shifts, into=mine)
    plain = gf.shift_statistics(shifts)
    pd.testing.assert_frame_equal(table, plain)
    of_b = table[table["state"] == "B"]
    ids = places_of_genes(mine, of_b.index)
    for name in ("effect", "p_value", "fdr"):
        np.testing.assert_array_equal(mine.var[f"deletion_B_{name}"], of_b[name].to_numpy()[ids])
    assert not mine.var["deletion_NK_effect"].isna().any()
    towards = {"obs": "cell_type", "start": "CD56+ NK", "goal": "CD19+ B", "alternatives": []}
    one = shifts.table[shifts.table["state"] == "B"].assign(state="CD19+ B")
    metadata = shifts.metadata | {"target": None, "goal": towards, "measure": "cosine shift"}
    gf.shift_statistics(gf.ShiftTable(one, metadata), into=mine)
    assert mine.var["deletion_to_CD19+ B_effect"].notna().all()


def test_an_anndata_of_few_of_the_genes_is_refused_and_stays_as_it_is(shifts, pbmc):
    few = pbmc[:5, [*range(2), *range(60, 120)]].copy()
    before = few.var.copy()
    with pytest.raises(InputError, match="only 2 genes of the AnnData \\(62\\) are among the 30 with a result"):
        gf.shift_statistics(shifts, into=few)
    with pytest.raises(InputError, match="takes a table with a row a gene"):
        _put_into(few, gf.shift_statistics(shifts).reset_index(), shifts)
    pd.testing.assert_frame_equal(few.var, before)


def test_a_view_of_a_file_is_refused_before_the_work_and_any_other_view_becomes_its_own(pbmc, tmp_path, caplog):
    pbmc.write_h5ad(tmp_path / "cells.h5ad")
    of_file = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")[:5]
    with pytest.raises(InputError, match=r"a view of a file.*Give adata\.to_memory\(\)"):
        places_of_cells(of_file, of_file.obs_names)
    mine, table = pbmc[:5], pd.DataFrame({f"p_{i}": range(5) for i in range(120)})
    put_columns(mine, "obs", table, np.arange(5))  # warnings, as of a frame in pieces, are errors here
    assert not mine.is_view
    assert mine.obs["p_119"].tolist() == [0, 1, 2, 3, 4]
    with caplog.at_level(logging.INFO, logger="geneformer_repro"):
        put_columns(mine, "obs", table[["p_3"]], np.arange(5))
    assert "Replaced what the AnnData had by the name of p_3." in caplog.text
