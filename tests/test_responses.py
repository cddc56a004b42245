import logging

import numpy as np
import pandas as pd
import pytest

from geneformer_repro.drugs import Drugs
from geneformer_repro.errors import DataFormatError, InputError
from geneformer_repro.identities import Aliases
from geneformer_repro.responses import MEASURES, Responses, read_responses, require_one_measure, sensitive_is_low

LONG = pd.DataFrame(
    {
        "cell_line": ["A549", "A549", "HCC827", "A549"],
        "drug": ["Erlotinib", "PLX4720", "Erlotinib", "Erlotinib"],
        "auc": [0.9, 0.8, 0.2, 0.7],
    }
)
WIDE = pd.DataFrame({"line": ["A549", "HCC827"], "Erlotinib": [0.8, 0.2], "PLX4720": [0.8, None]})


def rows(responses):
    return list(responses.pairs.round(6).itertuples(index=False, name=None))


PAIRS = [("A549", "Erlotinib", 0.8, 2), ("A549", "PLX4720", 0.8, 1), ("HCC827", "Erlotinib", 0.2, 1)]


def test_a_long_table_is_read_by_the_names_of_its_columns_or_what_is_said(caplog, tmp_path):
    caplog.set_level(logging.INFO, logger="geneformer_repro")
    responses = read_responses(LONG, measure="AUC")
    assert (rows(responses), responses.measure, len(responses)) == (PAIRS, "AUC", 3)
    assert caplog.messages == [
        "The table of responses: 3 pairs of 2 samples and 2 drugs, AUC.",
        "1 pairs were measured several times (up to 2) and are averaged; the standard deviation within a pair is "
        "0.141, of all values 0.311.",
    ]
    other = LONG.set_axis(["Probe", "Stoff", "Wert"], axis=1)
    named = read_responses(other, measure="AUC", sample="Probe", drug="Stoff", value="Wert")
    pd.testing.assert_frame_equal(named.pairs, responses.pairs)
    LONG.to_csv(tmp_path / "auc.tsv", sep="\t", index=False)
    pd.testing.assert_frame_equal(read_responses(tmp_path / "auc.tsv", measure="AUC").pairs, responses.pairs)


WIDE_TABLES = {
    "samples in rows": (WIDE.rename(columns={"line": "Cell line"}), {}),
    "an index": (WIDE.set_index("line").rename_axis("cell_line"), {}),
    "drugs in rows": (WIDE.set_index("line").T.rename_axis("compound").reset_index(), {}),
    "told by drugs": (WIDE.set_index("line").T.reset_index(names=""), {"drugs": ["erlotinib", "plx-4720", "other"]}),
    "told by the column": (WIDE, {"sample": "line"}),
    "beside what is no response": (
        WIDE.assign(tissue=["lung", "lung"], COSMIC_ID=[905949, 1240146]).rename(columns={"line": "sample"}),
        {},
    ),
}


@pytest.mark.parametrize(("table", "said"), WIDE_TABLES.values(), ids=WIDE_TABLES)
def test_a_wide_table_is_the_long_one(table, said):
    responses = read_responses(table, measure="AUC", **said)
    assert sorted(rows(responses)) == [(sample, drug, value, 1) for sample, drug, value, _ in PAIRS]


def test_a_wide_file_says_what_it_leaves_out_and_what_is_missing(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="geneformer_repro")
    (tmp_path / "w.csv").write_text("sample,tissue,Erlotinib,PLX4720\n5637,bladder,0.8,\n22RV1,prostate,0.2,0.1\n")
    responses = read_responses(tmp_path / "w.csv", measure="AUC", drugs=Drugs.of_names(["Erlotinib"]))
    assert list(responses.pairs["sample"]) == ["5637", "22RV1", "22RV1"]
    assert [message.removeprefix(f"{tmp_path}/") for message in caplog.messages[1:]] == [
        "w.csv: columns that hold no responses are left out: 'tissue'.",
        "w.csv: 3 pairs of 2 samples and 2 drugs, AUC; 1 values are missing.",
    ]


def test_rows_of_one_name_are_replicates(caplog):
    caplog.set_level(logging.INFO, logger="geneformer_repro")
    table = WIDE.assign(line="A549").rename(columns={"line": "sample"})
    assert rows(read_responses(table, measure="AUC")) == [("A549", "Erlotinib", 0.5, 2), ("A549", "PLX4720", 0.8, 1)]
    assert caplog.messages[0].endswith(": 1 rows have the name of another (first: 'A549'); they are averaged.")


CONCENTRATIONS = {"IC50_uM": 1.0, "IC50_nM": 1000.0}


@pytest.mark.parametrize(("measure", "per_micromolar"), CONCENTRATIONS.items(), ids=CONCENTRATIONS)
def test_concentrations_become_the_logarithm_of_micromolar_before_they_are_averaged(measure, per_micromolar):
    values = np.array([1.0, 0.5, 0.02, 4.0]) * per_micromolar
    responses = read_responses(with_values(*values), measure=measure)
    assert responses.measure == "LN_IC50"
    np.testing.assert_allclose(responses.pairs["value"], [np.log(2), np.log(0.5), np.log(0.02)])


def test_concentrations_at_the_highest_dose_are_said(caplog):
    read_responses(with_values(8, 8, 0.02, 1), measure="IC50_uM")
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "The table of responses: 2 of 4 values are 8, the highest: IC50s, it seems, that are only known to be above "
        "the highest dose. They are learned as if they were measured."
    ]


def with_values(*values, column="value"):
    return LONG.drop(columns="auc").assign(**{column: list(values)})


MANY = pd.DataFrame(
    {"sample": [f"s{i // 6}" for i in range(60)], "drug": [f"d{i % 6}" for i in range(60)], "value": 3.0}
)
REFUSED = {
    "no measure": (LONG, {"measure": "auc"}, InputError, r"measure='auc'\. Did you mean 'AUC'"),
    "a measure column of another": (
        LONG.assign(measure="LN_IC50"),
        {"measure": "AUC"},
        InputError,
        "says in 'measure' that it has 'LN_IC50', and measure='AUC'. Give measure='LN_IC50'",
    ),
    "a measure column of two": (
        LONG.assign(metric=["AUC", "AUC", "IC50", "AUC"]),
        {"measure": "AUC"},
        InputError,
        r"'metric' names 2 measures \('AUC', 'IC50'\), which cannot be mixed. Keep the rows of AUC",
    ),
    "a column of another": (
        with_values(1, 2, 3, 4, column="ic50_uM"),
        {"measure": "LN_IC50", "value": "ic50_uM"},
        InputError,
        "has a column 'ic50_uM', and measure='LN_IC50'. Give measure='IC50_uM'",
    ),
    "no column of values": (
        with_values(1, 2, 3, 4, column="x"),
        {"measure": "AUC"},
        InputError,
        "no column is called 'AUC', 'value' or 'response'; columns of numbers are 'x'. Give the measure that it is",
    ),
    "no such column": (LONG, {"measure": "AUC", "value": "acu"}, InputError, "no column 'acu'. Did you mean 'auc'"),
    "a value without samples": (
        LONG.rename(columns={"cell_line": "x"}),
        {"measure": "AUC", "value": "auc"},
        InputError,
        "expected a column of samples beside the values in 'auc', found 'x', 'drug', 'auc'. Name it with sample=",
    ),
    "a measure is no drug": (
        LONG.rename(columns={"drug": "substance"}),
        {"measure": "AUC"},
        InputError,
        "expected a column of drugs beside the values in 'auc', found 'cell_line', 'substance', 'auc'. Name it with dr",
    ),
    "either way round": (
        WIDE,
        {"measure": "AUC"},
        InputError,
        r"cannot tell whether drugs are in rows \('A549', 'HCC827'\) or in columns \('Erlotinib', 'PLX4720'\)\. Call",
    ),
    "neither way round": (
        WIDE,
        {"measure": "AUC", "drugs": ["x"]},
        InputError,
        "of the 1 drugs given 0 are in each",
    ),
    "censored": (
        with_values("0.5", ">10", "1", None),
        {"measure": "IC50_uM"},
        DataFormatError,
        r"1 values are text \(first: sample 'A549', drug 'PLX4720', '>10'\)\. A value that is only known to be above",
    ),
    "a decimal comma": (
        with_values("0,5", "0.1", "1", None),
        {"measure": "IC50_uM"},
        DataFormatError,
        r"1 values are text .*'0,5'\)\. Expected a number with a decimal point",
    ),
    "infinite": (
        with_values(0.5, np.inf, 1, 1),
        {"measure": "IC50_uM"},
        DataFormatError,
        "1 values are infinite .first: sample 'A549', drug 'PLX4720'.. Leave them out",
    ),
    "negative IC50s": (
        with_values(0.5, -2, 1, 1),
        {"measure": "IC50_uM"},
        DataFormatError,
        r"1 values of IC50_uM are not above 0 \(first: .*-2\)\. If they are logarithms, give measure='LN_IC50'",
    ),
    "percent as a share": (
        with_values(0.5, 90, 1, 1),
        {"measure": "AUC"},
        DataFormatError,
        r"1 of 4 values cannot be AUC, the area under .* \(first: sample 'A549', drug 'PLX4720', 90\)\. Name what",
    ),
    "less than nothing left": (with_values(0, -150, 1, 1), {"measure": "growth"}, DataFormatError, "-100 is gone"),
    "concentrations as logarithms": (
        MANY,
        {"measure": "LN_IC50"},
        DataFormatError,
        "none of 60 values of 6 drugs is below 0, so they are hardly logarithms of µM. If they are concentrations",
    ),
    "no value": (with_values(None, None, None, None), {"measure": "AUC"}, DataFormatError, "not a single value"),
    "no name": (
        LONG.assign(drug=["x", " ", "y", "z"]),
        {"measure": "AUC"},
        DataFormatError,
        "row 2 has no name of a drug",
    ),
}


@pytest.mark.parametrize(("table", "options", "kind", "said"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_the_measure_is_refused_with_what_to_do(table, options, kind, said):
    with pytest.raises(kind, match=said):
        read_responses(table, **options)


def test_few_drugs_may_all_be_weak():
    assert len(read_responses(MANY[MANY["drug"] < "d4"], measure="LN_IC50")) == 40


def test_two_measures_are_not_learned_as_one():
    auc, growth = (Responses(LONG, measure) for measure in ("AUC", "growth"))
    assert require_one_measure(auc, auc) == "AUC"
    with pytest.raises(InputError, match="measured as AUC and growth, which cannot be learned as one"):
        require_one_measure(auc, growth)


def test_every_measure_says_which_end_is_sensitive():
    assert [name for name in MEASURES if sensitive_is_low(name)] == ["LN_IC50", "AUC", "growth"]


# names and numbers


def test_pairs_lead_to_numbers_by_identity_and_one_pair_is_averaged_by_its_replicates(caplog):
    caplog.set_level(logging.INFO, logger="geneformer_repro")
    table = pd.DataFrame(
        {
            "sample": ["42-MG-BA", "42-MG-BA", "GB-X", "HL-60", "lost"],
            "drug": ["PLX-4720", "PLX-4720", "vemurafenib analogue", "none", "PLX-4720"],
            "AUC": [0.1, 0.3, 0.5, 0.9, 0.9],
        }
    )
    aliases = Aliases.of_table(pd.DataFrame({"name": ["42MGBA"], "alias": ["GB-X"]}))
    drugs = Drugs.of_table(
        pd.DataFrame({"drug": ["Erlotinib", "plx 4720", "Vemurafenib-analogue"], "smiles": ["CCN", "CCO", "OCC"]})
    )
    caplog.clear()
    responses = read_responses(table, measure="AUC")
    joined = responses.join(["HL60", "42MGBA"], drugs, aliases)
    np.testing.assert_array_equal(joined.pairs, [[1, 1]])
    np.testing.assert_allclose(joined.values, [0.3])
    np.testing.assert_array_equal(joined.n_replicates, [3])
    assert caplog.messages[-2:] == [
        "1 of 4 samples with responses are not among those given ('lost').",
        "1 of 3 drugs with responses are not among those given ('none').",
    ]
    with pytest.raises(InputError, match=r"None of the 4 samples with responses .* among the 1 that are given \('x'\)"):
        responses.join(["x"], drugs)
    with pytest.raises(InputError, match="None of the 3 drugs with responses"):
        responses.join(["HL60"], Drugs.of_names(["x"]))


def test_an_ambiguous_sample_is_not_joined(caplog):
    table = LONG.assign(cell_line=["T-T", "TT", "HCC827", "T-T"])
    joined = read_responses(table, measure="AUC").join(["tt", "HCC827"], Drugs.of_names(["Erlotinib", "PLX4720"]))
    np.testing.assert_array_equal(joined.pairs, [[1, 0]])
    assert "T-T = tt?" in caplog.text


def test_gdsc_ccle_and_xenografts_are_read_as_they_are(shared):
    folder = shared / "data" / "gdsc_ccle"
    rescreened = pd.read_parquet(folder / "gdsc_response.parquet", filters=[("drug", "in", ["Erlotinib", "Lapatinib"])])
    gdsc = read_responses(rescreened, measure="LN_IC50")
    ccle = read_responses(folder / "ccle_response.parquet", measure="IC50_uM")
    xenografts = shared / "data" / "pdxe" / "pdxe_response.parquet"
    growth = read_responses(xenografts, measure="growth", value="best_avg_response")
    assert len(gdsc) == len(rescreened.drop_duplicates(["cell_line", "drug"])) < len(rescreened)
    assert int(gdsc.pairs["n_replicates"].sum()) == len(rescreened)
    assert (len(ccle), len(growth)) == (11_670, 2_321)
    assert require_one_measure(gdsc, ccle) == "LN_IC50"
    drugs = Drugs.of_names(sorted(set(ccle.pairs["drug"])))
    lines = pd.read_parquet(folder / "gdsc_expression.parquet", columns=[]).index
    assert len(ccle.join(list(lines), drugs).values) == 8478
