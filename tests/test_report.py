"""A page that needs no network, and what pictures share, which needs no display."""

import base64
import gzip
import hashlib
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from geneformer_repro.report import (
    Section,
    draw_points,
    legend_beside,
    like_beside_like,
    name_points,
    new_axes,
    write_report,
)

SCORES = pd.DataFrame(
    {"accuracy": [0.8, np.nan], "accuracy_low": [0.7, np.nan], "accuracy_high": [0.9, np.nan]},
    index=["fine-tuned", "without counts"],
)


def image():
    """Colours with words and a scale."""
    figure, axes = new_axes(3, 2)
    figure.colorbar(axes.imshow([[0, 1]]), ax=axes)
    axes.text(0, 0, "<b> & co")
    return figure


def points():
    """Points, intervals, an arrow, and a legend."""
    figure, axes = new_axes(3, 2)
    draw_points(axes, np.arange(2.0), SCORES, "accuracy", colour="red", label="ours")
    axes.scatter([0, 1], [1, 0], rasterized=True)
    axes.annotate("here", (0, 0), xytext=(0.5, 0.5), arrowprops={"arrowstyle": "-"})
    legend_beside(axes)
    return figure


FIGURES = {"image": image, "points": points}


# What pictures share


def test_figures_need_neither_pyplot_nor_a_display():
    drawing = [f"geneformer_repro.{workflow}.figures" for workflow in ("pretraining", "finetuning", "in_silico")]
    script = (
        f"import sys, {', '.join(drawing)}; from geneformer_repro.report import new_axes;"
        "figure, axes = new_axes(2, 2); figure.colorbar(axes.imshow([[1]]));"
        "figure.savefig(sys.stdout.buffer, format='svg'); sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_like_rows_become_neighbours():
    rows = np.array([[0.0, 1], [9, 9], [0, 1.5], [9, 9.5]])
    assert like_beside_like(rows).tolist() in ([0, 2, 1, 3], [2, 0, 1, 3], [0, 2, 3, 1], [2, 0, 3, 1])


@pytest.mark.parametrize("n_rows", [0, 1, 2])
def test_fewer_than_three_rows_keep_their_order(n_rows):
    assert like_beside_like(np.zeros((n_rows, 2))).tolist() == list(range(n_rows))


# The page


class Page(HTMLParser):
    """Tags with their attributes, and the words between them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)

    def of(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report with pictures and a table, as text."""
    sections = [Section(name, f"shows {name}", "not all", figure=draw()) for name, draw in FIGURES.items()]
    sections.append(Section("Table", "numbers", "names", table=SCORES))
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(path, title="Title", lead="Lead", sections=sections, facts={"seed": 0, "torch": "2.6"})
    return path.read_text(encoding="utf-8")


def test_a_report_loads_nothing_from_anywhere(report):
    page = Page(report)
    assert not {"link", "iframe", "object", "embed", "base", "a"} & {tag for tag, _ in page.tags}
    assert not re.search(r"https?://|url\(|@import|//cdn", report)
    loading = [
        value for _, attrs in page.tags for name, value in attrs.items() if name in ("src", "srcset", "href", "data")
    ]
    assert len(loading) == len(page.of("img")) == len(FIGURES)
    assert all(value.startswith("data:image/svg+xml;base64,") for value in loading)
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]


def test_a_browser_is_told_to_run_the_one_script_of_the_page_and_to_load_nothing(report):
    (script,) = re.findall(r"<script>(.*?)</script>", report, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [attrs["content"] for attrs in Page(report).of("meta") if "http-equiv" in attrs]
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def test_pictures_in_a_report_load_nothing_either(report):
    for attrs in Page(report).of("img"):
        picture = base64.b64decode(attrs["src"].partition(",")[2], validate=True).decode("utf-8")
        assert "</svg>" in picture
        assert "<script" not in picture
        loaded = re.findall(r'(?:xlink:href|href|src)="([^"]*)"', picture)
        assert all(value.startswith(("#", "data:")) for value in loaded)


def test_a_report_says_of_each_part_what_it_shows_and_what_it_does_not(report):
    words = Page(report).words
    assert words[words.index("Shows:") + 1] == " shows image"
    assert words.count("Shows:") == words.count("Does not show:") == len(FIGURES) + 1
    assert [attrs["alt"] for attrs in Page(report).of("img")] == list(FIGURES)


def test_a_report_is_a_whole_page_in_utf_8(report):
    page = Page(report)
    assert report.startswith("<!doctype html>")
    assert page.of("html") == [{"lang": "en"}]
    assert {"charset": "utf-8"} in page.of("meta")
    assert page.words.count("Title") == 2  # of the window and of the page
    assert "seed: 0 · torch: 2.6" in page.words


def test_every_tag_of_a_report_is_closed(report):
    opened = [tag for tag, _ in Page(report).tags if tag not in ("meta", "img", "br", "wbr")]
    assert sorted(opened) == sorted(re.findall(r"</(\w+)>", report))


def test_a_table_shows_three_digits_and_leaves_missing_values_empty(report):
    words = Page(report).words
    assert {"fine-tuned", "0.8", "0.7 to 0.9"} <= {word.strip() for word in words}
    assert "nan" not in " ".join(words).lower()


NASTY = "<script>alert(\"x\")</script> & 'quoted'"


SAID = pd.DataFrame({"effect": [0.123456, np.nan, 1], "kind": ["x", NASTY, ""]})


def unpack(text):
    return json.loads(gzip.decompress(base64.b64decode(text, validate=True)))


def test_text_is_never_taken_for_html(tmp_path):
    table = pd.DataFrame({NASTY: [NASTY]}, index=[NASTY])
    section = Section(NASTY, NASTY, NASTY, figure=image(), table=table)
    write_report(tmp_path / "r.html", title=NASTY, lead=NASTY, sections=[section], facts={NASTY: NASTY})
    page = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert len(page.of("script")) == 1
    assert page.of("img")[0]["alt"] == NASTY
    joined = "".join(page.words)
    assert joined.count(NASTY) == 2 + 1 + 1 + 2 + 3 + 2  # titles, lead, heading, sentences, table, facts


def test_how_to_read_a_section_is_folded_away_and_what_was_found_is_not(tmp_path):
    section = Section("t", "what it shows", "what it does not", finding="what was found", note="a note")
    write_report(tmp_path / "r.html", title="t", lead="l", sections=[section], facts={})
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    folded = text[text.index("<details>") : text.index("</details>")]
    assert folded.startswith("<details><summary>How to read this</summary>")
    assert all(words in folded for words in ("what it shows", "what it does not"))
    assert not any(words in folded for words in ("what was found", "a note"))


def test_a_notebook_shows_a_figure_by_itself():
    assert image()._repr_png_().startswith(b"\x89PNG")


def test_a_page_says_where_its_points_are_and_what_they_are_called(tmp_path):
    figure, axes = new_axes(3, 2)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    name_points(axes, np.array([0.0, 1.0, 5.0]), np.array([0.0, 1.0, 0.5]), [NASTY, "b", "outside"], SAID)
    write_report(tmp_path / "r.html", title="t", lead="l", sections=[Section("s", "a", "b", figure=figure)], facts={})
    (box,) = [attrs for attrs in Page((tmp_path / "r.html").read_text()).of("div") if attrs.get("class") == "picture"]
    points = unpack(box["data-points"])
    area = axes.get_position()
    assert points["x"] == pytest.approx([1e4 * area.x0, 1e4 * area.x1], abs=1)
    assert points["y"] == pytest.approx([1e4 * (1 - area.y0), 1e4 * (1 - area.y1)], abs=1)  # from the top
    assert points["names"] == [NASTY, "b"]
    assert points["said"] == {"effect": [0.1235, None], "kind": ["x", NASTY]}


def test_a_picture_without_named_points_is_a_picture_alone(report):
    named = [attrs["data-title"] for attrs in Page(report).of("div") if "data-points" in attrs]
    assert named == ["points"]


def test_the_same_report_is_the_same_file(tmp_path):
    for name in ("a", "b"):
        sections = [Section("s", "a", "b", table=SCORES)]
        write_report(tmp_path / name, title="t", lead="l", sections=sections, facts={})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_section_needs_neither_figure_nor_table(tmp_path):
    write_report(tmp_path / "r.html", title="t", lead="l", sections=[Section("s", "a", "b")], facts={})
    page = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert not page.of("img")
    assert not page.of("table")


def test_a_report_that_exists_is_refused_or_replaced(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("mine")
    page = {"title": "t", "lead": "l", "sections": [], "facts": {}}
    with pytest.raises(FileExistsError, match=r"report\.html already exists.*overwrite=True"):
        write_report(path, **page)
    assert path.read_text() == "mine"
    write_report(path, **page, overwrite=True)
    assert path.read_text().startswith("<!doctype html>")


def test_what_must_be_known_first_stands_in_bold_above_all(tmp_path):
    write_report(
        tmp_path / "r.html", title="t", lead="a lead", sections=[], facts={}, warning="no <better> than chance"
    )
    page = (tmp_path / "r.html").read_text()
    assert "<b>no &lt;better&gt; than chance</b>" in page
    assert page.index("than chance") < page.index("a lead")
