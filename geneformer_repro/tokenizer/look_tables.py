"""What a table holds, told from its first rows: for ``info``, before any command reads it.

Of text the first four megabytes are parsed and the rest is only counted; of Parquet a few rows are read. Which side
genes are on is told by the rule of `tables`; what else a table may be, by what its columns are called.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from geneformer_repro.drugs import NAME_COLUMNS, SMILES_COLUMNS
from geneformer_repro.errors import DataFormatError, InputError
from geneformer_repro.files import open_unpacked, read_text
from geneformer_repro.responses import DRUG_COLUMNS, MEASURES, SAMPLE_COLUMNS
from geneformer_repro.tokenizer.gene_lists import (
    ID_COLUMNS,
    MEMBER_COLUMNS,
    SET_COLUMNS,
    SOURCE_COLUMNS,
    TARGET_COLUMNS,
)
from geneformer_repro.tokenizer.look import aligned, some_of
from geneformer_repro.tokenizer.matrices import first_not_a_count
from geneformer_repro.tokenizer.measures import LEAST_LOG2, MOST_LOG2
from geneformer_repro.tokenizer.tables import (
    CLINICAL,
    Table,
    column_called,
    is_remark,
    parsed,
    share_of_genes,
    side_of_genes,
)

_BYTES = 4 << 20
_ROWS, _NUMBERS = 200, 400_000
"""Of Parquet so many rows are read, or so many fields, if those are more."""
_SHOWN_COLUMNS = 12
_FEWEST_VALUES = 3
"""Columns of numbers that a matrix has at least; of genes in columns there are hundreds."""
_MEASURED = ["--measure", "MEASURE", "-o", "response"]
_SCORES = ("effect", "beyond", "effect_vs_matched", "score", "fdr", "p_value", "padj", "logfc", "weight")


class _Look(NamedTuple):
    """The first rows of a table, and how many there are in all."""

    table: Table
    n_rows: int

    @property
    def names(self) -> list[str]:
        """What its columns are called."""
        return [name for name in self.table.header if name]

    def has(self, *choices: Sequence[str]) -> bool:
        """Whether it has a column called as one of each, none twice."""
        found = [column_called(self.names, of) for of in choices]
        return None not in found and len(set(found)) == len(found)


def described_table(path: Path) -> str:
    """Say what a table of text or Parquet holds: rows and columns, of what kind it is, and the command that takes it.

    Parameters
    ----------
    path
        A ``.tsv``, ``.csv``, ``.txt``, ``.gct``, ``.gmt`` or ``.parquet`` file; of text also packed by gzip.

    Raises
    ------
    InputError
        There is no such file, or it is no text.
    DataFormatError
        It is empty or damaged.
    """
    if path.name.lower().removesuffix(".gz").endswith(".gmt"):
        return _gene_sets(path)
    if (listed := _gene_list(path)) is not None:
        return listed
    look = _first_rows(path)
    body = look.table.body
    remarks = [j for j, kind in enumerate(body.dtypes) if is_remark(look.table, j, kind)]
    numbers = [j for j in range(len(look.table.header)) if j not in set(remarks)]
    lines = [f"{path}: {look.n_rows:,} rows × {len(look.table.header):,} columns"]
    is_clinical = len(remarks) > 1 and share_of_genes(look.names) < 0.5 and any(map(CLINICAL.match, look.names))
    if (kind := _kind_by_columns(look)) is None and not is_clinical and remarks and len(numbers) >= _FEWEST_VALUES:
        return "\n".join([*lines, *_matrix(path, look, remarks, numbers)])
    what, following = kind or ("a row a sample or patient, with what is known of it", _NEXT_CLINICAL)
    columns = [(name or "(no name)", _column(body[j])) for j, name in enumerate(look.table.header[:_SHOWN_COLUMNS])]
    more = len(look.table.header) - len(columns)
    read = f" (of the first {len(body):,} rows)" if len(body) < look.n_rows else ""
    lines += [f"it looks like: {what}", f"columns{read}:", *aligned(columns)]
    lines += [f"  and {more:,} more"] if more > 0 else []
    return "\n".join([*lines, f"next: {following.format(path=shlex.quote(str(path)))}"])


_NEXT_CLINICAL = "geneformer-repro samples EXPRESSION --clinical {path} -o cohort.h5ad"


def _kind_by_columns(look: _Look) -> tuple[str, str] | None:
    """Say what a table is by what its columns are called, and what may come next; None where they do not tell."""
    if look.has(["part"], ["cell", "sample", "patient", "pair", "gene"]):
        return "a split (which row is in which part)", "geneformer-repro finetune BASE CELLS --split {path} -o model"
    if look.has(["label"], ID_COLUMNS):
        task = " --task TASK" if look.has(["task"]) else ""
        return (
            "classes of genes (a gene and its label)",
            f"geneformer-repro finetune BASE CELLS --genes {{path}}{task} -o model",
        )
    if look.has(SMILES_COLUMNS, NAME_COLUMNS):
        return (
            "drugs and their structures (SMILES)",
            "geneformer-repro response SAMPLES --responses TABLE --drugs {path} -o response",
        )
    if look.has(SAMPLE_COLUMNS, DRUG_COLUMNS):
        measure = next((name for name in MEASURES if column_called(look.names, [name])), None)
        asked = f"--measure {measure or 'MEASURE'}"
        return (
            "drug response, a row a sample and drug" + (f" ({measure})" if measure else ""),
            f"geneformer-repro response SAMPLES --responses {{path}} {asked} -o response",
        )
    if look.has(SOURCE_COLUMNS, TARGET_COLUMNS):
        return (
            "known edges (a source and a target)",
            "geneformer-repro statistics NETWORK --known {path} --counts CELLS.h5ad -o known.tsv",
        )
    if look.has(["gene", "gene_id", "gene_name"], _SCORES):
        return "scores of genes", "geneformer-repro enrich {path} --sets SETS.gmt -o sets.tsv"
    if look.has(SET_COLUMNS, MEMBER_COLUMNS):
        return "gene sets (a set and a gene)", "geneformer-repro enrich GENES.tsv --sets {path} -o sets.tsv"
    return None


# Matrices


def _matrix(path: Path, look: _Look, remarks: Sequence[int], numbers: Sequence[int]) -> list[str]:
    """Say what a matrix of expression holds, which way round it is, and the command that tokenises it."""
    table = look.table
    columns = [(table.header[j] or "(no name)", _column(table.body[j])) for j in remarks[:_SHOWN_COLUMNS]]
    try:
        side = side_of_genes(path, table, remarks, numbers)
    except InputError as error:
        where = str(error).removeprefix(f"{path}: ")
        first = [table.header[j] for j in numbers]
        return [
            f"it looks like: numbers, {where}",
            f"columns of numbers: {some_of(first, len(first))}",
            "columns of text:",
            *aligned(columns),
            "it may be drug response, a row a sample and a column a drug:",
            f"next: {shlex.join(['geneformer-repro', 'response', 'SAMPLES', '--responses', str(path), *_MEASURED])}",
        ]
    n_samples, n_genes = (len(numbers), look.n_rows) if side == "rows" else (look.n_rows, len(numbers))
    genes = [table.header[j] for j in numbers] if side == "columns" else _genes_in(table, remarks)
    values = table.body[list(numbers)].to_numpy(dtype=np.float64, na_value=np.nan)
    what, options = _measure(values[np.isfinite(values)], is_long=n_genes >= _ROWS)
    command = ["geneformer-repro", "tokenize", str(path), *options, "--vocabulary", "VOCABULARY", "-o"]
    name = path.resolve().name.partition(".")[0]
    there = "columns" if side == "rows" else "rows"
    return [
        f"it looks like: expression of {n_samples:,} samples ({there}) × {n_genes:,} genes ({side})",
        f"values: {what}, in the first {len(values):,} rows",
        f"gene ids: {some_of(genes, n_genes)}",
        "columns beside the values:",
        *aligned(columns),
        f"next: {shlex.join([*command, f'{name}.tok'])}",
    ]


def _genes_in(table: Table, remarks: Sequence[int]) -> list[str]:
    named = [table.body[j].dropna().astype(str).tolist() for j in remarks]
    return max((names for names in named if names), key=share_of_genes)


def _measure(values: np.ndarray, *, is_long: bool) -> tuple[str, list[str]]:
    """Say what numbers of expression are, and the options that say so to `tokenize`."""
    if not len(values):
        return "none that is a number", ["--values", "expression"]
    spread = f"{values.min():.4g} to {values.max():.4g}"
    if first_not_a_count(values) < 0:
        return f"whole numbers ({spread}): raw counts, or rounded estimates of them", []
    if values.min() < 0 and (np.mean(values < 0) > 0.1 or values.min() < LEAST_LOG2):
        return f"z-scores or log ratios ({spread})", ["--values", "zscore"]
    if values.max() < MOST_LOG2 and is_long:
        return f"logarithms, as of log2(x + 1) ({spread})", ["--values", "expression", "--log2"]
    return f"linear, as TPM, RSEM, FPKM or intensities ({spread})", ["--values", "expression"]


# Lists and sets


def _gene_sets(path: Path) -> str:
    """Describe sets of genes, a line a set: its name, a remark, and its genes."""
    rows = [line.split("\t") for line in read_text(path).splitlines() if line.strip()]
    sizes = [len([gene for gene in row[2:] if gene]) for row in rows]
    if not rows or not max(sizes):
        raise DataFormatError(f"{path}: expected a gene set a line (name, remark and genes, by tabs), found none.")
    names = [row[0] for row in rows]
    return (
        f"{path}: {len(rows):,} gene sets of {min(sizes):,} to {max(sizes):,} genes: {some_of(names, len(names))}\n"
        f"genes: {some_of(rows[0][2:], len({gene for row in rows for gene in row[2:]}))}\n"
        f"next: geneformer-repro enrich GENES.tsv --sets {shlex.quote(str(path))} -o sets.tsv"
    )


def _gene_list(path: Path) -> str | None:
    """Describe a list of genes, one a line; None where there are columns, or most lines name no gene."""
    if path.suffix.lower() == ".parquet":
        return None
    with open_unpacked(path) as file:
        begin = file.read(_BYTES).decode(errors="replace").splitlines()
    lines = [line.strip() for line in begin if line.strip() and not line.startswith("#")]
    if not lines or any(mark in line for line in lines[:_ROWS] for mark in "\t,;"):
        return None
    share = share_of_genes(lines)
    said = f"{path}: {len(lines):,} lines of one word: {some_of(lines, len(lines))}"
    if share <= 0.5:
        return f"{said}\nit is no list of genes that this package knows ({share:.0%} of the lines look like genes)."
    return (
        f"{said}\nit looks like: a list of genes ({share:.0%} of the lines look like one), as network --sources, heads "
        "--genes, enrich --drivers and perturb --genes @FILE take it\n"
        f"next: geneformer-repro network BASE CELLS --sources {shlex.quote(str(path))} -o net"
    )


# First rows


def _first_rows(path: Path) -> _Look:
    if path.suffix.lower() == ".parquet":
        return _first_of_parquet(path)
    with open_unpacked(path) as file:
        begin = file.read(_BYTES)
        n_lines, rest = 0, begin
        while rest:
            n_lines, last = n_lines + rest.count(b"\n"), rest
            rest = file.read(_BYTES)
    is_whole = len(begin) < _BYTES
    text = read_text(path) if is_whole else begin[: begin.rindex(b"\n") + 1].decode("utf-8-sig")
    n_lines += bool(begin) and not last.endswith(b"\n")
    table = parsed(path, text)
    above = text.count("\n") + (not text.endswith("\n")) - len(table.body)
    return _Look(table, n_lines - above)


def _first_of_parquet(path: Path) -> _Look:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        first = next(file.iter_batches(batch_size=max(_ROWS, _NUMBERS // file.metadata.num_columns)), None)
    except (OSError, pa.ArrowException) as error:
        raise DataFormatError(f"{path}: not a readable Parquet file ({' '.join(str(error).split())[:200]}).") from error
    body = pd.DataFrame() if first is None else pa.Table.from_batches([first]).to_pandas()
    if body.index.name is not None or not isinstance(body.index, pd.RangeIndex):
        body = body.reset_index(names=str(body.index.name or ""))
    header = [str(name) for name in body.columns]
    return _Look(Table(header, body.set_axis(range(len(header)), axis=1)), file.metadata.num_rows)


def _column(column: pd.Series) -> str:
    """Say what the first rows of a column hold."""
    values = column.dropna()
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values) and len(values):
        return f"{values.min():.6g} to {values.max():.6g}"
    distinct = values.astype(str).drop_duplicates().tolist()
    return some_of(distinct, len(distinct)) or "nothing"
