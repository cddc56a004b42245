"""The three parts of a split: disjoint, complete, alike in their classes, and never through a group."""

import numpy as np
import pandas as pd
import pytest

from geneformer_repro import InputError
from geneformer_repro.finetuning.splits import Split, split_cells, split_table

SHARES = {"validation": 0.1, "test": 0.2}
PARTS = Split._fields


@pytest.fixture(scope="module")
def labels(_pbmc):
    """Ten blood cell types, 8 to 240 cells each."""
    return _pbmc.obs["cell_type"].to_numpy().astype(str)


@pytest.fixture(scope="module")
def donors(labels):
    """Twenty made-up donors of 35 cells, each with most types."""
    return np.array([f"donor{i % 20:02d}" for i in range(len(labels))])


def shares(split, labels):
    """Share of each class's cells that each part has, classes × parts."""
    counts = pd.DataFrame({part: pd.Series(labels[rows]).value_counts() for part, rows in split._asdict().items()})
    return counts.fillna(0).div(counts.sum(axis=1), axis=0)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("grouped", [False, True], ids=["by cell", "by group"])
def test_every_cell_is_in_exactly_one_part(labels, donors, grouped, seed):
    kept = labels != "CD4+/CD45RA+/CD25- Naive T"
    split = split_cells(labels[kept], donors[kept] if grouped else None, **SHARES, seed=seed)
    np.testing.assert_array_equal(np.sort(np.concatenate(split)), np.arange(kept.sum()))
    assert all(len(rows) for rows in split)


@pytest.mark.parametrize(
    ("validation", "test"),
    [
        pytest.param(0.1, 0.2, id="70/10/20"),
        pytest.param(0.3, 0.3, id="40/30/30"),
        pytest.param(0.05, 0.5, id="45/5/50"),
    ],
)
def test_parts_have_the_shares_that_were_asked_for(labels, validation, test):
    split = split_cells(labels, None, validation=validation, test=test, seed=0)
    np.testing.assert_allclose(
        [len(split.train), len(split.validation), len(split.test)],
        len(labels) * np.array([1 - validation - test, validation, test]),
        atol=1,
    )


def test_each_class_is_split_like_the_whole(labels):
    expected = np.outer(pd.Series(labels).value_counts().sort_index(), [0.7, 0.1, 0.2])
    split = split_cells(labels, None, **SHARES, seed=0)
    found = shares(split, labels).mul(pd.Series(labels).value_counts(), axis=0).sort_index()
    np.testing.assert_allclose(found[list(PARTS)], expected, atol=1.0)


def test_rows_are_in_input_order_within_a_part(labels):
    assert all((np.diff(rows) > 0).all() for rows in split_cells(labels, None, **SHARES, seed=0))


def test_a_tiny_test_share_still_has_room_for_every_class():
    labels = np.repeat(list("abcde"), 6)
    split = split_cells(labels, None, validation=0.01, test=0.01, seed=0)
    assert all(set(labels[rows]) == set("abcde") for rows in split)


@pytest.mark.parametrize("seed", range(4))
def test_a_group_is_never_in_two_parts(labels, donors, seed):
    kept = labels != "CD4+/CD45RA+/CD25- Naive T"
    split = split_cells(labels[kept], donors[kept], **SHARES, seed=seed)
    groups = [set(donors[kept][rows]) for rows in split]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 20


def test_group_splits_come_as_near_to_the_shares_as_whole_groups_allow(labels, donors):
    kept = np.isin(labels, ["Dendritic", "CD14+ Monocyte", "CD19+ B"])
    split = split_cells(labels[kept], donors[kept], **SHARES, seed=0)
    np.testing.assert_allclose([len(rows) / kept.sum() for rows in split], [0.7, 0.1, 0.2], atol=0.06)


def test_three_groups_become_the_three_parts():
    labels, groups = np.tile(["a", "b"], 15), np.repeat(["x", "y", "z"], 10)
    split = split_cells(labels, groups, **SHARES, seed=0)
    assert sorted(groups[rows][0] for rows in split) == ["x", "y", "z"]


def test_a_rare_class_does_not_make_a_group_split_warn(labels, donors):
    # "Naive T" has eight cells; pytest turns a third-party warning into an error.
    split = split_cells(labels, donors, **SHARES, seed=0)
    assert sum(map(len, split)) == len(labels)


@pytest.mark.parametrize("grouped", [False, True], ids=["by cell", "by group"])
def test_the_same_seed_gives_the_same_split_and_another_seed_another(labels, donors, grouped):
    kept = labels != "CD4+/CD45RA+/CD25- Naive T"
    first, again, other = (
        split_cells(labels[kept], donors[kept] if grouped else None, **SHARES, seed=seed) for seed in (3, 3, 4)
    )
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_class_with_fewer_than_three_cells_is_refused_by_name():
    labels = np.array(["common"] * 20 + ["pair"] * 2 + ["single"])
    with pytest.raises(InputError, match=r"at least 3 cells.*'pair' \(2\), 'single' \(1\).*min_cells=3"):
        split_cells(labels, None, **SHARES, seed=0)


@pytest.mark.parametrize("seed", range(3))
def test_three_cells_of_a_class_are_enough(labels, seed):
    three = np.concatenate([np.flatnonzero(labels == "CD34+")[:3], np.flatnonzero(labels == "Dendritic")])
    split = split_cells(labels[three], None, **SHARES, seed=seed)
    assert "CD34+" in labels[three][split.train]


@pytest.mark.parametrize(
    ("n_cells", "shares"),
    [
        pytest.param((3, 30), {"validation": 0.2, "test": 0.6}, id="test takes two of three cells"),
        pytest.param((3, 3), {"validation": 0.1, "test": 0.5}, id="no room for every class in the training part"),
    ],
)
def test_a_class_that_cannot_be_in_every_part_is_refused_in_our_words(n_cells, shares):
    labels = np.repeat(["few", "many"], n_cells)
    with pytest.raises(InputError, match=r"class.*few"):
        split_cells(labels, None, **shares, seed=0)


@pytest.mark.parametrize("names", [["d1"], ["d1", "d2"]], ids=["one", "two"])
def test_fewer_than_three_groups_are_refused_by_name(names):
    labels, groups = np.tile(["a", "b"], 20), np.resize(names, 40)
    with pytest.raises(InputError, match=rf"at least 3 groups, found {len(names)}: {', '.join(names)}"):
        split_cells(labels, groups, **SHARES, seed=0)


def test_a_class_that_only_test_groups_have_is_refused_by_name():
    labels, groups = np.repeat(["a", "b", "c"], 10), np.repeat(["x", "y", "z"], 10)
    with pytest.raises(InputError, match=r"No training cell is of class '[abc]', which the test cells have.*min_cells"):
        split_cells(labels, groups, **SHARES, seed=0)


def test_few_cells_in_many_groups_are_split_or_refused_in_our_words():
    labels, groups = np.repeat(["a", "b"], 4), np.arange(8).astype(str)
    try:
        split = split_cells(labels, groups, **SHARES, seed=0)
    except InputError as error:
        assert "class" in str(error)  # noqa: PT017 - either outcome is right, a message of scikit-learn's is not
    else:
        assert sum(map(len, split)) == 8


def test_the_split_table_names_each_cell_once_with_its_part():
    names = np.array(["c0", "c1", "c2", "c3"])
    table = split_table(Split(np.array([0, 3]), np.array([1]), np.array([2])), names)
    expected = pd.DataFrame({"cell": ["c0", "c3", "c1", "c2"], "part": ["train", "train", "validation", "test"]})
    pd.testing.assert_frame_equal(table, expected)
