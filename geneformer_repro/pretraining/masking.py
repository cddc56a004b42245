"""Which genes are hidden from the model: pure array code."""

from typing import NamedTuple

import numpy as np

from geneformer_repro.encoder import IGNORED
from geneformer_repro.tokenizer.vocabulary import Vocabulary


class Masked(NamedTuple):
    """Tokens as the model sees them, and what it should have seen."""

    input_ids: np.ndarray
    labels: np.ndarray
    """The true token at chosen positions, -100 elsewhere."""


def mask_genes(tokens: np.ndarray, vocabulary: Vocabulary, *, probability: float, rng: np.random.Generator) -> Masked:
    """Choose genes at random; show ``<mask>`` for 80 % of them, another gene for 10 %, the gene itself for 10 %.

    Parameters
    ----------
    tokens
        Token ids of any shape. Special tokens and padding are never chosen (the published package also masks
        ``<cls>`` and ``<eos>``).
    vocabulary
        Names the special tokens; random genes are drawn from its genes (the published package draws special tokens
        too).
    probability
        Chance of each gene to be chosen, 0.15 as published.
    rng
        Source of randomness.

    Returns
    -------
    Changed copies, int64; the input stays as it is.

    References
    ----------
    Devlin et al., NAACL 2019 (80/10/10); Theodoris et al., Nature 618, 616 (2023) (15 %).
    """
    tokens = np.asarray(tokens, dtype=np.int64)
    chosen = (rng.random(tokens.shape) < probability) & (vocabulary.genes_of(tokens) >= 0)
    true = tokens[chosen]
    fate = rng.random(true.shape)
    other = vocabulary.tokens[rng.integers(len(vocabulary.tokens), size=true.shape)]
    shown, labels = tokens.copy(), np.full_like(tokens, IGNORED)
    shown[chosen] = np.where(fate < 0.8, vocabulary.mask_token, np.where(fate < 0.9, other, true))
    labels[chosen] = true
    return Masked(shown, labels)


def cell_rng(seed: int, epoch: int, row: int) -> np.random.Generator:
    """Return the randomness of one cell in one epoch.

    It does not depend on which process masks the cell, nor on what was masked before, so that a run that goes on, or
    on other machines, hides the same genes.
    """
    return np.random.Generator(np.random.Philox(key=[seed, (epoch << 40) + row]))
