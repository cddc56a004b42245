"""Which cells a network of patients looked at: tables from what it said of patients that it had not seen, and pictures.

A cell's attention is its share of all that its patient's cells have, so it depends on how many these are; its relative
attention is that share times the number of cells: 1 if all count alike. Over repeats it is the mean.
"""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from geneformer_repro.bags import entropy_of
from geneformer_repro.finetuning.experiment import Experiment, Findings
from geneformer_repro.finetuning.figures import rows_figure
from geneformer_repro.finetuning.metrics import bootstrap, ratio
from geneformer_repro.finetuning.problems.patients import SAID, PatientProblem
from geneformer_repro.report import BLUE, CATEGORIES, GREY, Section, legend_beside, new_axes
from geneformer_repro.targets import columns_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TOP_CELLS = 10
"""Cells of a patient that its row names."""


def mean_said(experiment: Experiment, found: Findings) -> pd.DataFrame:
    """Return what the network that is asked about said of each tested cell, a mean over repeats, indexed by cell.

    Columns ``patient`` and ``attention``, then those of the meaning of the outputs, by number.
    """
    name = experiment.networks[0].name
    return said_of_cells(np.concatenate([outcome.said[name] for outcome in found.outcomes]))


def said_of_cells(said: np.ndarray) -> pd.DataFrame:
    """Return as a table what `PatientProblem.ask` says of cells, a mean where it says it several times."""
    columns = ["patient", "cell", "attention", *range(said.shape[1] - SAID)]
    table = pd.DataFrame(said, columns=columns).groupby("cell").mean()
    return table.astype({"patient": int}).set_axis(table.index.astype(int))


def cells_table(problem: PatientProblem, said: pd.DataFrame) -> pd.DataFrame:
    """Return ``cell``, ``patient``, ``cell_type`` (where given), ``attention`` and ``relative_attention``.

    Parameters
    ----------
    problem
        Whose the cells are.
    said
        From `mean_said` or `said_of_cells`.
    """
    patient, cell = said["patient"].to_numpy(), said.index.to_numpy()
    columns = {"cell": problem.cell_names[cell], "patient": problem.patients[patient]}
    if problem.cell_types:
        names = np.array([*problem.cell_types, None], dtype=object)
        columns["cell_type"] = names[problem.bags.types_N[cell]]
    attention = said["attention"].to_numpy()
    columns |= {"attention": attention, "relative_attention": attention * problem.bags.lengths[patient]}
    return pd.DataFrame(columns)


def patients_table(problem: PatientProblem, said: pd.DataFrame) -> pd.DataFrame:
    """Return a row a patient.

    ``patient``, ``n_cells``, labels where any are known, predictions, ``attention_entropy`` and ``top_cells``, by
    falling attention. The entropy is 1 where all cells count alike, 0 where one has all attention; predictions are
    means over repeats.
    """
    rows, firsts = np.unique(said["patient"], return_index=True)
    lengths = problem.bags.lengths[rows]
    columns: dict[str, np.ndarray] = {"patient": problem.patients[rows], "n_cells": lengths}
    meaning = said.iloc[firsts, 2:].to_numpy()
    of_targets = zip(problem.of_kinds(rows), columns_of(problem.targets, meaning), strict=True)
    for (kind, labels), of_target in of_targets:
        known = ~np.isnan(labels).any(axis=1)
        for column, values in kind.written(labels[known]).items() if known.any() else ():
            true = np.full(len(rows), None, dtype=object)
            true[known] = values
            columns[kind.target.name if column == "true" else f"{kind.target.name}_{column}"] = true
        columns |= kind.target.columns(of_target)
    attention, cells = said["attention"].to_numpy(), said.index.to_numpy()
    columns["attention_entropy"] = entropy_of(attention, lengths)
    ends = np.cumsum(lengths)[:-1]
    columns["top_cells"] = np.array(
        [
            ", ".join(problem.cell_names[of_patient[np.argsort(-share, kind="stable")[:TOP_CELLS]]])
            for share, of_patient in zip(np.split(attention, ends), np.split(cells, ends), strict=True)
        ],
        dtype=object,
    )
    return pd.DataFrame(columns)


def types_table(cells: pd.DataFrame, *, seed: int) -> pd.DataFrame | None:
    """Return how much attention cells of each type had, a row a type, the most first; None without types.

    Parameters
    ----------
    cells
        From `cells_table`.
    seed
        Of the resampling.

    Returns
    -------
    ``cell_type``, ``n_patients`` and ``n_cells`` that have it, and ``relative_attention``: the mean over a patient's
    cells of the type, then over patients, with ``_low`` and ``_high``, its 95 % bootstrap interval over patients; one
    patient has none.
    """
    if "cell_type" not in cells:
        return None
    by_patient = cells.pivot_table(index="patient", columns="cell_type", values="relative_attention")
    n_cells = cells["cell_type"].value_counts()
    values, there = by_patient.fillna(0).to_numpy().T, by_patient.notna().to_numpy().T.astype(float)
    interval = bootstrap(
        lambda weights_PR: {"relative": ratio(values @ weights_PR, there @ weights_PR)},
        len(by_patient),
        None,
        np.random.default_rng(seed),
    )["relative"]
    columns = {
        "cell_type": by_patient.columns.to_numpy(),
        "n_patients": there.sum(axis=1).astype(int),
        "n_cells": n_cells[by_patient.columns].to_numpy(),
        **interval.columns("relative_attention"),
    }
    table = pd.DataFrame(columns).sort_values("relative_attention", ascending=False, ignore_index=True)
    table.loc[table["n_patients"] < 2, ["relative_attention_low", "relative_attention_high"]] = np.nan
    return table


def entropy_figure(patients: pd.DataFrame, *, label: str) -> "Figure":
    """Draw how evenly each patient's cells count against how many they are.

    Parameters
    ----------
    patients
        From `patients_table`.
    label
        Column by which points are coloured, where it is there and holds text.
    """
    figure, axes = new_axes(7.2, 3.6)
    values = patients.get(label, pd.Series(dtype=object))
    names = sorted(set(values.dropna())) if all(isinstance(value, str) for value in values.dropna()) else []
    for name, colour in zip(names, CATEGORIES, strict=False):
        points = patients[values == name]
        axes.scatter(points["n_cells"], points["attention_entropy"], s=22, color=colour, label=name)
    if not names:
        axes.scatter(patients["n_cells"], patients["attention_entropy"], s=22, color=BLUE)
    else:
        legend_beside(axes)
    axes.axhline(1, color=GREY, linewidth=0.8, linestyle="--")
    axes.set(xlabel="cells of the patient", ylabel="entropy of attention (1: all alike)", ylim=(-0.02, 1.05))
    axes.set_xlim(left=0)
    return figure


def types_figure(types: pd.DataFrame) -> "Figure":
    """Draw the table of `types_table`; the line at 1 is a cell like any other."""
    labels = [f"{name} ({n})" for name, n in zip(types["cell_type"], types["n_patients"], strict=True)]
    figure, axes = rows_figure(types, labels, {"relative_attention": "mean over patients"})
    axes.axvline(1, color=GREY, linewidth=0.8, linestyle="--")
    axes.set(xlabel="attention, relative to all cells alike (bar: 95 % interval; in brackets: patients)")
    axes.set_xlim(left=0)
    return figure


def attention_sections(patients: pd.DataFrame, types: pd.DataFrame | None, *, label: str) -> "dict[str, Section]":
    """Return the parts of the page that tell of attention, by the names of their pictures."""
    sections = {
        "attention": Section(
            "Does the network look at some cells more than at others?",
            "How evenly attention lies on the cells of each test patient, by networks that had not seen the patient.",
            "That a cell with much attention causes anything: attention is what this network used, and another that "
            "is as good may use other cells.",
            figure=entropy_figure(patients, label=label),
        )
    }
    if types is not None:
        sections["attention_by_type"] = Section(
            "Which cell types does it look at?",
            "Mean attention of the cells of a type in test patients, relative to all of a patient's cells alike.",
            "Whether a type decides by its number or its state: see the composition in the table of methods.",
            figure=types_figure(types),
            table=types.set_index("cell_type"),
        )
    return sections
