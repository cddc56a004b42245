"""What networks over pairs are made of: their configuration with the published sizes, and their layers.

The named networks are written from the text of Prasse et al., Cancers 2022, 14, 3950, and what it builds on; a size
that the text leaves open is the default of the authors' code. "conv_nn": a dense layer over genes, characters through
convolutions with pooling. "paccmann": convolutions of several widths side by side, and contextual attention of genes to
characters with a gate on the genes. "tdnn": two towers; the four layers that the text has after their junction are the
three of `joint_layers` and the output. "encoder": our encoder's vector in place of genes, or beside them.

Shapes: S samples, D drugs, P pairs of a batch; T positions of a SMILES, E length of a character's vector, H heads of
attention, A size of each, W width.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from geneformer_repro.drug_inputs import DrugScale
from geneformer_repro.expression import Norm
from geneformer_repro.network_settings import PairShape

_NUMBERS_AT_ONCE, _NUMBERS_AT_ONCE_ON_A_GPU = 2**17, 2**24
"""Of pairs × positions × attention that are in memory at once: half a megabyte, which a core's cache holds; 64 MB."""


def tower(n_inputs: int, widths: Sequence[int], *, linear: bool = False) -> nn.Sequential:
    """Make dense layers with ReLU; a linear tower ends without."""
    layers: list[nn.Module] = []
    for before, after in pairwise([n_inputs, *widths]):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[: -1 if linear and layers else None])


class Convolutions(nn.Module):
    """Characters through convolutions with pooling, one after the other, to one vector."""

    def __init__(self, shape: PairShape, scale: DrugScale) -> None:
        super().__init__()
        assert scale.characters is not None
        self.embedding = nn.Embedding(len(scale.characters), shape.embedding_size, padding_idx=0)
        widths = [shape.embedding_size, *shape.filters]
        self.convolutions = nn.ModuleList(
            nn.Conv1d(before, after, kernel, padding="same")
            for (before, after), kernel in zip(pairwise(widths), shape.kernels, strict=True)
        )
        self.pool = nn.MaxPool1d(shape.pool)
        n_left = scale.n_positions
        for _ in shape.filters:
            n_left //= shape.pool
        self.width = n_left * shape.filters[-1]

    def forward(self, embedded_DTE: Tensor) -> Tensor:
        """Return a vector a drug, (D, W), of its characters' vectors."""
        hidden_DET = embedded_DTE.transpose(1, 2)
        for convolution in self.convolutions:
            hidden_DET = self.pool(convolution(hidden_DET))
        return hidden_DET.flatten(1)


class SideBySide(nn.Module):
    """Characters through convolutions of several widths side by side: a vector a character and width.

    Where a SMILES has ended vectors are zero and count in no mean of a batch, so padding changes nothing.
    """

    def __init__(self, shape: PairShape, scale: DrugScale) -> None:
        super().__init__()
        assert scale.characters is not None
        self.embedding = nn.Embedding(len(scale.characters), shape.embedding_size, padding_idx=0)
        of_kernels = list(zip(shape.filters, shape.kernels, strict=True))
        self.convolutions = nn.ModuleList(
            nn.Conv1d(shape.embedding_size, width, kernel, padding="same") for width, kernel in of_kernels
        )
        self.norms = nn.ModuleList(Norm(width) for width, _ in of_kernels)
        self.dropout = nn.Dropout(shape.dropout)
        self.widths = (shape.embedding_size, *shape.filters)

    def forward(self, embedded_DTE: Tensor, is_there_DT: Tensor) -> tuple[Tensor, ...]:
        """Return the vectors of characters as they are and after each convolution, (D, T, W) each."""
        channels = [embedded_DTE]
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            hidden_DTW = self.dropout(convolution(embedded_DTE.transpose(1, 2)).relu()).transpose(1, 2)
            normed_DTW = torch.zeros_like(hidden_DTW)
            normed_DTW[is_there_DT] = norm(hidden_DTW[is_there_DT])
            channels.append(normed_DTW)
        return tuple(channels)


class ContextualAttention(nn.Module):
    """A sample chooses characters: shares of a softmax over v · tanh(W_s sample + W_c character + b), for each head.

    W_s sample and W_c character are made once a sample and once a drug; what is made of pairs is the tanh.

    References
    ----------
    Manica et al., Mol. Pharm. 2019, 16, 4797 (PaccMann), "contextual attention".
    """

    def __init__(self, n_context: int, width: int, shape: PairShape, *, has_gate: bool) -> None:
        super().__init__()
        n = shape.attention_heads * shape.fusion_size
        self.gate = nn.Linear(n_context, n_context) if has_gate else None
        self.context, self.character = nn.Linear(n_context, n), nn.Linear(width, n, bias=False)
        self.score_HA = nn.Parameter(
            torch.randn(shape.attention_heads, shape.fusion_size) / math.sqrt(shape.fusion_size)
        )

    def of_samples(self, context_SW: Tensor) -> Tensor:
        """Return what samples ask, (S, H, A); of genes through a gate, shares that sum to 1 over all of them."""
        if self.gate is not None:
            context_SW = context_SW * self.gate(context_SW).softmax(-1)
        return self.context(context_SW).unflatten(-1, self.score_HA.shape)

    def of_drugs(self, channel_DTW: Tensor) -> Tensor:
        """Return what characters answer, (D, T, H, A)."""
        return self.character(channel_DTW).unflatten(-1, self.score_HA.shape)

    def forward(
        self,
        asked_SHA: Tensor,
        keys_DTHA: Tensor,
        channel_DTW: Tensor,
        length_D: Tensor,
        sample_P: Tensor,
        drug_P: Tensor,
    ) -> Tensor:
        """Return for each pair and head the weighted sum of its drug's characters, (P, H · W).

        A drug has `length_D` characters, the first of its T positions.
        """
        sides = (asked_SHA.transpose(0, 1), keys_DTHA.transpose(1, 2), channel_DTW, self.score_HA)
        exact = torch.promote_types(asked_SHA.dtype, torch.float32)
        with torch.autocast(asked_SHA.device.type, enabled=False):
            return _Chosen.apply(*(side.to(exact) for side in sides), length_D, sample_P, drug_P).flatten(1)

    def shares(
        self, asked_SHA: Tensor, keys_DTHA: Tensor, length_D: Tensor, sample_P: Tensor, drug_P: Tensor
    ) -> Tensor:
        """Return for each pair and head the share of each position of its drug, (P, H, T); 0 behind the end."""
        sides = asked_SHA.transpose(0, 1), keys_DTHA.transpose(1, 2)
        shares_PHT = asked_SHA.new_zeros(len(sample_P), len(self.score_HA), keys_DTHA.shape[1])
        for drug, n_characters, rows_B in _of_one_drug_each(length_D, drug_P, self.score_HA.numel()):
            hidden_HBTA = _hidden(sides, drug, n_characters, sample_P[rows_B])
            shares_HBT = (hidden_HBTA @ self.score_HA[:, None, :, None])[..., 0].softmax(-1)
            shares_PHT[rows_B, :, :n_characters] = shares_HBT.transpose(0, 1)
        return shares_PHT


class _Chosen(torch.autograd.Function):
    """What pairs choose of characters, (P, H, W), drug by drug.

    Of 256 pairs and 55 characters tanh has 15 million numbers. They are never all there: some pairs of a drug are
    computed at once, as many as fit into a core's cache, and made again going back.
    """

    @staticmethod
    def forward(ctx: Any, *given: Tensor) -> Tensor:
        _, _, channel_DTW, score_HA, length_D, sample_P, drug_P = given
        chosen_PHW = channel_DTW.new_empty(len(sample_P), len(score_HA), channel_DTW.shape[2])
        ctx.blocks, shares = _of_one_drug_each(length_D, drug_P, score_HA.numel()), []
        for drug, n_characters, rows_B in ctx.blocks:
            hidden_HBTA = _hidden(given, drug, n_characters, sample_P[rows_B])
            shares.append((hidden_HBTA @ score_HA[:, None, :, None])[..., 0].softmax(-1))
            chosen_PHW[rows_B] = (shares[-1] @ channel_DTW[drug, :n_characters]).transpose(0, 1)
        ctx.save_for_backward(*given, *shares)
        return chosen_PHW

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope_PHW: Tensor) -> tuple[Tensor | None, ...]:
        given, shares = ctx.saved_tensors[:7], ctx.saved_tensors[7:]
        channel_DTW, score_HA, sample_P = given[2], given[3], given[5]
        of_asked_HSA, of_keys_DHTA, of_channel_DTW, of_score_HA = slopes = [
            torch.zeros_like(side) for side in given[:4]
        ]
        for (drug, n_characters, rows_B), shares_HBT in zip(ctx.blocks, shares, strict=True):
            slope_HBW = slope_PHW[rows_B].transpose(0, 1)
            of_channel_DTW[drug, :n_characters] += shares_HBT.flatten(0, 1).T @ slope_HBW.flatten(0, 1)
            of_shares_HBT = slope_HBW @ channel_DTW[drug, :n_characters].T
            of_sum_HBT = shares_HBT * (of_shares_HBT - (shares_HBT * of_shares_HBT).sum(-1, keepdim=True))
            hidden_HBTA = _hidden(given, drug, n_characters, sample_P[rows_B])
            of_score_HA += (of_sum_HBT.flatten(1)[:, None] @ hidden_HBTA.flatten(1, 2))[:, 0]
            of_hidden_HBTA = of_sum_HBT[..., None] * score_HA[:, None, None]
            of_sum_HBTA = torch.ops.aten.tanh_backward(of_hidden_HBTA, hidden_HBTA)
            of_asked_HSA.index_add_(1, sample_P[rows_B], of_sum_HBTA.sum(2))
            of_keys_DHTA[drug, :, :n_characters] += of_sum_HBTA.sum(1)
        return (*slopes, None, None, None)


def _of_one_drug_each(length_D: Tensor, drug_P: Tensor, n: int) -> list[tuple[int, int, Tensor]]:
    """Return blocks of pairs that are computed at once: their drug, its number of characters, and which they are."""
    at_once = _NUMBERS_AT_ONCE if drug_P.device.type == "cpu" else _NUMBERS_AT_ONCE_ON_A_GPU
    order_P, n_pairs_D = drug_P.argsort(stable=True), drug_P.bincount(minlength=len(length_D))
    blocks = []
    for drug, (rows_Q, length) in enumerate(zip(order_P.split(n_pairs_D.tolist()), length_D.tolist(), strict=True)):
        n_characters = max(1, length)
        pieces = rows_Q.split(max(1, at_once // (n_characters * n))) if len(rows_Q) else ()
        blocks += [(drug, n_characters, rows_B) for rows_B in pieces]
    return blocks


def _hidden(given: Sequence[Tensor], drug: int, n_characters: int, sample_B: Tensor) -> Tensor:
    """Return the tanh of what some samples ask and the characters of a drug answer, (H, B, T, A)."""
    asked_HSA, keys_DHTA = given[:2]
    return (asked_HSA[:, sample_B, None] + keys_DHTA[drug, :, None, :n_characters]).tanh_()


class Junction(nn.Module):
    """Both vectors to one, (P, W): side by side, with products beside them, or the sample scaled by the drug."""

    def __init__(self, shape: PairShape, n_sample: int, n_drug: int) -> None:
        super().__init__()
        self.fusion, self.width = shape.fusion, n_sample + n_drug
        if shape.fusion == "bilinear":
            self.of_sample = nn.Linear(n_sample, shape.fusion_size)
            self.of_drug = nn.Linear(n_drug, shape.fusion_size)
            self.width += shape.fusion_size
        if shape.fusion == "film":
            self.scale_and_shift = nn.Linear(n_drug, 2 * n_sample)

    def forward(self, sample_PW: Tensor, drug_PW: Tensor) -> Tensor:
        """Return what the layers after the junction read."""
        together = [sample_PW, drug_PW]
        if self.fusion == "bilinear":
            together.append(self.of_sample(sample_PW) * self.of_drug(drug_PW))
        if self.fusion == "film":
            scale_PW, shift_PW = self.scale_and_shift(drug_PW).chunk(2, dim=-1)
            together[0] = sample_PW * (1 + scale_PW) + shift_PW
        return torch.cat(together, dim=-1)


def joint_layers_of(shape: PairShape, n_inputs: int) -> nn.Sequential:
    """Make the layers after the junction, in the order of the published ones."""
    after_attention = shape.fusion == "attention"
    layers: list[nn.Module] = [Norm(n_inputs)] if after_attention and shape.joint_norm else []
    for before, after in pairwise([n_inputs, *shape.joint_layers]):
        norm = [Norm(after)] if shape.joint_norm else []
        dense, dropout = nn.Linear(before, after), nn.Dropout(shape.dropout)
        layers += [dense, *norm, nn.ReLU(), dropout] if after_attention else [dropout, dense, nn.ReLU(), *norm]
    return nn.Sequential(*layers, *([] if after_attention else [nn.Dropout(shape.dropout)]))
