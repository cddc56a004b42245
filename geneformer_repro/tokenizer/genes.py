"""Gene symbols to Ensembl ids, from the table that ships with the package (see ``data/README.md``)."""

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
    with (resources.files("geneformer_repro") / "data" / "human_genes.tsv.gz").open("rb") as file:
        table = pd.read_csv(file, sep="\t", dtype=str, compression="gzip", keep_default_na=False)
    return dict(zip(table["symbol"], table["ensembl_id"], strict=True))
