"""Pictures of explanations hold what their tables hold."""

import numpy as np
import pandas as pd
import pytest
from drawing import EveryFigure, rows, texts

from geneformer_repro.in_silico.explanations.explanation_figures import (
    agreement_figure,
    curves_figure,
    gaps_figure,
    genes_figure,
    sanity_figure,
    surrogate_figure,
)

METHODS = ("hide", "first_order", "integrated_gradients", "place")


def genes_table(*, donors: bool = True) -> pd.DataFrame:
    effect = np.array([0.5, 0.2, 0.01, -0.1, -0.4])
    half = 0.05 if donors else np.nan
    names = ["CD79A", "MS4A1", "A", "LYZ", "S100A8"]
    columns = {"gene_name": names, "effect": effect, "low": effect - half, "high": effect + half, "n_cells": 12}
    return pd.DataFrame(columns, index=pd.Index([f"g{i}" for i in range(5)], name="gene_id"))


def of_donors() -> pd.DataFrame:
    values = genes_table()["effect"].to_numpy() + np.array([[-0.03], [0.0], [0.03]])
    return pd.DataFrame(values, index=["a", "b", "c"], columns=genes_table().index)


def agreement_table() -> pd.DataFrame:
    pairs = [(a, b) for i, a in enumerate(METHODS) for b in METHODS[i + 1 :]]
    table = pd.DataFrame(pairs, columns=["method_a", "method_b"])
    chances = {"top_10_chance": 0.05, "top_50": np.nan, "top_50_chance": np.nan}
    return table.assign(spearman=np.linspace(-0.5, 0.9, 6), top_10=0.525, same_operator=[True] + [False] * 5, **chances)


def points() -> pd.DataFrame:
    shares = np.array([0, 0.01, 0.1, 0.5])
    names = ("hide, largest first", "hide, smallest first", "place", "fold change", "random")
    tables = [pd.DataFrame({"order": name, "share": shares, "value": -i * shares}) for i, name in enumerate(names)]
    table = pd.concat(tables, ignore_index=True).assign(low=np.nan, high=np.nan)
    is_random = table["order"] == "random"
    table.loc[is_random, "low"], table.loc[is_random, "high"] = table["value"] - 0.1, table["value"] + 0.1
    return table


def sanity_table() -> pd.DataFrame:
    models = ["head", "down to block 1", "random weights", "permuted labels"]
    table = pd.DataFrame([(model, method) for model in models for method in METHODS[:3]], columns=["model", "method"])
    rho = np.linspace(0.9, -0.2, len(table))
    return table.assign(spearman=rho, lower=rho - 0.1, upper=rho + 0.1)


R2, STABILITY = np.array([0.9, 0.2, 0.5]), np.array([0.9, 0.8, 0.4])
FIGURES = {
    "genes": lambda: genes_figure(genes_table(), of_donors(), effect_name="effect"),
    "genes_without_donors": lambda: genes_figure(genes_table(donors=False), None, effect_name="effect"),
    "agreement": lambda: agreement_figure(agreement_table()),
    "curves": lambda: curves_figure(points(), value_name="log-odds", title="genes taken away"),
    "gaps": lambda: gaps_figure(np.array([1e-4, 0.002, 0.5]), bound=0.01),
    "surrogate": lambda: surrogate_figure(R2, STABILITY, least_r2=0.3, least_stability=0.5),
    "sanity": lambda: sanity_figure(sanity_table(), bound=0.3),
}


@pytest.mark.parametrize("draw", [pytest.param(draw, id=name) for name, draw in FIGURES.items()], scope="class")
class TestEveryFigure(EveryFigure):
    pass


def test_genes_of_both_signs_stand_in_order_with_a_dot_a_donor():
    figure = FIGURES["genes"]()
    assert rows(figure.axes[0]) == [f"{name} (12 cells)" for name in genes_table()["gene_name"]]
    dots = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 3 and line.get_color() == "#c3c8d0"]
    np.testing.assert_allclose([line.get_xdata() for line in dots], of_donors().to_numpy().T)
    assert "95 % interval over donors" in texts(figure)["axes"][0]
    assert "95 %" not in texts(FIGURES["genes_without_donors"]())["axes"][0]


def test_agreement_is_on_a_scale_from_chance_to_the_same():
    """Below the diagonal what is shared, less chance and over what is left: (0.525 − 0.05) / 0.95 = 0.5."""
    axes = FIGURES["agreement"]().axes[0]
    drawn = np.asarray(axes.images[0].get_array())
    np.testing.assert_allclose(np.diag(drawn), 1)
    np.testing.assert_allclose(drawn[np.tril_indices(4, -1)], 0.5)
    np.testing.assert_allclose(drawn[np.triu_indices(4, 1)], agreement_table()["spearman"])
    written = [text.get_text() for text in axes.texts]
    assert written.count("0.53\n(0.05)") + written.count("0.52\n(0.05)") == 5
    assert sum(text.startswith("=\n") for text in written) == 2
    assert "top 10 shared" in axes.get_title(loc="left")


def test_curves_stand_on_the_band_of_random_orders():
    figure = FIGURES["curves"]()
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["0", "1", "10", "50"]
    assert texts(figure)["legend"][:3] == ["random, 95 %", "random", "hide, largest first"]


def test_gaps_beyond_the_bound_are_counted():
    assert FIGURES["gaps"]().axes[0].get_title(loc="left") == "beyond 1% and left out: 1 of 3"


def test_surrogates_that_rank_nothing_are_told_apart():
    assert texts(FIGURES["surrogate"]())["legend"] == ["ranked (1)", "shown, not ranked (2)"]
