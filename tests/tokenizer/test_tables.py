import gzip
import logging

import numpy as np
import pandas as pd
import pytest

from geneformer_repro.errors import DataFormatError, InputError
from geneformer_repro.tokenizer.tables import column_called, is_expression_table, read_expression_table, read_rows

SAMPLES = ["TCGA-05-4384-01A", "TCGA-18-3406-01A", "S3"]
IDS = ["ENSG00000141510", "ENSG00000075624", "ENSG00000146648.19", "ENSG00000118058"]
SYMBOLS = ["TP53", "ACTB", "EGFR", "KMT2A"]
VALUES = np.array([[0.0, 1 / 3, 2.5, 1e-3], [4, 5.25, 6, 0.1], [8, 9, 10, 11]])


def frame(genes=IDS, samples=SAMPLES, values=VALUES):
    return pd.DataFrame(values.copy(), index=samples, columns=genes)


def written(tmp_path, text, name="expression.tsv"):
    (tmp_path / name).write_text(text)
    return tmp_path / name


WAYS = {
    "genes in rows": lambda path: frame().T.to_csv(path, sep="\t"),
    "genes in columns": lambda path: frame().to_csv(path, sep="\t"),
    "commas": lambda path: frame().to_csv(path),
    "semicolons": lambda path: frame().T.to_csv(path, sep=";"),
    "gzip": lambda path: path.write_bytes(gzip.compress(frame().to_csv(sep="\t").encode())),
    "Windows": lambda path: path.write_bytes(b"\xef\xbb\xbf" + frame().to_csv(sep="\t").replace("\n", "\r\n").encode()),
    "comment lines": lambda path: path.write_text("# made by\n#\n" + frame().T.to_csv(sep="\t")),
    "a header that is a comment": lambda path: path.write_text("#gene" + frame().T.to_csv(sep="\t")),
    "R without a name for the names": lambda path: path.write_text(frame().T.to_csv(sep="\t").removeprefix("\t")),
    "R with quotes": lambda path: frame().T.to_csv(path, quoting=2),
    "lines that end with a comma": lambda path: path.write_text(frame().T.to_csv().replace("\n", ",\n")),
    "numbers in quotes": lambda path: frame().to_csv(path, quoting=1),
    "GCT": lambda path: path.write_text(
        "#1.2\n4\t3\n"
        + frame().T.assign(Description="na")[["Description", *SAMPLES]].to_csv(sep="\t", index_label="Name")
    ),
}


@pytest.mark.parametrize("write", WAYS.values(), ids=WAYS)
def test_a_table_is_read_however_it_is_written(tmp_path, write):
    write(tmp_path / "expression.tsv")
    adata = read_expression_table(tmp_path / "expression.tsv")
    np.testing.assert_array_equal(adata.X, VALUES)
    assert (list(adata.obs_names), list(adata.var_names)) == (SAMPLES, IDS)


@pytest.mark.parametrize("turned", [False, True], ids=["samples × genes", "genes × samples"])
def test_parquet_is_read_with_and_without_pandas_index(tmp_path, turned):
    table = frame().T if turned else frame()
    table.to_parquet(tmp_path / "a.parquet")
    table.reset_index(names="id").to_parquet(tmp_path / "b.parquet", index=False)
    for name in ("a.parquet", "b.parquet"):
        adata = read_expression_table(tmp_path / name)
        np.testing.assert_array_equal(adata.X, VALUES)
        assert (list(adata.obs_names), list(adata.var_names)) == (SAMPLES, IDS)


def test_the_log_says_what_was_read(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="geneformer_repro")
    table = frame(["TP53", "TP53", "EGFR", "KMT2A"]).T
    table.iloc[3] = np.nan
    table.iloc[2, 0] = np.nan
    path = written(tmp_path, table.to_csv(sep="\t") + "\t1\t2\t3\n")
    adata = read_expression_table(path)
    assert caplog.messages == [
        "expression.tsv: 3 samples × 3 genes, genes in rows; 1 rows without a gene left out; 1 genes without a value "
        "left out; 1 values are missing; 1 genes have the id of another."
    ]
    assert list(adata.var_names) == ["TP53", "TP53-1", "EGFR"]
    assert list(adata.var["gene_name"]) == ["TP53", "TP53", "EGFR"]
    np.testing.assert_array_equal(np.isnan(adata.X), [[False, False, True], [False] * 3, [False] * 3])


NAMED = {
    "Ensembl ids": (IDS, IDS, [""] * 4),
    "symbols": (SYMBOLS, SYMBOLS, SYMBOLS),
    "mouse symbols": (
        ["Trp53", "Actb", "Egfr", "Kmt2a"],
        ["Trp53", "Actb", "Egfr", "Kmt2a"],
        ["Trp53", "Actb", "Egfr", "Kmt2a"],
    ),
    "Firehose": (
        ["?|100130426", "TP53|7157", "ACTB|60", "EGFR|1956"],
        ["entrez:100130426", "TP53", "ACTB", "EGFR"],
        ["", "TP53", "ACTB", "EGFR"],
    ),
    "DepMap": ([f"{s} ({i})" for i, s in enumerate(SYMBOLS, 1)], SYMBOLS, SYMBOLS),
    "both": ([f"{i}|{s}" for i, s in zip(IDS, SYMBOLS)], [f"{i}|{s}" for i, s in zip(IDS, SYMBOLS)], [""] * 4),
    "Entrez ids that say so": (["entrez:7157", "entrez:60", "entrez:1956", "entrez:4297"],) * 2 + ([""] * 4,),
}


@pytest.mark.parametrize(("genes", "ids", "names"), NAMED.values(), ids=NAMED)
@pytest.mark.parametrize("turned", [False, True], ids=["in columns", "in rows"])
def test_genes_are_recognised_by_their_names(tmp_path, genes, ids, names, turned):
    table = frame(genes).T if turned else frame(genes)
    adata = read_expression_table(written(tmp_path, table.to_csv(sep="\t")))
    np.testing.assert_array_equal(adata.X, VALUES)
    assert (list(adata.var_names), list(adata.var["gene_name"])) == (ids, names)


def test_of_several_columns_of_names_the_ids_are_ensembl_s_and_a_missing_one_is_filled_from_the_next(tmp_path):
    table = frame().T
    table.insert(0, "Entrez_Gene_Id", [7157, 60, 1956, 4297])
    table.insert(0, "Hugo_Symbol", SYMBOLS)
    by_id = read_expression_table(written(tmp_path, table.to_csv(sep="\t", index_label="gene_id")))
    assert (list(by_id.var_names), list(by_id.var["gene_name"])) == (IDS, SYMBOLS)
    assert list(by_id.var["Entrez_Gene_Id"]) == ["7157", "60", "1956", "4297"]

    table.loc[IDS[1], "Hugo_Symbol"] = None
    cbioportal = read_expression_table(written(tmp_path, table.to_csv(sep="\t", index=False)))
    assert list(cbioportal.var_names) == ["TP53", "entrez:60", "EGFR", "KMT2A"]
    np.testing.assert_array_equal(cbioportal.X, VALUES)


def test_of_firehose_the_second_header_is_passed_over(tmp_path):
    lines = frame(["TP53|7157", "ACTB|60", "EGFR|1956", "KMT2A|4297"]).T.to_csv(sep="\t").split("\n")
    text = "\n".join(["Hybridization REF" + lines[0], "gene_id" + "\tnormalized_count" * 3, *lines[1:]])
    np.testing.assert_array_equal(read_expression_table(written(tmp_path, text)).X, VALUES)


def test_samples_are_named_by_the_first_column_that_is_not_clinical(tmp_path):
    table = frame().assign(sample_id=[11, 12, 13], stage="II").set_index("stage")[["sample_id", *IDS]]
    adata = read_expression_table(written(tmp_path, table.to_csv(sep="\t")))
    assert list(adata.obs_names) == ["11", "12", "13"]
    assert list(adata.obs["stage"]) == ["II"] * 3


@pytest.mark.parametrize("genes", [IDS, ["TP53", "ACTB", "NOVEL1", "KMT2A"]], ids=["Ensembl ids", "symbols"])
def test_clinical_columns_beside_genes_go_to_obs(tmp_path, genes, caplog):
    caplog.set_level(logging.INFO, logger="geneformer_repro")
    table = frame(genes).assign(
        stage=["early", "late", None], age=[50.5, 61, 70], OS=[1, 0, 1], survival_months=[2, 3, 4]
    )
    adata = read_expression_table(written(tmp_path, table.to_csv(sep="\t")))
    assert list(adata.var_names) == genes
    assert adata.obs.drop(columns="survival_months").to_dict("list") == {
        "stage": ["early", "late", ""],
        "age": [50.5, 61, 70],
        "OS": [1, 0, 1],
    }
    assert caplog.messages[-1].endswith("genes in columns; 4 columns that are no genes are in obs.")


def test_samples_named_by_numbers_keep_their_zeros_and_names_of_columns_are_no_remarks(tmp_path):
    table = frame(samples=["001", "sample.1", "patient_2"], values=VALUES.round())
    for turned in (table, table.T):
        adata = read_expression_table(written(tmp_path, turned.to_csv(sep="\t")))
        assert list(adata.obs_names) == ["001", "sample.1", "patient_2"]
        np.testing.assert_array_equal(adata.X, VALUES.round())


def test_where_the_genes_are_is_asked_where_the_names_do_not_tell(tmp_path):
    path = written(tmp_path, frame(["1007_s_at", "1053_at", "117_at", "121_at"]).to_csv(sep="\t"))
    with pytest.raises(InputError, match=r"cannot tell.*Of 3 rows \('TCGA-05-4384-01A', .*0 %.*genes_in='rows'"):
        read_expression_table(path)
    assert read_expression_table(path, genes_in="columns").n_vars == 4
    both = written(tmp_path, frame(samples=SYMBOLS[:3]).to_csv(sep="\t"))
    with pytest.raises(InputError, match="cannot tell"):
        read_expression_table(both)
    assert read_expression_table(both, genes_in="rows").shape == (4, 3)
    with pytest.raises(InputError, match=r"genes_in='row': expected 'rows' or 'columns'"):
        read_expression_table(both, genes_in="row")


def with_value(value, row=1, column=2):
    table = frame().T.astype(object)
    table.iloc[row, column] = value
    return table.to_csv(sep="\t")


BAD = {
    "no number": (with_value("high"), "row 'ENSG00000075624', column 'S3' holds 'high', which is no finite number"),
    "decimal commas": (
        frame().T.to_csv(sep="\t", decimal=","),
        r"holds '0,0', .*behind a comma: save the table with points",
    ),
    "decimal commas between commas": (
        frame().T.to_csv(sep=",").replace("0.1", "0,1"),
        r"line 5 has 5 fields, the header 4",
    ),
    "infinite": (with_value("inf"), "column 'S3' holds 'inf'"),
    "cut off": (
        frame().T.to_csv(sep="\t").rpartition("\t")[0],
        "line 5 has 3 fields, the header 4: the table is cut off",
    ),
    "equal names": (
        frame(samples=["A", "B", "A"]).T.to_csv(sep="\t"),
        r"1 names of samples stand more than once \(first: 'A'\)",
    ),
    "equal names in rows": (frame(samples=["A", "B", "A"]).to_csv(sep="\t"), r"stand more than once \(first: 'A'\)"),
    "no name": (frame(samples=["A", "", "B"]).to_csv(sep="\t"), "1 of 3 samples have no name"),
    "a sample without values": (
        frame(values=VALUES * [[1], [np.nan], [1]]).to_csv(sep="\t"),
        "1 samples have no values",
    ),
    "one column": ("ENSG00000141510\nENSG00000075624\n", "expected a header with tabs"),
    "no rows": ("gene\tA\tB\n", "0 rows"),
    "no names": (frame().to_csv(sep="\t", index=False), "expected names in its first column"),
    "empty": ("", "expected a header"),
}


@pytest.mark.parametrize(("text", "said"), BAD.values(), ids=BAD)
def test_what_is_not_understood_stops_the_reading(tmp_path, text, said):
    path = written(tmp_path, text)
    with pytest.raises(DataFormatError, match=said) as error:
        read_expression_table(path)
    assert str(error.value).startswith(str(path))


def test_a_file_that_is_not_there_or_is_damaged_is_named(tmp_path):
    with pytest.raises(InputError, match=r"a\.tsv: cannot be read"):
        read_expression_table(tmp_path / "a.tsv")
    with pytest.raises(InputError, match=r"a\.parquet: no such file"):
        read_expression_table(tmp_path / "a.parquet")
    with pytest.raises(DataFormatError, match=r"b\.parquet: not a readable Parquet"):
        read_expression_table(written(tmp_path, "PAR1", "b.parquet"))


def test_tables_are_told_by_their_names():
    tables = ["a.TSV", "a.csv.gz", "x/a.txt", "a.gct", "a.parquet"]
    assert [name for name in [*tables, "a.h5ad", "matrix.mtx.gz", "a.xlsx"] if is_expression_table(name)] == tables


def test_a_real_cohort_is_read_as_it_is_in_its_h5ad(shared, tmp_path):
    import anndata as ad

    rsem = ad.read_h5ad(shared / "data" / "tcga_rsem_4" / "tcga_rsem_4.h5ad")[:60, 100::20].copy()
    rsem.to_df().set_axis(rsem.var["gene_name"], axis=1).T.to_csv(tmp_path / "symbols.tsv", sep="\t")
    adata = read_expression_table(tmp_path / "symbols.tsv")
    np.testing.assert_array_equal(adata.X.astype(np.float32), rsem.X)
    assert list(adata.var["gene_name"]) == list(rsem.var["gene_name"])
    assert list(adata.obs_names) == list(rsem.obs_names)


# tables of rows


def test_rows_of_a_data_frame_and_of_its_file_are_the_same(tmp_path):
    table = pd.DataFrame({"drug": ["a", "b"], "auc": [0.5, 0.25]}, index=pd.Index(["s1", "s2"], name="sample"))
    table.to_csv(tmp_path / "t.csv")
    called, rows = read_rows(table, "The table")
    assert called == "The table"
    path, of_file = read_rows(tmp_path / "t.csv", "The table")
    assert path == str(tmp_path / "t.csv")
    pd.testing.assert_frame_equal(rows, of_file)
    with pytest.raises(DataFormatError, match=r"The table: 1 columns have the name of another \(first: 'x'\)"):
        read_rows(pd.DataFrame([[1, 2]], columns=["x", "x"]), "The table")


def test_a_column_is_known_by_its_letters_and_the_first_choice_wins():
    columns = ["COSMIC ID", "Cell-Line", "cell_line", "drug"]
    assert column_called(columns, ["sample", "cell_line", "cosmic_id"]) == "Cell-Line"
    assert column_called(columns, ["line"]) is None
