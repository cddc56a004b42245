import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import geneformer_repro as gf
from geneformer_repro.config import ConfigError
from geneformer_repro.expression import ExpressionInputs, ExpressionNetwork, InputScale, dealt_outputs, permutation_use
from geneformer_repro.heads import Head
from geneformer_repro.network_settings import ExpressionConfig
from geneformer_repro.targets import Classes, Number

GENES = tuple(f"ENSG{number:011d}" for number in range(8))
SYMBOLS = tuple(f"GENE{number}" for number in range(8))
HEAD = Head((Classes("subtype", ("basal", "luminal")), Number("grade", mean=2.0, sd=0.5)))


def made_inputs(n=40, *, seed=0, covariates=False, embedding=False):
    rng = np.random.default_rng(seed)
    values = {"expression": rng.normal(5, 1 + np.arange(8.0), (n, 8))}
    names = {"expression": GENES}
    if embedding:
        values["embedding"], names["embedding"] = rng.normal(size=(n, 3)), ("e0", "e1", "e2")
    if covariates:
        values["covariates"], names["covariates"] = rng.normal(60, 9, (n, 2)), ("age", "stage")
    return ExpressionInputs(values, names, SYMBOLS)


@pytest.fixture
def inputs():
    return made_inputs(covariates=True, embedding=True)


@pytest.fixture
def network(inputs):
    config = ExpressionConfig(layers=3, width=16, batch_norm=True, n_genes=6, skip=("covariates", "expression"))
    made = ExpressionNetwork(config, HEAD, InputScale.fit(inputs, n_genes=6), seed=3).eval()
    with torch.no_grad():
        for path in made.skip.values():
            path.weight.normal_(generator=torch.Generator().manual_seed(0))
    return made


@pytest.fixture
def checkpoint_of(network):
    return gf.Checkpoint(network, network.scale.vocabulary, {"step": "expression"}, name="pan-cancer")


# What is fitted on training samples


def test_the_most_variable_genes_are_read_and_the_first_of_many_are_those_of_few(inputs):
    scale = InputScale.fit(inputs)
    assert scale.names["expression"][:2] == (GENES[7], GENES[6])
    assert scale.begins_with(InputScale.fit(inputs, n_genes=3))
    np.testing.assert_array_equal(scale(inputs)[:, :8], scale.first(3)(inputs))
    assert scale.first(100).names == scale.names == scale.first(None).names
    assert not scale.begins_with(InputScale.fit(made_inputs(seed=1, covariates=True, embedding=True), n_genes=3))


def test_training_samples_have_mean_0_and_spread_1():
    scaled = InputScale.fit(made_inputs(200))(made_inputs(200))
    np.testing.assert_allclose(scaled.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(scaled.std(0), 1, atol=1e-4)


def test_another_sample_changes_nothing_of_how_one_is_scaled(inputs, network):
    alone = network.outputs(inputs.select(np.array([5])))
    np.testing.assert_allclose(network.outputs(inputs)[5], alone[0], rtol=1e-4, atol=1e-5)


def test_one_value_far_out_leaves_the_other_samples_their_spread():
    values = np.random.default_rng(0).normal(size=(500, 8))
    values[3, 2] = 17036.4  # as in z-scores of a gene that is nearly silent
    inputs = ExpressionInputs({"expression": values}, {"expression": GENES})
    scale = InputScale.fit(inputs)
    place = scale.names["expression"].index(GENES[2])
    assert 0.8 < np.delete(scale(inputs)[:, place], 3).std() < 1.1
    assert scale(inputs)[3, place] == scale.clip == 10


def test_a_gene_or_value_that_is_missing_counts_as_the_training_mean(inputs, network, caplog):
    scaled = network.scale(inputs)
    scaled[:, network.scale.names["expression"].index(GENES[7]) + 5] = 0
    with caplog.at_level(logging.WARNING):
        fewer = ExpressionInputs(
            inputs.values | {"expression": inputs.values["expression"][:, :7]}, inputs.names | {"expression": GENES[:7]}
        )
        np.testing.assert_array_equal(network.scale(fewer), scaled)
    assert "1 of the 6 genes that the network reads are missing" in caplog.text
    blank = inputs.values["expression"].copy()
    blank[:, 7] = np.nan
    np.testing.assert_array_equal(network.scale(replace(inputs, values=inputs.values | {"expression": blank})), scaled)


def test_a_column_that_never_varied_in_training_never_counts(inputs):
    same = inputs.values["covariates"].copy()
    same[:, 1] = 1
    scale = InputScale.fit(replace(inputs, values=inputs.values | {"covariates": same}))
    assert not scale(inputs)[:, 1].any()


@pytest.mark.parametrize("names", [SYMBOLS, tuple(f"{gene}.7" for gene in GENES)], ids=["symbols", "versioned ids"])
def test_genes_are_known_by_id_and_by_name_in_any_order(inputs, network, names):
    order = np.random.default_rng(1).permutation(8)
    values = {**inputs.values, "expression": inputs.values["expression"][:, order]}
    named = ExpressionInputs(values, inputs.names | {"expression": tuple(names[i] for i in order)})
    np.testing.assert_array_equal(network.outputs(named), network.outputs(inputs))


def test_genes_are_known_by_the_names_beside_ids_of_another_kind(inputs, network):
    named = ExpressionInputs(inputs.values, inputs.names | {"expression": tuple("abcdefgh")}, SYMBOLS)
    np.testing.assert_array_equal(network.outputs(named), network.outputs(inputs))


# The network


def test_blocks_go_where_they_are_said_to(inputs):
    scale = InputScale.fit(inputs)
    network = ExpressionNetwork(ExpressionConfig(width=4, skip=("covariates",)), HEAD, scale).eval()
    assert network.layers[0].in_features == 8 + 3
    with torch.no_grad():
        network.skip["covariates"].weight[:] = 1
        network.classifier.weight.zero_()
    np.testing.assert_allclose(network.outputs(inputs)[:, 0], scale(inputs)[:, :2].sum(1), rtol=1e-5)


def test_random_weights_follow_from_the_seed_alone(inputs):
    scale = InputScale.fit(made_inputs())
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    first, again, other = (ExpressionNetwork(ExpressionConfig(), HEAD, scale, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(first.layers[0].weight, again.layers[0].weight)
    assert not torch.equal(first.layers[0].weight, other.layers[0].weight)


def test_permutation_tells_which_block_is_used(inputs):
    network = ExpressionNetwork(ExpressionConfig(width=4, skip=("covariates",)), HEAD, InputScale.fit(inputs)).eval()
    with torch.no_grad():
        network.skip["covariates"].weight[:] = 1
        network.classifier.weight.zero_()
    wanted = network.outputs(inputs)[:, 0]

    def score(outputs):
        return float(np.corrcoef(outputs[:, 0], wanted)[0, 1])

    use = permutation_use(network, inputs, score, draws=5).set_index("block")
    assert use["score"].tolist() == pytest.approx([1, 1, 1])
    assert use.loc[["embedding", "expression"], "fall"].tolist() == [0, 0]
    assert 0.5 < use.loc["covariates", "low"] <= use.loc["covariates", "fall"] <= use.loc["covariates", "high"] < 1.5
    assert use.equals(permutation_use(network, inputs, score, draws=5).set_index("block"))


def test_rows_are_dealt_out_among_samples_that_are_compared_alone(inputs):
    network = ExpressionNetwork(ExpressionConfig(width=4, skip=("covariates",)), HEAD, InputScale.fit(inputs)).eval()
    with torch.no_grad():
        network.skip["covariates"].weight[:] = 1
        network.classifier.weight.zero_()
    within_N = np.arange(len(inputs)) % 3
    given, dealt = network.outputs(inputs), dealt_outputs(network, inputs, within_N=within_N, draws=2)
    assert dealt["covariates"].shape == (2, *given.shape)
    assert not np.array_equal(dealt["covariates"][0], given)
    for number in range(3):
        rows = within_N == number
        np.testing.assert_array_equal(np.sort(dealt["covariates"][0][rows, 0]), np.sort(given[rows, 0]))


def test_a_straight_path_for_clinical_columns_begins_at_nothing(inputs):
    without = {block: values for block, values in inputs.values.items() if block != "covariates"}
    alone = replace(inputs, values=without, names={block: inputs.names[block] for block in without})
    network = ExpressionNetwork(ExpressionConfig(width=4), HEAD, InputScale.fit(alone)).eval()
    wider = network.with_covariates(inputs.names["covariates"])
    assert wider.config.skip == ("covariates",)
    np.testing.assert_allclose(wider.outputs(inputs), network.outputs(alone), atol=1e-6)  # last bits go by the CPU
    wider.scale = wider.scale.refitted(inputs)
    assert wider.scale.factor_I[0] > 0
    np.testing.assert_allclose(wider.outputs(inputs), network.outputs(alone), atol=1e-6)


# Its files


def test_a_saved_network_is_the_same_network(checkpoint_of, inputs, tmp_path):
    digests = np.unique(checkpoint_of.model.digests(inputs))
    replace(checkpoint_of, seen=digests).save(tmp_path / "pan")
    opened = gf.Checkpoint.from_pretrained(tmp_path / "pan")
    assert opened.fingerprint == checkpoint_of.fingerprint
    assert opened.head == HEAD
    assert opened.provenance["step"] == "expression"
    np.testing.assert_array_equal(opened.seen, digests)
    np.testing.assert_array_equal(opened.expression_network.outputs(inputs), checkpoint_of.model.outputs(inputs))
    assert repr(opened).startswith(
        "Checkpoint(classifier of 'subtype' (2 classes), 'grade' (a number), "
        "ExpressionNetwork(3 layers of 16, 11 columns), "
    )
    assert json.loads((tmp_path / "pan/config.json").read_text()) == {
        "model_type": "expression_network",
        "format": "geneformer_repro/expression_network/1",
        "blocks": {"covariates": ["age", "stage"], "embedding": ["e0", "e1", "e2"]},
        "network": {
            "layers": 3, "width": 16, "activation": "relu", "dropout": 0.3, "batch_norm": True, "n_genes": 6,
            "clip": 10.0, "skip": ["covariates", "expression"],
        },
    }  # fmt: skip


@pytest.mark.parametrize("part", ["weights", "scale", "setting", "running mean"])
def test_a_fingerprint_covers_all_that_decides(checkpoint_of, inputs, part):
    before, network = checkpoint_of.fingerprint, checkpoint_of.model
    if part == "weights":
        network.classifier.bias.data[0] += 1
    elif part == "running mean":
        network.norms[0].running_mean[0] += 1
    elif part == "scale":
        network.scale = replace(network.scale, mean_I=network.scale.mean_I + 1)
    else:
        network.config = replace(network.config, activation="tanh")
    assert checkpoint_of.fingerprint != before


def test_a_digest_is_of_what_is_read_of_a_sample(network, inputs):
    order = [3, 1, 2, 0, 4, 5, 6, 7]
    values = inputs.values["expression"]
    turned = replace(
        inputs, values=inputs.values | {"expression": values[:, order]},
        names=inputs.names | {"expression": tuple(GENES[i] for i in order)},
    )  # fmt: skip
    digests = network.digests(inputs)
    assert digests.dtype == np.uint64
    assert len(set(digests)) == len(inputs)
    np.testing.assert_array_equal(network.digests(turned), digests)
    values[0, 7] += 1
    assert network.digests(inputs)[0] != digests[0]


def test_what_wants_an_encoder_refuses_an_expression_network_and_the_reverse(
    checkpoint_of, checkpoint, cells, tmp_path
):
    checkpoint_of.save(tmp_path / "pan")
    network = gf.Checkpoint.from_pretrained(tmp_path / "pan")
    for wanted in (
        lambda: gf.embed(network, cells),
        lambda: gf.predict(network, cells),
        lambda: gf.perturb(network, cells, gf.Deletion("each"), out=tmp_path / "screen.parquet"),
        lambda: gf.finetune(network, cells, gf.FinetuneConfig(target="cell_type"), out=tmp_path / "out"),
        lambda: gf.pretrain(cells, gf.PretrainConfig(), out=tmp_path / "out", base=network),
        lambda: gf.finetune_genes(network, cells, {"GENE1": "a"}, out=tmp_path / "out"),
        lambda: network.token_model,
    ):
        with pytest.raises(gf.InputError, match="pan is an expression network"):
            wanted()
    with pytest.raises(gf.InputError, match="tiny is an encoder, which reads tokens"):
        _ = checkpoint.expression_network


# Bad input


def test_inputs_that_are_none_are_refused(inputs):
    expression = inputs.values["expression"]
    with pytest.raises(gf.InputError, match=r"have a block 'expression'.* found values of \['genes'\]"):
        ExpressionInputs({"genes": expression}, {"genes": GENES})
    with pytest.raises(gf.InputError, match=r"'expression': expected 40 samples × 7 names, found \(40, 8\)"):
        ExpressionInputs({"expression": expression}, {"expression": GENES[:7]})
    with pytest.raises(gf.InputError, match=f"{GENES[0]!r} stands twice"):
        ExpressionInputs({"expression": expression}, {"expression": (*GENES[:7], GENES[0])})
    with pytest.raises(gf.InputError, match=f"sample 2, {GENES[1]!r} is inf"):
        replace(inputs, values=inputs.values | {"expression": np.where(expression == expression[2, 1], np.inf, 0)})


def test_samples_that_a_network_cannot_read_are_refused(inputs, network):
    def with_genes(*names):
        return replace(inputs, names=inputs.names | {"expression": names}, gene_names=())

    with pytest.raises(gf.InputError, match="None of the 6 genes that the network reads is among the 8 given"):
        network.outputs(with_genes(*"abcdefgh"))
    with pytest.raises(gf.InputError, match=f"{GENES[7]!r} and 'GENE7' are both gene"):
        network.outputs(with_genes(*GENES[1:], "GENE7"))
    with pytest.raises(gf.InputError, match=r"there is no 'covariates'"):
        network.outputs(made_inputs(embedding=True))
    with pytest.raises(gf.InputError, match=r"1 columns that are not there \(first: 'stage'"):
        network.outputs(replace(inputs, names=inputs.names | {"covariates": ("age", "sex")}))
    with pytest.raises(gf.InputError, match="None of 8 genes varies among the 40 training samples"):
        InputScale.fit(ExpressionInputs({"expression": np.ones((40, 8))}, {"expression": GENES}))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"layers": 5}, "network.layers must be between 1 and 4"),
        ({"width": 0}, "network.width must be at least 1"),
        ({"dropout": 1.0}, "network.dropout must be at least 0 and below 1"),
        ({"n_genes": 0}, "network.n_genes must be at least 1"),
        ({"clip": 0.5}, "network.clip must be at least 1"),
        ({"skip": ("embedding",)}, "network.skip must be made of"),
        ({"skip": ()}, "network.skip must be with 'covariates'"),
        ({"skip": ("covariates", "expression"), "activation": "elu"}, "network.activation must be one of"),
    ],
)
def test_settings_out_of_bounds_are_refused(inputs, settings, said):
    with pytest.raises(ConfigError, match=said):
        ExpressionNetwork(ExpressionConfig(**settings), HEAD, InputScale.fit(inputs))


def test_a_path_for_a_block_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match=r"network.skip must be made of blocks that the inputs have \(expression\)"):
        ExpressionNetwork(ExpressionConfig(skip=("covariates",)), HEAD, InputScale.fit(made_inputs()))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"format": "geneformer_repro/expression_network/9"},
            "expected format 'geneformer_repro/expression_network/1'",
        ),
        ({"network": {"layers": 9}}, "is damaged .*layers must be between 1 and 4"),
        ({"blocks": {}}, "is damaged"),
    ],
    ids=["format", "settings", "blocks"],
)
def test_a_damaged_checkpoint_is_refused(checkpoint_of, tmp_path, change, said):
    checkpoint_of.save(tmp_path / "pan")
    path = tmp_path / "pan/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(gf.InputError, match=said):
        gf.Checkpoint.from_pretrained(tmp_path / "pan")


def test_a_checkpoint_without_a_head_or_with_broken_weights_is_refused(checkpoint_of, tmp_path):
    checkpoint_of.save(tmp_path / "pan")
    weights = load_file(tmp_path / "pan/model.safetensors")
    save_file(weights | {"classifier.bias": weights["classifier.bias"] * np.nan}, tmp_path / "pan/model.safetensors")
    with pytest.raises(gf.InputError, match=r"not finite \(first: classifier.bias\)"):
        gf.Checkpoint.from_pretrained(tmp_path / "pan")
    (tmp_path / "pan/head.json").unlink()
    with pytest.raises(gf.InputError, match=r"has no head\.json"):
        gf.Checkpoint.from_pretrained(tmp_path / "pan")
