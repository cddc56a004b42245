import io
import re
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.sparse import csr_matrix, random_array, save_npz, vstack

from geneformer_repro.errors import DataFormatError
from geneformer_repro.tokenizer.medians import TARGET_SUM, NonzeroMedians

BLOCK = 512


def collect(cells, *, exact=False):
    """Take in normalised cells block by block."""
    found = NonzeroMedians(cells.shape[1], exact=exact)
    for start in range(0, cells.shape[0], BLOCK):
        found.add(cells[start : start + BLOCK])
    return found


def collect_parts(cells, n_parts, *, exact=False):
    """Take in parts apart, merge them in their order."""
    whole = NonzeroMedians(cells.shape[1], exact=exact)
    for part in np.array_split(np.arange(cells.shape[0]), n_parts):
        whole.merge(collect(cells[part[0] : part[-1] + 1], exact=exact))
    return whole


def slowly(cells):
    """One gene at a time, with numpy's median."""
    columns = (column[column > 0] for column in cells.toarray().T)
    return np.array([np.median(values) if len(values) else np.nan for values in columns])


def normalised(counts):
    counts = csr_matrix(counts, dtype=np.float64)
    counts.eliminate_zeros()
    counts.data *= TARGET_SUM / np.repeat(np.asarray(counts.sum(axis=1)).ravel(), np.diff(counts.indptr))
    return counts


def redrawn(adata, n_cells):
    """Cells like these: cells with replacement, their counts drawn anew around the old ones, normalised."""
    rng = np.random.default_rng(0)
    counts = csr_matrix(adata.X, dtype=np.float64)[rng.integers(adata.n_obs, size=n_cells)]
    counts.data = rng.poisson(counts.data).astype(np.float64)
    counts = normalised(counts)
    return counts[np.diff(counts.indptr) > 0]


def sorted_by_gene(cells):
    """Give the same values of each gene, the smallest in the first cells that express it."""
    columns = cells.tocsc().sorted_indices()
    for start, end in zip(columns.indptr, columns.indptr[1:], strict=False):
        columns.data[start:end].sort()
    return csr_matrix(columns)


def errors_in_rank(found, cells):
    """How far the rank of a median among the gene's values is from one half; 0 for a gene without values."""
    columns = cells.tocsc()
    errors = []
    for median, start, end in zip(found, columns.indptr, columns.indptr[1:], strict=False):
        values = np.sort(columns.data[start:end])
        below, above = (np.searchsorted(values, median, side) / max(end - start, 1) for side in ("left", "right"))
        errors.append(max(below - 0.5, 0.5 - above, 0) if end > start else 0)
    return np.array(errors)


def assert_close(found, cells, *, typical=0.001):
    """Exact where few cells express a gene; elsewhere off by less than sampling 2,500 cells is."""
    errors, n_values = errors_in_rank(found, cells), np.diff(cells.tocsc().indptr)
    assert not errors[n_values < 200].any()
    assert errors.max() < 0.01
    assert np.median(errors[n_values >= 1000]) < typical
    np.testing.assert_allclose(found[n_values >= 1000], slowly(cells)[n_values >= 1000], rtol=0.05)


def bits(medians):
    return medians.tobytes()


@pytest.fixture
def few(pbmc):
    """700 normalised blood cells: too few for a digest."""
    return normalised(pbmc.X)


@pytest.fixture(scope="module")
def many(_pbmc):
    """14,000 cells like those, a third of their genes: nearly all have a digest."""
    return redrawn(_pbmc[:, ::3], 14_000)


BOTH = pytest.mark.parametrize("exact", [False, True], ids=["sketch", "exact"])
PARTS = pytest.mark.parametrize("n_parts", [1, 2, 50])


def test_exact_medians_are_those_of_numpy(many):
    np.testing.assert_array_equal(collect(many, exact=True).medians(), slowly(many))


def test_medians_of_few_cells_are_exact_without_asking(few):
    np.testing.assert_array_equal(collect(few).medians(), slowly(few))


@BOTH
@settings(deadline=None, max_examples=40, database=None)
@given(counts=arrays(np.int64, (7, 5), elements=st.integers(0, 4)), n_parts=st.integers(1, 7))
def test_any_few_cells_in_any_parts_give_the_medians_of_numpy(exact, counts, n_parts):
    cells = csr_matrix(counts, dtype=np.float64)
    np.testing.assert_array_equal(collect_parts(cells, n_parts, exact=exact).medians(), slowly(cells))


@PARTS
def test_parts_give_exactly_what_one_pass_gives_in_exact_mode(many, n_parts):
    np.testing.assert_array_equal(
        collect_parts(many, n_parts, exact=True).medians(), collect(many, exact=True).medians()
    )


@PARTS
def test_medians_of_many_cells_are_close_however_they_are_cut(many, n_parts):
    assert_close(collect_parts(many, n_parts).medians(), many)


@pytest.mark.parametrize("n_parts", [1, 3, 50])
@pytest.mark.parametrize("step", [1, -1], ids=["rise", "fall"])
def test_medians_are_close_when_values_only(many, step, n_parts):
    ordered = sorted_by_gene(many)[::step]
    assert_close(collect_parts(ordered, n_parts).medians(), ordered)


@pytest.mark.parametrize("step", [1, -1], ids=["rise", "fall"])
def test_medians_on_the_seam_of_two_parts_are_less_close(many, step):
    ordered = sorted_by_gene(many)[::step]
    assert_close(collect_parts(ordered, 2).medians(), ordered, typical=0.003)


@pytest.mark.parametrize("name", ["pbmc_donorA"])
def test_medians_of_other_cells_are_close(shared, name):
    adata = ad.read_h5ad(shared / "data" / name / f"{name}.h5ad")
    cells = redrawn(adata[:, :1500], 20_000)
    assert_close(collect_parts(cells, 3).medians(), cells)


def test_a_gene_of_one_value_has_that_median_however_often_it_comes():
    cells = csr_matrix(np.full((5_000, 1), 10 / 3))
    np.testing.assert_array_equal(collect_parts(cells, 3).medians(), [10 / 3])


@pytest.mark.parametrize("n_parts", [1, 64])
def test_what_is_kept_does_not_grow_with_the_number_of_values(tmp_path, n_parts):
    found = collect_parts(csr_matrix(np.random.default_rng(0).lognormal(size=(500_000, 1))), n_parts)
    found.save(tmp_path / "found.npz")
    assert (tmp_path / "found.npz").stat().st_size < 9_000 + 2 * 200 * 8 + 3_000
    np.testing.assert_allclose(found.medians(), 1, rtol=0.005)


@BOTH
def test_a_gene_without_a_value_has_no_median(exact):
    found = collect(csr_matrix([[1.0, 0.0], [3.0, 0.0]]), exact=exact)
    np.testing.assert_array_equal(found.medians(), [2.0, np.nan])
    np.testing.assert_array_equal(found.n_values, [2, 0])


@BOTH
def test_nothing_added_gives_no_medians(exact):
    found = NonzeroMedians(3, exact=exact)
    np.testing.assert_array_equal(found.medians(), [np.nan] * 3)
    np.testing.assert_array_equal(found.n_values, [0, 0, 0])


@BOTH
@pytest.mark.parametrize(
    ("values", "median"),
    [
        pytest.param([4.0], 4.0, id="one_value"),
        pytest.param([1.0, 4.0], 2.5, id="two_values"),
        pytest.param([9.0, 1.0, 4.0], 4.0, id="three_values"),
        pytest.param([1.0, 3.0, 2.0, 8.0], 2.5, id="four_values"),
    ],
)
def test_few_values_have_their_median(exact, values, median):
    np.testing.assert_array_equal(collect(csr_matrix([values]).T.tocsr(), exact=exact).medians(), [median])


@BOTH
def test_n_values_counts_the_cells_that_express_a_gene(many, exact):
    found = collect_parts(many, 3, exact=exact)
    assert found.n_values.dtype == np.int64
    np.testing.assert_array_equal(found.n_values, (many > 0).sum(axis=0).A1)


@BOTH
def test_columns_may_be_in_any_order(few, exact):
    mixed = few.copy()
    for start, end in zip(mixed.indptr, mixed.indptr[1:], strict=False):
        order = np.random.default_rng(start).permutation(end - start)
        mixed.indices[start:end], mixed.data[start:end] = mixed.indices[start:end][order], mixed.data[start:end][order]
    mixed.has_sorted_indices = False
    assert bits(collect(mixed, exact=exact).medians()) == bits(collect(few, exact=exact).medians())


@BOTH
def test_asking_for_medians_changes_nothing(many, exact):
    asked, unasked = NonzeroMedians(many.shape[1], exact=exact), NonzeroMedians(many.shape[1], exact=exact)
    for block in (many[:9_000], many[9_000:]):
        asked.add(block)
        unasked.add(block)
        asked.medians()
    assert bits(asked.medians()) == bits(unasked.medians())


@BOTH
def test_a_block_is_left_as_it_was_and_may_change_afterwards(few, exact):
    before, block = few.copy(), few.copy()
    found = NonzeroMedians(few.shape[1], exact=exact)
    found.add(block)
    assert (block != before).nnz == 0
    block.data[:] = 1
    np.testing.assert_array_equal(found.medians(), slowly(before))


@BOTH
def test_merging_into_nothing_gives_the_part(many, exact):
    part = collect(many, exact=exact)
    whole = NonzeroMedians(many.shape[1], exact=exact)
    whole.merge(part)
    assert bits(whole.medians()) == bits(part.medians())


@BOTH
def test_merging_leaves_the_other_as_it_was(many, exact):
    part, whole = collect(many[:7_000], exact=exact), collect(many[7_000:], exact=exact)
    medians, n_values = part.medians(), part.n_values
    whole.merge(part)
    whole.add(many)
    np.testing.assert_array_equal(part.medians(), medians)
    np.testing.assert_array_equal(part.n_values, n_values)


@BOTH
def test_a_file_in_between_changes_no_bit(many, tmp_path, exact):
    def through_a_file(found):
        found.save(tmp_path / "found.npz")
        return NonzeroMedians.load(tmp_path / "found.npz")

    kept = [collect(part, exact=exact) for part in (many[:600], many[600:9_000], many[9_000:])]
    loaded = [through_a_file(collect(part, exact=exact)) for part in (many[:600], many[600:9_000], many[9_000:])]
    whole, resumed = NonzeroMedians(many.shape[1], exact=exact), NonzeroMedians(many.shape[1], exact=exact)
    for ours, theirs in zip(kept, loaded, strict=True):
        whole.merge(ours)
        resumed = through_a_file(resumed)
        resumed.merge(theirs)
    whole.add(many)
    resumed.add(many)
    assert bits(resumed.medians()) == bits(whole.medians())
    np.testing.assert_array_equal(resumed.n_values, whole.n_values)


IN_ANOTHER_PROCESS = """
import sys
import numpy as np
from scipy.sparse import load_npz
from test_medians import collect_parts

cells, medians = sys.argv[1:]
np.save(medians, [collect_parts(load_npz(cells), 5, exact=exact).medians() for exact in (False, True)])
"""


def test_another_process_gives_the_same_bits(many, tmp_path):
    save_npz(tmp_path / "cells.npz", many)
    arguments = [tmp_path / "cells.npz", tmp_path / "medians.npy"]
    subprocess.run([sys.executable, "-c", IN_ANOTHER_PROCESS, *arguments], check=True, cwd=Path(__file__).parent)
    for found, exact in zip(np.load(tmp_path / "medians.npy"), (False, True), strict=True):
        assert bits(found) == bits(collect_parts(many, 5, exact=exact).medians())


@pytest.fixture
def written(tmp_path):
    """A file with digests and waiting values, and its medians."""
    rng = np.random.default_rng(0)
    cells = csr_matrix(random_array((3_000, 3), density=0.6, rng=rng, data_sampler=rng.lognormal))
    found = collect_parts(vstack([cells, cells[:50]]).tocsr(), 2)
    found.save(tmp_path / "found.npz")
    return tmp_path / "found.npz", found.medians()


def test_a_file_cut_anywhere_is_refused(written):
    path, _ = written
    whole = path.read_bytes()
    for length in {*range(0, len(whole), 97), len(whole) - 1}:
        path.write_bytes(whole[:length])
        with pytest.raises(DataFormatError, match="damaged"):
            NonzeroMedians.load(path)


def test_a_file_with_a_wrong_byte_is_refused_or_read_as_it_was(written):
    path, medians = written
    whole, refused = path.read_bytes(), 0
    for place in range(0, len(whole), 41):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            found = NonzeroMedians.load(path)
        except DataFormatError:
            refused += 1
        else:
            np.testing.assert_array_equal(found.medians(), medians)
    assert refused > 0.9 * len(range(0, len(whole), 41))


def test_a_file_whose_arrays_claim_to_be_shorter_is_refused(written):
    path, _ = written
    whole = path.read_bytes()
    claims = list(re.finditer(rb"'shape': \(\d*(?=[1-9],)", whole))
    assert claims
    for claim in claims:
        path.write_bytes(whole[: claim.end()] + bytes([whole[claim.end()] - 1]) + whole[claim.end() + 1 :])
        with pytest.raises(DataFormatError, match="damaged"):
            NonzeroMedians.load(path)


def test_a_file_of_another_version_is_refused(written):
    path, _ = written
    with np.load(path) as content:
        arrays = {**content, "format": np.array("geneformer_repro/medians/99")}
    np.savez(path, **arrays)
    with pytest.raises(DataFormatError, match="its format is geneformer_repro/medians/99"):
        NonzeroMedians.load(path)


def as_bytes(write, *arguments, **named):
    file = io.BytesIO()
    write(file, *arguments, **named)
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"gene\tmedian\n", id="text"),
        pytest.param(as_bytes(np.save, np.ones(3)), id="one_array"),
        pytest.param(as_bytes(np.savez, values=np.ones(3)), id="other_arrays"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, content):
    (tmp_path / "found.npz").write_bytes(content)
    with pytest.raises(DataFormatError, match=r"found\.npz: expected collected values"):
        NonzeroMedians.load(tmp_path / "found.npz")


def test_a_missing_file_is_told_apart_from_a_damaged_one(tmp_path):
    with pytest.raises(FileNotFoundError):
        NonzeroMedians.load(tmp_path / "found.npz")


@pytest.mark.parametrize("suffix", ["", ".npz", ".part"])
def test_the_file_has_the_very_name_it_was_given(tmp_path, suffix):
    NonzeroMedians(2).save(tmp_path / f"found{suffix}")
    assert [path.name for path in tmp_path.iterdir()] == [f"found{suffix}"]
    assert np.isnan(NonzeroMedians.load(tmp_path / f"found{suffix}").medians()).all()


def test_the_published_unit_is_counts_per_ten_thousand():
    assert TARGET_SUM == 10_000
