"""How an answer changes with each gene of a cell, from derivatives: of token rows, along a way, and of attention.

A gene is its row in the table of word embeddings; positions, types and special tokens are the frame in which it stands.
So the way of integrated gradients goes through the rows of genes alone, and nothing else is given a share. It starts at
the row of ``<mask>``, which the model knows to mean "some gene". It never starts at zero: the first layer norm takes
the length away, so a way from zero stands still, and its sum is 0 whatever the answer does (tested).

Derivatives are in single precision, whatever the network computes in otherwise. "rollout" and "attention" are no
derivatives: they say where a readout looks, without sign, and know nothing of the answer.

Shapes: T tokens of all cells, L tokens and G genes of one, D hidden size, S numbers explained, I points on ways.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from geneformer_repro.attention import Attention
from geneformer_repro.batching import Batch
from geneformer_repro.errors import InputError
from geneformer_repro.in_silico.explanations.answers import Answer, Shown, View, laid_out, unchanged
from geneformer_repro.in_silico.explanations.attribution import Attribution
from geneformer_repro.in_silico.explanations.path_integrals import USUAL, Integration, integrate
from geneformer_repro.in_silico.networks.lifts import received, rollout
from geneformer_repro.reading import Reader, require_one_of
from geneformer_repro.tokenizer.vocabulary import Vocabulary

GradientMethod: TypeAlias = Literal[
    "gradient_input", "integrated_gradients", "attention_gradient", "rollout", "attention"
]
GRADIENT_METHODS: tuple[GradientMethod, ...] = get_args(GradientMethod)
UNSIGNED: tuple[GradientMethod, ...] = ("rollout", "attention")
"""Those that say where a readout looks, and nothing of the answer."""
Baseline: TypeAlias = Literal["mask", "mean", "pad"]
Readout: TypeAlias = Callable[..., Tensor]
"""Takes hidden states and ``shown``, and returns numbers of each cell, (B, S)."""
CELLS_AT_ONCE = 32
"""Cells whose ways are gone together."""


def gradients(
    reader: Reader,
    answer: Answer,
    cells: Sequence[np.ndarray],
    vocabulary: Vocabulary,
    method: GradientMethod,
    show: Callable[[int], object] = lambda n: None,
    *,
    baseline_PD: Tensor | None = None,
    integration: Integration = USUAL,
    spread_S: np.ndarray | None = None,
) -> list[Attribution]:
    """Return what each gene of each cell adds to its answer, by a method of derivatives or attention.

    Parameters
    ----------
    reader, answer
        The network, at the layer of the answer, and what is asked.
    cells
        Token ids of each cell, special tokens included; with the gene that is asked about, if one is.
    vocabulary
        Tells genes from special tokens.
    method
        "gradient_input" is the derivative by a gene's row times how far it is from the baseline's;
        "integrated_gradients" its mean along the way from there; "attention_gradient" the derivative by the attention
        that the gene gets, times that attention, summed over blocks, heads and queries. "rollout" is what attention
        alone carries from the gene to the readout through all blocks, "attention" what the readout gives it in the
        last block, mean over heads: shares, the rest is that of special tokens; the same for every number explained.
    show
        Called with the number of passes that are done, see `n_passes`.
    baseline_PD
        From `baseline_rows`; default that of ``<mask>``. For the first two methods.
    integration
        For integrated gradients: the rule, and when it is good enough.
    spread_S
        Standard deviation of the answers over cells, of which a tenth is a difference that need not be met more
        exactly; default over these cells. Where cells are explained part by part give that of all.

    Returns
    -------
    A value a gene; NaN for a gene in whose place ``<mask>`` stands because it is asked about. A cell whose integrated
    gradients do not add up has a gap above ``integration.tolerance`` and belongs into no mean.
    """
    require_one_of(GradientMethod, "method", method)
    if method in UNSIGNED:
        return _looks(reader, answer, cells, vocabulary, method, show)
    if method == "attention_gradient" and not reader.n_blocks:
        raise InputError("There is no attention before the first block. Read a later layer, or use gradient_input.")
    ways = _ways(replace(reader, dtype="float32"), answer, cells, vocabulary, baseline_PD, show)
    if method == "attention_gradient":
        return [one for way in ways for one in way.by_attention()]
    if method == "gradient_input":
        return [one for way in ways for one in way.by_row()]
    if spread_S is None:
        spread_S = answer_spread(reader, answer, cells, vocabulary)
    return [one for way in ways for one in way.integrated(integration, spread_S)]


def n_passes(method: GradientMethod, integration: Integration = USUAL) -> int:
    """Return how many passes a cell takes at least: integrated gradients that do not add up take more."""
    return integration.first_steps + 2 if method == "integrated_gradients" else 1


def answer_spread(reader: Reader, answer: Answer, cells: Sequence[np.ndarray], vocabulary: Vocabulary) -> np.ndarray:
    """Return the standard deviation of each number explained over cells, (S,); 0 of fewer than two cells."""
    ways = _ways(replace(reader, dtype="float32"), answer, cells, vocabulary)
    value_BS = np.concatenate([np.zeros((0, len(answer.names))), *(way.values(*way.ends()) for way in ways)])
    return np.asarray(value_BS.std(0, ddof=1)) if len(value_BS) > 1 else np.zeros(value_BS.shape[1])


def baseline_rows(
    reader: Reader,
    vocabulary: Vocabulary,
    baseline: Baseline = "mask",
    *,
    reference: Sequence[np.ndarray] | None = None,
) -> Tensor:
    """Return the rows from which genes start, (places, D), or (1, D) where all places have the same.

    Parameters
    ----------
    reader, vocabulary
        The network, and its special tokens.
    baseline
        "mask" is trained to mean some gene. "mean" is the mean row over cells at the same place. "pad" is for
        comparison: no cell has it, yet training of the output layer moves it, so it is no neutral zero.
    reference
        Token ids of the cells of "mean".

    Raises
    ------
    InputError
        An unknown baseline, or "mean" without reference cells.
    """
    match baseline:
        case "mask" | "pad":
            token = vocabulary.mask_token if baseline == "mask" else vocabulary.pad_token
            return reader.token_rows(torch.tensor([token], device=reader.device))
        case "mean":
            return _mean_rows(reader, vocabulary, reference or ())
    raise InputError(f"baseline must be one of {', '.join(map(repr, get_args(Baseline)))}, found {baseline!r}.")


def _mean_rows(reader: Reader, vocabulary: Vocabulary, reference: Sequence[np.ndarray]) -> Tensor:
    genes = [of_cell for cell in reference if len(of_cell := cell[vocabulary.genes_of(cell) >= 0])]
    longest = max(map(len, genes), default=0)
    if not longest:
        raise InputError("baseline='mean' is a mean over cells, and there is no reference cell with a gene. Give some.")
    sum_PD = torch.zeros(longest, reader.hidden_size, dtype=torch.float64, device=reader.device)
    n_P = torch.zeros(longest, dtype=torch.float64, device=reader.device)
    for some in reader.batches_to_derive(np.array([len(of_cell) for of_cell in genes])):
        ids_T, place_T = (
            torch.from_numpy(np.concatenate(of).astype(np.int64)).to(reader.device)
            for of in ([genes[i] for i in some], [np.arange(len(genes[i])) for i in some])
        )
        sum_PD.index_add_(0, place_T, reader.token_rows(ids_T).double())
        n_P.index_add_(0, place_T, torch.ones_like(place_T, dtype=torch.float64))
    return (sum_PD / n_P[:, None]).float()


def baseline_agreement(by_baseline: Mapping[str, Sequence[Attribution]]) -> dict[str, list[float]]:
    """Return how alike integrated gradients from different baselines rank genes.

    Parameters
    ----------
    by_baseline
        Attributions of the same cells, by the name of their baseline.

    Returns
    -------
    Of each pair of baselines, named ``"a, b"``, the median over cells of Spearman's correlation over genes, a number
    for each number explained; below 0.5 the choice decides the answer. NaN where no cell has two genes that differ.
    """
    names = list(by_baseline)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    return {f"{a}, {b}": _medians_alike(by_baseline[a], by_baseline[b]) for a, b in pairs}


def _medians_alike(some: Sequence[Attribution], others: Sequence[Attribution]) -> list[float]:
    alike_BS = [
        [_spearman(*both) for both in zip(one.value_GS.T, other.value_GS.T, strict=True)]
        for one, other in zip(some, others, strict=True)
    ]
    of_states = np.array(alike_BS).T
    return [float(np.median(known)) if len(known := of_S[~np.isnan(of_S)]) else float("nan") for of_S in of_states]


def _spearman(one_G: np.ndarray, other_G: np.ndarray) -> float:
    known = ~(np.isnan(one_G) | np.isnan(other_G))
    if known.sum() < 2 or np.ptp(one_G[known]) == 0 or np.ptp(other_G[known]) == 0:
        return float("nan")
    return float(spearmanr(one_G[known], other_G[known]).statistic)


def _ways(
    reader: Reader,
    answer: Answer,
    cells: Sequence[np.ndarray],
    vocabulary: Vocabulary,
    baseline_PD: Tensor | None = None,
    show: Callable[[int], object] = lambda n: None,
) -> "Iterator[TokenWay]":
    """Yield cells some at a time, as ways from a baseline."""
    if baseline_PD is None:
        baseline_PD = baseline_rows(reader, vocabulary)
    longest = max((int((vocabulary.genes_of(cell) >= 0).sum()) for cell in cells), default=0)
    if 1 < len(baseline_PD) < longest:
        raise InputError(
            f"A cell has {longest} genes, and the cells over which the baseline is a mean have at most "
            f"{len(baseline_PD)}. Give longer reference cells, or use baseline='mask'."
        )
    for first in range(0, len(cells), CELLS_AT_ONCE):
        views = [unchanged(cell, vocabulary, answer) for cell in cells[first : first + CELLS_AT_ONCE]]
        yield TokenWay(reader, answer, views, vocabulary, baseline_PD, show)


@dataclass(frozen=True, eq=False)
class TokenWay:
    """The ways of some cells: rows of genes go from a baseline's to their own, all else stays."""

    reader: Reader
    answer: Answer
    views: Sequence[View]
    vocabulary: Vocabulary
    baseline_PD: Tensor
    show: Callable[[int], object]

    def __len__(self) -> int:
        return len(self.views)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each cell."""
        return np.array([len(view.ids_L) for view in self.views])

    def ends(self) -> tuple[np.ndarray, np.ndarray]:
        """Return every cell, and that it is asked at the end of its way."""
        return np.arange(len(self)), np.ones(len(self))

    def values(self, row_I: np.ndarray, at_I: np.ndarray) -> np.ndarray:
        """Return the answer of cells at places on their ways, (I, S)."""
        value_IS = np.zeros((len(row_I), len(self.answer.names)))
        for batch in self._batches(row_I):
            shown, start_TD, end_TD, at_T1 = self._laid_out(row_I[batch], at_I[batch])
            with self.reader.reading():
                hidden_TD = self.reader.hidden(
                    shown.ids_T,
                    shown.lengths,
                    rows_TD=torch.lerp(start_TD, end_TD, at_T1),
                    first_only=self.answer.first_only,
                )
                value_IS[batch] = self.answer(hidden_TD, shown).double().cpu().numpy()
            self.show(len(batch))
        return value_IS

    def slopes(self, row_I: np.ndarray, at_I: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the number of each point, and what each gene adds to how fast the answer changes there, (G, S)."""
        return ((i, slope_GS) for i, (slope_GS, _) in self._slopes(row_I, at_I, lambda _: self.answer))

    def slopes_of(
        self, row_I: np.ndarray, at_I: np.ndarray, answer_of: Callable[[np.ndarray], Readout]
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the same of what may be another number at each point.

        Parameters
        ----------
        row_I, at_I
            Cells, and the places on their ways.
        answer_of
            Takes numbers of points, and returns what is derived there: a function of hidden states and cells.
        """
        return ((i, slope_GS) for i, (slope_GS, _) in self._slopes(row_I, at_I, answer_of))

    def _slopes(
        self, row_I: np.ndarray, at_I: np.ndarray, answer_of: Callable[[np.ndarray], Readout]
    ) -> Iterator[tuple[int, tuple[np.ndarray, np.ndarray]]]:
        """Yield the same with the answer itself, (S,)."""
        for batch in self._batches(row_I):
            shown, start_TD, end_TD, at_T1 = self._laid_out(row_I[batch], at_I[batch])
            value_BS, by_row_STD = self.reader.slopes_by_row(
                shown.ids_T,
                shown.lengths,
                partial(answer_of(batch), shown=shown),
                rows_TD=torch.lerp(start_TD, end_TD, at_T1),
                first_only=self.answer.first_only,
            )
            along_ST = torch.linalg.vecdot(by_row_STD, end_TD - start_TD)
            yield from zip(batch.tolist(), self._by_cell(along_ST, value_BS, row_I[batch]), strict=True)
            self.show(len(batch))

    def by_row(self) -> Iterator[Attribution]:
        """Yield gradient × input of each cell."""
        found = dict(self._slopes(*self.ends(), lambda _: self.answer))
        for i, view in enumerate(self.views):
            yield self._attribution(view, *found[i])

    def by_attention(self) -> Iterator[Attribution]:
        """Yield attention × gradient of each cell."""
        rows, at = self.ends()
        found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for batch in self._batches(rows):
            shown, *_ = self._laid_out(rows[batch], at[batch])
            value_BS, by_attention_ST = self.reader.slopes_by_attention(
                shown.ids_T,
                shown.lengths,
                partial(self.answer, shown=shown),
                first_only=self.answer.first_only,
            )
            found |= zip(batch.tolist(), self._by_cell(by_attention_ST, value_BS, rows[batch]), strict=True)
            self.show(len(batch))
        for i, view in enumerate(self.views):
            yield self._attribution(view, *found[i])

    def integrated(self, integration: Integration, spread_S: np.ndarray) -> Iterator[Attribution]:
        """Yield integrated gradients of each cell."""
        integrals = integrate(self, integration, spread_S=spread_S)
        for view, integral in zip(self.views, integrals, strict=True):
            yield self._attribution(view, integral.value_GS, integral.end_S, integral.gap_S)

    def _attribution(
        self, view: View, value_GS: np.ndarray, before_S: np.ndarray, gap_S: np.ndarray | None = None
    ) -> Attribution:
        is_gene_G = self.vocabulary.genes_of(_genes(view)) >= 0
        return Attribution(np.where(is_gene_G[:, None], value_GS, np.nan), before_S, gap_S)

    def _batches(self, row_I: np.ndarray) -> Iterator[np.ndarray]:
        return self.reader.batches_to_derive(self.lengths[row_I])

    def _laid_out(self, row_I: np.ndarray, at_I: np.ndarray) -> tuple[Shown, Tensor, Tensor, Tensor]:
        """Return cells end to end; the rows of their tokens at the start and end of the way; and the place on it."""
        device = self.reader.device
        shown = laid_out([self.views[row] for row in row_I], device)
        end_TD = self.reader.token_rows(shown.ids_T)
        length_I = self.lengths[row_I]
        place_T = torch.from_numpy(np.concatenate([np.arange(n) for n in length_I])).to(device)
        place_T = (place_T - self.views[0].margin).clamp(0, len(self.baseline_PD) - 1)
        is_gene_T = torch.from_numpy(self.vocabulary.genes_of(shown.ids_T.cpu().numpy()) >= 0).to(device)
        start_TD = torch.where(is_gene_T[:, None], self.baseline_PD[place_T], end_TD)
        at_T1 = torch.from_numpy(np.repeat(at_I, length_I)[:, None]).to(end_TD)
        return shown, start_TD, end_TD, at_T1

    def _by_cell(
        self, of_token_ST: Tensor, value_BS: Tensor, rows: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield what genes of each cell have, (G, S), and its answer."""
        lengths, of_token_TS = self.lengths[rows].tolist(), of_token_ST.T.double().cpu()
        for row, of_cell_LS, value_S in zip(rows, of_token_TS.split(lengths), value_BS.double().cpu(), strict=True):
            margin, n_genes = self.views[row].margin, self.views[row].n_genes
            yield of_cell_LS[margin : margin + n_genes].numpy(), value_S.numpy()


def _genes(view: View) -> np.ndarray:
    return view.ids_L[view.margin : view.margin + view.n_genes]


# Where a readout looks


def _looks(
    reader: Reader,
    answer: Answer,
    cells: Sequence[np.ndarray],
    vocabulary: Vocabulary,
    method: GradientMethod,
    show: Callable[[int], object],
) -> list[Attribution]:
    """Return shares of attention: the same for all numbers explained, and no answer beside them."""
    if not reader.n_blocks:
        raise InputError("There is no attention before the first block. Read a later layer.")
    views = [unchanged(cell, vocabulary, answer) for cell in cells]
    none_S = np.full(len(answer.names), np.nan)
    found: dict[int, Attribution] = {}
    for rows in reader.batches_to_derive(np.array([len(view.ids_L) for view in views])):
        batch = [views[row] for row in rows]
        for row, share_L in zip(rows.tolist(), _shares(reader, answer, batch, method), strict=True):
            view = views[row]
            share_G = share_L[view.margin : view.margin + view.n_genes]
            share_G = np.where(vocabulary.genes_of(_genes(view)) >= 0, share_G, np.nan)
            found[row] = Attribution(np.repeat(share_G[:, None], len(none_S), axis=1), none_S)
        show(len(batch))
    return [found[i] for i in range(len(cells))]


def _shares(reader: Reader, answer: Answer, views: Sequence[View], method: GradientMethod) -> Iterator[np.ndarray]:
    """Yield of each cell which share of what is read each token has, (L,)."""
    blocks: list[Attention] = []
    shown = laid_out(views, reader.device)

    def keep(layer: int, attention: Attention) -> None:
        if method == "rollout" or layer == reader.n_blocks - 1:
            blocks.append(attention)

    every = np.arange(len(views))
    reader.watch(Batch(every, shown.ids_T, tuple(shown.lengths), shown.weight_T > 0), keep)
    with reader.reading():
        for cell, readout_L in enumerate(_readouts(answer, shown)):
            if method == "rollout":
                yield rollout(blocks, cell, readout_L).double().cpu().numpy()
                continue
            by_head_LH = readout_L[:, None].expand(-1, blocks[-1].query_THE.shape[1])
            yield received(blocks[-1], cell, by_head_LH).mean(1).double().cpu().numpy()


def _readouts(answer: Answer, shown: Shown) -> Iterator[Tensor]:
    """Yield of each cell how much of what is read is each token's last hidden state, (L,), with sum 1."""
    first = 0
    for cell, weight_L in enumerate(shown.weight_T.split(shown.lengths)):
        at = None if shown.asked_B is None else int(shown.asked_B[cell]) - first
        if answer.first_only:
            at = 0
        first += len(weight_L)
        if at is None:
            yield weight_L / weight_L.sum()
        else:
            yield torch.zeros_like(weight_L).index_fill(0, torch.tensor([at], device=weight_L.device), 1.0)
