"""Pages as a reader has them: a gene is typed, rows sorted, the pointer moved; and nothing is asked of the network."""

import csv
import html
import io
import re

import numpy as np
import pandas as pd
import pytest
from browser import browser

from geneformer_repro.in_silico.figures import volcano_figure
from geneformer_repro.report import Section, write_report

HOSTILE = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(2)>",
    "\"quoted\", 'twice' & <b>bold</b>",
    "__proto__",
    "=1+1\nof two lines",
]
N = 60


def genes():
    """Effects 0, −1, 2, −3 … in an order that is no order, some unknown; the last names are hostile."""
    rng = np.random.default_rng(0)
    effect = np.arange(N) * np.where(np.arange(N) % 2, -1.0, 1.0) / 1000
    names = [f"GENE{i}" for i in range(N - len(HOSTILE))] + HOSTILE
    table = pd.DataFrame(
        {"gene_name": names, "effect": effect, "p_value": rng.uniform(1e-6, 1, N), "fdr": 0.5, "n_cells": np.arange(N)}
    )
    table.loc[7, "effect"] = np.nan
    return table


def scores():
    """A score with its interval, one whose interval is `low` and `high`, and another `low` that is of nothing."""
    table = pd.DataFrame({"auc": [0.5, 0.75], "low": 1, "auc_low": [0.25, np.nan], "auc_high": [0.7512, np.nan]})
    table = table.assign(effect=[-1.0, 2.0]).join(pd.DataFrame({"low": [-2, 1], "high": [0.5, 3]}), rsuffix="_")
    return table.set_axis(["auc", "lowest", "auc_low", "auc_high", "effect", "low", "high"], axis=1)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A page of one picture, a table of genes, one of few rows, and one of words."""
    table = genes()
    figure = volcano_figure(table.dropna().head(50), effect_name="effect", n_named=3)
    sections = [
        Section("Words", "s", "n", table=pd.DataFrame({HOSTILE[0]: ["w " * 300, HOSTILE[1]]}, index=["a", "b"])),
        Section(HOSTILE[2], HOSTILE[0], "n", figure=figure, finding=HOSTILE[1]),
        Section("All genes", "s", "n", table=table.set_index("gene_name"), ends=("first", "last")),
        Section("States", "s", "n", table=pd.DataFrame({"cells": [3, 5]}, index=pd.Index(["a", "b"], name="state"))),
        Section("Scores", "s", "n", table=scores()),
        Section(
            "Near one", "s", "n", table=pd.DataFrame({"x": [0.99998, 0.99999], "y": [2.5e-5, 3]}, index=["a", "b"])
        ),
    ]
    page = tmp_path_factory.mktemp("page") / "page.html"
    write_report(page, title=HOSTILE[0], lead=HOSTILE[1], sections=sections, facts={HOSTILE[2]: HOSTILE[0]})
    return page


@pytest.fixture(scope="module")
def opened(path, tmp_path_factory):
    """The page, in one browser for all tests."""
    with browser(tmp_path_factory.mktemp("profile")) as of:
        of.open(path)
        yield of


@pytest.fixture
def page(opened, path):
    opened.open(path)
    yield opened
    assert set(opened.requests) <= {path.resolve().as_uri()} | {
        u for u in opened.requests if u.startswith("data:image/svg+xml;base64,")
    }
    assert opened.complaints == []


TABLE = '[data-title="All genes"]'
SPY = (
    "(() => { const before = URL.createObjectURL;"
    "URL.createObjectURL = (blob) => { window.taken = blob.text(); return before(blob); }; })()"
)
"""What is downloaded is kept."""


def column(page, number):
    """Words of a column of the large table, as shown."""
    return page.texts(f"{TABLE} tbody td:nth-child({number})")


def test_a_table_shows_25_rows_at_a_time_and_can_be_begun_at_its_end(page):
    names = [name.replace("\n", " ") for name in genes()["gene_name"]]
    assert column(page, 1) == names[:25]
    assert page.texts(f"{TABLE} .count") == [f"1 to 25 of {N} rows"]
    page.click(f"{TABLE} .tools button:nth-last-of-type(2)")
    assert column(page, 1) == names[25:50]
    page.click(f"{TABLE} .tools button:nth-of-type(2)")
    assert column(page, 1) == names[::-1][:25]


def test_a_click_on_a_heading_sorts_by_it_down_up_and_back_and_unknown_values_stay_last(page):
    effects = genes()["effect"]
    for order in ("descending", "ascending"):
        page.click(f"{TABLE} th:nth-child(2) button")
        expected = effects.sort_values(ascending=order == "ascending")
        assert [float(value) for value in column(page, 2)] == expected.head(25).tolist()
        assert page.run(f"document.querySelector('{TABLE} th:nth-child(2)').getAttribute('aria-sort')") == order
        page.click(f"{TABLE} .tools button:nth-last-of-type(2)")
        page.click(f"{TABLE} .tools button:nth-last-of-type(2)")
        assert column(page, 2)[-1] == ""
    page.click(f"{TABLE} th:nth-child(2) button")
    assert column(page, 1)[:2] == ["GENE0", "GENE1"]


def test_names_are_sorted_by_the_numbers_in_them(page):
    page.type(f"{TABLE} input", "gene")
    page.click(f"{TABLE} th:nth-child(1) button")
    assert column(page, 1)[:11] == [f"GENE{i}" for i in range(11)]


def test_a_gene_that_is_typed_stands_first_among_those_that_begin_like_it(page):
    page.type(f"{TABLE} input", "GENE30, gene3")
    assert column(page, 1) == ["GENE3", "GENE30", *(f"GENE{i}" for i in range(31, 40))]
    page.type(f"{TABLE} input", "no such gene")
    assert column(page, 1) == ["no row has that"]
    assert page.texts(f"{TABLE} .count") == ["0 rows"]


def test_the_gene_at_the_pointer_is_told_and_a_click_finds_it_everywhere(page):
    of = page.run("(async () => (await unpacked(document.querySelector('[data-points]').dataset.points)))()")
    point = of["names"].index("GENE20")
    page.middle(".picture")
    box = "(({left, top, width, height}) => [left, top, width, height])"
    at = page.run(f"{box}(document.querySelector('.picture img').getBoundingClientRect())")
    x, y = at[0] + at[2] * of["x"][point] / 1e4, at[1] + at[3] * of["y"][point] / 1e4
    page.point(x, y)
    assert page.texts(".tip")[0].split("\n")[:2] == ["GENE20", "effect 0.02"]
    for kind in ("mousePressed", "mouseReleased"):
        page.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
    assert page.run("document.querySelector('#find input').value") == "GENE20"
    assert column(page, 1) == ["GENE20"]
    page.point(5, 5)
    assert page.texts(".tip") == []


def test_what_is_looked_for_on_the_whole_page_is_ringed_and_filtered_and_other_tables_stay(page):
    page.type("#find input", "GENE1")
    assert column(page, 1)[0] == "GENE1"
    assert len(page.texts(".ring.found")) == 1
    assert page.texts('[data-title="States"] tbody td:first-child') == ["a", "b"]
    assert page.texts("#find .where button")[-1] == f"All genes: {len(column(page, 1))} rows"
    page.type("#find input", "nothing like it")
    assert page.texts("#find .where") == ["nothing on this page has that"]
    assert len(column(page, 1)) == 25
    assert not page.texts(".ring.found")


@pytest.mark.parametrize("name", HOSTILE, ids=["script", "image", "quotes", "prototype", "lines"])
def test_hostile_names_are_words(page, name):
    page.type("#find input", name.split(",")[0].partition("\n")[0])
    assert column(page, 1) == [name.replace("\n", " ")]
    assert page.run(
        "[document.scripts.length, document.querySelectorAll('td img, td b, h2 *, p.finding *').length]"
    ) == [1, 0]


def test_the_rows_shown_are_downloaded_as_csv_with_all_their_digits(page, path):
    page.click(f"{TABLE} .tools button:last-of-type")
    page.run(SPY)
    page.click(f"{TABLE} .tools button:last-of-type")
    text = page.run("window.taken")
    assert text.startswith("gene_name,effect,p_value,fdr,n_cells\r\n")
    rows = list(csv.reader(io.StringIO(text, newline="")))
    names = genes()["gene_name"].tolist()
    assert [row[0] for row in rows[1:]] == [*names[:-1], f"'{names[-1]}"]  # a spreadsheet would run what begins with =
    again = pd.read_csv(io.StringIO(text, newline=""))
    np.testing.assert_allclose(again["p_value"], genes()["p_value"], rtol=1e-5)
    assert np.isnan(again["effect"][7])


def test_ends_of_intervals_stand_beside_their_values_and_apart_in_the_file(page):
    assert page.texts('[data-title="Scores"] th') == ["index", "auc", "lowest", "effect"]
    cells = page.texts('[data-title="Scores"] td')
    assert cells[1:4] == ["0.5 0.25 to 0.751", "1", "-1 -2 to 0.5"]
    assert cells[5:7] == ["0.75", "1"]
    page.click('[data-title="Scores"] th:nth-child(4) button')
    assert page.texts('[data-title="Scores"] td')[3] == "2 1 to 3"
    assert page.run("document.querySelector('[data-title=Scores] th:nth-child(4)').ariaSort") == "descending"
    header = "document.querySelector('[data-title=Scores] .tools button:last-of-type')"
    page.run(f"{SPY}; {header}.click()")
    assert page.run("window.taken").splitlines()[:2] == [
        "index,auc,lowest,auc_low,auc_high,effect,low,high", "1,0.75,1,,,2,1,3",
    ]  # fmt: skip


def test_the_script_draws_the_rows_that_a_page_has_without_it(page, path):
    text = path.read_text().partition('data-title="All genes"')[2].partition("</tbody>")[0]
    written = [
        html.unescape(cell).replace("\n", " ") for cell in re.findall(r"<td[^>]*>(.*?)</td>", text, flags=re.DOTALL)
    ]
    assert page.texts(f"{TABLE} td")[: 5 * 25] == written[: 5 * 25]
    assert page.texts('[data-title="Near one"] td') == ["a", "0.99998", "2.5e-5", "b", "0.99999", "3"]


def test_folded_words_open_and_nothing_is_cut_at_600_pixels(opened, path):
    opened.open(path, width=600)
    assert not opened.texts("details p")
    opened.click("details summary")
    assert opened.texts("details p")[0] == "Shows: s"
    assert opened.run("document.documentElement.scrollWidth") <= 600
    assert opened.complaints == []


def test_a_page_of_20_000_genes_is_below_2_mb(tmp_path, opened):
    rng = np.random.default_rng(0)
    n = 20_000
    table = pd.DataFrame({"gene_name": [f"ENSG{i:011d}" for i in range(n)]})
    for name in ("effect", "low", "high", "p_value", "fdr", "matched_percentile", "mean_rank"):
        table[name] = rng.uniform(-1, 1, n)
    table["p_value"], table["n_cells"], table["n_donors"] = (
        table["p_value"].abs(),
        rng.integers(3, 5000, n),
        rng.integers(1, 30, n),
    )
    figure = volcano_figure(table, effect_name="effect")
    section = Section("All", "s", "n", figure=figure, table=table.set_index("gene_name"))
    write_report(tmp_path / "large.html", title="t", lead="l", sections=[section], facts={})
    assert (tmp_path / "large.html").stat().st_size < 2e6
    opened.open(tmp_path / "large.html")
    opened.type("#find input", "ENSG00000012345")
    assert opened.texts('[data-title="All"] tbody td:first-child') == ["ENSG00000012345"]
    assert opened.complaints == []
