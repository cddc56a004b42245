"""Tokenised cells: an Arrow dataset that `datasets.load_from_disk` opens, with what made it beside it.

The Arrow files are mapped, not read, so opening a dataset takes no memory that grows with the number of cells.
"""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa

from geneformer_repro.arguments import typed
from geneformer_repro.errors import DataFormatError, InputError, counted, did_you_mean, listed
from geneformer_repro.files import new_directory
from geneformer_repro.tokenizer.folder import read_folder, write_folder
from geneformer_repro.tokenizer.labels import labels_and_messages
from geneformer_repro.tokenizer.published import read_published
from geneformer_repro.tokenizer.rows import CELLS_AT_ONCE, cut, lengths_of, require_room, with_column
from geneformer_repro.tokenizer.summary import CELL, INPUT_IDS, LENGTH, OWN_COLUMNS, SOURCE, digests_of, in_lines
from geneformer_repro.tokenizer.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

_SHOWN_CELLS = 5
_OF_ALL_CELLS = ("n_cropped", "within_max_length", "n_below_zero", "left_out")


@dataclass(frozen=True, eq=False)
class TokenizedDataset:
    """Cells as token ids, most distinctive gene first; made by `tokenize` or `TokenizedDataset.open`.

    Parameters
    ----------
    table
        One row a cell: ``input_ids``, ``length``, ``cell`` (its name) and ``obs`` columns.
    vocabulary
        What the tokens mean.
    spec
        Format version, sources, how many genes and cells were known; the content of ``spec.json``.

    See Also
    --------
    tokenize : Makes one from counts.
    TokenizedDataset.open : Opens one, or cells that the published package tokenised.

    Examples
    --------
    >>> import geneformer_repro as gf
    >>> cells = gf.TokenizedDataset.open("cells.tok")
    >>> len(cells), cells.obs_columns
    (700, ['cell_type', 'phase', 'donor', 'n_counts'])
    >>> cells[0][:5]  # token ids of the first cell: <cls>, then its most distinctive gene
    array([  2, 333,  86, 491, 138])
    >>> cells.lengths[:3]
    array([218, 233, 262], dtype=int32)
    >>> cells.obs[["cell_type", "donor"]].head(3)
                           cell_type   donor
    AAAGCCTGGCTAAC-1  CD14+ Monocyte  donor1
    AAATTCGATGCACA-1       Dendritic  donor2
    AACACGTGGTCTTT-1        CD56+ NK  donor3
    """

    table: datasets.Dataset
    vocabulary: Vocabulary
    spec: dict[str, Any]

    def __len__(self) -> int:
        return len(self.table)

    def __repr__(self) -> str:
        return (
            f"TokenizedDataset({len(self):,} cells, {listed(self.obs_columns) or 'no obs columns'}, "
            f"{self.vocabulary!r}{self._failed})"
        )

    @property
    def _failed(self) -> str:
        n = len(self.spec["failed"])
        return f", {counted(n, 'source')} left out" if n else ""

    def __getitem__(self, i: int) -> np.ndarray:
        """Token ids of cell `i`, as int64."""
        return self._arrow[int(i)].column(0).chunk(0).flatten().to_numpy().astype(np.int64)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[i] for i in range(len(self)))

    @cached_property
    def _arrow(self) -> datasets.Dataset:
        """The token ids as Arrow, which gives a row in 0.06 ms; as NumPy arrays it takes 0.16 ms."""
        return self.table.with_format("arrow", columns=[INPUT_IDS])

    @cached_property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each cell, special tokens included."""
        return self._column(LENGTH).to_numpy()

    @property
    def has_gene(self) -> np.ndarray:
        """Whether each cell has a gene, and not its special tokens alone; such cells come with published datasets."""
        return self.lengths > 2 * self.vocabulary.has_cls

    @cached_property
    def cell_names(self) -> np.ndarray:
        """Name of each cell, as in its source's ``obs_names``; ``SOURCE/NAME`` where sources share names."""
        names = self._column(CELL)
        return (names if self.spec["cell_names_unique"] else self._column(SOURCE) + "/" + names).to_numpy()

    @property
    def obs_columns(self) -> list[str]:
        """The ``obs`` columns that were carried along."""
        return [name for name in self.table.column_names if name not in OWN_COLUMNS]

    @property
    def obs(self) -> pd.DataFrame:
        """The carried ``obs`` columns, indexed by cell name."""
        index, names = pd.Index(self.cell_names, name=None), self.obs_columns
        return self._columns(names).set_axis(index) if names else pd.DataFrame(index=index)

    def _column(self, name: str) -> pd.Series:
        return self._columns([name])[name]

    def _columns(self, names: list[str]) -> pd.DataFrame:
        """Return columns at once: `datasets` copies all that it knows of a table whenever some are chosen, 1 ms."""
        found = self.table.select_columns(names).to_pandas()
        schema = self.table.data.schema
        has_gaps = [name for name in names if found[name].dtype == object and schema.field(name).type == pa.bool_()]
        return found.astype(dict.fromkeys(has_gaps, "boolean")) if has_gaps else found  # AnnData writes no objects

    def require_obs(self, name: str) -> pd.Series:
        """Return an ``obs`` column.

        Raises
        ------
        InputError
            There is none of that name; shows the nearest.

        See Also
        --------
        TokenizedDataset.labels : The column as names of classes.

        Examples
        --------
        >>> import geneformer_repro as gf
        >>> cells = gf.TokenizedDataset.open("cells.tok")
        >>> cells.require_obs("n_counts").head(2)
        AAAGCCTGGCTAAC-1    2557.0
        AAATTCGATGCACA-1    2695.0
        Name: n_counts, dtype: float64
        >>> cells.require_obs("celltype")
        Traceback (most recent call last):
            ...
        geneformer_repro.errors.InputError: The dataset has no obs column 'celltype'. Did you mean 'cell_type'? Columns
        are carried along with tokenize(obs=[…]).
        """
        if name not in self.obs_columns:
            raise InputError(
                f"The dataset has no obs column {name!r}. {did_you_mean(name, self.obs_columns)} Columns are "
                f"carried along with tokenize(obs=[…])."
            )
        return self._column(name).set_axis(pd.Index(self.cell_names, name=None))

    def labels(self, name: str) -> pd.Series:
        """Return an ``obs`` column as names of classes, by `as_labels`; as `require_obs` where there is none.

        See Also
        --------
        TokenizedDataset.require_obs : The column as it is.

        Examples
        --------
        >>> import geneformer_repro as gf
        >>> cells = gf.TokenizedDataset.open("cells.tok")
        >>> cells.labels("cell_type").value_counts().head(3)
        cell_type
        Dendritic         240
        CD14+ Monocyte    129
        CD19+ B            95
        Name: count, dtype: int64
        """
        labels, messages = labels_and_messages(self.require_obs(name))
        if name not in self._spoken_of:
            self._spoken_of.add(name)
            for line in messages:
                logger.info(line)
        return labels

    @cached_property
    def _spoken_of(self) -> set[str]:
        """Columns of whose labels the log has said what is missing: once is enough."""
        return set()

    def summary(self) -> str:
        """Say what the dataset is, in lines of text: cells, lengths, genes, sources, what was left out.

        See Also
        --------
        TokenizedDataset : Its ``spec`` has the same and more, for programs.

        Examples
        --------
        >>> import geneformer_repro as gf
        >>> print(gf.TokenizedDataset.open("cells.tok").summary())
        700 cells of 185 to 411 tokens, 250 on average
             185 ███████                                  45
             213 ████████████████████████████████████████ 268
             241 ██████████████████████████████████       227
             270 ████████████████                         109
             298 █████                                    35
             326 █                                        9
             355 █                                        6
             383                                          1
        0 cells (0.0%) were cut to 4,096 tokens
        100.0% of the counts are in known genes: 754 kept (100.0%), 0 mapped (0.0%), 0 collapsed (0.0%), 0 unknown
        (0.0%); genes.tsv names them
        obs columns: cell_type, phase, donor, n_counts
        Vocabulary(754 genes, <pad>, <mask>, <cls>, <eos>, max_length=4096, ...)
        source cells.h5ad: 700 of 700 cells, 754 of 754 genes known (100.0% of counts), X, ids from index
        """
        return in_lines(self.lengths, self.spec, self.vocabulary, self.obs_columns)

    def select(self, rows: Sequence[int] | np.ndarray) -> "TokenizedDataset":
        """Return the cells with these row numbers, in this order.

        See Also
        --------
        TokenizedDataset.save : Keep a selection.

        Examples
        --------
        >>> import numpy as np
        >>> import geneformer_repro as gf
        >>> cells = gf.TokenizedDataset.open("cells.tok")
        >>> monocytes = cells.select(np.flatnonzero(cells.labels("cell_type") == "CD14+ Monocyte"))
        >>> len(cells), len(monocytes)
        (700, 129)
        """
        rows = np.asarray(rows, dtype=np.int64)
        digest = hashlib.sha256(self.fingerprint.encode() + rows.tobytes()).hexdigest()
        spec = {name: value for name, value in self.spec.items() if name not in _OF_ALL_CELLS}
        spec |= {"fingerprint": digest, "n_cells": len(rows)}
        return replace(self, table=self.table.select(rows), spec=spec)

    def genes(self, i: int) -> list[str]:
        """Gene ids of cell `i`, most distinctive first, without special tokens.

        See Also
        --------
        Vocabulary.genes_of : Of any tokens.

        Examples
        --------
        >>> import geneformer_repro as gf
        >>> cells = gf.TokenizedDataset.open("cells.tok")
        >>> cells.genes(0)[:3]
        ['ENSG00000133246', 'ENSG00000087086', 'ENSG00000163131']
        """
        positions = self.vocabulary.genes_of(self[i])
        return [self.vocabulary.gene_ids[gene] for gene in positions[positions >= 0]]

    def digests(self) -> np.ndarray:
        """64-bit digest of each cell's tokens (uint64): equal for a cell tokenised twice, whatever its name.

        See Also
        --------
        Checkpoint : Knows by them which cells it has seen.

        Examples
        --------
        >>> import geneformer_repro as gf
        >>> cells = gf.TokenizedDataset.open("cells.tok")
        >>> digests = cells.digests()
        >>> digests.dtype, len(digests)
        (dtype('uint64'), 700)
        >>> bool(cells.select([3, 2]).digests()[0] == digests[3])
        True
        """
        blocks = (self._arrow[start : start + CELLS_AT_ONCE] for start in range(0, len(self), CELLS_AT_ONCE))
        of_blocks = [digests_of(block.column(0).combine_chunks()) for block in blocks]
        return np.concatenate([np.empty(0, dtype=np.uint64), *of_blocks])

    @property
    def fingerprint(self) -> str:
        """Digest of the vocabulary and of every row: tokens, name, obs columns."""
        return str(self.spec["fingerprint"])

    @classmethod
    @typed
    def open(
        cls, path: str | Path, vocabulary: Vocabulary | None = None, *, max_length: int | None = None
    ) -> "TokenizedDataset":
        """Open a dataset of this package, or one of the published tokenizer.

        Parameters
        ----------
        path
            A folder written by `tokenize` or `save`; or, with `vocabulary`, a ``.dataset`` folder or a Parquet file
            with ``input_ids``. Their cells are named by ``cell``, ``unique_cell_id`` or ``cell_id``, else by row
            number; names that do not tell them apart get it before them. Padding is stripped, codes of a ClassLabel
            become its names, columns of lists or structures are left out; the log says so.
        vocabulary
            What the tokens of a published dataset mean. With one of ours it must be the dataset's own.
        max_length
            Cut longer cells to so many tokens, ``<eos>`` kept; what is cut is in memory. Default none: cells that are
            longer than the vocabulary's ``max_length`` are refused.

        Raises
        ------
        InputError
            The path is neither, or a published dataset comes without a vocabulary.
        DataFormatError
            A token is not in the vocabulary, a gene stands twice in a cell, or a length does not fit. Of a dataset of
            ours with more than a quarter billion tokens only as many are looked at, evenly spread.
        VocabularyMismatchError
            The vocabulary given is not the dataset's.

        See Also
        --------
        tokenize : Makes a dataset from counts.
        TokenizedDataset.save : Writes one.

        Examples
        --------
        >>> import geneformer_repro as gf
        >>> cells = gf.TokenizedDataset.open("cells.tok")
        >>> int(cells.lengths.max())
        411
        >>> shorter = gf.TokenizedDataset.open("cells.tok", max_length=128)
        >>> int(shorter.lengths.max()), shorter.spec["n_cropped"]
        (128, 700)
        """
        path = Path(path)
        if not path.exists():
            raise InputError(
                f"{path}: no such dataset. Expected a folder written by tokenize, or a .dataset folder or Parquet "
                f"file of the published tokenizer."
            )
        is_ours = (path / "spec.json").exists()
        if vocabulary is None and not is_ours:
            raise InputError(
                f"{path}: not written by this package (no spec.json), so its tokens need a vocabulary: "
                f"TokenizedDataset.open(path, vocabulary) (--vocabulary)."
            )
        if vocabulary is not None and max_length is not None:
            require_room(vocabulary, max_length)
        if is_ours:
            table, vocabulary, spec = read_folder(path, vocabulary)
        else:
            assert vocabulary is not None
            table, spec = read_published(path, vocabulary, may_be_long=max_length is not None)
        cells = cls(table, vocabulary, spec)
        if max_length is not None:
            cells = cells._cut(max_length)
        _name_empty(path, cells)
        return cells

    def _cut(self, max_length: int) -> "TokenizedDataset":
        require_room(self.vocabulary, max_length)
        n_cut = int((self.lengths > max_length).sum())
        if not n_cut:
            return self
        tokens = cut(self.table.data.column(INPUT_IDS), max_length, keep_last=self.vocabulary.has_cls)
        table = with_column(self.table, INPUT_IDS, tokens)
        lengths = self.table.data.column(LENGTH).type
        table = with_column(table, LENGTH, pa.array(lengths_of(tokens), lengths))
        digest = hashlib.sha256(f"{self.fingerprint} {max_length}".encode()).hexdigest()
        logger.info("%d of %d cells are cut to %d tokens.", n_cut, len(self), max_length)
        spec = {name: value for name, value in self.spec.items() if name != "within_max_length"}
        return replace(
            self, table=table, spec=spec | {"fingerprint": digest, "max_length": max_length, "n_cropped": n_cut}
        )

    @typed
    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the cells into the new folder `path`, from which `open` gives them back.

        So a selection can be kept, and a published dataset becomes one that brings its vocabulary.

        Parameters
        ----------
        path
            Folder to write; format in ``docs/formats.md``.
        overwrite
            Replace a dataset that stands there.

        Raises
        ------
        FileExistsError
            `path` exists, and may not be replaced or is no dataset of this package.

        See Also
        --------
        TokenizedDataset.open : Open it again.
        TokenizedDataset.select : Choose cells.

        Examples
        --------
        >>> import geneformer_repro as gf
        >>> cells = gf.TokenizedDataset.open("cells.tok")
        >>> cells.select(range(100)).save("first100.tok")
        >>> len(gf.TokenizedDataset.open("first100.tok"))
        100
        """
        with new_directory(path, marker="spec.json", overwrite=overwrite) as folder:
            write_folder(folder, self.table, self.vocabulary, self.spec)


def _name_empty(path: Path, cells: TokenizedDataset) -> None:
    empty = np.flatnonzero(~cells.has_gene)
    if len(empty) and len(empty) == len(cells):
        raise DataFormatError(f"{path}: none of its {len(cells)} cells has a gene.")
    if len(empty):
        shown = listed((repr(str(cell)) for cell in cells.cell_names[empty]), most=_SHOWN_CELLS)
        logger.warning(
            "%s: %d of %d cells have no gene (%s). They are kept, and left out of what needs genes.",
            path,
            len(empty),
            len(cells),
            shown,
        )
