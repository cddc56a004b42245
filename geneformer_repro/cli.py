"""The command line: each command reads its inputs, calls one public function, says what came of it.

What a user can cause ends in one line on stderr and exit status 2; work that was done, but without some damaged source,
ends with exit status 1; anything else is a bug and shows its traceback.
"""

import argparse
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geneformer_repro.errors import InputError

if TYPE_CHECKING:
    from geneformer_repro.tokenizer.vocabulary import Vocabulary

_COUNTS = "raw counts: .h5ad, .loom, .zarr, 10x .h5 or folder with matrix.mtx; or a glob, or a folder of such files"
_TOKENIZED = "folder written by tokenize, or tokenised cells of others (.dataset folder, .parquet)"
_CHECKPOINT = "checkpoint folder, or hub id"
_SHIFTS = "Parquet file written by perturb"
_KINDS = {
    "delete": "Deletion",
    "overexpress": "Overexpression",
    "activate": "Activation",
    "inhibit": "Inhibition",
    "shift": "RankShift",
}
_SHOWN = (
    "gene_name", "gene_name_a", "gene_name_b", "affected_name", "cell", "donor", "state", "dose", "effect",
    "effect_vs_matched", "difference", "interaction", "impact", "value", "mean", "sd", "p_value", "fdr",
    "best_class_fdr", "n_cells", "n_donors", "warning",
)  # fmt: skip
"""Columns of statistics that fit into a terminal."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("geneformer_repro").setLevel(logging.WARNING if arguments.quiet else logging.INFO)
    try:
        status = int(arguments.run(arguments) or 0)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (InputError, FileExistsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "interrupted; the same command goes on where it stopped, if the step is one that resumes", file=sys.stderr
        )
        return 130
    finally:
        if argv is None:  # the program ends: another Ctrl-C must not raise amid what libraries clear up
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="geneformer-repro",
        description="From raw counts to a perturbation screen: Geneformer-style models of single-cell transcriptomes.",
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
    finetune.add_argument("--source", metavar="CELLS", help=f"first learn the labels of these: {_TOKENIZED}")
    finetune.add_argument("--source-target", nargs="+", metavar="COLUMN", help="with --source, its obs columns")
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
    _cells_options(predict)


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
    _dtype_option(embed)
    _model_options(embed, with_target=False)


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
        commands, "perturb", _perturb, "change genes of cells and measure how the model moves", "Parquet file to write"
    )
    perturb.add_argument("checkpoint", help=_CHECKPOINT)
    perturb.add_argument("cells", help=_TOKENIZED)
    _perturbation_options(perturb)
    _question_options(perturb)
    perturb.add_argument("--donor", metavar="COLUMN", help="obs column of the donor, the replicate of statistics")
    perturb.add_argument("--obs", nargs="+", default=[], metavar="COLUMN", help="other obs columns to carry along")
    perturb.add_argument("--max-cells", type=int, metavar="N", help="perturb a random choice of so many cells")
    perturb.add_argument("--seed", type=int, default=0, help="of that choice (default %(default)s)")
    _dtype_option(perturb)
    perturb.add_argument(
        "--max-tokens", type=int, metavar="N", help="of a batch (default 16384, on a CPU 4096); fewer need less memory"
    )
    _model_options(perturb, with_target=True)


def _perturbation_options(perturb: argparse.ArgumentParser) -> None:
    perturb.add_argument(
        "--kind",
        choices=_KINDS,
        default="delete",
        help="overexpress: move to the front, and add where absent; activate, inhibit: up or down by quartiles of the "
        "cell's ranking; shift: to a place of it (default %(default)s)",
    )
    perturb.add_argument("--quartiles", type=int, metavar="N", help="of activate and inhibit: 1, 2 or 3 (default 1)")
    perturb.add_argument(
        "--to", nargs="+", type=float, metavar="PLACE", help="of shift: 0 front … 1 bottom, or several"
    )
    perturb.add_argument(
        "--genes", nargs="+", metavar="GENE", help="ids or names, or @FILE with one a line; default each gene in turn"
    )
    perturb.add_argument(
        "--combine",
        choices=["together", "singly", "pairs"],
        help="how several genes are changed (default together, of each gene singly); pairs: also each alone",
    )
    perturb.add_argument("--anchor", metavar="GENE", help="gene that each of the others is paired with")


def _question_options(perturb: argparse.ArgumentParser) -> None:
    perturb.add_argument("--state", metavar="COLUMN", help="obs column that names the states")
    perturb.add_argument("--start", help="state of the cells that are perturbed")
    perturb.add_argument("--goal", help="state towards which a movement counts")
    perturb.add_argument("--alternatives", nargs="+", default=[], metavar="STATE", help="other states to measure")
    perturb.add_argument(
        "--target", metavar="COLUMN", help="measure what a classifier says of this obs column that it learned"
    )
    perturb.add_argument(
        "--affected",
        nargs="*",
        metavar="GENE",
        help="measure other genes as well: these (or @FILE), or each if none is named",
    )
    perturb.add_argument(
        "--first-order", action="store_true", help="estimate all genes from one gradient a cell; for a goal or target"
    )
    perturb.add_argument(
        "--refine", type=int, default=0, metavar="K", help="compute each cell's K strongest estimates exactly"
    )


def _add_statistics(commands: Any) -> None:
    statistics = _command(
        commands,
        "statistics",
        _statistics,
        "test which genes move cells: a table, a picture and a page",
        ".tsv file to write (and a .png and .html beside it)",
    )
    statistics.add_argument("shifts", help=_SHIFTS)
    statistics.add_argument(
        "--method",
        choices=["matched", "goal_state", "vs_all", "vs_null", "mixture", "aggregate", "gene_shifts", "pairs"],
        help="matched (default): against genes of the same place and detection rate, donors as replicates; the others "
        "as published",
    )
    statistics.add_argument("--null", metavar="FILE", help="for vs_null: the same screen of control cells")
    statistics.add_argument(
        "--cells", metavar="FOLDER", help="the tokenised cells: also compare with what needs no model"
    )
    statistics.add_argument("--vocabulary", help="with --cells of others, what their tokens mean")
    statistics.add_argument(
        "--counts", metavar="FILE", help="with --cells, their .h5ad, if not where tokenize found it"
    )


def _add_info(commands: Any) -> None:
    info = commands.add_parser("info", help="say what a vocabulary, dataset, checkpoint or screen is")
    info.add_argument("path")
    info.add_argument("--vocabulary", help="what tokens mean, of a stock checkpoint or tokenised cells of others")
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
    _cells_options(command)


def _cells_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--vocabulary", help="what tokens mean, where neither the checkpoint nor the cells say it")
    command.add_argument(
        "--max-length", type=int, metavar="N", help="cut longer cells to so many tokens (default: refuse them)"
    )


def _dtype_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--dtype", choices=["float32", "bfloat16"], default="float32", help="to compute in (default %(default)s)"
    )


def _model_options(command: argparse.ArgumentParser, *, with_target: bool) -> None:
    layer, pooling = (None, None) if with_target else (-1, "mean")
    of_layer = "-1; with --target 0" if with_target else "%(default)s"
    of_pooling = "cls where cells have one; with --target the classifier's" if with_target else "%(default)s"
    command.add_argument(
        "--layer", type=int, default=layer, help=f"0 is the last block, -1 the one before (default {of_layer})"
    )
    command.add_argument("--pooling", choices=["mean", "cls"], default=pooling, help=f"(default {of_pooling})")
    _cells_options(command)


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
    if published and (arguments.max_length or arguments.layer or arguments.gene_ids or arguments.exact):
        raise InputError(
            "--max-length, --layer, --gene-ids and --exact are for counts; the published dictionaries are as they are."
        )
    if published:
        vocabulary = Vocabulary.from_pretrained(published[0], series=arguments.series, revision=arguments.revision)
        vocabulary.save(out, overwrite=arguments.overwrite)
    else:
        work = unfinished.work_folder(out)
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
            overwrite=arguments.overwrite,
        )
        vocabulary.save(out, overwrite=arguments.overwrite)
        status = int((work / FAILED).exists())
        unfinished.drop(work)
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

    checkpoint = Checkpoint.from_pretrained(arguments.checkpoint, vocabulary=_given_vocabulary(arguments))
    return checkpoint, _open_cells(arguments, arguments.cells, checkpoint)


def _open_cells(arguments: argparse.Namespace, path: str, checkpoint: Any = None) -> Any:
    """Open tokenised cells; those of others with the vocabulary given, or else the checkpoint's."""
    from geneformer_repro.tokenizer.dataset import TokenizedDataset

    vocabulary = _given_vocabulary(arguments)
    if vocabulary is None and checkpoint is not None and not (Path(path) / "spec.json").exists():
        vocabulary = checkpoint.vocabulary
    return TokenizedDataset.open(path, vocabulary, max_length=arguments.max_length)


def _pretrain(arguments: argparse.Namespace) -> None:
    import geneformer_repro.processes as processes
    from geneformer_repro.checkpoint import Checkpoint
    from geneformer_repro.config import load_config
    from geneformer_repro.pretraining.pretrain import PretrainConfig, pretrain

    config = load_config(PretrainConfig, arguments.config, arguments.set)
    vocabulary = _given_vocabulary(arguments)
    base = Checkpoint.from_pretrained(arguments.base, vocabulary=vocabulary) if arguments.base else None
    cells = _open_cells(arguments, arguments.cells, base)
    checkpoint = pretrain(
        cells, config, out=arguments.out, base=base, overwrite=arguments.overwrite, resume=arguments.resume
    )
    if processes.is_first():
        print(checkpoint)


def _finetune(arguments: argparse.Namespace) -> None:
    import geneformer_repro.processes as processes
    from geneformer_repro.config import load_config
    from geneformer_repro.finetuning.finetune import FinetuneConfig, finetune
    from geneformer_repro.finetuning.genes import GeneFinetuneConfig, finetune_genes, read_gene_classes
    from geneformer_repro.finetuning.study import TransferStudyConfig, transfer_study

    settings = [*arguments.set, *_named_settings(arguments)]
    where = {"out": arguments.out, "counts": arguments.counts, "overwrite": arguments.overwrite}
    if arguments.task and not arguments.genes:
        raise InputError("--task chooses among the classes of genes of a table; name it with --genes.")
    if bool(arguments.source) != bool(arguments.source_target) or (arguments.source and arguments.genes):
        raise InputError("--source names cells and --source-target its obs columns; give both, and not with --genes.")
    if arguments.genes:
        config = load_config(GeneFinetuneConfig, arguments.config, settings)
        classes = read_gene_classes(arguments.genes, arguments.task)
        found = finetune_genes(*_open_both(arguments), classes, config, **where)
        evaluations = {found.evaluation.target.name: found.evaluation}
    elif arguments.source:
        checkpoint, cells = _open_both(arguments)
        source = _open_cells(arguments, arguments.source, checkpoint)
        study = load_config(TransferStudyConfig, arguments.config, settings)
        evaluations = dict(transfer_study(checkpoint, source, cells, study, **where).evaluations)
    else:
        result = finetune(*_open_both(arguments), load_config(FinetuneConfig, arguments.config, settings), **where)
        evaluations = dict(result.evaluations)
    if not processes.is_first():
        return
    for name, evaluation in evaluations.items():
        shown = [column for column in evaluation.methods.columns if not column.endswith(("_low", "_high"))]
        print(f"{name}, on the test cells" if not arguments.genes else f"{name}, on genes held out")
        print(evaluation.methods[shown].round(3).rename_axis(None).to_string(na_rep="–"))
        for sentence in filter(None, (evaluation.caution, *evaluation.verdicts)):
            print(sentence)
    print(f"{Path(arguments.out) / 'report.html'} has the pictures and intervals")


def _named_settings(arguments: argparse.Namespace) -> list[str]:
    """Write options as settings; a JSON value is a TOML value."""
    target, source_target = (
        names[0] if names and len(names) == 1 else names for names in (arguments.target, arguments.source_target)
    )
    folds = int(arguments.folds) if arguments.folds and arguments.folds.isdecimal() else arguments.folds
    given = {
        "target": target,
        "source_target": source_target,
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
    import geneformer_repro.processes as processes
    import geneformer_repro.unfinished as unfinished
    from geneformer_repro.checkpoint import Checkpoint
    from geneformer_repro.finetuning.predict import predict
    from geneformer_repro.tokenizer.published import is_dataset
    from geneformer_repro.tokenizer.readers import open_counts

    out = Path(arguments.out)
    if out.suffix not in (".tsv", ".h5ad"):
        raise InputError(f"{out}: predictions are written as .tsv, or with the counts as .h5ad.")
    if out.resolve() == Path(arguments.data).resolve():
        raise InputError(f"{out}: is the input, which is not changed. Choose another output.")
    processes.agreed(lambda: unfinished.refuse(out, overwrite=arguments.overwrite))
    data: Any = arguments.data
    checkpoint = Checkpoint.from_pretrained(arguments.checkpoint, vocabulary=_given_vocabulary(arguments))
    if is_dataset(Path(data)):
        if arguments.layer or arguments.gene_ids:
            raise InputError("--layer and --gene-ids are for counts; these cells are tokenised. Leave them out.")
        data = _open_cells(arguments, data, checkpoint)
    elif arguments.max_length is not None:
        raise InputError(
            "--max-length cuts tokenised cells; counts are tokenised as the vocabulary says. Leave it out."
        )
    if out.suffix == ".h5ad":
        if Path(str(arguments.data)).suffix != ".h5ad":
            raise InputError(f"{out}: only a copy of an .h5ad can hold predictions; write a .tsv.")
        import anndata

        open_counts(data, layer=arguments.layer, gene_ids=arguments.gene_ids)  # which says what is wrong with a file
        data = anndata.read_h5ad(data)
    options = {"layer": arguments.layer, "gene_ids": arguments.gene_ids}
    if out.suffix == ".tsv":
        table = predict(checkpoint, data, out=out, overwrite=arguments.overwrite, **options)
    else:
        table = predict(checkpoint, data, **options)
        processes.agreed(lambda: _write_h5ad(data, out, overwrite=arguments.overwrite))
    if not processes.is_first():
        return
    for column in table.columns[table.columns.str.endswith("_predicted")]:
        print(table[column].value_counts().to_string() if table[column].dtype == object else table[column].describe())


def _write_h5ad(adata: Any, out: Path, *, overwrite: bool) -> None:
    from geneformer_repro.files import new_file

    with new_file(out, overwrite=overwrite) as aside:
        adata.write_h5ad(aside)


def _embed(arguments: argparse.Namespace) -> None:
    import geneformer_repro.processes as processes
    from geneformer_repro.embedding import embed
    from geneformer_repro.files import refuse_existing

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
    if processes.is_first():
        for name, column in drawn.items():
            _draw(name, out, column, pictures[name], overwrite=arguments.overwrite)
        print(f"{out}: {n_rows} {arguments.level}s × {n_dimensions} dimensions")


def _embed_states(arguments: argparse.Namespace, out: Path) -> None:
    import geneformer_repro.processes as processes
    from geneformer_repro.embedding import embed_states
    from geneformer_repro.files import new_file, refuse_existing, write_table

    refuse_existing(out, overwrite=arguments.overwrite)
    options = {"layer": arguments.layer, "pooling": arguments.pooling, "statistic": arguments.statistic}
    table = embed_states(*_open_both(arguments), arguments.states, **options)
    if processes.is_first():
        with new_file(out, overwrite=arguments.overwrite) as aside:
            write_table(table, aside)
        print(f"{out}: {len(table)} states × {table.shape[1]} dimensions")


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
    table = map_to_reference(query, reference, arguments.label, n_neighbors=arguments.neighbors)
    _write_table(table.rename_axis("cell"), arguments)
    print(table.groupby("label")["confidence"].agg(["size", "mean"]).round(3).to_string())


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
    print(table.T.round(3).to_string())


def _read_h5ad(path: str) -> Any:
    import anndata

    try:
        return anndata.read_h5ad(path)
    except Exception as error:  # whatever anndata makes of a file that is damaged or no such file
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{path}: cannot be read as .h5ad ({reason}). Expected the output of embed.") from error


def _write_table(table: Any, arguments: argparse.Namespace) -> None:
    from geneformer_repro.files import new_file, write_table

    with new_file(arguments.out, overwrite=arguments.overwrite) as aside:
        write_table(table, aside)


def _perturb(arguments: argparse.Namespace) -> None:
    import geneformer_repro.processes as processes
    from geneformer_repro.in_silico.screen import perturb

    perturbation, goal = _perturbation(arguments), _goal(arguments)
    checkpoint, cells = _open_both(arguments)
    options = ("target", "layer", "pooling", "refine", "donor", "obs", "max_cells", "seed", "dtype", "max_tokens")
    shifts = perturb(
        checkpoint,
        cells,
        perturbation,
        goal=goal,
        affected=None if arguments.affected is None else _listed(arguments.affected) or "each",
        method="first_order" if arguments.first_order else "exact",
        out=arguments.out,
        overwrite=arguments.overwrite,
        **{name: getattr(arguments, name) for name in options},
    )
    if processes.is_first():
        print(f"{arguments.out}: {_size(arguments.out)}\n{_agreement(shifts.metadata)}", end="")


def _perturbation(arguments: argparse.Namespace) -> Any:
    from dataclasses import fields

    from geneformer_repro.in_silico import perturbation

    kind = getattr(perturbation, _KINDS[arguments.kind])
    given = {name: value for name in ("to", "quartiles") if (value := getattr(arguments, name)) is not None}
    known = {field.name for field in fields(kind)}
    if wrong := sorted(set(given) - known):
        raise InputError(
            f"--{wrong[0]} does not fit --kind {arguments.kind}: --quartiles is for activate and inhibit, --to for "
            "shift."
        )
    if "to" in known and not given:
        raise InputError("--kind shift moves genes to a place: give --to with numbers from 0 (front) to 1 (bottom).")
    genes = "each" if arguments.genes is None else _listed(arguments.genes)
    return kind(genes, combine=arguments.combine, anchor=arguments.anchor, **given)


def _goal(arguments: argparse.Namespace) -> Any:
    from geneformer_repro.in_silico.question import GoalState

    given = (arguments.state, arguments.start, arguments.goal)
    if all(given):
        return GoalState(*given, alternatives=arguments.alternatives)
    if any(given) or arguments.alternatives:
        raise InputError("A goal needs --state, --start and --goal together.")
    return None


def _listed(genes: Sequence[str]) -> list[str]:
    """Put the lines of each @FILE in its place."""
    listed = []
    for gene in genes:
        listed += _lines(Path(gene[1:])) if gene.startswith("@") else [gene]
    return listed


def _lines(path: Path) -> list[str]:
    from geneformer_repro.files import read_text

    try:
        lines = [line.strip() for line in read_text(path).splitlines()]
    except InputError as error:
        raise InputError(f"{error} Expected a text file with one gene a line.") from error
    if not any(lines):
        raise InputError(f"{path}: names no gene. Expected one a line.")
    return [line for line in lines if line]


def _size(path: str | Path) -> str:
    """Say how large a screen is, without reading its values."""
    from geneformer_repro.in_silico.shift_table import ShiftTable

    shifts = ShiftTable.open(path)
    donors, n_cells = _n_distinct(shifts, "donor"), shifts.metadata.get("n_cells")
    n_cells = _n_distinct(shifts, "cell") if n_cells is None else n_cells
    return (
        f"{len(shifts):,} values ({shifts.measure}) of {_n_distinct(shifts, 'perturbed'):,} perturbations in "
        f"{n_cells:,} cells" + (f" of {donors:,} donors" if donors else "")
    )


def _n_distinct(shifts: Any, column: str) -> int:
    """Count the values of a column, which is read part by part."""
    found: set[str] = set()
    for block in shifts.blocks([column]):
        found.update(block[column].dropna().unique())
    return len(found)


def _agreement(metadata: Mapping[str, Any]) -> str:
    """Say how well first-order estimates agree with exact values, where both are known; else nothing."""
    checked = metadata.get("first_order", {"spearman": {}})
    ranges = [
        f"{state} {found['median']:.2f} ({found['lowest']:.2f} to {found['highest']:.2f})"
        for state, found in checked["spearman"].items()
        if found["median"] is not None
    ]
    if not ranges:
        return ""
    n_cells = len(checked["checked_cells"])
    return f"estimates against exact values in {n_cells} cells, Spearman, median and range: {', '.join(ranges)}\n"


def _statistics(arguments: argparse.Namespace) -> None:
    from geneformer_repro.files import new_file, refuse_existing, write_table
    from geneformer_repro.in_silico.pictures import write_screen_report
    from geneformer_repro.in_silico.shift_table import ShiftTable
    from geneformer_repro.in_silico.statistics import shift_statistics
    from geneformer_repro.tokenizer.dataset import TokenizedDataset

    out, drawn = Path(arguments.out), arguments.method not in ("aggregate", "gene_shifts")
    if out.suffix != ".tsv":
        raise InputError(f"{out}: statistics are written as .tsv, with a .png and an .html of the same name beside it.")
    picture, page = out.with_suffix(".png"), out.with_suffix(".html")
    for path in (out, picture, page) if drawn else (out,):
        refuse_existing(path, overwrite=arguments.overwrite)
    shifts = ShiftTable.open(arguments.shifts)
    table = shift_statistics(
        shifts,
        method=arguments.method,
        null=ShiftTable.open(arguments.null) if arguments.null else None,
        cells=TokenizedDataset.open(arguments.cells, _given_vocabulary(arguments)) if arguments.cells else None,
        counts=arguments.counts,
    )
    with ExitStack() as together:  # whoever is killed leaves all of the files or none; the table comes into place last
        aside = {
            path: together.enter_context(new_file(path, overwrite=arguments.overwrite))
            for path in ((out, picture, page) if drawn else (out,))
        }
        write_table(table if table.index.name else table.set_index(table.columns[0]), aside[out])
        if drawn:
            _draw_screen(shifts, table, aside[picture])
            write_screen_report(shifts, table, aside[page])
    _show_head(table)
    where = f", {picture} the picture, {page} what was done and what it shows" if drawn else ""
    print(f"{out} has all {len(table):,} rows{where}")


def _show_head(table: Any) -> None:
    """Print the first rows, without columns that are empty, and what a reader must know of them."""
    head = table.head(10)
    columns = [name for name in _SHOWN if name in head and not (head[name].isna() | (head[name] == "")).all()]
    print(head[columns].to_string(index=False, na_rep="–", float_format="{:.4g}".format))
    of_donors = "n_donors" in table and table["n_donors"].max() > 1
    if "p_value" in table and not of_donors and "effect_vs_matched" not in table:  # of which the statistics warn
        print("p-values treat cells as independent, not donors, which makes them too small: read them as a ranking")
    if "explained_by_baselines" in table.attrs:
        print(f"what needs no model explains R² = {table.attrs['explained_by_baselines']:.2f} of the effects")


def _draw_screen(shifts: Any, table: Any, picture: Path) -> None:
    from geneformer_repro.in_silico.pictures import plot_screen

    several_classes = "interaction" in table and "state" in table
    plot_screen(shifts, table, kind="ranked" if several_classes else None).savefig(picture, dpi=150)


def _info(arguments: argparse.Namespace) -> None:
    from geneformer_repro.tokenizer.published import described, is_dataset

    path, vocabulary = Path(arguments.path), _given_vocabulary(arguments)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder.")
    if path.is_file() and not _holds_tokens(path):
        from geneformer_repro.in_silico.shift_table import ShiftTable

        metadata = ShiftTable.open(path).metadata
        _show(_size(path), {key: value for key, value in metadata.items() if key != "gene_names"})
    elif is_dataset(path):
        from geneformer_repro.tokenizer.dataset import TokenizedDataset

        knows = vocabulary is not None or (path / "spec.json").exists()
        print(TokenizedDataset.open(path, vocabulary).summary() if knows else described(path))
    elif (path / "config.json").exists():
        from geneformer_repro.checkpoint import Checkpoint, described_config

        if vocabulary is None and not (path / "vocabulary.json").exists():
            print(described_config(path))
            return
        checkpoint = Checkpoint.from_pretrained(path, vocabulary=vocabulary)
        _show(repr(checkpoint), dict(checkpoint.provenance))
    else:
        from geneformer_repro.tokenizer.vocabulary import Vocabulary

        print(Vocabulary.load(path))


def _holds_tokens(path: Path) -> bool:
    """Whether a file is a table of tokenised cells, not a screen."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from geneformer_repro.tokenizer.rows import INPUT_IDS

    try:
        return INPUT_IDS in pq.read_schema(path).names
    except (OSError, pa.ArrowException):
        return False


def _show(title: str, facts: dict[str, Any]) -> None:
    print(title)
    print(json.dumps(facts, indent=2, ensure_ascii=False))
