"""Does an explanation change when the model forgets what it learned? One that does not shows the input, not the model.

Weights are drawn anew from the top block down, until nothing is left of the training, and labels are permuted before a
head is fitted. What stays alike in a network of random weights is what any network makes of these cells: where genes
stand, and which ones they are.

Adebayo et al., Advances in Neural Information Processing Systems 31 (2018), for both tests.
"""

import copy
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from torch import nn

from geneformer_repro.agreement import spearman
from geneformer_repro.checkpoint import Checkpoint
from geneformer_repro.errors import InputError
from geneformer_repro.heads import CellClassifier, GeneClassifier
from geneformer_repro.in_silico.explanations.agreement import FEWEST_GENES
from geneformer_repro.in_silico.explanations.gene_table import Attributions, sound_blocks
from geneformer_repro.model import MaskedGeneModel
from geneformer_repro.targets import Classes, Number, Target

RANDOM_WEIGHTS, PERMUTED_LABELS = "random weights", "permuted labels"
MOST_ALIKE = 0.3
"""Spearman correlation with random weights beyond which a map mostly shows the input."""
_OTHER_WEIGHTS = 2**31
"""Added to seeds, so that no weights are those that a training with the same seed began with."""
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
    What is new, and the model: first the head, then one block more at a time, at last everything, "random weights". Of
    a network that reads no tokens everything at once.
    """
    model = checkpoint.model
    if not isinstance(model, MaskedGeneModel | CellClassifier | GeneClassifier):
        yield RANDOM_WEIGHTS, _renamed(checkpoint, _drawn_anew(model, seed), RANDOM_WEIGHTS)
        return
    fresh = _fresh(model, seed)
    trained = model.state_dict()
    if set(trained) != set(fresh.state_dict()):
        raise InputError(
            f"{checkpoint.name} has adapters or quantised weights, which cannot be drawn anew block by block. Merge "
            "them into the model first (merge_and_unload)."
        )
    n_blocks = model.config.num_hidden_layers
    names = ["head"] if checkpoint.head is not None else []
    names += [f"down to block {i}" for i in range(n_blocks, 0, -1)]
    for name in names:
        kept = ["bert.embeddings."] + [f"bert.encoder.layer.{i}." for i in range(_n_kept(name, n_blocks))]
        network = copy.deepcopy(fresh)
        some = {key: weight for key, weight in trained.items() if key.startswith(tuple(kept))}
        network.load_state_dict(some, strict=False)
        yield name, _renamed(checkpoint, network.eval(), name)
    yield RANDOM_WEIGHTS, _renamed(checkpoint, fresh, RANDOM_WEIGHTS)


def _n_kept(name: str, n_blocks: int) -> int:
    """Return how many blocks stay as they are; a pretrained model's head is what makes tokens of vectors."""
    return n_blocks if name == "head" else int(name.rpartition(" ")[2]) - 1


def _fresh(model: MaskedGeneModel | CellClassifier | GeneClassifier, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_OTHER_WEIGHTS + seed)
        made = (
            type(model)(model.config) if isinstance(model, MaskedGeneModel) else type(model)(model.config, model.head)
        )
    device = next(model.parameters()).device
    return nn.Module.to(made, device).eval()


def _drawn_anew(model: nn.Module, seed: int) -> nn.Module:
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
        Which of its targets; classes, or a number.
    vectors
        What the last layer reads of each cell, (cells, D).
    labels
        Of each cell, without gaps.
    seed
        Of the permutation.

    Returns
    -------
    A copy with another last layer: a ridge-penalised logistic regression, or a ridge regression, on vectors brought to
    mean 0 and variance 1.

    Raises
    ------
    InputError
        The target is a time, or the labels are all alike.
    """
    model = checkpoint.model
    assert isinstance(model, CellClassifier)
    targets = model.head.targets
    number = [one.name for one in targets].index(target)
    of_target = targets[number]
    dealt = np.random.default_rng(seed).permutation(np.asarray(labels, dtype=object))
    if len(set(dealt.tolist())) < 2:
        raise InputError(f"All {len(dealt):,} cells have the same {target}; permuting it changes nothing.")
    mean, sd = vectors.mean(0), vectors.std(0)
    sd[sd == 0] = 1
    weight_KD, bias_K = _fitted(of_target, (vectors - mean) / sd, dealt)
    weight_KD = weight_KD / sd
    bias_K = bias_K - weight_KD @ mean
    network = copy.deepcopy(model)
    start = sum(one.n_outputs for one in targets[:number])
    with torch.no_grad():
        layer = network.classifier
        rows = slice(start, start + of_target.n_outputs)
        layer.weight[rows] = torch.as_tensor(weight_KD, dtype=layer.weight.dtype, device=layer.weight.device)
        layer.bias[rows] = torch.as_tensor(bias_K, dtype=layer.bias.dtype, device=layer.bias.device)
    return _renamed(checkpoint, network.eval(), PERMUTED_LABELS)


def _fitted(target: Target, vectors: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(target, Classes):
        return _fitted_classes(target, vectors, labels)
    if isinstance(target, Number):
        fitted = Ridge(alpha=1.0).fit(vectors, (labels.astype(float) - target.mean) / target.sd)
        return fitted.coef_.reshape(1, -1), np.atleast_1d(fitted.intercept_)
    raise InputError(
        f"{target.name!r} is a time to an event, of which no head is fitted here. Fine-tune on permuted times yourself "
        "and give that checkpoint as permuted=."
    )


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
