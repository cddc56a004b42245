import gzip
import logging
import os
import signal
import warnings
from contextlib import suppress

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from forking import forked, status_of
from scipy.io import mmwrite
from scipy.sparse import coo_matrix, csc_matrix, csr_matrix, hstack, vstack

from geneformer_repro.errors import ChangedDataError, DataFormatError, InputError
from geneformer_repro.tokenizer import corpus, fitting, matrices, readers
from geneformer_repro.tokenizer.vocabulary import Vocabulary

pytestmark = pytest.mark.slow


def saved(adata, path, **options):
    adata.copy().write_h5ad(path, **options)
    return path


def quietly(write, *arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write(*arguments, **options)


def listing(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def slow_medians(*adatas):
    """One gene at a time, over all cells of all sources that count it, with NumPy's median; ids from the index."""
    values = {}
    for adata in adatas:
        counts = csc_matrix(csr_matrix(adata.X), dtype=np.float64)
        counts.eliminate_zeros()
        totals = np.asarray(counts.sum(axis=1)).ravel()
        if "n_counts" in adata.obs:
            totals = adata.obs["n_counts"].to_numpy(dtype=np.float64)
        for i, gene in enumerate(adata.var_names):
            column = slice(counts.indptr[i], counts.indptr[i + 1])
            values.setdefault(gene, []).append(counts.data[column] / totals[counts.indices[column]] * 10_000)
    joined = {gene: np.concatenate(parts) for gene, parts in values.items()}
    return {gene: float(np.median(found)) for gene, found in joined.items() if len(found)}


def medians_of(vocabulary):
    return dict(zip(vocabulary.gene_ids, vocabulary.medians.tolist(), strict=True))


def assert_medians(vocabulary, expected):
    found = medians_of(vocabulary)
    assert list(found) == sorted(expected)
    np.testing.assert_allclose([found[gene] for gene in sorted(expected)], [expected[g] for g in sorted(expected)])


def assert_same(found, expected):
    """Bit for bit."""
    assert found.fingerprint == expected.fingerprint
    assert medians_of(found) == medians_of(expected)
    assert found.gene_names == expected.gene_names


def cut_in_parts_of(monkeypatch, part, *, block=None):
    """Make small files be worked off as large ones are."""
    monkeypatch.setattr(fitting, "_PART", part)
    if block:
        for module in (readers, matrices):
            monkeypatch.setattr(module, "BLOCK_CELLS", block)


# medians


@pytest.mark.parametrize(
    "name",
    ["datlinger_jurkat", "kang_ifnb", "lung_lines_mixology"],  # the fewest genes a cell, several donors, the most
)
def test_exact_medians_of_real_sets_are_those_of_numpy(shared, name):
    path = shared / "data" / name / f"{name}.h5ad"
    adata = ad.read_h5ad(path)
    found, expected = medians_of(Vocabulary.fit(path, exact=True)), slow_medians(adata)
    repeated = {
        name.rpartition(".")[0] for name in adata.var["gene_name"] if "." in name
    }  # SNURF.1 is summed into SNURF
    named = dict(zip(adata.var["ensembl_id"], adata.var["gene_name"], strict=True))
    plain = [gene for gene in expected if gene.startswith("ENSG") and named[gene] not in repeated]
    assert len(plain) > 0.95 * len(expected)
    np.testing.assert_allclose([found[gene] for gene in plain], [expected[gene] for gene in plain], rtol=1e-12)


@pytest.mark.parametrize("block", [None, 64])
def test_exact_medians_of_several_sources_are_those_of_numpy_over_all_cells(pbmc, tmp_path, monkeypatch, block):
    if block:
        cut_in_parts_of(monkeypatch, 2 * block, block=block)
    sources = [pbmc[:300].copy(), pbmc[300:500, 100:].copy(), pbmc[500:, ::-1].copy()]
    sources[1].X = csc_matrix(sources[1].X)
    paths = [saved(adata, tmp_path / f"{i}.h5ad") for i, adata in enumerate(sources)]
    expected = slow_medians(*sources)
    for given in (paths, tmp_path, sources, [sources[0], *paths[1:]]):
        assert_medians(Vocabulary.fit(given, exact=True), expected)


def test_one_source_and_its_pieces_give_the_same_exact_medians(pbmc):
    assert_same(Vocabulary.fit([pbmc[:99], pbmc[99:]], exact=True), Vocabulary.fit(pbmc, exact=True))


def as_mtx(adata, folder):
    mmwrite(folder / "matrix.mtx", coo_matrix(adata.X.T).astype(np.int64), field="integer", symmetry="general")
    features = zip(adata.var_names, adata.var["gene_name"], strict=True)
    (folder / "features.tsv").write_text("".join(f"{gene}\t{name}\tGene Expression\n" for gene, name in features))
    (folder / "barcodes.tsv").write_text("".join(f"{name}\n" for name in adata.obs_names))
    for path in list(folder.iterdir()):
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    return folder


def as_zarr(adata, folder):
    quietly(adata.write_zarr, folder / "x.zarr")
    return folder / "x.zarr"


def as_csc(adata, folder):
    adata.X = csc_matrix(adata.X)
    return saved(adata, folder / "x.h5ad")


def as_dense(adata, folder):
    adata.X = adata.X.toarray()
    return saved(adata, folder / "x.h5ad")


def as_loom(adata, folder):
    with h5py.File(folder / "x.loom", "w") as file:
        file["matrix"] = adata.X.toarray().T
        file["row_attrs/Accession"] = np.array(adata.var_names, dtype="S")
        file["row_attrs/Gene"] = np.array(adata.var["gene_name"], dtype="S")
        file["col_attrs/CellID"] = np.array(adata.obs_names, dtype="S")
    return folder / "x.loom"


@pytest.mark.parametrize("make", [as_mtx, as_zarr, as_csc, as_dense, as_loom, lambda adata, _: adata.raw.to_adata()])
def test_the_container_does_not_change_the_vocabulary(pbmc, tmp_path, make):
    few = pbmc[:150].copy()
    few.obs = few.obs[[]]
    few.raw = few
    expected = Vocabulary.fit(few)
    few.raw, source = None, make(few.copy(), tmp_path)
    assert_same(Vocabulary.fit(source), expected)


def test_counts_in_a_layer_or_raw_are_read_where_asked(pbmc, tmp_path):
    expected = Vocabulary.fit(pbmc, exact=True)
    pbmc.layers["counts"], pbmc.raw, pbmc.X = pbmc.X, pbmc, pbmc.X * np.float32(0.1)
    path = saved(pbmc, tmp_path / "x.h5ad")
    for layer in ("counts", "raw"):
        assert_same(Vocabulary.fit(path, layer=layer, exact=True), expected)
    with pytest.raises(DataFormatError, match="'counts' and 'raw' hold counts: name it with layer="):
        Vocabulary.fit(path)


@pytest.mark.parametrize("exact", [False, True], ids=["sketch", "exact"])
def test_fitting_leaves_inputs_and_folder_as_they_were(pbmc, tmp_path, exact):
    paths = [saved(pbmc, tmp_path / "a.h5ad"), as_csc(pbmc[:50].copy(), tmp_path)]
    before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in paths]
    Vocabulary.fit(paths, exact=exact)
    assert [(path.read_bytes(), path.stat().st_mtime_ns) for path in paths] == before
    assert listing(tmp_path) == ["a.h5ad", "x.h5ad"]


# genes


def test_only_genes_that_some_cell_expresses_are_learned(pbmc):
    pbmc.X = csr_matrix(pbmc.X.multiply(np.arange(754) % 5 != 3))
    del pbmc.obs["n_counts"]
    vocabulary = Vocabulary.fit(pbmc, exact=True)
    assert list(vocabulary.gene_ids) == sorted(pbmc.var_names[np.arange(754) % 5 != 3])


@pytest.mark.parametrize(
    "rename",
    [
        pytest.param(lambda a: [f"{gene}.{i % 20}" for i, gene in enumerate(a.var_names)], id="versions"),
        pytest.param(lambda a: a.var_names.str.lower(), id="lower_case"),
        pytest.param(lambda a: a.var["gene_name"], id="symbols"),
        pytest.param(
            lambda a: [gene if i % 3 else a.var["gene_name"].iloc[i] for i, gene in enumerate(a.var_names)],
            id="mixture",
        ),
    ],
)
def test_versions_are_dropped_and_symbols_become_ensembl_ids(pbmc, rename):
    expected = medians_of(Vocabulary.fit(pbmc, exact=True))
    other = ad.AnnData(pbmc.X, obs=pbmc.obs, var=pd.DataFrame(index=rename(pbmc)))
    assert medians_of(Vocabulary.fit(other, exact=True)) == expected


def test_genes_named_in_different_ways_in_two_sources_are_one(pbmc):
    symbols = ad.AnnData(pbmc.X[:350], obs=pbmc.obs[:350], var=pd.DataFrame(index=pbmc.var["gene_name"].to_numpy()))
    versions = ad.AnnData(pbmc.X[350:], obs=pbmc.obs[350:], var=pd.DataFrame(index=pbmc.var_names + ".3"))
    found = Vocabulary.fit([symbols, versions], exact=True)
    assert medians_of(found) == medians_of(Vocabulary.fit(pbmc, exact=True))


def test_repeated_genes_are_summed(pbmc):
    expected = medians_of(Vocabulary.fit(pbmc, exact=True))
    half = csr_matrix((np.floor(pbmc.X.data / 2), pbmc.X.indices, pbmc.X.indptr), pbmc.shape)
    ids = [*pbmc.var_names, *(pbmc.var_names + ".2")]
    twice = ad.AnnData(csr_matrix(hstack([half, pbmc.X - half])), obs=pbmc.obs, var=pd.DataFrame(index=ids))
    assert medians_of(Vocabulary.fit(twice, exact=True)) == expected


def test_an_id_that_is_neither_stays_as_it_is():
    names = ["spike_in-1", "ENSMUSG00000000001.4", "no such gene"]
    counts = ad.AnnData(csr_matrix(np.eye(3, dtype=np.float32)), var=pd.DataFrame(index=names))
    assert set(Vocabulary.fit(counts).gene_ids) == {"spike_in-1", "ENSMUSG00000000001", "no such gene"}


def test_names_come_with_ids_whatever_the_file_is_indexed_by(pbmc):
    by_id = Vocabulary.fit(pbmc)
    bare = pbmc.copy()
    del bare.var["gene_name"]
    by_symbol = pbmc.copy()
    by_symbol.var = pd.DataFrame(index=pbmc.var["gene_name"].astype(str).to_numpy())
    assert by_id.gene_names == Vocabulary.fit(by_symbol).gene_names
    assert Vocabulary.fit(by_symbol).tokens_of(["CD3D"]) == by_id.tokens_of(["CD3D"])
    current = np.mean([a == b for a, b in zip(Vocabulary.fit(bare).gene_names, by_id.gene_names, strict=True)])
    assert current > 0.9  # the file's own names are of hg19


def test_what_is_no_gene_is_not_learned(pbmc):
    more = ad.AnnData(hstack([pbmc.X, pbmc.X[:, :2] * 50], format="csr"))
    more.var = pd.DataFrame(index=[*pbmc.var_names, "ERCC-00002", "__no_feature"])
    del pbmc.obs["n_counts"]
    found, expected = Vocabulary.fit(more), Vocabulary.fit(pbmc)
    assert found.gene_ids == expected.gene_ids
    np.testing.assert_array_equal(found.medians, expected.medians)


def test_a_vocabulary_of_several_genomes_is_refused(pbmc):
    pbmc.var_names = [f"{'hg19' if i % 2 else 'mm10'}_{gene}" for i, gene in enumerate(pbmc.var_names)]
    with pytest.raises(
        InputError, match=r"holds genes of 2 genomes \(mm10: \d+, hg19: \d+\).*Write the genes and cells of one"
    ):
        Vocabulary.fit(pbmc)


def test_names_are_kept_and_the_first_source_that_has_one_gives_it(pbmc):
    nameless, other = pbmc[:20].copy(), pbmc[20:40].copy()
    nameless.var = nameless.var[[]]
    other.var["gene_name"] = other.var["gene_name"] + "-other"
    found = Vocabulary.fit([nameless, pbmc[40:], other])
    names = dict(zip(found.gene_ids, found.gene_names, strict=True))
    assert names == pbmc.var["gene_name"].to_dict()


def test_a_cell_is_scaled_by_all_its_counts(pbmc):
    assert (pbmc.obs["n_counts"].to_numpy() > pbmc.X.sum(axis=1).A1).any()
    with_totals = medians_of(Vocabulary.fit(pbmc, exact=True))
    assert with_totals == pytest.approx(slow_medians(pbmc), rel=1e-12)
    del pbmc.obs["n_counts"]
    without = medians_of(Vocabulary.fit(pbmc, exact=True))
    assert without == pytest.approx(slow_medians(pbmc), rel=1e-12)
    assert without != with_totals


def test_cells_without_counts_and_stored_zeros_change_nothing(pbmc):
    del pbmc.obs["n_counts"]
    expected = medians_of(Vocabulary.fit(pbmc, exact=True))
    x = vstack([pbmc.X, csr_matrix((3, 754), dtype=np.float32)], format="csr")
    stored = x.copy()
    stored.data[:5] = 0
    assert medians_of(Vocabulary.fit(ad.AnnData(x, var=pbmc.var), exact=True)) == expected
    x.data[:5] = 0
    x.eliminate_zeros()
    zeros, none = (Vocabulary.fit(ad.AnnData(matrix, var=pbmc.var), exact=True) for matrix in (stored, x))
    assert medians_of(zeros) == medians_of(none)


# who does the work, and whether it is interrupted


@pytest.fixture
def sources(pbmc, tmp_path):
    """A folder with a file of several parts, one stored by gene, and a Zarr store."""
    folder = tmp_path / "in"
    folder.mkdir()
    saved(pbmc[:400], folder / "a.h5ad")
    by_gene = pbmc[400:550].copy()
    by_gene.X = csc_matrix(by_gene.X)
    saved(by_gene, folder / "b.h5ad")
    quietly(pbmc[550:].copy().write_zarr, folder / "c.zarr")
    return folder


exactly = pytest.mark.parametrize("exact", [False, True], ids=["sketch", "exact"])


@pytest.mark.usefixtures("forked_workers")
def test_two_workers_give_the_bits_of_one_process(sources, monkeypatch):
    """Of the sketch, which depends on the order of merging."""
    cut_in_parts_of(monkeypatch, 100)
    assert_same(Vocabulary.fit(sources, workers=2), Vocabulary.fit(sources))


def die_when_five_are_saved(monkeypatch):
    saved, save = [], fitting.NonzeroMedians.save

    def dying_save(medians, path):
        save(medians, path)
        saved.append(path)
        if len(saved) == 5:
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(fitting.NonzeroMedians, "save", dying_save)


@exactly
def test_killed_and_run_again_gives_the_bits_of_an_uninterrupted_run(sources, tmp_path, monkeypatch, exact):
    cut_in_parts_of(monkeypatch, 100)
    expected = Vocabulary.fit(sources, exact=exact)

    def run():
        die_when_five_are_saved(monkeypatch)
        Vocabulary.fit(sources, work=tmp_path / "work", exact=exact)

    assert status_of(forked(run, tmp_path / "log")) == -signal.SIGKILL
    done, sketch = [], fitting._Fit.sketch
    monkeypatch.setattr(fitting._Fit, "sketch", lambda job, part: (done.append(part.number), sketch(job, part)))
    monkeypatch.setattr(fitting._Fit, "deal_out", lambda *_: pytest.fail("dealt out again"))
    assert_same(Vocabulary.fit(sources, work=tmp_path / "work", exact=exact), expected)
    assert 0 < len(done) < 8
    assert done == list(range(8))[-len(done) :]
    done.clear()
    assert_same(Vocabulary.fit(sources, work=tmp_path / "work", exact=exact), expected)
    assert done == []


@exactly
def test_what_is_damaged_of_unfinished_work_is_made_again(sources, tmp_path, monkeypatch, caplog, exact):
    cut_in_parts_of(monkeypatch, 100)
    expected = Vocabulary.fit(sources, exact=exact)
    interrupt(monkeypatch, sources, work=tmp_path / "work", exact=exact, at=7)
    flipped, shortened = sorted((tmp_path / "work").glob("*.npz"))[:2]
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    for path in (shortened, *(tmp_path / "work").rglob("*.entries")):
        path.write_bytes(path.read_bytes()[:-1])
    assert_same(Vocabulary.fit(sources, work=tmp_path / "work", exact=exact), expected)
    for path in (flipped, shortened):
        assert f"{path.name}: is not as it was written; it is made again" in caplog.text
    assert "00001: 000000.entries has " in caplog.text


def test_a_source_that_changes_while_it_is_read_stops_the_fit_and_leaves_nothing(sources, tmp_path, monkeypatch):
    cut_in_parts_of(monkeypatch, 100)
    source, run = sources / "a.h5ad", fitting._Fit.run
    monkeypatch.setattr(
        fitting._Fit, "run", lambda *a, **o: (source.write_bytes(source.read_bytes() + b"x"), run(*a, **o))[1]
    )
    with pytest.raises(ChangedDataError, match=r"a\.h5ad: changed while it was read"):
        Vocabulary.fit(sources, work=tmp_path / "work")
    assert not (tmp_path / "work").exists()


class Interrupted(BaseException):
    """Stands for what ends a process from outside."""


def interrupt(monkeypatch, *arguments, at, **options):
    """Fit in parts of 100 cells, and stop before part `at`."""
    cut_in_parts_of(monkeypatch, 100)
    sketch = fitting._Fit.sketch

    def stop(job, part):
        if part.number == at:
            raise Interrupted
        sketch(job, part)

    with monkeypatch.context() as patched:
        patched.setattr(fitting._Fit, "sketch", stop)
        with pytest.raises(Interrupted):
            Vocabulary.fit(*arguments, **options)


@exactly
def test_interrupted_at_any_part_gives_the_bits_of_an_uninterrupted_run(sources, tmp_path, monkeypatch, exact):
    cut_in_parts_of(monkeypatch, 100)
    expected = Vocabulary.fit(sources, exact=exact)
    for at in (0, 3, 7):
        interrupt(monkeypatch, sources, work=tmp_path / "work", exact=exact, at=at)
    assert_same(Vocabulary.fit(sources, work=tmp_path / "work", exact=exact), expected)


def test_work_of_other_settings_is_refused_and_kept(pbmc, tmp_path, monkeypatch):
    pbmc.layers["counts"] = pbmc.X
    for name in "ab":
        saved(pbmc[:250], tmp_path / f"{name}.h5ad")
    monkeypatch.chdir(tmp_path)
    interrupt(monkeypatch, ["a.h5ad", "b.h5ad"], work="work", at=2)
    before = listing(tmp_path)
    given = {"sources": ["a.h5ad", "b.h5ad"], "work": "work"}
    for other in ({"exact": True}, {"layer": "counts"}, {"gene_ids": "index"}, {"sources": "a.h5ad"}):
        with pytest.raises(FileExistsError, match="work holds an unfinished fit with other settings"):
            Vocabulary.fit(**(given | other))
    assert listing(tmp_path) == before
    assert_same(Vocabulary.fit(**given), Vocabulary.fit(given["sources"]))


def test_work_on_a_source_that_has_changed_is_refused(pbmc, tmp_path, monkeypatch):
    source = saved(pbmc[:250], tmp_path / "a.h5ad")
    interrupt(monkeypatch, source, work=tmp_path / "work", at=2)
    saved(pbmc[100:350], source)
    with pytest.raises(FileExistsError, match="holds an unfinished fit with other settings"):
        Vocabulary.fit(source, work=tmp_path / "work")


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


damages = pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(truncated, "truncated", id="truncated"),
        pytest.param(bad_in_the_middle, "X holds fractional values", id="bad_in_the_middle"),
        pytest.param(bad_by_gene, "X holds fractional values", id="bad_by_gene"),
    ],
)


@damages
@pytest.mark.parametrize(("place", "exact"), [(0, True), (1, False)], ids=["first_exact", "last_sketch"])
def test_a_damaged_source_is_named_and_the_vocabulary_is_that_without_it(
    pbmc, tmp_path, monkeypatch, caplog, damage, message, place, exact
):
    """Its genes and its names leave no trace either."""
    cut_in_parts_of(monkeypatch, 100)
    bad = pbmc[500:].copy()
    bad.var["gene_name"] = bad.var["gene_name"] + "-bad"
    bad.var_names = [f"ENSG{i:011d}" if i % 2 else gene for i, gene in enumerate(bad.var_names)]
    names = ["a.h5ad", "b.h5ad"] if place else ["b.h5ad", "a.h5ad"]
    saved(pbmc[:500], tmp_path / names[0])
    damage(bad, tmp_path / names[1])
    with caplog.at_level(logging.ERROR):
        found = Vocabulary.fit(tmp_path, exact=exact)
    assert_same(found, Vocabulary.fit(tmp_path / names[0], exact=exact))
    assert f"{names[1]}: left out. " in caplog.text
    assert message in caplog.text


@pytest.mark.parametrize(
    ("damage", "message", "workers"),
    [
        pytest.param(truncated, "truncated", None, id="truncated"),
        pytest.param(bad_in_the_middle, "X holds fractional values", None, id="bad_in_the_middle"),
        pytest.param(bad_in_the_middle, "X holds fractional values", 2, id="bad_in_the_middle_two_workers"),
        pytest.param(bad_by_gene, "X holds fractional values", None, id="bad_by_gene"),
    ],
)
@pytest.mark.usefixtures("forked_workers")
def test_the_only_source_damaged_is_an_error_and_leaves_nothing(pbmc, tmp_path, monkeypatch, damage, message, workers):
    cut_in_parts_of(monkeypatch, 100)
    damage(pbmc, tmp_path / "x.h5ad")
    with pytest.raises(DataFormatError, match=rf"x\.h5ad.*{message}"):
        Vocabulary.fit(tmp_path / "x.h5ad", work=tmp_path / "work", workers=workers)
    assert listing(tmp_path) == ["x.h5ad"]


def test_no_expressed_gene_is_an_error(pbmc):
    with pytest.raises(DataFormatError, match="No gene is expressed in any cell of the given sources"):
        Vocabulary.fit(ad.AnnData(csr_matrix((3, 754), dtype=np.float32), var=pbmc.var))


@pytest.mark.parametrize("end", ["damaged", "refused"])
def test_a_folder_that_is_no_work_of_ours_is_never_deleted(pbmc, tmp_path, monkeypatch, end):
    """`work` may be mistyped, as `out` may."""
    cut_in_parts_of(monkeypatch, 100)
    work = tmp_path / "results"
    work.mkdir()
    (work / "thesis.tex").write_text("years of work")
    bad_in_the_middle(pbmc, tmp_path / "x.h5ad")
    source = tmp_path / "x.h5ad" if end == "damaged" else saved(pbmc, tmp_path / "y.h5ad")
    with suppress(InputError, FileExistsError):
        Vocabulary.fit(source, work=work)
    assert (work / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"layer": "count"}, "there is no layer 'count'", id="layer"),
        pytest.param({"gene_ids": "id"}, "var has no column 'id'", id="gene_ids"),
        pytest.param({"workers": 0}, "workers must be a whole number of at least 1, found 0", id="workers"),
        pytest.param({"series": "V3"}, "There is no series 'V3'", id="series"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_nothing(pbmc, tmp_path, options, message):
    source = saved(pbmc, tmp_path / "x.h5ad")
    with pytest.raises(InputError, match=message):
        Vocabulary.fit(source, work=tmp_path / "work", **options)
    assert listing(tmp_path) == ["x.h5ad"]


def test_an_anndata_in_memory_is_not_shared_out(pbmc):
    with pytest.raises(InputError, match="other processes cannot read an AnnData in memory"):
        Vocabulary.fit(pbmc, workers=2)


def test_parts_are_of_whole_blocks():
    assert fitting._PART % readers.BLOCK_CELLS == 0
    assert corpus.parts_of([fitting._PART + 1], smallest=fitting._PART)[1].start == fitting._PART
