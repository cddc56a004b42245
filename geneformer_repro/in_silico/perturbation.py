"""What happens to a cell's token ids when genes are perturbed: pure array code.

One definition covers all kinds. A cell is its genes in order. A perturbation takes some of them out and gives each a
place in the changed cell, or none; all others keep their order and fill the places that are left. ``<cls>`` and
``<eos>`` stay where they are. Where genes were inserted and the cell is longer than the model allows, genes are cut off
at its end; they are taken out of the cell that it is compared with as well.

=================  ==============================  =====================================================
kind               in cells that                   place of a gene (0 is the front)
=================  ==============================  =====================================================
`Deletion`         express it                      none; the genes behind move up
`Overexpression`   all; it is inserted if absent   0; of several 0, 1, 2, … in the order they are given
`Activation`       express it                      middle of the quartile so many above; the front from the first
`Inhibition`       express it                      middle of the quartile so many below; the bottom beyond the fourth
`RankShift`        express it                      ``to × (n - 1)`` of n genes, rounded
=================  ==============================  =====================================================

Genes that would get the same place follow each other in the order they had. A perturbation that leaves no gene of the
cell untouched is not done, and neither is the overexpression of the gene that stands at the front, where ``genes`` is
"each", singly (as published: nothing changes).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from math import comb
from numbers import Real
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import numpy as np

from geneformer_repro.errors import InputError, listed
from geneformer_repro.tokenizer.vocabulary import Vocabulary

Combine = Literal["together", "singly", "pairs"]
EACH: Literal["each"] = "each"
GONE, NONE = -1, -1
"""Place of a gene that is removed; filler where a variant touches fewer genes than another, and rank of no gene."""
_FAR = np.iinfo(np.int64).max // 2


class Variants(NamedTuple):
    """Changed versions of a cell: N of them, each touching at most E genes."""

    perturbed: list[tuple[int, ...]]
    """Tokens of the genes that were perturbed, N."""
    rank_N: np.ndarray
    """Place of the gene in the cell, 0 for the first; -1 for several genes and for one that is absent."""
    dose_N: np.ndarray
    """Where a `RankShift` puts it; NaN for other kinds."""
    touched_NE: np.ndarray
    """The genes taken out: place in the cell, or (number of genes) + i for `inserted[i]`; -1 for none."""
    place_NE: np.ndarray
    """Where each goes, ascending along E; those that are removed come last and have -1, as has what is none."""
    inserted: np.ndarray
    """Tokens of genes that some variant adds, X."""
    n_genes_N: np.ndarray
    """Genes of each changed cell, before any is cut off at the end."""

    def __len__(self) -> int:
        return len(self.perturbed)

    def select(self, rows: np.ndarray) -> "Variants":
        """Return the variants of these rows, in this order."""
        return Variants(
            [self.perturbed[row] for row in rows],
            self.rank_N[rows],
            self.dose_N[rows],
            self.touched_NE[rows],
            self.place_NE[rows],
            self.inserted,
            self.n_genes_N[rows],
        )

    def order(self, row: int, n_genes: int) -> list[int]:
        """Return a changed cell as places in the cell of `n_genes` genes, inserted ones counting on from there.

        One variant, with lists: a screen builds all of a cell at once, on the device.
        """
        touched, places = self.touched_NE[row].tolist(), self.place_NE[row].tolist()
        moved = {place: gene for gene, place in zip(touched, places, strict=True) if place != GONE}
        others = iter([gene for gene in range(n_genes) if gene not in touched])
        return [moved[place] if place in moved else next(others) for place in range(int(self.n_genes_N[row]))]


@dataclass(frozen=True)
class Perturbation(ABC):
    """Base of the kinds of perturbation.

    Parameters
    ----------
    genes
        "each": every gene a cell expresses. Or gene ids, or names that one gene has.
    combine
        "singly": one gene at a time (default of "each"). "together": all genes of the list at once (default of a
        list). "pairs": every pair, and each gene alone in the same cells, so that a pair can be compared with the sum
        of its genes.
    anchor
        A gene that each of `genes` is paired with: the anchor alone, each of the others alone, and the pairs; only in
        cells that express the anchor, unless absent genes are inserted. Implies ``combine="pairs"``.

    Raises
    ------
    InputError
        There is no gene, one is given twice, or the options contradict each other.
    """

    genes: Literal["each"] | Sequence[str] = EACH
    combine: Combine | None = field(default=None, kw_only=True)
    anchor: str | None = field(default=None, kw_only=True)
    inserts: ClassVar[bool] = False
    """Whether a gene that a cell does not express is added to it."""
    removes: ClassVar[bool] = False
    """Whether the gene is not in the changed cell."""

    def __post_init__(self) -> None:
        if not isinstance(self.genes, Iterable):
            raise InputError(f"genes must be 'each' or a sequence of gene ids, found {self.genes!r}.")
        if not isinstance(self.genes, str):
            object.__setattr__(self, "genes", tuple(map(str, self.genes)))
        elif self.genes != EACH:
            raise InputError(
                f"genes must be 'each' or a sequence of gene ids, found the text {self.genes!r}. For one gene give "
                f"[{self.genes!r}]."
            )
        default = "pairs" if self.anchor is not None else "singly" if self.genes == EACH else "together"
        object.__setattr__(self, "combine", default if self.combine is None else self.combine)
        self._check()

    def _check(self) -> None:
        if self.combine not in get_args(Combine):
            choices = ", ".join(map(repr, get_args(Combine)))
            raise InputError(f"combine must be one of {choices}, found {self.combine!r}.")
        if self.anchor is not None and self.combine != "pairs":
            raise InputError(f"With an anchor combine must be 'pairs', found {self.combine!r}.")
        if self.genes == EACH:
            if self.combine == "together":
                raise InputError("All genes of a cell together would leave none. Give a list of genes.")
            return
        if not self.genes or len(set(self.genes)) < len(self.genes):
            raise InputError(f"genes must be distinct and at least one, found {list(self.genes)}.")
        if self.anchor in self.genes:
            raise InputError(f"The anchor {self.anchor!r} is among the genes as well; take it out there.")
        if self.combine == "pairs" and self.anchor is None and len(self.genes) < 2:
            raise InputError(f"A pair needs two genes, found {list(self.genes)}.")

    def __add__(self, other: "Perturbation | Composed") -> "Composed":
        """First this, then the other, in the same cell."""
        return Composed((self, *(other.steps if isinstance(other, Composed) else (other,))))

    @property
    def doses(self) -> tuple[float, ...]:
        """Places that are tried one after the other; none for most kinds."""
        return ()

    @property
    def named(self) -> tuple[str, ...]:
        """The genes that are named, an anchor first."""
        anchor = () if self.anchor is None else (self.anchor,)
        return (*anchor, *(() if self.genes == EACH else self.genes))

    @property
    def n_at_once(self) -> int:
        """Most genes that are perturbed in one variant."""
        return {"singly": 1, "pairs": 2}.get(str(self.combine), len(self.genes))

    @property
    def must_be_expressed(self) -> tuple[str, ...]:
        """The named genes that do nothing in a cell that does not express them."""
        return () if self.inserts else self.named

    def needs_one_of(self, genes: set[str]) -> bool:
        """Whether nothing is left to do without these of the named genes.

        See Also
        --------
        Perturbation.without : Go on without some genes.

        Examples
        --------
        >>> import geneformer_repro as gf
        >>> gf.Deletion(["SPI1", "CEBPA"]).needs_one_of({"SPI1"})
        False
        >>> gf.Deletion(["SPI1", "CEBPA"], combine="pairs").needs_one_of({"SPI1"})
        True
        """
        if self.anchor in genes:
            return True
        left = [] if self.genes == EACH else [gene for gene in self.genes if gene not in genes]
        return self.genes != EACH and len(left) < (2 if self.combine == "pairs" and self.anchor is None else 1)

    def renamed(self, names: Mapping[str, str]) -> "Perturbation":
        """Call the named genes otherwise: by id instead of name.

        See Also
        --------
        Vocabulary.find : Which gene a name stands for.

        Examples
        --------
        >>> import geneformer_repro as gf
        >>> gf.Deletion(["SPI1"]).renamed({"SPI1": "ENSG00000066336"})
        Deletion(genes=('ENSG00000066336',), combine='together', anchor=None)
        """
        genes = self.genes if self.genes == EACH else [names[gene] for gene in self.genes]
        return replace(self, genes=genes, anchor=names[self.anchor] if self.anchor else None)

    def without(self, genes: set[str]) -> "Perturbation":
        """Leave some of the listed genes out.

        See Also
        --------
        Perturbation.needs_one_of : Whether anything is left to do then.

        Examples
        --------
        >>> import geneformer_repro as gf
        >>> gf.Deletion(["SPI1", "CEBPA"]).without({"SPI1"})
        Deletion(genes=('CEBPA',), combine='together', anchor=None)
        """
        return self if self.genes == EACH else replace(self, genes=[gene for gene in self.genes if gene not in genes])

    def describe(self) -> dict[str, Any]:
        """Say what it is, as JSON can hold it.

        See Also
        --------
        ShiftTable : Has it in ``metadata["perturbation"]``.

        Examples
        --------
        >>> import geneformer_repro as gf
        >>> gf.Inhibition(["SPI1"], quartiles=2).describe()
        {'kind': 'Inhibition', 'genes': ['SPI1'], 'combine': 'together', 'anchor': None, 'quartiles': 2}
        """
        described = {"kind": type(self).__name__, **asdict(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in described.items()}

    @abstractmethod
    def places(self, rank_NE: np.ndarray, n_genes: int, dose_N1: np.ndarray) -> np.ndarray:
        """Return where each gene should go, (N, E).

        Parameters
        ----------
        rank_NE
            Place of the gene in the cell; -1 for an absent gene.
        n_genes
            Genes of the cell.
        dose_N1
            One of `doses`; NaN where there are none.

        See Also
        --------
        perturb : Makes the changed cells.

        Examples
        --------
        >>> import numpy as np
        >>> import geneformer_repro as gf
        >>> rank_NE, no_dose_N1 = np.array([[0], [7]]), np.full((2, 1), np.nan)  # the first and the eighth of ten genes
        >>> [kind(["SPI1"]).places(rank_NE, 10, no_dose_N1).tolist() for kind in (gf.Deletion, gf.Overexpression)]
        [[[-1], [-1]], [[0], [0]]]
        """


@dataclass(frozen=True)
class Deletion(Perturbation):
    """Remove genes from cells that express them; the genes behind move up. Parameters as of `Perturbation`.

    See Also
    --------
    Inhibition : Move genes down instead.
    perturb : Do it and measure what changes.

    Examples
    --------
    >>> import geneformer_repro as gf
    >>> gf.Deletion()  # every gene that a cell expresses, one at a time
    Deletion(genes='each', combine='singly', anchor=None)
    >>> gf.Deletion(["SPI1", "CEBPA"]).combine  # of a list all at once
    'together'
    >>> gf.Deletion(["CEBPA", "IRF8"], anchor="SPI1").combine  # SPI1 with each of the others
    'pairs'
    >>> gf.Deletion(["SPI1"]) + gf.Overexpression(["PAX5"])  # one after the other, in the same cell
    Composed(steps=(Deletion(genes=('SPI1',), combine='together', anchor=None), Overexpression(genes=('PAX5',),
    combine='together', anchor=None)))
    """

    removes: ClassVar[bool] = True

    def places(self, rank_NE: np.ndarray, n_genes: int, dose_N1: np.ndarray) -> np.ndarray:
        """Nowhere.

        See Also
        --------
        Perturbation.places : What the arguments are.

        Examples
        --------
        >>> import numpy as np
        >>> import geneformer_repro as gf
        >>> gf.Deletion(["SPI1"]).places(np.array([[3]]), 10, np.array([[np.nan]]))
        array([[-1]])
        """
        return np.full(rank_NE.shape, GONE)


@dataclass(frozen=True)
class Overexpression(Perturbation):
    """Put genes at the front of a cell, after ``<cls>``; absent ones are inserted. Parameters as of `Perturbation`.

    With "each" it moves the genes that a cell expresses; a list also reaches cells that do not.

    See Also
    --------
    Activation : Move genes up by quartiles.
    perturb : Do it and measure what changes.

    Examples
    --------
    >>> import geneformer_repro as gf
    >>> gf.Overexpression(["PAX5", "EBF1"])  # both at the front of every cell, PAX5 first
    Overexpression(genes=('PAX5', 'EBF1'), combine='together', anchor=None)
    >>> gf.Overexpression(["PAX5", "EBF1"], combine="singly").combine
    'singly'
    """

    inserts: ClassVar[bool] = True

    def places(self, rank_NE: np.ndarray, n_genes: int, dose_N1: np.ndarray) -> np.ndarray:
        """At the front, in the order they are given.

        See Also
        --------
        Perturbation.places : What the arguments are.

        Examples
        --------
        >>> import numpy as np
        >>> import geneformer_repro as gf
        >>> gf.Overexpression(["PAX5", "EBF1"]).places(np.array([[3, 8]]), 10, np.array([[np.nan]]))
        array([[0, 1]])
        """
        return np.broadcast_to(np.arange(rank_NE.shape[1]), rank_NE.shape)


@dataclass(frozen=True)
class _QuartileShift(Perturbation):
    quartiles: int = field(default=1, kw_only=True)

    def _check(self) -> None:
        super()._check()
        if self.quartiles not in (1, 2, 3):
            raise InputError(f"quartiles must be 1, 2 or 3, found {self.quartiles!r}.")
        object.__setattr__(self, "quartiles", int(self.quartiles))


@dataclass(frozen=True)
class Activation(_QuartileShift):
    """Move genes up by quartiles of the ranking, in cells that express them.

    As documented, though never released, by the published package: from the fourth quartile to the middle of the third,
    and so on; from the first to the front.

    Parameters
    ----------
    genes, combine, anchor
        As of `Perturbation`.
    quartiles
        1, 2 or 3.

    See Also
    --------
    Inhibition : Move genes down.
    Overexpression : Move them to the front.
    perturb : Do it and measure what changes.

    Examples
    --------
    >>> import geneformer_repro as gf
    >>> gf.Activation(["PAX5"], quartiles=2)
    Activation(genes=('PAX5',), combine='together', anchor=None, quartiles=2)
    >>> gf.Activation(["PAX5"], quartiles=4)
    Traceback (most recent call last):
        ...
    geneformer_repro.errors.InputError: quartiles must be 1, 2 or 3, found 4.
    """

    def places(self, rank_NE: np.ndarray, n_genes: int, dose_N1: np.ndarray) -> np.ndarray:
        """In the middle of a quartile above, or at the front.

        See Also
        --------
        Perturbation.places : What the arguments are.

        Examples
        --------
        >>> import numpy as np
        >>> import geneformer_repro as gf
        >>> gf.Activation(["PAX5"]).places(np.array([[10], [70]]), 100, np.full((2, 1), np.nan))
        array([[ 0],
               [37]])
        """
        quartile = quartile_of(rank_NE, n_genes) - self.quartiles
        return np.where(quartile < 1, 0, middle_of_quartile(quartile, n_genes))


@dataclass(frozen=True)
class Inhibition(_QuartileShift):
    """Move genes down by quartiles of the ranking, in cells that express them.

    As documented, though never released, by the published package: from the first quartile to the middle of the second,
    and so on; from the fourth to the bottom.

    Parameters
    ----------
    genes, combine, anchor
        As of `Perturbation`.
    quartiles
        1, 2 or 3.

    See Also
    --------
    Activation : Move genes up.
    Deletion : Remove them.
    perturb : Do it and measure what changes.

    Examples
    --------
    >>> import geneformer_repro as gf
    >>> gf.Inhibition(["SPI1", "CEBPA"], combine="pairs")
    Inhibition(genes=('SPI1', 'CEBPA'), combine='pairs', anchor=None, quartiles=1)
    """

    def places(self, rank_NE: np.ndarray, n_genes: int, dose_N1: np.ndarray) -> np.ndarray:
        """In the middle of a quartile below, or at the bottom.

        See Also
        --------
        Perturbation.places : What the arguments are.

        Examples
        --------
        >>> import numpy as np
        >>> import geneformer_repro as gf
        >>> gf.Inhibition(["SPI1"]).places(np.array([[10], [80]]), 100, np.full((2, 1), np.nan))
        array([[37],
               [99]])
        """
        quartile = quartile_of(rank_NE, n_genes) + self.quartiles
        return np.where(quartile > 4, n_genes - 1, middle_of_quartile(quartile, n_genes))


@dataclass(frozen=True)
class RankShift(Perturbation):
    """Move genes to a given place of the ranking, in cells that express them; several places make a dose curve.

    Parameters
    ----------
    genes, combine, anchor
        As of `Perturbation`.
    to
        Place as a share of the cell's genes, 0 (front) to 1 (bottom), or several.

    See Also
    --------
    plot_screen : Draws a dose curve.
    perturb : Do it and measure what changes.

    Examples
    --------
    >>> import geneformer_repro as gf
    >>> gf.RankShift(["SPI1"], to=0.5).doses
    (0.5,)
    >>> gf.RankShift(["SPI1"], to=[0, 0.25, 0.5, 0.75, 1]).doses
    (0.0, 0.25, 0.5, 0.75, 1.0)
    >>> gf.RankShift(["SPI1"], to=2)
    Traceback (most recent call last):
        ...
    geneformer_repro.errors.InputError: to must be a number from 0 (front) to 1 (bottom), or several, found 2.
    """

    to: float | Sequence[float] = field(kw_only=True)

    def _check(self) -> None:
        super()._check()
        places = tuple(self.to) if isinstance(self.to, Iterable) else (self.to,)
        if not places or not all(isinstance(place, Real) and 0 <= place <= 1 for place in places):
            raise InputError(f"to must be a number from 0 (front) to 1 (bottom), or several, found {self.to!r}.")
        if len(set(places)) < len(places):
            raise InputError(f"to names a place twice: {list(places)}.")
        object.__setattr__(self, "to", tuple(map(float, places)))

    @property
    def doses(self) -> tuple[float, ...]:
        """Places that are tried one after the other."""
        return self.to  # type: ignore[return-value]

    def places(self, rank_NE: np.ndarray, n_genes: int, dose_N1: np.ndarray) -> np.ndarray:
        """At the dose's place.

        See Also
        --------
        Perturbation.places : What the arguments are.

        Examples
        --------
        >>> import numpy as np
        >>> import geneformer_repro as gf
        >>> gf.RankShift(["SPI1"], to=[0, 1]).places(np.array([[3], [3]]), 10, np.array([[0.0], [1.0]]))
        array([[0],
               [9]])
        """
        return np.broadcast_to(np.rint(dose_N1 * (n_genes - 1)).astype(np.int64), rank_NE.shape)


@dataclass(frozen=True)
class Composed:
    """Perturbations one after the other, each of a list of genes together: ``Deletion([a]) + Overexpression([b])``.

    Parameters
    ----------
    steps
        In the order in which they are done.

    Raises
    ------
    InputError
        There is no step, one is not a single change ("each", singly, pairs, several doses), or two name the same gene.
    """

    steps: tuple[Perturbation, ...]

    def __post_init__(self) -> None:
        if not self.steps:
            raise InputError("A composed perturbation needs at least one step, found none.")
        for step in self.steps:
            if step.combine != "together" or len(step.doses) > 1:
                raise InputError(
                    f"Only changes of a list of genes together can be done one after the other, found {step}."
                )
        if len(set(self.named)) < len(self.named):
            raise InputError(f"A gene is perturbed twice: {listed(self.named)}.")

    def __add__(self, other: "Perturbation | Composed") -> "Composed":
        """First these, then the other."""
        return Composed((*self.steps, *(other.steps if isinstance(other, Composed) else (other,))))

    @property
    def named(self) -> tuple[str, ...]:
        """The genes that are named."""
        return tuple(gene for step in self.steps for gene in step.named)

    @property
    def n_at_once(self) -> int:
        """Most genes that are perturbed in one variant."""
        return sum(step.n_at_once for step in self.steps)

    @property
    def must_be_expressed(self) -> tuple[str, ...]:
        """The named genes that do nothing in a cell that does not express them."""
        return tuple(gene for step in self.steps for gene in step.must_be_expressed)

    def needs_one_of(self, genes: set[str]) -> bool:
        """Whether nothing is left to do without these of the named genes."""
        return all(step.needs_one_of(genes) for step in self.steps)

    def renamed(self, names: Mapping[str, str]) -> "Composed":
        """Call the named genes otherwise: by id instead of name."""
        return Composed(tuple(step.renamed(names) for step in self.steps))

    def without(self, genes: set[str]) -> "Composed":
        """Leave some of the genes out, and steps that have no other."""
        return Composed(tuple(step.without(genes) for step in self.steps if set(step.genes) - genes))

    def describe(self) -> dict[str, Any]:
        """Say what it is, as JSON can hold it."""
        return {"kind": "Composed", "steps": [step.describe() for step in self.steps]}


def quartile_of(rank: np.ndarray, n_genes: int) -> np.ndarray:
    """Return the quartile, 1 to 4, of a place among `n_genes`."""
    return 4 * rank // n_genes + 1


def middle_of_quartile(quartile: np.ndarray, n_genes: int) -> np.ndarray:
    """Return the place in the middle of a quartile, 1 to 4, of `n_genes`; of two the upper.

    A cell of two or three genes has quartiles without a place; theirs is the last one above.
    """
    first, end = (-(-edge * n_genes // 4) for edge in (quartile - 1, quartile))
    return (first + end - 1) // 2


class Edits:
    """What a perturbation does to the tokens of cells: which variants there are of a cell.

    Parameters
    ----------
    perturbation
        What is done.
    vocabulary
        What genes are called, and the special tokens.

    Raises
    ------
    InputError
        A gene is not in the vocabulary, or named twice, by id and by name.
    """

    def __init__(self, perturbation: Perturbation | Composed, vocabulary: Vocabulary) -> None:
        self._perturbation, self._vocabulary = perturbation, vocabulary
        self._steps = perturbation.steps if isinstance(perturbation, Composed) else (perturbation,)
        tokens = vocabulary.tokens_of(perturbation.named).tolist() if perturbation.named else []
        if len(set(tokens)) < len(tokens):
            raise InputError(f"A gene is named twice, by id and by name: {listed(perturbation.named)}.")
        self._token = dict(zip(perturbation.named, tokens, strict=True))

    @property
    def is_of_each(self) -> bool:
        """Whether each gene of a cell is perturbed, one at a time."""
        return self._steps[0].combine == "singly" and self._steps[0].genes == EACH

    @property
    def inserts(self) -> bool:
        """Whether a gene that a cell does not express may be added to it."""
        return any(step.inserts and bool(step.named) for step in self._steps)

    @property
    def is_of_single_expressed_genes(self) -> bool:
        """Whether every variant touches one gene, which the cell expresses."""
        return self._steps[0].combine == "singly" and not self.inserts

    def variants(self, cell: np.ndarray) -> Variants:
        """Return the changed versions of a cell: of each gene in the order of the cell, of a list in its order.

        Parameters
        ----------
        cell
            Token ids.
        """
        genes = cell[self._vocabulary.genes_of(cell) >= 0]
        if isinstance(self._perturbation, Composed):
            return self._composed(genes)
        return self._of_one(self._perturbation, genes)

    @property
    def names_genes(self) -> bool:
        """Whether it depends on more of a cell than how many genes it has."""
        return bool(self._perturbation.named)

    def n_variants(self, n_genes: int, cell: np.ndarray | None = None) -> int:
        """Return how many changed versions a cell has, by formula: a cell of 2,000 genes has two million pairs.

        Parameters
        ----------
        n_genes
            Genes of the cell.
        cell
            Its token ids; not needed where no gene is named.
        """
        tokens = set() if cell is None else set(cell.tolist())
        expressed = [[self._token[gene] in tokens for gene in step.named] for step in self._steps]
        step, n_doses = self._steps[0], max(1, len(self._steps[0].doses))
        if step.combine == "together":  # as all steps of a composed one
            return int(_is_possible(self._steps, expressed, n_genes)) * n_doses
        n_front = int(step.inserts and self.is_of_each)
        return (_n_sets(step, expressed[0], n_genes) - n_front * (n_genes > 1)) * n_doses

    def _of_one(self, step: Perturbation, genes: np.ndarray) -> Variants:
        candidates, rank = self._candidates(step, genes)
        sets = _sets(step, rank)
        doses = np.array(step.doses or [np.nan])
        dose_N = np.tile(doses, len(sets))
        sets_NE = np.repeat(sets, len(doses), axis=0)
        chosen = sets_NE >= 0
        rank_NE = np.where(chosen, rank[sets_NE], NONE)
        inserted = candidates[rank == NONE] if step.inserts else candidates[:0]
        position = np.where(rank == NONE, len(genes) + np.cumsum(rank == NONE) - 1, rank)
        touched_NE = np.where(chosen, position[sets_NE], NONE)
        place_NE = np.where(chosen, step.places(rank_NE, len(genes), dose_N[:, None]), GONE)
        touched_NE, place_NE, n_genes_N = _settle(touched_NE, place_NE, rank_NE, len(genes))
        token_of = candidates.tolist()
        perturbed = [tuple(token_of[i] for i in row if i >= 0) for row in sets_NE.tolist()]
        rank_N = np.where(chosen.sum(1) == 1, rank_NE[:, 0], NONE)
        variants = Variants(perturbed, rank_N, dose_N, touched_NE, place_NE, inserted, n_genes_N)
        untouched = len(genes) - (rank_NE >= 0).sum(1)
        changes = rank_N > 0 if step.inserts and self.is_of_each else True
        return variants.select(np.flatnonzero((untouched > 0) & changes))

    def _candidates(self, step: Perturbation, genes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return tokens that may be perturbed, the anchor first, and the place of each in the cell; -1 if absent."""
        if step.genes == EACH and step.anchor is None:
            rank = np.argsort(genes) if step.combine == "pairs" else np.arange(len(genes))  # A+B is never B+A
            return genes[rank], rank
        named = np.array([self._token[gene] for gene in step.named], dtype=np.int64)
        candidates = np.concatenate([named, genes[~np.isin(genes, named)]]) if step.genes == EACH else named
        place = {token: i for i, token in enumerate(genes.tolist())}
        rank = np.array([place.get(token, NONE) for token in candidates.tolist()], dtype=np.int64)
        return candidates, rank

    def _composed(self, genes: np.ndarray) -> Variants:
        extended, now = list(genes.tolist()), list(range(len(genes)))  # the cell, as places in `extended`
        for step in self._steps:
            of_step = self._of_one(step, np.array([extended[i] for i in now], dtype=np.int64))
            if not len(of_step):
                return of_step
            names = [*now, *range(len(extended), len(extended) + len(of_step.inserted))]
            extended += of_step.inserted.tolist()
            now = [names[i] for i in of_step.order(0, len(now))]
        tokens = tuple(self._token[gene] for gene in self._perturbation.named)
        touched = [extended.index(token) for token in tokens]
        places = {i: now.index(i) if i in now else GONE for i in touched}
        order = sorted(touched, key=lambda i: (places[i] == GONE, places[i]))
        leaves_a_gene = not set(range(len(genes))) <= set(touched)
        variants = Variants(
            [tokens],
            np.array([NONE]),
            np.array([np.nan]),
            np.array([order]),
            np.array([[places[i] for i in order]]),
            np.array(extended[len(genes) :], dtype=np.int64),
            np.array([len(now)]),
        )
        return variants.select(np.flatnonzero([leaves_a_gene]))


def _is_possible(steps: Sequence[Perturbation], expressed: Sequence[Sequence[bool]], n_genes: int) -> bool:
    """Tell whether a cell has all that is done to it, and another gene before each step and at the end.

    Parameters
    ----------
    steps
        What is done, each to its genes together.
    expressed
        Of each gene of each step, whether the cell has it.
    n_genes
        Genes of the cell.
    """
    n_now = n_genes
    for step, of_step in zip(steps, expressed, strict=True):
        if not (step.inserts or all(of_step)) or n_now <= sum(of_step):
            return False
        n_now += len(of_step) - sum(of_step) if step.inserts else 0
        n_now -= sum(of_step) if step.removes else 0
    return n_genes > sum(map(sum, expressed))


def _n_sets(step: Perturbation, expressed: Sequence[bool], n_genes: int) -> int:
    """Return how many single genes or pairs of a cell are perturbed: those that leave another gene of it.

    A set that is all of one sort (expressed, absent) is counted by how many there are of the sort.
    """
    n_expressed, n_absent = sum(expressed), len(expressed) - sum(expressed) if step.inserts else 0
    if step.genes == EACH:
        n_expressed = n_genes
    n_single = n_expressed * (n_genes > 1) + n_absent * (n_genes > 0)
    if step.combine == "singly":
        return n_single
    if step.anchor is None:
        both, mixed, neither = comb(n_expressed, 2), n_expressed * n_absent, comb(n_absent, 2)
    elif expressed[0]:
        both, mixed, neither = n_expressed - 1, n_absent, 0
    elif step.inserts:
        both, mixed, neither = 0, n_expressed, n_absent - 1
    else:
        return 0
    return n_single + both * (n_genes > 2) + mixed * (n_genes > 1) + neither * (n_genes > 0)


def _sets(step: Perturbation, rank: np.ndarray) -> np.ndarray:
    """Return which candidates are perturbed together, a row a set, filled with -1."""
    fitting = np.arange(len(rank)) if step.inserts else np.flatnonzero(rank >= 0)
    if step.combine == "together":
        return np.arange(len(rank))[None] if len(fitting) == len(rank) else np.zeros((0, 1), dtype=np.int64)
    if step.combine == "singly":
        return fitting[:, None]
    if step.anchor is not None and (not len(fitting) or fitting[0] != 0):
        return np.zeros((0, 1), dtype=np.int64)
    pairs = [(0, i) for i in fitting[1:]] if step.anchor is not None else list(combinations(fitting, 2))
    return np.array([*((i, NONE) for i in fitting), *pairs], dtype=np.int64).reshape(-1, 2)


def _settle(
    touched_NE: np.ndarray, place_NE: np.ndarray, rank_NE: np.ndarray, n_genes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Order the touched genes by place, and move those that share one apart; return also the genes of the variant."""
    stays_NE = place_NE != GONE
    n_genes_N = n_genes + (stays_NE & (rank_NE == NONE)).sum(1) - (~stays_NE & (rank_NE != NONE)).sum(1)
    order = np.lexsort((rank_NE, np.where(stays_NE, place_NE, _FAR)), axis=1)
    touched_NE, place_NE, stays_NE = (np.take_along_axis(of, order, 1) for of in (touched_NE, place_NE, stays_NE))
    n_staying_N1 = stays_NE.sum(1, keepdims=True)
    for i in range(1, place_NE.shape[1]):
        place_NE[:, i] = np.maximum(place_NE[:, i], place_NE[:, i - 1] + 1)
    last_NE = n_genes_N[:, None] - n_staying_N1 + np.arange(place_NE.shape[1])
    return touched_NE, np.where(stays_NE, np.minimum(place_NE, last_NE), GONE), n_genes_N
