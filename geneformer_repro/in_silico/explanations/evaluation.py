"""Whether to believe an explanation: one call for its table of genes and for all that may speak against it."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from geneformer_repro.arguments import require_at_least, typed
from geneformer_repro.checkpoint import Checkpoint
from geneformer_repro.drugs import Drugs
from geneformer_repro.errors import InputError
from geneformer_repro.in_silico.explanations import verdicts
from geneformer_repro.in_silico.explanations.again import Again, Taking
from geneformer_repro.in_silico.explanations.agreement import OF_CHARACTERS, agreement
from geneformer_repro.in_silico.explanations.drivers import DriverGenes, driver_genes
from geneformer_repro.in_silico.explanations.enrichment import gene_set_enrichment
from geneformer_repro.in_silico.explanations.explanation import Explanation
from geneformer_repro.in_silico.explanations.families import again_of
from geneformer_repro.in_silico.explanations.gene_table import UNSIGNED, gene_table
from geneformer_repro.in_silico.explanations.removal import (
    BY_CHANGE,
    N_RANDOM,
    SHARES,
    Altered,
    Judge,
    RankedRow,
    orders,
)
from geneformer_repro.in_silico.explanations.sanity import PERMUTED_LABELS, sanity
from geneformer_repro.progress import progress
from geneformer_repro.responses import Responses
from geneformer_repro.tokenizer.dataset import TokenizedDataset

logger = logging.getLogger(__name__)

MAX_CELLS = 30


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
    cells: TokenizedDataset | ad.AnnData | pd.DataFrame | str | Path | None = None,
    *,
    drugs: Drugs | pd.DataFrame | str | Path | None = None,
    responses: Responses | pd.DataFrame | str | Path | None = None,
    patients: str | Path | None = None,
    reading: Mapping[str, Any] | None = None,
    counts: ad.AnnData | str | Path | None = None,
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
        The cells that `explain` was given, or samples. With cells of other classes, and counts, the table of genes says
        how expression differs.
    drugs, responses, patients, reading
        As `explain` was given them. With responses of drugs the output of a network can be fitted to permuted ones.
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
        this checkpoint, which you fine-tuned on permuted labels. None: where `cells` have labels of the target.
    max_cells
        Of the rows explained, so many are asked again, evenly over donors. Each altered patient is read with all cells.
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

    Samples, which read values, have none: genes get the median (of the cohort), or the mean of the training samples,
    and the simple order is by the distance from that mean. Of drugs, characters go as well. Of patients a gene goes
    from all cells; the simple order is by how many have it.

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
    >>> check = gf.evaluate_explanation(why, model, cells, max_cells=1)
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
        draw = partial(_drawn, why, n=max_cells, rng=np.random.default_rng(seed))
        again = again_of(
            why, checkpoint, cells, draw, drugs=drugs, responses=responses, patients=patients, reading=reading or {}
        )
    for name, asked in (("removal", removal), ("random_weights", random_weights), ("permuted", permuted)):
        if asked and again is None:
            raise InputError(f"{name}= asks the model again: give checkpoint= and cells= of the explanation, too.")
    of_genes = why.metadata.get("unit", "gene") == "gene"
    if not of_genes and (removal or drivers is not None or sets is not None):
        raise InputError(
            "The explanation is of sets of genes that were taken away together: curves, drivers= and sets= are of "
            "single genes. Leave them out, or explain genes."
        )
    genes = gene_table(why, _with_contrast(why, cells) if of_genes else None, counts)
    known = None if drivers is None else driver_genes(genes, drivers)  # before the curves, as files may be wrong
    enriched = None if sets is None else gene_set_enrichment(genes, sets)
    points = areas = forgot = pd.DataFrame()
    if again is not None and removal is not False and of_genes:
        points, areas = _curves(again, genes, np.random.default_rng(seed))
    if again is not None:
        forgot = _forgot(again, _models(again, random_weights, permuted, seed))
    check = ExplanationEvaluation(genes, agreement(why), points, areas, forgot, known, enriched)
    check.sentences.extend(_sentences(check, why.metadata))
    return check


def _with_contrast(why: Explanation, cells: Any) -> TokenizedDataset | None:
    """Return cells that say how the expression of a class, or of a goal, differs; None where these do not."""
    column = (why.metadata.get("goal") or {}).get("obs", why.metadata.get("target"))
    return cells if isinstance(cells, TokenizedDataset) and column in cells.obs_columns else None


def _sentences(check: ExplanationEvaluation, metadata: Mapping[str, Any]) -> Iterator[str]:
    yield verdicts.how_good(metadata)
    yield from verdicts.of_genes(check.genes, metadata)
    yield from verdicts.of_agreement(check.agreement, metadata.get("rows_are", "cells"))
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


def _require_same(why: Explanation, checkpoint: Checkpoint, cells: Any) -> None:
    if cells is None:
        raise InputError(
            "checkpoint= asks the model again: give the tokenised cells, or samples, of the explanation, too (cells=)."
        )
    explained = why.metadata.get("checkpoint")
    if explained is not None and explained != checkpoint.fingerprint:
        raise InputError(
            f"{checkpoint.name} is not the model that was explained (fingerprint {checkpoint.fingerprint[:12]}, of the "
            f"explanation {str(explained)[:12]}). Give that one."
        )


def _drawn(why: Explanation, there: np.ndarray, n: int, rng: np.random.Generator) -> list[str]:
    """Return the names of some of the rows explained, in the order in which they are there, evenly over donors."""
    donor_of: dict[str, str] = {}
    for block in why.blocks(["cell", "donor"]):
        of_block = block.drop_duplicates("cell")
        donor_of |= dict(zip(of_block["cell"].astype(str), of_block["donor"].astype(object), strict=True))
    names = np.array(list(donor_of), dtype=object)
    every = pd.Index(there)
    if why.metadata.get("family") == "pairs":  # a sample has a row for every 16 drugs
        every = every.unique()
    if not every.is_unique:
        first = every[every.duplicated()][0]
        raise InputError(f"Several of cells= are called {first!r}; rows of the explanation go by name. Rename cells.")
    rows = every.get_indexer(pd.Index(names))
    if (rows < 0).any():
        raise InputError(
            f"cells= lacks {(rows < 0).sum():,} of the {len(rows):,} {why.rows_are} that were explained (first: "
            f"{names[int(np.argmin(rows))]!r}). Give the dataset that explain was given."
        )
    order = rng.permutation(len(names))
    turn = pd.Series(list(donor_of.values()), dtype=object).fillna("").iloc[order]
    by_turn = np.lexsort((np.arange(len(order)), turn.groupby(turn.to_numpy()).cumcount().to_numpy()))
    return [str(every[row]) for row in np.sort(rows[order[by_turn[:n]]])]


# Curves


def _curves(again: Again[Any], genes: pd.DataFrame, rng: np.random.Generator) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return points and areas of all judges, state by state."""
    attributions = _attributions(again)
    names, takings = again.states, again.takings_here
    has_changes = "log2_fold_change" in genes and bool(genes["log2_fold_change"].notna().any())
    n_orders = sum(1 if method in UNSIGNED else 2 for method in again.why.methods) + 1 + has_changes + N_RANDOM
    n_passes = len(names) * len(takings) * again.n_read * n_orders * len(SHARES)
    points, areas = [], []
    with progress("curves", total=n_passes, unit="passes") as bar:
        for number, state in enumerate(names):
            for taking in takings:
                rows = _ranked(again, attributions, genes, number, taking)
                ask = partial(_asked, again, taking, number, bar.update)
                judge = Judge(taking.operator, ask, inserting=taking.way == "insertion")
                curves = judge.curves(rows, again.readable.metadata, rng=rng)
                of = {"state": state, "operator": taking.operator, "way": taking.way}
                points.append(curves.points.assign(**of))
                areas.append(curves.areas.assign(**of))
    return pd.concat(points, ignore_index=True), pd.concat(areas, ignore_index=True)


def _asked(
    again: Again[Any], taking: Taking, state: int, show: Callable[[int], object], altered: Iterator[Altered]
) -> np.ndarray:
    return again.answers(taking, state, altered, show)


def _attributions(again: Again[Any]) -> pd.Series:
    """Return the attributions of the rows that are asked again, by cell, state, method and gene."""
    names, parts = set(again.names), list[pd.DataFrame]()
    for block in again.readable.blocks(["cell", "state", "method", "gene", "value"]):
        of_units = block[block["cell"].isin(names) & block["gene"].notna()]
        parts.append(of_units.astype(dict.fromkeys(["cell", "state", "method", "gene"], object)))
    return pd.concat(parts).set_index(["cell", "state", "method", "gene"])["value"].sort_index()


def _ranked(
    again: Again[Any], attributions: pd.Series, genes: pd.DataFrame, number: int, taking: Taking
) -> list[RankedRow]:
    """Return the rows with what orders of their genes go by, the same orders in all."""
    state = again.states[number]
    changes = None
    if "log2_fold_change" in genes and genes["log2_fold_change"].notna().any():
        of_state = genes[genes["state"] == state]
        changes = of_state.loc[~of_state.index.duplicated(), "log2_fold_change"]
    levels = [attributions.index.get_level_values(name) for name in ("state", "method")]
    explained = {method for of, method in zip(*levels, strict=True) if of == state}
    explained = {method for method in explained if method.endswith(OF_CHARACTERS) == taking.of_characters}
    methods = [method for method in again.all_methods if method in explained]
    ranked = []
    for i, (name, donor) in enumerate(zip(again.names, again.donors, strict=True)):
        units = again.units(i, number, taking)
        of_row = attributions.loc[name, state].unstack("gene").reindex(index=methods, columns=units.names)
        simple = dict(units.simple)
        if changes is not None:
            simple[BY_CHANGE] = changes.reindex(list(units.names)).to_numpy()
        scores = dict(zip(methods, of_row.to_numpy(), strict=True))
        ranked.append(RankedRow(name, donor, units.free, orders(scores, simple)))
    return ranked


# Models that forgot


def _models(
    again: Again[Any], random_weights: bool | None, permuted: bool | Checkpoint | None, seed: int
) -> Iterator[tuple[str, Any]]:
    """Yield the models that are asked the same, with what they forgot."""
    if random_weights is not False:
        yield from again.forgetting(seed)
    if isinstance(permuted, Checkpoint):
        yield PERMUTED_LABELS, again.given(permuted)
    elif permuted is not False and (model := again.permuted(seed, required=bool(permuted))) is not None:
        yield PERMUTED_LABELS, model


def _forgot(again: Again[Any], models: Iterator[tuple[str, Any]]) -> pd.DataFrame:
    made = list(models)
    if not made or not again.methods:
        return pd.DataFrame()
    with progress("explain models that forgot", total=len(made) * again.n_passes, unit="passes") as bar:
        explained = ((name, partial(again.explained, model, bar.update)) for name, model in made)
        return sanity(again.readable, explained)
