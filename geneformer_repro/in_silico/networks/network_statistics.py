"""From the networks of two states to a table of edges that differ between them.

A donor is one observation: what is tested is the difference of the edge in each donor that has both states. Few donors
give poor variances, so these are drawn to those of all pairs, and the number of strong differences is set beside that
after the signs of donors are flipped. Edges change for reasons that have nothing to do with a pair: a gene that a state
switches on moves to the front of the cell, where everything is attended. Place is corrected for, but not all that comes
with it, so an edge both of whose genes moved says so; and a pair that can be tested in one state only is no difference.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from geneformer_repro.arguments import typed
from geneformer_repro.checkpoint_files import CHECKPOINT_WARNING
from geneformer_repro.errors import InputError, listed
from geneformer_repro.in_silico.networks.donor_tests import FEWEST_DONORS, DonorTest, GlobalTest, donor_test, sign_flips
from geneformer_repro.in_silico.networks.gene_network import GeneNetwork
from geneformer_repro.in_silico.networks.network_expression import CellCounts, correlation, log2_fold_changes
from geneformer_repro.tokenizer.dataset import TokenizedDataset

if TYPE_CHECKING:
    from anndata import AnnData

MOVED = 1.0
"""Bins, which are roots of a place, by which a gene's mean place differs if it moved."""
SIGNIFICANT = 0.05
FEW_PAIRS = 10
"""Significant pairs below which none is said to change more."""
FLIP_SEED = 0


@dataclass(frozen=True, eq=False)
class NetworkDifference:
    """How the networks of two states differ.

    See Also
    --------
    compare_networks : Makes it, and says what its tables hold.

    Examples
    --------
    >>> import geneformer_repro as gf
    >>> network = gf.GeneNetwork.open("runs/net")
    >>> found = gf.compare_networks(network, "CD14+ Monocyte", "Dendritic", top=100)
    >>> len(found.edges), found.facts["states"]
    (100, ['CD14+ Monocyte', 'Dendritic'])
    """

    edges: pd.DataFrame
    """A row a pair that can be tested in both states, the smallest p-value first."""
    genes: pd.DataFrame
    """By gene id, what each state makes of the gene itself."""
    in_one_state: pd.DataFrame
    """Pairs with cells enough in one state only, the strongest first: no differences."""
    facts: dict[str, Any]
    """States, donors, number of pairs, the global test, the prior of the variances, what co-expression says."""

    def sentence(self) -> str:
        """Say in words what was found, and what was not.

        See Also
        --------
        compare_networks : Tests.

        Examples
        --------
        >>> import geneformer_repro as gf
        >>> found = gf.compare_networks(gf.GeneNetwork.open("runs/net"), "CD14+ Monocyte", "Dendritic")
        >>> found.sentence().rpartition(". ")[2]
        'Edges are what the model relates, not regulation.'
        """
        return _sentence(self.facts)


@typed
def compare_networks(
    network: GeneNetwork,
    a: str,
    b: str,
    *,
    counts: "AnnData | str | Path | None" = None,
    cells: TokenizedDataset | None = None,
    top: int = 10_000,
) -> NetworkDifference:
    """Test which edges differ between two states of a network, with donors as replicates.

    Parameters
    ----------
    network
        With both states, and the donors.
    a, b
        States. A difference above 0 is a stronger edge in `b`.
    counts
        Raw counts of the same cells, with the obs columns that the network's states and donors came from: sets fold
        changes beside genes and changes of rank correlation beside edges, and says which changes more.
    cells
        The cells of the network, where `counts` hold others too: theirs are used alone.
    top
        Rows of each table of pairs; p-values are corrected for all pairs that were tested.

    Returns
    -------
    ``edges``, a row a pair:

    - ``source``, ``target``, ids; ``source_name``, ``target_name``.
    - ``difference``: mean over donors of the edge's weight in `b` less that in `a`, with its 95 % interval ``low`` to
      ``high``; ``weight_a`` and ``weight_b``, the means themselves.
    - ``t``, ``p_value``, two-sided, and ``fdr``, Benjamini and Hochberg over all tested pairs; NaN below three donors,
      of all pairs if fewer than three donors have both states: then the strongest difference is first.
    - ``n_donors``; ``n_cells_a``, ``n_cells_b``: cells with both genes, of all donors of the state.
    - ``source_moved``, ``target_moved``: change of the gene's mean place in bins, √place in `b` less that in `a`, below
      0 towards the front; ``moved``: both by a bin or more. Read such an edge as genes that moved.
      ``source_detection_change``, ``target_detection_change``: of the share of cells with the gene.
    - With `counts`, ``source_log2_fold_change``, ``target_log2_fold_change``; ``spearman_a``, ``spearman_b`` and
      ``spearman_difference``, means over donors, with ``spearman_p_value`` and ``spearman_fdr`` of the same test.

    ``genes``: ``gene_name``, ``is_source``; of both states ``n_cells``, ``detection``, the share of cells with the
    gene, ``mean_place``, ``alpha``, ``beta``; ``moved_bins``, ``moved``; with `counts` ``log2_fold_change`` and its
    ``expression_p_value`` and ``expression_fdr`` over donors. ``in_one_state``: ``state``, source, target and names,
    ``weight``, ``n_cells``. ``facts`` says what was compared.

    Raises
    ------
    InputError
        There is no such state, both are one, no pair has cells enough in both, or the counts do not fit.

    See Also
    --------
    gene_network : Makes the network.
    NetworkDifference : What is returned.

    Notes
    -----
    One-sample t-test over donors of differences, null hypothesis: over the donors that one might have sampled, the
    edge is as strong in both states. Variances are drawn to those of all pairs (limma's moderated t). The global test
    counts pairs with an absolute t above 3, not moderated, and compares it with their number under all flips of donors'
    signs (4,096 random ones beyond 12 donors). An edge is an association within the model, not regulation.

    References
    ----------
    Smyth, Stat. Appl. Genet. Mol. Biol. 3, 3 (2004).

    Examples
    --------
    >>> import geneformer_repro as gf
    >>> network = gf.GeneNetwork.open("runs/net")
    >>> found = gf.compare_networks(network, "CD14+ Monocyte", "Dendritic")
    >>> found.facts["donors"], int(found.edges["n_donors"].max())
    (['donor1', 'donor2', 'donor3'], 3)
    >>> {"difference", "p_value", "fdr", "moved"} <= set(found.edges)
    True
    """
    _require_states(network, a, b)
    expression = None if counts is None else _expression(network, (a, b), counts, cells)
    if cells is not None and counts is None:
        raise InputError("cells= say which cells of the counts are the network's: give counts= too.")
    pairs = _Pairs.of(network, a, b)
    tested = _tested(pairs.difference)
    genes = _genes(network, a, b, expression)
    order = _order(tested.of_pairs, top)
    edges = pairs.table(tested.of_pairs, order, genes)
    of_source, of_target = pairs.which(genes["moved"])
    n_moved = int(np.sum((tested.of_pairs.fdr < SIGNIFICANT) & of_source & of_target))
    facts = pairs.facts() | tested.facts("") | {"n_moved": n_moved}
    if expression is not None:
        edges, beside = _beside_expression(edges, order, pairs, tested, genes, expression)
        facts |= beside
    return NetworkDifference(edges, genes, _in_one_state(network, a, b, top), facts)


def _require_states(network: GeneNetwork, a: str, b: str) -> None:
    for state in (a, b):
        network.node_table(state)  # which says what states there are
    if a == b:
        raise InputError(
            f"A network is compared between two states, found {a!r} twice. There are: "
            f"{listed(map(repr, network.states))}."
        )


def _expression(
    network: GeneNetwork, states: tuple[str, str], counts: "AnnData | str | Path", cells: TokenizedDataset | None
) -> CellCounts:
    columns = {name: network.metadata.get(name) for name in ("by", "donor")}
    names = None if cells is None else list(cells.cell_names)
    expression = CellCounts.read(counts, network.known_genes, cell_names=names, **columns)
    if cells is None:
        expression.require_cells([group for group in network.metadata["groups"] if group["state"] in states])
    return expression


# Differences of pairs


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Differences of the pairs that have a weight in both states of a donor."""

    network: GeneNetwork
    states: tuple[str, str]
    donors: list[str | None]
    """Those with both states; only None, for all cells, where no donor has both."""
    position: np.ndarray
    """Of each pair among sources × targets."""
    difference: np.ndarray
    """Donors × pairs, the second state less the first."""
    mean_a: np.ndarray
    """Mean weight in the first state, of the donors that have the pair in both."""

    @classmethod
    def of(cls, network: GeneNetwork, a: str, b: str) -> "_Pairs":
        of_b = set(network.donors[b])
        donors: list[str | None] = [donor for donor in network.donors[a] if donor in of_b] or [None]
        n_pairs = len(network.sources) * len(network.targets)
        rows, first, n_donors = [], np.zeros(n_pairs), np.zeros(n_pairs, dtype=np.int32)
        for donor in donors:
            before, after = (_weights(network, state, donor) for state in (a, b))
            after -= before
            there = ~np.isnan(after)
            n_donors += there
            first[there] += before[there]
            rows.append(after)
        position = np.flatnonzero(n_donors)
        if not len(position):
            raise InputError(
                f"No pair of genes has cells enough in both {a!r} and {b!r}. Make the network of more cells, with a "
                "lower min_cells, or of fewer states."
            )
        difference = np.empty((len(rows), len(position)))
        for i in range(len(rows)):
            difference[i], rows[i] = rows[i][position], np.empty(0)  # one matrix more in memory, not one a donor
        return cls(network, (a, b), donors, position, difference, first[position] / n_donors[position])

    @property
    def has_donors(self) -> bool:
        """Whether replicates are donors."""
        return self.donors != [None]

    def ends(self, order: np.ndarray) -> "tuple[pd.Index[str], pd.Index[str]]":
        """Return source and target of some pairs."""
        row, column = np.divmod(self.position[order], len(self.network.targets))
        return self.network.sources[row], self.network.targets[column]

    def which(self, genes: "pd.Series[bool]") -> tuple[np.ndarray, np.ndarray]:
        """Return of each pair whether its source, and whether its target, is one of some genes."""
        row, column = np.divmod(self.position, len(self.network.targets))
        ends = ((self.network.sources, row), (self.network.targets, column))
        of_source, of_target = (genes.reindex(ids).to_numpy(dtype=bool)[which] for ids, which in ends)
        return of_source, of_target

    def table(self, tested: DonorTest, order: np.ndarray, genes: pd.DataFrame) -> pd.DataFrame:
        """Return some pairs, in an order."""
        ends = dict(zip(("source", "target"), self.ends(order), strict=True))
        moved = {f"{end}_moved": genes["moved_bins"].reindex(of).to_numpy() for end, of in ends.items()}
        detected = genes["detection_b"] - genes["detection_a"]
        difference, mean_a = tested.mean[order], self.mean_a[order]
        columns = {
            **named_pairs(ends["source"], ends["target"], self.network.genes["gene_name"]),
            "difference": difference,
            **{name: getattr(tested, name)[order] for name in ("low", "high", "t", "p_value", "fdr")},
            "weight_a": mean_a,
            "weight_b": mean_a + difference,
            "n_donors": tested.n_donors[order] if self.has_donors else 0,
            **{f"n_cells_{name}": self._n_cells(of)[order] for name, of in zip("ab", self.states, strict=True)},
            **moved,
            **{f"{end}_detection_change": detected.reindex(of).to_numpy() for end, of in ends.items()},
            "moved": np.logical_and(*(np.abs(bins) >= MOVED for bins in moved.values())),
        }
        return pd.DataFrame(columns)

    def _n_cells(self, state: str) -> np.ndarray:
        n_cells: np.ndarray = self.network.sums(state)[1].ravel()[self.position]
        return n_cells

    def facts(self) -> dict[str, Any]:
        """Say what was compared."""
        return {
            "states": list(self.states),
            "donors": [donor for donor in self.donors if donor is not None],
            "n_pairs": len(self.position),
            **{name: self.network.metadata[name] for name in (CHECKPOINT_WARNING,) if name in self.network.metadata},
        }


def _weights(network: GeneNetwork, state: str, donor: str | None) -> np.ndarray:
    weights: np.ndarray = network.matrix(state, donor).to_numpy().ravel()
    return weights


@dataclass(frozen=True)
class _Tested:
    """Tests of each pair, and of all of them together where donors are enough."""

    of_pairs: DonorTest
    together: GlobalTest | None

    def facts(self, prefix: str) -> dict[str, Any]:
        """Say what was found; names begin with `prefix`."""
        together, prior = self.together, self.of_pairs.prior
        found: dict[str, Any] = {"n_tested": int(np.sum(~np.isnan(self.of_pairs.p_value)))}
        if together is not None and prior is not None:
            found |= {
                "n_significant": int(np.sum(self.of_pairs.fdr < SIGNIFICANT)),
                "n_strong": together.n_strong,
                "n_strong_expected": together.expected,
                "global_p_value": together.p_value,
                "n_flips": together.n_flips,
                "exact_flips": together.exact,
                "prior_freedom": prior.freedom,
                "prior_variance": prior.variance,
            }
        return {prefix + name: value for name, value in found.items()}


def _tested(difference: np.ndarray) -> _Tested:
    enough = np.sum(~np.isnan(difference), axis=0) >= FEWEST_DONORS
    if enough.sum() < 2:
        return _Tested(donor_test(difference), None)
    of_pairs = donor_test(difference, moderated=True)
    return _Tested(of_pairs, sign_flips(difference, rng=np.random.default_rng(FLIP_SEED)))


def _order(tested: DonorTest, top: int) -> np.ndarray:
    """Return the first pairs: the smallest p-values, then, and where there is none, the largest differences."""
    return np.lexsort((-np.abs(tested.mean), tested.p_value))[:top]


def named_pairs(
    source: "pd.Index[str]", target: "pd.Index[str]", names: "pd.Series[str]"
) -> dict[str, "pd.Index[str] | np.ndarray"]:
    """Return the columns that say which pairs they are.

    Parameters
    ----------
    source, target
        Gene ids.
    names
        Name of each id.
    """
    of_ends = {f"{end}_name": names.reindex(ids).to_numpy() for end, ids in (("source", source), ("target", target))}
    return {"source": source, "target": target, **of_ends}


def _in_one_state(network: GeneNetwork, a: str, b: str, top: int) -> pd.DataFrame:
    """Return the strongest pairs that have cells enough in one state only."""
    weights = {state: _weights(network, state, None) for state in (a, b)}
    tables = []
    for state, other in ((a, b), (b, a)):
        position = np.flatnonzero(~np.isnan(weights[state]) & np.isnan(weights[other]))
        position = position[np.argsort(-np.abs(weights[state][position]), kind="stable")[:top]]
        row, column = np.divmod(position, len(network.targets))
        ends = named_pairs(network.sources[row], network.targets[column], network.genes["gene_name"])
        n_cells = network.sums(state)[1].ravel()[position]
        tables.append(pd.DataFrame({"state": state, **ends, "weight": weights[state][position], "n_cells": n_cells}))
    table = pd.concat(tables, ignore_index=True)
    return table.iloc[np.argsort(-table["weight"].abs().to_numpy(), kind="stable")[:top]].reset_index(drop=True)


# Genes


def _genes(network: GeneNetwork, a: str, b: str, expression: CellCounts | None) -> pd.DataFrame:
    """Return what both states make of each gene."""
    genes = network.genes[["gene_name", "is_source"]]
    for suffix, state in (("a", a), ("b", b)):
        nodes = network.node_table(state)[["n_cells", "mean_place", "alpha", "beta"]]
        nodes.insert(1, "detection", nodes["n_cells"] / network.metadata["states"][state]["n_cells"])
        genes = genes.join(nodes.add_suffix(f"_{suffix}"))
    bins = np.sqrt(genes["mean_place_b"]) - np.sqrt(genes["mean_place_a"])
    genes = genes.assign(moved_bins=bins, moved=bins.abs() >= MOVED)
    if expression is not None:
        change = donor_test(log2_fold_changes(expression, a, b))
        genes = genes.assign(log2_fold_change=change.mean, expression_p_value=change.p_value, expression_fdr=change.fdr)
    return genes


# Beside expression


def _beside_expression(
    edges: pd.DataFrame,
    order: np.ndarray,
    pairs: _Pairs,
    tested: _Tested,
    genes: pd.DataFrame,
    expression: CellCounts,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Set fold changes and changes of rank correlation beside edges, and say which finds more."""
    before, after = (
        np.stack([_correlations(pairs, expression, state, donor) for donor in pairs.donors]) for state in pairs.states
    )
    change = np.where(np.isnan(pairs.difference), np.nan, after - before)  # of the same pairs of the same donors
    correlated = _tested(change)
    of_pairs = correlated.of_pairs
    both = ~np.isnan(change)
    columns: dict[str, Any] = {
        f"{end}_log2_fold_change": genes["log2_fold_change"].reindex(edges[end]).to_numpy()
        for end in ("source", "target")
    }
    with np.errstate(invalid="ignore"):
        for name, of_state in (("spearman_a", before), ("spearman_b", after)):
            columns[name] = (np.where(both, of_state, 0).sum(0) / both.sum(0))[order]
    columns |= {"spearman_difference": of_pairs.mean[order]}
    columns |= {f"spearman_{name}": getattr(of_pairs, name)[order] for name in ("p_value", "fdr")}
    changed = genes["expression_fdr"] < SIGNIFICANT
    either = np.logical_or(*pairs.which(changed))
    strength = [np.abs(of.mean) if of.prior is None else np.abs(of.t) for of in (tested.of_pairs, of_pairs)]
    facts = correlated.facts("spearman_") | {
        "n_genes_changed": int(changed.sum()),
        "n_with_changed_gene": int(np.sum((tested.of_pairs.fdr < SIGNIFICANT) & either)),
        "agreement": float(pd.Series(strength[0]).corr(pd.Series(strength[1]), method="spearman")),
    }
    return edges.assign(**columns), facts


def _correlations(pairs: _Pairs, expression: CellCounts, state: str, donor: str | None) -> np.ndarray:
    network = pairs.network
    columns = [network.genes.index.get_indexer(ids) for ids in (network.sources, network.targets)]
    of_pairs: np.ndarray = correlation(expression.of(state, donor).logged(), *columns).ravel()[pairs.position]
    return of_pairs


# Words


def _sentence(facts: dict[str, Any]) -> str:
    a, b = facts["states"]
    if "n_significant" not in facts:
        return (
            f"No edge was seen in {FEWEST_DONORS} donors with both {a} and {b} (there are {len(facts['donors'])}), so "
            f"nothing was tested: {facts['n_pairs']:,} differences are effects only."
        )
    said = (
        f"Over {len(facts['donors'])} donors {facts['n_significant']:,} of {facts['n_tested']:,} edges differ between "
        f"{a} and {b} at FDR 0.05; both genes of {facts['n_moved']:,} of these moved a place bin or more. "
        f"{facts['n_strong']:,} have |t| > 3, where flips of donors' signs give {facts['n_strong_expected']:,.0f} "
        f"(p {facts['global_p_value']:.3g})."
    )
    if "spearman_n_significant" in facts:
        said += " " + _beside_sentence(facts)
    return said + " Edges are what the model relates, not regulation."


def _beside_sentence(facts: dict[str, Any]) -> str:
    return (
        f"Rank correlation of expression differs in {facts['spearman_n_significant']:,} of the same pairs "
        f"({facts['spearman_n_strong']:,} with |t| > 3, {facts['spearman_n_strong_expected']:,.0f} with flips, p "
        f"{facts['spearman_global_p_value']:.3g}): {_verdict(facts)}. Expression of {facts['n_genes_changed']:,} genes "
        f"changes; {facts['n_with_changed_gene']:,} of the significant edges have one of them, and |t| of edges and "
        f"of correlations agree with Spearman {facts['agreement']:.2f}."
    )


def _verdict(facts: dict[str, Any]) -> str:
    """Say whether attention or co-expression changes more: in single pairs where there are some, else as a whole."""
    ours, theirs = facts["n_significant"], facts["spearman_n_significant"]
    attention, coexpression = "attention", "co-expression of the same cells"
    if max(ours, theirs) >= FEW_PAIRS and ours != theirs:
        more, less = (attention, coexpression) if ours > theirs else (coexpression, attention)
        return f"{more} changes in more pairs than {less}"
    ours_changes, theirs_changes = (facts[f"{of}global_p_value"] < SIGNIFICANT for of in ("", "spearman_"))
    if ours_changes and theirs_changes:
        said = "both change"
    elif not ours_changes and not theirs_changes:
        said = "neither changes"
    else:
        one, other = (attention, coexpression) if ours_changes else (coexpression, attention)
        said = f"{one} changes and {other} does not"
    return f"hardly a single pair stands out in either, and as a whole {said}"
