"""Gene sets and lists of genes as others write them, led to the genes of a table; none ships with the package.

Sets name genes by the symbols of their year. Names are led to genes as those of a source of counts are, and those that
lead to none are counted. What a file says of itself (version, licence) stands in each result, with its digest: pathways
of two years differ in a tenth of their genes.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from geneformer_repro.errors import DataFormatError, InputError
from geneformer_repro.files import read_text, sha256
from geneformer_repro.in_silico.explanations.scored_genes import NAME_COLUMNS, ScoredGenes, places_of
from geneformer_repro.tokenizer.features import texts
from geneformer_repro.tokenizer.gene_lists import MEMBER_COLUMNS, SET_COLUMNS, read_genes
from geneformer_repro.tokenizer.tables import column_called, examples, read_rows

_LIST_COLUMNS = tuple(dict.fromkeys(("hugo_symbol", "gene_symbol", "symbol", *NAME_COLUMNS, "gene_id", "ensembl_id")))
_DESCRIBED = ("name", "version", "licence")
_VERSION_IN_NAME = re.compile(
    r"(?<![A-Za-z0-9])v(\d[\w.]*?)(?=\.(?:hs|mm|symbols|entrez|gmt|txt|tsv|csv)\b|\Z)", re.IGNORECASE
)
_SAID = re.compile(r"#+\s*(name|version|licen[cs]e)\s*[:=\t]\s*(.+?)\s*\Z", re.IGNORECASE)
_NAMED = 20


@dataclass(frozen=True, eq=False)
class GeneSets:
    """Sets of genes by name, as they are written."""

    members: Mapping[str, tuple[str, ...]]
    described: Mapping[str, str]
    """What is known of the sets: ``name``, ``file``, ``sha256``, ``version``, ``licence``; what is not known is not "
    "there."""

    def __len__(self) -> int:
        return len(self.members)


@dataclass(frozen=True, eq=False)
class MappedSets:
    """Sets cut to the genes of a table."""

    names: list[str]
    genes: list[np.ndarray]
    """Places of each set's genes among those of the table."""
    lost: Mapping[str, int | str]
    """``sets``, ``too small``, ``too large``; distinct ``genes`` of all sets, ``unknown genes`` that lead to none of
    the background, and ``unknown names``, a text with the first."""

    @property
    def sizes(self) -> np.ndarray:
        """How many genes each set has."""
        return np.array([len(genes) for genes in self.genes], dtype=np.int64)


def read_gene_sets(sets: Mapping[str, Sequence[str]] | pd.DataFrame | str | Path) -> GeneSets:
    """Read sets of genes.

    Parameters
    ----------
    sets
        A GMT file (``.gmt``, also packed by gzip: name, description and genes with tabs between them; lines that begin
        with # may say ``# version: …``, ``# licence: …``), a table or its file with a row a gene of a set (columns such
        as ``set`` and ``gene``, ``source`` and ``target``; ``version`` and ``licence`` where they are there), or a
        mapping from names to genes.

    Raises
    ------
    InputError
        The file is missing, or there is no set.
    DataFormatError
        A line holds no gene, a column is missing, or two sets have one name.
    """
    if isinstance(sets, Mapping):
        members, said, called = {str(name): tuple(map(str, genes)) for name, genes in sets.items()}, {}, "the mapping"
    elif isinstance(sets, str | Path) and ".gmt" in Path(sets).suffixes:
        members, said, called = *_read_gmt(Path(sets)), str(sets)
    else:
        called, rows = read_rows(sets, "the table of sets")
        members, said = _from_rows(called, rows)
    if not members:
        raise InputError(f"{called}: holds no gene set. Expected names of sets, and genes of each.")
    if empty := [name for name, genes in members.items() if not genes]:
        raise DataFormatError(f"{called}: {len(empty)} sets hold no gene (first: {empty[0]!r}).")
    return GeneSets(members, described(sets, said))


def described(source: object, said: Mapping[str, str]) -> dict[str, str]:
    """Return what is known of a file: its name and digest, what it says of itself, a version that its name has."""
    if not isinstance(source, str | Path):
        return dict(said)
    path = Path(source)
    of_name = _VERSION_IN_NAME.search(path.name)
    known = {"file": path.name, "sha256": sha256(path)}
    return known | ({"version": of_name[1]} if of_name else {}) | dict(said)


def _read_gmt(path: Path) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    members: dict[str, tuple[str, ...]] = {}
    text = read_text(path)
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name, *rest = (field.strip() for field in line.split("\t"))
        genes = tuple(dict.fromkeys(gene for gene in rest[1:] if gene))
        if not name or not genes:
            raise DataFormatError(
                f"{path}: line {number} holds {len(rest) + 1} fields (first: {name[:40]!r}). Expected the name of a "
                "set, a "
                "description and genes, with tabs between them."
            )
        if name in members:
            raise DataFormatError(f"{path}: line {number} is a second set {name!r}. Give each set a name of its own.")
        members[name] = genes
    return members, _says(text)


def _says(text: str) -> dict[str, str]:
    """Return what lines that begin with # say of a file."""
    said = (_SAID.match(line) for line in text.splitlines() if line.startswith("#"))
    return {match[1].lower().replace("license", "licence"): match[2] for match in said if match}


def _from_rows(called: str, rows: pd.DataFrame) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    of_set = column_called(list(rows.columns), SET_COLUMNS)
    of_gene = column_called([name for name in rows.columns if name != of_set], MEMBER_COLUMNS)
    if of_set is None or of_gene is None:
        what, choices = ("sets", SET_COLUMNS) if of_set is None else ("genes", MEMBER_COLUMNS)
        raise DataFormatError(
            f"{called}: has no column of {what}, which may be called {', '.join(choices)}; found "
            f"{examples(rows.columns, 8)}. A GMT file must be called .gmt."
        )
    pairs = pd.DataFrame({"set": texts(rows[of_set]), "gene": texts(rows[of_gene])})
    pairs = pairs[pairs["set"].ne("") & pairs["gene"].ne("")].drop_duplicates()
    members = {str(name): tuple(genes) for name, genes in pairs.groupby("set", sort=False)["gene"]}
    return members, said_in_columns(rows)


def said_in_columns(rows: pd.DataFrame) -> dict[str, str]:
    """Return what columns such as ``version`` and ``licence`` say of all rows."""
    found = {
        what: column_called(list(rows.columns), [what, what.replace("licence", "license")]) for what in _DESCRIBED[1:]
    }
    values = {what: sorted(set(texts(rows[column])) - {""}) for what, column in found.items() if column}
    return {what: ", ".join(of[:5]) for what, of in values.items() if of}


def mapped_sets(sets: GeneSets, genes: ScoredGenes, *, min_size: int = 1, max_size: int | None = None) -> MappedSets:
    """Cut sets to the genes of a table, and leave out those that are too small or too large then.

    Raises
    ------
    InputError
        No set is left; says how many genes were known.
    """
    written = list(dict.fromkeys(gene for of in sets.members.values() for gene in of))
    place = places_of(written, genes.known)
    cut = {
        name: np.unique([place[gene] for gene in of if gene in place]).astype(np.int64)
        for name, of in sets.members.items()
    }
    most = len(genes) if max_size is None else max_size
    small, large = (sum(of(len(at)) for at in cut.values()) for of in (lambda n: n < min_size, lambda n: n > most))
    stays = [name for name, at in cut.items() if min_size <= len(at) <= most]
    unknown = [gene for gene in written if gene not in place]
    lost: dict[str, int | str] = {"sets": len(cut), "too small": small, "too large": large}
    lost |= {"genes": len(written), "unknown genes": len(unknown), "unknown names": examples(unknown, _NAMED)}
    if not stays:
        raise InputError(
            f"None of {len(cut):,} sets has {min_size} to {most:,} genes among the {len(genes):,} of the table ("
            f"{len(place):,} of {len(written):,} genes of the sets are there; {examples(written)} against "
            f"{examples(genes.names)}). Give sets of the same species, in symbols or Ensembl ids, or lower min_size."
        )
    return MappedSets(stays, [cut[name] for name in stays], lost)


def read_gene_list(genes: Sequence[str] | pd.DataFrame | str | Path) -> tuple[list[str], dict[str, str]]:
    """Read a list of genes, and what it says of itself.

    Parameters
    ----------
    genes
        Names, a file with one a line, or a table or its file with a column of genes (``Hugo Symbol``, ``gene``,
        ``symbol`` …). Lines that begin with # above it may say ``# name: …``, ``# version: …``, ``# licence: …``.

    Raises
    ------
    InputError
        The file is missing, or names no gene.
    """
    if isinstance(genes, pd.DataFrame):
        _, rows = read_rows(genes, "the table of genes")
        return _column_of_genes(rows, "the table of genes"), said_in_columns(rows)
    if not isinstance(genes, str | Path):
        return list(dict.fromkeys(map(str, genes))), {}
    path = Path(genes)
    text = "" if path.suffix == ".parquet" else read_text(path)
    first = next((line for line in text.splitlines() if line.strip() and not line.startswith("#")), "")
    is_table = (
        path.suffix == ".parquet" or column_called(first.replace(",", "\t").split("\t"), _LIST_COLUMNS) is not None
    )
    if is_table and (path.suffix == ".parquet" or "\t" in first or "," in first):
        called, rows = read_rows(path, "the table of genes")
        return _column_of_genes(rows, called), described(path, said_in_columns(rows) | _says(text))
    names = read_genes(path)
    return names[1:] if is_table else names, described(path, _says(text))


def _column_of_genes(rows: pd.DataFrame, called: str) -> list[str]:
    column = column_called(list(rows.columns), _LIST_COLUMNS)
    names = [] if column is None else [name for name in dict.fromkeys(texts(rows[column])) if name]
    if not names:
        raise InputError(
            f"{called}: names no gene. Expected one a line, or a column called {', '.join(_LIST_COLUMNS[:5])} …; found "
            f"{examples(rows.columns, 8)}."
        )
    return names
