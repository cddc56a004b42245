"""Genes of samples whose drug response is told from tokens alone: what cells are explained by, of a network over pairs.

The response to each of some drugs is a number that a sample's hidden states give, as log-odds of classes are of a
cell's: so every method of cells is one of these samples, exact where it is exact of cells, and integrated gradients are
complete through encoder, pooling and the layers over both.

Shapes: T tokens of B samples, D hidden size, S drugs.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from geneformer_repro.heads import pool
from geneformer_repro.in_silico.explanations.answers import Shown, View, counted, unchanged
from geneformer_repro.in_silico.explanations.attribution import Attribution
from geneformer_repro.in_silico.explanations.cell_methods import CellMethods
from geneformer_repro.in_silico.explanations.occlusions import ask
from geneformer_repro.in_silico.explanations.pair_occlusions import answers
from geneformer_repro.in_silico.explanations.request import Request
from geneformer_repro.in_silico.parted import batch_tokens
from geneformer_repro.pair_networks import PairNetwork, Side
from geneformer_repro.reading import Reader
from geneformer_repro.tokenizer.dataset import TokenizedDataset

METHODS = (
    "integrated_gradients", "gradient_input", "hide", "delete", "mask", "median_rank", "first_order",
    "attention_gradient",
)  # fmt: skip
APPROXIMATE = ("gradient_input", "first_order", "attention_gradient")
_SPREAD = 0.1
"""Of the labels' standard deviation; completeness is of a tenth of it at least, as in networks of values."""


@dataclass(frozen=True)
class _ToDrugs:
    """What a network says of a sample and some drugs, as an answer about a cell."""

    network: PairNetwork
    drugs: Side
    names: tuple[str, ...]
    layer: int = 0
    asked: None = None
    masks: bool = False
    described: str = "predicted response to each drug"

    @property
    def first_only(self) -> bool:
        """Whether the first token's state is all that is read."""
        return self.network.head.first_only

    def __call__(self, hidden_TD: Tensor, shown: Shown) -> Tensor:
        """Return the responses, (B, S)."""
        samples = self.network.of_samples(pooled=pool(hidden_TD, *counted(hidden_TD, shown), "mean"))
        n, n_drugs = len(shown.lengths), len(self.names)
        number = torch.arange(n * n_drugs, device=hidden_TD.device)
        pairs = torch.stack([number // n_drugs, number % n_drugs], dim=1)
        return answers(self.network, samples, self.drugs, pairs).view(n, n_drugs).float()


class TokenGenes:
    """Samples of a network over pairs that reads tokens alone, by their genes.

    Parameters
    ----------
    request
        What is asked; of its methods those of tokens are done here.
    network, cells
        The network, and all samples.
    drugs
        What the network reads of all drugs.
    """

    def __init__(self, request: Request, network: PairNetwork, cells: TokenizedDataset, drugs: np.ndarray) -> None:
        self._network, self._cells, self._drugs = network.eval(), cells, drugs
        self._methods = CellMethods(request, cells, np.flatnonzero(cells.has_gene))
        self._methods.prepare()
        self._device = next(network.parameters()).device
        n_blocks, room = int(network.bert.config.num_hidden_layers), batch_tokens(request.max_tokens, self._device)
        self._reader = Reader(network.bert, n_blocks, self._device, request.dtype, room)

    def _to(self, drugs: np.ndarray) -> _ToDrugs:
        with torch.no_grad():
            read = self._network.of_drugs(torch.from_numpy(self._drugs[drugs]).to(self._device))
        return _ToDrugs(self._network, read, tuple(map(str, drugs)))

    def ids(self, sample: int) -> list[str]:
        """Return the genes of a sample, in the order of their places."""
        return self._cells.genes(sample)

    def work(self, sample: int, n_drugs: int) -> int:
        """Return how many tokens are read to explain a sample."""
        length = int(self._cells.lengths[sample])
        return length * self._methods.work(length, n_drugs)

    def attribution(self, method: str, sample: int, drugs: np.ndarray) -> Attribution:
        """Return what a method says of the genes of a sample, for each of some drugs."""
        self._methods.take_spread(np.full(len(drugs), _SPREAD * self._network.target.sd))
        [found] = self._methods.do(method, self._reader, self._to(drugs), [self._cells[sample]], lambda n: None)
        return found

    def view(self, sample: int) -> View:
        """Return a sample as it is read."""
        return unchanged(self._cells[sample], self._cells.vocabulary, self._to(np.array([0])))

    def answers(self, views: Iterator[View] | Sequence[View], drug: int, show: Callable[[int], object]) -> np.ndarray:
        """Return the response of altered samples to a drug, (N,)."""
        found: np.ndarray = ask(self._reader, self._to(np.array([drug])), views, show=show)[:, 0]
        return found
