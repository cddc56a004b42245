"""The picture of a pretraining run."""

from typing import TYPE_CHECKING

import pandas as pd

from geneformer_repro.report import BLUE, ORANGE, new_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def loss_figure(history: pd.DataFrame, guesses: "pd.Series[float]") -> "Figure":
    """Draw training and held-out loss over the passes, against the losses of guesses that need no model.

    Parameters
    ----------
    history
        ``epoch``, ``loss`` and ``eval_loss`` (nats a masked gene); rows may have either.
    guesses
        Held-out loss of each guess, by name.
    """
    figure, axes = new_axes(6.4, 3.8)
    history = history.reindex(columns=["epoch", "loss", "eval_loss"])
    training, held_out = history.dropna(subset=["loss"]), history.dropna(subset=["eval_loss"])
    axes.plot(training["epoch"], training["loss"], color=BLUE, alpha=0.45, linewidth=1.2, label="training cells")
    axes.plot(
        held_out["epoch"],
        held_out["eval_loss"],
        color=BLUE,
        marker="o",
        markersize=3.5,
        linewidth=1.8,
        label="held-out cells",
    )
    for (name, loss), style in zip(guesses.items(), ("--", ":"), strict=False):
        axes.axhline(loss, color=ORANGE, linestyle=style, linewidth=1.5, label=f"guess by {name} (no model)")
    axes.set(xlabel="passes over the training cells", ylabel="loss (nats per masked gene)")
    axes.legend(frameon=False, fontsize=9, ncols=2, loc="lower left", bbox_to_anchor=(-0.02, 1.0), borderaxespad=0.2)
    return figure
