"""What a sampled screen finds of the exact one, beside a plain sample of as many passes and beside first order alone.

    python benchmarks/sampled_screens.py                                        # simulated screens
    python benchmarks/sampled_screens.py --checkpoint CLASSIFIER --pretrained MODEL --cells CELLS  # and real ones

The real ones are of 80 cells whose `--target`, which the classifier learned, is `--start`, cut to their first 300
genes; the goal of the pretrained model is of the same name. Exact and first-order screens of the same pairs are made
once, and kept in `--folder`; then many samples are drawn from what they hold, by the same functions that
`perturb(method="sampled")` calls. Genes in fewer than ten cells are left out, as there.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from _simulated_screens import Simulated, simulated

from geneformer_repro.in_silico.assisting_model import Pairs
from geneformer_repro.in_silico.sampling import Estimated, Z, estimated, next_draw, passes_of_rounds

N_CELLS, N_GENES, MIN_CELLS, TOP = 80, 300, 10, 50
SHARES = (0.1, 0.2, 0.3)


def main() -> None:
    """Draw, and print a row a screen and share of passes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="a classifier of cells")
    parser.add_argument("--pretrained", help="the model of the screen towards a goal")
    parser.add_argument("--cells", help="tokenised cells")
    parser.add_argument("--target", default="condition")
    parser.add_argument("--goal", default="IFNb_stimulated", help="class or state that is looked at")
    parser.add_argument("--start", default="control")
    parser.add_argument("--donor", default="donor")
    parser.add_argument("--folder", type=Path, default=Path("screens"))
    parser.add_argument("--samples", type=int, default=20)
    arguments = parser.parse_args()
    rows = []
    for name, screen in _screens(arguments):
        for share in SHARES:
            rows.append({"screen": name, **measured(screen, share, arguments.samples)})
            print(rows[-1], flush=True)
    print(pd.DataFrame(rows).round(3).to_csv(sep="|", index=False))


def _screens(arguments: argparse.Namespace) -> Iterator[tuple[str, Simulated]]:
    if arguments.checkpoint:
        yield from real_screens(arguments)
    for name, options in SIMULATED.items():
        yield name, simulated(**options)


SIMULATED: dict[str, dict[str, float]] = {
    "simulated, correlation 0.6, normal": {"correlation": 0.6, "freedom": np.inf},
    "simulated, correlation 0.6, heavy tails": {"correlation": 0.6, "freedom": 4.0},
    "simulated, correlation 0, heavy tails": {"correlation": 0.0, "freedom": 4.0},
    "simulated, correlation 0.6, cells alike": {"correlation": 0.6, "freedom": 4.0, "spread_of_cells": 0.0},
}


def real_screens(arguments: argparse.Namespace) -> Iterator[tuple[str, Simulated]]:
    """Screen all pairs exactly and to first order, once; yield both, and estimates dealt to other pairs."""
    import geneformer_repro as gf

    model, pretrained = map(gf.Checkpoint.from_pretrained, (arguments.checkpoint, arguments.pretrained))
    every = _cut(gf.TokenizedDataset.open(arguments.cells))
    starting = every.select(np.flatnonzero(every.obs[arguments.target] == arguments.start))
    goal = gf.GoalState(arguments.target, arguments.start, arguments.goal)
    questions = {
        "deletion, classifier": (model, starting, gf.Deletion(), {"target": arguments.target}),
        "deletion, goal": (pretrained, every, gf.Deletion(), {"goal": goal}),
        "overexpression, classifier": (model, starting, gf.Overexpression(), {"target": arguments.target}),
    }
    arguments.folder.mkdir(exist_ok=True)
    for name, (asked, cells, perturbation, options) in questions.items():
        tables = []
        for method in ("exact", "first_order"):
            out = arguments.folder / f"{name.replace(', ', '_')}_{method}.parquet"
            if not out.exists():
                gf.perturb(
                    asked, cells, perturbation, method=method, donor=arguments.donor, max_cells=N_CELLS, seed=1,
                    out=out, **options,
                )  # fmt: skip
            tables.append(gf.ShiftTable.open(out).table)
        screen = _of_tables(*tables, state=arguments.goal)
        yield name, screen
        shuffled = np.random.default_rng(0).permutation(screen.pairs.estimate_P)
        of_shuffled = Pairs(**{**vars(screen.pairs), "estimate_P": shuffled})
        yield f"{name}, estimates shuffled", Simulated(of_shuffled, screen.exact_P)


def _cut(cells):  # type: ignore[no-untyped-def]
    """Leave each cell its first genes."""
    table = cells.table.to_pandas()
    margin = int(cells.vocabulary.has_cls)
    keep = N_GENES - margin
    table["input_ids"] = [np.append(ids[:keep], ids[-1:] if margin else []).astype(int) for ids in table["input_ids"]]
    table["length"] = table["input_ids"].map(len)
    return type(cells)(type(cells.table).from_pandas(table, preserve_index=False), cells.vocabulary, cells.spec)


def _of_tables(exact: pd.DataFrame, first_order: pd.DataFrame, *, state: str) -> Simulated:
    keys = ["cell", "perturbed", "state"]
    table = exact.merge(first_order[[*keys, "estimate"]], on=keys, validate="one_to_one")
    table = table[table["state"] == state]
    table = table[table.groupby("perturbed")["cell"].transform("size") >= MIN_CELLS]
    table = table.sort_values(["perturbed", "donor", "rank"], kind="stable")
    of_donor = table.groupby(["perturbed", "donor"])["cell"].transform("size")
    n_donors = table.groupby("perturbed")["donor"].transform("nunique")
    gene_P, cell_P = (pd.factorize(table[name])[0] for name in ("perturbed", "cell"))
    weight_P = (1 / (of_donor * n_donors)).to_numpy()
    pairs = Pairs(gene_P, cell_P, table["estimate"].to_numpy(), weight_P, int(cell_P.max()) + 1)
    return Simulated(pairs, table["value"].to_numpy())


def sample(screen: Simulated, n_passes: int, seed: int, top: int) -> Estimated:
    """Draw all rounds from what is known."""
    exact_P, draws = np.full(len(screen.exact_P), np.nan), []
    rounds = passes_of_rounds(n_passes, screen.pairs.n_genes)
    for number in range(len(rounds)):
        draw = next_draw(screen.pairs, exact_P, draws, rounds, top, np.random.default_rng([seed, number]))
        exact_P[draw.drawn_P] = screen.exact_P[draw.drawn_P]
        draws.append(draw)
    return estimated(screen.pairs, exact_P, draws, top)


def plain(screen: Simulated, n_passes: int, seed: int, *, differences: bool) -> np.ndarray:
    """Sample as many pairs of each gene; or their differences from first order, with slope 1."""
    pairs, rng = screen.pairs, np.random.default_rng(seed)
    order = np.lexsort((rng.random(len(screen.exact_P)), pairs.gene_P))
    n_G = pairs.by_gene(np.ones(len(order)))
    starts = np.cumsum(n_G) - n_G
    wanted_G = np.minimum(np.maximum(np.rint(n_passes / len(n_G)), 2), n_G)
    gene = pairs.gene_P[order]
    chosen = order[np.arange(len(order)) - starts[gene] < wanted_G[gene]]
    values_P = screen.exact_P - pairs.estimate_P * differences
    weight, gene = pairs.weight_P[chosen], pairs.gene_P[chosen]
    of_sample = np.bincount(gene, weight * values_P[chosen], len(n_G)) / np.bincount(gene, weight, len(n_G))
    return np.asarray(of_sample + (pairs.means(pairs.estimate_P) if differences else 0))


def measured(screen: Simulated, share: float, n_samples: int) -> dict[str, float]:
    """Return what many samples of a share of the passes find."""
    pairs, truth_G = screen.pairs, screen.pairs.means(screen.exact_P)
    n_passes = max(round(share * len(screen.exact_P)), 2 * pairs.n_genes)
    held, wrong, found, right, errors = [], [], [], [], []
    for seed in range(n_samples):
        one = sample(screen, n_passes, seed, TOP)
        unbiased_G = pairs.means(one.unbiased_P)
        room_G = Z * np.sqrt(pairs.by_gene(pairs.weight_P**2 * one.variance_P))
        rounding = 1e-9 * np.abs(truth_G).max()
        held.append((np.abs(unbiased_G - truth_G) <= room_G + rounding).mean())
        simple_G, difference_G = (plain(screen, n_passes, seed, differences=of) for of in (False, True))
        errors.append([_rms(of - truth_G) for of in (simple_G, difference_G, unbiased_G, one.ranked.mean_G)])
        found.append([_found(truth_G, of) for of in (one.ranked.mean_G, simple_G, unbiased_G)])
        for decided_G, sign in zip(one.ranked.decided(), (-1, 1), strict=True):
            surely, top = np.flatnonzero(decided_G == 1), np.argsort(sign * truth_G)[:TOP]
            right.append(len(surely))
            wrong.append((~np.isin(surely, top)).sum())
    simple, difference, unbiased, ranking = np.mean(errors, axis=0)
    found_by = np.mean(found, axis=0)
    of_first_order = _found(truth_G, pairs.means(pairs.estimate_P))
    return {
        "passes": n_passes,
        "of": len(screen.exact_P),
        "intervals hold": float(np.mean(held)),
        "error of a plain sample, times": simple / unbiased,
        "of plain differences, times": difference / unbiased,
        "of a plain sample, times that of the ranking": simple / ranking,
        "highest found": found_by[0, 0],
        "lowest found": found_by[0, 1],
        "plain": found_by[1].mean(),
        "unbiased": found_by[2].mean(),
        "first order highest": of_first_order[0],
        "first order lowest": of_first_order[1],
        "decided": float(np.mean(right)),
        "wrongly": float(np.sum(wrong) / max(np.sum(right), 1)),
    }


def _found(truth_G: np.ndarray, values_G: np.ndarray) -> list[float]:
    """Return which share of the highest and of the lowest is found."""

    def tops(values_G: np.ndarray, sign: int) -> set[int]:
        return set(np.argsort(sign * values_G, kind="stable")[:TOP].tolist())

    return [len(tops(truth_G, sign) & tops(values_G, sign)) / TOP for sign in (-1, 1)]


def _rms(errors: np.ndarray) -> float:
    return float(np.sqrt((errors**2).mean()))


if __name__ == "__main__":
    main()
