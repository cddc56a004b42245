"""Writing what fine-tuning found: tables, pictures, and one page that holds them all."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from geneformer_repro.checkpoint_files import CHECKPOINT_WARNING, checkpoint_warning, worse_than_guessing
from geneformer_repro.files import write_table
from geneformer_repro.finetuning.block_use import use_figure, use_section
from geneformer_repro.finetuning.curve import over_draws
from geneformer_repro.finetuning.evaluation import INDEXED, Evaluation
from geneformer_repro.finetuning.experiment import Experiment
from geneformer_repro.finetuning.figures import learning_curve_figure, methods_figure
from geneformer_repro.finetuning.kinds import kind_of
from geneformer_repro.finetuning.methods import file_name
from geneformer_repro.report import Section, write_report
from geneformer_repro.targets import Target
from geneformer_repro.training.log import LOG_FILE

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def folder_of(folder: Path, target: str, *, several: bool) -> Path:
    """Return where the tables of a target go: the folder itself, or of several targets one of its own.

    It has the target's name, as far as file names allow: two targets never share it.
    """
    if not several:
        return folder
    return folder / file_name(target)


def write_findings(
    folder: Path,
    experiment: Experiment,
    evaluations: Mapping[str, Evaluation],
    tables: Mapping[str, pd.DataFrame | None],
    *,
    work: Path,
    facts: dict[str, Any],
    sections: Sequence[Section] = (),
) -> None:
    """Write what an experiment found: all tables with their pictures, the log of its first network, and the page.

    Parameters
    ----------
    folder
        Where to.
    experiment
        What was run.
    evaluations
        By target.
    tables
        What is not of one target, by name of the file; "curve" is drawn too.
    work
        Of the experiment.
    facts
        As in `write_page`.
    sections
        What the page tells after all targets.
    """
    several = len(evaluations) > 1
    for name, table in tables.items():
        if table is not None:
            write_table(table, folder / f"{name}.tsv", index=table.index.name is not None)
    log = work / "fold-1" / experiment.networks[0].folder / LOG_FILE
    (folder / LOG_FILE).write_bytes(log.read_bytes())
    pages = [
        write_evaluation(evaluation, folder_of(folder, name, several=several), curve=tables.get("curve"))
        for name, evaluation in evaluations.items()
    ]
    start = {CHECKPOINT_WARNING: worse_than_guessing(getattr(experiment.start, "provenance", {}))}
    warning = checkpoint_warning(start, subject="The checkpoint that this began with")
    write_page(folder, pages, intervals=experiment.intervals, facts=facts, more=sections, warning=warning)


class Page(NamedTuple):
    """A target's part of the page."""

    evaluation: Evaluation
    pictures: "dict[str, Figure]"


def write_evaluation(evaluation: Evaluation, folder: Path, *, curve: pd.DataFrame | None = None) -> Page:
    """Write the tables and pictures of a target, also of its learning curve; return them for the page."""
    folder.mkdir(exist_ok=True)
    for name, table in evaluation.tables.items():
        write_table(table, folder / f"{name}.tsv", index=name in INDEXED)
    pictures = figures(evaluation)
    if curve is not None:
        pictures["curve"] = curve_figure(curve, evaluation.target)
    for name, figure in pictures.items():
        figure.savefig(folder / f"{name}.png", dpi=150)
    return Page(evaluation, pictures)


def figures(evaluation: Evaluation) -> "dict[str, Figure]":
    """Draw the pictures of a target, by name."""
    kind, tested, use = evaluation.kind, tested_rows(evaluation), evaluation.block_use
    return {
        "methods": methods_figure(evaluation.methods, kind.spelled, tested=tested),
        **_figure_of_groups(evaluation),
        **kind.figures(evaluation.tables, tested, evaluation.ours),
        **({} if use is None else {"block_use": use_figure(use, score=kind.spelled[kind.leading])}),
    }


def _figure_of_groups(evaluation: Evaluation) -> "dict[str, Figure]":
    """Draw what methods reached by group: intervals over groups, or of groups by themselves their range."""
    spelled, within = evaluation.kind.spelled, evaluation.within_groups
    if evaluation.by_group is not None:
        return {"by_group": methods_figure(evaluation.by_group.methods, spelled, tested="groups")}
    if within is None:
        return {}
    ends = {
        f"{name}{end}": f"{name}{to}" for name in spelled for end, to in (("_lowest", "_low"), ("_highest", "_high"))
    }
    bars = "median over groups (bar: their range)"
    return {"by_group": methods_figure(within.rename(columns=ends), spelled, says=f"score in a group, {bars}")}


def tested_rows(evaluation: Evaluation) -> str:
    """Return what the rows of a target are called."""
    return f"{evaluation.predictions.columns[0]}s"  # cells, genes, samples


def curve_figure(curve: pd.DataFrame, target: Target) -> "Figure":
    """Draw the learning curve of a target."""
    kind = kind_of(target)
    points = over_draws(curve, target.name, kind.leading)
    return learning_curve_figure(points, score=f"{kind.spelled[kind.leading]} on the test cells")


def write_page(
    folder: Path,
    pages: Sequence[Page],
    *,
    intervals: str,
    facts: dict[str, Any],
    more: Sequence[Section] = (),
    warning: str = "",
) -> None:
    """Write ``report.html``: every picture with what it shows and what it does not."""
    sections = [section for page in pages for section in _sections(page, intervals)]
    write_report(
        folder / "report.html",
        title="Fine-tuning: " + ", ".join(page.evaluation.kind.asked for page in pages),
        lead=f"Every method was trained and tested on the same {tested_rows(pages[0].evaluation)}. A model that does "
        "not beat the simple methods was not worth it here.",
        sections=[*sections, *more],
        facts=facts,
        warning=warning,
    )


def _sections(page: Page, intervals: str) -> list[Section]:
    evaluation, pictures = page
    name, tested = evaluation.target.name, tested_rows(evaluation)
    says = evaluation.kind.spelled
    best = evaluation.methods[evaluation.leading].dropna()
    winner = f"The best {says[evaluation.leading]} is that of: {best.idxmax()}." if len(best) > 1 else ""
    scored = _on_page(evaluation.methods, evaluation)
    sections = [
        Section(
            f"{name}: methods on the same test {tested}",
            f"Bars are {intervals}. {evaluation.kind.scores_in_words} methods.tsv has all scores, with intervals.",
            f"A difference where bars overlap, or how any method would do on {tested} unlike these.",
            figure=pictures["methods"],
            table=None if scored.empty else scored,
            note=" ".join(_notes(evaluation)),
            finding=winner,
        )
    ]
    if "by_group" in pictures:
        sections.append(_section_of_groups(evaluation, pictures["by_group"]))
    sections += evaluation.kind.sections(tested, pictures)
    if evaluation.block_use is not None:
        title = f"{name}: which of its inputs does a network use"
        how = {"score": says[evaluation.leading], "tested": tested, "title": title}
        sections.append(use_section(evaluation.block_use, pictures["block_use"], **how))
    if "curve" in pictures:
        sections.append(
            Section(
                f"{name}: how many labels each method needs",
                "Each method trained on so many labelled cells and tested on the same cells as above; the band is the "
                "range over draws.",
                "What longer training or other settings would reach: all networks of a size take the same steps.",
                figure=pictures["curve"],
            )
        )
    return sections


def _on_page(methods: pd.DataFrame, evaluation: Evaluation) -> pd.DataFrame:
    """Return the scores that a page shows, in words; the file has all, with their intervals."""
    above = f"{evaluation.leading}_vs_"
    words = dict(evaluation.kind.on_page) or {str(name): str(name) for name in methods}
    words |= {
        name: f"above {name.removeprefix(above).replace('_', ' ')}"
        for name in map(str, methods)
        if name.startswith(above)
    }
    shown = [name for name in words if name in methods and not name.endswith(("_low", "_high"))]
    return methods[shown].rename(columns=words).dropna(how="all")


def _section_of_groups(evaluation: Evaluation, figure: "Figure") -> Section:
    tested, of_groups = tested_rows(evaluation), evaluation.by_group
    title = f"{evaluation.target.name}: by {evaluation.group}"
    said = evaluation.verdict_of_groups
    finding = "" if said is None else f"{said[0].upper()}{said[1:]}."
    if of_groups is not None:
        return Section(
            title,
            f"The same methods, a group being one row: what is predicted of it is the mean over its test {tested}. "
            "Bars are 95 % bootstrap intervals over groups.",
            f"More than so few groups can: {tested} of a group are alike, so it is groups that count.",
            figure=figure,
            table=_on_page(of_groups.methods, evaluation),
            note=f"{of_groups.caution}." if of_groups.caution else "",
            finding=finding,
        )
    assert evaluation.within_groups is not None
    within = evaluation.within_groups
    return Section(
        title,
        f"The score in each group by itself, over the test {tested} of the group: median and range over groups.",
        "Whether a group that was not tested does as well; and a group in which only one class was seen has no score.",
        figure=figure,
        table=within[[name for name in within.columns if not name.endswith(("_lowest", "_highest"))]],
        finding=finding,
    )


def _notes(evaluation: Evaluation) -> list[str]:
    """Say what the test rows cannot tell, and what the differences between methods say; groups have their section."""
    notes = [f"{evaluation.caution}."] if evaluation.caution else []
    verdicts = [verdict for verdict in evaluation.verdicts if verdict != evaluation.verdict_of_groups]
    return notes + [f"On the same resamples, {verdict}." for verdict in verdicts]
