"""Learning curves: which cells are drawn, how long a network trains on them, and what is tested."""

import itertools

import numpy as np
import pandas as pd
import pytest

import geneformer_repro as gf
from geneformer_repro.finetuning.curve import learning_curve, nested_draw, over_draws, require_enough
from geneformer_repro.finetuning.kinds.class_scores import scores
from geneformer_repro.finetuning.kinds.kind import FINE_TUNED
from geneformer_repro.finetuning.kinds.numbers import number_scores
from geneformer_repro.finetuning.methods import Outcome
from geneformer_repro.finetuning.problems.cells import labelled_cells
from geneformer_repro.finetuning.settings.networks import NetworkConfig
from geneformer_repro.finetuning.splits import Split

SPLIT = Split(np.arange(0, 120, 2), np.arange(1, 120, 4), np.arange(3, 120, 4))
POOL = np.sort(np.concatenate(SPLIT[:2]))
STRATA = np.repeat(["a", "b", "c"], [60, 25, 5])


def draw(n, seed=0, pool=None):
    return nested_draw(STRATA, np.arange(90) if pool is None else pool, n, np.random.default_rng(seed))


# Draws


def test_a_draw_is_part_of_every_larger_one():
    draws = [set(draw(n)) for n in range(1, 91)]
    assert [len(one) for one in draws] == list(range(1, 91))
    assert all(smaller < larger for smaller, larger in itertools.pairwise(draws))


@pytest.mark.parametrize("seed", range(5))
def test_the_first_cells_are_one_of_each_class(seed):
    assert set(STRATA[draw(3, seed)]) == {"a", "b", "c"}


@pytest.mark.parametrize("n", [9, 18, 36, 72])
def test_classes_are_drawn_by_their_shares(n):
    counts = pd.Series(STRATA[draw(n)]).value_counts()
    expected = pd.Series(STRATA).value_counts(normalize=True) * n
    assert (counts - expected).abs().max() <= 1


def test_draws_are_of_the_pool_ascending_and_random():
    pool = np.arange(1, 90, 2)
    drawn = draw(12, pool=pool)
    assert np.isin(drawn, pool).all()
    assert (np.diff(drawn) > 0).all()
    assert set(drawn) != set(draw(12, seed=1, pool=pool))
    np.testing.assert_array_equal(drawn, draw(12, pool=pool))


# The curve


@pytest.fixture(scope="module")
def task(few):
    return labelled_cells(few, ["cell_type", "size"], regression=["size"], rng=np.random.default_rng(0))


class Recorded:
    """Stands for the methods: writes down what it is given, predicts at random."""

    def __init__(self, problem):
        self.problem, self.calls = problem, []

    def run(self, config, split, **given):
        self.calls.append((config, split, given))
        rng = np.random.default_rng(len(self.calls))
        n = len(split.test)
        guesses = {FINE_TUNED: rng.dirichlet(np.ones(3), n), "unable": None}
        return Outcome(None, None, [guesses, {FINE_TUNED: rng.normal(size=n)}])


@pytest.fixture
def recorded(task, tmp_path):
    methods = Recorded(task)
    config = NetworkConfig(training={"epochs": 50, "batch_size": 12, "learning_rate": 1e-3, "warmup_steps": 0})
    table = learning_curve(methods, config, SPLIT, sizes=(24, 6), work=tmp_path)
    return methods.calls, table, tmp_path


def test_all_sizes_come_in_three_draws_and_all_cells_once_at_the_end(recorded):
    calls, table, _ = recorded
    sizes = [len(split.train) for _, split, _ in calls]
    assert sizes == [6, 6, 6, 24, 24, 24, 90]
    np.testing.assert_array_equal(calls[-1][1].train, POOL)
    ours = table[(table["target"] == "size") & (table["method"] == FINE_TUNED)]
    assert ours[["n", "draw"]].to_numpy().tolist() == [[6, 1], [6, 2], [6, 3], [24, 1], [24, 2], [24, 3], [90, 1]]


def test_cells_of_a_draw_are_among_those_of_the_same_draw_of_more(recorded):
    rows = [set(split.train) for _, split, _ in recorded[0]]
    for few_rows, more_rows in zip(rows[:3], rows[3:6], strict=True):
        assert few_rows < more_rows < set(POOL)
    assert len({frozenset(one) for one in rows}) == 7


def test_no_cell_chooses_the_epoch_and_the_test_cells_stay_the_same(recorded):
    for _, split, _ in recorded[0]:
        assert not len(split.validation)
        np.testing.assert_array_equal(split.test, SPLIT.test)


def test_all_networks_of_a_size_take_the_same_steps_and_at_least_a_hundred(recorded):
    assert [config.training.trainer["max_steps"] for config, *_ in recorded[0]] == [100] * 6 + [375]


def test_every_run_has_a_folder_of_its_own(recorded):
    calls, _, work = recorded
    assert len({given["work"] for *_, given in calls}) == 7
    assert {given["work"].parent for *_, given in calls} == {work}


def test_rows_are_scores_of_the_predictions_and_a_method_that_could_not_run_has_none(recorded, task):
    _, table, _ = recorded
    again = Recorded(task).run(None, SPLIT).predicted
    known = {"cell_type": scores(task.labels[SPLIT.test, 0].astype(int), again[0][FINE_TUNED])}
    known["size"] = number_scores(task.labels[SPLIT.test, 1], again[1][FINE_TUNED])
    first = table[(table["n"] == 6) & (table["draw"] == 1)].set_index("target")
    for target, expected in known.items():
        assert first.loc[target, list(expected)].to_dict() == pytest.approx(expected)
    assert set(table["method"]) == {FINE_TUNED}


def test_test_cells_without_a_label_are_not_scored(few, tmp_path):
    task = labelled_cells(few, ["partly", "size"], regression=["size"], rng=np.random.default_rng(0))
    tested = SPLIT._replace(test=np.arange(0, 60))  # rows 0, 4, … have no class
    config = NetworkConfig(training={"epochs": 1, "learning_rate": 1e-3, "warmup_steps": 0})
    table = learning_curve(Recorded(task), config, tested, sizes=(6,), work=tmp_path)
    assert table.loc[table["target"] == "partly", "accuracy"].notna().all()


@pytest.mark.parametrize("sizes", [(), (6, 90)], ids=["none", "all cells"])
def test_as_many_cells_as_there_are_can_be_asked_for(sizes):
    require_enough(sizes, SPLIT)


def test_more_cells_than_there_are_is_refused_with_their_number():
    with pytest.raises(gf.InputError, match="curve asks for 91 labelled cells, but those that are not reported are 90"):
        require_enough((6, 91), SPLIT)


def test_over_draws_a_score_has_mean_and_range():
    curve = pd.DataFrame(
        {
            "target": ["a", "a", "a", "b"],
            "method": ["m"] * 4,
            "n": [6, 6, 90, 6],
            "macro_f1": [0.2, 0.6, 0.9, 0.0],
        }
    )
    found = over_draws(curve, "a", "macro_f1")
    assert found.columns.tolist() == ["method", "n", "score", "low", "high"]
    np.testing.assert_allclose(found[["n", "score", "low", "high"]], [[6, 0.4, 0.2, 0.6], [90, 0.9, 0.9, 0.9]])
