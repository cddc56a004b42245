import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from geneformer_repro import identities
from geneformer_repro.errors import InputError
from geneformer_repro.identities import Aliases, near_duplicates, normalised_name, numbers_by_name, same_samples

SPELT = {
    "42-MG-BA": "42MGBA",
    "β-Lapachone": "BETALAPACHONE",
    "Ménétrier 1": "MENETRIER1",
    "T-T": "TT",
    " (-) ": "(-)",
}


@pytest.mark.parametrize(("name", "normalised"), SPELT.items(), ids=SPELT)
def test_a_normalised_name_is_its_letters_and_digits(name, normalised):
    assert normalised_name(name) == normalised


# names of two studies


@pytest.fixture
def aliases():
    table = {
        "name": ["42-MG-BA", "T-T", "TT", "HL-60"],
        "aliases": ["42MGBA; 42-MG", "TT-oesophagus", "TT-thyroid | TTC", None],
        "COSMIC_ID": [687561, None, 906863, 905938],
        "tissue": ["brain", "oesophagus", "thyroid", "blood"],
    }
    return Aliases.of_table(pd.DataFrame(table))


def pairs(table):
    return list(table.itertuples(index=False, name=None))


def test_samples_meet_by_text_then_by_normalised_name():
    same = same_samples(["42-MG-BA", "HL-60", "A549", "A549"], ["A549", "42MGBA", "MCF7"])
    assert pairs(same) == [("42-MG-BA", "42MGBA", "normalised name"), ("A549", "A549", "name")]


def test_a_name_that_meets_two_once_normalised_is_said_and_not_joined(caplog):
    same = same_samples(["T-T", "TT", "KM-H2", "KMH-2"], ["TT", "KMH2"])
    assert pairs(same) == [
        ("T-T", "TT", "ambiguous"),
        ("TT", "TT", "name"),
        ("KM-H2", "KMH2", "ambiguous"),
        ("KMH-2", "KMH2", "ambiguous"),
    ]
    assert caplog.messages == [
        "3 pairs of samples have one normalised name, which several samples of a study have: 'T-T = TT?', "
        "'KM-H2 = KMH2?', 'KMH-2 = KMH2?'. A table of aliases tells them apart."
    ]


def test_two_samples_that_both_studies_have_are_no_question(caplog):
    assert pairs(same_samples(["T-T", "TT"], ["TT", "T-T"])) == [("T-T", "T-T", "name"), ("TT", "TT", "name")]
    assert caplog.messages == []


def test_aliases_join_what_letters_do_not_and_tell_apart_what_they_join(aliases):
    same = same_samples(["42-mg", "687561", "T-T", "tt thyroid"], ["42MGBA", "TT", "905938"], aliases)
    assert pairs(same) == [
        ("42-mg", "42MGBA", "alias"),
        ("687561", "42MGBA", "alias"),
        ("tt thyroid", "TT", "alias"),
    ]


def test_a_name_of_two_rows_is_nobodys(aliases, caplog):
    assert (aliases.row("T-T"), aliases.row("TT"), aliases.row("tt"), aliases.row("brain")) == (1, 2, None, None)
    caplog.set_level(logging.INFO, logger="geneformer_repro")
    Aliases.of_table(pd.DataFrame({"name": ["A", "B"], "id": ["1", "1"]}))
    assert caplog.messages == [
        "The table of aliases: 2 samples by 'name', 'id'; names that stand in several rows are nobody's: '1'."
    ]


def test_columns_of_names_are_those_called_so_or_named(tmp_path):
    (tmp_path / "lines.csv").write_text("stripped_cell_line_name,DepMap_ID,RRID,sex\nA549,ACH-000681,CVCL_0023,Male\n")
    assert Aliases.of_table(tmp_path / "lines.csv").row("cvcl-0023") == 0
    assert Aliases.of_table(tmp_path / "lines.csv").row("Male") is None
    table = pd.DataFrame({"unser Name": ["A"], "deren": ["B"]})
    assert Aliases.of_table(table, columns=["unser Name", "deren"]).row("b") == 0
    with pytest.raises(InputError, match="expected two or more columns with names or ids of samples, such as 'name'"):
        Aliases.of_table(table)
    with pytest.raises(InputError, match=r"there is no column 'derer'\. Did you mean 'deren'"):
        Aliases.of_table(table, columns=["unser Name", "derer"])


CALLED = (
    "CCLE_Name DepMap_ID Sanger_Model_ID COSMICID stripped_cell_line_name model_name RRID synonyms sample "
    "Cellosaurus-accession BROAD_ID"
    "|tissue sex sample_collection_site age disease cell_line_source primary_site doubling"
)


def test_headers_of_registers_tell_names_from_what_else_is_known():
    naming, other = (part.split() for part in CALLED.split("|"))
    assert [column for column in [*naming, *other] if identities._is_naming(column)] == naming


def test_of_names_a_letter_for_letter_one_wins_and_two_numbers_are_none():
    numbers = {"PLX-4720": 3, "PLX4720": 3, "T-T": 1, "TT": 2}
    assert numbers_by_name(numbers, ["plx 4720", "TT", "t.t.", "A"]) == {"plx 4720": 3, "TT": 2}


def test_gdsc_and_ccle_share_lines_under_other_names(shared):
    names = [
        pd.read_parquet(shared / "data" / "gdsc_ccle" / f"{study}_response.parquet", columns=["cell_line"])["cell_line"]
        for study in ("gdsc", "ccle")
    ]
    same = same_samples(*names)
    assert same["by"].value_counts().to_dict() == {"name": 315, "normalised name": 54}


# profiles of two studies


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def study(values, prefix="s"):
    return pd.DataFrame(values, index=[f"{prefix}{i}" for i in range(len(values))]).rename(columns="g{}".format)


def test_a_copy_is_listed_whatever_it_is_called(rng):
    a, b = (study(rng.normal(size=(n, 200)), prefix) for n, prefix in ((5, "a"), (4, "b")))
    b.iloc[2] = 3 * a.iloc[4] + 1
    listed = near_duplicates(a, b)
    assert listed[["a", "b"]].to_numpy().tolist() == [["a4", "b2"]]
    np.testing.assert_allclose(listed["r"], 1, rtol=1e-6)
    assert near_duplicates(a).empty


def test_another_platform_hides_a_sample_from_r_and_not_from_the_margin(rng):
    base = rng.normal(size=200)
    shift, scale = rng.normal(scale=3, size=200), rng.gamma(2, size=200)
    a = rng.normal(size=(60, 200)) + base
    b = (np.concatenate([a[:30], rng.normal(size=(30, 200)) + base]) + rng.normal(scale=0.5, size=(60, 200))) * scale
    listed = near_duplicates(study(a), study(b + shift))
    assert sorted(listed["a"]) == sorted(f"s{i}" for i in range(30))
    assert (listed["a"] == listed["b"]).all()
    assert listed["r"].max() < 0.6 < listed["r_standardised"].min()


def test_correlation_and_margin_are_those_of_a_slow_reference(rng, monkeypatch):
    monkeypatch.setattr(identities, "_BLOCK", 7)
    a, b = rng.normal(size=(25, 150)), rng.normal(size=(30, 150))
    b[4] += a[3]
    (pair,) = near_duplicates(study(a, "a"), study(b, "b")).itertuples()
    scaled_a, scaled_b = ((values - values.mean(0)) / values.std(0) for values in (a, b))
    r = np.corrcoef(scaled_a, scaled_b)[:25, 25:]
    beside = max(np.delete(r[3], 4).max(), np.delete(r[:, 4], 3).max())
    assert (pair.a, pair.b) == ("a3", "b4")
    np.testing.assert_allclose(pair.r, np.corrcoef(a[3], b[4])[0, 1], rtol=1e-5)
    np.testing.assert_allclose([pair.r_standardised, pair.margin], [r[3, 4], r[3, 4] - beside], rtol=1e-5)


def test_genes_without_gaps_that_both_have_are_compared(rng):
    a = study(rng.normal(size=(30, 130)))
    b = a[a.columns[::-1]].assign(more=1.0)
    b.loc["s3", "g7"] = np.nan
    assert len(near_duplicates(a, b)) == 30
    with pytest.raises(InputError, match="genes that both studies have without gaps: expected 100 or more, found 91"):
        near_duplicates(a, b.rename(columns={f"g{i}": f"x{i}" for i in range(39)}))


def test_real_lines_that_are_there_twice_are_found_within_gdsc(shared):
    values = pd.read_parquet(shared / "data" / "gdsc_ccle" / "gdsc_expression.parquet")
    listed = near_duplicates(values.iloc[:, ::3])
    assert [set(pair) for pair in listed[["a", "b"]].to_numpy()] == [
        {"LB771HNC", "FLO1"},
        {"NCIH1395", "HCC1395"},
        {"PFSK1", "TE441T"},
        {"HCC1806", "HCC1143"},
        {"HUO9", "NOS1"},
    ]
    np.testing.assert_allclose(listed["r"][0], 0.9958, atol=1e-4)


def test_tumours_are_found_again_in_another_processing(shared):
    """Counts of TCGA's lung squamous carcinomas beside published z-scores of the same patients."""
    counts = ad.read_h5ad(shared / "data" / "tcga_lusc_counts" / "tcga_lusc_counts.h5ad").to_df()
    other = pd.read_parquet(shared / "data" / "tcga_9_zscore" / "expression.parquet")
    log = np.log2(counts.div(counts.sum(axis=1), axis=0) * 1e6 + 1)
    other = other.loc[other.index.isin(counts.index)]
    listed = near_duplicates(log, other)
    assert (len(other), len(listed), (listed["a"] == listed["b"]).sum()) == (450, 447, 447)
    assert listed["r"].max() < 0.45
