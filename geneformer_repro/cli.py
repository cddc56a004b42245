"""The command line: each command reads its inputs, calls one public function, says what came of it.

What a user can cause ends in one line on stderr and exit status 2; work that was done, but without some damaged source,
ends with exit status 1; anything else is a bug and shows its traceback.
"""

import argparse
import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geneformer_repro.errors import InputError

if TYPE_CHECKING:
    from geneformer_repro.tokenizer.vocabulary import Vocabulary

_COUNTS = "raw counts: .h5ad, .loom, .zarr, 10x .h5 or folder with matrix.mtx; or a glob, or a folder of such files"
_TOKENIZED = "folder written by tokenize"
_CHECKPOINT = "checkpoint folder, or hub id"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("geneformer_repro").setLevel(logging.WARNING if arguments.quiet else logging.INFO)
    try:
        return int(arguments.run(arguments) or 0)
    except (InputError, FileExistsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "interrupted; the same command goes on where it stopped, if the step is one that resumes", file=sys.stderr
        )
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="geneformer-repro",
        description="From raw counts to a deletion screen: Geneformer-style models of single-cell transcriptomes.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    for add in (
        _add_vocabulary,
        _add_tokenize,
        _add_pretrain,
        _add_finetune,
        _add_predict,
        _add_embed,
        _add_map,
        _add_mixing,
        _add_perturb,
        _add_statistics,
        _add_info,
    ):
        add(commands)
    return parser


def _add_vocabulary(commands: Any) -> None:
    vocabulary = _command(
        commands,
        "vocabulary",
        _vocabulary,
        "learn genes and their medians from counts, or convert the published dictionaries",
        "folder to write",
    )
    vocabulary.add_argument(
        "inputs", nargs="+", metavar="IN", help=f"{_COUNTS}; or one folder with the published pickles, or hub id"
    )
    vocabulary.add_argument(
        "--series",
        choices=["V1", "V2"],
        default="V2",
        help="convention of special tokens and length (default %(default)s)",
    )
    vocabulary.add_argument("--max-length", type=int, help="most tokens a cell may have")
    vocabulary.add_argument("--revision", help="branch, tag or commit on the hub")
    vocabulary.add_argument(
        "--exact", action="store_true", help="exact medians, which keep every value in memory (default: a sketch)"
    )
    _count_options(vocabulary)


def _add_tokenize(commands: Any) -> None:
    tokenize = _command(
        commands, "tokenize", _tokenize, "turn raw counts into rank-value encodings", "dataset folder to write"
    )
    tokenize.add_argument("inputs", nargs="+", metavar="IN", help=_COUNTS)
    tokenize.add_argument(
        "--vocabulary", required=True, help="folder written by vocabulary, or with the published pickles"
    )
    tokenize.add_argument("--obs", nargs="+", default=[], metavar="COLUMN", help="obs columns to carry along")
    _count_options(tokenize)
    tokenize.add_argument(
        "--orthologs", metavar="FILE", help="table of other id and gene id: one-to-one orthologs, or retired ids"
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


def _add_pretrain(commands: Any) -> None:
    pretrain = _command(commands, "pretrain", _pretrain, "learn to name masked genes", "checkpoint folder to write")
    pretrain.add_argument("cells", help=_TOKENIZED)
    pretrain.add_argument("--base", help=f"go on from this {_CHECKPOINT}")
    pretrain.add_argument(
        "--resume", action="store_true", help="go on with OUT.partial or fail (without it: go on if it is there)"
    )
    _config_options(pretrain)


def _add_finetune(commands: Any) -> None:
    finetune = _command(
        commands,
        "finetune",
        _finetune,
        "learn obs columns, or classes of genes, beside simple baselines",
        "checkpoint folder to write, with report.html, tables and pictures",
    )
    finetune.add_argument("checkpoint", help=_CHECKPOINT)
    finetune.add_argument("cells", help=_TOKENIZED)
    finetune.add_argument("--target", nargs="+", metavar="COLUMN", help="obs column to learn, or several together")
    finetune.add_argument("--regression", nargs="+", metavar="COLUMN", help="targets that are learned as numbers")
    finetune.add_argument("--group", help="obs column whose groups are never split, such as the donor")
    finetune.add_argument(
        "--test-groups", nargs="+", metavar="GROUP", help="groups to report on; default a random part"
    )
    finetune.add_argument("--split", metavar="FILE", help="split.tsv of an earlier run: cell and part")
    finetune.add_argument("--folds", metavar="K", help="k-fold cross-validation, or groups: leave one group out")
    finetune.add_argument(
        "--transfer",
        metavar="HOW",
        help="full (default), freeze, probe, probe_then_full, discriminative, gradual, lora or qlora",
    )
    finetune.add_argument("--curve", nargs="+", type=int, metavar="N", help="also train on so many labelled cells")
    finetune.add_argument("--trials", type=int, metavar="N", help="search settings first, so many trials")
    finetune.add_argument("--no-baselines", action="store_true", help="leave the methods to compare with out")
    finetune.add_argument("--genes", metavar="FILE", help="table of gene and label: learn classes of genes instead")
    finetune.add_argument("--task", help="with --genes, which of several tasks in the table")
    finetune.add_argument("--counts", help=".h5ad with the raw counts, if not where tokenize found it")
    _config_options(finetune)


def _add_predict(commands: Any) -> None:
    predict = _command(
        commands,
        "predict",
        _predict,
        "ask a fine-tuned classifier about new cells",
        ".tsv file to write; or .h5ad, a copy of the counts with the predictions in obs",
    )
    predict.add_argument("checkpoint", help="folder written by finetune")
    predict.add_argument("data", help=f"{_COUNTS}; or a {_TOKENIZED}")
    predict.add_argument("--layer", help="layer that holds the counts, or raw (default X)")
    predict.add_argument("--gene-ids", metavar="COLUMN", help="var column with the gene ids, or index")


def _add_embed(commands: Any) -> None:
    embed = _command(
        commands,
        "embed",
        _embed,
        "write vectors of cells, genes or states",
        ".h5ad or .zarr to write; of states .tsv",
    )
    embed.add_argument("checkpoint", help=_CHECKPOINT)
    embed.add_argument("cells", help=_TOKENIZED)
    embed.add_argument("--level", choices=["cell", "gene"], default="cell", help="(default %(default)s)")
    embed.add_argument("--states", metavar="COLUMN", help="instead a vector of each state in this obs column")
    embed.add_argument(
        "--statistic", choices=["mean", "median"], default="mean", help="of states (default %(default)s)"
    )
    embed.add_argument("--umap", metavar="COLUMN", help="also compute a UMAP, and draw it coloured by this obs column")
    embed.add_argument(
        "--heatmap", metavar="COLUMN", help="also draw the mean vectors of the labels in this obs column"
    )
    embed.add_argument(
        "--dtype", choices=["float32", "bfloat16"], default="float32", help="to compute in (default %(default)s)"
    )
    _model_options(embed, pooling="mean")


def _add_map(commands: Any) -> None:
    mapped = _command(
        commands,
        "map",
        _map,
        "label cells by their nearest neighbours in a reference, with confidence",
        ".tsv file to write",
    )
    mapped.add_argument("query", help=".h5ad written by embed")
    mapped.add_argument("reference", help=".h5ad written by embed with the same model")
    mapped.add_argument("--label", required=True, metavar="COLUMN", help="obs column of the reference")
    mapped.add_argument("--neighbors", type=int, default=15, metavar="N", help="(default %(default)s)")


def _add_mixing(commands: Any) -> None:
    mixing = _command(
        commands,
        "mixing",
        _mixing,
        "score how an embedding mixes batches and keeps labels apart, beside PCA (extra scib)",
        ".tsv file to write",
    )
    mixing.add_argument("embedding", help=".h5ad written by embed")
    mixing.add_argument("--batch", required=True, metavar="COLUMN", help="obs column of the batches")
    mixing.add_argument("--label", required=True, metavar="COLUMN", help="obs column of the labels")
    mixing.add_argument("--counts", help=".h5ad with the raw counts of these cells, to compare with")


def _add_perturb(commands: Any) -> None:
    perturb = _command(
        commands, "perturb", _perturb, "delete genes and measure how cells move", "Parquet file to write"
    )
    perturb.add_argument("checkpoint", help=_CHECKPOINT)
    perturb.add_argument("cells", help=_TOKENIZED)
    perturb.add_argument("--genes", nargs="+", metavar="GENE", help="delete these together; default each gene in turn")
    perturb.add_argument("--state", help="obs column that names the states")
    perturb.add_argument("--start", help="state of the cells that are perturbed")
    perturb.add_argument("--goal", help="state towards which a movement counts")
    perturb.add_argument("--alternatives", nargs="+", default=[], metavar="STATE", help="other states to measure")
    perturb.add_argument("--max-cells", type=int, help="perturb a random choice of so many cells")
    perturb.add_argument("--seed", type=int, default=0, help="of that choice (default %(default)s)")
    _model_options(perturb, pooling=None)


def _add_statistics(commands: Any) -> None:
    statistics = _command(
        commands,
        "statistics",
        _statistics,
        "test which genes move cells, as a table",
        ".tsv file to write (and a .png beside it)",
    )
    statistics.add_argument("shifts", help="Parquet file written by perturb")
    statistics.add_argument("--method", choices=["goal_state", "vs_all"], help="default: the one that fits the screen")


def _add_info(commands: Any) -> None:
    info = commands.add_parser("info", help="say what a vocabulary, dataset, checkpoint or screen is")
    info.add_argument("path")
    info.set_defaults(run=_info, quiet=False)


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int | None], says: str, out: str
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=says, description=says[0].upper() + says[1:] + "."
    )
    command.add_argument("-o", "--out", required=True, help=out)
    command.add_argument("--overwrite", action="store_true", help="replace an output of this step that exists")
    command.add_argument("--quiet", action="store_true", help="log warnings only")
    command.set_defaults(run=run)
    return command


def _count_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--layer", help="layer that holds the counts, or raw (default X)")
    command.add_argument(
        "--gene-ids",
        metavar="COLUMN",
        help="var column with the gene ids, or index (default ensembl_id, else where Ensembl ids are, else the index)",
    )
    command.add_argument("--workers", type=int, metavar="N", help="processes; with --ray, tasks at a time")
    command.add_argument("--ray", action="store_true", help="share the work over a Ray cluster (RAY_ADDRESS)")


def _config_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", metavar="FILE", help="TOML file with the settings")
    command.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="settings, such as epochs=3; they win over the file",
    )
    command.add_argument("--vocabulary", help="for a stock checkpoint: what its tokens mean")


def _model_options(command: argparse.ArgumentParser, *, pooling: str | None) -> None:
    command.add_argument(
        "--layer", type=int, default=-1, help="0 is the last block, -1 the one before (default %(default)s)"
    )
    command.add_argument(
        "--pooling", choices=["mean", "cls"], default=pooling, help=f"(default {pooling or 'cls where cells have one'})"
    )
    command.add_argument("--vocabulary", help="for a stock checkpoint: what its tokens mean")


def _vocabulary(arguments: argparse.Namespace) -> int:
    import shutil

    from geneformer_repro.files import drop_work, refuse_existing, work_folder
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
    if published and (arguments.max_length or arguments.layer or arguments.gene_ids or arguments.exact):
        raise InputError(
            "--max-length, --layer, --gene-ids and --exact are for counts; the published dictionaries are as they are."
        )
    if published:
        vocabulary = Vocabulary.from_pretrained(published[0], series=arguments.series, revision=arguments.revision)
        vocabulary.save(out, overwrite=arguments.overwrite)
    else:
        work = work_folder(out)
        if arguments.overwrite:
            drop_work(out)
        vocabulary = Vocabulary.fit(
            arguments.inputs,
            series=arguments.series,
            layer=arguments.layer,
            gene_ids=arguments.gene_ids,
            max_length=arguments.max_length,
            exact=arguments.exact,
            workers=arguments.workers,
            ray=arguments.ray,
            work=work,
        )
        vocabulary.save(out, overwrite=arguments.overwrite)
        status = int((work / FAILED).exists())
        shutil.rmtree(work)
    print(vocabulary)
    return status


def _tokenize(arguments: argparse.Namespace) -> int:
    from geneformer_repro.config import load_config
    from geneformer_repro.tokenizer.quality import CellFilter
    from geneformer_repro.tokenizer.tokenize import tokenize
    from geneformer_repro.tokenizer.vocabulary import Vocabulary

    cells = tokenize(
        arguments.inputs,
        Vocabulary.load(arguments.vocabulary),
        out=arguments.out,
        obs=arguments.obs,
        layer=arguments.layer,
        gene_ids=arguments.gene_ids,
        orthologs=arguments.orthologs,
        min_known_share=arguments.min_known_share,
        cell_filter=load_config(CellFilter, overrides=arguments.filter),
        uncropped=arguments.uncropped,
        workers=arguments.workers,
        ray=arguments.ray,
        overwrite=arguments.overwrite,
    )
    print(cells.summary())
    return 1 if cells.spec["failed"] else 0


def _given_vocabulary(arguments: argparse.Namespace) -> "Vocabulary | None":
    from geneformer_repro.tokenizer.vocabulary import Vocabulary

    return Vocabulary.load(arguments.vocabulary) if arguments.vocabulary else None


def _open_both(arguments: argparse.Namespace) -> tuple[Any, Any]:
    from geneformer_repro.checkpoint import Checkpoint
    from geneformer_repro.tokenizer.dataset import TokenizedDataset

    vocabulary = _given_vocabulary(arguments)
    return Checkpoint.from_pretrained(arguments.checkpoint, vocabulary=vocabulary), TokenizedDataset.open(
        arguments.cells, vocabulary
    )


def _pretrain(arguments: argparse.Namespace) -> None:
    from geneformer_repro.checkpoint import Checkpoint
    from geneformer_repro.config import load_config
    from geneformer_repro.pretraining.pretrain import PretrainConfig, pretrain
    from geneformer_repro.tokenizer.dataset import TokenizedDataset
    from geneformer_repro.training import is_main_process

    config = load_config(PretrainConfig, arguments.config, arguments.set)
    vocabulary = _given_vocabulary(arguments)
    cells = TokenizedDataset.open(arguments.cells, vocabulary)
    base = Checkpoint.from_pretrained(arguments.base, vocabulary=vocabulary) if arguments.base else None
    checkpoint = pretrain(
        cells, config, out=arguments.out, base=base, overwrite=arguments.overwrite, resume=arguments.resume
    )
    if is_main_process():
        print(checkpoint)


def _finetune(arguments: argparse.Namespace) -> None:
    from geneformer_repro.config import load_config
    from geneformer_repro.finetuning.finetune import FinetuneConfig, finetune
    from geneformer_repro.finetuning.genes import GeneFinetuneConfig, finetune_genes, read_gene_classes
    from geneformer_repro.training import is_main_process

    settings = [*arguments.set, *_named_settings(arguments)]
    where = {"out": arguments.out, "counts": arguments.counts, "overwrite": arguments.overwrite}
    if arguments.task and not arguments.genes:
        raise InputError("--task chooses among the classes of genes of a table; name it with --genes.")
    if arguments.genes:
        config = load_config(GeneFinetuneConfig, arguments.config, settings)
        classes = read_gene_classes(arguments.genes, arguments.task)
        found = finetune_genes(*_open_both(arguments), classes, config, **where)
        evaluations = {found.evaluation.target.name: found.evaluation}
    else:
        result = finetune(*_open_both(arguments), load_config(FinetuneConfig, arguments.config, settings), **where)
        evaluations = dict(result.evaluations)
    if not is_main_process():
        return
    for name, evaluation in evaluations.items():
        shown = [column for column in evaluation.methods.columns if not column.endswith(("_low", "_high"))]
        print(f"{name}, on the test cells" if not arguments.genes else f"{name}, on genes held out")
        print(evaluation.methods[shown].round(3).rename_axis(None).to_string(na_rep="–"))
    print(f"{Path(arguments.out) / 'report.html'} has the pictures and intervals")


def _named_settings(arguments: argparse.Namespace) -> list[str]:
    """Write options as settings; a JSON value is a TOML value."""
    target = arguments.target[0] if arguments.target and len(arguments.target) == 1 else arguments.target
    folds = int(arguments.folds) if arguments.folds and arguments.folds.isdecimal() else arguments.folds
    given = {
        "target": target,
        "regression": arguments.regression,
        "group": arguments.group,
        "test_groups": arguments.test_groups,
        "split_file": arguments.split,
        "folds": folds,
        "transfer": arguments.transfer,
        "curve": arguments.curve,
        "trials": arguments.trials,
        "baselines": False if arguments.no_baselines else None,
    }
    return [f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in given.items() if value is not None]


def _predict(arguments: argparse.Namespace) -> None:
    from geneformer_repro.checkpoint import Checkpoint
    from geneformer_repro.files import new_file, refuse_existing
    from geneformer_repro.finetuning.predict import predict
    from geneformer_repro.tokenizer.dataset import TokenizedDataset
    from geneformer_repro.tokenizer.readers import open_counts

    out = Path(arguments.out)
    if out.suffix not in (".tsv", ".h5ad"):
        raise InputError(f"{out}: predictions are written as .tsv, or with the counts as .h5ad.")
    if out.resolve() == Path(arguments.data).resolve():
        raise InputError(f"{out}: is the input, which is not changed. Choose another output.")
    refuse_existing(out, overwrite=arguments.overwrite)
    data: Any = arguments.data
    if (Path(data) / "spec.json").exists():
        if arguments.layer or arguments.gene_ids:
            raise InputError("--layer and --gene-ids are for counts; these cells are tokenised. Leave them out.")
        data = TokenizedDataset.open(data)
    if out.suffix == ".h5ad":
        if Path(str(arguments.data)).suffix != ".h5ad":
            raise InputError(f"{out}: only a copy of an .h5ad can hold predictions; write a .tsv.")
        import anndata

        open_counts(data, layer=arguments.layer, gene_ids=arguments.gene_ids)  # which says what is wrong with a file
        data = anndata.read_h5ad(data)
    checkpoint = Checkpoint.from_pretrained(arguments.checkpoint)
    table = predict(checkpoint, data, layer=arguments.layer, gene_ids=arguments.gene_ids)
    with new_file(out, overwrite=arguments.overwrite) as aside:
        if out.suffix == ".h5ad":
            data.write_h5ad(aside)
        else:
            table.rename_axis("gene" if checkpoint.head and checkpoint.head.level == "gene" else "cell").to_csv(
                aside, sep="\t"
            )
    for column in table.columns[table.columns.str.endswith("_predicted")]:
        print(table[column].value_counts().to_string() if table[column].dtype == object else table[column].describe())


def _embed(arguments: argparse.Namespace) -> None:
    from geneformer_repro.embedding import embed
    from geneformer_repro.files import refuse_existing
    from geneformer_repro.training import is_main_process

    out = Path(arguments.out)
    if arguments.states:
        _embed_states(arguments, out)
        return
    drawn = {name: column for name in ("umap", "heatmap") if (column := getattr(arguments, name))}
    if drawn and arguments.level == "gene":
        raise InputError("--umap and --heatmap show obs columns of cells; genes have none. Embed --level cell.")
    pictures = {name: out.with_suffix(".png" if name == "umap" else f".{name}.png") for name in drawn}
    for path in pictures.values():
        refuse_existing(path, overwrite=arguments.overwrite)
    checkpoint, cells = _open_both(arguments)
    for column in drawn.values():
        cells.require_obs(column)
    options = {"layer": arguments.layer, "pooling": arguments.pooling, "dtype": arguments.dtype}
    adata = embed(checkpoint, cells, level=arguments.level, out=out, overwrite=arguments.overwrite, **options)
    n_rows, n_dimensions = adata.shape
    if adata.isbacked:
        adata.file.close()
    if is_main_process():
        for name, column in drawn.items():
            _draw(name, out, column, pictures[name], overwrite=arguments.overwrite)
        print(f"{out}: {n_rows} {arguments.level}s × {n_dimensions} dimensions")


def _embed_states(arguments: argparse.Namespace, out: Path) -> None:
    from geneformer_repro.embedding import embed_states
    from geneformer_repro.files import new_file, refuse_existing
    from geneformer_repro.training import is_main_process

    refuse_existing(out, overwrite=arguments.overwrite)
    options = {"layer": arguments.layer, "pooling": arguments.pooling, "statistic": arguments.statistic}
    table = embed_states(*_open_both(arguments), arguments.states, **options)
    if is_main_process():
        with new_file(out, overwrite=arguments.overwrite) as aside:
            table.to_csv(aside, sep="\t")
        print(f"{out}: {len(table)} states × {table.shape[1]} dimensions")


def _draw(name: str, path: Path, column: str, picture: Path, *, overwrite: bool) -> None:
    """Draw an embedding that is on disk; a UMAP is added to it, as scanpy does."""
    import anndata

    from geneformer_repro.embedding_store import add_obsm
    from geneformer_repro.files import new_file
    from geneformer_repro.mapping import heatmap_table, umap
    from geneformer_repro.report import heatmap_figure, scatter_figure

    adata = (anndata.read_h5ad if path.suffix == ".h5ad" else anndata.read_zarr)(path)
    if name == "umap":
        points = umap(adata)
        add_obsm(path, "X_umap", points)
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
    table = map_to_reference(query, reference, arguments.label, n_neighbors=arguments.neighbors)
    _write_table(table.rename_axis("cell"), arguments)
    print(table.groupby("label")["confidence"].agg(["size", "mean"]).round(3).to_string())


def _mixing(arguments: argparse.Namespace) -> None:
    from geneformer_repro.files import refuse_existing
    from geneformer_repro.finetuning.baselines import counts_of
    from geneformer_repro.mapping import integration_scores
    from geneformer_repro.tokenizer.readers import open_counts

    refuse_existing(Path(arguments.out), overwrite=arguments.overwrite)
    adata = _read_h5ad(arguments.embedding)
    names = adata.obs_names.to_numpy()
    counts = counts_of(open_counts(arguments.counts), names) if arguments.counts else None
    table = integration_scores(adata, batch=arguments.batch, label=arguments.label, counts=counts)
    _write_table(table, arguments)
    print(table.T.round(3).to_string())


def _read_h5ad(path: str) -> Any:
    import anndata

    try:
        return anndata.read_h5ad(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read as .h5ad ({error}). Expected the output of embed.") from error


def _write_table(table: Any, arguments: argparse.Namespace) -> None:
    from geneformer_repro.files import new_file

    with new_file(arguments.out, overwrite=arguments.overwrite) as aside:
        table.to_csv(aside, sep="\t")


def _perturb(arguments: argparse.Namespace) -> None:
    from geneformer_repro.in_silico.perturbation import Deletion
    from geneformer_repro.in_silico.screen import GoalState, perturb

    goal_options = (arguments.state, arguments.start, arguments.goal)
    if any([*goal_options, arguments.alternatives]) and not all(goal_options):
        raise InputError("A goal needs --state, --start and --goal together.")
    goal = GoalState(*goal_options, alternatives=arguments.alternatives) if all(goal_options) else None
    checkpoint, cells = _open_both(arguments)
    shifts = perturb(
        checkpoint,
        cells,
        Deletion(arguments.genes or "each"),
        goal=goal,
        layer=arguments.layer,
        pooling=arguments.pooling,
        max_cells=arguments.max_cells,
        seed=arguments.seed,
        out=arguments.out,
        overwrite=arguments.overwrite,
    )
    print(
        f"{arguments.out}: {len(shifts):,} values ({shifts.measure}) of {shifts.table['perturbed'].nunique():,} "
        f"perturbations in {shifts.table['cell'].nunique():,} cells"
    )


def _statistics(arguments: argparse.Namespace) -> None:
    from geneformer_repro.files import new_file, refuse_existing
    from geneformer_repro.in_silico.screen import ShiftTable
    from geneformer_repro.in_silico.statistics import shift_statistics
    from geneformer_repro.report import volcano_figure

    out = Path(arguments.out)
    picture = out.with_suffix(".png")
    for path in (out, picture):
        refuse_existing(path, overwrite=arguments.overwrite)
    shifts = ShiftTable.open(arguments.shifts)
    table = shift_statistics(shifts, method=arguments.method)
    with new_file(picture, overwrite=arguments.overwrite) as aside:
        volcano_figure(table, effect_name=f"mean {shifts.measure}").savefig(aside, dpi=150)
    with new_file(out, overwrite=arguments.overwrite) as aside:
        table.to_csv(aside, sep="\t")
    print(table.head(10).to_string(float_format=lambda value: f"{value:.3g}"))


def _info(arguments: argparse.Namespace) -> None:
    path = Path(arguments.path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder.")
    if path.is_file():
        from geneformer_repro.in_silico.screen import ShiftTable

        shifts = ShiftTable.open(path)
        _show(
            f"ShiftTable({len(shifts):,} values)",
            {key: value for key, value in shifts.metadata.items() if key != "gene_names"},
        )
    elif (path / "spec.json").exists():
        from geneformer_repro.tokenizer.dataset import TokenizedDataset

        print(TokenizedDataset.open(path).summary())
    elif (path / "config.json").exists():
        from geneformer_repro.checkpoint import Checkpoint

        checkpoint = Checkpoint.from_pretrained(path)
        _show(repr(checkpoint), dict(checkpoint.provenance))
    else:
        from geneformer_repro.tokenizer.vocabulary import Vocabulary

        print(Vocabulary.load(path))


def _show(title: str, facts: dict[str, Any]) -> None:
    print(title)
    print(json.dumps(facts, indent=2, ensure_ascii=False))
