"""Time of survival's losses and scores, ours and the alternative in turn, on made-up patients.

Losses with gradients: a plain quadratic version (every patient against every other, Breslow) and torchsurv's, which
sorts at every call; ours has sorted once, as in training, and the time of that is told too. Scores: scikit-survival's
C-index, and its scores in a loop over resamples. What is not installed is left out, and said.

python benchmarks/survival.py                          # about two minutes
python benchmarks/survival.py --patients 2000
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import torch
from _side_by_side import in_turn, machine, ratio

from geneformer_repro.finetuning.kinds.survival_scores import (
    Censoring,
    PredictedCurves,
    evaluate_survival,
    harrell_c,
)
from geneformer_repro.hazards import RiskSets

FOLLOW_UP, TIMES, HORIZON = 3000, np.linspace(100, 2500, 20), 1500.0


def patients(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Times in whole days, of which many are tied, events of two in five, and risks."""
    rng = np.random.default_rng(seed)
    risk = rng.normal(size=n)
    time_N = np.ceil(rng.exponential(1500 * np.exp(-risk / 2))).clip(1, FOLLOW_UP)
    return time_N, rng.random(n) < 0.4, risk


def quadratic_loss(log_hazard: torch.Tensor, event_time: torch.Tensor, event: torch.Tensor) -> torch.Tensor:
    """Breslow's loss as it is written down."""
    at_risk = event_time[None, :] >= event_time[event][:, None]
    return (log_hazard.where(at_risk, -torch.inf).logsumexp(1) - log_hazard[event]).sum()


def print_seconds(seconds: dict[str, list[float]]) -> None:
    for name, times in seconds.items():
        found = [f"{1000 * second:>10,.2f}" for second in (min(times), statistics.median(times), max(times))]
        print(f"  {name:<34} {' '.join(found)} ms  (min, median, max of {len(times)})")


def losses(n: int, runs: int) -> None:
    given = [torch.from_numpy(part) for part in patients(n)]
    event_time, event, log_hazard = given[0].float(), given[1], given[2].float().requires_grad_()
    works: dict[str, Callable[[], object]] = {"sorting, once": lambda: RiskSets(event_time, event)}
    works["plain quadratic, Breslow"] = lambda: quadratic_loss(log_hazard, event_time, event).backward()
    for ties in ("efron", "breslow"):
        risk_sets = RiskSets(event_time, event, ties=ties)  # type: ignore[arg-type]
        works[f"ours, {ties}"] = lambda risk_sets=risk_sets: risk_sets.loss(log_hazard).backward()
    if find_spec("torchsurv"):
        from torchsurv.loss.cox import neg_partial_log_likelihood

        for ties in ("efron", "breslow"):
            options = {"ties_method": ties, "reduction": "sum"}
            works[f"torchsurv, {ties}"] = lambda options=options: neg_partial_log_likelihood(
                log_hazard, event, event_time, **options
            ).backward()
    else:
        print("\ntorchsurv is not installed: its losses are left out (pip install torchsurv)")
    print(f"\nLoss and gradient of {n:,} patients")
    seconds = in_turn(works, runs=runs)
    print_seconds(seconds)
    for ties in ("efron", "breslow"):
        ratio(f"{ties}: quadratic/ours", seconds["plain quadratic, Breslow"], seconds[f"ours, {ties}"], "time")
        if f"torchsurv, {ties}" in seconds:
            ratio(f"{ties}: torchsurv/ours", seconds[f"torchsurv, {ties}"], seconds[f"ours, {ties}"], "time")


def concordance(n: int, n_both: int, runs: int) -> None:
    large, small = patients(n), patients(n_both)
    works: dict[str, Callable[[], object]] = {f"ours, {n:,}": lambda: harrell_c(*large)}
    works[f"ours, {n_both:,}"] = lambda: harrell_c(*small)
    if find_spec("sksurv"):
        from sksurv.metrics import concordance_index_censored

        time_N, event_N, risk_N = small
        works[f"scikit-survival, {n_both:,}"] = lambda: concordance_index_censored(event_N, time_N, risk_N)
    print("\nHarrell's C")
    seconds = in_turn(works, runs=runs)
    print_seconds(seconds)
    if len(works) == 3:
        ratio("ratio", seconds[f"scikit-survival, {n_both:,}"], seconds[f"ours, {n_both:,}"], "time")


def bootstrap(n: int, n_draws: int, runs: int) -> None:
    time_N, event_N, risk_N = patients(n)
    curves = PredictedCurves(TIMES, np.exp(-np.exp(risk_N)[:, None] * TIMES / 3000))
    censoring = Censoring.of(time_N, event_N)

    def ours() -> object:
        options = {"censoring": censoring, "horizon": HORIZON, "curves": curves}
        return evaluate_survival(time_N, event_N, risk_N, **options, groups=None, rng=np.random.default_rng(0))

    print(f"\nAll scores of {n:,} patients in 1,000 resamples")
    began, cpu = time.perf_counter(), time.process_time()
    ours()
    print(f"  the first time: {time.perf_counter() - began:.2f} s, {time.process_time() - cpu:.2f} s of CPU")
    seconds = in_turn({"ours, 1,000 resamples": ours}, runs=runs)
    print_seconds(seconds)
    if not find_spec("sksurv"):
        print("  scikit-survival is not installed: its loop is left out (pip install 'geneformer-repro[survival]')")
        return
    began = time.perf_counter()
    for seed in range(n_draws):
        rows = np.random.default_rng(seed).integers(n, size=n)
        stock_scores(time_N, event_N, risk_N, curves, rows)
    stock = (time.perf_counter() - began) / n_draws * 1000
    print(f"  scikit-survival in a loop: {stock:.0f} s (from {n_draws} resamples), without calibration; ", end="")
    print(f"{stock / statistics.median(next(iter(seconds.values()))):.0f} × our time")


def stock_scores(
    time_N: np.ndarray, event_N: np.ndarray, risk_N: np.ndarray, curves: PredictedCurves, rows: np.ndarray
) -> None:
    """Compute the scores of one resample as scikit-survival gives them, but calibration."""
    from sksurv import metrics
    from sksurv.util import Surv

    train, test = (Surv.from_arrays(event_N[of], time_N[of]) for of in (slice(None), rows))
    metrics.concordance_index_censored(event_N[rows], time_N[rows], risk_N[rows])
    for tau in (FOLLOW_UP - 1, HORIZON):
        metrics.concordance_index_ipcw(train, test, risk_N[rows], tau=tau)
    followed = Surv.from_arrays(event_N[rows] & (time_N[rows] < FOLLOW_UP), time_N[rows])  # else it refuses
    metrics.cumulative_dynamic_auc(train, followed, risk_N[rows], [HORIZON])
    metrics.integrated_brier_score(train, test, curves.probability[rows], curves.times)
    metrics.brier_score(train, test, curves.at(HORIZON)[rows], [HORIZON])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patients", type=int, default=10_000, help="of the losses")
    parser.add_argument("--runs", type=int, default=7)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # torchsurv warns of ties at every call
    packages = ("torchsurv", "scikit-survival")
    there = [name for name, module in zip(packages, ("torchsurv", "sksurv"), strict=True) if find_spec(module)]
    print(machine("torch", "numpy", "numba", *there))
    losses(arguments.patients, arguments.runs)
    concordance(100_000, 20_000, 3)
    bootstrap(1000, 10, arguments.runs)


if __name__ == "__main__":
    main()
