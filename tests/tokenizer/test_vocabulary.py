import json
import pickle
import shutil
import threading
from dataclasses import replace

import anndata as ad
import huggingface_hub
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from geneformer_repro.errors import DataFormatError, InputError, VocabularyMismatchError
from geneformer_repro.files import read_json, write_json
from geneformer_repro.tokenizer.tokenize import tokenize
from geneformer_repro.tokenizer.vocabulary import Vocabulary

V1 = {"<pad>": 0, "<mask>": 1}
V2 = {"<pad>": 0, "<mask>": 1, "<cls>": 2, "<eos>": 3}
MEDIANS = {"a": 1.0, "b": 2.0, "c": 0.5}
NAMES = {"a": "alpha", "c": "gamma"}


def small(special=V1, **options):
    """Three genes."""
    tokens = special | {gene: len(special) + i for i, gene in enumerate("abc")}
    return Vocabulary.from_tokens(tokens, MEDIANS, NAMES, **options)


def without_medians(vocabulary):
    return Vocabulary.from_tokens(
        dict(vocabulary.special_tokens) | dict(zip(vocabulary.gene_ids, vocabulary.tokens, strict=True)),
        max_length=vocabulary.max_length,
    )


def assert_identical(found, expected):
    assert found.gene_ids == expected.gene_ids
    assert found.gene_names == expected.gene_names
    assert dict(found.special_tokens) == dict(expected.special_tokens)
    assert found.max_length == expected.max_length
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_equal(found.medians, expected.medians)
    assert found.fingerprint == expected.fingerprint


def counts_of(matrix, genes="abc", **options):
    var = pd.DataFrame(index=list(genes))
    obs = pd.DataFrame(index=[f"cell{i}" for i in range(len(matrix))])
    return ad.AnnData(csr_matrix(np.array(matrix, dtype=np.float32)), obs=obs, var=var, **options)


@pytest.fixture(scope="module")
def published(shared):
    return Vocabulary.load(shared / "golden" / "published_v1")


# the published dictionaries


def test_the_published_dictionaries_give_the_published_vocabulary(published, shared):
    table = pd.read_parquet(shared / "golden" / "published_v1" / "vocabulary.parquet")
    special = table["gene_id"].str.startswith("<")
    genes = table[~special].sort_values("token")
    assert published.gene_ids == tuple(genes["gene_id"])
    np.testing.assert_array_equal(published.tokens, genes["token"])
    np.testing.assert_array_equal(published.medians, genes["median"])
    assert dict(published.special_tokens) == dict(zip(table["gene_id"][special], table["token"][special], strict=True))


def test_the_published_dictionaries_name_every_gene_that_the_table_names(published, shared):
    table = pd.read_parquet(shared / "golden" / "published_v1" / "vocabulary.parquet").dropna(subset=["gene_name"])
    names = dict(zip(published.gene_ids, published.gene_names, strict=True))
    assert [names[gene] for gene in table["gene_id"]] == table["gene_name"].tolist()


def test_the_published_vocabulary_has_the_size_and_length_of_the_v1_models(published):
    assert len(published) == 25_424
    assert published.size == 25_426
    assert published.max_length == 2048
    assert not published.has_cls


@pytest.fixture
def hub_copy(shared, tmp_path):
    """A folder laid out like the hub repository, with the published V1 files and made-up V2 files."""
    nested = tmp_path / "Geneformer" / "geneformer"
    (nested / "gene_dictionaries_30m").mkdir(parents=True)
    for file in (shared / "golden" / "published_v1").glob("*.pkl"):
        shutil.copy(file, nested / "gene_dictionaries_30m")
    tokens = V2 | {"ENSG00000000003": np.int16(4), "ENSG00000000005": np.int16(5)}
    medians = {"ENSG00000000003": np.float32(2.5), "ENSG00000000005": np.float64(0.75)}
    contents = {
        "token_dictionary": tokens,
        "gene_median_dictionary": medians,
        "gene_name_id_dict": {"TSPAN6": "ENSG00000000003"},
        "ensembl_mapping_dict": {"ENSG00000000003": "ENSG00000000003"},
    }
    for stem, content in contents.items():
        (nested / f"{stem}_gc104M.pkl").write_bytes(pickle.dumps(content))
    return nested.parent


def test_the_v1_vocabulary_of_a_hub_copy_is_the_published_one(hub_copy, published):
    assert_identical(Vocabulary.from_pretrained(hub_copy, series="V1"), published)


def test_the_v2_vocabulary_of_a_hub_copy_is_its_own(hub_copy):
    found = Vocabulary.from_pretrained(hub_copy, series="V2")
    assert found.gene_ids == ("ENSG00000000003", "ENSG00000000005")
    assert found.gene_names == ("TSPAN6", "")
    assert found.has_cls
    assert found.max_length == 4096
    np.testing.assert_array_equal(found.medians, [2.5, 0.75])


def test_v2_is_the_series_unless_another_is_named(hub_copy):
    assert Vocabulary.from_pretrained(str(hub_copy)) == Vocabulary.from_pretrained(hub_copy, series="V2")


def test_from_pretrained_opens_what_load_opens(tmp_path, vocabulary):
    vocabulary.save(tmp_path / "v")
    assert_identical(Vocabulary.from_pretrained(tmp_path / "v"), vocabulary)


def test_a_hub_id_downloads_the_dictionaries_of_the_series_only(hub_copy, monkeypatch):
    asked = {}

    def download(repo, **options):
        asked.update(options, repo=repo)
        return str(hub_copy)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    found = Vocabulary.from_pretrained("someone/Geneformer", series="V1", revision="main")
    assert len(found) == 25_424
    assert asked == {
        "repo": "someone/Geneformer", "revision": "main", "allow_patterns": ["geneformer/gene_dictionaries_30m/*.pkl"],
    }  # fmt: skip


def test_a_hub_id_that_is_in_the_cache_needs_no_network(hub_copy, tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "cache" / "models--ctheodoris--Geneformer"
    shutil.copytree(hub_copy, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    expected = Vocabulary.from_pretrained(hub_copy, series="V1").fingerprint
    for revision in (None, "main", commit):
        vocabulary = Vocabulary.from_pretrained("ctheodoris/Geneformer", series="V1", revision=revision)
        assert vocabulary.fingerprint == expected


def test_a_folder_without_the_series_is_refused(hub_copy):
    shutil.rmtree(hub_copy / "geneformer" / "gene_dictionaries_30m")
    with pytest.raises(InputError, match=r"holds neither vocabulary\.json nor token_dictionary\*\.pkl"):
        Vocabulary.from_pretrained(hub_copy, series="V1")


def test_a_local_path_that_does_not_exist_is_refused_without_asking_the_hub(tmp_path):
    with pytest.raises(InputError, match="absent"):
        Vocabulary.from_pretrained(tmp_path / "absent")


def test_an_unknown_series_is_refused_with_the_known_ones(hub_copy):
    with pytest.raises(InputError, match=r"'v2'.*V2"):
        Vocabulary.from_pretrained(hub_copy, series="v2")


def test_dictionaries_for_published_code_are_plain_and_lead_back(vocabulary, tmp_path):
    vocabulary.to_published(tmp_path / "theirs")
    assert_identical(Vocabulary.load(tmp_path / "theirs"), vocabulary)
    mapping, tokens = (
        pickle.loads((tmp_path / "theirs" / f"{stem}.pkl").read_bytes())  # noqa: TID251, as published code does
        for stem in ("ensembl_mapping_dict", "token_dictionary")
    )
    assert list(tokens)[:4] == list(vocabulary.special_tokens)
    assert {type(value) for value in tokens.values()} == {int}
    assert set(vocabulary.gene_ids) <= set(mapping)  # it passes over a gene that is not among them


def test_published_code_gets_the_same_tokens_with_these_dictionaries(vocabulary, cells, pbmc, tmp_path):
    """Its algorithm: divide by the total, times ten thousand, by the median; sort, in any order of ties; wrap."""
    vocabulary.to_published(tmp_path / "theirs")
    mapping, tokens, medians = (
        pickle.loads((tmp_path / "theirs" / f"{stem}.pkl").read_bytes())  # noqa: TID251, as published code does
        for stem in ("ensembl_mapping_dict", "token_dictionary", "gene_median_dictionary")
    )
    genes = [mapping[gene] for gene in pbmc.var_names]
    norms, ids = np.array([medians[gene] for gene in genes]), np.array([tokens[gene] for gene in genes])
    counts = pbmc.X.toarray().astype(np.float64)
    for i in range(0, 700, 100):
        values = counts[i] / pbmc.obs["n_counts"].iloc[i] * 1e4 / norms
        expressed = np.flatnonzero(values)
        value_of = dict(zip(ids[expressed].tolist(), values[expressed], strict=True))
        first, *ours, last = cells[i].tolist()
        assert (first, last) == (tokens["<cls>"], tokens["<eos>"])
        assert set(ours) == set(value_of)
        np.testing.assert_allclose([value_of[token] for token in ours], sorted(value_of.values())[::-1], rtol=1e-12)


def test_what_published_code_cannot_rank_is_not_written_for_it(vocabulary, tmp_path):
    with pytest.raises(InputError, match="Published code ranks counts in descending order; this vocabulary is for"):
        replace(vocabulary, values="expression").to_published(tmp_path / "theirs")
    assert not (tmp_path / "theirs").exists()


def test_dictionaries_without_names_give_genes_without_names(hub_copy):
    (hub_copy / "geneformer" / "gene_name_id_dict_gc104M.pkl").unlink()
    assert Vocabulary.from_pretrained(hub_copy).gene_names == ("", "")


def test_dictionaries_without_medians_are_refused(hub_copy):
    (hub_copy / "geneformer" / "gene_median_dictionary_gc104M.pkl").unlink()
    with pytest.raises(
        InputError, match=r"found token_dictionary\*\.pkl but no gene_median_dictionary\*\.pkl beside it"
    ):
        Vocabulary.from_pretrained(hub_copy)


def test_two_series_in_one_folder_are_refused(hub_copy):
    shutil.copy(
        hub_copy / "geneformer" / "gene_dictionaries_30m" / "token_dictionary_gc30M.pkl", hub_copy / "geneformer"
    )
    with pytest.raises(InputError, match=r"several token_dictionary\*\.pkl \(.*gc104M.*gc30M.*\); keep one series"):
        Vocabulary.from_pretrained(hub_copy)


# the published folder


def test_a_refused_dictionary_among_the_published_ones_is_named(hub_copy):
    (hub_copy / "geneformer" / "gene_name_id_dict_gc104M.pkl").write_bytes(pickle.dumps({"a": threading.Thread}))
    with pytest.raises(InputError, match=r"gene_name_id_dict_gc104M\.pkl: refused .*threading\.Thread"):
        Vocabulary.from_pretrained(hub_copy)


# save and load


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(small, id="V1"),
        pytest.param(lambda: small(V2), id="V2"),
        pytest.param(lambda: small(max_length=17), id="own_length"),
        pytest.param(lambda: without_medians(small()), id="no_medians"),
        pytest.param(lambda: Vocabulary.from_tokens(V1 | {"NA": 2, "nan": 3, "None": 4}), id="ids_like_missing_values"),
        pytest.param(lambda: Vocabulary.from_tokens(V1 | {"1": 2, "01": 3, "1e5": 4}), id="ids_like_numbers"),
        pytest.param(lambda: Vocabulary.from_tokens({"<pad>": 9, "<mask>": 5, "a": 1, "b": 7}), id="tokens_with_gaps"),
        pytest.param(
            lambda: Vocabulary.from_tokens(
                V1 | {"a": 2, "b": 3, "c": 4}, names={"a": 'say "x"', "b": "a\tb", "c": "NA"}
            ),
            id="names_with_quotes_tabs_and_NA",
        ),
        pytest.param(
            lambda: Vocabulary.from_tokens(
                V1 | {"a": 2, "-b": 3, "c": 4}, names={"a": "=1+1", "-b": "a\rb", "c": "'@x"}, other_ids={"+d": "a"}
            ),
            id="names_that_spreadsheets_run",
        ),
        pytest.param(lambda: replace(small(), values="expression"), id="of_expression"),
        pytest.param(lambda: replace(without_medians(small()), values="zscore", order="two_ended"), id="of_z_scores"),
    ],
)
def test_what_is_saved_is_what_is_loaded(tmp_path, make):
    make().save(tmp_path / "v")
    assert_identical(Vocabulary.load(tmp_path / "v"), make())


OF_COUNTS = "540a90438d9e45546ef38a9374e4fe9230bba39f285a48e25b2bf685ce512904"


def test_only_vocabularies_of_bulk_are_of_another_format(tmp_path):
    """`OF_COUNTS` is what the package wrote before it knew of values."""
    assert small(V2).fingerprint == OF_COUNTS
    headers = {}
    for name, vocabulary in {"counts": small(V2), "bulk": replace(small(V2), values="expression")}.items():
        vocabulary.save(tmp_path / name)
        headers[name] = json.loads((tmp_path / name / "vocabulary.json").read_text())
    assert headers["counts"].keys() == headers["bulk"].keys() - {"values", "order"}
    assert headers["counts"]["format"] == "geneformer_repro/vocabulary/2"
    assert headers["bulk"]["format"] == "geneformer_repro/vocabulary/3"
    (tmp_path / "bulk" / "vocabulary.json").write_text(json.dumps(headers["bulk"] | {"values": "ratios"}))
    with pytest.raises(InputError, match="values is one of 'counts', 'expression', 'zscore', found 'ratios'"):
        Vocabulary.load(tmp_path / "bulk")


def test_z_scores_have_no_medians():
    with pytest.raises(InputError, match="z-scores are ranked without medians"):
        replace(small(), values="zscore")


def test_a_learned_vocabulary_is_loaded_as_it_was_saved(tmp_path, vocabulary):
    vocabulary.save(tmp_path / "v")
    assert_identical(Vocabulary.load(str(tmp_path / "v")), vocabulary)


def test_the_published_vocabulary_is_loaded_as_it_was_saved(tmp_path, published):
    published.save(tmp_path / "v")
    assert_identical(Vocabulary.load(tmp_path / "v"), published)


@settings(deadline=None, max_examples=50, database=None)
@given(st.lists(st.floats(0, exclude_min=True, allow_infinity=False), min_size=1, max_size=5))
def test_medians_are_saved_to_the_last_digit(tmp_path_factory, medians):
    genes = [f"g{i}" for i in range(len(medians))]
    tokens = V1 | {gene: 2 + i for i, gene in enumerate(genes)}
    folder = tmp_path_factory.mktemp("medians") / "v"
    Vocabulary.from_tokens(tokens, dict(zip(genes, medians, strict=True))).save(folder)
    np.testing.assert_array_equal(Vocabulary.load(folder).medians, medians)


def test_saving_twice_gives_the_same_bytes(tmp_path, vocabulary):
    for name in "ab":
        vocabulary.save(tmp_path / name)
    for file in ("vocabulary.tsv", "vocabulary.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_the_saved_files_are_readable_without_the_package(tmp_path):
    small(V2).save(tmp_path / "v")
    assert sorted(path.name for path in (tmp_path / "v").iterdir()) == ["vocabulary.json", "vocabulary.tsv"]
    assert (tmp_path / "v" / "vocabulary.tsv").read_text().splitlines() == [
        "gene_id\ttoken\tgene_name\tmedian",
        "a\t4\talpha\t1.0",
        "b\t5\t\t2.0",
        "c\t6\tgamma\t0.5",
    ]
    assert read_json(tmp_path / "v" / "vocabulary.json") == {
        "format": "geneformer_repro/vocabulary/2", "fingerprint": small(V2).fingerprint, "n_genes": 3,
        "max_length": 4096, "special_tokens": V2, "has_medians": True,
    }  # fmt: skip


def test_an_existing_vocabulary_is_not_overwritten_unasked(tmp_path):
    small().save(tmp_path / "v")
    with pytest.raises(FileExistsError, match="already exists"):
        small(V2).save(tmp_path / "v")
    assert Vocabulary.load(tmp_path / "v") == small()


def test_an_existing_vocabulary_is_overwritten_when_asked(tmp_path):
    small().save(tmp_path / "v")
    small(V2).save(tmp_path / "v", overwrite=True)
    assert Vocabulary.load(tmp_path / "v") == small(V2)


def test_a_folder_that_is_no_vocabulary_is_never_overwritten(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match=r"without vocabulary\.json"):
        small().save(tmp_path, overwrite=True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda path: None, "is not a folder", id="missing"),
        pytest.param(lambda path: path.touch(), "is not a folder", id="file"),
        pytest.param(lambda path: path.mkdir(), r"holds neither vocabulary\.json nor token_dictionary", id="empty"),
    ],
)
def test_a_path_without_a_vocabulary_is_refused(tmp_path, make, message):
    make(tmp_path / "v")
    with pytest.raises(
        InputError, match=rf"v: {message}.*Expected a vocabulary saved by this package, or the published"
    ):
        Vocabulary.load(tmp_path / "v")


def edit_table(folder, old, new):
    path = folder / "vocabulary.tsv"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def edit_header(folder, **changes):
    header = read_json(folder / "vocabulary.json") | changes
    write_json(folder / "vocabulary.json", {key: value for key, value in header.items() if value is not None})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda v: edit_table(v, "b\t3", "b\t4000"), "damaged|changed", id="token"),
        pytest.param(lambda v: edit_table(v, "\t2.0", "\t2.5"), "has changed since it was written", id="median"),
        pytest.param(lambda v: edit_table(v, "b\t3", "B\t3"), "has changed since it was written", id="gene"),
        pytest.param(lambda v: edit_table(v, "alpha", "beta"), "has changed since it was written", id="name"),
        pytest.param(
            lambda v: (v / "other_ids.tsv").write_text("other_id\tgene_id\nx\ta\n"), "has changed since", id="other_id"
        ),
        pytest.param(lambda v: edit_table(v, "c\t4\tgamma\t0.5\n", ""), "has changed since", id="row_lost"),
        pytest.param(lambda v: edit_table(v, "c\t4", "a\t4"), r"damaged \(Gene 'a' stands twice", id="gene_twice"),
        pytest.param(lambda v: edit_table(v, "\t2.0", "\t-2.0"), r"damaged \(Medians must be positive", id="negative"),
        pytest.param(lambda v: edit_table(v, "\t2.0", "\tmany"), "damaged", id="median_is_text"),
        pytest.param(lambda v: edit_table(v, "\t3\t", "\tx\t"), "damaged", id="token_is_text"),
        pytest.param(lambda v: edit_table(v, "gene_id", "gene"), "damaged", id="column_lost"),
        pytest.param(lambda v: (v / "vocabulary.tsv").write_text(""), "damaged", id="empty_table"),
        pytest.param(lambda v: (v / "vocabulary.tsv").write_bytes(b"\xff\xfe\x00"), "damaged", id="binary_table"),
        pytest.param(lambda v: (v / "vocabulary.tsv").unlink(), "missing or damaged", id="no_table"),
        pytest.param(lambda v: edit_header(v, max_length=9), "has changed since|header", id="length"),
        pytest.param(
            lambda v: edit_header(v, special_tokens={"<pad>": 0, "<mask>": 9}), "changed|header", id="special"
        ),
        pytest.param(
            lambda v: edit_header(v, format="other/2"), r"expected format 'gene.*/2', found 'other/2'", id="format"
        ),
        pytest.param(lambda v: edit_header(v, format=None), "expected format .* found None", id="no_format"),
        pytest.param(lambda v: edit_header(v, fingerprint=None), "fingerprint", id="no_fingerprint"),
        pytest.param(lambda v: edit_header(v, special_tokens=["<pad>"]), "damaged", id="special_is_a_list"),
        pytest.param(lambda v: edit_header(v, max_length="long"), "damaged", id="length_is_text"),
        pytest.param(lambda v: (v / "vocabulary.json").write_text("{"), "not readable as JSON", id="header_cut"),
        pytest.param(lambda v: (v / "vocabulary.json").write_text("[" * 10**5), "not readable as JSON", id="nested"),
        pytest.param(
            lambda v: edit_header(v, special_tokens={"<pad>": 0, "<mask>": "1"}),
            "damaged .*whole number",
            id="special_text",
        ),
        pytest.param(lambda v: edit_header(v, max_length=10**11), "must be at most 1,048,576", id="length_huge"),
        pytest.param(lambda v: edit_table(v, "c\t4", f"c\t{10**11}"), "Token ids must be below 16,777,216", id="huge"),
        pytest.param(lambda v: edit_table(v, "c\t4", f"c\t{10**30}"), "damaged", id="token_of_30_digits"),
    ],
)
def test_a_damaged_or_changed_vocabulary_is_refused(tmp_path, change, message):
    small().save(tmp_path / "v")
    change(tmp_path / "v")
    with pytest.raises(InputError, match=rf"v.*({message})"):
        Vocabulary.load(tmp_path / "v")


def former(folder, *, fingerprint):
    """Make a saved vocabulary one of format 1."""
    edit_header(folder, format="geneformer_repro/vocabulary/1", fingerprint=fingerprint)


OF_SMALL = "a0cc4de68a782e9ce0a7ff9e8c9b590c835a08e9e51cd0aa1d5c5c1b961e456f"
"""What the package wrote while names and other ids did not count."""


def test_a_vocabulary_of_the_format_before_opens_with_its_own_fingerprint(tmp_path):
    small(V2).save(tmp_path / "v")
    former(tmp_path / "v", fingerprint=OF_SMALL)
    edit_table(tmp_path / "v", "alpha", "ALPHA1")
    found = Vocabulary.load(tmp_path / "v")
    assert found.gene_names[0] == "ALPHA1"
    assert found.has_fingerprint(OF_SMALL)
    edit_table(tmp_path / "v", "\t2.0", "\t2.5")
    with pytest.raises(InputError, match="has changed since it was written"):
        Vocabulary.load(tmp_path / "v")


# what a vocabulary is


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"gene_ids": ()}, "0 genes was given 3 tokens", id="fewer_genes_than_tokens"),
        pytest.param({"gene_ids": (), "tokens": [], "medians": None}, "needs at least one gene, found none", id="none"),
        pytest.param({"tokens": [2, 3]}, "of 3 genes was given 2 tokens", id="fewer_tokens"),
        pytest.param({"medians": [1.0]}, "of 3 genes was given 1 medians", id="fewer_medians"),
        pytest.param({"gene_names": ("x",)}, "of 3 genes was given 1 gene_names", id="fewer_names"),
        pytest.param({"gene_ids": ("a", "b", "a")}, "Gene 'a' stands twice", id="gene_twice"),
        pytest.param({"tokens": [2, 2, 3]}, "Token ids must be distinct", id="token_twice"),
        pytest.param({"tokens": [1, 2, 3]}, "Token ids must be distinct", id="token_of_a_special"),
        pytest.param({"tokens": [-1, 2, 3]}, "not negative", id="negative_token"),
        pytest.param({"tokens": [4, 3, 2]}, "increase with the order of the genes", id="tokens_out_of_order"),
        pytest.param(
            {"special_tokens": {"<pad>": 0}}, r"needs the special token '<mask>', found \['<pad>'\]", id="no_mask"
        ),
        pytest.param({"special_tokens": {"<mask>": 0}}, "needs the special token '<pad>'", id="no_pad"),
        pytest.param({"max_length": 2}, "max_length must leave room for genes, found 2", id="no_room"),
        pytest.param({"medians": [1.0, 0.0, 1.0]}, r"positive and finite; gene 'b' has 0\.0", id="zero_median"),
        pytest.param({"medians": [1.0, -1.0, 1.0]}, r"gene 'b' has -1\.0", id="negative_median"),
        pytest.param({"medians": [np.nan, 1.0, 1.0]}, "gene 'a' has nan", id="nan_median"),
        pytest.param({"medians": [1.0, 1.0, np.inf]}, "gene 'c' has inf", id="infinite_median"),
    ],
)
def test_an_invalid_vocabulary_is_refused(options, message):
    valid = {
        "gene_ids": tuple("abc"),
        "tokens": [2, 3, 4],
        "special_tokens": V1,
        "max_length": 9,
        "medians": [1.0, 1.0, 1.0],
    }
    with pytest.raises(InputError, match=message):
        Vocabulary(**valid | options)


def test_from_tokens_sorts_genes_by_token_and_finds_the_special_ones():
    found = Vocabulary.from_tokens(
        {"b": 3, "<mask>": 1, "a": 2, "<pad>": 0}, {"a": 1, "b": 2, "other": 3}, {"b": "beta"}
    )
    assert found.gene_ids == ("a", "b")
    assert found.gene_names == ("", "beta")
    np.testing.assert_array_equal(found.medians, [1.0, 2.0])


@pytest.mark.parametrize(("special", "length"), [(V1, 2048), (V2, 4096)])
def test_the_length_follows_the_special_tokens(special, length):
    assert small(special).max_length == length
    assert small(special, max_length=100).max_length == 100


def test_a_length_of_zero_is_refused_not_replaced():
    with pytest.raises(InputError, match="max_length must leave room for genes, found 0"):
        small(max_length=0)


def test_a_gene_with_a_token_but_no_median_is_refused():
    with pytest.raises(InputError, match=r"1 of 2 genes have a token but no median \(first: 'b'\)"):
        Vocabulary.from_tokens(V1 | {"a": 2, "b": 3}, {"a": 1.0})


@pytest.mark.parametrize(
    ("tokens", "medians", "message"),
    [
        pytest.param({"a": "2"}, None, "token of 'a' should be a whole number, found '2'", id="text"),
        pytest.param({"a": 2.5}, None, "found 2.5", id="fraction"),
        pytest.param({"a": [2]}, None, "found \\[2\\]", id="list"),
        pytest.param({"a": float("nan")}, None, "found nan", id="missing"),
        pytest.param({("a",): 2}, None, "ids and names are text, found tuple", id="id"),
        pytest.param({"a": 2}, {"a": "x"}, "median of 'a' should be a number, found 'x'", id="median"),
        pytest.param({"a": 10**11}, None, "Token ids must be below 16,777,216", id="huge"),
    ],
)
def test_dictionaries_of_other_things_are_refused(tokens, medians, message):
    with pytest.raises(InputError, match=message):
        Vocabulary.from_tokens(V1 | tokens, medians)


def test_special_tokens_are_told_apart():
    vocabulary = Vocabulary.from_tokens({"<pad>": 7, "<mask>": 5, "a": 2})
    assert (vocabulary.pad_token, vocabulary.mask_token, vocabulary.size, len(vocabulary)) == (7, 5, 8, 1)


@pytest.mark.parametrize(("special", "expected"), [(V1, False), (V2, True), (V1 | {"<cls>": 2}, False)])
def test_cells_are_wrapped_only_where_both_tokens_exist(special, expected):
    assert small(special).has_cls is expected


def test_the_representation_says_what_it_is():
    assert (
        repr(small(V2))
        == f"Vocabulary(3 genes, <pad>, <mask>, <cls>, <eos>, max_length=4096, {small(V2).fingerprint[:12]})"
    )
    assert "no medians" in repr(without_medians(small()))
    assert "max_length=2048, expression, two-ended, " in repr(replace(small(), values="expression", order="two_ended"))


def test_equal_content_makes_equal_vocabularies():
    assert small() == small()
    assert len({small(), small(), small(V2)}) == 2
    assert small() != "small"


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(lambda: small(V2), id="special_tokens"),
        pytest.param(lambda: small(max_length=9), id="length"),
        pytest.param(lambda: without_medians(small()), id="no_medians"),
        pytest.param(lambda: Vocabulary.from_tokens(V1 | {"a": 2, "b": 3, "d": 4}, MEDIANS | {"d": 0.5}), id="gene"),
        pytest.param(lambda: Vocabulary.from_tokens(V1 | {"a": 2, "b": 3, "c": 5}, MEDIANS), id="token"),
        pytest.param(lambda: Vocabulary.from_tokens(V1 | {"a": 2, "b": 3, "c": 4}, MEDIANS | {"c": 0.6}), id="median"),
        pytest.param(lambda: Vocabulary.from_tokens(V1 | {"a": 2, "b": 3, "c": 4}, MEDIANS), id="names"),
        pytest.param(lambda: small(other_ids={"old": "a"}), id="other_ids"),
        pytest.param(lambda: replace(small(), values="expression"), id="values"),
        pytest.param(lambda: replace(small(), order="two_ended"), id="order"),
    ],
)
def test_the_fingerprint_tells_apart_what_changes_tokens(other):
    assert other().fingerprint != small().fingerprint
    assert other() != small()


def test_the_order_of_other_ids_does_not_count_in_the_fingerprint():
    one, other = ({"old": "a", "older": "b"}, {"older": "b", "old": "a"})
    assert small(other_ids=one).fingerprint == small(other_ids=other).fingerprint


def test_a_gene_is_found_by_its_position():
    assert [small().gene_ids[small().position[gene]] for gene in "abc"] == ["a", "b", "c"]


def test_tokens_lead_back_to_genes(vocabulary):
    np.testing.assert_array_equal(vocabulary.genes_of(vocabulary.tokens), np.arange(len(vocabulary)))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64])
def test_other_tokens_are_no_genes(dtype):
    np.testing.assert_array_equal(small().genes_of(np.array([0, 1, 2, 4, 5, 99], dtype=dtype)), [-1, -1, 0, 2, -1, -1])


def test_a_negative_token_is_no_gene():
    np.testing.assert_array_equal(small().genes_of(np.array([-1, -2, 3])), [-1, -1, 1])


def test_genes_are_given_by_id_or_name():
    np.testing.assert_array_equal(small().tokens_of(["c", "alpha", "b"]), [4, 2, 3])
    np.testing.assert_array_equal(small().tokens_of(gene for gene in "ab"), [2, 3])


def test_no_genes_have_no_tokens():
    np.testing.assert_array_equal(small().tokens_of([]), np.array([], dtype=np.int64), strict=True)


def test_a_gene_is_found_where_it_stands_by_id_or_name():
    np.testing.assert_array_equal(small().find(["c", "alpha", "b", "gamma"]), [2, 0, 1, 2])
    np.testing.assert_array_equal(small().find(gene for gene in "ab"), [0, 1])


@pytest.mark.parametrize(
    ("asked", "place"),
    [
        pytest.param("ENSG00000000005.12", 1, id="a version"),
        pytest.param("ensg00000000005", 1, id="small letters"),
        pytest.param(" ENSG00000000005 ", 1, id="blanks"),
        pytest.param("ENSG00000000009", 1, id="a retired id"),
        pytest.param("ENSG00000000009.3", 1, id="a retired id with a version"),
        pytest.param("TNMD ", 1, id="a name with a blank"),
        pytest.param("TNMD.1", -1, id="a name with a number behind it"),
        pytest.param(5, -1, id="no text"),
    ],
)
def test_a_gene_is_found_however_its_id_is_written(asked, place):
    genes = {"ENSG00000000003": 2, "ENSG00000000005": 3}
    names, other = {"ENSG00000000005": "TNMD"}, {"ENSG00000000009": "ENSG00000000005"}
    assert Vocabulary.from_tokens(V1 | genes, names=names, other_ids=other).find([asked]).tolist() == [place]


def test_every_gene_is_found_where_it_stands(vocabulary):
    np.testing.assert_array_equal(vocabulary.find(vocabulary.gene_ids), np.arange(len(vocabulary)), strict=True)


def test_unknown_and_ambiguous_genes_are_found_nowhere():
    vocabulary = Vocabulary.from_tokens(V1 | {"a": 2, "b": 3, "c": 4}, names={"a": "same", "b": "same"})
    np.testing.assert_array_equal(vocabulary.find(["c", "same", "x", "", "<pad>"]), [2, -1, -1, -1, -1])


def test_no_genes_are_found_nowhere():
    np.testing.assert_array_equal(small().find([]), np.array([], dtype=np.int64), strict=True)


def test_unknown_and_ambiguous_genes_are_all_named():
    vocabulary = Vocabulary.from_tokens(V1 | {"a": 2, "b": 3, "c": 4}, names={"a": "same", "b": "same"})
    message = (
        r"3 of 4 genes are not in the vocabulary, or their name .*: 'same', 'x', ''\. Give Ensembl ids such as 'a'"
    )
    with pytest.raises(InputError, match=message):
        vocabulary.tokens_of(["c", "same", "x", ""])


def test_an_id_wins_over_the_name_of_another_gene():
    vocabulary = Vocabulary.from_tokens(V1 | {"a": 2, "b": 3}, names={"b": "a"})
    np.testing.assert_array_equal(vocabulary.tokens_of(["a"]), [2])
    np.testing.assert_array_equal(vocabulary.find(["a"]), [0])


# require_same


def mismatch(first, second):
    with pytest.raises(VocabularyMismatchError) as caught:
        first.require_same(second, this="dataset heart.tok", that="checkpoint runs/base")
    return str(caught.value)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(small, id="equal"),
        pytest.param(lambda: without_medians(small()), id="no_medians_known"),
        pytest.param(lambda: Vocabulary.from_tokens(V1 | {"a": 2, "b": 3, "c": 4}, MEDIANS), id="other_names"),
        pytest.param(lambda: small(max_length=9), id="other_length"),
    ],
)
def test_vocabularies_that_give_the_same_tokens_are_accepted_both_ways(other):
    small().require_same(other(), this="a", that="b")
    other().require_same(small(), this="a", that="b")


def test_a_mismatch_names_both_sides_their_fingerprints_and_the_way_out():
    message = mismatch(small(), small(V2))
    for part in ("dataset heart.tok", "checkpoint runs/base", small().fingerprint[:12], small(V2).fingerprint[:12]):
        assert part in message
    assert message.endswith("Tokenise the counts again with the vocabulary of the checkpoint.")


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        pytest.param(
            {"a": 2, "b": 5, "c": 6}, "gene b is token 3 in the one and token 5 in the other", id="other_token"
        ),
        pytest.param({"a": 2, "x": 3, "c": 4}, "gene b is token 3 in the one and absent in the other", id="absent"),
        pytest.param({"a": 2}, "gene b is token 3 in the one and absent in the other", id="shorter"),
        pytest.param({"a": 2, "b": 3, "c": 4, "d": 5}, "gene d is only in the other", id="longer"),
        pytest.param({"b": 2, "a": 3, "c": 4}, "gene a is token 2 in the one and token 3 in the other", id="swapped"),
    ],
)
def test_a_mismatch_names_the_first_differing_gene(tokens, message):
    assert f"first differing {message}" in mismatch(small(), Vocabulary.from_tokens(V1 | tokens))


def test_a_mismatch_shows_differing_special_tokens():
    assert f"special tokens {V1} and {V2}" in mismatch(small(), small(V2))


def test_a_mismatch_of_medians_names_the_gene_and_both():
    other = Vocabulary.from_tokens(V1 | {"a": 2, "b": 3, "c": 4}, MEDIANS | {"b": 2.5})
    assert "same tokens, but other medians (first: gene b, 2 and 2.5)" in mismatch(small(), other)


# fit


def test_a_learned_vocabulary_has_every_expressed_gene_in_alphabetical_order(pbmc):
    silent = pbmc.var_names[[3, 5]]
    counts = pbmc.to_df().assign(**dict.fromkeys(silent, 0)).iloc[:, ::-1]
    found = Vocabulary.fit(ad.AnnData(csr_matrix(counts), obs=pbmc.obs, var=counts.columns.to_frame()))
    assert found.gene_ids == tuple(sorted(set(pbmc.var_names) - set(silent)))


@pytest.mark.parametrize(("series", "special", "length"), [("V1", V1, 2048), ("V2", V2, 4096)])
def test_a_learned_vocabulary_follows_its_series(pbmc, series, special, length):
    found = Vocabulary.fit(pbmc, series=series)
    assert dict(found.special_tokens) == special
    assert found.max_length == length
    np.testing.assert_array_equal(found.tokens, len(special) + np.arange(754))


def test_a_learned_vocabulary_is_of_the_v2_series_unless_asked(pbmc):
    assert Vocabulary.fit(pbmc) == Vocabulary.fit(pbmc, series="V2")


def test_a_learned_vocabulary_may_have_another_length(pbmc):
    assert Vocabulary.fit(pbmc, max_length=512).max_length == 512


def test_learned_medians_are_those_of_counts_per_ten_thousand(pbmc):
    found = Vocabulary.fit(pbmc)
    scaled = pbmc.X.toarray().astype(np.float64) / pbmc.obs["n_counts"].to_numpy()[:, None] * 10_000
    expected = [np.median(column[column > 0]) for column in scaled.T]
    place = [found.position[gene] for gene in pbmc.var_names]
    np.testing.assert_allclose(found.medians[place], expected, rtol=1e-12)


def test_without_n_counts_the_stored_counts_are_summed(pbmc):
    del pbmc.obs["n_counts"]
    summed = Vocabulary.fit(pbmc)
    pbmc.obs["n_counts"] = pbmc.X.toarray().sum(axis=1)
    assert Vocabulary.fit(pbmc) == summed


def test_learned_names_are_those_of_var(pbmc):
    found = Vocabulary.fit(pbmc)
    assert dict(zip(found.gene_ids, found.gene_names, strict=True)) == pbmc.var["gene_name"].to_dict()


def test_a_file_gives_the_same_vocabulary_as_memory(pbmc, vocabulary, tmp_path):
    pbmc.write_h5ad(tmp_path / "x.h5ad")
    assert_identical(Vocabulary.fit(tmp_path / "x.h5ad"), vocabulary)
    assert_identical(Vocabulary.fit(str(tmp_path / "x.h5ad")), vocabulary)


def test_several_sources_give_the_same_vocabulary_as_one(pbmc, vocabulary, tmp_path):
    pbmc[300:].copy().write_h5ad(tmp_path / "x.h5ad")
    assert_identical(Vocabulary.fit([pbmc[:300], tmp_path / "x.h5ad"]), vocabulary)
    assert_identical(Vocabulary.fit((str(tmp_path / "x.h5ad"), pbmc[:300, ::-1])), vocabulary)


def test_sources_may_have_different_genes():
    found = Vocabulary.fit([counts_of([[1, 1]], "ab"), counts_of([[1, 3]], "bc")])
    assert found.gene_ids == ("a", "b", "c")
    np.testing.assert_allclose(found.medians, [5000, 3750, 7500], rtol=1e-12)


@pytest.mark.parametrize("layer", ["counts", "raw"])
def test_counts_may_lie_elsewhere_than_in_x(pbmc, vocabulary, layer):
    pbmc.raw = pbmc
    pbmc.layers["counts"] = pbmc.X
    pbmc.X = pbmc.X * np.float32(0.1)
    assert_identical(Vocabulary.fit(pbmc, layer=layer), vocabulary)


def test_gene_ids_may_lie_in_a_column(pbmc, vocabulary):
    pbmc.var["id"] = pbmc.var_names
    pbmc.var_names = pbmc.var["gene_name"].to_numpy()
    assert_identical(Vocabulary.fit(pbmc, gene_ids="id"), vocabulary)


def test_columns_of_one_gene_are_summed():
    adata = counts_of([[1, 2, 7], [0, 5, 5]])
    adata.var["ensembl_id"] = ["a", "a", "b"]
    found = Vocabulary.fit(adata)
    assert found.gene_ids == ("a", "b")
    np.testing.assert_allclose(found.medians, [4000, 6000], rtol=1e-12)


@pytest.mark.parametrize("missing", [np.nan, None, ""])
def test_a_gene_without_an_id_does_not_become_a_gene(missing):
    adata = counts_of([[1, 2, 7]])
    adata.var["ensembl_id"] = ["a", missing, "c"]
    assert Vocabulary.fit(adata).gene_ids == ("a", "c")


def test_real_genes_without_an_id_do_not_become_a_gene(shared):
    found = Vocabulary.fit(shared / "data" / "datlinger_jurkat" / "datlinger_jurkat.h5ad")
    assert all(gene.startswith("ENSG") for gene in found.gene_ids)


def test_counts_without_any_expressed_gene_are_refused():
    with pytest.raises(DataFormatError, match=r"No gene is expressed in any cell.*cannot be learned"):
        Vocabulary.fit(counts_of([[0, 0, 0]]))


def test_no_sources_are_refused():
    with pytest.raises(InputError, match="No source was given"):
        Vocabulary.fit([])


def test_normalised_values_are_refused(pbmc):
    pbmc.X.data /= 3
    with pytest.raises(DataFormatError, match="fractional values"):
        Vocabulary.fit(pbmc)


@pytest.mark.parametrize(("given", "shown"), [(100, "100"), (np.nan, "nan"), (0, "0")])
def test_totals_below_the_stored_counts_are_refused(pbmc, given, shown):
    pbmc.obs.loc[pbmc.obs_names[2], "n_counts"] = given
    message = (
        rf"obs\['n_counts'\] of cell '{pbmc.obs_names[2]}' is {shown}, less than the \d+ counts.*correct the column"
    )
    with pytest.raises(DataFormatError, match=message):
        Vocabulary.fit(pbmc)


def test_an_unknown_series_is_refused_before_the_counts_are_read():
    with pytest.raises(InputError, match=r"'V3'.*V1.*V2"):
        Vocabulary.fit(counts_of([[1, 2, 3]]), series="V3")


def test_the_header_is_json_without_special_numbers(tmp_path, vocabulary):
    vocabulary.save(tmp_path / "v")
    json.loads((tmp_path / "v" / "vocabulary.json").read_text(), parse_constant=pytest.fail)


# Retired ids


def test_the_published_mapping_of_retired_ids_is_kept(hub_copy, tmp_path):
    folder = hub_copy / "geneformer" / "gene_dictionaries_30m"
    known = Vocabulary.from_pretrained(hub_copy, series="V1").gene_ids[0]
    mapping = {"ENSG99999999999": known, known: known, "ENSG99999999998": "ENSG99999999997"}
    (folder / "ensembl_mapping_dict_gc30M.pkl").write_bytes(pickle.dumps(mapping))
    vocabulary = Vocabulary.from_pretrained(hub_copy, series="V1")
    assert vocabulary.other_ids == {"ENSG99999999999": known}
    vocabulary.save(tmp_path / "own")
    assert Vocabulary.load(tmp_path / "own").other_ids == vocabulary.other_ids
    assert (tmp_path / "own" / "other_ids.tsv").read_text() == f"other_id\tgene_id\nENSG99999999999\t{known}\n"


def test_counts_of_a_retired_id_are_added_to_its_gene(pbmc, vocabulary):
    genes = list(pbmc.var_names)
    tokens = dict(zip(vocabulary.gene_ids, vocabulary.tokens.tolist(), strict=True)) | vocabulary.special_tokens
    medians = dict(zip(vocabulary.gene_ids, vocabulary.medians, strict=True))
    knowing = Vocabulary.from_tokens(tokens, medians, other_ids={"ENSG99999999999": genes[3]})
    summed = pbmc.copy()
    counts = summed.X.toarray()
    counts[:, 3] += counts[:, 7]
    counts[:, 7] = 0
    summed.X = csr_matrix(counts)
    pbmc.var_names = [*genes[:7], "ENSG99999999999", *genes[8:]]
    expected, found = tokenize(summed, knowing), tokenize(pbmc, knowing)
    assert [cell.tolist() for cell in found] == [cell.tolist() for cell in expected]


def test_other_ids_that_lead_nowhere_are_refused():
    with pytest.raises(InputError, match="other_ids leads to gene 'B', which the vocabulary does not have"):
        Vocabulary(("A",), np.array([2]), {"<pad>": 0, "<mask>": 1}, 10, other_ids={"C": "B"})
