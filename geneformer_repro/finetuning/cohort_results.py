"""Writing what a study of cohorts found: tables, pictures, and one page that holds them all."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from geneformer_repro.files import write_json, write_table
from geneformer_repro.finetuning.block_use import use_figure, use_section
from geneformer_repro.finetuning.cohort_tables import (
    SCRATCH,
    WITH_CLINICAL,
    CohortStudy,
    methods_table,
    needed,
    sentence,
)
from geneformer_repro.finetuning.curve import over_draws
from geneformer_repro.finetuning.figures import learning_curve_figure
from geneformer_repro.finetuning.kinds.kind import FINE_TUNED
from geneformer_repro.finetuning.kinds.survival_figures import forest_figure, risk_groups_figure
from geneformer_repro.finetuning.methods import file_name
from geneformer_repro.finetuning.results import write_evaluation
from geneformer_repro.finetuning.settings.samples import CohortStudyConfig
from geneformer_repro.report import BLUE, GREY, LIGHT, Section, name_points, new_axes, write_report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TABLES = ("cohorts", "comparisons", "trials", "cost", "left_out", "curve", "block_use")
"""Those of a study that are written as they are, where there are such."""
_DIFFERENCE = "C-index of fine-tuned less scratch"


_WORDS = {
    "n": "patients",
    "n_events": "events",
    "c_scratch": "C-index from scratch",
    "c_zero_shot": "zero-shot",
    "c_fine_tuned": "fine-tuned",
    "other": "beside",
    "p_sign": "p of the sign test",
    "p_wilcoxon": "p of Wilcoxon's test",
    "seconds": "processor seconds",
    "learning_rate": "learning rate",
}
"""Headings of the page, by column of the tables."""


def write_study(folder: Path, study: CohortStudy, config: CohortStudyConfig, record: Mapping[str, Any]) -> None:
    """Write tables, pictures, a folder for each cohort, and the page, into the new folder `folder`."""
    folder.mkdir()
    write_json(folder / "provenance.json", dict(record))
    tables = {name: getattr(study, name) for name in TABLES}
    tables["methods"] = methods_table(study.evaluations)
    if study.curve is not None:
        tables["needed"] = needed(study.curve, study.target)
    for name, table in tables.items():
        if table is not None:
            write_table(table, folder / f"{name}.tsv", index=False)
    for cohort, evaluation in study.evaluations.items():
        curve = None if study.curve is None else study.curve[study.curve["cohort"] == cohort]
        write_evaluation(evaluation, folder / file_name(cohort), curve=curve)
    pictures = figures(study, unit_of=config.survival[config.event])
    for name, figure in pictures.items():
        figure.savefig(folder / f"{name}.png", dpi=150)
    _write_page(folder, study, tables, pictures, config)


def figures(study: CohortStudy, *, unit_of: str = "") -> "dict[str, Figure]":
    """Draw the pictures of a study, by name; the column `unit_of` says the unit of times."""
    drawn = {
        "differences": forest_figure(study.cohorts.set_index("cohort"), "difference", _DIFFERENCE),
        "sizes": sizes_figure(study.cohorts),
        "risk_groups": _risk_groups(study, unit_of),
    }
    if study.block_use is not None:
        drawn["block_use"] = use_figure(study.block_use, score="C-index")
    if study.curve is not None:
        mean = over_draws(study.curve, study.target, "c_index")
        drawn["curve"] = learning_curve_figure(mean, score="C-index, mean over cohorts and draws")
    return drawn


def _risk_groups(study: CohortStudy, unit_of: str) -> "Figure":
    """Draw thirds by risk of all cohorts, formed within cohort and fold."""
    tables = [one.predictions.assign(of_cohort=cohort) for cohort, one in study.evaluations.items()]
    joined = pd.concat(tables, ignore_index=True)
    if "repeat" in joined:
        joined = joined[joined["repeat"] == 1]
    strata = joined.groupby([name for name in ("of_cohort", "fold") if name in joined]).ngroup().to_numpy()
    given = joined["event_time"].to_numpy(), joined["event"].to_numpy(dtype=bool), joined[FINE_TUNED].to_numpy()
    return risk_groups_figure(*given, strata=strata, unit_of=unit_of)


def sizes_figure(cohorts: pd.DataFrame) -> "Figure":
    """Draw the gain of transfer against the number of patients, on a logarithmic axis.

    Parameters
    ----------
    cohorts
        From `cohort_table`.
    """
    figure, axes = new_axes(6.4, 4.0)
    error = np.abs(cohorts[["difference_low", "difference_high"]].to_numpy().T - cohorts["difference"].to_numpy())
    axes.errorbar(cohorts["n"], cohorts["difference"], yerr=error, fmt="o", color=BLUE, elinewidth=1, markersize=4)
    for row in cohorts.itertuples():
        axes.annotate(str(row.cohort), (row.n, row.difference), xytext=(4, 4), textcoords="offset points", fontsize=8)
    name_points(
        axes, cohorts["n"].to_numpy(), cohorts["difference"].to_numpy(), cohorts["cohort"], cohorts[["n", "difference"]]
    )
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.set_xscale("log")
    ticks = [
        n for n in (20, 50, 100, 200, 500, 1000, 2000, 5000) if cohorts["n"].min() / 2 < n < cohorts["n"].max() * 2
    ]
    axes.set_xticks(ticks, [f"{n:,}" for n in ticks])
    axes.set_xticks([], minor=True)
    axes.set(xlabel="patients of the cohort", ylabel=_DIFFERENCE)
    axes.grid(color=LIGHT)
    return figure


def _write_page(
    folder: Path,
    study: CohortStudy,
    tables: Mapping[str, pd.DataFrame],
    pictures: "Mapping[str, Figure]",
    config: CohortStudyConfig,
) -> None:
    facts = {
        "event": config.event,
        "trials": config.halving.n_trials,
        "steps": config.training.steps,
        "reference": SCRATCH,
        "seed": config.seed,
    }
    write_report(
        folder / "report.html",
        title=f"Survival ({config.event}): what other cohorts teach",
        lead=f"{', '.join(study.cohorts['cohort'])}: each was the target once; settings were searched, and a network "
        "trained, on the other cohorts alone. A network that does not beat Cox's model on components, or on clinical "
        "columns, was not worth it.",
        sections=[*_of_transfer(study, tables, pictures, config), *_beside(study, tables, pictures)],
        facts=facts,
    )


def _of_transfer(
    study: CohortStudy,
    tables: Mapping[str, pd.DataFrame],
    pictures: "Mapping[str, Figure]",
    config: CohortStudyConfig,
) -> list[Section]:
    """Say what transfer was worth, and beside what."""
    rows = study.comparisons
    known = rows["difference_low"].notna()
    said = [sentence(row) if is_known else "" for row, is_known in zip(rows.itertuples(), known, strict=True)]
    compared = rows.rename(columns=_WORDS).set_index("method")
    compared.insert(1, "is", [words.rpartition(": ")[2] for words in said])
    first = next(filter(None, said), "")
    dealt = "once" if config.split.repeats == 1 else f"{config.split.repeats} times"
    return [
        Section(
            "Was transfer worth it in each cohort",
            f"The C-index on held-out patients, of {config.split.folds} folds dealt {dealt}: of a "
            "network that learned the other cohorts before, less that of the same network from random weights. Bars "
            "are 95 % intervals over patients, paired.",
            "A difference where the bar includes 0; or whether either is any good: see the table of methods.",
            figure=pictures["differences"],
            table=study.cohorts.rename(columns=_WORDS).set_index("cohort"),
        ),
        Section(
            "Over all cohorts",
            "Which of two methods is better, in how many cohorts, and by how much on average, with an interval over "
            "cohorts.",
            "Independent trials: networks of two cohorts have learned mostly the same other ones.",
            table=compared,
            finding=f"{first[0].upper()}{first[1:]}." if first else "",
        ),
        Section(
            "All methods in all cohorts",
            "The C-index of every method on the same held-out patients.",
            "Intervals: they stand in each cohort's own table.",
            table=tables["methods"].set_index("method"),
        ),
    ]


def _beside(
    study: CohortStudy, tables: Mapping[str, pd.DataFrame], pictures: "Mapping[str, Figure]"
) -> Iterator[Section]:
    """Say what goes with it: size, risk, patients needed, cost."""
    yield Section(
        "Do small cohorts gain more",
        "The gain of transfer against the number of patients.",
        "What else differs between cohorts of different size, such as the share of events.",
        figure=pictures["sizes"],
    )
    yield Section(
        "Do those at high risk fare worse",
        "Held-out patients in thirds by the fine-tuned network's risk, within cohort and fold, and how many are "
        "without the event over time.",
        "What the network adds to age and stage.",
        figure=pictures["risk_groups"],
    )
    if study.block_use is not None:
        yield _of_clinical_columns(study, pictures["block_use"])
    if "curve" in pictures:
        yield Section(
            "How many patients each method needs",
            "Each method trained on so many patients of the target; the band is the range over cohorts and draws.",
            "What other settings would reach: all networks take the same steps.",
            figure=pictures["curve"],
            table=tables["needed"].set_index("cohort"),
        )
    yield Section(
        "What it took",
        "Steps to the best score on validation samples, and processor seconds for all learning rates that were tried, "
        "the median over the splits.",
        "The search, and the training on the other cohorts, which come before.",
        table=study.cost.rename(columns=_WORDS).set_index("cohort"),
    )


def _of_clinical_columns(study: CohortStudy, figure: "Figure") -> Section:
    """Say whether expression adds to clinical columns, and which of the two the network that has both uses."""
    assert study.block_use is not None
    section = use_section(
        study.block_use, figure, score="C-index", tested="patients", title="Does expression add to clinical columns"
    )
    said = [
        f"{sentence(row)}."
        for row in study.comparisons.dropna(subset="difference_low").itertuples()
        if row.method == WITH_CLINICAL
    ]
    return dataclasses.replace(section, note=" ".join(said))
