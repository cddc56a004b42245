"""Simple methods of drug response on simulated screens: what each can know, and that it knows nothing else."""

import logging

import numpy as np
import pytest
from _responses import simulate_responses
from scipy.stats import pearsonr

from geneformer_repro.finetuning.baselines import PairInputs
from geneformer_repro.finetuning.kinds import response_methods
from geneformer_repro.finetuning.kinds.response_methods import MEAN_EFFECTS, RESPONSE_METHODS, tanimoto
from geneformer_repro.finetuning.pair_splits import Identities, make_pair_splits
from geneformer_repro.finetuning.settings.splits import PairSplitConfig
from geneformer_repro.mean_effects import MeanEffects

RIDGE, CROSSED, FOREST, BOOSTING = (
    "ridge, PCA ⊕ drug", "ridge, PCA × drug", "random forest, PCA ⊕ drug", "gradient boosting, PCA ⊕ drug",
)  # fmt: skip
EXPRESSION, DRUG = "expression", "drug"


def screen(n_samples=90, n_drugs=24, **how):
    """Inputs, values and their parts of a simulated screen."""
    simulated = simulate_responses(n_samples, n_drugs, n_genes=60, **how)
    responses = simulated.responses
    samples = simulated.expression.index.get_indexer(responses["sample"])
    drugs = simulated.fingerprints.index.get_indexer(responses["drug"])
    inputs = PairInputs(
        samples=simulated.expression.to_numpy(),
        drugs=simulated.fingerprints.to_numpy(),
        pairs=np.stack([samples, drugs], axis=1),
        tissues=1 + np.arange(n_samples) % 3,
    )
    return inputs, responses["value"].to_numpy(), responses


def split_of(inputs, by, seed=0):
    names = np.array([f"{sample}-{drug}" for sample, drug in inputs.pairs])
    config = PairSplitConfig(by=by, test=0.3)
    (split,) = make_pair_splits(names, np.full(len(names), "a"), Identities(*inputs.pairs.T), config, seed=seed)
    return split


def ask(name, inputs, values, split, seed=0):
    return RESPONSE_METHODS[name](inputs, split.train, values[split.train], split.test, seed)


@pytest.fixture(scope="module")
def interacting():
    return screen(interaction=1.0)


@pytest.fixture(scope="module")
def little():
    """A screen for what does not depend on how good a method is."""
    return screen(40, 12)


@pytest.fixture(scope="module")
def small_trees():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(response_methods._BOOSTING, "max_iter", 30)
        patch.setitem(response_methods._FOREST, "n_estimators", 10)
        yield


# The simulator


def test_a_screen_has_the_parts_that_were_asked_for():
    _, values, responses = screen(interaction=0.7, noise=0.3, measured=1.0)
    table = responses.pivot(index="sample", columns="drug", values="interaction").to_numpy()
    assert table.std() == pytest.approx(0.7)
    np.testing.assert_allclose([table.mean(axis=0), table.mean(axis=1)[:24]], 0, atol=1e-9)
    assert (values - responses["expected"]).std() == pytest.approx(0.3, rel=0.1)
    assert len(screen(measured=0.5)[1]) == pytest.approx(0.5 * 90 * 24, rel=0.1)


def test_without_interaction_nothing_is_better_than_mean_effects_and_with_it_the_right_features_are(
    small_trees, interacting
):
    """New samples, whose own effect is not in their expression: all that is to be known is the drug's mean."""
    for interaction in (0.0, 1.0):
        inputs, values, _ = interacting if interaction else screen(interaction=0.0)
        split = split_of(inputs, "sample")
        true, naive = values[split.test], ask(MEAN_EFFECTS, inputs, values, split)
        of_sample = inputs.pairs[split.test, 0]
        for name in (RIDGE, CROSSED, FOREST, BOOSTING):
            gain = (true - naive) ** 2 - (true - ask(name, inputs, values, split)) ** 2
            by_sample = np.array([gain[of_sample == sample].mean() for sample in np.unique(of_sample)])
            t = by_sample.mean() / (by_sample.std(ddof=1) / np.sqrt(len(by_sample)))
            if not interaction:
                assert t < 2.5, name
            elif name in (CROSSED, BOOSTING):
                assert t > 2.5, name


# What each knows


def test_effects_fitted_together_part_what_plain_means_mix_where_a_screen_has_gaps():
    inputs, values, responses = screen(interaction=0.0, measured=0.5)
    split = split_of(inputs, "pair")
    expected = responses["expected"].to_numpy()[split.test]
    means, fitted = (ask(name, inputs, values, split) for name in (MEAN_EFFECTS, "mean effects, fitted together"))
    assert np.square(fitted - expected).mean() < 0.5 * np.square(means - expected).mean()
    who = np.eye(90 + 24)[np.add(inputs.pairs, [0, 90])].sum(axis=1)
    train, middle = who[split.train], who[split.train].mean(axis=0)
    weights = np.linalg.solve(
        (train - middle).T @ (train - middle) + np.eye(114), (train - middle).T @ values[split.train]
    )
    np.testing.assert_allclose(fitted, values[split.train].mean() + (who[split.test] - middle) @ weights, atol=1e-4)


def test_means_are_those_of_training_rows(little):
    inputs, values, _ = little
    split = split_of(inputs, "pair")
    keys = {
        "sample mean": inputs.pairs[:, 0],
        "drug mean": inputs.pairs[:, 1],
        "tissue mean": 1 + inputs.pairs[:, 0] % 3,
    }
    for name, key in keys.items():
        expected = [values[split.train][key[split.train] == one].mean() for one in key[split.test]]
        np.testing.assert_allclose(ask(name, inputs, values, split), expected)
    fitted = MeanEffects.fit(values[split.train], *inputs.pairs[split.train].T)
    np.testing.assert_array_equal(ask(MEAN_EFFECTS, inputs, values, split), fitted.predict(*inputs.pairs[split.test].T))
    assert np.ptp(ask("overall mean", inputs, values, split)) == 0


def test_the_most_alike_drug_of_the_same_sample_or_its_mean():
    inputs = PairInputs(
        samples=None,
        drugs=np.array([[1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 1], [1, 1, 1, 0]]),
        pairs=np.array([[0, 0], [0, 2], [1, 1], [1, 2], [0, 3], [2, 3], [1, 3]]),
        tissues=np.zeros(3, dtype=int),
    )
    train, test, values = np.arange(4), np.arange(4, 7), np.array([1.0, 2, 3, 4])
    predicted = RESPONSE_METHODS["nearest drug"](inputs, train, values, test, 0)
    # drug 3 looks like drug 0: of sample 0 that, of the new sample 2 its mean, of sample 1 the next, drug 1
    np.testing.assert_array_equal(predicted, [1, 1, 3])
    np.testing.assert_allclose(tanimoto(inputs.drugs[:1], inputs.drugs), [[1, 2 / 3, 0, 1]])


def test_ablations_know_less(small_trees, interacting):
    inputs, values, _ = interacting
    split = split_of(inputs, "drug")
    drugs, naive = inputs.pairs[split.test, 1], ask(MEAN_EFFECTS, inputs, values, split)
    names = ("PCA ⊕ drug", "no drug", "no expression", "permuted drugs", "permuted expression")
    beyond = {name: ask(f"gradient boosting, {name}", inputs, values, split) - naive for name in names}
    score = {name: pearsonr(one, values[split.test] - naive)[0] for name, one in beyond.items()}
    assert score["PCA ⊕ drug"] > 0.4
    assert score["PCA ⊕ drug"] > max(score["permuted expression"], score["no expression"]) > score["permuted drugs"]
    assert np.ptp(beyond["no drug"][inputs.pairs[split.test, 0] == 5]) < 1e-9  # one number a sample
    assert max(np.ptp(beyond["no expression"][drugs == drug]) for drug in np.unique(drugs)) < 1e-9


@pytest.mark.parametrize("by", ["sample", "drug"])
def test_what_is_tested_changes_nothing_that_is_fitted(small_trees, little, by):
    """Other test rows, with values of another kind, leave the predictions of one as they are."""
    inputs, values, _ = little
    split = split_of(inputs, by)
    column = {"sample": 0, "drug": 1}[by]
    new = np.unique(inputs.pairs[split.test, column])
    changed = {"sample": inputs.samples, "drug": inputs.drugs}[by].copy()
    changed[new[1:]] = 1 - changed[new[1:]] if by == "drug" else 1e3
    others = PairInputs(
        samples=changed if by == "sample" else inputs.samples,
        drugs=changed if by == "drug" else inputs.drugs,
        pairs=inputs.pairs,
        tissues=inputs.tissues,
    )
    asked = split.test[inputs.pairs[split.test, column] == new[0]]
    for name in (RIDGE, CROSSED, FOREST, BOOSTING, "nearest drug", MEAN_EFFECTS):
        method = RESPONSE_METHODS[name]
        one, all_ = (
            method(given, split.train, values[split.train], rows, 0)
            for given, rows in ((inputs, asked), (others, split.test))
        )
        np.testing.assert_allclose(one, all_[np.isin(split.test, asked)], rtol=1e-9, err_msg=name)


def test_what_is_not_at_hand_leaves_a_method_out(small_trees, little):
    inputs, values, _ = little
    split = split_of(inputs, "sample")
    bare = PairInputs(samples=None, drugs=None, pairs=inputs.pairs, tissues=np.zeros(40, dtype=int))
    ran = [name for name in RESPONSE_METHODS if ask(name, bare, values, split) is not None]
    assert ran == ["overall mean", "sample mean", "drug mean", MEAN_EFFECTS, "mean effects, fitted together"]
    vectors = PairInputs(
        samples=None, drugs=inputs.drugs, pairs=inputs.pairs, tissues=inputs.tissues, embedding=inputs.samples
    )
    crossed = ask("ridge, frozen embedding × drug", vectors, values, split)
    np.testing.assert_array_equal(crossed, ask(CROSSED, inputs, values, split))


def test_where_structures_are_unknown_a_drug_is_who_it_is(interacting):
    inputs, values, _ = interacting
    split = split_of(inputs, "sample")
    named = PairInputs(samples=inputs.samples, drugs=None, pairs=inputs.pairs, tissues=inputs.tissues)
    one_hot = PairInputs(samples=inputs.samples, drugs=np.eye(24), pairs=inputs.pairs, tissues=inputs.tissues)
    np.testing.assert_array_equal(ask(CROSSED, named, values, split), ask(CROSSED, one_hot, values, split))
    errors = [np.std(values[split.test] - ask(name, named, values, split)) for name in (CROSSED, MEAN_EFFECTS)]
    assert errors[0] < 0.9 * errors[1]
    assert ask("nearest drug", named, values, split) is None


@pytest.mark.parametrize("n", [0, 1, 3])
def test_few_training_rows_are_enough(small_trees, little, n):
    inputs, values, _ = little
    split = split_of(inputs, "sample")
    few = split._replace(train=split.train[:n])
    for name in RESPONSE_METHODS:
        predicted = ask(name, inputs, values, few)
        assert predicted is None or np.isfinite(predicted).all(), name


def test_the_ridge_is_that_of_all_rows_at_once(little, monkeypatch):
    inputs, values, _ = little
    split = split_of(inputs, "pair")
    whole = ask(CROSSED, inputs, values, split)
    monkeypatch.setattr(response_methods, "_AT_ONCE", 100)
    np.testing.assert_allclose(ask(CROSSED, inputs, values, split), whole)
    (penalty,) = response_methods._PENALTIES[[3]]
    rng = np.random.default_rng(0)
    columns, left = rng.normal(size=(50, 3)) + 2, rng.normal(size=50)
    monkeypatch.setattr(response_methods, "_PENALTIES", [penalty])
    answer = response_methods._ridge(lambda rows: columns[rows], np.arange(50), left, np.arange(50) % 5, 0)
    centred = columns - columns.mean(axis=0)
    weights = np.linalg.solve(centred.T @ centred + 50 * penalty * np.eye(3), centred.T @ (left - left.mean()))
    np.testing.assert_allclose(answer(columns), left.mean() + centred @ weights)


def test_trees_are_grown_on_some_of_many_rows_and_that_is_said(small_trees, little, monkeypatch, caplog):
    inputs, values, _ = little
    split = split_of(inputs, "pair")
    monkeypatch.setitem(response_methods._BOOSTED.keywords, "most", 200)
    with caplog.at_level(logging.INFO, logger="geneformer_repro"):
        assert np.isfinite(ask(BOOSTING, inputs, values, split)).all()
    assert f"gradient boosting: fitted on a random 200 of the {len(split.train)} training pairs" in caplog.text
