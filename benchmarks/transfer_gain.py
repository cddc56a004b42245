"""What a study of cohorts finds where the truth is known: the gain of transfer by size of the target, and by sharing.

Run as ``python benchmarks/transfer_gain.py OUT [--sharing 0 0.5 1] [--targets N]``. Cohorts of 60 to 960 made-up
patients (`_cohorts`), of which so many of each size are the target in their turn, after a small search on all others;
each study is a folder of OUT, and what was cut off goes on. Prints the C-index from random weights, without learning
and fine-tuned, the gain with its 95 % interval over cohorts, and how it goes with size; draws it into ``OUT/gain.png``.
"""

import argparse
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from _cohorts import simulate_cohorts
from scipy.stats import spearmanr, t

import geneformer_repro as gf
from geneformer_repro.finetuning import results
from geneformer_repro.report import BLUE, GREY, LIGHT, ORANGE, new_axes

SIZES = (60, 240, 960)
COLOURS = (GREY, ORANGE, BLUE)


def study(out: Path, *, sharing: float, n_cohorts: int, n_targets: int) -> pd.DataFrame:
    """Return what transfer was worth in each cohort that was a target."""
    sizes = [SIZES[i % len(SIZES)] for i in range(n_cohorts)]
    samples = simulate_cohorts(n_cohorts, sizes, n_genes=200, sharing=sharing)
    config = gf.CohortStudyConfig(
        survival={"event": "event_time"},
        values="zscore",
        cohorts=tuple(samples.obs["cohort"].unique()[: n_targets * len(SIZES)]),
        halving={"n_trials": 3, "rungs": 1, "first_steps": 30, "space": {"width": [16, 64], "l2": [1e-3, 1e-1]}},
        network={"layers": 1},
        split={"folds": 2, "repeats": 1},
        training={"steps": 100, "rates": (1e-3, 1e-2), "epochs": 100},
        compare={"baselines": False},
    )
    if (out / "cohorts.tsv").exists():
        return pd.read_csv(out / "cohorts.tsv", sep="\t")
    with patch.object(results, "figures", lambda _: {}):  # of each cohort; half of the time
        return gf.transfer_study(samples, config=config, cohort="cohort", out=out).cohorts


def by_size(cohorts: pd.DataFrame) -> pd.DataFrame:
    """Return means over the cohorts of a size, and the interval of the gain."""
    grouped = cohorts.groupby("n")
    means = grouped[["c_scratch", "c_zero_shot", "c_fine_tuned", "difference"]].mean()
    n_cohorts = grouped.size()
    reach = t.ppf(0.975, n_cohorts - 1) * grouped["difference"].std() / np.sqrt(n_cohorts)
    low, high = means["difference"] - reach, means["difference"] + reach
    return means.assign(difference_low=low, difference_high=high, cohorts=n_cohorts)


def main() -> None:
    """Carry out the studies."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--sharing", nargs="+", type=float, default=[0.0, 0.5, 1.0])
    parser.add_argument("--cohorts", type=int, default=27)
    parser.add_argument("--targets", type=int, default=9, help="of each size")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(exist_ok=True)
    figure, axes = new_axes(6.4, 4.0)
    for i, sharing in enumerate(arguments.sharing):
        options = {"sharing": sharing, "n_cohorts": arguments.cohorts, "n_targets": arguments.targets}
        cohorts = study(arguments.out / f"sharing-{sharing:g}", **options)
        table = by_size(cohorts)
        print(f"shared programmes make {sharing:.0%} of the risk's variance", table.round(3).to_string(), sep="\n")
        rho, p = spearmanr(cohorts["n"], cohorts["difference"])
        print(f"Spearman of size and gain {rho:.2f}, p = {p:.2g}")
        error = table["difference"] - table["difference_low"]
        sizes = table.index * 1.03 ** (i - 1)  # so that bars do not hide each other
        axes.errorbar(sizes, table["difference"], yerr=error, fmt="o-", color=COLOURS[i % len(COLOURS)], markersize=4,
                      elinewidth=1, label=f"{sharing:.0%} of the risk is shared")  # fmt: skip
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xticks(SIZES, [str(n) for n in SIZES])
    axes.set_xticks([], minor=True)
    axes.set(xlabel="patients of the target cohort", ylabel="C-index of fine-tuned less scratch")
    axes.grid(color=LIGHT)
    axes.legend(frameon=False)
    figure.savefig(arguments.out / "gain.png", dpi=150)


if __name__ == "__main__":
    main()
