"""Sets of genes whose values are changed at once, of networks that read values.

Shapes: U sets, G genes.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import geneformer_repro.processes as processes
from geneformer_repro.errors import InputError
from geneformer_repro.in_silico.explanations.gene_sets import read_gene_sets
from geneformer_repro.in_silico.explanations.request import GeneSetsGiven
from geneformer_repro.in_silico.explanations.surrogate import MOST_UNITS
from geneformer_repro.tokenizer.genes import gene_ids_of
from geneformer_repro.tokenizer.vocabulary import Vocabulary

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ValueSets:
    """Sets of genes of a network that reads values."""

    names: tuple[str, ...]
    has_UG: np.ndarray
    """Which genes each has."""
    described: Mapping[str, Any]

    @classmethod
    def read(cls, sets: GeneSetsGiven, vocabulary: Vocabulary) -> "ValueSets":
        """Find the genes of sets among those of a network; sets without any are left out, and counted in the log."""
        read = read_gene_sets(sets)
        ids = gene_ids_of(list(dict.fromkeys(gene for of in read.members.values() for gene in of)), vocabulary)
        number = {gene: i for i, gene in enumerate(vocabulary.gene_ids)}
        has_UG = np.zeros((len(read.members), len(number)), dtype=bool)
        for row, of in zip(has_UG, read.members.values(), strict=True):
            row[[number[ids[gene]] for gene in of if ids[gene]]] = True
        there: np.ndarray = np.asarray(has_UG.any(axis=1))
        unknown = [gene for gene, found in ids.items() if not found]
        if not there.any():
            raise InputError(
                f"None of the {len(ids):,} genes of {len(there):,} sets is read by the network (first: {unknown[:3]}). "
                "Give sets of the same species, in symbols or Ensembl ids."
            )
        if unknown and processes.is_first():
            logger.warning(
                "%d of %d genes of the sets are not read by the network and left out; %d of %d sets have none.",
                len(unknown), len(ids), int((~there).sum()), len(there),
            )  # fmt: skip
        names = tuple(name for name, is_there in zip(read.members, there, strict=True) if is_there)
        return cls(names, has_UG[there], dict(read.described))

    def describe(self, genes: Sequence[str]) -> dict[str, Any]:
        """Return the sets, and where they are from."""
        named = {
            name: [genes[i] for i in np.flatnonzero(of).tolist()]
            for name, of in zip(self.names, self.has_UG, strict=True)
        }
        return {"sets": named, "sets_from": dict(self.described)}


def require_few_units(n_units: int, sets: ValueSets | None) -> None:
    """Raise if there are too many genes, or sets of them, for a surrogate."""
    if n_units > MOST_UNITS:
        what = "genes are read by the network" if sets is None else "sets of genes were given"
        raise InputError(
            f"A surrogate needs masks in proportion to its units, at most {MOST_UNITS}, and {n_units:,} {what}. Name "
            f"{'sets of genes' if sets is None else 'fewer'} with sets=; or use median, or integrated_gradients."
        )
