"""The deletion network: how far each gene's vector moves when another gene is deleted from the cell.

Causal within the model, and one forward a source and cell: the reference that attention is compared with, not what one
computes for every gene. A deletion moves all later genes up by one place, those of a gene in front more of them, so
from each pair the mean of other sources at like places in the same cell is taken.

Shapes: K sources and Q targets of a cell.
"""

import numpy as np
import torch

from geneformer_repro.in_silico.engine import Engine, PerturbedCell
from geneformer_repro.in_silico.networks.attention_sums import PairSums, Roles
from geneformer_repro.in_silico.perturbation import Deletion, Edits, Variants
from geneformer_repro.network_settings import Pooling
from geneformer_repro.reading import Reader
from geneformer_repro.tokenizer.dataset import TokenizedDataset

OTHERS = 10
"""Other sources of a cell, the nearest by the root of their place, whose mean is taken away."""


class DeletionSums:
    """Cells whose sources are deleted one at a time.

    Parameters
    ----------
    reader
        The network, up to the layer that is read.
    cells
        The cells.
    roles
        Which genes are deleted, and of which the vector is looked at.
    sources
        Ids of the former.
    max_genes
        Most genes of a cell.
    """

    def __init__(
        self, reader: Reader, cells: TokenizedDataset, roles: Roles, sources: list[str], max_genes: int
    ) -> None:
        self._cells, self._roles = cells, roles
        self._edits = Edits(Deletion(sources, combine="singly"), cells.vocabulary)
        pooling: Pooling = "cls" if cells.vocabulary.has_cls else "mean"
        self._engine = Engine(reader, cells.vocabulary, pooling, None, roles.column >= 0, max_genes)

    def n_variants(self, row: int) -> int:
        """Return how many sources a cell has."""
        return int((self._roles.row[self._cells[row]] >= 0).sum())

    def read(self, row: int, most: int) -> int:
        """Read a cell and so many of its variants, to see how long it takes; return how many cells that were."""
        tokens = self._cells[row]
        variants = self._edits.variants(tokens)
        variants = variants.select(np.arange(min(most, len(variants))))
        self._engine.run([PerturbedCell(tokens, variants)])
        return 1 + len(variants)

    def add(self, row: int, sums: PairSums) -> None:
        """Add the weights of a cell's pairs; a cell of one source has none to compare it with, and is left out."""
        tokens = self._cells[row]
        variants = self._edits.variants(tokens)
        if len(variants) < 2:
            return
        genes = tokens[self._cells.vocabulary.genes_of(tokens) >= 0]
        (outcome,) = self._engine.run([PerturbedCell(tokens, variants)])
        targets = np.flatnonzero(self._roles.column[genes] >= 0)
        number_of_token = {int(token): i for i, token in enumerate(genes[targets])}
        moved_KQ = np.full((len(variants), len(targets)), np.nan)
        for variant, (of_tokens, similarity) in outcome.affected.items():
            moved_KQ[variant, [number_of_token[int(token)] for token in of_tokens]] = 1 - similarity
        sources = self._places(variants)
        weights_KQ = moved_KQ - others_at_like_places(moved_KQ, sources)
        rows, columns = self._roles.row[genes[sources]], self._roles.column[genes[targets]]
        weights_KQ[np.isnan(weights_KQ)] = 0  # of a gene with itself, which the sums leave out
        sums.add(*(torch.from_numpy(each) for each in (rows, columns, weights_KQ)))

    @staticmethod
    def _places(variants: Variants) -> np.ndarray:
        """Return the place of the gene that each variant lacks."""
        return variants.touched_NE[:, 0]


def others_at_like_places(moved_KQ: np.ndarray, places_K: np.ndarray) -> np.ndarray:
    """Return of each source the mean over the other sources nearest to its place, target by target.

    Parameters
    ----------
    moved_KQ
        How far each target moved when each source was deleted; NaN where they are one gene.
    places_K
        Where the sources stand.
    """
    roots = np.sqrt(places_K)
    distance = np.abs(roots[:, None] - roots)
    np.fill_diagonal(distance, np.inf)
    nearest = np.argsort(distance, axis=1, kind="stable")[:, : min(OTHERS, len(roots) - 1)]
    of_others = moved_KQ[nearest]
    known = ~np.isnan(of_others)
    return np.where(known, of_others, 0.0).sum(1) / np.maximum(known.sum(1), 1)
