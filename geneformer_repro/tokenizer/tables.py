"""Expression in tables of other hands: TSV, CSV (also packed by gzip), GCT and Parquet, either way round.

Which side the genes are on is told by their names: Ensembl ids, symbols (of man, or of mouse by their letters), Entrez
ids. Names of samples hardly ever look so (none of 11,160 TCGA barcodes does), and where neither side does, or both,
the user is asked. Whatever is not understood stops the reading, with its line: a table that is read wrongly looks like
one that is read rightly.
"""

import csv
import io
import logging
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.utils import make_index_unique

from geneformer_repro.errors import DataFormatError, InputError, listed
from geneformer_repro.files import read_text
from geneformer_repro.tokenizer.features import ensembl_gene_in, kind_by_name, symbol_in, texts
from geneformer_repro.tokenizer.symbols import ensembl_of_symbol

logger = logging.getLogger(__name__)

_SUFFIXES = (".tsv", ".csv", ".txt", ".tab", ".gct", ".parquet")
_LOOKED_AT = 2_000
"""So many names of a side, evenly spaced, say whether they are genes; and so many values whether they are numbers."""
_LEAST_SHARE, _TIMES_THE_OTHER = 0.2, 2
"""A side holds the genes from this share of names that look so, if it is more than so many times the other's."""
_ENTREZ = "entrez"
_WITH_ENTREZ = re.compile(r"(?P<symbol>[^|\s]+)(\|(?P<number>\d+)| \((?P<in_brackets>\d+)\))\Z")
_LIKE_MOUSE = re.compile(r"[A-Z][a-z]+[A-Za-z0-9-]*\Z")
_MADE_UNIQUE = re.compile(r"[-.]\d+\Z")
_REMARK = re.compile(
    r"((hugo|gene|hgnc)[ _.]?)?(symbol|name|id)s?|gene|gene[ _.]?(length|type|biotype)|(entrez|ensembl|ncbi|hgnc)\w*"
    r"|(sample|patient|case|cell[ _.]?line|donor|subject)([ _.]?(id|name|barcode|code|key))?|probe\w*|cytoband|strand"
    r"|chr(omosome)?|start|end|length|description|index|barcode|unnamed: 0|\Z",
    re.IGNORECASE,
)
"""What a column is called, in full, that names rows or says something of them, also in numbers."""
CLINICAL = re.compile(r"(OS|DSS|DFI|PFI|DFS|PFS|RFS|EFS|age|sex|stage|grade|end)([._ ]\w*)?\Z", re.IGNORECASE)
"""Names of clinical columns, some of which are or were those of genes, too."""
_MISSING = ["--", "'--", *(f"[Not {what}]" for what in ("Available", "Applicable", "Evaluated")), "[Unknown]"]
_NUMBER = re.compile(r"[+-]?(\d[\d.,' ]*|[.,]\d+)([eE][+-]?\d+)?\Z|[+-]?inf(inity)?\Z", re.IGNORECASE)
_DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+([eE][+-]?\d+)?\Z")


class Table(NamedTuple):
    """A table as it stands: a name a column ("" where there is none), and the columns under their numbers."""

    header: list[str]
    body: pd.DataFrame


def is_expression_table(path: str | Path) -> bool:
    """Whether a path has the name of a table that `read_expression_table` reads."""
    return Path(path).name.lower().removesuffix(".gz").endswith(_SUFFIXES)


def read_expression_table(path: str | Path, *, genes_in: Literal["rows", "columns"] | None = None) -> AnnData:
    """Read a table of samples × genes, or of genes × samples.

    Parameters
    ----------
    path
        A table of text with tabs, commas or semicolons between its columns, also packed by gzip, as pandas, R, GCT
        1.2, cBioPortal and Firehose write them, or a Parquet file. Lines that begin with ``#`` above the header are
        passed over.
    genes_in
        Where the genes are; by default where the names look like genes.

    Returns
    -------
    Samples × genes, float64, as they stand: a value that is missing is NaN. ``var`` has the gene ids as its index
    (Ensembl ids where there are any, else symbols, else ``entrez:NUMBER``; made unique by ``-1`` …), ``gene_name``, and
    what else is said of the genes; ``obs`` what is said of the samples. Rows without a gene and genes without a single
    value are left out. The log says what was read.

    Raises
    ------
    InputError
        There is no such file, or it cannot be told where the genes are.
    DataFormatError
        A line has more or fewer fields than the others, a value is no number (or has a decimal comma) or is infinite,
        a sample has no name or no values, or two samples have one name.
    """
    if genes_in not in (None, "rows", "columns"):
        raise InputError(f"genes_in={genes_in!r}: expected 'rows' or 'columns', or none to have it told by the names.")
    path = Path(path)
    table = _read_table(path)
    remarks = [j for j, kind in enumerate(table.body.dtypes) if is_remark(table, j, kind)]
    columns = [j for j in range(len(table.header)) if j not in set(remarks)]
    if not remarks or not columns or table.body.empty:
        raise DataFormatError(
            f"{path}: expected names in its first column and numbers in others, found {len(table.body)} rows, "
            f"{len(remarks)} columns of text and {len(columns)} of numbers (first: {table.header[0]!r})."
        )
    side = genes_in or side_of_genes(path, table, remarks, columns)
    oriented = _genes_in_rows if side == "rows" else _genes_in_columns
    return _checked(path, *oriented(path, table, remarks, columns), side)


# the file


def read_clinical_table(path: str | Path) -> pd.DataFrame:
    """Read a table of what is known of samples or patients, a row each, from a file that holds text or is Parquet.

    Lines that begin with ``#`` above the header are passed over, as in cBioPortal's. What TCGA writes in place of a
    value (``[Not Available]`` …, ``--``) is missing. Columns named like ids are text.

    Raises
    ------
    InputError
        There is no such file.
    DataFormatError
        It is no table, a line has more or fewer fields than the others, or two columns have one name.
    """
    path = Path(path)
    table = _read_table(path)
    twice = [name for name, n in Counter(table.header).items() if n > 1]
    if twice:
        raise DataFormatError(
            f"{path}: {len(twice)} columns have the name of another (first: {twice[0]!r}); rename them."
        )
    numbers = pd.to_numeric(table.body[0], errors="coerce")
    is_number = numbers.notna().equals(table.body[0].notna()) and not table.body[0].astype(str).str.match(r"0\d").any()
    first = numbers if is_number and not _REMARK.fullmatch(table.header[0]) else table.body[0]
    return pd.concat([first, table.body.iloc[:, 1:]], axis=1).set_axis(table.header, axis=1)


def read_rows(table: pd.DataFrame | str | Path, called: str) -> tuple[str, pd.DataFrame]:
    """Return what a table is called in messages, and its rows, in which names of rows are a column like any other.

    Parameters
    ----------
    table
        A data frame, which is `called` so, or a file as `read_clinical_table` reads it, which is called by its path.

    Raises
    ------
    InputError, DataFormatError
        As `read_clinical_table`; of a data frame, two columns have one name.
    """
    if not isinstance(table, pd.DataFrame):
        return str(table), read_clinical_table(table)
    rows = table if isinstance(table.index, pd.RangeIndex) else table.reset_index()
    rows = rows.set_axis([str(column) for column in rows.columns], axis=1)
    twice = rows.columns[rows.columns.duplicated()]
    if len(twice):
        raise DataFormatError(f"{called}: {len(twice)} columns have the name of another (first: {twice[0]!r}).")
    return called, rows


def column_called(columns: Sequence[str], choices: Sequence[str]) -> str | None:
    """Return the first column that is called as one of some choices, the earlier the better; None if none is.

    Capitals and what is no letter or digit do not matter: "Cell line" is "cell_line".
    """
    by_letters: dict[str, str] = {}
    for column in columns:
        by_letters.setdefault(_letters(column), column)
    return next((by_letters[letters] for letters in map(_letters, choices) if letters in by_letters), None)


def examples(names: Iterable[Any], n: int = 3) -> str:
    """Return the first names of some, quoted, for a message."""
    return listed((repr(str(name)) for name in names), most=n)


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, name.lower()))


def _read_table(path: Path) -> Table:
    return _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_lines(path)


def _read_parquet(path: Path) -> Table:
    try:
        table = pd.read_parquet(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file.") from None
    except Exception as error:
        raise DataFormatError(f"{path}: not a readable Parquet file ({' '.join(str(error).split())[:200]}).") from error
    if table.index.name is not None or not isinstance(table.index, pd.RangeIndex):
        table = table.reset_index(names=str(table.index.name or ""))
    return Table([str(name) for name in table.columns], table.set_axis(range(table.shape[1]), axis=1))


def _read_lines(path: Path) -> Table:
    return parsed(path, read_text(path))


def parsed(path: Path, text: str) -> Table:
    """Read a table of text, of a file that messages name; a name that looks like a number stays as it is written."""
    text, n_above = _without_remarks_above(text)
    sep = max("\t,;", key=text.partition("\n")[0].count)
    try:
        rows = csv.reader(io.StringIO(text), delimiter=sep)
        header = [name.strip() for name in next(rows, [])]
        widths = [(rows.line_num + n_above, len(row)) for row in rows if row]
    except csv.Error as error:
        raise DataFormatError(f"{path}: not a readable table ({error}).") from error
    if not widths or len(header) < 2:
        raise DataFormatError(
            f"{path}: expected a header with tabs, commas or semicolons between its names, and rows below it; found "
            f"{len(header)} columns and {len(widths)} rows."
        )
    width = widths[0][1]
    wrong = [(line, n) for line, n in widths if n != width]
    if wrong or not 0 <= width - len(header) <= 1:
        line, n = wrong[0] if wrong else widths[0]
        raise DataFormatError(
            f"{path}: line {line} has {n:,} fields, the header {len(header):,}: the table is cut off, or a name or a "
            "number (a decimal comma?) holds what is between the columns. Write it with tabs between the columns."
        )
    names = ["", *header] if width > len(header) else header  # R's write.table names no column of row names
    as_written = {j: str for j, name in enumerate(names) if j == 0 or _REMARK.fullmatch(name)}
    below = text.partition("\n")[2]
    exactly: dict[str, Any] = {"low_memory": False, "float_precision": "round_trip"}
    body = pd.read_csv(io.StringIO(below), sep=sep, header=None, dtype=as_written, na_values=_MISSING, **exactly)
    if body[width - 1].isna().all() and (width > len(header) or not header[-1]):  # each line ends with a separator
        return Table(header[: width - 1], body.drop(columns=width - 1))
    return Table(names, body)


def _without_remarks_above(text: str) -> tuple[str, int]:
    """Return a table from its header on, and how many lines there were above it."""
    lines_above, text = [], text.replace("\r\n", "\n").replace("\r", "\n")
    while text.startswith("#") or (text and not text.partition("\n")[0].strip()):
        line, _, rest = text.partition("\n")
        below = rest.partition("\n")[0]
        if "\t" in line and not below.startswith("#") and _ends_in_a_number(below) and not _ends_in_a_number(line):
            text = line.lstrip("# ") + "\n" + rest  # a header that begins so
            break
        lines_above.append(line)
        text = rest
    if lines_above and lines_above[0].startswith("#1.2"):  # GCT: below it, numbers of genes and samples
        text = text.partition("\n")[2]
        lines_above.append("")
    if text.startswith("Hybridization REF\t"):  # Firehose: below the header, what the numbers are
        header, _, rest = text.partition("\n")
        text = header + "\n" + rest.partition("\n")[2]
    return text, len(lines_above)


def _ends_in_a_number(line: str) -> bool:
    return _NUMBER.match(line.rstrip("\t").rpartition("\t")[2]) is not None


def is_remark(table: Table, j: int, kind: Any) -> bool:
    """Whether a column says what a row is, or something of it, and is no column of values."""
    name = table.header[j]
    if j == 0 and not pd.api.types.is_float_dtype(kind) and not _looks_like_a_gene(name):
        return True
    if pd.api.types.is_numeric_dtype(kind) and not pd.api.types.is_bool_dtype(kind):
        return _REMARK.fullmatch(name) is not None and bool((table.body[j].dropna() % 1 == 0).all())
    written = table.body[j].dropna().astype(str).iloc[:_LOOKED_AT].str.strip()
    return _REMARK.fullmatch(name) is not None or sum(map(bool, map(_NUMBER.match, written))) <= len(written) / 2


# which side the genes are on


def side_of_genes(path: Path, table: Table, remarks: Sequence[int], columns: Sequence[int]) -> str:
    """Tell by the names whether genes are in "rows" or "columns"; raise where neither side is named so, or both."""
    texts_of_rows = [_names(table, j) for j in remarks]
    rows = max((names for names in texts_of_rows if 2 * len(set(names)) > len(names)), key=share_of_genes, default=[""])
    named = [table.header[j] for j in columns]
    in_rows, in_columns = share_of_genes(rows), share_of_genes(named)
    less, more = sorted([in_rows, in_columns])
    if more < _LEAST_SHARE or more <= _TIMES_THE_OTHER * less:
        raise InputError(
            f"{path}: cannot tell where the genes are. Of {len(rows):,} rows ({examples(rows, 2)}) "
            f"{100 * in_rows:.0f} % are named like genes, of {len(named):,} columns ({examples(named, 2)}) "
            f"{100 * in_columns:.0f} %. Say it: genes_in='rows' or genes_in='columns'."
        )
    return "rows" if in_rows > in_columns else "columns"


def _names(table: Table, j: int) -> list[str]:
    """Return a column of names as text without blanks around it, "" where there is none."""
    column = table.body[j]
    if pd.api.types.is_float_dtype(column):
        column = column.astype("Int64")
    names = texts(column)
    return (
        [f"entrez:{name}" if name.isdigit() else name for name in names]
        if _ENTREZ in table.header[j].lower()
        else names
    )


def share_of_genes(names: Sequence[str]) -> float:
    """Return the share of names that look like genes."""
    looked_at = np.linspace(0, len(names) - 1, min(len(names), _LOOKED_AT)).astype(int)
    return float(np.mean([_looks_like_a_gene(names[i]) for i in looked_at]))


def _looks_like_a_gene(name: str) -> bool:
    if name.startswith(f"{_ENTREZ}:") or _WITH_ENTREZ.match(name) or ensembl_gene_in(name):
        return True
    symbol = symbol_in(name)
    spelt = symbol.upper() if _LIKE_MOUSE.match(symbol) else symbol
    return any(text in ensembl_of_symbol() for text in (spelt, _MADE_UNIQUE.sub("", spelt)))


# what stands where


_Oriented = tuple[np.ndarray, pd.DataFrame, pd.DataFrame]
"""Values (samples × genes), and what is said of samples and of genes, whose ids may be missing or stand twice."""


def _genes_in_rows(path: Path, table: Table, remarks: Sequence[int], columns: Sequence[int]) -> _Oriented:
    names = {j: _names(table, j) for j in remarks}
    of_ids, of_genes = ({j: share(names[j]) for j in remarks} for share in (_share_of_ids, share_of_genes))
    in_numbers = [j for j in remarks if _ENTREZ in table.header[j].lower()]
    best = sorted(remarks, key=lambda j: (of_ids[j] > 0.5, j not in in_numbers, of_genes[j]), reverse=True)
    best = [j for j in best if of_genes[j] > 0.5] or best[:1]
    genes = [next((name for name in row if name), "") for row in zip(*(names[j] for j in best), strict=True)]
    symbols = next((names[j] for j in best[1:] if of_ids[j] < 0.5 and j not in in_numbers), None)
    samples = [table.header[j] for j in columns]
    _require_names(path, samples)
    said = {table.header[j]: _as_said(table.body[j]) for j in remarks if j != best[0] and table.header[j]}
    values = _values(path, table, columns, rows=genes)
    return values.T, pd.DataFrame(index=pd.Index(samples, dtype=object)), _var(genes, symbols).assign(**said)


def _genes_in_columns(path: Path, table: Table, remarks: Sequence[int], columns: Sequence[int]) -> _Oriented:
    genes = [table.header[j] for j in columns]
    if share_of_genes(genes) > 0.5:  # then a column such as age or OS.time is none
        of_genes = _features(genes)
        remarks = sorted([*remarks, *(j for j, is_gene in zip(columns, of_genes, strict=True) if not is_gene)])
        columns = [j for j, is_gene in zip(columns, of_genes, strict=True) if is_gene]
        genes = [table.header[j] for j in columns]
    of_names = next((j for j in remarks if not CLINICAL.match(table.header[j])), remarks[0])
    samples = _names(table, of_names)
    _require_names(path, samples)
    said = {table.header[j]: _as_said(table.body[j]) for j in remarks if j != of_names}
    values = _values(path, table, columns, rows=samples)
    return values, pd.DataFrame(said, index=pd.Index(samples, dtype=object)), _var(genes, None)


def _features(names: Sequence[str]) -> list[bool]:
    """Say which columns beside genes are features: of Ensembl ids, what has a name like one; of symbols, capitals."""
    by_id = _share_of_ids(names) > 0.5
    return [
        not CLINICAL.match(name)
        and bool(_looks_like_a_gene(name) or kind_by_name(name) or not (by_id or name.islower()))
        for name in names
    ]


def _share_of_ids(names: Sequence[str]) -> float:
    return float(np.mean([bool(ensembl_gene_in(name)) for name in names]))


def _gene_id(name: str) -> str:
    """Return the id of a gene beside which, or in place of which, its Entrez id stands: ``TP53|7157``, ``?|7157``."""
    match = _WITH_ENTREZ.match(name)
    if match is None:
        return f"{_ENTREZ}:{name}" if name.isdigit() else name
    return f"{_ENTREZ}:{match['number'] or match['in_brackets']}" if match["symbol"] == "?" else match["symbol"]


def _var(genes: Sequence[str], symbols: Sequence[str] | None) -> pd.DataFrame:
    """Return ids and names of genes, the names from another column, or from ids that are symbols."""
    ids = [_gene_id(gene) for gene in genes]
    of_ids = ("" if ensembl_gene_in(gene) or gene.startswith(f"{_ENTREZ}:") else gene for gene in ids)
    names = [symbol_in(name) for name in symbols or of_ids]
    return pd.DataFrame({"gene_name": names}, index=pd.Index(ids, dtype=object))


def _as_said(column: pd.Series) -> np.ndarray:
    return column.to_numpy() if pd.api.types.is_numeric_dtype(column) else np.array(texts(column), dtype=object)


# numbers


def _values(path: Path, table: Table, columns: Sequence[int], *, rows: Sequence[str]) -> np.ndarray:
    """Return the numbers of these columns, rows as they are.

    Raises
    ------
    DataFormatError
        One is none, or infinite.
    """
    values = np.empty((len(table.body), len(columns)))
    kinds = table.body.dtypes.tolist()
    is_text = np.array([not pd.api.types.is_numeric_dtype(kinds[j]) for j in columns])
    numbers = [j for j, text in zip(columns, is_text, strict=True) if not text]
    values[:, ~is_text] = table.body[numbers].to_numpy(dtype=np.float64, na_value=np.nan)
    is_wrong = np.isinf(values)
    for place in map(int, np.flatnonzero(is_text)):
        column = table.body.iloc[:, columns[place]]
        values[:, place] = pd.to_numeric(column, errors="coerce")
        is_wrong[:, place] = ~np.isfinite(values[:, place]) & column.notna()
    if is_wrong.any():
        i, place = np.argwhere(is_wrong)[0]
        value = str(table.body.iat[i, columns[place]])
        advice = " Decimals stand behind a comma: save the table with points." if _DECIMAL_COMMA.match(value) else ""
        raise DataFormatError(
            f"{path}: row {rows[i]!r}, column {table.header[columns[place]]!r} holds {value!r}, which is no finite "
            f"number.{advice}"
        )
    return values


def _require_names(path: Path, samples: Sequence[str]) -> None:
    n_of = Counter(samples)
    twice = [name for name, n in n_of.items() if n > 1 and name]
    if "" in n_of:
        raise DataFormatError(f"{path}: {n_of['']} of {len(samples)} samples have no name; give each one.")
    if twice:
        raise DataFormatError(
            f"{path}: {len(twice)} names of samples stand more than once (first: {twice[0]!r}), so nothing could be "
            "joined to them. Give each sample a name of its own."
        )


def _checked(path: Path, values: np.ndarray, obs: pd.DataFrame, var: pd.DataFrame, side: str) -> AnnData:
    """Return the genes that have an id and a value, each under an id of its own, and say what was read.

    Raises
    ------
    DataFormatError
        A sample has no value.
    """
    is_missing = np.isnan(values)
    silent = obs.index[is_missing.all(axis=1)]
    if len(silent):
        raise DataFormatError(f"{path}: {len(silent)} samples have no values (first: {silent[0]!r}); leave them out.")
    is_named, has_value = var.index != "", ~is_missing.all(axis=0)
    stays = is_named & has_value
    var = var[stays]
    remarks = {
        "{:,} rows without a gene left out": (~is_named).sum(),
        "{:,} genes without a value left out": (is_named & ~has_value).sum(),
        "{:,} values are missing": is_missing[:, stays].sum(),
        "{:,} genes have the id of another": var.index.duplicated().sum(),
        "{:,} columns that are no genes are in obs": obs.shape[1],
    }
    said = "".join(f"; {remark.format(n)}" for remark, n in remarks.items() if n)
    logger.info("%s: %s samples × %s genes, genes in %s%s.", path.name, f"{len(obs):,}", f"{len(var):,}", side, said)
    return AnnData(values[:, stays], obs=obs, var=var.set_axis(make_index_unique(var.index), axis=0))
