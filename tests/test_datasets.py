import numpy as np
import pytest
import scanpy
from scipy.sparse import csr_matrix

import geneformer_repro as gf
from geneformer_repro.datasets import pbmc700
from geneformer_repro.tokenizer.symbols import ensembl_of_symbol


@pytest.fixture(scope="module")
def source():
    return scanpy.datasets.pbmc68k_reduced()


@pytest.fixture(scope="module")
def found():
    return pbmc700()


def undone(source):
    """Counts as they come out of the logged values, cells × genes, not yet rounded."""
    logged = source.raw.X.toarray().astype(np.float64)
    return np.expm1(logged) * source.obs["n_counts"].to_numpy(dtype=np.float64)[:, None] / 1e4


def test_it_is_a_public_name():
    assert gf.datasets.pbmc700 is pbmc700


def test_it_has_700_cells_of_ten_types_and_754_genes(found):
    assert found.shape == (700, 754)
    assert found.obs["cell_type"].nunique() == 10


def test_its_values_are_raw_counts(found):
    assert isinstance(found.X, csr_matrix)
    assert found.X.dtype == np.float32
    np.testing.assert_array_equal(found.X.data, np.rint(found.X.data))
    assert found.X.data.min() >= 1


def test_its_counts_are_the_undone_logarithm_of_what_scanpy_ships(found, source):
    place = {name: i for i, name in enumerate(source.raw.var_names)}
    columns = [place[name] for name in found.var["gene_name"]]
    np.testing.assert_array_equal(found.X.toarray(), np.rint(undone(source)[:, columns]))


def test_undoing_the_logarithm_is_as_close_to_integers_as_the_docstring_says(source):
    scaled = undone(source)
    distance = np.abs(scaled - np.rint(scaled))[scaled > 0]
    assert distance.max() < 0.09
    assert np.quantile(distance, 0.99) < 0.007


def test_no_cell_has_more_counts_than_its_total(found):
    assert (np.asarray(found.X.sum(axis=1)).ravel() <= found.obs["n_counts"]).all()


def test_a_cell_has_about_250_genes(found):
    assert 200 < np.median(np.diff(found.X.indptr)) < 300


def test_its_genes_are_distinct_ensembl_ids(found):
    assert found.var_names.is_unique
    assert found.var_names.str.fullmatch(r"ENSG\d{11}").all()


def test_eleven_genes_without_an_id_are_left_out(found, source):
    left_out = set(source.raw.var_names) - set(found.var["gene_name"])
    assert len(left_out) == 11
    assert not left_out & set(ensembl_of_symbol())


def test_its_cells_keep_their_names_and_order(found, source):
    assert found.obs_names.tolist() == source.obs_names.tolist()


@pytest.mark.parametrize(
    ("here", "there"), [("cell_type", "bulk_labels"), ("phase", "phase"), ("n_counts", "n_counts")]
)
def test_its_labels_are_those_of_scanpy(found, source, here, there):
    assert found.obs[here].tolist() == source.obs[there].tolist()


@pytest.mark.parametrize(("gene", "cell_type"), [("CD79A", "CD19+ B"), ("GNLY", "CD56+ NK"), ("FCER1A", "Dendritic")])
def test_a_marker_is_highest_in_its_cell_type(found, gene, cell_type):
    counts = found.X.toarray()[:, found.var["gene_name"] == gene].ravel() / found.obs["n_counts"]
    assert counts.groupby(found.obs["cell_type"]).mean().idxmax() == cell_type


def test_every_call_gives_its_own_copy(found):
    other = pbmc700()
    other.X.data[:] = 0
    assert found.X.data.all()


def test_other_values_than_the_known_ones_are_refused(source, monkeypatch):
    changed = source.copy()
    changed.obs["n_counts"] = changed.obs["n_counts"].astype(np.float64) * 1.5
    monkeypatch.setattr(scanpy.datasets, "pbmc68k_reduced", lambda: changed)
    with pytest.raises(gf.DataFormatError, match=r"no longer gives whole counts back; please report .*scanpy version"):
        pbmc700()
