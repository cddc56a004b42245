"""Whether to believe an explanation: one call for its table of genes and for all that may speak against it."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from geneformer_repro.arguments import require_at_least, typed
from geneformer_repro.checkpoint import Checkpoint
from geneformer_repro.errors import InputError
from geneformer_repro.heads import CellClassifier
from geneformer_repro.in_silico.explanations import verdicts
from geneformer_repro.in_silico.explanations.again import Again
from geneformer_repro.in_silico.explanations.agreement import agreement
from geneformer_repro.in_silico.explanations.drivers import DriverGenes, driver_genes
from geneformer_repro.in_silico.explanations.enrichment import gene_set_enrichment
from geneformer_repro.in_silico.explanations.explanation import Explanation
from geneformer_repro.in_silico.explanations.gene_table import gene_table
from geneformer_repro.in_silico.explanations.occlusions import Operator, masked, operation
from geneformer_repro.in_silico.explanations.removal import N_RANDOM, SHARES, Judge, RankedCell, orders
from geneformer_repro.in_silico.explanations.sanity import (
    PERMUTED_LABELS,
    forgetting,
    sanity,
    with_permuted_labels,
)
from geneformer_repro.progress import progress
from geneformer_repro.targets import Classes, Number
from geneformer_repro.tokenizer.dataset import TokenizedDataset

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)

MAX_CELLS = 30
MOST_FITTED = 2_000
"""Cells to which a head of permuted labels is fitted at most."""
_JUDGES: Sequence[tuple[Operator, str]] = (("mask", "removal"), ("hide", "removal"), ("mask", "insertion"))


@dataclass(frozen=True, eq=False)
class ExplanationEvaluation:
    """What speaks for and against an explanation; made by `evaluate_explanation`.

    See Also
    --------
    evaluate_explanation : Makes it.
    write_explanation_report : A page of it.

    Examples
    --------
    >>> import geneformer_repro as gf
    >>> check = gf.evaluate_explanation(gf.Explanation.open("why.parquet"))
    >>> check.agreement[["method_a", "method_b", "same_operator"]].head(1).to_numpy().tolist()
    [['hide', 'gradient_input', False]]
    >>> check.removal.empty
    True
    """

    genes: pd.DataFrame
    """As of `Explanation.genes`."""
    agreement: pd.DataFrame
    """A row a ``state`` and pair, ``method_a`` and ``method_b``, "place" among them: ``spearman``, the median over
    cells of the rank correlation of absolute attributions, with its quartiles ``lower`` and ``upper``,
    ``spearman_of_genes``, of the means over cells; ``top_k``, the Jaccard index of the k largest means,
    ``top_k_chance``, and the same ``_in_cells``; ``same_operator``, ``n_cells``, ``n_genes``."""
    points: pd.DataFrame
    """Curves: a row a ``state``, ``operator`` ("mask", "hide"), ``way`` ("removal", "insertion"), ``order`` and
    ``share`` of the genes: ``value``, the mean answer; of random orders also ``low`` to ``high``, where most lie."""
    removal: pd.DataFrame
    """A row a curve: ``area``; ``better``, by how much the answer moves more than with random orders, its interval over
    donors, ``low`` to ``high``, and ``p_value``; ``faithfulness``, (random − order) / (random − ``best`` order);
    ``own_operator``: the method took genes away by the same, so this is its own game."""
    sanity: pd.DataFrame
    """A row a ``model`` that forgot, ``method`` and ``state``: ``spearman``, median over cells of the rank correlation
    of absolute attributions with those of the model, its quartiles ``lower`` and ``upper``; ``signed``, of those with
    signs; ``n_cells``."""
    drivers: DriverGenes | None
    """Genes of a list among the strongest."""
    sets: pd.DataFrame | None
    """Sets of genes among the strongest."""
    sentences: list[str] = field(default_factory=list)
    """What all this says, the most important first: how good the model is."""


@typed
def evaluate_explanation(
    why: Explanation,
    checkpoint: Checkpoint | None = None,
    cells: TokenizedDataset | None = None,
    *,
    counts: "AnnData | str | Path | None" = None,
    drivers: Sequence[str] | pd.DataFrame | str | Path | None = None,
    sets: Mapping[str, Sequence[str]] | pd.DataFrame | str | Path | None = None,
    removal: bool | None = None,
    random_weights: bool | None = None,
    permuted: bool | Checkpoint | None = None,
    max_cells: int = MAX_CELLS,
    seed: int = 0,
) -> ExplanationEvaluation:
    """Test an explanation: agreement of methods, genes taken away and brought, models that forgot, lists of genes.

    Parameters
    ----------
    why
        The explanation.
    checkpoint
        The model that was explained; it is asked again.
    cells
        The cells that explain was given. With those of other classes, and counts, the table of genes says how
        expression differs.
    counts
        Where the raw counts of `cells` are, if not where `tokenize` found them.
    drivers
        A list of genes, as of `driver_genes`: how many are among the strongest.
    sets
        Sets of genes, as of `gene_set_enrichment`.
    removal
        Draw curves of the answer as genes go, and come. None: where a checkpoint is given.
    random_weights
        Explain networks again whose weights were drawn anew, from the top block down. None: as of `removal`.
    permuted
        Explain again with labels that mean nothing: by a last layer that is fitted to permuted labels of `cells`, or by
        this checkpoint, which you fine-tuned on permuted labels. None: where the target is classes or a number, and its
        labels are in `cells`.
    max_cells
        Of the cells explained, so many are asked again, evenly over donors.
    seed
        Of what is drawn: these cells, random orders, weights, permutations.

    Returns
    -------
    Tables, and what they say in ``sentences``.

    Raises
    ------
    InputError
        The checkpoint is not the one that was explained, cells are lacking, or a test needs what is not given.

    See Also
    --------
    explain : Makes the explanation.
    write_explanation_report : A page of the result.
    gene_set_enrichment : The test of sets by itself.

    Notes
    -----
    Curves: genes go in the order of each method, largest and smallest first, from the front of the cell, by fold
    change, and 10 times at random, up to half of them. Two operators judge, masking and hiding; a method is not to be
    judged by its own. Genes come back into a cell of ``<mask>`` alone, which counts in the cell's vector, or
    at the start nothing would. Of a curve the area between the shares is taken by trapezoids.

    Surrogates are not fitted again to models that forgot: each takes a thousand passes a cell and more.

    References
    ----------
    Adebayo et al., Advances in Neural Information Processing Systems 31 (2018), for models that forgot; Petsiuk, Das
    and Saenko, BMVC (2018), for deletion and insertion curves.

    Examples
    --------
    >>> import geneformer_repro as gf
    >>> why = gf.Explanation.open("why.parquet")
    >>> model = gf.Checkpoint.from_pretrained("runs/type")
    >>> cells = gf.TokenizedDataset.open("cells.tok")
    >>> check = gf.evaluate_explanation(why, model, cells, max_cells=3)
    >>> check.sanity["model"].unique().tolist()[-2:]
    ['random weights', 'permuted labels']
    >>> check.sentences[0].partition(":")[0]
    'The model is no better than guessing on the rows explained'
    """
    require_at_least(max_cells=(max_cells, 1), seed=(seed, 0))
    again = None
    if checkpoint is not None:
        _require_same(why, checkpoint, cells)
        assert cells is not None
        again = Again(why, checkpoint, cells, _drawn(why, cells, max_cells, np.random.default_rng(seed)))
    for name, asked in (("removal", removal), ("random_weights", random_weights), ("permuted", permuted)):
        if asked and again is None:
            raise InputError(f"{name}= asks the model again: give checkpoint= and cells= of the explanation, too.")
    of_genes = why.metadata.get("unit", "gene") == "gene"
    if not of_genes and (removal or drivers is not None or sets is not None):
        raise InputError(
            "The explanation is of sets of genes that were taken away together: curves, drivers= and sets= are of "
            "single genes. Leave them out, or explain genes."
        )
    genes = gene_table(why, cells if of_genes and _has_contrast(why, cells) else None, counts)
    known = None if drivers is None else driver_genes(genes, drivers)  # before the curves, as files may be wrong
    enriched = None if sets is None else gene_set_enrichment(genes, sets)
    points = areas = forgot = pd.DataFrame()
    if again is not None and removal is not False and of_genes:
        points, areas = _curves(why, again, genes, np.random.default_rng(seed))
    if again is not None and checkpoint is not None and cells is not None:
        models = _models(checkpoint, cells, why, again, random_weights, permuted, seed)
        forgot = _forgot(why, again, models)
    check = ExplanationEvaluation(genes, agreement(why), points, areas, forgot, known, enriched)
    check.sentences.extend(_sentences(check, why.metadata))
    return check


def _has_contrast(why: Explanation, cells: TokenizedDataset | None) -> bool:
    """Whether cells say how the expression of a class, or of a goal, differs."""
    column = (why.metadata.get("goal") or {}).get("obs", why.metadata.get("target"))
    return cells is not None and column in cells.obs_columns


def _sentences(check: ExplanationEvaluation, metadata: Mapping[str, Any]) -> Iterator[str]:
    yield verdicts.how_good(metadata)
    yield from verdicts.of_genes(check.genes, metadata)
    yield from verdicts.of_agreement(check.agreement)
    if check.removal.empty:
        yield "Whether the answer rests on these genes was not tested: no genes were taken away."
    else:
        yield from verdicts.of_removal(check.removal)
    if check.sanity.empty:
        yield "Whether the map shows the model or its input was not tested: no model that forgot was explained."
    else:
        yield from verdicts.of_sanity(check.sanity)
    if check.drivers is not None:
        yield str(check.drivers.facts["sentence"])
    if check.sets is not None:
        yield str(check.sets.attrs["sentence"])


def _require_same(why: Explanation, checkpoint: Checkpoint, cells: TokenizedDataset | None) -> None:
    if cells is None:
        raise InputError("checkpoint= asks the model again: give the tokenised cells of the explanation, too (cells=).")
    explained = why.metadata.get("checkpoint")
    if explained is not None and explained != checkpoint.fingerprint:
        raise InputError(
            f"{checkpoint.name} is not the model that was explained (fingerprint {checkpoint.fingerprint[:12]}, of the "
            f"explanation {str(explained)[:12]}). Give that one."
        )


def _drawn(why: Explanation, cells: TokenizedDataset, n: int, rng: np.random.Generator) -> np.ndarray:
    """Return row numbers of some of the cells explained, ascending, as evenly over donors as they allow."""
    donor_of: dict[str, str] = {}
    for block in why.blocks(["cell", "donor"]):
        of_block = block.drop_duplicates("cell")
        donor_of |= dict(zip(of_block["cell"].astype(str), of_block["donor"].astype(object), strict=True))
    names = np.array(list(donor_of), dtype=object)
    every = pd.Index(cells.cell_names)
    if not every.is_unique:
        first = every[every.duplicated()][0]
        raise InputError(f"Several of cells= are called {first!r}; rows of the explanation go by name. Rename cells.")
    rows = every.get_indexer(pd.Index(names))
    if (rows < 0).any():
        raise InputError(
            f"cells= lacks {(rows < 0).sum():,} of the {len(rows):,} cells that were explained (first: "
            f"{names[int(np.argmin(rows))]!r}). Give the dataset that explain was given."
        )
    order = rng.permutation(len(names))
    turn = pd.Series(list(donor_of.values()), dtype=object).fillna("").iloc[order]
    by_turn = np.lexsort((np.arange(len(order)), turn.groupby(turn.to_numpy()).cumcount().to_numpy()))
    return np.sort(rows[order[by_turn[:n]]])


# Curves


def _curves(
    why: Explanation, again: Again, genes: pd.DataFrame, rng: np.random.Generator
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return points and areas of all judges, state by state."""
    attributions = _attributions(why, again)
    names, vocabulary = again.answer.names, again.vocabulary
    n_orders = 2 * len(why.methods) + 2 + N_RANDOM
    n_passes = len(names) * len(_JUDGES) * len(again.tokens) * n_orders * len(SHARES)
    points, areas = [], []
    with progress("curves", total=n_passes, unit="cells") as bar:
        value_of = again.asking(bar.update)
        for number, state in enumerate(names):
            ranked = _ranked(again, attributions, genes, state)
            for operator, way in _JUDGES:
                pooled = partial(masked, mask_token=vocabulary.mask_token, pooled=True)
                alter = pooled if way == "insertion" else operation(operator, vocabulary)
                judge = Judge(operator, alter, _column(value_of, number), inserting=way == "insertion")
                curves = judge.curves(ranked, why.metadata, rng=rng)
                of = {"state": state, "operator": operator, "way": way}
                points.append(curves.points.assign(**of))
                areas.append(curves.areas.assign(**of))
    return pd.concat(points, ignore_index=True), pd.concat(areas, ignore_index=True)


def _column(value_of: Callable[[Any], np.ndarray], number: int) -> Callable[[Any], np.ndarray]:
    return lambda views: value_of(views)[:, number]


def _attributions(why: Explanation, again: Again) -> pd.Series:
    """Return the attributions of the cells that are asked again, by cell, state, method and gene."""
    names, parts = set(again.names), list[pd.DataFrame]()
    for block in why.blocks(["cell", "state", "method", "gene", "value"]):
        parts.append(
            block[block["cell"].isin(names)].astype(dict.fromkeys(["cell", "state", "method", "gene"], object))
        )
    return pd.concat(parts).set_index(["cell", "state", "method", "gene"])["value"].sort_index()


def _ranked(again: Again, attributions: pd.Series, genes: pd.DataFrame, state: str) -> list[RankedCell]:
    """Return the cells with what orders of their genes go by, the same orders in all."""
    changes = None
    if "log2_fold_change" in genes and genes["log2_fold_change"].notna().any():
        of_state = genes[genes["state"] == state]
        changes = of_state.loc[~of_state.index.duplicated(), "log2_fold_change"]
    levels = [attributions.index.get_level_values(name) for name in ("state", "method")]
    explained = set(zip(*levels, strict=True))
    methods = [method for method in again.all_methods if (state, method) in explained]
    ranked = []
    for name, donor, view, ids in zip(again.names, again.donors, again.views, again.gene_ids, strict=True):
        of_cell = attributions.loc[name, state].unstack("gene").reindex(index=methods, columns=ids)
        scores = dict(zip(methods, of_cell.to_numpy(), strict=True))
        of_change = None if changes is None else changes.reindex(ids).to_numpy()
        ranked.append(RankedCell(name, donor, view, orders(scores, len(ids), of_change)))
    return ranked


# Models that forgot


def _models(
    checkpoint: Checkpoint,
    cells: TokenizedDataset,
    why: Explanation,
    again: Again,
    random_weights: bool | None,
    permuted: bool | Checkpoint | None,
    seed: int,
) -> Iterator[tuple[str, Checkpoint]]:
    """Yield the models that are asked the same, with what they forgot."""
    if random_weights is not False:
        yield from forgetting(checkpoint, seed=seed)
    if isinstance(permuted, Checkpoint):
        yield PERMUTED_LABELS, permuted
        return
    fitting = _fitting(checkpoint, cells, why.metadata.get("target"))
    if permuted and fitting is None:
        raise InputError(
            "permuted=True fits a last layer to permuted labels, of a classifier of cells whose target is classes or a "
            "number and a column of the cells. Give such cells, or a checkpoint fine-tuned on permuted labels."
        )
    if permuted is not False and fitting is not None:
        rng = np.random.default_rng(seed)
        rows = fitting if len(fitting) <= MOST_FITTED else np.sort(rng.choice(fitting, MOST_FITTED, replace=False))
        target = str(why.metadata["target"])
        labels = cells.labels(target).iloc[rows].tolist()
        yield PERMUTED_LABELS, with_permuted_labels(checkpoint, target, again.vectors(rows), labels, seed=seed)


def _fitting(checkpoint: Checkpoint, cells: TokenizedDataset, target: str | None) -> np.ndarray | None:
    """Return the rows of cells whose labels a last layer could be fitted to; None where it cannot be."""
    if not isinstance(checkpoint.model, CellClassifier) or target is None or target not in cells.obs_columns:
        return None
    learned = next(one for one in checkpoint.model.head.targets if one.name == target)
    if not isinstance(learned, Classes | Number):
        return None
    labels = cells.labels(target)
    known = labels.isin(learned.classes) if isinstance(learned, Classes) else labels.notna()
    rows = np.flatnonzero(known.to_numpy() & cells.has_gene)
    return rows if labels.iloc[rows].nunique() > 1 else None


def _forgot(why: Explanation, again: Again, models: Iterator[tuple[str, Checkpoint]]) -> pd.DataFrame:
    made = list(models)
    if not made or not again.methods:
        return pd.DataFrame()
    with progress("explain models that forgot", total=len(made) * again.n_passes, unit="passes") as bar:
        explained = ((name, partial(again.explained, model, bar.update)) for name, model in made)
        return sanity(why, explained)
