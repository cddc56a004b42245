"""Pictures of made screens: what is drawn is what the tables hold."""

import re
import sys

import numpy as np
import pandas as pd
import pytest

from geneformer_repro import report
from geneformer_repro.errors import InputError, MissingExtraError
from geneformer_repro.in_silico.pictures import plot_screen, write_screen_report
from geneformer_repro.in_silico.shift_table import CHANGE, COLUMNS, SHIFT, SIMILARITY, ShiftTable

NAMES = {"E1": "ISG15", "E2": "IFI6", "E3": "", "E4": "MT2A"}
GOAL = {"obs": "condition", "start": "control", "goal": "stimulated", "alternatives": ["other"]}
EACH = {"kind": "Deletion", "genes": "each", "combine": "singly", "anchor": None}
PAIRS = {"kind": "Deletion", "genes": ["E1", "E2", "E4"], "combine": "pairs", "anchor": None}
PLACES = {"kind": "RankShift", "genes": ["E1", "E2"], "combine": "singly", "anchor": None, "to": [0.0, 0.5, 1.0]}


def screen(rows, measure=SIMILARITY, **metadata):
    """A screen of these rows; what is not said is null."""
    table = pd.DataFrame(rows).reindex(columns=list(COLUMNS))
    table = table.astype({"donor": object, "affected": object, "state": object, "dose": float})
    table["cell"] = table["cell"].fillna("cell")
    known = {"goal": None, "target": None, "perturbation": EACH, "n_cells": 9, "donor": None, "gene_names": NAMES}
    return ShiftTable(table, {"measure": measure, **known, "layer": -1, "pooling": "mean", **metadata})


def matched(**columns):
    """What the default method returns."""
    table = {
        "gene_name": ["ISG15", "IFI6", "E3", "MT2A"],
        "effect": [0.3, -0.1, 0.5, 0.2],
        "effect_vs_matched": [0.2, -0.2, 0.4, 0.1],
        "low": [0.1, -0.3, np.nan, -0.1],
        "high": [0.3, -0.1, np.nan, 0.3],
        "p_value": [0.001, 0.01, np.nan, 0.3],
        "fdr": [0.003, 0.02, np.nan, 0.3],
        "n_cells": [50, 40, 2, 1],
        "n_donors": [3, 3, 1, 1],
        "warning": ["", "", "1 donor: no test below 3", ""],
    }
    return pd.DataFrame(table | columns, index=pd.Index(["E1", "E2", "E3", "E4"], name="gene_id"))


def pairs(anchor="E1"):
    """What the method "pairs" returns."""
    others = {"effect_pair": [0.5, 0.4, 0.1], "n_cells": 20, "n_donors": 3, "p_value": 0.01, "fdr": [0.01, 0.2, 0.03]}
    genes = {"gene_a": ["E1", "E1", "E2"], "gene_b": ["E2", "E4", "E4"]} if not anchor else {"gene_a": anchor}
    genes = {"gene_b": ["E2", "E3", "E4"]} | genes
    table = pd.DataFrame(genes | {"interaction": [0.2, 0.1, -0.1]} | others)
    table["interaction_low"], table["interaction_high"] = table["interaction"] - 0.05, table["interaction"] + 0.05
    for side in "ab":
        table[f"gene_name_{side}"] = [NAMES[gene] or gene for gene in table[f"gene_{side}"]]
    return table


def places(n_donors=3):
    """Two genes at three places in six cells; a value is 0.1 times the number of the donor, for E2 below 0."""
    return [
        {
            "cell": f"c{cell}",
            "donor": f"d{cell % n_donors}" if n_donors else None,
            "perturbed": gene,
            "dose": dose,
            "value": sign * (1 - dose) * 0.1 * (cell % 3),
        }
        for cell in range(6)
        for gene, sign in (("E1", 1), ("E2", -2))
        for dose in (0.0, 0.5, 1.0)
    ]


SHIFTS = screen([{"perturbed": "E1", "state": "stimulated", "value": 0.1}], SHIFT, goal=GOAL)
SIMILARITIES = screen([{"perturbed": "E1", "value": 0.9}])
DOSES = screen(places(), CHANGE, perturbation=PLACES, donor="donor")
IN_PAIRS = screen([{"perturbed": "E1+E2", "state": "stimulated", "value": 0.1}], SHIFT, goal=GOAL, perturbation=PAIRS)
ANCHORED = screen([{"perturbed": "E1+E2", "value": 0.9}], perturbation=EACH | {"combine": "pairs", "anchor": "E1"})


def points(axes):
    """Points of a scatter or of lines, in the order in which they were drawn."""
    drawn = [np.asarray(scatter.get_offsets()) for scatter in axes.collections if len(scatter.get_offsets())]
    return np.concatenate(drawn)


def dots(axes):
    """Points that are drawn as a row each, from the top, as (value, row)."""
    found = [line.get_xydata() for line in axes.get_lines() if line.get_marker() == "o"]
    return sorted(np.concatenate(found).tolist(), key=lambda point: point[1])


def row_names(axes):
    return [label.get_text() for label in axes.get_yticklabels()]


def flat(text):
    """A label without the breaks of its lines."""
    return " ".join(text.split())


# Which picture


@pytest.mark.parametrize(
    ("shifts", "statistics", "x_label"),
    [
        pytest.param(SHIFTS, matched(), "mean cosine shift towards stimulated, less that of matched genes", id="p"),
        pytest.param(
            SIMILARITIES,
            matched()[["gene_name", "effect", "n_cells"]].assign(impact=True),
            "mean cosine similarity to the cell before, less 1 (below 0: moves cells more)",
            id="no p",
        ),
        pytest.param(DOSES, None, "place in the cell: 0 front … 1 bottom", id="doses"),
        pytest.param(IN_PAIRS, pairs(anchor=None), "", id="pairs"),
        pytest.param(
            ANCHORED,
            pairs(),
            "interaction with ISG15: mean cosine similarity to the cell before, less the sum for both genes "
            "(below 0: moves cells more) (bar: 95 % interval; each of 20 cells, 3 donors)",
            id="anchor",
        ),
    ],
)
def test_the_kind_of_picture_is_the_one_that_fits_the_screen(shifts, statistics, x_label):
    assert flat(plot_screen(shifts, statistics).axes[0].get_xlabel()) == x_label


def test_a_volcano_draws_genes_that_have_a_p_value_and_counts_the_others():
    axes = plot_screen(SHIFTS, matched(), kind="volcano").axes[0]
    np.testing.assert_allclose(sorted(points(axes)[:, 0]), [-0.2, 0.1, 0.2])
    assert sorted(text.get_text() for text in axes.texts) == ["IFI6", "ISG15", "MT2A"]
    assert "no p-value, not drawn (1)" in [text.get_text() for text in axes.get_legend().get_texts()]


def test_a_ranked_picture_has_both_directions_with_intervals_and_numbers():
    axes = plot_screen(SHIFTS, matched(), kind="ranked").axes[0]
    assert row_names(axes) == ["ISG15 (50 cells, 3 donors)", "MT2A (1 cell, 1 donor)", "IFI6 (40 cells, 3 donors)"]
    np.testing.assert_allclose(dots(axes), [[0.2, 0], [0.1, 1], [-0.2, 2]])


@pytest.mark.parametrize(
    ("columns", "drawn", "name"),
    [
        pytest.param(["effect", "low", "high"], [0.5, 0.3, 0.2, -0.1], "less that of all genes", id="effect"),
        pytest.param(["effect", "difference"], [0.4, 0.2, 0.1, -0.2], "less that in the null's cells", id="null"),
    ],
)
def test_the_effect_that_is_drawn_is_the_one_that_was_tested(columns, drawn, name):
    table = matched().rename(columns={"effect_vs_matched": "difference"})[["gene_name", "p_value", "fdr", *columns]]
    axes = plot_screen(SIMILARITIES, table, kind="ranked").axes[0]
    np.testing.assert_allclose([value for value, _ in dots(axes)], drawn)
    assert flat(axes.get_xlabel()) == f"mean cosine similarity to the cell before, {name} (below 0: moves cells more)"


def test_a_point_of_a_classifier_is_a_gene_and_class():
    shifts = screen([{"perturbed": "E1", "state": "B", "value": 0.1}], CHANGE, target={"name": "t", "classes": ["B"]})
    several = plot_screen(shifts, matched(state=list("BTBT")), kind="ranked").axes[0]
    assert row_names(several)[0] == "ISG15 → B (50 cells, 3 donors)"
    one = plot_screen(shifts, matched(state="B"), kind="volcano").axes[0]
    assert one.get_xlabel() == "mean change of prediction: B, less that of matched genes"
    assert sorted(text.get_text() for text in one.texts) == ["IFI6", "ISG15", "MT2A"]


def test_a_point_of_several_doses_is_a_gene_and_dose():
    axes = plot_screen(DOSES, matched(dose=[0.0, 0.5, 0, 1]), kind="ranked").axes[0]
    assert row_names(axes)[0] == "ISG15 at 0 (50 cells, 3 donors)"


def made(pairs_too=False):
    """A screen of 14 genes in 4 cells of each of 3 donors; the first gene moves cells."""
    rng, genes = np.random.default_rng(0), [f"G{i}" for i in range(14)]
    sets = [(gene,) for gene in genes] + ([("G0", gene) for gene in genes[1:]] if pairs_too else [])
    return screen(
        [
            {
                "cell": f"c{cell}",
                "donor": f"d{cell % 3}",
                "perturbed": "+".join(names),
                "state": "stimulated",
                "rank": None if len(names) > 1 else int(names[0][1:]),
                "value": ("G0" in names) * 0.5 + rng.normal(0, 0.01),
                "exact": True,
            }
            for cell in range(12)
            for names in sets
        ],
        SHIFT,
        goal=GOAL | {"alternatives": []},
        donor="donor",
        perturbation=PAIRS | {"genes": genes[1:], "anchor": "G0"} if pairs_too else EACH,
        gene_names=dict.fromkeys(genes, ""),
    )


def test_statistics_are_computed_where_none_are_given():
    axes = plot_screen(made()).axes[0]
    assert len(points(axes)) == 14
    assert axes.texts[0].get_text() == "G0"
    anchored = plot_screen(made(pairs_too=True)).axes[0]
    assert flat(anchored.get_xlabel()).startswith("interaction with G0: mean cosine shift towards stimulated")
    assert sorted(name.split()[0] for name in row_names(anchored)) == sorted(f"G{i}" for i in range(1, 14))


# Pairs


def test_pairs_are_a_symmetric_heat_map_with_dots_on_the_significant():
    figure = plot_screen(IN_PAIRS, pairs(anchor=None))
    axes = figure.axes[0]
    image = pd.DataFrame(axes.images[0].get_array().filled(np.nan), row_names(axes), row_names(axes))
    genes = ["ISG15", "IFI6", "MT2A"]
    wanted = [[np.nan, 0.2, 0.1], [0.2, np.nan, -0.1], [0.1, -0.1, np.nan]]
    np.testing.assert_array_equal(image.loc[genes, genes], wanted)
    assert axes.images[0].get_clim() == (-0.2, 0.2)
    assert len(dots(axes)) == 2 * 2  # two pairs, on both sides of the diagonal
    assert flat(figure.axes[1].get_ylabel()) == (
        "interaction: mean cosine shift towards stimulated, less the sum for both genes"
    )


def test_two_genes_of_one_name_are_told_apart_by_their_ids():
    table = pairs(anchor=None).replace({"IFI6": "ISG15"})
    assert sorted(row_names(plot_screen(IN_PAIRS, table).axes[0])) == ["ISG15 (E1)", "ISG15 (E2)", "MT2A"]


def test_with_an_anchor_its_partners_are_ranked():
    axes = plot_screen(ANCHORED, pairs()).axes[0]
    assert row_names(axes) == ["IFI6", "E3", "MT2A"]
    np.testing.assert_allclose(dots(axes), [[0.2, 0], [0.1, 1], [-0.1, 2]])
    assert len(axes.collections) == 2  # intervals above and below 0


def test_a_heat_map_of_several_classes_is_refused():
    with pytest.raises(InputError, match=r"shows one class, found 'B', 'T'\. Give the rows of one: statistics\["):
        plot_screen(IN_PAIRS, pairs(anchor=None).assign(state=["B", "T", "T"]))


# Doses


def curve(axes, label):
    (line,) = (line for line in axes.get_lines() if line.get_label() == label)
    return line.get_xydata()


def half_widths(axes):
    """Half the height of each band at the first place, in the order of the curves."""
    corners = [band.get_paths()[0].vertices for band in axes.collections]
    return [np.ptp(at[at[:, 0] == 0][:, 1]) / 2 for at in corners]


@pytest.mark.parametrize("n_replicates", [3, 6], ids=["donors", "cells"])
def test_a_dose_curve_is_the_mean_over_replicates_with_their_t_interval(n_replicates):
    from scipy.stats import t

    shifts = screen(places(3 if n_replicates == 3 else 0), CHANGE, perturbation=PLACES)
    axes = plot_screen(shifts).axes[0]
    np.testing.assert_allclose(curve(axes, "ISG15"), [[0, 0.1], [0.5, 0.05], [1, 0]], atol=1e-12)
    np.testing.assert_allclose(curve(axes, "IFI6"), [[0, -0.2], [0.5, -0.1], [1, 0]], atol=1e-12)
    values = np.array([0, 0.1, 0.2] * (n_replicates // 3))
    half = values.std(ddof=1) / np.sqrt(n_replicates) * t.ppf(0.975, n_replicates - 1)
    np.testing.assert_allclose(half_widths(axes), [2 * half, half])  # the strongest gene first
    assert axes.get_ylabel() == "mean change of prediction"


def test_donors_count_alike_however_many_cells_they_have():
    rows = places() + 5 * [row for row in places() if row["donor"] == "d2"]
    axes = plot_screen(screen(rows, CHANGE, perturbation=PLACES)).axes[0]
    np.testing.assert_allclose(curve(axes, "ISG15")[:, 1], [0.1, 0.05, 0], atol=1e-12)


def test_a_dose_curve_of_a_file_is_read_block_by_block(tmp_path):
    target = {"name": "cell_type", "classes": ["stimulated"]}
    ShiftTable(DOSES.table, DOSES.metadata | {"target": target}).save(tmp_path / "shifts.parquet")
    opened = ShiftTable.open(tmp_path / "shifts.parquet")
    np.testing.assert_array_equal(curve(plot_screen(opened).axes[0], "IFI6"), curve(plot_screen(DOSES).axes[0], "IFI6"))
    assert "table" not in vars(opened)


def test_a_dose_curve_of_a_goal_screen_is_that_of_the_goal_and_of_the_cell_itself():
    rows = [row | {"state": "stimulated"} for row in places()] + [
        row | {"state": "other", "value": 9.0} for row in places()
    ]
    rows += [row | {"affected": "E4", "value": 7.0} for row in places()]
    axes = plot_screen(screen(rows, SHIFT, perturbation=PLACES, goal=GOAL)).axes[0]
    np.testing.assert_allclose(curve(axes, "ISG15")[:, 1], [0.1, 0.05, 0], atol=1e-12)
    assert axes.get_ylabel() == "mean cosine shift towards stimulated"


def test_a_dose_curve_of_a_classifier_is_one_of_each_class():
    of_b = [row | {"state": "B"} for row in places()]
    of_t = [row | {"state": "T", "value": -2 * row["value"]} for row in places()]
    axes = plot_screen(screen(of_b + of_t, CHANGE, perturbation=PLACES)).axes[0]
    for label, value in (("ISG15 → B", 0.1), ("ISG15 → T", -0.2), ("IFI6 → T", 0.4)):
        np.testing.assert_allclose(curve(axes, label)[0, 1], value)


def test_statistics_say_which_curves_are_named():
    rows = [row | {"perturbed": f"G{i}"} for i in range(20) for row in places() if row["perturbed"] == "E1"]
    shifts = screen(rows, CHANGE, perturbation=PLACES)
    statistics = matched().set_axis(["G17", "G3", "unknown", "G5"])
    legend = plot_screen(shifts, statistics, kind="dose").axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()][:3] == ["G17", "G3", "G5"]
    assert legend.get_texts()[-1].get_text() == "12 others"


# What is refused


@pytest.mark.parametrize(
    ("shifts", "kind", "statistics", "message"),
    [
        pytest.param(
            SHIFTS, "pie", None, r"kind must be one of 'volcano', 'ranked', 'dose', 'pairs', found 'pie'", id="kind"
        ),
        pytest.param(SHIFTS, "dose", None, r"needs a screen that moved genes to places: RankShift", id="no doses"),
        pytest.param(SHIFTS, "pairs", matched(), r"picture of pairs needs .* lack gene_a, gene_b", id="no pairs"),
        pytest.param(
            SIMILARITIES, "volcano", matched().drop(columns=["p_value", "fdr"]), r"lack p_value, fdr", id="no p-values"
        ),
        pytest.param(
            SHIFTS,
            None,
            pd.DataFrame({"gene_name": ["a"], "value": [1]}),
            r"no effect of genes in these statistics, found the columns gene_name, value\. Use shift_statistics",
            id="a long table",
        ),
    ],
)
def test_a_picture_that_cannot_be_drawn_is_refused(shifts, kind, statistics, message):
    with pytest.raises(InputError, match=message):
        plot_screen(shifts, statistics, kind=kind)


def test_without_matplotlib_the_error_names_the_extra_that_brings_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'geneformer-repro\[plot\]'"):
        plot_screen(SHIFTS, matched())


# The page


@pytest.fixture
def page(tmp_path):
    """A function that writes a page and returns its text."""

    def write(shifts, statistics):
        write_screen_report(shifts, statistics, tmp_path / "screen.html", overwrite=True)
        return (tmp_path / "screen.html").read_text(encoding="utf-8")

    return write


@pytest.fixture
def text_of(page, monkeypatch):
    """The same, for what is said beside the pictures; most of the time would go into drawing them."""
    monkeypatch.setattr(report, "_data_uri", lambda figure: "")
    return page


def headings(text):
    return re.findall(r"<h2>(.*?)</h2>", text)


@pytest.mark.parametrize("classes", [["active", "rest"], ["active", "dead", "rest"]], ids=["two", "three"])
def test_of_two_classes_one_is_shown_that_says_what_the_other_loses_and_of_three_all(classes, text_of):
    rows = [{"perturbed": "E1", "state": name, "value": 0.1} for name in classes]
    shifts = screen(rows, CHANGE, target={"name": "kind", "classes": classes}, perturbation=PLACES)
    columns = {name: value[:1] * len(classes) for name, value in matched().to_dict("list").items()}
    table = pd.DataFrame(columns).assign(state=classes, best_class_fdr=0.9)
    table["effect"] *= np.array([-1.0, 1.0, 1.0])[: len(classes)]
    text, n_rows = text_of(shifts, table), 1 if len(classes) == 2 else 3
    assert "<h1>In silico perturbation screen: kind</h1>" in text
    assert ("rest; what it gains active loses" in text) == (n_rows == 1)
    assert text.partition("<h2>All genes</h2>")[2].partition("</table>")[0].count("<td>ISG15</td>") == n_rows
    names = [name.get_text() for name in plot_screen(shifts, table, kind="ranked").axes[0].get_yticklabels()]
    assert len(names) == n_rows


def test_a_page_says_what_was_done_shows_both_pictures_and_the_genes(page):
    text = page(SHIFTS, matched())
    assert headings(text) == [
        "What was done",
        "Effect and evidence",
        "Strongest genes of both directions",
        "All genes",
    ]
    assert text.count("<img") == 2
    for words in (
        "Deleted: each gene that a cell expresses, one at a time.",
        "condition: from control to stimulated (alternatives: other)",
        "the model moved, not a cell",
        "<td>ISG15</td>",
        "<td>mean</td>",
    ):
        assert words in text


def test_a_page_says_what_was_taken_for_independent(text_of):
    assert "Donors are the replicates (at most 3 for a gene)." in text_of(SHIFTS, matched())
    for statistics in (matched().drop(columns="n_donors"), matched(n_donors=0)):
        assert "Cells were treated as independent" in text_of(SHIFTS, statistics)


def test_a_page_shows_doses_and_pairs_where_there_are_any(text_of):
    assert "Where in the cell a gene was put" in headings(text_of(DOSES, matched(dose=0.5)))
    assert "Interactions of genes" in headings(text_of(IN_PAIRS, pairs(anchor=None)))
    by_class = pd.concat([pairs(anchor=None).assign(state=state) for state in "BT"], ignore_index=True)
    assert {"Interactions of genes: B", "Interactions of genes: T"} <= set(headings(text_of(IN_PAIRS, by_class)))


def test_a_page_sets_baselines_beside_the_effects(text_of):
    statistics = matched(log2_fold_change=[2.75, np.nan, 1, 0], effect_beyond_baselines=[0.125, 0, 0, 0])
    assert "R²" not in text_of(SHIFTS, statistics)
    statistics.attrs = {"explained_by_baselines": 0.234, "baselines": {"log2_fold_change": -0.456, "mean_rank": np.nan}}
    text = text_of(SHIFTS, statistics)
    assert headings(text)[-1] == "Beside what needs no model"
    assert "Spearman correlation with the effect: log2_fold_change -0.46. Together they explain R² = 0.23" in text
    assert text.count("2.75") == text.count("0.125") == 1  # in that section only


def test_a_page_says_that_first_order_values_are_estimates_and_how_good(text_of):
    agreement = {"stimulated": {"median": 0.912, "lowest": 0.8, "highest": 0.95}}
    estimated = screen(SHIFTS.table, SHIFT, goal=GOAL, method="first_order", first_order={"spearman": agreement})
    assert "within a cell: stimulated: median 0.91 (0.80 to 0.95)." in text_of(estimated, matched())
    few = {"stimulated": {"median": None, "lowest": None, "highest": None}}
    for first_order in (None, {"spearman": {}}, {"spearman": few}):
        unchecked = screen(SHIFTS.table, SHIFT, goal=GOAL, method="first_order", first_order=first_order)
        assert "How well is not known" in text_of(unchecked, matched())
    assert "Estimated values" not in text_of(SHIFTS, matched())


def test_a_page_says_where_the_passes_of_a_sampled_screen_went(text_of):
    found = {name: {"decided": ["E1"], "undecided": ["E2", "E3"]} for name in ("highest", "lowest")}
    sampled = {
        "passes": 20, "pairs": 100, "genes": 10, "not_sampled": 3, "rounds": [10, 10], "top": 2, "min_cells": 4,
        "state": "stimulated", "first_order": {"stimulated": {"correlation": 0.512, "slope": 0.25}}, "found": found,
    }  # fmt: skip
    screened = screen(SHIFTS.table, SHIFT, goal=GOAL, method="sampled", sampled=sampled)
    table = matched()
    rows = {"effect_shrunken": table["effect"], "n_exact": 2, "in_top": ["highest", "maybe highest", "", "lowest"]}
    ends = {"sampling_low": table["effect"] - 1, "sampling_high": table["effect"] + 1}
    text = text_of(screened, table.assign(**rows, **ends))
    assert headings(text)[-1] == "Where the passes went"
    assert "20 of 100 pairs of a cell and a gene were measured (20%; rounds of 10, 10), of 10 genes" in text
    assert "correlation 0.51, slope 0.25" in text
    assert "highest 2: 1 decided, 2 undecided; lowest 2: 1 decided, 2 undecided" in text


@pytest.mark.parametrize(
    ("perturbation", "words"),
    [
        pytest.param(PAIRS, "Deleted: ISG15, IFI6, MT2A, in pairs and alone.", id="pairs"),
        pytest.param(PLACES, "Moved to 0, 0.5, 1 (0 front … 1 bottom): ISG15, IFI6, one at a time.", id="places"),
        pytest.param(
            EACH | {"combine": "pairs", "anchor": "E1"},
            "Deleted: each gene that a cell expresses, alone and with ISG15.",
            id="anchor",
        ),
        pytest.param(
            {"kind": "Activation", "genes": ["E3"], "combine": "together", "quartiles": 2},
            "Moved up (quartiles: 2): E3.",
            id="quartiles",
        ),
        pytest.param(
            {
                "kind": "Composed",
                "steps": [
                    {"kind": "Deletion", "genes": ["E1"], "combine": "together"},
                    {"kind": "Overexpression", "genes": [f"G{i}" for i in range(10)], "combine": "together"},
                ],
            },
            "Deleted: ISG15; then put at the front of the cell: G0, G1, G2, G3, G4, G5, G6, G7 and 2 more, together.",
            id="steps",
        ),
    ],
)
def test_a_page_says_the_perturbation_in_words(text_of, perturbation, words):
    assert words in text_of(screen(SHIFTS.table, SHIFT, goal=GOAL, perturbation=perturbation), matched())


def test_a_page_that_exists_is_refused_before_anything_is_drawn(tmp_path):
    (tmp_path / "screen.html").write_text("mine")
    with pytest.raises(FileExistsError, match=r"screen\.html already exists.*overwrite=True"):
        write_screen_report(SHIFTS, pd.DataFrame(), tmp_path / "screen.html")
    assert (tmp_path / "screen.html").read_text() == "mine"
