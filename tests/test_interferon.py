"""The worked example runs from counts to its answer, on the real cells it is about."""

from pathlib import Path

import pandas as pd
import pytest
from running import run_script

import geneformer_repro as gf

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("few_trees", "few_resamples", "blank_pictures")]

SCRIPT = Path(__file__).parents[1] / "examples" / "interferon.py"


@pytest.fixture(scope="module")
def out(shared, tmp_path_factory):
    """What a quick run wrote."""
    folder = tmp_path_factory.mktemp("interferon") / "out"
    counts = shared / "data" / "kang_ifnb" / "kang_ifnb.h5ad"
    run_script(SCRIPT, counts, "-o", folder, "--quick")
    return folder


@pytest.mark.parametrize("screen", ["deletion", "overexpression"])
def test_each_question_ends_with_table_page_and_shifts_that_name_donors(out, screen):
    table = pd.read_csv(out / f"{screen}.tsv", sep="\t", index_col=0)
    assert {"gene_name", "effect_vs_matched", "fdr", "log2_fold_change", "effect_beyond_baselines"} <= set(table)
    assert (out / f"{screen}.html").stat().st_size > 10_000
    shifts = gf.ShiftTable.open(out / f"{screen}.parquet")
    assert shifts.table["donor"].notna().all()
    assert shifts.metadata["goal"]["obs"] == "condition"


def test_the_answer_sets_the_screen_beside_what_needs_no_model(out):
    answer = pd.read_csv(out / "answer.tsv", sep="\t")
    assert answer["screen"].unique().tolist() == ["deletion", "overexpression"]
    assert answer["area"].dropna().between(0, 1).all()
    rankings = set(answer["ranking"])
    assert any("screen: effect" in one for one in rankings)
    assert any("log fold change" in one for one in rankings)
