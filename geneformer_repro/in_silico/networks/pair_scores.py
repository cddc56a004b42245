"""All scores of the pairs that a network is evaluated on: of networks, and of what knows no model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from geneformer_repro.errors import InputError
from geneformer_repro.in_silico.networks import network_baselines as baselines
from geneformer_repro.in_silico.networks.gene_network import GeneNetwork
from geneformer_repro.in_silico.networks.known_edges import KnownEdges
from geneformer_repro.in_silico.networks.network_expression import Correlation, correlation
from geneformer_repro.tokenizer.genes import GivenGenes, gene_ids_of

if TYPE_CHECKING:
    from geneformer_repro.checkpoint import Checkpoint

NETWORK, CO_EXPRESSION, DEGREES, BOOSTING = "network", "|Spearman|", "degree product", "boosted trees"
BEFORE_GENES, SOURCE_ALONE, TOKENS = "before gene effects", "source effect alone", "token cosine"
OF_MODEL = (BEFORE_GENES, SOURCE_ALONE, TOKENS)
"""Scores that are of the model, beside its network."""
PEARSON, OF_DONORS, MUTUAL_RANK = "|Pearson|", "|Spearman|, mean of donors", "mutual rank"
PROXIMITY, DETECTION, MEAN = "rank proximity", "detection product", "mean product"
NAMES = (
    NETWORK, *OF_MODEL, CO_EXPRESSION, PEARSON, OF_DONORS, MUTUAL_RANK, PROXIMITY, DETECTION, MEAN, DEGREES, BOOSTING,
)  # fmt: skip
"""Of all methods but other networks."""
_CORRELATIONS: tuple[Correlation, ...] = ("spearman", "pearson")
SHRUNK_BY = 10
"""A network's edges are ranked by weight · n / (n + so many) of n cells."""


class Method(NamedTuple):
    """A score of pairs, sources × targets."""

    name: str
    score: np.ndarray
    """Higher for an edge; NaN where the method was not asked."""
    signed: np.ndarray | None = None
    """Above 0 for activation, where that is not `score`."""


@dataclass(frozen=True, eq=False)
class ScoredPairs:
    """The pairs of a reference's sources and all targets that every network has a weight for."""

    genes: GivenGenes
    sources: np.ndarray
    """Place of each source among the genes."""
    targets: np.ndarray
    """Place of each target."""
    weights: dict[str, np.ndarray]
    """Of each network, sources × targets."""
    scored: np.ndarray
    """Whether a pair is scored: every network has a weight, and it is no gene with itself."""
    known: np.ndarray
    """Whether a scored pair is a known edge."""
    sign: np.ndarray
    """1, -1 or 0 of a known edge."""
    effect: np.ndarray
    """Size of what a perturbation of the source did to the target; NaN where nothing is told."""
    n_missing: int
    """Pairs of these sources that are not scored: some network has no weight, or nobody measured them."""
    n_lost: int
    """Known edges of these sources that are not scored."""

    @property
    def source_ids(self) -> np.ndarray:
        """Gene id of each source."""
        return np.array(self.genes.gene_ids, dtype=object)[self.sources]


def scored_pairs(weights: Mapping[str, pd.DataFrame], known: KnownEdges, genes: GivenGenes) -> ScoredPairs:
    """Find the pairs that are scored.

    Parameters
    ----------
    weights
        Of each network, sources × targets, by gene id; the first is the one that is evaluated.
    known
        The reference.
    genes
        All genes.

    Raises
    ------
    InputError
        No known edge can be scored.
    """
    first = next(iter(weights.values()))
    source_ids = first.index[first.index.isin(known.edges["source"])]
    aligned = {
        name: of.reindex(index=source_ids, columns=first.columns).to_numpy(float) for name, of in weights.items()
    }
    is_itself = source_ids.to_numpy()[:, None] == first.columns.to_numpy()
    scored = np.logical_and.reduce([~is_itself, *(np.isfinite(of) for of in aligned.values())])
    effect = np.full(scored.shape, np.nan)
    if known.measured is not None:
        of_measured, row, column = _placed(known.measured, source_ids, first.columns)
        looked_at = np.zeros_like(scored)
        looked_at[row, column], effect[row, column] = True, of_measured["effect"]
        scored &= looked_at
    signs = np.full(scored.shape, np.nan)
    edges, row, column = _placed(known.edges, source_ids, first.columns)
    signs[row, column] = edges["sign"]
    is_known = scored & ~np.isnan(signs)
    if not is_known.any():
        raise InputError(
            f"known[{known.name!r}]: none of its {len(known):,} edges can be scored: {len(source_ids):,} of its "
            f"sources are sources of the network, and {len(edges):,} edges lie within it, all of pairs without "
            "a weight. Make the network with these sources, or with a smaller min_cells."
        )
    rows, columns = is_known.any(axis=1), scored[is_known.any(axis=1)].any(axis=0)
    kept = np.ix_(rows, columns)
    return ScoredPairs(
        genes,
        np.array([genes.position[gene] for gene in source_ids[rows]]),
        np.array([genes.position[gene] for gene in first.columns[columns]]),
        {name: of[kept] for name, of in aligned.items()},
        scored[kept],
        is_known[kept],
        np.nan_to_num(signs[kept]),
        effect[kept],
        int((~scored & ~is_itself)[rows].sum()),
        int(known.edges["source"].isin(source_ids[rows]).sum() - is_known.sum()),
    )


def _placed(pairs: pd.DataFrame, sources: pd.Index, targets: pd.Index) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Return the rows between these genes, with the place of both."""
    row, column = (of.get_indexer(pd.Index(pairs[name])) for of, name in ((sources, "source"), (targets, "target")))
    inside = (row >= 0) & (column >= 0)
    return pairs[inside], row[inside], column[inside]


def weights_of(net: GeneNetwork | pd.DataFrame, state: str | None, genes: GivenGenes) -> pd.DataFrame:
    """Return the weights that a network's edges are ranked by, sources × targets, by gene id.

    Raises
    ------
    InputError
        The table has a gene that is unknown, or twice, or a weight that is infinite.
    """
    if isinstance(net, GeneNetwork):
        assert state is not None
        n = net.counts(state)
        return net.matrix(state) * (n / (n + SHRUNK_BY))
    return pd.DataFrame(_finite(net), _ids(net.index, "source", genes), _ids(net.columns, "target", genes))


def _finite(table: pd.DataFrame) -> np.ndarray:
    values = table.to_numpy(float)
    if np.isinf(values).any():
        raise InputError("A network given as a table must have finite weights, NaN where a pair has none; found inf.")
    return values


def _ids(labels: "pd.Index", what: str, genes: GivenGenes) -> "pd.Index":
    names = [str(label) for label in labels]
    ids = pd.Index(gene_ids_of(names, genes).reindex(names), name=what)
    if (ids == "").any():
        unknown = [name for name, gene in zip(names, ids, strict=True) if not gene]
        raise InputError(
            f"{len(unknown)} of the {len(names)} {what}s of a network given as a table are not among the genes of the "
            f"counts (first: {unknown[0]!r}). Leave them out, or give counts that have them."
        )
    if ids.duplicated().any():
        raise InputError(f"A network given as a table has the {what} {ids[ids.duplicated()][0]!r} twice; give it once.")
    return ids


def methods_of(
    net: GeneNetwork | pd.DataFrame,
    state: str | None,
    pairs: ScoredPairs,
    cells: "CellScores",
    *,
    checkpoint: "Checkpoint | None",
    boosted_targets: int | None,
    seed: int,
) -> list[Method]:
    """Return the scores of all methods on the pairs, the network first.

    Parameters
    ----------
    net, state
        The network.
    pairs
        The pairs.
    cells
        What the cells of the same state say without the model.
    checkpoint
        The model, for token embeddings.
    boosted_targets
        How many targets get boosted trees; None all.
    seed
        Of these.
    """
    methods = [Method(name, weights) for name, weights in pairs.weights.items()]
    if isinstance(net, GeneNetwork) and state is not None:
        methods += _of_network(net, state, pairs)
    methods += cells.at(pairs)
    if checkpoint is not None:
        methods.append(Method(TOKENS, _token_cosine(checkpoint, pairs)))
    methods.append(Method(DEGREES, baselines.degree_product(pairs.known)))
    if boosted_targets != 0:
        methods.append(Method(BOOSTING, _boosted(cells.cells, pairs, boosted_targets, seed)))
    return methods


def _of_network(net: GeneNetwork, state: str, pairs: ScoredPairs) -> list[Method]:
    targets = np.array(pairs.genes.gene_ids, dtype=object)[pairs.targets]
    before = net.uncorrected(state).reindex(index=pairs.source_ids, columns=targets).to_numpy()
    alpha = net.node_table(state)["alpha"].reindex(pairs.source_ids).to_numpy()
    alone = np.broadcast_to(alpha[:, None], pairs.scored.shape)
    return [Method(BEFORE_GENES, before), Method(SOURCE_ALONE, alone)]


@dataclass(frozen=True, eq=False)
class CellScores:
    """Scores that are of the cells alone, for the sources of all references: they are computed once."""

    cells: baselines.Expression
    sources: np.ndarray
    """Places of the sources, ascending."""
    targets: np.ndarray
    """Places of the targets, ascending."""
    methods: tuple[Method, ...]

    @classmethod
    def of(cls, cells: baselines.Expression, references: Sequence[ScoredPairs]) -> "CellScores":
        """Compute them for all pairs of some references."""
        sources = np.unique(np.concatenate([pairs.sources for pairs in references]))
        targets = np.unique(np.concatenate([pairs.targets for pairs in references]))
        rho, r = (_or_none(correlation(cells.values, sources, targets, kind=kind)) for kind in _CORRELATIONS)
        methods = [Method(CO_EXPRESSION, np.abs(rho), rho), Method(PEARSON, np.abs(r), r)]
        of_donors = baselines.correlation_over_donors(cells, sources, targets)
        if of_donors is not None:
            methods.append(Method(OF_DONORS, np.abs(_or_none(of_donors)), _or_none(of_donors)))
        methods += [
            Method(MUTUAL_RANK, -baselines.mutual_ranks_of(cells, sources, targets)),
            Method(PROXIMITY, baselines.rank_proximity(cells, sources, targets)),
            Method(DETECTION, np.outer(cells.detection[sources], cells.detection[targets])),
            Method(MEAN, np.outer(cells.mean[sources], cells.mean[targets])),
        ]
        return cls(cells, sources, targets, tuple(methods))

    def at(self, pairs: ScoredPairs) -> list[Method]:
        """Return the scores of the pairs of a reference."""
        kept = np.ix_(np.searchsorted(self.sources, pairs.sources), np.searchsorted(self.targets, pairs.targets))
        return [
            Method(one.name, one.score[kept], None if one.signed is None else one.signed[kept]) for one in self.methods
        ]


def _or_none(correlations: np.ndarray) -> np.ndarray:
    """Score a pair 0 of which cells say nothing: a gene that is alike in all of them goes with none."""
    return np.nan_to_num(correlations)


def _token_cosine(checkpoint: "Checkpoint", pairs: ScoredPairs) -> np.ndarray:
    import torch

    ids = np.array(pairs.genes.gene_ids, dtype=object)
    tokens = [checkpoint.vocabulary.tokens_of(ids[of]) for of in (pairs.sources, pairs.targets)]
    embeddings = checkpoint.token_model.bert.get_input_embeddings()
    with torch.no_grad():
        device = embeddings.weight.device
        vectors = [embeddings(torch.as_tensor(of, device=device)).double().cpu().numpy() for of in tokens]
    unit = [of / np.maximum(np.linalg.norm(of, axis=1, keepdims=True), 1e-12) for of in vectors]
    return unit[0] @ unit[1].T


def _boosted(cells: baselines.Expression, pairs: ScoredPairs, n: int | None, seed: int) -> np.ndarray:
    """Return the gain of each source for each target that is fitted, NaN for the others."""
    chosen = boosted(np.asarray(pairs.known.any(axis=0)), n, np.random.default_rng(seed))
    gain = np.full(pairs.scored.shape, np.nan)
    for target, of in zip(
        chosen, baselines.boosted_gain(cells, pairs.sources, pairs.targets[chosen], seed=seed), strict=True
    ):
        gain[:, target] = of
    return gain


def boosted(has_edge: np.ndarray, n: int | None, rng: np.random.Generator) -> np.ndarray:
    """Return the targets that trees are fitted for, in order: those with a known edge first, drawn where too many."""
    order = np.concatenate([rng.permutation(np.flatnonzero(has_edge)), rng.permutation(np.flatnonzero(~has_edge))])
    return np.sort(order[: len(order) if n is None else n])
