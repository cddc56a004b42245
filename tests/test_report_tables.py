"""Tables of a page: what is packed is what was given, and what is shown is short."""

import base64
import gzip
import json
import re

import numpy as np
import pandas as pd
import pytest

from geneformer_repro.report_tables import MOST_ROWS, N_PLAIN, packed, shown, table_html, values_of


def content(page):
    (letters,) = re.findall(r'data-rows="([^"]*)"', page)
    return json.loads(gzip.decompress(base64.b64decode(letters, validate=True)))


def first_cells(page):
    return re.findall(r"<tr><td[^>]*>(.*?)</td>", page)


def numbers(n):
    return pd.DataFrame({"effect": np.arange(n) / 3, "n": np.arange(n)}, index=pd.Index(range(n), name="row"))


def test_all_rows_are_packed_with_six_digits_and_the_first_are_html():
    page = table_html(numbers(100), title="T")
    held = content(page)
    assert held["names"] == ["row", "effect", "n"]
    assert held["all"] == 100
    assert held["columns"][1] == [float(f"{value:.6g}") for value in np.arange(100) / 3]
    assert first_cells(page) == [str(i) for i in range(N_PLAIN)]
    assert f"{N_PLAIN} of 100 rows." in page


def test_a_table_with_two_ends_shows_both_without_a_script():
    page = table_html(numbers(100), title="T", ends=("up <first>", "down first"))
    assert first_cells(page) == [str(i) for i in (*range(N_PLAIN), *range(100 - N_PLAIN, 100))]
    assert 'data-ends="up &lt;first&gt;|down first"' in page
    assert first_cells(table_html(numbers(40), title="T", ends=("a", "b"))) == [str(i) for i in range(40)]


def test_of_more_rows_than_a_page_can_hold_the_first_or_both_ends_are_kept():
    of_one, of_two = (content(table_html(numbers(MOST_ROWS + 9), title="T", ends=ends)) for ends in (None, ("a", "b")))
    assert of_one["columns"][0] == list(range(MOST_ROWS))
    half = MOST_ROWS // 2
    assert of_two["columns"][0] == [*range(half), *range(half + 9, MOST_ROWS + 9)]
    assert of_one["all"] == of_two["all"] == MOST_ROWS + 9


@pytest.mark.parametrize(
    ("value", "held", "said"),
    [
        pytest.param(0.123456789, 0.123457, "0.123", id="three digits are shown, six held"),
        pytest.param(123456.7, 123457, "123457", id="no exponent below a million"),
        pytest.param(1.5e-9, 1.5e-9, "1.5e-9", id="small"),
        pytest.param(12345.0, 12345, "12345", id="whole numbers in full"),
        pytest.param(np.int64(7), 7, "7", id="integer"),
        pytest.param(np.nan, None, "", id="unknown"),
        pytest.param(None, None, "", id="none"),
        pytest.param(pd.NA, None, "", id="pandas' unknown"),
        pytest.param(-np.inf, "-inf", "-inf", id="infinite"),
        pytest.param(True, "yes", "yes", id="true"),
        pytest.param(np.float32(0.1), 0.1, "0.1", id="float32"),
    ],
)
def test_a_value_is_held_as_json_can_and_shown_shortly(value, held, said):
    (of_page,) = values_of(pd.Series([value], dtype=object))
    assert (of_page, type(of_page)) == (held, type(held))
    assert shown(of_page) == said


def test_one_column_of_words_is_laid_out_to_be_read_and_packs_nothing():
    told = pd.DataFrame({"in this screen": ["a long sentence", "7"]}, index=pd.Index(["what", "n"], name="what"))
    page = table_html(told, title="T")
    assert '<table class="facts">' in page
    assert "data-rows" not in page
    assert "data-rows" in table_html(pd.DataFrame({"cells": [1]}, index=["a"]), title="T")


def test_packing_is_the_same_each_time_and_refuses_what_is_no_json():
    assert packed({"a": [1, "é<"]}) == packed({"a": [1, "é<"]})
    assert not set(packed(["<>&\"'"])) & set("<>&\"'")
    with pytest.raises(ValueError, match="not JSON compliant"):
        packed([np.nan])
