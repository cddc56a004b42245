"""Where the cells of patients come from: tokenised ones with an encoder, or an AnnData with vectors; one face for both.

Both give obs columns, names, vectors and expression; tokens are embedded once a run, since the encoder does not learn.
"""

import hashlib
import logging
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from geneformer_repro.checkpoint import Checkpoint
from geneformer_repro.embedding import embed
from geneformer_repro.errors import InputError
from geneformer_repro.finetuning.methods import kept
from geneformer_repro.finetuning.problems.patients import PatientProblem
from geneformer_repro.tokenizer.counts import counts_of, raw_counts
from geneformer_repro.tokenizer.dataset import TokenizedDataset
from geneformer_repro.tokenizer.matrices import as_csr, first_not_a_count
from geneformer_repro.tokenizer.readers import open_counts

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)


class PatientCells(ABC):
    """Cells, of which a `PatientProblem` takes those that it needs."""

    obs: pd.DataFrame
    names: np.ndarray
    usable: np.ndarray
    """Which cells may have a vector."""

    @abstractmethod
    def fingerprints(self, problem: PatientProblem) -> dict[str, str | None]:
        """Return digests of all that decides the vectors."""

    @abstractmethod
    def vectors(self, problem: PatientProblem, work: Path | None) -> np.ndarray:
        """Return the vectors of the problem's cells; what an earlier call kept in `work` is not made again."""

    @abstractmethod
    def expression(
        self, problem: PatientProblem, counts: "AnnData | str | Path | None"
    ) -> tuple[csr_matrix, bool] | None:
        """Return the expression of the problem's cells, and whether it is counts; None where there is none at hand."""

    @abstractmethod
    def require_unseen(self, problem: PatientProblem, tested: np.ndarray) -> None:
        """Raise if what made the vectors is known to have learned from cells of a tested patient."""


class TokenisedCells(PatientCells):
    """Cells whose vectors the frozen encoder of a checkpoint makes."""

    def __init__(self, checkpoint: Checkpoint, cells: TokenizedDataset) -> None:
        checkpoint.require_matching(cells)
        self._checkpoint, self._cells = checkpoint, cells
        self.obs, self.names, self.usable = cells.obs, cells.cell_names, cells.has_gene

    def fingerprints(self, problem: PatientProblem) -> dict[str, str | None]:
        """Return those of cells and checkpoint."""
        return {"cells": self._cells.fingerprint, "checkpoint": self._checkpoint.fingerprint}

    def vectors(self, problem: PatientProblem, work: Path | None) -> np.ndarray:
        """Embed the cells."""
        cells = self._cells.select(problem.cell_rows)

        def embedded() -> np.ndarray:
            return np.asarray(embed(self._checkpoint, cells).X)

        return embedded() if work is None else cast(np.ndarray, kept(work / "vectors.npy", embedded, by_all=True))

    def expression(
        self, problem: PatientProblem, counts: "AnnData | str | Path | None"
    ) -> tuple[csr_matrix, bool] | None:
        """Read the raw counts where they were tokenised from, or are said to be."""
        found = raw_counts(self._cells.select(problem.cell_rows), counts)
        return None if found is None else (found, True)

    def require_unseen(self, problem: PatientProblem, tested: np.ndarray) -> None:
        """Compare the tokens of the cells with those that the checkpoint has seen."""
        if self._checkpoint.seen is None:
            return
        for patient in tested:
            cells = self._cells.select(problem.cell_rows[problem.bags.cells_of(np.array([patient]))])
            n_seen = int(np.isin(cells.digests(), self._checkpoint.seen).sum())
            if n_seen:
                raise InputError(
                    f"{n_seen} of {len(cells)} cells of test patient {problem.patients[patient]!r} are among the cells "
                    f"that {self._checkpoint.name} was pretrained on. Pretrain without them, report other patients "
                    "(split.split_file), or accept it: split.allow_seen=true."
                )


class CellsWithVectors(PatientCells):
    """Cells of an AnnData that has their vectors, whoever made them."""

    def __init__(self, cells: "AnnData | str | Path", key: str) -> None:
        adata = _opened(cells)
        self._adata, self._key, self._name = adata, key, "AnnData" if cells is adata else str(cells)
        self.obs, self.names = adata.obs, adata.obs_names.to_numpy(dtype=object)
        self.usable = np.ones(adata.n_obs, dtype=bool)
        if key not in adata.obsm:
            there = ", ".join(map(repr, adata.obsm))
            raise InputError(
                f"{self._name}: obsm has no {key!r}; it has "
                + (f"{there}. Name one of these with vectors=." if there else "nothing. Give cells that were embedded.")
            )
        self._vectors = np.asarray(adata.obsm[key], dtype=np.float32)
        if self._vectors.ndim != 2:
            raise InputError(
                f"{self._name}: obsm[{key!r}] should hold a row a cell, found shape {self._vectors.shape}."
            )

    def _of(self, problem: PatientProblem) -> np.ndarray:
        vectors = self._vectors[problem.cell_rows]
        wrong = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(wrong):
            patient = problem.patients[np.searchsorted(np.cumsum(problem.bags.lengths), wrong[0], side="right")]
            raise InputError(
                f"{self._name}: obsm[{self._key!r}] is not finite for {len(wrong)} of {len(vectors)} cells (first: "
                f"{problem.cell_names[wrong[0]]!r} of patient {patient!r}). Leave these out, or give them vectors."
            )
        return vectors

    def fingerprints(self, problem: PatientProblem) -> dict[str, str | None]:
        """Return that of the vectors' content."""
        return {"vectors": hashlib.sha256(self._of(problem).tobytes()).hexdigest()}

    def vectors(self, problem: PatientProblem, work: Path | None) -> np.ndarray:
        """Take the cells' rows."""
        return self._of(problem)

    def expression(
        self, problem: PatientProblem, counts: "AnnData | str | Path | None"
    ) -> tuple[csr_matrix, bool] | None:
        """Take `counts`, or X whatever it holds."""
        if counts is not None:
            return counts_of(open_counts(counts), problem.cell_names), True
        if self._adata.X is None:
            logger.warning("%s: X is absent, so there is no pseudobulk; give counts=.", self._name)
            return None
        expression = as_csr(self._adata.X[problem.cell_rows])
        if not np.isfinite(expression.data).all():
            raise InputError(f"{self._name}: X holds values that are not finite; fill them, or give counts=.")
        are_counts = bool(first_not_a_count(expression.data) < 0)
        if not are_counts:
            logger.info("%s: X holds no raw counts; the pseudobulk is the mean over a patient's cells.", self._name)
        return expression, are_counts

    def require_unseen(self, problem: PatientProblem, tested: np.ndarray) -> None:
        """Nothing is known of what made them."""


def _opened(cells: "AnnData | str | Path") -> Any:
    if not isinstance(cells, str | Path):
        return cells
    import anndata

    path = Path(cells)
    if path.suffix != ".h5ad" or not path.is_file():
        raise InputError(
            f"{path}: is no .h5ad file. Cells with vectors are an AnnData or an .h5ad; open tokenised ones with "
            "TokenizedDataset.open and give a checkpoint."
        )
    return anndata.read_h5ad(path)


def patient_cells(
    checkpoint: Checkpoint | None, cells: "TokenizedDataset | AnnData | str | Path", vectors: str | None
) -> PatientCells:
    """Open cells as what they are.

    Parameters
    ----------
    checkpoint
        For tokenised cells.
    cells
        Tokenised, or with vectors in ``obsm``.
    vectors
        The key of ``obsm``.

    Raises
    ------
    InputError
        Cells, checkpoint and key do not fit together.
    """
    if isinstance(cells, TokenizedDataset):
        if checkpoint is None or vectors is not None:
            raise InputError(
                f"Tokenised cells get their vectors from a checkpoint; found checkpoint={checkpoint} and "
                f"vectors={vectors!r}. Give a checkpoint and leave vectors out."
            )
        return TokenisedCells(checkpoint, cells)
    if checkpoint is not None or vectors is None:
        raise InputError(
            f"Cells of an AnnData have their vectors in obsm; found vectors={vectors!r}"
            f"{'' if checkpoint is None else ' and a checkpoint, which needs tokenised cells'}. Name the key with "
            "vectors=, without a checkpoint; or tokenise the cells."
        )
    return CellsWithVectors(cells, vectors)
