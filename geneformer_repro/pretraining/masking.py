"""Which genes are hidden from the model: pure tensor code."""

from typing import NamedTuple

import torch
from torch import Tensor

from geneformer_repro.model import IGNORED
from geneformer_repro.tokenizer.vocabulary import Vocabulary


class Masked(NamedTuple):
    """Tokens as the model sees them, and what it should have seen."""

    input_ids: Tensor
    labels: Tensor
    """The true token at chosen positions, -100 elsewhere."""


def mask_genes(input_ids: Tensor, vocabulary: Vocabulary, *, probability: float, generator: torch.Generator) -> Masked:
    """Choose genes at random; show ``<mask>`` for 80 % of them, another gene for 10 %, the gene itself for 10 %.

    Parameters
    ----------
    input_ids
        Token ids of any shape. Special tokens and padding are never chosen (the published package also masks
        ``<cls>`` and ``<eos>``).
    vocabulary
        Names the special tokens; random genes are drawn from its genes (the published package draws special tokens
        too).
    probability
        Chance of each gene to be chosen, 0.15 as published.
    generator
        Source of randomness, on the CPU.

    Returns
    -------
    Changed copies; the input stays as it is.

    References
    ----------
    Devlin et al., NAACL 2019 (80/10/10); Theodoris et al., Nature 618, 616 (2023) (15 %).
    """

    def uniform() -> Tensor:
        return torch.rand(input_ids.shape, generator=generator).to(input_ids.device)

    genes = torch.as_tensor(vocabulary.tokens, device=input_ids.device)
    is_gene = torch.zeros(vocabulary.size, dtype=torch.bool, device=input_ids.device)
    is_gene[genes] = True
    chosen = (uniform() < probability) & is_gene[input_ids]
    fate = uniform()
    other = genes[torch.randint(len(genes), input_ids.shape, generator=generator).to(input_ids.device)]
    shown = torch.where(chosen & (fate < 0.8), vocabulary.mask_token, input_ids)
    shown = torch.where(chosen & (fate >= 0.9), other, shown)
    return Masked(shown, torch.where(chosen, input_ids, IGNORED))
