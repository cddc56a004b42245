"""Genes as users list them: one a line, by class in a table, and which of them a vocabulary knows."""

import difflib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from geneformer_repro.errors import InputError, did_you_mean, listed
from geneformer_repro.files import read_table, read_text
from geneformer_repro.tokenizer.labels import as_labels
from geneformer_repro.tokenizer.vocabulary import Vocabulary

_SHOWN = 5
SET_COLUMNS = ("set", "gene_set", "geneset", "gs_name", "pathway", "term", "source", "collection", "tf", "regulator")
MEMBER_COLUMNS = ("gene", "gene_id", "gene_symbol", "genesymbol", "symbol", "gene_name", "target", "ensembl_id")
SOURCE_COLUMNS = ("source", "tf", "regulator", "tf_name", "source_genesymbol", "from", "perturbed")
TARGET_COLUMNS = ("target", "target_gene", "gene", "target_genesymbol", "to")
"""What columns of tables of gene sets, and of edges, are called, the first that is there."""
ID_COLUMNS = ("gene_id", "ensembl_id", "gene", "gene_name")


def read_genes(path: str | Path) -> list[str]:
    """Read names of genes, the first word of each line; blank lines and those that begin with # do not count.

    Raises
    ------
    InputError
        There is no such file, or it names no gene.
    """
    try:
        lines = [line.split("\t")[0].split(",")[0].strip() for line in read_text(path).splitlines()]
    except InputError as error:
        raise InputError(f"{error} Expected a list of genes, or a text file with one a line.") from error
    names = [line for line in lines if line and not line.startswith("#")]
    if not names:
        raise InputError(f"{path}: names no gene. Expected one a line.")
    return list(dict.fromkeys(names))


def read_gene_classes(path: str | Path, task: str | None = None) -> dict[str, list[str]]:
    """Read classes of genes from a table.

    Parameters
    ----------
    path
        Separated by tabs, commas or semicolons, with a column ``label`` and one of ``gene_id``, ``ensembl_id``,
        ``gene``, ``gene_name``; the first of these that is there is used. Labels are read as those of cells
        (`tokenizer.dataset.as_labels`); rows without a label are left out.
    task
        Where a column ``task`` says of several sets of classes which row is whose, the one to read.

    Raises
    ------
    InputError
        The file or a column is missing, or `task` is needed or not there.
    """
    import pandas as pd

    try:
        table = read_table(Path(path), sep=None)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{path}: cannot be read as a table of gene classes ({error}).") from error
    if not isinstance(table.index, pd.RangeIndex):
        raise InputError(f"{path}: the rows have more fields than the header. Give every column a name.")
    ids = next((name for name in ID_COLUMNS if name in table.columns), None)
    if ids is None or "label" not in table.columns:
        raise InputError(
            f"{path}: expected a column label and one of {', '.join(ID_COLUMNS)}, found "
            f"{listed(map(repr, table.columns))}."
        )
    tasks = sorted(table["task"].unique()) if "task" in table.columns else []
    if task is not None and task not in tasks:
        raise InputError(f"{path}: has no task {task!r}. {did_you_mean(task, tasks)}")
    if task is None and len(tasks) > 1:
        raise InputError(f"{path}: holds several tasks; choose one with task= (--task): {', '.join(tasks)}.")
    chosen = table if task is None else table[table["task"] == task]
    labels = as_labels(chosen["label"])
    return {str(label): genes.tolist() for label, genes in chosen.groupby(labels)[ids]}


def known_genes(genes: str | Path | Sequence[str], vocabulary: Vocabulary, what: str) -> tuple[np.ndarray, str | None]:
    """Return the places in a vocabulary of the genes that it knows, and a sentence on the others, if there are any.

    Parameters
    ----------
    genes
        Ids or names, or a file with one a line.
    vocabulary
        The genes that are known.
    what
        What they are called, in messages.

    Raises
    ------
    InputError
        None of them is known, or the file names none.
    """
    names = read_genes(genes) if isinstance(genes, str | Path) else list(genes)
    found = vocabulary.find(names)
    unknown = [name for name, i in zip(names, found, strict=True) if i < 0]
    if not unknown:
        return found, None
    near = {name: difflib.get_close_matches(name, [*vocabulary.by_name], n=2, cutoff=0.8) for name in unknown[:_SHOWN]}
    with_near = [repr(name) + (f" (near: {', '.join(names)})" if names else "") for name, names in near.items()]
    shown = listed([*with_near, *unknown[_SHOWN:]], most=_SHOWN)
    message = (
        f"{len(unknown)} of {len(names)} {what} are not in the vocabulary, or their name stands for several genes: "
        f"{shown}."
    )
    if len(unknown) == len(names):
        raise InputError(
            f"{message} So there is none. Give ids or names of its genes, such as {vocabulary.gene_ids[0]!r}."
        )
    return found[found >= 0], message
