"""An explanation of predictions: a value for each cell, gene, method and number explained, in one Parquet file."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from geneformer_repro.in_silico.block_tables import BlockTable, Form, has_form, require_promised

if TYPE_CHECKING:  # what an explanation is can be said without them (info)
    import pandas as pd
    from anndata import AnnData

    from geneformer_repro.tokenizer.dataset import TokenizedDataset

COLUMNS: Mapping[str, pa.DataType] = {
    "cell": pa.string(),
    "donor": pa.string(),
    "gene": pa.string(),
    "place": pa.int32(),
    "method": pa.string(),
    "state": pa.string(),
    "value": pa.float64(),
    "before": pa.float64(),
    "gap": pa.float64(),
    "exact": pa.bool_(),
}
SURROGATE_COLUMNS = ("sd", "r2", "stability")
"""Further columns where one of the methods is "surrogate"; null for the others."""
FORM = Form(
    name="geneformer_repro/explanation/1",
    what="table of an explanation",
    made_by="explain",
    again="explain again",
    columns=COLUMNS,
    never_null=("cell", "method", "exact"),
    not_only_null=("cell", "method", "exact", "value"),
    claims={
        "measure": ("the number explained, in words", has_form(str)),
        "methods": ("settings of each method", has_form({str: {}})),
        "gene_names": ("a name for each gene", has_form({str: str})),
        "n_cells?": ("a number of cells", lambda value: type(value) is int and value >= 0),
        "obs?": ("names of columns", has_form([str])),
        "donor?": ("null, or the name of a column", has_form(str, or_null=True)),
        "how_good?": ("null, or a score beside that of guessing", has_form({}, or_null=True)),
    },
)


class Explanation(BlockTable):
    """Why a model said what it said: how much each gene adds to the number explained, cell by cell, by each method.

    Parameters
    ----------
    source
        The rows, or the Parquet file that holds them. Columns: ``cell`` (its name), ``donor`` (null where none was
        named), ``gene`` (gene id, or the name of a set of genes; null of a character of a SMILES or a cell of a
        patient, which further columns name), ``place`` (of the gene in the cell, 0 for the first; null where there is
        none), ``method``, ``state`` (which number: a class, a state, a target, a drug), ``value`` (how much the gene
        adds, in the unit of the number; of "rollout" and "attention" a share without sign; null where the method has
        none), ``before`` (the number of the unchanged cell), ``gap`` (of integrated gradients the share by which values
        miss the whole difference; else null), ``exact`` (False for what is an approximation of the method). With a
        surrogate ``sd`` (of its weight over draws of masks), ``r2`` (share of held-out answers that it explains) and
        ``stability`` (how alike fits on two halves rank genes): below 0.3, or 0.5, its weights rank nothing. Then
        columns that were asked for.
    metadata
        ``measure`` says in words what number is explained, ``methods`` with which settings. Also ``n_cells``,
        ``gene_names``, ``how_good`` (how well the model predicts these cells, beside guessing), and what made it.

    See Also
    --------
    explain : Makes it.
    ShiftTable : The same of a screen.

    Examples
    --------
    >>> import geneformer_repro as gf
    >>> why = gf.Explanation.open("why.parquet")
    >>> why.methods, why.metadata["n_cells"], why.metadata["states"]
    (('hide', 'gradient_input'), 3, ['CD19+ B'])
    """

    form = FORM

    def __repr__(self) -> str:
        n, what, methods = self.metadata.get("n_cells", "?"), self.rows_are, ", ".join(self.methods)
        return f"Explanation({len(self):,} values ({methods}) of {n} {what}: {self.measure})"

    @property
    def rows_are(self) -> str:
        """What is explained, such as "cells", "samples" or "patients"."""
        return str(self.metadata.get("rows_are", "cells"))

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the methods, in the order in which they were asked for."""
        return tuple(self.metadata["methods"])

    def blocks(self, columns: Sequence[str] | None = None) -> "Iterator[pd.DataFrame]":
        """Yield the rows block by block, in order; of a file one row group at a time is in memory.

        Parameters
        ----------
        columns
            Columns that are wanted; the others are not read, text comes as categories and ``place`` as float, NaN for
            null. None: all, as in `table`.

        Raises
        ------
        DataFormatError
            The file is damaged; or, of some columns, a row lacks what every row has, or has a place below 0.

        See Also
        --------
        Explanation : Its ``table`` has all rows at once.

        Examples
        --------
        >>> import geneformer_repro as gf
        >>> why = gf.Explanation.open("why.parquet")
        >>> sum(len(block) for block in why.blocks(["gene", "value"])) == len(why)
        True
        """
        yield from self._blocks(columns)

    def genes(
        self,
        cells: "TokenizedDataset | None" = None,
        counts: "AnnData | str | Path | None" = None,
        *,
        absolute: bool = False,
    ) -> "pd.DataFrame":
        """Make a table of genes, with donors as replicates; see `gene_table`.

        Parameters
        ----------
        cells
            The tokenised cells, those of the other classes or of the start state among them: adds how detection and
            expression differ, and what they do not predict.
        counts
            Raw counts of `cells`, if not where `tokenize` found them.
        absolute
            Take absolute values: how much a gene moves the number, in whichever direction.

        Returns
        -------
        A row a gene, method and state, by ``gene_id``: ``effect`` with its interval and p-value over donors, beside
        ``n_cells``, ``n_donors``, ``mean_place``, ``detection_rate`` and, with `cells`, how they differ; ``beyond``.

        Raises
        ------
        InputError
            A value is infinite, none is known, or `cells` lacks cells, genes or the column of the classes.

        See Also
        --------
        gene_set_enrichment : From the genes to sets of them.

        Examples
        --------
        >>> import geneformer_repro as gf
        >>> genes = gf.Explanation.open("why.parquet").genes()
        >>> genes.index.name, int(genes["n_donors"].max())
        ('gene_id', 3)
        """
        from geneformer_repro.in_silico.explanations.gene_table import gene_table

        return gene_table(self, cells, counts, absolute=absolute)

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write one Parquet file; `metadata` goes into its header.

        See Also
        --------
        Explanation.open : Open it again.

        Examples
        --------
        >>> import geneformer_repro as gf
        >>> why = gf.Explanation.open("why.parquet")
        >>> hidden = gf.Explanation(why.table[why.table["method"] == "hide"], why.metadata)
        >>> hidden.save("hidden.parquet")
        >>> len(gf.Explanation.open("hidden.parquet")) == len(hidden)
        True
        """
        self._save(Path(path), overwrite=overwrite)

    @classmethod
    def open(cls, path: str | Path) -> "Explanation":
        """Open a file written by `save` or `explain`; its rows are not read yet.

        Raises
        ------
        DataFormatError
            The file is missing or not such a table: no Parquet file, of another format, with columns or metadata that
            are lacking or of another type, or with more rows than its bytes can hold.

        See Also
        --------
        Explanation.save : Write one.

        Examples
        --------
        >>> import geneformer_repro as gf
        >>> gf.Explanation.open("why.parquet").methods
        ('hide', 'gradient_input')
        >>> gf.Explanation.open("shifts.parquet")
        Traceback (most recent call last):
            ...
        geneformer_repro.errors.DataFormatError: shifts.parquet: expected format 'geneformer_repro/explanation/1', found
        'geneformer_repro/shifts/2'. Expected the output of explain; run it again.
        """
        return cls._opened(path)

    @classmethod
    def _require_agreement(cls, metadata: Mapping[str, Any], schema: pa.Schema, path: str | Path) -> None:
        require_promised(metadata.get("obs", []), schema, path, made_by="explain")
