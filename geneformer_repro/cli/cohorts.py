"""Bulk samples with their patients, ``samples``, and what other cohorts teach of them, ``transfer-study``."""

import argparse
import json
from pathlib import Path
from typing import Any

from geneformer_repro.cli.inputs import (
    add_log2_option,
    add_samples_options,
    add_settings_options,
    given_samples,
    new_command,
)
from geneformer_repro.errors import InputError


def add_commands(commands: Any) -> None:
    """Add the commands of this module."""
    samples = new_command(
        commands,
        "samples",
        _samples,
        "join tables of expression with clinical columns into one file, which all other commands read",
        ".h5ad to write",
    )
    add_samples_options(samples)
    command = new_command(
        commands,
        "transfer-study",
        _transfer_study,
        "learn survival of every cohort of bulk samples, after that of the others, beside Cox's model and more",
        "folder to write: report.html, tables, pictures, and a folder for each cohort with its networks",
    )
    add_samples_options(command)
    command.add_argument(
        "--values", choices=["counts", "expression", "zscore"], help="what the expression is; zscore takes it as it is"
    )
    add_log2_option(command)
    command.add_argument("--survival", nargs=2, metavar=("TIME", "EVENT"), help="columns of time and event (1 or 0)")
    command.add_argument("--cohort", metavar="COLUMN", help="column of the cohorts, such as the type of tumour")
    command.add_argument("--cohorts", nargs="+", metavar="NAME", help="those that are a target (default: all)")
    command.add_argument("--horizon", type=float, metavar="TIME", help="when survival is scored, such as five years")
    command.add_argument("--covariates", nargs="+", metavar="COLUMN", help="clinical columns, such as age and stage")
    command.add_argument("--trials", type=int, metavar="N", help="settings that are tried on the others (default 750)")
    command.add_argument("--curve", nargs="+", type=int, metavar="N", help="also train on so many patients")
    command.add_argument("--no-baselines", action="store_true", help="leave the methods to compare with out")
    command.add_argument(
        "--workers", type=int, metavar="N", help="processes that share the search; with --ray, tasks at a time"
    )
    command.add_argument("--ray", action="store_true", help="share the search over a Ray cluster (RAY_ADDRESS)")
    add_settings_options(command)


def _samples(arguments: argparse.Namespace) -> None:
    from geneformer_repro.files import new_file, refuse_existing

    out = Path(arguments.out)
    if out.suffix != ".h5ad":
        raise InputError(f"{out}: samples are written as .h5ad; choose such a name.")
    refuse_existing(out, overwrite=arguments.overwrite)
    joined = given_samples(arguments)
    with new_file(out, overwrite=arguments.overwrite) as aside:
        joined.write_h5ad(aside)
    print(f"{joined.n_obs:,} samples × {joined.n_vars:,} genes; obs columns: {', '.join(map(str, joined.obs))}")


def _transfer_study(arguments: argparse.Namespace) -> None:
    from geneformer_repro.config import load_config
    from geneformer_repro.finetuning.cohort_data import CohortStudyConfig
    from geneformer_repro.finetuning.cohort_tables import methods_table, sentence
    from geneformer_repro.finetuning.study import transfer_study

    settings = [*arguments.set, *study_settings(arguments)]
    for name in ("values", "survival") if arguments.config is None else ():
        if not any(setting.startswith(name) for setting in settings):
            raise InputError(
                f"--{name} is missing: say what the expression holds (--values counts, expression or zscore), and "
                "which columns hold time and event (--survival TIME EVENT)."
            )
    config = load_config(CohortStudyConfig, arguments.config, settings)
    where = {name: getattr(arguments, name) for name in ("out", "workers", "ray", "overwrite")}
    study = transfer_study(given_samples(arguments), config=config, **where)
    for table in (study.cohorts, methods_table(study.evaluations)):
        print(table.round(3).to_string(index=False, na_rep="–"), end="\n\n")
    for row in study.comparisons.dropna(subset="difference_low").itertuples():
        print(f"{sentence(row)}.")
    print(f"{Path(arguments.out) / 'report.html'} has the pictures and intervals")


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
