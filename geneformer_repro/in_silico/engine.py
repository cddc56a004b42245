"""From changed cells to numbers: every variant is a real forward pass, cut at the layer that is read.

Variants are written down as where each touched gene goes (a few numbers) and become token ids on the device. Those of
several cells share a batch up to a budget of tokens, laid end to end, without padding; the unchanged cell goes through
in the same batch as its first variants, and is kept until its last. What leaves the device is one number a variant and
state.

Shapes: N variants, L tokens and G genes of each, T tokens of a batch, D hidden size, S states or classes, E genes that
a variant touches.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from geneformer_repro.attention import Cells
from geneformer_repro.heads import CellClassifier, pool
from geneformer_repro.in_silico.perturbation import GONE, NONE, Variants
from geneformer_repro.left_out import Cell
from geneformer_repro.network_settings import Pooling
from geneformer_repro.prepared import LeftOut
from geneformer_repro.reading import Reader
from geneformer_repro.tokenizer.vocabulary import CLS, EOS, Vocabulary


@dataclass(frozen=True)
class Nearness:
    """Cosine similarity of a cell's vector to that of each state."""

    states_SD: Tensor
    pooling: Pooling
    sums_to_one: ClassVar[bool] = False
    """Whether the numbers are shares, so that the changes of one follow from those of the others."""

    @property
    def first_only(self) -> bool:
        """Whether the first token's state is all that is read."""
        return self.pooling == "cls"

    @property
    def width(self) -> int:
        """How many states."""
        return len(self.states_SD)

    def __call__(self, hidden_TD: Tensor, weight_T: Tensor, cells: Cells) -> Tensor:
        """Return the similarities, (N, S), of cells whose tokens' hidden states and weights are given."""
        return F.cosine_similarity(pool(hidden_TD, weight_T, cells, self.pooling)[:, None], self.states_SD, dim=-1)


@dataclass(frozen=True)
class Prediction:
    """What a classifier says of a cell: the probability of each class of a target, or its number."""

    model: CellClassifier
    target: int

    @property
    def first_only(self) -> bool:
        """Whether the first token's state is all that is read."""
        return self.model.head.first_only

    @property
    def width(self) -> int:
        """How many classes; 1 for a number."""
        return self.model.head.targets[self.target].n_outputs

    @property
    def sums_to_one(self) -> bool:
        """Whether the numbers are probabilities."""
        return self.model.head.targets[self.target].sums_to_one

    def __call__(self, hidden_TD: Tensor, weight_T: Tensor, cells: Cells) -> Tensor:
        """Return the probabilities, (N, S), or the number, (N, 1), likewise."""
        target = self.model.head.targets[self.target]
        output_NS = self.model.head.split(self.model.logits_of(hidden_TD, weight_T, cells))[self.target].float()
        return target.meaning(output_NS)


Score = Nearness | Prediction
"""Numbers of a cell, by state; what is reported is how much they change."""


class PerturbedCell(NamedTuple):
    """A cell and what is done to it."""

    tokens: np.ndarray
    """Token ids of the unchanged cell."""
    variants: Variants


@dataclass
class Outcome:
    """What came of the variants of a cell; N variants of S states."""

    value_NS: np.ndarray
    """Change of the score; without a score, (N, 1), how similar the cell stayed to itself."""
    before_NS: np.ndarray
    """Score of the unchanged cell; NaN without one."""
    affected: dict[int, tuple[np.ndarray, np.ndarray]]
    """By variant: tokens of the other genes, and how similar each stayed to itself."""


class _Piece(NamedTuple):
    """Variants of a cell that have equally many genes; or the cell itself, as they are compared with it."""

    cell: int
    """Number of the cell."""
    cut_off: tuple[int, ...]
    """Places of genes that the variants lose at their end, and the cell they are compared with as well."""
    rows: np.ndarray | None
    """Which variants; None for the cell itself."""
    n_genes: int

    @property
    def n_cells(self) -> int:
        return 1 if self.rows is None else len(self.rows)

    def cut(self, n_cells: int) -> "tuple[_Piece, _Piece | None]":
        """Return the first cells, and the others if there are any."""
        if self.rows is None or n_cells >= len(self.rows):
            return self, None
        return self._replace(rows=self.rows[:n_cells]), self._replace(rows=self.rows[n_cells:])


class _Reference(NamedTuple):
    """The unchanged cell."""

    unit_WD: Tensor | None
    """Vector of each gene, of length 1; 0 for genes that were cut off or are not in the cell."""
    first_D: Tensor
    score_S: Tensor | None


@dataclass(frozen=True)
class Engine:
    """A model, and what is read of it.

    Parameters
    ----------
    reader
        The network, on its device.
    vocabulary
        Special tokens and genes.
    pooling
        How a cell is compared with itself.
    score
        What is measured instead of the similarity to itself.
    affected
        Of each token, whether what happens to it is reported; None for none.
    max_genes
        Most genes of a cell.
    """

    reader: Reader
    vocabulary: Vocabulary
    pooling: Pooling
    score: Score | None
    affected: np.ndarray | None
    max_genes: int

    def run(self, cells: Sequence[PerturbedCell], show: Callable[[int], object] = lambda n: None) -> list[Outcome]:
        """Run the model on cells and their variants.

        Parameters
        ----------
        cells
            Cells and what is done to each.
        show
            Called with the number of variants of each batch that is done.
        """
        screening = _Screening(self, cells)
        with self.reader.reading():
            for batch in screening.batches():
                screening.do(batch)
                show(sum(piece.n_cells for piece in batch if piece.rows is not None))
        return screening.outcomes

    @property
    def first_only(self) -> bool:
        """Whether nothing but the first token's state is read."""
        return self.affected is None and (self.score.first_only if self.score else self.pooling == "cls")

    @property
    def margin(self) -> int:
        """Special tokens on either side of a cell's genes."""
        return int(self.vocabulary.has_cls)

    def wrap(self, genes_NG: Tensor) -> Tensor:
        """Put special tokens around genes."""
        if not self.margin:
            return genes_NG
        special = self.vocabulary.special_tokens
        return F.pad(F.pad(genes_NG, (1, 0), value=special[CLS]), (0, 1), value=special[EOS])

    def scores(self, hidden_NLD: Tensor, n_genes: int) -> Tensor:
        """Return the score of cells of one length, (N, S): L is 1 where only the first token was read."""
        assert self.score is not None
        n_cells, n_read = hidden_NLD.shape[:2]
        weight_L = F.pad(torch.ones(n_genes, device=hidden_NLD.device), (self.margin, self.margin))[:n_read]
        return self.score(hidden_NLD.flatten(0, 1), weight_L.repeat(n_cells), Cells([n_read] * n_cells))


class _Screening:
    """Cells whose variants are being run, and what has come of them so far."""

    def __init__(self, engine: Engine, cells: Sequence[PerturbedCell]) -> None:
        self._engine, self._cells = engine, cells
        width = engine.score.width if engine.score else 1
        shapes = [(len(cell.variants), width) for cell in cells]
        self.outcomes = [Outcome(np.full(shape, np.nan), np.full(shape, np.nan), {}) for shape in shapes]
        self._genes = [cell.tokens[engine.vocabulary.genes_of(cell.tokens) >= 0] for cell in cells]
        self._references: dict[tuple[int, tuple[int, ...]], _Reference] = {}
        self._wholes: dict[int, Cell] = {}

    def batches(self) -> Iterator[list[_Piece]]:
        """Cut the work into batches, the longest cells first."""
        batch: list[_Piece] = []
        room = self._engine.reader.max_tokens
        for whole in self._pieces():
            piece: _Piece | None = whole
            while piece is not None:
                n_tokens = piece.n_genes + 2 * self._engine.margin
                fitting = max(room // n_tokens, not batch)
                if not fitting:
                    yield batch
                    batch, room = [], self._engine.reader.max_tokens
                    continue
                first, piece = piece.cut(fitting)
                batch.append(first)
                room -= first.n_cells * n_tokens
        if batch:
            yield batch

    def _pieces(self) -> Iterator[_Piece]:
        order = np.argsort([-len(genes) for genes in self._genes], kind="stable")
        for cell in order.tolist():
            begun = set()
            for cut_off, n_genes, rows in self._alike(cell):
                if cut_off not in begun:
                    yield _Piece(cell, cut_off, None, len(self._genes[cell]) - len(cut_off))
                begun.add(cut_off)
                yield _Piece(cell, cut_off, rows, n_genes)

    def _alike(self, cell: int) -> Iterator[tuple[tuple[int, ...], int, np.ndarray]]:
        """Yield variants that have equally many genes and lose the same at the end."""
        variants, max_genes = self._cells[cell].variants, self._engine.max_genes
        fits = variants.n_genes_N <= max_genes
        for n_after in np.unique(variants.n_genes_N[fits]).tolist():
            yield (), n_after, np.flatnonzero(variants.n_genes_N == n_after)
        too_long = np.flatnonzero(~fits)
        if len(too_long):
            cut_off_NK = pushed_out(variants.select(too_long), len(self._genes[cell]), max_genes)
            alike, which = np.unique(cut_off_NK, axis=0, return_inverse=True)
            for i, cut_off in enumerate(alike.tolist()):
                yield tuple(gene for gene in cut_off if gene != NONE), max_genes, too_long[which.ravel() == i]

    def do(self, batch: Sequence[_Piece]) -> None:
        """Run a batch and keep what is reported of it."""
        engine = self._engine
        sources = [self._source(piece) for piece in batch]
        ids = [engine.wrap(self._tokens(piece)[source]) for piece, source in zip(batch, sources, strict=True)]
        lengths = [ids_NL.shape[1] for ids_NL in ids for _ in range(len(ids_NL))]
        ids_T = torch.cat([ids_NL.flatten() for ids_NL in ids])
        hidden_TD = engine.reader.hidden(
            ids_T, lengths, first_only=engine.first_only, alike=True, left_out=list(self._left_out(batch))
        )
        n_read = [len(ids_NL) * (1 if engine.first_only else ids_NL.shape[1]) for ids_NL in ids]
        values = []
        for piece, source, hidden in zip(batch, sources, hidden_TD.split(n_read), strict=True):
            hidden_NLD = hidden.unflatten(0, (piece.n_cells, -1))
            if piece.rows is None:
                self._references[piece.cell, piece.cut_off] = self._reference(piece, source, hidden_NLD)
            else:
                values.append(self._values(piece, source, hidden_NLD))
        self._keep([piece for piece in batch if piece.rows is not None], values)
        last = batch[-1].cell
        self._references = {key: reference for key, reference in self._references.items() if key[0] == last}

    def _left_out(self, batch: Sequence[_Piece]) -> Iterator[LeftOut]:
        """Yield the pieces whose variants are their cell without one of its genes."""
        first = 0
        for piece in batch:
            if (lacks := self._lacks(piece)) is not None:
                if piece.cell not in self._wholes:
                    [ids_L] = self._engine.wrap(torch.from_numpy(self._genes[piece.cell])[None]).numpy()
                    self._wholes = {piece.cell: Cell(ids_L, moves_up=True)}
                yield LeftOut(first, self._wholes[piece.cell], lacks + self._engine.margin)
            first += piece.n_cells

    def _lacks(self, piece: _Piece) -> np.ndarray | None:
        """Return the gene that each variant lacks, (N,), if that is all that is done to them."""
        if piece.rows is None or piece.cut_off or piece.n_genes != len(self._genes[piece.cell]) - 1:
            return None
        variants = self._cells[piece.cell].variants
        touched_NE, place_NE = variants.touched_NE[piece.rows], variants.place_NE[piece.rows]
        is_gone_NE = (touched_NE >= 0) & (place_NE == GONE)
        if len(variants.inserted) or (is_gone_NE.sum(1) != 1).any() or (place_NE >= 0).any():
            return None
        return np.asarray(touched_NE[is_gone_NE])

    def _tokens(self, piece: _Piece) -> Tensor:
        """Return the tokens that variants of a cell are made of: its genes, then those that are inserted."""
        tokens = np.concatenate([self._genes[piece.cell], self._cells[piece.cell].variants.inserted])
        return torch.from_numpy(tokens).to(self._engine.reader.device)

    def _source(self, piece: _Piece) -> Tensor:
        """Return the places among `_tokens` of the tokens that make each variant, (N, G)."""
        n_genes = len(self._genes[piece.cell])
        if piece.rows is None:
            left = np.setdiff1d(np.arange(n_genes), piece.cut_off)
            return torch.from_numpy(left)[None].to(self._engine.reader.device)
        variants = self._cells[piece.cell].variants
        touched_NE, place_NE = (
            torch.from_numpy(of_all[piece.rows]).to(self._engine.reader.device)
            for of_all in (variants.touched_NE, variants.place_NE)
        )
        return arrange(n_genes, len(variants.inserted), touched_NE, place_NE)[:, : piece.n_genes]

    def _reference(self, piece: _Piece, source: Tensor, hidden_1LD: Tensor) -> _Reference:
        engine, unit_WD = self._engine, None
        if not engine.first_only and (engine.affected is not None or engine.score is None):
            margin, width = engine.margin, len(self._tokens(piece))
            unit_WD = hidden_1LD.new_zeros(width, hidden_1LD.shape[-1])
            unit_WD[source[0]] = F.normalize(hidden_1LD[0, margin : margin + piece.n_genes], dim=-1)
        score_S = engine.scores(hidden_1LD, piece.n_genes)[0] if engine.score else None
        return _Reference(unit_WD, hidden_1LD[0, 0].clone(), score_S)

    def _values(self, piece: _Piece, source: Tensor, hidden_NLD: Tensor) -> Tensor:
        """Return the values of some variants and, behind them, what they are the change of, (N, 2 S)."""
        engine, reference = self._engine, self._references[piece.cell, piece.cut_off]
        similarity_NG = None
        if reference.unit_WD is not None:
            similarity_NG = self._similarities(piece, source, hidden_NLD, reference.unit_WD)
        if engine.affected is not None and similarity_NG is not None:
            self._keep_affected(piece, source, similarity_NG)
        if engine.score is not None and reference.score_S is not None:
            score_NS = engine.scores(hidden_NLD, piece.n_genes)
            return torch.cat([score_NS - reference.score_S, reference.score_S.expand_as(score_NS)], 1)
        if engine.pooling == "cls":
            value_N = F.cosine_similarity(hidden_NLD[:, 0], reference.first_D[None], dim=-1).clamp(-1, 1)
        else:
            assert similarity_NG is not None
            value_N = similarity_NG.nanmean(1)
        return torch.stack([value_N, torch.full_like(value_N, torch.nan)], 1)

    def _similarities(self, piece: _Piece, source: Tensor, hidden_NLD: Tensor, unit_WD: Tensor) -> Tensor:
        """Return how similar each gene's vector is to that in the unchanged cell; NaN for a gene that was perturbed."""
        margin = self._engine.margin
        gene_NGD = hidden_NLD[:, margin : margin + piece.n_genes]
        similarity_NG = torch.linalg.vecdot(gene_NGD, unit_WD[source]) / torch.linalg.vector_norm(gene_NGD, dim=-1)
        similarity_NG = similarity_NG.clamp(-1, 1)  # beyond which rounding takes it
        place_NE = torch.from_numpy(self._cells[piece.cell].variants.place_NE[piece.rows]).to(source.device)
        beyond = piece.n_genes
        place_NE = place_NE.masked_fill((place_NE < 0) | (place_NE >= beyond), beyond)
        return F.pad(similarity_NG, (0, 1)).scatter(1, place_NE, torch.nan)[:, :beyond]

    def _keep_affected(self, piece: _Piece, source: Tensor, similarity_NG: Tensor) -> None:
        assert self._engine.affected is not None
        assert piece.rows is not None
        tokens_NG = self._tokens(piece)[source].cpu().numpy()
        similarities = similarity_NG.cpu().double().numpy()
        wanted_NG = self._engine.affected[tokens_NG] & ~np.isnan(similarities)
        for row, tokens, values, wanted in zip(piece.rows.tolist(), tokens_NG, similarities, wanted_NG, strict=True):
            self.outcomes[piece.cell].affected[row] = tokens[wanted], values[wanted]

    def _keep(self, pieces: Sequence[_Piece], values: Sequence[Tensor]) -> None:
        if not pieces:
            return
        table = torch.cat(list(values)).cpu().double().numpy()  # the one wait for the device
        ends = np.cumsum([piece.n_cells for piece in pieces])
        for piece, part in zip(pieces, np.split(table, ends[:-1]), strict=True):
            outcome = self.outcomes[piece.cell]
            outcome.value_NS[piece.rows], outcome.before_NS[piece.rows] = np.split(part, 2, axis=1)


def pushed_out(variants: Variants, n_genes: int, max_genes: int) -> np.ndarray:
    """Return which genes of a cell its variants lose at their end, (N, K): ascending, filled with -1 in front.

    Without writing variants down: of the untouched genes only the last can be among them.

    Parameters
    ----------
    variants
        Variants of more genes than a cell may have.
    n_genes
        Genes of the cell.
    max_genes
        Genes that a cell may have.
    """
    touched_NE, place_NE = variants.touched_NE, variants.place_NE
    moved_NE = np.where((place_NE >= max_genes) & (touched_NE < n_genes), touched_NE, NONE)
    n_untouched_N = variants.n_genes_N - max_genes - (place_NE >= max_genes).sum(1)
    n_last = min(n_genes, int(n_untouched_N.max(initial=0)) + touched_NE.shape[1])
    last_W = np.arange(n_genes - n_last, n_genes)
    untouched_NW = (touched_NE[:, None, :] != last_W[None, :, None]).all(2)
    n_behind_NW = untouched_NW[:, ::-1].cumsum(1)[:, ::-1] - untouched_NW
    gone_NW = np.where(untouched_NW & (n_behind_NW < n_untouched_N[:, None]), last_W, NONE)
    return np.sort(np.concatenate([gone_NW, moved_NE], axis=1), axis=1)


def arrange(n_genes: int, n_inserted: int, touched_NE: Tensor, place_NE: Tensor) -> Tensor:
    """Make variants of a cell: touched genes go to their places, the others fill the rest in order.

    Parameters
    ----------
    n_genes
        Genes of the cell.
    n_inserted
        Genes that some variant adds; they are numbered on from those of the cell.
    touched_NE, place_NE
        As of `Variants`.

    Returns
    -------
    Which gene stands at each place, (N, `n_genes` + `n_inserted`); what lies beyond a variant's genes means nothing.
    """
    width = n_genes + n_inserted
    places_NE, genes_NE = (torch.where(of_variants < 0, width, of_variants) for of_variants in (place_NE, touched_NE))
    none_NW = torch.zeros(len(touched_NE), width + 1, dtype=torch.uint8, device=touched_NE.device)
    is_taken_NW = none_NW.scatter(1, places_NE, 1)[:, :width]
    is_touched_NW = none_NW.scatter(1, genes_NE, 1)[:, :width]
    is_touched_NW[:, n_genes:] = 1
    free_first_NW, untouched_first_NW = (marked.argsort(dim=1, stable=True) for marked in (is_taken_NW, is_touched_NW))
    order_NW = F.pad(torch.empty_like(free_first_NW).scatter_(1, free_first_NW, untouched_first_NW), (0, 1))
    return order_NW.scatter(1, places_NE, touched_NE)[:, :width]
