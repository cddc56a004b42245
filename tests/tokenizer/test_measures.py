"""Bulk samples: expression and z-scores to tokens, and what is refused before the work."""

import logging
from itertools import chain, zip_longest

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csc_matrix, csr_matrix

from geneformer_repro.errors import DataFormatError, InputError, VocabularyMismatchError
from geneformer_repro.tokenizer import readers
from geneformer_repro.tokenizer.corpus import Corpus
from geneformer_repro.tokenizer.counts import raw_counts, vocabulary_counts
from geneformer_repro.tokenizer.dataset import TokenizedDataset
from geneformer_repro.tokenizer.fitting import _Fit
from geneformer_repro.tokenizer.genes import reconcile
from geneformer_repro.tokenizer.measures import Measure
from geneformer_repro.tokenizer.quality import CellFilter
from geneformer_repro.tokenizer.readers import open_counts
from geneformer_repro.tokenizer.tokenize import tokenize
from geneformer_repro.tokenizer.vocabulary import Vocabulary

N_SAMPLES, N_GENES = 12, 40


def samples(values, **obs):
    index = [f"sample{i}" for i in range(len(values))]
    genes = pd.DataFrame(index=[f"ENSG{i:011}" for i in range(values.shape[1])])
    return ad.AnnData(values.astype(np.float32), pd.DataFrame(obs, index=index), genes)


@pytest.fixture
def tpm():
    """Samples with a quarter of the genes silent, that sum to a million."""
    rng = np.random.default_rng(0)
    values = rng.lognormal(3, 2, (N_SAMPLES, N_GENES)) * (rng.random((N_SAMPLES, N_GENES)) > 0.25)
    return samples(1e6 * values / values.sum(1, keepdims=True), n_counts=np.full(N_SAMPLES, 5.0))


@pytest.fixture
def zscores():
    """Values of both signs, some exactly 0, some missing; gene 1 of sample 0 is the only one that is all missing."""
    values = np.random.default_rng(1).normal(0, 2, (N_SAMPLES, N_GENES))
    values[:, 3], values[2, 5], values[0, :4] = 0, np.nan, np.nan
    return samples(values)


@pytest.fixture
def of_bulk(tpm):
    return Vocabulary.fit(tpm, series="V1", values="expression")


def by_turns(ranked):
    half = -(-len(ranked) // 2)
    both = chain.from_iterable(zip_longest(ranked[:half], reversed(ranked[half:])))
    return [gene for gene in both if gene is not None]


def expected_genes(row, medians, genes, *, two_ended):
    """One sample's genes, by its values over the medians; equal ones in the order of the vocabulary."""
    at_hand = [i for i in range(len(row)) if np.isfinite(row[i]) and (medians is None or row[i] > 0)]
    relative = row if medians is None else row / row.sum() * 10_000 / medians
    ranked = sorted(at_hand, key=lambda i: (-relative[i], i))
    return [genes[i] for i in (by_turns(ranked) if two_ended else ranked)]


# what is ranked


@pytest.mark.parametrize("two_ended", [False, True], ids=["descending", "two_ended"])
@pytest.mark.parametrize("form", [np.asarray, csr_matrix, csc_matrix], ids=["dense", "csr", "csc"])
@pytest.mark.parametrize("values", ["expression", "zscore"])
def test_samples_are_ranked_as_one_by_one(tpm, zscores, of_bulk, values, form, two_ended):
    adata = tpm if values == "expression" else zscores
    table = adata.X.astype(np.float64)
    adata.X = form(adata.X)
    medians = of_bulk.medians if values == "expression" else None
    cells = tokenize(adata, of_bulk, values=values, order="two_ended" if two_ended else "descending")
    for i, row in enumerate(table):
        assert cells.genes(i) == expected_genes(row, medians, of_bulk.gene_ids, two_ended=two_ended)


def test_medians_are_those_of_samples_scaled_to_the_same_sum_whatever_n_counts_says(tpm, of_bulk):
    scaled = pd.DataFrame(1e4 * tpm.X.astype(np.float64) / tpm.X.sum(1, keepdims=True, dtype=np.float64))
    np.testing.assert_allclose(of_bulk.medians, scaled.where(scaled > 0).median(), rtol=1e-6)


def test_a_sample_times_a_constant_has_the_same_tokens_and_medians(tpm, of_bulk):
    scaled = tpm.copy()
    scaled.X = tpm.X * np.linspace(0.01, 90, N_SAMPLES)[:, None]
    again = Vocabulary.fit(scaled, series="V1", values="expression")
    np.testing.assert_allclose(again.medians, of_bulk.medians, rtol=1e-5)
    once, twice = (tokenize(adata, of_bulk, values="expression") for adata in (tpm, scaled))
    assert [cell.tolist() for cell in once] == [cell.tolist() for cell in twice]


@pytest.mark.parametrize("order", ["descending", "two_ended"])
def test_log2_values_are_undone_and_those_below_0_are_silent(tpm, of_bulk, order, caplog):
    caplog.set_level(logging.INFO, logger="geneformer_repro")
    logged = tpm.copy()
    logged.X = np.log2(tpm.X.astype(np.float64) + 1)
    logged.X[:2][tpm.X[:2] == 0] = -0.25
    n_below = int((tpm.X[:2] == 0).sum())
    plain = tokenize(tpm, of_bulk, values="expression", order=order)
    undone = tokenize(logged, of_bulk, values="expression", log2=True, order=order)
    assert [cell.tolist() for cell in undone] == [cell.tolist() for cell in plain]
    assert undone.spec["n_below_zero"] == n_below > 0
    assert f"{n_below} log2 values below 0 count as 0." in caplog.messages
    assert f"{n_below} log2 values below 0 count as 0" in undone.summary()
    again = Vocabulary.fit(logged, series="V1", values="expression", log2=True)
    np.testing.assert_allclose(again.medians, of_bulk.medians, rtol=1e-5)


def test_of_one_gene_expression_is_summed_and_z_scores_averaged(of_bulk):
    genes = [*of_bulk.gene_ids[:3], f"{of_bulk.gene_ids[0]}.2"]
    expression = ad.AnnData(np.array([[60.5, 100, 40, 60]]), var=pd.DataFrame(index=genes))
    zscores = ad.AnnData(np.array([[-3, 1, 0, 4.5], [np.nan, 1, 0, -1]]), var=pd.DataFrame(index=genes))
    flat = Vocabulary.from_tokens(
        {token: i for i, token in enumerate(("<pad>", "<mask>", *genes[:3]))}, dict.fromkeys(genes[:3], 1.0),
        values="expression",
    )  # fmt: skip
    assert tokenize(expression, flat, values="expression").genes(0) == [genes[0], genes[1], genes[2]]
    of_zscores = tokenize(zscores, flat, values="zscore")
    assert [of_zscores.genes(i) for i in range(2)] == [[genes[1], genes[0], genes[2]], [genes[1], genes[2], genes[0]]]


def test_max_length_holds_both_ends(zscores, of_bulk):
    short = Vocabulary.fit(zscores, series="V1", values="zscore", max_length=6)
    whole = tokenize(zscores, of_bulk, values="zscore")
    cells = tokenize(zscores, short, values="zscore", order="two_ended")
    for i in range(N_SAMPLES):
        ranked = whole.genes(i)
        assert cells.genes(i) == [ranked[0], ranked[-1], ranked[1], ranked[-2], ranked[2], ranked[-3]]


@pytest.mark.parametrize("values", ["expression", "zscore"])
def test_what_fits_into_max_length_is_told(tpm, zscores, of_bulk, values, caplog):
    caplog.set_level(logging.INFO, logger="geneformer_repro")
    adata = tpm if values == "expression" else zscores
    short = Vocabulary.fit(adata, series="V1", values=values, max_length=8)
    relative = np.abs(adata.X.astype(np.float64))
    if values == "expression":
        relative = relative / relative.sum(1, keepdims=True) / short.medians
    cells = tokenize(adata, short, values=values)
    kept = [[short.position[gene] for gene in cells.genes(i)] for i in range(N_SAMPLES)]
    signal = np.mean([row[places].sum() / np.nansum(row) for row, places in zip(relative, kept, strict=True)])
    at_hand = np.isfinite(adata.X) & ((adata.X > 0) | (values == "zscore"))
    genes = np.mean(8 / at_hand.sum(1))
    assert cells.spec["within_max_length"] == {
        "genes": pytest.approx(genes, abs=1e-6), "signal": pytest.approx(signal, abs=1e-6)
    }  # fmt: skip
    line = f"12 cells (100.0%) were cut to 8 tokens: {genes:.1%} of a cell's"
    assert line in cells.summary()
    assert not any("were cut" in message for message in caplog.messages)
    assert "within_max_length" not in cells.select([0]).spec


def test_the_size_of_blocks_changes_nothing(tpm, of_bulk, monkeypatch):
    plain = tokenize(tpm, of_bulk, values="expression")
    monkeypatch.setattr(readers, "_BULK_VALUES", 5 * N_GENES + 1)
    blocks = open_counts(tpm, measure=Measure("expression")).blocks()
    assert [block.counts.shape[0] for block in blocks] == [5, 5, 2]
    again = tokenize(tpm, of_bulk, values="expression")
    assert [cell.tolist() for cell in again] == [cell.tolist() for cell in plain]
    assert Vocabulary.fit(tpm, series="V1", values="expression") == of_bulk


def test_another_process_reads_the_same_values_and_genes(tpm, of_bulk, tmp_path):
    tpm.X = np.log2(tpm.X + 1)
    tpm.write_h5ad(tmp_path / "x.h5ad")
    options = {"values": "expression", "log2": True}
    Vocabulary.fit(tmp_path / "x.h5ad", base=of_bulk, work=tmp_path / "work", **options)
    job = _Fit.from_plan(tmp_path / "work")
    assert job.corpus.measure == Measure("expression", log2=True)
    source = job.corpus.open(0)
    np.testing.assert_array_equal(reconcile(source, job.base).position, reconcile(source, of_bulk).position)
    tokenize(tmp_path / "x.h5ad", of_bulk, order="two_ended", out=tmp_path / "out", **options)
    spec = TokenizedDataset.open(tmp_path / "out").spec
    plan = {"sources": [{"path": "x"}], "labels": [], "names": [], "sizes": [], "options": spec["options"]}
    assert Corpus.from_plan(plan).measure == job.corpus.measure


# tables


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("genes_in_rows.csv", lambda table, path: table.T.to_csv(path)),
        ("genes_in_columns.tsv.gz", lambda table, path: table.to_csv(path, sep="\t")),
        ("table.parquet", lambda table, path: table.to_parquet(path)),
    ],
)
def test_a_table_is_read_as_an_anndata(zscores, of_bulk, tmp_path, name, write):
    table = pd.DataFrame(zscores.X, zscores.obs_names, zscores.var_names).drop(columns="ENSG00000000001")
    write(table, tmp_path / name)
    expected = tokenize(zscores[:, table.columns].copy(), of_bulk, values="zscore")
    assert Vocabulary.fit(tmp_path / name, values="zscore").gene_ids == tuple(table.columns)
    for source in (tmp_path / name, str(tmp_path / f"*.{name.partition('.')[2]}")):
        cells = tokenize(source, of_bulk, values="zscore")
        assert [cell.tolist() for cell in cells] == [cell.tolist() for cell in expected]
        assert cells.cell_names.tolist() == table.index.tolist()


def test_tables_are_not_looked_for_in_folders(tpm, of_bulk, tmp_path):
    """Where clinical tables, barcodes and results lie, too."""
    tpm.write_h5ad(tmp_path / "x.h5ad")
    tpm.to_df().to_csv(tmp_path / "x.csv")
    assert len(tokenize(tmp_path, of_bulk, values="expression")) == N_SAMPLES


def test_a_table_whose_sides_do_not_tell_is_refused_with_the_way_to_say_it(tpm, of_bulk, tmp_path):
    tpm.to_df().set_axis([f"g{i}" for i in range(N_GENES)], axis=1).to_csv(tmp_path / "x.csv")
    with pytest.raises(
        InputError, match=r"where the genes are.*Give what read_samples\('x\.csv', genes_in=…\) returns"
    ):
        tokenize(tmp_path / "x.csv", of_bulk, values="expression")


def test_a_table_with_gaps_is_no_expression(tpm, of_bulk, tmp_path):
    tpm.to_df().mask(tpm.to_df() == 0).to_csv(tmp_path / "x.csv")
    with pytest.raises(DataFormatError, match=r"nan.*only z-scores may have gaps"):
        tokenize(tmp_path / "x.csv", of_bulk, values="expression")


# what simple methods look at


def test_the_values_of_samples_are_read_again_linear(tpm, of_bulk, tmp_path):
    logged = tpm.copy()
    logged.X = np.log2(tpm.X.astype(np.float64) + 1)
    logged.write_h5ad(tmp_path / "x.h5ad")
    cells = tokenize(tmp_path / "x.h5ad", of_bulk, values="expression", log2=True)
    for read in (raw_counts, vocabulary_counts):
        np.testing.assert_allclose(read(cells.select([4, 1])).toarray(), tpm.X[[4, 1]], rtol=1e-4)


def test_missing_z_scores_read_again_are_the_mean_and_those_of_one_gene_are_averaged(zscores, of_bulk):
    cells = tokenize(zscores, of_bulk, values="zscore")
    np.testing.assert_allclose(raw_counts(cells, zscores).toarray(), np.nan_to_num(zscores.X), rtol=1e-6)
    zscores.var_names = [*zscores.var_names[:-1], f"{zscores.var_names[0]}.7"]
    found = vocabulary_counts(tokenize(zscores, of_bulk, values="zscore"), zscores).toarray()
    np.testing.assert_allclose(found[5, 0], (zscores.X[5, 0] + zscores.X[5, -1]) / 2, rtol=1e-6)


# what is refused


def logarithms(adata):
    adata.X = np.log1p(adata.X)


def whole_numbers(adata):
    adata.X = np.minimum(np.rint(adata.X), 12)


def spoil(value):
    def change(adata):
        adata.X[2, 7] = value

    return change


WRONG = [
    pytest.param(logarithms, {"values": "expression"}, r"none of its values is above .*give log2=True", id="log"),
    pytest.param(
        lambda a: None, {"values": "expression", "log2": True}, r"values are linear. Leave log2=True", id="linear"
    ),
    pytest.param(
        whole_numbers, {"values": "expression", "log2": True}, "whole numbers, as of counts.*Leave log2", id="counts"
    ),
    pytest.param(
        spoil(-0.5),
        {"values": "expression"},
        r"gene 'ENSG00000000007', -0.5\)\. Expression .*\"zscore\"",
        id="negative",
    ),
    pytest.param(spoil(np.nan), {"values": "expression"}, "only z-scores may have gaps", id="missing"),
    pytest.param(spoil(np.inf), {"values": "expression"}, "is none .*inf", id="infinite"),
    pytest.param(
        lambda a: (logarithms(a), spoil(-99)(a)), {"values": "expression", "log2": True}, "is below -10", id="code"
    ),
    pytest.param(lambda a: None, {"values": "zscore"}, r"no z-scores .*values=\"expression\"", id="no_z_scores"),
    pytest.param(spoil(np.inf), {"values": "zscore"}, "A gene that does not vary has no z-score", id="infinite_z"),
    pytest.param(lambda a: None, {}, r"raw counts\..*values=\"expression\".*log2=True", id="no_counts"),
    pytest.param(spoil(-1), {}, "fractional.*Rank encoding needs raw counts", id="fractional_first"),
]


@pytest.mark.parametrize("form", [np.asarray, csc_matrix], ids=["dense", "csc"])
@pytest.mark.parametrize(("change", "options", "message"), WRONG)
def test_other_values_than_were_said_are_refused_and_leave_nothing(
    tpm, of_bulk, tmp_path, change, options, message, form
):
    change(tpm)
    tpm.X = form(tpm.X)
    of_counts = Vocabulary.from_tokens(
        {token: i for i, token in enumerate(("<pad>", "<mask>", *of_bulk.gene_ids))}, dict.fromkeys(of_bulk.gene_ids, 1)
    )
    with pytest.raises(DataFormatError, match=message):
        tokenize(tpm, of_bulk if options else of_counts, out=tmp_path / "out", **options)
    with pytest.raises(DataFormatError, match=message):
        Vocabulary.fit(tpm, **options)
    assert list(tmp_path.iterdir()) == []


def test_ratios_are_refused_as_expression_with_the_way_to_rank_them(zscores, of_bulk):
    zscores.X = np.nan_to_num(zscores.X)
    for options in ({"values": "expression"}, {"values": "expression", "log2": True}, {}):
        with pytest.raises(DataFormatError, match=r"values=\"zscore\" \(--values zscore\)|fractional"):
            tokenize(zscores, Vocabulary.fit(np_counts(), series="V1") if not options else of_bulk, **options)


def np_counts():
    return samples(np.random.default_rng(2).integers(1, 9, (N_SAMPLES, N_GENES)))


def test_values_and_medians_of_other_units_are_not_mixed(tpm, of_bulk):
    of_counts = Vocabulary.fit(np_counts(), series="V1")
    with pytest.raises(InputError, match=r"said to hold expression, and .* is of counts.*base= keeps a model's"):
        tokenize(tpm, of_counts, values="expression")
    with pytest.raises(InputError, match=r"said to hold counts, and .* is of expression.*values='expression'"):
        tokenize(np_counts(), of_bulk)
    with pytest.raises(InputError, match=r"said to hold expression, and .*zscore"):
        tokenize(tpm, Vocabulary.from_tokens({"<pad>": 0, "<mask>": 1, "G": 2}, values="zscore"), values="expression")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": "two_ended"}, "for expression and z-scores"),
        ({"log2": True}, r"values='counts' has none.*values=\"expression\""),
        ({"values": "zscore", "log2": True}, "values='zscore' has none"),
    ],
    ids=["order_of_counts", "log2_of_counts", "log2_of_z_scores"],
)
def test_options_that_do_not_fit_each_other_are_refused(options, message):
    counts = np_counts()
    with pytest.raises(InputError, match=message):
        tokenize(counts, Vocabulary.fit(counts), **options)


@pytest.mark.parametrize(
    ("values", "threshold"),
    [("expression", {"min_counts": 5}), ("zscore", {"min_genes": 2}), ("zscore", {"max_mito": 1})],
)
def test_thresholds_that_say_nothing_of_the_values_are_refused(tpm, zscores, of_bulk, values, threshold):
    with pytest.raises(InputError, match=f"{next(iter(threshold))} says nothing of"):
        tokenize(
            tpm if values == "expression" else zscores, of_bulk, values=values, cell_filter=CellFilter(**threshold)
        )


def test_a_vocabulary_of_two_ended_cells_makes_no_other_ones(zscores, of_bulk):
    cells = tokenize(zscores, of_bulk, values="zscore", order="two_ended")
    with pytest.raises(InputError, match=r"order='two_ended' \(--order two_ended\)"):
        tokenize(zscores, cells.vocabulary, values="zscore")
    again = tokenize(zscores, cells.vocabulary, values="zscore", order="two_ended")
    assert again.fingerprint == cells.fingerprint


# genes of a model, medians of bulk


def test_base_keeps_tokens_and_learns_medians(tpm, of_bulk, caplog):
    genes = [*of_bulk.gene_ids[::-1], "ENSG00000999999"]
    model = Vocabulary.from_tokens(
        {token: 2 * i for i, token in enumerate(("<pad>", "<mask>", *genes))}, dict.fromkeys(genes, 7.0), max_length=99
    )
    found = Vocabulary.fit(tpm, values="expression", base=model)
    found.require_same(model, this="a", that="b", tokens_only=True)
    assert (found.values, found.max_length, found.gene_ids) == ("expression", 99, tuple(genes))
    np.testing.assert_array_equal(found.medians[-2::-1], of_bulk.medians)
    assert found.medians[-1] == np.median(of_bulk.medians)
    assert "1 of the 41 genes of base are expressed in no source" in caplog.text
    with pytest.raises(VocabularyMismatchError, match=r"ranks of expression in the one and of counts.*pretrain --base"):
        found.require_same(model, this="a", that="b")


@pytest.mark.parametrize("options", [{"series": "V2"}, {"values": "zscore"}])
def test_base_comes_alone(tpm, of_bulk, options):
    with pytest.raises(InputError, match="base= keeps the tokens"):
        Vocabulary.fit(tpm, base=of_bulk, **options)


def test_a_gene_without_any_z_score_is_in_no_vocabulary(zscores):
    zscores.X[:, 8] = np.nan
    found = Vocabulary.fit(zscores, values="zscore")
    assert (found.medians, found.values, len(found)) == (None, "zscore", N_GENES - 1)
    assert zscores.var_names[8] not in found.position


# real samples


REAL = [
    pytest.param("tcga_50_allgenes/tcga_50_allgenes", {"values": "expression", "log2": True}, 0.132, id="log2_rsem"),
    pytest.param("breast_arrays/gse3143", {"values": "expression", "log2": True}, 0.263, id="log2_intensities"),
    pytest.param("breast_arrays/gse4335", {"values": "zscore", "order": "two_ended"}, 0.189, id="log_ratios"),
]


def test_a_real_table_of_z_scores_is_tokenised(shared):
    source = shared / "data" / "tcga_9_zscore" / "expression.parquet"
    cells = tokenize(source, Vocabulary.fit(source, series="V1", values="zscore"), values="zscore", order="two_ended")
    table = pd.read_parquet(source)
    assert cells.cell_names.tolist() == table.index.tolist()
    assert cells.genes(7)[:2] == [table.columns[table.iloc[7].argmax()], table.columns[table.iloc[7].argmin()]]


@pytest.mark.parametrize(("name", "options", "genes"), REAL)
def test_real_samples_are_tokenised_as_what_they_are(shared, name, options, genes):
    adata = ad.read_h5ad(shared / "data" / f"{name}.h5ad")[::8].copy()
    how = {key: value for key, value in options.items() if key != "order"}
    cells = tokenize(adata, Vocabulary.fit(adata, series="V1", **how), **options)
    assert cells.spec["within_max_length"]["genes"] == pytest.approx(genes, abs=0.004)
    assert (cells.lengths == 2048).all()
    with pytest.raises(DataFormatError, match=r"values=\"(expression|zscore)\"|log2=True"):
        Vocabulary.fit(adata, values="expression", log2=not options.get("log2", False))
