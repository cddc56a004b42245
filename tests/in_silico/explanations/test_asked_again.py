"""Samples, pairs and patients are asked again as cells are: what curves say a slow loop says, and models forget."""

import numpy as np
import pandas as pd
import pytest
import torch
from test_explained_pairs import DRUGS, LINES, expression
from test_explained_patients import few, outputs_without, run_of  # noqa: F401  # a fixture
from test_explained_samples import GENES, checkpoint_of, network_of, samples
from test_pair_networks import NETWORKS, made_network

import geneformer_repro as gf
from geneformer_repro.bags import BagNetwork
from geneformer_repro.in_silico.explanations.again import Taking
from geneformer_repro.in_silico.explanations.again_patients import PatientModel
from geneformer_repro.in_silico.explanations.agreement import MEAN_CHARACTER, OF_CHARACTERS, PADDING, agreement
from geneformer_repro.in_silico.explanations.families import again_of

NOTHING_ELSE = {"drugs": None, "responses": None, "patients": None, "reading": {}}


def asked(again, taking, state, altered):
    return again.answers(taking, state, iter([(row, np.array(places, dtype=np.int64)) for row, places in altered]), int)


def same_rows(why, table):
    """Whether another table has the rows of an explanation, with their values."""
    keys = ["cell", "gene", "place", "method", "state"]
    both = why.table.merge(table, on=keys, suffixes=("", "_again"))
    assert len(both) == len(why.table) == len(table)
    np.testing.assert_allclose(both["value_again"], both["value"], atol=2e-6)


# Samples


@pytest.fixture(scope="module")
def labelled():
    data = samples(24)
    rng = np.random.default_rng(3)
    data.obs["PFI.time"], data.obs["PFI"] = rng.exponential(3, 24), (rng.random(24) < 0.7).astype(float)
    data.obs["subtype"] = rng.choice(["basal", "her2", "luminal"], 24)
    return data


@pytest.fixture(scope="module")
def network():
    return network_of(layers=2)


@pytest.fixture(scope="module")
def survival(network, labelled):
    methods = ["integrated_gradients", "median"]
    return gf.explain(
        checkpoint_of(network), labelled, target="PFI", methods=methods, reading={"cohort": "cohort"}, max_cells=12
    )


@pytest.fixture(scope="module")
def check(survival, network, labelled):
    return gf.evaluate_explanation(
        survival, checkpoint_of(network), labelled, reading={"cohort": "cohort"}, max_cells=8
    )


def test_samples_asked_again_say_the_same(survival, network, labelled):
    chosen = set(survival.table["cell"])
    again = again_of(
        survival, checkpoint_of(network), labelled, lambda names: [name for name in names if name in chosen],
        **NOTHING_ELSE | {"reading": {"cohort": "cohort"}},
    )  # fmt: skip
    same_rows(survival, again.explained(checkpoint_of(network), int).table)


@pytest.mark.parametrize("operator", ["median", "mean"])
def test_a_gene_that_is_taken_from_a_sample_has_the_median_of_its_cohort_or_the_mean(
    survival, network, labelled, operator
):
    again = again_of(
        survival, checkpoint_of(network), labelled, lambda names: list(names[:5]),
        **NOTHING_ELSE | {"reading": {"cohort": "cohort"}},
    )  # fmt: skip
    scaled = network.scale.columns("expression")
    values = again._explained.samples.scaled_NI
    rows = np.arange(24) % 2 == 3 % 2
    expected = values[3].copy()
    for gene in (1, 4):
        expected[scaled.start + gene] = np.median(values[rows, scaled.start + gene]) if operator == "median" else 0
    with torch.no_grad():
        outputs = network(torch.from_numpy(np.stack([values[3], expected])))[:, -1].numpy()
    found = asked(again, Taking(operator, "removal"), 0, [(3, []), (3, [1, 4])])
    np.testing.assert_allclose(found, outputs, atol=1e-5)


def test_samples_have_all_checks(check):
    assert set(zip(check.points["operator"], check.points["way"], strict=True)) == {
        ("median", "removal"), ("mean", "removal"), ("median", "insertion"), ("mean", "insertion")
    }  # fmt: skip
    assert check.sanity["model"].unique().tolist() == ["head", "down to layer 2", "random weights", "permuted labels"]
    assert "distance from the mean" in set(check.points["order"])
    assert set(check.removal["n_cells"]) == {8}
    assert check.removal["p_value"].notna().any()
    assert (check.sanity["n_cells"] == 8).all()


def test_a_way_is_judged_by_another_value_than_the_one_it_begins_at(check):
    own = check.removal[check.removal["own_operator"]]
    pairs = {(order.partition(",")[0], operator) for order, operator in zip(own["order"], own["operator"], strict=True)}
    assert pairs == {("median", "median"), ("integrated_gradients", "mean")}


def test_insertion_begins_where_all_genes_have_the_other_value(check, survival, network, labelled):
    points = check.points.query("way == 'insertion' and operator == 'mean' and share == 0")
    start = network(torch.zeros(1, len(network.scale)))[0, -1].item()
    np.testing.assert_allclose(points["value"], start, atol=1e-5)


def test_ways_from_the_median_and_medians_are_no_independent_witnesses(network, labelled):
    methods = ["integrated_gradients", "median", "surrogate"]
    why = gf.explain(checkpoint_of(network), labelled, target="PFI", methods=methods, baseline="median", max_cells=2)
    table = agreement(why)
    assert table["same_operator"].all()


def test_classes_of_samples_and_their_permuted_labels(network, labelled):
    why = gf.explain(checkpoint_of(network), labelled, target="subtype", state=["basal", "her2"], max_cells=6)
    check = gf.evaluate_explanation(why, checkpoint_of(network), labelled, max_cells=3, removal=False, permuted=True)
    assert set(check.sanity["state"]) == {"basal", "her2"}
    bare = labelled.copy()
    del bare.obs["subtype"]
    with pytest.raises(gf.InputError, match="an expression network, 'subtype', in obs"):
        gf.evaluate_explanation(why, checkpoint_of(network), bare, permuted=True, removal=False)


def test_samples_that_were_not_explained_with_these_are_named(survival, network):
    others = samples(24)
    others.obs_names = [f"other {i}" for i in range(24)]
    with pytest.raises(gf.InputError, match="cells= lacks 12 of the 12 samples"):
        gf.evaluate_explanation(survival, checkpoint_of(network), others, reading={"cohort": "cohort"})


def test_sets_of_genes_are_explained_by_models_that_forgot_too(network, labelled):
    sets = {f"set {i}": list(GENES[i : i + 3]) for i in range(10)}
    why = gf.explain(checkpoint_of(network), labelled, target="PFI", methods=["median"], sets=sets, max_cells=3)
    check = gf.evaluate_explanation(why, checkpoint_of(network), labelled, max_cells=3)
    assert check.removal.empty
    assert (check.sanity["n_cells"] == 3).all()


# Pairs


def responses_of():
    rng = np.random.default_rng(5)
    rows = [{"sample": line, "drug": drug, "ln_ic50": rng.normal()} for line in LINES for drug in DRUGS.names]
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def response():
    network = made_network(NETWORKS["conv_nn"])
    return gf.Checkpoint(network, network.scale.vocabulary, {"step": "finetune_response"}, name="response")


@pytest.fixture(scope="module")
def of_pairs(response):
    methods = ["integrated_gradients", "median", "mask"]
    return gf.explain(response, expression(), drugs=DRUGS, state=["aspirin", "caffeine"], methods=methods)


def test_pairs_asked_again_say_the_same(of_pairs, response):
    again = again_of(of_pairs, response, expression(), lambda names: list(LINES), **NOTHING_ELSE | {"drugs": DRUGS})
    same_rows(of_pairs, super(type(again), again).explained(response, int).table)


def test_genes_and_characters_are_taken_from_pairs_as_a_slow_loop_does(of_pairs, response):
    again = again_of(of_pairs, response, expression(), lambda names: list(LINES), **NOTHING_ELSE | {"drugs": DRUGS})
    table, (aspirin, caffeine) = of_pairs.table, ("aspirin", "caffeine")
    assert list(again.states) == [aspirin, caffeine]
    before = table[(table["cell"] == LINES[1])].groupby("state")["before"].first()
    lost = table[(table["cell"] == LINES[1]) & (table["state"] == caffeine)]
    by_median = lost[lost["method"] == "median"]["value"].to_numpy()
    genes = asked(again, Taking("median", "removal"), 1, [(1, []), (1, [0]), (1, [7])])
    np.testing.assert_allclose(before[caffeine] - genes, [0, by_median[0], by_median[7]], atol=1e-5)
    by_mask = lost[lost["method"] == "mask"]["value"].to_numpy()
    taking = Taking(MEAN_CHARACTER, "removal", of_characters=True)
    characters = asked(again, taking, 1, [(1, []), (1, [0]), (1, [5])])
    np.testing.assert_allclose(before[caffeine] - characters, [0, by_mask[0], by_mask[5]], atol=1e-5)


def test_pairs_have_all_checks_of_genes_and_of_characters(of_pairs, response):
    check = gf.evaluate_explanation(of_pairs, response, expression(), drugs=DRUGS, responses=responses_of())
    assert set(check.points["operator"]) == {"median", "mean", MEAN_CHARACTER, PADDING}
    of_characters = check.points["operator"].isin([MEAN_CHARACTER, PADDING])
    named = check.points["order"].str.contains(OF_CHARACTERS)
    assert not (named & ~of_characters).any()
    assert set(check.points.loc[of_characters & ~named, "order"]) == {"place", "random"}
    assert check.sanity["model"].unique().tolist() == [
        "output", "down to layers of both", "random weights", "permuted labels",
    ]  # fmt: skip
    assert {"median", "mask" + OF_CHARACTERS, "integrated_gradients" + OF_CHARACTERS} <= set(check.sanity["method"])
    assert set(check.sanity["state"]) == {"aspirin", "caffeine"}
    own = check.removal[check.removal["own_operator"]]
    assert ("mask of characters, largest first", MEAN_CHARACTER) in set(zip(own["order"], own["operator"], strict=True))


def test_permuted_responses_need_responses(of_pairs, response):
    with pytest.raises(gf.InputError, match=r"responses \(responses=\)"):
        gf.evaluate_explanation(of_pairs, response, expression(), drugs=DRUGS, removal=False, permuted=True)


# Patients


@pytest.fixture
def of_patients(tmp_path, checkpoint, few):  # noqa: F811
    run = run_of(tmp_path / "run", checkpoint)
    return run, gf.explain(checkpoint, few, patients=run, target="event", methods=["gradient_input"])


def test_genes_are_taken_from_all_cells_of_a_patient(of_patients, checkpoint, few):  # noqa: F811
    run, why = of_patients
    again = again_of(why, checkpoint, few, list, **NOTHING_ELSE | {"patients": run})
    same_rows(why, again.explained(PatientModel(checkpoint, BagNetwork.open(run)), int).table)
    units = again.units(1, 0, Taking("hide", "removal"))
    often = int(units.simple["detection"].argmax())
    found = asked(again, Taking("hide", "removal"), 0, [(1, []), (1, [often])])
    expected = [
        outputs_without(run, checkpoint, few, again.names[1], gene, shift=False)[2].item()
        for gene in (None, units.names[often])
    ]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_patients_have_all_checks(of_patients, checkpoint, few):  # noqa: F811
    run, why = of_patients
    check = gf.evaluate_explanation(why, checkpoint, few, patients=run, max_cells=2)
    assert set(check.points["way"]) == {"removal", "insertion"}
    assert {"detection", "random"} < set(check.points["order"])
    assert check.sanity["model"].unique().tolist() == [
        "network of patients", "down to block 2", "down to block 1", "random weights",
    ]  # fmt: skip
    assert (check.sanity["n_cells"] == 2).all()


def test_of_patients_the_run_must_be_named_again(of_patients, checkpoint, few):  # noqa: F811
    _, why = of_patients
    with pytest.raises(gf.InputError, match="The explanation is of patients: name the run"):
        gf.evaluate_explanation(why, checkpoint, few)
    with pytest.raises(gf.InputError, match="permuted= names a checkpoint"):
        gf.evaluate_explanation(why, checkpoint, few, patients=of_patients[0], removal=False, permuted=checkpoint)
