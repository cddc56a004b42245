from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest

from geneformer_repro.errors import DataFormatError
from geneformer_repro.tokenizer.look import described_counts

COUNTS = np.array([[1, 0, 2, 0], [0, 3, 0, 9], [4, 5, 6, 7], [1, 1, 0, 0]], dtype=np.float32)


@pytest.fixture
def adata():
    """Four cells of three genes by symbol and an antibody; counts in a layer."""
    obs = pd.DataFrame(
        {
            "cell type": pd.Categorical(["B", "B", "T", None]),
            "donor": [1, 2, 1, 2],
            "age": [60.5, 71, 60.5, np.nan],
            "lane": "a",
            "barcode": list("wxyz"),
        },
        index=list("wxyz"),
    )
    kinds = ["Gene Expression"] * 3 + ["Antibody Capture"]
    var = pd.DataFrame({"feature_types": kinds}, index=["CD19", "CD74", "LYZ", "CD3"])
    layers = {"counts": COUNTS, "scaled": COUNTS - 1, "empty": COUNTS * 0}
    return ad.AnnData(np.log1p(COUNTS), obs=obs, var=var, layers=layers)


def test_a_file_is_described_by_cells_matrices_ids_columns_and_what_is_run_next(adata, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    adata.write_h5ad("mine.h5ad")
    assert described_counts(Path("mine.h5ad")).splitlines() == [
        "mine.h5ad: 4 cells × 3 genes (and no genes: 1 Antibody Capture)",
        "matrices:",
        "  X       not counts (fractions, such as 0.6931)",
        "  counts  raw counts (whole numbers up to 9 in 4 cells)",
        "  empty   no value but 0 in 4 cells",
        "  scaled  not counts (negative values, such as -1)",
        "gene ids: symbols or other names (0 Ensembl ids), from the index of var: CD19, CD74, LYZ",
        "obs columns:",
        "  cell type  2 values: B, T (1 missing)",
        "  donor      2 values from 1 to 2",
        "  age        2 values from 60.5 to 71 (1 missing)",
        "  lane       1 value: a",
        "  barcode    4 values: w, x, y and 1 more",
        "VOCABULARY is that of the model to be asked (a checkpoint, or a published one), or learned: geneformer-repro "
        "vocabulary mine.h5ad --layer counts -o vocabulary",
        "next: geneformer-repro tokenize mine.h5ad --layer counts --vocabulary VOCABULARY --obs 'cell type' donor "
        "-o mine.tok",
    ]


def test_a_file_without_raw_counts_has_no_command(adata, tmp_path):
    del adata.layers["counts"]
    adata.write_h5ad(tmp_path / "mine.h5ad")
    said = described_counts(tmp_path / "mine.h5ad")
    assert "next:" not in said
    assert said.splitlines()[-1].startswith("No matrix holds raw counts, which rank encoding needs: go back to the ")


def test_a_damaged_matrix_is_named_and_the_others_are_looked_at(adata, tmp_path):
    path = tmp_path / "mine.h5ad"
    adata.write_h5ad(path)
    with h5py.File(path, "r+") as file:
        del file["layers/scaled"]
        file["layers/scaled"] = np.array([b"a"])
    said = described_counts(path)
    assert f"  scaled  {path}: expected numbers in 2 dimensions, found |S1, (1,)" in said
    assert "--layer counts" in said
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(DataFormatError, match="damaged or truncated"):
        described_counts(path)
