"""A perturbation screen: change a cell's genes, run the model on both versions, measure how far the cell moved.

Every variant is a real forward pass, cut at the layer that is read. The variants of a cell all have the same
length, so they are batched without padding. The result is written part by part; a screen that was cut off
goes on where it stopped and ends with the same table.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.nn import functional as F

from geneformer_repro.checkpoint import Checkpoint
from geneformer_repro.embedding import MAX_TOKENS, blocks_to_run, default_device, embed_states, encoder_on
from geneformer_repro.errors import DataFormatError, InputError, did_you_mean
from geneformer_repro.files import begin_work, new_file, refuse_existing, refuse_other_work, work_folder
from geneformer_repro.in_silico.perturbation import Deletion, Variant
from geneformer_repro.model import Pooling, pool, require_poolable, run_encoder
from geneformer_repro.progress import progress
from geneformer_repro.tokenizer.dataset import TokenizedDataset
from geneformer_repro.tokenizer.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

FORMAT = "geneformer_repro/shifts/1"
SIMILARITY, SHIFT = "cosine similarity", "cosine shift"
CELLS_A_PART = 16
"""Cells between two points from which a screen can go on."""
_SCHEMA = pa.schema(
    [
        ("cell", pa.string()),
        ("perturbed", pa.string()),
        ("affected", pa.string()),
        ("state", pa.string()),
        ("rank", pa.int32()),
        ("value", pa.float64()),
    ]
)


@dataclass(frozen=True)
class GoalState:
    """Where cells come from and where they might go.

    Parameters
    ----------
    obs
        Column of the cells that names their state.
    start
        State of the cells that are perturbed.
    goal
        State towards which a movement counts.
    alternatives
        States towards which it is measured as well.
    embeddings
        Vector of each state, (D,); default the mean over the cells in that state.
    """

    obs: str
    start: str
    goal: str
    alternatives: Sequence[str] = ()
    embeddings: Mapping[str, np.ndarray] | None = None

    @property
    def states(self) -> tuple[str, ...]:
        """Start, goal and alternatives, in this order."""
        return (self.start, self.goal, *self.alternatives)

    def __post_init__(self) -> None:
        if isinstance(self.alternatives, str):
            raise InputError(f"alternatives must be a sequence of states; for one give [{self.alternatives!r}].")
        object.__setattr__(self, "alternatives", tuple(self.alternatives))
        if len(set(self.states)) < len(self.states):
            raise InputError(
                f"Start, goal and alternatives must be different states, found {', '.join(map(repr, self.states))}."
            )


@dataclass(frozen=True, eq=False)
class ShiftTable:
    """Result of a screen: how far each perturbation moved each cell.

    Parameters
    ----------
    table
        ``cell`` (its name), ``perturbed`` (gene ids joined by "+"), ``affected`` (gene id; null for the cell itself),
        ``state`` (null without a goal), ``rank`` (place of the perturbed gene in the cell, 0 for the first; null for a
        set), ``value``.
    metadata
        ``measure`` says what a value is: "cosine similarity" of the cell before and after (1: did not move), or
        "cosine shift", its change in similarity to a state (above 0: moved towards it). Also ``goal``, ``gene_names``,
        and what made the table.
    """

    table: pd.DataFrame
    metadata: Mapping[str, Any]

    @property
    def measure(self) -> str:
        """What a value is."""
        return str(self.metadata["measure"])

    def __len__(self) -> int:
        return len(self.table)

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write one Parquet file; `metadata` goes into its header."""
        with new_file(path, overwrite=overwrite) as aside:
            table = pa.Table.from_pandas(self.table, schema=_SCHEMA, preserve_index=False)
            pq.write_table(
                table.replace_schema_metadata({"geneformer_repro": json.dumps({"format": FORMAT, **self.metadata})}),
                aside,
            )

    @classmethod
    def open(cls, path: str | Path) -> "ShiftTable":
        """Open a file written by `save` or `perturb`.

        Raises
        ------
        DataFormatError
            The file is missing or not such a table.
        """
        try:
            table = pq.read_table(path)
        except (OSError, pa.ArrowInvalid) as error:
            raise DataFormatError(
                f"{path}: not a readable Parquet file ({error}). Expected the output of perturb."
            ) from error
        metadata = json.loads((table.schema.metadata or {}).get(b"geneformer_repro", b"{}"))
        if metadata.get("format") != FORMAT:
            raise DataFormatError(
                f"{path}: expected format {FORMAT!r}, found {metadata.get('format')!r}. Expected the output of perturb."
            )
        return cls(
            _frame(table.replace_schema_metadata(None).to_pandas()),
            {key: value for key, value in metadata.items() if key != "format"},
        )


def _frame(table: pd.DataFrame) -> pd.DataFrame:
    """Give the columns the same types however the table was made."""
    return table.astype({"rank": "Int32", "value": "float64", "state": object, "affected": object})


def perturb(
    checkpoint: Checkpoint,
    cells: TokenizedDataset,
    perturbation: Deletion,
    *,
    goal: GoalState | None = None,
    layer: int = -1,
    pooling: Pooling | None = None,
    max_cells: int | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    max_tokens: int = MAX_TOKENS,
    device: str | torch.device | None = None,
    overwrite: bool = False,
) -> ShiftTable:
    """Perturb genes of cells and measure how far the cells move in the model.

    Parameters
    ----------
    checkpoint
        The model.
    cells
        Cells of the same vocabulary.
    perturbation
        What is done to a cell.
    goal
        Perturb the cells of the start state and measure movement towards states; None perturbs all cells and
        measures how similar they stay to themselves.
    layer
        0 is the last block, -1 the one before.
    pooling
        How a cell is represented: "cls" or "mean" over genes; default "cls" where cells have one, as published.
    max_cells
        Perturb a random choice of so many cells; None all.
    seed
        Decides which cells `max_cells` takes.
    out
        Parquet file; a screen that was cut off goes on from ``OUT.partial`` with the same call. None: in memory.
    max_tokens
        Tokens of a batch.
    device
        Default: an accelerator where there is one.
    overwrite
        Replace the file that `out` names, or the remains of another screen.

    Returns
    -------
    A value for each cell and perturbation. Without a goal: cosine similarity of the cell before and after; with
    pooling "mean" that is the mean over the unperturbed genes of the similarity of each gene's vector. With a goal:
    a value for each state s, cos(e′, E_s) − cos(e, E_s), where e is the cell's pooled vector (perturbed gene
    included), e′ that of the changed cell, and E_s the state's mean.

    Raises
    ------
    InputError
        A gene, state or column does not exist, a state has no cells, or no cell expresses the genes.
    VocabularyMismatchError
        The cells were tokenised with another vocabulary than the model's.
    FileExistsError
        `out` exists, or an unfinished screen with other settings.

    References
    ----------
    Theodoris et al., Nature 618, 616 (2023), Methods, "In silico perturbation".
    """
    checkpoint.require_matching(cells)
    pooling = pooling or ("cls" if cells.vocabulary.has_cls else "mean")
    require_poolable(cells.vocabulary, pooling)
    if out is not None:
        refuse_existing(Path(out), overwrite=overwrite)
    rows = _cells_to_perturb(cells, perturbation, goal, max_cells, np.random.default_rng(seed))
    blocks_to_run(checkpoint, layer)
    device = torch.device(device) if device else default_device()
    screen = _Screen(checkpoint, cells, perturbation, goal, layer, pooling, max_tokens, device)
    metadata = {
        "measure": SHIFT if goal else SIMILARITY,
        "goal": goal and _described(goal, checkpoint.model.config.hidden_size),
        "perturbation": type(perturbation).__name__,
        "genes": perturbation.genes if perturbation.genes == "each" else list(perturbation.genes),
        "layer": layer,
        "pooling": pooling,
        "checkpoint": checkpoint.fingerprint,
        "cells": cells.fingerprint,
        "n_cells": len(rows),
        "seed": seed,
    }
    parts = [rows[start : start + CELLS_A_PART] for start in range(0, len(rows), CELLS_A_PART)]
    table = screen.run(parts, _PartFolder(Path(out), metadata, overwrite=overwrite) if out else None)
    perturbed = {gene for genes in table["perturbed"].unique() for gene in genes.split("+")}
    shifts = ShiftTable(table, metadata | {"gene_names": _names(cells.vocabulary, perturbed)})
    if out is not None:
        shifts.save(out, overwrite=overwrite)
        shutil.rmtree(work_folder(Path(out)))
    return shifts


class _PartFolder:
    """Finished parts of a screen, ``OUT.partial``; a part is there whole or not at all."""

    def __init__(self, out: Path, plan: Mapping[str, Any], *, overwrite: bool) -> None:
        refuse_other_work(out, plan, what="screen", overwrite=overwrite)
        self._folder = begin_work(out, plan, overwrite=overwrite)

    def path(self, part: int) -> Path:
        return self._folder / f"part-{part:06d}.parquet"

    def read(self, part: int) -> pd.DataFrame | None:
        return pq.read_table(self.path(part)).to_pandas() if self.path(part).exists() else None

    def write(self, part: int, table: pd.DataFrame) -> None:
        with new_file(self.path(part)) as aside:
            pq.write_table(pa.Table.from_pandas(table, schema=_SCHEMA, preserve_index=False), aside)


@dataclass(frozen=True)
class _Screen:
    """What does not change from cell to cell."""

    checkpoint: Checkpoint
    cells: TokenizedDataset
    perturbation: Deletion
    goal: GoalState | None
    layer: int
    pooling: Pooling
    max_tokens: int
    device: torch.device

    def run(self, parts: Sequence[np.ndarray], folder: _PartFolder | None) -> pd.DataFrame:
        bert = encoder_on(self.checkpoint, self.device)
        n_blocks = blocks_to_run(self.checkpoint, self.layer)
        states_SD = self._state_vectors()
        total = sum(_n_variants(self.cells, self.perturbation, part) for part in parts)
        tables = []
        with progress("perturb", total=total, unit="variants") as bar:
            for i, part in enumerate(parts):
                table = folder.read(i) if folder else None
                if table is None:
                    with torch.inference_mode():
                        rows = [row for cell in part for row in self._rows_of_cell(bert, n_blocks, states_SD, cell)]
                    table = pd.DataFrame(rows, columns=_SCHEMA.names)
                    if folder:
                        folder.write(i, table)
                bar.update(_n_variants(self.cells, self.perturbation, part))
                tables.append(table)
        if not any(map(len, tables)):
            raise InputError("No cell has a gene to delete and another one to keep.")
        return _frame(pd.concat([table for table in tables if len(table)], ignore_index=True))

    def _state_vectors(self) -> Tensor | None:
        if self.goal is None:
            return None
        if self.goal.embeddings is not None:
            vectors = [np.asarray(self.goal.embeddings[state], dtype=np.float32) for state in self.goal.states]
            return torch.as_tensor(np.stack(vectors), device=self.device)
        vectors_SD = embed_states(
            self.checkpoint,
            self.cells,
            self.goal.obs,
            layer=self.layer,
            pooling=self.pooling,
            states=self.goal.states,
            device=self.device,
        )
        return torch.as_tensor(vectors_SD.to_numpy(), device=self.device)

    def _rows_of_cell(self, bert: Any, n_blocks: int, states_SD: Tensor | None, row: int) -> Iterator[tuple[Any, ...]]:
        cell = self.cells[row]
        n_special = 2 * self.cells.vocabulary.has_cls
        variants = [
            variant
            for variant in self.perturbation.variants(cell, self.cells.vocabulary)
            if len(variant.kept) > n_special  # a cell without a gene has no place to move to
        ]
        if not variants:
            return
        original = _Original.of(
            run_encoder(bert, torch.as_tensor(cell, device=self.device)[None], n_blocks=n_blocks).padded()[0],
            cell,
            self.cells.vocabulary,
        )
        a_batch = max(1, self.max_tokens // max(1, len(variants[0].kept)))
        for start in range(0, len(variants), a_batch):
            chunk = variants[start : start + a_batch]
            kept_BL = torch.as_tensor(np.stack([variant.kept for variant in chunk]), device=self.device)
            hidden_BLD = run_encoder(bert, original.ids_L[kept_BL], n_blocks=n_blocks).padded()
            values_BS = self._values(original, kept_BL, hidden_BLD, states_SD).cpu().numpy().astype(np.float64)
            yield from self._records(self.cells.cell_names[row], chunk, values_BS)

    def _values(self, original: "_Original", kept_BL: Tensor, hidden_BLD: Tensor, states_SD: Tensor | None) -> Tensor:
        """Value of each variant, towards each state if there are any."""
        genes_BL = original.genes_L[kept_BL]
        if states_SD is None and self.pooling == "mean":
            similarity_BL = F.cosine_similarity(hidden_BLD, original.hidden_LD[kept_BL], dim=-1)
            return (similarity_BL * genes_BL).sum(1, keepdim=True) / genes_BL.sum(1, keepdim=True)
        changed_BD = pool(hidden_BLD, genes_BL, self.pooling)
        original_1D = pool(original.hidden_LD[None], original.genes_L[None], self.pooling)
        if states_SD is None:
            return F.cosine_similarity(changed_BD, original_1D, dim=-1)[:, None]
        return F.cosine_similarity(changed_BD[:, None], states_SD, dim=-1) - F.cosine_similarity(
            original_1D[:, None], states_SD, dim=-1
        )

    def _records(self, cell_name: str, variants: Sequence[Variant], values_BS: np.ndarray) -> Iterator[tuple[Any, ...]]:
        vocabulary = self.cells.vocabulary
        states = self.goal.states if self.goal else (None,)
        for variant, values_S in zip(variants, values_BS, strict=True):
            perturbed = "+".join(
                vocabulary.gene_ids[gene] for gene in vocabulary.genes_of(np.asarray(variant.perturbed))
            )
            for state, value in zip(states, values_S, strict=True):
                yield cell_name, perturbed, None, state, variant.rank, value


class _Original(NamedTuple):
    """The unchanged cell."""

    ids_L: Tensor
    genes_L: Tensor
    hidden_LD: Tensor

    @classmethod
    def of(cls, hidden_LD: Tensor, cell: np.ndarray, vocabulary: Vocabulary) -> "_Original":
        device = hidden_LD.device
        return cls(
            torch.as_tensor(cell, device=device),
            torch.as_tensor(vocabulary.genes_of(cell) >= 0, device=device),
            hidden_LD,
        )


def _states(cells: TokenizedDataset, goal: GoalState) -> np.ndarray:
    states = cells.require_obs(goal.obs).astype(str).to_numpy()
    there = sorted(set(states))
    for state in goal.states:
        if state not in there:
            raise InputError(f"No cell has {goal.obs} = {state!r}. {did_you_mean(state, there)}")
    return states


def _cells_to_perturb(
    cells: TokenizedDataset,
    perturbation: Deletion,
    goal: GoalState | None,
    max_cells: int | None,
    rng: np.random.Generator,
) -> np.ndarray:
    rows = np.arange(len(cells)) if goal is None else np.flatnonzero(_states(cells, goal) == goal.start)
    if perturbation.genes != "each":
        tokens = cells.vocabulary.tokens_of(perturbation.genes)
        rows = np.array([row for row in rows if np.isin(tokens, cells[int(row)]).all()], dtype=np.int64)
        if not len(rows):
            raise InputError(
                f"No cell{f' in state {goal.start!r}' if goal else ''} expresses all of "
                f"{', '.join(map(repr, perturbation.genes))}."
            )
    if max_cells is not None and max_cells < 1:
        raise InputError(f"max_cells must be at least 1, found {max_cells}.")
    return rows if max_cells is None or len(rows) <= max_cells else np.sort(rng.choice(rows, max_cells, replace=False))


def _n_variants(cells: TokenizedDataset, perturbation: Deletion, rows: np.ndarray) -> int:
    return (
        int(cells.lengths[rows].sum() - 2 * cells.vocabulary.has_cls * len(rows))
        if perturbation.genes == "each"
        else len(rows)
    )


def _described(goal: GoalState, hidden_size: int) -> dict[str, Any]:
    """What JSON can hold of a goal; state vectors that were given as their digest."""
    digest = None
    if goal.embeddings is not None:
        if missing := set(goal.states) - set(goal.embeddings):
            raise InputError(f"embeddings lack the states {sorted(missing)}.")
        vectors = [np.asarray(goal.embeddings[state], dtype=np.float32) for state in goal.states]
        for state, vector in zip(goal.states, vectors, strict=True):
            if vector.shape != (hidden_size,):
                raise InputError(
                    f"The vector of state {state!r} has shape {vector.shape}, the model's have ({hidden_size},)."
                )
        digest = hashlib.sha256(np.stack(vectors).tobytes()).hexdigest()
    described = {"obs": goal.obs, "start": goal.start, "goal": goal.goal, "alternatives": list(goal.alternatives)}
    return described | ({"embeddings": digest} if digest else {})


def _names(vocabulary: Vocabulary, genes: set[str]) -> dict[str, str]:
    return {gene: vocabulary.gene_names[vocabulary.position[gene]] for gene in sorted(genes)}
