"""The result of a screen: one Parquet file, read whole or row group by row group (see `block_tables`)."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from geneformer_repro.errors import DataFormatError
from geneformer_repro.files import misfit
from geneformer_repro.in_silico.block_tables import BlockTable, Claims, Form, has_form, require_promised

if TYPE_CHECKING:
    import pandas as pd

FORMAT = "geneformer_repro/shifts/2"
SIMILARITY, SHIFT, CHANGE = "cosine similarity", "cosine shift", "change of prediction"
COLUMNS: Mapping[str, pa.DataType] = {
    "cell": pa.string(),
    "donor": pa.string(),
    "perturbed": pa.string(),
    "affected": pa.string(),
    "state": pa.string(),
    "dose": pa.float64(),
    "rank": pa.int32(),
    "value": pa.float64(),
    "before": pa.float64(),
    "exact": pa.bool_(),
}
ESTIMATE = "estimate"
"""Column that a first-order screen has besides: the estimate, also of rows whose value is exact."""
SHAMS = "shams"
"""Column that a screen towards a goal may have besides: of the goal's rows what `value` is towards each sham goal."""
UNBIASED, VARIANCE, CHANCE, ROUND = "unbiased", "variance", "chance", "round"
SAMPLED_COLUMNS: Mapping[str, pa.DataType] = {
    ESTIMATE: pa.float64(),
    UNBIASED: pa.float64(),
    VARIANCE: pa.float64(),
    CHANCE: pa.float64(),
    ROUND: pa.int32(),
}
"""Columns that a sampled screen has besides (docs/formats.md)."""


def _is_perturbation(value: Any) -> bool:
    if misfit(value, {"kind": str, "steps?": [{}]}):
        return False
    genes, anchor = value.get("genes", []), value.get("anchor", "")
    named_well = any(misfit(genes, form) is None for form in (str, [str])) and has_form(str, or_null=True)(anchor)
    return named_well and all(map(_is_perturbation, value.get("steps", [])))


def _is_agreement(value: Any) -> bool:
    if misfit(value, {"checked_cells": [str], "spearman": {str: {}}}):
        return False
    ranges = value["spearman"].values()
    return all(has_form(float, or_null=True)(of_cells.get(name)) for of_cells in ranges for name in _OF_AGREEMENT)


_OF_AGREEMENT = ("median", "lowest", "highest")
_DIRECTION = {"decided": [str], "undecided": [str]}
_SAMPLED = {
    "passes": int, "pairs": int, "genes": int, "not_sampled": int, "rounds": [int], "top": int, "min_cells": int,
    "first_order": {str: {}}, "found": {"highest": _DIRECTION, "lowest": _DIRECTION},
}  # fmt: skip
_GOAL = {"obs": str, "start": str, "goal": str, "alternatives": [str]}
_CLAIMS: Claims = {
    "measure": (f"{SIMILARITY!r}, {SHIFT!r} or {CHANGE!r}", lambda value: value in (SIMILARITY, SHIFT, CHANGE)),
    "goal": ("null, or obs, start, goal and alternatives", has_form(_GOAL, or_null=True)),
    "target": ("null, or name and classes", has_form({"name": str, "classes?": [str]}, or_null=True)),
    "perturbation": ("kind, genes and the like", _is_perturbation),
    "gene_names": ("a name for each gene", has_form({str: str})),
    "n_cells?": ("a number of cells", lambda value: type(value) is int and value >= 0),
    "shams?": ("a number of sham goals", lambda value: type(value) is int and value >= 0),
    "obs?": ("names of columns", has_form([str])),
    "donor?": ("null, or the name of a column", has_form(str, or_null=True)),
    "method?": ("'exact', 'first_order' or 'sampled'", lambda value: value in ("exact", "first_order", "sampled")),
    "sampled?": ("passes, pairs, genes, top, state, first_order and found", has_form(_SAMPLED)),
    "first_order?": ("checked_cells and spearman", _is_agreement),
}
FORM = Form(
    name=FORMAT,
    what="table of shifts",
    made_by="perturb",
    again="screen again",
    columns=COLUMNS,
    never_null=("cell", "perturbed", "exact"),
    not_only_null=("cell", "perturbed", "exact", "value"),
    claims=_CLAIMS,
)
as_frame, write_blocks = FORM.as_frame, FORM.write


class ShiftTable(BlockTable):
    """What a screen found: how far each perturbation moved each cell, each state, each other gene.

    Parameters
    ----------
    source
        The rows, or the Parquet file that holds them. Columns: ``cell`` (its name), ``donor`` (null where none was
        named), ``perturbed`` (gene ids joined by "+"), ``affected`` (gene id; null for the cell itself), ``state`` (a
        state of the goal or a class of the classifier; null without), ``dose`` (where a `RankShift` put the gene, else
        null), ``rank`` (place of the perturbed gene in the cell, 0 for the first; null for several genes and for one
        the cell does not express), ``value``, ``before`` (what `value` is the change of: similarity to the state, or
        prediction; null for a similarity), ``exact`` (False where the value is a first-order estimate); then obs
        columns that were asked for, and in the goal's rows ``shams``, what ``value`` is towards each sham goal.
    metadata
        ``measure`` says what a value is: "cosine similarity" before and after (1: did not move), "cosine shift", the
        change in similarity to a state (above 0: moved towards it), or "change of prediction" of a classifier. Also
        ``goal``, ``perturbation``, ``n_cells``, ``gene_names``, and what made the table.

    See Also
    --------
    perturb : Makes it.
    shift_statistics : From values to a table of genes.

    Examples
    --------
    >>> import geneformer_repro as gf
    >>> shifts = gf.ShiftTable.open("shifts.parquet")
    >>> shifts.measure, shifts.metadata["n_cells"], shifts.metadata["goal"]["goal"]
    ('cosine shift', 12, 'CD19+ B')
    >>> shifts.table[["donor", "perturbed", "state", "rank"]].head(3)
        donor        perturbed           state  rank
    0  donor3  ENSG00000090266  CD14+ Monocyte     0
    1  donor3  ENSG00000090266         CD19+ B     0
    2  donor3  ENSG00000087086  CD14+ Monocyte     1
    """

    form = FORM

    def __repr__(self) -> str:
        return f"ShiftTable({len(self):,} values ({self.measure}) of {self.metadata.get('n_cells', '?')} cells)"

    def blocks(self, columns: Sequence[str] | None = None) -> "Iterator[pd.DataFrame]":
        """Yield the rows block by block, in order; of a file one row group at a time is in memory.

        Parameters
        ----------
        columns
            Columns of `COLUMNS` that are wanted; the others are not read, text comes as categories and ``rank`` as
            float, NaN for null. None: all, as in `table`.

        Raises
        ------
        DataFormatError
            The file is damaged; or, of some columns, a row lacks what every row has, or has a rank below 0.

        See Also
        --------
        ShiftTable : Its ``table`` has all rows at once.

        Examples
        --------
        >>> import geneformer_repro as gf
        >>> shifts = gf.ShiftTable.open("shifts.parquet")
        >>> sum(len(block) for block in shifts.blocks(["perturbed", "value"])) == len(shifts)
        True
        """
        yield from self._blocks(columns)

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write one Parquet file; `metadata` goes into its header.

        See Also
        --------
        ShiftTable.open : Open it again.

        Examples
        --------
        >>> import geneformer_repro as gf
        >>> shifts = gf.ShiftTable.open("shifts.parquet")
        >>> towards = gf.ShiftTable(shifts.table[shifts.table["value"] > 0], shifts.metadata)
        >>> towards.save("towards.parquet")
        >>> len(gf.ShiftTable.open("towards.parquet")) == len(towards)
        True
        """
        self._save(Path(path), overwrite=overwrite)

    @classmethod
    def open(cls, path: str | Path) -> "ShiftTable":
        """Open a file written by `save` or `perturb`; its rows are not read yet.

        Raises
        ------
        DataFormatError
            The file is missing or not such a table: no Parquet file, of another format, with columns or metadata that
            are lacking, of another type or at odds, or with more rows than its bytes can hold.

        See Also
        --------
        ShiftTable.save : Write one.

        Examples
        --------
        >>> import geneformer_repro as gf
        >>> gf.ShiftTable.open("shifts.parquet").measure
        'cosine shift'
        >>> gf.ShiftTable.open("cells.h5ad")
        Traceback (most recent call last):
            ...
        geneformer_repro.errors.DataFormatError: cells.h5ad: not a readable Parquet file (Parquet magic bytes not found
        in footer. Either the file is corrupted or this is not a parquet file.). Expected the output of perturb.
        """
        return cls._opened(path)

    @classmethod
    def _require_agreement(cls, metadata: Mapping[str, Any], schema: pa.Schema, path: str | Path) -> None:
        goal, target, measure = metadata["goal"], metadata["target"], metadata["measure"]
        wanted = CHANGE if target else SHIFT if goal else SIMILARITY
        if measure != wanted:
            claimed = f"{'a' if goal else 'no'} goal and {'a' if target else 'no'} target"
            raise DataFormatError(
                f"{path}: its metadata contradict themselves: {measure!r} with {claimed}, where values are {wanted!r}. "
                "Run perturb again."
            )
        of_method = {"first_order": [ESTIMATE], "sampled": [*SAMPLED_COLUMNS]}.get(metadata.get("method", "exact"), [])
        promised = [*metadata.get("obs", []), *of_method, *([SHAMS] if metadata.get(SHAMS) else [])]
        require_promised(promised, schema, path, made_by="perturb")


def agreement_by_state(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Say of each state how estimates correlate with exact values in the cells that were checked: median and range."""
    of_states = (metadata.get("first_order") or {}).get("spearman") or {}
    return {
        state: f"{of_cells['median']:.2f} ({of_cells['lowest']:.2f} to {of_cells['highest']:.2f})"
        for state, of_cells in of_states.items()
        if of_cells["median"] is not None
    }
