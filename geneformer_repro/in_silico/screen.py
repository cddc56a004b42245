"""A perturbation screen: change genes of cells, run the model on both versions, measure what the change did."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch

import geneformer_repro.processes as processes
from geneformer_repro.arguments import typed
from geneformer_repro.checkpoint import Checkpoint, warn_if_guessing
from geneformer_repro.errors import InputError, counted, listed
from geneformer_repro.in_silico.engine import Engine, Outcome, PerturbedCell
from geneformer_repro.in_silico.first_order import first_order
from geneformer_repro.in_silico.goals import UNKNOWN, Budget, GoalState, Method, left_out
from geneformer_repro.in_silico.parted import Parted, batch_tokens, require_output, require_same_plan, worth
from geneformer_repro.in_silico.perturbation import Composed, Edits, Perturbation
from geneformer_repro.in_silico.question import Question, Screened
from geneformer_repro.in_silico.sampled_screen import SampledScreen
from geneformer_repro.in_silico.shift_table import ESTIMATE, ShiftTable
from geneformer_repro.model import flops
from geneformer_repro.network_settings import Pooling
from geneformer_repro.reading import Dtype, Reader, consecutive_parts
from geneformer_repro.tokenizer.dataset import TokenizedDataset

logger = logging.getLogger(__name__)

VERSION = 4
"""Of the values: raised when another version of the package gives other ones, so that it does not go on with these."""
CELLS_A_PART, TOKENS_A_PART = 1024, 2**21
"""Most cells and tokens of variants between two points from which a screen can go on."""
_WORTH_A_PROBE = 0.01
"""Share of the work above which it is begun without measuring how long it will take; the bar tells soon enough."""
CHECKED_CELLS = 3
"""Cells of a first-order screen that are also done exactly, to say how well the two agree."""
POOR_AGREEMENT = 0.5
"""Median rank correlation of estimates and exact values below which a user is warned."""


@typed
@processes.together()
def perturb(
    checkpoint: Checkpoint,
    cells: TokenizedDataset,
    perturbation: Perturbation | Composed,
    *,
    goal: GoalState | None = None,
    target: str | None = None,
    affected: Literal["each"] | Sequence[str] | None = None,
    layer: int | None = None,
    pooling: Pooling | None = None,
    method: Method = "exact",
    refine: int = 0,
    donor: str | None = None,
    obs: Sequence[str] = (),
    max_cells: int | None = None,
    seed: int = 0,
    passes: int | None = None,
    minutes: float | None = None,
    top: int | None = None,
    min_cells: int | None = None,
    shams: int | None = None,
    out: str | Path | None = None,
    dtype: Dtype = "float32",
    max_tokens: int | None = None,
    device: str | torch.device | None = None,
    overwrite: bool = False,
) -> ShiftTable:
    """Perturb genes of cells and measure what that does in the model.

    Under ``torchrun`` or ``accelerate launch`` every process must call it, with `out`; they share the cells.

    Parameters
    ----------
    checkpoint
        The model: pretrained, or a classifier.
    cells
        Cells of the same vocabulary.
    perturbation
        What is done to a cell. Genes that the vocabulary does not know, or that have to be expressed and are in no
        cell, are listed in a warning and left out.
    goal
        Perturb the cells of the start state and measure movement towards states; None perturbs all cells and
        measures how similar they stay to themselves.
    target
        Instead the change of what a classifier says of this target (the obs column it learned): the probability of
        each class, or the number. With `goal`, whose states must be classes of the target, cells of the start state
        are perturbed, and `shift_statistics` reports the goal's probability.
    affected
        Also measure how similar every other gene's vector stays to itself: "each", or the genes of a list.
    layer
        0 is the last block, -1 the one before (the default); with `target` always the last.
    pooling
        How a cell is represented: "cls" or "mean" over genes; default "cls" where cells have one, as published; with
        `target` always as the classifier does.
    method
        "first_order" estimates the effect of every gene from one forward and one backward pass a cell (see
        `geneformer_repro.in_silico.first_order`); for a goal or target, and genes that cells express. Good for
        deletions as a rule, poor for moves: three cells are done exactly as well, and ``metadata["first_order"]`` says
        how well the two rankings agree. Of a goal it has no rows of the start state. "sampled" has the same estimates,
        and measures some pairs of a cell and a gene, with a budget: see Notes.
    refine
        With "first_order": compute the so many strongest genes of each cell exactly, in both directions.
    donor
        Column of the cells that names the donor, the replicate of `shift_statistics`.
    obs
        Other columns to carry into the table.
    max_cells
        Perturb a random choice of so many cells; None all.
    seed
        Decides which cells `max_cells` takes, which a first-order screen is checked on, and what is sampled.
    passes, minutes
        With "sampled", one of the two: how many forward passes there are, or for how long they may be made (all
        processes together; how many that is is measured once, before the work). At least two for each gene.
    top
        With "sampled": how many genes of each direction are to be found; default 50.
    min_cells
        With "sampled": genes in fewer cells get no pass, only an estimate; default 10.
    shams
        Goals drawn at random, towards which movement is measured as well: as far from the start state as the goal, in
        directions in which its cells differ among themselves. They tell what depends on the goal
        (`shift_statistics`), and cost little: 8 % of the time of a tiny network, less of others. Default 19 for a goal
        with "exact" and 20 start cells, else none; with "first_order" each costs a backward pass. 0: none.
    out
        Parquet file; a screen that was cut off goes on from ``OUT.partial`` with the same call. None: in memory.
    dtype
        What the network computes in; "bfloat16" is faster on accelerators and leaves two to three digits.
    max_tokens
        Tokens of a batch; default 16,384, on a CPU 4,096, which stay in its cache.
    device
        Default: an accelerator where there is one.
    overwrite
        Replace the file that `out` names; drop the remains of a screen with other settings (those of the same screen
        are gone on with).

    Returns
    -------
    A value for each cell and perturbation. Without a goal: cosine similarity of the cell before and after; with
    pooling "mean" that is the mean over the unperturbed genes of the similarity of each gene's vector. With a goal:
    a value for each state s, cos(e′, E_s) − cos(e, E_s), where e is the cell's pooled vector (perturbed gene
    included), e′ that of the changed cell, and E_s the state's mean. With a target: p′ − p of each class. In the order
    of the cells, and of the genes in each.

    Raises
    ------
    InputError
        A state or column does not exist, all genes are unknown, a state has no cells, no cell expresses the genes,
        options contradict each other, or a budget is too small.
    VocabularyMismatchError
        The cells were tokenised with another vocabulary than the model's.
    FileExistsError
        `out` exists, or an unfinished screen with other settings; the difference is shown.

    See Also
    --------
    Deletion : And the other kinds of perturbation.
    GoalState : Towards what a movement counts.
    shift_statistics : From values to a table of genes.

    Notes
    -----
    A sampled screen estimates each gene's mean over cells by the difference estimator: the mean of what is expected of
    its pairs, plus what measured pairs differ from that, weighted by their chances of being drawn. That is unbiased
    whatever first order is worth, also though rounds of passes go to genes whose place in the top is undecided
    (`geneformer_repro.in_silico.sampling`). ``value`` holds what was measured, or what is expected of the rest: its
    means rank genes best, and are biased towards what is expected. Means of ``unbiased`` are the unbiased estimates.
    The goal's values steer the passes; without a goal the class whose estimates spread most.

    References
    ----------
    Theodoris et al., Nature 618, 616 (2023), Methods, "In silico perturbation". Särndal, Swensson and Wretman, Model
    Assisted Survey Sampling (1992), ch. 6, and Des Raj, J. Am. Stat. Assoc. 51, 269 (1956), for what is sampled.

    Examples
    --------
    >>> import geneformer_repro as gf
    >>> base, cells = gf.Checkpoint.from_pretrained("runs/base"), gf.TokenizedDataset.open("cells.tok")
    >>> cells = cells.select(range(100))
    >>> shifts = gf.perturb(base, cells, gf.Deletion(["CD74", "LYZ"], combine="singly"), max_cells=20)
    >>> shifts.measure
    'cosine similarity'
    >>> shifts.table[["cell", "perturbed", "rank", "exact"]].head(2)
                   cell        perturbed  rank  exact
    0  AAATTCGATGCACA-1  ENSG00000019582   174   True
    1  AAATTCGATGCACA-1  ENSG00000090382   230   True
    >>> goal = gf.GoalState(obs="cell_type", start="CD14+ Monocyte", goal="CD19+ B")
    >>> shifts = gf.perturb(base, cells, gf.Deletion(["CD74"]), goal=goal, donor="donor", max_cells=5)
    >>> shifts.measure, shifts.table["state"].unique().tolist()
    ('cosine shift', ['CD14+ Monocyte', 'CD19+ B'])
    """
    checkpoint.require_matching(cells)
    budget = Budget(passes, minutes, top, min_cells)
    if seed < 0:
        raise InputError(f"seed must be at least 0, found {seed}.")
    question = Question(
        checkpoint, cells, goal, target, affected, layer, pooling, method, refine, donor, obs, budget, shams, seed
    )
    require_output(out, what="a screen", overwrite=overwrite)
    if question.pooling_is_unlike_embed and processes.is_first():
        logger.info("Cells are pooled by <cls>, as published; embed pools by the mean, unless it is told otherwise.")
    where = torch.device(device) if device else processes.device()
    max_tokens = batch_tokens(max_tokens, where)
    reader = Reader.of(checkpoint, layer=question.layer_read, dtype=dtype, max_tokens=max_tokens, device=where)
    rows = question.rows_of_start()
    perturbation = _with_known_genes(perturbation, cells, rows)
    edits = Edits(perturbation, cells.vocabulary)
    question.check_first_order(edits)
    max_genes = _max_genes(checkpoint, cells, perturbation)
    rows, n_variants = _cells_to_perturb(question, edits, rows, max_cells, np.random.default_rng(seed))
    layout = question.layout(rows)
    metadata = question.describe() | {
        "perturbation": perturbation.describe(),
        "dtype": dtype,
        "n_cells": len(rows),
        "seed": seed,
    }
    plan = _plan_of(metadata)
    require_same_plan(out, plan, what="screen", overwrite=overwrite)
    warn_if_guessing(checkpoint)
    score, affected_tokens = question.score(where), question.affected_tokens()
    engine = Engine(reader, cells.vocabulary, question.pooling_read, score, affected_tokens, max_genes)
    screened = Screened(question, engine, edits, layout, rows, n_variants, seed)
    screen = SampledScreen(screened, _cut) if method == "sampled" else _Screen(screened)
    return screen.run(out, metadata | checkpoint.whereabouts, plan, overwrite=overwrite)


def _cut(n_tokens: np.ndarray) -> list[np.ndarray]:
    """Cut cells, of which the tokens to be read are given, into parts."""
    return consecutive_parts(n_tokens, CELLS_A_PART, TOKENS_A_PART)


def _plan_of(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return what must be the same for a screen to go on."""
    return {**metadata, "version": VERSION, "part": [CELLS_A_PART, TOKENS_A_PART]}


def _max_genes(checkpoint: Checkpoint, cells: TokenizedDataset, perturbation: Perturbation | Composed) -> int:
    """Return how many genes a cell has room for, which must be more than are perturbed at once."""
    longest = min(cells.vocabulary.max_length, checkpoint.token_model.config.max_position_embeddings)
    max_genes = int(longest) - 2 * cells.vocabulary.has_cls
    if perturbation.n_at_once >= max_genes:
        raise InputError(f"{perturbation.n_at_once} genes are perturbed at once, and a cell has room for {max_genes}.")
    return max_genes


def _with_known_genes(
    perturbation: Perturbation | Composed, cells: TokenizedDataset, rows: np.ndarray
) -> Perturbation | Composed:
    """Call genes by id; leave out those that are unknown, or have to be expressed and are in no cell, and list them."""
    vocabulary = cells.vocabulary
    position = dict(zip(perturbation.named, vocabulary.find(perturbation.named).tolist(), strict=True))
    unknown = {gene for gene, i in position.items() if i < 0}
    perturbation = _without(unknown, perturbation, UNKNOWN)
    missing = {gene: vocabulary.tokens[position[gene]] for gene in perturbation.must_be_expressed}
    for row in rows:
        if not missing:
            break
        expressed = set(cells[int(row)].tolist())
        missing = {gene: token for gene, token in missing.items() if token not in expressed}
    perturbation = _without(set(missing), perturbation, "are expressed by none of the cells")
    return perturbation.renamed({gene: vocabulary.gene_ids[i] for gene, i in position.items()})


def _without(genes: set[str], perturbation: Perturbation | Composed, why: str) -> Perturbation | Composed:
    """Leave genes out, with a warning; refuse a perturbation that needs them."""
    if not genes:
        return perturbation
    message = left_out(genes, perturbation, why)
    if processes.is_first():
        logger.warning("%s They are left out.", message)
    return perturbation.without(genes)


def _cells_to_perturb(
    question: Question, edits: Edits, rows: np.ndarray, max_cells: int | None, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return the cells, and how many variants each has."""
    if max_cells is not None and max_cells < 1:
        raise InputError(f"max_cells must be at least 1, found {max_cells}.")
    cells = question.cells
    n_genes = np.maximum(cells.lengths[rows] - 2 * cells.vocabulary.has_cls, 0).tolist()
    of_cells = (cells[int(row)] if edits.names_genes else None for row in rows)
    n_variants = np.array([edits.n_variants(n, cell) for n, cell in zip(n_genes, of_cells, strict=True)])
    rows, n_variants = rows[n_variants > 0], n_variants[n_variants > 0]
    if not len(rows):
        where = f" in state {question.goal.start!r}" if question.goal else ""
        raise InputError(f"No cell{where} has the genes to perturb and another one to keep.")
    if max_cells is None or len(rows) <= max_cells:
        return rows, n_variants
    chosen = np.sort(rng.choice(len(rows), max_cells, replace=False))
    return rows[chosen], n_variants[chosen]


class _Screen(Parted[ShiftTable]):
    """The cells of a screen, cut into parts."""

    kind, verb, what, unit = ShiftTable, "perturb", "screen", "variants"

    def __init__(self, screened: Screened) -> None:
        self._question, self._engine, self._edits, self._layout = screened[:4]
        self._rows, self._n_variants, seed = screened[4:]
        self._lengths = self._question.cells.lengths[self._rows]
        n_checked = CHECKED_CELLS if self._question.method == "first_order" else 0
        checked = np.random.default_rng(seed).permutation(len(self._rows))[:n_checked]
        self._checked = np.isin(np.arange(len(self._rows)), checked)
        self.parts = _cut(self._n_variants * self._lengths)

    @property
    def columns_for_metadata(self) -> list[str] | None:
        """Columns that `further` needs."""
        return None if self._question.method == "first_order" else ["perturbed", "affected"]

    def n_units(self, rows: np.ndarray) -> int:
        """Return how many variants some cells have."""
        return int(self._n_variants[rows].sum())

    def forecast(self, rows: np.ndarray) -> None:
        """Measure the rate on a batch of a cell of middle length; say how long these cells will take."""
        middle = rows[np.argsort(self._lengths[rows], kind="stable")[len(rows) // 2]]
        n_probed = max(1, min(self._n_variants[middle], self._engine.reader.max_tokens // self._lengths[middle]))
        cost = np.array([flops(self._engine.reader.bert.config, np.array([length])) for length in self._lengths])
        is_exact = self._question.method == "exact"
        share = (
            cost[middle] * (n_probed if is_exact else 1) / (cost * (self._n_variants if is_exact else 1))[rows].sum()
        )
        text = f"{self._n_variants[rows].sum():,} variants of {len(rows):,} cells"
        if share < _WORTH_A_PROBE:
            seconds = self._seconds(middle, n_probed) / share
            text += f", {worth(seconds, len(rows), 'cells')}"
        logger.info("%s", text)

    def _seconds(self, cell: int, n_variants: int) -> float:
        """Return how long some variants of a cell take; the second time, since the first one warms up."""
        tokens, variants = self._perturbed(cell)
        probe = [PerturbedCell(tokens, variants.select(np.arange(n_variants)))]
        for _ in range(2):
            began = time.perf_counter()
            (Engine.run if self._question.method == "exact" else first_order)(self._engine, probe)
        return time.perf_counter() - began

    def further(self, tables: Iterable[pa.Table]) -> dict[str, Any]:
        """Return the metadata that need all rows, and warn of estimates that are poor."""
        further = self._layout.metadata_of(tables, np.flatnonzero(self._checked))
        medians = {s: told["median"] for s, told in further.get("first_order", {}).get("spearman", {}).items()}
        poor = {state: median for state, median in medians.items() if median is not None and median < POOR_AGREEMENT}
        if poor:
            logger.warning(
                "First-order estimates rank genes poorly here (%s: Spearman with exact values, median of %s). Read "
                "exact rows only, or use method='exact' (leave out --first-order).",
                listed(f"{state} {median:.2f}" for state, median in poor.items()),
                counted(int(self._checked.sum()), "cell"),
            )
        return further

    def _perturbed(self, i: int) -> PerturbedCell:
        tokens = self._question.cells[int(self._rows[i])]
        return PerturbedCell(tokens, self._edits.variants(tokens))

    def table_of(self, part: np.ndarray, show: Callable[[int], object]) -> pa.Table:
        """Do a part; return its rows."""
        cells = [self._perturbed(i) for i in part]
        if self._question.method == "exact":
            return self._layout.table(part, cells, self._engine.run(cells, show))
        outcomes = first_order(self._engine, cells, show)
        n_states = len(self._layout.states)
        estimates = np.concatenate([outcome.value_NS[:, :n_states].ravel() for outcome in outcomes])
        is_exact = [self._to_refine(i, outcome) for i, outcome in zip(part, outcomes, strict=True)]
        to_refine = [
            PerturbedCell(cell.tokens, cell.variants.select(np.flatnonzero(is_exact_N)))
            for cell, is_exact_N in zip(cells, is_exact, strict=True)
        ]
        for outcome, is_exact_N, refined in zip(outcomes, is_exact, self._engine.run(to_refine), strict=True):
            outcome.value_NS[is_exact_N] = refined.value_NS
        table = self._layout.table(part, cells, outcomes, np.concatenate(is_exact))
        return table.append_column(ESTIMATE, pa.array(estimates))

    def _to_refine(self, i: int, estimate: Outcome) -> np.ndarray:
        """Return of each variant whether it is computed exactly: all of a checked cell, else the strongest."""
        if self._checked[i]:
            return np.ones(len(estimate.value_NS), dtype=bool)
        columns = estimate.value_NS.T if self._question.target else estimate.value_NS[:, :1].T  # of a goal: the goal's
        refine, chosen = self._question.refine, np.zeros(len(estimate.value_NS), dtype=bool)
        for value_N in columns if refine else ():
            order = np.argsort(value_N, kind="stable")
            chosen[order[:refine]] = chosen[order[-refine:]] = True
        return chosen
