"""What a method says of one cell; the form in which all methods hand over."""

from typing import NamedTuple

import numpy as np


class GoodnessOfFit(NamedTuple):
    """How far a surrogate's weights are to be believed; see `surrogate.SurrogateFit`."""

    sd_GS: np.ndarray
    r2_S: np.ndarray
    stability_S: np.ndarray


LEAST_R2, LEAST_STABILITY = 0.3, 0.5
"""Of a surrogate: with less on held-out masks, or between halves of them, its weights are shown and rank nothing."""


class Attribution(NamedTuple):
    """What one method says of one cell.

    Shapes: G genes of the cell, in the order of their places (or, of groups, as many as groups); S numbers explained.
    """

    value_GS: np.ndarray
    """How much each gene adds to each number, float64; NaN where a gene has none."""
    before_S: np.ndarray
    """The numbers of the unchanged cell."""
    gap_S: np.ndarray | None = None
    """Of integrated gradients, the share by which completeness is missed; NaN where that means nothing. None for other
    methods."""
    fit: GoodnessOfFit | None = None
    """Of a surrogate; None for other methods."""
