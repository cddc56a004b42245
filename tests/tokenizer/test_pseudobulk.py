import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from scipy.sparse import csc_matrix

from geneformer_repro.errors import DataFormatError, InputError
from geneformer_repro.tokenizer.pseudobulk import pseudobulk


@pytest.fixture
def donors(pbmc):
    """Blood cells of three donors, each in one condition."""
    pbmc.obs["donor"] = [f"donor{i % 3}" for i in range(pbmc.n_obs)]
    pbmc.obs["condition"] = np.where(pbmc.obs["donor"] == "donor1", "stimulated", "control")
    return pbmc


@pytest.mark.parametrize("by", ["donor", ["donor", "cell_type"]], ids=["one column", "two"])
def test_sums_are_scanpy_s(donors, by):
    ours = pseudobulk(donors, by, min_cells=1)
    theirs = sc.get.aggregate(donors, by, func="sum")
    names = [name.replace("|", "_") for name in ours.obs_names]
    np.testing.assert_array_equal(ours.X.toarray(), theirs[names].layers["sum"].toarray())
    assert len(ours) == len(theirs)
    assert list(ours.var_names) == list(donors.var_names)


def test_groups_of_few_cells_are_left_out_and_columns_that_are_constant_are_carried_along(donors, caplog):
    caplog.set_level(logging.INFO, logger="geneformer_repro")
    samples = pseudobulk(donors, ["donor", "cell_type"], min_cells=30)
    sizes = donors.obs.groupby(["donor", "cell_type"], observed=True).size()
    assert samples.obs["n_cells"].tolist() == sizes[sizes >= 30].tolist()
    assert list(samples.obs_names) == ["|".join(names) for names in sizes[sizes >= 30].index]
    assert list(samples.obs.columns) == ["donor", "cell_type", "n_cells", "condition"]
    assert (samples.obs["condition"].eq("stimulated") == samples.obs["donor"].eq("donor1")).all()
    few = sizes[sizes < 30]
    assert caplog.messages[-1] == (
        f"AnnData: {len(samples)} groups of donor × cell_type; {len(few)} of fewer than 30 cells left out ({few.sum()} "
        "cells)."
    )


def test_cells_without_a_value_are_left_out_and_any_source_is_read(donors, tmp_path, caplog):
    donors.obs["donor"] = pd.Series(donors.obs["donor"]).where(np.arange(700) > 4)
    samples = pseudobulk(donors, "donor")
    assert "AnnData: 5 of 700 cells have no donor; left out." in caplog.messages
    assert samples.X.sum() == donors.X[5:].sum()
    donors.layers["counts"], donors.X = csc_matrix(donors.X), donors.X * 0.5
    donors.write_h5ad(tmp_path / "cells.h5ad")
    again = pseudobulk(tmp_path / "cells.h5ad", "donor", layer="counts")
    np.testing.assert_array_equal(again.X.toarray(), samples.X.toarray())
    pd.testing.assert_frame_equal(again.obs, samples.obs)


def test_sums_are_exact_where_single_precision_is_not():
    counts = ad.AnnData(
        np.full((3, 1), 2.0**24 + 2, dtype=np.float32), obs=pd.DataFrame({"donor": list("aab")}, list("xyz"))
    )
    counts.X[1] = 1
    np.testing.assert_array_equal(pseudobulk(counts, "donor", min_cells=1).X.toarray(), [[2.0**24 + 3], [2.0**24 + 2]])


def test_what_is_no_count_or_no_group_is_refused(donors):
    with pytest.raises(InputError, match=r"obs has no column 'doner'.*donor"):
        pseudobulk(donors, "doner")
    with pytest.raises(
        InputError, match=r"no group of donor × cell_type has 500 cells \(the largest has \d+\); lower min_cells"
    ):
        pseudobulk(donors, ["donor", "cell_type"], min_cells=500)
    for by in ([], ["donor", "donor"]):
        with pytest.raises(InputError, match="expected one or several different columns"):
            pseudobulk(donors, by)
    donors.X = donors.X * 0.5
    with pytest.raises(DataFormatError, match="X holds fractional values"):
        pseudobulk(donors, "donor")
