"""Pairs of samples and drugs as rows: what is fitted on training rows, what goes on, and training by the one loop."""

import dataclasses
import os
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from forking import forked, several, status_of

import geneformer_repro as gf
from geneformer_repro.config import ConfigError
from geneformer_repro.drugs import Drugs
from geneformer_repro.finetuning.problems.pairs import PairProblem
from geneformer_repro.finetuning.settings.pairs import PairConfig
from geneformer_repro.finetuning.settings.splits import PairSplitConfig
from geneformer_repro.finetuning.splits import Split
from geneformer_repro.responses import Responses
from geneformer_repro.training import loop

SMILES = {
    "aspirin": "CC(=O)OC1=CC=CC=C1C(=O)O", "caffeine": "CN1C=NC2=C1C(=O)N(C(=O)N2C)C",
    "fluorouracil": "C1=C(C(=O)NC(=O)N1)F", "ethanol": "CCO", "benzene": "C1=CC=CC=C1", "urea": "C(=O)(N)N",
    "methane": "C", "acetone": "CC(=O)C",
}  # fmt: skip
SMALL = {
    "model": "conv_nn", "drug_input": "one_hot", "sample_layers": (8,), "drug_layers": (8,), "joint_layers": (16,),
    "joint_norm": False, "dropout": 0.0, "fusion": "bilinear", "fusion_size": 8,
}  # fmt: skip


def made_problem(n_samples=40, measure="LN_IC50", *, interaction=1.0, by="sample", seed=0):
    """Responses with a mean, what sample and drug add, and one gene that each drug looks at otherwise."""
    rng = np.random.default_rng(seed)
    genes = pd.DataFrame(
        rng.normal(size=(n_samples, 10)), [f"line-{i}" for i in range(n_samples)], [f"GENE{i}" for i in range(10)]
    )
    drugs = Drugs.of_table(pd.DataFrame({"drug": list(SMILES), "smiles": list(SMILES.values())}))
    of_drug, slope = rng.normal(0, 2, len(drugs)), rng.choice([-1, 1], len(drugs))
    values = 3 + of_drug + genes.to_numpy()[:, :1] + interaction * slope * genes.to_numpy()[:, 1:2]
    table = pd.DataFrame(values, genes.index, list(drugs.names)).rename_axis("sample").reset_index()
    pairs = table.melt("sample", var_name="drug", value_name="value").assign(n_replicates=1)
    return PairProblem.of(genes, Responses(pairs, measure), drugs, split_by=PairSplitConfig(by=by))


def config(**settings):
    training = {"epochs": 2, "batch_size": 64, "drugs_a_step": 4} | settings.pop("training", {})
    return PairConfig(network={**SMALL, **settings.pop("network", {})}, training=training, **settings)


def parts(problem, n=30):
    """Split by sample: the first `n` are trained on."""
    rows = np.arange(len(problem.pairs))
    return rows[problem.pairs[:, 0] < n], rows[problem.pairs[:, 0] >= n]


@pytest.fixture(scope="module")
def problem():
    return made_problem()


def state(network):
    return {name: weight.detach().clone() for name, weight in network.state_dict().items()}


def assert_same(network, other):
    for name, weight in state(other).items():
        torch.testing.assert_close(state(network)[name], weight, rtol=0, atol=0, msg=name)


# What is fitted


def test_pairs_are_joined_and_named(problem):
    assert problem.names[:2].tolist() == ["line-0/aspirin", "line-0/caffeine"]
    assert problem.labels.shape == (320, 4)
    np.testing.assert_array_equal(problem.labels[:, 1:3], problem.pairs)
    few = problem.select(np.array([5, 3]))
    assert few.names.tolist() == problem.names[[5, 3]].tolist()
    assert few.digest() != problem.digest() == made_problem().digest()
    assert set(problem.groups) == set(problem.sample_keys)


@pytest.mark.parametrize(("by", "drawn_by"), [("pair", "sample"), ("sample", "sample"), ("drug", "drug")])
def test_intervals_draw_samples_where_pairs_are_new(by, drawn_by):
    problem = made_problem(by=by)
    assert problem.drawn_by == drawn_by
    np.testing.assert_array_equal(problem.drawn, problem.identities.groups(drawn_by))


@pytest.mark.parametrize("by", ["pair", "sample", "drug", "both"])
def test_effects_are_those_that_are_known_in_the_test(by):
    problem = made_problem(by=by)
    train, test = parts(problem)
    network = problem.begun(None, config(), train)
    values, of = problem.labels[train, 0], pd.DataFrame(problem.pairs[train], columns=["sample", "drug"])
    expected = np.full(len(train), values.mean())
    for side in {"pair": ["sample", "drug"], "sample": ["drug"], "drug": ["sample"], "both": []}[by]:
        expected += pd.Series(values).groupby(of[side]).transform("mean").to_numpy() - values.mean()
    np.testing.assert_allclose(problem.naive(network, train), expected)
    np.testing.assert_allclose(problem.ask(network, train)[:, 0], expected, rtol=1e-5)  # as it begins
    assert network.head.targets[0].sd == pytest.approx((values - expected).std())
    assert np.isfinite(problem.ask(network, test)).all()


def test_nothing_that_is_fitted_knows_the_rows_of_the_test(problem):
    train, test = parts(problem)
    other = made_problem()
    other.labels[test, 0] += 100
    other.inputs.values["expression"][30:] *= 7
    for settings in ({}, {"drug_input": "smiles", "fusion": "concatenation", "pool": 1}, {"drug_input": "descriptors"}):
        one, two = (of.begun(None, config(network=settings), train) for of in (problem, other))
        assert_same(one, two)
        assert one.deciding() == two.deciding()
    assert one.learned["samples"] == sorted(f"LINE{i}" for i in range(30))


@pytest.mark.parametrize("drug_input", ["smiles", "descriptors"])
def test_other_drugs_and_samples_in_the_test_change_neither_what_is_fitted_nor_what_is_trained_on(drug_input):
    problem, rows = made_problem(by="drug"), np.arange(320)
    train = rows[(problem.pairs[:, 0] < 30) & (problem.pairs[:, 1] < 6)]
    smiles = [*list(SMILES.values())[:6], "BrC(Cl)(I)P" + 40 * "S", "[Se]=C=[Se]"]
    others = Drugs.of_table(pd.DataFrame({"drug": list(SMILES), "smiles": smiles}))
    other = dataclasses.replace(made_problem(by="drug"), drugs=others)
    other.inputs.values["expression"][30:] *= 7
    other.labels[np.setdiff1d(rows, train), 0] += 100
    settings = config(network={"drug_input": drug_input, "fusion": "concatenation", "pool": 1})
    networks = [of.begun(None, settings, train) for of in (problem, other)]
    assert_same(*networks)
    assert networks[0].deciding() == networks[1].deciding()
    batches = [of.sides(one).batch(of.pairs[train]) for of, one in zip((problem, other), networks, strict=True)]
    for name, values in batches[0].items():
        torch.testing.assert_close(batches[1][name], values, rtol=0, atol=0, msg=name)
    np.testing.assert_array_equal(problem.naive(networks[0], train), other.naive(networks[1], train))


def test_as_published_there_is_no_residual(problem):
    network = problem.begun(None, config(network={"residual": False}), np.arange(320))
    assert network.effects is None
    assert problem.naive(network, np.arange(3)) is None
    assert network.head.targets[0].sd == pytest.approx(problem.labels[:, 0].std())


def test_an_encoder_needs_one_and_genes_must_be_there(problem, base, few):
    with pytest.raises(gf.InputError, match="needs the checkpoint of an encoder"):
        problem.begun(None, PairConfig(network={"model": "encoder"}), np.arange(9))
    tokens = token_problem(few)
    with pytest.raises(gf.InputError, match="there are tokens alone"):
        tokens.begun(base, PairConfig(network={"model": "conv_nn"}), np.arange(9))


# Going on


def test_the_output_layer_begins_anew_where_the_measure_is_another_and_is_recorded(problem):
    rows = np.arange(320)
    first = problem.begun(None, config(), rows)
    torch.nn.init.normal_(first.output.weight)
    other = dataclasses.replace(problem, targets=(dataclasses.replace(problem.targets[0], measure="AUC"),))
    same, replaced = problem.begun(first, config(), rows[:80]), other.begun(first, config(), rows[:80])
    kept = other.begun(first, config(replace_head=False), rows[:80])
    assert_same(same, first)
    assert_same(kept, first)
    assert not replaced.output.weight.any()
    assert_same(replaced.joint, first.joint)
    assert replaced.begun == {"measure": "LN_IC50", "replaced_head": True, "refitted_scale": False}
    assert [kept.begun["replaced_head"], same.begun["replaced_head"]] == [False, False]
    assert problem.begun(first, config(replace_head=True), rows[:80]).begun["replaced_head"]
    assert replaced.head.targets[0].measure == "AUC"


def test_what_goes_on_keeps_its_scale_unless_it_is_refitted_and_knows_whom_both_have_seen(problem):
    first = problem.begun(None, config(), np.arange(80))
    rows = np.arange(160, 320)
    goes_on, refitted = (problem.begun(first, config(refit_scale=refit), rows) for refit in (False, True))
    np.testing.assert_array_equal(goes_on.scale.mean_I, first.scale.mean_I)
    there = problem.inputs.values["expression"][20:]
    order = [int(name.removeprefix("GENE")) for name in first.scale.names["expression"]]
    np.testing.assert_allclose(refitted.scale.mean_I, there.mean(0)[order], rtol=1e-4, atol=1e-6)
    assert set(goes_on.learned["samples"]) == {f"LINE{i}" for i in [*range(10), *range(20, 40)]}
    scratch = problem.begun(first, config(seed=5), rows, pretrained=False)
    assert scratch.shape == first.shape
    assert not torch.equal(scratch.joint[1].weight, first.joint[1].weight)
    assert scratch.begun == {}


# Training


def test_a_network_learns_the_interaction_and_keeps_its_best_epoch(problem, tmp_path):
    train, test = parts(problem)
    settings = config(training={"epochs": 12, "learning_rate": 0.03, "batch_size": 30})
    network, history = problem.train(None, settings, Split(train, test), work=tmp_path / "x", step="pairs")
    of_test = problem.labels[test, 0], problem.ask(network, test)[:, 0]
    left, said = (values - problem.naive(network, test) for values in of_test)
    assert np.corrcoef(left, said)[0, 1] > 0.8
    assert history["eval_selection"].notna().sum() == 13
    sd = network.head.targets[0].sd  # what chooses is the validation pairs' error, not the training loss
    explained = 1 - np.mean((of_test[0] - of_test[1]) ** 2) / sd**2
    assert explained == pytest.approx(history["eval_selection"].max(), rel=1e-4)
    again, same = problem.train(None, settings, Split(train, test), work=tmp_path / "x", step="pairs")
    assert_same(again, network)
    pd.testing.assert_frame_equal(history, same)


def test_a_run_that_was_killed_goes_on_to_the_same_network(problem, tmp_path):
    settings = config(training={"trainer": {"save_strategy": "steps", "save_steps": 2}}, network={"dropout": 0.2})
    split = Split(np.arange(256))
    whole, history = problem.train(None, settings, split, work=tmp_path / "whole", step="pairs")

    def killed():
        save = loop._Trainer._save_checkpoint

        def saved_and_killed(self, *given, **options):
            save(self, *given, **options)
            os.kill(os.getpid(), 9)

        loop._Trainer._save_checkpoint = saved_and_killed
        problem.train(None, settings, split, work=tmp_path / "cut", step="pairs")

    assert status_of(forked(killed, tmp_path / "log")) == -9
    assert (tmp_path / "cut" / "checkpoint-2").is_dir()
    network, told = problem.train(None, settings, split, work=tmp_path / "cut", step="pairs")
    assert_same(network, whole)
    pd.testing.assert_frame_equal(told, history)
    shutil.rmtree(tmp_path / "cut")


def test_two_processes_learn_what_one_learns(problem, tmp_path):
    settings = config(training={"epochs": 1, "batch_size": 64})
    split = Split(np.arange(256))
    alone, _ = problem.train(None, settings, split, work=tmp_path / "alone", step="pairs")
    shared = config(training={"epochs": 1, "batch_size": 32})
    several(lambda _: problem.train(None, shared, split, work=tmp_path / "shared", step="pairs"), tmp_path)
    together, _ = problem.train(None, shared, split, work=tmp_path / "shared", step="pairs")  # as it was kept
    assert state(alone)["output.weight"].any()
    for name, weight in state(alone).items():
        torch.testing.assert_close(state(together)[name], weight, atol=2e-6, rtol=1e-4, msg=name)


def test_of_a_probe_what_reads_stays_as_it_is(problem, tmp_path):
    first = problem.begun(None, config(), np.arange(320))
    settings = config(transfer={"strategy": "probe"}, training={"epochs": 1})
    network, _ = problem.train(first, settings, Split(np.arange(128)), work=tmp_path, step="probe")
    before, after = state(first), state(network)
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"joint", "output"}
    with pytest.raises(ConfigError, match="'lora' is of encoders"):
        problem.train(first, config(transfer={"strategy": "lora"}), Split(np.arange(64)), work=tmp_path / "l", step="x")


def token_problem(few):
    """Pairs of cells as samples and drugs."""
    names = [str(name) for name in few.cell_names[:24]]
    values = [(name, drug, float(i % 5 + j)) for i, name in enumerate(names) for j, drug in enumerate(list(SMILES)[:4])]
    pairs = pd.DataFrame(values, columns=["sample", "drug", "value"]).assign(n_replicates=1)
    drugs = Drugs.of_names(list(SMILES))
    return PairProblem.of(few.select(np.arange(24)), Responses(pairs, "AUC"), drugs)


@pytest.mark.parametrize("strategy", ["probe", "full"])
def test_an_encoder_is_frozen_or_learns(strategy, few, base, tmp_path):
    problem = token_problem(few)
    settings = PairConfig(
        network={"model": "encoder", "drug_input": "one_hot", "drug_layers": (8,), "joint_layers": (8,)},
        training={"epochs": 1, "batch_size": 24, "learning_rate": 0.01, "drugs_a_step": None},
        transfer={"strategy": strategy},
    )
    network, _ = problem.train(base, settings, Split(np.arange(96)), work=tmp_path, step="encoder")
    before, after = base.model.bert.state_dict(), network.bert.state_dict()
    same = all(torch.equal(after[name], before[name]) for name in after)
    assert same == (strategy == "probe")
    assert problem.vocabulary is few.vocabulary
    saved = gf.Checkpoint(network, problem.vocabulary, {}, name="pairs")
    saved.save(tmp_path / "saved")
    opened = gf.Checkpoint.from_pretrained(tmp_path / "saved").pair_network
    np.testing.assert_array_equal(problem.ask(opened, np.arange(96)), problem.ask(network, np.arange(96)))
