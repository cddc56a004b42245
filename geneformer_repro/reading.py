"""The only evaluation forward: a network reads cells.

Hidden states up to a layer, pooled vectors, a classifier's outputs, what each block attends with, and derivatives by
tokens and by how present they are. Cells come in batches of a budget of tokens, longest first, end to end. A checkpoint
is read in inference mode; a network that is being trained as it is wrapped, without gradients, so that shards of its
weights can go on learning, and the processes of a run share its batches.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import numpy as np
import torch
from torch import Tensor, nn
from transformers import BertModel

import geneformer_repro.processes as processes
from geneformer_repro.attention import Attention, Cells
from geneformer_repro.batching import Batch, end_to_end, require_budget, token_budget_batches
from geneformer_repro.checkpoint import Checkpoint
from geneformer_repro.encoder import IGNORED, Read, Watch, first_tokens, run_encoder, run_gated
from geneformer_repro.errors import InputError
from geneformer_repro.heads import Head, pool
from geneformer_repro.network_settings import Pooling
from geneformer_repro.outline import require_layer
from geneformer_repro.prepared import LeftOut, Prepared, can_be_prepared
from geneformer_repro.prepared_derivatives import Derivable
from geneformer_repro.tokenizer.dataset import TokenizedDataset

T = TypeVar("T")
Dtype = Literal["float32", "bfloat16"]
MAX_TOKENS = 16_384
"""Tokens of an evaluation batch: 64 cells of 256 genes, or 8 of 2,048."""
CELLS_A_PART, TOKENS_A_PART = 8_192, 2**22
"""Most cells and tokens between two points from which reading can go on."""
_SHARE_OF_BUDGET = 4
"""A backward pass keeps what every block made, so its batches are so many times smaller."""


def part_limits() -> list[int]:
    """Return most cells and tokens of a part, for plans: what is cut otherwise does not go on."""
    return [CELLS_A_PART, TOKENS_A_PART]


def parts_of(lengths: np.ndarray) -> list[np.ndarray]:
    """Cut cells that are read into consecutive parts: row numbers of each."""
    return consecutive_parts(lengths, CELLS_A_PART, TOKENS_A_PART)


def consecutive_parts(n_tokens: np.ndarray, most_cells: int, most_tokens: int) -> list[np.ndarray]:
    """Cut cells into consecutive parts of bounded work: row numbers of each.

    Parameters
    ----------
    n_tokens
        Tokens to be read for each cell; a cell of more than fit is a part of its own.
    most_cells, most_tokens
        Of a part.
    """
    ends, parts, start = np.cumsum(n_tokens), [], 0
    while start < len(n_tokens):
        tokens_before = ends[start] - n_tokens[start]
        fitting = int(np.searchsorted(ends, tokens_before + most_tokens, side="right"))
        stop = min(max(fitting, start + 1), start + most_cells)
        parts.append(np.arange(start, min(stop, len(n_tokens))))
        start = stop
    return parts


def batches_of(cells: TokenizedDataset, rows: np.ndarray, max_tokens: int) -> Iterator[Batch]:
    """Yield some of the cells by token budget, longest first; those without a gene are passed over.

    Parameters
    ----------
    cells, rows
        Cells, and the row numbers of those that are read; `Batch.rows` counts among the latter.
    max_tokens
        As for `token_budget_batches`.
    """
    return (_laid_out(cells, rows, chosen) for chosen in _cut(cells, rows, max_tokens))


def _cut(cells: TokenizedDataset, rows: np.ndarray, max_tokens: int) -> Iterator[np.ndarray]:
    """Yield of each batch which of the rows it holds."""
    with_gene = np.flatnonzero(cells.has_gene[rows])
    return (with_gene[batch] for batch in token_budget_batches(cells.lengths[rows[with_gene]], max_tokens))


def _laid_out(cells: TokenizedDataset, rows: np.ndarray, chosen: np.ndarray) -> Batch:
    return end_to_end([cells[row] for row in rows[chosen]], cells.vocabulary, chosen)


def blocks_to_run(checkpoint: Checkpoint, layer: int) -> int:
    """Return how many blocks run to read `layer`: 0 is the last block, -1 the one before (the published convention)."""
    n_all = checkpoint.token_model.config.num_hidden_layers
    require_layer(layer, n_all)
    return int(n_all + layer)


class Derivatives(NamedTuple):
    """Scores of cells, and how they change with each token."""

    score_CS: Tensor
    """Of each cell, by state."""
    by_presence_ST: Tensor
    """By the degree to which a token is present: its weight as a key, and where the cell's vector is made."""
    by_embedded_STD: Tensor
    """By the sum of embeddings that a token is, before the first norm."""


class Slopes(NamedTuple):
    """Numbers of cells, and how each changes with something that every token has."""

    value_CS: Tensor
    by_token_ST: Tensor
    """(S, T), or (S, T, D)."""


@dataclass(frozen=True)
class Reader:
    """A checkpoint's network that reads cells up to a layer, on a device."""

    bert: BertModel
    n_blocks: int
    device: torch.device
    dtype: Dtype = "float32"
    max_tokens: int = MAX_TOKENS

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        *,
        layer: int = 0,
        dtype: Dtype = "float32",
        max_tokens: int = MAX_TOKENS,
        device: str | torch.device | None = None,
    ) -> "Reader":
        """Move a checkpoint's network to a device, in evaluation mode.

        Parameters
        ----------
        checkpoint
            The model.
        layer
            0 is the last block, -1 the one before.
        dtype
            What the network computes in; states are float32 either way.
        max_tokens
            Tokens of a batch.
        device
            Default: an accelerator where there is one.
        """
        require_budget(max_tokens)
        require_one_of(Dtype, "dtype", dtype)
        n_blocks = blocks_to_run(checkpoint, layer)
        where = torch.device(device) if device else processes.device()
        nn.Module.to(checkpoint.token_model, where)
        return cls(checkpoint.token_model.eval().bert, n_blocks, where, dtype, max_tokens)

    @property
    def hidden_size(self) -> int:
        """Width of a hidden state."""
        return int(self.bert.config.hidden_size)

    def batches(self, cells: TokenizedDataset, rows: np.ndarray) -> Iterator[Batch]:
        """Yield `batches_of` some of the cells, on the device."""
        return (batch.to(self.device) for batch in batches_of(cells, rows, self.max_tokens))

    def hidden(
        self,
        input_ids_T: Tensor,
        lengths: Sequence[int],
        *,
        positions_T: Tensor | None = None,
        rows_TD: Tensor | None = None,
        first_only: bool = False,
        read: Read | None = None,
        alike: bool = False,
        left_out: Sequence[LeftOut] = (),
        watch: Watch | None = None,
    ) -> Tensor:
        """Return hidden states at all tokens, (T, D), or with `first_only` at the first of each cell, (cells, D).

        Parameters
        ----------
        input_ids_T, lengths
            Tokens of all cells end to end, and of each.
        positions_T
            Position of each token, where tokens are left out and the others keep their places.
        rows_TD
            What stands instead of `token_rows`.
        first_only
            Read no more than ``<cls>``, for a third of the last block's work.
        read
            The tokens that are read, instead.
        alike, watch
            As of `run_encoder`.
        left_out
            With `alike`: which cells are one, each without one of its tokens, first to last. It changes no value, and
            saves the first block's attention where the network is prepared.
        """
        read = first_tokens(lengths, self.device) if first_only else read
        options: dict[str, Any] = {"read": read, "alike": alike, "positions_T": positions_T, "rows_TD": rows_TD}
        with self.reading():
            if watch is None and self._prepared is not None:
                return self._prepared(input_ids_T, lengths, left_out=left_out, **options)
            with self._halved():
                options |= {"n_blocks": self.n_blocks, "watch": watch}
                return run_encoder(self.bert, input_ids_T, lengths, **options).float()

    @cached_property
    def _prepared(self) -> Prepared | None:
        dtype = getattr(torch, self.dtype)
        with torch.no_grad():
            return Prepared(self.bert, self.n_blocks, dtype) if can_be_prepared(self.bert, self.device, dtype) else None

    @cached_property
    def _derivable(self) -> Derivable | None:
        with torch.no_grad():
            return None if self._prepared is None else Derivable(self._prepared)

    def watch(self, batch: Batch, watch: Watch) -> None:
        """Show an observer what the tokens of a batch attend with, block by block; of the last block no more is made.

        Parameters
        ----------
        batch
            Cells, on the device.
        watch
            As of `run_encoder`; called in inference mode, and in single precision whatever the network computes in.
        """

        def shown(layer: int, attention: Attention) -> None:
            with torch.autocast(self.device.type, enabled=False):
                watch(layer, attention)

        with self.reading(), self._halved():
            options: Mapping[str, Any] = {"n_blocks": self.n_blocks, "watch": shown, "watch_only": True}
            run_encoder(self.bert, batch.input_ids_T, batch.lengths, **options)

    def pooled(self, batch: Batch, pooling: Pooling) -> Tensor:
        """Return the vector of each cell of a batch, (cells, D), on the CPU."""
        if pooling == "cls":
            return self.hidden(batch.input_ids_T, batch.lengths, first_only=True).cpu()
        hidden_TD = self.hidden(batch.input_ids_T, batch.lengths)
        with self.reading():
            return pool(hidden_TD, batch.genes_T, Cells(batch.lengths), pooling).cpu()

    def derivatives(
        self,
        input_ids_T: Tensor,
        lengths: Sequence[int],
        score: Callable[[Tensor, Tensor, Cells], Tensor],
        *,
        sum_to_one: bool = False,
    ) -> Derivatives:
        """Return scores of cells and their derivatives by every token; a backward pass a state.

        Parameters
        ----------
        input_ids_T, lengths
            Tokens of all cells end to end, and of each.
        score
            Called with hidden states (T, D), how present each token is (T,) and where cells lie; returns (cells, S).
        sum_to_one
            A cell's scores always do, so that the derivatives of the last follow from those of the others.
        """
        presence_T = torch.ones(len(input_ids_T), device=self.device, requires_grad=True)
        with torch.enable_grad():
            if self._derivable is not None:
                hidden_TD, embedded_TD = self._derivable(input_ids_T, lengths, presence_T)
            else:
                with self._halved():
                    gated = run_gated(self.bert, input_ids_T, lengths, presence_T, n_blocks=self.n_blocks)
                hidden_TD, embedded_TD = gated
            score_CS = score(hidden_TD.float(), presence_T, Cells(lengths))
            gradients = list(_by_state(score_CS[:, : -1 if sum_to_one else None], [presence_T, embedded_TD]))
        if sum_to_one:
            gradients.append(tuple(-torch.stack(of_free).sum(0) for of_free in zip(*gradients, strict=True)))
        by_presence, by_embedded = zip(*gradients, strict=True)
        return Derivatives(score_CS.detach(), torch.stack(by_presence), torch.stack(by_embedded).float())

    def token_rows(self, input_ids_T: Tensor) -> Tensor:
        """Return the row that each token has in the table of word embeddings, (T, D), float32."""
        with torch.no_grad():
            return self.bert.embeddings.word_embeddings(input_ids_T).float()

    def slopes_by_row(
        self,
        input_ids_T: Tensor,
        lengths: Sequence[int],
        answer: Callable[[Tensor], Tensor],
        *,
        rows_TD: Tensor | None = None,
        first_only: bool = False,
    ) -> Slopes:
        """Return numbers of cells and their derivatives by every token's row, (S, T, D); a backward pass a number.

        Parameters
        ----------
        input_ids_T, lengths
            Tokens of all cells end to end, and of each.
        answer
            Called with what `hidden` would return; returns (cells, S).
        rows_TD
            Where on a way between two inputs it is asked; default `token_rows`.
        first_only
            As of `hidden`.
        """
        rows_TD = (self.token_rows(input_ids_T) if rows_TD is None else rows_TD).detach().requires_grad_()
        read = first_tokens(lengths, self.device) if first_only else None
        with torch.enable_grad():
            options: Mapping[str, Any] = {"n_blocks": self.n_blocks, "read": read, "rows_TD": rows_TD}
            with self._halved():
                hidden = run_encoder(self.bert, input_ids_T, lengths, **options)
            value_CS = answer(hidden.float())
            by_row_STD = torch.stack([by_row_TD for (by_row_TD,) in _by_state(value_CS, [rows_TD])])
        return Slopes(value_CS.detach(), by_row_STD)

    def slopes_by_attention(
        self,
        input_ids_T: Tensor,
        lengths: Sequence[int],
        answer: Callable[[Tensor], Tensor],
        *,
        first_only: bool = False,
    ) -> Slopes:
        """Return numbers of cells and what the attention to each token adds to them, (S, T); a backward pass a number.

        What a token gives is its value times the attention it gets, so Σ_i A_ij ∂F/∂A_ij = v_j · ∂F/∂v_j, head by
        head: exact, and no matrix of weights is made. Summed over blocks and heads.

        Parameters
        ----------
        input_ids_T, lengths, answer, first_only
            As of `slopes_by_row`.
        """
        values: list[Tensor] = []
        with torch.enable_grad():
            with self._halved():
                hidden = run_encoder(
                    self.bert,
                    input_ids_T,
                    lengths,
                    n_blocks=self.n_blocks,
                    watch=lambda _, attention: values.append(attention.value_THE),
                )
            value_CS = answer((hidden[first_tokens(lengths, self.device).tokens] if first_only else hidden).float())
            by_attention = [
                torch.stack([(v * by_v).sum((1, 2)) for v, by_v in zip(values, by_values, strict=True)]).sum(0)
                for by_values in _by_state(value_CS, values)
            ]
        return Slopes(value_CS.detach(), torch.stack(by_attention).detach().float())

    def batches_to_derive(self, lengths: np.ndarray) -> Iterator[np.ndarray]:
        """Cut cells into batches for `derivatives`, which need more memory: indices of the cells of each."""
        return token_budget_batches(lengths, max(1, self.max_tokens // _SHARE_OF_BUDGET))

    def position_embeddings(self, n_positions: int) -> Tensor:
        """Return the embeddings of the first positions, (positions, D), float32."""
        with self.reading():
            return self.bert.embeddings.position_embeddings(torch.arange(n_positions, device=self.device)).float()

    @staticmethod
    def reading() -> torch.inference_mode:
        """Compute what is made of hidden states without gradients."""
        return torch.inference_mode()

    def _halved(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == "bfloat16")


def _by_state(value_CS: Tensor, inputs: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """Yield the derivatives by the inputs of each state's sum over cells."""
    totals = value_CS.sum(0).unbind()
    return (torch.autograd.grad(total, inputs, retain_graph=total is not totals[-1]) for total in totals)


# Networks that are being trained, or as they came out of it


@contextmanager
def evaluating(network: nn.Module) -> Iterator[torch.device]:
    """Have a network, wrapped or not, compute without dropout and gradients; yield its device."""
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad():
            yield next(network.parameters()).device
    finally:
        network.train(was_training)


def outputs_of(
    network: nn.Module,
    cells: TokenizedDataset,
    head: Head,
    *,
    max_tokens: int = MAX_TOKENS,
    shared: bool = False,
    counting: Callable[[int], object] = lambda _: None,
) -> Tensor:
    """Return a cell classifier's outputs for each cell with a gene, (cells, outputs), on the CPU; 0 for others.

    Parameters
    ----------
    network, cells, head
        The classifier, what it is asked about, and what it puts out.
    max_tokens
        Tokens of a batch.
    shared
        Every process calls this with the same cells: they share the batches, and each gets all outputs.
    counting
        Is told the number of cells of each batch when it is done.
    """
    outputs_NK = torch.zeros(len(cells), head.n_outputs)
    rows = np.arange(len(cells))
    cuts = list(_cut(cells, rows, max_tokens))  # numbers of rows: tokens are read batch by batch
    with evaluating(network) as device:
        for chosen, is_mine in _shared(cuts) if shared else ((chosen, True) for chosen in cuts):
            batch = _laid_out(cells, rows, chosen).to(device)
            logits_BK = network(**batch.inputs).logits.float().cpu()
            if is_mine:
                outputs_NK[torch.from_numpy(chosen)] = logits_BK
            counting(len(chosen))
    return processes.sum_over(outputs_NK) if shared else outputs_NK


def logits_at_tokens(
    network: nn.Module, cells: TokenizedDataset, number_of_token: np.ndarray, *, max_tokens: int = MAX_TOKENS
) -> Iterator[tuple[Tensor, Tensor]]:
    """Ask a gene classifier about chosen genes wherever they stand in cells.

    Parameters
    ----------
    network, cells
        The classifier, and cells.
    number_of_token
        A number for each token of the vocabulary, or -100 for one that is not asked about.
    max_tokens
        Tokens of a batch.

    Yields
    ------
    Of a batch the number of each token that is asked about, (M,), and its logits, (M, classes), on the CPU.
    """
    with evaluating(network) as device:
        for batch in batches_of(cells, np.arange(len(cells)), max_tokens):
            numbers_T = torch.from_numpy(number_of_token)[batch.input_ids_T]
            is_asked_T = numbers_T != IGNORED
            if is_asked_T.any():
                labels_T = torch.where(is_asked_T, 0, IGNORED)  # any class: only where is asked
                on_device = batch.to(device)
                output = network(on_device.input_ids_T, batch.lengths, labels=labels_T.to(device))
                yield numbers_T[is_asked_T], output.logits.cpu()


def batches_to_judge(lengths: np.ndarray) -> Iterator[np.ndarray]:
    """Cut cells into batches whose outputs are as wide as a vocabulary: indices of the cells of each."""
    return token_budget_batches(lengths, MAX_TOKENS // 2)


def sum_over_batches(
    network: nn.Module, batches: Sequence[Mapping[str, Any]], judge: Callable[[Any, Mapping[str, Any]], Tensor]
) -> Tensor:
    """Return the sum of what `judge` makes of a network's outputs; the processes of a run share the batches.

    Parameters
    ----------
    network
        Called with what each batch holds, on its device.
    batches
        The same on all processes, and at least one.
    judge
        Called with the output and the batch; returns tensors of one shape.
    """
    judgements = []
    with evaluating(network) as device:
        for batch, is_mine in _shared(batches):
            inputs = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
            judgement = judge(network(**inputs), inputs)
            judgements.append(judgement if is_mine else torch.zeros_like(judgement))
    return processes.sum_over(torch.stack(judgements).sum(0))


def _shared(batches: Sequence[T]) -> Iterator[tuple[T, bool]]:
    """Yield this process's batches, and whether they count.

    A process that has none left computes another's once more: sharded weights need all processes in each forward pass.
    """
    for first in range(0, len(batches), processes.count()):
        mine = first + processes.rank()
        yield batches[min(mine, len(batches) - 1)], mine < len(batches)


def require_one_of(choices: Any, name: str, given: str) -> None:
    """Raise unless an argument is one of its choices, a `Literal`."""
    if given not in get_args(choices):
        raise InputError(f"{name} must be one of {', '.join(map(repr, get_args(choices)))}, found {given!r}.")
