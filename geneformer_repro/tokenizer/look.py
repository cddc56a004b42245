"""What a file of counts holds, told from a few hundred cells of it: for ``info``, before anything is tokenised.

Of each matrix the cells of `CountSource.sample` are read, of one stored by gene its first entries, of each obs column
all values, or the first 100,000 where they are texts: a second or two, however many cells there are.
"""

import shlex
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from geneformer_repro.errors import InputError, counted
from geneformer_repro.tokenizer.containers import Content, content_kind, content_of
from geneformer_repro.tokenizer.features import is_ensembl_gene
from geneformer_repro.tokenizer.genes import species_of
from geneformer_repro.tokenizer.matrices import ByGene, Matrix, first_not_a_count
from geneformer_repro.tokenizer.readers import CountSource, named_errors, open_counts, sampled_places

_TEXTS = 100_000
_EXAMPLES, _LONGEST = 3, 24
_MOST_VALUES = 500
"""Different values that a column may have and still be proposed as one of labels, batches or donors."""
_DONORS = ("donor", "patient", "subject", "individual", "sample", "batch")


def described_counts(path: Path) -> str:
    """Say what a container holds: cells, genes, which matrix has raw counts, gene ids, obs columns, what to run next.

    Parameters
    ----------
    path
        An ``.h5ad``, ``.h5mu``, ``.loom`` or 10x ``.h5`` file, a ``.zarr`` store, or a 10x folder or ``matrix.mtx``.

    Raises
    ------
    DataFormatError
        The file is damaged, of another kind, or has no cells or genes.
    """
    with named_errors(str(path), content_kind(path)):
        content = content_of(path)
    found = {layer: _found_in(content, layer, str(path)) for layer in content.layers}
    layer = next((layer for layer, (is_counts, _) in found.items() if is_counts), None)
    source = open_counts(path, layer=layer or next(iter(content.layers), None))
    columns = {name: _column(source, name) for name in source.obs_columns}
    lines = [f"{path}: {source.n_cells:,} cells × {len(source.gene_ids):,} genes{_no_genes(source)}", "matrices:"]
    lines += aligned((name, said) for name, (_, said) in found.items())
    lines += [_genes(source), f"obs columns:{'' if columns else ' none'}"]
    lines += aligned((name, said) for name, (_, said) in columns.items())
    lines.append(_next(path, layer, [name for name, (is_label, _) in columns.items() if is_label]))
    return "\n".join(lines)


def _found_in(content: Content, layer: str, path: str) -> tuple[bool, str]:
    """Say whether the values of a matrix that were looked at are counts, and what they are."""
    try:
        with named_errors(path, layer):
            matrix = content.matrix(layer)
            values, where = _some_values(matrix)
    except InputError as error:
        return False, str(error)
    if not (values != 0).any():
        return False, f"no value but 0 in {where}"
    first = first_not_a_count(values)
    if first < 0:
        return True, f"raw counts (whole numbers up to {values.max():,.0f} in {where})"
    value = values[first]
    kind = "values that are not finite" if not np.isfinite(value) else "negative values" if value < 0 else "fractions"
    return False, f"not counts ({kind}, such as {value:.4g})"


def _some_values(matrix: Matrix) -> tuple[np.ndarray, str]:
    """Return what is stored of some cells, and which those are, in words."""
    if isinstance(matrix, ByGene):
        values = next((entries.values for entries in matrix.entries()), np.empty(0))
        return np.asarray(values, dtype=np.float64), f"the first {len(values):,} entries"
    places = sampled_places(matrix.shape[0])
    values = np.concatenate([matrix.as_stored(start, stop).data.astype(np.float64) for start, stop in places])
    return values, f"{sum(stop - start for start, stop in places):,} cells"


def _no_genes(source: CountSource) -> str:
    kinds = source.no_genes["kind"].value_counts()
    return f" (and no genes: {', '.join(f'{n:,} {kind}' for kind, n in kinds.items())})" if len(kinds) else ""


def _genes(source: CountSource) -> str:
    ids = [gene for gene in source.gene_ids if gene]
    n_ensembl = sum(map(is_ensembl_gene, ids))
    if 2 * n_ensembl > len(ids):
        kind = f"Ensembl ids, {species_of(next(filter(is_ensembl_gene, ids))) or 'another species'}"
    else:
        kind = f"symbols or other names ({n_ensembl:,} Ensembl ids)"
    names = list(filter(None, source.gene_names))[:_EXAMPLES]
    where = "the index of var" if source.ids_from == "index" else f"var[{source.ids_from!r}]"
    said = f"gene ids: {kind}, from {where}: {some_of(ids, len(ids))}"
    return f"{said}; names: {some_of(names, len(names))} …" if names else said


def _column(source: CountSource, name: str) -> tuple[bool, str]:
    """Say whether a column may be one of labels or donors, and how many values it has, with the first few."""
    n_read = source.n_cells
    if pd.api.types.is_object_dtype(source.obs(name, 0, 1)):  # AnnData stores texts as categories, if any stands twice
        n_read = min(n_read, _TEXTS)
    values = source.obs(name, 0, n_read)
    n_missing, values = int(values.isna().sum()), values.dropna()
    n_values = int(values.nunique())
    is_number = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    is_likely = not is_number or (
        pd.api.types.is_integer_dtype(values) and any(word in name.lower() for word in _DONORS)
    )
    is_label = is_likely and 2 <= n_values <= min(_MOST_VALUES, source.n_cells // 2)
    said = counted(n_values, "value")
    if n_read < source.n_cells:
        said += f" in the first {n_read:,} cells"
    if n_values and is_number:
        said += f" from {_in_digits(values.min())} to {_in_digits(values.max())}"
    elif n_values:
        said += f": {some_of(values.value_counts().index[: _EXAMPLES + 1], n_values)}"
    return is_label, said + (f" ({n_missing:,} missing)" if n_missing else "")


def _in_digits(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) else f"{value:.6g}"


def some_of(values: Iterable[object], n: int) -> str:
    """Name the first few of `n` values."""
    few = [str(value).strip() or "(blank)" for value, _ in zip(values, range(_EXAMPLES), strict=False)]
    few = [text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…" for text in few]
    return ", ".join(few) + (f" and {n - len(few):,} more" if n > len(few) else "")


def aligned(rows: Iterable[tuple[str, str]]) -> list[str]:
    """Return a line for each name and what is said of it."""
    rows = list(rows)
    width = max((len(name) for name, _ in rows), default=0)
    return [f"  {name.ljust(width)}  {said}" for name, said in rows]


def _next(path: Path, layer: str | None, labels: list[str]) -> str:
    """Name the command that makes tokens of it."""
    if layer is None:
        return (
            "No matrix holds raw counts, which rank encoding needs: go back to the file before normalisation. "
            "Expression of bulk samples is tokenised with --values expression, z-scores with --values zscore."
        )
    where = [] if layer == "X" else ["--layer", layer]
    obs = ["--obs", *labels] if labels else []
    command = ["geneformer-repro", "tokenize", str(path), *where, "--vocabulary", "VOCABULARY", *obs]
    learned = shlex.join(["geneformer-repro", "vocabulary", str(path), *where, "-o", "vocabulary"])
    return (
        f"VOCABULARY is that of the model to be asked (a checkpoint, or a published one), or learned: {learned}\n"
        f"next: {shlex.join([*command, '-o', str(Path(path.resolve().name).with_suffix('.tok'))])}"
    )
