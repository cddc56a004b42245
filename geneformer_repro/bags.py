"""Patients as bags of cells: a network that makes one vector of the vectors of many cells, and says of whom it is made.

The label is known of the bag alone, so what decides must be found: the mean over a thousand cells hides one that
matters, while a learned weighted mean can give it all the weight. The vectors of cells are given, and stay as they are;
the network is small, its cells are standardised by the training cells, and it is a folder of its own, since it needs
no vocabulary.

Shapes: N cells of all bags end to end, P bags, S segments (the cells of one type in a bag), T types, D length of a
vector, H of the vector that is pooled, K outputs.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from geneformer_repro.attention import Cells
from geneformer_repro.errors import InputError
from geneformer_repro.files import misfit, read_json, write_json
from geneformer_repro.heads import shares_within, weighted_sums
from geneformer_repro.network_settings import BagPooling
from geneformer_repro.targets import Target, columns_of

FORMAT = "geneformer_repro/bags/1"
NETWORK_FILE, WEIGHTS_FILE = "bags.json", "model.safetensors"


@dataclass(frozen=True, eq=False)
class Bags:
    """Vectors of cells, those of a bag side by side, and within it those of a type."""

    vectors_ND: Tensor
    """Of each cell."""
    lengths: np.ndarray
    """Cells of each bag, at least one."""
    types_N: np.ndarray
    """Number of each cell's type, -1 for one that has none that the network knows; ascending within a bag."""

    def __len__(self) -> int:
        return len(self.lengths)

    def to(self, device: torch.device) -> "Bags":
        """Return them with the vectors on a device."""
        return Bags(self.vectors_ND.to(device), self.lengths, self.types_N)

    def cells_of(self, bags: np.ndarray) -> np.ndarray:
        """Return which cells some bags hold, bag after bag."""
        ends = np.cumsum(self.lengths)
        return np.concatenate([np.arange(ends[bag] - self.lengths[bag], ends[bag]) for bag in bags])

    def select(self, bags: np.ndarray) -> "Bags":
        """Return some of the bags."""
        cells = self.cells_of(bags)
        return Bags(
            self.vectors_ND[torch.from_numpy(cells).to(self.vectors_ND.device)], self.lengths[bags], self.types_N[cells]
        )

    @cached_property
    def whole(self) -> Cells:
        """Where each bag lies among the cells."""
        return Cells(self.lengths.tolist())

    @cached_property
    def by_type(self) -> tuple[Cells, Cells, Tensor]:
        """Where the cells of each type of a bag lie, where each bag lies among these, and which types they are."""
        bag_N = np.repeat(np.arange(len(self)), self.lengths)
        begins_N = np.append(True, (np.diff(bag_N) != 0) | (np.diff(self.types_N) != 0))
        starts_S = np.flatnonzero(begins_N)
        lengths_S = np.diff(np.append(starts_S, len(bag_N)))
        n_types_P = np.bincount(bag_N[starts_S], minlength=len(self))
        return Cells(lengths_S.tolist()), Cells(n_types_P.tolist()), torch.from_numpy(self.types_N[starts_S])


@dataclass(frozen=True, kw_only=True)
class BagShape:
    """What decides the shape of a `BagNetwork`."""

    pooling: BagPooling
    """The mean over all cells; a learned weighted mean; or one over the cells of each type, then one over the types
    that a bag has."""
    n_inputs: int
    """Length of a cell's vector."""
    hidden: int
    """Length of the vector that is made of each cell before pooling; 0 pools the vectors themselves."""
    attention: int
    """Hidden size of what weighs cells."""
    dropout: float
    """Share of a hidden, and of a bag's, vector that is left out at random while training."""
    cell_types: tuple[str, ...]
    """Types of cells that the network tells apart; empty but for ``pooling="cell_type"``."""


class Pooled(NamedTuple):
    """What a network makes of bags."""

    outputs_PK: Tensor
    attention_N: Tensor
    """How much each cell counts; of each bag the sum is 1."""


class GatedAttention(nn.Module):
    """Scores of vectors, of which a softmax makes weights: w · (tanh(V h) * sigmoid(U h)).

    References
    ----------
    Ilse, Tomczak & Welling, ICML 2018, "Attention-based deep multiple instance learning", equation 9.
    """

    def __init__(self, n_inputs: int, size: int) -> None:
        super().__init__()
        self.value, self.gate, self.score = nn.Linear(n_inputs, size), nn.Linear(n_inputs, size), nn.Linear(size, 1)

    def forward(self, hidden_NH: Tensor) -> Tensor:
        """Return a score a row, (N,)."""
        gated: Tensor = self.score(self.value(hidden_NH).tanh() * self.gate(hidden_NH).sigmoid())
        return gated[:, 0]


class BagNetwork(nn.Module):
    """One vector a bag, by a pooling, and a linear layer for all targets.

    Parameters
    ----------
    shape
        Its shape.
    targets
        What it predicts; outputs lie side by side in this order.
    """

    def __init__(self, shape: BagShape, targets: Sequence[Target]) -> None:
        super().__init__()
        self.shape, self.targets = shape, tuple(targets)
        self.register_buffer("mean_D", torch.zeros(shape.n_inputs))
        self.register_buffer("sd_D", torch.ones(shape.n_inputs))
        width = shape.hidden or shape.n_inputs
        layers = [nn.Linear(shape.n_inputs, width), nn.ReLU(), nn.Dropout(shape.dropout)] if shape.hidden else []
        self.body, self.dropout = nn.Sequential(*layers), nn.Dropout(shape.dropout)
        if shape.pooling != "mean":
            self.attention = GatedAttention(width, shape.attention)
        if shape.pooling == "cell_type":
            self.type_attention = GatedAttention(width, shape.attention)
            self.type_bias = nn.Parameter(torch.zeros(len(shape.cell_types) + 1))  # the last of cells of no known type
        self.classifier = nn.Linear(width, sum(target.n_outputs for target in self.targets))

    def standardise(self, vectors_ND: Tensor) -> None:
        """Take mean and standard deviation of the inputs from these cells, for all that is asked later."""
        sd_D = vectors_ND.std(dim=0, correction=0)
        self.mean_D, self.sd_D = vectors_ND.mean(dim=0), torch.where(sd_D > 0, sd_D, 1.0)

    def forward(self, bags: Bags) -> Pooled:
        """Return the outputs of each bag, and how much each cell counted."""
        hidden_NH = self.body((bags.vectors_ND - self.mean_D) / self.sd_D)
        pooled_PH, attention_N = self._pooled(hidden_NH, bags)
        return Pooled(self.classifier(self.dropout(pooled_PH)), attention_N)

    def _pooled(self, hidden_NH: Tensor, bags: Bags) -> tuple[Tensor, Tensor]:
        device = hidden_NH.device
        is_mean = self.shape.pooling == "mean"
        score_N = hidden_NH.new_zeros(len(hidden_NH)) if is_mean else self.attention(hidden_NH)
        if self.shape.pooling != "cell_type":
            share_N = shares_within(score_N, bags.whole)
            return weighted_sums(hidden_NH, share_N, bags.whole), share_N
        segments, types_of_bags, type_S = bags.by_type
        share_N = shares_within(score_N, segments)
        pooled_SH = weighted_sums(hidden_NH, share_N, segments)
        share_S = shares_within(self.type_attention(pooled_SH) + self.type_bias[type_S.to(device)], types_of_bags)
        attention_N = share_N * share_S[segments.numbers_on(device)]
        return weighted_sums(pooled_SH, share_S, types_of_bags), attention_N

    def meaning(self, outputs_PK: Tensor) -> Tensor:
        """Return what the outputs mean, all targets side by side, in double precision."""
        pieces = zip(self.targets, self._split(outputs_PK.double()), strict=True)
        return torch.cat([target.meaning(outputs) for target, outputs in pieces], dim=-1)

    def columns(self, meaning_PK: np.ndarray) -> dict[str, np.ndarray]:
        """Return the columns of a table of predictions, by name."""
        of_targets = zip(self.targets, columns_of(self.targets, meaning_PK), strict=True)
        return {name: column for target, of in of_targets for name, column in target.columns(of).items()}

    def losses(self, labels_PS: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the sum over bags and targets of losses of outputs, as a function; a missing label adds nothing."""
        of_labels = labels_PS.split([target.n_labels for target in self.targets], dim=-1)
        of_targets = [target.prepared_loss(labels) for target, labels in zip(self.targets, of_labels, strict=True)]

        def summed(outputs_PK: Tensor) -> Tensor:
            pieces = zip(of_targets, self._split(outputs_PK), strict=True)
            return torch.stack([loss(outputs) for loss, outputs in pieces]).sum()

        return summed

    def fit_targets(self, outputs_PK: Tensor, labels_PS: Tensor) -> None:
        """Let the targets learn from the outputs of the training bags what a loss leaves open, as Cox's baseline."""
        of_labels = labels_PS.split([target.n_labels for target in self.targets], dim=-1)
        pieces = zip(self.targets, self._split(outputs_PK), of_labels, strict=True)
        self.targets = tuple(target.fitted(outputs, labels) for target, outputs, labels in pieces)

    def _split(self, outputs_PK: Tensor) -> tuple[Tensor, ...]:
        return outputs_PK.split([target.n_outputs for target in self.targets], dim=-1)

    def write_into(self, folder: Path) -> None:
        """Write the network's two files into a folder that exists."""
        targets = [target.to_json() for target in self.targets]
        shape = asdict(self.shape) | {"cell_types": list(self.shape.cell_types)}
        write_json(folder / NETWORK_FILE, {"format": FORMAT, "targets": targets, "shape": shape})
        weights = {name: weight.detach().cpu().contiguous() for name, weight in self.state_dict().items()}
        save_file(weights, folder / WEIGHTS_FILE)
        (folder / WEIGHTS_FILE).chmod((folder / NETWORK_FILE).stat().st_mode)  # safetensors: its owner's alone

    @classmethod
    def open(cls, folder: str | Path) -> "BagNetwork":
        """Open a network that `finetune_patients` wrote.

        Raises
        ------
        InputError
            There is none, or it is damaged.
        """
        folder = Path(folder)
        if not (folder / NETWORK_FILE).exists():
            raise InputError(
                f"{folder}: no {NETWORK_FILE} there, so no network of patients. Name the folder that "
                "finetune_patients wrote."
            )
        content: dict[str, Any] = read_json(folder / NETWORK_FILE)
        if wrong := misfit(content, _FORM):
            raise InputError(f"{folder / NETWORK_FILE}: {wrong}")
        if content["format"] != FORMAT:
            raise InputError(
                f"{folder / NETWORK_FILE}: is of format {content['format']!r}, this version reads {FORMAT}."
            )
        shape = BagShape(**content["shape"] | {"cell_types": tuple(content["shape"]["cell_types"])})
        network = cls(shape, [Target.from_json(target) for target in content["targets"]])
        network.load_state_dict(load_file(folder / WEIGHTS_FILE))
        return network.eval()


_FORM = {
    "format": str,
    "targets": [{}],
    "shape": {
        "pooling": str, "n_inputs": int, "hidden": int, "attention": int, "dropout": float, "cell_types": [str],
    },
}  # fmt: skip
"""What the network's file holds, for `files.misfit`."""


def entropy_of(attention_N: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return how evenly each bag's attention lies on its cells, (P,): 1 for all alike, 0 for all on one cell.

    It is the entropy over the highest that so many cells can have; 1 for a bag of one cell.
    """
    ends = np.cumsum(lengths)[:-1]
    entropies = [
        -np.sum(share * np.log(share, where=share > 0, out=np.zeros_like(share)))
        for share in np.split(attention_N, ends)
    ]
    return np.array([entropy / math.log(n) if n > 1 else 1.0 for entropy, n in zip(entropies, lengths, strict=True)])
