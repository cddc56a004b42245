import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from geneformer_repro.config import ConfigError
from geneformer_repro.errors import InputError
from geneformer_repro.tokenizer.genes import is_mitochondrial
from geneformer_repro.tokenizer.quality import CellFilter, is_beyond, mito_share, moments_of
from geneformer_repro.tokenizer.readers import Block, open_counts

MITO = ["MT-ND1", "MT-CO1", "MT-CYB"]


@pytest.fixture
def cells(pbmc):
    """120 real cells, with counts of three mitochondrial genes drawn for each."""
    some = pbmc[:120].copy()
    del some.obs["n_counts"]
    rng = np.random.default_rng(0)
    drawn = rng.poisson(rng.gamma(1.0, 12.0, size=(120, 1)), size=(120, 3)).astype(np.float32)
    adata = ad.AnnData(csr_matrix(np.hstack([some.X.toarray(), drawn])), obs=some.obs)
    adata.var_names = [*some.var_names, *MITO]
    adata.obs["filter_pass"] = rng.integers(0, 2, 120)
    return adata


def reasons(cells, *, size=50, **asked):
    """Why each cell is left out, read in blocks of that size."""
    cell_filter, source = CellFilter(**asked), open_counts(cells)
    cell_filter.check(source)
    is_mito, moments = is_mitochondrial(source), np.zeros((2, 3))
    for block in source.blocks(size=size):
        moments += moments_of(block, source.total_counts(block), is_mito)
    given = moments if cell_filter.needs_moments else None
    found = [
        cell_filter.reasons(source, block, source.total_counts(block), is_mito, given)
        for block in source.blocks(size=size)
    ]
    return np.concatenate(found)


@pytest.fixture
def table(cells):
    """What is known of each cell, by pandas."""
    frame = cells.to_df().astype(np.float64)
    is_mito = cells.var_names.isin([*MITO, "ENSG00000198840"])  # MT-ND3, by its id
    return pd.DataFrame(
        {
            "counts": frame.sum(axis=1),
            "genes": (frame > 0).sum(axis=1),
            "mito": frame.loc[:, is_mito].sum(axis=1) / frame.sum(axis=1),
            "filter_pass": cells.obs["filter_pass"],
        }
    )


THRESHOLDS = {
    "filter_pass": (True, lambda t: t["filter_pass"] != 1),
    "min_counts": (850, lambda t: t["counts"] < 850),
    "max_counts": (1200.5, lambda t: t["counts"] > 1200.5),
    "min_genes": (230, lambda t: t["genes"] < 230),
    "max_genes": (300, lambda t: t["genes"] > 300),
    "max_mito": (0.05, lambda t: t["mito"] > 0.05),
    "counts_within_sd": (1.2, lambda t: (t["counts"] - t["counts"].mean()).abs() > 1.2 * t["counts"].std(ddof=0)),
    "mito_within_sd": (1.2, lambda t: (t["mito"] - t["mito"].mean()).abs() > 1.2 * t["mito"].std(ddof=0)),
}


@pytest.mark.parametrize("size", [1, 50, 120])
@pytest.mark.parametrize("name", list(THRESHOLDS))
def test_a_threshold_takes_the_cells_that_pandas_would(cells, table, name, size):
    value, fails = THRESHOLDS[name]
    found = reasons(cells, size=size, **{name: value})
    assert 0 < fails(table).sum() < 120
    np.testing.assert_array_equal(found == name, fails(table))
    assert set(found) == {"", name}


def test_a_cell_is_counted_under_the_first_threshold_it_fails(cells, table):
    asked = {name: value for name, (value, _) in THRESHOLDS.items()}
    expected = pd.Series("", index=table.index)
    for name, (_, fails) in reversed(THRESHOLDS.items()):
        expected[fails(table)] = name
    np.testing.assert_array_equal(reasons(cells, **dict(reversed(asked.items()))), expected)
    assert expected.nunique() >= 5


@pytest.mark.parametrize("name", ["counts", "genes"])
def test_a_bound_itself_is_within(cells, table, name):
    for value in table[name].iloc[[0, 60]]:
        assert (reasons(cells, **{f"min_{name}": value, f"max_{name}": value}) == "").sum() == (
            table[name] == value
        ).sum()


@pytest.mark.parametrize("n_sd", [0.5, 1, 3])
def test_standard_deviations_are_those_of_the_whole_source_not_of_a_block(cells, table, n_sd):
    order = np.argsort(table["counts"].to_numpy())
    counts = table["counts"].to_numpy()[order]
    expected = np.abs(counts - counts.mean()) > n_sd * counts.std()
    np.testing.assert_array_equal(reasons(cells[order], size=7, counts_within_sd=n_sd) != "", expected)


def test_nothing_asked_takes_no_cell(cells):
    assert CellFilter().asked == {}
    assert not CellFilter().needs_moments
    assert (reasons(cells) == "").all()


def test_stored_zeros_are_no_expressed_genes(cells, table):
    x = cells.X.tocoo()
    stored = csr_matrix((np.append(x.data, 0), (np.append(x.row, 0), np.append(x.col, 3))), shape=x.shape)
    padded = ad.AnnData(cells.X, obs=cells.obs, var=cells.var)
    padded.X = stored
    np.testing.assert_array_equal(reasons(padded, min_genes=230), reasons(cells, min_genes=230))


def test_totals_are_those_of_n_counts_where_there_are_any(cells, table):
    cells.obs["n_counts"] = table["counts"] + np.arange(120)
    found = reasons(cells, min_counts=900)
    np.testing.assert_array_equal(found != "", cells.obs["n_counts"] < 900)


def test_zero_asked_for_is_asked_for():
    assert CellFilter(min_counts=0, max_mito=0, counts_within_sd=0).asked == {
        "min_counts": 0,
        "max_mito": 0,
        "counts_within_sd": 0,
    }


# the mitochondrial share


def test_the_share_is_a_plain_array_of_one_number_a_cell(cells, table):
    found = mito_share(cells.X, is_mitochondrial(open_counts(cells)))
    assert type(found) is np.ndarray
    assert found.shape == (120,)
    np.testing.assert_allclose(found, table["mito"], rtol=1e-12)


def test_a_cell_without_counts_has_no_share():
    found = mito_share(csr_matrix([[0.0, 0.0], [1.0, 3.0]]), np.array([True, False]))
    np.testing.assert_array_equal(np.asarray(found).ravel(), [0, 0.25])


def test_the_share_of_few_counts_is_not_diluted():
    found = mito_share(csr_matrix([[1.0, 0.0], [1.0, 1.0]]), np.array([True, False]))
    np.testing.assert_array_equal(np.asarray(found).ravel(), [1, 0.5])


# moments


def moments_of_values(values):
    """Moments of total counts, of cells without mitochondrial counts."""
    counts = csr_matrix(values.reshape(-1, 1))
    return moments_of(Block(0, counts), values, np.array([False]))


def test_moments_of_parts_add_up_to_those_of_the_whole():
    values = np.random.default_rng(0).gamma(2, 3000, 1000).round()
    whole, parts = moments_of_values(values), moments_of_values(values[:300]) + moments_of_values(values[300:])
    np.testing.assert_array_equal(whole, parts)
    for n_sd in (0.5, 1, 3):
        expected = np.abs(values - values.mean()) > n_sd * values.std()
        np.testing.assert_array_equal(is_beyond(values, parts[0], n_sd), expected)


def test_moments_are_written_and_read_without_loss(cells):
    source = open_counts(cells)
    block = Block(0, cells.X)
    moments = moments_of(block, source.total_counts(block), is_mitochondrial(source))
    np.testing.assert_array_equal(json.loads(json.dumps(moments.tolist())), moments)
    np.testing.assert_array_equal(moments[:, 0], 120)


@pytest.mark.parametrize("value", [0.1, 0.3, 1 / 3, 1e-3, 2000.0])
@pytest.mark.parametrize("n", [2, 3, 20, 50, 1000])
def test_cells_that_are_all_alike_are_within(value, n):
    values = np.full(n, value)
    assert not is_beyond(values, moments_of_values(values)[0], 3).any()


# what cannot be asked


@pytest.mark.parametrize("name", [name for name in THRESHOLDS if name != "filter_pass"])
@pytest.mark.parametrize("value", [-1, -0.001, np.nan, np.inf])
def test_bounds_that_are_no_numbers_of_at_least_zero_are_refused(name, value):
    with pytest.raises(ConfigError, match=rf"CellFilter\.{name} must be a number of at least 0, found {value}"):
        CellFilter(**{name: value})


def test_a_share_above_one_is_refused():
    with pytest.raises(ConfigError, match=r"CellFilter\.max_mito must be a share, at most 1, found 5"):
        CellFilter(max_mito=5)


@pytest.mark.parametrize("name", ["counts", "genes"])
def test_bounds_that_no_cell_can_meet_are_refused(name):
    with pytest.raises(ConfigError, match=rf"min_{name} must be at most max_{name} \(10\), found 11"):
        CellFilter(**{f"min_{name}": 11, f"max_{name}": 10})


@pytest.mark.parametrize("value", ["many", "500"])
def test_a_bound_that_is_text_is_refused(value):
    with pytest.raises(ConfigError, match=r"CellFilter\.min_counts must be a number"):
        CellFilter(min_counts=value)


def test_filter_pass_must_be_there(cells):
    del cells.obs["filter_pass"]
    with pytest.raises(InputError, match="obs has no column 'filter_pass'"):
        CellFilter(filter_pass=True).check(open_counts(cells))


def test_filter_pass_must_be_numbers(cells):
    cells.obs["filter_pass"] = "yes"
    with pytest.raises(InputError, match=r"obs\['filter_pass'\] must hold 0 and 1, found text"):
        CellFilter(filter_pass=True).check(open_counts(cells))


@pytest.mark.parametrize("kind", [bool, np.int8, np.float32, "Int64"])
def test_filter_pass_may_be_of_any_number_and_missing_is_not_passed(cells, kind):
    passed = cells.obs["filter_pass"].astype(kind)
    if kind == "Int64":
        passed.iloc[5] = pd.NA
    cells.obs["filter_pass"] = passed
    expected = passed.astype("Float64").fillna(0).to_numpy() != 1
    np.testing.assert_array_equal(reasons(cells, filter_pass=True) != "", expected)


@pytest.mark.parametrize("asked", [{"max_mito": 0.1}, {"mito_within_sd": 3}], ids=["max_mito", "mito_within_sd"])
def test_a_bound_on_the_mitochondrial_share_needs_a_mitochondrial_gene(pbmc, asked):
    adata = pbmc[:, :100].copy()
    assert not is_mitochondrial(open_counts(adata)).any()
    with pytest.raises(InputError, match=r"AnnData: a bound on the mitochondrial share.* none of its genes is"):
        CellFilter(**asked).check(open_counts(adata))
    CellFilter(min_counts=3, counts_within_sd=3).check(open_counts(adata))


def test_real_shares_are_those_of_scanpy(shared):
    path = shared / "data" / "pbmc3k" / "pbmc3k.h5ad"
    adata = ad.read_h5ad(path)
    mito = adata.var["gene_name"].str.startswith("MT-").to_numpy()
    expected = (adata.X[:, mito].sum(axis=1) / adata.X.sum(axis=1)).A1
    source = open_counts(path)
    np.testing.assert_array_equal(is_mitochondrial(source), mito)
    found = np.concatenate([mito_share(block.counts, is_mitochondrial(source)) for block in source.blocks()])
    np.testing.assert_allclose(found, expected, rtol=1e-6)
