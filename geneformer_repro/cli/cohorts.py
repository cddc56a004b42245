"""Bulk samples with their patients, ``samples``; what other cohorts teach, ``transfer-study`` and ``cross-cohort``."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geneformer_repro.cli.commands import AtLeast
from geneformer_repro.cli.inputs import (
    ANY_FILE,
    COLUMN,
    MODEL,
    SAMPLES,
    add_cells_options,
    add_log2_option,
    add_samples_options,
    add_settings_options,
    add_survival_option,
    given_samples,
    new_command,
    open_cells,
    refuse_where,
    table_outputs,
    write_together,
)
from geneformer_repro.cli.terminal import print_table, say
from geneformer_repro.config import load_config
from geneformer_repro.errors import InputError

if TYPE_CHECKING:
    from geneformer_repro.finetuning.settings.samples import CohortStudyConfig


def add_commands(commands: Any) -> None:
    """Add the commands of this module."""
    samples = new_command(
        commands,
        "samples",
        _samples,
        "join expression of bulk samples with clinical columns",
        ".h5ad to write",
        family="data",
        examples=["expression.tsv --clinical patients.tsv --one-per-patient -o cohort.h5ad"],
        more="The file is read by all other commands.",
    )
    add_samples_options(samples)
    command = new_command(
        commands,
        "transfer-study",
        _transfer_study,
        "learn survival of each cohort after that of the others",
        "folder to write: report.html, tables, pictures, and a folder for each cohort with its networks",
        family="train",
        examples=["cohorts.h5ad --values expression --survival time event --cohort tumour -o study"],
        configures=_cohort_settings,
        settings=("finetuning.settings.samples", "CohortStudyConfig"),
        more="Cox's model and more stand beside it.",
    )
    add_samples_options(command)
    command.add_argument(
        "--values", choices=["counts", "expression", "zscore"], help="what the expression is; zscore takes it as it is"
    )
    add_log2_option(command)
    command.add_argument("--survival", nargs=2, metavar=("TIME", "EVENT"), help="columns of time and event (1 or 0)")
    command.add_argument(
        "--cohort", type=COLUMN, metavar="COLUMN", help="column of the cohorts, such as the type of tumour"
    )
    command.add_argument("--cohorts", nargs="+", metavar="NAME", help="those that are a target (default: all)")
    command.add_argument("--horizon", type=float, metavar="TIME", help="when survival is scored, such as five years")
    command.add_argument("--covariates", nargs="+", metavar="COLUMN", help="clinical columns, such as age and stage")
    command.add_argument(
        "--trials", type=AtLeast(1), metavar="N", help="settings that are tried on the others (default 750)"
    )
    command.add_argument("--curve", nargs="+", type=AtLeast(1), metavar="N", help="also train on so many patients")
    command.add_argument("--no-baselines", action="store_true", help="leave the methods to compare with out")
    command.add_argument(
        "--workers", type=AtLeast(1), metavar="N", help="processes that share the search; with --ray, tasks at a time"
    )
    command.add_argument("--ray", action="store_true", help="share the search over a Ray cluster (RAY_ADDRESS)")
    add_settings_options(command)
    _add_cross_cohort(commands)


def _add_cross_cohort(commands: Any) -> None:
    command = new_command(
        commands,
        "cross-cohort",
        _cross_cohort,
        "train on one cohort and test on another",
        ".tsv to write, with a .png and an .html of the same name beside it",
        family="look",
        examples=["cohorts.h5ad --survival time event --cohort study -o cross.tsv"],
        more="Beside what the other tells of itself.",
        looks=_look_at_cohorts,
    )
    command.add_argument(
        "samples",
        nargs="*",
        type=SAMPLES,
        help="of --survival and --target: tables or .h5ad of expression, cells with raw counts, or tokenised cells",
    )
    command.add_argument("--clinical", type=ANY_FILE, metavar="TABLE", help="a row a patient or sample; joined by id")
    command.add_argument(
        "--cohort", type=COLUMN, metavar="COLUMN", help="obs column of the cohorts (source: which of the files)"
    )
    add_survival_option(command)
    command.add_argument("--target", type=COLUMN, metavar="COLUMN", help="obs column of labels that are predicted")
    command.add_argument(
        "--donor", type=COLUMN, metavar="COLUMN", help="with --target, the donor or patient of each cell"
    )
    command.add_argument("--checkpoint", type=MODEL, metavar="FOLDER", help="with tokenised cells, look at its vectors")
    command.add_argument(
        "--study",
        nargs=4,
        action="append",
        metavar=("NAME", "SAMPLES", "RESPONSES", "MEASURE"),
        help="drug response of a study: expression, a table of responses, and what these are; give two or more",
    )
    command.add_argument("--drugs", type=ANY_FILE, metavar="TABLE", help="with --study, names and SMILES of the drugs")
    command.add_argument(
        "--values",
        choices=["counts", "expression", "zscore"],
        help="what a matrix holds; zscore takes it as it is (default of --target: counts)",
    )
    command.add_argument("--train", nargs="+", metavar="COHORT", help="cohorts that are learned (default: all)")
    command.add_argument("--test", nargs="+", metavar="COHORT", help="cohorts that are tested (default: all)")
    command.add_argument(
        "--harmonise",
        choices=["none", "standardise", "quantile", "combat", "reference"],
        default="standardise",
        help="how two cohorts are brought to one scale (default %(default)s)",
    )
    command.add_argument("--folds", type=int, default=5, metavar="K", help="within a cohort (default %(default)s)")
    command.add_argument(
        "--max-cells",
        type=AtLeast(1),
        default=2000,
        metavar="N",
        help="of a cohort, with --target (default %(default)s)",
    )
    command.add_argument(
        "--top", type=AtLeast(1), default=50, metavar="N", help="genes with the largest effects (default %(default)s)"
    )
    command.add_argument("--seed", type=int, default=0, help="of all that is drawn (default %(default)s)")
    add_cells_options(command)


def _look_at_cohorts(arguments: argparse.Namespace) -> None:
    table_outputs(arguments)
    if not arguments.study and not arguments.samples:
        raise InputError("Name samples (with --survival or --target), or studies of drug response (--study).")
    if arguments.study and arguments.samples:
        raise InputError("--study names the samples of each study; leave others out.")


def _cross_cohort(arguments: argparse.Namespace) -> None:
    from geneformer_repro.checkpoint import Checkpoint
    from geneformer_repro.finetuning.cross_cohort import cross_cohort
    from geneformer_repro.finetuning.cross_cohort_pages import plot_cross_cohort, write_cross_cohort_report

    outputs = table_outputs(arguments)
    options = ("cohort", "target", "donor", "values", "train", "test", "harmonise", "folds", "max_cells", "top", "seed")
    table = cross_cohort(
        _cohorts(arguments),
        {event: time for time, event in arguments.survival} if arguments.survival else None,
        checkpoint=Checkpoint.from_pretrained(arguments.checkpoint) if arguments.checkpoint else None,
        **{name: getattr(arguments, name) for name in options},
    )
    write_together(
        outputs,
        table.set_index(table.columns[0]),
        lambda path: plot_cross_cohort(table).savefig(path, dpi=150),
        lambda path: write_cross_cohort_report(table, path),
        overwrite=arguments.overwrite,
    )
    shown = [name for name in _SHOWN if name in table]
    print_table(table[shown], number="{:.3f}")
    say(table.attrs["sentence"])
    say("{} has all columns, {} the picture, {} all pictures and the genes".format(*outputs))


_SHOWN = (
    "train_cohort", "test_cohort", "n_test", "within", "cross", "drop", "drop_low", "drop_high", "domain_auc_before",
    "domain_auc_after", "effects_spearman", "effects_spearman_within",
)  # fmt: skip


def _cohorts(arguments: argparse.Namespace) -> Any:
    """Open what is compared: studies of drug response, tokenised cells, or matrices."""
    from geneformer_repro.finetuning.response_data import ResponseData
    from geneformer_repro.tokenizer.published import is_dataset
    from geneformer_repro.tokenizer.samples import read_samples

    if arguments.study:
        refuse_where(arguments, "--study names studies of drug response")
        return {
            name: ResponseData.read(samples, responses, arguments.drugs, measure=measure)
            for name, samples, responses, measure in arguments.study
        }
    if len(arguments.samples) == 1 and is_dataset(Path(arguments.samples[0])):
        return open_cells(arguments, arguments.samples[0])
    refuse_where(arguments, f"{arguments.samples[0]} has samples, or counts")
    if len(arguments.samples) == 1 and arguments.clinical is None and arguments.samples[0].endswith(".h5ad"):
        import anndata

        if not Path(arguments.samples[0]).is_file():
            raise InputError(f"{arguments.samples[0]}: no such file.")
        return anndata.read_h5ad(arguments.samples[0])
    return read_samples(arguments.samples, arguments.clinical)


def _samples(arguments: argparse.Namespace) -> None:
    from geneformer_repro.files import new_file, refuse_existing

    out = Path(arguments.out)
    if out.suffix != ".h5ad":
        raise InputError(f"{out}: samples are written as .h5ad; choose such a name.")
    refuse_existing(out, overwrite=arguments.overwrite)
    joined = given_samples(arguments)
    with new_file(out, overwrite=arguments.overwrite) as aside:
        joined.write_h5ad(aside)
    say(f"{out}: {joined.n_obs:,} samples × {joined.n_vars:,} genes; obs columns: {', '.join(map(str, joined.obs))}")


def _transfer_study(arguments: argparse.Namespace) -> None:
    from geneformer_repro.finetuning.cohort_tables import methods_table, sentence
    from geneformer_repro.finetuning.study import transfer_study

    where = {name: getattr(arguments, name) for name in ("out", "workers", "ray", "overwrite")}
    study = transfer_study(given_samples(arguments), config=arguments.settings, **where)
    for table in (study.cohorts, methods_table(study.evaluations)):
        print_table(table, number="{:.3f}")
        say()
    for row in study.comparisons.dropna(subset="difference_low").itertuples():
        say(f"{sentence(row)}.")
    say(f"{Path(arguments.out) / 'report.html'} has the pictures and intervals")


def _cohort_settings(arguments: argparse.Namespace) -> "CohortStudyConfig":
    from geneformer_repro.finetuning.settings.samples import CohortStudyConfig

    settings = [*arguments.set, *study_settings(arguments)]
    for name in ("values", "survival") if arguments.config is None else ():
        if not any(setting.startswith(name) for setting in settings):
            raise InputError(
                f"--{name} is missing: say what the expression holds (--values counts, expression or zscore), and "
                "which columns hold time and event (--survival TIME EVENT)."
            )
    return load_config(CohortStudyConfig, arguments.config, settings)


def study_settings(arguments: argparse.Namespace) -> list[str]:
    """Write options as settings; a JSON value is a TOML value."""
    given: dict[str, Any] = {
        "values": arguments.values,
        "log2": arguments.log2 or None,
        "cohorts": arguments.cohorts,
        "follow_up.cohort": arguments.cohort,
        "follow_up.horizon": arguments.horizon,
        "halving.n_trials": arguments.trials,
        "compare.covariates": arguments.covariates,
        "compare.curve": arguments.curve,
        "compare.baselines": False if arguments.no_baselines else None,
    }
    if arguments.survival:
        time, event = arguments.survival
        given[f"survival.{json.dumps(event)}"] = time
    return [f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in given.items() if value is not None]
