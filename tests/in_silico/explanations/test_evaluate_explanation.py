"""All that may speak against an explanation, of a small classifier; and what is said of it, first of all."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr

import geneformer_repro as gf
from geneformer_repro import InputError
from geneformer_repro.checkpoint_files import CHECKPOINT_WARNING
from geneformer_repro.heads import CellClassifier, Head
from geneformer_repro.in_silico.explanations import verdicts
from geneformer_repro.in_silico.explanations.again import request_of
from geneformer_repro.in_silico.explanations.again_cells import TAKINGS
from geneformer_repro.in_silico.explanations.evaluation import MAX_CELLS, _drawn
from geneformer_repro.in_silico.explanations.families import again_of
from geneformer_repro.in_silico.explanations.sanity import RANDOM_WEIGHTS, forgetting
from geneformer_repro.model import bert_config
from geneformer_repro.targets import Classes

STATE = "CD19+ B"
NOTHING_ELSE = {"drugs": None, "responses": None, "patients": None, "reading": {}}
"""Of what only other families of models read."""


@pytest.fixture(scope="module")
def few(cells):
    """Twelve short cells, four a donor, and of several types."""
    order = np.argsort(cells.lengths)
    rows = [row for donor in range(3) for row in order[cells.obs["donor"].to_numpy()[order] == f"donor{donor}"][:4]]
    return cells.select(np.array(rows))


@pytest.fixture(scope="module")
def classifier(vocabulary, cells):
    torch.manual_seed(3)
    config = bert_config("tiny", vocabulary)
    config.initializer_range = 0.2
    target = Classes("cell_type", tuple(sorted(set(cells.labels("cell_type")))))
    return gf.Checkpoint(CellClassifier(config, Head((target,))).eval(), vocabulary, name="classifier")


@pytest.fixture(scope="module")
def why(classifier, few):
    return gf.explain(classifier, few, state=STATE, methods=["hide", "first_order", "gradient_input"], donor="donor")


@pytest.fixture(scope="module")
def check(why, classifier, few):
    return gf.evaluate_explanation(why, classifier, few, max_cells=3)


def test_asked_again_a_model_says_the_same(why, classifier, few):
    again = again_of(why, classifier, few, list, **NOTHING_ELSE)
    table = again.explained(classifier, lambda n: None).table
    keys = ["cell", "gene", "method", "state"]
    both = why.table.merge(table, on=keys, suffixes=("", "_again"))
    assert len(both) == len(why.table) == len(table)
    np.testing.assert_allclose(both["value_again"], both["value"], atol=2e-6)
    unchanged = ((i, np.zeros(0, dtype=np.int64)) for i in range(len(few)))
    answers = again.answers(TAKINGS[0], 0, unchanged, lambda n: None)
    np.testing.assert_allclose(answers, first_before(why, few), atol=1e-6)


def first_before(why, cells):
    return why.table.drop_duplicates("cell").set_index("cell")["before"].reindex(cells.cell_names)


def test_a_goal_is_asked_again_as_it_was(checkpoint, cells):
    goal = gf.GoalState(obs="cell_type", start="Dendritic", goal="CD19+ B", alternatives=["CD56+ NK"])
    why = gf.explain(checkpoint, cells, goal=goal, methods=["first_order"], max_cells=3)
    request = request_of(why, (), why.methods)
    assert request.goal.states == goal.states
    explained = set(why.table["cell"])
    again = again_of(why, checkpoint, cells, lambda names: [n for n in names if n in explained], **NOTHING_ELSE)
    table = again.explained(checkpoint, lambda n: None).table
    np.testing.assert_allclose(table["value"], why.table["value"], atol=1e-5)


def test_vectors_that_were_given_cannot_be_asked_again(why, classifier):
    goal = {"obs": "cell_type", "start": "a", "goal": "b", "alternatives": [], "embeddings": "abc"}
    told = gf.Explanation(why.table, {**why.metadata, "goal": goal})
    with pytest.raises(InputError, match="cannot be asked again"):
        request_of(told, classifier.head.targets, why.methods)


def test_all_checks_are_made(check):
    assert set(check.points["way"]) == {"removal", "insertion"}
    assert set(check.points["operator"]) == {"mask", "hide"}
    assert check.sanity["model"].unique().tolist() == [
        "head", "down to block 3", "down to block 2", "down to block 1", "random weights", "permuted labels",
    ]  # fmt: skip
    assert set(check.agreement["method_b"]) == {"first_order", "gradient_input", "place"}
    assert "log2_fold_change" in check.genes
    assert {"random", "place"} < set(check.points["order"])


def test_every_table_of_checks_says_how_many_cells_and_donors_it_is_of(check):
    """Row 18: baselines, null and donors are present."""
    assert set(check.removal["n_cells"]) == {3}
    assert set(check.removal["n_donors"]) == {3}
    assert (check.sanity["n_cells"] == 3).all()
    assert (check.genes["n_donors"] >= 1).all()
    assert check.removal["p_value"].notna().all()


def test_a_curve_begins_with_the_cells_as_they_are(check, why, few):
    drawn = check.points[(check.points["way"] == "removal") & (check.points["share"] == 0)]
    np.testing.assert_allclose(drawn["value"], drawn["value"].iloc[0], rtol=1e-5)
    assert why.table["before"].min() <= drawn["value"].iloc[0] <= why.table["before"].max()


def test_what_is_said_of_random_weights_is_what_they_say(why, classifier, few, check):
    random = dict(forgetting(classifier))[RANDOM_WEIGHTS]
    names = _drawn(why, few.cell_names, 3, np.random.default_rng(0))
    theirs = gf.explain(random, few.select(np.isin(few.cell_names, names)), state=STATE, methods=["hide"]).table
    both = theirs.merge(why.table[why.table["method"] == "hide"], on=["cell", "gene"])
    rhos = [spearmanr(of["value_x"].abs(), of["value_y"].abs()).statistic for _, of in both.groupby("cell")]
    row = check.sanity.set_index(["model", "method"]).loc[RANDOM_WEIGHTS, "hide"]
    quartiles = row[["lower", "spearman", "upper"]].astype(float)
    np.testing.assert_allclose(quartiles, np.percentile(rhos, [25, 50, 75]), atol=0.02)


def test_a_model_that_guesses_is_said_to_guess_before_anything_else(check, why):
    """The classifier of the fixture learned nothing."""
    assert why.metadata["how_good"]["better_than_guessing"] is False
    assert check.sentences[0].startswith("The model is no better than guessing on the rows explained")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"removal": True}, "removal= asks the model again: give checkpoint="),
        ({"random_weights": True}, "random_weights= asks the model again"),
        ({"permuted": True}, "permuted= asks the model again"),
        ({"max_cells": 0}, "max_cells must be at least 1"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_needs_the_model_is_refused_without_it(why, options, message):
    with pytest.raises(InputError, match=message):
        gf.evaluate_explanation(why, **options)


def test_another_model_and_other_cells_are_refused(why, classifier, cells, checkpoint, few):
    with pytest.raises(InputError, match="is not the model that was explained"):
        gf.evaluate_explanation(why, checkpoint, few)
    with pytest.raises(InputError, match="give the tokenised cells"):
        gf.evaluate_explanation(why, classifier)
    others = cells.select(np.flatnonzero(~np.isin(cells.cell_names, few.cell_names))[:20])
    with pytest.raises(InputError, match="cells= lacks 12 of the 12 cells"):
        gf.evaluate_explanation(why, classifier, others)


def test_without_a_model_tables_are_made_and_the_rest_is_said_to_be_untested(why):
    check = gf.evaluate_explanation(why)
    assert check.removal.empty
    assert check.sanity.empty
    said = " ".join(check.sentences)
    assert "no genes were taken away" in said
    assert "no model that forgot was explained" in said


def test_lists_and_sets_are_looked_for_among_the_strongest(why):
    often = why.table.groupby("gene")["cell"].nunique() >= 10
    names = [why.metadata["gene_names"][gene] for gene in often.index[often]]
    check = gf.evaluate_explanation(why, drivers=names[:8], sets={"a": names[:11], "b": names[8:20]})
    assert {"auroc", "matched_auroc"} <= set(check.drivers.table)
    assert set(check.sets.index) == {"a", "b"}
    assert check.sentences[-1] == check.sets.attrs["sentence"]


def test_cells_are_drawn_evenly_over_donors(why, classifier, few):
    names = _drawn(why, few.cell_names, 6, np.random.default_rng(0))
    assert few.labels("donor")[np.isin(few.cell_names, names)].value_counts().tolist() == [2, 2, 2]
    assert len(_drawn(why, few.cell_names, MAX_CELLS, np.random.default_rng(0))) == 12


# What is said


def table_of_removal(**of):
    row = {
        "state": None, "operator": "mask", "way": "removal", "order": "hide, largest first", "own_operator": False,
        "better": 1.0, "p_value": 0.01, "faithfulness": 0.8,
    }  # fmt: skip
    return pd.DataFrame([{**row, **of}, {**row, "order": "place", "better": 0.5}])


@pytest.mark.parametrize(
    ("of", "said"),
    [
        ({}, "Removing what hide puts first, by mask, moves the answer more than removing genes at random"),
        ({"p_value": 0.2}, "is not shown to move it more than"),
        ({"better": -1.0}, "is not shown to move it more than"),
        ({"better": 0.4}, "but no more than going by place"),
        ({"p_value": np.nan}, "untested below three donors"),
    ],
    ids=["better", "uncertain", "worse", "as place", "no donors"],
)
def test_what_curves_say(of, said):
    (sentence,) = verdicts.of_removal(table_of_removal(**of))
    assert said in sentence


def test_a_method_is_not_judged_by_its_own_operator():
    assert list(verdicts.of_removal(table_of_removal(own_operator=True))) == []


@pytest.mark.parametrize(("rho", "said"), [(0.5, "mostly shows the input"), (-0.5, "mostly shows"), (0.2, "no map is")])
def test_what_random_weights_say(rho, said):
    table = pd.DataFrame([{"model": RANDOM_WEIGHTS, "method": "hide", "state": None, "spearman": rho}])
    (sentence,) = verdicts.of_sanity(table)
    assert said in sentence


@pytest.mark.parametrize(("signed", "also"), [(0.02, True), (-0.02, True), (0.5, False)])
def test_where_sizes_alone_are_alike_that_is_said(signed, also):
    row = {"model": RANDOM_WEIGHTS, "method": "hide", "state": None, "spearman": 0.5, "signed": signed}
    (sentence,) = verdicts.of_sanity(pd.DataFrame([row]))
    assert (f"sizes alone are, with signs it is {signed:.2f}" in sentence) == also


def test_what_is_not_known_of_the_model_is_said():
    assert verdicts.how_good({}) == verdicts.UNKNOWN
    assert not verdicts.is_guessing({})


# The page


@pytest.fixture(scope="module")
def page(why, check, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "why.html"
    gf.write_explanation_report(why, path, check=check)
    return path.read_text()


def test_the_page_says_first_that_the_model_guesses_and_ranks_nothing(page):
    body = page[page.index("<h1>") :]
    assert body.index("<b>The model is no better than guessing") < body.index('class="lead"')
    assert "No ranking of genes" in body
    assert "Strongest genes by" not in body


def test_the_page_of_a_model_that_knows_something_ranks_genes(why, check, tmp_path):
    good = {**why.metadata["how_good"], "value": 0.9, "low": 0.8, "high": 0.95, "better_than_guessing": True}
    known = gf.Explanation(why.table, {**why.metadata, "how_good": good})
    gf.write_explanation_report(known, tmp_path / "why.html", check=check)
    body = (tmp_path / "why.html").read_text()
    assert "The model predicts the rows explained with balanced accuracy 0.90" in body
    assert "Strongest genes by hide" in body
    assert '<p class="warning">' not in body


def test_what_is_unknown_of_the_model_is_a_warning_too(why, tmp_path):
    told = {**why.metadata, "how_good": None, CHECKPOINT_WARNING: "no good"}
    gf.write_explanation_report(gf.Explanation(why.table, told), tmp_path / "why.html")
    body = (tmp_path / "why.html").read_text()
    assert f"<b>The model is no good. {verdicts.UNKNOWN}</b>" in body.replace("&#x27;", "'")
    assert "The explanation was not tested" in body


@pytest.mark.parametrize("kind", ["genes", "agreement", "removal", "insertion", "sanity"])
def test_each_picture_can_be_drawn_by_itself(why, check, kind):
    figure = gf.plot_explanation(why, kind=kind, check=check)
    assert figure.axes[0].has_data()


def test_dots_are_the_means_of_donors(why, check):
    axes = gf.plot_explanation(why, check=check).axes[0]
    top = axes.get_yticklabels()[0].get_text().partition(" (")[0]
    rows = why.table[(why.table["method"] == "hide") & (why.table["gene"].map(why.metadata["gene_names"]) == top)]
    dots = next(line.get_xdata() for line in axes.lines if line.get_label() == "a donor")
    np.testing.assert_allclose(sorted(dots), sorted(rows.groupby("donor")["value"].mean()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "gene"}, "kind must be one of"),
        ({"kind": "removal"}, "draws a check that was not made"),
        ({"kind": "gaps"}, "the explanation has none"),
        ({"kind": "surrogate"}, "the explanation has none"),
        ({"method": "hidden"}, "There is no method 'hidden'"),
        ({"state": "B"}, "There is no state 'B'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_pictures_of_what_is_not_there_are_refused(why, options, message):
    with pytest.raises(InputError, match=message):
        gf.plot_explanation(why, **options)


def test_a_page_that_is_there_is_not_replaced(why, tmp_path):
    path = Path(tmp_path / "why.html")
    path.write_text("mine")
    with pytest.raises(FileExistsError):
        gf.write_explanation_report(why, path)
    assert path.read_text() == "mine"
