"""Ways of transfer on a tiny classifier of blood cells: three blocks, twelve steps."""

import copy
import functools
import importlib
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import BertModel, Trainer

import geneformer_repro as gf
from geneformer_repro.batching import end_to_end
from geneformer_repro.config import ConfigError
from geneformer_repro.errors import MissingExtraError
from geneformer_repro.finetuning.settings.networks import TransferConfig
from geneformer_repro.finetuning.transfer import finished, prepare
from geneformer_repro.heads import CellClassifier, Head
from geneformer_repro.model import bert_config
from geneformer_repro.targets import Classes
from geneformer_repro.training.config import CellExamples, ParameterGroup, TrainingRun
from geneformer_repro.training.loop import train
from geneformer_repro.training.settings import TrainConfig

pytestmark = pytest.mark.slow

N_CELLS, N_STEPS, N_BLOCKS, RATE = 16, 12, 3, 1e-3
TOP_DOWN = ["block 3", "block 2", "block 1", "embeddings"]
ADAPTED = [
    pytest.param({"strategy": "lora"}, id="lora"),
    pytest.param({"strategy": "qlora"}, id="4bit"),
    pytest.param({"strategy": "qlora", "quantize_bits": 8}, id="8bit"),
]
NO_DROPOUT = {"lora_dropout": 0.0}


class CutOffError(Exception):
    """Stands for whatever ends a run."""


class Step(NamedTuple):
    """What a step finds."""

    rates: dict[str, float]
    """The learning rate of each parameter."""
    decays: dict[str, float]
    learning: set[str]
    """Parameters that require a gradient."""
    remembered: set[str]
    """Parameters of which the optimiser has moments."""
    weights: dict[str, np.ndarray]


class Run(NamedTuple):
    trained: CellClassifier
    """Before `finished`."""
    plain: CellClassifier
    history: pd.DataFrame
    names: dict[str, set[str]]
    """The parameters of each group."""
    steps: list[Step]
    work: Path

    def first_step_of(self, group: str) -> int:
        """The first step in which any of a group's parameters learns; from then on all do in all steps."""
        names = self.names[group]
        learning = [names <= step.learning for step in self.steps]
        assert all(now <= later for now, later in itertools.pairwise(learning))
        assert all(names <= step.learning or not names & step.learning for step in self.steps)
        return learning.index(True)


def weights(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: weight.detach().numpy().copy() for name, weight in model.state_dict().items()}


def names_of(group: ParameterGroup, model: nn.Module) -> set[str]:
    members = {id(one) for one in group.parameters}
    return {name for name, one in model.named_parameters() if id(one) in members}


def as_step(trainer: Trainer) -> Step:
    assert trainer.optimizer is not None
    groups, named = trainer.optimizer.param_groups, list(trainer.model.named_parameters())
    of_group = {id(one): group for group in groups for one in group["params"]}
    return Step(
        {name: of_group[id(one)]["lr"] for name, one in named if id(one) in of_group},
        {name: of_group[id(one)]["weight_decay"] for name, one in named if id(one) in of_group},
        {name for name, one in named if one.requires_grad},
        {name for name, one in named if one in trainer.optimizer.state},
        weights(trainer.model),
    )


def assert_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def changed(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> set[str]:
    return {name for name in one if (one[name] != other[name]).any()}


def is_head(name: str) -> bool:
    return not name.startswith("bert.")


@pytest.fixture(scope="module")
def classes(cells: gf.TokenizedDataset) -> tuple[str, ...]:
    return tuple(sorted(set(cells.obs["cell_type"])))


@pytest.fixture(scope="module")
def untrained(vocabulary: gf.Vocabulary, classes: tuple[str, ...]) -> CellClassifier:
    shape = bert_config("tiny", vocabulary)
    shape.hidden_dropout_prob = shape.attention_probs_dropout_prob = 0.1
    shape.initializer_range = 0.1
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return CellClassifier(shape, Head((Classes("cell_type", classes),), "attention")).eval()


@pytest.fixture
def model(untrained: CellClassifier) -> CellClassifier:
    return copy.deepcopy(untrained)


@pytest.fixture(scope="module")
def batch(cells: gf.TokenizedDataset, vocabulary: gf.Vocabulary) -> dict[str, Tensor]:
    return end_to_end([cells[i][:30] for i in range(8)], vocabulary).inputs


def logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    with torch.inference_mode():
        return model(**batch).logits


@pytest.fixture(scope="module")
def run(untrained, cells, vocabulary, classes, tmp_path_factory) -> Callable[..., Run]:
    """Train a copy of the untrained model for three epochs of four steps."""
    codes = np.searchsorted(classes, cells.obs["cell_type"])

    def batch_of(chosen: list[int]) -> dict[str, Tensor]:
        labels = torch.as_tensor(codes[chosen], dtype=torch.float32)
        return end_to_end([cells[i][: 12 + i] for i in chosen], vocabulary).inputs | {"labels": labels}

    def start(
        *,
        work: Path | None = None,
        cut_off_at: int | None = None,
        score: Any = None,
        how: Any = None,
        in_groups: bool = True,
        **options: Any,
    ) -> Run:
        prepared, groups = prepare(copy.deepcopy(untrained), TransferConfig(**options))
        names = {group.name: names_of(group, prepared) for group in groups}
        folder = work or tmp_path_factory.mktemp("work")
        steps = []
        take = Trainer.training_step

        def watched(trainer: Trainer, *given: Any) -> Tensor:
            if trainer.state.global_step == cut_off_at:
                raise CutOffError
            steps.append(as_step(trainer))
            return take(trainer, *given)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Trainer, "training_step", watched)
            teach = TrainingRun(
                examples=CellExamples([12 + i for i in range(N_CELLS)], lambda i, _: i),
                collate=batch_of,
                evaluate=lambda model: {"score": score() if score else logits(model, batch_of([0, 1]))[0, 0].item()},
                config=TrainConfig(
                    epochs=3, batch_size=4, learning_rate=RATE, warmup_steps=0, weight_decay=0.1, trainer=how or {}
                ),
                seed=0,
                groups=groups if in_groups else (),
                best_by="score" if score else None,
                work=folder,
                step="teach",
            )
            trained, history = train(prepared, teach)
        return Run(copy.deepcopy(trained), finished(trained), history, names, steps, folder)

    return start


@pytest.fixture(scope="module")
def whole(run) -> Callable[..., Run]:
    """An uninterrupted run, made once for all tests."""
    return functools.cache(run)


@pytest.fixture(scope="module")
def gradual(whole) -> Run:
    return whole(strategy="gradual")


@pytest.fixture(scope="module")
def discriminative(whole) -> Run:
    return whole(strategy="discriminative", rate_decay=0.5)


class TestConfig:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"strategy": "all"}, "strategy must be one of 'full', 'freeze', .*'qlora', found 'all'"),
            ({"strategy": "freeze", "freeze": -1}, "freeze must be at least 0, found -1"),
            ({"strategy": "discriminative", "rate_decay": 0.0}, "rate_decay must be above 0 and at most 1, found 0.0"),
            ({"strategy": "discriminative", "rate_decay": 1.1}, "rate_decay must be above 0 and at most 1, found 1.1"),
            ({"strategy": "lora", "lora_rank": 0}, "lora_rank must be at least 1, found 0"),
            ({"strategy": "lora", "lora_alpha": 0}, "lora_alpha must be above 0, found 0"),
            ({"strategy": "lora", "lora_dropout": 1.0}, "lora_dropout must be at least 0 and below 1, found 1.0"),
            ({"strategy": "qlora", "quantize_bits": 2}, "quantize_bits must be one of 4, 8, found 2"),
        ],
    )
    def test_a_value_out_of_bounds_is_named_with_its_bound(self, options, message):
        with pytest.raises(ConfigError, match=f"transfer.{message}"):
            TransferConfig(**options)

    @pytest.mark.parametrize(
        ("transfer", "option", "users"),
        [
            ("full", {"freeze": 2}, "'freeze'"),
            ("gradual", {"rate_decay": 0.8}, "'discriminative'"),
            ("probe", {"lora_rank": 8}, "'lora' or 'qlora'"),
            ("freeze", {"lora_alpha": 8}, "'lora' or 'qlora'"),
            ("full", {"lora_dropout": 0.0}, "'lora' or 'qlora'"),
            ("lora", {"quantize_bits": 8}, "'qlora'"),
        ],
    )
    def test_a_setting_that_would_do_nothing_is_refused(self, transfer, option, users):
        ((name, value),) = option.items()
        message = f"transfer.{name} must be left out unless transfer.strategy is {users}, found {value}"
        with pytest.raises(ConfigError, match=message):
            TransferConfig(strategy=transfer, **option)

    @pytest.mark.parametrize("freeze", [3, 4])
    def test_freezing_as_many_blocks_as_there_are_is_refused(self, model, freeze):
        message = f"freeze is {freeze} but the model has 3 blocks. Give fewer, or strategy='probe'"
        with pytest.raises(ConfigError, match=message):
            prepare(model, TransferConfig(strategy="freeze", freeze=freeze))

    @pytest.mark.parametrize(("transfer", "module"), [("lora", "peft"), ("qlora", "bitsandbytes")])
    def test_a_missing_library_is_named_with_its_extra(self, model, monkeypatch, transfer, module):
        there = importlib.import_module

        def missing(name: str) -> Any:
            if name == module:
                raise ImportError(name)
            return there(name)

        monkeypatch.setattr(importlib, "import_module", missing)
        with pytest.raises(MissingExtraError, match=rf"need {module}: pip install 'geneformer-repro\[lora\]'"):
            prepare(model, TransferConfig(strategy=transfer))


class TestGroups:
    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({}, [("head", 1, 0), ("encoder", 1, 0)]),
            ({"strategy": "freeze", "freeze": 2}, [("head", 1, 0), ("encoder", 1, 0)]),
            ({"strategy": "probe"}, [("head", 1, 0)]),
            ({"strategy": "probe_then_full"}, [("head", 1, 0), ("encoder", 1, 0.5)]),
            (
                {"strategy": "discriminative", "rate_decay": 0.5},
                [("head", 1, 0), *zip(TOP_DOWN, [0.5, 0.25, 0.125, 0.0625], [0] * 4)],
            ),
            ({"strategy": "gradual"}, [("head", 1, 0), *zip(TOP_DOWN, [1] * 4, [0.2, 0.4, 0.6, 0.8])]),
            ({"strategy": "lora"}, [("head", 1, 0), ("adapters", 1, 0)]),
            ({"strategy": "qlora"}, [("head", 1, 0), ("adapters", 1, 0)]),
        ],
        ids=lambda value: value.get("strategy", "full") if isinstance(value, dict) else "",
    )
    def test_groups_have_the_documented_rates_and_beginnings(self, model, options, expected):
        _, groups = prepare(model, TransferConfig(**options))
        assert [(group.name, group.rate, group.begins) for group in groups] == expected

    @pytest.mark.parametrize(
        "transfer", ["full", "freeze", "probe", "probe_then_full", "discriminative", "gradual", "lora", "qlora"]
    )
    def test_a_parameter_that_learns_is_in_one_group_and_no_other_requires_a_gradient(self, model, transfer):
        prepared, groups = prepare(model, TransferConfig(strategy=transfer))
        grouped = [id(parameter) for group in groups for parameter in group.parameters]
        learning = [id(parameter) for parameter in prepared.parameters() if parameter.requires_grad]
        assert sorted(grouped) == sorted(learning)
        assert len(set(grouped)) == len(grouped)

    def test_the_head_is_all_that_is_not_the_encoder(self, model):
        prepared, (head,) = prepare(model, TransferConfig(strategy="probe"))
        assert names_of(head, prepared) == {"classifier.weight", "classifier.bias", "attention_pool.weight"}


class TestFrozen:
    def test_frozen_blocks_and_embeddings_stay_to_the_last_bit_and_nothing_else_does(self, whole, untrained):
        before = weights(untrained)
        after = weights(whole(strategy="freeze", freeze=2).plain)
        learned = {name for name in before if is_head(name) or name.startswith("bert.encoder.layer.2.")}
        assert changed(before, after) == learned

    def test_a_probe_leaves_the_encoder_as_it_is(self, whole, untrained):
        before = weights(untrained)
        assert changed(before, weights(whole(strategy="probe").plain)) == {name for name in before if is_head(name)}

    @pytest.mark.parametrize("options", ADAPTED)
    def test_with_adapters_only_they_and_the_head_learn(self, whole, options):
        done = whole(**options)
        learned = changed(done.steps[0].weights, weights(done.trained))
        assert learned == {name for name in done.steps[0].weights if is_head(name) or "lora_" in name}

    def test_under_adapters_lie_the_pretrained_weights(self, whole, untrained):
        under = weights(whole(strategy="lora").trained)
        under = {name.replace("base_layer.", ""): weight for name, weight in under.items() if "lora_" not in name}
        assert_same(
            {name: weight for name, weight in under.items() if not is_head(name)},
            {name: weight for name, weight in weights(untrained).items() if not is_head(name)},
        )

    def test_every_parameter_learns_otherwise(self, discriminative, untrained):
        before = weights(untrained)
        assert changed(before, weights(discriminative.plain)) == set(before)


class TestRates:
    def test_each_group_has_its_share_of_the_learning_rate_at_every_step(self, discriminative):
        for name, share in {"head": 1.0, **dict(zip(TOP_DOWN, [0.5, 0.25, 0.125, 0.0625]))}.items():
            for parameter in discriminative.names[name]:
                rates = [step.rates[parameter] for step in discriminative.steps]
                expected = RATE * share * (1 - np.arange(N_STEPS) / N_STEPS)
                np.testing.assert_allclose(rates, expected, err_msg=parameter)

    def test_the_log_tells_the_rate_of_the_head(self, discriminative):
        rates = discriminative.history["learning_rate"].dropna()
        np.testing.assert_allclose(rates, RATE * (1 - np.arange(N_STEPS) / N_STEPS))

    def test_weight_decay_is_that_of_a_model_without_groups(self, discriminative, whole):
        assert discriminative.steps[0].decays == whole().steps[0].decays

    def test_a_whole_model_learns_as_one_without_groups(self, run, whole):
        assert_same(weights(whole().plain), weights(run(in_groups=False).plain))

    def test_one_rate_for_all_is_training_without_groups(self, run, whole):
        """Through an optimiser with groups, and through Trainer's own."""
        assert_same(weights(run(strategy="discriminative", rate_decay=1.0).plain), weights(whole().plain))


class TestBeginning:
    def test_the_head_learns_first_then_one_part_after_the_other_from_the_top_down(self, gradual):
        first = {name: gradual.first_step_of(name) for name in ["head", *TOP_DOWN]}
        assert first == {"head": 0, "block 3": 2, "block 2": 4, "block 1": 7, "embeddings": 9}

    def test_the_encoder_learns_in_the_second_half(self, whole):
        done = whole(strategy="probe_then_full")
        assert done.first_step_of("head") == 0
        assert done.first_step_of("encoder") == N_STEPS / 2

    @pytest.mark.parametrize("part", TOP_DOWN)
    def test_a_part_is_untouched_until_it_begins(self, gradual, untrained, part):
        names, first = gradual.names[part], gradual.first_step_of(part)
        before = weights(untrained)
        assert not changed(before, gradual.steps[first].weights) & names
        assert not gradual.steps[first].remembered & names
        assert changed(before, gradual.steps[first + 1].weights) >= {name for name in names if "key.bias" not in name}
        assert gradual.steps[first + 1].remembered >= names

    def test_the_log_tells_what_learns_from_when_on(self, whole, untrained):
        first = json.loads((whole(strategy="probe_then_full").work / "log.jsonl").read_text().splitlines()[0])
        encoder = untrained.bert.num_parameters()
        assert first["learning"] == [
            {"name": "head", "parameters": untrained.num_parameters() - encoder, "rate": 1.0, "from_step": 0},
            {"name": "encoder", "parameters": encoder, "rate": 1.0, "from_step": 6},
        ]

    def test_every_transfer_takes_as_many_steps(self, gradual, discriminative, whole):
        assert {len(one.steps) for one in (gradual, discriminative, whole(), whole(strategy="lora"))} == {N_STEPS}


class TestAdapters:
    @pytest.fixture(params=ADAPTED)
    def options(self, request) -> dict[str, Any]:
        return request.param

    @pytest.fixture
    def adapted(self, model, options) -> CellClassifier:
        """With adapters that change the weights, as trained ones do."""
        prepared, _ = prepare(model, TransferConfig(**options, **NO_DROPOUT))
        torch.manual_seed(1)
        for name, parameter in prepared.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.05)
        return prepared

    def test_new_adapters_change_no_output(self, model, untrained, batch):
        prepared, _ = prepare(model, TransferConfig(strategy="lora"))
        np.testing.assert_array_equal(logits(prepared, batch), logits(untrained, batch))

    def test_every_linear_layer_of_the_blocks_has_one_that_changes_the_outputs(self, model, batch):
        prepared, _ = prepare(model, TransferConfig(strategy="lora"))
        ups = {name: one for name, one in prepared.named_parameters() if "lora_B" in name}
        assert len(ups) == 6 * N_BLOCKS
        before = logits(prepared, batch)
        for name, one in ups.items():
            nn.init.normal_(one)
            np.testing.assert_array_less(1e-6, (logits(prepared, batch) - before).abs().max(), err_msg=name)
            nn.init.zeros_(one)

    def test_the_change_has_the_rank_and_scale_that_are_asked_for(self, model):
        layer = model.bert.encoder.layer[0].output.dense
        before = layer.weight.detach().clone()
        prepared, groups = prepare(model, TransferConfig(strategy="lora", lora_rank=2, lora_alpha=6, **NO_DROPOUT))
        for parameter in groups[1].parameters:
            nn.init.ones_(parameter)
        change = finished(prepared).bert.encoder.layer[0].output.dense.weight - before
        np.testing.assert_allclose(change.detach(), np.full(change.shape, 2 * 6 / 2), rtol=1e-6)

    def test_the_seed_alone_chooses_the_first_weights(self, untrained):
        def first(seed: int) -> dict[str, np.ndarray]:
            torch.rand(3)
            return weights(prepare(copy.deepcopy(untrained), TransferConfig(strategy="lora"), seed=seed)[0])

        assert_same(first(1), first(1))
        assert all("lora_A" in name for name in changed(first(1), first(2)))
        assert changed(first(1), first(2))

    def test_the_finished_model_gives_the_outputs_of_the_adapted_one(self, adapted, batch, options):
        evaluated = logits(adapted, batch)
        for module in adapted.modules():
            if type(module).__name__ == "Linear8bitLt":
                module.train()  # else it rounds its inputs too
        before = logits(adapted, batch)
        after = logits(finished(adapted), batch)
        np.testing.assert_allclose(after, before, atol=1e-5)
        np.testing.assert_allclose(after, evaluated, atol=2e-2 if options.get("quantize_bits") == 8 else 1e-5)

    def test_the_finished_model_is_a_plain_one(self, adapted, untrained, batch, tmp_path):
        plain = finished(adapted)
        assert {name: one.shape for name, one in plain.state_dict().items()} == {
            name: one.shape for name, one in untrained.state_dict().items()
        }
        assert {type(module) for module in plain.modules()} == {type(module) for module in untrained.modules()}
        assert vars(plain).keys() == vars(untrained).keys()
        assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in plain.parameters())
        plain.save_pretrained(tmp_path)
        stock = BertModel.from_pretrained(tmp_path, add_pooling_layer=False)
        assert_same(weights(stock), weights(plain.bert))

    def test_finishing_keeps_the_mode(self, adapted):
        assert not any(module.training for module in finished(adapted).modules())

    @pytest.mark.parametrize(("bits", "off"), [(4, (0.05, 0.15)), (8, (0.001, 0.02))], ids=["4bit", "8bit"])
    def test_weights_are_rounded_to_the_bits_that_are_asked_for(self, model, untrained, bits, off):
        prepared, _ = prepare(model, TransferConfig(strategy="qlora", quantize_bits=bits))
        rounded, exact = weights(finished(prepared)), weights(untrained)
        moved = changed(exact, rounded)
        assert moved == {
            name for name in exact if "encoder" in name and name.endswith("weight") and "LayerNorm" not in name
        }
        for name in moved:
            distance = np.linalg.norm(rounded[name] - exact[name]) / np.linalg.norm(exact[name])
            assert off[0] < distance < off[1], name

    def test_quantised_layers_take_less_memory(self, model):
        layer = model.bert.encoder.layer[0].output.dense
        prepared, _ = prepare(model, TransferConfig(strategy="qlora"))
        quantised = prepared.bert.encoder.layer[0].output.dense.base_layer
        assert quantised.weight.nbytes == layer.weight.nbytes / 8

    def test_four_bit_layers_compute_in_the_type_around_them(self, model):
        """Whichever came first; else a resumed run would not do as an uninterrupted one."""
        prepared, _ = prepare(model, TransferConfig(strategy="qlora"))
        layer = prepared.bert.encoder.layer[0].output.dense.base_layer
        numbers = torch.rand(5, layer.in_features)
        with torch.autocast("cpu", torch.bfloat16):
            coarse = layer(numbers.bfloat16())
        exact = layer(numbers)
        assert coarse.dtype == torch.bfloat16
        assert (exact != exact.bfloat16()).any()


class TestResuming:
    """Cut off at a step, a run goes on as if it had not been."""

    @pytest.mark.parametrize(
        ("options", "cut_off_at"),
        [
            pytest.param({"strategy": "gradual"}, 2, id="gradual_before_a_part_begins"),
            pytest.param({"strategy": "gradual"}, 3, id="gradual_after_a_part_began"),
            pytest.param({"strategy": "discriminative", "rate_decay": 0.5}, 5, id="discriminative"),
            pytest.param({"strategy": "qlora"}, 5, id="4bit"),
            pytest.param({"strategy": "qlora", "quantize_bits": 8}, 5, id="8bit"),
        ],
    )
    def test_a_resumed_run_ends_as_an_uninterrupted_one(self, run, whole, tmp_path, options, cut_off_at):
        how = {"save_strategy": "steps", "save_steps": cut_off_at}
        with pytest.raises(CutOffError):
            run(work=tmp_path, cut_off_at=cut_off_at, how=how, **options)
        resumed, uninterrupted = run(work=tmp_path, how=how, **options), whole(**options)
        assert len(resumed.steps) == N_STEPS - cut_off_at
        assert_same(weights(resumed.plain), weights(uninterrupted.plain))
        columns = ["step", "loss", "grad_norm", "learning_rate", "eval_score"]
        pd.testing.assert_frame_equal(resumed.history[columns], uninterrupted.history[columns], check_exact=True)

    @pytest.mark.parametrize("options", ADAPTED[1:])
    def test_the_best_epoch_is_kept(self, run, whole, options):
        scores = iter([0.0, 0.1, 0.9, 0.2])
        best = run(score=lambda: next(scores), **options)
        assert_same(weights(best.trained), whole(**options).steps[8].weights)

    @pytest.mark.parametrize("options", ADAPTED[1:])
    def test_quantised_weights_are_not_in_the_checkpoints(self, whole, options):
        with safe_open(whole(**options).work / f"checkpoint-{N_STEPS}" / "model.safetensors", "np") as saved:
            names = set(saved.keys())
        assert any("lora_A" in name for name in names)
        assert not any("base_layer" in name for name in names)
