"""What happens to a cell's token ids when genes are deleted: pure array code."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from geneformer_repro.errors import InputError
from geneformer_repro.tokenizer.vocabulary import Vocabulary


class Variant(NamedTuple):
    """A cell with a change."""

    perturbed: tuple[int, ...]
    """Tokens of the genes that were changed."""
    rank: int | None
    """Place of the gene among the cell's genes, 0 for the first; None for a set of genes."""
    kept: np.ndarray
    """Positions of the original cell that are still there, in order."""


@dataclass(frozen=True)
class Deletion:
    """Remove genes from a cell; the genes behind move up.

    Parameters
    ----------
    genes
        "each": every gene a cell expresses, one at a time. A sequence of gene ids or names: all of them together, in
        the cells that express every one.

    Raises
    ------
    InputError
        The sequence is empty, or names a gene twice.
    """

    genes: Literal["each"] | Sequence[str] = "each"

    def __post_init__(self) -> None:
        if isinstance(self.genes, str):
            if self.genes == "each":
                return
            raise InputError(
                f"genes must be 'each' or a sequence of gene ids, found the text {self.genes!r}. For one gene give "
                f"[{self.genes!r}]."
            )
        object.__setattr__(self, "genes", tuple(map(str, self.genes)))
        if not self.genes or len(set(self.genes)) < len(self.genes):
            raise InputError(f"genes must be distinct and at least one, found {list(self.genes)}.")

    def variants(self, cell: np.ndarray, vocabulary: Vocabulary) -> Iterator[Variant]:
        """Yield the changed versions of a cell, in the order of its genes.

        Parameters
        ----------
        cell
            Token ids.
        vocabulary
            Tells genes from special tokens, which are never removed.

        Raises
        ------
        InputError
            A gene is not in the vocabulary, or given twice.
        """
        positions = np.arange(len(cell))
        if self.genes == "each":
            for place, position in enumerate(np.flatnonzero(vocabulary.genes_of(cell) >= 0)):
                yield Variant((int(cell[position]),), place, np.delete(positions, position))
            return
        tokens = vocabulary.tokens_of(self.genes)
        if len(set(tokens)) < len(tokens):
            raise InputError(f"genes name a gene twice, by id and by name: {', '.join(self.genes)}.")
        gone = np.isin(cell, tokens)
        if gone.sum() == len(tokens):
            rank = int(np.flatnonzero(gone)[0] - vocabulary.has_cls) if len(tokens) == 1 else None
            yield Variant(tuple(int(token) for token in tokens), rank, positions[~gone])
