"""Networks over pairs: each sample and drug once is the same as pair by pair, and what their files hold."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

import geneformer_repro as gf
from geneformer_repro.batching import end_to_end
from geneformer_repro.config import ConfigError
from geneformer_repro.drug_inputs import DrugScale
from geneformer_repro.drugs import Drugs
from geneformer_repro.expression import ExpressionInputs, InputScale
from geneformer_repro.heads import Head
from geneformer_repro.mean_effects import MeanEffects
from geneformer_repro.model import bert_config
from geneformer_repro.network_settings import PairNetworkConfig
from geneformer_repro.pair_networks import PairNetwork
from geneformer_repro.targets import Response

SMILES = {
    "aspirin": "CC(=O)OC1=CC=CC=C1C(=O)O",
    "caffeine": "CN1C=NC2=C1C(=O)N(C(=O)N2C)C",
    "fluorouracil": "C1=C(C(=O)NC(=O)N1)F",
    "erlotinib": "COCCOC1=C(C=C2C(=C1)C(=NC=N2)NC3=CC=CC(=C3)C#C)OCCOC",
    "ethanol": "CCO",
}
DRUGS = Drugs.of_table(pd.DataFrame({"drug": list(SMILES), "smiles": list(SMILES.values())}))
GENES = tuple(f"ENSG{number:011d}" for number in range(12))
TARGET = Response("response", "LN_IC50", mean=1.0, sd=2.0)
PAIRS = torch.tensor([[0, 4], [3, 0], [0, 0], [2, 3], [5, 1], [2, 2], [1, 4]])
NETWORKS = {
    "conv_nn": {"model": "conv_nn"},
    "paccmann": {"model": "paccmann"},
    "tdnn": {"model": "tdnn", "sample_layers": (8, 4), "drug_layers": (8, 4), "joint_layers": (6, 5)},
    "bilinear fingerprint": {
        "model": "conv_nn", "drug_input": "fingerprint", "fusion": "bilinear", "drug_layers": (8,),
    },
    "film one-hot": {"model": "tdnn", "drug_input": "one_hot", "fusion": "film", "sample_layers": (8,)},
    "no drug, as published": {"model": "conv_nn", "drug_input": "none", "residual": False},
    "encoder": {"model": "encoder", "drug_layers": (8,)},
    "encoder with expression": {
        "model": "encoder", "drug_layers": (8,), "expression_path": True, "sample_layers": (8,),
    },
    "encoder, expression, attention": {
        "model": "encoder", "drug_input": "smiles", "fusion": "attention", "expression_path": True,
    },
}  # fmt: skip


def made_inputs(n=6, seed=0):
    values = np.random.default_rng(seed).normal(5, 2, (n, len(GENES)))
    return ExpressionInputs({"expression": values}, {"expression": GENES})


def made_network(settings, vocabulary=None, **options):
    shape = PairNetworkConfig(**settings).filled()
    scale = InputScale.fit(made_inputs()) if shape.reads_expression else None
    encoder = bert_config("tiny", vocabulary) if shape.reads_tokens else None
    drugs = DrugScale.fit(DRUGS, shape.drug_input, at_least=shape.fewest_positions)
    network = PairNetwork(shape, Head((TARGET,)), scale, drugs, encoder=encoder, seed=3, **options).eval()
    with torch.no_grad():
        network.output.weight.normal_(generator=torch.Generator().manual_seed(0))
    return network


def batch_of(network, cells=None):
    """What the network takes of all samples and drugs, and `PAIRS`."""
    batch = {"drugs": torch.from_numpy(network.drugs(DRUGS)), "pairs": PAIRS}
    if network.shape.reads_expression:
        batch["values"] = torch.from_numpy(network.scaled(made_inputs()))
    if network.shape.reads_tokens:
        batch |= end_to_end([cells[i] for i in range(6)], cells.vocabulary).inputs
    naive = torch.linspace(-1, 1, len(PAIRS))
    return batch | ({"naive": naive} if network.shape.residual else {})


def pair_by_pair(network, batch, cells=None):
    """The same pairs, each in a batch of its own."""
    for row, (sample, drug) in enumerate(PAIRS.tolist()):
        alone = {"drugs": batch["drugs"][drug : drug + 1], "pairs": torch.zeros(1, 2, dtype=torch.long)}
        if "values" in batch:
            alone["values"] = batch["values"][sample : sample + 1]
        if "input_ids" in batch:
            alone |= end_to_end([cells[sample]], cells.vocabulary).inputs
        if "naive" in batch:
            alone["naive"] = batch["naive"][row : row + 1]
        yield alone


# Each sample and drug once


@pytest.mark.parametrize("settings", NETWORKS.values(), ids=NETWORKS)
def test_a_batch_of_pairs_is_the_same_as_pair_by_pair_and_so_is_its_gradient(settings, cells):
    network = made_network(settings | {"dropout": 0.0, "joint_norm": False}, cells.vocabulary)
    batch = batch_of(network, cells)
    labels = torch.cat([torch.linspace(-3, 3, len(PAIRS))[:, None], PAIRS, PAIRS[:, :1]], dim=1)
    together = network(**batch, labels=labels)
    alone = [network(**one, labels=labels[i : i + 1]) for i, one in enumerate(pair_by_pair(network, batch, cells))]
    torch.testing.assert_close(together.logits, torch.cat([one.logits for one in alone]), atol=2e-6, rtol=1e-5)
    learning = [weight for weight in network.parameters() if weight.requires_grad]
    of_alone = torch.autograd.grad(sum(one.loss for one in alone) / len(PAIRS), learning, allow_unused=True)
    of_batch = torch.autograd.grad(together.loss, learning, allow_unused=True)
    for name, given, expected in zip(dict(network.named_parameters()), of_batch, of_alone, strict=True):
        assert (given is None) == (expected is None), name
        if given is not None:
            torch.testing.assert_close(given, expected, atol=2e-5, rtol=1e-4, msg=name)


def test_contextual_attention_is_what_is_written_down():
    network = made_network({"model": "paccmann"})
    genes = torch.from_numpy(network.scaled(made_inputs()))
    characters = torch.from_numpy(network.drugs(DRUGS))
    side = network.of_drugs(characters)
    expected = []
    for sample, drug in PAIRS.tolist():
        for attention, channel in zip(network.attentions, side.channels, strict=True):
            there = characters[drug] > 0
            gated = genes[sample] * attention.gate(genes[sample]).softmax(-1)
            for head in range(4):
                rows = slice(head * 64, (head + 1) * 64)
                asked = attention.context.weight[rows] @ gated + attention.context.bias[rows]
                keys = channel[drug, there] @ attention.character.weight[rows].T
                share = ((asked + keys).tanh() @ attention.score_HA[head]).softmax(0)
                expected.append(share @ channel[drug, there])
    joined = network._attended(network.of_samples(genes), side, *PAIRS.unbind(1))
    torch.testing.assert_close(joined.flatten(), torch.cat(expected), atol=1e-6, rtol=1e-5)


def test_padding_changes_nothing_of_attention_not_even_what_a_batch_is_normalised_by():
    network = made_network({"model": "paccmann", "dropout": 0.0}).train()
    batch = batch_of(network)
    padded = batch | {"drugs": torch.nn.functional.pad(batch["drugs"], (0, 9))}
    torch.testing.assert_close(network(**padded).logits, network(**batch).logits, atol=1e-6, rtol=1e-5)


def test_a_single_pair_can_be_trained_on():
    network = made_network({"model": "conv_nn"}).train()
    one = next(pair_by_pair(network, batch_of(network)))
    assert network(**one).logits.isfinite().all()


def test_a_network_of_residuals_begins_as_the_mean_effects(cells):
    for settings in NETWORKS.values():
        network = made_network(settings, cells.vocabulary)
        network.replace_output(network.head)
        batch = batch_of(network, cells)
        said = network.head.meaning(network(**batch).logits)[:, 0]
        if network.shape.residual:
            np.testing.assert_allclose(said.detach(), batch["naive"], atol=1e-6)
        else:
            assert said.std() > 0


# As published


def test_sizes_are_those_of_the_text_where_nothing_is_said():
    paccmann, tdnn, conv = (PairNetworkConfig(model=name).filled() for name in ("paccmann", "tdnn", "conv_nn"))
    assert (paccmann.embedding_size, paccmann.filters, paccmann.kernels) == (16, (64, 64, 64), (3, 5, 11))
    assert (paccmann.joint_layers, paccmann.fusion_size, paccmann.dropout) == ((512, 128, 64, 16), 64, 0.3)
    assert (tdnn.sample_layers, tdnn.drug_layers) == ((1000, 500, 250), (1000, 500, 250))
    assert (tdnn.joint_layers, tdnn.dropout, tdnn.drug_input) == ((250, 125, 60), 0.0, "descriptors")
    assert (conv.sample_layers, conv.filters, conv.kernels, conv.pool) == ((32,), (64, 64, 64), (3, 5, 7), 4)
    assert (conv.joint_layers, conv.dropout) == ((128, 64), 0.1)
    assert made_network({"model": "paccmann"}).joint[0].weight.shape == (832,)  # 4 · 16 + 3 · 4 · 64, as in the paper
    of_188 = DrugScale.fit(DRUGS, "smiles", at_least=188)
    assert PairNetwork(conv, Head((TARGET,)), InputScale.fit(made_inputs()), of_188).characters.width == 2 * 64


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        pytest.param({"model": "tdnn", "fusion": "attention"}, "unless drug_input is 'smiles'", id="attention to bits"),
        pytest.param({"drug_input": "none", "fusion": "film"}, "'concatenation' where", id="film by nothing"),
        pytest.param({"model": "conv_nn", "filters": (8,)}, "as many as kernels", id="filters without kernels"),
        pytest.param({"model": "tdnn", "expression_path": True}, "of model 'encoder'", id="path beside itself"),
        pytest.param({"dropout": 1.0}, "at least 0 and below 1", id="all dropped"),
        pytest.param({"joint_layers": (0,)}, "at least 1", id="no width"),
    ],
)
def test_what_cannot_be_is_refused(settings, match):
    with pytest.raises(ConfigError, match=match):
        PairNetworkConfig(**settings)


# What is read of drugs


def test_characters_are_those_of_the_training_drugs_and_a_longer_smiles_is_cut(caplog):
    scale = DrugScale.fit(DRUGS.select([0, 4]), "smiles")
    with caplog.at_level("WARNING", logger="geneformer_repro"):
        encoded = scale(DRUGS)
    assert encoded.shape == (5, max(len(DRUGS.smiles[i]) for i in (0, 4)))
    assert "of 5 SMILES are longer" in caplog.text
    place = DRUGS.smiles[2].index("F")  # no other drug has fluorine
    assert encoded[2, place] == 1
    assert (encoded[4] > 0).sum() == len(DRUGS.smiles[4])


@pytest.mark.parametrize("kind", ["descriptors", "mordred"])
def test_descriptors_are_standardised_by_training_drugs_alone(kind):
    scale = DrugScale.fit(DRUGS.select([0, 1, 3]), kind)
    scaled = scale(DRUGS.select([0, 1, 3]))
    assert scaled.shape == (3, {"descriptors": 217, "mordred": 1613}[kind])
    assert np.abs(scaled[:, scale.factor_F > 0].mean(0)).max() < 1e-3
    assert np.abs(scale(DRUGS)).max() <= 10


def test_a_vectors_missing_value_is_the_mean():
    vectors = pd.DataFrame({"a": [1.0, 3.0, 5.0], "b": [2.0, np.nan, 4.0]}, index=["aspirin", "caffeine", "ethanol"])
    of_vectors = DrugScale.fit(DRUGS.select([0, 1]), "vectors", vectors=vectors)
    np.testing.assert_allclose(of_vectors(DRUGS.select([0, 1, 4]), vectors), [[-1, 0], [1, 0], [3, 0]], atol=1e-6)


def test_columns_of_vectors_may_be_numbered():
    numbered = pd.DataFrame([[1.0, 2.0], [3.0, 5.0]], index=["aspirin", "caffeine"])
    scale = DrugScale.fit(DRUGS.select([0, 1]), "vectors", vectors=numbered)
    np.testing.assert_allclose(scale(DRUGS.select([0, 1]), numbered), [[-1, -1], [1, 1]], atol=1e-6)


def test_one_hot_is_by_identity_and_nothing_of_a_new_drug():
    scale = DrugScale.fit(DRUGS.select([4, 0]), "one_hot")
    again = Drugs.of_table(pd.DataFrame({"drug": ["alcohol", "caffeine"], "smiles": ["OCC", SMILES["caffeine"]]}))
    np.testing.assert_array_equal(scale(again).sum(1), [1, 0])


@pytest.mark.parametrize(
    ("kind", "vectors", "match"),
    [
        ("smiles", None, "have no SMILES"),
        ("fingerprint", None, "have no SMILES"),
        ("descriptors", None, "have no SMILES"),
        ("vectors", None, "needs a table of vectors"),
        ("vectors", pd.DataFrame({"a": [0.0]}, index=["y"]), "1 drugs have no vector .first: 'x'"),
    ],
)
def test_what_is_not_known_of_a_drug_is_said(kind, vectors, match):
    with pytest.raises(gf.InputError, match=match):
        DrugScale.fit(Drugs.of_names(["x"]), kind, vectors=vectors)


def test_vectors_that_lack_a_column_are_refused():
    vectors = pd.DataFrame({"a": [1.0, 3.0], "b": [2.0, 5.0]}, index=["aspirin", "caffeine"])
    scale = DrugScale.fit(DRUGS.select([0, 1]), "vectors", vectors=vectors)
    with pytest.raises(gf.InputError, match="reads 1 vectors that are not there"):
        scale(DRUGS.select([0]), vectors[["a"]])
    with pytest.raises(gf.InputError, match="None of the 2 vectors of 1 training drugs varies"):
        DrugScale.fit(DRUGS.select([0]), "vectors", vectors=vectors)


# Files


def made_checkpoint(settings, vocabulary):
    network = made_network(settings, vocabulary)
    if network.shape.residual:
        network.effects = MeanEffects.fit(np.arange(3.0), np.array(["a", "b", "a"]), np.array(["x", "x", "y"]))
    network.learned = {"samples": ["a", "b"], "drugs": ["x", "y"]}
    of_network = vocabulary if network.shape.reads_tokens else network.scale.vocabulary
    return gf.Checkpoint(network, of_network, {"step": "response"}, name="response")


@pytest.mark.parametrize("settings", NETWORKS.values(), ids=NETWORKS)
def test_a_checkpoint_opens_as_it_was_saved(settings, cells, tmp_path):
    checkpoint = made_checkpoint(settings, cells.vocabulary)
    checkpoint.save(tmp_path / "saved")
    again = gf.Checkpoint.from_pretrained(tmp_path / "saved")
    assert again.fingerprint == checkpoint.fingerprint
    network, opened = checkpoint.pair_network, again.pair_network
    assert (opened.learned, opened.head, opened.shape) == (network.learned, network.head, network.shape)
    batch = batch_of(network, cells)
    theirs = batch_of(opened, cells)
    torch.testing.assert_close(opened(**theirs).logits, network(**batch).logits, rtol=0, atol=0)
    assert "response" in repr(again)


def changed(checkpoint, change):
    network = checkpoint.pair_network
    if change == "effects":
        network.effects = dataclasses.replace(network.effects, overall=0.5)
    if change == "drug scale":
        network.drugs = dataclasses.replace(network.drugs, n_positions=network.drugs.n_positions + 1)
    if change == "gene scale":
        network.scale = dataclasses.replace(network.scale, mean_I=network.scale.mean_I + 1)
    if change == "measure":
        network.head = Head((dataclasses.replace(TARGET, measure="AUC"),))
    if change == "weight":
        with torch.no_grad():
            network.output.weight[0, 0] += 1
    return checkpoint


def test_a_fingerprint_covers_all_that_decides_a_forecast(cells):
    def fingerprint(change=None):
        return changed(made_checkpoint(NETWORKS["conv_nn"], cells.vocabulary), change).fingerprint

    seen = [fingerprint(), *map(fingerprint, ["effects", "drug scale", "gene scale", "measure", "weight"])]
    assert len(set(seen)) == len(seen)
    assert fingerprint() == seen[0]


def damaged(folder: Path, how: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    match how:
        case "cut off":
            (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:500])
            return
        case "no head":
            (folder / "head.json").unlink()
        case "no effects":
            config["effects"] = None
        case "wrong effects":
            config["effects"]["effects"]["drug"]["differences"] = [1.0]
        case "another format":
            config["format"] = "geneformer_repro/pair_network/9"
        case "other genes":
            config["genes"][0].pop()
        case "other drugs":
            config["drugs"]["kind"] = "fingerprint"
        case "not finite":
            weights["output.bias"][0] = torch.nan
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("how", "match"),
    [
        ("cut off", "is damaged"), ("no head", "no head.json"), ("no effects", "is damaged"),
        ("wrong effects", "is damaged"), ("another format", "expected format"), ("other genes", "is damaged"),
        ("other drugs", "is damaged"), ("not finite", "not finite .first: output.bias"),
    ],
)  # fmt: skip
def test_a_damaged_network_is_refused(how, match, cells, tmp_path):
    made_checkpoint(NETWORKS["conv_nn"], cells.vocabulary).save(tmp_path / "saved")
    damaged(tmp_path / "saved", how)
    with pytest.raises(gf.InputError, match=match):
        gf.Checkpoint.from_pretrained(tmp_path / "saved")


def test_networks_are_not_taken_for_each_other(cells, checkpoint):
    of_pairs = made_checkpoint(NETWORKS["conv_nn"], cells.vocabulary)
    with pytest.raises(gf.InputError, match="response is a network over pairs"):
        gf.embed(of_pairs, cells)
    with pytest.raises(gf.InputError, match="tiny is no network over pairs"):
        checkpoint.pair_network  # noqa: B018
