"""Writing what fine-tuning found: tables, pictures, and one page that holds them all."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from geneformer_repro.files import write_table
from geneformer_repro.finetuning.curve import over_draws
from geneformer_repro.finetuning.evaluation import Evaluation
from geneformer_repro.finetuning.figures import (
    confusion_figure,
    learning_curve_figure,
    methods_figure,
    per_class_figure,
    predicted_numbers_figure,
    reliability_figure,
)
from geneformer_repro.finetuning.methods import FINE_TUNED, file_name
from geneformer_repro.heads import Target
from geneformer_repro.report import Section, write_report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLASS_SCORES = {"balanced_accuracy": "balanced accuracy", "macro_f1": "macro-F1"}
NUMBER_SCORES = {"r2": "R²", "spearman": "Spearman"}
_INDEXED = ("methods", "confusion", "probabilities")
_TABLES = (*_INDEXED, "predictions", "folds", "per_class", "confusion_intervals", "reliability")


def folder_of(folder: Path, target: str, *, several: bool) -> Path:
    """Return where the tables of a target go: the folder itself, or of several targets one of its own.

    It has the target's name, as far as file names allow: two targets never share it.
    """
    if not several:
        return folder
    return folder / file_name(target)


class Page(NamedTuple):
    """A target's part of the page."""

    evaluation: Evaluation
    pictures: "dict[str, Figure]"


def write_evaluation(evaluation: Evaluation, folder: Path, *, curve: pd.DataFrame | None = None) -> Page:
    """Write the tables and pictures of a target, also of its learning curve; return them for the page."""
    folder.mkdir(exist_ok=True)
    for name in _TABLES:
        table = getattr(evaluation, name)
        if table is not None:
            write_table(table, folder / f"{name}.tsv", index=name in _INDEXED)
    pictures = figures(evaluation)
    if curve is not None:
        pictures["curve"] = curve_figure(curve, evaluation.target)
    for name, figure in pictures.items():
        figure.savefig(folder / f"{name}.png", dpi=150)
    return Page(evaluation, pictures)


def figures(evaluation: Evaluation) -> "dict[str, Figure]":
    """Draw the pictures of a target, by name."""
    if not evaluation.target.classes:
        predictions = evaluation.predictions
        return {
            "methods": methods_figure(evaluation.methods, NUMBER_SCORES),
            "predicted": predicted_numbers_figure(predictions["true"].to_numpy(), predictions[FINE_TUNED].to_numpy()),
        }
    assert evaluation.per_class is not None
    assert evaluation.confusion is not None
    assert evaluation.reliability is not None
    ours = evaluation.per_class["method"] == FINE_TUNED
    best_other = evaluation.methods["macro_f1"].drop(FINE_TUNED).dropna()
    shown = [FINE_TUNED, *([best_other.idxmax()] if len(best_other) else [])]
    reliability = evaluation.reliability
    return {
        "methods": methods_figure(evaluation.methods, CLASS_SCORES, tested=_tested(evaluation)),
        "confusion": confusion_figure(evaluation.confusion),
        "per_class": per_class_figure(evaluation.per_class[ours].set_index("class"), tested=_tested(evaluation)),
        "reliability": reliability_figure({str(name): reliability[reliability["method"] == name] for name in shown}),
    }


def _tested(evaluation: Evaluation) -> str:
    return f"{evaluation.predictions.columns[0]}s"  # cells, or genes


def curve_figure(curve: pd.DataFrame, target: Target) -> "Figure":
    """Draw the learning curve of a target."""
    score, name = ("macro_f1", "macro-F1") if target.classes else ("r2", "R²")
    return learning_curve_figure(over_draws(curve, target.name, score), score=f"{name} on the test cells")


def write_page(folder: Path, pages: Sequence[Page], *, intervals: str, facts: dict[str, Any]) -> None:
    """Write ``report.html``: every picture with what it shows and what it does not."""
    sections = [section for page in pages for section in _sections(page, intervals)]
    write_report(
        folder / "report.html",
        title="Fine-tuning: " + ", ".join(page.evaluation.target.name for page in pages),
        lead=f"Every method was trained and tested on the same {_tested(pages[0].evaluation)}. A model that does not "
        "beat the simple methods was not worth it here.",
        sections=sections,
        facts=facts,
    )


def _sections(page: Page, intervals: str) -> list[Section]:
    evaluation, pictures = page
    name, tested = evaluation.target.name, _tested(evaluation)
    says = CLASS_SCORES if evaluation.target.classes else NUMBER_SCORES
    best = evaluation.methods[next(iter(says))].dropna()
    winner = f"The best {next(iter(says.values()))} is that of: {best.idxmax()}. " if len(best) else ""
    scored = evaluation.methods.dropna(how="all")
    scored = scored[[column for column in scored.columns if not column.endswith(("_low", "_high"))]]
    sections = [
        Section(
            f"{name}: methods on the same test {tested}",
            f"{winner}Bars are {intervals}.",
            f"A difference where bars overlap, or how any method would do on {tested} unlike these.",
            figure=pictures["methods"],
            table=None if scored.empty else scored,
            note=" ".join(_notes(evaluation)),
        )
    ]
    if not evaluation.target.classes:
        sections.append(
            Section(
                f"{name}: predicted against true",
                "The fine-tuned model's number for each test cell.",
                "Whether the error matters for your question.",
                figure=pictures["predicted"],
            )
        )
    else:
        sections += _class_sections(name, tested, pictures)
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


def _notes(evaluation: Evaluation) -> list[str]:
    notes = [f"{evaluation.caution}."] if evaluation.caution else []
    return notes + ([f"On the same resamples, {evaluation.verdict}."] if evaluation.verdict else [])


def _class_sections(name: str, tested: str, pictures: "dict[str, Figure]") -> list[Section]:
    return [
        Section(
            f"{name}: which classes are found",
            "Recall and precision of the fine-tuned model for each class.",
            f"Anything firm about classes of few test {tested}: look at the bars.",
            figure=pictures["per_class"],
        ),
        Section(
            f"{name}: which classes are confused",
            f"Test {tested} by true and predicted class; the colour is the share of the true class.",
            "Errors of the model alone: the labels may be wrong as well.",
            figure=pictures["confusion"],
        ),
        Section(
            f"{name}: can the probabilities be believed",
            "How often a prediction is right, by how sure the method is. On the diagonal the probability means what it "
            "says; below it the method is too sure.",
            "Calibration on other donors or protocols, where it is usually worse.",
            figure=pictures["reliability"],
        ),
    ]
