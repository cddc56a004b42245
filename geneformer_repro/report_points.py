"""Where the points of a picture lie on a page, and what each is called: a page tells it where the pointer is.

The picture stays matplotlib's, the same in a file, in print and without a script. Names are kept by an artist that
draws nothing, so that functions that draw go on returning a figure.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist

from geneformer_repro.report_tables import values_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WHOLE = 10_000
"""Width and height of a picture, in the steps that places are told in."""
_DIGITS = 4


class NamedPoints(Artist):
    """Points of a panel by name; draws nothing.

    Parameters
    ----------
    x, y
        Where they are, in the units of the panel.
    names
        Of each.
    said
        Columns to tell beside the name, a row a point; None for none.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray, names: list[str], said: pd.DataFrame | None) -> None:
        super().__init__()
        self.set_in_layout(False)
        self.at, self.names, self.said = np.column_stack([x, y]).astype(float), names, said

    def places(self) -> np.ndarray:
        """Return where the points are on the picture, from its upper left corner, as shares of width and height."""
        assert self.axes is not None
        inside = self.axes.figure.transFigure.inverted().transform(self.axes.transData.transform(self.at))
        return np.column_stack([inside[:, 0], 1 - inside[:, 1]])


def points_of(figure: "Figure") -> dict[str, Any] | None:
    """Return all named points of a figure that was drawn, for the page's script; None where there are none.

    Parameters
    ----------
    figure
        After `Figure.savefig`, when its panels have their places.
    """
    drawn = [artist for artist in figure.findobj(NamedPoints) if isinstance(artist, NamedPoints) and artist.names]
    if not drawn:
        return None
    places = np.rint(np.concatenate([points.places() for points in drawn]) * _WHOLE)
    inside = np.isfinite(places).all(axis=1) & (places >= 0).all(axis=1) & (places <= _WHOLE).all(axis=1)
    told = pd.concat(
        [points.said if points.said is not None else pd.DataFrame(index=range(len(points.names))) for points in drawn]
    )
    told = told[inside]
    names = [name for points in drawn for name in points.names]
    return {
        "x": places[inside, 0].astype(int).tolist(),
        "y": places[inside, 1].astype(int).tolist(),
        "names": [name for name, kept in zip(names, inside, strict=True) if kept],
        "said": {str(name): [_short(value) for value in values_of(column)] for name, column in told.items()},
    }


def _short(value: Any) -> Any:
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value
