import logging
import sys

import numpy as np
import pandas as pd
import pytest

from geneformer_repro.drugs import Drugs, SmilesVocabulary, canonical_parent, same_drugs
from geneformer_repro.errors import DataFormatError, InputError, MissingExtraError

ERLOTINIB = "COCCOc1cc2ncnc(Nc3cccc(C#C)c3)c2cc1OCCOC"
DOXORUBICIN = "COc1cccc2c1C(=O)c1c(O)c3c(c(O)c1C2=O)C[C@@](O)(C(=O)CO)C[C@@H]3O[C@H]1C[C@H](N)[C@H](O)[C@H](C)O1"
EPIRUBICIN = DOXORUBICIN.replace("[C@H](N)[C@H](O)", "[C@H](N)[C@@H](O)")


def table(**smiles):
    return pd.DataFrame({"drug": list(smiles), "smiles": list(smiles.values())})


# identity

PARENTS = {
    "a hydrochloride": (f"{ERLOTINIB}.Cl", canonical_parent(ERLOTINIB)),
    "the salt of an acid": ("CC(=O)Oc1ccccc1C([O-])=O.[Na+]", "CC(=O)Oc1ccccc1C(=O)O"),
    "a solvent": ("c1ccncc1.O.CS(C)=O", "c1ccncc1"),
    "a cation stays one": ("C[N+](C)(C)CCO.[Cl-]", "C[N+](C)(C)CCO"),
    "cisplatin is not ammonia": ("N.N.Cl[Pt]Cl", "N.N.[Cl][Pt][Cl]"),
    "oxaliplatin is not its amine": (
        "C1CC[C@H]([C@@H](C1)[NH-])[NH-].C(=O)(C(=O)O)O.[Pt+2]",
        "O=C(O)C(=O)O.[NH-][C@@H]1CCCC[C@H]1[NH-].[Pt+2]",
    ),
    "without carbon": ("[Li+].[Cl-]", "[Cl-].[Li+]"),
    "no SMILES": ("C1CC", None),
    "nothing": (" ", None),
}


@pytest.mark.parametrize(("smiles", "parent"), PARENTS.values(), ids=PARENTS)
def test_a_drug_is_its_largest_part_without_charges_of_a_salt(smiles, parent, capfd):
    assert canonical_parent(smiles) == parent
    assert capfd.readouterr().err == ""


def test_what_is_a_parent_is_its_own(shared):
    smiles = pd.read_csv(shared / "data" / "gdsc_ccle" / "smiles.tsv", sep="\t")["smiles"]
    parents = [canonical_parent(text) for text in smiles[::4]]
    assert [canonical_parent(parent) for parent in parents] == parents


def test_stereochemistry_tells_drugs_apart():
    assert canonical_parent(DOXORUBICIN) != canonical_parent(EPIRUBICIN)


def test_names_of_one_structure_are_one_drug_and_said(caplog):
    caplog.set_level(logging.INFO, logger="geneformer_repro")
    drugs = Drugs.of_table(table(Tarceva=f"{ERLOTINIB}.Cl", erlotinib=ERLOTINIB, **{"PLX-1": None, "ERLO-TINIB": None}))
    parent = canonical_parent(ERLOTINIB)
    assert drugs.smiles == (parent, parent, None, None)
    assert drugs.keys == (parent, parent, "PLX1", parent)
    assert caplog.messages == [
        "2 drugs under 4 names, 2 without SMILES; under several names: Tarceva = erlotinib = ERLO-TINIB."
    ]
    assert drugs.select([2, 0]) == Drugs(("PLX-1", "Tarceva"), (None, parent), ("PLX1", parent))


def test_smiles_that_cannot_be_read_are_named_and_left_out(caplog):
    drugs = Drugs.of_table(table(a="CCO", b="C1CC", c="not"))
    assert (drugs.names, drugs.invalid) == (("a",), ("b", "c"))
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "The table of drugs: 2 of 3 drugs are left out, RDKit cannot read their SMILES: b ('C1CC'), c ('not')."
    ]
    with pytest.raises(InputError, match="there is no drug whose SMILES can be read"):
        Drugs.of_table(table(b="C1CC"))


def test_a_table_says_its_columns_by_their_names_or_is_told(tmp_path):
    (tmp_path / "drugs.tsv").write_text("Compound Name\tIsomeric SMILES\tMW\nethanol\tOCC\t46\nethanol\tCCO\t46\n")
    assert Drugs.of_table(tmp_path / "drugs.tsv") == Drugs(("ethanol",), ("CCO",), ("CCO",))
    other = pd.DataFrame({"Wirkstoff": ["ethanol"], "Formel": ["OCC"]})
    assert Drugs.of_table(other, name="Wirkstoff", smiles="Formel").smiles == ("CCO",)
    assert Drugs.of_table(other, name="Wirkstoff") == Drugs.of_names(["ethanol"])


WRONG_TABLES = {
    "no column of names": (
        pd.DataFrame({"x": ["a"]}),
        {},
        r"no column is called as one with names of drugs \(drug, drug",
    ),
    "no such column": (pd.DataFrame({"drug": ["a"]}), {"name": "drugs"}, "no column 'drugs'. Did you mean 'drug'"),
    "no such SMILES": (pd.DataFrame({"drug": ["a"]}), {"smiles": "s"}, "no column 's'"),
    "no name": (pd.DataFrame({"drug": ["a", None]}), {}, "drug 2 of 2 has no name"),
    "no row": (pd.DataFrame({"drug": []}, dtype=object), {}, "there is no drug"),
    "two structures": (
        pd.DataFrame({"drug": ["a", "a"], "smiles": ["CCO", "CCC"]}),
        {},
        "'a' has two structures, 'CCO' and 'CCC'. Give each drug a name of its own",
    ),
}


@pytest.mark.parametrize(("rows", "columns", "said"), WRONG_TABLES.values(), ids=WRONG_TABLES)
def test_a_table_that_names_no_drugs_is_refused(rows, columns, said):
    with pytest.raises(InputError, match=said):
        Drugs.of_table(rows, **columns)


def test_names_that_stand_twice_are_refused():
    with pytest.raises(InputError, match=r"The names of drugs: 1 drugs stand there twice \(first: 'a'\)"):
        Drugs.of_names(["a", "b", "a"])


def test_drugs_of_two_studies_meet_by_structure_then_name_then_skeleton():
    a = Drugs.of_table(table(Tarceva=ERLOTINIB, **{"Drug-1": None, "alanine": "C[C@H](N)C(=O)O"}))
    b = Drugs.of_table(table(erlotinib=f"{ERLOTINIB}.Cl", drug1="CCO", racemate="CC(N)C(=O)O"))
    assert same_drugs(a, b).to_numpy().tolist() == [
        ["Tarceva", "erlotinib", "structure"],
        ["Drug-1", "drug1", "name"],
        ["alanine", "racemate", "skeleton"],
    ]
    assert same_drugs(a, Drugs.of_names(["drug 1"])).to_numpy().tolist() == [["Drug-1", "drug 1", "name"]]


def test_ccle_shares_17_structures_with_gdsc_and_9_names(shared):
    folder = shared / "data" / "gdsc_ccle"
    names = {
        study: set(pd.read_parquet(folder / f"{study}_response.parquet", columns=["drug"])["drug"])
        for study in ("gdsc", "ccle")
    }
    drugs = Drugs.of_table(folder / "smiles.tsv")
    gdsc, ccle = (
        drugs.select([i for i, name in enumerate(drugs.names) if name in names[study]]) for study in ("gdsc", "ccle")
    )
    same = same_drugs(ccle, gdsc)
    assert (len(drugs), len(set(drugs.keys)), drugs.invalid) == (429, 415, ())
    assert len(names["ccle"] & names["gdsc"]) == 9
    assert same.loc[same["by"] == "structure", "a"].nunique() == 17
    assert {"AZD0530", "PF2341066"} <= set(same["a"]) - names["gdsc"]
    # GDSC screens the salts of two drugs, and no two of its drugs differ by stereochemistry alone but these
    by_name = dict(zip(drugs.names, drugs.keys, strict=True))
    assert by_name["Afuresertib"] == by_name["GSK2110183B"]
    assert by_name["Doxorubicin"] != by_name["Epirubicin"]


# what is looked at


@pytest.fixture(scope="module")
def drugs():
    return Drugs.of_table(table(erlotinib=ERLOTINIB, ethanol="CCO", chloroform="ClC(Cl)Cl"))


def test_fingerprints_are_rdkits(drugs):
    from rdkit import Chem
    from rdkit.Chem import rdFingerprintGenerator

    bits = drugs.fingerprints(radius=3, n_bits=512)
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=3, fpSize=512)
    expected = list(generator.GetFingerprint(Chem.MolFromSmiles(ERLOTINIB)).GetOnBits())
    assert (bits.shape, bits.dtype) == ((3, 512), np.float32)
    assert np.flatnonzero(bits[0]).tolist() == expected
    assert set(np.unique(bits)) == {0, 1}


def test_descriptors_are_numbers_or_nan(drugs):
    rdkit, mordred = drugs.descriptors(), drugs.select([0, 1]).descriptors("mordred")
    assert (rdkit.shape, mordred.shape) == ((3, 217), (2, 1613))
    assert list(rdkit.index) == list(drugs.names)
    np.testing.assert_allclose(rdkit["MolWt"], [393.44, 46.07, 119.38], atol=0.01)
    np.testing.assert_allclose(mordred["MW"], [393.17, 46.04], atol=0.01)
    assert int(mordred.loc["erlotinib"].isna().sum()) == 149
    assert not np.isinf(rdkit.to_numpy()).any()
    assert not np.isinf(mordred.to_numpy()).any()
    with pytest.raises(InputError, match=r"kind='modred'\. Did you mean 'mordred'"):
        drugs.descriptors("modred")


def test_drugs_without_smiles_are_named_where_structures_are_needed():
    drugs = Drugs.of_table(table(a="CCO", b=None))
    for use in (Drugs.fingerprints, Drugs.descriptors):
        with pytest.raises(InputError, match=r"need the structure of each drug, and 1 of 2 have no SMILES \('b'\)"):
            use(drugs)


def test_vectors_come_by_name_and_missing_drugs_are_named(drugs, tmp_path):
    pd.DataFrame(
        {"id": ["Ethanol", "x", "chloroform", "ERLOTINIB"], "v": [1, 2, 3, 4], "w": [0.5, 1, None, 0.5]}
    ).to_csv(tmp_path / "vectors.csv", index=False)
    vectors = drugs.vectors(tmp_path / "vectors.csv")
    expected = pd.DataFrame({"v": [4, 1, 3], "w": [0.5, 0.5, np.nan]}, index=list(drugs.names), dtype=np.float32)
    pd.testing.assert_frame_equal(vectors, expected)
    with pytest.raises(InputError, match=r"2 of 3 drugs have no row \('erlotinib', 'chloroform'\); its names are"):
        drugs.vectors(pd.DataFrame({"drug": ["ethanol"], "v": [1.0]}))
    with pytest.raises(DataFormatError, match="drug 'ethanol' has no number in column 'v'"):
        drugs.vectors(pd.DataFrame({"drug": ["ethanol"], "v": ["one"]}))
    with pytest.raises(DataFormatError, match="found no other column"):
        drugs.vectors(pd.DataFrame({"drug": ["ethanol"]}))


@pytest.mark.parametrize(
    ("module", "use"), [("rdkit", Drugs.fingerprints), ("mordred", lambda d: d.descriptors("mordred"))]
)
def test_without_the_extra_its_name_is_said(module, use, drugs, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'geneformer-repro\[drug\]'"):
        use(drugs)


def test_names_alone_need_no_rdkit(monkeypatch):
    monkeypatch.setitem(sys.modules, "rdkit", None)
    assert Drugs.of_table(pd.DataFrame({"drug": ["a"]})).keys == ("A",)
    with pytest.raises(MissingExtraError, match="need RDKit"):
        Drugs.of_table(table(a="CCO"))


# characters


def test_characters_of_training_drugs_have_ids_and_others_are_unknown():
    vocabulary = SmilesVocabulary.fit(["CCO", "CN"])
    assert (vocabulary.characters, len(vocabulary)) == (("C", "N", "O"), 5)
    np.testing.assert_array_equal(vocabulary.encode(["CO", "CSN"]), [[2, 4, 0], [2, 1, 3]])
    assert SmilesVocabulary.from_json(vocabulary.to_json()) == vocabulary
    np.testing.assert_array_equal(vocabulary.encode(["CO", "CSN"], length=2), [[2, 4], [2, 1]])
    assert vocabulary.encode([]).shape == (0, 0)
    with pytest.raises(InputError, match="characters"):
        SmilesVocabulary.from_json({"characters": [1]})
