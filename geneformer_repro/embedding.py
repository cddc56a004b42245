"""Vectors of cells, genes and states: hidden states of a layer, pooled.

Cells are taken in consecutive parts, sorted by length within each, so that where a part is computed (by which process,
in this call or one that was cut off) changes no bit.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import anndata as ad
import numpy as np
import pandas as pd
import torch
from torch import Tensor

import geneformer_repro.processes as processes
from geneformer_repro.arguments import typed
from geneformer_repro.batching import Batch
from geneformer_repro.checkpoint import Checkpoint, warn_if_guessing
from geneformer_repro.embedding_store import VectorParts, marker_of, open_vectors, refuse_unwritable, write_vectors
from geneformer_repro.errors import InputError, did_you_mean
from geneformer_repro.heads import require_poolable
from geneformer_repro.into_adata import KEY, places_of_cells, places_of_genes, put_vectors
from geneformer_repro.network_settings import Pooling
from geneformer_repro.progress import Bar, progress
from geneformer_repro.reading import MAX_TOKENS, Dtype, Reader, part_limits, parts_of, require_one_of
from geneformer_repro.tokenizer.dataset import TokenizedDataset
from geneformer_repro.tokenizer.labels import asked_labels
from geneformer_repro.tokenizer.vocabulary import Vocabulary
from geneformer_repro.work import working_on

Level = Literal["cell", "gene"]
Statistic = Literal["mean", "median"]
VERSION = 4
"""Of the vectors: raised when another version of the package gives other ones, so that it does not go on with these."""


@dataclass(frozen=True)
class _Vectors:
    """Cells, the reader of them, and how a cell's vector is made."""

    reader: Reader
    cells: TokenizedDataset
    pooling: Pooling

    @classmethod
    def of(
        cls, checkpoint: Checkpoint, cells: TokenizedDataset, *, pooling: Pooling = "mean", **options: Any
    ) -> "_Vectors":
        require_poolable(cells.vocabulary, pooling)
        checkpoint.require_matching(cells)
        return cls(Reader.of(checkpoint, **options), cells, pooling)

    def of_cells(self, rows: np.ndarray, bar: Bar) -> np.ndarray:
        """Return the vectors of some cells, in their order, (cells, D); NaN of a cell without a gene."""
        vectors_ND = np.full((len(rows), self.reader.hidden_size), np.nan, dtype=np.float32)
        for batch in _counted(self.reader.batches(self.cells, rows), bar):
            vectors_ND[batch.rows] = self.reader.pooled(batch, self.pooling).numpy()
        if n_without_gene := int((~self.cells.has_gene[rows]).sum()):
            bar.update(n_without_gene)
        return vectors_ND

    def mean(self, rows: np.ndarray, bar: Bar) -> np.ndarray:
        """Return the mean vector of some cells, all with a gene, summed in float64."""
        sums_D = np.zeros(self.reader.hidden_size)
        for batch in _counted(self.reader.batches(self.cells, rows), bar):
            sums_D += self.reader.pooled(batch, self.pooling).double().sum(0).numpy()
        return sums_D / len(rows)


def _counted(batches: Iterable[Batch], bar: Bar) -> Iterator[Batch]:
    """Yield batches, and show the cells of each as done."""
    for batch in batches:
        yield batch
        bar.update(len(batch.rows))


def _memory() -> dict[str, float]:
    return {"peak_memory_gb": round(processes.peak_memory_gb(), 2)}


def _showing(n_cells: int, *, done: int = 0) -> AbstractContextManager[Bar]:
    """Return a bar of cells; the first process shows it, for its share of them."""
    quiet = not processes.is_first()
    return progress("embed", total=n_cells, unit="cells", done=done, quiet=quiet, facts=_memory)


@typed
@processes.together()
def embed(
    checkpoint: Checkpoint,
    cells: TokenizedDataset,
    *,
    level: Level = "cell",
    layer: int = -1,
    pooling: Pooling = "mean",
    dtype: Dtype = "float32",
    max_tokens: int = MAX_TOKENS,
    device: str | torch.device | None = None,
    into: ad.AnnData | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
) -> ad.AnnData:
    """Embed cells, or the genes of their vocabulary.

    Under ``torchrun`` or ``accelerate launch`` every process must call it; they share the work, and each returns all.

    Parameters
    ----------
    checkpoint
        The model.
    cells
        Cells of the same vocabulary.
    level
        "cell": one vector a cell. "gene": one vector a gene, the mean of its contextual vectors over the cells that
        express it.
    layer
        0 is the last block, -1 the one before (as a rule the more general one).
    pooling
        For cells: "mean" over the genes, or "cls", the vector of ``<cls>`` (V2 series only).
    dtype
        What the network computes in. "bfloat16" is faster on accelerators and leaves two to three digits; vectors are
        float32 either way.
    max_tokens
        Tokens of a batch; less needs less memory.
    device
        Default: an accelerator where there is one.
    into
        The AnnData that the cells are from: the vectors are also written into its ``obsm["X_geneformer"]`` by cell
        name (at gene level into ``varm``), NaN where a cell was left out, and ``uns["X_geneformer"]`` says what made
        them. So ``scanpy.pp.neighbors(adata, use_rep="X_geneformer")`` goes on with them.
    out
        Write here, ``.h5ad`` or ``.zarr``, instead of holding all vectors in memory. Cells whose embedding was cut off
        go on from ``OUT.partial`` with the same call; genes begin anew.
    overwrite
        Replace `out`; drop the remains of a call with other settings (those of the same call are gone on with).

    Returns
    -------
    ``X`` (float32). At cell level in the order of the cells, with their names and obs columns, NaN for a cell without a
    gene; at gene level indexed by gene id with ``gene_name`` and ``n_cells``, genes that no cell expresses left out.
    ``uns["geneformer_repro"]`` says what made it. With `out`, ``X`` stays on disk: backed (``.h5ad``), or a
    `zarr.Array`.

    Raises
    ------
    InputError
        The layer does not exist, pooling "cls" is asked of cells without ``<cls>``, `out` has another suffix, or
        `into` has none of the cells (or genes).
    VocabularyMismatchError
        The cells were tokenised with another vocabulary than the model's.
    FileExistsError
        `out` exists, or unfinished work with other settings.

    See Also
    --------
    embed_states : One vector a state.
    map_to_reference : Label cells by their neighbours.
    integration_scores : How well batches are mixed.

    Examples
    --------
    >>> import geneformer_repro as gf
    >>> base, cells = gf.Checkpoint.from_pretrained("runs/base"), gf.TokenizedDataset.open("cells.tok")
    >>> embedding = gf.embed(base, cells.select(range(50)))
    >>> embedding.shape, embedding.X.dtype, list(embedding.obs.columns)
    ((50, 64), dtype('float32'), ['cell_type', 'phase', 'donor', 'n_counts'])
    >>> adata = gf.datasets.pbmc700()[:50].copy()
    >>> _ = gf.embed(base, cells.select(range(50)), into=adata)
    >>> adata.obsm["X_geneformer"].shape
    (50, 64)
    >>> genes = gf.embed(base, cells.select(range(50)), level="gene")
    >>> genes.obs.head(2)
                    gene_name  n_cells
    ENSG00000000938       FGR       19
    ENSG00000002330       BAD        6
    """
    require_one_of(Level, "level", level)
    if out is not None:
        processes.agreed(lambda: refuse_unwritable(Path(out), overwrite=overwrite))
    vectors = _Vectors.of(
        checkpoint, cells, pooling=pooling, layer=layer, dtype=dtype, max_tokens=max_tokens, device=device
    )
    warn_if_guessing(checkpoint)
    made_by = {
        "model": checkpoint.name,
        "checkpoint": checkpoint.fingerprint,
        "vocabulary": cells.vocabulary.fingerprint,
        "cells": cells.fingerprint,
        "level": level,
        "layer": layer,
        "pooling": pooling,
        "dtype": dtype,
    }
    places = None if into is None else _places(into, cells, level)
    if out is not None and level == "cell":
        adata = _stream_cells(vectors, Path(out), made_by, overwrite=overwrite)
    else:
        adata = _embed_cells(vectors) if level == "cell" else _embed_genes(vectors)
        adata.uns["geneformer_repro"] = made_by
        adata = adata if out is None else _write_genes(adata, Path(out), overwrite=overwrite)
    if into is not None and places is not None:
        _write_into(into, places, adata, cells, made_by)
    return adata


def _places(into: ad.AnnData, cells: TokenizedDataset, level: Level) -> np.ndarray:
    return places_of_cells(into, cells.cell_names) if level == "cell" else places_of_genes(into, cells.vocabulary)


def _write_into(
    into: ad.AnnData, places: np.ndarray, adata: ad.AnnData, cells: TokenizedDataset, made_by: dict[str, Any]
) -> None:
    """Write vectors into an AnnData; of genes, those that no cell expresses have none."""
    if made_by["level"] == "gene":
        row_of = np.append(adata.obs_names.get_indexer(list(cells.vocabulary.gene_ids)), -1)
        put_vectors(into.varm, adata.X[:], row_of[places])
    else:
        put_vectors(into.obsm, adata.X[:], places)
    into.uns[KEY] = dict(made_by)


@typed
@processes.together()
def embed_states(
    checkpoint: Checkpoint,
    cells: TokenizedDataset,
    obs: str,
    *,
    statistic: Statistic = "mean",
    layer: int = -1,
    pooling: Pooling = "mean",
    states: Sequence[str | float] | None = None,
    max_tokens: int = MAX_TOKENS,
    device: str | torch.device | None = None,
) -> pd.DataFrame:
    """Embed states: the mean or median vector over all of their cells, exactly.

    The published package takes at most 1,000 cells of a state, and an approximate median. A state's vector depends on
    its own cells alone, not on which other states are asked for.

    Parameters
    ----------
    checkpoint
        The model.
    cells
        Cells of the same vocabulary.
    obs
        Column that names the state of each cell; cells without one, or without a gene, are left out.
    statistic
        "mean" (sums in float64), or "median" of each dimension, which holds all vectors of a state in memory.
    layer
        0 is the last block, -1 the one before.
    pooling
        How a cell's vector is made: see `embed`.
    states
        Those that are wanted, in this order; default all, sorted.
    max_tokens
        Tokens of a batch.
    device
        Default: an accelerator where there is one.

    Returns
    -------
    A row a state, a column a dimension, float32.

    Raises
    ------
    InputError
        There is no such column, or no cell in a state.

    See Also
    --------
    embed : A vector a cell.
    GoalState : Takes such vectors as ``embeddings``.

    Examples
    --------
    >>> import geneformer_repro as gf
    >>> base, cells = gf.Checkpoint.from_pretrained("runs/base"), gf.TokenizedDataset.open("cells.tok")
    >>> vectors = gf.embed_states(base, cells.select(range(100)), "cell_type", states=["CD19+ B", "CD14+ Monocyte"])
    >>> vectors.shape
    (2, 64)
    >>> list(vectors.index)
    ['CD19+ B', 'CD14+ Monocyte']
    """
    require_one_of(Statistic, "statistic", statistic)
    members = _members(cells, obs, states)
    vectors = _Vectors.of(checkpoint, cells, pooling=pooling, layer=layer, max_tokens=max_tokens, device=device)
    warn_if_guessing(checkpoint)
    vectors_SD = np.zeros((len(members), vectors.reader.hidden_size), dtype=np.float32)
    mine = list(enumerate(members.values()))[processes.share()]
    with _showing(sum(len(rows) for _, rows in mine)) as bar:
        for i, rows in mine:
            of_state = (
                vectors.mean(rows, bar) if statistic == "mean" else np.median(vectors.of_cells(rows, bar), axis=0)
            )
            vectors_SD[i] = of_state
    return pd.DataFrame(
        processes.sum_over(torch.from_numpy(vectors_SD)).numpy(),
        index=pd.Index(members, name=obs),
        columns=[str(i) for i in range(vectors.reader.hidden_size)],
    )


def _members(cells: TokenizedDataset, obs: str, states: Sequence[str | float] | None) -> dict[str, np.ndarray]:
    """Return the row numbers of the cells with a gene in each state that is wanted."""
    if isinstance(states, str):
        raise InputError(f"states must be a sequence of states; for one give [{states!r}].")
    column = cells.labels(obs).reset_index(drop=True)[cells.has_gene].dropna()
    members = {str(state): rows.to_numpy() for state, rows in column.groupby(column).groups.items()}
    if not members:
        raise InputError(f"No cell with a gene has a value of {obs!r}, so there is no state. Name another column.")
    wanted = asked_labels(() if states is None else states, "states: each")
    for state in wanted:
        if state not in members:
            raise InputError(f"No cell has {obs} = {state!r}. {did_you_mean(state, members)}")
    return members if states is None else {state: members[state] for state in wanted}


def _embed_cells(vectors: _Vectors) -> ad.AnnData:
    vectors_ND = np.zeros((len(vectors.cells), vectors.reader.hidden_size), dtype=np.float32)
    mine = parts_of(vectors.cells.lengths)[processes.share()]
    with _showing(sum(map(len, mine))) as bar:
        for rows in mine:
            vectors_ND[rows] = vectors.of_cells(rows, bar)
    return ad.AnnData(processes.sum_over(torch.from_numpy(vectors_ND)).numpy(), obs=vectors.cells.obs)


def _stream_cells(vectors: _Vectors, out: Path, made_by: Mapping[str, Any], *, overwrite: bool) -> ad.AnnData:
    parts = parts_of(vectors.cells.lengths)
    plan = {name: value for name, value in made_by.items() if name != "model"}
    plan |= {"version": VERSION, "max_tokens": vectors.reader.max_tokens, "part": part_limits()}
    with working_on(out, plan, what="embedding", marker=marker_of(out), overwrite=overwrite) as work:
        if not work.is_delivered:
            store = VectorParts(work, len(parts))
            uns = {"geneformer_repro": dict(made_by)}
            processes.agreed(lambda: store.make_room(vectors.cells.obs, uns, vectors.reader.hidden_size))
            done = len(vectors.cells) - sum(len(parts[i]) for i in store.missing)
            with _showing(done + sum(len(parts[i]) for i in store.mine), done=done) as bar:
                for i in store.mine:
                    store.write(i, vectors.of_cells(parts[i], bar))
            processes.wait()
            if processes.is_first():
                store.finish()
    return open_vectors(out)


def _embed_genes(vectors: _Vectors) -> ad.AnnData:
    reader, vocabulary = vectors.reader, vectors.cells.vocabulary
    device = torch.device("cpu") if reader.device.type == "mps" else reader.device  # which knows no float64
    sums_VD = torch.zeros(vocabulary.size, reader.hidden_size, dtype=torch.float64, device=device)
    n_cells_V = torch.zeros(vocabulary.size, dtype=torch.int64, device=device)
    mine = parts_of(vectors.cells.lengths)[processes.share()]
    with _showing(sum(map(len, mine))) as bar:
        for batch in (batch for rows in mine for batch in _counted(reader.batches(vectors.cells, rows), bar)):
            tokens_T = batch.input_ids_T[batch.genes_T].to(device)
            hidden_TD = reader.hidden(batch.input_ids_T, batch.lengths)
            sums_VD.index_add_(0, tokens_T, hidden_TD[batch.genes_T].to(device).double())
            n_cells_V += torch.bincount(tokens_T, minlength=vocabulary.size)
    return _mean_of_genes(processes.sum_over(sums_VD), processes.sum_over(n_cells_V), vocabulary)


def _mean_of_genes(sums_VD: Tensor, n_cells_V: Tensor, vocabulary: Vocabulary) -> ad.AnnData:
    """Divide by the number of cells; genes without one are left out."""
    expressed = np.flatnonzero(n_cells_V[vocabulary.tokens].numpy())
    tokens = vocabulary.tokens[expressed]
    means_GD = (sums_VD[tokens] / n_cells_V[tokens, None]).float().numpy()
    obs = pd.DataFrame(
        {"gene_name": [vocabulary.gene_names[i] for i in expressed], "n_cells": n_cells_V[tokens].numpy()},
        index=pd.Index([vocabulary.gene_ids[i] for i in expressed]),
    )
    return ad.AnnData(means_GD, obs=obs)


def _write_genes(adata: ad.AnnData, out: Path, *, overwrite: bool) -> ad.AnnData:
    processes.agreed(lambda: write_vectors(out, adata, overwrite=overwrite))
    return open_vectors(out)
