r"""Every gene of a cell ranked by one forward and one backward pass, where an exact screen takes a pass a gene.

Give each gene k a presence :math:`g_k`, by which its attention weight as a key is multiplied (:math:`\log g_k` is added
to the attention logits), and its weight where the cell's vector is pooled. All at 1, nothing changes. Let s be the
score (nearness to a state, or a predicted probability), x the sum of embeddings before the first norm, and P the
positions' embeddings. Deleting gene j takes :math:`g_j` from 1 to 0 and moves each token behind it up by one position:

.. math:: Δs ≈ -\frac{∂s}{∂g_j} + \sum_{k>j} ∇_{x_k}s · (P_{k-1} - P_k)

Moving gene j to place i (overexpression: i = 0) changes its own position and moves those in between by one:

.. math:: Δs ≈ ∇_{x_j}s · (P_i - P_j) + \sum_{i≤k<j} ∇_{x_k}s · (P_{k+1} - P_k)

and, downwards, the sum over j < k ≤ i of the terms with :math:`P_{k-1} - P_k`. Cumulative sums give all genes at once.

These are first orders of changes that are not small; how well they rank genes is measured, cell by cell, on a sample
that is also computed exactly (see `perturb`). Genes that are inserted have no such estimate.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from geneformer_repro.attention import Cells
from geneformer_repro.in_silico.engine import Engine, Outcome, PerturbedCell
from geneformer_repro.in_silico.perturbation import GONE
from geneformer_repro.reading import Derivatives


def first_order(
    engine: Engine, cells: Sequence[PerturbedCell], show: Callable[[int], object] = lambda n: None
) -> list[Outcome]:
    """Estimate the change of the engine's score by each variant.

    Parameters
    ----------
    engine
        A model and its score.
    cells
        Cells and their variants, each of one gene that the cell has.
    show
        Called with the number of variants of each batch that is done.
    """
    estimates: dict[int, Outcome] = {}
    for rows in engine.reader.batches_to_derive(np.array([len(cell.tokens) for cell in cells])):
        batch = [cells[row] for row in rows]
        estimates |= dict(zip(rows.tolist(), _of_batch(engine, batch), strict=True))
        show(sum(len(cell.variants) for cell in batch))
    return [estimates[i] for i in range(len(cells))]


def _of_batch(engine: Engine, batch: Sequence[PerturbedCell]) -> Iterator[Outcome]:
    lengths = [len(cell.tokens) for cell in batch]
    ids_T = torch.from_numpy(np.concatenate([cell.tokens for cell in batch])).to(engine.reader.device)
    scores, position_PD = derivatives(engine, ids_T, lengths), engine.reader.position_embeddings(max(lengths))
    before_CS = scores.score_CS.cpu().double().numpy()
    of_cells = (of_tokens.split(lengths, dim=1) for of_tokens in (scores.by_presence_ST, scores.by_embedded_STD))
    for cell, before_S, by_presence_SL, by_embedded_SLD in zip(batch, before_CS, *of_cells, strict=True):
        of_states = zip(by_presence_SL, by_embedded_SLD, strict=True)
        was, to = cell.variants.touched_NE[:, 0], cell.variants.place_NE[:, 0]
        was, to = was + engine.margin, np.where(to == GONE, GONE, to + engine.margin)
        value_NS = np.stack([changes(was, to, *of_state, position_PD) for of_state in of_states], axis=1)
        yield Outcome(value_NS, np.broadcast_to(before_S, value_NS.shape), {})


def derivatives(engine: Engine, ids_T: Tensor, lengths: Sequence[int]) -> Derivatives:
    """Return the engine's score of cells, in which only genes count, and how it changes with every token."""
    assert engine.score is not None
    score, is_gene_T = engine.score, torch.from_numpy(engine.vocabulary.genes_of(ids_T.cpu().numpy()) >= 0)
    is_gene_T = is_gene_T.to(ids_T.device)

    def of_cells(hidden_TD: Tensor, presence_T: Tensor, cells: Cells) -> Tensor:
        return score(hidden_TD, is_gene_T * presence_T, cells)

    return engine.reader.derivatives(ids_T, lengths, of_cells, sum_to_one=score.sums_to_one)


def changes(
    places: np.ndarray, goes: np.ndarray, by_presence_L: Tensor, by_embedded_LD: Tensor, position_PD: Tensor
) -> np.ndarray:
    """Return the estimated change of one number of a cell when tokens, each by itself, are deleted or moved, (N,).

    Parameters
    ----------
    places
        Where each token stands, special tokens included, (N,).
    goes
        Where it goes, likewise; `GONE` if it is deleted.
    by_presence_L, by_embedded_LD
        Derivatives of the number by the cell's tokens, as of `reading.Derivatives`.
    position_PD
        Embeddings of positions.
    """
    n_tokens = len(by_presence_L)
    position_LD, slope_LD = position_PD[:n_tokens], by_embedded_LD
    step_LD = position_LD.diff(dim=0)
    up_L = torch.zeros(n_tokens + 1, dtype=torch.float64)
    down_L = torch.zeros(n_tokens + 1, dtype=torch.float64)
    up_L[2:] = -torch.linalg.vecdot(slope_LD[1:], step_LD).cpu().double().cumsum(0)
    down_L[1:-1] = torch.linalg.vecdot(slope_LD[:-1], step_LD).cpu().double().cumsum(0)
    up, down = up_L.numpy(), down_L.numpy()  # sums over the tokens before each
    gone = goes == GONE
    goes = np.where(gone, n_tokens - 1, goes)
    between_up = up[goes + 1] - up[np.minimum(places, goes) + 1]
    between_down = down[places] - down[np.minimum(places, goes)]
    at, to = (torch.from_numpy(chosen).to(slope_LD.device) for chosen in (places, goes))
    own = torch.linalg.vecdot(slope_LD[at], position_LD[to] - position_LD[at]).cpu().double().numpy()
    own = np.where(gone, -by_presence_L.cpu().double().numpy()[places], own)
    return np.asarray(own + np.where(goes >= places, between_up, 0) + np.where(goes < places, between_down, 0))
