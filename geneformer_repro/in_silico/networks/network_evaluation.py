"""A gene network against known edges, beside everything that knows less than it does.

How many known edges a factor and a gene have finds known edges better than anything that looks at cells (AUROC 0.86
on TRRUST in pbmc3k, |Spearman| 0.54), and choosing among all genes or among known targets moves precision more than the
choice of a method does. So the leading score compares a factor's edges with its other genes of like detection and
place; both choices of targets are always there; every score has its null of rewired references; and the sentence of
the result is about what is left beyond co-expression in the same cells. Pairs that are no known edge count as wrong,
though many are only not known yet, so the ceiling is below 1 for everybody.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from geneformer_repro.arguments import require_at_least, typed
from geneformer_repro.checkpoint_files import CHECKPOINT_PATH, CHECKPOINT_WARNING
from geneformer_repro.errors import InputError
from geneformer_repro.in_silico.networks import edge_scores as scores
from geneformer_repro.in_silico.networks.evaluated_pairs import FEWEST_SOURCES, Part, Result, Results, Universe
from geneformer_repro.in_silico.networks.gene_network import GeneNetwork
from geneformer_repro.in_silico.networks.known_edges import KnownEdges, overlap_of, read_known_edges, read_perturbed
from geneformer_repro.in_silico.networks.network_baselines import Expression
from geneformer_repro.in_silico.networks.network_expression import FEWEST_CELLS, CellCounts
from geneformer_repro.in_silico.networks.pair_scores import (
    BOOSTING,
    NAMES,
    NETWORK,
    OF_MODEL,
    CellScores,
    Method,
    ScoredPairs,
    methods_of,
    scored_pairs,
    weights_of,
)
from geneformer_repro.tokenizer.dataset import TokenizedDataset
from geneformer_repro.tokenizer.genes import GivenGenes, reconcile
from geneformer_repro.tokenizer.readers import open_counts

if TYPE_CHECKING:
    from anndata import AnnData

    from geneformer_repro.checkpoint import Checkpoint

logger = logging.getLogger(__name__)

Table = pd.DataFrame | str | Path
PERTURBED = "perturbed"
LEAST_GAIN = 0.02
"""Matched AUROC beyond co-expression below which a network is said to show nothing beyond it."""
NOTHING_BEYOND = "no evidence of regulation beyond co-expression"


@typed
def evaluate_network(
    net: GeneNetwork | pd.DataFrame,
    known: Table | Mapping[str, Table],
    *,
    counts: "AnnData | str | Path",
    state: str | None = None,
    cells: TokenizedDataset | None = None,
    donor: str | None = None,
    beside: Mapping[str, GeneNetwork | pd.DataFrame] | None = None,
    checkpoint: "Checkpoint | None" = None,
    confidence: Sequence[str] | None = None,
    perturbed: Table | None = None,
    boosted_targets: int | None = 500,
    n_rewirings: int = 1000,
    ties: scores.Ties = "expected",
    max_cells: int = 5000,
    seed: int = 0,
) -> pd.DataFrame:
    """Score a gene network on known edges, with everything that knows less than it in the same table.

    Parameters
    ----------
    net
        The network; or a table of weights of any other method, sources × targets, by gene id or symbol, NaN where a
        pair has none.
    known
        Known edges: a table or file with a column of sources (``source``, ``tf`` …) and one of targets (``target``,
        ``gene`` …), ids or symbols, and ``sign`` (or ``mor``), ``confidence``, ``set``, ``version``, ``licence`` where
        they are there. Several references by name are scored one by one, and their overlap is said. ``{}`` where only
        `perturbed` is asked about.
    counts
        Raw counts of the cells of the network: what co-expression is computed on. Its obs has the columns of states
        and donors that the network was made with.
    state
        Which of the network's states; may be left out where there is one.
    cells
        The tokenised cells that the network was made of, where `counts` hold others of that state, too.
    donor
        Obs column of donors in `counts`; of a network that was made with one, that one.
    beside
        Other networks of the same cells to set beside it: from random weights, from the model before fine-tuning,
        raw attention, deletion. Pairs that one of them lacks are scored for none.
    checkpoint
        The model, for the cosine of its token embeddings.
    confidence
        Levels of the references to use; None all.
    perturbed
        What changed when genes were perturbed: ``perturbed`` (or ``source``), ``target`` (or ``gene``), ``p``, and the
        size of the effect (``wasserstein``, ``log2fc`` …). Scored as a reference of its own, "perturbed", whose edges
        are the targets with a false discovery rate below 0.05, among the pairs that were measured.
    boosted_targets
        How many targets boosted trees are fitted for, those with a known edge first (0.15 s each); 0 for none, None for
        all.
    n_rewirings
        Rewired references in the null, and exchanges of labels.
    ties
        Of early precision: "expected", or "beeline", which takes all pairs that share the last score.
    max_cells
        Co-expression is computed on so many cells, drawn from more.
    seed
        Of everything that is drawn.

    Returns
    -------
    A row a reference, universe of pairs and method. Universes: ``open``, all targets that the network has a weight for;
    ``closed``, those with a known edge; ``boosted``, those that trees were fitted for, where these are not all of
    either. The sources are those of the network with a known edge. Every method is scored on the same pairs.

    - ``matched``: the leading score. AUROC within strata of a source, 20 bins of the target's detection and 4 of its
      place, weighted by edges × other pairs, with its 95 % interval over sources ``matched_low`` to ``matched_high``;
      ``matched_detection`` the same without place. 0.5 is chance.
    - ``beyond_coexpression``: `matched` less that of the absolute Spearman correlation, with ``_low`` and ``_high``.
    - ``auroc`` over all pairs, ``_low``, ``_high``; ``ap``, average precision over distinct scores, ``ap_ratio``, that
      over the density of edges; ``epr``, precision among as many pairs as there are edges, over the density; both with
      ``_low`` and ``_high``.
    - ``per_source``: mean over sources with 5 edges of their own AUROC, ``_low``, ``_high``, ``per_source_median``,
      ``n_sources_scored``.
    - ``direction``: chance that an edge scores above its reverse (0.5 for what has no direction) on ``n_directed``
      edges whose reverse is unknown; ``sign``: AUROC of activating against repressing edges, on ``n_signed``.
    - ``ap_z``, ``ap_p``, ``matched_z``, ``matched_p``: against rewired references, in which each source and target has
      as many edges as before; p = (b + 1) / (m + 1), one-sided. ``ap_null_low`` … ``matched_null_high``: 95 % of the
      null. NaN for "degree product", which knows the reference. ``matched_label_p``: against targets that exchange
      names within the strata.
    - Of "perturbed" with a size of effects: ``mean_effect`` of the best pairs, as many as there are edges (with
      Wasserstein distances CausalBench's first number), ``mean_effect_of_all``, and ``false_omission_rate``, the share
      of edges among the other pairs (its second; lower is better).
    - ``n_sources``, ``n_targets``, ``n_pairs``, ``n_edges``, ``n_cells``, ``n_donors`` (0: none known).

    Sources whose known edges chose heads (``gene_network(select=…)``), of this network or one `beside`, are left out.

    ``attrs``: ``sentences`` (a reference: what the table says of it), ``n_left_out`` (a reference: such sources),
    ``lost`` (a reference: rows that were not used, and why), ``overlap``, ``missing_pairs``, ``stability`` (median
    Spearman correlation of the weights between donors), ``stability_of_halves`` (of those of every other cell with
    those of the rest), ``of_sources``, ``curves`` (what the page draws), ``said`` (of the references), ``seed``.

    Raises
    ------
    InputError
        A state, column or gene is missing, the counts are not those of the network, or no edge can be scored.
    DataFormatError
        A table of edges lacks its columns.

    See Also
    --------
    gene_network : Makes a network.
    plot_network_evaluation : Draws the table.
    write_network_evaluation : A page of it.

    Notes
    -----
    A bin holds like numbers of targets, and targets of one detection rate share a bin. Intervals: sources are drawn
    with replacement, 2,000 times. An edge is a hypothesis; a score on known edges says how often such hypotheses were
    had before.

    References
    ----------
    Pratapa et al., Nature Methods 17, 147 (2020), for early precision.

    Examples
    --------
    >>> import pandas as pd
    >>> import geneformer_repro as gf
    >>> cells = gf.datasets.pbmc700()
    >>> sources, targets = cells.var_names[:12], cells.var_names
    >>> known = pd.DataFrame({"source": sources.repeat(8), "target": targets[20:116]})
    >>> weights = pd.DataFrame(0.0, index=sources, columns=targets)
    >>> table = gf.evaluate_network(weights, known, counts=cells, boosted_targets=0, n_rewirings=20)
    >>> table.loc[("known", "open", "network"), ["auroc", "matched", "epr"]].tolist()
    [0.5, 0.5, 1.0]
    >>> table.attrs["sentences"]["known"].partition(" (")[0]
    'no evidence of regulation beyond co-expression'
    """
    least = {"n_rewirings": (n_rewirings, 1), "max_cells": (max_cells, FEWEST_CELLS), "seed": (seed, 0)}
    _require_options(ties, least | {"boosted_targets": (boosted_targets, 0)})
    rng = np.random.default_rng(seed)
    others = dict(beside or {})
    if taken := sorted(set(others) & set(NAMES)):
        raise InputError(f"beside= has a network called {taken[0]!r}, as another row of the table. Name it otherwise.")
    state = _state_of(net, state)
    genes = _genes_of(net, counts)
    expression = _expression_of(net, state, genes, counts, cells, donor, max_cells, rng)
    weights = {name: weights_of(one, _state_of(one, state), genes) for name, one in {NETWORK: net, **others}.items()}
    parts = []
    references = _references(known, perturbed, genes, confidence)
    weights, n_choosers = _without_choosers(weights, references, [net, *others.values()])
    of_references = [scored_pairs(weights, reference, genes) for reference in references]
    of_cells = CellScores.of(expression, of_references)
    for reference, pairs in zip(references, of_references, strict=True):
        methods = methods_of(
            net, state, pairs, of_cells, checkpoint=checkpoint, boosted_targets=boosted_targets, seed=seed
        )
        strata = _strata(net, state, expression, pairs)
        parts += [
            Part(reference.name, universe, scored, pairs, methods, strata, n_rewirings, ties, seed).results()
            for universe, scored in _universes(pairs, methods).items()
        ]
    table = pd.concat([part.table() for part in parts]).set_index(["reference", "universe", "method"])
    table = table.assign(n_cells=expression.values.shape[0], n_donors=expression.n_donors)
    facts = {
        **_facts(table, references, parts, n_choosers),
        "of_models": [*weights, *OF_MODEL],
        "stability": _stability(net, state),
        "stability_of_halves": _stability_of_halves(net, state),
        "facts": _made(net, state, expression, n_rewirings),
        "seed": seed,
    }
    for name, sentence in facts["sentences"].items():
        logger.info("%s: %s", name, sentence)
    table.attrs |= facts
    return table


# What is compared, and where


def _without_choosers(
    weights: Mapping[str, pd.DataFrame], references: Sequence[KnownEdges], nets: Sequence[GeneNetwork | pd.DataFrame]
) -> tuple[dict[str, pd.DataFrame], dict[str, int]]:
    """Leave out the sources whose known edges chose heads of a network; say how many each reference has of them.

    Raises
    ------
    InputError
        All sources of a reference chose.
    """
    selected = [net.metadata.get("selected") or {} for net in nets if isinstance(net, GeneNetwork)]
    choosers = sorted({gene for one in selected for gene in one.get("sources", ())})
    all_sources, n_choosers = weights[NETWORK].index, {}
    for reference in references:
        sources = all_sources[all_sources.isin(reference.edges["source"])]
        n_choosers[reference.name] = int(sources.isin(choosers).sum())
        if len(sources) and n_choosers[reference.name] == len(sources):
            raise InputError(
                f"known[{reference.name!r}]: its edges chose heads of the network: all {len(sources)} of its sources "
                "that the network has did (select=). What was chosen on edges cannot be judged on them: give a "
                "reference with other sources, or a network without select=."
            )
    return {name: one.drop(index=choosers, errors="ignore") for name, one in weights.items()}, n_choosers


def _require_options(ties: str, least: Mapping[str, tuple[int | None, int]]) -> None:
    if ties not in get_args(scores.Ties):
        raise InputError(f"ties must be one of {', '.join(map(repr, get_args(scores.Ties)))}, found {ties!r}.")
    require_at_least(**least)


def _state_of(net: GeneNetwork | pd.DataFrame, state: str | None) -> str | None:
    return net.one_state(state) if isinstance(net, GeneNetwork) else state


def _genes_of(net: GeneNetwork | pd.DataFrame, counts: Any) -> GivenGenes:
    if isinstance(net, GeneNetwork):
        return net.known_genes
    found = reconcile(open_counts(counts), None).table.query("gene_id != ''").drop_duplicates("gene_id")
    return GivenGenes.named(found["gene_id"], found["name"])


def _expression_of(
    net: GeneNetwork | pd.DataFrame,
    state: str | None,
    genes: GivenGenes,
    counts: Any,
    cells: TokenizedDataset | None,
    donor: str | None,
    max_cells: int,
    rng: np.random.Generator,
) -> Expression:
    """Read the cells of the network's groups, and refuse others."""
    made = net.metadata if isinstance(net, GeneNetwork) else {}
    keep: dict[str, Sequence[str]] = {}
    if isinstance(net, GeneNetwork) and state is not None:
        donors = net.donors[state]
        keep |= {made["by"]: [state]} if made.get("by") else {}
        keep |= {made["donor"]: donors} if made.get("donor") and donors else {}
    names = None if cells is None else list(cells.cell_names)
    found = CellCounts.read(
        counts, genes, keep=keep, donor=donor or made.get("donor"), cell_names=names, max_cells=max_cells, rng=rng
    )
    if isinstance(net, GeneNetwork) and state is not None:
        n_cells = net.metadata["states"][state]["n_cells"]
        if found.n_found < n_cells or (cells is None and found.n_found != n_cells):
            raise InputError(
                f"counts: the network is of {n_cells:,} cells in state {state!r}, these are {found.n_found:,}. "
                "Co-expression is compared in the same cells: give the counts of these alone, or also the tokenised "
                "cells: cells= (--cells)."
            )
    if len(found.totals) < FEWEST_CELLS:
        raise InputError(
            f"counts: {len(found.totals)} cells are compared, and correlations need {FEWEST_CELLS}. Give the counts of "
            "more cells, or evaluate a state with more."
        )
    return Expression.of(found)


def _references(
    known: Table | Mapping[str, Table], perturbed: Table | None, genes: GivenGenes, confidence: Sequence[str] | None
) -> list[KnownEdges]:
    if isinstance(known, pd.DataFrame):
        tables: dict[str, Table] = {"known": known}
    elif isinstance(known, Mapping):
        tables = dict(known)
    else:
        tables = {Path(known).stem: known}
    if PERTURBED in tables:
        raise InputError(f"known= has a reference called {PERTURBED!r}, as that of perturbed=. Name it otherwise.")
    if not tables and perturbed is None:
        raise InputError("There is nothing to score the network on: give known= or perturbed=.")
    references = [read_known_edges(of, genes, name=name, confidence=confidence) for name, of in tables.items()]
    return references + ([] if perturbed is None else [read_perturbed(perturbed, genes, name=PERTURBED)])


def _strata(
    net: GeneNetwork | pd.DataFrame, state: str | None, cells: Expression, pairs: ScoredPairs
) -> tuple[np.ndarray, np.ndarray]:
    """Return the bin of each target of detection and place, and of detection alone."""
    detection, place = cells.detection[pairs.targets], cells.mean_place[pairs.targets]
    if isinstance(net, GeneNetwork) and state is not None:
        nodes = net.node_table(state).iloc[pairs.targets]
        detection, place = nodes["n_cells"].to_numpy(float), nodes["mean_place"].to_numpy(float)
    return scores.matched_bins(detection, place), scores.bins_of(detection, scores.N_DETECTION)


def _universes(pairs: ScoredPairs, methods: Sequence[Method]) -> dict[Universe, np.ndarray]:
    """Return the pairs of each universe, sources × targets."""
    closed = pairs.scored & pairs.known.any(axis=0)
    universes: dict[Universe, np.ndarray] = {"open": pairs.scored, "closed": closed}
    for method in methods:
        fitted = pairs.scored & np.isfinite(method.score)
        if method.name == BOOSTING and not fitted[closed].all():
            universes["boosted"] = fitted
    return universes


# What the table says


def _facts(
    table: pd.DataFrame, references: Sequence[KnownEdges], parts: Sequence[Results], n_choosers: Mapping[str, int]
) -> dict[str, Any]:
    n_missing = {part.reference: part.n_missing for part in parts}
    n_lost = {part.reference: part.n_lost for part in parts}
    return {
        "sentences": {
            known.name: sentence_of(of_methods(table, known.name, "open")) + _left_out(n_choosers[known.name])
            for known in references
        },
        "n_left_out": dict(n_choosers),
        "lost": {
            known.name: {**known.lost, "of a pair that is not scored": n_lost[known.name]} for known in references
        },
        "said": {known.name: known.described for known in references},
        "missing_pairs": n_missing,
        "overlap": {
            f"{first.name}, {second.name}": overlap_of(first, second) for first, second in combinations(references, 2)
        },
        "of_sources": _nested(parts, lambda one: one.of_sources),
        "sources": {part.reference: part.sources for part in parts},
        "curves": _nested(parts, lambda one: one.curve),
    }


def _made(net: GeneNetwork | pd.DataFrame, state: str | None, cells: Expression, n_null: int) -> dict[str, Any]:
    """Return what the page says of the network and of the comparison."""
    made: dict[str, Any] = net.metadata if isinstance(net, GeneNetwork) else {}
    told: dict[str, Any] = {
        name: made[name]
        for name in (
            "method",
            "scale",
            "weight",
            "checkpoint",
            CHECKPOINT_PATH,
            CHECKPOINT_WARNING,
            "cells",
            "min_cells",
        )
        if name in made
    }
    return {
        **told,
        "state": "all" if state is None else state,
        "cells compared": cells.values.shape[0],
        "donors": cells.n_donors,
        "rewired references": n_null,
    }


def of_methods(table: pd.DataFrame, reference: str, universe: str) -> pd.DataFrame:
    """Return the rows of a reference and universe, by method."""
    rows = table.reset_index()
    chosen = rows["reference"].eq(reference) & rows["universe"].eq(universe)
    return rows[chosen].set_index("method")


def _nested(parts: Sequence[Results], what: Callable[[Result], Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return something of each method by reference and universe."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for part in parts:
        of_methods = {name: what(one) for name, one in part.methods.items()}
        found.setdefault(part.reference, {})[part.universe] = of_methods
    return found


def sentence_of(of_methods: pd.DataFrame) -> str:
    """Say what a network shows of regulation beyond co-expression in the same cells.

    Parameters
    ----------
    of_methods
        A row a method, of one reference and universe.
    """
    row = of_methods.loc[NETWORK]
    gain, low, high = (row[f"beyond_coexpression{end}"] for end in ("", "_low", "_high"))
    if np.isnan(gain):
        return "nothing can be said: no source has a known edge beside another target of like detection and place."
    interval = f"[{low:+.3f}, {high:+.3f}]" if np.isfinite(low) else f"[no interval below {FEWEST_SOURCES} sources]"
    told = f"matched AUROC {gain:+.3f} {interval}"
    if gain >= LEAST_GAIN and low > 0:
        return f"Beyond co-expression of the same cells: {told}."
    return f"{NOTHING_BEYOND} ({told} beside that of |Spearman| in the same cells)."


def _left_out(n_choosers: int) -> str:
    """Say that sources whose edges chose heads are not scored."""
    return f" {n_choosers} sources whose edges chose heads are left out." if n_choosers else ""


def _stability(net: GeneNetwork | pd.DataFrame, state: str | None) -> float:
    """Return the median over pairs of donors of Spearman's correlation between their weights; NaN below two donors."""
    if not isinstance(net, GeneNetwork) or state is None:
        return np.nan
    of_donors = [net.matrix(state, donor).to_numpy().ravel() for donor in net.donors[state]]
    found = [_agreement(first, second) for first, second in combinations(of_donors, 2)]
    return float(np.nanmedian(found)) if found and np.isfinite(found).any() else np.nan


def _stability_of_halves(net: GeneNetwork | pd.DataFrame, state: str | None) -> float:
    """Return Spearman's correlation of the weights of two halves of the cells; NaN where a network does not say it."""
    told = net.metadata["states"][state].get("agreement_of_halves") if isinstance(net, GeneNetwork) else None
    return np.nan if told is None else float(told)


def _agreement(first: np.ndarray, second: np.ndarray) -> float:
    both = np.isfinite(first) & np.isfinite(second)
    return float(spearmanr(first[both], second[both]).statistic) if both.sum() > 2 else np.nan
