"""Training expression networks, one or many side by side, on a matrix that is held in memory.

This is not `transformers.Trainer`, which trains all that is large: a Cox loss wants the risk sets of a whole cohort in
one step, a step here takes a millisecond, of which Trainer's bookkeeping would be the larger part, and a random search
trains hundreds of networks. Narrow ones are trained as one stack: their weights lie on top of each other, padded to the
widest, and a step is a few batched products in place of a few hundred small ones (benchmarks/RESULTS.md:
`expression_search`). Padded units stay exactly zero: their inputs and outputs are zero, and so is every gradient. Wide
networks gain nothing, since their products fill the processor, and are trained by themselves.

A network's result depends on its own settings and seed, and on `seed` of the call, which orders the rows: networks with
equal batches see the same rows, so that the first layer of a stack is one product. Who else is in the stack changes
last bits only.

Shapes: N samples, B of a batch, I columns, K networks of a stack, W width, O outputs, S numbers of a label.
"""

import copy
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from geneformer_repro.errors import InputError
from geneformer_repro.expression import NON_LINEARITIES, ExpressionInputs, ExpressionNetwork, InputScale
from geneformer_repro.finetuning.settings.samples import ExpressionTrainConfig
from geneformer_repro.heads import Head

Score = Callable[[np.ndarray], float]
Losses = Callable[[Tensor], Tensor]
_NARROW, _WIDEST_IN_A_STACK, _MOST_IN_A_STACK = 64, 256, 32
_ALIGNED = 16
"""Rows of inputs and weights are so many numbers long, or a multiple: those that begin within a cache line make the
products of a step up to twice as slow."""
_MOMENTUM, _NORM_MOMENTUM, _NORM_EPS = 0.9, 0.1, 1e-5
_OF_THE_HEAD = ("classifier.", "skip.")
"""How the names of weights begin that make the outputs: the last layer, and the straight path."""


@dataclass(frozen=True, eq=False)
class Examples:
    """Samples as networks take them, with their labels.

    Parameters
    ----------
    scale
        What made `scaled_NI`; networks read its first columns.
    scaled_NI
        Float32.
    labels_NS
        As the head's targets want them, side by side; float64.
    balance_N
        A value for each sample, of which every batch holds its share: whether a patient has an event, since a batch
        without one teaches a Cox loss nothing. None for batches drawn without looking.
    """

    scale: InputScale
    scaled_NI: np.ndarray
    labels_NS: np.ndarray
    balance_N: np.ndarray | None = None

    @classmethod
    def of(
        cls, scale: InputScale, inputs: ExpressionInputs, labels_NS: np.ndarray, balance_N: np.ndarray | None = None
    ) -> "Examples":
        """Scale samples; the scale is that of the widest network."""
        return cls(scale, scale(inputs), np.asarray(labels_NS, dtype=np.float64), balance_N)

    def __len__(self) -> int:
        return len(self.scaled_NI)


@dataclass(frozen=True, eq=False)
class Trainee:
    """A network that is to be trained: from its weights as they are, on a copy."""

    network: ExpressionNetwork
    config: ExpressionTrainConfig
    seed: int = 0
    """Of its dropout."""


@dataclass(frozen=True, eq=False)
class Trained:
    """A network that was trained."""

    network: ExpressionNetwork | None
    """With the weights of its best epoch; None where no epoch had a finite score."""
    history: pd.DataFrame
    """A row an epoch: ``epoch``, ``step``, ``loss``, ``validation_loss`` (mean over rows, no penalties), ``score``."""
    score: float
    """Of the best epoch, on the validation rows; NaN where there is none."""
    epoch: int
    """The best one; 0 where there is none."""
    seconds: float
    """Of the processor; in a stack the networks share alike."""


def train_expression(
    trainees: Sequence[Trainee],
    training: Examples,
    validation: Examples,
    *,
    score: Score | None = None,
    steps: int | None = None,
    seed: int = 0,
) -> list[Trained]:
    """Train networks, those that fit in one stack side by side.

    Parameters
    ----------
    trainees
        Networks of one head, each with its settings.
    training
        What is learned from.
    validation
        What chooses the epoch, and stops the training.
    score
        Makes of outputs for the validation rows (N, O) a number; higher is better. None for minus the loss.
    steps
        Train exactly so many steps, whatever `epochs` and `patience` say, so that strategies compare at equal work; the
        best epoch among them is kept all the same, and the last step counts as the end of one.
    seed
        Of the order of the rows.

    Returns
    -------
    The trained networks, in the order of the trainees.

    Raises
    ------
    InputError
        A network reads other columns than the examples hold, or scales them otherwise.
    """
    trained: dict[int, Trained] = {}
    for numbers, of_stack in trained_stacks(trainees, training, validation, score=score, steps=steps, seed=seed):
        trained |= zip(numbers, of_stack, strict=True)
    return [trained[number] for number in range(len(trainees))]


def trained_stacks(
    trainees: Sequence[Trainee],
    training: Examples,
    validation: Examples,
    *,
    score: Score | None = None,
    steps: int | None = None,
    seed: int = 0,
) -> Iterator[tuple[list[int], list[Trained]]]:
    """Train as `train_expression` does; yield the numbers and networks of each stack as it is finished."""
    for trainee in trainees:
        for examples in (training, validation):
            if not examples.scale.begins_with(trainee.network.scale):
                raise InputError(
                    f"{trainee.network!r} reads other columns than the examples hold, or scales them otherwise. Scale "
                    "them by the network's own scale."
                )
    head = trainees[0].network.head
    rows, held_out = _Rows(training, head, seed), _Rows(validation, head, seed)
    for numbers in stacks_of(trainees):
        stack = _Stack([trainees[number] for number in numbers])
        yield numbers, _train_stack(stack, rows, held_out, score, steps)


def stacks_of(trainees: Iterable[Trainee]) -> list[list[int]]:
    """Say which trainees are trained side by side, by number; it depends on their settings alone.

    Networks of a stack read the same columns in the same batches for as long, and their widths differ at most twofold,
    if they are above 64; the deepest stand first. Trainees are looked at one by one, and not kept.
    """
    alike: dict[tuple[Any, ...], list[tuple[int, int]]] = {}
    for number, trainee in enumerate(trainees):
        network, config = trainee.network.config, trainee.config
        is_wide = network.width > _WIDEST_IN_A_STACK
        width = f"alone {number}" if is_wide else math.ceil(math.log2(max(network.width, _NARROW)))
        length = config.batch_size, config.epochs, config.min_steps
        key = width, len(trainee.network.scale), network.skip, network.batch_norm, length, config.strategy == "probe"
        alike.setdefault(key, []).append((-network.layers, number))
    stacks = []
    for members in alike.values():
        numbers = [number for _, number in sorted(members)]
        stacks += [numbers[i : i + _MOST_IN_A_STACK] for i in range(0, len(numbers), _MOST_IN_A_STACK)]
    return stacks


def _train_stack(
    stack: "_Stack", rows: "_Rows", held_out: "_Rows", score: Score | None, steps: int | None
) -> list[Trained]:
    began = time.process_time()
    config = stack.configs[0]
    frozen_KNW = stack.hidden(rows.scaled_NI) if stack.is_probe else None
    n_batches = rows.n_batches(config.batch_size)
    last_step = steps or max(config.epochs * n_batches, config.min_steps)
    records = [_Record(patience=0 if steps else each.patience) for each in stack.configs]
    step = 0
    for epoch in itertools.count(1):
        batches = rows.batches(config.batch_size, epoch)[: last_step - step]
        losses = [stack.learn(rows.scaled(batch), _of_rows(frozen_KNW, batch), batch.losses) for batch in batches]
        sizes = [batch.size for batch in batches]
        step += len(losses)
        loss_K = np.average(np.stack(losses), axis=0, weights=sizes)
        held_out_KNO = stack.outputs(held_out.scaled_NI)
        validation_K = (held_out.whole.losses(held_out_KNO) / held_out.whole.size).numpy()
        for number in stack.active:
            with_score = -validation_K[number] if score is None else score(held_out_KNO[number].numpy())
            row = (epoch, step, float(loss_K[number]), float(validation_K[number]), float(with_score))
            if records[number].add(row):
                records[number].weights = stack.weights_of(number)
        stack.active = [number for number in stack.active if not records[number].is_over]
        if step == last_step or not stack.active:
            break
    seconds = (time.process_time() - began) / len(records)
    return [record.result(stack.networks[number], seconds) for number, record in enumerate(records)]


@dataclass(eq=False)
class _Record:
    """What a network came to, epoch by epoch."""

    patience: int
    rows: list[tuple[int, int, float, float, float]] = field(default_factory=list)
    score: float = -math.inf
    epoch: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)

    def add(self, row: tuple[int, int, float, float, float]) -> bool:
        """Note an epoch; say whether it is the best so far."""
        self.rows.append(row)
        is_best = row[-1] > self.score and math.isfinite(row[-1])
        if is_best:
            self.epoch, self.score = row[0], row[-1]
        return is_best

    @property
    def is_over(self) -> bool:
        """Whether the network has stopped: no better for long, or no longer a number."""
        *_, loss, validation_loss, _ = self.rows[-1]
        is_lost = not (math.isfinite(loss) and math.isfinite(validation_loss))
        return is_lost or 0 < self.patience <= self.rows[-1][0] - self.epoch

    def result(self, network: ExpressionNetwork, seconds: float) -> Trained:
        """Return the network with the weights of the best epoch."""
        history = pd.DataFrame(self.rows, columns=["epoch", "step", "loss", "validation_loss", "score"])
        if not self.epoch:
            return Trained(None, history, math.nan, 0, seconds)
        best = copy.deepcopy(network)
        best.load_state_dict(self.weights)
        return Trained(best.eval(), history, self.score, self.epoch, seconds)


class _Batch(NamedTuple):
    """Rows of a step, with their losses made ready for as many networks as there are."""

    rows: Tensor | None
    """None for all of them."""
    size: int
    losses: Losses


class _Rows:
    """Examples in batches, which are made once for all stacks that see them."""

    def __init__(self, examples: Examples, head: Head, seed: int) -> None:
        self._head, self._seed, self._balance_N = head, seed, examples.balance_N
        scaled_NI = np.require(examples.scaled_NI, requirements="W")  # which arrays shared by processes are not
        self.scaled_NI = torch.from_numpy(scaled_NI)
        self._labels_NS = torch.tensor(examples.labels_NS)
        self._batch_BI = torch.empty(0)
        self.whole = _Batch(None, len(examples), self._losses(self._labels_NS))
        self.batches = lru_cache(maxsize=256)(self._batches)

    def n_batches(self, batch_size: int) -> int:
        """Return how many steps a pass over the rows takes."""
        return max(1, math.ceil(self.whole.size / batch_size)) if batch_size else 1

    def scaled(self, batch: _Batch) -> Tensor:
        """Return the inputs of a batch, in memory that the next one takes: new memory costs more than to fill it."""
        if batch.rows is None:
            return self.scaled_NI
        if len(self._batch_BI) < batch.size:
            self._batch_BI = self.scaled_NI.new_empty(batch.size, self.scaled_NI.shape[1])
        return torch.index_select(self.scaled_NI, 0, batch.rows, out=self._batch_BI[: batch.size])

    def _batches(self, batch_size: int, epoch: int) -> list[_Batch]:
        """Return the batches of a pass; they differ by at most one row."""
        n_batches = self.n_batches(batch_size)
        if n_batches == 1:
            return [self.whole]
        order = np.random.default_rng([self._seed, batch_size, epoch]).permutation(self.whole.size)
        if self._balance_N is not None:
            order = order[np.argsort(self._balance_N[order], kind="stable")]
        dealt = [torch.from_numpy(order[number::n_batches].copy()) for number in range(n_batches)]
        return [_Batch(rows, len(rows), self._losses(self._labels_NS[rows])) for rows in dealt]

    def _losses(self, labels_NS: Tensor) -> Losses:
        """Return what makes of outputs (K, N, O) the sum of each network's losses, (K,)."""
        of_targets = zip(self._head.targets, self._head.split_labels(labels_NS), strict=True)
        prepared = [target.prepared_loss(labels) for target, labels in of_targets]

        def losses(outputs_KNO: Tensor) -> Tensor:
            split = zip(prepared, self._head.split(outputs_KNO), strict=True)
            return torch.stack([loss(outputs) for loss, outputs in split]).sum(dim=0)

        return losses


def _of_rows(frozen_KNW: Tensor | None, batch: _Batch) -> Tensor | None:
    return frozen_KNW if frozen_KNW is None or batch.rows is None else frozen_KNW.index_select(1, batch.rows)


class _Stack:
    """Networks whose weights lie on top of each other; the deepest stand first, and so do those that have a layer.

    Attributes
    ----------
    active
        Numbers of the networks that still learn.
    """

    def __init__(self, trainees: Sequence[Trainee]) -> None:
        self.networks = [trainee.network for trainee in trainees]
        self.configs = [trainee.config for trainee in trainees]
        self.head = self.networks[0].head
        self.scale = self.networks[0].scale
        self.is_probe = self.configs[0].strategy == "probe"
        self.active = list(range(len(trainees)))
        self._generators = [torch.Generator().manual_seed(trainee.seed) for trainee in trainees]
        states = [network.state_dict() for network in self.networks]
        width = _aligned(max(network.config.width for network in self.networks))
        of_names = {name: [state[name] for state in states if name in state] for name in states[0]}
        self._weights = {name: _stacked(name, weights, width) for name, weights in of_names.items()}
        learning = [name for name, _ in self.networks[0].named_parameters() if self._learns(name)]
        self._learning = {name: self._weights[name].requires_grad_() for name in learning}
        self._optimisers = [_Optimiser(self._of(number, learning), self.configs[number]) for number in self.active]

    def _learns(self, name: str) -> bool:
        return name.startswith(_OF_THE_HEAD) or not self.is_probe

    def _of(self, number: int, names: Sequence[str]) -> dict[str, Tensor]:
        """Return the weights of a network, padded, in the stack's memory."""
        return {name: self._weights[name].detach()[number] for name in names if number < len(self._weights[name])}

    def weights_of(self, number: int) -> dict[str, Tensor]:
        """Return a copy of the weights of a network, as they are now."""
        own = self.networks[number].state_dict()
        return {
            name: _as_in_stack(name, weight[tuple(slice(size) for size in own[name].shape)]).clone()
            for name, weight in self._of(number, list(self._weights)).items()
        }

    def learn(self, scaled_BI: Tensor, hidden_KBW: Tensor | None, losses: Losses) -> np.ndarray:
        """Make a step; return each network's loss before it, a row's mean."""
        if hidden_KBW is None:
            hidden_KBW = self.hidden(scaled_BI, training=True)
        loss_K = losses(self._outputs(hidden_KBW, scaled_BI)) / len(scaled_BI)
        gradients = torch.autograd.grad(loss_K.sum(), list(self._learning.values()))
        for number in self.active:
            own = [of_all[number].contiguous() for of_all in gradients if number < len(of_all)]
            self._optimisers[number].step(own)
        return loss_K.detach().numpy()

    @torch.no_grad()
    def outputs(self, scaled_NI: Tensor) -> Tensor:
        """Return the outputs (K, N, O) as of networks that are not in training."""
        return self._outputs(self.hidden(scaled_NI), scaled_NI)

    def _outputs(self, hidden_KBW: Tensor, scaled_BI: Tensor) -> Tensor:
        weight_KOW, bias_KO = self._weights["classifier.weight"], self._weights["classifier.bias"]
        outputs_KBO = torch.baddbmm(bias_KO[:, None], hidden_KBW, weight_KOW.transpose(1, 2))
        for block in self.networks[0].skip:
            outputs_KBO = outputs_KBO + _shared_product(
                scaled_BI[:, self.scale.columns(block)], self._weights[f"skip.{block}.weight"]
            )
        return outputs_KBO

    def hidden(self, scaled_BI: Tensor, *, training: bool = False) -> Tensor:
        """Return the last hidden layer of each network, (K, B, W)."""
        with torch.set_grad_enabled(training):
            last: list[Tensor] = []  # of the deepest networks last
            hidden_KBW = scaled_BI.new_empty(0)
            depths = [network.config.layers for network in self.networks]
            for layer in range(depths[0]):
                weight_KWI = self._weights[f"layers.{layer}.weight"]
                if layer == 0:
                    before_KBW = _shared_product(_padded(scaled_BI[:, self.scale.through]), weight_KWI)
                else:
                    before_KBW = torch.bmm(hidden_KBW, weight_KWI)
                if f"norms.{layer}.weight" in self._weights:
                    before_KBW = self._normed(before_KBW, layer, training=training)
                else:
                    before_KBW = before_KBW + self._weights[f"layers.{layer}.bias"][:, None]
                hidden_KBW = self._activated(before_KBW)
                hidden_KBW = self._dropped(hidden_KBW) if training else hidden_KBW
                n_deeper = sum(depth > layer + 1 for depth in depths)
                last.insert(0, hidden_KBW[n_deeper:])
                hidden_KBW = hidden_KBW[:n_deeper]
            return torch.cat(last)

    def _activated(self, before_KBW: Tensor) -> Tensor:
        names = [network.config.activation for network in self.networks[: len(before_KBW)]]
        first, *others = dict.fromkeys(names)
        hidden_KBW = NON_LINEARITIES[first](before_KBW)
        for name in others:
            is_other_K = torch.tensor([each == name for each in names])
            hidden_KBW = torch.where(is_other_K[:, None, None], NON_LINEARITIES[name](before_KBW), hidden_KBW)
        return hidden_KBW

    def _dropped(self, hidden_KBW: Tensor) -> Tensor:
        """Drop units; each network draws for its own units alone, so that padding changes no draw."""
        configs = [network.config for network in self.networks[: len(hidden_KBW)]]
        if not any(config.dropout for config in configs):
            return hidden_KBW
        factor_KBW = torch.ones_like(hidden_KBW)
        for number, config in enumerate(configs):
            if config.dropout:
                drawn_BW = torch.rand(hidden_KBW.shape[1], config.width, generator=self._generators[number])
                factor_KBW[number, :, : config.width] = drawn_BW.ge_(config.dropout).div_(1 - config.dropout)
        return hidden_KBW * factor_KBW

    def _normed(self, before_KBW: Tensor, layer: int, *, training: bool) -> Tensor:
        of_layer = {
            name: self._weights[f"norms.{layer}.{name}"] for name in ("weight", "bias", "running_mean", "running_var")
        }
        mean_KW, var_KW = of_layer["running_mean"], of_layer["running_var"]
        if training:
            batch_var_KW, batch_mean_KW = torch.var_mean(before_KBW, dim=1, correction=0)
            with torch.no_grad():
                unbiased = len(before_KBW[0]) / max(1, len(before_KBW[0]) - 1)
                mean_KW.lerp_(batch_mean_KW, _NORM_MOMENTUM)
                var_KW.lerp_(batch_var_KW * unbiased, _NORM_MOMENTUM)
            mean_KW, var_KW = batch_mean_KW, batch_var_KW
        factor_KW = of_layer["weight"] * torch.rsqrt(var_KW + _NORM_EPS)
        return (before_KBW - mean_KW[:, None]) * factor_KW[:, None] + of_layer["bias"][:, None]


def _aligned(size: int) -> int:
    return math.ceil(size / _ALIGNED) * _ALIGNED


def _padded(inputs_BI: Tensor) -> Tensor:
    """Add columns of zeros, for which the first layer has weights of zero that stay zero."""
    missing = _aligned(inputs_BI.shape[1]) - inputs_BI.shape[1]
    return functional.pad(inputs_BI, (0, missing)) if missing else inputs_BI


def _shared_product(inputs_BI: Tensor, weight_KWI: Tensor) -> Tensor:
    """Return inputs times each network's weights, (K, B, W), by one product."""
    n_networks, width, n_columns = weight_KWI.shape
    product_BKW = functional.linear(inputs_BI, weight_KWI.view(-1, n_columns)).view(-1, n_networks, width)
    return product_BKW.transpose(0, 1)


def _stacked(name: str, weights: Sequence[Tensor], width: int) -> Tensor:
    """Lay the weights of this name on top of each other, padded by zeros to layers of this width."""
    shape = weights[0].shape
    if name == "classifier.weight":
        shape = torch.Size((shape[0], width))
    elif name == "layers.0.weight":
        shape = torch.Size((width, _aligned(shape[1])))
    elif not name.startswith(_OF_THE_HEAD):
        shape = torch.Size((width,) * len(shape))
    stack = weights[0].new_zeros(len(weights), *shape)
    for padded, weight in zip(stack, weights, strict=True):
        padded[tuple(slice(size) for size in weight.shape)] = _as_in_stack(name, weight.detach())
    return stack


def _as_in_stack(name: str, weight: Tensor) -> Tensor:
    """Turn the weight between two hidden layers, to the stack's layout or back: so products need no copy of gradients.

    Of a large network that copy was a seventh of a step.
    """
    is_between = name.startswith("layers.") and name.endswith("weight") and name != "layers.0.weight"
    return weight.T if is_between else weight


class _Optimiser:
    """Torch's fused optimiser for one network's weights, which lie in a stack."""

    def __init__(self, weights: dict[str, Tensor], config: ExpressionTrainConfig) -> None:
        self._weights, self._l1 = weights, config.l1
        self._signs = {name: torch.empty_like(weight) for name, weight in weights.items() if _is_penalised(name)}
        groups: dict[tuple[float, bool], list[Tensor]] = {}
        for name, weight in weights.items():
            groups.setdefault((_rate(name, weights, config), _is_penalised(name)), []).append(weight)
        options = [
            {"params": members, "lr": rate, "weight_decay": config.l2 if penalised else 0.0}
            for (rate, penalised), members in groups.items()
        ]
        self._optimiser: torch.optim.Optimizer
        match config.optimiser:
            case "adam":
                self._optimiser = torch.optim.Adam(options, fused=True)
            case "adamw":
                self._optimiser = torch.optim.AdamW(options, fused=True)
            case "sgd":
                self._optimiser = torch.optim.SGD(options, momentum=_MOMENTUM, fused=True)

    def step(self, gradients: Sequence[Tensor]) -> None:
        """Change the weights, of which these are the gradients, in their order."""
        for (name, weight), gradient in zip(self._weights.items(), gradients, strict=True):
            weight.grad = gradient
            if self._l1 and _is_penalised(name):
                weight.grad.add_(torch.sign(weight, out=self._signs[name]), alpha=self._l1)
        self._optimiser.step()


def _is_penalised(name: str) -> bool:
    return name.endswith("weight") and not name.startswith("norms.")


def _rate(name: str, weights: dict[str, Tensor], config: ExpressionTrainConfig) -> float:
    """Return the learning rate of a weight: of a layer the lower, the further it is from the outputs."""
    if config.strategy != "discriminative" or name.startswith(_OF_THE_HEAD):
        return config.learning_rate
    n_layers = sum(other.startswith("layers.") and other.endswith("weight") for other in weights)
    return config.learning_rate * config.layer_decay ** -(n_layers - int(name.split(".")[1]))
