from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import pytest

import geneformer_repro as gf
from geneformer_repro.arguments import typed
from geneformer_repro.errors import InputError

if TYPE_CHECKING:
    from fractions import Fraction


@typed
def asked(
    path: str | Path = "x",
    *,
    n: int | None = None,
    share: float = 0.5,
    deep: bool = False,
    names: Sequence[str] = (),
    table: Mapping[str, str] | None = None,
    kind: Literal["a", "b"] = "a",
    part: "Fraction | None" = None,
) -> str:
    return "done"


@pytest.mark.parametrize(
    "given",
    [
        {"path": Path("x")},
        {"n": np.int64(3)},
        {"share": 1},
        {"share": np.float32(0.5)},
        {"deep": np.bool_(True)},
        {"names": np.array(["a"])},
        {"names": pd.Index(["a"])},
        {"names": ["a", "b"]},
        {"table": {"a": "b"}},
        {"kind": "c"},  # the function knows the choices
    ],
    ids=str,
)
def test_what_the_signature_says_is_taken_and_what_stands_for_it(given):
    assert asked(**given) == "done"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"path": 5}, r"asked: path must be str \| Path, found 5 \(int\)"),
        ({"n": "3"}, r"n must be int \| None, found '3' \(str\)"),
        ({"n": True}, r"n must be int \| None, found True"),
        ({"n": 1.5}, "found 1.5"),
        ({"share": "0.5"}, r"share must be float, found '0\.5' \(str\)"),
        ({"deep": "yes"}, "deep must be bool, found 'yes'"),
        ({"names": 5}, r"names must be Sequence\[str\], found 5"),
        ({"names": ["a", 5]}, r"found \['a', 5\] \(list\)"),
        ({"table": "x"}, "table must be Mapping"),
        ({"part": 0.5}, r"part must be Fraction \| None, found 0\.5"),
    ],
    ids=str,
)
def test_another_type_is_refused_by_name_of_function_and_argument(given, message):
    with pytest.raises(InputError, match=message):
        asked(**given)


def test_a_class_that_is_imported_for_type_checks_only_is_known_by_its_name():
    from fractions import Fraction

    assert asked(part=Fraction(1, 2)) == "done"


def test_unknown_arguments_are_errors_of_the_function_itself():
    with pytest.raises(TypeError, match=r"asked\(\) got an unexpected keyword argument 'm'"):
        asked(m=1)


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("tokenize", {"vocabulary": 5}),
        ("pretrain", {"config": 5, "out": "x"}),
        ("finetune", {"cells": 5, "config": 5, "out": "x"}),
        ("finetune_genes", {"cells": 5, "gene_classes": {}, "out": "x"}),
        ("predict", {"data": 5}),
        ("embed", {"cells": 5}),
        ("perturb", {"cells": 5, "perturbation": 5}),
    ],
)
def test_public_functions_refuse_what_is_no_input_of_theirs(name, others):
    with pytest.raises(InputError, match=rf"^{name}: \w+ must be .*, found 5 \(int\)"):
        getattr(gf, name)(5, **others)
