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
from geneformer_repro.tokenizer.features import texts
from geneformer_repro.tokenizer.genes import KnownGenes, gene_ids_of
from geneformer_repro.tokenizer.tables import column_called, examples, read_rows

SOURCE_COLUMNS = ("source", "tf", "regulator", "tf_name", "source_genesymbol", "from", "perturbed")
TARGET_COLUMNS = ("target", "target_gene", "gene", "target_genesymbol", "to")
SIGN_COLUMNS = ("sign", "mor", "mode", "mode_of_regulation", "effect", "weight")
CONFIDENCE_COLUMNS = ("confidence", "level", "evidence_level")
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
    """

    name: str
    edges: pd.DataFrame
    lost: dict[str, int | str]
    described: dict[str, str]

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
    columns = {what: _column(rows, choices, what, called) for what, choices in _NEEDED.items()}
    n_rows, lost = len(rows), {}
    if confidence is not None:
        rows = _of_confidence(rows, confidence, called)
        lost["other confidence"] = n_rows - len(rows)
    pairs = pd.DataFrame({what: texts(rows[column]) for what, column in columns.items()})
    pairs["sign"] = _signs(rows, columns)
    ids = gene_ids_of(sorted({*pairs["source"], *pairs["target"]} - {""}), genes)
    named = pairs[["source", "target"]].copy()
    for what in ("source", "target"):
        pairs[what] = pairs[what].map(ids).fillna("")
    unknown = {what: pairs[what].eq("").to_numpy() for what in ("source", "target")}
    lost["unknown source"] = int(unknown["source"].sum())
    lost["unknown target"] = int((unknown["target"] & ~unknown["source"]).sum())
    pairs = pairs[~unknown["source"] & ~unknown["target"]]
    lost["of a gene with itself"] = int((pairs["source"] == pairs["target"]).sum())
    pairs = pairs[pairs["source"] != pairs["target"]]
    edges = _each_once(pairs)
    lost["listed again"] = len(pairs) - len(edges)
    missing = [gene for gene in ids.index if not ids[gene]]
    if not len(edges):
        raise InputError(
            f"{called}: no edge of its {n_rows:,} rows is between two genes of the network (names such as "
            f"{examples(named['source'].unique())} and {examples(named['target'].unique())}). Give symbols or Ensembl "
            "ids of the same species."
        )
    return KnownEdges(name, edges, {"rows": n_rows, **lost, "unknown names": examples(missing, _NAMED)}, _said(rows))


_NEEDED = {"source": SOURCE_COLUMNS, "target": TARGET_COLUMNS}


def _column(rows: pd.DataFrame, choices: Sequence[str], what: str, called: str) -> str:
    column = column_called(list(rows.columns), choices)
    if column is None:
        raise DataFormatError(
            f"{called}: has no column of {what}s, which may be called {', '.join(choices)}; found "
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
