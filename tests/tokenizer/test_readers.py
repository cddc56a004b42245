import hashlib

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csc_matrix, csr_array, csr_matrix, vstack

from geneformer_repro.errors import DataFormatError, InputError
from geneformer_repro.tokenizer.readers import BLOCK_CELLS, open_counts

COUNTS = np.array([[1, 0, 2, 0], [0, 3, 0, 0], [4, 5, 6, 7]], dtype=np.float32)


def small(x=COUNTS, **options):
    """Three cells of four genes."""
    obs = pd.DataFrame(index=["c1", "c2", "c3"])
    var = pd.DataFrame({"gene_name": ["A", "B", "C", "D"]}, index=["g1", "g2", "g3", "g4"])
    return ad.AnnData(x, obs=obs, var=var, **options)


def written(adata, tmp_path):
    adata.write_h5ad(tmp_path / "x.h5ad")
    return tmp_path / "x.h5ad"


def in_memory(adata, tmp_path):
    return adata


@pytest.fixture(params=[in_memory, written], ids=["memory", "file"])
def place(request, tmp_path):
    """Puts an AnnData where it is read from: memory or a file."""
    return lambda adata: request.param(adata, tmp_path)


def everything(opened, size=BLOCK_CELLS):
    return vstack([block.counts for block in opened.blocks(size)]).toarray()


def with_raw(adata, x):
    adata.raw = ad.AnnData(x, obs=adata.obs, var=adata.var)
    return adata


# what comes back


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: small(csr_matrix(COUNTS)), id="csr"),
        pytest.param(lambda: small(csc_matrix(COUNTS)), id="csc"),
        pytest.param(lambda: small(COUNTS), id="dense"),
        pytest.param(lambda: small(csr_array(COUNTS)), id="sparse_array"),
        pytest.param(lambda: small(csr_matrix(COUNTS.astype(np.int32))), id="int32"),
        pytest.param(lambda: small(COUNTS.astype(np.uint8)), id="uint8"),
        pytest.param(lambda: small(csr_matrix(COUNTS.astype(np.float64))), id="float64"),
    ],
)
def test_the_form_of_the_matrix_does_not_matter(place, make):
    opened = open_counts(place(make()))
    np.testing.assert_array_equal(everything(opened), COUNTS)
    assert all(isinstance(block.counts, csr_matrix) for block in opened.blocks())


@pytest.mark.parametrize("form", [csr_matrix, csc_matrix, np.asarray])
@pytest.mark.parametrize("layer", ["counts", "raw"])
def test_counts_may_lie_in_a_layer_or_in_raw(place, form, layer):
    adata = with_raw(small(COUNTS / 3, layers={"counts": form(COUNTS)}), form(COUNTS))
    np.testing.assert_array_equal(everything(open_counts(place(adata), layer=layer)), COUNTS)


def test_counts_may_lie_in_a_layer_without_any_x(place):
    adata = ad.AnnData(obs=small().obs, var=small().var, layers={"counts": csr_matrix(COUNTS)})
    np.testing.assert_array_equal(everything(open_counts(place(adata), layer="counts")), COUNTS)


def test_raw_brings_its_own_genes(place):
    adata = small(csr_matrix(COUNTS)).copy()
    adata.raw = adata
    opened = open_counts(place(adata[:, :2].copy()), layer="raw")
    assert opened.gene_ids == ("g1", "g2", "g3", "g4")
    assert opened.gene_names == ("A", "B", "C", "D")
    np.testing.assert_array_equal(everything(opened), COUNTS)


def test_a_view_is_read_as_what_it_shows(pbmc):
    rows, columns = np.arange(0, 700, 7), np.arange(0, 754, 5)
    opened = open_counts(pbmc[rows, columns])
    np.testing.assert_array_equal(everything(opened), pbmc.X.toarray()[np.ix_(rows, columns)])
    assert opened.obs.index.tolist() == pbmc.obs_names[rows].tolist()


def test_a_backed_anndata_is_read_as_memory(pbmc, tmp_path):
    backed = ad.read_h5ad(written(pbmc, tmp_path), backed="r")
    np.testing.assert_array_equal(everything(open_counts(backed), 99), pbmc.X.toarray())
    backed.file.close()


@pytest.mark.parametrize("size", [1, 7, 39, 40, 5000])
def test_blocks_of_any_size_are_the_whole_in_order(pbmc, place, size):
    blocks = list(open_counts(place(pbmc[:40].copy())).blocks(size))
    assert [block.start for block in blocks] == list(range(0, 40, size))
    np.testing.assert_array_equal(vstack([block.counts for block in blocks]).toarray(), pbmc.X[:40].toarray())


def test_a_source_can_be_read_twice(place):
    opened = open_counts(place(small(csr_matrix(COUNTS))))
    np.testing.assert_array_equal(everything(opened), everything(opened))


def test_a_path_may_be_a_string(tmp_path):
    assert open_counts(str(written(small(), tmp_path))).name == str(tmp_path / "x.h5ad")


def test_cells_keep_their_names_and_columns(pbmc, place):
    opened = open_counts(place(pbmc))
    assert opened.obs.index.tolist() == pbmc.obs_names.tolist()
    assert opened.obs["cell_type"].tolist() == pbmc.obs["cell_type"].tolist()


@pytest.mark.parametrize(
    ("columns", "asked", "expected"),
    [
        pytest.param({}, None, ("g1", "g2", "g3", "g4"), id="index"),
        pytest.param({"ensembl_id": list("abcd")}, None, tuple("abcd"), id="ensembl_id"),
        pytest.param({"ensembl_id": list("abcd"), "other": list("efgh")}, "other", tuple("efgh"), id="asked"),
        pytest.param({"ensembl_id": list("aacd")}, None, tuple("aacd"), id="one_gene_twice"),
        pytest.param({"entrez": [1, 2, 3, 4]}, "entrez", tuple("1234"), id="numbers"),
    ],
)
def test_gene_ids_are_those_asked_for_else_ensembl_id_else_the_index(place, columns, asked, expected):
    adata = small()
    adata.var = adata.var.assign(**columns)
    assert open_counts(place(adata), gene_ids=asked).gene_ids == expected


@pytest.mark.parametrize("column", ["gene_name", "feature_name", "gene_symbols", "gene_symbol", "symbol"])
def test_gene_names_are_found_under_the_usual_columns(place, column):
    adata = small()
    adata.var = pd.DataFrame({"other": list("efgh"), column: ["A", None, "C", "D"]}, index=adata.var_names)
    assert open_counts(place(adata)).gene_names == ("A", "", "C", "D")


def test_genes_without_names_have_empty_ones(place):
    adata = small()
    del adata.var["gene_name"]
    assert open_counts(place(adata)).gene_names == ("", "", "", "")


def test_categorical_names_are_read_as_text(place):
    adata = small()
    adata.var["gene_name"] = pd.Categorical(["A", "A", None, "D"])
    assert open_counts(place(adata)).gene_names == ("A", "A", "", "D")


# totals


def totals(opened):
    return np.concatenate([opened.total_counts(block) for block in opened.blocks(2)])


def test_totals_are_n_counts_where_there_are_any(place):
    adata = small()
    adata.obs["n_counts"] = [10, 20, 30]
    np.testing.assert_array_equal(totals(open_counts(place(adata))), [10, 20, 30])


@pytest.mark.parametrize("column", [None, ["many", "few", "some"]], ids=["absent", "not_numbers"])
def test_totals_are_summed_where_n_counts_are_absent(place, column):
    adata = small()
    if column:
        adata.obs["n_counts"] = column
    np.testing.assert_array_equal(totals(open_counts(place(adata))), [3, 3, 22])


def test_totals_that_differ_by_rounding_are_accepted(place):
    adata = small()
    adata.obs["n_counts"] = [3 - 1e-7, 3, 22]
    np.testing.assert_allclose(totals(open_counts(place(adata))), [3, 3, 22], rtol=1e-6)


@pytest.mark.parametrize("given", [21, 0, -1, np.nan, np.inf])
def test_totals_below_the_stored_counts_are_refused_with_the_cell(place, given):
    adata = small()
    adata.obs["n_counts"] = [3.0, 3.0, given]
    message = rf"obs\['n_counts'\] of cell 'c3' is {given:g}, .*22 counts stored for it.*correct the column, or drop it"
    with pytest.raises(DataFormatError, match=message):
        totals(open_counts(place(adata)))


# values that are no counts


@pytest.mark.parametrize(
    ("value", "kind"),
    [(0.5, "fractional"), (-1, "negative"), (-0.5, "negative"), (np.nan, "not finite"), (np.inf, "not finite")],
)
@pytest.mark.parametrize("form", [csr_matrix, csc_matrix, np.asarray])
def test_a_value_that_is_no_count_is_refused_with_cell_and_gene(place, value, kind, form):
    x = COUNTS.copy()
    x[2, 1] = value
    with pytest.raises(DataFormatError, match=rf"X holds {kind} values \(first: cell 'c3', gene 'g2', {value:g}\)"):
        everything(open_counts(place(small(form(x)))))


def test_the_cell_is_named_when_it_is_in_a_later_block(place):
    x = COUNTS.copy()
    x[2, 1] = 0.5
    with pytest.raises(DataFormatError, match="first: cell 'c3', gene 'g2'"):
        everything(open_counts(place(small(x))), size=2)


def test_the_column_of_gene_ids_is_used_in_the_message(place):
    adata = small(COUNTS / 3)
    adata.var["ensembl_id"] = ["e1", "e2", "e3", "e4"]
    with pytest.raises(DataFormatError, match="gene 'e1'"):
        everything(open_counts(place(adata)))


@pytest.mark.parametrize("form", [csr_matrix, csc_matrix, np.asarray])
def test_the_message_names_the_layer_that_holds_counts(place, form):
    adata = small(COUNTS / 3, layers={"counts": form(COUNTS), "scaled": form(COUNTS / 7)})
    with pytest.raises(
        DataFormatError, match=r"Rank encoding needs raw counts\. 'counts' holds counts: name it with layer="
    ):
        everything(open_counts(place(adata)))


def test_the_message_names_raw_when_it_holds_counts(place):
    adata = with_raw(small(csr_matrix(COUNTS / 3)), csr_matrix(COUNTS))
    with pytest.raises(DataFormatError, match="'raw' holds counts: name it with layer="):
        everything(open_counts(place(adata)))


def test_the_message_names_x_when_a_layer_was_asked_for_in_vain(place):
    adata = small(csr_matrix(COUNTS), layers={"scaled": csr_matrix(COUNTS / 3)})
    with pytest.raises(DataFormatError, match=r"scaled holds fractional .*'X' holds counts"):
        everything(open_counts(place(adata), layer="scaled"))


def test_the_layer_the_message_names_can_be_read(place):
    adata = small(COUNTS / 3, layers={"counts": COUNTS})
    np.testing.assert_array_equal(everything(open_counts(place(adata), layer="counts")), COUNTS)


@pytest.mark.parametrize("layers", [{}, {"scaled": COUNTS / 7}, {"empty": 0 * COUNTS}], ids=["none", "scaled", "empty"])
def test_the_message_says_when_no_layer_holds_counts(place, layers):
    with pytest.raises(DataFormatError, match=r"No other layer of it holds counts either; go back to the file before"):
        everything(open_counts(place(small(COUNTS / 3, layers=layers))))


def test_centred_values_are_refused_as_negative(pbmc, place):
    pbmc.X = pbmc.X.toarray() - 1
    with pytest.raises(DataFormatError, match="X holds negative values"):
        everything(open_counts(place(pbmc)))


def test_tpm_like_values_are_refused(shared):
    path = shared / "data" / "oligodendroglioma" / "oligodendroglioma.h5ad"
    with pytest.raises(
        DataFormatError, match=r"oligodendroglioma\.h5ad: X holds fractional values \(first: cell 'MGH54_P16_F12'"
    ):
        everything(open_counts(path))


# files and tables that cannot be used


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataFormatError, match=r"x\.h5ad: no such file\. Expected an \.h5ad file with raw counts"):
        open_counts(tmp_path / "x.h5ad")


@pytest.mark.parametrize("content", [b"", b"cell,gene\nc1,3\n", b"\x00" * 5000], ids=["empty", "text", "binary"])
def test_a_file_that_is_no_hdf5_is_named(tmp_path, content):
    (tmp_path / "x.h5ad").write_bytes(content)
    with pytest.raises(
        DataFormatError, match=r"x\.h5ad: not an \.h5ad \(HDF5\) file\. .*as written by AnnData\.write_h5ad"
    ):
        open_counts(tmp_path / "x.h5ad")


def test_a_folder_is_no_h5ad(tmp_path):
    with pytest.raises(DataFormatError, match=r"not an \.h5ad"):
        open_counts(tmp_path)


def test_another_hdf5_file_is_named(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["values"] = [1, 2, 3]
    with pytest.raises(DataFormatError, match=r"x\.h5: an HDF5 file, but not a readable \.h5ad: .*obs"):
        open_counts(tmp_path / "x.h5")


def test_a_hdf5_file_whose_obs_is_something_else_is_named(tmp_path):
    with h5py.File(tmp_path / "x.h5ad", "w") as file:
        file["obs"], file["var"], file["X"] = [1, 2], [3], [[4.0], [5.0]]
    with pytest.raises(DataFormatError, match=r"x\.h5ad: an HDF5 file, but not a readable \.h5ad"):
        open_counts(tmp_path / "x.h5ad")


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_named(pbmc, tmp_path, share):
    path = written(pbmc, tmp_path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(DataFormatError, match=r"x\.h5ad: .*truncated"):
        everything(open_counts(path))


def test_a_file_with_a_damaged_matrix_is_named(pbmc, tmp_path):
    path = written(pbmc, tmp_path)
    with h5py.File(path, "r+") as file:
        del file["X/indices"]
    with pytest.raises(DataFormatError, match=r"x\.h5ad: .*damaged"):
        everything(open_counts(path))


def test_a_file_that_shrinks_while_it_is_read_is_named(pbmc, tmp_path):
    path = written(pbmc, tmp_path)
    opened = open_counts(path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataFormatError, match=r"x\.h5ad: .*damaged or truncated"):
        everything(opened)


def test_a_table_without_cells_is_refused(place):
    with pytest.raises(DataFormatError, match=r"holds no cells \(4 genes\)"):
        open_counts(place(small()[:0].copy()))


def test_repeated_cell_names_are_refused(place):
    adata = small()
    adata.obs.index = ["c1", "c2", "c1"]
    message = r"1 cell names stand more than once \(first: 'c1'\).*adata\.obs_names_make_unique\(\)"
    with pytest.raises(DataFormatError, match=message):
        open_counts(place(adata))


def test_an_unknown_layer_is_refused_with_the_nearest(place):
    with pytest.raises(InputError, match=r"there is no layer 'count'\. Did you mean 'counts'\?"):
        open_counts(place(small(layers={"counts": COUNTS})), layer="count")


def test_an_absent_x_is_refused_with_what_there_is(place):
    adata = ad.AnnData(obs=small().obs, var=small().var, layers={"counts": COUNTS})
    with pytest.raises(InputError, match=r"there is no layer 'X'\. There are: 'counts'"):
        open_counts(place(adata))


def test_an_absent_raw_is_refused(place):
    with pytest.raises(InputError, match=r"there is no layer 'raw'\. There are: 'X'"):
        open_counts(place(small()), layer="raw")


def test_an_unknown_column_of_gene_ids_is_refused_with_the_nearest(place):
    with pytest.raises(InputError, match=r"var has no column 'gene_nam'\. Did you mean 'gene_name'\?"):
        open_counts(place(small()), gene_ids="gene_nam")


# inputs are left alone


@pytest.mark.parametrize("mode", [0o644, 0o444], ids=["writable", "read_only"])
def test_reading_leaves_a_file_as_it_was(pbmc, tmp_path, mode):
    path = written(pbmc, tmp_path)
    path.chmod(mode)
    before = hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns
    everything(open_counts(path))
    assert (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns) == before
    assert [file.name for file in tmp_path.iterdir()] == ["x.h5ad"]


def test_a_file_may_be_open_for_reading_elsewhere(pbmc, tmp_path):
    path = written(pbmc, tmp_path)
    with h5py.File(path, "r"):
        assert len(list(open_counts(path).blocks())) == 1


def test_reading_leaves_an_anndata_as_it_was(pbmc):
    before = pbmc.copy()
    everything(open_counts(pbmc))
    assert (pbmc.X != before.X).nnz == 0
    pd.testing.assert_frame_equal(pbmc.obs, before.obs)
    pd.testing.assert_frame_equal(pbmc.var, before.var)
