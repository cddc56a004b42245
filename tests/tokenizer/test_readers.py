import gzip
import hashlib
import shutil
import subprocess
import sys
import tracemalloc
import warnings
from functools import cache
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import zarr
from scipy.sparse import csc_matrix, csr_array, csr_matrix, hstack, random_array, vstack

from geneformer_repro.errors import DataFormatError, InputError
from geneformer_repro.tokenizer import containers, matrices, readers
from geneformer_repro.tokenizer.counts import raw_counts
from geneformer_repro.tokenizer.look import described_counts
from geneformer_repro.tokenizer.matrices import canonical, first_not_a_count
from geneformer_repro.tokenizer.readers import open_counts
from geneformer_repro.tokenizer.tokenize import tokenize
from geneformer_repro.tokenizer.vocabulary import Vocabulary

COUNTS = np.array([[1, 0, 2, 0], [0, 3, 0, 0], [4, 5, 6, 7]], dtype=np.float32)
TEXT = h5py.string_dtype()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Element '.*' was written without encoding metadata"),
]  # old formats


def small(x=COUNTS, **options):
    """Three cells of four genes."""
    obs = pd.DataFrame(index=["c1", "c2", "c3"])
    var = pd.DataFrame({"gene_name": ["A", "B", "C", "D"]}, index=["g1", "g2", "g3", "g4"])
    return ad.AnnData(x, obs=obs, var=var, **options)


def everything(opened, size=None):
    return vstack([block.counts for block in opened.blocks(size=size)]).toarray()


def read_all(source, **options):
    """Names and counts, as tokenizing reads them."""
    opened = open_counts(source, **options)
    opened.check_cell_names()
    return everything(opened)


# the containers: each writes an AnnData into a folder and returns what is to be opened, and with which options


def with_x(adata, x):
    return ad.AnnData(x, obs=adata.obs, var=adata.var)


def dense(matrix):
    return matrix.toarray()


def in_memory(form):
    return lambda adata, folder: (with_x(adata, form(adata.X)), {})


def a_view(adata, folder):
    """Every cell and gene, out of twice as many of each."""
    twice = ad.AnnData(vstack([adata.X, adata.X], format="csr")[:, np.repeat(np.arange(adata.n_vars), 2)])
    twice.obs = pd.concat([adata.obs, adata.obs.rename(index=lambda name: name + "again")])
    twice.var = adata.var.loc[np.repeat(adata.var_names, 2)].set_axis(range(2 * adata.n_vars)).rename(index=str)
    twice.var.index = [f"{gene}{'' if i % 2 == 0 else 'again'}" for i, gene in enumerate(np.repeat(adata.var_names, 2))]
    return twice[: adata.n_obs, ::2], {}


def h5ad(form, **options):
    def write(adata, folder):
        with_x(adata, form(adata.X)).write_h5ad(folder / "x.h5ad", **options)
        return folder / "x.h5ad", {}

    return write


def backed(form):
    def write(adata, folder):
        return ad.read_h5ad(h5ad(form)(adata, folder)[0], backed="r"), {}

    return write


def a_view_of_backed(form):
    def write(adata, folder):
        again = adata.copy()
        again.obs_names = [name + "again" for name in adata.obs_names]
        return backed(form)(ad.concat([adata, again], merge="same"), folder)[0][: adata.n_obs], {}

    return write


def elsewhere(form, layer, writes):
    """Normalised X, counts in a layer or in ``.raw``."""

    def write(adata, folder):
        counts, other = with_x(adata, form(adata.X)), with_x(adata, form(adata.X) * np.float32(0.1))
        if layer == "raw":
            other.raw = counts
        else:
            other.layers[layer] = counts.X
        return writes(other, folder), {"layer": layer}

    return write


def as_h5ad(adata, folder):
    adata.write_h5ad(folder / "x.h5ad")
    return folder / "x.h5ad"


def as_backed(adata, folder):
    return ad.read_h5ad(as_h5ad(adata, folder), backed="r")


def as_zarr(adata, folder, version=2):
    with ad.settings.override(zarr_write_format=version), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata.write_zarr(folder / "x.zarr")
    return folder / "x.zarr"


def a_zarr(form, version):
    return lambda adata, folder: (as_zarr(with_x(adata, form(adata.X)), folder, version), {})


def is_text(column):
    return not pd.api.types.is_numeric_dtype(column)


def write_text(group, name, values):
    return group.create_dataset(name, data=np.array(list(values), dtype=object), dtype=TEXT)


def h5ad_of_anndata_0_7(adata, folder):
    """Categories are kept apart, columns are bare arrays."""
    with h5py.File(folder / "old.h5ad", "w") as file:
        x = file.create_group("X")
        x.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": adata.shape})
        for name in ("data", "indices", "indptr"):
            x[name] = getattr(adata.X, name)
        for place, frame in (("obs", adata.obs), ("var", adata.var)):
            group = file.create_group(place)
            group.attrs.update({"encoding-type": "dataframe", "encoding-version": "0.1.0", "_index": "index"})
            group.attrs.create("column-order", list(frame.columns), dtype=TEXT)
            write_text(group, "index", frame.index)
            for column in frame:
                if not is_text(frame[column]):
                    group[column] = frame[column]
                    continue
                codes, categories = pd.factorize(frame[column].astype(str), sort=True)
                group[column] = codes.astype(np.int8 if len(categories) < 128 else np.int16)
                kept = write_text(group.require_group("__categories"), column, categories)
                group[column].attrs["categories"] = kept.ref
    return folder / "old.h5ad", {}


def h5ad_of_anndata_0_6(adata, folder):
    """Tables are compound arrays, a sparse matrix is told by its attributes."""
    with h5py.File(folder / "old.h5ad", "w") as file:
        x = file.create_group("X")
        x.attrs.update({"h5sparse_format": "csr", "h5sparse_shape": adata.shape})
        for name in ("data", "indices", "indptr"):
            x[name] = getattr(adata.X, name)
        for place, frame in (("obs", adata.obs), ("var", adata.var)):
            kinds = [("index", "S40")] + [(c, "S40" if is_text(frame[c]) else frame[c].dtype) for c in frame]
            table = np.zeros(len(frame), dtype=kinds)
            table["index"] = [name.encode() for name in frame.index]
            for c in frame:
                table[c] = [v.encode() for v in frame[c]] if is_text(frame[c]) else frame[c]
            file[place] = table
    return folder / "old.h5ad", {}


def loom_by_loompy(adata, folder):
    loompy = pytest.importorskip("loompy", reason="needs loompy (the extra 'loom')")
    rows = {"Accession": adata.var_names.to_numpy(), "Gene": adata.var["gene_name"].to_numpy()}
    columns = {"CellID": adata.obs_names.to_numpy()} | {name: adata.obs[name].to_numpy() for name in adata.obs}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loompy.create(str(folder / "x.loom"), adata.X.T.tocoo(), rows, columns)
    return folder / "x.loom", {}


def loom_by_h5py(adata, folder):
    with h5py.File(folder / "x.loom", "w") as file:
        file.create_dataset("matrix", data=adata.X.toarray().T, chunks=(64, 64), compression="gzip")
        for name in ("layers", "row_graphs", "col_graphs"):
            file.create_group(name)
        for group, frame, index in (("row_attrs", adata.var, "var_names"), ("col_attrs", adata.obs, "obs_names")):
            write_text(file.create_group(group), index, frame.index)
            for name in frame:
                if is_text(frame[name]):
                    write_text(file[group], name, frame[name])
                else:
                    file[group][name] = frame[name]
    return folder / "x.loom", {}


def features_of(adata, n_antibodies):
    """Genes with antibodies between them: ids, names, kinds, and the column of each gene."""
    at = np.linspace(0, adata.n_vars, n_antibodies + 1, dtype=int)[1:]
    ids, names = np.insert(adata.var_names, at, "AB"), np.insert(adata.var["gene_name"].to_numpy(), at, "CD3_TotalSeqB")
    return ids, names, np.where(ids == "AB", "Antibody Capture", "Gene Expression")


def with_antibodies(adata, n_antibodies):
    ids, names, kinds = features_of(adata, n_antibodies)
    x = np.full((adata.n_obs, len(ids)), 999, dtype=np.int32)
    x[:, kinds == "Gene Expression"] = adata.X.toarray()
    return csr_matrix(x), ids, names, kinds


def tenx_h5_v3(n_antibodies):
    def write(adata, folder):
        x, ids, names, kinds = with_antibodies(adata, n_antibodies)
        with h5py.File(folder / "filtered_feature_bc_matrix.h5", "w") as file:
            group = file.create_group("matrix")
            group["barcodes"] = np.array(adata.obs_names, dtype="S")
            for name, values in (("data", x.data), ("indices", x.indices.astype(np.int64)), ("indptr", x.indptr)):
                group[name] = values
            group["shape"] = np.array(x.shape[::-1], dtype=np.int32)
            features = group.create_group("features")
            features["_all_tag_keys"] = np.array([b"genome"])
            for name, values in (("id", ids), ("name", names), ("feature_type", kinds)):
                features[name] = np.array(values, dtype="S")
            features["genome"] = np.full(len(ids), b"GRCh38")
        return folder / "filtered_feature_bc_matrix.h5", {}

    return write


def tenx_h5_v2(adata, folder):
    with h5py.File(folder / "genes.h5", "w") as file:
        group = file.create_group("GRCh38")
        group["barcodes"], group["genes"] = np.array(adata.obs_names, dtype="S"), np.array(adata.var_names, dtype="S")
        group["gene_names"] = np.array(adata.var["gene_name"], dtype="S")
        group["data"], group["indices"] = adata.X.data.astype(np.int32), adata.X.indices.astype(np.int64)
        group["indptr"], group["shape"] = adata.X.indptr.astype(np.int64), np.array(adata.shape[::-1])
    return folder / "genes.h5", {}


def mtx(*, gz, features="features", prefix="", n_antibodies=0, order=None, the_file=False):
    """A 10x folder; the entries in the order of Cell Ranger (by cell), by gene, or in none."""

    def write(adata, folder):
        x, ids, names, kinds = with_antibodies(adata, n_antibodies)
        columns = [ids, names, kinds][: 3 if features == "features" else 2]
        x = x.tocoo()
        rng = np.random.default_rng(0)
        by = {None: np.lexsort((x.col, x.row)), "by_gene": np.lexsort((x.row, x.col)), "none": rng.permutation(x.nnz)}
        entries = [f"{x.col[i] + 1} {x.row[i] + 1} {int(x.data[i])}" for i in by[order]]
        head = ["%%MatrixMarket matrix coordinate integer general", '%metadata_json: {"format_version": 2}']
        size = f"{x.shape[1]} {x.shape[0]} {x.nnz}"
        texts = {
            "matrix.mtx": [*head, size, *entries],
            f"{features}.tsv": ["\t".join(line) for line in zip(*columns, strict=True)],
            "barcodes.tsv": list(adata.obs_names),
        }
        for name, lines in texts.items():
            content = "".join(f"{line}\n" for line in lines).encode()
            path = folder / f"{prefix}{name}{'.gz' if gz else ''}"
            path.write_bytes(gzip.compress(content) if gz else content)
        return (folder / f"{prefix}matrix.mtx{'.gz' if gz else ''}" if the_file else folder), {}

    return write


NO_OBS = ("tenx", "mtx")  # containers of names and counts only
CONTAINERS = {
    "memory_csr": in_memory(csr_matrix),
    "memory_csc": in_memory(csc_matrix),
    "memory_dense": in_memory(dense),
    "memory_view": a_view,
    "memory_layer": elsewhere(csr_matrix, "counts", lambda adata, folder: adata),
    "memory_layer_named_raw": lambda adata, folder: (
        ad.AnnData(adata.X * np.float32(0.1), obs=adata.obs, var=adata.var, layers={"raw": adata.X}),
        {"layer": "raw"},
    ),
    "memory_raw": elsewhere(csc_matrix, "raw", lambda adata, folder: adata),
    "backed_csr": backed(csr_matrix),
    "backed_csc": backed(csc_matrix),
    "backed_dense": backed(dense),
    "backed_csr_view": a_view_of_backed(csr_matrix),
    "backed_dense_view": a_view_of_backed(dense),
    "backed_raw": elsewhere(csr_matrix, "raw", as_backed),
    "h5ad_csr": h5ad(csr_matrix),
    "h5ad_csr_gzip": h5ad(csr_matrix, compression="gzip"),
    "h5ad_csc": h5ad(csc_matrix),
    "h5ad_dense": h5ad(dense),
    "h5ad_int64": h5ad(lambda x: x.astype(np.int64)),
    "h5ad_dense_uint8": h5ad(lambda x: x.toarray().astype(np.uint8)),
    "h5ad_layer_csr": elsewhere(csr_matrix, "counts", as_h5ad),
    "h5ad_layer_csc": elsewhere(csc_matrix, "counts", as_h5ad),
    "h5ad_layer_dense": elsewhere(dense, "counts", as_h5ad),
    "h5ad_layer_named_raw": lambda adata, folder: (
        as_h5ad(ad.AnnData(adata.X * np.float32(0.1), obs=adata.obs, var=adata.var, layers={"raw": adata.X}), folder),
        {"layer": "raw"},
    ),
    "h5ad_raw_csr": elsewhere(csr_matrix, "raw", as_h5ad),
    "h5ad_raw_csc": elsewhere(csc_matrix, "raw", as_h5ad),
    "h5ad_raw_dense": elsewhere(dense, "raw", as_h5ad),
    "h5ad_of_anndata_0_7": h5ad_of_anndata_0_7,
    **{
        f"zarr_v{version}_{name}": a_zarr(form, version)
        for version in (2, 3)
        for name, form in (("csr", csr_matrix), ("csc", csc_matrix), ("dense", dense))
    },
    "zarr_layer": elsewhere(csr_matrix, "counts", as_zarr),
    "zarr_raw": elsewhere(csc_matrix, "raw", as_zarr),
    "loom_by_loompy": loom_by_loompy,
    "loom_by_h5py": loom_by_h5py,
    "tenx_h5_v3": tenx_h5_v3(0),
    "tenx_h5_v3_antibodies": tenx_h5_v3(3),
    "tenx_h5_v2": tenx_h5_v2,
    "mtx_gz": mtx(gz=True),
    "mtx_plain": mtx(gz=False),
    "mtx_genes": mtx(gz=False, features="genes"),
    "mtx_by_gene": mtx(gz=True, order="by_gene"),
    "mtx_unsorted": mtx(gz=False, order="none"),
    "mtx_antibodies": mtx(gz=True, n_antibodies=3),
    "mtx_prefix": mtx(gz=True, prefix="GSM1234567_sample1_"),
    "mtx_the_file": mtx(gz=True, prefix="GSM1_", the_file=True),
}
BY_GENE = ["backed_csc", "h5ad_csc", "h5ad_layer_csc", "h5ad_raw_csc", "zarr_v2_csc", "zarr_v3_csc", "zarr_raw"]


def of_each(names):
    return pytest.mark.parametrize("container", names)


@pytest.fixture(scope="module")
def _few(_pbmc):
    return _pbmc[:150, :300].copy()


@pytest.fixture
def few(_few):
    """150 real cells of 300 genes."""
    return _few.copy()


@pytest.fixture(scope="module", params=list(CONTAINERS))
def made(request, _few, tmp_path_factory):
    """The cells in one of the containers, made once: its name, what is opened, how, and the folder it is in."""
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, *CONTAINERS[request.param](_few.copy(), folder), folder


@pytest.fixture(scope="module")
def _written(_few, tmp_path_factory):
    @cache
    def write(container):
        folder = tmp_path_factory.mktemp(container)
        return *CONTAINERS[container](_few.copy(), folder), folder

    return write


@pytest.fixture
def copied(_written, few, tmp_path):
    """Puts a copy of the cells in a container into the test's folder, each written once: what is opened, and how."""

    def copy(container):
        if container.startswith(("memory", "backed")):
            return CONTAINERS[container](few, tmp_path)
        source, options, folder = _written(container)
        shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
        return tmp_path / source.relative_to(folder), options

    return copy


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 64 cells, and few values at a time where dense or dealt out."""
    for module in (readers, matrices):
        monkeypatch.setattr(module, "BLOCK_CELLS", 64)
    for module in (matrices, containers):
        monkeypatch.setattr(module, "ENTRIES", 1000)
    monkeypatch.setattr(matrices, "DENSE_VALUES", 3000)
    monkeypatch.setattr(readers, "_NAMES_AT_A_TIME", 40)


def put(container, adata, folder):
    source, options = CONTAINERS[container](adata, folder)
    return source, options


# what comes back


def test_every_container_gives_the_same_cells_genes_and_counts(made, few, small_blocks):
    _, source, options, _ = made
    opened = open_counts(source, **options)
    opened.check_cell_names()
    np.testing.assert_array_equal(everything(opened), few.X.toarray())
    assert opened.n_cells == 150
    assert opened.cell_names().tolist() == few.obs_names.tolist()
    assert opened.gene_ids == tuple(few.var_names)
    assert opened.gene_names == tuple(few.var["gene_name"])
    assert all(type(name) is str for name in opened.cell_names(3, 5))
    block = next(opened.blocks())
    assert isinstance(block.counts, csr_matrix)
    assert block.counts.dtype in (np.float32, np.float64)
    assert block.counts.indices.dtype == np.int32


def test_every_container_gives_the_same_obs_but_those_of_10x_that_have_none(made, few):
    container, source, options, _ = made
    opened = open_counts(source, **options)
    if container.startswith(NO_OBS):
        assert opened.obs_columns == ()
        with pytest.raises(InputError, match=r"obs has no column 'cell_type'\. There are none"):
            opened.obs("cell_type")
        return
    assert set(few.obs) <= set(opened.obs_columns)
    for column in few.obs:
        for start, stop in ((0, 150), (17, 101), (149, 150)):
            assert opened.obs(column, start, stop).tolist() == few.obs[column].iloc[start:stop].tolist()
    assert opened.obs("n_counts").dtype == np.float64


def test_every_container_is_described_with_what_is_run_next(made, few):
    container, source, options, _ = made
    if isinstance(source, ad.AnnData):
        return
    said = described_counts(Path(source)).splitlines()
    assert said[0].startswith(f"{source}: 150 cells × 300 genes")
    assert any(line.split()[:3] == [options.get("layer", "X"), "raw", "counts"] for line in said)
    ids, names = (", ".join(column[:3]) for column in (few.var_names, few.var["gene_name"]))
    assert [line for line in said if line.startswith("gene ids: Ensembl ids, human, from ") and ids in line]
    assert [line for line in said if line.endswith(f" names: {names} …")]
    obs = "" if container.startswith(NO_OBS) else " --obs cell_type phase"
    assert said[-1].startswith(f"next: geneformer-repro tokenize {source} ")
    assert f"--vocabulary VOCABULARY{obs} -o " in said[-1]


@pytest.fixture
def locked(made):
    """Nothing of it may be written."""
    folder = made[-1]
    paths = [*folder.rglob("*"), folder]
    modes = {path: path.stat().st_mode for path in paths}
    for path in paths:
        path.chmod(0o500 if path.is_dir() else 0o400)
    yield folder
    for path in paths:
        path.chmod(modes[path])


def files_below(folder):
    return {
        path: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_reading_leaves_every_byte_and_makes_no_file_beside(made, locked, small_blocks, monkeypatch):
    _, source, options, _ = made
    modes, opening = [], h5py.File.__init__

    def noting(self, name, mode="r", *args, **more):
        modes.append(mode)
        opening(self, name, mode, *args, **more)

    monkeypatch.setattr(h5py.File, "__init__", noting)
    before = files_below(locked)
    read_all(source, **options)
    opened = open_counts(source, **options)
    for column in opened.obs_columns:
        opened.obs(column, 3, 9)
    assert files_below(locked) == before
    assert set(modes) <= {"r"}
    assert modes or not isinstance(source, Path) or source.suffix not in (".h5ad", ".loom", ".h5")


COLUMNS = {
    "text": ["a", "b", "c", "a", "b", "c"],
    "text_with_missing": ["a", None, "c", "a", None, "c"],
    "nullable_text": pd.array(["a", None, "c", "a", None, "c"], dtype="string"),
    "categories": pd.Categorical(["a", None, "c", "a", None, "c"], categories=["c", "unused", "a"]),
    "categories_of_numbers": pd.Categorical([3, 1, 3, None, 1, 2], ordered=True),
    "bool": [True, False, True, True, False, False],
    "nullable_bool": pd.array([True, None, False, True, None, False], dtype="boolean"),
    "int8": np.arange(-3, 3, dtype=np.int8),
    "uint64": np.arange(6, dtype=np.uint64) + 2**60,
    "nullable_int": pd.array([2**60 + 1, None, 3, 4, None, 6], dtype="Int64"),
    "float32": np.array([0.1, np.nan, 2, np.inf, 4, 5], dtype=np.float32),
    "all_missing": [np.nan] * 6,
}


@pytest.mark.parametrize("container", ["h5ad_csr", "zarr_v2_csr", "zarr_v3_csr"])
def test_columns_of_obs_are_read_from_a_file_as_from_memory(few, tmp_path, container):
    adata = few[:6].copy()
    for column, values in COLUMNS.items():
        adata.obs[column] = pd.Series(values, index=adata.obs_names)
    with ad.settings.override(allow_write_nullable_strings=True):
        stored = open_counts(put(container, adata, tmp_path)[0])
    for column in COLUMNS:
        for start, stop in ((0, 6), (1, 4), (5, 6)):
            expected, found = adata.obs[column].iloc[start:stop], stored.obs(column, start, stop)
            assert found.isna().tolist() == expected.isna().tolist(), column
            assert found.dropna().tolist() == expected.dropna().tolist(), column
            assert pd.api.types.is_numeric_dtype(found) == pd.api.types.is_numeric_dtype(expected), column
            assert pd.api.types.is_bool_dtype(found) == pd.api.types.is_bool_dtype(expected), column


def test_an_index_of_nullable_text_is_read(few, tmp_path):
    few.obs.index = few.obs.index.astype("string")
    with ad.settings.override(allow_write_nullable_strings=True):
        path = as_h5ad(few, tmp_path)
    assert open_counts(path).cell_names(3, 9).tolist() == few.obs_names[3:9].tolist()


RANGES = [(0, 1), (63, 65), (149, 150), (0, 64), (64, 128), (10, 140), (0, 150)]


@of_each(
    ["memory_csr", "backed_csc", "h5ad_csr", "h5ad_csc", "h5ad_dense", "zarr_v3_csr", "zarr_v2_csc", "mtx_unsorted"]
)
@pytest.mark.parametrize("size", [1, 50])
def test_any_range_in_blocks_of_any_size_is_that_part_of_the_whole(
    few, tmp_path, small_blocks, container, size, copied
):
    source, options = copied(container)
    opened = open_counts(source, **options)
    for start, stop in RANGES[:3] if size == 1 else RANGES:
        blocks = list(opened.blocks(start, stop, size=size))
        assert [block.start for block in blocks] == list(range(start, stop, size))
        found = vstack([block.counts for block in blocks]).toarray()
        np.testing.assert_array_equal(found, few.X[start:stop].toarray())
        assert opened.cell_names(start, stop).tolist() == few.obs_names[start:stop].tolist()


@of_each(["loom_by_h5py", "loom_by_loompy", "tenx_h5_v3_antibodies", "mtx_antibodies"])
def test_any_range_of_a_container_of_other_programs_is_that_part_of_the_whole(
    few, tmp_path, small_blocks, container, copied
):
    opened = open_counts(copied(container)[0])
    for start, stop in RANGES:
        found = vstack([block.counts for block in opened.blocks(start, stop, size=31)]).toarray()
        np.testing.assert_array_equal(found, few.X[start:stop].toarray())


def test_a_range_without_cells_has_no_blocks(few):
    assert list(open_counts(few).blocks(5, 5)) == []


@of_each(["memory_csr", "h5ad_csr", "h5ad_csc", "zarr_v2_csr", "loom_by_h5py", "tenx_h5_v3", "mtx_gz"])
def test_a_source_can_be_read_twice_and_by_two_at_a_time(few, tmp_path, small_blocks, container, copied):
    opened = open_counts(copied(container)[0])
    one, other = opened.blocks(), opened.blocks(64)
    next(one), next(other)
    np.testing.assert_array_equal(everything(opened), everything(opened))
    np.testing.assert_array_equal(next(one).counts.toarray(), few.X[64:128].toarray())


def test_a_reader_that_stops_early_leaves_no_file_open(few, tmp_path, copied):
    path = copied("h5ad_csr")[0]
    blocks = open_counts(path).blocks(size=10)
    next(blocks)
    blocks.close()
    with h5py.File(path, "r+"):  # HDF5 refuses a second opening of another mode
        pass


@pytest.mark.parametrize("stored", [csr_array, lambda x: csr_matrix(x).tocoo().tocsr().astype(bool)])
def test_other_kinds_of_sparse_values_are_read(stored):
    x = stored((COUNTS > 0).astype(np.float32))
    np.testing.assert_array_equal(everything(open_counts(small(x))), COUNTS > 0)


def test_values_of_one_entry_in_several_lines_are_added(few, tmp_path, copied):
    folder, _ = copied("mtx_plain")
    path = folder / "matrix.mtx"
    lines = path.read_text().splitlines()
    entry = lines[3].split()
    lines[2] = lines[2].replace(str(few.X.nnz), str(few.X.nnz + 1))
    path.write_text("\n".join([*lines, f"{entry[0]} {entry[1]} 5"]) + "\n")
    expected = few.X.toarray()
    expected[int(entry[1]) - 1, int(entry[0]) - 1] += 5
    np.testing.assert_array_equal(everything(open_counts(folder)), expected)


def test_large_counts_keep_every_digit(tmp_path):
    x = csr_matrix(COUNTS.astype(np.int64) + 2**40 * (COUNTS > 0))
    np.testing.assert_array_equal(everything(open_counts(as_h5ad(small(x), tmp_path))), x.toarray())


def test_counts_may_lie_in_a_layer_without_any_x(tmp_path):
    adata = ad.AnnData(obs=small().obs, var=small().var, layers={"counts": csr_matrix(COUNTS)})
    for source in (adata, as_h5ad(adata, tmp_path), as_zarr(adata, tmp_path)):
        np.testing.assert_array_equal(everything(open_counts(source, layer="counts")), COUNTS)


@pytest.mark.parametrize("writes", [lambda adata, folder: adata, as_h5ad, as_zarr], ids=["memory", "h5ad", "zarr"])
def test_raw_brings_its_own_genes(tmp_path, writes):
    adata = small(csr_matrix(COUNTS)).copy()
    adata.raw = adata
    opened = open_counts(writes(adata[:, :2].copy(), tmp_path), layer="raw")
    assert opened.gene_ids == ("g1", "g2", "g3", "g4")
    assert opened.gene_names == ("A", "B", "C", "D")
    np.testing.assert_array_equal(everything(opened), COUNTS)


@pytest.mark.parametrize("writes", [lambda adata, folder: adata, as_h5ad], ids=["memory", "h5ad"])
def test_a_layer_named_x_is_not_mistaken_for_x(tmp_path, writes):
    source = writes(small(COUNTS, layers={"X": COUNTS * 7}), tmp_path)
    np.testing.assert_array_equal(everything(open_counts(source)), COUNTS)


def test_a_file_from_cellxgene_is_read_from_raw(few, tmp_path):
    """Ensembl index, ``feature_name``, raw counts in ``.raw``, normalised ``X``."""
    few.var = few.var.rename(columns={"gene_name": "feature_name"}).assign(feature_biotype="gene")
    few.var["feature_name"] = few.var["feature_name"].astype("category")
    few.raw = few
    few.X = few.X.log1p()
    few.write_h5ad(tmp_path / "x.h5ad")
    opened = open_counts(tmp_path / "x.h5ad", layer="raw")
    assert opened.gene_ids == tuple(few.var_names)
    assert opened.gene_names == tuple(few.var["feature_name"])
    with pytest.raises(DataFormatError, match="'raw' holds counts: name it with layer="):
        everything(open_counts(tmp_path / "x.h5ad"))


def test_a_path_may_be_a_string(tmp_path):
    assert open_counts(str(as_h5ad(small(), tmp_path))).name == str(tmp_path / "x.h5ad")


# what is no gene


def cite(adata, kinds=("Gene Expression", "Antibody Capture")):
    """The cells with antibodies of many counts between the genes, of which some have the name of a gene."""
    at = np.arange(0, adata.n_vars, 30)
    order = np.argsort(np.concatenate([np.arange(adata.n_vars), at]), kind="stable")
    counts = csr_matrix(np.full((adata.n_obs, len(at)), 999, dtype=np.float32))
    x = hstack([adata.X, counts], format="csr")[:, order]
    names = np.concatenate([adata.var["gene_name"], adata.var["gene_name"].iloc[at]])[order]
    ids = np.concatenate([adata.var_names, adata.var["gene_name"].iloc[at]])[order]
    types = np.repeat(kinds, [adata.n_vars, len(at)])[order]
    var = pd.DataFrame(
        {"gene_ids": ids, "gene_name": names, "feature_types": types}, index=[*map(str, range(len(ids)))]
    )
    return ad.AnnData(x, obs=adata.obs, var=var)


def by_gene(adata, folder):
    return h5ad(csc_matrix)(adata, folder)[0]


@pytest.mark.parametrize(
    "writes",
    [lambda adata, folder: adata, as_h5ad, by_gene, as_backed, as_zarr, lambda *both: loom_by_h5py(*both)[0]],
    ids=["memory", "h5ad", "h5ad_by_gene", "backed", "zarr", "loom"],
)
def test_antibodies_are_not_read_whatever_their_names(few, tmp_path, small_blocks, writes):
    del few.obs["n_counts"]
    opened = open_counts(writes(cite(few), tmp_path), gene_ids="gene_ids")
    np.testing.assert_array_equal(everything(opened), few.X.toarray())
    assert opened.gene_ids == tuple(few.var_names)
    assert opened.no_genes["kind"].tolist() == ["Antibody Capture"] * 10
    assert opened.no_genes["gene"].tolist() == few.var["gene_name"].iloc[::30].tolist()


def test_the_kinds_beside_x_hold_for_raw_too(few):
    adata = cite(few)
    adata.raw = ad.AnnData(adata.X, obs=adata.obs, var=adata.var.drop(columns="feature_types"))
    np.testing.assert_array_equal(everything(open_counts(adata, layer="raw")), few.X.toarray())


def test_totals_are_those_of_the_genes_where_there_is_more(few):
    adata = cite(few)
    adata.obs["n_counts"] = np.asarray(adata.X.sum(axis=1)).ravel()
    np.testing.assert_array_equal(totals(open_counts(adata)), np.asarray(few.X.sum(axis=1)).ravel())


def test_rows_that_say_by_their_name_what_they_are_are_not_read(few):
    few.var_names = few.var["gene_name"]
    few.var_names = [*few.var_names[:-4], "ERCC-00002", "__no_feature", "chr1:100-200", "CD3_TotalSeqB"]
    opened = open_counts(few)
    np.testing.assert_array_equal(everything(opened), few.X.toarray()[:, :-4])
    assert opened.no_genes["kind"].tolist() == ["spike-in", "summary row", "peak", "antibody"]


def test_a_file_without_genes_names_what_it_holds(few):
    with pytest.raises(DataFormatError, match=r"holds no genes; its features are 300 Peaks, 10 Antibody Capture\."):
        open_counts(cite(few, kinds=("Peaks", "Antibody Capture")))


@pytest.mark.parametrize("third", ["unknown", "protein_coding", "GRCh38", "gene expression"])
def test_a_third_column_of_other_content_does_not_hide_the_genes(few, copied, third):
    folder, _ = copied("mtx_plain")
    table = folder / "features.tsv"
    table.write_text(table.read_text().replace("Gene Expression", third))
    np.testing.assert_array_equal(everything(open_counts(folder)), few.X.toarray())


# how numbers are stored


def not_canonical(x):
    """The same matrix, unsorted, every fifth entry in two pieces, with zeros between."""
    x, rng = x.tocoo(), np.random.default_rng(0)
    split = np.arange(x.nnz) % 5 == 0
    rows = np.concatenate([x.row, x.row[split], x.row[split]])
    columns = np.concatenate([x.col, x.col[split], x.col[split]])
    values = np.concatenate([x.data, np.ones(split.sum()), np.zeros(split.sum())])
    values[: x.nnz][split] -= 1
    order = np.lexsort((rng.permutation(len(rows)), rows))
    odd = csr_matrix(x.shape, dtype=np.float32)
    odd.data, odd.indices = values[order].astype(np.float32), columns[order].astype(np.int32)
    odd.indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=x.shape[0]))]).astype(np.int32)
    return odd


@pytest.mark.parametrize(
    "writes",
    [lambda adata, folder: adata, as_h5ad, as_zarr, lambda *both: tenx_h5_v2(*both)[0]],
    ids=["memory", "h5ad", "zarr", "tenx"],
)
def test_what_is_not_canonical_becomes_so_and_stays_as_it_was_where_it_came_from(few, tmp_path, writes):
    few.X.sort_indices()
    odd = with_x(few, not_canonical(few.X))
    before = odd.X.data.copy()
    for block in open_counts(writes(odd, tmp_path)).blocks(size=50):
        expected = few.X[block.start : block.start + 50]
        for part in ("data", "indices", "indptr"):
            np.testing.assert_array_equal(getattr(block.counts, part), getattr(expected, part))
    np.testing.assert_array_equal(odd.X.data, before)


@pytest.mark.parametrize("n_genes", [1, 37, 5000])
def test_genes_in_any_order_are_sorted_as_scipy_does(n_genes):
    rng = np.random.default_rng(0)
    cells = csr_matrix(rng.poisson(0.3, size=(40, n_genes)).astype(np.float64))
    expected = cells.copy()
    for row in range(cells.shape[0]):
        of_row = slice(cells.indptr[row], cells.indptr[row + 1])
        order = rng.permutation(of_row.stop - of_row.start)
        cells.indices[of_row], cells.data[of_row] = cells.indices[of_row][order], cells.data[of_row][order]
    found = canonical(cells)
    for part in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(found, part), getattr(expected, part))


@pytest.mark.parametrize("at", [0, 4095, 4096, 9000])
@pytest.mark.parametrize("wrong", [0.5, -1.0, np.nan, np.inf])
def test_the_first_value_that_is_no_count_is_found(at, wrong):
    values = np.ones(9001)
    assert first_not_a_count(values) == -1
    values[[at, -1]] = wrong
    assert first_not_a_count(values) == at


@pytest.mark.parametrize("kind", [np.float16, ">f4", ">i4", ">f8", np.longdouble, np.uint16])
@pytest.mark.parametrize("where", ["memory", "h5ad", "h5ad_sparse"])
def test_numbers_of_any_kind_are_read(few, tmp_path, kind, where):
    x = few.X.toarray()
    if where == "h5ad_sparse":
        as_h5ad(few, tmp_path)
        with h5py.File(tmp_path / "x.h5ad", "r+") as file:
            values = file["X/data"][:]
            del file["X/data"]
            file["X/data"] = values.astype(kind)
        source = tmp_path / "x.h5ad"
    else:
        adata = with_x(few, x.astype(kind))
        source = adata if where == "memory" else as_h5ad(adata, tmp_path)
    np.testing.assert_array_equal(everything(open_counts(source)), x)


def test_lazy_arrays_are_computed_block_by_block():
    class Lazy:
        def compute(self):
            return csr_matrix(COUNTS)

    np.testing.assert_array_equal(matrices.as_csr(Lazy()).toarray(), COUNTS)


def with_a_filter_that_is_not_there(adata, folder):
    path = folder / "x.h5ad"
    adata.write_h5ad(path, compression="lzf")
    content = path.read_bytes()
    path.write_bytes(content.replace(b"\x00\x7d\x08\x00", b"\x0f\x7d\x08\x00"))
    return path


def test_a_filter_that_is_not_installed_is_no_damage(few, tmp_path):
    path = with_a_filter_that_is_not_there(few, tmp_path)
    with pytest.raises(
        InputError, match=r"x\.h5ad: .*: packed by a filter that is not installed .*pip install"
    ) as error:
        read_all(path)
    assert not isinstance(error.value, DataFormatError)  # which would leave the file out


@pytest.mark.parametrize(
    ("name", "advice"), [("counts.XLSX", "read_excel"), ("seurat.rds", "anndataR"), ("a.RData", "anndataR")]
)
def test_files_of_other_kinds_are_refused_with_the_way_to_an_h5ad(tmp_path, name, advice):
    (tmp_path / name).write_bytes(b"something")
    with pytest.raises(DataFormatError, match=rf"a file of this kind is not read\. Write its counts .*{advice}"):
        open_counts(tmp_path / name)


@pytest.mark.parametrize("place", ["var", "obs/cell_type", "X"])
def test_what_a_later_anndata_may_write_is_named_and_no_damage(few, tmp_path, place):
    path = as_h5ad(few, tmp_path)
    with h5py.File(path, "r+") as file:
        file[place].attrs["encoding-type"] = "of the future"
    with pytest.raises(DataFormatError, match=r"x\.h5ad: .*cannot be read \(") as error:
        read_all(path), open_counts(path).obs("cell_type")
    assert "damaged" not in str(error.value)


# how text is stored


def changed(name, change):
    def write(folder):
        path = folder / name
        path.write_bytes(change(path.read_bytes()))

    return write


def quoted(content):
    lines = content.decode().splitlines()
    return "".join("\t".join(f'"{field}"' for field in line.split("\t")) + "\n" for line in lines).encode()


def swapped(content):
    rows = [line.split("\t") for line in content.decode().splitlines()]
    return "".join("\t".join([name, gene, *rest]) + "\n" for gene, name, *rest in rows).encode()


TABLES = {
    "byte_order_mark": [
        changed("features.tsv", b"\xef\xbb\xbf".__add__),
        changed("barcodes.tsv", b"\xef\xbb\xbf".__add__),
    ],
    "utf_16": [changed("features.tsv", lambda content: content.decode().encode("utf-16"))],
    "header": [changed("features.tsv", b"id\tname\ttype\n".__add__), changed("barcodes.tsv", b"barcode\n".__add__)],
    "quotes": [changed("features.tsv", quoted), changed("barcodes.tsv", quoted)],
    "swapped": [changed("features.tsv", swapped)],
    "blanks_for_tabs": [changed("features.tsv", lambda content: content.replace(b"\t", b" "))],
    "carriage_returns": [changed(n, lambda c: c.replace(b"\n", b"\r\n")) for n in ("features.tsv", "matrix.mtx")],
    "old_line_ends": [changed("barcodes.tsv", lambda content: content.replace(b"\n", b"\r"))],
    "blank_lines_at_the_end": [
        changed(n, lambda c: c + b"\n\n") for n in ("features.tsv", "barcodes.tsv", "matrix.mtx")
    ],
    "packed_without_saying_so": [changed(n, gzip.compress) for n in ("features.tsv", "barcodes.tsv", "matrix.mtx")],
}


@pytest.mark.parametrize("table", list(TABLES))
def test_tables_of_other_hands_are_read(few, copied, table):
    folder, _ = copied("mtx_plain")
    for change in TABLES[table]:
        change(folder)
    opened = open_counts(folder)
    np.testing.assert_array_equal(everything(opened), few.X.toarray())
    assert opened.gene_ids == tuple(few.var_names)
    assert opened.gene_names == tuple(few.var["gene_name"])
    assert opened.cell_names().tolist() == few.obs_names.tolist()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("features.tsv", b"PK\3\4 ...", "found a zip archive or an Excel workbook; save it as a TSV or CSV"),
        ("features.tsv", "ENSG\tb\xe9ta\n".encode("latin-1"), r"line 1 is not in UTF-8 \(byte 0xe9\)"),
        ("barcodes.tsv", b"a\0b\n", "found NUL characters"),
        ("barcodes.tsv", gzip.compress(b"x" * 100, mtime=0)[:-5], "damaged or truncated"),
        ("barcodes.tsv", gzip.compress(bytes(2**27), 9), "become more than .* when they are unpacked"),
        ("matrix.mtx", b"%%MatrixMarket matrix coordinate integer general\n" + b"%" * 2**21, "a line of it has no end"),
        ("matrix.mtx", b"%%MatrixMarket matrix coordinate integer general\n300 150 9\n" + b"1" * 2**22, "longer than"),
        ("matrix.mtx", b"%%MatrixMarket matrix coordinate integer general\n300 150\n", "expected numbers of features"),
    ],
    ids=["workbook", "latin_1", "nul", "cut", "bomb", "endless_comment", "endless_line", "short_header"],
)
def test_tables_that_cannot_be_read_are_refused_in_a_few_words(copied, name, content, message):
    folder, _ = copied("mtx_plain")
    (folder / name).write_bytes(content)
    with pytest.raises(DataFormatError, match=message) as error:
        read_all(folder)
    assert len(str(error.value)) < 600
    assert str(error.value).isprintable()


def test_a_gzip_stream_that_is_damaged_inside_is_named(few, copied):
    folder, _ = copied("mtx_gz")
    path = folder / "matrix.mtx.gz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 50] = bytes(50)
    path.write_bytes(content)
    with pytest.raises(DataFormatError, match="damaged or truncated"):
        read_all(folder)


def test_text_of_looms_is_unescaped_and_columns_may_be_columns(few, tmp_path):
    path, _ = loom_by_h5py(few, tmp_path)
    with h5py.File(path, "r+") as file:
        write_text(file["col_attrs"], "escaped", ["&#946; &amp; Co"] * 150)
        file["col_attrs"]["deep"] = np.arange(150).reshape(-1, 1)
        file["col_attrs"]["latin"] = np.array(["\xe9".encode("latin-1")] * 150)
    opened = open_counts(path)
    assert set(opened.obs("escaped")) == {"β & Co"}
    assert opened.obs("deep", 3, 5).tolist() == [3, 4]
    with pytest.raises(DataFormatError, match=r"obs column 'latin': text that is not in UTF-8 \(byte 0xe9\)"):
        opened.obs("latin")


@pytest.mark.parametrize("place", ["X/data", "obs/index"])
def test_sizes_that_are_only_claimed_are_refused_before_memory_is_asked_for(few, tmp_path, place):
    path = as_h5ad(few, tmp_path)
    with h5py.File(path, "r+") as file:
        kind, attributes = file[place].dtype, dict(file[place].attrs)
        del file[place]
        file.create_dataset(place, shape=(10**11,), dtype=kind, chunks=(10**6,)).attrs.update(attributes)
        if place == "X/data":
            file["X/indptr"][-1] = 10**11 % 2**31
    tracemalloc.start()
    with pytest.raises(DataFormatError):
        read_all(path)
    assert tracemalloc.get_traced_memory()[1] < 2**28
    tracemalloc.stop()


# which column the ids come from


ENSEMBL = [f"ENSG{i:011}" for i in range(4)]


@pytest.mark.parametrize("writes", [lambda adata, folder: adata, as_h5ad], ids=["memory", "h5ad"])
@pytest.mark.parametrize(
    ("columns", "asked", "expected", "column"),
    [
        pytest.param({}, None, ["g1", "g2", "g3", "g4"], "index", id="index"),
        pytest.param({"ensembl_id": list("abcd")}, None, list("abcd"), "ensembl_id", id="ensembl_id"),
        pytest.param({"ensembl_id": list("abcd"), "o": list("efgh")}, "o", list("efgh"), "o", id="asked"),
        pytest.param({"ensembl_id": ENSEMBL}, "index", ["g1", "g2", "g3", "g4"], "index", id="index_asked"),
        pytest.param({"ensembl_id": list("aacd")}, None, list("aacd"), "ensembl_id", id="one_gene_twice"),
        pytest.param({"ensembl_id": ["a", None, "c", "d"]}, None, ["a", "", "c", "d"], "ensembl_id", id="blank"),
        pytest.param({"entrez": [1, 2, 3, 4]}, "entrez", list("1234"), "entrez", id="numbers"),
        pytest.param({"other": list("abcd"), "gene_ids": ENSEMBL}, None, ENSEMBL, "gene_ids", id="told_by_pattern"),
        pytest.param(
            {"gene_ids": [f"{gene}.{i}" for i, gene in enumerate(ENSEMBL)]},
            None,
            [f"{gene}.{i}" for i, gene in enumerate(ENSEMBL)],
            "gene_ids",
            id="told_by_pattern_with_versions",
        ),
        pytest.param({"gene_ids": pd.Categorical(ENSEMBL)}, None, ENSEMBL, "gene_ids", id="categorical"),
        pytest.param({"half": [*ENSEMBL[:2], "a", "b"]}, None, ["g1", "g2", "g3", "g4"], "index", id="half_is_few"),
        pytest.param({"most": [*ENSEMBL[:3], "a"]}, None, [*ENSEMBL[:3], "a"], "most", id="more_than_half"),
        pytest.param(
            {"like": [gene.replace("ENSG", "ENST") for gene in ENSEMBL]},
            None,
            ["g1", "g2", "g3", "g4"],
            "index",
            id="transcripts_are_no_genes",
        ),
        pytest.param({"spaced": [f" {gene} " for gene in ENSEMBL]}, "spaced", ENSEMBL, "spaced", id="spaces_dropped"),
    ],
)
def test_gene_ids_are_those_asked_for_else_ensembl_id_else_told_by_pattern(
    tmp_path, writes, columns, asked, expected, column
):
    adata = small()
    adata.var = adata.var.assign(**columns)
    opened = open_counts(writes(adata, tmp_path), gene_ids=asked)
    assert opened.gene_ids == tuple(expected)
    assert opened.ids_from == column


def test_an_index_of_ensembl_ids_comes_before_a_column_of_them():
    adata = small()
    adata.var.index, adata.var["other"] = ENSEMBL, ENSEMBL[::-1]
    assert open_counts(adata).gene_ids == tuple(ENSEMBL)


def test_names_are_the_index_where_the_ids_are_a_column():
    adata = small()
    adata.var = pd.DataFrame({"gene_ids": ENSEMBL}, index=["A", "B", "C", "D"])
    assert open_counts(adata).gene_names == ("A", "B", "C", "D")


@pytest.mark.parametrize(
    "column", ["gene_name", "feature_name", "gene_symbols", "gene_names", "gene_symbol", "symbol", "Gene"]
)
def test_gene_names_are_found_under_the_usual_columns(column):
    adata = small()
    adata.var = pd.DataFrame({"other": list("efgh"), column: ["A", None, "C", ENSEMBL[0]]}, index=adata.var_names)
    assert open_counts(adata).gene_names == ("A", "", "C", "")


def test_genes_without_names_have_empty_ones():
    adata = small()
    del adata.var["gene_name"]
    assert open_counts(adata).gene_names == ("", "", "", "")


# totals


def totals(opened):
    return np.concatenate([opened.total_counts(block) for block in opened.blocks(size=2)])


def with_totals(tmp_path, values):
    adata = small()
    adata.obs["n_counts"] = values
    return open_counts(as_h5ad(adata, tmp_path))


def test_totals_are_n_counts_where_there_are_any(tmp_path):
    np.testing.assert_array_equal(totals(with_totals(tmp_path, [10, 20, 30])), [10, 20, 30])


@pytest.mark.parametrize("column", [None, ["many", "few", "some"]], ids=["absent", "not_numbers"])
def test_totals_are_summed_where_n_counts_are_absent(tmp_path, column):
    opened = with_totals(tmp_path, column) if column else open_counts(small())
    np.testing.assert_array_equal(totals(opened), [3, 3, 22])


def test_totals_that_differ_by_rounding_are_accepted(tmp_path):
    np.testing.assert_allclose(totals(with_totals(tmp_path, [3 - 1e-7, 3, 22])), [3, 3, 22], rtol=1e-6)


def test_totals_of_a_later_part_are_those_of_its_cells(few):
    few.obs["n_counts"] = np.arange(150) + 10_000.0
    opened = open_counts(few)
    found = np.concatenate([opened.total_counts(block) for block in opened.blocks(30, 130, size=41)])
    np.testing.assert_array_equal(found, np.arange(30, 130) + 10_000)


@pytest.mark.parametrize("given", [21, 0, -1, np.nan, np.inf])
def test_totals_below_the_stored_counts_are_refused_with_the_cell(tmp_path, given):
    message = rf"obs\['n_counts'\] of cell 'c3' is {given:g}, .*22 counts stored for it.*correct the column, or drop it"
    with pytest.raises(DataFormatError, match=message):
        totals(with_totals(tmp_path, [3.0, 3.0, given]))


# values that are no counts

PLACES = {
    "memory_csr": in_memory(csr_matrix),
    "h5ad_csr": h5ad(csr_matrix),
    "h5ad_csc": h5ad(csc_matrix),
    "h5ad_dense": h5ad(np.asarray),
    "zarr_dense": a_zarr(np.asarray, 3),
    "memory_dense": in_memory(np.asarray),
}


@pytest.mark.parametrize("place", list(PLACES))
@pytest.mark.parametrize(
    ("value", "kind"),
    [(0.5, "fractional"), (-1, "negative"), (-0.5, "negative"), (np.nan, "not finite"), (np.inf, "not finite")],
)
def test_a_value_that_is_no_count_is_refused_with_cell_and_gene(tmp_path, place, value, kind):
    x = COUNTS.copy()
    x[2, 1] = value
    source, _ = PLACES[place](small(x), tmp_path)
    with pytest.raises(DataFormatError, match=rf"X holds {kind} values \(first: cell 'c3', gene 'g2', {value:g}\)"):
        everything(open_counts(source), size=2)


@pytest.mark.parametrize("value", ["0.5", "-1", "nan", "inf"])
def test_a_value_that_is_no_count_is_refused_in_an_mtx(few, tmp_path, value, copied):
    path = copied("mtx_plain")[0] / "matrix.mtx"
    lines = path.read_text().splitlines()
    lines[3] = " ".join([*lines[3].split()[:2], value])
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataFormatError, match=rf"{tmp_path}: X holds .* values \(first: cell '{few.obs_names[0]}'"):
        everything(open_counts(tmp_path))


def test_the_column_of_gene_ids_is_used_in_the_message():
    adata = small(COUNTS / 3)
    adata.var["ensembl_id"] = ["e1", "e2", "e3", "e4"]
    with pytest.raises(DataFormatError, match="gene 'e1'"):
        everything(open_counts(adata))


WRITES = pytest.mark.parametrize("writes", [lambda adata, folder: adata, as_h5ad], ids=["memory", "h5ad"])


@WRITES
@pytest.mark.parametrize("form", [csr_matrix, csc_matrix, np.asarray])
def test_the_message_names_the_layer_that_holds_counts_and_it_can_be_read(tmp_path, writes, form):
    layers = {"counts": form(COUNTS), "scaled": form(COUNTS / 7)}
    source = writes(small(COUNTS / 3, layers=layers), tmp_path)
    with pytest.raises(DataFormatError, match=r"raw counts\. 'counts' holds counts: name it with layer="):
        everything(open_counts(source))
    np.testing.assert_array_equal(everything(open_counts(source, layer="counts")), COUNTS)


@WRITES
def test_the_message_names_x_and_raw_when_a_layer_was_asked_for_in_vain(tmp_path, writes):
    adata = small(csr_matrix(COUNTS), layers={"scaled": csr_matrix(COUNTS / 3)})
    adata.raw = small(csr_matrix(COUNTS))
    with pytest.raises(DataFormatError, match=r"scaled holds fractional .*'X' and 'raw' hold counts"):
        everything(open_counts(writes(adata, tmp_path), layer="scaled"))


@WRITES
@pytest.mark.parametrize("layers", [{}, {"scaled": COUNTS / 7}, {"empty": 0 * COUNTS}], ids=["none", "scaled", "empty"])
def test_the_message_says_when_no_layer_holds_counts(tmp_path, writes, layers):
    with pytest.raises(DataFormatError, match=r"No other layer of it holds counts either; go back to the file before"):
        everything(open_counts(writes(small(COUNTS / 3, layers=layers), tmp_path)))


def test_a_damaged_layer_beside_does_not_hide_what_is_wrong(tmp_path):
    path = as_h5ad(small(csr_matrix(COUNTS / 3), layers={"other": csr_matrix(COUNTS)}), tmp_path)
    with h5py.File(path, "r+") as file:
        file["layers/other/indices"][:] = 99
    with pytest.raises(DataFormatError, match="X holds fractional values"):
        everything(open_counts(path))


@pytest.mark.parametrize("name", ["oligodendroglioma", "tcga_50_allgenes"])
def test_real_values_that_are_no_counts_are_refused(shared, name):
    path = shared / "data" / name / f"{name}.h5ad"
    with pytest.raises(DataFormatError, match=rf"{name}\.h5ad: X holds fractional values \(first: cell "):
        everything(open_counts(path))


# inputs are left alone


def test_a_file_may_be_open_for_reading_elsewhere(few, tmp_path, copied):
    path = copied("h5ad_csr")[0]
    with h5py.File(path, "r"):
        assert len(list(open_counts(path).blocks())) == 1


@pytest.mark.parametrize("form", [csr_matrix, csc_matrix, dense])
def test_reading_leaves_an_anndata_as_it_was(few, form):
    adata = with_x(few, form(few.X))
    before = adata.copy()
    read_all(adata)
    assert type(adata.X) is type(before.X)
    assert abs(adata.X - before.X).sum() == 0
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    pd.testing.assert_frame_equal(adata.var, before.var)


# never whole


@of_each([name for name in BY_GENE if name.startswith(("h5ad", "backed"))])
def test_a_matrix_stored_by_gene_is_never_loaded_whole(few, tmp_path, small_blocks, monkeypatch, container, copied):
    source, options = copied(container)
    taken, get = [], h5py.Dataset.__getitem__

    def noting(self, *args, **more):
        found = get(self, *args, **more)
        if self.name.endswith(("/data", "/indices")):
            taken.append(np.size(found))
        return found

    monkeypatch.setattr(h5py.Dataset, "__getitem__", noting)
    np.testing.assert_array_equal(read_all(source, **options), few.X.toarray())
    assert few.X.nnz > 10_000
    assert 1 < max(taken) <= 1000
    assert sum(taken) == 2 * few.X.nnz  # each value once


@of_each([*BY_GENE, "mtx_gz"])
def test_a_matrix_stored_by_gene_says_so_and_can_be_dealt_out_for_others(
    few, tmp_path, small_blocks, container, copied
):
    source, options = copied(container)
    opened, folder = open_counts(source, **options), tmp_path / "dealt"
    assert opened.stored_by_gene
    opened.deal_out(folder)
    assert sum(path.stat().st_size for path in folder.iterdir()) == 16 * few.X.nnz
    np.testing.assert_array_equal(everything(open_counts(source, work=folder, **options), size=50), few.X.toarray())


@pytest.mark.parametrize("container", ["memory_csr", "memory_csc", "h5ad_csr", "h5ad_dense", "zarr_v3_csr"])
def test_what_can_be_cut_by_cells_is_not_dealt_out(few, tmp_path, container, copied):
    assert not open_counts(copied(container)[0]).stored_by_gene


def test_the_copy_of_a_matrix_stored_by_gene_is_removed(few, tmp_path, monkeypatch, copied):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    opened = open_counts(copied("h5ad_csc")[0])
    everything(opened)
    assert list((tmp_path / "tmp").iterdir())
    del opened
    assert not list((tmp_path / "tmp").iterdir())


def peak(source, **options):
    opened = open_counts(source, **options)
    tracemalloc.start()
    n = sum(block.counts.nnz for block in opened.blocks())
    found = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return n, found


@of_each(["h5ad_csr", "h5ad_csc", "h5ad_dense", "zarr_v3_csc", "loom_by_h5py"])
def test_memory_does_not_grow_with_the_number_of_cells(tmp_path, monkeypatch, container):
    for module in (readers, matrices):
        monkeypatch.setattr(module, "BLOCK_CELLS", 256)
    for module in (matrices, containers):
        monkeypatch.setattr(module, "ENTRIES", 1 << 15)
    monkeypatch.setattr(matrices, "DENSE_VALUES", 1 << 16)
    found = []
    for n_cells in (1000, 8000):
        values = random_array((n_cells, 200), density=0.4, format="csr", dtype=np.float32, rng=np.random.default_rng(0))
        adata = ad.AnnData(csr_matrix(values.ceil()))
        adata.var["gene_name"] = adata.var_names
        adata.obs_names, adata.var_names = adata.obs_names + "c", [f"ENSG{i:011}" for i in range(200)]
        (tmp_path / str(n_cells)).mkdir()
        source, options = put(container, adata, tmp_path / str(n_cells))
        n, most = peak(source, **options)
        assert n == values.nnz
        found.append(most)
    assert found[1] < 2 * found[0]  # eight times the cells; their values alone are 5 MB


# files that cannot be used

NOT_THERE = r"no such file\. Expected raw counts: \.h5ad, \.zarr, \.loom, 10x \.h5 or mtx, or a table"


@pytest.mark.parametrize("name", ["x.h5ad", "x.zarr", "matrix.mtx.gz"])
def test_a_missing_file_is_named(tmp_path, name):
    with pytest.raises(DataFormatError, match=rf"{name}: {NOT_THERE}"):
        open_counts(tmp_path / name)


@pytest.mark.parametrize("content", [b"cell,gene\nc1,3\n", b"\x00" * 5000], ids=["text", "binary"])
@pytest.mark.parametrize("name", ["x.h5ad", "x.loom", "x.h5"])
def test_a_file_that_is_no_hdf5_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(
        DataFormatError, match=rf"{name}: not an \.h5ad, \.loom or 10x \.h5 \(HDF5\) file.*Expected raw"
    ):
        open_counts(tmp_path / name)


@pytest.mark.parametrize("share", [0.01, 0.6, 0.999])
@of_each(["h5ad_csr", "h5ad_csc", "h5ad_dense", "loom_by_h5py", "tenx_h5_v3", "tenx_h5_v2"])
def test_a_truncated_hdf5_file_is_named(few, tmp_path, container, share, copied):
    path = copied(container)[0]
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(DataFormatError, match=rf"{path}: .*truncated"):
        read_all(path)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
@pytest.mark.parametrize("name", ["matrix.mtx", "features.tsv", "barcodes.tsv"])
@of_each(["mtx_gz", "mtx_plain"])
def test_a_truncated_file_of_a_10x_folder_is_named(few, tmp_path, container, share, name, copied):
    copied(container)
    path = next(tmp_path.glob(f"{name}*"))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(DataFormatError, match=str(tmp_path)):
        read_all(tmp_path)


def test_a_file_that_shrinks_while_it_is_read_is_named(few, tmp_path, copied):
    path = copied("h5ad_csr")[0]
    opened = open_counts(path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataFormatError, match=r"x\.h5ad: .*damaged or truncated"):
        everything(opened)


@of_each(["h5ad_csr_gzip", "h5ad_csr", "zarr_v2_csr", "zarr_v3_csr", "zarr_v3_dense", "mtx_gz"])
def test_bytes_that_were_flipped_are_named_or_seen_to_be_no_counts(few, tmp_path, container, copied):
    """Whatever a decompressor says of them."""
    copied(container)
    largest = max((path for path in tmp_path.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    for start in range(len(content) // 4, len(content), max(1, len(content) // 16)):
        content[start : start + 64] = b"\xa7" * len(content[start : start + 64])
    largest.write_bytes(content)
    with pytest.raises(DataFormatError, match=str(tmp_path)):
        read_all(next(tmp_path.glob("x.*"), tmp_path))


@pytest.mark.parametrize("at", [0.3, 0.6, 0.9])
def test_a_gz_damaged_in_the_middle_is_named(few, tmp_path, at, copied):
    copied("mtx_gz")
    path = tmp_path / "matrix.mtx.gz"
    content = bytearray(path.read_bytes())
    start = int(len(content) * at)
    content[start : start + 32] = bytes(range(224, 256))
    path.write_bytes(content)
    with pytest.raises(DataFormatError, match=str(tmp_path)):
        read_all(tmp_path)


# an h5ad changed by hand

CHANGES = {
    "no_obs": lambda file: file.__delitem__("obs"),
    "no_var": lambda file: file.__delitem__("var"),
    "no_indices": lambda file: file.__delitem__("X/indices"),
    "no_indptr": lambda file: file.__delitem__("X/indptr"),
    "no_names": lambda file: file.__delitem__("obs/_index"),
    "names_are_not_told": lambda file: file["obs"].attrs.__delitem__("_index"),
    "a_column_is_lost": lambda file: file.__delitem__("var/gene_name"),
    "index_too_large": lambda file: file["X/indices"].__setitem__(1, 4),
    "index_negative": lambda file: file["X/indices"].__setitem__(1, -1),
    "indptr_goes_back": lambda file: file["X/indptr"].__setitem__(slice(None), [0, 5, 2, 7]),
    "indptr_ends_early": lambda file: file["X/indptr"].__setitem__(3, 6),
    "indptr_ends_late": lambda file: file["X/indptr"].__setitem__(3, 9),
    "indptr_begins_late": lambda file: file["X/indptr"].__setitem__(0, 1),
    "indptr_in_the_middle_beyond": lambda file: file["X/indptr"].__setitem__(1, 900),
    "indptr_too_short": lambda file: replace(file, "X/indptr", np.array([0, 2, 7])),
    "indices_too_few": lambda file: replace(file, "X/indices", np.array([0, 1])),
    "data_too_few": lambda file: replace(file, "X/data", np.array([1.0, 2.0])),
    "data_are_words": lambda file: replace(file, "X/data", np.array([b"many"] * 7)),
    "data_are_numerals": lambda file: replace(file, "X/data", np.array([b"1"] * 7)),
    "data_are_complex": lambda file: replace(file, "X/data", np.full(7, 1 + 1j)),
    "indices_are_fractions": lambda file: replace(file, "X/indices", np.array([0, 2.5, 1, 0, 1, 2, 3])),
    "shape_of_more_cells": lambda file: file["X"].attrs.__setitem__("shape", [4, 4]),
    "shape_of_fewer_genes": lambda file: file["X"].attrs.__setitem__("shape", [3, 3]),
    "shape_of_more_genes": lambda file: file["X"].attrs.__setitem__("shape", [3, 5]),
    "more_names_than_cells": lambda file: rename(file, ["c1", "c2", "c3", "c4"]),
    "fewer_names_than_cells": lambda file: rename(file, ["c1", "c2"]),
    "names_twice": lambda file: rename(file, ["c1", "c2", "c1"]),
    "nul_in_a_name": lambda file: replace(file, "obs/_index", np.array([b"c1", b"c\0two", b"c3"])),
    "name_is_not_utf8": lambda file: replace(file, "obs/_index", np.array([b"c1", b"c\xff2", b"c3"])),
    "x_is_of_three_dimensions": lambda file: replace(file, "X", np.ones((3, 4, 2))),
    "x_is_a_number": lambda file: replace(file, "X", 3.0),
    "x_is_text": lambda file: replace(file, "X", np.full((3, 4), b"two")),
    "x_is_numerals": lambda file: replace(file, "X", np.full((3, 4), b"2")),
    "obs_is_something_else": lambda file: replace(file, "obs", np.arange(3)),
}


def replace(file, name, values):
    attributes = dict(file[name].attrs)
    del file[name]
    file[name] = values
    file[name].attrs.update(attributes)


def rename(file, names):
    attributes = dict(file["obs/_index"].attrs)
    del file["obs/_index"]
    write_text(file["obs"], "_index", names).attrs.update(attributes)


@pytest.mark.parametrize("change", list(CHANGES))
def test_a_malformed_h5ad_is_refused_by_name(tmp_path, change):
    path = as_h5ad(small(csr_matrix(COUNTS)), tmp_path)
    with h5py.File(path, "r+") as file:
        CHANGES[change](file)
    with pytest.raises(InputError, match=rf"{path}: "):
        read_all(path)


@pytest.mark.parametrize("change", [name for name in CHANGES if not name.startswith("indptr")])
def test_a_malformed_h5ad_stored_by_gene_is_refused_by_name(tmp_path, change):
    path = as_h5ad(small(csc_matrix(COUNTS)), tmp_path)
    with h5py.File(path, "r+") as file:
        CHANGES[change](file)
    with pytest.raises(InputError, match=rf"{path}: "):
        read_all(path)


def test_a_csc_whose_indptr_goes_back_is_refused_by_name(tmp_path):
    path = as_h5ad(small(csc_matrix(COUNTS)), tmp_path)
    with h5py.File(path, "r+") as file:
        file["X/indptr"][:] = [0, 5, 2, 6, 7]
    with pytest.raises(DataFormatError, match=rf"{path}: .*indptr goes back"):
        read_all(path)


@pytest.mark.parametrize("change", [None, *list(CHANGES)[::6]])
def test_a_malformed_h5ad_is_not_tokenised_and_leaves_nothing(tmp_path, change):
    path = as_h5ad(small(csr_matrix(COUNTS)), tmp_path)
    with h5py.File(path, "r+") as file:
        (CHANGES[change] if change else lambda file: None)(file)
    tokens = {token: i for i, token in enumerate(["<pad>", "<mask>", "g1", "g2", "g3", "g4"])}
    vocabulary = Vocabulary.from_tokens(tokens, dict.fromkeys(["g1", "g2", "g3", "g4"], 1.0))
    if change is None:  # the file is not refused for anything else
        assert len(tokenize(path, vocabulary, out=tmp_path / "out")) == 3
        return
    with pytest.raises(InputError, match=str(path)):
        tokenize(path, vocabulary, out=tmp_path / "out")
    assert [left.name for left in tmp_path.iterdir()] == ["x.h5ad"]


def test_another_hdf5_file_is_named_with_what_it_holds(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["values"] = [1, 2, 3]
    with pytest.raises(DataFormatError, match=r"x\.h5: an HDF5 file, but not a readable .* \(it holds values\)"):
        open_counts(tmp_path / "x.h5")


def test_molecule_info_is_told_from_a_matrix(tmp_path):
    with h5py.File(tmp_path / "molecule_info.h5", "w") as file:
        for name in ("barcode_idx", "count", "feature_idx", "gem_group", "umi"):
            file[name] = np.arange(9)
        file["barcodes"] = np.array([b"ACGT", b"CGTA"])
        write_text(file.create_group("features"), "id", ENSEMBL)
        file.create_group("barcode_info")["pass_filter"] = np.zeros((2, 3), int)
    with pytest.raises(DataFormatError, match=r"molecule_info\.h5: an HDF5 file, but not a readable .*10x matrix"):
        open_counts(tmp_path / "molecule_info.h5")


def test_a_10x_file_of_several_genomes_is_refused_with_their_names(few, tmp_path):
    path = tenx_h5_v2(few, tmp_path)[0]
    with h5py.File(path, "r+") as file:
        file.copy("GRCh38", "mm10")
    with pytest.raises(DataFormatError, match=r"genes\.h5: a 10x file of several genomes \(GRCh38, mm10\)"):
        open_counts(path)


def as_mudata(folder, rna, **others):
    """Write what ``mudata.write`` writes of several modalities, as far as anybody reads it."""
    for name, adata in {"rna": rna, **others}.items():
        adata.write_h5ad(folder / f"{name}.h5ad")
    path = folder / "cells.h5mu"
    with h5py.File(path, "w") as file:
        for name in ("rna", *others):
            with h5py.File(folder / f"{name}.h5ad") as of:
                of.copy(of["/"], file.require_group("mod"), name)
        for name in ("obs", "var"):
            file.create_group(name)
    return path


def test_the_rna_of_a_mudata_is_read_as_if_it_were_a_file_of_its_own(few, tmp_path):
    proteins = ad.AnnData(np.ones((len(few), 2), np.float32), obs=few.obs[[]], var=pd.DataFrame(index=["CD3", "CD19"]))
    path = as_mudata(tmp_path, few, prot=proteins)
    opened, alone = open_counts(path), open_counts(tmp_path / "rna.h5ad")
    assert (everything(opened) == everything(alone)).all()
    assert (opened.cell_names() == alone.cell_names()).all()
    assert opened.gene_ids == alone.gene_ids
    assert opened.obs_columns == alone.obs_columns
    named = tokenize(path / "rna", Vocabulary.fit(few))
    assert named.spec["sources"][0]["bytes"] == path.stat().st_size
    assert raw_counts(named).sum() == few.X.sum()
    with pytest.raises(InputError, match=r"a MuData without 'rnb'. Did you mean 'rna'"):
        open_counts(path / "rnb")
    zarr.open_group(str(tmp_path / "cells.zarr"), mode="w").require_group("mod")
    shutil.move(as_zarr(few, tmp_path, version=3), tmp_path / "cells.zarr" / "mod" / "rna")
    assert (everything(open_counts(tmp_path / "cells.zarr")) == everything(alone)).all()


def test_a_mudata_without_rna_is_refused_with_its_modalities(few, tmp_path):
    path = as_mudata(tmp_path, few, prot=few)
    with h5py.File(path, "r+") as file:
        file.move("mod/rna", "mod/atac")
    with pytest.raises(DataFormatError, match=r"a MuData whose modalities are atac, prot; .*cells\.h5mu/NAME"):
        open_counts(path)
    assert (everything(open_counts(path / "atac")) == everything(open_counts(few))).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(
            gzip.compress(b"\x89HDF", mtime=0), r"found a file packed by gzip. Unpack it: gunzip -k 'my cells.h5ad'"
        ),
        pytest.param(b"\n<!DOCTYPE html><html>", "found a web page. The download gave a page"),
        pytest.param(b"version https://git-lfs.github.com/spec/v1\noid", "a pointer of Git LFS.* git lfs pull"),
        pytest.param(b"/annex/objects/SHA256E-s12.h5ad", "a pointer of git-annex.* git annex get"),
        pytest.param(b"PK\x03\x04", "found a zip archive or an Excel workbook. Unpack it"),
        pytest.param(b"", "found an empty file"),
        pytest.param(b"\0" * 257 + b"ustar", "found a tar archive. Unpack it, .* tar -xf 'my cells.h5ad'"),
        pytest.param(b'{"error": "Not found"}', "found JSON. If a server answered"),
    ],
)
def test_what_is_no_h5ad_is_named_for_what_it_is(tmp_path, content, message):
    path = tmp_path / "my cells.h5ad"
    path.write_bytes(content)
    with pytest.raises(DataFormatError, match=message):
        open_counts(path)


TENX_CHANGES = {
    "no_shape": lambda group: group.__delitem__("shape"),
    "no_features": lambda group: group.__delitem__("features"),
    "no_data": lambda group: group.__delitem__("data"),
    "fewer_barcodes": lambda group: replace(group, "barcodes", group["barcodes"][:-1]),
    "more_barcodes": lambda group: replace(group, "barcodes", np.append(group["barcodes"][:], b"one-more")),
    "fewer_genes": lambda group: [
        replace(group, f"features/{n}", group[f"features/{n}"][:-1]) for n in ("id", "name", "feature_type")
    ],
    "more_genes": lambda group: [
        replace(group, f"features/{n}", np.append(group[f"features/{n}"][:], b"one-more"))
        for n in ("id", "name", "feature_type")
    ],
    "fewer_names": lambda group: replace(group, "features/name", group["features/name"][:-1]),
    "index_too_large": lambda group: group["indices"].__setitem__(5, 300),
    "indptr_goes_back": lambda group: group["indptr"].__setitem__(5, 10**6),
    "barcode_twice": lambda group: group["barcodes"].__setitem__(1, group["barcodes"][0]),
    "no_cells": lambda group: [
        replace(group, "shape", [300, 0]),
        replace(group, "indptr", [0]),
        replace(group, "data", np.empty(0, int)),
        replace(group, "indices", np.empty(0, int)),
        replace(group, "barcodes", np.empty(0, "S4")),
    ],
    "only_antibodies": lambda group: replace(group, "features/feature_type", np.full(300, b"Antibody Capture")),
}


@pytest.mark.parametrize("change", list(TENX_CHANGES))
def test_a_malformed_10x_h5_is_refused_by_name(few, tmp_path, change, copied):
    path = copied("tenx_h5_v3")[0]
    with h5py.File(path, "r+") as file:
        TENX_CHANGES[change](file["matrix"])
    with pytest.raises(DataFormatError, match=rf"{path}: "):
        read_all(path)


LOOM_CHANGES = {
    "no_column_attributes": lambda file: file.__delitem__("col_attrs"),
    "matrix_of_one_dimension": lambda file: replace(file, "matrix", np.ones(9)),
    "matrix_of_words": lambda file: replace(file, "matrix", np.full((300, 150), b"two")),
    "fractions": lambda file: file["matrix"].__setitem__((3, 3), 0.5),
    "cell_twice": lambda file: file["col_attrs/obs_names"].__setitem__(1, file["col_attrs/obs_names"][0]),
    "names_too_few": lambda file: replace(file, "col_attrs/obs_names", np.array([b"c1", b"c2"])),
}


@pytest.mark.parametrize("change", list(LOOM_CHANGES))
def test_a_malformed_loom_is_refused_by_name(few, tmp_path, change, copied):
    path = copied("loom_by_h5py")[0]
    with h5py.File(path, "r+") as file:
        LOOM_CHANGES[change](file)
    with pytest.raises(DataFormatError, match=rf"{path}: "):
        read_all(path)


def header(size):
    return lambda lines: [*lines[:2], size, *lines[3:]]


def entry(text):
    return lambda lines: [*lines[:3], text, *lines[4:]]


MTX_CHANGES = {
    "fewer_lines_than_its_header_says": lambda lines: lines[:-1],
    "no_entries": lambda lines: lines[:3],
    "more_lines_than_its_header_says": lambda lines: [*lines, lines[-1]],
    "no_header": lambda lines: lines[3:],
    "empty": lambda lines: [],
    "banner_only": lambda lines: lines[:1],
    "no_size": lambda lines: lines[:2],
    "size_of_two_numbers": header("300 150"),
    "size_of_words": header("many cells few"),
    "array_format": lambda lines: ["%%MatrixMarket matrix array integer general", *lines[1:]],
    "symmetric": lambda lines: ["%%MatrixMarket matrix coordinate integer symmetric", *lines[1:]],
    "more_genes_than_features": header("301 150 1"),
    "more_cells_than_barcodes": header("300 151 1"),
    "transposed": header("150 300 1"),
    "feature_beyond": entry("301 1 1"),
    "feature_zero": entry("0 1 1"),
    "cell_beyond": entry("1 151 1"),
    "cell_zero": entry("1 0 1"),
    "words": entry("one two three"),
    "value_missing": entry("1 1"),
    "value_a_word": entry("1 1 many"),
    "four_columns": lambda lines: [*lines[:3], *(f"{line} 1" for line in lines[3:])],
    "number_too_large": entry("99999999999999999999 1 1"),
    "cell_is_a_fraction": entry("1 1.5 1"),
}


@pytest.mark.parametrize("change", list(MTX_CHANGES))
def test_a_malformed_mtx_is_refused_by_name(few, tmp_path, change, copied):
    path = copied("mtx_plain")[0] / "matrix.mtx"
    path.write_text("".join(f"{line}\n" for line in MTX_CHANGES[change](path.read_text().splitlines())))
    with pytest.raises(DataFormatError, match=rf"{tmp_path}\S*: "):
        read_all(tmp_path)


@pytest.mark.parametrize("name", ["barcodes.tsv", "features.tsv"])
def test_a_missing_table_beside_an_mtx_is_named(few, tmp_path, name, copied):
    copied("mtx_plain")
    (tmp_path / name).unlink()
    with pytest.raises(DataFormatError, match=rf"matrix\.mtx: expected one of {name}, {name}\.gz.* beside it, found"):
        open_counts(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        pytest.param("barcodes.tsv", "", ".", id="no_barcodes"),
        pytest.param("features.tsv", "", ".", id="no_features"),
        pytest.param("barcodes.tsv", "AC\n" * 150, "cell names stand more than once", id="barcode_twice"),
        pytest.param("barcodes.tsv", "AC\n" * 149, "150 cells, but .* 149 barcodes are named", id="barcode_lost"),
        pytest.param("barcodes.tsv", "".join(f"A{i}\0\n" for i in range(150)), "NUL character", id="nul"),
        pytest.param("features.tsv", "g\tn\n" * 299, "but 299 features", id="feature_lost"),
        pytest.param("features.tsv", "g\tn\tPeaks\n" * 300, "holds no genes", id="no_gene_among_them"),
    ],
)
def test_malformed_tables_beside_an_mtx_are_refused_by_name(few, tmp_path, name, content, message, copied):
    copied("mtx_plain")
    (tmp_path / name).write_text(content)
    with pytest.raises(DataFormatError, match=rf"{tmp_path}\S*: .*{message}"):
        read_all(tmp_path)


def test_a_damaged_10x_folder_is_not_called_a_zarr_store(few, tmp_path, copied):
    copied("mtx_plain")
    (tmp_path / "matrix.mtx").write_text("%%MatrixMarket matrix coordinate integer general\nmany cells few\n")
    with pytest.raises(DataFormatError) as caught:
        open_counts(tmp_path)
    assert "Zarr" not in str(caught.value)


@pytest.mark.parametrize("n", [0, 2])
def test_a_folder_with_none_or_several_matrices_is_refused(few, tmp_path, n):
    for i in range(n):
        mtx(gz=False, prefix=f"GSM{i}_")(few, tmp_path)
    message = rf"{tmp_path}: a folder with {n} matrix\.mtx files\. Expected a Zarr store, or a 10x folder with one"
    with pytest.raises(DataFormatError, match=message):
        open_counts(tmp_path)


# zarr


def lose_a_chunk(store, array):
    """Remove the file of the second chunk; Zarr takes it for zeros."""
    files = sorted(p for p in (store / array).rglob("*") if p.is_file() and not p.name.startswith((".z", "zarr.json")))
    assert len(files) > 1, files
    files[1].unlink()


def rewrite(store, name, **options):
    """Write an array of X again, in other chunks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        group = zarr.open_group(str(store), mode="r+", use_consolidated=False)["X"]
        values = group[name][:]
        del group[name]
        group.create_array(name, data=values, **({"chunks": (len(values) // 5 + 1,)} | options))
        zarr.consolidate_metadata(str(store))


@pytest.mark.parametrize("array", ["data", "indices", "indptr"])
@of_each(["zarr_v2_csr", "zarr_v3_csr", "zarr_v3_csc"])
def test_a_zarr_that_lost_a_chunk_is_refused_by_name(few, tmp_path, container, array, copied):
    store = copied(container)[0]
    rewrite(store, array)
    np.testing.assert_array_equal(read_all(store), few.X.toarray())
    lose_a_chunk(store, f"X/{array}")
    with pytest.raises(DataFormatError, match=rf"{store}: "):
        read_all(store)


def test_a_zarr_whose_values_are_sharded_is_read(few, tmp_path, copied):
    store = copied("zarr_v3_csr")[0]
    for name in ("data", "indices"):
        rewrite(store, name, chunks=(500,), shards=(2000,))
    np.testing.assert_array_equal(read_all(store), few.X.toarray())


@pytest.mark.parametrize("lost", ["obs", "var", "X/indptr", "X/indices", "X/data", "obs/index", "var/_index"])
def test_a_zarr_that_lost_a_folder_is_refused_by_name(few, tmp_path, lost, copied):
    """Also where consolidated metadata still speak of it."""
    store = copied("zarr_v3_csr")[0]
    shutil.rmtree(store / lost)
    with pytest.raises(DataFormatError, match=rf"{store}: "):
        read_all(store)


def test_a_folder_of_another_zarr_is_refused_by_name(tmp_path):
    zarr.open_group(str(tmp_path / "x.zarr"), mode="w").create_array("values", data=np.arange(9))
    with pytest.raises(DataFormatError, match=r"x\.zarr: "):
        open_counts(tmp_path / "x.zarr")


# tables without cells, genes, names

EMPTY_WRITES = pytest.mark.parametrize(
    "writes", [lambda adata, folder: adata, as_h5ad, as_zarr], ids=["memory", "h5ad", "zarr"]
)


@EMPTY_WRITES
@pytest.mark.parametrize("form", [csr_matrix, csc_matrix, np.asarray], ids=["csr", "csc", "dense"])
def test_a_table_without_cells_is_refused(tmp_path, writes, form):
    with pytest.raises(DataFormatError, match=r"holds no cells \(4 genes\)"):
        open_counts(writes(small(form(COUNTS))[:0].copy(), tmp_path))


@EMPTY_WRITES
@pytest.mark.parametrize("form", [csr_matrix, csc_matrix, np.asarray], ids=["csr", "csc", "dense"])
def test_a_table_without_genes_is_refused(tmp_path, writes, form):
    with pytest.raises(DataFormatError, match=r"holds no genes \(3 cells\)"):
        open_counts(writes(small(form(COUNTS))[:, :0].copy(), tmp_path))


@EMPTY_WRITES
def test_cells_without_any_count_are_read(tmp_path, writes):
    np.testing.assert_array_equal(read_all(writes(small(csc_matrix(0 * COUNTS)), tmp_path)), 0 * COUNTS)


@EMPTY_WRITES
def test_repeated_cell_names_are_refused(tmp_path, writes):
    adata = small()
    adata.obs.index = ["c1", "c2", "c1"]
    message = r"1 cell names stand more than once \(first: 'c1'\).*adata\.obs_names_make_unique\(\)"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source = writes(adata, tmp_path)
    with pytest.raises(DataFormatError, match=message):
        open_counts(source).check_cell_names()


def test_a_name_that_repeats_in_another_block_of_names_is_found(few, tmp_path, small_blocks):
    few.obs.index = [*few.obs_names[:149], few.obs_names[0]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = as_h5ad(few, tmp_path)
    with pytest.raises(DataFormatError, match=rf"x\.h5ad: 1 cell names .*'{few.obs_names[0]}'"):
        open_counts(path).check_cell_names()


@pytest.mark.parametrize("writes", [lambda adata, folder: adata, as_zarr], ids=["memory", "zarr"])
def test_a_nul_in_a_cell_name_is_refused(tmp_path, writes):
    adata = small()
    adata.obs_names = ["c1", "c\0two", "c3"]
    with pytest.raises(DataFormatError, match=r"the cell name 'c\\x00two' has a NUL character; rename the cells"):
        open_counts(writes(adata, tmp_path)).check_cell_names()


# what was asked for


@WRITES
def test_an_unknown_layer_is_refused_with_the_nearest(tmp_path, writes):
    with pytest.raises(InputError, match=r"there is no layer 'count'\. Did you mean 'counts'\?"):
        open_counts(writes(small(layers={"counts": COUNTS}), tmp_path), layer="count")


@WRITES
def test_an_absent_x_is_refused_with_what_there_is(tmp_path, writes):
    adata = ad.AnnData(obs=small().obs, var=small().var, layers={"counts": COUNTS})
    with pytest.raises(InputError, match=r"there is no layer 'X'\. X is absent\. There are: 'counts'"):
        open_counts(writes(adata, tmp_path))


@WRITES
def test_an_absent_raw_is_refused(tmp_path, writes):
    with pytest.raises(InputError, match=r"there is no layer 'raw'\. There are: 'X'"):
        open_counts(writes(small(), tmp_path), layer="raw")


@WRITES
def test_an_unknown_column_of_gene_ids_is_refused_with_the_nearest(tmp_path, writes):
    with pytest.raises(InputError, match=r"var has no column 'gene_nam'\. Did you mean 'gene_name'\?"):
        open_counts(writes(small(), tmp_path), gene_ids="gene_nam")


@WRITES
def test_an_unknown_column_of_obs_is_refused_with_the_nearest(few, tmp_path, writes):
    with pytest.raises(InputError, match=r"obs has no column 'celltype'\. Did you mean 'cell_type'\?"):
        open_counts(writes(few, tmp_path)).obs("celltype")


def test_loompy_is_not_needed_to_read_a_loom(few, tmp_path, monkeypatch, copied):
    path = copied("loom_by_h5py")[0]
    monkeypatch.setitem(sys.modules, "loompy", None)
    np.testing.assert_array_equal(read_all(path), few.X.toarray())


def test_tables_of_anndata_0_6_are_refused_with_what_to_do(pbmc, tmp_path):
    path, _ = h5ad_of_anndata_0_6(pbmc[:5].copy(), tmp_path)
    with pytest.raises(DataFormatError, match=r"old\.h5ad: written by AnnData before 0\.7; read it with"):
        open_counts(path)


def test_a_file_that_is_being_written_is_refused_as_that(pbmc, tmp_path):
    pbmc[:5].copy().write_h5ad(tmp_path / "x.h5ad")
    writer = "import h5py, sys; file = h5py.File(sys.argv[1], 'a'); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", writer, tmp_path / "x.h5ad"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        with pytest.raises(InputError, match=r"x\.h5ad: another program has it open for writing") as raised:
            open_counts(tmp_path / "x.h5ad")
        process.communicate()
    assert not isinstance(raised.value, DataFormatError)
