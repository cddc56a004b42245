"""What a file or folder is: ``info``."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geneformer_repro.cli.artefacts import ANNDATA, kind_of
from geneformer_repro.cli.explanations import described as described_explanation
from geneformer_repro.cli.following import after_info
from geneformer_repro.cli.inputs import ANY_FILE, given_vocabulary, new_command
from geneformer_repro.cli.screens import size_of_screen
from geneformer_repro.cli.terminal import in_rows, say
from geneformer_repro.errors import InputError, counted
from geneformer_repro.files import is_there, mudata_of

if TYPE_CHECKING:
    from geneformer_repro.tokenizer.vocabulary import Vocabulary

_LONG = ("heads", "of_heads", "gene_names", "sets")
"""Metadata with a line a head, a gene or a set."""
_OF_VOCABULARY = {"vocabulary.json", "vocabulary.tsv", "other_ids.tsv"}


def add_commands(commands: Any) -> None:
    """Add the command of this module."""
    info = new_command(
        commands,
        "info",
        _info,
        "say what a file or folder is",
        None,
        family="look",
        examples=["cells.h5ad", "expression.tsv.gz", "cells.tok", "classifier"],
        then=after_info,
        more="Raw counts (.h5ad, .loom, .zarr, 10x), a table (expression, drug response, edges, genes, …), a "
        "vocabulary, a dataset, a checkpoint, a screen, a network or an explanation.",
    )
    info.add_argument("path", type=ANY_FILE, help="what a command reads or has written")
    info.add_argument(
        "--vocabulary", type=ANY_FILE, help="what tokens mean, of a stock checkpoint or tokenised cells of others"
    )


def _info(arguments: argparse.Namespace) -> None:
    path, vocabulary = Path(arguments.path), given_vocabulary(arguments)
    if not is_there(path):
        raise InputError(f"{path}: no such file or folder.")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path}: may not be read by this user.")
    if path.suffix == ".h5ad" and (vectors := _vectors_of(path)):
        _show(*vectors)
    elif _may_hold_counts(path):
        _describe_counts(path)
    elif path.is_file() and not _holds_tokens(path):
        _describe_table(path)
    elif (path / "network.json").exists():
        from geneformer_repro.in_silico.networks.network_files import described_network

        said, metadata = described_network(path)
        _show(said, {key: value for key, value in metadata.items() if key not in _LONG})
    elif (path / "config.json").exists():
        _describe_checkpoint(path, vocabulary)
    elif path.is_dir() and {file.name for file in path.iterdir()} <= _OF_VOCABULARY:
        from geneformer_repro.tokenizer.vocabulary import Vocabulary

        say(Vocabulary.load(path))
    else:
        _describe_cells(path, vocabulary)


def _vectors_of(path: Path) -> tuple[str, dict[str, Any]] | None:
    """Say what embed wrote into a file, and how; None if it did not write it."""
    import h5py

    try:
        with h5py.File(path) as file:
            made = file.get("uns/geneformer_repro")
            if made is None or "level" not in made:
                return None
            told = {name: value[()] for name, value in made.items()}
            n_vectors, n_dimensions = (len(file[of][file[of].attrs["_index"]]) for of in ("obs", "var"))
            columns = [str(name) for name in file["obs"].attrs["column-order"]]
    except (OSError, KeyError, TypeError, AttributeError):  # what is wrong is said by what reads counts
        return None
    facts = {name: of.decode() if isinstance(of, bytes) else of.item() for name, of in told.items()}
    of_each = counted(n_vectors, str(facts["level"]))
    return f"vectors of {of_each} × {n_dimensions:,} dimensions, by embed", facts | {"obs": columns}


def _may_hold_counts(path: Path) -> bool:
    """Whether a path is a file that is no Parquet, a Zarr store, or a 10x folder."""
    if path.is_file() or mudata_of(path):
        return not _is_parquet(path)
    return kind_of(path) == ANNDATA or any(path.glob("*matrix.mtx*"))


def _describe_counts(path: Path) -> None:
    from geneformer_repro.tokenizer.tables import is_expression_table

    if is_expression_table(path) or ".gmt" in path.suffixes:
        from geneformer_repro.tokenizer.look_tables import described_table

        say(described_table(path))
        return
    from geneformer_repro.tokenizer.look import described_counts

    say(described_counts(path))


def _describe_table(path: Path) -> None:
    """Print what a screen is, an explanation, or a table of others."""
    from geneformer_repro.cli.artefacts import TABLE

    if kind_of(path) == TABLE:
        from geneformer_repro.tokenizer.look_tables import described_table

        say(described_table(path))
        return
    from geneformer_repro.in_silico.block_tables import format_of
    from geneformer_repro.in_silico.shift_table import FORM, ShiftTable

    if format_of(path) != FORM.name:
        from geneformer_repro.in_silico.explanations.explanation import FORM as OF_EXPLANATION
        from geneformer_repro.in_silico.explanations.explanation import Explanation

        if format_of(path) == OF_EXPLANATION.name:
            why = Explanation.open(path)
            _show(described_explanation(why), {key: of for key, of in why.metadata.items() if key not in _LONG})
            return
    metadata = ShiftTable.open(path).metadata
    _show(size_of_screen(path), {key: value for key, value in metadata.items() if key != "gene_names"})


def _describe_checkpoint(path: Path, vocabulary: "Vocabulary | None") -> None:
    from geneformer_repro.checkpoint_files import described_checkpoint

    said = described_checkpoint(path) if vocabulary is None else None
    if said is None:
        from geneformer_repro.checkpoint import Checkpoint, described_config

        if vocabulary is None and not (path / "vocabulary.json").exists():
            say(described_config(path))
            return
        checkpoint = Checkpoint.from_pretrained(path, vocabulary=vocabulary)
        said = repr(checkpoint), dict(checkpoint.provenance)
    _show(*said)


def _describe_cells(path: Path, vocabulary: "Vocabulary | None") -> None:
    """Print what tokenised cells are; or the published dictionaries, if that is what there is."""
    if vocabulary is None and (path / "spec.json").exists():
        from geneformer_repro.tokenizer.summary import described_dataset

        if said := described_dataset(path):
            say(said)
            return
    from geneformer_repro.tokenizer.dataset import TokenizedDataset
    from geneformer_repro.tokenizer.published import described, is_dataset
    from geneformer_repro.tokenizer.vocabulary import Vocabulary

    if not is_dataset(path):
        say(Vocabulary.load(path))
        return
    knows = vocabulary is not None or (path / "spec.json").exists()
    say(TokenizedDataset.open(path, vocabulary).summary() if knows else described(path))


def _is_parquet(path: Path) -> bool:
    with (mudata_of(path) or path).open("rb") as file:
        return file.read(4) == b"PAR1"


def _holds_tokens(path: Path) -> bool:
    """Whether a file is a table of tokenised cells, not a screen."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from geneformer_repro.tokenizer.summary import INPUT_IDS

    try:
        return INPUT_IDS in pq.read_schema(path).names
    except (OSError, pa.ArrowException):
        return False


def _show(title: str, facts: dict[str, Any]) -> None:
    """Print what something is, and what is written down of it: in words on a terminal, else as JSON."""
    say(title)
    if sys.stdout.isatty():
        say("\n".join(in_rows(facts)))
    else:
        print(json.dumps(facts, indent=2, ensure_ascii=False))
