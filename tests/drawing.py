"""What tests of figures share: how to read one, and what holds of each."""

import io
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from geneformer_repro import InputError
from geneformer_repro.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@contextmanager
def blank() -> Iterator[None]:
    """Save pictures without drawing them: files without content."""
    from matplotlib.figure import Figure

    def savefig(_, target, **_options):
        if isinstance(target, Path | str):
            Path(target).write_bytes(b"")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", savefig)
        yield


def texts(figure):
    """Words that are drawn: of annotations, axes and legends."""
    axes = figure.axes[0]
    legend = axes.get_legend()
    return {
        "written": [text.get_text() for text in axes.texts],
        "axes": [axes.get_xlabel(), axes.get_ylabel()],
        "legend": [text.get_text() for text in legend.get_texts()] if legend else [],
    }


def named_points(figure):
    """What a page is told of a figure's points."""
    from geneformer_repro.report_points import points_of

    figure.draw_without_rendering()
    return points_of(figure)


def rows(axes):
    """Names of the rows, from the top of the picture down."""
    assert axes.yaxis_inverted()
    return [label.get_text() for label in axes.get_yticklabels()]


class Saved(NamedTuple):
    figure: "Figure"
    png: bytes


class EveryFigure:
    """What holds of each figure of a module: parametrise a subclass by `draw`, with the scope of a class."""

    @pytest.fixture(scope="class")
    @classmethod
    def saved(cls, draw: "Callable[[], Figure]") -> Saved:
        """The figure, laid out and drawn once for all that is asked of it."""
        figure, file = draw(), io.BytesIO()
        figure.savefig(file)
        return Saved(figure, file.getvalue())

    def test_it_is_matplotlibs_own_and_can_be_saved(self, saved):
        from matplotlib.figure import Figure

        assert isinstance(saved.figure, Figure)
        assert saved.png.startswith(b"\x89PNG")

    def test_its_legend_does_not_lie_on_the_data(self, saved):
        axes = saved.figure.axes[0]
        if axes.get_legend():
            legend, data = axes.get_legend().get_window_extent(), axes.get_window_extent()
            assert legend.y0 >= data.y1 - 1 or legend.x0 >= data.x1 - 1
            assert saved.figure.bbox.x1 >= legend.x1

    def test_nothing_of_it_is_cut_off(self, saved):
        box, (width, height) = saved.figure.get_tightbbox(), saved.figure.get_size_inches()
        assert min(box.x0, box.y0) > -0.02
        assert max(box.x1 - width, box.y1 - height) < 0.02

    def test_without_matplotlib_the_error_names_the_extra_that_brings_it(self, draw, monkeypatch):
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        with pytest.raises(MissingExtraError, match=r"need matplotlib: pip install 'geneformer-repro\[plot\]'"):
            draw()
        assert issubclass(MissingExtraError, InputError)
