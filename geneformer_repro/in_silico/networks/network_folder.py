"""From the sums of groups of cells to the folder of a network: effects of genes, edges, what each gene is like.

All of it follows from the sums, so nothing here knows the model. A state's weights are fitted once as a whole, and each
donor's; the edges are then found in blocks of sources, each read from the files of all donors: of weights one matrix is
in memory, whatever the number of donors, and one of p-values where there are three donors or more.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from scipy.stats import spearmanr
from scipy.stats import t as student

from geneformer_repro.files import new_directory, write_json
from geneformer_repro.in_silico.networks.donor_tests import FEWEST_DONORS
from geneformer_repro.in_silico.networks.gene_effects import GeneEffects, gene_effects
from geneformer_repro.in_silico.networks.gene_network import (
    DIRECTION,
    EDGES,
    EDGES_A_TARGET,
    GeneNetwork,
    Sums,
    add_block,
    add_sums,
    blocks_of_sources,
    least_cells,
    mean_weights,
    write_edges,
    write_sums,
)
from geneformer_repro.in_silico.networks.network_files import FORMAT, MARKER
from geneformer_repro.in_silico.networks.network_graphs import scores_of
from geneformer_repro.in_silico.published_statistics import false_discovery_rate
from geneformer_repro.progress import progress

_OVER_DONORS = ("donor_mean", "low", "high", "p_value")
PlacePart = Callable[[str, np.ndarray, np.ndarray], np.ndarray]
"""Of a state and of pairs (rows and columns of a matrix), what was taken out of their weights for their places."""


Halves = Callable[[Sequence[int], int], Sums]
"""Of some groups by number, what was added up over one half of their cells, 0 or 1."""
FEWEST_COMPARED = 10
_MANY = 20_000_000
"""Pairs of genes, times groups, that take more than a few seconds."""
_COMPARED = 200_000
"""Pairs, at most so many drawn from more, whose weights are compared between two halves of the cells."""


class Group(NamedTuple):
    """Cells that were added up together: of a state, and of a donor where donors are known."""

    state: str
    donor: str | None
    n_cells: int
    n_with_gene: np.ndarray
    """Cells that express each gene."""
    place: np.ndarray
    """Sum over those cells of the gene's place."""

    @property
    def name(self) -> str:
        """The group in words."""
        return self.state if self.donor is None else f"{self.state}, {self.donor}"


def sums_file(i: int) -> str:
    """Return the file of a group's sums, in the folder of a network."""
    return f"sums/{i:04d}.parquet"


def finish(
    folder: Path,
    genes: pd.DataFrame,
    groups: Sequence[Group],
    metadata: Mapping[str, Any],
    *,
    mass: Mapping[str, np.ndarray] | None = None,
    place_part: PlacePart | None = None,
    halves: Halves | None = None,
) -> None:
    """Write what is beside the sums of a network.

    Parameters
    ----------
    folder
        Holds `sums_file` of each group already.
    genes
        By gene id: ``gene_name``, ``is_source``, ``is_target``.
    groups
        The groups, in the order of their files.
    metadata
        What made the sums: ``method``, ``measure``, ``scale``, ``weight``, ``min_cells`` and more.
    mass
        Of each state the attention that each gene receives.
    place_part
        What was taken out for places; None: nothing is known of it.
    halves
        Sums of every other cell, to say how far two halves agree; None: nothing is said.
    """
    states: dict[str, Any] = {}
    columns: dict[str, np.ndarray] = {}
    edges = []
    names = list(dict.fromkeys(group.state for group in groups))
    with progress("edges", total=len(groups) + 3 * len(names), unit="fits", quiet=is_soon_done(genes, groups)) as bar:
        for state in names:
            of_state = [(i, group) for i, group in enumerate(groups) if group.state == state]
            pairs = _State(folder, genes, of_state, metadata, bar.update)
            edges.append(pairs.edges(place_part))
            bar.update()
            states[state] = pairs.facts() | pairs.agreement(halves)
            bar.update()
            columns |= {f"{name}:{state}": values for name, values in pairs.nodes().items()}
            columns[f"mass:{state}"] = np.full(len(genes), np.nan) if mass is None else mass[state]
    table = genes[["gene_name", "is_source", "is_target"]].assign(**columns).rename_axis("gene_id").reset_index()
    table.to_parquet(folder / "genes.parquet", index=False, compression="zstd")
    write_edges(folder / "edges.parquet", pd.concat(edges, ignore_index=True))
    listed = [
        {"state": group.state, "donor": group.donor, "n_cells": group.n_cells, "file": sums_file(i)}
        for i, group in enumerate(groups)
    ]
    whole = {"format": FORMAT, "direction": DIRECTION, **metadata, "groups": listed, "states": states}
    write_json(folder / MARKER, whole)


def is_soon_done(genes: pd.DataFrame, groups: Sequence[Group]) -> bool:
    """Whether groups hold so few pairs that no progress need be shown."""
    return bool(genes["is_source"].sum() * genes["is_target"].sum() * len(groups) < _MANY)


class _Effects(NamedTuple):
    """What is taken out of the weights of a group."""

    mean: float
    source: np.ndarray
    target: np.ndarray

    @classmethod
    def of(cls, fitted: GeneEffects | None) -> "_Effects | None":
        """Keep what is small of a fit."""
        return None if fitted is None else cls(fitted.mean, fitted.source, fitted.target)


class _State:
    """A state's pairs: what the files of its groups come to."""

    def __init__(
        self,
        folder: Path,
        genes: pd.DataFrame,
        groups: Sequence[tuple[int, Group]],
        metadata: Mapping[str, Any],
        counting: Callable[[int], object],
    ) -> None:
        self._state, self._groups, self._genes = groups[0][1].state, [group for _, group in groups], genes
        self._files = [folder / sums_file(i) for i, _ in groups]
        self._scale, self._min_cells = str(metadata["scale"]), int(metadata["min_cells"])
        self._is_source, self._is_target = (genes[name].to_numpy() for name in ("is_source", "is_target"))
        self._shape = (int(self._is_source.sum()), int(self._is_target.sum()))
        donors = [group.donor for group in self._groups]
        fitted = self._fit(self._files)
        self._explained = None if fitted is None or np.isnan(fitted.explained) else fitted.explained
        self._effects = _Effects.of(fitted) or _Effects(0.0, *(np.full(n, np.nan) for n in self._shape))
        far = np.zeros(self._shape, dtype=bool) if fitted is None else fitted.far
        del fitted  # what is left of each pair is made again, block by block
        self._numbers, self._far = [i for i, _ in groups], far
        counting(1)
        self._of_donors = []
        for file in self._files:
            if None not in donors:
                self._of_donors.append(_Effects.of(self._fit([file], far)))
            counting(1)

    def _fit(self, files: Sequence[Path], far: np.ndarray | None = None) -> GeneEffects | None:
        """Fit the effects of genes to the cells of some groups; None where no pair has cells enough.

        A donor's are fitted without the pairs `far` from the fit of the whole state, which its cells could not tell.
        """
        total, n = np.zeros(self._shape), np.zeros(self._shape, dtype=np.int32)
        for file in files:
            add_sums(file, total, n)
        weights = self._weights(total, n, of_donor=far is not None)
        if not _has_weight(weights, far):
            return None
        return gene_effects(weights, n, masked=far, overwrite_weights=True)

    def _weights(self, total: np.ndarray, n: np.ndarray, *, of_donor: bool) -> np.ndarray:
        least = least_cells(self._min_cells, of_donor=of_donor)
        return mean_weights(total, n, least=least, scale=self._scale, out=total)

    def facts(self) -> dict[str, Any]:
        """Say what the state is, as JSON can hold it."""
        return {
            "n_cells": sum(group.n_cells for group in self._groups),
            "n_donors": len(self._of_donors),
            "mean": float(self._effects.mean),
            "explained_by_genes": self._explained,
        }

    def agreement(self, halves: Halves | None) -> dict[str, Any]:
        """Say how far the weights of two halves of the cells agree, by Spearman; None where no pair has both."""
        if halves is None:
            return {}
        n_pairs, rng = self._far.size, np.random.default_rng(0)
        drawn = np.arange(n_pairs) if n_pairs <= _COMPARED else np.unique(rng.integers(n_pairs, size=_COMPARED))
        first, second = (self._of_half(halves(self._numbers, half), drawn) for half in range(2))
        both = ~(np.isnan(first) | np.isnan(second))
        agrees = float(spearmanr(first[both], second[both]).statistic) if both.sum() > FEWEST_COMPARED else np.nan
        return {"agreement_of_halves": None if np.isnan(agrees) else agrees, "n_pairs_of_halves": int(both.sum())}

    def _of_half(self, sums: Sums, drawn: np.ndarray) -> np.ndarray:
        """Return weights of some pairs by half of the cells, fitted as those of a donor; a pair needs half as many."""
        least = max(1, self._min_cells // 2)
        weights = mean_weights(*sums, least=least, scale=self._scale, out=sums.total)
        if not _has_weight(weights, self._far):
            return np.full(len(drawn), np.nan)
        left: np.ndarray = gene_effects(weights, sums.n, masked=self._far, overwrite_weights=True).residual
        return left.ravel()[drawn]

    def nodes(self) -> dict[str, np.ndarray]:
        """Return what is known of each gene in this state, but for its mass."""
        n_cells = np.sum([group.n_with_gene for group in self._groups], axis=0)
        place = np.sum([group.place for group in self._groups], axis=0)
        alpha, beta = np.full(len(self._genes), np.nan), np.full(len(self._genes), np.nan)
        alpha[self._is_source], beta[self._is_target] = self._effects.source, self._effects.target
        mean_place = np.divide(place, n_cells, out=np.full(len(n_cells), np.nan), where=n_cells > 0)
        return {"n_cells": n_cells.astype(np.int32), "mean_place": mean_place, "alpha": alpha, "beta": beta}

    def edges(self, place_part: PlacePart | None) -> pd.DataFrame:
        """Return the strongest edges of each target, the strongest first."""
        best = pd.DataFrame()
        with ExitStack() as together:
            files = [together.enter_context(pq.ParquetFile(file)) for file in self._files]
            tested: list[np.ndarray] = []
            for i, rows in enumerate(blocks_of_sources(self._shape)):
                block = self._block(files, i, rows)
                tested.append(block["p_value"][~np.isnan(block["p_value"])])
                best = _strongest(pd.concat([best, self._candidates(block, rows)], ignore_index=True))
        p_values = np.concatenate([best["p_value"].to_numpy(), *tested]) if len(best) else np.array([])
        best["fdr"] = _among(p_values, len(best))
        return self._described(best, place_part)

    def _block(self, files: Sequence[pq.ParquetFile], i: int, rows: slice) -> dict[str, np.ndarray]:
        """Return what is known of the pairs of some sources: of all cells, and over donors."""
        shape = (rows.stop - rows.start, self._shape[1])
        whole = Sums(np.zeros(shape), np.zeros(shape, dtype=np.int32))
        n_donors, mean, spread = np.zeros(shape, dtype=np.int32), np.zeros(shape), np.zeros(shape)
        for j, file in enumerate(files):
            one = Sums(np.zeros(shape), np.zeros(shape, dtype=np.int32))
            add_block(file, i, *one, first=rows.start)
            whole.total[:], whole.n[:] = whole.total + one.total, whole.n + one.n
            if self._of_donors and (effects := self._of_donors[j]) is not None:
                weights = _left(self._weights(*one, of_donor=True), effects, rows)
                known = ~np.isnan(weights)
                n_donors += known
                step = np.where(known, weights - mean, 0.0)  # Welford's, so that nearly equal donors keep their digits
                mean += step / np.maximum(n_donors, 1)
                spread += step * np.where(known, weights - mean, 0.0)
        weights = _left(self._weights(*whole, of_donor=False), self._effects, rows)
        return {"weight": weights, "n_cells": whole.n, **_over_donors(mean, spread, n_donors, ~np.isnan(weights))}

    def _candidates(self, block: Mapping[str, np.ndarray], rows: slice) -> pd.DataFrame:
        """Return the best edges of each target in a block."""
        score = scores_of(block["weight"], block["n_cells"])
        score = np.where(score > 0, score, -np.inf)  # NaN too
        k = min(EDGES_A_TARGET, len(score))
        source = np.argpartition(-score, k - 1, axis=0)[:k].ravel()
        target = np.tile(np.arange(score.shape[1]), k)
        chosen = score[source, target] > 0
        source, target = source[chosen], target[chosen]
        of_pairs = {name: values[source, target] for name, values in block.items()}
        return pd.DataFrame({"row": source + rows.start, "column": target, "score": score[source, target], **of_pairs})

    def _described(self, best: pd.DataFrame, place_part: PlacePart | None) -> pd.DataFrame:
        """Return edges with names and parts, in the order of their rank."""
        if best.empty:
            return pd.DataFrame({name: pd.Series(dtype=kind.to_pandas_dtype()) for name, kind in EDGES.items()})
        row, column = best["row"].to_numpy(), best["column"].to_numpy()
        ids = self._genes.index.to_numpy()
        place = np.full(len(best), np.nan) if place_part is None else place_part(self._state, row, column)
        parts = {"source_part": self._effects.source[row], "target_part": self._effects.target[column]}
        lift = best["weight"] + self._effects.mean + parts["source_part"] + parts["target_part"] + place
        named = {"state": self._state, "source": ids[self._is_source][row], "target": ids[self._is_target][column]}
        measured = {"lift": lift, "place_part": place, "codetection": self._codetection(best)}
        return best.assign(**named, **measured, **parts)[list(EDGES)]

    def _codetection(self, pairs: pd.DataFrame) -> np.ndarray:
        """Return how many cells have both genes over how many would if each were in as many, but independently."""
        n_with_gene = np.sum([group.n_with_gene for group in self._groups], axis=0)
        of_source, of_target = n_with_gene[self._is_source][pairs["row"]], n_with_gene[self._is_target][pairs["column"]]
        n_cells = sum(group.n_cells for group in self._groups)
        return pairs["n_cells"].to_numpy() * n_cells / np.maximum(of_source * of_target.astype(np.float64), 1)


def _has_weight(weights: np.ndarray, far: np.ndarray | None) -> bool:
    """Whether some pair has a weight and is not left out."""
    known = np.isnan(weights)
    np.logical_not(known, out=known)
    if far is not None:
        known[far] = False
    return bool(known.any())


def _left(weights: np.ndarray, effects: _Effects, rows: slice) -> np.ndarray:
    return weights - effects.mean - effects.source[rows, None] - effects.target


def _over_donors(
    mean: np.ndarray, spread: np.ndarray, n_donors: np.ndarray, is_known: np.ndarray
) -> dict[str, np.ndarray]:
    """Return mean, 95 % interval and p-value of a mean of 0 over donors, where there are enough of them."""
    enough = (n_donors >= FEWEST_DONORS) & is_known
    free, found = n_donors[enough] - 1, {name: np.full(mean.shape, np.nan) for name in _OVER_DONORS}
    error = np.sqrt(spread[enough] / free / n_donors[enough])
    reach = student.ppf(0.975, free) * error
    with np.errstate(divide="ignore", invalid="ignore"):
        evidence = np.abs(mean[enough]) / error
    found["donor_mean"][enough] = mean[enough]
    found["low"][enough], found["high"][enough] = mean[enough] - reach, mean[enough] + reach
    found["p_value"][enough] = 2 * student.sf(evidence, free)
    return {**found, "n_donors": np.where(is_known, n_donors, 0)}


def _strongest(edges: pd.DataFrame) -> pd.DataFrame:
    """Return the best edges of each target, the strongest of all first; of equal ones the first genes."""
    if edges.empty:
        return edges
    ranked = edges.sort_values(["score", "column", "row"], ascending=[False, True, True], kind="stable")
    return ranked[ranked.groupby("column").cumcount() < EDGES_A_TARGET].reset_index(drop=True)


def _among(p_values: np.ndarray, n_asked: int) -> np.ndarray:
    """Return false discovery rates of the first p-values among all others behind them, which hold them too."""
    asked, tested = p_values[:n_asked], np.sort(p_values[n_asked:])
    if not len(tested):
        return np.full(n_asked, np.nan)
    fdr = false_discovery_rate(pd.Series(tested)).to_numpy()
    place = np.minimum(np.searchsorted(tested, asked, side="right") - 1, len(tested) - 1)
    return np.where(np.isnan(asked), np.nan, fdr[place])


def write_network(
    path: str | Path,
    genes: pd.DataFrame,
    sums: Mapping[tuple[str, str | None], Sums],
    groups: Sequence[Group],
    metadata: Mapping[str, Any],
    *,
    overwrite: bool = False,
) -> GeneNetwork:
    """Write a network of sums that are in memory, such as those of a simulation; return it.

    Parameters
    ----------
    path
        Folder to write.
    genes
        As of `finish`.
    sums
        Of each state and donor (None where donors are not known).
    groups
        What is known of their cells, in the same order.
    metadata
        As of `finish`; what is not given says "simulated", log weights and 20 cells a pair.
    overwrite
        Replace a network that stands there.
    """
    defaults = {"method": "simulated", "measure": "simulated", "scale": "log", "weight": "none", "min_cells": 20}
    with new_directory(path, marker=MARKER, overwrite=overwrite) as folder:
        (folder / "sums").mkdir()
        for i, (total, n) in enumerate(sums.values()):
            write_sums(folder / sums_file(i), total, n)
        finish(folder, genes, groups, defaults | dict(metadata))
    return GeneNetwork.open(path)
