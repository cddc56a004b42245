"""What a cell's answer loses when genes are deleted, hidden, masked or moved: real forward passes of altered cells.

Deleting a gene moves all later ones up by a place, so part of its effect is theirs; hiding it leaves them where they
are: the token is left out and the others keep their positions, which is exactly the model with this key masked in every
block and left out of pooling, and costs no more. Their difference is the effect of the shift.

Shapes: N altered cells, L tokens of one, G genes of a cell, S numbers explained.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal, TypeAlias, get_args

import numpy as np
from torch import Tensor

from geneformer_repro.attention import Cells
from geneformer_repro.in_silico.explanations.answers import Answer, View, laid_out, unchanged
from geneformer_repro.in_silico.explanations.attribution import Attribution
from geneformer_repro.in_silico.first_order import changes
from geneformer_repro.in_silico.perturbation import GONE
from geneformer_repro.left_out import Cell
from geneformer_repro.prepared import LeftOut
from geneformer_repro.reading import Reader
from geneformer_repro.tokenizer.vocabulary import Vocabulary

Operator: TypeAlias = Literal["delete", "hide", "mask", "median_rank"]
OPERATORS: tuple[Operator, ...] = get_args(Operator)
Alter: TypeAlias = Callable[[View, np.ndarray], View]
"""Takes a cell and places of genes in it, ascending; returns it without what stands there."""


def ask(
    reader: Reader, answer: Answer, views: Iterable[View], *, show: Callable[[int], object] = lambda n: None
) -> np.ndarray:
    """Return the answer of any altered cells, (N, S), float64.

    Cells that have much in common should follow each other, such as the variants of one: in a batch the same token at
    the same position is embedded once, and has one query, key and value in the first block; where cells are a token
    short of the same cell, they share their attention there as well.

    Parameters
    ----------
    reader
        The network, at the layer of the answer.
    answer
        What is asked.
    views
        The cells; they are taken as batches have room.
    show
        Called with the number of cells of each batch that is done.
    """
    answers = [np.zeros((0, len(answer.names)))]
    wholes: dict[tuple[int, bool], tuple[View, Cell]] = {}
    for batch in _batches(views, reader.max_tokens):
        with reader.reading():
            shown = laid_out(batch, reader.device)
            hidden_TD = reader.hidden(
                shown.ids_T,
                shown.lengths,
                positions_T=shown.positions_T,
                first_only=answer.first_only,
                alike=True,
                left_out=list(_left_out(batch, wholes)),
            )
            answers.append(answer(hidden_TD, shown).double().cpu().numpy())
        show(len(batch))
    return np.concatenate(answers)


def _batches(views: Iterable[View], max_tokens: int) -> Iterator[list[View]]:
    batch: list[View] = []
    room = max_tokens
    for view in views:
        if batch and len(view.ids_L) > room:
            yield batch
            batch, room = [], max_tokens
        batch.append(view)
        room -= len(view.ids_L)
    if batch:
        yield batch


def _left_out(batch: Sequence[View], wholes: dict[tuple[int, bool], tuple[View, Cell]]) -> Iterator[LeftOut]:
    """Yield the runs of views that are one token short of a cell, which is kept until another comes."""
    first = 0
    for (whole, moves_up), run in itertools.groupby(
        batch, lambda view: (view.whole and id(view.whole), moved_up(view))
    ):
        views = list(run)
        if whole is not None and views[0].whole is not None:
            if (whole, moves_up) not in wholes:
                wholes.clear()
                wholes[whole, moves_up] = views[0].whole, Cell(views[0].whole.ids_L, moves_up=moves_up)
            yield LeftOut(first, wholes[whole, moves_up][1], np.array([view.lacks for view in views]))
        first += len(views)


def moved_up(view: View) -> bool:
    """Return whether the last token stands where one fewer would put it."""
    return int(view.positions_L[-1]) == len(view.ids_L) - 1


# Operators: pure functions of a cell and places of genes in it


def hidden(view: View, places: np.ndarray) -> View:
    """Leave genes out; the others keep their positions, as if these keys were masked in every block.

    Parameters
    ----------
    view
        A cell.
    places
        Of the genes: 0 is the first. Not that of the gene that is asked about.
    """
    kept = np.delete(np.arange(len(view.ids_L)), places + view.margin)
    asked = int(np.searchsorted(kept, view.asked)) if view.asked >= 0 else -1
    is_one = len(places) == 1 and view.whole is None and moved_up(view)
    return view._replace(
        ids_L=view.ids_L[kept],
        positions_L=view.positions_L[kept],
        weight_L=view.weight_L[kept],
        asked=asked,
        whole=view if is_one else None,
        lacks=int(places[0]) + view.margin if is_one else -1,
    )


def deleted(view: View, places: np.ndarray) -> View:
    """Delete genes; those behind move up. Parameters as of `hidden`."""
    left = hidden(view, places)
    return left._replace(positions_L=np.arange(len(left.ids_L)))


def masked(view: View, places: np.ndarray, *, mask_token: int, pooled: bool = False) -> View:
    """Put ``<mask>`` in the place of genes.

    Parameters
    ----------
    view, places
        As of `hidden`.
    mask_token
        Its id.
    pooled
        Whether masks count in the cell's vector as genes do.
    """
    ids_L, weight_L = view.ids_L.copy(), view.weight_L.copy()
    ids_L[places + view.margin] = mask_token
    if not pooled:
        weight_L[places + view.margin] = 0
    return view._replace(ids_L=ids_L, weight_L=weight_L, whole=None)


def at_median(view: View, places: np.ndarray, *, median: np.ndarray) -> View:
    """Move genes to their median places; the others fill the rest in their order.

    Parameters
    ----------
    view, places
        As of `hidden`.
    median
        Median place of each token id of the vocabulary, -1 where it has none (such a gene stays). Beyond a cell's end
        is its end; of two genes of one median the one that stands in front comes first.
    """
    n, margin = view.n_genes, view.margin
    wanted = median[view.ids_L[places + margin]].astype(np.int64)
    wanted = np.minimum(np.where(wanted < 0, places, wanted), n - 1)
    order = np.lexsort((places, wanted))
    steps = np.arange(len(places))
    goes = np.maximum.accumulate(wanted[order] - steps) + steps
    goes = np.minimum(goes, n - len(places) + steps)
    source = np.empty(n, dtype=np.int64)
    others = np.delete(np.arange(n), places)
    source[goes] = places[order]
    source[np.delete(np.arange(n), goes)] = others
    moved = np.concatenate([np.arange(margin), source + margin, np.arange(n + margin, n + 2 * margin)])
    asked = int(np.flatnonzero(moved == view.asked)[0]) if view.asked >= 0 else -1
    return view._replace(ids_L=view.ids_L[moved], weight_L=view.weight_L[moved], asked=asked, whole=None)


def median_places(cells: Iterable[np.ndarray], vocabulary: Vocabulary) -> np.ndarray:
    """Return the median place of each token id over the cells that express it, rounded down; -1 without any."""
    tokens, places = [], []
    for cell in cells:
        genes = cell[vocabulary.genes_of(cell) >= 0]
        tokens.append(genes)
        places.append(np.arange(len(genes)))
    median = np.full(vocabulary.size, -1)
    if not tokens:
        return median
    token_M, place_M = np.concatenate(tokens), np.concatenate(places)
    order = np.lexsort((place_M, token_M))
    token_M, place_M = token_M[order], place_M[order]
    of_gene, starts, counts = np.unique(token_M, return_index=True, return_counts=True)
    low, high = place_M[starts + (counts - 1) // 2], place_M[starts + counts // 2]
    median[of_gene] = (low + high) // 2
    return median


def operation(
    operator: Operator, vocabulary: Vocabulary, *, median: np.ndarray | None = None, pooled: bool = False
) -> Alter:
    """Return what an operator does to a cell.

    Parameters
    ----------
    operator
        Its name.
    vocabulary
        Knows ``<mask>``.
    median
        From `median_places`, for "median_rank".
    pooled
        As of `masked`.
    """
    match operator:
        case "delete":
            return deleted
        case "hide":
            return hidden
        case "mask":
            return lambda view, places: masked(view, places, mask_token=vocabulary.mask_token, pooled=pooled)
    assert median is not None, "the places of reference cells"
    return lambda view, places: at_median(view, places, median=median)


# Attribution: each gene, or each group of genes, in turn


def occlusions(
    reader: Reader,
    answer: Answer,
    cells: Sequence[np.ndarray],
    vocabulary: Vocabulary,
    operator: Alter,
    show: Callable[[int], object] = lambda n: None,
    *,
    groups: Mapping[str, np.ndarray] | None = None,
) -> list[Attribution]:
    """Return what each gene of each cell adds to its answer: F(x) − F(x altered).

    Parameters
    ----------
    reader, answer
        As of `ask`.
    cells
        Token ids of each cell, special tokens included; with the gene that is asked about, if one is.
    vocabulary
        Tells genes from special tokens.
    operator
        From `operation`.
    show
        Called with the number of altered cells of each batch that is done.
    groups
        Token ids of each named group of genes; they are taken away together. None: each gene by itself.

    Returns
    -------
    A value a gene, or a group; NaN for the gene that is asked about, for a gene that is all the cell has, and for a
    group of which the cell has no gene, or that is all it has.
    """
    views = [unchanged(cell, vocabulary, answer) for cell in cells]
    altered = [list(_places_to_alter(view, groups)) for view in views]

    def in_turn() -> Iterator[View]:
        for view, of_cell in zip(views, altered, strict=True):
            yield view
            for _, places in of_cell:
                yield operator(view, places)

    answers_NS = iter(ask(reader, answer, in_turn(), show=show))
    attributions = []
    for view, of_cell in zip(views, altered, strict=True):
        before_S = next(answers_NS)
        value_GS = np.full((view.n_genes if groups is None else len(groups), len(before_S)), np.nan)
        for i, _ in of_cell:
            value_GS[i] = before_S - next(answers_NS)
        attributions.append(Attribution(value_GS, before_S))
    return attributions


def _places_to_alter(view: View, groups: Mapping[str, np.ndarray] | None) -> Iterator[tuple[int, np.ndarray]]:
    """Yield each gene or group that can be taken away: its number, and the places."""
    asked = view.asked - view.margin
    genes = view.ids_L[view.margin : view.margin + view.n_genes]
    every = np.arange(len(genes))
    sets = every[:, None] if groups is None else [np.flatnonzero(np.isin(genes, ids)) for ids in groups.values()]
    for i, places in enumerate(sets):
        left = places[places != asked]
        if len(left) and len(left) < len(genes) and (groups is not None or len(left) == len(places)):
            yield i, left


# First orders


def first_order(
    reader: Reader,
    answer: Answer,
    cells: Sequence[np.ndarray],
    vocabulary: Vocabulary,
    show: Callable[[int], object] = lambda n: None,
) -> list[Attribution]:
    """Estimate what deleting each gene takes away, from one forward and one backward pass a cell (and number).

    See `geneformer_repro.in_silico.first_order`; parameters and result as of `occlusions`.
    """
    attributions: dict[int, Attribution] = {}
    for chosen in reader.batches_to_derive(np.array([len(cell) for cell in cells])):
        views = [unchanged(cells[i], vocabulary, answer) for i in chosen]
        found = _first_order_of(reader, answer, views)
        attributions |= dict(zip(chosen.tolist(), found, strict=True))
        show(len(chosen))
    return [attributions[i] for i in range(len(cells))]


def _first_order_of(reader: Reader, answer: Answer, views: Sequence[View]) -> Iterator[Attribution]:
    shown = laid_out(views, reader.device)

    def score(hidden_TD: Tensor, presence_T: Tensor, _: Cells) -> Tensor:
        return answer(hidden_TD, shown._replace(weight_T=shown.weight_T * presence_T))

    found = reader.derivatives(shown.ids_T, shown.lengths, score)
    position_PD = reader.position_embeddings(max(shown.lengths))
    of_cells = (of_tokens.split(shown.lengths, dim=1) for of_tokens in (found.by_presence_ST, found.by_embedded_STD))
    before_BS = found.score_CS.cpu().double().numpy()
    for view, before_S, by_presence_SL, by_embedded_SLD in zip(views, before_BS, *of_cells, strict=True):
        places = np.arange(view.margin, view.margin + view.n_genes)
        gone = np.full(len(places), GONE)
        of_states = zip(by_presence_SL, by_embedded_SLD, strict=True)
        value_GS = -np.stack([changes(places, gone, *of_state, position_PD) for of_state in of_states], axis=1)
        value_GS[places == view.asked] = np.nan
        yield Attribution(value_GS, before_S)
