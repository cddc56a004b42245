"""The way of a patient from cells of ``<mask>`` to the cells as they are: all genes of all cells go together.

What a network of bags says bends twice along it: in each cell, as for cells by themselves, and in the bag, where
weights of cells move with their vectors. So both are derived at every point: the slope of the patient's number by the
vectors of cells there, and how far each gene takes its cell's vector along that slope. Values of a gene, summed over
the cells that express it, add up to the difference that all genes make. A point costs four passes of each cell: one
for its vector, three for the slope and what follows from it.

Shapes: N cells of a patient, D length of a vector, U genes of the vocabulary, S numbers explained, I points.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from geneformer_repro.in_silico.explanations.answers import Answer, Shown, unchanged
from geneformer_repro.in_silico.explanations.gradients import Readout, TokenWay, baseline_rows
from geneformer_repro.reading import Reader
from geneformer_repro.tokenizer.vocabulary import Vocabulary

OfVectors: TypeAlias = Callable[[Tensor], Tensor]
"""What is said of a patient whose cells have these vectors, (N, D): its numbers, (S,); differentiable."""


def slopes_by_vector(said: OfVectors, vector_ND: Tensor) -> Tensor:
    """Return the slope of each number by each cell's vector, (N, D, S)."""
    vectors = vector_ND.clone().requires_grad_()
    with torch.enable_grad():
        of_states = [torch.autograd.grad(value, vectors, retain_graph=True)[0] for value in said(vectors).unbind()]
    return torch.stack(of_states, dim=2)


@dataclass(frozen=True, eq=False)
class PatientWay:
    """The way of one patient, as `path_integrals.integrate` takes ways.

    Parameters
    ----------
    cells
        The ways of the cells, whose answer is their vector.
    said
        What is said of the patient.
    gene_G
        Number in the vocabulary of each gene of each cell, cell after cell; -1 where none is.
    n_units
        Genes of the vocabulary.
    """

    cells: TokenWay
    said: OfVectors
    genes: Sequence[np.ndarray]
    n_units: int

    @classmethod
    def of(
        cls,
        reader: Reader,
        vector: Answer,
        tokens: Sequence[np.ndarray],
        vocabulary: Vocabulary,
        said: OfVectors,
        show: Callable[[int], object] = lambda n: None,
    ) -> "PatientWay":
        """Return the way of a patient.

        Parameters
        ----------
        reader
            The encoder, at the layer of the vectors.
        vector
            The vector of a cell, as an answer.
        tokens
            Token ids of each cell.
        vocabulary
            Tells genes from special tokens.
        said
            What is said of a patient whose cells have given vectors.
        show
            Called with the number of cells of each batch that is done.
        """
        views = [unchanged(cell, vocabulary, vector) for cell in tokens]
        cells = TokenWay(reader, vector, views, vocabulary, baseline_rows(reader, vocabulary), show)
        genes = [vocabulary.genes_of(view.ids_L[view.margin : view.margin + view.n_genes]) for view in views]
        return cls(cells, said, genes, len(vocabulary.gene_ids))

    def __len__(self) -> int:
        return 1

    def values(self, row_I: np.ndarray, at_I: np.ndarray) -> np.ndarray:
        """Return the numbers of the patient at places on the way, (I, S)."""
        with torch.no_grad():
            return np.stack([self.said(self._vectors(at)).double().cpu().numpy() for at in at_I])

    def slopes(self, row_I: np.ndarray, at_I: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the number of each point, and what each gene adds to the change there, (U, S)."""
        for i, at in enumerate(at_I):
            slope_NDS = slopes_by_vector(self.said, self._vectors(at))
            along_US = np.zeros((self.n_units, slope_NDS.shape[2]))
            every, there = self._every(at)
            for cell, along_GS in self.cells.slopes_of(every, there, partial(self._along, slope_NDS)):
                gene_G = self.genes[cell]
                np.add.at(along_US, gene_G[gene_G >= 0], along_GS[gene_G >= 0])
            yield i, along_US

    def _every(self, at: float) -> tuple[np.ndarray, np.ndarray]:
        return np.arange(len(self.cells)), np.full(len(self.cells), at)

    def _vectors(self, at: float) -> Tensor:
        return torch.from_numpy(self.cells.values(*self._every(at))).to(self.cells.reader.device).float()

    def _along(self, slope_NDS: Tensor, cells: np.ndarray) -> Readout:
        """Return how far vectors of some cells go along their slopes, as a function of their hidden states."""
        slope_BDS = slope_NDS[torch.from_numpy(cells).to(slope_NDS.device)]

        def along(hidden_TD: Tensor, shown: Shown) -> Tensor:
            return torch.einsum("bd,bds->bs", self.cells.answer(hidden_TD, shown), slope_BDS)

        return along
