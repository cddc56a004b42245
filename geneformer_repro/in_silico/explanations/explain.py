"""Explain predictions: what users call, whatever the family of models.

What is explained is one number a row (log-odds of a class, a risk, a nearness …, see `answers`), and values say how
much each gene adds to it. A value is about the model: it says what the network used, and not why a cell is what it is.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pyarrow as pa
import torch

import geneformer_repro.processes as processes
from geneformer_repro.arguments import typed
from geneformer_repro.checkpoint import Checkpoint, warn_if_guessing
from geneformer_repro.drugs import Drugs
from geneformer_repro.in_silico.explanations.explained import Explained
from geneformer_repro.in_silico.explanations.explanation import Explanation
from geneformer_repro.in_silico.explanations.families import explained_by, usual_choices
from geneformer_repro.in_silico.explanations.how_good import tell
from geneformer_repro.in_silico.explanations.occlusions import Operator
from geneformer_repro.in_silico.explanations.path_integrals import Integration, Rule
from geneformer_repro.in_silico.explanations.request import AnyBaseline, GeneSetsGiven, Request, sequence_of
from geneformer_repro.in_silico.goals import GoalState
from geneformer_repro.in_silico.parted import Counted, Parted, require_output, require_same_plan, worth
from geneformer_repro.network_settings import Pooling
from geneformer_repro.reading import Dtype, consecutive_parts
from geneformer_repro.responses import Responses
from geneformer_repro.tokenizer.dataset import TokenizedDataset

logger = logging.getLogger(__name__)

VERSION = 2
"""Of the values: raised when another version of the package gives other ones, so that it does not go on with these."""
ROWS_A_PART, TOKENS_A_PART = 1024, 2**21
"""Most cells (samples, pairs), and tokens that are read for them, between two points from which the work can go on."""


@typed
@processes.together()
def explain(
    checkpoint: Checkpoint,
    rows: TokenizedDataset | ad.AnnData | pd.DataFrame | str | Path,
    *,
    drugs: Drugs | pd.DataFrame | str | Path | None = None,
    responses: Responses | pd.DataFrame | str | Path | None = None,
    patients: str | Path | None = None,
    reading: Mapping[str, Any] | None = None,
    target: str | None = None,
    state: str | float | Sequence[str | float] | None = None,
    contrast: str | float | None = None,
    goal: GoalState | None = None,
    gene: str | None = None,
    layer: int | None = None,
    pooling: Pooling | None = None,
    methods: Sequence[str] | None = None,
    donor: str | None = None,
    obs: Sequence[str] = (),
    max_cells: int | None = None,
    seed: int = 0,
    sets: GeneSetsGiven | None = None,
    pooled_masks: bool = False,
    baseline: AnyBaseline | None = None,
    steps: int = Integration().first_steps,
    rule: Rule = "midpoint",
    operator: Operator = "hide",
    masks: int | None = None,
    out: str | Path | None = None,
    dtype: Dtype = "float32",
    max_tokens: int | None = None,
    device: str | torch.device | None = None,
    allow_seen: bool = False,
    overwrite: bool = False,
) -> Explanation:
    """Explain what a model says of cells, samples, patients, or pairs of samples and drugs: how much each gene adds.

    Under ``torchrun`` or ``accelerate launch`` every process must call it, with `out`; they share the cells.

    Parameters
    ----------
    checkpoint
        The model: a classifier of cells or genes, a pretrained model, an expression network, or a network of drug
        response.
    rows
        Cells of the same vocabulary; for an expression network samples, as `predict` takes them; for one of drug
        response samples, as `predict_response` does. Where they have a column of the target, it is said first how well
        the model predicts them: an explanation of a classifier that guesses says nothing about the label.
    drugs
        For a network of drug response, as `predict_response` takes them: each sample is explained with each of them,
        or with those that `state` names; by genes, and by characters of SMILES (column ``character``).
    responses
        For a network of drug response: what is known of the pairs, in its measure, as `read_responses` takes it; then
        it is said first how well the network predicts them within drugs.
    patients
        A run of `finetune_patients` on tokenised cells, whose encoder `checkpoint` is: its patients are explained, each
        by the genes of all of its cells. Occlusions are exact: the gene is gone from every cell, and the patient is
        asked anew. Derivatives add up, over cells, how far a gene moves the cell's vector along the slope of the
        patient's number. "attention" is the weight of each cell (column ``of_cell``, no gene).
    reading
        How samples are read: other options of `predict`, such as ``{"cohort": "cohort"}``, or of `predict_response`.
    target
        What a classifier learned; of a single target it need not be said. Of classes the log-odds are explained (the
        logit less the log of the sum of the others' exponentials), of a number the number, of a time to an event the
        log hazard or, of hazards of intervals, the cumulative hazard until the horizon.
    state
        The class, or classes, that are explained; None all.
    contrast
        A class with which they are compared, instead of all others: the difference of two logits.
    goal
        Instead explain how much nearer cells are to a goal state than to the start state, cos(e, goal) −
        cos(e, start); cells of the start state are explained.
    gene
        Instead explain, of a pretrained model, how sure it is of this gene at its place, where it sees ``<mask>`` (log
        probability); of a classifier of genes, the class of this gene. Cells that express it are explained.
    layer, pooling
        For `goal`, as of `perturb`.
    methods
        Real forward passes: "delete" (later genes move up, as in screens), "hide" (the others keep their places),
        "mask" (``<mask>`` in its place, which does not count in the cell's vector unless `pooled_masks`), "median_rank"
        (the gene at its median place over the cells that can be explained: is its level unusual?), "median" (of values,
        not tokens: the cohort's median instead of the gene's value). A value is the number of the cell less that of the
        cell without the gene. Default "hide"; of values "integrated_gradients". "first_order" estimates "delete" by one
        backward pass.

        Derivatives: "gradient_input" (by a gene's token row, times how far it is from the baseline's),
        "integrated_gradients" (its mean along the way from there: values add up to the difference, and ``gap`` says by
        how much they miss it), "attention_gradient" (by the attention that the gene gets, times that attention).
        Summaries of what is attended, which know nothing of the number: "rollout", "attention".

        A fit: "surrogate", a linear stand-in for the model around the cell, fitted to answers of cells that lack genes
        at random; of cells of at most 300 genes, or of `sets`. How good it is stands beside it.
    donor
        Column of the cells that names the donor, the replicate of tests.
    obs
        Other columns to carry into the table.
    max_cells
        Explain a random choice of so many cells; None all.
    seed
        Decides which.
    sets
        Take whole sets of genes away instead of single genes: a GMT file, or genes by the name of each set. A cell that
        has none of a set's genes has no row for it.
    pooled_masks
        Count ``<mask>`` in the cell's vector as a gene.
    baseline
        Of gradient x input and integrated gradients, the input that they start from: genes that are all ``<mask>``,
        "mean" (of cells that can be explained, place by place), or "pad", for comparison only. Of values "mean", or
        "median", of the cohort. Default "mask"; of values "mean".
    steps, rule
        Of integrated gradients: in how many points, at first, and how they lie ("midpoint", or "gauss_legendre").
    operator, masks
        Of the surrogate: how genes are left out ("hide" or "median_rank"), and in how many altered cells a draw;
        default 20 for each gene, and at least 1,000.
    out
        Parquet file; an explanation that was cut off goes on from ``OUT.partial`` with the same call. None: in memory.
    dtype, max_tokens, device
        As of `perturb`.
    allow_seen
        Explain cells, too, that the model was trained on.
    overwrite
        Replace the file that `out` names; drop the remains of work with other settings.

    Returns
    -------
    A value for each cell, gene, method and number explained, in the order of the cells, the methods, and the genes in
    each. A gene that a cell does not express has no row.

    Raises
    ------
    InputError
        The model has not learned what is asked, a state or column does not exist, no cell is left, the model was
        trained on the cells, or options contradict each other.
    VocabularyMismatchError
        The cells were tokenised with another vocabulary than the model's.
    FileExistsError
        `out` exists, or unfinished work with other settings; the difference is shown.

    See Also
    --------
    Explanation : What is returned; its ``genes`` are a table with donors as replicates.
    gene_set_enrichment : Which gene sets stand out in it.
    perturb : Screens, which ask what a change does to the cell.

    References
    ----------
    Sundararajan, Taly & Yan, ICML 2017, integrated gradients; Ribeiro, Singh & Guestrin, KDD 2016, surrogates;
    Abnar & Zuidema, ACL 2020, rollout.

    Examples
    --------
    >>> import geneformer_repro as gf
    >>> model, cells = gf.Checkpoint.from_pretrained("runs/type"), gf.TokenizedDataset.open("cells.tok")
    >>> why = gf.explain(
    ...     model, cells, state="CD19+ B", methods=["attention_gradient", "first_order"], donor="donor", max_cells=4
    ... )
    >>> why.measure
    'log-odds of each cell_type named in column state against all other classes, in nats'
    >>> why.metadata["how_good"]["better_than_guessing"]
    False
    >>> why.table[["donor", "gene", "place", "method", "state"]].head(2)
        donor             gene  place              method    state
    0  donor3  ENSG00000115523      0  attention_gradient  CD19+ B
    1  donor3  ENSG00000106565      1  attention_gradient  CD19+ B
    """
    usual = usual_choices(checkpoint)
    request = Request(
        target=target, state=state, contrast=contrast, goal=goal, gene=gene, layer=layer, pooling=pooling,
        methods=usual["methods"] if methods is None else sequence_of(methods, "methods"), donor=donor,
        obs=sequence_of(obs, "obs"), max_cells=max_cells, seed=seed, sets=sets, pooled_masks=pooled_masks,
        baseline=baseline or usual["baseline"], steps=steps, rule=rule, operator=operator, masks=masks, dtype=dtype,
        max_tokens=max_tokens, device=device, allow_seen=allow_seen,
    )  # fmt: skip
    require_output(out, what="an explanation", overwrite=overwrite)
    explained = explained_by(
        request, checkpoint, rows, drugs=drugs, responses=responses, patients=patients, reading=reading or {}
    )
    warn_if_guessing(checkpoint)
    return explained_in(explained, out, whereabouts=checkpoint.whereabouts, overwrite=overwrite)


def explained_in(
    explained: Explained, out: str | Path | None, *, whereabouts: Mapping[str, str], overwrite: bool
) -> Explanation:
    """Explain rows part by part, in memory or into a file."""
    described = explained.describe()
    plan = {"step": "explain", **described, "version": VERSION, "part": [ROWS_A_PART, TOKENS_A_PART]}
    require_same_plan(out, plan, what="explanation", overwrite=overwrite)
    metadata = {**explained.prepare(), **described, **whereabouts, "rows_are": explained.rows_are}
    if metadata.get("how_good") and processes.is_first():
        tell(metadata["how_good"])
    return _Explaining(explained).run(out, metadata, plan, overwrite=overwrite)


class _Explaining(Parted[Explanation]):
    """Rows that are explained, cut into parts."""

    kind, verb, what, unit = Explanation, "explain", "explanation", "passes"

    def __init__(self, explained: Explained) -> None:
        self._explained, self._passes = explained, explained.passes()
        self.parts = consecutive_parts(explained.costs(), ROWS_A_PART, TOKENS_A_PART)

    def n_units(self, rows: np.ndarray) -> int:
        """Return how often the network is run for some rows."""
        return int(self._passes[rows].sum())

    def forecast(self, rows: np.ndarray) -> None:
        """Say how much is to be done; where it is much, how long it will take."""
        what = self._explained.rows_are
        text, seconds = f"{self.n_units(rows):,} passes of {len(rows):,} {what}", self._explained.seconds(rows)
        logger.info("%s%s", text, "" if seconds is None else f", {worth(seconds, len(rows), what)}")

    def table_of(self, part: np.ndarray, show: Callable[[int], object]) -> pa.Table:
        """Do a part; return its rows."""
        counted = Counted(show, self.n_units(part))
        table = self._explained.table(part, counted)
        counted.finish()
        return table

    @property
    def columns_for_metadata(self) -> list[str]:
        """Columns that the rows' metadata need."""
        return self._explained.columns_for_metadata

    def further(self, tables: Iterable[pa.Table]) -> dict[str, Any]:
        """Return the metadata that need all rows."""
        return self._explained.further(tables)
