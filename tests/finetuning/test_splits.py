"""The parts of a split: disjoint, complete, alike in their classes, and never through a group."""

import logging
import re
from itertools import pairwise

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, kruskal
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, train_test_split

from geneformer_repro import InputError
from geneformer_repro.config import ConfigError, from_mapping
from geneformer_repro.finetuning import splits as module
from geneformer_repro.finetuning.settings.patients import PatientSplitConfig
from geneformer_repro.finetuning.settings.splits import SplitConfig
from geneformer_repro.finetuning.splits import (
    Split,
    digest_of,
    make_splits,
    repeat_of,
    require_no_leak,
    split_table,
    warn_of_lacking_classes,
)

PARTS = Split._fields
NAIVE = "CD4+/CD45RA+/CD25- Naive T"


@pytest.fixture(scope="module")
def obs(_pbmc):
    """700 cells of ten types, 8 to 240 of each; twenty made-up donors of 35 cells, most with most types."""
    obs = _pbmc.obs.copy()
    donor = np.arange(len(obs)) % 20
    obs["donor"] = [f"donor{i:02d}" for i in donor]
    obs["age"] = 20.0 + (donor * 7) % 20
    obs["sex"] = np.where(donor % 3 == 0, "f", "m")
    return obs


@pytest.fixture(scope="module")
def kang(shared):
    """Annotation of 2,000 blood cells of eight patients (and seven doublets), thirteen types."""
    return ad.read_h5ad(shared / "data" / "kang_ifnb" / "kang_ifnb.h5ad", backed="r").obs.copy()


@pytest.fixture(scope="module", autouse=True)
def _few_draws():
    """Take the best of twenty draws where their number is not the point; a hundred take five times as long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "TRIALS", 20)
        yield


def table(classes, groups=None, **columns):
    """Made-up cells."""
    obs = pd.DataFrame({"cell_type": list(classes)} | columns, index=[f"c{i}" for i in range(len(classes))])
    return obs if groups is None else obs.assign(donor=list(groups))


def split(obs, *, seed=0, classes="cell_type", **config):
    return make_splits(obs.index.to_numpy(), obs[classes].to_numpy().astype(str), obs, SplitConfig(**config), seed=seed)


def groups_of(obs, split, column="donor"):
    return [set(obs[column].iloc[rows]) for rows in split]


def same(first, second):
    return all(np.array_equal(a, b) for one, other in zip(first, second, strict=True) for a, b in zip(one, other))


WAYS = [
    pytest.param({}, id="by cell"),
    pytest.param({"group": "donor"}, id="by group"),
    pytest.param({"folds": 4}, id="folds of cells"),
    pytest.param({"folds": 4, "group": "donor"}, id="folds of groups"),
    pytest.param({"folds": "groups", "group": "donor"}, id="leave one group out"),
    pytest.param({"folds": 3, "repeats": 2}, id="folds of cells, twice"),
    pytest.param({"folds": 3, "repeats": 2, "group": "donor"}, id="folds of groups, twice"),
    pytest.param({"group": "donor", "test_groups": ("donor03", "donor11")}, id="named groups"),
    pytest.param({"balance": ("phase",)}, id="balanced, by cell"),
    pytest.param({"balance": ("age", "sex"), "group": "donor"}, id="balanced, by group"),
]


# What holds of every way to split.


@pytest.fixture(scope="module", params=WAYS)
def way(request, obs):
    """How cells are split, and what that made."""
    return request.param, split(obs, **request.param)


def test_every_cell_is_in_exactly_one_part_of_each_split(obs, way):
    for one in way[1]:
        np.testing.assert_array_equal(np.sort(np.concatenate(one)), np.arange(len(obs)))
        assert all(len(rows) for rows in one)


def test_rows_are_in_input_order_within_a_part(way):
    assert all((np.diff(rows) > 0).all() for one in way[1] for rows in one)


@pytest.mark.parametrize("way", [way for way in WAYS if way.id != "named groups"], indirect=True)
def test_the_same_seed_gives_the_same_split_and_another_seed_another(obs, way):
    config, made = way
    assert same(split(obs, **config), made)
    assert not same(split(obs, seed=4, **config), made)


@pytest.mark.parametrize("way", [way for way in WAYS if "group" in way.values[0]], indirect=True)
def test_a_group_is_never_in_two_parts(obs, way):
    for one in way[1]:
        assert sum(map(len, groups_of(obs, one))) == 20


def test_a_saved_split_gives_the_same_split_again(obs, way, tmp_path):
    _, made = way
    split_table(made, obs.index.to_numpy()).to_csv(tmp_path / "split.tsv", sep="\t", index=False)
    assert same(split(obs, seed=9, split_file=str(tmp_path / "split.tsv")), made)


@pytest.mark.parametrize(
    "config", [{"folds": 3}, {"folds": 3, "group": "donor"}, {"folds": "groups", "group": "donor"}]
)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_over_folds_each_cell_is_tested_once_and_no_group_is_on_two_sides(config, data):
    n_groups = data.draw(st.integers(3, 9))
    sizes = data.draw(st.lists(st.integers(4, 20), min_size=n_groups, max_size=n_groups))
    cells = table(np.resize(["a", "b"], sum(sizes)), np.repeat(np.arange(n_groups), sizes))
    made = split(cells, seed=data.draw(st.integers(0, 99)), **config)
    np.testing.assert_array_equal(np.sort(np.concatenate([one.test for one in made])), np.arange(len(cells)))
    for one in made:
        train, validation, test = groups_of(cells, one)
        assert all(len(rows) for rows in one)
        assert "group" not in config or not test & (train | validation)


# Folds that are dealt several times.


REPEATED = [
    pytest.param({"folds": 3}, id="cells"),
    pytest.param({"folds": 3, "group": "donor"}, id="groups"),
    pytest.param({"folds": 3, "group": "donor", "balance": ("age",)}, id="balanced groups"),
]


@pytest.mark.parametrize("config", REPEATED)
def test_each_repeat_tests_every_cell_once_and_deals_otherwise(obs, config):
    made = split(obs, repeats=3, **config)
    assert repeat_of(made).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    for start in (0, 3, 6):
        tested = np.concatenate([one.test for one in made[start : start + 3]])
        np.testing.assert_array_equal(np.sort(tested), np.arange(len(obs)))
    first, second, third = (set(map(tuple, (one.test for one in made[i : i + 3]))) for i in (0, 3, 6))
    assert first != second != third != first


def test_the_first_repeat_of_cells_is_what_folds_alone_are(obs):
    assert same(split(obs, folds=3, seed=5, repeats=2)[:3], split(obs, folds=3, seed=5))


def test_groups_are_dealt_again_and_again_such_that_no_class_is_tested_alone():
    cells = of_donors(case=5, control=5, rare=2)
    for one in split(cells, group="donor", folds=2, repeats=10):
        assert set(cells["cell_type"].iloc[one.test]) <= set(cells["cell_type"].iloc[one.train])


def test_a_file_may_test_a_cell_again_only_in_another_repeat(obs, tmp_path):
    made = split(obs, folds=2, repeats=2)
    written = split_table(made, obs.index.to_numpy())
    assert written.groupby("fold")["repeat"].unique().map(list).tolist() == [[1], [1], [2], [2]]
    written.drop(columns="repeat").to_csv(tmp_path / "split.tsv", sep="\t", index=False)
    with pytest.raises(InputError, match=r"tested in folds \d and \d.*column repeat"):
        split(obs, split_file=str(tmp_path / "split.tsv"))
    written["fold"] -= 2 * (written["repeat"] - 1)
    written.to_csv(tmp_path / "counted_anew.tsv", sep="\t", index=False)
    assert same(split(obs, split_file=str(tmp_path / "counted_anew.tsv")), made)


@pytest.mark.parametrize(
    "config",
    [{}, {"folds": "groups", "group": "donor"}, {"test_groups": ("a",), "group": "donor"}],
    ids=["one", "groups", "named"],
)
def test_what_is_not_dealt_is_not_dealt_again(config):
    with pytest.raises(ConfigError, match=r"split.repeats must be 1 where the cells are not dealt into folds"):
        SplitConfig(repeats=2, **config)


def test_a_split_of_samples_is_read_back_by_their_name(obs, tmp_path):
    given = (obs.index.to_numpy(), obs["cell_type"].to_numpy().astype(str), obs)
    made = make_splits(*given, SplitConfig(), seed=0, row="sample")
    split_table(made, obs.index.to_numpy(), row="sample").to_csv(tmp_path / "split.tsv", sep="\t", index=False)
    by_file = SplitConfig(split_file=str(tmp_path / "split.tsv"))
    assert same(make_splits(*given, by_file, seed=9, row="sample"), made)
    with pytest.raises(InputError, match="expected the columns 'cell' and 'part'"):
        make_splits(*given, by_file, seed=9)


# Splits in which no row chooses the epoch.


@pytest.mark.parametrize(
    "config",
    [
        pytest.param({"folds": 3}, id="folds"),
        pytest.param({"folds": 1, "group": "donor"}, id="groups"),
        pytest.param({"folds": 1, "balance": ("phase",)}, id="balanced"),
        pytest.param({"folds": "groups", "group": "donor"}, id="leave one group out"),
    ],
)
def test_without_validation_all_other_rows_train(obs, config, monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(module, "TRIALS", 5)

    def made(**more):
        how = PatientSplitConfig(**config | more)
        return make_splits(obs.index.to_numpy(), obs["cell_type"].to_numpy().astype(str), obs, how, seed=0)

    for one in made():
        assert not len(one.validation)
        np.testing.assert_array_equal(np.sort(np.concatenate(one)), np.arange(len(obs)))
    assert "validation" not in caplog.text
    split_table(made(), obs.index.to_numpy()).to_csv(tmp_path / "split.tsv", sep="\t", index=False)
    assert same(made(split_file=str(tmp_path / "split.tsv")), made())


# One split, by cell.


def test_a_split_by_cell_is_two_stratified_cuts_of_scikit_learn(obs):
    classes, rows = obs["cell_type"].to_numpy(), np.arange(len(obs))
    rest, test = train_test_split(rows, test_size=140, stratify=classes, random_state=5)
    rest = np.sort(rest)
    train, validation = train_test_split(rest, test_size=70, stratify=classes[rest], random_state=5)
    assert same(split(obs, seed=5), [(np.sort(train), np.sort(validation), np.sort(test))])


@pytest.mark.parametrize(
    ("validation", "test"),
    [
        pytest.param(0.1, 0.2, id="70/10/20"),
        pytest.param(0.3, 0.3, id="40/30/30"),
        pytest.param(0.05, 0.5, id="45/5/50"),
    ],
)
def test_parts_have_the_shares_that_were_asked_for_in_each_class(obs, validation, test):
    (one,) = split(obs, validation=validation, test=test)
    n_of_class = obs["cell_type"].value_counts().sort_index()
    for rows, share in zip(one, (1 - validation - test, validation, test), strict=True):
        found = obs["cell_type"].iloc[rows].value_counts().reindex(n_of_class.index, fill_value=0)
        np.testing.assert_allclose(found, share * n_of_class, atol=1.01)


def test_a_tiny_test_share_still_has_room_for_every_class():
    cells = table(np.repeat(list("abcde"), 6))
    (one,) = split(cells, validation=0.01, test=0.01)
    assert groups_of(cells, one, "cell_type") == [set("abcde")] * 3


def test_a_class_with_fewer_than_three_cells_is_refused_by_name():
    with pytest.raises(InputError, match=r"at least 3 cells.*'pair' \(2\), 'single' \(1\).*min_cells=3"):
        split(table(["common"] * 20 + ["pair"] * 2 + ["single"]))


def test_rows_that_are_no_cells_are_called_what_they_are():
    def refused(config, strata, obs):
        with pytest.raises(InputError) as caught:
            make_splits(np.arange(len(strata)).astype(str), strata, obs, SplitConfig(**config), seed=0, row="patient")
        return str(caught.value)

    strata, some = np.array(["a"] * 20 + ["b"] * 2), pd.DataFrame({"site": [None, *["x", "y", "z"] * 7]})
    for config, obs in (({}, some), ({"group": "site"}, some), ({"group": "place"}, some), ({"folds": 30}, some)):
        said = refused(config, strata if config == {} else np.repeat(["a"], 22), obs)
        assert "patient" in said
        assert "cell" not in said


@pytest.mark.parametrize("config", [{}, {"folds": 3}, {"test": 0.6, "validation": 0.2}], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_three_cells_of_a_class_are_enough(obs, config, seed):
    three = pd.concat([obs[obs["cell_type"] == "CD34+"][:3], obs[obs["cell_type"] == "Dendritic"]])
    for one in split(three, seed=seed, **config):
        assert "CD34+" in set(three["cell_type"].iloc[one.train])


@pytest.mark.parametrize(
    ("n_cells", "config"),
    [
        pytest.param((3, 3), {"test": 0.7}, id="no room for every class in the rest"),
        pytest.param((3, 5), {"test": 0.6, "validation": 0.39}, id="no room for every class in train"),
    ],
)
def test_too_few_cells_are_refused_in_our_words(n_cells, config):
    with pytest.raises(InputError, match=r"cells of 2 classes are too few.*'few' has \d.*smaller.*min_cells"):
        split(table(np.repeat(["few", "many"], n_cells)), **config)


# One split, by group.


def test_group_splits_come_as_near_to_the_shares_as_whole_groups_allow(obs):
    (one,) = split(obs[obs["cell_type"].isin(["Dendritic", "CD14+ Monocyte", "CD19+ B"])], group="donor")
    n_cells = np.array(list(map(len, one)))
    np.testing.assert_allclose(n_cells / n_cells.sum(), [0.7, 0.1, 0.2], atol=0.06)


def test_the_classes_of_a_part_of_real_patients_are_nearer_to_all_cells_than_a_stratified_fold(kang):
    def away(rows):
        shares = kang["cell_type"].iloc[rows].value_counts() / kang["cell_type"].value_counts()
        return (shares - 0.25).abs().mean()

    folds = StratifiedGroupKFold(4, shuffle=True, random_state=0).split(kang, kang["cell_type"], kang["donor"])
    (one,) = split(kang, group="donor", test=0.25)
    assert away(one.test) < 0.06 < 0.08 < away(next(folds)[1])


def test_no_random_choice_of_patients_is_nearer_than_the_one_taken(kang):
    (one,) = split(kang, group="donor", test=0.2)
    counts = pd.crosstab(kang["donor"], kang["cell_type"]).to_numpy()
    taken = np.isin(np.unique(kang["donor"].astype(str)), list(groups_of(kang, one)[2]))
    drawn = [np.flatnonzero(bits) for bits in np.random.default_rng(1).random((20, len(counts))) < 0.2]
    distances = [module._distance(counts, few, 0.2) for few in drawn]
    assert module._distance(counts, np.flatnonzero(taken), 0.2) <= min(distances)


def test_three_groups_become_the_three_parts():
    cells = table(np.tile(["a", "b"], 15), np.repeat(["x", "y", "z"], 10))
    (one,) = split(cells, group="donor")
    assert sorted(map(min, groups_of(cells, one))) == ["x", "y", "z"]


@pytest.mark.parametrize("names", [["d1"], ["d1", "d2"]], ids=["one", "two"])
def test_fewer_than_three_groups_are_refused_by_name(names):
    with pytest.raises(InputError, match=rf"at least 3 groups, found {len(names)}: {', '.join(names)}"):
        split(table(np.tile(["a", "b"], 20), np.resize(names, 40)), group="donor")


def test_a_class_that_only_test_groups_have_is_refused_by_name():
    cells = table(np.repeat(["a", "b", "c"], 10), np.repeat(["x", "y", "z"], 10))
    with pytest.raises(InputError, match=r"No training cell is of class '[abc]', which the test cells.*min_cells"):
        split(cells, group="donor")
    with pytest.raises(InputError, match=r"Fold 1: No training cell is of class '[abc]'"):
        split(cells, group="donor", folds=3)


def test_few_cells_in_many_groups_are_split():
    cells = table(np.repeat(["a", "b"], 4), np.arange(8))
    (one,) = split(cells, group="donor")
    assert groups_of(cells, one, "cell_type")[0] == {"a", "b"}
    assert sum(map(len, groups_of(cells, one))) == 8


# Donors that are cases or controls.


def of_donors(**n_donors):
    """Ten to nineteen cells of each of so many donors of a class."""
    classes = [name for name, n in n_donors.items() for _ in range(n)]
    sizes = 10 + np.arange(len(classes)) * 7 % 10
    return table(np.repeat(classes, sizes), np.repeat([f"D{i:02d}" for i in range(len(classes))], sizes))


def n_classes(cells, rows):
    return cells["cell_type"].iloc[rows].nunique()


@pytest.mark.parametrize(
    ("n_donors", "config"),
    [
        pytest.param({"case": 2, "control": 2}, {}, id="two and two"),
        pytest.param({"case": 3, "control": 3}, {}, id="three and three"),
        pytest.param({"case": 5, "control": 5}, {}, id="five and five"),
        pytest.param({"case": 9, "control": 2}, {}, id="all cases but two"),
        pytest.param({"a": 3, "b": 3, "c": 4}, {}, id="three classes"),
        pytest.param({"case": 4, "control": 4}, {"folds": 4}, id="folds"),
        pytest.param({"case": 4, "control": 4}, {"test_groups": ("D00", "D07")}, id="named"),
        pytest.param({"case": 4, "control": 4}, {"balance": ("age",), "validation": 0.2}, id="balanced"),
        pytest.param({"case": 4, "control": 4}, {"balance": ("age",), "folds": 4}, id="balanced folds"),
    ],
)
def test_validation_and_test_have_all_classes_of_donors_where_there_are_enough(n_donors, config, caplog):
    cells = of_donors(**n_donors).assign(age=lambda obs: obs["donor"].str[1:].astype(int) % 5)
    for seed in range(2):
        for one in split(cells, group="donor", seed=seed, **config):
            assert [n_classes(cells, rows) for rows in one] == [len(n_donors)] * 3
            assert not groups_of(cells, one)[2] & (groups_of(cells, one)[0] | groups_of(cells, one)[1])
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_of_cases_and_controls_enough_validation_is_of_other_donors_than_train():
    cells = of_donors(case=3, control=3)
    (one,) = split(cells, group="donor")
    assert sum(map(len, groups_of(cells, one))) == 6


@pytest.mark.parametrize(
    ("n_donors", "config", "said"),
    [
        pytest.param(
            {"case": 5, "control": 1}, {}, r"All test cells are of one class \('case'\), so no score", id="one"
        ),
        pytest.param(
            {"case": 3, "control": 3},
            {"folds": "groups"},
            "All test cells of folds 1, 2, 3, 4, 5, 6 are of one",
            id="out",
        ),
        pytest.param({"case": 3, "control": 3}, {"test_groups": ("D00",)}, "All test cells are of one", id="named"),
        pytest.param(
            {"case": 3, "control": 3},
            {"test_groups": ("D00", "D04"), "validation_groups": ("D01",)},
            "All validation cells are of one class ..case.., so the epoch",
            id="named validation",
        ),
        pytest.param(
            {"a": 5, "b": 5, "rare": 1}, {}, "No test cell is of class 'rare'; it is in too few groups", id="rare"
        ),
    ],
)
def test_what_a_part_lacks_is_said_before_the_work(n_donors, config, said, caplog):
    split(of_donors(**n_donors), group="donor", **config)
    assert [record for record in caplog.records if re.search(said, record.getMessage())]


def test_of_several_targets_it_is_said_which_one_a_part_lacks(caplog):
    labels = np.array(["a", "b", "a", None, "b", "b"], dtype=object)
    warn_of_lacking_classes([Split(np.arange(2), np.arange(2), np.arange(2, 4))], labels, "cell", target="status")
    (record,) = caplog.records
    assert record.getMessage().startswith("status: All test cells are of one class ('a'), so no score")


def test_ranges_of_a_number_need_not_all_be_in_a_part(caplog):
    cells = of_donors(low=3, middle=3, high=3)
    (one,) = make_splits(
        cells.index.to_numpy(),
        cells["cell_type"].to_numpy(),
        cells,
        SplitConfig(group="donor"),
        seed=0,
        are_classes=False,
    )
    assert n_classes(cells, one.validation) == 1
    assert not caplog.records


@pytest.mark.parametrize("use", [{"group": "dnor"}, {"balance": ("dnor",)}], ids=["group", "balance"])
def test_a_column_that_is_not_there_is_refused_with_the_nearest(obs, use):
    with pytest.raises(InputError, match=r"no obs column 'dnor'\. Did you mean 'donor'"):
        split(obs, **use)


@pytest.mark.parametrize("use", [{"group": "donor"}, {"balance": ("donor",)}], ids=["group", "balance"])
def test_a_column_that_does_not_say_for_every_cell_is_refused(obs, use):
    cells = obs.assign(donor=obs["donor"].where(obs.index != obs.index[5]))
    with pytest.raises(InputError, match=f"'donor' says nothing for 1 of 700 labelled cells .*{obs.index[5]}"):
        split(cells, **use)


# Named groups, and leaving one out.


@pytest.mark.parametrize(
    "values", [[1015, 101, 8, 9], [1015.0, 101.0, 8.0, 9.0], ["1015", "101", "8", "9"]], ids=["int", "float", "text"]
)
@pytest.mark.parametrize("kind", [None, "category", "float32"])
def test_named_groups_are_exactly_the_test_part_however_their_names_are_kept(values, kind):
    cells = table(np.tile(["a", "b"], 20), np.resize(values, 40)).astype({"donor": kind} if kind else {})
    (one,) = split(cells, group="donor", test_groups=("1015",))
    np.testing.assert_array_equal(one.test, np.arange(0, 40, 4))


def test_named_groups_decide_both_parts(kang):
    (one,) = split(kang, group="donor", test_groups=("1015", "101"), validation_groups=("1016",))
    assert groups_of(kang, one)[1:] == [{"1016"}, {"1015", "101"}]
    np.testing.assert_array_equal(np.sort(np.concatenate(one)), np.arange(2000))


def test_validation_is_of_other_groups_than_train_if_there_are_two(kang, caplog):
    (one,) = split(kang, group="donor", test_groups=("1015", "101"))
    train, validation, _ = groups_of(kang, one)
    assert not train & validation
    assert len(one.validation) / 2000 == pytest.approx(0.1, abs=0.05)
    assert "training groups" not in caplog.text


@pytest.mark.parametrize(
    "classes",
    [pytest.param("ababab", id="one group is left"), pytest.param("abaacc", id="train would lose a class")],
)
def test_validation_is_cut_by_cell_where_groups_do_not_allow_it_and_that_is_told(classes, caplog):
    left = ["x", "x", "y", "y", "y", "y"] if "c" in classes else ["x"] * 6
    cells = table(list("ab") * 5 + list(classes) * 10, ["t"] * 10 + left * 10)
    if "c" in classes:
        cells.loc[cells["donor"] == "y", "cell_type"] = "c"
    with caplog.at_level(logging.INFO):
        (one,) = split(cells, group="donor", test_groups=("t",))
    train, validation, _ = groups_of(cells, one)
    assert validation <= train
    assert set(cells["cell_type"].iloc[one.train]) == set(cells["cell_type"][10:])
    assert "The epoch is chosen on cells of training groups; reported cells are of other groups." in caplog.text


def test_the_only_cell_of_a_class_is_trained_on():
    cells = table(["a", "b"] * 10 + ["rare"] + ["a", "b"], ["x"] * 21 + ["t"] * 2)
    (one,) = split(cells, group="donor", test_groups=("t",))
    assert 20 in one.train


def test_a_class_that_only_a_named_group_has_is_kept_with_a_warning(kang, caplog):
    only = kang.assign(cell_type=kang["cell_type"].astype(str).where(kang["donor"] != "1039", "B of 1039"))
    (one,) = split(only, group="donor", test_groups=("1039",))
    assert set(only["cell_type"].iloc[one.test]) == {"B of 1039"}
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warned[1] == "No training cell is of class 'B of 1039'; test cells of it count as errors."
    assert warned[2].startswith("All test cells are of one class ('B of 1039')")
    assert len(warned) == 3


def test_leaving_one_group_out_reports_each_group_once_and_names_one_that_is_no_donor(kang, caplog):
    made = split(kang, group="donor", folds="groups")
    assert [groups_of(kang, one)[2] for one in made] == [{name} for name in sorted(set(kang["donor"]))]
    (said,) = caplog.messages
    assert said.startswith("donor: 7 of 2,000 cells are called 'doublet' (7), which says that they have none")


def test_leaving_one_group_out_warns_for_the_fold_that_needs_it(caplog):
    cells = table(list("abab") * 10 + ["c"] * 20, np.repeat(["x", "y", "z"], 20))
    split(cells, group="donor", folds="groups")
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "Fold 3: No training cell is of class 'c'; test cells of it count as errors." in warned
    assert not [message for message in warned if "test" in message and "fold 3" not in message.lower()]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        pytest.param({"test_groups": ("105",)}, r"has '105' in obs column 'donor'. Did you mean '1015'", id="unknown"),
        pytest.param({"test_groups": ("1", "1015")}, r"has '1' in obs column 'donor'", id="part of a name"),
        pytest.param(
            {"test_groups": ("1015",), "validation_groups": ("x",)},
            r"validation_groups: .*'x'",
            id="unknown validation",
        ),
        pytest.param({"test_groups": ("1015", "22")}, "name all groups; leave at least one", id="nothing to train on"),
        pytest.param(
            {"test_groups": ("1015",), "validation_groups": ("22",)}, "name all groups", id="nothing beside validation"
        ),
        pytest.param({"folds": "groups"}, "Leaving one group out needs at least 3 groups, found 2: 1015, 22", id="two"),
    ],
)
def test_named_groups_that_cannot_be_are_refused(config, message):
    with pytest.raises(InputError, match=message):
        split(table(np.tile(["a", "b"], 20), np.resize(["1015", "22"], 40)), group="donor", **config)


# Folds.


def test_folds_of_cells_are_those_of_scikit_learn(obs):
    expected = StratifiedKFold(5, shuffle=True, random_state=2).split(obs, obs["cell_type"])
    for one, (_, test) in zip(split(obs, folds=5, seed=2), expected, strict=True):
        np.testing.assert_array_equal(one.test, test)


def test_cells_that_choose_the_epoch_of_a_fold_are_not_reported_in_it(kang):
    for one in split(kang, group="donor", folds=4):
        train, validation, test = groups_of(kang, one)
        assert not test & (train | validation)
        assert not train & validation
        assert len(one.validation) / len(kang) == pytest.approx(0.1, abs=0.05)


def test_a_class_rarer_than_the_folds_does_not_warn(obs):
    assert (obs["cell_type"] == NAIVE).sum() < 10  # pytest turns a third-party warning into an error
    assert len(split(obs, folds=10)) == len(split(obs, folds=10, group="donor")) == 10


@pytest.mark.parametrize(
    ("config", "message"),
    [
        pytest.param(
            {"folds": 21}, "folds=21 needs a class of so many cells, found at most 20; give fewer", id="cells"
        ),
        pytest.param(
            {"folds": 5, "group": "donor"}, "in 5 folds needs at least 5 groups, found 4: w, x, y, z", id="groups"
        ),
    ],
)
def test_more_folds_than_there_is_to_fold_are_refused(config, message):
    with pytest.raises(InputError, match=message):
        split(table(np.repeat(["a", "b"], 20), np.resize(list("wxyz"), 40)), **config)


# Balance.


def by_scipy(obs, one, column):
    """p-value of a column's values in the parts, computed another way."""
    parts = [obs[column].iloc[rows] for rows in one]
    if pd.api.types.is_numeric_dtype(obs[column]):
        return kruskal(*parts).pvalue
    return chi2_contingency(pd.DataFrame([part.value_counts() for part in parts]).fillna(0)).pvalue


@pytest.mark.parametrize("folds", [1, 3])
def test_of_all_trials_the_one_with_the_largest_smallest_p_value_is_taken(obs, folds, monkeypatch, caplog):
    monkeypatch.setattr(module, "TRIALS", 10)
    columns = ("phase", "n_counts")
    with caplog.at_level(logging.INFO):
        taken = split(obs, balance=columns, folds=folds)
    smallest = [
        min(by_scipy(obs, one, column) for one in split(obs, seed=int(seed), folds=folds) for column in columns)
        for seed in np.random.default_rng(0).integers(2**32, size=10)
    ]
    found = {column: min(by_scipy(obs, one, column) for one in taken) for column in columns}
    assert min(found.values()) == pytest.approx(max(smallest))
    assert np.argmax(smallest) != len(smallest) - 1  # else taking the last would pass
    assert f"phase p = {found['phase']:.3g}, n_counts p = {found['n_counts']:.3g}" in caplog.text


def test_more_trials_never_balance_worse(obs, monkeypatch):
    p_values = []
    for n_trials in (1, 4, 16):
        monkeypatch.setattr(module, "TRIALS", n_trials)
        p_values.append(by_scipy(obs, *split(obs, balance=("n_counts",)), "n_counts"))
    assert all(fewer <= more for fewer, more in pairwise(p_values))
    assert p_values[0] < p_values[-1]


@pytest.mark.parametrize("column", ["age", "sex"], ids=["number", "text"])
def test_what_a_donor_has_is_compared_over_donors(obs, column, caplog):
    with caplog.at_level(logging.INFO):
        (one,) = split(obs, group="donor", balance=(column,))
    donors = obs.drop_duplicates("donor").set_index("donor")
    rows = [[donors.index.get_loc(name) for name in names] for names in groups_of(obs, one)]
    expected = by_scipy(donors, rows, column)
    assert f"{column} p = {expected:.3g}." in caplog.text
    assert expected > 0.5


def test_what_cells_of_a_donor_differ_in_is_compared_by_its_share_in_each_donor(kang, caplog):
    with caplog.at_level(logging.INFO):
        (one,) = split(kang, group="donor", balance=("condition",))
    share = (kang["condition"] == "control").groupby(kang["donor"].astype(str)).mean()
    expected = kruskal(*(share[sorted(names)] for names in groups_of(kang, one))).pvalue
    assert f"condition p = {expected:.3g}." in caplog.text


def test_yes_and_no_are_compared_as_text(obs):
    cells = obs.assign(told=obs["sex"] == "f", word=np.where(obs["sex"] == "f", "yes", "no"))
    assert same(split(cells, balance=("told",)), split(cells, balance=("word",)))


def test_a_column_with_one_value_is_balanced_by_every_split(obs, caplog):
    with caplog.at_level(logging.INFO):
        split(obs.assign(tissue="blood"), balance=("tissue",))
    assert "tissue p = 1." in caplog.text


def test_balanced_folds_of_groups_still_have_every_class_in_train(kang):
    for one in split(kang, group="donor", folds=3, balance=("condition",)):
        types = groups_of(kang, one, "cell_type")
        assert types[2] <= types[0]


# A digest.


def test_a_digest_tells_splits_apart_by_cell_part_and_fold_alone():
    names = np.array([f"c{i}" for i in range(8)])
    parts = Split(np.array([0, 1, 2]), np.array([3]), np.array([4, 5]))
    others = [
        [parts._replace(train=np.array([0, 1, 6]))],
        [parts._replace(train=np.array([0, 1]))],
        [parts._replace(validation=parts.test, test=parts.validation)],
        [parts, parts],
    ]
    assert len({digest_of(one, names) for one in [[parts], *others]}) == 5
    assert digest_of([parts], names) != digest_of([parts], names[::-1])
    assert digest_of([Split(*(rows.copy() for rows in parts))], names.astype(object)) == digest_of([parts], names)


# A file.


@pytest.fixture
def few():
    return table(list("ab") * 10, list("wxyz") * 5)


def save(path, few, **parts):
    names = few.index.to_numpy()
    rows = [(names[i], part) for part, numbers in parts.items() for i in numbers]
    pd.DataFrame(rows, columns=["cell", "part"]).to_csv(path, sep="," if path.suffix == ".csv" else "\t", index=False)
    return str(path)


@pytest.mark.parametrize("name", ["split.tsv", "split.csv", "split.txt", "split.tsv.gz"])
def test_a_file_names_the_parts_and_unlisted_cells_are_left_out(few, tmp_path, name, caplog):
    path = save(tmp_path / name, few, test=[5, 1], train=[0, 2, 3, 9], validation=[4])
    with caplog.at_level(logging.INFO):
        (one,) = split(few, split_file=path, folds=2)
    assert same([one], [Split(np.array([0, 2, 3, 9]), np.array([4]), np.array([1, 5]))])
    assert f"{path}: 13 of 20 labelled cells are not listed; left out." in caplog.text


def test_a_file_of_excel_is_read(few, tmp_path):
    path = tmp_path / "split.csv"
    lines = "sep=;\r\ncell;part\r\nc0;train\r\nc2;train\r\nc4;validation\r\nc1;test\r\n"
    path.write_bytes(lines.encode("utf-16"))
    (one,) = split(few, split_file=str(path))
    assert same([one], [Split(np.array([0, 2]), np.array([4]), np.array([1]))])


@pytest.mark.parametrize("group", [None, "donor"], ids=["by cell", "by group"])
def test_a_file_without_validation_has_it_cut_from_train(few, tmp_path, group):
    few["cell_type"] = np.array(["a", "b"])[np.arange(20) // 4 % 2]  # both in every donor, so that one may validate
    path = save(tmp_path / "s.tsv", few, train=[i for i in range(20) if i % 4], test=range(0, 20, 4))
    (one,) = split(few, split_file=path, group=group, validation=0.2)
    np.testing.assert_array_equal(one.test, np.arange(0, 20, 4))
    np.testing.assert_array_equal(np.union1d(one.train, one.validation), [i for i in range(20) if i % 4])
    assert len(one.validation) == (5 if group else 4)
    train, validation, _ = groups_of(few, one)
    assert group is None or not train & validation


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        pytest.param({"train": [0, 1], "test": [2, 1]}, "Cell 'c1' is in train and test; give each", id="two parts"),
        pytest.param({"train": [0, 0], "test": [2]}, "Cell 'c0' is in train and train", id="listed twice"),
        pytest.param(
            {"train": [0, 2], "test": [1, 4]}, "Group 'w' is in train and in test; give the whole", id="group"
        ),
        pytest.param(
            {"train": [0], "validation": [2], "test": [1, 6]}, "Group 'y' is in validation and in test", id="validation"
        ),
        pytest.param({"train": [0, 1]}, "the file has no cell in part 'test'", id="no test"),
        pytest.param({"test": [0, 1]}, "the file has no cell in part 'train'", id="no train"),
        pytest.param({"train": [0], "tets": [1]}, "no part 'tets'. Did you mean 'test'", id="unknown part"),
        pytest.param({}, "and a line a cell; found 'cell', 'part' and 0 lines", id="no cells"),
    ],
)
def test_a_file_that_leaks_or_lacks_something_is_refused(few, tmp_path, parts, message):
    parts = {"validation": [3]} | parts if parts and "validation" not in parts else parts
    with pytest.raises(InputError, match=message):
        split(few, split_file=save(tmp_path / "s.tsv", few, **parts), group="donor")


def test_train_and_validation_of_a_file_may_share_a_group(few, tmp_path, caplog):
    path = save(tmp_path / "s.tsv", few, train=[0, 1], validation=[4], test=[2])
    with caplog.at_level(logging.INFO):
        split(few, split_file=path, group="donor")
    assert "The epoch is chosen on cells of training groups" in caplog.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("cell part\nc0 train\n", r"columns 'cell' and 'part'.*found 'cell part'", id="blanks"),
        pytest.param("cell\tset\nc0\ttrain\n", r"found 'cell', 'set' and 1 lines", id="other column"),
        pytest.param("", "not a table", id="empty"),
        pytest.param(
            "cell\tpart\nc0\ttrain\nC1\ttest\nC2\ttest\n", r"2 of its cells .* 20 labelled .*'C1'", id="names"
        ),
        pytest.param(None, r"cannot be read \(No such file", id="absent"),
        pytest.param(
            "cell\tpart\tfold\nc0\ttrain\t1\nc1\ttest\t1\nc0\ttrain\t2\n",
            "fold 2 has no cell in part 'test'",
            id="fold",
        ),
    ],
)
def test_a_file_that_is_no_split_is_refused(few, tmp_path, text, message):
    path = tmp_path / "s.tsv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=f"^{re.escape(str(path))}: .*{message}"):
        split(few, split_file=str(path))


def test_a_file_cannot_tell_cells_of_one_name_apart(few, tmp_path):
    path = save(tmp_path / "s.tsv", few, train=[0], validation=[1], test=[2])
    with pytest.raises(InputError, match="two are called 'c7'; make names unique"):
        split(few.rename(index={"c8": "c7"}), split_file=path)


# Leaks, the table, the settings.


def test_a_cell_that_two_folds_test_is_refused():
    names, rows = np.array(["a", "b", "c", "d"]), np.arange(4)
    folds = [Split(rows[:1], rows[1:2], rows[2:]), Split(rows[2:3], rows[:1], rows[3:])]
    with pytest.raises(InputError, match="Cell 'd' is tested in folds 1 and 2"):
        require_no_leak(folds, names, None)
    require_no_leak(folds[:1], names, None)
    with pytest.raises(InputError, match="Fold 1: Group 'g' is in train and in test"):
        require_no_leak(folds, names, np.array(["g", "h", "g", "i"]))


def test_the_split_table_names_each_cell_once_a_fold_with_its_part():
    names = np.array(["c0", "c1", "c2", "c3"])
    one, other = Split(np.array([0, 3]), np.array([1]), np.array([2])), Split(*np.array([[1], [2], [3]]))
    expected = pd.DataFrame({"cell": ["c0", "c3", "c1", "c2"], "part": ["train", "train", "validation", "test"]})
    pd.testing.assert_frame_equal(split_table([one], names), expected)
    more = pd.DataFrame({"cell": ["c1", "c2", "c3"], "part": PARTS})
    both = pd.concat([expected.assign(fold=1), more.assign(fold=2)], ignore_index=True)
    pd.testing.assert_frame_equal(split_table([one, other], names), both)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"folds": 0}, 'split.folds must be at least 1, or "groups", found 0'),
        ({"folds": "donor"}, "split.folds must be int, found 'donor'"),
        ({"folds": 2, "validation": 0.6}, "split.folds must be more than"),
        ({"folds": 2, "validation": 0.6, "test": 0.1}, r"folds must be more than 1 / \(1 - validation\), found 2"),
        ({"validation": 0.0}, "validation must be between 0 and 1, found 0.0"),
        ({"test": 0.9}, "test must be between 0 and 1 - validation, found 0.9"),
        ({"folds": "groups"}, 'group must be a column with folds="groups", found None'),
        ({"test_groups": ("x",)}, "group must be a column with test_groups, found None"),
        ({"group": "donor", "test_groups": "1015"}, "test_groups must be a tuple of names, found '1015'"),
        ({"group": "donor", "test_groups": ("x",), "folds": 3}, "folds must be 1 with test_groups, found 3"),
        ({"group": "donor", "validation_groups": ("x",)}, "validation_groups must be empty without test_groups"),
        (
            {"group": "donor", "test_groups": ("x", "y"), "validation_groups": ("y",)},
            "validation_groups must be other than test_groups",
        ),
        ({"group": "donor", "test_groups": ("x",), "balance": ("age",)}, "balance must be empty where"),
        ({"group": "donor", "folds": "groups", "balance": ("age",)}, "balance must be empty where"),
    ],
    ids=str,
)
def test_settings_that_contradict_each_other_are_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        SplitConfig(**config)


def test_settings_can_come_from_a_file():
    values = {"group": "donor", "folds": "groups"}
    assert from_mapping(SplitConfig, values) == SplitConfig(**values)
    named = from_mapping(SplitConfig, {"group": "donor", "test_groups": ["1015"]})
    assert named.test_groups == ("1015",)
    for number in (1015, 1015.0, np.int64(1015)):
        assert SplitConfig(group="donor", test_groups=(number,)) == named
    assert from_mapping(SplitConfig, {"group": "donor", "test_groups": [1015]}) == named
