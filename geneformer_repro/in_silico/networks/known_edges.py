"""Known edges as a table of others: which pairs of the network's genes they are, and what of them was lost.

A reference names genes as its authors did (symbols of their year, complexes such as AP1), so its names are led to genes
as those of a source of counts are, and every row that is not used is counted with the reason. Nothing ships with the
package: the licences of TRRUST, DoRothEA and CollecTRI differ, and half of DoRothEA's best class is TRRUST
(`overlap_of`), so two references are hardly ever two witnesses.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from geneformer_repro.errors import DataFormatError, InputError, did_you_mean
from geneformer_repro.in_silico.published_statistics import false_discovery_rate
from geneformer_repro.tokenizer.features import texts
from geneformer_repro.tokenizer.gene_lists import SOURCE_COLUMNS, TARGET_COLUMNS
from geneformer_repro.tokenizer.genes import KnownGenes, gene_ids_of
from geneformer_repro.tokenizer.tables import column_called, examples, read_rows

SIGN_COLUMNS = ("sign", "mor", "mode", "mode_of_regulation", "effect", "weight")
CONFIDENCE_COLUMNS = ("confidence", "level", "evidence_level")
P_COLUMNS = ("p", "p_value", "pvalue", "p_val", "pval")
EFFECT_COLUMNS = ("wasserstein", "wasserstein_distance", "log2fc", "log2_fold_change", "logfc", "effect")
_CHANGED = 0.05
_DESCRIBED = ("set", "version", "licence", "license")
_UP, _DOWN = ("activat", "stimul", "up", "positive", "+"), ("repress", "inhibit", "down", "negative", "-")
_NAMED = 20


@dataclass(frozen=True, eq=False)
class KnownEdges:
    """Edges that somebody knows, as pairs of gene ids; made by `read_known_edges`.

    Parameters
    ----------
    name
        What the reference is called in tables.
    edges
        ``source`` and ``target`` (gene ids), each pair once and none of a gene with itself, and ``sign``: 1 activates,
        -1 represses, 0 unknown or told both ways.
    lost
        Rows that were not used, by reason: ``other confidence``, ``unknown source``, ``unknown target``, ``of a gene
        with itself``, ``listed again``; ``rows`` is how many the table has, ``unknown names`` a text with the first.
    described
        What the table says of itself: set, version, licence.
    measured
        Of a table of perturbations, which pairs were looked at: ``source``, ``target``, and the size of the ``effect``,
        NaN where none is told. None: of all pairs something is known, if only that nobody lists them.
    """

    name: str
    edges: pd.DataFrame
    lost: dict[str, int | str]
    described: dict[str, str]
    measured: pd.DataFrame | None = None

    def __len__(self) -> int:
        return len(self.edges)


def read_known_edges(
    known: pd.DataFrame | str | Path, genes: KnownGenes, *, name: str, confidence: Sequence[str] | None = None
) -> KnownEdges:
    """Read a table of edges.

    Parameters
    ----------
    known
        A row an edge, a table or a file (``.tsv``, ``.csv``, ``.parquet``): a column of sources (``source``, ``tf``,
        ``regulator`` …) and one of targets (``target``, ``gene`` …), ids or symbols; ``sign`` or ``mor`` (a number, or
        words such as Activation), ``confidence``, ``set``, ``version`` and ``licence`` where they are there.
    genes
        Genes of the network.
    name
        What to call the reference.
    confidence
        Levels to use, such as ``["A", "B", "C"]``; None all.

    Raises
    ------
    DataFormatError
        There is no column of sources or of targets.
    InputError
        The file is missing, there is no such level, or no edge is between genes of the network.
    """
    called, rows = read_rows(known, f"known[{name!r}]")
    columns = {what: _column(rows, choices, f"{what}s", called) for what, choices in _NEEDED.items()}
    n_rows = len(rows)
    lost: dict[str, int | str] = {}
    if confidence is not None:
        rows = _of_confidence(rows, confidence, called)
        lost["other confidence"] = n_rows - len(rows)
    pairs = pd.DataFrame({what: texts(rows[column]) for what, column in columns.items()})
    pairs["sign"] = _signs(rows, columns)
    pairs, of_names = _led_to_genes(pairs, genes)
    edges = _each_once(pairs)
    lost |= of_names | {"listed again": len(pairs) - len(edges)}
    if not len(edges):
        raise _nothing_known(called, n_rows, rows, columns)
    return KnownEdges(name, edges, {"rows": n_rows, **lost}, _said(rows))


def read_perturbed(perturbed: pd.DataFrame | str | Path, genes: KnownGenes, *, name: str) -> KnownEdges:
    """Read what changed when genes were perturbed: targets with a false discovery rate below 0.05 are the edges.

    Parameters
    ----------
    perturbed
        A row a perturbed gene and a measured one, a table or file: a column of perturbed genes (``perturbed``,
        ``source`` …), one of measured genes (``target``, ``gene`` …), ``p`` (or ``p_value``), and where it is there the
        size of the effect (``wasserstein``, ``log2fc`` …), whose sign is left out.
    genes, name
        As of `read_known_edges`.

    Returns
    -------
    The changed pairs; ``measured`` are all pairs, which alone can be scored. Rates are by Benjamini and Hochberg over
    the genes of one perturbation; of a pair that stands several times the smallest p-value counts.

    Raises
    ------
    DataFormatError
        A column is missing, or a p-value is none.
    InputError
        The file is missing, or nothing changed between genes of the network.
    """
    called, rows = read_rows(perturbed, f"perturbed[{name!r}]")
    columns = {what: _column(rows, choices, f"{what}s", called) for what, choices in _NEEDED.items()}
    p_column = _column(rows, P_COLUMNS, "p-values", called)
    effect_column = column_called(list(rows.columns), EFFECT_COLUMNS)
    pairs = pd.DataFrame({what: texts(rows[column]) for what, column in columns.items()})
    pairs["p_value"] = pd.to_numeric(rows[p_column], errors="coerce").to_numpy()
    wrong = ~pairs["p_value"].between(0, 1)
    if wrong.any():
        found = rows[p_column].iloc[int(np.argmax(wrong))]
        raise DataFormatError(f"{called}: row {int(np.argmax(wrong)) + 1} has the p-value {found!r}; expected 0 to 1.")
    pairs["effect"] = np.nan
    if effect_column is not None:
        pairs["effect"] = pd.to_numeric(rows[effect_column], errors="coerce").abs().to_numpy()
        if pairs["effect"].isna().any():
            row = int(pairs["effect"].isna().to_numpy().argmax()) + 1
            raise DataFormatError(
                f"{called}: {effect_column!r} has no number in row {row}. Leave the column out, or the row."
            )
    pairs, lost = _led_to_genes(pairs, genes)
    measured = pairs.sort_values("p_value", kind="stable").drop_duplicates(["source", "target"])
    measured["fdr"] = measured.groupby("source")["p_value"].transform(false_discovery_rate)
    edges = measured.loc[measured["fdr"] < _CHANGED, ["source", "target"]].assign(sign=0.0)
    if not len(edges):
        raise _nothing_known(called, len(rows), rows, columns)
    lost |= {"listed again": len(pairs) - len(measured), "did not change": len(measured) - len(edges)}
    edges = edges.sort_values(["source", "target"], ignore_index=True)
    return KnownEdges(name, edges, {"rows": len(rows), **lost}, _said(rows), measured[["source", "target", "effect"]])


def _led_to_genes(pairs: pd.DataFrame, genes: KnownGenes) -> tuple[pd.DataFrame, dict[str, int | str]]:
    """Return the rows between two known genes with their ids, and how many were lost why."""
    ids = gene_ids_of(sorted({*pairs["source"], *pairs["target"]} - {""}), genes)
    led = pairs.assign(**{what: pairs[what].map(ids).fillna("") for what in ("source", "target")})
    no_source, no_target = led["source"].eq(""), led["target"].eq("")
    itself = led["source"].eq(led["target"]) & ~no_source
    lost: dict[str, int | str] = {
        "unknown source": int(no_source.sum()),
        "unknown target": int((no_target & ~no_source).sum()),
        "of a gene with itself": int(itself.sum()),
        "unknown names": examples([gene for gene in ids.index if not ids[gene]], _NAMED),
    }
    return led[~no_source & ~no_target & ~itself], lost


def _nothing_known(called: str, n_rows: int, rows: pd.DataFrame, columns: dict[str, str]) -> InputError:
    named = [examples(pd.unique(rows[column])) for column in columns.values()]
    return InputError(
        f"{called}: no edge in its {n_rows:,} rows is between two genes of the network (names such as {named[0]} and "
        f"{named[1]}). Give symbols or Ensembl ids of the same species; a knockdown has edges where a gene changed."
    )


_NEEDED = {"source": SOURCE_COLUMNS, "target": TARGET_COLUMNS}


def _column(rows: pd.DataFrame, choices: Sequence[str], what: str, called: str) -> str:
    column = column_called(list(rows.columns), choices)
    if column is None:
        raise DataFormatError(
            f"{called}: has no column of {what}, which may be called {', '.join(choices)}; found "
            f"{examples(rows.columns, 8)}. Name it so; a file without a header needs one."
        )
    return column


def _of_confidence(rows: pd.DataFrame, confidence: Sequence[str], called: str) -> pd.DataFrame:
    column = column_called(list(rows.columns), CONFIDENCE_COLUMNS)
    if column is None:
        raise InputError(f"{called}: has no column of confidence. Leave confidence= out.")
    levels = pd.Series(texts(rows[column]), index=rows.index)
    wanted = [confidence] if isinstance(confidence, str) else list(confidence)
    if missing := [level for level in wanted if not levels.eq(level).any()]:
        raise InputError(f"{called}: no row has confidence {missing[0]!r}. {did_you_mean(missing[0], levels.unique())}")
    return rows[levels.isin(wanted)]


def _signs(rows: pd.DataFrame, columns: dict[str, str]) -> np.ndarray:
    """Return 1, -1 or 0 of each row: of numbers their sign, of words what they begin with."""
    others = [column for column in rows.columns if column not in columns.values()]
    column = column_called(others, SIGN_COLUMNS)
    if column is None:
        return np.zeros(len(rows))
    numbers = pd.to_numeric(rows[column], errors="coerce")
    words = pd.Series(texts(rows[column]), index=rows.index).str.lower()
    of_words = np.select([words.str.startswith(_UP), words.str.startswith(_DOWN)], [1.0, -1.0], 0.0)
    return np.where(numbers.notna(), np.sign(numbers.fillna(0)), of_words)


def _each_once(pairs: pd.DataFrame) -> pd.DataFrame:
    """Return each pair once, with its sign where all rows that tell one agree."""
    grouped = pairs.groupby(["source", "target"], sort=True)["sign"]
    up, down = grouped.max() > 0, grouped.min() < 0
    return (up.astype(float) - down.astype(float)).rename("sign").reset_index()


def _said(rows: pd.DataFrame) -> dict[str, str]:
    """Return what a table says of itself, where it says it of all its rows or of few kinds of them."""
    found = {name: column_called(list(rows.columns), [name]) for name in _DESCRIBED}
    return {name: ", ".join(sorted(set(texts(rows[column])) - {""})[:5]) for name, column in found.items() if column}


def overlap_of(first: KnownEdges, second: KnownEdges) -> dict[str, float]:
    """Return how far two references hold the same edges, among the genes of the network.

    Returns
    -------
    ``n_shared`` edges; ``share_of_first`` and ``share_of_second`` that these are; ``jaccard``, shared over all.
    """
    pairs = [set(zip(known.edges["source"], known.edges["target"], strict=True)) for known in (first, second)]
    shared = len(pairs[0] & pairs[1])
    return {
        "n_shared": shared,
        "share_of_first": shared / len(pairs[0]),
        "share_of_second": shared / len(pairs[1]),
        "jaccard": shared / len(pairs[0] | pairs[1]),
    }
