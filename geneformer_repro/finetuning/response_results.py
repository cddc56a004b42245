"""Writing what a study of two screens found: tables, learning curves, networks, and one page that holds them all."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from geneformer_repro.files import write_json, write_table
from geneformer_repro.finetuning.difference_tests import SIGNIFICANT
from geneformer_repro.finetuning.figures import learning_curve_figure
from geneformer_repro.finetuning.response_tables import PRETRAINED, SCRATCH, ResponseStudy, aggregation_of, means_of
from geneformer_repro.finetuning.results import write_evaluation
from geneformer_repro.report import CATEGORIES, GREY, Section, write_report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_QUESTIONS = {
    "sample": ("new samples", "which drug for a sample that nobody has treated"),
    "drug": ("new drugs", "whom a drug helps that nobody has tried"),
    "both": ("new samples and drugs", "whom a new drug helps among new samples"),
    "tissue": ("new tissues", "which drug for a tissue that nobody has treated"),
    "pair": ("new pairs", "what a pair does whose sample and drug are known"),
}
"""Of what is new in the test: what it is called, and what is asked."""
_CLEAR = 0.005
"""Differences below it are not told in sentences, whatever their p."""


def write_response_study(folder: Path, study: ResponseStudy, config: Any, record: Mapping[str, Any]) -> None:
    """Write tables, pictures, a folder for each question and number of pairs, networks and the page."""
    folder.mkdir()
    write_json(folder / "provenance.json", dict(record))
    write_table(study.table, folder / "methods.tsv", index=False)
    write_table(study.differences, folder / "differences.tsv", index=False)
    for (use, n), evaluation in study.evaluations.items():
        (folder / use).mkdir(exist_ok=True)
        write_evaluation(evaluation, folder / use / f"{n}-pairs")
    for (use, model), checkpoint in study.networks.items():
        checkpoint.save(folder / use / "source" / model)
    pictures = {use: curve_figure(study.table, use) for use in dict.fromkeys(study.table["use"])}
    for use, figure in pictures.items():
        figure.savefig(folder / f"curve-{use}.png", dpi=150)
    _write_page(folder, study, pictures, config)


def curve_figure(table: pd.DataFrame, use: str) -> "Figure":
    """Draw the score of networks and means against the number of pairs that were learned.

    Parameters
    ----------
    table
        ``ResponseStudy.table``.
    use
        What is new in the test.
    """
    score, means = f"pearson_{aggregation_of(use)}", means_of(use)
    of_use = table[(table["use"] == use) & (table["network"].notna() | table["method"].isin(means))]
    error = of_use.get(f"{score}_se", 0.0)
    points = pd.DataFrame(
        {
            "method": of_use["method"],
            "n": of_use["n"].clip(lower=1),
            "score": of_use[score],
            "low": of_use[score] - error,
            "high": of_use[score] + error,
        }
    ).dropna(subset=["score"])
    looks = {
        f"{network}, {way}": {"color": colour, "linestyle": line, "markerfacecolor": colour if line == "-" else "white"}
        for network, colour in zip(of_use["network"].dropna().unique(), CATEGORIES, strict=False)
        for way, line in ((PRETRAINED, "-"), (SCRATCH, "--"))
    }
    looks |= {means[0]: {"color": "black", "linestyle": ":"}, means[1]: {"color": GREY, "linestyle": ":"}}
    drawn = {method: look for method, look in looks.items() if (points["method"] == method).any()}
    figure = learning_curve_figure(points, score=f"{score.replace('_', ' ')} (band: standard error)", looks=drawn)
    axes = figure.axes[0]
    ticks = sorted(of_use["n"].unique())
    axes.set_xticks([max(1, n) for n in ticks], [f"{n:,}" for n in ticks])
    axes.set(xlabel="pairs of the target that were learned")
    return figure


def scores_by_size(table: pd.DataFrame, use: str) -> tuple[str, pd.DataFrame]:
    """Return the score that a question is about, and what each method reached by number of pairs, (methods, numbers).

    Parameters
    ----------
    table
        ``ResponseStudy.table``.
    use
        What is new in the test.
    """
    score, of_use = f"pearson_{aggregation_of(use)}", table[table["use"] == use]
    return score.replace("_", " "), of_use.pivot_table(index="method", columns="n", values=score, sort=False)


def _write_page(folder: Path, study: ResponseStudy, pictures: "Mapping[str, Figure]", config: Any) -> None:
    sections = []
    for use, figure in pictures.items():
        called, question = _QUESTIONS[use]
        score, wide = scores_by_size(study.table, use)
        sections.append(
            Section(
                f"{called[0].upper()}{called[1:]}: {question}",
                f"{score}, the mean over folds, of every method after so many pairs of the target. "
                "Networks take the same number of steps, each at its own best learning rate.",
                "What is predicted beyond the mean effects: see the tables of each number of pairs.",
                figure=figure,
                table=wide,
            )
        )
        if said := sentences(study.differences, use):
            sections.append(_surely(called, said))
    facts = {
        "networks": ", ".join(config.networks),
        "steps": config.steps,
        "pairs of the source": config.source.most_pairs or "all",
        "seed": config.seed,
    }
    write_report(
        folder / "report.html",
        title=f"Response to drugs ({config.measure}): from one screen to another",
        lead="Networks that learned a large screen before, beside the same from random weights and the means of drugs "
        "and samples. A network that does not beat the means was not worth it.",
        sections=sections,
        facts=facts,
    )


def _surely(called: str, said: list[str]) -> Section:
    """Return what differences say, a line each: what was compared, and where it is so."""
    (what, _, _), *_ = cut = [sentence.partition(": ") for sentence in said]
    return Section(
        f"{called[0].upper()}{called[1:]}: what is surely better or worse",
        f"Paired tests{what[what.index(' (') :]}; behind each method by how much. Differences below {_CLEAR:g} are "
        "left out.",
        "Which network to choose: of so many comparisons some are below 0.05 by chance.",
        table=pd.DataFrame(
            {"where": [where for *_, where in cut]}, index=[what.partition(" (")[0] for what, *_ in cut]
        ).rename_axis("compared"),
    )


def sentences(differences: pd.DataFrame, use: str) -> list[str]:
    """Say where having learned the source was clearly better or worse, and where anything beats the means."""
    if differences.empty:
        return []
    of_use = differences[differences["use"] == use]
    of_source = of_use["other"].str.endswith(f", {SCRATCH}")
    groups, said = f"{aggregation_of(use).removeprefix('within_')}s", []
    for rows, than in (
        (of_use[of_source], "the same from random weights"),
        (of_use[~of_source], "the better of the means"),
    ):
        for direction, what in (("higher", "Better"), ("lower", "Worse")):
            clear = rows[(rows["direction"] == direction) & (rows["difference"].abs() >= _CLEAR)]
            where = "; ".join(f"after {n:,} pairs {_listed(of_n)}" for n, of_n in clear.groupby("n"))
            said.append(f"{what} than {than} (p < 0.05 over {groups}; * over folds too): {where or 'nowhere'}.")
    return said


def _listed(clear: pd.DataFrame) -> str:
    """Name methods and by how much; of few pairs draws differ more than samples do, so folds say whether it holds."""
    return ", ".join(
        f"{row['method']} (by {abs(row['difference']):.2f}{'*' if row['p_folds'] < SIGNIFICANT else ''})"
        for row in clear.to_dict("records")
    )
