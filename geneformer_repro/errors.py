"""What a user can cause, as exceptions that say what was asked, what was found and what to do."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something the user gave cannot be used. The command line prints its message without a traceback."""


class DataFormatError(InputError):
    """A data file does not hold what it should: not counts, not genes, not cells."""


class ChangedDataError(DataFormatError):
    """A data file was replaced or written to while it was being read; what was read of it is not used."""


class VocabularyMismatchError(InputError):
    """Two things that must share a vocabulary do not; the message names the first differing gene."""


class MissingExtraError(InputError):
    """An optional dependency is not installed; the message names the extra that brings it."""


def did_you_mean(asked: object, choices: Iterable[object]) -> str:
    """Finish an error message: the nearest choices, or all of them when none is near.

    Parameters
    ----------
    asked
        What the user wrote, text or not.
    choices
        What would have been valid.

    Returns
    -------
    A sentence such as ``"Did you mean 'cell_type'?"`` or ``"There are: 'a', 'b'."``.
    """
    valid = [str(choice) for choice in choices]
    near = difflib.get_close_matches(str(asked), valid, n=3, cutoff=0.6)
    if near:
        return "Did you mean " + " or ".join(map(repr, near)) + "?"
    if not valid:
        return "There are none."
    shown = ", ".join(map(repr, valid[:20]))
    return f"There are: {shown}{', …' if len(valid) > 20 else ''}."
