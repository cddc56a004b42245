"""Pictures and pages of heads and of differences hold what the tables hold."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from drawing import EveryFigure, texts

from geneformer_repro.checkpoint_files import CHECKPOINT_WARNING
from geneformer_repro.in_silico.networks.network_figures import difference_figure, heads_figure, place_profile_figure
from geneformer_repro.in_silico.networks.network_pages import head_sentence, write_difference_report, write_head_report
from geneformer_repro.in_silico.networks.network_statistics import NetworkDifference

STATES = ("ctrl", "stim")


def heads_table(n_layers: int = 3, n_heads: int = 2) -> pd.DataFrame:
    rng, n = np.random.default_rng(0), n_layers * n_heads
    layer, head = np.indices((n_layers, n_heads)).reshape(2, -1)
    table = pd.DataFrame({"layer": layer, "head": head, "difference": rng.normal(0, 0.1, n), "fdr": 0.5, "n_genes": 7})
    table.loc[1, ["difference", "fdr"]] = [0.2, 0.01]
    table.attrs |= {
        "method": "matched", "warning": "", "share": 1 / n, "null_share": {"mean": 0.01, "q95": 0.1},
        "share_p_value": 0.02, "random_share": 0.0, "trend": -0.3, "trend_p_value": 0.2,
        "place_profile": rng.normal(0, 1, (n, 14)).tolist(),
    }  # fmt: skip
    return table


def edges_table(*, tested: bool = True) -> pd.DataFrame:
    rng, n = np.random.default_rng(1), 40
    p_value = np.geomspace(1e-8, 1, n) if tested else np.full(n, np.nan)
    names = {"source_name": [f"TF{i % 5}" for i in range(n)], "target_name": [f"GENE{i}" for i in range(n)]}
    ends = {"source": names["source_name"], "target": names["target_name"]}
    values = {"difference": rng.normal(0, 0.5, n), "p_value": p_value, "fdr": p_value * 2, "n_donors": 4}
    return pd.DataFrame({**ends, **names, **values, "moved": np.arange(n) < 3})


def difference(*, tested: bool = True) -> NetworkDifference:
    edges = edges_table(tested=tested)
    genes = pd.DataFrame({"gene_name": ["A", "B"], "moved_bins": [-3.0, 0.1], "moved": [True, False]}, index=["a", "b"])
    columns = {"state": ["ctrl"], "source": ["a"], "target": ["b"], "source_name": ["A"], "target_name": ["B"]}
    one_state = pd.DataFrame({**columns, "weight": [0.4], "n_cells": [40]})
    facts = {"states": list(STATES), "donors": [*"ABCD"], "n_pairs": 40}
    if tested:
        facts |= {
            "n_tested": 40, "n_significant": 18, "n_moved": 3, "n_strong": 20, "n_strong_expected": 2.0,
            "global_p_value": 0.125, "n_flips": 7,
        }  # fmt: skip
    else:
        facts["donors"] = [*"AB"]
    return NetworkDifference(edges, genes, one_state, facts)


FIGURES = {
    "heads": lambda: heads_figure(heads_table()),
    "heads_of_a_large_model": lambda: heads_figure(heads_table(12, 12)),
    "profile": lambda: place_profile_figure(heads_table()),
    "difference": lambda: difference_figure(edges_table(), STATES),
    "difference_without_test": lambda: difference_figure(edges_table(tested=False), STATES),
}


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES, scope="class")
class TestEveryFigure(EveryFigure):
    pass


def test_a_tile_is_the_difference_of_its_head_and_significant_ones_have_a_dot() -> None:
    table = heads_table()
    axes = heads_figure(table).axes[0]
    np.testing.assert_allclose(axes.images[0].get_array(), table["difference"].to_numpy().reshape(3, 2))
    (dots,) = axes.lines
    assert (dots.get_xdata().tolist(), dots.get_ydata().tolist()) == ([1], [0])


def test_the_share_stands_beside_its_null_and_random_weights() -> None:
    axes = heads_figure(heads_table()).axes[-1]
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "model", "random weights", "permuted labels\n(band: 95 %)",
    ]  # fmt: skip
    (points,) = axes.collections
    np.testing.assert_allclose(points.get_offsets()[:, 0], [1 / 6, 0, 0.01])


def test_a_profile_has_a_line_a_head() -> None:
    table = heads_table()
    lines = place_profile_figure(table).axes[0].lines[:6]
    np.testing.assert_allclose([line.get_ydata() for line in lines], table.attrs["place_profile"])


def test_edges_of_genes_that_moved_are_ringed_and_counted() -> None:
    assert "both genes moved (3 of the first 40)" in texts(difference_figure(edges_table(), STATES))["legend"]
    assert "TF0 → GENE0" in texts(difference_figure(edges_table(), STATES))["written"]


def test_a_sentence_has_the_share_its_null_and_the_control() -> None:
    said = head_sentence(heads_table())
    assert "1 of 6 heads (17%)" in said
    assert "permuted labels give 1.0% on average and 10.0% in one of twenty (p 0.02)" in said
    assert "a network with random weights 0%" in said


@pytest.mark.parametrize(
    ("write", "says"),
    [
        pytest.param(
            lambda path: write_head_report(heads_table(), path, facts={CHECKPOINT_WARNING: "no good"}),
            ["random weights", "Does not show", "<b>The model is no good.</b>"],
            id="heads",
        ),
        pytest.param(
            lambda path: write_difference_report(difference(), path),
            [
                "Over 4 donors 18 of 40 edges differ",
                "Regulation: an edge is what the model relates",
                "Pairs of one state",
            ],
            id="difference",
        ),
        pytest.param(
            lambda path: write_difference_report(difference(tested=False), path),
            ["so nothing was tested"],
            id="difference_without_test",
        ),
    ],
)
@pytest.mark.usefixtures("blank_pictures")
def test_a_page_says_what_was_found_and_what_it_does_not_show(
    write: Callable[[Path], None], says: list[str], tmp_path: Path
) -> None:
    write(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert [sentence for sentence in says if sentence not in page] == []
    with pytest.raises(FileExistsError):
        write(tmp_path / "page.html")
