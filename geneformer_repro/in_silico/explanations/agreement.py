"""How far methods say the same of the same cells, beside what chance and the places of genes give.

Two methods that ask the same operator, such as deleting genes and a derivative of deleting them, agree because of it:
such pairs are marked, and count for nothing as confirmation. And since a gene's place is what a model sees of its
expression, "place" stands among the methods: one that agrees with it as much as with others tells where genes stand.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from geneformer_repro.agreement import chance_jaccard, jaccard_of_tops, spearman
from geneformer_repro.errors import InputError
from geneformer_repro.in_silico.explanations.gene_table import Attributions, sound_blocks

PLACE = "place"
"""Called so in the table: minus the place of each gene, by itself."""
TOPS = (10, 50, 200)
FEWEST_GENES = 10
"""A cell with fewer genes that both methods have has no correlation."""
THE_MEDIAN, THE_MEAN = "the median", "the mean"
MEAN_CHARACTER, PADDING = "mean of characters", "padding"
OF_CHARACTERS = " of characters"
"""What ends the name of a method that is asked about characters of a SMILES, beside the same of genes."""
OPERATORS = {
    "delete": "leaving genes out",
    "hide": "leaving genes out",
    "first_order": "leaving genes out",
    "mask": "<mask>",
    "integrated_gradients": "<mask>",
    "gradient_input": "<mask>",
    "median_rank": "the place",
    "median": THE_MEDIAN,
    "attention_gradient": "attention",
    "rollout": "attention",
    "attention": "attention",
}
"""What each method does to a gene, or takes the derivative of; of a surrogate, what its masks do."""
_SUMS: Mapping[str, Any] = {
    "absolute": ("absolute", "sum"),
    "n": ("value", "size"),
    "place": ("place", "sum"),
    "n_placed": ("place", "count"),
}
_READ = ("cell", "gene", "place", "method", "state", "value")


def operator_of(method: str, metadata: Mapping[str, Any]) -> str:
    """Return what a method does to genes; methods that do the same are no independent witnesses.

    Parameters
    ----------
    method
        Its name.
    metadata
        Of the explanation: ``methods`` says by which operator genes are left out for a surrogate, and ``family``
        whether models read values, whose genes get other ones and whose ways begin at a baseline.
    """
    name = method.removesuffix(OF_CHARACTERS)
    settings = (metadata.get("methods") or {}).get(name) or {}
    by_tokens = metadata.get("genes_by") == "tokens" and name == method
    if metadata.get("family") in _OF_VALUES and not by_tokens:
        if name != method:
            of_baseline = PADDING if settings.get("baseline") == "pad" else MEAN_CHARACTER
            return OPERATORS[name] if name == "attention" else of_baseline
        if name == "surrogate":
            return THE_MEDIAN
        if name in ("integrated_gradients", "gradient_input"):
            return THE_MEDIAN if settings.get("baseline") == "median" else THE_MEAN
    if name == "surrogate":
        name = str(settings.get("operator", "hide"))
    return OPERATORS.get(name, name)


_OF_VALUES = ("samples", "pairs")


class NamedUnits:
    """Rows of an explanation of pairs in which characters have names, too: their positions in the SMILES.

    Their methods have other names than those of genes, so that each is ranked among its like.
    """

    def __init__(self, why: Attributions) -> None:
        self._why = why
        methods = why.metadata["methods"]
        of_characters = {method + OF_CHARACTERS: settings for method, settings in methods.items()}
        self.metadata = {**why.metadata, "methods": {**methods, **of_characters}}

    def blocks(self, columns: Sequence[str] | None = None) -> Iterator[pd.DataFrame]:
        """Yield the rows block by block."""
        wanted = None if columns is None else list(dict.fromkeys([*columns, "gene", "place", "method"]))
        for block in self._why.blocks(wanted):
            is_character = (block["gene"].isna() & block["place"].notna()).to_numpy()
            gene, method = (block[name].astype(object).to_numpy(copy=True) for name in ("gene", "method"))
            gene[is_character] = block["place"][is_character].astype(int).astype(str)
            method[is_character] += OF_CHARACTERS
            yield block.assign(gene=gene, method=method)


def agreement(why: Attributions, *, tops: Sequence[int] = TOPS) -> pd.DataFrame:
    """Compare methods two by two.

    Parameters
    ----------
    why
        Rows of an explanation.
    tops
        How many genes are compared as those with the largest absolute attribution.

    Returns
    -------
    A row a ``state`` and pair, ``method_a`` and ``method_b``; "place" is minus the gene's place.

    - ``spearman``: median over cells of the rank correlation of absolute attributions over the genes of the cell, with
      its quartiles ``lower`` and ``upper``; ``n_cells`` with at least ten genes that both have.
    - ``spearman_of_genes``: the same of the means over cells, over ``n_genes``.
    - ``top_k``: Jaccard index of the k genes with the largest means, and ``top_k_chance``, what two methods that know
      nothing have, k / (2n − k); NaN from n = k. ``top_k_in_cells`` and its chance: mean over cells.
    - ``same_operator``: both do the same to genes, so their agreement is not independent.

    With one method the rows are those with "place"; of what has no place there are none. Characters of a SMILES are
    compared among themselves, by methods whose names end on "of characters"; their place is that in the SMILES.
    """
    if why.metadata.get("family") == "pairs" and not isinstance(why, NamedUnits):
        why = NamedUnits(why)
    state_of: dict[str | None, _Compared] = {}
    for block in sound_blocks(why, _READ, ranked=True):
        for state, of_state in block.groupby("state", observed=True, dropna=False, sort=False):
            name = None if pd.isna(state) else str(state)
            state_of.setdefault(name, _Compared(tops)).add(of_state)
    methods = list(dict.fromkeys(method for compared in state_of.values() for method in compared.methods))
    rows = [
        {"state": state, **row, "same_operator": _alike(row["method_a"], row["method_b"], why.metadata)}
        for state, compared in state_of.items()
        for row in compared.rows(methods)
    ]
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=["state", "method_a", "method_b", "same_operator"])


def _alike(a: str, b: str, metadata: Mapping[str, Any]) -> bool:
    return PLACE not in (a, b) and operator_of(a, metadata) == operator_of(b, metadata)


class _Compared:
    """What has been compared of one state."""

    def __init__(self, tops: Sequence[int]) -> None:
        self._tops = tops
        self.methods: dict[str, None] = {}
        self._of_cells: dict[tuple[str, str], list[dict[str, float]]] = {}
        self._sums: list[pd.DataFrame] = []

    def add(self, block: pd.DataFrame) -> None:
        """Compare the methods in each cell of a block, which holds whole cells."""
        if block.duplicated(["cell", "gene", "method"]).any():
            first = block.loc[block.duplicated(["cell", "gene", "method"]), "cell"].iloc[0]
            raise InputError(f"Several cells are called {first!r}: methods are compared cell by cell. Rename cells.")
        self.methods |= dict.fromkeys(block["method"].astype(str).unique())
        sums = block.assign(absolute=block["value"].abs(), place=block["place"].astype(float))
        of_gene = sums.groupby(["gene", "method"], observed=True)
        self._sums.append(of_gene.agg(**_SUMS))
        for _, of_cell in block.groupby("cell", observed=True, sort=False):
            for pair, compared in self._in_cell(of_cell):
                self._of_cells.setdefault(pair, []).append(compared)

    def _in_cell(self, of_cell: pd.DataFrame) -> Iterator[tuple[tuple[str, str], dict[str, float]]]:
        values = of_cell.pivot(index="gene", columns="method", values="value").abs()
        values.columns = values.columns.astype(str)
        values[PLACE] = -of_cell.drop_duplicates("gene").set_index("gene")["place"].astype(float)
        for a, b in combinations([str(name) for name in values], 2):
            both = values[[a, b]].to_numpy()
            both = both[~np.isnan(both).any(1)]
            if len(both) >= FEWEST_GENES:
                yield (a, b), compared(*both.T, tops=self._tops)

    def rows(self, methods: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yield a row of each pair of methods, those with the place last."""
        sums = pd.concat(self._sums).groupby(level=[0, 1], observed=True).sum()
        means = (sums["absolute"] / sums["n"]).unstack("method")
        means.columns = means.columns.astype(str)
        by_gene = sums.groupby(level=0, observed=True)[["place", "n_placed"]].sum()
        means[PLACE] = -by_gene["place"] / by_gene["n_placed"].where(by_gene["n_placed"] > 0)
        compared_with = [PLACE] if means[PLACE].notna().any() else []
        for a, b in combinations([*(name for name in methods if name in means), *compared_with], 2):
            if b != PLACE and a.endswith(OF_CHARACTERS) != b.endswith(OF_CHARACTERS):
                continue
            if b == PLACE and means[[a, b]].isna().any(axis=1).all():
                continue  # genes whose values are read have none, characters beside them do
            in_cells = pd.DataFrame(self._of_cells.get((a, b)) or self._of_cells.get((b, a), []))
            yield {"method_a": a, "method_b": b, **_of_cells(in_cells, self._tops), **self._of_genes(means[[a, b]])}

    def _of_genes(self, means: pd.DataFrame) -> dict[str, Any]:
        both = means.dropna().to_numpy()
        found = compared(*both.T, tops=self._tops)
        return {"spearman_of_genes": found.pop("spearman"), **found, "n_genes": len(both)}


def _of_cells(in_cells: pd.DataFrame, tops: Sequence[int]) -> dict[str, Any]:
    """Return what the cells of a pair say together."""
    names = [f"top_{k}{end}" for k in tops for end in ("", "_chance")]
    in_cells = in_cells.reindex(columns=["spearman", *names]).astype(float)
    rho = in_cells["spearman"].dropna()
    lower, median, upper = np.percentile(rho, [25, 50, 75]) if len(rho) else (np.nan,) * 3
    means = {name.replace("_chance", "_in_cells_chance"): in_cells[name].mean() for name in names if "chance" in name}
    means |= {f"{name}_in_cells": in_cells[name].mean() for name in names if "chance" not in name}
    return {"spearman": median, "lower": lower, "upper": upper, "n_cells": len(in_cells), **means}


def compared(a: np.ndarray, b: np.ndarray, *, tops: Sequence[int] = TOPS) -> dict[str, float]:
    """Compare two attributions of the same genes.

    Parameters
    ----------
    a, b
        Absolute attributions, (G,), without NaN.
    tops
        Sizes of the groups that are compared.

    Returns
    -------
    ``spearman``, NaN where one is constant; ``top_k`` and ``top_k_chance``.
    """
    found = {"spearman": spearman(a, b)}
    for k in tops:
        has_top = len(a) > k
        found[f"top_{k}"] = jaccard_of_tops(a, b, k) if has_top else np.nan
        found[f"top_{k}_chance"] = chance_jaccard(k, len(a)) if has_top else np.nan
    return found
