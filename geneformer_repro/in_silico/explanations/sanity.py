"""Does an explanation change when the model forgets what it learned? One that does not shows the input, not the model.

Weights are drawn anew from the top block down, until nothing is left of the training, and labels are permuted before a
head is fitted. What stays alike in a network of random weights is what any network makes of these cells: where genes
stand, and which ones they are.

Adebayo et al., Advances in Neural Information Processing Systems 31 (2018), for both tests.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

import numpy as np
import pandas as pd
import torch
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression, Ridge
from torch import nn

from geneformer_repro.agreement import spearman
from geneformer_repro.checkpoint import Checkpoint
from geneformer_repro.errors import InputError
from geneformer_repro.expression import ExpressionNetwork
from geneformer_repro.heads import CellClassifier, GeneClassifier
from geneformer_repro.in_silico.explanations.agreement import FEWEST_GENES
from geneformer_repro.in_silico.explanations.gene_table import Attributions, sound_blocks
from geneformer_repro.in_silico.explanations.how_good import labels_in
from geneformer_repro.model import MaskedGeneModel
from geneformer_repro.pair_networks import PairNetwork
from geneformer_repro.targets import Classes, Number, Response, SurvivalTime, Target

RANDOM_WEIGHTS, PERMUTED_LABELS = "random weights", "permuted labels"
MOST_ALIKE = 0.3
"""Spearman correlation with random weights beyond which a map mostly shows the input."""
_OTHER_WEIGHTS = 2**31
"""Added to seeds, so that no weights are those that a training with the same seed began with."""
Network = TypeVar("Network", bound=nn.Module)
_READ = ("cell", "gene", "method", "state", "value")


# Models that forgot


def forgetting(checkpoint: Checkpoint, *, seed: int = 0) -> Iterator[tuple[str, Checkpoint]]:
    """Draw weights anew, from the top down.

    Parameters
    ----------
    checkpoint
        A model.
    seed
        Of the weights.

    Yields
    ------
    What is new, and the model: first the head, then one block, or layer, more at a time, at last everything, "random
    weights". Of a network of drug response the output, then the layers over both, then everything.
    """
    model = checkpoint.model
    fresh = drawn_anew(model, seed) if isinstance(model, _OF_VALUES) else _fresh(model, seed)
    trained = model.state_dict()
    if set(trained) != set(fresh.state_dict()):
        raise InputError(
            f"{checkpoint.name} has adapters or quantised weights, which cannot be drawn anew block by block. Merge "
            "them into the model first (merge_and_unload)."
        )
    for name, is_kept in _steps(model, has_head=checkpoint.head is not None):
        network = copy.deepcopy(fresh)
        network.load_state_dict({key: weight for key, weight in trained.items() if is_kept(key)}, strict=False)
        yield name, _renamed(checkpoint, network.eval(), name)
    yield RANDOM_WEIGHTS, _renamed(checkpoint, fresh, RANDOM_WEIGHTS)


_OF_VALUES = (ExpressionNetwork, PairNetwork)


def _steps(model: nn.Module, *, has_head: bool) -> Iterator[tuple[str, Callable[[str], bool]]]:
    """Yield what is drawn anew before everything is, and which weights stay then; a pretrained model has no head."""
    if isinstance(model, PairNetwork):
        for name, new in (("output", ("output.",)), ("down to layers of both", ("output.", "joint."))):
            yield name, partial(_begins, new, False)
        return
    if isinstance(model, ExpressionNetwork):
        n_layers, what, fewest = len(model.layers), "layer", 1  # down to the first is everything
        below: tuple[str, ...] = ()
        layers: list[tuple[str, ...]] = [(f"layers.{i}.", f"norms.{i}.") for i in range(n_layers)]
    else:
        assert isinstance(model, MaskedGeneModel | CellClassifier | GeneClassifier)
        n_layers, what, fewest = int(model.config.num_hidden_layers), "block", 0
        below = ("bert.embeddings.",)
        layers = [(f"bert.encoder.layer.{i}.",) for i in range(n_layers)]
    for n_kept in range(n_layers if has_head else n_layers - 1, fewest - 1, -1):
        kept = (*below, *(prefix for of_layer in layers[:n_kept] for prefix in of_layer))
        name = "head" if n_kept == n_layers else f"down to {what} {n_kept + 1}"
        yield name, partial(_begins, kept, True)


def _begins(prefixes: tuple[str, ...], wanted: bool, key: str) -> bool:
    return key.startswith(prefixes) == wanted


def _fresh(model: MaskedGeneModel | CellClassifier | GeneClassifier, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_OTHER_WEIGHTS + seed)
        made = (
            type(model)(model.config) if isinstance(model, MaskedGeneModel) else type(model)(model.config, model.head)
        )
    device = next(model.parameters()).device
    return nn.Module.to(made, device).eval()


def drawn_anew(model: Network, seed: int) -> Network:
    """Return a copy all of whose layers have new weights."""
    network = copy.deepcopy(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_OTHER_WEIGHTS + seed)
        for module in network.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
    return network.eval()


def _renamed(checkpoint: Checkpoint, network: nn.Module, name: str) -> Checkpoint:
    return Checkpoint(network, checkpoint.vocabulary, name=name)  # type: ignore[arg-type]


def with_permuted_labels(
    checkpoint: Checkpoint, target: str, vectors: np.ndarray, labels: Sequence[object], *, seed: int = 0
) -> Checkpoint:
    """Fit the last layer of a classifier to labels that were dealt to cells at random; the encoder stays.

    Parameters
    ----------
    checkpoint
        A classifier of cells.
    target
        Which of its targets.
    vectors
        What the last layer reads of each cell, (cells, D).
    labels
        Of each cell, without gaps; of a time to an event pairs of time and event.
    seed
        Of the permutation.

    Returns
    -------
    A copy with another last layer: a ridge-penalised logistic, Cox (or the like) or linear regression, on vectors
    brought to mean 0 and variance 1.

    Raises
    ------
    InputError
        The labels are all alike.
    """
    model = checkpoint.model
    assert isinstance(model, CellClassifier)
    number = [one.name for one in model.head.targets].index(target)
    network = copy.deepcopy(model)
    fit_dealt(
        network.classifier, model.head.targets, number, vectors, np.asarray(labels, dtype=object), seed=seed
    )  # fmt: skip
    return _renamed(checkpoint, network.eval(), PERMUTED_LABELS)


def fit_dealt(
    layer: nn.Linear, targets: Sequence[Target], number: int, vectors: np.ndarray, labels: np.ndarray, *, seed: int
) -> None:
    """Fit a last layer to labels that are dealt to rows at random, in its place; what is below it stays.

    Parameters
    ----------
    layer
        Whose outputs of all targets lie side by side.
    targets, number
        The targets, and which of them.
    vectors
        What the layer reads of each row, (rows, D).
    labels
        Of each row, without gaps: names of classes or numbers, (rows,), or time and event, (rows, 2).
    seed
        Of the permutation.

    Raises
    ------
    InputError
        The labels are all alike.
    """
    target = targets[number]
    dealt = np.random.default_rng(seed).permutation(labels)
    if len({str(one) for one in dealt.tolist()}) < 2:
        raise InputError(f"All {len(dealt):,} rows have the same {target.name}; permuting it changes nothing.")
    mean, sd = vectors.mean(0), vectors.std(0)
    sd[sd == 0] = 1
    weight_KD, bias_K = _fitted(target, (vectors - mean) / sd, dealt)
    weight_KD = weight_KD / sd
    bias_K = bias_K - weight_KD @ mean
    start = sum(one.n_outputs for one in targets[:number])
    rows = slice(start, start + target.n_outputs)
    with torch.no_grad():
        layer.weight[rows] = torch.as_tensor(weight_KD, dtype=layer.weight.dtype, device=layer.weight.device)
        layer.bias[rows] = torch.as_tensor(bias_K, dtype=layer.bias.dtype, device=layer.bias.device)


def labels_to_deal(target: Target, obs: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return which rows have labels, and these as `fit_dealt` takes them; none where they are all alike."""
    labels = labels_in(target, obs)
    if labels is None:
        return np.zeros(0, dtype=np.int64), np.zeros(0)
    rows = np.flatnonzero(~np.isnan(labels).any(axis=1))
    labels = labels[rows]
    if len(np.unique(labels, axis=0)) < 2:
        return rows[:0], labels[:0]
    if isinstance(target, Classes):
        return rows, np.asarray(target.classes, dtype=object)[labels[:, 0].astype(np.int64)]
    return rows, labels if isinstance(target, SurvivalTime) else labels[:, 0]


def read_by(layer: nn.Module, run: Callable[[], object]) -> np.ndarray:
    """Return what a layer reads while something runs, all calls one after the other, (rows, D) float64."""
    read: list[torch.Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, given: read.append(given[0].detach().double().cpu()))
    try:
        run()
    finally:
        hook.remove()
    return torch.cat(read).numpy()


def _fitted(target: Target, vectors: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(target, Classes):
        return _fitted_classes(target, vectors, labels)
    if isinstance(target, SurvivalTime):
        return _fitted_times(target, vectors, labels.astype(float))
    assert isinstance(target, Number | Response)
    fitted = Ridge(alpha=1.0).fit(vectors, (labels.astype(float) - target.mean) / target.sd)
    return fitted.coef_.reshape(1, -1), np.atleast_1d(fitted.intercept_)


def _fitted_times(target: SurvivalTime, vectors: np.ndarray, labels_N2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fit a linear layer by the target's own loss, with the penalty of a logistic regression (C = 1).

    Of "weibull" the penalty is on weights of the log hazard, as of the other losses, and all rows share a shape. That
    is convex in log hazard and shape. With weights of the log scale and of the log shape, each penalised by itself,
    there is no least loss where there are as many columns as events: the times are met exactly, and the shape grows
    for ever (40 rows, 64 columns: 15,001 evaluations, 8 s, loss -126 and falling; now 95, 0.06 s).
    """
    vectors_ND = torch.from_numpy(vectors).double()
    of_one_cohort = np.column_stack([labels_N2, np.zeros(len(labels_N2))])
    loss_of = target.prepared_loss(torch.from_numpy(of_one_cohort).double())
    if target.learned_by == "weibull":
        return _fitted_weibull(vectors_ND, loss_of)

    def penalised(weight_KD1: torch.Tensor) -> torch.Tensor:
        weight_KD, bias_K = weight_KD1[:, :-1], weight_KD1[:, -1]
        return loss_of(vectors_ND @ weight_KD.T + bias_K) + 0.5 * weight_KD.square().sum()

    found = _least(penalised, (target.n_outputs, vectors_ND.shape[1] + 1))
    return found[:, :-1], found[:, -1]


def _fitted_weibull(
    vectors_ND: torch.Tensor, loss_of: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[np.ndarray, np.ndarray]:
    """Return weights and biases of the log scale, and of a log shape that is the same for all rows."""

    def penalised(parameters: torch.Tensor) -> torch.Tensor:
        weight_D, bias, log_shape = parameters[:-2], parameters[-2], parameters[-1]
        log_scale_N = -(vectors_ND @ weight_D + bias) / log_shape.exp()
        outputs_N2 = torch.stack([log_scale_N, log_shape.expand_as(log_scale_N)], dim=-1)
        return loss_of(outputs_N2) + 0.5 * weight_D.square().sum()

    found = _least(penalised, (vectors_ND.shape[1] + 2,))
    log_scale_D1 = -found[:-1] / np.exp(found[-1])
    weight_2D = np.stack([log_scale_D1[:-1], np.zeros(vectors_ND.shape[1])])
    return weight_2D, np.array([log_scale_D1[-1], found[-1]])


def _least(loss_of: Callable[[torch.Tensor], torch.Tensor], shape: tuple[int, ...]) -> np.ndarray:
    """Return the parameters of least loss that are found from zero."""

    def loss_and_slope(flat: np.ndarray) -> tuple[float, np.ndarray]:
        with torch.enable_grad():
            parameters = torch.from_numpy(flat).view(shape).requires_grad_()
            loss = loss_of(parameters)
            (slope,) = torch.autograd.grad(loss, parameters)
        return loss.item(), slope.numpy().ravel()

    return minimize(loss_and_slope, np.zeros(shape).ravel(), jac=True, method="L-BFGS-B").x.reshape(shape)


def _fitted_classes(target: Classes, vectors: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    fitted = LogisticRegression(C=1.0, max_iter=1000).fit(vectors, labels.astype(str))
    weight_KD, bias_K = np.zeros((len(target.classes), vectors.shape[1])), np.full(len(target.classes), -30.0)
    rows = [target.classes.index(name) for name in fitted.classes_]
    coefficients, intercepts = fitted.coef_, fitted.intercept_
    if len(rows) == 2:
        coefficients, intercepts = np.vstack([-coefficients, coefficients]) / 2, np.array([-1, 1]) * intercepts / 2
    weight_KD[rows], bias_K[rows] = coefficients, intercepts
    return weight_KD, bias_K


# What stays alike


def sanity(why: Attributions, others: Iterator[tuple[str, Callable[[], Attributions]]]) -> pd.DataFrame:
    """Compare attributions with those of models that forgot.

    Parameters
    ----------
    why
        The explanation.
    others
        By model, the same methods and cells explained again, or some of them.

    Returns
    -------
    A row a ``model``, ``method`` and ``state``: ``spearman``, the median over ``n_cells`` of the rank correlation of
    absolute attributions in a cell, with its quartiles ``lower`` and ``upper``, and ``signed``, the median of that of
    attributions with their signs.
    """
    tables = []
    ours: pd.Series | None = None
    for model, explain_again in others:
        theirs = _values(explain_again())
        ours = _values(why, cells=set(theirs.index.unique("cell"))) if ours is None else ours
        table = alike(ours, theirs)
        table.insert(0, "model", model)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _values(why: Attributions, *, cells: set[str] | None = None) -> pd.Series:
    """Return the attributions of some cells, or all, by method, state, cell and gene."""
    parts = []
    for block in sound_blocks(why, _READ, ranked=True):
        chosen = block if cells is None else block[block["cell"].isin(cells)]
        parts.append(chosen[list(_READ)].astype({"state": object}))
    table = pd.concat([part.astype(dict.fromkeys(["method", "cell", "gene"], object)) for part in parts])
    return table.set_index(["method", "state", "cell", "gene"])["value"]


def alike(ours: pd.Series, theirs: pd.Series) -> pd.DataFrame:
    """Compare two attributions of the same cells, by method, state, cell and gene, cell by cell."""
    both = pd.DataFrame({"ours": ours, "theirs": theirs.reindex(ours.index)}).dropna()
    rows = []
    for (method, state), of_method in both.groupby(level=["method", "state"], sort=False, dropna=False):
        in_cells = [
            (spearman(np.abs(a), np.abs(b)), spearman(a, b))
            for a, b in (of_cell.to_numpy().T for _, of_cell in of_method.groupby(level="cell", sort=False))
            if len(a) >= FEWEST_GENES
        ]
        absolute, signed = np.array(in_cells, dtype=float).reshape(-1, 2).T
        absolute, signed = (of[~np.isnan(of)] for of in (absolute, signed))
        lower, median, upper = np.percentile(absolute, [25, 50, 75]) if len(absolute) else (np.nan,) * 3
        with_signs = float(np.median(signed)) if len(signed) else np.nan
        row = {"method": method, "state": state, "spearman": median, "lower": lower, "upper": upper}
        rows.append({**row, "signed": with_signs, "n_cells": len(absolute)})
    return pd.DataFrame(rows)
