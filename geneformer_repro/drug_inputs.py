"""What a network reads of drugs, fitted on training drugs alone and kept with its weights.

Characters of SMILES, a fingerprint, descriptors, which of the training drugs it is, or vectors that somebody computed.
Characters are numbered and columns standardised by the training drugs: a character that none of them has is the
unknown one, a column that never varied counts for nothing, a value that is missing is the mean.

Shapes: D drugs, T positions of a SMILES, F columns.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
import pandas as pd

from geneformer_repro.drugs import Drugs, SmilesVocabulary
from geneformer_repro.errors import InputError
from geneformer_repro.expression import factors, moments
from geneformer_repro.files import misfit
from geneformer_repro.network_settings import DrugInput

logger = logging.getLogger(__name__)

_CLIP = 10.0
"""Spreads from the mean at which a descriptor ends; some, such as Ipc, range over sixty powers of ten."""
_NEEDED_BY = {"smiles": "characters of SMILES", "fingerprint": "fingerprints"}
_STANDARDISED = ("descriptors", "mordred", "vectors")


@dataclass(frozen=True, eq=False)
class DrugScale:
    """Which of the inputs a network reads, and what is usual of it among its training drugs."""

    kind: DrugInput
    characters: SmilesVocabulary | None = None
    """Of "smiles"."""
    n_positions: int = 0
    """Of "smiles": characters that are read; the longest training SMILES, or more."""
    names: tuple[str, ...] = ()
    """Columns of "descriptors", "mordred" and "vectors"; of "one_hot" the keys of the training drugs."""
    n_bits: int = 0
    """Of "fingerprint"."""
    mean_F: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    """Of the columns of "descriptors", "mordred" and "vectors", float32."""
    factor_F: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    """One over their spread, 0 of one that never varies; float32."""

    @classmethod
    def fit(
        cls,
        drugs: Drugs,
        kind: DrugInput,
        *,
        vectors: pd.DataFrame | None = None,
        n_bits: int = 2048,
        at_least: int = 1,
    ) -> "DrugScale":
        """Learn characters, columns and their spread from training drugs.

        Parameters
        ----------
        drugs
            The training drugs, no others.
        kind
            What is read of them.
        vectors
            Of "vectors": a row a drug, by its name or its key; columns of numbers.
        n_bits
            Of "fingerprint".
        at_least
            Of "smiles": positions that are read even if no SMILES is so long.

        Raises
        ------
        InputError
            A drug has no SMILES, or no row in `vectors`; or no column varies.
        """
        match kind:
            case "smiles":
                smiles = drugs.structures(_NEEDED_BY[kind])
                return cls(kind, SmilesVocabulary.fit(smiles), max(at_least, *map(len, smiles)))
            case "fingerprint":
                drugs.structures(_NEEDED_BY[kind])
                return cls(kind, n_bits=n_bits)
            case "one_hot":
                return cls(kind, names=tuple(sorted(set(drugs.keys))))
            case "none":
                return cls(kind)
        table = _described(drugs, kind, vectors)
        mean_F, spread_F = moments(table.to_numpy(dtype=np.float64), _CLIP)
        if not (spread_F > 0).any():
            raise InputError(f"None of the {len(spread_F)} {kind} of {len(drugs)} training drugs varies.")
        names = tuple(map(str, table.columns))
        return cls(kind, names=names, mean_F=mean_F.astype(np.float32), factor_F=factors(spread_F))

    @property
    def width(self) -> int:
        """Columns of what it makes of a drug; positions of a SMILES."""
        return {"smiles": self.n_positions, "fingerprint": self.n_bits}.get(self.kind, len(self.names))

    def __call__(self, drugs: Drugs, vectors: pd.DataFrame | None = None) -> np.ndarray:
        """Return drugs as the network takes them: ids of characters (D, T) int64, 0 after the end; or (D, F) float32.

        Raises
        ------
        InputError
            A drug has no SMILES, no row in `vectors`, or these lack a column.
        """
        match self.kind:
            case "smiles":
                return self._encoded(drugs.structures(_NEEDED_BY[self.kind]))
            case "fingerprint":
                return drugs.fingerprints(n_bits=self.n_bits)
            case "one_hot":
                return np.asarray(np.array(drugs.keys)[:, None] == np.array(self.names)[None], dtype=np.float32)
            case "none":
                return np.zeros((len(drugs), 0), dtype=np.float32)
        table = _described(drugs, self.kind, vectors)
        if lacking := [name for name in self.names if name not in table]:
            raise InputError(
                f"The network reads {len(lacking)} {self.kind} that are not there (first: {lacking[0]!r}). Give the "
                "columns that it was trained on."
            )
        values_DF = table[list(self.names)].to_numpy(dtype=np.float32)
        scaled_DF = np.clip((values_DF - self.mean_F) * self.factor_F, -_CLIP, _CLIP)
        return np.nan_to_num(scaled_DF, nan=0.0)

    def _encoded(self, smiles: list[str]) -> np.ndarray:
        assert self.characters is not None
        n_cut = sum(len(text) > self.n_positions for text in smiles)
        if n_cut:
            logger.warning(
                "%d of %d SMILES are longer than the %d characters that the network reads; cut.",
                n_cut, len(smiles), self.n_positions,
            )  # fmt: skip
        return self.characters.encode(smiles, self.n_positions)

    def to_json(self) -> dict[str, Any]:
        """Return all but the numbers of columns."""
        characters = None if self.characters is None else self.characters.to_json()
        return {
            "kind": self.kind,
            "characters": characters,
            "n_positions": self.n_positions,
            "names": list(self.names),
            "n_bits": self.n_bits,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any], mean_F: np.ndarray, factor_F: np.ndarray) -> "DrugScale":
        """Make the scale of which `to_json` told.

        Raises
        ------
        InputError
            It is damaged.
        """
        if wrong := misfit(content, {"kind": str, "n_positions": int, "names": [str], "n_bits": int}):
            raise InputError(wrong)
        kind, of = content["kind"], content["characters"]
        n_columns = len(content["names"]) if kind in _STANDARDISED else 0
        if kind not in get_args(DrugInput) or (of is None) == (kind == "smiles") or n_columns != len(mean_F):
            raise InputError(f"drugs of kind {kind!r} with {len(mean_F)} columns and characters {of!r}")
        characters = None if of is None else SmilesVocabulary.from_json(of)
        names = tuple(content["names"])
        return cls(kind, characters, content["n_positions"], names, content["n_bits"], mean_F, factor_F)


def _described(drugs: Drugs, kind: str, vectors: pd.DataFrame | None) -> pd.DataFrame:
    """Return the columns of descriptors or vectors, a row a drug."""
    if kind in ("descriptors", "mordred"):
        return drugs.descriptors("rdkit" if kind == "descriptors" else "mordred")
    if vectors is None:
        raise InputError('network.drug_input="vectors" needs a table of vectors, a row a drug.')
    rows = [name if name in vectors.index else key for name, key in zip(drugs.names, drugs.keys, strict=True)]
    if lacking := [name for name, row in zip(drugs.names, rows, strict=True) if row not in vectors.index]:
        raise InputError(
            f"{len(lacking)} drugs have no vector (first: {lacking[0]!r}). Add their rows, or leave them out."
        )
    return vectors.loc[rows].rename(columns=str)
