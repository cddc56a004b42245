"""A gene network from a model and cells: what users call.

The work is cut into parts of the cells of one state and donor, by the cells alone; each part's sums are one file until
the end, when those of a group are added up in their order. So memory does not grow with the number of cells, several
processes share the parts, and work that was cut off goes on and ends with the same bytes. The first process reads the
few cells of the calibration; the others believe it.
"""

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch

import geneformer_repro.processes as processes
import geneformer_repro.unfinished as unfinished
from geneformer_repro.arguments import typed
from geneformer_repro.batching import Batch
from geneformer_repro.checkpoint import Checkpoint, warn_if_guessing
from geneformer_repro.errors import counted
from geneformer_repro.in_silico.networks.attention_sums import (
    AttentionWatch,
    Calibration,
    HeadWeights,
    PairSums,
    Scale,
    Weight,
    add_attention,
    calibrate,
)
from geneformer_repro.in_silico.networks.deletion_sums import OTHERS, DeletionSums
from geneformer_repro.in_silico.networks.gene_network import (
    GeneNetwork,
    Sums,
    add_sums,
    least_cells,
    write_sums,
)
from geneformer_repro.in_silico.networks.head_selection import Half, HeadChoice, HeadScores, KnownHalves, single_heads
from geneformer_repro.in_silico.networks.masked_logits import MaskedLogitSums
from geneformer_repro.in_silico.networks.mean_attention import MeanQueryKey, as_sums, pair_counts
from geneformer_repro.in_silico.networks.network_files import MARKER
from geneformer_repro.in_silico.networks.network_folder import finish, is_soon_done, sums_file
from geneformer_repro.in_silico.networks.network_question import NetworkMethod, NetworkQuestion
from geneformer_repro.in_silico.networks.places import Places, place_bins
from geneformer_repro.in_silico.parted import batch_tokens, in_words
from geneformer_repro.model import MaskedGeneModel
from geneformer_repro.progress import progress
from geneformer_repro.reading import Dtype, Reader, consecutive_parts
from geneformer_repro.tokenizer.dataset import TokenizedDataset
from geneformer_repro.tokenizer.placeholders import warn_of_no_donors
from geneformer_repro.work import Parts, Work, working_on

logger = logging.getLogger(__name__)

VERSION = 3
"""Of the values: raised when another version of the package gives other ones, so that it does not go on with these."""
_PROBED = 32
_LITTLE_MEMORY = 1e8
"""Variants of a cell that are read to see how long they take."""
CELLS_A_PART, TOKENS_A_PART = 1024, 2**21
"""Most cells, and tokens that the model reads, between two points from which the work can go on."""


@typed
@processes.together()
def gene_network(
    checkpoint: Checkpoint,
    cells: TokenizedDataset,
    *,
    out: str | Path,
    sources: str | Path | Sequence[str] | None = None,
    targets: str | Path | Sequence[str] | None = None,
    by: str | None = None,
    donor: str | None = None,
    method: NetworkMethod = "attention",
    weight: Weight = "attention",
    scale: Scale = "log",
    layers: Literal["all"] | Sequence[int] = "all",
    heads: Literal["all"] | Sequence[tuple[int, int]] = "all",
    select: pd.DataFrame | str | Path | None = None,
    select_on: Half = "first",
    min_cells: int = 20,
    calibration_cells: int = 200,
    max_cells: int | None = None,
    seed: int = 0,
    max_memory: str | float = "2GB",
    dtype: Dtype = "float32",
    max_tokens: int | None = None,
    device: str | torch.device | None = None,
    overwrite: bool = False,
) -> GeneNetwork:
    """Read a gene network out of a model: which genes it uses to represent which, beyond place and prominence.

    Most of an attention edge is not about its pair: genes in front and prominent genes are attended by all others. So
    of each head the mean of the pair's places is taken out, and of each state the effects of both genes; what is left
    is the weight. It is the model's, not the cell's: a hypothesis about genes, no evidence of regulation.

    Under ``torchrun`` or ``accelerate launch`` every process must call it; they share the cells.

    Parameters
    ----------
    checkpoint
        The model: pretrained, or a classifier; adapters count.
    cells
        Cells of the same vocabulary.
    out
        Folder to write; one that was cut off goes on from ``OUT.partial`` with the same call.
    sources
        Genes that may influence others, the key genes of attention: ids or names, or a file with one a line, such as
        transcription factors. Unknown ones are listed in a warning and left out. None: all genes.
    targets
        Genes that may be influenced, the query genes. None: all.
    by
        Column of the cells that names their state; each state has a network of its own. None pools all cells, which is
        warned about where a column looks like a type: edges of pooled types are genes that mark a type together.
    donor
        Column that names the donor, the replicate of intervals and comparisons. Groups of fewer than `min_cells` cells
        (of one state and donor) are left out and listed.
    method
        "attention". "deletion": how far the target's vector (of the block before the last) moves when the source is
        deleted, less that of up to ten other sources of the cell at like places; one forward a source and cell. Name
        more sources than those asked about, such as all factors: a cell with one of them has nothing to compare it
        with. "masked_logit": the fall of the log probability of the target, hidden at its place, when the source is
        hidden as well; 15 % of a cell's genes, among them the target, are hidden at once as in training, so a cell
        takes a forward for each source and each such group of targets: name few sources or targets. Of a pretrained
        model. "mean_qk": attention of queries and keys averaged over cells, fast, and of no cell.
    weight
        "attention", or "value_norm": attention times the length of the vector that it brings.
    scale
        What is averaged over heads and cells: "log", the log lift (0 is an even share of the cell's genes) in standard
        deviations of its head; or "lift", the lift relative to the mean of its places, whose log is taken of the mean.
    layers
        Blocks whose heads are averaged, counted from 0 next to the input. Choosing them by known edges is learning:
        see `select`.
    heads
        Pairs (layer, head) instead.
    select
        Known edges, a table or file as of `evaluate_network`, that choose the best quarter of these heads: those with
        the highest AUROC among targets of like detection and place, on the edges of half of the sources, in at most
        1,000 cells. Sources are halved by a hash of their id. `evaluate_network` leaves out those that chose. With
        "attention" only.
    select_on
        The half that chooses, "first" or "second": networks of both say of every source what heads are worth that
        others chose.
    min_cells
        Cells that a pair needs for a weight (of one donor a quarter of them), and a group to be added up.
    calibration_cells
        Most cells, drawn evenly from the groups, from which means of places are taken.
    max_cells
        Read a random choice of so many cells; None all.
    seed
        Of both choices.
    max_memory
        Refuse what takes more than this beside the model: 24 bytes for each pair of a source and a target.
    dtype
        What the network computes in; weights are float32 either way.
    max_tokens
        Tokens of a batch; default 16,384, on a CPU 4,096.
    device
        Default: an accelerator where there is one.
    overwrite
        Replace the network that stands in `out`; drop unfinished work with other settings.

    Returns
    -------
    The network, opened from `out`.

    Raises
    ------
    InputError
        No source or target is known or expressed by `min_cells` cells, a column does not exist, every group is too
        small, a half of `select` has no three sources with a known edge, the pairs take more memory than allowed, or
        options contradict each other.
    VocabularyMismatchError
        The cells were tokenised with another vocabulary than the model's.
    FileExistsError
        `out` exists, or unfinished work with other settings; the difference is shown.

    See Also
    --------
    GeneNetwork : What is in it.
    perturb : What a deletion does to whole cells.

    References
    ----------
    Theodoris et al., Nature 618, 616 (2023), which looks at attention of transcription factors head by head; Dunn et
    al., Bioinformatics 24, 333 (2008), for effects of both genes taken out.

    Examples
    --------
    >>> import geneformer_repro as gf
    >>> base, cells = gf.Checkpoint.from_pretrained("runs/base"), gf.TokenizedDataset.open("cells.tok")
    >>> cells = cells.select(range(150))
    >>> tfs = ["SPI1", "IRF8", "ID2", "CD74"]
    >>> network = gf.gene_network(base, cells, sources=tfs, by="cell_type", out="net")
    >>> network.states
    ['CD14+ Monocyte', 'Dendritic']
    >>> sorted(network.edges["source"].map(network.genes["gene_name"]).unique())
    ['CD74', 'ID2', 'SPI1']
    """
    checkpoint.require_matching(cells)
    for column in filter(None, (by, donor)):
        cells.require_obs(column)
    if donor is not None:
        warn_of_no_donors(cells.labels(donor), donor)
    question = NetworkQuestion(
        checkpoint, cells, sources, targets, by, donor, method, weight, scale, layers, heads, min_cells,
        calibration_cells, max_cells, seed, select, select_on,
    )  # fmt: skip
    processes.agreed(lambda: unfinished.refuse(Path(out), overwrite=overwrite, marker=MARKER))
    where = torch.device(device) if device else processes.device()
    max_tokens = batch_tokens(max_tokens, where)
    needed = question.require_memory(max_memory, max_tokens)
    metadata = question.describe() | {"dtype": dtype, "max_tokens": max_tokens}
    plan = {**metadata, "version": VERSION, "part": [CELLS_A_PART, TOKENS_A_PART]}
    processes.agreed(lambda: unfinished.refuse_other(Path(out), plan, what="network", overwrite=overwrite))
    warn_if_guessing(checkpoint)
    if processes.is_first():
        question.warn()
        logger.info("%s", _said(question, needed))
    reader = Reader.of(checkpoint, layer=question.layer_read, dtype=dtype, max_tokens=max_tokens, device=where)
    with working_on(out, plan, what="network", marker=MARKER, overwrite=overwrite) as work:
        if not work.is_delivered:
            _METHODS[method](question, reader, work).run(metadata | checkpoint.whereabouts)
    return GeneNetwork.open(out)


def _said(question: NetworkQuestion, needed: int) -> str:
    """Say what the work is."""
    n_sources, n_targets = question.roles.shape
    n_groups = len(question.cell_groups)
    return (
        f"{counted(len(question.rows), 'cell')} in {counted(n_groups, 'group')} of "
        f"{counted(len(question.states), 'state')}; {n_sources:,} sources × {n_targets:,} targets; "
        f"{f'about {needed / 1e9:.2g}' if needed >= _LITTLE_MEMORY else 'less than 0.1'} GB beside the model"
    )


class _Part(NamedTuple):
    """Cells whose sums are made together."""

    group: int
    half: int
    """0 or 1: of every other cell of the group, so that two halves can be compared."""
    rows: np.ndarray


class _Written(NamedTuple):
    """A part and its file."""

    part: _Part
    path: Path


class _Making(ABC):
    """A network that is being made: its parts, and what becomes of them."""

    suffix = ".parquet"

    def __init__(self, question: NetworkQuestion, reader: Reader, work: Work) -> None:
        self.question, self.reader, self.work = question, reader, work
        self.parts = [
            _Part(i, half, rows)
            for i, group in enumerate(question.cell_groups)
            for half in range(2)
            for rows in self._cut(group.rows[half::2])
        ]

    def _cut(self, rows: np.ndarray) -> list[np.ndarray]:
        """Cut cells of a group into parts of bounded work, by the cells alone."""
        n_tokens = self.tokens_to_read(rows)
        return [rows[part] for part in consecutive_parts(n_tokens, CELLS_A_PART, TOKENS_A_PART)]

    def tokens_to_read(self, rows: np.ndarray) -> np.ndarray:
        """Return how many tokens the model reads for each cell."""
        return self.question.cells.lengths[rows].astype(np.int64)

    def run(self, metadata: Mapping[str, Any]) -> None:
        """Do what is missing of the parts, with the other processes; then make the folder, on the first."""
        self.prepare()
        parts = Parts(self.work, len(self.parts), suffix=self.suffix)
        sizes = [int(self.tokens_to_read(part.rows).sum()) for part in self.parts]
        done = sum(sizes) - sum(sizes[i] for i in parts.missing)
        if processes.is_first() and parts.missing:
            self._forecast(sum(sizes) - done)
        with progress(
            "network", total=sum(sizes), unit="tokens", done=done, quiet=not processes.is_first(), facts=_memory
        ) as bar:
            for i in parts.mine:
                parts.keep(i, self.part(self.parts[i].rows, bar.update))
        processes.wait()
        if processes.is_first():
            self._merge(parts.paths, metadata)

    def prepare(self) -> None:  # noqa: B027  # not every method has such work
        """Do what comes before the parts."""

    @abstractmethod
    def part(self, rows: np.ndarray, show: Callable[[int], object]) -> Callable[[Path], object]:
        """Read the cells of a part; return what writes its sums."""

    def merged(self, parts: Sequence[_Written]) -> Sums:
        """Return the sums of some parts together."""
        shape = self.question.roles.shape
        sums = Sums(np.zeros(shape), np.zeros(shape, dtype=np.int32))
        for written in parts:
            add_sums(written.path, *sums)
        return sums

    def measured(self) -> dict[str, Any]:
        """Return what the metadata say beside what was asked."""
        return {"corrections": {"place": None, "genes": "two-way fit, refitted twice without strong pairs"}}

    def mass(self) -> dict[str, np.ndarray] | None:
        """Return the attention that each gene receives, by state."""
        return None

    def place_part(self, state: str, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Return what was taken out of pairs for their places."""
        return np.full(len(rows), np.nan)

    def write_beside(self, folder: Path) -> None:  # noqa: B027  # nor other files
        """Write further files of the folder."""

    @abstractmethod
    def seconds_a_token(self) -> float | None:
        """Measure how long the work takes; None where there is nothing to time."""

    def _seconds_of(self, read: Callable[[Batch], object]) -> float:
        """Time how a cell of middle length is read, the second time; return seconds a token."""
        cells, rows = self.question.cells, self.question.rows
        middle = rows[np.argsort(cells.lengths[rows], kind="stable")[len(rows) // 2]]
        batch = next(iter(self.reader.batches(cells, np.array([middle]))))
        for _ in range(2):
            began = time.perf_counter()
            read(batch)
        return (time.perf_counter() - began) / len(batch.input_ids_T)

    def _forecast(self, n_tokens: int) -> None:
        """Say how long it takes."""
        seconds = self.seconds_a_token()
        if seconds is not None:
            logger.info("takes about %s here", in_words(seconds * n_tokens / processes.count()))

    def _merge(self, paths: Sequence[Path], metadata: Mapping[str, Any]) -> None:
        question = self.question
        written = [_Written(part, path) for part, path in zip(self.parts, paths, strict=True)]
        with self.work.result() as folder:
            (folder / "sums").mkdir(parents=True)
            groups = question.folder_groups()
            with progress("sums", total=len(groups), unit="groups", quiet=is_soon_done(question.genes, groups)) as bar:
                for i in range(len(groups)):
                    write_sums(folder / sums_file(i), *self.merged([one for one in written if one.part.group == i]))
                    bar.update()
            self.write_beside(folder)
            whole = {**metadata, **self.measured()}
            beside: dict[str, Any] = {"mass": self.mass(), "place_part": self.place_part}
            finish(folder, question.genes, groups, whole, halves=partial(self._of_half, written), **beside)

    def _of_half(self, written: Sequence[_Written], groups: Sequence[int], half: int) -> Sums:
        """Return the sums of every other cell of some groups."""
        return self.merged([one for one in written if one.part.group in groups and one.part.half == half])


def _memory() -> dict[str, float]:
    return {"peak_memory_gb": round(processes.peak_memory_gb(), 2)}


class _ByAttention(_Making):
    """Log lifts or lifts of attention, beyond place."""

    calibration: Calibration
    heads: HeadWeights
    choice: HeadChoice | None = None

    def prepare(self) -> None:
        """Read the calibration cells, or what an earlier call has kept of them; choose heads where that is asked."""
        question = self.question
        self.calibration = processes.agreed(self._calibration)
        self.heads = HeadWeights(question.chosen, self.calibration.places, question.scale, question.weight)
        if (known := question.known) is not None:
            self.choice = processes.agreed(lambda: self._choice(known))
            self.heads = replace(self.heads, chosen_NH=self.choice.averaged(question.chosen.shape))
        self._sums = PairSums(question.roles, self.reader.device)

    def _choice(self, known: KnownHalves) -> HeadChoice:
        """Score each head on known edges, or read what an earlier call has kept of that."""
        question, path = self.question, self.work.folder / "head_scores.parquet"
        if unfinished.is_whole(path):
            return HeadChoice.open(path, known)
        candidates, alone = single_heads(question.chosen, self.heads)
        least = least_cells(question.min_cells, of_donor=True)
        scores = HeadScores(
            self.reader, alone, known, question.genes, question.roles, least=least, scale=question.scale
        )
        rows, states = question.rows_to_select()
        scores.read(question.cells, rows, np.array(states), question.state_genes())
        found = HeadChoice(candidates, scores.auroc(), known, len(rows))
        found.is_chosen  # noqa: B018  # refuses edges that cannot be compared
        unfinished.keep(path, found.save)
        return found

    def _calibration(self) -> Calibration:
        places, mass = self.work.folder / "places.parquet", self.work.folder / "mass.parquet"
        if unfinished.is_whole(places) and unfinished.is_whole(mass):
            table = pd.read_parquet(mass)
            shape = (len(self.question.states), len(self.question.genes))
            of_genes = (table[name].to_numpy().reshape(shape) for name in ("mass", "n"))
            return Calibration(Places.open(places), *of_genes)
        question = self.question
        rows, states = question.rows_to_calibrate()
        found = calibrate(
            self.reader,
            question.cells,
            rows,
            states,
            n_states=len(question.states),
            chosen_NH=question.chosen,
            gene_of_token=question.gene_of_token,
            n_bins=question.n_bins,
            scale=question.scale,
            weight=question.weight,
        )
        unfinished.keep(places, found.places.save)
        table = pd.DataFrame({"mass": found.mass.ravel(), "n": found.n.ravel()})
        unfinished.keep(mass, table.to_parquet)
        return found

    def part(self, rows: np.ndarray, show: Callable[[int], object]) -> Callable[[Path], object]:
        """Read the cells of a part; return what writes its sums."""
        self._sums.clear()
        for batch in self.reader.batches(self.question.cells, rows):
            add_attention(self.reader, batch, self.question.roles, self.heads, self._sums)
            show(len(batch.input_ids_T))
        return partial(_write, sums=self._sums.sums())

    def merged(self, parts: Sequence[_Written]) -> Sums:
        """Return the sums of some parts together, in the memory of the sums."""
        self.__dict__.pop("_sums", None)
        return super().merged(parts)

    def measured(self) -> dict[str, Any]:
        """Return what is known of heads."""
        of_heads = self.calibration.places.table()
        of_heads = of_heads[self.question.chosen[of_heads["layer"], of_heads["head"]]]
        told: dict[str, Any] = {}
        if self.choice is not None:
            of_heads = of_heads.merge(self.choice.columns(), on=["layer", "head"])
            chosen = self.choice.candidates[self.choice.is_chosen].tolist()
            told = {"heads": chosen, "layers": sorted({layer for layer, _ in chosen})}
            told["selected"] = self.choice.describe()
        rows = of_heads.astype(object).where(of_heads.notna(), None).to_dict("records")
        n_read = len(self.question.rows_to_calibrate()[0])
        corrections = super().measured()["corrections"]
        corrections["place"] = f"mean of places by head, bins of the root of the place, {n_read} cells"
        return {"corrections": corrections, "of_heads": rows, "n_calibrated": n_read, **told}

    def mass(self) -> dict[str, np.ndarray]:
        """Return the mean over calibration cells; NaN of a gene that none of them has."""
        total, n = self.calibration.mass, self.calibration.n
        mean = np.divide(total, n, out=np.full(total.shape, np.nan), where=n > 0)
        return dict(zip(self.question.states, mean, strict=True))

    def place_part(self, state: str, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Return the mean over the cells that have both genes of what was taken out; reads tokens, not the model."""
        question, table = self.question, self.heads.of_places
        total, n = np.zeros(len(rows)), np.zeros(len(rows), dtype=np.int64)
        bins = place_bins(int(question.cells.lengths[question.rows].max()))
        bin_of_row, bin_of_column = (np.full(size, -1, dtype=np.int64) for size in question.roles.shape)
        for group, of_group in question.cell_groups:
            if group.state != state:
                continue
            for row in of_group:
                tokens = question.cells[int(row)]
                tokens = tokens[question.cells.vocabulary.genes_of(tokens) >= 0]
                for bin_of, numbers in ((bin_of_row, question.roles.row), (bin_of_column, question.roles.column)):
                    bin_of[:] = -1
                    known = numbers[tokens] >= 0
                    bin_of[numbers[tokens][known]] = bins[: len(tokens)][known]
                both = np.flatnonzero((bin_of_row[rows] >= 0) & (bin_of_column[columns] >= 0))
                total[both] += table[bin_of_column[columns[both]], bin_of_row[rows[both]]]
                n[both] += 1
        return total / np.maximum(n, 1)

    def write_beside(self, folder: Path) -> None:
        """Write the means of places."""
        self.calibration.places.save(folder / "places.parquet")

    def seconds_a_token(self) -> float:
        """Time a cell of middle length, the second time."""
        roles, heads = self.question.roles, self.heads
        return self._seconds_of(lambda one: self.reader.watch(one, AttentionWatch(self.reader, one, roles, heads)))


def _write(path: Path, sums: Sums) -> None:
    write_sums(path, *sums)


class _ByVariants(_Making):
    """A network of changed cells: several forwards a cell, whose pairs are added up on the CPU."""

    def __init__(self, question: NetworkQuestion, reader: Reader, work: Work) -> None:
        self._sums = PairSums(question.roles, torch.device("cpu"))
        super().__init__(question, reader, work)

    @abstractmethod
    def n_forwards(self, row: int) -> int:
        """Return how many cells are read for one: variants of it, and itself."""

    @abstractmethod
    def add(self, row: int) -> None:
        """Read a cell; add the weights of its pairs."""

    @abstractmethod
    def probe(self, row: int) -> int:
        """Read a part of what is read for a cell; return how many forwards that was."""

    def tokens_to_read(self, rows: np.ndarray) -> np.ndarray:
        """Return how many tokens the model reads for each cell and its variants."""
        return super().tokens_to_read(rows) * [self.n_forwards(int(row)) for row in rows]

    def part(self, rows: np.ndarray, show: Callable[[int], object]) -> Callable[[Path], object]:
        """Read the cells of a part and their variants; return what writes its sums."""
        self._sums.clear()
        for row in rows:
            self.add(int(row))
            show(int(self.tokens_to_read(np.array([row]))[0]))
        return partial(_write, sums=self._sums.sums())

    def seconds_a_token(self) -> float | None:
        """Time some variants of a cell of middle work, the second time."""
        rows = self.question.rows
        n_tokens = self.tokens_to_read(rows)
        middle = int(rows[np.argsort(n_tokens, kind="stable")[len(rows) // 2]])
        for _ in range(2):
            began = time.perf_counter()
            n_read = self.probe(middle)
        if not n_read:
            return None
        return (time.perf_counter() - began) / (n_read * int(self.question.cells.lengths[middle]))


class _ByDeletion(_ByVariants):
    """How far vectors move when genes are deleted."""

    def __init__(self, question: NetworkQuestion, reader: Reader, work: Work) -> None:
        cells, genes = question.cells, question.genes
        longest = min(cells.vocabulary.max_length, reader.bert.config.max_position_embeddings)
        sources = genes.index[genes["is_source"]].tolist()
        max_genes = int(longest) - 2 * cells.vocabulary.has_cls
        self._deletions = DeletionSums(reader, cells, question.roles, sources, max_genes)
        super().__init__(question, reader, work)

    def prepare(self) -> None:
        """Say where cells have too few sources to compare one with."""
        n_sources = np.array([self._deletions.n_variants(int(row)) for row in self.question.rows])
        if processes.is_first() and np.median(n_sources) <= OTHERS:
            logger.warning(
                "A deletion is compared with those of up to %d other sources of the same cell: here cells have %d "
                "sources (median), and %s of %s cells have one and are left out. Name more sources to compare with, "
                "such as all transcription factors.",
                OTHERS,
                np.median(n_sources),
                f"{(n_sources == 1).sum():,}",
                f"{len(n_sources):,}",
            )

    def n_forwards(self, row: int) -> int:
        """Return the number of sources, and one for the cell."""
        return 1 + self._deletions.n_variants(row)

    def add(self, row: int) -> None:
        """Delete each source of a cell."""
        self._deletions.add(row, self._sums)

    def probe(self, row: int) -> int:
        """Delete some sources of a cell."""
        return self._deletions.read(row, _PROBED)


class _ByMaskedLogit(_ByVariants):
    """How much less likely hidden genes are without others."""

    def __init__(self, question: NetworkQuestion, reader: Reader, work: Work) -> None:
        network = question.checkpoint.token_model
        assert isinstance(network, MaskedGeneModel)
        self._logits = MaskedLogitSums(reader, network, question.cells, question.roles, question.seed)
        super().__init__(question, reader, work)

    def n_forwards(self, row: int) -> int:
        """Return the number of groups of hidden targets times that of sources and none."""
        return self._logits.n_forwards(row)

    def add(self, row: int) -> None:
        """Hide each source beside each group of targets."""
        self._logits.add(row, self._sums)

    def measured(self) -> dict[str, Any]:
        """Return how many genes of a cell are hidden at once."""
        return {**super().measured(), "hidden_at_once": self._logits.hidden_at_once}

    def probe(self, row: int) -> int:
        """Hide sources beside some targets."""
        return self._logits.read(row, _PROBED)


class _ByMeanQueryKey(_Making):
    """One softmax of mean queries and keys."""

    suffix = ".safetensors"

    def _empty(self) -> MeanQueryKey:
        config = self.reader.bert.config
        n_channels = config.hidden_size // config.num_attention_heads
        return MeanQueryKey(self.question.chosen, n_channels, self.question.gene_of_token)

    def part(self, rows: np.ndarray, show: Callable[[int], object]) -> Callable[[Path], object]:
        """Read the cells of a part; return what writes its sums of queries and keys."""
        sums = self._empty()
        for batch in self.reader.batches(self.question.cells, rows):
            sums.add(self.reader, batch)
            show(len(batch.input_ids_T))
        return sums.save

    def seconds_a_token(self) -> float:
        """Time a cell of middle length, the second time."""
        sums = self._empty()
        return self._seconds_of(lambda batch: sums.add(self.reader, batch))

    def merged(self, parts: Sequence[_Written]) -> Sums:
        """Return weights of the mean queries and keys of some parts, group by group, and how many cells have a pair."""
        question, shape = self.question, self.question.roles.shape
        whole = Sums(np.zeros(shape), np.zeros(shape, dtype=np.int32))
        for group in sorted({written.part.group for written in parts}):
            of_group, sums = [written for written in parts if written.part.group == group], self._empty()
            for written in of_group:
                sums.add_file(written.path)
            rows = np.concatenate([written.part.rows for written in of_group])
            one = as_sums(sums.weights(question.roles), pair_counts(question.cells, rows, question.roles))
            np.add(whole.total, one.total, out=whole.total)
            np.add(whole.n, one.n, out=whole.n)
        return whole


_METHODS: Mapping[str, type[_Making]] = {
    "attention": _ByAttention,
    "deletion": _ByDeletion,
    "masked_logit": _ByMaskedLogit,
    "mean_qk": _ByMeanQueryKey,
}
