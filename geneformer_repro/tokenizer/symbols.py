"""The table of human genes that ships with the package: symbols, current and former, and Ensembl ids."""

from collections.abc import Mapping
from functools import cache
from importlib import resources

import pandas as pd


@cache
def ensembl_of_symbol() -> Mapping[str, str]:
    """Return human gene symbol → Ensembl id.

    Current GENCODE 44 names, and former or other HGNC names where these stand for one gene only and are no
    other gene's current name. Names that several genes share are absent.
    """
    table = _human_genes()
    return dict(zip(table["symbol"], table["ensembl_id"], strict=True))


@cache
def symbol_of_ensembl() -> Mapping[str, str]:
    """Return human Ensembl id → its current symbol (GENCODE 44)."""
    current = _human_genes().query("source == 'gencode'")
    return dict(zip(current["ensembl_id"], current["symbol"], strict=True))


@cache
def current_symbols() -> frozenset[str]:
    """Return the symbols that are current (GENCODE 44)."""
    return frozenset(symbol_of_ensembl().values())


@cache
def _human_genes() -> pd.DataFrame:
    with (resources.files("geneformer_repro") / "data" / "human_genes.tsv.gz").open("rb") as file:
        return pd.read_csv(file, sep="\t", dtype=str, compression="gzip", keep_default_na=False)
