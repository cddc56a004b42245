"""Mean effects of samples, drugs and tissues: by hand, of who is new, and as JSON."""

import numpy as np
import pytest

from geneformer_repro.errors import InputError
from geneformer_repro.mean_effects import PRIOR_ROWS, MeanEffects, shared_effects

VALUES = np.array([1.0, 2, 3, 6])
SAMPLES, DRUGS = np.array(["a", "a", "b", "b"]), np.array(["x", "y", "x", "y"])
TISSUES = np.array(["lung", "lung", "skin", "skin"])


def test_effects_are_differences_from_the_overall_mean_and_who_is_new_adds_nothing():
    effects = MeanEffects.fit(VALUES, SAMPLES, DRUGS)
    assert effects.overall == 3.0  # a: -1.5, b: +1.5, x: -1, y: +1
    asked = np.array(["a", "new", "b", "new"]), np.array(["x", "y", "new", "new"])
    np.testing.assert_allclose(effects.predict(*asked), [0.5, 4.0, 4.5, 3.0])


@pytest.mark.parametrize(
    ("effects", "expected"),
    [
        pytest.param((), [3.0, 3, 3], id="overall"),
        pytest.param(("sample",), [1.5, 4.5, 3], id="sample"),
        pytest.param(("drug",), [2.0, 4, 3], id="drug"),
        pytest.param(("tissue",), [1.5, 4.5, 1.5], id="tissue"),
        pytest.param(("tissue_drug",), [1.0, 6, 3], id="drug in a tissue"),
    ],
)
def test_each_mean_alone(effects, expected):
    fitted = MeanEffects.fit(VALUES, SAMPLES, DRUGS, TISSUES, effects=effects)
    asked = np.array(["a", "b", "c"]), np.array(["x", "y", "z"]), np.array(["lung", "skin", "lung"])
    np.testing.assert_allclose(fitted.predict(*asked), expected)


def test_numbers_serve_as_names_do():
    numbers = MeanEffects.fit(VALUES, np.array([0, 0, 1, 1]), np.array([5, 7, 5, 7]))
    named = MeanEffects.fit(VALUES, SAMPLES, DRUGS).predict(SAMPLES, DRUGS)
    np.testing.assert_array_equal(numbers.predict(np.array([0, 0, 1, 1]), np.array([5, 7, 5, 7])), named)


def test_json_keeps_effects_by_name_and_those_of_no_rows_say_nothing():
    fitted = MeanEffects.fit(VALUES, SAMPLES, DRUGS, TISSUES, effects=("sample", "tissue_drug"))
    again = MeanEffects.from_json(fitted.to_json())
    given = SAMPLES, DRUGS[::-1], TISSUES
    np.testing.assert_array_equal(again.predict(*given), fitted.predict(*given))
    nothing = MeanEffects.from_json(MeanEffects.fit(np.array([]), np.array([]), np.array([])).to_json())
    np.testing.assert_array_equal(nothing.predict(SAMPLES, DRUGS), np.zeros(4))


@pytest.mark.parametrize(
    ("effects", "words"),
    [
        pytest.param(None, "'effects' is missing", id="field"),
        pytest.param({"gene": {"keys": [], "differences": []}}, "no effect 'gene'", id="effect"),
        pytest.param({"drug": {"keys": [["x"]], "differences": []}}, "do not fit", id="number"),
        pytest.param({"tissue_drug": {"keys": [["x"]], "differences": [1.0]}}, "do not fit", id="key"),
    ],
)
def test_damaged_effects_are_refused(effects, words):
    content = {"overall": 1.0, **({} if effects is None else {"effects": effects})}
    with pytest.raises(InputError, match=words):
        MeanEffects.from_json(content)


def test_effects_of_tissues_need_tissues():
    with pytest.raises(InputError, match="needs the tissue of every row"):
        MeanEffects.fit(VALUES, SAMPLES, DRUGS, effects=("tissue",))


def test_effects_that_training_rows_tell_of_the_tested_ones():
    assert shared_effects(SAMPLES, DRUGS, SAMPLES, DRUGS) == ("sample", "drug")
    assert shared_effects(SAMPLES, DRUGS, np.array(["c"]), np.array(["x"])) == ("drug",)
    assert shared_effects(SAMPLES, DRUGS, np.array(["a"]), np.array(["z"])) == ("sample",)
    assert shared_effects(SAMPLES, DRUGS, np.array(["c"]), np.array(["z"])) == ()


def test_what_was_known_before_counts_as_some_rows():
    before = MeanEffects.fit(np.array([1.0, 3.0]), np.array(["a", "b"]), np.array(["x", "y"]), effects=["drug"])
    one = np.array([8.0])
    kept = MeanEffects.from_json(before.to_json())
    joined = MeanEffects.fit(one, np.array(["c"]), np.array(["x"]), effects=["drug"], prior=kept)
    assert joined.overall == (8 + PRIOR_ROWS * 2) / (1 + PRIOR_ROWS)
    of_x = ((8 - joined.overall) - PRIOR_ROWS) / (1 + PRIOR_ROWS)  # which was 1 below the mean before
    assert joined.predict(one, np.array(["x"])).item() == pytest.approx(joined.overall + of_x)
    assert joined.predict(one, np.array(["y"])).item() == joined.overall + 1  # as before: no row has it
    assert joined.predict(one, np.array(["z"])).item() == joined.overall
