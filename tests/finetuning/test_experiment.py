"""An experiment needs no cells: bags of numbers with a network of two layers go the whole way."""

import dataclasses
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_matrix
from torch import nn

import geneformer_repro as gf
from geneformer_repro.config import Section, with_settings
from geneformer_repro.finetuning import curve, metrics
from geneformer_repro.finetuning.baselines import Features
from geneformer_repro.finetuning.evaluation import evaluate_target
from geneformer_repro.finetuning.experiment import Experiment
from geneformer_repro.finetuning.kinds import classes, numbers
from geneformer_repro.finetuning.kinds.kind import FINE_TUNED, RANDOM
from geneformer_repro.finetuning.methods import NETWORKS, NetworkMethod
from geneformer_repro.finetuning.networks import scores_by_target, trained_once
from geneformer_repro.finetuning.problems import problem as problems
from geneformer_repro.finetuning.problems.problem import Problem
from geneformer_repro.finetuning.results import write_evaluation, write_page
from geneformer_repro.finetuning.settings.networks import NetworkConfig, SearchConfig
from geneformer_repro.finetuning.settings.splits import SplitConfig
from geneformer_repro.finetuning.splits import make_splits
from geneformer_repro.heads import Head
from geneformer_repro.targets import Classes, Number

pytestmark = pytest.mark.usefixtures("blank_pictures")

N = 48
CLASS_METHODS = ("majority class", "logistic regression, counts", "logistic regression, frozen embedding")
NUMBER_METHODS = ("mean", "ridge, frozen embedding")


@dataclass(frozen=True, kw_only=True)
class BagConfig(NetworkConfig):
    """How to train on bags."""

    search: Section[SearchConfig] = Section(SearchConfig)


class BagNetwork(nn.Module):
    """A mean over what is made of each number of a bag."""

    def __init__(self, head):
        super().__init__()
        self.head = head
        self.each, self.last = nn.Linear(3, 8), nn.Linear(8, head.n_outputs)

    def forward(self, bags):
        return self.last(torch.stack([self.each(bag).relu().mean(0) for bag in bags]))

    def loss(self, outputs, labels):
        parts = zip(self.head.targets, self.head.split(outputs), self.head.split_labels(labels), strict=True)
        return sum(target.loss(*of_target) for target, *of_target in parts)


@dataclass(frozen=True, eq=False)
class Bags(Problem):
    """Bags of numbers, each with a class and a number."""

    bags: list
    targets: tuple
    labels: np.ndarray
    trained: list
    starts: list
    row = "bag"
    group = "shelf"

    @property
    def names(self):
        return np.array([f"bag{i}" for i in range(len(self.bags))])

    @property
    def groups(self):
        return np.arange(len(self.bags)) % 6

    def select(self, rows):
        return dataclasses.replace(self, bags=[self.bags[row] for row in rows], labels=self.labels[rows])

    def train(self, start, config, split, *, pretrained=True, work, step):
        def network():
            with torch.random.fork_rng():
                torch.manual_seed(start if pretrained else start + 1)
                return BagNetwork(Head(self.head_targets(split.train)))

        def train_here():
            self.trained.append(step)
            self.starts.append(start if pretrained else None)
            model, history = network(), []
            optimizer = torch.optim.Adam(model.parameters(), config.training.learning_rate)
            bags, labels = [self.bags[row] for row in split.train], torch.tensor(self.labels[split.train])
            for epoch in range(1, int(config.training.trainer.get("max_steps", config.training.epochs)) + 1):
                optimizer.zero_grad()
                model.loss(model(bags), labels).backward()
                optimizer.step()
                scores = self.score(model, split.validation) if len(split.validation) else {}
                history.append({"epoch": float(epoch), **{f"eval_{name}": value for name, value in scores.items()}})
            return model, pd.DataFrame(history)

        work.mkdir(parents=True, exist_ok=True)
        return trained_once(work, train_here, like=network)

    def score(self, model, rows):
        return scores_by_target(model.head.targets, self.labels[rows], torch.tensor(self.ask(model, rows)))

    def ask(self, network, rows):
        with torch.inference_mode():
            return network.head.meaning(network([self.bags[row] for row in rows])).numpy()

    def features(self, start, config, counts):
        means = np.array([bag.mean(0).numpy() for bag in self.bags])
        return Features(counts=None, ranks=csr_matrix(np.abs(means)), embedding=means)


def bags_of(n=N):
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(n, 3))
    bags = [torch.tensor(rng.normal(centre, 0.3, (rng.integers(2, 7), 3)), dtype=torch.float32) for centre in centres]
    labels = np.stack([(centres[:, 0] > 0).astype(float), centres.sum(axis=1)], axis=1)
    labels[::9, 0] = np.nan
    return Bags(bags, (Classes("side", ("left", "right")), Number("height")), labels, [], [])


def experiment(problem, *, folds=3, networks=NETWORKS, how=None, **changes):
    config = with_settings(BagConfig(), **{"epochs": 20, "learning_rate": 0.05, "warmup_steps": 0} | changes)
    obs = pd.DataFrame({"shelf": problem.groups}, index=problem.names)
    how = how or SplitConfig(group="shelf", folds=folds)
    splits = make_splits(problem.names, problem.strata, obs, how, seed=0, are_classes=False)
    return Experiment(problem, 5, splits, config, networks, (12,))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    work = tmp_path_factory.mktemp("bags")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classes, "CLASS_METHODS", {name: classes.CLASS_METHODS[name] for name in CLASS_METHODS})
        patch.setattr(numbers, "NUMBER_METHODS", {name: numbers.NUMBER_METHODS[name] for name in NUMBER_METHODS})
        patch.setattr(problems, "FEWEST_STEPS", 20)
        patch.setattr(curve, "DRAWS", 2)
        patch.setattr(metrics, "N_RESAMPLES", 100)
        plan = experiment(bags_of(), trials=2, space={"learning_rate": [0.05, 0.03]})
        plan.require_labels()
        features = plan.problem.features(plan.start, plan.config, None)
        found = plan.with_curve(plan.run(features, work), features, work)
        trained = list(plan.problem.trained)
        again = plan.with_curve(plan.run(features, work), features, work)
    return plan, found, again, trained, work


def test_every_row_is_reported_once_by_every_method(run):
    plan, found, *_ = run
    assert found.evaluations["side"].methods.index.tolist() == [FINE_TUNED, *CLASS_METHODS, RANDOM]
    assert found.evaluations["height"].methods.index.tolist() == [FINE_TUNED, *NUMBER_METHODS, RANDOM]
    table = found.evaluations["height"].predictions
    assert sorted(table["bag"]) == sorted(plan.problem.names)
    for number, split in enumerate(plan.splits, 1):
        assert set(table["bag"][table["fold"] == number]) == set(plan.problem.names[split.test])
    n_labels = int((~np.isnan(plan.problem.labels[:, 0])).sum())
    assert len(found.evaluations["side"].predictions) == n_labels < N


def test_the_network_learns_and_its_difference_to_the_best_simple_method_is_paired(run):
    _, found, *_ = run
    methods = found.evaluations["side"].methods
    assert methods.loc[FINE_TUNED, "accuracy"] > methods.loc["majority class", "accuracy"] + 0.2
    best = methods["macro_f1"].drop([FINE_TUNED, RANDOM]).idxmax()
    difference = methods.loc[FINE_TUNED, "macro_f1"] - methods.loc[best, "macro_f1"]
    assert methods.loc[FINE_TUNED, "macro_f1_vs_best_simple"] == pytest.approx(difference)
    assert found.evaluations["side"].verdict.startswith("fine-tuned is ")


def test_settings_are_searched_in_each_fold_and_the_last_network_has_the_best_over_all(run):
    _, found, _, trained, _ = run
    assert len(found.trials) == 6
    best = found.trials.groupby("learning_rate")["selection"].mean().idxmax()
    assert found.config.training.learning_rate == best
    assert [step for step in trained if step.startswith("trial")] == ["trial 1 of 2", "trial 2 of 2"] * 3
    assert trained.count("all bags") == 1


def test_the_curve_has_every_method_at_every_size(run):
    plan, found, *_ = run
    sizes = found.curve.groupby("method", sort=False)["n"].apply(list)
    largest = len(plan.splits[0].train) + len(plan.splits[0].validation)
    assert set(sizes.index) == {FINE_TUNED, RANDOM, *CLASS_METHODS, *NUMBER_METHODS} - {
        name for name in {*CLASS_METHODS, *NUMBER_METHODS} if "counts" in name
    }
    assert sizes[FINE_TUNED] == [12, 12, 12, 12, largest, largest]


def test_what_is_finished_is_not_repeated_and_the_end_is_the_same(run):
    plan, found, again, trained, _ = run
    assert plan.problem.trained == trained
    for name, evaluation in found.evaluations.items():
        pd.testing.assert_frame_equal(again.evaluations[name].methods, evaluation.methods, check_exact=True)
    pd.testing.assert_frame_equal(again.curve, found.curve, check_exact=True)


def test_the_page_shows_both_kinds_and_calls_rows_what_they_are(run, tmp_path):
    plan, found, *_ = run
    pages = [write_evaluation(one, tmp_path / name, curve=found.curve) for name, one in found.evaluations.items()]
    write_page(tmp_path, pages, intervals=plan.intervals, facts={"bags": N})
    text = (tmp_path / "report.html").read_text()
    assert "side: methods on the same test bags" in text
    assert "height: predicted against true" in text
    assert text.count("how many labels each method needs") >= 2
    assert "95 % bootstrap intervals over 6 groups of &#x27;shelf&#x27;, rough with so few" in text


def test_a_network_may_begin_elsewhere_and_with_other_settings(tmp_path):
    ways = (
        NetworkMethod(FINE_TUNED, "ours"),
        NetworkMethod("the same", "same", step=", again"),
        NetworkMethod("elsewhere", "elsewhere", start=9),
        NetworkMethod("untrained", "untrained", changes={"epochs": 1, "learning_rate": 1e-9}),
    )
    plan = dataclasses.replace(experiment(bags_of(), folds=1, networks=ways), sizes=())
    found = plan.run(None, tmp_path)
    assert plan.problem.trained == ["fine-tune", "fine-tune, again", "fine-tune", "fine-tune"]
    methods = found.evaluations["height"].methods
    assert methods.index.tolist() == [way.name for way in ways]
    assert methods.loc["the same"].tolist() == methods.loc[FINE_TUNED].tolist()
    assert methods.loc["elsewhere", "r2"] != methods.loc[FINE_TUNED, "r2"]
    assert methods.loc["untrained", "r2"] < methods.loc[FINE_TUNED, "r2"] - 0.2
    assert not [name for name in methods if "best_simple" in name]
    assert {path.name for path in (tmp_path / "fold-1").iterdir()} == {"ours", "same", "elsewhere", "untrained"} | {
        f"{name}.npy{end}" for name in ("same", "elsewhere", "untrained") for end in ("", ".sha256")
    }


def test_settings_are_searched_for_the_network_that_is_asked_about_and_the_last_begins_as_it_does(tmp_path):
    ways = (NetworkMethod(FINE_TUNED, "ours", start=9), NetworkMethod("from the start", "start"))
    plan = experiment(bags_of(), networks=ways, trials=1, space={"learning_rate": [0.03]}, epochs=3)
    dataclasses.replace(plan, sizes=()).run(None, tmp_path)
    begun = dict(zip(plan.problem.trained, plan.problem.starts, strict=True))
    assert begun["trial 1 of 1"] == begun["all bags"] == 9
    assert plan.problem.starts.count(5) == 3


def test_a_split_without_a_label_is_refused_by_the_name_of_the_row():
    problem = bags_of()
    plan = experiment(problem, folds=1)
    problem.labels[plan.splits[0].test, 0] = np.nan
    with pytest.raises(gf.InputError, match="No test bag has a label in 'side'"):
        plan.require_labels()


def test_rows_that_are_tested_in_several_repeats_stand_once_a_repeat_and_are_resampled_together(tmp_path, monkeypatch):
    for kinds, name in ((classes, "CLASS_METHODS"), (numbers, "NUMBER_METHODS")):
        monkeypatch.setattr(kinds, name, {})
    monkeypatch.setattr(Bags, "groups", None)
    problem = bags_of()
    how = SplitConfig(folds=2, repeats=3)
    plan = dataclasses.replace(experiment(problem, networks=NETWORKS[:1], how=how, epochs=5), sizes=())
    found = plan.run(None, tmp_path)
    table = found.evaluations["height"].predictions
    assert table.columns.tolist() == ["bag", "fold", "repeat", "true", FINE_TUNED]
    assert (table.groupby("repeat")["bag"].apply(sorted).map(tuple) == tuple(sorted(problem.names))).all()
    assert table.groupby("fold")["repeat"].unique().map(list).tolist() == [[1], [1], [2], [2], [3], [3]]
    for (_, rows), split in zip(table.groupby("fold"), plan.splits, strict=True):
        assert rows["bag"].tolist() == problem.names[split.test].tolist()
    assert plan.intervals == "95 % bootstrap intervals over 48 bags, each tested 3 times"
    apart = evaluate_target(
        problem.targets[1],
        table["bag"].to_numpy(),
        table["true"].to_numpy(),
        {FINE_TUNED: table[FINE_TUNED].to_numpy()},
        folds=np.zeros(len(table), dtype=int),
        groups=table["bag"].to_numpy(),
        seed=plan.config.seed,
    )
    ours, again = found.evaluations["height"].methods, apart.methods
    np.testing.assert_allclose(ours["mae"], again["mae"])
    np.testing.assert_allclose(ours["mae_high"] - ours["mae_low"], again["mae_high"] - again["mae_low"], rtol=0.1)
