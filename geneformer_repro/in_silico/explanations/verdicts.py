"""What the checks of an explanation say, in sentences; first whether there is anything to explain.

A ranking of genes always looks like a finding. So it is said first how good the model is on the rows that were
explained: of one that guesses, genes are what its network reacts to, and nothing about the label.
"""

from collections.abc import Iterator, Mapping
from typing import Any, cast

import numpy as np
import pandas as pd

from geneformer_repro.in_silico.explanations.agreement import OF_CHARACTERS, PLACE
from geneformer_repro.in_silico.explanations.how_good import sentence
from geneformer_repro.in_silico.explanations.removal import LARGEST, SIMPLE
from geneformer_repro.in_silico.explanations.sanity import MOST_ALIKE, PERMUTED_LABELS, RANDOM_WEIGHTS
from geneformer_repro.in_silico.published_statistics import SIGNIFICANT

UNKNOWN = (
    "How well the model predicts the rows explained is not known: their labels were not given, so nothing here says "
    "that there is anything to explain."
)


def how_good(metadata: Mapping[str, Any]) -> str:
    """Say how good the model is on the rows explained."""
    found = metadata.get("how_good")
    return UNKNOWN if not found else sentence(found)


def is_known(metadata: Mapping[str, Any]) -> bool:
    """Whether it is known how good the model is on the rows explained."""
    found = metadata.get("how_good")
    return found is not None and found["better_than_guessing"] is not None


def is_guessing(metadata: Mapping[str, Any]) -> bool:
    """Whether the model was found to be no better than guessing on the rows explained."""
    return is_known(metadata) and not metadata["how_good"]["better_than_guessing"]


def replicates(metadata: Mapping[str, Any]) -> str:
    """Return what tables of genes test over: donors, or the rows themselves, such as patients and samples."""
    rows_are = str(metadata.get("rows_are", "cells"))
    return "donors" if metadata.get("donor") and rows_are != "patients" else rows_are.partition(" ")[0]


def of_genes(genes: pd.DataFrame, metadata: Mapping[str, Any]) -> Iterator[str]:
    """Say how many genes differ from 0 over donors, and what was left out."""
    tested = genes["p_value"].notna()
    over = replicates(metadata)
    if tested.any():
        n = int((genes["fdr"] < SIGNIFICANT).sum())
        yield (
            f"{n:,} of {int(tested.sum()):,} tested rows have an effect that differs from 0 over {over} (FDR < 0.05)"
            + (": it is even, not large." if n else ".")
        )
    elif metadata.get("donor"):
        yield "No gene was seen in three donors, so there are effects and no p-values."
    else:
        yield "No donors were named, so there are effects and no p-values: cells of a donor are alike."
    for method, n in genes.attrs["n_left_out"].items():
        yield f"{n:,} of {genes.attrs['n_cells']:,} cells miss completeness and are left out of {method}."
    for state, fit in (metadata.get("surrogate") or {}).items():
        poor = fit["n_cells"] - fit["n_ranked"]
        if poor:
            yield (
                f"The surrogate fits poorly in {poor:,} of {fit['n_cells']:,} cells ({state}; median R² "
                f"{_number(fit['median_r2'])}, stability {_number(fit['median_stability'])}): there its weights rank "
                "nothing."
            )
    explained = {key: r2 for key, r2 in genes.attrs["explained_by_baselines"].items() if r2 > 0.5}
    for key, r2 in explained.items():
        yield f"What needs no model (place, detection, expression) explains R² = {r2:.2f} of {key}."


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"


def of_agreement(agreement: pd.DataFrame, rows_are: str = "cells") -> Iterator[str]:
    """Say how far methods agree in cells, or whatever rows are, and whether with more than places."""
    for state in agreement["state"].unique().tolist():
        table = agreement[_is(agreement["state"], state)]
        of = "" if pd.isna(state) else f" ({state})"
        by_place = table[table["method_b"] == PLACE].set_index("method_a")["spearman"]
        others = table[(table["method_b"] != PLACE) & ~table["same_operator"]]
        if len(others):
            median = others["spearman"].median()
            within = rows_are.partition(" ")[0]
            said = f"agree within {within} with a Spearman correlation of {median:.2f}{of}"
            yield f"Methods of different operators {said}."
        strong = by_place[by_place.abs() > 0.5]
        is_of_characters = np.array([str(name).endswith(OF_CHARACTERS) for name in strong.index], dtype=bool)
        for some, where in (
            (strong[~is_of_characters], "of a gene in the cell"),
            (strong[is_of_characters], "of a character in the SMILES"),
        ):
            if len(some):
                said = ", ".join(f"{name!s} {rho:.2f}" for name, rho in some.items())
                yield f"Much of it is the place {where}: correlation with place {said}{of}."


def of_removal(removal: pd.DataFrame) -> Iterator[str]:
    """Say of each method whether taking away its genes moves the answer more than chance and simple orders do."""
    first = removal[removal["order"].str.endswith(LARGEST) & ~removal["own_operator"] & (removal["way"] == "removal")]
    for key, table in first.groupby(["state", "operator"], sort=False, dropna=False):
        state, operator = cast(tuple[str | None, str], key)
        same = (removal["operator"] == operator) & (removal["way"] == "removal") & _is(removal["state"], state)
        simple = removal[same & removal["order"].isin(SIMPLE)]
        of = "" if pd.isna(state) else f" ({state})"
        for row in table.to_dict("records"):
            method = row["order"].partition(",")[0]
            what = "characters" if method.endswith(OF_CHARACTERS) else "genes"
            better = row["better"] > 0 and not row["p_value"] >= SIGNIFICANT
            beaten = simple.loc[simple["better"] >= row["better"], "order"].tolist()
            said = (
                f"moves the answer more than removing {what} at random"
                if better
                else "is not shown to move it more than chance"
            )
            also = f", but no more than going by {' or '.join(beaten)}" if better and beaten else ""
            also += "" if not np.isnan(row["p_value"]) else ", untested below three donors"
            faithful = "" if np.isnan(row["faithfulness"]) else f" (faithfulness {row['faithfulness']:.2f})"
            yield f"Removing what {method} puts first, by {operator}, {said}{also}{faithful}{of}."


def _is(column: pd.Series, value: Any) -> pd.Series:
    return column.isna() if pd.isna(value) else column == value


def _of_signs(row: dict[Any, Any]) -> str:
    """Say that directions are not alike where sizes are, as of values far from the baseline by any model."""
    signed = row.get("signed", np.nan)
    return f"; sizes alone are, with signs it is {signed:.2f}" if abs(signed) <= MOST_ALIKE else ""


def of_sanity(sanity: pd.DataFrame) -> Iterator[str]:
    """Say which maps stay as they are when the model forgets."""
    for model, why in ((RANDOM_WEIGHTS, "shows the input"), (PERMUTED_LABELS, "does not depend on the labels")):
        table = sanity[sanity["model"] == model]
        if table.empty:
            continue
        alike = table[table["spearman"].abs() > MOST_ALIKE]
        for row in alike.to_dict("records"):
            of = "" if pd.isna(row["state"]) else f" ({row['state']})"
            yield (
                f"{row['method']} mostly {why}: with {model} its map is alike, Spearman {row['spearman']:.2f}{of}, "
                f"more than {MOST_ALIKE}{_of_signs(row)}."
            )
        if alike.empty:
            most = table["spearman"].abs().max()
            yield f"With {model} no map is alike: Spearman at most {most:.2f}."
