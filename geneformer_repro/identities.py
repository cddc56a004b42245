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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

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
_LEAST_SAMPLES, LEAST_GENES, _LEAST_DEVIATION = 20, 100, 1e-6
"""A study with so many samples has means and deviations of its own; so many genes make a profile; and a gene with less
spread varies by rounding alone."""


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
        Row of each name as it is written, if it stands in one row alone.
    rows_of_letters
        The same of normalised names.

    See Also
    --------
    identities.same_samples : Samples of two studies.

    Examples
    --------
    >>> import pandas as pd
    >>> from geneformer_repro.identities import Aliases
    >>> table = pd.DataFrame({"name": ["HL-60", "KM-H2"], "COSMIC_ID": [905938, None]})
    >>> aliases = Aliases.of_table(table)
    >>> aliases.row("905938"), aliases.row("kmh2"), aliases.row("K562")
    (0, 1, None)
    """

    rows: dict[str, int] = field(repr=False)
    rows_of_letters: dict[str, int] = field(repr=False)

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

        See Also
        --------
        Aliases.row : Looks a name up.
        read_responses : Responses, whose samples are joined by them.

        Examples
        --------
        >>> import pandas as pd
        >>> from geneformer_repro.identities import Aliases
        >>> table = pd.DataFrame({"name": ["HL-60"], "synonyms": ["HL60; HL 60"], "sex": ["female"]})
        >>> Aliases.of_table(table).row("HL 60")
        0
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
        of_letters: dict[str, set[int]] = defaultdict(set)
        for alias, numbers in places.items():
            of_letters[normalised_name(alias)] |= numbers
        shared = sorted(alias for alias, numbers in places.items() if len(numbers) > 1)
        logger.info(
            "%s: %s samples by %s%s.",
            *(name, f"{len(rows):,}", ", ".join(map(repr, naming))),
            f"; names that stand in several rows are nobody's: {examples(shared)}" if shared else "",
        )
        return cls(*({key: min(n) for key, n in rows_of.items() if len(n) == 1} for rows_of in (places, of_letters)))

    def row(self, name: str) -> int | None:
        """Return the row of a name, as it is written, else once it is normalised; None where there is none.

        See Also
        --------
        Aliases.of_table : Reads the names.

        Examples
        --------
        >>> import pandas as pd
        >>> from geneformer_repro.identities import Aliases
        >>> aliases = Aliases.of_table(pd.DataFrame({"name": ["T-T", "TT"], "id": ["CVCL_3174", "CVCL_1774"]}))
        >>> aliases.row("TT"), aliases.row("cvcl-3174"), aliases.row("tt")
        (1, 0, None)
        """
        return self.rows.get(name.strip(), self.rows_of_letters.get(normalised_name(name)))


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

    See Also
    --------
    identities.Aliases : What else samples are called.
    identities.near_duplicates : Samples that are one under names that nothing leads to each other.

    Examples
    --------
    >>> from geneformer_repro.identities import same_samples
    >>> same_samples(["42-MG-BA", "HL-60"], ["HL-60", "42MGBA", "K-562"])
              a       b               by
    0  42-MG-BA  42MGBA  normalised name
    1     HL-60   HL-60             name
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
    pairs: dict[tuple[str, str], str] = {}
    for a in names_a:
        pairs |= {(a, b): "alias" for b in (same_row[rows[a]] if rows[a] is not None else [])}
        pairs |= {(a, b): "name" for b in same_text[a.strip()]}
    sure_a, sure_b = {a for a, _ in pairs}, {b for _, b in pairs}
    for a in names_a:
        alike = same_letters[normalised_name(a)]
        is_alone = n_of_letters[normalised_name(a)] == len(alike) == 1
        for b in alike:
            told_apart = (a in sure_a and b in sure_b) or (rows[a] is not None and rows[b] is not None)
            if not told_apart:
                pairs[a, b] = "normalised name" if is_alone else "ambiguous"
    order = {a: i for i, a in enumerate(names_a)}
    return sorted(((a, b, by) for (a, b), by in pairs.items()), key=lambda pair: order[pair[0]])


def numbers_by_name(numbers: Mapping[str, int], wanted: Iterable[str]) -> dict[str, int]:
    """Return the numbers of wanted names: by the name as it is, else by the normalised name, where that has one number.

    Names without a number are not among them.
    """
    of_letters: dict[str, set[int]] = defaultdict(set)
    for name, number in numbers.items():
        of_letters[normalised_name(name)].add(number)
    candidates = {name: {numbers[name]} if name in numbers else of_letters[normalised_name(name)] for name in wanted}
    return {name: min(choices) for name, choices in candidates.items() if len(choices) == 1}


def _groups(names: Sequence[str], key: Callable[[str], Any]) -> dict[Any, list[str]]:
    groups: dict[Any, list[str]] = defaultdict(list)
    for name in names:
        groups[key(name)].append(name)
    return groups


def sample_keys(names: Sequence[str], aliases: Aliases | None = None) -> list[str]:
    """Return who each sample of a study is: the normalised name of the first that the table of aliases has with it.

    Names that only normalisation makes equal have one key, too: whether they are one sample is unclear, and a split
    must not tear them apart.
    """
    first: dict[Any, str] = {}
    rows = [aliases.row(name) if aliases else None for name in names]
    of_names = [normalised_name(name) for name in names]
    return [first.setdefault(of if row is None else row, of) for of, row in zip(of_names, rows, strict=True)]


# profiles of two studies


def near_duplicates(
    a: pd.DataFrame, b: pd.DataFrame | None = None, *, threshold: float = 0.99, margin: float = 0.2
) -> pd.DataFrame:
    """List pairs of samples that are one by their expression, whatever they are called.

    A copy has the same profile to the last digits. The same material processed another way has not: counts and
    published z-scores of 450 tumours of TCGA correlate at 0.01 to 0.44 with themselves. Once each gene is standardised
    within its study they do at 0.79 to 0.92, but lines of one lineage reach 0.82, too (GDSC), only that they have
    several neighbours as near. So what is there twice is told by a neighbour that is nearer than all others, seen from
    both sides: 447 of the 450, and no wrong pair. Of GDSC's 975 lines five pairs are listed, the first of them a copy
    (LB771-HNC and FLO-1, 0.996 as they are); the other four are to be looked at.

    Parameters
    ----------
    a, b
        Expression, samples × genes, on a scale on which sums make sense (log2, z-scores). Genes count that both have,
        without gaps. Without `b`, pairs within `a` are looked for.
    threshold
        Least Pearson correlation over the genes as they are.
    margin
        Or the least by which two samples, standardised, are nearer to each other than either is to any third. A study
        of fewer than 20 samples takes the means and deviations of the other; where neither has as many, nothing is
        found so. Nor is what is there three times, or twice in one study: its copies are as near to each other.

    Returns
    -------
    A row a pair, the widest margin first: ``a``, ``b``, ``r``, and, once standardised, ``r_standardised`` and
    ``margin``.

    Raises
    ------
    InputError
        There are fewer than 100 genes that both have.

    See Also
    --------
    identities.same_samples : By their names.

    Examples
    --------
    >>> import numpy as np
    >>> import pandas as pd
    >>> from geneformer_repro.identities import near_duplicates
    >>> rng = np.random.default_rng(0)
    >>> profiles = pd.DataFrame(rng.normal(size=(30, 500)), index=[f"line{i}" for i in range(30)])
    >>> again = profiles[10:] * rng.gamma(2, size=500) + rng.normal(size=500)  # on another platform
    >>> listed = near_duplicates(profiles, again.rename("{}-again".format))
    >>> len(listed), bool((listed["a"] + "-again" == listed["b"]).all())
    (20, True)
    """
    other, within = (a, True) if b is None else (b, False)
    values = _shared_values(a, other)
    scaled = _standardised(*values)
    plain_a, plain_b, scaled_a, scaled_b = map(_unit, (*values, *scaled))
    of_a, of_b = _neighbours(scaled_a, scaled_b, within), _neighbours(scaled_b, scaled_a, within)
    pairs = {(i, int(j)) for i, j in enumerate(of_a.nearest) if of_b.nearest[j] == i and of_a.r[i] > -1}
    rows = []
    for i, j in sorted(pairs | set(_above(plain_a, plain_b, threshold, within))):
        r_standardised = float(scaled_a[i] @ scaled_b[j])
        gap = r_standardised - max(of_a.beside(i, j), of_b.beside(j, i))
        r = float(plain_a[i] @ plain_b[j])
        if (r >= threshold or gap >= margin) and not (within and j < i):
            rows.append((a.index[i], other.index[j], r, r_standardised, gap))
    table = pd.DataFrame(rows, columns=["a", "b", "r", "r_standardised", "margin"])
    return table.sort_values("margin", ascending=False, ignore_index=True)


def _shared_values(a: pd.DataFrame, b: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return both studies over the genes that they share and that are finite in all samples."""
    there = set(b.columns)
    genes = [gene for gene in a.columns if gene in there]
    values_a, values_b = (frame[genes].to_numpy(np.float32) for frame in (a, b))
    is_finite = np.isfinite(values_a).all(axis=0) & np.isfinite(values_b).all(axis=0)
    if is_finite.sum() < LEAST_GENES:
        raise InputError(
            f"Profiles are compared over genes that both studies have without gaps: expected {LEAST_GENES} or more, "
            f"found {is_finite.sum()}. They are called {examples(a.columns)} and {examples(b.columns)}."
        )
    return values_a[:, is_finite], values_b[:, is_finite]


def _standardised(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each gene less its mean, by its deviation, within each study; NaN where both have too few samples."""
    whole = [values for values in (a, b) if len(values) >= _LEAST_SAMPLES]
    moments = {id(values): (values.mean(axis=0), values.std(axis=0)) for values in whole}
    if not moments:
        return np.full_like(a, np.nan), np.full_like(b, np.nan)
    any_moments = next(iter(moments.values()))
    scaled = []
    for values in (a, b):
        means, deviations = moments.get(id(values), any_moments)
        varies = deviations > _LEAST_DEVIATION
        scaled.append(np.divide(values - means, deviations, out=np.zeros_like(values), where=varies))
    return scaled[0], scaled[1]


class _Neighbours(NamedTuple):
    """Of each sample the nearest of others, its correlation, and that of the next."""

    nearest: np.ndarray
    r: np.ndarray
    r_next: np.ndarray

    def beside(self, i: int, j: int) -> float:
        """Return the highest correlation of sample i with any other than j."""
        return float(self.r_next[i] if self.nearest[i] == j else self.r[i])


def _neighbours(a: np.ndarray, b: np.ndarray, within: bool) -> _Neighbours:
    nearest, r, r_next = np.zeros(len(a), dtype=np.int64), np.full(len(a), -1.0), np.full(len(a), -1.0)
    for start, r_BM in _blocks(a, b, within):
        rows = np.arange(len(r_BM))
        best = r_BM.argmax(axis=1)
        nearest[start + rows], r[start + rows] = best, r_BM[rows, best]
        r_BM[rows, best] = -1
        r_next[start + rows] = r_BM.max(axis=1)
    return _Neighbours(nearest, r, r_next)


def _above(a: np.ndarray, b: np.ndarray, threshold: float, within: bool) -> Iterator[tuple[int, int]]:
    for start, r_BM in _blocks(a, b, within):
        for i, j in zip(*np.nonzero(r_BM >= threshold), strict=True):
            yield start + int(i), int(j)


def _blocks(a: np.ndarray, b: np.ndarray, within: bool) -> Iterator[tuple[int, np.ndarray]]:
    """Return correlations of a block of rows with all of the other study, -1 of a row with itself."""
    for start in range(0, len(a), _BLOCK):
        r_BM = a[start : start + _BLOCK] @ b.T
        if within:
            rows = np.arange(len(r_BM))
            r_BM[rows, start + rows] = -1
        yield start, r_BM


def _unit(values: np.ndarray) -> np.ndarray:
    """Return rows of mean 0 and length 1, whose products are correlations; zeros where a row has no spread."""
    centred = values - values.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.divide(centred, lengths, out=np.zeros_like(centred), where=lengths > 0)
