"""Whether two names are one sample: by their letters, by a user's table of aliases, by the expression itself.

Studies spell one cell line in many ways ("42-MG-BA", "42MGBA"), and a line that goes by another name stands on both
sides of a split: of 504 lines of CCLE, 315 have a name of GDSC's to the letter, and 54 more once both are
normalised. What normalisation takes away tells some apart, though: GDSC has both "T-T" and "TT". So a name that meets
two others is never joined to one of them, and is said.
"""

import logging
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from geneformer_repro.errors import InputError, did_you_mean
from geneformer_repro.tokenizer.features import texts
from geneformer_repro.tokenizer.tables import examples, read_rows

logger = logging.getLogger(__name__)

_GREEK = re.compile(r"GREEK (?:SMALL|CAPITAL) LETTER (\w+)\Z")
_NAMING = re.compile(
    r"(stripped_?)?(cell_?line|sample|model|depmap|cosmic|cellosaurus|rrid|cvcl|ccle|sanger|broad|gdsc|patient|arxspan"
    r"|achilles|accession|alias|synonym|name|id|identifier)(es|s)?(_?(name|id|key|accession|code|model|alias))*(es|s)?\Z"
)
"""What columns of a table of aliases are called; others (tissue, sex) tell nothing about who a sample is."""
_BETWEEN = re.compile(r"\s*[;|]\s*|,\s+")
"""What stands between several names in one field: as in Cellosaurus ("; "), in DepMap (", ")."""
_BLOCK = 512
"""Samples whose correlations are computed at once."""


def normalised_name(name: str) -> str:
    """Return a name's letters and digits, in capitals: "42-MG-BA" is "42MGBA", "β-Lapachone" is "BETALAPACHONE".

    Accents are dropped and Greek letters written out. A name without a single letter or digit stays as it is. Different
    samples may have one normalised name ("T-T" and "TT"): `same_samples` says so.
    """
    spelt = "".join(map(_spelt, unicodedata.normalize("NFKD", name)))
    return re.sub(r"[^A-Z0-9]", "", spelt.upper()) or name.strip()


def _spelt(character: str) -> str:
    greek = _GREEK.match(unicodedata.name(character, ""))
    return greek[1] if greek else character


@dataclass(frozen=True, eq=False)
class Aliases:
    """Names of samples, each with its row in a table in which a row is a sample; made by `Aliases.of_table`.

    Parameters
    ----------
    rows
        Row of each name as it is written, and of each normalised name, if it stands in one row alone.
    """

    rows: dict[str, int] = field(repr=False)

    @classmethod
    def of_table(cls, table: pd.DataFrame | str | Path, *, columns: Sequence[str] | None = None) -> "Aliases":
        """Read a table in which a row is a sample, and its columns are what studies and registers call it.

        Parameters
        ----------
        table
            A data frame or a file. A field may hold several names, with ``;``, ``|`` or ``, `` between them.
        columns
            Those with names and ids (of Cellosaurus, DepMap, COSMIC …); by default those that are called so. What
            stands in two rows is nobody's name.

        Raises
        ------
        InputError
            A column is missing, or fewer than two hold names.
        DataFormatError
            The file is no table.
        """
        name, rows = read_rows(table, "The table of aliases")
        missing = [column for column in columns or () if column not in rows]
        if missing:
            raise InputError(f"{name}: there is no column {missing[0]!r}. {did_you_mean(missing[0], rows.columns)}")
        naming = list(columns or filter(_is_naming, rows.columns))
        if len(naming) < 2:
            raise InputError(
                f"{name}: expected two or more columns with names or ids of samples, such as 'name', 'alias', "
                f"'DepMap_ID', 'COSMIC_ID' or 'RRID'; found {naming or 'none'} among {examples(rows.columns, 8)}. Name "
                "them with columns=."
            )
        places: dict[str, set[int]] = defaultdict(set)
        for column in naming:
            for row, text in enumerate(_as_texts(rows[column])):
                for alias in filter(None, _BETWEEN.split(text)):
                    places[alias].add(row)
                    places[normalised_name(alias)].add(row)
        shared = sorted(alias for alias, numbers in places.items() if len(numbers) > 1)
        logger.info(
            "%s: %s samples by %s; %d names stand in several rows and are not used%s.",
            *(name, f"{len(rows):,}", ", ".join(map(repr, naming)), len(shared)),
            f" ({examples(shared)})" if shared else "",
        )
        return cls({alias: min(numbers) for alias, numbers in places.items() if len(numbers) == 1})

    def row(self, name: str) -> int | None:
        """Return the row of a name, as it is written, else once it is normalised; None where there is none."""
        name = name.strip()
        return self.rows.get(name, self.rows.get(normalised_name(name)))


def _is_naming(column: str) -> bool:
    return _NAMING.match(re.sub(r"[\W_]+", "_", column.lower()).strip("_")) is not None


def _as_texts(column: pd.Series) -> list[str]:
    """Return ids as text, whole numbers without the fraction that a missing one beside them leaves."""
    if pd.api.types.is_float_dtype(column) and bool((column.dropna() % 1 == 0).all()):
        column = column.astype("Int64")
    return texts(column)


# names of two studies


def same_samples(a: Iterable[str], b: Iterable[str], aliases: Aliases | None = None) -> pd.DataFrame:
    """Say which samples of two studies are the same, by their names.

    Parameters
    ----------
    a, b
        Names of samples; one that stands twice is taken once.
    aliases
        What else they are called.

    Returns
    -------
    A row a pair, in the order of `a`: ``a``, ``b`` and ``by``: "name" (the same text), "alias" (one row of the table of
    aliases), "normalised name", or "ambiguous" (the same normalised name, which several samples of one study have). An
    ambiguous pair is not to be joined, and not to be torn apart by a split either. The log names them.
    """
    names_a, names_b = ([*dict.fromkeys(map(str, names))] for names in (a, b))
    pairs = _pairs(names_a, names_b, aliases)
    table = pd.DataFrame(pairs, columns=["a", "b", "by"])
    unclear = table[table["by"] == "ambiguous"]
    if len(unclear):
        logger.warning(
            "%d pairs of samples have one normalised name, which several samples of a study have: %s. A table of "
            "aliases tells them apart.",
            *(len(unclear), examples([f"{pair.a} = {pair.b}?" for pair in unclear.itertuples()])),
        )
    return table


def _pairs(names_a: Sequence[str], names_b: Sequence[str], aliases: Aliases | None) -> list[tuple[str, str, str]]:
    """Match by text, by row of the aliases, and by normalised name where neither of the two said anything else."""
    rows = {name: aliases.row(name) if aliases else None for name in [*names_a, *names_b]}
    same_text, same_row, same_letters = (_groups(names_b, key) for key in (str.strip, rows.get, normalised_name))
    n_of_letters = Counter(map(normalised_name, names_a))
    certain: list[tuple[str, str, str]] = []
    for a in names_a:
        by_text, by_row = same_text[a.strip()], same_row[rows[a]] if rows[a] is not None else []
        certain += [(a, b, "name") for b in by_text]
        certain += [(a, b, "alias") for b in by_row if b not in by_text]
    matched = {a for a, _, _ in certain}, {b for _, b, _ in certain}
    pairs = {(a, b): by for a, b, by in certain}
    for a in names_a:
        alike = same_letters[normalised_name(a)]
        alone = n_of_letters[normalised_name(a)] == len(alike) == 1
        for b in alike:
            told_apart = (a in matched[0] and b in matched[1]) or (rows[a] is not None and rows[b] is not None)
            if not told_apart:
                pairs.setdefault((a, b), "normalised name" if alone else "ambiguous")
    order = {a: i for i, a in enumerate(names_a)}
    return sorted(((a, b, by) for (a, b), by in pairs.items()), key=lambda pair: order[pair[0]])


def _groups(names: Sequence[str], key: Callable[[str], Any]) -> dict[Any, list[str]]:
    groups: dict[Any, list[str]] = defaultdict(list)
    for name in names:
        groups[key(name)].append(name)
    return groups


# profiles of two studies


def near_duplicates(
    a: np.ndarray, b: np.ndarray, names_a: Sequence[str], names_b: Sequence[str], *, threshold: float = 0.99
) -> pd.DataFrame:
    """List pairs of samples of two studies whose expression is all but the same.

    Parameters
    ----------
    a, b
        Expression (samples × genes) over the same genes in the same order, on one scale, log2 or standardised; finite.
    names_a, names_b
        Names of the rows.
    threshold
        Least Pearson correlation over the genes.

    Returns
    -------
    A row a pair, the highest correlation first: ``a``, ``b``, ``r``. Of one study with itself give it twice: pairs of a
    row with itself, and each pair a second time, are not for the caller to remove: they are not among them when `a` is
    `b`.

    Raises
    ------
    InputError
        The genes are not as many, names are not as many as rows, or values are not finite.
    """
    for values, names in ((a, names_a), (b, names_b)):
        if values.ndim != 2 or values.shape[1] != a.shape[1] or len(values) != len(names):
            raise InputError(
                f"near_duplicates: expected samples × {a.shape[1]:,} genes and as many names, found an array of shape "
                f"{values.shape} and {len(names):,} names."
            )
        if not np.isfinite(values).all():
            raise InputError("near_duplicates: values must be finite; leave out genes that a sample lacks.")
    one, other = _standardised(a), _standardised(b)
    pairs = [
        (start + i, j, r_BM[i, j])
        for start in range(0, len(one), _BLOCK)
        for r_BM in [one[start : start + _BLOCK] @ other.T]
        for i, j in zip(*np.nonzero(r_BM >= threshold), strict=True)
        if a is not b or j > start + i
    ]
    pairs.sort(key=lambda pair: -pair[2])
    return pd.DataFrame([(names_a[i], names_b[j], float(r)) for i, j, r in pairs], columns=["a", "b", "r"])


def _standardised(values: np.ndarray) -> np.ndarray:
    """Return rows of mean 0 and length 1, zeros where a row has no spread."""
    centred = values.astype(np.float32) - values.mean(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.divide(centred, lengths, out=np.zeros_like(centred), where=lengths > 0)
