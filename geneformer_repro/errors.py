"""What a user can cause, as exceptions that say what was asked, what was found and what to do."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something the user gave cannot be used. The command line prints its message without a traceback.

    See Also
    --------
    DataFormatError : A file does not hold what it should.
    VocabularyMismatchError : Two things do not share a vocabulary.

    Examples
    --------
    >>> import geneformer_repro as gf
    >>> try:
    ...     gf.GoalState(obs="cell_type", start="CD19+ B", goal="CD19+ B")
    ... except gf.InputError as error:
    ...     print(error)
    Start, goal and alternatives must be different states, found 'CD19+ B', 'CD19+ B'.
    >>> issubclass(gf.InputError, ValueError)
    True
    """


class DataFormatError(InputError):
    """A data file does not hold what it should: not counts, not genes, not cells.

    See Also
    --------
    InputError : What it is one of.
    tokenize : Reads data files.

    Examples
    --------
    >>> import geneformer_repro as gf
    >>> adata = gf.datasets.pbmc700()
    >>> adata.X.data = adata.X.data / 2
    >>> gf.tokenize(adata, gf.Vocabulary.load("vocabulary"))
    Traceback (most recent call last):
        ...
    geneformer_repro.errors.DataFormatError: AnnData: X holds fractional values (first: cell 'AAAGCCTGGCTAAC-1', gene
    'ENSG00000116288', 0.5). Rank encoding needs raw counts. No other layer of it holds counts either; go back to the
    file before normalisation. Other values are ranked as what they are said to be: expression of bulk samples with
    values="expression" (--values expression), if it is log2(x + 1) with log2=True (--log2) too.
    """


class ChangedDataError(DataFormatError):
    """A data file was replaced or written to while it was being read; what was read of it is not used."""


class VocabularyMismatchError(InputError):
    """Two things that must share a vocabulary do not; the message names the first differing gene.

    See Also
    --------
    Vocabulary.require_same : Raises it.
    Checkpoint.require_matching : Raises it.

    Examples
    --------
    >>> import geneformer_repro as gf
    >>> tokens = {"<pad>": 0, "<mask>": 1, "ENSG00000111245": 2}
    >>> one, other = gf.Vocabulary.from_tokens(tokens), gf.Vocabulary.from_tokens(tokens | {"ENSG00000159251": 3})
    >>> try:
    ...     one.require_same(other, this="the cells", that="the model")
    ... except gf.VocabularyMismatchError as error:
    ...     print(str(error).partition("): ")[2])
    first differing gene ENSG00000159251 is only in the other. Tokenise the counts again with the vocabulary of the
    checkpoint.
    """


class MissingExtraError(InputError):
    """An optional dependency is not installed; the message names the extra that brings it."""


def did_you_mean(written: object, choices: Iterable[object]) -> str:
    """Finish an error message: the nearest choices, or all of them when none is near.

    Parameters
    ----------
    written
        What the user wrote, text or not.
    choices
        What would have been valid.

    Returns
    -------
    A sentence such as ``"Did you mean 'cell_type'?"`` or ``"There are: 'a', 'b'."``.
    """
    valid = [str(choice) for choice in choices]
    if near := nearest(written, valid):
        return near
    return f"There are: {listed(map(repr, valid), most=20)}." if valid else "There are none."


def nearest(written: object, choices: Iterable[object]) -> str:
    """Say which choices are near to what was written; nothing where none is."""
    valid = [str(choice) for choice in choices]
    near = difflib.get_close_matches(str(written), valid, n=3, cutoff=0.6)
    if not near:  # of dotted names the last part may be what was written
        near = [name for name in valid if difflib.get_close_matches(str(written), [name.rpartition(".")[2]])][:3]
    return "Did you mean " + " or ".join(map(repr, near)) + "?" if near else ""


def listed(names: Iterable[object], *, most: int = 10) -> str:
    """Name things in a message, and of many how many more there are: ``"a, b and 693 more"``."""
    every = [str(name) for name in names]
    shown = ", ".join(every[:most])
    return shown if len(every) <= most else f"{shown} and {len(every) - most:,} more"


def counted(n: int, what: str) -> str:
    """Name how many things there are: ``"1 layer"``, ``"1,200 layers"``.

    Parameters
    ----------
    n
        How many.
    what
        The word for one, whose plural ends in an "s" more.
    """
    return f"{n:,} {what}{'s' * (n != 1)}"


def told_apart(*values: float) -> tuple[str, ...]:
    """Write numbers with as many digits as tell those apart that differ, six at least.

    >>> told_apart(3.062791, 3.062788)
    ('3.062791', '3.062788')
    """
    return next(
        written
        for digits in range(6, 18)
        if len(set(written := tuple(f"{value:.{digits}g}" for value in values))) == len(set(values)) or digits == 17
    )
