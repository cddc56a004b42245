"""Goals drawn at random, which say whether a screen's ranking has to do with its goal.

Vectors of a model's cells lie close together, so that what moves a cell at all moves it much alike towards every state:
a screen ranks genes towards any goal, also one that means nothing. A sham goal is as far from the start state as the
goal is, in a direction in which cells of the start state differ among themselves: the difference between the means of
two random halves of them, drawn out to that distance. What a gene does towards the goal and not towards shams is about
the goal. A variant is read once, and its nearness to k more vectors costs next to nothing beside the network.

Whether a ranking depends on its goal is asked of how far genes move apart, not of how far rankings agree. Agreement
misleads in both directions: cells of a state may differ along the goal's own axis, as all do after fine-tuning on the
states, and then every direction has the goal's ranking, or that turned round. A classifier of planted states, whose six
planted genes led, agreed with its shams by 0.91 (Spearman), as well as these with each other.

Shapes: N cells, D hidden size, K shams, G genes.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from geneformer_repro.errors import InputError
from geneformer_repro.in_silico.blockwise import added_by_donor
from geneformer_repro.in_silico.shift_table import SHAMS, ShiftTable

N_SHAMS = 19
"""Beside the goal twenty directions, so that 0 or 1 of ``sham_percentile`` has one chance in ten."""
FEWEST_CELLS = 20
"""Cells of the start state below which shams are not drawn by themselves: halves of ten."""
MOST_CELLS = 500
"""Cells of the start state that are halved: their mean is not what matters, but in which directions they differ."""
FEWEST_GENES = 10
"""Genes that a rank correlation is taken over, each in at least so many cells."""
LEVEL = 0.05
"""Share of goals drawn at random that may be said to be what a ranking depends on."""
LITTLE, HALF = 0.05, 0.5
"""Shares of the variance of effects that are the goal's own: below, a ranking is that towards any goal; above, most of
it is the goal's. Of 20 states without meaning the largest share was 0.03 (docs/in_silico.md)."""
ATTRIBUTE = "goal_dependence"
_KEYS = ["dose", "perturbed"]


def sham_goals(
    vectors_ND: np.ndarray, start_D: np.ndarray, goal_D: np.ndarray, *, n: int, rng: np.random.Generator
) -> np.ndarray:
    """Draw goals as far from the start as the goal is, in directions in which cells of the start differ, (K, D).

    Parameters
    ----------
    vectors_ND
        Of cells of the start state, at least two that differ.
    start_D, goal_D
        Vectors of the states.
    n
        How many.
    rng
        Halves the cells.

    Raises
    ------
    InputError
        All cells are alike.
    """
    cells_ND = vectors_ND.astype(np.float64)
    distance, half = np.linalg.norm(goal_D.astype(np.float64) - start_D), len(cells_ND) // 2
    shams = []
    for _ in range(n):
        order = rng.permutation(len(cells_ND))
        away_D = cells_ND[order[:half]].mean(0) - cells_ND[order[half:]].mean(0)
        length = np.linalg.norm(away_D)
        if not length > 0:
            raise InputError("The cells of the start state are all alike to the model: shams have no direction.")
        shams.append(start_D + away_D * (distance / length))
    return np.stack(shams).astype(np.float32)


def has_shams(shifts: ShiftTable) -> bool:
    """Whether a screen measured movement towards sham goals."""
    return bool(shifts.metadata.get(SHAMS))


def sham_columns(table: pd.DataFrame, shifts: ShiftTable, *, by_donor: bool) -> pd.DataFrame:
    """Add to a table of genes how their effect stands among those towards sham goals.

    Parameters
    ----------
    table
        Indexed by gene id; ``effect``, ``n_cells``, ``warning``, and ``dose`` where there are several.
    shifts
        The screen.
    by_donor
        Whether an effect is a mean over donors of their means, else one over cells.

    Returns
    -------
    The table with ``effect_vs_sham`` and ``sham_percentile`` before ``warning``; in ``attrs`` how far rankings agree.
    """
    dose = table["dose"].to_numpy() if "dose" in table else np.full(len(table), np.nan)
    keys = pd.MultiIndex.from_arrays([dose, table.index.astype(str)], names=_KEYS)
    effect_GK = _effects(shifts, by_donor=by_donor).reindex(keys).to_numpy()
    effect, at = table["effect"].to_numpy()[:, None], list(table).index("warning")
    below = (effect_GK < effect).mean(1)
    table.insert(at, "effect_vs_sham", effect[:, 0] - effect_GK.mean(1))
    table.insert(at + 1, "sham_percentile", np.where(np.isnan(effect_GK).any(1), np.nan, below))
    goal = shifts.metadata["goal"]
    others = {state: table[f"effect_to_{state}"].to_numpy() for state in goal["alternatives"]}
    table.attrs[ATTRIBUTE] = dependence(effect[:, 0], effect_GK, table["n_cells"].to_numpy(), others)
    return table


def _effects(shifts: ShiftTable, *, by_donor: bool) -> pd.DataFrame:
    """Return of each dose and gene the effect towards each sham, read block by block."""

    def blocks() -> Iterator[pd.DataFrame]:
        goal = shifts.metadata["goal"]["goal"]
        for block in shifts.blocks([*_KEYS, "donor", "state", "affected", "value", SHAMS]):
            rows = block[(block["state"] == goal) & block["affected"].isna() & block["value"].notna()]
            if len(rows):
                values = pd.DataFrame(np.stack(rows[SHAMS].to_list()).astype(np.float64), index=rows.index)
                yield rows[[*_KEYS, "donor"]].join(values.assign(n=1))

    how = dict.fromkeys([*range(shifts.metadata[SHAMS]), "n"], "sum")
    of_donors = added_by_donor(blocks(), _KEYS, how, by_donor=by_donor)
    means = of_donors.drop(columns="n").div(of_donors["n"], axis=0)
    return means.groupby(level=_KEYS, dropna=False).mean()


class _Range(NamedTuple):
    """Rank correlations: median of their sizes, lowest and highest.

    A sham lies in a random direction or, as likely, in the one against it, which turns its ranking round.
    """

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, correlations: np.ndarray) -> "_Range":
        return cls(*map(float, (np.median(np.abs(correlations)), np.min(correlations), np.max(correlations))))

    @property
    def in_words(self) -> str:
        return f"{self.median:.2f} ({self.lowest:.2f} to {self.highest:.2f})".replace("-", "−")


def dependence(
    effect_G: np.ndarray, sham_GK: np.ndarray, n_cells_G: np.ndarray, others: Mapping[str, np.ndarray]
) -> dict[str, Any] | None:
    """Return how far the ranking of genes towards the goal is that towards shams, as JSON can hold it.

    Parameters
    ----------
    effect_G, sham_GK
        Effects towards the goal, and towards each sham.
    n_cells_G
        Cells of each gene; those in fewer than ten say little, and are left out.
    others
        Effects towards further states.

    Returns
    -------
    - ``n_genes``, ``n_shams``.
    - ``own_share``: of the variance of effects over genes the share that is the goal's own. The rest is of the mean
      over shams, which is common to goals in all directions.
    - ``n_below``: shams towards which genes move apart less than towards the goal, once what is common to all of these
      directions is taken off (standard deviation over genes). Were the goal one of them, all would be below with one
      chance in ``n_shams + 1``.
    - ``depends_on_goal``: "no" (own share below 0.05); "yes" or, with an own share below 0.5, "in part", where the goal
      is among the 5 % of directions towards which genes move apart most; else "as at random". "not known" where shams
      are fewer than 19, which cannot tell 5 %.
    - Spearman correlations (median without sign, lowest, highest) ``to_shams`` and ``among_shams``; ``to_states``.

    None of fewer than ten genes, or effects that are flat.
    """
    known = (n_cells_G >= FEWEST_GENES) & np.isfinite(sham_GK).all(1) & np.isfinite(effect_G)
    known &= np.isfinite(np.column_stack([effect_G, *others.values()])).all(1)
    all_GX = np.column_stack([effect_G, sham_GK, *others.values()])[known]
    if len(all_GX) < FEWEST_GENES or (np.ptp(all_GX, axis=0) == 0).any():
        return None
    n_shams = sham_GK.shape[1]
    correlation_XX = np.corrcoef(rankdata(all_GX, axis=0), rowvar=False)
    to_shams = correlation_XX[0, 1 : n_shams + 1]
    among = correlation_XX[1 : n_shams + 1, 1 : n_shams + 1][np.triu_indices(n_shams, 1)]
    own_share, n_below = _of_its_own(all_GX[:, : n_shams + 1])
    return {
        "n_genes": len(all_GX),
        "n_shams": n_shams,
        "own_share": own_share,
        "n_below": n_below,
        "to_shams": list(_Range.of(to_shams)),
        "among_shams": list(_Range.of(among)) if len(among) else None,
        "to_states": {name: float(correlation_XX[0, n_shams + 1 + i]) for i, name in enumerate(others)},
        "depends_on_goal": _depends(own_share, n_below, n_shams),
    }


def _of_its_own(effect_GX: np.ndarray) -> tuple[float, int]:
    """Return the share of variance that is the goal's own, and how many shams have less of their own than it has.

    The goal stands first. What is taken off is the mean over all directions, so goal and shams are treated alike.
    """
    effect_GX = effect_GX - effect_GX.mean(axis=0)
    common_G = effect_GX[:, 1:].mean(axis=1)
    own, common = (effect_GX[:, 0] - common_G).var(), common_G.var()
    spread_X = (effect_GX - effect_GX.mean(axis=1, keepdims=True)).std(axis=0)
    return float(own / (own + common)), int((spread_X[1:] < spread_X[0]).sum())


def _depends(own_share: float, n_below: int, n_shams: int) -> str:
    if own_share < LITTLE:
        return "no"
    if _by_chance(n_shams, n_shams) > LEVEL:
        return "not known"
    if _by_chance(n_below, n_shams) > LEVEL:
        return "as at random"
    return "yes" if own_share >= HALF else "in part"


def _by_chance(n_below: int, n_shams: int) -> float:
    """Return the chance of one of these directions to have so many of the others below it, or more."""
    return (1 + n_shams - n_below) / (1 + n_shams)


_SAID = {
    "no": "the ranking of genes does not depend on the goal",
    "as at random": "the ranking of genes depends on the goal no more than on one drawn at random",
    "not known": "whether the ranking of genes depends on the goal is not known of fewer than 19 sham goals",
    "in part": "the ranking of genes depends on the goal in part",
    "yes": "the ranking of genes depends on the goal",
}


def dependence_in_words(attrs: Mapping[Any, Any]) -> str:
    """Say whether a ranking depends on the goal, from the ``attrs`` of a table of genes; "" where it is not known."""
    found = attrs.get(ATTRIBUTE)
    if not found:
        return ""
    n = found["n_shams"]
    among = "" if found["among_shams"] is None else f"; these with each other {_Range(*found['among_shams']).in_words}"
    states = "".join(f"; with the ranking towards {name} {rho:.2f}" for name, rho in found["to_states"].items())
    to_shams = f"{_Range(*found['to_shams']).in_words} (Spearman, median without sign, and range)"
    return (
        f"{_SAID[found['depends_on_goal']]}: {100 * found['own_share']:.1f} % of the variance of effects is of this "
        "goal alone, the rest common to goals drawn at random, and genes move apart towards it more than towards "
        f"{found['n_below']} of {n} of these (by chance so many in {100 * _by_chance(found['n_below'], n):.0f} % of "
        f"screens; {n} shams can tell {100 / (n + 1):.0f} % at best). With rankings towards these it agrees, or is one "
        f"turned round, by {to_shams}{among}{states.replace('-', '−')}"
    )
