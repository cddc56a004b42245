"""Time two ways to do one thing in turn, so that a machine whose speed drifts slows both; report ratios."""

import platform
import resource
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version

import torch


def alternate(ours: Callable[[], object], stock: Callable[[], object], *, runs: int = 5) -> dict[str, list[float]]:
    """Seconds of each run of both, in turn, after one uncounted run of each."""
    ours(), stock()
    seconds: dict[str, list[float]] = {"ours": [], "stock": []}
    for _ in range(runs):
        for name, work in (("ours", ours), ("stock", stock)):
            began = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def report(title: str, seconds: dict[str, list[float]], *, amount: float, unit: str) -> None:
    """Print rates (min, median, max) and the ratio pair by pair."""
    print(f"\n{title}")
    for name, times in seconds.items():
        rates = sorted(amount / second for second in times)
        print(
            f"  {name:<6} {rates[0]:>10,.1f} {statistics.median(rates):>10,.1f} {rates[-1]:>10,.1f} {unit}/s  (min, "
            f"median, max of {len(times)})"
        )
    ratios = sorted(stock / ours for ours, stock in zip(seconds["ours"], seconds["stock"], strict=True))
    print(
        f"  ratio  {ratios[0]:>10.2f} {statistics.median(ratios):>10.2f} {ratios[-1]:>10.2f} ×  (stock time / our "
        f"time, pair by pair)"
    )


def peak_flops(side: int = 2048, runs: int = 10) -> float:
    """Measured rate of a float32 matrix product of this machine, in FLOP/s: the best of `runs`."""
    a, b = torch.randn(side, side), torch.randn(side, side)
    best = float("inf")
    for _ in range(runs):
        began = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best


def peak_memory_gb() -> float:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def machine() -> str:
    """One line about hardware and versions."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "numpy"))
    return f"{platform.machine()}, {torch.get_num_threads()} threads, Python {platform.python_version()}, {packages}"
