"""Scores by donor: as scikit-learn gives them of donors' mean probabilities, and as done by hand within donors."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score, roc_auc_score

from geneformer_repro.finetuning.evaluation import evaluate_target
from geneformer_repro.finetuning.kinds import kind_of
from geneformer_repro.finetuning.kinds.kind import FINE_TUNED, RANDOM
from geneformer_repro.finetuning.kinds.survival_scores import harrell_c
from geneformer_repro.finetuning.results import write_evaluation, write_page
from geneformer_repro.targets import Classes, Number, SurvivalTime

pytestmark = pytest.mark.usefixtures("blank_pictures")

DISEASE = Classes("disease", ("case", "control"))
DONORS, CELLS = 12, 9
DONOR = np.repeat([f"d{i:02d}" for i in range(DONORS)], CELLS)
N = len(DONOR)
OF_DONOR = np.repeat(np.arange(DONORS) % 2, CELLS).astype(float)
NAMES = np.array([f"cell{i}" for i in range(N)])


def told(seed, weight):
    """Made-up probabilities of two classes, that know the donor's class by so much."""
    share = np.clip(np.random.default_rng(seed).uniform(size=N) + weight * (OF_DONOR - 0.5), 0.01, 0.99)
    return np.column_stack([1 - share, share])


@pytest.fixture
def predicted():
    return {FINE_TUNED: told(0, 0.1), "simple": told(1, 0.25), "unable": None, RANDOM: told(2, 0.0)}


def evaluated(predicted, labels=OF_DONOR, *, target=DISEASE, **options):
    options = {"folds": np.zeros(N, int), "groups": DONOR, "group": "donor", **options}
    return evaluate_target(target, NAMES, labels, predicted, seed=3, **options)


@pytest.mark.parametrize("folds", [np.zeros(N, int), np.repeat(np.arange(DONORS) % 3, CELLS)], ids=["once", "folds"])
def test_a_donor_is_scored_by_the_mean_of_its_cells_as_by_scikit_learn(predicted, folds):
    found = evaluated(predicted, folds=folds).by_group
    truth = OF_DONOR[::CELLS]
    for name in (FINE_TUNED, "simple", RANDOM):
        means = predicted[name][:, 1].reshape(DONORS, CELLS).mean(1)
        assert found.methods.loc[name, "auroc"] == pytest.approx(roc_auc_score(truth, means))
        assert found.methods.loc[name, "macro_f1"] == pytest.approx(f1_score(truth, means > 0.5, average="macro"))
        assert found.methods.loc[name, "accuracy"] == pytest.approx(((means > 0.5) == truth).mean())
    assert sorted(found.predictions["donor"]) == sorted(set(DONOR))


def test_intervals_of_donors_are_those_of_an_evaluation_whose_rows_are_donors(predicted):
    means = {name: None if one is None else one.reshape(DONORS, CELLS, 2).mean(1) for name, one in predicted.items()}
    names, folds = DONOR[::CELLS], np.zeros(DONORS, int)
    alone = evaluate_target(DISEASE, names, OF_DONOR[::CELLS], means, folds=folds, groups=None, seed=3)
    found = evaluated(predicted)
    pd.testing.assert_frame_equal(found.by_group.methods, alone.methods.drop("unable"))
    assert alone.verdict in found.verdict_of_groups


def test_the_cells_table_is_the_same_with_or_without_a_name_of_groups(predicted):
    """And without one, or with one group, or with one label for all, nothing is said of groups."""
    found, plain = evaluated(predicted), evaluated(predicted, group=None)
    pd.testing.assert_frame_equal(found.methods, plain.methods)
    one_group, one_label = np.full(N, "d"), np.zeros(N)
    for said in (plain, evaluated(predicted, groups=one_group), evaluated(predicted, one_label)):
        assert said.by_group is None
        assert said.within_groups is None
        assert said.verdict_of_groups is None


def test_a_donor_of_several_repeats_is_drawn_as_a_whole(predicted):
    twice = {name: None if one is None else np.concatenate([one, one]) for name, one in predicted.items()}
    repeats = np.repeat([0, 1], N)
    found = evaluate_target(
        DISEASE, np.tile(NAMES, 2), np.tile(OF_DONOR, 2), twice, folds=repeats, groups=np.tile(DONOR, 2), seed=3,
        repeats=repeats, group="donor",
    )  # fmt: skip
    once = evaluated(predicted)
    pd.testing.assert_series_equal(found.by_group.methods["auroc_low"], once.by_group.methods["auroc_low"])
    assert len(found.by_group.predictions) == 2 * DONORS


def test_a_number_of_donors_is_the_mean_of_its_cells():
    ages = np.repeat(np.linspace(20, 80, DONORS), CELLS)
    said = {FINE_TUNED: ages + np.random.default_rng(0).normal(0, 30, N), "mean": np.full(N, 50.0)}
    found = evaluated(said, ages, target=Number("age", 50.0, 10.0)).by_group
    means = said[FINE_TUNED].reshape(DONORS, CELLS).mean(1)
    assert found.methods.loc[FINE_TUNED, "pearson"] == pytest.approx(np.corrcoef(means, ages[::CELLS])[0, 1])


DEATH = SurvivalTime("death", "days", (50.0, 100.0), 50.0, edges=(0.0, 50.0, 200.0))


@pytest.fixture
def samples():
    """Several samples of patients: labels, and what two methods say of them, the better one with survival."""
    rng = np.random.default_rng(4)
    times = np.repeat(rng.exponential(100, DONORS), CELLS)
    labels = np.column_stack([times, np.repeat(np.arange(DONORS) % 3 > 0, CELLS), np.zeros(N)])
    risk = -np.log(times) + rng.normal(0, 1.5, N)
    survival = np.exp(-np.exp(risk)[:, None] * np.array([50.0, 100.0]))
    others = np.column_stack([rng.normal(size=N), np.full((N, 2), np.nan)])
    return labels, {FINE_TUNED: np.column_stack([risk, survival]), "simple": others}


def test_survival_of_patients_with_several_samples_is_scored_by_their_mean_risk(samples):
    labels, said = samples
    found = evaluated(said, labels, target=DEATH)
    means = {name: one.reshape(DONORS, CELLS, 3).mean(1) for name, one in said.items()}
    alone = evaluate_target(
        DEATH, DONOR[::CELLS], labels[::CELLS], means, folds=np.zeros(DONORS, int), groups=None, seed=3
    )
    pd.testing.assert_frame_equal(found.by_group.methods, alone.methods)
    of_ours = found.by_group.methods.loc[FINE_TUNED]
    assert of_ours["c_index"] == harrell_c(labels[::CELLS, 0], labels[::CELLS, 1] == 1, means[FINE_TUNED][:, 0]).c
    assert of_ours["c_index"] > found.methods.loc[FINE_TUNED, "c_index"]  # patients' times are known better
    assert "over 12 groups of 'donor' (mean of each), fine-tuned is" in found.verdict_of_groups


def test_survival_within_hospitals_is_a_c_index_of_each(samples):
    labels, said = samples
    labels = np.column_stack([labels[:, 0] + np.arange(N) % CELLS, labels[:, 1], labels[:, 2]])
    hospitals = np.array(["a", "b", "c"])[np.arange(N) // 36]
    labels[hospitals == "c", 1] = 0  # nobody dies: no score
    found = evaluated(said, labels, target=DEATH, groups=hospitals, group="hospital").within_groups
    a, b = (harrell_c(*labels[hospitals == one, :2].T, said[FINE_TUNED][hospitals == one, 0]).c for one in "ab")
    assert found.loc[FINE_TUNED, "n_groups"] == 2
    assert found.loc[FINE_TUNED, "c_index"] == pytest.approx((a + b) / 2)


def test_groups_of_one_row_each_say_nothing_more(predicted):
    found = evaluated(predicted, groups=NAMES, group="cell")
    assert found.by_group is None
    assert found.within_groups is None


# Labels that differ within donors


@pytest.fixture
def types():
    return (np.arange(N) % 2).astype(float)


def test_within_donors_scores_are_each_donors_own_and_differences_are_paired(predicted, types):
    found = evaluated(predicted, types)
    expected = {
        name: [f1_score(types[d == DONOR], one[d == DONOR].argmax(1), average="macro") for d in np.unique(DONOR)]
        for name, one in predicted.items()
        if one is not None
    }
    table = found.within_groups
    for name, f1 in expected.items():
        columns = ["macro_f1", "macro_f1_lowest", "macro_f1_highest"]
        np.testing.assert_allclose(table.loc[name, columns].astype(float), [np.median(f1), min(f1), max(f1)])
    differences = np.subtract(expected[FINE_TUNED], expected["simple"])
    of_ours = table.loc[FINE_TUNED]
    assert of_ours["macro_f1_vs_best_simple"] == pytest.approx(np.median(differences))
    assert of_ours["n_above"] == (differences > 0).sum()
    assert of_ours["n_below"] == (differences < 0).sum()
    assert f"within {DONORS} groups of 'donor', fine-tuned less simple is" in found.verdict_of_groups
    assert found.by_group is None
    assert "too few" not in found.verdict_of_groups
    mine = found.per_group[found.per_group["method"] == "simple"]
    np.testing.assert_allclose(mine["macro_f1"], expected["simple"])


def test_a_donor_of_one_class_has_no_score(predicted, types):
    types[DONOR == "d00"] = 0
    table = evaluated(predicted, types).within_groups
    assert table["n_groups"].tolist() == [DONORS - 1] * 3


def test_few_donors_are_said_to_be_few(predicted, types):
    few = np.isin(DONOR, ["d00", "d01", "d02", "d03"])
    for labels in (OF_DONOR, types):
        gaps = np.where(few, labels, np.nan)
        said = evaluated(predicted, gaps).verdict_of_groups
        assert "4 groups of 'donor'" in said
        assert "too few to rely on" in said


# Files and page


@pytest.mark.parametrize("within", [False, True], ids=["of-donors", "within-donors"])
def test_donors_have_tables_and_a_section_of_the_page(predicted, types, tmp_path, within):
    found = evaluated(predicted, types if within else OF_DONOR)
    write_page(tmp_path, [write_evaluation(found, tmp_path)], intervals="over donors", facts={})
    text = (tmp_path / "report.html").read_text()
    assert "disease: by donor" in text
    assert kind_of(DISEASE).spelled["macro_f1"] in text
    written = {path.name for path in tmp_path.iterdir()}
    named = {"within_groups.tsv", "per_group.tsv"} if within else {"methods_by_group.tsv", "predictions_by_group.tsv"}
    assert named | {"by_group.png"} <= written
    table = pd.read_csv(tmp_path / ("within_groups.tsv" if within else "methods_by_group.tsv"), sep="\t", index_col=0)
    assert table.index.tolist() == [FINE_TUNED, "simple", RANDOM]
