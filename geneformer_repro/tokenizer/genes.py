"""Which gene of the vocabulary each gene of a file is, and how much of the counts that accounts for.

Ids are told by their full pattern, never by a prefix (``ENSA`` is a symbol). What leads to a gene, in this order: the
id as it is; a table (the vocabulary's own of retired ids, or one that the user gives, such as orthologs); the id
without its version, or the only one in a longer text (``ENSG00000141510-1``, ``GRCh38_ENSG…``, ``ENSG…|TP53``); the
symbol, by the vocabulary's own names, then by the table that ships with the package (see ``data/README.md``), as it is
or without what programs put around it. An Ensembl id is never led to another gene by a name beside it, as in the
published package: of the golden cells' 1,591 ids without a token that would lead 18 to a gene, and change the tokens of
54 of 120 cells. Genes that lead to the same gene are summed.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from geneformer_repro.errors import DataFormatError, InputError
from geneformer_repro.files import read_text
from geneformer_repro.tokenizer.features import bare_id, ensembl_gene_in, is_ensembl_gene, symbol_in
from geneformer_repro.tokenizer.measures import SHARED_OF
from geneformer_repro.tokenizer.readers import CountSource
from geneformer_repro.tokenizer.symbols import current_symbols, ensembl_of_symbol, symbol_of_ensembl

KEPT, MAPPED, COLLAPSED, UNKNOWN = OUTCOMES = ("kept", "mapped", "collapsed", "unknown")
LEFT_OUT = "left out"
"""Outcome of what is no gene, or of another genome than most of what the vocabulary knows."""
_LEAST_OF_A_GENOME = 0.01
"""Share of the features from which a genome is one of several; less is a virus or a marker gene."""
_MADE_UNIQUE_ONE = "symbol made unique"
_MADE_UNIQUE = re.compile(r"[-.]\d+\Z")
_SPECIES = {
    "ENSG": "human",
    "ENSMUSG": "mouse",
    "ENSRNOG": "rat",
    "ENSDARG": "zebrafish",
    "ENSMMUG": "macaque",
    "ENSMFAG": "crab-eating macaque",
    "ENSSSCG": "pig",
    "ENSBTAG": "cow",
    "ENSGALG": "chicken",
    "ENSPTRG": "chimpanzee",
}


@cache
def _mitochondrial_ids() -> frozenset[str]:
    # of current symbols: METTL3 was once called MT-A70
    return frozenset(gene for gene, symbol in symbol_of_ensembl().items() if symbol.startswith("MT-"))


def is_mitochondrial(source: CountSource) -> np.ndarray:
    """Whether each gene of a source is of the mitochondrial genome: by its name (``MT-``, ``mt-``) or human id."""
    return np.array(
        [
            name.upper().startswith("MT-") or gene.upper().startswith("MT-") or bare_id(gene) in _mitochondrial_ids()
            for gene, name in zip(source.gene_ids, source.gene_names, strict=True)
        ]
    )


def read_gene_table(table: Mapping[str, str] | str | Path) -> dict[str, str]:
    """Return other id or symbol → gene id, one to one or many to one.

    Parameters
    ----------
    table
        A mapping, or a tab- or comma-separated file (also ``.gz``) whose first two columns are the id in the data and
        the gene of the vocabulary, such as mouse and human Ensembl ids from BioMart; a header is recognised. Rows
        without the second are skipped. Genes of the first column that lead to several genes are left out, and in a
        table between two species also those that lead to the same one, so that one-to-one orthologs remain.

    Raises
    ------
    InputError
        The file is missing, has fewer than two columns, or nothing one-to-one.
    """
    if isinstance(table, Mapping):
        pairs = pd.DataFrame({"from": [str(k) for k in table], "to": [str(v) for v in table.values()]})
    else:
        try:
            text = io.StringIO(read_text(table))
            pairs = pd.read_csv(text, sep=None, engine="python", dtype=str, header=None, keep_default_na=False)
        except InputError:
            raise
        except (ValueError, csv.Error) as error:
            raise InputError(f"{table}: not a readable table of genes ({error}).") from error
        if pairs.shape[1] < 2:
            raise InputError(f"{table}: expected two columns, id in the data and gene id, found {pairs.shape[1]}.")
        pairs = pairs.iloc[:, :2].set_axis(["from", "to"], axis=1)
    pairs = pairs.fillna("").map(lambda text: bare_id(text.strip())).drop_duplicates()
    pairs = pairs[pairs["to"].map(is_ensembl_gene).astype(bool) & (pairs["from"] != "")]
    ids, gene_ids = pairs["from"], pairs["to"]
    of_one_species = (ids.map(_species) == gene_ids.map(_species)) | (ids.map(ensembl_of_symbol()) == gene_ids)
    pairs = pairs[~(ids.duplicated(keep=False) | (gene_ids.duplicated(keep=False) & ~of_one_species))]
    if pairs.empty:
        raise InputError(
            f"{'The table' if isinstance(table, Mapping) else table}: no row leads one id to one Ensembl gene id. "
            f"Expected the id in the data first, then the gene id."
        )
    return dict(zip(pairs["from"], pairs["to"], strict=True))


def _species(gene: str) -> str:
    return bare_id(gene)[:-11] if is_ensembl_gene(gene) else ""


def species_of(gene: str) -> str:
    """Return the species of an Ensembl gene id, "another species" of one that is not listed here."""
    return _SPECIES.get(_species(gene), "another species")


class KnownGenes(Protocol):
    """What is asked of a vocabulary here."""

    @property
    def gene_ids(self) -> tuple[str, ...]:
        """Gene ids."""

    @property
    def position(self) -> Mapping[str, int]:
        """Place of each id."""

    @property
    def by_name(self) -> Mapping[str, int]:
        """Place of each name that only one gene has."""

    @property
    def other_ids(self) -> Mapping[str, str]:
        """Retired id → gene id."""


@dataclass(frozen=True)
class GivenGenes:
    """What is asked of a vocabulary here, as JSON can hold it: for a process that is given no vocabulary."""

    gene_ids: tuple[str, ...]
    by_name: Mapping[str, int]
    other_ids: Mapping[str, str]

    @cached_property
    def position(self) -> Mapping[str, int]:
        """Place of each id."""
        return {gene: i for i, gene in enumerate(self.gene_ids)}

    @classmethod
    def of(cls, genes: KnownGenes) -> "GivenGenes":
        """Return these genes."""
        return cls(genes.gene_ids, dict(genes.by_name), dict(genes.other_ids))

    @classmethod
    def named(cls, gene_ids: Iterable[str], names: Iterable[str]) -> "GivenGenes":
        """Return genes by id and by name; a name of several genes leads to none."""
        ids, of_ids = tuple(gene_ids), list(names)
        n_with_name = Counter(of_ids)
        return cls(ids, {name: i for i, name in enumerate(of_ids) if name and n_with_name[name] == 1}, {})


@dataclass(frozen=True, eq=False)
class GeneMap:
    """Where each gene of a source goes; made by `reconcile`.

    Parameters
    ----------
    position
        Place of each gene of the source in the vocabulary, -1 for an unknown one; int32.
    table
        A row a gene of the source: ``gene`` (its id there), ``name``, ``outcome`` (kept, mapped, collapsed: summed
        into another column's gene, unknown, left out: of another genome), ``by`` (what led to the gene, or the genome)
        and ``gene_id`` ("" if unknown).
    """

    position: np.ndarray
    table: pd.DataFrame

    @property
    def n_known(self) -> int:
        """Number of genes of the source that the vocabulary knows."""
        return int((self.position >= 0).sum())

    @property
    def is_left_out(self) -> np.ndarray:
        """Whether each gene is of another genome than the one that is read."""
        return self.table["outcome"].eq(LEFT_OUT).to_numpy()


def reconcile(
    source: CountSource, vocabulary: KnownGenes | None, other_ids: Mapping[str, str] | None = None
) -> GeneMap:
    """Find the gene of the vocabulary that each gene of a source is.

    Parameters
    ----------
    source
        Its gene ids and names are used, no counts.
    vocabulary
        None to learn one: then every id leads to itself without its version, or by its symbol to an Ensembl id, and
        the places are those of the sorted genes.
    other_ids
        Other id → gene id, from `read_gene_table`.

    Returns
    -------
    Where each gene goes. Of a source with several genomes, the one with most known genes is read.

    Raises
    ------
    InputError
        A vocabulary is to be learned from a source with several genomes.
    """
    finder = _Finder(frozenset(source.gene_ids) | frozenset(source.gene_names), vocabulary, other_ids or {})
    pairs = [finder.find(gene, name) for gene, name in zip(source.gene_ids, source.gene_names, strict=True)]
    other = _of_another_genome(source, np.array([gene != "" for gene, _ in pairs]), learn=vocabulary is None)
    pairs = [("", f"genome {source.genomes[i]}") if other[i] else pair for i, pair in enumerate(pairs)]
    to, by = [gene for gene, _ in pairs], [how for _, how in pairs]
    places = vocabulary.position if vocabulary else {gene: i for i, gene in enumerate(sorted({*to} - {""}))}
    position = np.array([places[gene] if gene else -1 for gene in to], dtype=np.int32)
    outcome = np.array([UNKNOWN if not gene else KEPT if how == "id" else MAPPED for gene, how in pairs], dtype=object)
    order = np.lexsort((np.arange(len(to)), outcome != KEPT, position))
    again = order[1:][(np.diff(position[order]) == 0) & (position[order][1:] >= 0)]
    outcome[again] = COLLAPSED
    outcome[other] = LEFT_OUT
    columns = {"gene": source.gene_ids, "name": source.gene_names, "outcome": outcome, "by": by, "gene_id": to}
    return GeneMap(position, pd.DataFrame({name: np.array(column, dtype=object) for name, column in columns.items()}))


def gene_ids_of(names: Sequence[str], vocabulary: KnownGenes) -> pd.Series:
    """Return the gene id of each name in a list or table, "" where the vocabulary knows none; as `reconcile`.

    Parameters
    ----------
    names
        Gene ids, with or without version, or symbols, current or former; each once.
    vocabulary
        The genes that are known.

    Returns
    -------
    Indexed by the names.
    """
    finder = _Finder(frozenset(names), vocabulary, {})
    return pd.Series({name: finder.find(name, "")[0] for name in names}, dtype=object)


def summing_matrix(position: np.ndarray, n_genes: int) -> csr_matrix:
    """Return a 0/1 matrix, genes of a source × genes: counts times it have a column a gene, what is one gene summed.

    Parameters
    ----------
    position
        Place of each gene of the source among the genes, -1 for one that is not read.
    n_genes
        How many genes there are.
    """
    read = np.flatnonzero(position >= 0)
    return csr_matrix((np.ones(len(read)), (read, position[read])), shape=(len(position), n_genes))


def _of_another_genome(source: CountSource, is_known: np.ndarray, *, learn: bool) -> np.ndarray:
    """Whether each gene is of another genome than the one of which most genes are known."""
    genomes = np.array(source.genomes, dtype=object)
    n_of = {
        genome: n for genome, n in Counter(source.genomes).items() if genome and n > _LEAST_OF_A_GENOME * len(genomes)
    }
    if len(n_of) < 2:
        return np.zeros(len(genomes), dtype=bool)
    if learn:
        listed = ", ".join(f"{genome}: {n:,}" for genome, n in n_of.items())
        raise InputError(
            f"{source.name}: holds genes of {len(n_of)} genomes ({listed}), and a vocabulary is learned from one. "
            "Write the genes and cells of one to an .h5ad, and learn from that."
        )
    read = max(n_of, key=lambda genome: int(is_known[genomes == genome].sum()))
    return np.isin(genomes, [genome for genome in n_of if genome != read])


class _Finder:
    """Leads an id and a name to a gene id."""

    def __init__(self, names: frozenset[str], vocabulary: KnownGenes | None, other_ids: Mapping[str, str]) -> None:
        self._known = None if vocabulary is None else vocabulary.position
        self._other_ids = {**(vocabulary.other_ids if vocabulary else {}), **other_ids}
        self._own = {name: vocabulary.gene_ids[i] for name, i in vocabulary.by_name.items()} if vocabulary else {}
        self._symbols = names

    def find(self, gene: str, name: str) -> tuple[str, str]:
        """Return the gene id ("" if there is none) and what led to it."""
        if not gene:
            return self._by_symbol(name, "name") if name else ("", "")
        if self._known is not None and gene in self._known:
            return gene, "id"
        if is_ensembl_gene(gene):
            return self._by_id(gene, "version")
        inside = ensembl_gene_in(gene)
        return self._by_id(inside, "id in a longer text") if inside else self._by_symbol(gene, "symbol")

    def _by_id(self, gene: str, how: str) -> tuple[str, str]:
        bare = bare_id(gene)
        other = self._other_ids.get(bare, "")
        if other and self._is_known(other):
            return other, "table"
        if self._is_known(bare):
            return bare, "id" if bare == gene and how == "version" else how
        return "", ""

    def _by_symbol(self, symbol: str, how: str) -> tuple[str, str]:
        for names, by in ((self._other_ids, "table"), (self._own, how)):
            if symbol in names and self._is_known(names[symbol]):
                return names[symbol], by
        base = _MADE_UNIQUE.sub("", symbol)
        is_name = symbol in self._own or symbol in current_symbols()
        if base != symbol and base in self._symbols and not is_name:
            # AnnData's and R's way to tell equal names apart; no annotation has a former name beside what it looks like
            return self._by_symbol(base, _MADE_UNIQUE_ONE)
        gene = ensembl_of_symbol().get(symbol)
        if gene is not None and self._is_known(gene):
            return gene, how
        inside = symbol_in(symbol)
        if inside != symbol and gene is None:
            return self._by_symbol(inside, "symbol in a longer text")
        if self._known is None and how.startswith("symbol"):
            return symbol, "id"
        return "", ""

    def _is_known(self, gene: str) -> bool:
        return gene in self._known if self._known is not None else True


def shares(table: pd.DataFrame, counts: np.ndarray) -> pd.DataFrame:
    """Return a row an outcome: number of genes and share of the counts; what was left out is not in them."""
    of = pd.DataFrame({"outcome": table["outcome"].to_numpy(), "counts": counts})
    total = max(float(counts[of["outcome"].isin(OUTCOMES)].sum()), 1.0)
    grouped = of.groupby("outcome")["counts"].agg(["size", "sum"]).reindex(OUTCOMES, fill_value=0)
    return pd.DataFrame({"genes": grouped["size"].astype(int), "share": grouped["sum"] / total})


def in_one_line(shares: pd.DataFrame, *, of: str = "counts") -> str:
    """Return `shares` as text: ``"12,000 genes kept (91.2 % of the counts), 10 mapped (…), …"``."""
    phrases = [
        f"{int(row['genes']):,} {'genes ' if i == 0 else ''}{name} ({100 * row['share']:.1f} %"
        f"{f' of the {of}' if i == 0 else ''})"
        for i, (name, row) in enumerate(shares.iterrows())
    ]
    return ", ".join(phrases)


def require_known(
    source: CountSource, genes: GeneMap, counts: np.ndarray, vocabulary: KnownGenes, *, min_share: float
) -> None:
    """Stop where too little of a source is known.

    Parameters
    ----------
    source, genes, vocabulary
        What was reconciled.
    counts
        Counts of each gene of the source, in all or some of its cells.
    min_share
        Least share of the counts that known genes must hold.

    Raises
    ------
    DataFormatError
        No gene is known, or they hold less; says what the ids seem to be.
    """
    is_gene = ~genes.is_left_out
    share = float(counts[genes.position >= 0].sum()) / max(float(counts[is_gene].sum()), 1.0)
    if genes.n_known and (share >= min_share or not counts[is_gene].any()):
        return
    example, ours = next((gene for gene in source.gene_ids if gene), ""), vocabulary.gene_ids[0]
    held = SHARED_OF[source.measure.values]
    how_many = (
        f"{genes.n_known} of {is_gene.sum()} genes, with {100 * share:.1f} % of the {held}, are known to the "
        f"vocabulary; at least {100 * min_share:.0f} % is asked for"
        if genes.n_known
        else f"none of its {is_gene.sum()} genes is known to the vocabulary"
    )
    if 2 * genes.n_known > is_gene.sum():
        raise DataFormatError(f"{source.name}: {how_many}. {_largest_unknown(genes, counts)}")
    raise DataFormatError(
        f"{source.name}: {how_many} (ids from {source.ids_from!r}: {example!r} … against {ours!r} …). "
        f"{_likely_cause(source, vocabulary)}"
    )


def _largest_unknown(genes: GeneMap, counts: np.ndarray) -> str:
    """Say which rows hold the counts of a source most of whose genes are known."""
    unknown = np.where((genes.position < 0) & ~genes.is_left_out, counts, 0.0)
    total = max(float(counts[~genes.is_left_out].sum()), 1.0)
    named = [
        f"{genes.table['gene'].iloc[i] or genes.table['name'].iloc[i]!r} ({100 * unknown[i] / total:.0f} %)"
        for i in np.argsort(-unknown)[:3]
        if unknown[i] > 0
    ]
    return (
        f"Most genes are known, but not those that hold most counts: {', '.join(named)}. If they are no genes, say so "
        "in a column feature_types of var, or take them out; or lower min_known_share (--min-known-share)."
    )


_TRANSCRIPT = re.compile(r"ENS[A-Z]*[TPE]\d{11}")
_LIKE_MOUSE = re.compile(r"[A-Z][a-z][A-Za-z0-9.-]*\Z")


def _likely_cause(source: CountSource, vocabulary: KnownGenes) -> str:
    ids = [gene for gene in source.gene_ids if gene]
    ensembl = [bare_id(inside) for gene in ids if (inside := ensembl_gene_in(gene))]
    symbols = sum(map(_is_human_symbol, ids))
    ours = Counter(_species(gene) for gene in vocabulary.gene_ids[:100]).most_common(1)[0][0]
    half = len(ids) / 2
    if len(ensembl) > half:
        theirs = Counter(map(_species, ensembl)).most_common(1)[0][0]
        if theirs == ours:
            return (
                "These are Ensembl ids of the right species: the vocabulary was learned from data without these genes; "
                "use one that has them, or lower min_known_share (--min-known-share)."
            )
        return (
            f"These are Ensembl ids of {_SPECIES.get(theirs, 'another species')} ({theirs}…), the vocabulary is of "
            f"{_SPECIES.get(ours, 'another')}; give a one-to-one table with orthologs= (--orthologs)."
        )
    if sum(gene.isdigit() for gene in ids) > half:
        return (
            "These are numbers (Entrez ids, or rows without names); name the var column with Ensembl ids or symbols "
            "with gene_ids= (--gene-ids)."
        )
    if sum(bool(_TRANSCRIPT.match(gene)) for gene in ids) > half:
        return "These are Ensembl transcripts, proteins or exons, not genes; sum them by gene first."
    if symbols > half or not ours:
        return (
            "These are gene symbols; the vocabulary was learned from data without most of these genes. Use one that "
            "has them, or lower min_known_share (--min-known-share)."
        )
    if sum(bool(_LIKE_MOUSE.match(symbol_in(gene))) for gene in ids) > half:
        return "These look like mouse gene symbols; give a one-to-one table with orthologs= (--orthologs)."
    kinds = {"Ensembl genes": len(ensembl), "human gene symbols": symbols}
    how_many = " and ".join(f"{n} are {kind}" for kind, n in kinds.items() if n) or "0 are"
    return (
        f"Most are neither Ensembl ids nor human gene symbols (of {len(ids)} {how_many}); name the var column "
        f"that holds them with gene_ids= (--gene-ids), or give a table with orthologs= (--orthologs)."
    )


def _is_human_symbol(text: str) -> bool:
    table = ensembl_of_symbol()
    return any(name in table for name in (text, symbol_in(text), _MADE_UNIQUE.sub("", text)))


def names_of(maps: Sequence[GeneMap]) -> dict[str, str]:
    """Return gene id → name, the first that a source gives, beside the id or in its place."""
    name_of: dict[str, str] = {}
    for genes in maps:
        columns = (genes.table[name] for name in ("gene_id", "name", "gene", "by"))
        for gene, name, text, by in zip(*columns, strict=True):
            if gene and not name and by != _MADE_UNIQUE_ONE and not ensembl_gene_in(text):
                name = symbol_in(text)
            if gene and name:
                name_of.setdefault(gene, name)
    return name_of


def with_symbols(names: Mapping[str, str]) -> dict[str, str]:
    """Return gene id → name, with the current human symbol where there was none."""
    return {gene: name or symbol_of_ensembl().get(gene, "") for gene, name in names.items()}
