import copy
import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import nn

import geneformer_repro as gf
from geneformer_repro.config import ConfigError
from geneformer_repro.expression import ExpressionInputs, ExpressionNetwork, InputScale
from geneformer_repro.finetuning.expression_training import Examples, Trainee, stacks_of, train_expression
from geneformer_repro.finetuning.settings.samples import ExpressionTrainConfig
from geneformer_repro.heads import Head
from geneformer_repro.network_settings import ExpressionConfig
from geneformer_repro.targets import Classes, Number, SurvivalTime

N_TRAIN, N_GENES = 60, 12
SURVIVAL = SurvivalTime("PFI", "PFI.time", (1.0, 5.0), 5.0, "cox", cohorts=("A", "B"))
HEADS = {
    "survival": Head((SURVIVAL,)),
    "number and classes": Head((Number("grade"), Classes("subtype", ("basal", "luminal")))),
}


def made_labels(name: str, risk: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if name == "survival":
        time = rng.exponential(np.exp(-risk)).round(1) + 0.1
        return np.column_stack([time, rng.random(len(risk)) < 0.7, rng.integers(2, size=len(risk))])
    return np.column_stack([risk, risk > 0])


def made_examples(name: str = "survival", *, n: int = 100, seed: int = 0, **blocks: int) -> tuple[Examples, Examples]:
    """Training and validation samples of which two genes say how they fare."""
    rng = np.random.default_rng(seed)
    values = {"expression": rng.normal(size=(n, N_GENES)) * (1 + np.arange(N_GENES))}
    names = {"expression": tuple(f"ENSG{number:011d}" for number in range(N_GENES))}
    for block, n_columns in blocks.items():
        values[block], names[block] = rng.normal(size=(n, n_columns)), tuple(f"{block}{i}" for i in range(n_columns))
    inputs = ExpressionInputs(values, names)
    labels = made_labels(name, values["expression"][:, 8] / 9 - values["expression"][:, 11] / 12, rng).astype(float)
    train, held_out = np.arange(N_TRAIN), np.arange(N_TRAIN, n)
    scale = InputScale.fit(inputs.select(train))
    return (
        Examples.of(scale, inputs.select(train), labels[train], labels[train, 1]),
        Examples.of(scale, inputs.select(held_out), labels[held_out]),
    )


def trainee(scale: InputScale, head: Head, *, seed: int = 1, **settings: object) -> Trainee:
    of_network = {name: settings.pop(name) for name in list(settings) if hasattr(ExpressionConfig(), name)}
    network = ExpressionNetwork(ExpressionConfig(**of_network), head, scale, seed=seed)
    return Trainee(network, ExpressionTrainConfig(**settings), seed)


def mixed(scale: InputScale, head: Head, **settings: object) -> list[Trainee]:
    """Networks of other widths, depths and activations that are trained as one stack."""
    shapes = [(1, 17, "relu"), (3, 20, "selu"), (2, 64, "tanh"), (4, 18, "relu")]
    return [
        trainee(scale, head, seed=i, layers=layers, width=width, activation=activation, **settings)
        for i, (layers, width, activation) in enumerate(shapes)
    ]


def weights(network: ExpressionNetwork | None) -> dict[str, np.ndarray]:
    assert network is not None
    return {name: weight.detach().numpy() for name, weight in network.state_dict().items()}


def trained_plainly(of: Trainee, training: Examples, *, rate_of: Sequence[float] = ()) -> ExpressionNetwork:
    """Train with torch's modules, autograd and optimisers, a batch after the other; slow, and obviously right."""
    network, config = copy.deepcopy(of.network).train(), of.config
    head, names = network.head, [name for name, _ in network.named_parameters()]
    decays = {name: name.endswith("weight") and "norms" not in name for name in names}
    groups = [
        {"params": [weight], "weight_decay": config.l2 * decays[name], "lr": rate}
        for (name, weight), rate in zip(
            network.named_parameters(), rate_of or [config.learning_rate] * len(names), strict=True
        )
    ]
    optimiser = {
        "adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": lambda of: torch.optim.SGD(of, momentum=0.9)
    }[config.optimiser](groups)  # fmt: skip
    n_batches = -(-N_TRAIN // config.batch_size) if config.batch_size else 1
    for epoch in range(1, config.epochs + 1):
        order = np.arange(N_TRAIN)
        if n_batches > 1:
            order = np.random.default_rng([0, config.batch_size, epoch]).permutation(N_TRAIN)
            order = order[np.argsort(training.balance_N[order], kind="stable")]
        for number in range(n_batches):
            rows = order[number::n_batches]
            outputs = head.split(network(torch.from_numpy(training.scaled_NI[rows])))
            labels = head.split_labels(torch.from_numpy(training.labels_NS[rows]))
            of_targets = zip(head.targets, outputs, labels, strict=True)
            loss = sum(target.prepared_loss(of_target)(output) for target, output, of_target in of_targets) / len(rows)
            penalty = sum(weight.abs().sum() for name, weight in network.named_parameters() if decays[name])
            optimiser.zero_grad()
            (loss + config.l1 * penalty).backward()
            optimiser.step()
    return network


# Side by side


@pytest.mark.parametrize(
    ("name", "batch_norm", "optimiser"),
    [("survival", True, "sgd"), ("number and classes", False, "adam"), ("number and classes", True, "adamw")],
)
def test_networks_in_a_stack_become_what_torch_makes_of_each_alone(name, batch_norm, optimiser):
    training, validation = made_examples(name, covariates=2, embedding=3)
    trainees = mixed(
        training.scale, HEADS[name], batch_norm=batch_norm, dropout=0.0, skip=("covariates", "expression"), patience=0,
        optimiser=optimiser, learning_rate=3e-3, l1=1e-3, l2=1e-2, epochs=3, batch_size=16,
    )  # fmt: skip
    assert len(stacks_of(trainees)) == 1
    scores = itertools.count()  # so that the last epoch is kept
    trained = train_expression(trainees, training, validation, score=lambda outputs: next(scores))
    for of, side_by_side in zip(trainees, trained, strict=True):
        plainly = weights(trained_plainly(of, training))
        for weight_name, weight in plainly.items():
            learned = weights(side_by_side.network)[weight_name]
            np.testing.assert_allclose(learned, weight, rtol=1e-3, atol=2e-5, err_msg=weight_name)


@pytest.mark.parametrize("batch_size", [0, 16])
def test_who_else_is_in_the_stack_changes_last_bits_only(batch_size):
    training, validation = made_examples()
    trainees = mixed(
        training.scale, HEADS["survival"], dropout=0.5, batch_size=batch_size, epochs=6, learning_rate=0.01
    )
    together = train_expression(trainees, training, validation)
    for of, trained in zip(trainees, together, strict=True):
        (alone,) = train_expression([of], training, validation)
        assert alone.epoch == trained.epoch
        np.testing.assert_allclose(alone.history, trained.history, rtol=1e-4, atol=1e-5)


def test_a_network_that_is_no_longer_a_number_disturbs_no_other():
    training, validation = made_examples("number and classes")
    head = HEADS["number and classes"]
    sound = trainee(training.scale, head, width=16, epochs=5, dropout=0.2)
    lost = trainee(training.scale, head, width=16, epochs=5, optimiser="sgd", learning_rate=1e30)
    assert len(stacks_of([sound, lost])) == 1
    beside, gone = train_expression([sound, lost], training, validation)
    (alone,) = train_expression([sound], training, validation)
    np.testing.assert_allclose(beside.history, alone.history, rtol=1e-5)
    assert gone.network is None
    assert (np.isnan(gone.score), gone.epoch, len(gone.history)) == (True, 0, 1)


def test_networks_that_read_as_much_and_differ_little_in_width_are_stacked():
    training, _ = made_examples()
    few, many = training.scale.first(4), training.scale

    def of(scale=many, **settings):
        return trainee(scale, HEADS["survival"], **settings)

    trainees = [
        of(width=16, layers=1), of(width=60, layers=3), of(width=100), of(width=128), of(few, width=16),
        of(width=300), of(width=300), of(width=16, batch_size=8), of(width=16, strategy="probe"),
        of(width=16, batch_norm=True),
    ]  # fmt: skip
    assert stacks_of(trainees) == [[1, 0], [2, 3], [4], [5], [6], [7], [8], [9]]


# What is learned from, and when it ends


def test_a_network_learns_and_its_best_epoch_is_kept():
    training, validation = made_examples(n=160)
    (trained,) = train_expression(
        [trainee(training.scale, HEADS["survival"], learning_rate=0.02, patience=8)], training, validation
    )
    history = trained.history
    assert history["validation_loss"].min() < history["validation_loss"][0] - 0.05
    assert trained.epoch == 1 + history["score"].argmax() == len(history) - 8
    assert trained.score == history["score"].max() == -history["validation_loss"].min()
    labels = torch.from_numpy(validation.labels_NS)
    loss = SURVIVAL.prepared_loss(labels)(torch.from_numpy(trained.network.outputs(validation.scaled_NI)))
    assert float(loss) / len(validation) == pytest.approx(-trained.score, rel=1e-5)


def test_a_given_score_chooses_the_epoch():
    training, validation = made_examples()
    scores = iter([0.1, 0.5, 0.2, 0.3])
    (trained,) = train_expression(
        [trainee(training.scale, HEADS["survival"], epochs=4)], training, validation, score=lambda outputs: next(scores)
    )
    assert (trained.epoch, trained.score, trained.history["score"].tolist()) == (2, 0.5, [0.1, 0.5, 0.2, 0.3])


def test_a_number_of_steps_is_made_exactly_and_without_stopping():
    training, validation = made_examples()
    trainees = [
        trainee(training.scale, HEADS["survival"], batch_size=16, epochs=1, patience=1, learning_rate=0.5, strategy=how)
        for how in ("full", "probe", "discriminative")
    ]
    for trained in train_expression(trainees, training, validation, steps=10):
        assert trained.history["step"].tolist() == [4, 8, 10]


def test_fewest_steps_hold_where_passes_would_be_fewer():
    training, validation = made_examples()
    (trained,) = train_expression(
        [trainee(training.scale, HEADS["survival"], epochs=2, min_steps=5, patience=0)], training, validation
    )
    assert trained.history["step"].tolist() == [1, 2, 3, 4, 5]


def test_every_batch_holds_its_share_of_events():
    training, validation = made_examples()
    training.labels_NS[:, 1] = training.balance_N[:] = np.arange(N_TRAIN) < 4
    seen = []

    class Watched(SurvivalTime):
        def prepared_loss(self, labels_NS):
            seen.append(int(labels_NS[:, 1].sum()))
            return super().prepared_loss(labels_NS)

    head = Head((Watched("PFI", "PFI.time", (5.0,), 5.0, "cox"),))
    train_expression([trainee(training.scale, head, batch_size=15, epochs=2)], training, validation)
    assert seen[2:] == [1] * 8  # after all training and all validation rows


# Transfer


def test_a_probe_leaves_all_below_the_outputs_bit_identical_and_learns():
    training, validation = made_examples(covariates=2)
    settings = {"batch_norm": True, "skip": ("covariates",), "learning_rate": 0.01, "batch_size": 16}
    probe = trainee(training.scale, HEADS["survival"], strategy="probe", **settings)
    before = weights(probe.network)
    (trained,) = train_expression([probe], training, validation, steps=40)
    changed = {
        name.partition(".")[0]
        for name, weight in weights(trained.network).items()
        if not np.array_equal(weight, before[name])
    }
    assert changed == {"classifier", "skip"}
    assert trained.history["loss"].iloc[-1] < trained.history["loss"].iloc[0]
    assert all(np.array_equal(weight, before[name]) for name, weight in weights(probe.network).items())


def test_discriminative_rates_fall_by_layer_from_the_outputs_down():
    training, validation = made_examples("number and classes")
    of = trainee(
        training.scale, HEADS["number and classes"], layers=3, width=16, dropout=0.0, strategy="discriminative",
        learning_rate=0.01, batch_size=16, epochs=2, patience=0, l1=0.0, l2=0.0,
    )  # fmt: skip
    scores = itertools.count()
    (trained,) = train_expression([of], training, validation, score=lambda outputs: next(scores))
    depth = {"layers.0": 3, "layers.1": 2, "layers.2": 1}
    rates = [0.01 * 2.6 ** -depth.get(name.rpartition(".")[0], 0) for name, _ in of.network.named_parameters()]
    plainly = weights(trained_plainly(of, training, rate_of=rates))
    for name, weight in weights(trained.network).items():
        np.testing.assert_allclose(weight, plainly[name], rtol=1e-3, atol=1e-5, err_msg=name)


def test_training_leaves_the_random_state_and_the_given_network_as_they_are():
    training, validation = made_examples()
    of = trainee(training.scale, HEADS["survival"], epochs=2)
    state, before = torch.random.get_rng_state(), weights(copy.deepcopy(of.network))
    first, again = (train_expression([of], training, validation)[0] for _ in range(2))
    assert torch.equal(state, torch.random.get_rng_state())
    assert first.history.equals(again.history)
    assert all(np.array_equal(weight, before[name]) for name, weight in weights(of.network).items())
    assert not any(isinstance(module, nn.Module) and module.training for module in first.network.modules())


# Bad input


def test_examples_of_another_scale_are_refused():
    training, validation = made_examples()
    other, _ = made_examples(seed=1)
    with pytest.raises(gf.InputError, match="reads other columns than the examples hold, or scales them otherwise"):
        train_expression([trainee(other.scale, HEADS["survival"])], training, validation)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"learning_rate": 0.0}, "training.learning_rate must be above 0"),
        ({"batch_size": -1}, "training.batch_size must be at least 0"),
        ({"epochs": 0}, "training.epochs must be at least 1"),
        ({"layer_decay": 0.5}, "training.layer_decay must be at least 1"),
        ({"strategy": "freeze"}, "training.strategy must be one of"),
    ],
)
def test_settings_out_of_bounds_are_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        ExpressionTrainConfig(**settings)
