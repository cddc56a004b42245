import os
from pathlib import Path

import pytest

from geneformer_repro.errors import InputError
from geneformer_repro.tokenizer.corpus import find_sources, identity, is_unchanged, labels_of, parts_of

ALL = ["a.h5ad", "b.loom", "c.h5", "deep/er/d.h5ad", "deep/e.zarr", "f.zarr", "tenx/matrix.mtx.gz"]


def touched(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def zarr_store(path, marker="zarr.json"):
    """A store with a file in it that would be a source elsewhere."""
    touched(path / marker)
    touched(path / "X" / "inside.loom")
    return path


def tenx(folder, prefix="", gz=".gz"):
    for name in ("matrix.mtx", "barcodes.tsv", "features.tsv"):
        touched(folder / f"{prefix}{name}{gz}")
    return folder


@pytest.fixture
def folder(tmp_path):
    """One of every container, and what is none."""
    found = tmp_path / "in"
    for name in ("a.h5ad", "b.loom", "c.h5", "deep/er/d.h5ad", "README.md", "notes.tsv", ".hidden.h5ad", ".git/x.h5ad"):
        touched(found / name)
    zarr_store(found / "f.zarr")
    zarr_store(found / "deep" / "e.zarr", ".zgroup")
    tenx(found / "tenx")
    return found


def names_below(folder, sources):
    return [source.relative_to(folder).as_posix() for source in sources]


# what is found


def test_a_file_is_itself(folder):
    assert find_sources(folder / "a.h5ad") == find_sources(str(folder / "a.h5ad")) == [folder / "a.h5ad"]


def test_a_folder_stands_for_every_container_in_and_below_it_in_a_fixed_order(folder):
    found = names_below(folder, find_sources(folder))
    assert found == sorted(ALL)
    assert names_below(folder, find_sources(str(folder) + "/")) == found


def test_the_order_does_not_depend_on_that_of_the_file_system(folder, monkeypatch):
    expected = find_sources(folder)
    iterdir = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: iter(sorted(iterdir(path), reverse=True)))
    assert find_sources(folder) == expected


@pytest.mark.parametrize("marker", ["zarr.json", ".zgroup", ".zmetadata"])
def test_a_zarr_store_is_one_source_and_not_descended_into(tmp_path, marker):
    store = zarr_store(tmp_path / "in" / "x.zarr", marker)
    assert find_sources(store) == find_sources(tmp_path / "in") == [store]


def test_a_zarr_store_need_not_be_called_so(tmp_path):
    store = zarr_store(tmp_path / "in" / "store")
    assert find_sources(tmp_path / "in") == [store]


@pytest.mark.parametrize("gz", ["", ".gz"])
def test_a_tenx_folder_is_one_source(tmp_path, gz):
    found = tenx(tmp_path / "filtered_feature_bc_matrix", gz=gz)
    assert find_sources(found) == [found]


def test_tenx_folders_below_a_folder_are_sources(tmp_path):
    for name in "ba":
        tenx(tmp_path / name)
    assert names_below(tmp_path, find_sources(tmp_path)) == ["a/matrix.mtx.gz", "b/matrix.mtx.gz"]


def test_matrices_with_prefixes_in_one_folder_are_sources(tmp_path):
    for sample in ("GSM2_", "GSM1_"):
        tenx(tmp_path, sample)
    assert names_below(tmp_path, find_sources(tmp_path)) == ["GSM1_matrix.mtx.gz", "GSM2_matrix.mtx.gz"]


@pytest.mark.parametrize("hidden", [".matrix.mtx", "._matrix.mtx.gz", ".x_matrix.mtx", "._a.h5ad", ".deep/a.h5ad"])
def test_hidden_files_are_ignored(tmp_path, hidden):
    """``._NAME`` is what macOS leaves beside NAME on other file systems."""
    touched(tmp_path / "a.h5ad")
    touched(tmp_path / hidden)
    assert find_sources(tmp_path) == [tmp_path / "a.h5ad"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        pytest.param("*.h5ad", ["a.h5ad"], id="star"),
        pytest.param("**/*.h5ad", ["a.h5ad", "deep/er/d.h5ad"], id="below"),
        pytest.param("[bc].*", ["b.loom", "c.h5"], id="brackets"),
        pytest.param("?.zarr", ["f.zarr"], id="zarr"),
        pytest.param("ten*", ["tenx"], id="tenx"),
        pytest.param("dee*", ["deep/e.zarr", "deep/er/d.h5ad"], id="folder"),
    ],
)
def test_a_glob_is_what_it_matches_sorted(folder, pattern, expected):
    assert names_below(folder, find_sources(str(folder / pattern))) == expected


def test_a_name_with_glob_characters_that_exists_is_that_file(tmp_path):
    odd = touched(tmp_path / "a[1].h5ad")
    touched(tmp_path / "a1.h5ad")
    assert find_sources(odd) == [odd]


def test_folders_that_are_there_are_taken_as_they_are_written(tmp_path):
    there = touched(tmp_path / "run [1]" / "x.h5ad")
    assert find_sources(str(tmp_path / "run [1]" / "*.h5ad")) == [there]


def test_links_within_a_folder_are_read_once(tmp_path):
    one = touched(tmp_path / "cells" / "one.h5ad")
    (tmp_path / "cells" / "latest.h5ad").symlink_to("one.h5ad")
    (tmp_path / "cells" / "itself").symlink_to(".")
    (tmp_path / "cells" / "up").symlink_to("..")
    assert find_sources(tmp_path / "cells") == [one]


def test_suffixes_may_be_in_capitals(tmp_path):
    one = touched(tmp_path / "ONE.H5AD")
    assert find_sources(tmp_path) == [one]


def test_several_come_in_the_order_given(folder):
    given = [folder / "c.h5", str(folder / "a.*"), folder / "tenx"]
    assert names_below(folder, find_sources(given)) == ["c.h5", "a.h5ad", "tenx"]


def test_anndata_objects_are_sources_as_they_are(folder, pbmc):
    first, second = pbmc[:3], pbmc[3:5]
    found = find_sources([first, folder / "a.h5ad", second])
    assert [id(found[0]), found[1], id(found[2])] == [id(first), folder / "a.h5ad", id(second)]
    assert find_sources(pbmc)[0] is pbmc


# what is refused


@pytest.mark.parametrize(
    ("given", "message"),
    [
        pytest.param([], "No source was given. Give an AnnData, paths, a glob, or a folder", id="none"),
        pytest.param("absent.h5ad", r"absent\.h5ad: no such file. Expected raw counts", id="absent"),
        pytest.param("absent*.h5ad", r"absent\*\.h5ad: nothing matches", id="glob"),
        pytest.param("empty", "empty: a folder without any .h5ad, .h5mu, .loom", id="folder"),
        pytest.param("only_hidden", "only_hidden: a folder without any .h5ad, .h5mu, .loom", id="hidden"),
        pytest.param(["a.h5ad", "a.h5ad"], r"a\.h5ad is given twice; its cells would count twice", id="twice"),
        pytest.param(["a.h5ad", "./b/../a.h5ad"], r"a\.h5ad is given twice", id="twice_otherwise_written"),
        pytest.param(["a.h5ad", "link.h5ad"], r"link\.h5ad is given twice", id="link"),
        pytest.param(["a.h5ad", "*.h5ad"], r"a\.h5ad is given twice", id="file_and_glob"),
        pytest.param([".", "b"], r"x\.h5ad is given twice", id="folder_and_subfolder"),
        pytest.param(["tenx", "tenx/matrix.mtx.gz"], "is given twice", id="tenx_folder_and_its_matrix"),
    ],
)
def test_what_cannot_be_a_corpus_is_refused(tmp_path, monkeypatch, given, message):
    for name in ("a.h5ad", "b/x.h5ad", "only_hidden/.a.h5ad"):
        touched(tmp_path / name)
    (tmp_path / "empty").mkdir()
    tenx(tmp_path / "tenx")
    (tmp_path / "link.h5ad").symlink_to(tmp_path / "a.h5ad")
    if given == [".", "b"]:
        (tmp_path / "link.h5ad").unlink()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        find_sources(given)


def test_an_anndata_given_twice_is_refused_in_few_words(pbmc):
    with pytest.raises(InputError, match="given twice") as caught:
        find_sources([pbmc, pbmc])
    assert len(str(caught.value)) < 300


OUTS = ["filtered_feature_bc_matrix.h5", "filtered_feature_bc_matrix/matrix.mtx.gz", "molecule_info.h5"]


@pytest.mark.parametrize(
    "files",
    [
        pytest.param([*OUTS, "raw_feature_bc_matrix.h5", "raw_feature_bc_matrix/matrix.mtx.gz"], id="whole"),
        pytest.param(["filtered_feature_bc_matrix.h5", "raw_feature_bc_matrix.h5"], id="h5"),
        pytest.param(["filtered_feature_bc_matrix/matrix.mtx", "raw_feature_bc_matrix/matrix.mtx"], id="mtx"),
        pytest.param(OUTS, id="raw_removed"),
        pytest.param(OUTS[:2], id="filtered_twice"),
        pytest.param(
            ["sample_filtered_feature_bc_matrix.h5", "sample_filtered_feature_bc_matrix/matrix.mtx.gz"], id="multi"
        ),
        pytest.param(["filtered_gene_bc_matrices/hg19/matrix.mtx", "raw_gene_bc_matrices/hg19/matrix.mtx"], id="old"),
    ],
)
@pytest.mark.parametrize("below", ["", "sample1/outs"], ids=["outs", "above"])
def test_the_output_of_cell_ranger_is_refused_with_advice(tmp_path, files, below):
    """It holds the same cells more than once, which would count twice in silence."""
    for name in files:
        touched(tmp_path / below / name)
    with pytest.raises(InputError, match=r"Cell Ranger.*more than once.*filtered_feature_bc_matrix"):
        find_sources(tmp_path)


@pytest.mark.parametrize("name", ["raw_feature_bc_matrix", "filtered_feature_bc_matrix"])
def test_a_matrix_of_cell_ranger_that_is_named_is_read(tmp_path, name):
    for one in ("raw_feature_bc_matrix", "filtered_feature_bc_matrix"):
        touched(tmp_path / f"{one}.h5")
        tenx(tmp_path / one)
    for given in (tmp_path / name, tmp_path / f"{name}.h5"):
        assert find_sources(given) == [given]


# names


@pytest.mark.parametrize(
    ("paths", "labels"),
    [
        pytest.param(["x/a.h5ad"], ["a.h5ad"], id="one"),
        pytest.param(["x/a.h5ad", "x/b.h5ad"], ["a.h5ad", "b.h5ad"], id="one_folder"),
        pytest.param(["x/1/a.h5ad", "x/2/a.h5ad"], ["1/a.h5ad", "2/a.h5ad"], id="same_names"),
        pytest.param(["x/a.h5ad", "x/y/z/b.h5ad"], ["a.h5ad", "y/z/b.h5ad"], id="deeper"),
        pytest.param(["x/tenx", "x/tenx2/matrix.mtx"], ["tenx", "tenx2/matrix.mtx"], id="tenx"),
    ],
)
def test_labels_tell_sources_apart_and_nothing_of_the_machine(tmp_path, monkeypatch, paths, labels):
    for path in paths:
        touched(tmp_path / path)
    monkeypatch.chdir(tmp_path)
    assert labels_of([tmp_path / path for path in paths]) == labels
    assert labels_of([Path(path) for path in paths]) == labels


def test_anndata_objects_are_labelled_by_their_place(pbmc, tmp_path):
    assert labels_of([pbmc, tmp_path / "deep" / "a.h5ad", pbmc[:3]]) == ["AnnData 0", "a.h5ad", "AnnData 2"]


def test_a_link_is_labelled_by_its_own_name(tmp_path):
    """Data under DVC, git-annex or Nextflow are links into a store whose names are digests."""
    for name, digest in (("a.h5ad", "9f/86d081"), ("b.h5ad", "e3/b0c442")):
        touched(tmp_path / "store" / digest)
        (tmp_path / name).symlink_to(tmp_path / "store" / digest)
    assert labels_of([tmp_path / "a.h5ad", tmp_path / "b.h5ad"]) == ["a.h5ad", "b.h5ad"]


@pytest.mark.parametrize("how", ["renamed", "moved"])
def test_labels_stay_where_the_folder_is_moved(folder, tmp_path, how):
    before = labels_of(find_sources(folder))
    to = tmp_path / "other" if how == "renamed" else tmp_path / "far" / "away" / "in"
    to.parent.mkdir(parents=True, exist_ok=True)
    folder.rename(to)
    assert labels_of(find_sources(to)) == before == sorted(ALL)


# parts


@pytest.mark.parametrize(
    "sizes", [[1], [8192], [8193], [20_000, 0, 5, 8192], [0, 0], [10_000_000], [3] * 2500, [9_000_000, 7]]
)
def test_parts_are_all_cells_of_all_sources_once_and_in_order(sizes):
    parts = parts_of(sizes)
    assert [part.number for part in parts] == list(range(len(parts)))
    cells = [(part.source, part.start, part.stop) for part in parts]
    assert cells == sorted(cells)
    for source, size in enumerate(sizes):
        bounds = [(part.start, part.stop) for part in parts if part.source == source]
        assert [0, *(stop for _, stop in bounds)] == [*(start for start, _ in bounds), size]
        assert all(start < stop for start, stop in bounds)


def test_parts_are_of_8192_cells_and_their_number_stays_small():
    assert {part.stop - part.start for part in parts_of([8192 * 1000])} == {8192}
    assert {part.stop - part.start for part in parts_of([8192 * 1001])[:-1]} == {16_384}
    assert len(parts_of([100_000_000])) <= 1000
    assert len(parts_of([50_000] * 2000)) <= 3000


def test_a_part_is_a_whole_number_of_blocks():
    """So that the blocks of a matrix stored by gene are each read once."""
    for size in (8192, 123_456, 99_999_999):
        assert {part.start % 4096 for part in parts_of([size])} == {0}


# has a source changed?


def change_time(path):
    state = path.stat()
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1000))


CHANGES = {
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "touched": change_time,
    "gone": Path.unlink,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", ["file", "zarr", "tenx"])
def test_a_changed_source_is_told_from_an_unchanged_one(tmp_path, kind, change):
    source = {
        "file": lambda: touched(tmp_path / "a.h5ad"),
        "zarr": lambda: zarr_store(tmp_path / "a.zarr"),
        "tenx": lambda: tenx(tmp_path / "a"),
    }[kind]()
    inside = {"file": source, "zarr": source / "X" / "inside.loom", "tenx": source / "barcodes.tsv.gz"}[kind]
    inside.write_bytes(b"content")
    recorded = identity(source)
    assert is_unchanged(recorded)
    assert is_unchanged({"name": "a", "n_cells": 3, **recorded})
    CHANGES[change](inside)
    assert not is_unchanged(recorded)


def test_names_changed_beside_a_matrix_make_it_another_source(tmp_path):
    """Where a folder holds several, the source is the ``matrix.mtx``, but its cells are named by another file."""
    for sample in ("GSM1_", "GSM2_"):
        tenx(tmp_path, sample)
    recorded = identity(find_sources(tmp_path)[0])
    (tmp_path / "GSM1_barcodes.tsv.gz").write_bytes(b"other")
    assert not is_unchanged(recorded)


def test_an_anndata_cannot_be_said_to_be_unchanged(pbmc):
    assert not is_unchanged(identity(pbmc))
    assert not is_unchanged({})


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda a: setattr(a, "X", a.X * 2), id="counts"),
        pytest.param(lambda a: setattr(a, "obs_names", a.obs_names + "x"), id="cell_names"),
        pytest.param(lambda a: setattr(a, "var_names", a.var_names + ".1"), id="gene_ids"),
        pytest.param(lambda a: setattr(a, "var", a.var.assign(ensembl_id="")), id="column_of_gene_ids"),
        pytest.param(lambda a: setattr(a, "obs", a.obs.assign(n_counts=1e9)), id="obs"),
        pytest.param(lambda a: setattr(a, "obs", a.obs.rename(columns={"phase": "cycle"})), id="column_name"),
        pytest.param(lambda a: a.layers.__setitem__("counts", a.X), id="layer"),
    ],
)
def test_the_digest_of_an_anndata_tells_what_changes_its_tokens(pbmc, change):
    few = pbmc[:20].copy()
    before = identity(few)
    assert identity(pbmc[:20]) == identity(few.copy()) == before
    change(few)
    assert identity(few) != before
