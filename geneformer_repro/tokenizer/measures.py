"""What the numbers of a source are: counts of cells, expression of bulk samples, or z-scores; and how they are ranked.

Expression is what is at least 0 and linear: TPM, RSEM, FPKM, intensities; log2(x + 1) is undone as it is read. Batch
adjustment leaves some log2 values below 0 (0.4 % of TCGA's PanCan Atlas, down to -5.9): these are 0, and counted. What
nobody can know from a file is told by the user, and checked by what cannot be: no sample of a whole transcriptome stays
below 50 where it is linear, and none comes above where it is log2.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from geneformer_repro.errors import DataFormatError, InputError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Values = Literal["counts", "expression", "zscore"]
"""What is ranked; of counts and expression each gene's value is divided by its median."""
Order = Literal["descending", "two_ended"]
"""How ranked genes follow each other: from the top down, or the top and the bottom by turns, the outermost first."""
SHARED_OF: Mapping[Values, str] = {"counts": "counts", "expression": "expression", "zscore": "values"}
"""Of what genes are said to hold a share; of z-scores each finite value counts 1."""
MOST_LOG2 = 50.0
"""No log2 value is above it, and some linear value of every whole sample is."""
LEAST_LOG2 = -10.0
"""Below it a log2 value is no expression that was adjusted, but a code for a missing value, or no log2."""
MOST_BELOW_ZERO = 0.1
"""Share of negative values from which log2 values are ratios, whose 0 is no silence."""
AS_EXPRESSION, AS_ZSCORE, AS_LOG2 = (
    'values="expression" (--values expression)',
    'values="zscore" (--values zscore)',
    "log2=True (--log2)",
)


@dataclass(frozen=True)
class Measure:
    """What the numbers of a source are.

    Parameters
    ----------
    values
        Counts, expression or z-scores.
    log2
        Whether expression is stored as log2(x + 1).

    Raises
    ------
    InputError
        `log2` is asked of what is no expression.
    """

    values: Values = "counts"
    log2: bool = False

    def __post_init__(self) -> None:
        if self.log2 and self.values != "expression":
            raise InputError(
                f"log2=True undoes the logarithm of expression, and values={self.values!r} has none; give "
                f"{AS_EXPRESSION}, or leave it out."
            )

    def __str__(self) -> str:
        """Say it, as for a message."""
        names = {"counts": "raw counts", "expression": "linear expression", "zscore": "z-scores"}
        return "log2(x + 1) of expression" if self.log2 else names[self.values]

    def require(self, stored: "csr_matrix", told: str, cell: Callable[[int], str], gene_ids: Sequence[str]) -> None:
        """Raise if a value of a matrix cannot be one.

        Parameters
        ----------
        stored
            As stored, cells × genes.
        told
            What was said to hold the values, such as a layer of a file.
        cell
            Gives the name of a row.
        gene_ids
            Of the columns.

        Raises
        ------
        DataFormatError
            Names the first such value with its cell and gene, and says what to do.
        """
        first = self._first_wrong(stored.data)
        if first >= 0:
            raise DataFormatError(
                f"{told} was said to hold {self}, but there is a value that is none "
                f"({first_of(stored, first, cell, gene_ids)}). {self._advice(stored.data[first])}"
            )

    def require_likely(self, stored: "csr_matrix", told: str) -> None:
        """Raise `DataFormatError` if some whole samples are no such values, though each could be one."""
        if why := self._why_unlikely(stored):
            raise DataFormatError(f"{told} was said to hold {self}, but {why}")

    def _first_wrong(self, stored: np.ndarray) -> int:
        """Return the index of the first value that cannot be one; -1 if there is none, as for counts."""
        if self.values == "counts":
            from geneformer_repro.tokenizer.matrices import first_not_a_count  # brings AnnData

            return int(first_not_a_count(stored))
        if self.values == "zscore":
            wrong = np.isinf(stored)
        elif self.log2:
            wrong = ~((stored >= LEAST_LOG2) & (stored <= MOST_LOG2))
        else:
            wrong = ~((stored >= 0) & (stored < np.inf))
        first = int(wrong.argmax()) if len(wrong) else 0
        return first if len(wrong) and wrong[first] else -1

    def _advice(self, value: float) -> str:
        """Say what to do about a value that cannot be one."""
        if self.values == "zscore":
            return "A gene that does not vary has no z-score: write NaN there, and it is left out of that sample."
        if not np.isfinite(value):
            return "Fill in or take out what is missing; only z-scores may have gaps (NaN)."
        if value < 0:
            told = f"No log2(x + 1) is below {LEAST_LOG2:g}." if self.log2 else "Expression is at least 0."
            hint = "" if self.log2 else f"; of log2 values, some of which adjustment left below 0, give {AS_LOG2}"
            return f"{told} Log ratios and z-scores are ranked with {AS_ZSCORE}{hint}."
        if self.values == "counts":
            return f"Of TPM, RSEM or FPKM give {AS_EXPRESSION}."
        return f"2 to that power is no expression: the values are linear. Leave {AS_LOG2} out."

    def _why_unlikely(self, stored: "csr_matrix") -> str | None:
        """Say why some whole samples are not what they are said to be, and what to do; None if they may be."""
        values = stored.data[np.isfinite(stored.data)]
        if not len(values):
            return None
        share_below = float((values < 0).sum() / max(1, np.prod(stored.shape)))
        if self.values == "zscore":
            if share_below == 0:
                return (
                    "none of its values is negative, so these are no z-scores and no log ratios. Of expression give "
                    f"{AS_EXPRESSION}."
                )
            return None
        whole, highest = bool((values == np.floor(values)).all()), float(values.max())
        if self.log2 and share_below > MOST_BELOW_ZERO:
            return (
                f"{share_below:.0%} of its values are negative: log ratios to a reference, or z-scores, whose 0 is no "
                f"silence. Rank them with {AS_ZSCORE}."
            )
        if self.log2 and whole:
            return f"all of its values are whole numbers, as of counts and not of log2(x + 1). Leave {AS_LOG2} out."
        if not self.log2 and not whole and highest <= MOST_LOG2:
            return (
                f"none of its values is above {highest:.3g}, as of logarithms and not of linear expression. Of "
                f"log2(x + 1) give {AS_LOG2}; natural logarithms (log1p) undo first, with numpy.expm1. If it is linear "
                "all the same, multiply it by 1,000, which changes no token."
            )
        return None

    def linear(self, stored: "csr_matrix") -> "tuple[csr_matrix, int]":
        """Undo the logarithm where there is one; return also how many values were below 0, and are 0 now."""
        if not self.log2:
            return stored, 0
        from geneformer_repro.tokenizer.matrices import canonical

        linear = stored.copy()
        linear.data = np.where(stored.data < 0, 0.0, np.exp2(stored.data) - 1)
        return canonical(linear), int((stored.data < 0).sum())


COUNTS = Measure()


def first_of(stored: "csr_matrix", entry: int, cell: Callable[[int], str], gene_ids: Sequence[str]) -> str:
    """Name the cell and gene of a stored value, and the value, for a message; arguments as for `Measure.require`."""
    row = int(np.searchsorted(stored.indptr, entry, side="right")) - 1
    return f"first: cell {cell(row)!r}, gene {gene_ids[stored.indices[entry]]!r}, {stored.data[entry]:g}"


def n_values(zscores: "csr_matrix") -> np.ndarray:
    """Return how many samples have a value of each gene, float64: what is not stored is 0, which is one."""
    missing = zscores.indices[np.isnan(zscores.data)]
    return zscores.shape[0] - np.bincount(missing, minlength=zscores.shape[1]).astype(np.float64)
