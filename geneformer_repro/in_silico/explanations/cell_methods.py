"""The methods that explain cells, each by its name: what they need, what they cost, and the rows that they give."""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

import geneformer_repro.processes as processes
from geneformer_repro.errors import InputError
from geneformer_repro.in_silico.explanations.answers import Answer, unchanged
from geneformer_repro.in_silico.explanations.attribution import Attribution
from geneformer_repro.in_silico.explanations.gene_sets import read_gene_sets
from geneformer_repro.in_silico.explanations.occlusions import (
    OPERATORS,
    Alter,
    ask,
    first_order,
    hidden,
    median_places,
    occlusions,
    operation,
)
from geneformer_repro.in_silico.explanations.request import Request
from geneformer_repro.reading import Reader
from geneformer_repro.tokenizer.dataset import TokenizedDataset
from geneformer_repro.tokenizer.genes import gene_ids_of

logger = logging.getLogger(__name__)

_WORTH_A_PROBE = 0.01
"""Share of the work above which it is begun without measuring how long it will take; the bar tells soon enough."""
_NAMED = 20


class Rows(NamedTuple):
    """Rows of the file about some cells, as numbers."""

    unit: np.ndarray
    """Which gene of the vocabulary, or which set."""
    place: np.ndarray
    """Place of the gene in its cell; -1 of a set."""
    method: np.ndarray
    state: np.ndarray
    value: np.ndarray
    before: np.ndarray
    gap: np.ndarray

    @classmethod
    def joined(cls, blocks: Sequence["Rows"]) -> "Rows":
        """Return the rows of several blocks."""
        return cls(*map(np.concatenate, zip(*blocks, strict=True)))


class CellMethods:
    """The methods of a request.

    Parameters
    ----------
    request
        Names and settings.
    cells
        All cells.
    reference
        Row numbers of the cells whose places and embeddings are those of reference.
    """

    def __init__(self, request: Request, cells: TokenizedDataset, reference: np.ndarray) -> None:
        self._request, self._cells, self._reference = request, cells, reference
        self._vocabulary = cells.vocabulary
        self._groups = None if request.sets is None else self._read_groups()
        self._operators: dict[str, Alter] = {}

    def _read_groups(self) -> dict[str, np.ndarray]:
        """Return the tokens of each set of genes; genes that are not known are counted, sets without any left out."""
        sets = read_gene_sets(self._request.sets)
        self._described_sets = dict(sets.described)
        ids = gene_ids_of(list(dict.fromkeys(gene for of in sets.members.values() for gene in of)), self._vocabulary)
        token_of = dict(zip(self._vocabulary.gene_ids, self._vocabulary.tokens.tolist(), strict=True))
        groups = {
            name: np.unique([token_of[ids[gene]] for gene in of if ids[gene]]).astype(np.int64)
            for name, of in sets.members.items()
        }
        unknown = [gene for gene, found in ids.items() if not found]
        empty = [name for name, tokens in groups.items() if not len(tokens)]
        if len(empty) == len(groups):
            raise InputError(
                f"None of the {len(ids):,} genes of {len(groups):,} sets is in the vocabulary (first: {unknown[:3]}). "
                "Give sets of the same species, in symbols or Ensembl ids."
            )
        if unknown and processes.is_first():
            logger.warning(
                "%d of %d genes of the sets are not in the vocabulary and left out: %s%s; %d of %d sets have none.",
                len(unknown), len(ids), ", ".join(map(str, unknown[:_NAMED])), ", …" * (len(unknown) > _NAMED),
                len(empty), len(groups),
            )  # fmt: skip
        return {name: tokens for name, tokens in groups.items() if len(tokens)}

    def describe(self) -> dict[str, Any]:
        """Return what is known of sets of genes that are taken away at once."""
        if self._groups is None:
            return {}
        genes = self._vocabulary.gene_ids
        named = {name: [genes[i] for i in self._vocabulary.genes_of(tokens)] for name, tokens in self._groups.items()}
        return {"sets": named, "sets_from": self._described_sets}

    def prepare(self) -> None:
        """Read what operators need of the reference cells."""
        wanted = {name for name in self._request.methods if name in OPERATORS}
        if "surrogate" in self._request.methods:
            wanted.add(self._request.operator)
        median = None
        if "median_rank" in wanted:
            median = median_places((self._cells[int(row)] for row in self._reference), self._vocabulary)
        for name in OPERATORS:
            if name in wanted:
                pooled = self._request.pooled_masks
                self._operators[name] = operation(name, self._vocabulary, median=median, pooled=pooled)

    def passes(self, length: int) -> int:
        """Return how often the network is run for a cell of so many tokens."""
        return sum(self._passes(method, length) for method in self._request.methods)

    def _passes(self, method: str, length: int) -> int:
        if method in OPERATORS:
            n_genes = length - 2 * self._vocabulary.has_cls
            return 1 + (n_genes if self._groups is None else len(self._groups))
        return 1

    def seconds(
        self, reader: Reader, answer: Answer, tokens: np.ndarray, cost: float, costs: np.ndarray
    ) -> float | None:
        """Measure a batch of hidden genes of a cell; return how long cells of these costs will take.

        Parameters
        ----------
        reader, answer, tokens
            The network, what it is asked, and a cell.
        cost
            Of one pass of the cell.
        costs
            Of all passes of each cell.
        """
        view = unchanged(tokens, self._vocabulary, answer)
        places = [place for place in range(view.n_genes) if place != view.asked - view.margin]
        if len(places) < 2:
            return None
        n_probed = max(1, min(len(places), reader.max_tokens // len(tokens)))
        if cost * n_probed > _WORTH_A_PROBE * costs.sum():
            return None
        probe = [hidden(view, np.array([place])) for place in places[:n_probed]]
        for _ in range(2):  # the first one warms up
            began = time.perf_counter()
            ask(reader, answer, probe)
        return float((time.perf_counter() - began) * costs.sum() / (cost * n_probed))

    def do(
        self,
        method: str,
        reader: Reader,
        answer: Answer,
        cells: Sequence[np.ndarray],
        show: Callable[[int], object],
    ) -> Sequence[Attribution]:
        """Return what a method says of some cells."""
        counted = _Counted(show, sum(self._passes(method, len(cell)) for cell in cells))
        done: Sequence[Attribution]
        if method in OPERATORS:
            operator = self._operators[method]
            done = occlusions(reader, answer, cells, self._vocabulary, operator, counted, groups=self._groups)
        else:
            assert method == "first_order", "gradients and surrogates"
            done = first_order(reader, answer, cells, self._vocabulary, counted)
        counted.finish()
        return done

    @property
    def unit_names(self) -> Sequence[str]:
        """What values are of: genes, or sets of them."""
        return self._vocabulary.gene_ids if self._groups is None else tuple(self._groups)

    def rows(self, method: str, tokens: np.ndarray, of_cell: Attribution) -> Rows:
        """Return the rows that a method gives of a cell: gene by gene, of each its numbers; none without a value."""
        if self._groups is None:
            genes = self._vocabulary.genes_of(tokens)
            units = genes[genes >= 0]
        else:
            units = np.arange(len(self._groups))
        unit, state = np.nonzero(~np.isnan(of_cell.value_GS))
        gap_S = np.full(len(of_cell.before_S), np.nan) if of_cell.gap_S is None else of_cell.gap_S
        return Rows(
            unit=units[unit],
            place=unit if self._groups is None else np.full(len(unit), -1),
            method=np.full(len(unit), self._request.methods.index(method)),
            state=state,
            value=of_cell.value_GS[unit, state],
            before=of_cell.before_S[state],
            gap=gap_S[state],
        )

    def further(self, tables: Iterable[pa.Table]) -> dict[str, Any]:
        """Return the names of the genes that have a row."""
        genes: set[str] = set()
        for table in tables:
            genes.update(table["gene"].unique().to_pylist())
        names, position = self._vocabulary.gene_names, self._vocabulary.position
        return {"gene_names": {gene: names[position[gene]] for gene in sorted(genes) if gene in position}}


class _Counted:
    """A bar's counter that is given no more, and at the end no less, than was announced."""

    def __init__(self, show: Callable[[int], object], total: int) -> None:
        self._show, self._left = show, total

    def __call__(self, n: int) -> None:
        n = min(n, self._left)
        self._left -= n
        self._show(n)

    def finish(self) -> None:
        self(self._left)
