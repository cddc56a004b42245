"""The masked-logit network: how much less likely a hidden gene is where a source is hidden, too.

It asks the question that the model was trained on: what stands at this place? The weight of a → b is the log
probability of b at its place with b hidden, less the same with a hidden as well (``<mask>`` in the place of both). Of
planted regulation this finds targets (AUROC 0.8) that attention does not (0.5); see ``benchmarks/RESULTS.md``.

One forward for each pair would be sources × targets forwards a cell. So as many targets are hidden at once as in
training, 15 % of the cell's genes: the targets of a cell are dealt into such groups at random, and each group costs one
forward more than there are sources. Every pair of a cell is asked once, exactly, but of a cell that lacks the others of
the group; what these would have told of b is missing with and without a. Hiding moves no other gene, so nothing is
taken off for places; effects of both genes are, as of every network.

Shapes: K sources and Q targets of a cell, V variants, M hidden targets.
"""

import math
import zlib
from collections.abc import Iterator

import numpy as np
import torch

from geneformer_repro.attention import Cells
from geneformer_repro.encoder import Read
from geneformer_repro.in_silico.networks.attention_sums import PairSums, Roles
from geneformer_repro.model import MaskedGeneModel
from geneformer_repro.reading import Reader
from geneformer_repro.tokenizer.dataset import TokenizedDataset

HIDDEN_SHARE = 0.15
"""Of a cell's genes at once, as in training."""
_LOGITS_AT_ONCE = 512
"""Places whose logits are in memory together: 50 MB for the published vocabularies."""


class MaskedLogitSums:
    """Cells whose targets are hidden group by group, and their sources one at a time.

    Parameters
    ----------
    reader
        The network, up to its last block.
    network
        The same, with what it says of hidden genes.
    cells
        The cells.
    roles
        Which genes are hidden in turn, and of which the probability is looked at.
    seed
        Of the groups; with the name of the cell, so that they do not depend on other cells.
    """

    def __init__(
        self, reader: Reader, network: MaskedGeneModel, cells: TokenizedDataset, roles: Roles, seed: int
    ) -> None:
        self._reader, self._network, self._cells, self._roles, self._seed = reader, network, cells, roles, seed
        self._mask = cells.vocabulary.mask_token

    @property
    def hidden_at_once(self) -> float:
        """Share of a cell's genes that are hidden together."""
        return HIDDEN_SHARE

    def n_forwards(self, row: int) -> int:
        """Return how many variants of a cell are read."""
        tokens = self._cells[row]
        n_sources = int((self._roles.row[tokens] >= 0).sum())
        return self._n_groups(tokens) * (1 + n_sources) if n_sources else 0

    def _n_groups(self, tokens: np.ndarray) -> int:
        n_genes = int((self._cells.vocabulary.genes_of(tokens) >= 0).sum())
        n_targets = int((self._roles.column[tokens] >= 0).sum())
        return math.ceil(n_targets / max(1, int(HIDDEN_SHARE * n_genes)))

    def add(self, row: int, sums: PairSums) -> None:
        """Add the weights of a cell's pairs; a cell without a source or a target has none."""
        tokens, sources, targets = self._of_cell(row)
        if not (len(sources) and len(targets)):
            return
        for group in self._groups(row, tokens, targets):
            rows, columns = self._roles.row[tokens[sources]], self._roles.column[tokens[group]]
            sums.add(*(torch.from_numpy(each) for each in (rows, columns, self._falls(tokens, sources, group))))

    def read(self, row: int, most: int) -> int:
        """Read so many variants of a cell, to see how long it takes; return how many there were."""
        tokens, sources, targets = self._of_cell(row)
        if not (len(sources) and len(targets)):
            return 0
        self._falls(tokens, sources[:most], self._groups(row, tokens, targets)[0])
        return 1 + len(sources[:most])

    def _of_cell(self, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the tokens of a cell, and where its sources and targets stand."""
        tokens = self._cells[row].astype(np.int64)
        sources, targets = (np.flatnonzero(numbers[tokens] >= 0) for numbers in (self._roles.row, self._roles.column))
        return tokens, sources, targets

    def _groups(self, row: int, tokens: np.ndarray, targets: np.ndarray) -> list[np.ndarray]:
        """Deal the places of a cell's targets into groups of nearly one size."""
        name = zlib.crc32(str(self._cells.cell_names[row]).encode())
        dealt = np.random.default_rng([self._seed, name]).permutation(targets)
        return [np.sort(group) for group in np.array_split(dealt, self._n_groups(tokens))]

    def _falls(self, tokens: np.ndarray, sources: np.ndarray, group: np.ndarray) -> np.ndarray:
        """Return the fall of each target's log probability by source, in nats; of a gene with itself no fall.

        A source of the group is hidden already: it is shown instead, and the probability rises by what hiding takes.
        """
        hidden = tokens.copy()
        hidden[group] = self._mask
        shown_VL = np.tile(hidden, (1 + len(sources), 1))
        is_hidden = np.isin(sources, group)
        which = np.arange(1, 1 + len(sources))
        shown_VL[which, sources] = np.where(is_hidden, tokens[sources], self._mask)
        log_VM = np.concatenate([*self._log_probabilities(shown_VL, tokens[group], group)])
        fall_KM = np.where(is_hidden[:, None], log_VM[1:] - log_VM[0], log_VM[0] - log_VM[1:])
        fall_KM[sources[:, None] == group] = 0
        return fall_KM

    def _log_probabilities(
        self, shown_VL: np.ndarray, tokens_M: np.ndarray, places_M: np.ndarray
    ) -> Iterator[np.ndarray]:
        """Yield log probabilities of the hidden tokens in some variants at a time, float64."""
        device, length = self._reader.device, shown_VL.shape[1]
        at_once = max(1, self._reader.max_tokens // length)
        for first in range(0, len(shown_VL), at_once):
            some = torch.from_numpy(shown_VL[first : first + at_once]).to(device)
            starts_V1 = torch.arange(len(some), device=device)[:, None] * length
            read = Read(
                (starts_V1 + torch.from_numpy(places_M).to(device)).flatten(), Cells([len(places_M)] * len(some))
            )
            hidden_TD = self._reader.hidden(some.flatten(), [length] * len(some), read=read, alike=True)
            wanted_T = torch.from_numpy(tokens_M).to(device).repeat(len(some))
            yield self._of_tokens(hidden_TD, wanted_T).view(len(some), -1).double().cpu().numpy()

    def _of_tokens(self, hidden_TD: torch.Tensor, wanted_T: torch.Tensor) -> torch.Tensor:
        """Return the log probability of a token at each place."""
        found = []
        with self._reader.reading():
            for hidden, wanted in zip(hidden_TD.split(_LOGITS_AT_ONCE), wanted_T.split(_LOGITS_AT_ONCE), strict=True):
                logits = self._network.cls(hidden).float()
                found.append(logits.gather(1, wanted[:, None])[:, 0] - logits.logsumexp(-1))
        return torch.cat(found)
