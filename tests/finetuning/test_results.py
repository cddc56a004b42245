"""What fine-tuning writes: a folder a target, tables and pictures, and one page that holds the pictures."""

from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from geneformer_repro.finetuning import results
from geneformer_repro.finetuning.evaluation import evaluate_target
from geneformer_repro.finetuning.kinds.kind import FINE_TUNED
from geneformer_repro.finetuning.results import curve_figure, figures, folder_of, write_evaluation, write_page
from geneformer_repro.targets import Classes, Number

TYPES = ("B", "NK & T", "T <cd4>")
OF_CLASSES = ["methods", "confusion", "per_class", "reliability"]
OF_NUMBERS = ["methods", "predicted"]
N = 40


def evaluated(target, *others, failed=()):
    """Made-up predictions of 40 cells in two folds, by the fine-tuned model and other methods."""
    rng = np.random.default_rng(len(target.name))
    if isinstance(target, Classes):
        labels = np.arange(N) % 3
        predicted = {name: rng.dirichlet(np.ones(3), N) + np.eye(3)[labels] for name in (FINE_TUNED, *others)}
        predicted = {name: one / one.sum(axis=1, keepdims=True) for name, one in predicted.items()}
    else:
        labels = rng.normal(size=N)
        predicted = {name: labels + rng.normal(size=N) for name in (FINE_TUNED, *others)}
    return evaluate_target(
        target,
        np.array([f"cell{i}" for i in range(N)]),
        labels.astype(float),
        {**predicted, **dict.fromkeys(failed)},
        folds=np.arange(N) % 2,
        groups=None,
        seed=0,
    )


@pytest.fixture(scope="module")
def of_classes():
    return evaluated(Classes("cell type/2", TYPES), "majority class", failed=["on counts"])


@pytest.fixture(scope="module")
def of_numbers():
    return evaluated(Number("size"), "mean")


def test_a_page_says_that_test_cells_are_of_one_class_and_shows_no_scores(tmp_path):
    rng = np.random.default_rng(0)
    predicted = {FINE_TUNED: rng.dirichlet(np.ones(2), N), "majority class": rng.dirichlet(np.ones(2), N)}
    names = np.array([f"cell{i}" for i in range(N)])
    status, folds = Classes("status", ("case", "control")), np.zeros(N, int)
    alone = evaluate_target(status, names, np.ones(N), predicted, folds=folds, groups=None, seed=0)
    write_page(tmp_path, [write_evaluation(alone, tmp_path)], intervals="none", facts={})
    text = (tmp_path / "report.html").read_text()
    assert "All test cells are of class &#x27;control&#x27;; no score can tell how well classes are told apart." in text
    assert "The best" not in text
    assert "macro_f1" not in text


def curve_of(*names, score):
    return pd.DataFrame(
        [
            {"target": name, "method": method, "n": n, "draw": draw, score: 0.01 * n + 0.1 * draw}
            for name in names
            for method in (FINE_TUNED, "majority class")
            for n in (10, 50)
            for draw in (0, 1)
        ]
    )


# Folders

ODD = [
    "cell type", "cell_type", "cell type/2", "cell type_2", "cell type:2", "cell type%2F2", "leiden_0.5", "leiden 0.5",
    "Größe", ".", "..", "%2E", ".hidden", "a\\b", "*", "a\nb",
]  # fmt: skip


def test_one_target_s_tables_are_in_the_folder_itself(tmp_path):
    assert folder_of(tmp_path, "cell type/2", several=False) == tmp_path


def test_of_several_targets_each_has_a_folder_of_its_own_directly_below(tmp_path):
    folders = [folder_of(tmp_path, name, several=True) for name in ODD]
    for folder in folders:
        folder.mkdir()
    assert len(set(folders)) == len(ODD)
    assert {path.name for path in tmp_path.iterdir()} == {folder.name for folder in folders}


@pytest.mark.parametrize(
    ("target", "name"),
    [("cell_type", "cell_type"), ("leiden_0.5", "leiden_0.5"), ("cell type/2", "cell type%2F2"), ("..", "%2E.")],
)
def test_a_folder_is_named_as_its_target_as_far_as_file_names_allow(tmp_path, target, name):
    assert folder_of(tmp_path, target, several=True).name == name


def test_targets_with_like_names_keep_their_own_tables(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "figures", lambda evaluation: {})
    for name, method in {"a/b": "one", "a_b": "two", "a b": "three"}.items():
        write_evaluation(evaluated(Number(name), method), folder_of(tmp_path, name, several=True))
    found = {path.parent.name: pd.read_csv(path, sep="\t")["method"][1] for path in tmp_path.glob("*/methods.tsv")}
    assert found == {"a%2Fb": "one", "a_b": "two", "a b": "three"}


# Tables and pictures


@pytest.mark.parametrize(
    ("which", "tables", "pictures"),
    [
        (
            "of_classes",
            [
                "methods", "confusion", "probabilities", "predictions", "folds", "per_class", "confusion_intervals",
                "reliability",
            ],
            OF_CLASSES,
        ),
        ("of_numbers", ["methods", "predictions", "folds"], OF_NUMBERS),
    ],
    ids=["classes", "numbers"],
)  # fmt: skip
def test_every_table_and_picture_is_written(request, written, which, tables, pictures):
    evaluation, folder = request.getfixturevalue(which), written.folder / which
    files = {path.name: path for path in folder.iterdir()}
    assert set(files) == {f"{name}.tsv" for name in tables} | {f"{name}.png" for name in [*pictures, "curve"]}
    for name in pictures:
        assert files[f"{name}.png"].read_bytes().startswith(b"\x89PNG")
    for name in tables:
        index = 0 if name in ("methods", "confusion", "probabilities") else None
        found = pd.read_csv(files[f"{name}.tsv"], sep="\t", index_col=index)
        pd.testing.assert_frame_equal(found, getattr(evaluation, name), check_names=False, check_dtype=False)


def test_a_method_that_could_not_run_has_a_row_without_numbers(written):
    found = pd.read_csv(written.folder / "of_classes" / "methods.tsv", sep="\t", index_col=0)
    assert found.index.tolist() == [FINE_TUNED, "majority class", "on counts"]
    assert found.isna().all(axis=1).tolist() == [False, False, True]


def test_pictures_of_classes_show_ours_and_the_best_other_method():
    evaluation = evaluated(Classes("t", TYPES), "one", "two")
    best = evaluation.methods["macro_f1"].drop(FINE_TUNED).idxmax()
    assert legend(figures(evaluation)["reliability"]) == {FINE_TUNED, best}


def legend(figure):
    texts = [text.get_text() for axes in figure.axes if axes.get_legend() for text in axes.get_legend().get_texts()]
    return {name for name in (FINE_TUNED, "one", "two") if any(name in text for text in texts)}


def test_pictures_need_no_method_to_compare_with():
    assert list(figures(evaluated(Classes("t", TYPES)))) == OF_CLASSES
    assert list(figures(evaluated(Number("t")))) == OF_NUMBERS


@pytest.mark.parametrize(
    ("target", "score", "label"),
    [(Classes("t", TYPES), "macro_f1", "macro-F1 on the test cells"), (Number("t"), "r2", "R² on the test cells")],
    ids=["classes", "numbers"],
)
def test_the_learning_curve_shows_the_score_of_the_target(target, score, label):
    (axes,) = curve_figure(curve_of("t", "other", score=score), target).axes
    assert axes.get_ylabel() == label


# The page


class Page(HTMLParser):
    """What stands in a page, and which tags were not closed."""

    EMPTY = ("meta", "img", "br", "link")

    def __init__(self, text):
        super().__init__()
        self.open, self.titles, self.pictures, self.text, self.tables = [], [], [], [], 0
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.open += [] if tag in self.EMPTY else [tag]
        self.titles += [""] if tag == "h2" else []
        self.pictures += [dict(attributes)] if tag == "img" else []
        self.tables += tag == "table"

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        self.text.append(text)
        if self.open and self.open[-1] == "h2":
            self.titles[-1] += text


class Written(NamedTuple):
    folder: Path
    page: Page


INTERVALS = "95 % bootstrap intervals over 40 cells"


@pytest.fixture(scope="module")
def written(of_classes, of_numbers, tmp_path_factory):
    """Tables, pictures and the page of a class and a number with their learning curves."""
    folder = tmp_path_factory.mktemp("written")
    curve = curve_of("cell type/2", score="macro_f1").assign(r2=np.nan)
    curve = pd.concat([curve, curve_of("size", score="r2")], ignore_index=True)
    given = {"of_classes": of_classes, "of_numbers": of_numbers}
    pages = [write_evaluation(one, folder / name, curve=curve) for name, one in given.items()]
    write_page(folder, pages, intervals=INTERVALS, facts={"seed": 7})
    return Written(folder, Page((folder / "report.html").read_text(encoding="utf-8")))


def test_the_page_is_whole_html_with_a_section_for_each_picture(written):
    found = written.page
    assert found.open == []
    assert [picture["alt"] for picture in found.pictures] == found.titles
    assert len(found.titles) == len(OF_CLASSES) + len(OF_NUMBERS) + 2
    assert [title.partition(":")[0] for title in found.titles] == ["cell type/2"] * 5 + ["size"] * 3
    assert all(picture["src"].startswith("data:image/") for picture in found.pictures)
    assert found.tables == 2


def test_the_page_says_what_the_intervals_are_which_method_is_best_and_whether_it_was_worth_it(of_classes, written):
    best = of_classes.methods["macro_f1"].idxmax()
    text = " ".join(written.page.text)
    assert f"The best macro-F1 is that of: {best}." in text
    assert f"Bars are {INTERVALS}." in text
    assert f"On the same resamples, {of_classes.verdict}." in text
    assert "seed: 7" in text
    assert "on counts" not in text, "a method that did not run has no row"


def test_every_target_has_its_curve_on_the_page(written):
    assert [title for title in written.page.titles if "how many labels" in title] == [
        "cell type/2: how many labels each method needs",
        "size: how many labels each method needs",
    ]


def page_of(folder, evaluation, pictures):
    """Write a page with one small picture in the place of all."""
    page = results.Page(evaluation, dict.fromkeys(pictures, Figure(figsize=(1, 1))))
    write_page(folder, [page], intervals=INTERVALS, facts={})
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def test_names_are_text_not_tags(tmp_path):
    found = page_of(tmp_path, evaluated(Classes("<b>type</b> & co", TYPES), "<i>one</i>"), OF_CLASSES)
    assert found.titles[0] == "<b>type</b> & co: methods on the same test cells"
    assert "<i>one</i>" in found.text


def test_a_page_that_is_there_is_not_replaced(of_numbers, tmp_path):
    (tmp_path / "report.html").touch()
    with pytest.raises(FileExistsError, match=r"report\.html already exists"):
        page_of(tmp_path, of_numbers, OF_NUMBERS)
