"""Cells as matrices: equal to the plain spelling, and the counts of the right cells or none."""

import re

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
from scipy.sparse import csr_matrix

import geneformer_repro as gf
from geneformer_repro import InputError
from geneformer_repro.tokenizer import counts as module
from geneformer_repro.tokenizer.counts import counts_of, log_normalise, rank_values, raw_counts, vocabulary_counts
from geneformer_repro.tokenizer.readers import open_counts

# Rank values


def slow_rank_values(cells):
    found = np.zeros((len(cells), len(cells.vocabulary)))
    for i in range(len(cells)):
        genes = cells.genes(i)
        for place, gene in enumerate(genes):
            found[i, cells.vocabulary.position[gene]] = (len(genes) - place) / len(genes)
    return found


@pytest.mark.parametrize("series", ["V1", "V2"])
def test_rank_values_are_their_slow_spelling(pbmc, series, monkeypatch):
    monkeypatch.setattr(module, "_CELLS_AT_ONCE", 7)
    cells = gf.tokenize(pbmc, gf.Vocabulary.fit(pbmc, series=series, max_length=60)).select(np.arange(39, 0, -2))
    found = rank_values(cells)
    assert (found.dtype, found.nnz) == (np.float32, (cells.lengths - 2 * (series == "V2")).sum())
    np.testing.assert_allclose(found.toarray(), slow_rank_values(cells), rtol=1e-6)


def test_rank_values_of_published_cells(golden):
    np.testing.assert_allclose(rank_values(golden.cells).toarray(), slow_rank_values(golden.cells), rtol=1e-6)


# Counts


def test_log_normalise_is_scanpys(pbmc):
    counts = csr_matrix(pbmc.X)
    before = counts.copy()
    pbmc.X = counts.toarray()
    sc.pp.normalize_total(pbmc, target_sum=1e4)
    sc.pp.log1p(pbmc)
    np.testing.assert_allclose(log_normalise(counts).toarray(), pbmc.X, rtol=1e-6)
    np.testing.assert_array_equal(counts.toarray(), before.toarray())


def test_an_empty_cell_stays_empty():
    found = log_normalise(csr_matrix(np.array([[0.0, 0.0], [1.0, 3.0]])))
    np.testing.assert_allclose(found.toarray(), [[0, 0], np.log1p([2500, 7500])])


@pytest.mark.parametrize("on_disk", [False, True], ids=["AnnData", "h5ad"])
def test_counts_are_joined_by_cell_name_in_any_order(pbmc, tmp_path, on_disk):
    pbmc.write_h5ad(tmp_path / "cells.h5ad")
    source = open_counts(tmp_path / "cells.h5ad" if on_disk else pbmc)
    order = np.random.default_rng(0).permutation(pbmc.n_obs)[:50]
    found = counts_of(source, pbmc.obs_names.to_numpy()[order])
    np.testing.assert_array_equal(found.toarray(), pbmc.X[order].toarray())


def test_cells_that_are_not_in_the_counts_are_refused(pbmc):
    names = np.array([pbmc.obs_names[0], "AAAC-elsewhere", "AAAG-elsewhere"], dtype=object)
    with pytest.raises(InputError, match=r"AnnData: 2 of 3 cells.*not in it \(first: 'AAAC-elsewhere'\).*not where"):
        counts_of(open_counts(pbmc), names)


def test_normalised_values_are_refused_as_counts(pbmc):
    normalised = ad.AnnData(log_normalise(csr_matrix(pbmc.X)), obs=pbmc.obs, var=pbmc.var)
    with pytest.raises(InputError, match="raw counts"):
        counts_of(open_counts(normalised), pbmc.obs_names.to_numpy())


@pytest.fixture
def files(pbmc, tmp_path):
    """Two files of cells, which share names, with the genes in two orders."""
    halves = pbmc[:20].copy(), pbmc[20:50, ::-1].copy()
    for name, half in zip("ab", halves, strict=True):
        half.obs_names = [f"cell{i}" for i in range(half.n_obs)]
        half.write_h5ad(tmp_path / f"{name}.h5ad")
    return [tmp_path / "a.h5ad", tmp_path / "b.h5ad"]


def test_vocabulary_counts_have_a_column_a_gene_of_the_vocabulary(pbmc, files, vocabulary):
    together, first = gf.tokenize(files, vocabulary), gf.tokenize(files[0], vocabulary)
    ids = open_counts(files[0]).gene_ids
    expected = pbmc[:50].X.toarray()[:, [ids.index(gene) for gene in vocabulary.gene_ids]]
    np.testing.assert_array_equal(vocabulary_counts(first).toarray(), expected[:20])
    order = np.random.default_rng(0).permutation(50)
    for found in (vocabulary_counts, raw_counts):
        np.testing.assert_array_equal(found(together.select(order)).toarray(), expected[order])


@pytest.mark.parametrize("n", [1, 2])
def test_counts_that_change_while_they_are_read_are_refused(files, vocabulary, monkeypatch, n):
    cells = gf.tokenize(files[:n], vocabulary)

    def change_and_read(*arguments):
        files[0].write_bytes(files[0].read_bytes() + b"x")
        return counts_of(*arguments)

    monkeypatch.setattr(module, "counts_of", change_and_read)
    with pytest.raises(InputError, match=r"a\.h5ad: changed while it was read"):
        raw_counts(cells)
    if n == 1:
        with pytest.raises(InputError, match=r"a\.h5ad: changed while it was read"):
            raw_counts(cells, files[0])


def test_counts_of_genes_that_orthologs_led_to_are_not_at_hand(pbmc, vocabulary, caplog):
    ids = open_counts(pbmc).gene_ids
    mouse = pbmc.copy()
    mouse.var_names = [f"ENSMUSG{i:011d}" for i in range(pbmc.n_vars)]
    mouse.var = mouse.var[[]]
    cells = gf.tokenize(mouse, vocabulary, orthologs=dict(zip(mouse.var_names, ids, strict=True)))
    assert vocabulary_counts(cells, mouse) is None
    assert re.search(r"No raw counts at hand \(the table of orthologs.*is not kept\)", caplog.text)
    assert raw_counts(cells, mouse).shape == mouse.shape
