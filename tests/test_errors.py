import pytest

from geneformer_repro.config import ConfigError
from geneformer_repro.errors import (
    DataFormatError,
    InputError,
    MissingExtraError,
    VocabularyMismatchError,
    did_you_mean,
    listed,
    told_apart,
)


@pytest.mark.parametrize("error", [DataFormatError, VocabularyMismatchError, MissingExtraError, ConfigError])
def test_what_a_user_can_cause_is_an_input_error_and_a_value_error(error):
    assert issubclass(error, InputError)
    assert issubclass(error, ValueError)


@pytest.mark.parametrize(
    ("asked", "choices", "sentence"),
    [
        pytest.param("celltype", ["donor", "cell_type"], "Did you mean 'cell_type'?", id="one_near"),
        pytest.param("layer", ["layer1", "layer2", "x"], "Did you mean 'layer2' or 'layer1'?", id="two_near"),
        pytest.param("zzz", ["a", "b"], "There are: 'a', 'b'.", id="none_near"),
        pytest.param("zzz", [], "There are none.", id="no_choices"),
        pytest.param("1", [1, 2], "Did you mean '1'?", id="choices_that_are_no_strings"),
        pytest.param(7, ["8", "9"], "There are: '8', '9'.", id="asked_for_a_number"),
        pytest.param(None, ["None."], "Did you mean 'None.'?", id="asked_for_nothing"),
        pytest.param("zzz", (name for name in "ab"), "There are: 'a', 'b'.", id="choices_that_can_be_read_once"),
    ],
)
def test_an_error_ends_with_what_would_have_been_valid(asked, choices, sentence):
    assert did_you_mean(asked, choices) == sentence


def test_at_most_three_near_choices_are_offered():
    assert did_you_mean("gene", [f"gene{i}" for i in range(9)]).count(" or ") == 2


def test_a_long_list_of_choices_is_cut_and_says_so():
    sentence = did_you_mean("zzz", [f"a{i:02}" for i in range(21)])
    assert sentence.startswith("There are: 'a00', ")
    assert sentence.endswith("'a19' and 1 more.")


def test_a_list_of_twenty_choices_is_shown_whole():
    assert did_you_mean("zzz", [f"a{i:02}" for i in range(20)]).endswith("'a18', 'a19'.")


def test_of_many_names_some_are_listed_and_the_others_counted():
    assert listed(["a", "b"]) == "a, b"
    assert listed(range(1_300), most=2) == "0, 1 and 1,298 more"


@pytest.mark.parametrize(
    ("values", "written"),
    [
        pytest.param((3.062791, 3.062788), ("3.062791", "3.062788"), id="near"),
        pytest.param((1.0, 2.5), ("1", "2.5"), id="far"),
        pytest.param((0.1 + 0.2, 0.3), ("0.30000000000000004", "0.29999999999999999"), id="last_digit"),
        pytest.param((2.0, 2.0, 3.0), ("2", "2", "3"), id="equal_ones_stay_equal"),
    ],
)
def test_numbers_that_differ_are_written_with_digits_that_differ(values, written):
    assert told_apart(*values) == written
