"""The worked example of networks runs from counts to its answers, on the real cells it is about."""

from pathlib import Path

import pandas as pd
import pytest
from running import Said, run_script

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("few_trees", "few_resamples", "blank_pictures")]

SCRIPT = Path(__file__).parents[1] / "examples" / "interferon_network.py"


@pytest.fixture(scope="module")
def ran(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Said]:
    """What a quick run wrote and said."""
    pytest.importorskip("igraph", reason="needs the extra [network]")
    folder, data = tmp_path_factory.mktemp("interferon") / "out", shared / "data"
    sets = data / "gene_sets"
    inputs = [data / "kang_ifnb" / "kang_ifnb.h5ad", sets / "tf_lambert2018.txt", sets / "trrust_human.tsv"]
    return folder, run_script(SCRIPT, *inputs, "-o", folder, "--quick")


def test_every_table_has_its_donors_null_and_controls(ran: tuple[Path, Said]) -> None:
    out, _ = ran
    tables = {
        name: pd.read_csv(out / f"{name}.tsv", sep="\t") for name in ("difference", "heads_matched", "known_attention")
    }
    assert {"n_donors", "fdr", "moved", "spearman_difference", "source_log2_fold_change"} <= set(tables["difference"])
    assert {"n_donors", "fdr", "random_difference"} <= set(tables["heads_matched"])
    assert {"degree product", "|Spearman|", "network"} <= set(tables["known_attention"]["method"])


def test_what_is_printed_names_interferon_genes_nulls_and_what_needs_no_model(ran: tuple[Path, Said]) -> None:
    said = ran[1].stdout
    assert "genes that interferon induces are flagged as moved" in said
    assert "permuted labels give" in said
    assert "of rewired graphs" in said
    assert "same network, random weights" in said
    assert "Edges are what the model relates, not regulation." in said


def test_pages_and_a_graph_are_there(ran: tuple[Path, Said]) -> None:
    out, _ = ran
    for name in (
        "difference.html",
        "heads_matched.html",
        "heads_published.html",
        "stimulated.graphml",
        "centrality.tsv",
    ):
        assert (out / name).stat().st_size > 500
