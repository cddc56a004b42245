"""From counts to tokens: ``vocabulary`` and ``tokenize``."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import geneformer_repro.cli.artefacts as artefacts
from geneformer_repro.cli.commands import Reads
from geneformer_repro.cli.following import after_tokenize, after_vocabulary
from geneformer_repro.cli.inputs import ANY_FILE, COLUMN, COUNT_FILES, COUNTS, add_count_options, new_command
from geneformer_repro.cli.terminal import say
from geneformer_repro.config import load_config
from geneformer_repro.errors import InputError

if TYPE_CHECKING:
    from geneformer_repro.tokenizer.quality import CellFilter

_OF_COUNTS = ("max_length", "layer", "gene_ids", "exact", "log2", "base")
_OF_BOTH = ("layer", "gene_ids", "values", "log2", "workers", "ray", "overwrite")


def add_commands(commands: Any) -> None:
    """Add the commands of this module."""
    _add_vocabulary(commands)
    _add_tokenize(commands)


def _add_vocabulary(commands: Any) -> None:
    vocabulary = new_command(
        commands,
        "vocabulary",
        _vocabulary,
        "learn genes and medians from counts; convert published ones",
        "folder to write",
        family="data",
        examples=["cells.h5ad -o vocab", "ctheodoris/Geneformer --series V2 -o vocab-v2"],
        then=after_vocabulary,
    )
    vocabulary.add_argument(
        "inputs",
        nargs="+",
        type=Reads(artefacts.ANNDATA, artefacts.TABLE, artefacts.VOCABULARY, artefacts.CHECKPOINT, hub=True),
        metavar="IN",
        help=f"{COUNTS}; or one folder with the published pickles, or hub id",
    )
    vocabulary.add_argument(
        "--series",
        choices=["V1", "V2"],
        help="convention of special tokens and length (default V2, or that of --base)",
    )
    vocabulary.add_argument(
        "--base",
        type=ANY_FILE,
        metavar="FOLDER",
        help="keep the genes and tokens of this vocabulary or checkpoint; learn medians only",
    )
    vocabulary.add_argument("--max-length", type=int, metavar="N", help="most tokens a cell may have")
    vocabulary.add_argument("--revision", help="branch, tag or commit on the hub")
    vocabulary.add_argument(
        "--exact", action="store_true", help="exact medians, which keep every value in memory (default: a sketch)"
    )
    add_count_options(vocabulary)


def _add_tokenize(commands: Any) -> None:
    tokenize = new_command(
        commands,
        "tokenize",
        _tokenize,
        "turn raw counts into rank-value encodings",
        "dataset folder to write",
        family="data",
        examples=[
            "cells.h5ad --vocabulary vocab --obs cell_type donor -o cells.tok",
            "'atlas/*.h5ad' --vocabulary base --filter min_genes=200 max_mito=0.1 -o atlas.tok",
        ],
        then=after_tokenize,
        configures=_cell_filter,
    )
    tokenize.add_argument("inputs", nargs="+", type=COUNT_FILES, metavar="IN", help=COUNTS)
    tokenize.add_argument(
        "--vocabulary",
        type=ANY_FILE,
        required=True,
        help="folder written by vocabulary, checkpoint that will read the cells, or folder with the published pickles",
    )
    tokenize.add_argument(
        "--obs", type=COLUMN, nargs="+", default=[], metavar="COLUMN", help="obs columns to carry along"
    )
    add_count_options(tokenize)
    tokenize.add_argument(
        "--order",
        choices=["descending", "two_ended"],
        default="descending",
        help="of a sample's genes: from the top down, or top and bottom by turns (default %(default)s)",
    )
    tokenize.add_argument(
        "--orthologs",
        type=ANY_FILE,
        metavar="FILE",
        help="table of other id and gene id: one-to-one orthologs, or retired ids",
    )
    tokenize.add_argument(
        "--min-known-share",
        type=float,
        default=0.5,
        metavar="SHARE",
        help="stop if known genes hold less of a source's counts (default %(default)s)",
    )
    tokenize.add_argument("--uncropped", action="store_true", help="also write all ranked genes of each cell")
    tokenize.add_argument(
        "--filter",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="thresholds for cells: filter_pass=true, min_counts, max_counts, min_genes, max_genes, max_mito (share), "
        "counts_within_sd, mito_within_sd",
    )


def _options(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Return the options that both commands have, and those named, as the functions call them too."""
    return {name: getattr(arguments, name) for name in (*_OF_BOTH, *names)}


def _vocabulary(arguments: argparse.Namespace) -> int:
    import geneformer_repro.unfinished as unfinished
    from geneformer_repro.files import refuse_existing
    from geneformer_repro.tokenizer.fitting import FAILED
    from geneformer_repro.tokenizer.vocabulary import Vocabulary, is_published

    out, status = Path(arguments.out), 0
    refuse_existing(out, overwrite=arguments.overwrite, marker="vocabulary.json")
    published = [path for path in arguments.inputs if is_published(path)]
    if published and len(arguments.inputs) > 1:
        raise InputError(
            f"Give files with raw counts, or one folder or hub id with the published dictionaries; found "
            f"{published[0]} among {len(arguments.inputs)} inputs."
        )
    if published and (arguments.values != "counts" or any(getattr(arguments, option) for option in _OF_COUNTS)):
        raise InputError(
            "--max-length, --layer, --gene-ids, --exact, --values, --log2 and --base are for counts; the published "
            "dictionaries are as they are."
        )
    if published:
        series: Any = arguments.series or "V2"
        vocabulary = Vocabulary.from_pretrained(published[0], series=series, revision=arguments.revision)
        vocabulary.save(out, overwrite=arguments.overwrite)
    else:
        work = unfinished.work_folder(out)
        options = _options(arguments, "series", "max_length", "exact")
        base = Vocabulary.load(arguments.base) if arguments.base else None
        vocabulary = Vocabulary.fit(arguments.inputs, base=base, work=work, **options)
        vocabulary.save(out, overwrite=arguments.overwrite)
        status = int((work / FAILED).exists())
        unfinished.drop(work)
    say(f"{out}: {vocabulary}")
    return status


def _tokenize(arguments: argparse.Namespace) -> int:
    from geneformer_repro.tokenizer.tokenize import tokenize
    from geneformer_repro.tokenizer.vocabulary import Vocabulary

    options = _options(arguments, "out", "obs", "order", "orthologs", "min_known_share", "uncropped")
    vocabulary = Vocabulary.load(arguments.vocabulary)
    cells = tokenize(arguments.inputs, vocabulary, cell_filter=arguments.settings, **options)
    say(f"{arguments.out}: {cells.summary()}")
    return 1 if cells.spec["failed"] else 0


def _cell_filter(arguments: argparse.Namespace) -> "CellFilter":
    from geneformer_repro.tokenizer.quality import CellFilter

    return load_config(CellFilter, overrides=arguments.filter)
