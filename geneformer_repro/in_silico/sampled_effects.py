"""What a sampled screen says of genes besides what is tested: its sampling intervals, and who is in the top."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from geneformer_repro.in_silico.blockwise import added_by_donor
from geneformer_repro.in_silico.sampling import Z
from geneformer_repro.in_silico.shift_table import CHANCE, UNBIASED, VARIANCE, ShiftTable

NOT_MEASURED = "only estimated, not measured"
_KEYS = ["dose", "state", "perturbed"]
_SUMS = {"n": "sum", "value": "sum", "variance": "sum", "chance": "max"}


def is_sampled(shifts: ShiftTable) -> bool:
    """Whether some pairs of a screen were drawn and measured, and the others are estimated."""
    return shifts.metadata.get("method") == "sampled"


def unbiased(block: pd.DataFrame) -> pd.DataFrame:
    """Return rows of a sampled screen with unbiased values in the place of measured and expected ones."""
    return block.assign(value=block[UNBIASED])


def sampled_columns(
    tables: Mapping[Any, pd.DataFrame], shifts: ShiftTable, *, by_donor: bool
) -> dict[Any, pd.DataFrame]:
    """Add to tables of genes what a sampled screen says besides.

    Parameters
    ----------
    tables
        By dose (NaN for none) and state; indexed by gene id, with ``effect`` and ``warning``.
    shifts
        The screen.
    by_donor
        Whether an effect is a mean over donors of their means, else one over cells.

    Returns
    -------
    The tables with ``effect_shrunken``, ``sampling_low``, ``sampling_high`` and ``in_top`` behind ``effect``.
    """
    of_genes = _of_genes(shifts, by_donor=by_donor)
    return {
        (dose, state): _with_columns(table, _of_group(of_genes, dose, state), _in_top(shifts, dose, state))
        for (dose, state), table in tables.items()
    }


def _with_columns(table: pd.DataFrame, of_genes: pd.DataFrame, in_top: Mapping[str, str]) -> pd.DataFrame:
    of_genes = of_genes.reindex(table.index)
    half = Z * np.sqrt(of_genes["variance"])
    columns = {
        "effect_shrunken": of_genes["shrunken"],
        "sampling_low": table["effect"] - half,
        "sampling_high": table["effect"] + half,
        "in_top": [in_top.get(gene, "") for gene in table.index],
    }
    at = list(table).index("effect") + 1
    for i, (name, column) in enumerate(columns.items()):
        table.insert(at + i, name, column)
    told = np.where(of_genes["sampled"].to_numpy(), "", NOT_MEASURED)
    warning = ["; ".join(filter(None, both)) for both in zip(table["warning"], told, strict=True)]
    return table.assign(warning=warning)


def _of_genes(shifts: ShiftTable, *, by_donor: bool) -> pd.DataFrame:
    """Return of each dose, state and gene the mean of values, the variance of the mean, and whether it was sampled."""
    blocks = (
        block[block["affected"].isna()].assign(n=1, variance=block[VARIANCE].fillna(np.inf), chance=block[CHANCE])
        for block in shifts.blocks([*_KEYS, "donor", "affected", "value", VARIANCE, CHANCE])
    )
    of_donors = added_by_donor(blocks, _KEYS, _SUMS, by_donor=by_donor)
    means = pd.DataFrame(
        {
            "shrunken": of_donors["value"] / of_donors["n"],
            "variance": of_donors["variance"] / of_donors["n"] ** 2,
            "sampled": of_donors["chance"] > 0,
            "n_donors": 1,
        }
    )
    of_gene = means.groupby(level=_KEYS, dropna=False).agg(
        {"shrunken": "mean", "variance": "sum", "sampled": "max", "n_donors": "sum"}
    )
    variance = of_gene["variance"] / of_gene["n_donors"] ** 2
    return of_gene.assign(variance=variance.where(np.isfinite(variance)))


def _of_group(of_genes: pd.DataFrame, dose: float, state: str | None) -> pd.DataFrame:
    keys = of_genes.index.to_frame(index=False)
    chosen = (keys["dose"].isna() if np.isnan(dose) else keys["dose"] == dose) & (
        keys["state"].isna() if state is None else keys["state"] == state
    )
    return of_genes[chosen.to_numpy()].droplevel(["dose", "state"])


def _in_top(shifts: ShiftTable, dose: float, state: str | None) -> dict[str, str]:
    """Say of genes whether they are in the top, by the state that steered the passes."""
    sampled = shifts.metadata.get("sampled") or {}
    if not sampled or sampled["state"] != state:
        return {}
    behind = "" if np.isnan(dose) else f" at {dose:g}"
    said: dict[str, str] = {}
    for direction, genes in sampled["found"].items():
        for name, word in (("undecided", f"maybe {direction}"), ("decided", direction)):
            for gene in genes[name]:
                if gene.endswith(behind):
                    said[gene.removesuffix(behind)] = word
    return said


def sample_in_words(metadata: Mapping[str, Any]) -> list[str]:
    """Say of a sampled screen where its passes went, how far first order could be trusted, and what is decided.

    Parameters
    ----------
    metadata
        Of any screen.

    Returns
    -------
    Sentences; none of a screen that was not sampled.
    """
    sampled = metadata.get("sampled")
    if not sampled:
        return []
    rounds = ", ".join(f"{n:,}" for n in sampled["rounds"])
    share = sampled["passes"] / sampled["pairs"]
    spent = (
        f"{sampled['passes']:,} of {sampled['pairs']:,} pairs of a cell and a gene were measured ({share:.0%}; rounds "
        f"of {rounds}), of {sampled['genes']:,} genes; {sampled['not_sampled']:,} in fewer than {sampled['min_cells']} "
        "cells were only estimated"
    )
    trusted = sampled["first_order"][str(sampled["state"])]
    of_state = "" if sampled["state"] is None else f" ({sampled['state']})"
    if trusted["correlation"] is None:
        trust = "there was no first order: a plain sample"
    else:
        trust = (
            f"first order against measured values{of_state}, within genes: correlation {trusted['correlation']:.2f}, "
            f"slope {trusted['slope']:.2f}"
        )
    found = [
        f"{direction} {sampled['top']}: {len(genes['decided']):,} decided, {len(genes['undecided']):,} undecided"
        for direction, genes in sampled["found"].items()
    ]
    return [spent, trust, "; ".join(found)]


def steered_rows(metadata: Mapping[str, Any], statistics: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of statistics about the state that steered the passes of a sampled screen.

    Parameters
    ----------
    metadata
        Of the screen.
    statistics
        Of `shift_statistics`.
    """
    return statistics[statistics["state"] == metadata["sampled"]["state"]] if "state" in statistics else statistics
