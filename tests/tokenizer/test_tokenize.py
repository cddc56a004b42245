import gzip
import hashlib
import logging
import os
import pathlib
import pickle
import re
import shutil
import signal
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import anndata as ad
import datasets
import h5py
import numpy as np
import pandas as pd
import parts
import psutil
import pyarrow as pa
import pytest
from forking import forked, kill, status_of
from joblib.externals.loky import reusable_executor
from joblib.externals.loky.backend import resource_tracker
from scipy.io import mmwrite
from scipy.sparse import coo_matrix, csc_matrix, csr_matrix, hstack, vstack

import geneformer_repro as gf
from geneformer_repro import sharing, unfinished
from geneformer_repro.errors import ChangedDataError, DataFormatError, InputError
from geneformer_repro.files import read_json, sha256
from geneformer_repro.sharing import by_processes
from geneformer_repro.tokenizer import corpus, matrices, part_rows, readers
from geneformer_repro.tokenizer import tokenize as module
from geneformer_repro.tokenizer.dataset import TokenizedDataset
from geneformer_repro.tokenizer.quality import CellFilter
from geneformer_repro.tokenizer.tokenize import tokenize
from geneformer_repro.tokenizer.vocabulary import Vocabulary

pytestmark = pytest.mark.slow

OBS = ["cell_type", "n_counts"]
FILES = ["data-000000.arrow", "dataset_info.json", "genes.tsv", "left_out.tsv", "spec.json", "state.json"]


def tokens_of(cells):
    return [tokens.tolist() for tokens in cells]


def listing(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def digests(folder):
    return {path.relative_to(folder).as_posix(): sha256(path) for path in folder.rglob("*") if path.is_file()}


def saved(adata, path, **options):
    adata.copy().write_h5ad(path, **options)
    return path


def assert_same_cells(found, expected):
    assert tokens_of(found) == tokens_of(expected)
    np.testing.assert_array_equal(found.lengths, expected.lengths)
    np.testing.assert_array_equal(found.cell_names, expected.cell_names)
    pd.testing.assert_frame_equal(found.obs, expected.obs)


def slow_tokens(adata, vocabulary, totals=None):
    """Gene by gene: value down, then place in the vocabulary; for an index of the vocabulary's own ids."""
    medians = dict(zip(vocabulary.gene_ids, vocabulary.medians, strict=True))
    tokens = dict(zip(vocabulary.gene_ids, vocabulary.tokens.tolist(), strict=True))
    before, after = ([vocabulary.special_tokens[t]] if vocabulary.has_cls else [] for t in ("<cls>", "<eos>"))
    found = []
    for i, row in enumerate(csr_matrix(adata.X).toarray().astype(np.float64)):
        total = row.sum() if totals is None else totals[i]
        values = [
            (-(count / total * 10_000 / medians[gene]), tokens[gene])
            for gene, count in zip(adata.var_names, row, strict=True)
            if count > 0 and gene in tokens
        ]
        ranked = [token for _, token in sorted(values)]
        found.append(before + ranked[: vocabulary.max_length - len(before) - len(after)] + after)
    return found


def cut_in_parts_of(monkeypatch, part, *, block=None):
    """Make small files be worked off as large ones are."""
    monkeypatch.setattr(corpus.parts_of, "__defaults__", (part,))
    if block:
        for module in (readers, matrices):
            monkeypatch.setattr(module, "BLOCK_CELLS", block)


@pytest.fixture(scope="module")
def h5ad(_pbmc, tmp_path_factory):
    """The blood cells as a file."""
    return saved(_pbmc, tmp_path_factory.mktemp("source") / "pbmc.h5ad")


@pytest.fixture(scope="module")
def plain(_pbmc, vocabulary):
    """The blood cells, tokenised in memory."""
    return tokenize(_pbmc, vocabulary, obs=OBS)


@pytest.fixture(scope="module")
def _written(h5ad, vocabulary, tmp_path_factory):
    out = tmp_path_factory.mktemp("written") / "cells.tok"
    tokenize(h5ad, vocabulary, out=out, obs=OBS)
    return out


@pytest.fixture
def written(_written, tmp_path):
    """A folder that tokenize wrote; a copy, to be damaged at will."""
    return shutil.copytree(_written, tmp_path / "cells.tok")


@pytest.fixture(scope="module")
def published(shared):
    """The folder of the published tokenizer's results, and its vocabulary."""
    folder = shared / "golden" / "published_v1"
    return folder, Vocabulary.load(folder)


# the published results


@pytest.mark.parametrize(("where", "block"), [("file", None), ("memory", 17), ("out", 17)])
def test_tokens_are_the_published_ones_cell_for_cell(published, tmp_path, monkeypatch, where, block):
    if block:
        cut_in_parts_of(monkeypatch, 2 * block, block=block)
    folder, vocabulary = published
    source = folder / "cells.h5ad"
    out = tmp_path / "out" if where == "out" else None
    found = tokenize(ad.read_h5ad(source) if where == "memory" else source, vocabulary, out=out)
    expected = pd.read_parquet(folder / "tokens.parquet")
    np.testing.assert_array_equal(found.cell_names, expected["cell"])
    for tokens, published_tokens in zip(found, expected["input_ids"], strict=True):
        np.testing.assert_array_equal(tokens, published_tokens)


def test_the_published_tokens_open_as_those_made_here(published):
    folder, vocabulary = published
    made, opened = (
        tokenize(folder / "cells.h5ad", vocabulary),
        TokenizedDataset.open(folder / "tokens.parquet", vocabulary),
    )
    assert_same_cells(opened, made)


# all real sets


NO_COUNTS = (
    "gse3143",
    "gse4335",
    "melanoma_ici",
    "oligodendroglioma",
    "pdxe_expression",
    "tcga_50_allgenes",
    "tcga_rsem_4",
)
COUNTS = (
    "cardio_differentiation",
    "datlinger_jurkat",
    "gbm_panobinostat",
    "kang_ifnb",
    "lung_lines_mixology",
    "pbmc14k_sorted",
    "pbmc3k",
    "pbmc_donorA",
    "pretrain_extra",
)
ELSEWHERE = ("aml_vangalen", "tcga_lusc_counts")
"""Counts with hundreds of former symbols, and of bulk samples."""

FORMER = {"ITFG3": "ENSG00000167930", "SEPT1": "ENSG00000180096"}
"""Genes of these sets that are named by a former symbol, with the ids of FAM234A and SEPTIN1 as in GENCODE 44."""


def test_every_real_set_is_tried_here(shared):
    assert {path.stem for path in shared.glob("data/*/*.h5ad")} == {*COUNTS, *NO_COUNTS, *ELSEWHERE}


@pytest.mark.parametrize("name", COUNTS)
def test_real_counts_are_tokenised_with_the_published_vocabulary(shared, published, name):
    path, vocabulary = shared / "data" / name / f"{name}.h5ad", published[1]
    adata = ad.read_h5ad(path)
    cells = tokenize(path, vocabulary)
    assert cells.cell_names.tolist() == adata.obs_names.tolist()
    rows = np.linspace(0, adata.n_obs - 1, 4).astype(int)
    some = ad.AnnData(csr_matrix(adata.X[rows]), var=pd.DataFrame(index=[FORMER.get(g, g) for g in adata.var_names]))
    totals = adata.obs["n_counts"].to_numpy(dtype=np.float64)[rows]
    assert [cells[i].tolist() for i in rows] == slow_tokens(some, vocabulary, totals)
    assert cells.spec["genes"]["mapped"]["genes"] == adata.var_names.isin(FORMER).sum()


@pytest.mark.parametrize("name", NO_COUNTS)
def test_real_values_that_are_no_counts_are_refused_and_leave_nothing(shared, published, tmp_path, name):
    message = rf"{name}\.h5ad: X holds (fractional|negative) values \(first: cell .*needs raw counts\. No other"
    (path,) = (shared / "data").glob(f"*/{name}.h5ad")
    with pytest.raises(DataFormatError, match=message):
        tokenize(path, published[1], out=tmp_path / "out")
    assert listing(tmp_path) == []


def test_nearly_empty_cells_are_tokenised_and_those_without_a_known_gene_listed(shared, published, tmp_path):
    path, vocabulary = shared / "data" / "datlinger_jurkat" / "datlinger_jurkat.h5ad", published[1]
    adata = ad.read_h5ad(path)
    half = Vocabulary.from_tokens(
        {**vocabulary.special_tokens, **dict(zip(vocabulary.gene_ids[::9], vocabulary.tokens[::9], strict=True))},
        dict(zip(vocabulary.gene_ids, vocabulary.medians, strict=True)),
    )
    found = tokenize(path, half, out=tmp_path / "out", min_known_share=0)
    n_genes = csr_matrix(adata[:, adata.var_names.isin(half.gene_ids)].X).getnnz(axis=1)
    assert 0 < (n_genes == 0).sum() < adata.n_obs
    np.testing.assert_array_equal(found.lengths, n_genes[n_genes > 0])
    left_out = pd.read_csv(tmp_path / "out" / "left_out.tsv", sep="\t")
    assert left_out["cell"].tolist() == adata.obs_names[n_genes == 0].tolist()
    assert set(left_out["why"]) == {"no known gene"}
    assert found.spec["left_out"] == {"no known gene": (n_genes == 0).sum()}


# the same counts in another container


def quietly(write, *arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write(*arguments, **options)


def as_h5ad(form=lambda x: x, **options):
    def write(adata, folder):
        adata.X = form(adata.X)
        return saved(adata, folder / "x.h5ad", **options)

    return write


def as_zarr(form=lambda x: x):
    def write(adata, folder):
        adata.X = form(adata.X)
        quietly(adata.write_zarr, folder / "x.zarr")
        return folder / "x.zarr"

    return write


def in_layer(form):
    def write(adata, folder):
        adata.layers["counts"], adata.X = form(adata.X), adata.X * np.float32(0.1)
        return saved(adata, folder / "x.h5ad")

    return write


def in_raw(adata, folder):
    adata.raw, adata.X = adata, adata.X * np.float32(0.1)
    return saved(adata, folder / "x.h5ad")


def as_loom(adata, folder):
    with h5py.File(folder / "x.loom", "w") as file:
        file["matrix"] = adata.X.toarray().T
        file["row_attrs/Accession"] = np.array(adata.var_names, dtype="S")
        file["row_attrs/Gene"] = np.array(adata.var["gene_name"], dtype="S")
        file["col_attrs/CellID"] = np.array(adata.obs_names, dtype="S")
        file.create_group("layers")
    return folder / "x.loom"


def as_tenx_h5(version):
    def write(adata, folder):
        with h5py.File(folder / "x.h5", "w") as file:
            root = file.create_group("matrix" if version == 3 else "GRCh38")
            for name in ("data", "indices", "indptr"):
                root[name] = getattr(adata.X, name).astype(np.int32 if name == "data" else np.int64)
            root["shape"], root["barcodes"] = adata.shape[::-1], np.array(adata.obs_names, dtype="S")
            ids, names = (np.array(column, dtype="S") for column in (adata.var_names, adata.var["gene_name"]))
            if version == 3:
                root["features/id"], root["features/name"] = ids, names
                root["features/feature_type"] = np.array(["Gene Expression"] * adata.n_vars, dtype="S")
            else:
                root["genes"], root["gene_names"] = ids, names
        return folder / "x.h5"

    return write


def as_mtx(features="features", gz=True, order=lambda entries: entries):
    def write(adata, folder):
        entries = coo_matrix(adata.X.T)
        places = order(np.lexsort((entries.row, entries.col)))
        matrix = coo_matrix(
            (entries.data[places].astype(np.int64), (entries.row[places], entries.col[places])), entries.shape
        )
        (folder / "x").mkdir()
        mmwrite(folder / "x" / "matrix.mtx", matrix, field="integer", symmetry="general")
        rows = zip(adata.var_names, adata.var["gene_name"], strict=True)
        kind = "\tGene Expression" if features == "features" else ""
        (folder / "x" / f"{features}.tsv").write_text("".join(f"{gene}\t{name}{kind}\n" for gene, name in rows))
        (folder / "x" / "barcodes.tsv").write_text("".join(f"{name}\n" for name in adata.obs_names))
        for path in list((folder / "x").iterdir()) if gz else ():
            path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
        return folder / "x"

    return write


def backed(adata, folder):
    return ad.read_h5ad(saved(adata, folder / "x.h5ad"), backed="r")


def in_memory(form=lambda x: x):
    def make(adata, folder):
        adata.X = form(adata.X)
        return adata

    return make


def memory_layer(adata, folder):
    adata.layers["counts"], adata.X = csc_matrix(adata.X), adata.X * np.float32(0.1)
    return adata


def memory_raw(adata, folder):
    adata.raw, adata.X = adata, adata.X * np.float32(0.1)
    return adata


def view(adata, folder):
    again = np.arange(2 * adata.n_obs) // 2
    return ad.AnnData(adata.X[again], var=adata.var, obs=adata.obs.iloc[again].set_index(again.astype(str)))[::2]


dense = csr_matrix.toarray
CONTAINERS = [  # test_readers.py reads all there are
    pytest.param(as_h5ad(), {}, id="h5ad_csr"),
    pytest.param(as_h5ad(csc_matrix), {}, id="h5ad_csc"),
    pytest.param(in_layer(dense), {"layer": "counts"}, id="h5ad_layer_dense"),
    pytest.param(in_raw, {"layer": "raw"}, id="h5ad_raw"),
    pytest.param(as_zarr(), {}, id="zarr_csr"),
    pytest.param(as_loom, {}, id="loom"),
    pytest.param(as_tenx_h5(3), {}, id="tenx_h5_v3"),
    pytest.param(as_mtx(), {}, id="mtx_gz"),
    pytest.param(as_mtx(order=np.random.default_rng(0).permutation), {}, id="mtx_unsorted"),
    pytest.param(backed, {}, id="backed"),
    pytest.param(in_memory(csc_matrix), {}, id="memory_csc"),
]


@pytest.mark.parametrize(("make", "options"), CONTAINERS)
def test_neither_container_nor_size_of_blocks_changes_the_tokens(
    pbmc, vocabulary, tmp_path, monkeypatch, make, options
):
    few = pbmc[:60].copy()
    few.obs = few.obs[[]]  # a 10x file holds no totals
    expected = slow_tokens(few, vocabulary)
    cut_in_parts_of(monkeypatch, 38, block=19)
    source = make(few.copy(), tmp_path)
    found = tokenize(source, vocabulary, **options)
    assert tokens_of(found) == expected
    assert found.cell_names.tolist() == few.obs_names.tolist()
    if isinstance(source, ad.AnnData) and source.isbacked:
        source.file.close()


def test_a_view_gives_the_same_tokens(pbmc, vocabulary, plain):
    rows = np.arange(0, 700, 3)
    assert_same_cells(tokenize(pbmc[rows], vocabulary, obs=OBS), plain.select(rows))


def with_ids_in(adata, column):
    adata.var[column] = adata.var_names
    adata.var_names = [f"gene{i}" for i in range(adata.n_vars)]
    return adata


def split_genes(adata):
    """Every gene as two columns of one id, its counts shared between them."""
    half = csr_matrix((np.floor(adata.X.data / 2), adata.X.indices, adata.X.indptr), adata.shape)
    ids = list(adata.var_names) * 2
    var = pd.DataFrame({"ensembl_id": ids}, index=[str(i) for i in range(len(ids))])
    return ad.AnnData(csr_matrix(hstack([half, adata.X - half])), obs=adata.obs, var=var)


def renamed(adata, names):
    adata.var_names = names
    adata.var = adata.var[[]]
    return adata


SAME = [
    pytest.param(lambda a: with_ids_in(a, "ensembl_id"), {}, id="ids_in_ensembl_id"),
    pytest.param(lambda a: with_ids_in(a, "other"), {"gene_ids": "other"}, id="ids_in_another_column"),
    pytest.param(lambda a: with_ids_in(a, "other"), {}, id="ids_found_in_another_column"),
    pytest.param(lambda a: a[:, ::-1].copy(), {}, id="genes_backwards"),
    pytest.param(lambda a: a[:, sorted(a.var_names, key=lambda gene: gene[::-1])].copy(), {}, id="genes_shuffled"),
    pytest.param(split_genes, {}, id="genes_in_two_columns"),
    pytest.param(lambda a: renamed(a, a.var_names + ".12"), {}, id="ids_with_versions"),
    pytest.param(lambda a: renamed(a, a.var_names.str.lower()), {}, id="ids_in_lower_case"),
    pytest.param(lambda a: renamed(a, a.var["gene_name"]), {}, id="symbols"),
    pytest.param(
        lambda a: renamed(a, [a.var["gene_name"].iloc[i] if i % 2 else a.var_names[i] for i in range(a.n_vars)]),
        {},
        id="symbols_and_ids",
    ),
]


@pytest.mark.parametrize(("change", "options"), SAME)
def test_the_naming_of_the_genes_does_not_change_the_tokens(pbmc, vocabulary, plain, tmp_path, change, options):
    adata = change(pbmc[:200].copy())
    source = saved(adata, tmp_path / "x.h5ad")
    assert_same_cells(tokenize(source, vocabulary, obs=OBS, **options), plain.select(range(200)))


def beside(adata, **var):
    """The cells with as many rows again, of 1 to 3 counts, described by columns of var."""
    counts = csr_matrix(np.tile(np.arange(adata.n_vars) % 3 + 1, (adata.n_obs, 1)).astype(np.float32))
    del adata.obs["n_counts"]
    table = pd.DataFrame(var, index=[*adata.var_names, *(f"row {i}" for i in range(adata.n_vars))])
    return ad.AnnData(hstack([adata.X, counts], format="csr"), obs=adata.obs, var=table)


def test_what_is_no_gene_is_named_and_changes_nothing(pbmc, vocabulary, tmp_path, caplog):
    adata = beside(pbmc, feature_types=np.repeat(["Gene Expression", "Antibody Capture"], pbmc.n_vars))
    with caplog.at_level(logging.INFO):
        cells = tokenize(adata, vocabulary, out=tmp_path / "cells")
    assert tokens_of(cells) == tokens_of(tokenize(pbmc, vocabulary))
    assert f"0 unknown (0.0 %), {pbmc.n_vars} Antibody Capture left out" in caplog.text
    genes = pd.read_csv(tmp_path / "cells" / "genes.tsv", sep="\t")
    others = genes[genes["outcome"] == "left out"]
    assert others["by"].unique().tolist() == ["Antibody Capture"]
    assert others["counts"].isna().all()
    assert cells.spec["n_genes"] == pbmc.n_vars
    assert cells.spec["no_genes"] == {"Antibody Capture": pbmc.n_vars}
    assert f"No genes: {pbmc.n_vars} Antibody Capture (genes.tsv)" in cells.summary()
    assert cells.spec["share_of_counts_known"] == 1.0


@pytest.mark.parametrize("told_by", ["prefix", "column"])
def test_of_several_genomes_that_of_the_vocabulary_is_read_and_cells_of_the_other_are_listed(
    pbmc, vocabulary, tmp_path, told_by
):
    """Human and mouse cells in one run; C3 and others are symbols of both."""
    names = pbmc.var["gene_name"].to_list()
    n_human = pbmc.n_obs
    mouse = vstack([csr_matrix(pbmc.shape), pbmc.X])
    ambient = vstack([pbmc.X, (pbmc.X > 2).astype(np.float32)])
    var = pd.DataFrame({"symbol": [*names, *names], "genome": np.repeat(["GRCh38", "mm10"], len(names))})
    var.index = [f"GRCh38_{name}" for name in names] + [f"mm10___{name}" for name in names]
    if told_by == "prefix":
        del var["genome"]
    barnyard = ad.AnnData(hstack([ambient, mouse], format="csr").astype(np.float32), var=var)
    cells = tokenize(barnyard, vocabulary, out=tmp_path / "cells", gene_ids="symbol" if told_by == "column" else None)
    del pbmc.obs["n_counts"]  # which are of other genes too, and decide ties by rounding
    assert tokens_of(cells) == tokens_of(tokenize(pbmc, vocabulary))
    assert cells.spec["left_out"] == {"another genome": n_human, "no known gene": 0}
    genes = pd.read_csv(tmp_path / "cells" / "genes.tsv", sep="\t")
    assert genes["by"][genes["outcome"] == "left out"].unique().tolist() == ["genome mm10"]


def test_a_link_that_leads_nowhere_is_left_out_of_several(pbmc, vocabulary, plain, tmp_path):
    saved(pbmc, tmp_path / "there.h5ad")
    (tmp_path / "gone.h5ad").symlink_to("nothing.h5ad")
    cells = tokenize(tmp_path, vocabulary)
    assert tokens_of(cells) == tokens_of(plain)
    assert "gone.h5ad: a link that leads nowhere (nothing.h5ad)" in cells.spec["failed"][0]["error"]
    with pytest.raises(InputError, match="a link that leads nowhere"):
        tokenize(tmp_path / "gone.h5ad", vocabulary)


def test_blank_ids_are_led_by_name(pbmc, vocabulary, plain):
    few = pbmc[:50].copy()
    few.var["ensembl_id"] = ["" if i % 3 else gene for i, gene in enumerate(few.var_names)]
    few.var_names = [f"row{i}" for i in range(few.n_vars)]
    assert_same_cells(tokenize(few, vocabulary, obs=OBS), plain.select(range(50)))


def test_a_path_may_be_a_string(h5ad, vocabulary, plain, tmp_path):
    assert_same_cells(tokenize(str(h5ad), vocabulary, out=str(tmp_path / "out"), obs=OBS), plain)
    assert_same_cells(TokenizedDataset.open(str(tmp_path / "out")), plain)


def test_what_is_written_is_what_is_made_in_memory(written, plain):
    assert_same_cells(TokenizedDataset.open(written), plain)


def test_what_tokenize_returns_is_what_open_opens(pbmc, vocabulary, plain, tmp_path):
    assert_same_cells(tokenize(pbmc, vocabulary, out=tmp_path / "out", obs=OBS), plain)


@pytest.mark.parametrize("factor", [7, 1000])
def test_counts_times_a_constant_give_the_same_tokens(pbmc, vocabulary, factor):
    few = pbmc[:200].copy()
    many = few.copy()
    many.X, many.obs["n_counts"] = few.X * factor, few.obs["n_counts"] * factor
    assert_same_cells(tokenize(many, vocabulary), tokenize(few, vocabulary))


def test_the_order_of_cells_is_that_of_the_source(pbmc, vocabulary, plain):
    assert_same_cells(tokenize(pbmc[::-1], vocabulary, obs=OBS), plain.select(np.arange(700)[::-1]))


def test_a_cell_is_tokenised_alone_as_among_others(pbmc, vocabulary, plain):
    for i in (0, 350, 699):
        assert tokens_of(tokenize(pbmc[i], vocabulary)) == [plain[i].tolist()]


def test_genes_that_the_vocabulary_lacks_are_left_out(pbmc, plain):
    fewer = Vocabulary.fit(pbmc[:, :500])
    kept = set(fewer.gene_ids)
    found = tokenize(pbmc[:50], fewer)
    assert [found.genes(i) for i in range(50)] == [[gene for gene in plain.genes(i) if gene in kept] for i in range(50)]


def half_of(vocabulary, factor=1.0):
    """Every second gene, with its median times a factor."""
    genes = vocabulary.gene_ids[::2]
    tokens = dict(vocabulary.special_tokens) | {gene: 4 + i for i, gene in enumerate(genes)}
    return Vocabulary.from_tokens(tokens, dict(zip(genes, vocabulary.medians[::2] * factor, strict=True)))


@pytest.mark.parametrize("given", ["n_counts", "sum"])
def test_cells_are_scaled_by_all_their_counts_also_those_of_unknown_genes(pbmc, vocabulary, given):
    half = half_of(vocabulary)
    totals = pbmc.obs["n_counts"].to_numpy()
    if given == "sum":
        del pbmc.obs["n_counts"]
        totals = pbmc.X.sum(axis=1, dtype=np.float64).A1
    assert tokens_of(tokenize(pbmc[:60], half, min_known_share=0)) == slow_tokens(pbmc[:60], half, totals)


# conventions


@pytest.mark.parametrize("max_length", [None, 100])
def test_v2_cells_are_v1_cells_between_cls_and_eos(pbmc, max_length):
    v1, v2 = (Vocabulary.fit(pbmc, series=series, max_length=max_length) for series in ("V1", "V2"))
    room = v2.max_length - 2
    for first, second in zip(tokenize(pbmc, v1), tokenize(pbmc, v2), strict=True):
        assert second.tolist() == [2, *(first[:room] + 2), 3]


@pytest.mark.parametrize(("series", "wrapping"), [("V1", 0), ("V2", 2)])
def test_long_cells_are_cut_and_counted(pbmc, series, wrapping):
    vocabulary = Vocabulary.fit(pbmc, series=series, max_length=250)
    cells = tokenize(pbmc, vocabulary)
    n_genes = np.diff(pbmc.X.indptr)
    np.testing.assert_array_equal(cells.lengths, np.minimum(n_genes + wrapping, 250))
    assert cells.spec["n_cropped"] == (n_genes + wrapping > 250).sum() > 0


def test_every_row_says_its_length(plain):
    np.testing.assert_array_equal(plain.lengths, [len(tokens) for tokens in plain])


def test_no_gene_stands_twice_in_a_cell(plain):
    assert all(len(set(tokens)) == len(tokens) for tokens in tokens_of(plain))


@pytest.mark.parametrize(("largest", "kind"), [(255, "uint8"), (256, "uint16"), (65_535, "uint16"), (65_536, "uint32")])
def test_tokens_are_stored_in_the_smallest_type_that_holds_them(pbmc, largest, kind):
    genes = pbmc.var_names[:200]
    tokens = {"<pad>": 0, "<mask>": 1} | {gene: largest - 199 + i for i, gene in enumerate(genes)}
    cells = tokenize(
        pbmc[:20], Vocabulary.from_tokens(tokens, dict.fromkeys(genes, 1.0)), min_known_share=0, uncropped=True
    )
    assert max(map(max, tokens_of(cells))) <= largest
    assert [cells.table.features[c].feature.dtype for c in ("input_ids", "input_ids_uncropped")] == [kind, kind]


# several sources


@pytest.fixture
def three(pbmc, tmp_path):
    """Three sources of different containers, genes and sizes."""
    folder = tmp_path / "in"
    folder.mkdir()
    a, b, c = pbmc[:110].copy(), pbmc[110:160, ::-1].copy(), pbmc[160:170, 100:].copy()
    b.X = csc_matrix(b.X)
    quietly(b.write_zarr, folder / "b.zarr")
    return {"a.h5ad": a, "b.zarr": b, "deep/c.h5ad": c}, [
        saved(a, folder / "a.h5ad"),
        folder / "b.zarr",
        saved(c, made(folder / "deep") / "c.h5ad"),
    ]


def made(folder):
    folder.mkdir()
    return folder


@pytest.mark.parametrize("block", [None, 40])
def test_several_sources_are_each_alone_one_after_the_other(three, vocabulary, monkeypatch, block):
    adatas, paths = three
    if block:
        cut_in_parts_of(monkeypatch, block, block=block)
    found = tokenize(paths, vocabulary, obs=OBS)
    alone = [tokenize(path, vocabulary, obs=OBS) for path in paths]
    assert tokens_of(found) == [tokens for cells in alone for tokens in tokens_of(cells)]
    pd.testing.assert_frame_equal(found.obs[OBS], pd.concat([cells.obs for cells in alone]))
    assert found.obs["source"].tolist() == [label for label, adata in adatas.items() for _ in range(adata.n_obs)]
    assert found.spec["n_cells"] == len(found) == 170
    assert [one["name"] for one in found.spec["sources"]] == list(adatas)
    assert [one["n_cells_kept"] for one in found.spec["sources"]] == [110, 50, 10]


def test_a_folder_a_glob_and_a_list_are_the_same_sources(three, vocabulary, tmp_path):
    _, paths = three
    folder = tmp_path / "in"
    globs = [str(folder / "*.h5ad"), folder / "b.*", str(folder / "*" / "*.h5ad")]
    expected = tokenize(paths, vocabulary)
    for several in (folder, globs, tuple(str(path) for path in paths)):
        assert_same_cells(tokenize(several, vocabulary), expected)


def test_anndata_objects_and_files_may_be_mixed(three, vocabulary):
    adatas, paths = three
    found = tokenize([adatas["a.h5ad"], paths[1], adatas["deep/c.h5ad"]], vocabulary)
    assert tokens_of(found) == tokens_of(tokenize(paths, vocabulary))
    assert found.obs["source"].unique().tolist() == ["AnnData 0", "b.zarr", "AnnData 2"]


def test_a_single_source_has_no_column_source(plain):
    assert "source" not in plain.table.column_names


def test_names_that_repeat_across_sources_become_source_and_name_and_join_back(pbmc, vocabulary, tmp_path):
    paths = [saved(pbmc[:20], tmp_path / "a.h5ad"), saved(pbmc[10:25], tmp_path / "b.h5ad")]
    cells = tokenize(paths, vocabulary, out=tmp_path / "out")
    names = [f"a.h5ad/{name}" for name in pbmc.obs_names[:20]] + [f"b.h5ad/{name}" for name in pbmc.obs_names[10:25]]
    assert cells.cell_names.tolist() == cells.obs.index.tolist() == names
    assert cells.table["cell"][:] == [*pbmc.obs_names[:20], *pbmc.obs_names[10:25]]
    assert cells.spec["cell_names_unique"] is False
    assert tokens_of(cells)[10:20] == tokens_of(cells)[20:30]


def test_names_that_do_not_repeat_stay_as_they_are(three, vocabulary):
    adatas, paths = three
    cells = tokenize(paths, vocabulary)
    assert cells.cell_names.tolist() == [name for adata in adatas.values() for name in adata.obs_names]
    assert cells.spec["cell_names_unique"] is True


def test_a_column_named_source_is_refused_where_there_are_several(pbmc, vocabulary, tmp_path):
    pbmc.obs["source"] = "x"
    paths = [saved(pbmc[:20], tmp_path / "a.h5ad"), saved(pbmc[20:30], tmp_path / "b.h5ad")]
    assert tokenize(paths[0], vocabulary, obs=["source"]).obs["source"].tolist() == ["x"] * 20
    with pytest.raises(InputError, match=r"a\.h5ad: the obs column 'source' has the name of a column of the dataset"):
        tokenize(paths, vocabulary, obs=["source"])


# obs columns

N = 4
COLUMNS = {
    "text": (["a", "b", "a", "c"], ["a", "b", "a", "c"]),
    "categorical": (pd.Categorical(["a", "b", "a", "c"]), ["a", "b", "a", "c"]),
    "categorical_of_numbers": (pd.Categorical([3, 1, 3, 2]), ["3", "1", "3", "2"]),
    "categorical_with_missing": (pd.Categorical(["a", None, "a", "c"]), ["a", None, "a", "c"]),
    "text_with_missing": (["a", None, "a", "c"], ["a", None, "a", "c"]),
    "bool": ([True, False, True, True], [True, False, True, True]),
    "int": ([1, -2, 3, 2**40], [1, -2, 3, 2**40]),
    "int8": (np.array([1, 2, 3, -4], dtype=np.int8), [1, 2, 3, -4]),
    "uint32": (np.array([1, 2, 3, 2**32 - 1], dtype=np.uint32), [1, 2, 3, 2**32 - 1]),
    "float": ([0.1, -2.0, 3.5, 1e300], [0.1, -2.0, 3.5, 1e300]),
    "float32": (np.array([0.5, 1, 2, 3], dtype=np.float32), [0.5, 1.0, 2.0, 3.0]),
    "float_with_missing": ([0.1, np.nan, 3.5, 1.0], [0.1, None, 3.5, 1.0]),
    "nullable_int": (pd.array([1, 2, 3, 4], dtype="Int64"), [1, 2, 3, 4]),
    "nullable_int_with_missing": (pd.array([1, None, 3, 4], dtype="Int64"), [1, None, 3, 4]),
    "nullable_bool_with_missing": (pd.array([True, None, False, True], dtype="boolean"), [True, None, False, True]),
    "all_missing": ([np.nan] * N, [None] * N),
    "mixed": (["a", 1, 2.5, True], ["a", "1", "2.5", "True"]),
    "dates": (pd.to_datetime(["2020-01-01"] * N), ["2020-01-01T00:00:00"] * N),
}
NOT_IN_H5AD = ("mixed", "dates")


@pytest.mark.parametrize("where", ["memory", "file"])
def test_numbers_stay_numbers_and_anything_else_becomes_text(pbmc, vocabulary, tmp_path, monkeypatch, where):
    cut_in_parts_of(monkeypatch, 3, block=3)
    kinds = [kind for kind in COLUMNS if not (where == "file" and kind in NOT_IN_H5AD)]
    adata = pbmc[:N].copy()
    for kind in kinds:
        adata.obs[kind] = COLUMNS[kind][0]
    cells = tokenize(saved(adata, tmp_path / "x.h5ad") if where == "file" else adata, vocabulary, obs=kinds)
    for kind in kinds:
        found, expected = cells.table[kind][:], COLUMNS[kind][1]
        assert found == expected, kind
        assert list(map(type, found)) == list(map(type, expected)), kind


def test_the_text_of_dates_does_not_depend_on_the_size_of_blocks(pbmc, vocabulary, monkeypatch):
    few = pbmc[:N].copy()
    few.obs["x"] = pd.to_datetime(["2020-01-01 00:00", "2020-01-02 00:00", "2020-01-03 10:30", "2020-01-04 00:00"])
    whole = tokenize(few, vocabulary, obs=["x"]).obs["x"].tolist()
    cut_in_parts_of(monkeypatch, 2, block=2)
    assert tokenize(few, vocabulary, obs=["x"]).obs["x"].tolist() == whole


TWO_SOURCES = {
    "int_and_float": ([1, 2], [0.5, np.nan], "float64", [1.0, 2.0, 0.5, None]),
    "float_and_int": ([0.5, 1.5], [1, 2], "float64", [0.5, 1.5, 1.0, 2.0]),
    "int8_and_int64": (np.array([1, 2], np.int8), [2**40, 3], "int64", [1, 2, 2**40, 3]),
    "bool_and_int": ([True, False], [2, 3], "int64", [1, 0, 2, 3]),
    "bool_and_float": ([True, False], [0.5, 3], "float64", [1.0, 0.0, 0.5, 3.0]),
    "nullable_int_and_float": (pd.array([1, None], dtype="Int64"), [0.5, 1], "float64", [1.0, None, 0.5, 1.0]),
    "nullable_bool_and_int": (pd.array([True, None], dtype="boolean"), [0, 1], "int64", [1, None, 0, 1]),
    "int_and_text": ([1, 2], ["a", "b"], "string", ["1", "2", "a", "b"]),
    "float_and_text": ([0.5, np.nan], ["a", "b"], "string", ["0.5", None, "a", "b"]),
    "bool_and_category": ([True, False], pd.Categorical(["a", None]), "string", ["True", "False", "a", None]),
    "category_and_int": (pd.Categorical([7, 8]), [1, 2], "string", ["7", "8", "1", "2"]),
}


def test_a_column_of_two_types_in_two_sources_gets_one_that_holds_both(pbmc, vocabulary, tmp_path):
    paths = []
    for i, cells in enumerate((slice(0, 2), slice(2, 4))):
        adata = pbmc[cells].copy()
        for kind, values in TWO_SOURCES.items():
            adata.obs[kind] = values[i]
        paths.append(saved(adata, tmp_path / f"{i}.h5ad"))
    found = tokenize(paths, vocabulary, obs=list(TWO_SOURCES), out=tmp_path / "out")
    for kind, (_, _, dtype, expected) in TWO_SOURCES.items():
        assert found.table[kind][:] == expected, kind
        assert found.table.features[kind].dtype == dtype, kind


@pytest.mark.parametrize(
    "values",
    [
        pytest.param(np.array([1, 2**63 + 5, 3, 4], dtype=np.uint64), id="beyond_int64"),
        pytest.param(np.array([1j, 2, 3, 4]), id="complex"),
    ],
)
def test_numbers_that_no_type_holds_are_refused_by_name_and_leave_nothing(pbmc, vocabulary, tmp_path, values):
    few = pbmc[:N].copy()
    few.obs["x"] = values
    with pytest.raises(InputError, match="'x'"):
        tokenize(few, vocabulary, obs=["x"], out=tmp_path / "out")
    assert listing(tmp_path) == []


def test_missing_numbers_and_text_are_missing_in_obs(pbmc, vocabulary):
    adata = pbmc[:N].copy()
    adata.obs["number"], adata.obs["text"] = COLUMNS["float_with_missing"][0], COLUMNS["text_with_missing"][0]
    found = tokenize(adata, vocabulary, obs=["number", "text"]).obs
    assert found.isna().to_numpy().tolist() == [[False] * 2, [True] * 2, [False] * 2, [False] * 2]


def test_columns_come_in_the_order_they_are_asked_for(pbmc, vocabulary):
    cells = tokenize(pbmc[:3], vocabulary, obs=["phase", "cell_type", "phase"])
    assert cells.obs_columns == ["phase", "cell_type"]


def test_no_column_is_carried_along_unasked(pbmc, vocabulary):
    assert tokenize(pbmc[:3], vocabulary).obs_columns == []


def test_a_single_name_is_not_read_letter_by_letter(pbmc, vocabulary):
    with pytest.raises(InputError, match=r"obs=.*'cell_type'"):
        tokenize(pbmc, vocabulary, obs="cell_type")


@pytest.mark.parametrize("name", ["cell", "length", "input_ids", "input_ids_uncropped", "length_uncropped"])
def test_a_column_named_like_one_of_the_dataset_is_refused(pbmc, vocabulary, name):
    pbmc.obs[name] = 1
    message = rf"the obs column '{name}' has the name of a column of the dataset; rename it first"
    with pytest.raises(InputError, match=message):
        tokenize(pbmc, vocabulary, obs=[name])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"obs": ["celltype"]}, r"c\.h5ad: obs has no column 'celltype'\. There are", id="obs"),
        pytest.param({"layer": "count"}, "there is no layer 'count'", id="layer"),
        pytest.param({"gene_ids": "id"}, "var has no column 'id'", id="gene_ids"),
        pytest.param({"cell_filter": CellFilter(filter_pass=True)}, "no column 'filter_pass'", id="filter_pass"),
        pytest.param({"workers": 0}, "workers must be a whole number of at least 1, found 0", id="workers"),
        pytest.param({"min_known_share": 1.5}, "min_known_share is a share between 0 and 1, found 1.5", id="share"),
        pytest.param({"orthologs": "absent.tsv"}, r"absent\.tsv: cannot be read", id="orthologs"),
    ],
)
def test_what_does_not_fit_one_of_the_sources_is_refused_before_the_work(
    pbmc, vocabulary, tmp_path, monkeypatch, options, message
):
    monkeypatch.setattr(module.Tokenisation, "run", lambda *_, **__: pytest.fail("the work began"))
    pbmc.obs["celltype"] = 1
    paths = [saved(pbmc[:9], tmp_path / "a.h5ad"), saved(pbmc[9:20], tmp_path / "b.h5ad"), tmp_path / "c.h5ad"]
    del pbmc.obs["celltype"]
    pbmc.obs = pbmc.obs[["phase", "n_counts"]]
    saved(pbmc[20:30], paths[2])
    before = listing(tmp_path)
    with pytest.raises(InputError, match=message):
        tokenize(paths, vocabulary, out=tmp_path / "out", **options)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("options", [{"workers": 2}, {"ray": True}], ids=["workers", "ray"])
@pytest.mark.parametrize(
    ("where", "message"),
    [("memory", "cannot read an AnnData in memory. Write it to"), ("file", "Several workers write files; give out=")],
)
def test_work_that_cannot_be_shared_out_is_refused(pbmc, h5ad, vocabulary, tmp_path, options, where, message):
    source, out = (pbmc, tmp_path / "out") if where == "memory" else (h5ad, None)
    with pytest.raises(InputError, match=message):
        tokenize(source, vocabulary, out=out, **options)
    assert listing(tmp_path) == []


# options


@pytest.mark.parametrize("series", ["V1", "V2"])
def test_uncropped_ids_are_all_ranked_genes_and_nothing_else(pbmc, tmp_path, series):
    short = Vocabulary.fit(pbmc, series=series, max_length=50)
    long = Vocabulary.fit(pbmc, series=series)
    cells, whole = tokenize(pbmc, short, uncropped=True, out=tmp_path / "out"), tokenize(pbmc, long)
    wrapping = 1 if series == "V2" else 0
    ranked = [tokens[wrapping : len(tokens) - wrapping] for tokens in tokens_of(whole)]
    assert cells.table["input_ids_uncropped"][:] == ranked
    assert cells.table["length_uncropped"][:] == list(map(len, ranked))
    assert tokens_of(cells) == tokens_of(tokenize(pbmc, short))
    assert cells.obs_columns == []


def test_filters_take_what_pandas_takes_and_say_how_many(pbmc, vocabulary, tmp_path, monkeypatch):
    cut_in_parts_of(monkeypatch, 100, block=50)
    pbmc.obs["filter_pass"] = np.arange(700) % 10 > 0
    counts, n_genes = pbmc.obs["n_counts"], pd.Series(np.diff(pbmc.X.indptr), pbmc.obs_names)
    few, many = float(counts.quantile(0.1)), int(n_genes.quantile(0.98))
    asked = CellFilter(filter_pass=True, min_counts=few, max_genes=many, counts_within_sd=2)
    cells = tokenize(pbmc, vocabulary, cell_filter=asked, out=tmp_path / "out")
    failed = pd.DataFrame(
        {
            "filter_pass": ~pbmc.obs["filter_pass"],
            "min_counts": counts < few,
            "max_genes": n_genes > many,
            "counts_within_sd": (counts - counts.mean()).abs() > 2 * counts.std(ddof=0),
        }
    )
    first = failed.idxmax(axis=1).where(failed.any(axis=1)).dropna()
    assert first.nunique() == 4
    assert cells.cell_names.tolist() == pbmc.obs_names[~failed.any(axis=1)].tolist()
    table = pd.read_csv(tmp_path / "out" / "left_out.tsv", sep="\t")
    assert table["cell"].tolist() == first.index.tolist()
    assert table["why"].tolist() == first.tolist()
    assert cells.spec["left_out"] == {**first.value_counts()[failed.columns].to_dict(), "no known gene": 0}
    assert cells.spec["options"]["cell_filter"] == asked.asked
    assert cells.spec["n_cells"] == len(cells) == 700 - len(first)
    whole = tokenize(pbmc, vocabulary)
    assert tokens_of(cells) == tokens_of(whole.select(np.flatnonzero(~failed.any(axis=1))))


def test_each_source_has_its_own_mean_and_standard_deviation(pbmc, vocabulary, tmp_path):
    paths = [saved(pbmc[:300], tmp_path / "a.h5ad"), saved(pbmc[300:], tmp_path / "b.h5ad")]
    asked = CellFilter(counts_within_sd=1.5)
    found = tokenize(paths, vocabulary, cell_filter=asked)
    alone = [tokenize(path, vocabulary, cell_filter=asked) for path in paths]
    assert found.cell_names.tolist() == [name for cells in alone for name in cells.cell_names]


def test_a_filter_that_no_cell_passes_is_refused_with_its_count_and_leaves_nothing(h5ad, vocabulary, tmp_path):
    with pytest.raises(DataFormatError, match=r"pbmc\.h5ad: no cell is left of 700 \(700 by min_counts\)"):
        tokenize(h5ad, vocabulary, cell_filter=CellFilter(min_counts=1e9), out=tmp_path / "out")
    assert listing(tmp_path) == []


@pytest.mark.parametrize("form", [csr_matrix, csc_matrix], ids=["csr", "csc"])
def test_too_small_a_share_of_known_counts_stops_and_a_smaller_bound_does_not(pbmc, tmp_path, form):
    few = pbmc[:100].copy()
    fewer = Vocabulary.fit(pbmc[:, :300])
    share = few.X[:, :300].sum(dtype=np.float64) / few.X.sum(dtype=np.float64)
    few.X = form(few.X)
    source = saved(few, tmp_path / "x.h5ad")
    message = rf"300 of 754 genes, with {100 * share:.1f} % of the counts, are known.*at least {100 * share + 5:.0f} %"
    with pytest.raises(DataFormatError, match=message):
        tokenize(source, fewer, min_known_share=share + 0.05, out=tmp_path / "out")
    assert listing(tmp_path) == ["x.h5ad"]
    cells = tokenize(source, fewer, min_known_share=share - 0.05)
    np.testing.assert_allclose(cells.spec["share_of_counts_known"], share, atol=1e-6)


def test_the_share_asked_for_is_that_of_the_whole_source(pbmc, vocabulary):
    """Not of its first cells, which may be of another kind."""
    half = half_of(vocabulary)
    known = pbmc.var_names.isin(half.gene_ids)
    first = csr_matrix(pbmc.X[:300].multiply(np.where(known, 1, 50)).toarray())
    later = csr_matrix(pbmc.X[300:].multiply(np.where(known, 50, 1)).toarray())
    adata = ad.AnnData(vstack([first, *[later] * 4], format="csr"), var=pbmc.var)
    share = adata.X[:, known].sum(dtype=np.float64) / adata.X.sum(dtype=np.float64)
    assert share > 0.6
    cells = tokenize(adata, half, min_known_share=0.5)
    np.testing.assert_allclose(cells.spec["share_of_counts_known"], share, atol=1e-6)


def test_too_small_a_share_later_in_a_source_stops_too(pbmc, vocabulary, tmp_path):
    half = half_of(vocabulary)
    unknown = ~pbmc.var_names.isin(half.gene_ids)
    del pbmc.obs["n_counts"]
    factor = np.where(unknown[None, :] & (np.arange(700) >= 300)[:, None], 50, 1)
    pbmc.X = csr_matrix(pbmc.X.multiply(factor))
    with pytest.raises(DataFormatError, match=r"377 of 754 genes, with .* are known"):
        tokenize(saved(pbmc, tmp_path / "x.h5ad"), half, min_known_share=0.3, out=tmp_path / "out")
    assert listing(tmp_path) == ["x.h5ad"]


@pytest.mark.parametrize("form", ["mapping", "file"])
def test_orthologs_lead_mouse_genes_to_the_tokens_of_human_ones(pbmc, vocabulary, plain, tmp_path, form):
    few = pbmc[:40].copy()
    human = few.var_names.tolist()
    mouse = [f"ENSMUSG{i:011d}" for i in range(few.n_vars)]
    few.var = pd.DataFrame(index=mouse)
    with pytest.raises(DataFormatError, match=r"Ensembl ids of mouse \(ENSMUSG….*orthologs="):
        tokenize(few, vocabulary)
    table = dict(zip(mouse, human, strict=True))
    if form == "file":
        rows = "".join(f"{a}\t{b}\n" for a, b in table.items())
        (tmp_path / "t.tsv").write_text("Mouse gene stable ID\tHuman gene stable ID\n" + rows)
    cells = tokenize(few, vocabulary, obs=OBS, orthologs=table if form == "mapping" else tmp_path / "t.tsv")
    assert_same_cells(cells, plain.select(range(40)))
    assert cells.spec["genes"]["mapped"]["genes"] == 754
    assert cells.spec["options"]["n_orthologs"] == 754


# cells without known genes


@pytest.fixture
def partly(pbmc):
    """Cells of which the second and the last express no gene that the vocabulary knows."""
    counts = pbmc.X[:5].toarray()
    counts[[1, 4], 1:] = 0
    counts[:, 0] = 9
    adata = ad.AnnData(csr_matrix(counts), obs=pbmc.obs[:5], var=pbmc.var)
    return adata, Vocabulary.fit(adata[:, 1:])


@pytest.mark.parametrize("block", [None, 1, 2])
def test_cells_without_a_known_gene_are_left_out_and_listed(partly, tmp_path, caplog, monkeypatch, block):
    adata, vocabulary = partly
    if block:
        cut_in_parts_of(monkeypatch, block, block=block)
    with caplog.at_level(logging.WARNING):
        cells = tokenize(adata, vocabulary, obs=["n_counts"], out=tmp_path / "out")
    assert cells.cell_names.tolist() == adata.obs_names[[0, 2, 3]].tolist()
    assert cells.obs["n_counts"].tolist() == adata.obs["n_counts"].iloc[[0, 2, 3]].tolist()
    assert cells.spec["left_out"] == {"no known gene": 2}
    assert cells.spec["n_cells"] == 3
    assert "2 of 5 cells left out: no known gene (left_out.tsv)" in caplog.text
    expected = [("AnnData 0", adata.obs_names[i], "no known gene") for i in (1, 4)]
    table = pd.read_csv(tmp_path / "out" / "left_out.tsv", sep="\t")
    assert list(table.itertuples(index=False, name=None)) == expected
    assert len(datasets.load_from_disk(str(tmp_path / "out"))) == 3


def test_leaving_cells_out_does_not_change_the_others(partly):
    adata, vocabulary = partly
    assert_same_cells(tokenize(adata, vocabulary), tokenize(adata[[0, 2, 3]], vocabulary))


def test_no_cell_left_is_refused(partly):
    adata, vocabulary = partly
    with pytest.raises(DataFormatError, match=r"no cell is left of 2 \(2 by no known gene\)"):
        tokenize(adata[[1, 4]], vocabulary, min_known_share=0)


# the folder


def test_the_folder_holds_these_files(written):
    assert listing(written) == sorted([*FILES, "vocabulary.json", "vocabulary.tsv"])


def test_the_datasets_library_opens_the_folder(written, plain):
    table = datasets.load_from_disk(str(written))
    assert table.column_names == ["cell", "input_ids", "length", *OBS]
    assert table["input_ids"][:] == tokens_of(plain)
    assert table["length"][:] == plain.lengths.tolist()
    assert table["cell"][:] == plain.cell_names.tolist()
    assert [table.features[name].dtype for name in OBS] == ["string", "float64"]


def test_pyarrow_opens_an_arrow_file_alone(written, plain):
    with pa.OSFile(str(written / "data-000000.arrow"), "rb") as file:
        assert pa.ipc.open_stream(file).read_all()["input_ids"].to_pylist() == tokens_of(plain)


def test_parts_are_files_of_one_dataset(h5ad, vocabulary, plain, tmp_path, monkeypatch):
    cut_in_parts_of(monkeypatch, 99)
    cells = tokenize(h5ad, vocabulary, obs=OBS, out=tmp_path / "out")
    assert_same_cells(cells, plain)
    assert datasets.load_from_disk(str(tmp_path / "out"))["input_ids"][:] == tokens_of(plain)
    assert len(list((tmp_path / "out").glob("*.arrow"))) == 8


def test_the_folder_carries_its_vocabulary(written, vocabulary):
    assert Vocabulary.load(written) == vocabulary == TokenizedDataset.open(written).vocabulary


def test_nothing_is_left_beside_the_output(h5ad, vocabulary, tmp_path):
    tokenize(h5ad, vocabulary, out=tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_spec_says_what_made_the_dataset(written, h5ad, vocabulary):
    spec = read_json(written / "spec.json")
    assert spec == TokenizedDataset.open(written).spec
    assert spec["format"] == "geneformer_repro/tokenized/2"
    assert spec["vocabulary"] == vocabulary.fingerprint
    assert spec["max_length"] == 4096
    assert spec["special_tokens"] == dict(vocabulary.special_tokens)
    assert spec["obs"] == OBS
    assert (spec["n_cells"], spec["n_genes"], spec["n_genes_known"], spec["n_cropped"]) == (700, 754, 754, 0)
    assert spec["left_out"] == {"no known gene": 0}
    assert spec["share_of_counts_known"] == 1
    assert spec["failed"] == []
    state = h5ad.stat()
    assert spec["sources"] == [
        {
            "name": "pbmc.h5ad",
            "path": str(h5ad.resolve()),
            "bytes": state.st_size,
            "modified": state.st_mtime_ns,
            "layer": "X",
            "gene_ids": "index",
            "n_cells": 700,
            "n_cells_kept": 700,
            "n_genes": 754,
            "n_genes_known": 754,
            "share_of_counts_known": 1.0,
        }
    ]


@pytest.mark.parametrize("block", [None, 5])
def test_genes_tsv_and_spec_tell_what_a_recount_by_hand_tells(pbmc, vocabulary, tmp_path, monkeypatch, block):
    if block:
        cut_in_parts_of(monkeypatch, block, block=block)
    ids, names = vocabulary.gene_ids, dict(zip(pbmc.var_names, pbmc.var["gene_name"], strict=True))
    rows = [  # id and name in the source, outcome, by, gene
        (ids[0], "", "kept", "id", ids[0]),
        (ids[1] + ".7", "", "mapped", "version", ids[1]),
        (ids[2], "", "kept", "id", ids[2]),
        (ids[2] + ".1", "", "collapsed", "version", ids[2]),
        (names[ids[3]], "", "mapped", "symbol", ids[3]),
        ("ENSG00000000001", "", "unknown", "", ""),
        ("ENSA-NOT", "", "unknown", "", ""),
        ("", names[ids[4]], "mapped", "name", ids[4]),
        ("", "NOTHING-SUCH", "unknown", "", ""),
    ]
    few = ad.AnnData(
        csr_matrix(np.random.default_rng(0).poisson(2, (12, len(rows))).astype(np.float32)),
        var=pd.DataFrame(
            {"ensembl_id": [row[0] for row in rows], "gene_name": [row[1] for row in rows]},
            index=[f"row{i}" for i in range(len(rows))],
        ),
    )
    first, second = few[:7].copy(), few[7:, [0, 4, 5]].copy()
    paths = [saved(first, tmp_path / "a.h5ad"), saved(second, tmp_path / "b.h5ad")]
    cells = tokenize(paths, vocabulary, min_known_share=0, out=tmp_path / "out")

    counts = first.X.toarray().sum(axis=0)
    counts[[0, 4, 5]] += second.X.toarray().sum(axis=0)
    expected = pd.DataFrame(
        [(*rows[i], int(counts[i]), 2 if i in (0, 4, 5) else 1) for i in range(len(rows))],
        columns=["gene", "name", "outcome", "by", "gene_id", "counts", "sources"],
    )
    # what has no name in the index column is named by it
    found = pd.read_csv(tmp_path / "out" / "genes.tsv", sep="\t", keep_default_na=False)
    pd.testing.assert_frame_equal(found, expected)
    spec, share = cells.spec, expected.groupby("outcome")["counts"].sum() / expected["counts"].sum()
    assert (spec["n_genes"], spec["n_genes_known"]) == (9, 6)
    assert {name: one["genes"] for name, one in spec["genes"].items()} == {
        "kept": 2,
        "mapped": 3,
        "collapsed": 1,
        "unknown": 3,
    }
    for name, one in spec["genes"].items():
        np.testing.assert_allclose(one["share_of_counts"], share[name], atol=1e-6)
    np.testing.assert_allclose(spec["share_of_counts_known"], 1 - share["unknown"], atol=1e-6)
    assert [(one["n_genes"], one["n_genes_known"]) for one in spec["sources"]] == [(9, 6), (3, 2)]


def test_genes_that_stand_several_times_are_each_counted(pbmc, vocabulary, tmp_path):
    ids = [*vocabulary.gene_ids[:1] * 3, vocabulary.gene_ids[1], "unknown", "unknown"]
    few = ad.AnnData(csr_matrix(np.full((3, 6), 2, dtype=np.float32)), var=pd.DataFrame(index=map(str, range(6))))
    few.var_names = ids
    quietly(few.write_h5ad, tmp_path / "x.h5ad")
    spec = tokenize(tmp_path / "x.h5ad", vocabulary, min_known_share=0, out=tmp_path / "out").spec
    table = pd.read_csv(tmp_path / "out" / "genes.tsv", sep="\t", keep_default_na=False)
    assert set(table["sources"]) == {1}
    assert {name: one["genes"] for name, one in spec["genes"].items()} == {
        "kept": 2,
        "mapped": 0,
        "collapsed": 2,
        "unknown": 2,
    }
    assert (spec["n_genes"], spec["n_genes_known"]) == (6, 4)


# the same bytes, the same fingerprint


def test_the_same_run_gives_the_same_bytes(h5ad, vocabulary, tmp_path, written):
    tokenize(h5ad, vocabulary, out=tmp_path / "again", obs=OBS)
    assert digests(tmp_path / "again") == digests(written)


def test_the_fingerprint_does_not_depend_on_where_the_counts_lie(pbmc, vocabulary, plain, written):
    assert TokenizedDataset.open(written).fingerprint == plain.fingerprint
    assert tokenize(pbmc, vocabulary, obs=OBS).fingerprint == plain.fingerprint


def test_the_fingerprint_tells_vocabularies_apart_that_give_the_same_tokens(pbmc, vocabulary):
    once, twice = (tokenize(pbmc, half_of(vocabulary, factor), min_known_share=0) for factor in (1, 2))
    assert_same_cells(once, twice)
    assert once.fingerprint != twice.fingerprint


def swapped(adata):
    """The labels of the first two cells of different types, exchanged."""
    labels = adata.obs["cell_type"].astype(str).to_numpy()
    other = int(np.flatnonzero(labels != labels[0])[0])
    labels[[0, other]] = labels[[other, 0]]
    adata.obs["cell_type"] = labels
    return adata


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(lambda adata, vocabulary: tokenize(adata, vocabulary), id="no_obs"),
        pytest.param(lambda adata, vocabulary: tokenize(swapped(adata), vocabulary, obs=OBS), id="labels"),
        pytest.param(
            lambda adata, vocabulary: tokenize(
                ad.AnnData(adata.X, adata.obs.rename(columns={"cell_type": "type"}), adata.var),
                vocabulary,
                obs=["type", "n_counts"],
            ),
            id="name_of_a_column",
        ),
        pytest.param(lambda adata, vocabulary: tokenize(adata[:699], vocabulary, obs=OBS), id="cells"),
        pytest.param(lambda adata, vocabulary: tokenize(adata[::-1], vocabulary, obs=OBS), id="order"),
        pytest.param(lambda adata, vocabulary: tokenize(adata, vocabulary, obs=OBS, uncropped=True), id="uncropped"),
        pytest.param(
            lambda adata, vocabulary: tokenize(adata, Vocabulary.fit(adata, max_length=9), obs=OBS), id="vocabulary"
        ),
    ],
)
def test_the_fingerprint_tells_datasets_apart(pbmc, vocabulary, plain, other):
    assert other(pbmc, vocabulary).fingerprint != plain.fingerprint


# inputs


@pytest.mark.parametrize("mode", [0o644, 0o444], ids=["writable", "read_only"])
@pytest.mark.parametrize("form", [csr_matrix, csc_matrix], ids=["csr", "csc"])
def test_the_input_file_is_left_as_it_was(pbmc, vocabulary, tmp_path, mode, form):
    pbmc.X = form(pbmc.X)
    source = saved(pbmc, tmp_path / "x.h5ad")
    source.chmod(mode)
    before = hashlib.sha256(source.read_bytes()).hexdigest(), source.stat().st_mtime_ns
    tokenize(source, vocabulary, out=tmp_path / "out", obs=OBS)
    assert (hashlib.sha256(source.read_bytes()).hexdigest(), source.stat().st_mtime_ns) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "x.h5ad"]


def test_the_input_anndata_is_left_as_it_was(pbmc, vocabulary):
    before = pickle.dumps((pbmc.X, pbmc.obs, pbmc.var))
    tokenize(pbmc, vocabulary, obs=OBS)
    assert pickle.dumps((pbmc.X, pbmc.obs, pbmc.var)) == before


def spoil(adata, value):
    adata.X.data[adata.X.indptr[2]] = value
    return adata


def unknown_genes(adata):
    adata.var_names = [f"gene{i}" for i in range(adata.n_vars)]
    adata.var = adata.var[[]]
    return adata


BAD = [
    pytest.param(lambda a: spoil(a, 0.5), DataFormatError, "X holds fractional values", id="fractional"),
    pytest.param(lambda a: spoil(a, -1), DataFormatError, "X holds negative values", id="negative"),
    pytest.param(lambda a: spoil(a, np.nan), DataFormatError, "X holds not finite values", id="nan"),
    pytest.param(lambda a: spoil(a, np.inf), DataFormatError, "X holds not finite values", id="inf"),
    pytest.param(lambda a: a[:0].copy(), DataFormatError, r"holds no cells \(754 genes\)", id="no_cells"),
    pytest.param(lambda a: a[:, :0].copy(), DataFormatError, r"holds no genes \(700 cells\)", id="no_genes"),
    pytest.param(unknown_genes, DataFormatError, "none of its 754 genes is known.*neither Ensembl", id="no_known_gene"),
]


@pytest.mark.parametrize("where", ["memory", "file"])
@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_sources_are_refused_and_leave_nothing(pbmc, vocabulary, tmp_path, where, change, error, message):
    adata = change(pbmc)
    source = adata if where == "memory" else saved(adata, tmp_path / "x.h5ad")
    before = listing(tmp_path)
    with pytest.raises(error, match=message):
        tokenize(source, vocabulary, out=tmp_path / "out")
    assert listing(tmp_path) == before


@pytest.mark.parametrize("form", [csr_matrix, csc_matrix], ids=["csr", "csc"])
def test_a_bad_value_after_many_good_parts_leaves_nothing(pbmc, vocabulary, tmp_path, monkeypatch, form):
    cut_in_parts_of(monkeypatch, 100, block=50)
    pbmc.X.data[-1] = 0.5
    pbmc.X = form(pbmc.X)
    source = saved(pbmc, tmp_path / "x.h5ad")
    with pytest.raises(DataFormatError, match=rf"x\.h5ad: .*fractional values .first: cell '{pbmc.obs_names[-1]}'"):
        tokenize(source, vocabulary, out=tmp_path / "out")
    assert listing(tmp_path) == ["x.h5ad"]


def test_a_vocabulary_without_medians_is_refused_and_leaves_nothing(pbmc, tmp_path):
    tokens = {"<pad>": 0, "<mask>": 1, pbmc.var_names[0]: 2}
    with pytest.raises(InputError, match="no medians, so it can read tokens but not make them"):
        tokenize(pbmc, Vocabulary.from_tokens(tokens), out=tmp_path / "out", min_known_share=0)
    assert listing(tmp_path) == []


# existing outputs


def test_an_existing_output_is_refused_before_the_source_is_read(vocabulary, written, tmp_path):
    with pytest.raises(FileExistsError, match=r"cells\.tok already exists.*--overwrite"):
        tokenize(tmp_path / "absent.h5ad", vocabulary, out=written)


def test_overwrite_replaces_an_earlier_dataset(pbmc, vocabulary, written):
    tokenize(pbmc[:7], vocabulary, out=written, overwrite=True)
    assert len(TokenizedDataset.open(written)) == 7
    assert [path.name for path in written.parent.iterdir()] == ["cells.tok"]


def test_overwrite_while_the_earlier_dataset_is_open_leaves_it_readable(pbmc, vocabulary, written, plain):
    opened = TokenizedDataset.open(written)
    tokenize(pbmc[:7], vocabulary, out=written, overwrite=True)
    assert_same_cells(opened, plain)


def test_overwrite_never_replaces_another_folder(pbmc, vocabulary, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match=r"without spec\.json, so not an earlier result"):
        tokenize(pbmc, vocabulary, out=tmp_path / "out", overwrite=True)
    assert listing(tmp_path) == ["out", "out/thesis.tex"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_named_like_unfinished_work_is_never_deleted(pbmc, vocabulary, tmp_path, overwrite):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match=r"out\.partial is in the way and not unfinished work"):
        tokenize(pbmc, vocabulary, out=tmp_path / "out", overwrite=overwrite)
    assert listing(tmp_path) == ["out.partial", "out.partial/thesis.tex"]


def test_a_failed_overwrite_leaves_the_earlier_dataset(pbmc, vocabulary, written, plain):
    pbmc.X.data[-1] = 0.5
    with pytest.raises(DataFormatError, match="fractional"):
        tokenize(pbmc, vocabulary, out=written, overwrite=True)
    assert_same_cells(TokenizedDataset.open(written), plain)
    assert [path.name for path in written.parent.iterdir()] == ["cells.tok"]


# interrupted and run again


def states(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.arrow")}


def die_while_rows_are_written(monkeypatch):
    batches = part_rows.PartRows.__iter__

    def dying_batches(rows):
        for batch in batches(rows):
            yield batch
            if rows.part.number == 3:
                os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(part_rows.PartRows, "__iter__", dying_batches)


def test_killed_and_run_again_gives_the_bytes_of_an_uninterrupted_run(pbmc, vocabulary, tmp_path, monkeypatch):
    cut_in_parts_of(monkeypatch, 100)
    pbmc.X = csc_matrix(pbmc.X)
    source = saved(pbmc, tmp_path / "x.h5ad")
    tokenize(source, vocabulary, out=tmp_path / "whole", obs=OBS)

    def run():
        die_while_rows_are_written(monkeypatch)
        tokenize(source, vocabulary, out=tmp_path / "out", obs=OBS)

    assert status_of(forked(run, tmp_path / "log")) == -signal.SIGKILL
    (tmp_path / "log").unlink()
    assert not (tmp_path / "out").exists()
    work = tmp_path / "out.partial"
    finished = {name: state for name, state in states(work / "dataset").items() if "data" < name < "data-000003"}
    assert len(finished) == 3
    (work / "dataset" / "data-000003.arrow").write_bytes(b"half")  # without a report
    assert list((work / "blocks").rglob("*.entries"))

    redone = parts_done(monkeypatch)
    monkeypatch.setattr(module.Tokenisation, "deal_out", lambda *_: pytest.fail("dealt out again"))
    cells = tokenize(source, vocabulary, out=tmp_path / "out", obs=OBS)
    assert redone == [3, 4, 5, 6]
    assert finished.items() <= states(tmp_path / "out").items()
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")
    assert_same_cells(cells, TokenizedDataset.open(tmp_path / "whole"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole", "x.h5ad"]


def flip(path):
    """Change a byte in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_what_is_damaged_of_unfinished_work_is_made_again(pbmc, vocabulary, tmp_path, monkeypatch, caplog):
    """As after a loss of power, or on a disk that forgets."""
    pbmc.X = csc_matrix(pbmc.X)
    source, options = saved(pbmc, tmp_path / "x.h5ad"), {"cell_filter": CellFilter(counts_within_sd=1)}
    interrupt(monkeypatch, source, vocabulary, out=tmp_path / "out", at=6, **options)
    work = tmp_path / "out.partial"
    flip(work / "dataset" / "data-000000.arrow")
    cut(work / "reports" / "000001.counts.npy")
    (work / "reports" / "000002.left_out.tsv").unlink()
    report = work / "reports" / "000003.json"
    report.write_text(report.read_text().replace('"n_cropped": 0', '"n_cropped": 7'))
    cut(work / "reports" / "000004.json")
    flip(work / "reports" / "000006.moments")
    (entries,) = (work / "blocks").rglob("*.entries")
    flip(entries)

    redone = parts_done(monkeypatch)
    tokenize(source, vocabulary, out=tmp_path / "out", **options)
    assert redone == [0, 1, 2, 3, 4, 6]
    tokenize(source, vocabulary, out=tmp_path / "whole", **options)
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")
    assert "000000.json: the part is not as it was written; it is made again" in caplog.text
    assert "000000.entries is not what was written; it is made again" in caplog.text


def test_workers_end_with_their_parent_and_the_same_command_goes_on(h5ad, vocabulary, tmp_path, monkeypatch):
    cut_in_parts_of(monkeypatch, 100)

    def run():
        reusable_executor._executor = None  # the workers of this process are not those of its copy
        resource_tracker._resource_tracker = resource_tracker.ResourceTracker()
        monkeypatch.setattr(corpus, "_do_elsewhere", parts.hang_after_the_first)
        tokenize(h5ad, vocabulary, out=tmp_path / "out", obs=OBS, workers=2)

    parent = psutil.Process(forked(run, tmp_path / "log"))
    reports = tmp_path / "out.partial" / "reports"
    while len(list(reports.glob("*.json")) if reports.exists() else []) < 2:
        assert parent.status() != psutil.STATUS_ZOMBIE
        time.sleep(0.05)
    workers = parent.children(recursive=True)
    assert len(workers) >= 2
    assert all(map(is_deaf_to_interrupts, workers)), "a Ctrl-C, sent to all processes of a terminal, is their parent's"
    kill(parent.pid)
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert alive == []
    monkeypatch.undo()
    cut_in_parts_of(monkeypatch, 100)
    redone = parts_done(monkeypatch)
    tokenize(h5ad, vocabulary, out=tmp_path / "out", obs=OBS)
    assert len(redone) == 5
    tokenize(h5ad, vocabulary, out=tmp_path / "whole", obs=OBS)
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


def is_deaf_to_interrupts(process):
    status = Path(f"/proc/{process.pid}/status").read_text()
    return bool(int(re.search(r"^SigIgn:\s*(\w+)", status, re.MULTILINE)[1], 16) >> (signal.SIGINT - 1) & 1)


def test_unfinished_work_without_its_rows_is_done_again(h5ad, vocabulary, tmp_path, monkeypatch):
    """Killed when the rows were in place and the work folder was not yet removed; then the output was."""
    with monkeypatch.context() as patched:
        patched.setattr(unfinished, "drop", lambda _: None)
        tokenize(h5ad, vocabulary, out=tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "whole")
    tokenize(h5ad, vocabulary, out=tmp_path / "out")
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


class Interrupted(BaseException):
    """Stands for what ends a process from outside."""


def interrupt(monkeypatch, *arguments, at=3, **options):
    """Tokenise in parts of 100 cells, and stop before part `at`."""
    cut_in_parts_of(monkeypatch, 100)
    tokenize_part = module.Tokenisation.tokenize

    def stop(job, part):
        if part.number == at:
            raise Interrupted
        tokenize_part(job, part)

    with monkeypatch.context() as patched:
        patched.setattr(module.Tokenisation, "tokenize", stop)
        with pytest.raises(Interrupted):
            tokenize(*arguments, **options)


def parts_done(monkeypatch):
    """A list that gets the number of every part that is tokenised from now on."""
    done, tokenize_part = [], module.Tokenisation.tokenize
    monkeypatch.setattr(
        module.Tokenisation, "tokenize", lambda job, part: (done.append(part.number), tokenize_part(job, part))
    )
    return done


def test_two_interruptions_and_filters_with_means_give_the_bytes_of_an_uninterrupted_run(
    h5ad, vocabulary, tmp_path, monkeypatch
):
    options = {"cell_filter": CellFilter(counts_within_sd=1), "uncropped": True}
    for at in (2, 5):
        interrupt(monkeypatch, h5ad, vocabulary, out=tmp_path / "out", at=at, **options)
    tokenize(h5ad, vocabulary, out=tmp_path / "out", **options)
    tokenize(h5ad, vocabulary, out=tmp_path / "whole", **options)
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


def test_an_interrupted_overwrite_goes_on_with_the_same_command(pbmc, h5ad, vocabulary, tmp_path, monkeypatch):
    tokenize(pbmc[:9], vocabulary, out=tmp_path / "out")
    interrupt(monkeypatch, h5ad, vocabulary, out=tmp_path / "out", overwrite=True)
    assert len(TokenizedDataset.open(tmp_path / "out")) == 9
    redone = parts_done(monkeypatch)
    assert len(tokenize(h5ad, vocabulary, out=tmp_path / "out", overwrite=True)) == 700
    assert redone == [3, 4, 5, 6]


OTHER_WORK = [
    (lambda given: {"obs": ["phase"]}, r"options\.obs: \['cell_type'\] there, \['phase'\] now"),
    (lambda given: {"uncropped": True}, r"options\.uncropped: False there, True now"),
    (
        lambda given: {"cell_filter": CellFilter(min_genes=5)},
        r"options\.cell_filter\.min_genes: None there, 5 now",
    ),
    (lambda given: {"vocabulary": half_of(given["vocabulary"])}, "vocabulary: '"),
    (
        lambda given: {"vocabulary": replace(given["vocabulary"], gene_names=given["vocabulary"].gene_names[::-1])},
        "vocabulary: '",
    ),
    (
        lambda given: {"vocabulary": replace(given["vocabulary"], other_ids={"old": given["vocabulary"].gene_ids[0]})},
        "vocabulary: '",
    ),
    (lambda given: {"min_known_share": 0.4}, r"options\.min_known_share: 0\.5 there"),
]


def test_unfinished_work_is_not_continued_with_other_options(h5ad, vocabulary, tmp_path, monkeypatch):
    """Nor with other names in the vocabulary: a dataset would be a mixture."""
    given = {"vocabulary": vocabulary, "obs": ["cell_type"], "out": tmp_path / "out"}
    interrupt(monkeypatch, h5ad, **given)
    before = digests(tmp_path)
    for change, message in OTHER_WORK:
        with pytest.raises(FileExistsError, match=rf"out\.partial holds an unfinished tokenisation .*{message}"):
            tokenize(h5ad, **(given | {"min_known_share": 0.5} | change(given)))
    assert digests(tmp_path) == before
    tokenize(h5ad, **given)
    assert listing(tmp_path)[0] == "out"
    assert not (tmp_path / "out.partial").exists()


def test_unfinished_work_is_not_continued_with_a_changed_source(pbmc, vocabulary, tmp_path, monkeypatch):
    source = saved(pbmc, tmp_path / "x.h5ad")
    interrupt(monkeypatch, source, vocabulary, out=tmp_path / "out")
    pbmc.X.data += 1
    del pbmc.obs["n_counts"]
    saved(pbmc, source)
    with pytest.raises(FileExistsError, match=r"unfinished tokenisation with other settings \(sources"):
        tokenize(source, vocabulary, out=tmp_path / "out")
    tokenize(source, vocabulary, out=tmp_path / "out", overwrite=True)
    assert not (tmp_path / "out.partial").exists()


def appended(path):
    path.write_bytes(path.read_bytes() + b"x")


def replaced(path):
    path.rename(path.with_suffix(".old"))
    path.write_bytes(path.with_suffix(".old").read_bytes())
    path.with_suffix(".old").unlink()


def changed_at(monkeypatch, step, change):
    """Have a source changed just before the fourth part is done, or before a step of the whole work."""
    original = getattr(module.Tokenisation, step)

    def changing(job, *arguments, **options):
        if step != "tokenize" or arguments[0].number == 3:
            change()
        return original(job, *arguments, **options)

    monkeypatch.setattr(module.Tokenisation, step, changing)


@pytest.mark.parametrize(
    ("step", "change"),
    [("_look_at", appended), ("run", replaced), ("tokenize", appended), ("tokenize", pathlib.Path.unlink)],
)
def test_a_source_that_changes_while_it_is_read_stops_the_work_and_leaves_nothing(
    pbmc, vocabulary, tmp_path, monkeypatch, step, change
):
    """It is not taken for damaged, though another source would be left to go on with."""
    cut_in_parts_of(monkeypatch, 100)
    paths = [saved(pbmc[:500], tmp_path / "a.h5ad"), saved(pbmc[500:], tmp_path / "b.h5ad")]
    whole = paths[0].read_bytes()
    with monkeypatch.context() as patched:
        changed_at(patched, step, lambda: change(paths[0]) if paths[0].exists() else None)
        with pytest.raises(ChangedDataError, match=r"a\.h5ad: changed while it was read.*give the same call again"):
            tokenize(paths, vocabulary, out=tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} <= {"a.h5ad", "b.h5ad"}
    paths[0].write_bytes(whole)
    assert len(tokenize(paths, vocabulary, out=tmp_path / "out")) == 700


def test_a_store_that_changes_while_it_is_read_is_seen_at_the_end(pbmc, vocabulary, tmp_path, monkeypatch):
    quietly(pbmc[:50].copy().write_zarr, tmp_path / "x.zarr")
    inside = next(path for path in (tmp_path / "x.zarr" / "X").rglob("*") if path.is_file())
    changed_at(monkeypatch, "run", inside.touch)
    with pytest.raises(ChangedDataError, match=r"x\.zarr: changed while it was read"):
        tokenize(tmp_path / "x.zarr", vocabulary)


CHANGED = [
    pytest.param(lambda a: setattr(a, "X", a.X * 2), id="counts"),
    pytest.param(lambda a: setattr(a, "obs", a.obs.assign(cell_type="x")), id="obs"),
    pytest.param(lambda a: setattr(a, "obs_names", a.obs_names + "x"), id="cell_names"),
    pytest.param(lambda a: setattr(a, "var", a.var.assign(ensembl_id=a.var_names[::-1])), id="gene_ids"),
]


@pytest.mark.parametrize("change", CHANGED)
def test_unfinished_work_is_not_continued_with_a_changed_anndata(pbmc, vocabulary, tmp_path, monkeypatch, change):
    pbmc.var["ensembl_id"] = pbmc.var_names.to_numpy()
    del pbmc.obs["n_counts"]
    interrupt(monkeypatch, pbmc, vocabulary, obs=["cell_type"], out=tmp_path / "out")
    change(pbmc)
    with pytest.raises(FileExistsError, match=r"unfinished tokenisation with other settings \(sources"):
        tokenize(pbmc, vocabulary, obs=["cell_type"], out=tmp_path / "out")


# several processes


@pytest.fixture(scope="module")
def corpus_on_disk(_pbmc, vocabulary, tmp_path_factory):
    """A folder with a source of two parts, one stored by gene, and a Zarr store; options; and one process's result."""
    folder = tmp_path_factory.mktemp("corpus")
    inputs = made(folder / "in")
    many = ad.AnnData(vstack([_pbmc.X] * 12, format="csr"), var=_pbmc.var)
    many.obs = pd.concat([_pbmc.obs] * 12).set_index(pd.Index([f"cell{i}" for i in range(many.n_obs)]))
    saved(many, inputs / "a.h5ad")
    by_gene = _pbmc[:300].copy()
    by_gene.X = csc_matrix(by_gene.X)
    saved(by_gene, inputs / "b.h5ad")
    quietly(_pbmc[300:400].copy().write_zarr, inputs / "c.zarr")
    vocabulary.save(folder / "v")
    options = {"obs": OBS, "cell_filter": CellFilter(counts_within_sd=3, min_genes=200), "uncropped": True}
    tokenize(inputs, vocabulary, out=folder / "one", **options)
    return folder, options


def test_the_corpus_has_several_parts_and_leaves_cells_out(corpus_on_disk):
    folder, _ = corpus_on_disk
    spec = read_json(folder / "one" / "spec.json")
    assert len(list((folder / "one").glob("*.arrow"))) == 4
    assert min(spec["left_out"]["counts_within_sd"], spec["left_out"]["min_genes"]) > 0


def test_two_workers_give_the_bytes_of_one_process(corpus_on_disk, vocabulary, tmp_path):
    folder, options = corpus_on_disk
    for name in ("two", "again"):  # by workers that still know the first folder
        tokenize(folder / "in", vocabulary, out=tmp_path / name, workers=2, **options)
        assert digests(tmp_path / name) == digests(folder / "one")


def test_threads_give_the_bytes_of_one(corpus_on_disk, vocabulary, tmp_path, monkeypatch):
    folder, options = corpus_on_disk
    monkeypatch.setattr(corpus, "usable_threads", lambda processes=1: 3)
    tokenize(folder / "in", vocabulary, out=tmp_path / "out", **options)
    assert digests(tmp_path / "out") == digests(folder / "one")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: pip install 'geneformer-repro[ray]'")
def test_a_local_ray_gives_the_bytes_of_one_process(corpus_on_disk, vocabulary, tmp_path):
    folder, options = corpus_on_disk
    tokenize(folder / "in", vocabulary, out=tmp_path / "ray", ray=True, workers=2, **options)
    assert digests(tmp_path / "ray") == digests(folder / "one")


def test_ray_that_is_not_installed_is_said_with_the_extra(h5ad, vocabulary, tmp_path, monkeypatch):
    monkeypatch.setattr(sharing, "find_spec", lambda name: None)
    with pytest.raises(gf.errors.MissingExtraError, match=r"pip install 'geneformer-repro\[ray\]'"):
        tokenize(h5ad, vocabulary, out=tmp_path / "out", ray=True)
    assert listing(tmp_path) == []


# damaged sources


def truncated(adata, path):
    saved(adata, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def bad_in_the_middle(adata, path):
    adata = adata.copy()
    adata.X.data[adata.X.indptr[adata.n_obs - 3]] = 0.5
    saved(adata, path)


def bad_by_gene(adata, path):
    adata = adata.copy()
    adata.X.data[adata.X.indptr[adata.n_obs - 3]] = 0.5
    adata.X = csc_matrix(adata.X)
    saved(adata, path)


def indices_beyond(adata, path):
    saved(adata, path)
    with h5py.File(path, "r+") as file:
        file["X/indices"][-1] = 9999


def names_twice(adata, path):
    adata = adata.copy()
    adata.obs_names = [*adata.obs_names[:-1], adata.obs_names[0]]
    quietly(saved, adata, path)


def no_hdf5(adata, path):
    path.write_text("cell,gene\n")


def other_genes(adata, path):
    adata = adata.copy()
    adata.var_names = [f"ENSMUSG{i:011d}" for i in range(adata.n_vars)]
    adata.var = adata.var[[]]
    saved(adata, path)


DAMAGES = {
    truncated: "truncated",
    bad_in_the_middle: "X holds fractional values",
    bad_by_gene: "X holds fractional values",
    indices_beyond: "a column index lies outside of the 754 genes",
    names_twice: "cell names stand more than once",
    no_hdf5: "not an .h5ad",
    other_genes: "Ensembl ids of mouse",
}
damages = pytest.mark.parametrize(
    ("damage", "message"), [pytest.param(*item, id=item[0].__name__) for item in DAMAGES.items()]
)


@pytest.mark.parametrize(
    ("damage", "message", "place"),
    [  # refused when it is looked at, dealt out, in the middle, and when all of it is read
        pytest.param(damage, DAMAGES[damage], i % 3, id=damage.__name__)
        for i, damage in enumerate((truncated, bad_by_gene, bad_in_the_middle, other_genes))
    ],
)
def test_a_damaged_source_is_named_and_the_others_are_as_without_it(
    pbmc, vocabulary, tmp_path, monkeypatch, caplog, damage, message, place
):
    cut_in_parts_of(monkeypatch, 50)
    folder = made(tmp_path / "in")
    bounds = {"a.h5ad": (0, 120), "b.h5ad": (120, 420), "c.h5ad": (420, 500)}
    good = []
    for i, (name, (start, stop)) in enumerate(bounds.items()):
        if i == place:
            damage(pbmc[start : max(stop, start + 300)] if i < 2 else pbmc[400:], folder / name)
            bad = name
        else:
            good.append(saved(pbmc[start:stop], folder / name))
    with caplog.at_level(logging.ERROR):
        found = tokenize(folder, vocabulary, obs=OBS, out=tmp_path / "out")
    (failed,) = found.spec["failed"]
    assert failed["name"] == bad
    assert message in failed["error"]
    assert str(folder / bad) in failed["error"]
    assert f"{bad}: left out." in caplog.text
    assert [one["name"] for one in found.spec["sources"]] == [path.name for path in good]
    assert found.spec["n_cells"] == len(found)
    assert "1 source left out" in repr(found)
    assert f"LEFT OUT: {bad}" in found.summary()
    without = tokenize(good, vocabulary, obs=OBS, out=tmp_path / "without")
    assert_same_cells(found, without)
    for name in ("genes.tsv", "left_out.tsv"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "without" / name).read_bytes()
    same = ("fingerprint", "n_cells", "n_cropped", "left_out", "n_genes", "n_genes_known", "genes", "sources")
    assert {key: found.spec[key] for key in same} == {key: without.spec[key] for key in same}
    assert sum(len(pa.ipc.open_stream(path).read_all()) for path in (tmp_path / "out").glob("*.arrow")) == len(found)
    assert not (tmp_path / "out.partial").exists()


def test_a_source_refused_before_the_work_does_not_change_the_types_of_the_others(pbmc, vocabulary, tmp_path):
    pbmc.obs["batch"] = np.arange(700)
    good = [saved(pbmc[:20], tmp_path / "a.h5ad"), saved(pbmc[20:40], tmp_path / "b.h5ad")]
    bad = pbmc[40:60].copy()
    bad.obs["batch"] = "text"
    names_twice(bad, tmp_path / "c.h5ad")
    found = tokenize([*good, tmp_path / "c.h5ad"], vocabulary, obs=["batch"])
    assert found.table.features["batch"].dtype == "int64"
    assert found.obs["batch"].tolist() == list(range(40))


@damages
def test_the_only_source_damaged_is_an_error_and_leaves_nothing(
    pbmc, vocabulary, tmp_path, monkeypatch, damage, message
):
    cut_in_parts_of(monkeypatch, 50)
    damage(pbmc[:300], tmp_path / "x.h5ad")
    with pytest.raises(DataFormatError, match=rf"x\.h5ad.*{message}"):
        tokenize(tmp_path / "x.h5ad", vocabulary, out=tmp_path / "out")
    assert listing(tmp_path) == ["x.h5ad"]


@pytest.mark.parametrize("workers", [None, 2])
def test_all_sources_damaged_is_an_error_and_leaves_nothing(pbmc, vocabulary, tmp_path, workers):
    truncated(pbmc[:300], tmp_path / "a.h5ad")
    bad_in_the_middle(pbmc[300:600], tmp_path / "b.h5ad")
    bad_by_gene(pbmc[300:600], tmp_path / "c.h5ad")
    before = listing(tmp_path)
    with pytest.raises(DataFormatError, match=r"None of the 3 sources can be used. The first: .*a\.h5ad.*truncated"):
        tokenize(tmp_path, vocabulary, out=tmp_path / "out", workers=workers)
    assert listing(tmp_path) == before


def test_two_workers_name_a_damaged_source_with_the_bytes_of_one_process(pbmc, vocabulary, tmp_path, monkeypatch):
    """Given by a relative path, as on a command line."""
    saved(pbmc[:300], tmp_path / "a.h5ad")
    bad_in_the_middle(pbmc[300:700], tmp_path / "b.h5ad")
    bad_by_gene(pbmc[300:700], tmp_path / "c.h5ad")
    monkeypatch.chdir(tmp_path)
    sources = ["a.h5ad", "b.h5ad", "c.h5ad"]
    one = tokenize(sources, vocabulary, out="one")
    tokenize(sources, vocabulary, out="two", workers=2)
    assert [failed["name"] for failed in one.spec["failed"]] == ["b.h5ad", "c.h5ad"]
    assert digests(tmp_path / "two") == digests(tmp_path / "one")


@pytest.mark.usefixtures("forked_workers")
def test_a_worker_that_is_killed_keeps_what_is_finished_and_says_so(corpus_on_disk, vocabulary, tmp_path, monkeypatch):
    folder, options = corpus_on_disk
    monkeypatch.setattr(corpus, "_do_elsewhere", parts.die_on_the_second)
    with pytest.raises(InputError, match=r"A worker process was killed.*Finished parts are kept: give the same"):
        tokenize(folder / "in", vocabulary, out=tmp_path / "out", workers=2, **options)
    assert (tmp_path / "out.partial").exists()
    monkeypatch.undo()
    tokenize(folder / "in", vocabulary, out=tmp_path / "out", workers=1, **options)
    assert digests(tmp_path / "out") == digests(folder / "one")


def test_a_worker_that_ends_as_idle_when_there_is_work_is_no_error():
    """Loky's own thread says so; where warnings are errors, as here, it would die of that and nothing would go on."""
    said = "A worker stopped while some jobs were given to the executor. This can be caused by a too short timeout."
    done = by_processes([1, 2, 3], abs, 2)
    with closing(done), ThreadPoolExecutor(1) as thread:
        next(done)
        thread.submit(warnings.warn, said, UserWarning).result()
        assert len(list(done)) == 2
    with pytest.raises(UserWarning, match="A worker stopped"):
        warnings.warn(said, UserWarning, stacklevel=1)
