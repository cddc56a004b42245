"""Sets of MSigDB on the genes of real cells: genes drawn by detection are enriched in none, if they are matched."""

import enrichment as benchmark
import pytest


@pytest.fixture(scope="module")
def genes(shared):
    return benchmark.genes_of(shared / "data" / "pbmc3k" / "pbmc3k.h5ad")


@pytest.mark.parametrize(("name", "n_sets", "plain"), [("hallmark", 47, 0.2), ("kegg", 142, 1.5)])
def test_genes_drawn_by_detection(shared, genes, name, n_sets, plain):
    """With the tested genes as background about 0.5 sets of hallmark and 2 of KEGG; within strata next to none."""
    found = benchmark.false_positives(genes, shared / "data" / "gene_sets" / f"human_{name}_v2025.gmt", n_draws=40)
    assert found.attrs["n_sets"] == n_sets
    assert found["genome 20,000"].mean() > 4
    assert found["tested genes"].mean() > plain
    for strata in ("20 of detection", "5 x 4 with place"):
        assert found[strata].mean() <= 0.05
        assert (found[strata] > 0).mean() <= 0.05
