"""Bulk samples with what is known of their patients: expression and a clinical table, joined by name.

A join that goes wrong says nothing: samples without a match vanish, a second sample of a patient stands on both sides
of a split, a copy of a sample under another name too. So what matches is counted and said, and the rest is refused.
"""

import hashlib
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import anndata as ad
import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_matrix, issparse, vstack

from geneformer_repro.arguments import typed
from geneformer_repro.errors import DataFormatError, InputError, did_you_mean
from geneformer_repro.tokenizer.features import bare_id, ensembl_gene_in, kind_by_name, kinds_of, symbol_in, texts
from geneformer_repro.tokenizer.symbols import ensembl_of_symbol
from geneformer_repro.tokenizer.tables import examples, is_expression_table, read_expression_table, read_rows

logger = logging.getLogger(__name__)

PATIENT, SOURCE = "patient_id", "source"
_LEAST_OVERLAP = 0.1
"""Share of the samples, or of the patients if they are fewer, below which a match by name is taken for chance."""
_BARCODE = re.compile(
    r"(?P<patient>TCGA[-._][A-Z0-9]{2}[-._][A-Z0-9]{4})([-._](?P<tissue>\d\d)\w?([-._].*)?)?\Z", re.IGNORECASE
)
"""TCGA's: project, site, patient; then a sample, whose number is 01 to 09 of tumours and 10 to 19 of normal tissue."""


@typed
def read_samples(
    expression: AnnData | str | Path | Sequence[AnnData | str | Path],
    clinical: pd.DataFrame | str | Path | None = None,
    *,
    id: str | None = None,
    genes_in: Literal["rows", "columns"] | None = None,
    one_per_patient: bool = False,
) -> AnnData:
    """Join expression of bulk samples and what is known of their patients.

    Parameters
    ----------
    expression
        An AnnData, an ``.h5ad``, or a table (TSV, CSV, GCT, Parquet; samples × genes or genes × samples). Several are
        put below each other, with the genes that all have.
    clinical
        A row a patient or sample: a data frame or a table. Its columns come into ``obs``; where the expression has one
        of that name, the clinical table's stands.
    id
        Column of `clinical` with the samples' or patients' ids; by default the one that matches most samples.
    genes_in
        Where the genes of tables are, if their names do not tell.
    one_per_patient
        Of several samples of a patient take the first, of TCGA's the first tumour; they are refused otherwise.

    Returns
    -------
    Samples × genes in the order of the expression, without samples that `clinical` does not have. ``obs["patient_id"]``
    is the patient: the matching id, or the first 12 characters of a TCGA barcode (``TCGA-05-4384-01A`` matches
    ``TCGA-05-4384``), or the sample's name. Of several sources ``obs["source"]`` is the name of the file, or the number
    of the AnnData; ids of genes are Ensembl's where they can be led to one. Features that are no genes
    (``N_unmapped``, spike-ins) are left out. Nothing that is given is changed.

    Raises
    ------
    InputError
        Nothing or little matches, a column is missing, an id stands twice in `clinical`, a patient has several samples,
        two samples have the same expression, or several sources share no genes or have samples of one name.
    DataFormatError
        A file cannot be read; as a table, see there.

    See Also
    --------
    tokenize : Samples as tokens.
    pseudobulk : Samples out of cells.
    Harmoniser : Samples of several platforms on one scale.

    Examples
    --------
    >>> import numpy as np
    >>> import pandas as pd
    >>> import geneformer_repro as gf
    >>> genes = ["TP53", "ACTB", "EGFR"]
    >>> tpm = pd.DataFrame(np.arange(6).reshape(3, 2), index=genes, columns=["TCGA-05-4384-01A", "TCGA-18-3406-01A"])
    >>> tpm.to_csv("tpm.csv")
    >>> clinical = pd.DataFrame({"patient": ["TCGA-18-3406", "TCGA-05-4384"], "OS": [1, 0], "OS.time": [371, 136]})
    >>> samples = gf.read_samples("tpm.csv", clinical)
    >>> samples.obs[["OS", "OS.time"]].to_numpy().tolist()
    [[0, 136], [1, 371]]
    """
    sources = [expression] if isinstance(expression, AnnData | str | Path) else list(expression)
    samples = _together([read_expression(source, genes_in) for source in sources], sources)
    if clinical is not None:
        samples = _joined(samples, clinical, id)
    elif PATIENT not in samples.obs:
        samples.obs[PATIENT] = [_patient_of(name) or name for name in samples.obs_names]
    samples = _one_per_patient(samples, may_drop=one_per_patient)
    _require_distinct(samples)
    return samples


# expression


def read_expression(source: AnnData | str | Path, genes_in: Literal["rows", "columns"] | None = None) -> AnnData:
    """Read samples from an AnnData, an ``.h5ad`` or a table, without features that are no genes.

    Raises
    ------
    InputError
        There is no such file, or two samples have one name.
    DataFormatError
        It cannot be read.
    """
    if isinstance(source, AnnData):
        samples = source.to_memory() if source.isbacked else source.copy()
    elif is_expression_table(source):
        samples = read_expression_table(source, genes_in=genes_in)
    elif not Path(source).exists():
        raise InputError(f"{source}: no such file.")
    else:
        try:
            samples = ad.read_h5ad(source)
        except Exception as error:
            raise DataFormatError(
                f"{source}: not a readable .h5ad ({' '.join(str(error).split())[:200]}). Expected one, or a table "
                "(.tsv, .csv, .gct, .parquet)."
            ) from error
    twice = samples.obs_names[samples.obs_names.duplicated()]
    if len(twice):
        raise InputError(f"{_name(source)}: {len(twice)} samples have the name of another (first: {twice[0]!r}).")
    is_gene = (kinds_of(samples.var) == "") & [kind_by_name(name) == "" for name in samples.var_names]
    if is_gene.all():
        return samples
    other = samples.var_names[~is_gene]
    logger.info("%s: %d features that are no genes left out (%s).", _name(source), len(other), examples(other))
    return samples[:, is_gene].copy()


def _name(source: AnnData | str | Path) -> str:
    return "AnnData" if isinstance(source, AnnData) else str(source)


def _together(samples: list[AnnData], sources: Sequence[AnnData | str | Path]) -> AnnData:
    """Put sources below each other, with the genes that all have, under Ensembl ids."""
    if not samples:
        raise InputError("No expression was given.")
    if len(samples) == 1:
        return samples[0]
    names = [str(i) if isinstance(source, AnnData) else Path(source).name for i, source in enumerate(sources, 1)]
    by_gene = [pd.Series(range(part.n_vars), index=[*map(_canonical, part.var_names)]) for part in samples]
    by_gene = [places[~places.index.duplicated(keep=False)] for places in by_gene]
    shared = by_gene[0].index
    for places, name in zip(by_gene[1:], names[1:], strict=True):
        if not len(shared.intersection(places.index)):
            raise InputError(
                f"{names[0]} and {name} share no genes: {examples(samples[0].var_names)} against "
                f"{examples(samples[names.index(name)].var_names)}. Give both the same kind of ids."
            )
        shared = shared[shared.isin(places.index)]
    parts = [part[:, places[shared].to_numpy()] for part, places in zip(samples, by_gene, strict=True)]
    obs = pd.concat([part.obs.assign(**{SOURCE: name}) for part, name in zip(parts, names, strict=True)])
    twice = obs.index[obs.index.duplicated()]
    if len(twice):
        raise InputError(f"{len(twice)} samples stand in several sources (first: {twice[0]!r}); leave out one of each.")
    logger.info("%d sources share %s genes of %s.", len(parts), f"{len(shared):,}", [part.n_vars for part in samples])
    var = parts[0].var.set_axis(shared, axis=0)
    values = [part.X for part in parts]
    is_sparse = any(map(issparse, values))
    return AnnData(csr_matrix(vstack(values)) if is_sparse else np.concatenate(values), obs=obs, var=var)


def _canonical(gene: str) -> str:
    inside = ensembl_gene_in(gene)
    return bare_id(inside) if inside else ensembl_of_symbol().get(symbol_in(gene), gene)


# clinical


class _Match(NamedTuple):
    """Which column of a clinical table names samples, or their patients, and the row of each sample, -1 for none."""

    column: str
    by_patient: bool
    rows: np.ndarray

    @property
    def n(self) -> int:
        return int((self.rows >= 0).sum())


def _joined(samples: AnnData, clinical: pd.DataFrame | str | Path, id: str | None) -> AnnData:
    name, table = read_rows(clinical, "The clinical table")
    if id is not None and id not in table:
        raise InputError(f"{name}: there is no column {id!r}. {did_you_mean(id, table.columns)}")
    columns = [id] if id else [str(c) for c in table if not pd.api.types.is_float_dtype(table[c])]
    matches = [match for column in columns for match in _matches(samples.obs_names, table, column)]
    best = max(matches, key=lambda match: (match.n, -match.by_patient), default=None)
    fewer = min(samples.n_obs, len(table))
    if best is None or best.n < max(1, _LEAST_OVERLAP * fewer):
        column = best.column if best else table.columns[0]
        raise InputError(
            f"{name}: {best.n if best else 0} of {samples.n_obs:,} samples ({examples(samples.obs_names)}) are in its "
            f"column {column!r} ({examples(texts(table[column]))}). Both must have the same ids; name their column "
            "with id=."
        )
    ids = texts(table[best.column])
    used = best.rows >= 0
    _require_one_row(name, best, ids)
    logger.info(
        "%s: %s of %s samples are in its %s%s%s.",
        Path(name).name,
        f"{best.n:,}",
        f"{samples.n_obs:,}",
        f"column {best.column!r}" if best.column else "names of rows",
        ", by the first 12 characters of their TCGA barcodes" if best.by_patient else "",
        "" if used.all() else f"; left out, among others: {examples(samples.obs_names[~used])}",
    )
    named = table.drop(columns="", errors="ignore")  # names of rows, as pandas and R write them: no column of obs
    samples, of_patients = samples[used].copy(), named.iloc[best.rows[used]].set_axis(samples.obs_names[used], axis=0)
    replaced = [str(column) for column in of_patients if column in samples.obs]
    if replaced:
        logger.info("obs columns that are now the clinical table's: %s.", ", ".join(replaced))
    samples.obs = pd.concat([samples.obs.drop(columns=replaced), of_patients.apply(_writable)], axis=1)
    samples.obs[PATIENT] = [_patient_of(ids[row]) or ids[row] for row in best.rows[used]]
    return samples


def _writable(column: pd.Series) -> pd.Series:
    """Return text, also among what is missing, as categories, which an ``.h5ad`` holds."""
    if column.dtype != object:
        return column
    return column.astype(str).where(column.notna()).astype("category")


def _matches(names: pd.Index, table: pd.DataFrame, column: str) -> list[_Match]:
    ids = pd.Index(texts(table[column]), dtype=object)
    patients = pd.Index([_patient_of(text) for text in ids], dtype=object)
    of_samples = np.array([_patient_of(name) for name in names], dtype=object)
    whole, by_patient = _places(ids, names.to_numpy()), _places(patients, of_samples)
    return [_Match(column, False, whole), _Match(column, True, by_patient)]


def _places(ids: pd.Index, wanted: np.ndarray) -> np.ndarray:
    """Return the first place of each text among ids, -1 for one that is not there, or is empty."""
    first = ids[~ids.duplicated()]
    places = (
        np.flatnonzero(~ids.duplicated())[first.get_indexer(pd.Index(wanted))]
        if len(first)
        else np.zeros(len(wanted), int)
    )
    return np.where(pd.Index(wanted).isin(first) & (wanted != ""), places, -1)


def _patient_of(text: str) -> str:
    """Return the patient of a TCGA barcode, as TCGA writes it; "" of any other text."""
    match = _BARCODE.match(text)
    return re.sub(r"[._]", "-", match["patient"]).upper() if match else ""


def _require_one_row(name: str, match: _Match, ids: Sequence[str]) -> None:
    keys = pd.Series([_patient_of(text) for text in ids] if match.by_patient else ids)
    wanted = set(keys.iloc[match.rows[match.rows >= 0]])
    twice = [key for key in keys[keys.duplicated()] if key in wanted]
    if twice:
        raise InputError(
            f"{name}: {len(twice)} rows have the {match.column!r} of another (first: {twice[0]!r}); which one is right "
            "is not known. Keep one of each."
        )


# copies


def _one_per_patient(samples: AnnData, *, may_drop: bool) -> AnnData:
    patients = samples.obs[PATIENT].to_numpy()
    is_normal = np.array([_is_normal(name) for name in samples.obs_names])
    if is_normal.any():
        logger.warning("%d samples are of normal tissue, by their TCGA barcodes (code 10 to 19).", is_normal.sum())
    order = np.argsort(is_normal, kind="stable")
    first = np.zeros(len(patients), dtype=bool)
    first[order[~pd.Series(patients[order]).duplicated().to_numpy()]] = True
    if first.all():
        return samples
    i = int(np.flatnonzero(~first)[0])
    if not may_drop:
        others = samples.obs_names[patients == patients[i]]
        n = len(set(patients[~first]))
        raise InputError(
            f"{n} patients have several samples (first: {patients[i]!r}: {examples(others)}), and a split would "
            "have some on both sides. Choose one of each, or give one_per_patient=True."
        )
    logger.info("%d further samples of patients left out (first: %r).", (~first).sum(), samples.obs_names[i])
    return samples[first].copy()


def _is_normal(name: str) -> bool:
    match = _BARCODE.match(name)
    return bool(match and match["tissue"] and 10 <= int(match["tissue"]) <= 19)


def _require_distinct(samples: AnnData) -> None:
    values = csr_matrix(samples.X) if issparse(samples.X) else np.ascontiguousarray(samples.X)
    name_of: dict[bytes, str] = {}
    for name, row in zip(samples.obs_names, values, strict=True):
        content = row.indices.tobytes() + row.data.tobytes() if issparse(row) else row.tobytes()
        other = name_of.setdefault(hashlib.blake2b(content).digest(), name)
        if other != name:
            raise InputError(
                f"Samples {other!r} and {name!r} have the same expression in all {samples.n_vars:,} genes: one is a "
                "copy of the other. Leave one out, or find out whose it is."
            )
