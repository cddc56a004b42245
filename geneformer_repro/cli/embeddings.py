"""Vectors and what is done with them: ``embed``, ``map`` and ``mixing``."""

import argparse
from pathlib import Path
from typing import Any

from geneformer_repro.cli.commands import AtLeast
from geneformer_repro.cli.following import after_embed
from geneformer_repro.cli.inputs import (
    ANY_FILE,
    CHECKPOINT,
    COLUMN,
    DATASET,
    MODEL,
    TOKENIZED,
    VECTORS,
    add_dtype_option,
    add_model_options,
    new_command,
    open_both,
)
from geneformer_repro.cli.looks import look_at_layer, outline_of
from geneformer_repro.cli.models import write_h5ad
from geneformer_repro.cli.terminal import print_first, print_table, say
from geneformer_repro.errors import InputError, counted


def add_commands(commands: Any) -> None:
    """Add the commands of this module."""
    _add_embed(commands)
    _add_map(commands)
    _add_mixing(commands)


def _add_embed(commands: Any) -> None:
    embed = new_command(
        commands,
        "embed",
        _embed,
        "write vectors of cells, genes or states",
        ".h5ad or .zarr to write; of states .tsv",
        family="ask",
        examples=["base cells.tok --umap cell_type -o cells.h5ad", "base cells.tok --states cell_type -o states.tsv"],
        then=after_embed,
        looks=_look_at_vectors,
    )
    embed.add_argument("checkpoint", type=MODEL, help=CHECKPOINT)
    embed.add_argument("cells", type=DATASET, help=TOKENIZED)
    embed.add_argument(
        "--level",
        choices=["cell", "gene"],
        default="cell",
        help="a vector of each cell, or of each gene, its mean over the cells that have it (default %(default)s)",
    )
    embed.add_argument(
        "--states", type=COLUMN, metavar="COLUMN", help="instead a vector of each state in this obs column"
    )
    embed.add_argument(
        "--statistic", choices=["mean", "median"], default="mean", help="of states (default %(default)s)"
    )
    embed.add_argument(
        "--umap", type=COLUMN, metavar="COLUMN", help="also compute a UMAP, and draw it coloured by this obs column"
    )
    embed.add_argument(
        "--heatmap", type=COLUMN, metavar="COLUMN", help="also draw the mean vectors of the labels in this obs column"
    )
    embed.add_argument(
        "--into",
        type=VECTORS,
        metavar="CELLS.h5ad",
        help="write a copy of this file of such cells, with the vectors in obsm['X_geneformer'] (of genes in varm)",
    )
    add_dtype_option(embed)
    add_model_options(embed, with_target=False)


def _add_map(commands: Any) -> None:
    mapped = new_command(
        commands,
        "map",
        _map,
        "label cells by their neighbours in a reference",
        ".tsv file to write",
        family="ask",
        examples=["query.h5ad reference.h5ad --label cell_type -o labels.tsv"],
        more="Each label comes with its confidence.",
    )
    mapped.add_argument("query", type=VECTORS, help=".h5ad written by embed")
    mapped.add_argument("reference", type=VECTORS, help=".h5ad written by embed with the same model")
    mapped.add_argument("--label", required=True, metavar="COLUMN", help="obs column of the reference")
    mapped.add_argument(
        "--keep-unknown", action="store_true", help='keep cells called "unknown", "unlabelled" and the like, as a label'
    )
    mapped.add_argument("--neighbors", type=AtLeast(1), default=15, metavar="N", help="that vote (default %(default)s)")


def _add_mixing(commands: Any) -> None:
    mixing = new_command(
        commands,
        "mixing",
        _mixing,
        "score how an embedding mixes batches and keeps labels",
        ".tsv file to write",
        family="look",
        examples=["cells.h5ad --batch donor --label cell_type -o mixing.tsv"],
        more="Beside PCA; needs the extra scib.",
    )
    mixing.add_argument("embedding", type=VECTORS, help=".h5ad written by embed")
    mixing.add_argument("--batch", required=True, metavar="COLUMN", help="obs column of the batches")
    mixing.add_argument("--label", required=True, metavar="COLUMN", help="obs column of the labels")
    mixing.add_argument("--counts", type=ANY_FILE, help=".h5ad with the raw counts of these cells, to compare with")


def _require_apart(arguments: argparse.Namespace, out: Path) -> None:
    """Raise if vectors beside counts are asked for with what wants them alone, or in the place of the input."""
    if others := [name for name in ("states", "umap", "heatmap") if getattr(arguments, name)]:
        raise InputError(
            f"--into writes vectors beside counts, and --{others[0]} needs the vectors alone. Leave one out."
        )
    if out.suffix != ".h5ad":
        raise InputError(f"{out}: a copy of {arguments.into} is written as .h5ad; choose such a name.")
    if out.resolve() == Path(arguments.into).resolve():
        raise InputError(f"{out}: is the input, which is not changed. Choose another output.")


def _look_at_vectors(arguments: argparse.Namespace) -> None:
    from geneformer_repro.files import VECTOR_ENDINGS, refuse_existing, require_ending

    out = Path(arguments.out)
    if arguments.into:
        _require_apart(arguments, out)
    require_ending(out, (".tsv",) if arguments.states else VECTOR_ENDINGS, "vectors")
    if _drawn(arguments) and arguments.level == "gene":
        raise InputError("--umap and --heatmap show obs columns of cells; genes have none. Embed --level cell.")
    for path in () if arguments.states else [_picture(out, name) for name in _drawn(arguments)]:
        refuse_existing(path, overwrite=arguments.overwrite)
    if outline := outline_of(arguments):
        look_at_layer(arguments, outline)


def _drawn(arguments: argparse.Namespace) -> dict[str, str]:
    """Return the obs column of each picture."""
    return {name: column for name in ("umap", "heatmap") if (column := getattr(arguments, name))}


def _picture(out: Path, name: str) -> Path:
    return out.with_suffix(".png" if name == "umap" else f".{name}.png")


def _embed(arguments: argparse.Namespace) -> None:
    import geneformer_repro.processes as processes
    from geneformer_repro.embedding import embed

    out = Path(arguments.out)
    if arguments.into:
        _embed_into(arguments, out)
        return
    if arguments.states:
        _embed_states(arguments, out)
        return
    drawn = _drawn(arguments)
    pictures = {name: _picture(out, name) for name in drawn}
    checkpoint, cells = open_both(arguments)
    for column in drawn.values():
        cells.require_obs(column)
    options = {"layer": arguments.layer, "pooling": arguments.pooling, "dtype": arguments.dtype}
    adata = embed(checkpoint, cells, level=arguments.level, out=out, overwrite=arguments.overwrite, **options)
    n_rows, n_dimensions = adata.shape
    if adata.isbacked:
        adata.file.close()
    if processes.is_first():
        for name, column in drawn.items():
            _draw(name, out, column, pictures[name], overwrite=arguments.overwrite)
        beside = "".join(f"; {path} shows {drawn[name]}" for name, path in pictures.items())
        say(f"{out}: {counted(n_rows, arguments.level)} × {n_dimensions} dimensions{beside}")


def _embed_into(arguments: argparse.Namespace, out: Path) -> None:
    import geneformer_repro.processes as processes
    from geneformer_repro.embedding import embed

    adata, both = _read_h5ad(arguments.into, expected="an AnnData"), open_both(arguments)
    options = {name: getattr(arguments, name) for name in ("level", "layer", "pooling", "dtype")}
    embed(*both, into=adata, **options)
    processes.agreed(lambda: write_h5ad(adata, out, overwrite=arguments.overwrite))
    if processes.is_first():
        place = "obsm" if arguments.level == "cell" else "varm"
        say(f"{out}: {arguments.into} with {place}['X_geneformer']")


def _embed_states(arguments: argparse.Namespace, out: Path) -> None:
    import geneformer_repro.processes as processes
    from geneformer_repro.embedding import embed_states
    from geneformer_repro.files import refuse_existing

    refuse_existing(out, overwrite=arguments.overwrite)
    options = {"layer": arguments.layer, "pooling": arguments.pooling, "statistic": arguments.statistic}
    table = embed_states(*open_both(arguments), arguments.states, **options)
    if processes.is_first():
        _write_table(table, arguments)
        say(f"{out}: {counted(len(table), 'state')} × {table.shape[1]} dimensions")


def _draw(name: str, path: Path, column: str, picture: Path, *, overwrite: bool) -> None:
    """Draw an embedding that is on disk; a UMAP is added to it, as scanpy does."""
    import anndata

    from geneformer_repro.embedding_store import add_obsm, replacing
    from geneformer_repro.files import new_file
    from geneformer_repro.mapping import heatmap_figure, heatmap_table, scatter_figure, umap

    adata = (anndata.read_h5ad if path.suffix == ".h5ad" else anndata.read_zarr)(path)
    if name == "umap":
        points = umap(adata)
        with replacing(path) as aside:
            add_obsm(aside, "X_umap", points)
        figure = scatter_figure(points, adata.obs[column])
    else:
        figure = heatmap_figure(heatmap_table(adata, column))
    with new_file(picture, overwrite=overwrite) as aside:
        figure.savefig(aside, dpi=150)


def _map(arguments: argparse.Namespace) -> None:
    from geneformer_repro.files import refuse_existing
    from geneformer_repro.mapping import map_to_reference

    refuse_existing(Path(arguments.out), overwrite=arguments.overwrite)
    query, reference = (_read_h5ad(path) for path in (arguments.query, arguments.reference))
    options = {"n_neighbors": arguments.neighbors, "keep_unknown": arguments.keep_unknown}
    table = map_to_reference(query, reference, arguments.label, **options)
    _write_table(table.rename_axis("cell"), arguments)
    found: Any = table.groupby("label")["confidence"].agg(cells="size", mean_confidence="mean")
    print_first(found.sort_values("cells", ascending=False), rows="labels", number="{:.3f}", index=True)
    say(f"{arguments.out}: labels of {counted(len(table), 'cell')}, with confidence, second label and distance")


def _mixing(arguments: argparse.Namespace) -> None:
    from geneformer_repro.files import refuse_existing
    from geneformer_repro.mapping import integration_scores
    from geneformer_repro.tokenizer.counts import counts_of
    from geneformer_repro.tokenizer.readers import open_counts

    refuse_existing(Path(arguments.out), overwrite=arguments.overwrite)
    adata = _read_h5ad(arguments.embedding)
    names = adata.obs_names.to_numpy()
    counts = counts_of(open_counts(arguments.counts), names) if arguments.counts else None
    table = integration_scores(adata, batch=arguments.batch, label=arguments.label, counts=counts)
    _write_table(table, arguments)
    print_table(table.T, number="{:.3f}", index=True)
    say(f"{arguments.out} has these scores")


def _read_h5ad(path: str, *, expected: str = "the output of embed") -> Any:
    import anndata

    try:
        return anndata.read_h5ad(path)
    except Exception as error:  # whatever anndata makes of a file that is damaged or no such file
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{path}: cannot be read as .h5ad ({reason}). Expected {expected}.") from error


def _write_table(table: Any, arguments: argparse.Namespace) -> None:
    from geneformer_repro.files import new_file, write_table

    with new_file(arguments.out, overwrite=arguments.overwrite) as aside:
        write_table(table, aside)
