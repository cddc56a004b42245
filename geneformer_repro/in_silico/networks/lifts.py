"""From what a block attends with to lifts: attention among the genes of a cell, relative to an even share.

The log lift of a pair is a product of a query and a key, plus a number of the query: log A = q·k/√E − λ needs only the
log-sum λ that a kernel returns. So no L × L matrix is made for logs: a weighted mean over heads is one product, and
sums and sums of squares over all pairs are products of sums. What needs weights themselves (lifts, received attention)
goes in blocks of queries.

Special tokens get attention too, often most of it. They are taken out of each row, which then sums to 1 over genes:
A°_ij = A_ij / (1 − m_i), m_i what ``<cls>`` and ``<eos>`` get. Uniform attention has log lift 0 at any length.

Shapes: T tokens of a batch, G genes of a cell, Q queries and K keys of them, H heads, E channels of a head.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from geneformer_repro.attention import Attention

BITS = 1 / math.log(2)
"""Bits of a natural unit."""
_NEARLY_ALL = 0.99
"""Share of attention on special tokens above which what genes are left is summed anew: 1 − m would lose its digits."""
_QUERIES_AT_ONCE = 256


class GeneTokens(NamedTuple):
    """Where the genes of a cell stand among the tokens of a batch."""

    genes_G: Tensor
    """By place."""
    specials: Tensor
    """The other tokens of the cell."""


@dataclass(frozen=True)
class LogLifts:
    """Log lifts (base 2) of chosen pairs of a cell in one block, as factors.

    That of query i and key j is ``query_i · key_j + of_query_i + of_key_j``, head by head.
    """

    query_QHE: Tensor
    key_KHE: Tensor
    of_query_QH: Tensor
    of_key_KH: Tensor | None
    """What stands beside attention in a weight, such as the norm of a value; None for attention alone."""
    on_specials_QH: Tensor
    """Share of each query's attention that special tokens get, before it was taken out."""

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield log lifts of some queries at a time: which queries, and (H, queries, K)."""
        key_HEK = self.key_KHE.permute(1, 2, 0)
        for first in range(0, len(self.query_QHE), _QUERIES_AT_ONCE):
            rows = slice(first, min(first + _QUERIES_AT_ONCE, len(self.query_QHE)))
            lift_HQK = self.query_QHE[rows].transpose(0, 1) @ key_HEK + self.of_query_QH[rows].T[..., None]
            yield rows, lift_HQK if self.of_key_KH is None else lift_HQK + self.of_key_KH.T[:, None]

    def dense(self) -> Tensor:
        """Return all log lifts, (H, Q, K)."""
        return torch.cat([lift_HQK for _, lift_HQK in self.blocks()], dim=1)

    def add_weighted(self, weight_H: Tensor, sum_KQ: Tensor) -> None:
        """Add the sum over heads of weight · log lift to a matrix of keys × queries: one product for all heads."""
        weighted_KHE = self.key_KHE * weight_H[:, None]  # keys may be few, queries are all genes of a cell
        sum_KQ.addmm_(weighted_KHE.flatten(1), self.query_QHE.flatten(1).T)
        sum_KQ += self.of_query_QH @ weight_H
        if self.of_key_KH is not None:
            sum_KQ += (self.of_key_KH @ weight_H)[:, None]


def log_lifts(
    attention: Attention,
    tokens: GeneTokens,
    *,
    queries: Tensor | None = None,
    keys: Tensor | None = None,
    norm_TH: Tensor | None = None,
) -> LogLifts:
    """Return log lifts among the genes of a cell.

    Parameters
    ----------
    attention
        What a block attends with.
    tokens
        The cell.
    queries, keys
        Places of the genes that are wanted as such; default all.
    norm_TH
        Of each token and head a number that attention is multiplied by, such as `value_norms`; taken relative to its
        mean over the cell's genes.
    """
    genes_G = tokens.genes_G
    asking_Q = genes_G if queries is None else genes_G[queries]
    asked_K = genes_G if keys is None else genes_G[keys]
    scale = BITS / math.sqrt(attention.query_THE.shape[-1])
    query_QHE = attention.query_THE[asking_Q].float()
    log_sum_QH, on_specials_QH = _among_genes(attention, tokens, query_QHE, attention.log_sum_TH[asking_Q])
    of_key_KH = None
    if norm_TH is not None:
        of_key_KH = (norm_TH[asked_K] / norm_TH[genes_G].mean(0)).log2()
    return LogLifts(
        query_QHE=query_QHE,
        key_KHE=attention.key_THE[asked_K].float() * scale,
        of_query_QH=math.log2(len(genes_G)) - log_sum_QH * BITS,
        of_key_KH=of_key_KH,
        on_specials_QH=on_specials_QH,
    )


def _among_genes(
    attention: Attention, tokens: GeneTokens, query_QHE: Tensor, log_sum_QH: Tensor
) -> tuple[Tensor, Tensor]:
    """Return log-sums of queries over genes alone, (Q, H), and the share of their attention on special tokens."""
    if not len(tokens.specials):
        return log_sum_QH, torch.zeros_like(log_sum_QH)
    root = math.sqrt(query_QHE.shape[-1])
    special_SHE = attention.key_THE[tokens.specials].float()
    score_HQS = query_QHE.transpose(0, 1) @ special_SHE.permute(1, 2, 0) / root
    share_QH = (score_HQS - log_sum_QH.T[..., None]).exp().sum(-1).T.clamp(max=1.0)
    among_QH = log_sum_QH + torch.log1p(-share_QH)
    sunk_Q = (share_QH > _NEARLY_ALL).any(1).nonzero()[:, 0]
    if len(sunk_Q):
        key_HEG = attention.key_THE[tokens.genes_G].float().permute(1, 2, 0)
        for some in sunk_Q.split(_QUERIES_AT_ONCE):
            among_QH[some] = (query_QHE[some].transpose(0, 1) @ key_HEG / root).logsumexp(-1).T
    return among_QH, share_QH


# Values


def value_norms(value_THE: Tensor, output: nn.Module) -> Tensor:
    """Return how long the vector is that each token adds to the others, by head: ‖W_O^h v_j^h‖, (T, H).

    Parameters
    ----------
    value_THE
        Values of all tokens.
    output
        The block's layer that mixes heads, with its adapters if it has any. It is called on unit vectors, less what it
        says of zeros; its weights are not looked at.

    References
    ----------
    Kobayashi et al., EMNLP 2020, "Attention is not only a weight".
    """
    mixing_HED = _mixing(value_THE, output)
    gram_HEE = mixing_HED @ mixing_HED.transpose(1, 2)
    value_HTE = value_THE.float().transpose(0, 1)
    return ((value_HTE @ gram_HEE) * value_HTE).sum(-1).clamp(min=0).sqrt().T


def _mixing(value_THE: Tensor, output: nn.Module) -> Tensor:
    """Return what each channel of each head adds to a hidden state, (H, E, D)."""
    n_heads, n_channels = value_THE.shape[1:]
    unit_DD = torch.eye(n_heads * n_channels, device=value_THE.device)
    said_DD = output(torch.cat([unit_DD, torch.zeros_like(unit_DD[:1])])).float()
    return (said_DD[:-1] - said_DD[-1]).unflatten(0, (n_heads, n_channels))


def pair_norms(attention: Attention, output: nn.Module, cell: int, queries: Tensor, keys: Tensor) -> Tensor:
    """Return how long the vector is that chosen tokens add to chosen others, all heads together.

    Heads may cancel each other, so this is at most the sum over heads of attention · `value_norms`, and no sum: it is
    made for the pairs that are asked for.

    Parameters
    ----------
    attention, output
        Of one block.
    cell
        Number of the cell.
    queries, keys
        Places in the cell of the two tokens of each pair, special tokens counted.
    """
    start = attention.cells.starts[cell]
    query_NHE, key_NHE = attention.query_THE[start + queries].float(), attention.key_THE[start + keys].float()
    score_NH = (query_NHE * key_NHE).sum(-1) / math.sqrt(query_NHE.shape[-1])
    weight_NH = (score_NH - attention.log_sum_TH[start + queries]).exp()
    weighted_NHE = attention.value_THE[start + keys].float() * weight_NH[..., None]
    return torch.einsum("nhe,hed->nd", weighted_NHE, _mixing(attention.value_THE, output)).norm(dim=-1)


# Attention received


def received(attention: Attention, cell: int, given_LH: Tensor) -> Tensor:
    """Return what each token of a cell receives of what the queries give, (L, H): Σ_i given_i A_ij.

    Parameters
    ----------
    attention
        What a block attends with.
    cell
        Number of the cell.
    given_LH
        Of each token as a query, special tokens counted, and head.
    """
    taken_HL = torch.zeros_like(given_LH.T)
    for rows, log_weight_HQL in attention.log_weights(cell, at_once=_QUERIES_AT_ONCE):
        taken_HL += (given_LH.T[:, None, rows] @ log_weight_HQL.exp())[:, 0]
    return taken_HL.T


def received_lift(attention: Attention, cell: int, tokens: GeneTokens) -> Tensor:
    """Return the attention that each gene receives from the cell's genes, (G, H); 1 is an even share."""
    start = attention.cells.starts[cell]
    of_genes = (attention.query_THE[tokens.genes_G].float(), attention.log_sum_TH[tokens.genes_G])
    _, share_GH = _among_genes(attention, tokens, *of_genes)
    given_LH = share_GH.new_zeros(attention.cells.lengths[cell], share_GH.shape[1])
    given_LH[tokens.genes_G - start] = 1 / (1 - share_GH).clamp(min=torch.finfo(torch.float32).tiny)
    return received(attention, cell, given_LH)[tokens.genes_G - start]


def rollout(blocks: Sequence[Attention], cell: int, readout_L: Tensor) -> Tensor:
    """Return how a readout of a cell's last hidden states goes back to its tokens through attention alone, (L,).

    Each block passes on half of what it has and half of what its heads, averaged, attend to. A summary of attention, no
    attribution: it ignores values, norms and the layers between. As a row vector: no matrix is multiplied by another.

    Parameters
    ----------
    blocks
        What the blocks attend with, from the first on.
    cell
        Number of the cell.
    readout_L
        What is read of each token, with sum 1: 1 at ``<cls>``, or an even share of the genes. Its sum stays.

    References
    ----------
    Abnar & Zuidema, ACL 2020, "Quantifying attention flow in transformers".
    """
    for attention in reversed(blocks):
        by_head_LH = readout_L[:, None].expand(-1, attention.query_THE.shape[1])
        readout_L = (readout_L + received(attention, cell, by_head_LH).mean(1)) / 2
    return readout_L
