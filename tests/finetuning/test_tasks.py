"""From obs columns to labels: what counts as a class, a number, or nothing."""

import dataclasses
import itertools
import logging

import numpy as np
import pandas as pd
import pytest

import geneformer_repro as gf
from geneformer_repro.finetuning.problems.cells import CellProblem, labelled_cells
from geneformer_repro.targets import Classes, Number

TYPES = ("CD14+ Monocyte", "CD19+ B", "CD56+ NK")


def labelled(cells, *targets, seed=0, **options):
    return labelled_cells(cells, targets, rng=np.random.default_rng(seed), **options)


def names(task, column=0):
    """Labels as text."""
    return np.array([*task.targets[column].classes, "none"])[np.nan_to_num(task.labels[:, column], nan=-1).astype(int)]


# Classes


@pytest.mark.parametrize(
    ("target", "classes"),
    [
        pytest.param("number", ("0", "1", "2"), id="whole numbers"),
        pytest.param("gap", ("0", "1", "2"), id="whole numbers with a gap"),
        pytest.param("large", ("1000001", "1000002", "1000003"), id="large whole numbers with a gap"),
        pytest.param("flag", ("False", "True"), id="booleans"),
        pytest.param("partly", TYPES, id="text with a gap"),
    ],
)
def test_labels_of_any_kind_become_class_names(few, target, classes):
    task = labelled(few, target)
    assert task.targets == (Classes(target, classes),)
    said = few.obs[target].dropna().map(lambda value: str(int(value)) if isinstance(value, float) else str(value))
    np.testing.assert_array_equal(names(task), said)


def test_cells_without_a_label_are_left_out_and_counted_in_the_log(few, caplog):
    with caplog.at_level(logging.INFO, logger="geneformer_repro"):
        task = labelled(few, "gap")
    np.testing.assert_array_equal(task.cells.cell_names, few.cell_names[np.arange(120) % 4 > 0])
    np.testing.assert_array_equal(task.obs.index, task.cells.cell_names)
    assert "gap: 30 cells have no label; left out." in caplog.text


def test_of_several_targets_a_cell_needs_one_label(few):
    task = labelled(few, "partly", "flag")
    assert len(task.labels) == len(task.cells) == len(task.obs) == 120
    np.testing.assert_array_equal(np.isnan(task.labels), np.stack([np.arange(120) % 4 == 0, np.zeros(120, bool)], 1))


def test_min_cells_leaves_rare_classes_out_and_says_which(few, caplog):
    with caplog.at_level(logging.INFO, logger="geneformer_repro"):
        task = labelled(few, "rare", min_cells=3)
    assert task.targets[0].classes == TYPES
    np.testing.assert_array_equal(task.cells.cell_names, np.delete(few.cell_names, [0, 60]))
    assert "rare: 2 cells are of classes with fewer than 3 cells (odd); left out." in caplog.text


def test_min_cells_is_the_smallest_number_that_stays_and_two_classes_are_enough(few):
    assert labelled(few, "cell_type", min_cells=30).targets[0].classes == TYPES
    assert labelled(few, "cell_type", min_cells=31).targets[0].classes == TYPES[:2]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        pytest.param("same", r"'same' has 1 class \('blood'\) among 120 labelled cells; at least two", id="one class"),
        pytest.param("unlabelled", r"'unlabelled' has 0 classes \(all missing\) among 0", id="no label"),
    ],
)
def test_fewer_than_two_classes_are_refused(few, target, message):
    with pytest.raises(gf.InputError, match=message):
        labelled(few, target)


def test_a_missing_column_is_refused_with_the_nearest_name(few):
    with pytest.raises(gf.InputError, match=r"no obs column 'cell_typ'\. Did you mean 'cell_type'\?"):
        labelled(few, "flag", "cell_typ")


def test_a_target_that_is_named_twice_is_refused(few):
    with pytest.raises(gf.InputError, match="must be different obs columns, found 'flag', 'flag'"):
        labelled(few, "flag", "flag")


def test_at_most_so_many_cells_of_a_class_are_taken_and_the_rest_in_order(few, caplog):
    with caplog.at_level(logging.INFO, logger="geneformer_repro"):
        task = labelled(few, "cell_type", max_cells_per_class=40)
    assert pd.Series(names(task)).value_counts().to_dict() == dict(zip(TYPES, (40, 40, 30)))
    assert (np.diff(pd.Index(few.cell_names).get_indexer(task.cells.cell_names)) > 0).all()
    assert "110 of 120 cells taken: at most 40 of a class." in caplog.text


def test_which_cells_of_a_class_are_taken_is_a_matter_of_the_seed(few):
    first, same, other = (
        labelled(few, "cell_type", max_cells_per_class=9, seed=seed).cells.cell_names for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, same)
    assert set(first) != set(other)


def test_cells_without_a_known_gene_are_left_out_and_counted(few, tmp_path, caplog):
    """`tokenize` makes no such cells, but a file from elsewhere may hold them."""
    table = few.table.to_pandas()
    for row in (5, 7):
        table.at[row, "input_ids"] = table.at[row, "input_ids"][[0, -1]]
    table.assign(length=table["input_ids"].map(len)).to_parquet(tmp_path / "cells.parquet")
    cells = gf.TokenizedDataset.open(tmp_path / "cells.parquet", few.vocabulary)
    with caplog.at_level(logging.INFO, logger="geneformer_repro"):
        task = labelled(cells, "cell_type")
    np.testing.assert_array_equal(task.cells.cell_names, np.delete(few.cell_names, [5, 7]))
    assert "2 labelled cells have no gene; left out." in caplog.text


# Numbers


@pytest.mark.parametrize("target", ["size", "written", "number", "flag"])
def test_numbers_are_those_of_the_column_also_as_text(few, target):
    task = labelled(few, target, regression=(target,))
    assert task.targets == (Number(target),)
    np.testing.assert_array_equal(task.labels[:, 0], few.obs[target].astype(float))


def test_text_that_stands_for_a_missing_number_is_none(few):
    written = few.table.remove_columns(["written"]).add_column("written", ["NA", "nan", "", " 2.5 ", "-1"] * 24)
    task = labelled(dataclasses.replace(few, table=written), "written", regression=("written",))
    assert task.labels[:, 0].tolist() == [2.5, -1.0] * 24


def test_cells_without_a_number_are_left_out(few):
    assert len(labelled(few, "large", regression=("large",)).cells) == 90


@pytest.mark.parametrize(
    ("target", "message"),
    [
        pytest.param("cell_type", r"'cell_type' should hold numbers.*CD14\+ Monocyte.*learn classes", id="text"),
        pytest.param("infinite", r"'infinite' holds infinite numbers \(first: '", id="infinite"),
        pytest.param("unlabelled", "'unlabelled' has fewer than two different numbers", id="no number"),
    ],
)
def test_what_cannot_be_learned_as_a_number_is_refused_with_the_value(few, target, message):
    with pytest.raises(gf.InputError, match=message) as error:
        labelled(few, target, regression=(target,))
    assert target != "infinite" or few.cell_names[3] in str(error.value)


def test_numbers_are_scaled_by_the_training_cells_alone(few):
    task = labelled(few, "size", "cell_type", regression=("size",))
    rows = np.arange(0, 120, 3)
    scaled, classes = task.head_targets(rows)
    assert (scaled.mean, scaled.sd) == pytest.approx((task.labels[rows, 0].mean(), task.labels[rows, 0].std()))
    assert classes == task.targets[1]


def test_training_cells_of_one_number_have_no_scale(few):
    task = labelled(few, "number", regression=("number",))
    assert task.head_targets(np.arange(5))[0].sd == 1


def test_training_cells_without_any_number_are_refused(few):
    task = labelled(few, "flag", "gap", regression=("gap",))
    with pytest.raises(gf.InputError, match="No training cell has a number in 'gap'"):
        task.head_targets(np.array([0, 4, 8]))


# What a split should hold alike


def strata(cells, *targets, **options):
    return labelled(cells, *targets, **options).strata


def test_the_strata_of_classes_are_the_classes(few):
    np.testing.assert_array_equal(strata(few, "cell_type"), few.obs["cell_type"].astype(str))


def test_the_strata_of_a_number_are_five_ranges_of_equally_many_cells(few):
    found, numbers = strata(few, "size", regression=("size",)), few.obs["size"].astype(float).to_numpy()
    ranges = [numbers[found == f"range {i} of 5"] for i in range(1, 6)]
    assert [len(one) for one in ranges] == [24] * 5
    assert all(lower.max() <= upper.min() for lower, upper in itertools.pairwise(ranges))


def test_the_strata_of_several_targets_are_all_together_where_each_has_cells_enough(few):
    types = few.obs["cell_type"].astype(str)
    np.testing.assert_array_equal(strata(few, "cell_type", "flag"), types + " / " + few.obs["flag"].astype(str))


def test_the_strata_of_several_targets_are_those_of_the_first_where_a_combination_is_rare(few):
    np.testing.assert_array_equal(strata(few, "cell_type", "rare"), few.obs["cell_type"].astype(str))


@pytest.mark.parametrize(
    ("n_gaps", "kept"), [pytest.param(2, False, id="too few to split"), pytest.param(3, True, id="enough")]
)
def test_cells_without_a_class_are_a_stratum_where_they_are_enough(few, n_gaps, kept):
    codes = np.zeros(120)
    codes[60:], codes[:n_gaps] = 1, np.nan
    other = np.where(np.arange(120) == 100, 1.0, 0)  # too rare to be combined with
    targets = (Classes("a", ("x", "y")), Classes("b", ("u", "v")))
    found = CellProblem(few, targets, np.stack([codes, other], axis=1), few.obs).strata
    assert set(found[:n_gaps]) == {"(none)" if kept else "y"}
    assert set(found[n_gaps:]) == {"x", "y"}


def test_some_of_the_cells_keep_their_labels_and_columns(few):
    task = labelled(few, "cell_type", "size", regression=("size",))
    rows = np.array([7, 3, 100])
    some = task.select(rows)
    np.testing.assert_array_equal(some.cells.cell_names, task.cells.cell_names[rows])
    np.testing.assert_array_equal(some.labels, task.labels[rows])
    np.testing.assert_array_equal(some.obs["donor"], task.obs["donor"].iloc[rows])
