"""Gene sets of two models side by side: pan-cancer against fine-tuned, scratch against pretrained.

That two lists of pathways differ says little: a set at q = 0.04 in one and 0.06 in the other is not specific. So beside
the share of common sets stands that of two seeds of one model, where they are given, and beside the common genes the
number that chance makes common. Published comparisons had neither.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import mannwhitneyu

from geneformer_repro.arguments import typed
from geneformer_repro.errors import InputError
from geneformer_repro.in_silico.explanations.enrichment import SIGNIFICANT
from geneformer_repro.in_silico.explanations.overlaps import chance_overlap

SHARED, NEITHER = "shared", ""
_COMPARED = {"overlap": ("fold", "overlap", "p_value", "fdr"), "prerank": ("nes", "p_value", "fdr")}
_UNDERFLOW = 1e-300


@typed
def compare_enrichment(
    first: pd.DataFrame,
    second: pd.DataFrame,
    *,
    names: Sequence[str] = ("first", "second"),
    seeds: Sequence[pd.DataFrame] | None = None,
) -> pd.DataFrame:
    """Set the gene sets of two models side by side, with what chance and another seed make of it.

    Parameters
    ----------
    first, second
        Results of `gene_set_enrichment` of the same sets by the same method, of tables that have the same methods and
        states.
    names
        What the two are called, such as "pan-cancer" and "fine-tuned".
    seeds
        Two results of one model trained with different seeds: how alike sets are where nothing but chance differs.

    Returns
    -------
    A row a set (and method, state …, direction) that both tested, indexed by ``set``: of both, with the name behind,
    ``fold`` and ``overlap``, or ``nes``; ``p_value``, ``fdr``; and ``found``: "shared" (FDR below 0.05 in both, of a
    ranking on the same side), the name of the only one, or "". ``attrs``: ``n_found`` of each, ``jaccard`` of sets that
    are found, ``jaccard_of_seeds``; ``mann_whitney_p`` of −log10 FDR (two-sided; sets overlap, so it takes for
    independent what is not, and is printed because it was published); and for chosen genes ``genes``: of each direction
    how many both chose, how many chance makes common, within strata and not, with p-values.

    Raises
    ------
    InputError
        They are no results of `gene_set_enrichment`, or of unlike methods or sets.

    See Also
    --------
    gene_set_enrichment : Makes both.
    write_enrichment_report : A page of them.

    Examples
    --------
    >>> import numpy as np
    >>> import pandas as pd
    >>> import geneformer_repro as gf
    >>> cells = gf.datasets.pbmc700()
    >>> table = pd.DataFrame({"detection_rate": np.asarray((cells.X > 0).mean(axis=0)).ravel()}, index=cells.var_names)
    >>> of = {seed: table.assign(score=np.random.default_rng(seed).normal(size=len(table))) for seed in (0, 1)}
    >>> sets = {"every tenth": cells.var_names[::10], "every ninth": cells.var_names[::9]}
    >>> first, second = (gf.gene_set_enrichment(of[seed], sets) for seed in (0, 1))
    >>> sides = gf.compare_enrichment(first, second, names=["scratch", "pretrained"])
    >>> sides.columns[-1], sides.attrs["n_found"]
    ('found', {'scratch': 0, 'pretrained': 0})
    """
    if len(names) != 2 or names[0] == names[1]:
        raise InputError(f"names must be two, and different, found {list(names)!r}.")
    for table in (first, second, *(seeds or ())):
        _require_like(first, table)
    if seeds is not None and len(seeds) != 2:
        raise InputError(f"seeds must be two results of one model, found {len(seeds)}.")
    table = _side_by_side(first, second, names)
    said = _said(first, second, table, names)
    said["jaccard_of_seeds"] = None if seeds is None else jaccard(*map(found_sets, seeds))
    warned = [
        f"{name}: {of.attrs['warning']}" for name, of in zip(names, (first, second), strict=True) if of.attrs["warning"]
    ]
    table.attrs.update(said, sentence=" ".join([*warned, _sentence(said)]))
    return table


def _require_like(first: pd.DataFrame, other: pd.DataFrame) -> None:
    if not all({"tests", "method"} <= set(table.attrs) for table in (first, other)):
        raise InputError(
            "This is no result of gene_set_enrichment, or one without its attrs. Give it as it was returned."
        )
    for what, of in (("method", "method"), ("gene sets", "sets")):
        if first.attrs[of] != other.attrs[of]:
            raise InputError(
                f"The two are of different {what}: {first.attrs[of]} and {other.attrs[of]}. Ask both the same."
            )


def _keys(table: pd.DataFrame) -> list[str]:
    """Return the columns that with the set name a test; which side a set is on is no part of a ranking's name."""
    of_groups = list(table.attrs["tests"][0]["of"])
    return ["set", *of_groups, *(["direction"] if table.attrs["method"] == "overlap" else [])]


def _side_by_side(first: pd.DataFrame, second: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    if _keys(first) != _keys(second):
        raise InputError(
            f"One has {_keys(first)[1:]}, the other {_keys(second)[1:]}. Ask both of the same methods and states."
        )
    columns = list(_COMPARED[first.attrs["method"]])
    sides = [
        table.reset_index().set_index(_keys(table))[columns].add_suffix(f" {name}")
        for table, name in zip((first, second), names, strict=True)
    ]
    table = sides[0].join(sides[1], how="inner")
    if table.empty:
        raise InputError("No set was tested in both. Ask of the same sets, in genes that both have.")
    is_found = [table[f"fdr {name}"] < SIGNIFICANT for name in names]
    both = is_found[0] & is_found[1]
    if "nes" in columns:
        both &= table[f"nes {names[0]}"] * table[f"nes {names[1]}"] > 0
    table["found"] = np.select([both, is_found[0] & is_found[1], *is_found], [SHARED, "opposite", *names], NEITHER)
    table = table.iloc[np.argsort(table[[f"p_value {name}" for name in names]].min(axis=1).to_numpy(), kind="stable")]
    return table.reset_index().set_index("set")


def found_sets(table: pd.DataFrame) -> set[tuple[str, ...]]:
    """Return the tests with FDR below 0.05; of a ranking a set is another one on the other side."""
    keys = [*_keys(table), *(["direction"] if table.attrs["method"] == "prerank" else [])]
    rows = table.reset_index()[[*keys, "fdr"]]
    return {tuple(map(str, row)) for row in rows.loc[rows["fdr"] < SIGNIFICANT, keys].itertuples(index=False)}


def jaccard(one: set[Any], other: set[Any]) -> float:
    """Return the share of what either has that both have; NaN where neither has any."""
    return len(one & other) / len(one | other) if one | other else np.nan


def _said(first: pd.DataFrame, second: pd.DataFrame, table: pd.DataFrame, names: Sequence[str]) -> dict[str, Any]:
    evidence = [-np.log10(table[f"fdr {name}"].clip(lower=_UNDERFLOW)) for name in names]
    return {
        "names": list(names),
        "method": first.attrs["method"],
        "n_tests": len(table),
        "n_found": {name: int((table[f"fdr {name}"] < SIGNIFICANT).sum()) for name in names},
        "n_shared": int((table["found"] == SHARED).sum()),
        "jaccard": jaccard(found_sets(first), found_sets(second)),
        "mann_whitney_p": float(mannwhitneyu(*evidence).pvalue),
        "genes": _common_genes(first, second),
    }


def _common_genes(first: pd.DataFrame, second: pd.DataFrame) -> list[dict[str, Any]]:
    """Return how many chosen genes are the same, of each table and direction that both have."""
    of_second = {tuple(test["of"].items()): test for test in second.attrs["tests"]}
    rows = []
    for test in first.attrs["tests"]:
        other = of_second.get(tuple(test["of"].items()), {"chosen": {}})
        rows += [
            test["of"] | {"direction": direction} | common_genes(test, other, direction)
            for direction in test["chosen"]
            if direction in other["chosen"]
        ]
    return rows


def common_genes(one: Mapping[str, Any], other: Mapping[str, Any], direction: str) -> dict[str, Any]:
    """Return how many genes two choices share, and how many two independent ones would.

    Parameters
    ----------
    one, other
        ``background``, ``stratum`` and ``chosen`` of each; genes are counted that are in both backgrounds, in the
        strata of the first.
    direction
        Which choice.

    Returns
    -------
    ``only_first``, ``common``, ``only_second``; ``expected`` and ``p_value`` within strata, ``plain_expected`` and
    ``plain_p_value`` among all genes, exact and one-sided.
    """
    genes = pd.Series(one["stratum"], index=one["background"])
    genes = genes[genes.index.isin(other["background"])]
    chosen = [genes.index.isin(test["chosen"][direction]) for test in (one, other)]
    common = int((chosen[0] & chosen[1]).sum())
    stratum = genes.to_numpy()
    n_strata = int(stratum.max(initial=0)) + 1
    matched, plain = (
        chance_overlap(
            np.bincount(of[chosen[0]], minlength=n_strata)[None],
            np.bincount(of, minlength=n_strata),
            np.bincount(of[chosen[1]], minlength=n_strata),
            np.array([common]),
        )
        for of in (stratum, np.zeros_like(stratum))
    )
    return {
        "only_first": int(chosen[0].sum()) - common,
        "common": common,
        "only_second": int(chosen[1].sum()) - common,
        "expected": float(matched.expected[0]),
        "p_value": float(matched.p_value[0]),
        "plain_expected": float(plain.expected[0]),
        "plain_p_value": float(plain.p_value[0]),
    }


def _sentence(attrs: Mapping[str, Any]) -> str:
    first, second = attrs["names"]
    n_first, n_second = (attrs["n_found"][name] for name in attrs["names"])
    said = (
        f"{first} finds {n_first:,} and {second} {n_second:,} of {attrs['n_tests']:,} sets, {attrs['n_shared']:,} are "
        "found by both"
    )
    if n_first + n_second == 0:
        return f"{said}: there is nothing to compare."
    said += f" (Jaccard {attrs['jaccard']:.2f}"
    seeds = attrs["jaccard_of_seeds"]
    if seeds is None:
        return said + "). How alike two seeds of one model are was not asked, so a difference may be one of seeds."
    if np.isnan(seeds):
        return said + "; two seeds of one model find no set)."
    less = (
        "less alike than two seeds of one model"
        if attrs["jaccard"] < seeds
        else "no less alike than two seeds of one model"
    )
    return f"{said}, {less}, {seeds:.2f})."
