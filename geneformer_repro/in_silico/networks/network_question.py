"""What is asked of a gene network: which genes, which groups of cells, which heads, and what memory that takes."""

import hashlib
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

import geneformer_repro.processes as processes
from geneformer_repro.arguments import require_at_least
from geneformer_repro.checkpoint import Checkpoint
from geneformer_repro.errors import InputError, listed
from geneformer_repro.in_silico.networks.attention_sums import Roles, Scale, Weight
from geneformer_repro.in_silico.networks.head_selection import (
    BYTES_OF_HEAD,
    SELECTION_CELLS,
    Half,
    KnownHalves,
    StateGenes,
)
from geneformer_repro.in_silico.networks.network_folder import Group
from geneformer_repro.in_silico.networks.places import place_bins
from geneformer_repro.model import MaskedGeneModel
from geneformer_repro.outline import require_attention_head
from geneformer_repro.reading import require_one_of
from geneformer_repro.tokenizer.dataset import TokenizedDataset
from geneformer_repro.tokenizer.gene_lists import known_genes
from geneformer_repro.tokenizer.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

NetworkMethod = Literal["attention", "deletion", "masked_logit", "mean_qk"]
MEASURES = {
    ("attention", "log"): "mean log2 lift of attention beyond place, in standard deviations of each head",
    ("attention", "lift"): "mean lift of attention relative to its places, log2",
    ("deletion", "log"): "1 - cosine similarity of the target's vector when the source is deleted, less that of others",
    ("masked_logit", "log"): "fall of the hidden target's log probability when the source is hidden too, in nats",
    ("mean_qk", "log"): "log2 lift of the attention of mean queries and keys, in standard deviations of each head",
}  # fmt: skip
OF_VARIANTS = ("deletion", "masked_logit")
"""Methods that read changed cells, and no attention."""
ALL = "all"
"""The state of cells that are not told apart."""
BYTES_A_PAIR = 24
"""Memory for a pair while effects of genes are fitted, the most of all stages; 12 while sums are made."""
_SHOWN = 10
_LOOKS_LIKE_A_TYPE = re.compile(r"cell.?type|cluster|louvain|leiden|annotation|label|population|condition|state", re.I)
_MOST_TYPES = 200
_UNITS = {"": 1, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}


class CellGroup(NamedTuple):
    """A group and its cells."""

    group: Group
    rows: np.ndarray
    """Row numbers, ascending."""


@dataclass(frozen=True)
class NetworkQuestion:
    """Arguments of `gene_network` that decide what is measured, and what follows of them."""

    checkpoint: Checkpoint
    cells: TokenizedDataset
    sources: str | Path | Sequence[str] | None
    targets: str | Path | Sequence[str] | None
    by: str | None
    donor: str | None
    method: NetworkMethod
    weight: Weight
    scale: Scale
    layers: Literal["all"] | Sequence[int]
    heads: Literal["all"] | Sequence[tuple[int, int]]
    min_cells: int
    calibration_cells: int
    max_cells: int | None
    seed: int
    select: pd.DataFrame | str | Path | None = None
    select_on: Half = "first"

    def __post_init__(self) -> None:
        require_one_of(NetworkMethod, "method", self.method)
        require_one_of(Weight, "weight", self.weight)
        require_one_of(Scale, "scale", self.scale)
        if self.method != "attention" and (self.weight, self.scale) != ("attention", "log"):
            raise InputError(f"weight= and scale= are for method='attention', found method={self.method!r}.")
        if self.select is not None and self.method != "attention":
            raise InputError(f"select= chooses heads for method='attention', found method={self.method!r}.")
        require_one_of(Half, "select_on", self.select_on)
        if self.method in OF_VARIANTS and not (self._is_all(self.layers) and self._is_all(self.heads)):
            raise InputError(f"layers= and heads= choose attention; with method={self.method!r} leave them out.")
        if self.method == "masked_logit" and not isinstance(self.checkpoint.token_model, MaskedGeneModel):
            raise InputError(
                f"method='masked_logit' asks what a model says of hidden genes, and {self.checkpoint.name} is a "
                "classifier, which has lost that. Give the pretrained model, or take method='deletion'."
            )
        least = {"min_cells": 1, "calibration_cells": 1, "max_cells": 1, "seed": 0}
        require_at_least(**{name: (getattr(self, name), lowest) for name, lowest in least.items()})
        self.chosen  # noqa: B018  # refuses heads that are not there

    @staticmethod
    def _is_all(chosen: Any) -> bool:
        if isinstance(chosen, str) and chosen != ALL:
            raise InputError(f"layers and heads are 'all' or a list of numbers, found {chosen!r}.")
        return isinstance(chosen, str)

    # Heads

    @cached_property
    def chosen(self) -> np.ndarray:
        """Which heads are averaged, blocks × heads, up to the last block that has one."""
        config = self.checkpoint.token_model.config
        n_layers, n_heads = int(config.num_hidden_layers), int(config.num_attention_heads)
        chosen = np.zeros((n_layers, n_heads), dtype=bool)
        if not self._is_all(self.heads):
            if not self._is_all(self.layers):
                raise InputError("Give layers= or heads=, not both: heads are pairs (layer, head).")
            for pair in self.heads:
                if not isinstance(pair, tuple | list) or len(pair) != 2:
                    raise InputError(f"heads must be pairs (layer, head), found {pair!r}.")
                require_attention_head(pair, n_layers, n_heads, self.checkpoint.name)
                chosen[tuple(pair)] = True
        layers = range(n_layers) if self._is_all(self.layers) else self.layers
        for layer in map(int, layers):
            require_attention_head((layer, 0), n_layers, n_heads, self.checkpoint.name)
            chosen[layer] |= self._is_all(self.heads)
        if not chosen.any():
            raise InputError("layers= or heads= names none. Leave it out for all.")
        return chosen[: np.flatnonzero(chosen.any(1))[-1] + 1]

    @cached_property
    def known(self) -> KnownHalves | None:
        """Known edges that choose among these heads."""
        return None if self.select is None else KnownHalves.read(self.select, self.genes, self.select_on)

    def state_genes(self) -> list[StateGenes]:
        """What the cells of each state say of the targets."""
        groups, is_target = self.folder_groups(), self.genes["is_target"].to_numpy()
        found = []
        for state in self.states:
            n_with_gene, place = (
                np.sum([getattr(group, name)[is_target] for group in groups if group.state == state], axis=0)
                for name in ("n_with_gene", "place")
            )
            found.append(StateGenes(n_with_gene, place / np.maximum(n_with_gene, 1)))
        return found

    @property
    def layer_read(self) -> int:
        """The last layer that runs, as `Reader.of` counts: 0 is the last block."""
        n_layers = int(self.checkpoint.token_model.config.num_hidden_layers)
        if self.method in OF_VARIANTS:
            return -1 if self.method == "deletion" else 0
        return len(self.chosen) - n_layers

    # Genes

    @cached_property
    def asked(self) -> tuple[np.ndarray, np.ndarray]:
        """Whether each gene of the vocabulary is asked for as a source, and as a target."""
        return self._asked(self.sources, "sources"), self._asked(self.targets, "targets")

    def _asked(self, genes: str | Path | Sequence[str] | None, what: str) -> np.ndarray:
        vocabulary = self.cells.vocabulary
        return np.ones(len(vocabulary), dtype=bool) if genes is None else asked_genes(genes, vocabulary, what)

    @cached_property
    def genes(self) -> pd.DataFrame:
        """Genes that can have an edge, by id: ``gene_name``, ``is_source``, ``is_target``.

        Those that are asked for and that `min_cells` cells of some state express.
        """
        vocabulary, (is_source, is_target) = self.cells.vocabulary, self.asked
        of_states: dict[str, np.ndarray] = {}
        for group, _ in self.cell_groups:
            of_states[group.state] = of_states.get(group.state, 0) + group.n_with_gene
        is_often = np.max(list(of_states.values()), axis=0) >= self.min_cells
        for what, asked in (("sources", is_source), ("targets", is_target)):
            if not (asked & is_often).any():
                raise InputError(
                    f"None of the {int(asked.sum())} {what} is expressed by {self.min_cells} cells of a state. Take "
                    "more cells, other genes, or a lower min_cells."
                )
        kept = is_often & (is_source | is_target)
        frame = {"gene_name": vocabulary.gene_names, "is_source": is_source, "is_target": is_target}
        return pd.DataFrame(frame, index=pd.Index(vocabulary.gene_ids, name="gene_id"))[kept]

    @cached_property
    def roles(self) -> Roles:
        """Row and column of each token."""
        return Roles(*(self._numbered(self.genes[name].to_numpy()) for name in ("is_source", "is_target")))

    @cached_property
    def gene_of_token(self) -> np.ndarray:
        """Number of each token's gene in `genes`, -1 for none."""
        return self._numbered(np.ones(len(self.genes), dtype=bool))

    def _numbered(self, chosen: np.ndarray) -> np.ndarray:
        vocabulary = self.cells.vocabulary
        numbers = np.full(vocabulary.size, -1, dtype=np.int64)
        ids = self.genes.index[chosen]
        numbers[vocabulary.tokens[[vocabulary.position[gene] for gene in ids]]] = np.arange(len(ids))
        return numbers

    # Cells

    @cached_property
    def _labels(self) -> pd.DataFrame:
        """State and donor of each cell; None where it is missing."""
        cells, n = self.cells, len(self.cells)
        state = pd.Series([ALL] * n) if self.by is None else cells.labels(self.by).reset_index(drop=True)
        donor = pd.Series([None] * n) if self.donor is None else cells.labels(self.donor).reset_index(drop=True)
        return pd.DataFrame({"state": state, "donor": donor}, dtype=object)

    @cached_property
    def _chosen_rows(self) -> np.ndarray:
        """Cells with a gene, a state, and a donor where donors are asked for; of too many a random choice."""
        columns = [column for column in (self.by, self.donor) if column is not None]
        return drawn_cells(self.cells, columns, self.max_cells, np.random.default_rng(self.seed))

    @cached_property
    def _sized(self) -> tuple[list[tuple[str, str | None, np.ndarray]], list[dict[str, Any]]]:
        """Groups of cells by state and donor, in the order of their names; and what is left out, and why."""
        rows = self._chosen_rows
        labels = self._labels.iloc[rows].assign(row=rows)
        named = labels.fillna({"donor": ""}).groupby(["state", "donor"], sort=True)["row"]
        kept, left_out = [], []
        for (state, donor), of_group in named:
            donor_or_none = None if self.donor is None else str(donor)
            if len(of_group) >= self.min_cells:
                kept.append((str(state), donor_or_none, np.sort(of_group.to_numpy())))
            else:
                why = f"fewer than {self.min_cells} cells"
                left_out.append({"state": state, "donor": donor_or_none, "n_cells": len(of_group), "why": why})
        if n_without := self._n_without_label():
            left_out.append({"state": None, "donor": None, "n_cells": n_without, "why": "no gene, state or donor"})
        return kept, left_out

    def _n_without_label(self) -> int:
        labels = self._labels
        lacking = labels["state"].isna() | (labels["donor"].isna() if self.donor is not None else False)
        return int((lacking.to_numpy() | ~self.cells.has_gene).sum())

    @property
    def left_out(self) -> list[dict[str, Any]]:
        """Groups of too few cells, and cells without a label."""
        return self._sized[1]

    @cached_property
    def cell_groups(self) -> list[CellGroup]:
        """The groups, with what their cells say of genes; refuses where all are too small."""
        kept, left_out = self._sized
        if not kept:
            groups = listed((f"{one['state']} {one['donor'] or ''}".strip() for one in left_out), most=_SHOWN)
            raise InputError(
                f"Every group has fewer than {self.min_cells} cells ({groups}). Group by another column, leave donor= "
                "out, or lower min_cells."
            )
        return [CellGroup(self._group(state, donor, rows), rows) for state, donor, rows in kept]

    def _group(self, state: str, donor: str | None, rows: np.ndarray) -> Group:
        vocabulary = self.cells.vocabulary
        n, place = np.zeros(len(vocabulary), dtype=np.int64), np.zeros(len(vocabulary))
        for row in rows:
            genes = vocabulary.genes_of(self.cells[int(row)])
            genes = genes[genes >= 0]
            n[genes] += 1
            place[genes] += np.arange(len(genes))
        return Group(state, donor, len(rows), n, place)

    def folder_groups(self) -> list[Group]:
        """The groups, with numbers of the network's genes alone."""
        kept = [self.cells.vocabulary.position[gene] for gene in self.genes.index]
        return [
            group._replace(n_with_gene=group.n_with_gene[kept], place=group.place[kept])
            for group, _ in self.cell_groups
        ]

    @cached_property
    def states(self) -> list[str]:
        """States that have a network."""
        return list(dict.fromkeys(group.state for group, _ in self.cell_groups))

    @cached_property
    def rows(self) -> np.ndarray:
        """All cells that are read, group by group."""
        return np.concatenate([rows for _, rows in self.cell_groups])

    @cached_property
    def n_bins(self) -> int:
        """Bins of place of the longest cell."""
        return int(place_bins(int(self.cells.lengths[self.rows].max()))[-1]) + 1

    def rows_to_calibrate(self) -> tuple[np.ndarray, list[int]]:
        """Return cells drawn evenly from the groups, and the number of the state of each."""
        return self._drawn_evenly(self.calibration_cells)

    def rows_to_select(self) -> tuple[np.ndarray, list[int]]:
        """Return the cells that heads are scored on, likewise."""
        return self._drawn_evenly(SELECTION_CELLS)

    def _drawn_evenly(self, most: int) -> tuple[np.ndarray, list[int]]:
        rng, room = np.random.default_rng(self.seed), min(most, len(self.rows))
        shares = [rng.permutation(rows) for _, rows in self.cell_groups]
        drawn: list[tuple[int, int]] = []
        for turn in range(max(map(len, shares))):
            for (group, _), share in zip(self.cell_groups, shares, strict=True):
                if turn < len(share) and len(drawn) < room:
                    drawn.append((int(share[turn]), self.states.index(group.state)))
        drawn.sort()
        return np.array([row for row, _ in drawn]), [state for _, state in drawn]

    def warn(self) -> None:
        """Say what a user should know before the work."""
        if self.left_out:
            listed = "; ".join(
                f"{one['state'] or '(none)'}{', ' + one['donor'] if one['donor'] else ''}: {one['n_cells']} cells ("
                f"{one['why']})"
                for one in self.left_out[:_SHOWN]
            )
            n_more = len(self.left_out) - _SHOWN
            logger.warning("Left out: %s%s.", listed, f"; and {n_more} more" if n_more > 0 else "")
        if self.by is None and (columns := self._like_types()):
            logger.warning(
                "by=None pools all cells, and edges of pooled types are genes that mark a type together. %s may name "
                "them: by=%r (--by) makes a network of each.",
                " or ".join(map(repr, columns)),
                columns[0],
            )

    def _like_types(self) -> list[str]:
        cells = self.cells
        named = [name for name in cells.obs_columns if _LOOKS_LIKE_A_TYPE.search(name)]
        return [name for name in named if 1 < cells.labels(name).nunique() <= min(_MOST_TYPES, len(cells) // 2)]

    # Memory, and what makes two questions the same

    def bytes_needed(self, max_tokens: int) -> int:
        """Return the memory beside the model: sums and fits of all pairs, and the matrices of a batch."""
        n_sources, n_targets = self.roles.shape
        lengths = self.cells.lengths[self.rows].astype(np.int64)
        a_cell = np.minimum(lengths, n_sources) * np.minimum(lengths, n_targets) * 4
        at_once = int((a_cell * np.maximum(1, max_tokens // lengths)).max())
        return max(n_sources * n_targets * BYTES_A_PAIR + at_once, self._bytes_to_select(max_tokens))

    def _bytes_to_select(self, max_tokens: int) -> int:
        """Return the memory of heads that are scored one by one, before sums are made."""
        if self.known is None:
            return 0
        n_known, n_targets, n_heads = len(self.known.sources), self.roles.shape[1], int(self.chosen.sum())
        longest = int(self.cells.lengths[self.rows].max())
        a_cell = min(longest, n_known) * min(longest, n_targets) * 4
        return n_heads * (n_known * n_targets * BYTES_OF_HEAD + a_cell * max(1, max_tokens // longest))

    def require_memory(self, max_memory: str | float, max_tokens: int) -> int:
        """Return the memory it takes; raise `InputError` with remedies if that is more than allowed."""
        needed, allowed = self.bytes_needed(max_tokens), size_in_bytes(max_memory)
        if needed > allowed:
            n_sources, n_targets = self.roles.shape
            raise InputError(
                f"{n_sources:,} sources × {n_targets:,} targets take about {needed / 1e9:.2g} GB beside the model, "
                f"more than max_memory={max_memory!r}. Name fewer sources (sources= a list, such as transcription "
                "factors: 1,000 of them with all targets take 0.5 GB); or fewer targets (targets=, or a higher "
                f"min_cells); or allow more: max_memory='{np.ceil(needed / 1e8) / 10:g}GB' (--max-memory)."
            )
        return needed

    def describe(self) -> dict[str, Any]:
        """Say what is measured, as JSON can hold it."""
        return {
            "method": self.method,
            "measure": MEASURES[self.method, self.scale],
            "scale": self.scale,
            "weight": self.weight if self.method == "attention" else "none",
            "layers": sorted({int(layer) for layer in np.argwhere(self.chosen)[:, 0]}),
            "heads": [[int(layer), int(head)] for layer, head in np.argwhere(self.chosen)],
            "min_cells": self.min_cells,
            "by": self.by,
            "donor": self.donor,
            "calibration_cells": self.calibration_cells if self.method == "attention" else None,
            "max_cells": self.max_cells,
            "seed": self.seed,
            "n_cells": len(self.rows),
            "left_out": self.left_out,
            "n_sources": self.roles.shape[0],
            "n_targets": self.roles.shape[1],
            "genes": hashlib.sha256(self.genes.to_csv().encode()).hexdigest(),
            "checkpoint": self.checkpoint.fingerprint,
            "random_weights": self.checkpoint.provenance.get("random_weights"),
            **({} if self.known is None else {"selected": self.known.describe()}),
            "cells": self.cells.fingerprint,
            "vocabulary": self.cells.vocabulary.fingerprint,
        }


def drawn_cells(
    cells: TokenizedDataset, columns: Sequence[str], max_cells: int | None, rng: np.random.Generator
) -> np.ndarray:
    """Return the rows of cells with a gene and a label in all of some columns; of too many a random choice.

    Raises
    ------
    InputError
        There is none.
    """
    has_all = cells.has_gene.copy()
    for column in columns:
        has_all &= cells.labels(column).notna().to_numpy()
    rows = np.flatnonzero(has_all)
    if not len(rows):
        raise InputError(" and ".join(["No cell has a gene", *(f"a value of {column!r}" for column in columns)]) + ".")
    if max_cells is None or len(rows) <= max_cells:
        return rows
    return np.sort(rng.choice(rows, max_cells, replace=False))


def asked_genes(genes: str | Path | Sequence[str], vocabulary: Vocabulary, what: str) -> np.ndarray:
    """Return whether each gene of a vocabulary is asked for, as `known_genes`; others are listed in a warning."""
    known, on_others = known_genes(genes, vocabulary, what)
    if on_others and processes.is_first():
        logger.warning("%s They are left out.", on_others)
    wanted = np.zeros(len(vocabulary), dtype=bool)
    wanted[known] = True
    return wanted


def size_in_bytes(size: str | float) -> float:
    """Return a size as a number of bytes: "2GB", "500 MB", or a number."""
    if isinstance(size, str):
        written = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", size)
        if written is None or (unit := written[2].upper()) not in _UNITS:
            raise InputError(f"max_memory is a size such as '2GB' or '500MB', found {size!r}.")
        size = float(written[1]) * _UNITS[unit]
    if size <= 0:
        raise InputError(f"max_memory must be more than 0, found {size}.")
    return float(size)
