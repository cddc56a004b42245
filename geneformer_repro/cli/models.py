"""Training models and asking them: ``pretrain``, ``finetune`` and ``predict``."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import geneformer_repro.cli.artefacts as artefacts
from geneformer_repro.cli.commands import AtLeast, Reads
from geneformer_repro.cli.following import after_finetune, after_predict, after_pretrain
from geneformer_repro.cli.inputs import (
    ANY_FILE,
    CHECKPOINT,
    COLUMN,
    COUNTS,
    DATASET,
    MODEL,
    SAMPLES,
    TOKENIZED,
    add_cells_options,
    add_config_options,
    add_log2_option,
    add_place_options,
    add_survival_option,
    given_vocabulary,
    new_command,
    open_both,
    open_cells,
    refuse_where,
    survival_settings,
)
from geneformer_repro.cli.looks import look_at_test_cells, outline_of
from geneformer_repro.cli.terminal import print_first, print_table, say
from geneformer_repro.config import load_config
from geneformer_repro.errors import InputError, counted, did_you_mean
from geneformer_repro.outline import NO_CLASSES

if TYPE_CHECKING:
    from geneformer_repro.finetuning.settings.cells import FinetuneConfig
    from geneformer_repro.finetuning.settings.genes import GeneFinetuneConfig
    from geneformer_repro.pretraining.settings import PretrainConfig

_OF_DATA = ("layer", "gene_ids", "log2", "cohort", "clinical", "genes_in")
"""Options of `predict` that are the function's."""


def add_commands(commands: Any) -> None:
    """Add the commands of this module."""
    _add_pretrain(commands)
    _add_finetune(commands)
    _add_predict(commands)


def _add_pretrain(commands: Any) -> None:
    pretrain = new_command(
        commands,
        "pretrain",
        _pretrain,
        "learn to name masked genes",
        "checkpoint folder to write",
        family="train",
        examples=["cells.tok --set size=V1-10M training.epochs=3 -o base", "cells.tok --base base -o adapted"],
        then=after_pretrain,
        configures=_pretrain_settings,
        settings=("pretraining.settings", "PretrainConfig"),
    )
    pretrain.add_argument("cells", type=DATASET, help=TOKENIZED)
    pretrain.add_argument("--base", dest="checkpoint", type=MODEL, metavar="BASE", help=f"go on from this {CHECKPOINT}")
    pretrain.add_argument(
        "--resume", action="store_true", help="go on with OUT.partial or fail (without it: go on if it is there)"
    )
    add_config_options(pretrain)


def _add_finetune(commands: Any) -> None:
    finetune = new_command(
        commands,
        "finetune",
        _finetune,
        "learn obs columns or classes of genes, beside baselines",
        "checkpoint folder to write, with report.html, tables and pictures",
        family="train",
        examples=[
            "base cells.tok --target cell_type --group donor -o classifier",
            "base cells.tok --genes genes.tsv -o gene-classifier",
        ],
        then=after_finetune,
        looks=_look_at_labels,
        configures=_finetune_settings,
        settings=("finetuning.settings.cells", "FinetuneConfig"),
    )
    finetune.add_argument("checkpoint", type=MODEL, help=CHECKPOINT)
    finetune.add_argument("cells", type=DATASET, help=TOKENIZED)
    finetune.add_argument(
        "--target", type=COLUMN, nargs="+", metavar="COLUMN", help="obs column to learn, or several together"
    )
    add_survival_option(finetune)
    finetune.add_argument(
        "--cohort", type=COLUMN, metavar="COLUMN", help="with --survival: rows are compared within these"
    )
    finetune.add_argument("--regression", nargs="+", metavar="COLUMN", help="targets that are learned as numbers")
    finetune.add_argument(
        "--group", type=COLUMN, metavar="COLUMN", help="obs column whose groups are never split, such as the donor"
    )
    finetune.add_argument(
        "--test-groups", nargs="+", metavar="GROUP", help="groups to report on; default a random part"
    )
    finetune.add_argument("--split", type=ANY_FILE, metavar="FILE", help="split.tsv of an earlier run: cell and part")
    finetune.add_argument("--folds", metavar="K", help="k-fold cross-validation, or groups: leave one group out")
    finetune.add_argument(
        "--transfer",
        metavar="HOW",
        help="full (default), freeze, probe, probe_then_full, discriminative, gradual, lora or qlora",
    )
    finetune.add_argument(
        "--curve", nargs="+", type=AtLeast(1), metavar="N", help="also train on so many labelled cells"
    )
    finetune.add_argument("--trials", type=AtLeast(1), metavar="N", help="search settings first, so many trials")
    finetune.add_argument("--no-baselines", action="store_true", help="leave the methods to compare with out")
    finetune.add_argument(
        "--genes", type=ANY_FILE, metavar="FILE", help="table of gene and label: learn classes of genes instead"
    )
    finetune.add_argument(
        "--source", type=DATASET, metavar="CELLS", help=f"first learn the labels of these: {TOKENIZED}"
    )
    finetune.add_argument("--source-target", nargs="+", metavar="COLUMN", help="with --source, its obs columns")
    finetune.add_argument("--task", help="with --genes, which of several tasks in the table")
    finetune.add_argument(
        "--counts", type=ANY_FILE, metavar="FILE", help=".h5ad with the raw counts, if not where tokenize found it"
    )
    add_config_options(finetune)


def _pretrain_settings(arguments: argparse.Namespace) -> "PretrainConfig":
    from geneformer_repro.pretraining.settings import PretrainConfig

    return load_config(PretrainConfig, arguments.config, arguments.set)


def _finetune_settings(arguments: argparse.Namespace) -> "FinetuneConfig | GeneFinetuneConfig":
    from geneformer_repro.finetuning.settings.cells import FinetuneConfig, TransferStudyConfig
    from geneformer_repro.finetuning.settings.genes import GeneFinetuneConfig

    if arguments.task and not arguments.genes:
        raise InputError("--task chooses among the classes of genes of a table; name it with --genes.")
    if bool(arguments.source) != bool(arguments.source_target) or (arguments.source and arguments.genes):
        raise InputError("--source names cells and --source-target its obs columns; give both, and not with --genes.")
    settings = [*arguments.set, *named_settings(arguments)]
    if arguments.genes:
        return load_config(GeneFinetuneConfig, arguments.config, settings)
    return load_config(TransferStudyConfig if arguments.source else FinetuneConfig, arguments.config, settings)


def _add_predict(commands: Any) -> None:
    predict = new_command(
        commands,
        "predict",
        _predict,
        "ask a fine-tuned network about new cells or samples",
        ".tsv file to write; or .h5ad, a copy of the counts with the predictions in obs",
        family="ask",
        examples=["classifier new.h5ad -o types.tsv", "classifier new.tok --where donor=d7 -o types.tsv"],
        then=after_predict,
        looks=_look_at_predicted,
    )
    predict.add_argument(
        "checkpoint",
        type=Reads(artefacts.CHECKPOINT),
        help="folder written by finetune, or of a cohort by transfer-study",
    )
    predict.add_argument(
        "data",
        type=SAMPLES,
        help=f"{COUNTS}; or a {TOKENIZED}; for an expression network a matrix as it learned",
    )
    add_place_options(predict)
    add_log2_option(predict)
    predict.add_argument(
        "--cohort",
        type=COLUMN,
        metavar="COLUMN",
        help="of an expression network: cohorts that are each standardised by themselves",
    )
    predict.add_argument(
        "--clinical", type=ANY_FILE, metavar="TABLE", help="of an expression network: what is known of the samples"
    )
    predict.add_argument("--genes-in", choices=["rows", "columns"], help="of an expression network's table")
    add_cells_options(predict)


def _pretrain(arguments: argparse.Namespace) -> None:
    import geneformer_repro.processes as processes
    from geneformer_repro.pretraining.pretrain import pretrain

    base, cells = open_both(arguments)
    where = {"out": arguments.out, "overwrite": arguments.overwrite, "resume": arguments.resume}
    checkpoint = pretrain(cells, arguments.settings, base=base, **where)
    if processes.is_first():
        say(f"{arguments.out}: {checkpoint}")


def _look_at_labels(arguments: argparse.Namespace) -> None:
    from geneformer_repro.tokenizer.gene_lists import read_gene_classes

    if arguments.genes:
        read_gene_classes(arguments.genes, arguments.task)
    if arguments.source and (columns := artefacts.obs_columns(Path(arguments.source))) is not None:
        for name in arguments.source_target:
            if name not in columns:
                raise InputError(
                    f"--source-target: {arguments.source} has no obs column {name!r}. {did_you_mean(name, columns)}"
                )
    outline = outline_of(arguments)
    if outline and not arguments.genes and not arguments.settings.split.allow_seen:
        look_at_test_cells(arguments, outline, arguments.settings)


def _finetune(arguments: argparse.Namespace) -> None:
    import geneformer_repro.processes as processes
    from geneformer_repro.finetuning.finetune import finetune
    from geneformer_repro.finetuning.genes import finetune_genes
    from geneformer_repro.finetuning.study import transfer_study
    from geneformer_repro.tokenizer.gene_lists import read_gene_classes

    where = {"out": arguments.out, "counts": arguments.counts, "overwrite": arguments.overwrite}
    if arguments.genes:
        classes = read_gene_classes(arguments.genes, arguments.task)
        found = finetune_genes(*open_both(arguments), classes, arguments.settings, **where)
        evaluations = {found.evaluation.target.name: found.evaluation}
    elif arguments.source:
        checkpoint, cells = open_both(arguments)
        source = open_cells(arguments, arguments.source, checkpoint, where=False)
        evaluations = dict(transfer_study(checkpoint, source, cells, arguments.settings, **where).evaluations)
    else:
        result = finetune(*open_both(arguments), arguments.settings, **where)
        evaluations = dict(result.evaluations)
    if processes.is_first():
        print_evaluations(evaluations, "on genes held out" if arguments.genes else "on the test cells", arguments.out)


def print_evaluations(evaluations: Mapping[str, Any], where: str, out: str) -> None:
    """Print what every method reached on each target, and what that says."""
    for name, evaluation in evaluations.items():
        say(f"{name}, {where}")
        _print_scores(evaluation.methods)
        if evaluation.by_group is not None:
            say(f"{name}, by {evaluation.group}, the mean of each")
            _print_scores(evaluation.by_group.methods)
        if evaluation.within_groups is not None:
            say(f"{name}, within each {evaluation.group}, the median")
            _print_scores(evaluation.within_groups)
        for sentence in filter(None, (evaluation.caution, *evaluation.verdicts)):
            say(sentence)
    say(f"{out} holds the network and its tables; {Path(out) / 'report.html'} has the pictures and intervals")


def _print_scores(methods: Any) -> None:
    shown = [name for name in methods.columns if not name.endswith(("_low", "_high", "_lowest", "_highest"))]
    table = methods[shown].rename_axis(None)
    has_scores = table.notna().any(axis=1)
    print_table(table[has_scores], number="{:.3f}", index=True)
    if not has_scores.all():
        say(f"(without scores, for want of what they read: {', '.join(table.index[~has_scores])})")


def named_settings(arguments: argparse.Namespace) -> list[str]:
    """Write options as settings; a JSON value is a TOML value."""
    target, source_target = (
        names[0] if names and len(names) == 1 else names for names in (arguments.target, arguments.source_target)
    )
    folds = int(arguments.folds) if arguments.folds and arguments.folds.isdecimal() else arguments.folds
    given = {
        "target": target,
        "regression": arguments.regression,
        "follow_up.cohort": arguments.cohort,
        "source.target": source_target,
        "split.group": arguments.group,
        "split.test_groups": arguments.test_groups,
        "split.split_file": arguments.split,
        "split.folds": folds,
        "transfer.strategy": arguments.transfer,
        "compare.curve": arguments.curve,
        "compare.baselines": False if arguments.no_baselines else None,
        "search.trials": arguments.trials,
    }
    given |= survival_settings(arguments)
    return [f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in given.items() if value is not None]


def _look_at_predicted(arguments: argparse.Namespace) -> None:
    out = Path(arguments.out)
    if out.suffix not in (".tsv", ".h5ad"):
        raise InputError(f"{out}: predictions are written as .tsv, or with the counts as .h5ad.")
    if out.resolve() == Path(arguments.data).resolve():
        raise InputError(f"{out}: is the input, which is not changed. Choose another output.")
    if out.suffix == ".h5ad" and Path(arguments.data).suffix != ".h5ad":
        raise InputError(f"{out}: only a copy of an .h5ad can hold predictions; write a .tsv.")
    if artefacts.kind_of(Path(arguments.data)) == artefacts.CELLS:
        if arguments.layer or arguments.gene_ids or arguments.log2:
            raise InputError(
                "--layer and --gene-ids are for counts, as is --log2; these cells are tokenised. Leave them out."
            )
    elif arguments.max_length is not None:
        raise InputError(
            "--max-length cuts tokenised cells; counts are tokenised as the vocabulary says. Leave it out."
        )
    if (outline := outline_of(arguments)) and outline.level is None:
        raise InputError(NO_CLASSES.format(outline.name))


def _predict(arguments: argparse.Namespace) -> None:
    import geneformer_repro.processes as processes
    import geneformer_repro.unfinished as unfinished
    from geneformer_repro.checkpoint import Checkpoint
    from geneformer_repro.finetuning.predict import predict
    from geneformer_repro.tokenizer.published import is_dataset
    from geneformer_repro.tokenizer.readers import open_counts

    out = Path(arguments.out)
    processes.agreed(lambda: unfinished.refuse(out, overwrite=arguments.overwrite))
    data: Any = arguments.data
    checkpoint = Checkpoint.from_pretrained(arguments.checkpoint, vocabulary=given_vocabulary(arguments))
    if is_dataset(Path(data)):
        data = open_cells(arguments, data, checkpoint)
    else:
        refuse_where(arguments, f"{arguments.data} has counts")
    if out.suffix == ".h5ad":
        import anndata

        open_counts(data, layer=arguments.layer, gene_ids=arguments.gene_ids)  # which says what is wrong with a file
        data = anndata.read_h5ad(data)
    table_out = out if out.suffix == ".tsv" else None
    options = {name: getattr(arguments, name) for name in (*_OF_DATA, "overwrite")}
    table = predict(checkpoint, data, out=table_out, **options)
    if table_out is None:
        processes.agreed(lambda: write_h5ad(data, out, overwrite=arguments.overwrite))
    if not processes.is_first():
        return
    say(f"{out}: predictions of {counted(len(table), 'row')}")
    for column in table.columns[table.columns.str.endswith(("_predicted", "_risk"))]:
        if table[column].dtype == object:
            found = table[column].value_counts()
            print_first(found.reset_index())
        else:
            spread = table[column].describe().drop("count")
            say(f"{column}: {', '.join(f'{name} {value:.4g}' for name, value in spread.items())}")


def write_h5ad(adata: Any, out: Path, *, overwrite: bool) -> None:
    """Write an AnnData aside, and rename it into place."""
    from geneformer_repro.files import new_file

    with new_file(out, overwrite=overwrite) as aside:
        adata.write_h5ad(aside)
