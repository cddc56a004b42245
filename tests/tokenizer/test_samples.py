import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from geneformer_repro.errors import DataFormatError, InputError
from geneformer_repro.tokenizer.samples import read_samples

BARCODES = ["TCGA-05-4384-01A", "TCGA-18-3406-01A", "TCGA-18-3407-01A", "TCGA-21-1070-01A"]
PATIENTS = [barcode[:12] for barcode in BARCODES]
GENES = ["ENSG00000141510", "ENSG00000075624", "ENSG00000146648"]
SYMBOLS = ["TP53", "ACTB", "EGFR"]


def expression(names=BARCODES, genes=GENES, seed=0):
    values = np.random.default_rng(seed).gamma(1.0, size=(len(names), len(genes)))
    return ad.AnnData(values, obs=pd.DataFrame(index=list(names)), var=pd.DataFrame(index=list(genes)))


def clinical(ids=PATIENTS, name="bcr_patient_barcode"):
    return pd.DataFrame({"age": np.arange(50.0, 50 + len(ids)), name: list(ids), "OS": 1})


JOINS = {
    "whole": (BARCODES, BARCODES, ""),
    "patients": (BARCODES, PATIENTS, ", by the first 12 characters of their TCGA barcodes"),
    "as R writes names": (
        [name.replace("-", ".") for name in BARCODES],
        PATIENTS,
        ", by the first 12 characters of their TCGA barcodes",
    ),
    "numbers": (["1", "2", "3", "4"], [1, 2, 3, 4], ""),
}


@pytest.mark.parametrize(("names", "ids", "how"), JOINS.values(), ids=JOINS)
def test_the_column_and_the_way_that_match_are_told(names, ids, how, caplog):
    caplog.set_level(logging.INFO, logger="geneformer_repro")
    samples, table = expression(names), clinical([*ids[::-1], ids[0] if isinstance(ids[0], int) else "X"][: len(ids)])
    joined = read_samples(samples, table)
    assert caplog.messages == [f"The clinical table: 4 of 4 samples are in its column 'bcr_patient_barcode'{how}."]
    assert list(joined.obs["age"]) == [53, 52, 51, 50]
    np.testing.assert_array_equal(joined.X, samples.X)
    assert list(joined.obs_names) == list(names)
    assert list(joined.obs["patient_id"]) == (PATIENTS if "TCGA" in names[0] else names)
    assert "patient_id" not in samples.obs


def test_samples_without_a_row_are_left_out_and_said(caplog):
    caplog.set_level(logging.INFO, logger="geneformer_repro")
    joined = read_samples(expression(), clinical([PATIENTS[2], "TCGA-ZZ-0000", PATIENTS[0]]))
    assert list(joined.obs["age"]) == [52, 50]
    assert caplog.messages[-1].startswith("The clinical table: 2 of 4 samples are in")
    assert caplog.messages[-1].endswith("; left out, among others: 'TCGA-18-3406-01A', 'TCGA-21-1070-01A'.")


def test_the_rows_names_of_a_data_frame_are_a_column_and_a_named_column_is_the_only_one():
    table = clinical().set_index("bcr_patient_barcode")
    assert list(read_samples(expression(), table).obs["age"]) == [50, 51, 52, 53]
    with_other = table.assign(other=BARCODES[::-1])
    assert list(read_samples(expression(), with_other).obs["age"]) == [53, 52, 51, 50]
    assert list(read_samples(expression(), with_other, id="bcr_patient_barcode").obs["age"]) == [50, 51, 52, 53]


def test_names_of_rows_that_a_file_has_no_name_for_join_and_are_no_column(tmp_path, caplog):
    table = clinical().set_index("bcr_patient_barcode")
    table.rename_axis(None).to_csv(tmp_path / "clinical.tsv", sep="\t")
    with caplog.at_level("INFO"):
        joined = read_samples(expression(), tmp_path / "clinical.tsv")
    assert "4 of 4 samples are in its names of rows" in caplog.text
    assert sorted(joined.obs) == sorted(["patient_id", *table])
    joined.write_h5ad(tmp_path / "joined.h5ad")


def test_a_clinical_table_is_read_as_cbioportal_and_tcga_write_it(tmp_path):
    (tmp_path / "clinical.txt").write_text(
        "#Patient Identifier\tOverall Survival\tStage\n#STRING\tNUMBER\tSTRING\n#1\t1\t1\n"
        "PATIENT_ID\tOS_MONTHS\tSTAGE\n"
        "TCGA-18-3406\t12.5\tStage I\nTCGA-05-4384\t[Not Available]\t[Not Available]\n"
    )
    joined = read_samples(expression(), tmp_path / "clinical.txt")
    np.testing.assert_array_equal(joined.obs["OS_MONTHS"], [np.nan, 12.5])
    assert joined.obs["STAGE"].isna().tolist() == [True, False]
    joined.write_h5ad(tmp_path / "joined.h5ad")
    assert ad.read_h5ad(tmp_path / "joined.h5ad").obs["STAGE"].tolist()[1] == "Stage I"


def test_tables_are_joined_as_what_they_hold(tmp_path):
    samples = expression()
    samples.to_df().T.to_csv(tmp_path / "tpm.tsv.gz", sep="\t")
    samples.write_h5ad(tmp_path / "tpm.h5ad")
    clinical().to_csv(tmp_path / "clinical.csv", index=False)
    clinical().to_parquet(tmp_path / "clinical.parquet")
    wanted = read_samples(samples, clinical())
    for left, right in (("tpm.tsv.gz", "clinical.csv"), ("tpm.h5ad", "clinical.parquet")):
        joined = read_samples(tmp_path / left, tmp_path / right)
        np.testing.assert_array_equal(joined.X, wanted.X)
        pd.testing.assert_frame_equal(joined.obs, wanted.obs)


def test_the_clinical_table_s_columns_stand_in_place_of_those_that_are_there(caplog):
    caplog.set_level(logging.INFO, logger="geneformer_repro")
    samples = expression()
    samples.obs["OS"] = 0
    assert list(read_samples(samples, clinical()).obs["OS"]) == [1] * 4
    assert caplog.messages[-1] == "obs columns that are now the clinical table's: OS."


def test_without_a_clinical_table_the_patient_is_what_is_there_or_in_the_name():
    samples = expression([*BARCODES[:2], "S3", "S4"])
    assert list(read_samples(samples).obs["patient_id"]) == [*PATIENTS[:2], "S3", "S4"]
    samples.obs["patient_id"] = list("abcd")
    assert list(read_samples(samples).obs["patient_id"]) == list("abcd")


def test_of_several_samples_of_a_patient_the_first_tumour_is_taken_where_that_is_allowed(caplog):
    names = ["TCGA-05-4384-11A", "TCGA-05-4384-01A", "TCGA-05-4384-02A", "TCGA-18-3406-01A"]
    with pytest.raises(
        InputError, match=r"1 patients have several samples \(first: 'TCGA-05-4384': .*one_per_patient=True"
    ):
        read_samples(expression(names), clinical())
    joined = read_samples(expression(names), clinical(), one_per_patient=True)
    assert list(joined.obs_names) == ["TCGA-05-4384-01A", "TCGA-18-3406-01A"]
    assert "1 samples are of normal tissue, by their TCGA barcodes (code 10 to 19)." in caplog.messages


@pytest.mark.parametrize("form", [np.asarray, csr_matrix], ids=["dense", "sparse"])
def test_a_copy_of_a_sample_under_another_name_is_refused(form):
    samples = expression()
    samples.X[3] = samples.X[1]
    samples.X = form(samples.X)
    with pytest.raises(
        InputError, match=r"'TCGA-18-3406-01A' and 'TCGA-21-1070-01A' have the same expression in all 3 genes"
    ):
        read_samples(samples, clinical())


def test_several_sources_share_their_genes_whatever_they_are_called(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="geneformer_repro")
    one, two = expression(BARCODES[:2]), expression(["N one", "N two"], ["EGFR", "OTHER", "TP53"], seed=1)
    two.to_df().to_csv(tmp_path / "two.csv")
    joined = read_samples([one, tmp_path / "two.csv"])
    assert list(joined.var_names) == ["ENSG00000141510", "ENSG00000146648"]
    np.testing.assert_array_equal(joined.X, np.concatenate([one.X[:, [0, 2]], two.X[:, [2, 0]]]))
    assert list(joined.obs["source"]) == ["1", "1", "two.csv", "two.csv"]
    assert "2 sources share 2 genes of [3, 3]." in caplog.messages


def test_features_that_are_no_genes_are_left_out(caplog):
    caplog.set_level(logging.INFO, logger="geneformer_repro")
    samples = expression(genes=["N_unmapped", "TP53", "ERCC-00002"])
    assert list(read_samples(samples).var_names) == ["TP53"]
    assert caplog.messages == ["AnnData: 2 features that are no genes left out ('N_unmapped', 'ERCC-00002')."]


def test_what_has_a_question_mark_for_a_name_becomes_no_gene(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="geneformer_repro")
    genes = ["?|100130426", "?", "?", "TP53|7157", "EGFR|1956"]
    table = pd.DataFrame(np.arange(10.0).reshape(5, 2), genes, ["s1", "s2"])
    table.to_csv(tmp_path / "firehose.tsv", sep="\t")
    assert list(read_samples(tmp_path / "firehose.tsv").var_names) == ["entrez:100130426", "TP53", "EGFR"]
    assert "2 features that are no genes left out ('?', '?-1')" in caplog.text


BAD = {
    "nothing matches": (
        (expression(), clinical(["A", "B"])),
        {},
        r"0 of 4 samples \('TCGA-05-4384-01A', .*\) are in its column .* Both must have the same ids",
    ),
    "little matches": (
        (expression([f"S{i}" for i in range(50)]), clinical(["S1", *(f"P{i}" for i in range(40))])),
        {},
        r"1 of 50 samples \('S0', 'S1', 'S2' and 47 more\) are in its column 'bcr_patient_barcode' \('S1', ",
    ),
    "no such column": ((expression(), clinical()), {"id": "barcode"}, "there is no column 'barcode'"),
    "an id that stands twice": (
        (expression(), clinical([*PATIENTS, PATIENTS[1]])),
        {},
        r"1 rows have the .* of another \(first: 'TCGA-18-3406'\)",
    ),
    "no gene in common": (
        ([expression(), expression(["a"], ["X1", "X2"])],),
        {},
        r"1 and 2 share no genes: 'ENSG00000141510', .* against 'X1', 'X2'",
    ),
    "a sample in both": (
        ([expression(), expression(BARCODES[:1], seed=1)],),
        {},
        r"1 samples stand in several sources \(first: 'TCGA-05-4384-01A'\)",
    ),
    "nothing": (([],), {}, "No expression was given"),
}


@pytest.mark.parametrize(("given", "options", "said"), BAD.values(), ids=BAD)
def test_what_cannot_be_joined_is_refused(given, options, said):
    with pytest.raises(InputError, match=said):
        read_samples(*given, **options)


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
def test_samples_of_one_name_are_refused():
    with pytest.raises(InputError, match=r"AnnData: 1 samples have the name of another \(first: 'A'\)"):
        read_samples(expression(["A", "A"]))


def test_files_that_are_not_there_or_cannot_be_read_are_named(tmp_path):
    with pytest.raises(InputError, match=r"a\.h5ad: no such file"):
        read_samples(tmp_path / "a.h5ad")
    (tmp_path / "a.h5ad").write_text("gene,A,B")
    with pytest.raises(DataFormatError, match=r"a\.h5ad: not a readable \.h5ad"):
        read_samples(tmp_path / "a.h5ad")
    (tmp_path / "c.csv").write_text("id,age,age\nA,1,2\n")
    with pytest.raises(DataFormatError, match=r"c\.csv: 1 columns have the name of another \(first: 'age'\)"):
        read_samples(expression(), tmp_path / "c.csv")


def test_a_cohort_and_the_endpoints_of_all_tcga_are_joined(shared):
    rsem = ad.read_h5ad(shared / "data" / "tcga_rsem_4" / "tcga_rsem_4.h5ad")[:, :50].copy()
    joined = read_samples(rsem, shared / "data" / "tcga_cdr" / "tcga_cdr.parquet")
    assert joined.n_obs == 220
    np.testing.assert_array_equal(joined.obs["PFI.time"], rsem.obs["PFI.time"])
    assert (joined.obs["patient_id"] == rsem.obs["patient_id"]).all()
