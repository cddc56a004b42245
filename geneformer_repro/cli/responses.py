"""Drug response: ``response`` learns it, ``predict-response`` asks it, ``response-study`` goes on to another screen."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import geneformer_repro.cli.artefacts as artefacts
from geneformer_repro.cli.commands import AtLeast, Reads
from geneformer_repro.cli.following import after_response
from geneformer_repro.cli.inputs import (
    ANY_FILE,
    CHECKPOINT,
    COLUMN,
    MODEL,
    SAMPLES,
    TOKENIZED,
    add_config_options,
    add_log2_option,
    add_settings_options,
    new_command,
    open_cells,
    refuse_where,
)
from geneformer_repro.cli.terminal import print_table, say
from geneformer_repro.config import load_config

if TYPE_CHECKING:
    from geneformer_repro.finetuning.settings.pairs import ResponseConfig, ResponseStudyConfig

_SAMPLES = f"table or .h5ad of samples × genes; or a {TOKENIZED}"


def add_commands(commands: Any) -> None:
    """Add the commands of this module."""
    command = new_command(
        commands,
        "response",
        _response,
        "learn how samples respond to drugs",
        "folder to write: network, report.html, tables and pictures",
        family="train",
        examples=["lines.h5ad --responses ic50.tsv --measure LN_IC50 --drugs drugs.tsv --network conv_nn -o response"],
        more="The means of drugs and samples stand beside it.",
        then=after_response,
        configures=_response_settings,
        settings=("finetuning.settings.pairs", "ResponseConfig"),
    )
    _add_inputs(command)
    command.add_argument(
        "--responses", type=ANY_FILE, required=True, metavar="TABLE", help="long (sample, drug, value) or wide"
    )
    command.add_argument(
        "--measure", metavar="NAME", help="what the responses are: LN_IC50, IC50_uM, AUC, pEC50, growth, …"
    )
    command.add_argument(
        "--drugs", type=ANY_FILE, metavar="TABLE", help="names and SMILES of the drugs, or names alone"
    )
    command.add_argument("--start", type=MODEL, metavar="BASE", help=f"network or encoder to begin with: {CHECKPOINT}")
    command.add_argument("--network", metavar="NAME", help="conv_nn, paccmann, tdnn, or encoder (needs --start)")
    command.add_argument(
        "--drug-input", metavar="WHAT", help="smiles, fingerprint, descriptors, one_hot, vectors or none"
    )
    command.add_argument(
        "--new", metavar="WHAT", help="what is new in the test: sample (default), drug, both, pair, tissue"
    )
    command.add_argument(
        "--genes", type=ANY_FILE, metavar="FILE", help="genes of the matrix that are read, one a line (default: all)"
    )
    command.add_argument("--tissue", type=COLUMN, metavar="COLUMN", help="obs column with the tissue of each sample")
    command.add_argument("--folds", metavar="K", help="folds (default 1: one part is reported), or groups")
    command.add_argument("--repeats", type=AtLeast(1), metavar="N", help="times that the folds are dealt (default 1)")
    command.add_argument("--split", type=ANY_FILE, metavar="FILE", help="split.tsv of an earlier run: pair and part")
    command.add_argument(
        "--ablations", action="store_true", help="also train on permuted expression, and permuted drugs"
    )
    command.add_argument("--no-baselines", action="store_true", help="leave the methods to compare with out")
    add_config_options(command)
    command = new_command(
        commands,
        "predict-response",
        _predict_response,
        "predict the response of every sample to every drug",
        "table to write",
        family="ask",
        examples=["response lines.h5ad --drugs drugs.tsv -o predicted.tsv"],
        more="Beside each stands how far from training it is.",
    )
    command.add_argument("checkpoint", type=Reads(artefacts.CHECKPOINT), help="folder that response wrote")
    _add_inputs(command)
    command.add_argument(
        "--drugs", type=ANY_FILE, required=True, metavar="TABLE", help="names and SMILES of the drugs, or names alone"
    )
    _add_study(commands)


def _add_study(commands: Any) -> None:
    command = new_command(
        commands,
        "response-study",
        _response_study,
        "learn one screen of drug response, then another",
        "folder to write: report.html, tables, pictures, and the networks of the source",
        family="train",
        examples=["trial.h5ad --responses trial.tsv --source lines.h5ad --source-responses ic50.tsv -o study"],
        configures=_study_settings,
        settings=("finetuning.settings.pairs", "ResponseStudyConfig"),
        more="After few pairs and many, beside networks without the first.",
    )
    _add_inputs(command)
    command.add_argument(
        "--responses", type=ANY_FILE, required=True, metavar="TABLE", help="long (sample, drug, value) or wide"
    )
    command.add_argument("--measure", metavar="NAME", help="what they are: LN_IC50, IC50_uM, AUC, pEC50, growth, …")
    command.add_argument(
        "--drugs", type=ANY_FILE, metavar="TABLE", help="names and SMILES of the drugs, or names alone"
    )
    command.add_argument(
        "--source", type=SAMPLES, required=True, metavar="SAMPLES", help=f"first learn the responses of: {_SAMPLES}"
    )
    command.add_argument(
        "--source-expression", type=ANY_FILE, metavar="MATRIX", help="beside its tokens: their expression"
    )
    command.add_argument(
        "--source-responses", type=ANY_FILE, required=True, metavar="TABLE", help="theirs, long or wide"
    )
    command.add_argument("--source-measure", metavar="NAME", help="what these are (default: as --measure)")
    command.add_argument(
        "--source-drugs", type=ANY_FILE, metavar="TABLE", help="names and SMILES of its drugs (default: as --drugs)"
    )
    command.add_argument(
        "--source-values", choices=["counts", "expression", "zscore"], help="of its matrix (default: as --values)"
    )
    command.add_argument("--source-log2", action="store_true", help="its expression is stored as log2(x + 1)")
    command.add_argument("--start", type=MODEL, metavar="BASE", help=f"encoder of --networks encoder: {CHECKPOINT}")
    command.add_argument(
        "--networks",
        nargs="+",
        metavar="NAME",
        help="those compared: conv_nn paccmann tdnn (default), encoder",
    )
    command.add_argument(
        "--new", nargs="+", metavar="WHAT", help="what is new in the test: sample, drug (default: both in turn), tissue"
    )
    command.add_argument(
        "--sizes",
        nargs="+",
        type=AtLeast(0),
        metavar="N",
        help="pairs of the target that are learned; all are the last",
    )
    command.add_argument(
        "--genes", type=ANY_FILE, metavar="FILE", help="genes of the matrix that are read, one a line (default: all)"
    )
    command.add_argument(
        "--tissue", type=COLUMN, metavar="COLUMN", help="obs column with the tissue of each sample of the target"
    )
    command.add_argument("--folds", metavar="K", help="folds (default 5), or groups")
    command.add_argument("--no-baselines", action="store_true", help="leave the methods to compare with out")
    command.add_argument("--workers", type=AtLeast(1), metavar="N", help="processes that share the trainings")
    add_settings_options(command)


def _add_inputs(command: argparse.ArgumentParser) -> None:
    command.add_argument("samples", type=SAMPLES, help=_SAMPLES)
    command.add_argument(
        "--expression", type=ANY_FILE, metavar="MATRIX", help="beside tokens: expression of the same samples"
    )
    command.add_argument("--values", choices=["counts", "expression", "zscore"], help="what a matrix holds")
    add_log2_option(command)
    command.add_argument(
        "--aliases", type=ANY_FILE, metavar="TABLE", help="a row a sample, columns of what it is called elsewhere"
    )
    command.add_argument("--vectors", type=ANY_FILE, metavar="TABLE", help="a row a drug, numbers of your own")


def _response(arguments: argparse.Namespace) -> None:
    import geneformer_repro.processes as processes
    from geneformer_repro.checkpoint import Checkpoint
    from geneformer_repro.cli.models import print_evaluations
    from geneformer_repro.finetuning.responses import finetune_response
    from geneformer_repro.tokenizer.published import is_dataset

    start = Checkpoint.from_pretrained(arguments.start) if arguments.start else None
    has_tokens = Path(arguments.samples).exists() and is_dataset(Path(arguments.samples))
    if not has_tokens:
        refuse_where(arguments, f"{arguments.samples} has samples")
    result = finetune_response(
        start,
        open_cells(arguments, arguments.samples, start) if has_tokens else arguments.samples,
        arguments.responses,
        arguments.drugs,
        arguments.settings,
        expression=arguments.expression,
        aliases=arguments.aliases,
        vectors=arguments.vectors,
        out=arguments.out,
        overwrite=arguments.overwrite,
    )
    if processes.is_first():
        print_evaluations({result.evaluation.target.name: result.evaluation}, "on the test pairs", arguments.out)


def _response_settings(arguments: argparse.Namespace) -> "ResponseConfig":
    from geneformer_repro.finetuning.settings.pairs import ResponseConfig

    return load_config(ResponseConfig, arguments.config, [*arguments.set, *response_settings(arguments)])


def _study_settings(arguments: argparse.Namespace) -> "ResponseStudyConfig":
    from geneformer_repro.finetuning.settings.pairs import ResponseStudyConfig

    return load_config(ResponseStudyConfig, arguments.config, [*arguments.set, *response_study_settings(arguments)])


def response_settings(arguments: argparse.Namespace) -> list[str]:
    """Write the options of ``response`` as settings."""
    own = {
        "network.model": arguments.network,
        "network.drug_input": arguments.drug_input,
        "split.by": arguments.new,
        "split.repeats": arguments.repeats,
        "split.split_file": arguments.split,
        "compare.ablations": arguments.ablations or None,
    }
    return _settings(arguments, own)


def _settings(arguments: argparse.Namespace, own: Mapping[str, Any]) -> list[str]:
    """Write options that both commands have, and a command's own, as settings; a JSON value is a TOML value."""
    from geneformer_repro.tokenizer.gene_lists import read_genes

    folds = int(arguments.folds) if arguments.folds and arguments.folds.isdecimal() else arguments.folds
    given: dict[str, Any] = {
        "measure": arguments.measure,
        "values": arguments.values,
        "log2": arguments.log2 or None,
        "genes": read_genes(arguments.genes) if arguments.genes else None,
        "tissue": arguments.tissue,
        "split.folds": folds,
        "compare.baselines": False if arguments.no_baselines else None,
        **own,
    }
    return [f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in given.items() if value is not None]


def _response_study(arguments: argparse.Namespace) -> None:
    from geneformer_repro.checkpoint import Checkpoint
    from geneformer_repro.files import refuse_existing
    from geneformer_repro.finetuning.response_data import ResponseData
    from geneformer_repro.finetuning.response_results import scores_by_size, sentences
    from geneformer_repro.finetuning.study import transfer_study

    config: ResponseStudyConfig = arguments.settings
    refuse_existing(Path(arguments.out), overwrite=arguments.overwrite, marker="provenance.json")
    target = ResponseData.read(
        arguments.samples,
        arguments.responses,
        arguments.drugs,
        measure=config.measure,
        expression=arguments.expression,
        aliases=arguments.aliases,
        vectors=arguments.vectors,
    )
    source = ResponseData.read(
        arguments.source,
        arguments.source_responses,
        arguments.source_drugs or (target.drugs if arguments.drugs else None),
        measure=arguments.source_measure or config.measure,
        expression=arguments.source_expression,
        aliases=target.aliases,
        vectors=target.vectors,
    )
    where = {"out": arguments.out, "workers": arguments.workers, "overwrite": arguments.overwrite}
    start = Checkpoint.from_pretrained(arguments.start) if arguments.start else None
    study = transfer_study(start, source, target, config, **where)
    for use in config.uses:
        score, table = scores_by_size(study.table, use)
        say(f"new in the test: {use}; {score} after so many pairs of the target")
        print_table(table.rename_axis(index=None, columns=None), number="{:.3f}", index=True)
        say("\n".join((*sentences(study.differences, use), "")))
    say(f"{Path(arguments.out) / 'report.html'} has the pictures, {Path(arguments.out) / 'methods.tsv'} all scores")


def response_study_settings(arguments: argparse.Namespace) -> list[str]:
    """Write the options of ``response-study`` as settings."""
    own = {
        "source.values": arguments.source_values,
        "source.log2": arguments.source_log2 or None,
        "networks": arguments.networks,
        "uses": arguments.new,
        "sizes": arguments.sizes,
    }
    return _settings(arguments, own)


def _predict_response(arguments: argparse.Namespace) -> None:
    from geneformer_repro.checkpoint import Checkpoint
    from geneformer_repro.finetuning.response_prediction import predict_response

    table = predict_response(
        Checkpoint.from_pretrained(arguments.checkpoint),
        arguments.samples,
        arguments.drugs,
        values=arguments.values,
        log2=arguments.log2,
        expression=arguments.expression,
        aliases=arguments.aliases,
        vectors=arguments.vectors,
        out=arguments.out,
        overwrite=arguments.overwrite,
    )
    noted = int((table["note"] != "").sum())
    say(f"{arguments.out}: {len(table):,} pairs, {noted:,} of them with a note; the most sensitive drugs:")
    print_table(table[table["rank"] <= 3].head(15), number="{:.3f}")
